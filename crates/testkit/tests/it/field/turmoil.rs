//! What happens at the same time, in between, or half way.

use kedge_cloud::sim::SimOp;
use kedge_core::ports::CloudError;
use kedge_core::resource::{Content, ServerStatus};
use kedge_core::status::ItemStatus;
use kedge_service::context::Right;
use kedge_testkit::MEMBER;

use super::*;

/// <https://github.com/harvester/harvester/issues/2559>,
/// <https://github.com/apache/cloudstack/pull/4019>
#[tokio::test]
async fn a_second_restore_began_during_the_first() {
    let harness = Harness::new().await;
    let content = vec![disk(80, MIB)];
    let server = harness.add_server(&[&content[0]]);
    let (one, other) = (back_up(&harness, &server).await, back_up(&harness, &server).await);
    let (first, second) = tokio::join!(
        begin_restore(&harness, &one, straight(&one, &server)),
        begin_restore(&harness, &other, straight(&other, &server)),
    );
    let (running, refused) = match (first, second) {
        (Ok(running), Err(refused)) | (Err(refused), Ok(running)) => (running, refused),
        both => panic!("one of two may run: {both:?}"),
    };
    assert_eq!(refused.code(), Code::TargetBusy);
    harness.run_jobs_to_their_end().await;
    let ended = find_restore(&harness, &running).await;
    assert_eq!(ended.status, RestoreStatus::Success, "{}", ended.reason);
    assert!(contents(&harness, &server) == content);
}

/// <https://github.com/longhorn/longhorn/issues/11828>,
/// <https://github.com/longhorn/longhorn/issues/10105>
#[tokio::test]
async fn a_backup_was_deleted_while_it_was_being_restored() {
    let harness = Harness::new().await;
    let content = vec![disk(81, MIB)];
    let server = harness.add_server(&[&content[0]]);
    let saved = back_up(&harness, &server).await;
    scramble(&harness, &server);
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    let context = harness.context().await;
    let refused = harness.app.delete(&context, &saved.checkpoint_id, None).await;
    assert_eq!(refused.unwrap_err().code(), Code::ItemExecuting);
    harness.run_jobs_to_their_end().await;
    assert_eq!(find_restore(&harness, &restore).await.status, RestoreStatus::Success);
    assert!(contents(&harness, &server) == content);
}

/// <https://github.com/velero-io/velero/issues/9790>
#[tokio::test]
async fn a_backup_that_was_being_deleted_was_restored() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(82, MIB)]);
    let saved = back_up(&harness, &server).await;
    let context = harness.context().await;
    harness.app.delete(&context, &saved.checkpoint_id, None).await.unwrap();
    assert_eq!(item(&harness, &saved.id).await.status, ItemStatus::Deleting);
    assert_no(&harness, &saved, straight(&saved, &server), Code::ItemNotAvailable).await;
    harness.run_jobs_to_their_end().await;
    assert_no(&harness, &saved, straight(&saved, &server), Code::ItemNotFound).await;
}

/// <https://github.com/harvester/harvester/issues/2560>
#[tokio::test]
async fn the_store_was_lost_and_the_restore_never_ended() {
    let harness = Harness::new().await;
    let content = vec![disk(83, 2 * MIB)];
    let server = harness.add_server(&[&content[0]]);
    let saved = back_up(&harness, &server).await;
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    let store = harness.places.store_of(&server.project_id);
    store.break_down();
    harness.run_jobs_to_their_end().await;
    let ended = find_restore(&harness, &restore).await;
    assert_eq!(ended.status, RestoreStatus::Fail, "it ended");
    assert!(contents(&harness, &server) == content, "and nothing was written");
    store.repair();
    assert_yes(&harness, &item(&harness, &saved.id).await, &server, &content).await;
}

/// <https://github.com/longhorn/longhorn/issues/13965>,
/// <https://github.com/longhorn/longhorn/issues/1270>
#[tokio::test]
async fn an_error_at_the_end_of_writing_was_called_a_success() {
    for op in [SimOp::WriteAt, SimOp::Finish, SimOp::OpenForReadBack] {
        let harness = Harness::new().await;
        let content = vec![disk(84, 2 * MIB)];
        let server = harness.add_server(&[&content[0]]);
        let saved = back_up(&harness, &server).await;
        harness.cloud.fail_always(op, CloudError::permanent("an input/output error"));
        let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
        harness.run_jobs_to_their_end().await;
        assert_eq!(find_restore(&harness, &restore).await.status, RestoreStatus::Fail, "{op:?}");
        let after = harness.cloud.server(&server.id).unwrap();
        assert_eq!(after.status, ServerStatus::Shutoff, "{op:?}");
        assert_eq!(after.volumes[0].content, Content::HalfWritten, "{op:?}");
        harness.cloud.clear_faults();
        // It is no source of a backup, and restoring again makes it whole.
        let context = harness.context().await;
        let refused = harness.app.protect(&context, protect_request(&server, None)).await;
        assert_eq!(refused.unwrap_err().code(), Code::HalfWritten, "{op:?}");
        assert_yes(&harness, &item(&harness, &saved.id).await, &server, &content).await;
    }
}

