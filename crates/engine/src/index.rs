//! Where the blobs are. Index objects list packs and their blobs; in memory they are
//! one map per kind of blob with entries of some 50 bytes.
//!
//! Invariant: the map names only blobs listed in durable index objects. Nothing else
//! may be deduplicated against, or a snapshot could name a blob that a crash takes away.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{ObjectKind, ObjectName},
    blob::{BlobKind, Shape},
    error::EngineError,
    id::{BlobId, IndexId, PackId},
    pack::{PackEntry, PackedBlob},
    vault::Vault,
};

/// restic's own bound; keeps an index object below some 12 MB of JSON.
pub(crate) const INDEX_BLOBS_MAX: usize = 50_000;

/// Where a blob lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
    pub(crate) shape: Shape,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Position in `State::packs`.
    pack: u32,
    offset: u32,
    shape: Shape,
}

#[derive(Default)]
struct State {
    objects: HashSet<IndexId>,
    packs: Vec<PackId>,
    numbers: HashMap<PackId, u32>,
    data: HashMap<BlobId, Entry>,
    trees: HashMap<BlobId, Entry>,
}

impl State {
    fn blobs(&self, kind: BlobKind) -> &HashMap<BlobId, Entry> {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        }
    }

    /// Takes in an index object. Of a blob stored twice the first place is kept.
    fn add(&mut self, object: IndexId, packs: &[PackEntry]) -> Result<(), EngineError> {
        if !self.objects.insert(object) {
            return Ok(());
        }
        for pack in packs {
            let number = self.number(pack.id)?;
            for blob in &pack.blobs {
                let entry = Entry { pack: number, offset: blob.offset, shape: blob.shape };
                let blobs = match blob.kind {
                    BlobKind::Data => &mut self.data,
                    BlobKind::Tree => &mut self.trees,
                };
                blobs.entry(blob.id).or_insert(entry);
            }
        }
        Ok(())
    }

    fn number(&mut self, pack: PackId) -> Result<u32, EngineError> {
        if let Some(number) = self.numbers.get(&pack) {
            return Ok(*number);
        }
        let number = u32::try_from(self.packs.len())
            .map_err(|_| EngineError::bug("more than 2^32 packs in one repository"))?;
        self.packs.push(pack);
        self.numbers.insert(pack, number);
        Ok(number)
    }
}

/// The blobs of all durable index objects seen so far.
#[derive(Default)]
pub(crate) struct Index {
    state: RwLock<State>,
    /// Held while refreshing, so that two refreshes do not read everything twice.
    refreshing: Mutex<()>,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.read();
        f.debug_struct("Index")
            .field("objects", &state.objects.len())
            .field("packs", &state.packs.len())
            .field("data", &state.data.len())
            .field("trees", &state.trees.len())
            .finish()
    }
}

impl Index {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, kind: BlobKind, id: BlobId) -> Option<Location> {
        let state = self.read();
        let entry = state.blobs(kind).get(&id)?;
        let pack = *state.packs.get(entry.pack as usize)?;
        Some(Location { pack, offset: entry.offset, shape: entry.shape })
    }

    pub(crate) fn contains(&self, kind: BlobKind, id: BlobId) -> bool {
        self.read().blobs(kind).contains_key(&id)
    }

    /// Takes in an index object this process has just made durable.
    pub(crate) fn add_durable(
        &self,
        object: IndexId,
        packs: &[PackEntry],
    ) -> Result<(), EngineError> {
        self.write().add(object, packs)
    }

    /// Reads index objects not seen yet. When one has vanished, which only a prune
    /// does, everything is read anew, since no entry knows which objects list it.
    pub(crate) fn refresh(&self, vault: &Vault) -> Result<(), EngineError> {
        let _one_at_a_time: MutexGuard<'_, ()> =
            self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.read().objects.clone();
        let listed = list_objects(vault)?;
        let present: HashSet<IndexId> = listed.iter().copied().collect();
        if known.iter().all(|id| present.contains(id)) {
            for id in listed.into_iter().filter(|id| !known.contains(id)) {
                let packs = load_object(vault, id)?;
                self.write().add(id, &packs)?;
            }
            return Ok(());
        }
        let mut fresh = State::default();
        for id in listed {
            fresh.add(id, &load_object(vault, id)?)?;
        }
        *self.write() = fresh;
        Ok(())
    }
}

/// All index objects, sorted.
pub(crate) fn list_objects(vault: &Vault) -> Result<Vec<IndexId>, EngineError> {
    let listed = vault.list(ObjectKind::Index)?;
    let mut ids: Vec<_> = listed
        .iter()
        .filter_map(|object| match object.name {
            ObjectName::Index(id) => Some(id),
            ObjectName::Config
            | ObjectName::Access
            | ObjectName::Key(_)
            | ObjectName::Pack(_)
            | ObjectName::Snapshot(_)
            | ObjectName::Lock(_) => None,
        })
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Makes packs findable: writes an index object that lists them.
pub(crate) fn store_object(vault: &Vault, packs: &[PackEntry]) -> Result<IndexId, EngineError> {
    let file = IndexFile { packs: packs.iter().map(PackFile::from).collect() };
    let mut index = IndexId([0; 32]);
    vault.put_document(
        |hash| {
            index = IndexId(hash);
            ObjectName::Index(index)
        },
        &file,
    )?;
    Ok(index)
}

/// The packs an index object lists, every entry checked for sense.
pub(crate) fn load_object(vault: &Vault, id: IndexId) -> Result<Vec<PackEntry>, EngineError> {
    let name = ObjectName::Index(id);
    let file: IndexFile = vault.get_document(&name)?;
    let pack = |pack: PackFile| {
        let blobs = pack.blobs.into_iter().map(|blob| blob.checked(&name));
        Ok(PackEntry { id: pack.id, blobs: blobs.collect::<Result<_, _>>()? })
    };
    file.packs.into_iter().map(pack).collect()
}

#[derive(Serialize, Deserialize)]
struct IndexFile {
    packs: Vec<PackFile>,
}

#[derive(Serialize, Deserialize)]
struct PackFile {
    id: PackId,
    blobs: Vec<BlobFile>,
}

#[derive(Serialize, Deserialize)]
struct BlobFile {
    id: BlobId,
    #[serde(rename = "type")]
    kind: BlobKind,
    offset: u32,
    length: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    uncompressed_length: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl From<&PackEntry> for PackFile {
    fn from(pack: &PackEntry) -> Self {
        Self { id: pack.id, blobs: pack.blobs.iter().map(BlobFile::from).collect() }
    }
}

impl From<&PackedBlob> for BlobFile {
    fn from(blob: &PackedBlob) -> Self {
        Self {
            id: blob.id,
            kind: blob.kind,
            offset: blob.offset,
            length: blob.shape.length,
            uncompressed_length: blob.shape.uncompressed_length,
        }
    }
}

impl BlobFile {
    fn checked(self, of: &ObjectName) -> Result<PackedBlob, EngineError> {
        let shape = Shape { length: self.length, uncompressed_length: self.uncompressed_length };
        if !shape.is_sane(self.kind) || self.offset.checked_add(self.length).is_none() {
            return Err(EngineError::damaged(of, format!("senseless entry for blob {}", self.id)));
        }
        Ok(PackedBlob { id: self.id, kind: self.kind, offset: self.offset, shape })
    }
}
