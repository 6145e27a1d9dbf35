//! The configuration file, read once. `docs/configuration.md` tells what each field means
//! and why its default is what it is; a test keeps the two in step.
//!
//! Invariant: a [`Checked`] that exists is consistent. Everything that is wrong with the
//! values of a file is found in one go, so that nobody has to mend it line by line.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use kedge_core::job::Lease;
use kedge_core::protect;
use kedge_service::settings::{Kdf, Limits as ServiceLimits, Settings};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, OrFail as _};
use crate::{private, telemetry};

/// Larger than any sensible configuration: a path that names something else is noticed.
const FILE_BYTES_MAX: u64 = 1 << 20;

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
    pub(crate) compression_level: i32,
    pub(crate) verify_before_store: bool,
    pub(crate) lease_secs: u64,
    pub(crate) zones_without_backup: Vec<String>,
    pub(crate) shared_volumes: SharedVolumes,
    pub(crate) cloud: Cloud,
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
            compression_level: settings.compression_level,
            verify_before_store: settings.verify_before_store,
            lease_secs: settings.lease.length.as_secs(),
            zones_without_backup: settings.protect.zones_without_backup,
            shared_volumes: SharedVolumes::Allowed,
            cloud: Cloud::Local { servers_dir: PathBuf::new() },
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

/// A configuration whose values make sense.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) listen: SocketAddr,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) public_url: kedge_api::PublicUrl,
    pub(crate) region: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) repositories_dir: PathBuf,
    pub(crate) service_key: PathBuf,
    pub(crate) users: PathBuf,
    pub(crate) cloud: Cloud,
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
        self.check_numbers(&mut problems);
        self.check_words(&mut problems);
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
        let (repositories_dir, service_key) = (self.repositories_path(), self.service_key_path());
        Checked {
            listen,
            metrics_listen,
            public_url: match (self.public_url, self.trust_proxy_headers) {
                (Some(url), _) => kedge_api::PublicUrl::Fixed(url),
                (None, true) => kedge_api::PublicUrl::FromProxy,
                (None, false) => kedge_api::PublicUrl::FromHost,
            },
            region: self.region,
            repositories_dir,
            service_key,
            state_dir: self.state_dir,
            users: self.users,
            cloud: self.cloud,
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

    fn check_numbers(&self, problems: &mut Problems) {
        problems.within("token_lifetime_secs", &self.token_lifetime_secs, (60, 30 * 86_400));
        problems.within("workers", &self.workers, (1, 256));
        problems.within("mover_threads", &self.mover_threads, (1, 64));
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
        if let Err(text) = telemetry::is_filter(&self.log.filter) {
            problems.add("log.filter", format!("expected a level such as \"info\": {text}"));
        }
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
            },
            lease: Lease { length: Duration::from_secs(self.lease_secs) },
            workers: self.workers,
            token_lifetime: Duration::from_secs(self.token_lifetime_secs),
            compression_level: self.compression_level,
            verify_before_store: self.verify_before_store,
            mover_threads: self.mover_threads,
            kdf: Kdf::Strong,
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
        problems.0
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
        is_private_dir("repositories_dir", &self.repositories_dir, &mut problems);
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
        assert_eq!(checked.repositories_dir, Path::new("/var/lib/kedge/repositories"));
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
