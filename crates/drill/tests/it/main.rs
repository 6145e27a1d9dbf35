//! Real file systems, a real NBD client and a real QEMU. Needs `mke2fs`, `debugfs`,
//! `qemu-img` and `qemu-system-x86_64`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod boot;
mod ext;
mod nbd;

use kedge_core::ports::{CloudError, DiskReader, Extent, ExtentKind};

/// A disk in memory.
#[derive(Debug)]
struct VecDisk(Vec<u8>);

impl DiskReader for VecDisk {
    fn size_bytes(&self) -> u64 {
        u64::try_from(self.0.len()).unwrap()
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, CloudError> {
        Ok(Extent { offset, length_bytes: self.size_bytes() - offset, kind: ExtentKind::Data })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError> {
        let at = usize::try_from(offset).unwrap();
        let bytes = at.checked_add(buf.len()).and_then(|end| self.0.get(at..end));
        buf.copy_from_slice(bytes.ok_or_else(|| CloudError::permanent("past the end"))?);
        Ok(())
    }
}
