//! Which chunks of a volume must be read.
//!
//! Invariant: a chunk is kept unread only if the source calls all of it unchanged, the
//! parent has the same chunk, and the repository has its blob. Some of the kept ones
//! are read all the same; a difference shows that the source's word is worth nothing.

use std::collections::BinaryHeap;

use crate::{
    blob::BlobKind,
    chunk::{Base, BaseIds, Change, Cut, zero_block_id},
    error::EngineError,
    fingerprint::{Fingerprint, Fingerprints},
    id::{BlobId, sha256},
    index::Index,
    source::{Extent, ExtentKind, Source, SourceError},
};

/// One of so many kept chunks is sampled,
const SAMPLE_ONE_IN: u64 = 1000;
/// and at least so many of a volume.
pub(crate) const SAMPLES_MIN: usize = 10;

/// A chunk to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) chunk: u32,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// The blob it had before.
    pub(crate) base: BlobId,
    /// The fingerprint it had before, as far as the parent tells.
    pub(crate) fingerprint: Option<Fingerprint>,
    /// Whether the blob it had before may be kept if the fingerprint is the same.
    pub(crate) is_stored: bool,
    /// Whether it is hashed even though its fingerprint is the same.
    pub(crate) is_sampled: bool,
    pub(crate) purpose: Purpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be stored.
    Store,
    /// Kept unread, and compared with what is kept.
    Sample,
}

/// What became of chunks that were not read.
#[derive(Debug, Default)]
pub(crate) struct Skipped {
    pub(crate) changes: Vec<Change>,
    /// Bytes of chunks that are not all zero.
    pub(crate) data_bytes: u64,
}

/// Walks the chunks of a volume in order and hands out those that must be read.
pub(crate) struct Planner<'a> {
    source: &'a dyn Source,
    index: &'a Index,
    cut: Cut,
    base: BaseIds<'a>,
    fingerprints: Option<&'a Fingerprints>,
    /// Chunks of the parent so far that are not all zero.
    number_in_parent: usize,
    chunk: u64,
    extent: Option<Extent>,
    sampler: Sampler,
    skipped: Skipped,
}

impl<'a> Planner<'a> {
    /// `seed` decides which chunks are sampled.
    pub(crate) fn new(
        source: &'a dyn Source,
        index: &'a Index,
        cut: Cut,
        base: BaseIds<'a>,
        fingerprints: Option<&'a Fingerprints>,
        seed: &str,
    ) -> Self {
        Self {
            source,
            index,
            cut,
            base,
            fingerprints,
            number_in_parent: 0,
            chunk: 0,
            extent: None,
            sampler: Sampler::new(seed),
            skipped: Skipped::default(),
        }
    }

    /// The next chunk to read, and how many bytes were passed over to get there.
    pub(crate) fn next(&mut self) -> Result<(Option<Task>, u64), EngineError> {
        let mut passed_bytes = 0;
        while let Some(base) = self.base.next() {
            let number = self.chunk;
            self.chunk += 1;
            let task = Task {
                chunk: u32::try_from(number)
                    .map_err(|_| EngineError::VolumeTooLarge { size_bytes: self.cut.size_bytes })?,
                offset: self.cut.offset(number),
                len: self.cut.len(number),
                base: base.id,
                fingerprint: self.fingerprint_of(base),
                is_stored: false,
                is_sampled: self.sampler.is_due(number),
                purpose: Purpose::Store,
            };
            match self.kind_of(task.offset, u64::from(task.len))? {
                ExtentKind::Zero => self.skip_zero(&task),
                ExtentKind::Unchanged if base.from_parent && self.is_stored(base.id)? => {
                    if self.keep(&task) {
                        return Ok((Some(Task { purpose: Purpose::Sample, ..task }), passed_bytes));
                    }
                }
                ExtentKind::Unchanged | ExtentKind::Data => {
                    let is_stored = task.fingerprint.is_some() && self.is_stored(base.id)?;
                    return Ok((Some(Task { is_stored, ..task }), passed_bytes));
                }
            }
            passed_bytes += u64::from(task.len);
        }
        Ok((self.sampler.pop_missing(self.cut), passed_bytes))
    }

    pub(crate) fn into_skipped(self) -> Skipped {
        self.skipped
    }

    fn fingerprint_of(&mut self, base: Base) -> Option<Fingerprint> {
        if !base.from_parent || base.id == zero_block_id() {
            return None;
        }
        let number = self.number_in_parent;
        self.number_in_parent += 1;
        self.fingerprints?.get(number)
    }

    fn is_stored(&self, id: BlobId) -> Result<bool, EngineError> {
        Ok(id == zero_block_id() || self.index.contains(BlobKind::Data, id)?)
    }

    fn skip_zero(&mut self, task: &Task) {
        if task.base != zero_block_id() {
            self.skipped.changes.push(Change { chunk: task.chunk, id: zero_block_id() });
        }
    }

