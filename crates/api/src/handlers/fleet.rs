//! What could not be restored?

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use kedge_service::context::Right;
use kedge_wire::fleet::{FleetBody, FleetLine};

use crate::call::Call;
use crate::error::ApiError;
use crate::fleet;
use crate::requests;
use crate::routes::Api;

/// Which servers could not be restored, now or after a loss?
///
/// Each server is asked about with its own latest backups and itself for a target, every disk
/// to where it came from. The answer comes line by line, each a JSON document, as servers are asked about; the last
/// line tells what came of all. Starts nothing, changes nothing. One such question at a time
/// is asked of a project. Not part of CSBS v1.
#[utoipa::path(
    post, path = "/v1/{project_id}/fleet", operation_id = "ask_fleet", tag = "checks",
    request_body = FleetBody,
    responses((status = 200, description = "The answers, a line each", body = FleetLine,
        content_type = "application/x-ndjson")),
    params(("project_id" = String, Path, description = "The project")),
)]
pub(crate) async fn ask(
    State(api): State<Api>,
    call: Call,
    body: Body,
) -> Result<Response, ApiError> {
    let context = call.enter(&api, Right::Read).await?;
    let (question, show) = call.read(&api, body, requests::fleet).await?;
    let fleet = api.app.ask_fleet(context, question).await?;
    let lines = Body::from_stream(fleet::lines(fleet, show));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}
