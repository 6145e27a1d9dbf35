//! What an operator declares about a server: its `server.toml`.

use std::collections::HashSet;

use kedge_core::ids::{ProjectId, ServerId, VolumeId};
use kedge_core::resource::{Encryption, Hardware, ServerKind, Sharing, VolumeRole};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// More disks than any machine takes; bounds what a server can make us hold open.
const DISKS_MAX: usize = 128;
/// Leaves room for [`PARTIAL_SUFFIX`] within the 255 bytes of a name.
const FILE_NAME_BYTES_MAX: usize = 200;
/// Ends the name of a file that is being written beside a disk.
pub(super) const PARTIAL_SUFFIX: &str = ".kedge-partial";
/// The declaration itself.
pub(super) const SERVER_FILE: &str = "server.toml";
/// Our runtime state beside it.
pub(super) const STATE_FILE: &str = "kedge-state.json";

/// A declared server. Its ids are canonical UUIDs and its files plain names.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) id: ServerId,
    pub(super) project: ProjectId,
    pub(super) name: String,
    pub(super) kind: ServerKind,
    pub(super) zone: String,
    pub(super) hardware: Hardware,
    pub(super) disks: Vec<DeclaredDisk>,
}

/// A declared disk.
#[derive(Clone, Debug)]
pub(super) struct DeclaredDisk {
    pub(super) id: VolumeId,
    pub(super) name: String,
    pub(super) image: Image,
    pub(super) role: VolumeRole,
    pub(super) sharing: Sharing,
    pub(super) encryption: Encryption,
}

/// Where a disk's bytes are and how to read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Image {
    pub(super) file: String,
    pub(super) format: Format,
    pub(super) backing: Option<Backing>,
}

/// The file beneath a qcow2 disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backing {
    pub(super) file: String,
    pub(super) format: Format,
}

/// How a file holds a disk. Declared, never guessed from bytes that a guest wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    Raw,
    Qcow2,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerFile {
    id: Uuid,
    project: String,
    name: String,
    kind: String,
    zone: String,
    ram_mb: u64,
    vcpus: u64,
    #[serde(default)]
    disk_gb: u64,
    #[serde(default)]
    image_type: String,
    #[serde(default)]
    private_ip: String,
    #[serde(default)]
    public_ip: String,
    #[serde(default, rename = "disk")]
    disks: Vec<DiskEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskEntry {
    id: Uuid,
    name: String,
    file: String,
    format: Format,
    role: Role,
    #[serde(default)]
    shared: bool,
    #[serde(default)]
    encrypted: bool,
    backing: Option<String>,
    backing_format: Option<Format>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Data,
}

impl Declared {
    /// Reads a declaration; the error says what is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
        let file: ServerFile = toml::from_str(text).map_err(|error| error.to_string())?;
        let kind = ServerKind::from_word(&file.kind)
            .ok_or_else(|| format!("there is no kind {:?}", file.kind))?;
        let disks = file.disks.into_iter().map(DiskEntry::check).collect::<Result<Vec<_>, _>>()?;
        are_distinct(&disks)?;
        Ok(Self {
            id: file.id.into(),
            project: ProjectId::new(file.project),
            name: file.name,
            kind,
            zone: file.zone,
            hardware: Hardware {
                ram_mb: file.ram_mb,
                vcpus: file.vcpus,
                disk_gb: file.disk_gb,
                image_type: file.image_type,
                private_ip: file.private_ip,
                public_ip: file.public_ip,
            },
            disks,
        })
    }
}

impl DiskEntry {
    fn check(self) -> Result<DeclaredDisk, String> {
        is_plain(&self.file)?;
        let backing = match (self.backing, self.backing_format) {
            (None, None) => None,
            (None, Some(_)) => return Err("`backing_format` without `backing`".to_owned()),
            (Some(_), _) if self.format == Format::Raw => {
                return Err("a raw disk has no backing file".to_owned());
            }
            (Some(file), format) => {
                is_plain(&file)?;
                Some(Backing { file, format: format.unwrap_or(Format::Qcow2) })
            }
        };
        Ok(DeclaredDisk {
            id: self.id.into(),
            name: self.name,
            image: Image { file: self.file, format: self.format, backing },
            role: match self.role {
                Role::System => VolumeRole::System,
                Role::Data => VolumeRole::Data,
            },
            sharing: if self.shared { Sharing::Shared } else { Sharing::Exclusive },
            encryption: if self.encrypted { Encryption::Encrypted } else { Encryption::Plain },
        })
    }
}

