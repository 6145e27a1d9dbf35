//! Sessions: who may write, what becomes durable when, what a repeated call does.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use kedge_engine::{
    Backend, CancelFlag, CreateOptions, EngineError, Gate, KdfCost, LocalBackend, MemoryBackend,
    NoProgress, ObjectKind, ObjectName, OpenGate, Password, Repository, Source, Stopped,
    StoreOptions,
    layer::{FaultBackend, Operation},
};

use crate::support::{
    Disk, KIB, Repo, Target, assert_clean, assert_restores, at_secs, back_up, begin, create,
    distinct_chunks, in_memory, meta, now, open, read_options, store_options, threads, volume,
};

const CHUNK: usize = 512 * KIB;

fn locks(backend: &dyn Backend) -> usize {
    backend.list(ObjectKind::Lock).unwrap().len()
}

#[test]
fn a_repository_says_what_is_wrong_with_opening_it() {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    let reopen = |password: &str| Repository::open(Arc::clone(&backend), &Password::new(password));
    assert!(!Repository::is_initialised(&*backend).unwrap());
    assert!(matches!(reopen("x"), Err(EngineError::NotARepository)));
    let repo = create(Arc::clone(&backend)).unwrap();
    assert!(Repository::is_initialised(&*backend).unwrap());
    assert!(matches!(create(Arc::clone(&backend)), Err(EngineError::AlreadyExists)));
    assert!(matches!(reopen("wrong"), Err(EngineError::WrongPassword)));
    assert_eq!(reopen(crate::support::PASSWORD).unwrap().id(), repo.id());

    assert_eq!(Repository::find_access(&*backend).unwrap().unwrap(), b"{}");
    repo.put_access(b"{\"new\":1}").unwrap();
    assert_eq!(Repository::find_access(&*backend).unwrap().unwrap(), b"{\"new\":1}");
}

#[test]
fn a_local_repository_that_is_gone_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    let backend: Arc<dyn Backend> = Arc::new(LocalBackend::new(&root));
    let unreachable = |error: EngineError| assert!(error.is_unreachable(), "{error}");
    unreachable(Repository::is_initialised(&*backend).unwrap_err());
    let repo = create(Arc::clone(&backend)).unwrap();
    let disk = Disk::new(distinct_chunks(1, 2));
    let (id, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    let view = volume(&repo, id).unwrap();
    std::fs::rename(&root, dir.path().join("moved")).unwrap();
    unreachable(back_up(&repo, &disk, None, &store_options(), "two").unwrap_err());
    unreachable(repo.list_snapshots().unwrap_err());
    unreachable(repo.snapshot_exists(id).unwrap_err());
    unreachable(repo.get_snapshot(id).unwrap_err());
    unreachable(open(Arc::clone(&backend)).unwrap_err());
    let target = Target::new(2 * CHUNK);
    let gate = OpenGate;
    let restored = repo.restore_volume(&view, &target, &gate, &read_options(), &NoProgress);
    unreachable(restored.unwrap_err());
    assert!(!root.exists());
    std::fs::rename(dir.path().join("moved"), &root).unwrap();
    assert_restores(&repo, id, &disk.bytes);
}

#[test]
fn a_config_lost_beside_data_is_not_overwritten() {
    let (backend, repo) = in_memory();
    back_up(&repo, &Disk::new(distinct_chunks(1, 1)), None, &store_options(), "one").unwrap();
    backend.delete(&ObjectName::Config).unwrap();
    let again = create(Arc::clone(&backend) as Arc<dyn Backend>);
    assert!(matches!(again, Err(EngineError::Damaged { .. })), "{again:?}");
    assert_eq!(backend.list(ObjectKind::Key).unwrap().len(), 1);
}

#[test]
fn a_session_shows_in_its_lock_until_it_ends_in_whatever_way() {
    let (backend, repo) = in_memory();
    let session = begin(&repo).unwrap();
    assert_eq!(locks(&*backend), 1);
    session.refresh_lock(at_secs(300)).unwrap();
    assert_eq!(locks(&*backend), 1);
    session.close().unwrap();
    assert_eq!(locks(&*backend), 0);
    drop(begin(&repo).unwrap());
    assert_eq!(locks(&*backend), 0);

    // A process that dies leaves its lock; it is removed by name.
    std::mem::forget(begin(&repo).unwrap());
    let other =
        repo.begin_session("session-2", now(), Arc::new(OpenGate), CancelFlag::new()).unwrap();
    assert_eq!(locks(&*backend), 2);
    assert_eq!(repo.remove_session_locks("session-1").unwrap(), 1);
    assert_eq!(repo.remove_session_locks("session-1").unwrap(), 0);
    other.refresh_lock(at_secs(1)).unwrap();
}

