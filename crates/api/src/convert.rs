//! What the service answers, as the wire has it: sizes in MB and GB, speeds, words.

use std::collections::BTreeMap;

use kedge_core::checkpoint::{
    Checkpoint, Fault, Item, Method, StoredVolume, Trigger, VolumeBackup,
};
use kedge_core::refusal::Refusal;
use kedge_core::resource::{SERVER_TYPE, VolumeRole, gb_ceil};
use kedge_core::status::ItemStatus;
use kedge_core::time::Timestamp;
use kedge_service::identity::{Domain, ProjectInfo, TokenInfo};
use kedge_service::restore::{PowerOn, Restore, RestoreStatus};
use kedge_wire as wire;

use crate::error::refusal_text;
use crate::requests::Asked;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The largest number every client can hold.
const WIRE_MAX: u64 = i64::MAX.unsigned_abs();

const HYPERVISOR: &str = "QEMU";
const IMAGE_TYPE: &str = "backup";

/// A receipt goes out as it was signed.
pub(crate) fn receipt(receipt: kedge_service::receipts::Receipt) -> wire::check::Receipt {
    wire::check::Receipt { body: receipt.body, signature: receipt.signature }
}

pub(crate) fn check_resp<Q>(
    asked: &Asked<Q>,
    answer: &Result<(), Refusal>,
) -> wire::check::CheckResp {
    let refusal = answer.as_ref().err();
    wire::check::CheckResp {
        resource_id: asked.resource_id.clone(),
        resource_type: asked.resource_type.clone(),
        result: refusal.is_none(),
        error_msg: refusal.map(refusal_text).unwrap_or_default(),
        error_code: refusal.map(|refusal| refusal.code().to_string()).unwrap_or_default(),
        explanation: None,
    }
}

pub(crate) fn checkpoint(record: &Checkpoint) -> wire::checkpoint::Checkpoint {
    let resource = |item: &Item| wire::checkpoint::PlanResource {
        id: item.source.id.to_string(),
        resource_type: SERVER_TYPE.to_owned(),
        name: item.source.name.clone(),
        extra_info: BTreeMap::new(),
    };
    wire::checkpoint::Checkpoint {
        id: record.id.to_string(),
        status: record_status(record).to_string(),
        created_at: record.created_at.to_string(),
        project_id: record.project_id.to_string(),
        resource_graph: None,
        extra_info: None,
        protection_plan: wire::checkpoint::ProtectionPlan {
            id: record.plan_id.clone(),
            name: record.plan_name.clone(),
            resources: record.items.iter().map(resource).collect(),
        },
    }
}

/// A record is available when all its backups are; else it is where the first one is that
/// is not.
fn record_status(record: &Checkpoint) -> ItemStatus {
    let mut statuses = record.items.iter().map(|item| item.status);
    statuses.find(|status| *status != ItemStatus::Available).unwrap_or(ItemStatus::Available)
}

pub(crate) fn item(item: &Item) -> wire::checkpoint_item::CheckpointItem {
    wire::checkpoint_item::CheckpointItem {
        id: item.id.to_string(),
        checkpoint_id: item.checkpoint_id.to_string(),
        name: item.name.clone(),
        description: item.description.clone(),
        status: item.status.to_string(),
        resource_id: item.source.id.to_string(),
        resource_type: SERVER_TYPE.to_owned(),
        created_at: item.created_at.to_string(),
        updated_at: item.updated_at.to_string(),
        protected_at: item.protected_at.map(|at| at.to_string()),
        expired_at: None,
        tags: item.tags.iter().map(tag).collect(),
        backup_data: backup_data(item),
        extend_info: extend_info(item),
        periodic_type: None,
        progress: None,
    }
}

fn tag(tag: &kedge_core::tag::Tag) -> wire::tag::Tag {
    wire::tag::Tag { key: tag.key().to_owned(), value: tag.value().to_owned() }
}

fn backup_data(item: &Item) -> wire::checkpoint_item::BackupData {
    let hardware = &item.source.hardware;
    wire::checkpoint_item::BackupData {
        openstack_region_name: String::new(),
        cloudservicetype: HYPERVISOR.to_owned(),
        disk: hardware.disk_gb.min(WIRE_MAX),
        imagetype: hardware.image_type.clone(),
        ram: hardware.ram_mb.min(WIRE_MAX),
        vcpus: hardware.vcpus.min(WIRE_MAX),
        eip: hardware.public_ip.clone(),
        private_ip: hardware.private_ip.clone(),
    }
}

