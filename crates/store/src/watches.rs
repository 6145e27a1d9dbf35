//! How far reading back each project's repository has come.

use kedge_core::evidence::Watch;
use kedge_core::ids::ProjectId;
use kedge_core::time::Timestamp;

use crate::codec::{from_json, to_json};
use crate::db::Store;
use crate::error::Result;

impl Store {
    /// How far it has come; as if nothing was ever read where nothing is recorded.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_watch(&self, project: &ProjectId) -> Result<Watch> {
        let mut tx = self.read_one().await?;
        let row: Option<(String,)> = tx
            .query_as("SELECT state FROM watches WHERE project_id = $1")
            .bind(project.as_str().to_owned())
            .fetch_optional(tx.conn())
            .await?;
        row.map_or_else(
            || Ok(Watch::default()),
            |(state,)| from_json("watch", project.as_str(), &state),
        )
    }

    /// Projects whose repositories have lost index objects, or of which that cannot be told.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_lost_indexes(&self) -> Result<Vec<ProjectId>> {
        let mut tx = self.read_one().await?;
        let rows: Vec<(String, String)> = tx
            .query_as("SELECT project_id, state FROM watches ORDER BY project_id")
            .fetch_all(tx.conn())
            .await?;
        let mut lost = Vec::new();
        for (project, state) in rows {
            let watch = from_json::<Watch>("watch", &project, &state);
            if watch.map_or(true, |watch| watch.lost_index) {
                lost.push(ProjectId::new(project));
            }
        }
        Ok(lost)
    }

    /// Records how far it has come.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn save_watch(
        &self,
        project: &ProjectId,
        watch: &Watch,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        tx.query(
            "INSERT INTO watches (project_id, state, updated_at) VALUES ($1, $2, $3) \
             ON CONFLICT (project_id) DO UPDATE SET state = $2, updated_at = $3",
        )
        .bind(project.as_str().to_owned())
        .bind(to_json(watch)?)
        .bind(now.as_micros())
        .execute(tx.conn())
        .await?;
        tx.commit().await
    }
}

#[cfg(test)]
mod tests {
    use kedge_core::evidence::Grade;
    use kedge_core::proof::Proven;

    use super::*;

    /// Rows of 0.1 before sequences were kept.
    #[test]
    fn what_was_recorded_by_times_alone_covers_no_backup() {
        let old = r#"{"present_at": 50, "watched_since": 5, "new_read_at": 40, "all_read_at": 20,
            "round": {"began_at": 30, "after": null}, "read_index": [], "lost_index": true}"#;
        let watch: Watch = from_json("watch", "p", old).unwrap();
        assert_eq!(watch.evidence(Some(1), &Proven::default()).grade, Grade::Recorded);
        assert!(watch.lost_index, "what is lost stays lost");
        assert_eq!(watch.round.map(|round| round.upto), Some(0));
    }
}
