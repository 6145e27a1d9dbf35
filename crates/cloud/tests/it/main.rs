//! Drivers of the Cloud port: the contract each keeps, and what `local` does with hostile
//! or failing disks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod contract;
mod files;
mod hostile;
mod local;
mod register;
mod sim;
mod stage;
mod tracking;
