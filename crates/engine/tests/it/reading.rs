//! What was stored is read back: restores go on where they stopped, use the copies that
//! are sound, and a walk over all objects names exactly what is damaged.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use kedge_engine::{
    Backend, BackendError, CancelFlag, EngineError, Extent, ExtentKind, Gate, Listed, Listing,
    MemoryBackend, NoProgress, ObjectKind, ObjectName, OpenGate, PackDamage, PackId, Progress,
    Reading, Repository, RestoreCursor, Resume, Sink, SinkError, SnapshotId, Source, SourceError,
    Stopped, Timestamp, VerifyOptions, VerifyOutcome,
};

use crate::support::{
    Disk, KIB, MIB, Repo, Target, assert_clean, assert_restores, back_up, create, distinct_chunks,
    in_memory, noise, open, read_options, restore, store_options, threads, volume,
};

const CHUNK: usize = 512 * KIB;

fn verify_options() -> VerifyOptions {
    VerifyOptions {
        threads: threads(2),
        cancel: CancelFlag::new(),
        after: None,
        bytes_max: u64::MAX,
    }
}

fn verify(repo: &Repo) -> VerifyOutcome {
    repo.verify(&verify_options(), &NoProgress).unwrap()
}

fn packs(backend: &dyn Backend) -> Vec<(PackId, Vec<u8>)> {
    let listed = backend.list(ObjectKind::Pack).unwrap();
    let pack = |name| match name {
        ObjectName::Pack(id) => (id, backend.get(&name, u64::MAX).unwrap()),
        other => panic!("{other} among packs"),
    };
    listed.into_iter().map(|listed| pack(listed.name)).collect()
}

/// Several packs: noise fills them, and a tree has its own.
fn several_packs() -> (Arc<MemoryBackend>, Repo, SnapshotId, Vec<u8>) {
    let (backend, repo) = in_memory();
    let bytes = [noise(1, 36 * MIB), vec![0; 5 * MIB], noise(2, MIB + 77)].concat();
    let disk = Disk::new(bytes.clone());
    let (id, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    (backend, repo, id, bytes)
}

/// A target that outlives attempts at writing it, and breaks down after some writes.
struct Fragile {
    bytes: Mutex<Vec<u8>>,
    writes_left: AtomicUsize,
    writes: AtomicUsize,
}

impl Fragile {
    fn new(len: usize) -> Self {
        let (writes_left, writes) = (AtomicUsize::new(usize::MAX), AtomicUsize::new(0));
        Self { bytes: Mutex::new(vec![0xee; len]), writes_left, writes }
    }

    fn write(
        &self,
        offset: u64,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), SinkError> {
        let left = |left: usize| left.checked_sub(1);
        if self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_err() {
            return Err(SinkError { retryable: true, text: "broke down".into() });
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        let start = usize::try_from(offset).unwrap();
        fill(&mut self.bytes.lock().unwrap()[start..start + len]);
        Ok(())
    }
}

impl Sink for Fragile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.write(offset, bytes.len(), |to| to.copy_from_slice(bytes))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), SinkError> {
        self.write(offset, usize::try_from(len).unwrap(), |to| to.fill(0))
    }
}

#[test]
fn a_restore_stopped_anywhere_goes_on_where_it_was_durable() {
    let (backend, repo, id, bytes) = several_packs();
    let view = volume(&repo, id).unwrap();
    let last = Mutex::new(None::<RestoreCursor>);
    let save = |cursor| *last.lock().unwrap() = Some(cursor);
    let attempt = |repo: &Repo, sink: &Fragile| {
        let from = *last.lock().unwrap();
        let resume = Resume { from, every_bytes: 1, save: &save };
        repo.resume_volume(&view, sink, &OpenGate, &read_options(), &NoProgress, &resume)
    };

    let whole = Fragile::new(bytes.len());
    attempt(&repo, &whole).unwrap();
    let writes = whole.writes.load(Ordering::SeqCst);
    assert!(writes > 60, "{writes}");
    assert_eq!(attempt(&repo, &whole).unwrap().resumed_bytes, bytes.len() as u64);
    assert_eq!(whole.writes.load(Ordering::SeqCst), writes, "all of it was durable");

    let mut resumed_bytes = 0;
    for stop in (0..writes).step_by(3) {
        *last.lock().unwrap() = None;
        let sink = Fragile::new(bytes.len());
        sink.writes_left.store(stop, Ordering::SeqCst);
        let failed = attempt(&repo, &sink);
        assert!(matches!(failed, Err(EngineError::Sink(_))), "stopped after {stop}: {failed:?}");
        sink.writes_left.store(usize::MAX, Ordering::SeqCst);
        // Another process: the cursor went through a file.
        let kept = serde_json::to_string(&*last.lock().unwrap()).unwrap();
        *last.lock().unwrap() = serde_json::from_str(&kept).unwrap();
        let other = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
        let report = attempt(&other, &sink).unwrap();
        resumed_bytes += report.resumed_bytes;
        let sum = report.resumed_bytes + report.data_bytes + report.zero_bytes;
        assert_eq!(sum, bytes.len() as u64);
        assert!(*sink.bytes.lock().unwrap() == bytes, "stopped after {stop}");
    }
    assert!(resumed_bytes > 0, "no attempt went on");
}

