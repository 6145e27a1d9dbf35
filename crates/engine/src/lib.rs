//! The deduplicating repository in restic's format. Knows nothing of servers, projects, tenants.
#![warn(missing_docs)]

mod backend;
mod base64;
mod blob;
mod check;
mod chunk;
mod control;
mod crypto;
mod document;
mod error;
mod fingerprint;
mod id;
mod index;
mod keys;
pub mod layer;
mod list;
mod lock;
mod marks;
mod pack;
mod pages;
mod parallel;
#[cfg(test)]
mod parsers;
mod pipeline;
mod plan;
mod polynomial;
mod prune;
mod random;
mod read;
mod repository;
mod restore;
mod session;
mod snapshot;
mod source;
mod store;
mod stream;
mod suspects;
mod time;
mod tree;
mod vault;
mod verify;

pub use backend::{
    Addressing, Backend, BackendError, ConditionalPut, CredentialsFile, DirEntry, Disk, DiskFile,
    EntryKind, Listed, LocalBackend, MemoryBackend, NoCredential, ObjectKind, ObjectName,
    S3Backend, S3Bucket, S3Capabilities, S3Credential, S3Credentials, S3Options, S3Timeouts,
};
pub use check::{CheckReport, Problem, ReadData};
pub use chunk::ChunkSize;
pub use control::{CancelFlag, Gate, NoProgress, OpenGate, Progress, Stopped};
pub use crypto::{KdfCost, Password};
pub use error::EngineError;
pub use id::{
    BlobId, IndexId, InvalidId, KeyId, LockId, MarkId, PackId, RepositoryId, SnapshotId, TreeId,
};
pub use index::IndexReport;
pub use list::{BlobIds, BlobList};
pub use marks::{PackDamage, Reading};
pub use prune::{ForeignLocks, Freed, PruneOptions, PruneReport, Stats};
pub use random::VolumeReader;
pub use read::{Listing, SnapshotView, VolumeView};
pub use repository::{Closed, CreateOptions, Indexed, Open, Repository};
pub use restore::{ReadOptions, ReadReport, RestoreCursor, Resume};
pub use session::Session;
pub use snapshot::{Snapshot, SnapshotMeta, holds_snapshot};
pub use source::{Extent, ExtentKind, Sink, SinkError, Source, SourceError};
pub use store::{StoreOptions, StoredVolume};
pub use suspects::Suspicion;
pub use time::{InvalidTime, Timestamp};
pub use verify::{Inventory, VerifyOptions, VerifyOutcome};
