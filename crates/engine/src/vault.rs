//! A store together with the key of what lies in it.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    backend::{Backend, BackendError, Listed, ObjectKind, ObjectName},
    crypto::Key,
    document,
    error::EngineError,
    id::sha256,
};

/// A sealed document that is larger is none of ours or restic's.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 128 << 20;

#[derive(Debug)]
pub(crate) struct Vault {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) key: Key,
}

impl Vault {
    /// Whether an error is one object's own, such as a bad sector below it: another object can
    /// be read all the same. What is wrong with the store, or with what it allows us, is no
    /// damage.
    pub(crate) fn is_of_one_object(&self, error: &EngineError) -> bool {
        let is_broken =
            matches!(error, EngineError::Backend { error: BackendError::Broken { .. }, .. });
        is_broken && self.backend.get(&ObjectName::Config, DOCUMENT_BYTES_MAX).is_ok()
    }

    pub(crate) fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, EngineError> {
        self.backend.list(kind).map_err(EngineError::List)
    }

    pub(crate) fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), EngineError> {
        self.backend.put(name, bytes).map_err(|error| EngineError::writing(name, error))
    }

    pub(crate) fn delete(&self, name: &ObjectName) -> Result<(), EngineError> {
        self.backend.delete(name).map_err(|error| EngineError::writing(name, error))
    }

    pub(crate) fn exists(&self, name: &ObjectName) -> Result<bool, EngineError> {
        self.find_size(name).map(|size| size.is_some())
    }

    pub(crate) fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, EngineError> {
        self.backend.find_size(name).map_err(|error| EngineError::writing(name, error))
    }

    pub(crate) fn read_at(
        &self,
        name: &ObjectName,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), EngineError> {
        let read = self.backend.read_at(name, offset, buf);
        read.map_err(|error| EngineError::reading(name, error))
    }

    /// Seals a document and stores it under its hash.
    pub(crate) fn put_document<T: Serialize>(
        &self,
        name: impl FnOnce([u8; 32]) -> ObjectName,
        value: &T,
    ) -> Result<ObjectName, EngineError> {
        let sealed = document::seal(&self.key, value)?;
        let name = name(sha256(&sealed));
        self.put(&name, &sealed)?;
        Ok(name)
    }

    /// Reads a document that must exist, checking that it has the hash it is named by.
    pub(crate) fn get_document<T: DeserializeOwned>(
        &self,
        name: &ObjectName,
    ) -> Result<T, EngineError> {
        let sealed = self.backend.get(name, DOCUMENT_BYTES_MAX);
        let sealed = sealed.map_err(|error| EngineError::reading(name, error))?;
        if !name.is_hash(&sha256(&sealed)) {
            return Err(EngineError::damaged(name, "does not have the hash it is named by"));
        }
        document::open(&self.key, &sealed).map_err(|what| EngineError::damaged(name, what))
    }
}

impl ObjectName {
    /// Whether an object of this name may have this hash.
    pub(crate) fn is_hash(&self, hash: &[u8; 32]) -> bool {
        match self {
            Self::Config | Self::Access => true,
            Self::Key(id) => id.0 == *hash,
            Self::Pack(id) => id.0 == *hash,
            Self::Index(id) => id.0 == *hash,
            Self::Snapshot(id) => id.0 == *hash,
            Self::Lock(id) => id.0 == *hash,
            Self::Mark(id) => id.0 == *hash,
        }
    }
}
