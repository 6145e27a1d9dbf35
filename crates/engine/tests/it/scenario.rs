//! Lives of a repository, for tests that stop them anywhere: what is done, what each
//! backup must restore to, and how a new process goes on after a crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use kedge_engine::{
    Backend, CancelFlag, CreateOptions, EngineError, ExtentKind, ForeignLocks, KdfCost, NoProgress,
    ObjectKind, ObjectName, Open, OpenGate, PackDamage, Password, PruneOptions, ReadData,
    Repository, SnapshotId, StoreOptions, VerifyOptions,
};

use crate::support::{
    Disk, KIB, PASSWORD, Repo, Target, at_secs, distinct_chunks, meta, noise, now, password,
    read_options, store_options, threads,
};

const CHUNK: usize = 512 * KIB;
const FILE: &str = "server.json";

/// Volumes of a server at one moment, by name.
pub(crate) type Contents = BTreeMap<&'static str, Arc<Vec<u8>>>;

/// A piece of work that a job does and repeats after a crash.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Create,
    /// Backs up what the tag stands for, from the newest backup named here.
    BackUp {
        tag: String,
        parent: Option<String>,
    },
    /// Removes a backup.
    Delete {
        tag: String,
    },
    /// Gives the repository another password.
    Rotate {
        password: String,
    },
    /// Reads everything back, is mistaken about a pack, and notes that it is damaged.
    Verify,
    Prune,
}

/// A store, and where a process keeps what it may lose.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) cache: Option<PathBuf>,
}

/// What is done, in order, and what the backups must hold.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) works: Vec<Work>,
    pub(crate) contents: BTreeMap<String, Contents>,
}

/// When things happened, in steps of the store below.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The end of each piece of work.
    pub(crate) ends: Vec<usize>,
    /// From these moments on the snapshots of the tags must be there,
    committed: Vec<(usize, String)>,
    /// until these.
    doomed: Vec<(usize, String)>,
}

/// Backups of which a crash may leave no doubt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Expected {
    pub(crate) present: BTreeSet<String>,
    pub(crate) absent: BTreeSet<String>,
}

/// Notes moments while a scenario runs.
pub(crate) struct Watch<'a> {
    pub(crate) at: &'a dyn Fn() -> usize,
    pub(crate) history: History,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(at: &'a dyn Fn() -> usize) -> Self {
        Self { at, history: History::default() }
    }

    fn commit(&mut self, tag: &str) {
        self.history.committed.push(((self.at)(), tag.into()));
    }

    fn doom(&mut self, tag: &str) {
        self.history.doomed.push(((self.at)(), tag.into()));
    }
}

impl History {
    /// The work a crash before this step interrupts; beyond the last, none.
    pub(crate) fn interrupted(&self, step: usize) -> usize {
        self.ends.iter().filter(|end| **end <= step).count()
    }

    pub(crate) fn expected(&self, scenario: &Scenario, step: usize) -> Expected {
        let before = |moments: &[(usize, String)]| -> BTreeSet<String> {
            moments.iter().filter(|(at, _)| *at <= step).map(|(_, tag)| tag.clone()).collect()
        };
        let doomed = before(&self.doomed);
        let present = before(&self.committed).difference(&doomed).cloned().collect();
        let done = scenario.works.iter().take(self.interrupted(step));
        let deleted = |work: &Work| match work {
            Work::Delete { tag } => Some(tag.clone()),
            Work::Create
            | Work::BackUp { .. }
            | Work::Rotate { .. }
            | Work::Verify
            | Work::Prune => None,
        };
        Expected { present, absent: done.filter_map(deleted).collect() }
    }
}

impl Expected {
    /// What it is once the interrupted work was done again.
    pub(crate) fn after(&self, work: Option<&Work>) -> Self {
        let mut expected = self.clone();
        match work {
            Some(Work::BackUp { tag, .. }) => {
                expected.present.insert(tag.clone());
            }
            Some(Work::Delete { tag }) => {
                expected.present.remove(tag);
                expected.absent.insert(tag.clone());
            }
            Some(Work::Create | Work::Rotate { .. } | Work::Verify | Work::Prune) | None => {}
        }
        expected
    }
}

impl Place {
    /// Opens or makes the repository, as the service does. Its password lies beside it,
    /// as it does there wrapped.
    pub(crate) fn open(&self) -> Result<Repo, EngineError> {
        match Repository::is_initialised(&*self.backend) {
            Ok(false) => self.create(),
            Ok(true) => self.open_noted(),
            Err(error) if error.is_unreachable() => self.create(),
            Err(error) => Err(error),
        }
    }

