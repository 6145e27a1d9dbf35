//! What an operator may set about HTTP, with the defaults and the reason of each limit.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use kedge_core::ports::{Clock, IdSource};

/// Long enough for a body of the usual most on a line of 1 Mbit/s.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// How the API presents and protects itself.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// What links and catalogue entries begin with.
    pub public_url: PublicUrl,
    /// The region in the catalogue.
    pub region: String,
    /// What one client and all clients may take.
    pub limits: Limits,
    /// Time, for durations in logs and metrics.
    pub clock: Arc<dyn Clock>,
    /// Ids of requests.
    pub ids: Arc<dyn IdSource>,
    /// Runs before every call; see [`BeforeCall`].
    pub before_call: Option<BeforeCall>,
}

impl ApiConfig {
    /// The defaults.
    pub fn new(clock: Arc<dyn Clock>, ids: Arc<dyn IdSource>) -> Self {
        Self {
            public_url: PublicUrl::FromHost,
            region: "RegionOne".to_owned(),
            limits: Limits::default(),
            clock,
            ids,
            before_call: None,
        }
    }
}

/// Where clients reach the API. Next links and the catalogue need it, because both must
/// be absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicUrl {
    /// As configured, without a slash at the end: `https://backup.example.org`.
    Fixed(String),
    /// From `X-Forwarded-Host` and `X-Forwarded-Proto`, for a proxy that sets both; else
    /// as [`PublicUrl::FromHost`].
    FromProxy,
    /// From `Host`, with plain HTTP.
    FromHost,
}

/// What one client and all clients may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a body: a check of 100 servers with 64 disks each takes 700 KB.
    pub body_bytes_max: usize,
    /// Levels of nesting of a body; the deepest request of v1 has six.
    pub json_depth_max: usize,
    /// Values in a body, at any depth: twice what a check of 100 servers with 64 disks
    /// each has. Each costs some 40 bytes besides its text.
    pub json_values_max: usize,
    /// How long a call may take, its body included. Longer than the service gives itself,
    /// so that its own answer comes first.
    pub request_time: Duration,
    /// Calls answered at once; more are turned away at once. Logins, which anyone may send,
    /// take a quarter of them at most.
    pub requests_max: usize,
    /// Connections open at once; more wait to be accepted. Each costs a file descriptor.
    pub connections_max: usize,
    /// How long a client may take to send its request's head, and a connection be idle. A
    /// body may take as long too, but ten seconds at most.
    pub header_time: Duration,
    /// How long a client may take no more of what it is sent.
    pub write_time: Duration,
    /// Headers of a request.
    pub headers_max: usize,
    /// Bytes of a request's head; also the read buffer of a connection.
    pub header_bytes_max: usize,
    /// How long running calls may go on after the signal to stop.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 1 << 20,
            json_depth_max: 32,
            json_values_max: 50_000,
            request_time: Duration::from_secs(35),
            requests_max: 256,
            connections_max: 1024,
            header_time: Duration::from_secs(30),
            write_time: Duration::from_secs(30),
            headers_max: 64,
            header_bytes_max: 64 << 10,
            drain_time: Duration::from_secs(40),
        }
    }
}

impl Limits {
    /// How long a client may take to send its request's body, holding a place all along.
    pub(crate) fn body_time(&self) -> Duration {
        self.header_time.min(BODY_TIME_MAX)
    }

    /// Logins answered at once, so that strangers leave places to those with a token.
    pub(crate) fn logins_max(&self) -> usize {
        (self.requests_max / 4).max(1)
    }
}

/// A step before every call, given the call's route. Tests use it to make calls panic,
/// hang or hold their place.
#[derive(Clone)]
pub struct BeforeCall(pub Arc<Step>);

/// Given a route, what to wait for.
type Step = dyn Fn(&str) -> BoxFuture<'static, ()> + Send + Sync;

impl fmt::Debug for BeforeCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BeforeCall")
    }
}
