//! Where a repository's objects lie.

use std::{fmt, sync::Arc};

use crate::id::{IndexId, KeyId, LockId, MarkId, PackId, SnapshotId};

mod disk;
mod local;
mod memory;
mod s3;

pub use disk::{DirEntry, Disk, DiskFile, EntryKind};
pub use local::LocalBackend;
pub use memory::MemoryBackend;
pub use s3::{
    Addressing, ConditionalPut, CredentialsFile, NoCredential, S3Backend, S3Bucket, S3Capabilities,
    S3Credential, S3Credentials, S3Options, S3Timeouts,
};

/// The kinds of stored objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// The repository's config: one object.
    Config,
    /// Opaque bytes of the caller beside the config: one object.
    Access,
    /// Master keys wrapped by passwords.
    Key,
    /// Packs of blobs.
    Pack,
    /// Lists of the packs' blobs.
    Index,
    /// Snapshots.
    Snapshot,
    /// Locks.
    Lock,
    /// What is known of packs that are damaged or about to be pruned.
    Mark,
}

/// The name of a stored object. Its text is the path in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// `config`
    Config,
    /// `kedge/access.json`
    Access,
    /// `keys/<id>`
    Key(KeyId),
    /// `data/<first two digits>/<id>`
    Pack(PackId),
    /// `index/<id>`
    Index(IndexId),
    /// `snapshots/<id>`
    Snapshot(SnapshotId),
    /// `locks/<id>`
    Lock(LockId),
    /// `kedge/marks/<id>`
    Mark(MarkId),
}

impl ObjectName {
    /// The object's kind.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Config => ObjectKind::Config,
            Self::Access => ObjectKind::Access,
            Self::Key(_) => ObjectKind::Key,
            Self::Pack(_) => ObjectKind::Pack,
            Self::Index(_) => ObjectKind::Index,
            Self::Snapshot(_) => ObjectKind::Snapshot,
            Self::Lock(_) => ObjectKind::Lock,
            Self::Mark(_) => ObjectKind::Mark,
        }
    }

    /// The name of an object of `kind` whose file is called `text`; `None` when that
    /// is not a name an object can have.
    pub fn parse(kind: ObjectKind, text: &str) -> Option<Self> {
        match kind {
            ObjectKind::Config => (text == "config").then_some(Self::Config),
            ObjectKind::Access => (text == "access.json").then_some(Self::Access),
            ObjectKind::Key => text.parse().ok().map(Self::Key),
            ObjectKind::Pack => text.parse().ok().map(Self::Pack),
            ObjectKind::Index => text.parse().ok().map(Self::Index),
            ObjectKind::Snapshot => text.parse().ok().map(Self::Snapshot),
            ObjectKind::Lock => text.parse().ok().map(Self::Lock),
            ObjectKind::Mark => text.parse().ok().map(Self::Mark),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("config"),
            Self::Access => f.write_str("kedge/access.json"),
            Self::Key(id) => write!(f, "keys/{id}"),
            Self::Pack(id) => write!(f, "data/{:02x}/{id}", id.0[0]),
            Self::Index(id) => write!(f, "index/{id}"),
            Self::Snapshot(id) => write!(f, "snapshots/{id}"),
            Self::Lock(id) => write!(f, "locks/{id}"),
            Self::Mark(id) => write!(f, "kedge/marks/{id}"),
        }
    }
}

/// An object found by listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: ObjectName,
    /// Its size.
    pub size_bytes: u64,
}

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// There is no such object.
    #[error("not found")]
    NotFound,
    /// The object ends before the range asked for.
    #[error("the object is too short")]
    Truncated,
    /// The object is larger than the caller allows.
    #[error("the object is too large")]
    TooLarge,
    /// No room is left, on the device or in the quota.
    #[error("no space left")]
    Full,
    /// The store keeps the object until a time it was told, whoever asks: an object
    /// lock. Only deletions meet it.
    #[error("the store retains the object")]
    Retained,
    /// The store answers, and the repository is not where it was: asking again at once
    /// brings the same answer.
    #[error("the repository is not there: {text}")]
    Gone {
        /// What was found instead.
        text: String,
    },
    /// The place where the repository lies is gone or does not answer.
    #[error("the store cannot be reached: {text}")]
    Unreachable {
        /// What happened.
        text: String,
    },
    /// What holds the object fails, such as a bad sector below it, or an archive that it was
    /// moved to: nobody can read it from here, whatever he may.
    #[error("the store cannot hand it out: {text}")]
    Broken {
        /// What happened.
        text: String,
    },
    /// Anything else.
    #[error("{text}")]
    Io {
        /// Whether trying again may help.
        retryable: bool,
        /// What happened.
        text: String,
    },
}

impl BackendError {
    /// Whether the same call may succeed later without anyone repairing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Io { retryable, .. } => *retryable,
            Self::NotFound
            | Self::Truncated
            | Self::TooLarge
            | Self::Full
            | Self::Retained
            | Self::Broken { .. }
            | Self::Gone { .. } => false,
        }
    }
}

/// The store of one repository's objects.
///
/// - Objects are written once under the hash of their content (`config` and
///   `kedge/access.json` under their own names) and never changed.
/// - `put` is durable and atomic: after it returns the object survives a crash, and
///   whenever it fails, or the machine does, the object is whole or absent. Putting
///   the same object again succeeds.
/// - Deleting what is not there succeeds.
/// - A backend never retries; the caller decides by [`BackendError::is_retryable`].
/// - Once a repository exists, a place that has lost it is
///   [`BackendError::Unreachable`] or [`BackendError::Gone`] rather than empty; nothing is
///   re-created there.
/// - A list may lack objects that were written or are still there, so it proves no absence;
///   [`Backend::find_size`] does.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Makes the place ready for a new repository, where that takes anything.
    fn prepare(&self) -> Result<(), BackendError>;

    /// Stores an object.
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError>;

    /// A whole object of at most `bytes_max` bytes.
    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError>;

    /// Fills `buf` with an object's bytes from `offset` on.
    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError>;

    /// An object's size, `None` when there is no such object.
    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError>;

    /// All objects of a kind, in no particular order. Files with other names are not
    /// objects and are left out.
    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError>;

    /// Removes an object.
    fn delete(&self, name: &ObjectName) -> Result<(), BackendError>;

    /// Removes what writers that died left half-written; never what a living one writes.
    fn remove_leftovers(&self) -> Result<(), BackendError>;
}

/// A shared backend is one, so that layers can be put around it.
impl<B: Backend + ?Sized> Backend for Arc<B> {
    fn prepare(&self) -> Result<(), BackendError> {
        (**self).prepare()
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        (**self).put(name, bytes)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        (**self).get(name, bytes_max)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        (**self).read_at(name, offset, buf)
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        (**self).find_size(name)
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        (**self).list(kind)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        (**self).delete(name)
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        (**self).remove_leftovers()
    }
}
