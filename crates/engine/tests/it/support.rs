//! What the tests share: disks in memory, a repository, and stock restic.

use std::{
    num::NonZeroUsize,
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use kedge_engine::{
    Backend, CancelFlag, ChunkSize, CreateOptions, EngineError, Extent, ExtentKind, Indexed,
    KdfCost, MemoryBackend, NoProgress, OpenGate, Password, ReadOptions, Repository, Session, Sink,
    SinkError, SnapshotId, SnapshotMeta, Source, SourceError, StoreOptions, StoredVolume,
    Timestamp, TreeId, VolumeView,
};

pub(crate) const PASSWORD: &str = "correct horse";
pub(crate) const KIB: usize = 1024;
pub(crate) const MIB: usize = 1024 * KIB;
pub(crate) const NOW: i64 = 1_795_471_871_000_000;

pub(crate) fn now() -> Timestamp {
    Timestamp::from_micros(NOW)
}

pub(crate) fn at_secs(secs: i64) -> Timestamp {
    Timestamp::from_micros(NOW + secs * 1_000_000)
}

/// Reproducible noise that does not compress.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// So many different chunks of 512 KiB that compress to next to nothing.
pub(crate) fn distinct_chunks(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![b'x'; count * 512 * KIB];
    for (chunk, mark) in bytes.chunks_mut(512 * KIB).zip(noise(seed, count * 32).chunks(32)) {
        chunk[..32].copy_from_slice(mark);
    }
    bytes
}

/// A disk in memory, with what its driver says about it.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) bytes: Vec<u8>,
    /// Ends and kinds, in order; beyond the last all is data.
    pub(crate) extents: Vec<(usize, ExtentKind)>,
    /// Reading a range that holds this byte fails.
    pub(crate) bad_byte: Option<usize>,
    pub(crate) reads: Mutex<Vec<(u64, usize)>>,
}

impl Disk {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    pub(crate) fn with_extents(bytes: Vec<u8>, extents: &[(usize, ExtentKind)]) -> Self {
        Self { extents: extents.to_vec(), ..Self::new(bytes) }
    }

    pub(crate) fn unchanged(bytes: Vec<u8>) -> Self {
        let end = bytes.len();
        Self::with_extents(bytes, &[(end, ExtentKind::Unchanged)])
    }
}

impl Source for Disk {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
        let found = self.extents.iter().find(|(end, _)| *end as u64 > offset);
        let (end, kind) = found.copied().unwrap_or((self.bytes.len(), ExtentKind::Data));
        Ok(Extent { offset, len: end as u64 - offset, kind })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        let start = usize::try_from(offset).unwrap();
        let end = start + buf.len();
        self.reads.lock().unwrap().push((offset, buf.len()));
        if self.bad_byte.is_some_and(|bad| (start..end).contains(&bad)) {
            return Err(SourceError { retryable: false, text: "bad sector".into() });
        }
        buf.copy_from_slice(&self.bytes[start..end]);
        Ok(())
    }
}

/// A target in memory that begins as something else and notes what is written.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) bytes: Mutex<Vec<u8>>,
    /// Starts and ends.
    pub(crate) written: Mutex<Vec<(usize, usize)>>,
}

impl Target {
    pub(crate) fn new(len: usize) -> Self {
        Self { bytes: Mutex::new(vec![0xee; len]), written: Mutex::default() }
    }

    fn write(&self, offset: u64, len: usize, fill: impl FnOnce(&mut [u8])) {
        let start = usize::try_from(offset).unwrap();
        fill(&mut self.bytes.lock().unwrap()[start..start + len]);
        self.written.lock().unwrap().push((start, start + len));
    }

    /// The bytes, every one of which must have been written exactly once.
    pub(crate) fn into_whole(self) -> Vec<u8> {
        let bytes = self.bytes.into_inner().unwrap();
        let mut written = self.written.into_inner().unwrap();
        written.sort_unstable();
        let mut at = 0;
        for (start, end) in written {
            assert_eq!(start, at, "a gap or an overlap");
            at = end;
        }
        assert_eq!(at, bytes.len());
        bytes
    }
}

impl Sink for Target {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.write(offset, bytes.len(), |to| to.copy_from_slice(bytes));
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), SinkError> {
        self.write(offset, usize::try_from(len).unwrap(), |to| to.fill(0));
        Ok(())
    }
}

pub(crate) type Repo = Arc<Repository<Indexed>>;

pub(crate) fn password() -> Password {
    Password::new(PASSWORD)
}

pub(crate) fn create(backend: Arc<dyn Backend>) -> Result<Repo, EngineError> {
    let password = password();
    let options = CreateOptions {
        password: &password,
        kdf: KdfCost::CHEAP,
        created_at: now(),
        access: Some(b"{}"),
    };
    Ok(Arc::new(Repository::create(backend, &options)?.load_index()?))
}

