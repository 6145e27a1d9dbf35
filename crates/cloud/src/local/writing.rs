//! Opening a disk for writing: nobody else at it, then its mark, and only then bytes.

use std::sync::Arc;

use kedge_core::ids::VolumeId;
use kedge_core::ports::{CloudError, DiskWriter, ServerRef};
use kedge_core::resource::Sharing;

use super::Shared;
use super::config::Format;
use super::error::failed;
use super::images::{disk_size, open_alone};
use super::qcow2::Qcow2Writer;
use super::raw::RawWriter;
use super::state::Power;

impl Shared {
    pub(super) fn open_for_writing(
        &self,
        of: &ServerRef,
        volume: &VolumeId,
        mark: &str,
    ) -> Result<Arc<dyn DiskWriter>, CloudError> {
        let found = self.get(of)?;
        let disk = found.server.disk(volume)?.clone();
        if disk.sharing == Sharing::Shared {
            return Err(CloudError::permanent(format!(
                "volume {volume:?} is shared: nobody else can be kept from writing it"
            )));
        }
        self.change(&found, |state| {
            if state.power != Power::Shutoff {
                return Err(CloudError::permanent(format!("server {:?} is running", of.server)));
            }
            let alone = open_alone(&found.folder, &disk.image)?;
            let size_bytes = disk_size(&disk.image, &alone.files)?;
            let folder = found.folder.reopen().map_err(failed("opening a server's folder"))?;
            let writer: Arc<dyn DiskWriter> = match disk.image.format {
                Format::Raw => Arc::new(RawWriter::new(folder, alone, size_bytes)),
                Format::Qcow2 => Arc::new(
                    Qcow2Writer::create(folder, &disk.image.file, alone, self.calls.give)
                        .map_err(failed(format!("writing beside image {:?}", disk.image.file)))?,
                ),
            };
            // Nothing of the disk was touched so far.
            state.marks.insert(volume.clone(), mark.to_owned());
            Ok(writer)
        })
    }
}
