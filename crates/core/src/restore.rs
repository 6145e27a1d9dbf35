//! Can this backup be restored to that target? `check_restorable`, the admission of a
//! restore and its execution ask the same question, so all three call [`plan`]: the check
//! drops the plan, the restore runs it. What one promises, the other keeps.
//!
//! Invariant: nothing here does IO or reads a clock. The caller has fetched the facts, so
//! an answer is a function of its arguments; what is unknown is never a yes.

use crate::checkpoint::{Item, SnapshotRef, VolumeBackup};
use crate::evidence::{Demand, Evidence};
use crate::fact::Fact;
use crate::ids::{ItemId, ServerId, VolumeBackupId, VolumeId};
use crate::protect::Holder;
use crate::refusal::Refusal;
use crate::resource::{
    Content, Encryption, SERVER_TYPE, Server, ServerStatus, Sharing, Volume, VolumeRole,
    VolumeStatus,
};
use crate::status::ItemStatus;
use crate::time::Timestamp;

/// What a caller asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The backup.
    pub item: ItemId,
    /// The target server.
    pub server: ServerId,
    /// The target's type as the caller names it.
    pub resource_type: String,
    /// Which disk backup goes to which disk.
    pub mapping: Mapping,
}

/// Which disk backup goes to which disk. No backup and no disk stands in it twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping(Vec<Pair>);

/// One line of a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The disk backup.
    pub backup: VolumeBackupId,
    /// The disk it goes to.
    pub volume: VolumeId,
}

/// A mapping that names something twice: a malformed request, not a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedTwice {
    /// The pair with this index repeats an earlier pair's backup.
    Backup(usize),
    /// The pair with this index repeats an earlier pair's volume.
    Volume(usize),
}

impl Mapping {
    /// A mapping of these pairs.
    ///
    /// # Errors
    /// A backup or a volume is named twice.
    pub fn new(pairs: Vec<Pair>) -> Result<Self, NamedTwice> {
        let mut backups = std::collections::HashSet::new();
        let mut volumes = std::collections::HashSet::new();
        for (index, pair) in pairs.iter().enumerate() {
            if !backups.insert(&pair.backup) {
                return Err(NamedTwice::Backup(index));
            }
            if !volumes.insert(&pair.volume) {
                return Err(NamedTwice::Volume(index));
            }
        }
        Ok(Self(pairs))
    }

    /// Its pairs, in the caller's order.
    pub fn pairs(&self) -> &[Pair] {
        &self.0
    }

    fn names(&self, backup: &VolumeBackupId) -> bool {
        self.0.iter().any(|pair| pair.backup == *backup)
    }

    fn writes(&self, volume: &VolumeId) -> bool {
        self.0.iter().any(|pair| pair.volume == *volume)
    }
}

/// What is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The backup, with its volume backups.
    pub item: Fact<Item>,
    /// The target server and its volumes.
    pub target: Fact<Server>,
    /// The job that holds the target server, if any but the asking one.
    pub held: Option<Holder>,
    /// Volumes that other jobs hold.
    pub held_volumes: Vec<VolumeId>,
    /// The repository snapshot the item names.
    pub snapshot: Fact<SnapshotRef>,
    /// What is known of the data that the snapshot names.
    pub data: Fact<Data>,
    /// What the project demands to be known of it, and what is; `None` where it demands
    /// nothing, and for a restore that was admitted already.
    pub weighed: Option<Weighed>,
}

/// What is known of a backup beside what is demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weighed {
    /// What is demanded.
    pub demand: Demand,
    /// What is known.
    pub evidence: Evidence,
    /// Now.
    pub at: Timestamp,
}

/// What is known of the data a backup consists of. Absent as a fact where there is no
/// snapshot to name any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// All of it is listed, and nobody found any of it damaged.
    Whole,
    /// Some of it is missing, or was found damaged and lies nowhere else.
    Damaged,
}

/// Every write of one restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePlan {
    /// The backup.
    pub item: ItemId,
    /// Where its data lies.
    pub snapshot: SnapshotRef,
    /// The target.
    pub server: ServerId,
    /// One write per disk backup, in the item's order.
    pub writes: Vec<VolumeWrite>,
}

/// One volume to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeWrite {
    /// The disk backup.
    pub backup: VolumeBackupId,
    /// Its folder inside the repository snapshot.
    pub folder: String,
    /// The destination.
    pub volume: VolumeId,
    /// Bytes written from the destination's start: the size of the disk then.
    pub size_bytes: u64,
    /// Bytes of it that are data; the rest is zeroes.
    pub data_bytes: u64,
    /// The destination's size; what lies beyond `size_bytes` keeps its data.
    pub target_size_bytes: u64,
}

/// One rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name in tests and explanations.
    pub name: &'static str,
    check: fn(&Question, &Facts) -> Result<(), Refusal>,
}

