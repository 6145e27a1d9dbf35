//! Rows to values of `core` and back.
//!
//! What a row holds was written by us; text that cannot be read back is damage and is
//! reported with the row's name, never guessed at.

use kedge_core::checkpoint::{
    Item, Method, SnapshotRef, SourceServer, StoredVolume, Trigger, VolumeBackup,
};
use kedge_core::ids::{CheckpointId, ItemId, JobId, ProjectId, ServerId, VolumeBackupId, VolumeId};
use kedge_core::resource::{Encryption, Hardware, ServerKind, VolumeRole};
use kedge_core::status::ItemStatus;
use kedge_core::tag::Tag;
use kedge_core::time::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use crate::error::{Result, StoreError};

/// A row of `items`.
#[derive(FromRow)]
pub(crate) struct ItemRow {
    pub(crate) id: String,
    checkpoint_id: String,
    project_id: String,
    job_id: String,
    server_id: String,
    name: String,
    status: String,
    method: String,
    progress: i64,
    details: String,
    fault: Option<String>,
    snapshot_id: Option<String>,
    tree_id: Option<String>,
    created_at: i64,
    updated_at: i64,
    protected_at: Option<i64>,
    finished_at: Option<i64>,
    sequence: Option<i64>,
}

/// A row of one of the three tables that an item consists of, in the columns of `items`: so
/// that one statement loads all three at one moment.
#[derive(FromRow)]
pub(crate) struct PartRow {
    part: i64,
    #[sqlx(flatten)]
    row: ItemRow,
}

/// What a [`PartRow`] is a row of.
pub(crate) enum Part {
    Item(Box<ItemRow>),
    Volume(VolumeRow),
    Tag(TagRow),
}

/// The columns of a [`PartRow`] of `items`, aliased `i`.
pub(crate) const ITEM_PART: &str = "0 AS part, i.id, i.checkpoint_id, i.project_id, i.job_id, \
     i.server_id, i.name, i.status, i.method, i.progress, i.details, i.fault, i.snapshot_id, \
     i.tree_id, i.created_at, i.updated_at, i.protected_at, i.finished_at, i.sequence";
/// The same of `volume_backups`, aliased `v`; its position is where others are created.
pub(crate) const VOLUME_PART: &str = "1, v.id, v.item_id, '', '', '', '', '', '', 0, v.details, \
     v.stored, NULL, NULL, v.position, 0, NULL, NULL, NULL";
/// The same of `item_tags`, aliased `t`.
pub(crate) const TAG_PART: &str = "2, '', t.item_id, '', '', '', t.tag_key, '', '', 0, \
     t.tag_value, NULL, NULL, NULL, t.position, 0, NULL, NULL, NULL";

impl PartRow {
    pub(crate) fn part(self) -> Part {
        let row = self.row;
        match self.part {
            0 => Part::Item(Box::new(row)),
            1 => Part::Volume(VolumeRow {
                id: row.id,
                item_id: row.checkpoint_id,
                details: row.details,
                stored: row.fault,
            }),
            _ => Part::Tag(TagRow {
                item_id: row.checkpoint_id,
                tag_key: row.name,
                tag_value: row.details,
            }),
        }
    }
}

/// A row of `volume_backups`.
pub(crate) struct VolumeRow {
    id: String,
    pub(crate) item_id: String,
    details: String,
    stored: Option<String>,
}

/// A row of `item_tags`.
pub(crate) struct TagRow {
    pub(crate) item_id: String,
    tag_key: String,
    tag_value: String,
}

/// What no query looks into of an item.
#[derive(Serialize, Deserialize)]
struct ItemDetails {
    description: String,
    trigger: Trigger,
    server_name: String,
    server_kind: String,
    zone: String,
    ram_mb: u64,
    vcpus: u64,
    disk_gb: u64,
    image_type: String,
    private_ip: String,
    public_ip: String,
}

/// What no query looks into of a volume backup.
#[derive(Serialize, Deserialize)]
struct VolumeDetails {
    name: String,
    source_volume_id: VolumeId,
    source_volume_name: String,
    source_size_bytes: u64,
    role: String,
    encryption: String,
}

impl ItemRow {
    /// The item, still without its tags and volume backups.
    pub(crate) fn decode(self) -> Result<Item> {
        let damaged = |why: &str| StoreError::corrupt("item", &self.id, why);
        let details: ItemDetails = from_json("item", &self.id, &self.details)?;
        let status = self.status.parse().map_err(|_| damaged("status"))?;
        let method = method_of(&self.method).ok_or_else(|| damaged("method"))?;
        let progress = u8::try_from(self.progress).map_err(|_| damaged("progress"))?;
        let kind = ServerKind::from_word(&details.server_kind).ok_or_else(|| damaged("kind"))?;
        let fault = self.fault.as_deref().map(|json| from_json("item", &self.id, json));
        Ok(Item {
            fault: fault.transpose()?,
            snapshot: snapshot_of(self.snapshot_id, self.tree_id),
            id: ItemId::asked(&self.id),
            checkpoint_id: CheckpointId::asked(&self.checkpoint_id),
            project_id: ProjectId::new(self.project_id),
            job_id: JobId::asked(&self.job_id),
            name: self.name,
            trigger: details.trigger,
            description: details.description.clone(),
            source: details.server(ServerId::asked(&self.server_id), kind),
            status,
            method,
            progress,
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
            protected_at: self.protected_at.map(Timestamp::from_micros),
            finished_at: self.finished_at.map(Timestamp::from_micros),
            sequence: self.sequence.and_then(|sequence| u64::try_from(sequence).ok()),
            tags: Vec::new(),
            volumes: Vec::new(),
        })
    }
}

