//! The service key: the one secret that, with a repository, rebuilds everything.
//!
//! It wraps the random password of each repository. The wrapped form lies in the
//! catalogue and beside the repository's `config`; the key itself lies in a file outside
//! every repository and is never copied anywhere else.

use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use kedge_core::ids::ProjectId;
use kedge_engine::Password;
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// 256 random bits that wrap repository passwords.
pub struct ServiceKey(Zeroizing<[u8; KEY_BYTES]>);

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("service key {path}: {text}")]
    File {
        /// Which file.
        path: String,
        /// What happened.
        text: String,
    },
    /// The file can be read by others than its owner.
    #[error("service key {path}: mode {mode:04o}, expected 0600")]
    TooOpen {
        /// Which file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no key.
    #[error("service key {path}: expected 64 hexadecimal digits")]
    Malformed {
        /// Which file.
        path: String,
    },
    /// The wrapped password was not made with this key for this project.
    #[error("the repository's password was not wrapped with this service key")]
    WrongKey,
    /// The system gave no randomness, or a cipher refused its input.
    #[error("wrapping failed: {0}")]
    Failed(&'static str),
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceKey(..)")
    }
}

impl ServiceKey {
    /// A fresh key.
    pub fn random() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        fill_random(bytes.as_mut_slice())?;
        Ok(Self(bytes))
    }

    /// Reads the key, refusing a file that others can read.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let name = path.display().to_string();
        let failed =
            |error: std::io::Error| KeyError::File { path: name.clone(), text: error.to_string() };
        let mut file = fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen { path: name, mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.read_to_string(&mut text).map_err(failed)?;
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        hex::decode_to_slice(text.trim(), bytes.as_mut_slice())
            .map_err(|_| KeyError::Malformed { path: name.clone() })?;
        Ok(Self(bytes))
    }

    /// Reads the key, or makes one where there is no file yet. An existing file is never
    /// overwritten: it may be the only way to years of backups.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::File { .. }) if !path.exists() => Self::create(path),
            loaded => loaded,
        }
    }

    /// Written aside and linked into place, so that a crash leaves the whole key or none,
    /// and of two processes that begin at once one key wins.
    fn create(path: &Path) -> Result<Self, KeyError> {
        let key = Self::random()?;
        let failed = |error: std::io::Error| KeyError::File {
            path: path.display().to_string(),
            text: error.to_string(),
        };
        let aside = path.with_extension(format!("{}.new", std::process::id()));
        let text = Zeroizing::new(hex::encode(key.0.as_slice()) + "\n");
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        let linked = written.and_then(|()| fs::hard_link(&aside, path));
        let removed = fs::remove_file(&aside);
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Self::load(path),
            Err(error) => return Err(failed(error)),
        }
        removed.map_err(failed)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(key)
    }

    /// Wraps a repository's password for one project; no other project can unwrap it.
    pub fn wrap(&self, password: &Password, project: &ProjectId) -> Result<Vec<u8>, KeyError> {
        let mut wrapped = vec![0; NONCE_BYTES];
        fill_random(&mut wrapped)?;
        let nonce = Nonce::try_from(wrapped.as_slice()).map_err(|_| KeyError::Failed("nonce"))?;
        let payload =
            Payload { msg: password.expose().as_bytes(), aad: project.as_str().as_bytes() };
        let sealed =
            self.cipher()?.encrypt(&nonce, payload).map_err(|_| KeyError::Failed("sealing"))?;
        wrapped.extend(sealed);
        Ok(wrapped)
    }

    /// What [`ServiceKey::wrap`] wrapped for this project.
    pub fn unwrap(&self, wrapped: &[u8], project: &ProjectId) -> Result<Password, KeyError> {
        let (nonce, sealed) = wrapped.split_at_checked(NONCE_BYTES).ok_or(KeyError::WrongKey)?;
        let nonce = Nonce::try_from(nonce).map_err(|_| KeyError::WrongKey)?;
        let payload = Payload { msg: sealed, aad: project.as_str().as_bytes() };
        let plain = self.cipher()?.decrypt(&nonce, payload).map_err(|_| KeyError::WrongKey)?;
        let plain = Zeroizing::new(plain);
        let text = std::str::from_utf8(&plain).map_err(|_| KeyError::WrongKey)?;
        Ok(Password::new(text))
    }

    fn cipher(&self) -> Result<Aes256Gcm, KeyError> {
        Aes256Gcm::new_from_slice(self.0.as_slice()).map_err(|_| KeyError::Failed("key length"))
    }
}

fn fill_random(bytes: &mut [u8]) -> Result<(), KeyError> {
    getrandom::fill(bytes).map_err(|_| KeyError::Failed("no randomness"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_wrapped_password_opens_only_for_its_project_and_key() {
        let key = ServiceKey::random().unwrap();
        let (mine, theirs) = (ProjectId::new("mine"), ProjectId::new("theirs"));
        let wrapped = key.wrap(&Password::new("secret"), &mine).unwrap();
        assert_eq!(key.unwrap(&wrapped, &mine).unwrap().expose(), "secret");
        assert!(matches!(key.unwrap(&wrapped, &theirs), Err(KeyError::WrongKey)));
        let other = ServiceKey::random().unwrap();
        assert!(matches!(other.unwrap(&wrapped, &mine), Err(KeyError::WrongKey)));
        assert!(matches!(key.unwrap(&wrapped[..5], &mine), Err(KeyError::WrongKey)));
    }

    #[test]
    fn a_key_file_is_made_once_private_and_refused_when_others_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.key");
        let made = ServiceKey::load_or_create(&path).unwrap();
        let again = ServiceKey::load_or_create(&path).unwrap();
        assert_eq!(made.0, again.0);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(ServiceKey::load(&path), Err(KeyError::TooOpen { mode: 0o640, .. })));
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", ServiceKey::random().unwrap()), "ServiceKey(..)");
    }
}
