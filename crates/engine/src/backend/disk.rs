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

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::pages::PAGE_BYTES;

/// From this length on, bytes go to the disk past the page cache: packs, which nobody
/// reads soon, and which would drive out of it what others need. A copy less, too.
const DIRECT_BYTES_MIN: usize = 1 << 20;

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
        let written = write_direct(self, bytes)?;
        Write::write_all(self, &bytes[written..])
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

/// Writes as many whole blocks past the page cache as memory, length and file system
/// allow; says how many bytes that were. The rest is to be written as usual.
fn write_direct(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    let is_at_page = bytes.as_ptr().align_offset(PAGE_BYTES) == 0;
    if bytes.len() < DIRECT_BYTES_MIN || !is_at_page {
        return Ok(0);
    }
    let usual = fcntl_getfl(&*file)?;
    // Some file systems know no such way, and say so here or at the first write.
    if fcntl_setfl(&*file, usual | OFlags::DIRECT).is_err() {
        return Ok(0);
    }
    let outcome = write_blocks(file, &bytes[..bytes.len() / PAGE_BYTES * PAGE_BYTES]);
    fcntl_setfl(&*file, usual)?;
    outcome
}

fn write_blocks(file: &mut impl Write, blocks: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < blocks.len() {
        match file.write(&blocks[written..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A device with larger blocks, a write that ended within one, or a file
            // system that finds out only now that it knows no such way.
            Err(error)
                if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) =>
            {
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::PageBuffer;

    /// Answers as it was told to, and takes what it says it took.
    struct Scripted(Vec<io::Result<usize>>, Vec<u8>);

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let answer = self.0.remove(0);
            self.1.extend(answer.iter().flat_map(|taken| &bytes[..*taken]));
            answer
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_refuses_the_direct_way_keeps_what_it_took_and_leaves_the_rest() {
        let blocks: Vec<u8> = (0..=255).cycle().take(4 * PAGE_BYTES).collect();
        let refused = |kind: ErrorKind| Err(io::Error::from(kind));
        let interrupted = || refused(ErrorKind::Interrupted);
        for kind in [ErrorKind::InvalidInput, ErrorKind::Unsupported] {
            for taken in [0, PAGE_BYTES, PAGE_BYTES + 7] {
                let mut answers = vec![interrupted(), Ok(taken), interrupted(), refused(kind)];
                answers.retain(|answer| !matches!(answer, Ok(0)));
                let mut disk = Scripted(answers, Vec::new());
                assert_eq!(write_blocks(&mut disk, &blocks).unwrap(), taken);
                assert_eq!(disk.1, blocks[..taken]);
            }
        }
        let mut full = Scripted(vec![Ok(PAGE_BYTES), refused(ErrorKind::StorageFull)], Vec::new());
        let error = write_blocks(&mut full, &blocks).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        let mut whole = Scripted(vec![Ok(PAGE_BYTES), Ok(3 * PAGE_BYTES)], Vec::new());
        assert_eq!(write_blocks(&mut whole, &blocks).unwrap(), blocks.len());
    }

    #[test]
    fn bytes_are_written_whole_whatever_their_length_and_place() {
        let dir = tempfile::tempdir().unwrap();
        let noise: Vec<u8> = (0..=250).cycle().take(3 * DIRECT_BYTES_MIN).collect();
        let lengths = [
            0,
            1,
            DIRECT_BYTES_MIN - 1,
            DIRECT_BYTES_MIN,
            DIRECT_BYTES_MIN + 1,
            2 * DIRECT_BYTES_MIN + PAGE_BYTES - 1,
        ];
        for (number, len) in lengths.into_iter().enumerate() {
            let mut pages = PageBuffer::default();
            pages.make_room(noise.len());
            pages.append(|bytes| bytes.extend_from_slice(&noise));
            let at_page = &pages.as_slice()[..len];
            let beside = &pages.as_slice()[7..7 + len];
            let path = dir.path().join(number.to_string());
            let mut file = OsDisk.create_file(&path).unwrap();
            // As after a write that ended within a block, the second does not begin at one.
            file.write_all(at_page).unwrap();
            file.write_all(at_page).unwrap();
            file.write_all(beside).unwrap();
            file.sync().unwrap();
            assert!(fs::read(&path).unwrap() == [at_page, at_page, beside].concat(), "{len}");
        }
    }
}
