//! Prune beside everything else, in random schedules.
//!
//! Several processes share one store, each with its own handle. One of them runs at a time,
//! and at every call to the store a seeded choice says who goes on, so any two can meet at
//! any two calls, and any can sleep through all the others do. A model knows which bytes
//! every committed snapshot must restore to.

use std::{
    collections::HashSet,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    thread,
};

use kedge_engine::{
    Backend, BackendError, CancelFlag, EngineError, ForeignLocks, Listed, MemoryBackend,
    NoProgress, ObjectKind, ObjectName, OpenGate, PruneOptions, ReadData, ReadOptions, Session,
    SnapshotId, StoreOptions, Timestamp, TreeId, layer::ForeignLock,
};

use crate::support::{
    Disk, NOW, Repo, Target, create, is_long, meta, noise, open, report_figure, store_options,
    threads, volume,
};

const SHORT_RUNS: u64 = 1_000;
const LONG_RUNS: u64 = 20_000;
const PROCESSES: usize = 4;
const STEPS: usize = 4;
/// So few contents that most backups find chunks of others, living and deleted.
const CONTENTS: u64 = 5;
const TEN_YEARS_MICROS: i64 = 10 * 365 * 24 * 3600 * 1_000_000;

/// Reproducible choices.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        dice.below(2);
        dice
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let at = usize::try_from(self.below(from.len().max(1) as u64)).unwrap();
        from.get(at).cloned()
    }
}

/// Whose turn it is.
struct Turns {
    state: Mutex<Turn>,
    changed: [Condvar; PROCESSES],
}

struct Turn {
    current: usize,
    /// Calls of all processes so far.
    calls: u64,
    has_ended: [bool; PROCESSES],
    /// The call at which a process wakes that was put to sleep.
    wakes_at: [u64; PROCESSES],
    dice: Dice,
}

impl Turns {
    fn new(seed: u64) -> Self {
        let state = Turn {
            current: 0,
            calls: 0,
            has_ended: [false; PROCESSES],
            wakes_at: [0; PROCESSES],
            dice: Dice::new(seed),
        };
        Self { state: Mutex::new(state), changed: Default::default() }
    }

    fn pass(&self, turn: &mut Turn) {
        let open = (0..PROCESSES).filter(|p| !turn.has_ended[*p]);
        let awake: Vec<_> = open.clone().filter(|p| turn.wakes_at[*p] <= turn.calls).collect();
        let soonest = open.min_by_key(|p| turn.wakes_at[*p]);
        if let Some(next) = turn.dice.pick(&awake).or(soonest) {
            turn.current = next;
            self.changed[next].notify_all();
        }
    }

    fn wait(&self, me: usize) {
        let mut turn = self.state.lock().unwrap();
        if turn.current == me {
            turn.calls += 1;
            if turn.dice.one_in(30) {
                // So long that whole prunes of others fit between two calls.
                turn.wakes_at[me] = turn.calls + turn.dice.below(600);
                self.pass(&mut turn);
            } else if turn.dice.one_in(4) {
                self.pass(&mut turn);
            }
        }
        while turn.current != me {
            turn = self.changed[me].wait(turn).unwrap();
        }
    }

    fn end(&self, me: usize) {
        let mut turn = self.state.lock().unwrap();
        turn.has_ended[me] = true;
        self.pass(&mut turn);
    }
}

/// The store as one process sees it: every call waits for its turn, and a process that
/// has died gets no answer any more.
struct Seat {
    world: Arc<World>,
    me: usize,
    is_dead: Arc<AtomicBool>,
    /// Lock objects the process has put and not removed.
    locks: Arc<Mutex<HashSet<ObjectName>>>,
    /// Another program: knows no marks, and its locks are made apart.
    is_foreign: bool,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seat {}", self.me)
    }
}

