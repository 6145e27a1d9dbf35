//! Reads ext2, ext3 and ext4: the superblock, the journal, every directory and every
//! file's record.
//!
//! What this cannot read is not the file system's fault. A feature that is not supported
//! leaves [`Depth::Described`] and no problem.

use std::error::Error;
use std::ops::ControlFlow;
use std::rc::Rc;

use ext4_view::{DirEntry, Ext4, Ext4Error, Ext4Read, Path, PathBuf};
use kedge_core::drill::Depth;

use crate::bytes::{Bytes, le16, le32, read};
use crate::content::{Content, check_fits};
use crate::crc::crc32c_raw;
use crate::journal::{self, Replayed};
use crate::problems::note;

pub(crate) const SUPERBLOCK: usize = 1024;
const MAGIC: u16 = 0xef53;
const STATE_HAS_ERRORS: u16 = 2;
const COMPAT_HAS_JOURNAL: u32 = 0x4;
pub(crate) const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEVICE: u32 = 0x8;
const INCOMPAT_META_GROUPS: u32 = 0x10;
pub(crate) const INCOMPAT_64BIT: u32 = 0x80;
/// Extents, 64 bits, flexible groups: none of them is older than ext4.
const INCOMPAT_EXT4: u32 = 0x2c0;
/// Huge files, group checksums, many subdirectories, large records, metadata checksums.
const RO_COMPAT_EXT4: u32 = 0x478;
const RO_COMPAT_METADATA_CHECKSUMS: u32 = 0x400;
/// The kernel's own limit.
const BLOCK_BYTES_MAX: u32 = 64 << 10;
/// A record that has room for both halves of its checksum.
const CHECKED_RECORD_BYTES_MIN: u16 = 132;

/// More is not worth the wait; what was read until then is reported.
const ENTRIES_MAX: u64 = 5_000_000;
/// Longer paths cannot be opened by name, on Linux as little as in ext4-view.
const PATH_BYTES_MAX: usize = 4000;

/// The fields of a superblock that are needed.
#[derive(Debug)]
pub(crate) struct Superblock {
    bytes: Vec<u8>,
}

impl Superblock {
    pub(crate) fn block_bytes(&self) -> Option<u32> {
        let bytes = 1024_u32.checked_shl(le32(&self.bytes, 0x18))?;
        (1024..=BLOCK_BYTES_MAX).contains(&bytes).then_some(bytes)
    }

    pub(crate) fn blocks(&self) -> u64 {
        let high = if self.incompat() & INCOMPAT_64BIT == 0 { 0 } else { le32(&self.bytes, 0x150) };
        u64::from(high) << 32 | u64::from(le32(&self.bytes, 4))
    }

    pub(crate) fn incompat(&self) -> u32 {
        le32(&self.bytes, 0x60)
    }

    pub(crate) fn first_block(&self) -> u32 {
        le32(&self.bytes, 0x14)
    }

    pub(crate) fn records_per_group(&self) -> u32 {
        le32(&self.bytes, 0x28)
    }

    pub(crate) fn journal_record(&self) -> u32 {
        le32(&self.bytes, 0xe0)
    }

    pub(crate) fn group_bytes(&self) -> u16 {
        if self.incompat() & INCOMPAT_64BIT == 0 { 32 } else { le16(&self.bytes, 0xfe) }
    }

    /// The first revision has the only size there was, and leaves the field alone.
    pub(crate) fn record_bytes(&self) -> u16 {
        if self.is_first_revision() { 128 } else { le16(&self.bytes, 0x58) }
    }

    fn is_first_revision(&self) -> bool {
        le32(&self.bytes, 0x4c) == 0
    }

    fn has_checksums(&self) -> bool {
        le32(&self.bytes, 0x64) & RO_COMPAT_METADATA_CHECKSUMS != 0
    }

    fn checksum(&self) -> u32 {
        crc32c_raw(!0, self.bytes.get(..0x3fc).unwrap_or(&[]))
    }

