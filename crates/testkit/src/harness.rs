//! The whole service in one process on a simulated cloud.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kedge_cloud::sim::SimCloud;
use kedge_core::ids::{ProjectId, ServerId, VolumeId};
use kedge_core::job::Lease;
use kedge_core::ports::Cloud;
use kedge_core::resource::{
    Content, Encryption, Hardware, Server, ServerKind, ServerStatus, Sharing, StorageClass, Volume,
    VolumeRole, VolumeStatus,
};
use kedge_service::context::{Context, Right};
use kedge_service::identity::{
    DomainRef, Identity, Login, ProjectRef, UserRef, UsersSource, hash_password_cheaply,
};
use kedge_service::keys::ServiceKey;
use kedge_service::repositories::Repositories;
use kedge_service::settings::{Kdf, Settings};
use kedge_service::{App, Points, Wiring};
use kedge_store::Store;
use zeroize::Zeroizing;

use crate::outside::{ManualClock, MemoryPlaces, SequentialIds, WaitedTime};
use crate::stage::SimStage;

/// The project most tests work in.
pub const PROJECT: &str = "3f2b9c1d7a6e4c58b0d1e2f3a4b5c6d7";
/// Somebody else's project.
pub const OTHER_PROJECT: &str = "00112233445566778899aabbccddeeff";
/// May list and check in [`PROJECT`].
pub const READER: &str = "rae";
/// May back up and restore in [`PROJECT`].
pub const MEMBER: &str = "ann";
/// May cross projects.
pub const ADMIN: &str = "adm";
/// May back up and restore in [`OTHER_PROJECT`], and nothing else.
pub const STRANGER: &str = "bob";
/// Everybody's password.
pub const PASSWORD: &str = "correct horse battery staple";

/// The service, and what is around it.
#[derive(Debug)]
pub struct Harness {
    /// The service under test.
    pub app: App,
    /// The cloud it protects.
    pub cloud: SimCloud,
    /// Its catalogue.
    pub store: Store,
    /// Its time.
    pub clock: Arc<ManualClock>,
    /// Its repositories.
    pub places: MemoryPlaces,
    /// What wraps their passwords.
    pub key: Arc<ServiceKey>,
    /// Its ids, but for those of servers and volumes that tests bring.
    pub ids: Arc<SequentialIds>,
    /// How long its movers would have waited to stay below their rates.
    pub waited: Arc<WaitedTime>,
    /// Where its drills take place.
    pub stage: Arc<SimStage>,
    users: UsersSource,
}

/// What a test may bring instead of what the harness has of its own.
#[derive(Debug)]
pub struct Stage {
    /// The catalogue.
    pub store: Store,
    /// Who may log in.
    pub users: UsersSource,
    /// What wraps the repositories' passwords.
    pub key: ServiceKey,
    /// What the operator set.
    pub settings: Settings,
}

impl Stage {
    /// A catalogue in memory, the harness's users, a random key, the default settings.
    pub async fn new() -> Self {
        Self {
            store: Store::open_in_memory().await.expect("a catalogue in memory"),
            users: UsersSource::Text(users_text(PASSWORD)),
            key: ServiceKey::random().expect("randomness"),
            settings: Settings::default(),
        }
    }
}

impl Harness {
    /// A service with an empty cloud.
    pub async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    /// A service with these settings, made cheap where that only costs time.
    pub async fn with(settings: Settings) -> Self {
        Self::on(Stage { settings, ..Stage::new().await })
    }

    /// A service on what the test brings, made cheap as [`Harness::with`] does.
    pub fn on(stage: Stage) -> Self {
        let clock = Arc::new(ManualClock::new());
        let sim = SimCloud::new(clock.clone());
        let Stage { store, users, key, settings } = stage;
        let (places, key) = (MemoryPlaces::default(), Arc::new(key));
        let ids = Arc::new(SequentialIds::default());
        let settings = Settings { kdf: Kdf::Cheap, workers: 1, compression_level: 1, ..settings };
        let cloud = Arc::new(sim.clone());
        let (waited, stage) = (Arc::default(), Arc::default());
        let app =
            wire(&store, cloud, &places, &key, &clock, &ids, &waited, &stage, &users, settings);
        Self { app, cloud: sim, store, clock, places, key, ids, waited, stage, users }
    }

