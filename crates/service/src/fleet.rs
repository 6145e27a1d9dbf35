//! Asks of every server of a project whether it could be restored, now or after a loss
//! (docs/adr/0024-fleet-questions.md). Pages are asked one after the other, as whoever
//! listens takes them, so a project of any size costs the memory of one page.
//!
//! Invariant: what was not asked is told as not asked. Nothing is started or changed.

use std::future::ready;
use std::sync::PoisonError;
use std::time::Duration;

use kedge_core::checkpoint::Item;
use kedge_core::code::Code;
use kedge_core::fact::Fact;
use kedge_core::fit::fit;
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

/// Servers that are asked about at once.
const PAGE: u32 = 50;
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
    /// The backup that was asked about: the latest that could be restored, or else the
    /// latest; none where there is none.
    pub item: Option<ItemId>,
    /// When that one was made.
    pub protected_at: Option<Timestamp>,
    /// How many later ones could not be restored.
    pub passed_over: usize,
    /// Whether it could be restored to this very server.
    pub verdict: Result<RestorePlan, Vec<Cause>>,
}

/// What came of all that was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Servers asked about.
    pub servers: u64,
    /// Those of them that could be restored.
    pub restorable: u64,
    /// What stands against the others; a server may be in several.
    pub groups: Vec<Group>,
    /// Why there may be servers that were not asked about.
    pub gap: Option<Gap>,
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
    /// The time was over.
    TimeOver,
    /// The cloud did not list its servers: only those with backups are known.
    NotListed,
}

/// A question on its way through the servers of a project.
#[derive(Debug)]
pub struct Fleet {
    app: App,
    context: Context,
    question: FleetQuestion,
    /// On the monotonic clock.
    ends_at: Duration,
    /// What the cloud lists and was not asked about yet, the last first.
    listed: Vec<ServerId>,
    after: Option<ServerId>,
    summary: Summary,
    is_over: bool,
    _place: Place,
}

/// One of the places for projects that are asked about as a whole.
#[derive(Debug)]
struct Place(App, ProjectId);

