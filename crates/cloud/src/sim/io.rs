//! Handles on volumes of the simulated cloud.

use std::collections::BTreeSet;
use std::sync::Arc;

use kedge_core::ids::VolumeId;
use kedge_core::ports::{CloudError, DiskReader, DiskWriter, Extent};

use super::disk::Disk;
use super::fault::SimOp;
use super::{Shared, SimWrite};

#[derive(Debug)]
pub(super) struct SimReader {
    pub(super) shared: Arc<Shared>,
    pub(super) volume: VolumeId,
    pub(super) disk: Disk,
    /// The only blocks not reported as unchanged, if the driver can tell.
    pub(super) changed: Option<BTreeSet<u64>>,
}

impl SimReader {
    fn is_on_disk(&self, offset: u64, length_bytes: u64) -> Result<(), CloudError> {
        if self.disk.holds(offset, length_bytes) {
            Ok(())
        } else {
            Err(CloudError::permanent(format!(
                "{length_bytes} bytes at {offset} lie beyond the end of volume {:?}",
                self.volume
            )))
        }
    }
}

impl DiskReader for SimReader {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, CloudError> {
        self.shared.call_blocking(SimOp::NextExtent, |_| {
            self.is_on_disk(offset, 1)?;
            Ok(self.disk.extent(offset, self.changed.as_ref()))
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError> {
        self.shared.call_blocking(SimOp::ReadAt, |_| {
            self.is_on_disk(offset, buf.len() as u64)?;
            self.disk.read(offset, buf);
            Ok(())
        })
    }
}

/// Has its volume alone until it is finished, dropped or revoked.
#[derive(Debug)]
pub(super) struct SimWriter {
    pub(super) shared: Arc<Shared>,
    pub(super) volume: VolumeId,
    pub(super) id: u64,
    pub(super) size_bytes: u64,
}

impl SimWriter {
    fn write(
        &self,
        op: SimOp,
        range: (u64, u64),
        change: impl FnOnce(&mut Disk),
        done: SimWrite,
    ) -> Result<(), CloudError> {
        self.shared.call_blocking(op, |state| {
            state.write(&self.volume, self.id, range, change)?;
            state.record(self.shared.clock.now(), done);
            Ok(())
        })
    }
}

impl DiskWriter for SimWriter {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), CloudError> {
        let length_bytes = bytes.len() as u64;
        let volume = self.volume.clone();
        self.write(
            SimOp::WriteAt,
            (offset, length_bytes),
            |disk| disk.write(offset, bytes),
            SimWrite::Wrote { volume, offset, length_bytes },
        )
    }

    fn write_zeroes(&self, offset: u64, length_bytes: u64) -> Result<(), CloudError> {
        let volume = self.volume.clone();
        self.write(
            SimOp::WriteZeroes,
            (offset, length_bytes),
            |disk| disk.zero(offset, length_bytes),
            SimWrite::Zeroed { volume, offset, length_bytes },
        )
    }

    fn finish(&self) -> Result<(), CloudError> {
        self.shared.call_blocking(SimOp::Finish, |state| {
            let disk = state.disk_mut(&self.volume)?;
            disk.is_held_by(self.id, &self.volume)?;
            disk.writer = None;
            let done = SimWrite::Finished { volume: self.volume.clone() };
            state.record(self.shared.clock.now(), done);
            Ok(())
        })
    }
}

impl Drop for SimWriter {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(disk) = state.disks.get_mut(&self.volume).filter(|d| d.writer == Some(self.id))
        {
            disk.writer = None;
        }
    }
}
