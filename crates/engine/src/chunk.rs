//! How a volume is cut, and how its chunks become a list of blobs.

use std::{iter, sync::OnceLock};

use crate::{
    id::BlobId,
    list::{BlobIds, BlobList, Entry},
};

/// The length of a volume's chunks; all but the last have it. A chain of backups
/// keeps the size it began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChunkSize {
    /// 512 KiB, up to 512 GiB.
    Kib512,
    /// 1 MiB, up to 1 TiB.
    Mib1,
    /// 2 MiB, up to 2 TiB.
    Mib2,
    /// 4 MiB, above.
    Mib4,
}

impl ChunkSize {
    /// All sizes, smallest first.
    pub const ALL: [Self; 4] = [Self::Kib512, Self::Mib1, Self::Mib2, Self::Mib4];

    /// The size a new chain of a volume begins with. Scattered changes cost least with
    /// small chunks; large volumes need large ones to keep their lists short.
    pub fn for_volume(size_bytes: u64) -> Self {
        const GIB: u64 = 1 << 30;
        match size_bytes {
            0..=549_755_813_888 => Self::Kib512,
            size if size <= 1024 * GIB => Self::Mib1,
            size if size <= 2048 * GIB => Self::Mib2,
            _ => Self::Mib4,
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Kib512 => 512 << 10,
            Self::Mib1 => 1 << 20,
            Self::Mib2 => 2 << 20,
            Self::Mib4 => 4 << 20,
        }
    }
}

/// The length of the blob that zeroes are expressed by, whatever the chunk size: where
/// stock restic meets it, a restored file gets holes.
const ZERO_BLOCK_BYTES: u32 = 512 << 10;
static ZERO_BLOCK: [u8; ZERO_BLOCK_BYTES as usize] = [0; ZERO_BLOCK_BYTES as usize];

/// Whether all bytes are zero. Much cheaper than a hash.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZERO_BLOCK.len()).all(|part| part == &ZERO_BLOCK[..part.len()])
}

/// The id of the zero block, which also stands for any all-zero chunk.
pub(crate) fn zero_block_id() -> BlobId {
    static ID: OnceLock<BlobId> = OnceLock::new();
    *ID.get_or_init(|| BlobId::of(&ZERO_BLOCK))
}

/// The blobs that express zeroes in a volume: the zero block, and what is left of a
/// volume's end that is no multiple of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zeroes {
    remainder_bytes: u32,
    remainder: BlobId,
}

impl Zeroes {
    pub(crate) fn of_volume(size_bytes: u64) -> Self {
        let rest = size_bytes % u64::from(ZERO_BLOCK_BYTES);
        let remainder_bytes = u32::try_from(rest).unwrap_or(0);
        let remainder = BlobId::of(&ZERO_BLOCK[..remainder_bytes as usize]);
        Self { remainder_bytes, remainder }
    }

    /// How many zeroes a blob stands for; `None` for blobs of data.
    pub(crate) fn len_of(self, id: BlobId) -> Option<u32> {
        if id == zero_block_id() {
            Some(ZERO_BLOCK_BYTES)
        } else {
            (self.remainder_bytes > 0 && id == self.remainder).then_some(self.remainder_bytes)
        }
    }

    /// The blobs of an all-zero chunk.
    fn expand(self, len: u32) -> impl Iterator<Item = BlobId> + Clone {
        let blocks = (len / ZERO_BLOCK_BYTES) as usize;
        let has_remainder = !len.is_multiple_of(ZERO_BLOCK_BYTES);
        iter::repeat_n(zero_block_id(), blocks).chain(has_remainder.then_some(self.remainder))
    }

    /// The plain bytes of the blobs above.
    pub(crate) fn plain(self, id: BlobId) -> Option<&'static [u8]> {
        self.len_of(id).map(|len| &ZERO_BLOCK[..len as usize])
    }
}

/// A volume of a size, cut into chunks of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) size_bytes: u64,
    pub(crate) chunk_size: ChunkSize,
}

impl Cut {
    pub(crate) fn chunks(self) -> u64 {
        self.size_bytes.div_ceil(u64::from(self.chunk_size.bytes()))
    }

    pub(crate) fn offset(self, chunk: u64) -> u64 {
        chunk * u64::from(self.chunk_size.bytes())
    }

