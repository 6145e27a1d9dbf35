//! The configuration file, read once. `docs/configuration.md` tells what each field means
//! and why its default is what it is; a test keeps the two in step.
//!
//! Invariant: a [`Checked`] that exists is consistent. Everything that is wrong with the
//! values of a file is found in one go, so that nobody has to mend it line by line.

mod drill;

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use kedge_core::fleet::Places;
use kedge_core::job::Lease;
use kedge_core::protect;
use kedge_core::tag::Tag;
use kedge_engine::Addressing;
use kedge_engine::layer::Rates;
use kedge_service::settings::{Kdf, Limits as ServiceLimits, Settings, Verify};
use serde::{Deserialize, Serialize};

pub(crate) use self::drill::Drill;
use crate::failure::{Failure, OrFail as _};
use crate::{places, private, telemetry};

/// Larger than any sensible configuration: a path that names something else is noticed.
const FILE_BYTES_MAX: u64 = 1 << 20;

const DAY_SECS: u64 = 86_400;
const HOUR_SECS: u64 = 3600;

/// What a call may take beyond what the service gives itself, so that the service's own
/// answer comes before the time-out.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// The file as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) state_dir: PathBuf,
    pub(crate) users: PathBuf,
    pub(crate) repositories_dir: Option<PathBuf>,
    pub(crate) repositories: Repositories,
    pub(crate) service_key: Option<PathBuf>,
    pub(crate) listen: String,
    pub(crate) allow_plain_http_beyond_loopback: bool,
    pub(crate) metrics_listen: Option<String>,
    pub(crate) public_url: Option<String>,
    pub(crate) trust_proxy_headers: bool,
    pub(crate) region: String,
    pub(crate) token_lifetime_secs: u64,
    pub(crate) workers: usize,
    pub(crate) mover_threads: usize,
    pub(crate) mover_bytes_per_sec: Option<u64>,
    pub(crate) mover_operations_per_sec: Option<u64>,
    pub(crate) compression_level: i32,
    pub(crate) verify_before_store: bool,
    pub(crate) verify_days: u64,
    pub(crate) verify_bytes_per_sec: u64,
    pub(crate) verify_time_percent: u8,
    pub(crate) verify_first_tag: Option<String>,
    pub(crate) lease_secs: u64,
    pub(crate) zones_without_backup: Vec<String>,
    pub(crate) store_zones: Vec<String>,
    pub(crate) key_zones: Vec<String>,
    pub(crate) shared_volumes: SharedVolumes,
    pub(crate) cloud: Cloud,
    pub(crate) drill: Drill,
    pub(crate) limits: Limits,
    pub(crate) log: Log,
}

/// Whose servers are backed up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Cloud {
    /// Image files on this machine.
    Local { servers_dir: PathBuf },
}

/// Where the repositories lie.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Repositories {
    pub(crate) kind: RepositoriesKind,
    pub(crate) endpoint: Option<String>,
    pub(crate) bucket: Option<String>,
    pub(crate) prefix: Option<String>,
    pub(crate) region: String,
    pub(crate) path_style: bool,
    pub(crate) credentials_file: Option<PathBuf>,
    pub(crate) ca_file: Option<PathBuf>,
}

/// What kind of store holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RepositoriesKind {
    Directory,
    S3,
}

impl Default for Repositories {
    fn default() -> Self {
        Self {
            kind: RepositoriesKind::Directory,
            endpoint: None,
            bucket: None,
            prefix: None,
            region: "us-east-1".to_owned(),
            path_style: true,
            credentials_file: None,
            ca_file: None,
        }
    }
}

/// Whether servers with shared disks may be backed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SharedVolumes {
    Allowed,
    Refused,
}

/// What requests may take.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) body_bytes_max: usize,
    pub(crate) json_depth_max: usize,
    pub(crate) json_values_max: usize,
    pub(crate) questions_max: usize,
    pub(crate) mappings_max: usize,
    pub(crate) request_secs: u64,
    pub(crate) requests_max: usize,
    pub(crate) connections_max: usize,
    pub(crate) header_secs: u64,
    pub(crate) write_secs: u64,
    pub(crate) headers_max: usize,
    pub(crate) header_bytes_max: usize,
    pub(crate) drain_secs: u64,
    pub(crate) lookups_max: usize,
    pub(crate) lookups_per_project_max: usize,
    pub(crate) hashes_max: usize,
    pub(crate) failed_logins_per_minute_max: u32,
    pub(crate) leases_max: usize,
    pub(crate) lease_hours_max: u64,
}

