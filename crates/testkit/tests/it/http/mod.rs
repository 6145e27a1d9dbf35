//! The whole service as clients meet it: HTTP in, HTTP out, through every layer, but for
//! the socket.

mod clients;
mod explain;
mod fields;
mod fleet;
mod golden;
mod limits;
mod secrets;
mod seed;
mod statuses;
mod tenants;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use kedge_api::{ApiConfig, BeforeCall, Metrics, metrics_router, router};
use kedge_core::resource::Server;
use kedge_service::settings::Settings;
use kedge_testkit::{Harness, MEMBER, OTHER_PROJECT, PASSWORD, PROJECT, STRANGER, SequentialIds};
use kedge_wire::PROVIDER_ID;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::disk;

/// What clients send in `Host`.
const HOST_NAME: &str = "kedge.example:8787";

const SERVER_TYPE: &str = "OS::Nova::Server";

/// The service with its two listeners' routers.
struct Site {
    harness: Harness,
    api: Router,
    metrics: Router,
}

impl Site {
    async fn new() -> Self {
        Self::around(Harness::new().await, |_| {})
    }

    async fn with(settings: Settings) -> Self {
        Self::around(Harness::with(settings).await, |_| {})
    }

    fn around(harness: Harness, change: impl FnOnce(&mut ApiConfig)) -> Self {
        let mut config = ApiConfig::new(harness.clock.clone(), Arc::new(SequentialIds::default()));
        change(&mut config);
        let metrics = Metrics::new();
        Self {
            api: router(harness.app.clone(), config, metrics.clone()),
            metrics: metrics_router(harness.app.clone(), metrics),
            harness,
        }
    }

    /// A caller without a token.
    fn nobody(&self) -> Caller {
        Caller { api: self.api.clone(), project: PROJECT.to_owned(), token: None }
    }

    /// Logs in over HTTP.
    async fn log_in(&self, user: &str, project: &str) -> Caller {
        let answer =
            self.nobody().post_to("/v3/auth/tokens", &login(user, PASSWORD, project)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        let token = answer.headers["x-subject-token"].to_str().unwrap().to_owned();
        Caller { project: project.to_owned(), token: Some(token), ..self.nobody() }
    }

    async fn member(&self) -> Caller {
        self.log_in(MEMBER, PROJECT).await
    }

    async fn stranger(&self) -> Caller {
        self.log_in(STRANGER, OTHER_PROJECT).await
    }

    /// Backs a server up over HTTP, to the end.
    async fn back_up(&self, caller: &Caller, server: &Server) -> Saved {
        let saved = Saved::begin(caller, server).await;
        self.harness.run_jobs_to_their_end().await;
        assert_eq!(saved.status(caller).await, "available");
        saved
    }

    fn add_server(&self) -> Server {
        self.harness.add_server(&[&disk(1, 1 << 20), &disk(2, 4096)])
    }

    async fn metrics_text(&self) -> String {
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        Answer::of(self.metrics.clone().oneshot(request).await.unwrap()).await.text
    }
}

/// A client of the API.
#[derive(Clone)]
struct Caller {
    api: Router,
    project: String,
    token: Option<String>,
}

impl Caller {
    /// Somebody with this token, working in the same project.
    fn bearing(&self, token: Option<&str>) -> Self {
        Self { token: token.map(str::to_owned), ..self.clone() }
    }

    /// The same caller naming another project.
    fn naming(&self, project: &str) -> Self {
        Self { project: project.to_owned(), ..self.clone() }
    }

    /// A path below the project.
    fn path(&self, below: &str) -> String {
        format!("/v1/{}{below}", self.project)
    }

    /// A path below the project's provider.
    fn provider(&self, below: &str) -> String {
        self.path(&format!("/providers/{PROVIDER_ID}{below}"))
    }

    async fn get(&self, below: &str) -> Answer {
        self.get_from(&self.path(below)).await
    }

