//! A repository and how far it has been opened: [`Closed`], [`Open`] when the password
//! was right, [`Indexed`] when the index is loaded.

use std::{path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Backend, BackendError, ObjectKind, ObjectName},
    crypto::{KdfCost, Key, Password, fill_random},
    document,
    error::EngineError,
    id::{IndexId, KeyId, RepositoryId, SnapshotId},
    index::{Index, IndexReport},
    keys,
    marks::MarkCache,
    polynomial,
    snapshot::{self, Snapshot, SnapshotCache},
    suspects::Suspects,
    time::Timestamp,
    vault::Vault,
};

/// Nothing is known yet. No value has this state; it names the functions that make or
/// open a repository.
#[derive(Debug)]
pub struct Closed(());

/// The master key is known.
#[derive(Debug)]
pub struct Open(());

/// The index is loaded: blobs can be found, written and read.
#[derive(Debug)]
pub struct Indexed {
    pub(crate) index: Index,
    pub(crate) snapshots: SnapshotCache,
    pub(crate) marks: MarkCache,
    pub(crate) suspects: Suspects,
}

/// A repository in state `S`.
#[derive(Debug)]
pub struct Repository<S> {
    id: RepositoryId,
    pub(crate) vault: Vault,
    pub(crate) state: S,
}

/// What a new repository is made of.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions<'a> {
    /// Opens the repository.
    pub password: &'a Password,
    /// The cost of guessing the password.
    pub kdf: KdfCost,
    /// The moment, noted in the key object.
    pub created_at: Timestamp,
    /// Opaque bytes for `kedge/access.json`, stored before the repository counts as made.
    pub access: Option<&'a [u8]>,
}

const VERSION: u32 = 2;
const CONFIG_BYTES_MAX: u64 = 64 << 10;
const ACCESS_BYTES_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct ConfigFile {
    version: u32,
    id: RepositoryId,
    chunker_polynomial: String,
}

impl Repository<Closed> {
    /// Whether the place holds a repository. A place that cannot be reached, such as a
    /// local directory that does not exist, is an error rather than a no.
    pub fn is_initialised(backend: &dyn Backend) -> Result<bool, EngineError> {
        let size = backend.find_size(&ObjectName::Config);
        let size = size.map_err(|error| EngineError::writing(&ObjectName::Config, error))?;
        Ok(size.is_some())
    }

    /// Makes a repository. The config is written last; what came before it counts for
    /// nothing, so after a failure or crash the call can be repeated. One caller at a
    /// time.
    pub fn create(
        backend: Arc<dyn Backend>,
        options: &CreateOptions<'_>,
    ) -> Result<Repository<Open>, EngineError> {
        backend.prepare().map_err(|error| EngineError::writing(&ObjectName::Config, error))?;
        if Self::is_initialised(&*backend)? {
            return Err(EngineError::AlreadyExists);
        }
        require_unused(&*backend)?;
        if let Some(access) = options.access {
            put_access(&*backend, access)?;
        }
        let key = replace_keys(&*backend, options)?;
        let config = new_config()?;
        let sealed = key.seal(&document::to_json(&config)?)?;
        let name = ObjectName::Config;
        backend.put(&name, &sealed).map_err(|error| EngineError::writing(&name, error))?;
        Ok(Repository { id: config.id, vault: Vault { backend, key }, state: Open(()) })
    }

    /// Opens the repository with a password.
    pub fn open(
        backend: Arc<dyn Backend>,
        password: &Password,
    ) -> Result<Repository<Open>, EngineError> {
        let name = ObjectName::Config;
        let sealed = match backend.get(&name, CONFIG_BYTES_MAX) {
            Ok(sealed) => sealed,
            Err(BackendError::NotFound) => return Err(EngineError::NotARepository),
            Err(error) => return Err(EngineError::reading(&name, error)),
        };
        let names = keys::list(&*backend)?;
        if names.is_empty() {
            return Err(EngineError::damaged("keys", "no key is left"));
        }
        let key = keys::open(&*backend, &names, password)?;
        let config: ConfigFile =
            document::open(&key, &sealed).map_err(|what| EngineError::damaged(name, what))?;
        if config.version != VERSION {
            return Err(EngineError::UnsupportedVersion(config.version));
        }
        Ok(Repository { id: config.id, vault: Vault { backend, key }, state: Open(()) })
    }

