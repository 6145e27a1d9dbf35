//! Where the users come from, and noticing that they changed.
//!
//! The file is looked at (one `stat`) whenever someone logs in or shows a token, so a
//! user disabled there is out from the next request on, without a restart.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info};

use super::users::{Users, UsersError};

/// Largest users file read: tens of thousands of users.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Where users come from.
#[derive(Clone, Debug)]
pub enum UsersSource {
    /// A file only its owner may read, read again when it changes. It is best replaced
    /// whole, by a rename.
    File(PathBuf),
    /// The text of such a file, which does not change.
    Text(String),
}

/// What tells one state of the file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The users as last read without fault.
#[derive(Debug)]
pub(super) struct Watched {
    source: UsersSource,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    users: Arc<Users>,
    /// Of the last look, whether or not what was seen could be used: a broken file is
    /// complained about once. `None` while there is no file.
    seen: Option<Signature>,
    /// Holders whose tokens are to be deleted.
    departed: VecDeque<String>,
}

impl Watched {
    pub(super) fn open(source: UsersSource) -> Result<Self, UsersError> {
        let (users, seen) = match &source {
            UsersSource::File(path) => {
                let seen = signature(path);
                (read(path)?, seen)
            }
            UsersSource::Text(text) => (Users::parse(text)?, None),
        };
        let departed = users.disabled_holders().collect();
        Ok(Self { source, state: Mutex::new(State { users: Arc::new(users), seen, departed }) })
    }

    /// The users as the source has them now; as it had them last if it is broken.
    pub(super) fn current(&self) -> Arc<Users> {
        let mut state = self.state();
        match &self.source {
            UsersSource::File(path) => state.look_at(path),
            UsersSource::Text(_) => {}
        }
        Arc::clone(&state.users)
    }

    /// A holder who is no longer let in and whose tokens are to be deleted.
    pub(super) fn first_departed(&self) -> Option<String> {
        self.state().departed.front().cloned()
    }

    /// Ends what [`Watched::first_departed`] began. New ones join at the end, so this is
    /// the one that was asked for, as long as one task at a time does this.
    pub(super) fn forget_first_departed(&self) {
        self.state().departed.pop_front();
    }

    /// A change is made in one assignment, so a panic elsewhere spoils nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn look_at(&mut self, path: &Path) {
        // Taken before reading: a change while we read is found at the next look.
        let now = signature(path);
        if now == self.seen {
            return;
        }
        self.seen = now;
        match read(path) {
            Ok(users) => {
                self.departed.extend(self.users.departed_holders(&users));
                self.users = Arc::new(users);
                info!("read the users file anew");
            }
            Err(trouble) => error!("the users stay as they were: {trouble}"),
        }
    }
}

fn signature(path: &Path) -> Option<Signature> {
    std::fs::metadata(path).ok().map(|metadata| Signature::of(&metadata))
}

fn read(path: &Path) -> Result<Users, UsersError> {
    let unreadable = |source| UsersError::Unreadable { path: path.to_owned(), source };
    // Opening a pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(UsersError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let mode = metadata.mode() & 0o7777;
    if mode & !0o600 != 0 {
        return Err(UsersError::TooOpen { path: path.to_owned(), mode });
    }
    if metadata.size() > FILE_BYTES_MAX {
        return Err(UsersError::TooLarge { path: path.to_owned(), bytes_max: FILE_BYTES_MAX });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    Users::parse(&text)
}
