use kedge_core::checkpoint::FaultOperation;
use kedge_core::ids::{ItemId, ProjectId};
use kedge_core::job::{ClaimKind, DeleteState, ProtectState, RestoreState, Work};
use kedge_core::status::{IllegalMove, ItemEvent, ItemStatus};
use kedge_store::{Fate, ItemFilter, RestoreStatus, Store, StoreError};

use crate::fixture::*;

#[tokio::test]
async fn a_finished_backup_is_available_with_all_that_was_stored() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let job = claim(&store).await;
    let next = protect_work(1, ProtectState::Recorded);
    store.finish_protect(&job, &result(), &next, at(2000)).await.unwrap();

    let mut expected = item(1);
    expected.status = ItemStatus::Available;
    expected.method = result().method;
    expected.updated_at = at(2000);
    expected.protected_at = Some(at(1500));
    expected.finished_at = Some(at(2000));
    expected.sequence = Some(1);
    expected.progress = 100;
    expected.snapshot = Some(result().snapshot);
    for (volume, stored) in expected.volumes.iter_mut().zip(result().volumes) {
        volume.stored = Some(stored);
    }
    assert_eq!(find(&store, 1).await, expected);

    // The cloud's snapshots are still to be released, so the server stays claimed.
    let held = store.holders(&[server_id(1)], &[], None).await.unwrap();
    assert_eq!(held.job(ClaimKind::Server, server_id(1).as_str()), Some(&job.id));
    store.save_state(&job, &protect_work(1, ProtectState::Done), at(2001)).await.unwrap();
    let held = store.holders(&[server_id(1)], &[], None).await.unwrap();
    assert_eq!(held.ids(ClaimKind::Server).count(), 0);
}

#[tokio::test]
async fn a_result_that_leaves_a_volume_out_changes_nothing() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let job = claim(&store).await;
    let mut short = result();
    short.volumes.pop();
    let next = protect_work(1, ProtectState::Done);
    let refused = store.finish_protect(&job, &short, &next, at(2000)).await;
    assert!(matches!(refused, Err(StoreError::Misuse(_))), "{refused:?}");
    assert_eq!(find(&store, 1).await, item(1));
    assert_eq!(store.list_live_jobs().await.unwrap(), [job]);
}

#[tokio::test]
async fn a_failed_backup_ends_in_error_and_tells_why() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let job = claim(&store).await;
    let fault = fault(FaultOperation::Backup);
    let done = protect_work(1, ProtectState::Done);
    store.fail_protect(&job, &fault, &done, at(2000)).await.unwrap();
    let found = find(&store, 1).await;
    assert_eq!((found.status, found.progress), (ItemStatus::Error, 100));
    assert_eq!((found.fault, found.updated_at), (Some(fault), at(2000)));
    accept_again_on_the_same_server(&store).await;
}

async fn accept_again_on_the_same_server(store: &Store) {
    let mut job = protect_job(2);
    job.claims = protect_job(1).claims;
    store.create_protect(&checkpoint_of(vec![item(2)]), &job).await.unwrap();
}

#[tokio::test]
async fn a_restore_takes_the_item_and_gives_it_back() {
    let store = Store::open_in_memory().await.unwrap();
    make_available(&store, 1).await;
    store.create_restore(&restore(1), &restore_job(1)).await.unwrap();
    let found = find(&store, 1).await;
    assert_eq!((found.status, found.progress), (ItemStatus::Restoring, 0));
    assert_eq!(found.updated_at, at(3000));
    let recorded = store.find_restore(&project(), &restore_id(1)).await.unwrap();
    assert_eq!(recorded, Some(restore(1)));

    let job = claim(&store).await;
    store.finish_restore(&job, &restore_work(1, RestoreState::Done), None, at(3500)).await.unwrap();
    let found = find(&store, 1).await;
    assert_eq!((found.status, found.progress, found.fault), (ItemStatus::Available, 100, None));
    let recorded = store.find_restore(&project(), &restore_id(1)).await.unwrap().unwrap();
    assert_eq!((recorded.status, recorded.updated_at), (RestoreStatus::Success, at(3500)));
}

