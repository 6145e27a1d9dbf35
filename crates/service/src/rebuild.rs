//! Rebuilds the catalogue's records from a repository: the way back after the database was
//! lost.

use std::sync::Arc;

use kedge_core::checkpoint::{Checkpoint, SnapshotRef};
use kedge_core::ids::{ItemId, ProjectId};
use kedge_engine::{Closed, EngineError, Password, Repository};
use kedge_store::StoreError;

use crate::app::{App, Points};
use crate::error::Error;
use crate::job::ITEM_TAG_PREFIX;
use crate::manifest;
use crate::repositories::{Repositories, RepositoryError, blocking};

/// What one repository told.
#[derive(Debug, Default)]
pub struct Told {
    /// A record per backup, oldest first, each with its one item available.
    pub records: Vec<Checkpoint>,
    /// Snapshots that should tell of a backup and do not, or cannot be read.
    pub unreadable: Vec<String>,
    /// Snapshots of other programs.
    pub foreign: usize,
}

/// What came of rebuilding one project's records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Backups taken into the catalogue.
    pub adopted: usize,
    /// Backups the catalogue knew, or knew to be deleted.
    pub known: usize,
    /// Snapshots of other programs.
    pub foreign: usize,
    /// What could not be taken in, and why.
    pub unreadable: Vec<String>,
}

impl Repositories {
    /// What the project's repository tells of its backups.
    pub async fn read_records(&self, project: &ProjectId) -> Result<Told, RepositoryError> {
        let repository = self.get(project).await?;
        let (files, foreign, damaged) = blocking(move || {
            let (snapshots, damaged) = repository.survey_snapshots()?;
            let (mut files, mut foreign) = (Vec::new(), 0);
            for snapshot in snapshots {
                let tag = |tag: &String| tag.strip_prefix(ITEM_TAG_PREFIX).map(ItemId::asked);
                let Some(item) = snapshot.tags.iter().find_map(tag) else {
                    foreign += 1;
                    continue;
                };
                let at = SnapshotRef {
                    snapshot: snapshot.id.to_string(),
                    tree: snapshot.tree.to_string(),
                };
                let view = repository.open_snapshot(snapshot.id);
                files.push((item, at, view.and_then(|view| view.file(manifest::FILE_NAME))));
            }
            Ok((files, foreign, damaged))
        })
        .await?;
        let damaged = damaged.iter().map(ToString::to_string);
        let mut told = Told { records: Vec::new(), unreadable: damaged.collect(), foreign };
        for (item, at, file) in files {
            let snapshot = at.snapshot.clone();
            match record(project, &item, at, file) {
                Ok(record) => told.records.push(record),
                Err(why) => told.unreadable.push(format!("snapshot {snapshot}: {why}")),
            }
        }
        Ok(told)
    }

