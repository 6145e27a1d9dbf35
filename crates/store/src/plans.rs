//! Plans that explained answers named, and leases that some of them hold.

use kedge_core::ids::{ItemId, PlanId, ProjectId, ServerId, VolumeBackupId, VolumeId};
use kedge_core::precondition::Precondition;
use kedge_core::restore::{Mapping, Pair, Question};
use kedge_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use crate::codec::{from_json, to_json};
use crate::db::{Store, Tx};
use crate::error::{Result, StoreError};

/// Plans of a project that are kept; older ones without a lease go as new ones come.
const KEPT: i64 = 1000;

/// A plan as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPlan {
    /// Its id.
    pub id: PlanId,
    /// The owner.
    pub project_id: ProjectId,
    /// What was asked.
    pub question: Question,
    /// What it rests on.
    pub preconditions: Vec<Precondition>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it keeps its backup from being deleted.
    pub lease_until: Option<Timestamp>,
}

/// What no query looks into of a plan.
#[derive(Serialize, Deserialize)]
struct Details {
    server: ServerId,
    resource_type: String,
    pairs: Vec<(VolumeBackupId, VolumeId)>,
    preconditions: Vec<Precondition>,
}

#[derive(FromRow)]
struct Row {
    id: String,
    project_id: String,
    item_id: String,
    details: String,
    created_at: i64,
    lease_until: Option<i64>,
}

impl Row {
    fn decode(self) -> Result<KeptPlan> {
        let details: Details = from_json("plan", &self.id, &self.details)?;
        let pairs = details.pairs.into_iter().map(|(backup, volume)| Pair { backup, volume });
        let mapping = Mapping::new(pairs.collect())
            .map_err(|_| StoreError::corrupt("plan", &self.id, "mapping"))?;
        Ok(KeptPlan {
            question: Question {
                item: ItemId::asked(&self.item_id),
                server: details.server,
                resource_type: details.resource_type,
                mapping,
            },
            preconditions: details.preconditions,
            id: PlanId::asked(&self.id),
            project_id: ProjectId::new(self.project_id),
            created_at: Timestamp::from_micros(self.created_at),
            lease_until: self.lease_until.map(Timestamp::from_micros),
        })
    }
}

