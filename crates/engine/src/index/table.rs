//! Sorted segments: many places of blobs in little memory. A segment is an array of
//! records of 48 bytes, in memory or in a file, of which memory holds 8 bytes per block of
//! 128: ids are SHA-256 values, so these tell which block may hold a blob.
//!
//! Invariant: a segment never changes. A file of records is hashed whenever all of it is
//! read, when it is opened and when it is merged into another, so what went wrong on the
//! disk never gets a fresh checksum.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, BufWriter, Write},
    ops::ControlFlow,
    os::unix::fs::FileExt,
    sync::Arc,
};

use sha2::{Digest, Sha256};

use crate::{
    blob::{BlobKind, Shape},
    id::BlobId,
};

/// A record as it is stored. Records are compared as bytes: all numbers are big-endian.
///
/// ```text
/// 32 bytes  blob id
/// 4 bytes   kind (highest bit: 0 data, 1 tree) and number of the pack
/// 4 bytes   offset in the pack
/// 4 bytes   sealed length
/// 4 bytes   plain length when compressed, else 0
/// ```
pub(super) type Bytes = [u8; RECORD_BYTES];

pub(super) const RECORD_BYTES: usize = 48;

/// One or two disk pages: what one look-up reads of a segment.
const BLOCK_RECORDS: usize = 128;
/// What a merge holds in memory of each of its inputs.
const CURSOR_RECORDS: usize = 8 * BLOCK_RECORDS;

const TREE_BIT: u32 = 1 << 31;
/// Numbers of packs are below this.
pub(super) const PACK_NUMBERS: u32 = TREE_BIT;

/// A place of a blob, its pack as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) id: BlobId,
    pub(super) kind: BlobKind,
    pub(super) pack: u32,
    pub(super) offset: u32,
    pub(super) shape: Shape,
}

fn kind_bit(kind: BlobKind) -> u32 {
    match kind {
        BlobKind::Data => 0,
        BlobKind::Tree => TREE_BIT,
    }
}

impl Record {
    pub(super) fn to_bytes(self) -> Bytes {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..32].copy_from_slice(&self.id.0);
        bytes[32..36].copy_from_slice(&(kind_bit(self.kind) | self.pack).to_be_bytes());
        bytes[36..40].copy_from_slice(&self.offset.to_be_bytes());
        bytes[40..44].copy_from_slice(&self.shape.length.to_be_bytes());
        bytes[44..].copy_from_slice(&self.shape.uncompressed_length.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &Bytes) -> Self {
        let number = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut id = [0; 32];
        id.copy_from_slice(&bytes[..32]);
        let kind = if number(32) & TREE_BIT == 0 { BlobKind::Data } else { BlobKind::Tree };
        Self {
            id: BlobId(id),
            kind,
            pack: number(32) & !TREE_BIT,
            offset: number(36),
            shape: Shape { length: number(40), uncompressed_length: number(44) },
        }
    }
}

/// What a record is looked up by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sought {
    pub(super) kind: BlobKind,
    pub(super) id: BlobId,
}

impl Sought {
    /// No record of the blob sorts before this.
    pub(super) fn first(&self) -> Bytes {
        let shape = Shape { length: 0, uncompressed_length: 0 };
        Record { id: self.id, kind: self.kind, pack: 0, offset: 0, shape }.to_bytes()
    }

    /// Whether the record is one of the blob. All of them stand together.
    pub(super) fn is_of(&self, bytes: &Bytes) -> bool {
        bytes[..32] == self.id.0 && (bytes[32] >> 7 != 0) == (self.kind == BlobKind::Tree)
    }
}

/// The first eight bytes of a record's id.
fn prefix(bytes: &Bytes) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *bytes;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[derive(Debug)]
enum Storage {
    Memory(Vec<Bytes>),
    File {
        file: File,
        /// The name under which the file is kept, if it is.
        number: Option<u64>,
    },
}

/// Sorted records.
#[derive(Debug)]
pub(super) struct Segment {
    storage: Storage,
    records: usize,
    /// The prefix of each block's first record.
    fence: Vec<u64>,
    /// SHA-256 of a file's bytes; of no meaning in memory.
    checksum: [u8; 32],
}

impl Segment {
    /// A segment of sorted records.
    pub(super) fn in_memory(records: Vec<Bytes>) -> Self {
        let fence = records.iter().step_by(BLOCK_RECORDS).map(prefix).collect();
        let count = records.len();
        Self { storage: Storage::Memory(records), records: count, fence, checksum: [0; 32] }
    }

