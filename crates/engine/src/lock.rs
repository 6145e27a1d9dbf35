//! restic's locks: objects that say who uses the repository, so that nobody prunes it
//! meanwhile.

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
/// restic takes older locks for forgotten ones.
const STALE_MICROS: i64 = 30 * 60 * 1_000_000;

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
}

/// Writes a shared lock in the name of a session.
pub(crate) fn put_shared(
    vault: &Vault,
    session_name: &str,
    now: Timestamp,
) -> Result<LockId, EngineError> {
    let file = LockFile {
        time: now.to_string(),
        exclusive: false,
        hostname: session_name.into(),
        username: LOCK_USER.into(),
        pid: i64::from(std::process::id()),
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

/// Fails when someone holds the repository exclusively. A lock that cannot be read may
/// be an exclusive one.
pub(crate) fn require_not_exclusive(vault: &Vault, now: Timestamp) -> Result<(), EngineError> {
    let (locks, unreadable) = load_all(vault)?;
    if let Some(name) = unreadable.first() {
        return Err(EngineError::Locked { by: format!("{name}, which cannot be read") });
    }
    for (_, file) in locks {
        let time = Timestamp::parse(&file.time);
        let is_stale =
            time.is_ok_and(|time| now.as_micros().saturating_sub(time.as_micros()) > STALE_MICROS);
        if file.exclusive && !is_stale {
            let by = format!("{}@{}, process {}", file.username, file.hostname, file.pid);
            return Err(EngineError::Locked { by });
        }
    }
    Ok(())
}

/// Removes the locks of a session; says how many there were.
pub(crate) fn remove_of_session(vault: &Vault, session_name: &str) -> Result<usize, EngineError> {
    let mut removed = 0;
    for (name, file) in load_all(vault)?.0 {
        if file.username == LOCK_USER && file.hostname == session_name {
            vault.delete(&name)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The sessions of ours that have lock objects, each once.
pub(crate) fn list_sessions(vault: &Vault) -> Result<Vec<String>, EngineError> {
    let ours = load_all(vault)?.0.into_iter().filter(|(_, file)| file.username == LOCK_USER);
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

    const MINUTE: i64 = 60_000_000;

    fn vault_with(time: &str, exclusive: bool) -> Vault {
        let vault = Vault { backend: Arc::new(MemoryBackend::new()), key: Key::random().unwrap() };
        let file = LockFile {
            time: time.into(),
            exclusive,
            hostname: "elsewhere".into(),
            username: "root".into(),
            pid: 1,
        };
        vault.put_document(|hash| ObjectName::Lock(LockId(hash)), &file).unwrap();
        vault
    }

    #[test]
    fn only_an_exclusive_lock_that_is_not_stale_keeps_us_out() {
        let now = Timestamp::from_micros(1_795_471_871_000_000);
        let before = |minutes: i64| Timestamp::from_micros(now.as_micros() - minutes * MINUTE);
        for (time, exclusive, is_free) in [
            (before(0).to_string(), true, false),
            (before(29).to_string(), true, false),
            (before(31).to_string(), true, true),
            (before(-60).to_string(), true, false),
            ("yesterday".into(), true, false),
            (before(0).to_string(), false, true),
        ] {
            let vault = vault_with(&time, exclusive);
            let outcome = require_not_exclusive(&vault, now);
            assert_eq!(outcome.is_ok(), is_free, "{time} {exclusive}");
            assert!(matches!(outcome, Ok(()) | Err(EngineError::Locked { .. })));
        }
    }

    #[test]
    fn locks_of_others_are_not_removed_with_a_sessions_own() {
        let now = Timestamp::from_micros(0);
        let vault = vault_with(&now.to_string(), false);
        put_shared(&vault, "elsewhere", now).unwrap();
        put_shared(&vault, "session-2", now).unwrap();
        assert_eq!(remove_of_session(&vault, "elsewhere").unwrap(), 1);
        assert_eq!(vault.list(ObjectKind::Lock).unwrap().len(), 2);
    }

    #[test]
    fn a_lock_that_cannot_be_read_may_be_an_exclusive_one() {
        let now = Timestamp::from_micros(0);
        let vault = vault_with(&now.to_string(), false);
        vault.backend.put(&ObjectName::Lock(LockId([1; 32])), b"torn").unwrap();
        let outcome = require_not_exclusive(&vault, now);
        assert!(matches!(outcome, Err(EngineError::Locked { .. })));
    }
}
