//! Moments of a server's disks from when they are frozen until they are released.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::sync::Arc;

use kedge_core::checkpoint::ChangeToken;
use kedge_core::ids::VolumeId;
use kedge_core::ports::{CloudError, OpenSnapshot, ServerRef};
use kedge_core::resource::ServerKind;

use super::Shared;
use super::changes::{Moment, Standing, Unchanged, UnchangedReader, Witness};
use super::config::{Format, Image};
use super::error::failed;
use super::folder::Folder;
use super::freeze::{CLONES_FOLDER, CLONES_MAX, Freeze};
use super::images::{ImageFiles, Reading, disk_size, open_qcow2_reader, open_reader};
use super::servers::Found;
use super::state::{Kept, ServerState, SnapshotState};

impl Shared {
    pub(super) fn create_snapshots(
        &self,
        of: &ServerRef,
        volumes: &[VolumeId],
        name: &str,
    ) -> Result<(), CloudError> {
        let found = self.get(of)?;
        if found.server.kind == ServerKind::BareMetal {
            return Err(CloudError::permanent("disks of a bare metal server cannot be frozen"));
        }
        self.change(&found, |state| {
            let made = state.snapshots.get(name);
            if let Some(made) = made {
                is_of(&made.volumes, volumes, name)?;
            }
            match made.map(|made| &made.kept) {
                Some(Kept::Cloned { .. }) => return Ok(()),
                Some(Kept::InPlace) if self.held(of, name).is_some() => return Ok(()),
                Some(Kept::Cloning { folder }) => remove_clones(&found.folder, *folder)?,
                Some(Kept::InPlace) | None => {}
            }
            let freeze = Freeze::take(&found.folder, &found.server, volumes, self.calls)?;
            let kept = self.keep(&found, state, name, &freeze)?;
            state.put_snapshot(name, &freeze, kept.clone());
            if kept == Kept::InPlace {
                self.freezes().insert((of.server.clone(), name.to_owned()), Arc::new(freeze));
            }
            Ok(())
        })
    }

    /// Clones the disks, or leaves them to their locks. What a crash leaves half cloned is
    /// named in the state before the first clone is made. Clones count only if no disk
    /// changed until the last was made: a writer that ignores locks writes between two.
    fn keep(
        &self,
        found: &Found,
        state: &mut ServerState,
        name: &str,
        freeze: &Freeze,
    ) -> Result<Kept, CloudError> {
        let folder = state.last_folder + 1;
        state.last_folder = folder;
        state.put_snapshot(name, freeze, Kept::Cloning { folder });
        state.save(&found.folder).map_err(failed("keeping a server's state"))?;
        let clones = found
            .folder
            .create_folder(CLONES_FOLDER)
            .and_then(|clones| clones.create_folder(&folder.to_string()))
            .map_err(failed("making a folder for clones"))?;
        if freeze.clone_into(&clones, self.calls.clone)? {
            freeze.confirm(&found.folder)?;
            return Ok(Kept::Cloned { folder });
        }
        remove_clones(&found.folder, folder)?;
        Ok(Kept::InPlace)
    }

    pub(super) fn open_snapshot(
        &self,
        of: &ServerRef,
        name: &str,
        volume: &VolumeId,
        since: Option<&ChangeToken>,
    ) -> Result<OpenSnapshot, CloudError> {
        let found = self.get(of)?;
        let state = found.state()?;
        let (image, files, witness) = match state.snapshots.get(name) {
            Some(made @ SnapshotState { kept: Kept::Cloned { folder }, .. }) => {
                let image = made.image(name, volume)?.clone();
                let clones = open_clones(&found.folder, *folder)?;
                let files = ImageFiles::open_in(&clones, &image)?;
                (image, files, made.witnesses.get(volume).cloned())
            }
            Some(SnapshotState { kept: Kept::InPlace | Kept::Cloning { .. }, .. }) | None => {
                let freeze = self.held(of, name).ok_or_else(|| moment_is_gone(name))?;
                let frozen = freeze.disk(volume).ok_or_else(|| not_frozen(name, volume))?;
                let files = frozen.files.duplicate().map_err(failed("opening an image"))?;
                (frozen.image.clone(), files, Some(frozen.witness.clone()))
            }
        };
        open_frozen(volume, &image, files, witness.as_ref(), since)
    }

    pub(super) fn confirm_snapshots(&self, of: &ServerRef, name: &str) -> Result<(), CloudError> {
        let found = self.get(of)?;
        let state = found.state()?;
        let made = state.snapshots.get(name).ok_or_else(|| moment_is_gone(name))?;
        match made.kept {
            Kept::Cloned { folder } => {
                let clones = open_clones(&found.folder, folder)?;
                for id in &made.volumes {
                    ImageFiles::open_in(&clones, made.image(name, id)?)
                        .map_err(|error| CloudError::moment_lost(error.text))?;
                }
                Ok(())
            }
            Kept::InPlace | Kept::Cloning { .. } => {
                self.held(of, name).ok_or_else(|| moment_is_gone(name))?.confirm(&found.folder)
            }
        }
    }

