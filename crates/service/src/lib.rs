//! What the system does: authorises, gathers facts, asks `core`, writes the store, runs
//! jobs. Knows neither HTTP nor a concrete cloud.
//!
//! Invariant: every call made for a caller takes a [`context::Context`], which only
//! [`App::authorise`] makes; so nothing here can forget to ask whether the caller may. The
//! others are the operator's: workers, reconcilers, rebuilding, health.

pub mod care;
pub mod context;
mod deletion;
pub mod error;
pub mod explain;
pub mod fleet;
pub mod identity;
pub mod items;
pub mod keys;
pub mod kit;
pub mod manifest;
pub mod pace;
pub mod places;
pub mod plans;
pub mod proofs;
pub mod protect;
mod reading;
pub mod rebuild;
pub mod receipts;
pub mod repositories;
pub mod restore;
pub mod rotation;
pub mod settings;
pub mod watch;

mod access;
mod adapt;
mod app;
mod attempt;
mod budget;
mod checks;
mod facts;
mod job;
mod lookups;
mod names;
mod reconcile;
mod verify;
mod wholeness;
mod worker;

pub use app::{App, Points, Wiring};
