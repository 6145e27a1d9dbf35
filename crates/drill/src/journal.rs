//! Replays the journal of ext3 and ext4 in memory, as a mount would do it on the disk.
//!
//! Disks of running servers nearly always have one to replay. ext4-view replays too, but
//! not past the end of the log where it goes on at its front, not the older formats, and
//! not the group descriptors; what it leaves out would look like damage.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::bytes::{Bytes, be16, be32, be64, le16, le32, read, without32};
use crate::crc::crc32c_raw;
use crate::ext::{INCOMPAT_64BIT, INCOMPAT_RECOVER, SUPERBLOCK, Superblock, read_superblock};

const MAGIC: u32 = 0xc03b_3998;
const HEADER_BYTES: usize = 12;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const HAS_64BIT: u32 = 0x2;
const HAS_CHECKSUM_V2: u32 = 0x8;
const HAS_CHECKSUM_V3: u32 = 0x10;
/// Revocations, 64 bits, asynchronous commits and both kinds of checksum. Fast commits are
/// not among them: they are a language of their own.
const KNOWN: u32 = 0x1f;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

const USES_EXTENTS: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xf30a;
/// The kernel's own limit.
const EXTENT_DEPTH_MAX: u16 = 5;
/// 4 GiB of the usual blocks; the largest that mke2fs makes by itself has 1 GiB.
const JOURNAL_BLOCKS_MAX: usize = 1 << 20;

/// A file system as it is after its journal was replayed.
#[derive(Debug)]
pub(crate) struct Replayed {
    part: Rc<dyn Bytes>,
    block_bytes: u64,
    copies: BTreeMap<u64, Copied>,
    superblock: Vec<u8>,
}

/// Where the journal has a block's content.
#[derive(Clone, Copy, Debug)]
struct Copied {
    at: u64,
    is_escaped: bool,
    transaction: u32,
}

impl Replayed {
    pub(crate) fn superblock(&self) -> &[u8] {
        &self.superblock
    }

    fn read_copy(&self, copied: Copied) -> Result<Vec<u8>, String> {
        let length = usize::try_from(self.block_bytes).unwrap_or(0);
        let mut block = read(&*self.part, copied.at.saturating_mul(self.block_bytes), length)?;
        // A block that begins like one of the journal's own has its beginning taken away.
        if copied.is_escaped {
            block.splice(..4, MAGIC.to_be_bytes());
        }
        Ok(block)
    }
}

impl Bytes for Replayed {
    fn size(&self) -> u64 {
        self.part.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        self.part.read_at(offset, buf)?;
        let Some(last) = u64::try_from(buf.len()).ok().and_then(|length| length.checked_sub(1))
        else {
            return Ok(());
        };
        let blocks = offset / self.block_bytes..=(offset.saturating_add(last)) / self.block_bytes;
        for (block, copied) in self.copies.range(blocks) {
            lay(buf, offset, &self.read_copy(*copied)?, block * self.block_bytes);
        }
        lay(buf, offset, &self.superblock, 1024);
        Ok(())
    }
}

/// Lays `over`, which belongs at `at`, over the part of `buf` that it meets.
fn lay(buf: &mut [u8], offset: u64, over: &[u8], at: u64) {
    let skip = |from: u64, to: u64| usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
    let target = buf.get_mut(skip(offset, at)..).unwrap_or(&mut []);
    let source = over.get(skip(at, offset)..).unwrap_or(&[]);
    target.iter_mut().zip(source).for_each(|(target, source)| *target = *source);
}

