//! The stages of storing a volume, and what flows between them.
//!
//! Readers take chunks from the planner and read them; workers do all the computing: test
//! for zeroes, hash, look up, compress, seal, verify, pack; putters store full packs. A
//! slow source or store so never idles a core while there is anything to compute.
//!
//! Chunk buffers and pack buffers go round: a stage that finds none left waits. Their
//! numbers are fixed at the start, so they bound both the memory and the queues.
//!
//! Invariant: whatever fails, every pack that was begun is given back to the session,
//! stored, or the session has failed. The first failure stops all stages.

use std::{
    collections::VecDeque,
    mem,
    num::NonZeroUsize,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    blob::{BlobKind, Encoder},
    control::Progress,
    error::EngineError,
    id::BlobId,
    pack::{PACK_BYTES, PackBuilder},
    pages::PageBuffer,
    plan::{Planner, Task},
    session::Session,
    source::Source,
};

/// Chunks read ahead of the workers: so many bytes,
const AHEAD_BYTES: usize = 8 << 20;
/// and at least so many chunks,
const AHEAD_MIN: usize = 2;
/// and at most so many, which are then read at the same time.
const READS_MAX: usize = 4;
/// Packs on their way into the store.
const PUTS_MAX: usize = 2;
/// A pack's header, and the room zstd wants beyond what it writes.
const PACK_SLACK_BYTES: usize = 5 << 20;

/// How many threads and buffers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dimensions {
    pub(crate) readers: usize,
    pub(crate) workers: usize,
    pub(crate) putters: usize,
    pub(crate) chunk_buffers: usize,
    pub(crate) pack_buffers: usize,
}

