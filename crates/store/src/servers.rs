//! The servers that a project has backups of.

use std::collections::HashSet;

use kedge_core::ids::{ProjectId, ServerId};
use kedge_core::tag::Tag;
use sqlx::QueryBuilder;

use crate::db::Store;
use crate::error::{Result, StoreError};
use crate::items::{IDS_MAX, push_ids};

impl Store {
    /// Servers of which the project has backups with data, available or not just now, by id;
    /// those after `after`, at most so many.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_backed_up_servers(
        &self,
        project: &ProjectId,
        after: Option<&ServerId>,
        most: u32,
    ) -> Result<Vec<ServerId>> {
        let mut tx = self.read_one().await?;
        let rows: Vec<(String,)> = tx
            .query_as(
                // From server to server by the index, one after the other and no further than
                // asked: a server may have thousands of backups, a project thousands of servers.
                "WITH RECURSIVE walk (server) AS (SELECT MIN(server_id) FROM items \
                 WHERE project_id = $1 AND server_id > $2 AND status <> 'deleted' \
                 UNION ALL SELECT (SELECT MIN(server_id) FROM items WHERE project_id = $1 \
                 AND server_id > walk.server AND status <> 'deleted') FROM walk \
                 WHERE walk.server IS NOT NULL) \
                 SELECT server FROM walk WHERE EXISTS (SELECT 1 FROM items \
                 WHERE project_id = $1 AND server_id = walk.server AND status <> 'deleted' \
                 AND snapshot_id IS NOT NULL) LIMIT $3",
            )
            .bind(project.as_str().to_owned())
            .bind(after.map_or("", ServerId::as_str).to_owned())
            .bind(i64::from(most))
            .fetch_all(tx.conn())
            .await?;
        Ok(rows.into_iter().map(|row| ServerId::asked(&row.0)).collect())
    }

    /// Those of the servers of which the project has a backup with this tag.
    ///
    /// # Errors
    /// The catalogue does not answer, or too many ids are asked for.
    pub async fn find_tagged_servers(
        &self,
        project: &ProjectId,
        ids: &[ServerId],
        tag: &Tag,
    ) -> Result<HashSet<ServerId>> {
        if ids.len() > IDS_MAX {
            return Err(StoreError::TooMany { asked: ids.len(), most: IDS_MAX });
        }
        let mut select = QueryBuilder::new(
            "SELECT DISTINCT i.server_id FROM items i JOIN item_tags t ON t.item_id = i.id \
             WHERE i.status <> 'deleted' AND i.project_id = ",
        );
        select.push_bind(project.as_str().to_owned());
        select.push(" AND t.tag_key = ").push_bind(tag.key().to_owned());
        select.push(" AND t.tag_value = ").push_bind(tag.value().to_owned());
        push_ids(&mut select, "i.server_id", ids.iter().map(ServerId::as_str));
        let mut tx = self.read_one().await?;
        let rows: Vec<(String,)> = tx.built_as(&mut select).fetch_all(tx.conn()).await?;
        Ok(rows.into_iter().map(|row| ServerId::asked(&row.0)).collect())
    }
}
