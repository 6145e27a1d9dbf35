//! What each kind of job does, one arrow at a time. An arrow does its work, commits the
//! result with the next state in one transaction, and returns that state.

pub(crate) mod delete;
pub(crate) mod protect;
pub(crate) mod restore;

use std::sync::Arc;

use kedge_core::checkpoint::Item;
use kedge_core::ids::{ItemId, JobId};
use kedge_core::ports::ServerRef;
use kedge_engine::Session;

use crate::attempt::{Attempt, Trouble};
use crate::repositories::{SharedRepository, blocking, engine_time};

/// What begins the name of every freeze made for an item; the fence of its maker follows.
pub(crate) fn freeze_prefix(item: &ItemId) -> String {
    format!("{CLOUD_PREFIX}{item}-")
}

/// What begins every name of ours in a cloud.
pub(crate) const CLOUD_PREFIX: &str = "kedge-";

/// The tag by which an item's repository snapshots are found.
pub(crate) fn item_tag(item: &ItemId) -> String {
    format!("{ITEM_TAG_PREFIX}{item}")
}

/// The name of a job's sessions in a repository's lock objects.
pub(crate) fn session_name(job: &JobId) -> String {
    format!("{SESSION_PREFIX}{job}")
}

/// What begins the name of every session of ours in a repository.
pub(crate) const SESSION_PREFIX: &str = "kedge-job-";

/// What begins every such tag.
pub(crate) const ITEM_TAG_PREFIX: &str = "kedge-item:";

/// The right to use the repository, marked by a lock object that is named after the job:
/// what a dead attempt left is found and removed, and an outsider's restic does not prune
/// beside us.
async fn session(
    attempt: &Attempt,
    repository: &SharedRepository,
) -> Result<Arc<Session>, Trouble> {
    if let Some(session) = attempt.session() {
        return Ok(session);
    }
    attempt.may_write()?;
    let (repository, gate) = (repository.clone(), attempt.lease.clone());
    let (name, cancel) = (session_name(&attempt.job.id), attempt.stop.clone());
    let now = engine_time(attempt.parts.clock.now());
    let session = blocking(move || {
        repository.remove_session_locks(&name)?;
        repository.begin_session(&name, now, gate, cancel)
    })
    .await
    .map_err(|error| attempt.trouble(error))?;
    let session = Arc::new(session);
    attempt.keep_session(session.clone());
    Ok(session)
}

async fn item(attempt: &Attempt, id: &ItemId) -> Result<Item, Trouble> {
    let found = attempt.parts.store.find_item(&attempt.job.project_id, id).await?;
    found.ok_or_else(|| Trouble::Fault(format!("bug: a job works on {id}, which is not there")))
}

fn source_of(item: &Item) -> ServerRef {
    ServerRef { project: item.project_id.clone(), server: item.source.id.clone() }
}
