//! From what the file system says to what a job can act on.

use std::fmt::Display;
use std::io::{self, ErrorKind};

use kedge_core::ports::{CloudError, CloudErrorKind};

/// Turns an error of the file system into one of the port, with what was being done.
pub(super) fn failed(doing: impl Display) -> impl Fn(io::Error) -> CloudError {
    move |error| {
        let text = if is_full(&error) {
            format!("{doing}: the disk is full; free some space, then try again")
        } else {
            format!("{doing}: {error}")
        };
        CloudError { kind: kind_of(&error), text }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// What names a thing that is not there, not ours, broken or not what it should be stays so
/// until somebody acts; anything else may pass.
fn kind_of(error: &io::Error) -> CloudErrorKind {
    let lasts = matches!(error.raw_os_error(), Some(nix::libc::ELOOP | nix::libc::EIO));
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::PermissionDenied
        | ErrorKind::InvalidData
        | ErrorKind::InvalidInput
        | ErrorKind::InvalidFilename
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::CrossesDevices
        | ErrorKind::FileTooLarge
        | ErrorKind::Unsupported
        | ErrorKind::UnexpectedEof => CloudErrorKind::Permanent,
        _ if lasts => CloudErrorKind::Permanent,
        _ => CloudErrorKind::Retryable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_retryable_and_says_so() {
        let error = failed("writing")(io::Error::from_raw_os_error(nix::libc::ENOSPC));
        assert_eq!(error.kind, CloudErrorKind::Retryable);
        assert!(error.text.contains("disk is full"), "{error}");
    }

    #[test]
    fn what_is_not_there_a_symlink_or_broken_is_permanent() {
        for code in [nix::libc::ENOENT, nix::libc::ELOOP, nix::libc::EACCES, nix::libc::EIO] {
            let error = failed("opening")(io::Error::from_raw_os_error(code));
            assert_eq!(error.kind, CloudErrorKind::Permanent, "{error}");
        }
    }
}
