//! Runs other programs, from the root of the repository, with their output on ours.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{During, Failure, tree};

/// A program to run in the root of the repository.
pub(crate) fn program(name: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments).current_dir(tree::root());
    command
}

/// Runs to the end; any exit status but success is a failure that names the command.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command.status().during(shown(command))?;
    if status.success() { Ok(()) } else { Err(Failure(format!("{}: {status}", shown(command)))) }
}

/// Runs to the end and returns what was written to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let output = command.stderr(Stdio::inherit()).output().during(shown(command))?;
    if !output.status.success() {
        return Err(Failure(format!("{}: {}", shown(command), output.status)));
    }
    String::from_utf8(output.stdout).during(shown(command))
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Where a tool lies. Debian keeps those for disks outside an ordinary user's `PATH`.
pub(crate) fn find_tool(name: &str) -> Option<PathBuf> {
    let script = "PATH=$PATH:/usr/sbin:/sbin; command -v \"$1\"";
    let found = program("sh", &["-c", script, "sh", name]).output().ok()?;
    let path = String::from_utf8(found.stdout).ok()?;
    (found.status.success() && !path.trim().is_empty()).then(|| PathBuf::from(path.trim()))
}

/// As [`find_tool`], but the tool must be there.
pub(crate) fn tool(name: &str) -> Result<PathBuf, Failure> {
    find_tool(name).ok_or_else(|| Failure(format!("{name} is not installed")))
}
