//! Fits the cloud's disks to the engine's sources and sinks: the one place where both
//! vocabularies meet.

use std::sync::Arc;

use kedge_core::ports::{CloudError, CloudErrorKind, DiskReader, DiskWriter, ExtentKind};
use kedge_engine::{Extent, Sink, SinkError, Source, SourceError, VolumeReader};

/// A frozen disk as the engine reads it.
#[derive(Debug)]
pub(crate) struct DiskSource {
    reader: Arc<dyn DiskReader>,
    size_bytes: u64,
}

impl DiskSource {
    /// The whole disk.
    pub(crate) fn whole(reader: Arc<dyn DiskReader>) -> Self {
        let size_bytes = reader.size_bytes();
        Self { reader, size_bytes }
    }

    /// The disk's first bytes: what a restore wrote to a larger disk.
    pub(crate) fn first(reader: Arc<dyn DiskReader>, size_bytes: u64) -> Self {
        Self { reader, size_bytes }
    }
}

impl Source for DiskSource {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
        let extent = self.reader.next_extent(offset).map_err(source_error)?;
        Ok(Extent {
            offset: extent.offset,
            len: extent.length_bytes,
            kind: match extent.kind {
                ExtentKind::Data => kedge_engine::ExtentKind::Data,
                ExtentKind::Zero => kedge_engine::ExtentKind::Zero,
                ExtentKind::Unchanged => kedge_engine::ExtentKind::Unchanged,
            },
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        self.reader.read_at(offset, buf).map_err(source_error)
    }
}

/// A destination disk as the engine writes it.
#[derive(Debug)]
pub(crate) struct DiskSink(pub(crate) Arc<dyn DiskWriter>);

impl Sink for DiskSink {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.0.write_at(offset, bytes).map_err(sink_error)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), SinkError> {
        self.0.write_zeroes(offset, len).map_err(sink_error)
    }
}

/// A volume of a repository as a disk.
#[derive(Debug)]
pub(crate) struct StoredDisk(pub(crate) VolumeReader);

impl DiskReader for StoredDisk {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn next_extent(&self, offset: u64) -> Result<kedge_core::ports::Extent, CloudError> {
        let extent = self.0.next_extent(offset).map_err(cloud_error)?;
        let end = (extent.offset + extent.len).min(self.0.size_bytes());
        Ok(kedge_core::ports::Extent {
            offset,
            length_bytes: end.saturating_sub(offset).max(1),
            kind: match extent.kind {
                kedge_engine::ExtentKind::Zero => ExtentKind::Zero,
                kedge_engine::ExtentKind::Data | kedge_engine::ExtentKind::Unchanged => {
                    ExtentKind::Data
                }
            },
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError> {
        self.0.read_at(offset, buf).map_err(cloud_error)
    }
}

fn cloud_error(error: SourceError) -> CloudError {
    match error.retryable {
        true => CloudError::retryable(error.text),
        false => CloudError::permanent(error.text),
    }
}

/// A lost moment may be had anew: the job finds out when it confirms the moment.
fn is_retryable(error: &CloudError) -> bool {
    match error.kind {
        CloudErrorKind::Retryable | CloudErrorKind::MomentLost => true,
        CloudErrorKind::Permanent => false,
    }
}

fn source_error(error: CloudError) -> SourceError {
    SourceError { retryable: is_retryable(&error), text: error.text }
}

fn sink_error(error: CloudError) -> SinkError {
    SinkError { retryable: is_retryable(&error), text: error.text }
}
