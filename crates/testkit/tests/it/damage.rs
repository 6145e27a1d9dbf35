//! Damage in a repository: whom it harms hears no, everybody else yes, and the check
//! never promises what the restore does not keep.

use std::time::Duration;

use kedge_cloud::sim::SimWrite;
use kedge_core::code::Code;
use kedge_core::evidence::Grade;
use kedge_core::ids::ProjectId;
use kedge_core::ports::Clock as _;
use kedge_core::proof::ProofKind;
use kedge_core::status::ItemStatus;
use kedge_engine::{Backend as _, BackendError, CancelFlag, ObjectKind, ObjectName};
use kedge_store::RestoreStatus;
use kedge_testkit::{Harness, PROJECT};

use crate::support::*;

const MIB: usize = 1 << 20;

fn assert_untouched(harness: &Harness) {
    let log = harness.cloud.write_log();
    let only_locks = log
        .iter()
        .all(|entry| matches!(entry.what, SimWrite::Locked { .. } | SimWrite::Unlocked { .. }));
    assert!(only_locks, "{log:?}");
}

#[tokio::test]
async fn damage_turns_a_verdict_at_once_and_a_backup_of_the_same_data_turns_it_back() {
    let harness = Harness::new().await;
    let other = harness.add_server(&[&disk(1, MIB)]);
    let other_item = back_up(&harness, &other).await;
    let content = disk(2, 3 * MIB);
    let server = harness.add_server(&[&content]);
    let harmed = back_up_and_damage(&harness, &server).await;

    assert_eq!(verdict(&harness, &harmed, &server).await, Err(Code::DataDamaged));
    assert_eq!(verdict(&harness, &other_item, &other).await, Ok(()));
    harness.cloud.clear_write_log();
    let refused = begin_restore(&harness, &harmed, straight(&harmed, &server)).await;
    assert_eq!(refused.unwrap_err().code(), Code::DataDamaged);
    assert_untouched(&harness);

    // Nothing changed on the disk; what is damaged is stored anew all the same.
    let healing = back_up(&harness, &server).await;
    assert_eq!(healing.status, ItemStatus::Available);
    scramble(&harness, &server);
    for item in [&harmed, &healing] {
        assert_eq!(verdict(&harness, item, &server).await, Ok(()));
        begin_restore(&harness, item, straight(item, &server)).await.unwrap();
        harness.run_jobs_to_their_end().await;
        assert!(contents(&harness, &server)[0] == content);
        scramble(&harness, &server);
    }
    assert_eq!(verify(&harness, &server.project_id).await.damaged.len(), 1, "it is still there");
}

#[tokio::test]
async fn damage_found_after_a_restore_was_admitted_stops_it_before_its_first_write() {
    let harness = Harness::new().await;
    let content = disk(3, 2 * MIB);
    let server = harness.add_server(&[&content]);
    let saved = back_up(&harness, &server).await;
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    let store = harness.places.store_of(&server.project_id);
    let packs = store.inner().list(ObjectKind::Pack).unwrap();
    let largest = packs.iter().max_by_key(|pack| pack.size_bytes).unwrap();
    damage(&harness, &server.project_id, &largest.name);
    verify(&harness, &server.project_id).await;
    harness.cloud.clear_write_log();
    harness.run_jobs_to_their_end().await;

    let ended = find_restore(&harness, &restore).await;
    assert_eq!(ended.status, RestoreStatus::Fail);
    assert!(ended.reason.contains("damaged"), "{}", ended.reason);
    assert_untouched(&harness);
    assert!(contents(&harness, &server)[0] == content);
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
}

/// Nobody had read the packs since: whoever meets it first says so.
#[tokio::test]
async fn damage_that_a_restore_meets_turns_the_verdict() {
    let harness = Harness::new().await;
    let other = harness.add_server(&[&disk(7, MIB)]);
    let other_item = back_up(&harness, &other).await;
    let content = disk(8, 2 * MIB);
    let server = harness.add_server(&[&content]);
    let (saved, packs) = back_up_alone(&harness, &server).await;
    damage(&harness, &server.project_id, &packs.largest);
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()), "nobody knows yet");
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    let ended = find_restore(&harness, &restore).await;
    assert_eq!(ended.status, RestoreStatus::Fail);
    assert!(ended.reason.contains("damaged"), "{}", ended.reason);
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
    assert_eq!(verdict(&harness, &other_item, &other).await, Ok(()));
    // The server is half written. A backup of another with the same data mends the backup.
    let twin = harness.add_server(&[&content]);
    back_up(&harness, &twin).await;
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
    begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert!(contents(&harness, &server)[0] == content);
}