#[test]
fn a_cursor_of_another_layout_is_worth_nothing() {
    let (_backend, repo, id, bytes) = several_packs();
    let (other_id, _) =
        back_up(&repo, &Disk::new(noise(9, 4 * MIB)), None, &store_options(), "two").unwrap();
    let saved = Mutex::new(Vec::new());
    let save = |cursor| saved.lock().unwrap().push(cursor);
    let run = |id, from| {
        let view = volume(&repo, id).unwrap();
        let sink = Fragile::new(usize::try_from(view.size_bytes()).unwrap());
        let resume = Resume { from, every_bytes: u64::MAX, save: &save };
        let options = read_options();
        let report =
            repo.resume_volume(&view, &sink, &OpenGate, &options, &NoProgress, &resume).unwrap();
        (report.resumed_bytes, sink.bytes.into_inner().unwrap())
    };
    run(other_id, None);
    let foreign = saved.lock().unwrap().last().copied();
    assert!(foreign.is_some(), "the end of a restore is saved");
    let (resumed_bytes, restored) = run(id, foreign);
    assert_eq!(resumed_bytes, 0);
    assert!(restored == bytes);
}

#[test]
fn nothing_is_saved_before_the_target_is_flushed_nor_when_the_gate_is_closed() {
    struct Flushing<'a>(&'a Fragile, &'a AtomicUsize);
    impl Sink for Flushing<'_> {
        fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
            self.0.write_at(offset, bytes)
        }
        fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), SinkError> {
            self.0.write_zeroes(offset, len)
        }
        fn flush(&self) -> Result<(), SinkError> {
            // The third one fails.
            match self.1.fetch_add(1, Ordering::SeqCst) {
                2 => Err(SinkError { retryable: true, text: "no fsync".into() }),
                _ => Ok(()),
            }
        }
    }
    struct Closed;
    impl Gate for Closed {
        fn may_write(&self) -> Result<(), Stopped> {
            Err(Stopped { why: "over".into() })
        }
    }
    let (_backend, repo, id, bytes) = several_packs();
    let view = volume(&repo, id).unwrap();
    let saves = AtomicUsize::new(0);
    let save = |_| {
        saves.fetch_add(1, Ordering::SeqCst);
    };
    let resume = Resume { from: None, every_bytes: 1, save: &save };
    let (sink, flushes) = (Fragile::new(bytes.len()), AtomicUsize::new(0));
    let sink = Flushing(&sink, &flushes);
    let run = |gate: &dyn Gate| {
        repo.resume_volume(&view, &sink, gate, &read_options(), &NoProgress, &resume)
    };
    assert!(matches!(run(&OpenGate), Err(EngineError::Sink(_))));
    assert!(saves.load(Ordering::SeqCst) < flushes.load(Ordering::SeqCst));
    saves.store(0, Ordering::SeqCst);
    assert!(matches!(run(&Closed), Err(EngineError::Stopped(_))));
    assert_eq!(saves.load(Ordering::SeqCst), 0);
}

/// The same chunks stored by two processes that knew nothing of each other.
fn stored_twice() -> (Arc<MemoryBackend>, SnapshotId, Vec<u8>) {
    let backend = Arc::new(MemoryBackend::new());
    let shared = Arc::clone(&backend) as Arc<dyn Backend>;
    let one = create(Arc::clone(&shared)).unwrap();
    let two = open(shared).unwrap();
    let bytes = noise(5, 3 * MIB + 9);
    let disk = Disk::new(bytes.clone());
    let sessions = [&one, &two].map(|repo| crate::support::begin(repo).unwrap());
    let stored = sessions
        .each_ref()
        .map(|session| session.store_volume(&disk, None, &store_options(), &NoProgress).unwrap());
    let mut ids = Vec::new();
    for (number, (session, stored)) in sessions.into_iter().zip(stored).enumerate() {
        let tag = format!("{number}");
        let tree = session.finish_tree(&[("vol", stored.subtree)], &[], crate::support::now());
        ids.push(session.write_snapshot(&crate::support::meta(tree.unwrap(), &tag)).unwrap());
        session.close().unwrap();
    }
    (backend, ids[0], bytes)
}

