use std::{collections::HashMap, fs, path::PathBuf, thread};

use proptest::prelude::*;

use super::*;
use crate::{
    backend::{Backend, BackendError, Listed, MemoryBackend, ObjectKind},
    id::sha256,
    layer::{FaultBackend, Operation},
    pack::PackedBlob,
};

/// So small that a handful of blobs goes through every stage.
const SMALL: Limits = Limits { tail_records: 8, tail_objects: 4, batch_records: 16, segments: 3 };
/// Everything is in a segment at once.
const NO_TAIL: Limits = Limits { tail_records: 0, ..SMALL };

type TestBackend = FaultBackend<MemoryBackend>;

fn vault() -> (Arc<TestBackend>, Vault) {
    let backend = Arc::new(FaultBackend::new(MemoryBackend::new()));
    (Arc::clone(&backend), Vault { backend, key: Key::random().unwrap() })
}

fn gets(backend: &TestBackend) -> usize {
    backend.recorded().iter().filter(|(operation, _)| *operation == Operation::Get).count()
}

fn blob(number: u8) -> BlobId {
    BlobId([number; 32])
}

fn pack_of(id: PackId, blobs: impl IntoIterator<Item = BlobId>) -> PackEntry {
    let shape = Shape { length: 100, uncompressed_length: 0 };
    let placed = (0..).zip(blobs).map(|(at, id)| PackedBlob {
        id,
        kind: BlobKind::Data,
        offset: at * 100,
        shape,
    });
    PackEntry { id, blobs: placed.collect() }
}

fn pack(number: u8) -> PackEntry {
    pack_of(PackId([number; 32]), [blob(number)])
}

fn knows(index: &Index, number: u8) -> bool {
    index.contains(BlobKind::Data, blob(number)).unwrap()
}

fn known(index: &Index) -> Vec<u8> {
    (0..=u8::MAX).filter(|number| knows(index, *number)).collect()
}

fn open(dir: &Path, vault: &Vault, limits: Limits) -> Index {
    let index = Index::in_dir_with(dir, RepositoryId([7; 32]), &vault.key, limits);
    index.refresh(vault).unwrap();
    index
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir.join(RepositoryId([7; 32]).to_string()))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap() != "lock")
        .collect();
    files.sort();
    files
}

#[test]
fn a_refresh_finds_new_objects_and_forgets_vanished_ones() {
    let ((_, vault), index) = (vault(), Index::default());
    let one = store_object(&vault, &[pack(1)]).unwrap();
    index.refresh(&vault).unwrap();
    store_object(&vault, &[pack(2)]).unwrap();
    assert_eq!(known(&index), [1]);
    index.refresh(&vault).unwrap();
    assert_eq!(known(&index), [1, 2]);
    vault.delete(&ObjectName::Index(one)).unwrap();
    index.refresh(&vault).unwrap();
    assert_eq!(known(&index), [2]);
}

#[test]
fn a_forgotten_object_that_comes_back_is_read_again() {
    let ((_, vault), index) = (vault(), Index::new(Home::Memory, SMALL));
    let one = store_object(&vault, &[pack(1)]).unwrap();
    store_object(&vault, &[pack(2), pack(3), pack(4)]).unwrap();
    index.refresh(&vault).unwrap();
    let bytes = vault.backend.get(&ObjectName::Index(one), 1 << 20).unwrap();
    for _ in 0..5 {
        vault.delete(&ObjectName::Index(one)).unwrap();
        index.refresh(&vault).unwrap();
        assert_eq!(known(&index), [2, 3, 4]);
        vault.put(&ObjectName::Index(one), &bytes).unwrap();
        index.refresh(&vault).unwrap();
        assert_eq!(known(&index), [1, 2, 3, 4]);
    }
    // What was forgotten does not pile up.
    assert!(read(&index.state).objects.packs().len() <= 2 * 4);
}

