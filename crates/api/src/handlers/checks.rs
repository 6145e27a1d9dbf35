//! Can it be backed up? Can it be restored?

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use kedge_core::refusal::Refusal;
use kedge_service::context::Right;
use kedge_service::error::Error;
use kedge_service::explain::Explained;
use kedge_wire::check::{
    CheckResp, ProtectableAnswer, ReceiptList, ResourcesAction, ResourcesAnswer, RestorableAnswer,
};
use kedge_wire::explain::Explanation;

use crate::call::Call;
use crate::convert;
use crate::explain;
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
        ("explain" = Option<bool>, Query,
            description = "Adds to each answer every rule that refuses, what would mend it, \
                and on yes the plan. Not part of CSBS v1"),
        ("receipt" = Option<bool>, Query,
            description = "Keeps the answers to check_restorable as a signed record, for callers who \
                may restore. Not part of CSBS v1"),
    ),
)]
pub(crate) async fn check(
    State(api): State<Api>,
    call: Call,
    body: Body,
) -> Answer<ResourcesAnswer> {
    let context = call.enter_provider(&api, Right::Read).await?;
    let is_explained = call.query()?.explain()?;
    let is_kept = call.query()?.receipt()?;
    if is_kept && !context.may(Right::Write) {
        return Err(Error::Forbidden.into());
    }
    Ok(Json(match call.read(&api, body, requests::check).await? {
        Check::Protectable(asked) => {
            let questions = asked.iter().map(|asked| asked.question.clone()).collect();
            let protectable = if is_explained {
                let explained = api.app.explain_protectable(&context, questions).await?;
                explained_answers(&asked, &explained, explain::of_protect)
            } else {
                answered(&asked, &api.app.check_protectable(&context, questions).await?)
            };
            ResourcesAnswer::Protectable(ProtectableAnswer { protectable })
        }
        Check::Restorable(asked) => {
            let questions = asked.iter().map(|asked| asked.question.clone()).collect();
            let mut kept = None;
            let restorable = if is_kept {
                let (explained, receipt) = api.app.receipt_restorable(&context, questions).await?;
                kept = Some(convert::receipt(receipt));
                let mut answers = explained_answers(&asked, &explained, explain::of_restore);
                if !is_explained {
                    answers.iter_mut().for_each(|answer| answer.explanation = None);
                }
                answers
            } else if is_explained {
                let explained = api.app.explain_restorable(&context, questions).await?;
                explained_answers(&asked, &explained, explain::of_restore)
            } else {
                answered(&asked, &api.app.check_restorable(&context, questions).await?)
            };
            ResourcesAnswer::Restorable(RestorableAnswer { restorable, receipt: kept })
        }
    }))
}

/// Lists the records of answers that were kept, in their order.
///
/// `kedge evidence verify` checks a file of them. Not part of CSBS v1.
#[utoipa::path(
    get, path = "/v1/{project_id}/receipts", operation_id = "list_receipts", tag = "checks",
    responses((status = 200, description = "Some of them", body = ReceiptList)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("after" = Option<u64>, Query, minimum = 0,
            description = "The number of the last one seen; records are numbered from 1"),
    ),
)]
pub(crate) async fn receipts(State(api): State<Api>, call: Call) -> Answer<ReceiptList> {
    let context = call.enter(&api, Right::Read).await?;
    let after = call.query()?.sequence()?;
    let receipts = api.app.list_receipts(&context, after).await?;
    Ok(Json(ReceiptList { receipts: receipts.into_iter().map(convert::receipt).collect() }))
}

fn answered<Q>(asked: &[Asked<Q>], answers: &[Result<(), Refusal>]) -> Vec<CheckResp> {
    asked.iter().zip(answers).map(|(asked, answer)| convert::check_resp(asked, answer)).collect()
}

fn explained_answers<Q, Plan>(
    asked: &[Asked<Q>],
    explained: &[Explained<Plan>],
    explain: fn(&Explained<Plan>) -> Explanation,
) -> Vec<CheckResp> {
    let answer = |(asked, explained): (&Asked<Q>, &Explained<Plan>)| {
        let verdict = explained.explanation.verdict.as_ref();
        let verdict = verdict.map(|_| ()).map_err(Refusal::clone);
        let answer = convert::check_resp(asked, &verdict);
        CheckResp { explanation: Some(explain(explained)), ..answer }
    };
    asked.iter().zip(explained).map(answer).collect()
}
