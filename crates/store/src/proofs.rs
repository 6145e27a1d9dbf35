//! Readings back and drills of single backups.

use std::collections::{HashMap, HashSet};

use kedge_core::ids::{ItemId, ProjectId, ProofId};
use kedge_core::proof::{
    DrillOutcome, Drilled, Haste, Outcome, Proof, ProofKind, ProofStatus, ProofVerdict, Proven,
};
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
    paced: i64,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
}

/// What evidence is made of.
#[derive(FromRow)]
struct ProvenRow {
    item_id: String,
    kind: String,
    read_ok: i64,
    drill: Option<String>,
    started_at: Option<i64>,
}

impl Row {
    fn decode(self) -> Result<Proof> {
        let damaged = |why: &str| StoreError::corrupt("proof", &self.id, why);
        let outcome = self.outcome.as_deref().map(|json| from_json("proof", &self.id, json));
        Ok(Proof {
            kind: ProofKind::from_word(&self.kind).ok_or_else(|| damaged("kind"))?,
            status: ProofStatus::from_word(&self.status).ok_or_else(|| damaged("status"))?,
            outcome: outcome.transpose()?,
            haste: if self.paced == 0 { Haste::Asked } else { Haste::Due },
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
    /// Puts proofs into the queue, of each backup one; or gives the one that waits for, or
    /// works on, the same backup and goes as far.
    ///
    /// # Errors
    /// [`StoreError::TooMany`] when too many of a project wait; none is added then.
    pub async fn enqueue_proofs(&self, proofs: &[Proof]) -> Result<Vec<Proof>> {
        let mut tx = self.write().await?;
        let mut waiting = Vec::with_capacity(proofs.len());
        for proof in proofs {
            waiting.push(tx.enqueue_proof(proof).await?);
        }
        tx.commit().await?;
        Ok(waiting)
    }

    /// Takes a proof that waits, or that was begun and never ended: whoever asks is the only
    /// one who proves. Readings come before drills, other projects before the one that had
    /// its turn last, and else what has waited longest.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn begin_proof(
        &self,
        last: Option<&ProjectId>,
        now: Timestamp,
    ) -> Result<Option<Proof>> {
        let mut tx = self.write().await?;
        let row: Option<Row> = tx
            .query_as(
                "SELECT id, project_id, item_id, kind, status, outcome, paced, created_at, started_at, \
                 finished_at FROM proofs WHERE status <> 'done' ORDER BY \
                 CASE WHEN kind = 'read' THEN 0 ELSE 1 END, \
                 CASE WHEN project_id = $1 THEN 1 ELSE 0 END, created_at, id LIMIT 1",
            )
            .bind(last.map_or("", ProjectId::as_str).to_owned())
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

    /// Records what came of a proof, and forgets the oldest of the same backup.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn finish_proof(&self, proof: &Proof) -> Result<()> {
        let mut tx = self.write().await?;
        tx.end_proof(proof).await?;
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
                "SELECT id, project_id, item_id, kind, status, outcome, paced, created_at, started_at, \
                 finished_at FROM proofs WHERE item_id = $1 AND project_id = $2 \
                 ORDER BY created_at DESC, id DESC",
            )
            .bind(item.as_str().to_owned())
            .bind(project.as_str().to_owned())
            .fetch_all(tx.conn())
            .await?;
        rows.into_iter().map(Row::decode).collect()
    }

    /// Those of the items that a proof of at least this kind was tried on between a moment and
    /// now.
    ///
    /// # Errors
    /// The catalogue does not answer, or too many ids are asked for.
    pub async fn proved_since(
        &self,
        ids: &[ItemId],
        kind: ProofKind,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<HashSet<ItemId>> {
        if ids.len() > IDS_MAX {
            return Err(StoreError::TooMany { asked: ids.len(), most: IDS_MAX });
        }
        let mut select = QueryBuilder::new("SELECT p.item_id FROM proofs p WHERE p.started_at > ");
        select.push_bind(since.as_micros());
        select.push(" AND p.started_at <= ").push_bind(now.as_micros());
        if kind == ProofKind::Drill {
            select.push(" AND p.kind = 'drill'");
        }
        push_ids(&mut select, "p.item_id", ids.iter().map(ItemId::as_str));
        let mut tx = self.read_one().await?;
        let rows: Vec<(String,)> = tx.built_as(&mut select).fetch_all(tx.conn()).await?;
        Ok(rows.into_iter().map(|(item,)| ItemId::asked(&item)).collect())
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
            "SELECT i.item_id, i.kind, i.read_ok, i.drill, i.started_at \
             FROM proofs i WHERE i.status = 'done' AND i.project_id || '' = ",
        );
        select.push_bind(project.as_str().to_owned());
        push_ids(&mut select, "i.item_id", ids.iter().map(ItemId::as_str));
        select.push(" ORDER BY i.sequence, i.started_at, i.id");
        let mut tx = self.read_one().await?;
        let rows: Vec<ProvenRow> = tx.built_as(&mut select).fetch_all(tx.conn()).await?;
        let mut proven: HashMap<ItemId, Proven> = HashMap::new();
        for ProvenRow { item_id, kind, read_ok, drill, started_at } in rows {
            let Some(at) = started_at.map(Timestamp::from_micros) else { continue };
            let known = proven.entry(ItemId::asked(&item_id)).or_default();
            match read_ok {
                // A restore may have begun long before a reading that has ended since.
                1 if kind == ProofKind::Restore.as_str() => {
                    known.read_at = known.read_at.max(Some(at));
                }
                1 => known.read_at = Some(at),
                // What was read once cannot be read any more.
                -1 => known.read_at = None,
                _ => {}
            }
            if let Some(outcome) = drill.as_deref().and_then(DrillOutcome::from_word) {
                known.drilled = Some(Drilled { at, outcome });
            }
        }
        Ok(proven)
    }

    /// The backup whose drill is the most wanted: the latest of a server of which no backup
    /// was drilled since a moment, servers that never were before others. A drill that came to
    /// no end of its own counts for less long.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_undrilled(
        &self,
        since: Timestamp,
        tried_since: Timestamp,
        now: Timestamp,
    ) -> Result<Option<(ProjectId, ItemId)>> {
        let mut tx = self.read_one().await?;
        let row: Option<(String, String)> = tx
            .query_as(
                "SELECT s.project_id, s.id FROM (SELECT i.project_id, i.id, i.protected_at, (\
                 SELECT MAX(p.created_at) FROM proofs p JOIN items d ON d.id = p.item_id \
                 WHERE d.server_id = i.server_id AND d.project_id = i.project_id \
                 AND p.kind = 'drill' AND p.created_at <= $3 AND (p.drill IS NOT NULL OR p.created_at > $2)) \
                 AS drilled_at \
                 FROM items i WHERE i.status = 'available' AND NOT EXISTS (\
                 SELECT 1 FROM items n WHERE n.server_id = i.server_id \
                 AND n.project_id = i.project_id AND n.status = 'available' \
                 AND n.protected_at > i.protected_at)) s \
                 WHERE COALESCE(s.drilled_at, -9223372036854775807) < $1 \
                 ORDER BY COALESCE(s.drilled_at, -9223372036854775807), s.protected_at, s.id \
                 LIMIT 1",
            )
            .bind(since.as_micros())
            .bind(tried_since.as_micros())
            .bind(now.as_micros())
            .fetch_optional(tx.conn())
            .await?;
        Ok(row.map(|(project, item)| (ProjectId::new(project), ItemId::asked(&item))))
    }
}

