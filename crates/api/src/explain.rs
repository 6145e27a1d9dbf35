//! Explanations as they go over the wire.

use kedge_core::explain::{Need, Repair, Saw, Subject, Until, Violation, Wait};
use kedge_core::fact::Unknown;
use kedge_core::ids::VolumeId;
use kedge_core::protect::ProtectPlan;
use kedge_core::resource::{Encryption, VolumeRole, gb_ceil};
use kedge_core::restore::{Mapping, RestorePlan};
use kedge_core::time::Timestamp;
use kedge_service::explain::Explained;
use kedge_service::pace::{Basis, Estimate};
use kedge_service::plans::KeptPlan;
use kedge_wire::check::RestoreVolumeMapping;
use kedge_wire::explain as wire;
use kedge_wire::plan::{KeptPlan as KeptPlanBody, PlanFact};

use crate::error::{clean, refusal_text};

pub(crate) fn of_restore(explained: &Explained<RestorePlan>) -> wire::Explanation {
    let plan = explained.explanation.verdict.as_ref().ok().map(|plan| wire::Plan {
        id: explained.plan.as_ref().map(ToString::to_string),
        volumes: plan.writes.iter().map(written).collect(),
        estimate: explained.estimate.map(estimate),
    });
    let evidence = explained.evidence.map(|known| wire::Evidence {
        grade: known.grade.as_str().to_owned(),
        read_since: known.read_since.map(|at| at.to_string()),
        present_at: known.present_at.map(|at| at.to_string()),
        drill: known.drilled.map(|drill| drill.outcome.as_str().to_owned()),
        drilled_at: known.drilled.map(|drill| drill.at.to_string()),
    });
    wire::Explanation { violations: violations(explained), plan, evidence }
}

pub(crate) fn of_protect(explained: &Explained<ProtectPlan>) -> wire::Explanation {
    let read = |volume: &kedge_core::resource::Volume| wire::PlannedVolume {
        volume_id: volume.id.to_string(),
        backup_id: None,
        size_bytes: volume.size_bytes,
        data_bytes: None,
        zero_bytes: None,
        untouched_bytes: None,
    };
    let plan = explained.explanation.verdict.as_ref().ok().map(|plan| wire::Plan {
        id: None,
        volumes: plan.server.volumes.iter().map(read).collect(),
        estimate: None,
    });
    wire::Explanation { violations: violations(explained), plan, evidence: None }
}

pub(crate) fn kept_plan(plan: &KeptPlan) -> KeptPlanBody {
    let fact = |fact: &kedge_core::precondition::Precondition| PlanFact {
        of: fact.of.clone(),
        id: fact.id.clone(),
        name: fact.property.clone(),
        value: clean(&fact.value),
    };
    KeptPlanBody {
        id: plan.id.to_string(),
        checkpoint_item_id: plan.question.item.to_string(),
        resource_id: clean(plan.question.server.as_str()),
        volumes: pairs(&plan.question.mapping),
        preconditions: plan.preconditions.iter().map(fact).collect(),
        created_at: plan.created_at.to_string(),
        lease_until: plan.lease_until.map(|at| at.to_string()),
    }
}

fn written(write: &kedge_core::restore::VolumeWrite) -> wire::PlannedVolume {
    wire::PlannedVolume {
        volume_id: write.volume.to_string(),
        backup_id: Some(write.backup.to_string()),
        size_bytes: write.size_bytes,
        data_bytes: Some(write.data_bytes),
        zero_bytes: Some(write.size_bytes.saturating_sub(write.data_bytes)),
        untouched_bytes: Some(write.target_size_bytes.saturating_sub(write.size_bytes)),
    }
}

fn estimate(estimate: Estimate) -> wire::Estimate {
    wire::Estimate {
        seconds: estimate.seconds,
        basis: match estimate.basis {
            Basis::Measured(1) => "the restore before".to_owned(),
            Basis::Measured(count) => format!("the {count} restores before"),
            Basis::Assumed(rate) => format!(
                "assumed: {} MiB of data a second; no restore ran since the service started",
                rate >> 20
            ),
        },
    }
}