    fn create(&self) -> Result<Repo, EngineError> {
        let options = CreateOptions {
            password: &password(),
            kdf: KdfCost::CHEAP,
            created_at: now(),
            access: Some(PASSWORD.as_bytes()),
        };
        self.load(Repository::create(Arc::clone(&self.backend), &options)?)
    }

    fn open_noted(&self) -> Result<Repo, EngineError> {
        let noted = Repository::find_access(&*self.backend)?.unwrap_or_default();
        let password = Password::new(String::from_utf8(noted).unwrap());
        self.load(Repository::open(Arc::clone(&self.backend), &password)?)
    }

    fn load(&self, repo: Repository<Open>) -> Result<Repo, EngineError> {
        Ok(Arc::new(match &self.cache {
            Some(dir) => repo.load_index_cached(dir)?,
            None => repo.load_index()?,
        }))
    }
}

/// Snapshots by identity tag.
pub(crate) fn snapshots(repo: &Repo) -> Result<BTreeMap<String, SnapshotId>, EngineError> {
    let listed = repo.list_snapshots()?.into_iter();
    Ok(listed.map(|snapshot| (snapshot.tags[0].clone(), snapshot.id)).collect())
}

impl Scenario {
    /// First backup, changed and grown, another server with shared blobs, an unchanged
    /// volume, believed damage, another password, deletions, prunes; everything small.
    pub(crate) fn small() -> Self {
        let system = [distinct_chunks(1, 2), vec![0; CHUNK], noise(1, 700)].concat();
        let mut changed = system.clone();
        changed[CHUNK + 9] ^= 1;
        changed.extend_from_slice(&[5; 4000]);
        let data = Arc::new(noise(2, 20 * KIB));
        let shared = [&system[..CHUNK], &noise(3, 3000)].concat();
        // What a prune has removed is backed up again.
        let again = Contents::from([("system", Arc::new(system.clone()))]);
        let contents: BTreeMap<String, Contents> = [
            ("one", Contents::from([("system", Arc::new(system)), ("data", Arc::clone(&data))])),
            ("two", Contents::from([("system", Arc::new(changed)), ("data", data)])),
            ("other", Contents::from([("system", Arc::new(shared))])),
            ("three", again),
        ]
        .map(|(tag, contents)| (tag.to_owned(), contents))
        .into();
        let back_up = |tag: &str, parent: Option<&str>| Work::BackUp {
            tag: tag.into(),
            parent: parent.map(str::to_owned),
        };
        let works = vec![
            Work::Create,
            back_up("one", None),
            back_up("two", Some("one")),
            back_up("other", None),
            Work::Verify,
            Work::Rotate { password: "another".into() },
            Work::Delete { tag: "one".into() },
            Work::Prune,
            back_up("three", Some("two")),
            Work::Delete { tag: "other".into() },
            Work::Prune,
        ];
        Self { works, contents }
    }

    /// Some fifteen pieces of work on three servers.
    pub(crate) fn random(seed: u64) -> Self {
        let mut choices = Choices::new(seed);
        let mut scenario = Self { works: vec![Work::Create], contents: BTreeMap::new() };
        let mut newest: [Option<String>; 3] = [None, None, None];
        let mut alive: Vec<String> = Vec::new();
        for number in 0..14 {
            if alive.len() > 2 && choices.one_in(4) {
                let tag = alive.remove(choices.below(alive.len()));
                scenario.works.push(Work::Delete { tag });
                continue;
            }
            match choices.below(16) {
                0..=2 => {
                    scenario.works.push(Work::Prune);
                    continue;
                }
                3 => {
                    scenario.works.push(Work::Rotate { password: format!("password-{number}") });
                    continue;
                }
                4 => {
                    scenario.works.push(Work::Verify);
                    continue;
                }
                _ => {}
            }
            let server = choices.below(3);
            let tag = format!("backup-{number}");
            let before = newest[server].as_ref().and_then(|tag| scenario.contents.get(tag));
            let contents = choices.contents(before);
            scenario.contents.insert(tag.clone(), contents);
            let parent = newest[server].replace(tag.clone());
            scenario.works.push(Work::BackUp { tag: tag.clone(), parent });
            alive.push(tag);
        }
        scenario
    }

    /// Does everything from the beginning.
    pub(crate) fn run(&self, place: &Place, watch: &mut Watch<'_>) -> Result<(), EngineError> {
        for work in &self.works {
            self.perform(place, work, watch)?;
            watch.history.ends.push((watch.at)());
        }
        Ok(())
    }

