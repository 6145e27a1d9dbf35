//! A bucket of any store that speaks S3.
//!
//! Invariants: an object is whole or absent, since a store shows an upload only when it is
//! complete; what the store shall keep is signed with its SHA-256. A body that ends early
//! is trouble that may pass, never a short object. No answer of the store decides about
//! data by being incomplete: a list may be stale, so what it lacks is asked for by name
//! where that matters; and no promise of the store about conditions on writes is needed.
//!
//! Calls block their thread. The requests run on the runtime that was handed in, so calls
//! may come from any thread but those that runtime itself needs to go on.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{
    GetOptions, GetRange, GetResult, ObjectStore as _, ObjectStoreExt as _, PutMode, PutPayload,
    RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, Checksum, S3ConditionalPut},
    multipart::MultipartStore as _,
    path::Path,
};
use tokio::runtime::Handle;

use super::{Backend, BackendError, Listed, ObjectKind, ObjectName};

mod credentials;
mod http;
mod uploads;

use self::{
    credentials::Provider,
    http::{Trouble, Wire},
};
pub use credentials::{CredentialsFile, NoCredential, S3Credential, S3Credentials};

/// How the bucket stands in the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// `https://host/bucket/key`: what self-hosted stores expect.
    Path,
    /// `https://bucket.host/key`: what AWS prefers.
    VirtualHost,
}

/// How long to wait for the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct S3Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the next piece of a body.
    pub idle: Duration,
    /// For a request to be sent and its answer to begin: a part of 8 MiB over a slow line.
    pub request: Duration,
}

impl Default for S3Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            request: Duration::from_secs(300),
        }
    }
}

/// Where a bucket is and how to talk to it.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// `https://host[:port]`, without the bucket and without a slash at the end. Plain
    /// HTTP when it says `http`.
    pub endpoint: String,
    /// The bucket's name.
    pub bucket: String,
    /// What the store calls its place; signed with every request.
    pub region: String,
    /// How the bucket stands in the address.
    pub addressing: Addressing,
    /// Certificates trusted besides the machine's, as PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// How long to wait.
    pub timeouts: S3Timeouts,
}

/// Whether a store refuses to overwrite when it is asked not to. Nothing depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionalPut {
    /// Not tried: only making a repository tries it.
    Unknown,
    /// It refuses.
    Honoured,
    /// It overwrites all the same, or knows no conditions.
    Ignored,
}

/// What a store was found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct S3Capabilities {
    /// Conditions on writes.
    pub conditional_put: ConditionalPut,
}

/// Larger objects are stored in parts, which travel at the same time.
const PART_BYTES: usize = 8 << 20;

/// Parts of one object on their way at once.
const PARTS_AT_ONCE: usize = 4;

/// A bucket: one pool of connections, shared by all repositories in it. Cheap to clone.
#[derive(Clone)]
pub struct S3Bucket {
    store: Arc<AmazonS3>,
    wire: Wire,
    provider: Arc<Provider>,
    runtime: Handle,
    url: String,
    bucket: String,
    region: String,
}

impl fmt::Debug for S3Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Bucket").field(&self.url).finish()
    }
}

