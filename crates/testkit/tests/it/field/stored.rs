//! What is stored: damaged, cut off, missing, out of reach, or only said to be there.

use std::sync::Arc;

use kedge_engine::BackendError;
use kedge_engine::layer::Fault;
use kedge_service::keys::ServiceKey;

use super::*;

/// <https://github.com/borgbackup/borg/pull/9619>
#[tokio::test]
async fn a_damaged_block_was_taken_for_present_by_later_backups() {
    let harness = Harness::new().await;
    let content = vec![disk(1, 2 * MIB)];
    let server = harness.add_server(&[&content[0]]);
    let first = back_up(&harness, &server).await;
    damage(&harness, &server.project_id, &packs(&harness)[0]);
    let second = back_up(&harness, &server).await;
    find_damage(&harness).await;
    for item in [&first, &second] {
        assert_no(&harness, item, straight(item, &server), Code::DataDamaged).await;
    }
    let third = back_up(&harness, &server).await;
    for item in [&first, &second, &third] {
        assert_yes(&harness, item, &server, &content).await;
        harness.cloud.overwrite(&server.volumes[0].id, 0, &content[0]);
    }
}

/// <https://github.com/longhorn/longhorn/issues/7069>
#[tokio::test]
async fn all_revisions_failed_at_the_same_block() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(2, 4 * MIB)]);
    let mut revisions = vec![back_up(&harness, &server).await];
    let shared = packs(&harness)[0];
    for seed in [3, 4] {
        harness.cloud.overwrite(&server.volumes[0].id, 3 * MIB as u64, &disk(seed, MIB));
        revisions.push(back_up(&harness, &server).await);
    }
    lose(&harness, &shared);
    find_damage(&harness).await;
    for item in &revisions {
        assert_no(&harness, item, straight(item, &server), Code::DataDamaged).await;
    }
}

/// <https://github.com/proxmox/proxmox-backup/commit/0f3b7efa84490699051e64e3ed63fcd320903842>
#[tokio::test]
async fn a_bad_chunk_was_known_and_so_never_sent_again() {
    let harness = Harness::new().await;
    let content = vec![disk(5, 2 * MIB)];
    let server = harness.add_server(&[&content[0]]);
    back_up(&harness, &server).await;
    lose(&harness, &packs(&harness)[0]);
    find_damage(&harness).await;
    let next = back_up(&harness, &server).await;
    let stored = next.volumes[0].stored.as_ref().unwrap();
    assert!(stored.stored_bytes > 0, "nothing changed, and all of it was missing");
    assert_yes(&harness, &next, &server, &content).await;
}

/// <https://github.com/restic/restic/issues/3023>
#[tokio::test]
async fn a_pack_was_cut_off_in_the_store() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(6, 3 * MIB)]);
    let saved = back_up(&harness, &server).await;
    cut_in_half(&harness, &packs(&harness)[0]);
    find_damage(&harness).await;
    assert_no(&harness, &saved, straight(&saved, &server), Code::DataDamaged).await;
}

/// <https://github.com/restic/restic/issues/3064>
#[tokio::test]
async fn a_pack_that_one_snapshot_used_was_cut_off_and_others_were_suspected() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(7, 3 * MIB)]);
    let harmed = back_up(&harness, &server).await;
    let pack = packs(&harness)[0];
    let content = vec![disk(8, 3 * MIB)];
    harness.cloud.overwrite(&server.volumes[0].id, 0, &content[0]);
    let sound = back_up(&harness, &server).await;
    cut_in_half(&harness, &pack);
    find_damage(&harness).await;
    assert_no(&harness, &harmed, straight(&harmed, &server), Code::DataDamaged).await;
    assert_yes(&harness, &sound, &server, &content).await;
}

/// <https://github.com/rustic-rs/rustic/issues/249>
#[tokio::test]
async fn an_upload_was_lost_and_the_index_listed_it() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(9, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    for pack in packs(&harness) {
        lose(&harness, &pack);
    }
    find_damage(&harness).await;
    assert_no(&harness, &saved, straight(&saved, &server), Code::DataDamaged).await;
}

/// <https://github.com/duplicati/duplicati/issues/6626>
#[tokio::test]
async fn a_failed_upload_was_treated_as_present() {
    for calls in [1, 3, 5, 7, 9] {
        for lost_answer in [false, true] {
            let harness = Harness::new().await;
            let content = vec![disk(10, 2 * MIB)];
            let server = harness.add_server(&[&content[0]]);
            let (_, id) = begin_backup(&harness, &server).await;
            let gone = BackendError::Unreachable { text: "an upload failed".into() };
            let fault = if lost_answer { Fault::After(gone) } else { Fault::Before(gone) };
            harness.places.store_of(&server.project_id).fail_after(calls, fault);
            harness.run_jobs_to_their_end().await;
            let saved = item(&harness, &id).await;
            assert_yes(&harness, &saved, &server, &content).await;
        }
    }
}

