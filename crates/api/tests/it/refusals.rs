//! Every kind of no, with its status, its code and the one body.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use futures::stream::pending;
use http::StatusCode;
use kedge_testkit::{MEMBER, OTHER_PROJECT, PASSWORD, PROJECT, READER};
use serde_json::json;

use crate::server::{Reply, Server, at, provider};

fn assert_refused(reply: &Reply, status: u16, code: &str) {
    assert_eq!(reply.status.as_u16(), status, "{reply:?}");
    assert_eq!(reply.body["error_code"], code, "{reply:?}");
    assert!(!reply.body["error_msg"].as_str().unwrap().is_empty());
    assert_eq!(reply.body["request_id"], reply.headers["x-request-id"].to_str().unwrap());
}

#[tokio::test]
async fn callers_without_right_are_refused_before_their_body_is_read() {
    let server = Server::new().await;
    let path = provider("resources/action");
    let anonymous = server.send("POST", &path, &[], "{").await;
    assert_refused(&anonymous, 401, "KEDGE.4010");
    let wrong = server.send("POST", &path, &[("x-auth-token", "x")], "{").await;
    assert_refused(&wrong, 401, "KEDGE.4010");

    let foreign = path.replace(PROJECT, OTHER_PROJECT);
    assert_refused(&server.post(&foreign, &json!({})).await, 403, "KEDGE.4030");
    let unknown = path.replace(PROJECT, "ffffffffffffffffffffffffffffffff");
    assert_refused(&server.post(&unknown, &json!({})).await, 403, "KEDGE.4030");
    let admin = server.harness.token("adm", PROJECT).await;
    let reply = server.send("POST", &unknown, &[("x-auth-token", &admin)], "{").await;
    assert_refused(&reply, 404, "KEDGE.4040");

    let reader = server.harness.token(READER, PROJECT).await;
    let reply = server.send("POST", &at("restores"), &[("x-auth-token", &reader)], "{").await;
    assert_refused(&reply, 403, "KEDGE.4030");
}

#[tokio::test]
async fn wrong_path_parameters_are_named() {
    let server = Server::new().await;
    let path = at("providers/c714180d-ea34-4b13-9a5e-577c7c416eec/resources/action");
    let reply = server.post(&path, &json!({})).await;
    assert_refused(&reply, 400, "CSBS.9001");
    let text = reply.body["error_msg"].as_str().unwrap();
    assert!(text.starts_with("provider invalid") && text.contains("provider_id"), "{text}");

    let long = "x".repeat(256);
    for (path, name) in [
        (format!("/v1/{long}/restores"), "project_id"),
        ("/v1/a%00b/restores".to_owned(), "project_id"),
        ("/v1/%ff/restores".to_owned(), "project_id"),
        (at(&format!("restores/{long}")), "restore_id"),
        (at("checkpoint_items/a%0Ab"), "checkpoint_item_id"),
    ] {
        let reply = server.get(&path).await;
        assert_refused(&reply, 400, "CSBS.9001");
        assert!(reply.body["error_msg"].as_str().unwrap().starts_with(name), "{path}");
    }
    assert_refused(&server.get(&at("restores/unknown")).await, 404, "KEDGE.4041");
    assert_refused(&server.get(&at("checkpoint_items/unknown")).await, 404, "CSBS.3001");
    let reply = server.delete(&provider("checkpoints/unknown")).await;
    assert_refused(&reply, 404, "CSBS.3001");
    let reply = server.delete(&provider("checkpoints/unknown?checkpoint_items=")).await;
    assert_refused(&reply, 400, "CSBS.9001");
}

#[tokio::test]
async fn what_is_no_json_of_this_size_is_refused_by_kind() {
    let server = Server::with(|config| config.limits.body_bytes_max = 64).await;
    let path = provider("resources/action");
    let token = ("x-auth-token", server.token.as_str());
    let reply = server.send("POST", &path, &[token], "{\"check").await;
    assert_refused(&reply, 400, "CSBS.9001");
    let reply = server.send("POST", &path, &[token], "").await;
    assert_refused(&reply, 400, "CSBS.9001");
    let reply = server.send("POST", &path, &[token], &" ".repeat(65)).await;
    assert_refused(&reply, 413, "KEDGE.4130");
    let reply = server.send("POST", &path, &[token, ("content-type", "text/xml")], "{}").await;
    assert_refused(&reply, 415, "KEDGE.4150");
    let reply = server.send("PATCH", &path, &[token], "{}").await;
    assert_refused(&reply, 405, "KEDGE.4050");
    assert_eq!(reply.headers["allow"], "POST");
    assert_refused(&server.get("/v1/a/b/c").await, 404, "APIGW.0101");
    assert_refused(&server.get(&at("checkpoint_items?name=%ff")).await, 400, "CSBS.9001");
    assert_refused(&server.get(&at("checkpoint_items?marker=none")).await, 400, "CSBS.9001");
}

