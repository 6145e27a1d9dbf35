//! A cloud that is a directory: each server a folder with a declaration (`server.toml`),
//! image files, and a file of ours for what lasts (`kedge-state.json`).
//!
//! Invariants: no id and no user's name becomes a path; servers are found by reading
//! declarations. Everything is opened beneath the server's folder, without following links
//! and only if it is a regular file. Formats and backing files are those declared.
//!
//! Nothing here runs machines. Power is what we remember; whoever runs them on these files
//! holds QEMU's locks, and we keep away.

mod changes;
mod config;
mod direct;
mod error;
mod folder;
mod freeze;
mod hold;
mod images;
mod qcow2;
mod raw;
mod register;
mod servers;
mod snapshots;
mod state;
mod writing;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kedge_core::checkpoint::ChangeToken;
use kedge_core::ids::{ProjectId, ServerId, VolumeId};
use kedge_core::ports::{Cloud, CloudError, DiskReader, DiskWriter, OpenSnapshot, ServerRef};
use kedge_core::resource::Server;
use tokio::sync::Semaphore;

pub use self::changes::{AskBoot, AskTime, NotesWrites};
use self::changes::{ask_boot, ask_time, notes_writes};
use self::error::failed;
use self::folder::Folder;
pub use self::freeze::CloneFile;
use self::freeze::{Freeze, reflink};
pub use self::qcow2::GiveFile;
use self::qcow2::give;
pub use self::register::AskElapsed;
use self::register::elapsed;
use self::state::Power;

/// No disk is larger: what claims to be is damaged or hostile.
const DISK_BYTES_MAX: u64 = 1 << 46;

/// Calls at work at once. File systems that hang keep that many threads and no more; calls
/// beyond wait for no thread. What only looks has places of its own, so that jobs go on.
const LOOKUPS_MAX: usize = 16;
const ACTIONS_MAX: usize = 64;

/// The directory as a cloud. Clones are handles on the same.
#[derive(Clone, Debug)]
pub struct LocalCloud {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    calls: FileCalls,
    /// Held while a server's state changes. Calls under it are short.
    changing: Mutex<()>,
    /// Moments kept in place, by our locks.
    freezes: Mutex<HashMap<(ServerId, String), Arc<Freeze>>>,
    /// Broken declarations already reported.
    reported: Mutex<HashSet<OsString>>,
    register: register::Register,
    lookups: Arc<Semaphore>,
    actions: Arc<Semaphore>,
}

/// Calls to the file system that not every file system, and not every process, may make.
#[derive(Clone, Copy, Debug)]
pub struct FileCalls {
    /// What answers `EOPNOTSUPP` makes the cloud freeze disks in place.
    pub clone: CloneFile,
    /// Where this fails, no qcow2 image is written.
    pub give: GiveFile,
    /// Where this says no or fails, no changes are known.
    pub notes_writes: NotesWrites,
    /// Tells how old a file's times are.
    pub time: AskTime,
    /// Where this fails, no changes are known.
    pub boot: AskBoot,
    /// Tells how long declarations have looked the same.
    pub elapsed: AskElapsed,
}

impl Default for FileCalls {
    fn default() -> Self {
        Self { clone: reflink, give, notes_writes, time: ask_time, boot: ask_boot, elapsed }
    }
}

impl LocalCloud {
    /// The cloud beneath `root`, an existing directory.
    pub fn open(root: PathBuf) -> Result<Self, CloudError> {
        Self::open_with(root, FileCalls::default())
    }

    /// The same, with other calls to the file system.
    pub fn open_with(root: PathBuf, calls: FileCalls) -> Result<Self, CloudError> {
        Folder::open(&root).map_err(failed("opening the directory of servers"))?;
        let shared = Shared {
            root,
            calls,
            changing: Mutex::default(),
            freezes: Mutex::default(),
            reported: Mutex::default(),
            register: register::Register::default(),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            actions: Arc::new(Semaphore::new(ACTIONS_MAX)),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Looks at files and changes nothing.
    async fn look_up<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, CloudError> + Send + 'static,
    ) -> Result<T, CloudError> {
        self.blocking(&self.shared.lookups, work).await
    }

    async fn act<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, CloudError> + Send + 'static,
    ) -> Result<T, CloudError> {
        self.blocking(&self.shared.actions, work).await
    }

    /// Does file work where it may block. Once begun it runs to its end even if the call is
    /// dropped, and has its place until then; a repeated call waits for it or finds what it
    /// made. Nothing that has a place waits for another.
    async fn blocking<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        work: impl FnOnce(&Shared) -> Result<T, CloudError> + Send + 'static,
    ) -> Result<T, CloudError> {
        let bug = |text: String| CloudError::permanent(format!("bug in the local cloud: {text}"));
        let place = Arc::clone(places).acquire_owned().await.map_err(|e| bug(e.to_string()))?;
        let shared = Arc::clone(&self.shared);
        let working = tokio::task::spawn_blocking(move || {
            let _place = place;
            work(&shared)
        });
        working.await.map_err(|error| bug(error.to_string()))?
    }
}

#[async_trait]
impl Cloud for LocalCloud {
    async fn find_server(&self, of: &ServerRef) -> Result<Option<Server>, CloudError> {
        let of = of.clone();
        self.look_up(move |cloud| cloud.look_for(&of)?.map(|found| found.describe()).transpose())
            .await
    }

    async fn list_servers(&self, project: &ProjectId) -> Result<Vec<ServerId>, CloudError> {
        let project = project.clone();
        self.look_up(move |cloud| cloud.servers_of(&project)).await
    }

