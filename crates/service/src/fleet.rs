//! Asks of every server of a project whether it could be restored, now or after a loss
//! (docs/adr/0024-fleet-questions.md). Pages are asked one after the other, as whoever
//! listens takes them: of a project of any size only the ids are held.
//!
//! Invariant: what was not asked is told as not asked. Nothing is started or changed but
//! that walks through lists begin where data is damaged, as each verdict has them begin; a
//! page waits for its own before the next.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::future::ready;
use std::sync::PoisonError;
use std::time::Duration;

use futures::StreamExt as _;
use kedge_core::checkpoint::{Item, VolumeBackup};
use kedge_core::code::Code;
use kedge_core::fact::Fact;
use kedge_core::fleet::{self, Cause, Losses};
use kedge_core::ids::{ItemId, ProjectId, ServerId};
use kedge_core::refusal::Refusal;
use kedge_core::resource::{SERVER_TYPE, Server};
use kedge_core::restore::{Mapping, Pair, Question, RestorePlan};
use kedge_core::tag::Tag;
use kedge_core::time::Timestamp;

use crate::app::App;
use crate::context::Context;
use crate::error::Error;
use crate::explain::{OTHER_ITEMS_MAX, concerns_item};
use crate::facts::Asker;

/// Servers that are asked about at once: a page's snapshots are read one after the other.
const PAGE: usize = 20;
/// Servers with backups that the catalogue lists at once.
const LISTED: u32 = 500;
/// Projects asked about as a whole at once: each keeps the cloud busy.
const FLEETS_MAX: usize = 4;
/// The longest time that may be asked for.
pub const TIME_MAX: Duration = Duration::from_secs(600);

/// What is asked of the servers of a project.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetQuestion {
    /// Only servers in this zone.
    pub zone: Option<String>,
    /// Only servers that have a backup with this tag.
    pub tag: Option<Tag>,
    /// What is supposed to be lost.
    pub losses: Losses,
    /// After this time no more is asked; at most [`TIME_MAX`].
    pub time: Duration,
}

/// The answer about one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prospect {
    /// The server.
    pub server: ServerId,
    /// Its name, as the cloud or its latest backup tells it; empty where neither does.
    pub name: String,
    /// Its zone, likewise.
    pub zone: String,
    /// The backup that the answer is about: the latest that could be restored; or that the
    /// loss alone stands against; or else the latest. None where there is none.
    pub item: Option<ItemId>,
    /// When that one was made.
    pub protected_at: Option<Timestamp>,
    /// How many later ones could not be restored.
    pub passed_over: usize,
    /// Whether it could be restored to this very server, disk by disk.
    pub verdict: Result<RestorePlan, Vec<Cause>>,
}

/// What came of all that was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Servers asked about.
    pub servers: u64,
    /// Those of them that could be restored.
    pub restorable: u64,
    /// Those of them that stand in lost zones.
    pub lost: u64,
    /// What stands against the others; a server may be in several.
    pub groups: Vec<Group>,
    /// Why there may be servers that were not asked about.
    pub gaps: Vec<Gap>,
}

/// Servers that could not be restored for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The reason.
    pub code: Code,
    /// Whether it is one by the supposed loss alone.
    pub is_supposed: bool,
    /// How many.
    pub servers: u64,
}

/// Why there may be servers that were not asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// The cloud did not list its servers: only those with backups are known.
    NotListed,
    /// The time was over.
    TimeOver,
}

/// A question on its way through the servers of a project.
#[derive(Debug)]
pub struct Fleet {
    app: App,
    context: Context,
    question: FleetQuestion,
    /// On the monotonic clock.
    ends_at: Duration,
    /// What the cloud lists and was not asked about yet, the last first; and whether it did.
    listed: Vec<ServerId>,
    is_listed: bool,
    backed_up: BackedUp,
    summary: Summary,
    is_over: bool,
    _place: Place,
}

/// The servers with backups, as the catalogue lists them.
#[derive(Debug, Default)]
struct BackedUp {
    /// Those not asked about yet, the last first.
    next: Vec<ServerId>,
    after: Option<ServerId>,
    is_over: bool,
}

/// One of the places for projects that are asked about as a whole. It is free again when
/// the time is over, however long somebody takes to read the answer.
#[derive(Debug)]
struct Place {
    app: App,
    project: ProjectId,
    ends_at: Duration,
}

