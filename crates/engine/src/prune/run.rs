//! A prune as it is carried out. The order of writing and removing is the module's
//! (see [`crate::prune`]); every step can be the last one.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap, HashSet},
    mem,
};

use crate::{
    backend::{BackendError, ObjectName},
    blob::{BlobKind, Decoder},
    control::{CancelFlag, Gate, Progress},
    error::EngineError,
    id::{IndexId, MarkId, PackId},
    index::{self, INDEX_BLOBS_MAX},
    lock::{self, Held, Mode},
    marks::{self, MarkFile, PackDamage, StoredMarks},
    pack::{PackBuilder, PackEntry},
    prune::{
        ForeignLocks, PruneOptions, PruneReport, Walked,
        plan::{self, Copy, Facts, Limits, Plan},
    },
    read::blob_name,
    repository::{Indexed, Repository},
};

/// Lock objects are renewed when the clock says that this has passed, in either direction.
const RENEW_MICROS: u64 = 5 * 60 * 1_000_000;
/// Packs removed between two looks at the exclusive lock.
const REMOVE_BATCH: usize = 32;
/// Removed packs that are remembered. A process would have to sleep, in the middle of one
/// write, until so many more have been removed before its index object is believed.
const GONE_MAX: usize = 100_000;

impl Repository<Indexed> {
    /// Removes what no snapshot needs, as far as it can be removed now; what has to wait
    /// is condemned, and a later run goes on. Refuses while anything the snapshots need
    /// cannot be read. May be interrupted anywhere.
    pub fn prune(
        &self,
        options: &PruneOptions<'_>,
        gate: &dyn Gate,
        cancel: &CancelFlag,
        progress: &dyn Progress,
    ) -> Result<PruneReport, EngineError> {
        cancel.check()?;
        gate.may_write()?;
        let vault = &self.vault;
        if options.foreign_locks == ForeignLocks::Remove {
            for (name, _) in lock::list_foreign(vault)? {
                vault.delete(&name)?;
            }
        }
        lock::require_not_exclusive(vault)?;
        lock::remove_of_session(vault, options.name)?;
        let now = (options.now)();
        let run = Run {
            repository: self,
            options,
            gate,
            cancel,
            progress,
            lock: Held::put(vault, options.name, Mode::Shared, now)?,
            renewed_at: Cell::new(now.as_micros()),
        };
        let mut report = PruneReport::default();
        let outcome = lock::require_not_exclusive(vault).and_then(|()| run.run(&mut report));
        let removed = run.lock.remove(vault);
        outcome?;
        removed?;
        Ok(report)
    }

    /// What [`Self::prune`] would do now. Writes nothing.
    pub fn plan_prune(
        &self,
        options: &PruneOptions<'_>,
        cancel: &CancelFlag,
    ) -> Result<PruneReport, EngineError> {
        let stored = self.read_marks()?;
        let view = View::read(self, options, cancel)?;
        let plan = view.plan(self, Some(limits(options)), &|_| false, cancel)?;
        let mut report = PruneReport::default();
        report.saw(&view, &plan);
        report.planned(&view, &plan);
        let condemned = stored.merged().condemned;
        report.waiting_packs =
            view.sizes.keys().filter(|pack| condemned.contains(pack)).count() as u64;
        Ok(report)
    }
}

fn limits(options: &PruneOptions<'_>) -> Limits {
    Limits {
        unused_percent_max: options.unused_percent_max,
        repack_bytes_max: options.repack_bytes_max,
    }
}

impl PruneReport {
    fn saw(&mut self, view: &View, plan: &Plan) {
        self.snapshots = view.walked.snapshots;
        self.packs = plan.packs;
        self.used_blobs = view.walked.used.len() as u64;
        self.used_bytes = plan.used_bytes;
        self.unused_bytes = plan.unused_bytes;
        self.lost_blobs = plan.lost_blobs;
    }

