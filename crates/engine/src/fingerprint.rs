//! Fingerprints: how a chunk that must be read is known again without SHA-256.
//!
//! Beside a volume's list lies a keyed value of 80 bits for each of its chunks that is not
//! all zero. A chunk that still has its fingerprint keeps its blob, at a fraction of what
//! hashing it would cost. Without the repository's master key nobody can find two chunks
//! of one fingerprint: two sums of products (NH, from UMAC), POLYVAL (RFC 8452) over them
//! and AES over that keep any two different chunks different but with a probability of
//! 2^-80, by theorems about random keys rather than for want of attacks; see ADR 16.
//!
//! Invariant: a fingerprint is compared only with the one of the same chunk in the parent,
//! and never names a blob.

use std::fmt;

use aes::{
    Aes256,
    cipher::{BlockCipherEncrypt, KeyInit, KeyIvInit, StreamCipher},
};
use polyval::{
    Polyval,
    universal_hash::{UniversalHash, common::array::Array},
};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    chunk::{BaseIds, Change, zero_block_id},
    crypto::{Aes256Ctr, Key},
};

/// The length of a stored fingerprint.
pub(crate) const FINGERPRINT_BYTES: usize = 10;

/// What the keys of the fingerprints are derived for.
const SUM_KEYS: &[u8] = b"kedge 2026-11-28 fingerprints of chunks: sums";
const HASH_KEY: &[u8] = b"kedge 2026-11-28 fingerprints of chunks: hash";
const CIPHER_KEY: &[u8] = b"kedge 2026-11-28 fingerprints of chunks: cipher";

const WORD_BYTES: usize = 8;
/// Words of a chunk that are summed up at a time.
const WORDS: usize = 512;
const SUMMED_BYTES: usize = WORDS * WORD_BYTES;
/// The keys of the second sum are those of the first, moved by a pair.
const KEYS: usize = WORDS + 2;

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

/// Makes fingerprints with keys of the repository.
pub(crate) struct Fingerprinter {
    keys: Box<Zeroizing<[u64; KEYS]>>,
    hash: Polyval,
    cipher: Aes256,
}

impl fmt::Debug for Fingerprinter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprinter(..)")
    }
}

impl Fingerprinter {
    pub(crate) fn new(key: &Key) -> Self {
        let derive = |purpose: &[u8]| {
            let (encrypt, mac_k, mac_r) = key.parts();
            let hash = Sha256::new_with_prefix(purpose);
            let hash = hash.chain_update(encrypt).chain_update(mac_k).chain_update(mac_r);
            Zeroizing::new(<[u8; 32]>::from(hash.finalize()))
        };
        let mut stream = Zeroizing::new([0; KEYS * WORD_BYTES]);
        let mut keystream = Aes256Ctr::new((&*derive(SUM_KEYS)).into(), &Array::default());
        keystream.apply_keystream(stream.as_mut_slice());
        let (words, _) = stream.as_chunks::<WORD_BYTES>();
        let mut keys = Box::new(Zeroizing::new([0; KEYS]));
        for (key, word) in keys.iter_mut().zip(words) {
            *key = u64::from_le_bytes(*word);
        }
        let mut hash_key = Array::default();
        hash_key.copy_from_slice(&derive(HASH_KEY)[..16]);
        let hash = Polyval::new(&hash_key);
        hash_key.zeroize();
        Self { keys, hash, cipher: Aes256::new((&*derive(CIPHER_KEY)).into()) }
    }

    pub(crate) fn of(&self, plain: &[u8]) -> Fingerprint {
        let mut hash = self.hash.clone();
        let (pieces, rest) = plain.as_chunks::<SUMMED_BYTES>();
        let mut add = |value: u128| hash.update(&[value.to_le_bytes().into()]);
        for piece in pieces {
            self.sums(piece).into_iter().for_each(&mut add);
        }
        if !rest.is_empty() {
            let mut filled_up = [0; SUMMED_BYTES];
            filled_up[..rest.len()].copy_from_slice(rest);
            self.sums(&filled_up).into_iter().for_each(&mut add);
        }
        add(plain.len() as u128);
        let mut block = hash.finalize();
        self.cipher.encrypt_block(&mut block);
        let mut cut = [0; FINGERPRINT_BYTES];
        cut.copy_from_slice(&block[..FINGERPRINT_BYTES]);
        match Fingerprint(cut) {
            UNKNOWN => Fingerprint([1; FINGERPRINT_BYTES]),
            known => known,
        }
    }

