//! What can go wrong, sorted by what the caller can do about it.

use crate::{
    backend::{BackendError, ObjectName},
    control::Stopped,
    id::SnapshotId,
    source::{SinkError, SourceError},
};

/// Why an operation on a repository did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store failed.
    #[error("{object}: {error}")]
    Backend {
        /// The object the store was asked for.
        object: ObjectName,
        /// What the store said.
        #[source]
        error: BackendError,
    },
    /// The store failed while listing objects.
    #[error("listing objects: {0}")]
    List(#[source] BackendError),
    /// The place is reachable and holds no repository.
    #[error("there is no repository here")]
    NotARepository,
    /// The place holds a repository already.
    #[error("there is a repository here already")]
    AlreadyExists,
    /// No key of the repository opens with this password.
    #[error("no key of the repository opens with this password")]
    WrongPassword,
    /// The repository is of a format this engine does not write.
    #[error("repository format version {0} is not supported")]
    UnsupportedVersion(u32),
    /// A stored object is not what it must be.
    #[error("{object} is damaged: {what}")]
    Damaged {
        /// The object, by its path in the repository or its kind and id.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// Someone holds the repository exclusively.
    #[error("the repository is locked exclusively by {by}")]
    Locked {
        /// What the lock says about its owner.
        by: String,
    },
    /// The session's lock object was removed by someone else; nothing more may be written.
    #[error("the session's lock object was removed")]
    LockLost,
    /// The caller raised the cancel flag.
    #[error("cancelled")]
    Cancelled,
    /// The gate closed.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// An earlier failure left the session without blobs it promised; begin another one.
    #[error("the session failed earlier")]
    SessionFailed,
    /// The volume could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A range the source calls unchanged differs from the parent. Read everything.
    #[error("the source says nothing changed at byte {offset}, but the bytes differ")]
    SourceLied {
        /// First byte of the chunk that differs.
        offset: u64,
    },
    /// The target could not be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The compared volume differs from the backup.
    #[error("the volume differs from the backup at byte {offset}")]
    Mismatch {
        /// First byte of a chunk that differs.
        offset: u64,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot {0}")]
    SnapshotNotFound(SnapshotId),
    /// The snapshot has no such volume or file.
    #[error("the snapshot has no entry {name:?}")]
    EntryNotFound {
        /// The name asked for.
        name: String,
    },
    /// A name that cannot be a file name in a tree.
    #[error("{name:?} cannot be a name in a snapshot")]
    InvalidName {
        /// The refused name.
        name: String,
    },
    /// The list of the volume's chunks would not fit into a tree.
    #[error("a volume of {size_bytes} bytes is too large for one tree")]
    VolumeTooLarge {
        /// The volume's size.
        size_bytes: u64,
    },
    /// The system gave no randomness.
    #[error("the system gave no random bytes")]
    NoRandomness,
    /// The local copy of the index cannot be read; the next refresh makes a new one.
    #[error("the index cache cannot be read: {0}")]
    IndexCache(String),
    /// An invariant of the engine, or of the machine it runs on, is gone.
    #[error("bug: {0}")]
    Bug(String),
}

impl EngineError {
    pub(crate) fn damaged(object: impl ToString, what: impl Into<String>) -> Self {
        Self::Damaged { object: object.to_string(), what: what.into() }
    }

    pub(crate) fn bug(what: impl Into<String>) -> Self {
        Self::Bug(what.into())
    }

    /// What the store said about an object that must exist: one that is missing or too
    /// short is damage, not trouble with the store.
    pub(crate) fn reading(object: &ObjectName, error: BackendError) -> Self {
        match error {
            BackendError::NotFound => Self::damaged(object, "missing"),
            BackendError::Truncated => Self::damaged(object, "shorter than it must be"),
            BackendError::TooLarge => Self::damaged(object, "larger than any such object"),
            BackendError::Full
            | BackendError::Retained
            | BackendError::Broken { .. }
            | BackendError::Gone { .. }
            | BackendError::Unreachable { .. }
            | BackendError::Io { .. } => Self::Backend { object: *object, error },
        }
    }

    pub(crate) fn writing(object: &ObjectName, error: BackendError) -> Self {
        Self::Backend { object: *object, error }
    }

    /// Whether the same call may succeed later without anyone repairing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Backend { error, .. } | Self::List(error) => error.is_retryable(),
            Self::Source(error) => error.retryable,
            Self::Sink(error) => error.retryable,
            Self::Locked { .. }
            | Self::LockLost
            | Self::SessionFailed
            | Self::SourceLied { .. }
            | Self::NoRandomness
            | Self::IndexCache(_) => true,
            Self::NotARepository
            | Self::AlreadyExists
            | Self::WrongPassword
            | Self::UnsupportedVersion(_)
            | Self::Damaged { .. }
            | Self::Cancelled
            | Self::Stopped(_)
            | Self::Mismatch { .. }
            | Self::SnapshotNotFound(_)
            | Self::EntryNotFound { .. }
            | Self::InvalidName { .. }
            | Self::VolumeTooLarge { .. }
            | Self::Bug(_) => false,
        }
    }

    /// Whether the store, rather than the repository in it, could not be reached.
    pub fn is_unreachable(&self) -> bool {
        use BackendError as B;
        matches!(
            self,
            Self::Backend { error: B::Unreachable { .. } | B::Gone { .. }, .. }
                | Self::List(B::Unreachable { .. } | B::Gone { .. })
        )
    }

    /// Whether the store has no room left.
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Backend { error: BackendError::Full, .. } | Self::List(BackendError::Full)
        )
    }
}
