//! Snapshots: the names under which trees are kept.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Backend, BackendError, ObjectKind, ObjectName},
    error::EngineError,
    id::{SnapshotId, TreeId, sha256},
    time::Timestamp,
    vault::{DOCUMENT_BYTES_MAX, Vault},
};

/// A stored snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub id: SnapshotId,
    /// The moment it shows.
    pub time: Timestamp,
    /// Its root tree.
    pub tree: TreeId,
    /// The snapshot it was made from, if the writer named one.
    pub parent: Option<SnapshotId>,
    /// What it shows, for people.
    pub paths: Vec<String>,
    /// Whose state it shows, for people.
    pub hostname: String,
    /// Who made it, for people.
    pub username: String,
    /// Labels.
    pub tags: Vec<String>,
    /// The program that wrote it.
    pub program_version: String,
}

/// What a new snapshot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The moment it shows.
    pub time: Timestamp,
    /// Its root tree, from [`crate::Session::finish_tree`].
    pub tree: TreeId,
    /// The tag that names what is backed up. A snapshot with this tag and the same tree
    /// is the same snapshot: it is found rather than written again.
    pub identity_tag: String,
    /// More labels.
    pub tags: Vec<String>,
    /// What it shows, for people.
    pub paths: Vec<String>,
    /// Whose state it shows, for people.
    pub hostname: String,
    /// Who makes it, for people.
    pub username: String,
    /// The snapshot it was made from.
    pub parent: Option<SnapshotId>,
    /// The program that writes it, with its version.
    pub program_version: String,
}

/// A snapshot object as restic writes it.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotFile {
    time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<SnapshotId>,
    tree: TreeId,
    #[serde(default)]
    paths: Option<Vec<String>>,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    program_version: String,
}

impl From<&SnapshotMeta> for SnapshotFile {
    fn from(meta: &SnapshotMeta) -> Self {
        let identity = std::iter::once(&meta.identity_tag);
        Self {
            time: meta.time.to_string(),
            parent: meta.parent,
            tree: meta.tree,
            paths: Some(meta.paths.clone()),
            hostname: meta.hostname.clone(),
            username: meta.username.clone(),
            tags: Some(identity.chain(&meta.tags).cloned().collect()),
            program_version: meta.program_version.clone(),
        }
    }
}

impl SnapshotFile {
    pub(crate) fn into_snapshot(self, id: SnapshotId) -> Result<Snapshot, EngineError> {
        let time = Timestamp::parse(&self.time).map_err(|error| {
            EngineError::damaged(ObjectName::Snapshot(id), format!("its time is {error}"))
        })?;
        Ok(Snapshot {
            id,
            time,
            tree: self.tree,
            parent: self.parent,
            paths: self.paths.unwrap_or_default(),
            hostname: self.hostname,
            username: self.username,
            tags: self.tags.unwrap_or_default(),
            program_version: self.program_version,
        })
    }
}

/// Snapshots read so far. They never change, so only new ones are read.
#[derive(Debug, Default)]
pub(crate) struct SnapshotCache(Mutex<HashMap<SnapshotId, Snapshot>>);

/// All snapshots: those that can be read, oldest first, and what is wrong with the others.
pub(crate) struct Loaded {
    pub(crate) readable: Vec<Snapshot>,
    pub(crate) damaged: Vec<EngineError>,
}

impl SnapshotCache {
    fn known(&self) -> MutexGuard<'_, HashMap<SnapshotId, Snapshot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn load(&self, vault: &Vault) -> Result<Loaded, EngineError> {
        let mut loaded = Loaded { readable: Vec::new(), damaged: Vec::new() };
        for listed in vault.list(ObjectKind::Snapshot)? {
            let ObjectName::Snapshot(id) = listed.name else { continue };
            match self.get(vault, id) {
                Ok(snapshot) => loaded.readable.push(snapshot),
                Err(EngineError::SnapshotNotFound(_)) => {}
                Err(error @ EngineError::Damaged { .. }) => loaded.damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        loaded.readable.sort_by_key(|snapshot| (snapshot.time, snapshot.id));
        let present: HashSet<_> = loaded.readable.iter().map(|snapshot| snapshot.id).collect();
        self.known().retain(|id, _| present.contains(id));
        Ok(loaded)
    }

    /// The snapshot if it was read before, else read now.
    fn get(&self, vault: &Vault, id: SnapshotId) -> Result<Snapshot, EngineError> {
        if let Some(snapshot) = self.known().get(&id) {
            return Ok(snapshot.clone());
        }
        let snapshot = read(vault, id)?;
        self.known().insert(id, snapshot.clone());
        Ok(snapshot)
    }
}

/// Whether a store holds a snapshot as it was written: its object has the hash it is named
/// by. That takes no key.
pub fn holds_snapshot(backend: &dyn Backend, id: SnapshotId) -> Result<bool, EngineError> {
    let name = ObjectName::Snapshot(id);
    let failed = |error| EngineError::Backend { object: name, error };
    match backend.get(&name, DOCUMENT_BYTES_MAX) {
        Ok(bytes) => Ok(name.is_hash(&sha256(&bytes))),
        Err(BackendError::TooLarge | BackendError::Truncated) => Ok(false),
        // Only the size of what is not there proves that it is not.
        Err(BackendError::NotFound) => match backend.find_size(&name).map_err(failed)? {
            Some(_) => Err(failed(BackendError::NotFound)),
            None => Ok(false),
        },
        Err(error) => Err(failed(error)),
    }
}

/// Reads one snapshot object.
pub(crate) fn read(vault: &Vault, id: SnapshotId) -> Result<Snapshot, EngineError> {
    let name = ObjectName::Snapshot(id);
    match vault.get_document::<SnapshotFile>(&name) {
        Ok(file) => file.into_snapshot(id),
        Err(error) if vault.exists(&name)? => Err(error),
        Err(_) => Err(EngineError::SnapshotNotFound(id)),
    }
}