impl Seat {
    fn turn(&self) -> Result<&MemoryBackend, BackendError> {
        self.world.turns.wait(self.me);
        if self.is_dead.load(Ordering::Relaxed) {
            return Err(BackendError::Unreachable { text: "dead".into() });
        }
        Ok(&self.world.store)
    }

    fn hides(&self, name: &ObjectName) -> bool {
        self.is_foreign && name.kind() == ObjectKind::Lock
    }
}

impl Backend for Seat {
    fn prepare(&self) -> Result<(), BackendError> {
        self.turn()?.prepare()
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        if self.hides(name) {
            return Ok(());
        }
        let store = self.turn()?;
        let has = |lock: &ObjectName| store.find_size(lock).unwrap().is_some();
        match name.kind() {
            ObjectKind::Lock => {
                self.locks.lock().unwrap().insert(*name);
            }
            ObjectKind::Index if !self.locks.lock().unwrap().iter().all(has) => {
                self.world.has_late_index.store(true, Ordering::Relaxed);
            }
            _ => {}
        }
        store.put(name, bytes)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        self.turn()?.get(name, bytes_max)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        self.turn()?.read_at(name, offset, buf)
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        if self.hides(name) { Ok(Some(1)) } else { self.turn()?.find_size(name) }
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        if self.is_foreign && matches!(kind, ObjectKind::Lock | ObjectKind::Mark) {
            return Ok(Vec::new());
        }
        self.turn()?.list(kind)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        if self.hides(name) {
            return Ok(());
        }
        let store = self.turn()?;
        self.locks.lock().unwrap().remove(name);
        store.delete(name)
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        self.turn()?.remove_leftovers()
    }
}

/// What all processes share.
struct World {
    store: MemoryBackend,
    turns: Turns,
    /// What every committed snapshot must restore to.
    model: Mutex<Vec<(SnapshotId, Vec<u8>)>>,
    /// Trees whose snapshot some process is about to write.
    jobs: Mutex<Vec<Job>>,
    /// The job table: sessions that are alive as far as it knows.
    alive: Mutex<HashSet<String>>,
    names: AtomicU64,
    clock: AtomicI64,
    prunes: AtomicU64,
    /// A process overslept the loss of its lock between its last look at it and the put
    /// of an index object. Packs listed there may be gone; who reads marks knows, and
    /// another program does not.
    has_late_index: AtomicBool,
    removed: AtomicU64,
}

impl World {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.load(Ordering::Relaxed))
    }

    fn commit(&self, id: SnapshotId, bytes: Vec<u8>) {
        let mut model = self.model.lock().unwrap();
        if model.iter().all(|(other, _)| *other != id) {
            model.push((id, bytes));
        }
    }

    /// In the order they were committed in, which one seed repeats.
    fn committed(&self) -> Vec<SnapshotId> {
        self.model.lock().unwrap().iter().map(|(id, _)| *id).collect()
    }

    fn new_name(&self, what: &str) -> String {
        let name = format!("{what}-{}", self.names.fetch_add(1, Ordering::Relaxed));
        self.alive.lock().unwrap().insert(name.clone());
        name
    }

    fn is_over(&self, name: &str) {
        self.alive.lock().unwrap().remove(name);
    }
}

/// A finished tree on its way to a snapshot. Several attempts may be at it at once, since
/// one that is taken for dead may only sleep.
#[derive(Clone)]
struct Job {
    tag: String,
    tree: TreeId,
    bytes: Vec<u8>,
    attempts: usize,
    /// Two attempts at once may write one each. None is deleted while there are attempts,
    /// each of which may have found any of them.
    committed: Vec<SnapshotId>,
}

/// Lets a test use the store without waiting for a turn.
#[derive(Debug)]
struct Raw(Arc<World>);

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

impl Backend for Raw {
    fn prepare(&self) -> Result<(), BackendError> {
        self.0.store.prepare()
    }
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        self.0.store.put(name, bytes)
    }
    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        self.0.store.get(name, bytes_max)
    }
    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        self.0.store.read_at(name, offset, buf)
    }
    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        self.0.store.find_size(name)
    }
    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        self.0.store.list(kind)
    }
    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        self.0.store.delete(name)
    }
    fn remove_leftovers(&self) -> Result<(), BackendError> {
        self.0.store.remove_leftovers()
    }
}

