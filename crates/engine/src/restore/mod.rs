//! Restoring a volume and comparing one with its backup.
//!
//! Threads take ranges of packs in pack order, so that every pack is read once and
//! forwards; reads run ahead of the processors. Memory is 32 bytes per blob of data,
//! and a range and a blob per thread, whatever the volume's size.
//!
//! Invariant: no byte is written that was not authenticated and hashed before.

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    backend::ObjectName,
    blob::{BlobKind, Decoder},
    control::{CancelFlag, Gate, Progress},
    error::EngineError,
    id::BlobId,
    parallel::{self, Work},
    read::{VolumeView, blob_name},
    repository::{Indexed, Repository},
    source::Sink,
};

mod compare;
mod layout;

use layout::{Layout, Piece};

/// How a restore, a comparison or a verification runs.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// How many processors are used. A few more reads are in flight; each takes some
    /// 5 MiB, and with chunks of 4 MiB up to 12 MiB.
    pub threads: NonZeroUsize,
    /// Ends the work early.
    pub cancel: CancelFlag,
}

/// What a restore or a comparison did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Bytes of data written or compared.
    pub data_bytes: u64,
    /// Bytes made zero or found zero.
    pub zero_bytes: u64,
    /// Bytes read from the repository.
    pub fetched_bytes: u64,
    /// Bytes an earlier attempt had written, which were not written again.
    pub resumed_bytes: u64,
    /// Blobs whose best copy is damaged, and which were read from another one.
    pub rescued_blobs: u64,
}

impl ReadReport {
    fn sum(reports: Vec<Self>) -> Self {
        reports.into_iter().fold(Self::default(), |sum, other| Self {
            data_bytes: sum.data_bytes + other.data_bytes,
            zero_bytes: sum.zero_bytes + other.zero_bytes,
            fetched_bytes: sum.fetched_bytes + other.fetched_bytes,
            resumed_bytes: sum.resumed_bytes + other.resumed_bytes,
            rescued_blobs: sum.rescued_blobs + other.rescued_blobs,
        })
    }
}

/// How far a restore has come: this much of it is durable on the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreCursor {
    /// Which order of work the count belongs to.
    layout: u64,
    /// Tasks done, from the first one on.
    done: u64,
}

/// How a restore continues one that was interrupted, and how it can be continued.
#[derive(Clone, Copy)]
pub struct Resume<'a> {
    /// What [`Self::save`] heard last about the same volume and the same target. When
    /// the repository was reorganised since, it is worth nothing and the restore begins
    /// anew.
    pub from: Option<RestoreCursor>,
    /// The target is flushed, and the cursor saved, after so many bytes.
    pub every_bytes: u64,
    /// Keeps a cursor, after [`Sink::flush`] has made durable what it stands for.
    pub save: &'a (dyn Fn(RestoreCursor) + Send + Sync),
}

impl std::fmt::Debug for Resume<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resume").field("from", &self.from).finish_non_exhaustive()
    }
}

/// Reads that wait for the store while the processors work.
const READS_AHEAD: usize = 3;

impl Repository<Indexed> {
    /// Writes a volume to `sink`: every byte of it once, data in pack order and zeroes
    /// as such. Every blob is authenticated and hashed before it is written; all blobs
    /// are known to the index before the first write. A blob whose best copy is damaged
    /// is read from another pack that has it.
    ///
    /// Hold a session meanwhile, so that nobody prunes the repository.
    pub fn restore_volume(
        &self,
        volume: &VolumeView,
        sink: &dyn Sink,
        gate: &dyn Gate,
        options: &ReadOptions,
        progress: &dyn Progress,
    ) -> Result<ReadReport, EngineError> {
        self.restore(volume, sink, gate, options, progress, None)
    }

    /// The same, continuing what an earlier call for the same target had made durable.
    /// Compare the whole target afterwards, as after every restore.
    pub fn resume_volume(
        &self,
        volume: &VolumeView,
        sink: &dyn Sink,
        gate: &dyn Gate,
        options: &ReadOptions,
        progress: &dyn Progress,
        resume: &Resume<'_>,
    ) -> Result<ReadReport, EngineError> {
        self.restore(volume, sink, gate, options, progress, Some(resume))
    }

