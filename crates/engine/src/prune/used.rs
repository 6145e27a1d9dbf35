//! Which blobs snapshots need.
//!
//! Of every blob the first 16 bytes of its id are kept, sorted: 16 bytes for each distinct
//! blob, at most half as much again while it grows, and one bit per question about each.
//! 10 million blobs (5 TB of data) take some 160 MB. Two blobs that share 16 bytes of
//! SHA-256 are not met by chance.

use std::collections::HashSet;

use crate::{
    blob::BlobKind,
    control::CancelFlag,
    error::EngineError,
    id::{BlobId, TreeId},
    repository::{Indexed, Repository},
    tree::NodeKind,
};

/// New ids are sorted in when so many have come together, or half as many as there are.
const TAIL_MIN: usize = 1 << 16;

type Short = [u8; 16];

fn short(id: BlobId) -> Short {
    let (first, _) = id.0.split_at(16);
    first.try_into().unwrap_or_default()
}

/// A set of ids that knows the position of each.
#[derive(Debug, Default)]
struct IdSet {
    sorted: Vec<Short>,
    tail: Vec<Short>,
}

impl IdSet {
    fn insert(&mut self, id: BlobId) {
        self.tail.push(short(id));
        if self.tail.len() >= TAIL_MIN.max(self.sorted.len() / 2) {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.tail.sort_unstable();
        self.tail.dedup();
        let sorted = &self.sorted;
        self.tail.retain(|id| sorted.binary_search(id).is_err());
        self.sorted.append(&mut self.tail);
        self.sorted.sort_unstable();
    }

    fn position(&self, id: BlobId) -> Option<usize> {
        self.sorted.binary_search(&short(id)).ok()
    }
}

/// The blobs below some trees, the trees among them.
#[derive(Debug, Default)]
pub(crate) struct UsedBlobs {
    data: IdSet,
    trees: IdSet,
}

impl UsedBlobs {
    fn of(&self, kind: BlobKind) -> &IdSet {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        }
    }

    pub(crate) fn insert(&mut self, kind: BlobKind, id: BlobId) {
        match kind {
            BlobKind::Data => self.data.insert(id),
            BlobKind::Tree => self.trees.insert(id),
        }
    }

    /// To be called when all have been inserted.
    pub(crate) fn settle(&mut self) {
        self.data.settle();
        self.trees.settle();
    }

    pub(crate) fn contains(&self, kind: BlobKind, id: BlobId) -> bool {
        self.of(kind).position(id).is_some()
    }

    /// Number of distinct blobs.
    pub(crate) fn len(&self) -> usize {
        self.data.sorted.len() + self.trees.sorted.len()
    }
}

/// A bit for every used blob.
#[derive(Clone, Debug)]
pub(crate) struct Bits<'a> {
    used: &'a UsedBlobs,
    data: Vec<u64>,
    trees: Vec<u64>,
}

impl<'a> Bits<'a> {
    pub(crate) fn none(used: &'a UsedBlobs) -> Self {
        let words = |set: &IdSet| vec![0; set.sorted.len().div_ceil(64)];
        Self { used, data: words(&used.data), trees: words(&used.trees) }
    }

    fn place(&self, kind: BlobKind, id: BlobId) -> Option<(usize, u64)> {
        let position = self.used.of(kind).position(id)?;
        Some((position / 64, 1 << (position % 64)))
    }

    fn words(&self, kind: BlobKind) -> &[u64] {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        }
    }

    /// Whether the blob is used and its bit was not set before. It is now.
    pub(crate) fn set(&mut self, kind: BlobKind, id: BlobId) -> bool {
        let Some((word, bit)) = self.place(kind, id) else { return false };
        let words = match kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.trees,
        };
        let Some(word) = words.get_mut(word) else { return false };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Whether the blob is used and its bit is set.
    pub(crate) fn get(&self, kind: BlobKind, id: BlobId) -> bool {
        let place = self.place(kind, id);
        place.is_some_and(|(word, bit)| {
            self.words(kind).get(word).is_some_and(|word| word & bit != 0)
        })
    }

    /// How many bits are set.
    pub(crate) fn count(&self) -> u64 {
        self.data.iter().chain(&self.trees).map(|word| u64::from(word.count_ones())).sum()
    }
}

impl Repository<Indexed> {
    /// Whether the tree and all trees below can be read and the index lists their blobs.
    pub(crate) fn is_listed(&self, root: TreeId, cancel: &CancelFlag) -> Result<bool, EngineError> {
        let (mut seen, mut open) = (HashSet::from([root]), vec![root]);
        while let Some(id) = open.pop() {
            cancel.check()?;
            let tree = match self.load_tree(id) {
                Ok(tree) => tree,
                Err(EngineError::Damaged { .. }) => return Ok(false),
                Err(error) => return Err(error),
            };
            for node in tree.nodes {
                open.extend(node.subtree.filter(|subtree| seen.insert(*subtree)));
                for blob in node.content.iter().flatten() {
                    if self.state.index.find(BlobKind::Data, blob)?.is_none() {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Adds all blobs below a tree, and the tree; what is below trees in `seen` has been
    /// added before.
    pub(crate) fn add_used(
        &self,
        root: TreeId,
        seen: &mut HashSet<TreeId>,
        used: &mut UsedBlobs,
        cancel: &CancelFlag,
    ) -> Result<(), EngineError> {
        let mut open = Vec::new();
        if seen.insert(root) {
            open.push(root);
        }
        while let Some(id) = open.pop() {
            cancel.check()?;
            used.insert(BlobKind::Tree, id.blob());
            for node in self.load_tree(id)?.nodes {
                if node.kind == NodeKind::Dir && node.subtree.is_none() {
                    let what = format!("node {:?} is a directory without a tree", node.name);
                    return Err(EngineError::damaged(format!("tree {id}"), what));
                }
                open.extend(node.subtree.filter(|subtree| seen.insert(*subtree)));
                let mut last = None;
                for blob in node.content.iter().flatten() {
                    // Stretches of zeroes repeat one blob.
                    if last.replace(blob) != Some(blob) {
                        used.insert(BlobKind::Data, blob);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_bit_is_set_once_for_what_was_inserted_and_never_for_anything_else(
            inserted in proptest::collection::vec(0_u8..60, 0..100),
            asked in proptest::collection::vec((0_u8..80, proptest::bool::ANY), 0..100),
        ) {
            let mut used = UsedBlobs::default();
            for (at, number) in inserted.iter().enumerate() {
                used.insert(BlobKind::Data, BlobId([*number; 32]));
                if at % 7 == 0 {
                    used.settle();
                }
            }
            used.settle();
            let model: HashSet<u8> = inserted.into_iter().collect();
            let mut set = HashSet::new();
            let mut bits = Bits::none(&used);
            for (number, sets) in asked {
                let id = BlobId([number; 32]);
                proptest::prop_assert!(!bits.set(BlobKind::Tree, id));
                proptest::prop_assert_eq!(bits.get(BlobKind::Data, id), set.contains(&number));
                if sets {
                    let is_new = model.contains(&number) && set.insert(number);
                    proptest::prop_assert_eq!(bits.set(BlobKind::Data, id), is_new);
                }
            }
            proptest::prop_assert_eq!(bits.count(), set.len() as u64);
            proptest::prop_assert_eq!(used.len(), model.len());
        }
    }
}
