//! How much there is, and how much a deletion would free.

use std::collections::{HashMap, HashSet};

use crate::{
    backend::{ObjectKind, ObjectName},
    control::CancelFlag,
    error::EngineError,
    id::{PackId, SnapshotId, TreeId},
    index,
    pack::PackEntry,
    prune::used::Bits,
    repository::{Indexed, Repository},
};

/// What becomes unused when some snapshots are deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Blobs only these snapshots need.
    pub blobs: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Packs in which nothing needed is left.
    pub packs: u64,
}

/// A repository in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Snapshots.
    pub snapshots: u64,
    /// Packs in the store.
    pub packs: u64,
    /// Their size.
    pub stored_bytes: u64,
    /// Distinct blobs the snapshots need.
    pub used_blobs: u64,
    /// Their stored bytes.
    pub used_bytes: u64,
    /// The same, opened and decompressed.
    pub used_plain_bytes: u64,
    /// Stored bytes of blobs that no snapshot needs or that are stored elsewhere as well.
    pub unused_bytes: u64,
    /// Packs in the store that no index object lists.
    pub unindexed_packs: u64,
    /// Packs in the store that a prune will remove.
    pub condemned_packs: u64,
    /// Packs with damage on record.
    pub damaged_packs: u64,
}

impl Repository<Indexed> {
    /// Every pack the index objects list, in a fixed order; one that several list comes
    /// several times.
    fn for_each_pack(
        &self,
        cancel: &CancelFlag,
        mut call: impl FnMut(&PackEntry),
    ) -> Result<(), EngineError> {
        for object in index::list_objects(&self.vault)? {
            cancel.check()?;
            index::load_object(&self.vault, object)?.iter().for_each(&mut call);
        }
        Ok(())
    }

    /// What deleting these snapshots would free, once pruned: the stored bytes of blobs no
    /// other snapshot needs.
    pub fn what_deleting_frees(
        &self,
        snapshots: &[SnapshotId],
        cancel: &CancelFlag,
    ) -> Result<Freed, EngineError> {
        let all = self.list_snapshots()?;
        self.refresh()?;
        let trees = |doomed: bool| -> Vec<TreeId> {
            let chosen = all.iter().filter(|one| snapshots.contains(&one.id) == doomed);
            chosen.map(|one| one.tree).collect()
        };
        let (doomed, kept) = (self.walk(&trees(true), cancel)?, self.walk(&trees(false), cancel)?);
        let (mut freed, mut seen) = (Freed::default(), HashSet::new());
        let mut counted = Bits::none(&doomed);
        self.for_each_pack(cancel, |pack| {
            if !seen.insert(pack.id) {
                return;
            }
            let is_kept = pack.blobs.iter().any(|blob| kept.contains(blob.kind, blob.id));
            let was_used = pack.blobs.iter().any(|blob| doomed.contains(blob.kind, blob.id));
            freed.packs += u64::from(was_used && !is_kept);
            for blob in &pack.blobs {
                if !kept.contains(blob.kind, blob.id) && counted.set(blob.kind, blob.id) {
                    freed.blobs += 1;
                    freed.bytes += u64::from(blob.shape.length);
                }
            }
        })?;
        Ok(freed)
    }

    /// The repository in numbers. Walks all trees.
    pub fn stats(&self, cancel: &CancelFlag) -> Result<Stats, EngineError> {
        let snapshots = self.list_snapshots()?;
        self.refresh()?;
        let trees: Vec<_> = snapshots.iter().map(|snapshot| snapshot.tree).collect();
        let used = self.walk(&trees, cancel)?;
        let mut stats = Stats { snapshots: snapshots.len() as u64, ..Stats::default() };
        stats.used_blobs = used.len() as u64;
        let (mut seen, mut counted) = (HashSet::new(), Bits::none(&used));
        self.for_each_pack(cancel, |pack| {
            if !seen.insert(pack.id) {
                return;
            }
            for blob in &pack.blobs {
                let length = u64::from(blob.shape.length);
                if counted.set(blob.kind, blob.id) {
                    stats.used_bytes += length;
                    stats.used_plain_bytes += u64::from(blob.shape.plain_bytes());
                } else {
                    stats.unused_bytes += length;
                }
            }
        })?;
        let marks = self.state.index.marks();
        for (pack, size) in self.list_packs()? {
            stats.packs += 1;
            stats.stored_bytes += size;
            stats.unindexed_packs += u64::from(!seen.contains(&pack));
            stats.condemned_packs += u64::from(marks.condemned.contains(&pack));
        }
        let blobs = marks.damaged_blobs.iter().map(|(pack, _)| pack);
        let damaged: HashSet<_> = marks.damaged_packs.iter().chain(blobs).collect();
        stats.damaged_packs = damaged.len() as u64;
        Ok(stats)
    }

    /// The packs in the store, with their sizes.
    pub(crate) fn list_packs(&self) -> Result<HashMap<PackId, u64>, EngineError> {
        let listed = self.vault.list(ObjectKind::Pack)?.into_iter();
        let pack = |name| if let ObjectName::Pack(id) = name { Some(id) } else { None };
        Ok(listed.filter_map(|one| Some((pack(one.name)?, one.size_bytes))).collect())
    }
}