/// No mark can say what it listed. Every list is walked from then on, and the watch finds out
/// whom it harms.
#[tokio::test]
async fn an_index_object_that_a_restore_misses_turns_the_verdict() {
    let harness = Harness::new().await;
    let other = harness.add_server(&[&disk(9, MIB)]);
    let other_item = back_up(&harness, &other).await;
    let store = harness.places.store_of(&ProjectId::new(PROJECT));
    let before = store.inner().list(ObjectKind::Index).unwrap();
    let server = harness.add_server(&[&disk(10, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let after = store.inner().list(ObjectKind::Index).unwrap();
    for lost in after.iter().filter(|listed| !before.contains(listed)) {
        store.inner().delete(&lost.name).unwrap();
    }
    let harness = harness.restarted().await;
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()), "nobody knows yet");
    harness.cloud.clear_write_log();
    begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert_untouched(&harness);
    for _ in 0..2 {
        assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
        assert_eq!(verdict(&harness, &other_item, &other).await, Ok(()));
        harness.app.watch(&CancelFlag::new()).await;
    }
}

/// Whatever happens to the watch, to the process, or to both.
#[tokio::test]
async fn what_a_restore_missed_stays_known_until_a_look_has_come_to_its_end() {
    for calls in 0.. {
        let harness = Harness::new().await;
        let server = harness.add_server(&[&disk(17, MIB)]);
        let saved = back_up(&harness, &server).await;
        let store = harness.places.store_of(&server.project_id);
        for lost in store.inner().list(ObjectKind::Index).unwrap() {
            store.inner().delete(&lost.name).unwrap();
        }
        let harness = harness.restarted().await;
        begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
        harness.run_jobs_to_their_end().await;
        let harness = if calls % 2 == 0 { harness.restarted().await } else { harness };
        assert!(verdict(&harness, &saved, &server).await.is_err(), "restarted");
        let how = [Interruption::Outage, Interruption::Hiccup][calls / 2 % 2];
        let is_cut = watch_interrupted(&harness, calls / 4, how).await;
        assert!(verdict(&harness, &saved, &server).await.is_err(), "cut after {calls}");
        let harness = harness.restarted().await;
        assert!(verdict(&harness, &saved, &server).await.is_err(), "restarted after {calls}");
        harness.app.watch(&CancelFlag::new()).await;
        assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
        if !is_cut {
            assert!(calls > 40, "it went through the watch");
            break;
        }
    }
}

/// The blob lies elsewhere as well: the restore is well, and what it met is known all the same.
#[tokio::test]
async fn a_bad_copy_that_a_restore_could_do_without_is_recorded() {
    let harness = Harness::new().await;
    let content = disk(18, 2 * MIB);
    let server = harness.add_server(&[&content]);
    let (saved, packs) = back_up_alone(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    let whole = store.inner().get(&packs.largest, u64::MAX).unwrap();
    damage(&harness, &server.project_id, &packs.largest);
    verify(&harness, &server.project_id).await;
    // Stored anew; then the first copy is well again, and so nobody's concern.
    let twin = harness.add_server(&[&content]);
    back_up(&harness, &twin).await;
    put_back(&harness, &server.project_id, &packs.largest, &whole);
    verify(&harness, &server.project_id).await;
    let repository = harness.app.repositories().get(&server.project_id).await.unwrap();
    assert_eq!(repository.list_damage().unwrap(), []);
    let mut packs: Vec<_> = store.inner().list(ObjectKind::Pack).unwrap();
    packs.sort_unstable_by_key(|pack| pack.size_bytes);
    // Whichever of the two a reader prefers.
    for copy in packs.iter().rev().take(2) {
        let whole = store.inner().get(&copy.name, u64::MAX).unwrap();
        damage(&harness, &server.project_id, &copy.name);
        scramble(&harness, &server);
        begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
        harness.run_jobs_to_their_end().await;
        assert!(contents(&harness, &server)[0] == content);
        assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
        let known = repository.list_damage().unwrap();
        if let [damage] = &known[..] {
            assert_eq!(ObjectName::Pack(damage.pack), copy.name);
            return;
        }
        assert_eq!(known, [], "it was not read");
        put_back(&harness, &server.project_id, &copy.name, &whole);
    }
    panic!("a restore reads one of the copies");
}

/// Verdicts walk because of another's damage, and meet it themselves.
#[tokio::test]
async fn what_a_verdict_met_is_forgotten_when_it_is_well_again() {
    let harness = Harness::new().await;
    let other = harness.add_server(&[&disk(21, MIB)]);
    let server = harness.add_server(&[&disk(22, 2 * MIB)]);
    let (saved, packs) = back_up_alone(&harness, &server).await;
    back_up_and_damage(&harness, &other).await;
    let store = harness.places.store_of(&server.project_id);
    let whole = store.inner().get(&packs.smallest, u64::MAX).unwrap();
    damage(&harness, &server.project_id, &packs.smallest);
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
    let repository = harness.app.repositories().get(&server.project_id).await.unwrap();
    let known = repository.list_damage().unwrap();
    assert!(known.iter().any(|damage| ObjectName::Pack(damage.pack) == packs.smallest));
    put_back(&harness, &server.project_id, &packs.smallest, &whole);
    verify(&harness, &server.project_id).await;
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
}

/// What goes bad a second time is known already; nobody must have forgotten it meanwhile.
#[tokio::test]
async fn a_list_that_went_bad_is_relied_on_again_once_it_was_verified() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(23, MIB)]);
    let (saved, packs) = back_up_alone(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    let whole = store.inner().get(&packs.smallest, u64::MAX).unwrap();
    damage(&harness, &server.project_id, &packs.smallest);
    begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    let put_back = || {
        put_back(&harness, &server.project_id, &packs.smallest, &whole);
    };
    put_back();
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged), "nobody looked");
    damage(&harness, &server.project_id, &packs.smallest);
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
    put_back();
    verify(&harness, &server.project_id).await;
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
}