/// What is told of the work.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) filter: String,
}

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Json,
    Text,
}

impl Default for Config {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            state_dir: PathBuf::new(),
            users: PathBuf::new(),
            repositories_dir: None,
            repositories: Repositories::default(),
            service_key: None,
            listen: "127.0.0.1:8799".to_owned(),
            allow_plain_http_beyond_loopback: false,
            metrics_listen: None,
            public_url: None,
            trust_proxy_headers: false,
            region: "RegionOne".to_owned(),
            token_lifetime_secs: settings.token_lifetime.as_secs(),
            workers: settings.workers,
            mover_threads: settings.mover_threads,
            mover_bytes_per_sec: None,
            mover_operations_per_sec: None,
            compression_level: settings.compression_level,
            verify_before_store: settings.verify_before_store,
            verify_days: settings.verify.period.as_secs() / DAY_SECS,
            verify_bytes_per_sec: settings.verify.rates.bytes_per_sec.unwrap_or(u64::MAX),
            verify_time_percent: settings.verify.time_percent,
            verify_first_tag: None,
            lease_secs: settings.lease.length.as_secs(),
            zones_without_backup: settings.protect.zones_without_backup,
            store_zones: settings.places.store,
            key_zones: settings.places.key,
            shared_volumes: SharedVolumes::Allowed,
            cloud: Cloud::Local { servers_dir: PathBuf::new() },
            drill: Drill::default(),
            limits: Limits::default(),
            log: Log::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let (http, service) = (kedge_api::Limits::default(), ServiceLimits::default());
        Self {
            body_bytes_max: http.body_bytes_max,
            json_depth_max: http.json_depth_max,
            json_values_max: http.json_values_max,
            questions_max: service.questions_max,
            mappings_max: service.mappings_max,
            request_secs: service.request_time.as_secs(),
            requests_max: http.requests_max,
            connections_max: http.connections_max,
            header_secs: http.header_time.as_secs(),
            write_secs: http.write_time.as_secs(),
            headers_max: http.headers_max,
            header_bytes_max: http.header_bytes_max,
            drain_secs: http.drain_time.as_secs(),
            lookups_max: service.lookups_max,
            lookups_per_project_max: service.lookups_per_project_max,
            hashes_max: service.hashes_max,
            failed_logins_per_minute_max: service.failed_logins_per_minute_max,
            leases_max: service.leases_max,
            lease_hours_max: service.lease_time_max.as_secs() / HOUR_SECS,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, filter: "info".to_owned() }
    }
}

/// What is wrong with one field, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    field: &'static str,
    expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.expected)
    }
}

/// Collects what is wrong.
#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, field: &'static str, expected: impl Into<String>) {
        self.0.push(Problem { field, expected: expected.into() });
    }

    fn within<T: PartialOrd + fmt::Display>(
        &mut self,
        field: &'static str,
        value: &T,
        (least, most): (T, T),
    ) {
        if *value < least || *value > most {
            self.add(field, format!("expected {least} to {most}, found {value}"));
        }
    }

    fn absolute(&mut self, field: &'static str, path: &Path) {
        let upwards = path.components().any(|part| part == Component::ParentDir);
        if !path.is_absolute() || upwards {
            self.add(field, format!("expected an absolute path without \"..\", found {path:?}"));
        }
    }
}

/// Where the repositories lie, as far as that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A bucket.
    S3(Bucket),
}

/// A bucket and how to get at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) endpoint: String,
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) region: String,
    pub(crate) addressing: Addressing,
    pub(crate) credentials_file: Option<PathBuf>,
    pub(crate) ca_file: Option<PathBuf>,
}

