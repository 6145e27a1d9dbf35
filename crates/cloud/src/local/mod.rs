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
mod error;
mod folder;
mod freeze;
mod hold;
mod qcow2;
mod raw;
mod state;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use kedge_core::checkpoint::ChangeToken;
use kedge_core::ids::{ServerId, VolumeId};
use kedge_core::ports::{
    Cloud, CloudError, CloudErrorKind, DiskReader, DiskWriter, OpenSnapshot, ServerRef,
};
use kedge_core::resource::{
    Content, Server, ServerKind, ServerStatus, Sharing, StorageClass, Volume, VolumeStatus,
};
use rustix::fs::Advice;
use tokio::sync::Semaphore;
use tracing::warn;

pub use self::changes::{AskBoot, AskTime, NotesWrites};
use self::changes::{
    Moment, Standing, Unchanged, UnchangedReader, Witness, ask_boot, ask_time, notes_writes,
};
use self::config::{Declared, DeclaredDisk, Format, Image, SERVER_FILE};
use self::error::failed;
use self::folder::{Access, Folder};
pub use self::freeze::CloneFile;
use self::freeze::{CLONES_FOLDER, CLONES_MAX, Freeze, reflink};
use self::hold::{Hold, Identity};
pub use self::qcow2::GiveFile;
use self::qcow2::{AloneWith, Header, ImageFiles, Qcow2Reader, Qcow2Writer, give};
use self::raw::{RawReader, RawWriter};
use self::state::{Kept, Power, ServerState, SnapshotState};

/// Servers are found by reading every declaration; beyond this another cloud is the answer.
const SERVERS_MAX: usize = 10_000;
/// A declaration of 128 disks fits many times over.
const SERVER_FILE_BYTES_MAX: u64 = 1 << 20;
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
}

impl Default for FileCalls {
    fn default() -> Self {
        Self { clone: reflink, give, notes_writes, time: ask_time, boot: ask_boot }
    }
}

/// What bytes are read for; says what it means when they change meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// A frozen moment.
    Frozen,
    /// What is on a disk now.
    Back,
}

impl Reading {
    fn changed(self, text: &str) -> CloudError {
        match self {
            Self::Frozen => CloudError::moment_lost(text),
            Self::Back => CloudError::permanent(text),
        }
    }
}

