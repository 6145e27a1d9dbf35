//! The built program, as a person or a service manager runs it.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bucket;
mod config;
mod crash;
mod demo;
mod drill;
mod fleet;
mod hostile;
mod kedge;
mod operator;
mod receipts;
mod repo;
mod rotation;
mod secrets;
mod serve;
mod site;