impl Place {
    fn take(app: &App, project: &ProjectId) -> Result<Self, Error> {
        let mut fleets = app.parts.fleets.lock().unwrap_or_else(PoisonError::into_inner);
        if fleets.len() >= FLEETS_MAX || !fleets.insert(project.clone()) {
            return Err(Error::Busy);
        }
        Ok(Self(app.clone(), project.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut fleets = self.0.parts.fleets.lock().unwrap_or_else(PoisonError::into_inner);
        fleets.remove(&self.1);
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
        let place = Place::take(self, context.project())?;
        let ends_at = parts.clock.monotonic().saturating_add(question.time.min(TIME_MAX));
        let listing = parts.lookups.list_servers(context.project());
        let (mut listed, mut summary) = (Vec::new(), Summary::default());
        match tokio::time::timeout(parts.time_for_facts(&context), listing).await {
            Ok(Ok(servers)) => listed = servers,
            Ok(Err(error)) => {
                tracing::warn!("the cloud does not list its servers: {error}");
                summary.gap = Some(Gap::NotListed);
            }
            Err(_elapsed) => summary.gap = Some(Gap::NotListed),
        }
        listed.sort_unstable_by(|a, b| b.cmp(a));
        listed.dedup();
        Ok(Fleet {
            app: self.clone(),
            context,
            question,
            ends_at,
            listed,
            after: None,
            summary,
            is_over: false,
            _place: place,
        })
    }
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
        let now = self.app.parts.clock.monotonic();
        let time_left = self.ends_at.saturating_sub(now);
        if time_left.is_zero() {
            return Ok(self.end(Some(Gap::TimeOver)));
        }
        match tokio::time::timeout(time_left, self.ask_page()).await {
            Ok(Ok(Some(page))) => {
                page.iter().for_each(|prospect| self.summary.add(prospect));
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

    fn end(&mut self, gap: Option<Gap>) -> Option<Vec<Prospect>> {
        self.is_over = true;
        self.summary.gap = gap.or(self.summary.gap);
        None
    }

    async fn ask_page(&mut self) -> Result<Option<Vec<Prospect>>, Error> {
        let servers = self.next_servers().await?;
        let Some(last) = servers.last() else { return Ok(None) };
        let after = last.clone();
        let page = self.ask(&servers).await?;
        // Only now: a page that is cut short was not asked.
        while self.listed.pop_if(|id| *id <= after).is_some() {}
        self.after = Some(after);
        Ok(Some(page))
    }

    /// The next of those that the cloud lists or that have backups.
    async fn next_servers(&self) -> Result<Vec<ServerId>, Error> {
        let store = &self.app.parts.store;
        let project = self.context.project();
        let mut servers = store.list_backed_up_servers(project, self.after.as_ref(), PAGE).await?;
        servers.extend(self.listed.iter().rev().take(PAGE as usize).cloned());
        servers.sort_unstable();
        servers.dedup();
        servers.truncate(PAGE as usize);
        Ok(servers)
    }

    async fn ask(&self, ids: &[ServerId]) -> Result<Vec<Prospect>, Error> {
        let parts = &self.app.parts;
        let project = self.context.project();
        let time = parts.settings.limits.request_time * 3 / 4;
        let tagged = match &self.question.tag {
            Some(tag) => Some(parts.store.find_tagged_servers(project, ids, tag).await?),
            None => None,
        };
        let is_tagged = |id: &&ServerId| tagged.as_ref().is_none_or(|tagged| tagged.contains(*id));
        let ids: Vec<ServerId> = ids.iter().filter(is_tagged).cloned().collect();
        let servers = parts.server_facts(project, &ids, time).await;
        let mut asked = Vec::new();
        for id in ids {
            let target = servers.get(&id).cloned().unwrap_or(Fact::Absent);
            let items = parts.store.latest_available_items(project, &id, OTHER_ITEMS_MAX).await?;
            if self.is_in_scope(&target, &items) {
                asked.push((Prospect::unasked(id, &target, items.first()), target, items));
            }
        }
        for turn in 0..OTHER_ITEMS_MAX as usize {
            let mut numbers = Vec::new();
            let mut questions = Vec::new();
            for (number, (prospect, target, items)) in asked.iter().enumerate() {
                if let Some(item) = items.get(turn).filter(|_| turn == 0 || prospect.is_by_item()) {
                    numbers.push(number);
                    questions.push(question(&prospect.server, target, item));
                }
            }
            if questions.is_empty() {
                break;
            }
            let asker = Asker::Request(self.context.demand);
            let servers = ready(servers.clone());
            let facts = parts.gather_restore_on(servers, project, &questions, asker, time).await?;
            for (number, (question, facts)) in numbers.into_iter().zip(questions.iter().zip(facts))
            {
                let losses = &self.question.losses;
                let verdict = fleet::plan(question, &facts, losses, &parts.settings.places);
                let Some((prospect, _, items)) = asked.get_mut(number) else { continue };
                if turn == 0 || verdict.is_ok() {
                    let protected_at = items.get(turn).and_then(|item| item.protected_at);
                    (prospect.item, prospect.protected_at) =
                        (Some(question.item.clone()), protected_at);
                    (prospect.passed_over, prospect.verdict) = (turn, verdict);
                }
            }
        }
        Ok(asked.into_iter().map(|(prospect, ..)| prospect).collect())
    }

    /// Whose zone nobody can tell is asked about: rather too many than one too few.
    fn is_in_scope(&self, target: &Fact<Server>, items: &[Item]) -> bool {
        let Some(zone) = &self.question.zone else { return true };
        zone_of(target, items.first()).is_none_or(|known| known == zone)
    }
}

impl Prospect {
    /// About a server of which no backup was asked about yet.
    fn unasked(server: ServerId, target: &Fact<Server>, latest: Option<&Item>) -> Self {
        let name = target.seen().map(|target| &target.name);
        let name = name.or(latest.map(|item| &item.source.name)).cloned().unwrap_or_default();
        let none = Cause { refusal: Refusal::NeverBackedUp(server.clone()), is_supposed: false };
        Self {
            zone: zone_of(target, latest).cloned().unwrap_or_default(),
            name,
            server,
            item: None,
            protected_at: None,
            passed_over: 0,
            verdict: Err(vec![none]),
        }
    }

    /// Whether another backup might be restored in place of this one.
    fn is_by_item(&self) -> bool {
        let causes = self.verdict.as_ref().err().into_iter().flatten();
        causes.into_iter().any(|cause| concerns_item(&cause.refusal))
    }
}

impl Summary {
    fn add(&mut self, prospect: &Prospect) {
        self.servers += 1;
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
        self.groups.sort_by_key(|group| std::cmp::Reverse(group.servers));
    }
}

fn zone_of<'a>(target: &'a Fact<Server>, latest: Option<&'a Item>) -> Option<&'a String> {
    let now = target.seen().map(|target| &target.zone);
    now.or(latest.map(|item| &item.source.zone))
}

/// Whether a backup can be restored to the server it was made from: every disk to the one
/// it came from, or where that is gone to the one that fits best.
fn question(server: &ServerId, target: &Fact<Server>, item: &Item) -> Question {
    let mapping = match target.seen() {
        Some(target) => fit(item, target, &[], &Mapping::default()).mapping,
        None => origins(item),
    };
    Question {
        item: item.id.clone(),
        server: server.clone(),
        resource_type: SERVER_TYPE.to_owned(),
        mapping,
    }
}

fn origins(item: &Item) -> Mapping {
    let pair = |backup: &kedge_core::checkpoint::VolumeBackup| Pair {
        backup: backup.id.clone(),
        volume: backup.source_volume_id.clone(),
    };
    Mapping::new(item.volumes.iter().map(pair).collect()).unwrap_or_default()
}
