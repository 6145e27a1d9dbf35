//! Who we are to the store. Keys change while the service runs, so they are asked for
//! before every request.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use object_store::{CredentialProvider, aws::AwsCredential};
use zeroize::Zeroizing;

/// An access key and its secret. Debug tells the key's name alone.
#[derive(Clone)]
pub struct S3Credential {
    /// The access key's id, which is no secret.
    pub access_key_id: String,
    /// The secret that signs requests.
    pub secret_access_key: Zeroizing<String>,
    /// For keys that expire.
    pub session_token: Option<Zeroizing<String>>,
}

impl S3Credential {
    /// Whether all of it can stand in a header.
    fn is_well_formed(&self) -> bool {
        let token = self.session_token.as_deref().map_or("-", String::as_str);
        let is_plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
        is_plain(&self.access_key_id) && is_plain(&self.secret_access_key) && is_plain(token)
    }
}

impl fmt::Debug for S3Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credential")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// Why there is no credential. The text holds no part of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoCredential(pub String);

/// Where credentials come from.
pub trait S3Credentials: Send + Sync + fmt::Debug {
    /// The credential of this moment.
    fn current(&self) -> Result<S3Credential, NoCredential>;

    /// The store refused the current one: whatever was remembered is to be read anew.
    fn forget(&self) {}
}

/// A credential that never changes.
impl S3Credentials for S3Credential {
    fn current(&self) -> Result<S3Credential, NoCredential> {
        Ok(self.clone())
    }
}

/// A file of at most this size holds a credential.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// A file that only its owner can read, read again whenever it changed.
///
/// The lines that count are those AWS tools write, in any order: `aws_access_key_id = …`,
/// `aws_secret_access_key = …` and, for keys that expire, `aws_session_token = …`. Lines
/// that are empty, begin with `#` or `;`, or are the header `[default]` are passed over;
/// anything else is an error, since it may be another profile's key.
pub struct CredentialsFile {
    path: PathBuf,
    known: Mutex<Option<(Version, S3Credential)>>,
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl CredentialsFile {
    /// The file at `path`, read when it is first needed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), known: Mutex::default() }
    }

    fn fail(&self, what: impl fmt::Display) -> NoCredential {
        NoCredential(format!("credentials file {}: {what}", self.path.display()))
    }

    fn version(&self) -> Result<Version, NoCredential> {
        let metadata = fs::metadata(&self.path).map_err(|error| self.fail(error))?;
        if !metadata.is_file() {
            return Err(self.fail("not a file"));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            let text =
                format!("others than its owner can use it: expected mode 0600, found {mode:04o}");
            return Err(self.fail(text));
        }
        if metadata.len() > FILE_BYTES_MAX {
            return Err(self.fail(format!("larger than {FILE_BYTES_MAX} bytes")));
        }
        Ok(Version {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn read(&self) -> Result<S3Credential, NoCredential> {
        let text = read_bounded(&self.path).map_err(|error| self.fail(error))?;
        parse(&text).map_err(|what| self.fail(what))
    }
}

impl fmt::Debug for CredentialsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CredentialsFile").field(&self.path).finish()
    }
}

impl S3Credentials for CredentialsFile {
    fn current(&self) -> Result<S3Credential, NoCredential> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.version()?;
        if let Some((of, credential)) = &*known
            && *of == version
        {
            return Ok(credential.clone());
        }
        let credential = self.read()?;
        // Written while we read: the next request reads it again.
        *known = (self.version()? == version).then(|| (version, credential.clone()));
        Ok(credential)
    }

