//! Whatever happens to stored bytes, nothing panics, nothing wrong is restored, and
//! the damage is named.

use std::sync::Arc;

use kedge_engine::{
    Backend, CancelFlag, EngineError, MemoryBackend, ObjectKind, ObjectName, ReadData, SnapshotId,
};

use crate::support::{
    Disk, KIB, back_up, begin, create, distinct_chunks, noise, open, restore, store_options,
};

const CHUNK: usize = 512 * KIB;
const KINDS: [ObjectKind; 6] = [
    ObjectKind::Config,
    ObjectKind::Key,
    ObjectKind::Pack,
    ObjectKind::Index,
    ObjectKind::Snapshot,
    ObjectKind::Lock,
];

struct Original {
    objects: Vec<(ObjectName, Vec<u8>)>,
    id: SnapshotId,
    bytes: Vec<u8>,
}

impl Original {
    /// A repository with one backup and the lock of a session.
    fn new() -> Self {
        let backend = Arc::new(MemoryBackend::new());
        let repo = create(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
        let bytes = [distinct_chunks(1, 2), vec![0; CHUNK], noise(1, 2000)].concat();
        let disk = Disk::new(bytes.clone());
        let (id, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
        std::mem::forget(begin(&repo).unwrap());
        let listed = KINDS.iter().flat_map(|kind| backend.list(*kind).unwrap());
        let objects = listed.map(|o| (o.name, backend.get(&o.name, u64::MAX).unwrap())).collect();
        Self { objects, id, bytes }
    }

    fn with(&self, changed: &ObjectName, to: Option<Vec<u8>>) -> Arc<dyn Backend> {
        let backend = MemoryBackend::new();
        for (name, bytes) in &self.objects {
            match (name == changed, &to) {
                (true, Some(to)) => backend.put(name, to).unwrap(),
                (true, None) => {}
                (false, _) => backend.put(name, bytes).unwrap(),
            }
        }
        Arc::new(backend)
    }

    /// Uses everything; returns the first error.
    fn use_all(&self, backend: &Arc<dyn Backend>) -> Result<(), EngineError> {
        let repo = open(Arc::clone(backend))?;
        let report = repo.check(ReadData::Yes, &CancelFlag::new())?;
        let problems = report.problems;
        assert!(restore(&repo, self.id).map_or(true, |bytes| bytes == self.bytes));
        begin(&repo)?;
        restore(&repo, self.id)?;
        repo.open_snapshot(self.id)?.file("server.json")?;
        repo.list_snapshots()?;
        match problems.into_iter().next() {
            Some(problem) => {
                Err(EngineError::Damaged { object: problem.object, what: problem.what })
            }
            None => Ok(()),
        }
    }
}

/// A damaged object with what was done to it.
fn damages(bytes: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let mut damages = vec![
        ("gone".into(), None),
        ("empty".into(), Some(Vec::new())),
        ("zeroes".into(), Some(vec![0; bytes.len()])),
        ("longer".into(), Some([bytes, &[0]].concat())),
        ("noise".into(), Some(noise(9, bytes.len()))),
    ];
    let places = (0..24).map(|n| bytes.len() * n / 24).chain([bytes.len() - 1]);
    for at in places {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 0x10;
        damages.push((format!("bit flipped in byte {at}"), Some(flipped)));
        damages.push((format!("cut to {at} bytes"), Some(bytes[..at].to_vec())));
    }
    damages
}

#[test]
fn every_damage_to_every_object_is_named_and_restores_nothing_wrong() {
    let original = Original::new();
    let missing = ObjectName::Access;
    original.use_all(&original.with(&missing, None)).unwrap();
    for kind in KINDS {
        let of_kind = original.objects.iter().find(|(name, _)| name.kind() == kind);
        assert!(of_kind.is_some(), "{kind:?}");
    }
    for (name, bytes) in &original.objects {
        for (how, damaged) in damages(bytes) {
            let is_gone = damaged.is_none();
            let outcome = original.use_all(&original.with(name, damaged));
            let is_right = match (name.kind(), &outcome) {
                (ObjectKind::Config, Err(EngineError::NotARepository)) => is_gone,
                (ObjectKind::Snapshot, Err(EngineError::SnapshotNotFound(_))) => is_gone,
                // Nobody needs a lock that is gone.
                (ObjectKind::Lock, Ok(())) => is_gone,
                // It may be an exclusive one: work waits, nothing is damaged.
                (ObjectKind::Lock, Err(EngineError::Locked { by })) => {
                    by.contains(&name.to_string())
                }
                (_, Err(EngineError::Damaged { .. })) => true,
                _ => false,
            };
            assert!(is_right, "{name} {how}: {outcome:?}");
        }
    }
}

#[test]
fn a_damaged_snapshot_does_not_keep_others_from_being_backed_up() {
    let original = Original::new();
    let snapshot = original.objects.iter().find(|(name, _)| name.kind() == ObjectKind::Snapshot);
    let (name, _) = snapshot.unwrap();
    let repo = open(original.with(name, Some(b"damaged".to_vec()))).unwrap();
    let disk = Disk::new(original.bytes.clone());
    let (id, _) = back_up(&repo, &disk, None, &store_options(), "two").unwrap();
    assert!(restore(&repo, id).unwrap() == original.bytes);
    assert!(matches!(repo.list_snapshots(), Err(EngineError::Damaged { .. })));
}

#[test]
fn damage_that_keeps_a_packs_size_is_found_only_by_reading_it() {
    let original = Original::new();
    let pack = original.objects.iter().find(|(name, _)| name.kind() == ObjectKind::Pack);
    let (name, bytes) = pack.unwrap();
    let mut flipped = bytes.clone();
    // The header, which no restore reads.
    let at = flipped.len() - 20;
    flipped[at] ^= 1;
    let repo = open(original.with(name, Some(flipped))).unwrap();
    let problems = |read_data| repo.check(read_data, &CancelFlag::new()).unwrap().problems;
    assert_eq!(problems(ReadData::No), []);
    assert_eq!(problems(ReadData::Yes).len(), 1);
    assert_eq!(problems(ReadData::Yes)[0].object, name.to_string());
}