fn options() -> StoreOptions {
    StoreOptions { threads: threads(1), ..store_options() }
}

fn restore(repo: &Repo, id: SnapshotId) -> Result<Vec<u8>, EngineError> {
    let view = volume(repo, id)?;
    let target = Target::new(usize::try_from(view.size_bytes()).unwrap());
    let options = ReadOptions { threads: threads(1), cancel: CancelFlag::new() };
    repo.restore_volume(&view, &target, &OpenGate, &options, &NoProgress)?;
    Ok(target.into_whole())
}

/// A new handle sees every committed snapshot whole, whatever the others are at.
fn assert_nothing_is_lost(world: &Arc<World>, seed: u64, when: &str) {
    let fresh = open(Arc::new(Raw(Arc::clone(world)))).unwrap();
    for (id, bytes) in world.model.lock().unwrap().iter() {
        match restore(&fresh, *id) {
            Ok(restored) => assert!(restored == *bytes, "seed {seed}, {when}: {id} differs"),
            Err(error) => panic!("seed {seed}, {when}: {id} is lost: {error}"),
        }
    }
}

struct Process {
    world: Arc<World>,
    me: usize,
    seed: u64,
    dice: Dice,
    is_dead: Arc<AtomicBool>,
    locks: Arc<Mutex<HashSet<ObjectName>>>,
    repo: Option<Repo>,
}

impl Process {
    fn seat(&self, is_foreign: bool) -> Arc<dyn Backend> {
        Arc::new(Seat {
            world: Arc::clone(&self.world),
            me: self.me,
            is_dead: Arc::clone(&self.is_dead),
            locks: Arc::clone(&self.locks),
            is_foreign,
        })
    }

    fn run(&mut self) {
        self.world.turns.wait(self.me);
        for _ in 0..STEPS {
            self.locks.lock().unwrap().clear();
            // What goes wrong in a step is the step's own trouble: it met a prune, a
            // lock, a death. What counts is the model.
            let _ = self.step();
            if self.is_dead.swap(false, Ordering::Relaxed) {
                // The process starts anew.
                self.repo = None;
            }
        }
        self.world.turns.end(self.me);
    }

    fn step(&mut self) -> Result<(), EngineError> {
        if self.dice.one_in(6) {
            let sign = [-TEN_YEARS_MICROS, TEN_YEARS_MICROS, 40 * 60 * 1_000_000, 0];
            let jump = self.dice.pick(&sign).unwrap();
            self.world.clock.store(NOW + jump, Ordering::Relaxed);
        }
        let repo = match &self.repo {
            Some(repo) => Arc::clone(repo),
            None => Arc::clone(self.repo.insert(open(self.seat(false))?)),
        };
        match self.dice.below(12) {
            0..=2 => self.back_up(&repo),
            3 => self.take_over(&repo),
            4 | 5 => self.delete(&repo),
            6 => self.restore(&repo),
            7 => repo.check(ReadData::Yes, &CancelFlag::new()).map(drop),
            8 => self.back_up_as_another_program(&repo),
            _ => self.prune(&repo),
        }
    }

    /// It dies at its next call.
    fn may_die(&mut self) {
        if self.dice.one_in(12) {
            self.is_dead.store(true, Ordering::Relaxed);
        }
    }

    fn begin(&mut self, repo: &Repo) -> Result<Session, EngineError> {
        let name = self.world.new_name("session");
        let session =
            repo.begin_session(&name, self.world.now(), Arc::new(OpenGate), CancelFlag::new());
        if session.is_err() || self.dice.one_in(10) {
            // The catalogue loses sight of it, whatever it is at.
            self.world.is_over(&name);
        }
        session
    }

