//! A world on the simulated cloud: asked over the service, and acted on.
//!
//! Backups are real: bytes of the source's disks lie in a real repository. On yes the
//! restore runs, the target's disks are compared with this file's own copies, byte for
//! byte, those no line of the mapping names included, and the target starts. On no the restore gives the same
//! code and the cloud's write log stays empty.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kedge_cloud::sim::SimOp;
use kedge_core::checkpoint::{Checkpoint, Item};
use kedge_core::ids::{ProjectId, VolumeId};
use kedge_core::job::{Claim, ClaimKind, ProtectState, RestoreState, Work};
use kedge_core::ports::{Clock as _, Cloud as _, CloudError, ServerRef};
use kedge_core::resource::{Content, Hardware, Server, ServerKind, ServerStatus as Status, Volume};
use kedge_core::restore::Question;
use kedge_service::identity::UsersSource;
use kedge_service::keys::ServiceKey;
use kedge_service::restore::RestoreRequest;
use kedge_store::{NewJob, PowerOn, Restore, RestoreStatus};
use kedge_testkit::{Harness, OTHER_PROJECT, PASSWORD, PROJECT, users_text};

use super::facts::{self, Ids};
use super::scenario::*;
use super::{matrix, model};
use crate::support::{disk, report_figure};

/// At least 2,000 cases run on the simulated cloud at every change, ten times as many in
/// the long form; they are dealt to several tests so that they use several cores.
#[expect(clippy::disallowed_methods, reason = "how long a test may take is the caller's choice")]
fn seeds_of_part(part: u64) -> std::ops::Range<u64> {
    let cases = if std::env::var("KEDGE_TEST_LONG").is_ok() { 5_000 } else { 500 };
    (part - 1) * cases..part * cases
}

#[tokio::test]
async fn verdicts_hold_on_the_simulated_cloud_1() {
    run(seeds_of_part(1)).await;
}

#[tokio::test]
async fn verdicts_hold_on_the_simulated_cloud_2() {
    run(seeds_of_part(2)).await;
}

#[tokio::test]
async fn verdicts_hold_on_the_simulated_cloud_3() {
    run(seeds_of_part(3)).await;
}

#[tokio::test]
async fn verdicts_hold_on_the_simulated_cloud_4() {
    run(seeds_of_part(4)).await;
}

async fn run(seeds: std::ops::Range<u64>) {
    let yes = judge_all(&seeds.collect::<Vec<_>>()).await;
    assert!(yes >= 50, "only {yes} restores were run");
}

/// Fresh cases as well, some of those that the planner was asked.
#[tokio::test]
async fn fresh_verdicts_hold_on_the_simulated_cloud() {
    let seeds = matrix::seeds();
    let staged = matrix::staged(&seeds);
    let yes = judge_all(&staged).await;
    assert!(yes * 10 >= staged.len() || staged.len() < 100, "only {yes} restores were run");
    let line = format!(
        "oracle, on the simulated cloud: {} of these cases, {yes} restored and compared byte for \
         byte; {} refused with nothing written",
        staged.len(),
        staged.len() - yes
    );
    report_figure("oracle-3-staged", &line);
}

/// How many were answered with yes.
async fn judge_all(seeds: &[u64]) -> usize {
    let mut yes = 0;
    for seeds in seeds.chunks(50) {
        let stage = Stage::new().await;
        for seed in seeds {
            yes += usize::from(stage.judge(*seed).await);
        }
    }
    yes
}

/// One service, and the same one with another key.
struct Stage {
    harness: Harness,
    keyless: Harness,
    /// And where the project demands what nobody has.
    demanding: Harness,
    /// A repository snapshot that exists, for backups whose bytes nobody will read.
    some_item: Item,
    /// One that names data which was found damaged.
    damaged_item: Item,
}

impl Stage {
    async fn new() -> Self {
        let harness = Harness::new().await;
        let keyless = harness.restarted_with_key(Arc::new(ServiceKey::random().unwrap())).await;
        let users = users_text(PASSWORD)
            .replace("name = \"demo\"", "name = \"demo\"\nevidence_grade = \"A\"");
        let demanding = harness.with_users(UsersSource::Text(users));
        let server = harness.add_server(&[b"a little"]);
        let some_item = crate::support::back_up(&harness, &server).await;
        let own = harness.add_server(&[&disk(0xdead, 700_000)]);
        let damaged_item = crate::support::back_up_and_damage(&harness, &own).await;
        Self { harness, keyless, demanding, some_item, damaged_item }
    }

