//! Looks a repository over, without reading any data: whether index objects list what backups
//! name, and whether the packs they list are there.
//!
//! Invariant: what is said of a backup rests on index objects that were seen, and whose names
//! are written down with it. So lists are walked before the inventory is taken: one that
//! vanishes in between is missed.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use kedge_core::evidence::Watch;
use kedge_core::ids::ProjectId;
use kedge_core::time::Timestamp;
use kedge_engine::{CancelFlag, Inventory, Listing, SnapshotId};

use super::Watched;
use crate::app::Parts;
use crate::repositories::{RepositoryError, SharedRepository, blocking};

/// Backups whose lists are walked in one go, after which it is written down how far it came.
const PAGE: u32 = 100;
/// New lists that are walked when a repository is looked over: more than are made in an hour,
/// and what a catalogue brings that was just made anew waits.
const WALKS_MAX: usize = 10_000;
/// Doubted ones beside.
const AGAIN_MAX: usize = 1_000;
/// A prune that runs at the same time replaces index objects.
const TRIES: usize = 3;

/// What was seen, and when.
pub(super) struct Look {
    pub(super) repository: SharedRepository,
    pub(super) watch: Watch,
    pub(super) inventory: Arc<Inventory>,
    /// Before the inventory was taken: what is stored later is not in it.
    pub(super) at: Timestamp,
    /// The last backup whose list was walked and which was finished before that.
    pub(super) upto: u64,
    /// Doubted backups whose lists turned out whole.
    pub(super) cleared: BTreeSet<u64>,
}

/// Lists being walked.
struct Walk<'a> {
    parts: &'a Parts,
    repository: &'a SharedRepository,
    project: &'a ProjectId,
    cancel: &'a CancelFlag,
    /// The last backup that was finished before.
    latest: u64,
    cleared: BTreeSet<u64>,
    has_partial: bool,
}

impl Parts {
    pub(super) async fn look_over(
        &self,
        project: &ProjectId,
        cancel: &CancelFlag,
        watched: &mut Watched,
    ) -> Result<Look, RepositoryError> {
        let mut watch = self.store.find_watch(project).await?;
        watch.forget_after(self.clock.now());
        let losses = self.store.count_losses(project).await?;
        if self.repositories.wholeness.take_report(project) || losses > 0 {
            (watch.walked_upto, watch.is_in_doubt) = (0, true);
            if let Err(error) = self.note_doubt(project, &watch).await {
                self.repositories.wholeness.note_report(project);
                return Err(error);
            }
            self.store.settle_losses(project, losses).await?;
        }
        let repository = self.repositories.get(project).await?;
        let latest = self.store.latest_sequence(project).await?;
        let mut walk = Walk {
            parts: self,
            repository: &repository,
            project,
            cancel,
            latest,
            cleared: BTreeSet::new(),
            has_partial: false,
        };
        let mut tries = 1;
        let (inventory, at) = loop {
            let at = self.clock.now();
            let walked = walk.run(&mut watch).await;
            let shared = Arc::clone(&repository);
            let inventory = Arc::new(blocking(move || shared.take_inventory()).await?);
            let index = inventory.index_objects().iter().map(ToString::to_string).collect();
            let is_gone = watch.note_index(&index);
            if is_gone {
                self.note_doubt(project, &watch).await?;
            }
            // Nobody looks for what was lost if one list alone keeps this from being done.
            if let Err(error) = walked {
                tracing::warn!(project.id = ?project, "new backups are not walked: {error}");
                break (inventory, at);
            }
            if !is_gone || tries >= TRIES {
                break (inventory, at);
            }
            tries += 1;
        };
        let Walk { mut cleared, has_partial, .. } = walk;
        if watch.walked_upto == 0 {
            // What lists rested on may be what is gone.
            cleared.clear();
        }
        for problem in &inventory.problems {
            tracing::error!(project.id = ?project, "{} {}", problem.object, problem.what);
        }
        let is_harmed = !watch.seen.doubted.is_subset(&cleared) || !inventory.problems.is_empty();
        watch.is_in_doubt = is_harmed || (watch.is_in_doubt && watch.walked_upto < latest);
        if watch.is_in_doubt && !self.repositories.wholeness.is_in_doubt(project) {
            self.note_doubt(project, &watch).await?;
        }
        watched.lost_indexes += usize::from(has_partial);

        let (shared, listed, flag) = (Arc::clone(&repository), inventory.clone(), cancel.clone());
        let misfits = blocking(move || shared.find_misfits(&listed, &flag)).await?;
        for misfit in misfits {
            tracing::error!("pack {} is damaged: {}", misfit.pack, misfit.what);
            watched.damaged.insert(misfit.pack);
        }
        let upto = latest.min(watch.walked_upto);
        let (shared, listed) = (Arc::clone(&repository), inventory.clone());
        // A pack that is gone together with the index object passes for pruned.
        if blocking(move || shared.are_there(listed.index_objects())).await? {
            (watch.seen.present_at, watch.seen.present_upto) = (Some(at), upto);
        }
        self.store.save_watch(project, &watch, at).await?;
        if !watch.is_in_doubt {
            self.repositories.wholeness.forget_doubt(project);
        }
        Ok(Look { repository, watch, inventory, at, upto, cleared })
    }