    /// Takes the chunk from the parent; says whether it is to be sampled at once.
    fn keep(&mut self, task: &Task) -> bool {
        if task.base != zero_block_id() {
            self.skipped.data_bytes += u64::from(task.len);
        }
        self.sampler.is_chosen(task)
    }

    /// What is known about a whole chunk: `Data` unless one kind of extent covers it.
    fn kind_of(&mut self, offset: u64, len: u64) -> Result<ExtentKind, EngineError> {
        let end = offset + len;
        let (first, mut at) = self.extent_at(offset)?;
        while at < end && first != ExtentKind::Data {
            let (kind, extent_end) = self.extent_at(at)?;
            if kind != first {
                return Ok(ExtentKind::Data);
            }
            at = extent_end;
        }
        Ok(first)
    }

    /// The kind of the extent that holds `offset`, and its end.
    fn extent_at(&mut self, offset: u64) -> Result<(ExtentKind, u64), EngineError> {
        let end = |extent: &Extent| extent.offset.saturating_add(extent.len);
        let holds = |extent: &Extent| extent.offset <= offset && offset < end(extent);
        let extent = match self.extent.filter(holds) {
            Some(extent) => extent,
            None => self.source.next_extent(offset)?,
        };
        if !holds(&extent) {
            return Err(EngineError::Source(SourceError {
                retryable: false,
                text: format!("the source gave {extent:?} as the extent that holds byte {offset}"),
            }));
        }
        self.extent = Some(extent);
        Ok((extent.kind, end(&extent)))
    }
}

/// Chooses which kept chunks are read. Depends on the seed and the chunk alone, so a
/// repeated run reads the same ones.
struct Sampler {
    seed: u64,
    chosen: usize,
    /// Of the kept chunks not chosen, those with the least scores.
    least: BinaryHeap<(u64, u32, BlobId)>,
}

impl Sampler {
    fn new(seed: &str) -> Self {
        let hash = sha256(seed.as_bytes());
        let seed = hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self { seed, chosen: 0, least: BinaryHeap::new() }
    }

    fn score(&self, chunk: u64) -> u64 {
        mix(self.seed ^ chunk)
    }

    /// Whether the chunk is one of those sampled in any case.
    fn is_due(&self, chunk: u64) -> bool {
        self.score(chunk) < u64::MAX / SAMPLE_ONE_IN
    }

    fn is_chosen(&mut self, task: &Task) -> bool {
        let score = self.score(u64::from(task.chunk));
        if task.is_sampled {
            self.chosen += 1;
            return true;
        }
        self.least.push((score, task.chunk, task.base));
        if self.least.len() > SAMPLES_MIN {
            self.least.pop();
        }
        false
    }

    /// At the volume's end: one more sample, while there were fewer than the minimum.
    fn pop_missing(&mut self, cut: Cut) -> Option<Task> {
        while self.chosen + self.least.len() > SAMPLES_MIN && self.least.pop().is_some() {}
        let (_, chunk, base) = self.least.pop()?;
        self.chosen += 1;
        let number = u64::from(chunk);
        let (offset, len) = (cut.offset(number), cut.len(number));
        Some(Task {
            chunk,
            offset,
            len,
            base,
            fingerprint: None,
            is_stored: true,
            is_sampled: true,
            purpose: Purpose::Sample,
        })
    }
}

