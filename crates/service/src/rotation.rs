//! Replaces the service key, and on request every repository's password.
//!
//! The new key is in the key file, beside the old one, before anything is wrapped with it;
//! the old one leaves the file when nothing is wrapped with it any more. A password is
//! noted, wrapped, in two places; both are replaced after the repository opens with the new
//! one, and the old one is removed after both were.
//!
//! Invariant: whatever is killed wherever, each place's wrapped password is unwrapped by
//! the key file and opens its repository. Run again, the replacement is brought to its end.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use kedge_core::ids::ProjectId;
use kedge_core::ports::Clock;
use kedge_engine::{Backend, Closed, EngineError, Open, Password, Repository};
use kedge_store::Store;

use crate::access;
use crate::app::Points;
use crate::keys::{KeyError, ServiceKey};
use crate::places::Places;
use crate::repositories::{Repositories, RepositoryError, blocking, engine_time};
use crate::settings::Kdf;

/// Whether the repositories' passwords are replaced with the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passwords {
    /// They stay, wrapped anew.
    Keep,
    /// Each repository gets a new one, and the old one opens it no more.
    Renew,
}

/// What a rotation works on. The caller owns the catalogue, so that no service wraps with
/// the old key meanwhile.
#[derive(Debug)]
pub struct Rotation<'a> {
    /// The file of the service key.
    pub key_file: &'a Path,
    /// Where repositories lie.
    pub places: Arc<dyn Places>,
    /// The catalogue.
    pub store: Store,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Cost of the key derivation of new passwords.
    pub kdf: Kdf,
    /// Whether passwords are renewed.
    pub passwords: Passwords,
    /// Told when the work passes a named point.
    pub points: &'a Points,
}

/// What a rotation came to.
#[derive(Debug)]
pub struct Rotated {
    /// Whether an earlier rotation was brought to its end rather than a new one begun.
    pub resumed: bool,
    /// Whether the old key is gone. It stays while something is wrapped with it alone.
    pub old_key_dropped: bool,
    /// Each repository, and why its password could not be wrapped anew.
    pub repositories: Vec<(ProjectId, Result<(), RepositoryError>)>,
}

impl Rotation<'_> {
    /// Replaces the key. What cannot be done for one repository is told in the result and
    /// keeps the old key in the file; an error says that nothing more could be done.
    pub async fn run(self) -> Result<Rotated, RepositoryError> {
        ServiceKey::remove_leftovers(self.key_file)?;
        let loaded = ServiceKey::load(self.key_file)?;
        let resumed = loaded.is_being_replaced();
        let key = if resumed { loaded } else { self.begin(loaded)? };
        let alone = key.alone();
        let work = Work {
            repositories: Repositories::new(
                self.places.clone(),
                Arc::new(key),
                self.store.clone(),
                self.clock.clone(),
                self.kdf,
            ),
            points: self.points,
        };
        let mut repositories = Vec::new();
        for project in work.projects().await? {
            let done = match self.passwords {
                Passwords::Keep => work.wrap_anew(&project).await,
                Passwords::Renew => work.renew_password(&project).await,
            };
            let done = match done {
                Ok(()) => work.require_wrapped_anew(&project).await,
                failed => failed,
            };
            repositories.push((project, done));
        }
        let old_key_dropped = repositories.iter().all(|(_, done)| done.is_ok());
        if old_key_dropped {
            let before_renamed = || self.points.pass("rotate.last_key_written");
            alone.replace_file(self.key_file, before_renamed)?;
            self.points.pass("rotate.old_key_dropped");
        }
        Ok(Rotated { resumed, old_key_dropped, repositories })
    }

    fn begin(&self, old: ServiceKey) -> Result<ServiceKey, KeyError> {
        let key = old.replaced()?;
        key.replace_file(self.key_file, || self.points.pass("rotate.first_key_written"))?;
        self.points.pass("rotate.key_added");
        Ok(key)
    }
}

/// The part that knows both keys.
struct Work<'a> {
    repositories: Repositories,
    points: &'a Points,
}

/// A repository's wrapped passwords as they are noted.
struct Noted {
    /// In the catalogue.
    row: Option<Vec<u8>>,
    /// Beside the repository.
    access: Option<Vec<u8>>,
    /// Unless the catalogue says that there is no repository yet.
    made: bool,
}