    fn store(&mut self, repo: &Repo, session: &Session) -> Result<(TreeId, Vec<u8>), EngineError> {
        let bytes = noise(self.dice.below(CONTENTS), 4096);
        let same: Vec<_> = {
            let model = self.world.model.lock().unwrap();
            model.iter().filter(|(_, other)| *other == bytes).map(|(id, _)| *id).collect()
        };
        let parent = if self.dice.one_in(2) { self.dice.pick(&same) } else { None };
        let parent = parent.and_then(|id| volume(repo, id).ok());
        let disk = match &parent {
            Some(_) => Disk::unchanged(bytes),
            None => Disk::new(bytes),
        };
        self.may_die();
        let stored = session.store_volume(&disk, parent.as_ref(), &options(), &NoProgress)?;
        if self.dice.one_in(4) {
            session.refresh_lock(self.world.now())?;
        }
        self.may_die();
        let moment = Timestamp::from_micros(NOW);
        let tree = session.finish_tree(&[("vol", stored.subtree)], &[], moment)?;
        Ok((tree, disk.bytes))
    }

    fn back_up(&mut self, repo: &Repo) -> Result<(), EngineError> {
        let mut session = self.begin(repo)?;
        let (tree, bytes) = self.store(repo, &session)?;
        if self.dice.one_in(3) {
            // As after a restart: another session writes the snapshot.
            let name = session.name().to_owned();
            session.close()?;
            self.world.is_over(&name);
            session = self.begin(repo)?;
        }
        self.may_die();
        let tag = format!("item of {}", session.name());
        let (attempts, committed) = (0, Vec::new());
        self.world.jobs.lock().unwrap().push(Job {
            tag: tag.clone(),
            tree,
            bytes,
            attempts,
            committed,
        });
        self.attempt(&session, &tag)?;
        let name = session.name().to_owned();
        if self.dice.one_in(8) {
            // Dies with its lock in place; the job table may never learn of it.
            std::mem::forget(session);
        } else {
            session.close()?;
            self.world.is_over(&name);
        }
        Ok(())
    }

    /// Writes a job's snapshot, or finds it.
    fn attempt(&mut self, session: &Session, tag: &str) -> Result<(), EngineError> {
        let change = |by: &dyn Fn(&mut Job)| {
            let mut jobs = self.world.jobs.lock().unwrap();
            let job = jobs.iter_mut().find(|job| job.tag == tag).unwrap();
            by(job);
            job.clone()
        };
        let job = change(&|job| job.attempts += 1);
        let written = session.write_snapshot(&meta(job.tree, tag));
        if let Ok(id) = &written {
            self.world.commit(*id, job.bytes);
            change(&|job| job.committed.push(*id));
        }
        change(&|job| job.attempts -= 1);
        let is_open = |job: &Job| job.attempts > 0 || job.committed.is_empty();
        self.world.jobs.lock().unwrap().retain(is_open);
        written.map(drop)
    }

    /// The job table says that an attempt is over, whether it is or not.
    fn take_over(&mut self, repo: &Repo) -> Result<(), EngineError> {
        let open = self.world.jobs.lock().unwrap().clone();
        let Some(job) = self.dice.pick(&open) else { return self.back_up(repo) };
        let session = self.begin(repo)?;
        if self.world.jobs.lock().unwrap().iter().any(|other| other.tag == job.tag) {
            self.attempt(&session, &job.tag)?;
        }
        let name = session.name().to_owned();
        session.close()?;
        self.world.is_over(&name);
        Ok(())
    }

