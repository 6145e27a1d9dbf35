//! Servers as they are declared, and what lasts of them.
//!
//! Invariant: a server is found by reading declarations, never by a path made of its id; a
//! server's state changes under the lock of its folder and is durable before anybody acts
//! on it.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::sync::{Arc, MutexGuard, PoisonError};

use kedge_core::ids::{ProjectId, ServerId, VolumeId};
use kedge_core::ports::{CloudError, CloudErrorKind, DiskReader, ServerRef};
use kedge_core::resource::{Content, Server, ServerStatus, StorageClass, Volume, VolumeStatus};
use rustix::fs::Advice;
use tracing::warn;

use super::Shared;
use super::config::{Declared, DeclaredDisk, SERVER_FILE};
use super::error::failed;
use super::folder::{Access, Folder};
use super::freeze::Freeze;
use super::hold::Identity;
use super::images::{ImageFiles, Reading, disk_size, open_reader};
use super::register;
use super::state::{Power, ServerState};

/// Servers are found by reading every declaration; beyond this another cloud is the answer.
const SERVERS_MAX: usize = 10_000;
/// A declaration of 128 disks fits many times over.
const SERVER_FILE_BYTES_MAX: u64 = 1 << 20;

/// A declared server and its open folder.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) folder: Folder,
    pub(super) server: Arc<Declared>,
}

impl Shared {
    /// Visits every server that is declared well, one open folder at a time.
    pub(super) fn visit(&self, mut visit: impl FnMut(Found)) -> Result<(), CloudError> {
        let root = Folder::open(&self.root).map_err(failed("opening the directory of servers"))?;
        let listing = failed("listing the directory of servers");
        let (now, before) = ((self.calls.elapsed)(), self.register.latest());
        let look = root.identity().map_err(&listing)?;
        let names = root.names(SERVERS_MAX).map_err(&listing)?;
        let mut reading = register::Reading::begin(&before, look, now);
        for name in names {
            match read_server(&root, &name, &before) {
                Ok(Some((found, identity))) => {
                    reading.note(&before, &name, identity, now, &found.server);
                    visit(found);
                }
                Ok(None) => {}
                Err(error) => match error.kind {
                    CloudErrorKind::Permanent => self.report(name, &error.text),
                    // Not seen is not absent.
                    CloudErrorKind::Retryable | CloudErrorKind::MomentLost => return Err(error),
                },
            }
        }
        self.register.keep(reading);
        Ok(())
    }

    /// The server as whoever only looks may find it: by its own declaration alone, where the
    /// latest reading of all still holds. What is not found so is looked for everywhere, be
    /// it another project's or nobody's.
    pub(super) fn look_for(&self, of: &ServerRef) -> Result<Option<Found>, CloudError> {
        match self.find_noted(of) {
            Some(found) => Ok(Some(found)),
            None => self.find(of),
        }
    }

    fn find_noted(&self, of: &ServerRef) -> Option<Found> {
        let latest = self.register.latest();
        let root = Folder::open(&self.root).ok()?;
        let name = latest.folder_of(&of.server, &root.identity().ok()?)?;
        let folder = root.folder(name).ok()?;
        let file = folder.file(SERVER_FILE, Access::Read).ok()?;
        let server = latest.declared_in(name, &Identity::of(&file).ok()?)?.clone();
        (server.project == of.project).then_some(Found { folder, server })
    }

    /// A broken declaration hides its own server and no other.
    fn report(&self, folder: OsString, text: &str) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() < SERVERS_MAX && reported.insert(folder.clone()) {
            warn!(?folder, text, "server folder {folder:?} is left out: {text:?}");
        }
    }

    pub(super) fn find(&self, of: &ServerRef) -> Result<Option<Found>, CloudError> {
        let mut matching = Vec::new();
        self.visit(|found| {
            if found.server.id == of.server && matching.len() < 2 {
                matching.push(found);
            }
        })?;
        match matching.len() {
            0 | 1 => Ok(matching.pop().filter(|found| found.server.project == of.project)),
            _ => Err(CloudError::permanent(format!("two folders declare server {:?}", of.server))),
        }
    }

    /// The servers that a project's declarations tell of; two of the same are one.
    pub(super) fn servers_of(&self, project: &ProjectId) -> Result<Vec<ServerId>, CloudError> {
        let mut servers = BTreeSet::new();
        self.visit(|found| {
            if found.server.project == *project {
                servers.insert(found.server.id.clone());
            }
        })?;
        Ok(servers.into_iter().collect())
    }

    pub(super) fn get(&self, of: &ServerRef) -> Result<Found, CloudError> {
        self.find(of)?.ok_or_else(|| {
            CloudError::permanent(format!(
                "there is no server {:?} in project {:?}",
                of.server, of.project
            ))
        })
    }

    /// Changes a server's state: alone, and durably before it returns.
    pub(super) fn change<T>(
        &self,
        found: &Found,
        change: impl FnOnce(&mut ServerState) -> Result<T, CloudError>,
    ) -> Result<T, CloudError> {
        let _alone = self.alone();
        let _locked = found.folder.lock().map_err(failed("locking a server's state"))?;
        let before = found.state()?;
        let mut state = before.clone();
        let done = change(&mut state)?;
        if state != before {
            state.save(&found.folder).map_err(failed("keeping a server's state"))?;
        }
        Ok(done)
    }

    /// [`Shared::change`], for a server that may be gone: then nothing is there to change.
    pub(super) fn change_if_found(
        &self,
        of: &ServerRef,
        change: impl FnOnce(&mut ServerState),
    ) -> Result<(), CloudError> {
        match self.find(of)? {
            Some(found) => self.change(&found, |state| {
                change(state);
                Ok(())
            }),
            None => Ok(()),
        }
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn freezes(&self) -> MutexGuard<'_, HashMap<(ServerId, String), Arc<Freeze>>> {
        self.freezes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn held(&self, of: &ServerRef, name: &str) -> Option<Arc<Freeze>> {
        self.freezes().get(&(of.server.clone(), name.to_owned())).cloned()
    }
}

