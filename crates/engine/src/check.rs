//! The engine's own judgement of a repository. Sharper than restic's in one point: a
//! file's size must be the sum of its blobs.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use crate::{
    backend::{ObjectKind, ObjectName},
    blob::{BlobKind, Decoder},
    chunk::zero_block_id,
    control::CancelFlag,
    error::EngineError,
    id::{PackId, TreeId},
    index,
    list::Entry,
    pack::{self, HEADER_LENGTH_BYTES, PackEntry, PackedBlob},
    read::blob_name,
    repository::{Indexed, Repository},
    tree::{Node, NodeKind},
};

/// Whether a check reads the packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadData {
    /// Structure only: index, snapshots, trees, presence and size of packs.
    No,
    /// Every byte of every pack as well.
    Yes,
}

/// Something a check found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a check saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Snapshots walked.
    pub snapshots: u64,
    /// Distinct trees read.
    pub trees: u64,
    /// Packs in the index.
    pub packs: u64,
    /// Blobs in the index, repeated ones counted each time.
    pub blobs: u64,
    /// Packs in the store that no index object lists: remnants of failed backups.
    pub unindexed_packs: u64,
    /// Bytes of packs read.
    pub read_bytes: u64,
    /// Everything found wrong.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    /// Notes damage; other errors end the check.
    fn note(&mut self, error: EngineError) -> Result<(), EngineError> {
        match error {
            EngineError::Damaged { object, what } => {
                self.problems.push(Problem { object, what });
                Ok(())
            }
            other => Err(other),
        }
    }

    fn note_if_damaged(&mut self, checked: Result<(), EngineError>) -> Result<(), EngineError> {
        checked.or_else(|error| self.note(error))
    }
}

/// Packs are hashed in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;

impl Repository<Indexed> {
    /// Looks at everything the snapshots need. What is wrong with the repository is in
    /// the report; an error says that the check could not be made.
    pub fn check(
        &self,
        read_data: ReadData,
        cancel: &CancelFlag,
    ) -> Result<CheckReport, EngineError> {
        let mut report = CheckReport::default();
        self.note_refresh(&mut report)?;
        self.check_packs(read_data, cancel, &mut report)?;
        self.check_snapshots(cancel, &mut report)?;
        Ok(report)
    }

    /// A damaged index object must not end the check; the packs it lists are missing
    /// then, and reported where they are needed.
    fn note_refresh(&self, report: &mut CheckReport) -> Result<(), EngineError> {
        match self.refresh() {
            Ok(()) | Err(EngineError::Damaged { .. }) => Ok(()),
            Err(error) => report.note(error),
        }
    }

    fn check_packs(
        &self,
        read_data: ReadData,
        cancel: &CancelFlag,
        report: &mut CheckReport,
    ) -> Result<(), EngineError> {
        let mut sizes = HashMap::new();
        for listed in self.vault.list(ObjectKind::Pack)? {
            if let ObjectName::Pack(id) = listed.name {
                sizes.insert(id, listed.size_bytes);
            }
        }
        let mut seen = HashSet::new();
        for object in index::list_objects(&self.vault)? {
            let packs = match index::load_object(&self.vault, object) {
                Ok(packs) => packs,
                Err(error) => {
                    report.note(error)?;
                    continue;
                }
            };
            for pack in packs {
                cancel.check()?;
                report.blobs += pack.blobs.len() as u64;
                if seen.insert(pack.id) {
                    report.packs += 1;
                    let checked = self.check_pack(&pack, &sizes, read_data, report);
                    report.note_if_damaged(checked)?;
                }
            }
        }
        report.unindexed_packs = sizes.keys().filter(|id| !seen.contains(id)).count() as u64;
        Ok(())
    }

    fn check_pack(
        &self,
        pack: &PackEntry,
        sizes: &HashMap<PackId, u64>,
        read_data: ReadData,
        report: &mut CheckReport,
    ) -> Result<(), EngineError> {
        let name = ObjectName::Pack(pack.id);
        let size = *sizes.get(&pack.id).ok_or_else(|| EngineError::damaged(name, "missing"))?;
        let expected = pack::pack_bytes(&pack.blobs);
        if size != expected {
            let what = format!("has {size} bytes, by the index {expected}");
            return Err(EngineError::damaged(name, what));
        }
        match read_data {
            ReadData::No => Ok(()),
            ReadData::Yes => {
                report.read_bytes += 2 * size;
                self.read_pack(pack, size)
            }
        }
    }

