//! Reading back what is stored, object by object, from where the last walk ended.
//!
//! Without keys an object is sound when its SHA-256 is its name. With keys a pack is read
//! once: its header must be the one the index lists, and every blob must carry the
//! repository's seal, decompress and have its hash. Header and blobs fill a pack and all
//! are sealed, so the pack's own hash would find nothing more and is not computed.
//!
//! Damage is data, not an error: an error says that the walk could not go on.
//!
//! Invariant: a pack is passed over as sound only when all of it was read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sha2::{Digest, Sha256};

use crate::{
    backend::{Backend, BackendError, ObjectKind, ObjectName},
    blob::{BlobKind, Decoder},
    check::Problem,
    control::{CancelFlag, NoProgress, Progress},
    error::EngineError,
    id::{IndexId, MarkId, PackId, sha256},
    index,
    marks::PackDamage,
    pack::{self, HEADER_LENGTH_BYTES, PackEntry, PackedBlob},
    parallel::{self, Work},
    read::blob_name,
    repository::{Closed, Indexed, Repository},
    snapshot, stream,
    vault::Vault,
};

/// How much is verified, and how.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// How many processors are used. Each, and a few more, holds some 4 MiB of a pack.
    pub threads: NonZeroUsize,
    /// Ends the walk early; the outcome says where.
    pub cancel: CancelFlag,
    /// The pack after which to begin: [`VerifyOutcome::next`] of the walk before.
    pub after: Option<PackId>,
    /// No pack is begun after so many bytes of packs; `u64::MAX` for no bound.
    pub bytes_max: u64,
}

/// What is done with damage at the moment it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDamage {
    /// It is recorded: see [`Repository::record_damage`].
    Record,
    /// The outcome tells of it, and nothing is written.
    Tell,
}

impl VerifyOptions {
    /// All of them, one after the other.
    pub(crate) fn of_all(cancel: &CancelFlag) -> Self {
        let (threads, cancel) = (NonZeroUsize::MIN, cancel.clone());
        Self { threads, cancel, after: None, bytes_max: u64::MAX }
    }

    /// Where to go on when nothing was done. No pack is before the first.
    fn same_place(&self) -> Option<PackId> {
        self.after.or(Some(PackId([0; 32])))
    }
}

/// What a walk saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyOutcome {
    /// Packs verified, damaged ones included.
    pub packs: u64,
    /// Blobs opened and hashed; none without keys.
    pub blobs: u64,
    /// Bytes of packs read.
    pub read_bytes: u64,
    /// Damaged packs, in the order of their ids.
    pub damaged: Vec<PackDamage>,
    /// Marks of damage in packs that were read whole and are sound; see
    /// [`Repository::lift_damage`].
    pub refuted: Vec<MarkId>,
    /// What is wrong with keys, index objects, snapshots, marks. All of them are read in
    /// every walk, since they are few.
    pub problems: Vec<Problem>,
    /// Of a walk with keys the index objects that were there before and after it, and of which
    /// every pack was verified, as far as the walk went.
    pub index: BTreeSet<IndexId>,
    /// Packs that were gone together with an index object that had listed them, and so passed
    /// for pruned.
    pub passed_over: Vec<PackId>,
    /// The last pack verified, when there are more; `None` when the walk reached the end.
    pub next: Option<PackId>,
}

/// Packs are read in pieces, so that those of all threads stay in the processor's cache.
const WINDOW_BYTES: u64 = 4 << 20;
/// What is read to find a header: one of a few hundred blobs fits in.
const TAIL_BYTES: u64 = 16 << 10;
/// So many misfits are recorded at once, and then twice as many.
const RECORDS_MIN: usize = 64;
/// Objects are hashed in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;
/// A read that waits for the store while the processors work.
const READS_AHEAD: usize = 1;
/// Objects that are neither packs nor locks are not larger.
const OBJECT_BYTES_MAX: u64 = 128 << 20;

