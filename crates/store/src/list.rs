//! Lists of items: filters, sorting and pages that neither skip nor repeat.

use kedge_core::checkpoint::Item;
use kedge_core::ids::{CheckpointId, ItemId, ProjectId, ServerId};
use kedge_core::resource::SERVER_TYPE;
use kedge_core::status::ItemStatus;
use kedge_core::time::Timestamp;
use sqlx::{FromRow, QueryBuilder, Sqlite};

use crate::codec::to_row;
use crate::db::{Store, Tx};
use crate::error::{Result, StoreError};
use crate::text::{contains_pattern, without_nul};

/// The only kind of image we make; clients filter by it.
const IMAGE_TYPE: &str = "backup";

/// Entries of a page unless asked otherwise, and at most (docs/csbs-v1.md).
const LIMIT_DEFAULT: u32 = 1000;

/// Which items to list. Conditions combine with AND; what is not set admits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemFilter {
    /// Their owner. Not set it means every project's: only for administrators.
    pub project: Option<ProjectId>,
    /// Where they stand.
    pub status: Option<ItemStatus>,
    /// Part of their name, in any case.
    pub name_contains: Option<String>,
    /// The availability zone of the server.
    pub zone: Option<String>,
    /// The server.
    pub resource_id: Option<ServerId>,
    /// Part of the server's name, in any case.
    pub resource_name_contains: Option<String>,
    /// Any of these types of resource.
    pub resource_types: Vec<String>,
    /// Asked for at this moment or later.
    pub created_from: Option<Timestamp>,
    /// Asked for at this moment or earlier.
    pub created_to: Option<Timestamp>,
    /// The kind of image; ours are all `backup`.
    pub image_type: Option<String>,
    /// The plan that made them.
    pub policy_id: Option<String>,
    /// The record they belong to.
    pub checkpoint_id: Option<CheckpointId>,
    /// The server's private or public address.
    pub ip: Option<String>,
}

/// Which part of a list, in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Most entries of the page.
    pub limit: u32,
    /// Entries to skip, counted after the marker.
    pub offset: u64,
    /// The last entry of the page before; it may have been deleted since.
    pub marker: Option<ItemId>,
    /// What to sort by, most significant first; empty means newest first. Entries that
    /// are equal in all of it are sorted by id, in the last key's direction.
    pub sort: Vec<(SortKey, Direction)>,
}

impl Default for PageRequest {
    fn default() -> Self {
        Self { limit: LIMIT_DEFAULT, offset: 0, marker: None, sort: Vec::new() }
    }
}

/// What a list can be sorted by (docs/csbs-v1.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SortKey {
    /// When the backup was asked for.
    CreatedAt,
    /// Last change of the record.
    UpdatedAt,
    /// The name, by code points.
    Name,
    /// The word of the status.
    Status,
    /// The moment the data stands for; not yet known counts as earliest.
    ProtectedAt,
    /// The id.
    Id,
}

impl SortKey {
    /// Every key.
    pub const ALL: [Self; 6] =
        [Self::CreatedAt, Self::UpdatedAt, Self::Name, Self::Status, Self::ProtectedAt, Self::Id];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreatedAt => "created_at",
            Self::UpdatedAt => "updated_at",
            Self::Name => "name",
            Self::Status => "status",
            Self::ProtectedAt => "protected_at",
            Self::Id => "id",
        }
    }

    /// The key with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.as_str() == word)
    }

    /// What SQL compares. No value of it is NULL, which databases sort differently. (The
    /// least BIGINT itself is no literal in SQLite.)
    fn expression(self) -> &'static str {
        match self {
            Self::CreatedAt => "i.created_at",
            Self::UpdatedAt => "i.updated_at",
            Self::Name => "i.name",
            Self::Status => "i.status",
            Self::ProtectedAt => "COALESCE(i.protected_at, -9223372036854775807)",
            Self::Id => "i.id",
        }
    }
}

/// Which way a list is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Least first.
    Asc,
    /// Greatest first.
    Desc,
}

