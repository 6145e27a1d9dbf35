//! What a prune does, decided without touching anything.
//!
//! Every used blob gets one home: the first sound place in the order of the index. What a
//! pack holds beyond the blobs at home there is unused. Packs nobody is at home in are
//! condemned; of mostly unused ones, of many small ones, and of packs with damage, what is
//! at home there is copied first.
//!
//! Invariant: a used blob has a sound place that stays, or is copied to one, or its pack is
//! neither condemned nor removed.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::{
    backend::ObjectName,
    blob::BlobKind,
    error::EngineError,
    id::PackId,
    marks::Marks,
    pack::{self, PACK_BYTES, PackEntry, PackedBlob},
    prune::used::{Bits, UsedBlobs},
};

/// Packs below this are joined once many have come together.
const SMALL_PACK_BYTES: u64 = PACK_BYTES as u64 / 8;
/// So many: what is joined lies in a pack that is no longer small, or in one small pack
/// instead of sixteen.
const SMALL_PACKS_MIN: usize = 16;

/// How much a prune may leave and may copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Unused bytes that may stay in packs with used ones, in percent of the used bytes.
    pub(crate) unused_percent_max: u8,
    /// Bytes copied out of packs so that these can be removed.
    pub(crate) repack_bytes_max: u64,
}

/// What the plan is made of.
pub(crate) struct Facts<'a> {
    pub(crate) used: &'a UsedBlobs,
    pub(crate) marks: &'a Marks,
    /// The packs in the store, with their sizes; listed after the index was read.
    pub(crate) sizes: &'a HashMap<PackId, u64>,
    /// `None` while sweeping: then only what condemned packs still hold is copied.
    pub(crate) limits: Option<Limits>,
    /// Packs in no index object that nobody can be about to list any more.
    pub(crate) is_forsaken: &'a dyn Fn(PackId) -> bool,
}

/// Calls back with every pack of every index object, in the same order each time. A pack
/// that several objects list comes several times.
pub(crate) type EachPack<'a> = dyn Fn(&mut dyn FnMut(&PackEntry)) -> Result<(), EngineError> + 'a;

/// Blobs to be copied out of one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) pack: PackId,
    pub(crate) blobs: Vec<PackedBlob>,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Blobs that need a new place; those of packs in `repack` among them.
    pub(crate) copies: Vec<Copy>,
    /// Packs to be condemned as they are.
    pub(crate) condemn: Vec<PackId>,
    /// Packs to be condemned once their copies are durable.
    pub(crate) repack: Vec<PackId>,
    /// Packs in no index object that may yet get into one.
    pub(crate) suspects: Vec<PackId>,
    /// Packs with a used blob that has no sound place anywhere: kept as they are.
    pub(crate) hold_lost: HashSet<PackId>,
    /// Used blobs without a sound place.
    pub(crate) lost_blobs: u64,
    /// Stored bytes of used blobs, each counted once.
    pub(crate) used_bytes: u64,
    /// Other bytes in packs that stay.
    pub(crate) unused_bytes: u64,
    /// Packs that hold used blobs of which another copy goes: nobody may have looked at the
    /// one that stays.
    pub(crate) relied_on: BTreeSet<PackId>,
    /// Packs the index lists.
    pub(crate) packs: u64,
    /// Those among them that are condemned, or gone.
    pub(crate) listed_condemned: Vec<PackId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Sound,
    /// Some blobs are damaged.
    Partly,
    /// Damaged as a whole, by a mark.
    Whole,
    /// Not in the store, or of another size, and no mark says so.
    Missing,
    Condemned,
}

#[derive(Debug)]
struct Pack {
    standing: Standing,
    kind: BlobKind,
    size: u64,
    /// Sealed bytes of blobs that are at home here.
    home_bytes: u64,
    /// Sealed bytes of the others.
    other_bytes: u64,
}

