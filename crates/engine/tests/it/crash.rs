//! The process is stopped, or the power cut, before every change a repository's life
//! makes on the disk or in an object store. What survives must be clean, hold every
//! committed backup, and let the interrupted work be done again.
//!
//! A disk keeps, loses or tears what was not synced ([`Loss`]); an object store keeps
//! each request in flight or loses it whole.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::DefaultHasher},
    fs,
    hash::{Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use kedge_engine::{
    Backend, BackendError, DirEntry, Disk, DiskFile, EntryKind, Listed, LocalBackend,
    MemoryBackend, ObjectKind, ObjectName, Repository,
    layer::{Loss, SimulatedDisk},
};

use crate::{
    scenario::{Choices, Expected, History, Place, Scenario, Watch, in_two_threads, snapshots},
    support::{is_long, report_figure, restic_with},
};

const ROOT: &str = "/repo";
/// The index cache lies on a real disk and takes its time.
const CACHE_EACH: usize = 8;

type Files = BTreeMap<PathBuf, Arc<Vec<u8>>>;

fn local(disk: &SimulatedDisk) -> Place {
    place(LocalBackend::on_disk(Arc::new(disk.clone()), ROOT))
}

fn place(backend: impl Backend + 'static) -> Place {
    Place { backend: Arc::new(backend), cache: None }
}

/// A number per content, so that states can be told apart without hashing all of them.
fn hash_of(files: &Files, is_seen: impl Fn(&Path) -> bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (path, bytes) in files.iter().filter(|(path, _)| is_seen(path)) {
        path.hash(&mut hasher);
        bytes.hash(&mut hasher);
    }
    hasher.finish()
}

/// restic does not look into our own folder.
fn restic_sees(path: &Path) -> bool {
    !path.starts_with("/repo/kedge")
}

/// A process starts on what a crash left: everything is as it must be, and the
/// interrupted work can be done again. Returns what must hold afterwards.
fn go_on(
    scenario: &Scenario,
    place: &Place,
    interrupted: usize,
    expected: &Expected,
) -> Result<Expected, String> {
    let is_made = match Repository::is_initialised(&*place.backend) {
        Ok(is_made) => is_made,
        Err(error) if error.is_unreachable() => false,
        Err(error) => return Err(error.to_string()),
    };
    if is_made {
        let repo = place.open().map_err(|error| error.to_string())?;
        scenario.judge(&repo, expected)?;
    } else if interrupted > 0 {
        return Err("the repository is gone".into());
    }
    let Some(work) = scenario.works.get(interrupted) else { return Ok(expected.clone()) };
    let nobody = || 0;
    let redone = scenario.perform(place, work, &mut Watch::new(&nobody));
    redone.map_err(|error| format!("doing {work:?} again: {error}"))?;
    let after = expected.after(Some(work));
    let repo = place.open().map_err(|error| error.to_string())?;
    scenario
        .judge(&repo, &after)
        .map_err(|what| format!("after {work:?} was done again: {what}"))?;
    Ok(after)
}

/// As [`go_on`], with the index cache a process left that saw more than survived.
fn go_on_with_cache(
    scenario: &Scenario,
    place: &Place,
    interrupted: usize,
    expected: &Expected,
    cache: &Path,
) -> Result<Expected, String> {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(cache, copy.path());
    let place = Place { cache: Some(copy.path().into()), ..place.clone() };
    go_on(scenario, &place, interrupted, expected)
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// What the crash points of one or more lives came to.
#[derive(Default)]
struct Tally {
    points: usize,
    crashes: usize,
    judged: HashSet<u64>,
    /// What restic would see, each once.
    for_restic: HashMap<u64, Files>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.points += other.points;
        self.crashes += other.crashes;
        self.judged.extend(other.judged);
        self.for_restic.extend(other.for_restic);
    }

    /// Whether this state, with these demands on it, was not met before.
    fn is_new(&mut self, files: &Files, interrupted: usize, expected: &Expected) -> bool {
        self.crashes += 1;
        let seen = hash_of(files, restic_sees);
        let has_config = files.contains_key(Path::new("/repo/config"));
        if has_config {
            self.for_restic.entry(seen).or_insert_with(|| files.clone());
        }
        let mut hasher = DefaultHasher::new();
        (hash_of(files, |_| true), interrupted, expected).hash(&mut hasher);
        self.judged.insert(hasher.finish())
    }
}

/// Crashes a life on a disk before each of its steps. `seeds` is how many torn variants
/// of each there are.
fn crash_everywhere(scenario: &Scenario, name: &str, seeds: u64) -> Tally {
    let disk = SimulatedDisk::new();
    let at = || disk.steps();
    let mut watch = Watch::new(&at);
    let cache = tempfile::tempdir().unwrap();
    let first = Place { cache: Some(cache.path().into()), ..local(&disk) };
    scenario.run(&first, &mut watch).unwrap();
    let history = watch.history;
    let mut tally = Tally::default();
    let mut replay = disk.replay();
    for step in 0.. {
        tally.points += 1;
        let interrupted = history.interrupted(step);
        let expected = history.expected(scenario, step);
        let torn = (0..seeds).map(|seed| seed + 1000 * step as u64);
        let torn = torn.flat_map(|seed| [Loss::Torn { seed }, Loss::Journal { seed }]);
        for loss in [Loss::AllUnsynced].into_iter().chain(torn) {
            let left = replay.lose_power(loss);
            if tally.is_new(&left.files(), interrupted, &expected) {
                go_on(scenario, &local(&left), interrupted, &expected)
                    .unwrap_or_else(|what| panic!("{name}, step {step}, {loss:?}: {what}"));
                if step.is_multiple_of(CACHE_EACH) {
                    let left = replay.lose_power(loss);
                    go_on_with_cache(scenario, &local(&left), interrupted, &expected, cache.path())
                        .unwrap_or_else(|what| {
                            panic!("{name}, step {step}, {loss:?}, with a cache: {what}")
                        });
                }
            }
        }
        // Killed, done again, and only then does the power go: what the second process
        // built on must not be what the first had not made durable.
        let left = replay.kill();
        if tally.is_new(&left.files(), interrupted, &expected) {
            let after = go_on(scenario, &local(&left), interrupted, &expected)
                .unwrap_or_else(|what| panic!("{name}, killed at step {step}: {what}"));
            let done = (interrupted + 1).min(scenario.works.len());
            for loss in [Loss::AllUnsynced, Loss::Journal { seed: step as u64 }] {
                let left = left.lose_power(loss);
                if tally.is_new(&left.files(), done, &after) {
                    go_on(scenario, &local(&left), done, &after).unwrap_or_else(|what| {
                        panic!("{name}, killed at step {step}, then {loss:?}: {what}")
                    });
                }
            }
        }
        if !replay.advance() {
            break;
        }
    }
    tally
}

/// Stock restic checks every byte of a state and restores a file of its newest backup.
fn judge_by_restic(files: &Files) {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path.strip_prefix("/").unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &***bytes).unwrap();
    }
    let repo = dir.path().join("repo");
    let password = str::from_utf8(&files[Path::new("/repo/kedge/access.json")]).unwrap();
    // Locks of processes that died are still there, and are not restic's business.
    restic_with(&repo, password, &["check", "--read-data", "--no-lock"]);
    if files.keys().any(|path| path.starts_with("/repo/snapshots")) {
        let dump = ["dump", "--no-lock", "latest", "/server.json"];
        assert!(!restic_with(&repo, password, &dump).is_empty());
    }
}