#[tokio::test]
async fn a_failed_restore_leaves_the_backup_available_until_the_next_try() {
    let store = Store::open_in_memory().await.unwrap();
    make_available(&store, 1).await;
    store.create_restore(&restore(1), &restore_job(1)).await.unwrap();
    let job = claim(&store).await;
    let fault = fault(FaultOperation::Restore);
    let done = restore_work(1, RestoreState::Done);
    store.fail_restore(&job, &fault, &done, at(3500)).await.unwrap();
    let found = find(&store, 1).await;
    assert_eq!((found.status, found.progress), (ItemStatus::Available, 100));
    assert_eq!(found.fault.as_ref(), Some(&fault));
    let recorded = store.find_restore(&project(), &restore_id(1)).await.unwrap().unwrap();
    assert_eq!(recorded.status, RestoreStatus::Fail);
    assert_eq!(recorded.reason, fault.reason.replace('\0', "\u{fffd}"));

    let mut second = restore(1);
    second.id = restore_id(2);
    let mut job = restore_job(1);
    job.id = job_id(1002);
    store.create_restore(&second, &job).await.unwrap();
    assert_eq!(find(&store, 1).await.fault, None);
}

#[tokio::test]
async fn a_restore_is_refused_when_the_item_is_gone_busy_or_held() {
    let store = Store::open_in_memory().await.unwrap();
    let absent = store.create_restore(&restore(1), &restore_job(1)).await;
    assert!(matches!(absent, Err(StoreError::NotFound(_))), "{absent:?}");

    accept(&store, 1).await;
    let mut elsewhere = restore(1);
    elsewhere.checkpoint_id = checkpoint_id(7);
    let foreign = store.create_restore(&elsewhere, &restore_job(1)).await;
    assert!(matches!(foreign, Err(StoreError::NotFound(_))), "{foreign:?}");
    let mut foreign = restore(1);
    foreign.project_id = stranger();
    let foreign = store.create_restore(&foreign, &restore_job(1)).await;
    assert!(matches!(foreign, Err(StoreError::NotFound(_))), "{foreign:?}");

    let busy = store.create_restore(&restore(1), &restore_job(1)).await;
    let from = ItemStatus::Protecting;
    let event = ItemEvent::RestoreAccepted;
    assert_eq!(busy, Err(StoreError::Illegal(IllegalMove { from, event })));

    let job = claim(&store).await;
    let recorded = protect_work(1, ProtectState::Recorded);
    store.finish_protect(&job, &result(), &recorded, at(2000)).await.unwrap();
    let before = find(&store, 1).await;
    let held = store.create_restore(&restore(1), &restore_job(1)).await;
    let id = server_id(1).to_string();
    let claimed = StoreError::Claimed { kind: ClaimKind::Server, id, by: job_id(1) };
    assert_eq!(held, Err(claimed));
    assert_eq!(find(&store, 1).await, before);
    assert_eq!(store.find_restore(&project(), &restore_id(1)).await.unwrap(), None);
}

#[tokio::test]
async fn a_deleted_item_is_hidden_everywhere_and_leaves_a_tombstone() {
    let store = Store::open_in_memory().await.unwrap();
    make_available(&store, 1).await;
    let jobs = [delete_job(1)];
    store.create_deletes(&project(), &checkpoint_id(1), &jobs).await.unwrap();
    let found = find(&store, 1).await;
    assert_eq!((found.status, found.progress), (ItemStatus::Deleting, 0));
    assert_eq!(found.updated_at, at(4000));
    let fate = async |project: &ProjectId| {
        store.find_fates(project, &[item_id(1)]).await.unwrap().get(&item_id(1)).copied()
    };
    assert_eq!(fate(&project()).await, Some(Fate::Kept));

    let job = claim(&store).await;
    store.save_state(&job, &delete_work(1, DeleteState::Removed), at(4100)).await.unwrap();
    store.finish_delete(&job, &delete_work(1, DeleteState::Done), at(4200)).await.unwrap();
    assert_eq!(store.find_item(&project(), &item_id(1)).await.unwrap(), None);
    assert_eq!(store.find_checkpoint(&project(), &checkpoint_id(1)).await.unwrap(), None);
    let parent = store.latest_available_item(&project(), &server_id(1)).await.unwrap();
    assert_eq!(parent, None);
    assert_eq!(store.count_items(&ItemFilter::default()).await.unwrap(), 0);
    assert_eq!(store.all_items(&project()).await.unwrap(), []);
    assert_eq!(fate(&project()).await, Some(Fate::Deleted));
    assert_eq!(fate(&stranger()).await, None);

    let again = store.create_deletes(&project(), &checkpoint_id(1), &[delete_job(1)]).await;
    assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
    let adopted = store.adopt(&checkpoint_of(vec![item(1)])).await;
    assert!(matches!(adopted, Err(StoreError::Exists(_))), "{adopted:?}");
}

