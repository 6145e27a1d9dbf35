//! Readings back and drills of single backups.

use std::collections::HashMap;

use kedge_core::ids::{ItemId, ProjectId, ProofId};
use kedge_core::proof::ProofVerdict;
use kedge_core::proof::{DrillOutcome, Drilled, Outcome, Proof, ProofKind, ProofStatus, Proven};
use kedge_core::time::Timestamp;
use sqlx::{FromRow, QueryBuilder};

use crate::codec::{from_json, to_json};
use crate::db::{Store, Tx};
use crate::error::{Result, StoreError};
use crate::items::{IDS_MAX, push_ids};

/// Proofs of one project that may wait at once.
const WAITING_MAX: i64 = 1000;
/// Proofs of a backup that are kept; older ones go with the next.
const KEPT: i64 = 20;

#[derive(FromRow)]
struct Row {
    id: String,
    project_id: String,
    item_id: String,
    kind: String,
    status: String,
    outcome: Option<String>,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
}

impl Row {
    fn decode(self) -> Result<Proof> {
        let damaged = |why: &str| StoreError::corrupt("proof", &self.id, why);
        let outcome = self.outcome.as_deref().map(|json| from_json("proof", &self.id, json));
        Ok(Proof {
            kind: ProofKind::from_word(&self.kind).ok_or_else(|| damaged("kind"))?,
            status: ProofStatus::from_word(&self.status).ok_or_else(|| damaged("status"))?,
            outcome: outcome.transpose()?,
            id: ProofId::asked(&self.id),
            project_id: ProjectId::new(self.project_id),
            item_id: ItemId::asked(&self.item_id),
            created_at: Timestamp::from_micros(self.created_at),
            started_at: self.started_at.map(Timestamp::from_micros),
            finished_at: self.finished_at.map(Timestamp::from_micros),
        })
    }
}

impl Store {
    /// Puts a proof into the queue; or gives the one that waits for, or works on, the same
    /// backup and goes as far.
    ///
    /// # Errors
    /// [`StoreError::TooMany`] when too many of the project wait.
    pub async fn enqueue_proof(&self, proof: &Proof) -> Result<Proof> {
        let mut tx = self.write().await?;
        let waiting: Vec<Row> = tx
            .query_as(
                "SELECT id, project_id, item_id, kind, status, outcome, created_at, started_at, \
                 finished_at FROM proofs WHERE status <> 'done' AND item_id = $1 \
                 ORDER BY created_at, id",
            )
            .bind(proof.item_id.as_str().to_owned())
            .fetch_all(tx.conn())
            .await?;
        for row in waiting {
            let known = row.decode()?;
            if known.kind == proof.kind || known.kind == ProofKind::Drill {
                return Ok(known);
            }
        }
        let (count,): (i64,) = tx
            .query_as("SELECT COUNT(*) FROM proofs WHERE status <> 'done' AND project_id = $1")
            .bind(proof.project_id.as_str().to_owned())
            .fetch_one(tx.conn())
            .await?;
        if count >= WAITING_MAX {
            let most = usize::try_from(WAITING_MAX).unwrap_or(0);
            return Err(StoreError::TooMany { asked: most + 1, most });
        }
        tx.insert_proof(proof).await?;
        tx.commit().await?;
        Ok(proof.clone())
    }

