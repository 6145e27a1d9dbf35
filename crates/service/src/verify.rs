//! Reading back what repositories hold, and recording what is damaged.

use std::collections::BTreeSet;
use std::sync::Arc;

use kedge_core::ids::ProjectId;
use kedge_core::time::Timestamp;
use kedge_engine::{
    Closed, EngineError, IndexId, Listed, ObjectKind, Progress, Reading, Repository, VerifyOptions,
    VerifyOutcome,
};

use crate::repositories::{Repositories, RepositoryError, blocking, engine_time};

impl Repositories {
    /// Verifies without any key that every object has the hash it is named by.
    pub async fn verify_keyless(
        &self,
        project: &ProjectId,
        options: VerifyOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<VerifyOutcome, RepositoryError> {
        let backend = self.places.backend(project)?;
        blocking(move || {
            if !Repository::<Closed>::is_initialised(&*backend)? {
                return Err(EngineError::NotARepository);
            }
            Repository::<Closed>::verify_objects(&*backend, &options, &*progress)
        })
        .await
    }

    /// Verifies every blob, and records what is damaged, so that nothing relies on it any
    /// more and the next backup that has it stores it anew. What is sound again is relied
    /// on again.
    pub async fn verify(
        &self,
        project: &ProjectId,
        options: VerifyOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<VerifyOutcome, RepositoryError> {
        let repository = self.get(project).await?;
        blocking(move || {
            let outcome = repository.verify(&options, &*progress)?;
            if !outcome.refuted.is_empty() {
                repository.lift_damage(&outcome.refuted)?;
            }
            Ok(outcome)
        })
        .await
    }

    /// Tells whoever watches over the repository that every pack of these index objects was
    /// verified after a moment, so that it counts as evidence and need not be done again.
    pub async fn record_reading(
        &self,
        project: &ProjectId,
        began_at: Timestamp,
        index: BTreeSet<IndexId>,
    ) -> Result<(), RepositoryError> {
        let repository = self.get(project).await?;
        let reading = Reading { began_at: engine_time(began_at), index };
        blocking(move || repository.record_reading(&reading)).await
    }

    /// How many bytes of packs the project's repository has, for who watches.
    pub async fn packs_bytes(&self, project: &ProjectId) -> Result<u64, RepositoryError> {
        let backend = self.places.backend(project)?;
        let bytes = |listed: Vec<Listed>| listed.iter().map(|one| one.size_bytes).sum();
        blocking(move || backend.list(ObjectKind::Pack).map(bytes).map_err(EngineError::List)).await
    }
}