    fn forget(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn read_bounded(path: &Path) -> io::Result<Zeroizing<String>> {
    use io::Read as _;
    let most = usize::try_from(FILE_BYTES_MAX).unwrap_or(usize::MAX);
    // Room for all of it at once: a buffer that grows leaves copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(most + 1));
    fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(text: &str) -> Result<S3Credential, String> {
    let (mut id, mut secret, mut token) = (None, None, None);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) || line == "[default]" {
            continue;
        }
        // The line itself may hold a secret and is not told.
        let unknown = || {
            format!(
                "line {number}: expected aws_access_key_id, aws_secret_access_key or \
                 aws_session_token, `=` and a value"
            )
        };
        let (name, value) = line.split_once('=').ok_or_else(unknown)?;
        let place = match name.trim() {
            "aws_access_key_id" => &mut id,
            "aws_secret_access_key" => &mut secret,
            "aws_session_token" => &mut token,
            _ => return Err(unknown()),
        };
        if place.replace(Zeroizing::new(value.trim().to_owned())).is_some() {
            return Err(format!("line {number}: the field is there twice"));
        }
    }
    let missing = |field: &str| format!("{field} is missing");
    let credential = S3Credential {
        access_key_id: id.ok_or_else(|| missing("aws_access_key_id"))?.to_string(),
        secret_access_key: secret.ok_or_else(|| missing("aws_secret_access_key"))?,
        session_token: token,
    };
    if credential.is_well_formed() {
        Ok(credential)
    } else {
        Err("a value is empty or holds characters no key has".to_owned())
    }
}

/// Hands credentials to the client of the store.
#[derive(Debug)]
pub(super) struct Provider(pub(super) Arc<dyn S3Credentials>);

impl Provider {
    pub(super) fn current(&self) -> Result<AwsCredential, NoCredential> {
        let credential = self.0.current()?;
        if !credential.is_well_formed() {
            let text = "the credential is empty or holds characters no key has";
            return Err(NoCredential(text.to_owned()));
        }
        Ok(AwsCredential {
            key_id: credential.access_key_id,
            secret_key: credential.secret_access_key.to_string(),
            token: credential.session_token.map(|token| token.to_string()),
        })
    }
}

#[async_trait]
impl CredentialProvider for Provider {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let credential = self.current();
        credential
            .map(Arc::new)
            .map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const GOOD: &str = "[default]\n# the backup's own user\naws_access_key_id = AKID\n\
                        aws_secret_access_key=wJalr/K7MDENG+bPx=\n\n";

    fn file_with(text: &str) -> (tempfile::TempDir, CredentialsFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = CredentialsFile::new(dir.path().join("credentials"));
        write(&file, text);
        (dir, file)
    }

    fn write(file: &CredentialsFile, text: &str) {
        fs::write(&file.path, text).unwrap();
        fs::set_permissions(&file.path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_changed_file_is_read_again_without_a_restart() {
        let (dir, file) = file_with(GOOD);
        let first = file.current().unwrap();
        assert_eq!(first.access_key_id, "AKID");
        assert_eq!(first.secret_access_key.as_str(), "wJalr/K7MDENG+bPx=");
        assert!(first.session_token.is_none());
        write(&file, &format!("{GOOD}aws_session_token = tok\n"));
        assert_eq!(file.current().unwrap().session_token.unwrap().as_str(), "tok");
        // Replaced by rename, as careful writers do.
        let next = CredentialsFile::new(dir.path().join("next"));
        write(&next, &GOOD.replace("AKID", "NEXT"));
        fs::rename(&next.path, &file.path).unwrap();
        assert_eq!(file.current().unwrap().access_key_id, "NEXT");
        // Gone: not the old one for ever.
        fs::remove_file(&file.path).unwrap();
        assert!(file.current().is_err());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let (_dir, file) = file_with(GOOD);
        for mode in [0o644, 0o640, 0o604] {
            fs::set_permissions(&file.path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(file.current().unwrap_err().0.contains("0600"));
        }
    }

    #[test]
    fn a_malformed_file_is_told_without_its_content() {
        for (text, told) in [
            ("", "aws_access_key_id is missing"),
            ("aws_access_key_id = AKID", "aws_secret_access_key is missing"),
            ("AKID\nhush", "line 1"),
            ("aws_access_key_id = AKID\nsecret = hush", "line 2"),
            ("aws_access_key_id = AKID\naws_access_key_id = AKID", "twice"),
            ("aws_access_key_id = AKID\naws_secret_access_key =", "empty"),
            ("aws_access_key_id = AKID\naws_secret_access_key = hu sh", "characters"),
            ("[other]\naws_access_key_id = AKID", "line 1"),
        ] {
            let (_dir, file) = file_with(text);
            let error = file.current().unwrap_err().0;
            assert!(error.contains(told), "{text:?}: {error}");
            assert!(!error.contains("hush") && !error.contains("hu sh"), "{error}");
        }
        let (_dir, file) = file_with(&"#".repeat(20_000));
        assert!(file.current().unwrap_err().0.contains("larger"));
    }

    #[test]
    fn debug_tells_no_secret() {
        let (_dir, file) = file_with(GOOD);
        let credential = file.current().unwrap();
        let provider = Provider(Arc::new(credential.clone()));
        let told = format!("{credential:?} {file:?} {provider:?} {:?}", provider.current());
        assert!(told.contains("AKID") && !told.contains("wJalr"), "{told}");
    }
}
