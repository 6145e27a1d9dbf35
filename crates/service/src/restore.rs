//! Admits a restore: the same plan as the check, then the record and the job in one
//! transaction.

use kedge_core::ids::{CheckpointId, PlanId, RestoreId};
use kedge_core::job::{Claim, ClaimKind, RestoreState, Work};
use kedge_core::precondition::Precondition;
use kedge_core::refusal::Refusal;
use kedge_core::restore::{self, Question, RestorePlan};
use kedge_store::{NewJob, StoreError};

pub use kedge_store::{PowerOn, Restore, RestoreStatus};

use crate::app::{App, Parts};
use crate::checks::at_most;
use crate::context::Context;
use crate::error::Error;
use crate::facts::Asker;
use crate::plans::require_unmoved;

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreRequest {
    /// The record the backup belongs to.
    pub checkpoint: CheckpointId,
    /// Which backup, where to, which disk to which.
    pub question: Question,
    /// Whether the server is to run afterwards.
    pub power_on: PowerOn,
    /// The plan this is, and no other.
    pub plan: Option<PlanId>,
}

/// Some of a list, and whether there is more.
#[derive(Clone, Debug)]
pub struct RestorePage {
    /// The entries, newest first.
    pub restores: Vec<Restore>,
    /// Whether entries follow.
    pub has_more: bool,
}

impl App {
    /// Starts a restore and returns its record; the work goes on in the background.
    pub async fn restore(
        &self,
        context: &Context,
        request: RestoreRequest,
    ) -> Result<Restore, Error> {
        let parts = &self.parts;
        let pairs = request.question.mapping.pairs().len();
        let field = "restore.parameters.targets.volumes";
        at_most(field, pairs, parts.settings.limits.mappings_max)?;
        let plan = parts.plan_restore(context, &request).await?;
        let (plan, preconditions) = plan;
        let (restore, job) = parts.restore_records(context, &request, &plan, preconditions);
        match parts.store.create_restore(&restore, &job).await {
            Ok(()) => {}
            // Somebody was quicker since the facts were gathered: the rules now say what
            // that means for this request.
            Err(StoreError::Claimed { .. } | StoreError::Illegal(_)) => {
                parts.plan_restore(context, &request).await?;
                return Err(Refusal::TargetHeld.into());
            }
            Err(StoreError::NotFound(_)) => {
                return Err(Refusal::ItemNotFound(request.question.item).into());
            }
            Err(error) => return Err(error.into()),
        }
        parts.work_bell.notify_one();
        Ok(restore)
    }

    /// One restore of the project.
    pub async fn get_restore(&self, context: &Context, id: &RestoreId) -> Result<Restore, Error> {
        let found = self.parts.store.find_restore(context.project(), id).await?;
        found.ok_or(Error::RestoreNotFound)
    }

    /// Restores of the project, newest first.
    pub async fn list_restores(
        &self,
        context: &Context,
        limit: u32,
        marker: Option<&RestoreId>,
    ) -> Result<RestorePage, Error> {
        match self.parts.store.list_restores(context.project(), limit, marker).await {
            Ok((restores, has_more)) => Ok(RestorePage { restores, has_more }),
            Err(StoreError::UnknownMarker) => {
                Err(Error::bad("marker", "the id of a restore of the list"))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Parts {
    async fn plan_restore(
        &self,
        context: &Context,
        request: &RestoreRequest,
    ) -> Result<(RestorePlan, Vec<Precondition>), Error> {
        let named = request.plan.as_ref();
        let planned = self.named_plan(context, named, &request.question).await?;
        let time = self.time_for_facts(context);
        let questions = std::slice::from_ref(&request.question);
        let asker = Asker::Request(context.demand);
        let facts = self.gather_restore(context.project(), questions, asker, time).await?;
        let facts = facts.first().ok_or_else(|| Error::Internal("no facts".to_owned()))?;
        let belongs =
            |item: &kedge_core::checkpoint::Item| item.checkpoint_id == request.checkpoint;
        if facts.item.seen().is_some_and(|item| !belongs(item)) {
            return Err(Refusal::ItemNotFound(request.question.item.clone()).into());
        }
        let plan = restore::plan(&request.question, facts);
        self.prove_what_lacks_evidence(context, std::slice::from_ref(&plan)).await;
        let plan = plan?;
        require_unmoved(&planned, &request.question, facts)?;
        Ok((plan, planned))
    }

    fn restore_records(
        &self,
        context: &Context,
        request: &RestoreRequest,
        plan: &RestorePlan,
        preconditions: Vec<Precondition>,
    ) -> (Restore, NewJob) {
        let now = self.clock.now();
        let restore = Restore {
            id: RestoreId::from(self.ids.next_uuid()),
            project_id: context.project().clone(),
            checkpoint_id: request.checkpoint.clone(),
            item_id: plan.item.clone(),
            server_id: plan.server.clone(),
            pairs: request.question.mapping.pairs().to_vec(),
            power_on: request.power_on,
            preconditions,
            status: RestoreStatus::InProgress,
            reason: String::new(),
            created_at: now,
            updated_at: now,
        };
        let mut claims = vec![
            Claim::exclusive(ClaimKind::Item, &plan.item),
            Claim::exclusive(ClaimKind::Server, &plan.server),
        ];
        let volumes = plan.writes.iter().map(|write| &write.volume);
        claims.extend(volumes.map(|volume| Claim::exclusive(ClaimKind::Volume, volume)));
        let job = NewJob {
            id: self.ids.next_uuid().into(),
            project_id: context.project().clone(),
            work: Work::Restore {
                restore: restore.id.clone(),
                item: plan.item.clone(),
                state: RestoreState::Start,
            },
            claims,
            run_at: now,
        };
        (restore, job)
    }
}
