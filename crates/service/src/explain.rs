//! Explains verdicts: the same facts, and beside them what else the caller could do.
//!
//! More is fetched than for a verdict: other backups of the same server, the server that
//! was backed up, the jobs that hold things. It is fetched for refused questions only, for
//! a bounded number of them, and where it cannot be had the explanation goes without.

use std::collections::HashMap;
use std::time::Duration;

use kedge_core::checkpoint::Item;
use kedge_core::explain::{self, Explanation, Outlook, Subject};
use kedge_core::fit::{Fitting, fit};
use kedge_core::ids::{ItemId, JobId, ProjectId, ServerId, VolumeId};
use kedge_core::job::ClaimKind;
use kedge_core::protect;
use kedge_core::refusal::Refusal;
use kedge_core::restore::{self, Facts, Mapping, Question, RestorePlan};
use kedge_core::status::ItemStatus;
use kedge_core::time::Timestamp;

use crate::app::{App, Parts};
use crate::context::Context;
use crate::error::Error;
use crate::facts::Asker;
use crate::pace::Estimate;

/// Other backups of a server that are looked at for one refused question.
const OTHER_ITEMS_MAX: u32 = 3;
/// Questions that are asked in place of refused ones, for a whole request.
const OTHERS_MAX: usize = 64;

/// An explained verdict.
#[derive(Clone, Debug)]
pub struct Explained<Plan> {
    /// The verdict and its reasons.
    pub explanation: Explanation<Plan>,
    /// About how long the plan takes; none without a plan or for a backup.
    pub estimate: Option<Estimate>,
    /// When it was given: ages of facts count from here.
    pub at: Timestamp,
}

impl App {
    /// As [`App::check_restorable`], with reasons and repairs.
    pub async fn explain_restorable(
        &self,
        context: &Context,
        questions: Vec<Question>,
    ) -> Result<Vec<Explained<RestorePlan>>, Error> {
        let parts = &self.parts;
        let facts = parts.facts_for_check(context, &questions).await?;
        let outlooks = parts.look_out(context, &questions, &facts).await?;
        let at = parts.clock.now();
        let explained = |((question, facts), outlook)| {
            let explanation = explain::explain_restore(question, facts, outlook);
            let plan = explanation.verdict.as_ref().ok();
            let bytes = plan.map(|plan| plan.writes.iter().map(|write| write.data_bytes).sum());
            let estimate = bytes.map(|bytes| parts.pace.estimate(bytes));
            Explained { explanation, estimate, at }
        };
        Ok(questions.iter().zip(&facts).zip(&outlooks).map(explained).collect())
    }

    /// As [`App::check_protectable`], with reasons and repairs.
    pub async fn explain_protectable(
        &self,
        context: &Context,
        questions: Vec<protect::Question>,
    ) -> Result<Vec<Explained<protect::ProtectPlan>>, Error> {
        let parts = &self.parts;
        let facts = parts.facts_for_protect_check(context, &questions).await?;
        let servers: Vec<_> = questions
            .iter()
            .zip(&facts)
            .filter(|(_, facts)| facts.server.seen().is_some() && facts.held.is_some())
            .map(|(question, _)| question.server.clone())
            .collect();
        let jobs = parts.jobs_at(context.project(), &servers, &[]).await?;
        let outlook = Outlook { jobs, others: Vec::new() };
        let at = parts.clock.now();
        let settings = &parts.settings.protect;
        let explained = |(question, facts)| Explained {
            explanation: explain::explain_protect(question, facts, settings, &outlook),
            estimate: None,
            at,
        };
        Ok(questions.iter().zip(&facts).map(explained).collect())
    }
}

impl Parts {
    /// What refused questions could be mended with, one for each question.
    async fn look_out(
        &self,
        context: &Context,
        questions: &[Question],
        facts: &[Facts],
    ) -> Result<Vec<Outlook>, Error> {
        let refused: Vec<_> = questions
            .iter()
            .zip(facts)
            .enumerate()
            .filter(|(_, (question, facts))| restore::plan(question, facts).is_err())
            .collect();
        let mut outlooks = vec![Outlook::default(); questions.len()];
        let mut others: Vec<(usize, Question)> = Vec::new();
        let time = self.time_for_facts(context);
        for (at, (question, facts)) in refused {
            outlooks[at].jobs = self.jobs_for(context.project(), question, facts).await?;
            if others.len() < OTHERS_MAX {
                let found = self.other_questions(context.project(), question, facts, time).await?;
                others.extend(found.into_iter().map(|other| (at, other)));
            }
        }
        let asked: Vec<_> = others.iter().map(|(_, question)| question.clone()).collect();
        if !asked.is_empty() {
            let time = self.time_for_facts(context);
            let seen = self.gather_restore(context.project(), &asked, Asker::Request, time).await?;
            for ((at, question), facts) in others.into_iter().zip(seen) {
                outlooks[at].others.push((question, facts));
            }
        }
        Ok(outlooks)
    }