fn violations<Plan>(explained: &Explained<Plan>) -> Vec<wire::Violation> {
    let violations = explained.explanation.violations.iter();
    violations.map(|violation| of_violation(violation, explained.at)).collect()
}

fn of_violation(violation: &Violation, now: Timestamp) -> wire::Violation {
    wire::Violation {
        rule: violation.rule.to_owned(),
        error_code: violation.refusal.code().to_string(),
        error_msg: refusal_text(&violation.refusal),
        facts: violation.saw.iter().map(|saw| seen(saw, now)).collect(),
        repairs: violation.repairs.iter().map(repair).collect(),
    }
}

fn seen(saw: &Saw, now: Timestamp) -> wire::SeenFact {
    let (of, id) = match &saw.subject {
        Subject::Item(id) => ("checkpoint_item", id.to_string()),
        Subject::Server(id) => ("server", id.to_string()),
        Subject::Backup(id) => ("volume_backup", id.to_string()),
        Subject::Volume(id) => ("volume", id.to_string()),
        Subject::Request => ("request", String::new()),
    };
    let age = saw.at.map(|at| now.since(at).as_millis());
    wire::SeenFact {
        of: of.to_owned(),
        id,
        name: saw.property.to_owned(),
        value: clean(&saw.value),
        age_ms: age.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
    }
}

fn repair(repair: &Repair) -> wire::Repair {
    let says = |action: &str, text: &str| wire::Repair {
        action: action.to_owned(),
        text: text.to_owned(),
        ..wire::Repair::default()
    };
    match repair {
        Repair::NameType(name) => wire::Repair {
            resource_type: Some((*name).to_owned()),
            ..says("name_type", "Name this resource type.")
        },
        Repair::NameServer => {
            says("name_server", "Ask about a server of this project that exists and has disks.")
        }
        Repair::Map(mapping) => wire::Repair {
            volumes: Some(pairs(mapping)),
            ..says("map", "Ask with this mapping: every disk fits.")
        },
        Repair::Wait(wait) => waiting(wait),
        Repair::ExtendVolumes(growth) => wire::Repair {
            extend: Some(growth.iter().map(extension).collect()),
            ..says("extend_volumes", "Extend these disks by so many GB.")
        },
        Repair::AttachVolumes(ids) => wire::Repair {
            volume_ids: names(ids),
            ..says("attach_volumes", "Attach these disks to the server, or name attached ones.")
        },
        Repair::AddVolumes(needs) => wire::Repair {
            disks: Some(needs.iter().map(needed).collect()),
            ..says("add_volumes", "Attach disks like these and send the backups there.")
        },
        Repair::AttachDisk(server) => wire::Repair {
            resource_id: Some(server.to_string()),
            ..says("attach_disk", "Attach a disk to the server.")
        },
        Repair::MendVolumes(ids) => wire::Repair {
            volume_ids: names(ids),
            ..says("mend_volumes", "Bring these disks out of their error state.")
        },
        Repair::DetachVolumes(ids) => wire::Repair {
            volume_ids: names(ids),
            ..says("detach_volumes", "Detach these disks: a restore left them half written.")
        },
        Repair::ExcludeVolumes(ids) => wire::Repair {
            volume_ids: names(ids),
            ..says(
                "exclude_volumes",
                "Leave these disks out when backing up (extra_info.exclude_volumes).",
            )
        },
        Repair::RestoreVolumes(ids) => wire::Repair {
            volume_ids: names(ids),
            ..says("restore_volumes", "Restore a backup to these disks: they are half written.")
        },
        Repair::MoveVolumes(ids) => wire::Repair {
            volume_ids: names(ids),
            ..says("move_volumes", "Move these disks to storage that can be backed up.")
        },
        Repair::EndResize(server) => wire::Repair {
            resource_id: Some(server.to_string()),
            ..says("end_resize", "Confirm or revert the server's resize.")
        },
        Repair::MendServer(server) => wire::Repair {
            resource_id: Some(server.to_string()),
            ..says("mend_server", "Bring the server out of its error state.")
        },
        Repair::ChooseItem(item, mapping) => wire::Repair {
            checkpoint_item_id: Some(item.to_string()),
            volumes: Some(pairs(mapping)),
            ..says("choose_item", "Restore this backup of the same server: that works now.")
        },
        Repair::ChooseServer(server, mapping) => wire::Repair {
            resource_id: Some(server.to_string()),
            volumes: Some(pairs(mapping)),
            ..says("choose_server", "Restore to the server that was backed up: that works now.")
        },
        Repair::ProvideServer { kind, zone, disks } => wire::Repair {
            kind: Some(kind.as_str().to_owned()),
            zone: Some(zone.clone()),
            disks: Some(disks.iter().map(needed).collect()),
            ..says("provide_server", "Restore to a server of this kind and zone with such disks.")
        },
        Repair::BackUp(server) => wire::Repair {
            resource_id: Some(server.to_string()),
            ..says("back_up", "Back the server up again; what is damaged is stored anew.")
        },
        Repair::TellOperator(why) => says("tell_operator", operator_text(*why)),
        Repair::ChangeSettings(setting) => wire::Repair {
            setting: Some((*setting).to_owned()),
            ..says("change_settings", "The operator's settings refuse this.")
        },
    }
}

