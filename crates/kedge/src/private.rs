//! Files and directories that only their owner can use.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::DumpableBehavior;

/// Takes every right of others from whatever this process makes, also where a library
/// makes it, and from its memory.
pub(crate) fn make_everything_private() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    // No core dump and no debugger of the same user: keys and passwords are in memory.
    // Where the system refuses, there is nothing more to be done about it.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Makes a directory with the ones above it, where there is none.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes a file, refusing to touch one that is there.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Writes a new file, durably.
pub(crate) fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let mut file = create_file(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    sync_dir_of(path)
}

/// Puts a file in place of what is there, durably: a crash leaves the one or the other.
pub(crate) fn replace_file(path: &Path, text: &str) -> io::Result<()> {
    let aside = path.with_extension("new");
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    write_file(&aside, text)?;
    std::fs::rename(&aside, path)?;
    sync_dir_of(path)
}

fn sync_dir_of(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
}

/// The permission bits of others, if they have any.
pub(crate) fn open_to_others(path: &Path) -> io::Result<Option<u32>> {
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o7777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

/// Whether somebody else than the user of this process owns it.
pub(crate) fn owned_by_other(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.uid() != rustix::process::geteuid().as_raw())
}
