//! restic's locks: objects that say who uses the repository, so that nobody prunes it
//! meanwhile.
//!
//! A lock of ours carries a field restic ignores, so that it is told from one of a restic
//! run by a user of the same name. Whoever is to end is deprived of its lock object, and
//! looks for it after everything that must not have happened without: of two that write
//! first and look then, one sees the other. No clock takes part: a lock object counts
//! while it is there, as it does for restic, whose `unlock` is what removes a forgotten
//! one.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{ObjectKind, ObjectName},
    error::EngineError,
    id::LockId,
    time::Timestamp,
    vault::Vault,
};

/// Who holds a lock of ours; the session is the host.
const LOCK_USER: &str = "kedge";
/// What makes a lock ours.
const PROGRAM: &str = "kedge";
/// Someone who is deprived of a lock puts no second one after the first look.
const REMOVE_TRIES: usize = 8;

#[derive(Serialize, Deserialize)]
struct LockFile {
    time: String,
    exclusive: bool,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    pid: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    program: String,
}

impl LockFile {
    fn is_ours(&self) -> bool {
        self.program == PROGRAM
    }
}

/// Whether a lock tolerates others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    /// Keeps everyone else's programs out. Our own sessions go by marks instead, and do
    /// not mind.
    Exclusive,
}

/// A lock object of ours, renewed under the same name.
#[derive(Debug)]
pub(crate) struct Held {
    name: String,
    mode: Mode,
    /// Newest last; more than one while a renewal is under way.
    ids: Mutex<Vec<LockId>>,
    is_lost: AtomicBool,
}

impl Held {
    pub(crate) fn put(
        vault: &Vault,
        name: &str,
        mode: Mode,
        now: Timestamp,
    ) -> Result<Self, EngineError> {
        let ids = Mutex::new(vec![put(vault, name, mode, now)?]);
        Ok(Self { name: name.into(), mode, ids, is_lost: AtomicBool::new(false) })
    }

    fn ids(&self) -> MutexGuard<'_, Vec<LockId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a look at the store has found the lock gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    fn lose(&self) -> EngineError {
        self.is_lost.store(true, Ordering::Relaxed);
        EngineError::LockLost
    }

    /// Fails unless the lock object is in the store.
    pub(crate) fn require(&self, vault: &Vault) -> Result<(), EngineError> {
        // Held while looking, or a renewal might take the lock object away meanwhile.
        let ids = self.ids();
        match ids.last() {
            Some(id) if !self.is_lost() && vault.exists(&ObjectName::Lock(*id))? => Ok(()),
            Some(_) | None => Err(self.lose()),
        }
    }

    /// Writes a new lock object and removes the old one. When that is gone by then,
    /// someone took the lock away, and the new one is withdrawn: whoever removes locks
    /// looks until there are none of this name.
    pub(crate) fn renew(&self, vault: &Vault, now: Timestamp) -> Result<(), EngineError> {
        self.require(vault)?;
        let fresh = put(vault, &self.name, self.mode, now)?;
        let mut ids = self.ids();
        let old = ids.last().copied();
        ids.push(fresh);
        let was_kept = match old {
            Some(old) => vault.exists(&ObjectName::Lock(old))?,
            None => false,
        };
        if !was_kept {
            self.is_lost.store(true, Ordering::Relaxed);
            vault.delete(&ObjectName::Lock(fresh))?;
            return Err(EngineError::LockLost);
        }
        while let [old, _, ..] = ids.as_slice() {
            vault.delete(&ObjectName::Lock(*old))?;
            ids.remove(0);
        }
        Ok(())
    }

    /// Removes the lock object.
    pub(crate) fn remove(&self, vault: &Vault) -> Result<(), EngineError> {
        let mut ids = self.ids();
        while let Some(id) = ids.last() {
            vault.delete(&ObjectName::Lock(*id))?;
            ids.pop();
        }
        Ok(())
    }
}

fn put(vault: &Vault, name: &str, mode: Mode, now: Timestamp) -> Result<LockId, EngineError> {
    let file = LockFile {
        time: now.to_string(),
        exclusive: mode == Mode::Exclusive,
        hostname: name.into(),
        username: LOCK_USER.into(),
        pid: i64::from(std::process::id()),
        program: PROGRAM.into(),
    };
    let mut id = LockId([0; 32]);
    vault.put_document(
        |hash| {
            id = LockId(hash);
            ObjectName::Lock(id)
        },
        &file,
    )?;
    Ok(id)
}

/// Fails when someone else's program holds the repository exclusively, for however long.
/// A lock that cannot be read may be an exclusive one.
pub(crate) fn require_not_exclusive(vault: &Vault) -> Result<(), EngineError> {
    let (locks, unreadable) = load_all(vault)?;
    if let Some(name) = unreadable.first() {
        return Err(EngineError::Locked { by: format!("{name}, which cannot be read") });
    }
    match locks.iter().find(|(_, file)| file.exclusive && !file.is_ours()) {
        Some((_, file)) => Err(EngineError::Locked { by: describe(file) }),
        None => Ok(()),
    }
}

fn describe(file: &LockFile) -> String {
    format!("{}@{}, process {}, since {}", file.username, file.hostname, file.pid, file.time)
}

