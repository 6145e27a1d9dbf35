//! Prune: what is removed, what must wait, what is kept whatever happens.

use std::{collections::HashSet, sync::Arc};

use kedge_engine::{
    Backend, BackendError, CancelFlag, EngineError, ForeignLocks, Freed, MemoryBackend, NoProgress,
    ObjectKind, ObjectName, OpenGate, PackDamage, PruneOptions, PruneReport, SnapshotId,
    layer::{Fault, FaultBackend},
};

use crate::support::{
    Disk, KIB, Repo, assert_clean, assert_restores, at_secs, back_up, begin, create,
    distinct_chunks, in_memory, meta, noise, now, open, store_options,
};

const CHUNK: usize = 512 * KIB;

pub(crate) fn nobody(_: &str) -> bool {
    false
}

fn everybody(_: &str) -> bool {
    true
}

pub(crate) fn options<'a>() -> PruneOptions<'a> {
    PruneOptions {
        name: "prune-1",
        unused_percent_max: 0,
        repack_bytes_max: u64::MAX,
        known_snapshots: &[],
        keep_trees: &[],
        is_alive: &everybody,
        foreign_locks: ForeignLocks::Honour,
        now: &now,
    }
}

fn prune_with(repo: &Repo, options: &PruneOptions<'_>) -> Result<PruneReport, EngineError> {
    repo.prune(options, &OpenGate, &CancelFlag::new(), &NoProgress)
}

pub(crate) fn prune(repo: &Repo) -> PruneReport {
    prune_with(repo, &options()).unwrap()
}

fn packs(backend: &dyn Backend) -> HashSet<ObjectName> {
    backend.list(ObjectKind::Pack).unwrap().into_iter().map(|listed| listed.name).collect()
}

fn stored_bytes(backend: &dyn Backend) -> u64 {
    backend.list(ObjectKind::Pack).unwrap().iter().map(|listed| listed.size_bytes).sum()
}

/// Noise, so that what is stored is as large as what is there.
fn disk(parts: &[u64]) -> Disk {
    Disk::new(parts.iter().flat_map(|seed| noise(*seed, CHUNK)).collect())
}

fn back_up_as(repo: &Repo, parts: &[u64], tag: &str) -> (SnapshotId, Vec<u8>) {
    let disk = disk(parts);
    let (id, _) = back_up(repo, &disk, None, &store_options(), tag).unwrap();
    (id, disk.bytes)
}

fn put_foreign_lock(backend: &dyn Backend) -> ObjectName {
    // Nobody can tell whose it is.
    let name = ObjectName::parse(ObjectKind::Lock, &"ab".repeat(32)).unwrap();
    backend.put(&name, b"of another key").unwrap();
    name
}

#[test]
fn what_only_deleted_snapshots_needed_goes_and_the_rest_restores() {
    let (backend, repo) = in_memory();
    let (one, _) = back_up_as(&repo, &[1, 2, 3], "one");
    let (two, bytes) = back_up_as(&repo, &[3, 4], "two");
    assert_eq!(prune(&repo).removed_packs, 0);
    let before = stored_bytes(&*backend);
    let freed = repo.what_deleting_frees(&[one], &CancelFlag::new()).unwrap();
    repo.delete_snapshot(one).unwrap();
    let report = prune(&repo);
    let after = stored_bytes(&*backend);
    // Two chunks of three, their fingerprints, two trees, the file beside the volume.
    assert_eq!(freed.blobs, 6);
    assert!(before - after >= freed.bytes && before - after < freed.bytes + 2000, "{freed:?}");
    assert_eq!(report.unused_bytes, 0);
    assert_eq!(report.copied_blobs, 1, "the chunk both have");
    for repo in [&repo, &open(backend as Arc<dyn Backend>).unwrap()] {
        assert_restores(repo, two, &bytes);
        assert_clean(repo);
    }
    let again = prune(&repo);
    assert_eq!((again.condemned_packs, again.removed_packs, again.waiting_packs), (0, 0, 0));
}

#[test]
fn a_plan_says_what_the_run_then_does_and_writes_nothing() {
    let (backend, repo) = in_memory();
    let (one, _) = back_up_as(&repo, &[1, 2, 3], "one");
    back_up_as(&repo, &[3, 4], "two");
    repo.delete_snapshot(one).unwrap();
    let before = packs(&*backend);
    let planned = repo.plan_prune(&options(), &CancelFlag::new()).unwrap();
    assert_eq!(packs(&*backend), before);
    assert_eq!(backend.list(ObjectKind::Mark).unwrap(), []);
    assert_eq!(backend.list(ObjectKind::Lock).unwrap(), []);
    let done = prune(&repo);
    assert_eq!(planned.condemned_packs, done.condemned_packs);
    assert_eq!(planned.condemned_bytes, done.removed_bytes);
    assert_eq!(planned.copied_bytes, done.copied_bytes);
    assert_eq!(done.waiting_packs, 0);
}