    /// The service after a restart of its process: nothing survives but the outside.
    pub async fn restarted(self) -> Self {
        self.restarted_with_key(self.key.clone()).await
    }

    /// The same with another service key, as after a lost key file.
    pub async fn restarted_with_key(&self, key: Arc<ServiceKey>) -> Self {
        use kedge_core::ports::Clock as _;
        self.store.take_over_all(self.clock.now()).await.expect("the catalogue answers");
        self.rewired(self.store.clone(), key)
    }

    /// The service on another catalogue, as after an old one was put in its place.
    pub async fn with_catalogue(&self, store: Store) -> Self {
        use kedge_core::ports::Clock as _;
        store.take_over_all(self.clock.now()).await.expect("the catalogue answers");
        self.rewired(store, self.key.clone())
    }

    /// The service after its database was lost.
    pub async fn with_an_empty_catalogue(&self) -> Self {
        let store = Store::open_in_memory().await.expect("a catalogue in memory");
        self.rewired(store, self.key.clone())
    }

    /// The service with other users, beside the one there is.
    pub fn with_users(&self, users: UsersSource) -> Self {
        self.rewired_for(self.store.clone(), self.key.clone(), users)
    }

    fn rewired(&self, store: Store, key: Arc<ServiceKey>) -> Self {
        self.rewired_for(store, key, self.users.clone())
    }

    fn rewired_for(&self, store: Store, key: Arc<ServiceKey>, users: UsersSource) -> Self {
        let settings = Settings {
            kdf: Kdf::Cheap,
            workers: 1,
            compression_level: 1,
            lease: Lease { length: Duration::from_secs(60) },
            ..Settings::default()
        };
        let cloud = Arc::new(self.cloud.clone());
        let places = &self.places;
        let (ids, waited) = (&self.ids, &self.waited);
        let app = wire(
            &store,
            cloud,
            places,
            &key,
            &self.clock,
            ids,
            waited,
            &self.stage,
            &users,
            settings,
        );
        Self {
            app,
            cloud: self.cloud.clone(),
            store,
            clock: self.clock.clone(),
            places: self.places.clone(),
            key,
            ids: self.ids.clone(),
            waited: self.waited.clone(),
            stage: self.stage.clone(),
            users,
        }
    }

    /// A fresh token of a user for a project.
    pub async fn token(&self, user: &str, project: &str) -> String {
        let login = Login {
            user: UserRef::Name {
                name: user.to_owned(),
                domain: DomainRef::Id("default".to_owned()),
            },
            password: Zeroizing::new(PASSWORD.to_owned()),
            scope: Some(ProjectRef::Id(project.to_owned())),
        };
        self.app.login(login).await.expect("a user of the harness").token
    }

    /// The context of [`MEMBER`] in [`PROJECT`].
    pub async fn context(&self) -> Context {
        let token = self.token(MEMBER, PROJECT).await;
        self.app.authorise(Some(&token), PROJECT, Right::Write).await.expect("a member")
    }

    /// Runs jobs until none is due, without waiting for those that sleep.
    pub async fn run_jobs(&self) {
        self.app.run_due_jobs("test").await.expect("the catalogue answers");
    }

    /// Runs jobs, letting time pass for those that sleep, until none is alive.
    pub async fn run_jobs_to_their_end(&self) {
        for _ in 0..200 {
            self.run_jobs().await;
            let jobs = self.store.job_counts().await.expect("the catalogue answers");
            if jobs.queued + jobs.running == 0 {
                return;
            }
            self.clock.advance(Duration::from_secs(300));
        }
        panic!("jobs do not end");
    }