#[test]
fn a_blob_whose_best_copy_is_damaged_or_gone_is_read_from_another() {
    let (backend, id, bytes) = stored_twice();
    let all = packs(&*backend);
    let big: Vec<_> = all.iter().filter(|(_, pack)| pack.len() > MIB).collect();
    assert_eq!(big.len(), 2, "the data lies in two packs");
    for (pack, whole) in big {
        let name = ObjectName::Pack(*pack);
        let mut flipped = whole.clone();
        flipped[MIB] ^= 1;
        for damaged in [Some(flipped), Some(whole[..MIB].to_vec()), None] {
            backend.delete(&name).unwrap();
            if let Some(damaged) = damaged {
                backend.put(&name, &damaged).unwrap();
            }
            let repo = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
            assert_restores(&repo, id, &bytes);
            let damaged = verify(&repo).damaged;
            assert_eq!(damaged.len(), 1, "{damaged:?}");
            assert_eq!(damaged[0].pack, *pack);
        }
        backend.delete(&name).unwrap();
        backend.put(&name, whole).unwrap();
    }
    let repo = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    assert_clean(&repo);
    for (pack, _) in packs(&*backend).into_iter().filter(|(_, pack)| pack.len() > MIB) {
        backend.delete(&ObjectName::Pack(pack)).unwrap();
    }
    assert!(matches!(restore(&repo, id), Err(EngineError::Damaged { .. })), "no copy is left");
}

#[test]
fn verifying_names_the_damaged_pack_and_blobs_and_no_others() {
    let (backend, repo, _, _) = several_packs();
    let sound = verify(&repo);
    assert_eq!((&sound.damaged, &sound.problems, sound.next), (&vec![], &vec![], None));
    assert_eq!(sound.packs, packs(&*backend).len() as u64);
    let all = packs(&*backend);
    // Every byte once; a header may be found in more than it needs.
    let stored: u64 = all.iter().map(|(_, pack)| pack.len() as u64).sum();
    assert!((stored..=stored + 16_384 * sound.packs).contains(&sound.read_bytes));

    for (id, whole) in &all {
        let name = ObjectName::Pack(*id);
        let replace = |bytes: Option<&[u8]>| {
            backend.delete(&name).unwrap();
            if let Some(bytes) = bytes {
                backend.put(&name, bytes).unwrap();
            }
            let damaged = verify(&repo).damaged;
            assert_eq!(damaged.len(), 1, "{damaged:?}");
            assert_eq!(damaged[0].pack, *id);
            damaged[0].clone()
        };
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            bytes
        };
        // In a blob: that blob, and the pack is good for the rest.
        let blobs = |damage: &PackDamage| damage.blobs.as_ref().unwrap().len();
        let damage = replace(Some(&flipped(40)));
        assert_eq!((blobs(&damage), damage.whole), (1, false));
        // In the header or its length: no blob is harmed.
        for at in [whole.len() - 1, whole.len() - 5] {
            let damage = replace(Some(&flipped(at)));
            assert_eq!((blobs(&damage), damage.whole), (0, true));
        }
        // Cut short: all but the blobs before the cut.
        let cut = replace(Some(&whole[..whole.len() / 2]));
        assert!(cut.whole && blobs(&cut) > 0);
        let (other, bytes) = all.iter().find(|(other, _)| other != id).unwrap();
        let swapped = replace(Some(bytes));
        assert!(swapped.whole && blobs(&swapped) > 0, "swapped with {other}");
        let gone = replace(None);
        assert!(gone.whole && gone.what == "missing", "{gone:?}");
        assert!(blobs(&gone) >= blobs(&cut));
        backend.put(&name, whole).unwrap();
    }
    assert_clean(&repo);
}

