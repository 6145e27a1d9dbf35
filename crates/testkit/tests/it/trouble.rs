//! Bad luck: every call fails once, everything is lost once, nothing that ended well may
//! hold anything but the truth.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kedge_cloud::sim::{SimCloud, SimOp, SimWrite};
use kedge_core::ports::CloudError;
use kedge_core::resource::{Content, StorageClass};
use kedge_core::status::ItemStatus;
use kedge_engine::{Backend as _, BackendError, ObjectKind};
use kedge_store::RestoreStatus;
use kedge_testkit::Harness;

use crate::support::*;

const MIB: usize = 1 << 20;

/// Calls that a backup makes.
const PROTECT_CALLS: [SimOp; 6] = [
    SimOp::FindServer,
    SimOp::DeleteSnapshots,
    SimOp::CreateSnapshots,
    SimOp::OpenSnapshot,
    SimOp::ReadAt,
    SimOp::ConfirmSnapshots,
];

#[tokio::test]
async fn a_backup_survives_every_call_failing_once() {
    for op in PROTECT_CALLS {
        for lose_the_answer in [false, true] {
            let harness = Harness::new().await;
            let content = disk(1, 2 * MIB);
            let server = harness.add_server(&[&content]);
            let (_, id) = begin_backup(&harness, &server).await;
            let passing = CloudError::retryable("a passing cloud");
            if lose_the_answer {
                harness.cloud.lose_answers(op, 1, passing);
            } else {
                harness.cloud.fail_next(op, 1, passing);
            }
            harness.run_jobs_to_their_end().await;

            let ended = item(&harness, &id).await;
            assert_eq!(ended.status, ItemStatus::Available, "{op:?}: {:?}", ended.fault);
            scramble(&harness, &server);
            begin_restore(&harness, &ended, straight(&ended, &server)).await.unwrap();
            harness.run_jobs_to_their_end().await;
            assert_eq!(contents(&harness, &server)[0], content, "{op:?}");
            assert_nothing_is_left(&harness).await;
        }
    }
}

#[tokio::test]
async fn a_backup_that_cannot_be_made_ends_in_error_and_the_next_one_works() {
    for op in PROTECT_CALLS.into_iter().filter(|op| *op != SimOp::DeleteSnapshots) {
        let harness = Harness::new().await;
        let server = harness.add_server(&[&disk(2, MIB)]);
        let (_, id) = begin_backup(&harness, &server).await;
        harness.cloud.fail_always(op, CloudError::permanent("a broken cloud"));
        harness.run_jobs_to_their_end().await;

        let ended = item(&harness, &id).await;
        assert_eq!(ended.status, ItemStatus::Error, "{op:?}");
        assert!(ended.fault.is_some(), "{op:?}");
        harness.cloud.clear_faults();
        harness.app.reconcile().await;
        assert_nothing_is_left(&harness).await;
        assert_eq!(back_up(&harness, &server).await.status, ItemStatus::Available);
    }
}

#[tokio::test]
async fn a_freeze_that_cannot_be_released_harms_no_backup_and_is_released_later() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(2, MIB)]);
    harness.cloud.fail_always(SimOp::DeleteSnapshots, CloudError::permanent("a broken cloud"));
    assert_eq!(back_up(&harness, &server).await.status, ItemStatus::Available);
    harness.cloud.clear_faults();
    assert_eq!(harness.app.reconcile().await.cloud_released, 1);
    assert_nothing_is_left(&harness).await;
}

#[tokio::test]
async fn a_lost_moment_begins_the_backup_again() {
    for noticed_by in [SimOp::OpenSnapshot, SimOp::ReadAt, SimOp::ConfirmSnapshots] {
        let harness = Harness::new().await;
        let content = disk(3, MIB);
        let server = harness.add_server(&[&content]);
        let (_, id) = begin_backup(&harness, &server).await;
        let cloud = harness.cloud.clone();
        let (lost, of) = (AtomicBool::new(false), server.id.clone());
        harness.cloud.before(noticed_by, move || {
            if !lost.swap(true, Ordering::SeqCst) {
                cloud.lose_snapshots(&of);
            }
        });
        harness.run_jobs_to_their_end().await;

        let ended = item(&harness, &id).await;
        assert_eq!(ended.status, ItemStatus::Available, "{noticed_by:?}: {:?}", ended.fault);
        assert_eq!(harness.cloud.calls(SimOp::CreateSnapshots), 2, "{noticed_by:?}");
        assert_nothing_is_left(&harness).await;
    }
}

