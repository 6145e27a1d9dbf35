//! What is known of packs and blobs that the index lists: condemned by a prune that will
//! remove them, found damaged, or read.
//!
//! Invariant: a place with a mark against it is never deduplicated against, so no new
//! snapshot comes to depend on it. It may still be read from: a condemned pack is whole until
//! it is removed, and of a damaged one some bytes may be good.
//!
//! They are documents beside the repository's own, which restic ignores, so that every
//! process sees them and a lost catalogue takes none away. A document is written once; what
//! replaces it is written before it is removed, and whoever reads them all reads until two
//! listings in a row are equal. So a pack that was condemned stays so for every reader.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{ObjectKind, ObjectName},
    error::EngineError,
    id::{BlobId, IndexId, MarkId, PackId},
    repository::{Indexed, Repository},
    time::Timestamp,
    vault::Vault,
};

/// Marks are replaced within one or two listings.
const READ_TRIES: usize = 16;

/// A mark as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MarkFile {
    /// A prune will remove these packs.
    Condemned {
        packs: Vec<PackId>,
        /// Packs in no index object. A session may have been about to list them, so they
        /// are condemned only when all that were alive at this mark are over.
        suspects: Vec<PackId>,
    },
    /// The sessions that had lock objects after a mark was written. Any of them may have
    /// missed the mark; every later one has read it.
    Awaited { mark: MarkId, sessions: Vec<String> },
    /// Packs that were removed, oldest first. A process that slept through the removal
    /// may yet write an index object that lists them; nobody is to believe it.
    Gone { packs: Vec<PackId> },
    /// What a reader found damaged.
    Damaged(PackDamage),
    /// What a verification read.
    Read {
        /// RFC 3339.
        began_at: String,
        index: Vec<IndexId>,
    },
}

/// What somebody read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Before anything of it was read.
    pub began_at: Timestamp,
    /// Index objects of which every pack was read. What is damaged in them is recorded.
    pub index: BTreeSet<IndexId>,
}

/// A pack in which something was found damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackDamage {
    /// The pack.
    pub pack: PackId,
    /// Its damaged blobs; `None` where that is not known, so that all must be taken for it.
    pub blobs: Option<Vec<BlobId>>,
    /// Whether nothing in the pack can be relied on: it is missing, cut short, or has a
    /// header that says something else than the index.
    pub whole: bool,
    /// What is wrong, for people.
    pub what: String,
}

/// All marks that can be read, and what is wrong with the others.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoredMarks {
    pub(crate) files: HashMap<MarkId, Arc<MarkFile>>,
    pub(crate) unreadable: Vec<(MarkId, String)>,
}

/// Marks read so far. They never change, so only new ones are read.
#[derive(Debug, Default)]
pub(crate) struct MarkCache(Mutex<StoredMarks>);

impl MarkCache {
    fn known(&self) -> MutexGuard<'_, StoredMarks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all marks. One that is replaced while they are listed is seen, or its
    /// successor is.
    pub(crate) fn load(&self, vault: &Vault) -> Result<StoredMarks, EngineError> {
        self.load_and(vault, |_| {})
    }