#[test]
fn a_crash_before_any_change_on_a_disk_loses_nothing_committed() {
    let (lives, seeds, restic_max) = if is_long() { (70, 2, 4000) } else { (0, 1, usize::MAX) };
    let mut tally = crash_everywhere(&Scenario::small(), "the small life", seeds);
    for other in in_two_threads(lives, |seed| {
        let scenario = Scenario::random(seed as u64);
        crash_everywhere(&scenario, &format!("random life {seed}"), seeds)
    }) {
        tally.add(other);
    }
    let mut states: Vec<_> = tally.for_restic.into_iter().collect();
    states.sort_unstable_by_key(|(hash, _)| *hash);
    let checked = states.len().min(restic_max);
    in_two_threads(checked, |number| judge_by_restic(&states[number].1));
    assert!(tally.points > 100 && checked > 30, "{} {checked}", tally.points);
    report_figure(
        "crash-points",
        &format!(
            "crash points on a disk: {}, crashes: {}, distinct surviving states: {}, \
             distinct to restic: {}, checked by stock restic: {checked}, lost: 0",
            tally.points,
            tally.crashes,
            tally.judged.len(),
            states.len(),
        ),
    );
}

/// A store that notes when each request begins and ends.
#[derive(Debug, Default)]
struct Recorder {
    inner: MemoryBackend,
    events: Mutex<Vec<Event>>,
}