/// A prune cannot tell what to keep; it says which backup it is about, and how to go on.
#[tokio::test]
async fn a_prune_names_the_backup_that_keeps_it_from_pruning() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(19, MIB)]);
    let other = back_up(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    let before = |kind| -> Vec<_> { store.inner().list(kind).unwrap() };
    let (snapshots, index) = (before(ObjectKind::Snapshot), before(ObjectKind::Index));
    harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(20, MIB));
    let lost = back_up(&harness, &server).await;
    for (kind, known) in [(ObjectKind::Snapshot, snapshots), (ObjectKind::Index, index)] {
        for gone in store.inner().list(kind).unwrap() {
            if !known.contains(&gone) {
                store.inner().delete(&gone.name).unwrap();
            }
        }
    }
    let harness = harness.restarted().await;
    let refused = try_prune(&harness, &server.project_id).await.unwrap_err().to_string();
    assert!(refused.contains(lost.id.as_str()), "{refused}");
    assert!(!refused.contains(other.id.as_str()), "{refused}");
    let context = harness.context().await;
    harness.app.delete(&context, &lost.checkpoint_id, None).await.unwrap();
    harness.run_jobs_to_their_end().await;
    try_prune(&harness, &server.project_id).await.unwrap();
    let harness = harness.restarted().await;
    assert_eq!(verdict(&harness, &other, &server).await, Ok(()));
}

/// The pack is listed nowhere by then, so there is nothing to mark.
#[tokio::test]
async fn a_pack_that_went_bad_together_with_its_index_object_turns_the_verdict() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(15, 2 * MIB)]);
    let (saved, packs) = back_up_alone(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    let harness = harness.restarted().await;
    // The process knows what the index object said.
    harness.app.repositories().get(&server.project_id).await.unwrap();
    for listed in store.inner().list(ObjectKind::Index).unwrap() {
        damage(&harness, &server.project_id, &listed.name);
    }
    damage(&harness, &server.project_id, &packs.smallest);
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()), "nobody knows yet");
    harness.cloud.clear_write_log();
    begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert_untouched(&harness);
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DamageNotLocated));
}

