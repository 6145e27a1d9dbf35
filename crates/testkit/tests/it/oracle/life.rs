//! Whole lives of a site, dealt from a seed: servers are written to, backed up, restored;
//! backups are deleted, the repository pruned; objects of the store go missing, are flipped,
//! cut short, swapped, and come back; the catalogue is lost, or an old one is put in its
//! place; the clock is wrong for a while; processes die in the middle of jobs. Between all
//! that it is asked whether a backup can be restored to a server.
//!
//! What is right is known without the planner: which backups there are is kept here, what
//! rules say of the target is the table's ([`model`]), and whether the bytes of a backup can
//! be had is found out by reading them all from a copy of the store that has no marks of
//! damage, and comparing with what the disks held. What nobody has found yet, nobody can
//! answer for; so before each question the store is watched over and read back.
//!
//! A yes is restored and compared byte for byte, a no must be the restore's no as well, with
//! nothing written. Where damage keeps the repository from being read at all, an answer
//! that says it is unknown counts as right.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kedge_cloud::sim::{SimOp, SimWrite};
use kedge_core::checkpoint::Item;
use kedge_core::evidence::Grade;
use kedge_core::ids::{ItemId, ProjectId, ServerId, VolumeBackupId, VolumeId};
use kedge_core::ports::{Clock as _, CloudError};
use kedge_core::resource::{
    Content, Encryption, Server, ServerKind, ServerStatus as Status, Sharing, VolumeRole,
    VolumeStatus,
};
use kedge_core::restore::{Mapping, Pair, Question};
use kedge_core::status::ItemStatus;
use kedge_core::time::Timestamp;
use kedge_engine::layer::Operation;
use kedge_engine::{
    Backend as _, CancelFlag, IndexId, NoProgress, ObjectKind, ObjectName, OpenGate, PackId,
    ReadOptions, Sink, SinkError,
};
use kedge_service::repositories::{Repositories, RepositoryError};
use kedge_service::restore::RestoreRequest;
use kedge_service::settings::Kdf;
use kedge_store::{Outage, PowerOn, RestoreStatus, Store};
use kedge_testkit::{Harness, MemoryPlaces, PROJECT, Stage};
use tempfile::TempDir;

use super::model;
use super::scenario::{
    Ask, BackupDesc, BackupRef, BackupStatus, Demand, Dice, DiskDesc, DiskStatus, Exists, Held,
    ItemRef, Kind, Owner, Repository, SERVER_TYPE, ServerDesc, ServerStatus, Snapshot, TargetDisk,
    VolumeRef, World, remainder,
};
use crate::support::{Interruption, disk, protect_request, try_prune, watch_interrupted};

const CHUNK: usize = 512 << 10;
const ZONES: [&str; 2] = ["az-01", "az-02"];
/// Steps of one life.
const STEPS: usize = 24;

/// Something that happens to a site. The numbers choose among what there is at the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    deed: Deed,
    numbers: [u64; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Write,
    BackUp,
    Delete,
    Prune,
    Damage,
    Mend,
    LoseCatalogue,
    KeepCatalogue,
    OldCatalogue,
    Rebuild,
    Restart,
    Kill,
    PassTime,
    Watch,
    VerifySlice,
    WrongClock,
    ChangeServer,
    Venture,
    Ask,
}

/// Each as often as it stands here.
const DEEDS: [Deed; 39] = [
    Deed::Write,
    Deed::Write,
    Deed::Write,
    Deed::BackUp,
    Deed::BackUp,
    Deed::BackUp,
    Deed::BackUp,
    Deed::BackUp,
    Deed::Delete,
    Deed::Prune,
    Deed::Damage,
    Deed::Damage,
    Deed::Damage,
    Deed::Mend,
    Deed::Mend,
    Deed::LoseCatalogue,
    Deed::KeepCatalogue,
    Deed::OldCatalogue,
    Deed::Rebuild,
    Deed::Restart,
    Deed::Kill,
    Deed::Kill,
    Deed::PassTime,
    Deed::Watch,
    Deed::Watch,
    Deed::VerifySlice,
    Deed::VerifySlice,
    Deed::VerifySlice,
    Deed::WrongClock,
    Deed::ChangeServer,
    Deed::Venture,
    Deed::Venture,
    Deed::Venture,
    Deed::Ask,
    Deed::Ask,
    Deed::Ask,
    Deed::Ask,
    Deed::Ask,
    Deed::Ask,
];

/// The life of this seed. It begins with a backup and ends with a question.
pub(super) fn steps(seed: u64) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    let mut step = |deed: Option<Deed>| Step {
        deed: deed.unwrap_or_else(|| dice.pick(&DEEDS)),
        numbers: [dice.next(), dice.next(), dice.next()],
    };
    let first = [Some(Deed::BackUp), Some(Deed::BackUp)];
    let rest = std::iter::repeat_n(None, STEPS).chain([Some(Deed::Ask)]);
    first.into_iter().chain(rest).map(&mut step).collect()
}

/// What came of a life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) questions: u64,
    pub(super) restored: u64,
    pub(super) refused: u64,
    pub(super) honestly_unknown: u64,
    /// Evidence compared with what was done.
    pub(super) graded: u64,
    /// Restores begun without a look before.
    pub(super) ventured: u64,
    /// Those that met damage, and turned the verdict.
    pub(super) found_out: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.questions += other.questions;
        self.restored += other.restored;
        self.refused += other.refused;
        self.honestly_unknown += other.honestly_unknown;
        self.graded += other.graded;
        self.ventured += other.ventured;
        self.found_out += other.found_out;
    }
}

