//! What a restore reads and writes, in which order.
//!
//! Invariant: the same volume in the same index has the same layout, so that its
//! numbers mean the same after a restart.

use std::{collections::HashMap, ops::Range};

use sha2::{Digest, Sha256};

use crate::{
    blob::{BlobKind, Shape},
    chunk::{Zeroes, zero_block_id},
    error::EngineError,
    id::{BlobId, PackId},
    list::Entry,
    read::{VolumeView, blob_name},
    repository::{Indexed, Repository},
};

/// Blobs this near to each other in a pack are read at once.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// No more than this is read at once, save for a single larger blob.
const RANGE_BYTES_MAX: u64 = 4 << 20;
/// Zeroes are written in pieces, so that cancelling is heard.
const ZEROES_BYTES_MAX: u64 = 256 << 20;

/// What a restore does: first `zeroes`, then `ranges` in pack order.
#[derive(Default)]
pub(super) struct Layout {
    /// Offsets and lengths of zeroes in the volume.
    pub(super) zeroes: Vec<(u64, u64)>,
    pub(super) packs: Vec<PackId>,
    /// In pack order.
    pub(super) pieces: Vec<Piece>,
    /// Neighbours in `pieces` that are read at once.
    pub(super) ranges: Vec<Range<usize>>,
}

/// A blob in a pack and one place it goes to. 32 bytes: a volume has millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where in the volume.
    pub(super) position: u64,
    pub(super) offset: u32,
    pub(super) shape: Shape,
    /// Index into `Layout::packs`.
    pub(super) pack: u32,
    /// Index into the volume's list of data.
    pub(super) data: u32,
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.shape.length)
    }
}

impl Layout {
    fn add_zeroes(&mut self, offset: u64, len: u64) {
        let mut done = 0;
        match self.zeroes.last_mut() {
            Some((before, so_far)) if *before + *so_far == offset => {
                done = len.min(ZEROES_BYTES_MAX.saturating_sub(*so_far));
                *so_far += done;
            }
            Some(_) | None => {}
        }
        while done < len {
            let piece = ZEROES_BYTES_MAX.min(len - done);
            self.zeroes.push((offset + done, piece));
            done += piece;
        }
    }

    /// Number of tasks.
    pub(super) fn tasks(&self) -> usize {
        self.zeroes.len() + self.ranges.len()
    }

    /// Bytes of the volume that a task writes.
    pub(super) fn bytes_of(&self, task: usize) -> u64 {
        match task.checked_sub(self.zeroes.len()) {
            None => self.zeroes.get(task).map_or(0, |(_, len)| *len),
            Some(range) => {
                let pieces =
                    self.ranges.get(range).and_then(|range| self.pieces.get(range.clone()));
                let bytes = |piece: &Piece| u64::from(piece.shape.plain_bytes());
                pieces.unwrap_or_default().iter().map(bytes).sum()
            }
        }
    }

    /// Tells layouts apart: a number of tasks done means something only in the same one.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hash = Sha256::new();
        for (offset, len) in &self.zeroes {
            hash.update(offset.to_le_bytes());
            hash.update(len.to_le_bytes());
        }
        for range in &self.ranges {
            hash.update((range.end as u64).to_le_bytes());
        }
        for piece in &self.pieces {
            let pack = self.packs.get(piece.pack as usize).map_or(&[0; 32], PackId::as_bytes);
            hash.update(pack);
            hash.update(piece.offset.to_le_bytes());
            hash.update(piece.shape.length.to_le_bytes());
            hash.update(piece.position.to_le_bytes());
        }
        let hash: [u8; 32] = hash.finalize().into();
        hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

impl Repository<Indexed> {
    pub(super) fn lay_out(&self, volume: &VolumeView) -> Result<Layout, EngineError> {
        let mut layout = Layout::default();
        let mut numbers = HashMap::new();
        let zeroes = Zeroes::of_volume(volume.size_bytes());
        let block = zeroes.len_of(zero_block_id()).map_or(0, u64::from);
        let too_many = |_| EngineError::bug("a volume of more than 2^32 blobs");
        layout.pieces.reserve_exact(volume.blobs().data().len());
        let mut position: u64 = 0;
        let mut data = 0;
        for entry in volume.blobs().entries() {
            let id = match entry {
                Entry::Zeroes(count) => {
                    let len = u64::from(count) * block;
                    layout.add_zeroes(position, len);
                    position = position.saturating_add(len);
                    continue;
                }
                Entry::Data(id) => id,
            };
            data += 1;
            if let Some(len) = zeroes.len_of(id).map(u64::from) {
                layout.add_zeroes(position, len);
                position = position.saturating_add(len);
                continue;
            }
            let found = self.state.index.find(BlobKind::Data, id)?.ok_or_else(|| missing(id))?;
            let pack = *numbers.entry(found.pack).or_insert_with(|| {
                layout.packs.push(found.pack);
                layout.packs.len() - 1
            });
            layout.pieces.push(Piece {
                position,
                offset: found.offset,
                shape: found.shape,
                pack: u32::try_from(pack).map_err(too_many)?,
                data: u32::try_from(data - 1_usize).map_err(too_many)?,
            });
            position = position.saturating_add(u64::from(found.shape.plain_bytes()));
        }
        require_size(volume, position)?;
        layout.pieces.shrink_to_fit();
        layout.pieces.sort_unstable_by_key(|piece| (piece.pack, piece.offset, piece.position));
        layout.ranges = ranges(&layout.pieces);
        Ok(layout)
    }
}

/// The blobs of a volume must fill it exactly.
pub(super) fn require_size(volume: &VolumeView, listed_bytes: u64) -> Result<(), EngineError> {
    if listed_bytes == volume.size_bytes() {
        return Ok(());
    }
    let size = volume.size_bytes();
    let what = format!("a volume of {size} bytes lists blobs of {listed_bytes} bytes");
    Err(EngineError::damaged(format!("tree {}", volume.subtree()), what))
}

pub(super) fn missing(id: BlobId) -> EngineError {
    EngineError::damaged(blob_name(BlobKind::Data, id), "missing")
}

/// Cuts pieces in pack order into ranges that are read at once.
fn ranges(pieces: &[Piece]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut at = (0, 0, 0);
    for (number, piece) in pieces.iter().enumerate() {
        let (pack, start, end) = at;
        let is_near = u64::from(piece.offset) <= end + GAP_BYTES_MAX;
        let is_short = piece.end().saturating_sub(start) <= RANGE_BYTES_MAX;
        // Places of one blob stay together, or it would be read for each of them.
        let is_same = number > 0 && pieces[number - 1].offset == piece.offset;
        match ranges.last_mut() {
            Some(range) if pack == piece.pack && (is_same || is_near && is_short) => {
                range.end = number + 1;
                at = (pack, start, end.max(piece.end()));
            }
            Some(_) | None => {
                ranges.push(number..number + 1);
                at = (piece.pack, u64::from(piece.offset), piece.end());
            }
        }
    }
    ranges
}
