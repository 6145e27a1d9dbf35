//! Plans that explained answers name: a restore may name one and is then that restore or
//! none, and one may keep its backup from being deleted for a while.

use std::time::Duration;

use kedge_core::ids::PlanId;
use kedge_core::precondition::{Precondition, moved, preconditions};
use kedge_core::refusal::Refusal;
use kedge_core::restore::{Facts, Question};
use kedge_store::StoreError;

pub use kedge_store::KeptPlan;

use crate::app::{App, Parts};
use crate::context::{Context, Right};
use crate::error::Error;

impl App {
    /// A plan of the project.
    pub async fn get_plan(&self, context: &Context, id: &PlanId) -> Result<KeptPlan, Error> {
        let found = self.parts.store.find_plan(context.project(), id).await?;
        found.ok_or(Error::PlanNotFound)
    }

    /// The plans of the project that hold a lease.
    pub async fn list_leases(&self, context: &Context) -> Result<Vec<KeptPlan>, Error> {
        let parts = &self.parts;
        Ok(parts.store.list_leases(context.project(), parts.clock.now()).await?)
    }

    /// Has a plan keep its backup from being deleted for so long from now on.
    pub async fn take_lease(
        &self,
        context: &Context,
        id: &PlanId,
        length: Duration,
    ) -> Result<KeptPlan, Error> {
        let parts = &self.parts;
        let limits = &parts.settings.limits;
        if length.is_zero() || length > limits.lease_time_max {
            let most = limits.lease_time_max.as_secs();
            return Err(Error::bad("lease.seconds", format!("1 to {most}")));
        }
        let now = parts.clock.now();
        let taken = parts
            .store
            .take_lease(context.project(), id, now.plus(length), now, limits.leases_max)
            .await;
        match taken {
            Ok(()) => self.get_plan(context, id).await,
            Err(StoreError::NotFound(_)) => Err(Error::PlanNotFound),
            Err(StoreError::TooMany { most, .. }) => Err(Refusal::TooManyLeases(most).into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a plan's lease: whoever took it, or an administrator in the project's name.
    pub async fn end_lease(&self, context: &Context, id: &PlanId) -> Result<(), Error> {
        match self.parts.store.end_lease(context.project(), id).await {
            Ok(()) => {
                tracing::info!(plan.id = %id, "the lease of plan {id} was ended");
                Ok(())
            }
            Err(StoreError::NotFound(_)) => Err(Error::PlanNotFound),
            Err(error) => Err(error.into()),
        }
    }
}

impl Parts {
    /// Keeps the plans of questions that were answered with yes, for callers who may carry
    /// them out. Without a catalogue to keep them in there are answers, and no plans to name.
    pub(crate) async fn keep_plans<'a>(
        &self,
        context: &Context,
        asked: impl Iterator<Item = Option<(&'a Question, &'a Facts)>>,
    ) -> Vec<Option<PlanId>> {
        let now = self.clock.now();
        let kept = |(question, facts): (&Question, &Facts)| KeptPlan {
            id: PlanId::from(self.ids.next_uuid()),
            project_id: context.project().clone(),
            question: question.clone(),
            preconditions: preconditions(question, facts),
            created_at: now,
            lease_until: None,
        };
        let may = context.may(Right::Write);
        let plans: Vec<Option<KeptPlan>> =
            asked.map(|asked| asked.filter(|_| may).map(kept)).collect();
        let all: Vec<KeptPlan> = plans.iter().flatten().cloned().collect();
        match self.store.keep_plans(context.project(), &all).await {
            Ok(()) => plans.into_iter().map(|plan| plan.map(|plan| plan.id)).collect(),
            Err(error) => {
                tracing::warn!("plans are not kept: {error}");
                plans.into_iter().map(|_| None).collect()
            }
        }
    }

    /// What a restore that names a plan must find as it was: nothing where it names none.
    ///
    /// # Errors
    /// There is no such plan, or it is one for another question.
    pub(crate) async fn named_plan(
        &self,
        context: &Context,
        named: Option<&PlanId>,
        question: &Question,
    ) -> Result<Vec<Precondition>, Error> {
        let Some(id) = named else { return Ok(Vec::new()) };
        let plan = self.store.find_plan(context.project(), id).await?;
        let plan = plan.ok_or(Error::PlanNotFound)?;
        if !is_same(&plan.question, question) {
            let expected = "the plan of this very backup, target and mapping";
            return Err(Error::bad("restore.parameters.plan_id", expected));
        }
        Ok(plan.preconditions)
    }
}

/// Whether two questions ask for the same; the order of a mapping means nothing.
fn is_same(one: &Question, other: &Question) -> bool {
    let (mine, theirs) = (one.mapping.pairs(), other.mapping.pairs());
    let is_of_one_kind = (&one.item, &one.server, &one.resource_type)
        == (&other.item, &other.server, &other.resource_type);
    // No mapping names anything twice.
    is_of_one_kind && mine.len() == theirs.len() && mine.iter().all(|pair| theirs.contains(pair))
}

/// Fails, with the exact difference, if anything is not as it was.
pub(crate) fn require_unmoved(
    then: &[Precondition],
    question: &Question,
    facts: &Facts,
) -> Result<(), Refusal> {
    let moved = moved(then, &preconditions(question, facts));
    if moved.is_empty() { Ok(()) } else { Err(Refusal::PlanMoved(moved)) }
}
