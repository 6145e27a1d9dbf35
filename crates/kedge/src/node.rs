//! One running service: its parts wired, its workers and listeners started and, in the
//! opposite order, stopped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kedge_api::{ApiConfig, Metrics};
use kedge_cloud::local::LocalCloud;
use kedge_core::ports::{Clock as _, Cloud, IdSource as _};
use kedge_drill::{Inspector, LocalStage};
use kedge_service::identity::{Identity, UsersSource};
use kedge_service::keys::ServiceKey;
use kedge_service::repositories::Repositories;
use kedge_service::{App, Wiring};
use kedge_store::Store;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Checked, Location};
use crate::failure::{Failure, OrFail as _};
use crate::outside::{RandomIds, SystemClock, SystemPace};
use crate::{halt, places, private, signals, telemetry};

/// Walking millions of files takes minutes.
const INSPECT_TIME: Duration = Duration::from_secs(30 * 60);

/// Runs the service until it is told to stop.
pub(crate) async fn serve(path: &Path) -> Result<(), Failure> {
    let config = Checked::read(path)?;
    telemetry::start(config.log.format, &config.log.filter)?;
    let told = signals::until_told_to_stop()?;
    let mut node = Node::open(&config).await?;
    node.start_workers();
    let served = serve_until(&mut node, &config, told).await;
    node.close().await;
    served?;
    tracing::info!("stopped");
    Ok(())
}

async fn serve_until(
    node: &mut Node,
    config: &Checked,
    told: CancellationToken,
) -> Result<(), Failure> {
    let metrics = match config.metrics_listen {
        Some(address) => Some(node.start_metrics(address).await?),
        None => None,
    };
    let api = node.start_api(config.listen).await?;
    tracing::info!(listen = %api.address, "serving on http://{}", api.address);
    told.cancelled().await;
    tracing::info!("told to stop: finishing running calls, letting go of jobs");
    api.stop().await;
    if let Some(metrics) = metrics {
        metrics.stop().await;
    }
    Ok(())
}

/// The service without its listeners.
#[derive(Debug)]
pub(crate) struct Node {
    app: App,
    store: Store,
    api_config: ApiConfig,
    metrics: Metrics,
    workers: Option<Background>,
    reconcilers: Option<Background>,
    watch: Option<Background>,
    proofs: Option<Background>,
}

/// A task that ends when asked.
#[derive(Debug)]
struct Background {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Background {
    async fn end(self, what: &str) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!("{what} ended badly: {error}");
        }
    }
}

/// A listener that is being served.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    background: Background,
}

impl Listener {
    /// Takes no more connections and waits for running calls.
    pub(crate) async fn stop(self) {
        self.background.end("a listener").await;
    }
}

impl Node {
    /// Wires the parts. From here on no other process can use this state directory, and
    /// every job a dead process held is free again.
    pub(crate) async fn open(config: &Checked) -> Result<Self, Failure> {
        if let Some(problem) = config.check_machine().first() {
            return Err(Failure::new(problem.to_string()));
        }
        make_dirs(config)?;
        let clock = Arc::new(SystemClock);
        let path = config.state_dir.join("catalogue.sqlite");
        let store = Store::open(&path).await.or_fail("catalogue")?;
        let taken = store.take_over_all(clock.now()).await.or_fail("taking over jobs")?;
        tracing::info!(jobs = taken, "the catalogue is open");
        require_known_key(config, &store).await?;
        let app = wire(config, &store, clock.clone())?;
        let mut api_config = ApiConfig::new(clock, Arc::new(RandomIds));
        api_config.public_url = config.public_url.clone();
        api_config.region.clone_from(&config.region);
        api_config.limits = config.http.clone();
        Ok(Self {
            app,
            store,
            api_config,
            metrics: Metrics::new(),
            workers: None,
            reconcilers: None,
            watch: None,
            proofs: None,
        })
    }

    pub(crate) fn app(&self) -> &App {
        &self.app
    }

    /// Begins to run jobs, to clean up after those that died, and to watch over what is
    /// stored.
    pub(crate) fn start_workers(&mut self) {
        let owner = format!("{}-{}", std::process::id(), RandomIds.next_uuid());
        let app = self.app.clone();
        self.workers.get_or_insert_with(|| {
            background(move |stop| async move { app.run_workers(&owner, stop).await })
        });
        let app = self.app.clone();
        self.reconcilers.get_or_insert_with(|| {
            background(move |stop| async move { app.run_reconcilers(stop).await })
        });
        let app = self.app.clone();
        self.watch.get_or_insert_with(|| {
            background(move |stop| async move { app.run_watch(stop).await })
        });
        let app = self.app.clone();
        self.proofs.get_or_insert_with(|| {
            background(move |stop| async move { app.run_proofs(stop).await })
        });
    }

