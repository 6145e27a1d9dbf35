//! One worker's hold on one job: its lease, its way to stop, its progress.
//!
//! A fence protects rows, not disks. So before every write outside the catalogue the
//! holder asks its [`LeaseGuard`]: has the lease, counted on the monotonic clock from when
//! the last heartbeat was *sent*, a third left? If not, it stops; whoever takes the job
//! over waits longer than that.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kedge_core::job::{Cancel, Job, Lease};
use kedge_core::ports::Clock;
use kedge_core::refusal::Refusal;
use kedge_engine::{CancelFlag, EngineError, Gate, Progress, Session, Stopped};
use kedge_store::{Heartbeat, StoreError};
use tokio_util::sync::CancellationToken;

use crate::app::Parts;
use crate::job::session_name;
use crate::repositories::{RepositoryError, blocking, engine_time};

/// restic calls a lock stale after half an hour without a renewal.
const LOCK_RENEWAL: Duration = Duration::from_secs(5 * 60);
const LOOK_AT_LOCK_EVERY: Duration = Duration::from_secs(30);
/// How often progress is written while a job runs.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// One worker's hold on one job.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) parts: Arc<Parts>,
    pub(crate) job: Job,
    pub(crate) lease: Arc<LeaseGuard>,
    pub(crate) stop: CancelFlag,
    pub(crate) meter: Arc<Meter>,
    /// Rung for good when nothing of the attempt runs any more.
    pub(crate) ended: CancellationToken,
    why_stopped: Mutex<Option<Stop>>,
    session: Mutex<Option<(Arc<Session>, Duration)>>,
}

/// Why a job is to stop before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Somebody asked for it.
    Cancelled,
    /// The process ends; another will go on.
    Shutdown,
    /// Somebody else may hold the job by now.
    Lost,
}

/// Why an arrow did not reach its next state.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It may pass.
    Retry(String),
    /// It will not pass; the job is to be undone.
    Fault(String),
    /// The rules say no.
    Refused(Refusal),
    /// The frozen moment is gone; a backup begins again.
    MomentLost(String),
    /// Stopped from outside.
    Stopped(Stop),
}

impl Attempt {
    pub(crate) fn new(parts: Arc<Parts>, job: Job, claimed_at: Duration) -> Self {
        let lease = LeaseGuard::new(parts.clock.clone(), parts.settings.lease, claimed_at);
        let attempt = Self {
            parts,
            job,
            lease: Arc::new(lease),
            stop: CancelFlag::new(),
            meter: Arc::default(),
            ended: CancellationToken::new(),
            why_stopped: Mutex::default(),
            session: Mutex::default(),
        };
        match attempt.job.cancel {
            Cancel::Requested => attempt.stop(Stop::Cancelled),
            Cancel::No => {}
        }
        attempt
    }

    /// Says that the job is to end soon; the first reason stays.
    pub(crate) fn stop(&self, why: Stop) {
        self.why_stopped.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        if why == Stop::Lost {
            self.lease.lose();
        }
        self.stop.cancel();
    }

    /// Why the job was told to stop, if it was.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        *self.why_stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be asked before every change outside the catalogue that the engine does not
    /// make itself.
    pub(crate) fn may_write(&self) -> Result<(), Trouble> {
        if let Some(why) = self.stopped() {
            return Err(Trouble::Stopped(why));
        }
        self.lease.may_write().map_err(|_| Trouble::Stopped(Stop::Lost))
    }

    /// To be asked before a change that a cancelled job still makes: one past the point
    /// of no return, or one that cleans up.
    pub(crate) fn may_finish(&self) -> Result<(), Trouble> {
        self.lease.may_write().map_err(|_| Trouble::Stopped(Stop::Lost))
    }

    /// Says that the job is here, for tests that want to know.
    pub(crate) fn at(&self, point: &str) {
        self.parts.points.pass(point);
    }

    /// Keeps the repository's lock object alive between arrows of this attempt.
    pub(crate) fn keep_session(&self, session: Arc<Session>) {
        let now = self.parts.clock.monotonic();
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some((session, now));
    }

