//! Questions about every server of a project. No part of CSBS v1.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::tag::Tag;

/// Body of the call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetBody {
    /// What is asked.
    pub fleet: FleetParam,
}

/// What could not be restored?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetParam {
    /// Which servers; all of the project without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub scope: Option<FleetScope>,
    /// What is supposed to be lost; nothing without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub lost: Option<FleetLosses>,
    /// `refused` (the default) tells of servers that could not be restored, `all` of every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub show: Option<String>,
    /// After so long no more is asked; 60 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 600)]
    pub seconds: Option<u64>,
}

/// Which servers of a project.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetScope {
    /// Those in this availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_length = 1, max_length = 255)]
    pub zone: Option<String>,
    /// Those with a backup that has this tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tag: Option<Tag>,
}

/// What is supposed to be lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetLosses {
    /// Availability zones, with everything that the operator said lies in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_items = 1, max_items = 64)]
    pub zones: Option<Vec<String>>,
    /// The store of the backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub store: Option<bool>,
    /// The key that opens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub key: Option<bool>,
}

/// One line of the answer: one of the three. The last is a summary, or the answer was cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FleetLine {
    /// About one server.
    Server(FleetServer),
    /// About all that were asked about.
    Summary(FleetSummary),
    /// Why there is no summary.
    Error(FleetError),
}

/// Whether one server could be restored, from a backup of its own to where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetServer {
    /// The server.
    pub resource_id: String,
    /// Its name; empty when unknown.
    pub resource_name: String,
    /// Its zone; empty when unknown.
    pub resource_az: String,
    /// Yes or no.
    pub result: bool,
    /// The backup the answer is about: the latest that could be restored, or that only the
    /// loss stands against, or else the latest; empty where there is none.
    pub checkpoint_item_id: String,
    /// The moment that one holds; empty where there is none.
    pub protected_at: String,
    /// How many later backups were passed over, because they could not be restored.
    pub passed_over: u64,
    /// Everything against it; none when `result` is true.
    pub causes: Vec<FleetCause>,
}

/// A reason against restoring a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetCause {
    /// For programs.
    pub error_code: String,
    /// For people.
    pub error_msg: String,
    /// Whether it is so by the supposed loss alone.
    pub supposed: bool,
}

/// What came of a question about many servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetSummary {
    /// Servers asked about.
    pub servers: u64,
    /// Those that could be restored.
    pub restorable: u64,
    /// Those that could not.
    pub refused: u64,
    /// Those that stand in zones supposed to be lost: none where a zone is misspelt.
    pub lost: u64,
    /// Whether every server was asked about that the cloud lists or that has backups.
    pub complete: bool,
    /// Why not: `time_over`; `cloud_silent` where only servers with backups are known.
    pub gaps: Vec<String>,
    /// How many servers each reason stands against, the commonest first. A server may be
    /// counted in several.
    pub causes: Vec<FleetGroup>,
}

/// Servers that could not be restored for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetGroup {
    /// For programs.
    pub error_code: String,
    /// What it means.
    pub meaning: String,
    /// Whether it is so by the supposed loss alone.
    pub supposed: bool,
    /// How many.
    pub servers: u64,
}

/// Why the rest was not asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetError {
    /// For programs.
    pub error_code: String,
    /// For people.
    pub error_msg: String,
}
