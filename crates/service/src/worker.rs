//! Claims jobs and drives them from state to state.
//!
//! A job's outcome is decided here and nowhere else: retry with back-off, begin again,
//! give up and undo, or let go because the lease is lost.

use std::sync::{Arc, PoisonError};

use kedge_core::checkpoint::{Fault, FaultOperation};
use kedge_core::code::Code;
use kedge_core::job::{
    DeleteState, FAILURES_MAX, ProtectState, RESTARTS_MAX, RestoreState, WasRunning, Work, back_off,
};
use kedge_core::time::Timestamp;
use kedge_store::StoreError;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::app::{App, Parts};
use crate::attempt::{Attempt, Stop, Trouble};
use crate::job;

/// Without a bell, how long until the table of jobs is looked at again: the bell is only
/// a way to be quick.
const POLL: std::time::Duration = std::time::Duration::from_secs(5);

impl App {
    /// Runs jobs until `shutdown`, then lets go of those that run so that the next
    /// process goes on with them, and returns.
    pub async fn run_workers(&self, owner: &str, shutdown: CancellationToken) {
        let parts = &self.parts;
        let mut running = JoinSet::new();
        while !shutdown.is_cancelled() {
            if running.len() < parts.settings.workers {
                match parts.claim(owner).await {
                    Ok(Some(attempt)) => {
                        running.spawn(drive_until(attempt, shutdown.clone()));
                        continue;
                    }
                    Ok(None) => {}
                    Err(error) => tracing::error!("jobs cannot be claimed: {error}"),
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = parts.work_bell.notified(), if running.len() < parts.settings.workers => {}
                Some(ended) = running.join_next(), if !running.is_empty() => log_panic(ended),
                () = tokio::time::sleep(parts.until_due().await),
                    if running.len() < parts.settings.workers => {}
            }
        }
        while let Some(ended) = running.join_next().await {
            log_panic(ended);
        }
    }

    /// Runs every job that is due, one after the other, until none is: what tests and
    /// one-shot verbs use. Returns how many were run.
    pub async fn run_due_jobs(&self, owner: &str) -> Result<usize, StoreError> {
        let mut count = 0;
        while let Some(attempt) = self.parts.claim(owner).await? {
            drive_until(attempt, CancellationToken::new()).await;
            count += 1;
        }
        Ok(count)
    }
}

/// A job that panicked is claimed again when its lease is over.
fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!("bug: a job's task ended badly: {error}");
    }
}

impl Parts {
    async fn claim(self: &Arc<Self>, owner: &str) -> Result<Option<Arc<Attempt>>, StoreError> {
        let (sent, now) = (self.clock.monotonic(), self.clock.now());
        let until = now.plus(self.settings.lease.length);
        let job = self.store.claim_job(owner, now, until).await?;
        Ok(job.map(|job| Arc::new(Attempt::new(self.clone(), job, sent))))
    }

    async fn until_due(&self) -> std::time::Duration {
        match self.store.next_run_at().await {
            Ok(Some(at)) => at.since(self.clock.now()).clamp(MIN_WAIT, POLL),
            Ok(None) | Err(_) => POLL,
        }
    }
}

/// So that a job which is due but cannot be claimed does not make the loop spin.
const MIN_WAIT: std::time::Duration = std::time::Duration::from_millis(50);

/// How long the end of the process waits for jobs to come to a safe point. One that takes
/// longer is left as a crash would leave it.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(30);

async fn drive_until(attempt: Arc<Attempt>, shutdown: CancellationToken) {
    let job = &attempt.job;
    let turn = Turn::take(&attempt).await;
    tracing::info!(
        job.id = %job.id, job.kind = job.work.kind(), job.fence, job.restarts, item.id = %job.work.item(),
        "{} of {} begins or goes on", job.work.kind(), job.work.item()
    );
    // Aborted when dropped: a job that panics must not seem to live.
    let heart = AbortOnDropHandle::new(tokio::spawn({
        let attempt = attempt.clone();
        async move { attempt.beat().await }
    }));
    let work = drive(&attempt);
    tokio::pin!(work);
    tokio::select! {
        () = &mut work => {}
        () = shutdown.cancelled() => {
            attempt.stop(Stop::Shutdown);
            if tokio::time::timeout(DRAIN, work).await.is_err() {
                tracing::warn!(job.id = %job.id, "a job did not stop in time and is left to the next process");
            }
        }
    }
    drop(heart);
    attempt.end_session().await;
    drop(turn);
}

/// The right of one attempt to work on its job: it begins when an earlier attempt of this
/// process has ended, which was told to. So a clock that jumps gives a job to a new holder,
/// never to two.
struct Turn<'a>(&'a Arc<Attempt>);

