//! Wrappers around a backend, a source or a sink; a disk under a backend, and what else only
//! tests and measurements need.

mod crash;
mod fault;
mod foreign;
mod made_up;
mod pace;
mod retry;
mod throttle;

pub use crash::{Loss, Replay, SimulatedDisk};
pub use fault::{Fault, FaultBackend, Operation};
pub use foreign::ForeignLock;
pub use made_up::{look_up_made_up, store_made_up_index};
pub use pace::Pace;
pub use retry::{Retry, RetryLimits};
pub use throttle::{Bucket, Rates, Throttle, ThrottledSink, ThrottledSource};
