//! What happens to every call around its handler: a place among the calls answered at
//! once, a limit of time, an end to panics, one form of error, one line in the log.
//!
//! A call that is dropped, because its client went away, frees its place and whatever its
//! handler held, since all of it lives in one future. An answer that is streamed goes on
//! after its call ended: it has limits of its own (`service::fleet`), and a panic in it ends the
//! connection.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http::header::{CONTENT_LENGTH, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use kedge_core::code::Code;
use tokio::sync::Semaphore;
use tracing::{error, info};

use crate::config::ApiConfig;
use crate::error::{ApiError, Form};
use crate::metrics::{Metrics, method_label};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The route of calls that have none, in logs and metrics. Their path is the caller's own
/// text, so it is not shown.
const NO_ROUTE: &str = "none";

/// The route that answers even when the service is full: a restart would not help.
pub(crate) const ALWAYS_ANSWERED: &str = "/healthz";

/// The route on which strangers send bodies that are read, with `POST`.
pub(crate) const LOGIN: &str = "/v3/auth/tokens";

/// What the edge works with.
#[derive(Clone, Debug)]
pub(crate) struct Edge {
    config: Arc<ApiConfig>,
    metrics: Metrics,
    places: Arc<Semaphore>,
    /// How many of the places logins may take.
    login_places: Arc<Semaphore>,
}

impl Edge {
    pub(crate) fn new(config: Arc<ApiConfig>, metrics: Metrics) -> Self {
        let places = Arc::new(Semaphore::new(config.limits.requests_max));
        let login_places = Arc::new(Semaphore::new(config.limits.logins_max()));
        Self { config, metrics, places, login_places }
    }
}

/// Surrounds a call.
pub(crate) async fn around(State(edge): State<Edge>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
    let method = request.method().clone();
    let form = form_for(request.uri().path());
    let request_id = edge.config.ids.next_uuid().to_string();
    let started = edge.config.clock.monotonic();

    let answer = answer(&edge, route, request, next).await;
    let (mut answer, trouble) = in_our_form(answer, Some(&request_id), form);
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        answer.headers_mut().insert(REQUEST_ID, value);
    }

    let took = edge.config.clock.monotonic().saturating_sub(started);
    edge.metrics.count(route, &method, answer.status(), took);
    log(
        &Line { route, method: &method, status: answer.status(), took, request_id: &request_id },
        trouble,
    );
    answer
}

/// The handler's answer, or why there is none.
async fn answer(edge: &Edge, route: &str, request: Request, next: Next) -> Response {
    let is_login = route == LOGIN && request.method() == Method::POST;
    let share = is_login.then(|| edge.login_places.try_acquire()).transpose();
    let place = edge.places.try_acquire();
    if (share.is_err() || place.is_err()) && route != ALWAYS_ANSWERED {
        return ApiError::new(Code::Unavailable, "too many requests at once, try again later")
            .into_response();
    }
    let call = async {
        if let Some(before) = &edge.config.before_call {
            before.0(route).await;
        }
        next.run(request).await
    };
    let limit = edge.config.limits.request_time;
    match tokio::time::timeout(limit, AssertUnwindSafe(call).catch_unwind()).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => ApiError::panicked(message_of(&*panic)).into_response(),
        Err(_) => ApiError::new(Code::Timeout, "the request took too long").into_response(),
    }
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Below `/v3` Keystone's clients read.
fn form_for(path: &str) -> Form {
    match path.strip_prefix("/v3") {
        Some("") => Form::Keystone,
        Some(rest) if rest.starts_with('/') => Form::Keystone,
        Some(_) | None => Form::Flat,
    }
}

/// An answer that is no success gets our body, whoever made it; its other headers stay,
/// such as `Allow`. Also says what was wrong.
pub(crate) fn in_our_form(
    mut answer: Response,
    request_id: Option<&str>,
    form: Form,
) -> (Response, Option<ApiError>) {
    let status = answer.status();
    if !status.is_client_error() && !status.is_server_error() {
        return (answer, None);
    }
    let known = answer.extensions_mut().remove::<ApiError>();
    let error = known.unwrap_or_else(|| ApiError::of_status(status));
    let body = Json(error.body(request_id.map(str::to_owned), form)).into_response();
    let mut headers = std::mem::take(answer.headers_mut());
    headers.remove(CONTENT_LENGTH);
    add_challenge(&mut headers, status);
    let mut whole = (status, body).into_response();
    for (name, value) in headers.iter().filter(|(name, _)| *name != http::header::CONTENT_TYPE) {
        whole.headers_mut().append(name, value.clone());
    }
    (whole, Some(error))
}

