//! What we remember about a server between processes, in a file of ours beside its
//! declaration. Without the file nothing is known; the server then counts as running,
//! because nothing may be written under a running one.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};

use kedge_core::ids::VolumeId;
use serde::{Deserialize, Serialize};

use super::changes::Witness;
use super::config::{Image, STATE_FILE};
use super::folder::Folder;

/// Room for thousands of snapshots; more would be a runaway.
const STATE_BYTES_MAX: u64 = 4 << 20;

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerState {
    pub(super) power: Power,
    /// Who keeps users from changing the server.
    pub(super) lock_holder: Option<String>,
    /// By the name a job gave.
    pub(super) snapshots: BTreeMap<String, SnapshotState>,
    /// Marks of half-written volumes.
    pub(super) marks: BTreeMap<VolumeId, String>,
    /// Folders of clones are numbered, so that no name becomes a path.
    pub(super) last_folder: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Power {
    #[default]
    Active,
    Shutoff,
}

/// A frozen moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotState {
    pub(super) volumes: Vec<VolumeId>,
    /// What each volume was when it was frozen; what is declared since then is not asked.
    /// A volume that is missing here cannot be told from another.
    #[serde(default)]
    pub(super) images: BTreeMap<VolumeId, Image>,
    /// What the files of each volume were. Of a volume that is missing here no changes are
    /// known.
    #[serde(default)]
    pub(super) witnesses: BTreeMap<VolumeId, Witness>,
    pub(super) kept: Kept,
}

/// How a moment is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kept {
    /// By locks of one process; gone with it.
    InPlace,
    /// Clones are being made in this folder; worth nothing yet.
    Cloning { folder: u64 },
    /// By clones in this folder.
    Cloned { folder: u64 },
}

impl ServerState {
    pub(super) fn load(folder: &Folder) -> io::Result<Self> {
        match folder.read(STATE_FILE, STATE_BYTES_MAX)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error.to_string())),
            None => Ok(Self::default()),
        }
    }

    pub(super) fn save(&self, folder: &Folder) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        folder.replace(STATE_FILE, &bytes)
    }
}