impl Repository<Closed> {
    /// Verifies without keys that every object has the hash it is named by. Finds every
    /// changed byte; not an object that is missing, nor one that was sealed by someone
    /// else. `progress` hears bytes of packs.
    pub fn verify_objects(
        backend: &dyn Backend,
        options: &VerifyOptions,
        progress: &dyn Progress,
    ) -> Result<VerifyOutcome, EngineError> {
        let mut outcome = VerifyOutcome::default();
        for kind in [ObjectKind::Key, ObjectKind::Index, ObjectKind::Snapshot, ObjectKind::Mark] {
            for listed in backend.list(kind).map_err(EngineError::List)? {
                if options.cancel.is_cancelled() {
                    return Ok(VerifyOutcome { next: options.same_place(), ..outcome });
                }
                outcome.note(verify_object(backend, &listed.name))?;
            }
        }
        let listed = backend.list(ObjectKind::Pack).map_err(EngineError::List)?;
        let packs = listed.into_iter().filter_map(|listed| match listed.name {
            ObjectName::Pack(id) => Some((id, listed.size_bytes)),
            ObjectName::Config
            | ObjectName::Access
            | ObjectName::Key(_)
            | ObjectName::Index(_)
            | ObjectName::Snapshot(_)
            | ObjectName::Lock(_)
            | ObjectName::Mark(_) => None,
        });
        walk(packs.collect(), options, outcome, progress, || {
            let mut piece = Vec::new();
            Ok(move |id, size, _: &Work<'_>| hash_pack(backend, id, size, &mut piece))
        })
    }
}

impl Repository<Indexed> {
    /// Verifies with keys: packs as far as the options say, and every other object.
    /// `progress` hears bytes of packs. Packs that no index object lists are left out.
    ///
    /// What is damaged is recorded the moment it is found, so that nobody relies on it for as
    /// long as the walk goes on.
    pub fn verify(
        &self,
        options: &VerifyOptions,
        progress: &dyn Progress,
    ) -> Result<VerifyOutcome, EngineError> {
        let mut outcome = VerifyOutcome::default();
        let catalogue = PackCatalogue::load(&self.vault, &mut outcome.problems)?;
        for listed in self.vault.list(ObjectKind::Snapshot)? {
            if let ObjectName::Snapshot(id) = listed.name {
                match snapshot::read(&self.vault, id) {
                    // Deleted since it was listed.
                    Ok(_) | Err(EngineError::SnapshotNotFound(_)) => {}
                    Err(error) => outcome.note(Err(error))?,
                }
            }
        }
        // A key is sealed by its password.
        for listed in self.vault.list(ObjectKind::Key)? {
            outcome.note(verify_object(&*self.vault.backend, &listed.name))?;
        }
        for (id, what) in self.state.marks.load(&self.vault)?.unreadable {
            let object = ObjectName::Mark(id).to_string();
            outcome.problems.push(Problem { object, what });
        }
        let record = OnDamage::Record;
        let outcome =
            self.verify_packs(&catalogue, &|_, _| true, record, options, outcome, progress)?;
        let unread: BTreeSet<_> =
            outcome.passed_over.iter().flat_map(|pack| catalogue.objects_of(*pack)).collect();
        let mut index = self.still_there(&catalogue.index)?;
        index.retain(|object| !unread.contains(object));
        Ok(VerifyOutcome { index, ..outcome })
    }

    /// What index and store say of packs now, for [`Self::find_misfits`] and
    /// [`Self::verify_listed`]. Some 100 bytes of memory a pack. What was known of index objects
    /// that cannot be read any more is forgotten: whoever opens the repository next does not
    /// know it either.
    pub fn take_inventory(&self) -> Result<Inventory, EngineError> {
        let mut problems = Vec::new();
        // A list alone proves nothing: what was there before is asked for by its name.
        let known = self.state.index.objects();
        let catalogue = PackCatalogue::load_with(&self.vault, known, &mut problems)?;
        self.state.index.forget_damaged(&catalogue.damaged);
        Ok(Inventory { catalogue, problems })
    }

