//! Runs the program.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

pub(crate) const PROJECT: &str = "3c52b3ae1ca24ee09c3a9e0b8c8f0b0e";

pub(crate) fn kedge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kedge"));
    command.stdin(Stdio::null());
    command
}

pub(crate) fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    kedge().args(arguments).output().unwrap()
}

pub(crate) fn run_with_stdin(arguments: &[&str], stdin: &str) -> Output {
    let mut command = kedge();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An installation that lacks nothing: users, a directory of servers, a configuration.
pub(crate) struct Installation {
    pub(crate) dir: TempDir,
}

impl Installation {
    pub(crate) fn new() -> Self {
        let installation = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(installation.path("servers")).unwrap();
        let hash = stdout(&run_with_stdin(&["user", "hash"], "a password\n"));
        let users = format!(
            "[[project]]\nid = \"{PROJECT}\"\nname = \"p\"\n\
             [[user]]\nname = \"ann\"\npassword_hash = \"{}\"\n",
            hash.trim()
        );
        write_private(&installation.path("users.toml"), &users);
        installation.configure("");
        installation
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("kedge.toml")
    }

    /// Writes the configuration, with more fields at the top.
    pub(crate) fn configure(&self, more: &str) {
        let root = self.dir.path().display();
        let listen = if more.contains("listen =") { "" } else { "listen = \"127.0.0.1:0\"" };
        let text = format!(
            "state_dir = \"{root}/state\"\nusers = \"{root}/users.toml\"\n{listen}\n{more}\n\
             [cloud]\nkind = \"local\"\nservers_dir = \"{root}/servers\"\n"
        );
        fs::write(self.config(), text).unwrap();
    }

    pub(crate) fn check(&self) -> Output {
        run([OsStr::new("config"), "check".as_ref(), "--config".as_ref(), self.config().as_ref()])
    }
}

pub(crate) fn write_private(path: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Everything beneath a directory that somebody else than its owner could use.
pub(crate) fn not_private(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        let mode = metadata.permissions().mode() & 0o7777;
        if mode != expected {
            found.push(format!("{mode:04o} {}", path.display()));
        }
        if metadata.is_dir() {
            found.extend(not_private(&path));
        }
    }
    found
}
