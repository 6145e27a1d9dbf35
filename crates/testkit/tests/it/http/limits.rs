//! What one caller, and all of them, may take; and that what they took is given back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kedge_api::BeforeCall;
use kedge_cloud::sim::SimOp;
use kedge_service::settings::Limits;
use kedge_store::Outage;

use super::*;

/// Longest wait of a test for what has to happen: only a failing test takes it.
const PATIENCE: Duration = Duration::from_secs(60);

fn limited(limits: Limits) -> Settings {
    Settings { limits, ..Settings::default() }
}

#[tokio::test]
async fn health_needs_no_token_and_readiness_needs_the_catalogue() {
    let site = Site::new().await;
    let nobody = site.nobody();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(nobody.get_from(path).await.ok(), json!({"status": "ok"}), "{path}");
    }
    site.harness.store.set_outage(Outage::Total);
    assert_eq!(nobody.get_from("/healthz").await.ok(), json!({"status": "ok"}));
    nobody.get_from("/readyz").await.assert_refused(503, "CSBS.9998", "System not support");
}

#[tokio::test]
async fn metrics_name_routes_and_never_projects_servers_or_users() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    caller.check(&saved.question(&server)).await.ok();
    caller.get(&format!("/checkpoint_items/{}?name={MEMBER}-x", saved.item)).await.ok();
    caller.get_from(&format!("/{}/{MEMBER}-x", server.id)).await;
    caller.naming(OTHER_PROJECT).get("/restores").await;
    let odd = caller.request("BREW".parse().unwrap(), &caller.path("/restores"), Body::empty());
    caller.send(odd).await;
    Saved::begin(&caller, &server).await;

    let text = site.metrics_text().await;
    for line in [
        r#"route="/v1/{project_id}/checkpoint_items/{checkpoint_item_id}",method="GET",status="2xx"}"#,
        r#"route="none",method="GET",status="4xx"}"#,
        r#"method="other""#,
        "kedge_jobs_queued 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    let token = caller.token.as_ref().unwrap();
    let secret = [PROJECT, OTHER_PROJECT, server.id.as_str(), &saved.item, &saved.record, token];
    for word in secret.into_iter().chain(["ann-x", "BREW", "demo", "db-1"]) {
        assert!(!text.contains(word), "{word} is in {text}");
    }
    caller.get_from("/metrics").await.assert_refused(404, "APIGW.0101", "");
}

/// Holds each call below `/v1/{project_id}` while armed.
fn holding(armed: &Arc<AtomicBool>) -> BeforeCall {
    let armed = armed.clone();
    BeforeCall(Arc::new(move |route: &str| {
        let holds = route.starts_with("/v1/{") && armed.load(Ordering::SeqCst);
        Box::pin(async move {
            if holds {
                std::future::pending::<()>().await;
            }
        })
    }))
}

#[tokio::test]
async fn a_full_service_turns_calls_away_at_once_and_lives_on() {
    let armed = Arc::new(AtomicBool::new(false));
    let site = Site::around(Harness::new().await, |config| {
        config.limits.requests_max = 1;
        config.before_call = Some(holding(&armed));
    });
    let caller = site.member().await;
    armed.store(true, Ordering::SeqCst);
    let mut held = Box::pin(caller.get("/checkpoint_items"));
    assert!(polled_once(&mut held).await.is_none());
    let answer = site.nobody().get_from("/v3").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    caller.get("/restores").await.assert_refused(503, "CSBS.9998", "too many requests at once");
    site.nobody().get_from("/healthz").await.ok();
    drop(held);
    armed.store(false, Ordering::SeqCst);
    caller.get("/restores").await.ok();
}

async fn polled_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let once = std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    });
    once.await
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_504() {
    let armed = Arc::new(AtomicBool::new(false));
    let held = holding(&armed);
    let site = Site::around(Harness::new().await, |config| {
        config.limits.request_time = Duration::from_secs(1);
        config.before_call = Some(held);
    });
    let caller = site.member().await;
    armed.store(true, Ordering::SeqCst);
    caller.get("/restores").await.assert_refused(504, "KEDGE.5040", "the request took too long");
}