#[tokio::test]
async fn a_body_of_too_many_values_is_named() {
    let server = Server::new().await;
    let body = format!("[{}0]", "{\"\":0},".repeat(100_000));
    for (path, most) in [(provider("resources/action"), "50000 values"), (at("restores"), "50000")]
    {
        let token = ("x-auth-token", server.token.as_str());
        let reply = server.send("POST", &path, &[token], &body).await;
        assert_refused(&reply, 400, "CSBS.9001");
        let text = reply.body["error_msg"].as_str().unwrap();
        assert!(text.starts_with(&format!("body: expected at most {most}")), "{text}");
    }
}

#[tokio::test]
async fn a_login_is_smaller_than_other_bodies() {
    let server = Server::new().await;
    let blanks = " ".repeat((64 << 10) + 1);
    let reply = server.send("POST", "/v3/auth/tokens", &[], &blanks).await;
    assert_refused(&reply, 413, "KEDGE.4130");
    assert_eq!(reply.body["error_msg"], "body: expected at most 65536 bytes");
    let reply = server.send("POST", "/v3/auth/tokens", &[], &blanks[1..]).await;
    assert_refused(&reply, 400, "CSBS.9001");
    let token = ("x-auth-token", server.token.as_str());
    let reply = server.send("POST", &at("restores"), &[token], &blanks).await;
    assert_refused(&reply, 400, "CSBS.9001");
}

/// With room for one call, each next one shows that the one before gave its place back.
#[tokio::test]
async fn a_body_that_does_not_come_ends_its_call_long_before_the_limit_of_calls() {
    let server = Server::with(|config| {
        config.limits.requests_max = 1;
        config.limits.header_time = Duration::from_millis(1);
        config.limits.request_time = Duration::MAX;
    })
    .await;
    let token = ("x-auth-token", server.token.as_str());
    let endless = || Body::from_stream(pending::<Result<Vec<u8>, Infallible>>());
    for (path, headers) in [("/v3/auth/tokens".to_owned(), &[][..]), (at("restores"), &[token])] {
        let reply = server.send_body("POST", &path, headers, endless()).await;
        assert_refused(&reply, 504, "KEDGE.5040");
        assert_eq!(reply.body["error_msg"], "body: expected within 0.001 seconds");
    }
}

#[tokio::test]
async fn a_silent_catalogue_is_a_503_and_says_nothing_of_itself() {
    let server = Server::new().await;
    server.harness.store.close().await;
    for path in ["/readyz".to_owned(), at("checkpoint_items"), at("restores")] {
        let reply = server.get(&path).await;
        assert_refused(&reply, 503, "CSBS.9998");
        assert_eq!(reply.body["error_msg"], "System not support");
    }
    assert_eq!(server.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_wrong_password_is_a_401_in_both_forms() {
    let server = Server::new().await;
    let login = |user: &str, password: &str| {
        json!({"auth": {"identity": {"methods": ["password"], "password": {"user": {
            "id": user, "password": password}}}}})
    };
    let wrong = server.post("/v3/auth/tokens", &login(MEMBER, "wrong")).await;
    assert_refused(&wrong, 401, "KEDGE.4010");
    assert_eq!(wrong.body["error"]["code"], 401);
    assert_eq!(wrong.body["error"]["title"], "Unauthorized");
    assert_eq!(wrong.headers["www-authenticate"], "Keystone");
    let unknown = server.post("/v3/auth/tokens", &login("nobody", "wrong")).await;
    assert_eq!(
        (&unknown.body["error_code"], &unknown.body["error_msg"]),
        (&wrong.body["error_code"], &wrong.body["error_msg"])
    );
    let unscoped = server.post("/v3/auth/tokens", &login(MEMBER, PASSWORD)).await;
    assert_eq!(unscoped.status, StatusCode::CREATED);
    assert!(unscoped.body["token"].get("catalog").is_none());
}
