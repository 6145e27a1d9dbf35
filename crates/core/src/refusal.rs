//! The answer no: a published code, and the published text with its arguments filled in.
//!
//! A refusal is an answer to the caller, not a failure of ours. Texts are the service's
//! own, letter for letter, slips included (docs/csbs-v1.md), because programs match on them.

use std::fmt;

use crate::code::Code;
use crate::evidence::{Demand, Grade};
use crate::fact::Unknown;
use crate::ids::{ItemId, PlanId, ServerId, VolumeBackupId, VolumeId};
use crate::precondition::Moved;
use crate::resource::{GIB, ServerKind, ServerStatus};
use crate::status::ItemStatus;
use crate::tag::TAGS_MAX;
use crate::time::Timestamp;

const DAY_SECS: u64 = 86_400;
/// Differences that a text tells; a longer one would be cut.
const MOVED_MAX: usize = 5;

/// Why something cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The backup is unknown or another project's.
    ItemNotFound(ItemId),
    /// Its status is not `available`.
    ItemNotAvailable(ItemStatus),
    /// It is being made, restored or deleted, so it cannot be deleted now.
    ItemExecuting(ItemStatus),
    /// The server is unknown or another project's.
    ServerNotFound(ServerId),
    /// The server was terminated.
    ServerTerminated(ServerId),
    /// The resource type cannot be backed up.
    TypeNotProtectable {
        /// What the caller named.
        resource: ServerId,
        /// The type the caller named.
        resource_type: String,
    },
    /// The resource type cannot be restored.
    TypeNotRestorable {
        /// What the caller named.
        resource: ServerId,
        /// The type the caller named.
        resource_type: String,
    },
    /// This kind of server cannot be backed up.
    KindNotProtectable(ServerId, ServerKind),
    /// The server's status does not allow a backup.
    ServerBusy(ServerId),
    /// A backup that a person asked for is running.
    ManualBackupRunning(ServerId),
    /// A backup that a schedule asked for is running.
    AutomaticBackupRunning(ServerId),
    /// The zone has no backup storage.
    ZoneWithoutBackup(ServerId),
    /// The server has no disk left to back up.
    NoVolumeToProtect(ServerId),
    /// A disk lies on dedicated storage.
    DedicatedStorage(VolumeId, ServerId),
    /// A disk lies on storage without backup.
    StorageUnsupported(VolumeId),
    /// Shared disks, where the settings refuse them.
    SharedVolumeProtect(Vec<VolumeId>, ServerId),
    /// This kind of server cannot be restored.
    KindNotRestorable(ServerKind),
    /// Source and target are of different kinds.
    KindMismatch {
        /// The server that was backed up.
        source: ServerId,
        /// Its kind then.
        source_kind: ServerKind,
        /// The server to restore.
        target: ServerId,
        /// Its kind now.
        target_kind: ServerKind,
    },
    /// The target's status forbids a restore.
    TargetStatus(ServerStatus),
    /// A backup or restore of the target is running.
    TargetHeld,
    /// Backup and target are in different zones.
    ZoneMismatch(ItemId, ServerId),
    /// The target has no disks.
    NoVolumeToRestore(ServerId),
    /// Mapped backups that are not part of the item.
    NotOfThisItem(Vec<VolumeBackupId>, ItemId),
    /// Backups of the item that have no destination.
    PartialRestore(Vec<VolumeBackupId>),
    /// Destinations that are not attached to the target.
    VolumeNotAttached(Vec<VolumeId>),
    /// Destinations that are shared disks.
    SharedVolumeRestore(Vec<VolumeId>, ServerId),
    /// A data disk's backup mapped to a system disk.
    DataOntoSystem(ServerId),
    /// A destination smaller than the disk was.
    TargetTooSmall {
        /// The destination.
        volume: VolumeId,
        /// Its size.
        have_bytes: u64,
        /// The disk backup.
        backup: VolumeBackupId,
        /// The size of the disk it was made from.
        need_bytes: u64,
    },
    /// A destination that cannot be written now.
    VolumeNotWritable(VolumeId),
    /// An encrypted disk's backup mapped to a disk in clear.
    EncryptionMismatch(VolumeBackupId, VolumeId),
    /// A destination held by another job.
    VolumeHeld(VolumeId),
    /// Disks that a failed restore left half written: no backup may hold them, and no
    /// restore may leave them so.
    HalfWritten(Vec<VolumeId>, ServerId),
    /// The repository does not hold the item's snapshot.
    SnapshotMissing(ItemId),
    /// Data the item needs is damaged or missing in the repository.
    DataDamaged(ItemId),
    /// Less is known of the item's bytes than its project demands, or it is too old.
    EvidenceTooWeak {
        /// The item.
        item: ItemId,
        /// How good what is known is.
        grade: Grade,
        /// What is demanded.
        demand: Demand,
    },
    /// Something is not as it was when the plan was made that a restore names.
    PlanMoved(Vec<Moved>),
    /// A plan holds a lease on the item.
    ItemLeased {
        /// The item.
        item: ItemId,
        /// The plan.
        plan: PlanId,
        /// Until then.
        until: Timestamp,
    },
    /// So many plans of the project hold leases, and no more may.
    TooManyLeases(usize),
    /// There is no available backup of the server, so none can be restored.
    NoAvailableBackup(ServerId),
    /// A fact could not be learned.
    Unknown(Unknown),
    /// A bug: the rules let something through that a plan needs and nobody saw.
    Unseen(&'static str),
    /// More tags than an object may carry.
    TooManyTags,
}

