//! Proving one backup: its bytes are read back, its disks inspected, its server booted.
//!
//! Watching goes through whole repositories and finds what went bad; a proof is of one
//! backup, when somebody asks or when it is its turn.

use serde::{Deserialize, Serialize};

use crate::drill::{Boot, DiskReport};
use crate::ids::{ItemId, ProjectId, ProofId, VolumeBackupId};
use crate::time::Timestamp;

/// The record of one proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Its id.
    pub id: ProofId,
    /// The owner of the backup.
    pub project_id: ProjectId,
    /// The backup.
    pub item_id: ItemId,
    /// How far it is to go.
    pub kind: ProofKind,
    /// Why it is made.
    pub haste: Haste,
    /// Where it stands.
    pub status: ProofStatus,
    /// What came of it.
    pub outcome: Option<Outcome>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it began: what it says is true of the bytes from then on.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// How far a proof goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofKind {
    /// Every byte is read as a restore reads it, and compared with its hash.
    Read,
    /// The same; then every disk is inspected, and the server is booted where that is
    /// configured.
    Drill,
    /// A restore read every byte, wrote it to a server and read it back from there. It is
    /// recorded when one ends well; nobody can ask for it.
    Restore,
}

/// Why a proof is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// Somebody asked for it, and waits.
    Asked,
    /// It is its turn, or evidence is demanded: it keeps to what reading back may take.
    Due,
}

/// Where a proof stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofStatus {
    /// It waits for its turn.
    Queued,
    /// It is under way.
    Running,
    /// It ended.
    Done,
}

/// What came of a proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// In a word.
    pub verdict: ProofVerdict,
    /// Why, for people; empty where it passed.
    pub reason: String,
    /// What was seen of each disk, in the backup's order.
    pub disks: Vec<DiskProof>,
    /// How booting went, where it was tried.
    pub boot: Option<Boot>,
}

/// What came of a proof, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofVerdict {
    /// Nothing was found wrong.
    Passed,
    /// The backup did not prove good.
    Failed,
    /// It could not be told, through no fault of the backup.
    Undecided,
}

/// What was seen of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskProof {
    /// The disk backup.
    pub backup: VolumeBackupId,
    /// Bytes read and found to have their hashes; zeroes need no reading.
    pub read_bytes: u64,
    /// What it holds, where it was inspected.
    pub report: Option<DiskReport>,
}

/// What earlier proofs say of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proven {
    /// Every byte of it was read back after this moment.
    pub read_at: Option<Timestamp>,
    /// The latest drill that came to an end of its own.
    pub drilled: Option<Drilled>,
}

/// A drill that came to an end of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drilled {
    /// When it began.
    pub at: Timestamp,
    /// What came of it.
    pub outcome: DrillOutcome,
}

/// What came of a drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrillOutcome {
    /// The server booted.
    Booted,
    /// Its disks were sound; it was not booted.
    Inspected,
    /// Something was wrong.
    Failed,
}

impl ProofKind {
    /// The word in rows and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Drill => "drill",
            Self::Restore => "restore",
        }
    }

    /// The kind with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Read, Self::Drill, Self::Restore].into_iter().find(|kind| kind.as_str() == word)
    }
}

impl ProofStatus {
    /// The word in rows and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
        }
    }

    /// The status with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Queued, Self::Running, Self::Done].into_iter().find(|one| one.as_str() == word)
    }
}

impl ProofVerdict {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Undecided => "undecided",
        }
    }
}

impl DrillOutcome {
    /// The word in rows and explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Booted => "booted",
            Self::Inspected => "inspected",
            Self::Failed => "failed",
        }
    }

    /// The outcome with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Booted, Self::Inspected, Self::Failed].into_iter().find(|one| one.as_str() == word)
    }
}

impl Proof {
    /// What a drill says, if it came to an end of its own.
    pub fn drill_outcome(&self) -> Option<DrillOutcome> {
        let outcome = self.outcome.as_ref().filter(|_| self.kind == ProofKind::Drill)?;
        match (outcome.verdict, &outcome.boot) {
            (ProofVerdict::Passed, Some(Boot::Booted { .. })) => Some(DrillOutcome::Booted),
            (ProofVerdict::Passed, _) => Some(DrillOutcome::Inspected),
            (ProofVerdict::Failed, _) => Some(DrillOutcome::Failed),
            (ProofVerdict::Undecided, _) => None,
        }
    }
}
