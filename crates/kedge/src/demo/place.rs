//! Where the demo keeps everything: one directory, marked as a demo's, so that `--reset`
//! can never delete anything else.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::arguments::DemoOptions;
use crate::failure::{Failure, OrFail as _};
use crate::private;

const MARKER: &str = ".kedge-demo";

/// A demo's directory, held for as long as this lives.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
    /// Locked, so that no other demo resets what this one works on.
    _marker: File,
}

impl Place {
    /// Takes the directory for a demo that starts afresh.
    pub(crate) fn claim(options: &DemoOptions) -> Result<Self, Failure> {
        let root = std::path::absolute(&options.state_dir).or_fail("--state-dir")?;
        let shown = root.display();
        if is_used(&root)? {
            let Some(marker) = find_marker(&root)? else {
                let text = "is not a demo's directory and not empty; name another --state-dir";
                return Err(Failure::new(format!("{shown} {text}")));
            };
            if !options.reset {
                return Err(Failure::new(format!(
                    "{shown} holds an earlier demo; --reset deletes it and starts afresh, \
                     --state-dir puts this one elsewhere"
                )));
            }
            lock(&marker, &root)?;
            std::fs::remove_dir_all(&root).or_fail(shown)?;
        }
        private::create_dir(&root).or_fail(root.display())?;
        let marker = private::create_file(&root.join(MARKER)).or_fail(root.display())?;
        lock(&marker, &root)?;
        Ok(Self { root, _marker: marker })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes a directory in the directory.
    pub(crate) fn create_dir(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.path(name);
        private::create_dir(&path).or_fail(path.display())?;
        Ok(path)
    }

    /// Writes a new file in the directory.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf, Failure> {
        let path = self.path(name);
        private::write_file(&path, text).or_fail(path.display())?;
        Ok(path)
    }
}

fn is_used(root: &Path) -> Result<bool, Failure> {
    match std::fs::read_dir(root) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).or_fail(root.display()),
    }
}

fn find_marker(root: &Path) -> Result<Option<File>, Failure> {
    let path = root.join(MARKER);
    match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).or_fail(path.display()),
    }
}

fn lock(marker: &File, root: &Path) -> Result<(), Failure> {
    flock(marker, FlockOperation::NonBlockingLockExclusive)
        .or_fail(format!("{}: another demo is running there", root.display()))
}

/// Bytes of all files beneath a directory.
pub(crate) fn used_bytes(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { used_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path, reset: bool) -> DemoOptions {
        DemoOptions { state_dir: dir.to_owned(), reset, exit: true, verbose: false }
    }

    #[test]
    fn a_demo_starts_where_nothing_is_and_again_only_with_reset() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::claim(&options(dir.path(), false)).unwrap();
        place.write("left", "over").unwrap();
        drop(place);
        let refused = Place::claim(&options(dir.path(), false)).unwrap_err();
        assert!(refused.to_string().contains("--reset"), "{refused}");
        let place = Place::claim(&options(dir.path(), true)).unwrap();
        assert!(!place.path("left").exists());
    }

    #[test]
    fn reset_deletes_nothing_but_a_demo() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
        assert!(Place::claim(&options(dir.path(), true)).is_err());
        assert!(dir.path().join("thesis.tex").exists());
    }

    #[test]
    fn a_running_demo_is_not_reset_under_its_feet() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::claim(&options(dir.path(), false)).unwrap();
        let refused = Place::claim(&options(dir.path(), true)).unwrap_err();
        assert!(refused.to_string().contains("running"), "{refused}");
        assert!(place.path(MARKER).exists());
    }
}
