//! The handlers: each converts, calls, converts.

pub(crate) mod checkpoints;
pub(crate) mod checks;
pub(crate) mod fleet;
pub(crate) mod identity;
pub(crate) mod items;
pub(crate) mod plans;
pub(crate) mod proofs;
pub(crate) mod restores;
pub(crate) mod service;