/// Lives through these steps.
///
/// # Panics
/// Where something is not right; the text tells which step.
pub(super) async fn live(seed: u64, steps: &[Step]) -> Tally {
    let mut life = Life::begin(seed).await;
    for (number, step) in steps.iter().enumerate() {
        life.at = format!("seed {seed}, step {number}, {step:?}");
        life.step(*step).await;
    }
    life.mend(None);
    life.find_out().await;
    life.nothing_is_lost().await;
    life.tally
}

/// A backup that was made, and what its disks held.
#[derive(Clone, Debug)]
struct Made {
    item: Item,
    contents: Vec<Vec<u8>>,
    /// Nobody deleted it, so its bytes must be there.
    is_kept: bool,
    /// Whether the catalogue must know it; `None` where a rebuild met damage.
    is_known: Option<bool>,
}

/// How far a verification has come.
struct Verification {
    began_at: Timestamp,
    after: Option<PackId>,
    index: Option<BTreeSet<IndexId>>,
}

struct Life {
    harness: Harness,
    folder: TempDir,
    /// The backups that a catalogue knows which was put aside.
    old_catalogue: Option<Vec<ItemId>>,
    servers: Vec<ServerId>,
    made: Vec<Made>,
    /// Objects in the order in which they came to be.
    objects: Vec<ObjectName>,
    /// What is damaged, and what it held.
    damaged: Vec<(ObjectName, Vec<u8>)>,
    verification: Option<Verification>,
    /// When packs were last written or read, by the clock that the service goes by.
    touched: BTreeMap<ObjectName, Timestamp>,
    /// Calls of the store that [`Self::touched`] knows of.
    calls: usize,
    tally: Tally,
    at: String,
    /// What the numbers came to.
    log: Vec<String>,
}

fn project() -> ProjectId {
    ProjectId::new(PROJECT)
}

fn among<T>(number: u64, all: &[T]) -> Option<usize> {
    (!all.is_empty()).then(|| remainder(number, all.len()))
}