/// A holder that lost its job between two calls cannot touch what its successor froze.
#[tokio::test]
async fn a_late_holder_leaves_its_successors_freeze_alone() {
    let harness = Harness::new().await;
    let first = disk(20, MIB);
    let server = harness.add_server(&[&first, &disk(21, MIB)]);
    let (_, id) = begin_backup(&harness, &server).await;
    // The first holder stands still past its lease just before it freezes.
    let (clock, slept) = (harness.clock.clone(), AtomicBool::new(false));
    harness.cloud.before(SimOp::CreateSnapshots, move || {
        if !slept.swap(true, Ordering::SeqCst) {
            clock.advance(Duration::from_secs(120));
        }
    });
    harness.run_jobs_to_their_end().await;

    let ended = item(&harness, &id).await;
    assert_eq!(ended.status, ItemStatus::Available, "{:?}", ended.fault);
    assert_nothing_is_left(&harness).await;
}

/// What a job plans on must have been seen after it took its lock.
#[tokio::test]
async fn a_restore_does_not_plan_on_an_answer_from_before_its_lock() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(22, MIB)]);
    let saved = back_up(&harness, &server).await;
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    let (cloud, id) = (harness.cloud.clone(), server.id.clone());
    harness.cloud.before(SimOp::LockServer, move || {
        cloud.edit_server(&id, |server| server.volumes.clear());
    });
    harness.cloud.clear_write_log();
    harness.run_jobs_to_their_end().await;

    let ended = find_restore(&harness, &restore).await;
    assert!(ended.reason.contains("CSBS.6020"), "{}", ended.reason);
    let touched = |entry: &kedge_cloud::sim::WriteLogEntry| {
        !matches!(entry.what, SimWrite::Locked { .. } | SimWrite::Unlocked { .. })
    };
    assert!(!harness.cloud.write_log().iter().any(touched));
}

/// A backup whose data is gone is found out before the server is stopped.
#[tokio::test]
async fn a_backup_without_its_index_stops_no_server() {
    let harness = Harness::new().await;
    let content = disk(23, MIB);
    let server = harness.add_server(&[&content]);
    let saved = back_up(&harness, &server).await;
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    let store = harness.places.store_of(&saved.project_id);
    for listed in store.list(ObjectKind::Index).unwrap() {
        store.delete(&listed.name).unwrap();
    }
    let harness = harness.restarted().await;
    harness.cloud.clear_write_log();
    harness.run_jobs_to_their_end().await;

    let ended = find_restore(&harness, &restore).await;
    assert_eq!(ended.status, RestoreStatus::Fail);
    let touched = |entry: &kedge_cloud::sim::WriteLogEntry| {
        !matches!(entry.what, SimWrite::Locked { .. } | SimWrite::Unlocked { .. })
    };
    assert!(!harness.cloud.write_log().iter().any(touched), "{:?}", harness.cloud.write_log());
    assert_eq!(contents(&harness, &server)[0], content);
}

/// Disks that were left out need not be fit for a backup.
#[tokio::test]
async fn a_server_is_backed_up_without_the_disk_that_cannot_be() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(24, MIB), &disk(25, MIB)]);
    harness.cloud.edit_server(&server.id, |server| {
        server.volumes[1].storage = StorageClass::Dedicated;
    });
    let context = harness.context().await;
    let mut request = protect_request(&server, None);
    request.excluded = vec![server.volumes[1].id.clone()];
    let checkpoint = harness.app.protect(&context, request).await.unwrap();
    harness.run_jobs_to_their_end().await;

    let ended = item(&harness, &checkpoint.items[0].id).await;
    assert_eq!(ended.status, ItemStatus::Available, "{:?}", ended.fault);
    assert_eq!(ended.volumes.len(), 1);
}

