//! Planted secrets, and every place they must not reach: logs at their most talkative,
//! answers, metrics, the API's description, the catalogue's files, the repository.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use axum::http::Method;
use kedge_cloud::sim::SimOp;
use kedge_core::ids::ProjectId;
use kedge_core::ports::CloudError;
use kedge_engine::{Backend, ObjectKind};
use kedge_service::identity::UsersSource;
use kedge_service::keys::ServiceKey;
use kedge_store::Store;
use kedge_testkit::{Stage, users_text};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, dynamic_filter_fn};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::*;

const GOOD_PASSWORD: &str = "canary-password-5f1c9d3e7b";
const WRONG_PASSWORD: &str = "canary-guess-0a8e6c4d2f";
const FOREIGN_PASSWORD: &str = "canary-of-another-service-91b7";
const SERVER_NAME: &str = "canary-server-name-c0ffee42";
/// Nothing that compression could fold away.
const MARKER: &[u8] = b"Qz7!vK2#mX9@pL4$wR8%tN1^yB6&hJ3*gD5(fS0)canary-on-disk";

/// Everything any thread logs while it is on, however small.
#[derive(Clone, Default)]
struct Log {
    bytes: Arc<Mutex<Vec<u8>>>,
    is_on: Arc<AtomicBool>,
}

impl Log {
    /// Jobs work on threads of their own, so it listens to the whole process. Other tests
    /// are heard too, which does no harm.
    fn listen() -> Self {
        let log = Self::default();
        let (writer, is_on) = (log.clone(), log.is_on.clone());
        let layer = layer()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .with_filter(dynamic_filter_fn(move |_, _| is_on.load(Ordering::SeqCst)));
        tracing_subscriber::registry().with(layer).try_init().unwrap();
        log.is_on.store(true, Ordering::SeqCst);
        assert_eq!(LevelFilter::current(), LevelFilter::TRACE);
        log
    }