/// What a proof says of the bytes: 1 that all were read, -1 that they cannot be, 0 nothing.
fn read_word(outcome: &Outcome) -> i64 {
    // A drill reads everything before it does anything else.
    let is_read = !outcome.disks.is_empty() && outcome.disks.iter().all(|d| d.report.is_some());
    match outcome.verdict {
        ProofVerdict::Passed => 1,
        ProofVerdict::Failed | ProofVerdict::Undecided if is_read => 1,
        ProofVerdict::Failed => -1,
        ProofVerdict::Undecided => 0,
    }
}

impl Tx<'_> {
    async fn enqueue_proof(&mut self, proof: &Proof) -> Result<Proof> {
        let rows: Vec<Row> = self
            .query_as(
                "SELECT id, project_id, item_id, kind, status, outcome, paced, created_at, started_at, \
                 finished_at FROM proofs WHERE status <> 'done' AND item_id = $1 \
                 ORDER BY created_at, id",
            )
            .bind(proof.item_id.as_str().to_owned())
            .fetch_all(self.conn())
            .await?;
        for row in rows {
            let known = row.decode()?;
            if known.kind == proof.kind || known.kind == ProofKind::Drill {
                return Ok(known);
            }
        }
        let (count,): (i64,) = self
            .query_as("SELECT COUNT(*) FROM proofs WHERE status <> 'done' AND project_id = $1")
            .bind(proof.project_id.as_str().to_owned())
            .fetch_one(self.conn())
            .await?;
        if count >= WAITING_MAX {
            let most = usize::try_from(WAITING_MAX).unwrap_or(0);
            return Err(StoreError::TooMany { asked: most + 1, most });
        }
        self.insert_proof(proof).await?;
        Ok(proof.clone())
    }

    /// Records one that nobody asked for.
    pub(crate) async fn add_proof(&mut self, proof: &Proof) -> Result<()> {
        self.insert_proof(proof).await?;
        self.end_proof(proof).await
    }

    async fn end_proof(&mut self, proof: &Proof) -> Result<()> {
        let outcome = proof.outcome.as_ref();
        self.query(
            "UPDATE proofs SET status = 'done', outcome = $2, read_ok = $3, drill = $4, \
             finished_at = $5, sequence = (SELECT COALESCE(MAX(s.sequence), 0) + 1 FROM proofs s) \
             WHERE id = $1",
        )
        .bind(proof.id.as_str().to_owned())
        .bind(outcome.map(to_json).transpose()?)
        .bind(outcome.map_or(0, read_word))
        .bind(proof.drill_outcome().map(DrillOutcome::as_str))
        .bind(proof.finished_at.map(Timestamp::as_micros))
        .execute(self.conn())
        .await?;
        self.query(
            "DELETE FROM proofs WHERE item_id = $1 AND status = 'done' AND id NOT IN (\
             SELECT p.id FROM proofs p WHERE p.item_id = $1 AND p.status = 'done' \
             ORDER BY p.sequence DESC, p.id DESC LIMIT $2) AND id NOT IN (\
             SELECT p.id FROM proofs p WHERE p.item_id = $1 AND p.drill IS NOT NULL \
             ORDER BY p.sequence DESC, p.id DESC LIMIT 1) AND id NOT IN (\
             SELECT p.id FROM proofs p WHERE p.item_id = $1 AND p.read_ok <> 0 \
             ORDER BY p.sequence DESC, p.id DESC LIMIT 1)",
        )
        .bind(proof.item_id.as_str().to_owned())
        .bind(KEPT)
        .execute(self.conn())
        .await?;
        Ok(())
    }

    async fn insert_proof(&mut self, proof: &Proof) -> Result<()> {
        self.query(
            "INSERT INTO proofs (id, project_id, item_id, kind, status, paced, read_ok, \
             created_at, started_at) VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8)",
        )
        .bind(proof.id.as_str().to_owned())
        .bind(proof.project_id.as_str().to_owned())
        .bind(proof.item_id.as_str().to_owned())
        .bind(proof.kind.as_str())
        .bind(proof.status.as_str())
        .bind(i64::from(proof.haste == Haste::Due))
        .bind(proof.created_at.as_micros())
        .bind(proof.started_at.map(Timestamp::as_micros))
        .execute(self.conn())
        .await?;
        Ok(())
    }
}
