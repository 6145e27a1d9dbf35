//! A world in the planner's words.

use std::time::Duration;

use kedge_core::checkpoint::{
    self, Item, Method, SnapshotRef, SourceServer, StoredVolume, VolumeBackup,
};
use kedge_core::evidence::{self, Evidence, Grade};
use kedge_core::fact::{Fact, Unknown};
use kedge_core::ids::{ItemId, ProjectId, ServerId, VolumeBackupId, VolumeId};
use kedge_core::protect::{self, Holder, SharedVolumes};
use kedge_core::resource::{
    self, Content, Encryption, Hardware, Server, Sharing, Volume, VolumeRole,
};
use kedge_core::restore::{self, Mapping, Pair, Weighed};
use kedge_core::status::ItemStatus;
use kedge_core::time::Timestamp;
use kedge_testkit::PROJECT;
use uuid::Uuid;

use super::scenario::*;

/// Ids of one world: everything in it has its own, made of a kind and a number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids(pub(super) u64);

impl Ids {
    fn uuid(self, kind: u8, number: usize) -> Uuid {
        let number = u128::try_from(number).unwrap();
        Uuid::from_u128(
            0x4000_8000_0000_0000_0000 | u128::from(self.0) << 80 | u128::from(kind) << 40 | number,
        )
    }

    pub(super) fn checkpoint(self) -> checkpoint::Checkpoint {
        checkpoint::Checkpoint {
            id: self.uuid(1, 0).into(),
            project_id: ProjectId::new(PROJECT),
            created_at: AT,
            plan_id: "fake_plan".to_owned(),
            plan_name: "plan".to_owned(),
            items: Vec::new(),
        }
    }

    pub(super) fn item(self) -> ItemId {
        self.uuid(2, 0).into()
    }

    pub(super) fn backup(self, index: usize) -> VolumeBackupId {
        self.uuid(3, index).into()
    }

    pub(super) fn server(self) -> ServerId {
        self.uuid(4, 0).into()
    }

    pub(super) fn volume(self, index: usize) -> VolumeId {
        self.uuid(5, index).into()
    }

    pub(super) fn source(self) -> ServerId {
        self.uuid(6, 0).into()
    }

    pub(super) fn source_volume(self, index: usize) -> VolumeId {
        self.uuid(7, index).into()
    }

    /// An id nothing has; every third is no UUID at all.
    fn nobody(self, index: usize) -> String {
        if index % 3 == 2 { format!("nobody-{index}") } else { self.uuid(8, index).to_string() }
    }
}

pub(super) const AT: Timestamp = Timestamp::from_micros(1_772_875_660_928_000);

pub(super) fn question(ids: Ids, world: &World, ask: &Ask) -> restore::Question {
    let pairs = ask.pairs.iter().enumerate().map(|(line, (backup, volume))| Pair {
        backup: match backup {
            BackupRef::Own(index) => ids.backup(*index),
            BackupRef::Stranger => VolumeBackupId::asked(&ids.nobody(100 + line)),
        },
        volume: match volume {
            VolumeRef::Attached(index) => ids.volume(*index),
            VolumeRef::Elsewhere => VolumeId::asked(&ids.nobody(200 + line)),
        },
    });
    restore::Question {
        item: match ask.item {
            ItemRef::Known => ids.item(),
            ItemRef::RandomUuid => ItemId::asked(&ids.nobody(0)),
            ItemRef::NotAUuid => ItemId::asked("the-backup-of-monday"),
        },
        server: match world.target.exists {
            Exists::Nowhere => ServerId::asked(&ids.nobody(1)),
            Exists::Mine | Exists::Foreign | Exists::CloudSilent => ids.server(),
        },
        resource_type: ask.resource_type.to_owned(),
        mapping: Mapping::new(pairs.collect()).unwrap(),
    }
}

pub(super) fn restore(world: &World, ask: &Ask) -> (restore::Question, restore::Facts) {
    let ids = Ids(0);
    let backup = world.backup.as_ref().filter(|backup| {
        backup.owner == Owner::Mine
            && backup.status != BackupStatus::Deleted
            && ask.item == ItemRef::Known
    });
    let snapshot = match (backup, world.repository) {
        (None, _) => Fact::Absent,
        (Some(_), Repository::Unreachable) => Fact::Unknown { why: Unknown::RepositoryUnreachable },
        (Some(backup), _) if backup.snapshot == Snapshot::Missing => Fact::Absent,
        (Some(_), Repository::KeyGone) => Fact::Unknown { why: Unknown::KeyUnavailable },
        (Some(_), Repository::Up) => Fact::Seen { value: snapshot_ref(), at: AT },
    };
    let facts = restore::Facts {
        item: match backup {
            Some(backup) => Fact::Seen { value: item(ids, backup), at: AT },
            None => Fact::Absent,
        },
        target: server_fact(world.target.exists, || target(ids, &world.target)),
        held: holder(world.target.held),
        held_volumes: held_volumes(ids, &world.target),
        snapshot,
        data: match (backup, world.repository) {
            (None, _) => Fact::Absent,
            (Some(_), Repository::Unreachable) => {
                Fact::Unknown { why: Unknown::RepositoryUnreachable }
            }
            // Where nothing was ever found damaged, nobody needs the key.
            (Some(backup), Repository::Up | Repository::KeyGone) => {
                let is_damaged = backup.snapshot != Snapshot::Present;
                let value = if is_damaged { restore::Data::Damaged } else { restore::Data::Whole };
                Fact::Seen { value, at: AT }
            }
        },
        weighed: backup.and_then(|_| weighed(world.demand)),
    };
    (question(ids, world, ask), facts)
}