    /// Takes every backup that the repository tells of and the catalogue does not know
    /// into the catalogue, each in one transaction: interrupted, it is run again.
    pub async fn rebuild_catalogue(
        &self,
        project: &ProjectId,
        points: &Points,
    ) -> Result<Rebuilt, RepositoryError> {
        let Told { records, unreadable, foreign } = self.read_records(project).await?;
        let mut rebuilt = Rebuilt { unreadable, foreign, ..Rebuilt::default() };
        for record in records {
            match self.store.adopt(&record).await {
                Ok(()) => {
                    rebuilt.adopted += 1;
                    points.pass("rebuild.adopted");
                }
                Err(StoreError::Exists(_)) => rebuilt.known += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(rebuilt)
    }

    /// Makes the service key open the project's repository again, given its password: the
    /// way back when the key that wrapped it was lost. Checks the password first.
    pub async fn take_password(
        &self,
        project: &ProjectId,
        password: Password,
        points: &Points,
    ) -> Result<(), RepositoryError> {
        let password = Arc::new(password);
        let (backend, given) = (self.places.backend(project)?, password.clone());
        blocking(move || Repository::<Closed>::open(backend, &given).map(drop)).await?;
        let is_same = |wrapped: &[u8]| {
            let noted = self.key.unwrap(wrapped, project);
            noted.is_ok_and(|noted| noted.expose() == password.expose())
        };
        // One that cannot be read is replaced like one of another key.
        let access = self.find_access(project).await.unwrap_or_default();
        if !access.is_some_and(|wrapped| is_same(&wrapped)) {
            self.put_access(project, &password).await?;
            points.pass("rebuild.access_wrapped");
        }
        let wrapped = self.key.wrap(&password, project)?;
        let row = self.store.create_repository(project, &wrapped, self.clock.now()).await?;
        if !is_same(&row.wrapped_password) {
            self.store.replace_wrapped_password(project, &wrapped).await?;
        }
        points.pass("rebuild.row_wrapped");
        Ok(())
    }
}

impl App {
    /// What the project's repository tells of its backups.
    pub async fn rebuilt_records(&self, project: &ProjectId) -> Result<Vec<Checkpoint>, Error> {
        let told = self.parts.repositories.read_records(project).await;
        Ok(told.map_err(|error| Error::Internal(error.to_string()))?.records)
    }

    /// Takes every backup that the repository tells of and the catalogue does not know
    /// into the catalogue. Returns how many there were.
    pub async fn adopt_records(&self, project: &ProjectId) -> Result<usize, Error> {
        let rebuilt = self.parts.repositories.rebuild_catalogue(project, &self.parts.points).await;
        Ok(rebuilt.map_err(|error| Error::Internal(error.to_string()))?.adopted)
    }
}

/// What the file tells, if it tells of the backup its snapshot is tagged with, in the
/// project whose repository it lies in: a repository must not speak for other projects.
fn record(
    project: &ProjectId,
    item: &ItemId,
    at: SnapshotRef,
    file: Result<Vec<u8>, EngineError>,
) -> Result<Checkpoint, String> {
    file.map_err(|error| error.to_string())
        .and_then(|bytes| manifest::read(&bytes, at).map_err(|error| error.to_string()))
        .and_then(|record| {
            let is_own = record.project_id == *project
                && record.items.iter().all(|told| told.id == *item && told.project_id == *project);
            is_own.then_some(record).ok_or_else(|| "it speaks of another backup".to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"format":1,
        "checkpoint":"9e6f0d2a-47b8-4c13-95de-1a8c3b7f4e62","checkpoint_created_at":1,
        "plan_id":"p","plan_name":"p","item":"2a7c4e91-b5d6-4f38-8c0a-d7e93f1b6054",
        "project":"mine","name":"n","description":"","trigger":"manual","method":"full",
        "created_at":1,"protected_at":2,"stored_at":3,"tags":[],
        "job":"5a1d7c80-1a0b-11f1-9b3e-0242ac110002",
        "server":{"id":"0c5d1c8e-6d9f-4f0b-9a61-2f4f6d1b7a10","name":"s","kind":"kvm","zone":"z",
            "ram_mb":1,"vcpus":1,"disk_gb":0,"image_type":"","private_ip":"","public_ip":""},
        "volumes":[]}"#;

    fn told(project: &str, item: &str) -> Result<Checkpoint, String> {
        let at = SnapshotRef { snapshot: "5".repeat(64), tree: "7".repeat(64) };
        let file = Ok(FILE.as_bytes().to_vec());
        record(&ProjectId::new(project), &ItemId::asked(item), at, file)
    }

    /// Whoever can write to one repository plants nothing in other projects' catalogues,
    /// and nothing under another backup's id.
    #[test]
    fn a_repository_speaks_for_its_own_project_only() {
        assert!(told("mine", "2a7c4e91-b5d6-4f38-8c0a-d7e93f1b6054").is_ok());
        assert!(told("theirs", "2a7c4e91-b5d6-4f38-8c0a-d7e93f1b6054").is_err());
        assert!(told("mine", "9e6f0d2a-47b8-4c13-95de-1a8c3b7f4e62").is_err());
    }

    #[test]
    fn a_file_of_a_newer_format_is_not_guessed_at() {
        let newer = FILE.replace("\"format\":1", "\"format\":2");
        let at = SnapshotRef { snapshot: "5".repeat(64), tree: "7".repeat(64) };
        assert!(matches!(
            manifest::read(newer.as_bytes(), at),
            Err(manifest::ManifestError::TooNew(2))
        ));
    }
}
