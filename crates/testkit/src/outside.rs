//! The outside world as tests want it: time that stands still, ids that repeat from run to
//! run, repositories in memory that can be taken away.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kedge_core::ids::ProjectId;
use kedge_core::ports::{Clock, IdSource};
use kedge_core::time::Timestamp;
use kedge_engine::layer::{FaultBackend, Pace};
use kedge_engine::{Backend, MemoryBackend, ObjectName};
use kedge_service::places::Places;
use kedge_service::repositories::RepositoryError;
use uuid::Uuid;

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock {
    micros: AtomicI64,
    start_micros: i64,
    /// How far the wall clock was set wrong.
    wrong_micros: AtomicI64,
}

impl ManualClock {
    /// A clock at 2026-03-07T09:27:40.928000.
    pub fn new() -> Self {
        let start_micros = 1_772_875_660_928_000;
        let (micros, wrong_micros) = (AtomicI64::new(start_micros), AtomicI64::new(0));
        Self { micros, start_micros, wrong_micros }
    }

    /// Lets time pass.
    pub fn advance(&self, span: Duration) {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        self.micros.fetch_add(micros, Ordering::SeqCst);
    }

    /// Sets the wall clock wrong by so many seconds, or right by none. No time passes.
    pub fn set_wrong_by(&self, seconds: i64) {
        self.wrong_micros.store(seconds.saturating_mul(1_000_000), Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let micros = self.micros.load(Ordering::SeqCst);
        Timestamp::from_micros(micros + self.wrong_micros.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        let elapsed = self.micros.load(Ordering::SeqCst) - self.start_micros;
        Duration::from_micros(u64::try_from(elapsed).unwrap_or(0)) + Duration::from_secs(1_000)
    }
}

/// Time that passes by waiting alone: how long movers would have waited.
#[derive(Debug, Default)]
pub struct WaitedTime(Mutex<Duration>);

impl Pace for WaitedTime {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += time;
    }

    fn jitter(&self) -> f64 {
        0.5
    }
}

/// Ids 00000000-0000-4000-8000-000000000001 and up, after those that a test chose.
#[derive(Debug, Default)]
pub struct SequentialIds {
    given: AtomicU64,
    chosen: Mutex<VecDeque<Uuid>>,
}

impl SequentialIds {
    /// The next ids are these, in this order.
    pub fn choose(&self, ids: impl IntoIterator<Item = Uuid>) {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }
}

impl IdSource for SequentialIds {
    fn next_uuid(&self) -> Uuid {
        let chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        if let Some(chosen) = chosen {
            return chosen;
        }
        let number = u128::from(self.given.fetch_add(1, Ordering::SeqCst) + 1);
        Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0000 | number)
    }
}

/// Repositories in memory, one per project, that outlive the service under test.
#[derive(Clone, Debug, Default)]
pub struct MemoryPlaces(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    backends: Mutex<HashMap<ProjectId, Arc<FaultBackend<MemoryBackend>>>>,
}

impl MemoryPlaces {
    /// The store of a project's repository, for faults and inspection.
    pub fn store_of(&self, project: &ProjectId) -> Arc<FaultBackend<MemoryBackend>> {
        let mut backends = self.0.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(FaultBackend::new(MemoryBackend::new()));
        backends.entry(project.clone()).or_insert_with(fresh).clone()
    }
}

impl Places for MemoryPlaces {
    fn backend(&self, project: &ProjectId) -> Result<Arc<dyn Backend>, RepositoryError> {
        Ok(self.store_of(project))
    }

    fn restic_location(&self, project: &ProjectId) -> Result<String, RepositoryError> {
        Err(RepositoryError::Failed(format!("the repository of {project} lies in memory")))
    }

    fn list_projects(&self) -> Result<Vec<ProjectId>, RepositoryError> {
        let backends = self.0.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let holds_one = |store: &FaultBackend<MemoryBackend>| {
            [ObjectName::Config, ObjectName::Access]
                .iter()
                .any(|name| matches!(store.inner().find_size(name), Ok(Some(_))))
        };
        let found = backends.iter().filter(|(_, store)| holds_one(store));
        let mut projects: Vec<_> = found.map(|(project, _)| project.clone()).collect();
        projects.sort();
        Ok(projects)
    }
}
