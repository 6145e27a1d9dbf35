//! Cloud snapshots and server locks whose job is gone.

use kedge_core::job::{Job, Work};
use kedge_core::ports::{CloudError, ServerRef};

use super::Reconciled;
use crate::app::Parts;
use crate::error::Error;
use crate::job::{CLOUD_PREFIX, freeze_prefix};

/// The cloud is asked before the table of jobs: what a job makes in between is then known
/// to be alive. One server that fails keeps no other from being cleaned.
pub(super) async fn release(parts: &Parts, round: &mut Reconciled) -> Result<(), Error> {
    let unavailable = |error: CloudError| Error::Unavailable(error.text);
    let snapshots = parts.cloud.list_snapshots().await.map_err(unavailable)?;
    let locks = parts.cloud.list_locks().await.map_err(unavailable)?;
    let alive: Vec<String> =
        parts.store.list_live_jobs().await?.iter().map(name_in_cloud).collect();
    for (of, name) in snapshots.into_iter().filter(|(_, name)| is_leftover(name, &alive)) {
        let released = parts.cloud.delete_snapshots(&of, &name).await;
        count(round, &of, released);
    }
    for (of, holder) in locks.into_iter().filter(|(_, holder)| is_leftover(holder, &alive)) {
        let released = parts.cloud.unlock_server(&of, &holder).await;
        count(round, &of, released);
    }
    Ok(())
}

fn count(round: &mut Reconciled, of: &ServerRef, released: Result<(), CloudError>) {
    match released {
        Ok(()) => round.cloud_released += 1,
        Err(error) => {
            tracing::warn!(server.id = ?of.server, "leftovers of server {} stay: {error}", of.server);
        }
    }
}

fn is_leftover(name: &str, alive: &[String]) -> bool {
    name.starts_with(CLOUD_PREFIX) && !alive.iter().any(|job| name.starts_with(job))
}

/// What begins the names a job uses in the cloud: the item it backs up, or the restore it
/// runs.
fn name_in_cloud(job: &Job) -> String {
    match &job.work {
        Work::Protect { item, .. } | Work::Delete { item, .. } => freeze_prefix(item),
        Work::Restore { restore, .. } => format!("{CLOUD_PREFIX}{restore}"),
    }
}
