//! Wrappers around a backend, a disk under one, and other things that only tests and
//! measurements need.

mod crash;
mod fault;
mod foreign;
mod made_up;

pub use crash::{Loss, Replay, SimulatedDisk};
pub use fault::{Fault, FaultBackend, Operation};
pub use foreign::ForeignLock;
pub use made_up::{look_up_made_up, store_made_up_index};
