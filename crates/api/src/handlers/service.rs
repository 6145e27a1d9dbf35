//! About the service itself: versions, health, its own description.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use kedge_wire::checkpoint_item::Link;
use kedge_wire::version::{Health, Version, Versions};

use crate::call::Call;
use crate::error::ApiError;
use crate::openapi::openapi_json;
use crate::routes::{Answer, Api};

/// The versions of this API, without a token: some clients ask before every call.
#[utoipa::path(
    get, path = "/", operation_id = "list_versions", tag = "service", security(),
    responses((status = 300, description = "The versions", body = Versions)),
)]
pub(crate) async fn versions(
    State(api): State<Api>,
    call: Call,
) -> Result<(StatusCode, Json<Versions>), ApiError> {
    let href = format!("{}/v1/", call.base(&api)?);
    let version = Version {
        id: "v1.0".to_owned(),
        status: "CURRENT".to_owned(),
        links: vec![Link { rel: "self".to_owned(), href }],
    };
    Ok((StatusCode::MULTIPLE_CHOICES, Json(Versions { versions: vec![version] })))
}

/// The same where the versions point to.
#[utoipa::path(
    get, path = "/v1", operation_id = "list_versions_of_v1", tag = "service", security(),
    responses((status = 300, description = "The versions", body = Versions)),
)]
#[expect(dead_code, reason = "documents the second path of `versions`")]
fn versions_below() {}

/// Says that the process answers.
#[utoipa::path(
    get, path = "/healthz", operation_id = "show_health", tag = "service", security(),
    responses((status = 200, description = "It does", body = Health)),
)]
pub(crate) async fn alive() -> Json<Health> {
    Json(Health { status: "ok".to_owned() })
}

/// Says whether calls can be answered: the catalogue does.
#[utoipa::path(
    get, path = "/readyz", operation_id = "show_readiness", tag = "service", security(),
    responses((status = 200, description = "They can", body = Health)),
)]
pub(crate) async fn ready(State(api): State<Api>) -> Answer<Health> {
    api.app.ready().await?;
    Ok(Json(Health { status: "ok".to_owned() }))
}

/// Describes this API.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "show_openapi", tag = "service", security(),
    responses((status = 200, description = "An OpenAPI document", body = Object)),
)]
pub(crate) async fn openapi() -> Result<Response, ApiError> {
    Ok(([(CONTENT_TYPE, "application/json")], openapi_json()?).into_response())
}
