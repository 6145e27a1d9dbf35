//! Another program's lock, as restic sets and minds it, for tests that prune beside one.

use serde_json::json;

use crate::{
    backend::{ObjectKind, ObjectName},
    error::EngineError,
    id::LockId,
    repository::Repository,
    time::Timestamp,
};

/// A lock object of a program that is not ours.
#[derive(Debug)]
pub struct ForeignLock(ObjectName);

impl ForeignLock {
    /// Puts a lock and looks for others then, giving way as restic does: to exclusive
    /// ones, and for an exclusive one to all.
    pub fn put<S>(
        repository: &Repository<S>,
        is_exclusive: bool,
        now: Timestamp,
    ) -> Result<Self, EngineError> {
        let vault = &repository.vault;
        let file = json!({
            "time": now.to_string(), "exclusive": is_exclusive, "hostname": "elsewhere",
            "username": "kedge", "pid": 1,
        });
        let lock = Self(vault.put_document(|hash| ObjectName::Lock(LockId(hash)), &file)?);
        for other in vault.list(ObjectKind::Lock)? {
            if other.name == lock.0 {
                continue;
            }
            let read = vault.get_document::<serde_json::Value>(&other.name);
            // Gone again, or one that cannot be read.
            let Ok(file) = read else { continue };
            if is_exclusive || file.get("exclusive") == Some(&json!(true)) {
                lock.remove(repository)?;
                return Err(EngineError::Locked { by: other.name.to_string() });
            }
        }
        Ok(lock)
    }

    /// Removes the lock.
    pub fn remove<S>(self, repository: &Repository<S>) -> Result<(), EngineError> {
        repository.vault.delete(&self.0)
    }
}
