//! Removes a backup's repository snapshots, then leaves a tombstone. Blobs stay: other
//! backups may need them.

use kedge_core::ids::ItemId;
use kedge_core::job::{DeleteState, Work};
use kedge_engine::Gate;

use super::{item_tag, session};
use crate::attempt::{Attempt, Trouble};
use crate::repositories::{RepositoryError, blocking};

pub(crate) async fn step(
    attempt: &Attempt,
    item: &ItemId,
    state: &DeleteState,
) -> Result<Work, Trouble> {
    let store = &attempt.parts.store;
    let next = |state| Work::Delete { item: item.clone(), state };
    let now = || attempt.parts.clock.now();
    match state {
        DeleteState::Start => {
            remove_snapshots(attempt, item).await?;
            attempt.at("delete.snapshot_removed");
            let removed = next(DeleteState::Removed);
            store.save_state(&attempt.job, &removed, now()).await?;
            attempt.at("delete.removed_saved");
            Ok(removed)
        }
        DeleteState::Removed => {
            let done = next(DeleteState::Done);
            store.finish_delete(&attempt.job, &done, now()).await?;
            Ok(done)
        }
        DeleteState::Undo { fault } => {
            attempt.at("delete.undone");
            let done = next(DeleteState::Done);
            store.fail_delete(&attempt.job, fault, &done, now()).await?;
            Ok(done)
        }
        DeleteState::Done => Ok(next(DeleteState::Done)),
    }
}

/// By tag as well as by the row's reference: a failed backup may have left a snapshot that
/// no row names, and a damaged snapshot no longer tells its tag. Under a lock object, so
/// that it waits for an outsider's exclusive work.
async fn remove_snapshots(attempt: &Attempt, item: &ItemId) -> Result<(), Trouble> {
    let named = super::item(attempt, item).await?.snapshot;
    let repository = match attempt.parts.repositories.get(&attempt.job.project_id).await {
        Ok(repository) => repository,
        Err(RepositoryError::None) => return Ok(()),
        Err(error) => return Err(attempt.trouble(error)),
    };
    let _session = session(attempt, &repository).await?;
    let (lease, tag) = (attempt.lease.clone(), item_tag(item));
    blocking(move || {
        let tagged = repository.find_snapshots_by_tag(&tag)?.into_iter().map(|found| found.id);
        let named = named.and_then(|named| named.snapshot.parse().ok());
        for id in tagged.chain(named) {
            lease.may_write()?;
            repository.delete_snapshot(id)?;
        }
        Ok(())
    })
    .await
    .map_err(|error| attempt.trouble(error))
}
