//! What an operator does to repositories by hand: make, check, verify, prune, count. The
//! judgements are the engine's; here they find their repository.

use kedge_core::ids::ProjectId;
use kedge_engine::{CancelFlag, CheckReport, Closed, ReadData, Repository};

use crate::repositories::{Repositories, RepositoryError, blocking};

/// Whether a repository had to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// It was made.
    Made,
    /// It was there, and the service key opens it.
    WasThere,
}

impl Repositories {
    /// Makes the project's repository where there is none.
    pub async fn init(&self, project: &ProjectId) -> Result<Init, RepositoryError> {
        let backend = self.places.backend(project)?;
        let found = blocking(move || Repository::<Closed>::is_initialised(&*backend)).await;
        let was_there = match found {
            // The place itself is not there yet.
            Err(RepositoryError::Engine(error)) if error.is_unreachable() => false,
            found => found?,
        };
        self.get_or_create(project).await?;
        Ok(if was_there { Init::WasThere } else { Init::Made })
    }

    /// The engine's judgement of the project's repository.
    pub async fn check(
        &self,
        project: &ProjectId,
        read_data: ReadData,
        cancel: CancelFlag,
    ) -> Result<CheckReport, RepositoryError> {
        let repository = self.get(project).await?;
        blocking(move || repository.check(read_data, &cancel)).await
    }
}
