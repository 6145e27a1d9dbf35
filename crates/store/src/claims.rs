//! Claims: what a job keeps others from using while it lives.

use std::collections::HashMap;

use kedge_core::ids::{ItemId, JobId, ServerId, VolumeId};
use kedge_core::job::{Claim, ClaimKind, ClaimMode, Work};
use kedge_core::protect::Holder;
use sqlx::QueryBuilder;

use crate::codec::from_json;
use crate::db::{Store, Tx};
use crate::error::{Result, StoreError};
use crate::items::IDS_MAX;

/// Whose claims servers and volumes are under.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    held: HashMap<(ClaimKind, String), (JobId, Work)>,
}

impl Holders {
    /// What holds the object, as the rules ask it. A deletion holds neither servers nor
    /// volumes.
    pub fn of(&self, kind: ClaimKind, id: &str) -> Option<Holder> {
        let (_, work) = self.held.get(&(kind, id.to_owned()))?;
        match work {
            Work::Protect { trigger, .. } => Some(Holder::Backup(*trigger)),
            Work::Restore { .. } => Some(Holder::Restore),
            Work::Delete { .. } => None,
        }
    }

    /// The job that holds the object.
    pub fn job(&self, kind: ClaimKind, id: &str) -> Option<&JobId> {
        self.held.get(&(kind, id.to_owned())).map(|(job, _)| job)
    }

    /// The item that job works on.
    pub fn item(&self, kind: ClaimKind, id: &str) -> Option<&ItemId> {
        self.held.get(&(kind, id.to_owned())).map(|(_, work)| work.item())
    }

    /// Everything of this kind that is held.
    pub fn ids(&self, kind: ClaimKind) -> impl Iterator<Item = &str> {
        self.held.keys().filter(move |key| key.0 == kind).map(|key| key.1.as_str())
    }
}

impl Store {
    /// Who holds these servers and volumes, but for the job that asks. One statement,
    /// whatever is held.
    ///
    /// # Errors
    /// The catalogue does not answer, or too many ids are asked for.
    pub async fn holders(
        &self,
        servers: &[ServerId],
        volumes: &[VolumeId],
        except: Option<&JobId>,
    ) -> Result<Holders> {
        let servers = servers.iter().map(|id| (ClaimKind::Server, id.as_str()));
        let volumes = volumes.iter().map(|id| (ClaimKind::Volume, id.as_str()));
        let wanted: Vec<_> = servers.chain(volumes).collect();
        self.holders_of(&wanted, except).await
    }

    /// Which jobs work on these items.
    ///
    /// # Errors
    /// The catalogue does not answer, or too many ids are asked for.
    pub async fn item_holders(&self, items: &[ItemId]) -> Result<Holders> {
        let wanted: Vec<_> = items.iter().map(|id| (ClaimKind::Item, id.as_str())).collect();
        self.holders_of(&wanted, None).await
    }

    async fn holders_of(
        &self,
        wanted: &[(ClaimKind, &str)],
        except: Option<&JobId>,
    ) -> Result<Holders> {
        if wanted.len() > IDS_MAX {
            return Err(StoreError::TooMany { asked: wanted.len(), most: IDS_MAX });
        }
        let mut builder = QueryBuilder::new(
            "SELECT c.kind, c.object_id, c.job_id, j.work \
             FROM claims c JOIN jobs j ON j.id = c.job_id WHERE c.job_id <> ",
        );
        builder.push_bind(except.map_or("", JobId::as_str).to_owned());
        push_objects(&mut builder, "c.", wanted);
        let mut tx = self.read_one().await?;
        let rows: Vec<(String, String, String, String)> =
            tx.built_as(&mut builder).fetch_all(tx.conn()).await?;
        let mut holders = Holders::default();
        for (kind, id, job, work) in rows {
            let kind = kind_of(&kind).ok_or_else(|| StoreError::corrupt("claim", &id, "kind"))?;
            let work = from_json("job", &job, &work)?;
            holders.held.insert((kind, id), (JobId::asked(&job), work));
        }
        Ok(holders)
    }
}

impl Tx<'_> {
    /// Gives a new job its claims, all or none. The transaction holds the write lock, so
    /// nobody claims in between.
    pub(crate) async fn claim(&mut self, job: &JobId, claims: &[Claim]) -> Result<()> {
        if claims.is_empty() {
            return Ok(());
        }
        self.nobody_holds(claims).await?;
        let mut insert = QueryBuilder::new("INSERT INTO claims (kind, object_id, job_id, mode) ");
        insert.push_values(claims, |mut row, claim| {
            row.push_bind(claim.kind.as_str())
                .push_bind(claim.id.clone())
                .push_bind(job.as_str().to_owned())
                .push_bind(mode_word(claim.mode));
        });
        self.built(&mut insert).execute(self.conn()).await?;
        Ok(())
    }

    async fn nobody_holds(&mut self, claims: &[Claim]) -> Result<()> {
        let wanted: Vec<_> = claims.iter().map(|claim| (claim.kind, claim.id.as_str())).collect();
        let mut select = QueryBuilder::new(
            "SELECT c.kind, c.object_id, c.job_id, c.mode FROM claims c WHERE 0 = 0",
        );
        push_objects(&mut select, "c.", &wanted);
        select.push(" ORDER BY c.kind, c.object_id, c.job_id");
        let rows: Vec<(String, String, String, String)> =
            self.built_as(&mut select).fetch_all(self.conn()).await?;
        for (kind, id, by, mode) in rows {
            let rival = claims.iter().find(|claim| {
                let same = claim.kind.as_str() == kind && claim.id == id;
                let alone = claim.mode == ClaimMode::Exclusive;
                same && (alone || mode == mode_word(ClaimMode::Exclusive))
            });
            if let Some(claim) = rival {
                return Err(StoreError::Claimed { kind: claim.kind, id, by: JobId::asked(&by) });
            }
        }
        Ok(())
    }

    /// Ends the claims of a job that is done.
    pub(crate) async fn drop_claims(&mut self, job: &JobId) -> Result<()> {
        self.query("DELETE FROM claims WHERE job_id = $1")
            .bind(job.as_str().to_owned())
            .execute(self.conn())
            .await?;
        Ok(())
    }
}

/// ` AND (kind, object_id) IN (…)`. The first pair names nothing, so that the list is
/// never empty.
fn push_objects(
    builder: &mut QueryBuilder<sqlx::Sqlite>,
    prefix: &str,
    objects: &[(ClaimKind, &str)],
) {
    builder.push(format!(" AND ({prefix}kind, {prefix}object_id) IN (VALUES ('', '')"));
    for (kind, id) in objects {
        builder.push(", (").push_bind(kind.as_str()).push(", ");
        builder.push_bind((*id).to_owned()).push(")");
    }
    builder.push(")");
}

fn kind_of(word: &str) -> Option<ClaimKind> {
    [ClaimKind::Server, ClaimKind::Volume, ClaimKind::Item]
        .into_iter()
        .find(|kind| kind.as_str() == word)
}

fn mode_word(mode: ClaimMode) -> &'static str {
    match mode {
        ClaimMode::Exclusive => "exclusive",
        ClaimMode::Shared => "shared",
    }
}