#[test]
fn what_lies_in_a_marked_place_is_found_and_not_deduplicated_against() {
    let ((_, vault), index) = (vault(), Index::default());
    store_object(&vault, &[pack(1)]).unwrap();
    index.refresh(&vault).unwrap();
    for marks in [
        Marks { condemned: HashSet::from([PackId([1; 32])]), ..Marks::default() },
        Marks { damaged_packs: HashSet::from([PackId([1; 32])]), ..Marks::default() },
    ] {
        index.set_marks(marks.clone());
        assert_eq!(*index.marks(), marks);
        assert!(!knows(&index, 1), "{marks:?}");
        assert!(index.find(BlobKind::Data, blob(1)).unwrap().is_some(), "{marks:?}");
    }
    index.set_marks(Marks::default());
    assert!(knows(&index, 1));
}

#[test]
fn what_was_made_durable_while_everything_was_read_anew_is_kept() {
    let ((_, vault), index) = (vault(), Index::new(Home::Memory, SMALL));
    let old = store_object(&vault, &[pack(1)]).unwrap();
    index.refresh(&vault).unwrap();
    vault.delete(&ObjectName::Index(old)).unwrap();
    let listed = list_objects(&vault).unwrap();
    let object = store_object(&vault, &[pack(2)]).unwrap();
    index.add_durable(object, &[pack(2)]).unwrap();
    assert_eq!(index.rebuild(&vault, &[old], listed).unwrap(), []);
    assert_eq!(known(&index), [2]);
}

#[test]
fn senseless_entries_are_damage() {
    let id = "ab".repeat(32);
    let (_, one) = (0, vault().1);
    for (offset, length, uncompressed) in [
        (0, 32_u64, 0_u64),
        (0, 100, u64::from(u32::MAX)),
        (u64::from(u32::MAX), 100, 0),
        (0, u64::from(u32::MAX) + 1, 0),
        (0, u64::from(u32::MAX), 0),
    ] {
        let file = serde_json::json!({"packs": [{"id": id, "blobs": [{
            "id": id, "type": "data", "offset": offset, "length": length,
            "uncompressed_length": uncompressed,
        }]}]});
        let mut stored = IndexId([0; 32]);
        let name = |hash| {
            stored = IndexId(hash);
            ObjectName::Index(stored)
        };
        one.put_document(name, &file).unwrap();
        let loaded = load_object(&one, stored);
        assert!(matches!(loaded, Err(EngineError::Damaged { .. })), "{file}");
    }
    let index = Index::default();
    index.refresh(&one).unwrap();
    assert_eq!(index.damaged_objects().len(), 5);
    assert_eq!(index.report().blobs, 0);
}

#[test]
fn a_damaged_object_is_noted_and_the_others_are_used() {
    let ((backend, vault), index) = (vault(), Index::default());
    store_object(&vault, &[pack(1)]).unwrap();
    let two = store_object(&vault, &[pack(2)]).unwrap();
    let good = vault.backend.get(&ObjectName::Index(two), 1 << 20).unwrap();
    vault.put(&ObjectName::Index(two), b"x").unwrap();
    index.refresh(&vault).unwrap();
    assert_eq!(known(&index), [1]);
    let damaged = index.damaged_objects();
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].0, two);
    assert!(damaged[0].1.contains("hash"), "{damaged:?}");
    // Repaired, it is used; removed, it is no damage any more.
    vault.put(&ObjectName::Index(two), &good).unwrap();
    index.refresh(&vault).unwrap();
    assert_eq!((known(&index), index.damaged_objects()), (vec![1, 2], vec![]));
    let bad = ObjectName::Index(IndexId([9; 32]));
    vault.put(&bad, b"x").unwrap();
    index.refresh(&vault).unwrap();
    assert_eq!(index.report().damaged_objects, 1);
    vault.delete(&bad).unwrap();
    index.refresh(&vault).unwrap();
    assert_eq!(index.damaged_objects(), []);
    backend.break_down();
    assert!(index.refresh(&vault).is_err());
    assert_eq!(known(&index), [1, 2]);
}

