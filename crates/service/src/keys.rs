//! The service key: the one secret that, with a repository, rebuilds everything.
//!
//! It wraps the random password of each repository. The wrapped form lies in the
//! catalogue and beside the repository's `config`; the key itself lies in a file outside
//! every repository and is never copied anywhere else.
//!
//! While the key is being replaced the file holds two: the first wraps, both unwrap. So
//! whatever interrupts the replacement, everything wrapped so far opens.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use kedge_core::ids::ProjectId;
use kedge_engine::Password;
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
/// Two keys take 130.
const FILE_BYTES_MAX: u64 = 1024;

type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// 256 random bits that wrap repository passwords; while they are being replaced, also
/// those before them, which only unwrap.
pub struct ServiceKey {
    current: Secret,
    former: Option<Secret>,
}

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
    #[error(
        "service key {path}: expected a line of 64 hexadecimal digits, or two while the key is \
         being replaced"
    )]
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

impl KeyError {
    fn file(path: &Path, error: &io::Error) -> Self {
        Self::File { path: path.display().to_string(), text: error.to_string() }
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceKey(..)")
    }
}

impl ServiceKey {
    /// A fresh key.
    pub fn random() -> Result<Self, KeyError> {
        let mut current = Zeroizing::new([0; KEY_BYTES]);
        fill_random(current.as_mut_slice())?;
        Ok(Self { current, former: None })
    }

    /// What the key that signs receipts is made of. It tells nothing of the key.
    pub(crate) fn receipt_seed(&self) -> Zeroizing<[u8; KEY_BYTES]> {
        use ring::hmac::{HMAC_SHA256, Key, sign};
        let tag = sign(&Key::new(HMAC_SHA256, self.current.as_slice()), b"kedge receipts 1");
        let mut seed = Zeroizing::new([0; KEY_BYTES]);
        seed.copy_from_slice(tag.as_ref());
        seed
    }

    /// Reads the key, refusing a file that others can read.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |error| KeyError::file(path, &error);
        let file = fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen { path: path.display().to_string(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text).ok_or_else(|| KeyError::Malformed { path: path.display().to_string() })
    }

    /// One line, or two: the current key and the one it replaces.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.trim().lines();
        let current = parse_line(lines.next()?)?;
        let former = match lines.next() {
            Some(line) => Some(parse_line(line)?),
            None => None,
        };
        lines.next().is_none().then_some(Self { current, former })
    }

    fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(2 * (2 * KEY_BYTES + 1)));
        for key in std::iter::once(&self.current).chain(&self.former) {
            let digits = Zeroizing::new(hex::encode(key.as_slice()));
            text.push_str(&digits);
            text.push('\n');
        }
        text
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
        let failed = |error| KeyError::file(path, &error);
        let aside = path.with_extension(format!("{}.new", std::process::id()));
        let written = write_private(&aside, &key.text());
        let linked = written.and_then(|()| fs::hard_link(&aside, path));
        let removed = fs::remove_file(&aside);
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Self::load(path),
            Err(error) => return Err(failed(error)),
        }
        removed.map_err(failed)?;
        sync_folder_of(path).map_err(failed)?;
        Ok(key)
    }

    /// Whether the file still holds the key that this one replaces.
    pub fn is_being_replaced(&self) -> bool {
        self.former.is_some()
    }

    /// A fresh key that takes the place of this one, which still unwraps.
    pub(crate) fn replaced(self) -> Result<Self, KeyError> {
        let Self { current, .. } = Self::random()?;
        Ok(Self { current, former: Some(self.current) })
    }

    /// The current key without the one it replaces.
    pub(crate) fn alone(&self) -> Self {
        Self { current: self.current.clone(), former: None }
    }

    /// Puts this key into the file, in place of what is there. A crash leaves the one or
    /// the other, never a part. `before_renamed` is called in between.
    pub(crate) fn replace_file(
        &self,
        path: &Path,
        before_renamed: impl FnOnce(),
    ) -> Result<(), KeyError> {
        // A link stays a link: what it names is replaced.
        let path = path.canonicalize().map_err(|error| KeyError::file(path, &error))?;
        let failed = |error| KeyError::file(&path, &error);
        let aside = aside_of(&path);
        remove_if_there(&aside).map_err(failed)?;
        write_private(&aside, &self.text()).map_err(failed)?;
        before_renamed();
        fs::rename(&aside, &path).map_err(failed)?;
        sync_folder_of(&path).map_err(failed)
    }

    /// Removes what a replacement that was killed left beside the file: it holds keys.
    pub(crate) fn remove_leftovers(path: &Path) -> Result<(), KeyError> {
        let path = path.canonicalize().map_err(|error| KeyError::file(path, &error))?;
        remove_if_there(&aside_of(&path)).map_err(|error| KeyError::file(&path, &error))
    }

    /// Wraps a repository's password for one project; no other project can unwrap it.
    pub fn wrap(&self, password: &Password, project: &ProjectId) -> Result<Vec<u8>, KeyError> {
        let mut wrapped = vec![0; NONCE_BYTES];
        fill_random(&mut wrapped)?;
        let nonce = Nonce::try_from(wrapped.as_slice()).map_err(|_| KeyError::Failed("nonce"))?;
        let payload =
            Payload { msg: password.expose().as_bytes(), aad: project.as_str().as_bytes() };
        let cipher = cipher(&self.current)?;
        let sealed = cipher.encrypt(&nonce, payload).map_err(|_| KeyError::Failed("sealing"))?;
        wrapped.extend(sealed);
        Ok(wrapped)
    }

    /// What [`ServiceKey::wrap`] wrapped for this project, with this key or with the one it
    /// replaces.
    pub fn unwrap(&self, wrapped: &[u8], project: &ProjectId) -> Result<Password, KeyError> {
        match (unwrap_with(&self.current, wrapped, project), &self.former) {
            (Err(KeyError::WrongKey), Some(former)) => unwrap_with(former, wrapped, project),
            (unwrapped, _) => unwrapped,
        }
    }

    /// Whether this key opens it without the one it replaces.
    pub(crate) fn unwraps_alone(&self, wrapped: &[u8], project: &ProjectId) -> bool {
        unwrap_with(&self.current, wrapped, project).is_ok()
    }
}

