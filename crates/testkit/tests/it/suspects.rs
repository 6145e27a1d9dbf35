//! What becomes of what readers met: nothing of it is forgotten, and nothing else is blamed.

use kedge_core::checkpoint::Item;
use kedge_core::code::Code;
use kedge_core::ids::ProjectId;
use kedge_core::resource::Server;
use kedge_core::status::ItemStatus;
use kedge_engine::layer::Operation;
use kedge_engine::{
    Backend as _, BackendError, CancelFlag, EngineError, Listed, ObjectKind, ObjectName,
};
use kedge_testkit::{Harness, PROJECT};

use crate::support::*;

const MIB: usize = 1 << 20;

async fn losses(harness: &Harness) -> i64 {
    harness.store.count_losses(&ProjectId::new(PROJECT)).await.unwrap()
}

fn objects(harness: &Harness, kind: ObjectKind) -> Vec<Listed> {
    harness.places.store_of(&ProjectId::new(PROJECT)).inner().list(kind).unwrap()
}

/// Calls that are `hit` fail in this way.
fn fail_calls(
    harness: &Harness,
    error: BackendError,
    is_hit: impl Fn(Operation, ObjectName) -> bool + Send + Sync + 'static,
) {
    let store = harness.places.store_of(&ProjectId::new(PROJECT));
    let same = std::sync::Arc::downgrade(&store);
    store.before_each_call(move || {
        let Some(store) = same.upgrade() else { return };
        match store.recorded().last() {
            Some((operation, Some(name))) if is_hit(*operation, *name) => {
                store.break_with(error.clone());
            }
            _ => store.repair(),
        }
    });
}

async fn restore(harness: &Harness, item: &Item, server: &Server) {
    begin_restore(harness, item, straight(item, server)).await.unwrap();
    harness.run_jobs_to_their_end().await;
}

#[tokio::test]
async fn a_pack_that_could_not_be_written_is_nobodys_loss() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    // More than a pack holds, so that one is written while the disk is read.
    let large = harness.add_server(&[&disk(2, 96 * MIB)]);
    let is_pack =
        |operation, name| operation == Operation::Put && matches!(name, ObjectName::Pack(_));
    fail_calls(&harness, BackendError::Full, is_pack);
    assert_ne!(back_up(&harness, &large).await.status, ItemStatus::Available);
    assert_eq!(losses(&harness).await, 0);
    assert_eq!(harness.store.list_in_doubt().await.unwrap(), []);
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
}

/// It is on record: no verdict reads it again.
#[tokio::test]
async fn a_list_that_is_known_to_be_damaged_costs_a_verdict_nothing_more() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(3, 2 * MIB)]);
    let (saved, packs) = back_up_alone(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    damage(&harness, &server.project_id, &packs.smallest);
    verify(&harness, &server.project_id).await;
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
    let before = store.recorded().len();
    for _ in 0..3 {
        assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
    }
    let calls = store.recorded().split_off(before);
    let is_read = |(operation, name): &&(Operation, Option<ObjectName>)| {
        *operation == Operation::ReadAt && *name == Some(packs.smallest)
    };
    assert_eq!(calls.iter().filter(is_read).count(), 0, "{calls:?}");
}

/// A bad sector, or a file that somebody else owns now.
#[tokio::test]
async fn a_repository_whose_keys_cannot_be_read_is_noticed_by_the_first_who_tries() {
    let errors = [
        BackendError::Broken { text: "bad sector".into() },
        BackendError::Io { retryable: false, text: "not allowed".into() },
    ];
    for (kind, error) in [ObjectKind::Config, ObjectKind::Key].into_iter().zip(errors) {
        let harness = Harness::new().await;
        let server = harness.add_server(&[&disk(4, MIB)]);
        let saved = back_up(&harness, &server).await;
        let harness = harness.restarted().await;
        let is_hit =
            move |operation, name: ObjectName| operation == Operation::Get && name.kind() == kind;
        fail_calls(&harness, error, is_hit);
        assert_eq!(verdict(&harness, &saved, &server).await, Ok(()), "nobody has tried");
        harness.app.watch(&CancelFlag::new()).await;
        for _ in 0..3 {
            assert!(verdict(&harness, &saved, &server).await.is_err(), "{kind:?}");
        }
        assert!(losses(&harness).await <= 1, "it is written down once");
        let store = harness.places.store_of(&server.project_id);
        store.before_each_call(|| ());
        store.repair();
        harness.app.watch(&CancelFlag::new()).await;
        assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
        assert_eq!(losses(&harness).await, 0);
    }
}

