//! The main job: back up, change, back up again, restore, delete.

use kedge_core::checkpoint::Method;
use kedge_core::resource::ServerStatus;
use kedge_core::status::ItemStatus;
use kedge_service::error::Error;
use kedge_store::RestoreStatus;
use kedge_testkit::Harness;

use crate::support::*;

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_backup_is_restored_byte_for_byte() {
    let harness = Harness::new().await;
    let before = [disk(1, 3 * MIB), disk(2, MIB + 1234)];
    let server = harness.add_server(&[&before[0], &before[1]]);
    let item = back_up(&harness, &server).await;
    assert_eq!(item.status, ItemStatus::Available, "{:?}", item.fault);
    assert_eq!(item.method, Method::Full);

    scramble(&harness, &server);
    let restore = begin_restore(&harness, &item, straight(&item, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;

    assert_eq!(find_restore(&harness, &restore).await.status, RestoreStatus::Success);
    assert_eq!(contents(&harness, &server), before);
    let after = harness.cloud.server(&server.id).unwrap();
    assert_eq!(after.status, ServerStatus::Active, "it was to be started again");
}

#[tokio::test]
async fn an_incremental_reads_what_changed_and_holds_everything() {
    let harness = Harness::new().await;
    let first = disk(3, 8 * MIB);
    let server = harness.add_server(&[&first]);
    let full = back_up(&harness, &server).await;
    harness.cloud.overwrite(&server.volumes[0].id, 5 * MIB as u64, b"a change");
    let mut second = first.clone();
    second[5 * MIB..5 * MIB + 8].copy_from_slice(b"a change");

    let incremental = back_up(&harness, &server).await;

    assert_eq!(incremental.method, Method::Incremental);
    let stored = incremental.volumes[0].stored.as_ref().unwrap();
    assert!(stored.stored_bytes < full.volumes[0].stored.as_ref().unwrap().stored_bytes / 4);
    for (item, expected) in [(&full, &first), (&incremental, &second)] {
        scramble(&harness, &server);
        begin_restore(&harness, item, straight(item, &server)).await.unwrap();
        harness.run_jobs_to_their_end().await;
        assert_eq!(&contents(&harness, &server)[0], expected);
    }
}

#[tokio::test]
async fn a_cloud_that_lies_about_changes_is_found_out_and_everything_is_read() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(4, 8 * MIB)]);
    back_up(&harness, &server).await;
    harness.cloud.lie_about_changes();
    let truth = disk(5, 8 * MIB);
    harness.cloud.overwrite(&server.volumes[0].id, 0, &truth);

    let item = back_up(&harness, &server).await;

    scramble(&harness, &server);
    begin_restore(&harness, &item, straight(&item, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert_eq!(contents(&harness, &server)[0], truth);
}

#[tokio::test]
async fn deleting_a_backup_leaves_the_others_whole() {
    let harness = Harness::new().await;
    let content = disk(6, 4 * MIB);
    let server = harness.add_server(&[&content]);
    let first = back_up(&harness, &server).await;
    let second = back_up(&harness, &server).await;
    let context = harness.context().await;

    harness.app.delete(&context, &first.checkpoint_id, None).await.unwrap();
    assert_eq!(item(&harness, &first.id).await.status, ItemStatus::Deleting);
    harness.run_jobs_to_their_end().await;

    let gone = harness.app.get_item(&context, &first.id).await;
    assert!(matches!(gone, Err(Error::Refused(_))), "{gone:?}");
    scramble(&harness, &server);
    begin_restore(&harness, &second, straight(&second, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert_eq!(contents(&harness, &server)[0], content);
}

#[tokio::test]
async fn a_backup_goes_back_to_another_larger_server_whose_further_bytes_stay() {
    let harness = Harness::new().await;
    let content = disk(7, MIB);
    let server = harness.add_server(&[&content]);
    let item = back_up(&harness, &server).await;
    let old = disk(8, 2 * MIB);
    let other = harness.add_server(&[&old]);

    begin_restore(&harness, &item, straight(&item, &other)).await.unwrap();
    harness.run_jobs_to_their_end().await;

    let after = &contents(&harness, &other)[0];
    assert_eq!(&after[..MIB], &content[..]);
    assert_eq!(&after[MIB..], &old[MIB..]);
}

/// `server.json` holds every catalogue field: what is read back from the repository is
/// what the catalogue says.
#[tokio::test]
async fn a_record_is_rebuilt_from_the_repository_alone() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(9, MIB), &disk(10, MIB)]);
    let item = back_up(&harness, &server).await;
    let context = harness.context().await;

    let rebuilt = harness.app.rebuilt_records(context.project()).await.unwrap();

    assert_eq!(rebuilt.len(), 1);
    let mut expected = item.clone();
    // The commit that makes an item available comes after its file is written.
    expected.finished_at = rebuilt[0].items[0].finished_at;
    expected.sequence = None;
    expected.updated_at = rebuilt[0].items[0].updated_at;
    assert_eq!(rebuilt[0].items, [expected]);
    let checkpoint =
        harness.store.find_checkpoint(context.project(), &item.checkpoint_id).await.unwrap();
    let checkpoint = checkpoint.unwrap();
    assert_eq!(
        (&rebuilt[0].id, rebuilt[0].created_at, &rebuilt[0].plan_id, &rebuilt[0].plan_name),
        (&checkpoint.id, checkpoint.created_at, &checkpoint.plan_id, &checkpoint.plan_name)
    );
}

/// Repository and service key rebuild everything: the catalogue may be lost whole.
#[tokio::test]
async fn a_lost_catalogue_is_taken_from_the_repository_and_restores() {
    let harness = Harness::new().await;
    let content = disk(11, 2 * MIB);
    let server = harness.add_server(&[&content]);
    let item = back_up(&harness, &server).await;
    scramble(&harness, &server);

    let harness = harness.with_an_empty_catalogue().await;
    let context = harness.context().await;
    assert!(harness.app.get_item(&context, &item.id).await.is_err());
    assert_eq!(harness.app.adopt_records(context.project()).await.unwrap(), 1);
    assert_eq!(harness.app.adopt_records(context.project()).await.unwrap(), 0, "a second time");

    begin_restore(&harness, &item, straight(&item, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert_eq!(contents(&harness, &server)[0], content);
}

/// Movers leave the disks to the guests: what they read, write and read back takes its
/// time, all of them together.
#[tokio::test]
async fn movers_stay_below_their_rates() {
    const MIB: usize = 1 << 20;
    let mover_rates =
        kedge_engine::layer::Rates { bytes_per_sec: Some(1 << 20), operations_per_sec: None };
    let settings = kedge_service::settings::Settings { mover_rates, ..Default::default() };
    let harness = Harness::with(settings).await;
    let server = harness.add_server(&[&disk(1, 3 * MIB), &disk(2, 2 * MIB)]);
    let waited = || kedge_engine::layer::Pace::now(&*harness.waited).as_secs_f64();
    let saved = back_up(&harness, &server).await;
    // The last tenth of a second is saved up before.
    assert!((4.8..5.1).contains(&waited()), "{}", waited());
    begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert!((14.6..15.1).contains(&waited()), "{}", waited());
}
