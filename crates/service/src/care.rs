//! What an operator does to repositories by hand: make, check, prune, count. The
//! judgements are the engine's; here they find their repository.

use std::sync::Arc;

use kedge_core::ids::{ItemId, ProjectId};
use kedge_core::job::{ProtectState, Work};
use kedge_engine::{
    CancelFlag, CheckReport, Closed, EngineError, ForeignLocks, Freed, OpenGate, Progress,
    PruneOptions, PruneReport, ReadData, Repository, SnapshotId, Stats, TreeId, holds_snapshot,
};

use crate::job::item_tag;
use crate::repositories::{Repositories, RepositoryError, blocking, engine_time};

/// Stands in the lock objects of a prune: one process owns the catalogue, so there is one
/// at a time.
const PRUNE_NAME: &str = "kedge-prune";

/// Whether a repository had to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// It was made.
    Made,
    /// It was there, and the service key opens it.
    WasThere,
}

impl Repositories {
    /// Makes the project's repository where there is none.
    pub async fn init(&self, project: &ProjectId) -> Result<Init, RepositoryError> {
        let backend = self.places.backend(project)?;
        let found = blocking(move || Repository::<Closed>::is_initialised(&*backend)).await;
        let was_there = match found {
            // The place itself is not there yet.
            Err(RepositoryError::Engine(error)) if error.is_unreachable() => false,
            found => found?,
        };
        self.get_or_create(project).await?;
        Ok(if was_there { Init::WasThere } else { Init::Made })
    }

    /// The engine's judgement of the project's repository.
    pub async fn check(
        &self,
        project: &ProjectId,
        read_data: ReadData,
        cancel: CancelFlag,
    ) -> Result<CheckReport, RepositoryError> {
        let repository = self.get(project).await?;
        blocking(move || repository.check(read_data, &cancel)).await
    }

    /// Removes what no backup needs, or only tells what would go. The caller owns the
    /// catalogue: no job runs, and those that were interrupted keep what they stored.
    pub async fn prune(
        &self,
        project: &ProjectId,
        how: Prune,
        cancel: CancelFlag,
        progress: Arc<dyn Progress>,
    ) -> Result<PruneReport, RepositoryError> {
        let known = self.known_snapshots(project).await?;
        let keep = self.trees_of_jobs(project).await?;
        let repository = self.get(project).await?;
        let (clock, why_cancel) = (self.clock.clone(), cancel.clone());
        let pruned = blocking(move || {
            let options = PruneOptions {
                name: PRUNE_NAME,
                unused_percent_max: how.unused_percent_max,
                repack_bytes_max: how.repack_bytes_max,
                known_snapshots: &known,
                keep_trees: &keep,
                // Whoever had a session had the catalogue, which is ours now.
                is_alive: &|_| false,
                foreign_locks: how.foreign_locks,
                now: &|| engine_time(clock.now()),
            };
            match how.run {
                Run::Really => repository.prune(&options, &OpenGate, &cancel, &*progress),
                Run::Dry => repository.plan_prune(&options, &cancel),
            }
        });
        match pruned.await {
            Err(RepositoryError::Engine(error @ EngineError::Damaged { .. })) => {
                let lost = self.find_unwalkable(project, why_cancel).await.unwrap_or_default();
                Err(why_not_pruned(error, &lost))
            }
            pruned => pruned,
        }
    }

    /// Backups whose snapshot object is lost, and whose lists cannot be walked without it.
    async fn find_unwalkable(
        &self,
        project: &ProjectId,
        cancel: CancelFlag,
    ) -> Result<Vec<ItemId>, RepositoryError> {
        let (backend, repository) = (self.places.backend(project)?, self.get(project).await?);
        let items = self.store.all_items(project).await?;
        blocking(move || {
            let mut lost = Vec::new();
            for item in items {
                let Some(named) = &item.snapshot else { continue };
                if let (Ok(id), Ok(tree)) = (named.snapshot.parse(), named.tree.parse())
                    && !holds_snapshot(&*backend, id)?
                    && !repository.is_complete(tree, &cancel)?
                {
                    lost.push(item.id);
                }
            }
            Ok(lost)
        })
        .await
    }

    async fn known_snapshots(
        &self,
        project: &ProjectId,
    ) -> Result<Vec<(SnapshotId, TreeId)>, RepositoryError> {
        let items = self.store.all_items(project).await?;
        let named = items.iter().filter_map(|item| item.snapshot.as_ref());
        Ok(named.filter_map(|at| at.snapshot.parse().ok().zip(at.tree.parse().ok())).collect())
    }

    /// What interrupted backups have stored and no snapshot names yet.
    async fn trees_of_jobs(&self, project: &ProjectId) -> Result<Vec<TreeId>, RepositoryError> {
        let jobs = self.store.list_live_jobs().await?;
        let ours = jobs.into_iter().filter(|job| job.project_id == *project);
        let tree = |work: Work| match work {
            Work::Protect { state: ProtectState::Stored { tree, .. }, .. } => tree.parse().ok(),
            Work::Protect { .. } | Work::Restore { .. } | Work::Delete { .. } => None,
        };
        Ok(ours.filter_map(|job| tree(job.work)).collect())
    }

    /// What the project's repository holds.
    pub async fn stats(
        &self,
        project: &ProjectId,
        cancel: CancelFlag,
    ) -> Result<Stats, RepositoryError> {
        let repository = self.get(project).await?;
        blocking(move || repository.stats(&cancel)).await
    }

    /// What deleting one backup would free; `None` when the repository holds none of this
    /// id.
    pub async fn freed_by(
        &self,
        project: &ProjectId,
        item: &ItemId,
        cancel: CancelFlag,
    ) -> Result<Option<Freed>, RepositoryError> {
        let repository = self.get(project).await?;
        let tag = item_tag(item);
        blocking(move || {
            let tagged = repository.find_snapshots_by_tag(&tag)?;
            let ids: Vec<_> = tagged.iter().map(|snapshot| snapshot.id).collect();
            if ids.is_empty() {
                return Ok(None);
            }
            repository.what_deleting_frees(&ids, &cancel).map(Some)
        })
        .await
    }
}

/// A backup whose snapshot object is lost is kept, since that may come back; if its lists
/// cannot be walked either, nobody can tell what to keep until somebody lets it go.
fn why_not_pruned(error: EngineError, lost: &[ItemId]) -> RepositoryError {
    let [first, more @ ..] = lost else { return error.into() };
    let and = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    RepositoryError::Failed(format!(
        "{error}; the repository has lost the snapshot and a part of the lists of backup \
         {first}{and}, and nobody can tell what to keep for it: bring the objects back, or \
         delete the backup, and prune again"
    ))
}

/// How to prune.
#[derive(Clone, Copy, Debug)]
pub struct Prune {
    /// Unused bytes that may stay in packs with others, in percent of the used bytes.
    pub unused_percent_max: u8,
    /// Bytes copied at most so that the packs they lie in can be removed.
    pub repack_bytes_max: u64,
    /// What is done about locks of other programs.
    pub foreign_locks: ForeignLocks,
    /// Whether anything is changed.
    pub run: Run,
}

/// Whether a prune changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// It does.
    Really,
    /// It tells what would go.
    Dry,
}
