//! Test harness: a manual clock, an id sequence, and the whole service in one process on a
//! simulated cloud. Used from `tests/` only.

#![expect(clippy::expect_used, reason = "a harness that cannot be set up fails its test")]

mod harness;
mod outside;
mod stage;

pub use harness::{
    ADMIN, Harness, MEMBER, OTHER_PROJECT, PASSWORD, PROJECT, READER, STRANGER, Stage, users_text,
};
pub use outside::{ManualClock, MemoryPlaces, SequentialIds, WaitedTime};
pub use stage::SimStage;
