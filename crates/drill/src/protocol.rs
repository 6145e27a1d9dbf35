//! What the inspecting child and its parent say to each other.
//!
//! The parent says the disk's size. The child asks for bytes, as often as it likes, and
//! ends with its report or with why it did not begin. Numbers are little-endian:
//!
//! | from   | bytes                                                       |
//! |--------|-------------------------------------------------------------|
//! | parent | size (8)                                                    |
//! | child  | `R`, offset (8), length (4)                                 |
//! | parent | 0, the bytes; or 1, length (4), why not                     |
//! | child  | `D`, length (4), the report as JSON; or `E`, length (4), why |
//!
//! Invariant: the parent believes nothing. The child may have been taken over by the disk.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::mem::take as take_slice;
use std::rc::Rc;

use kedge_core::drill::DiskReport;
use kedge_core::ports::DiskReader;

use crate::bytes::{Bytes, le32, le64};
use crate::inspect::inspect;
use crate::problems::{cap, plain};

const READ: u8 = b'R';
const DONE: u8 = b'D';
const REFUSED: u8 = b'E';
/// One answer, held in memory.
const READ_BYTES_MAX: u32 = 1 << 20;
/// Every list of the fullest report at its limit, as JSON.
const REPORT_BYTES_MAX: u32 = 16 << 20;
const TEXT_BYTES_MAX: u32 = 4096;

/// Tables and directories lie in pieces; a round trip for each would take most of the time.
const BLOCK_BYTES: u64 = 64 << 10;
/// 16 MiB of them.
const BLOCKS_MAX: usize = 256;

/// Plays the child to its end.
pub(crate) fn ask<R, W>(mut input: R, output: W) -> Result<(), String>
where
    R: Read + 'static,
    W: Write + 'static,
{
    let mut size = [0; 8];
    input.read_exact(&mut size).map_err(|error| error.to_string())?;
    let link = Link { input, output, blocks: HashMap::new(), uses: 0 };
    let remote = Rc::new(Remote { size: u64::from_le_bytes(size), link: RefCell::new(link) });
    let disk: Rc<dyn Bytes> = Rc::<Remote<R, W>>::clone(&remote);
    let report = inspect(&disk);
    let json = serde_json::to_vec(&report).map_err(|error| error.to_string())?;
    send(&mut remote.link.borrow_mut().output, DONE, &json).map_err(|error| error.to_string())
}

/// Tells the parent why the child does not begin.
pub(crate) fn refuse(mut output: impl Write, why: &str) -> io::Result<()> {
    send(&mut output, REFUSED, why.as_bytes())
}

fn send(output: &mut impl Write, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    output.write_all(&[kind])?;
    output.write_all(&length.to_le_bytes())?;
    output.write_all(bytes)?;
    output.flush()
}

/// The parent's disk as the child sees it.
struct Remote<R, W> {
    size: u64,
    link: RefCell<Link<R, W>>,
}

impl<R, W> fmt::Debug for Remote<R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("size", &self.size).finish_non_exhaustive()
    }
}

struct Link<R, W> {
    input: R,
    output: W,
    /// Blocks by where they begin, each with its last use.
    blocks: HashMap<u64, (u64, Vec<u8>)>,
    uses: u64,
}

impl<R: Read, W: Write> Bytes for Remote<R, W> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        let end = u64::try_from(buf.len()).ok().and_then(|length| offset.checked_add(length));
        if end.is_none_or(|end| end > self.size) {
            return Err(format!("what is at byte {offset} lies past the end"));
        }
        let mut link = self.link.borrow_mut();
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let start = at - at % BLOCK_BYTES;
            let block = link.block(start, BLOCK_BYTES.min(self.size - start))?;
            let from = usize::try_from(at - start).unwrap_or(usize::MAX);
            let found = block.get(from..).unwrap_or(&[]);
            let length = found.len().min(rest.len());
            let (now, later) = take_slice(&mut rest).split_at_mut(length);
            now.copy_from_slice(&found[..length]);
            (at, rest) = (start + BLOCK_BYTES, later);
        }
        Ok(())
    }
}

impl<R: Read, W: Write> Link<R, W> {
    fn block(&mut self, start: u64, length: u64) -> Result<&[u8], String> {
        self.uses += 1;
        let now = self.uses;
        if !self.blocks.contains_key(&start) {
            let bytes = self.request(start, length).map_err(|error| error.to_string())??;
            self.make_room();
            self.blocks.insert(start, (now, bytes));
        }
        let (used, bytes) = self.blocks.get_mut(&start).ok_or("a block that was read is gone")?;
        *used = now;
        Ok(bytes)
    }

