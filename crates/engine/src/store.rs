//! Storing a volume: what is done with each of its chunks, and the list made of them.

use std::{num::NonZeroUsize, sync::PoisonError};

use crate::{
    blob::{BlobKind, Encoder},
    chunk::{self, BaseIds, Change, ChunkSize, Cut, Zeroes, is_zero, zero_block_id},
    control::Progress,
    error::EngineError,
    id::{BlobId, TreeId},
    pipeline::{Packing, Pipeline, Work},
    plan::{Planner, Purpose, Skipped, Task},
    read::VolumeView,
    session::Session,
    source::Source,
    time::Timestamp,
    tree::{Content, NewNode, VOLUME_FILE},
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
        let (tally, skipped) = self.store_chunks(source, cut, base.clone(), options, progress)?;
        let mut changes = tally.changes;
        changes.extend(skipped.changes);
        changes.sort_unstable();
        let same = parent.filter(|parent| changes.is_empty() && parent.cut() == Some(cut));
        let subtree = match same {
            Some(parent) if self.has_list(parent)? => parent.subtree(),
            Some(_) | None => self.store_list(cut, base, &changes, options)?,
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

    /// Whether the index knows the volume's tree and the zero blobs of its list. We
    /// restore zeroes without them, stock restic does not.
    fn has_list(&self, volume: &VolumeView) -> Result<bool, EngineError> {
        let index = &self.repository.state.index;
        for id in volume.zero_blobs() {
            if !index.contains(BlobKind::Data, id)? {
                return Ok(false);
            }
        }
        index.contains(BlobKind::Tree, volume.subtree().blob())
    }

    fn store_chunks(
        &self,
        source: &dyn Source,
        cut: Cut,
        base: BaseIds<'_>,
        options: &StoreOptions,
        progress: &dyn Progress,
    ) -> Result<(Tally, Skipped), EngineError> {
        let index = &self.repository.state.index;
        let planner = Planner::new(source, index, cut, base, self.name());
        let chunk_bytes = cut.chunk_size.bytes() as usize;
        let pipeline = Pipeline::new(self, source, planner, chunk_bytes, options.threads, progress);
        let (tallies, planner) = pipeline.run(|| {
            let level = options.zstd_level;
            let encoder = match options.verify_before_store {
                true => Encoder::new(level)?,
                false => Encoder::trusting(level)?,
            };
            Ok((Worker { session: self, progress, tally: Tally::default() }, encoder))
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
        cut: Cut,
        base: BaseIds<'_>,
        changes: &[Change],
        options: &StoreOptions,
    ) -> Result<TreeId, EngineError> {
        let content = chunk::content(cut, base, changes);
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
        let content = Content(content);
        let node = NewNode::file(VOLUME_FILE, cut.size_bytes, content, options.modified_at);
        self.store_tree(&[node])
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
        let id = chunk_id(plain);
        if id != zero_block_id() {
            self.tally.data_bytes += u64::from(task.len);
            if self.session.claim(BlobKind::Data, id)? {
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
