//! What dead jobs left in repositories: lock objects, and snapshots of deleted backups.

use std::collections::HashSet;

use kedge_core::ids::{ItemId, ProjectId};
use kedge_engine::{EngineError, SnapshotId};
use kedge_store::Fate;

use super::Reconciled;
use crate::app::Parts;
use crate::error::Error;
use crate::job::{ITEM_TAG_PREFIX, SESSION_PREFIX, session_name};
use crate::repositories::{RepositoryError, SharedRepository, blocking};

pub(super) async fn remove(parts: &Parts, round: &mut Reconciled) -> Result<(), Error> {
    for row in parts.store.list_repositories().await?.into_iter().filter(|row| row.made) {
        if let Err(error) = remove_in(parts, &row.project_id, round).await {
            tracing::warn!(project.id = ?row.project_id, "repository leftovers: {error}");
        }
    }
    Ok(())
}

async fn remove_in(
    parts: &Parts,
    project: &ProjectId,
    round: &mut Reconciled,
) -> Result<(), RepositoryError> {
    let repository = parts.repositories.get(project).await?;
    let shared = repository.clone();
    // The repository is asked before the catalogue: what a job makes in between is then
    // known to be alive.
    let (sessions, listed) =
        blocking(move || Ok((shared.list_sessions()?, shared.list_snapshot_ids()?))).await?;
    let alive: HashSet<String> =
        parts.store.list_live_jobs().await?.iter().map(|job| session_name(&job.id)).collect();
    for session in sessions {
        if session.starts_with(SESSION_PREFIX) && !alive.contains(&session) {
            let shared = repository.clone();
            round.repository_removed +=
                blocking(move || shared.remove_session_locks(&session)).await?;
        }
    }
    let mut unnamed: HashSet<SnapshotId> = listed.into_iter().collect();
    let strike = |snapshot: &str| {
        if let Ok(id) = snapshot.parse() {
            unnamed.remove(&id);
        }
    };
    parts.store.for_each_named_snapshot(project, strike).await?;
    for id in unnamed {
        judge(parts, project, &repository, id, round).await?;
    }
    Ok(())
}

/// What becomes of a snapshot that no row names. Only such a one is read.
async fn judge(
    parts: &Parts,
    project: &ProjectId,
    repository: &SharedRepository,
    id: SnapshotId,
    round: &mut Reconciled,
) -> Result<(), RepositoryError> {
    let shared = repository.clone();
    let snapshot = match blocking(move || shared.get_snapshot(id)).await {
        Ok(snapshot) => snapshot,
        Err(RepositoryError::Engine(EngineError::SnapshotNotFound(_))) => return Ok(()),
        Err(RepositoryError::Engine(damage @ EngineError::Damaged { .. })) => {
            tracing::error!(project.id = ?project, "{damage}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let Some(item) = snapshot.tags.iter().find_map(|tag| tag.strip_prefix(ITEM_TAG_PREFIX)) else {
        return Ok(());
    };
    let item = ItemId::asked(item);
    let fates = parts.store.find_fates(project, std::slice::from_ref(&item)).await?;
    match fates.get(&item) {
        // Another snapshot of it is the one that its row names, or a job is just about to.
        Some(Fate::Kept) => {}
        Some(Fate::Deleted) => {
            let shared = repository.clone();
            blocking(move || shared.delete_snapshot(id)).await?;
            round.repository_removed += 1;
        }
        None => {
            tracing::warn!(project.id = ?project, "repository snapshot {id} is of a backup no row names");
            round.strangers.push(id.to_string());
        }
    }
    Ok(())
}
