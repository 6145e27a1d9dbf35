//! Disks in qcow2 files: the checks a file passes before a library may read it, a reader,
//! and a writer that builds a new file beside the old one.
//!
//! A file is hostile: whoever uploaded it chose every byte. Nothing it names is ever
//! opened; another file comes in only as declared. What it says about sizes is bounded
//! before anything is allocated, and every table must lie whole inside the file, because
//! a table past the end would read as zeroes and pass for an empty disk. What checking
//! costs is paid for by whoever made the file: holes in it are not read.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::sync::{Mutex, PoisonError, RwLock};

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping,
    ShallowMapping,
};
use kedge_core::ports::{CloudError, DiskReader, DiskWriter, Extent, ExtentKind};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tracing::warn;

use super::config::{Format, PARTIAL_SUFFIX};
use super::error::failed;
use super::folder::Folder;
use super::hold::release;
use super::raw::is_within;
use super::{DISK_BYTES_MAX, Reading, has_ended};

/// QEMU's own limit of a first-level table: 32 MiB of 8-byte entries.
const L1_ENTRIES_MAX: u64 = 4 << 20;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// Mappings joined into one extent before it is handed out.
const MAPPINGS_MAX: usize = 1024;
/// Bytes copied at once from the old image.
const COPY_BYTES: u64 = 1 << 20;
/// Unit in which a writer remembers what is new: a cluster of the file it builds.
const GRANULE_BYTES: u64 = 64 * 1024;

/// Makes a file belong to this user and this group.
pub type GiveFile = fn(&File, u32, u32) -> io::Result<()>;

/// Asks the kernel only where something differs: a service without rights may not ask.
pub(super) fn give(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) == (uid, gid) {
        return Ok(());
    }
    fchown(file, Some(uid), Some(gid))
}

/// What a file's header says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) size_bytes: u64,
    pub(super) backing: Option<String>,
    cluster_bits: u32,
    l1_entries: u64,
    l1_offset: u64,
}

