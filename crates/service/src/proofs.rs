//! Proves backups one at a time: reads every byte as a restore would, inspects the disks,
//! boots the server. Somebody asked for it, or it is the server's turn.
//!
//! A proof takes nothing away from anybody: it claims no backup, and where one is deleted
//! meanwhile there is nothing left to say about it. What a process that died was at is begun
//! again.

use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kedge_core::checkpoint::{Item, VolumeBackup};
use kedge_core::drill::{Boot, StageError, TableKind};
use kedge_core::ids::{ItemId, ProjectId, ProofId};
use kedge_core::ports::DiskReader;
use kedge_core::proof::{DiskProof, Haste, Outcome, Proof, ProofKind, ProofStatus, ProofVerdict};
use kedge_core::refusal::Refusal;
use kedge_core::resource::VolumeRole;
use kedge_engine::{
    CancelFlag, EngineError, NoProgress, OpenGate, ReadOptions, Sink, SinkError, SnapshotId,
    VolumeView,
};
use kedge_store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::adapt::StoredDisk;
use crate::app::{App, Parts};
use crate::budget::Spender;
use crate::context::Context;
use crate::error::Error;
use crate::reading;
use crate::repositories::{RepositoryError, SharedRepository, blocking};

/// How often it is looked whether a server's turn has come: the search goes over all of
/// them.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// After trouble with the catalogue or the stage.
const PAUSE: Duration = Duration::from_secs(60);
/// What a machine's disks keep of what was read of them lately, all together.
const CACHE_BYTES: usize = 64 << 20;
/// Chunks in flight: proving leaves the processors to others.
const THREADS: NonZeroUsize = NonZeroUsize::MIN;

/// So soon a drill that came to no end of its own is tried again.
const TRIED_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);

/// What reading back is taken to read in a second where nothing holds it back.
const BYTES_PER_SEC_UNLIMITED: u64 = 200 << 20;

impl App {
    /// Puts a proof of a backup into the queue; one that waits already stays as it is.
    pub async fn create_proof(
        &self,
        context: &Context,
        item: &ItemId,
        kind: ProofKind,
    ) -> Result<Proof, Error> {
        let parts = &self.parts;
        let found = parts.store.find_item(context.project(), item).await?;
        let found = found.ok_or_else(|| Refusal::ItemNotFound(item.clone()))?;
        if found.snapshot.is_none() {
            return Err(Refusal::ItemNotAvailable(found.status).into());
        }
        let items = std::slice::from_ref(item);
        let proofs = parts.enqueue_proofs(context.project(), items, kind, Haste::Asked).await;
        let proofs = proofs.map_err(|error| match error {
            StoreError::TooMany { .. } => Error::Busy,
            error => error.into(),
        })?;
        proofs.into_iter().next().ok_or_else(|| Error::Internal("no proof".to_owned()))
    }

    /// Proofs of a backup, the latest first.
    pub async fn list_proofs(&self, context: &Context, item: &ItemId) -> Result<Vec<Proof>, Error> {
        let found = self.parts.store.find_item(context.project(), item).await?;
        let proofs = self.parts.store.list_proofs(context.project(), item).await?;
        match found {
            Some(_) => Ok(proofs),
            None => Err(Refusal::ItemNotFound(item.clone()).into()),
        }
    }

