//! The repository's own files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{During, Failure, process};

/// Folders that a build or a demo makes; they are not part of the repository.
const MADE_FOLDERS: [&str; 3] = [".git", "target", "kedge-demo"];

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Every file of the repository, relative to [`root`], sorted: what git tracks or would
/// offer to track, or in an unpacked archive every file there is.
pub(crate) fn files() -> Result<Vec<PathBuf>, Failure> {
    let mut files = match files_by_git() {
        Some(files) => files,
        None => files_by_walk(&root())?,
    };
    files.sort();
    Ok(files)
}

fn files_by_git() -> Option<Vec<PathBuf>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = process::program("git", &arguments).output().ok()?;
    let names = String::from_utf8(listed.stdout).ok()?;
    let exists = |path: &PathBuf| root().join(path).is_file();
    listed
        .status
        .success()
        .then(|| names.split_terminator('\0').map(PathBuf::from).filter(exists).collect())
}

fn files_by_walk(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).during(folder.display())? {
        let entry = entry.during(folder.display())?;
        let path = entry.path();
        if entry.file_type().during(path.display())?.is_dir() {
            if !MADE_FOLDERS.iter().any(|made| entry.file_name() == *made) {
                files.extend(files_by_walk(&path)?);
            }
        } else {
            files.extend(path.strip_prefix(root()).map(Path::to_path_buf));
        }
    }
    Ok(files)
}

/// The Rust sources among [`files`].
pub(crate) fn rust_files() -> Result<Vec<PathBuf>, Failure> {
    let mut files = files()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    Ok(files)
}

/// Reads one of [`files`].
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(root().join(path)).during(path.display())
}
