//! The moves of items: each is one transaction with the job that makes it.
//!
//! Invariant: a status is written only with what `ItemStatus::next` returned for the
//! status that the same transaction read under the write lock.

use kedge_core::checkpoint::{Fault, StoredVolume};
use kedge_core::ids::{CheckpointId, ItemId, ProjectId, RestoreId};
use kedge_core::job::{Job, ProtectResult, Work};
use kedge_core::proof::Proof;
use kedge_core::status::{ItemEvent, ItemStatus};
use kedge_core::time::Timestamp;

use crate::codec::{method_word, status_of, to_json};
use crate::db::{Store, Tx};
use crate::error::{Result, StoreError};
use crate::jobs::NewJob;
use crate::restores::{Restore, RestoreStatus};

impl Store {
    /// The backup is complete: the item becomes available, with where its data lies and
    /// what was stored of each volume.
    ///
    /// # Errors
    /// [`StoreError::FenceLost`]; [`StoreError::Misuse`] when the result does not have one
    /// entry per volume.
    pub async fn finish_protect(
        &self,
        job: &Job,
        result: &ProtectResult,
        next: &Work,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        tx.step(job, next, now).await?;
        let item = job.work.item();
        tx.move_item(&job.project_id, item, ItemEvent::ProtectFinished, now).await?;
        tx.query(
            "UPDATE items SET protected_at = $1, finished_at = $2, method = $3, \
             snapshot_id = $4, tree_id = $5, fault = NULL, progress = 100, \
             sequence = (SELECT COALESCE(MAX(s.sequence), 0) + 1 FROM items s \
             WHERE s.project_id = $7) WHERE id = $6",
        )
        .bind(result.protected_at.as_micros())
        .bind(now.as_micros())
        .bind(method_word(result.method))
        .bind(result.snapshot.snapshot.clone())
        .bind(result.snapshot.tree.clone())
        .bind(item.as_str().to_owned())
        .bind(job.project_id.as_str().to_owned())
        .execute(tx.conn())
        .await?;
        tx.store_volumes(item, &result.volumes).await?;
        tx.commit().await
    }

    /// The backup failed for good: the item ends in error.
    ///
    /// # Errors
    /// [`StoreError::FenceLost`].
    pub async fn fail_protect(
        &self,
        job: &Job,
        fault: &Fault,
        next: &Work,
        now: Timestamp,
    ) -> Result<()> {
        self.fail(job, ItemEvent::ProtectFailed, fault, next, now).await
    }

    /// Admits a restore: its record, the item's move, the job and its claims. What the
    /// item told of an earlier failure goes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without the item, [`StoreError::Illegal`] when it is not
    /// available any more, [`StoreError::Claimed`] when another job holds the item or the
    /// target.
    pub async fn create_restore(&self, restore: &Restore, job: &NewJob) -> Result<()> {
        let mut tx = self.write().await?;
        let (item, now) = (&restore.item_id, restore.created_at);
        tx.item_of(&restore.project_id, &restore.checkpoint_id, item).await?;
        tx.move_item(&restore.project_id, item, ItemEvent::RestoreAccepted, now).await?;
        tx.query("UPDATE items SET fault = NULL, progress = 0 WHERE id = $1")
            .bind(item.as_str().to_owned())
            .execute(tx.conn())
            .await?;
        tx.insert_restore(restore).await?;
        tx.insert_job(job).await?;
        tx.commit().await
    }

    /// Every byte was restored and read back; what that proves of the backup.
    ///
    /// # Errors
    /// [`StoreError::FenceLost`].
    pub async fn finish_restore(
        &self,
        job: &Job,
        next: &Work,
        proof: Option<&Proof>,
        now: Timestamp,
    ) -> Result<()> {
        let restore = restore_of(job)?;
        let mut tx = self.write().await?;
        tx.step(job, next, now).await?;
        tx.move_item(&job.project_id, job.work.item(), ItemEvent::RestoreFinished, now).await?;
        tx.show_ended(job.work.item(), None).await?;
        tx.end_restore(restore, RestoreStatus::Success, "", now).await?;
        if let Some(proof) = proof {
            tx.add_proof(proof).await?;
        }
        tx.commit().await
    }

    /// The restore failed: the item is available again and tells why, the restore's record
    /// too.
    ///
    /// # Errors
    /// [`StoreError::FenceLost`].
    pub async fn fail_restore(
        &self,
        job: &Job,
        fault: &Fault,
        next: &Work,
        now: Timestamp,
    ) -> Result<()> {
        let restore = restore_of(job)?;
        let mut tx = self.write().await?;
        tx.step(job, next, now).await?;
        tx.move_item(&job.project_id, job.work.item(), ItemEvent::RestoreFailed, now).await?;
        tx.show_ended(job.work.item(), Some(fault)).await?;
        tx.end_restore(restore, RestoreStatus::Fail, &fault.reason, now).await?;
        tx.commit().await
    }

    /// Admits the deletion of items of one checkpoint, all or none, with a job for each.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when one is not an item of that checkpoint,
    /// [`StoreError::Illegal`] when its status forbids it, [`StoreError::Claimed`] when
    /// another job holds it.
    pub async fn create_deletes(
        &self,
        project: &ProjectId,
        checkpoint: &CheckpointId,
        jobs: &[(ItemId, NewJob)],
    ) -> Result<()> {
        let mut tx = self.write().await?;
        for (item, job) in jobs {
            tx.item_of(project, checkpoint, item).await?;
            tx.nobody_leases(item, job.run_at).await?;
            tx.move_item(project, item, ItemEvent::DeleteAccepted, job.run_at).await?;
            tx.query("UPDATE items SET progress = 0 WHERE id = $1")
                .bind(item.as_str().to_owned())
                .execute(tx.conn())
                .await?;
            tx.insert_job(job).await?;
        }
        tx.commit().await
    }

