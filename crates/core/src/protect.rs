//! Can this server be backed up? `check_protectable` and `protect` ask the same question,
//! so both call [`plan`]: the check drops the plan and protect runs it.
//!
//! The rules stand in the order of docs/csbs-v1.md; the first that refuses is the answer.

use crate::checkpoint::Trigger;
use crate::fact::Fact;
use crate::ids::{ServerId, VolumeId};
use crate::refusal::Refusal;
use crate::resource::{Content, SERVER_TYPE, Server, ServerStatus, Sharing, StorageClass, Volume};

/// What a caller asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The server.
    pub server: ServerId,
    /// Its type as the caller names it.
    pub resource_type: String,
    /// Disks to leave out.
    pub excluded: Vec<VolumeId>,
}

/// What is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The server, as the cloud reports it.
    pub server: Fact<Server>,
    /// The job that holds the server, if any.
    pub held: Option<Holder>,
}

/// Whose claim a server is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A backup with this trigger.
    Backup(Trigger),
    /// A restore.
    Restore,
}

impl Holder {
    /// The word in explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backup(_) => "backup",
            Self::Restore => "restore",
        }
    }
}

/// What the operator decided for this installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether servers with shared disks may be backed up. Allowed unless configured
    /// otherwise.
    pub shared_volumes: SharedVolumes,
    /// Zones that have no backup storage.
    pub zones_without_backup: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { shared_volumes: SharedVolumes::Allowed, zones_without_backup: Vec::new() }
    }
}

/// What to do with servers that have shared disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedVolumes {
    /// Back them up like any other.
    Allowed,
    /// Refuse the server (CSBS.6010).
    Refused,
}

/// What a backup will read: one server and its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtectPlan {
    /// The server as seen, `volumes` holding only the disks to back up.
    pub server: Server,
}

/// One rule of the published table.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name in tests and explanations.
    pub name: &'static str,
    check: fn(&Question, &Facts, &Settings) -> Result<(), Refusal>,
}

/// The rules, in published order; the last one is ours.
pub const RULES: &[Rule] = &[
    Rule { name: "type_is_server", check: type_is_server },
    Rule { name: "server_is_known", check: server_is_known },
    Rule { name: "server_is_not_terminated", check: server_is_not_terminated },
    Rule { name: "kind_is_supported", check: kind_is_supported },
    Rule { name: "status_is_settled", check: status_is_settled },
    Rule { name: "zone_has_backup", check: zone_has_backup },
    Rule { name: "has_a_volume", check: has_a_volume },
    Rule { name: "storage_is_supported", check: storage_is_supported },
    Rule { name: "shared_volumes_are_allowed", check: shared_volumes_are_allowed },
    Rule { name: "no_job_holds_the_server", check: no_job_holds_the_server },
    Rule { name: "no_volume_is_half_written", check: no_volume_is_half_written },
];

/// Plans one backup by the published rules.
///
/// # Errors
/// The first rule that refuses.
pub fn plan(
    question: &Question,
    facts: &Facts,
    settings: &Settings,
) -> Result<ProtectPlan, Refusal> {
    plan_by(RULES, question, facts, settings)
}

/// Plans by a given list of rules: the seam by which a test shows that each one counts.
///
/// # Errors
/// The first rule that refuses; or a bug, if the rules let an unseen server through.
pub fn plan_by(
    rules: &[Rule],
    question: &Question,
    facts: &Facts,
    settings: &Settings,
) -> Result<ProtectPlan, Refusal> {
    for rule in rules {
        (rule.check)(question, facts, settings)?;
    }
    let server = facts.server.seen().ok_or(Refusal::Unseen("the server"))?;
    let volumes = chosen(question, server).cloned().collect();
    Ok(ProtectPlan { server: Server { volumes, ..server.clone() } })
}

/// Every rule that refuses, with its name, in published order. Nothing is told of a server
/// that was not seen.
pub fn violations(
    question: &Question,
    facts: &Facts,
    settings: &Settings,
) -> Vec<(&'static str, Refusal)> {
    let refusal = |rule: &Rule| Some((rule.name, (rule.check)(question, facts, settings).err()?));
    RULES.iter().filter_map(refusal).collect()
}

fn chosen<'a>(question: &'a Question, server: &'a Server) -> impl Iterator<Item = &'a Volume> {
    server.volumes.iter().filter(|volume| !question.excluded.contains(&volume.id))
}

fn type_is_server(question: &Question, _: &Facts, _: &Settings) -> Result<(), Refusal> {
    if question.resource_type == SERVER_TYPE {
        return Ok(());
    }
    Err(Refusal::TypeNotProtectable {
        resource: question.server.clone(),
        resource_type: question.resource_type.clone(),
    })
}

