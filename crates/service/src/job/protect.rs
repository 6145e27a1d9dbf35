//! Makes a backup: freeze, store, confirm the moment, write the snapshot object, record.
//!
//! The order is what makes a crash harmless: packs and index objects are durable before
//! the state `Stored` names the tree, that is committed before the snapshot object is
//! written, and the item is `available` only after stock restic could restore it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use kedge_core::checkpoint::{
    ChangeToken, Checkpoint, Fault, Item, Method, SnapshotRef, StoredVolume, VolumeBackup,
};
use kedge_core::ids::{CheckpointId, ItemId};
use kedge_core::job::{ProtectResult, ProtectState, Work};
use kedge_core::ports::ServerRef;
use kedge_core::protect::{self, Question};
use kedge_core::resource::{SERVER_TYPE, Volume};
use kedge_core::time::Timestamp;
use kedge_engine::layer::ThrottledSource;
use kedge_engine::{
    EngineError, Session, SnapshotMeta, SnapshotView, StoreOptions, TreeId, VolumeView,
};

use super::{freeze_prefix, item, item_tag, session, source_of};
use crate::adapt::DiskSource;
use crate::attempt::{Attempt, Trouble};
use crate::facts::Asker;
use crate::manifest;
use crate::names::plain_name;
use crate::repositories::{RepositoryError, SharedRepository, blocking, engine_time};

const PROGRAM: &str = concat!("kedge ", env!("CARGO_PKG_VERSION"));

pub(crate) async fn step(
    attempt: &Attempt,
    work: &Work,
    checkpoint: &CheckpointId,
    item_id: &ItemId,
    state: &ProtectState,
) -> Result<Work, Trouble> {
    let item = item(attempt, item_id).await?;
    let of = source_of(&item);
    match state {
        ProtectState::Start => start(attempt, work, &item, &of).await,
        ProtectState::Snapshotted { name, protected_at } => {
            let checkpoint = record(attempt, checkpoint).await?;
            let freeze = Freeze { of: &of, name, protected_at: *protected_at };
            store(attempt, work, &checkpoint, &item, &freeze).await
        }
        ProtectState::Stored { protected_at, tree, volumes } => {
            let stored = Stored { protected_at: *protected_at, tree, volumes };
            finish(attempt, work, &item, &stored).await
        }
        ProtectState::Recorded => release(attempt, work, &item).await,
        ProtectState::Undo { fault } => undo(attempt, work, &item, fault).await,
        ProtectState::Done => Ok(work.clone()),
    }
}

fn at(work: &Work, state: ProtectState) -> Work {
    match work.clone() {
        Work::Protect { checkpoint, item, trigger, .. } => {
            Work::Protect { checkpoint, item, trigger, state }
        }
        other @ (Work::Restore { .. } | Work::Delete { .. }) => other,
    }
}

async fn record(attempt: &Attempt, id: &CheckpointId) -> Result<Checkpoint, Trouble> {
    let found = attempt.parts.store.find_checkpoint(&attempt.job.project_id, id).await?;
    found.ok_or_else(|| Trouble::Fault(format!("bug: a job works on {id}, which is not there")))
}

/// The server's disks at one moment.
#[derive(Clone, Copy)]
struct Freeze<'a> {
    of: &'a ServerRef,
    name: &'a str,
    protected_at: Timestamp,
}