    fn name(&self) -> &'static str {
        let is_ext4 =
            self.incompat() & INCOMPAT_EXT4 != 0 || le32(&self.bytes, 0x64) & RO_COMPAT_EXT4 != 0;
        match (is_ext4, le32(&self.bytes, 0x5c) & COMPAT_HAS_JOURNAL != 0) {
            (true, _) => "ext4",
            (false, true) => "ext3",
            (false, false) => "ext2",
        }
    }

    /// What ext4-view takes for damage although it is none.
    fn is_misread(&self) -> bool {
        let is_half_checked =
            self.has_checksums() && self.record_bytes() < CHECKED_RECORD_BYTES_MIN;
        self.is_first_revision() || is_half_checked || self.incompat() & INCOMPAT_META_GROUPS != 0
    }

    /// As it is once the journal has been replayed.
    pub(crate) fn recovered(mut self) -> Vec<u8> {
        let incompat = (self.incompat() & !INCOMPAT_RECOVER).to_le_bytes();
        self.bytes.splice(0x60..0x64, incompat);
        if self.has_checksums() {
            let checksum = self.checksum().to_le_bytes();
            self.bytes.splice(0x3fc..0x400, checksum);
        }
        self.bytes
    }

    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }
}

/// Looks at a partition that may hold such a file system. `head` is how it begins.
pub(crate) fn look(part: &Rc<dyn Bytes>, head: &[u8]) -> Option<Content> {
    let superblock = Superblock { bytes: head.get(SUPERBLOCK..SUPERBLOCK + 1024)?.to_vec() };
    if le16(&superblock.bytes, 0x38) != MAGIC {
        return None;
    }
    if superblock.incompat() & INCOMPAT_JOURNAL_DEVICE != 0 {
        return Some(Content::recognised("jbd"));
    }
    let mut content = Content::recognised(superblock.name());
    if superblock.has_checksums() && superblock.checksum() != le32(&superblock.bytes, 0x3fc) {
        note(&mut content.problems, "the superblock's checksum is wrong");
        return Some(content);
    }
    let bytes = superblock.block_bytes().map(u64::from);
    let bytes = bytes.and_then(|bytes| bytes.checked_mul(superblock.blocks()));
    check_fits(&mut content.problems, "the file system", bytes, part.size());
    if content.problems.is_empty() {
        content.depth = Depth::Described;
        look_inside(part, &superblock, &mut content);
    }
    Some(content)
}

fn look_inside(part: &Rc<dyn Bytes>, superblock: &Superblock, content: &mut Content) {
    let replayed = match journal::replay(part, superblock) {
        Ok(Some(replayed)) => replayed,
        Ok(None) => return,
        Err(text) => return note(&mut content.problems, format!("the journal: {text}")),
    };
    if le16(replayed.superblock(), 0x3a) & STATE_HAS_ERRORS != 0 {
        note(&mut content.problems, "the file system is marked as having errors");
    }
    if superblock.is_misread() {
        return;
    }
    match Ext4::load(Box::new(Reader(replayed))) {
        Ok(fs) => walk(&fs, content),
        Err(Ext4Error::Incompatible(_)) => {}
        Err(error) => note(&mut content.problems, error.to_string()),
    }
}

struct Reader(Replayed);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        self.0.read_at(start_byte, dst).map_err(Into::into)
    }
}

/// Reads every directory and every file's record. Iterates: the depth of a tree is the
/// disk's choice, that of our stack is not.
fn walk(fs: &Ext4, content: &mut Content) {
    let mut walk = Walk { content, seen: 0, is_complete: true, directories: Vec::new() };
    match fs.symlink_metadata(Path::ROOT) {
        Ok(_) => walk.content.files += 1,
        Err(error) => walk.blame(Path::ROOT, &error),
    }
    walk.directories.push(PathBuf::from(Path::ROOT));
    while let Some(path) = walk.directories.pop() {
        match fs.read_dir(path.as_path()) {
            Ok(entries) => {
                for entry in entries {
                    if walk.enter(path.as_path(), entry).is_break() {
                        return;
                    }
                }
            }
            Err(error) => walk.blame(path.as_path(), &error),
        }
    }
    if walk.is_complete {
        walk.content.depth = Depth::Walked;
    }
}