impl Facts<'_> {
    fn standing(&self, pack: &PackEntry) -> Standing {
        let is_there = self.sizes.get(&pack.id) == Some(&pack::pack_bytes(&pack.blobs));
        let marks = self.marks;
        if marks.condemned.contains(&pack.id) {
            Standing::Condemned
        } else if marks.damaged_packs.contains(&pack.id) {
            Standing::Whole
        } else if !is_there {
            Standing::Missing
        } else if pack.blobs.iter().any(|blob| marks.damaged_blobs.contains(&(pack.id, blob.id))) {
            Standing::Partly
        } else {
            Standing::Sound
        }
    }

    /// Whether the blob can be copied out of a pack that is not sound.
    fn is_readable(&self, pack: &PackEntry, blob: &PackedBlob) -> bool {
        self.sizes.get(&pack.id) == Some(&pack::pack_bytes(&pack.blobs))
            && !self.marks.damaged_packs.contains(&pack.id)
            && !self.marks.damaged_blobs.contains(&(pack.id, blob.id))
    }

    fn is_used(&self, blob: &PackedBlob) -> bool {
        self.used.contains(blob.kind, blob.id)
    }
}

/// Decides. Refuses when a used blob is in no index object, or lies in a pack that is not
/// there without a mark that says so: then something is wrong that removing things would
/// make worse.
pub(crate) fn plan(facts: &Facts<'_>, each_pack: &EachPack<'_>) -> Result<Plan, EngineError> {
    let mut packs: HashMap<PackId, Pack> = HashMap::new();
    let mut order = Vec::new();
    let mut homes = Bits::none(facts.used);
    let mut known = Bits::none(facts.used);
    each_pack(&mut |entry| {
        if packs.contains_key(&entry.id) {
            return;
        }
        let pack = find_homes(facts, entry, &mut homes, &mut known);
        packs.insert(entry.id, pack);
        order.push(entry.id);
    })?;
    if known.count() < facts.used.len() as u64 {
        let missing = facts.used.len() as u64 - known.count();
        return Err(EngineError::damaged("index", format!("does not list {missing} used blobs")));
    }
    let mut plan = Plan { packs: packs.len() as u64, ..Plan::default() };
    let has = |standing| packs.values().any(|pack| pack.standing == standing);
    let mut leaving = HashMap::new();
    if has(Standing::Partly) || (has(Standing::Condemned) && homes.count() < known.count()) {
        each_pack(&mut |entry| find_way_out(facts, &packs, entry, &mut homes, &mut leaving))?;
    }
    plan.lost_blobs = facts.used.len() as u64 - homes.count();
    if plan.lost_blobs > 0 {
        plan.hold_lost = find_lost(facts, &packs, &homes, each_pack)?;
        let missing = plan
            .hold_lost
            .iter()
            .find(|id| packs.get(id).is_some_and(|pack| pack.standing == Standing::Missing));
        if let Some(missing) = missing {
            return Err(EngineError::damaged(
                ObjectName::Pack(*missing),
                "is needed, and missing or not as long as the index says",
            ));
        }
    }
    let repack = choose_repack(facts, &packs, &order);
    copy_out_of_sound(facts, &packs, &repack, each_pack, &mut plan)?;
    for id in &order {
        let Some(pack) = packs.get(id) else { continue };
        let leaves = leaving.remove(id).unwrap_or_default();
        settle(facts, *id, pack, leaves, repack.contains(id), &mut plan);
    }
    let mut unlisted: Vec<_> = facts.sizes.keys().filter(|id| !packs.contains_key(id)).collect();
    unlisted.sort_unstable();
    for id in unlisted.into_iter().filter(|id| !facts.marks.condemned.contains(id)) {
        let list = if (facts.is_forsaken)(*id) { &mut plan.condemn } else { &mut plan.suspects };
        list.push(*id);
    }
    plan.relied_on = find_relied_on(facts, &packs, &plan, each_pack)?;
    Ok(plan)
}

