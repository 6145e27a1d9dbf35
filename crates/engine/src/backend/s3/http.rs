//! One HTTP connection pool and what its answers mean.
//!
//! Invariant: whatever is not a success leaves here as a [`Trouble`], which says exactly
//! what the store answered; nothing above has to guess from texts. Nothing is tried twice
//! and no redirect is followed: requests are signed for one host.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector as ClientConnector, HttpError, HttpErrorKind, HttpRequest,
        HttpRequestBody, HttpResponse, HttpResponseBody, HttpService,
    },
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde::Deserialize;

use super::S3Timeouts;
use crate::backend::BackendError;

/// An answer that is no success says why in its first bytes.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// Idle connections are closed before most servers and load balancers close them.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// Why a request brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    /// The store answered, and the answer is no.
    #[error("the store answered {status} {code}: {message}")]
    Refused { status: u16, code: String, message: String },
    /// No whole answer came.
    #[error("{0}")]
    Broken(String),
    /// Nothing came for too long.
    #[error("no answer within {} ms", .0.as_millis())]
    Silent(Duration),
}

impl Trouble {
    /// The trouble at the bottom of what a client of the store reports.
    pub(super) fn beneath(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(trouble) = error.downcast_ref::<Self>() {
                return Some(trouble.clone());
            }
            next = error.source();
        }
        None
    }

    fn into_http(self) -> HttpError {
        // Nothing above decides by the kind: it is told not to try again.
        HttpError::new(HttpErrorKind::Unknown, self)
    }
}

/// The pool. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    client: Client<HttpsConnector<HttpConnector>, HttpRequestBody>,
    timeouts: S3Timeouts,
}

impl Wire {
    /// A pool that trusts the machine's certificates and those in `ca_pem`.
    pub(super) fn new(timeouts: S3Timeouts, ca_pem: Option<&[u8]>) -> Result<Self, BackendError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeouts.connect));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls(ca_pem)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(https);
        Ok(Self { client, timeouts })
    }

    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, Trouble> {
        let broken = |error: hyper_util::client::legacy::Error| Trouble::Broken(told(&error));
        let response = self.client.request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let idle = self.timeouts.idle;
        let body =
            HttpResponseBody::new(StreamBody::new(stream::unfold(Some(body), move |body| {
                next_frame(body, idle)
            })));
        if head.status.is_success() {
            return Ok(HttpResponse::from_parts(head, body));
        }
        let text = beginning(body).await;
        Err(refusal(head.status, &head.headers, &text))
    }
}

/// The next piece of a body; a pause that is too long, or an end that comes too early,
/// is the last one.
async fn next_frame<B>(
    body: Option<B>,
    idle: Duration,
) -> Option<(Result<Frame<Bytes>, HttpError>, Option<B>)>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: StdError + 'static,
{
    let mut body = body?;
    match tokio::time::timeout(idle, body.frame()).await {
        Ok(None) => None,
        Ok(Some(Ok(frame))) => Some((Ok(frame), Some(body))),
        Ok(Some(Err(error))) => Some((Err(Trouble::Broken(told(&error)).into_http()), None)),
        Err(_) => Some((Err(Trouble::Silent(idle).into_http()), None)),
    }
}

/// The start of a body, as far as it comes.
async fn beginning(body: HttpResponseBody) -> Vec<u8> {
    let mut text = Vec::new();
    let mut pieces = body.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        let room = REFUSAL_BYTES_MAX - text.len();
        text.extend_from_slice(&piece[..piece.len().min(room)]);
        if text.len() == REFUSAL_BYTES_MAX {
            break;
        }
    }
    text
}

#[async_trait]
impl HttpService for Wire {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let most = self.timeouts.request;
        match tokio::time::timeout(most, self.exchange(request)).await {
            Ok(answered) => answered.map_err(Trouble::into_http),
            Err(_) => Err(Trouble::Silent(most).into_http()),
        }
    }
}

impl ClientConnector for Wire {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// TLS with ring, which is named here so that nothing depends on a process-wide choice.
fn tls(ca_pem: Option<&[u8]>) -> Result<ClientConfig, BackendError> {
    let mut roots = RootCertStore::empty();
    // A machine without certificates of its own still has ca_pem, or needs none.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(pem) = ca_pem {
        let malformed = |what: String| BackendError::Io {
            retryable: false,
            text: format!("the file of trusted certificates: {what}"),
        };
        let mut found = 0_usize;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| malformed(error.to_string()))?;
            roots.add(certificate).map_err(|error| malformed(error.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(malformed("it holds no certificate".to_owned()));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| BackendError::Io { retryable: false, text: format!("TLS: {error}") })?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// What S3 says when it says no.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ErrorDocument {
    code: String,
    message: String,
}

fn refusal(status: StatusCode, headers: &HeaderMap, text: &[u8]) -> Trouble {
    let document: ErrorDocument = std::str::from_utf8(text)
        .ok()
        .and_then(|text| quick_xml::de::from_str(text).ok())
        .unwrap_or_default();
    let mut message = shortened(&document.message);
    if status.is_redirection() {
        let region = headers.get("x-amz-bucket-region").or_else(|| headers.get(header::LOCATION));
        let elsewhere = region.and_then(|value| value.to_str().ok()).unwrap_or("elsewhere");
        message = format!("the bucket lies in {}", shortened(elsewhere));
    }
    Trouble::Refused { status: status.as_u16(), code: shortened(&document.code), message }
}

/// What a stranger wrote, fit for one line of a log.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// An error with its causes; the outermost alone says next to nothing.
fn told(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