    /// From here on lists are walked for every verdict, and after a restart too.
    async fn note_doubt(&self, project: &ProjectId, watch: &Watch) -> Result<(), RepositoryError> {
        self.repositories.wholeness.note_doubt(project);
        let watch = Watch { is_in_doubt: true, ..watch.clone() };
        Ok(self.store.save_watch(project, &watch, self.clock.now()).await?)
    }
}

impl Walk<'_> {
    /// Walks the lists of backups that are in doubt, and of those that were not walked before.
    /// An index object that vanished before anybody saw it shows by that alone.
    async fn run(&mut self, watch: &mut Watch) -> Result<(), RepositoryError> {
        self.has_partial = false;
        self.cleared.clear();
        self.walk_doubted(watch).await?;
        self.walk_new(watch).await
    }

    /// Some in one look, and others in the next.
    async fn walk_doubted(&mut self, watch: &mut Watch) -> Result<(), RepositoryError> {
        let after = watch.doubted_after;
        let later = watch.seen.doubted.range((Bound::Excluded(after), Bound::Unbounded));
        let in_turn = later.chain(watch.seen.doubted.range(..=after)).copied();
        let walked = in_turn.filter(|place| *place <= watch.walked_upto);
        let turn: Vec<u64> = walked.take(AGAIN_MAX).collect();
        let Some(last) = turn.last().copied() else { return Ok(()) };
        let turn: BTreeSet<u64> = turn.into_iter().collect();
        let rows = self.parts.store.find_snapshots(self.project, &turn).await?;
        let there: BTreeSet<u64> = rows.iter().map(|(place, _)| *place).collect();
        // A backup that was deleted is in nobody's way.
        watch.seen.doubted.retain(|place| !turn.contains(place) || there.contains(place));
        for page in rows.chunks(PAGE as usize) {
            self.walk_page(watch, page).await?;
        }
        watch.doubted_after = last;
        self.save(watch).await
    }

    async fn walk_new(&mut self, watch: &mut Watch) -> Result<(), RepositoryError> {
        let mut walked = 0;
        while walked < WALKS_MAX {
            let after = watch.walked_upto;
            let page = self.parts.store.list_snapshots_after(self.project, after, PAGE).await?;
            let last = page.last().map_or(after, |(last, _)| *last);
            let is_last = page.len() < PAGE as usize;
            let end = if is_last { last.max(self.latest) } else { last };
            if end > after {
                self.walk_page(watch, &page).await?;
                watch.walked_upto = end;
                self.save(watch).await?;
            }
            if is_last {
                break;
            }
            walked += page.len();
        }
        Ok(())
    }

    async fn save(&self, watch: &Watch) -> Result<(), RepositoryError> {
        let now = self.parts.clock.now();
        Ok(self.parts.store.save_watch(self.project, watch, now).await?)
    }

    async fn walk_page(
        &mut self,
        watch: &mut Watch,
        page: &[(u64, String)],
    ) -> Result<(), RepositoryError> {
        let named = |(place, snapshot): &(u64, String)| {
            Some((*place, snapshot.parse::<SnapshotId>().ok()?))
        };
        let (places, ids): (Vec<u64>, Vec<_>) = page.iter().filter_map(named).unzip();
        if ids.is_empty() {
            return Ok(());
        }
        let (shared, cancel) = (Arc::clone(self.repository), self.cancel.clone());
        let (listings, index) = blocking(move || shared.find_listed(&ids, &cancel)).await?;
        let seen = index.iter().map(ToString::to_string);
        let is_new = |seen: &String| !watch.read_index.contains_key(seen);
        watch.unread_index.extend(seen.filter(is_new));
        let mut is_harmed = false;
        for (place, listing) in places.into_iter().zip(listings) {
            if listing == Listing::Whole {
                self.cleared.extend(Some(place).filter(|place| watch.seen.doubted.contains(place)));
                continue;
            }
            self.has_partial |= listing == Listing::Partial;
            is_harmed = true;
            watch.seen.doubted.insert(place);
        }
        // Each time anew: what was walked between two looks may have been whole just then.
        if is_harmed {
            tracing::error!(project.id = ?self.project, "lists of backups are not whole");
            watch.is_in_doubt = true;
            self.parts.note_doubt(self.project, watch).await?;
        }
        Ok(())
    }
}