fn extend_info(item: &Item) -> wire::checkpoint_item::ExtendInfo {
    let total = Total::of(item.stored_volumes());
    let restore_mode = if item.status == ItemStatus::Available { "backup" } else { "na" };
    let fault = item.fault.as_ref();
    wire::checkpoint_item::ExtendInfo {
        auto_trigger: item.trigger == Trigger::Automatic,
        average_speed: total.read_per_second(KIB),
        copy_from: None,
        copy_status: "na".to_owned(),
        fail_code: fault.map(fail_code).unwrap_or_default(),
        fail_op: fault.map(|fault| fault.operation.as_str().to_owned()).unwrap_or_default(),
        fail_reason: fault.map(|fault| fault.reason.clone()).unwrap_or_default(),
        image_type: IMAGE_TYPE.to_owned(),
        incremental: item.method == Method::Incremental,
        progress: item.progress.min(100),
        resource_az: item.source.zone.clone(),
        resource_name: item.source.name.clone(),
        resource_type: SERVER_TYPE.to_owned(),
        size: total.data_bytes.div_ceil(MIB),
        space_saving_ratio: total.saved_percent(),
        finished_at: item.finished_at.map(|at| at.to_string()),
        supported_restore_mode: restore_mode.to_owned(),
        os_images_data: Vec::new(),
        support_lld: false,
        taskid: item.job_id.to_string(),
        hypervisor_type: HYPERVISOR.to_owned(),
        volume_backups: item.volumes.iter().map(|volume| volume_backup(item, volume)).collect(),
    }
}

fn fail_code(fault: &Fault) -> wire::checkpoint_item::FailCode {
    wire::checkpoint_item::FailCode {
        code: Some(fault.code.to_string()),
        description: Some(fault.reason.clone()),
    }
}

fn volume_backup(item: &Item, volume: &VolumeBackup) -> wire::checkpoint_item::VolumeBackup {
    let total = Total::of(volume.stored.iter());
    let method = volume.stored.as_ref().map_or(item.method, |stored| stored.method);
    wire::checkpoint_item::VolumeBackup {
        id: volume.id.to_string(),
        name: volume.name.clone(),
        status: volume_status(item.status).to_owned(),
        bootable: volume.role == VolumeRole::System,
        source_volume_id: volume.source_volume_id.to_string(),
        source_volume_name: volume.source_volume_name.clone(),
        source_volume_size: gb_ceil(volume.source_size_bytes),
        size: total.data_bytes.div_ceil(MIB),
        average_speed: total.read_per_second(MIB),
        space_saving_ratio: total.saved_percent(),
        incremental: method == Method::Incremental,
        image_type: IMAGE_TYPE.to_owned(),
        snapshot_id: String::new(),
    }
}

/// Cinder's words for backups (docs/csbs-v1.md).
fn volume_status(status: ItemStatus) -> &'static str {
    match status {
        ItemStatus::WaitingProtect | ItemStatus::Protecting => "creating",
        ItemStatus::Available => "available",
        ItemStatus::WaitingRestore | ItemStatus::Restoring => "restoring",
        ItemStatus::Error => "error",
        ItemStatus::WaitingDelete | ItemStatus::Deleting => "deleting",
        ItemStatus::Deleted => "deleted",
    }
}

/// Sums over the volumes that were stored.
#[derive(Default)]
struct Total {
    data_bytes: u64,
    read_bytes: u64,
    stored_bytes: u64,
    duration_ms: u64,
}

impl Total {
    fn of<'a>(volumes: impl Iterator<Item = &'a StoredVolume>) -> Self {
        volumes.fold(Self::default(), |total, volume| Self {
            data_bytes: total.data_bytes.saturating_add(volume.data_bytes),
            read_bytes: total.read_bytes.saturating_add(volume.read_bytes),
            stored_bytes: total.stored_bytes.saturating_add(volume.stored_bytes),
            duration_ms: total.duration_ms.saturating_add(volume.duration_ms),
        })
    }

    /// What took less than a millisecond took one.
    fn read_per_second(&self, unit_bytes: u64) -> u64 {
        let bytes = u128::from(self.read_bytes) * 1000 / u128::from(self.duration_ms.max(1));
        u64::try_from(bytes / u128::from(unit_bytes)).unwrap_or(WIRE_MAX).min(WIRE_MAX)
    }

    /// How much of the data took no new room; none is saved of nothing.
    fn saved_percent(&self) -> u8 {
        let saved = u128::from(self.data_bytes.saturating_sub(self.stored_bytes));
        let percent = (saved * 100).checked_div(u128::from(self.data_bytes)).unwrap_or(0);
        u8::try_from(percent).unwrap_or(100)
    }
}

