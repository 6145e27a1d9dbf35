//! Storing a volume: what is done with each of its chunks, and the list made of them.

use std::{
    num::NonZeroUsize,
    sync::{
        PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    blob::{BlobKind, Encoder},
    chunk::{self, BaseIds, Change, ChunkSize, Cut, Zeroes, is_zero, zero_block_id},
    control::Progress,
    error::EngineError,
    fingerprint::{self, FINGERPRINT_BYTES, Fingerprinter, Fingerprints, Learned},
    id::{BlobId, TreeId},
    pipeline::{Packing, Pipeline, Work},
    plan::{Planner, Purpose, SAMPLES_MIN, Skipped, Task},
    read::VolumeView,
    session::Session,
    source::Source,
    time::Timestamp,
    tree::{Content, FINGERPRINT_FILE, NewNode, VOLUME_FILE},
};

/// How a volume is stored.
///
/// Memory while it is: a pack of 16 MiB per thread and two more on their way into the
/// store; a chunk per thread and 8 MiB of chunks read ahead; of zstd some 4 MiB and twice
/// a chunk per thread. With two threads that is 80 MiB for chunks of 512 KiB and 100 MiB
/// for chunks of 4 MiB.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Chunk size; `None` keeps the parent's, or goes by the volume's size.
    pub chunk_size: Option<ChunkSize>,
    /// zstd level, 1 to 22; 0 stands for zstd's default, negative ones are faster.
    pub zstd_level: i32,
    /// Threads that compute. Those that read and store beside them mostly wait.
    pub threads: NonZeroUsize,
    /// Modification time of the volume's node, if its content changed.
    pub modified_at: Timestamp,
    /// Whether every blob is opened again and compared before it counts as stored, so that
    /// a fault of memory or processor is found while the source is still there.
    pub verify_before_store: bool,
}

/// A volume that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredVolume {
    /// The tree that holds it. The same as the parent's when nothing changed.
    pub subtree: TreeId,
    /// The volume's size.
    pub size_bytes: u64,
    /// Bytes of chunks that are not all zero: what the volume references.
    pub data_bytes: u64,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Plain bytes of chunks whose blob was new to the repository.
    pub new_bytes: u64,
    /// The same, compressed and sealed.
    pub stored_bytes: u64,
    /// Number of chunks.
    pub chunks: u64,
    /// Chunks that were read.
    pub read_chunks: u64,
    /// Chunks whose blob was new.
    pub new_chunks: u64,
    /// Chunks with another blob than in the parent; without a parent, than zeroes.
    pub changed_chunks: u64,
}

/// A content list takes 67 bytes per blob; this leaves room for the node around it.
const CONTENT_BLOBS_MAX: u64 = 16_000_000;

impl Session {
    /// Stores a volume. Extents the source calls unchanged are taken from `parent`
    /// without reading, save for a sample; an error [`EngineError::SourceLied`] says
    /// that the sample differs: store again from a source that calls nothing unchanged.
    ///
    /// After that error, and after an error of the source, the session can go on.
    pub fn store_volume(
        &self,
        source: &dyn Source,
        parent: Option<&VolumeView>,
        options: &StoreOptions,
        progress: &dyn Progress,
    ) -> Result<StoredVolume, EngineError> {
        let _storing = self.storing().read().unwrap_or_else(PoisonError::into_inner);
        self.permit()?;
        let cut = choose_cut(source.size_bytes(), parent, options);
        let base = BaseIds::new(cut, parent.and_then(VolumeView::cut_content));
        let fingerprints = self.load_fingerprints(parent)?;
        let before = Before { cut, base, fingerprints: fingerprints.as_ref() };
        let (tally, skipped) = self.store_chunks(source, &before, options, progress)?;
        let Tally { mut changes, mut learned, .. } = tally;
        changes.extend(skipped.changes);
        changes.sort_unstable();
        learned.sort_unstable();
        let is_same = changes.is_empty() && learned.is_empty();
        let same = parent.filter(|parent| is_same && parent.cut() == Some(cut));
        let subtree = match same {
            Some(parent) if self.has_list(parent)? => parent.subtree(),
            Some(_) | None => self.store_list(before, &changes, &learned, options)?,
        };
        Ok(StoredVolume {
            subtree,
            size_bytes: cut.size_bytes,
            data_bytes: tally.data_bytes + skipped.data_bytes,
            read_bytes: tally.read_bytes,
            new_bytes: tally.new_bytes,
            stored_bytes: tally.stored_bytes,
            chunks: cut.chunks(),
            read_chunks: tally.read_chunks,
            new_chunks: tally.new_chunks,
            changed_chunks: changes.len() as u64,
        })
    }

