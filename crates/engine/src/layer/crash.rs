//! A file system in memory that knows what a crash would leave of it.
//!
//! POSIX promises little: a file's bytes are safe once the file was synced, a name
//! once its directory was. Until then each may survive, be lost, or survive in part.
//! [`SimulatedDisk`] does what it is told like any disk, and notes every change, so that
//! afterwards the disk as it was before any of them can be looked at, either with the
//! process killed or with the power gone.
//!
//! Invariant: what a synced file held under a name in a synced directory survives
//! every [`Loss`]; nothing else can be relied on.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{OsStr, OsString},
    fmt,
    io::{self, ErrorKind},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    vec,
};

use crate::backend::{DirEntry, Disk, DiskFile, EntryKind};

/// Drives write whole sectors.
const SECTOR_BYTES: usize = 512;

/// What becomes of everything not synced when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// It was written in time.
    Nothing,
    /// It is gone.
    AllUnsynced,
    /// Names survive up to a moment, as a journal keeps them; bytes are torn.
    Journal {
        /// Decides on the moment and on every file.
        seed: u64,
    },
    /// Each name survives or not; bytes are torn.
    Torn {
        /// Decides on every name and every file.
        seed: u64,
    },
}

/// A file system in memory. Clones are the same disk.
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

struct State {
    start: Tree,
    now: Tree,
    steps: Vec<Step>,
    locked: HashSet<usize>,
}

/// A change that was made. Files are called by their numbers, for they lose their names.
#[derive(Clone)]
enum Step {
    CreateDir(PathBuf),
    SyncDir(PathBuf),
    CreateFile(PathBuf),
    Write(usize, Arc<Vec<u8>>),
    SyncFile(usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Default for SimulatedDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedDisk").field("steps", &self.steps()).finish_non_exhaustive()
    }
}

