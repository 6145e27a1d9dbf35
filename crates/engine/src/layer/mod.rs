//! Wrappers around a backend, and other things that only tests and measurements need.

mod fault;
mod made_up;

pub use fault::{Fault, FaultBackend, Operation};
pub use made_up::{look_up_made_up, store_made_up_index};
