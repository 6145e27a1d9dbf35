//! Why a verdict is what it is: every rule that refuses, what it saw, and what would mend
//! it, the smallest change first.
//!
//! Invariant: an explanation is made of the same rules and facts as the verdict it
//! explains. Where a rule refuses there is no plan, and where none does there is one.

mod protect;
mod restore;

use crate::checkpoint::VolumeBackup;
use crate::fact::{Fact, Unknown};
use crate::ids::{ItemId, JobId, ServerId, VolumeBackupId, VolumeId};
use crate::refusal::Refusal;
use crate::resource::{Encryption, ServerKind, VolumeRole};
use crate::restore::{Facts, Mapping, Question};
use crate::time::Timestamp;

pub use protect::explain_protect;
pub use restore::explain_restore;

/// A verdict with its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation<Plan> {
    /// The verdict: what would be done, or the first rule that refuses.
    pub verdict: Result<Plan, Refusal>,
    /// Every rule that refuses, in published order.
    pub violations: Vec<Violation>,
}

/// A rule that refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule's name.
    pub rule: &'static str,
    /// What it answers.
    pub refusal: Refusal,
    /// What it saw, all of it the caller's own.
    pub saw: Vec<Saw>,
    /// What would mend it, each for itself, the smallest change first.
    pub repairs: Vec<Repair>,
}

/// A fact as a rule saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saw {
    /// Of what.
    pub subject: Subject,
    /// Which of its properties, a word of the API where there is one.
    pub property: &'static str,
    /// Its value.
    pub value: String,
    /// When it was learned; `None` for what the catalogue knows at this moment.
    pub at: Option<Timestamp>,
}

/// What a fact is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The backup.
    Item(ItemId),
    /// A server.
    Server(ServerId),
    /// A disk backup.
    Backup(VolumeBackupId),
    /// A disk.
    Volume(VolumeId),
    /// The request itself.
    Request,
}

/// Something somebody could do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Name the resource's type so.
    NameType(&'static str),
    /// Ask for this mapping.
    Map(Mapping),
    /// Wait until what is under way is over.
    Wait(Wait),
    /// Extend disks of the target by so many bytes each.
    ExtendVolumes(Vec<(VolumeId, u64)>),
    /// Attach these disks to the target.
    AttachVolumes(Vec<VolumeId>),
    /// Attach disks like these to the target, and send the backups there.
    AddVolumes(Vec<Need>),
    /// Attach a disk to the server.
    AttachDisk(ServerId),
    /// Bring these disks into a state in which they can be written.
    MendVolumes(Vec<VolumeId>),
    /// Detach disks of which only half is written.
    DetachVolumes(Vec<VolumeId>),
    /// Leave these disks out when backing up.
    ExcludeVolumes(Vec<VolumeId>),
    /// Restore these disks, or detach them.
    RestoreVolumes(Vec<VolumeId>),
    /// Consent to a server's new size, or go back.
    EndResize(ServerId),
    /// Bring a server out of its error state.
    MendServer(ServerId),
    /// Restore this backup, which can be restored now, with this mapping.
    ChooseItem(ItemId, Mapping),
    /// Restore to this server, which would do now, with this mapping.
    ChooseServer(ServerId, Mapping),
    /// Restore to a server like this.
    ProvideServer {
        /// What runs it.
        kind: ServerKind,
        /// Where it is.
        zone: String,
        /// Its disks.
        disks: Vec<Need>,
    },
    /// Ask about a server of the project that is there and can be backed up.
    NameServer,
    /// Move these disks to storage that can be backed up.
    MoveVolumes(Vec<VolumeId>),
    /// Back the server up again: what is damaged or missing is stored anew.
    BackUp(ServerId),
    /// A matter for whoever runs the service.
    TellOperator(Unknown),
    /// The operator's settings refuse this.
    ChangeSettings(&'static str),
}

/// What is being waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What.
    pub until: Until,
    /// The job that is under way, where one of ours is.
    pub job: Option<JobId>,
    /// About how long, where that can be told.
    pub seconds: Option<u64>,
}

/// The end of something that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// The work on the backup.
    ItemIsFree(ItemId),
    /// The work on the server: a job of ours, or what the cloud does with it.
    ServerIsFree(ServerId),
    /// The work on these disks.
    VolumesAreFree(Vec<VolumeId>),
    /// The search for what damage harms.
    DamageIsLocated,
    /// The reading back of the backup, which was asked for.
    EvidenceIsFound(ItemId),
    /// The silence of a source.
    SourceAnswers,
}

/// A disk that a disk backup fits on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The disk backup.
    pub backup: VolumeBackupId,
    /// The least size.
    pub size_bytes: u64,
    /// Whether it must be encrypted.
    pub encryption: Encryption,
    /// What the disk was to its server; one that held data must not be a system disk.
    pub role: VolumeRole,
}

/// What an explanation can tell beyond the facts of the question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Jobs that hold the backup, the target or its disks, and about how many seconds each
    /// still takes.
    pub jobs: Vec<(Subject, JobId, Option<u64>)>,
    /// Questions the caller could ask instead, the likeliest first: other backups of the
    /// same server, or the server that was backed up.
    pub others: Vec<(Question, Facts)>,
    /// About how many seconds it takes to find the evidence that is demanded.
    pub proof_secs: Option<u64>,
}

impl Need {
    fn of(backup: &VolumeBackup) -> Self {
        Self {
            backup: backup.id.clone(),
            size_bytes: backup.source_size_bytes,
            encryption: backup.encryption,
            role: backup.role,
        }
    }
}

/// What is waited for, and the longest of the jobs at it; one of which that is not known
/// may be the longest.
fn wait(outlook: &Outlook, until: Until, subjects: &[Subject]) -> Repair {
    let at_it = outlook.jobs.iter().filter(|(subject, ..)| subjects.contains(subject));
    let longest = at_it.max_by_key(|(_, _, seconds)| seconds.unwrap_or(u64::MAX));
    Repair::Wait(Wait {
        until,
        job: longest.map(|(_, job, _)| job.clone()),
        seconds: longest.and_then(|(_, _, seconds)| *seconds),
    })
}

fn saw(subject: &Subject, what: &[(&'static str, &str)], at: Option<Timestamp>) -> Vec<Saw> {
    let one = |(property, value): &(&'static str, &str)| Saw {
        subject: subject.clone(),
        property,
        value: (*value).to_owned(),
        at,
    };
    what.iter().map(one).collect()
}

fn request(property: &'static str, value: String) -> Saw {
    Saw { subject: Subject::Request, property, value, at: None }
}

fn unknown(why: Unknown) -> Vec<Saw> {
    vec![request("unknown", why.as_str().to_owned())]
}

fn at<T>(fact: &Fact<T>) -> Option<Timestamp> {
    match fact {
        Fact::Seen { at, .. } => Some(*at),
        Fact::Absent | Fact::Unknown { .. } => None,
    }
}