    /// Does one piece of work in a process of its own, again if need be.
    pub(crate) fn perform(
        &self,
        place: &Place,
        work: &Work,
        watch: &mut Watch<'_>,
    ) -> Result<(), EngineError> {
        let repo = place.open()?;
        // The process that held them is dead.
        for session in repo.list_sessions()? {
            repo.remove_session_locks(&session)?;
        }
        match work {
            Work::Create => Ok(()),
            Work::BackUp { tag, parent } => self.back_up(&repo, tag, parent.as_deref(), watch),
            Work::Delete { tag } => self.delete(&repo, tag, watch),
            Work::Rotate { password } => {
                let kept = repo.add_password(&Password::new(&**password), KdfCost::CHEAP, now())?;
                repo.put_access(password.as_bytes())?;
                repo.remove_passwords_but(kept).map(drop)
            }
            Work::Verify => verify(&repo, &*place.backend),
            Work::Prune => prune(&repo),
        }
    }

    pub(crate) fn delete(
        &self,
        repo: &Repo,
        tag: &str,
        watch: &mut Watch<'_>,
    ) -> Result<(), EngineError> {
        watch.doom(tag);
        for snapshot in repo.find_snapshots_by_tag(tag)? {
            repo.delete_snapshot(snapshot.id)?;
        }
        Ok(())
    }

    pub(crate) fn back_up(
        &self,
        repo: &Repo,
        tag: &str,
        parent: Option<&str>,
        watch: &mut Watch<'_>,
    ) -> Result<(), EngineError> {
        let session =
            repo.begin_session("session-1", now(), Arc::new(OpenGate), CancelFlag::new())?;
        let parent_tag = parent.map(str::to_owned);
        let parent_id = match &parent_tag {
            Some(tag) => snapshots(repo)?.remove(tag),
            None => None,
        };
        let parent = parent_id.map(|id| repo.open_snapshot(id)).transpose()?;
        let mut subtrees = Vec::new();
        for (name, bytes) in &self.contents[tag] {
            let view = match &parent {
                Some(parent) if parent.volume_names().contains(name) => Some(parent.volume(name)?),
                Some(_) | None => None,
            };
            let known = parent_tag.as_ref().filter(|_| view.is_some());
            let before = known.and_then(|tag| self.contents[tag].get(name));
            let disk = Disk::with_extents(bytes.to_vec(), &truth(before.map(|b| &b[..]), bytes));
            let options = StoreOptions { threads: threads(1), ..store_options() };
            let stored = session.store_volume(&disk, view.as_ref(), &options, &NoProgress)?;
            subtrees.push((*name, stored.subtree));
        }
        session.refresh_lock(at_secs(1))?;
        let tree = session.finish_tree(&subtrees, &[(FILE, tag.as_bytes())], now())?;
        session.write_snapshot(&meta(tree, tag))?;
        watch.commit(tag);
        session.close()
    }

    /// Holds a repository against what must be in it: every snapshot restores byte for
    /// byte, and none is missing.
    pub(crate) fn judge(&self, repo: &Repo, expected: &Expected) -> Result<(), String> {
        let text = |error: EngineError| error.to_string();
        let report = repo.check(ReadData::Yes, &CancelFlag::new()).map_err(text)?;
        if let [first, ..] = report.problems.as_slice() {
            return Err(format!("{}: {}", first.object, first.what));
        }
        let found = snapshots(repo).map_err(text)?;
        if let Some(tag) = expected.present.iter().find(|tag| !found.contains_key(*tag)) {
            return Err(format!("{tag} was committed and is lost"));
        }
        if let Some(tag) = expected.absent.iter().find(|tag| found.contains_key(*tag)) {
            return Err(format!("{tag} was deleted and is back"));
        }
        for (tag, id) in found {
            self.judge_snapshot(repo, &tag, id).map_err(|what| format!("{tag}: {what}"))?;
        }
        Ok(())
    }