    fn end(&self) -> Vec<u8> {
        self.is_on.store(false, Ordering::SeqCst);
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A secret by name, in each form a slip might give it: as it is, as hexadecimal digits,
/// as a list of numbers.
struct Secret {
    name: &'static str,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    fn new(name: &'static str, bytes: &[u8]) -> Self {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let numbers = format!("{bytes:?}");
        let numbers = numbers.trim_matches(['[', ']']).to_owned();
        let forms = vec![
            bytes.to_vec(),
            hex.to_uppercase().into_bytes(),
            hex.into_bytes(),
            numbers.into_bytes(),
        ];
        Self { name, forms }
    }

    #[track_caller]
    fn assert_not_in(&self, place: &str, bytes: &[u8]) {
        for form in &self.forms {
            assert!(!holds(bytes, form), "{place} holds the {}", self.name);
        }
    }
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What callers were told: bodies, and headers but the one whose business a token is.
#[derive(Default)]
struct Told(Vec<u8>);

impl Told {
    fn hear(&mut self, answer: Answer) -> Answer {
        self.0.extend_from_slice(answer.text.as_bytes());
        for (name, value) in answer.headers.iter().filter(|(name, _)| *name != "x-subject-token") {
            self.0.extend_from_slice(name.as_str().as_bytes());
            self.0.extend_from_slice(value.as_bytes());
        }
        answer
    }
}

/// All files of a folder, one after the other. Each is its owner's alone.
fn private_files(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
        bytes.extend(fs::read(path).unwrap());
    }
    bytes
}

fn repository_objects(harness: &Harness) -> Vec<u8> {
    let kinds = [
        ObjectKind::Config,
        ObjectKind::Access,
        ObjectKind::Key,
        ObjectKind::Pack,
        ObjectKind::Index,
        ObjectKind::Snapshot,
        ObjectKind::Lock,
        ObjectKind::Mark,
    ];
    let store = harness.places.store_of(&ProjectId::new(PROJECT));
    let store = store.inner();
    let listed = kinds.into_iter().flat_map(|kind| store.list(kind).unwrap());
    listed.flat_map(|object| store.get(&object.name, u64::MAX).unwrap()).collect()
}

/// A server whose disk holds the marker between other bytes.
fn add_marked_server(harness: &Harness) -> Server {
    let mut content = disk(1, 1 << 20);
    content[300_000..300_000 + MARKER.len()].copy_from_slice(MARKER);
    let server = harness.add_server(&[&content]);
    harness.cloud.edit_server(&server.id, |server| server.name = SERVER_NAME.to_owned());
    server
}

async fn log_in(told: &mut Told, site: &Site) -> Caller {
    let body = login(MEMBER, GOOD_PASSWORD, PROJECT);
    let answer = told.hear(site.nobody().post_to("/v3/auth/tokens", &body).await);
    let token = answer.headers["x-subject-token"].to_str().unwrap().to_owned();
    site.nobody().bearing(Some(&token))
}

/// Logins that fail in every way there is.
async fn fail_to_log_in(told: &mut Told, site: &Site) {
    let nobody = site.nobody();
    let path = "/v3/auth/tokens";
    let good = login(MEMBER, GOOD_PASSWORD, PROJECT);
    let user = "/auth/identity/password/user";
    let bodies = [
        login(MEMBER, WRONG_PASSWORD, PROJECT),
        login("nobody", WRONG_PASSWORD, PROJECT),
        login(MEMBER, GOOD_PASSWORD, "no-such-project"),
        // Typed into the wrong field.
        login(WRONG_PASSWORD, "x", PROJECT),
        spoil(&good, &format!("{user}/password"), &Spoilt::Holding(json!([GOOD_PASSWORD]))),
        spoil(&good, &format!("{user}/domain"), &Spoilt::Holding(json!(GOOD_PASSWORD))),
        spoil(&good, "/auth/identity/methods", &Spoilt::Holding(json!([GOOD_PASSWORD]))),
        spoil(&good, "/auth/scope", &Spoilt::Holding(json!(GOOD_PASSWORD))),
    ];
    for body in bodies {
        let answer = told.hear(nobody.post_to(path, &body).await);
        assert!(answer.status.is_client_error(), "{}", answer.text);
    }
    let whole = good.to_string();
    let twice = whole.replacen("\"password\":\"", "\"password\":\"x\",\"password\":\"", 1);
    for broken in [whole[..whole.len() - 2].to_owned(), twice] {
        let answer = told.hear(nobody.post_text(path, broken).await);
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    }
}

/// A token in every place but the one it belongs in.
async fn misplace_token(told: &mut Told, caller: &Caller) {
    let token = caller.token.clone().unwrap();
    for below in [
        format!("/checkpoint_items?token={token}"),
        format!("/checkpoint_items?marker={token}"),
        format!("/checkpoint_items?limit={token}"),
        format!("/{token}"),
    ] {
        told.hear(caller.get(&below).await);
    }
    told.hear(caller.naming(&token).get("/restores").await);
    let mut bearer = caller.bearing(None).request(Method::GET, "/v3/projects", Body::empty());
    bearer.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    told.hear(caller.send(bearer).await);
    let mut own = caller.request(Method::GET, "/v3/auth/tokens", Body::empty());
    own.headers_mut().insert("x-subject-token", token.parse().unwrap());
    assert_eq!(told.hear(caller.send(own).await).status, StatusCode::OK);
}

/// A backup that fails, one that works, a restore of it by a request that names another
/// place and its password, and a deletion.
async fn back_up_and_restore(told: &mut Told, site: &Site, caller: &Caller, place: &str) {
    let server = add_marked_server(&site.harness);
    let project = ProjectId::new(PROJECT);
    let failing = Saved::begin(caller, &server).await;
    site.harness.cloud.fail_next(SimOp::OpenSnapshot, 1, CloudError::permanent("broken"));
    site.harness.run_jobs_to_their_end().await;
    assert_eq!(failing.status(caller).await, "error");

    let saved = Saved::begin(caller, &server).await;
    site.harness.places.store_of(&project).break_down();
    site.harness.run_jobs().await;
    site.harness.places.store_of(&project).repair();
    site.harness.run_jobs_to_their_end().await;
    assert_eq!(saved.status(caller).await, "available");
    told.hear(caller.get(&format!("/checkpoint_items/{}", saved.item)).await);
    told.hear(caller.check(&saved.question(&server)).await);

    let mut restore = saved.restore_to(&server);
    restore["restore"]["restore_target"] = json!(place);
    restore["restore"]["restore_auth"] =
        json!({"type": "password", "username": "root", "password": FOREIGN_PASSWORD});
    let mut wrong = restore.clone();
    wrong["restore"]["parameters"]["power_on"] = json!("maybe");
    let answer = told.hear(caller.restore(&wrong).await);
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let answer = told.hear(caller.restore(&restore).await).ok();
    assert_eq!(answer["restore"]["restore_target"], "");
    site.harness.run_jobs_to_their_end().await;
    let listed = told.hear(caller.get("/restores").await).ok();
    assert_eq!(listed["restores"][0]["status"], "success");
}

/// What a service with another key says about the repository: not what it could not read.
async fn ask_with_another_key(told: &mut Told, site: &Site, caller: &Caller) {
    let list = caller.get("/checkpoint_items?status=available").await.ok();
    let item = &list["checkpoint_items"][0];
    let key = Arc::new(ServiceKey::random().unwrap());
    let other = Site::around(site.harness.restarted_with_key(key).await, |_| {});
    let caller = other.nobody().bearing(caller.token.as_deref());
    let volume = &item["extend_info"]["volume_backups"][0];
    let question = json!({"check_restorable": [{
        "checkpoint_item_id": item["id"],
        "target": {
            "resource_id": item["resource_id"], "resource_type": SERVER_TYPE,
            "volumes": [{
                "backup_id": volume["id"], "volume_id": volume["source_volume_id"]}]}}]});
    let answer = told.hear(caller.check(&question).await).ok();
    assert_eq!(only_entry(&answer)["error_code"], "KEDGE.0008");
}

#[tokio::test]
async fn planted_secrets_appear_nowhere_and_a_named_place_is_never_called() {
    let log = Log::listen();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let key_file = folder.path().join("service.key");
    let key = ServiceKey::load_or_create(&key_file).unwrap();
    let key_text = fs::read_to_string(&key_file).unwrap().trim().to_owned();
    let site = Site::around(
        Harness::on(Stage {
            store: Store::open(&state.join("kedge.db")).await.unwrap(),
            users: UsersSource::Text(users_text(GOOD_PASSWORD)),
            key,
            ..Stage::new().await
        }),
        |_| {},
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let place = format!("http://{}/canary-restore-target", listener.local_addr().unwrap());

    let mut told = Told::default();
    let caller = log_in(&mut told, &site).await;
    fail_to_log_in(&mut told, &site).await;
    misplace_token(&mut told, &caller).await;
    back_up_and_restore(&mut told, &site, &caller, &place).await;
    ask_with_another_key(&mut told, &site, &caller).await;
    let openapi = told.hear(site.nobody().get_from("/openapi.json").await);
    let metrics = site.metrics_text().await;

    let called = listener.accept().unwrap_err();
    assert_eq!(called.kind(), io::ErrorKind::WouldBlock, "somebody called the named place");
    let project = ProjectId::new(PROJECT);
    let row = site.harness.store.find_repository(&project).await.unwrap().unwrap();
    let repository_password = site.harness.key.unwrap(&row.wrapped_password, &project).unwrap();
    let key_bytes: Vec<u8> = (0..key_text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&key_text[at..at + 2], 16).unwrap())
        .collect();
    let secrets = [
        Secret::new("user's password", GOOD_PASSWORD.as_bytes()),
        Secret::new("mistyped password", WRONG_PASSWORD.as_bytes()),
        Secret::new("other service's password", FOREIGN_PASSWORD.as_bytes()),
        Secret::new("token", caller.token.as_ref().unwrap().as_bytes()),
        Secret::new("service key", &key_bytes),
        Secret::new("repository's password", repository_password.expose().as_bytes()),
        Secret::new("place named in a request", place.as_bytes()),
        Secret::new("path of that place", b"canary-restore-target"),
        Secret::new("marker on the disk", MARKER),
    ];
    let logged = log.end();
    let catalogue = private_files(&state);
    let objects = repository_objects(&site.harness);
    let places = [
        ("the log", &logged),
        ("an answer", &told.0),
        ("the metrics", &metrics.into_bytes()),
        ("the API's description", &openapi.text.into_bytes()),
        ("the catalogue", &catalogue),
        ("the repository", &objects),
    ];
    for secret in &secrets {
        for (place, bytes) in &places {
            secret.assert_not_in(place, bytes);
        }
    }
    Secret::new("server's name", SERVER_NAME.as_bytes()).assert_not_in("the repository", &objects);
    Secret::new("wrapped password", &row.wrapped_password).assert_not_in("the log", &logged);

    // Where nothing is looked into, nothing is found: each place holds what it should.
    assert!(holds(&catalogue, SERVER_NAME.as_bytes()));
    assert!(holds(&objects, b"wrapped_password"));
    assert!(objects.len() > 200_000, "{}", objects.len());
    assert!(holds(&told.0, SERVER_NAME.as_bytes()));
    for line in ["issued a token", "login refused", "POST /v3/auth/tokens", "stored"] {
        assert!(holds(&logged, line.as_bytes()), "{line} was not logged");
    }
}
