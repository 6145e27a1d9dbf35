//! How far reading back each project's repository has come.

use kedge_core::evidence::{Seen, Watch};
use kedge_core::ids::ProjectId;
use kedge_core::time::Timestamp;
use serde::Deserialize;

use crate::codec::{from_json, to_json};
use crate::db::Store;
use crate::error::Result;

/// What is read of states of any form.
#[derive(Debug, Deserialize)]
struct Doubt {
    #[serde(default, alias = "lost_index")]
    is_in_doubt: bool,
}

impl Store {
    /// How far it has come; as if nothing was ever read where nothing is recorded.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_watch(&self, project: &ProjectId) -> Result<Watch> {
        let mut tx = self.read_one().await?;
        let row: Option<(String, Option<String>)> = tx
            .query_as("SELECT state, seen FROM watches WHERE project_id = $1")
            .bind(project.as_str().to_owned())
            .fetch_optional(tx.conn())
            .await?;
        match row {
            None => Ok(Watch::default()),
            Some((state, Some(seen))) => {
                let seen = from_json("watch", project.as_str(), &seen)?;
                let watch: Watch = from_json("watch", project.as_str(), &state)?;
                Ok(Watch { seen, ..watch })
            }
            Some((state, None)) => {
                let Doubt { is_in_doubt } = from_json("watch", project.as_str(), &state)?;
                Ok(Watch { is_in_doubt, ..Watch::default() })
            }
        }
    }

    /// What follows from it for backups, and costs the same in large repositories as in small
    /// ones.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_seen(&self, project: &ProjectId) -> Result<Seen> {
        let mut tx = self.read_one().await?;
        let row: Option<(Option<String>,)> = tx
            .query_as("SELECT seen FROM watches WHERE project_id = $1")
            .bind(project.as_str().to_owned())
            .fetch_optional(tx.conn())
            .await?;
        row.and_then(|(seen,)| seen)
            .map_or_else(|| Ok(Seen::default()), |seen| from_json("watch", project.as_str(), &seen))
    }

    /// Notes that a reader met something lost that no record of damage names.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn report_loss(&self, project: &ProjectId, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        tx.query(
            "INSERT INTO watches (project_id, state, losses, updated_at) VALUES ($1, '{}', 1, $2) \
             ON CONFLICT (project_id) DO UPDATE SET losses = watches.losses + 1",
        )
        .bind(project.as_str().to_owned())
        .bind(now.as_micros())
        .execute(tx.conn())
        .await?;
        tx.commit().await
    }

    /// How many losses readers told of that nobody settled.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn count_losses(&self, project: &ProjectId) -> Result<i64> {
        let mut tx = self.read_one().await?;
        let row: Option<(i64,)> = tx
            .query_as("SELECT losses FROM watches WHERE project_id = $1")
            .bind(project.as_str().to_owned())
            .fetch_optional(tx.conn())
            .await?;
        Ok(row.map_or(0, |(losses,)| losses))
    }

    /// Forgets so many of them: the watch that was saved knows.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn settle_losses(&self, project: &ProjectId, count: i64) -> Result<()> {
        let mut tx = self.write().await?;
        tx.query("UPDATE watches SET losses = losses - $2 WHERE project_id = $1")
            .bind(project.as_str().to_owned())
            .bind(count)
            .execute(tx.conn())
            .await?;
        tx.commit().await
    }

    /// Projects in whose repositories something is lost that no record of damage names, or of
    /// which that cannot be told.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_in_doubt(&self) -> Result<Vec<ProjectId>> {
        let mut tx = self.read_one().await?;
        let rows: Vec<(String, String, i64)> = tx
            .query_as("SELECT project_id, state, losses FROM watches ORDER BY project_id")
            .fetch_all(tx.conn())
            .await?;
        let is_in_doubt = |(project, state, losses): &(String, String, i64)| {
            let doubt = from_json::<Doubt>("watch", project, state);
            *losses > 0 || doubt.map_or(true, |doubt| doubt.is_in_doubt)
        };
        let in_doubt = rows.into_iter().filter(is_in_doubt);
        Ok(in_doubt.map(|(project, _, _)| ProjectId::new(project)).collect())
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
            "INSERT INTO watches (project_id, state, seen, updated_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (project_id) DO UPDATE SET state = $2, seen = $3, updated_at = $4",
        )
        .bind(project.as_str().to_owned())
        .bind(to_json(watch)?)
        .bind(to_json(&watch.seen)?)
        .bind(now.as_micros())
        .execute(tx.conn())
        .await?;
        tx.commit().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows from before readings were noted by index object.
    #[tokio::test]
    async fn of_states_of_an_older_form_only_what_is_lost_counts() {
        let store = Store::open_in_memory().await.unwrap();
        let (project, now) = (ProjectId::new("p"), Timestamp::from_micros(1));
        store.save_watch(&project, &Watch::default(), now).await.unwrap();
        for (is_in_doubt, old) in [
            (
                true,
                r#"{"present_at": 50, "all_read_at": 20, "read_index": [], "lost_index": true}"#,
            ),
            (true, r#"{"walked_upto": 7, "read_index": ["a"], "is_in_doubt": true}"#),
            (false, r#"{"walked_upto": 7, "read_index": ["a"], "is_in_doubt": false}"#),
        ] {
            let mut tx = store.write().await.unwrap();
            tx.query("UPDATE watches SET state = $1, seen = NULL")
                .bind(old.to_owned())
                .execute(tx.conn())
                .await
                .unwrap();
            tx.commit().await.unwrap();
            let expected = Watch { is_in_doubt, ..Watch::default() };
            assert_eq!(store.find_watch(&project).await.unwrap(), expected);
            assert_eq!(store.find_seen(&project).await.unwrap(), Seen::default());
            let doubted = if is_in_doubt { vec![project.clone()] } else { Vec::new() };
            assert_eq!(store.list_in_doubt().await.unwrap(), doubted);
        }
    }

    #[tokio::test]
    async fn a_loss_that_is_told_of_stays_until_it_is_settled_whatever_is_saved() {
        let store = Store::open_in_memory().await.unwrap();
        let (project, now) = (ProjectId::new("p"), Timestamp::from_micros(1));
        assert_eq!(store.count_losses(&project).await.unwrap(), 0);
        store.report_loss(&project, now).await.unwrap();
        assert_eq!(store.find_watch(&project).await.unwrap(), Watch::default());
        let known = store.count_losses(&project).await.unwrap();
        // Another is told of meanwhile.
        store.report_loss(&project, now).await.unwrap();
        store.save_watch(&project, &Watch::default(), now).await.unwrap();
        for _ in 0..2 {
            assert_eq!(store.list_in_doubt().await.unwrap(), std::slice::from_ref(&project));
            store.settle_losses(&project, known).await.unwrap();
        }
        assert_eq!(store.list_in_doubt().await.unwrap(), []);
        assert_eq!(store.count_losses(&project).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_was_seen_is_what_the_watch_saw() {
        let store = Store::open_in_memory().await.unwrap();
        let (project, now) = (ProjectId::new("p"), Timestamp::from_micros(1));
        assert_eq!(store.find_watch(&project).await.unwrap(), Watch::default());
        assert_eq!(store.find_seen(&project).await.unwrap(), Seen::default());
        let seen = Seen { read_since: Some(now), read_upto: 3, ..Seen::default() };
        let watch = Watch { seen: seen.clone(), walked_upto: 3, ..Watch::default() };
        store.save_watch(&project, &watch, now).await.unwrap();
        assert_eq!(store.find_watch(&project).await.unwrap(), watch);
        assert_eq!(store.find_seen(&project).await.unwrap(), seen);
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
