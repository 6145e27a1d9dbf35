//! Restores: the record a caller follows while the job runs.

use kedge_core::ids::{
    CheckpointId, ItemId, ProjectId, RestoreId, ServerId, VolumeBackupId, VolumeId,
};
use kedge_core::precondition::Precondition;
use kedge_core::restore::Pair;
use kedge_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use crate::codec::{from_json, to_json};
use crate::db::{Store, Tx};
use crate::error::{Result, StoreError};
use crate::text::without_nul;

/// One restore: what was asked for and how it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Its id.
    pub id: RestoreId,
    /// The owner.
    pub project_id: ProjectId,
    /// The record it restores from.
    pub checkpoint_id: CheckpointId,
    /// The backup it restores from.
    pub item_id: ItemId,
    /// The target.
    pub server_id: ServerId,
    /// Which disk backup goes to which disk.
    pub pairs: Vec<Pair>,
    /// Whether the server is to run afterwards.
    pub power_on: PowerOn,
    /// What must be as it was when the restore was planned; nothing where no plan was named.
    pub preconditions: Vec<Precondition>,
    /// How it stands.
    pub status: RestoreStatus,
    /// Why it failed; empty unless it did.
    pub reason: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Last change of the record.
    pub updated_at: Timestamp,
}

/// Whether a restored server is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerOn {
    /// It is started.
    Yes,
    /// It stays off.
    No,
}

/// How a restore stands; the words are Karbor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RestoreStatus {
    /// Queued or running.
    InProgress,
    /// Every byte was written and read back.
    Success,
    /// It failed; the reason is told.
    Fail,
}

impl RestoreStatus {
    /// The word on the wire and in rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Success => "success",
            Self::Fail => "fail",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::InProgress, Self::Success, Self::Fail]
            .into_iter()
            .find(|status| status.as_str() == word)
    }
}

/// What no query looks into of a restore.
#[derive(Serialize, Deserialize)]
struct Details {
    pairs: Vec<(VolumeBackupId, VolumeId)>,
    power_on: PowerOn,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    preconditions: Vec<Precondition>,
}

#[derive(FromRow)]
struct RestoreRow {
    id: String,
    project_id: String,
    checkpoint_id: String,
    item_id: String,
    server_id: String,
    details: String,
    status: String,
    reason: String,
    created_at: i64,
    updated_at: i64,
}

impl RestoreRow {
    fn decode(self) -> Result<Restore> {
        let details: Details = from_json("restore", &self.id, &self.details)?;
        let status = RestoreStatus::from_word(&self.status)
            .ok_or_else(|| StoreError::corrupt("restore", &self.id, "status"))?;
        let pair = |(backup, volume)| Pair { backup, volume };
        Ok(Restore {
            id: RestoreId::asked(&self.id),
            project_id: ProjectId::new(self.project_id),
            checkpoint_id: CheckpointId::asked(&self.checkpoint_id),
            item_id: ItemId::asked(&self.item_id),
            server_id: ServerId::asked(&self.server_id),
            pairs: details.pairs.into_iter().map(pair).collect(),
            power_on: details.power_on,
            preconditions: details.preconditions,
            status,
            reason: self.reason,
            created_at: Timestamp::from_micros(self.created_at),
            updated_at: Timestamp::from_micros(self.updated_at),
        })
    }
}

impl Store {
    /// The restore, unless it is absent or another project's.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_restore(
        &self,
        project: &ProjectId,
        id: &RestoreId,
    ) -> Result<Option<Restore>> {
        let mut tx = self.read().await?;
        let row: Option<RestoreRow> = tx
            .query_as(
                "SELECT id, project_id, checkpoint_id, item_id, server_id, details, status, \
                 reason, created_at, updated_at FROM restores WHERE id = $1 AND project_id = $2",
            )
            .bind(id.as_str().to_owned())
            .bind(project.as_str().to_owned())
            .fetch_optional(tx.conn())
            .await?;
        row.map(RestoreRow::decode).transpose()
    }

    /// At most `limit` restores of a project after the marker, newest first, and whether
    /// more follow.
    ///
    /// # Errors
    /// [`StoreError::UnknownMarker`] when the marker is no restore of the project.
    pub async fn list_restores(
        &self,
        project: &ProjectId,
        limit: u32,
        marker: Option<&RestoreId>,
    ) -> Result<(Vec<Restore>, bool)> {
        let mut tx = self.read().await?;
        let (before, below) = match marker {
            None => (i64::MAX, String::new()),
            Some(marker) => (tx.created_at(project, marker).await?, marker.to_string()),
        };
        let mut rows: Vec<RestoreRow> = tx
            .query_as(
                "SELECT id, project_id, checkpoint_id, item_id, server_id, details, status, \
                 reason, created_at, updated_at FROM restores WHERE project_id = $1 \
                 AND (created_at < $2 OR (created_at = $2 AND id < $3)) \
                 ORDER BY created_at DESC, id DESC LIMIT $4",
            )
            .bind(project.as_str().to_owned())
            .bind(before)
            .bind(below)
            .bind(i64::from(limit) + 1)
            .fetch_all(tx.conn())
            .await?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let restores = rows.into_iter().map(RestoreRow::decode).collect::<Result<_>>()?;
        Ok((restores, has_more))
    }
}

impl Tx<'_> {
    async fn created_at(&mut self, project: &ProjectId, restore: &RestoreId) -> Result<i64> {
        let row: Option<(i64,)> = self
            .query_as("SELECT created_at FROM restores WHERE id = $1 AND project_id = $2")
            .bind(restore.as_str().to_owned())
            .bind(project.as_str().to_owned())
            .fetch_optional(self.conn())
            .await?;
        row.map(|row| row.0).ok_or(StoreError::UnknownMarker)
    }

    pub(crate) async fn insert_restore(&mut self, restore: &Restore) -> Result<()> {
        let pairs = restore.pairs.iter();
        let details = Details {
            pairs: pairs.map(|pair| (pair.backup.clone(), pair.volume.clone())).collect(),
            power_on: restore.power_on,
            preconditions: restore.preconditions.clone(),
        };
        self.query(
            "INSERT INTO restores (id, project_id, checkpoint_id, item_id, server_id, details, \
             status, reason, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(restore.id.as_str().to_owned())
        .bind(restore.project_id.as_str().to_owned())
        .bind(restore.checkpoint_id.as_str().to_owned())
        .bind(restore.item_id.as_str().to_owned())
        .bind(restore.server_id.as_str().to_owned())
        .bind(to_json(&details)?)
        .bind(restore.status.as_str())
        .bind(without_nul(&restore.reason))
        .bind(restore.created_at.as_micros())
        .bind(restore.updated_at.as_micros())
        .execute(self.conn())
        .await?;
        Ok(())
    }

    pub(crate) async fn end_restore(
        &mut self,
        restore: &RestoreId,
        status: RestoreStatus,
        reason: &str,
        now: Timestamp,
    ) -> Result<()> {
        let done = self
            .query("UPDATE restores SET status = $1, reason = $2, updated_at = $3 WHERE id = $4")
            .bind(status.as_str())
            .bind(without_nul(reason))
            .bind(now.as_micros())
            .bind(restore.as_str().to_owned())
            .execute(self.conn())
            .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!("restore {restore:?}")));
        }
        Ok(())
    }
}