/// <https://specs.openstack.org/openstack/cinder-specs/specs/juno/support-reset-state-for-backup.html>
#[tokio::test]
async fn the_service_died_and_backups_stayed_in_restoring() {
    let harness = Harness::new().await;
    let content = vec![disk(85, MIB)];
    let server = harness.add_server(&[&content[0]]);
    let saved = back_up(&harness, &server).await;
    scramble(&harness, &server);
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    assert_eq!(item(&harness, &saved.id).await.status, ItemStatus::Restoring);
    let harness = harness.restarted().await;
    harness.run_jobs_to_their_end().await;
    assert_eq!(find_restore(&harness, &restore).await.status, RestoreStatus::Success);
    assert_eq!(item(&harness, &saved.id).await.status, ItemStatus::Available);
    assert!(contents(&harness, &server) == content);
}

/// <https://github.com/openstack/karbor/commit/5a523b2cb77de9a731dfaef66bf15f2d03608952>
#[tokio::test]
async fn success_was_said_before_the_work_was_done() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(86, MIB)]);
    let saved = back_up(&harness, &server).await;
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    // At every call from the first to the start of the server it is in progress.
    for op in [
        SimOp::LockServer,
        SimOp::StopServer,
        SimOp::OpenForWriting,
        SimOp::Finish,
        SimOp::OpenForReadBack,
        SimOp::ClearMark,
        SimOp::UnlockServer,
        SimOp::StartServer,
    ] {
        harness.cloud.fail_next(op, 1, CloudError::retryable("a passing cloud"));
        harness.run_jobs().await;
        let now = find_restore(&harness, &restore).await;
        assert_eq!(now.status, RestoreStatus::InProgress, "{op:?}");
        harness.clock.advance(std::time::Duration::from_secs(300));
    }
    harness.run_jobs_to_their_end().await;
    assert_eq!(find_restore(&harness, &restore).await.status, RestoreStatus::Success);
}

/// <https://bugs.launchpad.net/cinder/+bug/2031897>
#[tokio::test]
async fn an_export_broke_off_and_the_backup_was_called_complete() {
    let harness = Harness::new().await;
    let content = vec![disk(87, 3 * MIB)];
    let server = harness.add_server(&[&content[0]]);
    let saved = back_up(&harness, &server).await;
    let (_, id) = begin_backup(&harness, &server).await;
    harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(88, 3 * MIB));
    harness.cloud.pass_next(SimOp::ReadAt, 2);
    harness.cloud.fail_always(SimOp::ReadAt, CloudError::permanent("the export ended"));
    harness.run_jobs_to_their_end().await;
    harness.cloud.clear_faults();
    let failed = item(&harness, &id).await;
    assert_eq!(failed.status, ItemStatus::Error);
    assert_no(&harness, &failed, straight(&failed, &server), Code::ItemNotAvailable).await;
    assert_yes(&harness, &saved, &server, &content).await;
}

/// <https://github.com/longhorn/longhorn/issues/7583>
#[tokio::test]
async fn a_restore_from_a_corrupt_backup_never_ended() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(89, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    damage(&harness, &server.project_id, &packs(&harness)[0]);
    harness.run_jobs_to_their_end().await;
    let ended = find_restore(&harness, &restore).await;
    assert_eq!(ended.status, RestoreStatus::Fail);
    assert!(ended.reason.contains("damaged"), "{}", ended.reason);
}

/// <https://github.com/Azure/azure-powershell/issues/29257>
#[tokio::test]
async fn a_caller_whose_token_expired_took_the_restore_for_failed() {
    let harness = Harness::new().await;
    let content = vec![disk(90, MIB)];
    let server = harness.add_server(&[&content[0]]);
    let saved = back_up(&harness, &server).await;
    scramble(&harness, &server);
    let token = harness.token(MEMBER, PROJECT).await;
    let restore = begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.clock.advance(std::time::Duration::from_secs(2 * 86_400));
    harness.run_jobs_to_their_end().await;
    let expired = harness.app.authorise(Some(&token), PROJECT, Right::Read).await;
    assert_eq!(expired.unwrap_err().code(), Code::Unauthenticated);
    // Whoever asks with a new one hears how it ended.
    assert_eq!(find_restore(&harness, &restore).await.status, RestoreStatus::Success);
    assert!(contents(&harness, &server) == content);
}
