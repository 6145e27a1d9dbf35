//! Watches over what is stored: looks for every pack, reads back what is new soon, and
//! everything in rounds. What is damaged or missing is recorded, and turns the verdict for
//! every backup that needs it.
//!
//! Runs on a timer and takes no input. How far it came is in the catalogue; a catalogue that
//! was lost means reading from the start.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use kedge_core::evidence::{Round, Watch};
use kedge_core::ids::ProjectId;
use kedge_core::restore::Data;
use kedge_core::status::ItemStatus;
use kedge_core::time::Timestamp;
use kedge_engine::layer::Bucket;
use kedge_engine::{
    CancelFlag, EngineError, IndexId, Inventory, PackDamage, PackId, Progress, SnapshotId,
    VerifyOptions, VerifyOutcome,
};
use tokio_util::sync::CancellationToken;

use crate::app::{App, Parts};
use crate::repositories::{RepositoryError, SharedRepository, blocking};
use crate::wholeness::Judged;

/// A list of packs costs a store a request per thousand.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// A process that has just begun has other things to do.
const AFTER_START: Duration = Duration::from_secs(60);

/// One at a time: reading back leaves the processors to others.
const THREADS: NonZeroUsize = NonZeroUsize::MIN;

/// Backups whose lists are walked for the first time when a repository is watched over: more
/// than are made in an hour, and what a catalogue brings that was just made anew waits.
const WALKS_MAX: u32 = 10_000;

/// So many incremental backups after a full one make a chain that is read back early: what
/// they share was written long ago.
const CHAIN_LONG: u64 = 7;

/// What one round of watching found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Packs that are missing, have a wrong size or hold damage.
    pub damaged: BTreeSet<PackId>,
    /// Bytes of packs read back.
    pub read_bytes: u64,
    /// Repositories that have lost index objects.
    pub lost_indexes: usize,
}

impl App {
    /// Watches now and then until `shutdown`.
    pub async fn run_watch(&self, shutdown: CancellationToken) {
        let mut pause = AFTER_START;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = EVERY;
            let cancel = CancelFlag::new();
            let watching = self.watch(&cancel);
            tokio::pin!(watching);
            tokio::select! {
                watched = &mut watching => tracing::info!("watched over repositories: {watched:?}"),
                () = shutdown.cancelled() => {
                    cancel.cancel();
                    watching.await;
                }
            }
        }
    }

    /// Once over every repository. One that fails is logged and left to the next time.
    pub async fn watch(&self, cancel: &CancelFlag) -> Watched {
        let mut watched = Watched::default();
        let repositories = match self.parts.store.list_repositories().await {
            Ok(repositories) => repositories,
            Err(error) => {
                tracing::warn!("nothing is watched over: {error}");
                return watched;
            }
        };
        for row in repositories.into_iter().filter(|row| row.made) {
            if cancel.is_cancelled() {
                break;
            }
            if let Err(error) = self.parts.watch_over(&row.project_id, cancel, &mut watched).await {
                tracing::warn!(project.id = ?row.project_id, "watching over a repository: {error}");
            }
        }
        watched
    }
}

/// Spends what it hears of.
struct Paced(Arc<Bucket>);

impl Progress for Paced {
    fn advance(&self, bytes: u64) {
        self.0.take(bytes);
    }
}

impl Parts {
    async fn watch_over(
        &self,
        project: &ProjectId,
        cancel: &CancelFlag,
        watched: &mut Watched,
    ) -> Result<(), RepositoryError> {
        let mut watch = self.store.find_watch(project).await?;
        let repository = self.repositories.get(project).await?;
        let (upto, now) = (self.store.latest_sequence(project).await?, self.clock.now());
        let shared = repository.clone();
        let inventory = Arc::new(blocking(move || shared.take_inventory()).await?);
        for problem in &inventory.problems {
            tracing::error!(project.id = ?project, "{} {}", problem.object, problem.what);
        }
        let index: BTreeSet<String> =
            inventory.index_objects().iter().map(ToString::to_string).collect();
        let (shared, listed, flag) = (repository.clone(), inventory.clone(), cancel.clone());
        let misfits = blocking(move || shared.find_misfits(&listed, &flag)).await?;
        watched.damaged.extend(misfits.iter().map(|misfit| misfit.pack));
        self.record(&repository, misfits).await?;
        let is_gone = !watch.read_index.is_subset(&index);
        watch.lost_index |= is_gone || !inventory.problems.is_empty();
        watch.read_index.retain(|read| index.contains(read));
        watch.forget_after(now);
        if watch.lost_index {
            self.note_loss(project, &watch, now).await?;
        }
        match self.walk_new(&repository, project, watch.walked_upto, upto, cancel).await {
            Ok((walked_upto, are_listed)) => {
                watch.walked_upto = walked_upto;
                watch.lost_index |= !are_listed;
            }
            Err(error) => {
                tracing::warn!(project.id = ?project, "new backups are not walked: {error}");
            }
        }
        if watch.lost_index {
            self.note_loss(project, &watch, now).await?;
            watch.lost_index = !self.are_lists_whole(project, cancel).await?;
            watched.lost_indexes += usize::from(watch.lost_index);
        }
        // What a lost index object listed is in no inventory: nothing new is known of any
        // backup by looking for packs, or reading them, until all are listed again.
        let upto = if watch.lost_index { 0 } else { upto };
        if watch.lost_index {
            watch.round = None;
        } else {
            (watch.present_at, watch.present_upto) = (Some(now), upto);
        }
        let inventory = &inventory;
        let run = Run {
            parts: self,
            repository: &repository,
            inventory,
            inventory_at: now,
            upto,
            cancel,
        };
        let urgent = self.find_urgent(project, &watch).await?;
        if run.read_new(&mut watch, index, urgent, watched).await? {
            watch.watched_since = watch.watched_since.or(Some(now));
            watch.new_read_upto = watch.new_read_upto.max(upto);
        }
        self.store.save_watch(project, &watch, now).await?;
        run.go_on(&mut watch, watched).await?;
        Ok(self.store.save_watch(project, &watch, now).await?)
    }

