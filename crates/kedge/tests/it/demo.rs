//! `kedge demo --exit`, judged by stock restic and by the demo's own copies.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::kedge::{kedge, not_private, run, stderr, stdout};

/// One run for all tests; it takes seconds.
static RUN: LazyLock<Output> = LazyLock::new(|| {
    let dir = state_dir();
    let dir = dir.to_str().unwrap();
    run(["demo", "--exit", "--reset", "--state-dir", dir])
});

fn state_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("demo")
}

fn demo() -> (PathBuf, String) {
    assert!(RUN.status.success(), "{}{}", stdout(&RUN), stderr(&RUN));
    (state_dir(), stdout(&RUN))
}

/// What `set -a; . FILE` gives, read by a shell.
fn kit(dir: &Path) -> BTreeMap<String, String> {
    let script = "set -a; . \"$1\"; env -0";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(dir.join("recovery-kit.env"));
    let output = shell.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(name, _)| name.starts_with("RESTIC_"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn restic(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("restic");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("restic-cache");
    command.envs(kit(dir)).env("RESTIC_CACHE_DIR", cache).args(arguments);
    command
}

/// The newest snapshot of this server with a folder of this disk, and the disk's file in it.
fn newest(dir: &Path, server: &str, disk: &str) -> (String, String) {
    let output = restic(dir, &["snapshots", "--json", "--host", server]).output().unwrap();
    let snapshots: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = Vec::new();
    for snapshot in snapshots {
        for path in snapshot["paths"].as_array().unwrap() {
            let folder = path.as_str().unwrap();
            if folder.starts_with(&format!("/{disk}-")) {
                let time = snapshot["time"].as_str().unwrap().to_owned();
                let id = snapshot["id"].as_str().unwrap().to_owned();
                found.push((time, id, format!("{folder}/disk.raw")));
            }
        }
    }
    found.sort();
    let (_, id, file) = found.pop().unwrap();
    (id, file)
}

/// Whether two streams hold the same bytes, and how many.
fn equal_bytes(mut a: impl std::io::Read, mut b: impl std::io::Read) -> Option<u64> {
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut bytes = 0;
    loop {
        let length = read_full(&mut a, &mut left);
        if length != read_full(&mut b, &mut right) || left[..length] != right[..length] {
            return None;
        }
        if length == 0 {
            return Some(bytes);
        }
        bytes += length as u64;
    }
}

fn read_full(from: &mut impl std::io::Read, buffer: &mut [u8]) -> usize {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]).unwrap() {
            0 => break,
            read => length += read,
        }
    }
    length
}

#[test]
fn the_demo_finds_three_disks_identical() {
    let (_, text) = demo();
    let lines: Vec<_> = text.lines().filter(|l| l.contains("restored bytes identical")).collect();
    assert_eq!(lines.len(), 3, "{text}");
    for disk in ["web/system", "web/data", "db/disk"] {
        assert!(lines.iter().any(|line| line.ends_with(disk)), "{disk}: {text}");
    }
}

#[test]
fn the_demo_shows_one_yes_and_a_no_for_every_reason() {
    let (_, text) = demo();
    let mut rest = text.as_str();
    for shown in
        ["true", "true", "false: CSBS.6024", "false: CSBS.6014", "false: CSBS.6018", "CSBS.3001"]
            .into_iter()
            .chain(["false: CSBS.4000", "recovery kit: "])
    {
        let at = rest.find(shown).unwrap_or_else(|| panic!("no {shown:?} in its place in {text}"));
        rest = &rest[at + shown.len()..];
    }
}

