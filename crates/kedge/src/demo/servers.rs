//! The two servers of the demo, and what happens to their disks.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::disk::{Disk, Format};
use super::noise::Noise;
use super::place::Place;
use crate::failure::{Failure, OrFail as _};

const MIB: u64 = 1 << 20;

/// A real ext4 file system, compressed.
static SYSTEM_DISK: &[u8] = include_bytes!("../../assets/system-disk.ext4.zst");
/// Where in it a file lies that may be rewritten in place.
static SYSTEM_DISK_MAP: &str = include_str!("../../assets/system-disk.json");

/// What the generator of the file system tells about it.
#[derive(Debug, Deserialize)]
struct SystemDiskMap {
    image_bytes: u64,
    block_bytes: u64,
    offsets: Vec<u64>,
}

/// A server of the demo.
#[derive(Debug)]
pub(crate) struct DemoServer {
    pub(crate) id: Uuid,
    pub(crate) name: &'static str,
    pub(crate) disks: Vec<DemoDisk>,
}

/// A disk of the demo.
#[derive(Debug)]
pub(crate) struct DemoDisk {
    pub(crate) id: Uuid,
    pub(crate) name: &'static str,
    pub(crate) size_bytes: u64,
    format: Format,
    role: &'static str,
    path: PathBuf,
    /// What it held at the last backup.
    expected: PathBuf,
}

/// The demo's data centre.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) web: DemoServer,
    pub(crate) db: DemoServer,
    map: SystemDiskMap,
}

#[derive(Serialize)]
struct ServerFile<'a> {
    id: Uuid,
    project: &'a str,
    name: &'a str,
    kind: &'a str,
    zone: &'a str,
    ram_mb: u64,
    vcpus: u64,
    disk: Vec<DiskEntry<'a>>,
}

#[derive(Serialize)]
struct DiskEntry<'a> {
    id: Uuid,
    name: &'a str,
    file: String,
    format: &'a str,
    role: &'a str,
}

impl Servers {
    /// Makes both servers, with data on every disk.
    pub(crate) fn make(place: &Place, project: &str) -> Result<Self, Failure> {
        let map: SystemDiskMap =
            serde_json::from_str(SYSTEM_DISK_MAP).or_fail("the map of the system disk")?;
        let layout = Layout { place, project };
        let web = layout.server(
            ("web", 2048, 2),
            &[
                ("system", Format::Qcow2, "system", map.image_bytes),
                ("data", Format::Raw, "data", 64 * MIB),
            ],
        )?;
        let db = layout.server(("db", 512, 1), &[("disk", Format::Raw, "system", 32 * MIB)])?;
        let servers = Self { web, db, map };
        servers.fill()?;
        Ok(servers)
    }

    pub(crate) fn all(&self) -> [&DemoServer; 2] {
        [&self.web, &self.db]
    }

    pub(crate) fn disks(&self) -> impl Iterator<Item = (&DemoServer, &DemoDisk)> {
        self.all().into_iter().flat_map(|server| server.disks.iter().map(move |d| (server, d)))
    }

    fn fill(&self) -> Result<(), Failure> {
        let system = zstd::decode_all(SYSTEM_DISK).or_fail("the system disk")?;
        for (server, disk) in self.disks() {
            let filled = match (server.name, disk.name) {
                ("web", "system") => disk.change(|image| image.write_sparsely(0, &system)),
                _ => disk.change(|image| fill_with_data(image, disk.size_bytes)),
            };
            filled.or_fail(disk.path.display())?;
        }
        Ok(())
    }

    /// What a day of work does to disks: blocks of a file rewritten in place, and writes
    /// here and there. Returns how many bytes were written.
    pub(crate) fn work(&self) -> Result<u64, Failure> {
        let mut noise = Noise::new(2);
        let mut written_bytes = 0;
        for (server, disk) in self.disks() {
            let writes = match (server.name, disk.name) {
                ("web", "system") => self.file_blocks(),
                _ => scattered_writes(disk.size_bytes, &mut noise),
            };
            disk.change(|image| {
                for (offset, length) in &writes {
                    let mut bytes = vec![0; *length];
                    noise.fill(&mut bytes);
                    image.write_at(*offset, &bytes)?;
                }
                Ok(())
            })
            .or_fail(disk.path.display())?;
            written_bytes += writes.iter().map(|(_, length)| *length as u64).sum::<u64>();
        }
        Ok(written_bytes)
    }

    /// Some blocks of the file on the system disk that may be rewritten.
    fn file_blocks(&self) -> Vec<(u64, usize)> {
        let length = usize::try_from(self.map.block_bytes).unwrap_or(0);
        self.map.offsets.iter().step_by(97).map(|offset| (*offset, length)).collect()
    }

