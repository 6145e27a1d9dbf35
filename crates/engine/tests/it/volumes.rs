//! Volumes come back as they were, whatever is in them and however they were described.

use std::sync::atomic::{AtomicU64, Ordering};

use kedge_engine::{
    ChunkSize, EngineError, Extent, ExtentKind, NoProgress, Progress, Source, SourceError,
    StoreOptions,
};
use proptest::prelude::*;

use crate::support::{
    Disk, KIB, MIB, assert_clean, assert_restores, at_secs, back_up, begin, cut_into,
    distinct_chunks, in_memory, noise, now, read_options, store_options, threads, volume,
};

const CHUNK: usize = 512 * KIB;

/// A run of bytes of one kind.
#[derive(Clone, Debug)]
enum Run {
    Zero(usize),
    Noise(u64, usize),
    Text(u8, usize),
}

impl Run {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Zero(len) => vec![0; *len],
            Self::Noise(seed, len) => noise(*seed, *len),
            Self::Text(byte, len) => vec![*byte; *len],
        }
    }
}

fn a_run() -> impl Strategy<Value = Run> {
    let len = prop_oneof![1..2000_usize, 1..3 * CHUNK, Just(CHUNK), Just(2 * CHUNK)];
    prop_oneof![
        len.clone().prop_map(Run::Zero),
        (0..4_u64, len.clone()).prop_map(|(seed, len)| Run::Noise(seed, len)),
        (1..255_u8, len).prop_map(|(byte, len)| Run::Text(byte, len)),
    ]
}

fn a_volume() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(a_run(), 0..6).prop_map(|runs| runs.iter().flat_map(Run::bytes).collect())
}

/// Overwrites runs at places given as fractions; says what was touched.
fn change(bytes: &mut [u8], changes: &[(u16, Run)]) -> Vec<(usize, usize)> {
    let mut touched = Vec::new();
    for (place, run) in changes {
        let start = bytes.len() * usize::from(*place) / (usize::from(u16::MAX) + 1);
        let run = run.bytes();
        let end = bytes.len().min(start + run.len());
        bytes[start..end].copy_from_slice(&run[..end - start]);
        touched.push((start, end));
    }
    touched.sort_unstable();
    touched
}

/// What a driver that tracks changes says: nothing but the truth, ranges of zeroes included.
fn extents(bytes: &[u8], touched: &[(usize, usize)]) -> Vec<(usize, ExtentKind)> {
    let mut extents = Vec::new();
    let mut at = 0;
    for (start, end) in touched.iter().copied().filter(|(start, end)| start < end) {
        if at < start {
            extents.push((start, ExtentKind::Unchanged));
        }
        if at < end {
            let from = at.max(start);
            let is_zero = bytes[from..end].iter().all(|byte| *byte == 0);
            extents.push((end, if is_zero { ExtentKind::Zero } else { ExtentKind::Data }));
            at = end;
        }
    }
    extents.push((bytes.len(), ExtentKind::Unchanged));
    extents
}

