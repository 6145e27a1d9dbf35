//! Content lists in little memory.
//!
//! A volume of 1 TiB lists two million blobs, most of them the zero block. In memory a
//! list holds each blob of data once (32 bytes) and a stretch of zero blocks as a count,
//! so what a volume costs follows its data and not its size.
//!
//! Invariant: a list gives exactly the blobs it was made of, in order, and equal lists
//! have equal representations.

use std::{fmt, iter::FusedIterator};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use crate::{chunk::zero_block_id, id::BlobId};

/// The blobs of a file in order.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct BlobList {
    runs: Vec<Run>,
    /// The blobs that are not the zero block.
    data: Vec<BlobId>,
}

/// Zero blocks, then blobs of data. Only the first run may have no zero blocks, only
/// the last no data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    zeroes: u32,
    data: u32,
}

/// A part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// So many zero blocks.
    Zeroes(u32),
    /// One other blob.
    Data(BlobId),
}

impl BlobList {
    /// Number of blobs, zero blocks included.
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.zeroes) + u64::from(run.data)).sum()
    }

    /// Whether there is no blob.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The blobs in order.
    pub fn iter(&self) -> BlobIds<'_> {
        BlobIds { runs: &self.runs, zeroes: 0, data: 0, ids: &self.data }
    }

    /// The blobs in order, neighbouring zero blocks as one entry.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + Clone + '_ {
        let mut ids = self.data.iter();
        self.runs.iter().flat_map(move |run| {
            let zeroes = (run.zeroes > 0).then_some(Entry::Zeroes(run.zeroes));
            let data = ids.as_slice().get(..run.data as usize).unwrap_or_default();
            ids = ids.as_slice().get(run.data as usize..).unwrap_or_default().iter();
            zeroes.into_iter().chain(data.iter().map(|id| Entry::Data(*id)))
        })
    }

    /// The blobs that are not the zero block, in order.
    pub(crate) fn data(&self) -> &[BlobId] {
        &self.data
    }

    fn push(&mut self, id: BlobId) {
        let is_zero = id == zero_block_id();
        match self.runs.last_mut() {
            // A count that is full begins another run; no volume has so many chunks.
            Some(run) if is_zero && run.data == 0 && run.zeroes < u32::MAX => run.zeroes += 1,
            Some(run) if !is_zero && run.data < u32::MAX => run.data += 1,
            Some(_) | None => {
                self.runs.push(Run { zeroes: u32::from(is_zero), data: u32::from(!is_zero) });
            }
        }
        if !is_zero {
            self.data.push(id);
        }
    }

    fn shrink(mut self) -> Self {
        self.runs.shrink_to_fit();
        self.data.shrink_to_fit();
        self
    }
}

impl fmt::Debug for BlobList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobList")
            .field("len", &self.len())
            .field("data", &self.data.len())
            .finish_non_exhaustive()
    }
}

impl FromIterator<BlobId> for BlobList {
    fn from_iter<T: IntoIterator<Item = BlobId>>(ids: T) -> Self {
        let mut list = Self::default();
        ids.into_iter().for_each(|id| list.push(id));
        list.shrink()
    }
}

impl<'a> IntoIterator for &'a BlobList {
    type Item = BlobId;
    type IntoIter = BlobIds<'a>;

    fn into_iter(self) -> BlobIds<'a> {
        self.iter()
    }
}

/// Reads a list as it streams by; the text is never held whole.
impl<'de> Deserialize<'de> for BlobList {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ListVisitor;

        impl<'de> Visitor<'de> for ListVisitor {
            type Value = BlobList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of blobs")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut ids: A) -> Result<BlobList, A::Error> {
                let mut list = BlobList::default();
                while let Some(id) = ids.next_element()? {
                    list.push(id);
                }
                Ok(list.shrink())
            }
        }

        from.deserialize_seq(ListVisitor)
    }
}

/// The blobs of a list, one by one.
#[derive(Clone, Debug)]
pub struct BlobIds<'a> {
    runs: &'a [Run],
    /// What is left of the run before `runs`.
    zeroes: u32,
    data: usize,
    ids: &'a [BlobId],
}

impl BlobIds<'_> {
    /// Passes over blobs; says whether there were so many.
    pub(crate) fn skip_blobs(&mut self, count: u32) -> bool {
        (0..count).all(|_| self.next().is_some())
    }
}

impl<'a> From<&'a [BlobId]> for BlobIds<'a> {
    fn from(ids: &'a [BlobId]) -> Self {
        Self { runs: &[], zeroes: 0, data: ids.len(), ids }
    }
}

impl Iterator for BlobIds<'_> {
    type Item = BlobId;

    fn next(&mut self) -> Option<BlobId> {
        loop {
            if self.zeroes > 0 {
                self.zeroes -= 1;
                return Some(zero_block_id());
            }
            if self.data > 0 {
                let (first, rest) = self.ids.split_first()?;
                self.data -= 1;
                self.ids = rest;
                return Some(*first);
            }
            let (run, rest) = self.runs.split_first()?;
            self.runs = rest;
            self.zeroes = run.zeroes;
            self.data = run.data as usize;
        }
    }
}

impl FusedIterator for BlobIds<'_> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u64) -> BlobId {
        if number == 0 { zero_block_id() } else { BlobId::of(&number.to_le_bytes()) }
    }

    proptest! {
        #[test]
        fn a_list_gives_the_blobs_it_was_made_of(numbers in prop::collection::vec(0..3_u64, 0..60)) {
            let ids: Vec<_> = numbers.into_iter().map(id).collect();
            let list: BlobList = ids.iter().copied().collect();
            prop_assert_eq!(list.iter().collect::<Vec<_>>(), ids.clone());
            prop_assert_eq!(list.len(), ids.len() as u64);
            prop_assert_eq!(list.is_empty(), ids.is_empty());
            let entries = list.entries().flat_map(|entry| match entry {
                Entry::Zeroes(count) => vec![zero_block_id(); count as usize],
                Entry::Data(id) => vec![id],
            });
            prop_assert_eq!(entries.collect::<Vec<_>>(), ids.clone());
            let json = serde_json::to_vec(&ids).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<BlobList>(&json).unwrap(), &list);
            let by_slice: Vec<_> = BlobIds::from(ids.as_slice()).collect();
            prop_assert_eq!(by_slice, ids);
        }
    }

    #[test]
    fn two_million_blobs_with_little_data_take_memory_for_the_data_alone() {
        let sparse = (0..2_000_000_u64).map(|n| id(if n % 100 == 7 { n } else { 0 }));
        let list: BlobList = sparse.collect();
        assert_eq!(list.len(), 2_000_000);
        assert_eq!(list.data.capacity(), 20_000);
        assert!(list.runs.capacity() <= 20_001, "{}", list.runs.capacity());
    }
}