    /// Proves what waits, and what it is the turn of, until `shutdown`.
    pub async fn run_proofs(&self, shutdown: CancellationToken) {
        loop {
            let cancel = CancelFlag::new();
            let proving = self.prove_next(&cancel);
            tokio::pin!(proving);
            let pause = tokio::select! {
                proved = &mut proving => self.pause_after(proved).await,
                () = shutdown.cancelled() => {
                    cancel.cancel();
                    return;
                }
            };
            let bell = self.parts.proof_bell.notified();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = bell => {}
            }
        }
    }

    async fn pause_after(&self, proved: Result<Option<Proof>, Error>) -> Duration {
        match proved {
            Ok(Some(_)) => Duration::ZERO,
            Ok(None) => match self.parts.enqueue_turn().await {
                Ok(true) => Duration::ZERO,
                Ok(false) => EVERY,
                Err(error) => {
                    tracing::warn!("whose turn it is to be drilled is not known: {error}");
                    PAUSE
                }
            },
            Err(error) => {
                tracing::warn!("nothing is proved: {error}");
                PAUSE
            }
        }
    }

    /// Proves the backup that has waited longest, if any does.
    pub async fn prove_next(&self, cancel: &CancelFlag) -> Result<Option<Proof>, Error> {
        let parts = &self.parts;
        let last = parts.last_proved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let begun = parts.store.begin_proof(last.as_ref(), parts.clock.now()).await?;
        let Some(proof) = begun else { return Ok(None) };
        *parts.last_proved.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(proof.project_id.clone());
        let began = parts.clock.monotonic();
        let outcome = parts.prove(&proof, cancel).await;
        if cancel.is_cancelled() {
            return Ok(None);
        }
        let finished_at = Some(parts.clock.now());
        let (status, outcome) = (ProofStatus::Done, Some(outcome));
        let proof = Proof { status, outcome, finished_at, ..proof };
        tell(&proof);
        parts.store.finish_proof(&proof).await?;
        *parts.rest_until.lock().unwrap_or_else(PoisonError::into_inner) = parts.rest_after(began);
        Ok(Some(proof))
    }
}

/// Said once, where an operator looks.
fn tell(proof: &Proof) {
    let Some(outcome) = &proof.outcome else { return };
    let (kind, verdict) = (proof.kind.as_str(), outcome.verdict.as_str());
    match outcome.verdict {
        ProofVerdict::Passed => {
            tracing::info!(item.id = %proof.item_id, "{kind} of backup {} {verdict}", proof.item_id);
        }
        ProofVerdict::Failed | ProofVerdict::Undecided => {
            tracing::error!(item.id = %proof.item_id, "{kind} of backup {} {verdict}: {}", proof.item_id, outcome.reason);
        }
    }
}

/// Why a proof went no further.
enum End {
    Failed(String),
    /// What the caller may hear; the rest was logged.
    Undecided(&'static str),
}

fn undecided(what: &'static str, why: impl std::fmt::Display) -> End {
    tracing::warn!("a proof cannot be told: {what}: {why}");
    End::Undecided(what)
}

impl From<RepositoryError> for End {
    /// What is damaged or not there is the backup's matter; all else may be another time.
    fn from(error: RepositoryError) -> Self {
        match &error {
            RepositoryError::Engine(
                EngineError::Damaged { .. }
                | EngineError::SnapshotNotFound(_)
                | EngineError::EntryNotFound { .. },
            ) => Self::Failed(error.to_string()),
            _ => undecided("the repository could not be read", error),
        }
    }
}

impl From<StageError> for End {
    fn from(error: StageError) -> Self {
        undecided("what backups are tried out with does not work", error)
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        undecided("the catalogue did not answer", error)
    }
}

impl Parts {
    pub(crate) async fn enqueue_proofs(
        &self,
        project: &ProjectId,
        items: &[ItemId],
        kind: ProofKind,
        haste: Haste,
    ) -> Result<Vec<Proof>, StoreError> {
        let proof = |item: &ItemId| Proof {
            id: ProofId::from(self.ids.next_uuid()),
            project_id: project.clone(),
            item_id: item.clone(),
            kind,
            haste,
            status: ProofStatus::Queued,
            outcome: None,
            created_at: self.clock.now(),
            started_at: None,
            finished_at: None,
        };
        let proofs: Vec<Proof> = items.iter().map(proof).collect();
        let waiting = self.store.enqueue_proofs(&proofs).await?;
        self.proof_bell.notify_one();
        Ok(waiting)
    }

