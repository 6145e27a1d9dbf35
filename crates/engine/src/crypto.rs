//! restic's sealing: AES-256 in counter mode, then Poly1305-AES over the ciphertext.
//!
//! Layout of sealed bytes: 16 random bytes IV, ciphertext, 16 bytes tag. Random
//! 128-bit IVs need no state, so any number of writers may share a key.
//!
//! Invariant: no plain byte leaves before its tag was compared. Key bytes are wiped when
//! dropped and never formatted.

use std::fmt;

use aes::{
    Aes128, Aes256,
    cipher::{BlockCipherEncrypt, KeyInit, KeyIvInit, StreamCipher},
};
use poly1305::{Block, Poly1305, universal_hash::UniversalHash};
use zeroize::Zeroizing;

use crate::error::EngineError;

pub(crate) type Aes256Ctr = ctr::Ctr128BE<Aes256>;

/// What comes before the ciphertext.
pub(crate) const IV_BYTES: usize = 16;
const TAG_BYTES: usize = 16;

/// Cipher and tag take turns on pieces of this length, a multiple of Poly1305's blocks,
/// so that the second finds the bytes in the nearest cache.
const PIECE_BYTES: usize = 16 << 10;

/// What sealing adds to the plain bytes.
pub(crate) const SEAL_BYTES: usize = IV_BYTES + TAG_BYTES;

/// The bytes do not carry this key's tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAuthentic;

/// A key of the repository, or one derived from a password.
#[derive(Clone)]
pub(crate) struct Key {
    encrypt: Zeroizing<[u8; 32]>,
    mac_k: Zeroizing<[u8; 16]>,
    mac_r: Zeroizing<[u8; 16]>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    pub(crate) fn random() -> Result<Self, EngineError> {
        let mut bytes = Zeroizing::new([0; 64]);
        fill_random(bytes.as_mut_slice())?;
        Ok(Self::from_bytes(&bytes))
    }

    /// Cuts 64 bytes into the three parts, in restic's order.
    fn from_bytes(bytes: &[u8; 64]) -> Self {
        let mut key = Self {
            encrypt: Zeroizing::new([0; 32]),
            mac_k: Zeroizing::new([0; 16]),
            mac_r: Zeroizing::new([0; 16]),
        };
        key.encrypt.copy_from_slice(&bytes[..32]);
        key.mac_k.copy_from_slice(&bytes[32..48]);
        key.mac_r.copy_from_slice(&bytes[48..]);
        key
    }

    pub(crate) fn from_parts(encrypt: &[u8], mac_k: &[u8], mac_r: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 64]);
        if encrypt.len() != 32 || mac_k.len() != 16 || mac_r.len() != 16 {
            return None;
        }
        bytes[..32].copy_from_slice(encrypt);
        bytes[32..48].copy_from_slice(mac_k);
        bytes[48..].copy_from_slice(mac_r);
        Some(Self::from_bytes(&bytes))
    }

    /// Encryption key, MAC key k, MAC key r.
    pub(crate) fn parts(&self) -> (&[u8; 32], &[u8; 16], &[u8; 16]) {
        (&self.encrypt, &self.mac_k, &self.mac_r)
    }

    /// Appends the sealed form of `plain` to `out`.
    pub(crate) fn seal_into(&self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), EngineError> {
        let start = out.len();
        out.reserve(plain.len() + SEAL_BYTES);
        out.extend_from_slice(&[0; IV_BYTES]);
        out.extend_from_slice(plain);
        self.seal_from(start, out)
    }

    /// Seals what lies in `out` from `start` on in its place: room for the IV, then the
    /// plain bytes. The tag is appended.
    pub(crate) fn seal_from(&self, start: usize, out: &mut Vec<u8>) -> Result<(), EngineError> {
        let (iv, plain) = out[start..]
            .split_first_chunk_mut::<IV_BYTES>()
            .ok_or_else(|| EngineError::bug("no room for an initialisation vector"))?;
        fill_random(iv)?;
        let mut cipher = self.cipher(iv);
        let mut tagger = self.tagger(iv);
        for piece in plain.chunks_mut(PIECE_BYTES) {
            cipher.apply_keystream(piece);
            tagger.update(piece);
        }
        let tag = tagger.finish();
        out.extend_from_slice(&tag);
        Ok(())
    }

    pub(crate) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, EngineError> {
        let mut sealed = Vec::new();
        self.seal_into(plain, &mut sealed)?;
        Ok(sealed)
    }

    /// Appends the plain form of `sealed` to `out`; nothing if it is not authentic.
    pub(crate) fn open_onto(&self, sealed: &[u8], out: &mut Vec<u8>) -> Result<(), NotAuthentic> {
        let (iv, rest) = sealed.split_first_chunk::<IV_BYTES>().ok_or(NotAuthentic)?;
        let (cipher, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(NotAuthentic)?;
        let mut keystream = self.cipher(iv);
        let mut tagger = self.tagger(iv);
        let before = out.len();
        out.reserve(cipher.len());
        for piece in cipher.chunks(PIECE_BYTES) {
            tagger.update(piece);
            let start = out.len();
            out.extend_from_slice(piece);
            keystream.apply_keystream(&mut out[start..]);
        }
        let computed = tagger.finish();
        if equal_in_constant_time(&computed, tag) {
            return Ok(());
        }
        out.truncate(before);
        Err(NotAuthentic)
    }

    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotAuthentic> {
        let mut plain = Zeroizing::new(Vec::new());
        self.open_onto(sealed, &mut plain)?;
        Ok(plain)
    }

    fn cipher(&self, iv: &[u8; IV_BYTES]) -> Aes256Ctr {
        Aes256Ctr::new((&*self.encrypt).into(), iv.into())
    }

    /// Poly1305 under r and the IV encrypted with k, as Bernstein defined Poly1305-AES.
    fn tagger(&self, iv: &[u8; IV_BYTES]) -> Tagger {
        let mut nonce = (*iv).into();
        Aes128::new((&*self.mac_k).into()).encrypt_block(&mut nonce);
        let mut once = Zeroizing::new([0; 32]);
        once[..16].copy_from_slice(self.mac_r.as_slice());
        once[16..].copy_from_slice(&nonce);
        Tagger { poly: Poly1305::new((&*once).into()), rest: [0; BLOCK_BYTES], rest_bytes: 0 }
    }
}

