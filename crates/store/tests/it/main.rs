//! The store against the real database.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod arrows;
mod catalogue;
mod files;
mod fixture;
mod indexes;
mod jobs;
mod list;
mod trouble;
