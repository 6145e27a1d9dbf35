//! The client verbs as a library: the wire's types over HTTP, nothing of the server.
//!
//! A [`Client`] logs in once and then speaks for one project. It follows next links to
//! their end and takes every status but a success for an error, whose code and text it
//! hands on.

use std::fmt;
use std::time::Duration;

use kedge_wire::check::{
    CheckResp, ProtectableAnswer, ProtectableParam, ResourcesAction, RestorableAnswer,
    RestorableParam,
};
use kedge_wire::checkpoint::{Checkpoint, CheckpointBody, Protect, ProtectBody};
use kedge_wire::checkpoint_item::{
    CheckpointItem, CheckpointItemBody, CheckpointItemList, Count, Link,
};
use kedge_wire::error::ErrorBody;
use kedge_wire::fleet::{FleetBody, FleetLine, FleetParam};
use kedge_wire::identity::{
    Auth, AuthBody, AuthDomain, AuthIdentity, AuthPassword, AuthProject, AuthScope, AuthUser,
    TokenBody,
};
use kedge_wire::proof::{Proof, ProofAnswer, ProofBody, ProofList, ProofParam};
use kedge_wire::restore::{Restore, RestoreAnswer, RestoreBody, RestoreParameters, RestoreRequest};
use kedge_wire::{PROVIDER_ID, SERVER_TYPE};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

const AUTH_TOKEN: &str = "X-Auth-Token";
const SUBJECT_TOKEN: &str = "X-Subject-Token";

/// The domain of users and projects named without one.
const DEFAULT_DOMAIN: &str = "default";

const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Longer than the service gives any call.
const CALL_TIME: Duration = Duration::from_secs(60);

/// Longest line of an answer that comes line by line.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Pages followed in one list before the server is taken to be going in circles.
const PAGES_MAX: usize = 10_000;

/// Speaks to one service, after [`Client::login`] for one project.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    session: Option<Session>,
}

/// What a login gave.
#[derive(Clone)]
struct Session {
    token: String,
    project_id: String,
}

/// Shows no token.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base", &self.base)
            .field("project_id", &self.project_id())
            .finish_non_exhaustive()
    }
}

/// A project as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectName {
    /// By id.
    Id(String),
    /// By name, in the default domain.
    Name(String),
}

/// Why a call did not give what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The service said no.
    #[error("{code}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The code, for programs.
        code: String,
        /// The text, for people.
        message: String,
    },
    /// The call needs a login first.
    #[error("not logged in")]
    NotLoggedIn,
    /// The service could not be reached, or the connection broke.
    #[error("cannot reach the service: {0}")]
    Transport(String),
    /// The service answered something that is not of this API.
    #[error("the service answered with status {status} and a body that is not of this API: {why}")]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        why: String,
    },
}

impl ClientError {
    /// The code of a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::NotLoggedIn | Self::Transport(_) | Self::Unexpected { .. } => None,
        }
    }
}

impl From<reqwest::Error> for ClientError {
    fn from(error: reqwest::Error) -> Self {
        use std::error::Error as _;
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            cause = inner.source();
        }
        Self::Transport(text)
    }
}