impl Place {
    fn take(app: &App, project: &ProjectId, ends_at: Duration) -> Result<Self, Error> {
        let now = app.parts.clock.monotonic();
        let mut fleets = app.parts.fleets.lock().unwrap_or_else(PoisonError::into_inner);
        fleets.retain(|_, ends_at| *ends_at >= now);
        if fleets.len() >= FLEETS_MAX || fleets.contains_key(project) {
            return Err(Error::Busy);
        }
        fleets.insert(project.clone(), ends_at);
        Ok(Self { app: app.clone(), project: project.clone(), ends_at })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut fleets = self.app.parts.fleets.lock().unwrap_or_else(PoisonError::into_inner);
        // Once it was free somebody else may have it.
        if fleets.get(&self.project) == Some(&self.ends_at) {
            fleets.remove(&self.project);
        }
    }
}

impl App {
    /// Begins to ask of every server of a project whether it could be restored. One such
    /// question at a time is asked of a project.
    pub async fn ask_fleet(
        &self,
        context: Context,
        question: FleetQuestion,
    ) -> Result<Fleet, Error> {
        let parts = &self.parts;
        let project = context.project();
        let time = question.time.min(TIME_MAX);
        let ends_at = parts.clock.monotonic().saturating_add(time);
        let place = Place::take(self, project, ends_at)?;
        let listing = parts.lookups.list_servers(project);
        let most = parts.time_for_facts(&context).min(time);
        let listed = match tokio::time::timeout(most, listing).await {
            Ok(Ok(servers)) => Some(servers),
            Ok(Err(error)) => {
                tracing::warn!(project.id = ?project, "the cloud does not list servers: {error}");
                None
            }
            Err(_elapsed) => {
                tracing::warn!(project.id = ?project, "the cloud does not list servers in time");
                None
            }
        };
        let is_listed = listed.is_some();
        let mut listed = listed.unwrap_or_default();
        listed.sort_unstable_by(|a, b| b.cmp(a));
        listed.dedup();
        let gaps = if is_listed { Vec::new() } else { vec![Gap::NotListed] };
        Ok(Fleet {
            app: self.clone(),
            context,
            question,
            ends_at,
            listed,
            is_listed,
            backed_up: BackedUp::default(),
            summary: Summary { gaps, ..Summary::default() },
            is_over: false,
            _place: place,
        })
    }
}

/// A server, and who knows of it.
struct Known {
    id: ServerId,
    is_listed: bool,
    is_backed_up: bool,
}

/// A server that is asked about, its latest backups, and the answer so far.
struct Asked {
    prospect: Prospect,
    target: Fact<Server>,
    items: Vec<Item>,
}

