//! What each kind of job does, one arrow at a time. An arrow does its work, commits the
//! result with the next state in one transaction, and returns that state.

pub(crate) mod delete;
pub(crate) mod protect;
pub(crate) mod restore;

use kedge_core::checkpoint::Item;
use kedge_core::ids::ItemId;
use kedge_core::ports::ServerRef;

use crate::attempt::{Attempt, Trouble};

/// The name under which everything an item's job makes in a cloud is found again.
pub(crate) fn cloud_name(item: &ItemId) -> String {
    format!("{CLOUD_PREFIX}{item}")
}

/// What begins every name of ours in a cloud.
pub(crate) const CLOUD_PREFIX: &str = "kedge-";

/// The tag by which an item's repository snapshots are found.
pub(crate) fn item_tag(item: &ItemId) -> String {
    format!("{ITEM_TAG_PREFIX}{item}")
}

/// What begins the name of every writing session of ours in a repository.
pub(crate) const SESSION_PREFIX: &str = "kedge-job-";

/// What begins every such tag.
pub(crate) const ITEM_TAG_PREFIX: &str = "kedge-item:";

async fn item(attempt: &Attempt, id: &ItemId) -> Result<Item, Trouble> {
    let found = attempt.parts.store.find_item(&attempt.job.project_id, id).await?;
    found.ok_or_else(|| Trouble::Fault(format!("bug: a job works on {id}, which is not there")))
}

fn source_of(item: &Item) -> ServerRef {
    ServerRef { project: item.project_id.clone(), server: item.source.id.clone() }
}
