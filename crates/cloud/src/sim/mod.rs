//! A whole cloud in memory, with bytes, power states, physics of its own and trouble by
//! script. A real driver, not a mock: what a plan promises is tried out on it.
//!
//! Invariant: no rule of the planner is used here. The simulated cloud refuses what a cloud
//! cannot do and does everything else, so a wrong plan shows.

mod disk;
mod fault;
mod io;
mod state;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use kedge_core::checkpoint::ChangeToken;
use kedge_core::ids::{ProjectId, ServerId, VolumeId};
use kedge_core::ports::{
    Clock, Cloud, CloudError, DiskReader, DiskWriter, OpenSnapshot, ServerRef,
};
use kedge_core::resource::{Server, ServerStatus};
use kedge_core::time::Timestamp;

use self::disk::Disk;
pub use self::fault::SimOp;
use self::fault::{Faults, Script};
use self::io::{SimReader, SimWriter};
use self::state::State;

/// The simulated cloud. Clones are handles on the same cloud, so it outlives a service
/// that a test kills and starts again.
#[derive(Clone, Debug)]
pub struct SimCloud {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    faults: Faults,
    state: Mutex<State>,
}

/// What the cloud tells about changes since a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangeTracking {
    /// Nothing: no tokens, no unchanged extents.
    Off,
    /// The truth.
    #[default]
    Honest,
    /// That nothing ever changes.
    Lying,
}

/// A change somebody made to the cloud through the port, and when. Reads and snapshots are
/// no changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteLogEntry {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: SimWrite,
}

/// What a caller of the port can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SimWrite {
    /// A lock was taken.
    Locked {
        /// On this server.
        server: ServerId,
        /// In this name.
        holder: String,
    },
    /// A lock was given back.
    Unlocked {
        /// On this server.
        server: ServerId,
    },
    /// A server was powered off.
    Stopped {
        /// This one.
        server: ServerId,
    },
    /// A server was powered on.
    Started {
        /// This one.
        server: ServerId,
    },
    /// A volume was marked as half written and opened for writing.
    Marked {
        /// This one.
        volume: VolumeId,
        /// With this text.
        mark: String,
    },
    /// Bytes were written.
    Wrote {
        /// On this volume.
        volume: VolumeId,
        /// From here.
        offset: u64,
        /// So many.
        length_bytes: u64,
    },
    /// A range was made zeroes.
    Zeroed {
        /// On this volume.
        volume: VolumeId,
        /// From here.
        offset: u64,
        /// So many bytes.
        length_bytes: u64,
    },
    /// Writing ended.
    Finished {
        /// On this volume.
        volume: VolumeId,
    },
    /// A mark was taken away.
    Unmarked {
        /// From this volume.
        volume: VolumeId,
    },
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call<T>(
        &self,
        op: SimOp,
        act: impl FnOnce(&mut State) -> Result<T, CloudError>,
    ) -> Result<T, CloudError> {
        let lost_answer = self.faults.enter(op).await?;
        self.act(lost_answer, act)
    }

    fn call_blocking<T>(
        &self,
        op: SimOp,
        act: impl FnOnce(&mut State) -> Result<T, CloudError>,
    ) -> Result<T, CloudError> {
        let lost_answer = self.faults.enter_blocking(op)?;
        self.act(lost_answer, act)
    }

    fn act<T>(
        &self,
        lost_answer: Option<CloudError>,
        act: impl FnOnce(&mut State) -> Result<T, CloudError>,
    ) -> Result<T, CloudError> {
        let done = act(&mut self.state())?;
        lost_answer.map_or(Ok(done), Err)
    }
}

