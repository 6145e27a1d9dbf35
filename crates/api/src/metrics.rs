//! What operators count and time. Labels are the route's template, the method and the
//! class of the status: never a project, a server or anything else a caller chose.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds: from an answer out of memory to a check that waits for a slow cloud.
const LATENCY_BOUNDS: [f64; 10] = [0.001, 0.005, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 20.0, 30.0];

/// The API's metrics. Clones share everything; hand one to the router and one to the
/// listener for metrics.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Family<RouteLabels, Histogram, Latency>,
    queued: Gauge<u64, AtomicU64>,
    running: Gauge<u64, AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: String,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
    method: String,
}

#[derive(Clone, Debug)]
struct Latency;

impl MetricConstructor<Histogram> for Latency {
    fn new_metric(&self) -> Histogram {
        Histogram::new(LATENCY_BOUNDS)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("kedge");
        let requests = Family::default();
        let latency = Family::new_with_constructor(Latency);
        let (queued, running) = (Gauge::default(), Gauge::default());
        registry.register("http_requests", "Calls answered", requests.clone());
        registry.register("http_request_seconds", "Time to the answer", latency.clone());
        registry.register("jobs_queued", "Jobs that wait for a worker", queued.clone());
        registry.register("jobs_running", "Jobs under a lease", running.clone());
        Self(Arc::new(Inner { registry, requests, latency, queued, running }))
    }

    pub(crate) fn count(&self, route: &str, method: &Method, status: StatusCode, took: Duration) {
        let (route, method) = (route.to_owned(), method_label(method).to_owned());
        let timed = RouteLabels { route: route.clone(), method: method.clone() };
        self.0.latency.get_or_create(&timed).observe(took.as_secs_f64());
        let status = format!("{}xx", status.as_u16() / 100);
        self.0.requests.get_or_create(&RequestLabels { route, method, status }).inc();
    }

    pub(crate) fn set_jobs(&self, queued: u64, running: u64) {
        self.0.queued.set(queued);
        self.0.running.set(running);
    }

    /// In the text form of `OpenMetrics`.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}

/// A method is text of the caller's choice; only the known ones are told on.
pub(crate) fn method_label(method: &Method) -> &str {
    let known =
        [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS];
    if known.contains(method) { method.as_str() } else { "other" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_route_method_and_class() {
        let metrics = Metrics::new();
        let odd = Method::from_bytes(b"BREW").unwrap();
        let took = Duration::from_millis(7);
        metrics.count("/v1/{project_id}/restores", &Method::GET, StatusCode::OK, took);
        metrics.count("/v1/{project_id}/restores", &Method::GET, StatusCode::CREATED, took);
        metrics.count("none", &odd, StatusCode::NOT_FOUND, took);
        metrics.set_jobs(3, 2);
        let text = metrics.text().unwrap();
        for line in [
            r#"kedge_http_requests_total{route="/v1/{project_id}/restores",method="GET",status="2xx"} 2"#,
            r#"kedge_http_requests_total{route="none",method="other",status="4xx"} 1"#,
            r#"kedge_http_request_seconds_count{route="none",method="other"} 1"#,
            "kedge_jobs_queued 3",
            "kedge_jobs_running 2",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
