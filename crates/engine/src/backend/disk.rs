//! What a [`super::LocalBackend`] asks of a file system, so that tests can put one
//! under it that forgets what was never synced.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

/// A file system. Nothing but [`Disk::sync_dir`] makes directory entries durable, and
/// nothing but [`DiskFile::sync`] a file's bytes.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a directory for the owner alone; its parent must be there and it must not.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes the entries of a directory durable, those that were removed included.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// The entries of a directory, in no particular order. Links are not followed.
    fn list_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>>;

    /// What lies at a path. Links are followed.
    fn stat(&self, path: &Path) -> io::Result<EntryKind>;

    /// Makes a file for the owner alone, open for writing; it must not be there.
    fn create_file(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for reading.
    fn open_file(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file as its writer would, to see whether one has locked it.
    fn open_to_lock(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Moves a file onto another name at once, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
}

/// An open file of a [`Disk`]. Closing it, or the end of the process, ends its lock.
pub trait DiskFile: Send + fmt::Debug {
    /// Locks the file against other open files; says whether nobody else had.
    fn try_lock(&self) -> bool;

    /// Whether the file still has a name.
    fn is_linked(&self) -> io::Result<bool>;

    /// Appends to the file.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file's bytes durable.
    fn sync(&self) -> io::Result<()>;

    /// The file's bytes, at most so many.
    fn read_up_to(&mut self, bytes_max: u64) -> io::Result<Vec<u8>>;

    /// Fills `buf` from `offset` on, or fails with [`ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
}

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File {
        /// Its length.
        size_bytes: u64,
    },
    /// A directory.
    Dir,
    /// Something else.
    Other,
}

impl From<Metadata> for EntryKind {
    fn from(metadata: Metadata) -> Self {
        if metadata.is_file() {
            Self::File { size_bytes: metadata.len() }
        } else if metadata.is_dir() {
            Self::Dir
        } else {
            Self::Other
        }
    }
}

/// The file system of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OsDisk;

impl Disk for OsDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) => {
                    entries.push(DirEntry { name: entry.file_name(), kind: metadata.into() });
                }
                // Removed since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    fn stat(&self, path: &Path) -> io::Result<EntryKind> {
        fs::metadata(path).map(EntryKind::from)
    }

    fn create_file(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        Ok(Box::new(options.write(true).create_new(true).mode(0o600).open(path)?))
    }

    fn open_file(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn open_to_lock(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

impl DiskFile for File {
    fn try_lock(&self) -> bool {
        Self::try_lock(self).is_ok()
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(self.metadata()?.nlink() > 0)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn read_up_to(&mut self, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        Read::by_ref(self).take(bytes_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }
}
