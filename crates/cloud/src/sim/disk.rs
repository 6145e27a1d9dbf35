//! A volume's bytes, sparse: a terabyte of nothing costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};
use std::sync::Arc;

use kedge_core::ports::{Extent, ExtentKind};

/// Unit of allocation and of change tracking.
const BLOCK_BYTES: u64 = 64 * 1024;

/// Blocks that are absent read as zeroes. Blocks are shared with clones until written, so
/// freezing a disk copies no bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    size_bytes: u64,
    blocks: BTreeMap<u64, Arc<Vec<u8>>>,
    /// For each block ever changed, the version that its last change made.
    changes: BTreeMap<u64, u64>,
    version: u64,
    /// The version that the last change of size made.
    resized_at: u64,
}

impl Disk {
    /// A disk of this size that begins with `bytes`. What lies beyond the size is dropped.
    pub(super) fn new(size_bytes: u64, bytes: &[u8]) -> Self {
        let mut disk = Self { size_bytes, ..Self::default() };
        let kept = usize::try_from(size_bytes).unwrap_or(usize::MAX).min(bytes.len());
        disk.write(0, &bytes[..kept]);
        disk
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Counts changes; a moment of the disk is named by it.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether a range lies on the disk.
    pub(super) fn holds(&self, offset: u64, length_bytes: u64) -> bool {
        offset.checked_add(length_bytes).is_some_and(|end| end <= self.size_bytes)
    }

    pub(super) fn resize(&mut self, size_bytes: u64) {
        if size_bytes == self.size_bytes {
            return;
        }
        if size_bytes < self.size_bytes {
            self.zero(size_bytes, self.size_bytes - size_bytes);
        }
        self.size_bytes = size_bytes;
        self.version += 1;
        self.resized_at = self.version;
    }

    /// Fills `buf` from `offset`; the range lies on the disk.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) {
        for (block, within, part) in pieces(offset, buf.len()) {
            let target = &mut buf[part];
            match self.blocks.get(&block) {
                Some(bytes) => target.copy_from_slice(&bytes[within..within + target.len()]),
                None => target.fill(0),
            }
        }
    }

    /// Writes at `offset`; the range lies on the disk.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.version += 1;
        for (block, within, part) in pieces(offset, bytes.len()) {
            let source = &bytes[part];
            let target = self.blocks.entry(block).or_insert_with(|| Arc::new(vec![0; block_len()]));
            Arc::make_mut(target)[within..within + source.len()].copy_from_slice(source);
            self.changes.insert(block, self.version);
        }
    }

    /// Makes a range read as zeroes; the range lies on the disk.
    pub(super) fn zero(&mut self, offset: u64, length_bytes: u64) {
        if length_bytes == 0 {
            return;
        }
        self.version += 1;
        let end = offset + length_bytes;
        let touched: Vec<u64> = self
            .blocks
            .range(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES))
            .map(|b| *b.0)
            .collect();
        for block in touched {
            self.zero_in_block(block, offset, end);
            self.changes.insert(block, self.version);
        }
    }

    fn zero_in_block(&mut self, block: u64, offset: u64, end: u64) {
        let begin = block * BLOCK_BYTES;
        let from = offset.saturating_sub(begin);
        let to = (end - begin).min(BLOCK_BYTES);
        if from == 0 && to == BLOCK_BYTES {
            self.blocks.remove(&block);
        } else if let Some(bytes) = self.blocks.get_mut(&block) {
            Arc::make_mut(bytes)[to_usize(from)..to_usize(to)].fill(0);
        }
    }

    /// The blocks changed after a version. `None` when that version was of another size, or
    /// is yet to come: nothing is unchanged since then.
    pub(super) fn changed_since(&self, version: u64) -> Option<BTreeSet<u64>> {
        if version < self.resized_at || version > self.version {
            return None;
        }
        let later = self.changes.iter().filter(|(_, at)| **at > version);
        Some(later.map(|(block, _)| *block).collect())
    }

    /// What lies at `offset`, less than the size. With `changed`, every other block counts
    /// as unchanged.
    pub(super) fn extent(&self, offset: u64, changed: Option<&BTreeSet<u64>>) -> Extent {
        let first = offset / BLOCK_BYTES;
        let kind = self.kind(first, changed);
        let end = self.run_end(first, kind, changed).saturating_mul(BLOCK_BYTES);
        let length_bytes = end.min(self.size_bytes) - offset;
        Extent { offset, length_bytes, kind }
    }

    fn kind(&self, block: u64, changed: Option<&BTreeSet<u64>>) -> ExtentKind {
        if changed.is_some_and(|changed| !changed.contains(&block)) {
            ExtentKind::Unchanged
        } else if self.blocks.contains_key(&block) {
            ExtentKind::Data
        } else {
            ExtentKind::Zero
        }
    }

    /// The first block after `first` of another kind. Steps only over blocks that are
    /// stored or listed, and leaps over the rest.
    fn run_end(&self, first: u64, kind: ExtentKind, changed: Option<&BTreeSet<u64>>) -> u64 {
        let after = (Bound::Excluded(first), Bound::Unbounded);
        let leap = match (kind, changed) {
            (ExtentKind::Unchanged, Some(changed)) => Some(changed.range(after).next().copied()),
            (ExtentKind::Zero, None) => Some(self.blocks.range(after).next().map(|b| *b.0)),
            (ExtentKind::Data, _) | (ExtentKind::Unchanged, None) | (ExtentKind::Zero, Some(_)) => {
                None
            }
        };
        leap.map_or_else(
            || {
                let mut next = first + 1;
                let last = self.size_bytes.div_ceil(BLOCK_BYTES);
                while next < last && self.kind(next, changed) == kind {
                    next += 1;
                }
                next
            },
            |found| found.unwrap_or(u64::MAX),
        )
    }
}