/// Without its configuration nobody can open the repository, but for who has it open.
#[tokio::test]
async fn a_repository_that_cannot_be_opened_any_more_is_noticed_by_the_first_who_tries() {
    let mut harness = Harness::new().await;
    let server = harness.add_server(&[&disk(16, MIB)]);
    let saved = back_up(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    for (kind, is_flipped, by_watch) in [
        (ObjectKind::Config, true, true),
        (ObjectKind::Config, false, false),
        (ObjectKind::Key, true, false),
        (ObjectKind::Key, false, true),
    ] {
        let lost = store.inner().list(kind).unwrap()[0].name;
        let bytes = store.inner().get(&lost, u64::MAX).unwrap();
        if is_flipped {
            damage(&harness, &server.project_id, &lost);
        } else {
            store.inner().delete(&lost).unwrap();
        }
        harness = harness.restarted().await;
        assert_eq!(verdict(&harness, &saved, &server).await, Ok(()), "nobody has tried");
        harness.cloud.clear_write_log();
        if by_watch {
            harness.app.watch(&CancelFlag::new()).await;
        } else {
            begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
            harness.run_jobs_to_their_end().await;
            assert_untouched(&harness);
        }
        let refused = verdict(&harness, &saved, &server).await;
        assert!(refused.is_err(), "{kind:?} {is_flipped}");
        put_back(&harness, &server.project_id, &lost, &bytes);
        harness.app.watch(&CancelFlag::new()).await;
        assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
    }
}

#[tokio::test]
async fn damage_that_a_backup_meets_turns_the_verdict_of_what_it_would_have_built_on() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(11, 2 * MIB)]);
    let (saved, packs) = back_up_alone(&harness, &server).await;
    // Lists lie in the smallest pack. Another process has them in no cache.
    damage(&harness, &server.project_id, &packs.smallest);
    let harness = harness.restarted().await;
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()), "nobody knows yet");
    harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(12, MIB));
    let healthy = back_up(&harness, &server).await;
    assert_eq!(healthy.status, ItemStatus::Available);
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
    assert_eq!(verdict(&harness, &healthy, &server).await, Ok(()));
}

/// What was restored was read, all of it, and is known to be readable.
#[tokio::test]
async fn a_restore_that_ended_well_counts_as_a_reading() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(13, MIB), &disk(14, MIB)]);
    let saved = back_up(&harness, &server).await;
    let context = harness.context().await;
    let evidence = async || {
        let questions = vec![straight(&saved, &server)];
        let explained = harness.app.explain_restorable(&context, questions).await.unwrap();
        explained[0].evidence.unwrap()
    };
    assert_eq!(evidence().await.grade, Grade::Recorded);
    let asked_at = harness.clock.now();
    begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    let known = evidence().await;
    assert_eq!((known.grade, known.read_since), (Grade::Read, Some(asked_at)));
    let proofs = harness.app.list_proofs(&context, &saved.id).await.unwrap();
    assert_eq!(proofs.iter().map(|proof| proof.kind).collect::<Vec<_>>(), [ProofKind::Restore]);
    assert_eq!(proofs[0].outcome.as_ref().unwrap().disks.len(), 2);
    // One that failed says nothing of what it never read.
    let broken = BackendError::Unreachable { text: "gone".into() };
    begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.places.store_of(&server.project_id).break_with(broken);
    harness.run_jobs_to_their_end().await;
    assert_eq!(harness.app.list_proofs(&context, &saved.id).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_mark_nobody_can_read_and_marks_nobody_can_list_are_never_yes() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(5, MIB)]);
    let own = harness.add_server(&[&disk(6, MIB)]);
    let saved = back_up(&harness, &server).await;
    back_up_and_damage(&harness, &own).await;
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));

    let store = harness.places.store_of(&ProjectId::new(PROJECT));
    let mark = store.inner().list(ObjectKind::Mark).unwrap().remove(0).name;
    let whole = store.inner().get(&mark, 1 << 20).unwrap();
    store.inner().delete(&mark).unwrap();
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
    let mut flipped = whole.clone();
    flipped[30] ^= 1;
    store.inner().put(&mark, &flipped).unwrap();
    // A process that has not read it before.
    let harness = harness.restarted().await;
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DamageNotLocated));
    put_back(&harness, &server.project_id, &mark, &whole);
    harness.clock.advance(Duration::from_secs(1));
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));

    store.break_with(BackendError::Unreachable { text: "gone".into() });
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::RepositoryUnreachable));
    store.repair();
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
}
