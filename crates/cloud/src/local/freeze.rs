//! One moment of a server's disks, kept by clones where the file system shares blocks
//! between files, else by locks on the disks themselves.
//!
//! Invariant: all disks are locked before the first is cloned or read, and none is let go
//! before the last was. A moment counts only if, after the last file was cloned or read,
//! every file is the very one it was: that is what [`Freeze::confirm`] says.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::time::Duration;

use kedge_core::ids::VolumeId;
use kedge_core::ports::CloudError;
use rustix::io::Errno;

use super::FileCalls;
use super::changes::{Standing, Witness};
use super::config::{Declared, Image};
use super::error::failed;
use super::folder::{Access, Folder};
use super::hold::{Hold, Identity, release};
use super::images::ImageFiles;

/// Makes the second file share the first one's blocks.
pub type CloneFile = fn(&File, &File) -> rustix::io::Result<()>;

/// The kernel's ioctl for it.
pub(super) fn reflink(from: &File, to: &File) -> rustix::io::Result<()> {
    rustix::fs::ioctl_ficlone(to, from)
}

/// Folder of ours that holds clones.
pub(super) const CLONES_FOLDER: &str = ".kedge";
/// Disks and their backing files.
pub(super) const CLONES_MAX: usize = 1024;
/// A file system's clock ticks at least every 10 ms; this is waited for at most a second.
const TICK: Duration = Duration::from_millis(5);
const TICKS_MAX: usize = 200;

/// The disks of a moment, locked.
#[derive(Debug)]
pub(super) struct Freeze {
    pub(super) disks: Vec<FrozenDisk>,
}

#[derive(Debug)]
pub(super) struct FrozenDisk {
    pub(super) volume: VolumeId,
    pub(super) image: Image,
    pub(super) files: ImageFiles,
    pub(super) witness: Witness,
}

impl Freeze {
    /// Locks these disks of a server, and returns when any change to them would be seen.
    pub(super) fn take(
        folder: &Folder,
        server: &Declared,
        volumes: &[VolumeId],
        calls: FileCalls,
    ) -> Result<Self, CloudError> {
        let mut freeze = Self { disks: Vec::new() };
        let boot = (calls.boot)().ok();
        for id in volumes {
            let image = server.disk(id)?.image.clone();
            let files = ImageFiles::open_in(folder, &image)?;
            let witness = Witness { boot, identities: Vec::new(), standing: Standing::Unsure };
            freeze.disks.push(FrozenDisk { volume: id.clone(), image, files, witness });
        }
        for (name, file) in freeze.distinct_files()? {
            Hold::Reading.take(file, name)?;
        }
        // Asked before anything is written out: what changes meanwhile is too young then.
        let now_secs = probe(folder, calls.time)?;
        for disk in &mut freeze.disks {
            let standing = disk.standing(calls);
            disk.witness = Witness { boot, identities: disk.identify()?, standing };
            disk.witness.settle(now_secs);
        }
        freeze.wait_for_tick(folder)?;
        Ok(freeze)
    }

    /// Two disks may stand on one backing file; it is locked through one handle.
    fn distinct_files(&self) -> Result<Vec<(&str, &File)>, CloudError> {
        let mut names = HashSet::new();
        Ok(self
            .disks
            .iter()
            .flat_map(FrozenDisk::files)
            .filter(|(name, _)| names.insert(*name))
            .collect())
    }

    /// Waits until the file system would show a change made from now on. Nothing was cloned
    /// or read yet.
    fn wait_for_tick(&self, folder: &Folder) -> Result<(), CloudError> {
        for _ in 0..TICKS_MAX {
            let now = probe(folder, Identity::of)?;
            let mut identities = self.disks.iter().flat_map(|disk| &disk.witness.identities);
            if !identities.any(|identity| identity.may_hide_a_change(&now)) {
                return folder.remove(PROBE).map_err(failed("removing a file of ours"));
            }
            std::thread::sleep(TICK);
        }
        Err(CloudError::retryable("the file system's clock stands still"))
    }

    /// Says whether every file is as it was.
    pub(super) fn confirm(&self, folder: &Folder) -> Result<(), CloudError> {
        self.disks.iter().try_for_each(|disk| disk.confirm(folder))
    }

    pub(super) fn disk(&self, id: &VolumeId) -> Option<&FrozenDisk> {
        self.disks.iter().find(|disk| disk.volume == *id)
    }