    /// Takes the proof that has waited longest, of the items that are still there.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn begin_proof(&self, now: Timestamp) -> Result<Option<Proof>> {
        let mut tx = self.write().await?;
        let row: Option<Row> = tx
            .query_as(
                "SELECT id, project_id, item_id, kind, status, outcome, created_at, started_at, \
                 finished_at FROM proofs WHERE status = 'queued' ORDER BY created_at, id LIMIT 1",
            )
            .fetch_optional(tx.conn())
            .await?;
        let Some(row) = row else { return Ok(None) };
        let proof = Proof { started_at: Some(now), status: ProofStatus::Running, ..row.decode()? };
        tx.query("UPDATE proofs SET status = 'running', started_at = $2 WHERE id = $1")
            .bind(proof.id.as_str().to_owned())
            .bind(now.as_micros())
            .execute(tx.conn())
            .await?;
        tx.commit().await?;
        Ok(Some(proof))
    }

    /// What a process that died was working on waits again.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn requeue_proofs(&self) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = tx
            .query("UPDATE proofs SET status = 'queued' WHERE status = 'running'")
            .execute(tx.conn())
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    /// Records what came of a proof, and forgets the oldest of the same backup.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn finish_proof(&self, proof: &Proof) -> Result<()> {
        let outcome = proof.outcome.as_ref();
        let mut tx = self.write().await?;
        tx.query(
            "UPDATE proofs SET status = 'done', outcome = $2, read_ok = $3, drill = $4, \
             finished_at = $5 WHERE id = $1",
        )
        .bind(proof.id.as_str().to_owned())
        .bind(outcome.map(to_json).transpose()?)
        .bind(i64::from(outcome.is_some_and(was_read)))
        .bind(proof.drill_outcome().map(DrillOutcome::as_str))
        .bind(proof.finished_at.map(Timestamp::as_micros))
        .execute(tx.conn())
        .await?;
        tx.query(
            "DELETE FROM proofs WHERE item_id = $1 AND status = 'done' AND id NOT IN (\
             SELECT p.id FROM proofs p WHERE p.item_id = $1 AND p.status = 'done' \
             ORDER BY p.created_at DESC, p.id DESC LIMIT $2)",
        )
        .bind(proof.item_id.as_str().to_owned())
        .bind(KEPT)
        .execute(tx.conn())
        .await?;
        tx.commit().await
    }

    /// Proofs of a backup of the project, the latest first.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_proofs(&self, project: &ProjectId, item: &ItemId) -> Result<Vec<Proof>> {
        let mut tx = self.read_one().await?;
        let rows: Vec<Row> = tx
            .query_as(
                "SELECT id, project_id, item_id, kind, status, outcome, created_at, started_at, \
                 finished_at FROM proofs WHERE item_id = $1 AND project_id = $2 \
                 ORDER BY created_at DESC, id DESC",
            )
            .bind(item.as_str().to_owned())
            .bind(project.as_str().to_owned())
            .fetch_all(tx.conn())
            .await?;
        rows.into_iter().map(Row::decode).collect()
    }

    /// What proofs say of these items of the project; nothing of those without any.
    ///
    /// # Errors
    /// The catalogue does not answer, or too many ids are asked for.
    pub async fn find_proven(
        &self,
        project: &ProjectId,
        ids: &[ItemId],
    ) -> Result<HashMap<ItemId, Proven>> {
        if ids.len() > IDS_MAX {
            return Err(StoreError::TooMany { asked: ids.len(), most: IDS_MAX });
        }
        let mut select = QueryBuilder::new(
            "SELECT i.item_id, i.read_ok, i.drill, i.started_at \
             FROM proofs i WHERE i.status = 'done' AND i.project_id || '' = ",
        );
        select.push_bind(project.as_str().to_owned());
        push_ids(&mut select, "i.item_id", ids.iter().map(ItemId::as_str));
        select.push(" ORDER BY i.started_at, i.id");
        let mut tx = self.read_one().await?;
        let rows: Vec<(String, i64, Option<String>, Option<i64>)> =
            tx.built_as(&mut select).fetch_all(tx.conn()).await?;
        let mut proven: HashMap<ItemId, Proven> = HashMap::new();
        for (item, read_ok, drill, started_at) in rows {
            let Some(at) = started_at.map(Timestamp::from_micros) else { continue };
            let known = proven.entry(ItemId::asked(&item)).or_default();
            if read_ok != 0 {
                known.read_at = Some(at);
            }
            if let Some(outcome) = drill.as_deref().and_then(DrillOutcome::from_word) {
                known.drilled = Some(Drilled { at, outcome });
            }
        }
        Ok(proven)
    }

    /// The backup whose drill is the most wanted: the latest of a server of which no backup
    /// was drilled since a moment, servers that never were before others.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_undrilled(&self, since: Timestamp) -> Result<Option<(ProjectId, ItemId)>> {
        let mut tx = self.read_one().await?;
        let row: Option<(String, String)> = tx
            .query_as(
                "SELECT s.project_id, s.id FROM (SELECT i.project_id, i.id, i.protected_at, (\
                 SELECT MAX(p.created_at) FROM proofs p JOIN items d ON d.id = p.item_id \
                 WHERE d.server_id = i.server_id AND d.project_id = i.project_id \
                 AND p.kind = 'drill') AS drilled_at \
                 FROM items i WHERE i.status = 'available' AND NOT EXISTS (\
                 SELECT 1 FROM items n WHERE n.server_id = i.server_id \
                 AND n.project_id = i.project_id AND n.status = 'available' \
                 AND n.protected_at > i.protected_at)) s \
                 WHERE COALESCE(s.drilled_at, -9223372036854775807) < $1 \
                 ORDER BY COALESCE(s.drilled_at, -9223372036854775807), s.protected_at, s.id \
                 LIMIT 1",
            )
            .bind(since.as_micros())
            .fetch_optional(tx.conn())
            .await?;
        Ok(row.map(|(project, item)| (ProjectId::new(project), ItemId::asked(&item))))
    }
}

fn was_read(outcome: &Outcome) -> bool {
    match outcome.verdict {
        ProofVerdict::Passed => true,
        // A drill reads everything before it does anything else.
        ProofVerdict::Failed | ProofVerdict::Undecided => {
            !outcome.disks.is_empty() && outcome.disks.iter().all(|disk| disk.report.is_some())
        }
    }
}

impl Tx<'_> {
    async fn insert_proof(&mut self, proof: &Proof) -> Result<()> {
        self.query(
            "INSERT INTO proofs (id, project_id, item_id, kind, status, read_ok, created_at) \
             VALUES ($1, $2, $3, $4, $5, 0, $6)",
        )
        .bind(proof.id.as_str().to_owned())
        .bind(proof.project_id.as_str().to_owned())
        .bind(proof.item_id.as_str().to_owned())
        .bind(proof.kind.as_str())
        .bind(proof.status.as_str())
        .bind(proof.created_at.as_micros())
        .execute(self.conn())
        .await?;
        Ok(())
    }
}