/// Replays the journal if there is something to replay. `None` where it is written in a way
/// that is not understood; an error where a mount would fail.
pub(crate) fn replay(
    part: &Rc<dyn Bytes>,
    superblock: &Superblock,
) -> Result<Option<Replayed>, String> {
    let block_bytes = superblock.block_bytes().ok_or("its blocks have an impossible size")?;
    let mut replayed = Replayed {
        part: Rc::clone(part),
        block_bytes: u64::from(block_bytes),
        copies: BTreeMap::new(),
        superblock: read_superblock(&**part)?.recovered(),
    };
    if superblock.incompat() & INCOMPAT_RECOVER == 0 {
        return Ok(Some(replayed));
    }
    if superblock.journal_record() == 0 {
        return Ok(None);
    }
    let disk = Disk { part: &**part, superblock, block_bytes };
    let places = disk.journal_blocks()?;
    let Some(log) = Log::open(&disk, &places)? else { return Ok(None) };
    replayed.copies = log.scan()?;
    let recovered = Superblock::from_bytes(superblock_after(&replayed)?).recovered();
    replayed.superblock = recovered;
    Ok(Some(replayed))
}

/// The superblock with what the journal says of its block.
fn superblock_after(replayed: &Replayed) -> Result<Vec<u8>, String> {
    let block = 1024 / replayed.block_bytes;
    let Some(copied) = replayed.copies.get(&block) else {
        return Ok(replayed.superblock.clone());
    };
    let within = if replayed.block_bytes == 1024 { 0 } else { SUPERBLOCK };
    let copy = replayed.read_copy(*copied)?;
    Ok(copy.get(within..within + 1024).unwrap_or(&replayed.superblock).to_vec())
}

/// The file system before anything was replayed.
#[derive(Debug)]
struct Disk<'a> {
    part: &'a dyn Bytes,
    superblock: &'a Superblock,
    block_bytes: u32,
}

impl Disk<'_> {
    fn block(&self, number: u64) -> Result<Vec<u8>, String> {
        if number >= self.superblock.blocks() {
            return Err(format!("block {number} does not exist"));
        }
        read(self.part, number.saturating_mul(self.block_bytes.into()), self.block_bytes as usize)
    }

    /// Where each block of the journal lies, in its order.
    fn journal_blocks(&self) -> Result<Vec<u64>, String> {
        let record = self.journal_record()?;
        let map = record.get(0x28..0x28 + 60).ok_or("its record is too short")?;
        let mut places = Vec::new();
        if le32(&record, 0x20) & USES_EXTENTS == 0 {
            self.add_mapped(map, &mut places)?;
        } else {
            self.add_extents(map, EXTENT_DEPTH_MAX, &mut places)?;
        }
        Ok(places)
    }

    fn journal_record(&self) -> Result<Vec<u8>, String> {
        let superblock = self.superblock;
        let index = superblock.journal_record() - 1;
        let per_group = superblock.records_per_group();
        let group = index.checked_div(per_group).ok_or("its groups have no records")?;
        let list = (u64::from(superblock.first_block()) + 1) * u64::from(self.block_bytes);
        let at = list + u64::from(group) * u64::from(superblock.group_bytes());
        let descriptor = read(self.part, at, usize::from(superblock.group_bytes()).max(64))?;
        let is_wide = superblock.incompat() & INCOMPAT_64BIT != 0;
        let high = if is_wide { le32(&descriptor, 0x28) } else { 0 };
        let records = u64::from(high) << 32 | u64::from(le32(&descriptor, 8));
        let length = superblock.record_bytes();
        let within = u64::from(index % per_group) * u64::from(length);
        let start = records.checked_mul(self.block_bytes.into());
        let at =
            start.and_then(|start| start.checked_add(within)).ok_or("its record is nowhere")?;
        read(self.part, at, length.into())
    }

    fn add_extents(&self, node: &[u8], depth: u16, places: &mut Vec<u64>) -> Result<(), String> {
        let height = le16(node, 6);
        if le16(node, 0) != EXTENT_MAGIC || height > depth {
            return Err("its map is damaged".to_owned());
        }
        for entry in node.chunks_exact(12).skip(1).take(usize::from(le16(node, 2))) {
            if height == 0 {
                add_extent(entry, places)?;
            } else {
                let below = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
                self.add_extents(&self.block(below)?, height - 1, places)?;
            }
        }
        Ok(())
    }

    /// The map of older file systems: twelve blocks, then blocks of blocks, three deep.
    fn add_mapped(&self, map: &[u8], places: &mut Vec<u64>) -> Result<(), String> {
        for (index, entry) in map.chunks_exact(4).enumerate() {
            let levels = index.saturating_sub(11);
            self.add_level(le32(entry, 0), levels, places)?;
        }
        Ok(())
    }

    fn add_level(&self, block: u32, levels: usize, places: &mut Vec<u64>) -> Result<(), String> {
        if block == 0 {
            return Ok(());
        }
        if levels == 0 {
            return add_place(u64::from(block), places);
        }
        for entry in self.block(block.into())?.chunks_exact(4) {
            self.add_level(le32(entry, 0), levels - 1, places)?;
        }
        Ok(())
    }
}

