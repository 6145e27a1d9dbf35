//! Rebuilds the catalogue's records from a repository: the way back after the database was
//! lost.

use kedge_core::checkpoint::{Checkpoint, SnapshotRef};
use kedge_core::ids::ProjectId;
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
        let files = blocking(move || {
            let ours = |tags: &[String]| tags.iter().any(|tag| tag.starts_with(ITEM_TAG_PREFIX));
            let mut files = Vec::new();
            for snapshot in repository.list_snapshots()? {
                if !ours(&snapshot.tags) {
                    continue;
                }
                let at = SnapshotRef {
                    snapshot: snapshot.id.to_string(),
                    tree: snapshot.tree.to_string(),
                };
                let read = || repository.open_snapshot(snapshot.id)?.file(manifest::FILE_NAME);
                files.push((at, read()));
            }
            Ok::<_, EngineError>(files)
        })
        .await
        .map_err(failed)?;
        Ok(files.into_iter().filter_map(|(at, file)| record(at, file)).collect())
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

fn record(at: SnapshotRef, file: Result<Vec<u8>, EngineError>) -> Option<Checkpoint> {
    let snapshot = at.snapshot.clone();
    let read = file
        .map_err(|error| error.to_string())
        .and_then(|bytes| manifest::read(&bytes, at).map_err(|error| error.to_string()));
    match read {
        Ok(checkpoint) => Some(checkpoint),
        Err(error) => {
            tracing::warn!("snapshot {snapshot} tells of no backup: {error}");
            None
        }
    }
}