#[test]
fn a_session_that_began_before_the_mark_is_waited_for_and_what_it_took_for_stored_is_copied() {
    let (backend, repo) = in_memory();
    let (one, bytes) = back_up_as(&repo, &[1, 2], "one");
    let session = begin(&repo).unwrap();
    repo.delete_snapshot(one).unwrap();
    // Another process prunes.
    let other = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let report = prune(&other);
    assert_eq!(report.waits_for, ["session-1"]);
    assert_eq!(report.removed_packs, 0);
    assert_eq!(report.waiting_packs, report.condemned_packs);

    let disk = Disk::new(bytes.clone());
    let stored = session.store_volume(&disk, None, &store_options(), &NoProgress).unwrap();
    assert_eq!(stored.new_chunks, 0);
    let tree = session.finish_tree(&[("vol", stored.subtree)], &[], now()).unwrap();
    let kept = session.write_snapshot(&meta(tree, "kept")).unwrap();
    let report = prune(&other);
    assert_eq!((report.copied_blobs, report.removed_packs), (4, 0), "chunks, prints, tree");
    session.close().unwrap();

    let report = prune(&other);
    assert!(report.removed_packs > 0, "{report:?}");
    assert_eq!(report.waiting_packs, 0);
    assert_restores(&repo, kept, &bytes);
    assert_clean(&repo);
}

#[test]
fn a_session_that_begins_after_the_mark_stores_condemned_chunks_anew() {
    let (backend, repo) = in_memory();
    let (one, bytes) = back_up_as(&repo, &[1, 2], "one");
    let earlier =
        repo.begin_session("earlier", now(), Arc::new(OpenGate), CancelFlag::new()).unwrap();
    repo.delete_snapshot(one).unwrap();
    assert_eq!(prune(&repo).waits_for, ["earlier"]);
    let disk = Disk::new(bytes.clone());
    let other = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let (kept, stored) = back_up(&other, &disk, None, &store_options(), "kept").unwrap();
    assert_eq!(stored.new_chunks, 2);
    earlier.close().unwrap();
    let report = prune(&repo);
    assert!(report.removed_packs > 0);
    assert_eq!(report.copied_blobs, 0);
    assert_restores(&other, kept, &bytes);
    assert_clean(&other);
}

/// It sleeps between its last look at its lock and the writing of its snapshot.
#[test]
fn a_session_given_up_loses_its_lock_before_anything_it_needs_goes_and_leaves_no_snapshot() {
    let (backend, repo) = in_memory();
    let (one, bytes) = back_up_as(&repo, &[1, 2], "one");
    let session = begin(&repo).unwrap();
    let disk = Disk::new(bytes);
    let stored = session.store_volume(&disk, None, &store_options(), &NoProgress).unwrap();
    let tree = session.finish_tree(&[("vol", stored.subtree)], &[], now()).unwrap();
    repo.delete_snapshot(one).unwrap();
    let other = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let report = prune_with(&other, &PruneOptions { is_alive: &nobody, ..options() }).unwrap();
    assert!(report.removed_packs > 0 && report.waits_for.is_empty(), "{report:?}");
    let late = session.write_snapshot(&meta(tree, "late"));
    assert!(matches!(late, Err(EngineError::LockLost)), "{late:?}");
    let renewed = session.refresh_lock(at_secs(1));
    assert!(matches!(renewed, Err(EngineError::LockLost)), "{renewed:?}");
    assert_eq!(repo.list_snapshots().unwrap(), []);
    assert_clean(&other);
}

#[test]
fn packs_in_no_index_object_go_once_nobody_can_list_them_any_more() {
    let (backend, repo) = in_memory();
    let (_, bytes) = back_up_as(&repo, &[1], "one");
    let stray = ObjectName::parse(ObjectKind::Pack, &"cd".repeat(32)).unwrap();
    backend.put(&stray, b"leftover").unwrap();
    let session = begin(&repo).unwrap();
    let report = prune(&repo);
    assert_eq!((report.suspect_packs, report.condemned_packs), (1, 0));
    assert_eq!(prune(&repo).removed_packs, 0, "the session may yet list it");
    session.close().unwrap();
    let session =
        repo.begin_session("later", now(), Arc::new(OpenGate), CancelFlag::new()).unwrap();
    let report = prune(&repo);
    assert_eq!((report.condemned_packs, report.removed_packs), (1, 0));
    session.close().unwrap();
    assert_eq!(prune(&repo).removed_packs, 1);
    assert!(!packs(&*backend).contains(&stray));
    backend.put(&stray, b"leftover").unwrap();
    assert_eq!(prune(&repo).removed_packs, 1, "what is gone stays gone");
    let (kept, _) = back_up_as(&repo, &[1], "two");
    assert_restores(&repo, kept, &bytes);
}

