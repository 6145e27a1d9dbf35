//! Restoring a volume and comparing one with its backup.
//!
//! Threads take ranges of packs in pack order, so that every pack is read once and
//! forwards; memory is a range and a blob per thread, whatever the volume's size.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use crate::{
    backend::ObjectName,
    blob::{BlobKind, Decoder, Shape},
    chunk::{Zeroes, is_zero},
    control::{CancelFlag, Gate, Progress},
    error::EngineError,
    id::{BlobId, PackId},
    read::{VolumeView, blob_name},
    repository::{Indexed, Repository},
    source::{Sink, Source},
};

/// How a restore or a comparison runs.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// How many reads are in flight. Each takes up to some 12 MiB.
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
}

impl ReadReport {
    fn add(&mut self, other: Self) {
        self.data_bytes += other.data_bytes;
        self.zero_bytes += other.zero_bytes;
        self.fetched_bytes += other.fetched_bytes;
    }
}

/// Blobs this near to each other in a pack are read at once.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// No more than this is read at once, save for a single larger blob.
const RANGE_BYTES_MAX: u64 = 4 << 20;
/// Zeroes are written in pieces, so that cancelling is heard.
const ZEROES_BYTES_MAX: u64 = 256 << 20;

impl Repository<Indexed> {
    /// Writes a volume to `sink`: every byte of it once, data in pack order and zeroes
    /// as such. Every blob is authenticated and hashed before it is written; all blobs
    /// are known to the index before the first write.
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
        let layout = self.lay_out(volume)?;
        let restore = Restore { repository: self, volume, layout, sink, gate, options, progress };
        restore.run()
    }

    /// Compares every byte of `source` with a volume, by the blobs' hashes; nothing is
    /// read from the repository. [`EngineError::Mismatch`] names the first difference
    /// met.
    pub fn compare_volume(
        &self,
        volume: &VolumeView,
        source: &dyn Source,
        options: &ReadOptions,
        progress: &dyn Progress,
    ) -> Result<ReadReport, EngineError> {
        if source.size_bytes() < volume.size_bytes() {
            return Err(EngineError::Mismatch { offset: source.size_bytes() });
        }
        let places = self.places(volume)?;
        let zeroes = Zeroes::of_volume(volume.size_bytes());
        in_parallel(places.len(), options, |work| {
            let mut report = ReadReport::default();
            let mut buffer = Vec::new();
            while let Some(number) = work.next()? {
                let Place { position, len } = places[number];
                buffer.resize(len as usize, 0);
                source.read_at(position, &mut buffer)?;
                let id = volume.blobs()[number];
                let is_same = match zeroes.len_of(id) {
                    Some(_) => is_zero(&buffer),
                    None => BlobId::of(&buffer) == id,
                };
                if !is_same {
                    return Err(EngineError::Mismatch { offset: position });
                }
                match zeroes.len_of(id) {
                    Some(_) => report.zero_bytes += u64::from(len),
                    None => report.data_bytes += u64::from(len),
                }
                progress.advance(u64::from(len));
            }
            Ok(report)
        })
    }

    /// Where each blob of a volume goes; together they must fill it exactly.
    fn places(&self, volume: &VolumeView) -> Result<Vec<Place>, EngineError> {
        let zeroes = Zeroes::of_volume(volume.size_bytes());
        let mut position: u64 = 0;
        let mut places = Vec::with_capacity(volume.blobs().len());
        for id in volume.blobs() {
            let len = match zeroes.len_of(*id) {
                Some(len) => len,
                None => self.data_bytes_of(*id)?.ok_or_else(|| missing(*id))?,
            };
            places.push(Place { position, len });
            position = position.saturating_add(u64::from(len));
        }
        if position == volume.size_bytes() {
            Ok(places)
        } else {
            let tree = format!("tree {}", volume.subtree());
            let what = format!(
                "a volume of {} bytes lists blobs of {position} bytes",
                volume.size_bytes()
            );
            Err(EngineError::damaged(tree, what))
        }
    }

    /// Fails unless the index knows a pack for every blob of the volume. Reads no pack.
    pub fn require_known_blobs(&self, volume: &VolumeView) -> Result<(), EngineError> {
        self.lay_out(volume).map(drop)
    }

    fn lay_out(&self, volume: &VolumeView) -> Result<Layout, EngineError> {
        let zeroes = Zeroes::of_volume(volume.size_bytes());
        let mut layout = Layout::default();
        let mut numbers = HashMap::new();
        for (place, id) in self.places(volume)?.into_iter().zip(volume.blobs()) {
            if zeroes.len_of(*id).is_some() {
                layout.add_zeroes(place);
                continue;
            }
            let found = self.state.index.find(BlobKind::Data, *id)?.ok_or_else(|| missing(*id))?;
            let pack = *numbers.entry(found.pack).or_insert_with(|| {
                layout.packs.push(found.pack);
                layout.packs.len() - 1
            });
            let Place { position, .. } = place;
            let (offset, shape) = (found.offset, found.shape);
            layout.pieces.push(Piece { pack, offset, shape, position, id: *id });
        }
        layout.pieces.sort_unstable_by_key(|piece| (piece.pack, piece.offset, piece.position));
        layout.ranges = ranges(&layout.pieces);
        Ok(layout)
    }
}

