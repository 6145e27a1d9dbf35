//! A disk that remembers that it could not be read: what is seen through it afterwards may
//! be no fault of the backup.

use std::sync::{Arc, Mutex, PoisonError};

use kedge_core::ports::{CloudError, DiskReader, Extent};

#[derive(Debug)]
pub(crate) struct Watched {
    disk: Arc<dyn DiskReader>,
    failure: Mutex<Option<CloudError>>,
}

impl Watched {
    pub(crate) fn new(disk: Arc<dyn DiskReader>) -> Self {
        Self { disk, failure: Mutex::new(None) }
    }

    /// Why it could not be read the first time that it could not.
    pub(crate) fn failure(&self) -> Option<CloudError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note<T>(&self, result: Result<T, CloudError>) -> Result<T, CloudError> {
        if let Err(error) = &result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| error.clone());
        }
        result
    }
}

impl DiskReader for Watched {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, CloudError> {
        self.note(self.disk.next_extent(offset))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError> {
        self.note(self.disk.read_at(offset, buf))
    }
}