    async fn create_snapshots(
        &self,
        of: &ServerRef,
        volumes: &[VolumeId],
        name: &str,
    ) -> Result<(), CloudError> {
        let (of, volumes, name) = (of.clone(), volumes.to_vec(), name.to_owned());
        self.act(move |cloud| cloud.create_snapshots(&of, &volumes, &name)).await
    }

    async fn open_snapshot(
        &self,
        of: &ServerRef,
        name: &str,
        volume: &VolumeId,
        since: Option<&ChangeToken>,
    ) -> Result<OpenSnapshot, CloudError> {
        let (of, name, volume) = (of.clone(), name.to_owned(), volume.clone());
        let since = since.cloned();
        self.act(move |cloud| cloud.open_snapshot(&of, &name, &volume, since.as_ref())).await
    }

    async fn confirm_snapshots(&self, of: &ServerRef, name: &str) -> Result<(), CloudError> {
        let (of, name) = (of.clone(), name.to_owned());
        self.act(move |cloud| cloud.confirm_snapshots(&of, &name)).await
    }

    async fn delete_snapshots(&self, of: &ServerRef, name: &str) -> Result<(), CloudError> {
        let (of, name) = (of.clone(), name.to_owned());
        self.act(move |cloud| cloud.delete_snapshots(&of, &name)).await
    }

    async fn list_snapshots(&self) -> Result<Vec<(ServerRef, String)>, CloudError> {
        self.look_up(|cloud| cloud.list(|state| state.snapshots.into_keys().collect())).await
    }

    async fn lock_server(&self, of: &ServerRef, holder: &str) -> Result<(), CloudError> {
        let (of, holder) = (of.clone(), holder.to_owned());
        self.act(move |cloud| {
            cloud.change(&cloud.get(&of)?, |state| match &state.lock_holder {
                Some(other) if *other != holder => {
                    Err(CloudError::retryable(format!("{other:?} has the lock")))
                }
                Some(_) | None => {
                    state.lock_holder = Some(holder);
                    Ok(())
                }
            })
        })
        .await
    }

    async fn unlock_server(&self, of: &ServerRef, holder: &str) -> Result<(), CloudError> {
        let (of, holder) = (of.clone(), holder.to_owned());
        self.act(move |cloud| {
            cloud.change_if_found(&of, |state| {
                state.lock_holder.take_if(|current| *current == holder);
            })
        })
        .await
    }

    async fn list_locks(&self) -> Result<Vec<(ServerRef, String)>, CloudError> {
        self.look_up(|cloud| cloud.list(|state| state.lock_holder.into_iter().collect())).await
    }

    async fn stop_server(&self, of: &ServerRef) -> Result<(), CloudError> {
        let of = of.clone();
        self.act(move |cloud| {
            cloud.change(&cloud.get(&of)?, |state| {
                state.power = Power::Shutoff;
                Ok(())
            })
        })
        .await
    }

    async fn start_server(&self, of: &ServerRef) -> Result<(), CloudError> {
        let of = of.clone();
        self.act(move |cloud| {
            cloud.change(&cloud.get(&of)?, |state| match state.marks.first_key_value() {
                Some((volume, mark)) => Err(CloudError::permanent(format!(
                    "volume {volume:?} is half written ({mark:?})"
                ))),
                None => {
                    state.power = Power::Active;
                    Ok(())
                }
            })
        })
        .await
    }

    async fn open_for_writing(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
        mark: &str,
    ) -> Result<Arc<dyn DiskWriter>, CloudError> {
        let (of, volume, mark) = (of.clone(), volume.clone(), mark.to_owned());
        self.act(move |cloud| cloud.open_for_writing(&of, &volume, &mark)).await
    }

    async fn open_for_read_back(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
    ) -> Result<Arc<dyn DiskReader>, CloudError> {
        let (of, volume) = (of.clone(), volume.clone());
        self.act(move |cloud| {
            let found = cloud.get(&of)?;
            found.open_back(found.server.disk(&volume)?)
        })
        .await
    }

    async fn clear_mark(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
        mark: &str,
    ) -> Result<(), CloudError> {
        let (of, volume, mark) = (of.clone(), volume.clone(), mark.to_owned());
        self.act(move |cloud| {
            cloud.change_if_found(&of, |state| {
                if state.marks.get(&volume) == Some(&mark) {
                    state.marks.remove(&volume);
                }
            })
        })
        .await
    }

    async fn list_marks(&self, of: &ServerRef) -> Result<Vec<(VolumeId, String)>, CloudError> {
        let of = of.clone();
        self.look_up(move |cloud| Ok(cloud.get(&of)?.state()?.marks.into_iter().collect())).await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::{PoisonError, mpsc};
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn dropped_look_ups_keep_their_places_until_their_work_ends() {
        let root = tempfile::tempdir().unwrap();
        let cloud = LocalCloud::open(root.path().to_owned()).unwrap();
        let (end, ended) = mpsc::channel::<()>();
        let ended = Arc::new(Mutex::new(ended));
        for _ in 0..LOOKUPS_MAX + 8 {
            let ended = Arc::clone(&ended);
            let call = pin!(cloud.look_up(move |_| {
                let _ = ended.lock().unwrap_or_else(PoisonError::into_inner).recv();
                Ok(())
            }));
            assert!(call.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        // Each piece of work that was handed over has a copy; dropped calls have none.
        assert_eq!(Arc::strong_count(&ended) - 1, LOOKUPS_MAX);
        cloud.act(|_| Ok(())).await.unwrap();
        drop(end);
        assert_eq!(cloud.list_locks().await.unwrap(), []);
    }
}
