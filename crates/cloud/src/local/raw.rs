//! Disks as plain bytes in a file.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};

use kedge_core::ports::{CloudError, DiskReader, DiskWriter, Extent, ExtentKind};
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::error::failed;
use super::folder::Folder;
use super::images::{AloneWith, Reading, has_ended, is_within};

/// Zeroes written at once where the file system cannot make holes.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// What memory, offsets and lengths must be multiples of to go past the page cache.
const BLOCK_BYTES: usize = 4096;
/// Shorter writes are better collected in the page cache.
const DIRECT_BYTES_MIN: usize = 64 * 1024;

/// Reads a file as it is. A file that got shorter is an error, never zeroes.
#[derive(Debug)]
pub(super) struct RawReader {
    file: File,
    size_bytes: u64,
    reading: Reading,
}

impl RawReader {
    pub(super) fn new(file: File, size_bytes: u64, reading: Reading) -> Self {
        Self { file, size_bytes, reading }
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
        self.file.read_exact_at(buf, offset).map_err(|error| match error.kind() {
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
    /// The same file, written past the page cache: a restored disk would drive out of it
    /// what others need, and a read-back is to see the disk. None where the file system
    /// has no such way.
    direct: Option<File>,
}

impl RawWriter {
    /// Takes a file that is open for writing.
    pub(super) fn new(folder: Folder, alone: AloneWith, size_bytes: u64) -> Self {
        let direct = open_direct(&alone.files.top);
        Self { folder, size_bytes, alone: RwLock::new(Some(Alone { with: alone, direct })) }
    }

    fn with_file(
        &self,
        doing: &str,
        act: impl FnOnce(&File, Option<&File>) -> io::Result<()>,
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
                Some(direct) => write_direct(bytes, offset, |rest, at| direct.write_at(rest, at))?,
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

/// Opens a file once more. Its locks belong to the first handle and stay.
fn open_direct(file: &File) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok().map(File::from)
}

/// Writes as many whole blocks past the page cache as memory, offset and file system
/// allow; says how many bytes that were. The rest is to be written as usual.
fn write_direct(
    bytes: &[u8],
    offset: u64,
    write: impl Fn(&[u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let is_at_block =
        bytes.as_ptr().align_offset(BLOCK_BYTES) == 0 && offset.is_multiple_of(BLOCK_BYTES as u64);
    if bytes.len() < DIRECT_BYTES_MIN || !is_at_block {
        return Ok(0);
    }
    let blocks = &bytes[..bytes.len() / BLOCK_BYTES * BLOCK_BYTES];
    let mut written = 0;
    while written < blocks.len() {
        match write(&blocks[written..], offset + written as u64) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Larger blocks, a write that ended within one, or a file system that finds
            // out only now that it has no such way.
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

    /// Bytes of which the first lies at a block.
    fn at_block(all: &[u8]) -> (Vec<u8>, usize) {
        let mut memory: Vec<u8> = Vec::with_capacity(all.len() + BLOCK_BYTES);
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        memory.resize(start, 0);
        memory.extend_from_slice(all);
        (memory, start)
    }

    #[test]
    fn what_goes_past_the_page_cache_and_what_does_not_add_up_to_what_was_written() {
        let file = tempfile::tempfile().unwrap();
        // A file system without such a way stands in for one that refuses nothing.
        let direct = open_direct(&file).unwrap_or_else(|| file.try_clone().unwrap());
        let noise: Vec<u8> = (0..=250).cycle().take(3 * DIRECT_BYTES_MIN).collect();
        let (memory, start) = at_block(&noise);
        let block = BLOCK_BYTES as u64;
        let min = DIRECT_BYTES_MIN;
        for (from, len, offset, expected) in [
            (0, min, 0, min),
            (0, min + 1, block, min),
            (0, 2 * min + BLOCK_BYTES - 1, 7 * block, 2 * min),
            (0, min - 1, 0, 0),
            (0, min, 1, 0),
            (7, min, 0, 0),
            (0, 0, 0, 0),
        ] {
            file.set_len(0).unwrap();
            let bytes = &memory[start + from..start + from + len];
            let write = |rest: &[u8], at| direct.write_at(rest, at);
            let written = write_direct(bytes, offset, write).unwrap();
            assert_eq!(written, expected, "{from} {len} {offset}");
            file.write_all_at(&bytes[written..], offset + written as u64).unwrap();
            let mut got = vec![0; len];
            file.read_exact_at(&mut got, offset).unwrap();
            assert!(got == bytes, "{from} {len} {offset}");
        }
    }

    #[test]
    fn a_disk_that_refuses_the_direct_way_keeps_what_it_took_and_leaves_the_rest() {
        let (memory, start) = at_block(&[5; 2 * DIRECT_BYTES_MIN]);
        let bytes = &memory[start..];
        for kind in [ErrorKind::InvalidInput, ErrorKind::Unsupported] {
            for taken in [0, BLOCK_BYTES, BLOCK_BYTES + 7] {
                let write = |_: &[u8], at: u64| match at {
                    8192 if taken > 0 => Ok(taken),
                    _ => Err(io::Error::from(kind)),
                };
                assert_eq!(write_direct(bytes, 8192, write).unwrap(), taken);
            }
        }
        let full = |_: &[u8], _| Err(io::Error::from(ErrorKind::StorageFull));
        assert_eq!(write_direct(bytes, 0, full).unwrap_err().kind(), ErrorKind::StorageFull);
    }
}
