//! What the simulated cloud is, and the physics by which it moves. Its refusals are those
//! of a cloud (what cannot be done), not of the planner (what ought not to be done).

use std::collections::{BTreeMap, HashMap};

use kedge_core::checkpoint::ChangeToken;
use kedge_core::ids::{ProjectId, ServerId, VolumeId};
use kedge_core::ports::{CloudError, ServerRef};
use kedge_core::resource::{
    Content, Server, ServerKind, ServerStatus, Sharing, StorageClass, Volume, VolumeStatus,
};
use kedge_core::time::Timestamp;

use super::disk::Disk;
use super::{ChangeTracking, SimWrite, WriteLogEntry};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) servers: BTreeMap<ServerId, SimServer>,
    pub(super) disks: HashMap<VolumeId, SimDisk>,
    pub(super) log: Vec<WriteLogEntry>,
    pub(super) tracking: ChangeTracking,
    /// Told apart from every writer ever opened.
    last_writer: u64,
}

#[derive(Debug)]
pub(super) struct SimServer {
    pub(super) server: Server,
    pub(super) lock_holder: Option<String>,
    pub(super) snapshots: BTreeMap<String, Freeze>,
}

/// One moment of some volumes.
#[derive(Debug, Default)]
pub(super) struct Freeze {
    disks: HashMap<VolumeId, Disk>,
    pub(super) lost: bool,
}

#[derive(Debug, Default)]
pub(super) struct SimDisk {
    pub(super) disk: Disk,
    pub(super) mark: Option<String>,
    /// The writer that has the volume alone.
    pub(super) writer: Option<u64>,
    /// Tokens of an earlier epoch are not known any more.
    pub(super) epoch: u64,
}

impl State {
    pub(super) fn add_server(&mut self, server: Server, content: &HashMap<VolumeId, Vec<u8>>) {
        for volume in &server.volumes {
            let bytes = content.get(&volume.id).map_or(&[][..], Vec::as_slice);
            self.disks.entry(volume.id.clone()).or_insert_with(|| SimDisk {
                disk: Disk::new(volume.size_bytes, bytes),
                ..SimDisk::default()
            });
        }
        let sim = SimServer { server, lock_holder: None, snapshots: BTreeMap::new() };
        self.servers.insert(sim.server.id.clone(), sim);
    }

    /// Makes disks as large as their volumes say, and new ones where there are none.
    pub(super) fn follow_volumes(&mut self, id: &ServerId) {
        let Some(sim) = self.servers.get(id) else { return };
        for volume in &sim.server.volumes {
            self.disks.entry(volume.id.clone()).or_default().disk.resize(volume.size_bytes);
        }
    }

    pub(super) fn find(&self, of: &ServerRef) -> Option<&SimServer> {
        self.servers.get(&of.server).filter(|sim| sim.server.project_id == of.project)
    }

    pub(super) fn servers_of(&self, project: &ProjectId) -> Vec<ServerId> {
        let theirs = self.servers.values().filter(|sim| sim.server.project_id == *project);
        theirs.map(|sim| sim.server.id.clone()).collect()
    }

    /// A server as it shows: its volumes are half written where their disks are marked.
    pub(super) fn describe(&self, sim: &SimServer) -> Server {
        let mut server = sim.server.clone();
        for volume in &mut server.volumes {
            let mark = self.disks.get(&volume.id).and_then(|disk| disk.mark.as_ref());
            volume.content = if mark.is_some() { Content::HalfWritten } else { Content::Whole };
        }
        server
    }

    pub(super) fn get(&self, of: &ServerRef) -> Result<&SimServer, CloudError> {
        self.find(of).ok_or_else(|| no_server(of))
    }

    pub(super) fn find_mut(&mut self, of: &ServerRef) -> Option<&mut SimServer> {
        self.servers.get_mut(&of.server).filter(|sim| sim.server.project_id == of.project)
    }

    pub(super) fn get_mut(&mut self, of: &ServerRef) -> Result<&mut SimServer, CloudError> {
        self.find_mut(of).ok_or_else(|| no_server(of))
    }

