//! Disks as plain bytes in a file.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};

use kedge_core::ports::{CloudError, DiskReader, DiskWriter, Extent, ExtentKind};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::direct::Direct;
use super::error::failed;
use super::folder::Folder;
use super::images::{AloneWith, Reading, has_ended, is_within};

/// Zeroes written at once where the file system cannot make holes.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// Reads a file as it is. A file that got shorter is an error, never zeroes.
#[derive(Debug)]
pub(super) struct RawReader {
    file: File,
    /// To read back what is on the disk; a backup gladly finds it in the page cache.
    direct: Option<Direct>,
    size_bytes: u64,
    reading: Reading,
}

impl RawReader {
    pub(super) fn new(file: File, size_bytes: u64, reading: Reading) -> Self {
        let direct = match reading {
            Reading::Back => Direct::reading(&file),
            Reading::Frozen => None,
        };
        Self { file, direct, size_bytes, reading }
    }

    fn is_whole(&self) -> Result<(), CloudError> {
        let length = self.file.metadata().map_err(failed("looking at a raw image"))?.len();
        if length < self.size_bytes { Err(self.truncated()) } else { Ok(()) }
    }

    fn truncated(&self) -> CloudError {
        self.reading.changed("a raw image was truncated while it was read")
    }

    fn extent(&self, offset: u64) -> io::Result<Extent> {
        let data = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data.min(self.size_bytes),
            Err(Errno::NXIO) => self.size_bytes,
            Err(error) => return Err(error.into()),
        };
        if data > offset {
            return Ok(Extent { offset, length_bytes: data - offset, kind: ExtentKind::Zero });
        }
        let end = match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
            // A hole dug since the first look; the bytes tell.
            Ok(end) if end <= offset => offset + 1,
            Ok(end) => end.min(self.size_bytes),
            Err(Errno::NXIO) => self.size_bytes,
            Err(error) => return Err(error.into()),
        };
        Ok(Extent { offset, length_bytes: end - offset, kind: ExtentKind::Data })
    }
}

impl DiskReader for RawReader {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, CloudError> {
        is_within(offset, 1, self.size_bytes)?;
        let extent = self.extent(offset).map_err(failed("looking for data in a raw image"))?;
        // Asked afterwards: beyond a new end everything looked like a hole.
        self.is_whole()?;
        Ok(extent)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError> {
        is_within(offset, buf.len() as u64, self.size_bytes)?;
        let read = match &self.direct {
            Some(direct) => {
                direct.read_at(offset, buf).map_err(failed("reading a raw image back"))?
            }
            None => 0,
        };
        self.file.read_exact_at(&mut buf[read..], offset + read as u64).map_err(|error| match error
            .kind()
        {
            ErrorKind::UnexpectedEof => self.truncated(),
            _ => failed("reading a raw image")(error),
        })
    }
}

/// Writes into the file itself, under its locks.
#[derive(Debug)]
pub(super) struct RawWriter {
    folder: Folder,
    size_bytes: u64,
    /// Gone once finished.
    alone: RwLock<Option<Alone>>,
}

#[derive(Debug)]
struct Alone {
    with: AloneWith,
    direct: Option<Direct>,
}

impl RawWriter {
    /// Takes a file that is open for writing.
    pub(super) fn new(folder: Folder, alone: AloneWith, size_bytes: u64) -> Self {
        let direct = Direct::writing(&alone.files.top);
        Self { folder, size_bytes, alone: RwLock::new(Some(Alone { with: alone, direct })) }
    }

    fn with_file(
        &self,
        doing: &str,
        act: impl FnOnce(&File, Option<&Direct>) -> io::Result<()>,
    ) -> Result<(), CloudError> {
        let slot = self.alone.read().unwrap_or_else(PoisonError::into_inner);
        let alone = slot.as_ref().ok_or_else(has_ended)?;
        act(&alone.with.files.top, alone.direct.as_ref()).map_err(failed(doing))
    }
}

impl DiskWriter for RawWriter {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), CloudError> {
        is_within(offset, bytes.len() as u64, self.size_bytes)?;
        self.with_file("writing a raw image", |file, direct| {
            let written = match direct {
                Some(direct) => direct.write_at(offset, bytes)?,
                None => 0,
            };
            file.write_all_at(&bytes[written..], offset + written as u64)
        })
    }

    fn write_zeroes(&self, offset: u64, length_bytes: u64) -> Result<(), CloudError> {
        is_within(offset, length_bytes, self.size_bytes)?;
        self.with_file("zeroing a raw image", |file, _| zero(file, offset, length_bytes))
    }

    fn finish(&self) -> Result<(), CloudError> {
        let mut slot = self.alone.write().unwrap_or_else(PoisonError::into_inner);
        let alone = slot.as_ref().ok_or_else(has_ended)?;
        alone
            .with
            .files
            .top
            .sync_all()
            .and_then(|()| self.folder.sync())
            .map_err(failed("making a raw image durable"))?;
        *slot = None;
        Ok(())
    }
}

fn zero(file: &File, offset: u64, length_bytes: u64) -> io::Result<()> {
    if length_bytes == 0 {
        return Ok(());
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, hole, offset, length_bytes) {
        Err(Errno::OPNOTSUPP) => write_zeroes(file, offset, length_bytes),
        other => Ok(other?),
    }
}

fn write_zeroes(file: &File, mut offset: u64, length_bytes: u64) -> io::Result<()> {
    let end = offset + length_bytes;
    while offset < end {
        let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(ZEROES.len());
        file.write_all_at(&ZEROES[..length], offset)?;
        offset += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_written_where_no_hole_can_be_made() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 200_000], 0).unwrap();
        write_zeroes(&file, 10, 150_000).unwrap();
        let mut got = vec![1; 200_000];
        file.read_exact_at(&mut got, 0).unwrap();
        assert!(got[..10].iter().chain(&got[150_010..]).all(|byte| *byte == 7));
        assert!(got[10..150_010].iter().all(|byte| *byte == 0));
    }
}