/// Freezes the disks, after asking the rules once more: the server may have changed since
/// the backup was admitted.
async fn start(
    attempt: &Attempt,
    work: &Work,
    item: &Item,
    of: &ServerRef,
) -> Result<Work, Trouble> {
    let parts = &attempt.parts;
    let mut question = Question {
        server: of.server.clone(),
        resource_type: SERVER_TYPE.to_owned(),
        excluded: Vec::new(),
    };
    let questions = std::slice::from_ref(&question);
    let time = parts.settings.limits.request_time;
    let asker = Asker::Job(&attempt.job.id);
    let facts = parts.gather_protect(&of.project, questions, asker, time).await?;
    let facts = facts.first().ok_or_else(|| Trouble::Fault("bug: no facts".to_owned()))?;
    // Disks that were left out, or came later, are nobody's business here.
    let wanted = |volume: &Volume| item.volumes.iter().any(|b| b.source_volume_id == volume.id);
    let seen = facts.server.seen().map(|server| server.volumes.as_slice()).unwrap_or_default();
    question.excluded = seen.iter().filter(|v| !wanted(v)).map(|v| v.id.clone()).collect();
    let plan = protect::plan(&question, facts, &parts.settings.protect).map_err(Trouble::from)?;
    for backup in &item.volumes {
        let volume = plan.server.volumes.iter().find(|v| v.id == backup.source_volume_id);
        if volume.is_none_or(|volume| !is_as_admitted(backup, volume)) {
            let id = &backup.source_volume_id;
            return Err(Trouble::Fault(format!("disk {id} was detached or changed meanwhile")));
        }
    }
    release_freezes(attempt, item).await?;
    attempt.may_write()?;
    let name = format!("{}{}", freeze_prefix(&item.id), attempt.job.fence);
    let volumes: Vec<_> = item.volumes.iter().map(|v| v.source_volume_id.clone()).collect();
    // Taken before: whatever was written up to this moment is in the backup.
    let protected_at = parts.clock.now();
    parts.cloud.create_snapshots(of, &volumes, &name).await?;
    attempt.at("protect.frozen");
    let next = at(work, ProtectState::Snapshotted { name, protected_at });
    parts.store.save_state(&attempt.job, &next, parts.clock.now()).await?;
    attempt.at("protect.frozen_saved");
    Ok(next)
}

/// Whether a disk is what the item's record says of it.
fn is_as_admitted(backup: &VolumeBackup, volume: &Volume) -> bool {
    (volume.size_bytes, volume.role, volume.encryption)
        == (backup.source_size_bytes, backup.role, backup.encryption)
}

/// Releases every freeze made for the item, whoever made it: one of an earlier attempt
/// stands for a moment nobody noted.
async fn release_freezes(attempt: &Attempt, item: &Item) -> Result<(), Trouble> {
    let (cloud, prefix) = (&attempt.parts.cloud, freeze_prefix(&item.id));
    let ours = cloud.list_snapshots().await?;
    for (of, name) in ours.into_iter().filter(|(_, name)| name.starts_with(&prefix)) {
        attempt.may_finish()?;
        cloud.delete_snapshots(&of, &name).await?;
    }
    Ok(())
}

/// A refusal that only says "not now" is tried again; a no is final.
impl From<kedge_core::refusal::Refusal> for Trouble {
    fn from(refusal: kedge_core::refusal::Refusal) -> Self {
        match refusal {
            kedge_core::refusal::Refusal::Unknown(_) => Self::Retry(refusal.to_string()),
            other => Self::Refused(other),
        }
    }
}

/// How many earlier backups of a server are looked through for each disk: a disk that was
/// left out of more than so many in a row is read whole.
const PARENTS_MAX: u32 = 32;

/// Earlier backups of the server that this one may build on, newest first.
struct Parents {
    repository: SharedRepository,
    earlier: Vec<Parent>,
}

struct Parent {
    item: Item,
    view: View,
}

/// What is known of an earlier backup's snapshot.
enum View {
    Unasked,
    Opened(Arc<SnapshotView>),
    Unusable,
}

impl Parents {
    /// Nothing that is wrong with an earlier backup fails the new one, which then builds on
    /// one before it, or reads everything.
    async fn find(
        attempt: &Attempt,
        item: &Item,
        repository: &SharedRepository,
    ) -> Result<Self, Trouble> {
        let (project, server) = (&item.project_id, &item.source.id);
        let items = match item.method {
            Method::Full => Vec::new(),
            Method::Incremental => {
                attempt.parts.store.latest_available_items(project, server, PARENTS_MAX).await?
            }
        };
        let earlier = items.into_iter().map(|item| Parent { item, view: View::Unasked });
        Ok(Self { repository: repository.clone(), earlier: earlier.collect() })
    }

    /// What the newest backup that has the same disk holds of it.
    async fn of(
        &mut self,
        attempt: &Attempt,
        backup: &VolumeBackup,
    ) -> Result<Option<(VolumeView, Option<ChangeToken>)>, Trouble> {
        for parent in &mut self.earlier {
            let is_same =
                |earlier: &&VolumeBackup| earlier.source_volume_id == backup.source_volume_id;
            let same = parent.item.volumes.iter().find(is_same);
            let Some(stored) = same.and_then(|earlier| earlier.stored.clone()) else { continue };
            let Some(view) = parent.open(attempt, &self.repository).await? else { continue };
            let opened = blocking(move || view.volume(&stored.folder)).await;
            match settle(attempt, &self.repository, opened).await {
                Ok(volume) => return Ok(Some((volume, stored.change_token))),
                Err(error) => pass_over(attempt, &parent.item, error)?,
            }
        }
        Ok(None)
    }
}