/// What a store's list leaves out although it is there, and lists although it is gone.
#[derive(Debug, Default)]
struct Lagging {
    inner: MemoryBackend,
    hidden: Mutex<Vec<ObjectName>>,
    ghosts: Mutex<Vec<ObjectName>>,
}

impl Backend for Lagging {
    fn prepare(&self) -> Result<(), BackendError> {
        self.inner.prepare()
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        self.inner.put(name, bytes)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        self.inner.get(name, bytes_max)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        self.inner.read_at(name, offset, buf)
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        self.inner.find_size(name)
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        let mut listed = self.inner.list(kind)?;
        listed.retain(|object| !guard(&self.hidden).contains(&object.name));
        listed.extend(guard(&self.ghosts).iter().map(|name| Listed { name: *name, size_bytes: 1 }));
        Ok(listed)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        self.inner.delete(name)
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        self.inner.remove_leftovers()
    }
}

#[test]
fn lists_that_lag_behind_neither_lose_objects_nor_stop_a_refresh() {
    let backend = Arc::new(Lagging::default());
    let vault = Vault { backend: backend.clone(), key: Key::random().unwrap() };
    let index = Index::default();
    let one = store_object(&vault, &[pack(1)]).unwrap();
    index.refresh(&vault).unwrap();
    guard(&backend.hidden).push(ObjectName::Index(one));
    let ghost = IndexId([5; 32]);
    guard(&backend.ghosts).push(ObjectName::Index(ghost));
    index.refresh(&vault).unwrap();
    assert_eq!(known(&index), [1]);
    assert_eq!(index.damaged_objects()[0].0, ghost);
    guard(&backend.ghosts).clear();
    index.refresh(&vault).unwrap();
    assert_eq!(index.damaged_objects(), []);
}

#[test]
fn a_cache_survives_its_process_and_spares_reading_objects() {
    let (backend, vault) = vault();
    let dir = tempfile::tempdir().unwrap();
    for number in 1..=20 {
        store_object(&vault, &[pack(number)]).unwrap();
    }
    let all: Vec<u8> = (1..=20).collect();
    let index = open(dir.path(), &vault, NO_TAIL);
    assert_eq!((known(&index), gets(&backend)), (all.clone(), 20));
    drop(index);
    let index = open(dir.path(), &vault, NO_TAIL);
    assert_eq!((known(&index), gets(&backend)), (all, 20));
    let report = index.report();
    assert_eq!((report.objects, report.packs, report.blobs), (20, 20, 20));
    assert!(report.is_kept && report.cache_trouble.is_none());
    assert_eq!(report.file_bytes, 20 * (48 + 32));
}

#[test]
fn what_came_and_went_since_a_cache_was_saved_is_found_out() {
    let (backend, vault) = vault();
    let dir = tempfile::tempdir().unwrap();
    let objects: Vec<_> =
        (1..=9).map(|number| store_object(&vault, &[pack(number)]).unwrap()).collect();
    drop(open(dir.path(), &vault, NO_TAIL));
    vault.delete(&ObjectName::Index(objects[0])).unwrap();
    store_object(&vault, &[pack(10)]).unwrap();
    let before = gets(&backend);
    let index = open(dir.path(), &vault, NO_TAIL);
    assert_eq!((known(&index), gets(&backend) - before), ((2..=10).collect(), 1));
    // Most of it replaced, as a prune does.
    for object in &objects[1..] {
        vault.delete(&ObjectName::Index(*object)).unwrap();
    }
    store_object(&vault, &[pack(2), pack(3)]).unwrap();
    index.refresh(&vault).unwrap();
    assert_eq!(known(&index), [2, 3, 10]);
    drop(index);
    let before = gets(&backend);
    let index = open(dir.path(), &vault, NO_TAIL);
    assert_eq!((known(&index), gets(&backend)), (vec![2, 3, 10], before));
    assert_eq!(index.report().file_bytes, 3 * (48 + 32));
}

