//! Where the blobs are. Index objects list packs and their blobs; in memory they are
//! one map per kind of blob with entries of some 50 bytes.
//!
//! Invariant: the map names only blobs listed in durable index objects. Nothing else
//! may be deduplicated against, or a snapshot could name a blob that a crash takes away.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{ObjectKind, ObjectName},
    blob::{BlobKind, Shape},
    error::EngineError,
    id::{BlobId, IndexId, PackId},
    marks::{Marks, Standing},
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
    marks: RwLock<Arc<Marks>>,
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

    /// Replaces what is known against packs and blobs.
    pub(crate) fn set_marks(&self, marks: Marks) {
        *self.marks.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(marks);
    }

    /// What is known against packs and blobs.
    pub(crate) fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.marks.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The best place of the blob: a sound one when there is any, else a condemned, else
    /// a damaged one.
    pub(crate) fn find(&self, kind: BlobKind, id: BlobId) -> Result<Option<Location>, EngineError> {
        Ok(self.find_all(kind, id)?.into_iter().next())
    }

    /// All places of the blob, the best first.
    pub(crate) fn find_all(
        &self,
        kind: BlobKind,
        id: BlobId,
    ) -> Result<Vec<Location>, EngineError> {
        let state = self.read();
        let Some(entry) = state.blobs(kind).get(&id) else { return Ok(Vec::new()) };
        let pack = state.packs.get(entry.pack as usize).copied();
        let pack = pack.ok_or_else(|| EngineError::bug("an entry without a pack"))?;
        Ok(vec![Location { pack, offset: entry.offset, shape: entry.shape }])
    }

    /// Whether the blob has a sound place, and so may be deduplicated against.
    pub(crate) fn contains(&self, kind: BlobKind, id: BlobId) -> Result<bool, EngineError> {
        let Some(place) = self.find(kind, id)? else { return Ok(false) };
        Ok(self.marks().standing(place.pack, id) == Standing::Sound)
    }

    /// Index objects that cannot be used, each with what is wrong. What they list is
    /// not found.
    pub(crate) fn damaged_objects(&self) -> Vec<(IndexId, String)> {
        Vec::new()
    }

    /// Takes in an index object this process has just made durable.
    pub(crate) fn add_durable(
        &self,
        object: IndexId,
        packs: &[PackEntry],
    ) -> Result<(), EngineError> {
        self.write().add(object, packs)
    }

    /// Reads index objects not seen yet and forgets those that have vanished, which
    /// only a prune makes.
    pub(crate) fn refresh(&self, vault: &Vault) -> Result<(), EngineError> {
        let _one_at_a_time: MutexGuard<'_, ()> =
            self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 1..REFRESH_TRIES {
            match self.refresh_once(vault) {
                // The list is out of date when a prune runs at the same time.
                Err(Vanished::Object) => {}
                Err(Vanished::Not(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
        self.refresh_once(vault).map_err(|error| match error {
            Vanished::Object => EngineError::damaged("index", "objects keep vanishing"),
            Vanished::Not(error) => error,
        })
    }

    fn refresh_once(&self, vault: &Vault) -> Result<(), Vanished> {
        let known = self.read().objects.clone();
        let listed = list_objects(vault)?;
        let present: HashSet<IndexId> = listed.iter().copied().collect();
        if !known.is_subset(&present) {
            return self.rebuild(vault, &known, listed);
        }
        for id in listed.into_iter().filter(|id| !known.contains(id)) {
            let packs = load_listed(vault, id)?;
            self.write().add(id, &packs)?;
        }
        Ok(())
    }

    /// Reads everything anew, since no entry knows which objects list it.
    fn rebuild(
        &self,
        vault: &Vault,
        known: &HashSet<IndexId>,
        mut missing: Vec<IndexId>,
    ) -> Result<(), Vanished> {
        let mut fresh = State::default();
        loop {
            for id in missing {
                fresh.add(id, &load_listed(vault, id)?)?;
            }
            let mut state = self.write();
            // Sessions of this process may have made more durable meanwhile.
            let added = state.objects.difference(known).filter(|id| !fresh.objects.contains(id));
            missing = added.copied().collect();
            if missing.is_empty() {
                *state = fresh;
                return Ok(());
            }
        }
    }
}

/// A prune replaces the index within one of them.
const REFRESH_TRIES: usize = 4;

/// Why an index object could not be read.
enum Vanished {
    /// It was listed and is gone.
    Object,
    Not(EngineError),
}

impl From<EngineError> for Vanished {
    fn from(error: EngineError) -> Self {
        Self::Not(error)
    }
}

fn load_listed(vault: &Vault, id: IndexId) -> Result<Vec<PackEntry>, Vanished> {
    match load_object(vault, id) {
        Ok(packs) => Ok(packs),
        Err(_) if !vault.exists(&ObjectName::Index(id))? => Err(Vanished::Object),
        Err(error) => Err(Vanished::Not(error)),
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
            | ObjectName::Lock(_)
            | ObjectName::Mark(_) => None,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{backend::MemoryBackend, crypto::Key};

    fn vault() -> Vault {
        Vault { backend: Arc::new(MemoryBackend::new()), key: Key::random().unwrap() }
    }

    fn pack(number: u8) -> PackEntry {
        let shape = Shape { length: 100, uncompressed_length: 0 };
        let id = BlobId([number; 32]);
        let blobs = vec![PackedBlob { id, kind: BlobKind::Data, offset: 0, shape }];
        PackEntry { id: PackId([number; 32]), blobs }
    }

    fn knows(index: &Index, number: u8) -> bool {
        index.contains(BlobKind::Data, BlobId([number; 32])).unwrap()
    }

    #[test]
    fn a_refresh_finds_new_objects_and_forgets_vanished_ones() {
        let (vault, index) = (vault(), Index::default());
        let one = store_object(&vault, &[pack(1)]).unwrap();
        index.refresh(&vault).unwrap();
        store_object(&vault, &[pack(2)]).unwrap();
        assert!(knows(&index, 1) && !knows(&index, 2));
        index.refresh(&vault).unwrap();
        assert!(knows(&index, 1) && knows(&index, 2));
        vault.delete(&ObjectName::Index(one)).unwrap();
        index.refresh(&vault).unwrap();
        assert!(!knows(&index, 1) && knows(&index, 2));
    }

    #[test]
    fn what_lies_in_a_marked_place_is_found_and_not_deduplicated_against() {
        let (vault, index) = (vault(), Index::default());
        store_object(&vault, &[pack(1)]).unwrap();
        index.refresh(&vault).unwrap();
        for marks in [
            Marks { condemned: HashSet::from([PackId([1; 32])]), ..Marks::default() },
            Marks { damaged_packs: HashSet::from([PackId([1; 32])]), ..Marks::default() },
        ] {
            index.set_marks(marks.clone());
            assert_eq!(*index.marks(), marks);
            assert!(!knows(&index, 1), "{marks:?}");
            assert!(index.find(BlobKind::Data, BlobId([1; 32])).unwrap().is_some(), "{marks:?}");
        }
        index.set_marks(Marks::default());
        assert!(knows(&index, 1));
    }

    #[test]
    fn what_was_made_durable_while_everything_was_read_anew_is_kept() {
        let (vault, index) = (vault(), Index::default());
        let old = store_object(&vault, &[pack(1)]).unwrap();
        index.refresh(&vault).unwrap();
        let known = index.read().objects.clone();
        vault.delete(&ObjectName::Index(old)).unwrap();
        let listed = list_objects(&vault).unwrap();
        let object = store_object(&vault, &[pack(2)]).unwrap();
        index.add_durable(object, &[pack(2)]).unwrap();
        assert!(index.rebuild(&vault, &known, listed).is_ok());
        assert!(!knows(&index, 1) && knows(&index, 2));
    }

    #[test]
    fn senseless_entries_are_damage() {
        let id = "ab".repeat(32);
        for (offset, length, uncompressed) in [
            (0, 32_u64, 0_u64),
            (0, 100, u64::from(u32::MAX)),
            (u64::from(u32::MAX), 100, 0),
            (0, u64::from(u32::MAX) + 1, 0),
            (0, u64::from(u32::MAX), 0),
        ] {
            let vault = vault();
            let file = serde_json::json!({"packs": [{"id": id, "blobs": [{
                "id": id, "type": "data", "offset": offset, "length": length,
                "uncompressed_length": uncompressed,
            }]}]});
            vault.put_document(|hash| ObjectName::Index(IndexId(hash)), &file).unwrap();
            let refreshed = Index::default().refresh(&vault);
            assert!(matches!(refreshed, Err(EngineError::Damaged { .. })), "{file}");
        }
        let vault = vault();
        vault.backend.put(&ObjectName::Index(IndexId([0; 32])), b"x").unwrap();
        let refreshed = Index::default().refresh(&vault);
        assert!(matches!(refreshed, Err(EngineError::Damaged { .. })));
    }
}
