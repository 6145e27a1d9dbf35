//! The engine beside a map from names to bytes. Whatever is done in whatever order, and
//! whichever calls of the store fail meanwhile, both hold the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use kedge_engine::{
    Backend, BackendError, CancelFlag, EngineError, LocalBackend, MemoryBackend, OpenGate,
    ReadData, Timestamp,
    layer::{Fault, FaultBackend, Loss, SimulatedDisk},
};

use crate::{
    scenario::{
        Choices, Contents, Expected, Place, Scenario, Watch, in_two_threads, prune, snapshots,
    },
    support::{Repo, is_long, report_figure},
};

/// Backups beyond these are deleted, so that judging all of them stays quick.
const LIVE_MAX: usize = 6;
const OPERATIONS: usize = 120;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    BackUp,
    Delete,
    Restore,
    Check,
    Refresh,
    Reopen,
    /// A session begins and its process dies.
    Abandon,
    Prune,
    /// The machine loses its power; on a store in memory only the process dies.
    Crash,
}

const OPERATION_KINDS: [Operation; 11] = [
    Operation::BackUp,
    Operation::BackUp,
    Operation::BackUp,
    Operation::Delete,
    Operation::Restore,
    Operation::Restore,
    Operation::Check,
    Operation::Refresh,
    Operation::Reopen,
    Operation::Abandon,
    Operation::Prune,
];

/// A store under test, and what a crash makes of it.
trait Store: fmt::Debug {
    fn faults(&self) -> &dyn Faults;
    fn backend(&self) -> Arc<dyn Backend>;
    fn crash(&mut self, seed: u64);
}

trait Faults {
    fn fail_after(&self, calls: usize, fault: Fault);
    fn repair(&self);
}

impl<B: Backend> Faults for FaultBackend<B> {
    fn fail_after(&self, calls: usize, fault: Fault) {
        Self::fail_after(self, calls, fault);
    }

    fn repair(&self) {
        Self::repair(self);
    }
}

#[derive(Debug)]
struct InMemory(Arc<FaultBackend<MemoryBackend>>);

impl Store for InMemory {
    fn faults(&self) -> &dyn Faults {
        &*self.0
    }

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.0) as Arc<dyn Backend>
    }

    fn crash(&mut self, _: u64) {}
}

#[derive(Debug)]
struct OnDisk {
    disk: SimulatedDisk,
    backend: Arc<FaultBackend<LocalBackend>>,
}

impl OnDisk {
    fn new(disk: SimulatedDisk) -> Self {
        let local = LocalBackend::on_disk(Arc::new(disk.clone()), "/repo");
        Self { disk, backend: Arc::new(FaultBackend::new(local)) }
    }
}

impl Store for OnDisk {
    fn faults(&self) -> &dyn Faults {
        &*self.backend
    }

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.backend) as Arc<dyn Backend>
    }

    fn crash(&mut self, seed: u64) {
        *self = Self::new(self.disk.lose_power(Loss::Torn { seed }));
    }
}

struct Run<'a> {
    store: &'a mut dyn Store,
    /// What every tag ever used stands for.
    world: Scenario,
    live: BTreeSet<String>,
    repo: Repo,
    choices: Choices,
    backups: usize,
    faults: usize,
}

fn open(backend: Arc<dyn Backend>) -> Result<Repo, EngineError> {
    Place { backend, cache: None }.open()
}

fn a_fault(choices: &mut Choices) -> Fault {
    let error = match choices.below(3) {
        0 => BackendError::Full,
        1 => BackendError::Unreachable { text: "on demand".into() },
        _ => BackendError::Io { retryable: true, text: "on demand".into() },
    };
    if choices.one_in(2) { Fault::Before(error) } else { Fault::After(error) }
}

/// What a failing store may be reported as. One that cannot be reached when asked whether
/// there is a repository is asked to make one, and says that there is.
fn is_told(error: &EngineError) -> bool {
    matches!(error, EngineError::Backend { .. } | EngineError::List(_) | EngineError::AlreadyExists)
}

impl<'a> Run<'a> {
    fn new(store: &'a mut dyn Store, seed: u64) -> Self {
        let repo = open(store.backend()).unwrap();
        Self {
            store,
            world: Scenario { works: Vec::new(), contents: BTreeMap::new() },
            live: BTreeSet::new(),
            repo,
            choices: Choices::new(seed),
            backups: 0,
            faults: 0,
        }
    }

    fn expected(&self) -> Expected {
        let absent = self.world.contents.keys().filter(|tag| !self.live.contains(*tag));
        Expected { present: self.live.clone(), absent: absent.cloned().collect() }
    }

    /// Does one thing, with or without a call that fails; then both must hold the same.
    fn step(&mut self) -> Result<(), String> {
        let operation = if self.live.len() > LIVE_MAX {
            Operation::Delete
        } else if self.choices.one_in(25) {
            Operation::Crash
        } else {
            OPERATION_KINDS[self.choices.below(OPERATION_KINDS.len())]
        };
        let is_faulty = self.choices.one_in(2);
        if is_faulty {
            let calls = self.choices.below(40);
            let fault = a_fault(&mut self.choices);
            self.store.faults().fail_after(calls, fault);
        }
        let tag = self.choose(operation);
        let outcome = self.perform(operation, tag.as_deref());
        self.store.faults().repair();
        match &outcome {
            Ok(()) => {}
            Err(error) if is_faulty && is_told(error) => self.faults += 1,
            Err(error) => return Err(format!("{operation:?}: {error}")),
        }
        self.settle(operation, tag, outcome.is_ok())?;
        let found: BTreeSet<_> =
            snapshots(&self.repo).map_err(|error| error.to_string())?.into_keys().collect();
        if found != self.live {
            return Err(format!("{operation:?}: has {found:?}, must have {:?}", self.live));
        }
        if operation == Operation::Crash || self.choices.one_in(12) {
            self.world.judge(&self.repo, &self.expected())?;
        }
        Ok(())
    }

