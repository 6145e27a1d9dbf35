//! The domain of Kedge: values, rules, plans and the ports to the outside. Pure.
//!
//! Invariant: nothing in this crate does IO, reads a clock, knows HTTP, SQL or a file.
//! Facts come in as arguments, answers go out as values; what a function returns is a
//! function of what it was given.

#![warn(missing_docs)]

pub mod checkpoint;
pub mod code;
pub mod drill;
pub mod evidence;
pub mod explain;
pub mod fact;
pub mod fit;
pub mod fleet;
pub mod ids;
pub mod job;
pub mod ports;
pub mod precondition;
pub mod proof;
pub mod protect;
pub mod refusal;
pub mod resource;
pub mod restore;
pub mod status;
pub mod tag;
pub mod time;