    /// Clones every file into a folder. `false` when the file system cannot.
    pub(super) fn clone_into(&self, to: &Folder, clone: CloneFile) -> Result<bool, CloudError> {
        for disk in &self.disks {
            for (name, file) in disk.files() {
                let made = to.create_file(name).map_err(failed("making a clone"))?;
                match clone(file, &made) {
                    Ok(()) => made.sync_all().map_err(failed("making a clone durable"))?,
                    Err(
                        Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS,
                    ) => return Ok(false),
                    Err(error) => {
                        return Err(failed(format!("cloning image {name:?}"))(error.into()));
                    }
                }
            }
        }
        to.sync().map_err(failed("making clones durable"))?;
        Ok(true)
    }
}

impl Drop for Freeze {
    /// Readers may still have copies of the handles; the locks end here all the same.
    fn drop(&mut self) {
        for (_, file) in self.disks.iter().flat_map(FrozenDisk::files) {
            release(file);
        }
    }
}

const PROBE: &str = ".kedge-time";

/// Asks a file that was just made for the file system's time.
fn probe<T>(folder: &Folder, ask: impl FnOnce(&File) -> io::Result<T>) -> Result<T, CloudError> {
    folder
        .create_file(PROBE)
        .and_then(|file| ask(&file))
        .map_err(failed("asking for the file system's time"))
}

impl FrozenDisk {
    fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        let backing = self.files.backing.as_ref();
        std::iter::once((self.image.file.as_str(), &self.files.top))
            .chain(backing.map(|backing| (backing.name.as_str(), &backing.file)))
    }

    fn identify(&self) -> Result<Vec<Identity>, CloudError> {
        self.files()
            .map(|(name, file)| {
                Identity::of(file).map_err(failed(format!("looking at image {name:?}")))
            })
            .collect()
    }

    /// Writes out what is only in memory, then says whether times can speak for the bytes: a
    /// mapped page that is dirty already shows no further write to it. Where this fails the
    /// backup goes on, and the next one reads everything.
    fn standing(&self, calls: FileCalls) -> Standing {
        let mut files = self.files();
        let is_sure = |file: &File| {
            (calls.notes_writes)(file).is_ok_and(|notes| notes && file.sync_all().is_ok())
        };
        if files.all(|(_, file)| is_sure(file)) { Standing::Sure } else { Standing::Unsure }
    }

    /// Looks at the open files and at what their names lead to now.
    fn confirm(&self, folder: &Folder) -> Result<(), CloudError> {
        let now = self.identify()?;
        for ((name, _), (then, now)) in self.files().zip(self.witness.identities.iter().zip(&now)) {
            let named = match folder.file(name, Access::Read) {
                Ok(file) => Identity::of(&file).map_err(failed("looking at an image"))?,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Err(CloudError::moment_lost(format!(
                        "image {name:?} was deleted while it was read"
                    )));
                }
                Err(error) => return Err(failed(format!("opening image {name:?}"))(error)),
            };
            if then != now || !named.is_same_file(then) {
                return Err(CloudError::moment_lost(format!(
                    "image {name:?} changed while it was read"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use kedge_core::ports::CloudErrorKind;

    use super::*;

    const SERVER: &str = r#"
id = "11111111-2222-4333-8444-555555555555"
project = "p1"
name = "web"
kind = "kvm"
zone = "z"
ram_mb = 1
vcpus = 1
[[disk]]
id = "11111111-2222-4333-8444-000000000001"
name = "data"
file = "data.img"
format = "raw"
role = "data"
"#;

    /// Again and again, because some ticks end by themselves. The clock is asked of a new
    /// file: some kernels tick faster for one that was just looked at.
    #[test]
    fn a_freeze_begins_in_a_later_tick_than_the_last_write() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        let server = Declared::parse(SERVER.as_bytes()).unwrap();
        let image = File::create(root.path().join("data.img")).unwrap();
        for _ in 0..50 {
            image.write_all_at(&[1; 512], 0).unwrap();
            let freeze =
                Freeze::take(&folder, &server, &[server.disks[0].id.clone()], FileCalls::default())
                    .unwrap();
            let now = Identity::of(&folder.create_file("probe").unwrap()).unwrap();
            assert!(!freeze.disks[0].witness.identities[0].may_hide_a_change(&now));
            image.write_all_at(&[2; 512], 0).unwrap();
            let lost = freeze.confirm(&folder).unwrap_err();
            assert_eq!(lost.kind, CloudErrorKind::MomentLost);
        }
    }
}
