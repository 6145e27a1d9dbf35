//! The catalogue's records: a checkpoint, its items, their volume backups.

use serde::{Deserialize, Serialize};

use crate::ids::{CheckpointId, ItemId, JobId, ProjectId, ServerId, VolumeBackupId, VolumeId};
use crate::resource::{Encryption, Hardware, ServerKind, VolumeRole};
use crate::status::ItemStatus;
use crate::tag::Tag;
use crate::time::Timestamp;

/// The record of one run of a protect request: the published `checkpoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its id.
    pub id: CheckpointId,
    /// The owner.
    pub project_id: ProjectId,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// The plan that made it; for a manual backup the made-up id `fake_` + UUID.
    pub plan_id: String,
    /// The plan's name.
    pub plan_name: String,
    /// Its backups, 1..n until all are deleted.
    pub items: Vec<Item>,
}

/// The backup of one server: the published `checkpoint_item`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its id.
    pub id: ItemId,
    /// The record it belongs to.
    pub checkpoint_id: CheckpointId,
    /// The owner.
    pub project_id: ProjectId,
    /// Name, 1 to 255 of `[A-Za-z0-9_-]`.
    pub name: String,
    /// Description, possibly empty.
    pub description: String,
    /// Where it stands.
    pub status: ItemStatus,
    /// The server as it was.
    pub source: SourceServer,
    /// What started it.
    pub trigger: Trigger,
    /// Full or incremental.
    pub method: Method,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Last change of the record.
    pub updated_at: Timestamp,
    /// The moment the data stands for; known once the disks are frozen.
    pub protected_at: Option<Timestamp>,
    /// When the backup was complete.
    pub finished_at: Option<Timestamp>,
    /// Its place in the order in which the project's backups were finished, from 1 on. The
    /// catalogue gives it, whatever clocks say; none while it is being made.
    pub sequence: Option<u64>,
    /// Users' tags, at most [`crate::tag::TAGS_MAX`].
    pub tags: Vec<Tag>,
    /// Backups of its disks, in device order.
    pub volumes: Vec<VolumeBackup>,
    /// The last thing that failed, if anything did.
    pub fault: Option<Fault>,
    /// Per cent done of the work in progress; 100 when there is none.
    pub progress: u8,
    /// The job that made it; the wire's `taskid`.
    pub job_id: JobId,
    /// Where its data lies in the project's repository; set when it is complete.
    pub snapshot: Option<SnapshotRef>,
}

/// The backed-up server as it was at backup time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceServer {
    /// Its id.
    pub id: ServerId,
    /// Its name: any text.
    pub name: String,
    /// What ran it.
    pub kind: ServerKind,
    /// Its availability zone.
    pub zone: String,
    /// Facts shown to users.
    pub hardware: Hardware,
}

/// What started a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// A person or their program.
    Manual,
    /// A schedule.
    Automatic,
}

/// Whether a backup built on an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Read whole.
    Full,
    /// Built on the server's previous backup where the volumes allow.
    Incremental,
}

/// Something that failed, as the wire's `fail_op`, `fail_code`, `fail_reason` tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What was being done.
    pub operation: FaultOperation,
    /// A code, digits only on the wire (docs/csbs-v1.md).
    pub code: u32,
    /// What happened and what to do, for people.
    pub reason: String,
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultOperation {
    /// Making the backup.
    Backup,
    /// Restoring from it.
    Restore,
    /// Deleting it.
    Delete,
}

impl FaultOperation {
    /// The word on the wire (docs/csbs-v1.md).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Delete => "delete",
        }
    }

    /// The operation with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Backup, Self::Restore, Self::Delete].into_iter().find(|op| op.as_str() == word)
    }
}

/// The backup of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeBackup {
    /// Its id: the wire's `backup_id`.
    pub id: VolumeBackupId,
    /// `<backup name>_<volume name>` with a generated prefix (docs/csbs-v1.md).
    pub name: String,
    /// The volume it was made from.
    pub source_volume_id: VolumeId,
    /// That volume's name: any text.
    pub source_volume_name: String,
    /// That volume's size then.
    pub source_size_bytes: u64,
    /// System or data disk then.
    pub role: VolumeRole,
    /// Encrypted or plain then.
    pub encryption: Encryption,
    /// What was stored; set when the backup is complete.
    pub stored: Option<StoredVolume>,
}

/// What the repository holds of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredVolume {
    /// Folder of the volume inside the repository snapshot.
    pub folder: String,
    /// Logical non-zero bytes referenced: what the wire's `size` and quotas count. No
    /// other backup's deletion changes it.
    pub data_bytes: u64,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Bytes this backup added to the repository, compressed and encrypted.
    pub stored_bytes: u64,
    /// How long storing took.
    pub duration_ms: u64,
    /// Full or built on an earlier backup of the same volume.
    pub method: Method,
    /// What the cloud's driver can tell the next backup's changes from, if it can.
    pub change_token: Option<ChangeToken>,
}

/// A driver's name for a moment of a volume, from which it can list later changes. Opaque
/// to everyone else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChangeToken(pub String);

/// Where an item's data lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRef {
    /// Id of the repository snapshot, 64 hexadecimal digits.
    pub snapshot: String,
    /// Id of its root tree, 64 hexadecimal digits.
    pub tree: String,
}

impl Item {
    /// Sum of logical non-zero bytes over its volumes.
    pub fn data_bytes(&self) -> u64 {
        self.stored_volumes().map(|stored| stored.data_bytes).sum()
    }

    /// What is stored of its volumes so far.
    pub fn stored_volumes(&self) -> impl Iterator<Item = &StoredVolume> {
        self.volumes.iter().filter_map(|volume| volume.stored.as_ref())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::resource::VolumeRole;

    /// A backup of disks of these sizes: `b0` of the system disk `v0` and so on.
    pub(crate) fn item_of(sizes: &[u64]) -> Item {
        let at = Timestamp::from_micros(0);
        let volume = |(index, size): (usize, &u64)| VolumeBackup {
            id: VolumeBackupId::asked(&format!("b{index}")),
            name: "backup".to_owned(),
            source_volume_id: VolumeId::asked(&format!("v{index}")),
            source_volume_name: "disk".to_owned(),
            source_size_bytes: *size,
            role: if index == 0 { VolumeRole::System } else { VolumeRole::Data },
            encryption: Encryption::Plain,
            stored: None,
        };
        Item {
            id: ItemId::asked("item"),
            checkpoint_id: CheckpointId::asked("record"),
            project_id: ProjectId::new("project"),
            name: "backup".to_owned(),
            description: String::new(),
            status: ItemStatus::Available,
            source: SourceServer {
                id: ServerId::asked("server"),
                name: "server".to_owned(),
                kind: ServerKind::Kvm,
                zone: "zone".to_owned(),
                hardware: Hardware::default(),
            },
            trigger: Trigger::Manual,
            method: Method::Full,
            created_at: at,
            updated_at: at,
            protected_at: None,
            finished_at: None,
            sequence: None,
            tags: Vec::new(),
            volumes: sizes.iter().enumerate().map(volume).collect(),
            fault: None,
            progress: 100,
            job_id: JobId::asked("job"),
            snapshot: None,
        }
    }
}
