//! Locks on image files, understood by QEMU, and the identity of a file.
//!
//! QEMU says with one lock per permission what it does with an image (bytes from 100 on)
//! and what it lets nobody else do (bytes from 200 on), always as shared locks; a process
//! looks at the opposite bytes to see whether it may. Kept on the open file description,
//! they end with its last copy, also when a process is killed.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use kedge_core::ports::CloudError;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::error::failed;

const READS: i64 = 100;
const WRITES: i64 = 101;
const RESIZES: i64 = 103;
const NOBODY_READS: i64 = 200;
const NOBODY_WRITES: i64 = 201;
const NOBODY_RESIZES: i64 = 203;

/// What we do with an image while others keep away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Others may read too.
    Reading,
    /// Nobody else may use it.
    Writing,
}

impl Hold {
    fn taken(self) -> &'static [i64] {
        match self {
            Self::Reading => &[NOBODY_WRITES, NOBODY_RESIZES],
            Self::Writing => &[WRITES, NOBODY_READS, NOBODY_WRITES, NOBODY_RESIZES],
        }
    }

    /// Held by anyone else, these forbid it.
    fn forbidden_by(self) -> &'static [i64] {
        match self {
            Self::Reading => &[WRITES, RESIZES, NOBODY_READS],
            Self::Writing => &[READS, WRITES, RESIZES, NOBODY_READS, NOBODY_WRITES],
        }
    }

    /// Takes the locks on a file, all or none, without waiting.
    pub(super) fn take(self, file: &File, name: &str) -> Result<(), CloudError> {
        let held = self.try_take(file);
        if !matches!(held, Ok(true)) {
            release(file);
        }
        match held {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(CloudError::retryable(format!("image {name:?} is in use by another process")))
            }
            Err(errno) => Err(failed(format!("locking image {name:?}"))(errno.into())),
        }
    }

    fn try_take(self, file: &File) -> Result<bool, Errno> {
        for byte in self.taken() {
            match fcntl(file, FcntlArg::F_OFD_SETLK(&one_byte(libc::F_RDLCK, *byte))) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        for byte in self.forbidden_by() {
            let mut asked = one_byte(libc::F_WRLCK, *byte);
            fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked))?;
            if i32::from(asked.l_type) != libc::F_UNLCK {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Gives up whatever we hold on this file, also while copies of its handle live.
pub(super) fn release(file: &File) {
    let mut all = one_byte(libc::F_UNLCK, READS);
    all.l_len = NOBODY_RESIZES - READS + 1;
    // Can only fail on a handle that is no file; then there is nothing to give up.
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&all));
}

fn one_byte(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or(i16::MAX),
        l_whence: 0,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// What tells an unchanged file from a changed or another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    /// Where the file system keeps it; tells two files apart that had one inode in turn.
    born: Option<(u64, u32)>,
    pub(super) size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let data = file.metadata()?;
        Ok(Self {
            device: data.dev(),
            inode: data.ino(),
            born: data.created().ok().and_then(|time| {
                let since = time.duration_since(UNIX_EPOCH).ok()?;
                Some((since.as_secs(), since.subsec_nanos()))
            }),
            size_bytes: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }

    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// When the file last changed, by the file system's clock.
    pub(super) fn changed_secs(&self) -> i64 {
        self.changed.0
    }

    /// Whether a change at the moment `now` was made would leave these times as they are,
    /// because the file system's clock has not ticked since.
    pub(super) fn may_hide_a_change(&self, now: &Self) -> bool {
        self.modified == now.modified || self.changed == now.changed
    }

    /// Takes the most room when written down.
    #[cfg(test)]
    pub(super) fn longest() -> Self {
        Self {
            device: u64::MAX,
            inode: u64::MAX,
            born: Some((u64::MAX, u32::MAX)),
            size_bytes: u64::MAX,
            modified: (i64::MIN, i64::MIN),
            changed: (i64::MIN, i64::MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [a, b] = [opened(image.path()), opened(image.path())];
        let rows = [
            (Hold::Reading, Hold::Reading, true),
            (Hold::Reading, Hold::Writing, false),
            (Hold::Writing, Hold::Reading, false),
            (Hold::Writing, Hold::Writing, false),
        ];
        for (first, second, both) in rows {
            first.take(&a, "image").unwrap();
            assert_eq!(second.take(&b, "image").is_ok(), both, "{first:?} then {second:?}");
            release(&a);
            release(&b);
            second.take(&b, "image").unwrap();
            release(&b);
        }
    }

    #[test]
    fn a_refused_lock_leaves_nothing_locked() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [a, b, c] = std::array::from_fn(|_| opened(image.path()));
        Hold::Writing.take(&a, "image").unwrap();
        Hold::Writing.take(&b, "image").unwrap_err();
        release(&a);
        Hold::Writing.take(&c, "image").unwrap();
    }
}