/// Such a lock may be an exclusive one, so work waits; our own dead locks still go.
#[test]
fn a_lock_nobody_can_read_makes_work_wait_and_keeps_no_dead_lock_alive() {
    let (backend, repo) = in_memory();
    std::mem::forget(begin(&repo).unwrap());
    let torn = ObjectName::parse(ObjectKind::Lock, &"ab".repeat(32)).unwrap();
    backend.put(&torn, b"").unwrap();

    let refused = begin(&repo).map(drop);
    assert!(matches!(refused, Err(EngineError::Locked { .. })), "{refused:?}");
    assert!(refused.unwrap_err().is_retryable());
    assert_eq!(repo.list_sessions().unwrap().len(), 1);
    assert_eq!(repo.remove_session_locks("session-1").unwrap(), 1);
    assert_eq!(locks(&*backend), 1, "the torn one is not ours to remove");
}

#[test]
fn a_session_whose_lock_was_removed_writes_no_snapshot() {
    let (backend, repo) = in_memory();
    let disk = Disk::new(distinct_chunks(1, 1));
    let session = begin(&repo).unwrap();
    let stored = session.store_volume(&disk, None, &store_options(), &NoProgress).unwrap();
    let tree = session.finish_tree(&[("vol", stored.subtree)], &[], now()).unwrap();
    for lock in backend.list(ObjectKind::Lock).unwrap() {
        backend.delete(&lock.name).unwrap();
    }
    let written = session.write_snapshot(&meta(tree, "one"));
    assert!(matches!(written, Err(EngineError::LockLost)), "{written:?}");
    let stored = session.store_volume(&disk, None, &store_options(), &NoProgress);
    assert!(matches!(stored, Err(EngineError::LockLost)), "{stored:?}");
    assert!(matches!(session.refresh_lock(now()), Err(EngineError::LockLost)));
    assert_eq!(repo.list_snapshots().unwrap(), []);
}

