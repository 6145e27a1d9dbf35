//! A store in memory, for tests and trials.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Backend, BackendError, Listed, ObjectKind, ObjectName};

/// Objects in a map. Lost with the value.
#[derive(Default)]
pub struct MemoryBackend {
    objects: Mutex<BTreeMap<ObjectName, Vec<u8>>>,
}

impl MemoryBackend {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<ObjectName, Vec<u8>>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend").field("objects", &self.objects().len()).finish()
    }
}

impl Backend for MemoryBackend {
    fn prepare(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        self.objects().insert(*name, bytes.to_vec());
        Ok(())
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        let objects = self.objects();
        let bytes = objects.get(name).ok_or(BackendError::NotFound)?;
        if bytes.len() as u64 > bytes_max {
            return Err(BackendError::TooLarge);
        }
        Ok(bytes.clone())
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        let objects = self.objects();
        let bytes = objects.get(name).ok_or(BackendError::NotFound)?;
        let start = usize::try_from(offset).map_err(|_| BackendError::Truncated)?;
        let end = start.checked_add(buf.len()).ok_or(BackendError::Truncated)?;
        buf.copy_from_slice(bytes.get(start..end).ok_or(BackendError::Truncated)?);
        Ok(())
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        Ok(self.objects().get(name).map(|bytes| bytes.len() as u64))
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        let objects = self.objects();
        let of_kind = objects.iter().filter(|(name, _)| name.kind() == kind);
        Ok(of_kind
            .map(|(name, bytes)| Listed { name: *name, size_bytes: bytes.len() as u64 })
            .collect())
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        self.objects().remove(name);
        Ok(())
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        Ok(())
    }
}
