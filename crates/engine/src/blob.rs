//! One blob on its way into a pack and back: zstd, then the seal.

use std::io::{self, Cursor, Seek, SeekFrom};

use zstd::bulk::{Compressor, Decompressor};

use crate::{
    crypto::{IV_BYTES, Key, SEAL_BYTES},
    error::EngineError,
    id::BlobId,
    pages::PageBuffer,
};

/// What a blob holds. A data blob and a tree blob of equal bytes are different blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BlobKind {
    Data,
    Tree,
}

impl BlobKind {
    /// No writer makes larger blobs; what claims to be larger is damaged. restic cuts
    /// files into at most 8 MiB, we into at most 4 MiB. The list of a volume's chunks
    /// is one tree blob.
    pub(crate) fn plain_bytes_max(self) -> u32 {
        match self {
            Self::Data => 64 << 20,
            Self::Tree => 1 << 30,
        }
    }
}

/// How a blob lies in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Sealed length.
    pub(crate) length: u32,
    /// Plain length when compressed; 0 when not.
    pub(crate) uncompressed_length: u32,
}

impl Shape {
    pub(crate) fn plain_bytes(self) -> u32 {
        if self.uncompressed_length == 0 {
            self.length.saturating_sub(SEAL_LENGTH)
        } else {
            self.uncompressed_length
        }
    }