/// Setting the stage.
impl SimCloud {
    /// An empty cloud.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            shared: Arc::new(Shared { clock, faults: Faults::default(), state: Mutex::default() }),
        }
    }

    /// Adds a server. Its volumes are as large as it says and begin with the bytes given;
    /// the rest is zeroes and costs no memory. A volume that is there already (a shared
    /// one) keeps its bytes. All are whole until marked, whatever it says of them.
    pub fn add_server(&self, server: Server, content: HashMap<VolumeId, Vec<u8>>) {
        self.shared.state().add_server(server, &content);
    }

    /// Removes a server, its locks and snapshots. Its volumes stay.
    pub fn remove_server(&self, id: &ServerId) {
        self.shared.state().servers.remove(id);
    }

    /// Changes a server behind everyone's back. Volumes follow the sizes it then says; one
    /// that is new is empty. Does nothing if there is no such server.
    pub fn edit_server(&self, id: &ServerId, edit: impl FnOnce(&mut Server)) {
        let mut state = self.shared.state();
        if let Some(sim) = state.servers.get_mut(id) {
            edit(&mut sim.server);
        }
        state.follow_volumes(id);
    }

    /// The server as it is, whoever owns it; not counted as a call.
    pub fn server(&self, id: &ServerId) -> Option<Server> {
        let state = self.shared.state();
        state.servers.get(id).map(|sim| state.describe(sim))
    }

    /// All bytes of a volume, none if there is no such volume; not counted as a call.
    pub fn volume_bytes(&self, id: &VolumeId) -> Vec<u8> {
        let state = self.shared.state();
        let Some(disk) = state.disks.get(id) else { return Vec::new() };
        let mut bytes = vec![0; usize::try_from(disk.disk.size_bytes()).unwrap_or(usize::MAX)];
        disk.disk.read(0, &mut bytes);
        bytes
    }

    /// Writes as the guest would: tracked as a change, not in the write log.
    ///
    /// # Panics
    ///
    /// When there is no such volume or the range is not on it.
    pub fn overwrite(&self, id: &VolumeId, offset: u64, bytes: &[u8]) {
        let mut state = self.shared.state();
        let disk = state.disks.get_mut(id).map(|disk| &mut disk.disk);
        match disk.filter(|disk| disk.holds(offset, bytes.len() as u64)) {
            Some(disk) => disk.write(offset, bytes),
            None => panic!("volume {id:?} has no {} bytes at {offset}", bytes.len()),
        }
    }

    /// Marks a volume as a restore would that never came to its end; not in the write log.
    ///
    /// # Panics
    ///
    /// When there is no such volume.
    pub fn mark_half_written(&self, id: &VolumeId, mark: &str) {
        match self.shared.state().disks.get_mut(id) {
            Some(disk) => disk.mark = Some(mark.to_owned()),
            None => panic!("there is no volume {id:?}"),
        }
    }

    /// Loses every frozen moment of a server.
    pub fn lose_snapshots(&self, id: &ServerId) {
        if let Some(sim) = self.shared.state().servers.get_mut(id) {
            sim.snapshots.values_mut().for_each(|freeze| freeze.lost = true);
        }
    }

    /// Ends every open writer, as when the processes that have them die.
    pub fn revoke_writers(&self) {
        self.shared.state().disks.values_mut().for_each(|disk| disk.writer = None);
    }

    /// What is told about changes from now on.
    pub fn set_change_tracking(&self, tracking: ChangeTracking) {
        self.shared.state().tracking = tracking;
    }

    /// From now on tells that nothing changed since any known token.
    pub fn lie_about_changes(&self) {
        self.set_change_tracking(ChangeTracking::Lying);
    }

    /// No token handed out so far is known any more.
    pub fn forget_changes(&self) {
        self.shared.state().disks.values_mut().for_each(|disk| disk.epoch += 1);
    }
}

/// Trouble by script. Scripted outcomes of a call are used up in the order they were
/// given, before what it does always.
impl SimCloud {
    /// The next `times` calls of `op` do nothing and fail.
    pub fn fail_next(&self, op: SimOp, times: usize, error: CloudError) {
        self.shared.faults.push(op, times, &Script::Fail(error));
    }

    /// The next `times` calls of `op` do their work and fail all the same: the answer got
    /// lost on its way.
    pub fn lose_answers(&self, op: SimOp, times: usize, error: CloudError) {
        self.shared.faults.push(op, times, &Script::LoseAnswer(error));
    }

    /// The next `times` calls of `op` work; put before [`SimCloud::fail_next`] to fail a
    /// later one.
    pub fn pass_next(&self, op: SimOp, times: usize) {
        self.shared.faults.push(op, times, &Script::Pass);
    }

    /// Every call of `op` fails, until [`SimCloud::clear_faults`].
    pub fn fail_always(&self, op: SimOp, error: CloudError) {
        self.shared.faults.fail_always(op, error);
    }

    /// Calls of `op` do not return until released. Blocking calls block their thread.
    pub fn hang(&self, op: SimOp) {
        self.shared.faults.hang(op);
    }

    /// Ends [`SimCloud::hang`]; the calls that hang go on.
    pub fn release(&self, op: SimOp) {
        self.shared.faults.release(op);
    }

