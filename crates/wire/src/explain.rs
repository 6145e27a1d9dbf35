//! What `?explain=true` adds to an answer of the two checks. No part of CSBS v1.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::check::RestoreVolumeMapping;

/// Why an answer is what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// Every rule that refuses, in the order in which they are asked; the first gives the
    /// answer its code.
    pub violations: Vec<Violation>,
    /// What would be done; only on yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub plan: Option<Plan>,
    /// What is known of the backup's bytes; of a restore whose backup is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub evidence: Option<Evidence>,
}

/// What is known of a backup's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    /// `A`: a drill read every byte, inspected every disk and booted the server; `B`: every byte was read back and hashed since it was stored; `C`: every pack was
    /// there since, as large as it must be; `D`: only the catalogue speaks of it.
    pub grade: String,
    /// Every byte was read back after this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub read_since: Option<String>,
    /// Every pack was there at this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub present_at: Option<String>,
    /// What the latest drill came to: `booted`, `inspected` or `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub drill: Option<String>,
    /// When that drill began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub drilled_at: Option<String>,
}

/// A rule that refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Violation {
    /// The rule's name.
    pub rule: String,
    /// Its code.
    pub error_code: String,
    /// Its text.
    pub error_msg: String,
    /// What it saw.
    pub facts: Vec<SeenFact>,
    /// What would mend it, each for itself, the smallest change first.
    pub repairs: Vec<Repair>,
}

/// A fact as a rule saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SeenFact {
    /// `checkpoint_item`, `server`, `volume_backup`, `volume` or `request`.
    pub of: String,
    /// Of which; empty for the request.
    pub id: String,
    /// Which property.
    pub name: String,
    /// Its value.
    pub value: String,
    /// How long ago it was learned; not there for what the catalogue knows now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub age_ms: Option<u64>,
}

/// Something somebody could do. Which of the fields are there goes by the action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Repair {
    /// What, for programs.
    pub action: String,
    /// What, for people.
    pub text: String,
    /// The type to name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub resource_type: Option<String>,
    /// The backup to restore instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub checkpoint_item_id: Option<String>,
    /// The server to change, to wait for, or to restore to instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub resource_id: Option<String>,
    /// The mapping to ask with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub volumes: Option<Vec<RestoreVolumeMapping>>,
    /// The disks to change or to wait for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub volume_ids: Option<Vec<String>>,
    /// The disks to extend, and by how much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub extend: Option<Vec<Extension>>,
    /// Disks that the backups would fit on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub disks: Option<Vec<NeededDisk>>,
    /// The job to wait for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub job_id: Option<String>,
    /// About how long to wait, if that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub seconds: Option<u64>,
    /// The server's zone must be this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub zone: Option<String>,
    /// The server must be of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub kind: Option<String>,
    /// The operator's setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub setting: Option<String>,
}

/// A disk to extend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Extension {
    /// The disk.
    pub volume_id: String,
    /// By so many GB, rounded up.
    pub by_gb: u64,
}

/// A disk that a disk backup fits on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NeededDisk {
    /// The disk backup.
    pub backup_id: String,
    /// At least so large.
    pub size_bytes: u64,
    /// Whether it must be encrypted.
    pub encrypted: bool,
    /// Whether it may be the system disk.
    pub bootable: bool,
}

/// What would be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// Its name, for a restore to name in turn; only for callers who may restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<String>,
    /// The disks to read or to write.
    pub volumes: Vec<PlannedVolume>,
    /// How long a restore takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub estimate: Option<Estimate>,
}

/// A disk of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedVolume {
    /// The disk.
    pub volume_id: String,
    /// Its backup, of a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub backup_id: Option<String>,
    /// Bytes read of it, or written to it from its start on.
    pub size_bytes: u64,
    /// Bytes of them that are data, of a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub data_bytes: Option<u64>,
    /// Bytes of them that are zeroes, of a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub zero_bytes: Option<u64>,
    /// Bytes after them that stay as they are, of a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub untouched_bytes: Option<u64>,
}

/// About how long it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    /// Seconds, reading back included.
    pub seconds: u64,
    /// What that rests on, for people.
    pub basis: String,
}