    /// The same. `tell` hears them before anybody can read newer ones.
    fn load_and(
        &self,
        vault: &Vault,
        tell: impl FnOnce(&StoredMarks),
    ) -> Result<StoredMarks, EngineError> {
        let mut known = self.known();
        let mut listed = None;
        for _ in 0..READ_TRIES {
            let present = list(vault)?;
            if listed.as_ref() == Some(&present) {
                known.files.retain(|id, _| present.contains(id));
                tell(&known);
                return Ok(known.clone());
            }
            known.unreadable.clear();
            for id in &present {
                if known.files.contains_key(id) {
                    continue;
                }
                let name = ObjectName::Mark(*id);
                match vault.get_document::<MarkFile>(&name) {
                    Ok(file) => {
                        known.files.insert(*id, Arc::new(file));
                    }
                    Err(EngineError::Damaged { what, .. }) => {
                        if vault.exists(&name)? {
                            known.unreadable.push((*id, what));
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            listed = Some(present);
        }
        Err(EngineError::Locked { by: "a prune that keeps writing marks".into() })
    }
}

fn list(vault: &Vault) -> Result<BTreeSet<MarkId>, EngineError> {
    let listed = vault.list(ObjectKind::Mark)?;
    let mark = |name| if let ObjectName::Mark(id) = name { Some(id) } else { None };
    Ok(listed.into_iter().filter_map(|listed| mark(listed.name)).collect())
}

/// Writes a mark.
pub(crate) fn store(vault: &Vault, file: &MarkFile) -> Result<MarkId, EngineError> {
    let mut mark = MarkId([0; 32]);
    vault.put_document(
        |hash| {
            mark = MarkId(hash);
            ObjectName::Mark(mark)
        },
        file,
    )?;
    Ok(mark)
}

impl PackDamage {
    /// Whether who knows this learns nothing new from `other` about the same pack.
    pub(crate) fn says(&self, other: &Self) -> bool {
        let has_blobs = match (&self.blobs, &other.blobs) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(known), Some(others)) => others.iter().all(|blob| known.contains(blob)),
        };
        (self.whole || !other.whole) && has_blobs
    }
}

impl StoredMarks {
    /// What was found damaged, with the mark that says so.
    pub(crate) fn damage(&self) -> impl Iterator<Item = (MarkId, &PackDamage)> {
        self.files.iter().filter_map(|(id, file)| match &**file {
            MarkFile::Damaged(damage) => Some((*id, damage)),
            MarkFile::Condemned { .. }
            | MarkFile::Awaited { .. }
            | MarkFile::Gone { .. }
            | MarkFile::Read { .. } => None,
        })
    }

    /// What was read, with the mark that says so. One that names no moment says nothing.
    fn readings(&self) -> impl Iterator<Item = (MarkId, Reading)> {
        self.files.iter().filter_map(|(id, file)| match &**file {
            MarkFile::Read { began_at, index } => {
                let began_at = Timestamp::parse(began_at).ok()?;
                Some((*id, Reading { began_at, index: index.iter().copied().collect() }))
            }
            MarkFile::Condemned { .. }
            | MarkFile::Awaited { .. }
            | MarkFile::Gone { .. }
            | MarkFile::Damaged(_) => None,
        })
    }

    /// Packs that were removed and must not be believed in.
    pub(crate) fn gone(&self) -> impl Iterator<Item = PackId> {
        self.files
            .values()
            .flat_map(|file| match &**file {
                MarkFile::Gone { packs } => packs.as_slice(),
                MarkFile::Condemned { .. }
                | MarkFile::Awaited { .. }
                | MarkFile::Damaged(_)
                | MarkFile::Read { .. } => &[],
            })
            .copied()
    }

    /// Fails when a mark cannot be read: it may speak of any pack.
    pub(crate) fn require_sound(&self) -> Result<(), EngineError> {
        match self.unreadable.first() {
            Some((id, what)) => Err(EngineError::damaged(ObjectName::Mark(*id), what.clone())),
            None => Ok(()),
        }
    }
    /// What they say together.
    pub(crate) fn merged(&self) -> Marks {
        let mut marks = Marks::default();
        for file in self.files.values() {
            match &**file {
                MarkFile::Condemned { packs, .. } | MarkFile::Gone { packs } => {
                    marks.condemned.extend(packs);
                }
                MarkFile::Awaited { .. } | MarkFile::Read { .. } => {}
                MarkFile::Damaged(damage) if damage.whole || damage.blobs.is_none() => {
                    marks.damaged_packs.insert(damage.pack);
                }
                MarkFile::Damaged(damage) => {
                    let blobs = damage.blobs.iter().flatten();
                    marks.damaged_blobs.extend(blobs.map(|id| (damage.pack, *id)));
                }
            }
        }
        marks
    }
}

impl Repository<Indexed> {
    /// Remembers damage for every process: what is damaged is not deduplicated against
    /// any more, so the next backup that has the same chunk stores it anew, and prune
    /// removes a damaged pack once everything needed of it lies elsewhere. Saying the same
    /// twice changes nothing.
    pub fn record_damage(&self, damage: &PackDamage) -> Result<(), EngineError> {
        self.record_all(std::slice::from_ref(damage))
    }

    pub(crate) fn record_all(&self, damaged: &[PackDamage]) -> Result<(), EngineError> {
        if damaged.is_empty() {
            return Ok(());
        }
        let stored = self.state.marks.load(&self.vault)?;
        let mut known: HashMap<PackId, Vec<&PackDamage>> = HashMap::new();
        for (_, damage) in stored.damage() {
            known.entry(damage.pack).or_default().push(damage);
        }
        for damage in damaged {
            let mut said = known.get(&damage.pack).into_iter().flatten();
            if !said.any(|known| known.says(damage)) {
                store(&self.vault, &MarkFile::Damaged(damage.clone()))?;
            }
        }
        self.read_marks().map(drop)
    }

    /// The damage recorded so far, by pack.
    pub fn list_damage(&self) -> Result<Vec<PackDamage>, EngineError> {
        let stored = self.read_marks()?;
        let mut found: Vec<_> = stored.damage().map(|(_, damage)| damage.clone()).collect();
        found.sort_by(|a, b| (a.pack, &a.blobs).cmp(&(b.pack, &b.blobs)));
        Ok(found)
    }

    /// Takes marks back that a verification refuted: it read all of the packs they speak
    /// of and found them sound.
    pub fn lift_damage(&self, refuted: &[MarkId]) -> Result<(), EngineError> {
        for mark in refuted {
            self.vault.delete(&ObjectName::Mark(*mark))?;
        }
        self.read_marks().map(drop)
    }

    /// Tells every process what was read.
    pub fn record_reading(&self, reading: &Reading) -> Result<(), EngineError> {
        let (began_at, index) = (reading.began_at.to_string(), reading.index.iter().copied());
        store(&self.vault, &MarkFile::Read { began_at, index: index.collect() }).map(drop)
    }

    /// What was read and told of since somebody listened last.
    pub fn list_readings(&self) -> Result<Vec<(MarkId, Reading)>, EngineError> {
        Ok(self.state.marks.load(&self.vault)?.readings().collect())
    }

    /// Whether a mark is there. A list alone proves no absence.
    pub fn has_mark(&self, mark: MarkId) -> Result<bool, EngineError> {
        self.vault.exists(&ObjectName::Mark(mark))
    }

    /// Takes marks back of readings that somebody has listened to.
    pub fn forget_readings(&self, heard: &[MarkId]) -> Result<(), EngineError> {
        heard.iter().try_for_each(|mark| self.vault.delete(&ObjectName::Mark(*mark)))
    }

    /// Whether anything is recorded as damaged. A mark that cannot be read is an error.
    pub fn has_damage(&self) -> Result<bool, EngineError> {
        let stored = self.read_marks()?;
        stored.require_sound()?;
        Ok(stored.damage().next().is_some())
    }

    /// Reads all marks and tells the index.
    pub(crate) fn read_marks(&self) -> Result<StoredMarks, EngineError> {
        let index = &self.state.index;
        self.state.marks.load_and(&self.vault, |stored| index.set_marks(stored.merged()))
    }

    /// Fails when a mark cannot be read: it may condemn any pack. Readers need not mind.
    pub(crate) fn require_sound_marks(&self) -> Result<(), EngineError> {
        self.state.marks.load(&self.vault)?.require_sound()
    }
}

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
    use crate::{backend::MemoryBackend, crypto::Key};

    #[test]
    fn marks_are_read_until_they_stand_still_and_one_nobody_can_read_is_told_apart() {
        let vault = Vault { backend: Arc::new(MemoryBackend::new()), key: Key::random().unwrap() };
        let cache = MarkCache::default();
        let (one, two) = (PackId([1; 32]), PackId([2; 32]));
        let condemned = MarkFile::Condemned { packs: vec![one], suspects: vec![two] };
        let mark = store(&vault, &condemned).unwrap();
        store(&vault, &MarkFile::Awaited { mark, sessions: vec!["a".into()] }).unwrap();
        let damage = PackDamage { pack: two, blobs: None, whole: true, what: "missing".into() };
        store(&vault, &MarkFile::Damaged(damage)).unwrap();
        vault.backend.put(&ObjectName::Mark(MarkId([9; 32])), b"torn").unwrap();
        let stored = cache.load(&vault).unwrap();
        assert_eq!((stored.files.len(), stored.unreadable.len()), (3, 1));
        let marks = stored.merged();
        assert_eq!(marks.condemned, HashSet::from([one]), "suspects are not condemned");
        assert_eq!(marks.damaged_packs, HashSet::from([two]));
        store(&vault, &MarkFile::Gone { packs: vec![one] }).unwrap();
        vault.delete(&ObjectName::Mark(mark)).unwrap();
        assert_eq!(cache.load(&vault).unwrap().merged(), marks);
    }

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
