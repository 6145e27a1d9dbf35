//! Backing up a server, and deleting backups.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use kedge_core::ids::CheckpointId;
use kedge_service::context::Right;
use kedge_wire::checkpoint::{CheckpointBody, Empty, ProtectBody};

use crate::call::Call;
use crate::convert;
use crate::requests;
use crate::routes::{Answer, Api};

/// Backs up a server now.
///
/// The backup can be listed when the answer arrives; the work goes on in the background.
#[utoipa::path(
    post, path = "/v1/{project_id}/providers/{provider_id}/resources/{resource_id}/action",
    operation_id = "protect_resource", tag = "backups", request_body = ProtectBody,
    responses((status = 200, description = "The record of the backup", body = CheckpointBody)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("provider_id" = String, Path, description = "The constant provider"),
        ("resource_id" = String, Path, description = "The server"),
    ),
)]
pub(crate) async fn protect(
    State(api): State<Api>,
    call: Call,
    body: Body,
) -> Answer<CheckpointBody> {
    let context = call.enter_provider(&api, Right::Write).await?;
    let server = call.param("resource_id")?;
    let request = call.read(&api, body, |body| requests::protect(&server, body)).await?;
    let checkpoint = api.app.protect(&context, request).await?;
    Ok(Json(CheckpointBody { checkpoint: convert::checkpoint(&checkpoint) }))
}

/// Deletes every backup of a record, or those named; all or none.
#[utoipa::path(
    delete, path = "/v1/{project_id}/providers/{provider_id}/checkpoints/{checkpoint_id}",
    operation_id = "delete_checkpoint", tag = "backups",
    responses((status = 200, description = "They are being deleted", body = Empty)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("provider_id" = String, Path, description = "The constant provider"),
        ("checkpoint_id" = String, Path, description = "The record"),
        ("checkpoint_items" = Option<String>, Query,
            description = "Backups of it, separated by commas; may be repeated"),
    ),
)]
pub(crate) async fn delete(State(api): State<Api>, call: Call) -> Answer<Empty> {
    let context = call.enter_provider(&api, Right::Write).await?;
    let checkpoint = CheckpointId::asked(&call.param("checkpoint_id")?);
    let named = call.query()?.checkpoint_items()?;
    api.app.delete(&context, &checkpoint, named).await?;
    Ok(Json(Empty {}))
}