#[test]
fn the_tail_of_a_cache_is_bounded_in_records_and_in_objects() {
    let (backend, vault) = vault();
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { tail_records: 100, ..SMALL };
    let index = open(dir.path(), &vault, limits);
    for number in 1..=50 {
        let object = store_object(&vault, &[pack(number)]).unwrap();
        index.add_durable(object, &[pack(number)]).unwrap();
        assert!(read(&index.state).objects.entries().len() - read(&index.state).settled < 4);
        assert!(known(&index).into_iter().eq(1..=number));
        assert!(index.report().segments <= 4);
    }
    drop(index);
    let index = open(dir.path(), &vault, limits);
    assert!(known(&index).into_iter().eq(1..=50));
    assert!(gets(&backend) < 4);
}

#[test]
fn files_that_are_wrong_are_made_anew_from_the_repository() {
    let (backend, vault) = vault();
    for number in 1..=20 {
        store_object(&vault, &[pack(number)]).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), &vault, NO_TAIL));
    let count = files(dir.path()).len();
    type Harm = fn(&Path, Vec<u8>);
    let harms: [Harm; 5] = [
        |path, mut bytes| {
            bytes[40] ^= 1;
            fs::write(path, bytes).unwrap();
        },
        |path, bytes| fs::write(path, &bytes[..bytes.len() - 1]).unwrap(),
        |path, bytes| fs::write(path, [&bytes[..], &[0]].concat()).unwrap(),
        |path, _| fs::write(path, "").unwrap(),
        |path, _| fs::remove_file(path).unwrap(),
    ];
    for harm in harms {
        for file in 0..count {
            let path = &files(dir.path())[file];
            harm(path, fs::read(path).unwrap());
            let before = gets(&backend);
            let index = open(dir.path(), &vault, NO_TAIL);
            assert!(known(&index).into_iter().eq(1..=20), "{path:?}");
            assert_eq!(gets(&backend) - before, 20, "{path:?}");
            drop(index);
            drop(open(dir.path(), &vault, NO_TAIL));
            assert_eq!(gets(&backend) - before, 20, "{path:?}");
            assert_eq!(files(dir.path()).len(), count);
        }
    }
}

