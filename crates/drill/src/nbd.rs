//! A server of one disk, to one client, for reading: as much of the NBD protocol as QEMU
//! needs.
//!
//! The client is a machine that runs what is on the disk, so nothing it sends is trusted.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use kedge_core::ports::DiskReader;

use crate::bytes::{be16, be32, be64};

const HELLO: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const HAS_FLAGS: u16 = 1;
const READ_ONLY: u16 = 2;
const SEND_FLUSH: u16 = 4;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// What the protocol asks every server to grant.
const READ_BYTES_MAX: u32 = 32 << 20;
/// An export's name has at most 4096 bytes.
const OPTION_BYTES_MAX: u32 = 64 << 10;
/// A client tries each option once or twice.
const OPTIONS_MAX: u32 = 64;

/// Serves a disk until the client goes. An error is the client's fault or the socket's;
/// one of the disk is answered, and the client decides.
pub fn serve(stream: UnixStream, disk: &dyn DiskReader) -> io::Result<()> {
    let mut link = &stream;
    if !agree(&mut link, disk.size_bytes())? {
        return Ok(());
    }
    loop {
        let mut request = [0; 28];
        match link.read_exact(&mut request) {
            // It was killed, at its own time or in the middle of an answer.
            Err(error) if is_gone(error.kind()) => return Ok(()),
            result => result?,
        }
        let request = Request::parse(&request)?;
        if request.command == COMMAND_DISCONNECT {
            return Ok(());
        }
        obey(&mut link, disk, &request)?;
    }
}