    pub(super) fn record(&mut self, at: Timestamp, what: SimWrite) {
        self.log.push(WriteLogEntry { at, what });
    }

    pub(super) fn freeze(
        &mut self,
        of: &ServerRef,
        volumes: &[VolumeId],
        name: &str,
    ) -> Result<(), CloudError> {
        let sim = self.get(of)?;
        if let Some(made) = sim.snapshots.get(name).filter(|made| !made.lost) {
            return made.is_of(volumes, name);
        }
        can_snapshot(&sim.server)?;
        let mut freeze = Freeze::default();
        for id in volumes {
            can_read(sim.attached(id)?)?;
            freeze.disks.insert(id.clone(), self.disk(id)?.disk.clone());
        }
        self.get_mut(of)?.snapshots.insert(name.to_owned(), freeze);
        Ok(())
    }

    /// A frozen disk and the token of its moment.
    pub(super) fn frozen(
        &self,
        of: &ServerRef,
        name: &str,
        id: &VolumeId,
    ) -> Result<(Disk, Option<ChangeToken>), CloudError> {
        let frozen = self.get(of)?.freeze(name)?.disks.get(id).ok_or_else(|| {
            CloudError::permanent(format!("snapshot {name:?} has no volume {id:?}"))
        })?;
        let token = match self.tracking {
            ChangeTracking::Off => None,
            ChangeTracking::Honest | ChangeTracking::Lying => {
                let epoch = self.disk(id)?.epoch;
                Some(ChangeToken(format!("sim/{id}/{epoch}/{}", frozen.version())))
            }
        };
        Ok((frozen.clone(), token))
    }

    /// The version of the disk at a token's moment, if the token is known.
    pub(super) fn version_at(&self, id: &VolumeId, token: &ChangeToken) -> Option<u64> {
        let (about, version) = token.0.rsplit_once('/')?;
        let known = format!("sim/{id}/{}", self.disks.get(id)?.epoch);
        if about == known { version.parse().ok() } else { None }
    }

    /// Begins to write a volume.
    pub(super) fn open_writer(
        &mut self,
        of: &ServerRef,
        id: &VolumeId,
        mark: &str,
    ) -> Result<u64, CloudError> {
        let server = &self.get(of)?.server;
        can_write(server, self.get(of)?.attached(id)?)?;
        let writer = self.last_writer + 1;
        let disk = self.disk_mut(id)?;
        if disk.writer.is_some() {
            return Err(CloudError::retryable(format!("volume {id:?} is being written already")));
        }
        disk.writer = Some(writer);
        disk.mark = Some(mark.to_owned());
        self.last_writer = writer;
        Ok(writer)
    }

    /// Changes a volume's bytes in the name of a writer that still has it.
    pub(super) fn write(
        &mut self,
        id: &VolumeId,
        writer: u64,
        range: (u64, u64),
        change: impl FnOnce(&mut Disk),
    ) -> Result<(), CloudError> {
        let disk = self.disk_mut(id)?;
        disk.is_held_by(writer, id)?;
        if !disk.disk.holds(range.0, range.1) {
            return Err(CloudError::permanent(format!(
                "{} bytes at {} lie beyond the end of volume {id:?}",
                range.1, range.0
            )));
        }
        change(&mut disk.disk);
        Ok(())
    }

    pub(super) fn power(&mut self, of: &ServerRef, to: ServerStatus) -> Result<bool, CloudError> {
        if to == ServerStatus::Active {
            self.can_start(of)?;
        }
        let server = &mut self.get_mut(of)?.server;
        let was = server.status;
        settled(server)?;
        server.status = to;
        Ok(was != to)
    }

    fn can_start(&self, of: &ServerRef) -> Result<(), CloudError> {
        for volume in &self.get(of)?.server.volumes {
            let disk = self.disk(&volume.id)?;
            if let Some(mark) = &disk.mark {
                return Err(CloudError::permanent(format!(
                    "volume {:?} is half written ({mark:?})",
                    volume.id
                )));
            }
            if disk.writer.is_some() {
                return Err(CloudError::retryable(format!("volume {:?} is in use", volume.id)));
            }
        }
        Ok(())
    }