    /// Reads a file of records once. `None` when it is not the one with this checksum.
    pub(super) fn open(
        file: File,
        number: u64,
        records: usize,
        checksum: [u8; 32],
    ) -> io::Result<Option<Self>> {
        if file.metadata()?.len() != (records as u64).saturating_mul(RECORD_BYTES as u64) {
            return Ok(None);
        }
        let storage = Storage::File { file, number: Some(number) };
        let mut segment = Self { storage, records, fence: Vec::new(), checksum };
        let mut cursor = Cursor::new(&segment);
        let mut fence = Vec::with_capacity(records.div_ceil(BLOCK_RECORDS));
        while let Some(block) = cursor.read_more()? {
            fence.extend(block.iter().step_by(BLOCK_RECORDS).map(prefix));
        }
        if !cursor.ends_soundly() {
            return Ok(None);
        }
        segment.fence = fence;
        Ok(Some(segment))
    }

    pub(super) fn records(&self) -> usize {
        self.records
    }

    pub(super) fn checksum(&self) -> [u8; 32] {
        self.checksum
    }

    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.storage, Storage::Memory(_))
    }

    /// The number of the file in which the segment is kept.
    pub(super) fn kept_as(&self) -> Option<u64> {
        match self.storage {
            Storage::Memory(_) => None,
            Storage::File { number, .. } => number,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let records = if self.is_in_memory() { self.records * RECORD_BYTES } else { 0 };
        records + self.fence.len() * size_of::<u64>()
    }

    /// Shows the blob's records until the visitor has enough.
    pub(super) fn visit(
        &self,
        sought: &Sought,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        let first = sought.first();
        let wanted = prefix(&first);
        // The blob's first record may be in the block before the first one that begins
        // with its prefix.
        let start = self.fence.partition_point(|begin| *begin < wanted).saturating_sub(1);
        let mut buffer = [0; BLOCK_RECORDS * RECORD_BYTES];
        for (block, begin) in self.fence.iter().enumerate().skip(start) {
            if *begin > wanted {
                break;
            }
            let records = self.block(block, &mut buffer)?;
            let from = records.partition_point(|record| *record < first);
            for record in &records[from..] {
                if !sought.is_of(record) {
                    return Ok(ControlFlow::Continue(()));
                }
                if visit(Record::from_bytes(record)).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn block<'a>(&'a self, block: usize, buffer: &'a mut [u8]) -> io::Result<&'a [Bytes]> {
        let from = block * BLOCK_RECORDS;
        let to = (from + BLOCK_RECORDS).min(self.records);
        match &self.storage {
            Storage::Memory(records) => Ok(&records[from..to]),
            Storage::File { file, .. } => {
                let bytes = &mut buffer[..(to - from) * RECORD_BYTES];
                file.read_exact_at(bytes, (from * RECORD_BYTES) as u64)?;
                Ok(bytes.as_chunks().0)
            }
        }
    }
}

/// Reads a segment from its begin to its end.
struct Cursor<'a> {
    segment: &'a Segment,
    /// Records read from the segment so far.
    read: usize,
    buffer: Vec<u8>,
    /// Records taken out of the buffer so far.
    taken: usize,
    hash: Sha256,
}

impl<'a> Cursor<'a> {
    fn new(segment: &'a Segment) -> Self {
        Self { segment, read: 0, buffer: Vec::new(), taken: 0, hash: Sha256::new() }
    }

    /// The next records, `None` at the end.
    fn read_more(&mut self) -> io::Result<Option<&[Bytes]>> {
        let count = CURSOR_RECORDS.min(self.segment.records - self.read);
        if count == 0 {
            return Ok(None);
        }
        self.buffer.resize(count * RECORD_BYTES, 0);
        match &self.segment.storage {
            Storage::Memory(records) => {
                let records = &records[self.read..self.read + count];
                self.buffer.copy_from_slice(records.as_flattened());
            }
            Storage::File { file, .. } => {
                file.read_exact_at(&mut self.buffer, (self.read * RECORD_BYTES) as u64)?;
                self.hash.update(&self.buffer);
            }
        }
        self.read += count;
        self.taken = 0;
        Ok(Some(self.buffer.as_chunks().0))
    }

    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.taken * RECORD_BYTES == self.buffer.len() && self.read_more()?.is_none() {
            return Ok(None);
        }
        let record = self.buffer.as_chunks().0.get(self.taken).copied();
        self.taken += 1;
        Ok(record)
    }

    /// Whether what was read, to the end, is what was once written.
    fn ends_soundly(self) -> bool {
        self.segment.is_in_memory() || self.hash.finalize().as_slice() == self.segment.checksum
    }
}

/// Where a new segment is written.
pub(super) enum Target {
    Memory,
    /// A new file that can be read too; `number` is the name it is kept under, if it is.
    File {
        file: File,
        number: Option<u64>,
    },
}

/// Why a merge came to nothing. Its inputs are as they were.
#[derive(Debug)]
pub(super) enum MergeError {
    /// An input cannot be read or is not what was once written.
    Reading(String),
    Writing(io::Error),
}

/// Merges segments into one, without the records of packs that are not to be kept.
pub(super) fn merge(
    inputs: &[Arc<Segment>],
    keeps: &dyn Fn(u32) -> bool,
    target: Target,
) -> Result<Segment, MergeError> {
    let reading = |error: io::Error| MergeError::Reading(error.to_string());
    let mut writer = Writer::new(target);
    let mut cursors: Vec<_> = inputs.iter().map(|segment| Cursor::new(segment)).collect();
    let mut heads = BinaryHeap::with_capacity(cursors.len());
    for (input, cursor) in cursors.iter_mut().enumerate() {
        heads.extend(cursor.next().map_err(reading)?.map(|record| Reverse((record, input))));
    }
    while let Some(mut head) = heads.peek_mut() {
        let Reverse((record, input)) = *head;
        if keeps(Record::from_bytes(&record).pack) {
            writer.push(&record).map_err(MergeError::Writing)?;
        }
        match cursors[input].next().map_err(reading)? {
            Some(next) => *head = Reverse((next, input)),
            None => {
                std::collections::binary_heap::PeekMut::pop(head);
            }
        }
    }
    if !cursors.into_iter().all(Cursor::ends_soundly) {
        return Err(MergeError::Reading("a file of the index cache has changed".into()));
    }
    writer.finish().map_err(MergeError::Writing)
}

enum Out {
    Memory(Vec<Bytes>),
    File { file: BufWriter<File>, number: Option<u64>, hash: Sha256 },
}

struct Writer {
    out: Out,
    records: usize,
    fence: Vec<u64>,
}

impl Writer {
    fn new(target: Target) -> Self {
        let out = match target {
            Target::Memory => Out::Memory(Vec::new()),
            Target::File { file, number } => {
                let file = BufWriter::with_capacity(CURSOR_RECORDS * RECORD_BYTES, file);
                Out::File { file, number, hash: Sha256::new() }
            }
        };
        Self { out, records: 0, fence: Vec::new() }
    }

    fn push(&mut self, record: &Bytes) -> io::Result<()> {
        if self.records.is_multiple_of(BLOCK_RECORDS) {
            self.fence.push(prefix(record));
        }
        self.records += 1;
        match &mut self.out {
            Out::Memory(records) => {
                records.push(*record);
                Ok(())
            }
            Out::File { file, hash, .. } => {
                hash.update(record);
                file.write_all(record)
            }
        }
    }

    fn finish(self) -> io::Result<Segment> {
        let (storage, checksum) = match self.out {
            Out::Memory(records) => (Storage::Memory(records), [0; 32]),
            Out::File { file, number, hash } => {
                let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                // A file without a name is gone after a crash anyway.
                if number.is_some() {
                    file.sync_data()?;
                }
                (Storage::File { file, number }, hash.finalize().into())
            }
        };
        Ok(Segment { storage, records: self.records, fence: self.fence, checksum })
    }
}

/// Which segments to merge, by their sizes, so that each one left is more than twice as
/// large as all smaller ones together: there are few to look into, and a record is
/// rewritten only when its segment grows by half. The smallest first; `None` when all is
/// well.
pub(super) fn choose_merge(sizes: &[usize]) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|at| sizes[*at]);
    let (mut sum, mut chosen) = (0_usize, 0);
    for (rank, at) in order.iter().enumerate() {
        if rank > 0 && sizes[*at] / 2 <= sum {
            chosen = rank + 1;
        }
        sum = sum.saturating_add(sizes[*at]);
    }
    order.truncate(chosen);
    (chosen > 1).then_some(order)
}
