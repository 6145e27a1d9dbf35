//! `kedge key rotate`, killed wherever it can be: the service starts with what is left, old
//! backups restore, and run again it comes to its end.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use crate::kedge::{stderr, stdout};
use crate::repo::{assert_restores, site_with_backup, succeed, verb};
use crate::site::{Backup, PROJECT, Site, Start};

/// Another repository, whose password is replaced first.
const OTHER: &str = "0d3e5f6a7b8c4d1e9f2a3b4c5d6e7f80";

/// Once for each of two repositories where a number stands.
const POINTS: [&str; 8] = [
    "rotate.first_key_written",
    "rotate.key_added",
    "rotate.access_wrapped",
    "rotate.row_wrapped",
    "rotate.access_wrapped#2",
    "rotate.row_wrapped#2",
    "rotate.last_key_written",
    "rotate.old_key_dropped",
];

/// Of the project whose backup is restored each time.
const POINTS_OF_PASSWORDS: [&str; 4] = [
    "rotate.password_added#2",
    "rotate.access_wrapped#2",
    "rotate.row_wrapped#2",
    "rotate.old_passwords_removed#2",
];

#[test]
fn a_replaced_key_opens_everything_and_the_old_one_nothing() {
    let (mut site, backup) = site_with_backup();
    let (old_key, old_kit) = (key_lines(&site), site.recovery_kit());
    succeed(&site, &["key", "rotate"]);
    assert_old_key_opens_nothing(&site, &old_key);
    assert_eq!(site.recovery_kit(), old_kit, "the password stays");
    site.start(Start::Plain);
    assert_restores(&mut site, &backup);
    let next = site.protect();
    site.wait_until_available(&next);
    site.assert_clean(&[&backup, &next]);
}

#[test]
fn a_killed_replacement_of_the_key_leaves_everything_readable_and_is_finished_later() {
    let (mut site, backup) = site_with_backup();
    succeed(&site, &["repo", "init", "--project", OTHER]);
    for point in POINTS {
        let old_key = key_lines(&site);
        kill_at(&mut site, point, &["key", "rotate"]);
        assert_readable(&mut site, &backup, point);
        succeed(&site, &["key", "rotate"]);
        assert_eq!(key_lines(&site).len(), 1, "{point}");
        assert_old_key_opens_nothing(&site, &old_key);
        assert_nothing_beside_the_key(&site, point);
    }
    site.start(Start::Plain);
    assert_restores(&mut site, &backup);
}

#[test]
fn a_killed_replacement_of_passwords_leaves_everything_readable_and_is_finished_later() {
    let (mut site, backup) = site_with_backup();
    succeed(&site, &["repo", "init", "--project", OTHER]);
    for point in POINTS_OF_PASSWORDS {
        let (old_key, old_kit) = (key_lines(&site), site.recovery_kit());
        kill_at(&mut site, point, &["key", "rotate", "--passwords"]);
        assert_readable(&mut site, &backup, point);
        succeed(&site, &["key", "rotate", "--passwords"]);
        assert_old_key_opens_nothing(&site, &old_key);
        assert!(opens(&site.recovery_kit()), "{point}");
        assert!(!opens(&old_kit), "{point}: the old password");
        assert_eq!(site.objects("keys").len(), 1, "{point}");
    }
    site.start(Start::Plain);
    assert_restores(&mut site, &backup);
    site.assert_sound();
}

#[test]
fn a_repository_out_of_reach_keeps_the_old_key_until_it_is_back() {
    let (site, _) = site_with_backup();
    let away = site.path("away");
    fs::rename(site.repository(), &away).unwrap();
    let output = verb(&site, &["key", "rotate"]);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stdout(&output).contains(PROJECT) && stderr(&output).contains("old key"));
    assert_eq!(key_lines(&site).len(), 2);

    fs::rename(&away, site.repository()).unwrap();
    let told = succeed(&site, &["key", "rotate", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["resumed"], &told["old_key_dropped"]), (&true.into(), &true.into()));
    assert_eq!(key_lines(&site).len(), 1);
    succeed(&site, &["repo", "check", "--all"]);
}

fn key_lines(site: &Site) -> Vec<String> {
    let text = fs::read_to_string(site.path("state/service.key")).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Ends the program as a power cut would, when it has come to a point.
pub(crate) fn kill_at(site: &mut Site, point: &str, words: &[&str]) {
    site.release();
    let mut program = Command::new(env!("CARGO_BIN_EXE_kedge"));
    program.args(words).arg("--config").arg(site.path("kedge.toml"));
    program.env("KEDGE_TEST_HALT_AT", point).env("KEDGE_TEST_HALT_FILE", site.halt_file());
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    site.wait_for("the program halts", |site| {
        let ended = child.try_wait().unwrap();
        assert_eq!(ended, None, "it ended before {point}");
        site.is_halted().then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    site.kills += 1;
    site.release();
}

/// By the catalogue's password, which the service uses, and by the one beside the
/// repository, which is all there is after the catalogue was lost.
fn assert_readable(site: &mut Site, backup: &Backup, point: &str) {
    succeed(site, &["repo", "check", "--all"]);
    assert!(opens(&site.recovery_kit()), "{point}");
    site.start(Start::Plain);
    let verdict = site.check_restorable(backup);
    assert!(verdict.result, "{point}: {verdict:?}");
    assert_restores(site, backup);
    site.stop();
}

/// None of the lines that were the key before is of any use now.
fn assert_old_key_opens_nothing(site: &Site, old: &[String]) {
    let file = site.path("state/service.key");
    let current = fs::read(&file).unwrap();
    for line in old {
        fs::write(&file, line).unwrap();
        let output = verb(site, &["repo", "check", "--all"]);
        assert_eq!(output.status.code(), Some(1));
        let told = stdout(&output);
        assert!(told.lines().all(|line| line.contains("not wrapped with this")), "{told}");
    }
    fs::write(&file, current).unwrap();
}

/// A leftover would hold keys.
fn assert_nothing_beside_the_key(site: &Site, point: &str) {
    let names = fs::read_dir(site.path("state")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let keys: Vec<_> = names.filter(|name| name.contains("key")).collect();
    assert_eq!(keys, ["service.key"], "{point}");
}

fn opens(kit: &BTreeMap<String, String>) -> bool {
    let mut restic = Command::new("restic");
    restic.envs(kit).args(["--no-cache", "--no-lock", "snapshots"]);
    restic.output().unwrap().status.success()
}