/// A configuration whose values make sense.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) listen: SocketAddr,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) public_url: kedge_api::PublicUrl,
    pub(crate) region: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) repositories: Location,
    pub(crate) service_key: PathBuf,
    pub(crate) users: PathBuf,
    pub(crate) cloud: Cloud,
    pub(crate) drill: Drill,
    pub(crate) settings: Settings,
    pub(crate) http: kedge_api::Limits,
    pub(crate) log: Log,
}

impl Config {
    /// Reads a file. What cannot be read at all is told with its line.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let doing = format!("configuration {}", path.display());
        let size_bytes = std::fs::metadata(path).or_fail(&doing)?.len();
        if size_bytes > FILE_BYTES_MAX {
            return Err(Failure::new(format!("{doing}: larger than {FILE_BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).or_fail(&doing)?;
        toml::from_str(&text).or_fail(&doing)
    }

    /// Everything that can be said about the values without looking at the machine.
    pub(crate) fn check(self) -> Result<Checked, Vec<Problem>> {
        let mut problems = Problems::default();
        self.check_paths(&mut problems);
        self.check_repositories(&mut problems);
        self.check_numbers(&mut problems);
        self.check_words(&mut problems);
        self.drill.check(&mut problems);
        let listen = self.address("listen", &self.listen, &mut problems);
        let metrics = self.metrics_listen.as_deref();
        let metrics_listen =
            metrics.and_then(|text| self.address("metrics_listen", text, &mut problems));
        match listen {
            Some(listen) if problems.0.is_empty() => Ok(self.into_checked(listen, metrics_listen)),
            Some(_) | None => Err(problems.0),
        }
    }

    fn into_checked(self, listen: SocketAddr, metrics_listen: Option<SocketAddr>) -> Checked {
        let settings = self.settings();
        let http = self.http();
        let (repositories, service_key) = (self.location(), self.service_key_path());
        Checked {
            listen,
            metrics_listen,
            public_url: match (self.public_url, self.trust_proxy_headers) {
                (Some(url), _) => kedge_api::PublicUrl::Fixed(url),
                (None, true) => kedge_api::PublicUrl::FromProxy,
                (None, false) => kedge_api::PublicUrl::FromHost,
            },
            region: self.region,
            repositories,
            service_key,
            state_dir: self.state_dir,
            users: self.users,
            cloud: self.cloud,
            drill: self.drill,
            settings,
            http,
            log: self.log,
        }
    }

    /// Plain HTTP carries passwords and tokens that anyone on the way can read.
    fn address(
        &self,
        field: &'static str,
        text: &str,
        problems: &mut Problems,
    ) -> Option<SocketAddr> {
        let Ok(address) = text.parse::<SocketAddr>() else {
            problems.add(field, format!("expected ADDRESS:PORT, found {text:?}"));
            return None;
        };
        if !address.ip().is_loopback() && !self.allow_plain_http_beyond_loopback {
            problems.add(
                field,
                format!(
                    "{address} can be reached from other machines, and plain HTTP would show \
                     them passwords and tokens: listen on loopback behind a proxy that speaks \
                     TLS, or set allow_plain_http_beyond_loopback = true"
                ),
            );
        }
        Some(address)
    }

    fn repositories_path(&self) -> PathBuf {
        self.repositories_dir.clone().unwrap_or_else(|| self.state_dir.join("repositories"))
    }

    fn location(&self) -> Location {
        let given = &self.repositories;
        match given.kind {
            RepositoriesKind::Directory => Location::Directory(self.repositories_path()),
            RepositoriesKind::S3 => Location::S3(Bucket {
                endpoint: given.endpoint.clone().unwrap_or_default(),
                name: given.bucket.clone().unwrap_or_default(),
                prefix: given.prefix.clone().unwrap_or_default(),
                region: given.region.clone(),
                addressing: match given.path_style {
                    true => Addressing::Path,
                    false => Addressing::VirtualHost,
                },
                credentials_file: given.credentials_file.clone(),
                ca_file: given.ca_file.clone(),
            }),
        }
    }

    fn service_key_path(&self) -> PathBuf {
        self.service_key.clone().unwrap_or_else(|| self.state_dir.join("service.key"))
    }

    fn check_paths(&self, problems: &mut Problems) {
        problems.absolute("state_dir", &self.state_dir);
        problems.absolute("users", &self.users);
        let Cloud::Local { servers_dir } = &self.cloud;
        problems.absolute("cloud.servers_dir", servers_dir);
        if let Some(path) = &self.repositories_dir {
            problems.absolute("repositories_dir", path);
        }
        if let Some(key) = &self.service_key {
            problems.absolute("service_key", key);
        }
        let (key, repositories) = (self.service_key_path(), self.repositories_path());
        if key.starts_with(&repositories) {
            let text = "expected a file outside repositories_dir: whoever copies the \
                        repositories must not get the key with them";
            problems.add("service_key", text);
        }
    }

    fn check_repositories(&self, problems: &mut Problems) {
        let given = &self.repositories;
        let files = [
            ("repositories.credentials_file", &given.credentials_file),
            ("repositories.ca_file", &given.ca_file),
        ];
        if given.kind == RepositoriesKind::Directory {
            let texts = [
                ("repositories.endpoint", &given.endpoint),
                ("repositories.bucket", &given.bucket),
                ("repositories.prefix", &given.prefix),
            ];
            let set = texts.iter().filter(|(_, text)| text.is_some()).map(|(field, _)| *field);
            let files = files.iter().filter(|(_, path)| path.is_some()).map(|(field, _)| *field);
            for field in set.chain(files) {
                problems.add(field, "expected only where repositories.kind is \"s3\"");
            }
            return;
        }
        if self.repositories_dir.is_some() {
            problems.add("repositories_dir", "expected none where repositories.kind is \"s3\"");
        }
        for (field, path) in files {
            if let Some(path) = path {
                problems.absolute(field, path);
            }
        }
        let endpoint = given.endpoint.as_deref().unwrap_or_default();
        if !is_endpoint(endpoint) {
            let text = "expected https://HOST or https://HOST:PORT (or http://), with nothing \
                        after it";
            problems.add("repositories.endpoint", format!("{text}, found {endpoint:?}"));
        }
        let bucket = given.bucket.as_deref().unwrap_or_default();
        if !is_bucket(bucket) {
            let text = "expected 3 to 63 lower-case letters, digits, `-` and `.`";
            problems.add("repositories.bucket", format!("{text}, found {bucket:?}"));
        } else if !given.path_style && bucket.contains('.') && endpoint.starts_with("https://") {
            let text = "expected true for a bucket with a dot in its name: no certificate is \
                        good for such a host";
            problems.add("repositories.path_style", text);
        }
        if let Some(prefix) = &given.prefix
            && !is_prefix(prefix)
        {
            let text = "expected folders of letters, digits, `-`, `_` and `.` with single slashes \
                        between them";
            problems.add("repositories.prefix", format!("{text}, found {prefix:?}"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if !(1..=64).contains(&given.region.len()) || !given.region.chars().all(plain) {
            let text = "expected 1 to 64 letters, digits, `-` and `_`";
            problems.add("repositories.region", text);
        }
    }

    fn check_numbers(&self, problems: &mut Problems) {
        problems.within("token_lifetime_secs", &self.token_lifetime_secs, (60, 30 * DAY_SECS));
        problems.within("workers", &self.workers, (1, 256));
        problems.within("mover_threads", &self.mover_threads, (1, 64));
        // A chunk of 4 MiB takes 4 s at the least of these, and a mover that waits hears
        // of nothing.
        if let Some(rate) = &self.mover_bytes_per_sec {
            problems.within("mover_bytes_per_sec", rate, (1 << 20, 1 << 40));
        }
        if let Some(rate) = &self.mover_operations_per_sec {
            problems.within("mover_operations_per_sec", rate, (1, 1_000_000));
        }
        problems.within("verify_days", &self.verify_days, (1, 3650));
        let rate = &self.verify_bytes_per_sec;
        problems.within("verify_bytes_per_sec", rate, (1 << 20, 1 << 40));
        problems.within("verify_time_percent", &self.verify_time_percent, (1, 100));
        problems.within("compression_level", &self.compression_level, (-7, 19));
        if self.compression_level == 0 {
            problems.add("compression_level", "expected a level other than 0");
        }
        problems.within("lease_secs", &self.lease_secs, (6, 3600));
        let limits = &self.limits;
        problems.within("limits.body_bytes_max", &limits.body_bytes_max, (1 << 10, 64 << 20));
        problems.within("limits.json_depth_max", &limits.json_depth_max, (8, 64));
        let values = &limits.json_values_max;
        problems.within("limits.json_values_max", values, (1000, 10_000_000));
        problems.within("limits.questions_max", &limits.questions_max, (1, 10_000));
        problems.within("limits.mappings_max", &limits.mappings_max, (1, 1024));
        problems.within("limits.request_secs", &limits.request_secs, (1, 600));
        problems.within("limits.requests_max", &limits.requests_max, (1, 65_536));
        problems.within("limits.connections_max", &limits.connections_max, (1, 65_536));
        problems.within("limits.header_secs", &limits.header_secs, (1, 600));
        problems.within("limits.write_secs", &limits.write_secs, (1, 600));
        problems.within("limits.headers_max", &limits.headers_max, (16, 1024));
        problems.within("limits.header_bytes_max", &limits.header_bytes_max, (8 << 10, 1 << 20));
        problems.within("limits.drain_secs", &limits.drain_secs, (0, 3600));
        problems.within("limits.lookups_max", &limits.lookups_max, (1, 4096));
        let most = limits.lookups_max.max(1);
        let each = &limits.lookups_per_project_max;
        problems.within("limits.lookups_per_project_max", each, (1, most));
        problems.within("limits.hashes_max", &limits.hashes_max, (1, 64));
        let failed = &limits.failed_logins_per_minute_max;
        problems.within("limits.failed_logins_per_minute_max", failed, (1, 10_000));
        problems.within("limits.leases_max", &limits.leases_max, (0, 10_000));
        problems.within("limits.lease_hours_max", &limits.lease_hours_max, (1, 24 * 365));
    }

    fn check_words(&self, problems: &mut Problems) {
        if let Some(url) = &self.public_url {
            let scheme = ["https://", "http://"].iter().find_map(|s| url.strip_prefix(s));
            let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '"');
            let is_url = scheme.is_some_and(|rest| !rest.is_empty() && rest.chars().all(plain));
            if !is_url || url.ends_with('/') {
                let text = "expected http:// or https://, a host, and no slash at the end";
                problems.add("public_url", format!("{text}, found {url:?}"));
            }
            if self.trust_proxy_headers {
                problems.add("trust_proxy_headers", "expected false where public_url is set");
            }
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !(1..=255).contains(&self.region.len()) || !self.region.chars().all(plain) {
            problems.add("region", "expected 1 to 255 letters, digits, `-`, `_` and `.`");
        }
        for (field, zones) in [("store_zones", &self.store_zones), ("key_zones", &self.key_zones)] {
            if zones.iter().any(|zone| !(1..=255).contains(&zone.chars().count())) {
                problems.add(field, "expected names of 1 to 255 characters");
            }
        }
        if self.verify_first_tag.is_some() && self.first_tag().is_none() {
            problems.add("verify_first_tag", "expected KEY=VALUE, a tag as backups have them");
        }
        if let Err(text) = telemetry::is_filter(&self.log.filter) {
            problems.add("log.filter", format!("expected a level such as \"info\": {text}"));
        }
    }

    fn first_tag(&self) -> Option<Tag> {
        let (key, value) = self.verify_first_tag.as_ref()?.split_once('=')?;
        Tag::new(key, value).ok()
    }

    fn settings(&self) -> Settings {
        let limits = &self.limits;
        Settings {
            protect: protect::Settings {
                shared_volumes: match self.shared_volumes {
                    SharedVolumes::Allowed => protect::SharedVolumes::Allowed,
                    SharedVolumes::Refused => protect::SharedVolumes::Refused,
                },
                zones_without_backup: self.zones_without_backup.clone(),
            },
            limits: ServiceLimits {
                questions_max: limits.questions_max,
                mappings_max: limits.mappings_max,
                lookups_max: limits.lookups_max,
                lookups_per_project_max: limits.lookups_per_project_max,
                request_time: Duration::from_secs(limits.request_secs),
                hashes_max: limits.hashes_max,
                failed_logins_per_minute_max: limits.failed_logins_per_minute_max,
                leases_max: limits.leases_max,
                lease_time_max: Duration::from_secs(limits.lease_hours_max * HOUR_SECS),
            },
            lease: Lease { length: Duration::from_secs(self.lease_secs) },
            workers: self.workers,
            token_lifetime: Duration::from_secs(self.token_lifetime_secs),
            compression_level: self.compression_level,
            verify_before_store: self.verify_before_store,
            mover_threads: self.mover_threads,
            mover_rates: Rates {
                bytes_per_sec: self.mover_bytes_per_sec,
                operations_per_sec: self.mover_operations_per_sec,
            },
            verify: Verify {
                period: Duration::from_secs(self.verify_days * DAY_SECS),
                rates: Rates {
                    bytes_per_sec: Some(self.verify_bytes_per_sec),
                    operations_per_sec: None,
                },
                time_percent: self.verify_time_percent,
                first: self.first_tag(),
            },
            drill: self.drill.settings(),
            kdf: Kdf::Strong,
            places: Places { store: self.store_zones.clone(), key: self.key_zones.clone() },
        }
    }

    fn http(&self) -> kedge_api::Limits {
        let limits = &self.limits;
        kedge_api::Limits {
            body_bytes_max: limits.body_bytes_max,
            json_depth_max: limits.json_depth_max,
            json_values_max: limits.json_values_max,
            request_time: Duration::from_secs(limits.request_secs) + ANSWER_TIME,
            requests_max: limits.requests_max,
            connections_max: limits.connections_max,
            header_time: Duration::from_secs(limits.header_secs),
            write_time: Duration::from_secs(limits.write_secs),
            headers_max: limits.headers_max,
            header_bytes_max: limits.header_bytes_max,
            drain_time: Duration::from_secs(limits.drain_secs),
        }
    }
}

impl Checked {
    /// Reads and checks a file, for everything that needs a good one.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        Config::read(path)?.check().map_err(|problems| {
            let lines: Vec<_> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
            Failure::new(format!("configuration {}:{}", path.display(), lines.concat()))
        })
    }

    /// What the machine says about the paths, without changing anything.
    pub(crate) fn check_machine(&self) -> Vec<Problem> {
        let mut problems = Problems(self.check_machine_for_repositories());
        let Cloud::Local { servers_dir } = &self.cloud;
        if !servers_dir.is_dir() {
            let text = format!("expected a directory of servers at {}", servers_dir.display());
            problems.add("cloud.servers_dir", text);
        }
        self.drill.check_machine(&mut problems);
        problems.0
    }
}

/// `http://` or `https://`, a host and perhaps a port.
fn is_endpoint(text: &str) -> bool {
    let rest = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some(authority) = rest else { return false };
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            if port.parse::<u16>().is_err() {
                return false;
            }
            host
        }
        Some(_) | None => authority,
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    match address {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(plain),
    }
}

/// A name every store accepts.
fn is_bucket(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=63).contains(&text.len())
        && text.chars().all(plain)
        && text.starts_with(edge)
        && text.ends_with(edge)
        && !text.contains("..")
}

/// Folders that are no way up or nowhere.
fn is_prefix(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let folder = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(plain);
    text.len() <= 512 && text.split('/').all(folder)
}

/// The files a bucket needs can be read, and hold what they must.
fn check_files(bucket: &Bucket, problems: &mut Problems) {
    if let Err(text) = places::credentials(bucket)
        .and_then(|credentials| credentials.current().map(drop).map_err(|error| error.to_string()))
    {
        problems.add("repositories.credentials_file", text);
    }
    if let Err(text) = places::read_certificates(bucket) {
        problems.add("repositories.ca_file", text);
    }
}

impl Checked {
    /// Where the indexes of repositories are kept for the next process.
    pub(crate) fn index_cache_dir(&self) -> PathBuf {
        self.state_dir.join("index")
    }