impl Client {
    /// A client of the service at this URL, such as `http://127.0.0.1:8787`.
    ///
    /// # Errors
    /// No HTTP client can be made here.
    pub fn new(base: &str) -> Result<Self, ClientError> {
        // No proxies from the environment and no redirects: a token takes no detour.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME)
            .timeout(CALL_TIME)
            .build()?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), session: None })
    }

    /// Logs in; further calls are for this project.
    ///
    /// # Errors
    /// Wrong user, password or project, or trouble on the way.
    pub async fn login(
        &mut self,
        user: &str,
        password: &str,
        project: &ProjectName,
    ) -> Result<(), ClientError> {
        let body = auth_body(user, password, project);
        let url = format!("{}/v3/auth/tokens", self.base);
        let answer = good(self.http.post(url).json(&body).send().await?).await?;
        let status = answer.status().as_u16();
        let unexpected = |why: &str| ClientError::Unexpected { status, why: why.to_owned() };
        let token = answer.headers().get(SUBJECT_TOKEN).and_then(|value| value.to_str().ok());
        let token = token.ok_or_else(|| unexpected("no token in it"))?.to_owned();
        let body: TokenBody = read(answer).await?;
        let project = body.token.project.ok_or_else(|| unexpected("a token of no project"))?;
        self.session = Some(Session { token, project_id: project.id });
        Ok(())
    }

    /// The token of the login, for a user who goes on by hand.
    pub fn token(&self) -> Option<&str> {
        self.session.as_ref().map(|session| session.token.as_str())
    }

    /// The project of the login.
    pub fn project_id(&self) -> Option<&str> {
        self.session.as_ref().map(|session| session.project_id.as_str())
    }

    /// Can these servers be backed up? One answer each, in their order.
    ///
    /// # Errors
    /// A refusal of the whole call, or trouble on the way.
    pub async fn check_protectable(&self, servers: &[&str]) -> Result<Vec<CheckResp>, ClientError> {
        let question = |server: &&str| ProtectableParam {
            resource_id: (*server).to_owned(),
            resource_type: SERVER_TYPE.to_owned(),
        };
        let questions = servers.iter().map(question).collect();
        let body = ResourcesAction { check_protectable: Some(questions), check_restorable: None };
        let answer: ProtectableAnswer =
            self.post(&provider_path("resources/action"), &body).await?;
        Ok(answer.protectable)
    }

    /// Can these backups be restored to these targets? One answer each, in their order.
    ///
    /// # Errors
    /// A refusal of the whole call, or trouble on the way.
    pub async fn check_restorable(
        &self,
        questions: Vec<RestorableParam>,
    ) -> Result<Vec<CheckResp>, ClientError> {
        let body = ResourcesAction { check_protectable: None, check_restorable: Some(questions) };
        let answer: RestorableAnswer = self.post(&provider_path("resources/action"), &body).await?;
        Ok(answer.restorable)
    }

    /// As [`Client::check_restorable`], with reasons, repairs and evidence.
    ///
    /// # Errors
    /// A refusal of the whole call, or trouble on the way.
    pub async fn explain_restorable(
        &self,
        questions: Vec<RestorableParam>,
    ) -> Result<Vec<CheckResp>, ClientError> {
        let body = ResourcesAction { check_protectable: None, check_restorable: Some(questions) };
        let call = self.call(Method::POST, &provider_path("resources/action"))?;
        let call = call.query(&[("explain", "true")]).json(&body);
        let answer: RestorableAnswer = read(good(call.send().await?).await?).await?;
        Ok(answer.restorable)
    }

    /// As [`Client::check_restorable`], and the answers are kept as a signed record.
    ///
    /// # Errors
    /// A refusal of the whole call, or trouble on the way.
    pub async fn receipt_restorable(
        &self,
        questions: Vec<RestorableParam>,
    ) -> Result<RestorableAnswer, ClientError> {
        let body = ResourcesAction { check_protectable: None, check_restorable: Some(questions) };
        let call = self.call(Method::POST, &provider_path("resources/action"))?;
        read(good(call.query(&[("receipt", "true")]).json(&body).send().await?).await?).await
    }

    /// Asks of every server of the project whether it could be restored: a line each, told as
    /// it comes, and at last a summary. Takes as long as the question says.
    ///
    /// # Errors
    /// A refusal of the whole call, or trouble on the way.
    pub async fn ask_fleet(
        &self,
        fleet: FleetParam,
        mut tell: impl FnMut(FleetLine),
    ) -> Result<(), ClientError> {
        let time = Duration::from_secs(fleet.seconds.unwrap_or(0)).saturating_add(CALL_TIME * 2);
        let call = self.call(Method::POST, "fleet")?.timeout(time).json(&FleetBody { fleet });
        let mut answer = good(call.send().await?).await?;
        let status = answer.status().as_u16();
        let unexpected = |why: String| ClientError::Unexpected { status, why };
        let mut rest = Vec::new();
        let mut is_ended = false;
        while let Some(bytes) = answer.chunk().await? {
            rest.extend_from_slice(&bytes);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let line = serde_json::from_slice(&line);
                let line: FleetLine = line.map_err(|error| unexpected(error.to_string()))?;
                is_ended = matches!(line, FleetLine::Summary(_) | FleetLine::Error(_));
                tell(line);
            }
            if rest.len() > LINE_BYTES_MAX {
                return Err(unexpected("a line without an end".to_owned()));
            }
        }
        if !is_ended || !rest.is_empty() {
            return Err(unexpected("the answer ends before its summary".to_owned()));
        }
        Ok(())
    }

    /// Backs up a server now; returns when the work has begun.
    ///
    /// # Errors
    /// A refusal, or trouble on the way.
    pub async fn protect(&self, server: &str, protect: Protect) -> Result<Checkpoint, ClientError> {
        let path = provider_path(&format!("resources/{}/action", escaped(server)));
        let answer: CheckpointBody = self.post(&path, &ProtectBody { protect }).await?;
        Ok(answer.checkpoint)
    }

    /// One backup.
    ///
    /// # Errors
    /// A refusal, or trouble on the way.
    pub async fn get_item(&self, item: &str) -> Result<CheckpointItem, ClientError> {
        let path = format!("checkpoint_items/{}", escaped(item));
        let answer: CheckpointItemBody = self.get(&path, &[]).await?;
        Ok(answer.checkpoint_item)
    }

    /// Every backup that matches, over all pages.
    ///
    /// # Errors
    /// A refusal, or trouble on the way.
    pub async fn list_items(
        &self,
        query: &[(&str, &str)],
    ) -> Result<Vec<CheckpointItem>, ClientError> {
        let mut page: CheckpointItemList = self.get("checkpoint_items", query).await?;
        let mut items = page.checkpoint_items;
        for _ in 1..PAGES_MAX {
            let Some(next) = next_href(page.checkpoint_items_links.as_deref()) else {
                return Ok(items);
            };
            page = self.follow(&next).await?;
            items.append(&mut page.checkpoint_items);
        }
        Err(ClientError::Unexpected { status: 200, why: "a list without an end".to_owned() })
    }

    /// How many backups match.
    ///
    /// # Errors
    /// A refusal, or trouble on the way.
    pub async fn count_items(&self, query: &[(&str, &str)]) -> Result<u64, ClientError> {
        let answer: Count = self.get("checkpoint_items/count", query).await?;
        Ok(answer.count)
    }

    /// Restores a backup; returns when the work has begun.
    ///
    /// # Errors
    /// A refusal, or trouble on the way.
    pub async fn restore(
        &self,
        checkpoint: &str,
        parameters: RestoreParameters,
    ) -> Result<Restore, ClientError> {
        let restore = RestoreRequest {
            provider_id: PROVIDER_ID.to_owned(),
            checkpoint_id: checkpoint.to_owned(),
            parameters,
        };
        let answer: RestoreAnswer = self.post("restores", &RestoreBody { restore }).await?;
        Ok(answer.restore)
    }

    /// One restore.
    ///
    /// # Errors
    /// A refusal, or trouble on the way.
    pub async fn get_restore(&self, restore: &str) -> Result<Restore, ClientError> {
        let answer: RestoreAnswer =
            self.get(&format!("restores/{}", escaped(restore)), &[]).await?;
        Ok(answer.restore)
    }

    /// Asks for a proof of a backup, `read` or `drill`; it waits for its turn.
    ///
    /// # Errors
    /// A refusal, or trouble on the way.
    pub async fn create_proof(&self, item: &str, kind: &str) -> Result<Proof, ClientError> {
        let body = ProofBody { proof: ProofParam { kind: kind.to_owned() } };
        let path = format!("checkpoint_items/{}/proofs", escaped(item));
        let answer: ProofAnswer = self.post(&path, &body).await?;
        Ok(answer.proof)
    }

    /// Proofs of a backup, the latest first.
    ///
    /// # Errors
    /// A refusal, or trouble on the way.
    pub async fn list_proofs(&self, item: &str) -> Result<Vec<Proof>, ClientError> {
        let path = format!("checkpoint_items/{}/proofs", escaped(item));
        let answer: ProofList = self.get(&path, &[]).await?;
        Ok(answer.proofs)
    }

    /// Deletes these backups of a record, or without any named all of it; returns when the
    /// work has begun.
    ///
    /// # Errors
    /// A refusal, or trouble on the way.
    pub async fn delete_checkpoint(
        &self,
        checkpoint: &str,
        items: &[&str],
    ) -> Result<(), ClientError> {
        let path = provider_path(&format!("checkpoints/{}", escaped(checkpoint)));
        let named: Vec<_> = items.iter().map(|item| ("checkpoint_items", *item)).collect();
        good(self.call(Method::DELETE, &path)?.query(&named).send().await?).await.map(drop)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, ClientError> {
        read(good(self.call(Method::GET, path)?.query(query).send().await?).await?).await
    }

    async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        read(good(self.call(Method::POST, path)?.json(body).send().await?).await?).await
    }

    /// A call below the project.
    fn call(&self, method: Method, path: &str) -> Result<RequestBuilder, ClientError> {
        let session = self.session.as_ref().ok_or(ClientError::NotLoggedIn)?;
        let url = format!("{}/v1/{}/{path}", self.base, escaped(&session.project_id));
        Ok(self.http.request(method, url).header(AUTH_TOKEN, session.secret_header()?))
    }

    /// A next page. Only its query is taken from the link: the token goes nowhere but to
    /// the service we logged in to.
    async fn follow<T: DeserializeOwned>(&self, href: &str) -> Result<T, ClientError> {
        let query = href.split_once('?').map(|(_, query)| query).unwrap_or_default();
        let path = format!("checkpoint_items?{query}");
        read(good(self.call(Method::GET, &path)?.send().await?).await?).await
    }
}

