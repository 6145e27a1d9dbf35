//! Watches over what is stored: looks for every pack and walks every new list, reads back
//! what is new soon, and everything in rounds. What is damaged or missing is recorded, and
//! turns the verdict for every backup that needs it.
//!
//! Runs on a timer and takes no input. How far it came is in the catalogue; a catalogue that
//! was lost means reading from the start.

mod look;
mod read;

use std::collections::BTreeSet;
use std::time::Duration;

use kedge_core::ids::ProjectId;
use kedge_engine::{CancelFlag, PackId};
use tokio_util::sync::CancellationToken;

use crate::app::{App, Parts};
use crate::repositories::RepositoryError;

/// A list of packs costs a store a request per thousand.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// A process that has just begun has other things to do.
const AFTER_START: Duration = Duration::from_secs(60);
/// What a turn is measured by where reading back may take more, or all there is.
const RATE_MAX: u64 = 256 << 20;

/// What one round of watching found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Packs that are missing, have a wrong size or hold damage.
    pub damaged: BTreeSet<PackId>,
    /// Bytes of packs read back.
    pub read_bytes: u64,
    /// Repositories that have lost index objects.
    pub lost_indexes: usize,
    /// Projects of whose repositories not everything new was read back.
    pub behind: BTreeSet<ProjectId>,
}

/// What a repository may take before it is another's turn, whichever ends first.
#[derive(Clone, Copy, Debug)]
struct Turn {
    bytes: u64,
    /// By the monotonic clock.
    until: Duration,
}

impl App {
    /// Watches now and then until `shutdown`.
    pub async fn run_watch(&self, shutdown: CancellationToken) {
        let mut pause = AFTER_START;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let due = self.parts.clock.monotonic() + EVERY;
            let cancel = CancelFlag::new();
            let watching = self.watch_until(due, &cancel);
            tokio::pin!(watching);
            tokio::select! {
                () = &mut watching => {
                    pause = due.saturating_sub(self.parts.clock.monotonic());
                }
                () = shutdown.cancelled() => {
                    cancel.cancel();
                    watching.await;
                }
            }
        }
    }

    /// Once over every repository; then those that were left behind go on by turns until the
    /// next look is `due`, by the monotonic clock.
    async fn watch_until(&self, due: Duration, cancel: &CancelFlag) {
        let mut watched = self.watch(cancel).await;
        tracing::info!("watched over repositories: {watched:?}");
        let is_due = || self.parts.clock.monotonic() >= due;
        while !watched.behind.is_empty() && watched.read_bytes > 0 && !is_due() {
            watched = self.watch_these(&watched.behind, cancel).await;
            tracing::info!("went on reading back: {watched:?}");
        }
    }

    /// Once over every repository. One that fails is logged and left to the next time.
    pub async fn watch(&self, cancel: &CancelFlag) -> Watched {
        let repositories = match self.parts.store.list_repositories().await {
            Ok(repositories) => repositories,
            Err(error) => {
                tracing::warn!("nothing is watched over: {error}");
                return Watched::default();
            }
        };
        let made = repositories.into_iter().filter(|row| row.made).map(|row| row.project_id);
        self.watch_these(&made.collect(), cancel).await
    }

    async fn watch_these(&self, projects: &BTreeSet<ProjectId>, cancel: &CancelFlag) -> Watched {
        let mut watched = Watched::default();
        // Each has its share of the time to the next look, so that none waits long for one.
        let rate = self.parts.settings.verify.rates.bytes_per_sec.unwrap_or(RATE_MAX);
        let bytes = rate.min(RATE_MAX).saturating_mul(EVERY.as_secs());
        let share = u32::try_from(projects.len()).unwrap_or(u32::MAX).max(1);
        for project in projects {
            if cancel.is_cancelled() {
                break;
            }
            let until = self.parts.clock.monotonic() + EVERY / share;
            let turn = Turn { bytes: bytes / u64::from(share), until };
            let watching = self.parts.watch_over(project, turn, cancel, &mut watched);
            if let Err(error) = watching.await {
                tracing::warn!(project.id = ?project, "watching over a repository: {error}");
            }
        }
        watched
    }
}

impl Parts {
    async fn watch_over(
        &self,
        project: &ProjectId,
        turn: Turn,
        cancel: &CancelFlag,
        watched: &mut Watched,
    ) -> Result<(), RepositoryError> {
        let mut look = self.look_over(project, cancel, watched).await?;
        let run = read::Run { parts: self, project, cancel };
        run.hear_readings(&mut look).await?;
        if !run.read_new(&mut look, turn, watched).await? {
            watched.behind.insert(project.clone());
            return Ok(());
        }
        run.go_on(&mut look, watched).await
    }
}
