//! Admits deletions: of every backup of a record or of named ones, all or none.

use kedge_core::checkpoint::Item;
use kedge_core::ids::{CheckpointId, ItemId};
use kedge_core::job::{Claim, ClaimKind, DeleteState, Work};
use kedge_core::refusal::Refusal;
use kedge_core::status::{IllegalMove, ItemEvent};
use kedge_store::{NewJob, StoreError};

use crate::app::{App, Parts};
use crate::context::Context;
use crate::error::Error;

impl App {
    /// Starts deleting backups of a record: the named ones, or all.
    pub async fn delete(
        &self,
        context: &Context,
        checkpoint: &CheckpointId,
        named: Option<Vec<ItemId>>,
    ) -> Result<(), Error> {
        let parts = &self.parts;
        let found = parts.store.find_checkpoint(context.project(), checkpoint).await?;
        let items = found.map(|checkpoint| checkpoint.items).unwrap_or_default();
        let chosen = choose(checkpoint, items, named)?;
        if let Some(busy) =
            chosen.iter().find(|item| item.status.next(ItemEvent::DeleteAccepted).is_err())
        {
            return Err(Refusal::ItemExecuting(busy.status).into());
        }
        let jobs: Vec<_> = chosen.iter().map(|item| parts.delete_job(context, item)).collect();
        match parts.store.create_deletes(context.project(), checkpoint, &jobs).await {
            Ok(()) => {}
            Err(StoreError::Illegal(IllegalMove { from, .. })) => {
                return Err(Refusal::ItemExecuting(from).into());
            }
            Err(StoreError::Leased { item, plan, until }) => {
                return Err(Refusal::ItemLeased { item, plan, until }.into());
            }
            Err(StoreError::Claimed { .. }) => {
                let status = chosen.first().map(|item| item.status);
                return Err(match status {
                    Some(status) => Refusal::ItemExecuting(status).into(),
                    None => Error::Internal("a claim on nothing".to_owned()),
                });
            }
            Err(StoreError::NotFound(_)) => {
                return Err(Refusal::ItemNotFound(ItemId::asked(checkpoint.as_str())).into());
            }
            Err(error) => return Err(error.into()),
        }
        parts.work_bell.notify_one();
        Ok(())
    }
}

/// A record that is unknown, foreign or empty is answered as its own id not being found.
fn choose(
    checkpoint: &CheckpointId,
    items: Vec<Item>,
    named: Option<Vec<ItemId>>,
) -> Result<Vec<Item>, Refusal> {
    let not_found = |text: &str| Refusal::ItemNotFound(ItemId::asked(text));
    let Some(named) = named else {
        return if items.is_empty() { Err(not_found(checkpoint.as_str())) } else { Ok(items) };
    };
    if let Some(stranger) = named.iter().find(|id| items.iter().all(|item| item.id != **id)) {
        return Err(not_found(stranger.as_str()));
    }
    Ok(items.into_iter().filter(|item| named.contains(&item.id)).collect())
}

impl Parts {
    fn delete_job(&self, context: &Context, item: &Item) -> (ItemId, NewJob) {
        let job = NewJob {
            id: self.ids.next_uuid().into(),
            project_id: context.project().clone(),
            work: Work::Delete { item: item.id.clone(), state: DeleteState::Start },
            claims: vec![Claim::exclusive(ClaimKind::Item, &item.id)],
            run_at: self.clock.now(),
        };
        (item.id.clone(), job)
    }
}
