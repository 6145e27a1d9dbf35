//! Work that lasts: jobs, their states, their claims and when to try again.
//!
//! A job's state is a value in a row. Each arrow ends in one transaction that records its
//! result and the next state, so a crash repeats at most one arrow, and that arrow finds
//! what it made, because everything outside is named from ids.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Fault, Method, SnapshotRef, StoredVolume, Trigger};
use crate::ids::{CheckpointId, ItemId, JobId, ProjectId, RestoreId, VolumeBackupId};
use crate::time::Timestamp;

/// A unit of background work as its worker holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The owner of what it works on.
    pub project_id: ProjectId,
    /// What is to be done and how far it has come.
    pub work: Work,
    /// Goes up with every claim; every write of a holder names the fence it holds, so a
    /// holder that lost its lease writes nothing.
    pub fence: u64,
    /// Times it was taken over from a holder that vanished.
    pub restarts: u32,
    /// Times an arrow failed in a way that trying again may mend.
    pub failures: u32,
    /// Whether somebody asked it to stop.
    pub cancel: Cancel,
    /// When it was enqueued.
    pub created_at: Timestamp,
}

/// Whether a job was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// Nobody asked.
    No,
    /// It stops at the next safe point and undoes what it made.
    Requested,
}

/// What a job does, with its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// Make a backup.
    Protect {
        /// The record of the run.
        checkpoint: CheckpointId,
        /// The item to fill.
        item: ItemId,
        /// What started it.
        trigger: Trigger,
        /// How far it has come.
        state: ProtectState,
    },
    /// Restore from a backup.
    Restore {
        /// The restore's record, which holds mapping and target.
        restore: RestoreId,
        /// The item restored from.
        item: ItemId,
        /// How far it has come.
        state: RestoreState,
    },
    /// Delete a backup.
    Delete {
        /// The item.
        item: ItemId,
        /// How far it has come.
        state: DeleteState,
    },
}

impl Work {
    /// The word of its kind, in rows and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Protect { .. } => "protect",
            Self::Restore { .. } => "restore",
            Self::Delete { .. } => "delete",
        }
    }

    /// The item it works on.
    pub fn item(&self) -> &ItemId {
        match self {
            Self::Protect { item, .. } | Self::Restore { item, .. } | Self::Delete { item, .. } => {
                item
            }
        }
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Protect { state, .. } => matches!(state, ProtectState::Done),
            Self::Restore { state, .. } => matches!(state, RestoreState::Done),
            Self::Delete { state, .. } => matches!(state, DeleteState::Done),
        }
    }
}

/// ```text
/// Start -> Snapshotted -> Stored -> Recorded -> Done
///   ^           |            |
///   +-----------+            |      the moment was lost: begin again
///   |           |            |
///   +-----> Undo <-----------+----> Done   (the item ends in error)
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum ProtectState {
    /// Nothing is made yet.
    Start,
    /// All disks are frozen at one moment.
    Snapshotted {
        /// The freeze's name in the cloud, made from the item's id and the fence of who
        /// made it: a holder that lost the job cannot touch its successor's freeze.
        name: String,
        /// That moment.
        protected_at: Timestamp,
    },
    /// Every byte is in durable packs and index objects; the root tree is known. The
    /// snapshot object is written only after this is committed.
    Stored {
        /// The moment the data stands for.
        protected_at: Timestamp,
        /// The root tree, 64 hexadecimal digits.
        tree: String,
        /// What was stored, one per volume in the item's order.
        volumes: Vec<StoredVolume>,
    },
    /// The item is available; the cloud's snapshots are still to be released.
    Recorded,
    /// It failed or was cancelled; what it made in the cloud is to be removed, then the
    /// item ends in error.
    Undo {
        /// What the item will tell.
        fault: Fault,
    },
    /// Nothing is left to do.
    Done,
}

