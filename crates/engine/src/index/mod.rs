//! Where the blobs are, by the index objects of the repository.
//!
//! What was taken in last is in memory, some 64 Ki records. The rest is in sorted segments
//! (`table`), in files of a cache directory or, without one, in memory. Segments are
//! merged so that few are left. Memory is thus bounded but for 32 bytes per pack, 8 bytes
//! per 128 blobs, and what one batch of index objects takes while it is read.
//!
//! Invariants: only blobs listed in durable index objects are found here. Nothing else may
//! be deduplicated against, or a snapshot could name a blob that a crash takes away. A
//! place with a mark (`marks`) is not deduplicated against either. All records of an
//! object that is taken in can be found at any time, wherever they are being moved.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io, mem,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    backend::ObjectName,
    blob::{BlobKind, Shape},
    crypto::Key,
    error::EngineError,
    id::{BlobId, IndexId, PackId, RepositoryId},
    marks::{Marks, Standing},
    pack::PackEntry,
    vault::Vault,
};

mod cache;
mod format;
mod objects;
mod table;

use cache::Home;
pub(crate) use format::{INDEX_BLOBS_MAX, list_objects, load_object, store_object};
use objects::{ObjectEntry, Objects, is_in};
use table::{Bytes, MergeError, Record, Segment, Sought, choose_merge, merge};

/// Where a blob lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
    pub(crate) shape: Shape,
}

/// How large the index is and what it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexReport {
    /// Index objects in use.
    pub objects: usize,
    /// Index objects that cannot be used.
    pub damaged_objects: usize,
    /// Packs listed; one listed by two objects counts twice.
    pub packs: usize,
    /// Blobs listed; one that lies in two places counts twice.
    pub blobs: u64,
    /// Sorted segments a look-up may have to read.
    pub segments: usize,
    /// What the index takes in memory, computed.
    pub memory_bytes: usize,
    /// Size of its files.
    pub file_bytes: u64,
    /// Whether the files are found again by the next process.
    pub is_kept: bool,
    /// Why the cache directory could not be used as it should, if so.
    pub cache_trouble: Option<String>,
}

/// Sizes at which things move on.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Records in the tail; some 5 MB.
    tail_records: usize,
    /// Index objects in the tail: a process that finds the cache reads these anew.
    tail_objects: usize,
    /// Records collected of index objects while loading; 12 MB.
    batch_records: usize,
    /// Segments while loading; each costs 48 KiB when they are merged.
    segments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tail_records: 64 << 10, tail_objects: 64, batch_records: 256 << 10, segments: 64 }
    }
}

#[derive(Default)]
struct State {
    objects: Objects,
    segments: Vec<Arc<Segment>>,
    /// What is in no segment yet.
    tail: BTreeSet<Bytes>,
    /// Objects before this position in [`Objects::entries`] have no records in the tail.
    settled: usize,
    /// Counts changes of what is to be saved.
    generation: u64,
}

impl State {
    fn is_tail_full(&self, limits: &Limits) -> bool {
        self.tail.len() > limits.tail_records
            || self.objects.entries().len() - self.settled >= limits.tail_objects
    }

    /// The objects all of whose records lie in segments, and the packs of these.
    fn settled(&self) -> (&[ObjectEntry], &[PackId]) {
        let entries = &self.objects.entries()[..self.settled];
        let packs = entries.last().map_or(0, ObjectEntry::end);
        (entries, &self.objects.packs()[..packs as usize])
    }

    fn forget(&mut self, id: IndexId) {
        self.objects.forget(id);
        self.generation += 1;
    }

    /// Turns the tail into a segment.
    fn freeze(&mut self) {
        self.settled = self.objects.entries().len();
        self.generation += 1;
        if !self.tail.is_empty() {
            let records = mem::take(&mut self.tail).into_iter().collect();
            self.segments.push(Arc::new(Segment::in_memory(records)));
        }
    }

