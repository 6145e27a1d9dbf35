//! Whatever happens to stored bytes, nothing panics, nothing wrong is restored, and
//! the damage is named.

use std::{num::NonZeroUsize, sync::Arc};

use kedge_engine::{
    Backend, CancelFlag, EngineError, MemoryBackend, NoProgress, ObjectKind, ObjectName, OpenGate,
    PackDamage, ReadData, SnapshotId, VerifyOptions,
};

use crate::{
    scenario::{Choices, in_two_threads},
    support::{
        Disk, KIB, Repo, Target, back_up, begin, create, distinct_chunks, is_long, noise, now,
        open, read_options, report_figure, restore, store_options, volume,
    },
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

type Objects = Vec<(ObjectName, Vec<u8>)>;

/// [`KINDS`] and what only some repositories have.
const ALL_KINDS: [ObjectKind; 7] = [
    ObjectKind::Config,
    ObjectKind::Key,
    ObjectKind::Pack,
    ObjectKind::Index,
    ObjectKind::Snapshot,
    ObjectKind::Lock,
    ObjectKind::Mark,
];

/// Everything in a store but what is opaque to the engine.
fn objects_of(backend: &MemoryBackend) -> Objects {
    let listed = ALL_KINDS.iter().flat_map(|kind| backend.list(*kind).unwrap());
    listed.map(|o| (o.name, backend.get(&o.name, u64::MAX).unwrap())).collect()
}

/// A repository of this project as it is, what it once held, and another project's.
struct Worlds {
    now: Objects,
    snapshots: Vec<(SnapshotId, Vec<u8>)>,
    /// Objects that were removed since.
    old: Objects,
    foreign: Objects,
}

impl Worlds {
    fn new() -> Self {
        let (now, snapshots, old) = Self::project(1);
        // Of the same password, so that its key opens; the worst case.
        let (foreign, ..) = Self::project(2);
        Self { now, snapshots, old, foreign }
    }

    fn project(seed: u64) -> (Objects, Vec<(SnapshotId, Vec<u8>)>, Objects) {
        let backend = Arc::new(MemoryBackend::new());
        let repo = create(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
        let made = objects_of(&backend);
        let disk = Disk::new(noise(seed + 70, 5000));
        let (gone, _) = back_up(&repo, &disk, None, &store_options(), "gone").unwrap();
        let before =
            repo.begin_session("session-0", now(), Arc::new(OpenGate), CancelFlag::new()).unwrap();
        let old: Objects =
            objects_of(&backend).into_iter().filter(|object| !made.contains(object)).collect();
        before.close().unwrap();
        repo.delete_snapshot(gone).unwrap();
        for (name, _) in &old {
            backend.delete(name).unwrap();
        }
        repo.refresh().unwrap();
        let mut snapshots = Vec::new();
        let bytes = [distinct_chunks(seed, 1), noise(seed, 2000)].concat();
        let (one, _) =
            back_up(&repo, &Disk::new(bytes.clone()), None, &store_options(), "one").unwrap();
        snapshots.push((one, bytes));
        let bytes = noise(seed + 9, 3000);
        let (two, _) =
            back_up(&repo, &Disk::new(bytes.clone()), None, &store_options(), "two").unwrap();
        snapshots.push((two, bytes));
        // Somebody found a pack damaged that is gone since.
        let pack =
            |name: &ObjectName| if let ObjectName::Pack(id) = name { Some(*id) } else { None };
        let gone = old.iter().find_map(|(name, _)| pack(name));
        let damage =
            PackDamage { pack: gone.unwrap(), blobs: None, whole: true, what: "missing".into() };
        repo.record_damage(&damage).unwrap();
        std::mem::forget(begin(&repo).unwrap());
        (objects_of(&backend), snapshots, old)
    }

    /// The first sign that something is wrong. Whatever restores must be right.
    fn find_fault(&self, objects: &[(ObjectName, Vec<u8>)]) -> Result<(), String> {
        let backend = MemoryBackend::new();
        for (name, bytes) in objects {
            backend.put(name, bytes).unwrap();
        }
        let text = |error: EngineError| error.to_string();
        let repo = open(Arc::new(backend)).map_err(text)?;
        for (id, bytes) in &self.snapshots {
            let restored = restore(&repo, *id);
            assert!(restored.is_err() || restored.is_ok_and(|r| r == *bytes), "a wrong restore");
        }
        let report = repo.check(ReadData::Yes, &CancelFlag::new()).map_err(text)?;
        if let Some(problem) = report.problems.first() {
            return Err(problem.what.clone());
        }
        let options = VerifyOptions {
            threads: NonZeroUsize::MIN,
            cancel: CancelFlag::new(),
            after: None,
            bytes_max: u64::MAX,
        };
        let verified = repo.verify(&options, &NoProgress).map_err(text)?;
        if let Some(problem) = verified.problems.first() {
            return Err(problem.what.clone());
        }
        if report.unindexed_packs > 0 {
            return Err("a pack nobody knows".into());
        }
        if repo.list_sessions().map_err(text)? != ["session-1"] {
            return Err("a session nobody knows".into());
        }
        begin(&repo).map_err(text)?;
        for (id, _) in &self.snapshots {
            restore(&repo, *id).map_err(text)?;
            repo.open_snapshot(*id).and_then(|view| view.file("server.json")).map_err(text)?;
        }
        repo.list_snapshots().map(drop).map_err(text)
    }

    /// Damages the repository in one of many ways; `None` when that changes nothing.
    fn damage(&self, choices: &mut Choices) -> Option<(String, Objects)> {
        let mut objects = self.now.clone();
        let kind = ALL_KINDS[choices.below(ALL_KINDS.len())];
        let of_kind = |objects: &Objects| -> Vec<usize> {
            (0..objects.len()).filter(|n| objects[*n].0.kind() == kind).collect()
        };
        let ours = of_kind(&objects);
        let at = ours[choices.below(ours.len())];
        let pick = |from: &Objects, choices: &mut Choices| {
            let of_kind = of_kind(from);
            let chosen = of_kind.get(choices.below(of_kind.len()));
            chosen.map(|number| from[*number].clone())
        };
        let how = match choices.below(12) {
            0 | 1 => {
                let place = choices.below(objects[at].1.len());
                let bit = choices.below(8);
                objects[at].1[place] ^= 1 << bit;
                format!("bit {bit} of byte {place}")
            }
            2 => {
                let place = choices.below(objects[at].1.len());
                objects[at].1[place] = choices.next().to_le_bytes()[0];
                format!("byte {place}")
            }
            3 => {
                let sectors = objects[at].1.len().div_ceil(512);
                let sector = choices.below(sectors);
                let fill = match choices.below(3) {
                    0 => vec![0; 512],
                    1 => noise(choices.next(), 512),
                    _ => objects[at].1.iter().copied().cycle().skip(512).take(512).collect(),
                };
                let end = objects[at].1.len().min(512 * (sector + 1));
                let bytes = &mut objects[at].1[512 * sector..end];
                bytes.copy_from_slice(&fill[..bytes.len()]);
                format!("sector {sector}")
            }
            4 => {
                let len = choices.below(objects[at].1.len());
                objects[at].1.truncate(len);
                format!("cut to {len} bytes")
            }
            5 => {
                let more = noise(choices.next(), 1 + choices.below(600));
                objects[at].1.extend_from_slice(&more);
                format!("{} bytes more", more.len())
            }
            6 => {
                let other = ours[choices.below(ours.len())];
                let bytes = objects[at].1.clone();
                objects[at].1 = std::mem::replace(&mut objects[other].1, bytes);
                format!("swapped with {}", objects[other].0)
            }
            7 => {
                let other = choices.below(objects.len());
                let bytes = objects[at].1.clone();
                objects[at].1 = std::mem::replace(&mut objects[other].1, bytes);
                format!("swapped with {}", objects[other].0)
            }
            8 => {
                objects[at].1 = pick(&self.old, choices)?.1;
                "an older object under its name".into()
            }
            9 => {
                let old = pick(&self.old, choices)?;
                let how = format!("the removed {} is back", old.0);
                objects.push(old);
                how
            }
            10 => {
                objects[at].1 = pick(&self.foreign, choices)?.1;
                "an object of another project under its name".into()
            }
            _ => {
                let stranger = pick(&self.foreign, choices)?;
                match kind {
                    // One more key opens nothing of ours; config and key together do.
                    ObjectKind::Config | ObjectKind::Key => {
                        let is_made_of = |name: &ObjectName| {
                            matches!(name.kind(), ObjectKind::Config | ObjectKind::Key)
                        };
                        objects.retain(|(name, _)| !is_made_of(name));
                        let theirs = self.foreign.iter().filter(|(name, _)| is_made_of(name));
                        objects.extend(theirs.cloned());
                        "config and key of another project".into()
                    }
                    ObjectKind::Access
                    | ObjectKind::Pack
                    | ObjectKind::Index
                    | ObjectKind::Snapshot
                    | ObjectKind::Lock
                    | ObjectKind::Mark => {
                        let how = format!("{} of another project beside ours", stranger.0);
                        objects.push(stranger);
                        how
                    }
                }
            }
        };
        let name = self.now[at].0;
        (objects != self.now).then(|| (format!("{name}: {how}"), objects))
    }
}

#[test]
fn random_damage_of_every_kind_is_found_and_restores_nothing_wrong() {
    let worlds = Worlds::new();
    worlds.find_fault(&worlds.now).unwrap();
    let cases = if is_long() { 40_000 } else { 2_000 };
    let pieces = 16;
    let counts = in_two_threads(pieces, |piece| {
        let mut choices = Choices::new(piece as u64);
        let mut found = 0;
        while found < cases / pieces {
            let Some((how, objects)) = worlds.damage(&mut choices) else { continue };
            assert!(worlds.find_fault(&objects).is_err(), "piece {piece}, not found: {how}");
            found += 1;
        }
        found
    });
    let found: usize = counts.iter().sum();
    report_figure(
        "corruption",
        &format!("corruption: {found} random cases, {found} detected, 0 restored wrong"),
    );
}

/// The target a restore wrote to, read back.
fn as_disk(target: Target) -> Disk {
    Disk::new(target.into_whole())
}

#[test]
fn a_bit_flipped_on_the_target_after_it_was_written_fails_the_restore() {
    let backend = Arc::new(MemoryBackend::new());
    let repo: Repo = create(backend).unwrap();
    let bytes = [distinct_chunks(1, 2), vec![0; CHUNK], noise(3, 4000)].concat();
    let disk = Disk::new(bytes);
    let (id, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    let view = volume(&repo, id).unwrap();
    let target = Target::new(disk.bytes.len());
    repo.restore_volume(&view, &target, &OpenGate, &read_options(), &NoProgress).unwrap();
    let mut back = as_disk(target);
    repo.compare_volume(&view, &back, &read_options(), &NoProgress).unwrap();
    let flips = if is_long() { 5_000 } else { 200 };
    let mut choices = Choices::new(7);
    for _ in 0..flips {
        let (place, bit) = (choices.below(back.bytes.len()), choices.below(8));
        back.bytes[place] ^= 1 << bit;
        let compared = repo.compare_volume(&view, &back, &read_options(), &NoProgress);
        let chunk = (place / CHUNK * CHUNK) as u64;
        assert!(
            matches!(compared, Err(EngineError::Mismatch { offset }) if offset == chunk),
            "byte {place}, bit {bit}: {compared:?}"
        );
        back.bytes[place] ^= 1 << bit;
    }
    report_figure("corruption-target", &format!("bits flipped on a target: {flips}, all refused"));
}
