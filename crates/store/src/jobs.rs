//! The job table: enqueue, claim with a lease, keep alive, give back.
//!
//! A holder's writes name the fence it claimed with. A job that was given away, given back
//! or ended has another fence or is not running, so such a write changes nothing and the
//! holder learns [`StoreError::FenceLost`].

use std::time::Duration;

use kedge_core::ids::{JobId, ProjectId};
use kedge_core::job::{Cancel, Claim, Job, Work};
use kedge_core::time::Timestamp;
use sqlx::FromRow;

use crate::codec::{from_json, to_json, to_row};
use crate::db::{Store, Tx};
use crate::error::{Result, StoreError};

/// A job to be enqueued in the transaction that records what it works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// The owner of what it works on.
    pub project_id: ProjectId,
    /// What is to be done.
    pub work: Work,
    /// What it keeps others from using until it is done.
    pub claims: Vec<Claim>,
    /// When it may start; it counts as created then.
    pub run_at: Timestamp,
}

/// A holder's sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The job.
    pub job: JobId,
    /// The fence it was claimed with.
    pub fence: u64,
    /// When the lease ends without another sign of life.
    pub lease_until: Timestamp,
    /// Per cent done, shown on the item; nothing changes when not given.
    pub progress: Option<u8>,
    /// When it was sent.
    pub now: Timestamp,
}

impl Heartbeat {
    /// A sign of life of this job's holder.
    pub fn of(job: &Job, lease_until: Timestamp, progress: Option<u8>, now: Timestamp) -> Self {
        Self { job: job.id.clone(), fence: job.fence, lease_until, progress, now }
    }
}

/// How many jobs there are to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// Waiting for a worker or for their time.
    pub queued: u64,
    /// Held by a worker.
    pub running: u64,
}

#[derive(FromRow)]
struct JobRow {
    id: String,
    project_id: String,
    work: String,
    fence: i64,
    restarts: i64,
    failures: i64,
    cancel_requested: i64,
    created_at: i64,
}

impl JobRow {
    fn decode(self) -> Result<Job> {
        let damaged = |why: &str| StoreError::corrupt("job", &self.id, why);
        let work = from_json("job", &self.id, &self.work)?;
        let fence = u64::try_from(self.fence).map_err(|_| damaged("fence"))?;
        let restarts = u32::try_from(self.restarts).map_err(|_| damaged("restarts"))?;
        let failures = u32::try_from(self.failures).map_err(|_| damaged("failures"))?;
        let cancel = if self.cancel_requested == 0 { Cancel::No } else { Cancel::Requested };
        Ok(Job {
            id: JobId::asked(&self.id),
            project_id: ProjectId::new(self.project_id),
            work,
            fence,
            restarts,
            failures,
            cancel,
            created_at: Timestamp::from_micros(self.created_at),
        })
    }
}

/// No job waits longer: what says so was written while the clock was wrong.
const WAIT_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// How long a job whose row cannot be read stays out of the way.
const UNREADABLE_AGAIN: Duration = Duration::from_secs(60 * 60);

impl Store {
    /// Takes the job that has been ready for longest: one that waits and whose time has
    /// come, or one whose holder's lease is over, which counts as a restart. Each claim
    /// raises the fence.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn claim_job(
        &self,
        owner: &str,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> Result<Option<Job>> {
        let mut tx = self.write().await?;
        let row: Option<JobRow> = tx
            .query_as(
                "UPDATE jobs SET status = 'running', lease_owner = $1, lease_until = $2, \
                 fence = fence + 1, updated_at = $3, \
                 restarts = restarts + CASE WHEN status = 'running' THEN 1 ELSE 0 END \
                 WHERE id = (SELECT id FROM jobs WHERE status <> 'done' \
                 AND ((status = 'queued' AND (run_at <= $3 OR run_at > $4)) \
                 OR (status = 'running' AND lease_until <= $3)) \
                 ORDER BY run_at, created_at, id LIMIT 1) \
                 RETURNING id, project_id, work, fence, restarts, failures, cancel_requested, \
                 created_at",
            )
            .bind(owner.to_owned())
            .bind(lease_until.as_micros())
            .bind(now.as_micros())
            .bind(now.plus(WAIT_MAX).as_micros())
            .fetch_optional(tx.conn())
            .await?;
        let Some(row) = row else { return Ok(None) };
        let id = row.id.clone();
        let job = row.decode();
        if job.is_err() {
            // A row nobody can read must not stand before all others.
            tx.query(
                "UPDATE jobs SET status = 'queued', lease_owner = NULL, lease_until = NULL, \
                 run_at = $1 WHERE id = $2",
            )
            .bind(now.plus(UNREADABLE_AGAIN).as_micros())
            .bind(id)
            .execute(tx.conn())
            .await?;
        }
        tx.commit().await?;
        job.map(Some)
    }