impl Header {
    /// Reads a header and refuses what cannot be read safely or at all.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; 104];
        file.read_exact_at(&mut bytes[..72], 0).map_err(too_short)?;
        if bytes[..4] != *b"QFI\xfb" {
            return Err(bad("it is no qcow2 file"));
        }
        match be32(&bytes, 4) {
            2 => {}
            3 => {
                file.read_exact_at(&mut bytes[72..], 72).map_err(too_short)?;
                let features = be64(&bytes, 72);
                if features != 0 {
                    return Err(bad(format!(
                        "it needs features {features:#x}, which are unknown \
                        or mean damage, encryption or a file of its own for the data"
                    )));
                }
            }
            other => return Err(bad(format!("qcow2 version {other} is unknown"))),
        }
        Self::check(&bytes, file)
    }

    fn check(bytes: &[u8; 104], file: &File) -> io::Result<Self> {
        if be32(bytes, 32) != 0 {
            return Err(bad("it is encrypted"));
        }
        let header = Self {
            size_bytes: be64(bytes, 24),
            backing: read_backing(file, be64(bytes, 8), be32(bytes, 16))?,
            cluster_bits: be32(bytes, 20),
            l1_entries: u64::from(be32(bytes, 36)),
            l1_offset: be64(bytes, 40),
        };
        if !(9..=21).contains(&header.cluster_bits) {
            return Err(bad(format!("a cluster of 2^{} bytes", header.cluster_bits)));
        }
        if header.size_bytes == 0 || header.size_bytes > DISK_BYTES_MAX {
            return Err(bad(format!("a disk of {} bytes", header.size_bytes)));
        }
        let needed = header.size_bytes.div_ceil(header.bytes_per_l2());
        // A table has its clusters to itself.
        let fitting = (needed * 8).next_multiple_of(header.cluster_bytes()) / 8;
        if !(needed..=fitting.min(L1_ENTRIES_MAX)).contains(&header.l1_entries) {
            return Err(bad(format!("a first-level table of {} entries", header.l1_entries)));
        }
        header.holds(header.l1_offset, header.l1_entries * 8, file.metadata()?.len())?;
        Ok(header)
    }

    /// Checks every table, so that nothing in them points outside the file. Reads no more
    /// than the first-level table and what of the others is data: a hole maps nothing.
    fn check_tables(&self, file: &File) -> io::Result<()> {
        let length = file.metadata()?.len();
        let mut walk = DataWalk { file, found: 0..0 };
        for table in self.l2_tables(file, length)? {
            let mut at = table;
            while let Some(data) = walk.next_within(at..table + self.cluster_bytes())? {
                for entry in read_entries(file, data.start, data.end - data.start)? {
                    self.check_entry(entry, length)?;
                }
                at = data.end;
            }
        }
        Ok(())
    }

    /// Where the second-level tables begin, in the order of the file. No two overlap.
    fn l2_tables(&self, file: &File, length: u64) -> io::Result<Vec<u64>> {
        let l1_bytes = self.l1_entries * 8;
        let l1 = read_entries(file, self.l1_offset, l1_bytes)?;
        let offsets = l1.iter().map(|entry| entry & OFFSET_MASK);
        let mut tables: Vec<u64> = offsets.filter(|offset| *offset != 0).collect();
        tables.sort_unstable();
        let own = self.l1_offset..self.l1_offset + l1_bytes;
        for table in &tables {
            self.holds(*table, self.cluster_bytes(), length)?;
            if own.contains(table) {
                return Err(bad(format!("a table at {table}, within another")));
            }
        }
        if tables.is_sorted_by(|one, next| one < next) {
            Ok(tables)
        } else {
            Err(bad("a table is used twice"))
        }
    }

    fn check_entry(&self, entry: u64, length: u64) -> io::Result<()> {
        let offset = if entry & COMPRESSED != 0 {
            entry & ((1 << (62 - (self.cluster_bits - 8))) - 1)
        } else {
            let offset = entry & OFFSET_MASK;
            if !offset.is_multiple_of(self.cluster_bytes()) {
                return Err(bad(format!("a cluster at {offset}, between two others")));
            }
            offset
        };
        // Only the last cluster may end past the file: it was never written whole.
        if offset < length { Ok(()) } else { Err(bad("it is truncated: data lies past its end")) }
    }

    /// Whether a table lies in the file, where a table may begin.
    fn holds(&self, offset: u64, table_bytes: u64, length: u64) -> io::Result<()> {
        let is_inside = offset.checked_add(table_bytes).is_some_and(|end| end <= length);
        if offset != 0 && offset.is_multiple_of(self.cluster_bytes()) && is_inside {
            Ok(())
        } else {
            Err(bad(format!("a table of {table_bytes} bytes at {offset}, not in the file")))
        }
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn bytes_per_l2(&self) -> u64 {
        self.cluster_bytes() * (self.cluster_bytes() / 8)
    }

    /// Refuses a file that names a backing file other than the one declared.
    pub(super) fn check_backing(&self, declared: Option<&str>) -> io::Result<()> {
        match &self.backing {
            Some(named) if declared != Some(named) => {
                Err(bad(format!("it names the undeclared backing file {named:?}")))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn read_backing(file: &File, offset: u64, length: u32) -> io::Result<Option<String>> {
    if offset == 0 {
        return Ok(None);
    }
    if length > 1023 || offset > 1 << 21 {
        return Err(bad("the name of a backing file is out of bounds"));
    }
    let mut name = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut name, offset).map_err(too_short)?;
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

fn read_entries(file: &File, offset: u64, table_bytes: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(table_bytes).unwrap_or(0)];
    file.read_exact_at(&mut bytes, offset).map_err(too_short)?;
    let (entries, _) = bytes.as_chunks::<8>();
    Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

/// Finds what of a file is no hole, on one walk from its begin to its end.
#[derive(Debug)]
struct DataWalk<'a> {
    file: &'a File,
    /// The first data that ends after the range asked for last began.
    found: Range<u64>,
}

impl DataWalk<'_> {
    /// The first data in a range, in whole table entries. Ranges come in rising order.
    fn next_within(&mut self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        if self.found.end <= range.start {
            self.found = self.find(range.start)?;
        }
        let data = self.found.start.max(range.start)..self.found.end.min(range.end);
        Ok(if data.is_empty() { None } else { Some(data) })
    }

    fn find(&self, from: u64) -> io::Result<Range<u64>> {
        let begin = match rustix::fs::seek(self.file, SeekFrom::Data(from)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => return Ok(u64::MAX..u64::MAX),
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(self.file, SeekFrom::Hole(begin)) {
            // A hole dug meanwhile is read as what it is.
            Ok(end) => end.max(begin + 1),
            Err(Errno::NXIO) => u64::MAX,
            Err(error) => return Err(error.into()),
        };
        Ok(begin / 8 * 8..end.div_ceil(8).saturating_mul(8))
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_be_bytes(*word))
}

fn bad(text: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.into())
}

fn too_short(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::UnexpectedEof { bad("it is truncated") } else { error }
}

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
    fn open(&self) -> io::Result<FormatAccess<ImageFile>> {
        let header = Header::read(&self.top)?;
        let declared = self.backing.as_ref().map(|backing| backing.name.as_str());
        header.check_backing(declared)?;
        let backing = match (&header.backing, &self.backing) {
            (Some(_), Some(backing)) => Some(backing.open()?),
            (Some(_) | None, _) => None,
        };
        open_qcow2(&self.top, &header, backing)
    }

    fn lengths(&self) -> io::Result<Vec<u64>> {
        self.all().map(|file| Ok(file.metadata()?.len())).collect()
    }

    fn all(&self) -> impl Iterator<Item = &File> {
        std::iter::once(&self.top).chain(self.backing.as_ref().map(|backing| &backing.file))
    }
}

impl BackingFile {
    fn open(&self) -> io::Result<FormatAccess<ImageFile>> {
        match self.format {
            Format::Raw => {
                let builder = Raw::<ImageFile>::builder(self.file.try_clone()?.try_into()?);
                Ok(FormatAccess::new(builder.open(DenyImplicitOpenGate::default())?))
            }
            Format::Qcow2 => {
                let header = Header::read(&self.file)?;
                header.check_backing(None)?;
                open_qcow2(&self.file, &header, None)
            }
        }
    }
}

fn open_qcow2(
    file: &File,
    header: &Header,
    backing: Option<FormatAccess<ImageFile>>,
) -> io::Result<FormatAccess<ImageFile>> {
    header.check_tables(file)?;
    let image = Qcow2::<ImageFile>::builder(file.try_clone()?.try_into()?)
        .backing(backing)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(image))
}

