//! Disk images as a guest sees them: bytes at offsets, whatever the file's format.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder as _, FormatDriverBuilder as _,
    StorageOpenOptions,
};

use super::noise::Noise;
use crate::private;

/// How much is copied or compared at a time.
const STEP_BYTES: usize = 1 << 20;

/// What is left out of a sparse copy where it is all zero.
const HOLE_BYTES: usize = 64 << 10;

static ZEROES: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// How a file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Qcow2,
}

impl Format {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// An open disk image.
pub(crate) enum Disk {
    Raw(File),
    Qcow2(FormatAccess<ImagoFile>),
}

impl Disk {
    /// Makes an image full of zeroes that takes no room.
    pub(crate) fn create(path: &Path, format: Format, size_bytes: u64) -> io::Result<Self> {
        let file = private::create_file(path)?;
        match format {
            Format::Raw => {
                file.set_len(size_bytes)?;
                Ok(Self::Raw(file))
            }
            Format::Qcow2 => {
                let image = ImagoFile::from_open_file(file, writable())?;
                Qcow2::<ImagoFile>::create_builder(image).size(size_bytes).create()?;
                Self::open(path, format)
            }
        }
    }

    /// Opens an image for reading and writing.
    pub(crate) fn open(path: &Path, format: Format) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        match format {
            Format::Raw => Ok(Self::Raw(file)),
            Format::Qcow2 => {
                let image = ImagoFile::from_open_file(file, writable())?;
                let qcow2 = Qcow2::<ImagoFile>::builder(image)
                    .backing(None)
                    .write(true)
                    .open(DenyImplicitOpenGate::default())?;
                Ok(Self::Qcow2(FormatAccess::new(qcow2)))
            }
        }
    }

    pub(crate) fn size_bytes(&self) -> io::Result<u64> {
        match self {
            Self::Raw(file) => Ok(file.metadata()?.len()),
            Self::Qcow2(image) => Ok(image.size()),
        }
    }

    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.read_exact_at(bytes, offset),
            Self::Qcow2(image) => image.read(bytes, offset),
        }
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.write_all_at(bytes, offset),
            Self::Qcow2(image) => image.write(bytes, offset),
        }
    }

    /// Makes what was written durable. A qcow2 image is not one before this.
    pub(crate) fn finish(self) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.sync_all(),
            Self::Qcow2(image) => {
                image.flush()?;
                image.sync()
            }
        }
    }

    /// Overwrites every byte.
    pub(crate) fn overwrite(&self, noise: &mut Noise) -> io::Result<()> {
        let mut bytes = vec![0; STEP_BYTES];
        each_step(self.size_bytes()?, |offset, length| {
            noise.fill(&mut bytes[..length]);
            self.write_at(offset, &bytes[..length])
        })
    }

    /// Writes `bytes` from `offset`, leaving out what is zero.
    pub(crate) fn write_sparsely(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = offset;
        for part in bytes.chunks(HOLE_BYTES) {
            if *part != ZEROES[..part.len()] {
                self.write_at(at, part)?;
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    /// A raw copy in a new file.
    pub(crate) fn copy_to(&self, path: &Path) -> io::Result<()> {
        let size_bytes = self.size_bytes()?;
        let copy = Self::create(path, Format::Raw, size_bytes)?;
        let mut bytes = vec![0; STEP_BYTES];
        each_step(size_bytes, |offset, length| {
            self.read_at(offset, &mut bytes[..length])?;
            copy.write_sparsely(offset, &bytes[..length])
        })?;
        copy.finish()
    }

    /// Where this disk first differs from another, byte for byte; `None` where it nowhere
    /// does.
    pub(crate) fn first_difference(&self, other: &Self) -> io::Result<Option<u64>> {
        let size_bytes = self.size_bytes()?;
        if size_bytes != other.size_bytes()? {
            return Ok(Some(size_bytes.min(other.size_bytes()?)));
        }
        let (mut mine, mut theirs) = (vec![0; STEP_BYTES], vec![0; STEP_BYTES]);
        let mut found = None;
        each_step(size_bytes, |offset, length| {
            if found.is_some() {
                return Ok(());
            }
            self.read_at(offset, &mut mine[..length])?;
            other.read_at(offset, &mut theirs[..length])?;
            if mine[..length] != theirs[..length] {
                let at = mine.iter().zip(&theirs).position(|(a, b)| a != b).unwrap_or(0);
                found = Some(offset + at as u64);
            }
            Ok(())
        })?;
        Ok(found)
    }
}

fn writable() -> StorageOpenOptions {
    StorageOpenOptions::new().write(true)
}

fn each_step(
    size_bytes: u64,
    mut step: impl FnMut(u64, usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut offset = 0;
    while offset < size_bytes {
        let length = usize::try_from(size_bytes - offset).map_or(STEP_BYTES, |n| n.min(STEP_BYTES));
        step(offset, length)?;
        offset += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_in_either_format_and_one_changed_byte_is_found() {
        for format in [Format::Raw, Format::Qcow2] {
            let dir = tempfile::tempdir().unwrap();
            let (path, copy) = (dir.path().join("disk"), dir.path().join("copy"));
            let size_bytes = 3 << 20;
            let disk = Disk::create(&path, format, size_bytes).unwrap();
            disk.write_at(1_500_000, b"here").unwrap();
            disk.finish().unwrap();

            let disk = Disk::open(&path, format).unwrap();
            assert_eq!(disk.size_bytes().unwrap(), size_bytes);
            disk.copy_to(&copy).unwrap();
            let copy = Disk::open(&copy, Format::Raw).unwrap();
            assert_eq!(disk.first_difference(&copy).unwrap(), None);
            disk.write_at(2_500_000, b"x").unwrap();
            assert_eq!(disk.first_difference(&copy).unwrap(), Some(2_500_000));
        }
    }

    #[test]
    fn disks_of_different_sizes_differ() {
        let dir = tempfile::tempdir().unwrap();
        let disk = |name, size| Disk::create(&dir.path().join(name), Format::Raw, size).unwrap();
        assert_eq!(disk("a", 10).first_difference(&disk("b", 8)).unwrap(), Some(8));
    }
}
