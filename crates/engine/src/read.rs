//! Reading what snapshots hold. Nothing read is trusted: every blob must carry the
//! repository's seal and have its hash.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use crate::{
    backend::ObjectName,
    blob::{BlobKind, Decoder},
    chunk::{ChunkSize, Cut, Zeroes, zero_block_id},
    control::CancelFlag,
    error::EngineError,
    id::{BlobId, IndexId, PackId, SnapshotId, TreeId},
    index::Location,
    list::{BlobIds, BlobList, Entry},
    repository::{Indexed, Repository},
    snapshot::Snapshot,
    stream,
    tree::{FINGERPRINT_FILE, Node, NodeKind, Tree, VOLUME_FILE},
};

/// Files beside volumes are read into memory; larger ones are none of ours.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What index objects know of what a snapshot names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// All that restoring its volumes takes is listed, whatever became of it since.
    Whole,
    /// Some of it is listed nowhere.
    Partial,
    /// The snapshot, or a tree that is listed, cannot be read.
    Unreadable,
}

/// A snapshot whose root tree has been read.
#[derive(Debug)]
pub struct SnapshotView {
    repository: Arc<Repository<Indexed>>,
    snapshot: Snapshot,
    root: Tree,
}

/// A volume in a snapshot: its size and the list of its blobs. Serves as the parent of
/// the next backup, and as what is restored or compared.
#[derive(Debug)]
pub struct VolumeView {
    size_bytes: u64,
    subtree: TreeId,
    chunk_size: Option<ChunkSize>,
    content: BlobList,
    /// Size and blobs of the file of fingerprints.
    fingerprints: Option<(u64, BlobList)>,
}

impl SnapshotView {
    /// The snapshot object.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Names of the directories in the root, sorted: the volumes.
    pub fn volume_names(&self) -> Vec<&str> {
        self.names(NodeKind::Dir)
    }

    /// Names of the files beside the volumes, sorted.
    pub fn file_names(&self) -> Vec<&str> {
        self.names(NodeKind::File)
    }

    fn names(&self, kind: NodeKind) -> Vec<&str> {
        let nodes = self.root.nodes.iter().filter(|node| node.kind == kind);
        let mut names: Vec<_> = nodes.map(|node| node.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    fn find(&self, name: &str, kind: NodeKind) -> Result<&Node, EngineError> {
        let not_found = || EngineError::EntryNotFound { name: name.into() };
        self.root.find(name, kind).ok_or_else(not_found)
    }

    /// Reads the list of a volume's blobs.
    pub fn volume(&self, name: &str) -> Result<VolumeView, EngineError> {
        let dir = self.find(name, NodeKind::Dir)?;
        let damaged = |what: &str| EngineError::damaged(format!("volume {name:?}"), what);
        let subtree = dir.subtree.ok_or_else(|| damaged("is a directory without a tree"))?;
        let mut tree = self.repository.load_tree(subtree)?;
        let is_fingerprints = |node: &&mut Node| node.name == FINGERPRINT_FILE;
        let fingerprints = tree.nodes.iter_mut().find(is_fingerprints);
        let fingerprints = fingerprints.and_then(|node| Some((node.size, node.content.take()?)));
        let is_disk = |node: &Node| node.name == VOLUME_FILE && node.kind == NodeKind::File;
        let position = tree.nodes.iter().position(is_disk);
        let node = tree.nodes.swap_remove(position.ok_or_else(|| damaged("has no disk"))?);
        let content = node.content.ok_or_else(|| damaged("has no list of blobs"))?;
        let chunk_size = self.repository.chunk_size_of(node.size, &content)?;
        Ok(VolumeView { size_bytes: node.size, subtree, chunk_size, content, fingerprints })
    }

    /// Reads a file beside the volumes.
    pub fn file(&self, name: &str) -> Result<Vec<u8>, EngineError> {
        let node = self.find(name, NodeKind::File)?;
        let damaged = |what: &str| EngineError::damaged(format!("file {name:?}"), what);
        if node.size > FILE_BYTES_MAX {
            return Err(damaged("is larger than any such file"));
        }
        let mut bytes = Vec::new();
        for id in node.content.iter().flatten() {
            bytes.extend_from_slice(&self.repository.load_data(id)?);
            if bytes.len() as u64 > node.size {
                break;
            }
        }
        if bytes.len() as u64 == node.size {
            Ok(bytes)
        } else {
            Err(damaged("does not have the sum of its blobs as size"))
        }
    }
}

impl VolumeView {
    /// The volume's size.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The tree that holds the volume.
    pub fn subtree(&self) -> TreeId {
        self.subtree
    }

    /// How the volume is cut; `None` when not into chunks as the engine cuts.
    pub fn chunk_size(&self) -> Option<ChunkSize> {
        self.chunk_size
    }

    /// The volume's blobs in order.
    pub fn blobs(&self) -> &BlobList {
        &self.content
    }

    /// The distinct blobs by which the list expresses zeroes.
    pub(crate) fn zero_blobs(&self) -> impl Iterator<Item = BlobId> + '_ {
        let zeroes = Zeroes::of_volume(self.size_bytes);
        let has_block = self.content.len() > self.content.data().len() as u64;
        let mut of_data = self.content.data().iter().copied();
        let remainder = of_data.find(move |id| zeroes.len_of(*id).is_some());
        has_block.then(zero_block_id).into_iter().chain(remainder)
    }

    /// Size and blobs of the file of fingerprints, if there is one.
    pub(crate) fn fingerprints(&self) -> Option<&(u64, BlobList)> {
        self.fingerprints.as_ref()
    }

    pub(crate) fn cut(&self) -> Option<Cut> {
        let cut = |chunk_size| Cut { size_bytes: self.size_bytes, chunk_size };
        self.chunk_size.map(cut)
    }

    pub(crate) fn cut_content(&self) -> Option<(Cut, BlobIds<'_>)> {
        self.cut().map(|cut| (cut, self.content.iter()))
    }
}

impl Repository<Indexed> {
    /// Reads a snapshot's root. The index is refreshed, so that what other processes
    /// stored is found.
    pub fn open_snapshot(self: &Arc<Self>, id: SnapshotId) -> Result<SnapshotView, EngineError> {
        let snapshot = self.get_snapshot(id)?;
        self.refresh()?;
        let root = self.load_tree(snapshot.tree)?;
        Ok(SnapshotView { repository: Arc::clone(self), snapshot, root })
    }

