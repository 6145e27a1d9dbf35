//! A stage for drills that plays what it is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kedge_core::drill::{Boot, DiskReport, Stage, StageError};
use kedge_core::ports::DiskReader;

/// Keeps what it is shown, and says what it was told to say.
#[derive(Debug, Default)]
pub struct SimStage {
    reports: Mutex<VecDeque<Result<DiskReport, StageError>>>,
    boots: Mutex<VecDeque<Result<Boot, StageError>>>,
    booted: Mutex<Vec<Vec<Vec<u8>>>>,
}

impl SimStage {
    /// What the next inspection says; without it, nothing is wrong.
    pub fn will_report(&self, report: Result<DiskReport, StageError>) {
        locked(&self.reports).push_back(report);
    }

    /// What the next machine does; without it, it boots.
    pub fn will_boot(&self, boot: Result<Boot, StageError>) {
        locked(&self.boots).push_back(boot);
    }

    /// What the disks of each machine held, the one it boots from first.
    pub fn take_booted(&self) -> Vec<Vec<Vec<u8>>> {
        std::mem::take(&mut *locked(&self.booted))
    }
}

#[async_trait::async_trait]
impl Stage for SimStage {
    async fn inspect(&self, disk: Arc<dyn DiskReader>) -> Result<DiskReport, StageError> {
        read(&*disk)?;
        locked(&self.reports).pop_front().unwrap_or_else(|| Ok(DiskReport::default()))
    }

    async fn boot(&self, disks: Vec<Arc<dyn DiskReader>>) -> Result<Boot, StageError> {
        let held = disks.iter().map(|disk| read(&**disk)).collect::<Result<_, _>>()?;
        locked(&self.booted).push(held);
        let line = "login:".to_owned();
        let booted = || Ok(Boot::Booted { line, after_ms: 7 });
        locked(&self.boots).pop_front().unwrap_or_else(booted)
    }
}

/// In odd pieces, as a machine reads.
fn read(disk: &dyn DiskReader) -> Result<Vec<u8>, StageError> {
    let mut bytes = vec![0; usize::try_from(disk.size_bytes()).map_err(failed)?];
    let mut offset = 0;
    for piece in bytes.chunks_mut(300_007) {
        disk.read_at(offset, piece).map_err(failed)?;
        offset += piece.len() as u64;
    }
    Ok(bytes)
}

fn failed(error: impl std::fmt::Display) -> StageError {
    StageError::new(error.to_string())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