pub(crate) fn restore(restore: &Restore) -> wire::restore::Restore {
    let server = restore.server_id.to_string();
    let (states, reasons) = match restore.status {
        RestoreStatus::InProgress => (None, None),
        RestoreStatus::Success => (Some("available"), None),
        RestoreStatus::Fail => (Some("error"), Some(restore.reason.clone())),
    };
    let pair = |pair: &kedge_core::restore::Pair| wire::check::RestoreVolumeMapping {
        backup_id: pair.backup.to_string(),
        volume_id: pair.volume.to_string(),
    };
    wire::restore::Restore {
        id: restore.id.to_string(),
        status: restore.status.as_str().to_owned(),
        provider_id: wire::PROVIDER_ID.to_owned(),
        checkpoint_id: restore.checkpoint_id.to_string(),
        project_id: restore.project_id.to_string(),
        restore_target: String::new(),
        resources_status: states
            .map(|state| (server.clone(), state.to_owned()))
            .into_iter()
            .collect(),
        resources_reason: reasons.map(|reason| (server.clone(), reason)).into_iter().collect(),
        parameters: wire::restore::RestoreParameters {
            checkpoint_item_id: restore.item_id.to_string(),
            power_on: restore.power_on == PowerOn::Yes,
            targets: wire::restore::RestoreTargets {
                server_id: server,
                volumes: restore.pairs.iter().map(pair).collect(),
                resource_type: None,
            },
            plan_id: None,
        },
    }
}

/// Links are there when there is a next page, and only then.
pub(crate) fn next_link(href: String) -> Vec<wire::checkpoint_item::Link> {
    vec![wire::checkpoint_item::Link { rel: "next".to_owned(), href }]
}

/// Keystone's times have their zone; those of v1 must not.
fn zoned(at: Timestamp) -> String {
    format!("{at}Z")
}

pub(crate) fn token(
    info: &TokenInfo,
    catalog: Option<Vec<wire::identity::CatalogEntry>>,
) -> wire::identity::TokenBody {
    let role = |role: &kedge_service::identity::RoleInfo| wire::identity::Role {
        id: role.id.clone(),
        name: role.name.clone(),
    };
    let project = info.project.as_ref();
    wire::identity::TokenBody {
        token: wire::identity::Token {
            methods: vec!["password".to_owned()],
            expires_at: zoned(info.expires_at),
            issued_at: zoned(info.issued_at),
            user: wire::identity::TokenUser {
                id: info.user_id.clone(),
                name: info.user_name.clone(),
                domain: domain(&info.user_domain),
                password_expires_at: None,
            },
            project: project.map(|project| wire::identity::TokenProject {
                id: project.id.to_string(),
                name: project.name.clone(),
                domain: domain(&project.domain),
            }),
            roles: project.map(|_| info.roles.iter().map(role).collect()),
            catalog: project.and(catalog),
        },
    }
}

fn domain(domain: &Domain) -> wire::identity::Domain {
    wire::identity::Domain { id: domain.id.clone(), name: domain.name.clone() }
}

/// Every client looks for `data-protect`; the project stands in its URL.
pub(crate) fn catalog(
    base: &str,
    region: &str,
    project: &ProjectInfo,
) -> Vec<wire::identity::CatalogEntry> {
    let entry = |name: &str, service_type: &str, url: String| wire::identity::CatalogEntry {
        id: format!("kedge-{service_type}"),
        name: name.to_owned(),
        service_type: service_type.to_owned(),
        endpoints: vec![wire::identity::Endpoint {
            id: format!("kedge-{service_type}-public"),
            interface: "public".to_owned(),
            region: region.to_owned(),
            region_id: region.to_owned(),
            url,
        }],
    };
    vec![
        entry("karbor", "data-protect", format!("{base}/v1/{}", project.id)),
        entry("keystone", "identity", format!("{base}/v3")),
    ]
}

pub(crate) fn list_links(itself: String) -> wire::identity::ListLinks {
    wire::identity::ListLinks { itself, previous: None, next: None }
}

pub(crate) fn project(base: &str, project: &ProjectInfo) -> wire::identity::Project {
    wire::identity::Project {
        id: project.id.to_string(),
        name: project.name.clone(),
        domain_id: project.domain.id.clone(),
        enabled: true,
        is_domain: false,
        parent_id: project.domain.id.clone(),
        links: wire::identity::SelfLink { itself: format!("{base}/v3/projects/{}", project.id) },
    }
}