    /// Takes in a batch at once.
    fn add(&mut self, mut batch: Batch, limits: &Limits) -> Result<(), EngineError> {
        let mut first_packs = Vec::with_capacity(batch.objects.len());
        for object in &batch.objects {
            first_packs.push(self.objects.add(object.id, &object.packs, object.blobs)?);
        }
        // Objects are numbered one after the other, as they are in the batch.
        let first = first_packs.first().copied().unwrap_or(0);
        for bytes in &mut batch.records {
            let record = Record::from_bytes(bytes);
            *bytes = Record { pack: record.pack + first, ..record }.to_bytes();
        }
        if self.tail.len() + batch.records.len() <= limits.tail_records {
            self.tail.extend(batch.records);
            if self.is_tail_full(limits) {
                self.freeze();
            }
        } else {
            self.freeze();
            if !batch.records.is_empty() {
                self.segments.push(Arc::new(Segment::in_memory(batch.records)));
            }
        }
        Ok(())
    }

    fn visit(
        &self,
        sought: &Sought,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let tail = self.tail.range(sought.first()..).take_while(|bytes| sought.is_of(bytes));
        for bytes in tail {
            if visit(Record::from_bytes(bytes)).is_break() {
                return Ok(());
            }
        }
        for segment in &self.segments {
            if segment.visit(sought, visit)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Puts `new` in the place of `old`.
    fn replace(&mut self, old: &[Arc<Segment>], new: Segment) {
        self.generation += 1;
        self.segments.retain(|segment| !old.iter().any(|other| Arc::ptr_eq(segment, other)));
        if new.records() > 0 {
            self.segments.push(Arc::new(new));
        }
        // The largest has most of the blobs.
        self.segments.sort_by_key(|segment| std::cmp::Reverse(segment.records()));
    }
}

/// Index objects on their way in.
#[derive(Default)]
struct Batch {
    objects: Vec<BatchObject>,
    /// Packs are numbered from 0 on.
    records: Vec<Bytes>,
    packs: u32,
}

struct BatchObject {
    id: IndexId,
    packs: Vec<PackId>,
    blobs: u64,
}

impl Batch {
    fn push(&mut self, id: IndexId, packs: &[PackEntry]) -> Result<(), EngineError> {
        let before = self.records.len();
        for pack in packs {
            for blob in &pack.blobs {
                let (offset, shape) = (blob.offset, blob.shape);
                let record =
                    Record { id: blob.id, kind: blob.kind, pack: self.packs, offset, shape };
                self.records.push(record.to_bytes());
            }
            self.packs = self
                .packs
                .checked_add(1)
                .filter(|packs| *packs < table::PACK_NUMBERS)
                .ok_or_else(|| EngineError::bug("more than 2^31 packs in one index object"))?;
        }
        let blobs = (self.records.len() - before) as u64;
        let packs = packs.iter().map(|pack| pack.id).collect();
        self.objects.push(BatchObject { id, packs, blobs });
        Ok(())
    }
}

/// The blobs of all durable index objects seen so far.
pub(crate) struct Index {
    state: RwLock<State>,
    home: Home,
    limits: Limits,
    marks: RwLock<Arc<Marks>>,
    damaged: Mutex<BTreeMap<IndexId, String>>,
    /// [`State::generation`] of what the next process finds.
    saved: AtomicU64,
    /// A file turned out wrong: the next refresh reads everything anew.
    is_broken: AtomicBool,
    cache_trouble: Mutex<Option<String>>,
    /// Held while refreshing, so that two refreshes do not read everything twice.
    refreshing: Mutex<()>,
    /// Held while segments are written, merged and removed.
    maintaining: Mutex<()>,
}

impl Default for Index {
    /// An empty index in memory.
    fn default() -> Self {
        Self::new(Home::Memory, Limits::default())
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Index").field(&self.report()).finish()
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(state: &RwLock<State>) -> RwLockReadGuard<'_, State> {
    state.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(state: &RwLock<State>) -> RwLockWriteGuard<'_, State> {
    state.write().unwrap_or_else(PoisonError::into_inner)
}

/// How much [`Index::maintain`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// More is about to come: only what bounds memory and the number of segments.
    Spill,
    /// Few segments are left.
    Settle,
}

impl Index {
    fn new(home: Home, limits: Limits) -> Self {
        Self {
            state: RwLock::default(),
            home,
            limits,
            marks: RwLock::default(),
            damaged: Mutex::default(),
            saved: AtomicU64::new(0),
            is_broken: AtomicBool::new(false),
            cache_trouble: Mutex::default(),
            refreshing: Mutex::default(),
            maintaining: Mutex::default(),
        }
    }

    /// An index that lies in files below `dir`, with what an earlier process left there.
    /// A directory that cannot be used costs memory, not the index.
    pub(crate) fn in_dir(dir: &Path, repository: RepositoryId, key: &Key) -> Self {
        Self::in_dir_with(dir, repository, key, Limits::default())
    }

    fn in_dir_with(dir: &Path, repository: RepositoryId, key: &Key, limits: Limits) -> Self {
        let (home, trouble) = match Home::open(dir, repository, key) {
            Ok(home) => (home, None),
            Err(error) => (Home::Memory, Some(error.to_string())),
        };
        let mut index = Self::new(home, limits);
        index.cache_trouble = Mutex::new(trouble);
        if let Home::Kept(cache) = &index.home
            && let Some(restored) = cache.restore()
        {
            let settled = restored.objects.entries().len();
            let (objects, segments) = (restored.objects, restored.segments);
            index.state = RwLock::new(State { objects, segments, settled, ..State::default() });
        }
        index
    }

    /// Replaces what is known against packs and blobs.
    pub(crate) fn set_marks(&self, marks: Marks) {
        *self.marks.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(marks);
    }

    /// What is known against packs and blobs.
    pub(crate) fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.marks.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Shows all places of the blob until the visitor has enough.
    fn visit(
        &self,
        kind: BlobKind,
        id: BlobId,
        mut visit: impl FnMut(Location) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let state = read(&self.state);
        let mut trouble = None;
        let visited = state.visit(&Sought { kind, id }, &mut |record| match state
            .objects
            .pack(record.pack)
        {
            Ok(None) => ControlFlow::Continue(()),
            Ok(Some(pack)) => visit(Location { pack, offset: record.offset, shape: record.shape }),
            Err(error) => {
                trouble = Some(error);
                ControlFlow::Break(())
            }
        });
        let trouble =
            visited.map_err(|error| EngineError::IndexCache(error.to_string())).err().or(trouble);
        match trouble {
            None => Ok(()),
            Some(error) => {
                self.is_broken.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// The best place of the blob: a sound one when there is any, else a condemned, else
    /// a damaged one.
    pub(crate) fn find(&self, kind: BlobKind, id: BlobId) -> Result<Option<Location>, EngineError> {
        Ok(self.find_with_standing(kind, id)?.map(|(_, place)| place))
    }

    /// Whether the blob has a sound place, and so may be deduplicated against.
    pub(crate) fn contains(&self, kind: BlobKind, id: BlobId) -> Result<bool, EngineError> {
        let best = self.find_with_standing(kind, id)?;
        Ok(best.is_some_and(|(standing, _)| standing == Standing::Sound))
    }

    fn find_with_standing(
        &self,
        kind: BlobKind,
        id: BlobId,
    ) -> Result<Option<(Standing, Location)>, EngineError> {
        let marks = self.marks();
        let mut best: Option<(Standing, Location)> = None;
        self.visit(kind, id, |place| {
            let standing = marks.standing(place.pack, id);
            if best.is_none_or(|(best, _)| standing < best) {
                best = Some((standing, place));
            }
            match standing {
                Standing::Sound => ControlFlow::Break(()),
                Standing::Condemned | Standing::Damaged => ControlFlow::Continue(()),
            }
        })?;
        Ok(best)
    }

    /// All places of the blob, the best first.
    pub(crate) fn find_all(
        &self,
        kind: BlobKind,
        id: BlobId,
    ) -> Result<Vec<Location>, EngineError> {
        let mut places = Vec::new();
        self.visit(kind, id, |place| {
            // Two index objects may list one pack.
            if !places.contains(&place) {
                places.push(place);
            }
            ControlFlow::Continue(())
        })?;
        let marks = self.marks();
        places.sort_by_key(|place| marks.standing(place.pack, id));
        Ok(places)
    }

    /// Index objects that could not be used at the last refresh, each with what is wrong.
    /// What they list is not found.
    pub(crate) fn damaged_objects(&self) -> Vec<(IndexId, String)> {
        guard(&self.damaged).iter().map(|(id, what)| (*id, what.clone())).collect()
    }

    /// The index objects that answers come from.
    pub(crate) fn objects(&self) -> BTreeSet<IndexId> {
        read(&self.state).objects.ids().collect()
    }

    /// Whether a mark says that the blob's place in this pack is damaged.
    pub(crate) fn is_marked(&self, pack: PackId, blob: BlobId) -> bool {
        self.marks().standing(pack, blob) == Standing::Damaged
    }

    /// Those of them that list a pack.
    pub(crate) fn objects_of(&self, pack: PackId) -> BTreeSet<IndexId> {
        let state = read(&self.state);
        let (entries, all) = (state.objects.entries(), state.objects.packs());
        let lists = |entry: &&ObjectEntry| {
            let range = entry.first_pack as usize..entry.end() as usize;
            all.get(range).is_some_and(|packs| packs.contains(&pack))
        };
        let alive = entries.iter().filter(|entry| entry.is_alive);
        alive.filter(lists).map(|entry| entry.id).collect()
    }

    pub(crate) fn report(&self) -> IndexReport {
        let state = read(&self.state);
        // An entry of a tree's node that is two thirds full.
        let tail = state.tail.len() * size_of::<Bytes>() * 3 / 2;
        let segments: usize = state.segments.iter().map(|segment| segment.memory_bytes()).sum();
        let files = state.segments.iter().filter(|segment| !segment.is_in_memory());
        let file_records: usize = files.map(|segment| segment.records()).sum();
        let is_kept = matches!(self.home, Home::Kept(_));
        let packs = if is_kept { size_of_val(state.objects.packs()) } else { 0 };
        IndexReport {
            objects: state.objects.ids().count(),
            damaged_objects: guard(&self.damaged).len(),
            packs: state.objects.alive_packs(),
            blobs: state.objects.alive_blobs(),
            segments: state.segments.len(),
            memory_bytes: tail + segments + state.objects.memory_bytes(),
            file_bytes: (file_records * size_of::<Bytes>() + packs) as u64,
            is_kept,
            cache_trouble: guard(&self.cache_trouble).clone(),
        }
    }

    /// Takes in an index object this process has just made durable.
    pub(crate) fn add_durable(
        &self,
        object: IndexId,
        packs: &[PackEntry],
    ) -> Result<(), EngineError> {
        let mut batch = Batch::default();
        batch.push(object, packs)?;
        batch.records.sort_unstable();
        let must_maintain = {
            let mut state = write(&self.state);
            if state.objects.contains(&object) {
                return Ok(());
            }
            let segments = state.segments.len();
            state.add(batch, &self.limits)?;
            state.segments.len() > segments
        };
        if must_maintain {
            let _one_at_a_time = guard(&self.maintaining);
            self.maintain(&self.state, Effort::Settle);
            self.save();
        }
        Ok(())
    }

    /// Reads index objects not seen yet and forgets those that have vanished, which
    /// only a prune makes. Damaged objects are noted and passed over.
    pub(crate) fn refresh(&self, vault: &Vault) -> Result<(), EngineError> {
        let _one_at_a_time = guard(&self.refreshing);
        for _ in 1..REFRESH_TRIES {
            // The list is out of date when a prune runs at the same time.
            if self.refresh_once(vault)?.is_empty() && !self.is_broken.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        let vanished = self.refresh_once(vault)?;
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(EngineError::IndexCache("its files keep changing".into()));
        }
        let what = "is listed again and again, but not there";
        guard(&self.damaged).extend(vanished.into_iter().map(|id| (id, what.into())));
        Ok(())
    }

    /// Forgets what was read of objects that cannot be read any more. They are tried again at
    /// each refresh.
    pub(crate) fn forget_damaged(&self, objects: &[(IndexId, String)]) {
        if objects.is_empty() {
            return;
        }
        let _one_at_a_time = guard(&self.refreshing);
        let mut state = write(&self.state);
        let known: HashSet<IndexId> = state.objects.ids().collect();
        for (id, _) in objects.iter().filter(|(id, _)| known.contains(id)) {
            state.forget(*id);
        }
        guard(&self.damaged).extend(objects.iter().cloned());
    }

    /// Returns objects that were listed and then not there.
    fn refresh_once(&self, vault: &Vault) -> Result<Vec<IndexId>, EngineError> {
        // Before the list, so that what sessions add meanwhile is not taken for vanished.
        let known: HashSet<IndexId> = read(&self.state).objects.ids().collect();
        let listed = list_objects(vault)?;
        let present: HashSet<IndexId> = listed.iter().copied().collect();
        guard(&self.damaged).retain(|id, _| present.contains(id));
        let mut gone = Vec::new();
        for id in known.difference(&present) {
            // Lists of some stores lag behind; forgetting takes more than that.
            if !vault.exists(&ObjectName::Index(*id))? {
                gone.push(*id);
            }
        }
        let is_broken = self.is_broken.load(Ordering::Relaxed);
        if is_broken || read(&self.state).objects.is_mostly_dead_without(&gone) {
            return self.rebuild(vault, &gone, listed);
        }
        let new = listed.into_iter().filter(|id| !known.contains(id)).collect();
        let vanished = self.load(vault, new, &self.state, None);
        {
            let mut state = write(&self.state);
            gone.into_iter().for_each(|id| state.forget(id));
        }
        let _one_at_a_time = guard(&self.maintaining);
        self.maintain(&self.state, Effort::Settle);
        self.save();
        vanished
    }

    /// Reads everything anew, when that costs less than carrying along what was
    /// forgotten, or when files are wrong.
    fn rebuild(
        &self,
        vault: &Vault,
        gone: &[IndexId],
        missing: Vec<IndexId>,
    ) -> Result<Vec<IndexId>, EngineError> {
        // Also keeps saving and cleaning up away from files made here.
        let maintaining = guard(&self.maintaining);
        let was_broken = self.is_broken.swap(false, Ordering::Relaxed);
        let vanished = self.rebuild_state(vault, gone, missing, &maintaining);
        if vanished.is_err() {
            self.is_broken.fetch_or(was_broken, Ordering::Relaxed);
        }
        self.maintain(&self.state, Effort::Settle);
        self.save();
        vanished
    }

    fn rebuild_state(
        &self,
        vault: &Vault,
        gone: &[IndexId],
        mut missing: Vec<IndexId>,
        maintaining: &MutexGuard<'_, ()>,
    ) -> Result<Vec<IndexId>, EngineError> {
        let fresh = RwLock::new(State::default());
        let gone: HashSet<&IndexId> = gone.iter().collect();
        let (mut tried, mut vanished) = (HashSet::new(), Vec::new());
        loop {
            tried.extend(missing.iter().copied());
            vanished.extend(self.load(vault, missing, &fresh, Some(maintaining))?);
            let mut state = write(&self.state);
            // Sessions of this process may have made more durable meanwhile, and lists
            // may lag behind.
            let added = state.objects.ids().filter(|id| !gone.contains(id) && !tried.contains(id));
            missing = added.collect();
            if missing.is_empty() {
                let generation = state.generation + 1;
                *state = State { generation, ..mem::take(&mut *write(&fresh)) };
                return Ok(vanished);
            }
        }
    }

    /// Takes in objects; returns those that are not there.
    fn load(
        &self,
        vault: &Vault,
        objects: Vec<IndexId>,
        state: &RwLock<State>,
        maintaining: Option<&MutexGuard<'_, ()>>,
    ) -> Result<Vec<IndexId>, EngineError> {
        let mut batch = Batch::default();
        let mut vanished = Vec::new();
        for id in objects {
            match load_object(vault, id) {
                Ok(packs) => {
                    guard(&self.damaged).remove(&id);
                    batch.push(id, &packs)?;
                }
                Err(error) if error.is_retryable() || matches!(error, EngineError::Bug(_)) => {
                    // What was read is worth keeping.
                    self.take_in(batch, state, maintaining)?;
                    return Err(error);
                }
                Err(_) if !vault.exists(&ObjectName::Index(id))? => vanished.push(id),
                Err(error) => {
                    guard(&self.damaged).insert(id, error.to_string());
                }
            }
            if batch.records.len() >= self.limits.batch_records {
                self.take_in(mem::take(&mut batch), state, maintaining)?;
            }
        }
        self.take_in(batch, state, maintaining)?;
        Ok(vanished)
    }

    fn take_in(
        &self,
        mut batch: Batch,
        state: &RwLock<State>,
        maintaining: Option<&MutexGuard<'_, ()>>,
    ) -> Result<(), EngineError> {
        batch.records.sort_unstable();
        write(state).add(batch, &self.limits)?;
        let _one_at_a_time = maintaining.is_none().then(|| guard(&self.maintaining));
        self.maintain(state, Effort::Spill);
        Ok(())
    }

    /// Bounds the number of segments and moves those in memory to where they belong.
    /// What fails is tried again the next time; nothing is lost meanwhile. The caller
    /// holds `maintaining`.
    fn maintain(&self, state: &RwLock<State>, effort: Effort) {
        match self.merge_some(state, effort).and_then(|()| self.spill(state)) {
            Ok(()) => {}
            Err(MergeError::Writing(error)) => self.note_trouble(&error),
            Err(MergeError::Reading(what)) => {
                self.is_broken.store(true, Ordering::Relaxed);
                *guard(&self.cache_trouble) = Some(what);
            }
        }
    }

    fn note_trouble(&self, error: &io::Error) {
        *guard(&self.cache_trouble) = Some(error.to_string());
    }

    fn merge_some(&self, state: &RwLock<State>, effort: Effort) -> Result<(), MergeError> {
        let segments = read(state).segments.clone();
        let chosen = match effort {
            Effort::Spill if segments.len() <= self.limits.segments => return Ok(()),
            Effort::Spill => segments,
            Effort::Settle => {
                let sizes: Vec<_> = segments.iter().map(|segment| segment.records()).collect();
                let Some(chosen) = choose_merge(&sizes) else { return Ok(()) };
                chosen.into_iter().map(|at| Arc::clone(&segments[at])).collect()
            }
        };
        self.merge_into_one(state, &chosen)
    }

    fn spill(&self, state: &RwLock<State>) -> Result<(), MergeError> {
        if matches!(self.home, Home::Memory) {
            return Ok(());
        }
        let mut segments = read(state).segments.clone();
        segments.retain(|segment| segment.is_in_memory());
        segments.into_iter().try_for_each(|segment| self.merge_into_one(state, &[segment]))
    }

    fn merge_into_one(
        &self,
        state: &RwLock<State>,
        segments: &[Arc<Segment>],
    ) -> Result<(), MergeError> {
        let dead = read(state).objects.dead_ranges();
        let target = self.home.target().map_err(MergeError::Writing)?;
        let merged = merge(segments, &|pack| !is_in(&dead, pack), target)?;
        write(state).replace(segments, merged);
        Ok(())
    }

    /// Makes what lies in segments what the next process finds. The caller holds
    /// `maintaining`.
    fn save(&self) {
        let Home::Kept(cache) = &self.home else { return };
        let (saved, generation) = {
            let state = read(&self.state);
            if state.generation == self.saved.load(Ordering::Relaxed) {
                return;
            }
            let (entries, packs) = state.settled();
            (cache.save(entries, packs, &state.segments), state.generation)
        };
        match saved {
            Ok(()) => {
                self.saved.store(generation, Ordering::Relaxed);
                *guard(&self.cache_trouble) = None;
            }
            Err(error) => self.note_trouble(&error),
        }
    }
}

/// A prune replaces the index within one of them.
const REFRESH_TRIES: usize = 4;

#[cfg(test)]
mod tests;