fn is_gone(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

/// Agrees on the disk; false if the client went away instead.
fn agree(link: &mut (impl Read + Write), size: u64) -> io::Result<bool> {
    link.write_all(HELLO)?;
    link.write_all(&OPTION_MAGIC.to_be_bytes())?;
    link.write_all(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes())?;
    let flags = be32(&take::<4>(link)?, 0);
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(wrong("unknown flags"));
    }
    for _ in 0..OPTIONS_MAX {
        let head: [u8; 16] = take(link)?;
        let (option, length) = (be32(&head, 8), be32(&head, 12));
        if be64(&head, 0) != OPTION_MAGIC || length > OPTION_BYTES_MAX {
            return Err(wrong("a malformed option"));
        }
        skip(link, length)?;
        match option {
            OPTION_EXPORT_NAME => {
                send_old_export(link, size, flags)?;
                return Ok(true);
            }
            OPTION_ABORT => {
                reply_option(link, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            OPTION_INFO | OPTION_GO => {
                reply_export(link, option, size)?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            _ => reply_option(link, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
    Err(wrong("too many options"))
}

fn export_flags() -> [u8; 2] {
    (HAS_FLAGS | READ_ONLY | SEND_FLUSH).to_be_bytes()
}

fn send_old_export(link: &mut impl Write, size: u64, flags: u32) -> io::Result<()> {
    link.write_all(&size.to_be_bytes())?;
    link.write_all(&export_flags())?;
    if flags & u32::from(NO_ZEROES) == 0 {
        link.write_all(&[0; 124])?;
    }
    Ok(())
}

/// Whatever name was asked for: there is one disk.
fn reply_export(link: &mut impl Write, option: u32, size: u64) -> io::Result<()> {
    let export = [&INFO_EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &export_flags()].concat();
    reply_option(link, option, REPLY_INFO, &export)?;
    let sizes = [1_u32, 64 << 10, READ_BYTES_MAX].map(u32::to_be_bytes).concat();
    let blocks = [&INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat();
    reply_option(link, option, REPLY_INFO, &blocks)?;
    reply_option(link, option, REPLY_ACK, &[])
}

fn reply_option(link: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let numbers = [option, kind, length].map(u32::to_be_bytes).concat();
    link.write_all(&[&OPTION_REPLY_MAGIC.to_be_bytes()[..], &numbers, data].concat())
}

#[derive(Debug)]
struct Request {
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

impl Request {
    fn parse(bytes: &[u8; 28]) -> io::Result<Self> {
        if be32(bytes, 0) != REQUEST_MAGIC {
            return Err(wrong("a malformed request"));
        }
        Ok(Self {
            command: be16(bytes, 6),
            cookie: be64(bytes, 8),
            offset: be64(bytes, 16),
            length: be32(bytes, 24),
        })
    }
}

fn obey(
    link: &mut (impl Read + Write),
    disk: &dyn DiskReader,
    request: &Request,
) -> io::Result<()> {
    match request.command {
        COMMAND_READ => match read(disk, request) {
            Ok(bytes) => {
                reply(link, request, 0)?;
                link.write_all(&bytes)
            }
            Err(number) => reply(link, request, number),
        },
        COMMAND_WRITE if request.length > READ_BYTES_MAX => Err(wrong("too long a write")),
        COMMAND_WRITE => {
            skip(link, request.length)?;
            reply(link, request, EPERM)
        }
        COMMAND_FLUSH => reply(link, request, 0),
        _ => reply(link, request, EINVAL),
    }
}

fn read(disk: &dyn DiskReader, request: &Request) -> Result<Vec<u8>, u32> {
    let end = request.offset.checked_add(request.length.into());
    if request.length > READ_BYTES_MAX || end.is_none_or(|end| end > disk.size_bytes()) {
        return Err(EINVAL);
    }
    let mut bytes = vec![0; request.length as usize];
    match disk.read_at(request.offset, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => {
            tracing::warn!(offset = request.offset, %error, "could not read a disk on trial");
            Err(EIO)
        }
    }
}

fn reply(link: &mut impl Write, request: &Request, error: u32) -> io::Result<()> {
    let numbers = [REPLY_MAGIC, error].map(u32::to_be_bytes).concat();
    link.write_all(&[&numbers[..], &request.cookie.to_be_bytes()].concat())
}

fn skip(link: &mut impl Read, length: u32) -> io::Result<()> {
    let skipped = io::copy(&mut link.take(length.into()), &mut io::sink())?;
    if skipped == u64::from(length) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn take<const N: usize>(link: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    link.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client sent {what}"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use kedge_core::ports::{CloudError, Extent, ExtentKind};

    use super::*;

    const SIZE: usize = 4096;

    /// Bytes count up; the second half cannot be read.
    #[derive(Debug)]
    struct HalfReadable;

    impl DiskReader for HalfReadable {
        fn size_bytes(&self) -> u64 {
            4096
        }

        fn next_extent(&self, offset: u64) -> Result<Extent, CloudError> {
            Ok(Extent { offset, length_bytes: 4096 - offset, kind: ExtentKind::Data })
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError> {
            let at = usize::try_from(offset).unwrap();
            if at + buf.len() > SIZE / 2 {
                return Err(CloudError::retryable("gone"));
            }
            for (index, byte) in buf.iter_mut().enumerate() {
                *byte = u8::try_from((at + index) % 251).unwrap();
            }
            Ok(())
        }
    }

    fn client(act: impl FnOnce(&mut UnixStream)) -> io::Result<()> {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || serve(theirs, &HalfReadable));
        assert_eq!(take::<8>(&mut ours).unwrap(), *HELLO);
        assert_eq!(take::<8>(&mut ours).unwrap(), *b"IHAVEOPT");
        assert_eq!(take::<2>(&mut ours).unwrap(), [0, 3]);
        act(&mut ours);
        drop(ours);
        server.join().unwrap()
    }

    fn send_option(link: &mut UnixStream, option: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        link.write_all(&OPTION_MAGIC.to_be_bytes()).unwrap();
        link.write_all(&[option, length].map(u32::to_be_bytes).concat()).unwrap();
        link.write_all(data).unwrap();
    }

    fn take_reply(link: &mut UnixStream) -> (u32, u32, Vec<u8>) {
        let head: [u8; 20] = take(link).unwrap();
        assert_eq!(be64(&head, 0), OPTION_REPLY_MAGIC);
        let mut data = vec![0; be32(&head, 16) as usize];
        link.read_exact(&mut data).unwrap();
        (be32(&head, 8), be32(&head, 12), data)
    }

    fn go(link: &mut UnixStream) {
        link.write_all(&3_u32.to_be_bytes()).unwrap();
        send_option(link, OPTION_GO, &[0; 6]);
        let (_, kind, data) = take_reply(link);
        assert_eq!((kind, be64(&data, 2), be16(&data, 10)), (REPLY_INFO, 4096, 7));
        assert_eq!(take_reply(link).1, REPLY_INFO);
        assert_eq!(take_reply(link).1, REPLY_ACK);
    }

    fn request(link: &mut UnixStream, command: u16, offset: u64, length: u32) -> u32 {
        link.write_all(&REQUEST_MAGIC.to_be_bytes()).unwrap();
        link.write_all(&[0, command].map(u16::to_be_bytes).concat()).unwrap();
        link.write_all(&[77, offset].map(u64::to_be_bytes).concat()).unwrap();
        link.write_all(&length.to_be_bytes()).unwrap();
        if command == COMMAND_WRITE {
            link.write_all(&vec![0; length as usize]).unwrap();
        }
        let reply: [u8; 16] = take(link).unwrap();
        assert_eq!((be32(&reply, 0), be64(&reply, 8)), (REPLY_MAGIC, 77));
        be32(&reply, 4)
    }

    #[test]
    fn reads_are_served_and_nothing_else_is() {
        let ended = client(|link| {
            go(link);
            assert_eq!(request(link, COMMAND_READ, 10, 3), 0);
            assert_eq!(take::<3>(link).unwrap(), [10, 11, 12]);
            assert_eq!(request(link, COMMAND_READ, 3000, 1), EIO);
            assert_eq!(request(link, COMMAND_READ, 4096, 1), EINVAL);
            assert_eq!(request(link, COMMAND_READ, u64::MAX, 1), EINVAL);
            assert_eq!(request(link, COMMAND_READ, 0, READ_BYTES_MAX + 1), EINVAL);
            assert_eq!(request(link, COMMAND_WRITE, 0, 512), EPERM);
            assert_eq!(request(link, COMMAND_FLUSH, 0, 0), 0);
            assert_eq!(request(link, 4, 0, 512), EINVAL);
            assert_eq!(request(link, COMMAND_READ, 0, 1), 0);
            assert_eq!(take::<1>(link).unwrap(), [0]);
        });
        assert!(ended.is_ok());
    }

    #[test]
    fn an_unknown_option_is_declined_and_the_next_is_heard() {
        let ended = client(|link| {
            link.write_all(&3_u32.to_be_bytes()).unwrap();
            send_option(link, 8, &[]);
            assert_eq!(take_reply(link), (8, REPLY_UNSUPPORTED, vec![]));
            send_option(link, OPTION_INFO, &[0; 6]);
            assert_eq!(take_reply(link).1, REPLY_INFO);
            assert_eq!(take_reply(link).1, REPLY_INFO);
            assert_eq!(take_reply(link).1, REPLY_ACK);
            send_option(link, OPTION_ABORT, &[]);
            assert_eq!(take_reply(link).1, REPLY_ACK);
        });
        assert!(ended.is_ok());
    }

    #[test]
    fn the_old_way_in_works_too() {
        let ended = client(|link| {
            link.write_all(&1_u32.to_be_bytes()).unwrap();
            send_option(link, OPTION_EXPORT_NAME, b"any");
            let export: [u8; 134] = take(link).unwrap();
            assert_eq!((be64(&export, 0), be16(&export, 8)), (4096, 7));
            assert_eq!(request(link, COMMAND_READ, 0, 1), 0);
            assert_eq!(take::<1>(link).unwrap(), [0]);
        });
        assert!(ended.is_ok());
    }

    #[test]
    fn nonsense_ends_the_connection() {
        let ended = client(|link| link.write_all(&[0xff; 64]).unwrap());
        assert!(ended.is_err());
        let ended = client(|link| {
            link.write_all(&3_u32.to_be_bytes()).unwrap();
            link.write_all(&OPTION_MAGIC.to_be_bytes()).unwrap();
            link.write_all(&[OPTION_GO, u32::MAX].map(u32::to_be_bytes).concat()).unwrap();
        });
        assert!(ended.is_err());
    }
}