    /// Runs `hook` inside each call of `op`, before its effect and with nothing locked. It
    /// may block, change the cloud, or stop time: a pause point. Replaces the hook `op` had.
    pub fn before(&self, op: SimOp, hook: impl Fn() + Send + Sync + 'static) {
        self.shared.faults.hook(op, Some(Arc::new(hook)));
    }

    /// Takes the hook of `op` away.
    pub fn clear_hook(&self, op: SimOp) {
        self.shared.faults.hook(op, None);
    }

    /// No more trouble, no hooks; what hangs goes on.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }
}

/// What happened.
impl SimCloud {
    /// How often `op` was called.
    pub fn calls(&self, op: SimOp) -> u64 {
        self.shared.faults.calls(op)
    }

    /// How many calls there were, of any kind.
    pub fn total_calls(&self) -> u64 {
        self.shared.faults.total_calls()
    }

    /// Counts from zero again.
    pub fn reset_calls(&self) {
        self.shared.faults.reset_calls();
    }

    /// Returns once `op` was called (perhaps not answered) so often.
    pub async fn wait_for_calls(&self, op: SimOp, calls: u64) {
        self.shared.faults.wait_for_calls(op, calls).await;
    }

    /// Everything that was changed through the port, in order.
    pub fn write_log(&self) -> Vec<WriteLogEntry> {
        self.shared.state().log.clone()
    }

    /// Empties the write log.
    pub fn clear_write_log(&self) {
        self.shared.state().log.clear();
    }
}

impl SimCloud {
    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Reports every block but the changed ones as unchanged, if it is known which they are.
    fn reader(
        &self,
        volume: &VolumeId,
        disk: Disk,
        changed: Option<BTreeSet<u64>>,
    ) -> Arc<dyn DiskReader> {
        Arc::new(SimReader {
            shared: Arc::clone(&self.shared),
            volume: volume.clone(),
            disk,
            changed,
        })
    }

    fn open_frozen(
        &self,
        state: &State,
        of: &ServerRef,
        name: &str,
        volume: &VolumeId,
        since: Option<&ChangeToken>,
    ) -> Result<OpenSnapshot, CloudError> {
        let (disk, token) = state.frozen(of, name, volume)?;
        let known = since.and_then(|token| state.version_at(volume, token));
        let changed = match state.tracking {
            ChangeTracking::Off => None,
            ChangeTracking::Honest => known.and_then(|version| disk.changed_since(version)),
            ChangeTracking::Lying => known.map(|_| BTreeSet::new()),
        };
        Ok(OpenSnapshot { reader: self.reader(volume, disk, changed), token })
    }

    async fn power(
        &self,
        op: SimOp,
        of: &ServerRef,
        to: ServerStatus,
        done: SimWrite,
    ) -> Result<(), CloudError> {
        self.shared
            .call(op, |state| {
                if state.power(of, to)? {
                    state.record(self.now(), done);
                }
                Ok(())
            })
            .await
    }
}

#[async_trait]
impl Cloud for SimCloud {
    async fn find_server(&self, of: &ServerRef) -> Result<Option<Server>, CloudError> {
        self.shared
            .call(SimOp::FindServer, |state| Ok(state.find(of).map(|sim| state.describe(sim))))
            .await
    }

    async fn list_servers(&self, project: &ProjectId) -> Result<Vec<ServerId>, CloudError> {
        self.shared.call(SimOp::ListServers, |state| Ok(state.servers_of(project))).await
    }

    async fn create_snapshots(
        &self,
        of: &ServerRef,
        volumes: &[VolumeId],
        name: &str,
    ) -> Result<(), CloudError> {
        self.shared.call(SimOp::CreateSnapshots, |state| state.freeze(of, volumes, name)).await
    }

    async fn open_snapshot(
        &self,
        of: &ServerRef,
        name: &str,
        volume: &VolumeId,
        since: Option<&ChangeToken>,
    ) -> Result<OpenSnapshot, CloudError> {
        self.shared
            .call(SimOp::OpenSnapshot, |state| self.open_frozen(state, of, name, volume, since))
            .await
    }

    async fn confirm_snapshots(&self, of: &ServerRef, name: &str) -> Result<(), CloudError> {
        self.shared
            .call(SimOp::ConfirmSnapshots, |state| state.get(of)?.freeze(name).map(|_| ()))
            .await
    }

    async fn delete_snapshots(&self, of: &ServerRef, name: &str) -> Result<(), CloudError> {
        self.shared
            .call(SimOp::DeleteSnapshots, |state| {
                state.find_mut(of).and_then(|sim| sim.snapshots.remove(name));
                Ok(())
            })
            .await
    }