impl SimulatedDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::holding(Tree::new())
    }

    fn holding(tree: Tree) -> Self {
        let (start, steps, locked) = (tree.clone(), Vec::new(), HashSet::new());
        Self(Arc::new(Mutex::new(State { start, now: tree, steps, locked })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many changes were made.
    pub fn steps(&self) -> usize {
        self.state().steps.len()
    }

    /// All files with their bytes.
    pub fn files(&self) -> BTreeMap<PathBuf, Arc<Vec<u8>>> {
        self.state().now.files()
    }

    /// The disk as it was before its first change, to be led through all of them.
    pub fn replay(&self) -> Replay {
        let state = self.state();
        Replay { tree: state.start.clone(), steps: state.steps.clone().into_iter() }
    }

    /// What is left when the power goes now.
    pub fn lose_power(&self, loss: Loss) -> Self {
        Self::holding(self.state().now.survivor(loss))
    }

    fn change(&self, step: Step) -> io::Result<usize> {
        let mut state = self.state();
        let number = state.now.apply(&step)?;
        state.steps.push(step);
        Ok(number)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let number = self.state().now.find(path)?;
        Ok(Box::new(OpenFile { disk: self.clone(), number, has_lock: Mutex::new(false) }))
    }
}

/// A disk on its way through its changes.
pub struct Replay {
    tree: Tree,
    steps: vec::IntoIter<Step>,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").field("steps_left", &self.steps.len()).finish_non_exhaustive()
    }
}

impl Replay {
    /// Makes the next change; says whether there was one.
    pub fn advance(&mut self) -> bool {
        let Some(step) = self.steps.next() else { return false };
        // It succeeded on the same disk before.
        self.tree.apply(&step).is_ok()
    }

    /// The disk when the process is killed here: nothing is lost, no lock is left, and
    /// what was not synced still is not.
    pub fn kill(&self) -> SimulatedDisk {
        SimulatedDisk::holding(self.tree.clone())
    }

    /// The disk when the power goes here.
    pub fn lose_power(&self, loss: Loss) -> SimulatedDisk {
        SimulatedDisk::holding(self.tree.survivor(loss))
    }
}

#[derive(Clone)]
enum Node {
    Dir(Dir),
    File(Content),
}

#[derive(Clone, Default)]
struct Dir {
    now: BTreeMap<OsString, usize>,
    durable: BTreeMap<OsString, usize>,
    /// Changes since the last sync, numbered over the whole disk.
    pending: Vec<(u64, OsString, Option<usize>)>,
}

#[derive(Clone, Default)]
struct Content {
    now: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
}

/// Files and directories by number; 0 is the root.
#[derive(Clone)]
struct Tree {
    nodes: Vec<Node>,
    changes: u64,
}

fn absent() -> io::Error {
    ErrorKind::NotFound.into()
}

impl Tree {
    fn new() -> Self {
        Self { nodes: vec![Node::Dir(Dir::default())], changes: 0 }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut at = 0;
        for component in path.components() {
            if let Component::Normal(name) = component {
                at = *self.dir(at)?.now.get(name).ok_or_else(absent)?;
            }
        }
        Ok(at)
    }

    fn dir(&self, number: usize) -> io::Result<&Dir> {
        match self.nodes.get(number) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(ErrorKind::NotADirectory.into()),
            None => Err(absent()),
        }
    }

    fn dir_mut(&mut self, number: usize) -> io::Result<&mut Dir> {
        match self.nodes.get_mut(number) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(ErrorKind::NotADirectory.into()),
            None => Err(absent()),
        }
    }

    fn content(&self, number: usize) -> io::Result<&Content> {
        match self.nodes.get(number) {
            Some(Node::File(content)) => Ok(content),
            Some(Node::Dir(_)) => Err(ErrorKind::IsADirectory.into()),
            None => Err(absent()),
        }
    }

    fn content_mut(&mut self, number: usize) -> io::Result<&mut Content> {
        match self.nodes.get_mut(number) {
            Some(Node::File(content)) => Ok(content),
            Some(Node::Dir(_)) => Err(ErrorKind::IsADirectory.into()),
            None => Err(absent()),
        }
    }

    fn kind(&self, number: usize) -> io::Result<EntryKind> {
        match self.nodes.get(number) {
            Some(Node::File(content)) => {
                Ok(EntryKind::File { size_bytes: content.now.len() as u64 })
            }
            Some(Node::Dir(_)) => Ok(EntryKind::Dir),
            None => Err(absent()),
        }
    }

    /// Makes a change; returns the number of the node made, if one was.
    fn apply(&mut self, step: &Step) -> io::Result<usize> {
        match step {
            Step::CreateDir(path) => self.create(path, Node::Dir(Dir::default())),
            Step::CreateFile(path) => self.create(path, Node::File(Content::default())),
            Step::SyncDir(path) => {
                let number = self.find(path)?;
                let dir = self.dir_mut(number)?;
                dir.durable = dir.now.clone();
                dir.pending.clear();
                Ok(number)
            }
            Step::Write(number, bytes) => {
                let content = self.content_mut(*number)?;
                if content.now.is_empty() {
                    content.now = Arc::clone(bytes);
                } else {
                    Arc::make_mut(&mut content.now).extend_from_slice(bytes);
                }
                Ok(*number)
            }
            Step::SyncFile(number) => {
                let content = self.content_mut(*number)?;
                content.durable = Arc::clone(&content.now);
                Ok(*number)
            }
            Step::Rename(from, to) => {
                let number = self.find(from)?;
                self.content(number)?;
                self.enter(to, Some(number))?;
                self.enter(from, None)?;
                Ok(number)
            }
            Step::Remove(path) => {
                let number = self.find(path)?;
                self.content(number)?;
                self.enter(path, None)?;
                Ok(number)
            }
        }
    }

    fn create(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        match self.find(path) {
            Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let number = self.nodes.len();
        self.enter(path, Some(number))?;
        self.nodes.push(node);
        Ok(number)
    }

    /// Gives a name to a node, or takes it away.
    fn enter(&mut self, path: &Path, node: Option<usize>) -> io::Result<()> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
        let parent = self.find(path.parent().unwrap_or(Path::new("")))?;
        self.changes += 1;
        let change = self.changes;
        let dir = self.dir_mut(parent)?;
        set(&mut dir.now, &name, node);
        dir.pending.push((change, name, node));
        Ok(())
    }

    fn is_linked(&self, number: usize) -> bool {
        self.nodes.iter().any(|node| match node {
            Node::Dir(dir) => dir.now.values().any(|other| *other == number),
            Node::File(_) => false,
        })
    }

    fn files(&self) -> BTreeMap<PathBuf, Arc<Vec<u8>>> {
        let mut files = BTreeMap::new();
        let mut open = vec![(PathBuf::from("/"), 0)];
        while let Some((path, number)) = open.pop() {
            match self.nodes.get(number) {
                Some(Node::Dir(dir)) => {
                    let below = dir.now.iter().map(|(name, number)| (path.join(name), *number));
                    open.extend(below);
                }
                Some(Node::File(content)) => {
                    files.insert(path, Arc::clone(&content.now));
                }
                None => {}
            }
        }
        files
    }

    /// What a power failure leaves. All of it is durable.
    fn survivor(&self, loss: Loss) -> Self {
        let mut left = Self { nodes: Vec::new(), changes: 0 };
        let mut chance = match loss {
            Loss::Nothing | Loss::AllUnsynced => Chance(0),
            Loss::Journal { seed } | Loss::Torn { seed } => Chance(seed),
        };
        let last = match loss {
            Loss::Journal { .. } => self.pending_at(chance.next()),
            Loss::Nothing | Loss::AllUnsynced | Loss::Torn { .. } => 0,
        };
        self.survive(0, loss, last, &mut chance, &mut left, &mut HashMap::new());
        left
    }

    /// The number of one of the pending changes, or 0.
    fn pending_at(&self, choice: u64) -> u64 {
        let mut pending: Vec<u64> = vec![0];
        for node in &self.nodes {
            if let Node::Dir(dir) = node {
                pending.extend(dir.pending.iter().map(|(change, ..)| *change));
            }
        }
        pending.sort_unstable();
        let at = choice % pending.len() as u64;
        usize::try_from(at).ok().and_then(|at| pending.get(at)).copied().unwrap_or(0)
    }

    /// Copies a node and what lies below it; a file with two names is copied once.
    fn survive(
        &self,
        number: usize,
        loss: Loss,
        last: u64,
        chance: &mut Chance,
        left: &mut Self,
        copies: &mut HashMap<usize, usize>,
    ) -> usize {
        if let Some(copy) = copies.get(&number) {
            return *copy;
        }
        let copy = left.nodes.len();
        copies.insert(number, copy);
        match self.nodes.get(number) {
            Some(Node::File(content)) => {
                let bytes = content.survivor(loss, chance);
                left.nodes.push(Node::File(Content { now: Arc::clone(&bytes), durable: bytes }));
            }
            Some(Node::Dir(dir)) => {
                left.nodes.push(Node::Dir(Dir::default()));
                let mut names = dir.durable.clone();
                for (change, name, node) in &dir.pending {
                    let is_kept = match loss {
                        Loss::Nothing => true,
                        Loss::AllUnsynced => false,
                        Loss::Journal { .. } => *change <= last,
                        Loss::Torn { .. } => chance.next().is_multiple_of(2),
                    };
                    if is_kept {
                        set(&mut names, name, *node);
                    }
                }
                let mut copied = BTreeMap::new();
                for (name, node) in names {
                    let node = self.survive(node, loss, last, chance, left, copies);
                    copied.insert(name, node);
                }
                let dir = Dir { now: copied.clone(), durable: copied, pending: Vec::new() };
                if let Some(node) = left.nodes.get_mut(copy) {
                    *node = Node::Dir(dir);
                }
            }
            None => {}
        }
        copy
    }
}