    /// Whether a blob of this kind can have this shape.
    pub(crate) fn is_sane(self, kind: BlobKind) -> bool {
        let max = kind.plain_bytes_max();
        self.length > SEAL_LENGTH
            // zstd never makes more than a little more of its input.
            && self.length - SEAL_LENGTH <= max + (max >> 7)
            && self.plain_bytes() <= max
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the constant is 32")]
const SEAL_LENGTH: u32 = SEAL_BYTES as u32;

/// Compresses and seals blobs. Unless told otherwise it opens each again before it counts:
/// what a flipped bit in memory spoiled must not be stored under the hash of the good
/// bytes.
pub(crate) struct Encoder {
    compressor: Compressor<'static>,
    reopener: Option<Decoder>,
}

impl Encoder {
    /// One that opens every blob again.
    pub(crate) fn new(zstd_level: i32) -> Result<Self, EngineError> {
        Ok(Self { reopener: Some(Decoder::new()?), ..Self::trusting(zstd_level)? })
    }

    /// One that trusts memory and processor.
    pub(crate) fn trusting(zstd_level: i32) -> Result<Self, EngineError> {
        let compressor = Compressor::new(zstd_level)
            .map_err(|error| EngineError::bug(format!("zstd level {zstd_level}: {error}")))?;
        Ok(Self { compressor, reopener: None })
    }

    /// Appends the sealed blob to `out`. What compression does not shrink is stored as it
    /// is. Compressed and encrypted in its place, so that nothing is copied.
    pub(crate) fn encode_into(
        &mut self,
        key: &Key,
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Shape, EngineError> {
        let start = out.len();
        out.reserve(SEAL_BYTES + zstd::zstd_safe::compress_bound(plain.len()));
        out.extend_from_slice(&[0; IV_BYTES]);
        let is_smaller = self.compress(plain, out)? < plain.len();
        if !is_smaller {
            out.truncate(start + IV_BYTES);
            out.extend_from_slice(plain);
        }
        key.seal_from(start, out)?;
        let too_long = |_| EngineError::bug("a blob of 4 GiB");
        let shape = Shape {
            length: u32::try_from(out.len() - start).map_err(too_long)?,
            uncompressed_length: if is_smaller {
                u32::try_from(plain.len()).map_err(too_long)?
            } else {
                0
            },
        };
        let Some(reopener) = &mut self.reopener else { return Ok(shape) };
        match reopener.decode(key, &out[start..], shape) {
            Ok(reopened) if reopened == plain => Ok(shape),
            Ok(_) | Err(_) => Err(EngineError::bug(
                "a sealed blob does not open to what was sealed; memory or processor is faulty",
            )),
        }
    }

    /// Appends compressed bytes to `out`; says how many.
    fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<usize, EngineError> {
        let mut tail = Cursor::new(out);
        tail.seek(SeekFrom::End(0))
            .and_then(|_| self.compressor.compress_to_buffer(plain, &mut tail))
            .map_err(|error| EngineError::bug(format!("zstd cannot compress: {error}")))
    }
}

/// Why sealed bytes are not the blob they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlobFault {
    #[error("is not sealed by the repository's key")]
    NotAuthentic,
    #[error("does not decompress to its length")]
    NotCompressed,
    #[error("does not have its hash")]
    WrongHash,
}

/// Opens blobs into buffers it keeps. What it opened begins at a page, for those who
/// write it past the page cache.
pub(crate) struct Decoder {
    decompressor: Decompressor<'static>,
    opened: PageBuffer,
    plain: PageBuffer,
}

impl Decoder {
    pub(crate) fn new() -> Result<Self, EngineError> {
        let decompressor = Decompressor::new()
            .map_err(|error| EngineError::bug(format!("zstd cannot decompress: {error}")))?;
        let (opened, plain) = (PageBuffer::default(), PageBuffer::default());
        Ok(Self { decompressor, opened, plain })
    }

    /// The plain bytes. Never more memory than `shape` says.
    pub(crate) fn decode(
        &mut self,
        key: &Key,
        sealed: &[u8],
        shape: Shape,
    ) -> Result<&[u8], BlobFault> {
        self.opened.make_room(sealed.len());
        self.opened
            .append(|opened| key.open_onto(sealed, opened))
            .map_err(|_| BlobFault::NotAuthentic)?;
        if shape.uncompressed_length == 0 {
            return Ok(self.opened.as_slice());
        }
        let length = shape.uncompressed_length as usize;
        self.plain.make_room(length);
        match self.decompress() {
            Ok(written) if written == length => Ok(self.plain.as_slice()),
            Ok(_) | Err(_) => Err(BlobFault::NotCompressed),
        }
    }

    /// Appends what was opened to what is plain, as far as there is room; says how much.
    fn decompress(&mut self) -> io::Result<usize> {
        let compressed = self.opened.as_slice();
        self.plain.append(|plain| {
            let mut tail = Cursor::new(plain);
            tail.seek(SeekFrom::End(0))?;
            self.decompressor.decompress_to_buffer(compressed, &mut tail)
        })
    }

    /// The plain bytes, whose hash is `id`.
    pub(crate) fn decode_verified(
        &mut self,
        key: &Key,
        sealed: &[u8],
        shape: Shape,
        id: BlobId,
    ) -> Result<&[u8], BlobFault> {
        let plain = self.decode(key, sealed, shape)?;
        if BlobId::of(plain) == id { Ok(plain) } else { Err(BlobFault::WrongHash) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::from_parts(&[1; 32], &[2; 16], &[3; 16]).unwrap()
    }

    #[test]
    fn what_shrinks_is_compressed_and_what_does_not_is_stored_as_it_is() {
        let mut encoder = Encoder::new(3).unwrap();
        let mut noise = vec![0; 4096];
        crate::crypto::fill_random(&mut noise).unwrap();
        for (plain, uncompressed_length) in [(vec![b'a'; 4096], 4096), (noise, 0)] {
            let mut sealed = vec![9; 3];
            let shape = encoder.encode_into(&key(), &plain, &mut sealed).unwrap();
            assert_eq!(shape.uncompressed_length, uncompressed_length);
            assert_eq!(shape.plain_bytes(), 4096);
            let mut decoder = Decoder::new().unwrap();
            let id = BlobId::of(&plain);
            let opened = decoder.decode_verified(&key(), &sealed[3..], shape, id).unwrap();
            assert_eq!(opened, plain);
            let to_page = opened.as_ptr().align_offset(crate::pages::PAGE_BYTES);
            assert_eq!(to_page, 0, "a restored disk is written past the page cache");
        }
    }

    #[test]
    fn a_bomb_does_not_decompress_beyond_its_length() {
        let bomb = zstd::bulk::compress(&vec![0; 16 << 20], 3).unwrap();
        let sealed = key().seal(&bomb).unwrap();
        let length = u32::try_from(sealed.len()).unwrap();
        let mut decoder = Decoder::new().unwrap();
        let shape = Shape { length, uncompressed_length: 1000 };
        assert_eq!(decoder.decode(&key(), &sealed, shape), Err(BlobFault::NotCompressed));
        assert!(decoder.plain.capacity() < 1 << 14);
    }

    #[test]
    fn senseless_shapes_are_told_apart() {
        for (length, uncompressed_length, sane) in [
            (32, 0, false),
            (0, 100, false),
            (33, 0, true),
            (33, u32::MAX, false),
            (u32::MAX, 0, false),
            (u32::MAX, 1, false),
            ((64 << 20) + 32, 0, true),
        ] {
            let shape = Shape { length, uncompressed_length };
            assert_eq!(shape.is_sane(BlobKind::Data), sane, "{shape:?}");
        }
    }
}