impl Direction {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asc => "asc",
            Self::Desc => "desc",
        }
    }

    /// The direction with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Asc, Self::Desc].into_iter().find(|direction| direction.as_str() == word)
    }

    fn sql(self) -> &'static str {
        match self {
            Self::Asc => " ASC",
            Self::Desc => " DESC",
        }
    }

    /// How an entry compares with one that does not stand after it.
    fn not_before(self) -> &'static str {
        match self {
            Self::Asc => " >= ",
            Self::Desc => " <= ",
        }
    }

    /// How an entry compares with the one before it.
    fn after(self) -> &'static str {
        match self {
            Self::Asc => " > ",
            Self::Desc => " < ",
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemPage {
    /// Its entries.
    pub items: Vec<Item>,
    /// Whether entries follow.
    pub has_more: bool,
}

impl Store {
    /// One page of the items that match.
    ///
    /// # Errors
    /// [`StoreError::UnknownMarker`] when the marker never was an item of the project.
    pub async fn list_items(&self, filter: &ItemFilter, page: &PageRequest) -> Result<ItemPage> {
        let mut tx = self.read().await?;
        let sort = total_order(&page.sort);
        let mut builder = QueryBuilder::new("SELECT i.id FROM items i WHERE ");
        push_filter(&mut builder, filter);
        if let Some(marker) = &page.marker {
            let place = tx.place_of(filter.project.as_ref(), marker).await?;
            push_after(&mut builder, &sort, &place);
        }
        push_order(&mut builder, &sort);
        builder.push(" LIMIT ").push_bind(i64::from(page.limit) + 1);
        builder.push(" OFFSET ").push_bind(to_row(page.offset));
        let rows: Vec<(String,)> = tx.built_as(&mut builder).fetch_all(tx.conn()).await?;
        let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        let ids: Vec<String> = rows.into_iter().take(limit).map(|row| row.0).collect();
        Ok(ItemPage { items: tx.load_in_order(&ids).await?, has_more })
    }

    /// How many items match.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn count_items(&self, filter: &ItemFilter) -> Result<u64> {
        let mut tx = self.read().await?;
        let mut builder = QueryBuilder::new("SELECT COUNT(*) FROM items i WHERE ");
        push_filter(&mut builder, filter);
        let (count,): (i64,) = tx.built_as(&mut builder).fetch_one(tx.conn()).await?;
        u64::try_from(count).map_err(|_| StoreError::Corrupt("a negative count".to_owned()))
    }
}

/// A marker's values of everything a list can be sorted by.
#[derive(FromRow)]
struct Place {
    id: String,
    created_at: i64,
    updated_at: i64,
    name: String,
    status: String,
    protected_at: i64,
}

impl Tx<'_> {
    async fn place_of(&mut self, project: Option<&ProjectId>, marker: &ItemId) -> Result<Place> {
        let mut builder = QueryBuilder::new(format!(
            "SELECT i.id, i.created_at, i.updated_at, i.name, i.status, {} AS protected_at \
             FROM items i WHERE i.id = ",
            SortKey::ProtectedAt.expression()
        ));
        builder.push_bind(marker.as_str().to_owned());
        push_project(&mut builder, project);
        let place = self.built_as(&mut builder).fetch_optional(self.conn()).await?;
        place.ok_or(StoreError::UnknownMarker)
    }
}

impl Place {
    fn push_value(&self, builder: &mut QueryBuilder<Sqlite>, key: SortKey) {
        match key {
            SortKey::CreatedAt => builder.push_bind(self.created_at),
            SortKey::UpdatedAt => builder.push_bind(self.updated_at),
            SortKey::Name => builder.push_bind(self.name.clone()),
            SortKey::Status => builder.push_bind(self.status.clone()),
            SortKey::ProtectedAt => builder.push_bind(self.protected_at),
            SortKey::Id => builder.push_bind(self.id.clone()),
        };
    }
}

/// The order asked for, made total: each key once, the id last.
fn total_order(asked: &[(SortKey, Direction)]) -> Vec<(SortKey, Direction)> {
    let default = [(SortKey::CreatedAt, Direction::Desc)];
    let asked = if asked.is_empty() { default.as_slice() } else { asked };
    let mut order: Vec<(SortKey, Direction)> = Vec::new();
    for (key, direction) in asked {
        if order.iter().all(|(known, _)| known != key) {
            order.push((*key, *direction));
        }
    }
    let last = asked.last().map_or(Direction::Desc, |(_, direction)| *direction);
    if order.iter().all(|(key, _)| *key != SortKey::Id) {
        order.push((SortKey::Id, last));
    }
    order
}