impl Parent {
    async fn open(
        &mut self,
        attempt: &Attempt,
        repository: &SharedRepository,
    ) -> Result<Option<Arc<SnapshotView>>, Trouble> {
        if matches!(self.view, View::Unasked) {
            let snapshot = self.item.snapshot.as_ref().and_then(|at| at.snapshot.parse().ok());
            let shared = repository.clone();
            let opened = match snapshot {
                Some(id) => {
                    let opened = blocking(move || shared.open_snapshot(id)).await;
                    Some(settle(attempt, repository, opened).await)
                }
                None => None,
            };
            self.view = match opened {
                Some(Ok(view)) => View::Opened(Arc::new(view)),
                Some(Err(error)) => {
                    pass_over(attempt, &self.item, error)?;
                    View::Unusable
                }
                None => View::Unusable,
            };
        }
        match &self.view {
            View::Opened(view) => Ok(Some(view.clone())),
            View::Unasked | View::Unusable => Ok(None),
        }
    }
}

/// One that only cannot be had now must not make a whole backup of an incremental one.
fn pass_over(attempt: &Attempt, item: &Item, error: RepositoryError) -> Result<(), Trouble> {
    if error.is_retryable() {
        return Err(attempt.trouble(error));
    }
    tracing::warn!(item.id = %item.id, "cannot build on {}: {error}", item.id);
    Ok(())
}

/// Damage that a backup meets is on record before it ends.
async fn settle<T>(
    attempt: &Attempt,
    repository: &SharedRepository,
    read: Result<T, RepositoryError>,
) -> Result<T, RepositoryError> {
    let (repositories, project) = (&attempt.parts.repositories, &attempt.job.project_id);
    repositories.settle_suspects(project, repository, read, &attempt.stop).await
}

async fn store(
    attempt: &Attempt,
    work: &Work,
    checkpoint: &Checkpoint,
    item: &Item,
    freeze: &Freeze<'_>,
) -> Result<Work, Trouble> {
    let parts = &attempt.parts;
    let repository = parts.repositories.get_or_create(&item.project_id).await;
    let repository = repository.map_err(|error| attempt.trouble(error))?;
    let session = session(attempt, &repository).await?;
    let mut parents = Parents::find(attempt, item, &repository).await?;
    attempt.meter.begin(item.volumes.iter().map(|volume| volume.source_size_bytes).sum());
    let mut stored = Vec::new();
    let mut subtrees = Vec::new();
    for backup in &item.volumes {
        let parent = parents.of(attempt, backup).await?;
        let one = store_volume(attempt, freeze, backup, parent, &repository, &session).await;
        let (volume, subtree) = match one {
            Ok(stored) => stored,
            Err(trouble) => return Err(moment_or(attempt, freeze, trouble).await),
        };
        attempt.at("protect.volume_stored");
        subtrees.push((volume.folder.clone(), subtree));
        stored.push(volume);
    }
    drop(parents);
    parts.cloud.confirm_snapshots(freeze.of, freeze.name).await?;
    let protected_at = freeze.protected_at;
    let about = manifest::Stored {
        protected_at,
        stored_at: parts.clock.now(),
        method: method(&stored),
        volumes: &stored,
    };
    let server_json = manifest::write(checkpoint, item, &about)
        .map_err(|error| Trouble::Fault(error.to_string()))?;
    let tree = finish_tree(attempt, session, subtrees, server_json, protected_at).await?;
    attempt.at("protect.tree_finished");
    let next =
        at(work, ProtectState::Stored { protected_at, tree: tree.to_string(), volumes: stored });
    parts.store.save_state(&attempt.job, &next, parts.clock.now()).await?;
    attempt.at("protect.stored_saved");
    Ok(next)
}

