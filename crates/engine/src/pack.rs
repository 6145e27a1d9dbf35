//! Packs: sealed blobs one after the other, then a sealed header that lists them, then
//! the header's length.
//!
//! Invariant: data and tree blobs never share a pack; restic's prune relies on it.

use sha2::{Digest, Sha256};

use crate::{
    blob::{BlobKind, Encoder, Shape},
    crypto::{Key, SEAL_BYTES},
    error::EngineError,
    id::{BlobId, PackId},
    pages::PageBuffer,
};

/// Blobs in a pack take no more than this, save for a single larger one. Readers hold
/// ranges of a pack in memory and a lost pack is lost work; stores dislike small objects.
pub(crate) const PACK_BYTES: usize = 16 << 20;

/// A blob's place in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedBlob {
    pub(crate) id: BlobId,
    pub(crate) kind: BlobKind,
    pub(crate) offset: u32,
    pub(crate) shape: Shape,
}

/// A stored pack and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackEntry {
    pub(crate) id: PackId,
    pub(crate) blobs: Vec<PackedBlob>,
}

/// A pack being filled.
pub(crate) struct PackBuilder {
    kind: BlobKind,
    bytes: PageBuffer,
    /// Hashed while they are in the cache.
    hash: Sha256,
    blobs: Vec<PackedBlob>,
}

impl PackBuilder {
    pub(crate) fn new(kind: BlobKind) -> Self {
        Self::in_buffer(kind, PageBuffer::default())
    }

    /// Fills an empty buffer whose memory need not be made anew.
    pub(crate) fn in_buffer(kind: BlobKind, bytes: PageBuffer) -> Self {
        Self { kind, bytes, hash: Sha256::new(), blobs: Vec::new() }
    }