#[test]
fn a_lock_of_another_program_defers_the_removal_until_it_is_gone_or_the_operator_says_so() {
    for is_removed_by_hand in [true, false] {
        let (backend, repo) = in_memory();
        let (one, _) = back_up_as(&repo, &[1], "one");
        let (two, bytes) = back_up_as(&repo, &[2], "two");
        repo.delete_snapshot(one).unwrap();
        let lock = put_foreign_lock(&*backend);
        let refused = prune_with(&repo, &options());
        assert!(matches!(refused, Err(EngineError::Locked { .. })), "{refused:?}");
        let report = if is_removed_by_hand {
            backend.delete(&lock).unwrap();
            prune(&repo)
        } else {
            let foreign_locks = ForeignLocks::Remove;
            prune_with(&repo, &PruneOptions { foreign_locks, ..options() }).unwrap()
        };
        assert!(report.removed_packs > 0);
        assert_restores(&repo, two, &bytes);
        assert_eq!(backend.list(ObjectKind::Lock).unwrap(), []);
    }
}

#[test]
fn damaged_blobs_are_stored_anew_and_their_pack_goes_when_nothing_in_it_is_missed() {
    let (backend, repo) = in_memory();
    let (one, bytes) = back_up_as(&repo, &[1, 2], "one");
    let pack =
        packs(&*backend).into_iter().max_by_key(|name| backend.find_size(name).unwrap()).unwrap();
    let ObjectName::Pack(id) = pack else { unreachable!() };
    let mut spoiled = backend.get(&pack, u64::MAX).unwrap();
    spoiled[100] ^= 1;
    backend.put(&pack, &spoiled).unwrap();
    let first = crate::support::volume(&repo, one).unwrap().blobs().iter().next().unwrap();
    let second = crate::support::volume(&repo, one).unwrap().blobs().iter().nth(1).unwrap();
    // Which of the two the byte is in depends on which thread was first.
    for blob in [first, second] {
        let what = "flipped".into();
        let damage = PackDamage { pack: id, blobs: Some(vec![blob]), whole: false, what };
        repo.record_damage(&damage).unwrap();
        repo.record_damage(&damage).unwrap();
    }
    assert_eq!(repo.list_damage().unwrap().len(), 2);
    let report = prune(&repo);
    assert_eq!((report.lost_blobs, report.condemned_packs), (2, 0), "kept, for what it is worth");

    let fresh = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let disk = Disk::new(bytes.clone());
    let (two, stored) = back_up(&fresh, &disk, None, &store_options(), "two").unwrap();
    assert_eq!(stored.new_chunks, 2, "neither is deduplicated against");
    let report = prune(&fresh);
    assert_eq!((report.lost_blobs, report.waiting_packs), (0, 0));
    assert!(!packs(&*backend).contains(&pack));
    assert_eq!(fresh.list_damage().unwrap(), []);
    for id in [one, two] {
        assert_restores(&fresh, id, &bytes);
    }
    assert_clean(&fresh);
}

/// Either may be the one that went bad since, and nobody has looked.
#[test]
fn of_two_copies_none_goes_before_the_other_was_read() {
    for spoilt in 0..3 {
        let (backend, repo) = in_memory();
        let (one, bytes) = back_up_as(&repo, &[1, 2], "one");
        let large = |backend: &MemoryBackend| -> Vec<ObjectName> {
            let is_large = |name: &ObjectName| {
                backend.find_size(name).unwrap().is_some_and(|size| size > CHUNK as u64)
            };
            packs(backend).into_iter().filter(is_large).collect()
        };
        let [ObjectName::Pack(first)] = large(&backend)[..] else { panic!("one pack of data") };
        // Taken for damaged for a while.
        let what = "missing".to_owned();
        let damage = PackDamage { pack: first, blobs: None, whole: true, what };
        repo.record_damage(&damage).unwrap();
        let (two, _) = back_up_as(&repo, &[1, 2], "two");
        for mark in backend.list(ObjectKind::Mark).unwrap() {
            backend.delete(&mark.name).unwrap();
        }
        let mut copies = large(&backend);
        copies.sort_unstable_by_key(|name| *name != ObjectName::Pack(first));
        assert_eq!(copies.len(), 2);
        if let Some(spoilt) = copies.get(spoilt) {
            let mut bad = backend.get(spoilt, u64::MAX).unwrap();
            bad[100] ^= 1;
            backend.put(spoilt, &bad).unwrap();
        }
        let fresh = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
        prune(&fresh);
        prune(&fresh);
        for id in [one, two] {
            assert_restores(&fresh, id, &bytes);
        }
        assert_eq!(large(&backend).len(), 1, "of two sound copies one goes, of a bad one all does");
        assert_clean(&fresh);
    }
}