    /// Puts the backup into the queue whose turn it is to be drilled; false if none is, or
    /// if drills have had their share of the time.
    async fn enqueue_turn(&self) -> Result<bool, StoreError> {
        let Some(every) = self.settings.drill.every else { return Ok(false) };
        let rest_until = *self.rest_until.lock().unwrap_or_else(PoisonError::into_inner);
        if self.stage.is_none() || self.clock.monotonic() < rest_until {
            return Ok(false);
        }
        let now = self.clock.now();
        let (since, tried_since) = (now.minus(every), now.minus(TRIED_AGAIN.min(every)));
        let Some((project, item)) = self.store.find_undrilled(since, tried_since, now).await?
        else {
            return Ok(false);
        };
        let items = std::slice::from_ref(&item);
        self.enqueue_proofs(&project, items, ProofKind::Drill, Haste::Due).await?;
        Ok(true)
    }

    /// Until when scheduled drills rest, so that they take no more than their share.
    fn rest_after(&self, began: Duration) -> Duration {
        let now = self.clock.monotonic();
        let share = u32::from(self.settings.drill.time_percent.clamp(1, 100));
        let took = now.saturating_sub(began);
        now.saturating_add(took.saturating_mul(100 - share) / share)
    }

    async fn prove(&self, proof: &Proof, cancel: &CancelFlag) -> Outcome {
        let (mut disks, mut boot) = (Vec::new(), None);
        let (verdict, reason) = match self.try_prove(proof, cancel, &mut disks, &mut boot).await {
            Ok(()) => (ProofVerdict::Passed, String::new()),
            Err(End::Failed(reason)) => (ProofVerdict::Failed, reason),
            Err(End::Undecided(reason)) => (ProofVerdict::Undecided, reason.to_owned()),
        };
        Outcome { verdict, reason, disks, boot }
    }

