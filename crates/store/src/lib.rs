//! Durable state: the only SQL.
//!
//! Values of `core` go in and come out, rows never do. Every status of an item is written
//! through `ItemStatus::next`, every write of a job's holder names the job's fence, and
//! nothing here reads a clock: times are arguments.
//!
//! Invariants:
//! - No transaction is held over a call to the outside; each method is one transaction.
//! - Every read for a caller is scoped to a project, and runs the same statements whether
//!   an object is absent or another project's.
//! - One SQL text for every database: ids and JSON in `TEXT`, numbers and microseconds in
//!   `BIGINT`, parameters numbered, no function of time.

#![warn(missing_docs)]

mod arrows;
mod claims;
mod codec;
mod db;
mod error;
mod items;
mod jobs;
mod list;
mod plans;
mod proofs;
mod receipts;
mod repositories;
mod restores;
mod servers;
mod text;
mod tokens;
mod watches;

pub use claims::Holders;
pub use db::{Outage, Store};
pub use error::{Result, StoreError};
pub use items::Fate;
pub use jobs::{Heartbeat, JobCounts, NewJob};
pub use list::{Direction, ItemFilter, ItemPage, PageRequest, SortKey};
pub use plans::KeptPlan;
pub use receipts::ReceiptRow;
pub use repositories::RepositoryRow;
pub use restores::{PowerOn, Restore, RestoreStatus};
pub use tokens::{TokenHash, TokenRow};
