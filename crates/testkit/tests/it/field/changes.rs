//! Chains, changed blocks, and moments that were not one.

use std::sync::atomic::{AtomicBool, Ordering};

use kedge_cloud::sim::SimOp;
use kedge_core::checkpoint::Method;
use kedge_core::resource::VolumeRole;
use kedge_core::status::ItemStatus;

use super::*;

/// Deletes a backup and removes from the repository whatever no other one needs.
async fn delete(harness: Harness, item: &Item) -> Harness {
    let context = harness.context().await;
    harness.app.delete(&context, &item.checkpoint_id, None).await.unwrap();
    harness.run_jobs_to_their_end().await;
    prune(&harness, &item.project_id).await;
    harness.restarted().await
}

/// <https://github.com/vatesfr/xen-orchestra/issues/3739>
#[tokio::test]
async fn retention_deleted_the_full_backup_below_its_increments() {
    let harness = Harness::new().await;
    let mut content = disk(60, 3 * MIB);
    let server = harness.add_server(&[&content]);
    let full = back_up(&harness, &server).await;
    content[..9].copy_from_slice(b"increment");
    harness.cloud.overwrite(&server.volumes[0].id, 0, b"increment");
    let increment = back_up(&harness, &server).await;
    assert_eq!(increment.method, Method::Incremental);
    let harness = delete(harness, &full).await;
    assert_yes(&harness, &increment, &server, &[content]).await;
}

/// <https://github.com/harvester/harvester/issues/949>
#[tokio::test]
async fn deleting_the_newest_backup_emptied_the_one_before() {
    let harness = Harness::new().await;
    let content = vec![disk(61, 3 * MIB)];
    let server = harness.add_server(&[&content[0]]);
    let first = back_up(&harness, &server).await;
    let second = back_up(&harness, &server).await;
    harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(62, MIB));
    let third = back_up(&harness, &server).await;
    let harness = delete(harness, &third).await;
    for item in [&first, &second] {
        assert_yes(&harness, item, &server, &content).await;
    }
}

/// <https://github.com/abbbi/virtnbdbackup/pull/258>
#[tokio::test]
async fn bitmaps_were_lost_with_the_power() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(63, 3 * MIB)]);
    let first = back_up(&harness, &server).await;
    let content = vec![disk(64, 3 * MIB)];
    harness.cloud.overwrite(&server.volumes[0].id, 0, &content[0]);
    harness.cloud.forget_changes();
    let next = back_up(&harness, &server).await;
    let stored = next.volumes[0].stored.as_ref().unwrap();
    assert_eq!(stored.read_bytes, 3 * MIB as u64, "what is not known is read");
    assert_yes(&harness, &next, &server, &content).await;
    assert_yes(&harness, &first, &server, &[disk(63, 3 * MIB)]).await;
}

/// <https://vinfrastructure.it/2015/11/vmware-vsphere-6-cbt-issue/>
///
/// A lie as large as this one is found out; a small one may pass between the samples
/// (docs/adr/0014-what-local-knows-of-changes.md).
#[tokio::test]
async fn change_tracking_left_out_what_had_changed() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(65, 8 * MIB)]);
    back_up(&harness, &server).await;
    harness.cloud.lie_about_changes();
    let content = vec![disk(66, 8 * MIB)];
    harness.cloud.overwrite(&server.volumes[0].id, 0, &content[0]);
    let next = back_up(&harness, &server).await;
    assert_yes(&harness, &next, &server, &content).await;
}

/// <https://github.com/abbbi/virtnbdbackup/issues/135>
#[tokio::test]
async fn a_disk_was_added_after_the_full_backup() {
    let harness = Harness::new().await;
    let mut content = vec![disk(67, 2 * MIB)];
    let server = harness.add_server(&[&content[0]]);
    let before = back_up(&harness, &server).await;
    // A server like it with one disk more takes its place.
    let mut grown = server.clone();
    grown.volumes.push(harness.volume(MIB as u64, VolumeRole::Data));
    content.push(disk(68, MIB));
    let bytes = grown.volumes.iter().map(|volume| volume.id.clone()).zip(content.clone());
    harness.cloud.add_server(grown.clone(), bytes.collect());
    let after = back_up(&harness, &grown).await;
    assert_eq!(after.status, ItemStatus::Available, "{:?}", after.fault);
    let methods: Vec<_> =
        after.volumes.iter().map(|volume| volume.stored.as_ref().unwrap().method).collect();
    assert_eq!(methods, [Method::Incremental, Method::Full]);
    assert_yes(&harness, &after, &grown, &content).await;
    // The old backup knows nothing of the new disk and leaves it alone.
    begin_restore(&harness, &before, straight(&before, &grown)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert!(contents(&harness, &grown) == content);
}

/// <https://github.com/abbbi/virtnbdbackup/issues/109>
#[tokio::test]
async fn a_disk_was_extended_within_the_chain() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(69, 2 * MIB)]);
    let before = back_up(&harness, &server).await;
    let content = vec![disk(70, 3 * MIB)];
    harness.cloud.edit_server(&server.id, |server| {
        server.volumes[0].size_bytes = 3 * MIB as u64;
    });
    harness.cloud.overwrite(&server.volumes[0].id, 0, &content[0]);
    let larger = harness.cloud.server(&server.id).unwrap();
    let after = back_up(&harness, &larger).await;
    assert_eq!(after.status, ItemStatus::Available, "{:?}", after.fault);
    assert_yes(&harness, &after, &larger, &content).await;
    let small = harness.add_server(&[&disk(71, 2 * MIB)]);
    assert_no(&harness, &after, straight(&after, &small), Code::TargetTooSmall).await;
    assert_yes(&harness, &before, &small, &[disk(69, 2 * MIB)]).await;
}

/// <https://github.com/Corsinvest/cv4pve-barc/issues/15>
#[tokio::test]
async fn disks_of_one_server_were_of_different_hours() {
    let harness = Harness::new().await;
    let content = vec![disk(72, MIB), disk(73, MIB)];
    let server = harness.add_server(&[&content[0], &content[1]]);
    let (_, id) = begin_backup(&harness, &server).await;
    // The guest writes to both disks while the first of them is being read.
    let (cloud, volumes) = (harness.cloud.clone(), server.volumes.clone());
    let written = AtomicBool::new(false);
    harness.cloud.before(SimOp::ReadAt, move || {
        if !written.swap(true, Ordering::SeqCst) {
            volumes.iter().for_each(|volume| cloud.overwrite(&volume.id, 0, b"an hour later"));
        }
    });
    harness.run_jobs_to_their_end().await;
    harness.cloud.clear_hook(SimOp::ReadAt);
    let saved = item(&harness, &id).await;
    assert_yes(&harness, &saved, &server, &content).await;
}

/// <https://github.com/OpenNebula/one/issues/6741>
#[tokio::test]
async fn the_first_backup_after_a_restore_failed() {
    let harness = Harness::new().await;
    let content = vec![disk(74, 2 * MIB), disk(75, MIB)];
    let server = harness.add_server(&[&content[0], &content[1]]);
    let first = back_up(&harness, &server).await;
    harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(76, 2 * MIB));
    back_up(&harness, &server).await;
    assert_yes(&harness, &first, &server, &content).await;
    let after = back_up(&harness, &server).await;
    assert_yes(&harness, &after, &server, &content).await;
}
