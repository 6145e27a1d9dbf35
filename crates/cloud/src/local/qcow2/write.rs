//! Writes a disk into a new qcow2 file beside the old one.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::sync::{Mutex, PoisonError, RwLock};

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder};
use kedge_core::ports::{CloudError, DiskWriter, ExtentKind};
use tracing::warn;

use super::super::config::PARTIAL_SUFFIX;
use super::super::error::failed;
use super::super::folder::Folder;
use super::super::hold::release;
use super::super::images::{AloneWith, Reading, has_ended, is_within};
use super::header::Header;
use super::read::Qcow2Reader;

/// Bytes copied at once from the old image.
const COPY_BYTES: u64 = 1 << 20;
/// Unit in which a writer remembers what is new: a cluster of the file it builds.
const GRANULE_BYTES: u64 = 64 * 1024;

/// Makes a file belong to this user and this group.
pub type GiveFile = fn(&File, u32, u32) -> io::Result<()>;

/// Asks the kernel only where something differs: a service without rights may not ask.
pub(in crate::local) fn give(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) == (uid, gid) {
        return Ok(());
    }
    fchown(file, Some(uid), Some(gid))
}

/// Builds a new file beside the old image and puts it in its place at the end, so that a
/// crash leaves the old image whole. What is never written keeps the old disk's content.
#[derive(Debug)]
pub(in crate::local) struct Qcow2Writer {
    folder: Folder,
    name: String,
    size_bytes: u64,
    give: GiveFile,
    old: OldDisk,
    /// Gone once finished.
    new: RwLock<Option<NewImage>>,
}

#[derive(Debug)]
struct NewImage {
    image: FormatAccess<ImageFile>,
    file: File,
    written: Mutex<Granules>,
}

/// The disk as it was, under the writer's locks. Looked into only if something of it is
/// kept: a damaged image can be overwritten whole.
#[derive(Debug)]
struct OldDisk {
    alone: AloneWith,
    reader: Mutex<Option<Qcow2Reader>>,
}

/// Which granules of the new image hold what they shall.
#[derive(Debug)]
struct Granules {
    bits: Vec<u64>,
}

impl Qcow2Writer {
    /// Writes beside the old image, which stays ours until the end. Refuses where the new
    /// image could not be given to whom the old one belongs.
    pub(in crate::local) fn create(
        folder: Folder,
        name: &str,
        alone: AloneWith,
        give: GiveFile,
    ) -> io::Result<Self> {
        let size_bytes = Header::read(&alone.files.top)?.size_bytes;
        try_giving(&folder, &partial_name(name), &alone.files.top, give)?;
        let new = NewImage::create(&folder, &partial_name(name), size_bytes)
            .inspect_err(|_| discard(&folder, &partial_name(name)))?;
        Ok(Self {
            folder,
            name: name.to_owned(),
            size_bytes,
            give,
            old: OldDisk { alone, reader: Mutex::new(None) },
            new: RwLock::new(Some(new)),
        })
    }

    fn with_new(
        &self,
        doing: &str,
        act: impl FnOnce(&NewImage) -> io::Result<()>,
    ) -> Result<(), CloudError> {
        let new = self.new.read().unwrap_or_else(PoisonError::into_inner);
        act(new.as_ref().ok_or_else(has_ended)?).map_err(failed(doing))
    }

    fn complete(&self, new: &NewImage) -> Result<(), CloudError> {
        let doing = failed("completing a qcow2 image");
        new.fill_gaps(&self.old, self.size_bytes)
            .and_then(|()| new.image.flush())
            .and_then(|()| self.old.alone.files.top.metadata())
            .and_then(|metadata| {
                // Whoever could use the old file can use the new one. The mode comes first:
                // it cannot be set on a file that was given away.
                let mode = std::fs::Permissions::from_mode(metadata.mode() & 0o777);
                new.file.set_permissions(mode)?;
                (self.give)(&new.file, metadata.uid(), metadata.gid())
            })
            .map_err(doing)
    }
}