const BLOCK_BYTES: usize = 16;

/// Makes the tag of bytes that come in pieces. All but the last piece are multiples of a
/// block.
struct Tagger {
    poly: Poly1305,
    rest: [u8; BLOCK_BYTES],
    rest_bytes: usize,
}

impl Tagger {
    fn update(&mut self, piece: &[u8]) {
        debug_assert!(self.rest_bytes == 0, "a piece after the last");
        let (blocks, rest) = Block::slice_as_chunks(piece);
        self.poly.update(blocks);
        self.rest[..rest.len()].copy_from_slice(rest);
        self.rest_bytes = rest.len();
    }

    fn finish(self) -> [u8; TAG_BYTES] {
        self.poly.compute_unpadded(&self.rest[..self.rest_bytes]).into()
    }
}

/// Compares without telling by its duration where the first difference is.
fn equal_in_constant_time(left: &[u8; TAG_BYTES], right: &[u8; TAG_BYTES]) -> bool {
    let difference = left.iter().zip(right).fold(0, |sum, (l, r)| sum | (l ^ r));
    std::hint::black_box(difference) == 0
}

pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), EngineError> {
    getrandom::fill(bytes).map_err(|_| EngineError::NoRandomness)
}

/// A repository's password. Wiped when dropped, never formatted.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Takes over `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// 256 random bits as 64 hexadecimal digits.
    pub fn random() -> Result<Self, EngineError> {
        let mut bytes = Zeroizing::new([0; 32]);
        fill_random(bytes.as_mut_slice())?;
        Ok(Self::new(hex::encode(bytes.as_slice())))
    }

    /// The secret itself, for wrapping it or for a recovery kit.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// How hard scrypt works to turn a password into a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfCost {
    log2_n: u8,
    r: u32,
    p: u32,
}

/// A stored key may ask for no more memory than this, so that a forged one cannot
/// exhaust the machine.
const KDF_MEMORY_BYTES_MAX: u64 = 512 << 20;
const KDF_P_MAX: u32 = 16;

impl KdfCost {
    /// restic's usual cost: N = 2^15, r = 8, p = 1; 32 MiB and some 100 ms.
    pub const STANDARD: Self = Self { log2_n: 15, r: 8, p: 1 };

    /// Hardly any work, for tests. Safe only with a password of high entropy.
    pub const CHEAP: Self = Self { log2_n: 4, r: 8, p: 1 };

