//! Backing up a server now, and the record that makes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::tag::Tag;

/// Body of the call on one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProtectBody {
    /// What to do.
    pub protect: Protect,
}

/// How to back it up; every field may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Protect {
    /// Name; `manualbk_xxxx` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255, pattern = "^[A-Za-z0-9_-]{1,255}$")]
    pub backup_name: Option<String>,
    /// Anything without `<` and `>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 255, pattern = "^[^<>]*$")]
    pub description: Option<String>,
    /// False asks for a full backup; absent and true build on the last one if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental: Option<bool>,
    /// `OS::Nova::Server`, which it is when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub resource_type: Option<String>,
    /// 1 to 10 tags with different keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 10)]
    pub tags: Option<Vec<Tag>>,
    /// More.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_info: Option<ProtectExtraInfo>,
}

/// The extra information that is understood; other keys are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProtectExtraInfo {
    /// Disks to leave out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude_volumes: Option<Vec<String>>,
}

/// Answer to protect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointBody {
    /// The record.
    pub checkpoint: Checkpoint,
}

/// The record of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// Its id.
    pub id: String,
    /// `protecting`, and later as its backups.
    pub status: String,
    /// When it was asked for.
    pub created_at: String,
    /// The owner.
    pub project_id: String,
    /// Always null: a server is backed up as a whole.
    pub resource_graph: Option<String>,
    /// Always null.
    pub extra_info: Option<String>,
    /// What ran.
    pub protection_plan: ProtectionPlan,
}

/// What ran: for a manual backup a made-up plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProtectionPlan {
    /// `fake_` and a UUID for a manual backup.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The servers.
    pub resources: Vec<PlanResource>,
}

/// A server of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanResource {
    /// The server.
    pub id: String,
    /// `OS::Nova::Server`.
    #[serde(rename = "type")]
    pub resource_type: String,
    /// The server's name.
    pub name: String,
    /// An object: clients read a text here as another resource, or fail on it.
    pub extra_info: BTreeMap<String, Value>,
}

/// Answer to a deletion: an object without members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Empty {}