impl S3Bucket {
    /// Gets ready to talk to a bucket; sends nothing yet. Requests run on `runtime`,
    /// which needs its I/O and time drivers.
    pub fn new(
        options: &S3Options,
        credentials: Arc<dyn S3Credentials>,
        runtime: Handle,
    ) -> Result<Self, BackendError> {
        let (scheme, host) = options
            .endpoint
            .split_once("://")
            .filter(|(scheme, host)| matches!(*scheme, "http" | "https") && !host.is_empty())
            .ok_or_else(|| {
                unusable(format!("{:?} is no http or https address", options.endpoint))
            })?;
        let S3Options { bucket, .. } = options;
        let url = match options.addressing {
            Addressing::Path => format!("{scheme}://{host}/{bucket}"),
            Addressing::VirtualHost => format!("{scheme}://{bucket}.{host}"),
        };
        if url.parse::<::http::Uri>().is_err() {
            return Err(unusable(format!("{url:?} is no address")));
        }
        let wire = Wire::new(options.timeouts, options.ca_pem.as_deref())?;
        let provider = Arc::new(Provider(credentials));
        let endpoint = match options.addressing {
            Addressing::Path => &options.endpoint,
            Addressing::VirtualHost => &url,
        };
        let store = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_virtual_hosted_style_request(options.addressing == Addressing::VirtualHost)
            .with_bucket_name(bucket)
            .with_region(&options.region)
            .with_credentials(Arc::clone(&provider) as _)
            .with_http_connector(wire.clone())
            // The scheme was chosen with the endpoint.
            .with_allow_http(scheme == "http")
            // Trying again is the work of a layer that knows how long.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            // Buckets with a retention rule refuse uploads without a checksum.
            .with_checksum_algorithm(Checksum::SHA256)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // Many stores know no deletion of several objects at once.
            .with_disable_bulk_delete(true)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self {
            store: Arc::new(store),
            wire,
            provider,
            runtime,
            url,
            bucket: bucket.clone(),
            region: options.region.clone(),
        })
    }

    /// The repository below `prefix`, `""` being the bucket itself. Nothing is read yet.
    pub fn repository(&self, prefix: &str) -> S3Backend {
        S3Backend(Arc::new(Shared {
            bucket: self.clone(),
            prefix: prefix.trim_matches('/').to_owned(),
            is_there: AtomicBool::new(false),
            conditional_put: Mutex::new(ConditionalPut::Unknown),
        }))
    }

    /// The names of the folders directly below `prefix`, which may be `""`. One made this
    /// moment may be missing.
    pub fn list_folders(&self, prefix: &str) -> Result<Vec<String>, BackendError> {
        let prefix = Path::from(prefix);
        let store = Arc::clone(&self.store);
        let found = self.run(move || {
            let (store, prefix) = (Arc::clone(&store), prefix.clone());
            async move { Ok(store.list_with_delimiter(Some(&prefix)).await?.common_prefixes) }
        })?;
        Ok(found.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// What trouble means to the caller. Credentials and bodies are never in the text.
    fn meaning(&self, trouble: Trouble) -> BackendError {
        let passing = |text: String| BackendError::Io { retryable: true, text };
        let lasting = |text: String| BackendError::Io { retryable: false, text };
        let (status, code, message) = match trouble {
            Trouble::Broken(_) | Trouble::Silent(_) => {
                return BackendError::Unreachable { text: trouble.to_string() };
            }
            Trouble::Refused { status, ref code, ref message } => (status, code, message),
        };
        let bucket = &self.bucket;
        match (status, code.as_str()) {
            (507, _)
            | (_, "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded") => {
                BackendError::Full
            }
            (_, "ObjectLocked") => BackendError::Retained,
            (_, "InvalidObjectState") => BackendError::Broken { text: trouble.to_string() },
            (_, "NoSuchBucket") => {
                BackendError::Gone { text: format!("there is no bucket {bucket:?}") }
            }
            // The upload was ended by someone; the next try begins another.
            (_, "NoSuchUpload" | "InvalidPart" | "RequestTimeout" | "OperationAborted") => {
                passing(trouble.to_string())
            }
            (_, "RequestTimeTooSkewed") => {
                lasting("the clocks of this machine and of the store differ too much".to_owned())
            }
            (
                _,
                "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken",
            ) => lasting(format!("the store does not accept the credentials ({code})")),
            (404, _) => BackendError::NotFound,
            (416, _) => BackendError::Truncated,
            (401 | 403, _) => lasting(format!(
                "the store refuses it ({status} {code} {message}): on bucket {bucket:?} the credentials \
                 need the rights s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject, \
                 s3:AbortMultipartUpload and s3:ListBucketMultipartUploads"
            )),
            (500 | 502 | 503 | 504, _) if code != "SlowDown" => {
                BackendError::Unreachable { text: trouble.to_string() }
            }
            (408 | 409 | 412 | 425 | 429 | 500..=599, _) => passing(trouble.to_string()),
            _ => lasting(trouble.to_string()),
        }
    }

    /// What an error of the client means.
    fn error(&self, error: &(dyn std::error::Error + 'static)) -> BackendError {
        match Trouble::beneath(error) {
            Some(trouble) => self.meaning(trouble),
            // A credential that is missing, or an answer that makes no sense; a proxy may
            // have made it, so another try may bring another one.
            None => BackendError::Io { retryable: true, text: innermost(error) },
        }
    }

    /// Runs requests to their end. When the store does not accept the credentials and
    /// others have come meanwhile, once more with those.
    fn run<T, F>(&self, work: impl Fn() -> F) -> Result<T, BackendError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failed>> + Send + 'static,
    {
        let used = self.provider.0.current().map_err(|error| unusable(error.to_string()))?;
        match self.wait_for(work()) {
            Err(Failed::Client(error)) if is_about_credentials(&error) => {
                self.provider.0.forget();
                let now = self.provider.0.current().map_err(|error| unusable(error.to_string()))?;
                let changed = now.access_key_id != used.access_key_id
                    || now.secret_access_key != used.secret_access_key
                    || now.session_token != used.session_token;
                let last = if changed { self.wait_for(work()) } else { Err(Failed::Client(error)) };
                last.map_err(|failed| failed.meaning(self))
            }
            done => done.map_err(|failed| failed.meaning(self)),
        }
    }

    /// The thread waits on a channel, not on the runtime, so it may belong to one.
    fn wait_for<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failed>> + Send + 'static,
    ) -> Result<T, Failed> {
        let (tell, hear) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            // Nobody hears it when the caller's thread is gone.
            let _ = tell.send(work.await);
        });
        let ended = || BackendError::Io {
            retryable: false,
            text: "the service ends and sends nothing more".to_owned(),
        };
        hear.recv().unwrap_or_else(|_| Err(Failed::Known(ended())))
    }
}