#[test]
fn restic_finds_the_demos_repository_clean_and_dumps_every_disk_as_it_was() {
    let (dir, _) = demo();
    let check = restic(&dir, &["check", "--read-data"]).output().unwrap();
    assert!(check.status.success(), "{}{}", stdout(&check), stderr(&check));
    for (server, disk) in [("web", "system"), ("web", "data"), ("db", "disk")] {
        let (snapshot, file) = newest(&dir, server, disk);
        let mut dump = restic(&dir, &["dump", &snapshot, &file]);
        let mut child = dump.stdout(Stdio::piped()).spawn().unwrap();
        let expected = File::open(dir.join(format!("expected/{server}-{disk}.raw"))).unwrap();
        let size_bytes = expected.metadata().unwrap().len();
        let dumped = equal_bytes(child.stdout.take().unwrap(), expected);
        assert_eq!(dumped, Some(size_bytes), "{server}/{disk}");
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn the_demos_file_system_is_sound_after_the_restore() {
    let (dir, _) = demo();
    let nowhere = tempfile::tempdir().unwrap();
    let raw = nowhere.path().join("web-system.raw");
    let restored = dir.join("servers/web/system.qcow2");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw"]).args([&restored, &raw]);
    let mut check = Command::new("qemu-img");
    check.args(["check", "-q"]).arg(&restored);
    let mut fsck = Command::new("e2fsck");
    fsck.arg("-fn").arg(&raw);
    for mut judge in [convert, check, fsck] {
        let output = judge.output().unwrap();
        assert!(output.status.success(), "{judge:?}: {}{}", stdout(&output), stderr(&output));
    }
}

#[test]
fn everything_the_demo_makes_is_its_owners_alone() {
    let (dir, _) = demo();
    assert_eq!(not_private(&dir), Vec::<String>::new());
}

#[test]
fn the_demo_tells_its_password_once_and_logs_none() {
    let (dir, text) = demo();
    let login: Value = serde_json::from_slice(&fs::read(dir.join("login.json")).unwrap()).unwrap();
    let password = login.pointer("/auth/identity/password/user/password").unwrap();
    assert_eq!(text.matches(password.as_str().unwrap()).count(), 1);
    assert_eq!(stderr(&RUN), "");
}

#[test]
fn without_exit_the_demo_serves_on_until_it_is_interrupted() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("serving-demo");
    let mut command = kedge();
    command.args(["demo", "--reset", "--state-dir"]).arg(&dir).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("until Ctrl-C")));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_second_demo_refuses_without_reset() {
    let (dir, _) = demo();
    let again = run(["demo", "--exit", "--state-dir", dir.to_str().unwrap()]);
    assert!(!again.status.success());
    assert!(stderr(&again).contains("--reset"), "{}", stderr(&again));
    assert!(dir.join("recovery-kit.env").exists());
}

#[test]
fn a_recovery_kit_needs_neither_service_nor_catalogue_and_overwrites_nothing() {
    let (dir, _) = demo();
    let (nowhere, config, project) = without_its_catalogue(&dir);
    let kit = nowhere.path().join("kit.env");
    let make = || {
        let (config, kit) = (config.to_str().unwrap(), kit.to_str().unwrap());
        run(["repo", "recovery-kit", "--config", config, "--project", &project, "--out", kit])
    };
    let made = make();
    assert!(made.status.success(), "{}", stderr(&made));
    assert_eq!(stdout(&made), "");
    assert_eq!(fs::read(&kit).unwrap(), fs::read(dir.join("recovery-kit.env")).unwrap());
    assert_eq!(not_private(nowhere.path()).iter().filter(|p| p.contains("kit")).count(), 0);
    assert!(!make().status.success());
}

/// The catalogue is lost, the repository and the service key are not.
#[test]
fn a_lost_catalogue_is_rebuilt_from_the_repository() {
    let (dir, _) = demo();
    let (_nowhere, config, project) = without_its_catalogue(&dir);
    let config = config.to_str().unwrap();
    let verb = ["repo", "rebuild-catalogue", "--config", config, "--project", &project];
    let told = || stdout(&run(verb));
    assert_eq!(told(), format!("{project}: 4 backups taken in, 0 known before\n"));
    assert_eq!(told(), format!("{project}: 0 backups taken in, 4 known before\n"));
}

/// A new key would wrap new repositories' passwords and be lost when the old one is back.
#[test]
fn a_service_key_that_is_gone_is_not_replaced_beside_repositories() {
    let (dir, _) = demo();
    let (nowhere, config, _) = without_its_catalogue(&dir);
    let text = fs::read_to_string(&config).unwrap();
    let key = nowhere.path().join("mislaid.key");
    let moved = text.replace(dir.join("service.key").to_str().unwrap(), key.to_str().unwrap());
    assert_ne!(moved, text);
    fs::write(&config, moved).unwrap();

    let refused = run(["serve", "--config", config.to_str().unwrap()]);
    assert!(!refused.status.success());
    assert!(stderr(&refused).contains("put it back"), "{}", stderr(&refused));
    assert!(!key.exists());
}

/// A configuration like the demo's whose catalogue lies elsewhere and is empty, and the
/// demo's project.
fn without_its_catalogue(dir: &Path) -> (tempfile::TempDir, PathBuf, String) {
    let project = fs::read_dir(dir.join("repositories")).unwrap().next().unwrap().unwrap();
    let project = project.file_name().into_string().unwrap();
    let text = fs::read_to_string(dir.join("kedge.toml")).unwrap();
    let nowhere = tempfile::tempdir().unwrap();
    let (state, other) = (dir.join("state"), nowhere.path().join("state"));
    let moved = text.replace(state.to_str().unwrap(), other.to_str().unwrap());
    assert_ne!(moved, text);
    let config = nowhere.path().join("kedge.toml");
    fs::write(&config, moved).unwrap();
    (nowhere, config, project)
}