/// What a folder declares, and how its file looked before it was read. It is not read where
/// what was read before still holds.
fn read_server(
    root: &Folder,
    name: &OsString,
    before: &register::Reading,
) -> Result<Option<(Found, Identity)>, CloudError> {
    let folder = match root.folder(name) {
        Ok(folder) => folder,
        Err(error) if is_no_folder(&error) => return Ok(None),
        Err(error) => return Err(failed("opening the folder")(error)),
    };
    let reading = failed(format!("reading {SERVER_FILE}"));
    let identity = match folder.file(SERVER_FILE, Access::Read) {
        Ok(file) => Identity::of(&file).map_err(&reading)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(reading(error)),
    };
    if let Some(server) = before.declared_in(name, &identity) {
        let server = Arc::clone(server);
        return Ok(Some((Found { folder, server }, identity)));
    }
    let bytes = folder.read(SERVER_FILE, SERVER_FILE_BYTES_MAX).map_err(&reading)?;
    let Some(bytes) = bytes else { return Ok(None) };
    let server = Arc::new(Declared::parse(&bytes).map_err(CloudError::permanent)?);
    Ok(Some((Found { folder, server }, identity)))
}

/// Something else than a folder is no server; a link to one, or one just removed, is none
/// either.
fn is_no_folder(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::NotFound)
        || error.raw_os_error() == Some(nix::libc::ELOOP)
}

/// Reading a server.
impl Found {
    pub(super) fn reference(&self) -> ServerRef {
        ServerRef { project: self.server.project.clone(), server: self.server.id.clone() }
    }

    pub(super) fn state(&self) -> Result<ServerState, CloudError> {
        ServerState::load(&self.folder).map_err(failed("reading a server's state"))
    }

    pub(super) fn describe(&self) -> Result<Server, CloudError> {
        let server = Declared::clone(&self.server);
        let state = self.state()?;
        let status = match state.power {
            Power::Active => ServerStatus::Active,
            Power::Shutoff => ServerStatus::Shutoff,
        };
        let disks = self.server.disks.iter();
        let volumes =
            disks.map(|disk| self.describe_disk(disk, &state)).collect::<Result<_, _>>()?;
        Ok(Server {
            id: server.id,
            project_id: server.project,
            name: server.name,
            kind: server.kind,
            status,
            zone: server.zone,
            hardware: server.hardware,
            volumes,
        })
    }

    /// A disk that cannot be read is reported as broken and hides nothing else.
    fn describe_disk(
        &self,
        disk: &DeclaredDisk,
        state: &ServerState,
    ) -> Result<Volume, CloudError> {
        let (size_bytes, status) = match self.disk_size(disk) {
            Ok(size_bytes) => (size_bytes, VolumeStatus::Healthy),
            Err(error) if error.kind == CloudErrorKind::Retryable => return Err(error),
            Err(_) => (0, VolumeStatus::Error),
        };
        Ok(Volume {
            id: disk.id.clone(),
            name: disk.name.clone(),
            size_bytes,
            role: disk.role,
            status,
            sharing: disk.sharing,
            storage: StorageClass::Ordinary,
            encryption: disk.encryption,
            content: match state.marks.get(&disk.id) {
                Some(_) => Content::HalfWritten,
                None => Content::Whole,
            },
        })
    }

    fn disk_size(&self, disk: &DeclaredDisk) -> Result<u64, CloudError> {
        let files = ImageFiles::open_in(&self.folder, &disk.image)?;
        disk_size(&disk.image, &files)
    }

    /// Opens a disk to read what is there now, past the page cache: what is durable is
    /// dropped from it first.
    pub(super) fn open_back(&self, disk: &DeclaredDisk) -> Result<Arc<dyn DiskReader>, CloudError> {
        let files = ImageFiles::open_in(&self.folder, &disk.image)?;
        files
            .top
            .sync_all()
            .and_then(|()| Ok(rustix::fs::fadvise(&files.top, 0, None, Advice::DontNeed)?))
            .map_err(failed("dropping an image from the cache"))?;
        open_reader(&disk.image, files, Reading::Back)
    }
}

impl Declared {
    pub(super) fn disk(&self, id: &VolumeId) -> Result<&DeclaredDisk, CloudError> {
        self.disks.iter().find(|disk| disk.id == *id).ok_or_else(|| {
            CloudError::permanent(format!("volume {id:?} is not attached to server {:?}", self.id))
        })
    }
}

impl Shared {
    /// Something of every server's state. A state that cannot be read hides no other.
    pub(super) fn list(
        &self,
        pick: impl Fn(ServerState) -> Vec<String>,
    ) -> Result<Vec<(ServerRef, String)>, CloudError> {
        let mut listed = Vec::new();
        self.visit(|found| match found.state() {
            Ok(state) => {
                listed.extend(pick(state).into_iter().map(|text| (found.reference(), text)));
            }
            Err(error) => {
                let server = &found.server.id;
                warn!(?server, ?error, "state of server {server:?} is left out: {error:?}");
            }
        })?;
        Ok(listed)
    }
}
