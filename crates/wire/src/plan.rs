//! Plans that explained answers name, and leases they hold. No part of CSBS v1.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::check::RestoreVolumeMapping;

/// One plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanAnswer {
    /// The plan.
    pub plan: KeptPlan,
}

/// The plans of a project that hold leases, the one that ends first before others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseList {
    /// The plans.
    pub plans: Vec<KeptPlan>,
}

/// A restore as it was planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptPlan {
    /// Its id.
    pub id: String,
    /// The backup.
    pub checkpoint_item_id: String,
    /// The target.
    pub resource_id: String,
    /// Which disk backup goes to which disk.
    pub volumes: Vec<RestoreVolumeMapping>,
    /// What it rests on. A restore that names the plan is refused if any of it is another.
    pub preconditions: Vec<PlanFact>,
    /// When it was made.
    pub created_at: String,
    /// Until when it keeps the backup from being deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub lease_until: Option<String>,
}

/// A fact that a plan rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanFact {
    /// `checkpoint_item`, `server`, `volume_backup` or `volume`.
    pub of: String,
    /// Of which.
    pub id: String,
    /// Which property.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Body of the call that takes a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseBody {
    /// The lease.
    pub lease: LeaseParam,
}

/// How long a plan is to keep its backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseParam {
    /// From now on.
    #[schema(minimum = 1)]
    pub seconds: u64,
}
