//! Every status that the seed lists, provoked.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::Method;
use kedge_service::identity::UsersSource;
use kedge_store::Outage;
use kedge_testkit::{ADMIN, READER, Stage, users_text};

use super::*;

/// Each call that needs a token: method, path below the host, body.
fn calls(project: &str) -> Vec<(Method, String, Value)> {
    let below = |path: &str| format!("/v1/{project}{path}");
    let provider = |path: &str| below(&format!("/providers/{PROVIDER_ID}{path}"));
    vec![
        (Method::POST, provider("/resources/action"), protectable("s")),
        (Method::POST, provider("/resources/s/action"), json!({"protect": {}})),
        (Method::DELETE, provider("/checkpoints/c"), Value::Null),
        (Method::GET, below("/checkpoint_items"), Value::Null),
        (Method::GET, below("/checkpoint_items/count"), Value::Null),
        (Method::GET, below("/checkpoint_items/i"), Value::Null),
        (Method::POST, below("/restores"), json!({"restore": {}})),
        (Method::GET, below("/restores"), Value::Null),
        (Method::GET, below("/restores/r"), Value::Null),
    ]
}

fn body_of(body: &Value) -> Body {
    if body.is_null() { Body::empty() } else { body.to_string().into() }
}

async fn call(caller: &Caller, (method, path, body): &(Method, String, Value)) -> Answer {
    caller.send(caller.request(method.clone(), path, body_of(body))).await
}

#[tokio::test]
async fn without_a_valid_token_every_call_is_401_and_reads_nothing_else() {
    let site = Site::new().await;
    let member = site.member().await;
    let twice = |caller: &Caller, path: &str| {
        let mut request = caller.request(Method::GET, path, Body::empty());
        let token = request.headers()["x-auth-token"].clone();
        request.headers_mut().append("x-auth-token", token);
        request
    };
    let strangers =
        [None, Some(""), Some("x"), Some("0123456789012345678901234567890123456789012")];
    for row in calls(PROJECT) {
        for token in strangers {
            let answer = call(&member.bearing(token), &row).await;
            answer.assert_refused(401, "KEDGE.4010", "authentication failed");
            assert_eq!(answer.headers["www-authenticate"], "Keystone");
        }
        // Who is not let in is not told what is wrong with their body.
        let broken = (row.0, row.1, json!("no object"));
        call(&member.bearing(None), &broken).await.assert_refused(401, "KEDGE.4010", "");
    }
    let answer = member.send(twice(&member, &member.path("/checkpoint_items"))).await;
    answer.assert_refused(401, "KEDGE.4010", "");
}

#[tokio::test]
async fn an_expired_token_is_401() {
    let site = Site::new().await;
    let member = site.member().await;
    site.harness.clock.advance(Duration::from_secs(24 * 60 * 60 - 1));
    member.get("/checkpoint_items").await.ok();
    site.harness.clock.advance(Duration::from_secs(1));
    member.get("/checkpoint_items").await.assert_refused(401, "KEDGE.4010", "");
}

#[tokio::test]
async fn a_revoked_token_is_401_and_others_of_its_user_go_on() {
    let site = Site::new().await;
    let (member, other) = (site.member().await, site.member().await);
    let mut revoke = member.request(Method::DELETE, "/v3/auth/tokens", Body::empty());
    let subject = member.token.as_ref().unwrap().parse().unwrap();
    revoke.headers_mut().insert("x-subject-token", subject);
    assert_eq!(member.send(revoke).await.status, StatusCode::NO_CONTENT);
    member.get("/checkpoint_items").await.assert_refused(401, "KEDGE.4010", "");
    other.get("/checkpoint_items").await.ok();
}

/// Replaces the file whole, as its documentation asks.
fn write_users(path: &Path, text: &str) {
    let aside = path.with_extension("new");
    std::fs::write(&aside, text).unwrap();
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(aside, path).unwrap();
}

#[tokio::test]
async fn a_disabled_users_token_is_401_at_once_and_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users.toml");
    let enabled = users_text(PASSWORD);
    write_users(&path, &enabled);
    let users = UsersSource::File(path.clone());
    let site = Site::around(Harness::on(Stage { users, ..Stage::new().await }), |_| {});
    let (member, reader) = (site.member().await, site.log_in(READER, PROJECT).await);

    let named = format!("name = \"{MEMBER}\"\n");
    assert!(enabled.contains(&named));
    write_users(&path, &enabled.replace(&named, &format!("{named}enabled = false\n")));
    member.get("/checkpoint_items").await.assert_refused(401, "KEDGE.4010", "");
    reader.get("/checkpoint_items").await.ok();
    let again = site.nobody().post_to("/v3/auth/tokens", &login(MEMBER, PASSWORD, PROJECT)).await;
    assert_eq!(again.status, StatusCode::UNAUTHORIZED);

    write_users(&path, &enabled);
    member.get("/checkpoint_items").await.assert_refused(401, "KEDGE.4010", "");
    site.member().await.get("/checkpoint_items").await.ok();
}