    /// Whether the index knows the volume's tree and those of its blobs nobody else has
    /// asked for: fingerprints, and zeroes. We restore without them, stock restic does not.
    fn has_list(&self, volume: &VolumeView) -> Result<bool, EngineError> {
        let index = &self.repository.state.index;
        let fingerprints = volume.fingerprints().into_iter().flat_map(|(_, blobs)| blobs);
        for id in volume.zero_blobs().chain(fingerprints) {
            if !index.contains(BlobKind::Data, id)? {
                return Ok(false);
            }
        }
        index.contains(BlobKind::Tree, volume.subtree().blob())
    }

    /// The fingerprints of the parent's chunks. A file that is not there, not whole or not
    /// of the length it must be only means that every chunk is hashed.
    fn load_fingerprints(
        &self,
        parent: Option<&VolumeView>,
    ) -> Result<Option<Fingerprints>, EngineError> {
        let Some((cut, content)) = parent.and_then(VolumeView::cut_content) else {
            return Ok(None);
        };
        let Some((size, blobs)) = parent.and_then(VolumeView::fingerprints) else {
            return Ok(None);
        };
        let chunks = BaseIds::new(cut, Some((cut, content)));
        let count = chunks.filter(|base| base.id != zero_block_id()).count();
        let len = count * FINGERPRINT_BYTES;
        if *size != len as u64 {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(len);
        for id in blobs {
            match self.repository.load_data(id) {
                Ok(plain) if bytes.len() + plain.len() <= len => bytes.extend_from_slice(&plain),
                Ok(_) | Err(EngineError::Damaged { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok((bytes.len() == len).then(|| Fingerprints::from_bytes(bytes)))
    }

    fn store_chunks(
        &self,
        source: &dyn Source,
        before: &Before<'_>,
        options: &StoreOptions,
        progress: &dyn Progress,
    ) -> Result<(Tally, Skipped), EngineError> {
        let index = &self.repository.state.index;
        let (cut, base) = (before.cut, before.base.clone());
        let planner = Planner::new(source, index, cut, base, before.fingerprints, self.name());
        let fingerprinter = Fingerprinter::new(&self.repository.vault.key);
        let to_sample = AtomicUsize::new(SAMPLES_MIN);
        let chunk_bytes = cut.chunk_size.bytes() as usize;
        let pipeline = Pipeline::new(self, source, planner, chunk_bytes, options.threads, progress);
        let (tallies, planner) = pipeline.run(|| {
            let level = options.zstd_level;
            let encoder = match options.verify_before_store {
                true => Encoder::new(level)?,
                false => Encoder::trusting(level)?,
            };
            let (fingerprinter, to_sample) = (&fingerprinter, &to_sample);
            let tally = Tally::default();
            Ok((Worker { session: self, progress, fingerprinter, to_sample, tally }, encoder))
        })?;
        let mut sum = Tally::default();
        for tally in tallies {
            sum.add(tally);
        }
        Ok((sum, planner.into_skipped()))
    }

    /// Writes the volume's tree, and the blobs its zeroes are expressed by.
    fn store_list(
        &self,
        before: Before<'_>,
        changes: &[Change],
        learned: &[Learned],
        options: &StoreOptions,
    ) -> Result<TreeId, EngineError> {
        let cut = before.cut;
        let content = chunk::content(cut, before.base.clone(), changes);
        let zeroes = Zeroes::of_volume(cut.size_bytes);
        let mut needed = Vec::new();
        let mut blobs = 0;
        for id in content.clone() {
            blobs += 1;
            if blobs > CONTENT_BLOBS_MAX {
                return Err(EngineError::VolumeTooLarge { size_bytes: cut.size_bytes });
            }
            if zeroes.plain(id).is_some() && !needed.contains(&id) {
                needed.push(id);
            }
        }
        let mut encoder = Encoder::new(options.zstd_level)?;
        for plain in needed.into_iter().filter_map(|id| zeroes.plain(id)) {
            self.store_data(plain, &mut encoder)?;
        }
        let modified_at = options.modified_at;
        let content = Content(ListIds::Chunks(content));
        let mut nodes = vec![NewNode::file(VOLUME_FILE, cut.size_bytes, content, modified_at)];
        let (size, blobs) = self.store_fingerprints(before, changes, learned, &mut encoder)?;
        if size > 0 {
            let content = Content(ListIds::Blobs(blobs.into_iter()));
            nodes.push(NewNode::file(FINGERPRINT_FILE, size, content, modified_at));
        }
        self.store_tree(&nodes)
    }

    /// Stores the fingerprints of a new list; their length and blobs.
    fn store_fingerprints(
        &self,
        before: Before<'_>,
        changes: &[Change],
        learned: &[Learned],
        encoder: &mut Encoder,
    ) -> Result<(u64, Vec<BlobId>), EngineError> {
        let mut size = 0;
        let mut blobs = Vec::new();
        let mut piece = Vec::with_capacity(FINGERPRINT_FILE_CHUNK_BYTES);
        for fingerprint in fingerprint::merge(before.base, before.fingerprints, changes, learned) {
            if piece.len() + fingerprint.len() > FINGERPRINT_FILE_CHUNK_BYTES {
                blobs.push(self.store_data(&piece, encoder)?);
                piece.clear();
            }
            piece.extend_from_slice(&fingerprint);
            size += fingerprint.len() as u64;
        }
        if !piece.is_empty() {
            blobs.push(self.store_data(&piece, encoder)?);
        }
        Ok((size, blobs))
    }
}

/// Fingerprints are cut into blobs of at most this length, between two of them. What did
/// not change is found again.
const FINGERPRINT_FILE_CHUNK_BYTES: usize = 512 << 10;

/// What is known of a volume before it is stored.
struct Before<'a> {
    cut: Cut,
    base: BaseIds<'a>,
    fingerprints: Option<&'a Fingerprints>,
}

/// The blobs of either file in a volume's directory.
#[derive(Clone)]
enum ListIds<C> {
    Chunks(C),
    Blobs(std::vec::IntoIter<BlobId>),
}

impl<C: Iterator<Item = BlobId>> Iterator for ListIds<C> {
    type Item = BlobId;

    fn next(&mut self) -> Option<BlobId> {
        match self {
            Self::Chunks(ids) => ids.next(),
            Self::Blobs(ids) => ids.next(),
        }
    }
}

/// A chain keeps its chunk size, or nothing of the parent could be kept.
fn choose_cut(size_bytes: u64, parent: Option<&VolumeView>, options: &StoreOptions) -> Cut {
    let of_parent = parent.and_then(VolumeView::chunk_size);
    let chosen = options.chunk_size.or(of_parent);
    let chunk_size = chosen.unwrap_or_else(|| ChunkSize::for_volume(size_bytes));
    Cut { size_bytes, chunk_size }
}

/// What the workers did.
#[derive(Debug, Default)]
struct Tally {
    changes: Vec<Change>,
    learned: Vec<Learned>,
    data_bytes: u64,
    read_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    read_chunks: u64,
    new_chunks: u64,
}

impl Tally {
    fn add(&mut self, mut other: Self) {
        self.changes.append(&mut other.changes);
        self.learned.append(&mut other.learned);
        self.data_bytes += other.data_bytes;
        self.read_bytes += other.read_bytes;
        self.new_bytes += other.new_bytes;
        self.stored_bytes += other.stored_bytes;
        self.read_chunks += other.read_chunks;
        self.new_chunks += other.new_chunks;
    }
}

struct Worker<'a> {
    session: &'a Session,
    progress: &'a dyn Progress,
    fingerprinter: &'a Fingerprinter,
    /// Chunks with equal fingerprints that are still to be hashed all the same.
    to_sample: &'a AtomicUsize,
    tally: Tally,
}

impl Work for Worker<'_> {
    type Tally = Tally;

    fn work(
        &mut self,
        task: &Task,
        plain: &[u8],
        packing: &mut Packing<'_>,
    ) -> Result<(), EngineError> {
        self.tally.read_bytes += u64::from(task.len);
        self.tally.read_chunks += 1;
        match task.purpose {
            Purpose::Store => self.store(task, plain, packing),
            Purpose::Sample => compare(task, plain),
        }
    }

    fn into_tally(self) -> Tally {
        self.tally
    }
}

impl Worker<'_> {
    fn store(
        &mut self,
        task: &Task,
        plain: &[u8],
        packing: &mut Packing<'_>,
    ) -> Result<(), EngineError> {
        let id = self.identify(task, plain)?;
        if id != zero_block_id() {
            self.tally.data_bytes += u64::from(task.len);
            let is_kept = task.is_stored && id == task.base;
            if !is_kept && self.session.claim(BlobKind::Data, id)? {
                let stored_bytes = packing.add(id, plain)?;
                self.tally.new_bytes += u64::from(task.len);
                self.tally.stored_bytes += u64::from(stored_bytes);
                self.tally.new_chunks += 1;
            }
        }
        if id != task.base {
            self.tally.changes.push(Change { chunk: task.chunk, id });
        }
        self.progress.advance(u64::from(task.len));
        Ok(())
    }
}

impl Worker<'_> {
    /// The chunk's blob: the one it had if it still has its fingerprint, else by hashing it.
    fn identify(&mut self, task: &Task, plain: &[u8]) -> Result<BlobId, EngineError> {
        if is_zero(plain) {
            return Ok(zero_block_id());
        }
        let fingerprint = self.fingerprinter.of(plain);
        let is_same = task.fingerprint == Some(fingerprint);
        if !is_same {
            self.tally.learned.push(Learned { chunk: task.chunk, fingerprint });
        } else if task.is_stored && !task.is_sampled && !self.takes_sample() {
            return Ok(task.base);
        }
        let id = BlobId::of(plain);
        if is_same && id != task.base {
            let what = format!("the chunk at byte {} differs and has its fingerprint", task.offset);
            return Err(EngineError::damaged("fingerprints of the parent", what));
        }
        Ok(id)
    }

