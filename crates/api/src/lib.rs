//! HTTP: the only crate that knows it. Routes, reading requests, writing answers.
//!
//! A handler converts, calls, converts; what is decided is decided behind
//! [`kedge_service::App`]. Every answer that is no success has one body,
//! [`kedge_wire::error::ErrorBody`], made in one place: the module `edge`.
//!
//! Invariant: no token, password, query value or body reaches a log or a metric from
//! here, and text of a caller reaches an answer only escaped and cut to length.

mod body;
mod call;
mod config;
mod convert;
mod edge;
mod error;
mod explain;
mod fleet;
mod handlers;
mod metrics;
mod openapi;
mod proof;
mod query;
mod requests;
mod routes;
mod serve;
mod stream;

pub use config::{ApiConfig, BeforeCall, Limits, PublicUrl};
pub use metrics::Metrics;
pub use openapi::openapi_json;
pub use routes::{metrics_router, router};
pub use serve::serve;
