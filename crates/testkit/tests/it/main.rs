//! The whole service in one process, judged from outside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod damage;
mod field;
mod fleet;
mod flow;
mod http;
mod oracle;
mod parents;
mod plans;
mod proofs;
mod receipts;
mod support;
mod suspects;
mod trouble;
mod unknowns;
mod watch;
