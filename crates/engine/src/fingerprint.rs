//! Fingerprints: how a chunk that must be read is known again without SHA-256.
//!
//! Beside a volume's list lies a keyed BLAKE3 value of 80 bits for each of its chunks that
//! is not all zero. A chunk that still has its fingerprint keeps its blob, at a quarter
//! of what hashing it would cost. Nobody without the repository's master key can make two
//! chunks of one fingerprint, and by chance a changed chunk has its old one with a
//! probability of 2^-80; see ADR 11.
//!
//! Invariant: a fingerprint is compared only with the one of the same chunk in the parent,
//! and never names a blob.

use std::fmt;

use zeroize::Zeroizing;

use crate::{
    chunk::{BaseIds, Change, zero_block_id},
    crypto::Key,
};

/// The length of a stored fingerprint.
pub(crate) const FINGERPRINT_BYTES: usize = 10;

/// What the key of the fingerprints is derived for.
const CONTEXT: &str = "kedge 2026-11-25 fingerprints of the chunks of volumes";

/// A chunk's fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fingerprint([u8; FINGERPRINT_BYTES]);

#[cfg(test)]
impl Fingerprint {
    pub(crate) fn as_bytes(&self) -> &[u8; FINGERPRINT_BYTES] {
        &self.0
    }
}

/// Stands in a list for the fingerprint of a chunk nobody read.
const UNKNOWN: Fingerprint = Fingerprint([0; FINGERPRINT_BYTES]);

/// Makes fingerprints with a key of the repository.
pub(crate) struct Fingerprinter(Zeroizing<[u8; 32]>);

impl fmt::Debug for Fingerprinter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprinter(..)")
    }
}

impl Fingerprinter {
    pub(crate) fn new(key: &Key) -> Self {
        let (encrypt, mac_k, mac_r) = key.parts();
        let mut derived = blake3::Hasher::new_derive_key(CONTEXT);
        derived.update(encrypt).update(mac_k).update(mac_r);
        Self(Zeroizing::new(*derived.finalize().as_bytes()))
    }

    pub(crate) fn of(&self, plain: &[u8]) -> Fingerprint {
        let mut cut = [0; FINGERPRINT_BYTES];
        cut.copy_from_slice(&blake3::keyed_hash(&self.0, plain).as_bytes()[..FINGERPRINT_BYTES]);
        match Fingerprint(cut) {
            UNKNOWN => Fingerprint([1; FINGERPRINT_BYTES]),
            known => known,
        }
    }
}

/// The stored fingerprints of a volume: one for each chunk that is not all zero, in order.
#[derive(Debug, Default)]
pub(crate) struct Fingerprints(Vec<u8>);

impl Fingerprints {
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The fingerprint of the chunk with this number among those that are not all zero.
    pub(crate) fn get(&self, number: usize) -> Option<Fingerprint> {
        let start = number.checked_mul(FINGERPRINT_BYTES)?;
        let bytes = self.0.get(start..)?.first_chunk::<FINGERPRINT_BYTES>()?;
        Some(Fingerprint(*bytes)).filter(|known| *known != UNKNOWN)
    }
}

/// The fingerprint of a chunk that was read, where the parent has another one or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Learned {
    pub(crate) chunk: u32,
    pub(crate) fingerprint: Fingerprint,
}

/// Walks the chunks of a new list in order, as [`chunk::content`](crate::chunk::content)
/// does, and gives the fingerprint of each that is not all zero. `changes` and `learned`
/// are sorted.
pub(crate) fn merge<'a>(
    base: BaseIds<'a>,
    parent: Option<&'a Fingerprints>,
    changes: &'a [Change],
    learned: &'a [Learned],
) -> impl Iterator<Item = [u8; FINGERPRINT_BYTES]> + 'a {
    let mut number_in_parent = 0;
    let mut changes = changes.iter().peekable();
    let mut learned = learned.iter().peekable();
    (0_u64..).zip(base).filter_map(move |(chunk, base)| {
        let mut kept = None;
        if base.from_parent && base.id != zero_block_id() {
            kept = parent.and_then(|parent| parent.get(number_in_parent));
            number_in_parent += 1;
        }
        let changed = changes.next_if(|change| u64::from(change.chunk) == chunk);
        if changed.is_some() {
            kept = None;
        }
        let read = learned.next_if(|learned| u64::from(learned.chunk) == chunk);
        let id = changed.map_or(base.id, |change| change.id);
        let known = read.map(|learned| learned.fingerprint).or(kept);
        (id != zero_block_id()).then(|| known.unwrap_or(UNKNOWN).0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chunk::{ChunkSize, Cut},
        id::BlobId,
    };

    fn key(byte: u8) -> Key {
        Key::from_parts(&[byte; 32], &[2; 16], &[3; 16]).unwrap()
    }

    #[test]
    fn a_fingerprint_depends_on_the_key_and_on_every_bit() {
        let (one, other) = (Fingerprinter::new(&key(1)), Fingerprinter::new(&key(2)));
        let mut plain = vec![7; 4096];
        let before = one.of(&plain);
        assert_eq!(one.of(&plain), before);
        assert_ne!(other.of(&plain), before);
        for bit in 0..plain.len() * 8 {
            plain[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(one.of(&plain), before, "bit {bit}");
            plain[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(format!("{one:?}"), "Fingerprinter(..)");
    }

    #[test]
    fn a_new_list_takes_fingerprints_from_what_was_read_and_else_from_the_parent() {
        let cut = |chunks: u64| Cut { size_bytes: chunks << 19, chunk_size: ChunkSize::Kib512 };
        let id = |number: u8| BlobId::of(&[number]);
        let print = |byte: u8| Fingerprint([byte; FINGERPRINT_BYTES]);
        let zero = zero_block_id();
        let old = [id(0), zero, id(2), id(3), id(4)];
        let base = BaseIds::new(cut(6), Some((cut(5), old.as_slice().into())));
        let parent = Fingerprints([10, 12, 13, 0].map(|byte| [byte; 10]).concat());
        // One kept, one filled, one changed by a source nobody read, one emptied, one read
        // for the first time, one beyond the old end.
        let changes = [
            Change { chunk: 1, id: id(11) },
            Change { chunk: 2, id: id(12) },
            Change { chunk: 3, id: zero },
            Change { chunk: 5, id: id(15) },
        ];
        let learned = [(1, 21), (4, 24), (5, 25)]
            .map(|(chunk, byte)| Learned { chunk, fingerprint: print(byte) });
        let merged: Vec<_> = merge(base.clone(), Some(&parent), &changes, &learned).collect();
        assert_eq!(merged, [10, 21, 0, 24, 25].map(|byte| [byte; 10]));
        let without: Vec<_> = merge(base, None, &[], &[]).collect();
        assert_eq!(without, [[0; 10]; 4]);
    }

    #[test]
    fn a_short_or_unknown_entry_is_no_fingerprint() {
        let stored = Fingerprints([vec![5; 10], vec![0; 10], vec![5; 9]].concat());
        assert_eq!(stored.get(0), Some(Fingerprint([5; 10])));
        for number in [1, 2, 3, usize::MAX] {
            assert_eq!(stored.get(number), None, "{number}");
        }
    }
}