/// <https://github.com/restic/restic/issues/3268>
#[tokio::test]
async fn what_was_read_wrong_once_was_right_in_the_store() {
    let harness = Harness::new().await;
    let content = vec![disk(11, 2 * MIB)];
    let server = harness.add_server(&[&content[0]]);
    let saved = back_up(&harness, &server).await;
    let (store, pack) = (harness.places.store_of(&server.project_id), packs(&harness)[0]);
    let right = store.inner().get(&pack, u64::MAX).unwrap();
    damage(&harness, &server.project_id, &pack);
    find_damage(&harness).await;
    assert_no(&harness, &saved, straight(&saved, &server), Code::DataDamaged).await;
    store.inner().delete(&pack).unwrap();
    store.inner().put(&pack, &right).unwrap();
    assert!(verify(&harness, &server.project_id).await.damaged.is_empty());
    assert_yes(&harness, &saved, &server, &content).await;
}

/// <https://github.com/harvester/harvester/issues/7692>
#[tokio::test]
async fn the_catalogue_said_ready_and_the_data_was_gone() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(12, MIB)]);
    let saved = back_up(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    for snapshot in store.inner().list(ObjectKind::Snapshot).unwrap() {
        lose(&harness, &snapshot.name);
    }
    assert_no(&harness, &saved, straight(&saved, &server), Code::SnapshotMissing).await;
}

/// <https://github.com/longhorn/longhorn/issues/1255>
#[tokio::test]
async fn a_store_out_of_reach_was_called_healthy() {
    let harness = Harness::new().await;
    let content = vec![disk(13, MIB)];
    let server = harness.add_server(&[&content[0]]);
    let saved = back_up(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    store.break_down();
    assert_no(&harness, &saved, straight(&saved, &server), Code::RepositoryUnreachable).await;
    store.repair();
    assert_yes(&harness, &saved, &server, &content).await;
}

/// <https://github.com/apache/cloudstack-documentation/pull/634>
#[tokio::test]
async fn the_key_was_gone_and_the_backup_looked_fine() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(14, MIB)]);
    let saved = back_up(&harness, &server).await;
    let other = Arc::new(ServiceKey::random().unwrap());
    let keyless = harness.restarted_with_key(other).await;
    assert_no(&keyless, &saved, straight(&saved, &server), Code::KeyUnavailable).await;
}

/// <https://github.com/ATAC-Helicopter/VaultSync/issues/266>
#[tokio::test]
async fn the_catalogue_was_lost_and_an_import_showed_nothing() {
    let harness = Harness::new().await;
    let content = vec![disk(16, MIB), disk(17, MIB)];
    let server = harness.add_server(&[&content[0], &content[1]]);
    let saved = back_up(&harness, &server).await;
    let harness = harness.with_an_empty_catalogue().await;
    assert_no(&harness, &saved, straight(&saved, &server), Code::ItemNotFound).await;
    harness.app.adopt_records(&server.project_id).await.unwrap();
    assert_yes(&harness, &saved, &server, &content).await;
}

/// <https://bugs.launchpad.net/cinder/+bug/1965847>
#[tokio::test]
async fn an_import_destroyed_the_record_that_was_there() {
    let harness = Harness::new().await;
    let content = vec![disk(18, MIB)];
    let server = harness.add_server(&[&content[0]]);
    let saved = back_up(&harness, &server).await;
    assert_eq!(harness.app.adopt_records(&server.project_id).await.unwrap(), 0);
    assert_eq!(item(&harness, &saved.id).await, saved);
    assert_yes(&harness, &saved, &server, &content).await;
}

/// <https://github.com/velero-io/velero/issues/6304>,
/// <https://github.com/coreos/coreos-installer/pull/70>
#[tokio::test]
async fn zeroes_were_skipped_on_a_disk_that_was_not_blank() {
    let harness = Harness::new().await;
    let mut content = disk(19, 4 * MIB);
    content[MIB..3 * MIB].fill(0);
    let server = harness.add_server(&[&content]);
    let saved = back_up(&harness, &server).await;
    assert_yes(&harness, &saved, &server, &[content]).await;
}

/// <https://bugs.launchpad.net/cinder/+bug/2155612>
#[tokio::test]
async fn a_chunk_of_zeroes_shifted_what_followed() {
    let harness = Harness::new().await;
    let mut content = disk(20, 4 * MIB + 4096);
    content[..512 << 10].fill(0);
    content[2 * MIB..2 * MIB + (512 << 10)].fill(0);
    content[4 * MIB..].fill(0);
    let server = harness.add_server(&[&content]);
    let saved = back_up(&harness, &server).await;
    assert_yes(&harness, &saved, &server, &[content]).await;
}

/// <https://github.com/OpenNebula/one/issues/8036>,
/// <https://github.com/OpenNebula/one/issues/7187>
#[tokio::test]
async fn an_empty_disk_came_back_without_a_size() {
    let harness = Harness::new().await;
    let content = vec![disk(21, MIB), vec![0; 2 * MIB]];
    let server = harness.add_server(&[&content[0], &content[1]]);
    let saved = back_up(&harness, &server).await;
    assert_eq!(saved.volumes[1].source_size_bytes, 2 * MIB as u64);
    assert_eq!(saved.volumes[1].stored.as_ref().unwrap().data_bytes, 0);
    assert_yes(&harness, &saved, &server, &content).await;
    let mut small = straight(&saved, &server);
    harness.cloud.edit_server(&server.id, |server| server.volumes[1].size_bytes = MIB as u64);
    small.mapping = straight(&saved, &server).mapping;
    assert_no(&harness, &saved, small, Code::TargetTooSmall).await;
}
