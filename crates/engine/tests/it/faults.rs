//! Every call of the store fails once, before or after it was done. Whatever the call
//! then reports, the repository stays clean and the next attempt succeeds.

use std::{str::FromStr, sync::Arc};

use kedge_engine::{
    Backend, BackendError, BlobId, EngineError, LocalBackend, MemoryBackend, ObjectKind,
    ObjectName, PackDamage, Repository, SnapshotId,
    layer::{Fault, FaultBackend, Operation},
};

use crate::support::{
    Disk, KIB, Repo, assert_clean, assert_restores, back_up, create, distinct_chunks, noise, open,
    password, restic, restore, store_options, volume,
};

const CHUNK: usize = 512 * KIB;

/// A disk at two moments.
fn moments(first: Vec<u8>) -> [Disk; 2] {
    let mut second = first.clone();
    second[3 * CHUNK] ^= 1;
    [Disk::new(first), Disk::new(second)]
}

/// Opens or makes the repository, as the service does.
fn open_or_create(backend: Arc<dyn Backend>) -> Result<Repo, EngineError> {
    match Repository::is_initialised(&*backend) {
        Ok(false) => create(backend),
        Ok(true) => open(backend),
        Err(error) if error.is_unreachable() => create(backend),
        Err(error) => Err(error),
    }
}

/// A whole life: make, back up, back up again, restore.
fn live(backend: Arc<dyn Backend>, disks: &[Disk; 2]) -> Result<[SnapshotId; 2], EngineError> {
    let repo = open_or_create(backend)?;
    let (one, _) = back_up(&repo, &disks[0], None, &store_options(), "one")?;
    let parent = volume(&repo, one)?;
    let (two, _) = back_up(&repo, &disks[1], Some(&parent), &store_options(), "two")?;
    assert!(restore(&repo, two)? == disks[1].bytes);
    Ok([one, two])
}

fn full() -> BackendError {
    BackendError::Full
}

#[test]
fn whichever_call_fails_the_repository_stays_clean_and_the_next_attempt_succeeds() {
    let disks = moments([distinct_chunks(1, 4), vec![0; CHUNK], noise(1, 99)].concat());
    let healthy = Arc::new(FaultBackend::new(MemoryBackend::new()));
    live(Arc::clone(&healthy) as Arc<dyn Backend>, &disks).unwrap();
    let calls = healthy.recorded().len();
    assert!(calls > 30, "{calls}");
    let mut failures = 0;
    for at in 0..calls {
        for fault in [Fault::Before(full()), Fault::After(full())] {
            let backend = Arc::new(FaultBackend::new(MemoryBackend::new()));
            backend.fail_after(at, fault.clone());
            let outcome = live(Arc::clone(&backend) as Arc<dyn Backend>, &disks);
            failures += usize::from(outcome.is_err());
            if let Err(error) = outcome {
                let told = error.is_full() || matches!(error, EngineError::List(_));
                assert!(told, "call {at}, {fault:?}: {error}");
            }
            backend.repair();
            let shared = Arc::clone(&backend) as Arc<dyn Backend>;
            if Repository::is_initialised(&*backend).unwrap() {
                assert_clean(&open(Arc::clone(&shared)).unwrap());
            }
            let [one, two] = live(Arc::clone(&shared), &disks).unwrap();
            let repo = open(shared).unwrap();
            assert_eq!(repo.list_snapshots().unwrap().len(), 2, "call {at}, {fault:?}");
            assert_restores(&repo, one, &disks[0].bytes);
            assert_restores(&repo, two, &disks[1].bytes);
            assert_clean(&repo);
        }
    }
    // Nothing but removing a lock while dropping may fail unheard.
    assert!(failures >= 2 * calls - 4, "{failures} of {}", 2 * calls);
}

#[test]
fn after_any_failed_put_restic_finds_nothing_wrong() {
    // More than one pack of data.
    let disks = moments(noise(1, 33 * CHUNK));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("healthy");
    let healthy = Arc::new(FaultBackend::new(LocalBackend::new(&path)));
    live(Arc::clone(&healthy) as Arc<dyn Backend>, &disks).unwrap();
    let calls = healthy.recorded();
    let is_put = |at: &usize| calls[*at].0 == Operation::Put;
    let puts: Vec<_> = (0..calls.len()).filter(is_put).collect();
    // Access, key, config; then for each backup its lock, packs, index and snapshot.
    assert!(puts.len() >= 12, "{calls:?}");
    for (number, at) in puts.iter().enumerate().skip(3) {
        let path = dir.path().join(number.to_string());
        let backend = Arc::new(FaultBackend::new(LocalBackend::new(&path)));
        backend.fail_after(*at, Fault::Before(full()));
        let failed = live(Arc::clone(&backend) as Arc<dyn Backend>, &disks);
        assert!(failed.is_err_and(|error| error.is_full()));
        restic(&path, &["check", "--read-data"]);
    }
}

#[test]
fn a_store_that_breaks_down_in_the_middle_is_reported_as_unreachable() {
    let disks = moments(distinct_chunks(1, 4));
    let backend = Arc::new(FaultBackend::new(MemoryBackend::new()));
    let shared = Arc::clone(&backend) as Arc<dyn Backend>;
    let [one, _] = live(Arc::clone(&shared), &disks).unwrap();
    let repo = open(Arc::clone(&shared)).unwrap();
    backend.break_down();
    let failed = back_up(&repo, &disks[0], None, &store_options(), "three").unwrap_err();
    assert!(failed.is_unreachable() && failed.is_retryable(), "{failed}");
    assert!(restore(&repo, one).unwrap_err().is_unreachable());
    assert!(Repository::open(Arc::clone(&shared), &password()).unwrap_err().is_unreachable());
    backend.repair();
    assert_restores(&repo, one, &disks[0].bytes);
}

/// Stock restic needs the zero blobs of a list, though we restore zeroes without them.
#[test]
fn an_unchanged_list_whose_zero_blob_is_not_sound_is_stored_anew() {
    let backend = Arc::new(MemoryBackend::new());
    let repo = create(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let bytes = [distinct_chunks(1, 2), vec![0; CHUNK], noise(2, 50)].concat();
    let (one, _) = back_up(&repo, &Disk::new(bytes.clone()), None, &store_options(), "x").unwrap();
    let parent = volume(&repo, one).unwrap();
    let packs = || backend.list(ObjectKind::Pack).unwrap().len();
    let unchanged =
        || back_up(&repo, &Disk::unchanged(bytes.clone()), Some(&parent), &store_options(), "x");
    let before = packs();
    unchanged().unwrap();
    assert_eq!(packs(), before, "nothing is stored while all of it is sound");

    let zero = BlobId::from_str("07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541");
    for listed in backend.list(ObjectKind::Pack).unwrap() {
        let ObjectName::Pack(pack) = listed.name else { continue };
        let blobs = Some(vec![zero.clone().unwrap()]);
        let damage = PackDamage { pack, blobs, whole: false, what: "flipped".into() };
        repo.record_damage(&damage).unwrap();
    }
    let (two, stored) = unchanged().unwrap();
    assert_eq!(stored.new_chunks, 0);
    assert_eq!(packs(), before + 1, "the zero blob alone");
    assert_restores(&repo, two, &bytes);
    unchanged().unwrap();
    assert_eq!(packs(), before + 1, "once");
}
