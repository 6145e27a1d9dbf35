//! What dead jobs left in repositories: lock objects, and snapshots of deleted backups.

use std::collections::HashSet;

use kedge_core::ids::{ItemId, ProjectId};

use super::Reconciled;
use crate::app::Parts;
use crate::error::Error;
use crate::job::{ITEM_TAG_PREFIX, SESSION_PREFIX, session_name};
use crate::repositories::{RepositoryError, blocking};

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
    let (sessions, (snapshots, damaged)) =
        blocking(move || Ok((shared.list_sessions()?, shared.survey_snapshots()?))).await?;
    for damage in damaged {
        tracing::error!(project.id = ?project, "{damage}");
    }
    let alive: HashSet<String> =
        parts.store.list_live_jobs().await?.iter().map(|job| session_name(&job.id)).collect();
    for session in sessions {
        if session.starts_with(SESSION_PREFIX) && !alive.contains(&session) {
            let shared = repository.clone();
            round.repository_removed +=
                blocking(move || shared.remove_session_locks(&session)).await?;
        }
    }
    let known: HashSet<ItemId> =
        parts.store.all_items(project).await?.into_iter().map(|item| item.id).collect();
    let deleted: HashSet<ItemId> =
        parts.store.list_tombstones(project).await?.into_iter().map(|t| t.item).collect();
    for snapshot in snapshots {
        let Some(item) = snapshot.tags.iter().find_map(|tag| tag.strip_prefix(ITEM_TAG_PREFIX))
        else {
            continue;
        };
        let item = ItemId::asked(item);
        if deleted.contains(&item) {
            let (shared, id) = (repository.clone(), snapshot.id);
            blocking(move || shared.delete_snapshot(id)).await?;
            round.repository_removed += 1;
        } else if !known.contains(&item) {
            tracing::warn!(project.id = ?project, "repository snapshot {} is of a backup no row names", snapshot.id);
            round.strangers.push(snapshot.id.to_string());
        }
    }
    Ok(())
}