/// A bug in an arrow costs one lease: nobody holds the server for ever.
#[tokio::test]
async fn a_job_that_panics_is_taken_over_when_its_lease_is_over() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(26, MIB)]);
    let (_, id) = begin_backup(&harness, &server).await;
    let panicked = AtomicBool::new(false);
    harness.cloud.before(SimOp::CreateSnapshots, move || {
        assert!(panicked.swap(true, Ordering::SeqCst), "a bug, on purpose");
    });
    let app = harness.app.clone();
    let first = tokio::spawn(async move { app.run_due_jobs("first").await }).await;
    assert!(first.is_err(), "it panicked");
    harness.clock.advance(Duration::from_secs(120));
    harness.run_jobs_to_their_end().await;
    assert_eq!(item(&harness, &id).await.status, ItemStatus::Available);
}

/// Calls that a restore makes after it was admitted.
const RESTORE_CALLS: [SimOp; 10] = [
    SimOp::LockServer,
    SimOp::FindServer,
    SimOp::StopServer,
    SimOp::OpenForWriting,
    SimOp::WriteAt,
    SimOp::Finish,
    SimOp::OpenForReadBack,
    SimOp::ClearMark,
    SimOp::UnlockServer,
    SimOp::StartServer,
];

#[tokio::test]
async fn a_restore_survives_every_call_failing_once() {
    for op in RESTORE_CALLS {
        for lose_the_answer in [false, true] {
            let harness = Harness::new().await;
            let content = disk(4, 2 * MIB);
            let server = harness.add_server(&[&content]);
            let item = back_up(&harness, &server).await;
            scramble(&harness, &server);
            let restore = begin_restore(&harness, &item, straight(&item, &server)).await.unwrap();
            let passing = CloudError::retryable("a passing cloud");
            if lose_the_answer {
                harness.cloud.lose_answers(op, 1, passing);
            } else {
                harness.cloud.fail_next(op, 1, passing);
            }
            harness.run_jobs_to_their_end().await;

            let ended = find_restore(&harness, &restore).await;
            assert_eq!(ended.status, RestoreStatus::Success, "{op:?}: {}", ended.reason);
            assert_eq!(contents(&harness, &server)[0], content, "{op:?}");
            assert_nothing_is_left(&harness).await;
        }
    }
}

#[tokio::test]
async fn a_restore_that_fails_half_way_leaves_the_target_stopped_and_marked() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(5, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    scramble(&harness, &server);
    harness.cloud.fail_always(SimOp::Finish, CloudError::permanent("the disk broke"));
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;

    let ended = find_restore(&harness, &restore).await;
    assert_eq!(ended.status, RestoreStatus::Fail);
    assert!(ended.reason.contains("POST /restores"), "{}", ended.reason);
    let after = harness.cloud.server(&server.id).unwrap();
    assert_eq!(after.status, kedge_core::resource::ServerStatus::Shutoff);
    let started = |entry: &kedge_cloud::sim::WriteLogEntry| {
        matches!(entry.what, SimWrite::Started { .. } | SimWrite::Unmarked { .. })
    };
    assert!(!harness.cloud.write_log().iter().any(started));
    // The backup is not harmed, and restoring again makes the server whole.
    let saved = item(&harness, &saved.id).await;
    assert_eq!(saved.status, ItemStatus::Available);
    assert_eq!(saved.fault.as_ref().unwrap().operation.as_str(), "restore");
    harness.cloud.clear_faults();
    let again = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert_eq!(find_restore(&harness, &again).await.status, RestoreStatus::Success);
}

