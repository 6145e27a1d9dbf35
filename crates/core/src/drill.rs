//! Trying out a backup: what its disks turn out to hold, and whether they boot.
//!
//! A drill is made on the bytes as a restore would write them, apart from every server and
//! network. Failing one is the backup's matter; a stage that cannot be had is not.

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ports::DiskReader;

/// Where backups are tried out.
#[async_trait::async_trait]
pub trait Stage: Send + Sync + Debug {
    /// Looks at a disk's partition table and file systems. Reads what it needs and changes
    /// nothing.
    async fn inspect(&self, disk: Arc<dyn DiskReader>) -> Result<DiskReport, StageError>;

    /// Boots a machine of these disks, the first being the one it boots from. What it
    /// writes goes to a copy that ends with it; it has no network.
    async fn boot(&self, disks: Vec<Arc<dyn DiskReader>>) -> Result<Boot, StageError>;
}

/// The stage itself failed: nothing is known of the backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct StageError {
    /// What happened, for operators.
    pub text: String,
}

impl StageError {
    /// A failure of the stage.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

/// What a disk holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// How it is divided.
    pub table: TableKind,
    /// Its partitions in the table's order; one for the whole disk where there is no table.
    pub partitions: Vec<PartitionReport>,
    /// What is wrong with the table.
    pub problems: Vec<String>,
}

/// How a disk is divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// It is not.
    #[default]
    None,
    /// A master boot record.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

/// What a partition holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionReport {
    /// Its number in the table, from 1; 0 for a disk without a table.
    pub number: u32,
    /// Where it begins.
    pub offset_bytes: u64,
    /// Its size.
    pub size_bytes: u64,
    /// The content's usual name, such as `ext4`; `unknown` or `empty`.
    pub content: String,
    /// How closely it was looked at.
    pub depth: Depth,
    /// Files and directories whose records were read, where they were.
    pub files: u64,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// How closely something was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// Nothing was recognised, or no more than its name.
    Recognised,
    /// The blocks that describe it were read and add up.
    Described,
    /// Every directory was read, and every file's record.
    Walked,
}

impl DiskReport {
    /// Everything that is wrong with the disk, each in a line of its own.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let of_partitions = self.partitions.iter().flat_map(|partition| {
            let number = partition.number;
            partition.problems.iter().map(move |text| format!("partition {number}: {text}"))
        });
        self.problems.iter().cloned().chain(of_partitions)
    }
}

/// How booting went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Boot {
    /// The console said so.
    Booted {
        /// The line that said so.
        line: String,
        /// How long it took.
        after_ms: u64,
    },
    /// It said that it cannot, or nothing in time.
    Failed {
        /// What was seen.
        why: String,
        /// How long it took.
        after_ms: u64,
        /// The last lines of the console.
        console: Vec<String>,
    },
}