/// Locks that are not ours, or cannot be read: their names and what they say.
#[cfg_attr(not(test), expect(dead_code, reason = "prune asks, which comes next"))]
pub(crate) fn list_foreign(vault: &Vault) -> Result<Vec<(ObjectName, String)>, EngineError> {
    let (locks, unreadable) = load_all(vault)?;
    let foreign = locks.iter().filter(|(_, file)| !file.is_ours());
    let mut found: Vec<_> = foreign.map(|(name, file)| (*name, describe(file))).collect();
    found.extend(unreadable.into_iter().map(|name| (name, format!("{name}, unreadable"))));
    Ok(found)
}

/// Removes the locks of a session; says how many there were. When it returns there is
/// none left.
pub(crate) fn remove_of_session(vault: &Vault, session_name: &str) -> Result<usize, EngineError> {
    let mut removed = 0;
    for _ in 0..REMOVE_TRIES {
        let locks = load_all(vault)?.0.into_iter();
        let of_session: Vec<_> =
            locks.filter(|(_, file)| file.is_ours() && file.hostname == session_name).collect();
        if of_session.is_empty() {
            return Ok(removed);
        }
        for (name, _) in of_session {
            vault.delete(&name)?;
            removed += 1;
        }
    }
    Err(EngineError::Locked { by: format!("{session_name}, which keeps renewing its lock") })
}

/// The sessions of ours that have lock objects, each once.
pub(crate) fn list_sessions(vault: &Vault) -> Result<Vec<String>, EngineError> {
    let ours = load_all(vault)?.0.into_iter().filter(|(_, file)| file.is_ours());
    let mut sessions: Vec<_> = ours.map(|(_, file)| file.hostname).collect();
    sessions.sort();
    sessions.dedup();
    Ok(sessions)
}

/// The locks that can be read, and those that cannot.
#[expect(clippy::type_complexity, reason = "a pair of lists, taken apart at once")]
fn load_all(vault: &Vault) -> Result<(Vec<(ObjectName, LockFile)>, Vec<ObjectName>), EngineError> {
    let (mut readable, mut unreadable) = (Vec::new(), Vec::new());
    for listed in vault.list(ObjectKind::Lock)? {
        match vault.get_document(&listed.name) {
            Ok(file) => readable.push((listed.name, file)),
            Err(EngineError::Damaged { .. }) => {
                // Locks come and go.
                if vault.exists(&listed.name)? {
                    unreadable.push(listed.name);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok((readable, unreadable))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{backend::MemoryBackend, crypto::Key};

    fn vault() -> Vault {
        Vault { backend: Arc::new(MemoryBackend::new()), key: Key::random().unwrap() }
    }

    /// As restic writes it; the user's name is our own.
    fn put_foreign(vault: &Vault, time: &str, exclusive: bool) -> ObjectName {
        let file = serde_json::json!({
            "time": time, "exclusive": exclusive, "hostname": "session-1",
            "username": LOCK_USER, "pid": 1,
        });
        vault.put_document(|hash| ObjectName::Lock(LockId(hash)), &file).unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_micros(1_795_471_871_000_000)
    }

    #[test]
    fn anothers_exclusive_lock_keeps_us_out_whatever_its_time_and_ours_does_not() {
        for (time, exclusive, is_free) in [
            ("2026-11-23T22:11:11Z", true, false),
            ("2016-11-23T22:11:11Z", true, false),
            ("2036-11-23T22:11:11Z", true, false),
            ("yesterday", true, false),
            ("2026-11-23T22:11:11Z", false, true),
        ] {
            let vault = vault();
            put_foreign(&vault, time, exclusive);
            let outcome = require_not_exclusive(&vault);
            assert_eq!(outcome.is_ok(), is_free, "{time} {exclusive}");
            assert!(matches!(outcome, Ok(()) | Err(EngineError::Locked { .. })));
        }
        let vault = vault();
        put(&vault, "prune-1", Mode::Exclusive, now()).unwrap();
        require_not_exclusive(&vault).unwrap();
        assert_eq!(list_foreign(&vault).unwrap(), []);
    }

    #[test]
    fn locks_of_others_are_not_removed_with_a_sessions_own() {
        let vault = vault();
        let foreign = put_foreign(&vault, "2026-11-23T22:11:11Z", false);
        put(&vault, "session-1", Mode::Shared, now()).unwrap();
        put(&vault, "session-2", Mode::Shared, now()).unwrap();
        assert_eq!(list_sessions(&vault).unwrap(), ["session-1", "session-2"]);
        assert_eq!(remove_of_session(&vault, "session-1").unwrap(), 1);
        assert_eq!(vault.list(ObjectKind::Lock).unwrap().len(), 2);
        assert!(vault.exists(&foreign).unwrap());
        assert_eq!(list_foreign(&vault).unwrap().len(), 1);
    }

    #[test]
    fn a_lock_that_was_taken_away_is_not_renewed() {
        let vault = vault();
        let held = Held::put(&vault, "session-1", Mode::Shared, now()).unwrap();
        held.renew(&vault, now()).unwrap();
        assert_eq!(vault.list(ObjectKind::Lock).unwrap().len(), 1);
        remove_of_session(&vault, "session-1").unwrap();
        assert!(matches!(held.renew(&vault, now()), Err(EngineError::LockLost)));
        assert!(matches!(held.require(&vault), Err(EngineError::LockLost)));
        assert_eq!(vault.list(ObjectKind::Lock).unwrap().len(), 0);
    }

    #[test]
    fn a_lock_that_cannot_be_read_may_be_an_exclusive_one() {
        let vault = vault();
        vault.backend.put(&ObjectName::Lock(LockId([1; 32])), b"torn").unwrap();
        let outcome = require_not_exclusive(&vault);
        assert!(matches!(outcome, Err(EngineError::Locked { .. })));
    }
}
