//! Repositories: one row per project, with the wrapped password that opens it.

use kedge_core::ids::ProjectId;
use kedge_core::time::Timestamp;
use sqlx::FromRow;

use crate::db::{Store, Tx};
use crate::error::{Result, StoreError};
use crate::text::{hex, unhex};

/// A project's repository as the catalogue knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryRow {
    /// The owner.
    pub project_id: ProjectId,
    /// The repository's password, wrapped by the service key.
    pub wrapped_password: Vec<u8>,
    /// Whether the repository was ever seen to exist. The password is recorded before.
    pub made: bool,
    /// When the password was recorded.
    pub created_at: Timestamp,
}

#[derive(FromRow)]
struct Row {
    project_id: String,
    wrapped_password: String,
    made: i64,
    created_at: i64,
}

impl Row {
    fn decode(self) -> Result<RepositoryRow> {
        let wrapped_password = unhex(&self.wrapped_password).ok_or_else(|| {
            StoreError::corrupt("repository", &self.project_id, "wrapped_password")
        })?;
        Ok(RepositoryRow {
            project_id: ProjectId::new(self.project_id),
            wrapped_password,
            made: self.made != 0,
            created_at: Timestamp::from_micros(self.created_at),
        })
    }
}

impl Store {
    /// The project's repository, if it has one.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_repository(&self, project: &ProjectId) -> Result<Option<RepositoryRow>> {
        self.read_one().await?.repository(project).await
    }

    /// Records the password of a project's repository-to-be. The first one wins; what is
    /// returned is what is recorded.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn create_repository(
        &self,
        project: &ProjectId,
        wrapped_password: &[u8],
        now: Timestamp,
    ) -> Result<RepositoryRow> {
        let mut tx = self.write().await?;
        tx.query(
            "INSERT INTO repositories (project_id, wrapped_password, made, created_at) \
             VALUES ($1, $2, 0, $3) ON CONFLICT (project_id) DO NOTHING",
        )
        .bind(project.as_str().to_owned())
        .bind(hex(wrapped_password))
        .bind(now.as_micros())
        .execute(tx.conn())
        .await?;
        let row = tx.repository(project).await?;
        tx.commit().await?;
        row.ok_or_else(|| StoreError::NotFound(format!("repository of {project:?}")))
    }

    /// Records that the project's repository exists: from now on one that is missing is
    /// out of reach, not yet to be made.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when no password is recorded.
    pub async fn mark_repository_made(&self, project: &ProjectId) -> Result<()> {
        let mut tx = self.write().await?;
        let done = tx
            .query("UPDATE repositories SET made = 1 WHERE project_id = $1")
            .bind(project.as_str().to_owned())
            .execute(tx.conn())
            .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!("repository of {project:?}")));
        }
        tx.commit().await
    }

    /// Replaces the wrapped password of a project's repository.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when no password is recorded.
    pub async fn replace_wrapped_password(
        &self,
        project: &ProjectId,
        wrapped_password: &[u8],
    ) -> Result<()> {
        let mut tx = self.write().await?;
        let done = tx
            .query("UPDATE repositories SET wrapped_password = $1 WHERE project_id = $2")
            .bind(hex(wrapped_password))
            .bind(project.as_str().to_owned())
            .execute(tx.conn())
            .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!("repository of {project:?}")));
        }
        tx.commit().await
    }

    /// Every project's repository.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_repositories(&self) -> Result<Vec<RepositoryRow>> {
        let mut tx = self.read_one().await?;
        let rows: Vec<Row> = tx
            .query_as(
                "SELECT project_id, wrapped_password, made, created_at FROM repositories \
                 ORDER BY project_id",
            )
            .fetch_all(tx.conn())
            .await?;
        rows.into_iter().map(Row::decode).collect()
    }
}

impl Tx<'_> {
    async fn repository(&mut self, project: &ProjectId) -> Result<Option<RepositoryRow>> {
        let row: Option<Row> = self
            .query_as(
                "SELECT project_id, wrapped_password, made, created_at FROM repositories \
                 WHERE project_id = $1",
            )
            .bind(project.as_str().to_owned())
            .fetch_optional(self.conn())
            .await?;
        row.map(Row::decode).transpose()
    }
}