    /// The plain bytes of one blob of data.
    pub(crate) fn load_data(&self, id: BlobId) -> Result<Vec<u8>, EngineError> {
        let mut decoder = Decoder::new()?;
        self.load_blob(BlobKind::Data, id, |sealed, location| {
            let plain = decoder.decode_verified(&self.vault.key, sealed, location.shape, id);
            plain.map(<[u8]>::to_vec).map_err(|fault| fault.to_string())
        })
    }

    /// A tree, read as it decompresses.
    pub(crate) fn load_tree(&self, id: TreeId) -> Result<Tree, EngineError> {
        self.load_blob(BlobKind::Tree, id.blob(), |sealed, location| {
            stream::read_tree(&self.vault.key, sealed, location.shape, id)
        })
    }

    /// Reads a blob's sealed bytes and lets `open` make something of them. Places are
    /// tried from best to worst until one is sound; the error is that of the best.
    pub(crate) fn load_blob<T>(
        &self,
        kind: BlobKind,
        id: BlobId,
        mut open: impl FnMut(&[u8], Location) -> Result<T, String>,
    ) -> Result<T, EngineError> {
        let mut of_best = None;
        for location in self.state.index.find_all(kind, id)? {
            let pack = ObjectName::Pack(location.pack);
            let mut sealed = vec![0; location.shape.length as usize];
            let read = self.vault.read_at(&pack, u64::from(location.offset), &mut sealed);
            let opened = read.and_then(|()| {
                open(&sealed, location).map_err(|what| {
                    EngineError::damaged(pack, format!("{} {what}", blob_name(kind, id)))
                })
            });
            match opened {
                Err(error @ EngineError::Damaged { .. }) => {
                    if !self.state.index.is_marked(location.pack, id) {
                        self.state.suspects.note(location.pack);
                    }
                    of_best = of_best.or(Some(error));
                }
                other => return other,
            }
        }
        Err(of_best.unwrap_or_else(|| EngineError::damaged(blob_name(kind, id), "missing")))
    }

    /// A blob's plain length, if the index knows the blob.
    pub(crate) fn data_bytes_of(&self, id: BlobId) -> Result<Option<u32>, EngineError> {
        let found = self.state.index.find(BlobKind::Data, id)?;
        Ok(found.map(|found| found.shape.plain_bytes()))
    }

