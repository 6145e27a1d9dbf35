//! Scripted trouble: what the next calls answer, which calls hang, who is told.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kedge_core::ports::CloudError;
use tokio::sync::Notify;

/// Every call the simulated cloud answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SimOp {
    /// `Cloud::find_server`.
    FindServer,
    /// `Cloud::list_servers`.
    ListServers,
    /// `Cloud::create_snapshots`.
    CreateSnapshots,
    /// `Cloud::open_snapshot`.
    OpenSnapshot,
    /// `Cloud::confirm_snapshots`.
    ConfirmSnapshots,
    /// `Cloud::delete_snapshots`.
    DeleteSnapshots,
    /// `Cloud::list_snapshots`.
    ListSnapshots,
    /// `Cloud::lock_server`.
    LockServer,
    /// `Cloud::unlock_server`.
    UnlockServer,
    /// `Cloud::list_locks`.
    ListLocks,
    /// `Cloud::stop_server`.
    StopServer,
    /// `Cloud::start_server`.
    StartServer,
    /// `Cloud::open_for_writing`.
    OpenForWriting,
    /// `Cloud::open_for_read_back`.
    OpenForReadBack,
    /// `Cloud::clear_mark`.
    ClearMark,
    /// `Cloud::list_marks`.
    ListMarks,
    /// `DiskReader::next_extent`.
    NextExtent,
    /// `DiskReader::read_at`.
    ReadAt,
    /// `DiskWriter::write_at`.
    WriteAt,
    /// `DiskWriter::write_zeroes`.
    WriteZeroes,
    /// `DiskWriter::finish`.
    Finish,
}

impl SimOp {
    /// Every call, for tests that break each once.
    pub const ALL: [Self; 21] = [
        Self::FindServer,
        Self::ListServers,
        Self::CreateSnapshots,
        Self::OpenSnapshot,
        Self::ConfirmSnapshots,
        Self::DeleteSnapshots,
        Self::ListSnapshots,
        Self::LockServer,
        Self::UnlockServer,
        Self::ListLocks,
        Self::StopServer,
        Self::StartServer,
        Self::OpenForWriting,
        Self::OpenForReadBack,
        Self::ClearMark,
        Self::ListMarks,
        Self::NextExtent,
        Self::ReadAt,
        Self::WriteAt,
        Self::WriteZeroes,
        Self::Finish,
    ];
}

/// What one call is told to do.
#[derive(Clone, Debug)]
pub(super) enum Script {
    /// Work.
    Pass,
    /// Do nothing and fail.
    Fail(CloudError),
    /// Work, then fail all the same: the answer got lost.
    LoseAnswer(CloudError),
}

type Hook = Arc<dyn Fn() + Send + Sync>;

/// The scripts, gates, hooks and counters of one simulated cloud.
#[derive(Default)]
pub(super) struct Faults {
    table: Mutex<Table>,
    changed: Condvar,
    changed_async: Notify,
}

#[derive(Default)]
struct Table {
    next: HashMap<SimOp, VecDeque<Script>>,
    always: HashMap<SimOp, CloudError>,
    hung: BTreeSet<SimOp>,
    hooks: HashMap<SimOp, Hook>,
    calls: HashMap<SimOp, u64>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("calls", &self.table().calls).finish_non_exhaustive()
    }
}

impl Faults {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let out = change(&mut self.table());
        self.changed.notify_all();
        self.changed_async.notify_waiters();
        out
    }

    pub(super) fn push(&self, op: SimOp, times: usize, script: &Script) {
        let scripts = std::iter::repeat_n(script.clone(), times);
        self.change(|table| table.next.entry(op).or_default().extend(scripts));
    }

    pub(super) fn fail_always(&self, op: SimOp, error: CloudError) {
        self.change(|table| table.always.insert(op, error));
    }

    pub(super) fn hang(&self, op: SimOp) {
        self.change(|table| table.hung.insert(op));
    }

    pub(super) fn release(&self, op: SimOp) {
        self.change(|table| table.hung.remove(&op));
    }

    pub(super) fn hook(&self, op: SimOp, hook: Option<Hook>) {
        self.change(|table| match hook {
            Some(hook) => table.hooks.insert(op, hook),
            None => table.hooks.remove(&op),
        });
    }

    /// Back to a cloud without trouble; hung calls go on. Counters stay.
    pub(super) fn clear(&self) {
        self.change(|table| {
            let calls = std::mem::take(&mut table.calls);
            *table = Table { calls, ..Table::default() };
        });
    }

    pub(super) fn calls(&self, op: SimOp) -> u64 {
        self.table().calls.get(&op).copied().unwrap_or(0)
    }

    pub(super) fn total_calls(&self) -> u64 {
        self.table().calls.values().sum()
    }

    pub(super) fn reset_calls(&self) {
        self.change(|table| table.calls.clear());
    }

    /// Returns once `op` was called that often.
    pub(super) async fn wait_for_calls(&self, op: SimOp, calls: u64) {
        self.wait_until(|table| table.calls.get(&op).is_some_and(|seen| *seen >= calls)).await;
    }

    /// Counts a call, lets it hang as long as told, and says how it ends: an error now, or
    /// one to answer with after the work is done.
    pub(super) async fn enter(&self, op: SimOp) -> Result<Option<CloudError>, CloudError> {
        self.count(op);
        self.wait_until(|table| !table.hung.contains(&op)).await;
        self.outcome(op)
    }

    /// [`Faults::enter`] for calls that block.
    pub(super) fn enter_blocking(&self, op: SimOp) -> Result<Option<CloudError>, CloudError> {
        self.count(op);
        let mut table = self.table();
        while table.hung.contains(&op) {
            table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        drop(table);
        self.outcome(op)
    }

    fn count(&self, op: SimOp) {
        self.change(|table| *table.calls.entry(op).or_default() += 1);
    }

    fn outcome(&self, op: SimOp) -> Result<Option<CloudError>, CloudError> {
        let hook = self.table().hooks.get(&op).cloned();
        if let Some(hook) = hook {
            hook();
        }
        let mut table = self.table();
        let script = table.next.get_mut(&op).and_then(VecDeque::pop_front);
        match (script, table.always.get(&op)) {
            (Some(Script::Fail(error)), _) => Err(error),
            (Some(Script::LoseAnswer(error)), _) => Ok(Some(error)),
            (Some(Script::Pass), _) | (None, None) => Ok(None),
            (None, Some(error)) => Err(error.clone()),
        }
    }

    async fn wait_until(&self, ready: impl Fn(&Table) -> bool) {
        loop {
            let mut changed = pin!(self.changed_async.notified());
            // Registered before looking, so that no change slips in between.
            changed.as_mut().enable();
            if ready(&self.table()) {
                return;
            }
            changed.await;
        }
    }
}
