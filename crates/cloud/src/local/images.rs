//! The files of a disk: opened as declared, read by their format, locked to be written.

use std::fs::File;
use std::io;
use std::sync::Arc;

use kedge_core::ports::{CloudError, DiskReader};

use super::DISK_BYTES_MAX;
use super::config::{Format, Image};
use super::error::failed;
use super::folder::{Access, Folder};
use super::hold::{Hold, Identity, release};
use super::qcow2::{Header, Qcow2Reader};
use super::raw::RawReader;

/// Open handles on an image and on the declared file beneath it.
#[derive(Debug)]
pub(super) struct ImageFiles {
    pub(super) top: File,
    pub(super) backing: Option<BackingFile>,
}

/// An image that nobody else uses: its first file is locked for writing.
#[derive(Debug)]
pub(super) struct AloneWith {
    pub(super) files: ImageFiles,
}

impl Drop for AloneWith {
    /// Said aloud, because a child process that was just forked has copies of the handles.
    fn drop(&mut self) {
        release(&self.files.top);
    }
}

/// An open backing file.
#[derive(Debug)]
pub(super) struct BackingFile {
    pub(super) file: File,
    pub(super) name: String,
    pub(super) format: Format,
}

impl ImageFiles {
    /// Opens a disk's files in a folder: the server's own, or one with clones.
    pub(super) fn open_in(folder: &Folder, image: &Image) -> Result<Self, CloudError> {
        let open = |name: &str| {
            folder.file(name, Access::Read).map_err(failed(format!("opening image {name:?}")))
        };
        let backing = match &image.backing {
            Some(backing) => Some(BackingFile {
                file: open(&backing.file)?,
                name: backing.file.clone(),
                format: backing.format,
            }),
            None => None,
        };
        Ok(Self { top: open(&image.file)?, backing })
    }

    /// The same open files, under the same locks.
    pub(super) fn duplicate(&self) -> io::Result<Self> {
        let backing = match &self.backing {
            Some(backing) => Some(BackingFile {
                file: backing.file.try_clone()?,
                name: backing.name.clone(),
                format: backing.format,
            }),
            None => None,
        };
        Ok(Self { top: self.top.try_clone()?, backing })
    }

    /// Of each file, the image first.
    pub(super) fn lengths(&self) -> io::Result<Vec<u64>> {
        self.all().map(|file| Ok(file.metadata()?.len())).collect()
    }

    fn all(&self) -> impl Iterator<Item = &File> {
        std::iter::once(&self.top).chain(self.backing.as_ref().map(|backing| &backing.file))
    }
}

/// What bytes are read for; says what it means when they change meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// A frozen moment.
    Frozen,
    /// What is on a disk now.
    Back,
}

impl Reading {
    pub(super) fn changed(self, text: &str) -> CloudError {
        match self {
            Self::Frozen => CloudError::moment_lost(text),
            Self::Back => CloudError::permanent(text),
        }
    }
}

/// The size of the disk, which is a size a disk can have.
pub(super) fn disk_size(image: &Image, files: &ImageFiles) -> Result<u64, CloudError> {
    let size_bytes = match image.format {
        Format::Raw => Identity::of(&files.top).map(|identity| identity.size_bytes),
        Format::Qcow2 => Header::read(&files.top).and_then(|header| {
            header.check_backing(image.backing.as_ref().map(|backing| backing.file.as_str()))?;
            Ok(header.size_bytes)
        }),
    }
    .map_err(failed(format!("reading image {:?}", image.file)))?;
    if (1..=DISK_BYTES_MAX).contains(&size_bytes) {
        Ok(size_bytes)
    } else {
        Err(CloudError::permanent(format!("image {:?} has {size_bytes} bytes", image.file)))
    }
}

pub(super) fn open_reader(
    image: &Image,
    files: ImageFiles,
    reading: Reading,
) -> Result<Arc<dyn DiskReader>, CloudError> {
    let size_bytes = disk_size(image, &files)?;
    Ok(match image.format {
        Format::Raw => Arc::new(RawReader::new(files.top, size_bytes, reading)),
        Format::Qcow2 => Arc::new(open_qcow2_reader(image, files, reading)?),
    })
}

pub(super) fn open_qcow2_reader(
    image: &Image,
    files: ImageFiles,
    reading: Reading,
) -> Result<Qcow2Reader, CloudError> {
    Qcow2Reader::open(files, reading).map_err(failed(format!("opening image {:?}", image.file)))
}

/// Opens a disk with nobody else using it. The name is looked up again under the lock:
/// another writer may have put a new file in its place while we came.
pub(super) fn open_alone(folder: &Folder, image: &Image) -> Result<AloneWith, CloudError> {
    let name = &image.file;
    let open =
        |access| folder.file(name, access).map_err(failed(format!("opening image {name:?}")));
    let identity = |file: &File| Identity::of(file).map_err(failed("looking at an image"));
    let mut files = ImageFiles::open_in(folder, image)?;
    files.top = open(Access::Write)?;
    Hold::Writing.take(&files.top, name)?;
    let alone = AloneWith { files };
    if identity(&open(Access::Read)?)?.is_same_file(&identity(&alone.files.top)?) {
        Ok(alone)
    } else {
        Err(CloudError::retryable(format!("image {name:?} was just replaced")))
    }
}

/// Whether a range lies on a disk of this size.
pub(super) fn is_within(offset: u64, length: u64, size_bytes: u64) -> Result<(), CloudError> {
    match offset.checked_add(length) {
        Some(end) if end <= size_bytes => Ok(()),
        Some(_) | None => Err(beyond_end(offset, length, size_bytes)),
    }
}

fn beyond_end(offset: u64, length: u64, size_bytes: u64) -> CloudError {
    CloudError::permanent(format!(
        "{length} bytes at {offset} lie beyond the disk's end at {size_bytes}"
    ))
}

pub(super) fn has_ended() -> CloudError {
    CloudError::permanent("the volume was finished; nothing may be written afterwards")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A forked child has copies of all handles until it runs its program.
    #[test]
    fn a_lock_ends_with_its_owner_though_copies_of_the_handle_live() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let files = ImageFiles { top: image.reopen().unwrap(), backing: None };
        Hold::Writing.take(&files.top, "image").unwrap();
        let _copy = files.top.try_clone().unwrap();
        let other = image.reopen().unwrap();
        let alone = AloneWith { files };
        Hold::Writing.take(&other, "image").unwrap_err();
        drop(alone);
        Hold::Writing.take(&other, "image").unwrap();
    }
}