#[derive(Clone, Debug)]
enum Event {
    Begin(Arc<Request>),
    End(Arc<Request>),
}

#[derive(Debug)]
enum Request {
    Put(ObjectName, Vec<u8>),
    Delete(ObjectName),
}

impl Request {
    fn apply(&self, to: &MemoryBackend) {
        match self {
            Self::Put(name, bytes) => to.put(name, bytes).unwrap(),
            Self::Delete(name) => to.delete(name).unwrap(),
        }
    }
}

impl Recorder {
    fn run(&self, request: Request) -> Result<(), BackendError> {
        let request = Arc::new(request);
        self.events.lock().unwrap().push(Event::Begin(Arc::clone(&request)));
        request.apply(&self.inner);
        self.events.lock().unwrap().push(Event::End(request));
        Ok(())
    }
}

impl Backend for Recorder {
    fn prepare(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        self.run(Request::Put(*name, bytes.to_vec()))
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        self.inner.get(name, bytes_max)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        self.inner.read_at(name, offset, buf)
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        self.inner.find_size(name)
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        self.inner.list(kind)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        self.run(Request::Delete(*name))
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        Ok(())
    }
}

/// The store after so many events, each request in flight done if `is_done` says so.
fn store_after(events: &[Event], is_done: impl Fn(usize) -> bool) -> MemoryBackend {
    let store = MemoryBackend::new();
    let mut flying: Vec<Arc<Request>> = Vec::new();
    for event in events {
        match event {
            Event::Begin(request) => flying.push(Arc::clone(request)),
            Event::End(request) => {
                request.apply(&store);
                flying.retain(|other| !Arc::ptr_eq(other, request));
            }
        }
    }
    for (_, request) in flying.iter().enumerate().filter(|(number, _)| is_done(*number)) {
        request.apply(&store);
    }
    store
}

fn crash_between_requests(scenario: &Scenario, name: &str) -> (usize, History) {
    let recorder = Arc::new(Recorder::default());
    let at = || recorder.events.lock().unwrap().len();
    let mut watch = Watch::new(&at);
    let shared = Place { backend: Arc::clone(&recorder) as Arc<dyn Backend>, cache: None };
    scenario.run(&shared, &mut watch).unwrap();
    let history = watch.history;
    let events = recorder.events.lock().unwrap().clone();
    let mut crashes = 0;
    for step in 0..=events.len() {
        let interrupted = history.interrupted(step);
        let expected = history.expected(scenario, step);
        // What just began is done or not; after an end there is nothing new to see.
        let is_begin = step > 0 && matches!(events[step - 1], Event::Begin(_));
        let variants: &[u64] = if is_begin { &[0, u64::MAX] } else { &[0] };
        for mask in variants {
            crashes += 1;
            let store = store_after(&events[..step], |number| mask >> (number % 64) & 1 == 1);
            go_on(scenario, &place(store), interrupted, &expected)
                .unwrap_or_else(|what| panic!("{name}, event {step}, {mask:x}: {what}"));
        }
    }
    (crashes, history)
}