#[tokio::test]
async fn deletions_are_admitted_all_or_none() {
    let store = Store::open_in_memory().await.unwrap();
    let mut items = vec![item(1), item(2)];
    for item in &mut items {
        item.checkpoint_id = checkpoint_id(1);
    }
    items[0].status = ItemStatus::Available;
    store.adopt(&checkpoint_of(items)).await.unwrap();
    let before = (find(&store, 1).await, find(&store, 2).await);

    let both = [delete_job(1), delete_job(2)];
    let refused = store.create_deletes(&project(), &checkpoint_id(1), &both).await;
    let from = ItemStatus::Protecting;
    let event = ItemEvent::DeleteAccepted;
    assert_eq!(refused, Err(StoreError::Illegal(IllegalMove { from, event })));
    let unknown = [delete_job(1), delete_job(3)];
    let refused = store.create_deletes(&project(), &checkpoint_id(1), &unknown).await;
    assert!(matches!(refused, Err(StoreError::NotFound(_))), "{refused:?}");
    let foreign = store.create_deletes(&stranger(), &checkpoint_id(1), &both[..1]).await;
    assert!(matches!(foreign, Err(StoreError::NotFound(_))), "{foreign:?}");
    assert_eq!((find(&store, 1).await, find(&store, 2).await), before);
    assert_eq!(store.list_live_jobs().await.unwrap(), []);
}

#[tokio::test]
async fn a_failed_deletion_ends_in_error_and_can_be_tried_again() {
    let store = Store::open_in_memory().await.unwrap();
    make_available(&store, 1).await;
    store.create_deletes(&project(), &checkpoint_id(1), &[delete_job(1)]).await.unwrap();
    let job = claim(&store).await;
    let fault = fault(FaultOperation::Delete);
    let done = delete_work(1, DeleteState::Done);
    store.fail_delete(&job, &fault, &done, at(4200)).await.unwrap();
    let found = find(&store, 1).await;
    assert_eq!((found.status, found.fault), (ItemStatus::Error, Some(fault.clone())));

    let (item, mut job) = delete_job(1);
    job.id = job_id(2999);
    store.create_deletes(&project(), &checkpoint_id(1), &[(item, job)]).await.unwrap();
    let found = find(&store, 1).await;
    assert_eq!((found.status, found.fault), (ItemStatus::Deleting, Some(fault)));
}