    /// It minds locks and takes every blob the index lists for stored.
    fn back_up_as_another_program(&mut self, repo: &Repo) -> Result<(), EngineError> {
        let lock = ForeignLock::put(repo, false, self.world.now())?;
        let outcome = open(self.seat(true)).and_then(|foreign| {
            let name = "another program";
            let session = foreign.begin_session(
                name,
                self.world.now(),
                Arc::new(OpenGate),
                CancelFlag::new(),
            )?;
            let (tree, bytes) = self.store(&foreign, &session)?;
            let tag = self.world.new_name("foreign");
            let id = session.write_snapshot(&meta(tree, &tag))?;
            // The one thing no mark guards it against.
            if !self.world.has_late_index.load(Ordering::Relaxed) {
                self.world.commit(id, bytes);
            }
            Ok(())
        });
        // When it died the lock stays until someone unlocks the repository by hand.
        lock.remove(repo)?;
        outcome
    }

    fn delete(&mut self, repo: &Repo) -> Result<(), EngineError> {
        let mut all = self.world.committed();
        let jobs = self.world.jobs.lock().unwrap().clone();
        all.retain(|id| jobs.iter().all(|job| !job.committed.contains(id)));
        let Some(id) = self.dice.pick(&all) else { return Ok(()) };
        self.world.model.lock().unwrap().retain(|(other, _)| *other != id);
        repo.delete_snapshot(id)
    }

    /// A restore may find that a pack was removed under it; it then begins anew.
    fn restore(&mut self, repo: &Repo) -> Result<(), EngineError> {
        let all = self.world.committed();
        let Some(id) = self.dice.pick(&all) else { return Ok(()) };
        let mut outcome = restore(repo, id);
        for _ in 0..8 {
            if outcome.is_err() {
                outcome = restore(repo, id);
            }
        }
        let model = self.world.model.lock().unwrap();
        if let Some((_, bytes)) = model.iter().find(|(other, _)| *other == id) {
            let seed = self.seed;
            let restored = outcome.unwrap_or_else(|error| panic!("seed {seed}: {id}: {error}"));
            assert!(restored == *bytes, "seed {seed}: {id} restores to other bytes");
        }
        Ok(())
    }

    fn prune(&mut self, repo: &Repo) -> Result<(), EngineError> {
        let name = self.world.new_name("prune");
        if self.dice.one_in(4) {
            // Another prune is begun because this one is taken for dead.
            self.world.is_over(&name);
        }
        let catalogue = self.dice.below(4);
        let world = Arc::clone(&self.world);
        let is_alive = move |name: &str| match catalogue {
            // Lost.
            0 => false,
            // Old.
            1 => true,
            _ => world.alive.lock().unwrap().contains(name),
        };
        let world = Arc::clone(&self.world);
        let now = move || world.now();
        let options = PruneOptions {
            name: &name,
            unused_percent_max: u8::try_from(self.dice.below(2) * 30).unwrap(),
            repack_bytes_max: u64::MAX,
            known_snapshots: &[],
            keep_trees: &[],
            is_alive: &is_alive,
            foreign_locks: ForeignLocks::Honour,
            now: &now,
        };
        self.may_die();
        let gate = DyingGate { is_dead: Arc::clone(&self.is_dead), left: Mutex::default() };
        if self.dice.one_in(5) {
            *gate.left.lock().unwrap() = Some(self.dice.below(12));
        }
        let pruned = repo.prune(&options, &gate, &CancelFlag::new(), &NoProgress);
        self.world.is_over(&name);
        if let Ok(report) = &pruned {
            self.world.removed.fetch_add(report.removed_packs, Ordering::Relaxed);
        }
        self.world.prunes.fetch_add(1, Ordering::Relaxed);
        assert_nothing_is_lost(&self.world, self.seed, "after a prune");
        pruned.map(drop)
    }
}

/// The process dies at a chosen write.
struct DyingGate {
    is_dead: Arc<AtomicBool>,
    left: Mutex<Option<u64>>,
}