#[test]
fn a_walk_in_small_steps_meets_every_pack_once() {
    let (backend, repo, _, _) = several_packs();
    let all: BTreeSet<_> = packs(&*backend).into_iter().map(|(id, _)| id).collect();
    assert!(all.len() >= 4);
    let by_keys = |options: &VerifyOptions| repo.verify(options, &NoProgress).unwrap();
    let keyless = |options: &VerifyOptions| {
        Repository::verify_objects(&*backend, options, &NoProgress).unwrap()
    };
    let walks: [&dyn Fn(&VerifyOptions) -> VerifyOutcome; 2] = [&by_keys, &keyless];
    for walk in walks {
        let mut options = VerifyOptions { threads: threads(1), bytes_max: 1, ..verify_options() };
        let (mut met, mut steps) = (0, 0);
        loop {
            let outcome = walk(&options);
            assert!(outcome.packs > 0, "every step gets on");
            assert_eq!(outcome.damaged, []);
            met += outcome.packs;
            steps += 1;
            match outcome.next {
                Some(next) => assert!(options.after.replace(next) < Some(next)),
                None => break,
            }
        }
        assert_eq!(met, all.len() as u64);
        assert!(steps > 1, "more than one step");
        // After the last pack there is nothing.
        let after = VerifyOptions { after: all.last().copied(), ..verify_options() };
        assert_eq!((walk(&after).packs, walk(&after).next), (0, None));
    }
}

/// A store whose lists leave out everything, or that cannot hand out some objects, as soon as
/// it is told.
#[derive(Debug)]
struct Odd {
    store: MemoryBackend,
    lists_nothing: AtomicBool,
    unreadable: Mutex<BTreeSet<ObjectName>>,
    how: Mutex<BackendError>,
}

impl Default for Odd {
    fn default() -> Self {
        let how = BackendError::Broken { text: "bad sector".into() };
        Self {
            store: MemoryBackend::new(),
            lists_nothing: AtomicBool::new(false),
            unreadable: Mutex::default(),
            how: Mutex::new(how),
        }
    }
}

impl Odd {
    fn require_readable(&self, name: &ObjectName) -> Result<(), BackendError> {
        match self.unreadable.lock().unwrap().contains(name) {
            true => Err(self.how.lock().unwrap().clone()),
            false => Ok(()),
        }
    }
}

impl Backend for Odd {
    fn prepare(&self) -> Result<(), BackendError> {
        self.store.prepare()
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        self.store.put(name, bytes)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        self.require_readable(name)?;
        self.store.get(name, bytes_max)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        self.require_readable(name)?;
        self.store.read_at(name, offset, buf)
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        self.store.find_size(name)
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        let listed = self.store.list(kind)?;
        Ok(if self.lists_nothing.load(Ordering::Relaxed) { Vec::new() } else { listed })
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        self.store.delete(name)
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        self.store.remove_leftovers()
    }
}

