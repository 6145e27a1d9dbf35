//! The promises of the Cloud port. Every driver passes every one.

use kedge_core::checkpoint::ChangeToken;
use kedge_core::ids::{ProjectId, ServerId, VolumeId};
use kedge_core::ports::{Cloud, CloudError, CloudErrorKind, ExtentKind, ServerRef};
use kedge_core::resource::{Content, ServerKind, ServerStatus, VolumeStatus};

use crate::files::{extents, noise, range_of, read_all};
use crate::stage::{LocalStage, SimStage, Stage};

macro_rules! contract {
    ($($fact:ident),+ $(,)?) => {
        mod sim {
            use super::*;
            $(#[tokio::test] async fn $fact() { super::$fact(&SimStage::new()).await; })+
        }
        mod local_in_place {
            use super::*;
            $(#[tokio::test] async fn $fact() { super::$fact(&LocalStage::in_place()).await; })+
        }
        mod local_cloning {
            use super::*;
            $(#[tokio::test] async fn $fact() { super::$fact(&LocalStage::cloning()).await; })+
        }
    };
}

contract!(
    a_server_is_found_by_its_project_alone,
    a_projects_servers_are_listed_and_no_others,
    nothing_is_done_for_another_project,
    undoing_what_is_not_there_succeeds_and_changes_nothing,
    a_snapshot_reads_as_the_disks_at_its_moment,
    later_writes_are_not_seen_or_are_noticed,
    freezing_again_returns_the_first_moment,
    a_name_stands_for_one_set_of_volumes,
    a_moment_nobody_made_is_lost,
    snapshots_are_listed_until_deleted,
    what_is_not_attached_is_refused,
    a_lock_has_one_holder_and_outlives_the_process,
    power_is_switched_once_and_seen,
    a_running_server_is_not_written,
    what_is_written_is_read_back_and_the_rest_is_kept,
    parts_of_a_cluster_keep_their_neighbours,
    nothing_is_read_or_written_outside_a_disk,
    a_volume_has_one_writer,
    nothing_is_written_after_the_end,
    a_half_written_volume_stays_marked_and_its_server_stopped,
    a_mark_gives_way_to_the_next_writers_and_goes_by_its_own_name_alone,
    writing_begins_anew_after_a_crash,
    a_token_nobody_gave_hides_nothing,
    a_disk_nobody_wrote_to_is_unchanged,
    unchanged_extents_hold_what_a_token_saw,
    several_threads_read_one_snapshot,
);

fn kind<T: std::fmt::Debug>(result: Result<T, CloudError>) -> CloudErrorKind {
    result.unwrap_err().kind
}

async fn freeze(stage: &dyn Stage, cloud: &dyn Cloud, name: &str) {
    cloud.create_snapshots(&stage.server(), &stage.volumes(), name).await.unwrap();
}

async fn read_snapshot(stage: &dyn Stage, cloud: &dyn Cloud, name: &str) -> Vec<Vec<u8>> {
    let mut disks = Vec::new();
    for volume in stage.volumes() {
        let open = cloud.open_snapshot(&stage.server(), name, &volume, None).await.unwrap();
        disks.push(read_all(&open.reader));
    }
    disks
}

fn contents(stage: &dyn Stage) -> Vec<Vec<u8>> {
    stage.volumes().iter().map(|volume| stage.content(volume)).collect()
}

async fn a_server_is_found_by_its_project_alone(stage: &dyn Stage) {
    let cloud = stage.open();
    let of = stage.server();
    let server = cloud.find_server(&of).await.unwrap().unwrap();
    assert_eq!((&server.id, &server.project_id), (&of.server, &of.project));
    assert_eq!(server.kind, ServerKind::Kvm);
    for (volume, content) in server.volumes.iter().zip(contents(stage)) {
        assert_eq!(volume.size_bytes, content.len() as u64);
        assert_eq!(volume.status, VolumeStatus::Healthy);
    }
    let foreign = ServerRef { project: ProjectId::new("another"), ..of.clone() };
    assert_eq!(cloud.find_server(&foreign).await.unwrap(), None);
    for text in ["5f0c2a1e-0000-4000-8000-0000000000ff", "web", "../web", "", "\0"] {
        let absent = ServerRef { server: ServerId::asked(text), ..of.clone() };
        assert_eq!(cloud.find_server(&absent).await.unwrap(), None, "{text:?}");
    }
}

async fn a_projects_servers_are_listed_and_no_others(stage: &dyn Stage) {
    let cloud = stage.open();
    let ServerRef { project, server } = stage.server();
    assert_eq!(cloud.list_servers(&project).await.unwrap(), [server]);
    assert_eq!(cloud.list_servers(&ProjectId::new("another")).await.unwrap(), []);
}

async fn nothing_is_done_for_another_project(stage: &dyn Stage) {
    let cloud = stage.open();
    cloud.stop_server(&stage.server()).await.unwrap();
    freeze(stage, &*cloud, "mine").await;
    let volume = &stage.volumes()[0];
    let foreign = ServerRef { project: ProjectId::new("another"), ..stage.server() };
    let absent = ServerRef {
        server: ServerId::asked("5f0c2a1e-0000-4000-8000-0000000000ff"),
        ..stage.server()
    };
    for of in [&foreign, &absent] {
        let refusals = [
            kind(cloud.create_snapshots(of, &stage.volumes(), "s").await),
            kind(cloud.open_snapshot(of, "mine", volume, None).await),
            kind(cloud.confirm_snapshots(of, "mine").await),
            kind(cloud.lock_server(of, "h").await),
            kind(cloud.stop_server(of).await),
            kind(cloud.start_server(of).await),
            kind(cloud.open_for_writing(of, volume, "m").await),
            kind(cloud.open_for_read_back(of, volume).await),
            kind(cloud.list_marks(of).await),
        ];
        assert_eq!(refusals, [CloudErrorKind::Permanent; 9]);
    }
}

async fn undoing_what_is_not_there_succeeds_and_changes_nothing(stage: &dyn Stage) {
    let cloud = stage.open();
    let (of, volume) = (stage.server(), stage.volumes()[0].clone());
    cloud.stop_server(&of).await.unwrap();
    freeze(stage, &*cloud, "kept").await;
    cloud.delete_snapshots(&of, "kept").await.unwrap();
    cloud.open_for_writing(&of, &volume, "kept").await.unwrap();
    freeze(stage, &*cloud, "kept").await;
    cloud.lock_server(&of, "kept").await.unwrap();

    let foreign = ServerRef { project: ProjectId::new("another"), ..of.clone() };
    let absent = ServerRef { server: ServerId::asked("nothing"), ..of.clone() };
    for other in [&foreign, &absent] {
        cloud.delete_snapshots(other, "kept").await.unwrap();
        cloud.unlock_server(other, "kept").await.unwrap();
        cloud.clear_mark(other, &volume, "kept").await.unwrap();
    }
    cloud.delete_snapshots(&of, "other").await.unwrap();
    cloud.unlock_server(&of, "other").await.unwrap();
    cloud.clear_mark(&of, &volume, "other").await.unwrap();
    cloud.clear_mark(&of, &stage.volumes()[1], "kept").await.unwrap();
    cloud.clear_mark(&of, &VolumeId::asked("nothing"), "kept").await.unwrap();

    let kept = (of.clone(), "kept".to_owned());
    assert_eq!(cloud.list_snapshots().await.unwrap(), std::slice::from_ref(&kept));
    assert_eq!(cloud.list_locks().await.unwrap(), [kept]);
    assert_eq!(cloud.list_marks(&of).await.unwrap(), [(volume, "kept".to_owned())]);
}

async fn a_snapshot_reads_as_the_disks_at_its_moment(stage: &dyn Stage) {
    let cloud = stage.open();
    let before = contents(stage);
    freeze(stage, &*cloud, "s").await;
    assert!(read_snapshot(stage, &*cloud, "s").await == before);
    cloud.confirm_snapshots(&stage.server(), "s").await.unwrap();
}

async fn later_writes_are_not_seen_or_are_noticed(stage: &dyn Stage) {
    for volume in stage.volumes() {
        let cloud = stage.open();
        let before = contents(stage);
        freeze(stage, &*cloud, "s").await;
        stage.overwrite(&volume, 4096, 512, 0x77);
        let seen = read_snapshot(stage, &*cloud, "s").await;
        match cloud.confirm_snapshots(&stage.server(), "s").await {
            Ok(()) => assert!(seen == before, "a later write was seen"),
            Err(error) => assert_eq!(error.kind, CloudErrorKind::MomentLost),
        }
        cloud.delete_snapshots(&stage.server(), "s").await.unwrap();
    }
}

async fn freezing_again_returns_the_first_moment(stage: &dyn Stage) {
    let cloud = stage.open();
    let before = contents(stage);
    freeze(stage, &*cloud, "s").await;
    stage.overwrite(&stage.volumes()[1], 0, 512, 0x55);
    freeze(stage, &*cloud, "s").await;
    let seen = read_snapshot(stage, &*cloud, "s").await;
    match cloud.confirm_snapshots(&stage.server(), "s").await {
        Ok(()) => assert!(seen == before, "freezing again moved the moment"),
        Err(error) => assert_eq!(error.kind, CloudErrorKind::MomentLost),
    }
    assert_eq!(cloud.list_snapshots().await.unwrap().len(), 1);
}

async fn a_name_stands_for_one_set_of_volumes(stage: &dyn Stage) {
    let cloud = stage.open();
    let (of, volumes) = (stage.server(), stage.volumes());
    cloud.create_snapshots(&of, &volumes[..1], "s").await.unwrap();
    assert_eq!(kind(cloud.create_snapshots(&of, &volumes, "s").await), CloudErrorKind::Permanent);
    let left_out = cloud.open_snapshot(&of, "s", &volumes[1], None).await;
    assert_eq!(kind(left_out), CloudErrorKind::Permanent);
}

async fn a_moment_nobody_made_is_lost(stage: &dyn Stage) {
    let cloud = stage.open();
    let (of, volume) = (stage.server(), &stage.volumes()[0]);
    let lost = CloudErrorKind::MomentLost;
    assert_eq!(kind(cloud.open_snapshot(&of, "none", volume, None).await), lost);
    assert_eq!(kind(cloud.confirm_snapshots(&of, "none").await), lost);
    freeze(stage, &*cloud, "s").await;
    cloud.delete_snapshots(&of, "s").await.unwrap();
    assert_eq!(kind(cloud.open_snapshot(&of, "s", volume, None).await), lost);
    assert_eq!(kind(cloud.confirm_snapshots(&of, "s").await), lost);
}

async fn snapshots_are_listed_until_deleted(stage: &dyn Stage) {
    let cloud = stage.open();
    let of = stage.server();
    assert_eq!(cloud.list_snapshots().await.unwrap(), []);
    for name in ["a", "../b\n"] {
        freeze(stage, &*cloud, name).await;
    }
    let mut listed = stage.open().list_snapshots().await.unwrap();
    listed.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(listed, [(of.clone(), "../b\n".to_owned()), (of.clone(), "a".to_owned())]);
    cloud.delete_snapshots(&of, "a").await.unwrap();
    cloud.delete_snapshots(&of, "a").await.unwrap();
    // Another process may clear away what this one left.
    stage.open().delete_snapshots(&of, "../b\n").await.unwrap();
    assert_eq!(cloud.list_snapshots().await.unwrap(), []);
}

async fn what_is_not_attached_is_refused(stage: &dyn Stage) {
    let cloud = stage.open();
    let of = stage.server();
    cloud.stop_server(&of).await.unwrap();
    for text in ["5f0c2a1e-0000-4000-8000-0000000000df", "data.img", "../x"] {
        let id = VolumeId::asked(text);
        let refusals = [
            kind(cloud.create_snapshots(&of, std::slice::from_ref(&id), "s").await),
            kind(cloud.open_for_writing(&of, &id, "m").await),
            kind(cloud.open_for_read_back(&of, &id).await),
        ];
        assert_eq!(refusals, [CloudErrorKind::Permanent; 3], "{text}");
    }
    assert_eq!(cloud.list_marks(&of).await.unwrap(), []);
    assert_eq!(cloud.list_snapshots().await.unwrap(), []);
}

async fn a_lock_has_one_holder_and_outlives_the_process(stage: &dyn Stage) {
    let of = stage.server();
    stage.open().lock_server(&of, "a").await.unwrap();
    stage.open().lock_server(&of, "a").await.unwrap();
    let cloud = stage.open();
    assert_eq!(kind(cloud.lock_server(&of, "b").await), CloudErrorKind::Retryable);
    cloud.unlock_server(&of, "b").await.unwrap();
    assert_eq!(cloud.list_locks().await.unwrap(), [(of.clone(), "a".to_owned())]);
    cloud.unlock_server(&of, "a").await.unwrap();
    cloud.unlock_server(&of, "a").await.unwrap();
    assert_eq!(cloud.list_locks().await.unwrap(), []);
    cloud.lock_server(&of, "b").await.unwrap();
}

async fn power_is_switched_once_and_seen(stage: &dyn Stage) {
    let of = stage.server();
    for _ in 0..2 {
        stage.open().stop_server(&of).await.unwrap();
        let server = stage.open().find_server(&of).await.unwrap().unwrap();
        assert_eq!(server.status, ServerStatus::Shutoff);
    }
    for _ in 0..2 {
        stage.open().start_server(&of).await.unwrap();
        let server = stage.open().find_server(&of).await.unwrap().unwrap();
        assert_eq!(server.status, ServerStatus::Active);
    }
}

async fn a_running_server_is_not_written(stage: &dyn Stage) {
    let cloud = stage.open();
    let of = stage.server();
    for volume in stage.volumes() {
        let refused = kind(cloud.open_for_writing(&of, &volume, "m").await);
        assert_eq!(refused, CloudErrorKind::Permanent);
    }
    assert_eq!(cloud.list_marks(&of).await.unwrap(), []);
}

async fn what_is_written_is_read_back_and_the_rest_is_kept(stage: &dyn Stage) {
    let cloud = stage.open();
    let of = stage.server();
    cloud.stop_server(&of).await.unwrap();
    for volume in stage.volumes() {
        let mut wanted = stage.content(&volume);
        let new = noise(9, 300_000);
        wanted[..300_000].copy_from_slice(&new);
        wanted[300_000..500_001].fill(0);
        let writer = cloud.open_for_writing(&of, &volume, "m").await.unwrap();
        assert_eq!(writer.size_bytes(), wanted.len() as u64);
        writer.write_zeroes(300_000, 200_001).unwrap();
        writer.write_at(100_000, &new[100_000..]).unwrap();
        writer.write_at(0, &new[..100_000]).unwrap();
        writer.write_at(7, &[]).unwrap();
        writer.write_zeroes(7, 0).unwrap();
        writer.finish().unwrap();
        let back = cloud.open_for_read_back(&of, &volume).await.unwrap();
        assert!(read_all(&back) == wanted, "read back differs");
        assert!(stage.content(&volume) == wanted, "the judge reads something else");
        cloud.clear_mark(&of, &volume, "m").await.unwrap();
    }
    cloud.start_server(&of).await.unwrap();
}

async fn parts_of_a_cluster_keep_their_neighbours(stage: &dyn Stage) {
    let cloud = stage.open();
    let of = stage.server();
    cloud.stop_server(&of).await.unwrap();
    for volume in stage.volumes() {
        let mut wanted = stage.content(&volume);
        let size = wanted.len();
        let writer = cloud.open_for_writing(&of, &volume, "m").await.unwrap();
        for (begin, end) in [
            (1, 2),
            (5, 9),
            (65_530, 65_540),
            (131_072, 131_073),
            (200_000, 400_000),
            (size - 1, size),
        ] {
            wanted[begin..end].fill(0x42);
            writer.write_at(begin as u64, &vec![0x42; end - begin]).unwrap();
        }
        wanted[65_531..65_533].fill(0);
        writer.write_zeroes(65_531, 2).unwrap();
        wanted[size - 100..size - 1].fill(0);
        writer.write_zeroes(size as u64 - 100, 99).unwrap();
        writer.finish().unwrap();
        assert!(stage.content(&volume) == wanted, "a neighbour was lost");
    }
}

async fn nothing_is_read_or_written_outside_a_disk(stage: &dyn Stage) {
    let cloud = stage.open();
    let of = stage.server();
    cloud.stop_server(&of).await.unwrap();
    for volume in stage.volumes() {
        let before = stage.content(&volume);
        let size = before.len() as u64;
        let writer = cloud.open_for_writing(&of, &volume, "m").await.unwrap();
        for offset in [size, size - 1, u64::MAX, u64::MAX - 1] {
            assert_eq!(kind(writer.write_at(offset, &[1, 2])), CloudErrorKind::Permanent);
            assert_eq!(kind(writer.write_zeroes(offset, 2)), CloudErrorKind::Permanent);
        }
        assert_eq!(kind(writer.write_zeroes(1, u64::MAX)), CloudErrorKind::Permanent);
        writer.finish().unwrap();
        assert!(stage.content(&volume) == before);
        let reader = cloud.open_for_read_back(&of, &volume).await.unwrap();
        for offset in [size, u64::MAX] {
            assert_eq!(kind(reader.next_extent(offset)), CloudErrorKind::Permanent);
            assert_eq!(kind(reader.read_at(offset, &mut [0])), CloudErrorKind::Permanent);
        }
        assert_eq!(kind(reader.read_at(size - 1, &mut [0, 0])), CloudErrorKind::Permanent);
    }
}

async fn a_volume_has_one_writer(stage: &dyn Stage) {
    let cloud = stage.open();
    let of = stage.server();
    cloud.stop_server(&of).await.unwrap();
    for volume in stage.volumes() {
        let first = cloud.open_for_writing(&of, &volume, "a").await.unwrap();
        for other in [&cloud, &stage.open()] {
            let refused = kind(other.open_for_writing(&of, &volume, "b").await);
            assert_eq!(refused, CloudErrorKind::Retryable);
        }
        assert!(cloud.list_marks(&of).await.unwrap().contains(&(volume.clone(), "a".to_owned())));
        drop(first);
        let second = cloud.open_for_writing(&of, &volume, "b").await.unwrap();
        second.finish().unwrap();
        let third = cloud.open_for_writing(&of, &volume, "c").await.unwrap();
        assert!(cloud.list_marks(&of).await.unwrap().contains(&(volume.clone(), "c".to_owned())));
        third.finish().unwrap();
    }
}

async fn nothing_is_written_after_the_end(stage: &dyn Stage) {
    let cloud = stage.open();
    let of = stage.server();
    cloud.stop_server(&of).await.unwrap();
    for volume in stage.volumes() {
        let writer = cloud.open_for_writing(&of, &volume, "m").await.unwrap();
        writer.finish().unwrap();
        let after = stage.content(&volume);
        assert_eq!(kind(writer.write_at(0, &[1])), CloudErrorKind::Permanent);
        assert_eq!(kind(writer.write_zeroes(0, 1)), CloudErrorKind::Permanent);
        assert_eq!(kind(writer.finish()), CloudErrorKind::Permanent);
        assert!(stage.content(&volume) == after);
    }
}

async fn a_half_written_volume_stays_marked_and_its_server_stopped(stage: &dyn Stage) {
    let of = stage.server();
    let volume = stage.volumes()[1].clone();
    stage.open().stop_server(&of).await.unwrap();
    {
        let cloud = stage.open();
        let writer = cloud.open_for_writing(&of, &volume, "restore 7").await.unwrap();
        writer.write_at(0, &[1; 4096]).unwrap();
    }
    let cloud = stage.open();
    let marks = cloud.list_marks(&of).await.unwrap();
    assert_eq!(marks, [(volume.clone(), "restore 7".to_owned())]);
    assert_eq!(kind(cloud.start_server(&of).await), CloudErrorKind::Permanent);
    let server = cloud.find_server(&of).await.unwrap().unwrap();
    assert_eq!(server.status, ServerStatus::Shutoff);
    let shown: Vec<_> = server.volumes.iter().map(|volume| volume.content).collect();
    assert_eq!(shown, [Content::Whole, Content::HalfWritten]);
    cloud.clear_mark(&of, &volume, "restore 7").await.unwrap();
    cloud.clear_mark(&of, &volume, "restore 7").await.unwrap();
    assert_eq!(stage.open().list_marks(&of).await.unwrap(), []);
    let server = stage.open().find_server(&of).await.unwrap().unwrap();
    assert!(server.volumes.iter().all(|volume| volume.content == Content::Whole));
    stage.open().start_server(&of).await.unwrap();
}

async fn a_mark_gives_way_to_the_next_writers_and_goes_by_its_own_name_alone(stage: &dyn Stage) {
    let of = stage.server();
    stage.open().stop_server(&of).await.unwrap();
    for volume in stage.volumes() {
        drop(stage.open().open_for_writing(&of, &volume, "restore 7").await.unwrap());
        let cloud = stage.open();
        let writer = cloud.open_for_writing(&of, &volume, "restore 8").await.unwrap();
        stage.open().clear_mark(&of, &volume, "restore 7").await.unwrap();
        let marks = cloud.list_marks(&of).await.unwrap();
        assert_eq!(marks, [(volume.clone(), "restore 8".to_owned())]);
        writer.finish().unwrap();
        cloud.clear_mark(&of, &volume, "restore 8").await.unwrap();
        assert_eq!(cloud.list_marks(&of).await.unwrap(), []);
    }
    stage.open().start_server(&of).await.unwrap();
}

async fn writing_begins_anew_after_a_crash(stage: &dyn Stage) {
    let of = stage.server();
    stage.open().stop_server(&of).await.unwrap();
    for volume in stage.volumes() {
        let size = stage.content(&volume).len();
        {
            let writer = stage.open().open_for_writing(&of, &volume, "m").await.unwrap();
            writer.write_at(100, &noise(3, 70_000)).unwrap();
        }
        let wanted = noise(4, size);
        let writer = stage.open().open_for_writing(&of, &volume, "m").await.unwrap();
        for (index, chunk) in wanted.chunks(100_000).enumerate() {
            writer.write_at(index as u64 * 100_000, chunk).unwrap();
        }
        writer.finish().unwrap();
        assert!(stage.content(&volume) == wanted);
    }
}

/// The disk's bytes at a moment under this name, which ends here, and the moment's token.
async fn take_token(stage: &dyn Stage, volume: &VolumeId, name: &str) -> (Vec<u8>, ChangeToken) {
    let cloud = stage.open();
    freeze(stage, &*cloud, name).await;
    let open = cloud.open_snapshot(&stage.server(), name, volume, None).await.unwrap();
    let bytes = read_all(&open.reader);
    cloud.confirm_snapshots(&stage.server(), name).await.unwrap();
    cloud.delete_snapshots(&stage.server(), name).await.unwrap();
    (bytes, open.token.unwrap())
}

async fn a_token_nobody_gave_hides_nothing(stage: &dyn Stage) {
    let cloud = stage.open();
    let [(_, first), (_, second)] = [
        take_token(stage, &stage.volumes()[0], "0").await,
        take_token(stage, &stage.volumes()[1], "1").await,
    ];
    freeze(stage, &*cloud, "s").await;
    for (volume, others) in stage.volumes().iter().zip([&second.0, &first.0]) {
        let cut = &others[..others.len() - 1];
        for text in ["", "sim", "sim/x/0/1", "1", "local/1/", "local/1/{}", cut, others] {
            let since = Some(ChangeToken(text.to_owned()));
            let open =
                cloud.open_snapshot(&stage.server(), "s", volume, since.as_ref()).await.unwrap();
            let kinds = extents(&open.reader).into_iter().map(|extent| extent.kind);
            assert!(!kinds.into_iter().any(|kind| kind == ExtentKind::Unchanged), "{text:?}");
        }
    }
}

async fn a_disk_nobody_wrote_to_is_unchanged(stage: &dyn Stage) {
    for volume in stage.volumes() {
        let (then, token) = take_token(stage, &volume, "first").await;
        for name in ["second", "third"] {
            let cloud = stage.open();
            freeze(stage, &*cloud, name).await;
            let open = cloud.open_snapshot(&stage.server(), name, &volume, Some(&token)).await;
            let open = open.unwrap();
            let kinds = extents(&open.reader).into_iter().map(|extent| extent.kind);
            assert!(kinds.into_iter().all(|kind| kind == ExtentKind::Unchanged));
            assert!(read_all(&open.reader) == then, "unchanged bytes read as others");
            assert_eq!(open.token.as_ref(), Some(&token));
            cloud.confirm_snapshots(&stage.server(), name).await.unwrap();
            cloud.delete_snapshots(&stage.server(), name).await.unwrap();
        }
    }
}

/// Rounds of writes by guests and by restores, none in some; every round looks back at every
/// earlier one.
async fn unchanged_extents_hold_what_a_token_saw(stage: &dyn Stage) {
    let of = stage.server();
    stage.open().stop_server(&of).await.unwrap();
    for (index, volume) in stage.volumes().iter().enumerate() {
        let mut earlier = Vec::new();
        for (round, seed) in noise(40 + index as u64, 8).into_iter().enumerate() {
            let size = stage.content(volume).len();
            let at = usize::from(seed) * 7919 % (size - 70_000) / 512 * 512;
            match seed % 4 {
                0 => {}
                1 | 2 => stage.overwrite(volume, at as u64, 512 << (seed % 7), seed),
                _ => {
                    let cloud = stage.open();
                    let writer = cloud.open_for_writing(&of, volume, "m").await.unwrap();
                    writer.write_at(at as u64, &noise(seed.into(), 70_000)).unwrap();
                    writer.write_zeroes(1, usize::from(seed) as u64 * 10).unwrap();
                    writer.finish().unwrap();
                    cloud.clear_mark(&of, volume, "m").await.unwrap();
                }
            }
            let now = stage.content(volume);
            earlier.push(take_token(stage, volume, "before").await);
            assert!(earlier[round].0 == now);
            let cloud = stage.open();
            freeze(stage, &*cloud, "now").await;
            for (then, token) in &earlier {
                let open = cloud.open_snapshot(&of, "now", volume, Some(token)).await.unwrap();
                for extent in extents(&open.reader) {
                    let range = range_of(extent);
                    let is_said = extent.kind == ExtentKind::Unchanged;
                    assert!(!is_said || then[range.clone()] == now[range], "{extent:?} changed");
                }
            }
            cloud.delete_snapshots(&of, "now").await.unwrap();
        }
    }
}

async fn several_threads_read_one_snapshot(stage: &dyn Stage) {
    let cloud = stage.open();
    freeze(stage, &*cloud, "s").await;
    for volume in stage.volumes() {
        let wanted = stage.content(&volume);
        let open = cloud.open_snapshot(&stage.server(), "s", &volume, None).await.unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(read_all(&open.reader) == wanted));
            }
        });
    }
}