/// A request, or what came of it, failed.
#[derive(Debug)]
enum Failed {
    /// What the client of the store said.
    Client(object_store::Error),
    /// What is known already.
    Known(BackendError),
}

impl Failed {
    fn meaning(self, bucket: &S3Bucket) -> BackendError {
        match self {
            Self::Client(error) => bucket.error(&error),
            Self::Known(error) => error,
        }
    }
}

impl From<object_store::Error> for Failed {
    fn from(error: object_store::Error) -> Self {
        Self::Client(error)
    }
}

impl From<BackendError> for Failed {
    fn from(error: BackendError) -> Self {
        Self::Known(error)
    }
}

/// Whether other credentials might do.
fn is_about_credentials(error: &object_store::Error) -> bool {
    match Trouble::beneath(error) {
        Some(Trouble::Refused { status, code, .. }) => {
            matches!(status, 401 | 403) || code == "ExpiredToken" || code == "InvalidToken"
        }
        Some(Trouble::Broken(_) | Trouble::Silent(_)) | None => false,
    }
}

fn unusable(text: String) -> BackendError {
    BackendError::Io { retryable: false, text }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// One repository in a bucket. Clones share what was found out about it.
#[derive(Clone, Debug)]
pub struct S3Backend(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bucket: S3Bucket,
    prefix: String,
    /// The config was seen: this is where the repository is.
    is_there: AtomicBool,
    conditional_put: Mutex<ConditionalPut>,
}

impl S3Backend {
    /// What the store was found to do.
    pub fn capabilities(&self) -> S3Capabilities {
        let conditional_put =
            *self.0.conditional_put.lock().unwrap_or_else(PoisonError::into_inner);
        S3Capabilities { conditional_put }
    }

    fn bucket(&self) -> &S3Bucket {
        &self.0.bucket
    }

    fn path(&self, name: impl fmt::Display) -> Path {
        if self.0.prefix.is_empty() {
            Path::from(name.to_string())
        } else {
            Path::from(format!("{}/{name}", self.0.prefix))
        }
    }

    fn find_size_of(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        let (store, path) = (Arc::clone(&self.bucket().store), self.path(name));
        let found = self.bucket().run(move || {
            let (store, path) = (Arc::clone(&store), path.clone());
            async move { Ok(store.head(&path).await?.size) }
        });
        match found {
            Ok(size) => Ok(Some(size)),
            Err(BackendError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fails when the repository is not where it was: a bucket emptied or a prefix
    /// mistyped is not an empty repository. What a new repository is made of may be
    /// written before there is a config.
    fn require_place(&self, kind: ObjectKind) -> Result<(), BackendError> {
        match kind {
            ObjectKind::Config | ObjectKind::Access | ObjectKind::Key => return Ok(()),
            ObjectKind::Pack
            | ObjectKind::Index
            | ObjectKind::Snapshot
            | ObjectKind::Lock
            | ObjectKind::Mark => {}
        }
        if self.find_size_of(&ObjectName::Config)?.is_some() {
            self.0.is_there.store(true, Ordering::Relaxed);
            return Ok(());
        }
        self.0.is_there.store(false, Ordering::Relaxed);
        let place = format!("{}/{}", self.bucket().url, self.0.prefix);
        Err(BackendError::Gone { text: format!("{place} holds no config") })
    }

    /// What an absent object means: no such object, or no repository any more.
    fn reading<T>(&self, name: &ObjectName, error: BackendError) -> Result<T, BackendError> {
        if error == BackendError::NotFound {
            self.require_place(name.kind())?;
        }
        Err(error)
    }

    /// Tries twice to make one object. A store that honours the condition refuses once.
    fn probe_conditional_put(&self) -> Result<ConditionalPut, BackendError> {
        let (store, path) = (Arc::clone(&self.bucket().store), self.path("kedge/probe"));
        self.bucket().run(move || {
            let (store, path) = (Arc::clone(&store), path.clone());
            async move {
                let mut found = ConditionalPut::Ignored;
                for body in ["one", "two"] {
                    let made = store.put_opts(&path, body.into(), PutMode::Create.into()).await;
                    let Err(error) = made else { continue };
                    match Trouble::beneath(&error) {
                        Some(Trouble::Refused { status: 304 | 409 | 412, .. }) => {
                            found = ConditionalPut::Honoured;
                        }
                        Some(Trouble::Refused { status: 400 | 405 | 501, .. }) => {}
                        Some(_) | None => return Err(error.into()),
                    }
                }
                // What stays is found by the next probe, and is no object of a repository.
                let _ = store.delete(&path).await;
                Ok(found)
            }
        })
    }
}

/// Stores an object in parts. What was sent of one that fails is given up at once, so that
/// only a crash leaves parts behind.
async fn put_in_parts(store: &AmazonS3, path: &Path, bytes: &Bytes) -> object_store::Result<()> {
    let id = store.create_multipart(path).await?;
    let starts = (0..bytes.len()).step_by(PART_BYTES);
    let parts = starts.enumerate().map(|(index, start)| {
        let part = bytes.slice(start..bytes.len().min(start + PART_BYTES));
        store.put_part(path, &id, index, PutPayload::from_bytes(part))
    });
    let sent: object_store::Result<Vec<_>> =
        stream::iter(parts).buffered(PARTS_AT_ONCE).try_collect().await;
    let done = match sent {
        Ok(parts) => store.complete_multipart(path, &id, parts).await.map(drop),
        Err(error) => Err(error),
    };
    if done.is_err() {
        // The first error is the one to report; a leftover is removed later.
        let _ = store.abort_multipart(path, &id).await;
    }
    done
}

/// The rest of an answer, which must be as long as it said.
async fn read_body(result: GetResult, expected: u64) -> Result<Vec<u8>, Failed> {
    let short = || BackendError::Io {
        retryable: true,
        text: "the answer ended before the object did".to_owned(),
    };
    let capacity = usize::try_from(expected).map_err(|_| BackendError::TooLarge)?;
    let mut bytes = Vec::with_capacity(capacity);
    let mut pieces = result.into_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        if piece.len() > capacity - bytes.len() {
            return Err(short().into());
        }
        bytes.extend_from_slice(&piece);
    }
    if bytes.len() == capacity { Ok(bytes) } else { Err(short().into()) }
}

impl Backend for S3Backend {
    /// Finds out what the store does with conditions. The bucket is never made: who runs
    /// the store decides where it lies and what rules it has.
    fn prepare(&self) -> Result<(), BackendError> {
        let found = self.probe_conditional_put()?;
        *self.0.conditional_put.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        if !self.0.is_there.load(Ordering::Relaxed) {
            self.require_place(name.kind())?;
        }
        let (store, path) = (Arc::clone(&self.bucket().store), self.path(name));
        let bytes = Bytes::copy_from_slice(bytes);
        self.bucket().run(move || {
            let (store, path, bytes) = (Arc::clone(&store), path.clone(), bytes.clone());
            async move {
                if bytes.len() > PART_BYTES {
                    put_in_parts(&store, &path, &bytes).await?;
                } else {
                    store.put(&path, PutPayload::from_bytes(bytes)).await?;
                }
                Ok(())
            }
        })
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        let (store, path) = (Arc::clone(&self.bucket().store), self.path(name));
        let got = self.bucket().run(move || {
            let (store, path) = (Arc::clone(&store), path.clone());
            async move {
                let result = store.get(&path).await?;
                let size = result.meta.size;
                if size > bytes_max {
                    return Err(BackendError::TooLarge.into());
                }
                read_body(result, size).await
            }
        });
        got.or_else(|error| self.reading(name, error))
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        let (store, path) = (Arc::clone(&self.bucket().store), self.path(name));
        let len = u64::try_from(buf.len()).map_err(|_| BackendError::TooLarge)?;
        let end = offset.checked_add(len).ok_or(BackendError::Truncated)?;
        if len == 0 {
            // No range can ask for nothing.
            let size = self.find_size(name)?.ok_or(BackendError::NotFound)?;
            return if offset <= size { Ok(()) } else { Err(BackendError::Truncated) };
        }
        let got = self.bucket().run(move || {
            let (store, path) = (Arc::clone(&store), path.clone());
            async move {
                let range = Some(GetRange::Bounded(offset..end));
                let options = GetOptions { range, ..GetOptions::default() };
                let result = store.get_opts(&path, options).await?;
                if result.range != (offset..end) {
                    return Err(BackendError::Truncated.into());
                }
                read_body(result, len).await
            }
        });
        buf.copy_from_slice(&got.or_else(|error| self.reading(name, error))?);
        Ok(())
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        let size = self.find_size_of(name)?;
        if size.is_none() {
            self.require_place(name.kind())?;
        }
        Ok(size)
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        let dir = match kind {
            ObjectKind::Config | ObjectKind::Access => {
                let name = match kind {
                    ObjectKind::Config => ObjectName::Config,
                    _ => ObjectName::Access,
                };
                let size = self.find_size_of(&name)?;
                return Ok(size
                    .map(|size_bytes| Listed { name, size_bytes })
                    .into_iter()
                    .collect());
            }
            ObjectKind::Key => "keys",
            ObjectKind::Pack => "data",
            ObjectKind::Index => "index",
            ObjectKind::Snapshot => "snapshots",
            ObjectKind::Lock => "locks",
            ObjectKind::Mark => "kedge/marks",
        };
        let (store, path) = (Arc::clone(&self.bucket().store), self.path(dir));
        let found: Vec<_> = self.bucket().run(move || {
            let (store, path) = (Arc::clone(&store), path.clone());
            async move { Ok(store.list(Some(&path)).try_collect().await?) }
        })?;
        let mut listed = Vec::new();
        for meta in found {
            let name = meta.location.filename().and_then(|text| ObjectName::parse(kind, text));
            // A name in the wrong folder is no object either.
            if let Some(name) = name
                && self.path(name) == meta.location
            {
                listed.push(Listed { name, size_bytes: meta.size });
            }
        }
        if listed.is_empty() {
            self.require_place(kind)?;
        }
        Ok(listed)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        let (bucket, path) = (self.bucket().clone(), self.path(name));
        let deleted = self.bucket().run(move || {
            let (bucket, path) = (bucket.clone(), path.clone());
            async move {
                let Err(error) = bucket.store.delete(&path).await else { return Ok(()) };
                let refused = matches!(
                    Trouble::beneath(&error),
                    Some(Trouble::Refused { status: 400 | 403 | 409, .. })
                );
                if refused && uploads::is_retained(&bucket, path.as_ref()).await {
                    return Err(BackendError::Retained.into());
                }
                Err(error.into())
            }
        });
        match deleted {
            Err(BackendError::NotFound) => Ok(()),
            deleted => deleted,
        }
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        let (bucket, path) = (self.bucket().clone(), self.path("data/"));
        self.bucket().run(move || {
            let (bucket, prefix) = (bucket.clone(), format!("{path}/"));
            async move { Ok(uploads::end_abandoned(&bucket, &prefix).await?) }
        })
    }
}
