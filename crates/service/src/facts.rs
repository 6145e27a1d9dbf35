//! Fetches what a verdict needs, in one bounded sweep: the catalogue in one question each
//! for items and holders, the cloud once per distinct target, the repository once per
//! distinct snapshot. All under the request's deadline.
//!
//! Foreign objects are absent: the same queries, the same calls, the same answer as for
//! what does not exist.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use kedge_core::checkpoint::{Item, SnapshotRef};
use kedge_core::evidence::{Demand, Evidence, Seen};
use kedge_core::fact::{Fact, Unknown};
use kedge_core::ids::{ItemId, JobId, ProjectId, ServerId, VolumeId};
use kedge_core::job::ClaimKind;
use kedge_core::ports::ServerRef;
use kedge_core::proof::Proven;
use kedge_core::protect::{self, Holder};
use kedge_core::resource::Server;
use kedge_core::restore::{self, Data, Weighed};
use kedge_core::status::ItemStatus;
use kedge_core::time::Timestamp;
use kedge_engine::{EngineError, SnapshotId};
use kedge_store::{Holders, StoreError};

use crate::app::Parts;
use crate::repositories::RepositoryError;
use crate::wholeness::{Answer, Judged, Look};

/// Who asks for facts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asker<'a> {
    /// A caller: every claim is somebody else's. What its project demands to be known.
    Request(Option<Demand>),
    /// A restore under its own claims, which do not stand in its own way.
    Job(&'a JobId),
}

impl<'a> Asker<'a> {
    fn job(self) -> Option<&'a JobId> {
        match self {
            Self::Request(_) => None,
            Self::Job(id) => Some(id),
        }
    }

    fn demand(self) -> Option<Demand> {
        match self {
            Self::Request(demand) => demand,
            Self::Job(_) => None,
        }
    }
}

/// What watching and proving tell of items, and what is demanded.
struct Proofs {
    demand: Demand,
    seen: Seen,
    proven: HashMap<ItemId, Proven>,
}

impl Proofs {
    fn evidence(&self, item: &Item) -> Evidence {
        let proven = self.proven.get(&item.id).copied().unwrap_or_default();
        self.seen.evidence(item.sequence, &proven)
    }
}

/// What catalogue and repository tell of items.
struct Stored {
    items: HashMap<ItemId, Item>,
    snapshots: HashMap<ItemId, Fact<SnapshotRef>>,
    data: HashMap<ItemId, Fact<Data>>,
}

impl Parts {
    /// Facts for questions about backups, one per question and in their order.
    pub(crate) async fn gather_restore(
        &self,
        project: &ProjectId,
        questions: &[restore::Question],
        asker: Asker<'_>,
        time_left: Duration,
    ) -> Result<Vec<restore::Facts>, StoreError> {
        let server_ids = distinct(questions.iter().map(|question| &question.server));
        let servers = self.find_servers(project, &server_ids, asker, time_left);
        self.gather_restore_on(servers, project, questions, asker, time_left).await
    }

    /// The same, where the targets are looked up by `servers`.
    pub(crate) async fn gather_restore_on(
        &self,
        servers: impl Future<Output = HashMap<ServerId, Fact<Server>>>,
        project: &ProjectId,
        questions: &[restore::Question],
        asker: Asker<'_>,
        time_left: Duration,
    ) -> Result<Vec<restore::Facts>, StoreError> {
        // What is told may be as old as the question, however long the answer took.
        let asked_at = self.clock.now();
        let item_ids = distinct(questions.iter().map(|question| &question.item));
        let server_ids = distinct(questions.iter().map(|question| &question.server));
        let volume_ids = distinct(
            questions.iter().flat_map(|q| q.mapping.pairs().iter().map(|pair| &pair.volume)),
        );
        let (stored, weighed, holders, servers) = futures::join!(
            self.find_stored(project, &item_ids, asker, time_left),
            self.find_proofs(project, &item_ids, asker.demand()),
            self.store.holders(&server_ids, &volume_ids, asker.job()),
            servers,
        );
        let Stored { items, snapshots, data } = stored?;
        let (holders, proofs) = (holders?, weighed?);
        Ok(questions
            .iter()
            .map(|question| {
                let item = items.get(&question.item);
                restore::Facts {
                    item: match item {
                        Some(item) => Fact::Seen { value: item.clone(), at: asked_at },
                        None => Fact::Absent,
                    },
                    target: servers.get(&question.server).cloned().unwrap_or(Fact::Absent),
                    held: server_holder(&holders, &question.server),
                    held_volumes: held_volumes(&holders),
                    snapshot: snapshots.get(&question.item).cloned().unwrap_or(Fact::Absent),
                    data: data.get(&question.item).cloned().unwrap_or(Fact::Absent),
                    weighed: item.zip(proofs.as_ref()).map(|(item, proofs)| Weighed {
                        demand: proofs.demand,
                        evidence: proofs.evidence(item),
                        at: self.clock.now(),
                    }),
                }
            })
            .collect())
    }

