//! Explains verdicts: the same facts, and beside them what else the caller could do.
//!
//! More is fetched than for a verdict: other backups of the same server, the server that
//! was backed up, the jobs that hold things. It is fetched for refused questions only, for
//! a bounded number of them, and where it cannot be had the explanation goes without.

use std::collections::HashMap;
use std::time::Duration;

use kedge_core::checkpoint::Item;
use kedge_core::evidence::Evidence;
use kedge_core::explain::{self, Explanation, Outlook, Subject};
use kedge_core::fit::fit;
use kedge_core::ids::{ItemId, JobId, PlanId, ProjectId, ServerId, VolumeId};
use kedge_core::job::ClaimKind;
use kedge_core::protect;
use kedge_core::refusal::Refusal;
use kedge_core::restore::{self, Facts, Mapping, Question, RestorePlan};
use kedge_core::status::ItemStatus;
use kedge_core::time::Timestamp;
use kedge_store::StoreError;

use crate::app::{App, Parts};
use crate::checks::proof_for;
use crate::context::Context;
use crate::error::Error;
use crate::facts::{Asker, distinct};
use crate::pace::Estimate;

/// Other backups of a server that are looked at for one refused question.
pub(crate) const OTHER_ITEMS_MAX: u32 = 3;
/// Servers whose backups, or that themselves, are looked up for a whole request.
const SOURCES_MAX: usize = 16;
/// Questions that are asked in place of refused ones, for a whole request.
const OTHERS_MAX: usize = 64;

/// An explained verdict.
#[derive(Clone, Debug)]
pub struct Explained<Plan> {
    /// The verdict and its reasons.
    pub explanation: Explanation<Plan>,
    /// About how long the plan takes; none without a plan or for a backup.
    pub estimate: Option<Estimate>,
    /// What is known of the backup's bytes, of a backup that was seen.
    pub evidence: Option<Evidence>,
    /// The plan's name, for callers who may carry it out.
    pub plan: Option<PlanId>,
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
        let facts = self.parts.facts_for_check(context, &questions).await?;
        self.explain_seen(context, &questions, facts).await
    }

    /// The same, of facts that were gathered already.
    pub(crate) async fn explain_seen(
        &self,
        context: &Context,
        questions: &[Question],
        mut facts: Vec<Facts>,
    ) -> Result<Vec<Explained<RestorePlan>>, Error> {
        let parts = &self.parts;
        let outlooks = parts.look_out(context, questions, &mut facts).await;
        let seen = parts.store.find_seen(context.project()).await?;
        let ids = distinct(questions.iter().map(|question| &question.item));
        let proven = parts.store.find_proven(context.project(), &ids).await?;
        let (at, project) = (parts.clock.now(), context.project());
        let explained = |((question, facts), outlook)| {
            let explanation = explain::explain_restore(question, facts, outlook);
            let plan = explanation.verdict.as_ref().ok();
            let bytes = plan.map(|plan| plan.writes.iter().map(|write| write.data_bytes).sum());
            let estimate = bytes.map(|bytes| parts.restore_pace.estimate(project, bytes));
            let evidence = facts.item.seen().map(|item| {
                let proven = proven.get(&item.id).copied().unwrap_or_default();
                seen.evidence(item.sequence, &proven)
            });
            Explained { explanation, estimate, evidence, plan: None, at }
        };
        let mut explained: Vec<_> =
            questions.iter().zip(&facts).zip(&outlooks).map(explained).collect();
        let yes = explained.iter().zip(questions.iter().zip(&facts));
        let yes = yes.map(|(one, asked)| one.explanation.verdict.is_ok().then_some(asked));
        let plans = parts.keep_plans(context, yes.collect::<Vec<_>>().into_iter()).await;
        explained.iter_mut().zip(plans).for_each(|(one, plan)| one.plan = plan);
        let answers = explained.iter().map(|one| one.explanation.verdict.as_ref().map(|_| ()));
        let answers: Vec<_> = answers.map(|answer| answer.map_err(Refusal::clone)).collect();
        parts.prove_what_lacks_evidence(context, &answers).await;
        Ok(explained)
    }

    /// As [`App::check_protectable`], with reasons and repairs.
    pub async fn explain_protectable(
        &self,
        context: &Context,
        questions: Vec<protect::Question>,
    ) -> Result<Vec<Explained<protect::ProtectPlan>>, Error> {
        let parts = &self.parts;
        let facts = parts.facts_for_protect_check(context, &questions).await?;
        let seen = facts.iter().filter_map(|facts| facts.server.seen());
        let servers: Vec<_> = seen.map(|server| server.id.clone()).collect();
        let jobs = parts.jobs_at(context.project(), &[], &servers, &[]).await;
        let jobs = jobs.unwrap_or_else(|error| {
            tracing::warn!("jobs are left out of explanations: {error}");
            Vec::new()
        });
        let outlook = Outlook { jobs, ..Outlook::default() };
        let at = parts.clock.now();
        let settings = &parts.settings.protect;
        let explained = |(question, facts)| Explained {
            explanation: explain::explain_protect(question, facts, settings, &outlook),
            estimate: None,
            evidence: None,
            plan: None,
            at,
        };
        Ok(questions.iter().zip(&facts).map(explained).collect())
    }
}

