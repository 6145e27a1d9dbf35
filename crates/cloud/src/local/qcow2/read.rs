//! Reads the disk in a qcow2 file. Calls from several threads read at the same time; the
//! library makes them wait for each other only while it loads a table.

use std::fs::File;
use std::io;

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, ShallowMapping};
use kedge_core::ports::{CloudError, DiskReader, Extent, ExtentKind};

use super::super::config::Format;
use super::super::error::failed;
use super::super::images::{BackingFile, ImageFiles, Reading, is_within};
use super::header::{Header, bad};

/// Mappings joined into one extent before it is handed out.
const MAPPINGS_MAX: usize = 1024;

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
pub(in crate::local) struct Qcow2Reader {
    pub(super) image: FormatAccess<ImageFile>,
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
    pub(in crate::local) fn open(files: ImageFiles, reading: Reading) -> io::Result<Self> {
        let lengths = files.lengths()?;
        let image = files.open()?;
        Ok(Self { image, files, lengths, reading, beneath: Beneath::Looked })
    }

    /// The same, where the file beneath is known to be unchanged.
    pub(in crate::local) fn on_unchanged(self) -> Self {
        Self { beneath: Beneath::Unchanged, ..self }
    }

    /// The library reads zeroes past the end of a file, so the end is looked at after each
    /// of its calls.
    pub(super) fn is_whole(&self) -> Result<(), CloudError> {
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

    pub(super) fn extent(&self, offset: u64) -> io::Result<Extent> {
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
