//! A volume as a disk: read anywhere, in any order. For whoever looks at a few places of it;
//! a restore reads in the order in which things are stored.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    chunk::{ChunkIds, Cut, zero_block_id},
    error::EngineError,
    id::BlobId,
    read::VolumeView,
    repository::{Indexed, Repository},
    source::{Extent, ExtentKind, Source, SourceError},
};

/// A volume that can be read anywhere. Every byte comes of a blob that has its hash.
#[derive(Debug)]
pub struct VolumeReader {
    repository: Arc<Repository<Indexed>>,
    cut: Cut,
    /// The blob of each chunk; `None` for zeroes.
    chunks: Vec<Option<BlobId>>,
    /// Chunks read lately, the latest last.
    cache: Mutex<VecDeque<(BlobId, Arc<Vec<u8>>)>>,
    cache_chunks: usize,
}

impl Repository<Indexed> {
    /// Opens a volume to be read anywhere. Chunks read lately are kept, up to so many bytes,
    /// or one.
    pub fn open_volume(
        self: &Arc<Self>,
        volume: &VolumeView,
        cache_bytes: usize,
    ) -> Result<VolumeReader, EngineError> {
        let damaged = |what| EngineError::damaged("the list of a volume", what);
        let (cut, content) =
            volume.cut_content().ok_or_else(|| damaged("is of no size of chunks"))?;
        let is_data = |id: BlobId| (id != zero_block_id()).then_some(id);
        let chunks: Vec<_> = ChunkIds::new(cut, content).map(is_data).collect();
        if chunks.len() as u64 != cut.chunks() {
            return Err(damaged("does not cover it"));
        }
        let cache_chunks = (cache_bytes / cut.chunk_size.bytes() as usize).max(1);
        let (repository, cache) = (Arc::clone(self), Mutex::default());
        Ok(VolumeReader { repository, cut, chunks, cache, cache_chunks })
    }
}

impl VolumeReader {
    fn chunk_at(&self, offset: u64) -> u64 {
        offset / u64::from(self.cut.chunk_size.bytes())
    }

    fn blob(&self, chunk: u64) -> Result<Option<BlobId>, SourceError> {
        let at = usize::try_from(chunk).ok().and_then(|chunk| self.chunks.get(chunk));
        at.copied().ok_or_else(|| SourceError {
            retryable: false,
            text: "there is nothing beyond the volume's end".to_owned(),
        })
    }

    /// The plain bytes of a blob. Reading waits for reading: whoever looks at a few places
    /// does so one by one.
    fn load(&self, id: BlobId) -> Result<Arc<Vec<u8>>, SourceError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = cache.iter().position(|(cached, _)| *cached == id)
            && let Some(entry) = cache.remove(found)
        {
            let bytes = Arc::clone(&entry.1);
            cache.push_back(entry);
            return Ok(bytes);
        }
        let bytes = self.repository.load_data(id).map_err(|error| SourceError {
            retryable: error.is_retryable(),
            text: error.to_string(),
        })?;
        let bytes = Arc::new(bytes);
        cache.push_back((id, Arc::clone(&bytes)));
        if cache.len() > self.cache_chunks {
            cache.pop_front();
        }
        Ok(bytes)
    }
}

impl Source for VolumeReader {
    fn size_bytes(&self) -> u64 {
        self.cut.size_bytes
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
        let first = self.chunk_at(offset);
        let is_data = self.blob(first)?.is_some();
        let begin = usize::try_from(first).unwrap_or(usize::MAX);
        let run = self.chunks.iter().skip(begin).take_while(|id| id.is_some() == is_data).count();
        let end = self.cut.offset(first + run as u64).min(self.cut.size_bytes);
        let kind = if is_data { ExtentKind::Data } else { ExtentKind::Zero };
        let offset = self.cut.offset(first);
        Ok(Extent { offset, len: end - offset, kind })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let chunk = self.chunk_at(at);
            let within = usize::try_from(at - self.cut.offset(chunk)).unwrap_or(usize::MAX);
            let len = (self.cut.len(chunk) as usize).saturating_sub(within).min(rest.len());
            let blob = self.blob(chunk)?;
            let (part, tail) = rest.split_at_mut(len);
            match blob {
                None => part.fill(0),
                Some(id) => {
                    let bytes = self.load(id)?;
                    let there = bytes.get(within..within + len).ok_or_else(|| SourceError {
                        retryable: false,
                        text: format!("blob {id} is shorter than its chunk"),
                    })?;
                    part.copy_from_slice(there);
                }
            }
            if len == 0 {
                return Err(SourceError {
                    retryable: false,
                    text: "there is nothing beyond the volume's end".to_owned(),
                });
            }
            at += len as u64;
            rest = tail;
        }
        Ok(())
    }
}