    /// NH: each word has a key added to it, and pairs of words are multiplied.
    fn sums(&self, piece: &[u8; SUMMED_BYTES]) -> [u128; 2] {
        let keys: &[u64; KEYS] = &self.keys;
        let (words, _) = piece.as_chunks::<WORD_BYTES>();
        let mut sums = [0_u128; 2];
        for at in (0..WORDS).step_by(2) {
            let pair = [u64::from_le_bytes(words[at]), u64::from_le_bytes(words[at + 1])];
            for (shift, sum) in sums.iter_mut().enumerate() {
                let keys = [keys[at + 2 * shift], keys[at + 2 * shift + 1]];
                let [left, right] = [0, 1].map(|n| u128::from(pair[n].wrapping_add(keys[n])));
                *sum = sum.wrapping_add(left * right);
            }
        }
        sums
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
        let shorter = one.of(&plain[..4095]);
        plain[4095] = 0;
        assert_ne!(one.of(&plain), shorter);
        assert_eq!(format!("{one:?}"), "Fingerprinter(..)");
    }

    /// x * y * x^-128 in the field of RFC 8452, bit by bit; bit i is the coefficient of x^i.
    fn dot(x: u128, y: u128) -> u128 {
        // The field's polynomial is x^128 + x^127 + x^126 + x^121 + 1, so dividing by x
        // moves the bits down and lets what falls out come back at these.
        const BACK: u128 = 1 << 127 | 1 << 126 | 1 << 125 | 1 << 120;
        (0..128).fold(0, |sum, bit| {
            let sum = if x >> bit & 1 == 1 { sum ^ y } else { sum };
            if sum & 1 == 1 { sum >> 1 ^ BACK } else { sum >> 1 }
        })
    }

    /// Computed as the page of stored bytes says.
    #[test]
    fn a_fingerprint_is_made_of_sums_hashed_enciphered_and_cut() {
        for len in [0, 1, 16, 100, 4096, 10_000] {
            let plain: Vec<u8> = (0..len).map(|n: u32| (n * 7 % 251) as u8).collect();
            let material = [vec![9; 32], vec![2; 16], vec![3; 16]].concat();
            let derive = |purpose: &[u8]| crate::id::sha256(&[purpose, &material].concat());
            let sum_keys = derive(b"kedge 2026-11-28 fingerprints of chunks: sums");
            let cipher = Aes256::new(&sum_keys.into());
            let keys: Vec<u64> = (0..KEYS as u128 / 2)
                .flat_map(|number| {
                    let mut block = number.to_be_bytes().into();
                    cipher.encrypt_block(&mut block);
                    let (first, second) = block.split_at(8);
                    [first, second].map(|word| u64::from_le_bytes(word.try_into().unwrap()))
                })
                .collect();
            let hash_key = derive(b"kedge 2026-11-28 fingerprints of chunks: hash");
            let hash_key = u128::from_le_bytes(*hash_key.first_chunk().unwrap());
            let mut padded = plain.clone();
            padded.resize(plain.len().next_multiple_of(4096), 0);
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
            let mut hashed = Vec::new();
            for piece in padded.chunks(4096) {
                for keys in [&keys[..512], &keys[2..]] {
                    let words = piece.chunks(16).zip(keys.chunks(2)).map(|(pair, keys)| {
                        let left = word(&pair[..8]).wrapping_add(keys[0]);
                        u128::from(left) * u128::from(word(&pair[8..]).wrapping_add(keys[1]))
                    });
                    hashed.push(words.fold(0, u128::wrapping_add));
                }
            }
            hashed.push(u128::from(len));
            let hash = hashed.into_iter().fold(0, |sum, value| dot(sum ^ value, hash_key));
            let mut block = hash.to_le_bytes().into();
            let cipher_key = derive(b"kedge 2026-11-28 fingerprints of chunks: cipher");
            Aes256::new(&cipher_key.into()).encrypt_block(&mut block);
            assert_eq!(Fingerprinter::new(&key(9)).of(&plain).0, block[..10], "{len}");
        }
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
