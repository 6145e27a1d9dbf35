//! Proofs of backups: readings back and drills. No part of CSBS v1.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of the call that asks for a proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProofBody {
    /// The proof.
    pub proof: ProofParam,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProofParam {
    /// `read`: every byte is read as a restore reads it. `drill`: then the disks are inspected,
    /// and the server is booted where the operator has configured that.
    #[schema(pattern = "^(read|drill)$")]
    pub kind: String,
}

/// One proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProofAnswer {
    /// The proof.
    pub proof: Proof,
}

/// Proofs of a backup, the latest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProofList {
    /// The proofs.
    pub proofs: Vec<Proof>,
}

/// A reading back, a drill, or a restore that ended well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Proof {
    /// Its id.
    pub id: String,
    /// The backup.
    pub checkpoint_item_id: String,
    /// `read` or `drill`; or `restore`, where one ended well, which reads every byte too.
    pub kind: String,
    /// `queued`, `running` or `done`.
    pub status: String,
    /// `passed`, `failed`, or `undecided`, where it could not be told through no fault of
    /// the backup; once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub verdict: Option<String>,
    /// Why it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<String>,
    /// What was seen of each disk.
    pub disks: Vec<ProvedDisk>,
    /// How booting went, where it was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub boot: Option<ProvedBoot>,
    /// When it was asked for.
    pub created_at: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub finished_at: Option<String>,
}

/// What was seen of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProvedDisk {
    /// The disk backup.
    pub backup_id: String,
    /// Bytes that were read and had their hashes; zeroes need no reading.
    pub read_bytes: u64,
    /// `none`, `mbr` or `gpt`, of an inspected disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub partition_table: Option<String>,
    /// Its partitions.
    pub partitions: Vec<ProvedPartition>,
    /// What is wrong with its partition table.
    pub problems: Vec<String>,
}

/// What was seen of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProvedPartition {
    /// Its number in the table; 0 for a disk without one.
    pub number: u32,
    /// Its size.
    pub size_bytes: u64,
    /// What it holds, as `ext4`; `unknown` or `empty`.
    pub content: String,
    /// `recognised`; `described`, where the blocks that describe it add up; `walked`, where
    /// every directory was read.
    pub depth: String,
    /// Files and directories whose records were read.
    pub files: u64,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// How booting went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProvedBoot {
    /// Whether the console said so.
    pub booted: bool,
    /// The line that said so, or what was seen instead.
    pub said: String,
    /// How long it took.
    pub after_ms: u64,
    /// The last lines of the console of one that did not boot.
    pub console: Vec<String>,
}
