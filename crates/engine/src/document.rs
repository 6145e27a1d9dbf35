//! Stored objects that are not packs: sealed JSON, compressed behind a version byte.

use std::io::Read;

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{crypto::Key, error::EngineError};

/// The first byte of compressed JSON; JSON itself begins with a brace or bracket.
const COMPRESSED: u8 = 2;
/// Documents are small, and what they say twice compresses at any level.
const ZSTD_LEVEL: i32 = 3;
/// A document that decompresses to more is a bomb.
const PLAIN_BYTES_MAX: u64 = 512 << 20;

pub(crate) fn seal<T: Serialize>(key: &Key, value: &T) -> Result<Vec<u8>, EngineError> {
    let json = to_json(value)?;
    let mut plain = vec![COMPRESSED];
    let compressed = zstd::bulk::compress(&json, ZSTD_LEVEL)
        .map_err(|error| EngineError::bug(format!("zstd cannot compress: {error}")))?;
    plain.extend_from_slice(&compressed);
    key.seal(&plain)
}

/// Opens a document; the error says what is wrong with it.
pub(crate) fn open<T: DeserializeOwned>(key: &Key, sealed: &[u8]) -> Result<T, String> {
    let plain = key.open(sealed).map_err(|_| "is not sealed by the repository's key")?;
    match plain.split_first() {
        Some((b'{' | b'[', _)) => from_json(&plain),
        Some((&COMPRESSED, compressed)) => from_json(&decompress(compressed)?),
        Some((version, _)) => Err(format!("has the unknown encoding {version}")),
        None => Err("is empty".into()),
    }
}

fn decompress(compressed: &[u8]) -> Result<Vec<u8>, String> {
    let wrong = |error| format!("does not decompress: {error}");
    let mut json = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(wrong)?;
    let mut limited = decoder.take(PLAIN_BYTES_MAX + 1);
    limited.read_to_end(&mut json).map_err(wrong)?;
    if json.len() as u64 > PLAIN_BYTES_MAX {
        return Err("decompresses to more than any such object".into());
    }
    Ok(json)
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Zeroizing<Vec<u8>>, EngineError> {
    serde_json::to_vec(value)
        .map(Zeroizing::new)
        .map_err(|error| EngineError::bug(format!("a value has no JSON: {error}")))
}

/// The error's text names the place, never the content.
pub(crate) fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| name_place(&error))
}

/// The same from a stream.
pub(crate) fn read_json<T: DeserializeOwned>(json: impl Read) -> Result<T, String> {
    serde_json::from_reader(json).map_err(|error| name_place(&error))
}

fn name_place(error: &serde_json::Error) -> String {
    format!("is not the JSON it must be, line {} column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_compressed_documents_are_read() {
        let key = Key::random().unwrap();
        let value = vec![String::from("a"), String::from("b")];
        let compressed = seal(&key, &value).unwrap();
        let plain = key.seal(br#"["a","b"]"#).unwrap();
        for sealed in [compressed, plain] {
            assert_eq!(open::<Vec<String>>(&key, &sealed).as_ref(), Ok(&value));
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let key = Key::random().unwrap();
        for plain in [&b""[..], b"\x01[]", b"\x02not zstd", b"[1,", b"{}"] {
            let sealed = key.seal(plain).unwrap();
            assert!(open::<Vec<String>>(&key, &sealed).is_err(), "{plain:?}");
        }
        assert!(open::<Vec<String>>(&key, b"short").is_err());
    }
}