    /// What is known of items beside what is demanded; nothing is asked where nothing is.
    async fn find_proofs(
        &self,
        project: &ProjectId,
        ids: &[ItemId],
        demand: Option<Demand>,
    ) -> Result<Option<Proofs>, StoreError> {
        let Some(demand) = demand else { return Ok(None) };
        let seen = self.store.find_seen(project).await?;
        let proven = self.store.find_proven(project, ids).await?;
        Ok(Some(Proofs { demand, seen, proven }))
    }

    /// Facts for questions about servers, one per question and in their order.
    pub(crate) async fn gather_protect(
        &self,
        project: &ProjectId,
        questions: &[protect::Question],
        asker: Asker<'_>,
        time_left: Duration,
    ) -> Result<Vec<protect::Facts>, StoreError> {
        let server_ids = distinct(questions.iter().map(|question| &question.server));
        let (holders, servers) = futures::join!(
            self.store.holders(&server_ids, &[], asker.job()),
            self.find_servers(project, &server_ids, asker, time_left),
        );
        let holders = holders?;
        Ok(questions
            .iter()
            .map(|question| protect::Facts {
                server: servers.get(&question.server).cloned().unwrap_or(Fact::Absent),
                held: server_holder(&holders, &question.server),
            })
            .collect())
    }

    /// Servers as a caller sees them.
    pub(crate) async fn server_facts(
        &self,
        project: &ProjectId,
        ids: &[ServerId],
        time_left: Duration,
    ) -> HashMap<ServerId, Fact<Server>> {
        self.find_servers(project, ids, Asker::Request(None), time_left).await
    }

    async fn find_servers(
        &self,
        project: &ProjectId,
        ids: &[ServerId],
        asker: Asker<'_>,
        time_left: Duration,
    ) -> HashMap<ServerId, Fact<Server>> {
        let find = |id: &ServerId| {
            let of = ServerRef { project: project.clone(), server: id.clone() };
            async move {
                let now = self.clock.now();
                let asked = async {
                    match asker {
                        Asker::Request(_) => self.lookups.find_server(&of, now).await,
                        // A job acts on what it sees: an answer that was on its way before
                        // the job took its locks will not do.
                        Asker::Job(_) => (now, self.cloud.find_server(&of).await),
                    }
                };
                let answer = tokio::time::timeout(time_left, asked).await;
                let fact = match answer {
                    Ok((at, Ok(Some(value)))) => Fact::Seen { value, at },
                    Ok((_, Ok(None))) => Fact::Absent,
                    Ok((_, Err(error))) => {
                        tracing::warn!(server.id = ?of.server, "cloud look-up failed: {error}");
                        Fact::Unknown { why: Unknown::CloudSilent }
                    }
                    Err(_elapsed) => Fact::Unknown { why: Unknown::CloudSilent },
                };
                (of.server, fact)
            }
        };
        join_all(ids.iter().map(find)).await.into_iter().collect()
    }

    /// The items, and whether the repository holds what they name: beside the cloud, for
    /// both may take all the time there is.
    async fn find_stored(
        &self,
        project: &ProjectId,
        ids: &[ItemId],
        asker: Asker<'_>,
        time_left: Duration,
    ) -> Result<Stored, StoreError> {
        let items = by_id(self.store.find_items(project, ids).await?, asker);
        let named: Vec<Named> = items
            .values()
            .filter_map(|item| {
                let at = item.snapshot.clone()?;
                Some(Named { item: item.id.clone(), id: at.snapshot.parse().ok()?, at })
            })
            .collect();
        if named.is_empty() {
            return Ok(Stored { items, snapshots: HashMap::new(), data: HashMap::new() });
        }
        let (asked_at, began) = (self.clock.now(), self.clock.monotonic());
        let ids = named.iter().map(|named| named.id).collect();
        let looking = self.repositories.look(project, ids);
        let looked = match tokio::time::timeout(time_left, looking).await {
            Ok(looked) => looked.map_err(|error| {
                tracing::warn!(project.id = ?project, "repository does not answer: {error}");
                error.unknown()
            }),
            Err(_elapsed) => Err(Unknown::RepositoryUnreachable),
        };
        let look = match looked {
            Ok(look) => look,
            Err(why) => {
                let (snapshots, data) = (unknown(&named, why), unknown(&named, why));
                return Ok(Stored { items, snapshots, data });
            }
        };
        let time_left = time_left.saturating_sub(self.clock.monotonic().saturating_sub(began));
        let held = look.held.clone();
        let (snapshots, data) = futures::join!(
            self.find_snapshots(project, &named, &held, asked_at, time_left),
            self.find_data(project, &named, look, asked_at, time_left),
        );
        Ok(Stored { items, snapshots, data })
    }