    /// The cost a stored key names, `None` when no sane writer would name it.
    pub(crate) fn from_stored(n: u64, r: u32, p: u32) -> Option<Self> {
        let sane = n.is_power_of_two()
            && n > 1
            && r > 0
            && (1..=KDF_P_MAX).contains(&p)
            && n.checked_mul(128 * u64::from(r))? <= KDF_MEMORY_BYTES_MAX;
        let log2_n = u8::try_from(n.trailing_zeros()).ok()?;
        sane.then_some(Self { log2_n, r, p })
    }

    pub(crate) fn n(self) -> u64 {
        1 << self.log2_n
    }

    pub(crate) fn r(self) -> u32 {
        self.r
    }

    pub(crate) fn p(self) -> u32 {
        self.p
    }

    /// The key that wraps the master key.
    pub(crate) fn derive(self, password: &Password, salt: &[u8]) -> Result<Key, EngineError> {
        let bad = |_| EngineError::bug("scrypt refused its parameters");
        let params = scrypt::Params::new(self.log2_n, self.r, self.p).map_err(bad)?;
        let mut bytes = Zeroizing::new([0; 64]);
        scrypt::scrypt(password.expose().as_bytes(), salt, &params, bytes.as_mut_slice())
            .map_err(|_| EngineError::bug("scrypt refused its output length"))?;
        Ok(Key::from_bytes(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        let mut bytes = [0; 64];
        for (value, byte) in (0..).zip(&mut bytes) {
            *byte = value;
        }
        Key::from_bytes(&bytes)
    }

    #[test]
    fn sealed_bytes_open_and_no_flipped_bit_passes() {
        let sealed = key().seal(b"some plain bytes, more than one block").unwrap();
        assert_eq!(
            key().open(&sealed).unwrap().as_slice(),
            b"some plain bytes, more than one block"
        );
        for bit in 0..sealed.len() * 8 {
            let mut broken = sealed.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key().open(&broken).err(), Some(NotAuthentic), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(key().open(&sealed[..len]).err(), Some(NotAuthentic), "length {len}");
        }
    }

    /// The vectors of the Poly1305-AES paper, appendix B.
    #[test]
    fn the_tag_is_poly1305_aes() {
        for (r, k, n, m, tag) in [
            (
                "851fc40c3467ac0be05cc20404f3f700",
                "ec074c835580741701425b623235add6",
                "fb447350c4e868c52ac3275cf9d4327e",
                "f3f6",
                "f4c633c3044fc145f84f335cb81953de",
            ),
            (
                "a0f3080000f46400d0c7e9076c834403",
                "75deaa25c09f208e1dc4ce6b5cad3fbf",
                "61ee09218d29b0aaed7e154a2c5509cc",
                "",
                "dd3fab2251f11ac759f0887129cc2ee7",
            ),
        ] {
            let bytes = |text| hex::decode(text).unwrap();
            let key = Key::from_parts(&[0; 32], &bytes(k), &bytes(r)).unwrap();
            let iv = bytes(n).try_into().unwrap();
            let mut tagger = key.tagger(&iv);
            tagger.update(&bytes(m));
            assert_eq!(hex::encode(tagger.finish()), tag);
        }
    }

    #[test]
    fn pieces_do_not_show_in_what_is_sealed() {
        for len in [0, 1, 16, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 5] {
            let plain = vec![b'p'; len];
            let sealed = key().seal(&plain).unwrap();
            let (iv, rest) = sealed.split_first_chunk::<IV_BYTES>().unwrap();
            let (cipher, tag) = rest.split_last_chunk::<TAG_BYTES>().unwrap();
            let whole = key().tagger(iv).poly.compute_unpadded(cipher);
            assert_eq!(whole.as_slice(), tag, "{len}");
            let mut expected = plain.clone();
            key().cipher(iv).apply_keystream(&mut expected);
            assert!(expected == cipher, "{len}");
            assert!(*key().open(&sealed).unwrap() == plain, "{len}");
        }
    }

    #[test]
    fn secrets_have_no_text() {
        let shown = format!("{:?} {:?}", Password::new("hunter2"), key());
        assert_eq!(shown, "Password(..) Key(..)");
    }

    #[test]
    fn greedy_or_senseless_key_costs_are_refused() {
        assert_eq!(KdfCost::from_stored(1 << 15, 8, 1), Some(KdfCost::STANDARD));
        for (n, r, p) in
            [(0, 8, 1), (1, 8, 1), (1000, 8, 1), (1 << 40, 8, 1), (1 << 15, 0, 1), (2, 1, 17)]
        {
            assert_eq!(KdfCost::from_stored(n, r, p), None, "{n} {r} {p}");
        }
        assert_eq!(KdfCost::from_stored(1 << 63, u32::MAX, 1), None);
    }
}