    /// Prolongs a lease, shows the progress, and says whether somebody asked the job to
    /// stop. The item's `updated_at` stays, so that lists do not move under a reader.
    ///
    /// # Errors
    /// [`StoreError::FenceLost`] when the job is no longer this holder's.
    pub async fn heartbeat(&self, beat: &Heartbeat) -> Result<Cancel> {
        let mut tx = self.write().await?;
        let row: Option<(i64, String)> = tx
            .query_as(
                "UPDATE jobs SET lease_until = $1, updated_at = $2 \
                 WHERE id = $3 AND fence = $4 AND status = 'running' \
                 RETURNING cancel_requested, item_id",
            )
            .bind(beat.lease_until.as_micros())
            .bind(beat.now.as_micros())
            .bind(beat.job.as_str().to_owned())
            .bind(to_row(beat.fence))
            .fetch_optional(tx.conn())
            .await?;
        let (cancel_requested, item) = row.ok_or(StoreError::FenceLost)?;
        if let Some(progress) = beat.progress {
            tx.query(
                "UPDATE items SET progress = $1 WHERE id = $2 \
                 AND status IN ('protecting', 'restoring', 'deleting')",
            )
            .bind(i64::from(progress.min(100)))
            .bind(item)
            .execute(tx.conn())
            .await?;
        }
        tx.commit().await?;
        Ok(if cancel_requested == 0 { Cancel::No } else { Cancel::Requested })
    }

    /// Takes every running job from its holder, for the start of the one process that
    /// owns the state: whoever held them is dead. Counts as a restart of each; says how
    /// many.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn take_over_all(&self, now: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = tx
            .query(
                "UPDATE jobs SET status = 'queued', lease_owner = NULL, lease_until = NULL, \
                 fence = fence + 1, restarts = restarts + 1, run_at = $1, updated_at = $1 \
                 WHERE status = 'running'",
            )
            .bind(now.as_micros())
            .execute(tx.conn())
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    /// Asks a job to stop at its next safe point.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such job, or it is done.
    pub async fn request_cancel(&self, id: &JobId) -> Result<()> {
        let mut tx = self.write().await?;
        let done = tx
            .query("UPDATE jobs SET cancel_requested = 1 WHERE id = $1 AND status <> 'done'")
            .bind(id.as_str().to_owned())
            .execute(tx.conn())
            .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!("live job {id:?}")));
        }
        tx.commit().await
    }

    /// The next moment at which a job may be there to claim.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn next_run_at(&self) -> Result<Option<Timestamp>> {
        let mut tx = self.read().await?;
        let (next,): (Option<i64>,) = tx
            .query_as(
                "SELECT MIN(CASE WHEN status = 'queued' THEN run_at ELSE lease_until END) \
                 FROM jobs WHERE status <> 'done'",
            )
            .fetch_one(tx.conn())
            .await?;
        Ok(next.map(Timestamp::from_micros))
    }

    /// The job, live or done.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_job(&self, id: &JobId) -> Result<Option<Job>> {
        let mut tx = self.read().await?;
        let row: Option<JobRow> = tx
            .query_as(
                "SELECT id, project_id, work, fence, restarts, failures, cancel_requested, \
                 created_at FROM jobs WHERE id = $1",
            )
            .bind(id.as_str().to_owned())
            .fetch_optional(tx.conn())
            .await?;
        row.map(JobRow::decode).transpose()
    }

    /// Every job that is not done, oldest first.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_live_jobs(&self) -> Result<Vec<Job>> {
        let mut tx = self.read().await?;
        let rows: Vec<JobRow> = tx
            .query_as(
                "SELECT id, project_id, work, fence, restarts, failures, cancel_requested, \
                 created_at FROM jobs WHERE status <> 'done' ORDER BY created_at, id",
            )
            .fetch_all(tx.conn())
            .await?;
        rows.into_iter().map(JobRow::decode).collect()
    }

    /// How many jobs wait and run.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn job_counts(&self) -> Result<JobCounts> {
        let mut tx = self.read().await?;
        let rows: Vec<(String, i64)> = tx
            .query_as("SELECT status, COUNT(*) FROM jobs WHERE status <> 'done' GROUP BY status")
            .fetch_all(tx.conn())
            .await?;
        let count = |word: &str| {
            let row = rows.iter().find(|row| row.0 == word);
            row.and_then(|row| u64::try_from(row.1).ok()).unwrap_or(0)
        };
        Ok(JobCounts { queued: count("queued"), running: count("running") })
    }
}