    /// A fresh UUID.
    pub fn fresh_uuid(&self) -> uuid::Uuid {
        use kedge_core::ports::IdSource as _;
        self.ids.next_uuid()
    }

    /// A running server of [`PROJECT`] with one disk per content: the first is its system
    /// disk.
    pub fn add_server(&self, contents: &[&[u8]]) -> Server {
        self.add_server_of(PROJECT, contents)
    }

    /// The same of another project.
    pub fn add_server_of(&self, project: &str, contents: &[&[u8]]) -> Server {
        let volumes: Vec<Volume> = contents
            .iter()
            .enumerate()
            .map(|(index, content)| {
                let role = if index == 0 { VolumeRole::System } else { VolumeRole::Data };
                self.volume(content.len() as u64, role)
            })
            .collect();
        let bytes: HashMap<VolumeId, Vec<u8>> = volumes
            .iter()
            .zip(contents)
            .map(|(volume, content)| (volume.id.clone(), content.to_vec()))
            .collect();
        let server = Server {
            id: ServerId::from(self.fresh_uuid()),
            project_id: ProjectId::new(project),
            name: "db-1".to_owned(),
            kind: ServerKind::Kvm,
            status: ServerStatus::Active,
            zone: "az-01".to_owned(),
            hardware: Hardware {
                ram_mb: 8192,
                vcpus: 4,
                image_type: "gold".to_owned(),
                private_ip: "192.168.0.20".to_owned(),
                ..Hardware::default()
            },
            volumes,
        };
        self.cloud.add_server(server.clone(), bytes);
        server
    }

    /// A healthy volume with a fresh id.
    pub fn volume(&self, size_bytes: u64, role: VolumeRole) -> Volume {
        Volume {
            id: VolumeId::from(self.fresh_uuid()),
            name: "disk".to_owned(),
            size_bytes,
            role,
            status: VolumeStatus::Healthy,
            sharing: Sharing::Exclusive,
            storage: StorageClass::Ordinary,
            encryption: Encryption::Plain,
            content: Content::Whole,
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "each is one part, and all are needed")]
fn wire(
    store: &Store,
    cloud: Arc<dyn Cloud>,
    places: &MemoryPlaces,
    key: &Arc<ServiceKey>,
    clock: &Arc<ManualClock>,
    ids: &Arc<SequentialIds>,
    waited: &Arc<WaitedTime>,
    stage: &Arc<SimStage>,
    users: &UsersSource,
    settings: Settings,
) -> App {
    let repositories = Repositories::new(
        Arc::new(places.clone()),
        key.clone(),
        store.clone(),
        clock.clone(),
        settings.kdf,
    );
    let identity = Identity::new(
        users.clone(),
        store.clone(),
        clock.clone(),
        &settings.limits,
        settings.token_lifetime,
    )
    .expect("users of the harness");
    App::new(Wiring {
        store: store.clone(),
        cloud,
        repositories,
        identity,
        clock: clock.clone(),
        ids: ids.clone(),
        settings,
        points: Points::default(),
        pace: waited.clone(),
        stage: Some(stage.clone()),
    })
}

/// The users file of the harness, everybody with this password.
pub fn users_text(password: &str) -> String {
    let hash = hash_password_cheaply(password).expect("a hash");
    let projects = [(PROJECT, "demo"), (OTHER_PROJECT, "other")];
    let grants = [
        (MEMBER, PROJECT, "member"),
        (READER, PROJECT, "reader"),
        (ADMIN, PROJECT, "admin"),
        (STRANGER, OTHER_PROJECT, "member"),
    ];
    let mut text = String::new();
    for (id, name) in projects {
        text += &format!("[[project]]\nid = \"{id}\"\nname = \"{name}\"\n");
    }
    for (user, project, role) in grants {
        text += &format!(
            "[[user]]\nid = \"{user}\"\nname = \"{user}\"\npassword_hash = \"{hash}\"\n\
             [[user.grant]]\nproject = \"{project}\"\nrole = \"{role}\"\n"
        );
    }
    text
}
