//! Checkpoints, items, volume backups: writing new ones and finding them.

use std::collections::{BTreeSet, HashMap};

use kedge_core::checkpoint::{Checkpoint, Item};
use kedge_core::ids::{CheckpointId, ItemId, ProjectId, ServerId};
use kedge_core::status::ItemStatus;
use kedge_core::tag::Tag;
use kedge_core::time::Timestamp;
use sqlx::{QueryBuilder, Sqlite};

use crate::codec::{
    ITEM_PART, Part, PartRow, TAG_PART, VOLUME_PART, item_details, method_word, to_json,
    volume_details,
};
use crate::db::{Store, Tx};
use crate::error::{Result, StoreError};
use crate::jobs::NewJob;
use crate::text::{folded, without_nul};

/// Most ids in one look-up: a third of what one statement may carry in SQLite.
pub(crate) const IDS_MAX: usize = 10_000;

/// Items that a walk over a project loads at once.
const WALK_ITEMS: i64 = 500;
/// Names that a walk over a project loads at once.
const WALK_NAMES: i64 = 5_000;

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its row is there.
    Kept,
    /// It was deleted after its data lay in the repository.
    Deleted,
}

fn placed((sequence, snapshot): (i64, String)) -> (u64, String) {
    (u64::try_from(sequence).unwrap_or(0), snapshot)
}

/// Which items to load, each a `WHERE` that all three statements share.
pub(crate) enum Which<'a> {
    OfProject {
        project: &'a ProjectId,
        ids: &'a [ItemId],
    },
    OfCheckpoint {
        project: &'a ProjectId,
        checkpoint: &'a CheckpointId,
    },
    Latest {
        project: &'a ProjectId,
        server: &'a ServerId,
        most: u32,
    },
    /// Ids that a scoped statement of the same transaction found.
    Found {
        ids: &'a [String],
    },
}

impl Store {
    /// Records an accepted backup: the checkpoint, its items, which must be protecting,
    /// the job and its claims.
    ///
    /// # Errors
    /// [`StoreError::Claimed`] when another job holds the server.
    pub async fn create_protect(&self, checkpoint: &Checkpoint, job: &NewJob) -> Result<()> {
        if checkpoint.items.iter().any(|item| item.status != ItemStatus::Protecting) {
            return Err(StoreError::Misuse("a new item has to be protecting".to_owned()));
        }
        let mut tx = self.write().await?;
        tx.insert_checkpoint(checkpoint).await?;
        tx.insert_items(checkpoint).await?;
        tx.insert_job(job).await?;
        tx.commit().await
    }

    /// Records items rebuilt from the repository, whole. Their checkpoint's row may exist
    /// from an earlier one.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when one of the items does, be it as a tombstone, or when
    /// the checkpoint is another project's; nothing is adopted then.
    pub async fn adopt(&self, checkpoint: &Checkpoint) -> Result<()> {
        let mut tx = self.write().await?;
        match tx.owner_of(&checkpoint.id).await? {
            None => tx.insert_checkpoint(checkpoint).await?,
            Some(owner) if owner == checkpoint.project_id => {}
            Some(_) => return Err(StoreError::Exists(format!("checkpoint {:?}", checkpoint.id))),
        }
        tx.insert_items(checkpoint).await?;
        tx.commit().await
    }