#[tokio::test]
async fn a_wrong_user_and_a_wrong_password_are_the_same_401() {
    let site = Site::new().await;
    let mut bodies = Vec::new();
    let rows = [
        (MEMBER, "wrong", PROJECT),
        ("nobody", PASSWORD, PROJECT),
        (MEMBER, PASSWORD, OTHER_PROJECT),
        (MEMBER, PASSWORD, "no-such-project"),
    ];
    for (user, password, project) in rows {
        let body = login(user, password, project);
        let answer = site.nobody().post_to("/v3/auth/tokens", &body).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(!answer.headers.contains_key("x-subject-token"));
        bodies.push(without_request_id(&answer.body));
    }
    assert_eq!(bodies[0]["error_code"], "KEDGE.4010");
    assert_eq!(bodies[0]["error"]["code"], 401, "Keystone's clients read this");
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
}

fn without_request_id(body: &Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().unwrap().remove("request_id");
    body
}

#[tokio::test]
async fn a_reader_who_acts_is_403_and_may_list_and_check() {
    let site = Site::new().await;
    let server = site.add_server();
    let saved = site.back_up(&site.member().await, &server).await;
    let reader = site.log_in(READER, PROJECT).await;
    let acts = [
        reader.protect(server.id.as_str(), json!({})).await,
        reader.restore(&saved.restore_to(&server)).await,
        reader.delete(&saved.record).await,
    ];
    for answer in acts {
        answer.assert_refused(403, "KEDGE.4030", "no permission for this operation");
    }
    assert_eq!(only_entry(&reader.check(&saved.question(&server)).await.ok())["result"], true);
    assert_eq!(
        only_entry(&reader.check(&protectable(server.id.as_str())).await.ok())["result"],
        true
    );
    assert_eq!(saved.status(&reader).await, "available");
    assert_eq!(reader.get("/checkpoint_items/count").await.ok(), json!({"count": 1}));
    reader.get("/restores").await.ok();
}

#[tokio::test]
async fn another_project_is_403_to_all_but_an_administrator() {
    let site = Site::new().await;
    let (member, admin) = (site.member().await, site.log_in(ADMIN, PROJECT).await);
    for row in calls(OTHER_PROJECT) {
        call(&member, &row).await.assert_refused(403, "KEDGE.4030", "");
        assert_ne!(call(&admin, &row).await.status, StatusCode::FORBIDDEN, "{row:?}");
    }
}

#[tokio::test]
async fn an_administrators_unknown_project_is_404() {
    let site = Site::new().await;
    let admin = site.log_in(ADMIN, PROJECT).await;
    for row in calls("ffffffffffffffffffffffffffffffff") {
        call(&admin, &row).await.assert_refused(404, "KEDGE.4040", "project is not found");
    }
}

#[tokio::test]
async fn a_panic_is_500_that_tells_nothing_and_the_next_call_works() {
    let armed = Arc::new(AtomicBool::new(false));
    let site = Site::around(Harness::new().await, |config| {
        config.before_call = Some(panicking_once(&armed));
    });
    let member = site.member().await;
    for row in calls(PROJECT) {
        armed.store(true, Ordering::SeqCst);
        call(&member, &row).await.assert_refused(500, "CSBS.9999", "request failed");
        assert_ne!(call(&member, &row).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}

#[tokio::test]
async fn a_silent_catalogue_is_503_for_every_call_and_for_logins() {
    let site = Site::new().await;
    let member = site.member().await;
    site.harness.store.set_outage(Outage::Total);
    for row in calls(PROJECT) {
        call(&member, &row).await.assert_refused(503, "CSBS.9998", "System not support");
    }
    let answer = site.nobody().post_to("/v3/auth/tokens", &login(MEMBER, PASSWORD, PROJECT)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.body["error_code"], "CSBS.9998");
    site.harness.store.set_outage(Outage::None);
    member.get("/checkpoint_items").await.ok();
}

#[tokio::test]
async fn logins_that_fail_too_often_are_429_for_that_name_alone() {
    let site = Site::new().await;
    let nobody = site.nobody();
    for _ in 0..10 {
        let answer = nobody.post_to("/v3/auth/tokens", &login(MEMBER, "guess", PROJECT)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    let answer = nobody.post_to("/v3/auth/tokens", &login(MEMBER, PASSWORD, PROJECT)).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.body["error_code"], "KEDGE.4290");
    site.log_in(READER, PROJECT).await;
    site.harness.clock.advance(Duration::from_secs(60));
    site.member().await;
}