    async fn get_from(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path, Body::empty())).await
    }

    async fn post_to(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, body.to_string()).await
    }

    async fn post_text(&self, path: &str, body: impl Into<Body>) -> Answer {
        let mut request = self.request(Method::POST, path, body.into());
        request.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
        self.send(request).await
    }

    async fn check(&self, body: &Value) -> Answer {
        self.post_to(&self.provider("/resources/action"), body).await
    }

    async fn protect(&self, server: &str, protect: Value) -> Answer {
        let path = self.provider(&format!("/resources/{server}/action"));
        self.post_to(&path, &json!({ "protect": protect })).await
    }

    async fn restore(&self, body: &Value) -> Answer {
        self.post_to(&self.path("/restores"), body).await
    }

    /// Deletes a record, or what the query names of it.
    async fn delete(&self, record: &str) -> Answer {
        let path = self.provider(&format!("/checkpoints/{record}"));
        self.send(self.request(Method::DELETE, &path, Body::empty())).await
    }

    fn request(&self, method: Method, path: &str, body: Body) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, HOST_NAME);
        if let Some(token) = &self.token {
            request = request.header("x-auth-token", token);
        }
        request.body(body).unwrap()
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        Answer::of(self.api.clone().oneshot(request).await.unwrap()).await
    }
}

/// What came back, whole.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
    /// The text as JSON; null for none.
    body: Value,
}

impl Answer {
    async fn of(response: axum::response::Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Self { status, headers, text, body }
    }

    /// The body of a success.
    fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.body
    }

    /// Code and text of an error, whose body is flat: two strings, and the request's id.
    fn error(&self) -> (&str, &str) {
        let members: Vec<_> = self.body.as_object().unwrap().keys().collect();
        assert_eq!(members, ["error_code", "error_msg", "request_id"], "{}", self.text);
        assert_eq!(self.body["request_id"], self.headers["x-request-id"].to_str().unwrap());
        assert_eq!(self.headers[CONTENT_TYPE], "application/json");
        (self.body["error_code"].as_str().unwrap(), self.body["error_msg"].as_str().unwrap())
    }

    /// Asserts an error's status and code, and how its text begins.
    #[track_caller]
    fn assert_refused(&self, status: u16, code: &str, text: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        let (given_code, given_text) = self.error();
        assert_eq!(given_code, code, "{}", self.text);
        assert!(given_text.starts_with(text), "{given_text:?} does not begin with {text:?}");
    }
}

/// A backup as a client knows it.
#[derive(Clone, Debug)]
struct Saved {
    record: String,
    item: String,
    /// Ids of its disks' backups, in the order of the server's disks.
    volumes: Vec<String>,
}

impl Saved {
    async fn begin(caller: &Caller, server: &Server) -> Self {
        let answer = caller.protect(server.id.as_str(), json!({})).await.ok();
        let record = text(&answer["checkpoint"]["id"]);
        let list = caller.get(&format!("/checkpoint_items?checkpoint_id={record}")).await.ok();
        let item = &list["checkpoint_items"][0];
        let volumes = item["extend_info"]["volume_backups"].as_array().unwrap();
        let volumes = volumes.iter().map(|volume| text(&volume["id"])).collect();
        Self { record, item: text(&item["id"]), volumes }
    }

    async fn status(&self, caller: &Caller) -> String {
        let shown = caller.get(&format!("/checkpoint_items/{}", self.item)).await.ok();
        text(&shown["checkpoint_item"]["status"])
    }

    /// Each disk's backup onto the target's disk with the same index.
    fn onto(&self, target: &Server) -> Value {
        let pair = |(backup, volume): (&String, &kedge_core::resource::Volume)| json!({"backup_id": backup, "volume_id": volume.id.as_str()});
        self.volumes.iter().zip(&target.volumes).map(pair).collect()
    }

    /// The seed's request about this backup.
    fn question(&self, target: &Server) -> Value {
        json!({"check_restorable": [{
            "checkpoint_item_id": self.item,
            "target": {
                "resource_id": target.id.as_str(), "resource_type": SERVER_TYPE,
                "volumes": self.onto(target)}}]})
    }

    /// The body of the restore that the question asks about.
    fn restore_to(&self, target: &Server) -> Value {
        json!({"restore": {
            "provider_id": PROVIDER_ID, "checkpoint_id": self.record,
            "parameters": {
                "checkpoint_item_id": self.item, "power_on": true,
                "targets": {"server_id": target.id.as_str(), "volumes": self.onto(target)}}}})
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn login(user: &str, password: &str, project: &str) -> Value {
    json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {
            "name": user, "domain": {"id": "default"}, "password": password}}},
        "scope": {"project": {"id": project}}}})
}