    /// The bytes in `kedge/access.json`, if there are any. Takes no password: they are
    /// what the password is found by.
    pub fn find_access(backend: &dyn Backend) -> Result<Option<Vec<u8>>, EngineError> {
        match backend.get(&ObjectName::Access, ACCESS_BYTES_MAX) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(BackendError::NotFound) => Ok(None),
            Err(error) => Err(EngineError::reading(&ObjectName::Access, error)),
        }
    }

    /// Replaces `kedge/access.json` of a repository without opening it.
    pub fn replace_access(backend: &dyn Backend, bytes: &[u8]) -> Result<(), EngineError> {
        put_access(backend, bytes)
    }
}

/// Without a config, keys are remnants of an attempt to make a repository; but where
/// data lies, the config was lost, and the keys with it would be too.
fn require_unused(backend: &dyn Backend) -> Result<(), EngineError> {
    for kind in [ObjectKind::Index, ObjectKind::Snapshot, ObjectKind::Pack] {
        match backend.list(kind) {
            Ok(listed) if listed.is_empty() => {}
            Ok(_) => return Err(EngineError::damaged(ObjectName::Config, "missing beside data")),
            // A place without config has lost its repository, or never had one.
            Err(BackendError::Unreachable { .. } | BackendError::Gone { .. }) => {}
            Err(error) => return Err(EngineError::List(error)),
        }
    }
    Ok(())
}

/// The only key object afterwards is a new one. Nothing was ever sealed with the
/// master keys of earlier attempts.
fn replace_keys(backend: &dyn Backend, options: &CreateOptions<'_>) -> Result<Key, EngineError> {
    for name in keys::list(backend)? {
        backend.delete(&name).map_err(|error| EngineError::writing(&name, error))?;
    }
    let key = Key::random()?;
    keys::put(backend, &key, options.password, options.kdf, options.created_at)?;
    Ok(key)
}

fn new_config() -> Result<ConfigFile, EngineError> {
    let mut id = [0; 32];
    fill_random(&mut id)?;
    Ok(ConfigFile {
        version: VERSION,
        id: RepositoryId(id),
        chunker_polynomial: format!("{:x}", polynomial::random_irreducible()?),
    })
}

fn put_access(backend: &dyn Backend, bytes: &[u8]) -> Result<(), EngineError> {
    let name = ObjectName::Access;
    backend.put(&name, bytes).map_err(|error| EngineError::writing(&name, error))
}

impl<S> Repository<S> {
    /// The repository's random id.
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// Replaces `kedge/access.json`.
    pub fn put_access(&self, bytes: &[u8]) -> Result<(), EngineError> {
        put_access(&*self.vault.backend, bytes)
    }

    /// Lets one more password open the repository. To change a password, add the new one,
    /// note it where the old one is noted, then [`Self::remove_passwords_but`] the new one:
    /// whatever is interrupted, what is noted opens the repository.
    pub fn add_password(
        &self,
        password: &Password,
        kdf: KdfCost,
        created_at: Timestamp,
    ) -> Result<KeyId, EngineError> {
        keys::add(&*self.vault.backend, &self.vault.key, password, kdf, created_at)
    }

    /// Removes all passwords this engine added but the one of `keep`; says how many there
    /// were. Passwords that another program added stay.
    pub fn remove_passwords_but(&self, keep: KeyId) -> Result<usize, EngineError> {
        keys::remove_own_but(&*self.vault.backend, keep)
    }
}

impl Repository<Open> {
    /// Reads all index objects into memory, 48 bytes per blob.
    pub fn load_index(self) -> Result<Repository<Indexed>, EngineError> {
        self.load_index_into(Index::default())
    }

    /// Reads the index objects that an earlier process did not leave in the cache, and
    /// keeps the index in files below `dir`, in a directory of the repository's id. A
    /// cache that is wrong is replaced; one held by another process, or a `dir` that
    /// cannot be used, is done without ([`Repository::index_report`] tells). Many repositories
    /// may share `dir`. Blob ids lie there in the clear, in files of mode 0600.
    pub fn load_index_cached(self, dir: &Path) -> Result<Repository<Indexed>, EngineError> {
        let index = Index::in_dir(dir, self.id, &self.vault.key);
        self.load_index_into(index)
    }