impl Work<'_> {
    /// Every repository that the catalogue or the store knows.
    async fn projects(&self) -> Result<BTreeSet<ProjectId>, RepositoryError> {
        let rows = self.repositories.store.list_repositories().await?;
        let found = self.repositories.list_projects().await?;
        Ok(rows.into_iter().map(|row| row.project_id).chain(found).collect())
    }

    /// One that was made and is not there now is an error: it would come back with its
    /// password wrapped by a key that is gone.
    async fn noted(&self, project: &ProjectId) -> Result<Noted, RepositoryError> {
        let row = self.repositories.store.find_repository(project).await?;
        let made = row.as_ref().is_none_or(|row| row.made);
        let access = match self.repositories.find_access(project).await {
            Err(RepositoryError::Engine(error)) if error.is_unreachable() && !made => None,
            found => found?,
        };
        Ok(Noted { row: row.map(|row| row.wrapped_password), access, made })
    }

    async fn wrap_anew(&self, project: &ProjectId) -> Result<(), RepositoryError> {
        let key = &self.repositories.key;
        let noted = self.noted(project).await?;
        let is_old = |wrapped: &Vec<u8>| !key.unwraps_alone(wrapped, project);
        let access = match noted.access {
            // It was lost: repository and key have to be enough again.
            None if noted.made => noted.row.clone(),
            found => found.filter(is_old),
        };
        if let Some(wrapped) = access {
            self.put_access(project, &key.unwrap(&wrapped, project)?).await?;
        }
        if let Some(wrapped) = noted.row.filter(is_old) {
            self.put_row(project, &key.unwrap(&wrapped, project)?).await?;
        }
        Ok(())
    }

    async fn renew_password(&self, project: &ProjectId) -> Result<(), RepositoryError> {
        let noted = self.noted(project).await?;
        let Some(repository) = self.open(project, &noted).await? else {
            return self.wrap_anew(project).await;
        };
        let repository = Arc::new(repository);
        let password = Arc::new(Password::random()?);
        let (kdf, now) = (self.repositories.kdf, engine_time(self.repositories.clock.now()));
        let (shared, new) = (repository.clone(), password.clone());
        let added = blocking(move || shared.add_password(&new, kdf, now)).await?;
        self.points.pass("rotate.password_added");
        self.put_access(project, &password).await?;
        if noted.row.is_some() {
            self.put_row(project, &password).await?;
        }
        blocking(move || repository.remove_passwords_but(added)).await?;
        self.points.pass("rotate.old_passwords_removed");
        Ok(())
    }

    /// The repository, by whichever password that is noted opens it; `None` when it was
    /// never made.
    async fn open(
        &self,
        project: &ProjectId,
        noted: &Noted,
    ) -> Result<Option<Repository<Open>>, RepositoryError> {
        if noted.access.is_none() && !noted.made {
            return Ok(None);
        }
        let mut last = RepositoryError::None;
        for wrapped in [&noted.row, &noted.access].into_iter().flatten() {
            let opened = match self.repositories.key.unwrap(wrapped, project) {
                Ok(password) => self.open_with(project, password).await,
                Err(error) => Err(error.into()),
            };
            match opened {
                Ok(repository) => return Ok(Some(repository)),
                Err(error) if is_wrong(&error) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn open_with(
        &self,
        project: &ProjectId,
        password: Password,
    ) -> Result<Repository<Open>, RepositoryError> {
        let backend = self.repositories.places.backend(project)?;
        blocking(move || Repository::<Closed>::open(backend, &password)).await
    }

    async fn put_access(
        &self,
        project: &ProjectId,
        password: &Password,
    ) -> Result<(), RepositoryError> {
        self.repositories.put_access(project, password).await?;
        self.points.pass("rotate.access_wrapped");
        Ok(())
    }

    async fn put_row(
        &self,
        project: &ProjectId,
        password: &Password,
    ) -> Result<(), RepositoryError> {
        let wrapped = self.repositories.key.wrap(password, project)?;
        self.repositories.store.replace_wrapped_password(project, &wrapped).await?;
        self.points.pass("rotate.row_wrapped");
        Ok(())
    }

    /// What is read back needs the old key no more.
    async fn require_wrapped_anew(&self, project: &ProjectId) -> Result<(), RepositoryError> {
        let noted = self.noted(project).await?;
        let key = &self.repositories.key;
        let is_new = |wrapped: &Vec<u8>| key.unwraps_alone(wrapped, project);
        if [noted.row, noted.access].iter().flatten().all(is_new) {
            return Ok(());
        }
        Err(RepositoryError::Failed("what was wrapped anew reads back as before".to_owned()))
    }
}

/// Another noted password may still be right.
fn is_wrong(error: &RepositoryError) -> bool {
    matches!(
        error,
        RepositoryError::Key(KeyError::WrongKey)
            | RepositoryError::Engine(EngineError::WrongPassword)
    )
}

impl Repositories {
    /// The projects that have a repository at the place, in their order.
    pub async fn list_projects(&self) -> Result<Vec<ProjectId>, RepositoryError> {
        let places = self.places.clone();
        match tokio::task::spawn_blocking(move || places.list_projects()).await {
            Ok(listed) => listed,
            Err(error) => Err(RepositoryError::Failed(format!("listing repositories: {error}"))),
        }
    }

    /// Notes the password beside the repository, wrapped by the service key.
    pub(crate) async fn put_access(
        &self,
        project: &ProjectId,
        password: &Password,
    ) -> Result<(), RepositoryError> {
        let backend: Arc<dyn Backend> = self.places.backend(project)?;
        let bytes = access::write(project, &self.key.wrap(password, project)?)?;
        blocking(move || Repository::<Closed>::replace_access(&*backend, &bytes)).await
    }
}