/// HTTP wants a 401 to say how to log in.
fn add_challenge(headers: &mut HeaderMap, status: StatusCode) {
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Keystone"));
    }
}

struct Line<'a> {
    route: &'a str,
    method: &'a Method,
    status: StatusCode,
    took: Duration,
    request_id: &'a str,
}

/// One line a call. A code says what was refused; words of the caller stay out.
fn log(line: &Line<'_>, trouble: Option<ApiError>) {
    let Line { route, method, status, request_id, .. } = *line;
    let method = method_label(method);
    let (status, duration_ms) = (status.as_u16(), line.took.as_millis());
    let code = trouble.as_ref().map(|error| error.code().as_str());
    match trouble.as_ref().and_then(ApiError::detail) {
        Some(detail) => error!(
            method,
            route,
            status,
            duration_ms,
            request_id,
            code,
            detail,
            "{method} {route} failed with {status}: {detail:?}"
        ),
        None => info!(
            method,
            route, status, duration_ms, request_id, code, "{method} {route} answered {status}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use http::header::ALLOW;
    use kedge_core::ports::{Clock, IdSource};
    use kedge_core::time::Timestamp;
    use tower::ServiceExt;
    use uuid::Uuid;

    use super::*;
    use crate::config::BeforeCall;

    #[derive(Debug)]
    struct Fixed;

    impl Clock for Fixed {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(0)
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    impl IdSource for Fixed {
        fn next_uuid(&self) -> Uuid {
            Uuid::from_u128(7)
        }
    }

    /// Two routes inside an edge that was changed like this.
    fn edged(change: impl FnOnce(&mut ApiConfig)) -> (Router, Metrics) {
        let mut config = ApiConfig::new(Arc::new(Fixed), Arc::new(Fixed));
        change(&mut config);
        let metrics = Metrics::new();
        let edge = Edge::new(Arc::new(config), metrics.clone());
        let router = Router::new()
            .route("/v1/{project_id}", get(|| async { "fine" }))
            .route(ALWAYS_ANSWERED, get(|| async { "alive" }))
            .route(LOGIN, get(|| async { "shown" }).post(|| async { "in" }))
            .layer(from_fn_with_state(edge, around));
        (router, metrics)
    }

    async fn ask(router: &Router, method: &str, path: &str) -> Response {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap()
    }

    async fn code_of(answer: Response) -> String {
        body_of(answer).await["error_code"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_call_without_route_or_method_gets_our_body_and_an_id() {
        let (router, metrics) = edged(|_| {});
        let answer = ask(&router, "GET", "/no/such/path").await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(id, Uuid::from_u128(7).to_string());
        let body = body_of(answer).await;
        assert_eq!(body["error_code"], "APIGW.0101");
        assert_eq!(body["request_id"], id);

        let answer = ask(&router, "PUT", "/v1/p").await;
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(answer.headers()[ALLOW], "GET,HEAD");
        assert_eq!(code_of(answer).await, "KEDGE.4050");

        let text = metrics.text().unwrap();
        assert!(text.contains(r#"route="none",method="GET",status="4xx"} 1"#), "{text}");
        assert!(text.contains(r#"route="/v1/{project_id}",method="PUT",status="4xx"} 1"#));
        assert!(!text.contains("/no/such"), "{text}");
    }

    #[tokio::test]
    async fn a_panic_is_a_500_that_tells_nothing_and_the_next_call_is_fine() {
        let (router, _) = edged(|config| {
            let panicked = std::sync::atomic::AtomicBool::new(false);
            config.before_call = Some(BeforeCall(Arc::new(move |_| {
                let first = !panicked.swap(true, std::sync::atomic::Ordering::SeqCst);
                async move { assert!(!first, "a secret") }.boxed()
            })));
        });
        let answer = ask(&router, "GET", "/v1/p").await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = body_of(answer).await;
        assert_eq!(
            (&body["error_code"], &body["error_msg"]),
            (&"CSBS.9999".into(), &"request failed".into())
        );
        assert_eq!(ask(&router, "GET", "/v1/p").await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn a_call_that_hangs_is_ended_and_gives_its_place_back() {
        let (router, _) = edged(|config| {
            config.limits.requests_max = 1;
            config.limits.request_time = Duration::from_millis(1);
            config.before_call = Some(BeforeCall(Arc::new(|_| futures::future::pending().boxed())));
        });
        for _ in 0..3 {
            let answer = ask(&router, "GET", "/v1/p").await;
            assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
            assert_eq!(code_of(answer).await, "KEDGE.5040");
        }
    }

    #[tokio::test]
    async fn one_call_too_many_is_turned_away_and_a_dropped_one_frees_its_place() {
        let (router, _) = edged(|config| {
            config.limits.requests_max = 1;
            config.before_call = Some(BeforeCall(Arc::new(|route| {
                let hang = route == ALWAYS_ANSWERED;
                async move {
                    if hang {
                        futures::future::pending::<()>().await;
                    }
                }
                .boxed()
            })));
        });
        let mut hanging = Box::pin(ask(&router, "GET", ALWAYS_ANSWERED));
        assert!(futures::poll!(&mut hanging).is_pending());
        let answer = ask(&router, "GET", "/v1/p").await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(code_of(answer).await, "CSBS.9998");
        drop(hanging);
        assert_eq!(ask(&router, "GET", "/v1/p").await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn logins_take_a_quarter_of_the_places_at_most() {
        let (router, _) = edged(|config| {
            config.limits.requests_max = 8;
            config.before_call = Some(BeforeCall(Arc::new(|route| {
                let hang = route == LOGIN;
                async move {
                    if hang {
                        futures::future::pending::<()>().await;
                    }
                }
                .boxed()
            })));
        });
        let mut first = Box::pin(ask(&router, "POST", LOGIN));
        let mut second = Box::pin(ask(&router, "POST", LOGIN));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        let third = ask(&router, "POST", LOGIN).await;
        assert_eq!(third.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(code_of(third).await, "CSBS.9998");
        assert_eq!(ask(&router, "GET", "/v1/p").await.status(), StatusCode::OK);
        // With a token the same path is as good as any other.
        let mut shown = Box::pin(ask(&router, "GET", LOGIN));
        assert!(futures::poll!(&mut shown).is_pending());
        drop(first);
        let mut fourth = Box::pin(ask(&router, "POST", LOGIN));
        assert!(futures::poll!(&mut fourth).is_pending());
    }

    #[tokio::test]
    async fn a_full_service_still_says_that_it_lives() {
        let (router, _) = edged(|config| config.limits.requests_max = 0);
        assert_eq!(ask(&router, "GET", "/v1/p").await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask(&router, "GET", ALWAYS_ANSWERED).await.status(), StatusCode::OK);
    }

    async fn body_of(answer: Response) -> serde_json::Value {
        serde_json::from_slice(&to_bytes(answer.into_body(), 10_000).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn an_answer_of_axums_own_gets_our_body_and_keeps_its_headers() {
        let theirs = (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET,HEAD")], "").into_response();
        let (ours, trouble) = in_our_form(theirs, Some("r"), Form::Flat);
        assert_eq!(ours.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(ours.headers()[ALLOW], "GET,HEAD");
        assert_eq!(ours.headers()["content-type"], "application/json");
        assert_eq!(trouble.unwrap().code(), Code::MethodNotAllowed);
        let body = body_of(ours).await;
        assert_eq!((&body["error_code"], &body["request_id"]), (&"KEDGE.4050".into(), &"r".into()));
    }

    #[tokio::test]
    async fn a_success_passes_untouched() {
        let (answer, trouble) =
            in_our_form((StatusCode::MULTIPLE_CHOICES, "x").into_response(), Some("r"), Form::Flat);
        assert_eq!(answer.status(), StatusCode::MULTIPLE_CHOICES);
        assert!(trouble.is_none());
        assert_eq!(to_bytes(answer.into_body(), 10).await.unwrap(), "x");
    }

    #[tokio::test]
    async fn a_401_says_how_to_log_in() {
        let refused = ApiError::new(Code::Unauthenticated, "authentication failed");
        let (answer, _) = in_our_form(refused.into_response(), None, form_for("/v3/auth/tokens"));
        assert_eq!(answer.headers()[WWW_AUTHENTICATE], "Keystone");
        assert_eq!(body_of(answer).await["error"]["code"], 401);
    }

    #[test]
    fn only_keystones_paths_have_keystones_form() {
        for path in ["/v3", "/v3/", "/v3/auth/tokens"] {
            assert_eq!(form_for(path), Form::Keystone, "{path}");
        }
        for path in ["/", "/v1/v3", "/v33"] {
            assert_eq!(form_for(path), Form::Flat, "{path}");
        }
    }
}
