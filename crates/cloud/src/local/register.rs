//! Declarations as they were read, so that looking up one server does not mean reading
//! those of all.
//!
//! Invariant: what is taken from here is what reading everything again would give. One
//! thing is noticed later: that a second folder has come to declare the same server.
//! Whatever is done to a server begins with reading everything.
//!
//! A file tells by its times that it was changed, but not that it was within the same tick
//! as our reading. So a reading counts only if the file had looked the same for longer than
//! the tick of any file system when it was read.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kedge_core::ids::ServerId;
use rustix::time::{ClockId, clock_gettime};

use super::config::Declared;
use super::hold::Identity;

/// The coarsest file systems tick every two seconds.
const TICK: Duration = Duration::from_secs(3);

/// Time that never goes back; its zero means nothing.
pub type AskElapsed = fn() -> Duration;

/// Runs on while the machine sleeps, as the clocks of other machines' file systems do.
pub(super) fn elapsed() -> Duration {
    let at = clock_gettime(ClockId::Boottime);
    let secs = u64::try_from(at.tv_sec).unwrap_or(0);
    Duration::new(secs, u32::try_from(at.tv_nsec).unwrap_or(0))
}

/// What the latest reading found.
#[derive(Debug, Default)]
pub(super) struct Register(Mutex<Arc<Reading>>);

/// One reading of all declarations.
#[derive(Debug, Default)]
pub(super) struct Reading {
    root: Option<Look>,
    entries: HashMap<OsString, Entry>,
    /// `None` where several folders declare the server.
    folders: HashMap<ServerId, Option<OsString>>,
}

#[derive(Clone, Debug)]
struct Entry {
    look: Look,
    declared: Arc<Declared>,
}

/// How a file looked.
#[derive(Clone, Copy, Debug)]
struct Look {
    identity: Identity,
    /// When it was first seen to look so.
    since: Duration,
    /// Whether it was read after it had looked so for long enough.
    counts: bool,
}

impl Look {
    /// How a file looks that is about to be read.
    fn next(before: Option<&Self>, identity: Identity, now: Duration) -> Self {
        match before.filter(|before| before.identity == identity) {
            Some(before) => {
                let is_old = now.saturating_sub(before.since) >= TICK;
                Self { counts: before.counts || is_old, ..*before }
            }
            None => Self { identity, since: now, counts: false },
        }
    }

    fn holds(&self, identity: &Identity) -> bool {
        self.counts && self.identity == *identity
    }
}

impl Register {
    /// What the latest reading found.
    pub(super) fn latest(&self) -> Arc<Reading> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a reading in place of the latest.
    pub(super) fn keep(&self, reading: Reading) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(reading);
    }
}

impl Reading {
    /// A reading of a folder that looks so, after another.
    pub(super) fn begin(before: &Self, root: Identity, now: Duration) -> Self {
        let root = Some(Look::next(before.root.as_ref(), root, now));
        Self { root, ..Self::default() }
    }

    /// The server that this folder declares by a file that looks so, while it holds.
    pub(super) fn declared_in(
        &self,
        folder: &OsStr,
        identity: &Identity,
    ) -> Option<&Arc<Declared>> {
        let entry = self.entries.get(folder).filter(|entry| entry.look.holds(identity))?;
        Some(&entry.declared)
    }

    /// The folder that alone declares a server, while the folder of all looks so.
    pub(super) fn folder_of(&self, server: &ServerId, root: &Identity) -> Option<&OsStr> {
        self.root.filter(|look| look.holds(root))?;
        self.folders.get(server)?.as_deref()
    }

    /// Notes what a folder declares by a file that looked so when it was read.
    pub(super) fn note(
        &mut self,
        before: &Self,
        folder: &OsStr,
        identity: Identity,
        now: Duration,
        declared: &Arc<Declared>,
    ) {
        let look = before.entries.get(folder).map(|entry| &entry.look);
        let look = Look::next(look, identity, now);
        let known = self.folders.entry(declared.id.clone());
        known.and_modify(|one| *one = None).or_insert_with(|| Some(folder.to_owned()));
        self.entries.insert(folder.to_owned(), Entry { look, declared: Arc::clone(declared) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(text: &str) -> Identity {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Identity::of(file.as_file()).unwrap()
    }

    fn declared(id: &str) -> Arc<Declared> {
        let text = format!(
            "id = \"{id}\"\nproject = \"p\"\nname = \"n\"\nkind = \"kvm\"\nzone = \"z\"\n\
             ram_mb = 1\nvcpus = 1\n"
        );
        Arc::new(Declared::parse(text.as_bytes()).unwrap())
    }

    struct Site {
        root: Identity,
        files: Vec<(&'static str, Identity, Arc<Declared>)>,
    }

    impl Site {
        fn read(&self, before: &Reading, now: Duration) -> Reading {
            let mut reading = Reading::begin(before, self.root, now);
            for (folder, identity, declared) in &self.files {
                reading.note(before, OsStr::new(folder), *identity, now, declared);
            }
            reading
        }
    }

    const ID: &str = "5f0c2a1e-0000-4000-8000-0000000000d0";

    #[test]
    fn a_reading_counts_once_what_was_read_had_looked_the_same_for_long() {
        let (id, folder) = (ServerId::asked(ID), OsStr::new("a"));
        let site = Site { root: identity("1"), files: vec![("a", identity("22"), declared(ID))] };
        let file = site.files[0].1;
        let began = TICK;
        let first = site.read(&Reading::default(), began);
        let soon = site.read(&first, began + TICK / 2);
        let later = site.read(&soon, began + TICK);
        for (reading, counts) in [(&first, false), (&soon, false), (&later, true)] {
            assert_eq!(reading.folder_of(&id, &site.root).is_some(), counts);
            assert_eq!(reading.declared_in(folder, &file).is_some(), counts);
        }
        assert!(later.folder_of(&id, &identity("333")).is_none(), "the folder of all changed");
        assert!(later.declared_in(folder, &identity("4444")).is_none(), "the file changed");
        let changed = Site { files: vec![("a", identity("55555"), declared(ID))], ..site };
        let reading = changed.read(&later, began + TICK * 2);
        assert!(reading.declared_in(folder, &changed.files[0].1).is_none(), "read too soon");
    }

    #[test]
    fn what_two_folders_declare_is_in_none() {
        let files = vec![("a", identity("1"), declared(ID)), ("b", identity("22"), declared(ID))];
        let site = Site { root: identity("333"), files };
        let began = TICK;
        let first = site.read(&Reading::default(), began);
        let later = site.read(&first, began + TICK);
        assert_eq!(later.folder_of(&ServerId::asked(ID), &site.root), None);
    }
}