#[tokio::test]
async fn a_restore_that_wrote_nothing_puts_the_server_back() {
    let harness = Harness::new().await;
    let content = disk(6, MIB);
    let server = harness.add_server(&[&content]);
    let item = back_up(&harness, &server).await;
    harness.cloud.fail_always(SimOp::OpenForWriting, CloudError::permanent("no"));
    let restore = begin_restore(&harness, &item, straight(&item, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;

    assert_eq!(find_restore(&harness, &restore).await.status, RestoreStatus::Fail);
    let after = harness.cloud.server(&server.id).unwrap();
    assert_eq!(after.status, kedge_core::resource::ServerStatus::Active);
    assert_eq!(contents(&harness, &server)[0], content);
}

/// State may change between admission and execution: then nothing is written.
#[tokio::test]
async fn a_restore_whose_target_changed_since_is_refused_before_its_first_write() {
    let harness = Harness::new().await;
    let content = disk(7, MIB);
    let server = harness.add_server(&[&content]);
    let item = back_up(&harness, &server).await;
    let restore = begin_restore(&harness, &item, straight(&item, &server)).await.unwrap();
    harness.cloud.edit_server(&server.id, |server| server.volumes[0].size_bytes -= 1);
    harness.run_jobs_to_their_end().await;

    let ended = find_restore(&harness, &restore).await;
    assert_eq!(ended.status, RestoreStatus::Fail);
    assert!(ended.reason.contains("CSBS.6024"), "{}", ended.reason);
    let wrote = |entry: &kedge_cloud::sim::WriteLogEntry| {
        matches!(entry.what, SimWrite::Wrote { .. } | SimWrite::Marked { .. })
    };
    assert!(!harness.cloud.write_log().iter().any(wrote));
}

/// A mover that stood still past its lease writes nothing after its successor began.
#[tokio::test(flavor = "multi_thread")]
async fn a_mover_past_its_lease_stops_before_its_next_write() {
    let harness = Harness::new().await;
    let content = disk(8, 4 * MIB);
    let server = harness.add_server(&[&content]);
    let item = back_up(&harness, &server).await;
    scramble(&harness, &server);
    let restore = begin_restore(&harness, &item, straight(&item, &server)).await.unwrap();
    // The first write stands still for two minutes; the lease is a minute.
    let (clock, slept) = (harness.clock.clone(), AtomicBool::new(false));
    harness.cloud.before(SimOp::WriteAt, move || {
        if !slept.swap(true, Ordering::SeqCst) {
            clock.advance(Duration::from_secs(120));
        }
    });
    let (cloud, seen) = (harness.cloud.clone(), Arc::new(Mutex::new(Vec::new())));
    let at_opening = seen.clone();
    harness.cloud.before(SimOp::OpenForWriting, move || {
        at_opening.lock().unwrap().push(wrote(&cloud));
    });
    harness.run_jobs_to_their_end().await;

    let ended = find_restore(&harness, &restore).await;
    assert_eq!(ended.status, RestoreStatus::Success, "{}", ended.reason);
    assert_eq!(contents(&harness, &server)[0], content);
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2, "the first holder and its successor");
    // Four threads may each have had one write on its way; none began another.
    assert!(seen[1] <= 4, "{} writes by a holder whose lease was over", seen[1]);
}

fn wrote(cloud: &SimCloud) -> usize {
    cloud.write_log().iter().filter(|e| matches!(e.what, SimWrite::Wrote { .. })).count()
}

/// No snapshot, no lock, no claim of a job that ended.
async fn assert_nothing_is_left(harness: &Harness) {
    use kedge_core::ports::Cloud as _;
    assert_eq!(harness.cloud.list_snapshots().await.unwrap(), []);
    assert_eq!(harness.cloud.list_locks().await.unwrap(), []);
    assert_eq!(harness.store.list_live_jobs().await.unwrap(), []);
    let reconciled = harness.app.reconcile().await;
    assert_eq!(reconciled, Default::default());
}

/// A full repository is emptied by people: the backup waits for them, and ends when nobody
/// came.
#[tokio::test]
async fn a_full_repository_is_waited_for_and_harms_nothing() {
    for comes_back in [true, false] {
        let harness = Harness::new().await;
        let content = disk(30, 2 * MIB);
        let server = harness.add_server(&[&content]);
        let first = back_up(&harness, &server).await;
        harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(31, MIB));
        let store = harness.places.store_of(&first.project_id);
        let (_, id) = begin_backup(&harness, &server).await;
        store.break_with(BackendError::Full);
        harness.run_jobs().await;
        assert_eq!(item(&harness, &id).await.status, ItemStatus::Protecting);
        if comes_back {
            store.repair();
        }
        harness.run_jobs_to_their_end().await;
        store.repair();

        let ended = item(&harness, &id).await;
        if comes_back {
            assert_eq!(ended.status, ItemStatus::Available, "{:?}", ended.fault);
        } else {
            assert_eq!(ended.status, ItemStatus::Error);
            let fault = ended.fault.unwrap();
            assert_eq!((fault.operation.as_str(), fault.code), ("backup", 9999));
            assert!(fault.reason.contains("the backup repository is full"), "{}", fault.reason);
        }
        scramble(&harness, &server);
        begin_restore(&harness, &first, straight(&first, &server)).await.unwrap();
        harness.run_jobs_to_their_end().await;
        assert_eq!(contents(&harness, &server)[0], content, "the earlier backup is whole");
        assert_eq!(back_up(&harness, &server).await.status, ItemStatus::Available);
    }
}