/// The rules of docs/csbs-v1.md in published order; where CSBS has no code, ours follow the
/// published rule they are nearest to.
pub const RULES: &[Rule] = &[
    Rule { name: "item_is_known", check: item_is_known },
    Rule { name: "type_is_server", check: type_is_server },
    Rule { name: "item_is_available", check: item_is_available },
    Rule { name: "target_is_known", check: target_is_known },
    Rule { name: "target_is_not_terminated", check: target_is_not_terminated },
    Rule { name: "target_kind_is_supported", check: target_kind_is_supported },
    Rule { name: "kinds_agree", check: kinds_agree },
    Rule { name: "target_is_settled", check: target_is_settled },
    Rule { name: "no_job_holds_the_target", check: no_job_holds_the_target },
    Rule { name: "zones_agree", check: zones_agree },
    Rule { name: "target_has_volumes", check: target_has_volumes },
    Rule { name: "names_only_its_own_backups", check: names_only_its_own_backups },
    Rule { name: "leaves_no_backup_out", check: leaves_no_backup_out },
    Rule { name: "destinations_are_attached", check: destinations_are_attached },
    Rule { name: "destinations_are_exclusive", check: destinations_are_exclusive },
    Rule { name: "no_data_onto_system", check: no_data_onto_system },
    Rule { name: "destinations_are_large_enough", check: destinations_are_large_enough },
    Rule { name: "destinations_are_writable", check: destinations_are_writable },
    Rule { name: "encryption_is_kept", check: encryption_is_kept },
    Rule { name: "no_job_holds_a_destination", check: no_job_holds_a_destination },
    Rule { name: "leaves_no_half_written_volume_out", check: leaves_no_half_written_volume_out },
    Rule { name: "repository_holds_the_snapshot", check: repository_holds_the_snapshot },
    Rule { name: "its_data_is_whole", check: its_data_is_whole },
    Rule { name: "evidence_is_as_demanded", check: evidence_is_as_demanded },
];

/// Plans one restore.
///
/// # Errors
/// The first rule that refuses.
pub fn plan(question: &Question, facts: &Facts) -> Result<RestorePlan, Refusal> {
    plan_by(RULES, question, facts)
}

/// Plans by a given list of rules: the seam by which a test shows that each one counts.
///
/// # Errors
/// The first rule that refuses; or a bug, if the rules let something unseen through.
pub fn plan_by(rules: &[Rule], question: &Question, facts: &Facts) -> Result<RestorePlan, Refusal> {
    for rule in rules {
        (rule.check)(question, facts)?;
    }
    assemble(question, facts)
}

/// Every rule that refuses, with its name, in published order. What a rule cannot see for
/// lack of a fact it leaves to the rule about that fact, so that nothing is told of what
/// is not the caller's.
pub fn violations(question: &Question, facts: &Facts) -> Vec<(&'static str, Refusal)> {
    let refusal = |rule: &Rule| Some((rule.name, (rule.check)(question, facts).err()?));
    let mut violations: Vec<_> = RULES.iter().filter_map(refusal).collect();
    // One silent source may be what two rules ask.
    violations.dedup_by(|later, earlier| later.1 == earlier.1);
    violations
}

/// A plan is made only of what was seen, whatever the rules let through.
fn assemble(question: &Question, facts: &Facts) -> Result<RestorePlan, Refusal> {
    let item = facts.item.seen().ok_or(Refusal::Unseen("the backup"))?;
    let target = facts.target.seen().ok_or(Refusal::Unseen("the target"))?;
    let snapshot = facts.snapshot.seen().ok_or(Refusal::Unseen("the snapshot"))?;
    let data = facts.data.seen().filter(|data| **data == Data::Whole);
    data.ok_or(Refusal::Unseen("the data"))?;
    let writes = pairs(question, item, target)
        .map(|(backup, volume)| {
            let stored = backup.stored.as_ref().ok_or(Refusal::Unseen("what was stored"))?;
            Ok(VolumeWrite {
                backup: backup.id.clone(),
                folder: stored.folder.clone(),
                volume: volume.id.clone(),
                size_bytes: backup.source_size_bytes,
                data_bytes: stored.data_bytes,
                target_size_bytes: volume.size_bytes,
            })
        })
        .collect::<Result<_, Refusal>>()?;
    Ok(RestorePlan {
        item: item.id.clone(),
        snapshot: snapshot.clone(),
        server: target.id.clone(),
        writes,
    })
}

fn seen<T>(fact: &Fact<T>, absent: impl FnOnce() -> Refusal) -> Result<&T, Refusal> {
    match fact {
        Fact::Seen { value, .. } => Ok(value),
        Fact::Absent => Err(absent()),
        Fact::Unknown { why } => Err(Refusal::Unknown(*why)),
    }
}

