//! Wrappers around a backend, and a disk under one.

mod crash;
mod fault;

pub use crash::{Loss, Replay, SimulatedDisk};
pub use fault::{Fault, FaultBackend, Operation};