    fn planned(&mut self, view: &View, plan: &Plan) {
        let blobs = plan.copies.iter().flat_map(|copy| &copy.blobs);
        self.copied_blobs = blobs.clone().count() as u64;
        self.copied_bytes = blobs.map(|blob| u64::from(blob.shape.length)).sum();
        let condemned = || plan.condemn.iter().chain(&plan.repack);
        self.condemned_packs = condemned().count() as u64;
        self.condemned_bytes = condemned().filter_map(|pack| view.sizes.get(pack)).sum();
        self.suspect_packs = plan.suspects.len() as u64;
    }
}

/// What one look at the repository found. Snapshots are listed before the index is read
/// and packs after it: whatever a writer does meanwhile, the index knows all that the
/// snapshots need, and the store has all that the index knows.
struct View {
    walked: Walked,
    objects: Vec<IndexId>,
    sizes: HashMap<PackId, u64>,
}

impl View {
    fn read(
        repository: &Repository<Indexed>,
        options: &PruneOptions<'_>,
        cancel: &CancelFlag,
    ) -> Result<Self, EngineError> {
        let snapshots = repository.list_snapshots()?;
        let listed: HashSet<_> = snapshots.iter().map(|snapshot| snapshot.id).collect();
        let mut gone = Vec::new();
        for (known, tree) in options.known_snapshots {
            if listed.contains(known) {
                continue;
            }
            if repository.snapshot_exists(*known)? {
                let text = format!("the list of snapshots leaves out {known}");
                let error = BackendError::Io { retryable: true, text };
                return Err(EngineError::List(error));
            }
            gone.push(*tree);
        }
        repository.refresh()?;
        if let Some((id, what)) = repository.damaged_index_objects().into_iter().next() {
            return Err(EngineError::damaged(ObjectName::Index(id), what));
        }
        let mut used = super::used::UsedBlobs::default();
        let mut seen = HashSet::new();
        for snapshot in &snapshots {
            repository.add_used(snapshot.tree, &mut seen, &mut used, cancel)?;
        }
        for tree in gone {
            repository.add_used(tree, &mut seen, &mut used, cancel)?;
        }
        for tree in options.keep_trees {
            if repository.is_listed(*tree, cancel)? {
                repository.add_used(*tree, &mut seen, &mut used, cancel)?;
            }
        }
        used.settle();
        let walked = Walked { snapshots: snapshots.len() as u64, used };
        let objects = index::list_objects(&repository.vault)?;
        let sizes = repository.list_packs()?;
        Ok(Self { walked, objects, sizes })
    }

    fn plan(
        &self,
        repository: &Repository<Indexed>,
        limits: Option<Limits>,
        is_forsaken: &dyn Fn(PackId) -> bool,
        cancel: &CancelFlag,
    ) -> Result<Plan, EngineError> {
        let marks = repository.state.index.marks();
        let facts = Facts {
            used: &self.walked.used,
            marks: &marks,
            sizes: &self.sizes,
            limits,
            is_forsaken,
        };
        plan::plan(&facts, &|call| {
            for object in &self.objects {
                cancel.check()?;
                load_object(repository, *object)?.iter().for_each(&mut *call);
            }
            Ok(())
        })
    }
}

/// An index object that was there a moment ago.
fn load_object(
    repository: &Repository<Indexed>,
    object: IndexId,
) -> Result<Vec<PackEntry>, EngineError> {
    match index::load_object(&repository.vault, object) {
        Err(_) if !repository.vault.exists(&ObjectName::Index(object))? => {
            Err(EngineError::Locked { by: "another prune, which replaces the index".into() })
        }
        loaded => loaded,
    }
}

struct Run<'a> {
    repository: &'a Repository<Indexed>,
    options: &'a PruneOptions<'a>,
    gate: &'a dyn Gate,
    cancel: &'a CancelFlag,
    progress: &'a dyn Progress,
    lock: Held,
    renewed_at: Cell<i64>,
}

/// A condemnation whose sessions are known.
#[derive(Debug, Default)]
struct Ready {
    marks: Vec<MarkId>,
    packs: HashSet<PackId>,
    suspects: HashSet<PackId>,
}