/// ```text
/// Start -> Writing -> Written -> Done
///   |         |
///   v         v
///  Undo -----------> Done       (the item returns to available, with a fault)
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum RestoreState {
    /// Nothing is touched yet.
    Start,
    /// The target is locked and stopped; from here its disks may be half written.
    Writing {
        /// Disk backups whose destination was written and read back.
        done: Vec<VolumeBackupId>,
        /// Whether the server ran before, so that a restore which wrote nothing can put
        /// things back.
        was_running: WasRunning,
    },
    /// Every byte was read back; the server is still to be unlocked and started.
    Written,
    /// It failed. What was not touched is put back; what is half written, which the
    /// cloud's marks tell, stays stopped and marked.
    Undo {
        /// What the item and the restore will tell.
        fault: Fault,
        /// Whether the server ran before.
        was_running: WasRunning,
    },
    /// Nothing is left to do.
    Done,
}

/// Whether a server ran before a restore stopped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WasRunning {
    /// It ran.
    Yes,
    /// It was off.
    No,
}

/// ```text
/// Start -> Removed -> Done
///   |
///   v
///  Undo -> Done        (the item ends in error)
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum DeleteState {
    /// The repository snapshot is still there.
    Start,
    /// The repository snapshot is gone; the row is still to become a tombstone.
    Removed,
    /// It failed for good.
    Undo {
        /// What the item will tell.
        fault: Fault,
    },
    /// Nothing is left to do.
    Done,
}

/// How a finished protect job ends in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtectResult {
    /// The moment the data stands for.
    pub protected_at: Timestamp,
    /// Where the data lies.
    pub snapshot: SnapshotRef,
    /// One per volume, in the item's order.
    pub volumes: Vec<StoredVolume>,
    /// Incremental if any volume was.
    pub method: Method,
}

/// What a job keeps others from using while it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What kind of thing.
    pub kind: ClaimKind,
    /// Which.
    pub id: String,
    /// Alone or with others.
    pub mode: ClaimMode,
}

impl Claim {
    /// A claim that admits no other.
    pub fn exclusive(kind: ClaimKind, id: impl ToString) -> Self {
        Self { kind, id: id.to_string(), mode: ClaimMode::Exclusive }
    }
}

/// What can be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClaimKind {
    /// A server of the cloud.
    Server,
    /// A volume of the cloud.
    Volume,
    /// A backup.
    Item,
}

impl ClaimKind {
    /// The word in rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Volume => "volume",
            Self::Item => "item",
        }
    }
}

/// Alone or with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimMode {
    /// Nobody else, not even to look.
    Exclusive,
    /// Any number that only look.
    Shared,
}

/// How long a worker may hold a job without a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// From one heartbeat's sending to the end of the lease.
    pub length: Duration,
}

impl Lease {
    /// How often the holder says it lives.
    pub fn heartbeat(self) -> Duration {
        self.length / 3
    }

    /// What must be left of the lease before any write outside the catalogue: the time
    /// within which a write that was begun is over.
    pub fn margin(self) -> Duration {
        self.length / 3
    }
}

/// After this many failures of the same job it fails for good: with [`back_off`] between
/// them, more than ten minutes in which an outage may end.
pub const FAILURES_MAX: u32 = 11;

/// How often a job may be taken over from vanished holders: a server that restarts
/// nightly must not kill a backup of days, a job that kills its worker must end.
pub const RESTARTS_MAX: u32 = 100;

/// How long to wait before trying again: doubling from one second, at most five minutes.
pub fn back_off(failures: u32) -> Duration {
    let secs = 1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
    Duration::from_secs(secs.min(300))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_are_bounded() {
        let waits: Vec<_> = [1, 2, 3, 9, 64, u32::MAX].map(|n| back_off(n).as_secs()).into();
        assert_eq!(waits, [1, 2, 4, 256, 300, 300]);
        let all: Duration = (1..FAILURES_MAX).map(back_off).sum();
        assert!(all > Duration::from_secs(600), "{all:?}");
    }
}
