//! The engine as a program, to be measured beside restic, rustic and borg.
//!
//! `anchor init REPO | backup REPO FILE NAME | cbt REPO FILE NAME EXTENTS |
//! restore REPO NAME OUT | check REPO`. A backup of NAME builds on the newest one. Holes
//! of FILE are not read; `cbt` reads only what EXTENTS (lines `OFFSET LEN`) names.
//! `restore` replaces OUT.
//!
//! Environment: `OWN_LEVEL` zstd level; `OWN_VERIFY=0` does not open blobs again before
//! they are stored; `OWN_THREADS`; `OWN_READBACK=1` compares what was restored, past the
//! page cache; `OWN_COPIES` restores so many at once, to OUT.0, OUT.1 and so on;
//! `OWN_KEYLESS=1` checks without keys.
#![expect(clippy::disallowed_methods, reason = "a program of its own, with clock and environment")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it speaks to a terminal")]

use std::{
    env,
    error::Error,
    fs::{self, File, OpenOptions},
    num::NonZeroUsize,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use kedge_engine::{
    Backend, CancelFlag, CreateOptions, Extent, ExtentKind, Indexed, KdfCost, LocalBackend,
    NoProgress, OpenGate, Password, ReadData, ReadOptions, Repository, Sink, SinkError,
    SnapshotMeta, Source, SourceError, StoreOptions, Timestamp, VerifyOptions, VolumeView,
};
use rustix::{
    fs::{Advice, OFlags, SeekFrom},
    io::Errno,
};

type Outcome = Result<(), Box<dyn Error>>;

/// A password of the same strength for every program measured: none.
const PASSWORD: &str = "anchor";
/// As the service's.
const DEFAULT_LEVEL: i32 = 2;
const VOLUME: &str = "disk";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["init", repo] => init(repo),
        ["backup", repo, file, name] => back_up(repo, file, name, None),
        ["cbt", repo, file, name, extents] => back_up(repo, file, name, Some(extents)),
        ["restore", repo, name, out] => restore(repo, name, out),
        ["check", repo] => check(repo),
        _ => Err("init REPO | backup REPO FILE NAME | cbt REPO FILE NAME EXTENTS | \
                  restore REPO NAME OUT | check REPO"
            .into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T, Box<dyn Error>> {
    match env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().map_err(|_| format!("{name}: {text}").into()),
        Ok(_) | Err(_) => Ok(default),
    }
}

fn threads() -> Result<NonZeroUsize, Box<dyn Error>> {
    number("OWN_THREADS", thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

fn backend(repo: &str) -> Arc<dyn Backend> {
    Arc::new(LocalBackend::new(repo))
}

fn init(repo: &str) -> Outcome {
    let password = Password::new(PASSWORD);
    let options = CreateOptions {
        password: &password,
        kdf: KdfCost::STANDARD,
        created_at: now(),
        access: None,
    };
    Repository::create(backend(repo), &options)?;
    Ok(())
}

fn open(repo: &str) -> Result<Arc<Repository<Indexed>>, Box<dyn Error>> {
    let repository = Repository::open(backend(repo), &Password::new(PASSWORD))?;
    Ok(Arc::new(repository.load_index()?))
}

fn newest(
    repository: &Arc<Repository<Indexed>>,
    name: &str,
) -> Result<Option<VolumeView>, Box<dyn Error>> {
    let found = repository.find_snapshots_by_tag(name)?;
    let Some(newest) = found.last() else { return Ok(None) };
    Ok(Some(repository.open_snapshot(newest.id)?.volume(VOLUME)?))
}

fn back_up(repo: &str, file: &str, name: &str, changed: Option<&str>) -> Outcome {
    let source = match changed {
        Some(extents) => Image::with_changes(file, extents)?,
        None => Image::open(file)?,
    };
    let options = StoreOptions {
        chunk_size: None,
        zstd_level: number("OWN_LEVEL", DEFAULT_LEVEL)?,
        threads: threads()?,
        modified_at: now(),
        verify_before_store: number("OWN_VERIFY", 1)? != 0,
    };
    let repository = open(repo)?;
    let parent = newest(&repository, name)?;
    let session =
        repository.begin_session("anchor", now(), Arc::new(OpenGate), CancelFlag::new())?;
    let stored = session.store_volume(&source, parent.as_ref(), &options, &NoProgress)?;
    let tree = session.finish_tree(&[(VOLUME, stored.subtree)], &[], options.modified_at)?;
    let snapshot = session.write_snapshot(&SnapshotMeta {
        time: now(),
        tree,
        identity_tag: name.into(),
        tags: Vec::new(),
        paths: vec![file.into()],
        hostname: "anchor".into(),
        username: "anchor".into(),
        parent: None,
        program_version: "anchor".into(),
    })?;
    let written = session.stored_bytes();
    session.close()?;
    println!("{snapshot} {written} bytes written, {stored:?}");
    Ok(())
}

fn restore(repo: &str, name: &str, out: &str) -> Outcome {
    let repository = open(repo)?;
    let copies: usize = number("OWN_COPIES", 0)?;
    if copies == 0 {
        return restore_one(&repository, name, out);
    }
    thread::scope(|scope| {
        let one = |copy| {
            let repository = &repository;
            move || {
                let done = restore_one(repository, name, &format!("{out}.{copy}"));
                done.map_err(|error| error.to_string())
            }
        };
        let all: Vec<_> = (0..copies).map(|copy| scope.spawn(one(copy))).collect();
        for restored in all {
            restored.join().map_err(|_| "a restore panicked")??;
        }
        Ok(())
    })
}

fn restore_one(repository: &Arc<Repository<Indexed>>, name: &str, out: &str) -> Outcome {
    let volume = newest(repository, name)?.ok_or("there is no such backup")?;
    let options = ReadOptions { threads: threads()?, cancel: CancelFlag::new() };
    if Path::new(out).exists() {
        fs::remove_file(out)?;
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(out)?;
    file.set_len(volume.size_bytes())?;
    let target = NewFile { direct: past_cache(OpenOptions::new().write(true), out), file };
    let report = repository.restore_volume(&volume, &target, &OpenGate, &options, &NoProgress)?;
    println!("{report:?}");
    if number("OWN_READBACK", 0)? == 1 {
        target.file.sync_all()?;
        rustix::fs::fadvise(&target.file, 0, None, Advice::DontNeed)?;
        let direct = past_cache(OpenOptions::new().read(true), out);
        let written = Image { direct, ..Image::open(out)? };
        let report = repository.compare_volume(&volume, &written, &options, &NoProgress)?;
        println!("{report:?}");
    }
    Ok(())
}

fn check(repo: &str) -> Outcome {
    if number("OWN_KEYLESS", 0)? == 1 {
        let options = VerifyOptions {
            threads: threads()?,
            cancel: CancelFlag::new(),
            after: None,
            bytes_max: u64::MAX,
        };
        let outcome = Repository::verify_objects(&LocalBackend::new(repo), &options, &NoProgress)?;
        println!("{outcome:?}");
        let is_sound = outcome.damaged.is_empty() && outcome.problems.is_empty();
        return if is_sound { Ok(()) } else { Err("the repository is damaged".into()) };
    }
    let report = open(repo)?.check(ReadData::Yes, &CancelFlag::new())?;
    println!("{report:?}");
    if report.problems.is_empty() { Ok(()) } else { Err("the repository is damaged".into()) }
}

/// A raw image: a file whose holes are zeroes.
struct Image {
    file: File,
    size_bytes: u64,
    /// The same file, past the page cache, to be read back.
    direct: Option<File>,
    /// What changed, as sorted starts and ends; `None` when that is not known.
    changes: Option<Vec<(u64, u64)>>,
}

impl Image {
    fn open(path: &str) -> Result<Self, Box<dyn Error>> {
        let file = File::open(path)?;
        let size_bytes = file.metadata()?.len();
        Ok(Self { file, size_bytes, direct: None, changes: None })
    }

    fn with_changes(path: &str, extents: &str) -> Result<Self, Box<dyn Error>> {
        let mut changes = Vec::new();
        for line in fs::read_to_string(extents)?.lines() {
            let (offset, len) = line.split_once(' ').ok_or("an extent is OFFSET LEN")?;
            let (offset, len): (u64, u64) = (offset.parse()?, len.parse()?);
            changes.push((offset, offset + len));
        }
        changes.sort_unstable();
        Ok(Self { changes: Some(changes), ..Self::open(path)? })
    }

    /// The end of the extent that holds `offset`, and whether it is data.
    fn seek(&self, offset: u64) -> Result<(u64, bool), Errno> {
        let data = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // No data up to the end.
            Err(Errno::NXIO) => self.size_bytes,
            Err(error) => return Err(error),
        };
        if data > offset {
            return Ok((data, false));
        }
        Ok((rustix::fs::seek(&self.file, SeekFrom::Hole(offset))?, true))
    }
}

fn failure(error: impl ToString) -> SourceError {
    SourceError { retryable: false, text: error.to_string() }
}

impl Source for Image {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
        if let Some(changes) = &self.changes {
            let next = changes.partition_point(|(_, end)| *end <= offset);
            let start = changes.get(next).map_or(self.size_bytes, |(start, _)| *start);
            if offset < start {
                let kind = ExtentKind::Unchanged;
                return Ok(Extent { offset, len: start - offset, kind });
            }
            // What changed may have become a hole, yet a hole may be what has not changed.
            let end = changes.get(next).map_or(self.size_bytes, |(_, end)| *end);
            return Ok(Extent { offset, len: end - offset, kind: ExtentKind::Data });
        }
        let (end, is_data) = self.seek(offset).map_err(failure)?;
        let kind = if is_data { ExtentKind::Data } else { ExtentKind::Zero };
        Ok(Extent { offset, len: end - offset, kind })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        let mut read = 0;
        if let Some(direct) = &self.direct {
            let blocks = whole_blocks(buf, offset);
            read = direct.read_at(&mut buf[..blocks], offset).unwrap_or(0);
        }
        self.file.read_exact_at(&mut buf[read..], offset + read as u64).map_err(failure)
    }
}

/// A file that was just made: all of it is a hole. Written as a disk of `local` is.
struct NewFile {
    file: File,
    /// The same file, past the page cache.
    direct: Option<File>,
}

const BLOCK_BYTES: usize = 4096;

fn past_cache(options: &mut OpenOptions, path: &str) -> Option<File> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).ok()?;
    options.custom_flags(direct).open(path).ok()
}

/// How many bytes can go past the page cache.
fn whole_blocks(bytes: &[u8], offset: u64) -> usize {
    let is_at_block =
        bytes.as_ptr().align_offset(BLOCK_BYTES) == 0 && offset.is_multiple_of(BLOCK_BYTES as u64);
    if is_at_block { bytes.len() / BLOCK_BYTES * BLOCK_BYTES } else { 0 }
}

impl Sink for NewFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let blocks = &bytes[..whole_blocks(bytes, offset)];
        // Where there is no such way all is written as usual.
        let written = match &self.direct {
            Some(direct) => direct.write_at(blocks, offset).unwrap_or(0),
            None => 0,
        };
        self.file
            .write_all_at(&bytes[written..], offset + written as u64)
            .map_err(|error| SinkError { retryable: false, text: error.to_string() })
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), SinkError> {
        Ok(())
    }
}