    /// The item, unless it is absent, deleted or another project's.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_item(&self, project: &ProjectId, id: &ItemId) -> Result<Option<Item>> {
        Ok(self.find_items(project, std::slice::from_ref(id)).await?.pop())
    }

    /// Those of the items that the project has, oldest first.
    ///
    /// # Errors
    /// The catalogue does not answer, or too many ids are asked for.
    pub async fn find_items(&self, project: &ProjectId, ids: &[ItemId]) -> Result<Vec<Item>> {
        if ids.len() > IDS_MAX {
            return Err(StoreError::TooMany { asked: ids.len(), most: IDS_MAX });
        }
        self.read_one().await?.load(&Which::OfProject { project, ids }).await
    }

    /// The checkpoint with the items it still has; none when all of them are deleted.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_checkpoint(
        &self,
        project: &ProjectId,
        id: &CheckpointId,
    ) -> Result<Option<Checkpoint>> {
        let mut tx = self.read().await?;
        let row: Option<(String, String, i64)> = tx
            .query_as(
                "SELECT plan_id, plan_name, created_at FROM checkpoints \
                 WHERE id = $1 AND project_id = $2",
            )
            .bind(id.as_str().to_owned())
            .bind(project.as_str().to_owned())
            .fetch_optional(tx.conn())
            .await?;
        let items = tx.load(&Which::OfCheckpoint { project, checkpoint: id }).await?;
        let Some((plan_id, plan_name, created_at)) = row.filter(|_| !items.is_empty()) else {
            return Ok(None);
        };
        Ok(Some(Checkpoint {
            id: id.clone(),
            project_id: project.clone(),
            created_at: Timestamp::from_micros(created_at),
            plan_id,
            plan_name,
            items,
        }))
    }

    /// The server's latest backup that is available.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn latest_available_item(
        &self,
        project: &ProjectId,
        server: &ServerId,
    ) -> Result<Option<Item>> {
        let which = Which::Latest { project, server, most: 1 };
        Ok(self.read_one().await?.load(&which).await?.pop())
    }

    /// The server's latest backups that are available, newest first, at most so many: what
    /// an incremental builds on, disk by disk.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn latest_available_items(
        &self,
        project: &ProjectId,
        server: &ServerId,
        most: u32,
    ) -> Result<Vec<Item>> {
        let which = Which::Latest { project, server, most };
        let mut items = self.read_one().await?.load(&which).await?;
        items.sort_by(|a, b| (b.protected_at, &b.id).cmp(&(a.protected_at, &a.id)));
        Ok(items)
    }

    /// Every item of a project, for reconcilers.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn all_items(&self, project: &ProjectId) -> Result<Vec<Item>> {
        let mut tx = self.read().await?;
        let mut items: Vec<Item> = Vec::new();
        loop {
            let after = items.last().map_or("", |item| item.id.as_str()).to_owned();
            let rows: Vec<(String,)> = tx
                .query_as(
                    "SELECT id FROM items WHERE project_id = $1 AND status <> 'deleted' \
                     AND id > $2 ORDER BY id LIMIT $3",
                )
                .bind(project.as_str().to_owned())
                .bind(after)
                .bind(WALK_ITEMS)
                .fetch_all(tx.conn())
                .await?;
            if rows.is_empty() {
                return Ok(items);
            }
            let ids: Vec<String> = rows.into_iter().map(|row| row.0).collect();
            items.extend(tx.load_in_order(&ids).await?);
        }
    }

    /// Tells the repository snapshots that rows of the project name, one by one. Loads a page of
    /// names at a time.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn for_each_named_snapshot(
        &self,
        project: &ProjectId,
        mut tell: impl FnMut(&str),
    ) -> Result<()> {
        let mut tx = self.read().await?;
        let mut after = (i64::MIN, String::new());
        loop {
            let rows: Vec<(i64, String, Option<String>)> = tx
                .query_as(
                    "SELECT created_at, id, snapshot_id FROM items WHERE project_id = $1 \
                     AND status <> 'deleted' AND created_at >= $2 \
                     AND (created_at > $2 OR id > $3) ORDER BY created_at, id LIMIT $4",
                )
                .bind(project.as_str().to_owned())
                .bind(after.0)
                .bind(after.1)
                .bind(WALK_NAMES)
                .fetch_all(tx.conn())
                .await?;
            let Some((created_at, id, _)) = rows.last() else { return Ok(()) };
            after = (*created_at, id.clone());
            for snapshot in rows.into_iter().filter_map(|(_, _, snapshot)| snapshot) {
                tell(&snapshot);
            }
        }
    }

    /// The place of the project's backup that was finished last; 0 before the first.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn latest_sequence(&self, project: &ProjectId) -> Result<u64> {
        let mut tx = self.read_one().await?;
        let row: (i64,) = tx
            .query_as("SELECT COALESCE(MAX(sequence), 0) FROM items WHERE project_id = $1")
            .bind(project.as_str().to_owned())
            .fetch_one(tx.conn())
            .await?;
        Ok(u64::try_from(row.0).unwrap_or(0))
    }

    /// The repository snapshots that backups of the project name which were finished after
    /// this one, with their places, in their order; at most so many. Without those that can
    /// never be restored again.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_snapshots_after(
        &self,
        project: &ProjectId,
        after: u64,
        most: u32,
    ) -> Result<Vec<(u64, String)>> {
        let mut tx = self.read_one().await?;
        let rows: Vec<(i64, String)> = tx
            .query_as(
                "SELECT sequence, snapshot_id FROM items WHERE project_id = $1 AND sequence > $2 \
                 AND snapshot_id IS NOT NULL AND status NOT IN ('deleting', 'deleted', 'error') \
                 ORDER BY sequence LIMIT $3",
            )
            .bind(project.as_str().to_owned())
            .bind(i64::try_from(after).unwrap_or(i64::MAX))
            .bind(i64::from(most))
            .fetch_all(tx.conn())
            .await?;
        Ok(rows.into_iter().map(placed).collect())
    }

    /// Those of the same that have one of these places.
    ///
    /// # Errors
    /// The catalogue does not answer, or too many are asked for.
    pub async fn find_snapshots(
        &self,
        project: &ProjectId,
        places: &BTreeSet<u64>,
    ) -> Result<Vec<(u64, String)>> {
        if places.len() > IDS_MAX {
            return Err(StoreError::TooMany { asked: places.len(), most: IDS_MAX });
        }
        let mut select = QueryBuilder::new(
            "SELECT sequence, snapshot_id FROM items WHERE snapshot_id IS NOT NULL \
             AND status NOT IN ('deleting', 'deleted', 'error') AND project_id = ",
        );
        select.push_bind(project.as_str().to_owned()).push(" AND sequence IN (-1");
        for place in places {
            select.push(", ").push_bind(i64::try_from(*place).unwrap_or(i64::MAX));
        }
        select.push(") ORDER BY sequence");
        let mut tx = self.read_one().await?;
        let rows: Vec<(i64, String)> = tx.built_as(&mut select).fetch_all(tx.conn()).await?;
        Ok(rows.into_iter().map(placed).collect())
    }

    /// The repository snapshots of backups that were finished after this one and are to be read
    /// back before others: those with the tag, then those to which at least `chain_min`
    /// incremental backups of their server lead from its last full one, the longest chains
    /// first; at most so many.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_urgent(
        &self,
        project: &ProjectId,
        after: u64,
        first: Option<&Tag>,
        chain_min: u64,
        most: u32,
    ) -> Result<Vec<String>> {
        let (key, value) = first.map_or(("", ""), |tag| (tag.key(), tag.value()));
        let mut tx = self.read_one().await?;
        // Each full backup begins a chain; a chain whose beginning is not known counts whole.
        let rows: Vec<(String,)> = tx
            .query_as(
                "WITH parts AS (SELECT id, server_id, sequence, snapshot_id, status, \
                 SUM(CASE WHEN method = 'full' THEN 1 ELSE 0 END) \
                 OVER (PARTITION BY server_id ORDER BY sequence) AS part FROM items \
                 WHERE project_id = $1 AND sequence > 0 AND server_id IN (SELECT server_id \
                 FROM items WHERE project_id = $1 AND sequence > $2)), \
                 chains AS (SELECT id, sequence, snapshot_id, status, ROW_NUMBER() \
                 OVER (PARTITION BY server_id, part ORDER BY sequence) \
                 - CASE WHEN part > 0 THEN 1 ELSE 0 END AS chain FROM parts), \
                 urgent AS (SELECT c.*, (SELECT COUNT(*) FROM item_tags t WHERE t.item_id = c.id \
                 AND t.tag_key = $3 AND t.tag_value = $4) AS tagged FROM chains c \
                 WHERE c.sequence > $2 AND c.snapshot_id IS NOT NULL AND c.status <> 'deleted') \
                 SELECT snapshot_id FROM urgent WHERE tagged > 0 OR chain >= $5 \
                 ORDER BY tagged DESC, chain DESC, sequence LIMIT $6",
            )
            .bind(project.as_str().to_owned())
            .bind(i64::try_from(after).unwrap_or(i64::MAX))
            .bind(key.to_owned())
            .bind(value.to_owned())
            .bind(i64::try_from(chain_min).unwrap_or(i64::MAX))
            .bind(i64::from(most))
            .fetch_all(tx.conn())
            .await?;
        Ok(rows.into_iter().map(|(snapshot,)| snapshot).collect())
    }

    /// What became of those of the items that the project has or had.
    ///
    /// # Errors
    /// The catalogue does not answer, or too many ids are asked for.
    pub async fn find_fates(
        &self,
        project: &ProjectId,
        ids: &[ItemId],
    ) -> Result<HashMap<ItemId, Fate>> {
        if ids.len() > IDS_MAX {
            return Err(StoreError::TooMany { asked: ids.len(), most: IDS_MAX });
        }
        let mut select = QueryBuilder::new(
            "SELECT i.id, i.status, i.snapshot_id FROM items i WHERE i.project_id || '' = ",
        );
        select.push_bind(project.as_str().to_owned());
        push_ids(&mut select, "i.id", ids.iter().map(ItemId::as_str));
        let mut tx = self.read_one().await?;
        let rows: Vec<(String, String, Option<String>)> =
            tx.built_as(&mut select).fetch_all(tx.conn()).await?;
        let fate = |(id, status, snapshot): (String, String, Option<String>)| {
            let is_deleted = status == ItemStatus::Deleted.as_str();
            let fate = match (is_deleted, snapshot) {
                (false, _) => Fate::Kept,
                (true, Some(_)) => Fate::Deleted,
                (true, None) => return None,
            };
            Some((ItemId::asked(&id), fate))
        };
        Ok(rows.into_iter().filter_map(fate).collect())
    }
}

