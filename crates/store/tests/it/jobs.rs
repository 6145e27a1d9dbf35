use std::collections::HashSet;

use kedge_core::checkpoint::Trigger;
use kedge_core::ids::JobId;
use kedge_core::job::{Cancel, ClaimKind, ProtectState};
use kedge_core::protect::Holder;
use kedge_store::{Heartbeat, JobCounts, Store, StoreError};

use crate::fixture::*;

fn snapshotted(number: u64) -> kedge_core::job::Work {
    protect_work(
        number,
        ProtectState::Snapshotted { name: "freeze".to_owned(), protected_at: at(7) },
    )
}

#[tokio::test]
async fn a_job_is_claimed_when_its_time_has_come_oldest_first() {
    let store = Store::open_in_memory().await.unwrap();
    for (number, run_at) in [(1, 300), (2, 100), (3, 200)] {
        let mut job = protect_job(number);
        job.run_at = at(run_at);
        store.create_protect(&checkpoint_of(vec![item(number)]), &job).await.unwrap();
    }
    assert_eq!(store.next_run_at().await.unwrap(), Some(at(100)));
    assert_eq!(store.claim_job("w", at(99), at(900)).await.unwrap(), None);

    let job = store.claim_job("w", at(200), at(900)).await.unwrap().unwrap();
    assert_eq!((&job.id, job.fence, job.restarts, job.failures), (&job_id(2), 1, 0, 0));
    assert_eq!((job.cancel, job.created_at), (Cancel::No, at(100)));
    assert_eq!((job.project_id, job.work), (project(), protect_job(2).work));

    let job = store.claim_job("w", at(200), at(900)).await.unwrap().unwrap();
    assert_eq!(job.id, job_id(3));
    assert_eq!(store.claim_job("w", at(200), at(900)).await.unwrap(), None);
    assert_eq!(store.next_run_at().await.unwrap(), Some(at(300)));
    assert_eq!(store.job_counts().await.unwrap(), JobCounts { queued: 1, running: 2 });
}

#[tokio::test]
async fn a_job_whose_lease_ended_goes_to_another_and_its_first_holder_writes_nothing() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let first = store.claim_job("one", at(1000), at(2000)).await.unwrap().unwrap();
    assert_eq!(store.claim_job("two", at(1999), at(9000)).await.unwrap(), None);
    assert_eq!(store.next_run_at().await.unwrap(), Some(at(2000)));
    let second = store.claim_job("two", at(2000), at(9000)).await.unwrap().unwrap();
    assert_eq!((second.fence, second.restarts, second.failures), (2, 1, 0));

    let lost = Err(StoreError::FenceLost);
    let beat = Heartbeat::of(&first, at(9999), Some(50), at(2001));
    assert_eq!(store.heartbeat(&beat).await, Err(StoreError::FenceLost));
    assert_eq!(store.save_state(&first, &snapshotted(1), at(2001)).await, lost);
    assert_eq!(store.retry_job(&first, at(2001), at(2001)).await, lost);
    assert_eq!(store.release_job(&first, at(2001)).await, lost);
    assert_eq!(find(&store, 1).await, item(1));
    assert_eq!(store.find_job(&job_id(1)).await.unwrap(), Some(second));
}

#[tokio::test]
async fn a_heartbeat_prolongs_the_lease_shows_progress_and_brings_the_wish_to_stop() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let job = store.claim_job("w", at(1000), at(2000)).await.unwrap().unwrap();
    let beat = |progress| Heartbeat::of(&job, at(3000), progress, at(1500));
    assert_eq!(store.heartbeat(&beat(Some(42))).await, Ok(Cancel::No));
    assert_eq!(store.claim_job("v", at(2500), at(9000)).await.unwrap(), None);
    let mut expected = item(1);
    expected.progress = 42;
    assert_eq!(find(&store, 1).await, expected);

    store.request_cancel(&job.id).await.unwrap();
    assert_eq!(store.heartbeat(&beat(None)).await, Ok(Cancel::Requested));
    assert_eq!(find(&store, 1).await.progress, 42);
    assert_eq!(store.heartbeat(&beat(Some(255))).await, Ok(Cancel::Requested));
    assert_eq!(find(&store, 1).await.progress, 100);
}

#[tokio::test]
async fn progress_is_not_shown_on_an_item_whose_work_is_over() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let job = claim(&store).await;
    let next = protect_work(1, ProtectState::Recorded);
    store.finish_protect(&job, &result(), &next, at(2000)).await.unwrap();
    store.heartbeat(&Heartbeat::of(&job, at(9000), Some(3), at(1))).await.unwrap();
    assert_eq!(find(&store, 1).await.progress, 100);
}

#[tokio::test]
async fn a_retry_waits_its_time_and_goes_on_from_the_recorded_state() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let job = claim(&store).await;
    store.save_state(&job, &snapshotted(1), at(1)).await.unwrap();
    store.retry_job(&job, at(7000), at(6000)).await.unwrap();
    assert_eq!(store.save_state(&job, &snapshotted(1), at(1)).await, Err(StoreError::FenceLost));
    assert_eq!(store.claim_job("w", at(6999), at(9000)).await.unwrap(), None);
    let again = store.claim_job("w", at(7000), at(9000)).await.unwrap().unwrap();
    assert_eq!((again.fence, again.failures, again.restarts), (2, 1, 0));
    assert_eq!(again.work, snapshotted(1));
}