impl Session {
    /// Marked, so that nothing logs it.
    fn secret_header(&self) -> Result<reqwest::header::HeaderValue, ClientError> {
        let value = reqwest::header::HeaderValue::from_str(&self.token);
        let mut value = value.map_err(|_| ClientError::NotLoggedIn)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn auth_body(user: &str, password: &str, project: &ProjectName) -> AuthBody {
    let domain = || Some(AuthDomain { id: Some(DEFAULT_DOMAIN.to_owned()), name: None });
    let project = match project {
        ProjectName::Id(id) => AuthProject { id: Some(id.clone()), ..AuthProject::default() },
        ProjectName::Name(name) => {
            AuthProject { id: None, name: Some(name.clone()), domain: domain() }
        }
    };
    let user = AuthUser {
        id: None,
        name: Some(user.to_owned()),
        domain: domain(),
        password: password.to_owned(),
    };
    let identity =
        AuthIdentity { methods: vec!["password".to_owned()], password: AuthPassword { user } };
    AuthBody { auth: Auth { identity, scope: Some(AuthScope { project }) } }
}

fn provider_path(rest: &str) -> String {
    format!("providers/{PROVIDER_ID}/{rest}")
}

fn next_href(links: Option<&[Link]>) -> Option<String> {
    let next = links?.iter().find(|link| link.rel == "next")?;
    Some(next.href.clone())
}

/// One segment of a path, whatever is in it. Dots alone would climb, so they are escaped
/// too.
fn escaped(segment: &str) -> String {
    let escaped = segment.bytes().map(|byte| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    });
    escaped.collect()
}

/// The answer if it is a success, else what the service said.
async fn good(answer: Response) -> Result<Response, ClientError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body: ErrorBody = read(answer).await?;
    Err(ClientError::Refused {
        status: status.as_u16(),
        code: body.error_code,
        message: body.error_msg,
    })
}

