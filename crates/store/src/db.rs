//! The database itself: its files, its connections, its owner, its transactions.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::query::{Query, QueryAs};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{
    ConnectOptions, Connection, FromRow, QueryBuilder, Sqlite, SqliteConnection, SqlitePool,
    Transaction,
};

use crate::error::{Result, StoreError};

/// Readers beside the one writer. More would only queue on the same disk.
const READERS: u32 = 4;

/// How long a call waits for a connection before it says that the catalogue is silent:
/// less than any client's patience, much more than any statement of ours takes.
const PATIENCE: Duration = Duration::from_secs(5);

const OWNER_ONLY: u32 = 0o600;

/// The catalogue, the job table and the access tables. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Store {
    db: Arc<Db>,
}

#[derive(Debug)]
struct Db {
    read: SqlitePool,
    write: SqlitePool,
    meter: Meter,
    /// How many more calls are answered; [`ALL`] while no outage is being tested.
    answers: AtomicU64,
    owner: Mutex<Option<File>>,
}

/// Counts statements, and keeps their texts while a test asks for them.
#[derive(Debug, Default)]
struct Meter {
    count: AtomicU64,
    kept: Mutex<Option<Vec<String>>>,
}

/// Whether the catalogue pretends to be out of reach: a test hook, by which callers show
/// what they do then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// It answers.
    None,
    /// So many more calls are answered; then every call answers
    /// [`StoreError::Unavailable`] before it reaches the database.
    After(u64),
    /// None is.
    Total,
}

/// As many calls as there may be.
const ALL: u64 = u64::MAX;

impl Store {
    /// Opens the state in the file at `path`, makes it when there is none, and brings its
    /// schema up to date. This process owns the state until [`Store::close`] or the last
    /// clone is dropped, by a lock on the file `<path>.lock`.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process owns it, [`StoreError::Newer`] when its
    /// schema is not known here.
    pub async fn open(path: &Path) -> Result<Self> {
        let owner = own(path)?;
        create_private(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(PATIENCE)
            .disable_statement_logging();
        let writer = options.clone().journal_mode(SqliteJournalMode::Wal);
        let write = pool(1).connect_with(writer).await?;
        let reader = options.pragma("query_only", "on");
        let read = pool(READERS).connect_with(reader).await?;
        Self::migrated(read, write, Some(owner)).await
    }

    /// Opens the state in the file at `path` for reading alone, beside the process that owns
    /// it. Every other call answers that the catalogue cannot be written.
    ///
    /// # Errors
    /// There is none, or its schema is not the one known here.
    pub async fn open_to_read(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .busy_timeout(PATIENCE)
            .pragma("query_only", "on")
            .disable_statement_logging();
        let read = pool(1).connect_with(options).await?;
        let db = Db {
            write: read.clone(),
            read,
            meter: Meter::default(),
            answers: AtomicU64::new(ALL),
            owner: Mutex::new(None),
        };
        Ok(Self { db: Arc::new(db) })
    }

    /// A state in memory that ends with its last clone: for tests.
    ///
    /// # Errors
    /// The database cannot be made.
    pub async fn open_in_memory() -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .in_memory(true)
            .foreign_keys(true)
            .disable_statement_logging();
        let one = pool(1).connect_with(options).await?;
        Self::migrated(one.clone(), one, None).await
    }

    async fn migrated(read: SqlitePool, write: SqlitePool, owner: Option<File>) -> Result<Self> {
        sqlx::migrate!("./migrations").run(&write).await?;
        let db = Db {
            read,
            write,
            meter: Meter::default(),
            answers: AtomicU64::new(ALL),
            owner: Mutex::new(owner),
        };
        Ok(Self { db: Arc::new(db) })
    }

    /// Whether the catalogue answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<()> {
        let mut tx = self.read().await?;
        tx.query("SELECT COUNT(*) FROM (SELECT id FROM jobs LIMIT 1) AS probe")
            .execute(tx.conn())
            .await?;
        Ok(())
    }

    /// Ends every connection and gives the state free. Later calls answer
    /// [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.db.read.close().await;
        self.db.write.close().await;
        drop(locked(&self.db.owner).take());
    }

    /// Begins or ends a pretended outage.
    pub fn set_outage(&self, outage: Outage) {
        let answers = match outage {
            Outage::None => ALL,
            Outage::After(calls) => calls.min(ALL - 1),
            Outage::Total => 0,
        };
        self.db.answers.store(answers, Ordering::SeqCst);
    }

    /// How many statements ran since the start.
    pub fn statements(&self) -> u64 {
        self.db.meter.count.load(Ordering::SeqCst)
    }

    /// Keeps the texts of the statements from here on, until [`Store::take_statements`].
    pub fn record_statements(&self) {
        *locked(&self.db.meter.kept) = Some(Vec::new());
    }

    /// The texts kept since [`Store::record_statements`], oldest first.
    pub fn take_statements(&self) -> Vec<String> {
        locked(&self.db.meter.kept).take().unwrap_or_default()
    }

    /// A transaction that sees one moment and changes nothing.
    pub(crate) async fn read(&self) -> Result<Tx<'_>> {
        self.answers()?;
        let inner = Inner::Transaction(self.db.read.begin().await?);
        Ok(Tx { inner, meter: &self.db.meter })
    }

    /// For one statement that changes nothing: it sees one moment by itself, and costs a
    /// third of what a transaction does.
    pub(crate) async fn read_one(&self) -> Result<Tx<'_>> {
        self.answers()?;
        let inner = Inner::Statement(self.db.read.acquire().await?);
        Ok(Tx { inner, meter: &self.db.meter })
    }

    /// A transaction that may write. It takes the write lock first, so that nothing read
    /// in it changes before it ends.
    pub(crate) async fn write(&self) -> Result<Tx<'_>> {
        self.answers()?;
        let inner = Inner::Transaction(self.db.write.begin_with("BEGIN IMMEDIATE").await?);
        Ok(Tx { inner, meter: &self.db.meter })
    }

    fn answers(&self) -> Result<()> {
        let spend = |left: u64| if left == ALL { Some(ALL) } else { left.checked_sub(1) };
        let spent = self.db.answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend);
        let outage = |_| StoreError::Unavailable("an outage is being tested".to_owned());
        spent.map(drop).map_err(outage)
    }
}