    /// Stages a case, asks, acts. Whether the answer was yes.
    async fn judge(&self, seed: u64) -> bool {
        let (world, ask) = random(seed);
        let expected = model::restorable(&world, &ask);
        let ids = Ids(seed + 1);
        let contents = self.stage_backup(ids, &world, expected.is_ok()).await;
        let target = self.stage_target(ids, &world).await;
        let question = facts::question(ids, &world, &ask);
        let service = match world.repository {
            Repository::KeyGone => &self.keyless,
            Repository::Up | Repository::Unreachable if world.demand == Demand::Unmet => {
                &self.demanding
            }
            Repository::Up | Repository::Unreachable => &self.harness,
        };
        let store = self.harness.places.store_of(&ProjectId::new(PROJECT));
        if world.repository == Repository::Unreachable {
            store.break_down();
        }
        if world.target.exists == Exists::CloudSilent {
            let silent = CloudError::retryable("the cloud is silent");
            self.harness.cloud.fail_always(SimOp::FindServer, silent);
        }
        self.harness.cloud.clear_write_log();

        let context = service.context().await;
        let asked = service.app.check_restorable(&context, vec![question.clone()]).await.unwrap();
        let answer = asked[0].as_ref().map(|_| ()).map_err(|no| no.code().as_str());
        assert_eq!(answer, expected, "the check, seed {seed}: {world:#?} {ask:#?}");

        let request = RestoreRequest {
            checkpoint: ids.checkpoint().id,
            question: question.clone(),
            power_on: PowerOn::No,
            plan: None,
        };
        let admitted = service.app.restore(&context, request).await;
        let admission = admitted.as_ref().map(|_| ()).map_err(|error| error.code().as_str());
        assert_eq!(admission, expected, "the restore, seed {seed}: {world:#?} {ask:#?}");

        store.repair();
        self.harness.cloud.clear_faults();
        match admitted {
            Err(_) => {
                service.run_jobs().await;
                assert_eq!(self.harness.cloud.write_log(), [], "seed {seed}");
                false
            }
            Ok(restore) => {
                let before = self.bytes_of(&target);
                service.run_jobs().await;
                let ended = service.app.get_restore(&context, &restore.id).await.unwrap();
                assert_eq!(ended.status, RestoreStatus::Success, "seed {seed}: {}", ended.reason);
                let expected = overlaid(ids, &question, before, &contents);
                assert!(self.bytes_of(&target) == expected, "wrong bytes, seed {seed}");
                self.harness.cloud.start_server(&of(&target)).await.unwrap();
                true
            }
        }
    }

    /// Makes the world's backup: really, where its bytes will be read; else a record that
    /// names a snapshot which exists or does not. Returns what its disks hold.
    async fn stage_backup(&self, ids: Ids, world: &World, is_read: bool) -> Vec<Vec<u8>> {
        let Some(backup) = &world.backup else { return Vec::new() };
        let mut item = facts::item(ids, backup);
        let mut contents = Vec::new();
        let made = if is_read {
            contents = sparse_contents(ids, backup);
            self.back_up_source(ids, backup, &contents).await
        } else {
            self.some_item.clone()
        };
        item.snapshot = match backup.snapshot {
            Snapshot::Present => made.snapshot,
            Snapshot::Missing => Some(facts::snapshot_ref()),
            Snapshot::Damaged => self.damaged_item.snapshot.clone(),
        };
        let project = match backup.owner {
            Owner::Mine => ProjectId::new(PROJECT),
            Owner::Foreign => ProjectId::new(OTHER_PROJECT),
        };
        item.project_id = project.clone();
        let record = Checkpoint { project_id: project, items: vec![item], ..ids.checkpoint() };
        self.harness.store.adopt(&record).await.unwrap();
        contents
    }

    async fn back_up_source(&self, ids: Ids, backup: &BackupDesc, contents: &[Vec<u8>]) -> Item {
        let disk_of = |(index, disk): (usize, &DiskDesc)| {
            let role = if disk.system {
                kedge_core::resource::VolumeRole::System
            } else {
                kedge_core::resource::VolumeRole::Data
            };
            Volume { id: ids.source_volume(index), ..self.harness.volume(disk.size_bytes, role) }
        };
        let server = Server {
            id: ids.source(),
            project_id: ProjectId::new(PROJECT),
            name: "source".to_owned(),
            kind: ServerKind::Kvm,
            status: Status::Active,
            zone: backup.zone.to_owned(),
            hardware: Hardware::default(),
            volumes: backup.disks.iter().enumerate().map(disk_of).collect(),
        };
        let bytes: HashMap<VolumeId, Vec<u8>> = (0..contents.len())
            .map(|index| (ids.source_volume(index), contents[index].clone()))
            .collect();
        self.harness.cloud.add_server(server.clone(), bytes);
        let (_, id) = crate::support::begin_backup(&self.harness, &server).await;
        // Not to the end of all: jobs that hold other cases' targets sleep for ever.
        self.harness.run_jobs().await;
        crate::support::item(&self.harness, &id).await
    }

    async fn stage_target(&self, ids: Ids, world: &World) -> Server {
        let mut server = facts::target(ids, &world.target);
        if world.target.exists == Exists::Foreign {
            server.project_id = ProjectId::new(OTHER_PROJECT);
        }
        let bytes = server.volumes.iter().enumerate().map(|(index, volume)| {
            let length = usize::try_from(volume.size_bytes).unwrap();
            (volume.id.clone(), disk(0xfeed + index as u64, length))
        });
        self.harness.cloud.add_server(server.clone(), bytes.collect());
        for volume in &server.volumes {
            if volume.content == Content::HalfWritten {
                self.harness.cloud.mark_half_written(&volume.id, "a restore that failed");
            }
        }
        self.hold(ids, world).await;
        server
    }

