//! What is checked of a qcow2 file before anything else of it is read: its header, and that
//! every table and cluster lies in the file.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::super::DISK_BYTES_MAX;

/// QEMU's own limit of a first-level table: 32 MiB of 8-byte entries.
const L1_ENTRIES_MAX: u64 = 4 << 20;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

/// What a file's header says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::local) struct Header {
    pub(in crate::local) size_bytes: u64,
    pub(in crate::local) backing: Option<String>,
    cluster_bits: u32,
    l1_entries: u64,
    l1_offset: u64,
}

impl Header {
    /// Reads a header and refuses what cannot be read safely or at all.
    pub(in crate::local) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; 104];
        file.read_exact_at(&mut bytes[..72], 0).map_err(too_short)?;
        if bytes[..4] != *b"QFI\xfb" {
            return Err(bad("it is no qcow2 file"));
        }
        match be32(&bytes, 4) {
            2 => {}
            3 => {
                file.read_exact_at(&mut bytes[72..], 72).map_err(too_short)?;
                let features = be64(&bytes, 72);
                if features != 0 {
                    return Err(bad(format!(
                        "it needs features {features:#x}, which are unknown \
                        or mean damage, encryption or a file of its own for the data"
                    )));
                }
            }
            other => return Err(bad(format!("qcow2 version {other} is unknown"))),
        }
        Self::check(&bytes, file)
    }

    fn check(bytes: &[u8; 104], file: &File) -> io::Result<Self> {
        if be32(bytes, 32) != 0 {
            return Err(bad("it is encrypted"));
        }
        let header = Self {
            size_bytes: be64(bytes, 24),
            backing: read_backing(file, be64(bytes, 8), be32(bytes, 16))?,
            cluster_bits: be32(bytes, 20),
            l1_entries: u64::from(be32(bytes, 36)),
            l1_offset: be64(bytes, 40),
        };
        if !(9..=21).contains(&header.cluster_bits) {
            return Err(bad(format!("a cluster of 2^{} bytes", header.cluster_bits)));
        }
        if header.size_bytes == 0 || header.size_bytes > DISK_BYTES_MAX {
            return Err(bad(format!("a disk of {} bytes", header.size_bytes)));
        }
        let needed = header.size_bytes.div_ceil(header.bytes_per_l2());
        // A table has its clusters to itself.
        let fitting = (needed * 8).next_multiple_of(header.cluster_bytes()) / 8;
        if !(needed..=fitting.min(L1_ENTRIES_MAX)).contains(&header.l1_entries) {
            return Err(bad(format!("a first-level table of {} entries", header.l1_entries)));
        }
        header.holds(header.l1_offset, header.l1_entries * 8, file.metadata()?.len())?;
        Ok(header)
    }

    /// Checks every table, so that nothing in them points outside the file. Reads no more
    /// than the first-level table and what of the others is data: a hole maps nothing.
    pub(super) fn check_tables(&self, file: &File) -> io::Result<()> {
        let length = file.metadata()?.len();
        let mut walk = DataWalk { file, found: 0..0 };
        for table in self.l2_tables(file, length)? {
            let mut at = table;
            while let Some(data) = walk.next_within(at..table + self.cluster_bytes())? {
                for entry in read_entries(file, data.start, data.end - data.start)? {
                    self.check_entry(entry, length)?;
                }
                at = data.end;
            }
        }
        Ok(())
    }

    /// Where the second-level tables begin, in the order of the file. No two overlap.
    fn l2_tables(&self, file: &File, length: u64) -> io::Result<Vec<u64>> {
        let l1_bytes = self.l1_entries * 8;
        let l1 = read_entries(file, self.l1_offset, l1_bytes)?;
        let offsets = l1.iter().map(|entry| entry & OFFSET_MASK);
        let mut tables: Vec<u64> = offsets.filter(|offset| *offset != 0).collect();
        tables.sort_unstable();
        let own = self.l1_offset..self.l1_offset + l1_bytes;
        for table in &tables {
            self.holds(*table, self.cluster_bytes(), length)?;
            if own.contains(table) {
                return Err(bad(format!("a table at {table}, within another")));
            }
        }
        if tables.is_sorted_by(|one, next| one < next) {
            Ok(tables)
        } else {
            Err(bad("a table is used twice"))
        }
    }

    fn check_entry(&self, entry: u64, length: u64) -> io::Result<()> {
        let offset = if entry & COMPRESSED != 0 {
            entry & ((1 << (62 - (self.cluster_bits - 8))) - 1)
        } else {
            let offset = entry & OFFSET_MASK;
            if !offset.is_multiple_of(self.cluster_bytes()) {
                return Err(bad(format!("a cluster at {offset}, between two others")));
            }
            offset
        };
        // Only the last cluster may end past the file: it was never written whole.
        if offset < length { Ok(()) } else { Err(bad("it is truncated: data lies past its end")) }
    }

    /// Whether a table lies in the file, where a table may begin.
    fn holds(&self, offset: u64, table_bytes: u64, length: u64) -> io::Result<()> {
        let is_inside = offset.checked_add(table_bytes).is_some_and(|end| end <= length);
        if offset != 0 && offset.is_multiple_of(self.cluster_bytes()) && is_inside {
            Ok(())
        } else {
            Err(bad(format!("a table of {table_bytes} bytes at {offset}, not in the file")))
        }
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn bytes_per_l2(&self) -> u64 {
        self.cluster_bytes() * (self.cluster_bytes() / 8)
    }

    /// Refuses a file that names a backing file other than the one declared.
    pub(in crate::local) fn check_backing(&self, declared: Option<&str>) -> io::Result<()> {
        match &self.backing {
            Some(named) if declared != Some(named) => {
                Err(bad(format!("it names the undeclared backing file {named:?}")))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn read_backing(file: &File, offset: u64, length: u32) -> io::Result<Option<String>> {
    if offset == 0 {
        return Ok(None);
    }
    if length > 1023 || offset > 1 << 21 {
        return Err(bad("the name of a backing file is out of bounds"));
    }
    let mut name = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut name, offset).map_err(too_short)?;
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

fn read_entries(file: &File, offset: u64, table_bytes: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(table_bytes).unwrap_or(0)];
    file.read_exact_at(&mut bytes, offset).map_err(too_short)?;
    let (entries, _) = bytes.as_chunks::<8>();
    Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

/// Finds what of a file is no hole, on one walk from its begin to its end.
#[derive(Debug)]
struct DataWalk<'a> {
    file: &'a File,
    /// The first data that ends after the range asked for last began.
    found: Range<u64>,
}

impl DataWalk<'_> {
    /// The first data in a range, in whole table entries. Ranges come in rising order.
    fn next_within(&mut self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        if self.found.end <= range.start {
            self.found = self.find(range.start)?;
        }
        let data = self.found.start.max(range.start)..self.found.end.min(range.end);
        Ok(if data.is_empty() { None } else { Some(data) })
    }

    fn find(&self, from: u64) -> io::Result<Range<u64>> {
        let begin = match rustix::fs::seek(self.file, SeekFrom::Data(from)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => return Ok(u64::MAX..u64::MAX),
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(self.file, SeekFrom::Hole(begin)) {
            // A hole dug meanwhile is read as what it is.
            Ok(end) => end.max(begin + 1),
            Err(Errno::NXIO) => u64::MAX,
            Err(error) => return Err(error.into()),
        };
        Ok(begin / 8 * 8..end.div_ceil(8).saturating_mul(8))
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_be_bytes(*word))
}

pub(super) fn bad(text: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.into())
}

fn too_short(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::UnexpectedEof { bad("it is truncated") } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: u64 = 1 << 16;
    /// The largest disk of all: its second-level tables take 8 GiB.
    const TABLES: u64 = DISK_BYTES_MAX >> 29;

    /// An image whose tables all lie in a hole; returns where the first of them begins.
    fn make_hollow(file: &File) -> u64 {
        let mut header = [0; 72];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[4..8].copy_from_slice(&2_u32.to_be_bytes());
        header[20..24].copy_from_slice(&16_u32.to_be_bytes());
        header[24..32].copy_from_slice(&DISK_BYTES_MAX.to_be_bytes());
        header[36..40].copy_from_slice(&u32::try_from(TABLES).unwrap().to_be_bytes());
        header[40..48].copy_from_slice(&CLUSTER.to_be_bytes());
        let first = CLUSTER + TABLES * 8;
        let l1: Vec<u8> =
            (0..TABLES).rev().flat_map(|i| (first + i * CLUSTER).to_be_bytes()).collect();
        file.write_all_at(&header, 0).unwrap();
        file.write_all_at(&l1, CLUSTER).unwrap();
        file.set_len(first + TABLES * CLUSTER).unwrap();
        first
    }

    /// What this thread has read, as the kernel counts it.
    fn bytes_read() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        text.strip_prefix("rchar: ").unwrap().lines().next().unwrap().parse().unwrap()
    }

    #[test]
    fn tables_in_holes_are_not_read() {
        let file = tempfile::tempfile().unwrap();
        make_hollow(&file);
        let header = Header::read(&file).unwrap();
        let before = bytes_read();
        header.check_tables(&file).unwrap();
        assert!(bytes_read() - before < 2 * TABLES * 8, "{} bytes", bytes_read() - before);
    }

    #[test]
    fn what_is_data_in_a_hollow_table_is_checked() {
        for entry in [0, CLUSTER / 8 / 2, CLUSTER / 8 - 1] {
            for table in [0, TABLES / 2, TABLES - 1] {
                let file = tempfile::tempfile().unwrap();
                let first = make_hollow(&file);
                let header = Header::read(&file).unwrap();
                let at = first + table * CLUSTER + entry * 8;
                file.write_all_at(&first.to_be_bytes(), at).unwrap();
                header.check_tables(&file).unwrap();
                file.write_all_at(&OFFSET_MASK.to_be_bytes(), at).unwrap();
                header.check_tables(&file).unwrap_err();
            }
        }
    }
}
