//! Cloud snapshots and server locks whose job is gone.

use std::collections::HashSet;

use kedge_core::job::{Job, Work};

use super::Reconciled;
use crate::app::Parts;
use crate::error::Error;
use crate::job::{CLOUD_PREFIX, cloud_name};

/// The cloud is asked before the table of jobs: what a job makes in between is then known
/// to be alive.
pub(super) async fn release(parts: &Parts, round: &mut Reconciled) -> Result<(), Error> {
    let unavailable = |error: kedge_core::ports::CloudError| Error::Unavailable(error.text);
    let snapshots = parts.cloud.list_snapshots().await.map_err(unavailable)?;
    let locks = parts.cloud.list_locks().await.map_err(unavailable)?;
    let alive: HashSet<String> =
        parts.store.list_live_jobs().await?.iter().map(name_in_cloud).collect();
    for (of, name) in snapshots.into_iter().filter(|(_, name)| is_leftover(name, &alive)) {
        parts.cloud.delete_snapshots(&of, &name).await.map_err(unavailable)?;
        round.cloud_released += 1;
    }
    for (of, holder) in locks.into_iter().filter(|(_, holder)| is_leftover(holder, &alive)) {
        parts.cloud.unlock_server(&of, &holder).await.map_err(unavailable)?;
        round.cloud_released += 1;
    }
    Ok(())
}

fn is_leftover(name: &str, alive: &HashSet<String>) -> bool {
    name.starts_with(CLOUD_PREFIX) && !alive.contains(name)
}

/// The name a job uses in the cloud: after the item it backs up, or the restore it runs.
fn name_in_cloud(job: &Job) -> String {
    match &job.work {
        Work::Protect { item, .. } | Work::Delete { item, .. } => cloud_name(item),
        Work::Restore { restore, .. } => format!("{CLOUD_PREFIX}{restore}"),
    }
}
