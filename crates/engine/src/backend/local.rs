//! A directory of the local machine.
//!
//! Invariants: an object appears under its name only when its bytes are on the disk
//! (temporary file, fsync, rename, fsync of the directory). Directories are 0700 and
//! files 0600. The root is made by [`Backend::prepare`] alone and never re-made: an
//! unmounted or deleted repository is unreachable, not empty.
//!
//! A process may be killed between a rename and the sync of the directory. What it
//! left can be seen and yet be lost with the power, so what others build on is made
//! durable where it is seen: listed objects, what lies under a fixed name, and deletions
//! found done. Packs need none of it: nobody looks at one before an index object, written
//! later, lists it. Locks need none either: they die with their processes.

use std::{
    collections::HashSet,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use super::{
    Backend, BackendError, Listed, ObjectKind, ObjectName,
    disk::{Disk, DiskFile, EntryKind, OsDisk},
};

/// Objects as files below one directory, laid out as restic's local backend does.
#[derive(Clone, Debug)]
pub struct LocalBackend {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    /// Directories whose own entries this process has made durable.
    known_dirs: Arc<Mutex<HashSet<PathBuf>>>,
}

/// Creating a temporary file loses against a cleaner at most so often in a row.
const TEMPORARY_TRIES: usize = 16;

impl LocalBackend {
    /// The repository in `root`. Nothing is read or made yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::on_disk(Arc::new(OsDisk), root)
    }

    /// The repository in `root` of another file system than the machine's, for tests.
    pub fn on_disk(disk: Arc<dyn Disk>, root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), disk, known_dirs: Arc::default() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.to_string())
    }

    fn temporary_dir(&self) -> PathBuf {
        self.root.join("kedge/tmp")
    }

    /// Fails when the repository is not where it was. What a new repository is made
    /// of may be written before there is a config.
    fn require_place(&self, kind: ObjectKind) -> Result<(), BackendError> {
        let landmark = match kind {
            ObjectKind::Config | ObjectKind::Access | ObjectKind::Key => self.root.clone(),
            ObjectKind::Pack
            | ObjectKind::Index
            | ObjectKind::Snapshot
            | ObjectKind::Lock
            | ObjectKind::Mark => self.path(&ObjectName::Config),
        };
        match self.disk.stat(&landmark) {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) || error.kind() == ErrorKind::NotADirectory => {
                Err(BackendError::Unreachable {
                    text: format!("the repository directory {} is gone", self.root.display()),
                })
            }
            Err(error) => Err(failure(&error)),
        }
    }

    /// What an absent file means: no such object, or no repository any more.
    fn reading(&self, name: &ObjectName, error: &io::Error) -> BackendError {
        if !is_absent(error) {
            return failure(error);
        }
        match self.require_place(name.kind()) {
            Ok(()) => BackendError::NotFound,
            Err(gone) => gone,
        }
    }

    /// Makes a directory below the root, and its ancestors up to the root.
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let is_dir = || matches!(self.disk.stat(dir), Ok(EntryKind::Dir));
        if dir == self.root || (self.known_dirs().contains(dir) && is_dir()) {
            return Ok(());
        }
        let Some(parent) = dir.parent() else {
            return Err(ErrorKind::NotFound.into());
        };
        self.create_dir(parent)?;
        match self.disk.create_dir(dir) {
            Ok(()) => {}
            // Whoever made it may have died before its entry was durable.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        self.disk.sync_dir(parent)?;
        self.known_dirs().insert(dir.to_owned());
        Ok(())
    }

    fn known_dirs(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.known_dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new temporary file under an exclusive lock, which tells
    /// [`Backend::remove_leftovers`] that its writer lives.
    fn create_temporary(&self) -> io::Result<(Box<dyn DiskFile>, PathBuf)> {
        let dir = self.temporary_dir();
        self.create_dir(&dir)?;
        for _ in 0..TEMPORARY_TRIES {
            let number = getrandom::u64().map_err(io::Error::other)?;
            let path = dir.join(format!("{number:016x}"));
            let file = self.disk.create_file(&path)?;
            // A cleaner may have locked or removed the file before we locked it.
            if file.try_lock() && file.is_linked()? {
                return Ok((file, path));
            }
        }
        Err(io::Error::other("temporary files keep disappearing"))
    }

    fn write(&self, name: &ObjectName, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        let dir = path.parent().unwrap_or(&self.root);
        self.create_dir(dir)?;
        let (mut file, temporary) = self.create_temporary()?;
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync())
            .and_then(|()| self.disk.rename(&temporary, &path));
        match written {
            Ok(()) => self.disk.sync_dir(dir),
            Err(error) => {
                // The first error is the one to report; a leftover is removed later.
                let _ = self.disk.remove_file(&temporary);
                Err(error)
            }
        }
    }

    /// Makes what a directory shows durable. One that is not there shows nothing, and
    /// nothing is in flight on a disk that is mounted for reading.
    fn sync_if_there(&self, dir: &Path) -> Result<(), BackendError> {
        match self.disk.sync_dir(dir) {
            Ok(()) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => Ok(()),
            Err(error) => Err(failure(&error)),
        }
    }

    fn list_dir(
        &self,
        kind: ObjectKind,
        dir: &Path,
        found: &mut Vec<Listed>,
    ) -> Result<(), BackendError> {
        let entries = match self.disk.list_dir(dir) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return self.require_place(kind),
            Err(error) => return Err(failure(&error)),
        };
        for entry in entries {
            let name = entry.name.to_str().and_then(|text| ObjectName::parse(kind, text));
            if let (Some(name), EntryKind::File { size_bytes }) = (name, entry.kind) {
                found.push(Listed { name, size_bytes });
            }
        }
        Ok(())
    }
}

