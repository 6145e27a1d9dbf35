//! Listing, counting and showing backups.

use axum::Json;
use axum::extract::State;
use kedge_core::ids::ItemId;
use kedge_service::context::Right;
use kedge_wire::checkpoint_item::{CheckpointItemBody, CheckpointItemList, Count};

use crate::call::Call;
use crate::convert;
use crate::routes::{Answer, Api};

/// Filters of the list and the count. Of the document only: what is read, the module
/// `query` reads.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "fields are for the OpenAPI document")]
pub(crate) struct Filters {
    /// One of the published words.
    #[param(example = "available")]
    status: Option<String>,
    /// Part of the backup's name.
    #[param(max_length = 255)]
    name: Option<String>,
    /// The server's availability zone.
    #[param(max_length = 255)]
    az: Option<String>,
    /// The server.
    #[param(max_length = 255)]
    resource_id: Option<String>,
    /// Part of the server's name.
    #[param(max_length = 255)]
    resource_name: Option<String>,
    /// Type of the server; may be repeated, any of them matches.
    resource_type: Option<String>,
    /// Made at this time or later, UTC: `2026-03-07T09:27:40.928000`.
    start_time: Option<String>,
    /// Made at this time or earlier.
    end_time: Option<String>,
    /// `backup`.
    #[param(max_length = 255)]
    image_type: Option<String>,
    /// The policy that made it.
    #[param(max_length = 255)]
    policy_id: Option<String>,
    /// The record it belongs to.
    #[param(max_length = 255)]
    checkpoint_id: Option<String>,
    /// An address of the server.
    #[param(max_length = 255)]
    ip: Option<String>,
    /// On dedicated storage, of which there is none.
    dec: Option<bool>,
    /// Every project's, for administrators; ignored from others.
    all_tenants: Option<bool>,
}

/// Which part of a list.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "fields are for the OpenAPI document")]
pub(crate) struct Pages {
    /// Entries of a page; more than 1000 are 1000.
    #[param(minimum = 1)]
    limit: Option<u64>,
    /// Entries to skip.
    #[param(minimum = 0)]
    offset: Option<u64>,
    /// The last entry of the page before.
    #[param(max_length = 255)]
    marker: Option<String>,
    /// `key[:asc|:desc]`, separated by commas; `created_at:desc` when absent.
    #[param(max_length = 255)]
    sort: Option<String>,
}

/// Lists backups.
#[utoipa::path(
    get, path = "/v1/{project_id}/checkpoint_items", operation_id = "list_checkpoint_items", tag = "backups",
    responses((status = 200, description = "One page", body = CheckpointItemList)),
    params(("project_id" = String, Path, description = "The project"), Filters, Pages),
)]
pub(crate) async fn list(State(api): State<Api>, call: Call) -> Answer<CheckpointItemList> {
    let context = call.enter(&api, Right::Read).await?;
    let query = call.query()?;
    let page = api.app.list_items(&context, query.items()?).await?;
    let next = match page.items.last().filter(|_| page.has_more) {
        Some(last) => Some(call.link(&api, &query.after(last.id.as_str()))?),
        None => None,
    };
    Ok(Json(CheckpointItemList {
        checkpoint_items: page.items.iter().map(convert::item).collect(),
        checkpoint_items_links: next.map(convert::next_link),
    }))
}

/// Counts backups.
#[utoipa::path(
    get, path = "/v1/{project_id}/checkpoint_items/count", operation_id = "count_checkpoint_items", tag = "backups",
    responses((status = 200, description = "How many match", body = Count)),
    params(("project_id" = String, Path, description = "The project"), Filters),
)]
pub(crate) async fn count(State(api): State<Api>, call: Call) -> Answer<Count> {
    let context = call.enter(&api, Right::Read).await?;
    let query = call.query()?.count()?;
    Ok(Json(Count { count: api.app.count_items(&context, query).await? }))
}

/// Shows a backup.
#[utoipa::path(
    get, path = "/v1/{project_id}/checkpoint_items/{checkpoint_item_id}", operation_id = "show_checkpoint_item", tag = "backups",
    responses((status = 200, description = "The backup", body = CheckpointItemBody)),
    params(
        ("project_id" = String, Path, description = "The project"),
        ("checkpoint_item_id" = String, Path, description = "The backup"),
    ),
)]
pub(crate) async fn show(State(api): State<Api>, call: Call) -> Answer<CheckpointItemBody> {
    let context = call.enter(&api, Right::Read).await?;
    let id = ItemId::asked(&call.param("checkpoint_item_id")?);
    let item = api.app.get_item(&context, &id).await?;
    Ok(Json(CheckpointItemBody { checkpoint_item: convert::item(&item) }))
}