fn protectable(server: &str) -> Value {
    json!({"check_protectable": [{"resource_id": server, "resource_type": SERVER_TYPE}]})
}

/// The one entry of a check's answer.
fn only_entry(answer: &Value) -> &Value {
    let members = answer.as_object().unwrap();
    assert_eq!(members.len(), 1, "{answer}");
    let entries = members.values().next().unwrap().as_array().unwrap();
    assert_eq!(entries.len(), 1, "{answer}");
    &entries[0]
}

/// Makes the next call panic whenever it is armed.
fn panicking_once(armed: &Arc<AtomicBool>) -> BeforeCall {
    let armed = armed.clone();
    BeforeCall(Arc::new(move |_| {
        let fires = armed.swap(false, Ordering::SeqCst);
        Box::pin(async move { assert!(!fires, "inner workings") })
    }))
}

/// One way to spoil a field of a body.
#[derive(Clone, Debug)]
enum Spoilt {
    Absent,
    Holding(Value),
}

/// The body with one field, named by a JSON pointer, spoilt.
fn spoil(body: &Value, pointer: &str, how: &Spoilt) -> Value {
    let mut body = body.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match how {
        Spoilt::Absent => parent.remove(key),
        Spoilt::Holding(value) => parent.insert(key.to_owned(), value.clone()),
    };
    body
}

/// A JSON pointer as complaints write the place: `/a/0/b` is `a[0].b`.
fn dotted(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.trim_start_matches('/').split('/') {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            path += &format!("[{part}]");
        } else {
            path += if path.is_empty() { "" } else { "." };
            path += part;
        }
    }
    path
}

/// What belongs in a field, hence what does not.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Word,
    Object,
    /// A list that may be empty.
    List,
    NonEmptyList,
    Flag,
    /// An optional text.
    Text,
}

impl Kind {
    /// Values of other types, and the empty one where that is wrong.
    fn wrong(self) -> Vec<Value> {
        let mut wrong = vec![json!(7), json!(1.5), json!([7])];
        let others: &[Value] = match self {
            Self::Word => &[json!(true), json!({}), json!("")],
            Self::Object => &[json!(true), json!(""), json!("{}"), json!([])],
            Self::List => &[json!(true), json!({}), json!(""), json!([null]), json!([[]])],
            Self::NonEmptyList => &[json!(true), json!({}), json!(""), json!([null]), json!([])],
            Self::Flag => &[json!({}), json!(""), json!("yes"), json!(0)],
            Self::Text => &[json!(true), json!({}), json!([])],
        };
        wrong.extend_from_slice(others);
        wrong
    }
}

/// A field of a body: where, what, and whether it may be left out.
struct Place {
    pointer: &'static str,
    kind: Kind,
    required: Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Required {
    Yes,
    /// Absent and null are the same and fine.
    No,
}

const fn required(pointer: &'static str, kind: Kind) -> Place {
    Place { pointer, kind, required: Required::Yes }
}

const fn optional(pointer: &'static str, kind: Kind) -> Place {
    Place { pointer, kind, required: Required::No }
}

/// Spoils each place in every way: each is a 400 that names it.
async fn assert_each_spoilt_place_is_named(
    caller: &Caller,
    path: &str,
    body: &Value,
    places: &[Place],
) {
    for place in places {
        let mut ways: Vec<Spoilt> = place.kind.wrong().into_iter().map(Spoilt::Holding).collect();
        if place.required == Required::Yes {
            ways.extend([Spoilt::Absent, Spoilt::Holding(Value::Null)]);
        }
        for how in &ways {
            let answer = caller.post_to(path, &spoil(body, place.pointer, how)).await;
            assert_eq!(answer.status.as_u16(), 400, "{} {how:?}: {answer:?}", place.pointer);
            answer.assert_refused(400, "CSBS.9001", &dotted(place.pointer));
        }
    }
}

/// What each of a server's disks holds.
fn bytes_of(harness: &Harness, server: &Server) -> HashMap<String, Vec<u8>> {
    let disk = |volume: &kedge_core::resource::Volume| {
        (volume.id.to_string(), harness.cloud.volume_bytes(&volume.id))
    };
    server.volumes.iter().map(disk).collect()
}