    /// Packs that are missing, or have another size than they must, and records them. Each was
    /// asked for by its name: a list alone proves nothing, for stores give partial ones. Reads
    /// those alone that are there with another size, to tell which of their blobs can still be
    /// had.
    pub fn find_misfits(
        &self,
        inventory: &Inventory,
        cancel: &CancelFlag,
    ) -> Result<Vec<PackDamage>, EngineError> {
        let catalogue = &inventory.catalogue;
        let (mut found, mut recorded) = (Vec::new(), 0);
        let mut there = Vec::new();
        for misfit in catalogue.misfits() {
            cancel.check()?;
            let Some(listed) = catalogue.packs.get(&misfit.pack) else { continue };
            let name = ObjectName::Pack(misfit.pack);
            let size = self.vault.find_size(&name)?;
            let is_pruned =
                size.is_none() && !self.vault.exists(&ObjectName::Index(listed.object))?;
            if let Some(what) = what_is_wrong_with_size(size, *listed).filter(|_| !is_pruned) {
                match size {
                    // A reader goes by the size in the list.
                    Some(size) if catalogue.lists_as(misfit.pack, size) => {
                        there.push((misfit.pack, size));
                    }
                    Some(_) | None => {
                        found.push(PackDamage { what, ..misfit });
                        // Each time all marks are listed: soon, and not for every pack.
                        if found.len() >= RECORDS_MIN.max(2 * recorded) {
                            self.record_all(&found[recorded..])?;
                            recorded = found.len();
                        }
                    }
                }
            }
        }
        self.record_all(&found[recorded..])?;
        let options = VerifyOptions::of_all(cancel);
        let (record, outcome) = (OnDamage::Record, VerifyOutcome::default());
        let outcome =
            self.verify_these(there, catalogue, record, &options, outcome, &NoProgress)?;
        cancel.check()?;
        found.extend(outcome.damaged);
        found.sort_unstable_by_key(|damage| damage.pack);
        Ok(found)
    }

    /// Verifies packs alone, as far as the options say: those of an inventory that are wanted,
    /// with any index object that lists them. What is damaged is recorded the
    /// moment it is found.
    pub fn verify_listed(
        &self,
        inventory: &Inventory,
        is_wanted: &(dyn Fn(PackId, IndexId) -> bool + Sync),
        options: &VerifyOptions,
        progress: &dyn Progress,
    ) -> Result<VerifyOutcome, EngineError> {
        let (record, outcome) = (OnDamage::Record, VerifyOutcome::default());
        self.verify_packs(&inventory.catalogue, is_wanted, record, options, outcome, progress)
    }

    /// Whether these index objects are there.
    pub fn are_there(&self, objects: &BTreeSet<IndexId>) -> Result<bool, EngineError> {
        Ok(self.still_there(objects)?.len() == objects.len())
    }

    /// Those of these index objects that are there. What the list leaves out is asked for.
    fn still_there(&self, objects: &BTreeSet<IndexId>) -> Result<BTreeSet<IndexId>, EngineError> {
        let listed: BTreeSet<_> = index::list_objects(&self.vault)?.into_iter().collect();
        let mut there: BTreeSet<_> = objects.intersection(&listed).copied().collect();
        for id in objects.difference(&listed) {
            if self.vault.exists(&ObjectName::Index(*id))? {
                there.insert(*id);
            }
        }
        Ok(there)
    }

    /// The walk over packs alone, of those that are wanted.
    pub(crate) fn verify_packs(
        &self,
        catalogue: &PackCatalogue,
        is_wanted: &(dyn Fn(PackId, IndexId) -> bool + Sync),
        on_damage: OnDamage,
        options: &VerifyOptions,
        outcome: VerifyOutcome,
        progress: &dyn Progress,
    ) -> Result<VerifyOutcome, EngineError> {
        let is_wanted = |id: &PackId, listed: &ListedPack| {
            let more = catalogue.more.get(id).into_iter().flatten();
            is_wanted(*id, listed.object) || more.into_iter().any(|more| is_wanted(*id, *more))
        };
        let wanted = catalogue.packs.iter().filter(|(id, listed)| is_wanted(id, listed));
        let packs = wanted.map(|(id, listed)| (*id, listed.bytes)).collect();
        self.verify_these(packs, catalogue, on_damage, options, outcome, progress)
    }

