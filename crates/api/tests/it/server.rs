//! The router over a harness, asked without a network.

use axum::Router;
use axum::body::{Body, to_bytes};
use http::{HeaderMap, Request, StatusCode};
use kedge_api::{ApiConfig, Metrics, PublicUrl, metrics_router, router};
use kedge_testkit::{Harness, MEMBER, ManualClock, PROJECT, SequentialIds};
use serde_json::Value;
use std::sync::Arc;
use tower::ServiceExt;

pub(crate) const PROVIDER: &str = "fc4d5750-22e7-4798-8a46-f48f62c4c1da";

pub(crate) struct Server {
    pub(crate) harness: Harness,
    pub(crate) token: String,
    router: Router,
    metrics: Router,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Server {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut ApiConfig)) -> Self {
        let harness = Harness::new().await;
        let token = harness.token(MEMBER, PROJECT).await;
        let clock = Arc::new(ManualClock::new());
        let mut config = ApiConfig::new(clock, Arc::new(SequentialIds::default()));
        config.public_url = PublicUrl::Fixed("http://kedge.test".to_owned());
        change(&mut config);
        let metrics = Metrics::new();
        Self {
            router: router(harness.app.clone(), config, metrics.clone()),
            metrics: metrics_router(harness.app.clone(), metrics),
            harness,
            token,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[("x-auth-token", &self.token)], "").await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, &[("x-auth-token", &self.token)], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        let headers = [("x-auth-token", self.token.as_str()), ("content-type", "application/json")];
        self.send("POST", path, &headers, &body.to_string()).await
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        self.send_body(method, path, headers, Body::from(body.to_owned())).await
    }

    pub(crate) async fn send_body(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        let body =
            if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        Reply { status: parts.status, headers: parts.headers, body }
    }

    /// The text of the listener for metrics.
    pub(crate) async fn metrics(&self) -> String {
        let request = Request::builder().uri("/metrics").body(Body::empty()).unwrap();
        let answer = self.metrics.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let bytes = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }
}

/// A path below the project.
pub(crate) fn at(rest: &str) -> String {
    format!("/v1/{PROJECT}/{rest}")
}

/// A path below the provider.
pub(crate) fn provider(rest: &str) -> String {
    at(&format!("providers/{PROVIDER}/{rest}"))
}
