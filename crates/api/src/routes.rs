//! Every route, in one table that the OpenAPI document is compared with.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use axum::{Json, Router};
use http::Method;
use http::header::CONTENT_TYPE;
use kedge_core::code::Code;
use kedge_service::App;

use crate::config::ApiConfig;
use crate::edge::{self, Edge, in_our_form};
use crate::error::{ApiError, Form};
use crate::handlers::{
    checkpoints, checks, fleet, identity, items, plans, proofs, restores, service,
};
use crate::metrics::Metrics;

/// What handlers work with.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) app: App,
    pub(crate) config: Arc<ApiConfig>,
}

/// What most handlers return.
pub(crate) type Answer<T> = Result<Json<T>, ApiError>;

/// One method of one path.
pub(crate) struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "compared with the OpenAPI document"))]
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    handler: MethodRouter<Api>,
}

/// The API: everything but metrics, which have their own listener.
pub fn router(app: App, config: ApiConfig, metrics: Metrics) -> Router {
    let config = Arc::new(config);
    let edge = Edge::new(config.clone(), metrics);
    let add = |router: Router<Api>, route: Route| router.route(route.path, route.handler);
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .layer(middleware::from_fn_with_state(edge, edge::around))
        .with_state(Api { app, config })
}

pub(crate) fn routes() -> Vec<Route> {
    vec![
        get("/", service::versions),
        get("/v1", service::versions),
        get("/v1/", service::versions),
        get("/v3", identity::version),
        get("/v3/", identity::version),
        post(edge::LOGIN, identity::login),
        get("/v3/auth/tokens", identity::show_token),
        delete("/v3/auth/tokens", identity::revoke),
        get("/v3/auth/catalog", identity::catalog),
        get("/v3/auth/projects", identity::projects),
        get("/v3/projects", identity::projects),
        post("/v1/{project_id}/providers/{provider_id}/resources/action", checks::check),
        post(
            "/v1/{project_id}/providers/{provider_id}/resources/{resource_id}/action",
            checkpoints::protect,
        ),
        delete(
            "/v1/{project_id}/providers/{provider_id}/checkpoints/{checkpoint_id}",
            checkpoints::delete,
        ),
        get("/v1/{project_id}/checkpoint_items", items::list),
        get("/v1/{project_id}/checkpoint_items/count", items::count),
        get("/v1/{project_id}/checkpoint_items/{checkpoint_item_id}", items::show),
        post("/v1/{project_id}/checkpoint_items/{checkpoint_item_id}/proofs", proofs::create),
        get("/v1/{project_id}/checkpoint_items/{checkpoint_item_id}/proofs", proofs::list),
        get("/v1/{project_id}/receipts", checks::receipts),
        post("/v1/{project_id}/fleet", fleet::ask),
        get("/v1/{project_id}/plans/{plan_id}", plans::show),
        post("/v1/{project_id}/plans/{plan_id}/lease", plans::take),
        delete("/v1/{project_id}/plans/{plan_id}/lease", plans::end),
        get("/v1/{project_id}/leases", plans::leases),
        post("/v1/{project_id}/restores", restores::restore),
        get("/v1/{project_id}/restores", restores::list),
        get("/v1/{project_id}/restores/{restore_id}", restores::show),
        get(edge::ALWAYS_ANSWERED, service::alive),
        get("/readyz", service::ready),
        get("/openapi.json", service::openapi),
    ]
}

fn get<H: Handler<T, Api>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route { method: Method::GET, path, handler: routing::get(handler) }
}

fn post<H: Handler<T, Api>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route { method: Method::POST, path, handler: routing::post(handler) }
}

fn delete<H: Handler<T, Api>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route { method: Method::DELETE, path, handler: routing::delete(handler) }
}

/// The metrics, for a listener that callers do not reach.
pub fn metrics_router(app: App, metrics: Metrics) -> Router {
    Router::new()
        .route("/metrics", routing::get(show_metrics))
        .layer(middleware::from_fn(form_errors))
        .with_state((app, metrics))
}

/// A catalogue that does not answer leaves the gauges where they were: everything else is
/// then more interesting than ever.
async fn show_metrics(State((app, metrics)): State<(App, Metrics)>) -> Result<Response, ApiError> {
    if let Ok(counts) = app.job_counts().await {
        metrics.set_jobs(counts.queued, counts.running);
    }
    let text = metrics.text().map_err(|_| ApiError::new(Code::Internal, "request failed"))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

async fn form_errors(request: Request, next: Next) -> Response {
    in_our_form(next.run(request).await, None, Form::Flat).0
}