impl Life {
    async fn begin(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).await.unwrap();
        let harness = Harness::on(Stage { store, ..Stage::new().await });
        let mut life = Self {
            harness,
            folder,
            old_catalogue: None,
            servers: Vec::new(),
            made: Vec::new(),
            objects: Vec::new(),
            damaged: Vec::new(),
            verification: None,
            touched: BTreeMap::new(),
            calls: 0,
            tally: Tally::default(),
            at: String::new(),
            log: Vec::new(),
        };
        let mut dice = Dice::new(seed ^ 0x5eed);
        for number in 0..3 {
            let sizes =
                [CHUNK * (1 + dice.below(4)) - dice.below(2) * 100, 4096 * (1 + dice.below(9))];
            let disks = &sizes[..1 + dice.below(2)];
            let contents: Vec<_> =
                disks.iter().map(|size| disk(seed.wrapping_add(number), *size)).collect();
            let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
            life.servers.push(life.harness.add_server(&contents).id);
        }
        life
    }

    fn server(&self, number: u64) -> Server {
        let id = &self.servers[among(number, &self.servers).unwrap()];
        self.harness.cloud.server(id).unwrap()
    }

    fn contents(&self, server: &Server) -> Vec<Vec<u8>> {
        crate::support::contents(&self.harness, server)
    }

    async fn step(&mut self, step: Step) {
        let [a, b, c] = step.numbers;
        match step.deed {
            Deed::Write => self.write(a, b),
            Deed::BackUp => self.back_up(a).await,
            Deed::Delete => self.delete(a).await,
            Deed::Prune => self.prune().await,
            Deed::Damage => self.damage(a, b, c),
            Deed::Mend => self.mend(Some(a).filter(|a| a.is_multiple_of(2))),
            Deed::LoseCatalogue => self.lose_catalogue().await,
            Deed::KeepCatalogue => self.keep_catalogue().await,
            Deed::OldCatalogue => self.bring_back_catalogue().await,
            Deed::Rebuild => self.rebuild().await,
            Deed::Restart => self.restart().await,
            Deed::Kill => self.kill(a, b, c).await,
            Deed::PassTime => self.harness.clock.advance(Duration::from_secs(a % (40 * 86_400))),
            Deed::Watch => self.watch(a, b).await,
            Deed::VerifySlice => self.verify_slice(a).await,
            Deed::WrongClock => self.wrong_clock(a, b).await,
            Deed::ChangeServer => self.change_server(a, b),
            Deed::Venture => self.venture(a, b, c).await,
            Deed::Ask => self.ask(a, b, c).await,
        }
        self.see_objects();
        self.evidence_is_no_better_than_what_was_done(a ^ c).await;
    }

    /// Called before the clock is set.
    fn see_calls(&mut self) {
        let calls = self.harness.places.store_of(&project()).recorded();
        let now = self.harness.clock.now();
        for (operation, name) in &calls[self.calls..] {
            let is_touch = matches!(operation, Operation::Put | Operation::Get | Operation::ReadAt);
            if let Some(pack @ ObjectName::Pack(_)) = name.filter(|_| is_touch) {
                let known = self.touched.entry(pack).or_insert(now);
                *known = now.max(*known);
            }
        }
        self.calls = calls.len();
    }

    /// Nothing counts as read after a moment that nobody has touched since.
    async fn evidence_is_no_better_than_what_was_done(&mut self, which: u64) {
        self.see_calls();
        let Some(at) = among(which, &self.made) else { return };
        let made = self.made[at].clone();
        let target = self.server(self.own(&made));
        let asked = vec![question(&made.item, &target, 2)];
        let context = self.harness.context().await;
        let explained = self.harness.app.explain_restorable(&context, asked).await.unwrap();
        // What is known to be damaged is not read: its size tells.
        let known = explained[0].evidence.filter(|_| explained[0].explanation.verdict.is_ok());
        let Some(since) = known.and_then(|known| known.read_since) else { return };
        // What lies in two places was read in one of them, while index objects are new.
        let watch = self.harness.store.find_watch(&project()).await.unwrap();
        let objects =
            self.harness.places.store_of(&project()).inner().list(ObjectKind::Index).unwrap();
        let is_read = |name: ObjectName| matches!(name, ObjectName::Index(id) if watch.read_index.contains_key(&id.to_string()));
        if !objects.iter().all(|listed| is_read(listed.name)) {
            return;
        }
        let Ok(repository) = self.harness.app.repositories().get(&project()).await else { return };
        let id = made.item.snapshot.as_ref().unwrap().snapshot.parse().unwrap();
        let packs = move || repository.packs_of(id, &CancelFlag::new());
        // Where lists are damaged, the verdict is no.
        let Ok(packs) = tokio::task::spawn_blocking(packs).await.unwrap() else { return };
        for pack in packs {
            let touched = self.touched.get(&ObjectName::Pack(pack)).copied();
            assert!(
                touched >= Some(since),
                "{}: {} is read since {since}, its pack {pack} was touched at {touched:?}; {:#?}",
                self.at,
                made.item.id,
                self.log
            );
        }
        self.tally.graded += 1;
    }

    fn write(&self, server: u64, number: u64) {
        let server = self.server(server);
        let volume = &server.volumes[among(number, &server.volumes).unwrap()];
        let bytes = disk(number, 3000);
        let last = volume.size_bytes - bytes.len() as u64;
        self.harness.cloud.overwrite(&volume.id, number % (last + 1), &bytes);
    }

    fn change_server(&self, server: u64, number: u64) {
        let server = self.server(server);
        self.harness.cloud.edit_server(&server.id, |server| match number % 5 {
            0 => server.zone = ZONES[remainder(number / 5, 2)].to_owned(),
            1 => server.status = Status::Error,
            2 => server.kind = ServerKind::Xen,
            _ => {
                (server.zone, server.kind) = (ZONES[0].to_owned(), ServerKind::Kvm);
                server.status = Status::Active;
            }
        });
    }

    /// A backup that is refused or fails is none.
    async fn back_up(&mut self, server: u64) {
        let server = self.server(server);
        let Some(item) = self.admit_backup(&server).await else { return };
        let contents = self.contents(&server);
        self.harness.run_jobs_to_their_end().await;
        self.note_backup(&item, contents).await;
    }

    /// Where nothing is damaged nothing is an excuse.
    fn is_sound(&self) -> bool {
        self.damaged.is_empty()
    }

    async fn admit_backup(&self, server: &Server) -> Option<ItemId> {
        let context = self.harness.context().await;
        let begun = self.harness.app.protect(&context, protect_request(server, None)).await;
        begun.ok().map(|checkpoint| checkpoint.items[0].id.clone())
    }

    async fn note_backup(&mut self, id: &ItemId, contents: Vec<Vec<u8>>) {
        let context = self.harness.context().await;
        let item = self.harness.app.get_item(&context, id).await.unwrap();
        self.log.push(format!("backup {id} of {}: {:?}", item.source.id, item.snapshot));
        let is_available = item.status == ItemStatus::Available;
        assert!(is_available || !self.is_sound(), "{}: {item:?}", self.at);
        if is_available {
            self.made.push(Made { item, contents, is_kept: true, is_known: Some(true) });
        }
    }

    async fn delete(&mut self, number: u64) {
        let Some(at) = among(number, &self.made) else { return };
        let context = self.harness.context().await;
        let record = self.made[at].item.checkpoint_id.clone();
        if self.harness.app.delete(&context, &record, None).await.is_ok() {
            self.harness.run_jobs_to_their_end().await;
            self.note_deletion(at).await;
        }
    }

    /// What was damaged of it need not come back.
    async fn note_deletion(&mut self, at: usize) {
        let id = &self.made[at].item.id;
        let row = self.harness.store.find_item(&project(), id).await.unwrap();
        assert_eq!(row, None, "{}: it was deleted", self.at);
        self.made[at].is_known = Some(false);
        self.log.push(format!("backup {} deleted", self.made[at].item.id));
        self.made[at].is_kept = false;
        let snapshot = self.made[at].item.snapshot.as_ref().map(|named| named.snapshot.clone());
        self.damaged.retain(|(name, _)| {
            !matches!(name, ObjectName::Snapshot(id) if Some(id.to_string()) == snapshot)
        });
    }

    /// One that refuses changes nothing. What neither a snapshot nor the catalogue tells of is
    /// nobody's any more.
    async fn prune(&mut self) {
        let store = self.harness.places.store_of(&project());
        for made in self.made.iter_mut().filter(|made| made.is_kept) {
            let named = &made.item.snapshot.as_ref().unwrap().snapshot;
            let name = ObjectName::Snapshot(named.parse().unwrap());
            let row = self.harness.store.find_item(&project(), &made.item.id).await.unwrap();
            made.is_kept = row.is_some() || store.inner().find_size(&name).unwrap().is_some();
        }
        let pruned = try_prune(&self.harness, &project()).await;
        self.log.push(format!("pruned: {pruned:?}"));
        // Where something needed is missing it refuses, and that is well; also where an old
        // catalogue knows a backup that was deleted and pruned away since.
        let is_excused = match &pruned {
            Ok(_) | Err(RepositoryError::None) => true,
            Err(RepositoryError::Failed(text)) => {
                text.contains("has lost the snapshot and a part of the lists of backup")
            }
            Err(_) => !self.is_sound(),
        };
        assert!(is_excused, "{}: {pruned:?}", self.at);
        self.restart().await;
    }

    async fn restart(&mut self) {
        self.harness = self.harness.restarted_with_key(self.harness.key.clone()).await;
    }

    fn see_objects(&mut self) {
        let store = self.harness.places.store_of(&project());
        let known: BTreeSet<ObjectName> = self.objects.iter().copied().collect();
        for kind in [ObjectKind::Pack, ObjectKind::Index, ObjectKind::Snapshot] {
            let mut new = store.inner().list(kind).unwrap();
            new.retain(|listed| !known.contains(&listed.name));
            // Names are as random as the key; sizes are not.
            new.sort_by_key(|listed| (listed.size_bytes, listed.name));
            self.objects.extend(new.into_iter().map(|listed| listed.name));
        }
    }

    fn damage(&mut self, victim: u64, how: u64, number: u64) {
        let store = self.harness.places.store_of(&project());
        let there: Vec<(ObjectName, Vec<u8>)> = self
            .objects
            .iter()
            .filter(|name| self.damaged.iter().all(|(damaged, _)| damaged != *name))
            .filter_map(|name| Some((*name, store.inner().get(name, u64::MAX).ok()?)))
            .collect();
        let Some(at) = among(victim, &there) else { return };
        let (name, bytes) = there[at].clone();
        let same =
            |(other, _): &&(ObjectName, Vec<u8>)| other.kind() == name.kind() && *other != name;
        let other = there.iter().find(same).cloned();
        let length = bytes.len();
        let bad = match (how % 4, other) {
            (0, _) => None,
            (1, _) => {
                let mut flipped = bytes.clone();
                flipped[remainder(number, length)] ^= 1 << (number % 8);
                Some(flipped)
            }
            (2, _) => Some(bytes[..remainder(number, length)].to_vec()),
            (_, None) => None,
            (_, Some((other, others))) => {
                put(&self.harness, &other, Some(&bytes));
                self.damaged.push((other, others.clone()));
                Some(others)
            }
        };
        let kept = bad.as_ref().map(Vec::len);
        self.log.push(format!("{name} of {} bytes spoilt, {kept:?} are left", bytes.len()));
        put(&self.harness, &name, bad.as_deref());
        self.damaged.push((name, bytes));
    }

    /// Somebody brings back what was there, from a copy of the store: all of it, or one object.
    fn mend(&mut self, one: Option<u64>) {
        let mended = match one.and_then(|one| among(one / 2, &self.damaged)) {
            Some(at) => vec![self.damaged.swap_remove(at)],
            None => std::mem::take(&mut self.damaged),
        };
        for (name, bytes) in mended {
            put(&self.harness, &name, Some(&bytes));
        }
    }

    /// To its end, or to some call of the store.
    async fn watch(&self, calls: u64, how: u64) {
        let all = [Interruption::Outage, Interruption::Hiccup, Interruption::Shutdown];
        let how = all[remainder(how, all.len())];
        watch_interrupted(&self.harness, remainder(calls, 60), how).await;
    }

    /// A verification goes on where it was, as `kedge repo verify --budget` does it.
    async fn verify_slice(&mut self, budget: u64) {
        let now = self.harness.clock.now();
        let begun = self.verification.take().filter(|begun| begun.began_at <= now);
        let Verification { began_at, after, index } =
            begun.unwrap_or(Verification { began_at: now, after: None, index: None });
        let options = kedge_engine::VerifyOptions {
            threads: NonZeroUsize::MIN,
            cancel: CancelFlag::new(),
            after,
            bytes_max: 1 + budget % (2 * CHUNK as u64),
        };
        let repositories = self.harness.app.repositories();
        let verified = repositories.verify(&project(), options, Arc::new(NoProgress)).await;
        let Ok(slice) = verified else { return };
        let index = match index {
            Some(index) => index.intersection(&slice.index).copied().collect(),
            None => slice.index,
        };
        if slice.next.is_none() {
            repositories.record_reading(&project(), began_at, index).await.unwrap();
        } else {
            let index = Some(index);
            self.verification = Some(Verification { began_at, after: slice.next, index });
        }
    }

    async fn keep_catalogue(&mut self) {
        self.harness.store.close().await;
        std::fs::copy(self.catalogue(), self.folder.path().join("old.db")).unwrap();
        self.reopen().await;
        let mut known = Vec::new();
        for made in &self.made {
            if self.harness.store.find_item(&project(), &made.item.id).await.unwrap().is_some() {
                known.push(made.item.id.clone());
            }
        }
        self.old_catalogue = Some(known);
    }

    /// The one that was put aside knows nothing of what happened since.
    async fn bring_back_catalogue(&mut self) {
        let Some(known) = self.old_catalogue.clone() else { return };
        self.harness.store.close().await;
        self.remove_catalogue();
        std::fs::copy(self.folder.path().join("old.db"), self.catalogue()).unwrap();
        self.reopen().await;
        for made in &mut self.made {
            made.is_known = Some(known.contains(&made.item.id));
        }
    }

    async fn lose_catalogue(&mut self) {
        self.harness.store.close().await;
        self.remove_catalogue();
        self.reopen().await;
        for made in &mut self.made {
            made.is_known = Some(false);
        }
        self.rebuild().await;
    }

    fn remove_catalogue(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.catalogue().display()));
        }
    }

    fn catalogue(&self) -> PathBuf {
        self.folder.path().join("state.db")
    }

    async fn reopen(&mut self) {
        let store = Store::open(&self.catalogue()).await.unwrap();
        self.harness = self.harness.with_catalogue(store).await;
    }

    /// What cannot be read is not taken in. What was deleted stays so where the catalogue knows
    /// of it; and its snapshot is gone.
    async fn rebuild(&mut self) {
        let adopted = self.harness.app.adopt_records(&project()).await;
        let is_sound = self.is_sound();
        assert!(adopted.is_ok() || !is_sound || self.made.is_empty(), "{}: {adopted:?}", self.at);
        for made in self.made.iter_mut().filter(|made| made.is_kept) {
            if made.is_known == Some(false) {
                made.is_known = is_sound.then_some(true);
            }
        }
    }

    /// A watch and a backup while the clock is wrong.
    async fn wrong_clock(&mut self, by: u64, server: u64) {
        let day = 86_400;
        let by = i64::try_from(by % (40 * day)).unwrap() - 20 * 86_400;
        self.harness.clock.set_wrong_by(by);
        self.harness.app.watch(&CancelFlag::new()).await;
        self.back_up(server).await;
        self.see_calls();
        self.harness.clock.set_wrong_by(0);
    }

    /// A process dies in the middle of a job: from some call on nothing that it does reaches
    /// anything. Another takes over and ends the job.
    async fn kill(&mut self, what: u64, when: u64, number: u64) {
        match what % 3 {
            0 => {
                let server = self.server(number);
                let Some(item) = self.admit_backup(&server).await else { return };
                let contents = self.contents(&server);
                self.die(when).await;
                self.note_backup(&item, contents).await;
            }
            1 => {
                let Some(at) = among(number, &self.made) else { return };
                let context = self.harness.context().await;
                let record = self.made[at].item.checkpoint_id.clone();
                if self.harness.app.delete(&context, &record, None).await.is_ok() {
                    self.die(when).await;
                    self.note_deletion(at).await;
                }
            }
            _ => {
                let Some(at) = among(number, &self.made) else { return };
                let made = self.made[at].clone();
                let Some(target) = self.harness.cloud.server(&made.item.source.id) else { return };
                let question = question(&made.item, &target, 0);
                let context = self.harness.context().await;
                let begun =
                    self.harness.app.restore(&context, request(&made.item, question.clone())).await;
                let Ok(restore) = begun else { return };
                let before = self.contents(&target);
                self.die(when).await;
                let context = self.harness.context().await;
                let ended = self.harness.app.get_restore(&context, &restore.id).await.unwrap();
                if ended.status == RestoreStatus::Success {
                    let expected = overlaid(&made, &target, &question, before);
                    assert!(self.contents(&target) == expected, "{}: wrong bytes", self.at);
                } else {
                    assert!(!self.is_sound(), "{}: {}", self.at, ended.reason);
                }
            }
        }
    }

    async fn die(&mut self, when: u64) {
        let harness = &self.harness;
        let store = harness.places.store_of(&project());
        let calls = remainder(when / 3, 40);
        let (left, catalogue, cloud, broken) = (
            Arc::new(AtomicUsize::new(calls)),
            harness.store.clone(),
            harness.cloud.clone(),
            Arc::downgrade(&store),
        );
        let strike = move || {
            let last =
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if last.is_err() {
                catalogue.set_outage(Outage::Total);
                for op in SimOp::ALL {
                    cloud.fail_always(op, CloudError::retryable("the process is dead"));
                }
                if let Some(store) = broken.upgrade() {
                    store.break_down();
                }
            }
        };
        match when % 3 {
            0 => store.before_each_call(strike),
            1 => {
                let strike = Arc::new(strike);
                for op in SimOp::ALL {
                    let strike = strike.clone();
                    harness.cloud.before(op, move || strike());
                }
            }
            _ => harness.store.set_outage(Outage::After(calls as u64)),
        }
        // What the dead one thinks of it is nobody's business.
        let _ = harness.app.run_due_jobs("the one that dies").await;
        harness.store.set_outage(Outage::None);
        harness.cloud.clear_faults();
        harness.cloud.revoke_writers();
        store.before_each_call(|| ());
        store.repair();
        self.restart().await;
        self.harness.run_jobs_to_their_end().await;
    }

    /// What watching over the store and reading all of it back finds.
    async fn find_out(&self) {
        self.harness.app.watch(&CancelFlag::new()).await;
        let options = kedge_engine::VerifyOptions {
            threads: NonZeroUsize::MIN,
            cancel: CancelFlag::new(),
            after: None,
            bytes_max: u64::MAX,
        };
        let repositories = self.harness.app.repositories();
        let began_at = self.harness.clock.now();
        let verified = repositories.verify(&project(), options, Arc::new(NoProgress)).await;
        if let Ok(outcome) = verified {
            let _ = repositories.record_reading(&project(), began_at, outcome.index).await;
        }
        self.harness.app.watch(&CancelFlag::new()).await;
    }

    /// Something goes bad, and a restore is the first to meet it. What that was is brought
    /// back afterwards.
    async fn venture(&mut self, which: u64, number: u64, victim: u64) {
        let Some(at) = among(which, &self.made) else { return };
        self.see_objects();
        let known = self.damaged.len();
        if !number.is_multiple_of(4) {
            self.damage(victim, which / 7, number);
        }
        if victim.is_multiple_of(2) {
            self.restart().await;
        }
        self.restore_unseen(at).await;
        for (name, bytes) in self.damaged.split_off(known) {
            put(&self.harness, &name, Some(&bytes));
        }
    }

    /// Restores what nobody has looked at since it may have been damaged. A yes is a guess
    /// then; who acts on it finds out, and from then on everybody knows. Bytes are right, or
    /// the restore fails.
    async fn restore_unseen(&mut self, at: usize) {
        let made = self.made[at].clone();
        let target = self.server(self.own(&made));
        let question = question(&made.item, &target, 2);
        let context = self.harness.context().await;
        let asked = || self.harness.app.check_restorable(&context, vec![question.clone()]);
        // A no may be about what was mended and not read again.
        if asked().await.unwrap()[0].is_err() {
            return;
        }
        self.tally.ventured += 1;
        let truth = self.truth(&made).await;
        let before = self.contents(&target);
        let begun = self.harness.app.restore(&context, request(&made.item, question.clone())).await;
        let restore = begun.unwrap_or_else(|error| panic!("{}: after yes: {error}", self.at));
        self.harness.run_jobs_to_their_end().await;
        let ended = self.harness.app.get_restore(&context, &restore.id).await.unwrap();
        if ended.status == RestoreStatus::Success {
            let expected = overlaid(&made, &target, &question, before);
            assert!(self.contents(&target) == expected, "{}: wrong bytes", self.at);
            let explained = self.harness.app.explain_restorable(&context, vec![question.clone()]);
            let grade = explained.await.unwrap()[0].evidence.unwrap().grade;
            assert!(grade <= Grade::Read, "{}: it was read: {grade:?}", self.at);
            return;
        }
        assert_ne!(truth, Truth::Whole, "{}: {}", self.at, ended.reason);
        let said = asked().await.unwrap().remove(0).map(drop).map_err(|no| no.code());
        assert!(said.is_err(), "{}: yes again after {}; {:#?}", self.at, ended.reason, self.log);
        self.tally.found_out += 1;
    }

    /// Asks, and acts on the answer.
    async fn ask(&mut self, which: u64, target: u64, turn: u64) {
        let Some(at) = among(which, &self.made) else { return };
        self.see_objects();
        self.find_out().await;
        if turn.is_multiple_of(2) {
            self.restart().await;
        }
        let made = self.made[at].clone();
        let target = self.server(if turn.is_multiple_of(3) { target } else { self.own(&made) });
        let question = question(&made.item, &target, turn / 8);
        let truth = self.truth(&made).await;
        let mut right = self.right(&made, &target, &question, truth, None).await;
        let context = self.harness.context().await;
        let checked =
            self.harness.app.check_restorable(&context, vec![question.clone()]).await.unwrap();
        let said = checked[0].as_ref().map(drop).map_err(|no| no.code().as_str());
        self.tally.questions += 1;
        self.compare(said, right, truth);
        let is_late = turn / 24 % 3;
        if is_late == 1 {
            self.change_server(target_number(&self.servers, &target), turn);
            let target = self.harness.cloud.server(&target.id).unwrap();
            right = self.right(&made, &target, &question, truth, None).await;
        }
        self.harness.cloud.clear_write_log();
        let begun = self.harness.app.restore(&context, request(&made.item, question.clone())).await;
        let admitted = begun.as_ref().map(drop).map_err(|error| error.code().as_str());
        if is_late == 1 {
            self.compare(admitted, right, truth);
        } else {
            assert_eq!(admitted, said, "{}: the restore says another thing", self.at);
        }
        let before = self.contents(&target);
        let Ok(restore) = begun else {
            self.tally.refused += 1;
            self.harness.run_jobs().await;
            assert_eq!(self.harness.cloud.write_log(), [], "{}", self.at);
            return;
        };
        if is_late == 2 {
            self.change_server(target_number(&self.servers, &target), turn);
            let changed = self.harness.cloud.server(&target.id).unwrap();
            let own = Some(ItemStatus::Restoring);
            right = self.right(&made, &changed, &question, truth, own).await;
        }
        self.harness.run_jobs_to_their_end().await;
        let context = self.harness.context().await;
        let ended = self.harness.app.get_restore(&context, &restore.id).await.unwrap();
        if right.is_ok() {
            assert_eq!(ended.status, RestoreStatus::Success, "{}: {}", self.at, ended.reason);
            let expected = overlaid(&made, &target, &question, before);
            assert!(self.contents(&target) == expected, "{}: wrong bytes", self.at);
            self.tally.restored += 1;
        } else {
            assert_ne!(
                ended.status,
                RestoreStatus::Success,
                "{}: {right:?}, late {is_late}, {question:?} {target:?}",
                self.at
            );
            assert!(self.contents(&target) == before, "{}: written before it refused", self.at);
            let wrote =
                |what: &SimWrite| matches!(what, SimWrite::Marked { .. } | SimWrite::Wrote { .. });
            let log = self.harness.cloud.write_log();
            assert!(!log.iter().any(|entry| wrote(&entry.what)), "{}: {log:?}", self.at);
            self.tally.refused += 1;
        }
    }

    fn own(&self, made: &Made) -> u64 {
        self.servers.iter().position(|id| *id == made.item.source.id).unwrap() as u64
    }

    /// An answer is right, or an honest "unknown" in place of a no about bytes.
    fn compare(
        &mut self,
        said: Result<(), &'static str>,
        right: Result<(), &'static str>,
        truth: Truth,
    ) {
        if said == right {
            return;
        }
        let is_index = |(name, _): &(ObjectName, Vec<u8>)| name.kind() == ObjectKind::Index;
        let is_unknown = said == Err("KEDGE.0014") && self.damaged.iter().any(is_index);
        let is_about_bytes = right == Err("KEDGE.0013") || truth == Truth::NothingReadable;
        assert!(
            is_unknown && is_about_bytes,
            "{}: {said:?} said, {right:?} is right; {:#?}",
            self.at,
            self.log
        );
        self.tally.honestly_unknown += 1;
    }

    /// What the table says; to a restore that has moved the backup to this status itself, as
    /// to anybody before that.
    async fn right(
        &self,
        made: &Made,
        target: &Server,
        question: &Question,
        truth: Truth,
        own: Option<ItemStatus>,
    ) -> Result<(), &'static str> {
        let row = self.harness.store.find_item(&project(), &made.item.id).await.unwrap();
        if let Some(is_known) = made.is_known {
            assert_eq!(row.is_some(), is_known, "{}: {}, {:#?}", self.at, made.item.id, self.log);
        }
        let status = own.unwrap_or(ItemStatus::Available);
        assert!(row.as_ref().is_none_or(|row| row.status == status), "{}: {row:?}", self.at);
        let backup = row.map(|_| BackupDesc {
            owner: Owner::Mine,
            status: BackupStatus::Available,
            kind: kind(made.item.source.kind),
            zone: zone(&made.item.source.zone),
            disks: made
                .item
                .volumes
                .iter()
                .map(|volume| DiskDesc {
                    size_bytes: volume.source_size_bytes,
                    system: volume.role == VolumeRole::System,
                    encrypted: volume.encryption == Encryption::Encrypted,
                })
                .collect(),
            snapshot: match truth {
                Truth::Whole => Snapshot::Present,
                Truth::NoSnapshot => Snapshot::Missing,
                Truth::Damaged | Truth::NothingReadable => Snapshot::Damaged,
            },
        });
        let seen = self.harness.cloud.server(&target.id).unwrap();
        let world = World {
            backup,
            target: described(&seen),
            repository: Repository::Up,
            demand: Demand::Nothing,
        };
        let position = |id: &VolumeId| seen.volumes.iter().position(|volume| volume.id == *id);
        let own = |id: &VolumeBackupId| made.item.volumes.iter().position(|one| one.id == *id);
        let pairs = question.mapping.pairs().iter().map(|pair| {
            (
                own(&pair.backup).map_or(BackupRef::Stranger, BackupRef::Own),
                position(&pair.volume).map_or(VolumeRef::Elsewhere, VolumeRef::Attached),
            )
        });
        let ask = Ask { resource_type: SERVER_TYPE, pairs: pairs.collect(), item: ItemRef::Known };
        model::restorable(&world, &ask)
    }

    /// Whether every byte of a backup can be had, whatever anybody recorded.
    async fn truth(&self, made: &Made) -> Truth {
        let named = made.item.snapshot.as_ref().unwrap();
        let is_bad = |(name, _): &(ObjectName, Vec<u8>)| matches!(name, ObjectName::Snapshot(id) if id.to_string() == named.snapshot);
        let store = self.harness.places.store_of(&project());
        let name = ObjectName::Snapshot(named.snapshot.parse().unwrap());
        if self.damaged.iter().any(is_bad) || store.inner().find_size(&name).unwrap().is_none() {
            return Truth::NoSnapshot;
        }
        let places = MemoryPlaces::default();
        let copy = places.store_of(&project());
        for kind in [
            ObjectKind::Config,
            ObjectKind::Access,
            ObjectKind::Key,
            ObjectKind::Pack,
            ObjectKind::Index,
            ObjectKind::Snapshot,
        ] {
            for listed in store.inner().list(kind).unwrap() {
                let bytes = store.inner().get(&listed.name, u64::MAX).unwrap();
                copy.inner().put(&listed.name, &bytes).unwrap();
            }
        }
        let repositories = Repositories::new(
            Arc::new(places),
            self.harness.key.clone(),
            Store::open_in_memory().await.unwrap(),
            self.harness.clock.clone(),
            Kdf::Cheap,
        );
        let Ok(repository) = repositories.get(&project()).await else {
            return Truth::NothingReadable;
        };
        let made = made.clone();
        tokio::task::spawn_blocking(move || {
            let id = made.item.snapshot.as_ref().unwrap().snapshot.parse().unwrap();
            let Ok(view) = repository.open_snapshot(id) else { return Truth::Damaged };
            for (backup, content) in made.item.volumes.iter().zip(&made.contents) {
                let folder = &backup.stored.as_ref().unwrap().folder;
                let Ok(volume) = view.volume(folder) else { return Truth::Damaged };
                let sink = Memory(Mutex::new(vec![0xaa; content.len()]));
                let options = ReadOptions { threads: NonZeroUsize::MIN, cancel: CancelFlag::new() };
                let read =
                    repository.restore_volume(&volume, &sink, &OpenGate, &options, &NoProgress);
                if read.is_err() {
                    return Truth::Damaged;
                }
                assert!(*sink.0.lock().unwrap() == *content, "bytes that were never there");
            }
            Truth::Whole
        })
        .await
        .unwrap()
    }

    /// With everything back that was damaged, every backup that nobody deleted reads as it
    /// was made.
    async fn nothing_is_lost(&self) {
        for made in self.made.iter().filter(|made| made.is_kept) {
            let truth = self.truth(made).await;
            let id = &made.item.id;
            assert_eq!(truth, Truth::Whole, "{}: backup {id} is lost; {:#?}", self.at, self.log);
        }
    }
}

