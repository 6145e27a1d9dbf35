//! `server.json`: the catalogue's fields of an item, stored beside its disks, so that the
//! catalogue can be rebuilt from the repository alone. `docs/repository-format.md`
//! describes it.

use kedge_core::checkpoint::{
    Checkpoint, Item, Method, SnapshotRef, SourceServer, StoredVolume, Trigger, VolumeBackup,
};
use kedge_core::ids::{CheckpointId, ItemId, JobId, ProjectId, ServerId, VolumeBackupId, VolumeId};
use kedge_core::resource::{Encryption, Hardware, ServerKind, VolumeRole};
use kedge_core::status::ItemStatus;
use kedge_core::tag::Tag;
use kedge_core::time::Timestamp;
use serde::{Deserialize, Serialize};

/// The file's name in the root of a repository snapshot.
pub(crate) const FILE_NAME: &str = "server.json";
const FORMAT: u32 = 1;

/// Why a `server.json` cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the expected shape.
    #[error("server.json: {0}")]
    Malformed(String),
    /// Written by a newer version.
    #[error("server.json has format {0}, this version reads {FORMAT}")]
    TooNew(u32),
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    checkpoint: CheckpointId,
    checkpoint_created_at: Timestamp,
    plan_id: String,
    plan_name: String,
    item: ItemId,
    project: ProjectId,
    name: String,
    description: String,
    trigger: Trigger,
    method: Method,
    created_at: Timestamp,
    protected_at: Timestamp,
    stored_at: Timestamp,
    tags: Vec<TagEntry>,
    job: JobId,
    server: ServerEntry,
    volumes: Vec<VolumeEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct TagEntry {
    key: String,
    value: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct ServerEntry {
    id: ServerId,
    name: String,
    kind: String,
    zone: String,
    ram_mb: u64,
    vcpus: u64,
    disk_gb: u64,
    image_type: String,
    private_ip: String,
    public_ip: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct VolumeEntry {
    id: VolumeBackupId,
    name: String,
    source_id: VolumeId,
    source_name: String,
    source_size_bytes: u64,
    system: bool,
    encrypted: bool,
    stored: StoredVolume,
}

/// What a backup knows of itself when its bytes are stored.
pub(crate) struct Stored<'a> {
    pub(crate) protected_at: Timestamp,
    pub(crate) stored_at: Timestamp,
    pub(crate) method: Method,
    /// One per volume, in the item's order.
    pub(crate) volumes: &'a [StoredVolume],
}

/// The `server.json` of an item.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    item: &Item,
    stored: &Stored<'_>,
) -> Result<Vec<u8>, ManifestError> {
    let manifest = Manifest {
        format: FORMAT,
        checkpoint: checkpoint.id.clone(),
        checkpoint_created_at: checkpoint.created_at,
        plan_id: checkpoint.plan_id.clone(),
        plan_name: checkpoint.plan_name.clone(),
        item: item.id.clone(),
        project: item.project_id.clone(),
        name: item.name.clone(),
        description: item.description.clone(),
        trigger: item.trigger,
        method: stored.method,
        created_at: item.created_at,
        protected_at: stored.protected_at,
        stored_at: stored.stored_at,
        tags: item.tags.iter().map(tag_entry).collect(),
        job: item.job_id.clone(),
        server: server_entry(&item.source),
        volumes: item.volumes.iter().zip(stored.volumes).map(volume_entry).collect(),
    };
    serde_json::to_vec_pretty(&manifest)
        .map_err(|error| ManifestError::Malformed(error.to_string()))
}

/// The checkpoint, with its one item available, that a `server.json` and the snapshot it
/// lies in tell of.
pub fn read(bytes: &[u8], snapshot: SnapshotRef) -> Result<Checkpoint, ManifestError> {
    let malformed = |error: String| ManifestError::Malformed(error);
    let version: Version =
        serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    if version.format > FORMAT {
        return Err(ManifestError::TooNew(version.format));
    }
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let item = item(&manifest, snapshot).map_err(malformed)?;
    Ok(Checkpoint {
        id: manifest.checkpoint,
        project_id: manifest.project,
        created_at: manifest.checkpoint_created_at,
        plan_id: manifest.plan_id,
        plan_name: manifest.plan_name,
        items: vec![item],
    })
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

fn tag_entry(tag: &Tag) -> TagEntry {
    TagEntry { key: tag.key().to_owned(), value: tag.value().to_owned() }
}

fn server_entry(server: &SourceServer) -> ServerEntry {
    let hardware = server.hardware.clone();
    ServerEntry {
        id: server.id.clone(),
        name: server.name.clone(),
        kind: server.kind.as_str().to_owned(),
        zone: server.zone.clone(),
        ram_mb: hardware.ram_mb,
        vcpus: hardware.vcpus,
        disk_gb: hardware.disk_gb,
        image_type: hardware.image_type,
        private_ip: hardware.private_ip,
        public_ip: hardware.public_ip,
    }
}

fn volume_entry((backup, stored): (&VolumeBackup, &StoredVolume)) -> VolumeEntry {
    VolumeEntry {
        id: backup.id.clone(),
        name: backup.name.clone(),
        source_id: backup.source_volume_id.clone(),
        source_name: backup.source_volume_name.clone(),
        source_size_bytes: backup.source_size_bytes,
        system: backup.role == VolumeRole::System,
        encrypted: backup.encryption == Encryption::Encrypted,
        stored: stored.clone(),
    }
}

fn item(manifest: &Manifest, snapshot: SnapshotRef) -> Result<Item, String> {
    let server = &manifest.server;
    let kind = ServerKind::from_word(&server.kind)
        .ok_or_else(|| format!("server.kind: {:?} is no kind of server", server.kind))?;
    let tags = manifest
        .tags
        .iter()
        .map(|tag| Tag::new(&tag.key, &tag.value).map_err(|bad| format!("tags: {bad}")))
        .collect::<Result<_, _>>()?;
    Ok(Item {
        id: manifest.item.clone(),
        checkpoint_id: manifest.checkpoint.clone(),
        project_id: manifest.project.clone(),
        name: manifest.name.clone(),
        description: manifest.description.clone(),
        status: ItemStatus::Available,
        source: SourceServer {
            id: server.id.clone(),
            name: server.name.clone(),
            kind,
            zone: server.zone.clone(),
            hardware: Hardware {
                ram_mb: server.ram_mb,
                vcpus: server.vcpus,
                disk_gb: server.disk_gb,
                image_type: server.image_type.clone(),
                private_ip: server.private_ip.clone(),
                public_ip: server.public_ip.clone(),
            },
        },
        trigger: manifest.trigger,
        method: manifest.method,
        created_at: manifest.created_at,
        updated_at: manifest.stored_at,
        protected_at: Some(manifest.protected_at),
        finished_at: Some(manifest.stored_at),
        sequence: None,
        tags,
        volumes: manifest.volumes.iter().map(volume_backup).collect(),
        fault: None,
        progress: 100,
        job_id: manifest.job.clone(),
        snapshot: Some(snapshot),
    })
}

fn volume_backup(entry: &VolumeEntry) -> VolumeBackup {
    VolumeBackup {
        id: entry.id.clone(),
        name: entry.name.clone(),
        source_volume_id: entry.source_id.clone(),
        source_volume_name: entry.source_name.clone(),
        source_size_bytes: entry.source_size_bytes,
        role: if entry.system { VolumeRole::System } else { VolumeRole::Data },
        encryption: if entry.encrypted { Encryption::Encrypted } else { Encryption::Plain },
        stored: Some(entry.stored.clone()),
    }
}
