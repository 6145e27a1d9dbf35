//! What an incremental backup builds on, disk by disk.

use kedge_core::checkpoint::{Item, Method};
use kedge_core::resource::Server;
use kedge_core::status::ItemStatus;
use kedge_testkit::Harness;

use crate::support::*;

const MIB: usize = 1 << 20;

async fn back_up_without(harness: &Harness, server: &Server, disk: usize) -> Item {
    let context = harness.context().await;
    let mut request = protect_request(server, None);
    request.excluded = vec![server.volumes[disk].id.clone()];
    let checkpoint = harness.app.protect(&context, request).await.unwrap();
    harness.run_jobs_to_their_end().await;
    item(harness, &checkpoint.items[0].id).await
}

/// How each disk was backed up, and whether it was read whole.
fn stored(item: &Item) -> Vec<(Method, bool)> {
    assert_eq!(item.status, ItemStatus::Available, "{:?}", item.fault);
    let of = |backup: &kedge_core::checkpoint::VolumeBackup| {
        let stored = backup.stored.as_ref().unwrap();
        (stored.method, stored.read_bytes >= backup.source_size_bytes)
    };
    item.volumes.iter().map(of).collect()
}

async fn assert_restores(harness: &Harness, server: &Server, item: &Item) {
    let before = contents(harness, server);
    scramble(harness, server);
    begin_restore(harness, item, straight(item, server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert_eq!(contents(harness, server), before);
}

#[tokio::test]
async fn a_disk_left_out_of_the_newest_backup_builds_on_the_newest_that_has_it() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, 8 * MIB), &disk(2, 8 * MIB)]);
    back_up(&harness, &server).await;
    for _ in 0..2 {
        back_up_without(&harness, &server, 1).await;
    }
    for volume in &server.volumes {
        harness.cloud.overwrite(&volume.id, 3 * MIB as u64, b"a change");
    }

    let last = back_up(&harness, &server).await;

    assert_eq!(stored(&last), [(Method::Incremental, false); 2]);
    assert_restores(&harness, &server, &last).await;
}

#[tokio::test]
async fn a_backup_that_cannot_be_built_on_is_passed_over_for_the_one_before_it() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(3, 8 * MIB)]);
    let first = back_up(&harness, &server).await;
    let second = back_up(&harness, &server).await;
    let context = harness.context().await;
    let repository = harness.app.repositories().get(context.project()).await.unwrap();
    let lose = |item: &Item| {
        let snapshot = item.snapshot.as_ref().unwrap().snapshot.parse().unwrap();
        repository.delete_snapshot(snapshot).unwrap();
    };
    lose(&second);
    let third = back_up(&harness, &server).await;
    assert_eq!(stored(&third), [(Method::Incremental, false)]);
    lose(&first);
    lose(&third);
    let fourth = back_up(&harness, &server).await;
    assert_eq!(stored(&fourth), [(Method::Full, true)]);
    assert_restores(&harness, &server, &fourth).await;
}
