//! A server with two disks on each driver, for the contract.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kedge_cloud::local::{CloneFile, FileCalls, LocalCloud};
use kedge_cloud::sim::SimCloud;
use kedge_core::ids::VolumeId;
use kedge_core::ports::{Clock, Cloud, ServerRef};
use kedge_core::resource::{
    Content, Encryption, Hardware, Server, ServerKind, ServerStatus, Sharing, StorageClass, Volume,
    VolumeRole, VolumeStatus,
};
use kedge_core::time::Timestamp;

use crate::files::{
    Site, guest_write, judge, make_qcow2, make_raw, patch, server_ref, settled, volume_id,
};

const FIRST_BYTES: usize = (2 << 20) + 1536;
const SECOND_BYTES: usize = (1 << 20) + 700;

/// What the contract needs of a driver.
pub(crate) trait Stage {
    /// A handle as a new process would have it.
    fn open(&self) -> Arc<dyn Cloud>;
    /// Writes as the guest, past the driver.
    fn overwrite(&self, volume: &VolumeId, offset: u64, length: usize, byte: u8);
    /// What is on a volume, past the driver.
    fn content(&self, volume: &VolumeId) -> Vec<u8>;

    fn server(&self) -> ServerRef {
        server_ref()
    }

    fn volumes(&self) -> Vec<VolumeId> {
        vec![volume_id(0), volume_id(1)]
    }
}

/// Time that stands still.
#[derive(Debug)]
pub(crate) struct StillClock;

impl Clock for StillClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

pub(crate) struct SimStage {
    pub(crate) cloud: SimCloud,
}

impl SimStage {
    pub(crate) fn new() -> Self {
        let cloud = SimCloud::new(Arc::new(StillClock));
        let sizes = [FIRST_BYTES, SECOND_BYTES];
        let content: HashMap<VolumeId, Vec<u8>> = sizes
            .iter()
            .enumerate()
            .map(|(index, size)| (volume_id(index), crate::files::noise(index as u64, size / 3)))
            .collect();
        let of = server_ref();
        let server = Server {
            id: of.server,
            project_id: of.project,
            name: "web".to_owned(),
            kind: ServerKind::Kvm,
            status: ServerStatus::Active,
            zone: "z".to_owned(),
            hardware: Hardware::default(),
            volumes: (0..2).map(|index| volume(index, sizes[index] as u64)).collect(),
        };
        cloud.add_server(server, content);
        Self { cloud }
    }
}

fn volume(index: usize, size_bytes: u64) -> Volume {
    Volume {
        id: volume_id(index),
        name: "disk".to_owned(),
        size_bytes,
        role: if index == 0 { VolumeRole::System } else { VolumeRole::Data },
        status: VolumeStatus::Healthy,
        sharing: Sharing::Exclusive,
        storage: StorageClass::Ordinary,
        encryption: Encryption::Plain,
        content: Content::Whole,
    }
}

impl Stage for SimStage {
    fn open(&self) -> Arc<dyn Cloud> {
        Arc::new(self.cloud.clone())
    }

    fn overwrite(&self, volume: &VolumeId, offset: u64, length: usize, byte: u8) {
        self.cloud.overwrite(volume, offset, &vec![byte; length]);
    }

    fn content(&self, volume: &VolumeId) -> Vec<u8> {
        self.cloud.volume_bytes(volume)
    }
}

fn opened(root: PathBuf, clone: CloneFile) -> LocalCloud {
    LocalCloud::open_with(root, FileCalls { clone, ..settled() }).unwrap()
}

/// A qcow2 and a raw disk in files.
pub(crate) struct LocalStage {
    pub(crate) site: Site,
    open: fn(PathBuf) -> LocalCloud,
}

impl LocalStage {
    /// Frozen by locks, as on file systems that share no blocks.
    pub(crate) fn in_place() -> Self {
        Self::new(|root| opened(root, |_, _| Err(rustix::io::Errno::OPNOTSUPP)))
    }

    /// Frozen by clones; a plain copy stands in for shared blocks.
    pub(crate) fn cloning() -> Self {
        Self::new(|root| {
            opened(root, |mut from, mut to| {
                std::io::copy(&mut from, &mut to).unwrap();
                Ok(())
            })
        })
    }

    fn new(open: fn(PathBuf) -> LocalCloud) -> Self {
        let mut site = Site::new();
        site.add_disk("file = \"root.qcow2\"\nformat = \"qcow2\"\nrole = \"system\"");
        site.add_disk("file = \"data.img\"\nformat = \"raw\"\nrole = \"data\"");
        make_qcow2(&site.path("root.qcow2"), FIRST_BYTES, &[]);
        make_raw(&site.path("data.img"), SECOND_BYTES);
        Self { site, open }
    }
}

impl Stage for LocalStage {
    fn open(&self) -> Arc<dyn Cloud> {
        Arc::new((self.open)(self.site.root.path().to_owned()))
    }

    fn overwrite(&self, volume: &VolumeId, offset: u64, length: usize, byte: u8) {
        if *volume == volume_id(0) {
            guest_write(&self.site.path("root.qcow2"), offset, length, byte);
        } else {
            patch(&self.site.path("data.img"), offset, &vec![byte; length]);
        }
    }

    fn content(&self, volume: &VolumeId) -> Vec<u8> {
        if *volume == volume_id(0) {
            judge(&self.site.path("root.qcow2"), "qcow2")
        } else {
            fs::read(self.site.path("data.img")).unwrap()
        }
    }
}