impl Refusal {
    /// The code a caller's program reads.
    pub fn code(&self) -> Code {
        match self {
            Self::ItemNotFound(_) => Code::ItemNotFound,
            Self::ItemNotAvailable(_) => Code::ItemNotAvailable,
            Self::ItemExecuting(_) => Code::ItemExecuting,
            Self::ServerNotFound(_) => Code::ServerNotFound,
            Self::ServerTerminated(_) => Code::ServerTerminated,
            Self::TypeNotProtectable { .. } => Code::TypeNotProtectable,
            Self::TypeNotRestorable { .. } => Code::TypeNotRestorable,
            Self::KindNotProtectable(..) => Code::KindNotProtectable,
            Self::ServerBusy(_) => Code::ServerBusy,
            Self::ManualBackupRunning(_) => Code::PolicyRunning,
            Self::AutomaticBackupRunning(_) => Code::AutoBackupRunning,
            Self::ZoneWithoutBackup(_) => Code::ZoneWithoutBackup,
            Self::NoVolumeToProtect(_) => Code::NoVolumeToProtect,
            Self::DedicatedStorage(..) => Code::DedicatedStorage,
            Self::StorageUnsupported(_) => Code::StorageUnsupported,
            Self::SharedVolumeProtect(..) => Code::SharedVolumeProtect,
            Self::KindNotRestorable(_) => Code::KindNotRestorable,
            Self::KindMismatch { .. } => Code::KindMismatch,
            Self::TargetStatus(_) | Self::TargetHeld => Code::TargetBusy,
            Self::ZoneMismatch(..) => Code::ZoneMismatch,
            Self::NoVolumeToRestore(_) => Code::NoVolumeToRestore,
            Self::NotOfThisItem(..) => Code::NotOfThisItem,
            Self::PartialRestore(_) => Code::PartialRestore,
            Self::VolumeNotAttached(_) => Code::VolumeNotAttached,
            Self::SharedVolumeRestore(..) => Code::SharedVolumeRestore,
            Self::DataOntoSystem(_) => Code::DataOntoSystem,
            Self::TargetTooSmall { .. } => Code::TargetTooSmall,
            Self::VolumeNotWritable(_) => Code::VolumeNotWritable,
            Self::EncryptionMismatch(..) => Code::EncryptionMismatch,
            Self::VolumeHeld(_) => Code::VolumeHeld,
            Self::HalfWritten(..) => Code::HalfWritten,
            Self::SnapshotMissing(_) => Code::SnapshotMissing,
            Self::DataDamaged(_) => Code::DataDamaged,
            Self::EvidenceTooWeak { .. } => Code::EvidenceTooWeak,
            Self::PlanMoved(_) => Code::PlanMoved,
            Self::ItemLeased { .. } => Code::ItemLeased,
            Self::TooManyLeases(_) => Code::TooManyLeases,
            Self::Unknown(Unknown::CloudSilent) => Code::CloudSilent,
            Self::Unknown(Unknown::RepositoryUnreachable) => Code::RepositoryUnreachable,
            Self::Unknown(Unknown::KeyUnavailable) => Code::KeyUnavailable,
            Self::Unknown(Unknown::DamageNotLocated) => Code::DamageNotLocated,
            Self::Unknown(Unknown::PlaceNotTold) => Code::PlaceNotTold,
            Self::NoAvailableBackup(_) => Code::NoAvailableBackup,
            Self::Unseen(_) => Code::Internal,
            Self::TooManyTags => Code::TooManyTags,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ItemNotFound(item) => write!(f, "Checkpoint_item ({item}) is not found."),
            Self::ItemNotAvailable(_) => f.write_str("checkpoint item not available"),
            Self::ItemExecuting(_) => f.write_str("item in executing"),
            Self::ServerNotFound(_) => f.write_str("server do not exist"),
            Self::ServerTerminated(_) => f.write_str("The server has stopped."),
            Self::TypeNotProtectable { resource, resource_type } => {
                write!(f, "Resource ({resource}) type ({resource_type}) is not support protection.")
            }
            Self::TypeNotRestorable { resource, resource_type } => write!(
                f,
                "Resource ({resource}) type ({resource_type}) is not support restoration."
            ),
            Self::KindNotProtectable(server, kind) => {
                write!(f, "Server ({server}) status ({}) is not allowed to protect.", kind.as_str())
            }
            Self::ServerBusy(server) => write!(f, "Server ({server}) is already in service."),
            Self::ManualBackupRunning(_) => f.write_str("The policy is executing backup."),
            Self::AutomaticBackupRunning(_) => f.write_str("auto plan executing"),
            Self::ZoneWithoutBackup(server) => write!(
                f,
                "The AZ where the resource ({server}) is located does not support backup."
            ),
            Self::NoVolumeToProtect(server) => {
                write!(f, "No volume attached to the server ({server}) for protect.")
            }
            Self::DedicatedStorage(volume, server) => {
                write!(f, "Service type of volume {volume}(belong to server {server}) is dss.")
            }
            Self::StorageUnsupported(_) => {
                f.write_str("volume of server in this pod does not support backup")
            }
            Self::SharedVolumeProtect(volumes, server)
            | Self::SharedVolumeRestore(volumes, server) => write!(
                f,
                "Volume ({}) attached to server ({server}) is shareable volume.",
                joined(volumes)
            ),
            Self::KindNotRestorable(_) => f.write_str("can not restore server type is not allow"),
            Self::KindMismatch { source, source_kind, target, target_kind } => write!(
                f,
                "The source server ({source}) type ({}) is not the same as the target server ({target}) type ({}).",
                source_kind.as_str(),
                target_kind.as_str()
            ),
            Self::TargetStatus(_) | Self::TargetHeld => f.write_str("The server is restoring."),
            Self::ZoneMismatch(item, server) => write!(
                f,
                "The AZ of local checkpoint item ({item}) is not support to restore the resource ({server})."
            ),
            Self::NoVolumeToRestore(server) => {
                write!(f, "No volume attached to the server ({server}) for restore.")
            }
            Self::NotOfThisItem(backups, item) => write!(
                f,
                "Can not find backup(s) ({}) in checkpoint item ({item}).",
                joined(backups)
            ),
            Self::PartialRestore(backups) => write!(
                f,
                "Not assign backup(s) ({}) to volume(s), partial restore is not supported.\"",
                joined(backups)
            ),
            Self::VolumeNotAttached(volumes) => {
                write!(f, "Volume(s) ({}) not found in target server.", joined(volumes))
            }
            Self::DataOntoSystem(server) => {
                write!(f, "Can not restore data volume to system volume. server id is ({server}).")
            }
            Self::TargetTooSmall { volume, have_bytes, backup, need_bytes } => write!(
                f,
                "Target volume ({volume}) size ({}) small than volume backup ({backup}) size ({}).",
                gb(*have_bytes),
                gb(*need_bytes)
            ),
            Self::VolumeNotWritable(volume) => {
                write!(f, "Target volume ({volume}) is in a state that forbids writing.")
            }
            Self::EncryptionMismatch(backup, volume) => write!(
                f,
                "Volume backup ({backup}) is of an encrypted volume, target volume ({volume}) is not encrypted."
            ),
            Self::VolumeHeld(volume) => {
                write!(f, "Target volume ({volume}) is held by another job.")
            }
            Self::HalfWritten(volumes, server) => write!(
                f,
                "Volume(s) ({}) of server ({server}) are half written by a restore that failed. Restore to them again first.",
                joined(volumes)
            ),
            Self::SnapshotMissing(item) => write!(
                f,
                "The backup repository does not hold the data of checkpoint item ({item})."
            ),
            Self::DataDamaged(item) => write!(
                f,
                "Data of checkpoint item ({item}) is damaged or missing in the backup repository."
            ),
            Self::PlanMoved(moved) => {
                f.write_str("Not as planned: ")?;
                let told = moved.iter().take(MOVED_MAX);
                let texts: Vec<_> = told.map(ToString::to_string).collect();
                write!(f, "{}", texts.join("; "))?;
                match moved.len().saturating_sub(MOVED_MAX) {
                    0 => f.write_str("."),
                    more => write!(f, "; and {more} more."),
                }
            }
            Self::ItemLeased { item, plan, until } => {
                write!(f, "Plan ({plan}) keeps checkpoint item ({item}) until {until}.")
            }
            Self::TooManyLeases(most) => {
                write!(f, "{most} plans of the project hold leases, and no more may.")
            }
            Self::EvidenceTooWeak { item, grade, demand } => {
                let (has, asked) = (grade.as_str(), demand.grade.as_str());
                write!(f, "Evidence of checkpoint item ({item}) is of grade {has}; the project demands {asked}")?;
                match demand.age_max {
                    Some(age) => write!(f, " of at most {} days.", age.as_secs() / DAY_SECS),
                    None => f.write_str("."),
                }
            }
            Self::Unknown(Unknown::CloudSilent) => {
                f.write_str("The cloud did not answer, so the server's state is unknown.")
            }
            Self::Unknown(Unknown::RepositoryUnreachable) => {
                f.write_str("The backup repository cannot be reached.")
            }
            Self::Unknown(Unknown::KeyUnavailable) => {
                f.write_str("The key of the backup repository cannot be had.")
            }
            Self::Unknown(Unknown::DamageNotLocated) => f.write_str(
                "Part of the backup repository is damaged; whether this backup needs it is not known yet.",
            ),
            Self::Unknown(Unknown::PlaceNotTold) => f.write_str(
                "Where the backup repository and its key lie is not told, so whether they would be lost is unknown.",
            ),
            Self::NoAvailableBackup(server) => {
                write!(f, "There is no available backup of server ({server}).")
            }
            Self::Unseen(what) => write!(f, "planning without {what} failed"),
            Self::TooManyTags => {
                write!(f, "request tags exceed the max allowed count: {TAGS_MAX}.")
            }
        }
    }
}

