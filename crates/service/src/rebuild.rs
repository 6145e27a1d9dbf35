//! Rebuilds the catalogue's records from a repository: the way back after the database was
//! lost.

use kedge_core::checkpoint::{Checkpoint, SnapshotRef};
use kedge_core::ids::{ItemId, ProjectId};
use kedge_engine::EngineError;
use kedge_store::StoreError;

use crate::app::App;
use crate::error::Error;
use crate::job::ITEM_TAG_PREFIX;
use crate::manifest;
use crate::repositories::{RepositoryError, blocking};

impl App {
    /// The records that the project's repository tells of, oldest first; one per backup,
    /// each with its one item available. A snapshot that tells nothing readable is logged
    /// and left out.
    pub async fn rebuilt_records(&self, project: &ProjectId) -> Result<Vec<Checkpoint>, Error> {
        let failed = |error: RepositoryError| Error::Internal(error.to_string());
        let repository = self.parts.repositories.get(project).await.map_err(failed)?;
        let (files, damaged) = blocking(move || {
            let (snapshots, damaged) = repository.survey_snapshots()?;
            let files: Vec<_> = snapshots
                .into_iter()
                .filter_map(|snapshot| {
                    let tag = |tag: &String| tag.strip_prefix(ITEM_TAG_PREFIX).map(ItemId::asked);
                    let item = snapshot.tags.iter().find_map(tag)?;
                    let read = || repository.open_snapshot(snapshot.id)?.file(manifest::FILE_NAME);
                    let at = SnapshotRef {
                        snapshot: snapshot.id.to_string(),
                        tree: snapshot.tree.to_string(),
                    };
                    Some((item, at, read()))
                })
                .collect();
            Ok((files, damaged))
        })
        .await
        .map_err(failed)?;
        for damage in damaged {
            tracing::error!(project.id = ?project, "{damage}");
        }
        Ok(files
            .into_iter()
            .filter_map(|(item, at, file)| record(project, &item, at, file))
            .collect())
    }

    /// Takes every backup that the repository tells of and the catalogue does not know
    /// into the catalogue. Returns how many there were.
    pub async fn adopt_records(&self, project: &ProjectId) -> Result<usize, Error> {
        let mut adopted = 0;
        for record in self.rebuilt_records(project).await? {
            match self.parts.store.adopt(&record).await {
                Ok(()) => adopted += 1,
                Err(StoreError::Exists(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(adopted)
    }
}

/// What the file tells, if it tells of the backup its snapshot is tagged with, in the
/// project whose repository it lies in: a repository must not speak for other projects.
fn record(
    project: &ProjectId,
    item: &ItemId,
    at: SnapshotRef,
    file: Result<Vec<u8>, EngineError>,
) -> Option<Checkpoint> {
    let snapshot = at.snapshot.clone();
    let read = file
        .map_err(|error| error.to_string())
        .and_then(|bytes| manifest::read(&bytes, at).map_err(|error| error.to_string()))
        .and_then(|record| {
            let is_own = record.project_id == *project
                && record.items.iter().all(|told| told.id == *item && told.project_id == *project);
            is_own.then_some(record).ok_or_else(|| "it speaks of another backup".to_owned())
        });
    match read {
        Ok(checkpoint) => Some(checkpoint),
        Err(error) => {
            tracing::warn!("snapshot {snapshot} tells of no backup: {error}");
            None
        }
    }
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

    fn told(project: &str, item: &str) -> Option<Checkpoint> {
        let at = SnapshotRef { snapshot: "5".repeat(64), tree: "7".repeat(64) };
        let file = Ok(FILE.as_bytes().to_vec());
        record(&ProjectId::new(project), &ItemId::asked(item), at, file)
    }

    /// Whoever can write to one repository plants nothing in other projects' catalogues,
    /// and nothing under another backup's id.
    #[test]
    fn a_repository_speaks_for_its_own_project_only() {
        assert!(told("mine", "2a7c4e91-b5d6-4f38-8c0a-d7e93f1b6054").is_some());
        assert!(told("theirs", "2a7c4e91-b5d6-4f38-8c0a-d7e93f1b6054").is_none());
        assert!(told("mine", "9e6f0d2a-47b8-4c13-95de-1a8c3b7f4e62").is_none());
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