    /// Whether there were too few samples before this one.
    fn takes_sample(&self) -> bool {
        let fewer = |left: usize| left.checked_sub(1);
        self.to_sample.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
    }
}

/// Judges a chunk that was counted when it was kept.
fn compare(task: &Task, plain: &[u8]) -> Result<(), EngineError> {
    if chunk_id(plain) == task.base {
        Ok(())
    } else {
        Err(EngineError::SourceLied { offset: task.offset })
    }
}

/// The blob of a chunk; the zero block for any zeroes.
fn chunk_id(plain: &[u8]) -> BlobId {
    if is_zero(plain) { zero_block_id() } else { BlobId::of(plain) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        CancelFlag, CreateOptions, Extent, ExtentKind, Indexed, KdfCost, MemoryBackend, NoProgress,
        OpenGate, Password, Repository, SnapshotMeta, SourceError,
    };

    const CHUNK: usize = 512 << 10;

    struct Disk(Vec<u8>);

    impl Source for Disk {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
            Ok(Extent { offset, len: self.size_bytes() - offset, kind: ExtentKind::Data })
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
            let start = usize::try_from(offset).unwrap();
            buf.copy_from_slice(&self.0[start..start + buf.len()]);
            Ok(())
        }
    }

    fn options() -> StoreOptions {
        StoreOptions {
            chunk_size: None,
            zstd_level: 1,
            threads: NonZeroUsize::MIN,
            modified_at: Timestamp::from_micros(0),
            verify_before_store: true,
        }
    }

    fn repository() -> Arc<Repository<Indexed>> {
        let password = Password::new("x");
        let created_at = Timestamp::from_micros(0);
        let options =
            CreateOptions { password: &password, kdf: KdfCost::CHEAP, created_at, access: None };
        let created = Repository::create(Arc::new(MemoryBackend::new()), &options).unwrap();
        Arc::new(created.load_index().unwrap())
    }

    fn begin(repository: &Arc<Repository<Indexed>>) -> Session {
        let now = Timestamp::from_micros(0);
        repository.begin_session("s", now, Arc::new(OpenGate), CancelFlag::new()).unwrap()
    }

    /// Makes a snapshot of a volume's tree, and opens the volume in it.
    fn commit(session: &Session, subtree: TreeId) -> VolumeView {
        let time = Timestamp::from_micros(0);
        let tree = session.finish_tree(&[("vol", subtree)], &[], time).unwrap();
        let meta = SnapshotMeta {
            time,
            tree,
            identity_tag: subtree.to_string(),
            tags: Vec::new(),
            paths: Vec::new(),
            hostname: String::new(),
            username: String::new(),
            parent: None,
            program_version: String::new(),
        };
        let id = session.write_snapshot(&meta).unwrap();
        session.repository.open_snapshot(id).unwrap().volume("vol").unwrap()
    }

    /// The list of `volume` with other bytes, or none, as its fingerprints.
    fn with_fingerprints(
        session: &Session,
        volume: &VolumeView,
        bytes: Option<&[u8]>,
    ) -> VolumeView {
        let time = Timestamp::from_micros(0);
        let ids: Vec<_> = volume.blobs().iter().collect();
        let content = Content(ids.into_iter());
        let mut nodes = vec![NewNode::file(VOLUME_FILE, volume.size_bytes(), content, time)];
        if let Some(bytes) = bytes {
            let id = session.store_data(bytes, &mut Encoder::new(1).unwrap()).unwrap();
            let content = Content(vec![id].into_iter());
            nodes.push(NewNode::file(FINGERPRINT_FILE, bytes.len() as u64, content, time));
        }
        commit(session, session.store_tree(&nodes).unwrap())
    }

    fn fingerprints(session: &Session, volume: &VolumeView) -> Vec<u8> {
        let (_, blobs) = volume.fingerprints().unwrap();
        blobs.iter().flat_map(|id| session.repository.load_data(id).unwrap()).collect()
    }

    /// Chunks of 1s, 2s, zeroes and 3s.
    fn disk() -> Disk {
        Disk([1, 2, 0, 3].map(|byte| vec![byte; CHUNK]).concat())
    }

    #[test]
    fn fingerprints_lost_cut_off_or_garbled_only_cost_the_hashing_and_are_made_anew() {
        let repository = repository();
        let session = begin(&repository);
        let store = |disk: &Disk, parent: Option<&VolumeView>| {
            session.store_volume(disk, parent, &options(), &NoProgress).unwrap()
        };
        let first = commit(&session, store(&disk(), None).subtree);
        let good = fingerprints(&session, &first);
        assert_eq!(good.len(), 3 * FINGERPRINT_BYTES);
        let garbled: Vec<_> = good.iter().rev().copied().collect();
        let longer = [&good[..], &[7; 10]].concat();
        for bytes in [None, Some(&good[..20]), Some(&good[1..]), Some(&longer), Some(&garbled)] {
            let parent = with_fingerprints(&session, &first, bytes);
            let stored = store(&disk(), Some(&parent));
            assert_eq!((stored.changed_chunks, stored.new_chunks), (0, 0));
            let again = commit(&session, stored.subtree);
            assert_eq!(again.blobs(), first.blobs());
            assert_eq!(fingerprints(&session, &again), good);
        }
        let parent = with_fingerprints(&session, &first, Some(&good));
        assert_eq!(store(&disk(), Some(&parent)).subtree, parent.subtree());
    }

    #[test]
    fn a_chunk_that_changed_is_stored_and_so_is_its_new_fingerprint() {
        let repository = repository();
        let session = begin(&repository);
        let store = |disk: &Disk, parent: Option<&VolumeView>| {
            let stored = session.store_volume(disk, parent, &options(), &NoProgress).unwrap();
            (commit(&session, stored.subtree), stored)
        };
        let (first, _) = store(&disk(), None);
        for byte in [0, CHUNK - 1, CHUNK + 77, 3 * CHUNK, 4 * CHUNK - 1] {
            let mut changed = disk();
            changed.0[byte] ^= 0x10;
            let (second, stored) = store(&changed, Some(&first));
            assert_eq!((stored.changed_chunks, stored.new_chunks), (1, 1), "byte {byte}");
            assert_ne!(second.blobs(), first.blobs());
            let (whole, _) = store(&changed, None);
            assert_eq!(second.blobs(), whole.blobs());
            assert_eq!(fingerprints(&session, &second), fingerprints(&session, &whole));
        }
    }

    #[test]
    fn a_fingerprint_that_vouches_for_another_chunk_is_found_out() {
        let repository = repository();
        let session = begin(&repository);
        let stored = session.store_volume(&disk(), None, &options(), &NoProgress).unwrap();
        let first = commit(&session, stored.subtree);
        let mut other = disk();
        other.0[5] = 9;
        let of_other = Fingerprinter::new(&repository.vault.key).of(&other.0[..CHUNK]);
        let mut bytes = fingerprints(&session, &first);
        bytes[..FINGERPRINT_BYTES].copy_from_slice(of_other.as_bytes());
        let parent = with_fingerprints(&session, &first, Some(&bytes));
        let found = session.store_volume(&other, Some(&parent), &options(), &NoProgress);
        assert!(matches!(found, Err(EngineError::Damaged { .. })), "{found:?}");
        // Without the parent the session goes on.
        session.store_volume(&other, None, &options(), &NoProgress).unwrap();
    }
}