/// A size in GB, as the published texts give it; one that is not whole keeps its fraction,
/// so that two sizes that differ never print alike.
#[expect(clippy::cast_precision_loss, reason = "nine digits tell single bytes apart up to 4 TiB")]
fn gb(bytes: u64) -> String {
    if bytes.is_multiple_of(GIB) {
        return (bytes / GIB).to_string();
    }
    format!("{:.9}", bytes as f64 / GIB as f64).trim_end_matches('0').to_owned()
}

/// Ids in one argument are joined with commas (docs/csbs-v1.md).
fn joined<T: fmt::Display>(ids: &[T]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_whole_where_they_are_and_never_alike_where_they_differ() {
        assert_eq!(gb(80 * GIB), "80");
        assert_eq!(gb(GIB / 32), "0.03125");
        assert_ne!(gb(100 * GIB - 1), gb(100 * GIB));
        assert_ne!(gb(100 * GIB - 1), gb(100 * GIB - 2));
    }

    #[test]
    fn a_published_text_is_kept_letter_for_letter() {
        let too_small = Refusal::TargetTooSmall {
            volume: VolumeId::asked("v"),
            have_bytes: 80 * GIB,
            backup: VolumeBackupId::asked("b"),
            need_bytes: 100 * GIB,
        };
        assert_eq!(
            too_small.to_string(),
            "Target volume (v) size (80) small than volume backup (b) size (100)."
        );
        let unmapped =
            Refusal::PartialRestore(vec![VolumeBackupId::asked("a"), VolumeBackupId::asked("b")]);
        assert_eq!(
            unmapped.to_string(),
            "Not assign backup(s) (a,b) to volume(s), partial restore is not supported.\""
        );
    }
}