/// Whether a backup's bytes can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Whole,
    Damaged,
    NoSnapshot,
    /// Nor those of any other.
    NothingReadable,
}

struct Memory(Mutex<Vec<u8>>);

impl Sink for Memory {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let offset = usize::try_from(offset).unwrap();
        self.0.lock().unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), SinkError> {
        let (offset, length) = (usize::try_from(offset).unwrap(), usize::try_from(length).unwrap());
        self.0.lock().unwrap()[offset..offset + length].fill(0);
        Ok(())
    }
}

fn put(harness: &Harness, name: &ObjectName, bytes: Option<&[u8]>) {
    let store = harness.places.store_of(&project());
    store.inner().delete(name).unwrap();
    if let Some(bytes) = bytes {
        store.inner().put(name, bytes).unwrap();
    }
}

fn target_number(servers: &[ServerId], target: &Server) -> u64 {
    servers.iter().position(|id| *id == target.id).unwrap() as u64
}

/// Each disk to the one it came from, or to the one at the same place; the numbers swap two,
/// or leave one out.
fn question(item: &Item, target: &Server, number: u64) -> Question {
    let mut pairs: Vec<Pair> = item
        .volumes
        .iter()
        .zip(&target.volumes)
        .map(|(backup, volume)| Pair { backup: backup.id.clone(), volume: volume.id.clone() })
        .collect();
    match number % 6 {
        0 => drop(pairs.pop()),
        1 if pairs.len() > 1 => {
            let first = pairs[0].volume.clone();
            pairs[0].volume = std::mem::replace(&mut pairs[1].volume, first);
        }
        _ => {}
    }
    Question {
        item: item.id.clone(),
        server: target.id.clone(),
        resource_type: SERVER_TYPE.to_owned(),
        mapping: Mapping::new(pairs).unwrap(),
    }
}