fn add_extent(entry: &[u8], places: &mut Vec<u64>) -> Result<(), String> {
    // A journal has no holes.
    if usize::try_from(le32(entry, 0)) != Ok(places.len()) {
        return Err("its map is damaged".to_owned());
    }
    let start = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
    // Past this, the number means blocks that were never written.
    let length = match le16(entry, 4) {
        length @ 0..=0x8000 => length,
        length => length - 0x8000,
    };
    (start..start + u64::from(length)).try_for_each(|block| add_place(block, places))
}

fn add_place(block: u64, places: &mut Vec<u64>) -> Result<(), String> {
    if places.len() >= JOURNAL_BLOCKS_MAX {
        return Err("it is too large".to_owned());
    }
    places.push(block);
    Ok(())
}

/// The log itself.
#[derive(Debug)]
struct Log<'a> {
    disk: &'a Disk<'a>,
    places: &'a [u64],
    first: u32,
    end: u32,
    start: u32,
    sequence: u32,
    features: u32,
    seed: u32,
}

/// What is known of a log while it is read.
#[derive(Debug, Default)]
struct Scan {
    copies: BTreeMap<u64, Copied>,
    revoked: BTreeMap<u64, u32>,
    /// What the transaction that has not ended yet would add.
    pending: Vec<(u64, Copied)>,
    pending_revoked: Vec<u64>,
    has_bad_block: bool,
}

impl<'a> Log<'a> {
    fn open(disk: &'a Disk<'a>, places: &'a [u64]) -> Result<Option<Self>, String> {
        let head = disk.block(*places.first().ok_or("it has no blocks")?)?;
        let kind = be32(&head, 4);
        if be32(&head, 0) != MAGIC || ![SUPERBLOCK_V1, SUPERBLOCK_V2].contains(&kind) {
            return Err("it has no superblock".to_owned());
        }
        if be32(&head, 12) != disk.block_bytes {
            return Err("its blocks have another size than the file system's".to_owned());
        }
        let features = if kind == SUPERBLOCK_V1 { 0 } else { be32(&head, 40) };
        if features & !KNOWN != 0 {
            return Ok(None);
        }
        let seed = crc32c_raw(!0, head.get(48..64).unwrap_or(&[]));
        let log = Self {
            disk,
            places,
            first: be32(&head, 20),
            end: be32(&head, 16),
            start: be32(&head, 28),
            sequence: be32(&head, 24),
            features,
            seed,
        };
        log.check(&head)?;
        Ok(Some(log))
    }

    fn check(&self, head: &[u8]) -> Result<(), String> {
        let superblock = without32(head.get(..1024).unwrap_or(&[]), 0xfc);
        if self.has_checksums() && crc32c_raw(!0, &superblock) != be32(head, 0xfc) {
            return Err("its superblock's checksum is wrong".to_owned());
        }
        let there = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        let is_inside = |block: u32| (self.first..self.end).contains(&block);
        let is_started = self.start == 0 || is_inside(self.start);
        if self.first == 0 || self.end > there || !is_inside(self.first) || !is_started {
            return Err("its superblock is damaged".to_owned());
        }
        Ok(())
    }