    pub(super) fn disk(&self, id: &VolumeId) -> Result<&SimDisk, CloudError> {
        self.disks.get(id).ok_or_else(|| no_volume(id))
    }

    pub(super) fn disk_mut(&mut self, id: &VolumeId) -> Result<&mut SimDisk, CloudError> {
        self.disks.get_mut(id).ok_or_else(|| no_volume(id))
    }
}

impl SimServer {
    pub(super) fn find_attached(&self, id: &VolumeId) -> Option<&Volume> {
        self.server.volumes.iter().find(|volume| volume.id == *id)
    }

    pub(super) fn attached(&self, id: &VolumeId) -> Result<&Volume, CloudError> {
        self.find_attached(id).ok_or_else(|| {
            CloudError::permanent(format!(
                "volume {id:?} is not attached to server {:?}",
                self.server.id
            ))
        })
    }

    pub(super) fn freeze(&self, name: &str) -> Result<&Freeze, CloudError> {
        self.snapshots
            .get(name)
            .filter(|freeze| !freeze.lost)
            .ok_or_else(|| CloudError::moment_lost(format!("there is no snapshot {name:?}")))
    }
}

impl Freeze {
    /// A name stands for one set of volumes.
    fn is_of(&self, volumes: &[VolumeId], name: &str) -> Result<(), CloudError> {
        if self.disks.len() == volumes.len() && volumes.iter().all(|id| self.disks.contains_key(id))
        {
            Ok(())
        } else {
            Err(CloudError::permanent(format!("snapshot {name:?} is of other volumes")))
        }
    }
}

impl SimDisk {
    pub(super) fn is_held_by(&self, writer: u64, id: &VolumeId) -> Result<(), CloudError> {
        if self.writer == Some(writer) {
            Ok(())
        } else {
            Err(CloudError::permanent(format!("the handle on volume {id:?} has ended")))
        }
    }
}

fn no_server(of: &ServerRef) -> CloudError {
    CloudError::permanent(format!("there is no server {:?} in project {:?}", of.server, of.project))
}

fn no_volume(id: &VolumeId) -> CloudError {
    CloudError::permanent(format!("there is no volume {id:?}"))
}

fn can_snapshot(server: &Server) -> Result<(), CloudError> {
    match server.kind {
        ServerKind::Kvm | ServerKind::Xen => settled(server),
        ServerKind::BareMetal => {
            Err(CloudError::permanent("disks of a bare metal server cannot be snapshotted"))
        }
    }
}

fn settled(server: &Server) -> Result<(), CloudError> {
    let text = || format!("server {:?} is {}", server.id, server.status.as_str());
    match server.status {
        ServerStatus::Active | ServerStatus::Shutoff => Ok(()),
        ServerStatus::Resizing | ServerStatus::VerifyResize | ServerStatus::InTransition => {
            Err(CloudError::retryable(text()))
        }
        ServerStatus::Error | ServerStatus::Deleted => Err(CloudError::permanent(text())),
    }
}

fn can_read(volume: &Volume) -> Result<(), CloudError> {
    match volume.status {
        VolumeStatus::Healthy => {}
        VolumeStatus::Error => {
            return Err(CloudError::permanent(format!("volume {:?} is broken", volume.id)));
        }
        VolumeStatus::Busy => {
            return Err(CloudError::retryable(format!("volume {:?} is busy", volume.id)));
        }
    }
    match volume.storage {
        StorageClass::Ordinary => Ok(()),
        StorageClass::Dedicated | StorageClass::Unsupported => Err(CloudError::permanent(format!(
            "the storage of volume {:?} has no snapshots",
            volume.id
        ))),
    }
}

fn can_write(server: &Server, volume: &Volume) -> Result<(), CloudError> {
    settled(server)?;
    if server.status != ServerStatus::Shutoff {
        return Err(CloudError::permanent(format!("server {:?} is running", server.id)));
    }
    can_read(volume)?;
    match volume.sharing {
        Sharing::Exclusive => Ok(()),
        Sharing::Shared => Err(CloudError::permanent(format!(
            "volume {:?} is shared: no handle on it is exclusive",
            volume.id
        ))),
    }
}