/// Spreads neighbouring numbers over the whole range (the finaliser of `SplitMix64`).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chunk::{ChunkSize, content},
        id::{IndexId, PackId},
        pack::{PackEntry, PackedBlob},
    };

    const CHUNK: u64 = 512 << 10;

    /// Extents given as (end, kind); the bytes are never asked for.
    struct Script(u64, Vec<(u64, ExtentKind)>);

    impl Source for Script {
        fn size_bytes(&self) -> u64 {
            self.0
        }

        fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
            let (end, kind) = self.1.iter().find(|(end, _)| *end > offset).copied().unwrap();
            Ok(Extent { offset, len: end - offset, kind })
        }

        fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), SourceError> {
            unreachable!("the planner reads nothing")
        }
    }

    fn cut(chunks: u64) -> Cut {
        Cut { size_bytes: chunks * CHUNK, chunk_size: ChunkSize::Kib512 }
    }

    fn id(number: u64) -> BlobId {
        BlobId::of(&number.to_le_bytes())
    }

    fn index_of(ids: &[BlobId]) -> Index {
        let shape = crate::blob::Shape { length: 100, uncompressed_length: 0 };
        let packed = |id: &BlobId| PackedBlob { id: *id, kind: BlobKind::Data, offset: 0, shape };
        let blobs = ids.iter().map(packed).collect();
        let index = Index::default();
        index.add_durable(IndexId([0; 32]), &[PackEntry { id: PackId([0; 32]), blobs }]).unwrap();
        index
    }

    fn tasks(planner: &mut Planner<'_>) -> Vec<(u32, Purpose)> {
        std::iter::from_fn(|| planner.next().unwrap().0)
            .map(|task| (task.chunk, task.purpose))
            .collect()
    }

    #[test]
    fn chunks_partly_covered_by_a_change_are_read_whole() {
        let parent: Vec<_> = (0..4).map(id).collect();
        let index = index_of(&parent);
        let source = Script(
            4 * CHUNK,
            vec![
                (CHUNK + 10, ExtentKind::Unchanged),
                (CHUNK + 20, ExtentKind::Data),
                (3 * CHUNK - 1, ExtentKind::Unchanged),
                (4 * CHUNK, ExtentKind::Zero),
            ],
        );
        let base = BaseIds::new(cut(4), Some((cut(4), parent.as_slice().into())));
        let mut planner = Planner::new(&source, &index, cut(4), base.clone(), None, "s");
        let tasks = tasks(&mut planner);
        assert_eq!(tasks, [(1, Purpose::Store), (2, Purpose::Store), (0, Purpose::Sample)]);
        let skipped = planner.into_skipped();
        assert_eq!(skipped.changes, [Change { chunk: 3, id: zero_block_id() }]);
        assert_eq!(skipped.data_bytes, CHUNK);
        let list: Vec<_> = content(cut(4), base, &skipped.changes).collect();
        assert_eq!(list, [id(0), id(1), id(2), zero_block_id()]);
    }

    #[test]
    fn unchanged_chunks_whose_blob_is_missing_or_without_parent_are_read() {
        let parent: Vec<_> = (0..3).map(id).collect();
        let index = index_of(&parent[..1]);
        let source = Script(4 * CHUNK, vec![(4 * CHUNK, ExtentKind::Unchanged)]);
        let base = BaseIds::new(cut(4), Some((cut(3), parent.as_slice().into())));
        let mut planner = Planner::new(&source, &index, cut(4), base, None, "s");
        let read = [(1, Purpose::Store), (2, Purpose::Store), (3, Purpose::Store)];
        assert_eq!(tasks(&mut planner)[..3], read);
    }

    #[test]
    fn only_a_stored_blob_may_be_kept_by_its_fingerprint() {
        let parent = [id(0), zero_block_id(), id(2), id(3)];
        let index = index_of(&parent[..1]);
        let source = Script(5 * CHUNK, vec![(5 * CHUNK, ExtentKind::Data)]);
        let base = BaseIds::new(cut(5), Some((cut(4), parent.as_slice().into())));
        let bytes = [10, 12, 0].map(|byte| [byte; 10]).concat();
        let fingerprints = Fingerprints::from_bytes(bytes);
        let mut planner = Planner::new(&source, &index, cut(5), base, Some(&fingerprints), "s");
        let tasks = std::iter::from_fn(|| planner.next().unwrap().0);
        let known: Vec<_> = tasks.map(|task| (task.fingerprint, task.is_stored)).collect();
        let stored = |number| fingerprints.get(number);
        let none = (None, false);
        assert_eq!(known, [(stored(0), true), none, (stored(1), false), none, none]);
        assert!(stored(0).is_some() && stored(1).is_some());
    }

    #[test]
    fn at_least_ten_and_about_one_in_a_thousand_kept_chunks_are_sampled_each_once() {
        for (chunks, range) in [(3, 3..=3), (500, 10..=10), (100_000, 60..=140)] {
            let parent: Vec<_> = (0..chunks).map(id).collect();
            let index = index_of(&parent);
            let source = Script(chunks * CHUNK, vec![(chunks * CHUNK, ExtentKind::Unchanged)]);
            let base = BaseIds::new(cut(chunks), Some((cut(chunks), parent.as_slice().into())));
            let sample = |seed| {
                let mut planner =
                    Planner::new(&source, &index, cut(chunks), base.clone(), None, seed);
                tasks(&mut planner)
            };
            let mut sampled = sample("one");
            assert!(range.contains(&sampled.len()), "{chunks}: {}", sampled.len());
            assert_eq!(sample("one"), sampled);
            assert!(chunks == 3 || sample("two") != sampled);
            sampled.sort_by_key(|(chunk, _)| *chunk);
            sampled.dedup();
            assert!(range.contains(&sampled.len()));
        }
    }

    #[test]
    fn an_extent_that_does_not_hold_the_offset_is_an_error() {
        struct Liar;
        impl Source for Liar {
            fn size_bytes(&self) -> u64 {
                CHUNK
            }
            fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
                Ok(Extent { offset, len: 0, kind: ExtentKind::Zero })
            }
            fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), SourceError> {
                Ok(())
            }
        }
        let index = Index::default();
        let mut planner =
            Planner::new(&Liar, &index, cut(1), BaseIds::new(cut(1), None), None, "s");
        assert!(matches!(planner.next(), Err(EngineError::Source(_))));
    }
}