    async fn list_snapshots(&self) -> Result<Vec<(ServerRef, String)>, CloudError> {
        self.shared
            .call(SimOp::ListSnapshots, |state| {
                let names = state.servers.values().flat_map(|sim| {
                    sim.snapshots.keys().map(|name| (reference(&sim.server), name.clone()))
                });
                Ok(names.collect())
            })
            .await
    }

    async fn lock_server(&self, of: &ServerRef, holder: &str) -> Result<(), CloudError> {
        self.shared
            .call(SimOp::LockServer, |state| {
                let sim = state.get_mut(of)?;
                match &sim.lock_holder {
                    Some(other) if other != holder => {
                        return Err(CloudError::retryable(format!("{other:?} has the lock")));
                    }
                    Some(_) => return Ok(()),
                    None => sim.lock_holder = Some(holder.to_owned()),
                }
                let (server, holder) = (of.server.clone(), holder.to_owned());
                state.record(self.now(), SimWrite::Locked { server, holder });
                Ok(())
            })
            .await
    }

    async fn unlock_server(&self, of: &ServerRef, holder: &str) -> Result<(), CloudError> {
        self.shared
            .call(SimOp::UnlockServer, |state| {
                let held = state
                    .find_mut(of)
                    .and_then(|sim| sim.lock_holder.take_if(|current| current == holder));
                if held.is_some() {
                    let server = of.server.clone();
                    state.record(self.now(), SimWrite::Unlocked { server });
                }
                Ok(())
            })
            .await
    }

    async fn list_locks(&self) -> Result<Vec<(ServerRef, String)>, CloudError> {
        self.shared
            .call(SimOp::ListLocks, |state| {
                let held = state.servers.values().filter_map(|sim| {
                    sim.lock_holder.clone().map(|holder| (reference(&sim.server), holder))
                });
                Ok(held.collect())
            })
            .await
    }

    async fn stop_server(&self, of: &ServerRef) -> Result<(), CloudError> {
        let done = SimWrite::Stopped { server: of.server.clone() };
        self.power(SimOp::StopServer, of, ServerStatus::Shutoff, done).await
    }

    async fn start_server(&self, of: &ServerRef) -> Result<(), CloudError> {
        let done = SimWrite::Started { server: of.server.clone() };
        self.power(SimOp::StartServer, of, ServerStatus::Active, done).await
    }

    async fn open_for_writing(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
        mark: &str,
    ) -> Result<Arc<dyn DiskWriter>, CloudError> {
        self.shared
            .call(SimOp::OpenForWriting, |state| {
                let writer = SimWriter {
                    id: state.open_writer(of, volume, mark)?,
                    size_bytes: state.disk(volume)?.disk.size_bytes(),
                    shared: Arc::clone(&self.shared),
                    volume: volume.clone(),
                };
                let (volume, mark) = (volume.clone(), mark.to_owned());
                state.record(self.now(), SimWrite::Marked { volume, mark });
                Ok(Arc::new(writer) as Arc<dyn DiskWriter>)
            })
            .await
    }

    async fn open_for_read_back(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
    ) -> Result<Arc<dyn DiskReader>, CloudError> {
        self.shared
            .call(SimOp::OpenForReadBack, |state| {
                state.get(of)?.attached(volume)?;
                Ok(self.reader(volume, state.disk(volume)?.disk.clone(), None))
            })
            .await
    }

    async fn clear_mark(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
        mark: &str,
    ) -> Result<(), CloudError> {
        self.shared
            .call(SimOp::ClearMark, |state| {
                if state.find(of).and_then(|sim| sim.find_attached(volume)).is_none() {
                    return Ok(());
                }
                let cleared = state.disk_mut(volume)?.mark.take_if(|current| current == mark);
                if cleared.is_some() {
                    let volume = volume.clone();
                    state.record(self.now(), SimWrite::Unmarked { volume });
                }
                Ok(())
            })
            .await
    }

    async fn list_marks(&self, of: &ServerRef) -> Result<Vec<(VolumeId, String)>, CloudError> {
        self.shared
            .call(SimOp::ListMarks, |state| {
                let mut marks = Vec::new();
                for volume in &state.get(of)?.server.volumes {
                    if let Some(mark) = &state.disk(&volume.id)?.mark {
                        marks.push((volume.id.clone(), mark.clone()));
                    }
                }
                Ok(marks)
            })
            .await
    }
}

fn reference(server: &Server) -> ServerRef {
    ServerRef { project: server.project_id.clone(), server: server.id.clone() }
}