impl<'a> Turn<'a> {
    async fn take(attempt: &'a Arc<Attempt>) -> Self {
        let running = || attempt.parts.running.lock().unwrap_or_else(PoisonError::into_inner);
        let before = running().insert(attempt.job.id.clone(), attempt.clone());
        let turn = Self(attempt);
        if let Some(before) = before {
            before.stop(Stop::Lost);
            before.ended.cancelled().await;
        }
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let running = &self.0.parts.running;
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |held: &Arc<Attempt>| Arc::ptr_eq(held, self.0);
        if running.get(&self.0.job.id).is_some_and(is_ours) {
            running.remove(&self.0.job.id);
        }
        self.0.ended.cancel();
    }
}

/// From state to state until the job is done, sleeps or is lost.
async fn drive(attempt: &Attempt) {
    let mut work = attempt.job.work.clone();
    if attempt.job.restarts > RESTARTS_MAX {
        let text = format!("taken over {RESTARTS_MAX} times from workers that vanished");
        match give_up(attempt, &work, Trouble::Fault(text)).await {
            Ok(undo) => work = undo,
            Err(trouble) => return log_lost(attempt, &trouble),
        }
    }
    while !work.is_done() {
        let next = match next_arrow(attempt, &work).await {
            Ok(next) => Ok(next),
            Err(trouble) => settle(attempt, &work, trouble).await,
        };
        match next {
            Ok(next) => work = next,
            Err(Settled::Sleeps) => return,
            Err(Settled::Lost(trouble)) => return log_lost(attempt, &trouble),
        }
    }
    attempt.end_session().await;
    if attempt.job.restarts > 0 {
        attempt.remove_dead_locks().await;
    }
    tracing::info!(job.id = %attempt.job.id, item.id = %work.item(), "{} of {} ended", work.kind(), work.item());
}

/// Between two arrows a job lets go at once when its process ends or somebody else has it.
/// A cancelled one goes on to where it can be undone.
async fn next_arrow(attempt: &Attempt, work: &Work) -> Result<Work, Trouble> {
    match attempt.stopped() {
        Some(why @ (Stop::Shutdown | Stop::Lost)) => Err(Trouble::Stopped(why)),
        Some(Stop::Cancelled) | None => arrow(attempt, work).await,
    }
}

async fn arrow(attempt: &Attempt, work: &Work) -> Result<Work, Trouble> {
    match work {
        Work::Protect { checkpoint, item, state, .. } => {
            job::protect::step(attempt, work, checkpoint, item, state).await
        }
        Work::Restore { restore, item, state } => {
            job::restore::step(attempt, restore, item, state).await
        }
        Work::Delete { item, state } => job::delete::step(attempt, item, state).await,
    }
}

/// How trouble left a job that does not go on at once.
enum Settled {
    /// It will be claimed again.
    Sleeps,
    /// Its row was left as it was.
    Lost(Trouble),
}

/// Decides what trouble means: the state to go on with, or none for this attempt.
async fn settle(attempt: &Attempt, work: &Work, trouble: Trouble) -> Result<Work, Settled> {
    let job = &attempt.job;
    let trouble = match trouble {
        // A freeze that an earlier attempt made ended with its process: that restart is
        // counted already.
        Trouble::MomentLost(text) if attempt.job.work == *work && is_frozen(work) => {
            tracing::info!(job.id = %job.id, "{} of {} begins again: {text}", work.kind(), work.item());
            let anew = from_start(work);
            let now = attempt.parts.clock.now();
            save(attempt, &anew, now).await.map_err(Settled::Lost)?;
            return Ok(anew);
        }
        Trouble::Retry(_) | Trouble::MomentLost(_) if job.failures + 1 >= FAILURES_MAX => {
            trouble.for_good()
        }
        other => other,
    };
    match trouble {
        Trouble::Retry(text) => sleep(attempt, work, &text).await,
        Trouble::MomentLost(text) => begin_again(attempt, work, &text).await,
        Trouble::Stopped(Stop::Shutdown) => {
            let released = attempt.parts.store.release_job(job, attempt.parts.clock.now()).await;
            Err(released.map_or_else(|error| Settled::Lost(error.into()), |()| Settled::Sleeps))
        }
        Trouble::Stopped(Stop::Lost) => Err(Settled::Lost(trouble)),
        // Undoing has nothing to fall back on but time.
        Trouble::Fault(_) | Trouble::Refused(_) | Trouble::Stopped(Stop::Cancelled)
            if is_undoing(work) =>
        {
            sleep(attempt, work, &format!("{trouble:?}")).await
        }
        Trouble::Fault(_) | Trouble::Refused(_) | Trouble::Stopped(Stop::Cancelled) => {
            give_up(attempt, work, trouble).await.map_err(Settled::Lost)
        }
    }
}

fn is_frozen(work: &Work) -> bool {
    matches!(work, Work::Protect { state: ProtectState::Snapshotted { .. }, .. })
}

fn is_undoing(work: &Work) -> bool {
    match work {
        Work::Protect { state, .. } => matches!(state, ProtectState::Undo { .. }),
        Work::Restore { state, .. } => matches!(state, RestoreState::Undo { .. }),
        Work::Delete { state, .. } => matches!(state, DeleteState::Undo { .. }),
    }
}

