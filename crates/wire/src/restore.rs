//! Restores.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::check::RestoreVolumeMapping;
use crate::checkpoint_item::Link;

/// Body of a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreBody {
    /// What to restore.
    pub restore: RestoreRequest,
}

/// What to restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreRequest {
    /// The constant provider.
    #[schema(pattern = "^fc4d5750-22e7-4798-8a46-f48f62c4c1da$")]
    pub provider_id: String,
    /// The record.
    #[schema(min_length = 1, max_length = 255)]
    pub checkpoint_id: String,
    /// Which of its backups, and where to.
    pub parameters: RestoreParameters,
}

/// Which backup, and where to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreParameters {
    /// The backup.
    #[schema(min_length = 1, max_length = 255)]
    pub checkpoint_item_id: String,
    /// Whether to start the server when done.
    pub power_on: bool,
    /// Where to.
    pub targets: RestoreTargets,
    /// The plan this is, and no other: refused if anything it rests on is not as it was. Not
    /// part of CSBS v1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub plan_id: Option<String>,
}

/// Where to: one server, in spite of the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreTargets {
    /// The server.
    #[schema(min_length = 1, max_length = 255)]
    pub server_id: String,
    /// Which disk backup goes to which disk; every disk backup must be there.
    pub volumes: Vec<RestoreVolumeMapping>,
    /// `OS::Nova::Server`, which it is when absent; not in answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub resource_type: Option<String>,
}

/// Answer to a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreAnswer {
    /// The restore.
    pub restore: Restore,
}

/// Answer to list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreList {
    /// One page.
    pub restores: Vec<Restore>,
    /// Where the next page is; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub restores_links: Option<Vec<Link>>,
}

/// One restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restore {
    /// Its id.
    pub id: String,
    /// `in_progress`, `success` or `fail`.
    pub status: String,
    /// The constant provider.
    pub provider_id: String,
    /// The record.
    pub checkpoint_id: String,
    /// The owner.
    pub project_id: String,
    /// Always `""`: what a request says there is not read.
    pub restore_target: String,
    /// State of the restored servers by id; empty until the end.
    pub resources_status: BTreeMap<String, String>,
    /// What went wrong by server id.
    pub resources_reason: BTreeMap<String, String>,
    /// As asked.
    pub parameters: RestoreParameters,
}