    /// From here on lists are walked for every verdict, and after a restart too.
    async fn note_loss(
        &self,
        project: &ProjectId,
        watch: &Watch,
        now: Timestamp,
    ) -> Result<(), RepositoryError> {
        self.repositories.wholeness.note_lost_index(project);
        Ok(self.store.save_watch(project, watch, now).await?)
    }

    /// Walks the lists of backups that were not walked before: up to which, and whether index
    /// objects list all that they name. An index object that vanished before anybody saw it
    /// shows by that alone.
    async fn walk_new(
        &self,
        repository: &SharedRepository,
        project: &ProjectId,
        after: u64,
        upto: u64,
        cancel: &CancelFlag,
    ) -> Result<(u64, bool), RepositoryError> {
        let new = self.store.list_snapshots_after(project, after, WALKS_MAX).await?;
        let walked_upto = match new.last() {
            Some((last, _)) if new.len() >= WALKS_MAX as usize => *last,
            Some(_) | None => upto,
        };
        let ids: Vec<SnapshotId> =
            new.iter().filter_map(|(_, snapshot)| snapshot.parse().ok()).collect();
        let (shared, cancel) = (repository.clone(), cancel.clone());
        let are_listed = blocking(move || shared.are_listed(&ids, &cancel)).await?;
        Ok((walked_upto, are_listed))
    }

    /// New backups that are read back before others: those with the configured tag, then those
    /// at the end of long chains, the longest first.
    async fn find_urgent(
        &self,
        project: &ProjectId,
        watch: &Watch,
    ) -> Result<Vec<SnapshotId>, RepositoryError> {
        let first = self.settings.verify.first.as_ref();
        let after = watch.new_read_upto;
        let mut new = self.store.list_unread(project, after, first, WALKS_MAX).await?;
        new.retain(|unread| unread.is_tagged || unread.chain >= CHAIN_LONG);
        new.sort_by_key(|unread| (!unread.is_tagged, Reverse(unread.chain)));
        Ok(new.into_iter().filter_map(|unread| unread.snapshot.parse().ok()).collect())
    }

    /// Whether every backup is whole, although nobody knows what a lost index object listed.
    /// Until all are, every verdict walks.
    async fn are_lists_whole(
        &self,
        project: &ProjectId,
        cancel: &CancelFlag,
    ) -> Result<bool, RepositoryError> {
        let items = self.store.all_items(project).await?;
        let available = items.iter().filter(|item| item.status == ItemStatus::Available);
        let ids: Vec<SnapshotId> =
            available.filter_map(|item| item.snapshot.as_ref()?.snapshot.parse().ok()).collect();
        for id in ids {
            if cancel.is_cancelled() {
                return Ok(false);
            }
            let look = self.repositories.look(project, Vec::new()).await?;
            let Judged::Walked(answers) =
                self.repositories.judge_data(project, &[id], look).await?
            else {
                return Ok(false);
            };
            for answer in answers {
                if !matches!(answer.await, Ok(Data::Whole)) {
                    tracing::error!(project.id = ?project, "an index object is lost that backups need");
                    return Ok(false);
                }
            }
        }
        self.repositories.wholeness.forget_lost_index(project);
        Ok(true)
    }

    async fn record(
        &self,
        repository: &SharedRepository,
        damaged: Vec<PackDamage>,
    ) -> Result<(), RepositoryError> {
        for damage in damaged {
            tracing::error!("pack {} is damaged: {}", damage.pack, damage.what);
            let shared = repository.clone();
            blocking(move || shared.record_damage(&damage)).await?;
        }
        Ok(())
    }
}