/// Unknown is never yes, and a silent cloud is no time-out.
#[tokio::test]
async fn a_silent_cloud_is_an_answer_per_question_and_none_is_yes() {
    let limits = Limits { request_time: Duration::from_secs(2), ..Limits::default() };
    let site = Site::with(limited(limits)).await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    site.harness.cloud.hang(SimOp::FindServer);
    let mut questions = saved.question(&server);
    let one = questions["check_restorable"][0].clone();
    let mut other = one.clone();
    other["checkpoint_item_id"] = json!("unknown");
    questions["check_restorable"] = json!([one, other]);
    site.harness.cloud.clear_write_log();
    let (question, restore) = (protectable(server.id.as_str()), saved.restore_to(&server));
    let (restorable, protectable, restored, protected) = tokio::join!(
        caller.check(&questions),
        caller.check(&question),
        caller.restore(&restore),
        caller.protect(server.id.as_str(), json!({})),
    );
    let restorable = restorable.ok();
    let entries = restorable["restorable"].as_array().unwrap();
    let codes: Vec<_> = entries.iter().map(|entry| text(&entry["error_code"])).collect();
    assert_eq!(codes, ["KEDGE.0001", "CSBS.3001"]);
    assert!(entries.iter().all(|entry| entry["result"] == false));
    let protectable = protectable.ok();
    let entry = only_entry(&protectable);
    assert_eq!((&entry["result"], &entry["error_code"]), (&json!(false), &json!("KEDGE.0001")));
    for answer in [restored, protected] {
        answer.assert_refused(503, "KEDGE.0001", "The cloud did not answer");
    }
    site.harness.cloud.release(SimOp::FindServer);
    site.harness.run_jobs_to_their_end().await;
    assert!(site.harness.cloud.write_log().is_empty());
    assert_eq!(caller.get("/checkpoint_items/count").await.ok(), json!({"count": 1}));
    assert_eq!(only_entry(&caller.check(&saved.question(&server)).await.ok())["result"], true);
}

/// Both may take all the time a call has, so they must not take it one after the other.
#[tokio::test]
async fn the_repository_is_asked_while_the_cloud_is_silent() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let repository = site.harness.places.store_of(&kedge_core::ids::ProjectId::new(PROJECT));
    let before = repository.recorded().len();
    site.harness.cloud.hang(SimOp::FindServer);
    let question = saved.question(&server);
    let check = tokio::spawn(async move { caller.check(&question).await.ok() });
    until(|| repository.recorded().len() > before).await;
    site.harness.cloud.release(SimOp::FindServer);
    assert_eq!(only_entry(&check.await.unwrap())["result"], true);
}

#[tokio::test]
async fn a_cloud_that_fails_is_as_unknown_as_one_that_is_silent() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let broken = kedge_core::ports::CloudError::retryable("secret of the cloud");
    site.harness.cloud.fail_always(SimOp::FindServer, broken);
    let answer = caller.check(&protectable(server.id.as_str())).await;
    assert!(!answer.text.contains("secret"), "{}", answer.text);
    assert_eq!(only_entry(&answer.ok())["error_code"], "KEDGE.0001");
}

#[tokio::test]
async fn a_repository_out_of_reach_is_an_answer_and_never_yes() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let project = kedge_core::ids::ProjectId::new(PROJECT);
    let repository = site.harness.places.store_of(&project);
    repository.break_down();
    let answer = caller.check(&saved.question(&server)).await.ok();
    let entry = only_entry(&answer);
    assert_eq!((&entry["result"], &entry["error_code"]), (&json!(false), &json!("KEDGE.0005")));
    let answer = caller.restore(&saved.restore_to(&server)).await;
    answer.assert_refused(503, "KEDGE.0005", "The backup repository cannot be reached.");
    repository.repair();
    assert_eq!(only_entry(&caller.check(&saved.question(&server)).await.ok())["result"], true);
}

#[tokio::test]
async fn one_question_or_mapping_too_many_is_refused_before_anything_is_looked_up() {
    let limits = Limits { questions_max: 3, mappings_max: 2, ..Limits::default() };
    let site = Site::with(limited(limits)).await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let asked = |verb: &str, question: &Value, count: usize| json!({ verb: std::iter::repeat_n(question, count).collect::<Vec<_>>() });
    let restorable = &saved.question(&server)["check_restorable"][0];
    let backup = &protectable(server.id.as_str())["check_protectable"][0];
    let pairs: Value = (0..3)
        .map(|n| json!({"backup_id": format!("b{n}"), "volume_id": format!("v{n}")}))
        .collect();
    let calls = site.harness.cloud.total_calls();
    for (verb, question) in [("check_restorable", restorable), ("check_protectable", backup)] {
        let answer = caller.check(&asked(verb, question, 4)).await;
        answer.assert_refused(400, "CSBS.9001", &format!("{verb}: expected at most 3 entries"));
    }
    let mut mapped = saved.question(&server);
    mapped["check_restorable"][0]["target"]["volumes"] = pairs.clone();
    let named = "check_restorable[0].target.volumes: expected at most 2 entries";
    caller.check(&mapped).await.assert_refused(400, "CSBS.9001", named);
    let mut restore = saved.restore_to(&server);
    restore["restore"]["parameters"]["targets"]["volumes"] = pairs;
    let named = "restore.parameters.targets.volumes: expected at most 2 entries";
    caller.restore(&restore).await.assert_refused(400, "CSBS.9001", named);
    assert_eq!(site.harness.cloud.total_calls(), calls);

    for (verb, question) in [("check_restorable", restorable), ("check_protectable", backup)] {
        caller.check(&asked(verb, question, 3)).await.ok();
    }
}