    fn make_room(&mut self) {
        if self.blocks.len() < BLOCKS_MAX {
            return;
        }
        let oldest = self.blocks.iter().min_by_key(|(_, (used, _))| *used);
        if let Some(start) = oldest.map(|(start, _)| *start) {
            self.blocks.remove(&start);
        }
    }

    /// One round trip. The inner error is the parent's answer, the outer one the link's end.
    fn request(&mut self, offset: u64, length: u64) -> io::Result<Result<Vec<u8>, String>> {
        let length = u32::try_from(length).map_err(io::Error::other)?;
        let mut request = vec![READ];
        request.extend(offset.to_le_bytes());
        request.extend(length.to_le_bytes());
        self.output.write_all(&request)?;
        self.output.flush()?;
        let [status] = take(&mut self.input)?;
        if status == 0 {
            return Ok(Ok(take_vec(&mut self.input, length)?));
        }
        let length = u32::from_le_bytes(take(&mut self.input)?).min(TEXT_BYTES_MAX);
        let text = take_vec(&mut self.input, length)?;
        Ok(Err(String::from_utf8_lossy(&text).into_owned()))
    }
}

/// How a child ended, as far as what it said tells.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With its report.
    Reported(DiskReport),
    /// Before it began, by its own choice.
    Refused(String),
    /// In the middle, after so many requests.
    Closed { requests: u64 },
    /// It said what no child of ours says.
    Violated(&'static str),
}

/// Plays the parent until the child ends.
pub(crate) fn answer(
    mut from_child: impl Read,
    mut to_child: impl Write,
    disk: &dyn DiskReader,
) -> Ended {
    let mut requests = 0;
    match converse(&mut from_child, &mut to_child, disk, &mut requests) {
        Ok(ended) => ended,
        Err(_) => Ended::Closed { requests },
    }
}

fn converse(
    from_child: &mut impl Read,
    to_child: &mut impl Write,
    disk: &dyn DiskReader,
    requests: &mut u64,
) -> io::Result<Ended> {
    // A child that has refused already cannot be told, but still be heard.
    let _ = to_child.write_all(&disk.size_bytes().to_le_bytes()).and_then(|()| to_child.flush());
    loop {
        let [kind] = take(from_child)?;
        match kind {
            READ => {
                *requests += 1;
                let request: [u8; 12] = take(from_child)?;
                if !answer_read(to_child, disk, le64(&request, 0), le32(&request, 8))? {
                    return Ok(Ended::Violated("it asked for what is not on the disk"));
                }
            }
            DONE => return take_report(from_child),
            REFUSED => return take_refusal(from_child),
            _ => return Ok(Ended::Violated("it said what means nothing")),
        }
    }
}

/// Answers one request; false if it was not a proper one.
fn answer_read(
    to_child: &mut impl Write,
    disk: &dyn DiskReader,
    offset: u64,
    length: u32,
) -> io::Result<bool> {
    let end = offset.checked_add(length.into());
    if length > READ_BYTES_MAX || end.is_none_or(|end| end > disk.size_bytes()) {
        return Ok(false);
    }
    let mut bytes = vec![0; length as usize];
    match disk.read_at(offset, &mut bytes) {
        Ok(()) => {
            to_child.write_all(&[0])?;
            to_child.write_all(&bytes)?;
        }
        Err(error) => {
            // As many bytes as characters: none of them is cut.
            let text: String = error.text.chars().filter(char::is_ascii).take(1000).collect();
            send(to_child, 1, text.as_bytes())?;
        }
    }
    to_child.flush()?;
    Ok(true)
}

fn take_report(from_child: &mut impl Read) -> io::Result<Ended> {
    let length = u32::from_le_bytes(take(from_child)?);
    if length > REPORT_BYTES_MAX {
        return Ok(Ended::Violated("its report is too long"));
    }
    let json = take_vec(from_child, length)?;
    let Ok(mut report) = serde_json::from_slice::<DiskReport>(&json) else {
        return Ok(Ended::Violated("its report is none"));
    };
    cap(&mut report);
    Ok(Ended::Reported(report))
}