/// A declared server and its open folder.
#[derive(Debug)]
struct Found {
    folder: Folder,
    server: Declared,
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

impl Shared {
    /// Visits every server that is declared well, one open folder at a time.
    fn visit(&self, mut visit: impl FnMut(Found)) -> Result<(), CloudError> {
        let root = Folder::open(&self.root).map_err(failed("opening the directory of servers"))?;
        let names = root.names(SERVERS_MAX).map_err(failed("listing the directory of servers"))?;
        for name in names {
            match read_server(&root, &name) {
                Ok(Some(found)) => visit(found),
                Ok(None) => {}
                Err(error) => match error.kind {
                    CloudErrorKind::Permanent => self.report(name, &error.text),
                    // Not seen is not absent.
                    CloudErrorKind::Retryable | CloudErrorKind::MomentLost => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// A broken declaration hides its own server and no other.
    fn report(&self, folder: OsString, text: &str) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() < SERVERS_MAX && reported.insert(folder.clone()) {
            warn!(?folder, text, "server folder {folder:?} is left out: {text:?}");
        }
    }

    fn find(&self, of: &ServerRef) -> Result<Option<Found>, CloudError> {
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

    fn get(&self, of: &ServerRef) -> Result<Found, CloudError> {
        self.find(of)?.ok_or_else(|| {
            CloudError::permanent(format!(
                "there is no server {:?} in project {:?}",
                of.server, of.project
            ))
        })
    }

    /// Changes a server's state: alone, and durably before it returns.
    fn change<T>(
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
    fn change_if_found(
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

    fn freezes(&self) -> MutexGuard<'_, HashMap<(ServerId, String), Arc<Freeze>>> {
        self.freezes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self, of: &ServerRef, name: &str) -> Option<Arc<Freeze>> {
        self.freezes().get(&(of.server.clone(), name.to_owned())).cloned()
    }
}

fn read_server(root: &Folder, name: &OsString) -> Result<Option<Found>, CloudError> {
    let folder = match root.folder(name) {
        Ok(folder) => folder,
        Err(error) if is_no_folder(&error) => return Ok(None),
        Err(error) => return Err(failed("opening the folder")(error)),
    };
    let bytes = folder
        .read(SERVER_FILE, SERVER_FILE_BYTES_MAX)
        .map_err(failed(format!("reading {SERVER_FILE}")))?;
    let Some(bytes) = bytes else { return Ok(None) };
    let server = Declared::parse(&bytes).map_err(CloudError::permanent)?;
    Ok(Some(Found { folder, server }))
}

/// Something else than a folder is no server; a link to one, or one just removed, is none
/// either.
fn is_no_folder(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::NotFound)
        || error.raw_os_error() == Some(nix::libc::ELOOP)
}

/// Reading a server.
impl Found {
    fn reference(&self) -> ServerRef {
        ServerRef { project: self.server.project.clone(), server: self.server.id.clone() }
    }

    fn state(&self) -> Result<ServerState, CloudError> {
        ServerState::load(&self.folder).map_err(failed("reading a server's state"))
    }

    fn describe(&self) -> Result<Server, CloudError> {
        let server = self.server.clone();
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
    fn open_back(&self, disk: &DeclaredDisk) -> Result<Arc<dyn DiskReader>, CloudError> {
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
    fn disk(&self, id: &VolumeId) -> Result<&DeclaredDisk, CloudError> {
        self.disks.iter().find(|disk| disk.id == *id).ok_or_else(|| {
            CloudError::permanent(format!("volume {id:?} is not attached to server {:?}", self.id))
        })
    }
}

fn disk_size(image: &Image, files: &ImageFiles) -> Result<u64, CloudError> {
    let size_bytes = match image.format {
        Format::Raw => Identity::of(&files.top).map(|identity| identity.size_bytes),
        Format::Qcow2 => Header::read(&files.top).and_then(|header| {
            header.check_backing(image.backing.as_ref().map(|backing| backing.file.as_str()))?;
            Ok(header.size_bytes)
        }),
    }
    .map_err(failed(format!("reading image {:?}", image.file)))?;
    if (1..=DISK_BYTES_MAX).contains(&size_bytes) {
        Ok(size_bytes)
    } else {
        Err(CloudError::permanent(format!("image {:?} has {size_bytes} bytes", image.file)))
    }
}

fn open_reader(
    image: &Image,
    files: ImageFiles,
    reading: Reading,
) -> Result<Arc<dyn DiskReader>, CloudError> {
    let size_bytes = disk_size(image, &files)?;
    Ok(match image.format {
        Format::Raw => Arc::new(RawReader::new(files.top, size_bytes, reading)),
        Format::Qcow2 => Arc::new(open_qcow2_reader(image, files, reading)?),
    })
}

/// Opens a frozen disk, with what is known of its changes.
fn open_frozen(
    volume: &VolumeId,
    image: &Image,
    files: ImageFiles,
    witness: Option<&Witness>,
    since: Option<&ChangeToken>,
) -> Result<OpenSnapshot, CloudError> {
    let size_bytes = disk_size(image, &files)?;
    let now = witness.and_then(|witness| Moment::of(volume, image, size_bytes, witness));
    let then = since.and_then(Moment::from_token);
    let unchanged = match (&now, &then) {
        (Some(now), Some(then)) => now.unchanged_since(then),
        (None, _) | (_, None) => Unchanged::Nothing,
    };
    let token = match witness.map(|witness| witness.standing) {
        Some(Standing::Sure) => now.and_then(|now| now.to_token()),
        Some(Standing::Unsure) | None => None,
    };
    let reader = match (unchanged, image.format) {
        (Unchanged::Nothing, _) | (Unchanged::Beneath, Format::Raw) => {
            open_reader(image, files, Reading::Frozen)?
        }
        (Unchanged::Beneath, Format::Qcow2) => {
            Arc::new(open_qcow2_reader(image, files, Reading::Frozen)?.on_unchanged())
        }
        (Unchanged::Everything, _) => {
            Arc::new(UnchangedReader::new(open_reader(image, files, Reading::Frozen)?))
        }
    };
    Ok(OpenSnapshot { reader, token })
}

fn open_qcow2_reader(
    image: &Image,
    files: ImageFiles,
    reading: Reading,
) -> Result<Qcow2Reader, CloudError> {
    Qcow2Reader::open(files, reading).map_err(failed(format!("opening image {:?}", image.file)))
}

/// Freezing.
impl Shared {
    fn create_snapshots(
        &self,
        of: &ServerRef,
        volumes: &[VolumeId],
        name: &str,
    ) -> Result<(), CloudError> {
        let found = self.get(of)?;
        if found.server.kind == ServerKind::BareMetal {
            return Err(CloudError::permanent("disks of a bare metal server cannot be frozen"));
        }
        self.change(&found, |state| {
            let made = state.snapshots.get(name);
            if let Some(made) = made {
                is_of(&made.volumes, volumes, name)?;
            }
            match made.map(|made| &made.kept) {
                Some(Kept::Cloned { .. }) => return Ok(()),
                Some(Kept::InPlace) if self.held(of, name).is_some() => return Ok(()),
                Some(Kept::Cloning { folder }) => remove_clones(&found.folder, *folder)?,
                Some(Kept::InPlace) | None => {}
            }
            let freeze = Freeze::take(&found.folder, &found.server, volumes, self.calls)?;
            let kept = self.keep(&found, state, name, &freeze)?;
            state.put_snapshot(name, &freeze, kept.clone());
            if kept == Kept::InPlace {
                self.freezes().insert((of.server.clone(), name.to_owned()), Arc::new(freeze));
            }
            Ok(())
        })
    }

    /// Clones the disks, or leaves them to their locks. What a crash leaves half cloned is
    /// named in the state before the first clone is made. Clones count only if no disk
    /// changed until the last was made: a writer that ignores locks writes between two.
    fn keep(
        &self,
        found: &Found,
        state: &mut ServerState,
        name: &str,
        freeze: &Freeze,
    ) -> Result<Kept, CloudError> {
        let folder = state.last_folder + 1;
        state.last_folder = folder;
        state.put_snapshot(name, freeze, Kept::Cloning { folder });
        state.save(&found.folder).map_err(failed("keeping a server's state"))?;
        let clones = found
            .folder
            .create_folder(CLONES_FOLDER)
            .and_then(|clones| clones.create_folder(&folder.to_string()))
            .map_err(failed("making a folder for clones"))?;
        if freeze.clone_into(&clones, self.calls.clone)? {
            freeze.confirm(&found.folder)?;
            return Ok(Kept::Cloned { folder });
        }
        remove_clones(&found.folder, folder)?;
        Ok(Kept::InPlace)
    }

    fn open_snapshot(
        &self,
        of: &ServerRef,
        name: &str,
        volume: &VolumeId,
        since: Option<&ChangeToken>,
    ) -> Result<OpenSnapshot, CloudError> {
        let found = self.get(of)?;
        let state = found.state()?;
        let (image, files, witness) = match state.snapshots.get(name) {
            Some(made @ SnapshotState { kept: Kept::Cloned { folder }, .. }) => {
                let image = made.image(name, volume)?.clone();
                let clones = open_clones(&found.folder, *folder)?;
                let files = ImageFiles::open_in(&clones, &image)?;
                (image, files, made.witnesses.get(volume).cloned())
            }
            Some(SnapshotState { kept: Kept::InPlace | Kept::Cloning { .. }, .. }) | None => {
                let freeze = self.held(of, name).ok_or_else(|| moment_is_gone(name))?;
                let frozen = freeze.disk(volume).ok_or_else(|| not_frozen(name, volume))?;
                let files = frozen.files.duplicate().map_err(failed("opening an image"))?;
                (frozen.image.clone(), files, Some(frozen.witness.clone()))
            }
        };
        open_frozen(volume, &image, files, witness.as_ref(), since)
    }

    fn confirm_snapshots(&self, of: &ServerRef, name: &str) -> Result<(), CloudError> {
        let found = self.get(of)?;
        let state = found.state()?;
        let made = state.snapshots.get(name).ok_or_else(|| moment_is_gone(name))?;
        match made.kept {
            Kept::Cloned { folder } => {
                let clones = open_clones(&found.folder, folder)?;
                for id in &made.volumes {
                    ImageFiles::open_in(&clones, made.image(name, id)?)
                        .map_err(|error| CloudError::moment_lost(error.text))?;
                }
                Ok(())
            }
            Kept::InPlace | Kept::Cloning { .. } => {
                self.held(of, name).ok_or_else(|| moment_is_gone(name))?.confirm(&found.folder)
            }
        }
    }

    fn delete_snapshots(&self, of: &ServerRef, name: &str) -> Result<(), CloudError> {
        let Some(found) = self.find(of)? else { return Ok(()) };
        self.change(&found, |state| {
            match state.snapshots.get(name).map(|made| &made.kept) {
                Some(Kept::Cloning { folder } | Kept::Cloned { folder }) => {
                    remove_clones(&found.folder, *folder)?;
                }
                Some(Kept::InPlace) | None => {}
            }
            self.freezes().remove(&(of.server.clone(), name.to_owned()));
            state.snapshots.remove(name);
            Ok(())
        })
    }
}

impl ServerState {
    fn put_snapshot(&mut self, name: &str, freeze: &Freeze, kept: Kept) {
        let volumes = freeze.disks.iter().map(|disk| disk.volume.clone()).collect();
        let images: BTreeMap<_, _> =
            freeze.disks.iter().map(|disk| (disk.volume.clone(), disk.image.clone())).collect();
        let witnesses =
            freeze.disks.iter().map(|disk| (disk.volume.clone(), disk.witness.clone())).collect();
        self.snapshots.insert(name.to_owned(), SnapshotState { volumes, images, witnesses, kept });
    }
}

impl SnapshotState {
    /// What a volume was when it was frozen.
    fn image(&self, name: &str, volume: &VolumeId) -> Result<&Image, CloudError> {
        match self.images.get(volume) {
            Some(image) => Ok(image),
            None if self.volumes.contains(volume) => Err(CloudError::moment_lost(format!(
                "it is not known which file volume {volume:?} was at the moment {name:?}"
            ))),
            None => Err(not_frozen(name, volume)),
        }
    }
}

/// A name stands for one set of volumes.
fn is_of(made: &[VolumeId], asked: &[VolumeId], name: &str) -> Result<(), CloudError> {
    let [made, asked] = [made, asked].map(|ids| ids.iter().collect::<HashSet<_>>());
    if made == asked {
        Ok(())
    } else {
        Err(CloudError::permanent(format!("snapshot {name:?} is of other volumes")))
    }
}

fn open_clones(folder: &Folder, number: u64) -> Result<Folder, CloudError> {
    folder
        .folder(CLONES_FOLDER)
        .and_then(|clones| clones.folder(number.to_string()))
        .map_err(|error| CloudError::moment_lost(format!("the clones are gone: {error}")))
}

fn remove_clones(folder: &Folder, number: u64) -> Result<(), CloudError> {
    match folder.folder(CLONES_FOLDER) {
        Ok(clones) => {
            clones.remove_folder(&number.to_string(), CLONES_MAX).map_err(failed("removing clones"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("opening the folder of clones")(error)),
    }
}

fn moment_is_gone(name: &str) -> CloudError {
    CloudError::moment_lost(format!("the moment {name:?} did not survive: its locks ended"))
}

fn not_frozen(name: &str, volume: &VolumeId) -> CloudError {
    CloudError::permanent(format!("snapshot {name:?} has no volume {volume:?}"))
}

/// Writing.
impl Shared {
    fn open_for_writing(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
        mark: &str,
    ) -> Result<Arc<dyn DiskWriter>, CloudError> {
        let found = self.get(of)?;
        let disk = found.server.disk(volume)?.clone();
        if disk.sharing == Sharing::Shared {
            return Err(CloudError::permanent(format!(
                "volume {volume:?} is shared: nobody else can be kept from writing it"
            )));
        }
        self.change(&found, |state| {
            if state.power != Power::Shutoff {
                return Err(CloudError::permanent(format!("server {:?} is running", of.server)));
            }
            let alone = open_alone(&found.folder, &disk.image)?;
            let size_bytes = disk_size(&disk.image, &alone.files)?;
            let folder = found.folder.reopen().map_err(failed("opening a server's folder"))?;
            let writer: Arc<dyn DiskWriter> = match disk.image.format {
                Format::Raw => Arc::new(RawWriter::new(folder, alone, size_bytes)),
                Format::Qcow2 => Arc::new(
                    Qcow2Writer::create(folder, &disk.image.file, alone, self.calls.give)
                        .map_err(failed(format!("writing beside image {:?}", disk.image.file)))?,
                ),
            };
            // Nothing of the disk was touched so far.
            state.marks.insert(volume.clone(), mark.to_owned());
            Ok(writer)
        })
    }
}

/// Opens a disk with nobody else using it. The name is looked up again under the lock:
/// another writer may have put a new file in its place while we came.
fn open_alone(folder: &Folder, image: &Image) -> Result<AloneWith, CloudError> {
    let name = &image.file;
    let open =
        |access| folder.file(name, access).map_err(failed(format!("opening image {name:?}")));
    let identity = |file: &File| Identity::of(file).map_err(failed("looking at an image"));
    let mut files = ImageFiles::open_in(folder, image)?;
    files.top = open(Access::Write)?;
    Hold::Writing.take(&files.top, name)?;
    let alone = AloneWith { files };
    if identity(&open(Access::Read)?)?.is_same_file(&identity(&alone.files.top)?) {
        Ok(alone)
    } else {
        Err(CloudError::retryable(format!("image {name:?} was just replaced")))
    }
}

fn has_ended() -> CloudError {
    CloudError::permanent("the volume was finished; nothing may be written afterwards")
}

fn beyond_end(offset: u64, length: u64, size_bytes: u64) -> CloudError {
    CloudError::permanent(format!(
        "{length} bytes at {offset} lie beyond the disk's end at {size_bytes}"
    ))
}

#[async_trait]
impl Cloud for LocalCloud {
    async fn find_server(&self, of: &ServerRef) -> Result<Option<Server>, CloudError> {
        let of = of.clone();
        self.look_up(move |cloud| cloud.find(&of)?.map(|found| found.describe()).transpose()).await
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

impl Shared {
    /// Something of every server's state. A state that cannot be read hides no other.
    fn list(
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
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
