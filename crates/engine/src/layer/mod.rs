//! Wrappers around a backend, and around what is read and written.

mod fault;
mod pace;
mod retry;
mod throttle;

pub use fault::{Fault, FaultBackend, Operation};
pub use pace::Pace;
pub use retry::{Retry, RetryLimits};
pub use throttle::{Bucket, Rates, Throttle, ThrottledSink, ThrottledSource};