/// Splits a range into (block, offset within it, range within the buffer).
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let within = to_usize(at % BLOCK_BYTES);
        let take = (block_len() - within).min(length - done);
        let piece = (at / BLOCK_BYTES, within, done..done + take);
        done += take;
        Some(piece)
    })
}

fn block_len() -> usize {
    to_usize(BLOCK_BYTES)
}

/// A number not above [`BLOCK_BYTES`], as a length.
fn to_usize(within: u64) -> usize {
    usize::try_from(within).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_reads_what_was_written_across_blocks_and_zeroes_elsewhere() {
        let mut disk = Disk::new(4 * BLOCK_BYTES, &[]);
        disk.write(BLOCK_BYTES - 1, &[7, 8]);
        let mut got = [9; 4];
        disk.read(BLOCK_BYTES - 2, &mut got);
        assert_eq!(got, [0, 7, 8, 0]);
        disk.zero(BLOCK_BYTES, 3 * BLOCK_BYTES);
        disk.read(BLOCK_BYTES - 2, &mut got);
        assert_eq!(got, [0, 7, 0, 0]);
    }

    #[test]
    fn a_clone_does_not_see_later_writes() {
        let mut disk = Disk::new(BLOCK_BYTES, &[1; 10]);
        let frozen = disk.clone();
        disk.write(0, &[2; 10]);
        let mut got = [0; 10];
        frozen.read(0, &mut got);
        assert_eq!(got, [1; 10]);
    }

    #[test]
    fn extents_of_a_huge_disk_are_few() {
        let mut disk = Disk::new(1 << 50, &[]);
        disk.write(1 << 40, &[1]);
        let first = disk.extent(0, None);
        assert_eq!((first.length_bytes, first.kind), (1 << 40, ExtentKind::Zero));
        let second = disk.extent(1 << 40, None);
        assert_eq!((second.length_bytes, second.kind), (BLOCK_BYTES, ExtentKind::Data));
        let rest = disk.extent((1 << 40) + BLOCK_BYTES, None);
        assert_eq!(rest.offset + rest.length_bytes, 1 << 50);
    }

    #[test]
    fn only_changed_blocks_are_not_unchanged() {
        let mut disk = Disk::new(4 * BLOCK_BYTES, &[1; 4 * 64 * 1024]);
        let before = disk.version();
        disk.zero(2 * BLOCK_BYTES, BLOCK_BYTES);
        disk.write(BLOCK_BYTES, &[3]);
        let changed = disk.changed_since(before).unwrap();
        let kinds: Vec<ExtentKind> =
            (0..4).map(|block| disk.extent(block * BLOCK_BYTES, Some(&changed)).kind).collect();
        assert_eq!(
            kinds,
            [ExtentKind::Unchanged, ExtentKind::Data, ExtentKind::Zero, ExtentKind::Unchanged]
        );
    }
    #[test]
    fn nothing_is_unchanged_since_another_size_or_a_later_moment() {
        let mut disk = Disk::new(2 * BLOCK_BYTES, &[1; 10]);
        let small = disk.version();
        disk.resize(4 * BLOCK_BYTES);
        let (large, frozen) = (disk.version(), disk.clone());
        disk.write(0, &[2]);
        assert_eq!(disk.changed_since(small), None);
        assert_eq!(disk.changed_since(large), Some(BTreeSet::from([0])));
        assert_eq!(frozen.changed_since(disk.version()), None);
    }
}