fn set(names: &mut BTreeMap<OsString, usize>, name: &OsStr, node: Option<usize>) {
    match node {
        Some(node) => names.insert(name.to_owned(), node),
        None => names.remove(name),
    };
}

impl Content {
    fn survivor(&self, loss: Loss, chance: &mut Chance) -> Arc<Vec<u8>> {
        if Arc::ptr_eq(&self.now, &self.durable) {
            return Arc::clone(&self.durable);
        }
        match loss {
            Loss::Nothing => Arc::clone(&self.now),
            Loss::AllUnsynced => Arc::clone(&self.durable),
            Loss::Journal { .. } | Loss::Torn { .. } => match chance.next() % 5 {
                0 => Arc::clone(&self.now),
                1 => Arc::clone(&self.durable),
                2 => Arc::new(self.now[..chance.below(self.now.len())].to_vec()),
                // Its length was written, and its bytes up to a place.
                3 => {
                    let mut bytes = self.now[..chance.below(self.now.len())].to_vec();
                    bytes.resize(self.now.len(), 0);
                    Arc::new(bytes)
                }
                _ => Arc::new(self.torn_sectors(chance)),
            },
        }
    }

    /// Every sector as it is, as it was, or zero.
    fn torn_sectors(&self, chance: &mut Chance) -> Vec<u8> {
        let mut bytes = self.durable.to_vec();
        bytes.resize(self.now.len(), 0);
        let sectors = bytes.chunks_mut(SECTOR_BYTES).zip(self.now.chunks(SECTOR_BYTES));
        for (sector, written) in sectors {
            match chance.next() % 3 {
                0 => sector.copy_from_slice(written),
                1 => {}
                _ => sector.fill(0),
            }
        }
        bytes
    }
}