fn unwrap_with(key: &Secret, wrapped: &[u8], project: &ProjectId) -> Result<Password, KeyError> {
    let (nonce, sealed) = wrapped.split_at_checked(NONCE_BYTES).ok_or(KeyError::WrongKey)?;
    let nonce = Nonce::try_from(nonce).map_err(|_| KeyError::WrongKey)?;
    let payload = Payload { msg: sealed, aad: project.as_str().as_bytes() };
    let plain = cipher(key)?.decrypt(&nonce, payload).map_err(|_| KeyError::WrongKey)?;
    let plain = Zeroizing::new(plain);
    let text = std::str::from_utf8(&plain).map_err(|_| KeyError::WrongKey)?;
    Ok(Password::new(text))
}

fn cipher(key: &Secret) -> Result<Aes256Gcm, KeyError> {
    Aes256Gcm::new_from_slice(key.as_slice()).map_err(|_| KeyError::Failed("key length"))
}

fn parse_line(line: &str) -> Option<Secret> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    hex::decode_to_slice(line.trim(), key.as_mut_slice()).ok()?;
    Some(key)
}

/// Where a key is written before it takes its place; always the same, so that a killed
/// replacement leaves one file at most.
fn aside_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
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
        assert_eq!(made.text(), again.text());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(ServiceKey::load(&path), Err(KeyError::TooOpen { mode: 0o640, .. })));
    }

    #[test]
    fn a_key_being_replaced_wraps_with_the_new_one_and_unwraps_with_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.key");
        let old = ServiceKey::load_or_create(&path).unwrap();
        let project = ProjectId::new("p");
        let before = old.wrap(&Password::new("before"), &project).unwrap();

        let both = old.replaced().unwrap();
        both.replace_file(&path, || {}).unwrap();
        let both = ServiceKey::load(&path).unwrap();
        assert!(both.is_being_replaced());
        let after = both.wrap(&Password::new("after"), &project).unwrap();
        assert_eq!(both.unwrap(&before, &project).unwrap().expose(), "before");
        assert!(both.unwraps_alone(&after, &project) && !both.unwraps_alone(&before, &project));

        both.alone().replace_file(&path, || {}).unwrap();
        let new = ServiceKey::load(&path).unwrap();
        assert!(!new.is_being_replaced());
        assert_eq!(new.unwrap(&after, &project).unwrap().expose(), "after");
        assert!(matches!(new.unwrap(&before, &project), Err(KeyError::WrongKey)));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_is_neither_one_key_nor_two_is_refused() {
        let line = "ab".repeat(32);
        for text in [
            String::new(),
            "ab".repeat(31),
            format!("{line}\n\n{line}"),
            format!("{line}\n{line}\n{line}"),
            format!("{line}\nnone"),
            line.repeat(2),
        ] {
            assert!(ServiceKey::parse(&text).is_none(), "{text:?}");
        }
        for text in [line.clone(), format!("{line}\n{line}"), format!(" {line}\r\n{line}\r\n")] {
            assert!(ServiceKey::parse(&text).is_some(), "{text:?}");
        }
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", ServiceKey::random().unwrap()), "ServiceKey(..)");
    }
}