    fn load_index_into(self, index: Index) -> Result<Repository<Indexed>, EngineError> {
        let (snapshots, marks) = (SnapshotCache::default(), MarkCache::default());
        let state = Indexed { index, snapshots, marks, suspects: Suspects::default() };
        let repository = Repository { id: self.id, vault: self.vault, state };
        repository.refresh()?;
        Ok(repository)
    }
}

impl Repository<Indexed> {
    /// Reads index objects and marks written meanwhile and forgets vanished ones.
    pub fn refresh(&self) -> Result<(), EngineError> {
        self.read_marks()?;
        self.state.index.refresh(&self.vault)
    }

    /// How large the index is and what it takes.
    pub fn index_report(&self) -> IndexReport {
        self.state.index.report()
    }

    /// Index objects that could not be used at the last refresh, each with what is wrong.
    /// The blobs they list count as absent.
    pub fn damaged_index_objects(&self) -> Vec<(IndexId, String)> {
        self.state.index.damaged_objects()
    }

    /// All snapshots, oldest first. One that cannot be read fails the call.
    pub fn list_snapshots(&self) -> Result<Vec<Snapshot>, EngineError> {
        let loaded = self.state.snapshots.load(&self.vault)?;
        match loaded.damaged.into_iter().next() {
            Some(damage) => Err(damage),
            None => Ok(loaded.readable),
        }
    }

    /// All snapshots that can be read, oldest first, and what is wrong with the others.
    pub fn survey_snapshots(&self) -> Result<(Vec<Snapshot>, Vec<EngineError>), EngineError> {
        let loaded = self.state.snapshots.load(&self.vault)?;
        Ok((loaded.readable, loaded.damaged))
    }

    /// The ids of all snapshots there are. None is read.
    pub fn list_snapshot_ids(&self) -> Result<Vec<SnapshotId>, EngineError> {
        let listed = self.vault.list(ObjectKind::Snapshot)?.into_iter();
        Ok(listed
            .filter_map(|object| match object.name {
                ObjectName::Snapshot(id) => Some(id),
                _ => None,
            })
            .collect())
    }

    /// One snapshot, read anew.
    pub fn get_snapshot(&self, id: SnapshotId) -> Result<Snapshot, EngineError> {
        snapshot::read(&self.vault, id)
    }

    /// Whether the snapshot's object is there. It is not read.
    pub fn snapshot_exists(&self, id: SnapshotId) -> Result<bool, EngineError> {
        self.vault.exists(&ObjectName::Snapshot(id))
    }

    /// Snapshots with a tag, oldest first. Damaged snapshots are passed over.
    pub fn find_snapshots_by_tag(&self, tag: &str) -> Result<Vec<Snapshot>, EngineError> {
        let mut found = self.state.snapshots.load(&self.vault)?.readable;
        found.retain(|snapshot| snapshot.tags.iter().any(|other| other == tag));
        Ok(found)
    }

    /// Removes a snapshot; one that is not there is removed already. Its blobs stay
    /// until they are pruned. The caller has asked its own gate.
    pub fn delete_snapshot(&self, id: SnapshotId) -> Result<(), EngineError> {
        self.vault.delete(&ObjectName::Snapshot(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::MemoryBackend;

    #[test]
    fn another_format_version_is_refused() {
        let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
        let password = Password::new("x");
        let created_at = Timestamp::from_micros(0);
        let options =
            CreateOptions { password: &password, kdf: KdfCost::CHEAP, created_at, access: None };
        let repository = Repository::create(Arc::clone(&backend), &options).unwrap();
        let config = ConfigFile { version: 1, ..new_config().unwrap() };
        let json = document::to_json(&config).unwrap();
        let sealed = repository.vault.key.seal(&json).unwrap();
        backend.put(&ObjectName::Config, &sealed).unwrap();
        let opened = Repository::open(backend, &password);
        assert!(matches!(opened, Err(EngineError::UnsupportedVersion(1))), "{opened:?}");
    }
}
