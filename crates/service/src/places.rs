//! Where the repositories of the projects lie: in a directory, or in a bucket.
//!
//! Invariant: a project's id becomes part of a path only after it was found to be plain.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use kedge_core::ids::ProjectId;
use kedge_engine::layer::{Pace, Retry, RetryLimits};
use kedge_engine::{Backend, EngineError, LocalBackend, ObjectName, S3Bucket};

use crate::repositories::RepositoryError;

/// Where repositories lie.
pub trait Places: Send + Sync + Debug {
    /// The store of one project's repository.
    fn backend(&self, project: &ProjectId) -> Result<Arc<dyn Backend>, RepositoryError>;

    /// What `RESTIC_REPOSITORY` says to reach it.
    fn restic_location(&self, project: &ProjectId) -> Result<String, RepositoryError>;

    /// The projects that have a repository here, whatever its state, in their order.
    fn list_projects(&self) -> Result<Vec<ProjectId>, RepositoryError>;
}

/// Those of these folders that are repositories of projects.
fn repositories_among(
    places: &dyn Places,
    names: impl IntoIterator<Item = String>,
) -> Result<Vec<ProjectId>, RepositoryError> {
    let mut projects = Vec::new();
    for project in names.into_iter().map(ProjectId::new) {
        if plain_name(&project).is_err() {
            continue;
        }
        let backend = places.backend(&project)?;
        for name in [ObjectName::Config, ObjectName::Access] {
            let size = backend.find_size(&name);
            let size = size.map_err(|error| EngineError::Backend { object: name, error })?;
            if size.is_some() {
                projects.push(project);
                break;
            }
        }
    }
    projects.sort();
    Ok(projects)
}

/// A project's id, which may name a directory.
fn plain_name(project: &ProjectId) -> Result<&str, RepositoryError> {
    let name = project.as_str();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(RepositoryError::Failed(format!("{project:?} cannot name a directory")));
    }
    Ok(name)
}

/// A directory with one repository per project, named by the project's id.
#[derive(Clone, Debug)]
pub struct Directory(pub PathBuf);

impl Directory {
    fn path(&self, project: &ProjectId) -> Result<PathBuf, RepositoryError> {
        Ok(self.0.join(plain_name(project)?))
    }
}

impl Places for Directory {
    fn backend(&self, project: &ProjectId) -> Result<Arc<dyn Backend>, RepositoryError> {
        Ok(Arc::new(LocalBackend::new(self.path(project)?)))
    }

    fn restic_location(&self, project: &ProjectId) -> Result<String, RepositoryError> {
        let path = self.path(project)?;
        let absolute = std::path::absolute(&path)
            .map_err(|error| RepositoryError::Failed(format!("{}: {error}", path.display())))?;
        Ok(absolute.display().to_string())
    }

    fn list_projects(&self) -> Result<Vec<ProjectId>, RepositoryError> {
        let failed = |error| RepositoryError::Failed(format!("{}: {error}", self.0.display()));
        let entries = std::fs::read_dir(&self.0).map_err(failed)?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.path().is_dir() {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        repositories_among(self, names)
    }
}

/// A bucket with one repository per project, below a prefix and the project's id. What
/// may pass is asked again.
#[derive(Clone, Debug)]
pub struct ObjectStore {
    bucket: S3Bucket,
    /// `endpoint/bucket`, as restic writes it after `s3:`.
    place: String,
    prefix: String,
    limits: RetryLimits,
    pace: Arc<dyn Pace>,
}

impl ObjectStore {
    /// Repositories in `bucket` below `prefix`. `place` is its address with the bucket's
    /// name as a path, for people and for restic.
    pub fn new(
        bucket: S3Bucket,
        place: impl Into<String>,
        prefix: impl Into<String>,
        limits: RetryLimits,
        pace: Arc<dyn Pace>,
    ) -> Self {
        Self { bucket, place: place.into(), prefix: prefix.into(), limits, pace }
    }

    fn key_prefix(&self, project: &ProjectId) -> Result<String, RepositoryError> {
        let name = plain_name(project)?;
        let is_top = self.prefix.is_empty();
        Ok(if is_top { name.to_owned() } else { format!("{}/{name}", self.prefix) })
    }
}

impl Places for ObjectStore {
    fn backend(&self, project: &ProjectId) -> Result<Arc<dyn Backend>, RepositoryError> {
        let backend = self.bucket.repository(&self.key_prefix(project)?);
        Ok(Arc::new(Retry::new(backend, self.limits, Arc::clone(&self.pace))))
    }

    fn restic_location(&self, project: &ProjectId) -> Result<String, RepositoryError> {
        Ok(format!("s3:{}/{}", self.place, self.key_prefix(project)?))
    }

    fn list_projects(&self) -> Result<Vec<ProjectId>, RepositoryError> {
        let listed = self.bucket.list_folders(&self.prefix);
        repositories_among(self, listed.map_err(EngineError::List)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_id_never_becomes_a_path() {
        let root = Directory("/repositories".into());
        for name in ["", "..", "a/b", "a\0b", "a\nb", &"x".repeat(65)] {
            assert!(root.path(&ProjectId::new(name)).is_err(), "{name:?}");
        }
        let path = root.path(&ProjectId::new("3f2b9c1d7a6e4c58b0d1e2f3a4b5c6d7")).unwrap();
        assert!(path.starts_with("/repositories"));
    }

    #[test]
    fn repositories_are_found_among_what_else_lies_there() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["b/kedge", "a", "empty", "no name of a project/kedge"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        for path in ["b/kedge/access.json", "a/config", "c", "no name of a project/config"] {
            std::fs::write(dir.path().join(path), "").unwrap();
        }
        let found = Directory(dir.path().to_owned()).list_projects().unwrap();
        assert_eq!(found, [ProjectId::new("a"), ProjectId::new("b")]);
        assert!(Directory(dir.path().join("gone")).list_projects().is_err());
    }
}
