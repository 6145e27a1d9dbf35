//! Reads back what a repository holds, and says what follows for its backups.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::num::NonZeroUsize;
use std::sync::Arc;

use kedge_core::evidence::Round;
use kedge_core::ids::ProjectId;
use kedge_core::time::Timestamp;
use kedge_engine::{
    CancelFlag, EngineError, IndexId, MarkId, PackId, Reading, SnapshotId, VerifyOptions,
    VerifyOutcome,
};

use super::look::Look;
use super::{Turn, Watched};
use crate::app::Parts;
use crate::repositories::{RepositoryError, blocking};

/// One at a time: reading back leaves the processors to others.
const THREADS: NonZeroUsize = NonZeroUsize::MIN;

/// How much is read between two notes of how far it came, and what one index object more
/// tells of.
const BATCH_BYTES: u64 = 4 << 30;

/// So many incremental backups after a full one make a chain that is read back early: what
/// they share was written long ago.
const CHAIN_LONG: u64 = 7;

/// Backups that come before others in one turn: what each needs is found by its list.
const URGENT_MAX: u32 = 200;

/// Reading back one repository.
pub(super) struct Run<'a> {
    pub(super) parts: &'a Parts,
    pub(super) project: &'a ProjectId,
    pub(super) cancel: &'a CancelFlag,
}

/// Index objects, and the size of the packs they tell of.
struct Batch {
    objects: Arc<BTreeSet<IndexId>>,
    bytes: u64,
}

/// In batches that reach this size, but for the last.
fn split(objects: BTreeSet<IndexId>, bytes: &BTreeMap<IndexId, u64>, bytes_min: u64) -> Vec<Batch> {
    let mut batches = Vec::new();
    let (mut batch, mut sum) = (BTreeSet::new(), 0);
    for id in objects {
        batch.insert(id);
        sum += bytes.get(&id).copied().unwrap_or_default();
        if sum >= bytes_min {
            let objects = Arc::new(mem::take(&mut batch));
            batches.push(Batch { objects, bytes: mem::take(&mut sum) });
        }
    }
    if !batch.is_empty() {
        batches.push(Batch { objects: Arc::new(batch), bytes: sum });
    }
    batches
}

