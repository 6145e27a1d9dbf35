//! The ten longest source files: no limit, something to look at now and then.

use crate::{Failure, tree};

/// How many files are shown.
const SHOWN: usize = 10;

pub(crate) fn print() -> Result<(), Failure> {
    let mut files = tree::rust_files()?
        .into_iter()
        .map(|path| Ok((tree::read(&path)?.lines().count(), path)))
        .collect::<Result<Vec<_>, Failure>>()?;
    files.sort_by(|a, b| b.cmp(a));
    for (lines, path) in files.iter().take(SHOWN) {
        println!("{lines:6} {}", path.display());
    }
    Ok(())
}