impl Store {
    /// Keeps plans of one project, and forgets its oldest that hold no lease.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn keep_plans(&self, project: &ProjectId, plans: &[KeptPlan]) -> Result<()> {
        let Some(newest) = plans.first() else { return Ok(()) };
        let now = newest.created_at;
        let mut tx = self.write().await?;
        for plan in plans {
            tx.insert_plan(project, plan).await?;
        }
        tx.query(
            "DELETE FROM plans WHERE project_id = $1 \
             AND (lease_until IS NULL OR lease_until <= $2) AND id NOT IN (\
             SELECT p.id FROM plans p WHERE p.project_id = $1 \
             ORDER BY p.created_at DESC, p.id DESC LIMIT $3)",
        )
        .bind(project.as_str().to_owned())
        .bind(now.as_micros())
        .bind(KEPT)
        .execute(tx.conn())
        .await?;
        tx.commit().await
    }

    /// The plan, unless it is absent, forgotten or another project's.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_plan(&self, project: &ProjectId, id: &PlanId) -> Result<Option<KeptPlan>> {
        let mut tx = self.read_one().await?;
        let row: Option<Row> = tx
            .query_as(
                "SELECT id, project_id, item_id, details, created_at, lease_until FROM plans \
                 WHERE id = $1 AND project_id = $2",
            )
            .bind(id.as_str().to_owned())
            .bind(project.as_str().to_owned())
            .fetch_optional(tx.conn())
            .await?;
        row.map(Row::decode).transpose()
    }

    /// The plans of a project that hold a lease, the one that ends first before others.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_leases(&self, project: &ProjectId, now: Timestamp) -> Result<Vec<KeptPlan>> {
        let mut tx = self.read_one().await?;
        let rows: Vec<Row> = tx
            .query_as(
                "SELECT id, project_id, item_id, details, created_at, lease_until FROM plans \
                 WHERE project_id = $1 AND lease_until > $2 ORDER BY lease_until, id",
            )
            .bind(project.as_str().to_owned())
            .bind(now.as_micros())
            .fetch_all(tx.conn())
            .await?;
        rows.into_iter().map(Row::decode).collect()
    }

    /// Gives a plan a lease until a moment, in place of one it has; of a project's plans no
    /// more than so many hold one.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without the plan, or when its backup is not available;
    /// [`StoreError::TooMany`] when the others hold as many as may be.
    pub async fn take_lease(
        &self,
        project: &ProjectId,
        id: &PlanId,
        until: Timestamp,
        now: Timestamp,
        leases_max: usize,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        let (held,): (i64,) = tx
            .query_as(
                "SELECT COUNT(*) FROM plans WHERE project_id = $1 AND lease_until > $2 \
                 AND id <> $3",
            )
            .bind(project.as_str().to_owned())
            .bind(now.as_micros())
            .bind(id.as_str().to_owned())
            .fetch_one(tx.conn())
            .await?;
        if usize::try_from(held).unwrap_or(usize::MAX) >= leases_max {
            return Err(StoreError::TooMany { asked: leases_max + 1, most: leases_max });
        }
        let taken = tx
            .query(
                "UPDATE plans SET lease_until = $3 WHERE id = $1 AND project_id = $2 AND EXISTS (\
                 SELECT 1 FROM items i WHERE i.id = plans.item_id \
                 AND i.status IN ('available', 'waiting_restore', 'restoring'))",
            )
            .bind(id.as_str().to_owned())
            .bind(project.as_str().to_owned())
            .bind(until.as_micros())
            .execute(tx.conn())
            .await?;
        if taken.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!("plan {id:?}")));
        }
        tx.commit().await
    }

    /// Ends a plan's lease.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without the plan.
    pub async fn end_lease(&self, project: &ProjectId, id: &PlanId) -> Result<()> {
        let mut tx = self.write().await?;
        let ended = tx
            .query("UPDATE plans SET lease_until = NULL WHERE id = $1 AND project_id = $2")
            .bind(id.as_str().to_owned())
            .bind(project.as_str().to_owned())
            .execute(tx.conn())
            .await?;
        if ended.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!("plan {id:?}")));
        }
        tx.commit().await
    }
}

impl Tx<'_> {
    async fn insert_plan(&mut self, project: &ProjectId, plan: &KeptPlan) -> Result<()> {
        let pairs = plan.question.mapping.pairs().iter();
        let details = Details {
            server: plan.question.server.clone(),
            resource_type: plan.question.resource_type.clone(),
            pairs: pairs.map(|pair| (pair.backup.clone(), pair.volume.clone())).collect(),
            preconditions: plan.preconditions.clone(),
        };
        self.query(
            "INSERT INTO plans (id, project_id, item_id, details, created_at) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(plan.id.as_str().to_owned())
        .bind(project.as_str().to_owned())
        .bind(plan.question.item.as_str().to_owned())
        .bind(to_json(&details)?)
        .bind(plan.created_at.as_micros())
        .execute(self.conn())
        .await?;
        Ok(())
    }

    /// Fails while a plan holds a lease on the item.
    pub(crate) async fn nobody_leases(&mut self, item: &ItemId, now: Timestamp) -> Result<()> {
        let row: Option<(String, i64)> = self
            .query_as(
                "SELECT id, lease_until FROM plans WHERE item_id = $1 AND lease_until > $2 \
                 ORDER BY lease_until DESC LIMIT 1",
            )
            .bind(item.as_str().to_owned())
            .bind(now.as_micros())
            .fetch_optional(self.conn())
            .await?;
        match row {
            None => Ok(()),
            Some((plan, until)) => Err(StoreError::Leased {
                item: item.clone(),
                plan: PlanId::asked(&plan),
                until: Timestamp::from_micros(until),
            }),
        }
    }
}
