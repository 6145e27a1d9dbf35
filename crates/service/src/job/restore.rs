//! Writes a backup back: lock, ask the rules once more, stop the server, mark every
//! destination, write, read back, and only then say success.
//!
//! From the first mark to the last read-back the target is neither what it was nor what
//! the backup is. It stays stopped and marked until every byte was read back; a restore
//! that fails in between leaves it so and says how to go on.

use std::num::NonZeroUsize;
use std::sync::Arc;

use kedge_core::checkpoint::{Fault, VolumeBackup};
use kedge_core::fact::Fact;
use kedge_core::ids::{ItemId, ProofId, RestoreId, VolumeBackupId};
use kedge_core::job::{RestoreState, WasRunning, Work};
use kedge_core::ports::{CloudError, CloudErrorKind, DiskWriter, ServerRef};
use kedge_core::proof::{DiskProof, Haste, Outcome, Proof, ProofKind, ProofStatus, ProofVerdict};
use kedge_core::resource::{SERVER_TYPE, ServerStatus};
use kedge_core::restore::{self, Mapping, Question, RestorePlan, VolumeWrite};
use kedge_engine::layer::{ThrottledSink, ThrottledSource};
use kedge_engine::{ReadOptions, VolumeView};
use kedge_store::{PowerOn, Restore};

use super::session;
use crate::adapt::{DiskSink, DiskSource};
use crate::attempt::{Attempt, Trouble};
use crate::facts::Asker;
use crate::plans::require_unmoved;
use crate::reading;
use crate::repositories::{RepositoryError, SharedRepository, blocking};

/// Chunks in flight between repository and disk.
const THREADS: NonZeroUsize = match NonZeroUsize::new(4) {
    Some(threads) => threads,
    None => NonZeroUsize::MIN,
};

pub(crate) async fn step(
    attempt: &Attempt,
    restore: &RestoreId,
    item: &ItemId,
    state: &RestoreState,
) -> Result<Work, Trouble> {
    let found = attempt.parts.store.find_restore(&attempt.job.project_id, restore).await?;
    let record =
        found.ok_or_else(|| Trouble::Fault(format!("bug: a job works on {restore}, not there")))?;
    let of =
        ServerRef { project: attempt.job.project_id.clone(), server: record.server_id.clone() };
    let run = Run { attempt, record: &record, item, of: &of };
    match state {
        RestoreState::Start => run.start().await,
        RestoreState::Writing { done, was_running } => run.write(done, *was_running).await,
        RestoreState::Written => run.finish().await,
        RestoreState::Undo { fault, was_running } => run.undo(fault, *was_running).await,
        RestoreState::Done => Ok(run.at(RestoreState::Done)),
    }
}

/// One restore in progress.
struct Run<'a> {
    attempt: &'a Attempt,
    record: &'a Restore,
    item: &'a ItemId,
    of: &'a ServerRef,
}

