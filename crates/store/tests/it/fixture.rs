//! Values that every test starts from.

use kedge_core::checkpoint::{
    ChangeToken, Checkpoint, Fault, FaultOperation, Item, Method, SnapshotRef, SourceServer,
    StoredVolume, Trigger, VolumeBackup,
};
use kedge_core::ids::{CheckpointId, ItemId, JobId, ProjectId, RestoreId, ServerId};
use kedge_core::ids::{VolumeBackupId, VolumeId};
use kedge_core::job::{
    Claim, ClaimKind, DeleteState, Job, ProtectResult, ProtectState, RestoreState, Work,
};
use kedge_core::resource::{Encryption, Hardware, ServerKind, VolumeRole};
use kedge_core::restore::Pair;
use kedge_core::status::ItemStatus;
use kedge_core::tag::Tag;
use kedge_core::time::Timestamp;
use kedge_store::{NewJob, PowerOn, Restore, RestoreStatus, Store};

/// A UUID that differs for every kind and number.
pub(crate) fn uuid(kind: u32, number: u64) -> String {
    format!("{kind:08x}-0000-4000-8000-{number:012x}")
}

pub(crate) fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

pub(crate) fn project() -> ProjectId {
    ProjectId::new("project-a")
}

pub(crate) fn stranger() -> ProjectId {
    ProjectId::new("project-b")
}

pub(crate) fn item_id(number: u64) -> ItemId {
    ItemId::asked(&uuid(1, number))
}

pub(crate) fn checkpoint_id(number: u64) -> CheckpointId {
    CheckpointId::asked(&uuid(2, number))
}

pub(crate) fn job_id(number: u64) -> JobId {
    JobId::asked(&uuid(3, number))
}

pub(crate) fn server_id(number: u64) -> ServerId {
    ServerId::asked(&uuid(4, number))
}

pub(crate) fn volume_id(number: u64) -> VolumeId {
    VolumeId::asked(&uuid(5, number))
}

pub(crate) fn backup_id(number: u64) -> VolumeBackupId {
    VolumeBackupId::asked(&uuid(6, number))
}

pub(crate) fn restore_id(number: u64) -> RestoreId {
    RestoreId::asked(&uuid(7, number))
}

/// Text that breaks whatever forgets to treat it as text.
pub(crate) const HOSTILE: &str = "a'b\"c%d_e!f\\g\nh\0i;--`DROP TABLE items'👾";

/// Item `number` of server `number`, two disks, two tags, everything unusual set.
pub(crate) fn item(number: u64) -> Item {
    Item {
        id: item_id(number),
        checkpoint_id: checkpoint_id(number),
        project_id: project(),
        name: format!("backup-{number}"),
        description: HOSTILE.to_owned(),
        status: ItemStatus::Protecting,
        source: SourceServer {
            id: server_id(number),
            name: HOSTILE.to_owned(),
            kind: ServerKind::Xen,
            zone: "az-1".to_owned(),
            hardware: Hardware {
                ram_mb: u64::MAX,
                vcpus: 4,
                disk_gb: 40,
                image_type: "gold".to_owned(),
                private_ip: "192.0.2.1".to_owned(),
                public_ip: "198.51.100.1".to_owned(),
            },
        },
        trigger: Trigger::Automatic,
        method: Method::Incremental,
        created_at: at(1000),
        updated_at: at(1001),
        protected_at: None,
        finished_at: None,
        sequence: None,
        tags: vec![Tag::new("zone", "b").unwrap(), Tag::new("env", "").unwrap()],
        volumes: vec![
            volume(2 * number, VolumeRole::System, Encryption::Plain),
            volume(2 * number + 1, VolumeRole::Data, Encryption::Encrypted),
        ],
        fault: None,
        progress: 0,
        job_id: job_id(number),
        snapshot: None,
    }
}

fn volume(number: u64, role: VolumeRole, encryption: Encryption) -> VolumeBackup {
    VolumeBackup {
        id: backup_id(number),
        name: format!("backup_{HOSTILE}"),
        source_volume_id: volume_id(number),
        source_volume_name: HOSTILE.to_owned(),
        source_size_bytes: u64::MAX - number,
        role,
        encryption,
        stored: None,
    }
}

