//! The repositories of the projects: one each, opened once per process and shared.
//!
//! The dedup domain is the project, so no project can learn from another's what data it
//! holds. The password is random, wrapped by the service key, and lies both in the
//! catalogue and beside the repository's `config`: repository + service key rebuild
//! everything.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kedge_core::fact::Unknown;
use kedge_core::ids::ProjectId;
use kedge_core::ports::Clock;
use kedge_engine::{
    Backend, Closed, CreateOptions, EngineError, Indexed, KdfCost, ObjectName, Password,
    Repository, Timestamp,
};
use kedge_store::{Store, StoreError};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::access;
use crate::error::Error;
use crate::keys::{KeyError, ServiceKey};
use crate::kit::RecoveryKit;
use crate::places::Places;
use crate::receipts::Signer;
use crate::settings::Kdf;
use crate::wholeness::Wholeness;

/// An open repository, shared by everything in the process that reads or writes it.
pub type SharedRepository = Arc<Repository<Indexed>>;

/// Why a repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The project has none yet.
    #[error("the project has no repository yet")]
    None,
    /// The key that opens it cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The catalogue failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An invariant is gone.
    #[error("{0}")]
    Failed(String),
}

impl RepositoryError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_retryable() || error.is_unreachable(),
            Self::Store(error) => error.is_retryable(),
            Self::None | Self::Key(_) | Self::Failed(_) => false,
        }
    }

    /// Whether the store has no room left.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Engine(error) if error.is_full())
    }

    /// What an item's `fail_reason` tells of it: no folder, host or process of ours.
    pub fn public_text(&self) -> String {
        let text = match self {
            Self::Engine(error) if error.is_full() => "the backup repository is full",
            Self::Engine(error) if error.is_unreachable() => {
                "the backup repository cannot be reached"
            }
            Self::Engine(EngineError::Source(error)) => {
                return format!("reading failed: {}", error.text);
            }
            Self::Engine(EngineError::Sink(error)) => {
                return format!("writing failed: {}", error.text);
            }
            Self::Engine(EngineError::Mismatch { offset }) => {
                return format!("what was written reads back differently at byte {offset}");
            }
            Self::Engine(EngineError::Damaged { .. }) => "the backup's data is damaged",
            Self::Engine(EngineError::Locked { .. }) => {
                "the backup repository is locked by another program"
            }
            Self::Engine(EngineError::SnapshotNotFound(_)) => {
                "the backup repository does not hold the backup's data"
            }
            Self::Engine(_) | Self::Failed(_) => "the backup repository failed",
            Self::None => "the project has no backup repository yet",
            Self::Key(_) => "the key of the backup repository cannot be had",
            Self::Store(_) => "the catalogue failed",
        };
        text.to_owned()
    }

    /// How this reads as a fact nobody could learn.
    pub fn unknown(&self) -> Unknown {
        match self {
            Self::Key(_) | Self::Engine(EngineError::WrongPassword) => Unknown::KeyUnavailable,
            Self::None | Self::Store(_) | Self::Engine(_) | Self::Failed(_) => {
                Unknown::RepositoryUnreachable
            }
        }
    }
}

/// Whether a missing repository may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    Create,
    Refuse,
}

/// All repositories of the installation.
#[derive(Debug)]
pub struct Repositories {
    pub(crate) places: Arc<dyn Places>,
    pub(crate) key: Arc<ServiceKey>,
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) kdf: KdfCost,
    index_cache: Option<PathBuf>,
    opened: Mutex<HashMap<ProjectId, Arc<OnceCell<SharedRepository>>>>,
    pub(crate) wholeness: Wholeness,
}

impl Repositories {
    /// The repositories at `places`, whose passwords `key` wraps.
    pub fn new(
        places: Arc<dyn Places>,
        key: Arc<ServiceKey>,
        store: Store,
        clock: Arc<dyn Clock>,
        kdf: Kdf,
    ) -> Self {
        let kdf = match kdf {
            Kdf::Strong => KdfCost::STANDARD,
            Kdf::Cheap => KdfCost::CHEAP,
        };
        Self {
            places,
            key,
            store,
            clock,
            kdf,
            index_cache: None,
            opened: Mutex::default(),
            wholeness: Wholeness::default(),
        }
    }

    /// Keeps indexes in files below this directory instead of in memory, for this process
    /// and the next. They are rebuilt when wrong or gone.
    pub fn with_index_cache(self, dir: PathBuf) -> Self {
        Self { index_cache: Some(dir), ..self }
    }

    /// The project's repository, which must exist.
    pub async fn get(&self, project: &ProjectId) -> Result<SharedRepository, RepositoryError> {
        self.open(project, Missing::Refuse).await
    }

    /// The project's repository, made at its first backup.
    pub async fn get_or_create(
        &self,
        project: &ProjectId,
    ) -> Result<SharedRepository, RepositoryError> {
        self.open(project, Missing::Create).await
    }

    /// Signs receipts.
    pub(crate) fn receipt_signer(&self) -> Result<Signer, Error> {
        Signer::of(&self.key)
    }

    /// What stock restic needs to read the project's repository, as shell lines.
    pub async fn recovery_kit(
        &self,
        project: &ProjectId,
    ) -> Result<Zeroizing<String>, RepositoryError> {
        let password = self.password(project, Missing::Refuse).await?;
        let location = self.places.restic_location(project)?;
        Ok(RecoveryKit { location, password }.text())
    }