/// Reading back one repository.
struct Run<'a> {
    parts: &'a Parts,
    repository: &'a SharedRepository,
    inventory: &'a Arc<Inventory>,
    /// Just before it was taken: what is stored later is not in it.
    inventory_at: Timestamp,
    /// The last backup that was finished before that.
    upto: u64,
    cancel: &'a CancelFlag,
}

impl Run<'_> {
    /// Reads what is listed by index objects that were not there before, what urgent backups
    /// need of it first; whether all was.
    async fn read_new(
        &self,
        watch: &mut Watch,
        index: BTreeSet<String>,
        urgent: Vec<SnapshotId>,
        watched: &mut Watched,
    ) -> Result<bool, RepositoryError> {
        let unread: BTreeSet<_> = self
            .inventory
            .index_objects()
            .iter()
            .filter(|id| !watch.read_index.contains(&id.to_string()))
            .copied()
            .collect();
        if unread.is_empty() {
            watch.read_index = index;
            return Ok(true);
        }
        let unread = Arc::new(unread);
        let mut done = BTreeSet::new();
        for snapshot in urgent {
            let (shared, cancel) = (self.repository.clone(), self.cancel.clone());
            let packs = match blocking(move || shared.packs_of(snapshot, &cancel)).await {
                Ok(packs) => packs,
                // What cannot be told of it is read with the rest.
                Err(RepositoryError::Engine(
                    EngineError::Damaged { .. } | EngineError::SnapshotNotFound(_),
                )) => continue,
                Err(error) => return Err(error),
            };
            let wanted: BTreeSet<_> = packs.difference(&done).copied().collect();
            done.extend(wanted.iter().copied());
            if !wanted.is_empty()
                && !self.read(&unread, move |pack| wanted.contains(&pack), watched).await?
            {
                return Ok(false);
            }
        }
        if !self.read(&unread, move |pack| !done.contains(&pack), watched).await? {
            return Ok(false);
        }
        watch.read_index = index;
        Ok(true)
    }

    /// Reads those packs of index objects that are wanted; whether all were read.
    async fn read(
        &self,
        objects: &Arc<BTreeSet<IndexId>>,
        is_wanted: impl Fn(PackId) -> bool + Send + Sync + 'static,
        watched: &mut Watched,
    ) -> Result<bool, RepositoryError> {
        let (shared, inventory) = (self.repository.clone(), self.inventory.clone());
        let (options, progress) = (self.options(None, u64::MAX), self.progress());
        let objects = objects.clone();
        let outcome = blocking(move || {
            let is_wanted = |pack, object| objects.contains(&object) && is_wanted(pack);
            shared.verify_listed(&inventory, &is_wanted, &options, &progress)
        })
        .await?;
        self.settle(outcome, watched).await
    }

    /// Goes on with the round through everything, or begins one.
    async fn go_on(&self, watch: &mut Watch, watched: &mut Watched) -> Result<(), RepositoryError> {
        let now = self.parts.clock.now();
        let period = self.parts.settings.verify.period;
        if watch.rests(now, period) {
            return Ok(());
        }
        let share = watch.share_bytes(now, self.inventory.bytes(), period);
        let anew = || Round { began_at: self.inventory_at, upto: self.upto, after: None };
        let round = watch.round.take().unwrap_or_else(anew);
        let after: Option<PackId> = round.after.as_ref().and_then(|id| id.parse().ok());
        let (shared, inventory) = (self.repository.clone(), self.inventory.clone());
        let (options, progress) = (self.options(after, share), self.progress());
        let outcome =
            blocking(move || shared.verify_listed(&inventory, &|_, _| true, &options, &progress))
                .await?;
        let next = outcome.next;
        self.settle(outcome, watched).await?;
        watch.went_on_at = Some(now);
        match next {
            Some(last) => watch.round = Some(Round { after: Some(last.to_string()), ..round }),
            None => {
                (watch.all_read_at, watch.all_read_upto) = (Some(round.began_at), round.upto);
            }
        }
        Ok(())
    }

    /// Records what was found; whether the walk reached its end.
    async fn settle(
        &self,
        outcome: VerifyOutcome,
        watched: &mut Watched,
    ) -> Result<bool, RepositoryError> {
        watched.damaged.extend(outcome.damaged.iter().map(|damage| damage.pack));
        watched.read_bytes += outcome.read_bytes;
        self.parts.record(self.repository, outcome.damaged).await?;
        if !outcome.refuted.is_empty() {
            let (shared, refuted) = (self.repository.clone(), outcome.refuted);
            blocking(move || shared.lift_damage(&refuted)).await?;
        }
        Ok(outcome.next.is_none())
    }

    fn options(&self, after: Option<PackId>, bytes_max: u64) -> VerifyOptions {
        VerifyOptions { threads: THREADS, cancel: self.cancel.clone(), after, bytes_max }
    }

    fn progress(&self) -> Paced {
        Paced(self.parts.verify_bucket.clone())
    }
}
