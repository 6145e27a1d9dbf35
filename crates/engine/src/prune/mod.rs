//! Removing what no snapshot needs, while others write.
//!
//! Two phases, with any number of crashes in between, and any number of prunes at once:
//!
//! 1. Packs nobody needs are *condemned* by a mark (what is still needed of mostly unused
//!    ones is copied first). Then the sessions that have lock objects are noted: any of
//!    them may have missed the mark. Sessions that begin later put their lock object first
//!    and read the marks then, so they take nothing in a condemned pack for stored.
//! 2. When none of the noted sessions has a lock object any more, and under an exclusive
//!    lock that keeps other programs out, the snapshots are walked again. What they need
//!    of condemned packs is copied; then the index objects are replaced, the packs removed,
//!    and a mark remembers that they are gone.
//!
//! Invariants, none of which rests on a clock:
//!
//! - A condemned pack never comes back into use. What is needed of it is copied, so it
//!   does not matter how late a removal that was decided on takes place.
//! - Nobody goes on without a session before its lock object is removed, and a session
//!   looks for its lock object after it wrote its snapshot, which counts for nothing when
//!   the lock is gone. Only then are the snapshots listed. So a session is waited for, or
//!   its snapshot is seen, or nobody committed it, however long it slept. Whoever finds
//!   such a snapshot walks its trees before he takes it for his own.
//! - An index object is removed only after another lists everything it listed that stays;
//!   what one listing found in two objects is not taken for a reason to write neither.
//! - Snapshots are never removed here.

use std::collections::HashSet;

use crate::{
    control::CancelFlag,
    error::EngineError,
    id::{SnapshotId, TreeId},
    time::Timestamp,
};

mod free;
mod plan;
mod run;
mod used;

pub use free::{Freed, Stats};

/// What is done about locks of other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignLocks {
    /// As long as there is one, of whatever age, nothing is removed. As restic does, which
    /// leaves it to `restic unlock` to say that its owner is dead.
    Honour,
    /// The operator says that no other program uses the repository: they are removed.
    Remove,
}

/// How to prune.
#[derive(Clone, Copy)]
pub struct PruneOptions<'a> {
    /// Stands in the lock objects. Nobody else uses it at the same time; locks of an
    /// earlier attempt of this name are removed.
    pub name: &'a str,
    /// Unused bytes that may stay beside used ones in packs, in percent of the used bytes.
    pub unused_percent_max: u8,
    /// Bytes copied at most so that the packs they lie in can be removed.
    pub repack_bytes_max: u64,
    /// Snapshots the caller knows of, and their trees. One that is there and not listed means
    /// that the store's list is incomplete, and ends the run. Of one that is gone everything
    /// is kept all the same: its object may come back.
    pub known_snapshots: &'a [(SnapshotId, TreeId)],
    /// Trees to be kept although no snapshot names them yet: finished by a session whose
    /// job has not written its snapshot. One that cannot be read is left out.
    pub keep_trees: &'a [TreeId],
    /// Whether the session of this name may be alive. Of those that are over the lock
    /// objects are removed. A wrong no costs that session its work, never data.
    pub is_alive: &'a (dyn Fn(&str) -> bool + Sync),
    /// What is done about locks of other programs.
    pub foreign_locks: ForeignLocks,
    /// The wall clock, noted in lock objects. Decides nothing.
    pub now: &'a (dyn Fn() -> Timestamp + Sync),
}

impl std::fmt::Debug for PruneOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PruneOptions")
            .field("name", &self.name)
            .field("unused_percent_max", &self.unused_percent_max)
            .field("repack_bytes_max", &self.repack_bytes_max)
            .finish_non_exhaustive()
    }
}

/// What a prune saw, did and left for a later one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Snapshots walked.
    pub snapshots: u64,
    /// Packs the index listed at the beginning.
    pub packs: u64,
    /// Distinct blobs the snapshots need.
    pub used_blobs: u64,
    /// Their stored bytes.
    pub used_bytes: u64,
    /// Stored bytes nobody needs that stay, in packs with others.
    pub unused_bytes: u64,
    /// Blobs copied into new packs.
    pub copied_blobs: u64,
    /// Their stored bytes.
    pub copied_bytes: u64,
    /// Packs condemned by this run.
    pub condemned_packs: u64,
    /// Their size.
    pub condemned_bytes: u64,
    /// Packs in no index object that are condemned when the sessions alive now are over.
    pub suspect_packs: u64,
    /// Packs removed.
    pub removed_packs: u64,
    /// Their size.
    pub removed_bytes: u64,
    /// Index objects replaced.
    pub replaced_index_objects: u64,
    /// Objects the store refused to delete because it retains them.
    pub retained_objects: u64,
    /// Condemned packs that are still there.
    pub waiting_packs: u64,
    /// Sessions whose end is waited for.
    pub waits_for: Vec<String>,
    /// Used blobs that have no sound place any more. Verify says which; their packs stay.
    pub lost_blobs: u64,
    /// Damage met while copying, recorded as marks.
    pub found_damage: Vec<String>,
    /// Why condemned packs nobody is waited for were not removed.
    pub deferred: Option<String>,
}

/// Snapshots and their trees, walked.
struct Walked {
    snapshots: u64,
    used: used::UsedBlobs,
}

impl crate::repository::Repository<crate::repository::Indexed> {
    /// All blobs below some trees.
    fn walk(&self, roots: &[TreeId], cancel: &CancelFlag) -> Result<used::UsedBlobs, EngineError> {
        let (mut used, mut seen) = (used::UsedBlobs::default(), HashSet::new());
        for root in roots {
            self.add_used(*root, &mut seen, &mut used, cancel)?;
        }
        used.settle();
        Ok(used)
    }
}