pub(crate) fn checkpoint_of(items: Vec<Item>) -> Checkpoint {
    let first = items.first().unwrap();
    Checkpoint {
        id: first.checkpoint_id.clone(),
        project_id: first.project_id.clone(),
        created_at: first.created_at,
        plan_id: "fake_plan".to_owned(),
        plan_name: "a plan".to_owned(),
        items,
    }
}

pub(crate) fn protect_work(number: u64, state: ProtectState) -> Work {
    Work::Protect {
        checkpoint: checkpoint_id(number),
        item: item_id(number),
        trigger: Trigger::Automatic,
        state,
    }
}

pub(crate) fn protect_job(number: u64) -> NewJob {
    NewJob {
        id: job_id(number),
        project_id: project(),
        work: protect_work(number, ProtectState::Start),
        claims: vec![Claim::exclusive(ClaimKind::Server, server_id(number))],
        run_at: at(1000),
    }
}

pub(crate) fn result() -> ProtectResult {
    ProtectResult {
        protected_at: at(1500),
        snapshot: SnapshotRef { snapshot: "5".repeat(64), tree: "7".repeat(64) },
        volumes: vec![stored("system"), stored("data")],
        method: Method::Full,
    }
}

pub(crate) fn stored(folder: &str) -> StoredVolume {
    StoredVolume {
        folder: folder.to_owned(),
        data_bytes: u64::MAX,
        read_bytes: 1,
        stored_bytes: 2,
        duration_ms: 3,
        method: Method::Full,
        change_token: Some(ChangeToken(HOSTILE.to_owned())),
    }
}

pub(crate) fn fault(operation: FaultOperation) -> Fault {
    Fault { operation, code: 1234, reason: format!("it broke: {HOSTILE}") }
}

pub(crate) fn restore(number: u64) -> Restore {
    Restore {
        id: restore_id(number),
        project_id: project(),
        checkpoint_id: checkpoint_id(number),
        item_id: item_id(number),
        server_id: server_id(number),
        pairs: vec![Pair { backup: backup_id(2 * number), volume: volume_id(2 * number) }],
        power_on: PowerOn::Yes,
        preconditions: Vec::new(),
        status: RestoreStatus::InProgress,
        reason: String::new(),
        created_at: at(3000),
        updated_at: at(3000),
    }
}

pub(crate) fn restore_work(number: u64, state: RestoreState) -> Work {
    Work::Restore { restore: restore_id(number), item: item_id(number), state }
}

/// The job of restore `number`, itself numbered `1000 + number`.
pub(crate) fn restore_job(number: u64) -> NewJob {
    NewJob {
        id: job_id(1000 + number),
        project_id: project(),
        work: restore_work(number, RestoreState::Start),
        claims: vec![
            Claim::exclusive(ClaimKind::Item, item_id(number)),
            Claim::exclusive(ClaimKind::Server, server_id(number)),
            Claim::exclusive(ClaimKind::Volume, volume_id(2 * number)),
        ],
        run_at: at(3000),
    }
}

pub(crate) fn delete_work(number: u64, state: DeleteState) -> Work {
    Work::Delete { item: item_id(number), state }
}

/// The job that deletes item `number`, itself numbered `2000 + number`.
pub(crate) fn delete_job(number: u64) -> (ItemId, NewJob) {
    let job = NewJob {
        id: job_id(2000 + number),
        project_id: project(),
        work: delete_work(number, DeleteState::Start),
        claims: vec![Claim::exclusive(ClaimKind::Item, item_id(number))],
        run_at: at(4000),
    };
    (item_id(number), job)
}

/// Item `number`, accepted.
pub(crate) async fn accept(store: &Store, number: u64) {
    store.create_protect(&checkpoint_of(vec![item(number)]), &protect_job(number)).await.unwrap();
}

/// The one job that is ready, claimed with a lease that lasts.
pub(crate) async fn claim(store: &Store) -> Job {
    store.claim_job("worker", at(5000), at(9000)).await.unwrap().unwrap()
}

/// Item `number`, available; its job is done.
pub(crate) async fn make_available(store: &Store, number: u64) {
    accept(store, number).await;
    let job = claim(store).await;
    let done = protect_work(number, ProtectState::Done);
    store.finish_protect(&job, &result(), &done, at(2000)).await.unwrap();
}

pub(crate) async fn find(store: &Store, number: u64) -> Item {
    store.find_item(&project(), &item_id(number)).await.unwrap().unwrap()
}
