//! Restores.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use kedge_core::ids::RestoreId;
use kedge_service::context::Right;
use kedge_wire::restore::{RestoreAnswer, RestoreBody, RestoreList};

use crate::call::Call;
use crate::convert;
use crate::requests;
use crate::routes::{Answer, Api};

/// Restores a backup to a server.
///
/// Refuses with the code that `check_restorable` gives; the work goes on in the
/// background.
#[utoipa::path(
    post, path = "/v1/{project_id}/restores", operation_id = "create_restore", tag = "restores", request_body = RestoreBody,
    responses((status = 200, description = "The restore", body = RestoreAnswer)),
    params(("project_id" = String, Path, description = "The project")),
)]
pub(crate) async fn restore(
    State(api): State<Api>,
    call: Call,
    body: Body,
) -> Answer<RestoreAnswer> {
    let context = call.enter(&api, Right::Write).await?;
    let request = call.read(&api, body, requests::restore).await?;
    let restore = api.app.restore(&context, request).await?;
    Ok(Json(RestoreAnswer { restore: convert::restore(&restore) }))
}

/// Lists restores, newest first.
#[utoipa::path(
    get, path = "/v1/{project_id}/restores", operation_id = "list_restores", tag = "restores",
    responses((status = 200, description = "One page", body = RestoreList)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("limit" = Option<u64>, Query, minimum = 1,
            description = "Entries of a page; more than 1000 are 1000"),
        ("marker" = Option<String>, Query, max_length = 255,
            description = "The last entry of the page before"),
    ),
)]
pub(crate) async fn list(State(api): State<Api>, call: Call) -> Answer<RestoreList> {
    let context = call.enter(&api, Right::Read).await?;
    let query = call.query()?;
    let marker = query.restore_marker()?;
    let page = api.app.list_restores(&context, query.limit()?, marker.as_ref()).await?;
    let next = match page.restores.last().filter(|_| page.has_more) {
        Some(last) => Some(call.link(&api, &query.after(last.id.as_str()))?),
        None => None,
    };
    Ok(Json(RestoreList {
        restores: page.restores.iter().map(convert::restore).collect(),
        restores_links: next.map(convert::next_link),
    }))
}

/// Shows a restore.
#[utoipa::path(
    get, path = "/v1/{project_id}/restores/{restore_id}", operation_id = "show_restore", tag = "restores",
    responses((status = 200, description = "The restore", body = RestoreAnswer)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("restore_id" = String, Path, description = "The restore"),
    ),
)]
pub(crate) async fn show(State(api): State<Api>, call: Call) -> Answer<RestoreAnswer> {
    let context = call.enter(&api, Right::Read).await?;
    let id = RestoreId::asked(&call.param("restore_id")?);
    let restore = api.app.get_restore(&context, &id).await?;
    Ok(Json(RestoreAnswer { restore: convert::restore(&restore) }))
}