fn missing(id: BlobId) -> EngineError {
    EngineError::damaged(blob_name(BlobKind::Data, id), "missing")
}

#[derive(Clone, Copy)]
struct Place {
    position: u64,
    len: u32,
}

/// A blob in a pack and where it goes. One that goes to many places is there many times.
struct Piece {
    /// Position in [`Layout::packs`].
    pack: usize,
    offset: u32,
    shape: Shape,
    position: u64,
    id: BlobId,
}

impl Piece {
    fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.shape.length)
    }
}

#[derive(Default)]
struct Layout {
    packs: Vec<PackId>,
    /// Sorted by place in the packs.
    pieces: Vec<Piece>,
    /// Pieces that are read at once.
    ranges: Vec<Range<usize>>,
    /// Offset and length.
    zeroes: Vec<(u64, u64)>,
}

impl Layout {
    fn add_zeroes(&mut self, place: Place) {
        let len = u64::from(place.len);
        match self.zeroes.last_mut() {
            Some((start, total))
                if *start + *total == place.position && *total + len <= ZEROES_BYTES_MAX =>
            {
                *total += len;
            }
            Some(_) | None => self.zeroes.push((place.position, len)),
        }
    }
}

/// Cuts sorted pieces into runs of neighbours in one pack.
fn ranges(pieces: &[Piece]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        let joins = ranges.last().is_some_and(|range: &Range<usize>| {
            let (first, last) = (&pieces[range.start], &pieces[range.end - 1]);
            first.pack == piece.pack
                && u64::from(piece.offset) <= last.end() + GAP_BYTES_MAX
                && piece.end() - u64::from(first.offset) <= RANGE_BYTES_MAX
                || last.pack == piece.pack && last.offset == piece.offset
        });
        match ranges.last_mut() {
            Some(range) if joins => range.end = number + 1,
            Some(_) | None => ranges.push(number..number + 1),
        }
    }
    ranges
}

struct Restore<'a> {
    repository: &'a Repository<Indexed>,
    volume: &'a VolumeView,
    layout: Layout,
    sink: &'a dyn Sink,
    gate: &'a dyn Gate,
    options: &'a ReadOptions,
    progress: &'a dyn Progress,
}