async fn begin_again(attempt: &Attempt, work: &Work, text: &str) -> Result<Work, Settled> {
    let work = from_start(work);
    save(attempt, &work, attempt.parts.clock.now()).await.map_err(Settled::Lost)?;
    sleep(attempt, &work, text).await
}

async fn sleep(attempt: &Attempt, work: &Work, text: &str) -> Result<Work, Settled> {
    let (job, now) = (&attempt.job, attempt.parts.clock.now());
    let run_at = now.plus(back_off(job.failures + 1));
    tracing::warn!(job.id = %job.id, item.id = %work.item(), job.failures, "{} of {} will try again: {text}", work.kind(), work.item());
    match attempt.parts.store.retry_job(job, run_at, now).await {
        Ok(()) => Err(Settled::Sleeps),
        Err(error) => Err(Settled::Lost(error.into())),
    }
}

impl Trouble {
    fn for_good(self) -> Self {
        match self {
            Self::Retry(text) | Self::MomentLost(text) => {
                Self::Fault(format!("gave up after {FAILURES_MAX} attempts; last: {text}"))
            }
            other => other,
        }
    }

    /// What an item tells of it.
    fn fault(&self, operation: FaultOperation) -> Fault {
        let (code, reason) = match self {
            Self::Refused(refusal) => (refusal.code(), refusal.to_string()),
            Self::Stopped(Stop::Cancelled) => (Code::Internal, "cancelled".to_owned()),
            Self::Fault(text) | Self::Retry(text) | Self::MomentLost(text) => {
                (Code::Internal, text.clone())
            }
            Self::Stopped(Stop::Shutdown | Stop::Lost) => {
                (Code::Internal, "interrupted".to_owned())
            }
        };
        Fault { operation, code: digits(code), reason: format!("{code}: {reason}") }
    }
}

/// `fail_code.Code` can only hold digits (docs/csbs-v1.md).
fn digits(code: Code) -> u32 {
    code.as_str().rsplit('.').next().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn from_start(work: &Work) -> Work {
    match work {
        Work::Protect { checkpoint, item, trigger, .. } => Work::Protect {
            checkpoint: checkpoint.clone(),
            item: item.clone(),
            trigger: *trigger,
            state: ProtectState::Start,
        },
        Work::Restore { .. } | Work::Delete { .. } => work.clone(),
    }
}

/// Commits that the job is to be undone, and says so in the log.
async fn give_up(attempt: &Attempt, work: &Work, trouble: Trouble) -> Result<Work, Trouble> {
    let undo = undoing(work, &trouble);
    tracing::error!(job.id = %attempt.job.id, item.id = %work.item(), "{} of {} failed: {:?}", work.kind(), work.item(), trouble);
    save(attempt, &undo, attempt.parts.clock.now()).await?;
    Ok(undo)
}

async fn save(attempt: &Attempt, work: &Work, now: Timestamp) -> Result<(), Trouble> {
    Ok(attempt.parts.store.save_state(&attempt.job, work, now).await?)
}

/// The state in which a failed job cleans up. Undoing never fails into another undoing.
fn undoing(work: &Work, trouble: &Trouble) -> Work {
    match work.clone() {
        Work::Protect { checkpoint, item, trigger, state } => {
            let state = match state {
                // The item is available: what is left is for the reconciler.
                ProtectState::Recorded | ProtectState::Done => ProtectState::Done,
                ProtectState::Undo { fault } => ProtectState::Undo { fault },
                ProtectState::Start
                | ProtectState::Snapshotted { .. }
                | ProtectState::Stored { .. } => {
                    ProtectState::Undo { fault: trouble.fault(FaultOperation::Backup) }
                }
            };
            Work::Protect { checkpoint, item, trigger, state }
        }
        Work::Restore { restore, item, state } => {
            let fault = trouble.fault(FaultOperation::Restore);
            let state = match state {
                RestoreState::Start | RestoreState::Written => {
                    RestoreState::Undo { fault, was_running: WasRunning::No }
                }
                RestoreState::Writing { was_running, .. } => {
                    RestoreState::Undo { fault, was_running }
                }
                done @ (RestoreState::Undo { .. } | RestoreState::Done) => done,
            };
            Work::Restore { restore, item, state }
        }
        Work::Delete { item, state } => {
            let state = match state {
                DeleteState::Start | DeleteState::Removed => {
                    DeleteState::Undo { fault: trouble.fault(FaultOperation::Delete) }
                }
                done @ (DeleteState::Undo { .. } | DeleteState::Done) => done,
            };
            Work::Delete { item, state }
        }
    }
}

fn log_lost(attempt: &Attempt, trouble: &Trouble) {
    tracing::warn!(job.id = %attempt.job.id, job.fence = attempt.job.fence, "let go of a job: {trouble:?}");
}
