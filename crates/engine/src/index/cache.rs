//! Where segments lie on the disk, and the manifest by which the next process finds them
//! again.
//!
//! ```text
//! <directory>/<repository id>/lock              held by the process that keeps the cache
//!                             manifest          what the other files are, sealed
//!                             <16 digits>.segment    records
//!                             <16 digits>.packs      ids of packs, 32 bytes each
//! ```
//!
//! The cache is a copy of what index objects say and may be deleted at any time. It is
//! believed only when all of it is what this repository's key once sealed: the manifest
//! names the other files by length and SHA-256. What a manifest does not know, such as
//! objects written or removed since, the next refresh finds out.
//!
//! Invariants: a file named by the manifest on the disk is neither changed nor removed
//! before another manifest has taken its place. A process that does not hold the lock
//! keeps nothing: its files have no names and end with it.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    objects::{ObjectEntry, Objects},
    table::{Segment, Target},
};
use crate::{
    crypto::Key,
    document,
    error::EngineError,
    id::{PackId, RepositoryId},
};

/// Another layout, another number: what other versions left is discarded.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest";
const MANIFEST_ASIDE: &str = "manifest.new";
/// A manifest takes some 150 bytes per index object.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// Where new segments go.
#[derive(Debug)]
pub(super) enum Home {
    /// Into memory.
    Memory,
    /// Into files without names: the cache of this repository is kept by someone else.
    Nameless(PathBuf),
    /// Into files that the next process finds.
    Kept(Cache),
}

/// The directory of one repository, held alone.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    repository: RepositoryId,
    /// The repository's key.
    key: Key,
    /// Locked as long as it is open.
    _lock: File,
}

/// What a cache held.
pub(super) struct Restored {
    pub(super) objects: Objects,
    pub(super) segments: Vec<Arc<Segment>>,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    index_cache: u32,
    repository: RepositoryId,
    objects: Vec<ObjectEntry>,
    packs: FileEntry,
    segments: Vec<FileEntry>,
}

#[derive(Serialize, Deserialize)]
struct FileEntry {
    number: u64,
    /// Records or ids in the file.
    count: usize,
    sha256: [u8; 32],
}

impl Home {
    /// A place below `dir` for this repository's index; the cache itself when nobody else
    /// holds it.
    pub(super) fn open(dir: &Path, repository: RepositoryId, key: &Key) -> io::Result<Self> {
        let dir = dir.join(repository.to_string());
        DirBuilder::new().mode(0o700).recursive(true).create(&dir)?;
        let mut options = OpenOptions::new();
        let lock = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = lock.open(dir.join("lock"))?;
        // Held by another, or on a file system without locks.
        if lock.try_lock().is_err() {
            return Ok(Self::Nameless(dir));
        }
        let key = key.clone();
        Ok(Self::Kept(Cache { dir, repository, key, _lock: lock }))
    }

    /// A place for one more segment.
    pub(super) fn target(&self) -> io::Result<Target> {
        match self {
            Self::Memory => Ok(Target::Memory),
            Self::Nameless(dir) => {
                let (file, number) = create(dir, "segment")?;
                match fs::remove_file(path(dir, number, "segment")) {
                    Ok(()) => {}
                    // The keeper of the cache removes what it does not know.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                Ok(Target::File { file, number: None })
            }
            Self::Kept(cache) => {
                let (file, number) = create(&cache.dir, "segment")?;
                Ok(Target::File { file, number: Some(number) })
            }
        }
    }
}

fn path(dir: &Path, number: u64, extension: &str) -> PathBuf {
    dir.join(format!("{number:016x}.{extension}"))
}

fn create(dir: &Path, extension: &str) -> io::Result<(File, u64)> {
    let number = getrandom::u64().map_err(io::Error::other)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    Ok((options.open(path(dir, number, extension))?, number))
}

impl Cache {
    /// What an earlier process saved, if all of it is there and right. Whatever else lies
    /// in the directory is removed.
    pub(super) fn restore(&self) -> Option<Restored> {
        let restored = self.read();
        if restored.is_none() {
            // It would be found wrong again and again until it is replaced.
            let _ = fs::remove_file(self.dir.join(MANIFEST));
        }
        let kept = restored.as_ref().map(|(restored, packs)| kept(&restored.segments, *packs));
        self.remove_all_but(&kept.unwrap_or_default());
        restored.map(|(restored, _)| restored)
    }

    /// Also the number of the file of packs.
    fn read(&self) -> Option<(Restored, u64)> {
        let mut sealed = Vec::new();
        let manifest = File::open(self.dir.join(MANIFEST)).ok()?;
        manifest.take(MANIFEST_BYTES_MAX).read_to_end(&mut sealed).ok()?;
        let manifest: Manifest = document::open(&self.key, &sealed).ok()?;
        if manifest.index_cache != FORMAT || manifest.repository != self.repository {
            return None;
        }
        let packs = self.read_packs(&manifest.packs)?;
        let objects = Objects::restore(manifest.objects, packs)?;
        let segments = manifest.segments.iter().map(|entry| {
            let file = File::open(path(&self.dir, entry.number, "segment")).ok()?;
            let segment = Segment::open(file, entry.number, entry.count, entry.sha256);
            segment.ok()?.map(Arc::new)
        });
        let segments = segments.collect::<Option<_>>()?;
        Some((Restored { objects, segments }, manifest.packs.number))
    }