    fn restore(
        &self,
        volume: &VolumeView,
        sink: &dyn Sink,
        gate: &dyn Gate,
        options: &ReadOptions,
        progress: &dyn Progress,
        resume: Option<&Resume<'_>>,
    ) -> Result<ReadReport, EngineError> {
        let layout = self.lay_out(volume)?;
        let resume = resume.map(|resume| Checkpoints::new(resume, &layout));
        Restore { repository: self, volume, layout, sink, gate, options, progress, resume }.run()
    }

    /// Fails unless the index knows a pack for every blob of the volume. Reads no pack.
    pub fn require_known_blobs(&self, volume: &VolumeView) -> Result<(), EngineError> {
        self.lay_out(volume).map(drop)
    }
}

struct Restore<'a> {
    repository: &'a Repository<Indexed>,
    volume: &'a VolumeView,
    layout: Layout,
    sink: &'a dyn Sink,
    gate: &'a dyn Gate,
    options: &'a ReadOptions,
    progress: &'a dyn Progress,
    resume: Option<Checkpoints<'a>>,
}

/// What a thread of a restore keeps from range to range.
struct Worker {
    decoder: Decoder,
    sealed: Vec<u8>,
    report: ReadReport,
}

impl Restore<'_> {
    fn run(&self) -> Result<ReadReport, EngineError> {
        let done = self.resume.as_ref().map_or(0, Checkpoints::done);
        let resumed_bytes = (0..done).map(|task| self.layout.bytes_of(task)).sum();
        if resumed_bytes > 0 {
            self.progress.advance(resumed_bytes);
        }
        let (threads, cancel) = (self.options.threads, &self.options.cancel);
        let tasks = done..self.layout.tasks();
        let mut reports =
            parallel::run(tasks, threads, READS_AHEAD, cancel, |work| self.work(work))?;
        if let Some(resume) = &self.resume {
            resume.save(self.sink, self.gate)?;
        }
        reports.push(ReadReport { resumed_bytes, ..ReadReport::default() });
        Ok(ReadReport::sum(reports))
    }

    fn work(&self, work: &Work<'_>) -> Result<ReadReport, EngineError> {
        let (decoder, sealed) = (Decoder::new()?, Vec::new());
        let mut worker = Worker { decoder, sealed, report: ReadReport::default() };
        while let Some(task) = work.next()? {
            match task.checked_sub(self.layout.zeroes.len()) {
                None => self.write_zeroes(task, &mut worker)?,
                Some(range) => self.write_range(range, &mut worker, work)?,
            }
            if let Some(resume) = &self.resume
                && resume.finish(task, self.layout.bytes_of(task))
            {
                resume.save(self.sink, self.gate)?;
            }
        }
        Ok(worker.report)
    }

    fn write_zeroes(&self, task: usize, worker: &mut Worker) -> Result<(), EngineError> {
        let (offset, len) = self.layout.zeroes[task];
        self.gate.may_write()?;
        self.sink.write_zeroes(offset, len)?;
        self.progress.advance(len);
        worker.report.zero_bytes += len;
        Ok(())
    }

    fn write_range(
        &self,
        range: usize,
        worker: &mut Worker,
        work: &Work<'_>,
    ) -> Result<(), EngineError> {
        let pieces = &self.layout.pieces[self.layout.ranges[range].clone()];
        let [first, ..] = pieces else { return Ok(()) };
        let end = pieces.iter().map(Piece::end).max().unwrap_or_default();
        let pack = ObjectName::Pack(self.layout.packs[first.pack as usize]);
        let start = u64::from(first.offset);
        let len = usize::try_from(end - start).map_err(|_| EngineError::bug("a pack of 4 GiB"))?;
        worker.sealed.resize(len, 0);
        let read = self.repository.vault.read_at(&pack, start, &mut worker.sealed);
        let is_whole = match read {
            Ok(()) => true,
            // Some of its blobs may be elsewhere as well.
            Err(EngineError::Damaged { .. }) => false,
            Err(error) => return Err(error),
        };
        worker.report.fetched_bytes += len as u64;
        let _permit = work.permit();
        for places in pieces.chunk_by(|a, b| a.offset == b.offset) {
            let [first, ..] = places else { continue };
            let at = usize::try_from(u64::from(first.offset) - start).unwrap_or(usize::MAX);
            let end = at.saturating_add(first.shape.length as usize);
            let sealed = worker.sealed.get(at..end).filter(|_| is_whole);
            let id = self.id_of(first)?;
            let key = &self.repository.vault.key;
            let opened = sealed.and_then(|sealed| {
                worker.decoder.decode_verified(key, sealed, first.shape, id).ok()
            });
            match opened {
                Some(plain) => worker.report.data_bytes += self.write_blob(places, plain)?,
                None => {
                    let plain = self.repository.load_data(id)?;
                    worker.report.rescued_blobs += 1;
                    worker.report.data_bytes += self.write_blob(places, &plain)?;
                }
            }
        }
        Ok(())
    }

    fn id_of(&self, piece: &Piece) -> Result<BlobId, EngineError> {
        let id = self.volume.blobs().data().get(piece.data as usize);
        id.copied().ok_or_else(|| EngineError::bug("a piece of another volume"))
    }

    /// Writes a blob to each of its places.
    fn write_blob(&self, places: &[Piece], plain: &[u8]) -> Result<u64, EngineError> {
        let len = plain.len() as u64;
        for place in places {
            // The places were computed from the length in the index.
            if len != u64::from(place.shape.plain_bytes()) {
                let blob = blob_name(BlobKind::Data, self.id_of(place)?);
                return Err(EngineError::damaged(blob, "is not as long as the index says"));
            }
            debug_assert!(place.position + len <= self.volume.size_bytes());
            self.gate.may_write()?;
            self.sink.write_at(place.position, plain)?;
            self.progress.advance(len);
        }
        Ok(len * places.len() as u64)
    }
}

