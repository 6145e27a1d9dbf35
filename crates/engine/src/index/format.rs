//! Index objects as they are stored: JSON lists of packs and their blobs.
//!
//! Invariant: an entry that no writer makes is damage of its whole object; nothing
//! senseless gets past [`load_object`].

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    backend::{ObjectKind, ObjectName},
    blob::{BlobKind, Shape},
    error::EngineError,
    id::{BlobId, IndexId, PackId},
    pack::{PackEntry, PackedBlob},
    vault::Vault,
};

/// restic's own bound; keeps an index object below some 12 MB of JSON.
pub(crate) const INDEX_BLOBS_MAX: usize = 50_000;

/// All index objects, sorted.
pub(crate) fn list_objects(vault: &Vault) -> Result<Vec<IndexId>, EngineError> {
    let listed = vault.list(ObjectKind::Index)?;
    let mut ids: Vec<_> = listed
        .iter()
        .filter_map(|object| match object.name {
            ObjectName::Index(id) => Some(id),
            ObjectName::Config
            | ObjectName::Access
            | ObjectName::Key(_)
            | ObjectName::Pack(_)
            | ObjectName::Snapshot(_)
            | ObjectName::Lock(_)
            | ObjectName::Mark(_) => None,
        })
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Makes packs findable: writes an index object that lists them.
pub(crate) fn store_object(vault: &Vault, packs: &[PackEntry]) -> Result<IndexId, EngineError> {
    let file = IndexFile { packs: packs.iter().map(PackFile::from).collect() };
    let mut index = IndexId([0; 32]);
    vault.put_document(
        |hash| {
            index = IndexId(hash);
            ObjectName::Index(index)
        },
        &file,
    )?;
    Ok(index)
}

/// The packs an index object lists, every entry checked for sense.
pub(crate) fn load_object(vault: &Vault, id: IndexId) -> Result<Vec<PackEntry>, EngineError> {
    let name = ObjectName::Index(id);
    let listed: Listed = vault.get_document(&name)?;
    match listed.packs.senseless {
        None => Ok(listed.packs.entries),
        Some(blob) => Err(EngineError::damaged(name, format!("senseless entry for blob {blob}"))),
    }
}

/// An index object being read. Packs are checked and taken over one by one, so that the
/// object is never in memory in two forms.
#[derive(Deserialize)]
struct Listed {
    packs: Packs,
}

#[derive(Default)]
struct Packs {
    entries: Vec<PackEntry>,
    /// The first blob whose entry makes no sense.
    senseless: Option<BlobId>,
}

impl<'de> Deserialize<'de> for Packs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(PacksVisitor)
    }
}

struct PacksVisitor;

impl<'de> de::Visitor<'de> for PacksVisitor {
    type Value = Packs;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of packs")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Packs, A::Error> {
        let mut packs = Packs::default();
        while let Some(pack) = seq.next_element::<PackFile>()? {
            let mut blobs = Vec::with_capacity(pack.blobs.len());
            for blob in pack.blobs {
                match blob.checked() {
                    Ok(blob) => blobs.push(blob),
                    Err(id) => packs.senseless = packs.senseless.or(Some(id)),
                }
            }
            packs.entries.push(PackEntry { id: pack.id, blobs });
        }
        Ok(packs)
    }
}

#[derive(Serialize)]
struct IndexFile {
    packs: Vec<PackFile>,
}

#[derive(Serialize, Deserialize)]
struct PackFile {
    id: PackId,
    blobs: Vec<BlobFile>,
}

#[derive(Serialize, Deserialize)]
struct BlobFile {
    id: BlobId,
    #[serde(rename = "type")]
    kind: BlobKind,
    offset: u32,
    length: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    uncompressed_length: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl From<&PackEntry> for PackFile {
    fn from(pack: &PackEntry) -> Self {
        Self { id: pack.id, blobs: pack.blobs.iter().map(BlobFile::from).collect() }
    }
}

impl From<&PackedBlob> for BlobFile {
    fn from(blob: &PackedBlob) -> Self {
        Self {
            id: blob.id,
            kind: blob.kind,
            offset: blob.offset,
            length: blob.shape.length,
            uncompressed_length: blob.shape.uncompressed_length,
        }
    }
}

impl BlobFile {
    /// The blob, or the id of one that no writer makes.
    fn checked(self) -> Result<PackedBlob, BlobId> {
        let shape = Shape { length: self.length, uncompressed_length: self.uncompressed_length };
        if !shape.is_sane(self.kind) || self.offset.checked_add(self.length).is_none() {
            return Err(self.id);
        }
        Ok(PackedBlob { id: self.id, kind: self.kind, offset: self.offset, shape })
    }
}