impl Tx<'_> {
    /// Loads items by one statement, always the same whether it finds any, and so at one
    /// moment.
    pub(crate) async fn load(&mut self, which: &Which<'_>) -> Result<Vec<Item>> {
        let mut select = QueryBuilder::new(format!("SELECT {ITEM_PART} FROM items i WHERE "));
        which.push_where(&mut select);
        select.push(format!(
            " UNION ALL SELECT {VOLUME_PART} \
             FROM volume_backups v JOIN items i ON i.id = v.item_id WHERE "
        ));
        which.push_where(&mut select);
        select.push(format!(
            " UNION ALL SELECT {TAG_PART} FROM item_tags t JOIN items i ON i.id = t.item_id WHERE "
        ));
        which.push_where(&mut select);
        select.push(" ORDER BY part, created_at, id");
        let rows: Vec<PartRow> = self.built_as(&mut select).fetch_all(self.conn()).await?;
        assemble(rows)
    }

    /// The items with these ids, in this order.
    pub(crate) async fn load_in_order(&mut self, ids: &[String]) -> Result<Vec<Item>> {
        let items = self.load(&Which::Found { ids }).await?;
        let mut by_id: HashMap<String, Item> =
            items.into_iter().map(|item| (item.id.to_string(), item)).collect();
        Ok(ids.iter().filter_map(|id| by_id.remove(id)).collect())
    }

    async fn insert_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.query(
            "INSERT INTO checkpoints (id, project_id, plan_id, plan_name, created_at) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(checkpoint.id.as_str().to_owned())
        .bind(checkpoint.project_id.as_str().to_owned())
        .bind(checkpoint.plan_id.clone())
        .bind(checkpoint.plan_name.clone())
        .bind(checkpoint.created_at.as_micros())
        .execute(self.conn())
        .await?;
        Ok(())
    }

    async fn owner_of(&mut self, checkpoint: &CheckpointId) -> Result<Option<ProjectId>> {
        let row: Option<(String,)> = self
            .query_as("SELECT project_id FROM checkpoints WHERE id = $1")
            .bind(checkpoint.as_str().to_owned())
            .fetch_optional(self.conn())
            .await?;
        Ok(row.map(|row| ProjectId::new(row.0)))
    }

    async fn insert_items(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        for item in &checkpoint.items {
            if item.checkpoint_id != checkpoint.id || item.project_id != checkpoint.project_id {
                let text = format!("item {:?} is not of checkpoint {:?}", item.id, checkpoint.id);
                return Err(StoreError::Misuse(text));
            }
            self.insert_item(item).await?;
        }
        Ok(())
    }

    async fn insert_item(&mut self, item: &Item) -> Result<()> {
        let fault = item.fault.as_ref().map(to_json).transpose()?;
        let (source, hardware) = (&item.source, &item.source.hardware);
        self.query(
            "INSERT INTO items (id, checkpoint_id, project_id, job_id, server_id, name, \
             name_folded, server_name_folded, zone, private_ip, public_ip, status, method, \
             progress, details, fault, snapshot_id, tree_id, created_at, updated_at, \
             protected_at, finished_at, sequence) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, \
             $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, \
             CASE WHEN $17 IS NULL THEN NULL ELSE (SELECT COALESCE(MAX(s.sequence), 0) + 1 \
             FROM items s WHERE s.project_id = $3) END)",
        )
        .bind(item.id.as_str().to_owned())
        .bind(item.checkpoint_id.as_str().to_owned())
        .bind(item.project_id.as_str().to_owned())
        .bind(item.job_id.as_str().to_owned())
        .bind(source.id.as_str().to_owned())
        .bind(item.name.clone())
        .bind(folded(&item.name))
        .bind(folded(&source.name))
        .bind(without_nul(&source.zone))
        .bind(without_nul(&hardware.private_ip))
        .bind(without_nul(&hardware.public_ip))
        .bind(item.status.as_str())
        .bind(method_word(item.method))
        .bind(i64::from(item.progress))
        .bind(item_details(item)?)
        .bind(fault)
        .bind(item.snapshot.as_ref().map(|snapshot| snapshot.snapshot.clone()))
        .bind(item.snapshot.as_ref().map(|snapshot| snapshot.tree.clone()))
        .bind(item.created_at.as_micros())
        .bind(item.updated_at.as_micros())
        .bind(item.protected_at.map(Timestamp::as_micros))
        .bind(item.finished_at.map(Timestamp::as_micros))
        .execute(self.conn())
        .await?;
        self.insert_tags(item).await?;
        self.insert_volumes(item).await
    }

    async fn insert_tags(&mut self, item: &Item) -> Result<()> {
        for (position, tag) in (0_i64..).zip(&item.tags) {
            self.query(
                "INSERT INTO item_tags (item_id, position, tag_key, tag_value) \
                 VALUES ($1, $2, $3, $4)",
            )
            .bind(item.id.as_str().to_owned())
            .bind(position)
            .bind(tag.key().to_owned())
            .bind(tag.value().to_owned())
            .execute(self.conn())
            .await?;
        }
        Ok(())
    }

    async fn insert_volumes(&mut self, item: &Item) -> Result<()> {
        for (position, volume) in (0_i64..).zip(&item.volumes) {
            self.query(
                "INSERT INTO volume_backups (id, item_id, position, details, stored) \
                 VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(volume.id.as_str().to_owned())
            .bind(item.id.as_str().to_owned())
            .bind(position)
            .bind(volume_details(volume)?)
            .bind(volume.stored.as_ref().map(to_json).transpose()?)
            .execute(self.conn())
            .await?;
        }
        Ok(())
    }
}

