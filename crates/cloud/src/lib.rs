//! Drivers of the Cloud port. `tests/it/contract.rs` is the suite every one of them passes.

pub mod local;
pub mod sim;