fn take_refusal(from_child: &mut impl Read) -> io::Result<Ended> {
    let length = u32::from_le_bytes(take(from_child)?);
    if length > TEXT_BYTES_MAX {
        return Ok(Ended::Violated("its refusal is too long"));
    }
    let text = take_vec(from_child, length)?;
    Ok(Ended::Refused(plain(&String::from_utf8_lossy(&text), 500)))
}

fn take<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take_vec(input: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use kedge_core::ports::{CloudError, Extent, ExtentKind};

    use super::*;

    #[derive(Debug)]
    struct Disk(Vec<u8>);

    impl DiskReader for Disk {
        fn size_bytes(&self) -> u64 {
            u64::try_from(self.0.len()).unwrap()
        }

        fn next_extent(&self, offset: u64) -> Result<Extent, CloudError> {
            let length_bytes = self.size_bytes() - offset;
            Ok(Extent { offset, length_bytes, kind: ExtentKind::Data })
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError> {
            self.0.read_at(offset, buf).map_err(CloudError::permanent)
        }
    }

    fn with_child(
        disk: &Disk,
        child: impl FnOnce(UnixStream, UnixStream) + Send + 'static,
    ) -> Ended {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let input = theirs.try_clone().unwrap();
        let child = thread::spawn(move || child(input, theirs));
        let ended = answer(&ours, &ours, disk);
        drop(ours);
        child.join().unwrap();
        ended
    }

    fn says(what: Vec<u8>) -> impl FnOnce(UnixStream, UnixStream) + Send {
        move |_, mut output| output.write_all(&what).unwrap()
    }

    #[test]
    fn a_child_of_ours_reports() {
        let mut disk = vec![0; 3 << 20];
        disk[(1 << 20) - 1] = 1;
        let ended = with_child(&Disk(disk), |input, output| ask(input, output).unwrap());
        let Ended::Reported(report) = ended else { panic!("{ended:?}") };
        assert_eq!(report.partitions[0].content, "unknown");
    }

    #[test]
    fn a_disk_smaller_than_a_block_is_read() {
        let ended = with_child(&Disk(vec![7; 1000]), |input, output| ask(input, output).unwrap());
        let Ended::Reported(report) = ended else { panic!("{ended:?}") };
        assert_eq!(report.partitions[0].size_bytes, 1000);
    }

    #[test]
    fn what_is_cached_is_what_is_there() {
        let bytes: Vec<u8> =
            (0..BLOCK_BYTES * 2 + 100).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let expected = bytes.clone();
        with_child(&Disk(bytes), move |mut input, output| {
            let size = u64::from_le_bytes(take(&mut input).unwrap());
            let link = Link { input, output, blocks: HashMap::new(), uses: 0 };
            let remote = Remote { size, link: RefCell::new(link) };
            let mut whole = vec![0; expected.len()];
            remote.read_at(0, &mut whole).unwrap();
            assert!(whole == expected);
            let mut over_the_edge = [0; 10];
            remote.read_at(BLOCK_BYTES - 5, &mut over_the_edge).unwrap();
            let at = usize::try_from(BLOCK_BYTES - 5).unwrap();
            assert_eq!(over_the_edge, expected[at..at + 10]);
            assert!(remote.read_at(size - 5, &mut over_the_edge).is_err());
        });
    }

    #[test]
    fn what_no_child_says_is_a_violation() {
        let read_of_2_mib = [&b"R"[..], &[0; 8], &(2_u32 << 20).to_le_bytes()].concat();
        let past_the_end = [&b"R"[..], &[0xff; 8], &[1, 0, 0, 0]].concat();
        let long_report = [&b"D"[..], &[0xff; 4]].concat();
        let no_report = [&b"D"[..], &[2, 0, 0, 0], b"[]"].concat();
        for said in [read_of_2_mib, past_the_end, long_report, no_report, b"x".to_vec()] {
            let ended = with_child(&Disk(vec![0; 1 << 20]), says(said));
            assert!(matches!(ended, Ended::Violated(_)), "{ended:?}");
        }
    }

    #[test]
    fn a_child_that_goes_is_noticed_and_a_refusal_is_heard() {
        let ended = with_child(&Disk(vec![0; 512]), says(b"R".to_vec()));
        assert!(matches!(ended, Ended::Closed { requests: 1 }), "{ended:?}");
        let ended =
            with_child(&Disk(vec![0; 512]), |_, output| refuse(output, "no limits").unwrap());
        assert!(matches!(ended, Ended::Refused(text) if text == "no limits"));
    }
}