    /// The backup an operation is about.
    fn choose(&mut self, operation: Operation) -> Option<String> {
        match operation {
            Operation::BackUp => {
                let parent = self.pick().filter(|_| !self.choices.one_in(5));
                let before: Option<Contents> = parent.map(|tag| self.world.contents[&tag].clone());
                let contents = self.choices.contents(before.as_ref());
                self.backups += 1;
                let tag = format!("backup-{}", self.backups);
                self.world.contents.insert(tag.clone(), contents);
                Some(tag)
            }
            Operation::Delete | Operation::Restore => self.pick(),
            Operation::Check
            | Operation::Refresh
            | Operation::Reopen
            | Operation::Abandon
            | Operation::Prune
            | Operation::Crash => None,
        }
    }

    fn pick(&mut self) -> Option<String> {
        let number = self.choices.below(self.live.len());
        self.live.iter().nth(number).cloned()
    }

    fn perform(&mut self, operation: Operation, tag: Option<&str>) -> Result<(), EngineError> {
        let nobody = || 0;
        let mut watch = Watch::new(&nobody);
        match (operation, tag) {
            (Operation::BackUp, Some(tag)) => {
                let parent = self.pick();
                self.world.back_up(&self.repo, tag, parent.as_deref(), &mut watch)
            }
            (Operation::Delete, Some(tag)) => self.world.delete(&self.repo, tag, &mut watch),
            (Operation::Restore, Some(tag)) => {
                let id = snapshots(&self.repo)?[tag];
                match self.world.restore_all(&self.repo, tag, id)? {
                    true => Ok(()),
                    false => panic!("{tag} restores to something else"),
                }
            }
            (Operation::Check, _) => {
                let report = self.repo.check(ReadData::Yes, &CancelFlag::new())?;
                assert_eq!(report.problems, []);
                Ok(())
            }
            (Operation::Refresh, _) => self.repo.refresh(),
            (Operation::Reopen, _) => {
                self.repo = open(self.store.backend())?;
                Ok(())
            }
            (Operation::Abandon, _) => {
                let at = Timestamp::from_micros(1);
                let begun =
                    self.repo.begin_session("session-2", at, Arc::new(OpenGate), CancelFlag::new());
                std::mem::forget(begun?);
                self.repo.remove_session_locks("session-2").map(drop)
            }
            (Operation::Prune, _) => {
                let pruned = prune(&self.repo);
                self.store.faults().repair();
                // Whoever starts a prune removes what an earlier one left.
                self.repo.remove_session_locks("prune-1")?;
                pruned
            }
            (Operation::Crash, _) => {
                self.store.faults().repair();
                let seed = self.choices.next();
                self.store.crash(seed);
                self.repo = open(self.store.backend())?;
                Ok(())
            }
            (Operation::BackUp | Operation::Delete | Operation::Restore, None) => Ok(()),
        }
    }

    /// After a failure the answer is what the store says; after a success it is known.
    fn settle(
        &mut self,
        operation: Operation,
        tag: Option<String>,
        is_done: bool,
    ) -> Result<(), String> {
        let Some(tag) = tag else { return Ok(()) };
        let found = snapshots(&self.repo).map_err(|error| error.to_string())?;
        let is_there =
            if is_done { operation != Operation::Delete } else { found.contains_key(&tag) };
        if is_there {
            self.live.insert(tag)
        } else {
            self.live.remove(&tag)
        };
        Ok(())
    }
}

/// One life; says how many calls failed in it.
fn live(store: &mut dyn Store, seed: u64) -> usize {
    let name = format!("{store:?}");
    let mut run = Run::new(store, seed);
    for number in 0..OPERATIONS {
        run.step().unwrap_or_else(|what| panic!("{name}, seed {seed}, step {number}: {what}"));
    }
    let expected = run.expected();
    run.world
        .judge(&run.repo, &expected)
        .unwrap_or_else(|what| panic!("{name}, seed {seed}, at the end: {what}"));
    run.faults
}

#[test]
fn the_engine_and_a_map_never_differ() {
    let lives = if is_long() { 1_000 } else { 40 };
    let faults = in_two_threads(lives, |seed| {
        let backend = Arc::new(FaultBackend::new(MemoryBackend::new()));
        if seed % 2 == 0 {
            live(&mut InMemory(backend), seed as u64)
        } else {
            live(&mut OnDisk::new(SimulatedDisk::new()), seed as u64)
        }
    });
    let faults: usize = faults.into_iter().sum();
    assert!(faults > lives * 10, "{faults}");
    report_figure(
        "model",
        &format!(
            "model: {} operations, {faults} of them failed by the store, no divergence",
            lives * OPERATIONS
        ),
    );
}