fn push_order(builder: &mut QueryBuilder<Sqlite>, sort: &[(SortKey, Direction)]) {
    let mut separator = " ORDER BY ";
    for (key, direction) in sort {
        builder.push(separator).push(key.expression()).push(direction.sql());
        separator = ", ";
    }
}

/// What stands after the marker: equal in the first n keys and beyond it in the next. That
/// the first key is not before it follows, and lets an index begin at the marker.
fn push_after(builder: &mut QueryBuilder<Sqlite>, sort: &[(SortKey, Direction)], place: &Place) {
    if let Some((key, direction)) = sort.first() {
        builder.push(" AND ").push(key.expression()).push(direction.not_before());
        place.push_value(builder, *key);
    }
    let mut separator = " AND (";
    for (depth, (key, direction)) in sort.iter().enumerate() {
        builder.push(separator).push("(");
        for (equal, _) in sort.iter().take(depth) {
            builder.push(equal.expression()).push(" = ");
            place.push_value(builder, *equal);
            builder.push(" AND ");
        }
        builder.push(key.expression()).push(direction.after());
        place.push_value(builder, *key);
        builder.push(")");
        separator = " OR ";
    }
    builder.push(")");
}

fn push_filter(builder: &mut QueryBuilder<Sqlite>, filter: &ItemFilter) {
    builder.push("i.status <> 'deleted'");
    // A record or a server has few backups, a project may have many: what is computed has no
    // index.
    let is_of_few = filter.checkpoint_id.is_some() || filter.resource_id.is_some();
    match &filter.project {
        Some(project) if is_of_few => {
            builder.push(" AND i.project_id || '' = ").push_bind(project.as_str().to_owned());
        }
        project => push_project(builder, project.as_ref()),
    }
    if !can_match(filter) {
        builder.push(" AND 0 = 1");
    }
    let exact = [
        (" AND i.status = ", filter.status.map(|status| status.as_str().to_owned())),
        (" AND i.zone = ", filter.zone.as_deref().map(without_nul)),
        (" AND i.server_id = ", filter.resource_id.as_ref().map(ToString::to_string)),
        (" AND i.checkpoint_id = ", filter.checkpoint_id.as_ref().map(ToString::to_string)),
    ];
    for (condition, value) in exact {
        if let Some(value) = value {
            builder.push(condition).push_bind(value);
        }
    }
    push_contains(builder, " AND i.name_folded LIKE ", filter.name_contains.as_deref());
    let server_name = filter.resource_name_contains.as_deref();
    push_contains(builder, " AND i.server_name_folded LIKE ", server_name);
    if let Some(from) = filter.created_from {
        builder.push(" AND i.created_at >= ").push_bind(from.as_micros());
    }
    if let Some(to) = filter.created_to {
        builder.push(" AND i.created_at <= ").push_bind(to.as_micros());
    }
    if let Some(plan) = &filter.policy_id {
        builder.push(" AND i.checkpoint_id IN (SELECT c.id FROM checkpoints c WHERE c.plan_id = ");
        builder.push_bind(plan.clone()).push(")");
    }
    if let Some(ip) = filter.ip.as_deref().map(without_nul) {
        builder.push(" AND (i.private_ip = ").push_bind(ip.clone());
        builder.push(" OR i.public_ip = ").push_bind(ip).push(")");
    }
}

/// Whether the conditions that are the same for all items hold.
fn can_match(filter: &ItemFilter) -> bool {
    let types = &filter.resource_types;
    let types_match = types.is_empty() || types.iter().any(|name| name == SERVER_TYPE);
    types_match && filter.image_type.as_deref().is_none_or(|image| image == IMAGE_TYPE)
}

fn push_project(builder: &mut QueryBuilder<Sqlite>, project: Option<&ProjectId>) {
    if let Some(project) = project {
        builder.push(" AND i.project_id = ").push_bind(project.as_str().to_owned());
    }
}

fn push_contains(builder: &mut QueryBuilder<Sqlite>, condition: &str, needle: Option<&str>) {
    match needle.map(contains_pattern) {
        None => {}
        Some(Some(pattern)) => {
            builder.push(condition).push_bind(pattern).push(" ESCAPE '!'");
        }
        Some(None) => {
            builder.push(" AND 0 = 1");
        }
    }
}