/// Reproducible choices (`SplitMix64`).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound as u64).max(1)).unwrap_or(0)
    }
}

impl Disk for SimulatedDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change(Step::CreateDir(path.to_owned())).map(drop)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.change(Step::SyncDir(path.to_owned())).map(drop)
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let state = self.state();
        let dir = state.now.dir(state.now.find(path)?)?;
        let entry = |(name, number): (&OsString, &usize)| {
            Ok(DirEntry { name: name.clone(), kind: state.now.kind(*number)? })
        };
        dir.now.iter().map(entry).collect()
    }

    fn stat(&self, path: &Path) -> io::Result<EntryKind> {
        let state = self.state();
        state.now.kind(state.now.find(path)?)
    }

    fn create_file(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.change(Step::CreateFile(path.to_owned()))?;
        self.open(path)
    }

    fn open_file(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path)
    }

    fn open_to_lock(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(Step::Rename(from.to_owned(), to.to_owned())).map(drop)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change(Step::Remove(path.to_owned())).map(drop)
    }
}

struct OpenFile {
    disk: SimulatedDisk,
    number: usize,
    has_lock: Mutex<bool>,
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFile").field("number", &self.number).finish_non_exhaustive()
    }
}

impl OpenFile {
    fn has_lock(&self) -> MutexGuard<'_, bool> {
        self.has_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if *self.has_lock() {
            self.disk.state().locked.remove(&self.number);
        }
    }
}

impl DiskFile for OpenFile {
    fn try_lock(&self) -> bool {
        let mut has_lock = self.has_lock();
        *has_lock = *has_lock || self.disk.state().locked.insert(self.number);
        *has_lock
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(self.disk.state().now.is_linked(self.number))
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.change(Step::Write(self.number, Arc::new(bytes.to_vec()))).map(drop)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change(Step::SyncFile(self.number)).map(drop)
    }

