//! The two checks: gather, plan, answer. They start nothing and change nothing.

use std::time::Duration;

use kedge_core::evidence::{Demand, Grade};
use kedge_core::ids::{ItemId, ProjectId};
use kedge_core::proof::{Haste, ProofKind};
use kedge_core::protect;
use kedge_core::refusal::Refusal;
use kedge_core::restore;
use kedge_store::StoreError;

use crate::app::{App, Parts};
use crate::context::Context;
use crate::error::Error;
use crate::facts::{Asker, distinct};

impl App {
    /// Can these servers be backed up? One answer per question, in their order.
    pub async fn check_protectable(
        &self,
        context: &Context,
        questions: Vec<protect::Question>,
    ) -> Result<Vec<Result<(), Refusal>>, Error> {
        let parts = &self.parts;
        let facts = parts.facts_for_protect_check(context, &questions).await?;
        let settings = &parts.settings.protect;
        let answers = questions.iter().zip(&facts);
        Ok(answers.map(|(q, f)| protect::plan(q, f, settings).map(drop)).collect())
    }

    /// Can these backups be restored to these targets? One answer per question, in their
    /// order.
    pub async fn check_restorable(
        &self,
        context: &Context,
        questions: Vec<restore::Question>,
    ) -> Result<Vec<Result<(), Refusal>>, Error> {
        let facts = self.parts.facts_for_check(context, &questions).await?;
        let answers = questions.iter().zip(&facts);
        let answers: Vec<_> = answers.map(|(q, f)| restore::plan(q, f).map(drop)).collect();
        self.parts.prove_what_lacks_evidence(context, &answers).await;
        Ok(answers)
    }
}

impl Parts {
    pub(crate) async fn facts_for_protect_check(
        &self,
        context: &Context,
        questions: &[protect::Question],
    ) -> Result<Vec<protect::Facts>, Error> {
        at_most("check_protectable", questions.len(), self.settings.limits.questions_max)?;
        let time = self.time_for_facts(context);
        let asker = Asker::Request(None);
        Ok(self.gather_protect(context.project(), questions, asker, time).await?)
    }

    pub(crate) async fn facts_for_check(
        &self,
        context: &Context,
        questions: &[restore::Question],
    ) -> Result<Vec<restore::Facts>, Error> {
        at_most("check_restorable", questions.len(), self.settings.limits.questions_max)?;
        for (index, question) in questions.iter().enumerate() {
            let field = format!("check_restorable[{index}].target.volumes");
            at_most(&field, question.mapping.pairs().len(), self.settings.limits.mappings_max)?;
        }
        let time = self.time_for_facts(context);
        let asker = Asker::Request(context.demand);
        Ok(self.gather_restore(context.project(), questions, asker, time).await?)
    }
}

impl Parts {
    /// Where only evidence is missing, it is looked for: each such backup is put into the
    /// queue once. That it cannot be is no reason to withhold the answer.
    pub(crate) async fn prove_what_lacks_evidence<Plan>(
        &self,
        context: &Context,
        answers: &[Result<Plan, Refusal>],
    ) {
        let Some(demand) = context.demand else { return };
        let lacking = answers.iter().filter_map(|answer| match answer {
            Err(Refusal::EvidenceTooWeak { item, .. }) => Some(item),
            _ => None,
        });
        let items = distinct(lacking);
        if items.is_empty() {
            return;
        }
        if let Err(error) = self.enqueue_due(context.project(), items, proof_for(&demand)).await {
            tracing::warn!("backups are not put into the queue: {error}");
        }
    }

    /// Not those that this was tried on lately: what came of it will not be another so soon.
    async fn enqueue_due(
        &self,
        project: &ProjectId,
        mut items: Vec<ItemId>,
        kind: ProofKind,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let lately = now.minus(TRIED_LATELY);
        let tried = self.store.proved_since(&items, kind, lately, now).await?;
        items.retain(|item| !tried.contains(item));
        self.enqueue_proofs(project, &items, kind, Haste::Due).await.map(drop)
    }
}

/// So soon a proof is not tried again because its evidence is lacking still.
const TRIED_LATELY: Duration = Duration::from_secs(60 * 60);

/// How far a proof must go to meet a demand.
pub(crate) fn proof_for(demand: &Demand) -> ProofKind {
    match demand.grade {
        Grade::Drilled => ProofKind::Drill,
        Grade::Read | Grade::Present | Grade::Recorded => ProofKind::Read,
    }
}

/// A list the caller may make only so long.
pub(crate) fn at_most(field: &str, count: usize, max: usize) -> Result<(), Error> {
    if count <= max {
        return Ok(());
    }
    Err(Error::bad(field, format!("at most {max} entries")))
}