    async fn try_prove(
        &self,
        proof: &Proof,
        cancel: &CancelFlag,
        disks: &mut Vec<DiskProof>,
        boot: &mut Option<Boot>,
    ) -> Result<(), End> {
        let project = &proof.project_id;
        let item = self.store.find_item(project, &proof.item_id).await?;
        let item = item.ok_or(End::Undecided("the backup was deleted"))?;
        let repository = self.repositories.get(project).await?;
        let Some((snapshot, stored)) = stored_disks(&item) else {
            return Err(End::Failed("the record names no snapshot".to_owned()));
        };
        let read = async {
            let volumes = reading::open_disks(&repository, snapshot, stored).await?;
            for (backup, volume) in item.volumes.iter().zip(&volumes) {
                let read_bytes = self.read(&repository, volume, proof.haste, cancel).await?;
                disks.push(DiskProof { backup: backup.id.clone(), read_bytes, report: None });
            }
            Ok(volumes)
        };
        let read = read.await;
        let settled = self.repositories.settle_suspects(project, &repository, read, cancel);
        let volumes = settled.await?;
        match proof.kind {
            ProofKind::Read | ProofKind::Restore => return Ok(()),
            ProofKind::Drill => {}
        }
        let readers = open_readers(&repository, &volumes).await?;
        let stage = self.stage.as_ref();
        let stage = stage.ok_or(End::Undecided("there is nothing to try it out with"))?;
        let mut problems = Vec::new();
        for (disk, reader) in disks.iter_mut().zip(&readers) {
            let report = stage.inspect(Arc::clone(reader)).await?;
            let of = |problem: String| format!("disk {}: {problem}", disk.backup);
            problems.extend(report.problems().map(of));
            disk.report = Some(report);
        }
        if let Some(first) = problems.first() {
            let more = problems.len() - 1;
            let and = if more == 0 { String::new() } else { format!(", and {more} more") };
            return Err(End::Failed(format!("{first}{and}")));
        }
        if self.settings.drill.boots {
            let booted = stage.boot(system_first(&item, readers)).await?;
            let why = match &booted {
                Boot::Booted { .. } => None,
                Boot::Failed { .. } if may_need_uefi(&item, disks) => Some(End::Undecided(
                    "it does not boot by a BIOS, and may need UEFI, which drills do not have",
                )),
                Boot::Failed { why, .. } => Some(End::Failed(format!("it does not boot: {why}"))),
            };
            *boot = Some(booted);
            why.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// Reads a volume as a restore does, to nowhere.
    async fn read(
        &self,
        repository: &SharedRepository,
        volume: &Arc<VolumeView>,
        haste: Haste,
        cancel: &CancelFlag,
    ) -> Result<u64, RepositoryError> {
        let options = ReadOptions { threads: THREADS, cancel: cancel.clone() };
        let (shared, volume) = (Arc::clone(repository), Arc::clone(volume));
        let nowhere = Nowhere((haste == Haste::Due).then(|| self.verify_budget.begin(cancel)));
        let report = blocking(move || {
            shared.restore_volume(&volume, &nowhere, &OpenGate, &options, &NoProgress)
        });
        Ok(report.await?.data_bytes)
    }

    /// About how long it takes until a backup is proved.
    pub(crate) fn estimate_proof(&self, item: &Item, kind: ProofKind) -> u64 {
        let verify = &self.settings.verify;
        let possible = BYTES_PER_SEC_UNLIMITED * u64::from(verify.time_percent) / 100;
        let rate = verify.rates.bytes_per_sec.unwrap_or(possible).min(possible);
        let reading = item.data_bytes() / rate.max(1);
        let booting = match kind {
            ProofKind::Drill if self.settings.drill.boots => self.settings.drill.boot_time,
            ProofKind::Drill | ProofKind::Read | ProofKind::Restore => Duration::ZERO,
        };
        reading + booting.as_secs() + 1
    }
}

/// What a backup's record says of where its disks lie.
fn stored_disks(item: &Item) -> Option<(SnapshotId, Vec<reading::StoredDisk>)> {
    let snapshot = item.snapshot.as_ref()?.snapshot.parse().ok()?;
    let disk = |volume: &VolumeBackup| {
        Some((volume.stored.as_ref()?.folder.clone(), volume.source_size_bytes))
    };
    Some((snapshot, item.volumes.iter().map(disk).collect::<Option<_>>()?))
}

/// A disk with a GUID partition table may have been made for UEFI.
fn may_need_uefi(item: &Item, disks: &[DiskProof]) -> bool {
    let systems = item.volumes.iter().zip(disks).filter(|(b, _)| b.role == VolumeRole::System);
    let mut reports = systems.filter_map(|(_, disk)| disk.report.as_ref());
    reports.any(|report| report.table == TableKind::Gpt)
}

async fn open_readers(
    repository: &SharedRepository,
    volumes: &[Arc<VolumeView>],
) -> Result<Vec<Arc<dyn DiskReader>>, RepositoryError> {
    let (shared, volumes) = (Arc::clone(repository), volumes.to_vec());
    let cache_bytes = CACHE_BYTES / volumes.len().max(1);
    blocking(move || {
        let open = |volume: Arc<VolumeView>| {
            let reader = shared.open_volume(&volume, cache_bytes)?;
            let disk: Arc<dyn DiskReader> = Arc::new(StoredDisk(reader));
            Ok(disk)
        };
        volumes.into_iter().map(open).collect()
    })
    .await
}

/// The disk that the server boots from, then the others as they are.
fn system_first(item: &Item, readers: Vec<Arc<dyn DiskReader>>) -> Vec<Arc<dyn DiskReader>> {
    let mut disks: Vec<_> = item.volumes.iter().zip(readers).collect();
    disks.sort_by_key(|(backup, _)| backup.role != VolumeRole::System);
    disks.into_iter().map(|(_, reader)| reader).collect()
}

/// Where what is only read goes, and what pays for it.
struct Nowhere(Option<Spender>);

impl Sink for Nowhere {
    fn write_at(&self, _: u64, bytes: &[u8]) -> Result<(), SinkError> {
        if let Some(spender) = &self.0 {
            spender.take(bytes.len() as u64);
        }
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), SinkError> {
        Ok(())
    }
}