    /// Keeps the demo's own copy of what every disk holds now.
    pub(crate) fn remember(&self) -> Result<(), Failure> {
        for (_, disk) in self.disks() {
            let copied = disk.open().and_then(|image| image.copy_to(&disk.expected));
            copied.or_fail(disk.expected.display())?;
        }
        Ok(())
    }

    /// Overwrites every byte of every disk.
    pub(crate) fn destroy(&self) -> Result<(), Failure> {
        let mut noise = Noise::new(3);
        for (_, disk) in self.disks() {
            let destroyed = disk.change(|image| image.overwrite(&mut noise));
            destroyed.or_fail(disk.path.display())?;
        }
        Ok(())
    }
}

impl DemoServer {
    pub(crate) fn size_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.size_bytes).sum()
    }
}

impl DemoDisk {
    fn open(&self) -> std::io::Result<Disk> {
        Disk::open(&self.path, self.format)
    }

    fn change(&self, work: impl FnOnce(&Disk) -> std::io::Result<()>) -> std::io::Result<()> {
        let image = self.open()?;
        work(&image)?;
        image.finish()
    }

    /// Compares every byte with what the disk held at the last backup.
    pub(crate) fn first_difference(&self) -> Result<Option<u64>, Failure> {
        let compare = || self.open()?.first_difference(&Disk::open(&self.expected, Format::Raw)?);
        compare().or_fail(self.path.display())
    }
}

/// Where servers are made, and whose they are.
struct Layout<'a> {
    place: &'a Place,
    project: &'a str,
}

impl Layout<'_> {
    fn server(
        &self,
        (name, ram_mb, vcpus): (&'static str, u64, u64),
        disks: &[(&'static str, Format, &'static str, u64)],
    ) -> Result<DemoServer, Failure> {
        let folder = self.place.create_dir(&format!("servers/{name}"))?;
        let copies = self.place.create_dir("expected")?;
        let mut made = Vec::with_capacity(disks.len());
        for (disk, format, role, size_bytes) in disks {
            let path = folder.join(format!("{disk}.{}", format.as_str()));
            let created = Disk::create(&path, *format, *size_bytes).and_then(Disk::finish);
            created.or_fail(path.display())?;
            made.push(DemoDisk {
                id: Uuid::new_v4(),
                name: disk,
                size_bytes: *size_bytes,
                format: *format,
                role,
                path,
                expected: copies.join(format!("{name}-{disk}.raw")),
            });
        }
        let server = DemoServer { id: Uuid::new_v4(), name, disks: made };
        let file = ServerFile {
            id: server.id,
            project: self.project,
            name,
            kind: "kvm",
            zone: "demo-zone",
            ram_mb,
            vcpus,
            disk: server.disks.iter().map(disk_entry).collect(),
        };
        let text = toml::to_string(&file).or_fail("server.toml")?;
        self.place.write(&format!("servers/{name}/server.toml"), &text)?;
        Ok(server)
    }
}

fn disk_entry(disk: &DemoDisk) -> DiskEntry<'_> {
    let file = disk.path.file_name().unwrap_or(Path::new("").as_os_str());
    DiskEntry {
        id: disk.id,
        name: disk.name,
        file: file.to_string_lossy().into_owned(),
        format: disk.format.as_str(),
        role: disk.role,
    }
}

/// A quarter of random bytes, an eighth of text, the rest empty.
fn fill_with_data(image: &Disk, size_bytes: u64) -> std::io::Result<()> {
    let mut noise = Noise::new(size_bytes);
    let mut bytes = vec![0; usize::try_from(MIB).unwrap_or(0)];
    let mebibytes = size_bytes / MIB;
    for at in 0..mebibytes / 4 {
        noise.fill(&mut bytes);
        image.write_at(at * MIB, &bytes)?;
    }
    let line = b"2026-03-07T09:27:40Z GET /index.html 200\n";
    for (byte, of_line) in bytes.iter_mut().zip(line.iter().cycle()) {
        *byte = *of_line;
    }
    for at in mebibytes / 2..mebibytes / 2 + mebibytes / 8 {
        image.write_at(at * MIB, &bytes)?;
    }
    Ok(())
}

/// Sixteen writes of 4 to 64 KiB anywhere, in holes too.
fn scattered_writes(size_bytes: u64, noise: &mut Noise) -> Vec<(u64, usize)> {
    const BLOCK_BYTES: u64 = 4096;
    let blocks = size_bytes / BLOCK_BYTES;
    (0..16)
        .map(|_| {
            let length = noise.below(16) + 1;
            let at = noise.below(blocks - length);
            (at * BLOCK_BYTES, usize::try_from(length * BLOCK_BYTES).unwrap_or(0))
        })
        .collect()
}