impl Restore<'_> {
    fn run(&self) -> Result<ReadReport, EngineError> {
        let zeroes = self.layout.zeroes.len();
        let tasks = zeroes + self.layout.ranges.len();
        in_parallel(tasks, self.options, |work| {
            let mut report = ReadReport::default();
            let mut decoder = Decoder::new()?;
            let mut sealed = Vec::new();
            while let Some(number) = work.next()? {
                match number.checked_sub(zeroes) {
                    None => report.zero_bytes += self.write_zeroes(number)?,
                    Some(range) => {
                        let range = self.layout.ranges[range].clone();
                        report.add(self.write_range(range, &mut sealed, &mut decoder)?);
                    }
                }
            }
            Ok(report)
        })
    }

    fn write_zeroes(&self, number: usize) -> Result<u64, EngineError> {
        let (offset, len) = self.layout.zeroes[number];
        self.gate.may_write()?;
        self.sink.write_zeroes(offset, len)?;
        self.progress.advance(len);
        Ok(len)
    }

    fn write_range(
        &self,
        range: Range<usize>,
        sealed: &mut Vec<u8>,
        decoder: &mut Decoder,
    ) -> Result<ReadReport, EngineError> {
        let pieces = &self.layout.pieces[range];
        let [first, ..] = pieces else { return Ok(ReadReport::default()) };
        let end = pieces.iter().map(Piece::end).max().unwrap_or_default();
        let pack = ObjectName::Pack(self.layout.packs[first.pack]);
        let start = u64::from(first.offset);
        let len = usize::try_from(end - start).map_err(|_| EngineError::bug("a pack of 4 GiB"))?;
        sealed.resize(len, 0);
        self.repository.vault.read_at(&pack, start, sealed)?;
        let mut report = ReadReport { fetched_bytes: len as u64, ..ReadReport::default() };
        for same in pieces.chunk_by(|a, b| a.offset == b.offset) {
            report.data_bytes += self.write_blob(same, &pack, start, sealed, decoder)?;
        }
        Ok(report)
    }

    /// Opens one blob and writes it to each of its places.
    fn write_blob(
        &self,
        places: &[Piece],
        pack: &ObjectName,
        start: u64,
        sealed: &[u8],
        decoder: &mut Decoder,
    ) -> Result<u64, EngineError> {
        let [first, ..] = places else { return Ok(0) };
        let damaged = |what: &dyn std::fmt::Display| {
            let blob = blob_name(BlobKind::Data, first.id);
            EngineError::damaged(pack, format!("{blob} {what}"))
        };
        let at = usize::try_from(u64::from(first.offset) - start).unwrap_or(usize::MAX);
        let bytes = at
            .checked_add(first.shape.length as usize)
            .and_then(|end| sealed.get(at..end))
            .ok_or_else(|| EngineError::bug("a piece outside of its range"))?;
        let key = &self.repository.vault.key;
        let plain = decoder
            .decode_verified(key, bytes, first.shape, first.id)
            .map_err(|fault| damaged(&fault))?;
        // The places were computed from the length in the index.
        if plain.len() as u64 != u64::from(first.shape.plain_bytes()) {
            return Err(damaged(&"is not as long as the index says"));
        }
        let mut written = 0;
        for place in places {
            debug_assert!(place.position + plain.len() as u64 <= self.volume.size_bytes());
            self.gate.may_write()?;
            self.sink.write_at(place.position, plain)?;
            self.progress.advance(plain.len() as u64);
            written += plain.len() as u64;
        }
        Ok(written)
    }
}

/// Numbers handed out to threads, until one of them fails or the caller cancels.
struct Work<'a> {
    next: AtomicUsize,
    tasks: usize,
    is_over: AtomicBool,
    cancel: &'a CancelFlag,
}

impl Work<'_> {
    fn next(&self) -> Result<Option<usize>, EngineError> {
        self.cancel.check()?;
        if self.is_over.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok((number < self.tasks).then_some(number))
    }
}

fn in_parallel(
    tasks: usize,
    options: &ReadOptions,
    work: impl Fn(&Work<'_>) -> Result<ReadReport, EngineError> + Sync,
) -> Result<ReadReport, EngineError> {
    let shared = Work {
        next: AtomicUsize::new(0),
        tasks,
        is_over: AtomicBool::new(false),
        cancel: &options.cancel,
    };
    let one = || work(&shared).inspect_err(|_| shared.is_over.store(true, Ordering::Relaxed));
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads.get()).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut report = ReadReport::default();
    for outcome in outcomes {
        report.add(outcome.map_err(|_| EngineError::bug("a reader panicked"))??);
    }
    Ok(report)
}
