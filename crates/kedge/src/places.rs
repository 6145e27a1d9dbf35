//! Opens the place where the repositories lie.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use kedge_engine::layer::RetryLimits;
use kedge_engine::{CredentialsFile, S3Bucket, S3Credential, S3Credentials, S3Options, S3Timeouts};
use kedge_service::places::{Directory, ObjectStore, Places};
use tokio::runtime::{Builder, Runtime};

use crate::config::{Bucket, Checked, Location};
use crate::failure::{Failure, OrFail as _};
use crate::outside::SystemPace;

/// Larger than any bundle of certificates.
const CERTIFICATES_BYTES_MAX: u64 = 4 << 20;

/// Requests to the store mostly wait; their bytes are hashed once.
const STORE_THREADS: usize = 2;

/// The place the configuration names. Nothing is sent yet.
pub(crate) fn open(config: &Checked) -> Result<Arc<dyn Places>, Failure> {
    match &config.repositories {
        Location::Directory(dir) => Ok(Arc::new(Directory(dir.clone()))),
        Location::S3(bucket) => Ok(Arc::new(open_bucket(bucket)?)),
    }
}

fn open_bucket(bucket: &Bucket) -> Result<ObjectStore, Failure> {
    let options = S3Options {
        endpoint: bucket.endpoint.clone(),
        bucket: bucket.name.clone(),
        region: bucket.region.clone(),
        addressing: bucket.addressing,
        ca_pem: read_certificates(bucket).or_fail("repositories.ca_file")?,
        timeouts: S3Timeouts::default(),
    };
    let credentials = credentials(bucket).or_fail("repositories.credentials_file")?;
    let opened = S3Bucket::new(&options, credentials, runtime()?.handle().clone());
    // restic finds out by itself how to address a bucket.
    let place = format!("{}/{}", bucket.endpoint, bucket.name);
    Ok(ObjectStore::new(
        opened.or_fail("repositories")?,
        place,
        &bucket.prefix,
        RetryLimits::default(),
        Arc::new(SystemPace),
    ))
}

/// Threads of its own, so that waiting for the store never keeps what it waits for from
/// going on. It lives as long as the process: requests may come until the very end.
fn runtime() -> Result<&'static Runtime, Failure> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = Builder::new_multi_thread()
        .worker_threads(STORE_THREADS)
        .thread_name("store")
        .enable_io()
        .enable_time()
        .build()
        .or_fail("threads for the object store")?;
    Ok(RUNTIME.get_or_init(|| made))
}

/// From the file where there is one, else from the environment as it was at the start.
pub(crate) fn credentials(bucket: &Bucket) -> Result<Arc<dyn S3Credentials>, String> {
    if let Some(path) = &bucket.credentials_file {
        return Ok(Arc::new(CredentialsFile::new(path)));
    }
    let find = |name: &str| std::env::var_os(name).and_then(|value| value.into_string().ok());
    let need = |name: &str| {
        find(name).ok_or_else(|| {
            format!("expected a file, or {name} in the environment, which does not have it")
        })
    };
    Ok(Arc::new(S3Credential {
        access_key_id: need("AWS_ACCESS_KEY_ID")?,
        secret_access_key: need("AWS_SECRET_ACCESS_KEY")?.into(),
        session_token: find("AWS_SESSION_TOKEN").map(Into::into),
    }))
}

/// The certificates trusted besides the machine's.
pub(crate) fn read_certificates(bucket: &Bucket) -> Result<Option<Vec<u8>>, String> {
    let Some(path) = &bucket.ca_file else { return Ok(None) };
    read(path).map(Some).map_err(|error| format!("{}: {error}", path.display()))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > CERTIFICATES_BYTES_MAX {
        return Err(std::io::Error::other(format!("larger than {CERTIFICATES_BYTES_MAX} bytes")));
    }
    std::fs::read(path)
}