#[test]
fn damage_met_while_copying_is_recorded_and_its_pack_stays() {
    let (backend, repo) = in_memory();
    let (one, _) = back_up_as(&repo, &[1, 2], "one");
    let (_, bytes) = back_up_as(&repo, &[2], "two");
    let largest = |backend: &MemoryBackend| {
        packs(backend).into_iter().max_by_key(|name| backend.find_size(name).unwrap()).unwrap()
    };
    let pack = largest(&backend);
    let mut spoiled = backend.get(&pack, u64::MAX).unwrap();
    for at in [100, CHUNK + 100] {
        spoiled[at] ^= 1;
    }
    backend.put(&pack, &spoiled).unwrap();
    repo.delete_snapshot(one).unwrap();
    let report = prune(&repo);
    assert_eq!(report.found_damage.len(), 1, "{report:?}");
    assert!(packs(&*backend).contains(&pack));
    let fresh = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let (three, _) = back_up_as(&fresh, &[2], "three");
    assert!(prune(&fresh).removed_packs > 0);
    assert_restores(&fresh, three, &bytes);
    assert!(!packs(&*backend).contains(&pack));
    assert_clean(&fresh);
}

#[test]
fn nothing_is_removed_while_something_the_snapshots_need_cannot_be_read() {
    for kind in [ObjectKind::Index, ObjectKind::Snapshot, ObjectKind::Pack] {
        let (backend, repo) = in_memory();
        let (one, _) = back_up_as(&repo, &[1], "one");
        back_up_as(&repo, &[2], "two");
        repo.delete_snapshot(one).unwrap();
        let before = packs(&*backend);
        for listed in backend.list(kind).unwrap() {
            let name = listed.name;
            let mut bytes = backend.get(&name, u64::MAX).unwrap();
            backend.delete(&name).unwrap();
            if kind != ObjectKind::Pack {
                bytes.truncate(40);
                backend.put(&name, &bytes).unwrap();
            }
        }
        let fresh = open(Arc::clone(&backend) as Arc<dyn Backend>);
        let refused = fresh.and_then(|repo| prune_with(&repo, &options()).map(drop));
        assert!(matches!(refused, Err(EngineError::Damaged { .. })), "{kind:?} {refused:?}");
        if kind != ObjectKind::Pack {
            assert_eq!(packs(&*backend), before);
        }
    }
}