#[tokio::test]
async fn a_released_job_counts_neither_restart_nor_failure() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let job = claim(&store).await;
    store.release_job(&job, at(6000)).await.unwrap();
    let again = store.claim_job("w", at(6000), at(9000)).await.unwrap().unwrap();
    assert_eq!((again.fence, again.failures, again.restarts), (2, 0, 0));
}

#[tokio::test]
async fn at_the_start_every_lease_is_taken_over_once() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    accept(&store, 2).await;
    let dead = claim(&store).await;
    assert_eq!(store.take_over_all(at(5500)).await.unwrap(), 1);
    assert_eq!(store.take_over_all(at(5500)).await.unwrap(), 0);
    assert_eq!(store.save_state(&dead, &dead.work, at(1)).await, Err(StoreError::FenceLost));
    let claimed = [
        store.claim_job("w", at(5500), at(9000)).await.unwrap().unwrap(),
        store.claim_job("w", at(5500), at(9000)).await.unwrap().unwrap(),
    ];
    let again = claimed.iter().find(|job| job.id == dead.id).unwrap();
    assert_eq!(again.restarts, 1);
    assert!(again.fence > dead.fence);
}

#[tokio::test]
async fn a_done_job_is_over_and_gives_its_claims_free() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let job = claim(&store).await;
    store.save_state(&job, &protect_work(1, ProtectState::Done), at(1)).await.unwrap();
    assert_eq!(store.save_state(&job, &snapshotted(1), at(1)).await, Err(StoreError::FenceLost));
    assert_eq!(store.list_live_jobs().await.unwrap(), []);
    assert_eq!(store.next_run_at().await.unwrap(), None);
    assert_eq!(store.job_counts().await.unwrap(), JobCounts::default());
    assert!(store.find_job(&job.id).await.unwrap().unwrap().work.is_done());
    let late = store.request_cancel(&job.id).await;
    assert!(matches!(late, Err(StoreError::NotFound(_))));
    let holders = store.holders(&[server_id(1)], &[], None).await.unwrap();
    assert_eq!(holders.ids(ClaimKind::Server).count(), 0);
}

#[tokio::test]
async fn a_job_cannot_become_another() {
    let store = Store::open_in_memory().await.unwrap();
    accept(&store, 1).await;
    let job = claim(&store).await;
    for other in [protect_work(2, ProtectState::Done), delete_job(1).1.work] {
        let refused = store.save_state(&job, &other, at(1)).await;
        assert!(matches!(refused, Err(StoreError::Misuse(_))), "{refused:?}");
    }
    let live = store.list_live_jobs().await.unwrap();
    assert_eq!(live, [job]);
}

#[tokio::test]
async fn holders_are_told_by_one_statement_and_without_the_asking_job() {
    let store = Store::open_in_memory().await.unwrap();
    make_available(&store, 1).await;
    store.create_restore(&restore(1), &restore_job(1)).await.unwrap();
    accept(&store, 2).await;

    let servers = [1, 2, 3].map(server_id);
    let volumes = [2, 3].map(volume_id);
    let before = store.statements();
    let holders = store.holders(&servers, &volumes, None).await.unwrap();
    assert_eq!(store.statements() - before, 1);
    let of = |number| holders.of(ClaimKind::Server, server_id(number).as_str());
    assert_eq!(of(1), Some(Holder::Restore));
    assert_eq!(of(2), Some(Holder::Backup(Trigger::Automatic)));
    assert_eq!(of(3), None);
    let held: Vec<_> = holders.ids(ClaimKind::Volume).collect();
    assert_eq!(held, [volume_id(2).as_str()]);
    let job = holders.job(ClaimKind::Volume, volume_id(2).as_str());
    assert_eq!(job, Some(&job_id(1001)));

    let others = store.holders(&servers, &volumes, Some(&job_id(1001))).await.unwrap();
    assert_eq!(others.ids(ClaimKind::Volume).count(), 0);
    assert_eq!(others.ids(ClaimKind::Server).count(), 1);
    let nothing = store.holders(&[], &[], None).await.unwrap();
    assert_eq!(nothing.ids(ClaimKind::Server).count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_that_race_never_get_the_same_job() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state.db")).await.unwrap();
    for number in 0..24 {
        accept(&store, number).await;
    }
    let claim_all = |worker: usize| {
        let store = store.clone();
        async move {
            let mut mine: Vec<(JobId, u64)> = Vec::new();
            while let Some(job) =
                store.claim_job(&format!("w{worker}"), at(2000), at(9000)).await.unwrap()
            {
                mine.push((job.id, job.fence));
            }
            mine
        }
    };
    let tasks: Vec<_> = (0..4).map(|worker| tokio::spawn(claim_all(worker))).collect();
    let mut claimed = Vec::new();
    for task in tasks {
        claimed.extend(task.await.unwrap());
    }
    assert!(claimed.iter().all(|(_, fence)| *fence == 1));
    let distinct: HashSet<_> = claimed.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!((claimed.len(), distinct.len()), (24, 24));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_backups_that_race_for_a_server_one_is_admitted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state.db")).await.unwrap();
    let try_one = |number: u64| {
        let store = store.clone();
        let mut job = protect_job(number);
        job.claims = protect_job(0).claims;
        async move { store.create_protect(&checkpoint_of(vec![item(number)]), &job).await }
    };
    let tasks: Vec<_> = (0..8).map(|number| tokio::spawn(try_one(number))).collect();
    let mut admitted = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => admitted += 1,
            Err(error) => assert!(matches!(error, StoreError::Claimed { .. }), "{error:?}"),
        }
    }
    assert_eq!(admitted, 1);
    assert_eq!(store.list_live_jobs().await.unwrap().len(), 1);
}
