//! Can it be backed up? Can it be restored?

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use kedge_core::refusal::Refusal;
use kedge_service::context::Right;
use kedge_wire::check::{
    CheckResp, ProtectableAnswer, ResourcesAction, ResourcesAnswer, RestorableAnswer,
};

use crate::call::Call;
use crate::convert;
use crate::requests::{self, Asked, Check};
use crate::routes::{Answer, Api};

/// Can these servers be backed up, or these backups restored?
///
/// One answer per question in the order asked, 200 even when all say no. Starts nothing,
/// changes nothing.
#[utoipa::path(
    post, path = "/v1/{project_id}/providers/{provider_id}/resources/action",
    operation_id = "check_resources", tag = "checks", request_body = ResourcesAction,
    responses((status = 200, description = "The answers", body = ResourcesAnswer)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("provider_id" = String, Path, description = "The constant provider"),
    ),
)]
pub(crate) async fn check(
    State(api): State<Api>,
    call: Call,
    body: Body,
) -> Answer<ResourcesAnswer> {
    let context = call.enter_provider(&api, Right::Read).await?;
    Ok(Json(match call.read(&api, body, requests::check).await? {
        Check::Protectable(asked) => {
            let questions = asked.iter().map(|asked| asked.question.clone()).collect();
            let answers = api.app.check_protectable(&context, questions).await?;
            let protectable = answered(&asked, &answers);
            ResourcesAnswer::Protectable(ProtectableAnswer { protectable })
        }
        Check::Restorable(asked) => {
            let questions = asked.iter().map(|asked| asked.question.clone()).collect();
            let answers = api.app.check_restorable(&context, questions).await?;
            let restorable = answered(&asked, &answers);
            ResourcesAnswer::Restorable(RestorableAnswer { restorable })
        }
    }))
}

fn answered<Q>(asked: &[Asked<Q>], answers: &[Result<(), Refusal>]) -> Vec<CheckResp> {
    asked.iter().zip(answers).map(|(asked, answer)| convert::check_resp(asked, answer)).collect()
}
