//! Explaining what becomes of a backup.

use super::{
    Explanation, Outlook, Repair, Saw, Subject, Until, Violation, at, request, saw, unknown, wait,
};
use crate::ids::VolumeId;
use crate::protect::{self, Facts, ProtectPlan, Question, Settings};
use crate::refusal::Refusal;
use crate::resource::{Content, SERVER_TYPE, ServerStatus, Sharing, StorageClass, Volume};

/// The rule about the server's own status.
const STATUS_RULE: &str = "status_is_settled";

/// Explains the answer to a question about a server.
pub fn explain_protect(
    question: &Question,
    facts: &Facts,
    settings: &Settings,
    outlook: &Outlook,
) -> Explanation<ProtectPlan> {
    let explainer = ProtectExplainer { question, facts, outlook };
    let violations = protect::violations(question, facts, settings)
        .into_iter()
        .map(|(rule, refusal)| Violation {
            rule,
            saw: explainer.saw(rule, &refusal),
            repairs: explainer.repairs(rule, &refusal),
            refusal,
        })
        .collect();
    Explanation { verdict: protect::plan(question, facts, settings), violations }
}

struct ProtectExplainer<'a> {
    question: &'a Question,
    facts: &'a Facts,
    outlook: &'a Outlook,
}

impl ProtectExplainer<'_> {
    fn repairs(&self, rule: &str, refusal: &Refusal) -> Vec<Repair> {
        let server = || self.question.server.clone();
        match refusal {
            Refusal::TypeNotProtectable { .. } => vec![Repair::NameType(SERVER_TYPE)],
            Refusal::ServerNotFound(_)
            | Refusal::ServerTerminated(_)
            | Refusal::KindNotProtectable(..) => vec![Repair::NameServer],
            // Two rules answer so: one looks at the server's status, one at our jobs.
            Refusal::ServerBusy(_) => match self.facts.server.seen().map(|it| it.status) {
                Some(ServerStatus::Error) if rule == STATUS_RULE => {
                    vec![Repair::MendServer(server())]
                }
                Some(ServerStatus::VerifyResize) if rule == STATUS_RULE => {
                    vec![Repair::EndResize(server())]
                }
                _ => vec![self.wait()],
            },
            Refusal::ManualBackupRunning(_) | Refusal::AutomaticBackupRunning(_) => {
                vec![self.wait()]
            }
            Refusal::ZoneWithoutBackup(_) => vec![Repair::ChangeSettings("zones_without_backup")],
            Refusal::NoVolumeToProtect(_) => vec![Repair::AttachDisk(server())],
            Refusal::DedicatedStorage(..) | Refusal::StorageUnsupported(_) => {
                let such = self.volumes_where(|it| it.storage != StorageClass::Ordinary);
                let exclude = self.exclude(&such);
                std::iter::once(Repair::MoveVolumes(such)).chain(exclude).collect()
            }
            Refusal::SharedVolumeProtect(volumes, _) => {
                let settings = Repair::ChangeSettings("shared_volumes");
                std::iter::once(settings).chain(self.exclude(volumes)).collect()
            }
            Refusal::HalfWritten(volumes, _) => {
                let restore = Repair::RestoreVolumes(volumes.clone());
                std::iter::once(restore).chain(self.exclude(volumes)).collect()
            }
            Refusal::Unknown(_) => vec![wait(self.outlook, Until::SourceAnswers, &[])],
            // Not answers to this question.
            Refusal::ItemNotFound(_)
            | Refusal::ItemNotAvailable(_)
            | Refusal::ItemExecuting(_)
            | Refusal::TypeNotRestorable { .. }
            | Refusal::KindNotRestorable(_)
            | Refusal::KindMismatch { .. }
            | Refusal::TargetStatus(_)
            | Refusal::TargetHeld
            | Refusal::ZoneMismatch(..)
            | Refusal::NoVolumeToRestore(_)
            | Refusal::NotOfThisItem(..)
            | Refusal::PartialRestore(_)
            | Refusal::VolumeNotAttached(_)
            | Refusal::SharedVolumeRestore(..)
            | Refusal::DataOntoSystem(_)
            | Refusal::TargetTooSmall { .. }
            | Refusal::VolumeNotWritable(_)
            | Refusal::EncryptionMismatch(..)
            | Refusal::VolumeHeld(_)
            | Refusal::SnapshotMissing(_)
            | Refusal::DataDamaged(_)
            | Refusal::EvidenceTooWeak { .. }
            | Refusal::PlanMoved(_)
            | Refusal::ItemLeased { .. }
            | Refusal::TooManyLeases(_)
            | Refusal::Unseen(_)
            | Refusal::NoAvailableBackup(_)
            | Refusal::TooManyTags => Vec::new(),
        }
    }

    fn wait(&self) -> Repair {
        let server = self.question.server.clone();
        let subject = Subject::Server(server.clone());
        wait(self.outlook, Until::ServerIsFree(server), &[subject])
    }

    fn volumes_where(&self, is_such: impl Fn(&Volume) -> bool) -> Vec<VolumeId> {
        let volumes = self.facts.server.seen().into_iter().flat_map(|server| &server.volumes);
        let chosen = volumes.filter(|volume| !self.question.excluded.contains(&volume.id));
        chosen.filter(|volume| is_such(volume)).map(|volume| volume.id.clone()).collect()
    }

    /// Leaving these out as well, if anything is left then.
    fn exclude(&self, volumes: &[VolumeId]) -> Option<Repair> {
        let rest = self.volumes_where(|volume| !volumes.contains(&volume.id));
        (!rest.is_empty()).then(|| Repair::ExcludeVolumes(volumes.to_vec()))
    }

    fn saw(&self, rule: &str, refusal: &Refusal) -> Vec<Saw> {
        let of_server = |property, value: &str| {
            saw(
                &Subject::Server(self.question.server.clone()),
                &[(property, value)],
                at(&self.facts.server),
            )
        };
        let server = self.facts.server.seen();
        match refusal {
            Refusal::TypeNotProtectable { resource_type, .. } => {
                vec![request("resource_type", resource_type.clone())]
            }
            Refusal::ServerTerminated(_) => of_server("status", ServerStatus::Deleted.as_str()),
            Refusal::KindNotProtectable(_, kind) => of_server("kind", kind.as_str()),
            Refusal::ServerBusy(_)
            | Refusal::ManualBackupRunning(_)
            | Refusal::AutomaticBackupRunning(_) => match self.facts.held {
                Some(held) if rule != STATUS_RULE => of_server("held_by", held.as_str()),
                Some(_) | None => of_server("status", server.map_or("", |it| it.status.as_str())),
            },
            Refusal::ZoneWithoutBackup(_) => of_server("az", server.map_or("", |it| &it.zone)),
            Refusal::NoVolumeToProtect(_) => of_server("volumes", "none"),
            Refusal::DedicatedStorage(..) | Refusal::StorageUnsupported(_) => {
                self.saw_volumes(refusal, "storage", |volume| storage(volume.storage))
            }
            Refusal::SharedVolumeProtect(..) => self.saw_volumes(refusal, "sharing", |_| "shared"),
            Refusal::HalfWritten(..) => self.saw_volumes(refusal, "content", |_| "half_written"),
            Refusal::Unknown(why) => unknown(*why),
            // Of what is not there nothing was seen. Which refusals answer other questions
            // is told, one by one, where repairs are.
            _ => Vec::new(),
        }
    }

    fn saw_volumes(
        &self,
        refusal: &Refusal,
        property: &'static str,
        value: impl Fn(&Volume) -> &'static str,
    ) -> Vec<Saw> {
        let is_such = |volume: &Volume| match refusal {
            Refusal::SharedVolumeProtect(..) => volume.sharing == Sharing::Shared,
            Refusal::HalfWritten(..) => volume.content == Content::HalfWritten,
            _ => volume.storage != StorageClass::Ordinary,
        };
        let volumes = self.facts.server.seen().into_iter().flat_map(|server| &server.volumes);
        let chosen = volumes.filter(|volume| !self.question.excluded.contains(&volume.id));
        let such = chosen.filter(|volume| is_such(volume));
        such.map(|volume| Saw {
            subject: Subject::Volume(volume.id.clone()),
            property,
            value: value(volume).to_owned(),
            at: at(&self.facts.server),
        })
        .collect()
    }
}

fn storage(storage: StorageClass) -> &'static str {
    match storage {
        StorageClass::Ordinary => "ordinary",
        StorageClass::Dedicated => "dedicated",
        StorageClass::Unsupported => "unsupported",
    }
}