    fn read_packs(&self, entry: &FileEntry) -> Option<Vec<PackId>> {
        let file = File::open(path(&self.dir, entry.number, "packs")).ok()?;
        let length = (entry.count as u64).checked_mul(size_of::<PackId>() as u64)?;
        if file.metadata().ok()?.len() != length {
            return None;
        }
        let mut packs = Vec::with_capacity(entry.count);
        let (mut file, mut hash) = (io::BufReader::new(file), Sha256::new());
        for _ in 0..entry.count {
            let mut id = [0; 32];
            file.read_exact(&mut id).ok()?;
            hash.update(id);
            packs.push(PackId(id));
        }
        (hash.finalize().as_slice() == entry.sha256).then_some(packs)
    }

    /// Makes the segments what the next process finds. `objects` are those all of whose
    /// records are in the segments, the first of all.
    pub(super) fn save(
        &self,
        objects: &[ObjectEntry],
        packs: &[PackId],
        segments: &[Arc<Segment>],
    ) -> io::Result<()> {
        let entry = |segment: &Arc<Segment>| {
            let (count, sha256) = (segment.records(), segment.checksum());
            segment.kept_as().map(|number| FileEntry { number, count, sha256 })
        };
        let entries = segments.iter().map(entry).collect::<Option<_>>();
        let entries = entries.ok_or_else(|| io::Error::other("a segment has no file"))?;
        let packs = self.write_packs(packs)?;
        let kept = kept(segments, packs.number);
        let manifest = Manifest {
            index_cache: FORMAT,
            repository: self.repository,
            objects: objects.to_vec(),
            packs,
            segments: entries,
        };
        self.write_manifest(&manifest)?;
        self.remove_all_but(&kept);
        Ok(())
    }

    fn write_packs(&self, packs: &[PackId]) -> io::Result<FileEntry> {
        let (file, number) = create(&self.dir, "packs")?;
        let (mut file, mut hash) = (BufWriter::new(file), Sha256::new());
        for pack in packs {
            hash.update(pack.as_bytes());
            file.write_all(pack.as_bytes())?;
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()?;
        Ok(FileEntry { number, count: packs.len(), sha256: hash.finalize().into() })
    }

    fn write_manifest(&self, manifest: &Manifest) -> io::Result<()> {
        let sealed = document::seal(&self.key, manifest)
            .map_err(|error: EngineError| io::Error::other(error.to_string()))?;
        let aside = self.dir.join(MANIFEST_ASIDE);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&aside)?;
        file.write_all(&sealed)?;
        file.sync_all()?;
        // The names of the files it speaks of are durable before its own.
        let dir = File::open(&self.dir)?;
        dir.sync_all()?;
        fs::rename(&aside, self.dir.join(MANIFEST))?;
        dir.sync_all()
    }

    /// Failing is no harm: the next process tries again.
    fn remove_all_but(&self, kept: &HashSet<PathBuf>) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let is_ours = path.extension().is_some_and(|is| is == "segment" || is == "packs");
            let is_kept = path.file_name().is_some_and(|name| kept.contains(Path::new(name)));
            if is_ours && !is_kept {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// The names of the files a manifest speaks of.
fn kept(segments: &[Arc<Segment>], packs: u64) -> HashSet<PathBuf> {
    let segments = segments.iter().filter_map(|segment| segment.kept_as());
    let none = Path::new("");
    let mut names: HashSet<_> = segments.map(|number| path(none, number, "segment")).collect();
    names.insert(path(none, packs, "packs"));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{blob::BlobKind, id::IndexId};

    fn cache(dir: &Path, key: &Key) -> Cache {
        match Home::open(dir, RepositoryId([7; 32]), key).unwrap() {
            Home::Kept(cache) => cache,
            Home::Memory | Home::Nameless(_) => panic!("nobody else holds it"),
        }
    }

    fn saved(dir: &Path) -> Cache {
        let key = Key::random().unwrap();
        let home = Home::open(dir, RepositoryId([7; 32]), &key).unwrap();
        let shape = crate::blob::Shape { length: 40, uncompressed_length: 0 };
        let record = |number: u8| {
            let id = crate::id::BlobId([number; 32]);
            let record =
                super::super::table::Record { id, kind: BlobKind::Data, pack: 0, offset: 0, shape };
            record.to_bytes()
        };
        let segment = Arc::new(Segment::in_memory(vec![record(1), record(2), record(3)]));
        let target = home.target().unwrap();
        let segment = super::super::table::merge(&[segment], &|_| true, target).unwrap();
        drop(home);
        let id = IndexId([1; 32]);
        let object = ObjectEntry { id, first_pack: 0, packs: 1, blobs: 3, is_alive: true };
        let cache = cache(dir, &key);
        cache.save(&[object], &[PackId([9; 32])], &[Arc::new(segment)]).unwrap();
        cache
    }

    #[test]
    fn every_flipped_byte_and_every_cut_of_every_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = saved(dir.path());
        assert!(cache.read().is_some());
        for entry in fs::read_dir(&cache.dir).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 8);
                fs::write(&path, flipped).unwrap();
                assert!(cache.read().is_none(), "byte {at} of {path:?} flipped");
                fs::write(&path, &bytes[..at]).unwrap();
                assert!(cache.read().is_none(), "{path:?} cut to {at} bytes");
            }
            fs::write(&path, bytes).unwrap();
        }
        assert!(cache.read().is_some());
    }

    #[test]
    fn another_repository_or_format_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = saved(dir.path());
        let manifest = cache.dir.join(MANIFEST);
        let sealed = fs::read(&manifest).unwrap();
        let mut other: serde_json::Value = document::open(&cache.key, &sealed).unwrap();
        other["index_cache"] = 2.into();
        fs::write(&manifest, document::seal(&cache.key, &other).unwrap()).unwrap();
        assert!(cache.read().is_none());
        fs::write(&manifest, sealed).unwrap();
        assert!(cache.read().is_some());
        cache.repository = RepositoryId([8; 32]);
        assert!(cache.read().is_none());
    }
}
