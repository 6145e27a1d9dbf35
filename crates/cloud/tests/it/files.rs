//! Server folders made by hand, and QEMU's tools as judges of image files.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use kedge_cloud::local::{CloneFile, FileCalls, LocalCloud};
use kedge_core::ids::{ProjectId, ServerId, VolumeId};
use kedge_core::ports::{Cloud, DiskReader, Extent, ExtentKind, ServerRef};
use kedge_core::resource::Volume;
use tempfile::TempDir;

pub(crate) const SERVER: &str = "5f0c2a1e-0000-4000-8000-000000000001";
pub(crate) const PROJECT: &str = "0123456789abcdef0123456789abcdef";

/// Calls by which every file's times are old, on a file system that notes every write.
pub(crate) fn settled() -> FileCalls {
    FileCalls {
        notes_writes: |_| Ok(true),
        time: |file| Ok(file.metadata()?.ctime() + 10),
        ..FileCalls::default()
    }
}

/// A directory with one server, whose disks a test declares.
pub(crate) struct Site {
    pub(crate) root: TempDir,
    disks: Vec<String>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("web")).unwrap();
        let site = Self { root, disks: Vec::new() };
        site.declare("");
        site
    }

    /// A site with one disk, declared by these lines.
    pub(crate) fn with_disk(lines: &str) -> Self {
        let mut site = Self::new();
        site.add_disk(lines);
        site
    }

    pub(crate) fn add_disk(&mut self, lines: &str) -> VolumeId {
        let id = volume_id(self.disks.len());
        self.disks.push(format!("[[disk]]\nid = \"{id}\"\nname = \"disk\"\n{lines}\n"));
        self.declare(&self.disks.concat());
        id
    }

    fn declare(&self, disks: &str) {
        let text = declaration(SERVER, disks);
        fs::write(self.path("server.toml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("web").join(name)
    }

    pub(crate) fn open(&self) -> LocalCloud {
        LocalCloud::open(self.root.path().to_owned()).unwrap()
    }

    /// The site with another way to clone a file.
    pub(crate) fn open_with_clone(&self, clone: CloneFile) -> LocalCloud {
        let calls = FileCalls { clone, ..FileCalls::default() };
        LocalCloud::open_with(self.root.path().to_owned(), calls).unwrap()
    }

    pub(crate) async fn volume(&self, index: usize) -> Volume {
        let server = self.open().find_server(&server_ref()).await.unwrap().unwrap();
        server.volumes[index].clone()
    }
}

pub(crate) fn declaration(id: &str, disks: &str) -> String {
    format!(
        "id = \"{id}\"\nproject = \"{PROJECT}\"\nname = \"web\"\nkind = \"kvm\"\n\
         zone = \"z\"\nram_mb = 512\nvcpus = 1\n{disks}"
    )
}

pub(crate) fn volume_id(index: usize) -> VolumeId {
    VolumeId::asked(&format!("5f0c2a1e-0000-4000-8000-0000000000d{index}"))
}

pub(crate) fn server_ref() -> ServerRef {
    ServerRef { project: ProjectId::new(PROJECT), server: ServerId::asked(SERVER) }
}

/// Bytes that look random, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// A raw file with data at both ends and a hole between; returns what it reads as.
pub(crate) fn make_raw(path: &Path, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let edge = length / 4;
    bytes[..edge].copy_from_slice(&noise(1, edge));
    bytes[length - edge..].copy_from_slice(&noise(2, edge));
    let mut file = File::create(path).unwrap();
    file.write_all(&bytes[..edge]).unwrap();
    file.seek(SeekFrom::Start((length - edge) as u64)).unwrap();
    file.write_all(&bytes[length - edge..]).unwrap();
    bytes
}

/// A qcow2 file with the same kind of content.
pub(crate) fn make_qcow2(path: &Path, length: usize, options: &[&str]) -> Vec<u8> {
    let raw = tempfile::NamedTempFile::new().unwrap();
    let bytes = make_raw(raw.path(), length);
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "qcow2"]).args(options);
    done(command.arg(raw.path()).arg(path));
    bytes
}

/// What QEMU reads from an image.
pub(crate) fn judge(path: &Path, format: &str) -> Vec<u8> {
    let raw = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-U", "-f", format, "-O", "raw"]);
    done(command.arg(path).arg(raw.path()));
    fs::read(raw.path()).unwrap()
}

/// Fails unless QEMU finds an image without fault.
pub(crate) fn check(path: &Path) {
    done(Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(path));
}

/// Writes into a qcow2 image as a guest would, whoever has it locked.
pub(crate) fn guest_write(path: &Path, offset: u64, length: usize, byte: u8) {
    let image =
        format!("driver=qcow2,file.driver=file,file.locking=off,file.filename={}", path.display());
    let write = format!("write -P {byte} {offset} {length}");
    done(Command::new("qemu-io").args(["--image-opts", &image, "-c", &write]));
}

pub(crate) fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// Overwrites bytes of a file in place.
pub(crate) fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// The extents of a disk, which must cover it exactly.
pub(crate) fn extents(reader: &Arc<dyn DiskReader>) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut offset = 0;
    while offset < reader.size_bytes() {
        let extent = reader.next_extent(offset).unwrap();
        assert_eq!(extent.offset, offset);
        assert!(extent.length_bytes >= 1 && offset + extent.length_bytes <= reader.size_bytes());
        offset += extent.length_bytes;
        extents.push(extent);
    }
    extents
}

pub(crate) fn range_of(extent: Extent) -> Range<usize> {
    let [begin, end] = [extent.offset, extent.offset + extent.length_bytes];
    usize::try_from(begin).unwrap()..usize::try_from(end).unwrap()
}

/// Everything on a disk, by its extents; zero extents are read too and must be zeroes.
pub(crate) fn read_all(reader: &Arc<dyn DiskReader>) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(reader.size_bytes()).unwrap()];
    for extent in extents(reader) {
        let range = range_of(extent);
        reader.read_at(extent.offset, &mut bytes[range.clone()]).unwrap();
        if extent.kind == ExtentKind::Zero {
            assert!(bytes[range].iter().all(|byte| *byte == 0), "a zero extent holds data");
        }
    }
    bytes
}