    /// The chunk's length; 0 beyond the volume's end.
    pub(crate) fn len(self, chunk: u64) -> u32 {
        let rest = self.size_bytes.saturating_sub(self.offset(chunk));
        u32::try_from(rest)
            .map_or(self.chunk_size.bytes(), |rest| rest.min(self.chunk_size.bytes()))
    }

    /// Whether a content list is one of this cut. Blobs whose length is not known are
    /// taken to fit. Stretches of zeroes are counted, not walked.
    pub(crate) fn fits<E>(
        self,
        content: &BlobList,
        len_of: impl Fn(BlobId) -> Result<Option<u32>, E>,
    ) -> Result<bool, E> {
        let zeroes = Zeroes::of_volume(self.size_bytes);
        let block = u64::from(ZERO_BLOCK_BYTES);
        let mut position: u64 = 0;
        for entry in content.entries() {
            let chunk_bytes = u64::from(self.chunk_size.bytes());
            let chunk = position / chunk_bytes;
            let is_chunk_start = position.is_multiple_of(chunk_bytes);
            position += match entry {
                Entry::Zeroes(_) if !is_chunk_start => return Ok(false),
                Entry::Zeroes(count) => u64::from(count) * block,
                // Zeroes ended within the last chunk: what is left of it must follow.
                Entry::Data(id) if !is_chunk_start => {
                    let rest = self.size_bytes.saturating_sub(position);
                    if rest == 0 || rest >= block || zeroes.len_of(id).map(u64::from) != Some(rest)
                    {
                        return Ok(false);
                    }
                    rest
                }
                Entry::Data(id) => {
                    let len = self.len(chunk);
                    if len == 0 || len_of(id)?.is_some_and(|known| known != len) {
                        return Ok(false);
                    }
                    u64::from(len)
                }
            };
            if position > self.size_bytes {
                return Ok(false);
            }
        }
        Ok(position == self.size_bytes)
    }
}

/// The chunks of a content list that fits its cut, in order. All-zero chunks are the
/// zero block, whatever their length.
#[derive(Clone, Debug)]
pub(crate) struct ChunkIds<'a> {
    cut: Cut,
    zeroes: Zeroes,
    content: BlobIds<'a>,
    chunk: u64,
}

impl<'a> ChunkIds<'a> {
    pub(crate) fn new(cut: Cut, content: BlobIds<'a>) -> Self {
        Self { cut, zeroes: Zeroes::of_volume(cut.size_bytes), content, chunk: 0 }
    }
}

impl Iterator for ChunkIds<'_> {
    type Item = BlobId;

    fn next(&mut self) -> Option<BlobId> {
        let first = self.content.next()?;
        let len = self.cut.len(self.chunk);
        let is_zero = first == zero_block_id()
            || len < ZERO_BLOCK_BYTES && self.zeroes.len_of(first) == Some(len);
        let more = if is_zero { len.div_ceil(ZERO_BLOCK_BYTES) - 1 } else { 0 };
        if !self.content.skip_blobs(more) {
            return None;
        }
        self.chunk += 1;
        Some(if is_zero { zero_block_id() } else { first })
    }
}

/// What a chunk was before this backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) id: BlobId,
    /// Whether the parent says so; without a parent every chunk was zero.
    pub(crate) from_parent: bool,
}

/// The chunks of a new cut as the parent had them.
#[derive(Clone, Debug)]
pub(crate) struct BaseIds<'a> {
    cut: Cut,
    parent: Option<ChunkIds<'a>>,
    chunk: u64,
}

impl<'a> BaseIds<'a> {
    /// A parent that is cut otherwise says nothing about the chunks.
    pub(crate) fn new(cut: Cut, parent: Option<(Cut, BlobIds<'a>)>) -> Self {
        let parent = parent.filter(|(parent_cut, _)| parent_cut.chunk_size == cut.chunk_size);
        let parent = parent.map(|(parent_cut, content)| ChunkIds::new(parent_cut, content));
        Self { cut, parent, chunk: 0 }
    }
}

impl Iterator for BaseIds<'_> {
    type Item = Base;

    fn next(&mut self) -> Option<Base> {
        let chunk = self.chunk;
        if chunk == self.cut.chunks() {
            return None;
        }
        self.chunk += 1;
        // The last chunk of a volume that has grown or shrunk is another chunk now.
        let len_in_parent = self.parent.as_ref().map(|parent| parent.cut.len(chunk));
        let id = self.parent.as_mut().and_then(Iterator::next);
        match id.filter(|_| len_in_parent == Some(self.cut.len(chunk))) {
            Some(id) => Some(Base { id, from_parent: true }),
            None => Some(Base { id: zero_block_id(), from_parent: false }),
        }
    }
}

