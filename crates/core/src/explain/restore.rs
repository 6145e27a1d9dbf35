//! Explaining what becomes of a restore.

use super::{
    Explanation, Need, Outlook, Repair, Saw, Subject, Until, Violation, Wait, at, request, saw,
    unknown, wait,
};
use crate::checkpoint::{Item, VolumeBackup};
use crate::fact::Unknown;
use crate::fit::{Fitting, fit};
use crate::ids::VolumeId;
use crate::protect::Holder;
use crate::refusal::Refusal;
use crate::resource::{
    Content, Encryption, SERVER_TYPE, Server, ServerStatus, Sharing, Volume, VolumeRole,
    VolumeStatus,
};
use crate::restore::{self, Facts, Question, RestorePlan, known_pairs};
use crate::status::ItemStatus;
use crate::time::Timestamp;

/// Explains the answer to a question about a backup.
pub fn explain_restore(
    question: &Question,
    facts: &Facts,
    outlook: &Outlook,
) -> Explanation<RestorePlan> {
    let explainer = Explainer { question, facts, outlook };
    let violations = restore::violations(question, facts)
        .into_iter()
        .map(|(rule, refusal)| Violation {
            rule,
            saw: explainer.saw(&refusal),
            repairs: explainer.repairs(&refusal),
            refusal,
        })
        .collect();
    Explanation { verdict: restore::plan(question, facts), violations }
}

struct Explainer<'a> {
    question: &'a Question,
    facts: &'a Facts,
    outlook: &'a Outlook,
}

