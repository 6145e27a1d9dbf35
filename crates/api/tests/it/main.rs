//! The API over the whole service on a simulated cloud.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod journey;
mod refusals;
mod server;