    /// The walk over these packs of the catalogue.
    pub(crate) fn verify_these(
        &self,
        packs: Vec<(PackId, u64)>,
        catalogue: &PackCatalogue,
        on_damage: OnDamage,
        options: &VerifyOptions,
        outcome: VerifyOutcome,
        progress: &dyn Progress,
    ) -> Result<VerifyOutcome, EngineError> {
        let stored = self.state.marks.load(&self.vault)?;
        let mut marked: HashMap<PackId, Vec<(MarkId, &PackDamage)>> = HashMap::new();
        for (mark, damage) in stored.damage() {
            marked.entry(damage.pack).or_default().push((mark, damage));
        }
        let marked = &marked;
        walk(packs, options, outcome, progress, || {
            let mut reader = PackReader::new(&self.vault)?;
            Ok(move |id, _, work: &Work<'_>| {
                let mut verified = reader.verify(catalogue, id, work);
                if matches!(&verified, Err(error) if self.vault.is_of_one_object(error)) {
                    // Some paths to a store fail for a moment.
                    verified = reader.verify(catalogue, id, work);
                }
                let mut verdict = match verified {
                    Err(error) if self.vault.is_of_one_object(&error) => {
                        Verdict::unreadable(id, &error)
                    }
                    verified => verified?,
                };
                let marks = marked.get(&id).map(Vec::as_slice).unwrap_or_default();
                if let Some(damage) = &verdict.damage
                    && on_damage == OnDamage::Record
                    && !marks.iter().any(|(_, known)| known.says(damage))
                {
                    self.record_damage(damage)?;
                }
                let is_sound = verdict.damage.is_none() && !verdict.is_pruned;
                let refuted = marks.iter().filter(|_| is_sound);
                verdict.refuted = refuted.map(|(mark, _)| *mark).collect();
                Ok(verdict)
            })
        })
    }
}

impl VerifyOutcome {
    /// Notes damage; other errors end the walk.
    fn note(&mut self, checked: Result<(), EngineError>) -> Result<(), EngineError> {
        match checked {
            Err(EngineError::Damaged { object, what }) => {
                self.problems.push(Problem { object, what });
                Ok(())
            }
            other => other,
        }
    }
}

/// What was found out about one pack.
#[derive(Default)]
struct Verdict {
    blobs: u64,
    read_bytes: u64,
    /// It is gone, and not missed.
    is_pruned: bool,
    damage: Option<PackDamage>,
    /// Marks that say otherwise of a sound pack.
    refuted: Vec<MarkId>,
}

impl Verdict {
    fn unreadable(pack: PackId, error: &EngineError) -> Self {
        let what = format!("cannot be read: {error}");
        let damage = Some(PackDamage { pack, blobs: None, whole: true, what });
        Self { damage, ..Self::default() }
    }
}