    /// The data is gone: the item becomes a tombstone, hidden from callers.
    ///
    /// # Errors
    /// [`StoreError::FenceLost`].
    pub async fn finish_delete(&self, job: &Job, next: &Work, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        tx.step(job, next, now).await?;
        let item = job.work.item();
        tx.move_item(&job.project_id, item, ItemEvent::DeleteFinished, now).await?;
        tx.query("UPDATE items SET deleted_at = $1, progress = 100 WHERE id = $2")
            .bind(now.as_micros())
            .bind(item.as_str().to_owned())
            .execute(tx.conn())
            .await?;
        tx.commit().await
    }

    /// The deletion failed for good: the item ends in error.
    ///
    /// # Errors
    /// [`StoreError::FenceLost`].
    pub async fn fail_delete(
        &self,
        job: &Job,
        fault: &Fault,
        next: &Work,
        now: Timestamp,
    ) -> Result<()> {
        self.fail(job, ItemEvent::DeleteFailed, fault, next, now).await
    }

    async fn fail(
        &self,
        job: &Job,
        event: ItemEvent,
        fault: &Fault,
        next: &Work,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        tx.step(job, next, now).await?;
        tx.move_item(&job.project_id, job.work.item(), event, now).await?;
        tx.show_ended(job.work.item(), Some(fault)).await?;
        tx.commit().await
    }
}

impl Tx<'_> {
    /// The only writer of an item's status.
    async fn move_item(
        &mut self,
        project: &ProjectId,
        item: &ItemId,
        event: ItemEvent,
        now: Timestamp,
    ) -> Result<()> {
        let status = self.status_of_item(project, item).await?.next(event)?;
        self.query("UPDATE items SET status = $1, updated_at = $2 WHERE id = $3")
            .bind(status.as_str())
            .bind(now.as_micros())
            .bind(item.as_str().to_owned())
            .execute(self.conn())
            .await?;
        Ok(())
    }

    async fn status_of_item(&mut self, project: &ProjectId, item: &ItemId) -> Result<ItemStatus> {
        let row: Option<(String,)> = self
            .query_as("SELECT status FROM items WHERE id = $1 AND project_id = $2")
            .bind(item.as_str().to_owned())
            .bind(project.as_str().to_owned())
            .fetch_optional(self.conn())
            .await?;
        let (word,) = row.ok_or_else(|| StoreError::NotFound(format!("item {item:?}")))?;
        status_of("item", item.as_str(), &word)
    }

    /// Makes sure that a visible item belongs to the checkpoint and the project.
    async fn item_of(
        &mut self,
        project: &ProjectId,
        checkpoint: &CheckpointId,
        item: &ItemId,
    ) -> Result<()> {
        let row: Option<(i64,)> = self
            .query_as(
                "SELECT 1 FROM items WHERE id = $1 AND checkpoint_id = $2 AND project_id = $3 \
                 AND status <> 'deleted'",
            )
            .bind(item.as_str().to_owned())
            .bind(checkpoint.as_str().to_owned())
            .bind(project.as_str().to_owned())
            .fetch_optional(self.conn())
            .await?;
        match row {
            Some(_) => Ok(()),
            None => Err(StoreError::NotFound(format!("item {item:?} of {checkpoint:?}"))),
        }
    }

    /// No work is in progress any more; `fault` is how it failed, if it did.
    async fn show_ended(&mut self, item: &ItemId, fault: Option<&Fault>) -> Result<()> {
        self.query("UPDATE items SET fault = $1, progress = 100 WHERE id = $2")
            .bind(fault.map(to_json).transpose()?)
            .bind(item.as_str().to_owned())
            .execute(self.conn())
            .await?;
        Ok(())
    }

    async fn store_volumes(&mut self, item: &ItemId, volumes: &[StoredVolume]) -> Result<()> {
        let (count,): (i64,) = self
            .query_as("SELECT COUNT(*) FROM volume_backups WHERE item_id = $1")
            .bind(item.as_str().to_owned())
            .fetch_one(self.conn())
            .await?;
        if usize::try_from(count) != Ok(volumes.len()) {
            let stored = volumes.len();
            let text = format!("item {item:?} has {count} volumes, {stored} were stored");
            return Err(StoreError::Misuse(text));
        }
        for (position, stored) in (0_i64..).zip(volumes) {
            self.query(
                "UPDATE volume_backups SET stored = $1 WHERE item_id = $2 AND position = $3",
            )
            .bind(to_json(stored)?)
            .bind(item.as_str().to_owned())
            .bind(position)
            .execute(self.conn())
            .await?;
        }
        Ok(())
    }
}

fn restore_of(job: &Job) -> Result<&RestoreId> {
    match &job.work {
        Work::Restore { restore, .. } => Ok(restore),
        Work::Protect { .. } | Work::Delete { .. } => {
            Err(StoreError::Misuse(format!("job {:?} is no restore", job.id)))
        }
    }
}