#[test]
fn what_a_known_snapshot_needs_is_kept_while_its_object_is_gone() {
    let backend = Arc::new(MemoryBackend::new());
    let repo = create(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let (one, bytes) = back_up_as(&repo, &[1], "one");
    let tree = repo.list_snapshots().unwrap()[0].tree;
    let object = backend.get(&ObjectName::Snapshot(one), u64::MAX).unwrap();
    repo.delete_snapshot(one).unwrap();
    let known = [(one, tree)];
    let kept = prune_with(&repo, &PruneOptions { known_snapshots: &known, ..options() }).unwrap();
    assert_eq!((kept.removed_packs, kept.condemned_packs), (0, 0));
    backend.put(&ObjectName::Snapshot(one), &object).unwrap();
    assert_restores(&repo, one, &bytes);
    repo.delete_snapshot(one).unwrap();
    assert_ne!(prune(&repo).removed_packs, 0, "nobody knows it any more");
}

#[test]
fn a_tree_that_is_to_be_kept_is_kept_and_its_snapshot_can_be_written_later() {
    let (backend, repo) = in_memory();
    let session = begin(&repo).unwrap();
    let disk = disk(&[1, 2]);
    let stored = session.store_volume(&disk, None, &store_options(), &NoProgress).unwrap();
    let tree = session.finish_tree(&[("vol", stored.subtree)], &[], now()).unwrap();
    session.close().unwrap();
    let keep = [tree];
    let report = prune_with(&repo, &PruneOptions { keep_trees: &keep, ..options() }).unwrap();
    assert_eq!(report.condemned_packs, 0);
    let fresh = open(backend as Arc<dyn Backend>).unwrap();
    let session = begin(&fresh).unwrap();
    let id = session.write_snapshot(&meta(tree, "late")).unwrap();
    session.close().unwrap();
    assert_restores(&fresh, id, &disk.bytes);
    // Without it, the tree is given up for good.
    fresh.delete_snapshot(id).unwrap();
    assert!(prune(&fresh).removed_packs > 0);
    let report = prune_with(&fresh, &PruneOptions { keep_trees: &keep, ..options() }).unwrap();
    assert_eq!(report.lost_blobs, 0);
    let session = begin(&fresh).unwrap();
    let refused = session.write_snapshot(&meta(tree, "too late"));
    assert!(matches!(refused, Err(EngineError::Damaged { .. })), "{refused:?}");
}

#[test]
fn deleting_frees_what_no_other_snapshot_needs_and_the_numbers_add_up() {
    let (backend, repo) = in_memory();
    let (one, _) = back_up_as(&repo, &[1, 2], "one");
    let (two, _) = back_up_as(&repo, &[1, 2], "two");
    let cancel = CancelFlag::new();
    let both = repo.what_deleting_frees(&[one, two], &cancel).unwrap();
    let first = repo.what_deleting_frees(&[one], &cancel).unwrap();
    assert!(first.blobs == 2 && first.bytes < 2000, "only root and file beside: {first:?}");
    let stats = repo.stats(&cancel).unwrap();
    assert_eq!((stats.snapshots, stats.used_blobs), (2, both.blobs));
    assert_eq!((stats.used_bytes, stats.unused_bytes), (both.bytes, 0));
    assert_eq!(stats.packs, both.packs);
    assert_eq!(stats.stored_bytes, stored_bytes(&*backend));
    assert!(stats.used_plain_bytes >= 2 * CHUNK as u64);
    assert_eq!(repo.what_deleting_frees(&[], &cancel).unwrap(), Freed::default());
    repo.delete_snapshot(one).unwrap();
    assert_eq!(repo.stats(&cancel).unwrap().unused_bytes, first.bytes);
}

#[test]
fn many_small_packs_become_one() {
    let (backend, repo) = in_memory();
    let mut kept = Vec::new();
    for at in 0..16 {
        let disk = Disk::new(distinct_chunks(at, 1));
        let tag = at.to_string();
        let (id, _) = back_up(&repo, &disk, None, &store_options(), &tag).unwrap();
        kept.push((id, disk.bytes));
    }
    assert!(packs(&*backend).len() >= 32);
    prune(&repo);
    assert_eq!(packs(&*backend).len(), 2);
    assert_eq!(backend.list(ObjectKind::Index).unwrap().len(), 1);
    for (id, bytes) in kept {
        assert_restores(&repo, id, &bytes);
    }
    assert_clean(&repo);
}

/// Every call of a prune fails once, before or after it was done; the next one goes on.
#[test]
fn a_prune_that_ends_anywhere_leaves_everything_restorable_and_the_next_one_finishes() {
    let mut calls = usize::MAX;
    for lost_answer in [false, true] {
        let mut at = 0;
        while at < calls {
            let backend = Arc::new(FaultBackend::new(MemoryBackend::new()));
            let repo = create(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
            let (one, _) = back_up_as(&repo, &[1, 2], "one");
            let (two, bytes) = back_up_as(&repo, &[2], "two");
            repo.delete_snapshot(one).unwrap();
            let start = backend.recorded().len();
            let error = BackendError::Unreachable { text: "died".into() };
            let fault = if lost_answer { Fault::After(error) } else { Fault::Before(error) };
            backend.fail_after(at, fault);
            let failed = prune_with(&repo, &options()).is_err();
            backend.repair();
            if !failed {
                calls = backend.recorded().len() - start;
            }
            let fresh = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
            assert_restores(&fresh, two, &bytes);
            prune_with(&fresh, &PruneOptions { is_alive: &nobody, ..options() }).unwrap();
            assert_restores(&fresh, two, &bytes);
            assert_clean(&fresh);
            assert_eq!(backend.list(ObjectKind::Lock).unwrap(), []);
            let stats = fresh.stats(&CancelFlag::new()).unwrap();
            assert_eq!((stats.condemned_packs, stats.unindexed_packs), (0, 0), "call {at}");
            assert_eq!(stats.unused_bytes, 0, "call {at}");
            at += 1;
        }
        calls = usize::MAX;
    }
}