#[cfg(test)]
mod tests {
    use kedge_core::checkpoint::{FaultOperation, SnapshotRef, SourceServer};
    use kedge_core::ids::{
        CheckpointId, ItemId, JobId, ProjectId, RestoreId, ServerId, VolumeBackupId, VolumeId,
    };
    use kedge_core::resource::{Encryption, GIB, Hardware, ServerKind};
    use kedge_core::tag::Tag;
    use kedge_service::identity::RoleInfo;
    use serde_json::json;

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(1_772_875_660_928_000 + micros)
    }

    fn an_item() -> Item {
        Item {
            id: ItemId::asked("2a7c4e91-b5d6-4f38-8c0a-d7e93f1b6054"),
            checkpoint_id: CheckpointId::asked("9e6f0d2a-47b8-4c13-95de-1a8c3b7f4e62"),
            project_id: ProjectId::new("3f2b9c1d7a6e4c58b0d1e2f3a4b5c6d7"),
            name: "before-upgrade".to_owned(),
            description: String::new(),
            status: ItemStatus::Available,
            source: SourceServer {
                id: ServerId::asked("0c5d1c8e-6d9f-4f0b-9a61-2f4f6d1b7a10"),
                name: "db-1".to_owned(),
                kind: ServerKind::Kvm,
                zone: "az-01".to_owned(),
                hardware: Hardware {
                    ram_mb: 8192,
                    vcpus: 4,
                    disk_gb: 0,
                    image_type: "gold".to_owned(),
                    private_ip: "192.168.0.20".to_owned(),
                    public_ip: String::new(),
                },
            },
            trigger: Trigger::Manual,
            method: Method::Incremental,
            created_at: at(0),
            updated_at: at(3),
            protected_at: Some(at(1)),
            finished_at: Some(at(2)),
            sequence: None,
            tags: vec![Tag::new("env", "prod").unwrap()],
            volumes: vec![VolumeBackup {
                id: VolumeBackupId::asked("f18b3d60-2e9c-4a75-b1c4-7d05e8a2936f"),
                name: "manualbk_7c1e_db-1".to_owned(),
                source_volume_id: VolumeId::asked("d41a5f6b-3c77-4e0d-8b55-6a1f0e9c2b48"),
                source_volume_name: "db-1".to_owned(),
                source_size_bytes: 40 * GIB + 1,
                role: VolumeRole::System,
                encryption: Encryption::Plain,
                stored: Some(StoredVolume {
                    folder: "1".to_owned(),
                    data_bytes: 10 * MIB + 1,
                    read_bytes: 9 * MIB,
                    stored_bytes: 4 * MIB,
                    duration_ms: 2_500,
                    method: Method::Full,
                    change_token: None,
                }),
            }],
            fault: None,
            progress: 100,
            job_id: JobId::asked("5a1d7c80-1a0b-41f1-9b3e-0242ac110002"),
            snapshot: Some(SnapshotRef { snapshot: "a".repeat(64), tree: "b".repeat(64) }),
        }
    }

    #[test]
    fn an_item_prints_as_published() {
        let volume = json!({
            "id": "f18b3d60-2e9c-4a75-b1c4-7d05e8a2936f", "name": "manualbk_7c1e_db-1",
            "status": "available", "bootable": true,
            "source_volume_id": "d41a5f6b-3c77-4e0d-8b55-6a1f0e9c2b48",
            "source_volume_name": "db-1", "source_volume_size": 41, "size": 11,
            "average_speed": 3, "space_saving_ratio": 60, "incremental": false,
            "image_type": "backup", "snapshot_id": ""});
        let extend_info = json!({
            "auto_trigger": false, "average_speed": 3686, "copy_from": null,
            "copy_status": "na", "fail_code": {}, "fail_op": "", "fail_reason": "",
            "image_type": "backup", "incremental": true, "progress": 100,
            "resource_az": "az-01", "resource_name": "db-1",
            "resource_type": "OS::Nova::Server", "size": 11, "space_saving_ratio": 60,
            "finished_at": "2026-03-07T09:27:40.928002", "supported_restore_mode": "backup",
            "support_lld": false, "os_images_data": [],
            "taskid": "5a1d7c80-1a0b-41f1-9b3e-0242ac110002", "hypervisor_type": "QEMU",
            "volume_backups": [volume]});
        let backup_data = json!({
            "__openstack_region_name": "", "cloudservicetype": "QEMU", "disk": 0,
            "imagetype": "gold", "ram": 8192, "vcpus": 4, "eip": "",
            "private_ip": "192.168.0.20"});
        assert_eq!(
            serde_json::to_value(item(&an_item())).unwrap(),
            json!({
                "id": "2a7c4e91-b5d6-4f38-8c0a-d7e93f1b6054",
                "checkpoint_id": "9e6f0d2a-47b8-4c13-95de-1a8c3b7f4e62",
                "name": "before-upgrade", "description": "", "status": "available",
                "resource_id": "0c5d1c8e-6d9f-4f0b-9a61-2f4f6d1b7a10",
                "resource_type": "OS::Nova::Server",
                "created_at": "2026-03-07T09:27:40.928000",
                "updated_at": "2026-03-07T09:27:40.928003",
                "protected_at": "2026-03-07T09:27:40.928001", "expired_at": null,
                "tags": [{"key": "env", "value": "prod"}], "backup_data": backup_data,
                "extend_info": extend_info, "periodic_type": null, "progress": null})
        );
    }

    #[test]
    fn an_unfinished_item_has_nulls_and_zeroes_where_nothing_is_known() {
        let mut early = an_item();
        early.status = ItemStatus::Protecting;
        (early.protected_at, early.finished_at, early.progress) = (None, None, 7);
        early.volumes[0].stored = None;
        let wire = item(&early);
        assert_eq!(wire.protected_at, None);
        let info = wire.extend_info;
        assert_eq!(info.finished_at, None);
        assert_eq!((info.size, info.average_speed, info.space_saving_ratio), (0, 0, 0));
        assert_eq!((info.progress, info.supported_restore_mode.as_str()), (7, "na"));
        assert_eq!(info.volume_backups[0].status, "creating");
    }

    #[test]
    fn a_fault_is_digits_words_and_a_reason() {
        let mut failed = an_item();
        failed.fault = Some(Fault {
            operation: FaultOperation::Restore,
            code: 6000,
            reason: "the server is gone".to_owned(),
        });
        let info = item(&failed).extend_info;
        assert_eq!(info.fail_code.code.as_deref(), Some("6000"));
        assert_eq!(
            (info.fail_op.as_str(), info.fail_reason.as_str()),
            ("restore", "the server is gone")
        );
    }

    #[test]
    fn ratios_and_speeds_stay_in_their_bounds() {
        let worst = Total { data_bytes: 1, read_bytes: u64::MAX, stored_bytes: 9, duration_ms: 0 };
        assert_eq!(worst.saved_percent(), 0);
        assert_eq!(worst.read_per_second(1), WIRE_MAX);
        let best = Total { data_bytes: u64::MAX, ..Total::default() };
        assert_eq!(best.saved_percent(), 100);
        assert_eq!(best.read_per_second(KIB), 0);
    }

    #[test]
    fn a_record_prints_as_published() {
        let mut inner = an_item();
        inner.status = ItemStatus::Protecting;
        let record = Checkpoint {
            id: inner.checkpoint_id.clone(),
            project_id: inner.project_id.clone(),
            created_at: at(0),
            plan_id: "fake_6b0e4d1c-92a7-4f35-8c68-d3f19e7b2a50".to_owned(),
            plan_name: "server protect plan for 0c5d1c8e-6d9f-4f0b-9a61-2f4f6d1b7a10".to_owned(),
            items: vec![inner],
        };
        assert_eq!(
            serde_json::to_value(checkpoint(&record)).unwrap(),
            json!({
                "id": "9e6f0d2a-47b8-4c13-95de-1a8c3b7f4e62", "status": "protecting",
                "created_at": "2026-03-07T09:27:40.928000",
                "project_id": "3f2b9c1d7a6e4c58b0d1e2f3a4b5c6d7",
                "resource_graph": null, "extra_info": null,
                "protection_plan": {
                    "id": "fake_6b0e4d1c-92a7-4f35-8c68-d3f19e7b2a50",
                    "name": "server protect plan for 0c5d1c8e-6d9f-4f0b-9a61-2f4f6d1b7a10",
                    "resources": [{
                        "id": "0c5d1c8e-6d9f-4f0b-9a61-2f4f6d1b7a10",
                        "type": "OS::Nova::Server", "name": "db-1", "extra_info": {}}]}})
        );
    }

    #[test]
    fn a_restore_prints_as_published() {
        let mut record = Restore {
            id: RestoreId::asked("a5c38e7f-1b60-4d92-8af4-e61d2b9c0753"),
            project_id: ProjectId::new("p"),
            checkpoint_id: CheckpointId::asked("c"),
            item_id: ItemId::asked("i"),
            server_id: ServerId::asked("s"),
            pairs: vec![kedge_core::restore::Pair {
                backup: VolumeBackupId::asked("b"),
                volume: VolumeId::asked("v"),
            }],
            power_on: PowerOn::Yes,
            preconditions: Vec::new(),
            status: RestoreStatus::InProgress,
            reason: String::new(),
            created_at: at(0),
            updated_at: at(0),
        };
        assert_eq!(
            serde_json::to_value(restore(&record)).unwrap(),
            json!({
                "id": "a5c38e7f-1b60-4d92-8af4-e61d2b9c0753", "status": "in_progress",
                "provider_id": "fc4d5750-22e7-4798-8a46-f48f62c4c1da", "checkpoint_id": "c",
                "project_id": "p", "restore_target": "", "resources_status": {},
                "resources_reason": {},
                "parameters": {
                    "checkpoint_item_id": "i", "power_on": true,
                    "targets": {
                        "server_id": "s", "volumes": [{"backup_id": "b", "volume_id": "v"}]}}})
        );
        record.status = RestoreStatus::Fail;
        record.reason = "disk full".to_owned();
        let failed = restore(&record);
        assert_eq!(failed.resources_status["s"], "error");
        assert_eq!(failed.resources_reason["s"], "disk full");
    }

    #[test]
    fn an_answer_echoes_the_question_and_has_texts_only_for_no() {
        let asked = Asked {
            question: (),
            resource_id: "S\u{1b}".to_owned(),
            resource_type: "OS::Nova::Server".to_owned(),
        };
        let yes = check_resp(&asked, &Ok(()));
        assert_eq!(
            serde_json::to_value(yes).unwrap(),
            json!({
                "resource_id": "S\u{1b}", "resource_type": "OS::Nova::Server", "result": true,
                "error_msg": "", "error_code": ""})
        );
        let no = check_resp(&asked, &Err(Refusal::ServerBusy(ServerId::asked("S\u{1b}"))));
        assert!(!no.result);
        assert_eq!(no.error_code, "CSBS.6005");
        assert_eq!(no.error_msg, "Server (S\\u{1b}) is already in service.");
    }

    #[test]
    fn a_token_of_a_project_has_roles_and_a_catalogue_and_its_times_have_a_zone() {
        let domain = Domain { id: "default".to_owned(), name: "Default".to_owned() };
        let scope = ProjectInfo {
            id: ProjectId::new("p1"),
            name: "shop".to_owned(),
            domain: domain.clone(),
            demand: None,
        };
        let mut info = TokenInfo {
            user_id: "u1".to_owned(),
            user_name: "alice".to_owned(),
            user_domain: domain,
            project: Some(scope.clone()),
            roles: vec![RoleInfo { id: "member".to_owned(), name: "member".to_owned() }],
            issued_at: at(0),
            expires_at: at(1),
        };
        let services = catalog("http://h:1", "RegionOne", &scope);
        let default = json!({"id": "default", "name": "Default"});
        assert_eq!(
            serde_json::to_value(token(&info, Some(services.clone()))).unwrap(),
            json!({"token": {
                "methods": ["password"],
                "expires_at": "2026-03-07T09:27:40.928001Z",
                "issued_at": "2026-03-07T09:27:40.928000Z",
                "user": {
                    "id": "u1", "name": "alice", "domain": default,
                    "password_expires_at": null},
                "project": {"id": "p1", "name": "shop", "domain": default},
                "roles": [{"id": "member", "name": "member"}],
                "catalog": [
                    {"id": "kedge-data-protect", "name": "karbor", "type": "data-protect",
                     "endpoints": [{
                        "id": "kedge-data-protect-public", "interface": "public",
                        "region": "RegionOne", "region_id": "RegionOne",
                        "url": "http://h:1/v1/p1"}]},
                    {"id": "kedge-identity", "name": "keystone", "type": "identity",
                     "endpoints": [{
                        "id": "kedge-identity-public", "interface": "public",
                        "region": "RegionOne", "region_id": "RegionOne",
                        "url": "http://h:1/v3"}]}]}})
        );
        info.project = None;
        let unscoped = token(&info, Some(services)).token;
        assert_eq!((unscoped.project, unscoped.roles, unscoped.catalog), (None, None, None));
    }
}
