//! Figures that tests hand over, such as how many crash points were tried: a file of
//! lines each, in a folder that cargo gives to tests for what they write.

use std::fs;
use std::path::PathBuf;

use crate::{During, Failure};

/// Forgets the figures of earlier runs.
pub(crate) fn clear() -> Result<(), Failure> {
    let folder = folder()?;
    if folder.exists() {
        fs::remove_dir_all(&folder).during(folder.display())?;
    }
    Ok(())
}

/// Prints the figures, sorted by the names of their files.
pub(crate) fn print() -> Result<(), Failure> {
    let folder = folder()?;
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).during(folder.display())? {
        files.push(entry.during(folder.display())?.path());
    }
    files.sort();
    for file in files {
        print!("{}", fs::read_to_string(&file).during(file.display())?);
    }
    Ok(())
}

/// `tmp/figures` in cargo's target directory, in which this program lies too.
fn folder() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().during("where this program lies")?;
    let target = program.ancestors().nth(2);
    let target = target.ok_or_else(|| Failure("this program lies nowhere".into()))?;
    Ok(target.join("tmp/figures"))
}