/// Of a backup that was read back a day ago.
fn weighed(demand: Demand) -> Option<Weighed> {
    let day = Duration::from_secs(86_400);
    let demand = match demand {
        Demand::Nothing => return None,
        Demand::Met => evidence::Demand { grade: Grade::Read, age_max: Some(day) },
        Demand::Unmet => evidence::Demand { grade: Grade::Read, age_max: Some(day / 2) },
    };
    let evidence = Evidence {
        grade: Grade::Read,
        read_since: Some(AT),
        present_at: Some(AT.plus(day)),
        drilled: None,
    };
    Some(Weighed { demand, evidence, at: AT.plus(day) })
}

fn server_fact(exists: Exists, server: impl FnOnce() -> Server) -> Fact<Server> {
    match exists {
        Exists::Mine => Fact::Seen { value: server(), at: AT },
        Exists::Foreign | Exists::Nowhere => Fact::Absent,
        Exists::CloudSilent => Fact::Unknown { why: Unknown::CloudSilent },
    }
}

pub(super) fn holder(held: Held) -> Option<Holder> {
    match held {
        Held::None => None,
        Held::Restore => Some(Holder::Restore),
        Held::Backup(trigger) => Some(Holder::Backup(core_trigger(trigger))),
    }
}

pub(super) fn core_trigger(trigger: Trigger) -> checkpoint::Trigger {
    match trigger {
        Trigger::Manual => checkpoint::Trigger::Manual,
        Trigger::Automatic => checkpoint::Trigger::Automatic,
    }
}

pub(super) fn held_volumes(ids: Ids, server: &ServerDesc) -> Vec<VolumeId> {
    let held = server.disks.iter().enumerate().filter(|(_, disk)| disk.held);
    held.map(|(index, _)| ids.volume(index)).collect()
}

pub(super) fn snapshot_ref() -> SnapshotRef {
    SnapshotRef { snapshot: "5".repeat(64), tree: "7".repeat(64) }
}

/// The backup's record, with folders that a real backup of the same disks would have.
pub(super) fn item(ids: Ids, backup: &BackupDesc) -> Item {
    let checkpoint = ids.checkpoint();
    Item {
        id: ids.item(),
        checkpoint_id: checkpoint.id,
        project_id: ProjectId::new(PROJECT),
        name: "manualbk_0000".to_owned(),
        description: String::new(),
        status: status(backup.status),
        source: SourceServer {
            id: ids.source(),
            name: "source".to_owned(),
            kind: kind(backup.kind),
            zone: backup.zone.to_owned(),
            hardware: Hardware::default(),
        },
        trigger: checkpoint::Trigger::Manual,
        method: Method::Full,
        created_at: AT,
        updated_at: AT,
        protected_at: Some(AT),
        finished_at: Some(AT),
        sequence: None,
        tags: Vec::new(),
        volumes: backup
            .disks
            .iter()
            .enumerate()
            .map(|(i, disk)| volume_backup(ids, i, disk))
            .collect(),
        fault: None,
        progress: 100,
        job_id: ids.uuid(9, 0).into(),
        snapshot: Some(snapshot_ref()),
    }
}

fn volume_backup(ids: Ids, index: usize, disk: &DiskDesc) -> VolumeBackup {
    VolumeBackup {
        id: ids.backup(index),
        name: "manualbk_0000_disk".to_owned(),
        source_volume_id: ids.source_volume(index),
        source_volume_name: "disk".to_owned(),
        source_size_bytes: disk.size_bytes,
        role: role(disk.system),
        encryption: encryption(disk.encrypted),
        stored: Some(StoredVolume {
            folder: format!("disk-{}", ids.source_volume(index)),
            data_bytes: disk.size_bytes,
            read_bytes: disk.size_bytes,
            stored_bytes: disk.size_bytes,
            duration_ms: 1,
            method: Method::Full,
            change_token: None,
        }),
    }
}

pub(super) fn target(ids: Ids, server: &ServerDesc) -> Server {
    Server {
        id: ids.server(),
        project_id: ProjectId::new(PROJECT),
        name: "target".to_owned(),
        kind: kind(server.kind),
        status: server_status(server.status),
        zone: server.zone.to_owned(),
        hardware: Hardware::default(),
        volumes: server.disks.iter().enumerate().map(|(i, disk)| volume(ids, i, disk)).collect(),
    }
}

