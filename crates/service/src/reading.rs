//! Opening the disks of a backup to read them, and what follows where that fails.

use std::sync::Arc;

use kedge_core::ids::ProjectId;
use kedge_engine::{CancelFlag, EngineError, SnapshotId, Suspicion, VolumeView};

use crate::repositories::{Repositories, RepositoryError, SharedRepository, blocking};

/// A disk of a backup: its folder in the snapshot, and the size that it must have.
pub(crate) type StoredDisk = (String, u64);

/// The content lists of these disks, in their order, of blobs that the index knows.
pub(crate) async fn open_disks(
    repository: &SharedRepository,
    snapshot: SnapshotId,
    disks: Vec<StoredDisk>,
) -> Result<Vec<Arc<VolumeView>>, RepositoryError> {
    let shared = Arc::clone(repository);
    blocking(move || {
        let view = shared.open_snapshot(snapshot)?;
        let open = |(folder, size_bytes): StoredDisk| {
            let volume = view.volume(&folder)?;
            if volume.size_bytes() != size_bytes {
                return Err(EngineError::Damaged {
                    object: format!("snapshot {snapshot}"),
                    what: format!("{folder} has not the size of its disk"),
                });
            }
            shared.require_known_blobs(&volume)?;
            Ok(Arc::new(volume))
        };
        disks.into_iter().map(open).collect()
    })
    .await
}

impl Repositories {
    /// What gave a reader bad bytes is looked at again, and recorded if it is damage: every
    /// backup that needs it is told from then on. For where a reader has ended, well or not: it
    /// may have found elsewhere what it needed. Gives back what came of reading, or the error
    /// that kept what had failed from being looked at.
    pub(crate) async fn settle_suspects<T>(
        &self,
        project: &ProjectId,
        repository: &SharedRepository,
        read: Result<T, RepositoryError>,
        cancel: &CancelFlag,
    ) -> Result<T, RepositoryError> {
        let (shared, cancel) = (Arc::clone(repository), cancel.clone());
        match read {
            Err(RepositoryError::Engine(error)) if !error.is_unreachable() => {
                let verified =
                    blocking(move || Ok((shared.verify_suspects(Some(&error), &cancel), error)));
                let (mut suspicion, error) = verified.await?;
                let unseen = suspicion.unseen.take();
                self.tell(project, suspicion).await;
                Err(unseen.unwrap_or(error).into())
            }
            Ok(read) if repository.has_suspects() => {
                let verified = blocking(move || Ok(shared.verify_suspects(None, &cancel)));
                self.tell(project, verified.await?).await;
                Ok(read)
            }
            read => read,
        }
    }

    async fn tell(&self, project: &ProjectId, suspicion: Suspicion) {
        for damage in suspicion.damaged {
            tracing::error!("pack {} is damaged: {}", damage.pack, damage.what);
        }
        if suspicion.is_lost {
            self.report_loss(project).await;
        }
        // The next reader looks at them.
        if let Some(error) = suspicion.waiting {
            tracing::warn!(project.id = ?project, "packs that gave bad bytes wait: {error}");
        }
    }
}
