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

    /// Projects in whose repositories something is lost that no record of damage names, or of
    /// which that cannot be told.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_in_doubt(&self) -> Result<Vec<ProjectId>> {
        let mut tx = self.read_one().await?;
        let rows: Vec<(String, String)> = tx
            .query_as("SELECT project_id, state FROM watches ORDER BY project_id")
            .fetch_all(tx.conn())
            .await?;
        let is_in_doubt = |(project, state): &(String, String)| {
            from_json::<Watch>("watch", project, state).map_or(true, |watch| watch.is_in_doubt)
        };
        let in_doubt = rows.into_iter().filter(is_in_doubt);
        Ok(in_doubt.map(|(project, _)| ProjectId::new(project)).collect())
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
        assert!(watch.is_in_doubt, "what is lost stays lost");
        assert_eq!(watch.round.map(|round| round.upto), Some(0));
    }
    #[tokio::test]
    async fn what_cannot_be_told_of_a_repository_is_doubted() {
        let store = Store::open_in_memory().await.unwrap();
        let now = Timestamp::from_micros(1);
        let [sound, doubted, garbled] = ["p1", "p2", "p3"].map(ProjectId::new);
        for (project, is_in_doubt) in [(&sound, false), (&doubted, true), (&garbled, false)] {
            let watch = Watch { is_in_doubt, ..Watch::default() };
            store.save_watch(project, &watch, now).await.unwrap();
        }
        let mut tx = store.write().await.unwrap();
        let garble = "UPDATE watches SET state = '{}}' WHERE project_id = 'p3'";
        tx.query(garble).execute(tx.conn()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.list_in_doubt().await.unwrap(), [doubted, garbled]);
    }
}
