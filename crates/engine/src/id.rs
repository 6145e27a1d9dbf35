//! Names of stored things: SHA-256 values as newtypes, so that a pack is never
//! looked up where a blob is meant.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// A text that is not 64 lowercase hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a 64-digit hexadecimal id")]
pub struct InvalidId;

/// The SHA-256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

struct HexVisitor;

impl de::Visitor<'_> for HexVisitor {
    type Value = [u8; 32];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("64 hexadecimal digits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<[u8; 32], E> {
        parse(text).map_err(E::custom)
    }
}

/// Only the lowercase spelling, so that one object has one name.
fn parse(text: &str) -> Result<[u8; 32], InvalidId> {
    let mut bytes = [0; 32];
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(InvalidId);
    }
    hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidId)?;
    Ok(bytes)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) [u8; 32]);

        impl $name {
            /// The 32 bytes of the id.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(&self.0[..8]))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let mut digits = [0; 64];
                hex::encode_to_slice(self.0, &mut digits).map_err(serde::ser::Error::custom)?;
                to.serialize_str(str::from_utf8(&digits).map_err(serde::ser::Error::custom)?)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_str(HexVisitor).map(Self)
            }
        }
    )+};
}

ids! {
    /// SHA-256 of a blob's plain bytes.
    BlobId,
    /// SHA-256 of the plain bytes of a tree blob.
    TreeId,
    /// SHA-256 of a whole pack object.
    PackId,
    /// SHA-256 of a stored index object.
    IndexId,
    /// SHA-256 of a stored snapshot object.
    SnapshotId,
    /// SHA-256 of a stored lock object.
    LockId,
    /// SHA-256 of a stored mark object.
    MarkId,
    /// SHA-256 of a stored key object.
    KeyId,
    /// The random id in a repository's config.
    RepositoryId,
}

impl TreeId {
    pub(crate) fn blob(self) -> BlobId {
        BlobId(self.0)
    }
}

impl BlobId {
    pub(crate) fn of(plain: &[u8]) -> Self {
        Self(sha256(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_exactly_one_spelling() {
        let text = "ab".repeat(32);
        assert_eq!(text.parse::<PackId>().unwrap().to_string(), text);
        for wrong in ["", "ab", &"AB".repeat(32), &"xy".repeat(32), &"ab".repeat(33)] {
            assert_eq!(wrong.parse::<PackId>(), Err(InvalidId), "{wrong}");
        }
    }
}