/// Every arrow, tried by a holder that lost its fence and by one whose item stands
/// elsewhere: neither changes anything.
#[tokio::test]
async fn no_arrow_is_taken_without_the_fence_or_from_another_status() {
    for wrong in ["fence", "status"] {
        let store = Store::open_in_memory().await.unwrap();
        make_available(&store, 1).await;
        store.create_restore(&restore(1), &restore_job(1)).await.unwrap();
        let restoring = claim(&store).await;
        accept(&store, 2).await;
        let protecting = claim(&store).await;
        make_available(&store, 3).await;
        store.create_deletes(&project(), &checkpoint_id(3), &[delete_job(3)]).await.unwrap();
        let deleting = claim(&store).await;

        let (mut protect, mut restore, mut delete) = (protecting, restoring, deleting);
        if wrong == "fence" {
            for job in [&mut protect, &mut restore, &mut delete] {
                job.fence += 1;
            }
        } else {
            end_all(&store, [&protect, &restore, &delete]).await;
        }
        let snapshot = everything(&store).await;
        let fault = fault(FaultOperation::Backup);
        let done = |job: &kedge_core::job::Job| job.work.clone();
        let answers = [
            store.finish_protect(&protect, &result(), &done(&protect), at(9)).await,
            store.fail_protect(&protect, &fault, &done(&protect), at(9)).await,
            store.finish_restore(&restore, &done(&restore), None, at(9)).await,
            store.fail_restore(&restore, &fault, &done(&restore), at(9)).await,
            store.finish_delete(&delete, &done(&delete), at(9)).await,
            store.fail_delete(&delete, &fault, &done(&delete), at(9)).await,
        ];
        for answer in answers {
            match wrong {
                "fence" => assert_eq!(answer, Err(StoreError::FenceLost)),
                _ => assert!(matches!(answer, Err(StoreError::Illegal(_))), "{answer:?}"),
            }
        }
        assert_eq!(everything(&store).await, snapshot);
    }
}

/// Moves the three items on, while their jobs run on.
async fn end_all(store: &Store, jobs: [&kedge_core::job::Job; 3]) {
    let [protect, restore, delete] = jobs;
    store.finish_protect(protect, &result(), &protect.work, at(8)).await.unwrap();
    store.finish_restore(restore, &restore.work, None, at(8)).await.unwrap();
    store.finish_delete(delete, &delete.work, at(8)).await.unwrap();
}

async fn everything(store: &Store) -> String {
    let items = store.all_items(&project()).await.unwrap();
    let jobs = store.list_live_jobs().await.unwrap();
    let restores = store.list_restores(&project(), 10, None).await.unwrap();
    let ids: Vec<ItemId> = (1..10).map(item_id).collect();
    let fates = store.find_fates(&project(), &ids).await.unwrap();
    let fates: std::collections::BTreeMap<_, _> = fates.into_iter().collect();
    format!("{items:?} {jobs:?} {restores:?} {fates:?}")
}

#[tokio::test]
async fn only_a_restore_job_ends_a_restore() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let job = claim(&store).await;
    let refused = store.finish_restore(&job, &job.work, None, at(9)).await;
    assert!(matches!(refused, Err(StoreError::Misuse(_))), "{refused:?}");

    make_available(&store, 2).await;
    store.create_restore(&restore(2), &restore_job(2)).await.unwrap();
    let mut lost = claim(&store).await;
    lost.work =
        Work::Restore { restore: restore_id(9), item: item_id(2), state: RestoreState::Start };
    let refused = store.finish_restore(&lost, &lost.work, None, at(9)).await;
    assert!(matches!(refused, Err(StoreError::NotFound(_))), "{refused:?}");
}

#[tokio::test]
async fn restores_are_listed_newest_first_in_pages() {
    let store = Store::open_in_memory().await.unwrap();
    for (number, created_at) in [(1, 10), (2, 30), (3, 20), (4, 20)] {
        make_available(&store, number).await;
        let mut restore = restore(number);
        restore.created_at = at(created_at);
        store.create_restore(&restore, &restore_job(number)).await.unwrap();
        let job = claim(&store).await;
        let done = restore_work(number, RestoreState::Done);
        store.finish_restore(&job, &done, None, at(50)).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut marker = None;
    loop {
        let (page, more) = store.list_restores(&project(), 3, marker.as_ref()).await.unwrap();
        marker = page.last().map(|restore| restore.id.clone());
        seen.extend(page.into_iter().map(|restore| restore.id));
        if !more {
            break;
        }
    }
    assert_eq!(seen, [2, 4, 3, 1].map(restore_id));
    let (foreign, more) = store.list_restores(&stranger(), 3, None).await.unwrap();
    assert_eq!((foreign.len(), more), (0, false));
}