/// A name of one file in the folder, and not one of ours.
fn is_plain(name: &str) -> Result<(), String> {
    let is_ours = name == SERVER_FILE || name == STATE_FILE || name.ends_with(PARTIAL_SUFFIX);
    let is_plain = !name.is_empty()
        && name.len() <= FILE_NAME_BYTES_MAX
        && !name.starts_with('.')
        && !name.contains(['/', '\0']);
    if is_plain && !is_ours {
        Ok(())
    } else {
        Err(format!("{name:?} is no plain file name for a disk"))
    }
}

fn are_distinct(disks: &[DeclaredDisk]) -> Result<(), String> {
    if disks.len() > DISKS_MAX {
        return Err(format!("more than {DISKS_MAX} disks"));
    }
    let mut ids = HashSet::new();
    let mut files = HashSet::new();
    for disk in disks {
        if !ids.insert(&disk.id) {
            return Err(format!("two disks have the id {:?}", disk.id));
        }
        if !files.insert(&disk.image.file) {
            return Err(format!("two disks are the file {:?}", disk.image.file));
        }
    }
    let mut backings = disks.iter().filter_map(|disk| disk.image.backing.as_ref());
    match backings.find(|backing| files.contains(&backing.file)) {
        Some(backing) => Err(format!("{:?} is both a disk and a backing file", backing.file)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
id = "11111111-2222-4333-8444-555555555555"
project = "p1"
name = "web"
kind = "kvm"
zone = "eu-de-01"
ram_mb = 1024
vcpus = 2

[[disk]]
id = "11111111-2222-4333-8444-000000000001"
name = "root"
file = "root.qcow2"
format = "qcow2"
role = "system"
backing = "base.img"
backing_format = "raw"

[[disk]]
id = "11111111-2222-4333-8444-000000000002"
name = "data"
file = "data.img"
format = "raw"
role = "data"
shared = true
"#;

    #[test]
    fn a_whole_declaration_reads() {
        let server = Declared::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(server.id.as_str(), "11111111-2222-4333-8444-555555555555");
        assert_eq!(server.disks[0].image.format, Format::Qcow2);
        assert_eq!(server.disks[0].image.backing.as_ref().unwrap().format, Format::Raw);
        assert_eq!(server.disks[1].sharing, Sharing::Shared);
        assert_eq!(server.disks[1].encryption, Encryption::Plain);
    }

    #[test]
    fn each_broken_declaration_is_refused() {
        let rows = [
            ("unknown field", "vcpus = 2", "vcpus = 2\ncolour = 1"),
            ("unknown kind", "kind = \"kvm\"", "kind = \"vax\""),
            ("id that is no UUID", "555555555555", "../etc"),
            ("path", "data.img", "../data.img"),
            ("absolute path", "data.img", "/etc/passwd"),
            ("parent", "data.img", ".."),
            ("hidden", "data.img", ".data"),
            ("empty", "data.img", ""),
            ("newline is fine, slash is not", "data.img", "a\\nb/c"),
            ("our state", "data.img", "kedge-state.json"),
            ("our declaration", "data.img", "server.toml"),
            ("our partial", "data.img", "root.qcow2.kedge-partial"),
            ("backing path", "base.img", "../base.img"),
            ("backing is a disk", "base.img", "data.img"),
            ("one file twice", "data.img", "root.qcow2"),
            ("one id twice", "000000000002", "000000000001"),
            ("no such format", "format = \"raw\"", "format = \"vmdk\""),
            ("a backing file under raw", "shared = true", "backing = \"x\""),
        ];
        for (what, from, to) in rows {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{what}");
            assert!(Declared::parse(text.as_bytes()).is_err(), "{what}");
        }
    }
}