async fn read<T: DeserializeOwned>(answer: Response) -> Result<T, ClientError> {
    let status = answer.status().as_u16();
    let bytes = answer.bytes().await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ClientError::Unexpected { status, why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each connection with the next text and collects what was asked.
    async fn scripted(answers: Vec<String>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                asked.push(read_request(&mut stream).await);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (base, asked)
    }

    async fn read_request(stream: &mut tokio::net::TcpStream) -> String {
        let mut text = String::new();
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer).await.unwrap();
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.to_lowercase().lines().find_map(|line| {
                line.strip_prefix("content-length: ").map(|value| value.parse::<usize>().unwrap())
            });
            if body.len() >= length.unwrap_or(0) || count == 0 {
                return text;
            }
        }
    }

    fn answer(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }

    fn logged_in(base: &str) -> Client {
        let session = Session { token: "secret-token".to_owned(), project_id: "p1".to_owned() };
        Client { session: Some(session), ..Client::new(base).unwrap() }
    }

    #[tokio::test]
    async fn a_login_keeps_token_and_project_and_shows_neither_secret() {
        let body = r#"{"token": {"methods": ["password"], "expires_at": "", "issued_at": "",
            "user": {"id": "u", "name": "alice", "domain": {"id": "default", "name": "Default"}},
            "project": {"id": "p1", "name": "shop",
                        "domain": {"id": "default", "name": "Default"}}}}"#;
        let created = answer("201 Created", "x-subject-token: secret-token\r\n", body);
        let (base, asked) = scripted(vec![created]).await;
        let mut client = Client::new(&base).unwrap();
        client.login("alice", "pw", &ProjectName::Name("shop".to_owned())).await.unwrap();
        assert_eq!((client.token(), client.project_id()), (Some("secret-token"), Some("p1")));
        assert!(!format!("{client:?}").contains("secret"));
        let asked = asked.await.unwrap().remove(0);
        assert!(asked.starts_with("POST /v3/auth/tokens HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(r#""scope":{"project":{"name":"shop","domain":{"id":"default"}}}"#));
    }

    #[tokio::test]
    async fn a_refusal_carries_status_code_and_text() {
        let body = r#"{"error_code": "CSBS.3001", "error_msg": "gone", "request_id": "r"}"#;
        let (base, asked) = scripted(vec![answer("404 Not Found", "", body)]).await;
        let refused = logged_in(&base).get_item("../x").await.unwrap_err();
        assert_eq!(refused.code(), Some("CSBS.3001"));
        assert_eq!(refused.to_string(), "CSBS.3001: gone");
        let asked = asked.await.unwrap().remove(0);
        assert!(asked.starts_with("GET /v1/p1/checkpoint_items/%2E%2E%2Fx "), "{asked}");
        assert!(asked.to_lowercase().contains("x-auth-token: secret-token"));
    }

    #[tokio::test]
    async fn a_list_is_followed_to_its_end_on_the_same_service() {
        let first = r#"{"checkpoint_items": [], "checkpoint_items_links":
            [{"rel": "next", "href": "http://elsewhere.invalid/v1/p1/checkpoint_items?marker=m%201"}]}"#;
        let last = r#"{"checkpoint_items": []}"#;
        let pages = vec![answer("200 OK", "", first), answer("200 OK", "", last)];
        let (base, asked) = scripted(pages).await;
        let items = logged_in(&base).list_items(&[("name", "a&b")]).await.unwrap();
        assert!(items.is_empty());
        let asked = asked.await.unwrap();
        assert!(asked[0].starts_with("GET /v1/p1/checkpoint_items?name=a%26b "), "{}", asked[0]);
        assert!(asked[1].starts_with("GET /v1/p1/checkpoint_items?marker=m%201 "), "{}", asked[1]);
    }

    #[tokio::test]
    async fn a_deletion_names_the_backups() {
        let (base, asked) = scripted(vec![answer("200 OK", "", "{}")]).await;
        logged_in(&base).delete_checkpoint("c", &["a", "b"]).await.unwrap();
        let asked = asked.await.unwrap().remove(0);
        let path = format!("DELETE /v1/p1/providers/{PROVIDER_ID}/checkpoints/c");
        let query = "?checkpoint_items=a&checkpoint_items=b ";
        assert!(asked.starts_with(&(path + query)), "{asked}");
    }

    #[tokio::test]
    async fn a_fleets_answer_is_told_line_by_line_and_one_cut_short_is_an_error() {
        let error = r#"{"error":{"error_code":"CSBS.9998","error_msg":"System not support"}}"#;
        let whole = answer("200 OK", "", &format!("{error}\n"));
        let cut = answer("200 OK", "", error);
        let (base, asked) = scripted(vec![whole, cut]).await;
        let client = logged_in(&base);
        let mut told = Vec::new();
        client.ask_fleet(FleetParam::default(), |line| told.push(line)).await.unwrap();
        assert!(matches!(&told[..], [FleetLine::Error(e)] if e.error_code == "CSBS.9998"));
        let cut = client.ask_fleet(FleetParam::default(), |_| ()).await;
        assert!(matches!(cut, Err(ClientError::Unexpected { .. })), "{cut:?}");
        assert!(asked.await.unwrap()[0].ends_with(r#"{"fleet":{}}"#));
    }

    #[tokio::test]
    async fn nothing_is_asked_before_a_login_and_no_service_is_said_so() {
        let client = Client::new("http://127.0.0.1:1/").unwrap();
        assert_eq!(client.count_items(&[]).await, Err(ClientError::NotLoggedIn));
        let trouble = logged_in("http://127.0.0.1:1").count_items(&[]).await;
        assert!(matches!(trouble, Err(ClientError::Transport(_))), "{trouble:?}");
    }
}