impl Explainer<'_> {
    fn item(&self) -> Option<&Item> {
        self.facts.item.seen()
    }

    fn target(&self) -> Option<&Server> {
        self.facts.target.seen()
    }

    /// The disks of the mapping that are such, with what was to go there.
    fn pairs_where(
        &self,
        is_such: impl Fn(&VolumeBackup, &Volume) -> bool,
    ) -> Vec<(&VolumeBackup, &Volume)> {
        known_pairs(self.question, self.facts).filter(|(b, v)| is_such(b, v)).collect()
    }

    fn repairs(&self, refusal: &Refusal) -> Vec<Repair> {
        match refusal {
            Refusal::ItemNotFound(_) => self.other_items(),
            Refusal::ItemNotAvailable(status) => self.free_the_item(*status),
            Refusal::ServerNotFound(_)
            | Refusal::ServerTerminated(_)
            | Refusal::KindNotRestorable(_)
            | Refusal::KindMismatch { .. }
            | Refusal::ZoneMismatch(..) => self.another_server(),
            Refusal::TypeNotRestorable { .. } => vec![Repair::NameType(SERVER_TYPE)],
            Refusal::TargetStatus(status) => self.settle_the_target(*status),
            Refusal::TargetHeld => {
                let server = self.question.server.clone();
                vec![self.wait(Until::ServerIsFree(server.clone()), &[Subject::Server(server)])]
            }
            Refusal::NoVolumeToRestore(_)
            | Refusal::NotOfThisItem(..)
            | Refusal::PartialRestore(_) => self.map_or_else(|| self.add_missing()),
            Refusal::VolumeNotAttached(volumes) => {
                self.map_or_else(|| vec![Repair::AttachVolumes(volumes.clone())])
            }
            Refusal::SharedVolumeRestore(..) => {
                let shared = self.pairs_where(|_, v| v.sharing == Sharing::Shared);
                self.map_or_else(|| vec![Repair::AddVolumes(needs(&shared))])
            }
            Refusal::DataOntoSystem(_) => {
                let wrong = self.pairs_where(|backup, volume| {
                    (backup.role, volume.role) == (VolumeRole::Data, VolumeRole::System)
                });
                self.map_or_else(|| vec![Repair::AddVolumes(needs(&wrong))])
            }
            Refusal::TargetTooSmall { .. } => self.make_room(),
            Refusal::VolumeNotWritable(_) => self.make_writable(),
            Refusal::EncryptionMismatch(..) => {
                let exposed = self.pairs_where(|backup, volume| {
                    (backup.encryption, volume.encryption)
                        == (Encryption::Encrypted, Encryption::Plain)
                });
                self.map_or_else(|| vec![Repair::AddVolumes(needs(&exposed))])
            }
            Refusal::VolumeHeld(_) => {
                let held = self.pairs_where(|_, v| self.facts.held_volumes.contains(&v.id));
                let held = ids(&held);
                let subjects: Vec<_> = held.iter().cloned().map(Subject::Volume).collect();
                let wait = self.wait(Until::VolumesAreFree(held), &subjects);
                std::iter::once(wait).chain(self.map()).collect()
            }
            Refusal::HalfWritten(volumes, _) => {
                self.map_or_else(|| vec![Repair::DetachVolumes(volumes.clone())])
            }
            Refusal::SnapshotMissing(_) | Refusal::DataDamaged(_) => self.other_items(),
            Refusal::EvidenceTooWeak { item, .. } => {
                let (until, seconds) =
                    (Until::EvidenceIsFound(item.clone()), self.outlook.proof_secs);
                let wait = Repair::Wait(Wait { until, job: None, seconds });
                std::iter::once(wait).chain(self.chosen_items()).collect()
            }
            Refusal::Unknown(why) => vec![self.learn(*why)],
            // Not answers to this question.
            Refusal::ItemExecuting(_)
            | Refusal::TypeNotProtectable { .. }
            | Refusal::KindNotProtectable(..)
            | Refusal::ServerBusy(_)
            | Refusal::ManualBackupRunning(_)
            | Refusal::AutomaticBackupRunning(_)
            | Refusal::ZoneWithoutBackup(_)
            | Refusal::NoVolumeToProtect(_)
            | Refusal::DedicatedStorage(..)
            | Refusal::StorageUnsupported(_)
            | Refusal::SharedVolumeProtect(..)
            | Refusal::PlanMoved(_)
            | Refusal::ItemLeased { .. }
            | Refusal::TooManyLeases(_)
            | Refusal::Unseen(_)
            | Refusal::NoAvailableBackup(_)
            | Refusal::TooManyTags => Vec::new(),
        }
    }

    fn fitting(&self) -> Option<Fitting> {
        let (item, target) = self.item().zip(self.target())?;
        Some(fit(item, target, &self.facts.held_volumes, &self.question.mapping))
    }

    /// Another mapping that would do.
    fn map(&self) -> Option<Repair> {
        let mapping = self.fitting().filter(Fitting::is_whole)?.mapping;
        (mapping != self.question.mapping).then_some(Repair::Map(mapping))
    }

    fn map_or_else(&self, otherwise: impl FnOnce() -> Vec<Repair>) -> Vec<Repair> {
        self.map().map_or_else(otherwise, |map| vec![map])
    }

    /// Disks for those backups for which the target has none. Where it has enough, the
    /// mapping that leaves out only what is half written.
    fn add_missing(&self) -> Vec<Repair> {
        let Some((item, fitting)) = self.item().zip(self.fitting()) else { return Vec::new() };
        let backups = fitting.missing.into_iter().filter_map(|at| item.volumes.get(at));
        let needs: Vec<_> = backups.map(Need::of).collect();
        if needs.is_empty() {
            return vec![Repair::Map(fitting.mapping)];
        }
        vec![Repair::AddVolumes(needs)]
    }

    fn make_room(&self) -> Vec<Repair> {
        let small = self.pairs_where(|backup, volume| volume.size_bytes < backup.source_size_bytes);
        let growth = |(backup, volume): &(&VolumeBackup, &Volume)| {
            (volume.id.clone(), backup.source_size_bytes - volume.size_bytes)
        };
        let extend = Repair::ExtendVolumes(small.iter().map(growth).collect());
        std::iter::once(extend).chain(self.map()).collect()
    }

    fn make_writable(&self) -> Vec<Repair> {
        let unfit = self.pairs_where(|_, volume| volume.status != VolumeStatus::Healthy);
        let are_all_busy = unfit.iter().all(|(_, v)| v.status == VolumeStatus::Busy);
        let wait = Until::VolumesAreFree(ids(&unfit));
        let mend =
            if are_all_busy { self.wait(wait, &[]) } else { Repair::MendVolumes(ids(&unfit)) };
        std::iter::once(mend).chain(self.map()).collect()
    }

    fn settle_the_target(&self, status: ServerStatus) -> Vec<Repair> {
        let server = self.question.server.clone();
        let settle = match status {
            ServerStatus::Error => Repair::MendServer(server),
            ServerStatus::VerifyResize => Repair::EndResize(server),
            ServerStatus::Resizing | ServerStatus::InTransition => {
                self.wait(Until::ServerIsFree(server), &[])
            }
            ServerStatus::Deleted | ServerStatus::Active | ServerStatus::Shutoff => {
                return self.another_server();
            }
        };
        vec![settle]
    }

    fn free_the_item(&self, status: ItemStatus) -> Vec<Repair> {
        let item = self.question.item.clone();
        let wait = match status {
            ItemStatus::WaitingProtect
            | ItemStatus::Protecting
            | ItemStatus::WaitingRestore
            | ItemStatus::Restoring => {
                Some(self.wait(Until::ItemIsFree(item.clone()), &[Subject::Item(item)]))
            }
            ItemStatus::Available
            | ItemStatus::Error
            | ItemStatus::WaitingDelete
            | ItemStatus::Deleting
            | ItemStatus::Deleted => None,
        };
        wait.into_iter().chain(self.other_items()).collect()
    }

    /// Other backups that can be restored now, or else a new one.
    fn other_items(&self) -> Vec<Repair> {
        let mut repairs = self.chosen_items();
        let source = self.item().map(|item| item.source.id.clone());
        repairs.push(Repair::BackUp(source.unwrap_or_else(|| self.question.server.clone())));
        repairs
    }

    /// Other backups that would do now.
    fn chosen_items(&self) -> Vec<Repair> {
        let others = self
            .outlook
            .others
            .iter()
            .filter(|(q, f)| q.item != self.question.item && restore::plan(q, f).is_ok());
        let choose = |(question, _): &(Question, Facts)| {
            Repair::ChooseItem(question.item.clone(), question.mapping.clone())
        };
        others.map(choose).collect()
    }

    /// The server that was backed up, if it would do, or else one like it.
    fn another_server(&self) -> Vec<Repair> {
        let Some(item) = self.item().filter(|item| item.source.kind.is_supported()) else {
            return Vec::new();
        };
        let others = self.outlook.others.iter().filter(|(q, f)| {
            q.item == self.question.item
                && q.server != self.question.server
                && restore::plan(q, f).is_ok()
        });
        let choose = |(question, _): &(Question, Facts)| {
            Repair::ChooseServer(question.server.clone(), question.mapping.clone())
        };
        let mut repairs: Vec<_> = others.map(choose).collect();
        repairs.push(Repair::ProvideServer {
            kind: item.source.kind,
            zone: item.source.zone.clone(),
            disks: item.volumes.iter().map(Need::of).collect(),
        });
        repairs
    }

    fn learn(&self, why: Unknown) -> Repair {
        match why {
            Unknown::CloudSilent | Unknown::RepositoryUnreachable => {
                self.wait(Until::SourceAnswers, &[])
            }
            Unknown::DamageNotLocated => self.wait(Until::DamageIsLocated, &[]),
            Unknown::KeyUnavailable | Unknown::PlaceNotTold => Repair::TellOperator(why),
        }
    }

    fn wait(&self, until: Until, subjects: &[Subject]) -> Repair {
        wait(self.outlook, until, subjects)
    }

    fn saw(&self, refusal: &Refusal) -> Vec<Saw> {
        match refusal {
            Refusal::ItemNotFound(_) => Vec::new(),
            Refusal::SnapshotMissing(_) => self.saw_repository("snapshot", "missing", None),
            Refusal::DataDamaged(_) => self.saw_repository("data", "damaged", at(&self.facts.data)),
            Refusal::EvidenceTooWeak { grade, demand, .. } => {
                let weighed = self.facts.weighed.as_ref();
                let seen_at = weighed.and_then(|weighed| weighed.evidence.seen_at(demand.grade));
                self.saw_repository("grade", grade.as_str(), seen_at)
            }
            Refusal::ItemNotAvailable(status) => self.saw_item(&[("status", status.as_str())]),
            Refusal::TypeNotRestorable { resource_type, .. } => {
                vec![request("resource_type", resource_type.clone())]
            }
            Refusal::ServerTerminated(_) => {
                self.saw_target(&[("status", ServerStatus::Deleted.as_str())])
            }
            Refusal::TargetStatus(status) => self.saw_target(&[("status", status.as_str())]),
            Refusal::KindNotRestorable(kind) => self.saw_target(&[("kind", kind.as_str())]),
            Refusal::KindMismatch { source_kind, target_kind, .. } => {
                let mut saw = self.saw_item(&[("kind", source_kind.as_str())]);
                saw.extend(self.saw_target(&[("kind", target_kind.as_str())]));
                saw
            }
            Refusal::ZoneMismatch(..) => {
                let source = self.item().map_or("", |item| item.source.zone.as_str());
                let target = self.target().map_or("", |target| target.zone.as_str());
                let mut saw = self.saw_item(&[("az", source)]);
                saw.extend(self.saw_target(&[("az", target)]));
                saw
            }
            Refusal::TargetHeld => {
                let held = self.facts.held.map_or("", Holder::as_str);
                vec![Saw {
                    subject: Subject::Server(self.question.server.clone()),
                    property: "held_by",
                    value: held.to_owned(),
                    at: None,
                }]
            }
            Refusal::NoVolumeToRestore(_) => self.saw_target(&[("volumes", "none")]),
            Refusal::NotOfThisItem(..) | Refusal::PartialRestore(_) => self
                .item()
                .into_iter()
                .flat_map(|item| &item.volumes)
                .map(|backup| Saw {
                    subject: Subject::Backup(backup.id.clone()),
                    property: "role",
                    value: backup.role.as_str().to_owned(),
                    at: at(&self.facts.item),
                })
                .collect(),
            Refusal::VolumeNotAttached(_) => {
                let volumes = self.target().map_or(&[][..], |target| &target.volumes);
                if volumes.is_empty() {
                    return self.saw_target(&[("volumes", "none")]);
                }
                let saw = |volume: &Volume| self.saw_volume(volume, "role", volume.role.as_str());
                volumes.iter().map(saw).collect()
            }
            Refusal::SharedVolumeRestore(..) => self.saw_where(
                "sharing",
                |_, volume| volume.sharing == Sharing::Shared,
                |_| "shared".to_owned(),
            ),
            Refusal::DataOntoSystem(_) => self.saw_where(
                "role",
                |backup, volume| {
                    (backup.role, volume.role) == (VolumeRole::Data, VolumeRole::System)
                },
                |volume| volume.role.as_str().to_owned(),
            ),
            Refusal::TargetTooSmall { .. } => {
                let small =
                    self.pairs_where(|backup, volume| volume.size_bytes < backup.source_size_bytes);
                small.iter().flat_map(|(backup, volume)| self.saw_sizes(backup, volume)).collect()
            }
            Refusal::VolumeNotWritable(_) => self.saw_where(
                "status",
                |_, volume| volume.status != VolumeStatus::Healthy,
                |volume| volume.status.as_str().to_owned(),
            ),
            Refusal::EncryptionMismatch(..) => self.saw_where(
                "encryption",
                |backup, volume| {
                    (backup.encryption, volume.encryption)
                        == (Encryption::Encrypted, Encryption::Plain)
                },
                |_| "plain".to_owned(),
            ),
            Refusal::VolumeHeld(_) => self.saw_where(
                "held_by",
                |_, volume| self.facts.held_volumes.contains(&volume.id),
                |_| "another job".to_owned(),
            ),
            Refusal::HalfWritten(..) => {
                let volumes = self.target().into_iter().flat_map(|target| &target.volumes);
                let half = volumes.filter(|volume| volume.content == Content::HalfWritten);
                half.map(|volume| self.saw_volume(volume, "content", "half_written")).collect()
            }
            Refusal::Unknown(why) => unknown(*why),
            // Of what is not there nothing was seen. Which refusals answer other questions
            // is told, one by one, where repairs are.
            _ => Vec::new(),
        }
    }

    fn saw_repository(
        &self,
        property: &'static str,
        value: &str,
        at: Option<Timestamp>,
    ) -> Vec<Saw> {
        saw(&Subject::Item(self.question.item.clone()), &[(property, value)], at)
    }

    fn saw_item(&self, what: &[(&'static str, &str)]) -> Vec<Saw> {
        saw(&Subject::Item(self.question.item.clone()), what, at(&self.facts.item))
    }

    fn saw_target(&self, what: &[(&'static str, &str)]) -> Vec<Saw> {
        saw(&Subject::Server(self.question.server.clone()), what, at(&self.facts.target))
    }

    fn saw_volume(&self, volume: &Volume, property: &'static str, value: &str) -> Saw {
        Saw {
            subject: Subject::Volume(volume.id.clone()),
            property,
            value: value.to_owned(),
            at: at(&self.facts.target),
        }
    }

    fn saw_where(
        &self,
        property: &'static str,
        is_such: impl Fn(&VolumeBackup, &Volume) -> bool,
        value: impl Fn(&Volume) -> String,
    ) -> Vec<Saw> {
        let such = self.pairs_where(is_such);
        such.iter().map(|(_, volume)| self.saw_volume(volume, property, &value(volume))).collect()
    }

    fn saw_sizes(&self, backup: &VolumeBackup, volume: &Volume) -> [Saw; 2] {
        let need = Saw {
            subject: Subject::Backup(backup.id.clone()),
            property: "source_size_bytes",
            value: backup.source_size_bytes.to_string(),
            at: at(&self.facts.item),
        };
        [need, self.saw_volume(volume, "size_bytes", &volume.size_bytes.to_string())]
    }
}

fn needs(pairs: &[(&VolumeBackup, &Volume)]) -> Vec<Need> {
    pairs.iter().map(|(backup, _)| Need::of(backup)).collect()
}

fn ids(pairs: &[(&VolumeBackup, &Volume)]) -> Vec<VolumeId> {
    pairs.iter().map(|(_, volume)| volume.id.clone()).collect()
}
