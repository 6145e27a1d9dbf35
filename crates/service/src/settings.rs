//! What an operator may set, with the defaults and the reason of each limit.

use std::time::Duration;

use kedge_core::fleet::Places;
use kedge_core::job::Lease;
use kedge_core::protect;
use kedge_core::tag::Tag;
use kedge_engine::layer::Rates;

/// Settings of the service; the binary fills them from its configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rules the operator decides.
    pub protect: protect::Settings,
    /// What one request may ask for.
    pub limits: Limits,
    /// How long a worker may hold a job without a sign of life.
    pub lease: Lease,
    /// Jobs running at once: each holds disks open and some tens of MB.
    pub workers: usize,
    /// How long a token lives.
    pub token_lifetime: Duration,
    /// zstd level of new data; 2 by ADR 17, 1 is fast, negative ones faster still.
    pub compression_level: i32,
    /// Whether new data is opened again and compared before it is stored.
    pub verify_before_store: bool,
    /// Threads of one mover.
    pub mover_threads: usize,
    /// What all movers together may read from and write to disks.
    pub mover_rates: Rates,
    /// How what is stored is read back.
    pub verify: Verify,
    /// How backups are tried out.
    pub drill: Drill,
    /// Cost of the key derivation of new repositories.
    pub kdf: Kdf,
    /// Where store and key lie, for questions about lost zones.
    pub places: Places,
}

/// How what is stored is read back in the background.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    /// In this time everything is read once.
    pub period: Duration,
    /// What reading back may take from stores, over all repositories.
    pub rates: Rates,
    /// What reading back may take of the time, in percent.
    pub time_percent: u8,
    /// New backups with this tag are read back before others.
    pub first: Option<Tag>,
}

impl Default for Verify {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(30 * 24 * 60 * 60),
            rates: Rates { bytes_per_sec: Some(50 << 20), operations_per_sec: None },
            time_percent: 100,
            first: None,
        }
    }
}

/// How backups are tried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drill {
    /// In this time the latest backup of every server is drilled once; `None` where that
    /// only happens when somebody asks.
    pub every: Option<Duration>,
    /// What scheduled drills may take of the time, in percent.
    pub time_percent: u8,
    /// Whether servers are booted.
    pub boots: bool,
    /// The longest that booting may take.
    pub boot_time: Duration,
}

impl Default for Drill {
    fn default() -> Self {
        let boot_time = Duration::from_secs(300);
        Self { every: None, time_percent: 10, boots: false, boot_time }
    }
}

/// Cost of the key derivation of new repositories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kdf {
    /// What restic itself uses.
    Strong,
    /// For tests, whose passwords guard nothing.
    Cheap,
}

/// What one request may ask for, and what all requests may do at once.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Questions in one check: a page of servers.
    pub questions_max: usize,
    /// Mapped disks in one question: more than any server has.
    pub mappings_max: usize,
    /// Cloud look-ups running at once, over all projects: what a cloud's API bears.
    pub lookups_max: usize,
    /// Cloud look-ups of one project running at once, so that no project takes them all.
    pub lookups_per_project_max: usize,
    /// How long a request may take.
    pub request_time: Duration,
    /// Password hashes computed at once: each costs 19 MiB and a core.
    pub hashes_max: usize,
    /// Plans of one project that may hold leases at once.
    pub leases_max: usize,
    /// The longest lease: what outlasts a long weekend is a matter of retention.
    pub lease_time_max: Duration,
    /// Failed logins of one user per minute before further ones are refused.
    pub failed_logins_per_minute_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            protect: protect::Settings::default(),
            limits: Limits::default(),
            lease: Lease { length: Duration::from_secs(60) },
            workers: 2,
            token_lifetime: Duration::from_secs(24 * 60 * 60),
            compression_level: 2,
            verify_before_store: true,
            mover_threads: 2,
            mover_rates: Rates::default(),
            verify: Verify::default(),
            drill: Drill::default(),
            kdf: Kdf::Strong,
            places: Places::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            questions_max: 100,
            mappings_max: 64,
            lookups_max: 32,
            lookups_per_project_max: 8,
            request_time: Duration::from_secs(30),
            hashes_max: 2,
            leases_max: 20,
            lease_time_max: Duration::from_secs(7 * 24 * 60 * 60),
            failed_logins_per_minute_max: 10,
        }
    }
}
