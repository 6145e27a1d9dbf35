//! What is known against packs and blobs that the index lists: condemned by a prune that
//! will remove them, or found damaged.
//!
//! Invariant: a place with a mark is never deduplicated against, so no new snapshot comes
//! to depend on it. It may still be read from: a condemned pack is whole until it is
//! removed, and of a damaged one some bytes may be good.

use std::collections::HashSet;

use crate::id::{BlobId, PackId};

/// The marks of one repository, replaced as a whole by
/// [`Index::set_marks`](crate::index::Index::set_marks).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Packs a prune will remove.
    pub(crate) condemned: HashSet<PackId>,
    /// Packs that are damaged as a whole, or gone.
    pub(crate) damaged_packs: HashSet<PackId>,
    /// Single blobs found damaged in otherwise good packs.
    pub(crate) damaged_blobs: HashSet<(PackId, BlobId)>,
}

/// How good a place is; better ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Nothing is known against it.
    Sound,
    /// A prune will remove it.
    Condemned,
    /// What lies there was found damaged.
    Damaged,
}

impl Marks {
    /// How good the blob's place in this pack is.
    pub(crate) fn standing(&self, pack: PackId, blob: BlobId) -> Standing {
        if self.damaged_packs.contains(&pack) || self.damaged_blobs.contains(&(pack, blob)) {
            Standing::Damaged
        } else if self.condemned.contains(&pack) {
            Standing::Condemned
        } else {
            Standing::Sound
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_weighs_more_than_condemnation_and_touches_nothing_else() {
        let (pack, other) = (PackId([1; 32]), PackId([2; 32]));
        let (blob, neighbour) = (BlobId([3; 32]), BlobId([4; 32]));
        let marks = Marks {
            condemned: HashSet::from([pack]),
            damaged_packs: HashSet::new(),
            damaged_blobs: HashSet::from([(pack, blob)]),
        };
        assert_eq!(marks.standing(pack, blob), Standing::Damaged);
        assert_eq!(marks.standing(pack, neighbour), Standing::Condemned);
        assert_eq!(marks.standing(other, blob), Standing::Sound);
        let marks = Marks { damaged_packs: HashSet::from([pack]), ..marks };
        assert_eq!(marks.standing(pack, neighbour), Standing::Damaged);
    }
}
