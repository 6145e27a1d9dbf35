//! Servers and volumes as a cloud reports them: the facts the rules need, no more.

use crate::ids::{ProjectId, ServerId, VolumeId};

/// One gibibyte, the unit of volume sizes on the wire ("GB" there).
pub const GIB: u64 = 1 << 30;

/// The only resource type that can be backed up and restored (seed, Table 4).
pub const SERVER_TYPE: &str = "OS::Nova::Server";

/// Rounds bytes up to whole GB of the wire, so that a disk is never reported smaller
/// than it is.
pub fn gb_ceil(bytes: u64) -> u64 {
    bytes.div_ceil(GIB)
}

/// A server and its attached volumes at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The cloud's id.
    pub id: ServerId,
    /// The owner.
    pub project_id: ProjectId,
    /// The name its user gave it: any text, hostile too.
    pub name: String,
    /// What runs it.
    pub kind: ServerKind,
    /// Its present state.
    pub status: ServerStatus,
    /// Availability zone.
    pub zone: String,
    /// What the item's `backup_data` tells of it.
    pub hardware: Hardware,
    /// Attached volumes in device order.
    pub volumes: Vec<Volume>,
}

/// Facts shown to users beside a backup; no rule reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// Memory of the flavor, MB.
    pub ram_mb: u64,
    /// Virtual processors of the flavor.
    pub vcpus: u64,
    /// System disk of the flavor, GB; 0 when it boots from a volume.
    pub disk_gb: u64,
    /// `gold` public, `private`, `market`; empty when unknown.
    pub image_type: String,
    /// First address inside the project, empty when unknown.
    pub private_ip: String,
    /// Public address, empty when unknown.
    pub public_ip: String,
}

/// What runs a server. A backup goes back only to a server of the same kind, because
/// its disks hold drivers for one kind of machine (CSBS.6019).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerKind {
    /// A QEMU/KVM guest.
    Kvm,
    /// A Xen guest.
    Xen,
    /// A machine without hypervisor: nothing can snapshot its disks.
    BareMetal,
}

impl ServerKind {
    /// The word in messages, the catalogue and server files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Xen => "xen",
            Self::BareMetal => "baremetal",
        }
    }

    /// The kind with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Kvm, Self::Xen, Self::BareMetal].into_iter().find(|kind| kind.as_str() == word)
    }

    /// Whether Kedge can back up and restore such servers.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Kvm | Self::Xen => true,
            Self::BareMetal => false,
        }
    }
}

/// A server's state, in Nova's sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerStatus {
    /// Running.
    Active,
    /// Powered off.
    Shutoff,
    /// Faulty.
    Error,
    /// Changing its flavor.
    Resizing,
    /// Resized, waiting for its user's consent.
    VerifyResize,
    /// Any state in which the cloud is doing something with it.
    InTransition,
    /// Terminated; some clouds still show it for a while.
    Deleted,
}

impl ServerStatus {
    /// The word in messages and server files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Shutoff => "shutoff",
            Self::Error => "error",
            Self::Resizing => "resizing",
            Self::VerifyResize => "verify_resize",
            Self::InTransition => "in_transition",
            Self::Deleted => "deleted",
        }
    }

    /// Every status.
    pub const ALL: [Self; 7] = [
        Self::Active,
        Self::Shutoff,
        Self::Error,
        Self::Resizing,
        Self::VerifyResize,
        Self::InTransition,
        Self::Deleted,
    ];

    /// The status with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// Running or stopped: the two states in which disks may be backed up or restored.
    pub fn is_settled(self) -> bool {
        match self {
            Self::Active | Self::Shutoff => true,
            Self::Error
            | Self::Resizing
            | Self::VerifyResize
            | Self::InTransition
            | Self::Deleted => false,
        }
    }
}

/// A volume attached to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The cloud's id.
    pub id: VolumeId,
    /// The name its user gave it: any text, hostile too.
    pub name: String,
    /// Size as the guest sees it.
    pub size_bytes: u64,
    /// System or data disk.
    pub role: VolumeRole,
    /// Its present state.
    pub status: VolumeStatus,
    /// Whether other servers may use it at the same time.
    pub sharing: Sharing,
    /// What it is stored on.
    pub storage: StorageClass,
    /// Whether the cloud encrypts it.
    pub encryption: Encryption,
    /// Whether what lies on it is all of one piece.
    pub content: Content,
}

/// What a volume is to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VolumeRole {
    /// The server boots from it.
    System,
    /// Any other disk.
    Data,
}

impl VolumeRole {
    /// The word in rows, explanations and plans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Data => "data",
        }
    }
}

/// A volume's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VolumeStatus {
    /// It can be read and written.
    Healthy,
    /// The cloud reports it broken.
    Error,
    /// The cloud is doing something with it (extending, retyping, migrating).
    Busy,
}

impl VolumeStatus {
    /// The word in explanations and plans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Error => "error",
            Self::Busy => "busy",
        }
    }
}

/// Whether a volume can be attached to several servers at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// One server at a time.
    Exclusive,
    /// Several servers at once: nobody else's writes can be stopped.
    Shared,
}

/// What a volume is stored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StorageClass {
    /// Storage we can snapshot, read and write.
    Ordinary,
    /// Dedicated storage, refused by the published API (CSBS.6033).
    Dedicated,
    /// Storage that offers neither backup nor restore (CSBS.6061).
    Unsupported,
}

/// Whether the cloud encrypts a volume at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encryption {
    /// Stored in clear.
    Plain,
    /// Stored encrypted; restoring it onto a plain volume would expose its content.
    Encrypted,
}

impl Encryption {
    /// The word in rows and plans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Encrypted => "encrypted",
        }
    }
}

/// Whether a volume's bytes are all of one piece. Drivers fill it from their marks
/// ([`Cloud::open_for_writing`](crate::ports::Cloud::open_for_writing)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// No restore left it unfinished.
    Whole,
    /// A restore marked it and did not finish: worth no backup, and its server cannot start.
    HalfWritten,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A server with disks of these sizes: the system disk `v0` and so on.
    pub(crate) fn server_of(sizes: &[u64]) -> Server {
        let volume = |(index, size): (usize, &u64)| Volume {
            id: VolumeId::asked(&format!("v{index}")),
            name: "disk".to_owned(),
            size_bytes: *size,
            role: if index == 0 { VolumeRole::System } else { VolumeRole::Data },
            status: VolumeStatus::Healthy,
            sharing: Sharing::Exclusive,
            storage: StorageClass::Ordinary,
            encryption: Encryption::Plain,
            content: Content::Whole,
        };
        Server {
            id: ServerId::asked("server"),
            project_id: ProjectId::new("project"),
            name: "server".to_owned(),
            kind: ServerKind::Kvm,
            status: ServerStatus::Shutoff,
            zone: "zone".to_owned(),
            hardware: Hardware::default(),
            volumes: sizes.iter().enumerate().map(volume).collect(),
        }
    }

    #[test]
    fn a_size_is_never_rounded_down() {
        assert_eq!(gb_ceil(0), 0);
        assert_eq!(gb_ceil(GIB), 1);
        assert_eq!(gb_ceil(GIB + 1), 2);
        assert_eq!(gb_ceil(u64::MAX), 1 << 34);
    }

    #[test]
    fn every_word_of_a_server_reads_back() {
        for status in ServerStatus::ALL {
            assert_eq!(ServerStatus::from_word(status.as_str()), Some(status));
        }
        assert_eq!(ServerKind::from_word("xen"), Some(ServerKind::Xen));
        assert_eq!(ServerKind::from_word("Xen"), None);
    }
}