    fn judge_snapshot(&self, repo: &Repo, tag: &str, id: SnapshotId) -> Result<(), String> {
        if !self.contents.contains_key(tag) {
            return Err("nobody made this".into());
        }
        match self.restore_all(repo, tag, id) {
            Ok(true) => Ok(()),
            Ok(false) => Err("restores to something else".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Restores all of a snapshot; says whether it is what the tag stands for.
    pub(crate) fn restore_all(
        &self,
        repo: &Repo,
        tag: &str,
        id: SnapshotId,
    ) -> Result<bool, EngineError> {
        let contents = &self.contents[tag];
        let snapshot = repo.open_snapshot(id)?;
        if !snapshot.volume_names().iter().eq(contents.keys())
            || snapshot.file(FILE)? != tag.as_bytes()
        {
            return Ok(false);
        }
        for (name, bytes) in contents {
            let view = snapshot.volume(name)?;
            let target = Target::new(usize::try_from(view.size_bytes()).unwrap());
            repo.restore_volume(&view, &target, &OpenGate, &read_options(), &NoProgress)?;
            if target.into_whole() != **bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The pack of the least name is as good as any.
fn verify(repo: &Repo, backend: &dyn Backend) -> Result<(), EngineError> {
    let options = VerifyOptions {
        threads: threads(2),
        cancel: CancelFlag::new(),
        after: None,
        bytes_max: u64::MAX,
    };
    let seen = repo.verify(&options, &NoProgress)?;
    assert_eq!((seen.damaged, seen.problems), (Vec::new(), Vec::new()));
    let packs = backend.list(ObjectKind::Pack).map_err(EngineError::List)?;
    match packs.iter().map(|listed| listed.name).min() {
        Some(ObjectName::Pack(pack)) => {
            let what = "a reader was mistaken".into();
            repo.record_damage(&PackDamage { pack, blobs: None, whole: true, what })
        }
        Some(_) | None => Ok(()),
    }
}

/// Nobody else is alive; all packs with unused bytes go.
pub(crate) fn prune(repo: &Repo) -> Result<(), EngineError> {
    let known = repo.list_snapshots()?.into_iter().map(|snapshot| (snapshot.id, snapshot.tree));
    let known: Vec<_> = known.collect();
    let options = PruneOptions {
        name: "prune-1",
        unused_percent_max: 0,
        repack_bytes_max: u64::MAX,
        known_snapshots: &known,
        keep_trees: &[],
        is_alive: &|_| false,
        foreign_locks: ForeignLocks::Honour,
        now: &now,
    };
    repo.prune(&options, &OpenGate, &CancelFlag::new(), &NoProgress).map(drop)
}

/// What an honest driver says: per 4 KiB, whether anything changed or all is zero.
fn truth(before: Option<&[u8]>, bytes: &[u8]) -> Vec<(usize, ExtentKind)> {
    const GRAIN: usize = 4 * KIB;
    let kind = |at: usize, grain: &[u8]| {
        let same = before.and_then(|before| before.get(at..at + grain.len()));
        // The last chunk of a volume that grew is another one.
        if same == Some(grain) {
            ExtentKind::Unchanged
        } else if grain.iter().all(|byte| *byte == 0) {
            ExtentKind::Zero
        } else {
            ExtentKind::Data
        }
    };
    let mut extents: Vec<(usize, ExtentKind)> = Vec::new();
    for (number, grain) in bytes.chunks(GRAIN).enumerate() {
        let at = number * GRAIN;
        let (end, kind) = (at + grain.len(), kind(at, grain));
        match extents.last_mut() {
            Some((last_end, last)) if *last == kind => *last_end = end,
            Some(_) | None => extents.push((end, kind)),
        }
    }
    extents
}

/// Reproducible choices.
#[derive(Debug)]
pub(crate) struct Choices(u64);

impl Choices {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound as u64).max(1)).unwrap()
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// A server's volumes, changed a little from an earlier moment.
    pub(crate) fn contents(&mut self, before: Option<&Contents>) -> Contents {
        let names = ["data", "system"];
        let mut contents = Contents::new();
        for name in names {
            let old = before.and_then(|before| before.get(name));
            let bytes = match old {
                // Some servers have one disk.
                None if name == "data" && self.one_in(3) => continue,
                None => self.fresh(),
                Some(old) if self.one_in(3) => old.to_vec(),
                Some(old) => self.changed(old),
            };
            contents.insert(name, Arc::new(bytes));
        }
        contents
    }

    fn fresh(&mut self) -> Vec<u8> {
        // Few seeds, so that servers share blobs.
        match self.below(4) {
            0 => [distinct_chunks(self.next() % 3, 1), noise(self.next() % 5, 900)].concat(),
            1 => vec![0; 1 + self.below(CHUNK)],
            2 => noise(self.next() % 5, 1 + self.below(60 * KIB)),
            _ => vec![b'a'; 1 + self.below(60 * KIB)],
        }
    }

    fn changed(&mut self, old: &[u8]) -> Vec<u8> {
        let mut bytes = old.to_vec();
        let at = self.below(bytes.len());
        let end = (at + 1 + self.below(2000)).min(bytes.len());
        match self.below(4) {
            0 => bytes[at..end].fill(0),
            1 => bytes.truncate(at.max(1)),
            2 => bytes.extend_from_slice(&noise(self.next() % 5, 500)),
            _ => bytes[at..end].copy_from_slice(&noise(self.next(), end - at)),
        }
        bytes
    }
}

/// Runs each of so many pieces on one of two threads.
pub(crate) fn in_two_threads<T: Send>(count: usize, piece: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return done;
            }
            done.push(piece(number));
        }
    };
    thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}