#[tokio::test]
async fn a_full_target_is_waited_for_and_then_left_stopped_and_marked() {
    for comes_back in [true, false] {
        let harness = Harness::new().await;
        let content = disk(32, 2 * MIB);
        let server = harness.add_server(&[&content]);
        let saved = back_up(&harness, &server).await;
        scramble(&harness, &server);
        let full = CloudError::retryable("no space left on the target's storage");
        harness.cloud.fail_always(SimOp::WriteAt, full);
        let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
        harness.run_jobs().await;
        assert_eq!(find_restore(&harness, &restore).await.status, RestoreStatus::InProgress);
        if comes_back {
            harness.cloud.clear_faults();
        }
        harness.run_jobs_to_their_end().await;

        let ended = find_restore(&harness, &restore).await;
        if comes_back {
            assert_eq!(ended.status, RestoreStatus::Success, "{}", ended.reason);
            assert_eq!(contents(&harness, &server)[0], content);
        } else {
            assert_eq!(ended.status, RestoreStatus::Fail);
            assert!(ended.reason.contains("no space left"), "{}", ended.reason);
            let after = harness.cloud.server(&server.id).unwrap();
            assert_eq!(after.volumes[0].content, Content::HalfWritten);
            assert_eq!(after.status, kedge_core::resource::ServerStatus::Shutoff);
        }
    }
}

/// Cancelling undoes what can be undone, whenever it comes.
#[tokio::test]
async fn a_cancelled_backup_ends_in_error_and_leaves_nothing() {
    for op in [SimOp::FindServer, SimOp::OpenSnapshot, SimOp::ConfirmSnapshots] {
        let harness = Harness::new().await;
        let server = harness.add_server(&[&disk(33, MIB)]);
        let (_, id) = begin_backup(&harness, &server).await;
        harness.cloud.fail_next(op, 1, CloudError::retryable("a passing cloud"));
        harness.run_jobs().await;
        let job = item(&harness, &id).await.job_id;
        harness.store.request_cancel(&job).await.unwrap();
        harness.run_jobs_to_their_end().await;

        let ended = item(&harness, &id).await;
        assert_eq!(ended.status, ItemStatus::Error, "{op:?}");
        assert!(ended.fault.unwrap().reason.contains("cancelled"), "{op:?}");
        assert_nothing_is_left(&harness).await;
        assert_eq!(back_up(&harness, &server).await.status, ItemStatus::Available);
    }
}

#[tokio::test]
async fn a_cancelled_restore_says_whether_it_touched_anything() {
    for (op, touched) in [(SimOp::LockServer, false), (SimOp::Finish, true)] {
        let harness = Harness::new().await;
        let server = harness.add_server(&[&disk(34, MIB)]);
        let saved = back_up(&harness, &server).await;
        let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
        harness.cloud.fail_next(op, 1, CloudError::retryable("a passing cloud"));
        harness.run_jobs().await;
        let job = harness.store.list_live_jobs().await.unwrap().remove(0).id;
        harness.store.request_cancel(&job).await.unwrap();
        harness.run_jobs_to_their_end().await;

        let ended = find_restore(&harness, &restore).await;
        assert_eq!(ended.status, RestoreStatus::Fail, "{op:?}");
        assert!(ended.reason.contains("cancelled"), "{op:?}: {}", ended.reason);
        assert_eq!(ended.reason.contains("half written"), touched, "{op:?}: {}", ended.reason);
        assert_eq!(item(&harness, &saved.id).await.status, ItemStatus::Available);
    }
}