pub(crate) fn open(backend: Arc<dyn Backend>) -> Result<Repo, EngineError> {
    Ok(Arc::new(Repository::open(backend, &password())?.load_index()?))
}

pub(crate) fn in_memory() -> (Arc<MemoryBackend>, Repo) {
    let backend = Arc::new(MemoryBackend::new());
    let repo = create(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    (backend, repo)
}

pub(crate) fn threads(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

pub(crate) fn store_options() -> StoreOptions {
    StoreOptions {
        chunk_size: None,
        zstd_level: 1,
        threads: threads(2),
        modified_at: now(),
        verify_before_store: true,
    }
}

pub(crate) fn cut_into(chunk_size: ChunkSize) -> StoreOptions {
    StoreOptions { chunk_size: Some(chunk_size), ..store_options() }
}

pub(crate) fn read_options() -> ReadOptions {
    ReadOptions { threads: threads(2), cancel: CancelFlag::new() }
}

pub(crate) fn begin(repo: &Repo) -> Result<Session, EngineError> {
    repo.begin_session("session-1", now(), Arc::new(OpenGate), CancelFlag::new())
}

pub(crate) fn meta(tree: TreeId, tag: &str) -> SnapshotMeta {
    SnapshotMeta {
        time: now(),
        tree,
        identity_tag: tag.into(),
        tags: vec!["more".into()],
        paths: vec!["/server".into()],
        hostname: "server".into(),
        username: "kedge".into(),
        parent: None,
        program_version: "kedge 0.1.0".into(),
    }
}

/// Backs up one volume `vol` and a file beside it, as one snapshot.
pub(crate) fn back_up(
    repo: &Repo,
    disk: &Disk,
    parent: Option<&VolumeView>,
    options: &StoreOptions,
    tag: &str,
) -> Result<(SnapshotId, StoredVolume), EngineError> {
    let session = begin(repo)?;
    let stored = session.store_volume(disk, parent, options, &NoProgress)?;
    let files: &[(&str, &[u8])] = &[("server.json", tag.as_bytes())];
    let tree = session.finish_tree(&[("vol", stored.subtree)], files, now())?;
    let id = session.write_snapshot(&meta(tree, tag))?;
    session.close()?;
    Ok((id, stored))
}

pub(crate) fn volume(repo: &Repo, id: SnapshotId) -> Result<VolumeView, EngineError> {
    repo.open_snapshot(id)?.volume("vol")
}

/// Restores onto other bytes; every byte must be written exactly once.
pub(crate) fn restore(repo: &Repo, id: SnapshotId) -> Result<Vec<u8>, EngineError> {
    let view = volume(repo, id)?;
    let target = Target::new(usize::try_from(view.size_bytes()).unwrap());
    repo.restore_volume(&view, &target, &OpenGate, &read_options(), &NoProgress)?;
    Ok(target.into_whole())
}

pub(crate) fn assert_restores(repo: &Repo, id: SnapshotId, bytes: &[u8]) {
    // Not assert_eq: the difference would be megabytes of text.
    assert!(restore(repo, id).unwrap() == bytes, "the restored bytes differ");
}

pub(crate) fn assert_clean(repo: &Repo) {
    let report = repo.check(kedge_engine::ReadData::Yes, &CancelFlag::new()).unwrap();
    assert_eq!(report.problems, []);
}

/// Runs stock restic on a repository; it must succeed.
pub(crate) fn restic(repo: &Path, arguments: &[&str]) -> Vec<u8> {
    restic_with(repo, PASSWORD, arguments)
}

/// As [`restic`], with another password.
pub(crate) fn restic_with(repo: &Path, password: &str, arguments: &[&str]) -> Vec<u8> {
    let output = try_restic_with(repo, password, arguments);
    assert!(
        output.status.success(),
        "restic {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

pub(crate) fn try_restic(repo: &Path, arguments: &[&str]) -> Output {
    try_restic_with(repo, PASSWORD, arguments)
}

fn try_restic_with(repo: &Path, password: &str, arguments: &[&str]) -> Output {
    Command::new("restic")
        .arg("--no-cache")
        .args(arguments)
        .env("RESTIC_REPOSITORY", repo)
        .env("RESTIC_PASSWORD", password)
        .output()
        .expect("these tests need restic (Debian package restic)")
}

/// Whether the long form of the tests was asked for.
pub(crate) fn is_long() -> bool {
    std::env::var_os("KEDGE_TEST_LONG").is_some()
}

/// Hands a line to `cargo xtask ci`, which prints all of them at its end.
pub(crate) fn report_figure(name: &str, line: &str) {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("figures");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(name), format!("{line}\n")).unwrap();
}
