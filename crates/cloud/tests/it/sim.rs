//! The simulated cloud's own controls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kedge_cloud::sim::{SimOp, SimWrite};
use kedge_core::ports::{Cloud, CloudError, CloudErrorKind, ExtentKind};
use kedge_core::resource::{
    Content, Server, ServerKind, ServerStatus, Sharing, StorageClass, VolumeStatus,
};

use crate::files::{read_all, server_ref, volume_id};
use crate::stage::SimStage;

#[tokio::test]
async fn scripted_answers_come_in_order_and_then_the_cloud_works() {
    let cloud = SimStage::new().cloud;
    cloud.pass_next(SimOp::FindServer, 1);
    cloud.fail_next(SimOp::FindServer, 2, CloudError::retryable("busy"));
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(cloud.find_server(&server_ref()).await.is_ok());
    }
    assert_eq!(answers, [true, false, false, true]);
    assert_eq!((cloud.calls(SimOp::FindServer), cloud.total_calls()), (4, 4));
    cloud.fail_always(SimOp::FindServer, CloudError::permanent("gone"));
    for _ in 0..3 {
        cloud.find_server(&server_ref()).await.unwrap_err();
    }
    cloud.clear_faults();
    cloud.find_server(&server_ref()).await.unwrap();
    assert_eq!(cloud.calls(SimOp::FindServer), 8);
}

#[tokio::test]
async fn a_lost_answer_still_took_effect() {
    let cloud = SimStage::new().cloud;
    cloud.lose_answers(SimOp::StopServer, 1, CloudError::retryable("timed out"));
    cloud.stop_server(&server_ref()).await.unwrap_err();
    assert_eq!(cloud.server(&server_ref().server).unwrap().status, ServerStatus::Shutoff);
    cloud.lose_answers(SimOp::OpenForWriting, 1, CloudError::retryable("timed out"));
    cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap_err();
    assert_eq!(cloud.list_marks(&server_ref()).await.unwrap().len(), 1);
    cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
}