impl kedge_engine::Gate for DyingGate {
    fn may_write(&self) -> Result<(), kedge_engine::Stopped> {
        let mut left = self.left.lock().unwrap();
        match left.as_mut() {
            Some(0) => self.is_dead.store(true, Ordering::Relaxed),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }
}

/// One schedule; says how many packs were removed in it.
fn run(seed: u64) -> u64 {
    let world = Arc::new(World {
        store: MemoryBackend::new(),
        turns: Turns::new(seed),
        model: Mutex::default(),
        jobs: Mutex::default(),
        alive: Mutex::default(),
        names: AtomicU64::new(0),
        clock: AtomicI64::new(NOW),
        prunes: AtomicU64::new(0),
        has_late_index: AtomicBool::new(false),
        removed: AtomicU64::new(0),
    });
    create(Arc::new(Raw(Arc::clone(&world)))).unwrap();
    let failed = thread::scope(|scope| {
        let all: Vec<_> = (0..PROCESSES)
            .map(|me| {
                let world = Arc::clone(&world);
                scope.spawn(move || {
                    let turns = Arc::clone(&world);
                    let run = std::panic::AssertUnwindSafe(|| {
                        let dice = Dice::new(seed ^ (me as u64 + 1) << 40);
                        let is_dead = Arc::default();
                        let locks = Arc::default();
                        Process { world, me, seed, dice, is_dead, locks, repo: None }.run();
                    });
                    // The others must not wait for it.
                    std::panic::catch_unwind(run).inspect_err(|_| turns.turns.end(me))
                })
            })
            .collect();
        let outcomes: Vec<_> = all.into_iter().map(|process| process.join().unwrap()).collect();
        outcomes.into_iter().find_map(Result::err)
    });
    if let Some(panic) = failed {
        std::panic::resume_unwind(panic);
    }
    settle(&world, seed);
    world.removed.load(Ordering::Relaxed)
}

/// All processes have ended. What no one committed is taken away, as it is in life once
/// its job has tried again, and then two prunes leave a repository without a flaw.
fn settle(world: &Arc<World>, seed: u64) {
    assert_nothing_is_lost(world, seed, "at the end");
    let repo = open(Arc::new(Raw(Arc::clone(world)))).unwrap();
    for listed in world.store.list(ObjectKind::Snapshot).unwrap() {
        let ObjectName::Snapshot(id) = listed.name else { continue };
        if !world.committed().contains(&id) {
            repo.delete_snapshot(id).unwrap();
        }
    }
    let options = PruneOptions {
        foreign_locks: ForeignLocks::Remove,
        is_alive: &crate::prune::nobody,
        ..crate::prune::options()
    };
    for _ in 0..2 {
        let pruned = repo.prune(&options, &OpenGate, &CancelFlag::new(), &NoProgress);
        let pruned = pruned.unwrap_or_else(|error| panic!("seed {seed}: the last prune: {error}"));
        assert_eq!(pruned.lost_blobs, 0, "seed {seed}");
    }
    assert_nothing_is_lost(world, seed, "after the last prune");
    let report = repo.check(ReadData::Yes, &CancelFlag::new()).unwrap();
    assert_eq!(report.problems, [], "seed {seed}");
    let stats = repo.stats(&CancelFlag::new()).unwrap();
    let left = (stats.unused_bytes, stats.unindexed_packs, stats.condemned_packs);
    assert_eq!(left, (0, 0, 0), "seed {seed}");
}

#[test]
fn no_schedule_of_processes_around_a_prune_loses_a_committed_snapshot() {
    let runs = if is_long() { LONG_RUNS } else { SHORT_RUNS };
    let lanes = 2;
    let removed: u64 = thread::scope(|scope| {
        let lane =
            |lane| move || (0..runs).filter(|seed| seed % lanes == lane).map(run).sum::<u64>();
        let all: Vec<_> = (0..lanes).map(|at| scope.spawn(lane(at))).collect();
        all.into_iter().map(|lane| lane.join().unwrap()).sum()
    });
    assert!(removed > runs, "prunes must have had something to remove");
    let line = format!("prune schedules: {runs} run, {removed} packs removed, no live blob lost");
    report_figure("prune-schedules", &line);
}