impl Run<'_> {
    fn run(&self, report: &mut PruneReport) -> Result<(), EngineError> {
        let is_quiet = self.remove_dead_locks()?.is_empty() && self.list_foreign()?.is_empty();
        let stored = self.remove_unreadable_marks()?;
        let ready = self.find_ready(&stored)?;
        let plan = self.condemn(is_quiet, &ready, report)?;
        let stored = self.note_sessions()?;
        let ready = self.find_ready(&stored)?;
        if let Some(()) = self.sweep(&stored, ready, &plan, report)? {
            // Whatever a prune that died had begun to remove is removed.
            let is_over = |name: &str| name == self.options.name || !(self.options.is_alive)(name);
            lock::remove_exclusive(&self.repository.vault, is_over)?;
        }
        self.report_waiting(report)
    }

    /// Asked before every write.
    fn permit(&self) -> Result<(), EngineError> {
        self.cancel.check()?;
        if self.lock.is_lost() {
            return Err(EngineError::LockLost);
        }
        let now = (self.options.now)();
        if now.as_micros().abs_diff(self.renewed_at.get()) > RENEW_MICROS {
            self.lock.renew(&self.repository.vault, now)?;
            self.renewed_at.set(now.as_micros());
        }
        Ok(self.gate.may_write()?)
    }

    fn list_foreign(&self) -> Result<Vec<(ObjectName, String)>, EngineError> {
        lock::list_foreign(&self.repository.vault)
    }

    /// Takes their locks from sessions that are over, and says which others there are.
    fn remove_dead_locks(&self) -> Result<Vec<String>, EngineError> {
        let vault = &self.repository.vault;
        let mut alive = lock::list_sessions(vault)?;
        alive.retain(|name| name != self.options.name);
        for name in &alive {
            if !(self.options.is_alive)(name) {
                self.permit()?;
                lock::remove_of_session(vault, name)?;
            }
        }
        alive.retain(|name| (self.options.is_alive)(name));
        Ok(alive)
    }

    /// Nobody removes what a mark condemns that cannot be read, and while it is there no
    /// session begins. What it condemned is as it was before.
    fn remove_unreadable_marks(&self) -> Result<StoredMarks, EngineError> {
        let stored = self.repository.read_marks()?;
        if stored.unreadable.is_empty() {
            return Ok(stored);
        }
        for (id, _) in stored.unreadable {
            self.permit()?;
            self.repository.vault.delete(&ObjectName::Mark(id))?;
        }
        self.repository.read_marks()
    }

    /// Condemnations none of whose sessions has a lock any more.
    fn find_ready(&self, stored: &StoredMarks) -> Result<Ready, EngineError> {
        let alive: HashSet<_> = self.remove_dead_locks()?.into_iter().collect();
        let mut ready = Ready::default();
        for file in stored.files.values() {
            let MarkFile::Awaited { mark, sessions } = &**file else { continue };
            let Some(condemned) = stored.files.get(mark) else { continue };
            let MarkFile::Condemned { packs, suspects } = &**condemned else { continue };
            if sessions.iter().all(|session| !alive.contains(session)) {
                ready.marks.push(*mark);
                ready.packs.extend(packs);
                ready.suspects.extend(suspects);
            }
        }
        Ok(ready)
    }

    /// The first phase.
    fn condemn(
        &self,
        is_quiet: bool,
        ready: &Ready,
        report: &mut PruneReport,
    ) -> Result<Plan, EngineError> {
        let repository = self.repository;
        let nobody_foreign = self.list_foreign()?.is_empty();
        let view = View::read(repository, self.options, self.cancel)?;
        let is_forsaken = |pack| is_quiet || (nobody_foreign && ready.suspects.contains(&pack));
        let mut sound = BTreeSet::new();
        let plan = loop {
            let limits = Some(limits(self.options));
            let plan = view.plan(repository, limits, &is_forsaken, self.cancel)?;
            if self.are_sound(&plan.relied_on, &mut sound, report)? {
                break plan;
            }
        };
        report.saw(&view, &plan);
        let spoiled = self.copy(&plan.copies, report)?;
        let repacked = plan.repack.iter().filter(|pack| !spoiled.contains(pack));
        let packs: Vec<_> = plan.condemn.iter().chain(repacked).copied().collect();
        let mut known = HashSet::new();
        for file in repository.read_marks()?.files.values() {
            if let MarkFile::Condemned { suspects, .. } = &**file {
                known.extend(suspects.iter().copied());
            }
        }
        let suspects: Vec<_> =
            plan.suspects.iter().filter(|pack| !known.contains(pack)).copied().collect();
        report.condemned_packs = packs.len() as u64;
        report.condemned_bytes = packs.iter().filter_map(|pack| view.sizes.get(pack)).sum();
        report.suspect_packs = plan.suspects.len() as u64;
        if !packs.is_empty() || !suspects.is_empty() {
            self.permit()?;
            marks::store(&repository.vault, &MarkFile::Condemned { packs, suspects })?;
        }
        Ok(plan)
    }

    /// Reads the packs in which copies stay, before others go, but for those that are known to
    /// be `sound`. Where one is not, that is recorded, and it is to be planned anew.
    fn are_sound(
        &self,
        packs: &BTreeSet<PackId>,
        sound: &mut BTreeSet<PackId>,
        report: &mut PruneReport,
    ) -> Result<bool, EngineError> {
        let mut are_sound = true;
        let unknown: Vec<_> = packs.difference(sound).copied().collect();
        for pack in unknown {
            self.permit()?;
            let found = self.repository.look_at(pack, self.cancel)?;
            for damage in &found.damaged {
                let name = ObjectName::Pack(damage.pack);
                report.found_damage.push(format!("{name}: {}", damage.what));
            }
            if found.is_lost {
                return Err(EngineError::damaged(ObjectName::Pack(pack), "is listed no more"));
            }
            if found.damaged.is_empty() {
                sound.insert(pack);
            } else {
                are_sound = false;
            }
        }
        Ok(are_sound)
    }

    /// Notes for every condemnation the sessions that may have missed it, which are among
    /// those that have lock objects now.
    fn note_sessions(&self) -> Result<StoredMarks, EngineError> {
        let stored = self.repository.read_marks()?;
        let noted: HashSet<_> = stored.files.values().filter_map(|file| awaited(file)).collect();
        let is_open = |id: &MarkId, file: &MarkFile| {
            matches!(file, MarkFile::Condemned { .. }) && !noted.contains(id)
        };
        let mut open: Vec<_> =
            stored.files.iter().filter(|(id, file)| is_open(id, file)).map(|(id, _)| *id).collect();
        open.sort_unstable();
        if open.is_empty() {
            return Ok(stored);
        }
        for mark in open {
            let sessions = self.remove_dead_locks()?;
            self.permit()?;
            marks::store(&self.repository.vault, &MarkFile::Awaited { mark, sessions })?;
        }
        self.repository.read_marks()
    }

    /// Copies blobs into new packs and makes these durable. Returns the packs out of which
    /// not everything could be copied; what is wrong with them is recorded.
    fn copy(
        &self,
        copies: &[Copy],
        report: &mut PruneReport,
    ) -> Result<HashSet<PackId>, EngineError> {
        let mut writer = Writer::new(self);
        let mut decoder = Decoder::new()?;
        let mut sealed = Vec::new();
        let mut spoiled = HashSet::new();
        let vault = &self.repository.vault;
        for copy in copies {
            let name = ObjectName::Pack(copy.pack);
            let mut damaged = Vec::new();
            for blob in &copy.blobs {
                self.cancel.check()?;
                sealed.resize(blob.shape.length as usize, 0);
                let read = vault.read_at(&name, u64::from(blob.offset), &mut sealed);
                let what = match read {
                    Ok(()) => {
                        let opened =
                            decoder.decode_verified(&vault.key, &sealed, blob.shape, blob.id);
                        opened.err().map(|fault| fault.to_string())
                    }
                    Err(EngineError::Damaged { what, .. }) => Some(what),
                    Err(error) => return Err(error),
                };
                if let Some(what) = what {
                    let found = format!("{name}: {} {what}", blob_name(blob.kind, blob.id));
                    report.found_damage.push(found);
                    damaged.push(blob.id);
                    continue;
                }
                writer.add(blob.kind, blob, &sealed)?;
                report.copied_blobs += 1;
                report.copied_bytes += u64::from(blob.shape.length);
                self.progress.advance(u64::from(blob.shape.length));
            }
            if !damaged.is_empty() {
                spoiled.insert(copy.pack);
                self.permit()?;
                self.repository.record_damage(&PackDamage {
                    pack: copy.pack,
                    blobs: Some(damaged),
                    whole: false,
                    what: "found while it was copied".into(),
                })?;
            }
        }
        writer.finish()?;
        Ok(spoiled)
    }

    /// The second phase. `None` when it must wait.
    fn sweep(
        &self,
        stored: &StoredMarks,
        ready: Ready,
        plan: &Plan,
        report: &mut PruneReport,
    ) -> Result<Option<()>, EngineError> {
        let sizes = self.repository.list_packs()?;
        let gone = gone(stored);
        // The store retained them when they should have gone, or someone who overslept
        // their removal has listed them since.
        let is_back = sizes.keys().chain(&plan.listed_condemned).any(|pack| gone.contains(pack));
        if ready.marks.is_empty() && !is_back {
            return Ok(Some(()));
        }
        if ready.packs.is_empty() && !is_back {
            self.settle_marks(&ready, &HashSet::new())?;
            return Ok(Some(()));
        }
        let vault = &self.repository.vault;
        self.permit()?;
        let exclusive = Held::put(vault, self.options.name, Mode::Exclusive, (self.options.now)())?;
        let outcome = match self.list_foreign() {
            Ok(foreign) => match foreign.first() {
                Some((_, by)) => {
                    report.deferred = Some(format!("the repository is locked by {by}"));
                    Ok(None)
                }
                None => self.sweep_locked(&exclusive, ready, report),
            },
            Err(error) => Err(error),
        };
        match outcome {
            Ok(done) => {
                exclusive.remove(vault)?;
                Ok(done)
            }
            // Others stay out until a prune has finished what this one may have begun.
            Err(error) => Err(error),
        }
    }

    fn sweep_locked(
        &self,
        exclusive: &Held,
        ready: Ready,
        report: &mut PruneReport,
    ) -> Result<Option<()>, EngineError> {
        let repository = self.repository;
        let view = View::read(repository, self.options, self.cancel)?;
        let plan = view.plan(repository, None, &|_| false, self.cancel)?;
        if !self.copy(&plan.copies, report)?.is_empty() {
            report.deferred = Some("packs to be removed are damaged, and needed".into());
            return Ok(None);
        }
        let stored = repository.read_marks()?;
        let gone = gone(&stored);
        let mut doomed: HashSet<PackId> = ready.packs.union(&gone).copied().collect();
        let condemned = &repository.state.index.marks().condemned;
        doomed.retain(|pack| condemned.contains(pack) && !plan.hold_lost.contains(pack));
        let retained = self.replace_index(exclusive, &view, &doomed, report)?;
        doomed.retain(|pack| !retained.contains(pack));
        repository.state.index.refresh(&repository.vault)?;
        self.remove_packs(exclusive, &view, &doomed, report)?;
        self.settle_marks(&ready, &doomed)?;
        Ok(Some(()))
    }

    /// Writes the index anew without the doomed packs. Returns those that stay listed
    /// because the store retains the object.
    fn replace_index(
        &self,
        exclusive: &Held,
        view: &View,
        doomed: &HashSet<PackId>,
        report: &mut PruneReport,
    ) -> Result<HashSet<PackId>, EngineError> {
        let vault = &self.repository.vault;
        let mut first_in: HashMap<PackId, IndexId> = HashMap::new();
        let mut replaced = HashSet::new();
        for object in &view.objects {
            for pack in load_object(self.repository, *object)? {
                if doomed.contains(&pack.id) {
                    replaced.insert(*object);
                }
                if let Some(other) = first_in.insert(pack.id, *object) {
                    // Listed twice since a crash.
                    replaced.extend([other, *object]);
                }
            }
        }
        let (mut batch, mut blobs, mut written) = (Vec::new(), 0, HashSet::new());
        for object in view.objects.iter().filter(|object| replaced.contains(object)) {
            for pack in load_object(self.repository, *object)? {
                if doomed.contains(&pack.id) || !written.insert(pack.id) {
                    continue;
                }
                blobs += pack.blobs.len();
                batch.push(pack);
                if blobs >= INDEX_BLOBS_MAX {
                    self.store_index(&mem::take(&mut batch))?;
                    blobs = 0;
                }
            }
        }
        if !batch.is_empty() {
            self.store_index(&batch)?;
        }
        let mut retained = HashSet::new();
        for object in view.objects.iter().filter(|object| replaced.contains(object)) {
            let listed = load_object(self.repository, *object)?;
            self.permit()?;
            exclusive.require(vault)?;
            if self.delete(&ObjectName::Index(*object))? {
                report.replaced_index_objects += 1;
            } else {
                report.retained_objects += 1;
                retained.extend(listed.into_iter().map(|pack| pack.id));
            }
        }
        Ok(retained)
    }

    fn store_index(&self, packs: &[PackEntry]) -> Result<(), EngineError> {
        self.permit()?;
        self.lock.require(&self.repository.vault)?;
        let object = index::store_object(&self.repository.vault, packs)?;
        self.repository.state.index.add_durable(object, packs)
    }

    /// Whether the object was removed; `false` when the store retains it.
    fn delete(&self, name: &ObjectName) -> Result<bool, EngineError> {
        match self.repository.vault.delete(name) {
            Ok(()) => Ok(true),
            Err(EngineError::Backend { error: BackendError::Retained, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn remove_packs(
        &self,
        exclusive: &Held,
        view: &View,
        doomed: &HashSet<PackId>,
        report: &mut PruneReport,
    ) -> Result<(), EngineError> {
        let mut there: Vec<_> =
            doomed.iter().filter_map(|pack| Some((*pack, *view.sizes.get(pack)?))).collect();
        there.sort_unstable();
        for batch in there.chunks(REMOVE_BATCH) {
            exclusive.require(&self.repository.vault)?;
            for (pack, size) in batch {
                self.permit()?;
                if self.delete(&ObjectName::Pack(*pack))? {
                    report.removed_packs += 1;
                    report.removed_bytes += size;
                } else {
                    report.retained_objects += 1;
                }
            }
        }
        Ok(())
    }

    /// Remembers what is gone, and only then forgets that it was condemned.
    fn settle_marks(&self, ready: &Ready, doomed: &HashSet<PackId>) -> Result<(), EngineError> {
        let vault = &self.repository.vault;
        let stored = self.repository.read_marks()?;
        let (mut gone, mut obsolete, mut known) = (Vec::new(), Vec::new(), HashSet::new());
        for (id, file) in &stored.files {
            if let MarkFile::Gone { packs } = &**file {
                gone.extend(packs.iter().filter(|pack| known.insert(**pack)));
                obsolete.push(*id);
            }
        }
        let mut fresh: Vec<_> = doomed.iter().filter(|pack| !known.contains(pack)).collect();
        if fresh.is_empty() && obsolete.len() < 2 {
            obsolete.clear();
        } else {
            fresh.sort_unstable();
            gone.extend(fresh);
            let forgotten = gone.len().saturating_sub(GONE_MAX);
            self.permit()?;
            marks::store(vault, &MarkFile::Gone { packs: gone.split_off(forgotten) })?;
        }
        let is_done = |file: &MarkFile| match file {
            MarkFile::Condemned { packs, .. } => packs.iter().all(|pack| doomed.contains(pack)),
            MarkFile::Awaited { .. }
            | MarkFile::Gone { .. }
            | MarkFile::Damaged(_)
            | MarkFile::Read { .. } => false,
        };
        let done: HashSet<_> = ready
            .marks
            .iter()
            .filter(|id| stored.files.get(id).is_none_or(|file| is_done(file)))
            .collect();
        for (id, file) in &stored.files {
            let is_obsolete = match &**file {
                MarkFile::Condemned { .. } => done.contains(id),
                MarkFile::Awaited { mark, .. } => {
                    done.contains(mark) || !stored.files.contains_key(mark)
                }
                MarkFile::Damaged(damage) => doomed.contains(&damage.pack),
                MarkFile::Gone { .. } => obsolete.contains(id),
                MarkFile::Read { .. } => false,
            };
            if is_obsolete {
                self.permit()?;
                vault.delete(&ObjectName::Mark(*id))?;
            }
        }
        self.repository.read_marks().map(drop)
    }

    fn report_waiting(&self, report: &mut PruneReport) -> Result<(), EngineError> {
        let stored = self.repository.read_marks()?;
        let alive: HashSet<_> = self.remove_dead_locks()?.into_iter().collect();
        let condemned = stored.merged().condemned;
        let sizes = self.repository.list_packs()?;
        report.waiting_packs = sizes.keys().filter(|pack| condemned.contains(pack)).count() as u64;
        for file in stored.files.values() {
            if let MarkFile::Awaited { sessions, .. } = &**file {
                let waiting = sessions.iter().filter(|session| alive.contains(*session));
                report.waits_for.extend(waiting.cloned());
            }
        }
        report.waits_for.sort();
        report.waits_for.dedup();
        Ok(())
    }
}

fn awaited(file: &MarkFile) -> Option<MarkId> {
    match file {
        MarkFile::Awaited { mark, .. } => Some(*mark),
        MarkFile::Condemned { .. }
        | MarkFile::Gone { .. }
        | MarkFile::Damaged(_)
        | MarkFile::Read { .. } => None,
    }
}

fn gone(stored: &StoredMarks) -> HashSet<PackId> {
    let packs = |file: &MarkFile| match file {
        MarkFile::Gone { packs } => packs.clone(),
        MarkFile::Condemned { .. }
        | MarkFile::Awaited { .. }
        | MarkFile::Damaged(_)
        | MarkFile::Read { .. } => Vec::new(),
    };
    stored.files.values().flat_map(|file| packs(file)).collect()
}

/// Fills packs with sealed blobs.
struct Writer<'r, 'a> {
    run: &'r Run<'a>,
    data: PackBuilder,
    trees: PackBuilder,
    pending: Vec<PackEntry>,
}

impl<'r, 'a> Writer<'r, 'a> {
    fn new(run: &'r Run<'a>) -> Self {
        let (data, trees) = (PackBuilder::new(BlobKind::Data), PackBuilder::new(BlobKind::Tree));
        Self { run, data, trees, pending: Vec::new() }
    }

    fn add(
        &mut self,
        kind: BlobKind,
        blob: &crate::pack::PackedBlob,
        sealed: &[u8],
    ) -> Result<(), EngineError> {
        let pack = match kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.trees,
        };
        let full =
            (!pack.has_room(sealed.len())).then(|| mem::replace(pack, PackBuilder::new(kind)));
        pack.push_copy(blob.id, blob.shape, sealed)?;
        full.map_or(Ok(()), |full| self.store(full))
    }

    fn store(&mut self, pack: PackBuilder) -> Result<(), EngineError> {
        let vault = &self.run.repository.vault;
        let (bytes, entry) = pack.finish(&vault.key)?;
        self.run.permit()?;
        vault.put(&ObjectName::Pack(entry.id), bytes.as_slice())?;
        self.pending.push(entry);
        let blobs: usize = self.pending.iter().map(|pack| pack.blobs.len()).sum();
        if blobs >= INDEX_BLOBS_MAX {
            self.run.store_index(&mem::take(&mut self.pending))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), EngineError> {
        let data = mem::replace(&mut self.data, PackBuilder::new(BlobKind::Data));
        let trees = mem::replace(&mut self.trees, PackBuilder::new(BlobKind::Tree));
        for pack in [data, trees] {
            if !pack.is_empty() {
                self.store(pack)?;
            }
        }
        if self.pending.is_empty() { Ok(()) } else { self.run.store_index(&self.pending) }
    }
}