    /// What the machine says about what needs no cloud.
    pub(crate) fn check_machine_for_repositories(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        is_private_dir("state_dir", &self.state_dir, &mut problems);
        match &self.repositories {
            Location::Directory(dir) => is_private_dir("repositories_dir", dir, &mut problems),
            Location::S3(bucket) => check_files(bucket, &mut problems),
        }
        problems.0
    }
}

/// A directory of ours is private, or is not there yet and will be made so.
fn is_private_dir(field: &'static str, path: &Path, problems: &mut Problems) {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            problems.add(field, format!("expected a directory at {}", path.display()));
        }
        Ok(_) => match private::open_to_others(path) {
            Ok(None) => {}
            Ok(Some(mode)) => problems
                .add(field, format!("expected mode 0700 at {}, found {mode:04o}", path.display())),
            Err(error) => problems.add(field, format!("{}: {error}", path.display())),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => problems.add(field, format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    const DOC: &str = include_str!("../../../docs/configuration.md");
    const EXAMPLE: &str = include_str!("../../../packaging/kedge.toml");

    fn good() -> Config {
        let text = r#"
            state_dir = "/var/lib/kedge"
            users = "/etc/kedge/users.toml"
            [cloud]
            kind = "local"
            servers_dir = "/srv/servers"
        "#;
        toml::from_str(text).unwrap()
    }

    fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    flatten(&format!("{prefix}{dot}{name}"), value, into);
                }
            }
            other => {
                into.insert(prefix.to_owned(), other.to_string());
            }
        }
    }

    /// Rows of the page's tables: field and default.
    fn documented() -> BTreeMap<String, String> {
        let cell = |text: &str| text.trim().trim_matches('`').to_owned();
        DOC.lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| {
                let cells: Vec<_> = line.split('|').collect();
                assert_eq!(cells.len(), 5, "field, default, meaning: {line}");
                assert!(cells[3].trim().len() > 20, "says why: {line}");
                (cell(cells[1]), cell(cells[2]))
            })
            .collect()
    }

    #[test]
    fn docs_name_every_field_with_its_default() {
        let mut fields = BTreeMap::new();
        flatten("", &serde_json::to_value(Config::default()).unwrap(), &mut fields);
        for (field, default) in &mut fields {
            match field.as_str() {
                "state_dir" | "users" | "cloud.servers_dir" => "required".clone_into(default),
                _ if default == "null" => "none".clone_into(default),
                _ => {}
            }
        }
        assert_eq!(documented(), fields);
    }

    #[test]
    fn the_packaged_example_is_good() {
        let config: Config = toml::from_str(EXAMPLE).unwrap();
        let checked = config.check().unwrap();
        assert_eq!(checked.service_key, Path::new("/etc/kedge/service.key"));
        assert_eq!(checked.repositories, Location::Directory("/var/lib/kedge/repositories".into()));
    }

    #[test]
    fn an_empty_file_is_told_all_that_it_lacks_at_once() {
        let problems = toml::from_str::<Config>("").unwrap().check().unwrap_err();
        let fields: Vec<_> = problems.iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["state_dir", "users", "cloud.servers_dir"]);
    }

    /// Starts from a file every rule allows and breaks one field per row.
    #[test]
    fn each_wrong_value_is_told_with_its_field() {
        type Break = fn(&mut Config);
        let rows: [(&str, Break); 16] = [
            ("state_dir", |c| c.state_dir = "here".into()),
            ("users", |c| c.users = "users.toml".into()),
            ("repositories_dir", |c| c.repositories_dir = Some("r".into())),
            ("service_key", |c| c.service_key = Some("key".into())),
            ("service_key", |c| {
                c.repositories_dir = Some("/r".into());
                c.service_key = Some("/r/key".into());
            }),
            ("listen", |c| c.listen = "8799".to_owned()),
            ("listen", |c| c.listen = "0.0.0.0:8799".to_owned()),
            ("metrics_listen", |c| c.metrics_listen = Some("[::]:1".to_owned())),
            ("public_url", |c| c.public_url = Some("ftp://host".to_owned())),
            ("public_url", |c| c.public_url = Some("https://host/".to_owned())),
            ("region", |c| c.region = String::new()),
            ("workers", |c| c.workers = 0),
            ("lease_secs", |c| c.lease_secs = 1),
            ("limits.questions_max", |c| c.limits.questions_max = 0),
            ("limits.lookups_per_project_max", |c| c.limits.lookups_per_project_max = 99),
            ("log.filter", |c| c.log.filter = "=loud=".to_owned()),
        ];
        for (field, break_it) in rows {
            let mut config = good();
            assert!(config.clone().check().is_ok());
            break_it(&mut config);
            let problems = config.check().unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].field, field);
        }
    }

    fn in_a_bucket() -> Config {
        let text = r#"
            kind = "s3"
            endpoint = "https://s3.example.org:9000"
            bucket = "backups.example"
            prefix = "kedge/one"
            region = "eu-1"
            credentials_file = "/etc/kedge/s3"
        "#;
        Config { repositories: toml::from_str(text).unwrap(), ..good() }
    }

    #[test]
    fn a_bucket_holds_repositories_instead_of_a_directory() {
        let Location::S3(bucket) = in_a_bucket().check().unwrap().repositories else {
            panic!("a bucket")
        };
        assert_eq!(bucket.endpoint, "https://s3.example.org:9000");
        assert_eq!(bucket.addressing, Addressing::Path);
        assert_eq!(bucket.prefix, "kedge/one");
    }

    #[test]
    fn each_wrong_value_of_a_bucket_is_told_with_its_field() {
        type Break = fn(&mut Config);
        let rows: [(&str, Break); 20] = [
            ("repositories_dir", |c| c.repositories_dir = Some("/r".into())),
            ("repositories.endpoint", |c| c.repositories.endpoint = None),
            ("repositories.endpoint", |c| c.repositories.endpoint = Some("s3.host".into())),
            ("repositories.endpoint", |c| c.repositories.endpoint = Some("https://".into())),
            ("repositories.endpoint", |c| c.repositories.endpoint = Some("https://h/b".into())),
            ("repositories.endpoint", |c| c.repositories.endpoint = Some("https://u@h".into())),
            ("repositories.endpoint", |c| c.repositories.endpoint = Some("https://h:x".into())),
            ("repositories.endpoint", |c| c.repositories.endpoint = Some("https://[x]".into())),
            ("repositories.bucket", |c| c.repositories.bucket = None),
            ("repositories.bucket", |c| c.repositories.bucket = Some("UP".into())),
            ("repositories.bucket", |c| c.repositories.bucket = Some("a/b".into())),
            ("repositories.bucket", |c| c.repositories.bucket = Some("-abc".into())),
            ("repositories.prefix", |c| c.repositories.prefix = Some(String::new())),
            ("repositories.prefix", |c| c.repositories.prefix = Some("/a".into())),
            ("repositories.prefix", |c| c.repositories.prefix = Some("a/../b".into())),
            ("repositories.prefix", |c| c.repositories.prefix = Some("a b".into())),
            ("repositories.region", |c| c.repositories.region = "eu 1".into()),
            ("repositories.path_style", |c| c.repositories.path_style = false),
            ("repositories.credentials_file", |c| {
                c.repositories.credentials_file = Some("s3".into());
            }),
            ("repositories.ca_file", |c| c.repositories.ca_file = Some("../ca".into())),
        ];
        for (field, break_it) in rows {
            let mut config = in_a_bucket();
            assert!(config.clone().check().is_ok());
            break_it(&mut config);
            let problems = config.check().unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].field, field);
        }
        let mut config = in_a_bucket();
        config.repositories.kind = RepositoriesKind::Directory;
        assert_eq!(config.check().unwrap_err().len(), 4);
        for endpoint in
            ["http://127.0.0.1:9000", "https://[::1]:9000", "https://[::1]", "https://h"]
        {
            assert!(is_endpoint(endpoint), "{endpoint}");
        }
    }

    #[test]
    fn plain_http_goes_beyond_loopback_only_when_told_so() {
        let mut config = good();
        config.listen = "192.0.2.1:80".to_owned();
        let problems = config.clone().check().unwrap_err();
        assert!(problems[0].expected.contains("allow_plain_http_beyond_loopback"));
        config.allow_plain_http_beyond_loopback = true;
        assert!(config.check().is_ok());
    }

    #[test]
    fn an_unknown_field_is_no_field() {
        for text in ["colour = 1", "[limits]\ncolour = 1", "[cloud]\nkind = \"local\"\nx = 1"] {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
    }
}
