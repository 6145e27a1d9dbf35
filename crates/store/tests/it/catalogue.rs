use kedge_core::checkpoint::FaultOperation;
use kedge_core::ids::ItemId;
use kedge_core::job::{Claim, ClaimKind, ClaimMode};
use kedge_core::status::ItemStatus;
use kedge_store::{ItemFilter, PageRequest, Store, StoreError};

use crate::fixture::*;

#[tokio::test]
async fn an_accepted_backup_reads_back_as_it_was_given() {
    let store = Store::open_in_memory().await.unwrap();
    let checkpoint = checkpoint_of(vec![item(1)]);
    store.create_protect(&checkpoint, &protect_job(1)).await.unwrap();
    let found = store.find_checkpoint(&project(), &checkpoint.id).await.unwrap();
    assert_eq!(found, Some(checkpoint));
    assert_eq!(find(&store, 1).await, item(1));
}

#[tokio::test]
async fn a_backup_rebuilt_from_the_repository_reads_back_as_it_was_given() {
    let store = Store::open_in_memory().await.unwrap();
    let mut whole = item(1);
    whole.status = ItemStatus::Available;
    whole.name = HOSTILE.to_owned();
    whole.source.zone = HOSTILE.to_owned();
    whole.protected_at = Some(at(-1));
    whole.finished_at = Some(at(i64::MAX));
    whole.snapshot = Some(result().snapshot);
    whole.fault = Some(fault(FaultOperation::Restore));
    whole.progress = 100;
    whole.volumes[1].stored = Some(stored("data"));
    store.adopt(&checkpoint_of(vec![whole.clone()])).await.unwrap();
    whole.sequence = Some(1);
    assert_eq!(find(&store, 1).await, whole);

    let mut second = item(2);
    second.checkpoint_id = checkpoint_id(1);
    store.adopt(&checkpoint_of(vec![second.clone()])).await.unwrap();
    let found = store.find_checkpoint(&project(), &checkpoint_id(1)).await.unwrap().unwrap();
    assert_eq!(found.items, [whole, second]);
}

