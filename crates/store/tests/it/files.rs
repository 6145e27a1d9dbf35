use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kedge_core::job::ClaimKind;
use kedge_store::{ItemFilter, Store, StoreError};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use crate::fixture::*;

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn every_file_of_the_state_is_its_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    fs::write(&path, b"").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path).await.unwrap();
    accept(&store, 1).await;
    for suffix in ["", "-wal", "-shm", ".lock"] {
        assert_eq!(mode(&beside(&path, suffix)), 0o600, "{suffix}");
    }
    let count = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(count, 4, "and there is no other file");
}

#[tokio::test]
async fn one_process_owns_the_state_until_it_closes_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = Store::open(&path).await.unwrap();
    let second = Store::open(&path).await;
    assert_eq!(second.map(drop), Err(StoreError::InUse(path.clone())));
    store.close().await;
    let answer = store.ping().await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    Store::open(&path).await.unwrap().ping().await.unwrap();
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = Store::open(&path).await.unwrap();
    make_available(&store, 1).await;
    accept(&store, 2).await;
    let before = (find(&store, 1).await, store.list_live_jobs().await.unwrap());
    store.close().await;
    let store = Store::open(&path).await.unwrap();
    assert_eq!((find(&store, 1).await, store.list_live_jobs().await.unwrap()), before);
}

/// A copy of the files at one moment is what a killed process leaves; with the log cut
/// anywhere, what a lost power leaves. Each accepted backup is there whole or not at all.
#[tokio::test]
async fn a_log_cut_anywhere_holds_only_whole_transactions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = Store::open(&path).await.unwrap();
    for number in 1..=4 {
        accept(&store, number).await;
    }
    let log = fs::read(beside(&path, "-wal")).unwrap();
    let mut most = 0;
    for cut in (0..=24).map(|part| log.len() * part / 24) {
        let copy = folder.path().join(format!("copy-{cut}.db"));
        fs::copy(&path, &copy).unwrap();
        fs::write(beside(&copy, "-wal"), &log[..cut]).unwrap();
        let copy = Store::open(&copy).await.unwrap();
        most = whole_backups(&copy).await;
        copy.close().await;
    }
    assert_eq!(most, 4, "the uncut log holds everything");
}

async fn whole_backups(store: &Store) -> u64 {
    let mut whole = 0;
    for number in 1..=4 {
        let checkpoint = store.find_checkpoint(&project(), &checkpoint_id(number)).await.unwrap();
        let job = store.find_job(&job_id(number)).await.unwrap();
        let holders = store.holders(&[server_id(number)], &[], None).await.unwrap();
        let held = holders.ids(ClaimKind::Server).count() == 1;
        assert_eq!((job.is_some(), held), (checkpoint.is_some(), checkpoint.is_some()));
        if let Some(checkpoint) = checkpoint {
            assert_eq!(checkpoint.items, [item(number)]);
            whole += 1;
        }
    }
    assert_eq!(store.count_items(&ItemFilter::default()).await.unwrap(), whole);
    whole
}

async fn raw(path: &Path, sql: &'static str) {
    let options = SqliteConnectOptions::new().filename(path);
    let mut connection: SqliteConnection = options.connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_state_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    Store::open(&path).await.unwrap().close().await;
    let sql = "INSERT INTO _sqlx_migrations \
               (version, description, success, checksum, execution_time) \
               VALUES (9999, 'later', 1, x'00', 0)";
    raw(&path, sql).await;
    let refused = Store::open(&path).await.map(drop);
    assert!(matches!(refused, Err(StoreError::Newer(_))), "{refused:?}");
}

#[tokio::test]
async fn a_file_that_is_no_database_and_a_row_that_is_no_value_are_named_as_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("noise.db");
    fs::write(&path, [0xa5; 8192]).unwrap();
    let refused = Store::open(&path).await.map(drop);
    assert!(matches!(refused, Err(StoreError::Corrupt(_))), "{refused:?}");

    let path = folder.path().join("state.db");
    let store = Store::open(&path).await.unwrap();
    accept(&store, 1).await;
    store.close().await;
    for sql in [
        "UPDATE items SET details = '{'",
        "UPDATE items SET details = '{}'",
        "UPDATE items SET status = 'fine'",
        "UPDATE items SET progress = 300",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.db");
        fs::copy(&path, &copy).unwrap();
        raw(&copy, sql).await;
        let store = Store::open(&copy).await.unwrap();
        match store.find_item(&project(), &item_id(1)).await {
            Err(StoreError::Corrupt(text)) => {
                assert!(text.contains(item_id(1).as_str()), "{sql}: {text}");
            }
            other => panic!("{sql}: {other:?}"),
        }
    }
}

/// A job written by a later version, or damaged, must not keep all others from running.
#[tokio::test]
async fn a_job_nobody_can_read_stands_aside_for_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = Store::open(&path).await.unwrap();
    accept(&store, 1).await;
    accept(&store, 2).await;
    store.close().await;
    raw(&path, "UPDATE jobs SET work = '{}' WHERE id = (SELECT min(id) FROM jobs)").await;

    let store = Store::open(&path).await.unwrap();
    let mut claimed = Vec::new();
    for _ in 0..3 {
        claimed.push(store.claim_job("w", at(1_000), at(9_000)).await);
    }
    let unreadable = |claim: &Result<_, _>| matches!(claim, Err(StoreError::Corrupt(_)));
    assert_eq!(claimed.iter().filter(|claim| unreadable(claim)).count(), 1, "{claimed:?}");
    let read = |claim: &Result<Option<kedge_core::job::Job>, StoreError>| {
        claim.as_ref().is_ok_and(|job| job.as_ref().is_some_and(|job| job.id == job_id(2)))
    };
    assert_eq!(claimed.iter().filter(|claim| read(claim)).count(), 1, "{claimed:?}");
}