impl Tx<'_> {
    /// Enqueues a job and gives it its claims.
    pub(crate) async fn insert_job(&mut self, job: &NewJob) -> Result<()> {
        self.query(
            "INSERT INTO jobs (id, project_id, item_id, status, work, run_at, fence, restarts, \
             failures, cancel_requested, created_at, updated_at) \
             VALUES ($1, $2, $3, 'queued', $4, $5, 0, 0, 0, 0, $5, $5)",
        )
        .bind(job.id.as_str().to_owned())
        .bind(job.project_id.as_str().to_owned())
        .bind(job.work.item().as_str().to_owned())
        .bind(to_json(&job.work)?)
        .bind(job.run_at.as_micros())
        .execute(self.conn())
        .await?;
        self.claim(&job.id, &job.claims).await
    }

    /// Writes the holder's next state, the first statement of every arrow: a holder whose
    /// fence is lost gets no further. A job with nothing left to do ends here, and its
    /// claims with it.
    pub(crate) async fn step(&mut self, job: &Job, next: &Work, now: Timestamp) -> Result<()> {
        if next.kind() != job.work.kind() || next.item() != job.work.item() {
            return Err(StoreError::Misuse(format!("job {:?} cannot change its work", job.id)));
        }
        let sql = if next.is_done() {
            "UPDATE jobs SET work = $1, updated_at = $2, status = 'done', lease_owner = NULL, \
             lease_until = NULL WHERE id = $3 AND fence = $4 AND status = 'running'"
        } else {
            "UPDATE jobs SET work = $1, updated_at = $2 \
             WHERE id = $3 AND fence = $4 AND status = 'running'"
        };
        let done = self
            .query(sql)
            .bind(to_json(next)?)
            .bind(now.as_micros())
            .bind(job.id.as_str().to_owned())
            .bind(to_row(job.fence))
            .execute(self.conn())
            .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::FenceLost);
        }
        if next.is_done() { self.drop_claims(&job.id).await } else { Ok(()) }
    }
}

impl Store {
    /// Records how far a job has come, without touching its item.
    ///
    /// # Errors
    /// [`StoreError::FenceLost`].
    pub async fn save_state(&self, job: &Job, next: &Work, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        tx.step(job, next, now).await?;
        tx.commit().await
    }

    /// Gives a job back after a failure, to be tried again at `run_at` from its last
    /// recorded state.
    ///
    /// # Errors
    /// [`StoreError::FenceLost`].
    pub async fn retry_job(&self, job: &Job, run_at: Timestamp, now: Timestamp) -> Result<()> {
        self.give_back(job, run_at, 1, now).await
    }

    /// Gives a job back because its worker ends: nothing is counted, and another worker
    /// may take it at once.
    ///
    /// # Errors
    /// [`StoreError::FenceLost`].
    pub async fn release_job(&self, job: &Job, now: Timestamp) -> Result<()> {
        self.give_back(job, now, 0, now).await
    }

    async fn give_back(
        &self,
        job: &Job,
        run_at: Timestamp,
        failures: i64,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        let done = tx
            .query(
                "UPDATE jobs SET status = 'queued', lease_owner = NULL, lease_until = NULL, \
                 run_at = $1, failures = failures + $2, updated_at = $3 \
                 WHERE id = $4 AND fence = $5 AND status = 'running'",
            )
            .bind(run_at.as_micros())
            .bind(failures)
            .bind(now.as_micros())
            .bind(job.id.as_str().to_owned())
            .bind(to_row(job.fence))
            .execute(tx.conn())
            .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::FenceLost);
        }
        tx.commit().await
    }
}