type Job = (Subject, JobId, Option<u64>);

impl Parts {
    /// What refused questions could be mended with, one for each question; and facts with
    /// every disk of a refused target that is held, for a mapping may name any of them.
    /// Goes without what cannot be had.
    async fn look_out(
        &self,
        context: &Context,
        questions: &[Question],
        facts: &mut [Facts],
    ) -> Vec<Outlook> {
        let refused: Vec<usize> = (0..questions.len())
            .filter(|at| restore::plan(&questions[*at], &facts[*at]).is_err())
            .collect();
        let mut outlooks = vec![Outlook::default(); questions.len()];
        let jobs = self.find_jobs(context.project(), &refused, facts).await;
        let jobs = jobs.unwrap_or_else(|error| {
            tracing::warn!("jobs are left out of explanations: {error}");
            Vec::new()
        });
        for at in &refused {
            outlooks[*at].jobs.clone_from(&jobs);
            let wanted = facts[*at].item.seen().zip(facts[*at].weighed);
            outlooks[*at].proof_secs =
                wanted.map(|(item, weighed)| self.estimate_proof(item, proof_for(&weighed.demand)));
            facts[*at].held_volumes.extend(jobs.iter().filter_map(|(subject, ..)| match subject {
                Subject::Volume(id) => Some(id.clone()),
                _ => None,
            }));
        }
        match self.ask_others(context, questions, &refused, facts).await {
            Ok(others) => {
                for (at, question, facts) in others {
                    outlooks[at].others.push((question, facts));
                }
            }
            Err(error) => tracing::warn!("other backups are left out of explanations: {error}"),
        }
        outlooks
    }

    /// The project's jobs at the backups and targets of refused questions, and about how
    /// long each still takes.
    async fn find_jobs(
        &self,
        project: &ProjectId,
        refused: &[usize],
        facts: &[Facts],
    ) -> Result<Vec<Job>, StoreError> {
        let mut items = Vec::new();
        let (mut servers, mut volumes) = (Vec::new(), Vec::new());
        for facts in refused.iter().map(|at| &facts[*at]) {
            items.extend(facts.item.seen().map(|item| item.id.clone()));
            if let Some(target) = facts.target.seen() {
                servers.push(target.id.clone());
                volumes.extend(target.volumes.iter().map(|volume| volume.id.clone()));
            }
        }
        let mut jobs = self.jobs_at(project, &items, &servers, &volumes).await?;
        // A backup being made claims its server alone; it names its job itself.
        let now = self.clock.now();
        let items = refused.iter().filter_map(|at| facts[*at].item.seen());
        jobs.extend(items.filter(|item| item.status == ItemStatus::Protecting).map(|item| {
            (Subject::Item(item.id.clone()), item.job_id.clone(), seconds_left(item, now))
        }));
        Ok(jobs)
    }