/// Goes the way [`find_homes`] went, twice: first for blobs of which a copy goes that could be
/// read, and then for the packs that they stay in.
fn find_relied_on(
    facts: &Facts<'_>,
    packs: &HashMap<PackId, Pack>,
    plan: &Plan,
    each_pack: &EachPack<'_>,
) -> Result<BTreeSet<PackId>, EngineError> {
    let going: HashSet<_> = plan.condemn.iter().chain(&plan.repack).collect();
    let mut relied_on = BTreeSet::new();
    if going.is_empty() {
        return Ok(relied_on);
    }
    let mut copied = Bits::none(facts.used);
    let each_blob = |call: &mut dyn FnMut(&PackEntry, &PackedBlob, bool)| {
        let mut homes = Bits::none(facts.used);
        let mut seen = HashSet::new();
        each_pack(&mut |entry| {
            if !seen.insert(entry.id) {
                return;
            }
            let pack = packs.get(&entry.id);
            let is_sound = pack.is_some_and(|pack| pack.standing == Standing::Sound);
            for blob in &entry.blobs {
                call(entry, blob, is_sound && homes.set(blob.kind, blob.id));
            }
        })
    };
    each_blob(&mut |entry, blob, is_home| {
        if !is_home && going.contains(&entry.id) && facts.is_readable(entry, blob) {
            copied.set(blob.kind, blob.id);
        }
    })?;
    if copied.count() > 0 {
        each_blob(&mut |entry, blob, is_home| {
            if is_home && copied.get(blob.kind, blob.id) {
                relied_on.insert(entry.id);
            }
        })?;
    }
    Ok(relied_on)
}

fn find_homes(
    facts: &Facts<'_>,
    entry: &PackEntry,
    homes: &mut Bits<'_>,
    known: &mut Bits<'_>,
) -> Pack {
    let standing = facts.standing(entry);
    let kind = entry.blobs.first().map_or(BlobKind::Data, |blob| blob.kind);
    let size = facts.sizes.get(&entry.id).copied().unwrap_or(0);
    let mut pack = Pack { standing, kind, size, home_bytes: 0, other_bytes: 0 };
    for blob in &entry.blobs {
        known.set(blob.kind, blob.id);
        let length = u64::from(blob.shape.length);
        if standing == Standing::Sound && homes.set(blob.kind, blob.id) {
            pack.home_bytes += length;
        } else {
            pack.other_bytes += length;
        }
    }
    pack
}

/// Used blobs without a sound home are copied out of packs that are not sound.
fn find_way_out(
    facts: &Facts<'_>,
    packs: &HashMap<PackId, Pack>,
    entry: &PackEntry,
    homes: &mut Bits<'_>,
    leaving: &mut HashMap<PackId, Vec<PackedBlob>>,
) {
    match packs.get(&entry.id).map(|pack| pack.standing) {
        Some(Standing::Partly | Standing::Condemned) => {}
        Some(Standing::Sound | Standing::Whole | Standing::Missing) | None => return,
    }
    for blob in &entry.blobs {
        if facts.is_readable(entry, blob) && homes.set(blob.kind, blob.id) {
            leaving.entry(entry.id).or_default().push(*blob);
        }
    }
}

fn find_lost(
    facts: &Facts<'_>,
    packs: &HashMap<PackId, Pack>,
    homes: &Bits<'_>,
    each_pack: &EachPack<'_>,
) -> Result<HashSet<PackId>, EngineError> {
    let mut holders = HashSet::new();
    each_pack(&mut |entry| {
        let is_lost = |b: &PackedBlob| facts.is_used(b) && !homes.get(b.kind, b.id);
        let is_there = packs.contains_key(&entry.id);
        if is_there && entry.blobs.iter().any(is_lost) {
            holders.insert(entry.id);
        }
    })?;
    Ok(holders)
}

