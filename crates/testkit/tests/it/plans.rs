//! Plans that answers name, restores that name them, and leases they hold.

use std::time::Duration;

use kedge_core::checkpoint::Item;
use kedge_core::code::Code;
use kedge_core::ids::{PlanId, ServerId};
use kedge_core::resource::{Server, ServerStatus};
use kedge_service::context::{Context, Right};
use kedge_service::error::Error;
use kedge_testkit::{Harness, MEMBER, OTHER_PROJECT, PROJECT, READER, STRANGER};

use crate::support::*;

const MIB: usize = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

async fn context_of(harness: &Harness, user: &str, project: &str, right: Right) -> Context {
    let token = harness.token(user, project).await;
    harness.app.authorise(Some(&token), project, right).await.unwrap()
}

async fn plan_of(harness: &Harness, item: &Item, server: &Server) -> PlanId {
    let context = harness.context().await;
    let questions = vec![straight(item, server)];
    let explained = harness.app.explain_restorable(&context, questions).await.unwrap();
    explained[0].plan.clone().unwrap()
}

async fn site() -> (Harness, Server, Item) {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, MIB), &disk(2, MIB)]);
    let item = back_up(&harness, &server).await;
    (harness, server, item)
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    result.unwrap_err().code()
}

#[tokio::test]
async fn a_restore_that_names_its_plan_is_that_restore_or_none() {
    let (harness, server, item) = site().await;
    let plan = plan_of(&harness, &item, &server).await;
    let question = straight(&item, &server);
    // The server was stopped since: a restore would do, but it is not what was planned.
    harness.cloud.edit_server(&server.id, |it| it.status = ServerStatus::Shutoff);
    let refused = begin_planned(&harness, &item, question.clone(), Some(plan.clone())).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::PlanMoved);
    let text = format!("status of server ({}) was active, is shutoff", server.id);
    assert!(refused.to_string().contains(&text), "{refused}");
    harness.cloud.edit_server(&server.id, |it| it.status = ServerStatus::Active);
    // The order of a mapping means nothing.
    let mut pairs = question.mapping.pairs().to_vec();
    pairs.reverse();
    let mapping = kedge_core::restore::Mapping::new(pairs).unwrap();
    let question = kedge_core::restore::Question { mapping, ..question };
    let restore = begin_planned(&harness, &item, question, Some(plan)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    let status = find_restore(&harness, &restore).await.status;
    assert_eq!(status, kedge_service::restore::RestoreStatus::Success);
}

/// Between admission and the first write there is time for anything.
#[tokio::test]
async fn what_moves_after_admission_stops_the_restore_before_its_first_write() {
    let (harness, server, item) = site().await;
    let plan = plan_of(&harness, &item, &server).await;
    let question = straight(&item, &server);
    let restore = begin_planned(&harness, &item, question, Some(plan)).await.unwrap();
    harness.cloud.edit_server(&server.id, |it| it.volumes[1].size_bytes *= 2);
    let before = contents(&harness, &server);
    harness.run_jobs_to_their_end().await;
    let ended = find_restore(&harness, &restore).await;
    assert!(ended.reason.contains("KEDGE.0015"), "{}", ended.reason);
    assert!(ended.reason.contains("size_bytes"), "{}", ended.reason);
    let after = contents(&harness, &server);
    assert!(after[0] == before[0] && after[1][..MIB] == before[1][..MIB]);
    let running = harness.cloud.server(&server.id).unwrap().status;
    assert_eq!(running, ServerStatus::Active, "it was not even stopped");
}

#[tokio::test]
async fn a_plan_is_of_one_question_and_one_project() {
    let (harness, server, item) = site().await;
    let plan = plan_of(&harness, &item, &server).await;
    let mut question = straight(&item, &server);
    question.server = ServerId::from(harness.fresh_uuid());
    let other = begin_planned(&harness, &item, question, Some(plan.clone())).await;
    assert_eq!(code(other), Code::BadParameter);
    let unknown = PlanId::from(harness.fresh_uuid());
    let question = straight(&item, &server);
    let none = begin_planned(&harness, &item, question, Some(unknown)).await;
    assert_eq!(code(none), Code::PlanNotFound);
    let stranger = context_of(&harness, STRANGER, OTHER_PROJECT, Right::Write).await;
    assert_eq!(code(harness.app.get_plan(&stranger, &plan).await), Code::PlanNotFound);
    assert_eq!(code(harness.app.take_lease(&stranger, &plan, HOUR).await), Code::PlanNotFound);
    assert_eq!(code(harness.app.end_lease(&stranger, &plan).await), Code::PlanNotFound);
    // Who may not restore gets no plan to name.
    let reader = context_of(&harness, READER, PROJECT, Right::Read).await;
    let questions = vec![straight(&item, &server)];
    let explained = harness.app.explain_restorable(&reader, questions).await.unwrap();
    assert_eq!(explained[0].plan, None);
}

#[tokio::test]
async fn a_lease_keeps_a_backup_until_it_ends() {
    let (harness, server, item) = site().await;
    let context = context_of(&harness, MEMBER, PROJECT, Right::Write).await;
    let plan = plan_of(&harness, &item, &server).await;
    assert!(harness.app.list_leases(&context).await.unwrap().is_empty());
    let leased = harness.app.take_lease(&context, &plan, HOUR).await.unwrap();
    assert_eq!(harness.app.list_leases(&context).await.unwrap(), [leased]);
    let delete = async || harness.app.delete(&context, &item.checkpoint_id, None).await;
    let refused = delete().await.unwrap_err();
    assert_eq!(refused.code(), Code::ItemLeased);
    assert!(refused.to_string().contains(plan.as_str()), "{refused}");
    assert_eq!(harness.app.get_item(&context, &item.id).await.unwrap().status, item.status);
    harness.clock.advance(HOUR);
    assert!(harness.app.list_leases(&context).await.unwrap().is_empty());
    delete().await.unwrap();
    harness.run_jobs_to_their_end().await;
    // What is gone cannot be kept.
    assert_eq!(code(harness.app.take_lease(&context, &plan, HOUR).await), Code::PlanNotFound);
}

#[tokio::test]
async fn leases_are_so_many_so_long_and_can_be_broken() {
    let (harness, server, item) = site().await;
    let context = context_of(&harness, MEMBER, PROJECT, Right::Write).await;
    let most = kedge_service::settings::Limits::default();
    let mut plans = Vec::new();
    for _ in 0..=most.leases_max {
        plans.push(plan_of(&harness, &item, &server).await);
    }
    let last = plans.pop().unwrap();
    for plan in &plans {
        harness.app.take_lease(&context, plan, HOUR).await.unwrap();
    }
    let taken = harness.app.take_lease(&context, &last, HOUR).await;
    assert_eq!(code(taken), Code::TooManyLeases);
    harness.app.take_lease(&context, &plans[0], HOUR).await.unwrap();
    for length in [Duration::ZERO, most.lease_time_max + Duration::from_secs(1)] {
        let taken = harness.app.take_lease(&context, &plans[0], length).await;
        assert_eq!(code(taken), Code::BadParameter);
    }
    let admin = context_of(&harness, kedge_testkit::ADMIN, PROJECT, Right::Write).await;
    for plan in &plans {
        harness.app.end_lease(&admin, plan).await.unwrap();
    }
    harness.app.delete(&context, &item.checkpoint_id, None).await.unwrap();
}