impl Fleet {
    /// The answers about the next servers, by id; possibly none of a page. `None` at the
    /// end.
    ///
    /// # Errors
    /// The catalogue does not answer. Nothing more can be asked then.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Prospect>>, Error> {
        if self.is_over {
            return Ok(None);
        }
        let time_left = self.time_left();
        if time_left.is_zero() {
            return Ok(self.end(Some(Gap::TimeOver)));
        }
        match tokio::time::timeout(time_left, self.ask_page()).await {
            Ok(Ok(Some(page))) => {
                page.iter().for_each(|prospect| self.summary.add(prospect, &self.question.losses));
                Ok(Some(page))
            }
            Ok(Ok(None)) => Ok(self.end(None)),
            Ok(Err(error)) => {
                self.is_over = true;
                Err(error)
            }
            Err(_elapsed) => Ok(self.end(Some(Gap::TimeOver))),
        }
    }

    /// What came of everything that was asked so far.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    fn time_left(&self) -> Duration {
        self.ends_at.saturating_sub(self.app.parts.clock.monotonic())
    }

    fn end(&mut self, gap: Option<Gap>) -> Option<Vec<Prospect>> {
        self.is_over = true;
        self.summary.gaps.extend(gap);
        let Summary { servers, restorable, gaps, .. } = &self.summary;
        tracing::info!(
            project.id = ?self.context.project(),
            "of {servers} servers {restorable} could be restored; gaps {gaps:?}"
        );
        None
    }

    async fn ask_page(&mut self) -> Result<Option<Vec<Prospect>>, Error> {
        let mut servers = Vec::with_capacity(PAGE);
        while servers.len() < PAGE
            && let Some(server) = self.next_server().await?
        {
            servers.push(server);
        }
        if servers.is_empty() {
            return Ok(None);
        }
        self.ask(servers).await.map(Some)
    }

    /// The next by id of those that the cloud lists or that have backups.
    async fn next_server(&mut self) -> Result<Option<Known>, Error> {
        let (store, project) = (&self.app.parts.store, self.context.project());
        let BackedUp { next, after, is_over } = &mut self.backed_up;
        if next.is_empty() && !*is_over {
            *next = store.list_backed_up_servers(project, after.as_ref(), LISTED).await?;
            *is_over = next.len() < LISTED as usize;
            after.clone_from(&next.last().cloned());
            next.reverse();
        }
        let listed = self.listed.last();
        let first = match (next.last(), listed) {
            (Some(one), Some(other)) => one.min(other).clone(),
            (Some(one), None) | (None, Some(one)) => one.clone(),
            (None, None) => return Ok(None),
        };
        let is_backed_up = next.pop_if(|id| *id == first).is_some();
        let is_listed = self.listed.pop_if(|id| *id == first).is_some();
        Ok(Some(Known { id: first, is_listed, is_backed_up }))
    }

    async fn ask(&self, servers: Vec<Known>) -> Result<Vec<Prospect>, Error> {
        let (parts, project) = (&self.app.parts, self.context.project());
        let ids: Vec<ServerId> = servers.iter().map(|known| known.id.clone()).collect();
        let tagged = match &self.question.tag {
            Some(tag) => Some(parts.store.find_tagged_servers(project, &ids, tag).await?),
            None => None,
        };
        let is_tagged = |id: &ServerId| tagged.as_ref().is_none_or(|tagged| tagged.contains(id));
        let chosen: Vec<_> = servers.into_iter().filter(|known| is_tagged(&known.id)).collect();
        let mut targets = self.find_targets(&chosen).await;
        let mut page = Vec::with_capacity(chosen.len());
        for Known { id, is_backed_up, .. } in chosen {
            let target = targets.remove(&id).unwrap_or(Fact::Absent);
            let items = parts.store.latest_available_items(project, &id, OTHER_ITEMS_MAX).await?;
            // One that nobody lists and that left nothing to restore is none any more.
            let is_gone = target == Fact::Absent && !is_backed_up;
            if !is_gone && self.is_in_scope(&target, &items) {
                let prospect = Prospect::unasked(id, &target, items.first());
                page.push(Asked { prospect, target, items });
            }
        }
        for turn in 0..OTHER_ITEMS_MAX as usize {
            self.ask_turn(&mut page, turn).await?;
        }
        Ok(page.into_iter().map(|asked| asked.prospect).collect())
    }

    /// Looks up what the cloud lists; the rest is absent. A few at a time, so that each has
    /// its time and others of the project find room beside it.
    async fn find_targets(&self, servers: &[Known]) -> HashMap<ServerId, Fact<Server>> {
        let (parts, project) = (&self.app.parts, self.context.project());
        let limits = &parts.settings.limits;
        let time = (limits.request_time * 3 / 4).min(self.time_left());
        let wanted = servers.iter().filter(|known| known.is_listed || !self.is_listed);
        let wanted: Vec<_> = wanted.map(|known| std::slice::from_ref(&known.id)).collect();
        let found: Vec<_> =
            wanted.into_iter().map(|ids| parts.server_facts(project, ids, time)).collect();
        let at_once = (limits.lookups_per_project_max / 2).max(1);
        let found: Vec<_> = futures::stream::iter(found).buffer_unordered(at_once).collect().await;
        found.into_iter().flatten().collect()
    }

    /// Asks about each server's backup with this number from the latest, where the ones
    /// before it stand in the way themselves.
    async fn ask_turn(&self, page: &mut [Asked], turn: usize) -> Result<(), Error> {
        let (parts, project) = (&self.app.parts, self.context.project());
        let is_wanted = |asked: &&mut Asked| turn == 0 || asked.prospect.is_by_item();
        let wanted = page.iter_mut().filter(is_wanted);
        let (mut asked, questions): (Vec<_>, Vec<_>) = wanted
            .filter_map(|asked| {
                let question = question(&asked.prospect.server, asked.items.get(turn)?);
                Some((asked, question))
            })
            .unzip();
        if questions.is_empty() {
            return Ok(());
        }
        let targets = asked.iter().map(|one| (one.prospect.server.clone(), one.target.clone()));
        let targets = ready(targets.collect());
        let asker = Asker::Request(self.context.demand);
        let time = self.time_left() * 3 / 4;
        let facts = parts.gather_restore_on(targets, project, &questions, asker, time).await?;
        for (asked, (question, facts)) in asked.iter_mut().zip(questions.iter().zip(&facts)) {
            let losses = &self.question.losses;
            let verdict = fleet::plan(question, facts, losses, &parts.settings.places);
            if turn == 0 || is_better(&verdict, &asked.prospect.verdict) {
                asked.prospect.tell(asked.items.get(turn), turn, verdict);
            }
        }
        Ok(())
    }

    /// Whose zone nobody can tell is asked about: rather too many than one too few.
    fn is_in_scope(&self, target: &Fact<Server>, items: &[Item]) -> bool {
        let Some(zone) = &self.question.zone else { return true };
        match target {
            Fact::Seen { value, .. } => value.zone == *zone,
            Fact::Absent => items.first().is_none_or(|item| item.source.zone == *zone),
            Fact::Unknown { .. } => true,
        }
    }
}

