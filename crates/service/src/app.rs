//! The service as the API sees it, and the parts it is wired from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kedge_core::drill::Stage;
use kedge_core::ids::{JobId, ProjectId};
use kedge_core::ports::{Clock, Cloud, IdSource};
use kedge_engine::layer::{Bucket, Pace};
use kedge_store::Store;
use tokio::sync::Notify;

use crate::attempt::Attempt;
use crate::budget::Budget;
use crate::context::{Context, Right};
use crate::error::Error;
use crate::identity::{Identity, Issued, Login, ProjectInfo, TokenInfo};
use crate::lookups::Lookups;
use crate::pace::RestorePace;
use crate::repositories::Repositories;
use crate::settings::{Settings, Verify};

/// The whole service. Clones share everything.
#[derive(Clone, Debug)]
pub struct App {
    pub(crate) parts: Arc<Parts>,
}

/// What the service is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) cloud: Arc<dyn Cloud>,
    pub(crate) lookups: Lookups,
    pub(crate) repositories: Repositories,
    pub(crate) identity: Identity,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) settings: Settings,
    pub(crate) points: Points,
    /// What movers spend when they touch disks.
    pub(crate) disk_bucket: Arc<Bucket>,
    /// What reading back spends.
    pub(crate) verify_budget: Arc<Budget>,
    /// How quick restores were.
    pub(crate) restore_pace: RestorePace,
    /// Jobs this process works on, so that none is ever worked on twice in it.
    pub(crate) running: Mutex<HashMap<JobId, Arc<Attempt>>>,
    /// Rung when a job was enqueued, so that a worker need not poll to be quick.
    pub(crate) work_bell: Notify,
    /// Where backups are tried out, if there is such a place.
    pub(crate) stage: Option<Arc<dyn Stage>>,
    /// Projects that are asked about as a whole just now, and until when at most, on the
    /// monotonic clock.
    pub(crate) fleets: Mutex<HashMap<ProjectId, Duration>>,
    /// Rung when a proof was enqueued.
    pub(crate) proof_bell: Notify,
    /// Whose backup was proved last.
    pub(crate) last_proved: Mutex<Option<ProjectId>>,
    /// On the monotonic clock: until when scheduled drills rest.
    pub(crate) rest_until: Mutex<Duration>,
}

/// What the binary or a test hands over.
#[derive(Debug)]
pub struct Wiring {
    /// Durable state.
    pub store: Store,
    /// The cloud.
    pub cloud: Arc<dyn Cloud>,
    /// The projects' repositories.
    pub repositories: Repositories,
    /// Who may do what.
    pub identity: Identity,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Fresh ids.
    pub ids: Arc<dyn IdSource>,
    /// What the operator set.
    pub settings: Settings,
    /// Told when a job passes a named point.
    pub points: Points,
    /// How movers wait that have used up their rates.
    pub pace: Arc<dyn Pace>,
    /// Where backups are tried out, if there is such a place.
    pub stage: Option<Arc<dyn Stage>>,
}

/// Told when a job passes a named point, such as `restore.marked`: a test that kills or
/// halts the process there knows where it was. Production hears nothing.
#[derive(Clone, Default)]
pub struct Points(Option<Arc<Listener>>);

type Listener = dyn Fn(&str) + Send + Sync;

impl Points {
    /// Calls `hear` at each point, on the job's own thread.
    pub fn heard_by(hear: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hear)))
    }

    pub(crate) fn pass(&self, name: &str) {
        if let Some(hear) = &self.0 {
            hear(name);
        }
    }
}

impl std::fmt::Debug for Points {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Points(..)")
    }
}

impl App {
    /// The service of these parts.
    pub fn new(wiring: Wiring) -> Self {
        let limits = &wiring.settings.limits;
        let lookups =
            Lookups::new(wiring.cloud.clone(), limits.lookups_max, limits.lookups_per_project_max);
        let disk_bucket = Arc::new(Bucket::new(wiring.settings.mover_rates, wiring.pace.clone()));
        let Verify { rates, time_percent, .. } = wiring.settings.verify;
        let verify_budget = Arc::new(Budget::new(rates, time_percent, wiring.pace));
        Self {
            parts: Arc::new(Parts {
                lookups,
                disk_bucket,
                verify_budget,
                store: wiring.store,
                cloud: wiring.cloud,
                repositories: wiring.repositories,
                identity: wiring.identity,
                clock: wiring.clock,
                ids: wiring.ids,
                settings: wiring.settings,
                points: wiring.points,
                restore_pace: RestorePace::default(),
                running: Mutex::default(),
                work_bell: Notify::new(),
                stage: wiring.stage,
                fleets: Mutex::default(),
                proof_bell: Notify::new(),
                last_proved: Mutex::default(),
                rest_until: Mutex::default(),
            }),
        }
    }

    /// Whether the service can answer: the catalogue does.
    pub async fn ready(&self) -> Result<(), Error> {
        Ok(self.parts.store.ping().await?)
    }

    /// Gives a token for a password.
    pub async fn login(&self, login: Login) -> Result<Issued, Error> {
        self.parts.identity.login(login).await
    }

    /// What a token stands for.
    pub async fn token_info(&self, token: &str) -> Result<TokenInfo, Error> {
        self.parts.identity.validate(token).await
    }

    /// What another token stands for; `None` when it is no valid token.
    pub async fn subject_info(
        &self,
        caller_token: &str,
        subject: &str,
    ) -> Result<Option<TokenInfo>, Error> {
        self.parts.identity.subject_info(caller_token, subject).await
    }

    /// Ends a token; `None` when it was no valid token.
    pub async fn revoke(
        &self,
        caller_token: &str,
        subject: &str,
    ) -> Result<Option<TokenInfo>, Error> {
        self.parts.identity.revoke(caller_token, subject).await
    }

    /// The projects a token's user can log in to.
    pub async fn projects(&self, token: &str) -> Result<Vec<ProjectInfo>, Error> {
        self.parts.identity.projects(token).await
    }

    /// Makes a context of a token: who asks, for the project of the request's path, with
    /// this right.
    pub async fn authorise(
        &self,
        token: Option<&str>,
        project: &str,
        right: Right,
    ) -> Result<Context, Error> {
        let now = self.parts.clock.monotonic();
        let deadline = now.saturating_add(self.parts.settings.limits.request_time);
        self.parts.identity.authorise(token, project, right, deadline).await
    }

    /// How many jobs wait and run, for metrics.
    pub async fn job_counts(&self) -> Result<kedge_store::JobCounts, Error> {
        Ok(self.parts.store.job_counts().await?)
    }

    /// The project's repositories, for the operator's own verbs.
    pub fn repositories(&self) -> &Repositories {
        &self.parts.repositories
    }
}

impl Parts {
    /// What facts may take of the request's time: the rest is for the answer, so that a
    /// silent cloud becomes an answer and not a time-out.
    pub(crate) fn time_for_facts(&self, context: &Context) -> Duration {
        context.deadline.saturating_sub(self.clock.monotonic()) * 3 / 4
    }
}