    fn has_checksums(&self) -> bool {
        self.features & (HAS_CHECKSUM_V2 | HAS_CHECKSUM_V3) != 0
    }

    /// Reads the log from its start to the first block that does not go on with it: that is
    /// where it ended. Fails if a transaction that did end has a block that is not its own.
    fn scan(&self) -> Result<BTreeMap<u64, Copied>, String> {
        let mut scan = Scan::default();
        let (mut at, mut sequence) = (self.start, self.sequence);
        // A log without a start is empty. None is longer than its blocks.
        let mut left = if self.start == 0 { 0 } else { self.end - self.first };
        while left > 0 {
            let block = self.block(at)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != sequence {
                break;
            }
            let mut used = 1;
            match be32(&block, 4) {
                DESCRIPTOR if self.is_tail_right(&block) => {
                    used += self.read_descriptor(&block, at, sequence, left, &mut scan)?;
                }
                REVOKE if self.is_tail_right(&block) => self.read_revoked(&block, &mut scan),
                COMMIT if self.is_commit_right(&block) => {
                    scan.commit(sequence)?;
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
            left = left.saturating_sub(used);
            at = self.after(at, used);
        }
        Ok(scan.finish())
    }

    fn block(&self, at: u32) -> Result<Vec<u8>, String> {
        self.disk.block(self.place(at)?)
    }

    fn place(&self, at: u32) -> Result<u64, String> {
        let place = self.places.get(at as usize).copied();
        place.ok_or_else(|| format!("it has no block {at}"))
    }

    /// The log goes on at its front where it reached its end.
    fn after(&self, at: u32, blocks: u32) -> u32 {
        let length = u64::from(self.end - self.first);
        let from_first = u64::from(at - self.first) + u64::from(blocks);
        u32::try_from(from_first % length).map_or(self.first, |within| self.first + within)
    }

    /// Notes the blocks of a descriptor; says how many there were.
    fn read_descriptor(
        &self,
        block: &[u8],
        at: u32,
        sequence: u32,
        left: u32,
        scan: &mut Scan,
    ) -> Result<u32, String> {
        let mut used = 0;
        for tag in self.tags(block) {
            used += 1;
            if used >= left {
                break;
            }
            let data_at = self.after(at, used);
            if !self.is_data_right(&tag, &self.block(data_at)?, sequence) {
                scan.has_bad_block = true;
            }
            let is_escaped = tag.flags & TAG_ESCAPED != 0;
            let copied = Copied { at: self.place(data_at)?, is_escaped, transaction: sequence };
            scan.pending.push((tag.block, copied));
        }
        Ok(used)
    }

    fn tags(&self, block: &[u8]) -> Vec<Tag> {
        let is_v3 = self.features & HAS_CHECKSUM_V3 != 0;
        let is_wide = self.features & HAS_64BIT != 0;
        let wide_bytes = if self.features & HAS_CHECKSUM_V2 != 0 { 14 } else { 12 };
        let tag_bytes = match (is_v3, is_wide) {
            (true, _) => 16,
            (false, true) => wide_bytes,
            (false, false) => wide_bytes - 4,
        };
        let mut tags = Vec::new();
        let mut at = HEADER_BYTES;
        while at + tag_bytes <= block.len() - self.tail_bytes() {
            let bytes = block.get(at..at + tag_bytes).unwrap_or(&[]);
            let tag = if is_v3 { Tag::v3(bytes) } else { Tag::older(bytes, is_wide) };
            at += tag_bytes + if tag.flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            let is_last = tag.flags & TAG_LAST != 0;
            tags.push(tag);
            if is_last {
                break;
            }
        }
        tags
    }

    fn read_revoked(&self, block: &[u8], scan: &mut Scan) {
        let end = usize::try_from(be32(block, 12)).unwrap_or(0);
        let end = end.min(block.len() - self.tail_bytes());
        let list = block.get(16..end).unwrap_or(&[]);
        if self.features & HAS_64BIT == 0 {
            let blocks = list.chunks_exact(4).map(|entry| u64::from(be32(entry, 0)));
            scan.pending_revoked.extend(blocks);
        } else {
            scan.pending_revoked.extend(list.chunks_exact(8).map(|entry| be64(entry, 0)));
        }
    }

    fn tail_bytes(&self) -> usize {
        if self.has_checksums() { 4 } else { 0 }
    }

    fn is_tail_right(&self, block: &[u8]) -> bool {
        self.is_sum_right(block, block.len() - 4)
    }

    fn is_commit_right(&self, block: &[u8]) -> bool {
        self.is_sum_right(block, 16)
    }

    fn is_sum_right(&self, block: &[u8], at: usize) -> bool {
        let sum = || crc32c_raw(self.seed, &without32(block, at));
        !self.has_checksums() || sum() == be32(block, at)
    }

    fn is_data_right(&self, tag: &Tag, data: &[u8], sequence: u32) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let sum = crc32c_raw(crc32c_raw(self.seed, &sequence.to_be_bytes()), data);
        if self.features & HAS_CHECKSUM_V3 == 0 { sum & 0xffff == tag.sum } else { sum == tag.sum }
    }
}

impl Scan {
    fn commit(&mut self, sequence: u32) -> Result<(), String> {
        if self.has_bad_block {
            return Err(format!("transaction {sequence} has a block with a wrong checksum"));
        }
        self.copies.extend(self.pending.drain(..));
        self.revoked.extend(self.pending_revoked.drain(..).map(|block| (block, sequence)));
        Ok(())
    }