impl Run<'_> {
    /// Reads what is told by index objects of which that was not done before, what urgent
    /// backups need first, for a turn; whether there is nothing left.
    pub(super) async fn read_new(
        &self,
        look: &mut Look,
        turn: Turn,
        watched: &mut Watched,
    ) -> Result<bool, RepositoryError> {
        let mut read_bytes = 0;
        for Batch { objects, bytes } in self.batches(look, turn.bytes).await? {
            // The first of a turn is read, however long that takes: else none ever would be.
            let is_over = read_bytes > 0 && self.parts.clock.monotonic() >= turn.until;
            if is_over || read_bytes >= turn.bytes || !self.read(look, &objects, watched).await? {
                return Ok(false);
            }
            read_bytes += bytes;
            let names: Vec<_> = objects.iter().map(ToString::to_string).collect();
            look.watch.note_read(&names, look.at);
            self.save(look).await?;
        }
        look.watch.note_all_read(look.upto);
        // All that they name was looked for and read, now that it is listed.
        look.watch.seen.doubted.retain(|place| !look.cleared.contains(place));
        self.save(look).await?;
        Ok(true)
    }

    /// What `kedge repo verify` read need not be read again. Each mark is heard once, also
    /// where the store deletes nothing: later it would speak of another time, or of what has
    /// been away since.
    pub(super) async fn hear_readings(&self, look: &mut Look) -> Result<(), RepositoryError> {
        let shared = Arc::clone(&look.repository);
        let readings = blocking(move || shared.list_readings()).await?;
        self.forget_heard(look, &readings).await?;
        if readings.is_empty() {
            return Ok(());
        }
        let now = self.parts.clock.now();
        for (mark, Reading { began_at, index }) in &readings {
            let began_at = Timestamp::from_micros(began_at.as_micros());
            if !look.watch.heard.insert(mark.to_string()) {
                continue;
            }
            if began_at > now {
                tracing::warn!(project.id = ?self.project, "a verification that began at {began_at} counts for nothing: that is later than now");
                continue;
            }
            let names: Vec<_> = index.iter().map(ToString::to_string).collect();
            look.watch.note_read(&names, began_at);
        }
        self.save(look).await?;
        let heard: Vec<_> = readings.into_iter().map(|(mark, _)| mark).collect();
        let shared = Arc::clone(&look.repository);
        if let Err(error) = blocking(move || shared.forget_readings(&heard)).await {
            tracing::warn!(project.id = ?self.project, "readings heard of stay: {error}");
        }
        Ok(())
    }

    /// Marks that are there no more need not be remembered. A list alone proves no absence.
    async fn forget_heard(
        &self,
        look: &mut Look,
        listed: &[(MarkId, Reading)],
    ) -> Result<(), RepositoryError> {
        let is_listed = |mark: &String| listed.iter().any(|(there, _)| there.to_string() == *mark);
        let missed = look.watch.heard.iter().filter(|mark| !is_listed(mark));
        for mark in missed.cloned().collect::<Vec<_>>() {
            let shared = Arc::clone(&look.repository);
            let is_there = match mark.parse::<MarkId>() {
                Ok(id) => blocking(move || shared.has_mark(id)).await?,
                Err(_) => false,
            };
            if !is_there {
                look.watch.heard.remove(&mark);
            }
        }
        Ok(())
    }

    /// Goes on with the round through everything, or begins one.
    pub(super) async fn go_on(
        &self,
        look: &mut Look,
        watched: &mut Watched,
    ) -> Result<(), RepositoryError> {
        let now = self.parts.clock.now();
        let period = self.parts.settings.verify.period;
        if look.watch.rests(now, period) {
            return Ok(());
        }
        let share = look.watch.share_bytes(now, look.inventory.bytes(), period);
        let anew = || Round { began_at: look.at, after: None };
        let round = look.watch.round.take().unwrap_or_else(anew);
        let after: Option<PackId> = round.after.as_ref().and_then(|id| id.parse().ok());
        let options = self.options(after, share);
        let next = self.verify(look, |_, _| true, options, watched).await?;
        look.watch.went_on_at = Some(now);
        match next {
            _ if !self.are_all_there(look).await? => look.watch.round = Some(round),
            Some(last) => look.watch.round = Some(Round { after: Some(last.to_string()), ..round }),
            None => {
                look.watch.end_round(round.began_at);
                look.watch.note_all_read(look.upto);
            }
        }
        self.save(look).await
    }

    /// The index objects that are to be read, in turn: those of each urgent backup, as far as
    /// a turn of so many bytes goes, then the others.
    async fn batches(&self, look: &Look, bytes_max: u64) -> Result<Vec<Batch>, RepositoryError> {
        let index = look.inventory.index_objects().iter();
        let is_unread = |id: &&IndexId| !look.watch.read_index.contains_key(&id.to_string());
        let mut unread: BTreeSet<IndexId> = index.filter(is_unread).copied().collect();
        if unread.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = look.inventory.bytes_by_object();
        let (mut batches, mut sum) = (Vec::new(), 0);
        for snapshot in self.find_urgent(look).await? {
            if sum >= bytes_max {
                break;
            }
            let wanted: BTreeSet<_> =
                self.objects_of(look, snapshot).await?.intersection(&unread).copied().collect();
            unread.retain(|id| !wanted.contains(id));
            let of_one = split(wanted, &bytes, BATCH_BYTES.min(bytes_max));
            sum += of_one.iter().map(|batch| batch.bytes).sum::<u64>();
            batches.extend(of_one);
        }
        batches.extend(split(unread, &bytes, BATCH_BYTES.min(bytes_max)));
        Ok(batches)
    }

    async fn find_urgent(&self, look: &Look) -> Result<Vec<SnapshotId>, RepositoryError> {
        let (store, first) = (&self.parts.store, self.parts.settings.verify.first.as_ref());
        let after = look.watch.seen.read_upto;
        let urgent = store.list_urgent(self.project, after, first, CHAIN_LONG, URGENT_MAX).await?;
        Ok(urgent.into_iter().filter_map(|snapshot| snapshot.parse().ok()).collect())
    }

    /// The index objects that tell of the packs that data of a snapshot lies in; none where
    /// that cannot be told.
    async fn objects_of(
        &self,
        look: &Look,
        snapshot: SnapshotId,
    ) -> Result<BTreeSet<IndexId>, RepositoryError> {
        let (shared, cancel) = (Arc::clone(&look.repository), self.cancel.clone());
        match blocking(move || shared.packs_of(snapshot, &cancel)).await {
            Ok(packs) => Ok(look.inventory.objects_of(&packs)),
            Err(RepositoryError::Engine(
                EngineError::Damaged { .. } | EngineError::SnapshotNotFound(_),
            )) => Ok(BTreeSet::new()),
            Err(error) => Err(error),
        }
    }

    /// Reads the packs that these index objects list; whether all were read. A pack that is gone
    /// together with its index object passes for pruned, and was not.
    async fn read(
        &self,
        look: &Look,
        objects: &Arc<BTreeSet<IndexId>>,
        watched: &mut Watched,
    ) -> Result<bool, RepositoryError> {
        let wanted = Arc::clone(objects);
        let is_wanted = move |_, object| wanted.contains(&object);
        let next = self.verify(look, is_wanted, self.options(None, u64::MAX), watched).await?;
        Ok(next.is_none() && self.are_all_there(look).await?)
    }

    /// Whether the index objects are all there that were.
    async fn are_all_there(&self, look: &Look) -> Result<bool, RepositoryError> {
        let (shared, inventory) = (Arc::clone(&look.repository), Arc::clone(&look.inventory));
        blocking(move || shared.are_there(inventory.index_objects())).await
    }

    /// Verifies packs; where to go on if there are more.
    async fn verify(
        &self,
        look: &Look,
        is_wanted: impl Fn(PackId, IndexId) -> bool + Send + Sync + 'static,
        options: VerifyOptions,
        watched: &mut Watched,
    ) -> Result<Option<PackId>, RepositoryError> {
        let (shared, inventory) = (Arc::clone(&look.repository), Arc::clone(&look.inventory));
        let progress = self.parts.verify_budget.begin(self.cancel);
        let VerifyOutcome { damaged, read_bytes, refuted, next, .. } =
            blocking(move || shared.verify_listed(&inventory, &is_wanted, &options, &progress))
                .await?;
        watched.read_bytes += read_bytes;
        for damage in damaged {
            tracing::error!("pack {} is damaged: {}", damage.pack, damage.what);
            watched.damaged.insert(damage.pack);
        }
        if !refuted.is_empty() {
            let shared = Arc::clone(&look.repository);
            blocking(move || shared.lift_damage(&refuted)).await?;
        }
        Ok(next)
    }

    fn options(&self, after: Option<PackId>, bytes_max: u64) -> VerifyOptions {
        VerifyOptions { threads: THREADS, cancel: self.cancel.clone(), after, bytes_max }
    }

    async fn save(&self, look: &Look) -> Result<(), RepositoryError> {
        let now = self.parts.clock.now();
        Ok(self.parts.store.save_watch(self.project, &look.watch, now).await?)
    }
}
