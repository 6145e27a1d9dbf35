//! Folders and the files beneath them, reached only through open handles.
//!
//! Invariant: nothing outside a folder is ever opened through it, whatever is swapped in
//! while we work. The kernel resolves every name beneath the folder without following
//! links, and what was opened is inspected on the handle, not by its name again.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, ResolveFlags};

use super::hold::Identity;

const OURS_ONLY: Mode = Mode::RUSR.union(Mode::WUSR);
const OURS_ONLY_FOLDER: Mode = Mode::RWXU;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    handle: File,
}

impl Folder {
    /// Opens a folder named by the operator; links in that path are the operator's.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { handle: handle.into() })
    }

    /// How the folder looks: adding, removing and renaming in it changes that.
    pub(super) fn identity(&self) -> io::Result<Identity> {
        Identity::of(&self.handle)
    }

    /// Names in the folder, without hidden ones.
    pub(super) fn names(&self, names_max: usize) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.handle)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            if names.len() == names_max {
                let text = format!("more than {names_max} entries in the folder");
                return Err(io::Error::new(ErrorKind::InvalidData, text));
            }
            names.push(name.to_owned());
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn folder(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        Ok(Self { handle: self.open_beneath(name.as_ref(), flags, Mode::empty())? })
    }

    /// Opens the folder of ours with this name, made if it is not there.
    pub(super) fn create_folder(&self, name: &str) -> io::Result<Self> {
        match rustix::fs::mkdirat(&self.handle, name, OURS_ONLY_FOLDER) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => self.folder(name),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a regular file. Never blocks on a FIFO; anything but a regular file is refused
    /// before a byte is read.
    pub(super) fn file(&self, name: &str, access: Access) -> io::Result<File> {
        let mode = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
        };
        let flags = mode | OFlags::NONBLOCK | OFlags::NOCTTY;
        let is_none = || io::Error::new(ErrorKind::InvalidData, "not a regular file");
        let file = match self.open_beneath(OsStr::new(name), flags, Mode::empty()) {
            // A socket, or a device without a driver.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => return Err(is_none()),
            opened => opened?,
        };
        if file.metadata()?.is_file() { Ok(file) } else { Err(is_none()) }
    }

    /// Makes a new file, in place of what has that name.
    pub(super) fn create_file(&self, name: &str) -> io::Result<File> {
        self.remove(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        self.open_beneath(OsStr::new(name), flags, OURS_ONLY)
    }

    fn open_beneath(&self, name: &OsStr, flags: OFlags, mode: Mode) -> io::Result<File> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.handle, name, flags, mode, resolve)?.into())
    }

    /// The content of a file of limited size; `None` if there is none.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.file(name, Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            let text = format!("{name} has more than {bytes_max} bytes");
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        Ok(Some(bytes))
    }

    /// Replaces a file's content as one step that a crash cannot split.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let aside = format!(".{name}.new");
        let mut file = self.create_file(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        self.rename(&aside, name)
    }

    /// Renames a file, durably.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        rustix::fs::renameat(&self.handle, from, &self.handle, to)?;
        self.sync()
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        gone(rustix::fs::unlinkat(&self.handle, name, AtFlags::empty()))
    }

    /// Removes a folder of ours with the files in it, if it is there.
    pub(super) fn remove_folder(&self, name: &str, files_max: usize) -> io::Result<()> {
        let folder = match self.folder(name) {
            Ok(folder) => folder,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for file in folder.names(files_max)? {
            gone(rustix::fs::unlinkat(&folder.handle, &*file, AtFlags::empty()))?;
        }
        gone(rustix::fs::unlinkat(&self.handle, name, AtFlags::REMOVEDIR))?;
        self.sync()
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    /// A handle of its own on the same folder, which has no part in [`Folder::lock`].
    pub(super) fn reopen(&self) -> io::Result<Self> {
        self.folder(".")
    }

    /// Keeps other processes from changing our files in this folder. Never waits: a paused
    /// process may hold it for good.
    pub(super) fn lock(&self) -> io::Result<FolderLock<'_>> {
        rustix::fs::flock(&self.handle, FlockOperation::NonBlockingLockExclusive)?;
        Ok(FolderLock { folder: self })
    }
}

/// Ends [`Folder::lock`] when dropped.
#[derive(Debug)]
pub(super) struct FolderLock<'a> {
    folder: &'a Folder,
}

impl Drop for FolderLock<'_> {
    fn drop(&mut self) {
        // Can only fail on a handle that is no file; then nothing was locked.
        let _ = rustix::fs::flock(&self.folder.handle, FlockOperation::Unlock);
    }
}

fn gone(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