    /// Lets go of running jobs; whoever starts workers next goes on with them.
    pub(crate) async fn stop_workers(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.end("the workers").await;
        }
        if let Some(reconcilers) = self.reconcilers.take() {
            reconcilers.end("the reconcilers").await;
        }
        if let Some(watch) = self.watch.take() {
            watch.end("the watch").await;
        }
        if let Some(proofs) = self.proofs.take() {
            proofs.end("the proofs").await;
        }
    }

    pub(crate) async fn start_api(&self, address: SocketAddr) -> Result<Listener, Failure> {
        let router =
            kedge_api::router(self.app.clone(), self.api_config.clone(), self.metrics.clone());
        let (listener, address) = bind("listen", address).await?;
        let limits = self.api_config.limits.clone();
        let background = background(move |stop| {
            kedge_api::serve(listener, router, limits, stop.cancelled_owned())
        });
        Ok(Listener { address, background })
    }

    async fn start_metrics(&self, address: SocketAddr) -> Result<Listener, Failure> {
        let router = kedge_api::metrics_router(self.app.clone(), self.metrics.clone());
        let (listener, address) = bind("metrics_listen", address).await?;
        let limits = self.api_config.limits.clone();
        let background = background(move |stop| {
            kedge_api::serve(listener, router, limits, stop.cancelled_owned())
        });
        tracing::info!(listen = %address, "serving metrics on http://{address}/metrics");
        Ok(Listener { address, background })
    }

    /// Lets go of everything, the state directory last.
    pub(crate) async fn close(mut self) {
        self.stop_workers().await;
        self.store.close().await;
    }
}

fn background<F: Future<Output = ()> + Send + 'static>(
    work: impl FnOnce(CancellationToken) -> F,
) -> Background {
    let stop = CancellationToken::new();
    Background { task: tokio::spawn(work(stop.clone())), stop }
}

async fn bind(field: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let doing = || format!("{field} {address}");
    let listener = TcpListener::bind(address).await.or_fail(doing())?;
    let address = listener.local_addr().or_fail(doing())?;
    Ok((listener, address))
}

fn wire(config: &Checked, store: &Store, clock: Arc<SystemClock>) -> Result<App, Failure> {
    let settings = &config.settings;
    let key = service_key(&config.service_key)?;
    let (places, key) = (places::open(config)?, Arc::new(key));
    let repositories = Repositories::new(places, key, store.clone(), clock.clone(), settings.kdf)
        .with_index_cache(config.index_cache_dir());
    let identity = Identity::new(
        UsersSource::File(config.users.clone()),
        store.clone(),
        clock.clone(),
        &settings.limits,
        settings.token_lifetime,
    )
    .or_fail("users")?;
    Ok(App::new(Wiring {
        store: store.clone(),
        cloud: open_cloud(&config.cloud)?,
        repositories,
        identity,
        clock,
        ids: Arc::new(RandomIds),
        settings: settings.clone(),
        points: halt::points(),
        pace: Arc::new(SystemPace),
        stage: Some(Arc::new(stage(&config.drill))),
    }))
}

/// Where backups are tried out. Who inspects is this program again: by a name that holds
/// whatever becomes of its file.
fn stage(drill: &config::Drill) -> LocalStage {
    LocalStage::new(kedge_drill::Options {
        inspector: Inspector {
            program: PathBuf::from("/proc/self/exe"),
            arguments: vec!["inspect-disk".into()],
        },
        qemu: drill.boot.then(|| drill.qemu.clone()),
        accelerator: drill.accelerator(),
        memory_mib: drill.memory_mib,
        boot_time: Duration::from_secs(drill.boot_secs),
        markers: drill.markers.clone(),
        inspect_time: INSPECT_TIME,
        work_dir: drill.work_dir.clone(),
    })
}

/// Makes what is missing of our own directories.
pub(crate) fn make_dirs(config: &Checked) -> Result<(), Failure> {
    private::create_dir(&config.state_dir).or_fail(config.state_dir.display())?;
    match &config.repositories {
        Location::Directory(dir) => private::create_dir(dir).or_fail(dir.display()),
        // Whoever runs the store makes buckets.
        Location::S3(_) => Ok(()),
    }
}

/// A key that is not where it was must not be replaced: new repositories would be wrapped
/// with the new one, and lost when the old one is put back.
pub(crate) async fn require_known_key(config: &Checked, store: &Store) -> Result<(), Failure> {
    if config.service_key.exists() {
        return Ok(());
    }
    let known = store.list_repositories().await.or_fail("catalogue")?;
    let places = places::open(config)?;
    let found = tokio::task::spawn_blocking(move || places.list_projects());
    let found = found.await.or_fail("looking for repositories")?;
    if known.is_empty() && found.or_fail("looking for repositories")?.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "service_key: {} is not there, but there are repositories whose passwords it wraps; \
         put it back",
        config.service_key.display()
    )))
}

fn service_key(path: &Path) -> Result<ServiceKey, Failure> {
    if !path.exists() {
        tracing::warn!(
            "making a service key at {}: keep a copy of it away from the repositories, \
             without it no backup can be read",
            path.display()
        );
    }
    let key = ServiceKey::load_or_create(path).or_fail("service_key")?;
    if key.is_being_replaced() {
        tracing::warn!("replacing the service key was interrupted: run `kedge key rotate` again");
    }
    Ok(key)
}

fn open_cloud(cloud: &config::Cloud) -> Result<Arc<dyn Cloud>, Failure> {
    let config::Cloud::Local { servers_dir } = cloud;
    let cloud = LocalCloud::open(servers_dir.clone()).or_fail("cloud.servers_dir")?;
    Ok(Arc::new(cloud))
}