fn operator_text(why: Unknown) -> &'static str {
    match why {
        Unknown::KeyUnavailable => {
            "The operator must give the service the key of the project's repository."
        }
        Unknown::PlaceNotTold => {
            "The operator must tell where the store and the key lie: store_zones, key_zones."
        }
        Unknown::CloudSilent | Unknown::RepositoryUnreachable | Unknown::DamageNotLocated => {
            "If this lasts, it is a matter for the operator."
        }
    }
}

fn waiting(wait: &Wait) -> wire::Repair {
    let mut said = wire::Repair {
        action: "wait".to_owned(),
        job_id: wait.job.as_ref().map(ToString::to_string),
        seconds: wait.seconds,
        ..wire::Repair::default()
    };
    said.text = match &wait.until {
        Until::ItemIsFree(item) => {
            said.checkpoint_item_id = Some(item.to_string());
            "Wait until the backup is no longer worked on."
        }
        Until::ServerIsFree(server) => {
            said.resource_id = Some(server.to_string());
            "Wait until nothing is done with the server any more."
        }
        Until::VolumesAreFree(volumes) => {
            said.volume_ids = names(volumes);
            "Wait until nothing is done with these disks any more."
        }
        Until::EvidenceIsFound(item) => {
            said.checkpoint_item_id = Some(item.to_string());
            "Wait until the backup was read back, which has been asked for."
        }
        Until::DamageIsLocated => "Ask again: what the damage harms is being found out.",
        Until::SourceAnswers => "Ask again when it answers.",
    }
    .to_owned();
    said
}

fn pairs(mapping: &Mapping) -> Vec<RestoreVolumeMapping> {
    let pair = |pair: &kedge_core::restore::Pair| RestoreVolumeMapping {
        backup_id: pair.backup.to_string(),
        volume_id: pair.volume.to_string(),
    };
    mapping.pairs().iter().map(pair).collect()
}

fn names(ids: &[VolumeId]) -> Option<Vec<String>> {
    Some(ids.iter().map(ToString::to_string).collect())
}

fn extension((volume, bytes): &(VolumeId, u64)) -> wire::Extension {
    wire::Extension { volume_id: volume.to_string(), by_gb: gb_ceil(*bytes) }
}

fn needed(need: &Need) -> wire::NeededDisk {
    wire::NeededDisk {
        backup_id: need.backup.to_string(),
        size_bytes: need.size_bytes,
        encrypted: need.encryption == Encryption::Encrypted,
        bootable: need.role == VolumeRole::System,
    }
}