    fn read_pack(&self, pack: &PackEntry, size: u64) -> Result<(), EngineError> {
        let name = ObjectName::Pack(pack.id);
        if self.hash_pack(&name, size)? != pack.id.0 {
            return Err(EngineError::damaged(name, "does not have the hash it is named by"));
        }
        let mut blobs = pack.blobs.clone();
        blobs.sort_by_key(|blob| blob.offset);
        if self.read_header(&name, size)? != blobs {
            return Err(EngineError::damaged(name, "lists other blobs than the index"));
        }
        let mut decoder = Decoder::new()?;
        let mut sealed = Vec::new();
        for blob in &blobs {
            sealed.resize(blob.shape.length as usize, 0);
            self.vault.read_at(&name, u64::from(blob.offset), &mut sealed)?;
            let opened = decoder.decode_verified(&self.vault.key, &sealed, blob.shape, blob.id);
            opened.map_err(|fault| {
                EngineError::damaged(name, format!("{} {fault}", blob_name(blob.kind, blob.id)))
            })?;
        }
        Ok(())
    }

    fn hash_pack(&self, name: &ObjectName, size: u64) -> Result<[u8; 32], EngineError> {
        let mut hash = Sha256::new();
        let mut piece = Vec::new();
        let mut offset = 0;
        while offset < size {
            let len = PIECE_BYTES.min(size - offset);
            piece.resize(usize::try_from(len).unwrap_or(0), 0);
            self.vault.read_at(name, offset, &mut piece)?;
            hash.update(&piece);
            offset += len;
        }
        Ok(hash.finalize().into())
    }

    /// The pack has the size its blobs and their header add up to.
    fn read_header(&self, name: &ObjectName, size: u64) -> Result<Vec<PackedBlob>, EngineError> {
        let damaged = |what: &str| EngineError::damaged(name, what);
        let mut field = [0; HEADER_LENGTH_BYTES];
        let header_end = size - field.len() as u64;
        self.vault.read_at(name, header_end, &mut field)?;
        let length = u32::from_le_bytes(field);
        let start = header_end.checked_sub(u64::from(length));
        let start = start.ok_or_else(|| damaged("has a header longer than itself"))?;
        let mut sealed = vec![0; length as usize];
        self.vault.read_at(name, start, &mut sealed)?;
        let header = self.vault.key.open(&sealed);
        let header =
            header.map_err(|_| damaged("has a header not sealed by the repository's key"))?;
        pack::parse_header(&header).ok_or_else(|| damaged("has a senseless header"))
    }

    fn check_snapshots(
        &self,
        cancel: &CancelFlag,
        report: &mut CheckReport,
    ) -> Result<(), EngineError> {
        let loaded = self.state.snapshots.load(&self.vault)?;
        for damage in loaded.damaged {
            report.note(damage)?;
        }
        let mut seen = HashSet::new();
        for snapshot in loaded.readable {
            report.snapshots += 1;
            let mut open = vec![snapshot.tree];
            while let Some(id) = open.pop() {
                cancel.check()?;
                if seen.insert(id) {
                    report.trees += 1;
                    self.check_tree(id, &mut open, report)?;
                }
            }
        }
        Ok(())
    }

    fn check_tree(
        &self,
        id: TreeId,
        open: &mut Vec<TreeId>,
        report: &mut CheckReport,
    ) -> Result<(), EngineError> {
        let tree = match self.load_tree(id) {
            Ok(tree) => tree,
            Err(error) => return report.note(error),
        };
        for node in &tree.nodes {
            let checked = match node.kind {
                NodeKind::Dir => match node.subtree {
                    Some(subtree) => {
                        open.push(subtree);
                        Ok(())
                    }
                    None => Err(node_damage(id, node, "is a directory without a tree")),
                },
                NodeKind::File => self.check_file(id, node),
                NodeKind::Other => Ok(()),
            };
            report.note_if_damaged(checked)?;
        }
        Ok(())
    }

    fn check_file(&self, tree: TreeId, node: &Node) -> Result<(), EngineError> {
        let content = node.content.as_ref();
        let content = content.ok_or_else(|| node_damage(tree, node, "has no list of blobs"))?;
        let mut sum: u64 = 0;
        for entry in content.entries() {
            let (id, count) = match entry {
                Entry::Zeroes(count) => (zero_block_id(), count),
                Entry::Data(id) => (id, 1),
            };
            let len = self.data_bytes_of(id)?.ok_or_else(|| {
                let blob = blob_name(BlobKind::Data, id);
                node_damage(tree, node, &format!("needs {blob}, which is missing"))
            })?;
            sum = sum.saturating_add(u64::from(len) * u64::from(count));
        }
        if sum == node.size {
            return Ok(());
        }
        let what = format!("has size {} and blobs of {sum} bytes", node.size);
        Err(node_damage(tree, node, &what))
    }
}

fn node_damage(tree: TreeId, node: &Node, what: &str) -> EngineError {
    EngineError::damaged(format!("tree {tree}"), format!("node {:?} {what}", node.name))
}