/// Reads the disk in an image.
#[derive(Debug)]
pub(super) struct Qcow2Reader {
    image: FormatAccess<ImageFile>,
    files: ImageFiles,
    /// What the files had when the tables were checked.
    lengths: Vec<u64>,
    reading: Reading,
    beneath: Beneath,
}

/// What is said of a range that an image takes from the file beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beneath {
    /// What that file holds there.
    Looked,
    /// That it did not change.
    Unchanged,
}

impl Qcow2Reader {
    pub(super) fn open(files: ImageFiles, reading: Reading) -> io::Result<Self> {
        let lengths = files.lengths()?;
        let image = files.open()?;
        Ok(Self { image, files, lengths, reading, beneath: Beneath::Looked })
    }

    /// The same, where the file beneath is known to be unchanged.
    pub(super) fn on_unchanged(self) -> Self {
        Self { beneath: Beneath::Unchanged, ..self }
    }

    /// The library reads zeroes past the end of a file, so the end is looked at after each
    /// of its calls.
    fn is_whole(&self) -> Result<(), CloudError> {
        let now = self.files.lengths().map_err(failed("looking at a qcow2 image"))?;
        if now.iter().zip(&self.lengths).all(|(now, then)| now >= then) {
            Ok(())
        } else {
            Err(self.reading.changed("a qcow2 image was truncated while it was read"))
        }
    }

    fn mapped(&self, offset: u64) -> io::Result<(ExtentKind, u64)> {
        let mut length_max = self.image.size() - offset;
        if self.beneath == Beneath::Unchanged {
            match self.image.get_shallow_mapping(offset, length_max)? {
                (ShallowMapping::Indirect { offset: same, .. }, length)
                    if same == offset && length > 0 =>
                {
                    return Ok((ExtentKind::Unchanged, length));
                }
                (_, length) => length_max = length,
            }
        }
        let (mapping, length) = self.image.get_mapping(offset, length_max)?;
        match mapping {
            Mapping::Zero { .. } if length > 0 => Ok((ExtentKind::Zero, length)),
            Mapping::Eof { .. } => Err(bad("the disk ends before its size")),
            // A kind unknown here is read like any data.
            _ if length > 0 => Ok((ExtentKind::Data, length)),
            _ => Err(bad("a mapping of no bytes")),
        }
    }