/// Yields until it is so.
async fn until(is_so: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "it does not come to that");
}

/// How many look-ups of servers the cloud was asked for.
fn lookups(site: &Site) -> u64 {
    site.harness.cloud.calls(SimOp::FindServer)
}

#[tokio::test]
async fn fifty_identical_questions_of_one_call_are_one_lookup() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let question = &protectable(server.id.as_str())["check_protectable"][0];
    let asked = json!({"check_protectable": vec![question; 50]});
    let answer = caller.check(&asked).await.ok();
    assert_eq!(answer["protectable"].as_array().unwrap().len(), 50);
    assert_eq!(lookups(&site), 1);
}

#[tokio::test]
async fn fifty_identical_calls_at_once_are_one_lookup() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let question = protectable(server.id.as_str());
    let before = site.harness.store.statements();
    caller.check(&question).await.ok();
    let per_call = site.harness.store.statements() - before;
    assert!(per_call > 0);

    site.harness.cloud.hang(SimOp::FindServer);
    let before = site.harness.store.statements();
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let (caller, question) = (caller.clone(), question.clone());
            tokio::spawn(async move { caller.check(&question).await })
        })
        .collect();
    // Each has asked the catalogue all it asks, which it does beside the cloud.
    until(|| site.harness.store.statements() == before + 50 * per_call).await;
    site.harness.cloud.release(SimOp::FindServer);
    for call in calls {
        assert_eq!(only_entry(&call.await.unwrap().ok())["result"], true);
    }
    assert_eq!(lookups(&site), 2, "one for the first call, one for the fifty");
}

#[tokio::test]
async fn a_project_takes_its_share_of_lookups_and_leaves_the_rest_to_others() {
    let limits = Limits { lookups_max: 4, lookups_per_project_max: 3, ..Limits::default() };
    let site = Site::with(limited(limits)).await;
    let (caller, stranger) = (site.member().await, site.stranger().await);
    let theirs = site.harness.add_server_of(OTHER_PROJECT, &[&disk(1, 4096)]);
    site.harness.cloud.hang(SimOp::FindServer);
    let questions: Vec<_> = (0..20)
        .map(|n| json!({"resource_id": format!("server-{n}"), "resource_type": SERVER_TYPE}))
        .collect();
    let greedy =
        tokio::spawn(
            async move { caller.check(&json!({ "check_protectable": questions })).await.ok() },
        );
    site.harness.cloud.wait_for_calls(SimOp::FindServer, 3).await;
    let modest =
        tokio::spawn(async move { stranger.check(&protectable(theirs.id.as_str())).await.ok() });
    site.harness.cloud.wait_for_calls(SimOp::FindServer, 4).await;
    assert_eq!(lookups(&site), 4, "three of the one project, one of the other");

    site.harness.cloud.release(SimOp::FindServer);
    assert_eq!(only_entry(&modest.await.unwrap())["result"], true);
    assert_eq!(greedy.await.unwrap()["protectable"].as_array().unwrap().len(), 20);
    assert_eq!(lookups(&site), 21);
}

/// With room for one call and one look-up, a second one gets through to a cloud that
/// still hangs: only then was everything given back.
#[tokio::test]
async fn a_call_whose_client_went_away_frees_what_it_held() {
    let limits = Limits { lookups_max: 1, lookups_per_project_max: 1, ..Limits::default() };
    let harness = Harness::with(limited(limits)).await;
    let site = Site::around(harness, |config| config.limits.requests_max = 1);
    let caller = site.member().await;
    let (first, second) = (site.add_server(), site.add_server());
    site.harness.cloud.hang(SimOp::FindServer);
    for gone in 0..3 {
        let (caller, question) = (caller.clone(), protectable(first.id.as_str()));
        let call = tokio::spawn(async move { caller.check(&question).await });
        site.harness.cloud.wait_for_calls(SimOp::FindServer, gone + 1).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
    let call = tokio::spawn(async move { caller.check(&protectable(second.id.as_str())).await });
    tokio::time::timeout(PATIENCE, site.harness.cloud.wait_for_calls(SimOp::FindServer, 4))
        .await
        .unwrap();
    site.harness.cloud.release(SimOp::FindServer);
    assert_eq!(only_entry(&call.await.unwrap().ok())["result"], true);
}