fn request(item: &Item, question: Question) -> RestoreRequest {
    let checkpoint = item.checkpoint_id.clone();
    RestoreRequest { checkpoint, question, power_on: PowerOn::Yes, plan: None }
}

/// The backup's bytes where the mapping says, the target's own everywhere else.
fn overlaid(
    made: &Made,
    target: &Server,
    question: &Question,
    mut before: Vec<Vec<u8>>,
) -> Vec<Vec<u8>> {
    for pair in question.mapping.pairs() {
        let of = made.item.volumes.iter().position(|one| one.id == pair.backup).unwrap();
        let to = target.volumes.iter().position(|volume| volume.id == pair.volume).unwrap();
        before[to][..made.contents[of].len()].copy_from_slice(&made.contents[of]);
    }
    before
}

fn zone(text: &str) -> &'static str {
    ZONES.into_iter().find(|zone| *zone == text).unwrap()
}

fn kind(kind: ServerKind) -> Kind {
    match kind {
        ServerKind::Kvm => Kind::Kvm,
        ServerKind::Xen => Kind::Xen,
        ServerKind::BareMetal => Kind::BareMetal,
    }
}

fn described(server: &Server) -> ServerDesc {
    ServerDesc {
        exists: Exists::Mine,
        kind: kind(server.kind),
        status: match server.status {
            Status::Active => ServerStatus::Active,
            Status::Shutoff => ServerStatus::Shutoff,
            Status::Error => ServerStatus::Error,
            other => panic!("nobody makes a server {other:?}"),
        },
        zone: zone(&server.zone),
        disks: server
            .volumes
            .iter()
            .map(|volume| TargetDisk {
                size_bytes: volume.size_bytes,
                system: volume.role == VolumeRole::System,
                shared: volume.sharing == Sharing::Shared,
                status: match volume.status {
                    VolumeStatus::Healthy => DiskStatus::Healthy,
                    VolumeStatus::Error => DiskStatus::Error,
                    VolumeStatus::Busy => DiskStatus::Busy,
                },
                encrypted: volume.encryption == Encryption::Encrypted,
                held: false,
                half_written: volume.content == Content::HalfWritten,
            })
            .collect(),
        held: Held::None,
    }
}
