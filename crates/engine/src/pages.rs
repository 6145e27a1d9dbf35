//! Memory that begins at a page, so that the kernel can move it to a disk as it lies there.

use std::fmt;

/// What a page of memory and a block of any usual disk are multiples of.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Bytes that are filled, stored and filled again. The first lies at the start of a page
/// as long as all stay within the room that was made for them.
#[derive(Default)]
pub(crate) struct PageBuffer {
    bytes: Vec<u8>,
    /// What comes before the first byte.
    start: usize,
}

impl fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageBuffer").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl PageBuffer {
    /// Forgets what is in it and makes room for so many bytes. What is not touched costs
    /// nothing, while growing would copy.
    pub(crate) fn make_room(&mut self, room_bytes: usize) {
        self.bytes.clear();
        self.bytes.reserve_exact(room_bytes + PAGE_BYTES);
        let to_page = self.bytes.as_ptr().align_offset(PAGE_BYTES);
        self.start = if to_page < PAGE_BYTES { to_page } else { 0 };
        self.bytes.resize(self.start, 0);
    }

    /// So many bytes to be overwritten; what they hold is of no meaning.
    pub(crate) fn of_len(&mut self, len: usize) -> &mut [u8] {
        if self.start + len > self.bytes.capacity() {
            self.make_room(len);
        }
        self.bytes.resize(self.start + len, 0);
        &mut self.bytes[self.start..]
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Lets `fill` append bytes; nothing may be taken away.
    pub(crate) fn append<T>(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let before = self.bytes.len();
        let filled = fill(&mut self.bytes);
        debug_assert!(self.bytes.len() >= before, "bytes were taken away");
        filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_to_be_overwritten_begin_at_a_page() {
        let mut buffer = PageBuffer::default();
        for len in [0, 1, 5000, 1 << 20, 3, 0, 2 << 20] {
            let bytes = buffer.of_len(len);
            assert_eq!(bytes.len(), len);
            assert!(len == 0 || bytes.as_ptr().align_offset(PAGE_BYTES) == 0, "{len}");
            assert_eq!(buffer.as_slice().len(), len);
        }
    }

    #[test]
    fn what_stays_within_its_room_begins_at_a_page() {
        let mut buffer = PageBuffer::default();
        for room in [0, 1, 5000, 1 << 20, 1000] {
            buffer.make_room(room);
            assert_eq!(buffer.len(), 0);
            buffer.append(|bytes| bytes.resize(bytes.len() + room, 7));
            assert_eq!(buffer.as_slice(), vec![7; room]);
            assert_eq!(buffer.as_slice().as_ptr().align_offset(PAGE_BYTES), 0, "{room}");
        }
        // Beyond its room it may lie anywhere, and is what it is.
        buffer.append(|bytes| bytes.resize(bytes.len() + (1 << 20), 8));
        assert_eq!(buffer.len(), 1000 + (1 << 20));
        assert_eq!(buffer.as_slice()[..1001], [vec![7; 1000], vec![8]].concat());
    }
}
