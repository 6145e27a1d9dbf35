//! Index objects of packs that do not exist, to measure the index at sizes nobody wants
//! to store. A repository that holds them is good for nothing else.

use crate::{
    blob::{BlobKind, Shape},
    error::EngineError,
    id::{BlobId, PackId, sha256},
    index::{self, INDEX_BLOBS_MAX},
    pack::{PackEntry, PackedBlob},
    repository::{Indexed, Open, Repository},
};

/// As chunks of 512 KiB fill a pack of 16 MiB when they compress to three quarters.
const PACK_BLOBS: u64 = 42;

/// The blob of a number.
fn blob(number: u64) -> BlobId {
    BlobId(sha256(&number.to_le_bytes()))
}

/// Writes index objects that list the blobs of all numbers below `blobs`, each object as
/// large as backups make them.
pub fn store_made_up_index(repository: &Repository<Open>, blobs: u64) -> Result<(), EngineError> {
    let mut packs: Vec<PackEntry> = Vec::new();
    let mut listed = 0;
    for first in (0..blobs).step_by(usize::try_from(PACK_BLOBS).unwrap_or(1)) {
        let numbers = first..blobs.min(first + PACK_BLOBS);
        let (mut pack, mut offset) = (PackEntry { id: pack_id(first), blobs: Vec::new() }, 0);
        for number in numbers {
            let id = blob(number);
            // Sizes as different as those of real blobs: they are what does not compress.
            let length = 200_000 + u32::from(u16::from_le_bytes([id.0[0], id.0[1]])) * 6;
            let shape = Shape { length, uncompressed_length: 512 << 10 };
            pack.blobs.push(PackedBlob { id, kind: BlobKind::Data, offset, shape });
            offset += length;
        }
        listed += pack.blobs.len();
        packs.push(pack);
        if listed >= INDEX_BLOBS_MAX {
            index::store_object(&repository.vault, &packs)?;
            packs.clear();
            listed = 0;
        }
    }
    if !packs.is_empty() {
        index::store_object(&repository.vault, &packs)?;
    }
    Ok(())
}

fn pack_id(first: u64) -> PackId {
    PackId(sha256(&[b"pack", &first.to_le_bytes()[..]].concat()))
}

/// Looks up the blobs of these numbers; returns how many are found.
pub fn look_up_made_up(
    repository: &Repository<Indexed>,
    numbers: impl IntoIterator<Item = u64>,
) -> Result<u64, EngineError> {
    let mut found = 0;
    for number in numbers {
        found += u64::from(repository.state.index.find(BlobKind::Data, blob(number))?.is_some());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        backend::MemoryBackend,
        crypto::{KdfCost, Password},
        repository::CreateOptions,
        time::Timestamp,
    };

    #[test]
    fn exactly_the_blobs_that_were_made_up_are_found() {
        let options = CreateOptions {
            password: &Password::new("x"),
            kdf: KdfCost::CHEAP,
            created_at: Timestamp::from_micros(0),
            access: None,
        };
        let repository = Repository::create(Arc::new(MemoryBackend::new()), &options).unwrap();
        store_made_up_index(&repository, 60_000).unwrap();
        let repository = repository.load_index().unwrap();
        let report = repository.index_report();
        assert_eq!((report.objects, report.blobs, report.packs), (2, 60_000, 1_429));
        assert_eq!(look_up_made_up(&repository, 59_000..61_000).unwrap(), 1_000);
    }
}