fn volume(ids: Ids, index: usize, disk: &TargetDisk) -> Volume {
    Volume {
        id: ids.volume(index),
        name: "disk".to_owned(),
        size_bytes: disk.size_bytes,
        role: role(disk.system),
        status: match disk.status {
            DiskStatus::Healthy => resource::VolumeStatus::Healthy,
            DiskStatus::Error => resource::VolumeStatus::Error,
            DiskStatus::Busy => resource::VolumeStatus::Busy,
        },
        sharing: if disk.shared { Sharing::Shared } else { Sharing::Exclusive },
        storage: resource::StorageClass::Ordinary,
        encryption: encryption(disk.encrypted),
        content: content(disk.half_written),
    }
}

fn role(system: bool) -> VolumeRole {
    if system { VolumeRole::System } else { VolumeRole::Data }
}

fn encryption(encrypted: bool) -> Encryption {
    if encrypted { Encryption::Encrypted } else { Encryption::Plain }
}

fn content(half_written: bool) -> Content {
    if half_written { Content::HalfWritten } else { Content::Whole }
}

fn kind(kind: Kind) -> resource::ServerKind {
    match kind {
        Kind::Kvm => resource::ServerKind::Kvm,
        Kind::Xen => resource::ServerKind::Xen,
        Kind::BareMetal => resource::ServerKind::BareMetal,
    }
}

fn server_status(status: ServerStatus) -> resource::ServerStatus {
    match status {
        ServerStatus::Active => resource::ServerStatus::Active,
        ServerStatus::Shutoff => resource::ServerStatus::Shutoff,
        ServerStatus::Error => resource::ServerStatus::Error,
        ServerStatus::Resizing => resource::ServerStatus::Resizing,
        ServerStatus::VerifyResize => resource::ServerStatus::VerifyResize,
        ServerStatus::InTransition => resource::ServerStatus::InTransition,
        ServerStatus::Deleted => resource::ServerStatus::Deleted,
    }
}

fn status(status: BackupStatus) -> ItemStatus {
    match status {
        BackupStatus::WaitingProtect => ItemStatus::WaitingProtect,
        BackupStatus::Protecting => ItemStatus::Protecting,
        BackupStatus::Available => ItemStatus::Available,
        BackupStatus::WaitingRestore => ItemStatus::WaitingRestore,
        BackupStatus::Restoring => ItemStatus::Restoring,
        BackupStatus::Error => ItemStatus::Error,
        BackupStatus::WaitingDelete => ItemStatus::WaitingDelete,
        BackupStatus::Deleting => ItemStatus::Deleting,
        BackupStatus::Deleted => ItemStatus::Deleted,
    }
}

pub(super) fn protect(
    world: &ProtectWorld,
    ask: &ProtectAsk,
) -> (protect::Question, protect::Facts, protect::Settings) {
    let ids = Ids(0);
    let question = protect::Question {
        server: ids.server(),
        resource_type: ask.resource_type.to_owned(),
        excluded: Vec::new(),
    };
    let facts = protect::Facts {
        server: server_fact(world.server.exists, || protected(ids, &world.server)),
        held: holder(world.server.held),
    };
    (question, facts, protect_settings(world))
}

/// The zone that has backup storage, and the one that has none.
const ZONES: [&str; 2] = ["az-with", "az-without"];

fn protect_settings(world: &ProtectWorld) -> protect::Settings {
    protect::Settings {
        shared_volumes: match world.shared_disks {
            SharedDisks::Allowed => SharedVolumes::Allowed,
            SharedDisks::Refused => SharedVolumes::Refused,
        },
        zones_without_backup: vec![ZONES[1].to_owned()],
    }
}

fn protected(ids: Ids, server: &ProtectServer) -> Server {
    let volumes = server.disks.iter().enumerate().map(|(index, disk)| Volume {
        id: ids.volume(index),
        name: "disk".to_owned(),
        size_bytes: disk.size_bytes,
        role: role(disk.system),
        status: resource::VolumeStatus::Healthy,
        sharing: if disk.shared { Sharing::Shared } else { Sharing::Exclusive },
        storage: match disk.storage {
            Storage::Ordinary => resource::StorageClass::Ordinary,
            Storage::Dedicated => resource::StorageClass::Dedicated,
            Storage::Unsupported => resource::StorageClass::Unsupported,
        },
        encryption: Encryption::Plain,
        content: content(disk.half_written),
    });
    Server {
        id: ids.server(),
        project_id: ProjectId::new(PROJECT),
        name: "source".to_owned(),
        kind: kind(server.kind),
        status: server_status(server.status),
        zone: match server.zone {
            ZoneStorage::Present => ZONES[0].to_owned(),
            ZoneStorage::Missing => ZONES[1].to_owned(),
        },
        hardware: Hardware::default(),
        volumes: volumes.collect(),
    }
}