#[tokio::test]
async fn a_hung_call_waits_for_its_release_and_may_be_dropped() {
    let cloud = SimStage::new().cloud;
    cloud.hang(SimOp::StopServer);
    let hung = tokio::spawn({
        let cloud = cloud.clone();
        async move { cloud.stop_server(&server_ref()).await }
    });
    cloud.wait_for_calls(SimOp::StopServer, 1).await;
    hung.abort();
    assert!(hung.await.unwrap_err().is_cancelled());
    assert!(cloud.write_log().is_empty());
    let again = tokio::spawn({
        let cloud = cloud.clone();
        async move { cloud.stop_server(&server_ref()).await }
    });
    cloud.wait_for_calls(SimOp::StopServer, 2).await;
    cloud.release(SimOp::StopServer);
    again.await.unwrap().unwrap();
    assert_eq!(cloud.write_log().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_read_blocks_its_thread_until_released() {
    let cloud = SimStage::new().cloud;
    cloud.create_snapshots(&server_ref(), &[volume_id(0)], "s").await.unwrap();
    let open = cloud.open_snapshot(&server_ref(), "s", &volume_id(0), None).await.unwrap();
    cloud.hang(SimOp::ReadAt);
    let reader = Arc::clone(&open.reader);
    let hung = tokio::task::spawn_blocking(move || reader.read_at(0, &mut [0; 8]));
    cloud.wait_for_calls(SimOp::ReadAt, 1).await;
    assert!(!hung.is_finished());
    cloud.release(SimOp::ReadAt);
    hung.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_write_log_tells_every_change_and_no_read() {
    let cloud = SimStage::new().cloud;
    let (of, volume) = (server_ref(), volume_id(0));
    cloud.create_snapshots(&of, std::slice::from_ref(&volume), "s").await.unwrap();
    read_all(&cloud.open_snapshot(&of, "s", &volume, None).await.unwrap().reader);
    cloud.delete_snapshots(&of, "s").await.unwrap();
    assert!(cloud.write_log().is_empty());
    cloud.lock_server(&of, "h").await.unwrap();
    cloud.stop_server(&of).await.unwrap();
    cloud.stop_server(&of).await.unwrap();
    let writer = cloud.open_for_writing(&of, &volume, "m").await.unwrap();
    writer.write_at(3, &[1, 2]).unwrap();
    writer.write_zeroes(5, 6).unwrap();
    writer.finish().unwrap();
    cloud.clear_mark(&of, &volume, "other").await.unwrap();
    cloud.clear_mark(&of, &volume, "m").await.unwrap();
    cloud.start_server(&of).await.unwrap();
    cloud.unlock_server(&of, "h").await.unwrap();
    let server = of.server.clone();
    let log: Vec<SimWrite> = cloud.write_log().into_iter().map(|entry| entry.what).collect();
    assert_eq!(
        log,
        [
            SimWrite::Locked { server: server.clone(), holder: "h".to_owned() },
            SimWrite::Stopped { server: server.clone() },
            SimWrite::Marked { volume: volume.clone(), mark: "m".to_owned() },
            SimWrite::Wrote { volume: volume.clone(), offset: 3, length_bytes: 2 },
            SimWrite::Zeroed { volume: volume.clone(), offset: 5, length_bytes: 6 },
            SimWrite::Finished { volume: volume.clone() },
            SimWrite::Unmarked { volume },
            SimWrite::Started { server: server.clone() },
            SimWrite::Unlocked { server },
        ]
    );
}

#[tokio::test]
async fn a_pause_point_runs_before_the_write_and_a_revoked_writer_writes_nothing() {
    let cloud = SimStage::new().cloud;
    let volume = volume_id(0);
    cloud.stop_server(&server_ref()).await.unwrap();
    let writer = cloud.open_for_writing(&server_ref(), &volume, "m").await.unwrap();
    let before = cloud.volume_bytes(&volume);
    let paused = Arc::new(AtomicU64::new(0));
    cloud.before(SimOp::WriteAt, {
        let (cloud, paused) = (cloud.clone(), Arc::clone(&paused));
        move || {
            paused.fetch_add(1, Ordering::SeqCst);
            cloud.revoke_writers();
        }
    });
    assert_eq!(writer.write_at(0, &[0xaa; 64]).unwrap_err().kind, CloudErrorKind::Permanent);
    assert_eq!(paused.load(Ordering::SeqCst), 1);
    assert!(cloud.volume_bytes(&volume) == before);
    cloud.clear_hook(SimOp::WriteAt);
    let successor = cloud.open_for_writing(&server_ref(), &volume, "m").await.unwrap();
    writer.write_at(0, &[0xaa; 64]).unwrap_err();
    drop(writer);
    successor.write_at(0, &[0xbb; 64]).unwrap();
    assert_eq!(cloud.volume_bytes(&volume)[..64], [0xbb; 64]);
}

#[tokio::test]
async fn changes_are_told_truly_falsely_or_not_at_all() {
    let cloud = SimStage::new().cloud;
    let (of, volume) = (server_ref(), volume_id(0));
    let volumes = [volume.clone()];
    cloud.create_snapshots(&of, &volumes, "a").await.unwrap();
    let token = cloud.open_snapshot(&of, "a", &volume, None).await.unwrap().token.unwrap();
    cloud.overwrite(&volume, 100, &[1]);
    cloud.create_snapshots(&of, &volumes, "b").await.unwrap();
    let first_kind = async || {
        let open = cloud.open_snapshot(&of, "b", &volume, Some(&token)).await.unwrap();
        (open.reader.next_extent(0).unwrap().kind, open.reader.next_extent(65_536).unwrap().kind)
    };
    assert_eq!(first_kind().await, (ExtentKind::Data, ExtentKind::Unchanged));
    cloud.lie_about_changes();
    assert_eq!(first_kind().await, (ExtentKind::Unchanged, ExtentKind::Unchanged));
    cloud.forget_changes();
    assert_eq!(first_kind().await, (ExtentKind::Data, ExtentKind::Data));
}

#[tokio::test]
async fn a_volume_marked_behind_its_back_keeps_its_server_stopped() {
    let cloud = SimStage::new().cloud;
    let of = server_ref();
    cloud.stop_server(&of).await.unwrap();
    cloud.mark_half_written(&volume_id(1), "m");
    let [shown, found] =
        [cloud.server(&of.server), cloud.find_server(&of).await.unwrap()].map(Option::unwrap);
    assert_eq!(shown, found);
    let contents: Vec<_> = found.volumes.iter().map(|volume| volume.content).collect();
    assert_eq!(contents, [Content::Whole, Content::HalfWritten]);
    cloud.start_server(&of).await.unwrap_err();
}

#[tokio::test]
async fn a_lost_moment_is_noticed_and_can_be_frozen_anew() {
    let cloud = SimStage::new().cloud;
    let (of, volume) = (server_ref(), volume_id(0));
    cloud.create_snapshots(&of, std::slice::from_ref(&volume), "s").await.unwrap();
    cloud.lose_snapshots(&of.server);
    let lost = CloudErrorKind::MomentLost;
    assert_eq!(cloud.confirm_snapshots(&of, "s").await.unwrap_err().kind, lost);
    assert_eq!(cloud.open_snapshot(&of, "s", &volume, None).await.unwrap_err().kind, lost);
    assert_eq!(cloud.list_snapshots().await.unwrap().len(), 1);
    cloud.create_snapshots(&of, std::slice::from_ref(&volume), "s").await.unwrap();
    cloud.confirm_snapshots(&of, "s").await.unwrap();
}

#[tokio::test]
async fn it_refuses_what_a_cloud_cannot_do() {
    let of = server_ref();
    let volumes = [volume_id(0)];
    type Edit = fn(&mut Server);
    let rows: [(&str, Edit, bool, bool); 9] = [
        ("stopped", |_| {}, true, true),
        ("bare metal", |s| s.kind = ServerKind::BareMetal, false, true),
        ("running", |s| s.status = ServerStatus::Active, true, false),
        ("resizing", |s| s.status = ServerStatus::Resizing, false, false),
        ("faulty", |s| s.status = ServerStatus::Error, false, false),
        ("broken volume", |s| s.volumes[0].status = VolumeStatus::Error, false, false),
        ("busy volume", |s| s.volumes[0].status = VolumeStatus::Busy, false, false),
        ("shared volume", |s| s.volumes[0].sharing = Sharing::Shared, true, false),
        ("odd storage", |s| s.volumes[0].storage = StorageClass::Unsupported, false, false),
    ];
    for (what, edit, can_freeze, can_write) in rows {
        let cloud = SimStage::new().cloud;
        cloud.stop_server(&of).await.unwrap();
        cloud.edit_server(&of.server, edit);
        assert_eq!(cloud.create_snapshots(&of, &volumes, "s").await.is_ok(), can_freeze, "{what}");
        let writes = cloud.open_for_writing(&of, &volumes[0], "m").await;
        assert_eq!(writes.is_ok(), can_write, "{what}");
    }
}

#[tokio::test]
async fn disks_follow_the_sizes_a_server_is_given() {
    let cloud = SimStage::new().cloud;
    let (id, volume) = (server_ref().server, volume_id(1));
    let before = cloud.volume_bytes(&volume);
    cloud.edit_server(&id, |server| server.volumes[1].size_bytes = 100);
    assert_eq!(cloud.volume_bytes(&volume), before[..100]);
    cloud.edit_server(&id, |server| server.volumes[1].size_bytes = 200);
    assert_eq!(cloud.volume_bytes(&volume)[100..], [0; 100]);
    cloud.edit_server(&id, |server| server.volumes[1].size_bytes = 40 << 30);
    let mut end = [1; 4];
    cloud.stop_server(&server_ref()).await.unwrap();
    let reader = cloud.open_for_read_back(&server_ref(), &volume).await.unwrap();
    reader.read_at((40 << 30) - 4, &mut end).unwrap();
    assert_eq!(end, [0; 4]);
    cloud.remove_server(&id);
    assert_eq!(cloud.find_server(&server_ref()).await.unwrap(), None);
}
