use kedge_store::{ItemFilter, Outage, Store, StoreError};

use crate::fixture::*;

#[tokio::test]
async fn an_outage_is_told_by_every_call_and_passes() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    store.set_outage(Outage::Total);
    let before = store.statements();
    let answers = [
        store.ping().await,
        store.find_item(&project(), &item_id(1)).await.map(drop),
        store.count_items(&ItemFilter::default()).await.map(drop),
        store.claim_job("w", at(5000), at(9000)).await.map(drop),
        store.holders(&[], &[], None).await.map(drop),
        store.purge_tokens(at(1)).await.map(drop),
    ];
    for answer in answers {
        let error = answer.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(error.is_retryable());
    }
    assert_eq!(store.statements(), before);
    store.set_outage(Outage::None);
    store.ping().await.unwrap();
}

#[test]
fn only_an_unavailable_catalogue_is_worth_another_try() {
    let rest = [
        StoreError::FenceLost,
        StoreError::UnknownMarker,
        StoreError::Corrupt(String::new()),
        StoreError::Exists(String::new()),
    ];
    assert!(rest.iter().all(|error| !error.is_retryable()));
}

/// A caller that goes away drops its call at any await; nothing half done stays, and the
/// writer is free for the next.
#[tokio::test]
async fn a_call_dropped_anywhere_is_done_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state.db")).await.unwrap();
    let mut dropped = 0;
    for number in 0..60 {
        let checkpoint = checkpoint_of(vec![item(number)]);
        let job = protect_job(number);
        let finished = tokio::select! {
            biased;
            answer = store.create_protect(&checkpoint, &job) => { answer.unwrap(); true }
            () = yields(number) => false,
        };
        // Waits its turn for the one writer: what was dropped has ended by then.
        store.purge_tokens(at(0)).await.unwrap();
        let found = store.find_checkpoint(&project(), &checkpoint.id).await.unwrap();
        let job = store.find_job(&job.id).await.unwrap();
        assert_eq!(found.is_some(), job.is_some(), "{number}");
        if !finished {
            dropped += 1;
        } else {
            assert_eq!(found, Some(checkpoint));
        }
    }
    assert!(dropped > 0, "some calls were dropped half-way");
    accept(&store, 100).await;
}

async fn yields(times: u64) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}