/// A chunk whose blob is not the one its [`Base`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Change {
    pub(crate) chunk: u32,
    pub(crate) id: BlobId,
}

/// The content list of a volume: what was, overlaid by what changed. `changes` are
/// sorted. Neither list is copied, so memory grows with the change.
pub(crate) fn content<'a>(
    cut: Cut,
    base: BaseIds<'a>,
    changes: &'a [Change],
) -> impl Iterator<Item = BlobId> + Clone + 'a {
    let zeroes = Zeroes::of_volume(cut.size_bytes);
    let mut rest = changes;
    (0..).zip(base).flat_map(move |(chunk, base)| {
        let id = match rest.split_first() {
            Some((change, tail)) if u64::from(change.chunk) == chunk => {
                rest = tail;
                change.id
            }
            Some(_) | None => base.id,
        };
        // An all-zero chunk is expanded; another one is a single blob.
        let zero_len = if id == zero_block_id() { cut.len(chunk) } else { 0 };
        let data = (zero_len == 0).then_some(id);
        data.into_iter().chain(zeroes.expand(zero_len))
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn chunk_sizes_follow_the_volume_size() {
        for (size, chunk_size) in [
            (0, ChunkSize::Kib512),
            (512 * GIB, ChunkSize::Kib512),
            (512 * GIB + 1, ChunkSize::Mib1),
            (1024 * GIB, ChunkSize::Mib1),
            (2048 * GIB, ChunkSize::Mib2),
            (2048 * GIB + 1, ChunkSize::Mib4),
            (u64::MAX, ChunkSize::Mib4),
        ] {
            assert_eq!(ChunkSize::for_volume(size), chunk_size, "{size}");
        }
    }

    fn data_id(number: u64) -> BlobId {
        BlobId::of(&number.to_le_bytes())
    }

    fn a_cut() -> impl Strategy<Value = Cut> {
        (0..40_u64 << 18, prop::sample::select(&ChunkSize::ALL[..]))
            .prop_map(|(size_bytes, chunk_size)| Cut { size_bytes, chunk_size })
    }

    proptest! {
        #[test]
        fn a_content_list_gives_its_chunks_back(cut in a_cut(), zero in any::<u64>()) {
            let chunks: Vec<_> = (0..cut.chunks())
                .map(|n| if zero >> (n % 64) & 1 == 1 { zero_block_id() } else { data_id(n) })
                .collect();
            let changes: Vec<_> = (0..).zip(&chunks)
                .map(|(chunk, id)| Change { chunk, id: *id })
                .filter(|change| change.id != zero_block_id())
                .collect();
            let list: Vec<_> = content(cut, BaseIds::new(cut, None), &changes).collect();
            let zeroes = Zeroes::of_volume(cut.size_bytes);
            let known = |id| Ok::<_, Infallible>(zeroes.len_of(id));
            let list: BlobList = list.into_iter().collect();
            prop_assert_eq!(cut.fits(&list, known), Ok(true));
            prop_assert_eq!(ChunkIds::new(cut, list.iter()).collect::<Vec<_>>(), chunks.clone());
            // As its own parent it stays what it is.
            let again: BlobList =
                content(cut, BaseIds::new(cut, Some((cut, list.iter()))), &[]).collect();
            prop_assert_eq!(&again, &list);
            if !list.is_empty() {
                let shorter = list.iter().take(usize::try_from(list.len()).unwrap() - 1).collect();
                prop_assert_eq!(cut.fits(&shorter, known), Ok(false));
            }
        }
    }

    #[test]
    fn a_changed_size_makes_the_last_chunk_another_one() {
        let cut = |size_bytes| Cut { size_bytes, chunk_size: ChunkSize::Kib512 };
        let (old, new) = (cut(700 << 10), cut(2 << 20));
        let content = [data_id(0), data_id(1)];
        let base: Vec<_> = BaseIds::new(new, Some((old, content.as_slice().into()))).collect();
        assert_eq!(base[0], Base { id: data_id(0), from_parent: true });
        assert_eq!(base[1..], [Base { id: zero_block_id(), from_parent: false }; 3]);
    }
}
