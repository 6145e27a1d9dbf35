//! Plans that explained answers name, and the leases they hold.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use kedge_core::ids::PlanId;
use kedge_service::context::Right;
use kedge_wire::checkpoint::Empty;
use kedge_wire::plan::{LeaseBody, LeaseList, PlanAnswer};

use crate::call::Call;
use crate::explain;
use crate::requests;
use crate::routes::{Answer, Api};

/// Shows a plan.
///
/// An explained answer that is yes names one; a restore may name it in turn. Not part of
/// CSBS v1.
#[utoipa::path(
    get, path = "/v1/{project_id}/plans/{plan_id}", operation_id = "show_plan", tag = "plans",
    responses((status = 200, description = "The plan", body = PlanAnswer)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("plan_id" = String, Path, description = "The plan"),
    ),
)]
pub(crate) async fn show(State(api): State<Api>, call: Call) -> Answer<PlanAnswer> {
    let context = call.enter(&api, Right::Read).await?;
    let id = PlanId::asked(&call.param("plan_id")?);
    let plan = api.app.get_plan(&context, &id).await?;
    Ok(Json(PlanAnswer { plan: explain::kept_plan(&plan) }))
}

/// Lists the plans that hold leases.
///
/// Not part of CSBS v1.
#[utoipa::path(
    get, path = "/v1/{project_id}/leases", operation_id = "list_leases", tag = "plans",
    responses((status = 200, description = "The plans", body = LeaseList)),
    params(("project_id" = String, Path, description = "The project")),
)]
pub(crate) async fn leases(State(api): State<Api>, call: Call) -> Answer<LeaseList> {
    let context = call.enter(&api, Right::Read).await?;
    let plans = api.app.list_leases(&context).await?;
    Ok(Json(LeaseList { plans: plans.iter().map(explain::kept_plan).collect() }))
}

/// Has a plan keep its backup from being deleted for a while.
///
/// Asked again, it counts anew from then. Not part of CSBS v1.
#[utoipa::path(
    post, path = "/v1/{project_id}/plans/{plan_id}/lease", operation_id = "take_lease", tag = "plans",
    request_body = LeaseBody,
    responses((status = 200, description = "The plan", body = PlanAnswer)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("plan_id" = String, Path, description = "The plan"),
    ),
)]
pub(crate) async fn take(State(api): State<Api>, call: Call, body: Body) -> Answer<PlanAnswer> {
    let context = call.enter(&api, Right::Write).await?;
    let seconds = call.read(&api, body, requests::lease).await?;
    let id = PlanId::asked(&call.param("plan_id")?);
    let plan = api.app.take_lease(&context, &id, Duration::from_secs(seconds)).await?;
    Ok(Json(PlanAnswer { plan: explain::kept_plan(&plan) }))
}

/// Ends a plan's lease.
///
/// Not part of CSBS v1.
#[utoipa::path(
    delete, path = "/v1/{project_id}/plans/{plan_id}/lease", operation_id = "end_lease", tag = "plans",
    responses((status = 200, description = "It is ended", body = Empty)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("plan_id" = String, Path, description = "The plan"),
    ),
)]
pub(crate) async fn end(State(api): State<Api>, call: Call) -> Answer<Empty> {
    let context = call.enter(&api, Right::Write).await?;
    let id = PlanId::asked(&call.param("plan_id")?);
    api.app.end_lease(&context, &id).await?;
    Ok(Json(Empty {}))
}
