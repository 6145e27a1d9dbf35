//! Trees as streams. The tree of a volume of 1 TiB is 140 MB of JSON: it is hashed,
//! compressed, decompressed and parsed piece by piece and never held whole.
//!
//! Invariant: a tree that was read is used only after its length and its hash were
//! compared; one that was sealed was opened and hashed again before it counts.

use std::io::{self, BufReader, BufWriter, Read, Write};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    blob::{BlobFault, Shape},
    crypto::{Key, SEAL_BYTES},
    error::EngineError,
    id::{BlobId, TreeId},
    tree::{self, NewNode, Tree},
};

/// Trees repeat the same words, and their hashes do not compress at any level.
const TREE_ZSTD_LEVEL: i32 = 3;
/// Pieces that pass from one step to the next.
const PIECE_BYTES: usize = 64 << 10;

/// The hash of a tree and the length of its JSON.
pub(crate) fn hash_tree<C: Serialize>(
    nodes: &[NewNode<'_, C>],
) -> Result<(TreeId, u64), EngineError> {
    let mut hash = BufWriter::with_capacity(PIECE_BYTES, HashWriter::default());
    tree::write_json(nodes, &mut hash)?;
    let hash = hash.into_inner().map_err(|_| EngineError::bug("hashing cannot fail"))?;
    Ok((TreeId(hash.hash.finalize().into()), hash.bytes))
}

/// Appends a sealed tree, whose hash and length are known, to `out`.
pub(crate) fn seal_tree<C: Serialize>(
    key: &Key,
    nodes: &[NewNode<'_, C>],
    id: TreeId,
    bytes: u64,
    out: &mut Vec<u8>,
) -> Result<Shape, EngineError> {
    let too_long = |_| EngineError::bug("a blob of 4 GiB");
    let mut plain = compress(nodes, bytes)?;
    let is_smaller = (plain.len() as u64) < bytes;
    if !is_smaller {
        plain.clear();
        tree::write_json(nodes, &mut plain)?;
    }
    let start = out.len();
    // To the byte: a list may be large, and doubling would hold it twice.
    out.reserve_exact(plain.len() + SEAL_BYTES);
    key.seal_into(&plain, out)?;
    drop(plain);
    let shape = Shape {
        length: u32::try_from(out.len() - start).map_err(too_long)?,
        uncompressed_length: if is_smaller { u32::try_from(bytes).map_err(too_long)? } else { 0 },
    };
    match copy_plain(key, &out[start..], shape, id.blob(), &mut io::sink()) {
        Ok(()) => Ok(shape),
        Err(_) => Err(EngineError::bug(
            "a sealed tree does not open to what was sealed; memory or processor is faulty",
        )),
    }
}

fn compress<C: Serialize>(nodes: &[NewNode<'_, C>], bytes: u64) -> Result<Vec<u8>, EngineError> {
    let cannot = |error| EngineError::bug(format!("zstd cannot compress: {error}"));
    let mut encoder =
        zstd::stream::write::Encoder::new(Vec::new(), TREE_ZSTD_LEVEL).map_err(cannot)?;
    encoder.set_pledged_src_size(Some(bytes)).map_err(cannot)?;
    encoder.include_contentsize(true).map_err(cannot)?;
    let mut writer = BufWriter::with_capacity(PIECE_BYTES, encoder);
    tree::write_json(nodes, &mut writer)?;
    let encoder = writer.into_inner().map_err(|error| cannot(error.into_error()))?;
    encoder.finish().map_err(cannot)
}

/// Opens and reads a tree; the error says what is wrong with it.
pub(crate) fn read_tree(
    key: &Key,
    sealed: &[u8],
    shape: Shape,
    id: TreeId,
) -> Result<Tree, String> {
    let mut parsed = Err(String::new());
    read_plain(key, sealed, shape, id.blob(), |plain| {
        parsed = Tree::read(plain);
        Ok(())
    })
    .map_err(|fault| fault.to_string())?;
    parsed
}

/// Whether sealed bytes are the blob they should be, whatever its length. For trees,
/// which may be large; [`Decoder`](crate::blob::Decoder) is for blobs of data.
pub(crate) fn copy_plain(
    key: &Key,
    sealed: &[u8],
    shape: Shape,
    id: BlobId,
    to: &mut dyn Write,
) -> Result<(), BlobFault> {
    read_plain(key, sealed, shape, id, |plain| io::copy(plain, to).map(drop))
}

/// Plain bytes on their way to the parser.
type Plain<'a> = BufReader<HashReader<io::Take<Box<dyn Read + 'a>>>>;

/// Lets `read` have the plain bytes, then compares length and hash of all of them,
/// read or not. What `read` made of them is worth nothing before this says so.
fn read_plain(
    key: &Key,
    sealed: &[u8],
    shape: Shape,
    id: BlobId,
    read: impl FnOnce(&mut Plain<'_>) -> io::Result<()>,
) -> Result<(), BlobFault> {
    let opened = key.open(sealed).map_err(|_| BlobFault::NotAuthentic)?;
    let not_compressed = |_| BlobFault::NotCompressed;
    let length = u64::from(shape.plain_bytes());
    let plain: Box<dyn Read + '_> = if shape.uncompressed_length == 0 {
        Box::new(opened.as_slice())
    } else {
        let decoder = zstd::stream::read::Decoder::with_buffer(opened.as_slice());
        Box::new(decoder.map_err(not_compressed)?)
    };
    // One byte more than there may be shows that there are more.
    let limited = plain.take(length + 1);
    let hashed = HashReader { from: limited, to: HashWriter::default() };
    let mut reader = BufReader::with_capacity(PIECE_BYTES, hashed);
    read(&mut reader).map_err(not_compressed)?;
    io::copy(&mut reader, &mut io::sink()).map_err(not_compressed)?;
    let HashWriter { hash, bytes } = reader.into_inner().to;
    if bytes != length {
        return Err(BlobFault::NotCompressed);
    }
    let hash: [u8; 32] = hash.finalize().into();
    if hash == *id.as_bytes() { Ok(()) } else { Err(BlobFault::WrongHash) }
}

#[derive(Default)]
struct HashWriter {
    hash: Sha256,
    bytes: u64,
}

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct HashReader<R> {
    from: R,
    to: HashWriter,
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buf)?;
        self.to.write_all(buf.get(..read).unwrap_or_default())?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        blob::Decoder,
        chunk::zero_block_id,
        time::Timestamp,
        tree::{Content, VOLUME_FILE},
    };

    fn key() -> Key {
        Key::from_parts(&[1; 32], &[2; 16], &[3; 16]).unwrap()
    }

    fn seal(ids: &[BlobId]) -> (TreeId, Vec<u8>, Shape) {
        let content = Content(ids.iter().copied());
        let node = NewNode::file(VOLUME_FILE, 7, content, Timestamp::from_micros(0));
        let nodes = [node];
        let (id, bytes) = hash_tree(&nodes).unwrap();
        let mut sealed = Vec::new();
        let shape = seal_tree(&key(), &nodes, id, bytes, &mut sealed).unwrap();
        (id, sealed, shape)
    }

    /// A blob of any JSON under its own hash: authentic, but maybe senseless.
    fn read_json(json: &[u8]) -> Result<Tree, String> {
        let sealed = key().seal(json).unwrap();
        let length = u32::try_from(sealed.len()).unwrap();
        let shape = Shape { length, uncompressed_length: 0 };
        read_tree(&key(), &sealed, shape, TreeId(*BlobId::of(json).as_bytes()))
    }

    #[test]
    fn a_streamed_tree_is_the_blob_a_whole_one_would_be() {
        let number = |n: u32| BlobId::of(&n.to_le_bytes());
        let lists = [
            vec![],
            vec![number(1)],
            vec![zero_block_id(); 5000],
            (0..3000).map(|n| if n % 7 < 4 { zero_block_id() } else { number(n) }).collect(),
        ];
        for ids in lists {
            let (id, sealed, shape) = seal(&ids);
            let mut decoder = Decoder::new().unwrap();
            let json = decoder.decode_verified(&key(), &sealed, shape, id.blob()).unwrap();
            let content = &serde_json::from_slice::<serde_json::Value>(json).unwrap()["nodes"][0];
            let texts: Vec<String> = ids.iter().map(BlobId::to_string).collect();
            assert_eq!(content["content"], serde_json::json!(texts));
            let tree = read_tree(&key(), &sealed, shape, id).unwrap();
            assert_eq!(tree.nodes[0].content, Some(ids.into_iter().collect()));
        }
    }

    #[test]
    fn no_flipped_byte_wrong_length_or_other_hash_is_taken_for_a_tree() {
        let (id, sealed, shape) = seal(&[zero_block_id(); 100]);
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(read_tree(&key(), &flipped, shape, id).is_err(), "byte {at}");
            assert!(read_tree(&key(), &sealed[..at], shape, id).is_err(), "cut to {at}");
        }
        for wrong in [shape.uncompressed_length - 1, shape.uncompressed_length + 1, 0] {
            let shape = Shape { uncompressed_length: wrong, ..shape };
            assert!(read_tree(&key(), &sealed, shape, id).is_err(), "length {wrong}");
        }
        assert!(read_tree(&key(), &sealed, shape, TreeId([0; 32])).is_err());
    }

    #[test]
    fn senseless_json_under_a_right_hash_is_an_error() {
        let deep = [b"{\"nodes\":".as_slice(), &b"[".repeat(100_000)].concat();
        let twice = br#"{"nodes":[{"name":"x","type":"file","content":[],"content":[]}]}"#;
        for json in [
            &b""[..],
            b"[",
            b"null",
            b"{\"nodes\":[]} x",
            b"{\"nodes\":[{\"name\":\"x\",\"type\":\"file\",\"content\":[\"ab\"]}]}",
            b"{\"nodes\":[{\"name\":\"x\",\"type\":\"file\",\"content\":[[[]]]}]}",
            b"{\"nodes\":[{\"name\":\"x\",\"type\":\"file\",\"size\":-1}]}",
            b"{\"nodes\":[],\"nodes\":[]}",
            &twice[..],
            &deep,
        ] {
            assert!(read_json(json).is_err(), "{}", String::from_utf8_lossy(json));
        }
        assert!(read_json(b"{\"nodes\":[{\"x\":[{}],\"name\":\"x\",\"type\":\"a\"}]}\n").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_tree_reader_panic(json: Vec<u8>) {
            let _ = read_json(&json);
        }
    }
}
