//! Proofs of backups: read back, inspect, boot.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use kedge_core::ids::ItemId;
use kedge_service::context::Right;
use kedge_wire::proof::{ProofAnswer, ProofBody, ProofList};

use crate::call::Call;
use crate::proof;
use crate::requests;
use crate::routes::{Answer, Api};

/// Asks for a proof of a backup.
///
/// It waits for its turn; one that waits already is answered again. Not part of CSBS v1.
#[utoipa::path(
    post, path = "/v1/{project_id}/checkpoint_items/{checkpoint_item_id}/proofs", operation_id = "create_proof", tag = "proofs",
    request_body = ProofBody,
    responses((status = 200, description = "The proof", body = ProofAnswer)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("checkpoint_item_id" = String, Path, description = "The backup"),
    ),
)]
pub(crate) async fn create(State(api): State<Api>, call: Call, body: Body) -> Answer<ProofAnswer> {
    let context = call.enter(&api, Right::Write).await?;
    let kind = call.read(&api, body, requests::proof).await?;
    let item = ItemId::asked(&call.param("checkpoint_item_id")?);
    let asked = api.app.create_proof(&context, &item, kind).await?;
    Ok(Json(ProofAnswer { proof: proof::proof(&asked) }))
}

/// Lists the proofs of a backup, the latest first.
///
/// Not part of CSBS v1.
#[utoipa::path(
    get, path = "/v1/{project_id}/checkpoint_items/{checkpoint_item_id}/proofs", operation_id = "list_proofs", tag = "proofs",
    responses((status = 200, description = "The proofs", body = ProofList)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("checkpoint_item_id" = String, Path, description = "The backup"),
    ),
)]
pub(crate) async fn list(State(api): State<Api>, call: Call) -> Answer<ProofList> {
    let context = call.enter(&api, Right::Read).await?;
    let item = ItemId::asked(&call.param("checkpoint_item_id")?);
    let proofs = api.app.list_proofs(&context, &item).await?;
    Ok(Json(ProofList { proofs: proofs.iter().map(proof::proof).collect() }))
}