/// Counts finished tasks and says when to save how far they reach.
struct Checkpoints<'a> {
    resume: &'a Resume<'a>,
    layout: u64,
    finished: Mutex<Finished>,
    /// Held while flushing, so that cursors are saved in order.
    saved: Mutex<usize>,
}

struct Finished {
    /// All tasks before it are finished,
    done: usize,
    /// and these after it.
    beyond: BTreeSet<usize>,
    bytes_since: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Checkpoints<'a> {
    fn new(resume: &'a Resume<'a>, layout: &Layout) -> Self {
        let fingerprint = layout.fingerprint();
        let same = resume.from.filter(|cursor| cursor.layout == fingerprint);
        let done = same.and_then(|cursor| usize::try_from(cursor.done).ok()).unwrap_or(0);
        let done = done.min(layout.tasks());
        Self {
            resume,
            layout: fingerprint,
            finished: Mutex::new(Finished { done, beyond: BTreeSet::new(), bytes_since: 0 }),
            saved: Mutex::new(done),
        }
    }

    fn done(&self) -> usize {
        lock(&self.finished).done
    }

    /// Notes a finished task; says whether enough was written for a checkpoint.
    fn finish(&self, task: usize, bytes: u64) -> bool {
        let mut finished = lock(&self.finished);
        finished.beyond.insert(task);
        let mut done = finished.done;
        while finished.beyond.remove(&done) {
            done += 1;
        }
        finished.done = done;
        finished.bytes_since += bytes;
        let is_due = finished.bytes_since >= self.resume.every_bytes;
        if is_due {
            finished.bytes_since = 0;
        }
        is_due
    }

    /// Makes durable what was written and saves how far it reaches without a gap. What
    /// other threads finish meanwhile is not counted.
    fn save(&self, sink: &dyn Sink, gate: &dyn Gate) -> Result<(), EngineError> {
        let mut saved = lock(&self.saved);
        let done = self.done();
        if done > *saved {
            gate.may_write()?;
            sink.flush()?;
            *saved = done;
            (self.resume.save)(RestoreCursor { layout: self.layout, done: done as u64 });
        }
        Ok(())
    }
}
