//! Version documents.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::checkpoint_item::Link;

/// The versions of this API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Versions {
    /// One.
    pub versions: Vec<Version>,
}

/// A version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// `v1.0`.
    pub id: String,
    /// `CURRENT`.
    pub status: String,
    /// Where it is: some clients call the path they find here.
    pub links: Vec<Link>,
}

/// Whether the service is alive or ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}
