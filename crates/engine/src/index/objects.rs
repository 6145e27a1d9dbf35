//! Which index objects the records come from. Packs are numbered in the order in which
//! objects are taken in, so an object owns a range of numbers, and forgetting an object
//! is a mark on its entry: records of its packs no longer count and are left out by the
//! next merge.
//!
//! Memory: 32 bytes per pack, one pack in some 30 to 60 blobs.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::table::PACK_NUMBERS;
use crate::{
    error::EngineError,
    id::{IndexId, PackId},
};

/// One object taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ObjectEntry {
    pub(super) id: IndexId,
    /// The number of its first pack.
    pub(super) first_pack: u32,
    pub(super) packs: u32,
    /// Records, repeated blobs counted each time.
    pub(super) blobs: u64,
    pub(super) is_alive: bool,
}

impl ObjectEntry {
    /// The number after its last pack's.
    pub(super) fn end(&self) -> u32 {
        self.first_pack.saturating_add(self.packs)
    }
}

#[derive(Debug, Default)]
pub(super) struct Objects {
    /// In the order of their packs' numbers.
    entries: Vec<ObjectEntry>,
    /// Positions of the living in `entries`.
    alive: HashMap<IndexId, usize>,
    packs: Vec<PackId>,
    dead_packs: usize,
}

impl Objects {
    /// What was once [`Self::entries`] and [`Self::packs`]; `None` when they do not fit.
    pub(super) fn restore(entries: Vec<ObjectEntry>, packs: Vec<PackId>) -> Option<Self> {
        let (mut alive, mut end, mut dead_packs) = (HashMap::new(), 0, 0);
        for (position, entry) in entries.iter().enumerate() {
            if entry.first_pack != end {
                return None;
            }
            end = end.checked_add(entry.packs).filter(|end| *end <= PACK_NUMBERS)?;
            if !entry.is_alive {
                dead_packs += entry.packs as usize;
            } else if alive.insert(entry.id, position).is_some() {
                return None;
            }
        }
        (end as usize == packs.len()).then_some(Self { entries, alive, packs, dead_packs })
    }

    /// Takes in an object and returns the number of its first pack. One that is there
    /// already is dead from the start: its records would only repeat others.
    pub(super) fn add(
        &mut self,
        id: IndexId,
        packs: &[PackId],
        blobs: u64,
    ) -> Result<u32, EngineError> {
        let too_many = |_| EngineError::bug("more than 2^31 packs in one index");
        let first_pack = u32::try_from(self.packs.len()).map_err(too_many)?;
        let count = u32::try_from(packs.len()).map_err(too_many)?;
        if first_pack.checked_add(count).is_none_or(|end| end > PACK_NUMBERS) {
            return Err(EngineError::bug("more than 2^31 packs in one index"));
        }
        let is_alive = !self.alive.contains_key(&id);
        if is_alive {
            self.alive.insert(id, self.entries.len());
        } else {
            self.dead_packs += packs.len();
        }
        self.packs.extend_from_slice(packs);
        self.entries.push(ObjectEntry { id, first_pack, packs: count, blobs, is_alive });
        Ok(first_pack)
    }

    pub(super) fn forget(&mut self, id: IndexId) {
        if let Some(entry) = self.alive.remove(&id).and_then(|at| self.entries.get_mut(at)) {
            entry.is_alive = false;
            self.dead_packs += entry.packs as usize;
        }
    }

    /// Whether more packs would be dead than alive without these objects.
    pub(super) fn is_mostly_dead_without(&self, gone: &[IndexId]) -> bool {
        let entries = gone.iter().filter_map(|id| self.entries.get(*self.alive.get(id)?));
        let dying: usize = entries.map(|entry| entry.packs as usize).sum();
        2 * (self.dead_packs + dying) > self.packs.len()
    }

    /// The pack of this number, `None` when its object was forgotten.
    pub(super) fn pack(&self, number: u32) -> Result<Option<PackId>, EngineError> {
        if self.dead_packs > 0 {
            let after = self.entries.partition_point(|entry| entry.first_pack <= number);
            let owner = after.checked_sub(1).and_then(|at| self.entries.get(at));
            if owner.is_some_and(|entry| !entry.is_alive) {
                return Ok(None);
            }
        }
        let pack = self.packs.get(number as usize).copied();
        pack.map(Some).ok_or_else(|| EngineError::bug("a record in the index without a pack"))
    }

    /// Ranges of the numbers of packs that do not count, sorted.
    pub(super) fn dead_ranges(&self) -> Vec<(u32, u32)> {
        let dead = self.entries.iter().filter(|entry| !entry.is_alive && entry.packs > 0);
        dead.map(|entry| (entry.first_pack, entry.end())).collect()
    }

    pub(super) fn contains(&self, id: &IndexId) -> bool {
        self.alive.contains_key(id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = IndexId> {
        self.alive.keys().copied()
    }

    pub(super) fn entries(&self) -> &[ObjectEntry] {
        &self.entries
    }

    pub(super) fn packs(&self) -> &[PackId] {
        &self.packs
    }

    pub(super) fn alive_packs(&self) -> usize {
        self.packs.len() - self.dead_packs
    }

    pub(super) fn alive_blobs(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.is_alive).map(|entry| entry.blobs).sum()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.packs.capacity() * size_of::<PackId>()
            + self.entries.capacity() * size_of::<ObjectEntry>()
            + self.alive.capacity() * (size_of::<IndexId>() + size_of::<usize>())
    }
}

/// Whether a number lies in one of the sorted ranges.
pub(super) fn is_in(ranges: &[(u32, u32)], number: u32) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= number);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, end)| number < *end)
}