/// Restorable is better than lost, and what only a loss stands against is better than the
/// rest: without the loss it is restorable.
fn is_better(
    one: &Result<RestorePlan, Vec<Cause>>,
    other: &Result<RestorePlan, Vec<Cause>>,
) -> bool {
    let rank = |verdict: &Result<RestorePlan, Vec<Cause>>| match verdict {
        Ok(_) => 0,
        Err(causes) if causes.iter().all(|cause| cause.is_supposed) => 1,
        Err(_) => 2,
    };
    rank(one) < rank(other)
}

impl Prospect {
    /// About a server of which no backup was asked about yet.
    fn unasked(server: ServerId, target: &Fact<Server>, latest: Option<&Item>) -> Self {
        let now = target.seen().map(|target| (&target.name, &target.zone));
        let then = latest.map(|item| (&item.source.name, &item.source.zone));
        let (name, zone) = now.or(then).unzip();
        let none = Refusal::NoAvailableBackup(server.clone());
        Self {
            name: name.cloned().unwrap_or_default(),
            zone: zone.cloned().unwrap_or_default(),
            server,
            item: None,
            protected_at: None,
            passed_over: 0,
            verdict: Err(vec![Cause { refusal: none, is_supposed: false }]),
        }
    }

    fn tell(
        &mut self,
        item: Option<&Item>,
        passed_over: usize,
        verdict: Result<RestorePlan, Vec<Cause>>,
    ) {
        self.item = item.map(|item| item.id.clone());
        self.protected_at = item.and_then(|item| item.protected_at);
        self.passed_over = passed_over;
        self.verdict = verdict;
    }

    /// Whether another backup might be restored in place of this one.
    fn is_by_item(&self) -> bool {
        let causes = self.verdict.as_ref().err().into_iter().flatten();
        causes.into_iter().any(|cause| concerns_item(&cause.refusal))
    }
}

impl Summary {
    fn add(&mut self, prospect: &Prospect, losses: &Losses) {
        self.servers += 1;
        self.lost += u64::from(losses.takes_server(&prospect.zone));
        let Err(causes) = &prospect.verdict else {
            self.restorable += 1;
            return;
        };
        let key = |cause: &Cause| (cause.refusal.code(), cause.is_supposed);
        for (number, cause) in causes.iter().enumerate() {
            if causes.iter().take(number).any(|before| key(before) == key(cause)) {
                continue;
            }
            let (code, is_supposed) = key(cause);
            let is_this = |group: &&mut Group| (group.code, group.is_supposed) == key(cause);
            match self.groups.iter_mut().find(is_this) {
                Some(group) => group.servers += 1,
                None => self.groups.push(Group { code, is_supposed, servers: 1 }),
            }
        }
        // The commonest first.
        self.groups.sort_by_key(|group| Reverse(group.servers));
    }
}

/// Whether a backup can be restored to the server it was made from, each disk to the one it
/// came from.
fn question(server: &ServerId, item: &Item) -> Question {
    let pair = |backup: &VolumeBackup| Pair {
        backup: backup.id.clone(),
        volume: backup.source_volume_id.clone(),
    };
    Question {
        item: item.id.clone(),
        server: server.clone(),
        resource_type: SERVER_TYPE.to_owned(),
        // A backup has each disk once, unless its record is damaged: then all are left out.
        mapping: Mapping::new(item.volumes.iter().map(pair).collect()).unwrap_or_default(),
    }
}