/// One transaction; dropped without [`Tx::commit`] it leaves nothing.
pub(crate) struct Tx<'a> {
    inner: Inner,
    meter: &'a Meter,
}

enum Inner {
    Transaction(Transaction<'static, Sqlite>),
    Statement(PoolConnection<Sqlite>),
}

impl Tx<'_> {
    pub(crate) fn query(&self, sql: &'static str) -> Query<'static, Sqlite, SqliteArguments> {
        self.meter.note(sql);
        sqlx::query(sql)
    }

    pub(crate) fn query_as<O>(
        &self,
        sql: &'static str,
    ) -> QueryAs<'static, Sqlite, O, SqliteArguments>
    where
        O: for<'r> FromRow<'r, SqliteRow>,
    {
        self.meter.note(sql);
        sqlx::query_as(sql)
    }

    pub(crate) fn built<'q>(
        &self,
        builder: &'q mut QueryBuilder<Sqlite>,
    ) -> Query<'q, Sqlite, SqliteArguments> {
        self.meter.note(builder.sql().as_str());
        builder.build()
    }

    pub(crate) fn built_as<'q, O>(
        &self,
        builder: &'q mut QueryBuilder<Sqlite>,
    ) -> QueryAs<'q, Sqlite, O, SqliteArguments>
    where
        O: for<'r> FromRow<'r, SqliteRow>,
    {
        self.meter.note(builder.sql().as_str());
        builder.build_query_as()
    }

    pub(crate) fn conn(&mut self) -> &mut SqliteConnection {
        match &mut self.inner {
            Inner::Transaction(transaction) => transaction,
            Inner::Statement(connection) => connection,
        }
    }

    pub(crate) async fn commit(self) -> Result<()> {
        match self.inner {
            Inner::Transaction(transaction) => Ok(transaction.commit().await?),
            Inner::Statement(_) => Ok(()),
        }
    }
}

impl Meter {
    fn note(&self, sql: &str) {
        self.count.fetch_add(1, Ordering::SeqCst);
        if let Some(kept) = locked(&self.kept).as_mut() {
            kept.push(sql.to_owned());
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connections that live as long as the process: a database in memory lives in one.
///
/// When SQLite ends a transaction by itself, as it does on a full disk, sqlx goes on
/// counting it and would refuse every further one: such a connection is replaced.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .before_acquire(|connection, _| {
            Box::pin(async move { Ok(!connection.is_in_transaction()) })
        })
}

fn own(path: &Path) -> Result<File> {
    let lock = lock_path(path);
    let file = private_file(&lock)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(unavailable(&lock, &error)),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".lock");
    name.into()
}

/// Makes the file for its owner alone before SQLite sees it; the files SQLite puts beside
/// it take the same mode.
fn create_private(path: &Path) -> Result<()> {
    private_file(path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| unavailable(folder, &e))
}

fn private_file(path: &Path) -> Result<File> {
    let open = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(OWNER_ONLY)
            .open(path)?;
        file.set_permissions(Permissions::from_mode(OWNER_ONLY))?;
        Ok(file)
    };
    open().map_err(|error: std::io::Error| unavailable(path, &error))
}

fn unavailable(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable(format!("{path:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use kedge_core::ids::ProjectId;
    use kedge_core::time::Timestamp;

    use super::*;

    async fn limit_pages(store: &Store, pragma: &'static str) {
        sqlx::raw_sql(pragma).execute(&store.db.write).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_may_pass_and_leaves_nothing_half_done() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).await.unwrap();
        limit_pages(&store, "PRAGMA max_page_count = 1").await;
        let (project, now) = (ProjectId::new("p"), Timestamp::default());
        let large = vec![7; 100_000];
        let error = store.create_repository(&project, &large, now).await.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
        assert_eq!(store.list_repositories().await.unwrap(), []);
        limit_pages(&store, "PRAGMA max_page_count = 1000000").await;
        let row = store.create_repository(&project, &large, now).await.unwrap();
        assert_eq!(row.wrapped_password, large);
    }

    #[tokio::test]
    async fn readers_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).await.unwrap();
        let refused = sqlx::raw_sql("DELETE FROM tokens").execute(&store.db.read).await;
        assert!(refused.is_err());
        let (synchronous,): (i64,) =
            sqlx::query_as("PRAGMA synchronous").fetch_one(&store.db.write).await.unwrap();
        let (journal,): (String,) =
            sqlx::query_as("PRAGMA journal_mode").fetch_one(&store.db.write).await.unwrap();
        assert_eq!((synchronous, journal.as_str()), (2, "wal"), "2 is FULL");
    }
}
