//! What the domain needs of the outside, as promises in words.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::checkpoint::ChangeToken;
use crate::ids::{ProjectId, ServerId, VolumeId};
use crate::resource::Server;
use crate::time::Timestamp;

/// A server of one project. Every call names both, so that no driver can act on another
/// project's server by a slip of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerRef {
    /// The owner.
    pub project: ProjectId,
    /// The server.
    pub server: ServerId,
}

/// A cloud whose servers we protect.
///
/// - Calls are idempotent: asked again, they return what the first call made, also after
///   a crash of ours in between. Jobs rely on this to resume.
/// - Deleting, unlocking or clearing what is not there succeeds.
/// - Drivers never retry; the job that called decides, by [`CloudError::kind`].
/// - A call that is dropped half-way leaves what a repeated call can finish.
#[async_trait]
pub trait Cloud: Send + Sync + Debug {
    /// The server and its attached volumes as they are now, marked ones as half written.
    /// `None` when there is no such server in the project; another project's server is none.
    async fn find_server(&self, of: &ServerRef) -> Result<Option<Server>, CloudError>;

    /// Every server of a project, in no order. One that the cloud cannot tell about may be
    /// left out where the cloud itself would not show it to its owner.
    async fn list_servers(&self, project: &ProjectId) -> Result<Vec<ServerId>, CloudError>;

    /// Freezes these volumes of a server at one moment, under `name`. Returns once reading
    /// what [`Cloud::open_snapshot`] gives cannot see later writes, or would notice them.
    async fn create_snapshots(
        &self,
        of: &ServerRef,
        volumes: &[VolumeId],
        name: &str,
    ) -> Result<(), CloudError>;

    /// Opens one frozen volume for reading. Extents that did not change since the moment
    /// `since` names are reported [`ExtentKind::Unchanged`]; a driver that cannot tell, or
    /// no longer knows the token, reports none.
    ///
    /// Fails with [`CloudErrorKind::MomentLost`] when the freeze did not survive.
    async fn open_snapshot(
        &self,
        of: &ServerRef,
        name: &str,
        volume: &VolumeId,
        since: Option<&ChangeToken>,
    ) -> Result<OpenSnapshot, CloudError>;

    /// Says whether everything read so far stands for the one moment. Must be asked after
    /// the last read; only then may the backup count.
    ///
    /// Fails with [`CloudErrorKind::MomentLost`] when it does not.
    async fn confirm_snapshots(&self, of: &ServerRef, name: &str) -> Result<(), CloudError>;

    /// Releases what [`Cloud::create_snapshots`] made under `name`.
    async fn delete_snapshots(&self, of: &ServerRef, name: &str) -> Result<(), CloudError>;

    /// Every snapshot name of ours that still holds something, for the reconciler that
    /// releases what a dead job left.
    async fn list_snapshots(&self) -> Result<Vec<(ServerRef, String)>, CloudError>;

    /// Keeps users from changing the server, under the holder's name. Fails if another
    /// holder has it.
    async fn lock_server(&self, of: &ServerRef, holder: &str) -> Result<(), CloudError>;

    /// Ends what [`Cloud::lock_server`] began, if this holder has it.
    async fn unlock_server(&self, of: &ServerRef, holder: &str) -> Result<(), CloudError>;

    /// Every server lock of ours, with its holder, for the reconciler.
    async fn list_locks(&self) -> Result<Vec<(ServerRef, String)>, CloudError>;

    /// Powers the server off and returns when it is.
    async fn stop_server(&self, of: &ServerRef) -> Result<(), CloudError>;

    /// Powers the server on. Refuses, permanently, while one of its volumes is marked as
    /// half written.
    async fn start_server(&self, of: &ServerRef) -> Result<(), CloudError>;

    /// Opens a volume of a stopped server for writing, alone. The volume is durably marked
    /// as half written, with `mark` in place of an earlier one, before this returns.
    async fn open_for_writing(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
        mark: &str,
    ) -> Result<Arc<dyn DiskWriter>, CloudError>;