impl Backend for LocalBackend {
    /// Makes the root, but not its parent: a parent that vanished is an unmounted disk.
    fn prepare(&self) -> Result<(), BackendError> {
        match self.disk.create_dir(&self.root) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) if is_absent(&error) => {
                return Err(BackendError::Unreachable {
                    text: format!("the directory above {} is gone", self.root.display()),
                });
            }
            Err(error) => return Err(failure(&error)),
        }
        let parent = self.root.parent().filter(|p| !p.as_os_str().is_empty());
        self.disk.sync_dir(parent.unwrap_or(Path::new("."))).map_err(|error| failure(&error))
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        self.require_place(name.kind())?;
        self.write(name, bytes).map_err(|error| {
            // The place may have gone since; then that is the answer.
            self.require_place(name.kind()).err().unwrap_or_else(|| failure(&error))
        })
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        let path = self.path(name);
        let file = self.disk.open_file(&path);
        let mut file = file.map_err(|error| self.reading(name, &error))?;
        let bytes = file.read_up_to(bytes_max.saturating_add(1));
        let bytes = bytes.map_err(|error| failure(&error))?;
        if let ObjectName::Config | ObjectName::Access = name {
            self.sync_if_there(path.parent().unwrap_or(&self.root))?;
        }
        if bytes.len() as u64 > bytes_max { Err(BackendError::TooLarge) } else { Ok(bytes) }
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        let file = self.disk.open_file(&self.path(name));
        let file = file.map_err(|error| self.reading(name, &error))?;
        file.read_exact_at(buf, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => BackendError::Truncated,
            _ => failure(&error),
        })
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        match self.disk.stat(&self.path(name)) {
            Ok(EntryKind::File { size_bytes }) => Ok(Some(size_bytes)),
            Ok(EntryKind::Dir | EntryKind::Other) => Err(failure(&ErrorKind::IsADirectory.into())),
            Err(error) => match self.reading(name, &error) {
                BackendError::NotFound => Ok(None),
                other => Err(other),
            },
        }
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        let mut found = Vec::new();
        let dir = match kind {
            ObjectKind::Config => self.root.clone(),
            ObjectKind::Access => self.root.join("kedge"),
            ObjectKind::Key => self.root.join("keys"),
            ObjectKind::Index => self.root.join("index"),
            ObjectKind::Snapshot => self.root.join("snapshots"),
            ObjectKind::Mark => self.root.join("kedge/marks"),
            ObjectKind::Lock => {
                self.list_dir(kind, &self.root.join("locks"), &mut found)?;
                return Ok(found);
            }
            ObjectKind::Pack => {
                self.require_place(kind)?;
                for first in 0..=u8::MAX {
                    let dir = self.root.join("data").join(format!("{first:02x}"));
                    self.list_dir(kind, &dir, &mut found)?;
                }
                return Ok(found);
            }
        };
        self.list_dir(kind, &dir, &mut found)?;
        self.sync_if_there(&dir)?;
        Ok(found)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        let path = self.path(name);
        let dir = path.parent().unwrap_or(&self.root);
        match self.disk.remove_file(&path) {
            Ok(()) => self.disk.sync_dir(dir).map_err(|error| failure(&error)),
            Err(error) => match self.reading(name, &error) {
                BackendError::NotFound => self.sync_if_there(dir),
                other => Err(other),
            },
        }
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        let entries = match self.disk.list_dir(&self.temporary_dir()) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(failure(&error)),
        };
        for entry in entries {
            let path = self.temporary_dir().join(entry.name);
            let removed = match self.disk.open_to_lock(&path) {
                Ok(file) if file.try_lock() => self.disk.remove_file(&path),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            match removed {
                Err(error) if !is_absent(&error) => return Err(failure(&error)),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of I/O errors are open-ended; an unknown one is a permanent failure"
)]
fn failure(error: &io::Error) -> BackendError {
    // The standard library has no kind for it.
    if error.raw_os_error() == Some(Errno::IO.raw_os_error()) {
        return BackendError::Broken { text: error.to_string() };
    }
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BackendError::Full,
        ErrorKind::StaleNetworkFileHandle
        | ErrorKind::TimedOut
        | ErrorKind::NotConnected
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown => BackendError::Unreachable { text: error.to_string() },
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::ResourceBusy => {
            BackendError::Io { retryable: true, text: error.to_string() }
        }
        _ => BackendError::Io { retryable: false, text: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::id::PackId;

    const PACK: ObjectName = ObjectName::Pack(PackId([7; 32]));

    fn backend_with_config() -> (tempfile::TempDir, LocalBackend) {
        let dir = tempfile::tempdir().unwrap();
        let backend = LocalBackend::new(dir.path().join("repo"));
        backend.prepare().unwrap();
        backend.put(&ObjectName::Config, b"config").unwrap();
        (dir, backend)
    }

    #[test]
    fn everything_stored_is_for_the_owner_alone() {
        let (_dir, backend) = backend_with_config();
        backend.put(&PACK, b"pack").unwrap();
        let mut pending = vec![backend.root().to_owned()];
        while let Some(path) = pending.pop() {
            let metadata = fs::metadata(&path).unwrap();
            let mode = if metadata.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(metadata.permissions().mode() & 0o777, mode, "{}", path.display());
            if metadata.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
        }
    }

    #[test]
    fn a_repository_that_is_gone_is_unreachable_and_stays_gone() {
        let (_dir, backend) = backend_with_config();
        fs::remove_dir_all(backend.root()).unwrap();
        let gone = |result: Result<(), BackendError>| {
            assert!(matches!(result, Err(BackendError::Unreachable { .. })), "{result:?}");
        };
        gone(backend.put(&PACK, b"pack"));
        gone(backend.put(&ObjectName::Config, b"config"));
        gone(backend.get(&PACK, 10).map(drop));
        gone(backend.find_size(&PACK).map(drop));
        gone(backend.list(ObjectKind::Pack).map(drop));
        gone(backend.list(ObjectKind::Snapshot).map(drop));
        gone(backend.delete(&PACK));
        assert!(!backend.root().exists());
        // An empty mount point is as good as gone.
        fs::create_dir(backend.root()).unwrap();
        gone(backend.put(&PACK, b"pack"));
        gone(backend.get(&PACK, 10).map(drop));
    }

    #[test]
    fn the_parent_of_a_repository_is_never_made() {
        let dir = tempfile::tempdir().unwrap();
        let backend = LocalBackend::new(dir.path().join("unmounted/repo"));
        assert!(matches!(backend.prepare(), Err(BackendError::Unreachable { .. })));
    }

    #[test]
    fn only_the_leftovers_of_dead_writers_are_removed() {
        let (_dir, backend) = backend_with_config();
        let (living, living_path) = backend.create_temporary().unwrap();
        let (dead, dead_path) = backend.create_temporary().unwrap();
        drop(dead);
        backend.remove_leftovers().unwrap();
        assert!(living_path.exists());
        assert!(!dead_path.exists());
        drop(living);
        backend.remove_leftovers().unwrap();
        assert!(!living_path.exists());
    }

    #[test]
    fn an_object_larger_than_allowed_is_not_read() {
        let (_dir, backend) = backend_with_config();
        backend.put(&PACK, b"12345").unwrap();
        assert_eq!(backend.get(&PACK, 5).unwrap(), b"12345");
        assert_eq!(backend.get(&PACK, 4), Err(BackendError::TooLarge));
        assert_eq!(backend.read_at(&PACK, 4, &mut [0; 2]), Err(BackendError::Truncated));
    }

    #[test]
    fn foreign_files_are_no_objects() {
        let (_dir, backend) = backend_with_config();
        backend.put(&PACK, b"pack").unwrap();
        fs::write(backend.root().join("data/07/stray"), b"x").unwrap();
        let listed = backend.list(ObjectKind::Pack).unwrap();
        assert_eq!(listed, [Listed { name: PACK, size_bytes: 4 }]);
        backend.delete(&PACK).unwrap();
        backend.delete(&PACK).unwrap();
        assert_eq!(backend.list(ObjectKind::Pack).unwrap(), []);
    }
}