impl ItemDetails {
    fn server(self, id: ServerId, kind: ServerKind) -> SourceServer {
        SourceServer {
            id,
            name: self.server_name,
            kind,
            zone: self.zone,
            hardware: Hardware {
                ram_mb: self.ram_mb,
                vcpus: self.vcpus,
                disk_gb: self.disk_gb,
                image_type: self.image_type,
                private_ip: self.private_ip,
                public_ip: self.public_ip,
            },
        }
    }
}

/// The column `details` of an item.
pub(crate) fn item_details(item: &Item) -> Result<String> {
    let (source, hardware) = (&item.source, &item.source.hardware);
    to_json(&ItemDetails {
        description: item.description.clone(),
        trigger: item.trigger,
        server_name: source.name.clone(),
        server_kind: source.kind.as_str().to_owned(),
        zone: source.zone.clone(),
        ram_mb: hardware.ram_mb,
        vcpus: hardware.vcpus,
        disk_gb: hardware.disk_gb,
        image_type: hardware.image_type.clone(),
        private_ip: hardware.private_ip.clone(),
        public_ip: hardware.public_ip.clone(),
    })
}

impl VolumeRow {
    pub(crate) fn decode(self) -> Result<VolumeBackup> {
        let table = "volume_backup";
        let damaged = |why: &str| StoreError::corrupt(table, &self.id, why);
        let details: VolumeDetails = from_json(table, &self.id, &self.details)?;
        let stored: Option<Result<StoredVolume>> =
            self.stored.as_deref().map(|json| from_json(table, &self.id, json));
        Ok(VolumeBackup {
            id: VolumeBackupId::asked(&self.id),
            name: details.name,
            source_volume_id: details.source_volume_id,
            source_volume_name: details.source_volume_name,
            source_size_bytes: details.source_size_bytes,
            role: role_of(&details.role).ok_or_else(|| damaged("role"))?,
            encryption: encryption_of(&details.encryption).ok_or_else(|| damaged("encryption"))?,
            stored: stored.transpose()?,
        })
    }
}

/// The column `details` of a volume backup.
pub(crate) fn volume_details(volume: &VolumeBackup) -> Result<String> {
    to_json(&VolumeDetails {
        name: volume.name.clone(),
        source_volume_id: volume.source_volume_id.clone(),
        source_volume_name: volume.source_volume_name.clone(),
        source_size_bytes: volume.source_size_bytes,
        role: volume.role.as_str().to_owned(),
        encryption: volume.encryption.as_str().to_owned(),
    })
}

impl TagRow {
    pub(crate) fn decode(&self) -> Result<Tag> {
        Tag::new(&self.tag_key, &self.tag_value)
            .map_err(|bad| StoreError::corrupt("tag of item", &self.item_id, bad))
    }
}

/// A status as a row holds it.
pub(crate) fn status_of(table: &str, id: &str, word: &str) -> Result<ItemStatus> {
    word.parse().map_err(|_| StoreError::corrupt(table, id, "status"))
}

pub(crate) fn snapshot_of(snapshot: Option<String>, tree: Option<String>) -> Option<SnapshotRef> {
    Some(SnapshotRef { snapshot: snapshot?, tree: tree? })
}

pub(crate) fn method_word(method: Method) -> &'static str {
    match method {
        Method::Full => "full",
        Method::Incremental => "incremental",
    }
}

fn method_of(word: &str) -> Option<Method> {
    [Method::Full, Method::Incremental].into_iter().find(|method| method_word(*method) == word)
}

fn role_of(word: &str) -> Option<VolumeRole> {
    [VolumeRole::System, VolumeRole::Data].into_iter().find(|role| role.as_str() == word)
}

fn encryption_of(word: &str) -> Option<Encryption> {
    [Encryption::Plain, Encryption::Encrypted].into_iter().find(|e| e.as_str() == word)
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| StoreError::Misuse(error.to_string()))
}

pub(crate) fn from_json<T: DeserializeOwned>(table: &str, id: &str, json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|error| StoreError::corrupt(table, id, error))
}

/// A count as a row holds it; beyond what a row can hold nothing can match.
pub(crate) fn to_row(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