    pub(super) fn delete_snapshots(&self, of: &ServerRef, name: &str) -> Result<(), CloudError> {
        let Some(found) = self.find(of)? else { return Ok(()) };
        self.change(&found, |state| {
            match state.snapshots.get(name).map(|made| &made.kept) {
                Some(Kept::Cloning { folder } | Kept::Cloned { folder }) => {
                    remove_clones(&found.folder, *folder)?;
                }
                Some(Kept::InPlace) | None => {}
            }
            self.freezes().remove(&(of.server.clone(), name.to_owned()));
            state.snapshots.remove(name);
            Ok(())
        })
    }
}

impl ServerState {
    fn put_snapshot(&mut self, name: &str, freeze: &Freeze, kept: Kept) {
        let volumes = freeze.disks.iter().map(|disk| disk.volume.clone()).collect();
        let images: BTreeMap<_, _> =
            freeze.disks.iter().map(|disk| (disk.volume.clone(), disk.image.clone())).collect();
        let witnesses =
            freeze.disks.iter().map(|disk| (disk.volume.clone(), disk.witness.clone())).collect();
        self.snapshots.insert(name.to_owned(), SnapshotState { volumes, images, witnesses, kept });
    }
}

impl SnapshotState {
    /// What a volume was when it was frozen.
    fn image(&self, name: &str, volume: &VolumeId) -> Result<&Image, CloudError> {
        match self.images.get(volume) {
            Some(image) => Ok(image),
            None if self.volumes.contains(volume) => Err(CloudError::moment_lost(format!(
                "it is not known which file volume {volume:?} was at the moment {name:?}"
            ))),
            None => Err(not_frozen(name, volume)),
        }
    }
}

/// A name stands for one set of volumes.
fn is_of(made: &[VolumeId], asked: &[VolumeId], name: &str) -> Result<(), CloudError> {
    let [made, asked] = [made, asked].map(|ids| ids.iter().collect::<HashSet<_>>());
    if made == asked {
        Ok(())
    } else {
        Err(CloudError::permanent(format!("snapshot {name:?} is of other volumes")))
    }
}

fn open_clones(folder: &Folder, number: u64) -> Result<Folder, CloudError> {
    folder
        .folder(CLONES_FOLDER)
        .and_then(|clones| clones.folder(number.to_string()))
        .map_err(|error| CloudError::moment_lost(format!("the clones are gone: {error}")))
}

fn remove_clones(folder: &Folder, number: u64) -> Result<(), CloudError> {
    match folder.folder(CLONES_FOLDER) {
        Ok(clones) => {
            clones.remove_folder(&number.to_string(), CLONES_MAX).map_err(failed("removing clones"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("opening the folder of clones")(error)),
    }
}

fn moment_is_gone(name: &str) -> CloudError {
    CloudError::moment_lost(format!("the moment {name:?} did not survive: its locks ended"))
}

fn not_frozen(name: &str, volume: &VolumeId) -> CloudError {
    CloudError::permanent(format!("snapshot {name:?} has no volume {volume:?}"))
}

/// Opens a frozen disk, with what is known of its changes.
fn open_frozen(
    volume: &VolumeId,
    image: &Image,
    files: ImageFiles,
    witness: Option<&Witness>,
    since: Option<&ChangeToken>,
) -> Result<OpenSnapshot, CloudError> {
    let size_bytes = disk_size(image, &files)?;
    let now = witness.and_then(|witness| Moment::of(volume, image, size_bytes, witness));
    let then = since.and_then(Moment::from_token);
    let unchanged = match (&now, &then) {
        (Some(now), Some(then)) => now.unchanged_since(then),
        (None, _) | (_, None) => Unchanged::Nothing,
    };
    let token = match witness.map(|witness| witness.standing) {
        Some(Standing::Sure) => now.and_then(|now| now.to_token()),
        Some(Standing::Unsure) | None => None,
    };
    let reader = match (unchanged, image.format) {
        (Unchanged::Nothing, _) | (Unchanged::Beneath, Format::Raw) => {
            open_reader(image, files, Reading::Frozen)?
        }
        (Unchanged::Beneath, Format::Qcow2) => {
            Arc::new(open_qcow2_reader(image, files, Reading::Frozen)?.on_unchanged())
        }
        (Unchanged::Everything, _) => {
            Arc::new(UnchangedReader::new(open_reader(image, files, Reading::Frozen)?))
        }
    };
    Ok(OpenSnapshot { reader, token })
}
