//! Cleans up after jobs that died. Reconcilers take no input and run on a timer: what they
//! find they compare with the table of jobs, and what belongs to no living job goes.

mod cloud_leftovers;
mod repository_leftovers;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::App;

/// A leftover costs space, not correctness: it may wait.
const EVERY: Duration = Duration::from_secs(10 * 60);

/// What one round found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Cloud snapshots released and servers unlocked.
    pub cloud_released: usize,
    /// Lock objects of dead sessions and snapshots of deleted backups removed.
    pub repository_removed: usize,
    /// Repository snapshots of ours that no row names: reported, never removed, because
    /// they may be all that is left of a backup whose catalogue was lost.
    pub strangers: Vec<String>,
}

impl App {
    /// Reconciles now and then until `shutdown`.
    pub async fn run_reconcilers(&self, shutdown: CancellationToken) {
        loop {
            let round = self.reconcile().await;
            if round != Reconciled::default() {
                tracing::info!("reconciled: {round:?}");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    /// One round. A part that fails is logged and left to the next round.
    pub async fn reconcile(&self) -> Reconciled {
        let mut round = Reconciled::default();
        if let Err(error) = cloud_leftovers::release(&self.parts, &mut round).await {
            tracing::warn!("cloud leftovers: {error}");
        }
        if let Err(error) = repository_leftovers::remove(&self.parts, &mut round).await {
            tracing::warn!("repository leftovers: {error}");
        }
        round
    }
}