#[test]
fn a_cache_of_another_key_is_not_believed() {
    let ((_, one), (backend, two)) = (vault(), vault());
    store_object(&one, &[pack(1)]).unwrap();
    store_object(&two, &[pack(2)]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(known(&open(dir.path(), &one, NO_TAIL)), [1]);
    assert_eq!(known(&open(dir.path(), &two, NO_TAIL)), [2]);
    assert_eq!(gets(&backend), 1);
}

#[test]
fn a_crash_before_the_manifest_leaves_the_earlier_cache_in_use() {
    let (backend, vault) = vault();
    let dir = tempfile::tempdir().unwrap();
    store_object(&vault, &[pack(1), pack(2), pack(3)]).unwrap();
    drop(open(dir.path(), &vault, NO_TAIL));
    let earlier: Vec<_> =
        files(dir.path()).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    store_object(&vault, &[pack(4), pack(5)]).unwrap();
    drop(open(dir.path(), &vault, NO_TAIL));
    for (bytes, path) in &earlier {
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(files(dir.path()).len(), 5);
    let before = gets(&backend);
    let index = open(dir.path(), &vault, NO_TAIL);
    assert_eq!((known(&index), gets(&backend) - before), (vec![1, 2, 3, 4, 5], 1));
    // Leftovers are gone.
    assert_eq!(files(dir.path()).len(), 3);
}

#[test]
fn two_holders_of_one_cache_do_not_hurt_each_other() {
    let (backend, vault) = vault();
    let dir = tempfile::tempdir().unwrap();
    for number in 1..=20 {
        store_object(&vault, &[pack(number)]).unwrap();
    }
    let keeper = open(dir.path(), &vault, NO_TAIL);
    let saved = files(dir.path());
    let guest = open(dir.path(), &vault, NO_TAIL);
    assert!(keeper.report().is_kept && !guest.report().is_kept);
    assert_eq!(files(dir.path()), saved);
    // The guest's blobs are in files all the same.
    assert_eq!(guest.report().file_bytes, 20 * 48);
    store_object(&vault, &[pack(21)]).unwrap();
    for index in [&guest, &keeper] {
        index.refresh(&vault).unwrap();
        assert!(known(index).into_iter().eq(1..=21));
    }
    drop((keeper, guest));
    let before = gets(&backend);
    assert!(known(&open(dir.path(), &vault, NO_TAIL)).into_iter().eq(1..=21));
    assert_eq!(gets(&backend), before);
}

#[test]
fn without_a_usable_directory_the_index_is_in_memory() {
    let (_, vault) = vault();
    let file = tempfile::NamedTempFile::new().unwrap();
    store_object(&vault, &[pack(1)]).unwrap();
    let index = open(file.path(), &vault, NO_TAIL);
    assert_eq!(known(&index), [1]);
    assert!(index.report().cache_trouble.is_some());
    assert_eq!(index.report().file_bytes, 0);
}

#[test]
fn a_file_that_goes_bad_in_use_fails_look_ups_until_the_next_refresh() {
    let (_, vault) = vault();
    let dir = tempfile::tempdir().unwrap();
    store_object(&vault, &[pack(1), pack(2), pack(3)]).unwrap();
    let index = open(dir.path(), &vault, NO_TAIL);
    let segment = |dir| {
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|is| is == "segment");
        files(dir).into_iter().find(is_segment).unwrap()
    };
    fs::write(segment(dir.path()), "").unwrap();
    let found = index.find(BlobKind::Data, blob(1));
    assert!(matches!(found, Err(EngineError::IndexCache(_))), "{found:?}");
    index.refresh(&vault).unwrap();
    assert_eq!(known(&index), [1, 2, 3]);
    // A flipped bit is found when the segment is merged, not passed on.
    let path = segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 1;
    fs::write(&path, bytes).unwrap();
    store_object(&vault, &[pack(4)]).unwrap();
    store_object(&vault, &[pack(5)]).unwrap();
    index.refresh(&vault).unwrap();
    assert_eq!(known(&index), [1, 2, 3, 4, 5]);
}

#[test]
fn what_was_taken_in_is_found_whatever_others_do_meanwhile() {
    let (_, vault) = vault();
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path(), &vault, SMALL);
    thread::scope(|scope| {
        for first in [0, 60, 120] {
            let (index, vault) = (&index, &vault);
            scope.spawn(move || {
                for number in first..first + 60 {
                    let object = store_object(vault, &[pack(number)]).unwrap();
                    if number % 5 == 0 {
                        index.refresh(vault).unwrap();
                    } else {
                        index.add_durable(object, &[pack(number)]).unwrap();
                    }
                    assert!((first..=number).all(|number| knows(index, number)));
                }
            });
        }
    });
    index.refresh(&vault).unwrap();
    assert!(known(&index).into_iter().eq(0..180));
    assert_eq!((index.report().objects, index.report().blobs), (180, 180));
}

/// Half of the ids differ in their last byte alone, so that one block's begin says little.
fn model_blob(number: u16) -> BlobId {
    if number < 100 {
        BlobId(sha256(&number.to_le_bytes()))
    } else {
        let mut id = [0x55; 32];
        id[30..].copy_from_slice(&number.to_be_bytes());
        BlobId(id)
    }
}

const MODEL_BLOBS: u16 = 200;