/// The worst packs first, until no more than allowed is unused; then small ones.
fn choose_repack(
    facts: &Facts<'_>,
    packs: &HashMap<PackId, Pack>,
    order: &[PackId],
) -> HashSet<PackId> {
    let mut chosen = HashSet::new();
    let Some(limits) = facts.limits else { return chosen };
    let sound = || {
        let found = order.iter().filter_map(|id| packs.get(id).map(|pack| (*id, pack)));
        found.filter(|(_, pack)| pack.standing == Standing::Sound && pack.home_bytes > 0)
    };
    let used: u64 = sound().map(|(_, pack)| pack.home_bytes).sum();
    let allowed = used / 100 * u64::from(limits.unused_percent_max);
    let mut unused: u64 = sound().map(|(_, pack)| pack.other_bytes).sum();
    let mut left = limits.repack_bytes_max;
    let mut take = |id: PackId, pack: &Pack| {
        let fits = pack.home_bytes <= left;
        if fits {
            left -= pack.home_bytes;
            chosen.insert(id);
        }
        fits
    };
    let mut worst: Vec<_> = sound().filter(|(_, pack)| pack.other_bytes > 0).collect();
    let share = |pack: &Pack| u128::from(pack.other_bytes);
    worst.sort_by(|(_, a), (_, b)| {
        // other / (home + other), without division.
        let (left, right) =
            (share(b) * u128::from(a.home_bytes), share(a) * u128::from(b.home_bytes));
        left.cmp(&right)
    });
    for (id, pack) in worst {
        if unused <= allowed {
            break;
        }
        if take(id, pack) {
            unused -= pack.other_bytes;
        }
    }
    for kind in [BlobKind::Data, BlobKind::Tree] {
        let is_small = |pack: &Pack| pack.kind == kind && pack.size < SMALL_PACK_BYTES;
        let small: Vec<_> = sound().filter(|(_, pack)| is_small(pack)).collect();
        if small.len() >= SMALL_PACKS_MIN {
            for (id, pack) in small {
                take(id, pack);
            }
        }
    }
    chosen
}

/// Goes the way [`find_homes`] went, so every blob is found at home in the same pack.
fn copy_out_of_sound(
    facts: &Facts<'_>,
    packs: &HashMap<PackId, Pack>,
    repack: &HashSet<PackId>,
    each_pack: &EachPack<'_>,
    plan: &mut Plan,
) -> Result<(), EngineError> {
    if repack.is_empty() {
        return Ok(());
    }
    let mut homes = Bits::none(facts.used);
    let mut seen = HashSet::new();
    each_pack(&mut |entry| {
        let is_sound = packs.get(&entry.id).is_some_and(|pack| pack.standing == Standing::Sound);
        if !is_sound || !seen.insert(entry.id) {
            return;
        }
        let at_home = entry.blobs.iter().filter(|blob| homes.set(blob.kind, blob.id));
        let blobs: Vec<_> = at_home.copied().collect();
        if repack.contains(&entry.id) {
            plan.copies.push(Copy { pack: entry.id, blobs });
        }
    })
}

fn settle(
    facts: &Facts<'_>,
    id: PackId,
    pack: &Pack,
    leaves: Vec<PackedBlob>,
    is_repacked: bool,
    plan: &mut Plan,
) {
    let left_bytes: u64 = leaves.iter().map(|blob| u64::from(blob.shape.length)).sum();
    plan.used_bytes += pack.home_bytes + left_bytes;
    let is_sweep = facts.limits.is_none();
    match pack.standing {
        Standing::Sound if is_repacked => plan.repack.push(id),
        Standing::Sound if pack.home_bytes == 0 && !is_sweep => plan.condemn.push(id),
        Standing::Sound => plan.unused_bytes += pack.other_bytes,
        Standing::Condemned => plan.listed_condemned.push(id),
        // Looked at by a run that does not sweep.
        Standing::Partly | Standing::Whole | Standing::Missing if is_sweep => return,
        Standing::Partly | Standing::Whole | Standing::Missing if plan.hold_lost.contains(&id) => {
            return;
        }
        Standing::Whole | Standing::Missing => plan.condemn.push(id),
        Standing::Partly => plan.repack.push(id),
    }
    if !leaves.is_empty() {
        plan.copies.push(Copy { pack: id, blobs: leaves });
    }
}
