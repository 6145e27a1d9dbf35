//! The two checks: gather, plan, answer. They start nothing and change nothing.

use kedge_core::evidence::{Demand, Grade};
use kedge_core::proof::ProofKind;
use kedge_core::protect;
use kedge_core::refusal::Refusal;
use kedge_core::restore;

use crate::app::{App, Parts};
use crate::context::Context;
use crate::error::Error;
use crate::facts::Asker;

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
        for answer in answers {
            let Err(Refusal::EvidenceTooWeak { item, demand, .. }) = answer else { continue };
            let kind = proof_for(demand);
            if let Err(error) = self.enqueue_proof(context.project(), item, kind).await {
                tracing::warn!(item.id = %item, "backup {item} is not put into the queue: {error}");
            }
        }
    }
}

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
