//! Comparing a target with a volume.

use std::sync::{Mutex, PoisonError};

use super::{ReadOptions, ReadReport, layout};
use crate::{
    chunk::{Cut, Zeroes, is_zero, zero_block_id},
    control::Progress,
    error::EngineError,
    id::BlobId,
    list::{BlobList, Entry},
    pages::PageBuffer,
    parallel::{self, Work},
    read::VolumeView,
    repository::{Indexed, Repository},
    source::{ExtentKind, Source},
};

/// So much is read at once, save for a single larger blob.
const READ_BYTES: u64 = 2 << 20;
/// Reads that wait for the target while the processors hash.
const READS_AHEAD: usize = 2;

impl Repository<Indexed> {
    /// Compares every byte of `source` with a volume, by the blobs' hashes; nothing is
    /// read from the repository. What the source calls zero is not read where the
    /// volume is zero as well. [`EngineError::Mismatch`] names the first difference
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
        let steps = Mutex::new(Steps::new(self, volume));
        let compare = Compare { source, progress, steps: &steps };
        // The steps are not counted beforehand; their end is.
        let numbers = 0..usize::MAX;
        let reports =
            parallel::run(numbers, options.threads, READS_AHEAD, &options.cancel, |work| {
                compare.work(work)
            })?;
        Ok(ReadReport::sum(reports))
    }
}

/// Bytes of the target that are read at once, and what they must be.
#[derive(Default)]
struct Step {
    position: u64,
    len: u64,
    /// Blobs of data in order with their lengths; none for zeroes.
    blobs: Vec<(u32, BlobId)>,
}

/// Walks a volume's list.
struct Steps<'a> {
    repository: &'a Repository<Indexed>,
    volume: &'a VolumeView,
    zeroes: Zeroes,
    cut: Option<Cut>,
    entries: Box<dyn Iterator<Item = Entry> + Send + 'a>,
    /// Taken from `entries` and not part of a step yet.
    waiting: Option<(u64, Option<BlobId>)>,
    position: u64,
}

impl<'a> Steps<'a> {
    fn new(repository: &'a Repository<Indexed>, volume: &'a VolumeView) -> Self {
        let list: &'a BlobList = volume.blobs();
        Self {
            repository,
            volume,
            zeroes: Zeroes::of_volume(volume.size_bytes()),
            cut: volume.cut(),
            entries: Box::new(list.entries()),
            waiting: None,
            position: 0,
        }
    }

    /// The next entry at `at`: its length, and its blob unless it is zeroes.
    fn take(&mut self, at: u64) -> Result<Option<(u64, Option<BlobId>)>, EngineError> {
        if let Some(waiting) = self.waiting.take() {
            return Ok(Some(waiting));
        }
        let Some(entry) = self.entries.next() else { return Ok(None) };
        let (id, count) = match entry {
            Entry::Zeroes(count) => (zero_block_id(), count),
            Entry::Data(id) => (id, 1),
        };
        if let Some(len) = self.zeroes.len_of(id) {
            return Ok(Some((u64::from(len) * u64::from(count), None)));
        }
        // A volume cut by us has blobs as long as its chunks; the index is not asked.
        let len = match self.cut {
            Some(cut) => Some(cut.len(at / u64::from(cut.chunk_size.bytes()))),
            None => self.repository.data_bytes_of(id)?,
        };
        let len = len.ok_or_else(|| layout::missing(id))?;
        Ok(Some((u64::from(len), Some(id))))
    }

    fn next(&mut self) -> Result<Option<Step>, EngineError> {
        let mut step = Step { position: self.position, ..Step::default() };
        while let Some((len, id)) = self.take(step.position + step.len)? {
            match id {
                None if step.blobs.is_empty() => {
                    let part = len.min(READ_BYTES);
                    self.waiting = (part < len).then_some((len - part, None));
                    step.len = part;
                    break;
                }
                Some(id) if step.len == 0 || step.len + len <= READ_BYTES => {
                    let short = u32::try_from(len).map_err(|_| layout::missing(id))?;
                    step.blobs.push((short, id));
                    step.len += len;
                }
                None | Some(_) => {
                    self.waiting = Some((len, id));
                    break;
                }
            }
        }
        self.position += step.len;
        if self.position > self.volume.size_bytes() || step.len == 0 {
            layout::require_size(self.volume, self.position)?;
        }
        Ok((step.len > 0).then_some(step))
    }

    /// Passes over zeroes up to `end`; says how many bytes that were.
    fn skip_zeroes(&mut self, end: u64) -> u64 {
        match self.waiting {
            Some((len, None)) => {
                let skipped = len.min(end.saturating_sub(self.position));
                self.waiting = (skipped < len).then_some((len - skipped, None));
                self.position += skipped;
                skipped
            }
            Some((_, Some(_))) | None => 0,
        }
    }
}

struct Compare<'c, 'a> {
    source: &'c dyn Source,
    progress: &'c dyn Progress,
    steps: &'c Mutex<Steps<'a>>,
}

impl Compare<'_, '_> {
    fn work(&self, work: &Work<'_>) -> Result<ReadReport, EngineError> {
        let mut report = ReadReport::default();
        // At a page, so that a source can be read past the page cache.
        let mut buffer = PageBuffer::default();
        while work.next()?.is_some() {
            let Some(step) = self.next(&mut report)? else { break };
            if step.len == 0 {
                continue;
            }
            let len = usize::try_from(step.len).map_err(|_| EngineError::bug("a read of 4 GiB"))?;
            self.source.read_at(step.position, buffer.of_len(len))?;
            let _permit = work.permit();
            match find_difference(&step, buffer.as_slice()) {
                Some(offset) => return Err(EngineError::Mismatch { offset }),
                None if step.blobs.is_empty() => report.zero_bytes += step.len,
                None => report.data_bytes += step.len,
            }
            self.progress.advance(step.len);
        }
        Ok(report)
    }

    /// The next step to read. What is zero in both is passed over.
    fn next(&self, report: &mut ReadReport) -> Result<Option<Step>, EngineError> {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut step) = steps.next()? else { return Ok(None) };
        if step.blobs.is_empty() {
            let extent = self.source.next_extent(step.position)?;
            let end = extent.offset.saturating_add(extent.len);
            let holds = extent.offset <= step.position && step.position < end;
            let step_end = step.position + step.len;
            if holds && extent.kind == ExtentKind::Zero && end >= step_end {
                let skipped = step.len + steps.skip_zeroes(end);
                drop(steps);
                report.zero_bytes += skipped;
                self.progress.advance(skipped);
                step.len = 0;
            }
        }
        Ok(Some(step))
    }
}

/// The start of the first blob that differs.
fn find_difference(step: &Step, bytes: &[u8]) -> Option<u64> {
    if step.blobs.is_empty() {
        return (!is_zero(bytes)).then_some(step.position);
    }
    let mut rest = bytes;
    let mut position = step.position;
    for (len, id) in &step.blobs {
        match rest.split_at_checked(*len as usize) {
            Some((blob, tail)) if BlobId::of(blob) == *id => rest = tail,
            Some(_) | None => return Some(position),
        }
        position += u64::from(*len);
    }
    None
}