    /// The size of chunks a content list consists of.
    fn chunk_size_of(
        &self,
        size_bytes: u64,
        content: &BlobList,
    ) -> Result<Option<ChunkSize>, EngineError> {
        let zeroes = Zeroes::of_volume(size_bytes);
        let len_of = |id| match zeroes.len_of(id) {
            Some(len) => Ok(Some(len)),
            None => self.data_bytes_of(id),
        };
        // Lists of zeroes alone fit every size; then the usual one is as good as any.
        let usual = ChunkSize::for_volume(size_bytes);
        for chunk_size in std::iter::once(usual).chain(ChunkSize::ALL) {
            if (Cut { size_bytes, chunk_size }).fits(content, len_of)? {
                return Ok(Some(chunk_size));
            }
        }
        Ok(None)
    }

    /// Fails unless the index knows a sound place of every blob below a tree.
    pub(crate) fn require_complete(
        &self,
        root: TreeId,
        cancel: &CancelFlag,
    ) -> Result<(), EngineError> {
        self.visit_blobs(
            root,
            cancel,
            |_| Ok(()),
            |_| true,
            |_, blob| {
                let is_known = self.state.index.contains(BlobKind::Data, blob)?;
                if is_known { Ok(()) } else { Err(missing(blob)) }
            },
        )
    }