#[test]
fn what_a_list_leaves_out_is_asked_for_by_name_before_it_counts_as_missing() {
    let backend = Arc::new(Odd::default());
    let repo = create(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let disk = Disk::new(noise(1, 20 * MIB));
    let (id, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    let cancel = CancelFlag::new();
    let whole = repo.take_inventory().unwrap();
    backend.lists_nothing.store(true, Ordering::Relaxed);
    let (listings, objects) = repo.find_listed(&[id], &cancel).unwrap();
    let inventory = repo.take_inventory().unwrap();
    assert_eq!((&listings[..], &objects), (&[Listing::Whole][..], whole.index_objects()));
    assert_eq!(inventory.index_objects(), whole.index_objects());
    assert!(repo.are_there(inventory.index_objects()).unwrap());
    assert_eq!(repo.find_misfits(&inventory, &cancel).unwrap(), []);
    let read = |inventory| {
        repo.verify_listed(inventory, &|_, _| true, &verify_options(), &NoProgress).unwrap()
    };
    let outcome = read(&inventory);
    assert!(outcome.damaged.is_empty() && outcome.packs > 1, "{outcome:?}");
    assert_eq!(outcome, read(&whole));
}

/// A bad sector is damage of one object; a store that lets nobody read is not.
#[test]
fn what_cannot_be_read_while_the_rest_can_is_damaged() {
    let backend = Arc::new(Odd::default());
    let repo = create(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let disk = Disk::new(noise(1, 20 * MIB));
    let (id, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    let cancel = CancelFlag::new();
    let all = packs(&backend.store);
    let set = |names: &[ObjectName]| {
        *backend.unreadable.lock().unwrap() = names.iter().copied().collect();
    };
    let verify = || repo.verify(&verify_options(), &NoProgress);
    for (pack, _) in &all {
        set(&[ObjectName::Pack(*pack)]);
        let outcome = verify().unwrap();
        assert_eq!((outcome.packs, outcome.damaged.len()), (all.len() as u64, 1));
        assert!(outcome.damaged[0].what.contains("bad sector"), "{outcome:?}");
        assert_eq!(repo.list_damage().unwrap().len(), 1);
        assert!(!repo.is_whole(id, &cancel).unwrap_or(false));
        // Readable again: the mark goes.
        set(&[]);
        let refuted = verify().unwrap().refuted;
        repo.lift_damage(&refuted).unwrap();
        assert!(repo.is_whole(id, &cancel).unwrap());
        set(&[ObjectName::Pack(*pack), ObjectName::Config]);
        assert!(verify().is_err());
        assert_eq!(repo.list_damage().unwrap(), []);
    }
    // No process has the trees at hand by now.
    let fresh = || open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let listing = |repo: &Repo| repo.find_listed(&[id], &cancel).map(|(listings, _)| listings[0]);
    set(&[]);
    let (later, tree) = (fresh(), all.iter().min_by_key(|(_, bytes)| bytes.len()).unwrap().0);
    set(&[ObjectName::Pack(tree)]);
    assert_eq!(listing(&later).unwrap(), Listing::Unreadable);
    set(&[ObjectName::Snapshot(id)]);
    assert_eq!(listing(&repo).unwrap(), Listing::Unreadable);
    set(&[ObjectName::Snapshot(id), ObjectName::Config]);
    assert!(listing(&repo).is_err());
    let index: Vec<_> = backend.store.list(ObjectKind::Index).unwrap();
    set(&[index[0].name]);
    let inventory = repo.take_inventory().unwrap();
    assert_eq!((inventory.problems.len(), inventory.index_objects().len()), (1, index.len() - 1));
    assert_eq!(listing(&repo).unwrap(), Listing::Partial);
    // Whoever may not read a pack has found nothing out about it.
    set(&[ObjectName::Pack(tree)]);
    *backend.how.lock().unwrap() =
        BackendError::Io { retryable: false, text: "not allowed".into() };
    assert!(verify().is_err());
    assert_eq!(repo.list_damage().unwrap(), []);
}

/// Hears of every pack, and asks whom it must not be too late for.
struct Asking<'a> {
    repo: &'a Repo,
    recorded: Mutex<Vec<usize>>,
}

impl Progress for Asking<'_> {
    fn advance(&self, _bytes: u64) {
        self.recorded.lock().unwrap().push(self.repo.list_damage().unwrap().len());
    }
}

#[test]
fn damage_is_on_record_before_the_next_pack_is_read() {
    let (backend, repo, _, _) = several_packs();
    let all = packs(&*backend);
    for (id, mut bytes) in all.clone() {
        let name = ObjectName::Pack(id);
        bytes[20] ^= 1;
        backend.delete(&name).unwrap();
        backend.put(&name, &bytes).unwrap();
    }
    let asking = Asking { repo: &repo, recorded: Mutex::default() };
    let options = VerifyOptions { threads: threads(1), ..verify_options() };
    let outcome = repo.verify(&options, &asking).unwrap();
    assert_eq!(outcome.damaged.len(), all.len());
    assert_eq!(asking.recorded.into_inner().unwrap(), Vec::from_iter(1..=all.len()));
}

/// Does something when the first pack has been read.
struct Meanwhile<F>(Mutex<Option<F>>);

impl<F: FnOnce() + Send> Progress for Meanwhile<F> {
    fn advance(&self, _bytes: u64) {
        let act = self.0.lock().unwrap().take();
        act.into_iter().for_each(|act| act());
    }
}

/// A pack whose index object came or went meanwhile may not have been read.
#[test]
fn a_walk_names_the_index_objects_that_were_there_all_the_time() {
    let (backend, repo, _, _) = several_packs();
    let one = Disk::new(noise(3, MIB));
    back_up(&repo, &one, None, &store_options(), "two").unwrap();
    let objects = || repo.take_inventory().unwrap().index_objects().clone();
    let before = objects();
    assert!(before.len() > 1);
    assert_eq!(verify(&repo).index, before);
    let lost = *before.first().unwrap();
    let meanwhile = Meanwhile(Mutex::new(Some(|| {
        let another = Disk::new(noise(4, MIB));
        back_up(&repo, &another, None, &store_options(), "three").unwrap();
        backend.delete(&ObjectName::Index(lost)).unwrap();
    })));
    let outcome = repo.verify(&verify_options(), &meanwhile).unwrap();
    let kept: BTreeSet<_> = before.iter().copied().filter(|id| *id != lost).collect();
    assert_eq!(outcome.index, kept);
    assert!(objects().len() > kept.len(), "the new one is there");
}

#[test]
fn what_one_process_read_another_hears_of_until_it_says_so() {
    let (backend, repo, id, _) = several_packs();
    let index = verify(&repo).index;
    let reading = Reading { began_at: Timestamp::from_micros(1_000_001), index };
    let later = Reading { began_at: Timestamp::from_micros(2_000_002), index: BTreeSet::new() };
    repo.record_reading(&reading).unwrap();
    repo.record_reading(&later).unwrap();
    let other = open(backend as Arc<dyn Backend>).unwrap();
    let mut heard = other.list_readings().unwrap();
    heard.sort_by_key(|(_, told)| told.began_at);
    let (marks, told): (Vec<_>, Vec<_>) = heard.into_iter().unzip();
    assert_eq!(told, [reading, later]);
    // They speak against nothing.
    assert!(!other.has_damage().unwrap());
    assert_eq!(verify(&other).refuted, []);
    assert!(other.is_whole(id, &CancelFlag::new()).unwrap());
    other.forget_readings(&marks).unwrap();
    assert_eq!(repo.list_readings().unwrap(), []);
}

#[test]
fn a_cancelled_walk_says_where_it_stopped() {
    let (backend, repo, _, _) = several_packs();
    let options = verify_options();
    options.cancel.cancel();
    let outcomes = [
        repo.verify(&options, &NoProgress).unwrap(),
        Repository::verify_objects(&*backend, &options, &NoProgress).unwrap(),
    ];
    for outcome in outcomes {
        assert_eq!(outcome.packs, 0);
        assert!(outcome.next.is_some(), "it is not at the end");
        let rest = VerifyOptions { after: outcome.next, ..verify_options() };
        assert_eq!(repo.verify(&rest, &NoProgress).unwrap().packs, verify(&repo).packs);
    }
}

#[test]
fn without_keys_any_flipped_byte_of_any_object_is_found() {
    let (backend, repo) = in_memory();
    let bytes = [distinct_chunks(1, 2), noise(3, 3000)].concat();
    back_up(&repo, &Disk::new(bytes), None, &store_options(), "one").unwrap();
    let keyless = || {
        let outcome = Repository::verify_objects(&*backend, &verify_options(), &NoProgress);
        let VerifyOutcome { damaged, problems, .. } = outcome.unwrap();
        let packs = damaged.iter().map(|damage| ObjectName::Pack(damage.pack).to_string());
        packs.chain(problems.into_iter().map(|problem| problem.object)).collect::<Vec<_>>()
    };
    assert_eq!(keyless(), [""; 0]);
    for kind in [ObjectKind::Key, ObjectKind::Pack, ObjectKind::Index, ObjectKind::Snapshot] {
        let listed = backend.list(kind).unwrap();
        assert!(!listed.is_empty());
        for object in listed {
            let whole = backend.get(&object.name, u64::MAX).unwrap();
            for at in (0..whole.len()).step_by(whole.len() / 40 + 1).chain([whole.len() - 1]) {
                let mut flipped = whole.clone();
                flipped[at] ^= 1;
                backend.delete(&object.name).unwrap();
                backend.put(&object.name, &flipped).unwrap();
                assert_eq!(keyless(), [object.name.to_string()], "byte {at}");
            }
            backend.delete(&object.name).unwrap();
            backend.put(&object.name, &whole).unwrap();
        }
    }
    assert_eq!(keyless(), [""; 0]);
}

#[test]
fn comparing_does_not_read_where_both_are_zero() {
    let (_backend, repo) = in_memory();
    let mut bytes = vec![0; 40 * CHUNK + 100];
    bytes[7 * CHUNK..8 * CHUNK].copy_from_slice(&noise(1, CHUNK));
    let disk = Disk::new(bytes.clone());
    let (id, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    let view = volume(&repo, id).unwrap();
    let compare =
        |disk: &dyn Source| repo.compare_volume(&view, disk, &read_options(), &NoProgress);
    let zero_but = |start: usize, end: usize| {
        let extents =
            [(start, ExtentKind::Zero), (end, ExtentKind::Data), (bytes.len(), ExtentKind::Zero)];
        Disk::with_extents(bytes.clone(), &extents)
    };
    let honest = zero_but(7 * CHUNK, 8 * CHUNK);
    let report = compare(&honest).unwrap();
    assert_eq!((report.data_bytes, report.zero_bytes), (CHUNK as u64, (39 * CHUNK + 100) as u64));
    assert_eq!(*honest.reads.lock().unwrap(), [((7 * CHUNK) as u64, CHUNK)]);
    // Data must be read, whatever the target says about it.
    let mut lost = zero_but(0, 0);
    lost.bytes.fill(0);
    let offset = (7 * CHUNK) as u64;
    assert!(matches!(compare(&lost), Err(EngineError::Mismatch { offset: at }) if at == offset));
    // A hole that has become data is read.
    let mut filled = zero_but(7 * CHUNK, 21 * CHUNK);
    filled.bytes[20 * CHUNK] = 1;
    let found = compare(&filled);
    assert!(matches!(found, Err(EngineError::Mismatch { .. })), "{found:?}");
}

/// A thin disk of 1 TiB with a few chunks of data; unchanged when asked a second time.
struct Thin {
    size: u64,
    data: u64,
    kind: ExtentKind,
}

impl Source for Thin {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
        let (len, kind) = match self.kind {
            ExtentKind::Unchanged => (self.size - offset, ExtentKind::Unchanged),
            _ if offset < self.data => (self.data - offset, ExtentKind::Data),
            _ => (self.size - offset, ExtentKind::Zero),
        };
        Ok(Extent { offset, len, kind })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        buf.fill(0);
        for (at, block) in (offset..self.data).step_by(CHUNK).zip(buf.chunks_mut(CHUNK)) {
            block[..8].copy_from_slice(&(at + 1).to_le_bytes());
        }
        Ok(())
    }
}

#[test]
fn an_empty_terabyte_costs_next_to_nothing_and_unchanged_nothing() {
    let (backend, repo) = in_memory();
    let stored_bytes = || packs(&*backend).iter().map(|(_, pack)| pack.len()).sum::<usize>();
    let thin = |kind| Thin { size: 1 << 40, data: 64 << 20, kind };
    let mut parent = None;
    for (tag, kind) in [("one", ExtentKind::Data), ("two", ExtentKind::Unchanged)] {
        let before = stored_bytes();
        let session = crate::support::begin(&repo).unwrap();
        let stored =
            session.store_volume(&thin(kind), parent.as_ref(), &store_options(), &NoProgress);
        let tree =
            session.finish_tree(&[("vol", stored.unwrap().subtree)], &[], crate::support::now());
        let id = session.write_snapshot(&crate::support::meta(tree.unwrap(), tag)).unwrap();
        session.close().unwrap();
        let bound = if kind == ExtentKind::Unchanged { 64 * KIB } else { MIB };
        assert!(stored_bytes() - before < bound, "{tag}: {} bytes", stored_bytes() - before);
        let view = volume(&repo, id).unwrap();
        assert_eq!(view.blobs().len(), (1 << 40) / CHUNK as u64 - 64);
        parent = Some(view);
    }
    let view = parent.unwrap();
    assert_eq!(view.chunk_size(), Some(kedge_engine::ChunkSize::Mib1));
    let report =
        repo.compare_volume(&view, &thin(ExtentKind::Data), &read_options(), &NoProgress).unwrap();
    assert_eq!((report.data_bytes, report.zero_bytes), (64 << 20, (1 << 40) - (64 << 20)));
}

#[test]
fn every_byte_of_a_restore_is_written_once_however_many_threads_there_are() {
    let (_backend, repo, id, bytes) = several_packs();
    let view = volume(&repo, id).unwrap();
    for count in [1, 2, 7] {
        let options =
            kedge_engine::ReadOptions { threads: threads(count), cancel: CancelFlag::new() };
        let target = Target::new(bytes.len());
        repo.restore_volume(&view, &target, &OpenGate, &options, &NoProgress).unwrap();
        assert!(target.into_whole() == bytes, "{count} threads");
    }
}

#[test]
fn damage_harms_the_backups_that_need_what_is_damaged_until_it_lies_elsewhere() {
    let (backend, repo) = in_memory();
    let shared = noise(1, 2 * MIB);
    let disk = |own: u64| Disk::new([&shared, &noise(own, 2 * MIB)[..], &[0; MIB]].concat());
    let store = |own, tag| back_up(&repo, &disk(own), None, &store_options(), tag).unwrap().0;
    let known = |before: &[(PackId, Vec<u8>)]| {
        let mut all = packs(&*backend);
        all.retain(|(id, pack)| pack.len() > MIB && before.iter().all(|(other, _)| other != id));
        all
    };
    let one = store(10, "one");
    let packs_of_one = known(&[]);
    let two = store(20, "two");
    let packs_of_two = known(&packs_of_one);
    assert_eq!((packs_of_one.len(), packs_of_two.len()), (1, 1));
    let is_whole = |id| repo.is_whole(id, &CancelFlag::new()).unwrap();
    let damage = |(id, whole): &(PackId, Vec<u8>), at: Option<usize>| {
        let name = ObjectName::Pack(*id);
        backend.delete(&name).unwrap();
        if let Some(at) = at {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            backend.put(&name, &bytes).unwrap();
        }
        for damage in verify(&repo).damaged {
            repo.record_damage(&damage).unwrap();
        }
    };
    assert_eq!((is_whole(one), is_whole(two)), (true, true));
    // A header that is damaged harms nobody who has the index.
    damage(&packs_of_two[0], Some(packs_of_two[0].1.len() - 1));
    assert_eq!((is_whole(one), is_whole(two)), (true, true));
    assert_restores(&repo, two, &disk(20).bytes);
    // Worse damage of the same pack is news.
    damage(&packs_of_two[0], None);
    assert_eq!((is_whole(one), is_whole(two)), (true, false));
    // Put back and read again, it is as good as it was.
    backend.put(&ObjectName::Pack(packs_of_two[0].0), &packs_of_two[0].1).unwrap();
    let refuted = verify(&repo).refuted;
    assert_eq!(refuted.len(), 2);
    repo.lift_damage(&refuted).unwrap();
    assert_eq!((repo.has_damage().unwrap(), is_whole(two)), (false, true));
    // Of what nobody knows which blobs it harms, all count as harmed.
    let what = "read by somebody without the key".into();
    let unknown = PackDamage { pack: packs_of_two[0].0, blobs: None, whole: true, what };
    repo.record_damage(&unknown).unwrap();
    assert_eq!((is_whole(one), is_whole(two)), (true, false));
    repo.lift_damage(&verify(&repo).refuted).unwrap();
    assert_eq!((is_whole(one), is_whole(two)), (true, true));
    // Whoever needs the one blob that is damaged is harmed, and nobody else.
    let blobs_of = |id| volume(&repo, id).unwrap().blobs().iter().collect::<Vec<_>>();
    let (of_one, of_two) = (blobs_of(one), blobs_of(two));
    let mut harmed_two = 0;
    for chunk in 0..8 {
        damage(&packs_of_one[0], Some(chunk * CHUNK + CHUNK / 2));
        let harmed = repo.list_damage().unwrap().remove(0).blobs.unwrap()[0];
        let expected = (!of_one.contains(&harmed), !of_two.contains(&harmed));
        assert_eq!((is_whole(one), is_whole(two)), expected);
        harmed_two += usize::from(!expected.1);
        backend.delete(&ObjectName::Pack(packs_of_one[0].0)).unwrap();
        backend.put(&ObjectName::Pack(packs_of_one[0].0), &packs_of_one[0].1).unwrap();
        repo.lift_damage(&verify(&repo).refuted).unwrap();
    }
    assert_eq!(harmed_two, 4, "half of it is shared");
    // Gone, it takes the shared half along.
    damage(&packs_of_one[0], None);
    assert_eq!((is_whole(one), is_whole(two)), (false, false));
    for id in [one, two] {
        assert!(matches!(restore(&repo, id), Err(EngineError::Damaged { .. })));
    }
    // Whoever has the same data heals what had it.
    store(30, "three");
    assert_eq!((is_whole(one), is_whole(two)), (false, true));
    assert_restores(&repo, two, &disk(20).bytes);
    store(10, "one again");
    assert_eq!((is_whole(one), is_whole(two)), (true, true));
    assert_restores(&repo, one, &disk(10).bytes);
    // Index objects nobody can read leave it open.
    let indexes = backend.list(ObjectKind::Index).unwrap();
    let (first, bytes) = (indexes[0].name, backend.get(&indexes[0].name, 1 << 20).unwrap());
    for listed in &indexes {
        backend.delete(&listed.name).unwrap();
        backend.put(&listed.name, b"nonsense").unwrap();
    }
    let anew = open(Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
    let unknown = anew.is_whole(one, &CancelFlag::new());
    assert!(matches!(unknown, Err(EngineError::Damaged { .. })), "{unknown:?}");
    backend.delete(&first).unwrap();
    backend.put(&first, &bytes).unwrap();
    // Without its trees nothing can be had.
    let trees = packs(&*backend).into_iter().filter(|(_, pack)| pack.len() < MIB);
    for (id, _) in trees.collect::<Vec<_>>() {
        backend.delete(&ObjectName::Pack(id)).unwrap();
    }
    assert_eq!((is_whole(one), is_whole(two)), (false, false));
}
