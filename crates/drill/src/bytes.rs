//! What inspecting needs of a disk, and how numbers are taken out of what was read.

use std::fmt::Debug;
use std::rc::Rc;

/// The bytes of a disk or of a part of it.
pub trait Bytes: Debug {
    /// How many there are.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`, or says why it cannot.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), String>;
}

impl Bytes for Vec<u8> {
    fn size(&self) -> u64 {
        u64::try_from(self.len()).unwrap_or(u64::MAX)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        let from = usize::try_from(offset).ok();
        let range = from.and_then(|from| Some(from..from.checked_add(buf.len())?));
        let bytes = range.and_then(|range| self.get(range)).ok_or_else(|| past_the_end(offset))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// A part of a disk. Nothing outside of it can be read through it.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) disk: Rc<dyn Bytes>,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

impl Bytes for Window {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        let length = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        let at = end.and_then(|_| self.offset.checked_add(offset));
        self.disk.read_at(at.ok_or_else(|| past_the_end(offset))?, buf)
    }
}

/// Reads so many bytes. The length is the caller's, never one found on the disk unchecked.
pub(crate) fn read(from: &dyn Bytes, offset: u64, length: usize) -> Result<Vec<u8>, String> {
    let mut buf = vec![0; length];
    from.read_at(offset, &mut buf)?;
    Ok(buf)
}

fn past_the_end(offset: u64) -> String {
    format!("what is at byte {offset} lies past the end")
}

/// The bytes at `at`; zeroes where the buffer does not reach, so that a slip of ours shows
/// as a wrong number and not as a panic on somebody's disk.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let range = at.checked_add(N).map(|end| at..end);
    let slice = range.and_then(|range| bytes.get(range)).unwrap_or(&[]);
    slice.try_into().unwrap_or([0; N])
}

pub(crate) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// Whether `magic` stands at `at`.
pub(crate) fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// A copy with a field of four bytes zeroed, which is how most checksums are taken.
pub(crate) fn without32(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    if let Some(field) = at.checked_add(4).and_then(|end| copy.get_mut(at..end)) {
        field.fill(0);
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_shows_its_part_only() {
        let disk: Rc<dyn Bytes> = Rc::new((0..100).collect::<Vec<u8>>());
        let window = Window { disk, offset: 10, size: 20 };
        assert_eq!(read(&window, 18, 2).unwrap(), [28, 29]);
        assert!(read(&window, 19, 2).is_err());
        assert!(read(&window, u64::MAX, 2).is_err());
    }

    #[test]
    fn numbers_past_the_end_are_zero() {
        assert_eq!(le32(&[1, 2, 3], 0), 0);
        assert_eq!(le16(&[1, 2, 3], 1), 0x0302);
        assert_eq!(be64(&[], usize::MAX), 0);
    }
}
