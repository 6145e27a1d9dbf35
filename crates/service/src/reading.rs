//! Opening the disks of a backup to read them, and what follows where that fails.

use std::sync::Arc;

use kedge_core::ids::ProjectId;
use kedge_engine::{CancelFlag, EngineError, SnapshotId, VolumeView};

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
    /// What made a reader fail is looked at again, and recorded if it is damage: every backup
    /// that needs it is told from then on. Gives the reader's error back, or the one that kept
    /// it from being looked at.
    pub(crate) async fn record_suspect(
        &self,
        project: &ProjectId,
        repository: &SharedRepository,
        error: RepositoryError,
        cancel: &CancelFlag,
    ) -> RepositoryError {
        let error = match error {
            RepositoryError::Engine(error) if !error.is_unreachable() => error,
            error => return error,
        };
        let (shared, cancel) = (Arc::clone(repository), cancel.clone());
        let looked_at = blocking(move || Ok((shared.verify_suspect(&error, &cancel)?, error)));
        match looked_at.await {
            Ok((Some(outcome), error)) => {
                for damage in outcome.damaged {
                    tracing::error!("pack {} is damaged: {}", damage.pack, damage.what);
                }
                error.into()
            }
            Ok((None, error)) => {
                // No pack: what names it is lost, and no mark can say what that was.
                if matches!(error, EngineError::Damaged { .. }) {
                    self.wholeness.report_loss(project);
                }
                error.into()
            }
            Err(error) => error,
        }
    }
}