#[tokio::test]
async fn what_exists_is_not_adopted_again_nor_by_another_project() {
    let store = Store::open_in_memory().await.unwrap();
    store.adopt(&checkpoint_of(vec![item(1)])).await.unwrap();
    let again = store.adopt(&checkpoint_of(vec![item(1)])).await;
    assert!(matches!(again, Err(StoreError::Exists(_))), "{again:?}");

    let mut foreign = item(2);
    foreign.checkpoint_id = checkpoint_id(1);
    foreign.project_id = stranger();
    let foreign = store.adopt(&checkpoint_of(vec![foreign])).await;
    assert!(matches!(foreign, Err(StoreError::Exists(_))), "{foreign:?}");

    let mut torn = checkpoint_of(vec![item(3)]);
    torn.items[0].project_id = stranger();
    assert!(matches!(store.adopt(&torn).await, Err(StoreError::Misuse(_))));
    assert_eq!(store.count_items(&ItemFilter::default()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_new_backup_starts_protecting_and_its_id_is_new() {
    let store = Store::open_in_memory().await.unwrap();
    let mut early = item(1);
    early.status = ItemStatus::Available;
    let refused = store.create_protect(&checkpoint_of(vec![early]), &protect_job(1)).await;
    assert!(matches!(refused, Err(StoreError::Misuse(_))));
    accept(&store, 1).await;
    let twice = store.create_protect(&checkpoint_of(vec![item(1)]), &protect_job(1)).await;
    assert!(matches!(twice, Err(StoreError::Exists(_))), "{twice:?}");
}

#[tokio::test]
async fn a_held_server_is_refused_and_nothing_of_the_backup_stays() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    for mode in [ClaimMode::Exclusive, ClaimMode::Shared] {
        let mut job = protect_job(2);
        let id = server_id(1).to_string();
        job.claims.push(Claim { kind: ClaimKind::Server, id: id.clone(), mode });
        let refused = store.create_protect(&checkpoint_of(vec![item(2)]), &job).await;
        let claimed = StoreError::Claimed { kind: ClaimKind::Server, id, by: job_id(1) };
        assert_eq!(refused, Err(claimed));
    }
    assert_eq!(store.find_item(&project(), &item_id(2)).await.unwrap(), None);
    assert_eq!(store.find_job(&job_id(2)).await.unwrap(), None);
    accept(&store, 2).await;
}

#[tokio::test]
async fn shared_claims_keep_out_only_exclusive_ones() {
    let store = Store::open_in_memory().await.unwrap();
    let claim = |mode| Claim { kind: ClaimKind::Volume, id: "v".to_owned(), mode };
    for (number, mode, admitted) in [
        (1, ClaimMode::Shared, true),
        (2, ClaimMode::Shared, true),
        (3, ClaimMode::Exclusive, false),
    ] {
        let mut job = protect_job(number);
        job.claims = vec![claim(mode)];
        let answer = store.create_protect(&checkpoint_of(vec![item(number)]), &job).await;
        assert_eq!(answer.is_ok(), admitted, "{number}: {answer:?}");
    }
    let mut other_kind = protect_job(4);
    other_kind.claims = vec![Claim::exclusive(ClaimKind::Server, "v")];
    store.create_protect(&checkpoint_of(vec![item(4)]), &other_kind).await.unwrap();
}

#[tokio::test]
async fn many_items_are_found_by_one_look_up_of_bounded_size() {
    let store = Store::open_in_memory().await.unwrap();
    for number in 1..=3 {
        accept(&store, number).await;
    }
    let ids: Vec<ItemId> = [3, 9, 1].map(item_id).into();
    let before = store.statements();
    let found = store.find_items(&project(), &ids).await.unwrap();
    assert_eq!(store.statements() - before, 1);
    assert_eq!(found, [item(1), item(3)]);

    let many: Vec<ItemId> = (0..10_000).map(item_id).collect();
    assert_eq!(store.find_items(&project(), &many).await.unwrap().len(), 3);
    let too_many: Vec<ItemId> = (0..10_001).map(item_id).collect();
    let refused = store.find_items(&project(), &too_many).await;
    assert_eq!(refused, Err(StoreError::TooMany { asked: 10_001, most: 10_000 }));
}

#[tokio::test]
async fn an_incremental_builds_on_the_latest_available_items() {
    let store = Store::open_in_memory().await.unwrap();
    let rows = [
        (1, ItemStatus::Available, Some(at(10))),
        (2, ItemStatus::Available, Some(at(30))),
        (3, ItemStatus::Available, Some(at(20))),
        (4, ItemStatus::Error, Some(at(40))),
        (5, ItemStatus::Protecting, None),
    ];
    for (number, status, protected_at) in rows {
        let mut item = item(number);
        (item.status, item.protected_at) = (status, protected_at);
        item.source.id = server_id(1);
        item.snapshot = protected_at.map(|_| result().snapshot);
        store.adopt(&checkpoint_of(vec![item])).await.unwrap();
    }
    let latest = store.latest_available_item(&project(), &server_id(1)).await.unwrap();
    assert_eq!(latest.map(|item| item.id), Some(item_id(2)));
    for (most, expected) in [(2, vec![item_id(2), item_id(3)]), (9, [2, 3, 1].map(item_id).into())]
    {
        let items = store.latest_available_items(&project(), &server_id(1), most).await.unwrap();
        let ids: Vec<_> = items.into_iter().map(|item| item.id).collect();
        assert_eq!(ids, expected, "newest first");
    }
    let none = store.latest_available_item(&stranger(), &server_id(1)).await.unwrap();
    assert_eq!(none, None);
    let none = store.latest_available_item(&project(), &server_id(2)).await.unwrap();
    assert_eq!(none, None);
}

#[tokio::test]
async fn a_walk_over_a_project_meets_every_item_of_it_once() {
    let store = Store::open_in_memory().await.unwrap();
    for number in 0..1003 {
        let mut item = item(number);
        item.created_at = at(i64::try_from(number % 7).unwrap());
        store.adopt(&checkpoint_of(vec![item])).await.unwrap();
    }
    let mut foreign = item(2000);
    foreign.project_id = stranger();
    store.adopt(&checkpoint_of(vec![foreign])).await.unwrap();
    let walked = store.all_items(&project()).await.unwrap();
    let ids: Vec<ItemId> = walked.iter().map(|item| item.id.clone()).collect();
    assert_eq!(ids, (0..1003).map(item_id).collect::<Vec<_>>());
    assert!(walked.iter().all(|item| item.volumes.len() == 2 && item.tags.len() == 2));
}

/// What a caller could learn from a difference: that a foreign object exists.
#[tokio::test]
async fn foreign_and_absent_objects_run_the_same_statements() {
    let store = Store::open_in_memory().await.unwrap();
    make_available(&store, 1).await;
    store.create_restore(&restore(1), &restore_job(1)).await.unwrap();

    let mut runs = Vec::new();
    for (project, number) in [(stranger(), 1), (project(), 8), (stranger(), 8)] {
        store.record_statements();
        assert_eq!(store.find_item(&project, &item_id(number)).await.unwrap(), None);
        let ids = [item_id(number), item_id(9)];
        assert_eq!(store.find_items(&project, &ids).await.unwrap(), []);
        let checkpoint = checkpoint_id(number);
        assert_eq!(store.find_checkpoint(&project, &checkpoint).await.unwrap(), None);
        assert_eq!(store.find_restore(&project, &restore_id(number)).await.unwrap(), None);
        let parent = store.latest_available_item(&project, &server_id(number)).await;
        assert_eq!(parent.unwrap(), None);
        let page = PageRequest { marker: Some(item_id(number)), ..PageRequest::default() };
        let filter = ItemFilter { project: Some(project.clone()), ..ItemFilter::default() };
        let page = store.list_items(&filter, &page).await;
        assert_eq!(page, Err(StoreError::UnknownMarker));
        let restores = store.list_restores(&project, 10, Some(&restore_id(number))).await;
        assert_eq!(restores, Err(StoreError::UnknownMarker));
        let filter = ItemFilter { checkpoint_id: Some(checkpoint), ..filter };
        let empty = store.list_items(&filter, &PageRequest::default()).await.unwrap();
        assert_eq!(empty.items, []);
        runs.push(store.take_statements());
    }
    assert!(runs[0].len() >= 9, "{:?}", runs[0]);
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0], runs[2]);

    store.record_statements();
    assert!(store.find_item(&project(), &item_id(1)).await.unwrap().is_some());
    assert_eq!(store.take_statements(), runs[0][..1], "what is found runs it too");
}