    /// Fails unless the service key unwraps the password of the project's repository.
    pub(crate) async fn require_key(&self, project: &ProjectId) -> Result<(), RepositoryError> {
        self.password(project, Missing::Refuse).await.map(drop)
    }

    async fn open(
        &self,
        project: &ProjectId,
        missing: Missing,
    ) -> Result<SharedRepository, RepositoryError> {
        let cell = {
            let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
            opened.entry(project.clone()).or_default().clone()
        };
        let opened = cell.get_or_try_init(|| self.open_anew(project, missing)).await.cloned();
        if let Err(RepositoryError::Engine(error)) = &opened
            && is_lost(error)
        {
            // Nobody can restore from it. Verdicts open it from now on, and hear the same.
            self.report_loss(project).await;
        }
        opened
    }

    /// Something of a repository is lost that no record of damage can name: all verdicts about
    /// it walk lists until a look has.
    pub(crate) async fn report_loss(&self, project: &ProjectId) {
        // One that waits for the next look is written down already.
        if !self.wholeness.note_report(project) {
            return;
        }
        if let Err(error) = self.store.report_loss(project, self.clock.now()).await {
            tracing::warn!(project.id = ?project, "a loss is remembered for now only: {error}");
        }
    }

    async fn open_anew(
        &self,
        project: &ProjectId,
        missing: Missing,
    ) -> Result<SharedRepository, RepositoryError> {
        let backend = self.places.backend(project)?;
        let missing = self.once_made(project, missing).await?;
        if missing == Missing::Create {
            prepare(backend.clone()).await?;
        }
        let password = self.password(project, missing).await?;
        let access = access::write(project, &self.key.wrap(&password, project)?)?;
        let (kdf, now) = (self.kdf, engine_time(self.clock.now()));
        let index_cache = self.index_cache.clone();
        let repository = blocking(move || {
            let exists = Repository::<Closed>::is_initialised(&*backend)?;
            let open = match (exists, missing) {
                (true, _) => Repository::<Closed>::open(backend, &password)?,
                (false, Missing::Create) => {
                    let options = CreateOptions {
                        password: &password,
                        kdf,
                        created_at: now,
                        access: Some(&access),
                    };
                    Repository::<Closed>::create(backend, &options)?
                }
                (false, Missing::Refuse) => return Err(EngineError::NotARepository),
            };
            match index_cache {
                Some(dir) => open.load_index_cached(&dir),
                None => open.load_index(),
            }
        })
        .await?;
        self.store.mark_repository_made(project).await?;
        Ok(Arc::new(repository))
    }

    /// A repository that was made once and is not there now is out of reach (a disk not
    /// mounted, a directory moved away): making a new one would hide the backups.
    async fn once_made(
        &self,
        project: &ProjectId,
        missing: Missing,
    ) -> Result<Missing, RepositoryError> {
        match self.store.find_repository(project).await? {
            Some(row) if row.made => Ok(Missing::Refuse),
            Some(_) | None => Ok(missing),
        }
    }

    /// The repository's password: from the catalogue; else, after the catalogue was lost,
    /// from beside the repository; else a new one. It is in the catalogue before the
    /// repository exists, so a crash in between loses nothing.
    pub(crate) async fn password(
        &self,
        project: &ProjectId,
        missing: Missing,
    ) -> Result<Password, RepositoryError> {
        if let Some(row) = self.store.find_repository(project).await? {
            return Ok(self.key.unwrap(&row.wrapped_password, project)?);
        }
        let wrapped = match (self.find_access(project).await?, missing) {
            (Some(wrapped), _) => wrapped,
            (None, Missing::Create) => self.key.wrap(&Password::random()?, project)?,
            (None, Missing::Refuse) => return Err(RepositoryError::None),
        };
        let row = self.store.create_repository(project, &wrapped, self.clock.now()).await?;
        Ok(self.key.unwrap(&row.wrapped_password, project)?)
    }

    /// The wrapped password beside the repository, if there is one.
    pub(crate) async fn find_access(
        &self,
        project: &ProjectId,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let backend = self.places.backend(project)?;
        let found = blocking(move || Repository::<Closed>::find_access(&*backend)).await?;
        found.map(|bytes| access::read(project, &bytes)).transpose()
    }
}

/// Whether what opens a repository is lost, rather than out of reach.
fn is_lost(error: &EngineError) -> bool {
    match error {
        EngineError::Damaged { .. }
        | EngineError::NotARepository
        | EngineError::WrongPassword
        | EngineError::UnsupportedVersion(_) => true,
        // A bad sector, or something that we may not read.
        EngineError::Backend { object: ObjectName::Config | ObjectName::Key(_), .. } => {
            !error.is_retryable() && !error.is_unreachable()
        }
        _ => false,
    }
}

/// Makes the place of a repository that never was: what is not there cannot tell whether
/// it holds one.
async fn prepare(backend: Arc<dyn Backend>) -> Result<(), RepositoryError> {
    let failed = |error| EngineError::Backend { object: ObjectName::Config, error };
    blocking(move || backend.prepare().map_err(failed)).await
}

/// The engine keeps its own time type because it knows nothing of ours.
pub(crate) fn engine_time(at: kedge_core::time::Timestamp) -> Timestamp {
    Timestamp::from_micros(at.as_micros())
}

/// Runs engine work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, RepositoryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(RepositoryError::Failed(format!("engine task: {error}"))),
    }
}
