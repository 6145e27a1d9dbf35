//! Listing, counting and showing backups.

use kedge_core::checkpoint::Item;
use kedge_core::ids::ItemId;
use kedge_core::refusal::Refusal;
use kedge_store::StoreError;

pub use kedge_store::{Direction, ItemFilter, ItemPage, PageRequest, SortKey};

use crate::app::App;
use crate::context::{Context, Right};
use crate::error::Error;

/// Which backups a caller wants to see.
#[derive(Clone, Debug)]
pub struct ItemQuery {
    /// What they must match; its project is set here, whatever the caller put there.
    pub filter: ItemFilter,
    /// Which of them.
    pub page: PageRequest,
    /// Of whose.
    pub scope: Scope,
}

/// Whose backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The caller's project's.
    Project,
    /// Everybody's, if the caller may cross projects; else the project's (docs/csbs-v1.md).
    AllTenants,
}

impl App {
    /// Backups that match, in the order asked for.
    pub async fn list_items(&self, context: &Context, query: ItemQuery) -> Result<ItemPage, Error> {
        let filter = scoped(context, &query);
        match self.parts.store.list_items(&filter, &query.page).await {
            Ok(page) => Ok(page),
            Err(StoreError::UnknownMarker) => {
                Err(Error::bad("marker", "the id of a backup of the list"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// How many backups match.
    pub async fn count_items(&self, context: &Context, query: ItemQuery) -> Result<u64, Error> {
        Ok(self.parts.store.count_items(&scoped(context, &query)).await?)
    }

    /// One backup of the project.
    pub async fn get_item(&self, context: &Context, id: &ItemId) -> Result<Item, Error> {
        let found = self.parts.store.find_item(context.project(), id).await?;
        found.ok_or_else(|| Refusal::ItemNotFound(id.clone()).into())
    }
}

fn scoped(context: &Context, query: &ItemQuery) -> ItemFilter {
    let project = match query.scope {
        Scope::AllTenants if context.may(Right::Admin) => None,
        Scope::AllTenants | Scope::Project => Some(context.project().clone()),
    };
    ItemFilter { project, ..query.filter.clone() }
}