    /// A block that was revoked is not written by that transaction or an earlier one: it
    /// holds something else since. Sequence numbers begin anew after their last.
    fn finish(mut self) -> BTreeMap<u64, Copied> {
        let is_later = |one: u32, other: u32| matches!(one.wrapping_sub(other), 1..0x8000_0000);
        self.copies.retain(|block, copied| {
            self.revoked.get(block).is_none_or(|revoked| is_later(copied.transaction, *revoked))
        });
        self.copies
    }
}

/// Which block of the file system a block of the log is for.
#[derive(Debug)]
struct Tag {
    block: u64,
    flags: u32,
    sum: u32,
}

impl Tag {
    fn v3(bytes: &[u8]) -> Self {
        let block = u64::from(be32(bytes, 8)) << 32 | u64::from(be32(bytes, 0));
        Self { block, flags: be32(bytes, 4), sum: be32(bytes, 12) }
    }

    fn older(bytes: &[u8], is_wide: bool) -> Self {
        let high = if is_wide { be32(bytes, 8) } else { 0 };
        let block = u64::from(high) << 32 | u64::from(be32(bytes, 0));
        Self { block, flags: be16(bytes, 6).into(), sum: be16(bytes, 4).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_meets_is_laid_over() {
        let mut buf = [0; 8];
        lay(&mut buf, 100, &[1, 2, 3, 4], 98);
        lay(&mut buf, 100, &[5, 6, 7, 8], 106);
        lay(&mut buf, 100, &[9; 4], 50);
        lay(&mut buf, 100, &[9; 4], 108);
        assert_eq!(buf, [3, 4, 0, 0, 0, 0, 5, 6]);
    }

    #[test]
    fn a_revoked_block_stays_unless_it_was_written_later() {
        let copied = |transaction| Copied { at: 1, is_escaped: false, transaction };
        let mut scan = Scan::default();
        scan.copies.extend([(7, copied(u32::MAX)), (8, copied(0)), (9, copied(3))]);
        scan.revoked.extend([(7, u32::MAX), (8, u32::MAX), (6, 3)]);
        assert_eq!(scan.finish().into_keys().collect::<Vec<_>>(), [8, 9]);
    }
}