/// The mapping's lines as things seen, in the item's order; lines that name something
/// unseen are the business of other rules.
fn pairs<'a>(
    question: &'a Question,
    item: &'a Item,
    target: &'a Server,
) -> impl Iterator<Item = (&'a VolumeBackup, &'a Volume)> {
    item.volumes.iter().filter_map(|backup| {
        let pair = question.mapping.pairs().iter().find(|pair| pair.backup == backup.id)?;
        let volume = target.volumes.iter().find(|volume| volume.id == pair.volume)?;
        Some((backup, volume))
    })
}

/// [`pairs`] of whatever was seen.
pub(crate) fn known_pairs<'a>(
    question: &'a Question,
    facts: &'a Facts,
) -> impl Iterator<Item = (&'a VolumeBackup, &'a Volume)> {
    facts
        .item
        .seen()
        .zip(facts.target.seen())
        .into_iter()
        .flat_map(|(item, target)| pairs(question, item, target))
}

fn item_is_known(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    seen(&facts.item, || Refusal::ItemNotFound(question.item.clone())).map(drop)
}

fn type_is_server(question: &Question, _: &Facts) -> Result<(), Refusal> {
    if question.resource_type == SERVER_TYPE {
        return Ok(());
    }
    Err(Refusal::TypeNotRestorable {
        resource: question.server.clone(),
        resource_type: question.resource_type.clone(),
    })
}

fn item_is_available(_: &Question, facts: &Facts) -> Result<(), Refusal> {
    match facts.item.seen() {
        Some(item) if item.status != ItemStatus::Available => {
            Err(Refusal::ItemNotAvailable(item.status))
        }
        _ => Ok(()),
    }
}

fn target_is_known(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    seen(&facts.target, || Refusal::ServerNotFound(question.server.clone())).map(drop)
}

fn target_is_not_terminated(_: &Question, facts: &Facts) -> Result<(), Refusal> {
    match facts.target.seen() {
        Some(target) if target.status == ServerStatus::Deleted => {
            Err(Refusal::ServerTerminated(target.id.clone()))
        }
        _ => Ok(()),
    }
}

fn target_kind_is_supported(_: &Question, facts: &Facts) -> Result<(), Refusal> {
    match facts.target.seen() {
        Some(target) if !target.kind.is_supported() => Err(Refusal::KindNotRestorable(target.kind)),
        _ => Ok(()),
    }
}

fn kinds_agree(_: &Question, facts: &Facts) -> Result<(), Refusal> {
    match facts.item.seen().zip(facts.target.seen()) {
        Some((item, target)) if item.source.kind != target.kind => Err(Refusal::KindMismatch {
            source: item.source.id.clone(),
            source_kind: item.source.kind,
            target: target.id.clone(),
            target_kind: target.kind,
        }),
        _ => Ok(()),
    }
}

fn target_is_settled(_: &Question, facts: &Facts) -> Result<(), Refusal> {
    match facts.target.seen() {
        Some(target) if !target.status.is_settled() => Err(Refusal::TargetStatus(target.status)),
        _ => Ok(()),
    }
}

fn no_job_holds_the_target(_: &Question, facts: &Facts) -> Result<(), Refusal> {
    match facts.target.seen().and(facts.held) {
        Some(Holder::Backup(_) | Holder::Restore) => Err(Refusal::TargetHeld),
        None => Ok(()),
    }
}

fn zones_agree(_: &Question, facts: &Facts) -> Result<(), Refusal> {
    match facts.item.seen().zip(facts.target.seen()) {
        Some((item, target)) if item.source.zone != target.zone => {
            Err(Refusal::ZoneMismatch(item.id.clone(), target.id.clone()))
        }
        _ => Ok(()),
    }
}

fn target_has_volumes(_: &Question, facts: &Facts) -> Result<(), Refusal> {
    match facts.target.seen() {
        Some(target) if target.volumes.is_empty() => {
            Err(Refusal::NoVolumeToRestore(target.id.clone()))
        }
        _ => Ok(()),
    }
}

fn names_only_its_own_backups(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    let Some(item) = facts.item.seen() else { return Ok(()) };
    let strangers: Vec<_> = question
        .mapping
        .pairs()
        .iter()
        .filter(|pair| item.volumes.iter().all(|backup| backup.id != pair.backup))
        .map(|pair| pair.backup.clone())
        .collect();
    if strangers.is_empty() {
        return Ok(());
    }
    Err(Refusal::NotOfThisItem(strangers, item.id.clone()))
}

/// A server comes back whole or not at all.
fn leaves_no_backup_out(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    let Some(item) = facts.item.seen() else { return Ok(()) };
    let left_out: Vec<_> = item
        .volumes
        .iter()
        .filter(|backup| !question.mapping.names(&backup.id))
        .map(|backup| backup.id.clone())
        .collect();
    if left_out.is_empty() {
        return Ok(());
    }
    Err(Refusal::PartialRestore(left_out))
}

