//! Why the catalogue did not do what was asked.

use std::path::PathBuf;

use kedge_core::ids::{ItemId, JobId, PlanId};
use kedge_core::job::ClaimKind;
use kedge_core::status::IllegalMove;
use kedge_core::time::Timestamp;
use sqlx::error::{DatabaseError, ErrorKind};
use sqlx::migrate::MigrateError;

/// What a method of [`crate::Store`] returns.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Refusals, failures and bugs, told apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database does not answer, is locked, or its disk is full. May pass.
    #[error("the catalogue does not answer: {0}")]
    Unavailable(String),
    /// Another process owns the state.
    #[error("{0:?} is in use by another process")]
    InUse(PathBuf),
    /// The state was written by another version whose schema this one does not know.
    #[error("the catalogue's schema is not this version's: {0}")]
    Newer(String),
    /// Another job holds what a new job needs.
    #[error("{} {id:?} is held by job {by:?}", kind.as_str())]
    Claimed {
        /// What kind of thing.
        kind: ClaimKind,
        /// Which.
        id: String,
        /// Its holder.
        by: JobId,
    },
    /// The job was taken over, released or ended: its former holder stops at once.
    #[error("the job is no longer this worker's")]
    FenceLost,
    /// The item's status does not allow the move.
    #[error(transparent)]
    Illegal(#[from] IllegalMove),
    /// The id is taken.
    #[error("it exists already: {0}")]
    Exists(String),
    /// What a write names is not there, or is another project's.
    #[error("not found: {0}")]
    NotFound(String),
    /// The marker names nothing of the list.
    #[error("the marker is not an entry of the list")]
    UnknownMarker,
    /// More ids in one look-up than one statement may carry.
    #[error("{asked} ids in one look-up, at most {most} are allowed")]
    TooMany {
        /// How many.
        asked: usize,
        /// The limit.
        most: usize,
    },
    /// A row or the file cannot be read; the text names it.
    #[error("the catalogue is damaged: {0}")]
    Corrupt(String),
    /// A plan keeps the item from being deleted.
    #[error("plan {plan:?} holds a lease on item {item:?}")]
    Leased {
        /// The item.
        item: ItemId,
        /// The plan.
        plan: PlanId,
        /// Until then.
        until: Timestamp,
    },
    /// A bug in the caller or in a statement of ours.
    #[error("wrong use of the catalogue: {0}")]
    Misuse(String),
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::InUse(_)
            | Self::Newer(_)
            | Self::Claimed { .. }
            | Self::FenceLost
            | Self::Illegal(_)
            | Self::Exists(_)
            | Self::NotFound(_)
            | Self::UnknownMarker
            | Self::TooMany { .. }
            | Self::Leased { .. }
            | Self::Corrupt(_)
            | Self::Misuse(_) => false,
        }
    }

    /// A row whose content cannot be read.
    pub(crate) fn corrupt(table: &str, id: &str, why: impl std::fmt::Display) -> Self {
        Self::Corrupt(format!("{table} {id:?}: {why}"))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        let text = error.to_string();
        match &error {
            E::Database(database) => of_database(&**database, text),
            E::ColumnDecode { .. } | E::Decode(_) | E::ColumnNotFound(_) | E::RowNotFound => {
                Self::Corrupt(text)
            }
            E::Encode(_) | E::InvalidArgument(_) | E::TypeNotFound { .. } => Self::Misuse(text),
            // Whatever is left is about reaching the database: files, the pool, its threads.
            _ => Self::Unavailable(text),
        }
    }
}

fn of_database(error: &dyn DatabaseError, text: String) -> StoreError {
    match error.kind() {
        ErrorKind::UniqueViolation => StoreError::Exists(text),
        ErrorKind::ForeignKeyViolation => StoreError::NotFound(text),
        ErrorKind::NotNullViolation | ErrorKind::CheckViolation => StoreError::Misuse(text),
        _ => match sqlite_code(error) {
            SQLITE_CORRUPT | SQLITE_NOTADB => StoreError::Corrupt(text),
            SQLITE_ERROR | SQLITE_MISMATCH | SQLITE_MISUSE | SQLITE_RANGE => {
                StoreError::Misuse(text)
            }
            _ => StoreError::Unavailable(text),
        },
    }
}

const SQLITE_ERROR: u32 = 1;
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_MISMATCH: u32 = 20;
const SQLITE_MISUSE: u32 = 21;
const SQLITE_RANGE: u32 = 25;
const SQLITE_NOTADB: u32 = 26;

/// The primary result code: the low byte of the extended one.
fn sqlite_code(error: &dyn DatabaseError) -> u32 {
    error.code().and_then(|code| code.parse::<u32>().ok()).map_or(0, |code| code & 0xff)
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) => error.into(),
            other => Self::Newer(other.to_string()),
        }
    }
}