    async fn jobs_at(
        &self,
        project: &ProjectId,
        items: &[ItemId],
        servers: &[ServerId],
        volumes: &[VolumeId],
    ) -> Result<Vec<Job>, StoreError> {
        let items = distinct(items.iter());
        let (servers, volumes) = (distinct(servers.iter()), distinct(volumes.iter()));
        let holders = self.store.holders(&servers, &volumes, None).await?;
        let of_items = self.store.item_holders(&items).await?;
        let item = |id: &ItemId| {
            let held = of_items.job(ClaimKind::Item, id.as_str())?;
            Some((Subject::Item(id.clone()), held.clone(), id.clone()))
        };
        let server = |id: &ServerId| {
            let key = (ClaimKind::Server, id.as_str());
            let (job, item) = holders.job(key.0, key.1).zip(holders.item(key.0, key.1))?;
            Some((Subject::Server(id.clone()), job.clone(), item.clone()))
        };
        let volume = |id: &VolumeId| {
            let key = (ClaimKind::Volume, id.as_str());
            let (job, item) = holders.job(key.0, key.1).zip(holders.item(key.0, key.1))?;
            Some((Subject::Volume(id.clone()), job.clone(), item.clone()))
        };
        let mut held: Vec<_> = items.iter().filter_map(item).collect();
        held.extend(servers.iter().filter_map(server));
        held.extend(volumes.iter().filter_map(volume));
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

    /// Asks about other backups of the same server, and about the server that was backed
    /// up, in place of refused questions. The first numbers say of which.
    async fn ask_others(
        &self,
        context: &Context,
        questions: &[Question],
        refused: &[usize],
        facts: &[Facts],
    ) -> Result<Vec<(usize, Question, Facts)>, StoreError> {
        let project = context.project();
        let concerns = |at: usize, is_such: fn(&Refusal) -> bool| {
            let violations = restore::violations(&questions[at], &facts[at]);
            violations.iter().any(|(_, refusal)| is_such(refusal))
        };
        let source = |at: usize| match facts[at].item.seen() {
            Some(item) => item.source.id.clone(),
            None => questions[at].server.clone(),
        };
        let mut asked: Vec<(usize, Question)> = Vec::new();

        let for_items: Vec<usize> =
            refused.iter().copied().filter(|at| concerns(*at, concerns_item)).collect();
        let mut others: HashMap<ServerId, Vec<Item>> = HashMap::new();
        for server in distinct(for_items.iter().map(|at| source(*at)).collect::<Vec<_>>().iter())
            .into_iter()
            .take(SOURCES_MAX)
        {
            let items =
                self.store.latest_available_items(project, &server, OTHER_ITEMS_MAX).await?;
            others.insert(server, items);
        }
        for at in for_items {
            let Some(target) = facts[at].target.seen() else { continue };
            let question = &questions[at];
            let items = others.get(&source(at)).into_iter().flatten();
            for other in items.filter(|other| other.id != question.item) {
                let fitting = fit(other, target, &facts[at].held_volumes, &Mapping::default());
                if fitting.is_whole() {
                    let (item, mapping) = (other.id.clone(), fitting.mapping);
                    asked.push((at, Question { item, mapping, ..question.clone() }));
                }
            }
        }

        let for_servers: Vec<usize> = refused
            .iter()
            .copied()
            .filter(|at| source(*at) != questions[*at].server && concerns(*at, concerns_server))
            .collect();
        let sources: Vec<ServerId> =
            distinct(for_servers.iter().map(|at| source(*at)).collect::<Vec<_>>().iter());
        let sources = &sources[..sources.len().min(SOURCES_MAX)];
        let servers = self.server_facts(project, sources, self.time_for_facts(context)).await;
        for at in for_servers {
            let server = servers.get(&source(at)).and_then(|fact| fact.seen());
            let Some((item, server)) = facts[at].item.seen().zip(server) else { continue };
            let fitting = fit(item, server, &[], &Mapping::default());
            if fitting.is_whole() {
                let (server, mapping) = (server.id.clone(), fitting.mapping);
                asked.push((at, Question { server, mapping, ..questions[at].clone() }));
            }
        }

        asked.truncate(OTHERS_MAX);
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let (numbers, asked): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        let time = self.time_for_facts(context);
        let asker = Asker::Request(context.demand);
        let seen = self.gather_restore(project, &asked, asker, time).await?;
        let all = numbers.into_iter().zip(asked).zip(seen);
        Ok(all.map(|((at, question), facts)| (at, question, facts)).collect())
    }
}

/// Whether another backup might not be refused so.
pub(crate) fn concerns_item(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::ItemNotFound(_)
            | Refusal::ItemNotAvailable(_)
            | Refusal::SnapshotMissing(_)
            | Refusal::DataDamaged(_)
            | Refusal::EvidenceTooWeak { .. }
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