fn destinations_are_attached(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    let Some(target) = facts.target.seen() else { return Ok(()) };
    let detached: Vec<_> = question
        .mapping
        .pairs()
        .iter()
        .filter(|pair| target.volumes.iter().all(|volume| volume.id != pair.volume))
        .map(|pair| pair.volume.clone())
        .collect();
    if detached.is_empty() {
        return Ok(());
    }
    Err(Refusal::VolumeNotAttached(detached))
}

/// Nobody can stop the writes of the other servers that use a shared disk.
fn destinations_are_exclusive(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    let shared: Vec<_> = known_pairs(question, facts)
        .filter(|(_, volume)| volume.sharing == Sharing::Shared)
        .map(|(_, volume)| volume.id.clone())
        .collect();
    if shared.is_empty() {
        return Ok(());
    }
    Err(Refusal::SharedVolumeRestore(shared, question.server.clone()))
}

/// A system disk's backup may go to a data disk; the reverse leaves a server that cannot
/// boot.
fn no_data_onto_system(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    let wrong = known_pairs(question, facts).any(|(backup, volume)| {
        (backup.role, volume.role) == (VolumeRole::Data, VolumeRole::System)
    });
    if wrong { Err(Refusal::DataOntoSystem(question.server.clone())) } else { Ok(()) }
}

/// Compared in bytes: two sizes that print as the same GB may still differ.
fn destinations_are_large_enough(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    let small = known_pairs(question, facts)
        .find(|(backup, volume)| volume.size_bytes < backup.source_size_bytes);
    match small {
        Some((backup, volume)) => Err(Refusal::TargetTooSmall {
            volume: volume.id.clone(),
            have_bytes: volume.size_bytes,
            backup: backup.id.clone(),
            need_bytes: backup.source_size_bytes,
        }),
        None => Ok(()),
    }
}

fn destinations_are_writable(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    let unfit = known_pairs(question, facts).find(|(_, volume)| match volume.status {
        VolumeStatus::Healthy => false,
        VolumeStatus::Error | VolumeStatus::Busy => true,
    });
    match unfit {
        Some((_, volume)) => Err(Refusal::VolumeNotWritable(volume.id.clone())),
        None => Ok(()),
    }
}

/// What a user had encrypted must not come to lie in clear.
fn encryption_is_kept(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    let exposed = known_pairs(question, facts).find(|(backup, volume)| {
        (backup.encryption, volume.encryption) == (Encryption::Encrypted, Encryption::Plain)
    });
    match exposed {
        Some((backup, volume)) => {
            Err(Refusal::EncryptionMismatch(backup.id.clone(), volume.id.clone()))
        }
        None => Ok(()),
    }
}

fn no_job_holds_a_destination(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    let held =
        known_pairs(question, facts).find(|(_, volume)| facts.held_volumes.contains(&volume.id));
    match held {
        Some((_, volume)) => Err(Refusal::VolumeHeld(volume.id.clone())),
        None => Ok(()),
    }
}

/// A server with a half-written disk cannot start, so restoring its other disks would not
/// bring it back. Writing that disk anew is how a failed restore is made good.
fn leaves_no_half_written_volume_out(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    let Some(target) = facts.target.seen() else { return Ok(()) };
    let left_out: Vec<_> = target
        .volumes
        .iter()
        .filter(|volume| volume.content == Content::HalfWritten)
        .filter(|volume| !question.mapping.writes(&volume.id))
        .map(|volume| volume.id.clone())
        .collect();
    if left_out.is_empty() {
        return Ok(());
    }
    Err(Refusal::HalfWritten(left_out, target.id.clone()))
}

fn repository_holds_the_snapshot(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    if facts.item.seen().is_none() {
        return Ok(());
    }
    seen(&facts.snapshot, || Refusal::SnapshotMissing(question.item.clone())).map(drop)
}

fn its_data_is_whole(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    if facts.item.seen().is_none() || facts.snapshot == Fact::Absent {
        return Ok(());
    }
    let damaged = || Refusal::DataDamaged(question.item.clone());
    match seen(&facts.data, damaged)? {
        Data::Whole => Ok(()),
        Data::Damaged => Err(damaged()),
    }
}

/// Who relies on backups may want to know that they were read, and lately. Where something
/// is found wrong with this one, that is the answer.
fn evidence_is_as_demanded(question: &Question, facts: &Facts) -> Result<(), Refusal> {
    match facts.weighed {
        Some(Weighed { demand, evidence, at }) if !evidence.meets(&demand, at) => {
            let (item, grade) = (question.item.clone(), evidence.grade);
            Err(Refusal::EvidenceTooWeak { item, grade, demand })
        }
        _ => Ok(()),
    }
}