    /// Jobs that hold the target or some of its disks, and never come to run.
    async fn hold(&self, ids: Ids, world: &World) {
        let volumes = facts::held_volumes(ids, &world.target);
        let volumes: Vec<_> =
            volumes.iter().map(|id| Claim::exclusive(ClaimKind::Volume, id)).collect();
        if !volumes.is_empty() {
            self.hold_by_restore(volumes).await;
        }
        let server = Claim::exclusive(ClaimKind::Server, ids.server());
        match world.target.held {
            Held::None => {}
            Held::Restore => self.hold_by_restore(vec![server]).await,
            Held::Backup(trigger) => self.hold_by_backup(server, trigger).await,
        }
    }

    async fn hold_by_restore(&self, claims: Vec<Claim>) {
        let (checkpoint, item) = self.adopted_copy().await;
        let restore = Restore {
            id: self.harness.fresh_uuid().into(),
            project_id: ProjectId::new(PROJECT),
            checkpoint_id: checkpoint.id,
            item_id: item.id.clone(),
            server_id: item.source.id.clone(),
            pairs: Vec::new(),
            power_on: PowerOn::No,
            preconditions: Vec::new(),
            status: RestoreStatus::InProgress,
            reason: String::new(),
            created_at: facts::AT,
            updated_at: facts::AT,
        };
        let work = Work::Restore {
            restore: restore.id.clone(),
            item: item.id,
            state: RestoreState::Start,
        };
        self.harness.store.create_restore(&restore, &self.sleeping(work, claims)).await.unwrap();
    }

    async fn hold_by_backup(&self, server: Claim, trigger: Trigger) {
        let (mut checkpoint, mut item) = self.copy();
        item.status = kedge_core::status::ItemStatus::Protecting;
        item.snapshot = None;
        let work = Work::Protect {
            checkpoint: checkpoint.id.clone(),
            item: item.id.clone(),
            trigger: facts::core_trigger(trigger),
            state: ProtectState::Start,
        };
        checkpoint.items = vec![item];
        let job = self.sleeping(work, vec![server]);
        self.harness.store.create_protect(&checkpoint, &job).await.unwrap();
    }

    fn sleeping(&self, work: Work, claims: Vec<Claim>) -> NewJob {
        NewJob {
            id: self.harness.fresh_uuid().into(),
            project_id: ProjectId::new(PROJECT),
            work,
            claims,
            run_at: self.harness.clock.now().plus(Duration::from_secs(3600)),
        }
    }

    /// A backup like any other, under ids of its own.
    fn copy(&self) -> (Checkpoint, Item) {
        let mut item = self.some_item.clone();
        item.id = self.harness.fresh_uuid().into();
        item.checkpoint_id = self.harness.fresh_uuid().into();
        for volume in &mut item.volumes {
            volume.id = self.harness.fresh_uuid().into();
        }
        let checkpoint = Checkpoint {
            id: item.checkpoint_id.clone(),
            project_id: item.project_id.clone(),
            created_at: facts::AT,
            plan_id: String::new(),
            plan_name: String::new(),
            items: Vec::new(),
        };
        (checkpoint, item)
    }

    async fn adopted_copy(&self) -> (Checkpoint, Item) {
        let (mut checkpoint, item) = self.copy();
        checkpoint.items = vec![item.clone()];
        self.harness.store.adopt(&checkpoint).await.unwrap();
        (checkpoint, item)
    }

    fn bytes_of(&self, server: &Server) -> Vec<Vec<u8>> {
        crate::support::contents(&self.harness, server)
    }
}

fn of(server: &Server) -> ServerRef {
    ServerRef { project: server.project_id.clone(), server: server.id.clone() }
}

/// Disks with data, holes and repeats.
fn sparse_contents(ids: Ids, backup: &BackupDesc) -> Vec<Vec<u8>> {
    let chunk = usize::try_from(CHUNK_BYTES).unwrap();
    let fill = |(index, desc): (usize, &DiskDesc)| {
        let mut bytes = disk(ids.0 * 8 + index as u64, usize::try_from(desc.size_bytes).unwrap());
        for hole in bytes.chunks_mut(chunk).skip(1).step_by(3) {
            hole.fill(0);
        }
        bytes
    };
    backup.disks.iter().enumerate().map(fill).collect()
}

/// What the target must hold afterwards: the backup's bytes where the mapping says, its
/// own everywhere else.
fn overlaid(
    ids: Ids,
    question: &Question,
    mut before: Vec<Vec<u8>>,
    contents: &[Vec<u8>],
) -> Vec<Vec<u8>> {
    for pair in question.mapping.pairs() {
        let of = (0..contents.len()).find(|index| ids.backup(*index) == pair.backup).unwrap();
        let to = (0..before.len()).find(|index| ids.volume(*index) == pair.volume).unwrap();
        before[to][..contents[of].len()].copy_from_slice(&contents[of]);
    }
    before
}
