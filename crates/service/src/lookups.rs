//! Cloud look-ups under a limit: bounded over all projects, with a share per project so
//! that none takes them all, and one look-up for everyone who asks the same at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, WeakShared};
use kedge_core::ids::{ProjectId, ServerId};
use kedge_core::ports::{Cloud, CloudError, ServerRef};
use kedge_core::resource::Server;
use kedge_core::time::Timestamp;
use tokio::sync::{AcquireError, Semaphore};

type Answer = Result<Option<Server>, CloudError>;
/// With the moment it was asked at: what it tells may be as old.
type Pending = BoxFuture<'static, (Timestamp, Answer)>;

/// The cloud, asked with restraint. A look-up whose askers are all gone is dropped, and
/// with it everything it held.
pub(crate) struct Lookups {
    cloud: Arc<dyn Cloud>,
    all: Arc<Semaphore>,
    per_project_max: usize,
    shares: Mutex<HashMap<ProjectId, Arc<Semaphore>>>,
    in_flight: Mutex<HashMap<ServerRef, WeakShared<Pending>>>,
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").field("cloud", &self.cloud).finish_non_exhaustive()
    }
}

impl Lookups {
    pub(crate) fn new(cloud: Arc<dyn Cloud>, all_max: usize, per_project_max: usize) -> Self {
        Self {
            cloud,
            all: Arc::new(Semaphore::new(all_max)),
            per_project_max,
            shares: Mutex::default(),
            in_flight: Mutex::default(),
        }
    }

    /// The server as the cloud reports it now, or as it answers a look-up that is already
    /// on its way; and when that was asked.
    pub(crate) async fn find_server(&self, of: &ServerRef, now: Timestamp) -> (Timestamp, Answer) {
        let pending = {
            let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
            in_flight.retain(|_, pending| pending.upgrade().is_some());
            match in_flight.get(of).and_then(WeakShared::upgrade) {
                Some(pending) => pending,
                None => {
                    let pending = self.ask(of.clone(), now).shared();
                    if let Some(weak) = pending.downgrade() {
                        in_flight.insert(of.clone(), weak);
                    }
                    pending
                }
            }
        };
        pending.await
    }

    /// The servers of a project, as the cloud lists them now.
    pub(crate) async fn list_servers(
        &self,
        project: &ProjectId,
    ) -> Result<Vec<ServerId>, CloudError> {
        let share = self.share(project);
        let _own = share.acquire().await.map_err(closed)?;
        let _common = self.all.acquire().await.map_err(closed)?;
        self.cloud.list_servers(project).await
    }

    fn ask(&self, of: ServerRef, now: Timestamp) -> Pending {
        let (cloud, all, share) = (self.cloud.clone(), self.all.clone(), self.share(&of.project));
        let asked = async move {
            // The project's own share first: who waits for it holds nothing of the others'.
            let _own = share.acquire().await.map_err(closed)?;
            let _common = all.acquire().await.map_err(closed)?;
            cloud.find_server(&of).await
        };
        asked.map(move |answer| (now, answer)).boxed()
    }

    /// Shares nobody uses are forgotten, so the map is no larger than what is in flight.
    fn share(&self, project: &ProjectId) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.retain(|_, share| Arc::strong_count(share) > 1);
        let fresh = || Arc::new(Semaphore::new(self.per_project_max));
        shares.entry(project.clone()).or_insert_with(fresh).clone()
    }
}

fn closed(_: AcquireError) -> CloudError {
    CloudError::retryable("look-ups have ended")
}