fn server_is_known(question: &Question, facts: &Facts, _: &Settings) -> Result<(), Refusal> {
    match facts.server {
        Fact::Seen { .. } => Ok(()),
        Fact::Absent => Err(Refusal::ServerNotFound(question.server.clone())),
        Fact::Unknown { why } => Err(Refusal::Unknown(why)),
    }
}

fn server_is_not_terminated(_: &Question, facts: &Facts, _: &Settings) -> Result<(), Refusal> {
    match facts.server.seen() {
        Some(server) if server.status == ServerStatus::Deleted => {
            Err(Refusal::ServerTerminated(server.id.clone()))
        }
        _ => Ok(()),
    }
}

fn kind_is_supported(_: &Question, facts: &Facts, _: &Settings) -> Result<(), Refusal> {
    match facts.server.seen() {
        Some(server) if !server.kind.is_supported() => {
            Err(Refusal::KindNotProtectable(server.id.clone(), server.kind))
        }
        _ => Ok(()),
    }
}

fn status_is_settled(_: &Question, facts: &Facts, _: &Settings) -> Result<(), Refusal> {
    match facts.server.seen() {
        Some(server) if !server.status.is_settled() => Err(Refusal::ServerBusy(server.id.clone())),
        _ => Ok(()),
    }
}

fn zone_has_backup(_: &Question, facts: &Facts, settings: &Settings) -> Result<(), Refusal> {
    match facts.server.seen() {
        Some(server) if settings.zones_without_backup.contains(&server.zone) => {
            Err(Refusal::ZoneWithoutBackup(server.id.clone()))
        }
        _ => Ok(()),
    }
}

fn has_a_volume(question: &Question, facts: &Facts, _: &Settings) -> Result<(), Refusal> {
    match facts.server.seen() {
        Some(server) if chosen(question, server).next().is_none() => {
            Err(Refusal::NoVolumeToProtect(server.id.clone()))
        }
        _ => Ok(()),
    }
}

fn storage_is_supported(question: &Question, facts: &Facts, _: &Settings) -> Result<(), Refusal> {
    let Some(server) = facts.server.seen() else { return Ok(()) };
    let on = |storage| chosen(question, server).find(move |volume| volume.storage == storage);
    if let Some(volume) = on(StorageClass::Dedicated) {
        return Err(Refusal::DedicatedStorage(volume.id.clone(), server.id.clone()));
    }
    if let Some(volume) = on(StorageClass::Unsupported) {
        return Err(Refusal::StorageUnsupported(volume.id.clone()));
    }
    Ok(())
}

fn shared_volumes_are_allowed(
    question: &Question,
    facts: &Facts,
    settings: &Settings,
) -> Result<(), Refusal> {
    let Some(server) = facts.server.seen() else { return Ok(()) };
    if settings.shared_volumes == SharedVolumes::Allowed {
        return Ok(());
    }
    let shared: Vec<_> = chosen(question, server)
        .filter(|volume| volume.sharing == Sharing::Shared)
        .map(|volume| volume.id.clone())
        .collect();
    if shared.is_empty() {
        return Ok(());
    }
    Err(Refusal::SharedVolumeProtect(shared, server.id.clone()))
}

/// A running restore makes the server's present status unfit for a backup (CSBS.6005).
fn no_job_holds_the_server(
    question: &Question,
    facts: &Facts,
    _: &Settings,
) -> Result<(), Refusal> {
    let server = || question.server.clone();
    match facts.server.seen().and(facts.held) {
        None => Ok(()),
        Some(Holder::Backup(Trigger::Manual)) => Err(Refusal::ManualBackupRunning(server())),
        Some(Holder::Backup(Trigger::Automatic)) => Err(Refusal::AutomaticBackupRunning(server())),
        Some(Holder::Restore) => Err(Refusal::ServerBusy(server())),
    }
}

/// A backup of a disk that is part old and part new would pass for one of a server that
/// never was.
fn no_volume_is_half_written(
    question: &Question,
    facts: &Facts,
    _: &Settings,
) -> Result<(), Refusal> {
    let Some(server) = facts.server.seen() else { return Ok(()) };
    let half_written: Vec<_> = chosen(question, server)
        .filter(|volume| volume.content == Content::HalfWritten)
        .map(|volume| volume.id.clone())
        .collect();
    if half_written.is_empty() {
        return Ok(());
    }
    Err(Refusal::HalfWritten(half_written, server.id.clone()))
}
