//! `kedge repo`: repositories looked after by hand, with the real program.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::kedge::{run, stderr, stdout};
use crate::site::{Backup, Disks, PROJECT, Site, Start};

/// Another project of the same installation.
const OTHER: &str = "0d3e5f6a7b8c4d1e9f2a3b4c5d6e7f80";

/// Runs a verb with the configuration of a site.
pub(crate) fn verb(site: &Site, words: &[&str]) -> Output {
    let config = site.path("kedge.toml");
    let config = ["--config", config.to_str().unwrap()];
    run(words.iter().copied().chain(config))
}

pub(crate) fn succeed(site: &Site, words: &[&str]) -> String {
    let output = verb(site, words);
    assert!(output.status.success(), "{words:?}: {}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// A verb that finds problems or fails, and its exit code; what it said on either stream.
fn fail(site: &Site, words: &[&str]) -> (Option<i32>, String) {
    let output = verb(site, words);
    assert!(!output.status.success(), "{words:?}: {}", stdout(&output));
    (output.status.code(), stdout(&output) + &stderr(&output))
}

fn document(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A site with a backup of two disks, stopped.
pub(crate) fn site_with_backup() -> (Site, Backup) {
    let mut site = Site::new();
    site.start(Start::Plain);
    let backup = site.protect();
    site.wait_until_available(&backup);
    site.stop();
    (site, backup)
}

/// The backup can be restored, is, and every byte is compared.
pub(crate) fn assert_restores(site: &mut Site, backup: &Backup) {
    site.put_disks(&Disks::of_noise(9));
    let verdict = site.check_restorable(backup);
    assert!(verdict.result, "{verdict:?}");
    let restore = site.restore(backup);
    site.wait_until_restored(backup, &restore);
}

/// Everything of the state but the repositories and what `keep` names.
fn lose_state(site: &Site, keep: &[&str]) {
    for entry in fs::read_dir(site.path("state")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name == "repositories" || keep.contains(&name.as_str()) {
            continue;
        }
        match entry.file_type().unwrap().is_dir() {
            true => fs::remove_dir_all(entry.path()).unwrap(),
            false => fs::remove_file(entry.path()).unwrap(),
        }
    }
}

#[test]
fn with_repository_and_service_key_alone_a_lost_installation_restores_again() {
    let (mut site, backup) = site_with_backup();
    site.start(Start::Plain);
    let before = site.item(&backup);
    site.stop();
    lose_state(&site, &["service.key"]);

    let told = document(&succeed(&site, &["repo", "rebuild-catalogue", "--all", "--json"]));
    let expected = json!({
        "command": "repo rebuild-catalogue", "good": true, "repositories": [{
            "project": PROJECT, "good": true, "error": null, "problems": [],
            "adopted": 1, "known": 0, "foreign": 0,
        }],
    });
    assert_eq!(told, expected);
    site.start(Start::Plain);
    let after = site.item(&backup);
    assert_eq!((&after.name, &after.created_at), (&before.name, &before.created_at));
    assert_restores(&mut site, &backup);
    let next = site.protect();
    site.wait_until_available(&next);
    site.assert_clean(&[&backup, &next]);
    site.assert_sound();
}

#[test]
fn with_a_recovery_kit_alone_a_lost_installation_restores_again() {
    let (mut site, backup) = site_with_backup();
    let kit = site.path("kit.env");
    let kit = kit.to_str().unwrap();
    succeed(&site, &["repo", "recovery-kit", "--project", PROJECT, "--out", kit]);
    lose_state(&site, &[]);

    let rebuild = ["repo", "rebuild-catalogue", "--project", PROJECT];
    let (code, told) = fail(&site, &rebuild);
    assert_eq!(code, Some(1));
    assert!(told.contains("service key"), "{told}");
    let told = succeed(&site, &[&rebuild[..], &["--recovery-kit", kit]].concat());
    assert_eq!(told, format!("{PROJECT}: 1 backups taken in, 0 known before\n"));
    site.start(Start::Plain);
    assert_restores(&mut site, &backup);
    site.stop();
    // The new key is enough from now on.
    lose_state(&site, &["service.key"]);
    succeed(&site, &rebuild);
}

#[test]
fn a_recovery_kit_of_another_repository_changes_nothing() {
    let (site, _) = site_with_backup();
    succeed(&site, &["repo", "init", "--project", OTHER]);
    let kit = site.path("kit.env");
    let kit = kit.to_str().unwrap();
    succeed(&site, &["repo", "recovery-kit", "--project", OTHER, "--out", kit]);
    let access = site.repository().join("kedge/access.json");
    let before = fs::read(&access).unwrap();
    let words = ["repo", "rebuild-catalogue", "--project", PROJECT, "--recovery-kit", kit];
    let (_, told) = fail(&site, &words);
    assert!(told.contains("no key of the repository opens"), "{told}");
    assert_eq!(fs::read(&access).unwrap(), before);
}

#[test]
fn what_changes_the_catalogue_is_refused_beside_a_running_service_and_the_rest_works() {
    let (mut site, _) = site_with_backup();
    site.start(Start::Plain);
    site.log_line("serving on");
    for words in [
        &["repo", "init", "--project", OTHER][..],
        &["repo", "rebuild-catalogue", "--all"],
        &["key", "rotate"],
    ] {
        let (code, told) = fail(&site, words);
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("catalogue"), "{told}");
    }
    succeed(&site, &["repo", "check", "--all"]);
    assert!(!site.path("state/repositories").join(OTHER).exists());
}

#[test]
fn a_check_tells_damage_by_its_object_and_by_its_exit_code() {
    let (site, _) = site_with_backup();
    succeed(&site, &["repo", "init", "--project", OTHER]);
    let good = document(&succeed(&site, &["repo", "check", "--all", "--read-data", "--json"]));
    assert_eq!((&good["good"], &good["read_data"]), (&json!(true), &json!(true)));
    let projects: Vec<_> =
        good["repositories"].as_array().unwrap().iter().map(|r| &r["project"]).collect();
    assert_eq!(projects, [OTHER, PROJECT]);
    let ours = &good["repositories"][1];
    assert_eq!(ours["snapshots"], 1);
    assert!(ours["packs"].as_u64().unwrap() > 0 && ours["read_bytes"].as_u64().unwrap() > 0);

    let pack = first_pack(&site.repository());
    let mut bytes = fs::read(&pack).unwrap();
    bytes[7] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    succeed(&site, &["repo", "check", "--project", PROJECT]);
    let (code, told) = fail(&site, &["repo", "check", "--project", PROJECT, "--read-data"]);
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert_eq!(code, Some(1));
    assert!(told.contains("problem") && told.contains(name), "{told}");

    fs::remove_file(&pack).unwrap();
    let output = verb(&site, &["repo", "check", "--all", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let bad = document(&stdout(&output));
    assert_eq!(bad["good"], false);
    assert_eq!(bad["repositories"][0]["good"], true, "the other repository");
    let problems = bad["repositories"][1]["problems"].as_array().unwrap();
    let is_told = |problem: &Value| problem["object"].as_str().unwrap().contains(name);
    assert!(problems.iter().any(is_told), "{bad}");
}

fn first_pack(repository: &Path) -> std::path::PathBuf {
    let folders = fs::read_dir(repository.join("data")).unwrap();
    let mut packs: Vec<_> = folders
        .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|pack| pack.unwrap().path())
        .collect();
    packs.sort();
    packs.swap_remove(0)
}

#[test]
fn a_repository_is_made_once_and_a_place_that_is_none_is_no_success() {
    let (site, _) = site_with_backup();
    let init = ["repo", "init", "--project", OTHER, "--json"];
    assert_eq!(document(&succeed(&site, &init))["repositories"][0]["made"], true);
    assert_eq!(document(&succeed(&site, &init))["repositories"][0]["made"], false);
    for project in ["../escape", "never-made"] {
        let (code, told) = fail(&site, &["repo", "check", "--project", project]);
        assert_eq!(code, Some(1), "{told}");
    }
    assert!(!site.path("state/escape").exists());
}

#[test]
fn what_cannot_be_typed_ends_with_the_code_of_usage_errors() {
    let (site, _) = site_with_backup();
    for words in [
        &["repo", "check"][..],
        &["repo", "check", "--all", "--project", PROJECT],
        &["repo", "init", "--all"],
        &["repo", "rebuild-catalogue", "--all", "--recovery-kit", "kit.env"],
        &["repo", "adopt", "--project", PROJECT],
        &["key", "rotate", "now"],
    ] {
        assert_eq!(fail(&site, words).0, Some(2), "{words:?}");
    }
}