    fn read_up_to(&mut self, bytes_max: u64) -> io::Result<Vec<u8>> {
        let state = self.disk.state();
        let bytes = &state.now.content(self.number)?.now;
        let len = usize::try_from(bytes_max).map_or(bytes.len(), |max| bytes.len().min(max));
        Ok(bytes[..len].to_vec())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.state();
        let bytes = &state.now.content(self.number)?.now;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.checked_add(buf.len()).ok_or(ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes.get(start..end).ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(disk: &SimulatedDisk, path: &str, bytes: &[u8]) -> Box<dyn DiskFile> {
        let mut file = disk.create_file(Path::new(path)).unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn sync_root(disk: &SimulatedDisk) {
        disk.sync_dir(Path::new("/")).unwrap();
    }

    fn read(disk: &SimulatedDisk, path: &str) -> Option<Vec<u8>> {
        disk.files().get(Path::new(path)).map(|bytes| bytes.to_vec())
    }

    fn losses() -> impl Iterator<Item = Loss> {
        let seeded = (0..200).flat_map(|seed| [Loss::Journal { seed }, Loss::Torn { seed }]);
        [Loss::Nothing, Loss::AllUnsynced].into_iter().chain(seeded)
    }

    #[test]
    fn what_was_synced_with_its_name_survives_every_loss() {
        let disk = SimulatedDisk::new();
        write(&disk, "/a", b"bytes").sync().unwrap();
        sync_root(&disk);
        write(&disk, "/b", b"more");
        for loss in losses() {
            assert_eq!(read(&disk.lose_power(loss), "/a").as_deref(), Some(&b"bytes"[..]));
        }
    }

    #[test]
    fn bytes_without_a_sync_come_back_torn_in_every_way() {
        let disk = SimulatedDisk::new();
        write(&disk, "/a", &[7; 4 * SECTOR_BYTES]);
        sync_root(&disk);
        let left: HashSet<_> = losses().filter_map(|l| read(&disk.lose_power(l), "/a")).collect();
        let is_hole = |bytes: &Vec<u8>| {
            bytes.len() == 4 * SECTOR_BYTES && bytes[0] == 0 && bytes[3 * SECTOR_BYTES] == 7
        };
        assert!(left.contains(&vec![7; 4 * SECTOR_BYTES]));
        assert!(left.contains(&Vec::new()));
        assert!(left.iter().any(|bytes| !bytes.is_empty() && bytes.len() < 4 * SECTOR_BYTES));
        assert!(left.iter().any(is_hole));
    }

    #[test]
    fn a_name_without_a_sync_of_its_directory_may_be_lost_and_a_removed_one_may_come_back() {
        let disk = SimulatedDisk::new();
        write(&disk, "/old", b"old").sync().unwrap();
        sync_root(&disk);
        write(&disk, "/new", b"new").sync().unwrap();
        disk.remove_file(Path::new("/old")).unwrap();
        let left: HashSet<_> = losses()
            .map(|loss| disk.lose_power(loss))
            .map(|disk| (read(&disk, "/old").is_some(), read(&disk, "/new").is_some()))
            .collect();
        assert_eq!(left.len(), 4);
        // A journal keeps the order.
        let kept = |seed| disk.lose_power(Loss::Journal { seed });
        let out_of_order =
            |disk: &SimulatedDisk| read(disk, "/old").is_none() && read(disk, "/new").is_none();
        assert!(!(0..100).map(kept).any(|disk| out_of_order(&disk)));
    }

    #[test]
    fn a_directory_without_a_name_takes_everything_in_it_away() {
        let disk = SimulatedDisk::new();
        disk.create_dir(Path::new("/d")).unwrap();
        write(&disk, "/d/a", b"bytes").sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        assert_eq!(read(&disk.lose_power(Loss::AllUnsynced), "/d/a"), None);
        sync_root(&disk);
        assert!(read(&disk.lose_power(Loss::AllUnsynced), "/d/a").is_some());
    }

    #[test]
    fn a_replay_passes_every_state_and_a_kill_loses_nothing_but_locks() {
        let disk = SimulatedDisk::new();
        let file = write(&disk, "/a", b"bytes");
        assert!(file.try_lock());
        assert!(!disk.open_to_lock(Path::new("/a")).unwrap().try_lock());
        disk.rename(Path::new("/a"), Path::new("/b")).unwrap();
        let mut replay = disk.replay();
        let mut seen = vec![replay.kill().files()];
        while replay.advance() {
            seen.push(replay.kill().files());
        }
        assert_eq!(seen.len(), disk.steps() + 1);
        assert_eq!(seen.last(), Some(&disk.files()));
        let killed = replay.kill();
        assert!(killed.open_to_lock(Path::new("/b")).unwrap().try_lock());
        assert_eq!(read(&killed.lose_power(Loss::AllUnsynced), "/b"), None);
        drop(file);
        assert!(disk.open_to_lock(Path::new("/b")).unwrap().try_lock());
    }
}