    /// Whether the repository holds what the items name. A snapshot that is not there is
    /// absent, with or without the key; one that is there is of use only with it.
    async fn find_snapshots(
        &self,
        project: &ProjectId,
        named: &[Named],
        held: &[bool],
        at: Timestamp,
        time_left: Duration,
    ) -> HashMap<ItemId, Fact<SnapshotRef>> {
        let requiring = self.repositories.require_key(project);
        let key = match tokio::time::timeout(time_left, requiring).await {
            Ok(key) => key.map_err(|error| {
                tracing::warn!(project.id = ?project, "repository cannot be opened: {error}");
                error.unknown()
            }),
            Err(_elapsed) => Err(Unknown::RepositoryUnreachable),
        };
        let fact = |(named, is_held): (&Named, &bool)| {
            let fact = match (is_held, key) {
                (false, _) => Fact::Absent,
                (true, Ok(())) => Fact::Seen { value: named.at.clone(), at },
                (true, Err(why)) => Fact::Unknown { why },
            };
            (named.item.clone(), fact)
        };
        named.iter().zip(held).map(fact).collect()
    }

    /// What is known of the data the items' snapshots name.
    async fn find_data(
        &self,
        project: &ProjectId,
        named: &[Named],
        look: Look,
        asked_at: Timestamp,
        time_left: Duration,
    ) -> HashMap<ItemId, Fact<Data>> {
        let ids: Vec<SnapshotId> = named.iter().map(|named| named.id).collect();
        let began = self.clock.monotonic();
        let judging = self.repositories.judge_data(project, &ids, look);
        let judged = match tokio::time::timeout(time_left, judging).await {
            Ok(judged) => judged.map_err(|error| {
                tracing::warn!(project.id = ?project, "data cannot be judged: {error}");
                error.unknown()
            }),
            Err(_elapsed) => Err(Unknown::RepositoryUnreachable),
        };
        let time_left = time_left.saturating_sub(self.clock.monotonic().saturating_sub(began));
        let all = |fact: Fact<Data>| {
            named.iter().map(|named| (named.item.clone(), fact.clone())).collect()
        };
        match judged {
            Ok(Judged::Whole) => all(Fact::Seen { value: Data::Whole, at: asked_at }),
            Ok(Judged::Walked(answers)) => {
                let facts =
                    answers.into_iter().map(|answer| self.data_fact(answer, asked_at, time_left));
                let items = named.iter().map(|named| named.item.clone());
                let facts = items.zip(join_all(facts).await).collect();
                self.repositories.report_what_walks_met().await;
                facts
            }
            Ok(Judged::Unreadable(error)) => {
                tracing::error!(project.id = ?project, "whom damage harms cannot be told: {error}");
                all(Fact::Unknown { why: Unknown::DamageNotLocated })
            }
            Err(why) => all(Fact::Unknown { why }),
        }
    }

    async fn data_fact(&self, answer: Answer, at: Timestamp, time_left: Duration) -> Fact<Data> {
        match tokio::time::timeout(time_left, answer).await {
            Ok(Ok(value)) => Fact::Seen { value, at },
            Ok(Err(error)) => {
                tracing::warn!("the data of a backup cannot be judged: {error}");
                let why = match &*error {
                    // What cannot be read may be what the backup needs, or not.
                    RepositoryError::Engine(
                        EngineError::Damaged { .. } | EngineError::Cancelled,
                    ) => Unknown::DamageNotLocated,
                    other => other.unknown(),
                };
                Fact::Unknown { why }
            }
            Err(_elapsed) => Fact::Unknown { why: Unknown::DamageNotLocated },
        }
    }
}

/// What an item names in the repository.
struct Named {
    item: ItemId,
    id: SnapshotId,
    at: SnapshotRef,
}

fn unknown<T>(named: &[Named], why: Unknown) -> HashMap<ItemId, Fact<T>> {
    named.iter().map(|named| (named.item.clone(), Fact::Unknown { why })).collect()
}

/// A restore that runs has moved its item to `restoring` itself: under its own exclusive
/// claim the item is as available as it was at admission.
fn by_id(items: Vec<Item>, asker: Asker<'_>) -> HashMap<ItemId, Item> {
    let seen_by = |mut item: Item| {
        if asker.job().is_some() && item.status == ItemStatus::Restoring {
            item.status = ItemStatus::Available;
        }
        (item.id.clone(), item)
    };
    items.into_iter().map(seen_by).collect()
}

fn server_holder(holders: &Holders, server: &ServerId) -> Option<Holder> {
    holders.of(ClaimKind::Server, server.as_str())
}

fn held_volumes(holders: &Holders) -> Vec<VolumeId> {
    holders.ids(ClaimKind::Volume).map(VolumeId::asked).collect()
}

pub(crate) fn distinct<'a, T: Clone + Ord + 'a>(ids: impl Iterator<Item = &'a T>) -> Vec<T> {
    let mut ids: Vec<T> = ids.cloned().collect();
    ids.sort();
    ids.dedup();
    ids
}