/// A disk that cannot be read may have changed under the freeze: then trying to read it
/// again is vain, and the backup begins again.
async fn moment_or(attempt: &Attempt, freeze: &Freeze<'_>, trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Retry(_) | Trouble::Fault(_) => {
            let confirmed = attempt.parts.cloud.confirm_snapshots(freeze.of, freeze.name).await;
            match confirmed.map_err(Trouble::from) {
                Err(lost @ Trouble::MomentLost(_)) => lost,
                Ok(()) | Err(_) => trouble,
            }
        }
        other => other,
    }
}

fn method(volumes: &[StoredVolume]) -> Method {
    let incremental = volumes.iter().any(|volume| volume.method == Method::Incremental);
    if incremental { Method::Incremental } else { Method::Full }
}

async fn store_volume(
    attempt: &Attempt,
    freeze: &Freeze<'_>,
    backup: &VolumeBackup,
    parent: Option<(VolumeView, Option<ChangeToken>)>,
    repository: &SharedRepository,
    session: &Arc<Session>,
) -> Result<(StoredVolume, TreeId), Trouble> {
    let started = attempt.parts.clock.monotonic();
    let (mut view, mut since) = match parent {
        Some((view, since)) => (Some(Arc::new(view)), since),
        None => (None, None),
    };
    if view.as_ref().is_some_and(|view| view.size_bytes() != backup.source_size_bytes) {
        // A grown disk still shares its chunks; only what changed cannot be told.
        since = None;
    }
    loop {
        let (cloud, volume) = (&attempt.parts.cloud, &backup.source_volume_id);
        let open = cloud.open_snapshot(freeze.of, freeze.name, volume, since.as_ref()).await?;
        let options = store_options(attempt, freeze.protected_at);
        let (session, parent) = (session.clone(), view.clone());
        let bucket = attempt.parts.disk_bucket.clone();
        let source = ThrottledSource::new(DiskSource::whole(open.reader), bucket);
        let meter = attempt.meter.clone();
        if kedge_engine::Source::size_bytes(&source) != backup.source_size_bytes {
            return Err(Trouble::MomentLost(format!("disk {volume} was resized meanwhile")));
        }
        let result =
            blocking(move || session.store_volume(&source, parent.as_deref(), &options, &*meter))
                .await;
        match settle(attempt, repository, result).await {
            Ok(stored) => {
                let elapsed = attempt.parts.clock.monotonic().saturating_sub(started);
                let volume = StoredVolume {
                    folder: folder(backup),
                    data_bytes: stored.data_bytes,
                    read_bytes: stored.read_bytes,
                    stored_bytes: stored.stored_bytes,
                    duration_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                    method: if view.is_some() { Method::Incremental } else { Method::Full },
                    change_token: open.token,
                };
                tracing::info!(
                    volume_backup.id = %backup.id, volume.stored_bytes, volume.read_bytes, volume.duration_ms,
                    "stored volume backup {}", backup.id
                );
                return Ok((volume, stored.subtree));
            }
            // A driver that lied once is not believed again: everything is read.
            Err(RepositoryError::Engine(EngineError::SourceLied { offset })) if since.is_some() => {
                tracing::error!(volume.id = %volume, offset, "the cloud's list of changes of {volume} is wrong; reading all of it");
                since = None;
            }
            // Nor is a parent that cannot be read.
            Err(RepositoryError::Engine(EngineError::Damaged { object, what }))
                if view.is_some() =>
            {
                tracing::error!(volume.id = %volume, "cannot build on an earlier backup: {object}: {what}");
                (view, since) = (None, None);
            }
            Err(error) => return Err(attempt.trouble(error)),
        }
    }
}

fn store_options(attempt: &Attempt, protected_at: Timestamp) -> StoreOptions {
    let settings = &attempt.parts.settings;
    StoreOptions {
        chunk_size: None,
        zstd_level: settings.compression_level,
        threads: NonZeroUsize::new(settings.mover_threads).unwrap_or(NonZeroUsize::MIN),
        modified_at: engine_time(protected_at),
        verify_before_store: settings.verify_before_store,
    }
}

/// A folder a person finds, made of nothing hostile; the id keeps it unique and equal from
/// backup to backup.
fn folder(backup: &VolumeBackup) -> String {
    format!("{}-{}", plain_name(&backup.source_volume_name, "disk"), backup.source_volume_id)
}