    /// The session this attempt opened, if it did.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.as_ref().map(|(session, _)| session.clone())
    }

    /// Removes the repository's lock object.
    pub(crate) async fn end_session(&self) {
        let ended = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(session) = ended.and_then(|(session, _)| Arc::into_inner(session)) else { return };
        if let Err(error) = blocking(move || session.close()).await {
            tracing::warn!(job.id = %self.job.id, "lock object was not removed: {error}");
        }
    }

    /// Removes the lock objects that dead attempts at this job left: for a holder that has
    /// finished it, and needs none itself any more.
    pub(crate) async fn remove_dead_locks(&self) {
        let repository = match self.parts.repositories.get(&self.job.project_id).await {
            Ok(repository) => repository,
            Err(RepositoryError::None) => return,
            Err(error) => return tracing::warn!(job.id = %self.job.id, "dead locks stay: {error}"),
        };
        let name = session_name(&self.job.id);
        if let Err(error) = blocking(move || repository.remove_session_locks(&name)).await {
            tracing::warn!(job.id = %self.job.id, "dead locks stay: {error}");
        }
    }

    /// Says that the holder lives, to the catalogue and in the repository. Neither waits
    /// for the other.
    pub(crate) async fn beat(&self) {
        tokio::select! {
            () = self.send_heartbeats() => {}
            () = self.renew_locks() => {}
        }
    }

    /// Until the job is lost.
    async fn send_heartbeats(&self) {
        let lease = self.parts.settings.lease;
        let every = lease.heartbeat().min(PROGRESS_EVERY);
        loop {
            tokio::time::sleep(every).await;
            let sent = self.parts.clock.monotonic();
            match self.heartbeat().await {
                Ok(cancel) => {
                    self.lease.extend(sent);
                    if cancel == Cancel::Requested {
                        self.stop(Stop::Cancelled);
                    }
                }
                Err(StoreError::FenceLost) => return self.stop(Stop::Lost),
                // Not heard: the lease runs on, and closes the gate in time.
                Err(error) => tracing::warn!(job.id = %self.job.id, "heartbeat failed: {error}"),
            }
        }
    }

    async fn renew_locks(&self) {
        loop {
            tokio::time::sleep(LOOK_AT_LOCK_EVERY).await;
            self.renew_lock().await;
        }
    }

    async fn heartbeat(&self) -> Result<Cancel, StoreError> {
        let (store, now) = (&self.parts.store, self.parts.clock.now());
        let until = now.plus(self.parts.settings.lease.length);
        store.heartbeat(&Heartbeat::of(&self.job, until, self.meter.percent(), now)).await
    }

    async fn renew_lock(&self) {
        let now = self.parts.clock.monotonic();
        let due = {
            let mut held = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            match held.as_mut() {
                Some((session, renewed)) if now.saturating_sub(*renewed) >= LOCK_RENEWAL => {
                    *renewed = now;
                    Some(session.clone())
                }
                Some(_) | None => None,
            }
        };
        let Some(session) = due else { return };
        let at = engine_time(self.parts.clock.now());
        if let Err(error) = blocking(move || session.refresh_lock(at)).await {
            tracing::warn!(job.id = %self.job.id, "lock object was not renewed: {error}");
        }
    }

    /// What an engine's or repository's error means for the job.
    pub(crate) fn trouble(&self, error: RepositoryError) -> Trouble {
        if let RepositoryError::Engine(EngineError::Cancelled) = error {
            return Trouble::Stopped(self.stopped().unwrap_or(Stop::Shutdown));
        }
        if let RepositoryError::Engine(EngineError::Stopped(_)) = error {
            return Trouble::Stopped(Stop::Lost);
        }
        // The whole story is the operator's; tenants read the item's `fail_reason`.
        tracing::warn!(job.id = %self.job.id, "repository trouble: {error}");
        let text = error.public_text();
        // A full store is emptied by people, sooner or later.
        if error.is_retryable() || error.is_full() {
            Trouble::Retry(text)
        } else {
            Trouble::Fault(text)
        }
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::FenceLost => Self::Stopped(Stop::Lost),
            error if error.is_retryable() => Self::Retry(error.to_string()),
            error => Self::Fault(error.to_string()),
        }
    }
}

impl From<kedge_core::ports::CloudError> for Trouble {
    fn from(error: kedge_core::ports::CloudError) -> Self {
        use kedge_core::ports::CloudErrorKind as Kind;
        match error.kind {
            Kind::Retryable => Self::Retry(error.text),
            Kind::Permanent => Self::Fault(error.text),
            Kind::MomentLost => Self::MomentLost(error.text),
        }
    }
}

/// The lease as the mover's threads see it.
#[derive(Debug)]
pub(crate) struct LeaseGuard {
    clock: Arc<dyn Clock>,
    lease: Lease,
    /// Monotonic microseconds at which the lease ends.
    until_micros: AtomicU64,
    lost: AtomicBool,
}

impl LeaseGuard {
    fn new(clock: Arc<dyn Clock>, lease: Lease, claimed_at: Duration) -> Self {
        let guard =
            Self { clock, lease, until_micros: AtomicU64::new(0), lost: AtomicBool::new(false) };
        guard.extend(claimed_at);
        guard
    }

    fn extend(&self, sent: Duration) {
        let until = sent.saturating_add(self.lease.length).as_micros();
        self.until_micros.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }
}

impl Gate for LeaseGuard {
    fn may_write(&self) -> Result<(), Stopped> {
        let until = Duration::from_micros(self.until_micros.load(Ordering::SeqCst));
        let needed = self.clock.monotonic().saturating_add(self.lease.margin());
        if self.lost.load(Ordering::SeqCst) || needed > until {
            return Err(Stopped { why: "the job's lease has run out".to_owned() });
        }
        Ok(())
    }
}

/// Counts bytes towards a goal.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    done_bytes: AtomicU64,
    goal_bytes: AtomicU64,
}

impl Meter {
    /// Begins to count anew.
    pub(crate) fn begin(&self, goal_bytes: u64) {
        self.done_bytes.store(0, Ordering::Relaxed);
        self.goal_bytes.store(goal_bytes, Ordering::Relaxed);
    }

    /// Per cent done, at most 99: the last one is the commit's. `None` before there is a
    /// goal.
    pub(crate) fn percent(&self) -> Option<u8> {
        let goal = self.goal_bytes.load(Ordering::Relaxed);
        let done = self.done_bytes.load(Ordering::Relaxed).min(goal);
        let percent = u128::from(done) * 100 / u128::from(goal).max(1);
        (goal > 0).then(|| u8::try_from(percent).unwrap_or(99).min(99))
    }
}

impl Progress for Meter {
    fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