/// Verifies packs in the order of their ids. `begin` makes what a thread keeps.
fn walk<V>(
    mut packs: Vec<(PackId, u64)>,
    options: &VerifyOptions,
    outcome: VerifyOutcome,
    progress: &dyn Progress,
    begin: impl Fn() -> Result<V, EngineError> + Sync,
) -> Result<VerifyOutcome, EngineError>
where
    V: FnMut(PackId, u64, &Work<'_>) -> Result<Verdict, EngineError>,
{
    packs.sort_unstable();
    packs.dedup_by_key(|(id, _)| *id);
    packs.retain(|(id, _)| options.after.is_none_or(|after| *id > after));
    let begun_bytes = AtomicU64::new(0);
    let verified = Mutex::new(outcome);
    let uncancelled = CancelFlag::new();
    parallel::run(0..packs.len(), options.threads, READS_AHEAD, &uncancelled, |work| {
        let mut verify = begin()?;
        // Asked before a number is taken, so that every number taken is dealt with.
        while !options.cancel.is_cancelled()
            && begun_bytes.load(Ordering::Relaxed) < options.bytes_max
        {
            let Some(number) = work.next()? else { break };
            let (id, size) = packs[number];
            begun_bytes.fetch_add(size, Ordering::Relaxed);
            let verdict = verify(id, size, work)?;
            let mut verified = verified.lock().unwrap_or_else(PoisonError::into_inner);
            verified.packs += 1;
            verified.blobs += verdict.blobs;
            verified.read_bytes += verdict.read_bytes;
            verified.damaged.extend(verdict.damage);
            verified.refuted.extend(verdict.refuted);
            verified.passed_over.extend(Some(id).filter(|_| verdict.is_pruned));
            drop(verified);
            progress.advance(size);
        }
        Ok(())
    })?;
    let mut outcome = verified.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.damaged.sort_unstable_by_key(|damage| damage.pack);
    // Numbers are taken in order and all of them were dealt with.
    let done = usize::try_from(outcome.packs).unwrap_or(usize::MAX);
    if done < packs.len() {
        let last = done.checked_sub(1).and_then(|last| packs.get(last)).map(|(id, _)| *id);
        // Nothing was done: the next walk begins where this one did.
        outcome.next = last.or(options.same_place());
    }
    Ok(outcome)
}

/// Whether an object has the hash it is named by. One that is gone meanwhile is no
/// damage: others may delete it.
fn verify_object(backend: &dyn Backend, name: &ObjectName) -> Result<(), EngineError> {
    match backend.get(name, OBJECT_BYTES_MAX) {
        Ok(bytes) if name.is_hash(&sha256(&bytes)) => Ok(()),
        Ok(_) => Err(EngineError::damaged(name, "does not have the hash it is named by")),
        Err(BackendError::NotFound) => Ok(()),
        Err(error) => Err(EngineError::reading(name, error)),
    }
}

fn hash_pack(
    backend: &dyn Backend,
    id: PackId,
    size: u64,
    piece: &mut Vec<u8>,
) -> Result<Verdict, EngineError> {
    let name = ObjectName::Pack(id);
    let mut verdict = Verdict::default();
    let damage =
        |what: &str| Some(PackDamage { pack: id, blobs: None, whole: true, what: what.into() });
    let mut hash = Sha256::new();
    while verdict.read_bytes < size {
        let len = PIECE_BYTES.min(size - verdict.read_bytes);
        piece.resize(usize::try_from(len).unwrap_or(0), 0);
        match backend.read_at(&name, verdict.read_bytes, piece) {
            Ok(()) => hash.update(&*piece),
            // A prune may have taken it since it was listed.
            Err(BackendError::NotFound) => return Ok(verdict),
            Err(BackendError::Truncated) => {
                return Ok(Verdict { damage: damage("shorter than it was listed"), ..verdict });
            }
            Err(error) => return Err(EngineError::reading(&name, error)),
        }
        verdict.read_bytes += len;
    }
    if !name.is_hash(&hash.finalize().into()) {
        verdict.damage = damage("does not have the hash it is named by");
    }
    Ok(verdict)
}

/// Packs as index and store listed them at one time.
#[derive(Debug)]
pub struct Inventory {
    catalogue: PackCatalogue,
    /// Index objects that cannot be read: what they list is not in it.
    pub problems: Vec<Problem>,
}

impl Inventory {
    /// The index objects that could be read.
    pub fn index_objects(&self) -> &BTreeSet<IndexId> {
        &self.catalogue.index
    }

    /// For each index object the size of the packs that are told by it: of a pack listed
    /// twice the first list counts.
    pub fn bytes_by_object(&self) -> BTreeMap<IndexId, u64> {
        let mut bytes = BTreeMap::new();
        for listed in self.catalogue.packs.values() {
            *bytes.entry(listed.object).or_default() += listed.bytes;
        }
        bytes
    }

    /// The index objects by which these packs are told.
    pub fn objects_of(&self, packs: &BTreeSet<PackId>) -> BTreeSet<IndexId> {
        let listed = packs.iter().filter_map(|pack| self.catalogue.packs.get(pack));
        listed.map(|listed| listed.object).collect()
    }

    /// The size of all packs, by the index.
    pub fn bytes(&self) -> u64 {
        self.catalogue.packs.values().map(|listed| listed.bytes).sum()
    }
}

/// What the index objects say about each pack, in some 100 bytes a pack: its size, and a
/// hash of its blobs. The blobs themselves are read again where something is wrong.
#[derive(Debug, Default)]
pub(crate) struct PackCatalogue {
    packs: HashMap<PackId, ListedPack>,
    /// Further index objects that list a pack.
    more: HashMap<PackId, Vec<IndexId>>,
    /// Sizes of the packs in the store.
    sizes: HashMap<PackId, u64>,
    /// The index objects that could be read.
    index: BTreeSet<IndexId>,
    /// Those that could not, and what is wrong with them.
    pub(crate) damaged: Vec<(IndexId, String)>,
    /// Blobs in the index, repeated ones counted each time.
    pub(crate) blobs: u64,
}

#[derive(Clone, Copy, Debug)]
struct ListedPack {
    /// The size its blobs and their header add up to.
    bytes: u64,
    blobs: [u8; 32],
    object: IndexId,
}

impl PackCatalogue {
    /// Reads all index objects, one after the other; damaged ones become problems.
    pub(crate) fn load(vault: &Vault, problems: &mut Vec<Problem>) -> Result<Self, EngineError> {
        Self::load_with(vault, BTreeSet::new(), problems)
    }

    /// Of those that are `known` too, whether or not they are listed.
    fn load_with(
        vault: &Vault,
        known: BTreeSet<IndexId>,
        problems: &mut Vec<Problem>,
    ) -> Result<Self, EngineError> {
        let mut objects = known;
        objects.extend(index::list_objects(vault)?);
        let mut catalogue = Self::of(vault, objects, problems)?;
        for listed in vault.list(ObjectKind::Pack)? {
            if let ObjectName::Pack(id) = listed.name {
                catalogue.sizes.insert(id, listed.size_bytes);
            }
        }
        Ok(catalogue)
    }

    /// What these index objects say; no pack is listed. Those that are gone are passed over.
    pub(crate) fn of(
        vault: &Vault,
        objects: BTreeSet<IndexId>,
        problems: &mut Vec<Problem>,
    ) -> Result<Self, EngineError> {
        let mut catalogue = Self::default();
        for object in objects {
            catalogue.index.insert(object);
            match index::load_object(vault, object) {
                Ok(packs) => packs.iter().for_each(|pack| catalogue.add(object, pack)),
                // A prune replaces index objects.
                Err(_) if !vault.exists(&ObjectName::Index(object))? => {
                    catalogue.index.remove(&object);
                }
                Err(EngineError::Damaged { object: name, what }) => {
                    catalogue.index.remove(&object);
                    catalogue.damaged.push((object, what.clone()));
                    problems.push(Problem { object: name, what });
                }
                Err(error) if vault.is_of_one_object(&error) => {
                    let what = format!("cannot be read: {error}");
                    catalogue.index.remove(&object);
                    catalogue.damaged.push((object, what.clone()));
                    let object = ObjectName::Index(object).to_string();
                    problems.push(Problem { object, what });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(catalogue)
    }

    /// The size of a pack by the index, if it is listed.
    pub(crate) fn bytes_of(&self, pack: PackId) -> Option<u64> {
        self.packs.get(&pack).map(|listed| listed.bytes)
    }

    /// The index objects that list a pack.
    fn objects_of(&self, pack: PackId) -> impl Iterator<Item = IndexId> {
        let more = self.more.get(&pack).into_iter().flatten().copied();
        self.packs.get(&pack).map(|listed| listed.object).into_iter().chain(more)
    }

    /// Of a pack listed twice the first list counts.
    fn add(&mut self, object: IndexId, pack: &PackEntry) {
        self.blobs += pack.blobs.len() as u64;
        if self.packs.contains_key(&pack.id) {
            self.more.entry(pack.id).or_default().push(object);
            return;
        }
        let bytes = pack::pack_bytes(&pack.blobs);
        let blobs = hash_blobs(pack.blobs.clone());
        self.packs.insert(pack.id, ListedPack { bytes, blobs, object });
    }

    /// Whether the store's list says so of a pack, or nothing.
    fn lists_as(&self, pack: PackId, size: u64) -> bool {
        self.sizes.get(&pack).is_none_or(|listed| *listed == size)
    }

    /// Number of packs in the index.
    pub(crate) fn packs(&self) -> u64 {
        self.packs.len() as u64
    }

    /// Packs in the store that no index object lists.
    pub(crate) fn unindexed_packs(&self) -> u64 {
        self.sizes.keys().filter(|id| !self.packs.contains_key(id)).count() as u64
    }

    /// Packs that are missing or have another size than they must, sorted.
    pub(crate) fn misfits(&self) -> Vec<PackDamage> {
        let misfit = |(id, listed): (&PackId, &ListedPack)| {
            let what = self.what_is_wrong_with_size(*id, *listed)?;
            Some(PackDamage { pack: *id, blobs: None, whole: true, what })
        };
        let mut misfits: Vec<_> = self.packs.iter().filter_map(misfit).collect();
        misfits.sort_unstable_by_key(|damage| damage.pack);
        misfits
    }

    fn what_is_wrong_with_size(&self, id: PackId, listed: ListedPack) -> Option<String> {
        what_is_wrong_with_size(self.sizes.get(&id).copied(), listed)
    }
}

fn what_is_wrong_with_size(size: Option<u64>, listed: ListedPack) -> Option<String> {
    match size {
        None => Some("missing".into()),
        Some(size) if size != listed.bytes => {
            Some(format!("has {size} bytes, by the index {}", listed.bytes))
        }
        Some(_) => None,
    }
}

/// Equal for equal blobs in equal places.
fn hash_blobs(mut blobs: Vec<PackedBlob>) -> [u8; 32] {
    blobs.sort_unstable_by_key(|blob| blob.offset);
    let mut hash = Sha256::new();
    for blob in &blobs {
        hash.update([u8::from(blob.kind == BlobKind::Tree)]);
        hash.update(blob.offset.to_le_bytes());
        hash.update(blob.shape.length.to_le_bytes());
        hash.update(blob.shape.uncompressed_length.to_le_bytes());
        hash.update(blob.id.as_bytes());
    }
    hash.finalize().into()
}

/// Verifies one pack after the other in buffers it keeps.
struct PackReader<'a> {
    vault: &'a Vault,
    decoder: Decoder,
    window: Window<'a>,
}

/// Bytes of the pack being verified, from `start` on.
struct Window<'a> {
    vault: &'a Vault,
    bytes: Vec<u8>,
    /// Whether `bytes` are of this pack. They are kept beyond it: to make a window
    /// anew would be to write it twice.
    is_loaded: bool,
    start: u64,
    read_bytes: u64,
}

impl<'a> PackReader<'a> {
    fn new(vault: &'a Vault) -> Result<Self, EngineError> {
        let decoder = Decoder::new()?;
        let window = Window { vault, bytes: Vec::new(), is_loaded: false, start: 0, read_bytes: 0 };
        Ok(Self { vault, decoder, window })
    }

    fn verify(
        &mut self,
        catalogue: &PackCatalogue,
        id: PackId,
        work: &Work<'_>,
    ) -> Result<Verdict, EngineError> {
        self.window.is_loaded = false;
        self.window.read_bytes = 0;
        let listed = catalogue.packs.get(&id).copied();
        let listed = listed.ok_or_else(|| EngineError::bug("a pack the index does not list"))?;
        let name = ObjectName::Pack(id);
        let size = match catalogue.sizes.get(&id) {
            Some(size) => Some(*size),
            // A list alone proves nothing.
            None => self.vault.find_size(&name)?,
        };
        let mut what = what_is_wrong_with_size(size, listed);
        let size = size.unwrap_or(0);
        let mut blobs = Vec::new();
        if what.is_none() {
            match self.read_header(&name, size, work) {
                Ok(header) if hash_blobs(header.clone()) == listed.blobs => blobs = header,
                Ok(_) => what = Some("lists other blobs than the index".into()),
                Err(EngineError::Damaged { what: damage, .. }) => what = Some(damage),
                Err(error) => return Err(error),
            }
        }
        let whole = what.is_some();
        let mut are_listed = true;
        if whole {
            // Which blobs can still be had is what the index says about them.
            let listed = load_blobs(self.vault, listed.object, id)?;
            are_listed = listed.is_some();
            blobs = listed.unwrap_or_default();
        }
        let mut damaged = Vec::new();
        for run in runs(&blobs) {
            self.window.load_run(&name, size, run)?;
            for blob in run {
                match self.open_blob(&name, size, blob, work) {
                    Ok(()) => {}
                    Err(EngineError::Damaged { what: damage, .. }) => {
                        damaged.push(blob.id);
                        what.get_or_insert_with(|| {
                            format!("{} {damage}", blob_name(blob.kind, blob.id))
                        });
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let damaged = are_listed.then_some(damaged);
        let damage = what.map(|what| PackDamage { pack: id, blobs: damaged, whole, what });
        if damage.is_some() && self.is_pruned(&name, listed.object)? {
            let read_bytes = self.window.read_bytes;
            return Ok(Verdict { read_bytes, is_pruned: true, ..Verdict::default() });
        }
        let (blobs, read_bytes) = (blobs.len() as u64, self.window.read_bytes);
        Ok(Verdict { blobs, read_bytes, damage, ..Verdict::default() })
    }

    /// Whether a prune has taken the pack out of the index, and then from the store,
    /// since the catalogue was read.
    fn is_pruned(&self, name: &ObjectName, object: IndexId) -> Result<bool, EngineError> {
        Ok(!self.vault.exists(&ObjectName::Index(object))? && !self.vault.exists(name)?)
    }

    fn read_header(
        &mut self,
        name: &ObjectName,
        size: u64,
        work: &Work<'_>,
    ) -> Result<Vec<PackedBlob>, EngineError> {
        let damaged = |what: &str| EngineError::damaged(name, what);
        let too_short = || damaged("too short for a header");
        let header_end = size.checked_sub(HEADER_LENGTH_BYTES as u64).ok_or_else(too_short)?;
        let tail = size.min(TAIL_BYTES);
        self.window.load(name, size - tail, tail)?;
        let field = self.window.get(name, size, header_end, HEADER_LENGTH_BYTES as u64)?;
        let field = field.first_chunk().ok_or_else(too_short)?;
        let length = u64::from(u32::from_le_bytes(*field));
        let start = header_end.checked_sub(length);
        let start = start.ok_or_else(|| damaged("has a header longer than itself"))?;
        let key = &self.vault.key;
        let sealed = self.window.get(name, size, start, length)?;
        let _permit = work.permit();
        let header = key
            .open(sealed)
            .map_err(|_| damaged("has a header not sealed by the repository's key"))?;
        pack::parse_header(&header).ok_or_else(|| damaged("has a senseless header"))
    }

    fn open_blob(
        &mut self,
        name: &ObjectName,
        size: u64,
        blob: &PackedBlob,
        work: &Work<'_>,
    ) -> Result<(), EngineError> {
        let key = &self.vault.key;
        let (offset, length) = (u64::from(blob.offset), u64::from(blob.shape.length));
        let sealed = self.window.get(name, size, offset, length)?;
        let _permit = work.permit();
        let opened = match blob.kind {
            BlobKind::Data => {
                self.decoder.decode_verified(key, sealed, blob.shape, blob.id).map(drop)
            }
            BlobKind::Tree => {
                stream::copy_plain(key, sealed, blob.shape, blob.id, &mut std::io::sink())
            }
        };
        opened.map_err(|fault| EngineError::damaged(name, fault.to_string()))
    }
}

impl Window<'_> {
    /// Bytes of a pack of `size` bytes.
    fn get(
        &mut self,
        name: &ObjectName,
        size: u64,
        offset: u64,
        len: u64,
    ) -> Result<&[u8], EngineError> {
        let end = offset.saturating_add(len);
        if end > size {
            return Err(EngineError::damaged(name, "shorter than it must be"));
        }
        if !self.holds(offset, end) {
            self.load(name, offset, len)?;
        }
        let at = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let bytes = usize::try_from(len).ok().and_then(|len| self.bytes.get(at..at + len));
        bytes.ok_or_else(|| EngineError::bug("bytes outside of their window"))
    }

    fn holds(&self, offset: u64, end: u64) -> bool {
        let window_end = self.start + self.bytes.len() as u64;
        self.is_loaded && self.start <= offset && end <= window_end
    }

    /// Reads blobs at once. Those that cannot be had so are tried one by one.
    fn load_run(
        &mut self,
        name: &ObjectName,
        size: u64,
        run: &[PackedBlob],
    ) -> Result<(), EngineError> {
        let ends = run.iter().map(|blob| u64::from(blob.offset) + u64::from(blob.shape.length));
        let (start, end) = (run.first().map(|blob| u64::from(blob.offset)), ends.max());
        let (Some(start), Some(end)) = (start, end) else { return Ok(()) };
        if end > size || self.holds(start, end) {
            return Ok(());
        }
        match self.load(name, start, end - start) {
            Err(EngineError::Damaged { .. }) => Ok(()),
            other => other,
        }
    }

    fn load(&mut self, name: &ObjectName, start: u64, len: u64) -> Result<(), EngineError> {
        let too_large = |_| EngineError::bug("a window of 4 GiB");
        self.bytes.resize(usize::try_from(len).map_err(too_large)?, 0);
        self.start = start;
        self.read_bytes += len;
        self.is_loaded = false;
        self.vault.read_at(name, start, &mut self.bytes)?;
        self.is_loaded = true;
        Ok(())
    }
}

/// Cuts blobs, which lie one after the other, into runs that are read at once.
fn runs(blobs: &[PackedBlob]) -> impl Iterator<Item = &[PackedBlob]> {
    let mut start = 0;
    blobs.chunk_by(move |_, next| {
        let end = u64::from(next.offset) + u64::from(next.shape.length);
        let is_near = end.saturating_sub(start) <= WINDOW_BYTES;
        if !is_near {
            start = u64::from(next.offset);
        }
        is_near
    })
}

/// The blobs an index object lists for a pack; `None` when the object does not tell.
fn load_blobs(
    vault: &Vault,
    object: IndexId,
    id: PackId,
) -> Result<Option<Vec<PackedBlob>>, EngineError> {
    match index::load_object(vault, object) {
        Ok(packs) => {
            let of_pack = packs.into_iter().find(|pack| pack.id == id);
            Ok(of_pack.map(|pack| pack.blobs))
        }
        Err(EngineError::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