    /// Opens a written volume anew, past every cache, to read back what is really there.
    async fn open_for_read_back(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
    ) -> Result<Arc<dyn DiskReader>, CloudError>;

    /// Takes this mark of [`Cloud::open_for_writing`] away: the volume is whole. Another
    /// mark stays, so that a late call does not vouch for what the next restore writes.
    async fn clear_mark(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
        mark: &str,
    ) -> Result<(), CloudError>;

    /// The marks of a server's half-written volumes, for messages and tests.
    async fn list_marks(&self, of: &ServerRef) -> Result<Vec<(VolumeId, String)>, CloudError>;
}

/// A frozen volume, open for reading.
#[derive(Clone, Debug)]
pub struct OpenSnapshot {
    /// Its bytes.
    pub reader: Arc<dyn DiskReader>,
    /// The driver's name for this moment, for the next incremental.
    pub token: Option<ChangeToken>,
}

/// Bytes of a volume that do not change while they are read. Used from several threads;
/// calls block.
pub trait DiskReader: Send + Sync + Debug {
    /// The volume's size.
    fn size_bytes(&self) -> u64;

    /// What lies at `offset` (less than the size): at least one byte, at most the rest.
    /// [`ExtentKind::Data`] may well be zeroes; the other two are promises.
    fn next_extent(&self, offset: u64) -> Result<Extent, CloudError>;

    /// Fills `buf` from `offset`. An error, never fewer bytes and never invented ones.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError>;
}

/// A volume being overwritten. Used from several threads; calls block.
pub trait DiskWriter: Send + Sync + Debug {
    /// The volume's size.
    fn size_bytes(&self) -> u64;

    /// Writes `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), CloudError>;

    /// Makes a range read as zeroes, as a hole where the storage can.
    fn write_zeroes(&self, offset: u64, length_bytes: u64) -> Result<(), CloudError>;

    /// Makes everything written durable and visible under the volume's name. Nothing may
    /// be written afterwards.
    fn finish(&self) -> Result<(), CloudError>;
}

/// A range of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is, at least 1.
    pub length_bytes: u64,
    /// What is there.
    pub kind: ExtentKind,
}

/// What a range of a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes to be read.
    Data,
    /// Zeroes; need not be read.
    Zero,
    /// What it held at the moment of the change token; need not be read.
    Unchanged,
}

/// Why a cloud could not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CloudError {
    /// Whether trying again can help.
    pub kind: CloudErrorKind,
    /// What happened, for operators and the item's `fail_reason`.
    pub text: String,
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloudErrorKind {
    /// It may pass.
    Retryable,
    /// It will not pass by itself.
    Permanent,
    /// The frozen moment is gone; a backup has to begin again.
    MomentLost,
}

impl CloudError {
    /// A failure that may pass.
    pub fn retryable(text: impl Into<String>) -> Self {
        Self { kind: CloudErrorKind::Retryable, text: text.into() }
    }

    /// A failure that will not pass by itself.
    pub fn permanent(text: impl Into<String>) -> Self {
        Self { kind: CloudErrorKind::Permanent, text: text.into() }
    }

    /// The frozen moment is gone.
    pub fn moment_lost(text: impl Into<String>) -> Self {
        Self { kind: CloudErrorKind::MomentLost, text: text.into() }
    }
}

/// Time, from outside.
pub trait Clock: Send + Sync + Debug {
    /// The wall clock, for records.
    fn now(&self) -> Timestamp;

    /// A clock that never goes back and runs on through suspends of a process, for leases
    /// and durations. Its zero means nothing.
    fn monotonic(&self) -> Duration;
}

/// Fresh ids, from outside.
pub trait IdSource: Send + Sync + Debug {
    /// A UUID that was never handed out before.
    fn next_uuid(&self) -> Uuid;
}