    pub(crate) fn kind(&self) -> BlobKind {
        self.kind
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// Whether a blob of so many plain bytes fits in, were it not to shrink at all.
    pub(crate) fn has_room(&self, plain_bytes: usize) -> bool {
        let sealed_bytes = plain_bytes.saturating_add(SEAL_BYTES);
        self.is_empty() || self.bytes.len().saturating_add(sealed_bytes) <= PACK_BYTES
    }

    pub(crate) fn push(
        &mut self,
        encoder: &mut Encoder,
        key: &Key,
        id: BlobId,
        plain: &[u8],
    ) -> Result<Shape, EngineError> {
        let start = self.bytes.len();
        let offset = offset(start)?;
        let shape = self.bytes.append(|bytes| encoder.encode_into(key, plain, bytes))?;
        self.hash.update(&self.bytes.as_slice()[start..]);
        self.blobs.push(PackedBlob { id, kind: self.kind, offset, shape });
        Ok(shape)
    }

    /// Adds a blob that `seal` appends to the bytes it is given.
    pub(crate) fn push_sealed(
        &mut self,
        id: BlobId,
        seal: impl FnOnce(&mut Vec<u8>) -> Result<Shape, EngineError>,
    ) -> Result<(), EngineError> {
        let start = self.bytes.len();
        let offset = offset(start)?;
        let shape = self.bytes.append(seal)?;
        self.hash.update(&self.bytes.as_slice()[start..]);
        self.blobs.push(PackedBlob { id, kind: self.kind, offset, shape });
        Ok(())
    }

    /// Takes over a blob as it lies in another pack.
    pub(crate) fn push_copy(
        &mut self,
        id: BlobId,
        shape: Shape,
        sealed: &[u8],
    ) -> Result<(), EngineError> {
        let offset = offset(self.bytes.len())?;
        self.bytes.append(|bytes| bytes.extend_from_slice(sealed));
        self.hash.update(sealed);
        self.blobs.push(PackedBlob { id, kind: self.kind, offset, shape });
        Ok(())
    }

    /// Whether both fit into one pack.
    pub(crate) fn can_take(&self, other: &Self) -> bool {
        self.bytes.len() + other.bytes.len() <= PACK_BYTES
    }

    /// Sealed blobs do not depend on their place, so packs can be joined.
    pub(crate) fn take(&mut self, other: Self) -> Result<(), EngineError> {
        let start = offset(self.bytes.len())?;
        let others = other.bytes.as_slice();
        self.bytes.append(|bytes| bytes.extend_from_slice(others));
        offset(self.bytes.len())?;
        self.hash.update(others);
        let moved = other.blobs.into_iter();
        self.blobs.extend(moved.map(|blob| PackedBlob { offset: start + blob.offset, ..blob }));
        Ok(())
    }

    /// Closes the pack: its bytes, and its entry in the index.
    pub(crate) fn finish(mut self, key: &Key) -> Result<(PageBuffer, PackEntry), EngineError> {
        let start = self.bytes.len();
        let header = header(&self.blobs);
        self.bytes.append(|bytes| key.seal_into(&header, bytes))?;
        let length = offset(self.bytes.len() - start)?;
        self.bytes.append(|bytes| bytes.extend_from_slice(&length.to_le_bytes()));
        self.hash.update(&self.bytes.as_slice()[start..]);
        let id = PackId(self.hash.finalize().into());
        Ok((self.bytes, PackEntry { id, blobs: self.blobs }))
    }
}

fn offset(bytes: usize) -> Result<u32, EngineError> {
    u32::try_from(bytes).map_err(|_| EngineError::bug("a pack of 4 GiB"))
}

const PLAIN_ENTRY_BYTES: usize = 1 + 4 + 32;
const COMPRESSED_ENTRY_BYTES: usize = 1 + 4 + 4 + 32;
/// The field after the header.
pub(crate) const HEADER_LENGTH_BYTES: usize = 4;

fn header(blobs: &[PackedBlob]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(blobs.len() * COMPRESSED_ENTRY_BYTES);
    for blob in blobs {
        let is_compressed = blob.shape.uncompressed_length != 0;
        bytes.push(match (blob.kind, is_compressed) {
            (BlobKind::Data, false) => 0,
            (BlobKind::Tree, false) => 1,
            (BlobKind::Data, true) => 2,
            (BlobKind::Tree, true) => 3,
        });
        bytes.extend_from_slice(&blob.shape.length.to_le_bytes());
        if is_compressed {
            bytes.extend_from_slice(&blob.shape.uncompressed_length.to_le_bytes());
        }
        bytes.extend_from_slice(blob.id.as_bytes());
    }
    bytes
}

/// The size of a pack that holds exactly these blobs.
pub(crate) fn pack_bytes(blobs: &[PackedBlob]) -> u64 {
    let of_blob = |blob: &PackedBlob| {
        let entry = match blob.shape.uncompressed_length {
            0 => PLAIN_ENTRY_BYTES,
            1.. => COMPRESSED_ENTRY_BYTES,
        };
        u64::from(blob.shape.length) + entry as u64
    };
    blobs.iter().map(of_blob).sum::<u64>() + (SEAL_BYTES + HEADER_LENGTH_BYTES) as u64
}

/// Reads an opened header. `None` when it is not one.
pub(crate) fn parse_header(mut bytes: &[u8]) -> Option<Vec<PackedBlob>> {
    let mut blobs = Vec::new();
    let mut offset: u32 = 0;
    while let Some((tag, rest)) = bytes.split_first() {
        let (kind, is_compressed) = match tag {
            0 => (BlobKind::Data, false),
            1 => (BlobKind::Tree, false),
            2 => (BlobKind::Data, true),
            3 => (BlobKind::Tree, true),
            4.. => return None,
        };
        let (length, rest) = split_u32(rest)?;
        let (uncompressed_length, rest) = if is_compressed { split_u32(rest)? } else { (0, rest) };
        let (id, rest) = rest.split_first_chunk::<32>()?;
        let shape = Shape { length, uncompressed_length };
        blobs.push(PackedBlob { id: BlobId(*id), kind, offset, shape });
        offset = offset.checked_add(length)?;
        bytes = rest;
    }
    Some(blobs)
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (value, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*value), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_as_long_as_computed_and_its_header_lists_its_blobs() {
        let key = Key::random().unwrap();
        let mut encoder = Encoder::new(1).unwrap();
        let mut noise = [0; 500];
        crate::crypto::fill_random(&mut noise).unwrap();
        let mut builder = PackBuilder::new(BlobKind::Data);
        let mut other = PackBuilder::new(BlobKind::Data);
        for plain in [&[7; 1000][..], &noise] {
            builder.push(&mut encoder, &key, BlobId::of(plain), plain).unwrap();
            other.push(&mut encoder, &key, BlobId::of(plain), plain).unwrap();
        }
        assert!(builder.can_take(&other));
        builder.take(other).unwrap();
        let (bytes, entry) = builder.finish(&key).unwrap();
        let bytes = bytes.as_slice();
        assert_eq!(pack_bytes(&entry.blobs), bytes.len() as u64);
        assert_eq!(entry.id.0, crate::id::sha256(bytes));
        let (rest, length) = bytes.split_last_chunk::<4>().unwrap();
        let start = rest.len() - u32::from_le_bytes(*length) as usize;
        let header = key.open(&rest[start..]).unwrap();
        assert_eq!(parse_header(&header), Some(entry.blobs));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_header_parser_panic(bytes: Vec<u8>) {
            let _ = parse_header(&bytes);
        }
    }
}
