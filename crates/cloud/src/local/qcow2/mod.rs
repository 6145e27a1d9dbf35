//! Disks in qcow2 files: the checks a file passes before a library may read it, a reader,
//! and a writer that builds a new file beside the old one.
//!
//! A file is hostile: whoever uploaded it chose every byte. Nothing it names is ever
//! opened; another file comes in only as declared. What it says about sizes is bounded
//! before anything is allocated, and every table must lie whole inside the file, because
//! a table past the end would read as zeroes and pass for an empty disk. What checking
//! costs is paid for by whoever made the file: holes in it are not read.

mod header;
mod read;
mod write;

pub(super) use self::header::Header;
pub(super) use self::read::Qcow2Reader;
pub use self::write::GiveFile;
pub(super) use self::write::{Qcow2Writer, give};