impl Which<'_> {
    fn push_where(&self, builder: &mut QueryBuilder<Sqlite>) {
        builder.push("i.status <> 'deleted' AND ");
        match self {
            Self::OfProject { project, ids } => {
                // Ids are few, a project's items may be many: what is computed has no index,
                // so the ids are looked up and the project is compared.
                builder.push("i.project_id || '' = ").push_bind(project.as_str().to_owned());
                push_ids(builder, "i.id", ids.iter().map(ItemId::as_str));
            }
            Self::OfCheckpoint { project, checkpoint } => {
                builder.push("i.project_id || '' = ").push_bind(project.as_str().to_owned());
                builder.push(" AND i.checkpoint_id = ");
                builder.push_bind(checkpoint.as_str().to_owned());
            }
            Self::Latest { project, server, most } => {
                builder.push(
                    "i.id IN (SELECT l.id FROM items l WHERE l.status = 'available' \
                     AND l.project_id = ",
                );
                builder.push_bind(project.as_str().to_owned()).push(" AND l.server_id = ");
                builder.push_bind(server.as_str().to_owned());
                builder.push(
                    " AND l.snapshot_id IS NOT NULL AND l.protected_at IS NOT NULL \
                     ORDER BY l.protected_at DESC, l.id DESC LIMIT ",
                );
                builder.push_bind(i64::from(*most)).push(")");
            }
            Self::Found { ids } => {
                builder.push("0 = 0");
                push_ids(builder, "i.id", ids.iter().map(String::as_str));
            }
        }
    }
}

/// ` AND i.id IN (…)`. The first id names nothing, so that the list is never empty.
pub(crate) fn push_ids<'i>(
    builder: &mut QueryBuilder<Sqlite>,
    column: &'static str,
    ids: impl Iterator<Item = &'i str>,
) {
    builder.push(" AND ").push(column).push(" IN (''");
    for id in ids {
        builder.push(", ").push_bind(id.to_owned());
    }
    builder.push(")");
}

/// Items come before what belongs to them.
fn assemble(rows: Vec<PartRow>) -> Result<Vec<Item>> {
    let mut items: Vec<Item> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for row in rows {
        match row.part() {
            Part::Item(row) => {
                let item = row.decode()?;
                places.insert(item.id.to_string(), items.len());
                items.push(item);
            }
            Part::Volume(row) => {
                let place = places.get(&row.item_id);
                if let Some(item) = place.and_then(|at| items.get_mut(*at)) {
                    item.volumes.push(row.decode()?);
                }
            }
            Part::Tag(row) => {
                let place = places.get(&row.item_id);
                if let Some(item) = place.and_then(|at| items.get_mut(*at)) {
                    item.tags.push(row.decode()?);
                }
            }
        }
    }
    Ok(items)
}
