//! Files read and written past the page cache: a restored disk would drive out of it what
//! others need, and what is read back is to come from the disk.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};

/// What memory, offsets and lengths must be multiples of.
const BLOCK_BYTES: usize = 4096;
/// Less is not worth a wait for the disk.
const BYTES_MIN: usize = 64 * 1024;

/// A second handle on an open file.
#[derive(Debug)]
pub(super) struct Direct(File);

impl Direct {
    /// To read the file. None where the file system has no such way.
    pub(super) fn reading(file: &File) -> Option<Self> {
        Self::open(file, OFlags::RDONLY)
    }

    /// To write it. Its locks belong to the first handle, which keeps them.
    pub(super) fn writing(file: &File) -> Option<Self> {
        Self::open(file, OFlags::WRONLY)
    }

    fn open(file: &File, access: OFlags) -> Option<Self> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = access | OFlags::DIRECT | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).ok().map(|fd| Self(File::from(fd)))
    }

    /// Reads as many whole blocks from the start of `buf` on as memory, offset and file
    /// system allow, and says how many bytes that were; the rest is to be read as usual.
    pub(super) fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = whole_blocks(buf, offset);
        transfer(bytes, |done| self.0.read_at(&mut buf[done..bytes], offset + done as u64))
    }

    /// The same for writing.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let blocks = &bytes[..whole_blocks(bytes, offset)];
        transfer(blocks.len(), |done| self.0.write_at(&blocks[done..], offset + done as u64))
    }
}

fn whole_blocks(bytes: &[u8], offset: u64) -> usize {
    let is_at_block =
        bytes.as_ptr().align_offset(BLOCK_BYTES) == 0 && offset.is_multiple_of(BLOCK_BYTES as u64);
    if is_at_block && bytes.len() >= BYTES_MIN {
        bytes.len() / BLOCK_BYTES * BLOCK_BYTES
    } else {
        0
    }
}

fn transfer(bytes: usize, mut act: impl FnMut(usize) -> io::Result<usize>) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes {
        match act(done) {
            // The file ends here, or the disk takes no more: the usual way will tell.
            Ok(0) => break,
            Ok(more) => done += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Larger blocks, a transfer that ended within one, or a file system that finds
            // out only now that it has no such way.
            Err(error)
                if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) =>
            {
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_from_a_block_on_go_past_the_page_cache() {
        let (memory, start) = at_block(&vec![0; 3 * BYTES_MIN]);
        for (from, len, offset, expected) in CASES {
            let bytes = &memory[start + from..start + from + len];
            assert_eq!(whole_blocks(bytes, offset), expected, "{from} {len} {offset}");
        }
    }

    /// From where in memory, how much, to which offset, and how much of it goes the way.
    const CASES: [(usize, usize, u64, usize); 7] = [
        (0, BYTES_MIN, 0, BYTES_MIN),
        (0, BYTES_MIN + 1, BLOCK_BYTES as u64, BYTES_MIN),
        (0, 2 * BYTES_MIN + BLOCK_BYTES - 1, 7 * BLOCK_BYTES as u64, 2 * BYTES_MIN),
        (0, BYTES_MIN - 1, 0, 0),
        (0, BYTES_MIN, 1, 0),
        (7, BYTES_MIN, 0, 0),
        (0, 0, 0, 0),
    ];

    fn at_block(all: &[u8]) -> (Vec<u8>, usize) {
        let mut memory: Vec<u8> = Vec::with_capacity(all.len() + BLOCK_BYTES);
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        memory.resize(start, 0);
        memory.extend_from_slice(all);
        (memory, start)
    }

    #[test]
    fn what_goes_past_the_page_cache_and_what_does_not_add_up() {
        let file = tempfile::tempfile().unwrap();
        // Where there is no such way, all of this goes the usual one.
        let (writing, reading) = (Direct::writing(&file), Direct::reading(&file));
        let noise: Vec<u8> = (0..=250).cycle().take(3 * BYTES_MIN).collect();
        let (mut memory, start) = at_block(&noise);
        for (from, len, offset, expected) in CASES {
            file.set_len(0).unwrap();
            let range = start + from..start + from + len;
            let bytes = &memory[range.clone()];
            let written = writing.as_ref().map_or(0, |it| it.write_at(offset, bytes).unwrap());
            file.write_all_at(&bytes[written..], offset + written as u64).unwrap();
            let mut got = vec![0; len + BLOCK_BYTES];
            file.read_exact_at(&mut got[..len], offset).unwrap();
            assert!(got[..len] == memory[range.clone()], "{from} {len} {offset}");

            memory[range.clone()].fill(1);
            let buf = &mut memory[range.clone()];
            let read = reading.as_ref().map_or(0, |it| it.read_at(offset, buf).unwrap());
            file.read_exact_at(&mut buf[read..], offset + read as u64).unwrap();
            assert!(memory[start..] == noise, "{from} {len} {offset}");
            assert!([0, expected].contains(&written) && [0, expected].contains(&read));
        }
    }

    #[test]
    fn a_disk_that_refuses_the_direct_way_keeps_what_it_took_and_leaves_the_rest() {
        let refused = |kind: ErrorKind| Err(io::Error::from(kind));
        for kind in [ErrorKind::InvalidInput, ErrorKind::Unsupported] {
            for taken in [0, 4096, 4103] {
                let act = |done| if done == 0 && taken > 0 { Ok(taken) } else { refused(kind) };
                assert_eq!(transfer(8192, act).unwrap(), taken);
            }
        }
        let mut answers = vec![Ok(0), Ok(4096), refused(ErrorKind::Interrupted)];
        assert_eq!(transfer(8192, |_| answers.pop().unwrap()).unwrap(), 4096);
        let full = transfer(8192, |_| refused(ErrorKind::StorageFull));
        assert_eq!(full.unwrap_err().kind(), ErrorKind::StorageFull);
    }
}