#[derive(Clone, Debug)]
enum Step {
    /// An object of these packs, each with its blobs, made by this process or another.
    Add {
        packs: Vec<Vec<u16>>,
        is_ours: bool,
    },
    /// The object of this number, by the age of those that are left, is removed.
    Delete(prop::sample::Index),
    Refresh,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let packs = prop::collection::vec(prop::collection::vec(0..MODEL_BLOBS, 1..40), 0..4);
    prop_oneof![
        6 => (packs, any::<bool>()).prop_map(|(packs, is_ours)| Step::Add { packs, is_ours }),
        2 => any::<prop::sample::Index>().prop_map(Step::Delete),
        2 => Just(Step::Refresh),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_index_finds_what_a_map_of_all_objects_finds(
        steps in prop::collection::vec(step(), 1..40),
        condemned in prop::collection::vec(0..40_u8, 0..12),
        damaged in prop::collection::vec((0..40_u8, 0..MODEL_BLOBS), 0..20),
        is_cached: bool,
    ) {
        let (_, vault) = vault();
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { tail_records: 50, tail_objects: 3, batch_records: 80, segments: 3 };
        let marks = Marks {
            condemned: condemned.iter().map(|number| PackId([*number; 32])).collect(),
            damaged_packs: HashSet::new(),
            damaged_blobs: damaged.iter()
                .map(|(pack, blob)| (PackId([*pack; 32]), model_blob(*blob))).collect(),
        };
        let open = || {
            let index = if is_cached {
                open(dir.path(), &vault, limits)
            } else {
                let index = Index::new(Home::Memory, limits);
                index.refresh(&vault).unwrap();
                index
            };
            index.set_marks(marks.clone());
            index
        };
        let mut index = open();
        let mut packs_made = 0_u8;
        // What is in the store, and what the index must know of it.
        let mut stored: Vec<(IndexId, Vec<PackEntry>)> = Vec::new();
        let mut expected: HashMap<IndexId, Vec<PackEntry>> = HashMap::new();
        for step in steps {
            match step {
                Step::Add { packs, is_ours } => {
                    let entries: Vec<_> = packs.iter().map(|blobs| {
                        // Now and then a pack is listed by two objects.
                        let number = packs_made % 40;
                        packs_made = packs_made.wrapping_add(1);
                        pack_of(PackId([number; 32]), blobs.iter().map(|blob| model_blob(*blob)))
                    }).collect();
                    let id = store_object(&vault, &entries).unwrap();
                    if is_ours {
                        index.add_durable(id, &entries).unwrap();
                        expected.insert(id, entries.clone());
                    }
                    stored.push((id, entries));
                }
                Step::Delete(which) if !stored.is_empty() => {
                    let (id, _) = stored.remove(which.index(stored.len()));
                    vault.delete(&ObjectName::Index(id)).unwrap();
                }
                Step::Delete(_) => {}
                Step::Refresh => {
                    index.refresh(&vault).unwrap();
                    expected = stored.iter().cloned().collect();
                }
                Step::Reopen => {
                    drop(index);
                    index = open();
                    expected = stored.iter().cloned().collect();
                }
            }
        }
        for number in 0..MODEL_BLOBS {
            let id = model_blob(number);
            let mut places = Vec::new();
            for pack in expected.values().flatten() {
                for blob in pack.blobs.iter().filter(|blob| blob.id == id) {
                    let place = Location { pack: pack.id, offset: blob.offset, shape: blob.shape };
                    if !places.contains(&place) {
                        places.push(place);
                    }
                }
            }
            let mut found = index.find_all(BlobKind::Data, id).unwrap();
            let standing = |place: &Location| marks.standing(place.pack, id);
            prop_assert!(found.is_sorted_by_key(standing));
            let best = places.iter().map(standing).min();
            let one = index.find(BlobKind::Data, id).unwrap();
            prop_assert_eq!(one.as_ref().map(standing), best);
            prop_assert!(one.is_none_or(|one| places.contains(&one)));
            let contains = index.contains(BlobKind::Data, id).unwrap();
            prop_assert_eq!(contains, best == Some(Standing::Sound));
            prop_assert_eq!(index.find(BlobKind::Tree, id).unwrap(), None);
            let key = |place: &Location| (place.pack, place.offset);
            found.sort_by_key(key);
            places.sort_by_key(key);
            prop_assert_eq!(found, places);
        }
        let report = index.report();
        prop_assert_eq!(report.objects, expected.len());
        let blobs: usize = expected.values().flatten().map(|pack| pack.blobs.len()).sum();
        prop_assert_eq!(report.blobs, blobs as u64);
    }
}