async fn finish_tree(
    attempt: &Attempt,
    session: Arc<Session>,
    subtrees: Vec<(String, TreeId)>,
    server_json: Vec<u8>,
    protected_at: Timestamp,
) -> Result<TreeId, Trouble> {
    blocking(move || {
        let volumes: Vec<_> =
            subtrees.iter().map(|(name, subtree)| (name.as_str(), *subtree)).collect();
        let files = [(manifest::FILE_NAME, server_json.as_slice())];
        session.finish_tree(&volumes, &files, engine_time(protected_at))
    })
    .await
    .map_err(|error| attempt.trouble(error))
}

/// What the state `Stored` names.
struct Stored<'a> {
    protected_at: Timestamp,
    tree: &'a str,
    volumes: &'a [StoredVolume],
}

/// Writes the snapshot object, opens it as a reader would, and records the backup.
async fn finish(
    attempt: &Attempt,
    work: &Work,
    item: &Item,
    stored: &Stored<'_>,
) -> Result<Work, Trouble> {
    let parts = &attempt.parts;
    let repository = parts.repositories.get(&item.project_id).await;
    let repository = repository.map_err(|error| attempt.trouble(error))?;
    let session = session(attempt, &repository).await?;
    let tree = stored
        .tree
        .parse()
        .map_err(|_| Trouble::Fault(format!("bug: {:?} is no tree", stored.tree)))?;
    let meta = snapshot_meta(item, tree, stored);
    let expected: Vec<_> = item
        .volumes
        .iter()
        .zip(stored.volumes)
        .map(|(backup, volume)| (volume.folder.clone(), backup.source_size_bytes))
        .collect();
    let shared = repository.clone();
    let written = blocking(move || {
        let id = session.write_snapshot(&meta)?;
        let view = shared.open_snapshot(id)?;
        for (folder, size_bytes) in expected {
            if view.volume(&folder)?.size_bytes() != size_bytes {
                return Err(EngineError::Damaged {
                    object: format!("snapshot {id}"),
                    what: format!("{folder} has not the size of its disk"),
                });
            }
        }
        Ok(id)
    });
    let written = settle(attempt, &repository, written.await).await;
    let snapshot = written.map_err(|error| attempt.trouble(error))?;
    attempt.at("protect.snapshot_written");
    let result = ProtectResult {
        protected_at: stored.protected_at,
        snapshot: SnapshotRef { snapshot: snapshot.to_string(), tree: stored.tree.to_owned() },
        volumes: stored.volumes.to_vec(),
        method: method(stored.volumes),
    };
    let next = at(work, ProtectState::Recorded);
    parts.store.finish_protect(&attempt.job, &result, &next, parts.clock.now()).await?;
    attempt.at("protect.recorded");
    Ok(next)
}

fn snapshot_meta(item: &Item, tree: TreeId, stored: &Stored<'_>) -> SnapshotMeta {
    SnapshotMeta {
        time: engine_time(stored.protected_at),
        tree,
        identity_tag: item_tag(&item.id),
        tags: vec![format!("kedge-checkpoint:{}", item.checkpoint_id)],
        paths: stored.volumes.iter().map(|volume| format!("/{}", volume.folder)).collect(),
        hostname: plain_name(&item.source.name, "server"),
        username: "kedge".to_owned(),
        parent: None,
        program_version: PROGRAM.to_owned(),
    }
}

async fn release(attempt: &Attempt, work: &Work, item: &Item) -> Result<Work, Trouble> {
    release_freezes(attempt, item).await?;
    attempt.at("protect.released");
    let done = at(work, ProtectState::Done);
    attempt.parts.store.save_state(&attempt.job, &done, attempt.parts.clock.now()).await?;
    Ok(done)
}

/// What cannot be released now is left to the reconciler: an item must not hang because a
/// cloud does.
async fn undo(attempt: &Attempt, work: &Work, item: &Item, fault: &Fault) -> Result<Work, Trouble> {
    match release_freezes(attempt, item).await {
        Ok(()) => {}
        Err(lost @ Trouble::Stopped(_)) => return Err(lost),
        Err(trouble) => {
            tracing::warn!(item.id = %item.id, "snapshots of {} are left to the reconciler: {trouble:?}", item.id);
        }
    }
    attempt.at("protect.undone");
    let done = at(work, ProtectState::Done);
    let now = attempt.parts.clock.now();
    attempt.parts.store.fail_protect(&attempt.job, fault, &done, now).await?;
    Ok(done)
}