impl DiskWriter for Qcow2Writer {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), CloudError> {
        let length = bytes.len() as u64;
        is_within(offset, length, self.size_bytes)?;
        self.with_new("writing a qcow2 image", |new| {
            new.keep_edges(&self.old, offset, length, self.size_bytes)?;
            new.image.write(bytes, offset)?;
            new.mark(offset, length, self.size_bytes);
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, length_bytes: u64) -> Result<(), CloudError> {
        is_within(offset, length_bytes, self.size_bytes)?;
        self.with_new("zeroing a qcow2 image", |new| {
            new.keep_edges(&self.old, offset, length_bytes, self.size_bytes)?;
            new.image.write_zeroes(offset, length_bytes)?;
            new.mark(offset, length_bytes, self.size_bytes);
            Ok(())
        })
    }

    fn finish(&self) -> Result<(), CloudError> {
        let mut slot = self.new.write().unwrap_or_else(PoisonError::into_inner);
        let new = slot.as_ref().ok_or_else(has_ended)?;
        self.complete(new)?;
        // Closing the image writes the last of it, so the file is made durable afterwards.
        let Some(NewImage { image, file, written: _ }) = slot.take() else {
            return Err(has_ended());
        };
        drop(image);
        file.sync_all()
            .and_then(|()| self.folder.rename(&partial_name(&self.name), &self.name))
            .inspect_err(|_| discard(&self.folder, &partial_name(&self.name)))
            .map_err(failed("making a qcow2 image durable"))?;
        release(&self.old.alone.files.top);
        Ok(())
    }
}

/// Gives an empty file to the old image's owner and group, and removes it: the image that is
/// written stays ours until it is whole.
fn try_giving(folder: &Folder, name: &str, old: &File, give: GiveFile) -> io::Result<()> {
    let owner = old.metadata()?;
    let (uid, gid) = (owner.uid(), owner.gid());
    let given = give(&folder.create_file(name)?, uid, gid);
    folder.remove(name)?;
    given.map_err(|error| {
        let text = format!(
            "the image belongs to user {uid} and group {gid}, and the new one cannot be given \
            to them ({error}); nothing was written"
        );
        io::Error::new(error.kind(), text)
    })
}

impl Drop for Qcow2Writer {
    /// An image that was never finished is of no use and takes space. The old one is still
    /// locked: no other writer has a file of this name.
    fn drop(&mut self) {
        let slot = self.new.get_mut().unwrap_or_else(PoisonError::into_inner);
        if slot.take().is_some() {
            discard(&self.folder, &partial_name(&self.name));
        }
    }
}

/// Removes an unfinished image. Where that fails it stays until the next writer replaces it.
fn discard(folder: &Folder, name: &str) {
    if let Err(error) = folder.remove(name) {
        warn!(name, %error, "unfinished image {name:?} is left behind: {error}");
    }
}

pub(in crate::local) fn partial_name(name: &str) -> String {
    format!("{name}{PARTIAL_SUFFIX}")
}

impl NewImage {
    fn create(folder: &Folder, name: &str, size_bytes: u64) -> io::Result<Self> {
        let file = folder.create_file(name)?;
        let image = Qcow2::<ImageFile>::create_builder(file.try_clone()?.try_into()?)
            .size(size_bytes)
            .create_open(DenyImplicitOpenGate::default(), |file| Ok(Qcow2::builder(file)))?;
        Ok(Self {
            image: FormatAccess::new(image),
            file,
            written: Mutex::new(Granules::none(size_bytes)),
        })
    }

    /// Brings over the old content of granules that a write covers only in part.
    fn keep_edges(&self, old: &OldDisk, offset: u64, length: u64, size: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let end = offset + length;
        for granule in [offset / GRANULE_BYTES, (end - 1) / GRANULE_BYTES] {
            let begin = granule * GRANULE_BYTES;
            let stop = (begin + GRANULE_BYTES).min(size);
            let is_whole = offset <= begin && stop <= end;
            if !is_whole && !written.has(granule) {
                old.copy_to(&self.image, begin, stop)?;
                written.add(granule);
            }
        }
        Ok(())
    }

    fn mark(&self, offset: u64, length: u64, size: u64) {
        let end = offset + length;
        // A part of a granule was marked when its edges were kept.
        let first = offset.div_ceil(GRANULE_BYTES);
        let last = if end == size { end.div_ceil(GRANULE_BYTES) } else { end / GRANULE_BYTES };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        (first..last).for_each(|granule| written.add(granule));
    }

    fn fill_gaps(&self, old: &OldDisk, size: u64) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = 0;
        while let Some((first, last)) = written.next_gap(at, size.div_ceil(GRANULE_BYTES)) {
            old.copy_to(&self.image, first * GRANULE_BYTES, (last * GRANULE_BYTES).min(size))?;
            (first..last).for_each(|granule| written.add(granule));
            at = last;
        }
        Ok(())
    }
}

impl OldDisk {
    /// Copies what is not zero in a range; a new image reads as zeroes.
    fn copy_to(&self, new: &FormatAccess<ImageFile>, mut at: u64, end: u64) -> io::Result<()> {
        let mut slot = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = match &mut *slot {
            Some(reader) => reader,
            none => none.insert(Qcow2Reader::open(self.alone.files.duplicate()?, Reading::Back)?),
        };
        let mut buffer = Vec::new();
        while at < end {
            let extent = reader.extent(at)?;
            let length = extent.length_bytes.min(end - at).min(COPY_BYTES);
            if extent.kind == ExtentKind::Zero {
                at += extent.length_bytes.min(end - at);
                continue;
            }
            buffer.resize(usize::try_from(length).unwrap_or(0), 0);
            reader.image.read(&mut buffer[..], at)?;
            new.write(&buffer[..], at)?;
            at += length;
        }
        reader.is_whole().map_err(|error| io::Error::new(ErrorKind::UnexpectedEof, error.text))
    }
}

impl Granules {
    fn none(size_bytes: u64) -> Self {
        let words = size_bytes.div_ceil(GRANULE_BYTES).div_ceil(64);
        Self { bits: vec![0; usize::try_from(words).unwrap_or(0)] }
    }

    fn word(granule: u64) -> usize {
        usize::try_from(granule / 64).unwrap_or(usize::MAX)
    }

    fn has(&self, granule: u64) -> bool {
        self.bits[Self::word(granule)] & (1 << (granule % 64)) != 0
    }

    fn add(&mut self, granule: u64) {
        self.bits[Self::word(granule)] |= 1 << (granule % 64);
    }

    /// The first run of absent granules in a range.
    fn next_gap(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        let first = (from..end).find(|granule| !self.has(*granule))?;
        let last = (first..end).find(|granule| self.has(*granule)).unwrap_or(end);
        Some((first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_granules_are_found() {
        let mut granules = Granules::none(200 * GRANULE_BYTES);
        (0..3).chain(70..130).for_each(|granule| granules.add(granule));
        assert_eq!(granules.next_gap(0, 200), Some((3, 70)));
        assert_eq!(granules.next_gap(70, 200), Some((130, 200)));
        assert_eq!(granules.next_gap(70, 130), None);
    }
}