    fn extent(&self, offset: u64) -> io::Result<Extent> {
        let (kind, mut length_bytes) = self.mapped(offset)?;
        for _ in 0..MAPPINGS_MAX {
            if offset + length_bytes >= self.image.size() {
                break;
            }
            match self.mapped(offset + length_bytes)? {
                (next, more) if next == kind => length_bytes += more,
                _ => break,
            }
        }
        Ok(Extent { offset, length_bytes: length_bytes.min(self.image.size() - offset), kind })
    }
}

impl DiskReader for Qcow2Reader {
    fn size_bytes(&self) -> u64 {
        self.image.size()
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, CloudError> {
        is_within(offset, 1, self.size_bytes())?;
        let extent = self.extent(offset).map_err(failed("looking for data in a qcow2 image"))?;
        self.is_whole()?;
        Ok(extent)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError> {
        is_within(offset, buf.len() as u64, self.size_bytes())?;
        self.image.read(buf, offset).map_err(failed("reading a qcow2 image"))?;
        self.is_whole()
    }
}

/// Builds a new file beside the old image and puts it in its place at the end, so that a
/// crash leaves the old image whole. What is never written keeps the old disk's content.
#[derive(Debug)]
pub(super) struct Qcow2Writer {
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
    pub(super) fn create(
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

pub(super) fn partial_name(name: &str) -> String {
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

impl ImageFiles {
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
    use super::super::hold::Hold;
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

    const CLUSTER: u64 = 1 << 16;
    /// The largest disk of all: its second-level tables take 8 GiB.
    const TABLES: u64 = DISK_BYTES_MAX >> 29;

    /// An image whose tables all lie in a hole; returns where the first of them begins.
    fn make_hollow(file: &File) -> u64 {
        let mut header = [0; 72];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[4..8].copy_from_slice(&2_u32.to_be_bytes());
        header[20..24].copy_from_slice(&16_u32.to_be_bytes());
        header[24..32].copy_from_slice(&DISK_BYTES_MAX.to_be_bytes());
        header[36..40].copy_from_slice(&u32::try_from(TABLES).unwrap().to_be_bytes());
        header[40..48].copy_from_slice(&CLUSTER.to_be_bytes());
        let first = CLUSTER + TABLES * 8;
        let l1: Vec<u8> =
            (0..TABLES).rev().flat_map(|i| (first + i * CLUSTER).to_be_bytes()).collect();
        file.write_all_at(&header, 0).unwrap();
        file.write_all_at(&l1, CLUSTER).unwrap();
        file.set_len(first + TABLES * CLUSTER).unwrap();
        first
    }

    /// What this thread has read, as the kernel counts it.
    fn bytes_read() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        text.strip_prefix("rchar: ").unwrap().lines().next().unwrap().parse().unwrap()
    }

    #[test]
    fn tables_in_holes_are_not_read() {
        let file = tempfile::tempfile().unwrap();
        make_hollow(&file);
        let header = Header::read(&file).unwrap();
        let before = bytes_read();
        header.check_tables(&file).unwrap();
        assert!(bytes_read() - before < 2 * TABLES * 8, "{} bytes", bytes_read() - before);
    }

    #[test]
    fn what_is_data_in_a_hollow_table_is_checked() {
        for entry in [0, CLUSTER / 8 / 2, CLUSTER / 8 - 1] {
            for table in [0, TABLES / 2, TABLES - 1] {
                let file = tempfile::tempfile().unwrap();
                let first = make_hollow(&file);
                let header = Header::read(&file).unwrap();
                let at = first + table * CLUSTER + entry * 8;
                file.write_all_at(&first.to_be_bytes(), at).unwrap();
                header.check_tables(&file).unwrap();
                file.write_all_at(&OFFSET_MASK.to_be_bytes(), at).unwrap();
                header.check_tables(&file).unwrap_err();
            }
        }
    }

    #[test]
    fn gaps_between_granules_are_found() {
        let mut granules = Granules::none(200 * GRANULE_BYTES);
        (0..3).chain(70..130).for_each(|granule| granules.add(granule));
        assert_eq!(granules.next_gap(0, 200), Some((3, 70)));
        assert_eq!(granules.next_gap(70, 200), Some((130, 200)));
        assert_eq!(granules.next_gap(70, 130), None);
    }
}