struct Walk<'a> {
    content: &'a mut Content,
    seen: u64,
    is_complete: bool,
    directories: Vec<PathBuf>,
}

impl Walk<'_> {
    fn enter(
        &mut self,
        directory: Path<'_>,
        entry: Result<DirEntry, Ext4Error>,
    ) -> ControlFlow<()> {
        self.seen += 1;
        if self.seen > ENTRIES_MAX {
            return ControlFlow::Break(());
        }
        match entry {
            Ok(entry) if [&b"."[..], b".."].contains(&entry.file_name().as_ref()) => {}
            Ok(entry) => self.read_record(&entry),
            Err(error) => self.blame(directory, &error),
        }
        ControlFlow::Continue(())
    }

    fn read_record(&mut self, entry: &DirEntry) {
        let path = entry.path();
        match (entry.metadata(), entry.file_type()) {
            (Ok(metadata), Ok(kind)) => {
                self.content.files += 1;
                if metadata.file_type() != kind {
                    let text = format!("{}: listed as another kind of file", path.display());
                    note(&mut self.content.problems, text);
                } else if metadata.is_dir() {
                    self.remember(path);
                }
            }
            (Err(error), _) | (_, Err(error)) => self.blame(path.as_path(), &error),
        }
    }

    fn remember(&mut self, directory: PathBuf) {
        let bytes: &[u8] = directory.as_ref();
        if bytes.len() <= PATH_BYTES_MAX {
            self.directories.push(directory);
        } else {
            self.is_complete = false;
        }
    }

    /// An error of the reader's limits makes the walk incomplete, any other is a problem.
    fn blame(&mut self, path: Path<'_>, error: &Ext4Error) {
        use Ext4Error::{Encrypted, Incompatible, PathTooLong};
        match error {
            Incompatible(_) | Encrypted | PathTooLong => self.is_complete = false,
            _ => note(&mut self.content.problems, format!("{}: {error}", path.display())),
        }
    }
}

/// The superblock as it stands on the disk.
pub(crate) fn read_superblock(part: &dyn Bytes) -> Result<Superblock, String> {
    Ok(Superblock::from_bytes(read(part, 1024, 1024)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impossible_superblock_is_a_problem_and_no_walk() {
        let mut disk = vec![0; 64 << 10];
        disk[SUPERBLOCK + 0x38..SUPERBLOCK + 0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        disk[SUPERBLOCK + 0x18] = 30;
        let part: Rc<dyn Bytes> = Rc::new(disk.clone());
        let content = look(&part, &disk).unwrap();
        assert_eq!((content.name.as_str(), content.depth), ("ext2", Depth::Recognised));
        assert_eq!(content.problems.len(), 1);
    }

    #[test]
    fn no_magic_is_no_file_system() {
        let disk = vec![0; 64 << 10];
        let part: Rc<dyn Bytes> = Rc::new(disk.clone());
        assert!(look(&part, &disk).is_none());
        assert!(look(&part, &disk[..1500]).is_none());
    }

    #[test]
    fn a_recovered_superblock_needs_no_journal_and_adds_up() {
        let mut bytes = vec![0; 1024];
        bytes[0x60] = 0x46;
        bytes[0x65] = 0x04;
        let recovered = Superblock { bytes: Superblock { bytes }.recovered() };
        assert_eq!(recovered.incompat(), 0x42);
        assert_eq!(recovered.checksum(), le32(&recovered.bytes, 0x3fc));
        assert_eq!(recovered.name(), "ext4");
    }
}