#[tokio::test]
async fn a_pack_that_nobody_may_look_at_keeps_no_other_loss_from_being_told() {
    let harness = Harness::new().await;
    let kept_away = harness.add_server(&[&disk(5, 2 * MIB)]);
    let (unseen, packs) = back_up_alone(&harness, &kept_away).await;
    let server = harness.add_server(&[&disk(6, 2 * MIB)]);
    let (saved, others) = back_up_alone(&harness, &server).await;
    let before = objects(&harness, ObjectKind::Index);
    let third = harness.add_server(&[&disk(11, 2 * MIB)]);
    let unlisted = back_up(&harness, &third).await;
    damage(&harness, &server.project_id, &packs.largest);
    // The reader gets bad bytes; whoever looks again gets nothing.
    let reads = std::sync::atomic::AtomicUsize::new(0);
    let forbidden = packs.largest;
    let not_allowed = BackendError::Io { retryable: false, text: "not allowed".into() };
    fail_calls(&harness, not_allowed, move |operation, name| {
        let is_read = operation == Operation::ReadAt && name == forbidden;
        is_read && reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 1
    });
    restore(&harness, &unseen, &kept_away).await;
    damage(&harness, &server.project_id, &others.largest);
    restore(&harness, &saved, &server).await;
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
    assert_eq!(losses(&harness).await, 0);
    let store = harness.places.store_of(&server.project_id);
    for lost in objects(&harness, ObjectKind::Index) {
        if !before.contains(&lost) {
            store.inner().delete(&lost.name).unwrap();
        }
    }
    // A verdict walks by now, because of the damage, and refuses.
    assert_eq!(verdict(&harness, &unlisted, &third).await, Err(Code::DataDamaged));
    let repository = harness.app.repositories().get(&server.project_id).await.unwrap();
    let missing = EngineError::Damaged { object: "blob 5".into(), what: "missing".into() };
    let suspicion = repository.verify_suspects(Some(&missing), &CancelFlag::new());
    assert!(suspicion.is_lost && suspicion.waiting.is_some(), "{suspicion:?}");
    assert!(suspicion.unseen.is_none(), "what the reader met stays its own: {suspicion:?}");
}

/// The mark that had verdicts walk is gone by then.
#[tokio::test]
async fn a_loss_that_a_verdict_met_stays_known() {
    let harness = Harness::new().await;
    let other = harness.add_server(&[&disk(7, MIB)]);
    let (_, others) = back_up_alone(&harness, &other).await;
    let before = objects(&harness, ObjectKind::Index);
    let server = harness.add_server(&[&disk(8, 2 * MIB)]);
    let (saved, packs) = back_up_alone(&harness, &server).await;
    let project = &server.project_id;
    let store = harness.places.store_of(project);
    let whole = store.inner().get(&others.largest, u64::MAX).unwrap();
    damage(&harness, project, &others.largest);
    verify(&harness, project).await;
    for listed in objects(&harness, ObjectKind::Index) {
        if !before.contains(&listed) {
            damage(&harness, project, &listed.name);
        }
    }
    damage(&harness, project, &packs.smallest);
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DamageNotLocated));
    assert_eq!(losses(&harness).await, 1);
    put_back(&harness, project, &others.largest, &whole);
    verify(&harness, project).await;
    assert_eq!(objects(&harness, ObjectKind::Mark), []);
    let harness = harness.restarted().await;
    assert!(verdict(&harness, &saved, &server).await.is_err());
}

/// What is whole but for its snapshot object may come back, and is not what is in the way.
#[tokio::test]
async fn a_prune_gives_no_advice_that_costs_another_backup() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(9, 2 * MIB)]);
    let kept = back_up(&harness, &server).await;
    let snapshots = objects(&harness, ObjectKind::Snapshot);
    let harmed = harness.add_server(&[&disk(10, 2 * MIB)]);
    let (_, packs) = back_up_alone(&harness, &harmed).await;
    let store = harness.places.store_of(&server.project_id);
    store.inner().delete(&snapshots[0].name).unwrap();
    damage(&harness, &server.project_id, &packs.smallest);
    let refused = try_prune(&harness, &server.project_id).await.unwrap_err().to_string();
    assert!(!refused.contains(kept.id.as_str()) && !refused.contains("delete"), "{refused}");
}