impl Dimensions {
    pub(crate) fn new(workers: NonZeroUsize, chunk_bytes: usize) -> Self {
        let ahead = (AHEAD_BYTES / chunk_bytes).max(AHEAD_MIN);
        let workers = workers.get();
        Self {
            readers: ahead.min(READS_MAX),
            workers,
            putters: PUTS_MAX,
            chunk_buffers: workers + ahead,
            pack_buffers: workers + PUTS_MAX,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A queue between threads. Pushing never waits: what is pushed is one of a fixed number
/// of buffers.
struct Queue<T> {
    state: Mutex<QueueState<T>>,
    changed: Condvar,
}

struct QueueState<T> {
    items: VecDeque<T>,
    is_closed: bool,
}

impl<T> Queue<T> {
    fn new(items: impl IntoIterator<Item = T>) -> Self {
        let state = QueueState { items: items.into_iter().collect(), is_closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn push(&self, item: T) {
        lock(&self.state).items.push_back(item);
        self.changed.notify_one();
    }

    /// Waits for an item; `None` when there is none and will be none.
    fn pop(&self) -> Option<T> {
        let is_waiting = |state: &mut QueueState<T>| state.items.is_empty() && !state.is_closed;
        let waited = self.changed.wait_while(lock(&self.state), is_waiting);
        waited.unwrap_or_else(PoisonError::into_inner).items.pop_front()
    }

    fn close(&self) {
        lock(&self.state).is_closed = true;
        self.changed.notify_all();
    }
}

/// What a worker does with chunks and keeps count of.
pub(crate) trait Work {
    /// What it counted.
    type Tally;

    /// Deals with a chunk's bytes.
    fn work(
        &mut self,
        task: &Task,
        plain: &[u8],
        pack: &mut Packing<'_>,
    ) -> Result<(), EngineError>;

    /// The chunks were all dealt with.
    fn into_tally(self) -> Self::Tally;
}

/// The pack a worker fills.
pub(crate) struct Packing<'p> {
    session: &'p Session,
    packs: &'p Packs,
    encoder: Encoder,
    pack: PackBuilder,
}

impl Packing<'_> {
    /// Stores a blob the session has claimed; says how many sealed bytes it has.
    pub(crate) fn add(&mut self, id: BlobId, plain: &[u8]) -> Result<u32, EngineError> {
        let Self { session, packs, encoder, pack } = self;
        let shape = session.add(pack, encoder, id, plain, |full| {
            let fresh = packs.take_empty()?;
            packs.full.push(mem::replace(full, fresh));
            Ok(())
        })?;
        Ok(shape.length)
    }
}

/// Packs between workers and putters.
struct Packs {
    buffers: Queue<PageBuffer>,
    full: Queue<PackBuilder>,
}

impl Packs {
    /// Waits while too many packs are on their way.
    fn take_empty(&self) -> Result<PackBuilder, EngineError> {
        let mut buffer =
            self.buffers.pop().ok_or_else(|| EngineError::bug("nobody stores packs"))?;
        buffer.make_room(PACK_BYTES + PACK_SLACK_BYTES);
        Ok(PackBuilder::in_buffer(BlobKind::Data, buffer))
    }
}

/// What runs the stages.
pub(crate) struct Pipeline<'a> {
    session: &'a Session,
    source: &'a dyn Source,
    progress: &'a dyn Progress,
    planner: Mutex<Planner<'a>>,
    dimensions: Dimensions,
    free_chunks: Queue<Vec<u8>>,
    chunks: Queue<(Task, Vec<u8>)>,
    packs: Packs,
    readers: AtomicUsize,
    workers: AtomicUsize,
    putters: AtomicUsize,
    failure: Mutex<Option<EngineError>>,
    is_over: AtomicBool,
}

#[derive(Clone, Copy)]
enum Stage {
    Reading,
    Working,
    Putting,
}

impl<'a> Pipeline<'a> {
    pub(crate) fn new(
        session: &'a Session,
        source: &'a dyn Source,
        planner: Planner<'a>,
        chunk_bytes: usize,
        threads: NonZeroUsize,
        progress: &'a dyn Progress,
    ) -> Self {
        let dimensions = Dimensions::new(threads, chunk_bytes);
        Self {
            session,
            source,
            progress,
            planner: Mutex::new(planner),
            dimensions,
            free_chunks: Queue::new((0..dimensions.chunk_buffers).map(|_| vec![0; chunk_bytes])),
            chunks: Queue::new([]),
            packs: Packs {
                buffers: Queue::new((0..dimensions.pack_buffers).map(|_| PageBuffer::default())),
                full: Queue::new([]),
            },
            readers: AtomicUsize::new(dimensions.readers),
            workers: AtomicUsize::new(dimensions.workers),
            putters: AtomicUsize::new(dimensions.putters),
            failure: Mutex::default(),
            is_over: AtomicBool::new(false),
        }
    }

    /// Runs the stages to their end; what the workers counted, and the planner.
    pub(crate) fn run<W: Work>(
        self,
        worker: impl Fn() -> Result<(W, Encoder), EngineError> + Sync,
    ) -> Result<(Vec<W::Tally>, Planner<'a>), EngineError>
    where
        W::Tally: Send,
    {
        let mut tallies = Vec::new();
        let mut has_panicked = false;
        thread::scope(|scope| {
            let pipeline = &self;
            let worker = &worker;
            let mut others = Vec::new();
            for _ in 0..self.dimensions.readers {
                others.push(scope.spawn(|| pipeline.stage(Stage::Reading, Self::read)));
            }
            for _ in 0..self.dimensions.putters {
                others.push(scope.spawn(|| pipeline.stage(Stage::Putting, Self::put)));
            }
            let spawn = |_| scope.spawn(|| pipeline.stage(Stage::Working, |p| p.work(worker)));
            let workers: Vec<_> = (0..self.dimensions.workers).map(spawn).collect();
            for worker in workers {
                match worker.join() {
                    Ok(tally) => tallies.extend(tally),
                    Err(_) => has_panicked = true,
                }
            }
            for other in others {
                has_panicked |= other.join().is_err();
            }
        });
        if has_panicked {
            // A pack may be gone, and with it blobs others may refer to.
            return self.session.or_fail(|| Err(EngineError::bug("a thread panicked")));
        }
        match self.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => {
                let planner = self.planner.into_inner().unwrap_or_else(PoisonError::into_inner);
                Ok((tallies, planner))
            }
        }
    }

    fn stage<T>(
        &self,
        stage: Stage,
        body: impl FnOnce(&Self) -> Result<T, EngineError>,
    ) -> Option<T> {
        let _leaving = Leaving { pipeline: self, stage };
        body(self).map_err(|error| self.fail(error)).ok()
    }

    /// Notes the failure that is reported, and stops all stages.
    fn fail(&self, error: EngineError) {
        let mut failure = lock(&self.failure);
        // That the session has failed is only a consequence when someone says why.
        if matches!(*failure, None | Some(EngineError::SessionFailed)) {
            *failure = Some(error);
        }
        drop(failure);
        self.stop();
    }

    fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.free_chunks.close();
        self.chunks.close();
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn read(&self) -> Result<(), EngineError> {
        while let Some(mut buffer) = self.free_chunks.pop() {
            if self.is_over() {
                break;
            }
            self.session.permit()?;
            let (task, passed_bytes) = lock(&self.planner).next()?;
            if passed_bytes > 0 {
                self.progress.advance(passed_bytes);
            }
            let Some(task) = task else {
                // For the other readers, which find nothing to do either.
                self.free_chunks.push(buffer);
                break;
            };
            self.source.read_at(task.offset, &mut buffer[..task.len as usize])?;
            self.chunks.push((task, buffer));
        }
        Ok(())
    }

    fn work<W: Work>(
        &self,
        worker: &impl Fn() -> Result<(W, Encoder), EngineError>,
    ) -> Result<W::Tally, EngineError> {
        let (mut worker, encoder) = worker()?;
        // One that was begun comes with a buffer of its own, and takes the place of one.
        let empty = self.packs.take_empty()?;
        let pack = self.session.lend_pack().unwrap_or(empty);
        let mut packing = Packing { session: self.session, packs: &self.packs, encoder, pack };
        let mut work = || {
            while let Some((task, buffer)) = self.chunks.pop() {
                if self.is_over() {
                    break;
                }
                worker.work(&task, &buffer[..task.len as usize], &mut packing)?;
                self.free_chunks.push(buffer);
            }
            Ok(())
        };
        let outcome = work();
        // Whatever happened, the blobs in it are whole, and others may refer to them.
        self.session.return_pack(packing.pack);
        outcome.map(|()| worker.into_tally())
    }

    fn put(&self) -> Result<(), EngineError> {
        let mut outcome = Ok(());
        while let Some(pack) = self.packs.full.pop() {
            // After a failure the session refuses the rest, and has noted that it did.
            let stored = self.session.store_pack(pack);
            // Workers wait for a buffer, whatever became of the pack.
            let (buffer, failed) = match stored {
                Ok(buffer) => (buffer, None),
                Err(error) => (PageBuffer::default(), Some(error)),
            };
            self.packs.buffers.push(buffer);
            if let Some(error) = failed {
                self.stop();
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }
}

/// Dropped when a thread leaves its stage, even by a panic: the last one closes the queue
/// into the next stage.
struct Leaving<'p, 'a> {
    pipeline: &'p Pipeline<'a>,
    stage: Stage,
}

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        let pipeline = self.pipeline;
        if thread::panicking() {
            pipeline.stop();
        }
        let is_last = |threads: &AtomicUsize| threads.fetch_sub(1, Ordering::AcqRel) == 1;
        match self.stage {
            Stage::Reading if is_last(&pipeline.readers) => pipeline.chunks.close(),
            Stage::Working if is_last(&pipeline.workers) => pipeline.packs.full.close(),
            Stage::Putting if is_last(&pipeline.putters) => pipeline.packs.buffers.close(),
            Stage::Reading | Stage::Working | Stage::Putting => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkSize;

    #[test]
    fn buffers_of_two_workers_stay_below_a_hundred_mebibytes() {
        let two = NonZeroUsize::new(2).unwrap();
        for chunk_size in ChunkSize::ALL {
            let chunk_bytes = chunk_size.bytes() as usize;
            let dimensions = Dimensions::new(two, chunk_bytes);
            let bytes = dimensions.pack_buffers * PACK_BYTES
                + dimensions.chunk_buffers * chunk_bytes
                // What a blob is opened into again.
                + dimensions.workers * 2 * chunk_bytes;
            assert!(bytes <= 100 << 20, "{chunk_size:?}: {bytes}");
            assert!(dimensions.chunk_buffers > dimensions.workers, "nothing is read ahead");
            assert!(dimensions.readers > 1, "nothing is read at the same time");
        }
    }

    #[test]
    fn a_closed_queue_gives_what_is_left_and_then_nothing() {
        let queue = Queue::new([1]);
        queue.push(2);
        queue.close();
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(1), Some(2), None]);
    }

    #[test]
    fn closing_a_queue_wakes_whoever_waits() {
        let queue = Queue::<u8>::new([]);
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| queue.pop())).collect();
            queue.close();
            assert!(waiting.into_iter().all(|waiting| waiting.join().unwrap().is_none()));
        });
    }
}