#[test]
fn a_repeated_snapshot_is_the_same_snapshot() {
    let (_backend, repo) = in_memory();
    let disk = Disk::new(distinct_chunks(1, 1));
    let (one, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    assert_eq!(back_up(&repo, &disk, None, &store_options(), "one").unwrap().0, one);
    let (two, _) = back_up(&repo, &disk, None, &store_options(), "two").unwrap();
    assert_ne!(two, one);
    let ids = |tag| -> Vec<_> {
        repo.find_snapshots_by_tag(tag).unwrap().iter().map(|snapshot| snapshot.id).collect()
    };
    assert_eq!(ids("one"), [one]);
    assert_eq!(ids("two"), [two]);
    assert_eq!(ids("more").len(), 2);

    let snapshot = repo.get_snapshot(one).unwrap();
    assert_eq!(snapshot.tags, ["one", "more"]);
    assert_eq!((snapshot.time, snapshot.hostname.as_str()), (now(), "server"));
    assert!(repo.snapshot_exists(one).unwrap());
    repo.delete_snapshot(one).unwrap();
    repo.delete_snapshot(one).unwrap();
    assert!(!repo.snapshot_exists(one).unwrap());
    assert!(matches!(repo.get_snapshot(one), Err(EngineError::SnapshotNotFound(id)) if id == one));
    assert_eq!(repo.list_snapshots().unwrap().len(), 1);
}

#[test]
fn a_tree_finished_by_an_earlier_session_gets_its_snapshot_only_while_it_is_whole() {
    let (backend, repo) = in_memory();
    let disk = Disk::new(distinct_chunks(1, 1));
    let session = begin(&repo).unwrap();
    let stored = session.store_volume(&disk, None, &store_options(), &NoProgress).unwrap();
    let tree = session.finish_tree(&[("vol", stored.subtree)], &[], now()).unwrap();
    drop(session);
    // Another process goes on.
    let repo = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let one = begin(&repo).unwrap().write_snapshot(&meta(tree, "one")).unwrap();
    assert_restores(&repo, one, &disk.bytes);
    // Without a snapshot it might have been pruned meanwhile.
    repo.delete_snapshot(one).unwrap();
    for index in backend.list(ObjectKind::Index).unwrap() {
        backend.delete(&index.name).unwrap();
    }
    let written = begin(&repo).unwrap().write_snapshot(&meta(tree, "one"));
    assert!(matches!(written, Err(EngineError::Damaged { .. })), "{written:?}");
    assert_eq!(repo.list_snapshots().unwrap(), []);
}

#[test]
fn blobs_of_another_unfinished_session_are_no_ground_to_skip_ours() {
    let (_backend, repo) = in_memory();
    let disk = Disk::new(distinct_chunks(1, 40));
    let other =
        repo.begin_session("session-2", now(), Arc::new(OpenGate), CancelFlag::new()).unwrap();
    other.store_volume(&disk, None, &store_options(), &NoProgress).unwrap();
    let (id, stored) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    assert_eq!(stored.new_chunks, 40);
    drop(other);
    assert_restores(&repo, id, &disk.bytes);
    assert_clean(&repo);
}

#[test]
fn small_changes_of_many_volumes_share_a_pack() {
    let (backend, repo) = in_memory();
    let session = begin(&repo).unwrap();
    let mut volumes = Vec::new();
    for seed in 0..6 {
        let disk = Disk::new(distinct_chunks(seed, 1));
        let options = StoreOptions { threads: threads(4), ..store_options() };
        volumes.push(session.store_volume(&disk, None, &options, &NoProgress).unwrap().subtree);
    }
    let names = ["a", "b", "c", "d", "e", "f"];
    let volumes: Vec<_> = names.into_iter().zip(volumes).collect();
    session.finish_tree(&volumes, &[("server.json", b"{}")], now()).unwrap();
    // One of data, one of trees.
    assert_eq!(backend.list(ObjectKind::Pack).unwrap().len(), 2);
    assert_eq!(backend.list(ObjectKind::Index).unwrap().len(), 1);
}

#[test]
fn names_that_are_no_file_names_or_given_twice_are_refused() {
    let (_backend, repo) = in_memory();
    let session = begin(&repo).unwrap();
    let disk = Disk::new(vec![1; 10]);
    let subtree = session.store_volume(&disk, None, &store_options(), &NoProgress).unwrap().subtree;
    let refused = |volumes: &[(&str, _)], files: &[(&str, &[u8])]| {
        let finished = session.finish_tree(volumes, files, now());
        assert!(matches!(finished, Err(EngineError::InvalidName { .. })), "{finished:?}");
    };
    for name in ["", ".", "..", "../x", "/etc/passwd", "a\0", "a\nb", "\u{1b}[31m", "a\\b"] {
        refused(&[(name, subtree)], &[]);
        refused(&[], &[(name, b"x")]);
    }
    refused(&[("a", subtree), ("a", subtree)], &[]);
    refused(&[("a", subtree)], &[("a", b"x")]);
    let stranger = "ab".repeat(32).parse().unwrap();
    let finished = session.finish_tree(&[("a", stranger)], &[], now());
    assert!(matches!(finished, Err(EngineError::Damaged { .. })), "{finished:?}");
}

/// Opens so many times, then never again.
#[derive(Debug)]
struct ClosingGate {
    left: AtomicUsize,
    backend: Arc<FaultBackend<MemoryBackend>>,
    /// Calls of the backend when the gate closed.
    closed_at: AtomicUsize,
}

impl Gate for ClosingGate {
    fn may_write(&self) -> Result<(), Stopped> {
        let took = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if took.is_ok() {
            return Ok(());
        }
        let calls = self.backend.recorded().len();
        let _ = self.closed_at.compare_exchange(0, calls, Ordering::SeqCst, Ordering::SeqCst);
        Err(Stopped { why: "the lease is over".into() })
    }
}

#[test]
fn nothing_is_put_after_the_gate_closed_wherever_that_happens() {
    let disk = Disk::new(distinct_chunks(1, 12));
    let options = StoreOptions { threads: threads(1), ..store_options() };
    let run = |repo: &Repo, gate: Arc<ClosingGate>| {
        let session = repo.begin_session("session-1", now(), gate, CancelFlag::new())?;
        let stored = session.store_volume(&disk, None, &options, &NoProgress)?;
        session.refresh_lock(at_secs(1))?;
        let tree = session.finish_tree(&[("vol", stored.subtree)], &[], now())?;
        session.write_snapshot(&meta(tree, "one"))
    };
    let mut stopped = 0;
    loop {
        let backend = Arc::new(FaultBackend::new(MemoryBackend::new()));
        let repo = create(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
        let gate = Arc::new(ClosingGate {
            left: AtomicUsize::new(stopped),
            backend: Arc::clone(&backend),
            closed_at: AtomicUsize::new(0),
        });
        match run(&repo, Arc::clone(&gate)) {
            Ok(_) => break,
            Err(EngineError::Stopped(_)) => stopped += 1,
            Err(error) => panic!("{error}"),
        }
        let calls = backend.recorded();
        let after = &calls[gate.closed_at.load(Ordering::SeqCst)..];
        assert!(after.iter().all(|(operation, _)| *operation != Operation::Put), "{after:?}");
        assert_eq!(locks(&*backend), 0);
        assert_eq!(repo.list_snapshots().unwrap(), []);
        assert_clean(&repo);
    }
    assert!(stopped > 16, "every chunk and every put asks: {stopped}");
}

#[test]
fn a_restore_writes_nothing_after_the_gate_closed_or_the_flag_was_raised() {
    struct Closed;
    impl Gate for Closed {
        fn may_write(&self) -> Result<(), Stopped> {
            Err(Stopped { why: "the lease is over".into() })
        }
    }
    let (_backend, repo) = in_memory();
    let disk = Disk::new([distinct_chunks(1, 4), vec![0; CHUNK]].concat());
    let (id, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    let view = volume(&repo, id).unwrap();
    let target = Target::new(disk.bytes.len());
    let stopped = repo.restore_volume(&view, &target, &Closed, &read_options(), &NoProgress);
    assert!(matches!(stopped, Err(EngineError::Stopped(_))), "{stopped:?}");
    let options = read_options();
    options.cancel.cancel();
    let cancelled = repo.restore_volume(&view, &target, &OpenGate, &options, &NoProgress);
    assert!(matches!(cancelled, Err(EngineError::Cancelled)), "{cancelled:?}");
    let cancelled = repo.compare_volume(&view, &disk, &options, &NoProgress);
    assert!(matches!(cancelled, Err(EngineError::Cancelled)), "{cancelled:?}");
    assert!(target.written.lock().unwrap().is_empty());
}

#[test]
fn cancelling_ends_a_backup_at_the_next_chunk() {
    struct Cancelling<'a>(&'a Disk, CancelFlag);
    impl Source for Cancelling<'_> {
        fn size_bytes(&self) -> u64 {
            self.0.size_bytes()
        }
        fn next_extent(
            &self,
            offset: u64,
        ) -> Result<kedge_engine::Extent, kedge_engine::SourceError> {
            self.0.next_extent(offset)
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), kedge_engine::SourceError> {
            self.1.cancel();
            self.0.read_at(offset, buf)
        }
    }
    let (backend, repo) = in_memory();
    let disk = Disk::new(distinct_chunks(1, 40));
    let cancel = CancelFlag::new();
    let session =
        repo.begin_session("session-1", now(), Arc::new(OpenGate), cancel.clone()).unwrap();
    let source = Cancelling(&disk, cancel);
    let cancelled = session.store_volume(&source, None, &store_options(), &NoProgress);
    assert!(matches!(cancelled, Err(EngineError::Cancelled)), "{cancelled:?}");
    assert!(disk.reads.lock().unwrap().len() <= store_options().threads.get());
    assert!(matches!(session.finish_tree(&[], &[], now()), Err(EngineError::Cancelled)));
    drop(session);
    assert_eq!(locks(&*backend), 0);
    assert_eq!(repo.list_snapshots().unwrap(), []);
}

#[test]
fn a_half_made_repository_of_another_password_is_made_anew() {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    create(Arc::clone(&backend)).unwrap();
    // A crash before the config: keys lie there and nothing else.
    backend.delete(&ObjectName::Config).unwrap();
    let password = Password::random().unwrap();
    let options =
        CreateOptions { password: &password, kdf: KdfCost::CHEAP, created_at: now(), access: None };
    Repository::create(Arc::clone(&backend), &options).unwrap();
    Repository::open(Arc::clone(&backend), &password).unwrap();
    assert_eq!(backend.list(ObjectKind::Key).unwrap().len(), 1);
}

/// A directory of objects that was replaced by something else holds no answer.
#[test]
fn what_is_no_directory_of_objects_is_an_error_and_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    let backend: Arc<dyn Backend> = Arc::new(LocalBackend::new(&root));
    let repo = create(backend).unwrap();
    let disk = Disk::new(distinct_chunks(1, 1));
    let (id, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    std::fs::rename(root.join("snapshots"), root.join("elsewhere")).unwrap();
    std::fs::write(root.join("snapshots"), b"").unwrap();

    assert!(repo.snapshot_exists(id).is_err());
    assert!(repo.delete_snapshot(id).is_err());
    assert!(repo.list_snapshots().is_err());
}
