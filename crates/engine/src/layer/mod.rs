//! Wrappers around a backend.

mod fault;

pub use fault::{Fault, FaultBackend, Operation};