fn a_chunk_size() -> impl Strategy<Value = ChunkSize> {
    prop::sample::select(&ChunkSize::ALL[..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_chain_of_backups_restores_every_moment(
        first in a_volume(),
        changes in prop::collection::vec((any::<u16>(), a_run()), 0..4),
        chunk_size in a_chunk_size(),
        workers in 1..4_usize,
    ) {
        let (_backend, repo) = in_memory();
        let options = StoreOptions { threads: threads(workers), ..cut_into(chunk_size) };
        let (one, stored) =
            back_up(&repo, &Disk::new(first.clone()), None, &options, "one").unwrap();
        prop_assert_eq!(stored.size_bytes, first.len() as u64);

        let mut second = first.clone();
        let touched = change(&mut second, &changes);
        let disk = Disk::with_extents(second.clone(), &extents(&second, &touched));
        let parent = volume(&repo, one).unwrap();
        let (two, incremental) = back_up(&repo, &disk, Some(&parent), &options, "two").unwrap();
        let (three, full) =
            back_up(&repo, &Disk::new(second.clone()), None, &options, "three").unwrap();
        let [by_extents, by_reading] = [two, three].map(|id| volume(&repo, id).unwrap());
        prop_assert_eq!(by_extents.blobs(), by_reading.blobs());
        prop_assert_eq!(incremental.data_bytes, full.data_bytes);
        prop_assert_eq!(full.new_bytes, 0);

        for (id, bytes) in [(one, &first), (two, &second), (three, &second)] {
            assert_restores(&repo, id, bytes);
        }
        assert_clean(&repo);
    }

    #[test]
    fn volumes_may_grow_and_shrink_between_backups(
        first in a_volume(),
        second_len in 0..5 * CHUNK,
    ) {
        let (_backend, repo) = in_memory();
        let (one, _) =
            back_up(&repo, &Disk::new(first.clone()), None, &store_options(), "one").unwrap();
        let mut second = first.clone();
        second.resize(second_len, 7);
        let kept = first.len().min(second_len);
        let disk = Disk::with_extents(second.clone(), &[(kept, ExtentKind::Unchanged)]);
        let parent = volume(&repo, one).unwrap();
        let (two, _) = back_up(&repo, &disk, Some(&parent), &store_options(), "two").unwrap();
        assert_restores(&repo, two, &second);
        assert_clean(&repo);
    }
}

#[test]
fn an_unchanged_volume_writes_nothing_of_its_own() {
    let (_backend, repo) = in_memory();
    let bytes = [distinct_chunks(1, 3), vec![0; 5 * CHUNK]].concat();
    let (one, first) =
        back_up(&repo, &Disk::new(bytes.clone()), None, &store_options(), "one").unwrap();
    let parent = volume(&repo, one).unwrap();
    let later = StoreOptions { modified_at: at_secs(3600), ..store_options() };
    for (disk, read_chunks) in [(Disk::unchanged(bytes.clone()), 8), (Disk::new(bytes), 8)] {
        let session = begin(&repo).unwrap();
        let stored = session.store_volume(&disk, Some(&parent), &later, &NoProgress).unwrap();
        assert_eq!(stored.subtree, first.subtree);
        assert_eq!((stored.new_bytes, stored.changed_chunks), (0, 0));
        // Fewer than ten unchanged chunks are all sampled.
        assert_eq!(stored.read_chunks, read_chunks);
        assert_eq!(stored.data_bytes, 3 * CHUNK as u64);
        session.finish_tree(&[("vol", stored.subtree)], &[], at_secs(3600)).unwrap();
        assert!(session.stored_bytes() < 1000, "only the root tree is new");
    }
}

#[test]
fn holes_are_never_read_and_of_unchanged_chunks_only_a_sample() {
    let (_backend, repo) = in_memory();
    let bytes = [distinct_chunks(1, 100), vec![0; 100 * CHUNK]].concat();
    let extents = [(100 * CHUNK, ExtentKind::Data), (200 * CHUNK, ExtentKind::Zero)];
    let disk = Disk::with_extents(bytes.clone(), &extents);
    let (one, stored) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    assert_eq!((stored.chunks, stored.read_chunks, stored.new_chunks), (200, 100, 100));
    assert!(disk.reads.lock().unwrap().iter().all(|(at, _)| *at < 100 * CHUNK as u64));

    let disk = Disk::unchanged(bytes);
    let parent = volume(&repo, one).unwrap();
    let (_, stored) = back_up(&repo, &disk, Some(&parent), &store_options(), "two").unwrap();
    assert_eq!(stored.read_chunks, 10);
    assert_eq!(stored.data_bytes, 100 * CHUNK as u64);
}

#[test]
fn a_source_that_lies_about_changes_is_found_out_and_the_session_goes_on() {
    let (_backend, repo) = in_memory();
    let mut bytes = distinct_chunks(1, 10);
    let (one, _) =
        back_up(&repo, &Disk::new(bytes.clone()), None, &store_options(), "one").unwrap();
    bytes[7 * CHUNK + 3] ^= 1;
    let parent = volume(&repo, one).unwrap();
    let session = begin(&repo).unwrap();
    let liar = Disk::unchanged(bytes.clone());
    let lied = session.store_volume(&liar, Some(&parent), &store_options(), &NoProgress);
    assert!(matches!(lied, Err(EngineError::SourceLied { offset }) if offset == 7 * CHUNK as u64));
    let honest = Disk::new(bytes.clone());
    let stored =
        session.store_volume(&honest, Some(&parent), &store_options(), &NoProgress).unwrap();
    let tree = session.finish_tree(&[("vol", stored.subtree)], &[], now()).unwrap();
    let two = session.write_snapshot(&crate::support::meta(tree, "two")).unwrap();
    assert_restores(&repo, two, &bytes);
    assert_clean(&repo);
}

#[test]
fn a_read_error_fails_the_backup_and_never_becomes_a_hole() {
    let (_backend, repo) = in_memory();
    let disk = Disk { bad_byte: Some(3 * CHUNK + 1), ..Disk::new(distinct_chunks(1, 8)) };
    let failed = back_up(&repo, &disk, None, &store_options(), "one");
    assert!(matches!(failed, Err(EngineError::Source(SourceError { retryable: false, .. }))));
    assert_eq!(repo.list_snapshots().unwrap(), []);
    let whole = Disk { bad_byte: None, ..disk };
    let (id, _) = back_up(&repo, &whole, None, &store_options(), "one").unwrap();
    assert_restores(&repo, id, &whole.bytes);
    assert_clean(&repo);
}

#[test]
fn equal_chunks_are_stored_once_even_when_threads_meet_them_at_once() {
    let (_backend, repo) = in_memory();
    let bytes = noise(1, CHUNK).repeat(40);
    let options = StoreOptions { threads: threads(4), ..store_options() };
    let (id, stored) = back_up(&repo, &Disk::new(bytes.clone()), None, &options, "one").unwrap();
    assert_eq!((stored.new_chunks, stored.new_bytes), (1, CHUNK as u64));
    assert_restores(&repo, id, &bytes);
}

#[test]
fn the_number_of_threads_does_not_change_what_is_stored() {
    let bytes = [noise(1, 5 * CHUNK + 77), vec![0; 3 * CHUNK], vec![5; CHUNK]].concat();
    let (_backend, repo) = in_memory();
    let trees = [1, 2, 4].map(|count| {
        let options = StoreOptions { threads: threads(count), ..store_options() };
        back_up(&repo, &Disk::new(bytes.clone()), None, &options, "one").unwrap().1.subtree
    });
    assert_eq!(trees[0], trees[1]);
    assert_eq!(trees[0], trees[2]);
}

#[test]
fn progress_adds_up_to_the_size_of_the_volume() {
    #[derive(Default)]
    struct Sum(AtomicU64);
    impl Progress for Sum {
        fn advance(&self, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }
    let (_backend, repo) = in_memory();
    let bytes = [noise(1, 3 * CHUNK + 5), vec![0; 2 * CHUNK]].concat();
    let size = bytes.len() as u64;
    let extents = [(CHUNK, ExtentKind::Data), (bytes.len(), ExtentKind::Unchanged)];
    let (id, _) = back_up(&repo, &Disk::new(bytes.clone()), None, &store_options(), "one").unwrap();
    let view = volume(&repo, id).unwrap();
    let sum = Sum::default();
    let disk = Disk::with_extents(bytes.clone(), &extents);
    let session = begin(&repo).unwrap();
    session.store_volume(&disk, Some(&view), &store_options(), &sum).unwrap();
    assert_eq!(sum.0.swap(0, Ordering::Relaxed), size);
    let target = crate::support::Target::new(bytes.len());
    let gate = kedge_engine::OpenGate;
    let report = repo.restore_volume(&view, &target, &gate, &read_options(), &sum).unwrap();
    assert_eq!(sum.0.swap(0, Ordering::Relaxed), size);
    assert_eq!(report.data_bytes + report.zero_bytes, size);
    repo.compare_volume(&view, &Disk::new(bytes), &read_options(), &sum).unwrap();
    assert_eq!(sum.0.swap(0, Ordering::Relaxed), size);
}

#[test]
fn comparing_finds_a_single_changed_bit_anywhere() {
    let (_backend, repo) = in_memory();
    let bytes = [noise(1, 2 * CHUNK + 9), vec![0; 2 * CHUNK]].concat();
    let (id, _) = back_up(&repo, &Disk::new(bytes.clone()), None, &store_options(), "one").unwrap();
    let view = volume(&repo, id).unwrap();
    let compare = |bytes: Vec<u8>| {
        repo.compare_volume(&view, &Disk::new(bytes), &read_options(), &NoProgress)
    };
    let report = compare(bytes.clone()).unwrap();
    assert_eq!(report.data_bytes + report.zero_bytes, bytes.len() as u64);
    for at in [0, CHUNK - 1, CHUNK, 2 * CHUNK + 8, 2 * CHUNK + 9, 4 * CHUNK, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        let start = (at / CHUNK * CHUNK) as u64;
        let found = compare(changed);
        assert!(
            matches!(found, Err(EngineError::Mismatch { offset }) if offset == start),
            "byte {at}: {found:?}"
        );
    }
    let longer = compare([bytes.clone(), vec![1]].concat());
    assert!(longer.is_ok(), "a target may be larger than the backup");
    assert!(matches!(compare(bytes[1..].to_vec()), Err(EngineError::Mismatch { .. })));
}

#[test]
fn an_empty_volume_and_an_empty_file_come_back_empty() {
    let (_backend, repo) = in_memory();
    let session = begin(&repo).unwrap();
    let stored =
        session.store_volume(&Disk::default(), None, &store_options(), &NoProgress).unwrap();
    let files: &[(&str, &[u8])] = &[("empty", b""), ("large", &noise(3, 2 * MIB))];
    let tree = session.finish_tree(&[("vol", stored.subtree)], files, now()).unwrap();
    let id = session.write_snapshot(&crate::support::meta(tree, "one")).unwrap();
    assert_restores(&repo, id, &[]);
    let view = repo.open_snapshot(id).unwrap();
    assert_eq!(view.file_names(), ["empty", "large"]);
    assert_eq!(view.volume_names(), ["vol"]);
    assert_eq!(view.file("empty").unwrap(), b"");
    assert!(view.file("large").unwrap() == noise(3, 2 * MIB));
    assert!(matches!(view.file("vol"), Err(EngineError::EntryNotFound { .. })));
    assert!(matches!(view.volume("empty"), Err(EngineError::EntryNotFound { .. })));
    assert_clean(&repo);
}

/// A disk too large to hold, empty but for its last chunk.
struct Huge(u64);

impl Source for Huge {
    fn size_bytes(&self) -> u64 {
        self.0
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
        let last = self.0 - CHUNK as u64;
        if offset < last {
            Ok(Extent { offset: 0, len: last, kind: ExtentKind::Zero })
        } else {
            Ok(Extent { offset: last, len: u64::MAX, kind: ExtentKind::Data })
        }
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        buf.fill(1);
        Ok(())
    }
}

#[test]
fn a_huge_empty_volume_costs_little_and_one_beyond_all_bounds_is_refused() {
    let (_backend, repo) = in_memory();
    let session = begin(&repo).unwrap();
    let store = |size| session.store_volume(&Huge(size), None, &store_options(), &NoProgress);
    let stored = store(64 << 30).unwrap();
    assert_eq!((stored.read_chunks, stored.data_bytes), (1, CHUNK as u64));
    assert!(session.stored_bytes() < MIB as u64);
    let refused = store(16 << 40);
    assert!(matches!(refused, Err(EngineError::VolumeTooLarge { .. })), "{refused:?}");
}