impl Run<'_> {
    fn at(&self, state: RestoreState) -> Work {
        Work::Restore { restore: self.record.id.clone(), item: self.item.clone(), state }
    }

    fn holder(&self) -> String {
        format!("{}{}", super::CLOUD_PREFIX, self.record.id)
    }

    async fn save(&self, state: RestoreState) -> Result<Work, Trouble> {
        let next = self.at(state);
        let parts = &self.attempt.parts;
        parts.store.save_state(&self.attempt.job, &next, parts.clock.now()).await?;
        Ok(next)
    }

    /// The rules, on facts gathered now and under this restore's own claims.
    async fn plan(&self) -> Result<(RestorePlan, ServerStatus), Trouble> {
        let parts = &self.attempt.parts;
        let mapping = Mapping::new(self.record.pairs.clone())
            .map_err(|_| Trouble::Fault("bug: a stored mapping names something twice".into()))?;
        let question = Question {
            item: self.item.clone(),
            server: self.record.server_id.clone(),
            resource_type: SERVER_TYPE.to_owned(),
            mapping,
        };
        let questions = std::slice::from_ref(&question);
        let asker = Asker::Job(&self.attempt.job.id);
        let time = parts.settings.limits.request_time;
        let facts = parts.gather_restore(&self.of.project, questions, asker, time).await?;
        let facts = facts.first().ok_or_else(|| Trouble::Fault("bug: no facts".to_owned()))?;
        let plan = restore::plan(&question, facts)?;
        // Once the server is stopped, it is we who move things.
        if matches!(&self.attempt.job.work, Work::Restore { state: RestoreState::Start, .. }) {
            require_unmoved(&self.record.preconditions, &question, facts)?;
        }
        match &facts.target {
            Fact::Seen { value, .. } => Ok((plan, value.status)),
            Fact::Absent | Fact::Unknown { .. } => {
                Err(Trouble::Fault("bug: a plan for a server nobody saw".to_owned()))
            }
        }
    }

    /// Nothing is written before the rules agreed on facts gathered under the lock.
    async fn start(&self) -> Result<Work, Trouble> {
        let cloud = &self.attempt.parts.cloud;
        self.attempt.may_write()?;
        cloud.lock_server(self.of, &self.holder()).await?;
        self.attempt.at("restore.locked");
        let (_, status) = match self.plan().await {
            Ok(planned) => planned,
            Err(trouble) => {
                // Not if the lease is gone: the lock is then the successor's.
                if self.attempt.may_finish().is_ok() {
                    self.unlock().await;
                }
                return Err(trouble);
            }
        };
        let was_running =
            if status == ServerStatus::Active { WasRunning::Yes } else { WasRunning::No };
        // Committed before the server is stopped: a crash in between must not forget that
        // it ran.
        self.save(RestoreState::Writing { done: Vec::new(), was_running }).await
    }

    /// Everything that can be found wrong with the backup is, before the server is stopped.
    async fn write(
        &self,
        done: &[VolumeBackupId],
        was_running: WasRunning,
    ) -> Result<Work, Trouble> {
        let cloud = &self.attempt.parts.cloud;
        self.attempt.may_write()?;
        cloud.lock_server(self.of, &self.holder()).await?;
        let (plan, _) = self.plan().await?;
        let repository = self.attempt.parts.repositories.get(&self.of.project).await;
        let repository = repository.map_err(|error| self.attempt.trouble(error))?;
        let _session = session(self.attempt, &repository).await?;
        let left: Vec<_> = plan.writes.iter().filter(|w| !done.contains(&w.backup)).collect();
        let volumes = self.open_backup(&repository, &plan, &left).await?;
        self.attempt.may_write()?;
        cloud.stop_server(self.of).await?;
        self.attempt.at("restore.stopped");
        let writers = self.open_all(&left).await?;
        self.attempt.at("restore.marked");
        // Each byte counts twice: written, then read back.
        self.attempt.meter.begin(left.iter().map(|write| write.size_bytes * 2).sum());
        let data_bytes = left.iter().map(|write| write.data_bytes).sum();
        let began = self.attempt.parts.clock.monotonic();
        let mut done = done.to_vec();
        for ((write, volume), writer) in left.into_iter().zip(volumes).zip(writers) {
            self.write_volume(&repository, volume, write, writer).await?;
            self.attempt.at("restore.read_back");
            done.push(write.backup.clone());
            self.save(RestoreState::Writing { done: done.clone(), was_running }).await?;
        }
        let parts = &self.attempt.parts;
        let took = parts.clock.monotonic().saturating_sub(began);
        parts.restore_pace.note(&self.of.project, data_bytes, took);
        self.save(RestoreState::Written).await
    }

    /// The content lists of the volumes to write.
    async fn open_backup(
        &self,
        repository: &SharedRepository,
        plan: &RestorePlan,
        writes: &[&VolumeWrite],
    ) -> Result<Vec<Arc<VolumeView>>, Trouble> {
        let snapshot = &plan.snapshot.snapshot;
        let id = snapshot.parse();
        let id = id.map_err(|_| Trouble::Fault(format!("bug: {snapshot:?} is no snapshot")))?;
        let disks = writes.iter().map(|write| (write.folder.clone(), write.size_bytes)).collect();
        let opened = reading::open_disks(repository, id, disks).await;
        self.settle(repository, opened).await
    }

    /// Damage that a restore meets is on record before the restore tells of it.
    async fn settle<T>(
        &self,
        repository: &SharedRepository,
        read: Result<T, RepositoryError>,
    ) -> Result<T, Trouble> {
        let (repositories, cancel) = (&self.attempt.parts.repositories, &self.attempt.stop);
        let settled = repositories.settle_suspects(&self.of.project, repository, read, cancel);
        settled.await.map_err(|error| self.attempt.trouble(error))
    }

    /// Opens, and thereby marks, every destination before the first byte is written: a
    /// server with one disk restored and one not is as unusable as one with half a disk.
    async fn open_all(&self, writes: &[&VolumeWrite]) -> Result<Vec<Arc<dyn DiskWriter>>, Trouble> {
        let mark = self.mark();
        let mut writers = Vec::with_capacity(writes.len());
        for write in writes {
            self.attempt.may_write()?;
            let cloud = &self.attempt.parts.cloud;
            writers.push(cloud.open_for_writing(self.of, &write.volume, &mark).await?);
        }
        Ok(writers)
    }

    async fn write_volume(
        &self,
        repository: &SharedRepository,
        volume: Arc<VolumeView>,
        write: &VolumeWrite,
        writer: Arc<dyn DiskWriter>,
    ) -> Result<(), Trouble> {
        let attempt = self.attempt;
        let options = ReadOptions { threads: THREADS, cancel: attempt.stop.clone() };
        let (lease, meter) = (attempt.lease.clone(), attempt.meter.clone());
        let (shared, backup) = (repository.clone(), volume.clone());
        let bucket = &attempt.parts.disk_bucket;
        let sink = ThrottledSink::new(DiskSink(writer.clone()), bucket.clone());
        let reading = options.clone();
        let written =
            blocking(move || shared.restore_volume(&backup, &sink, &*lease, &reading, &*meter));
        self.settle(repository, written.await).await?;
        attempt.at("restore.written");
        attempt.may_write()?;
        tokio::task::spawn_blocking(move || writer.finish())
            .await
            .map_err(|error| Trouble::Fault(format!("bug: finishing a disk: {error}")))??;
        attempt.at("restore.finished");
        let cloud = &attempt.parts.cloud;
        let reader = cloud.open_for_read_back(self.of, &write.volume).await?;
        let source = DiskSource::first(reader, write.size_bytes);
        let source = ThrottledSource::new(source, bucket.clone());
        let (shared, meter) = (repository.clone(), attempt.meter.clone());
        let compared = blocking(move || shared.compare_volume(&volume, &source, &options, &*meter));
        self.settle(repository, compared.await).await?;
        tracing::info!(volume.id = %write.volume, write.size_bytes, "restored and read back volume {}", write.volume);
        Ok(())
    }

    /// What the destinations are marked with while they are half written.
    fn mark(&self) -> String {
        format!("restore {} of backup {}", self.record.id, self.item)
    }

    async fn finish(&self) -> Result<Work, Trouble> {
        let (attempt, parts) = (self.attempt, &self.attempt.parts);
        for pair in &self.record.pairs {
            attempt.may_finish()?;
            parts.cloud.clear_mark(self.of, &pair.volume, &self.mark()).await?;
        }
        attempt.at("restore.unmarked");
        attempt.may_finish()?;
        parts.cloud.unlock_server(self.of, &self.holder()).await?;
        attempt.at("restore.unlocked");
        attempt.may_finish()?;
        match self.record.power_on {
            PowerOn::Yes => parts.cloud.start_server(self.of).await.map_err(not_started)?,
            PowerOn::No => {}
        }
        attempt.at("restore.started");
        let done = self.at(RestoreState::Done);
        let (proof, now) = (self.proof().await?, parts.clock.now());
        parts.store.finish_restore(&attempt.job, &done, proof.as_ref(), now).await?;
        Ok(done)
    }

    /// What a restore that ended well says of its backup: all of its disks were read, since it
    /// was asked for at the earliest.
    async fn proof(&self) -> Result<Option<Proof>, Trouble> {
        let (parts, project) = (&self.attempt.parts, &self.of.project);
        let Some(item) = parts.store.find_item(project, self.item).await? else { return Ok(None) };
        let now = parts.clock.now();
        let is_restored =
            |disk: &VolumeBackup| self.record.pairs.iter().any(|pair| pair.backup == disk.id);
        // A clock that was set back meanwhile cannot tell since when.
        if !item.volumes.iter().all(is_restored) || self.record.created_at > now {
            return Ok(None);
        }
        let disk = |disk: &VolumeBackup| {
            let read_bytes = disk.stored.as_ref()?.data_bytes;
            Some(DiskProof { backup: disk.id.clone(), read_bytes, report: None })
        };
        let disks = item.volumes.iter().filter_map(disk).collect();
        let (verdict, reason) = (ProofVerdict::Passed, String::new());
        Ok(Some(Proof {
            id: ProofId::from(parts.ids.next_uuid()),
            project_id: project.clone(),
            item_id: self.item.clone(),
            kind: ProofKind::Restore,
            haste: Haste::Asked,
            status: ProofStatus::Done,
            outcome: Some(Outcome { verdict, reason, disks, boot: None }),
            created_at: self.record.created_at,
            started_at: Some(self.record.created_at),
            finished_at: Some(now),
        }))
    }

    /// Puts back what was not touched. What is half written stays stopped and marked; the
    /// lock goes, so that the next restore can take it. The cloud's marks tell which it
    /// is: they were durable before the first byte, and survive us.
    async fn undo(&self, fault: &Fault, was_running: WasRunning) -> Result<Work, Trouble> {
        let (attempt, parts) = (self.attempt, &self.attempt.parts);
        let marks = match parts.cloud.list_marks(self.of).await {
            Ok(marks) => marks,
            Err(error) if error.kind == CloudErrorKind::Permanent => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        attempt.may_finish()?;
        self.unlock().await;
        let mut fault = fault.clone();
        if !marks.is_empty() {
            fault.reason += &format!(
                ". Server {} is half written and stays stopped; restore to it again \
                 (POST /restores) to make it whole",
                self.of.server
            );
        } else if was_running == WasRunning::Yes {
            attempt.may_finish()?;
            if let Err(error) = parts.cloud.start_server(self.of).await {
                fault.reason += &format!(
                    ". Nothing was written, but server {} could not be started again: {error}",
                    self.of.server
                );
            }
        }
        attempt.at("restore.undone");
        let done = self.at(RestoreState::Done);
        parts.store.fail_restore(&attempt.job, &fault, &done, parts.clock.now()).await?;
        Ok(done)
    }

    async fn unlock(&self) {
        let unlocked = self.attempt.parts.cloud.unlock_server(self.of, &self.holder()).await;
        if let Err(error) = unlocked {
            tracing::warn!(server.id = %self.of.server, "server {} stays locked for now: {error}", self.of.server);
        }
    }
}

/// What a user must know when the last step fails.
fn not_started(error: CloudError) -> CloudError {
    let text =
        format!("every byte was restored and read back, but the server did not start: {error}");
    CloudError { text, ..error }
}