#[test]
fn a_crash_between_any_two_requests_to_an_object_store_loses_nothing_committed() {
    let (mut crashes, _) = crash_between_requests(&Scenario::small(), "the small life");
    assert!(crashes > 60, "{crashes}");
    let lives = if is_long() { 60 } else { 1 };
    for (more, _) in in_two_threads(lives, |seed| {
        let scenario = Scenario::random(500 + seed as u64);
        crash_between_requests(&scenario, &format!("random life {seed}"))
    }) {
        crashes += more;
    }
    report_figure(
        "crash-requests",
        &format!("crashes between requests to an object store: {crashes}, lost: 0"),
    );
}

/// A disk that says it synced and did not.
#[derive(Debug)]
struct Forgetful {
    disk: SimulatedDisk,
    skips: fn(&Path) -> bool,
}

impl Disk for Forgetful {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if (self.skips)(path) { Ok(()) } else { self.disk.sync_dir(path) }
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.disk.list_dir(path)
    }

    fn stat(&self, path: &Path) -> io::Result<EntryKind> {
        self.disk.stat(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create_file(path)
    }

    fn open_file(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open_file(path)
    }

    fn open_to_lock(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open_to_lock(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }
}

/// Does everything, then loses what was not synced; says what is wrong with the rest.
fn live_on(skips: fn(&Path) -> bool) -> Result<(), String> {
    let disk = SimulatedDisk::new();
    let backend = LocalBackend::on_disk(Arc::new(Forgetful { disk: disk.clone(), skips }), ROOT);
    let scenario = Scenario::small();
    let at = || disk.steps();
    let mut watch = Watch::new(&at);
    scenario.run(&place(backend), &mut watch).unwrap();
    let expected = watch.history.expected(&scenario, disk.steps());
    let left = local(&disk.lose_power(Loss::AllUnsynced));
    go_on(&scenario, &left, scenario.works.len(), &expected).map(drop)
}

/// Each of these directories is where something becomes durable by its name: left out,
/// the crashes above would find it.
#[test]
fn every_sync_of_a_directory_that_is_left_out_loses_something() {
    live_on(|_| false).unwrap();
    let skips: [fn(&Path) -> bool; 7] = [
        // The repository's own entry, and those of its directories.
        |path| path == Path::new("/"),
        |path| path == Path::new("/repo"),
        |path| path == Path::new("/repo/data"),
        // The entries of objects.
        |path| path.parent() == Some(Path::new("/repo/data")),
        |path| path == Path::new("/repo/index"),
        |path| path == Path::new("/repo/snapshots"),
        |path| path == Path::new("/repo/keys"),
    ];
    for (number, skips) in skips.into_iter().enumerate() {
        assert!(live_on(skips).is_err(), "{number}");
    }
}

/// The judge does not take whatever is left for right.
#[test]
fn a_pack_that_is_lost_is_found_out() {
    let disk = SimulatedDisk::new();
    let scenario = Scenario::small();
    let nobody = || 0;
    scenario.run(&local(&disk), &mut Watch::new(&nobody)).unwrap();
    let mut choices = Choices::new(1);
    let files = disk.files();
    let packs: Vec<_> = files.keys().filter(|path| path.starts_with("/repo/data")).collect();
    let lost = packs[choices.below(packs.len())].clone();
    let damaged = SimulatedDisk::new();
    for (path, bytes) in files.iter().filter(|(path, _)| **path != lost) {
        plant(&damaged, path, bytes);
    }
    let repo = local(&damaged).open().unwrap();
    assert_eq!(snapshots(&repo).unwrap().len(), 2);
    assert!(scenario.judge(&repo, &Expected::default()).is_err());
}

fn plant(disk: &SimulatedDisk, path: &Path, bytes: &[u8]) {
    let mut dirs: Vec<_> = path.ancestors().skip(1).collect();
    dirs.reverse();
    for dir in dirs {
        if disk.stat(dir).is_err() {
            disk.create_dir(dir).unwrap();
        }
    }
    disk.create_file(path).unwrap().write_all(bytes).unwrap();
}