    /// Other backups of the same server to the same target, and this backup to the server
    /// it was made of, where a mapping for it can be found.
    async fn other_questions(
        &self,
        project: &ProjectId,
        question: &Question,
        facts: &Facts,
        time: Duration,
    ) -> Result<Vec<Question>, Error> {
        let refusals = restore::violations(question, facts);
        let item = facts.item.seen();
        let mut others = Vec::new();
        if let Some(target) = facts.target.seen()
            && refusals.iter().any(|(_, refusal)| concerns_item(refusal))
        {
            let source = item.map_or(&question.server, |item| &item.source.id);
            let items = self.store.latest_available_items(project, source, OTHER_ITEMS_MAX).await?;
            for other in items.iter().filter(|other| other.id != question.item) {
                let held = &facts.held_volumes;
                let fitting = fit(other, target, held, &Mapping::default());
                if fitting.is_whole() {
                    let (item, mapping) = (other.id.clone(), fitting.mapping);
                    others.push(Question { item, mapping, ..question.clone() });
                }
            }
        }
        if let Some(item) = item.filter(|item| item.source.id != question.server)
            && refusals.iter().any(|(_, refusal)| concerns_server(refusal))
        {
            let source = item.source.id.clone();
            let found = self.server_fact(project, &source, time).await;
            let fitting = found.seen().map(|server| fit(item, server, &[], &Mapping::default()));
            if let Some(fitting) = fitting.filter(Fitting::is_whole) {
                let mapping = fitting.mapping;
                others.push(Question { server: source, mapping, ..question.clone() });
            }
        }
        Ok(others)
    }

    async fn jobs_for(
        &self,
        project: &ProjectId,
        question: &Question,
        facts: &Facts,
    ) -> Result<Vec<(Subject, JobId, Option<u64>)>, Error> {
        let mut jobs = Vec::new();
        if let Some(item) = facts.item.seen()
            && item.status == ItemStatus::Protecting
        {
            let left = seconds_left(item, self.clock.now());
            jobs.push((Subject::Item(item.id.clone()), item.job_id.clone(), left));
        }
        if let Some(target) = facts.target.seen() {
            let held = |id: &VolumeId| facts.held_volumes.contains(id);
            let volumes = target.volumes.iter().map(|volume| volume.id.clone());
            let volumes: Vec<_> = volumes.filter(held).collect();
            let servers: Vec<_> = facts.held.map(|_| question.server.clone()).into_iter().collect();
            jobs.extend(self.jobs_at(project, &servers, &volumes).await?);
        }
        Ok(jobs)
    }

    /// The project's jobs that hold these, and about how long each still takes.
    async fn jobs_at(
        &self,
        project: &ProjectId,
        servers: &[ServerId],
        volumes: &[VolumeId],
    ) -> Result<Vec<(Subject, JobId, Option<u64>)>, Error> {
        if servers.is_empty() && volumes.is_empty() {
            return Ok(Vec::new());
        }
        let holders = self.store.holders(servers, volumes, None).await?;
        let servers =
            servers.iter().map(|id| (ClaimKind::Server, id.as_str(), Subject::Server(id.clone())));
        let volumes =
            volumes.iter().map(|id| (ClaimKind::Volume, id.as_str(), Subject::Volume(id.clone())));
        let held: Vec<_> = servers
            .chain(volumes)
            .filter_map(|(kind, id, subject)| {
                let (job, item) = holders.job(kind, id).zip(holders.item(kind, id))?;
                Some((subject, job.clone(), item.clone()))
            })
            .collect();
        let ids: Vec<ItemId> = held.iter().map(|(.., item)| item.clone()).collect();
        // A job whose item is not the project's is nobody's business here.
        let items = self.store.find_items(project, &ids).await?;
        let items: HashMap<_, _> = items.into_iter().map(|item| (item.id.clone(), item)).collect();
        let now = self.clock.now();
        let known = held.into_iter().filter_map(|(subject, job, item)| {
            Some((subject, job, seconds_left(items.get(&item)?, now)))
        });
        Ok(known.collect())
    }
}

/// Whether another backup might not be refused so.
fn concerns_item(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::ItemNotFound(_)
            | Refusal::ItemNotAvailable(_)
            | Refusal::SnapshotMissing(_)
            | Refusal::DataDamaged(_)
    )
}

/// Whether another target might not be refused so.
fn concerns_server(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::ServerNotFound(_)
            | Refusal::ServerTerminated(_)
            | Refusal::KindNotRestorable(_)
            | Refusal::KindMismatch { .. }
            | Refusal::ZoneMismatch(..)
    )
}

/// By what was done since it began; nothing where too little was.
fn seconds_left(item: &Item, now: Timestamp) -> Option<u64> {
    let began = match item.status {
        ItemStatus::Protecting => item.created_at,
        ItemStatus::Restoring => item.updated_at,
        _ => return None,
    };
    left(u64::from(item.progress), now.since(began))
}

fn left(percent_done: u64, elapsed: Duration) -> Option<u64> {
    let is_told = (1..100).contains(&percent_done);
    is_told.then(|| (elapsed.as_secs() * (100 - percent_done)).div_ceil(percent_done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_by_what_was_done() {
        for (percent, seconds) in [(0, None), (25, Some(90)), (99, Some(1)), (100, None)] {
            assert_eq!(left(percent, Duration::from_secs(30)), seconds, "{percent}");
        }
    }
}