    /// Whether a tree and all below it is listed and can be read, as far as that is known
    /// without reading data.
    pub fn is_complete(&self, tree: TreeId, cancel: &CancelFlag) -> Result<bool, EngineError> {
        match self.require_complete(tree, cancel) {
            Ok(()) => Ok(true),
            Err(EngineError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether everything that restoring a snapshot's volumes takes can be had, as far as
    /// that is known without reading data: its trees can be read, and every blob, of trees too,
    /// is listed by a pack in which nobody found it damaged. Index and marks are refreshed. An error
    /// says that it is not known: that of a mark or an index object nobody can read, too. So
    /// does that of the snapshot object itself: it may come back.
    pub fn is_whole(&self, id: SnapshotId, cancel: &CancelFlag) -> Result<bool, EngineError> {
        let marks = self.read_marks()?;
        self.state.index.refresh(&self.vault)?;
        marks.require_sound()?;
        let mut lost_packs: HashSet<_> = marks.gone().collect();
        let mut lost_blobs = HashSet::new();
        for (_, damage) in marks.damage() {
            match &damage.blobs {
                Some(blobs) => lost_blobs.extend(blobs.iter().map(|blob| (damage.pack, *blob))),
                None => drop(lost_packs.insert(damage.pack)),
            }
        }
        let is_volume = |node: &Node| node.name == VOLUME_FILE;
        let require = |kind, blob| {
            let places = self.state.index.find_all(kind, blob)?;
            let can_be_had = places.iter().any(|place| {
                !lost_packs.contains(&place.pack) && !lost_blobs.contains(&(place.pack, blob))
            });
            let lost = || EngineError::damaged(blob_name(kind, blob), "missing");
            if can_be_had { Ok(()) } else { Err(lost()) }
        };
        // One that can be read now may be what a mark speaks of all the same: what is said here
        // holds as long as the marks do.
        let require_tree = |tree: TreeId| require(BlobKind::Tree, tree.blob());
        let require_data = |zeroes: &Zeroes, blob| match zeroes.len_of(blob) {
            // Zeroes are written without their blob.
            Some(_) => Ok(()),
            None => require(BlobKind::Data, blob),
        };
        let tree = self.get_snapshot(id)?.tree;
        let visited = self.visit_blobs(tree, cancel, require_tree, is_volume, require_data);
        match (visited, self.damaged_index_objects().into_iter().next()) {
            (Ok(()), _) => Ok(true),
            // What it lists may be just what is missing.
            (Err(EngineError::Damaged { .. }), Some((object, what))) => {
                Err(EngineError::damaged(ObjectName::Index(object), what))
            }
            (Err(EngineError::Damaged { .. }), _) => Ok(false),
            (Err(error), _) => Err(error),
        }
    }

    /// What index objects know of these snapshots, one answer each, and the index objects that
    /// the answers rest on. The index is refreshed.
    pub fn find_listed(
        &self,
        ids: &[SnapshotId],
        cancel: &CancelFlag,
    ) -> Result<(Vec<Listing>, BTreeSet<IndexId>), EngineError> {
        self.state.index.refresh(&self.vault)?;
        // Others may forget, meanwhile, what is gone.
        let mut objects = self.state.index.objects();
        let mut listed = HashSet::new();
        let find = |id: &SnapshotId| {
            let mut seen = HashSet::new();
            let listing = self.is_listed_whole(*id, &listed, &mut seen, cancel)?;
            if listing == Listing::Whole {
                listed.extend(seen);
            }
            Ok(listing)
        };
        let listings = ids.iter().map(find).collect::<Result<_, EngineError>>()?;
        objects.extend(self.state.index.objects());
        Ok((listings, objects))
    }

    /// Passes over trees that are known to be `listed` with all below them; those it finds go
    /// to `seen`.
    fn is_listed_whole(
        &self,
        id: SnapshotId,
        listed: &HashSet<TreeId>,
        seen: &mut HashSet<TreeId>,
        cancel: &CancelFlag,
    ) -> Result<Listing, EngineError> {
        let is_unreadable = |error: &EngineError| {
            matches!(error, EngineError::Damaged { .. } | EngineError::SnapshotNotFound(_))
                || self.vault.is_of_one_object(error)
        };
        let mut open = match self.get_snapshot(id) {
            Ok(snapshot) => vec![snapshot.tree],
            Err(error) if is_unreadable(&error) => return Ok(Listing::Unreadable),
            Err(error) => return Err(error),
        };
        while let Some(tree) = open.pop() {
            cancel.check()?;
            if listed.contains(&tree) || !seen.insert(tree) {
                continue;
            }
            if self.state.index.find(BlobKind::Tree, tree.blob())?.is_none() {
                return Ok(Listing::Partial);
            }
            let nodes = match self.load_tree(tree) {
                Ok(tree) => tree.nodes,
                Err(error) if is_unreadable(&error) => return Ok(Listing::Unreadable),
                Err(error) => return Err(error),
            };
            for node in nodes {
                open.extend(node.subtree);
                let Some(content) = node.content.as_ref().filter(|_| node.name == VOLUME_FILE)
                else {
                    continue;
                };
                let zeroes = Zeroes::of_volume(node.size);
                for entry in content.entries() {
                    cancel.check()?;
                    // Zeroes are written without their blob.
                    if let Entry::Data(blob) = entry
                        && zeroes.len_of(blob).is_none()
                        && self.state.index.find(BlobKind::Data, blob)?.is_none()
                    {
                        return Ok(Listing::Partial);
                    }
                }
            }
        }
        Ok(Listing::Whole)
    }

    /// The packs that data of a snapshot's volumes lies in, as the index tells now. What it does
    /// not list lies in none.
    pub fn packs_of(
        &self,
        id: SnapshotId,
        cancel: &CancelFlag,
    ) -> Result<BTreeSet<PackId>, EngineError> {
        let packs = RefCell::new(BTreeSet::new());
        let is_volume = |node: &Node| node.name == VOLUME_FILE;
        let note = |_: &Zeroes, blob| {
            let place = self.state.index.find(BlobKind::Data, blob)?;
            packs.borrow_mut().extend(place.map(|place| place.pack));
            Ok(())
        };
        let tree = self.get_snapshot(id)?.tree;
        self.visit_blobs(tree, cancel, |_| Ok(()), is_volume, note)?;
        Ok(packs.into_inner())
    }

    /// Shows `enter` each tree before it is read, and `visit` the blobs of data below, of those
    /// files that are wanted. It hears by which blobs a file's zeroes may be expressed.
    fn visit_blobs(
        &self,
        root: TreeId,
        cancel: &CancelFlag,
        enter: impl Fn(TreeId) -> Result<(), EngineError>,
        is_wanted: impl Fn(&Node) -> bool,
        visit: impl Fn(&Zeroes, BlobId) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut seen = HashSet::from([root]);
        let mut open = vec![root];
        while let Some(id) = open.pop() {
            cancel.check()?;
            enter(id)?;
            for node in self.load_tree(id)?.nodes {
                open.extend(node.subtree.filter(|subtree| seen.insert(*subtree)));
                let Some(content) = node.content.as_ref().filter(|_| is_wanted(&node)) else {
                    continue;
                };
                let zeroes = Zeroes::of_volume(node.size);
                for entry in content.entries() {
                    cancel.check()?;
                    match entry {
                        Entry::Zeroes(_) => visit(&zeroes, zero_block_id())?,
                        Entry::Data(blob) => visit(&zeroes, blob)?,
                    }
                }
            }
        }
        Ok(())
    }
}

fn missing(blob: BlobId) -> EngineError {
    EngineError::damaged(blob_name(BlobKind::Data, blob), "missing")
}

pub(crate) fn blob_name(kind: BlobKind, id: BlobId) -> String {
    match kind {
        BlobKind::Data => format!("blob {id}"),
        BlobKind::Tree => format!("tree {id}"),
    }
}
