//! `kedge repo`: repositories looked after by hand, with the real program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::kedge::{run, stderr, stdout};
use crate::rotation::kill_at;
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
fn rebuilding_that_was_killed_is_brought_to_its_end_by_the_next() {
    let (mut site, first) = site_with_backup();
    site.start(Start::Plain);
    let second = site.protect();
    site.wait_until_available(&second);
    site.stop();
    let kit = site.path("kit.env");
    let kit = kit.to_str().unwrap();
    succeed(&site, &["repo", "recovery-kit", "--project", PROJECT, "--out", kit]);
    let rebuild = ["repo", "rebuild-catalogue", "--project", PROJECT, "--recovery-kit", kit];
    for point in ["rebuild.access_wrapped", "rebuild.row_wrapped", "rebuild.adopted"] {
        lose_state(&site, &[]);
        kill_at(&mut site, point, &rebuild);
        let known = usize::from(point == "rebuild.adopted");
        let told = succeed(&site, &rebuild[..4]);
        let (adopted, line) = (2 - known, PROJECT);
        assert_eq!(told, format!("{line}: {adopted} backups taken in, {known} known before\n"));
    }
    site.start(Start::Plain);
    assert_restores(&mut site, &first);
    site.assert_clean(&[&first, &second]);
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
        &["repo", "prune", "--all"],
        &["key", "rotate"],
    ] {
        let (code, told) = fail(&site, words);
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("catalogue"), "{told}");
    }
    for verb in ["check", "verify", "stats"] {
        succeed(&site, &["repo", verb, "--all"]);
    }
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

    // The largest holds data, which only --read-data reads.
    let len = |pack: &PathBuf| fs::metadata(pack).unwrap().len();
    let pack = all_packs(&site.repository()).into_iter().max_by_key(len).unwrap();
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

fn all_packs(repository: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(repository.join("data")).unwrap();
    let mut packs: Vec<_> = folders
        .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|pack| pack.unwrap().path())
        .collect();
    packs.sort();
    packs
}

#[test]
fn verifying_goes_on_where_it_ended_and_reaches_every_pack_once() {
    let (mut site, _) = site_with_backup();
    site.put_disks(&Disks::of_noise(4));
    site.start(Start::Plain);
    let next = site.protect();
    site.wait_until_available(&next);
    site.stop();
    let ours = |told: &Value| told["repositories"][0].clone();
    let verify = |words: &[&str]| {
        let all = ["repo", "verify", "--project", PROJECT, "--json"];
        ours(&document(&succeed(&site, &[&all[..], words].concat())))
    };
    for kind in [&[][..], &["--keyless"]] {
        let whole = verify(kind);
        let packs = whole["packs"].as_u64().unwrap();
        assert!(packs > 2, "{whole}");
        assert_eq!((&whole["complete"], &whole["next_after"]), (&json!(true), &Value::Null));
        assert_eq!(whole["evidence_since"].is_string(), kind.is_empty(), "{whole}");
        let (mut after, mut seen) = (Value::Null, 0);
        while seen < packs {
            let part = verify(&[kind, &["--budget", "1B"]].concat());
            assert_eq!(part["begun_after"], after);
            assert!(part["packs"].as_u64().unwrap() > 0, "{part}");
            seen += part["packs"].as_u64().unwrap();
            assert_eq!(part["complete"], json!(seen == packs), "{part}");
            let is_evidence = seen == packs && kind.is_empty();
            assert_eq!(part["evidence_since"].is_string(), is_evidence, "{part}");
            after = part["next_after"].clone();
        }
        assert_eq!(seen, packs);
        verify(&[kind, &["--budget", "1B"]].concat());
        let again = verify(&[kind, &["--from-start", "--limit-rate", "1GiB"]].concat());
        assert_eq!(again["packs"], packs);
    }
}

#[test]
fn damage_is_found_without_a_key_recorded_with_it_and_healed_by_the_next_backup() {
    let (mut site, backup) = site_with_backup();
    // Trees name times, so the next backup has others; data is the same again.
    let packs = all_packs(&site.repository());
    let pack = packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let mut bytes = fs::read(pack).unwrap();
    bytes[7] ^= 1;
    fs::write(pack, &bytes).unwrap();
    let (key, away) = (site.path("state/service.key"), site.path("away.key"));
    fs::rename(&key, &away).unwrap();
    let verify = ["repo", "verify", "--all"];
    let (code, told) = fail(&site, &[&verify[..], &["--keyless"]].concat());
    assert_eq!(code, Some(1));
    assert!(told.contains(pack.file_name().unwrap().to_str().unwrap()), "{told}");
    assert!(!site.repository().join("kedge/marks").exists(), "nothing is recorded");
    assert!(!verb(&site, &verify).status.success(), "with keys it needs the key");
    fs::rename(&away, &key).unwrap();

    let output = verb(&site, &[&verify[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let told = document(&stdout(&output));
    let ours = &told["repositories"][0];
    assert_eq!(ours["damaged"].as_array().unwrap().len(), 1, "{told}");
    assert!(!site.objects("kedge/marks").is_empty());

    site.start(Start::Plain);
    let next = site.protect();
    site.wait_until_available(&next);
    assert_restores(&mut site, &next);
    assert_restores(&mut site, &backup);
}

#[test]
fn what_only_a_deleted_backup_needed_goes_and_the_rest_restores() {
    let (mut site, old) = site_with_backup();
    site.put_disks(&Disks::of_noise(3));
    site.start(Start::Plain);
    let kept = site.protect();
    site.wait_until_available(&kept);
    site.stop();
    let of = ["--project", PROJECT, "--json"];
    let run = |site: &Site, words: &[&str]| {
        document(&succeed(site, &[words, &of[..]].concat()))["repositories"][0].clone()
    };
    let stats = run(&site, &["repo", "stats", "--freed-by", &old.item]);
    assert_eq!(stats["snapshots"], 2);
    let freed = stats["freed"]["bytes"].as_u64().unwrap();
    assert!(freed > 0 && freed < stats["used_bytes"].as_u64().unwrap(), "{stats}");
    assert_eq!(run(&site, &["repo", "prune", "--max-unused", "0"])["removed_packs"], 0);

    site.start(Start::Plain);
    site.delete(&old);
    site.wait_until_deleted(&old);
    site.stop();
    let after = run(&site, &["repo", "stats"]);
    assert_eq!(after["snapshots"], 1);
    let used = stats["used_bytes"].as_u64().unwrap() - freed;
    assert_eq!(after["used_bytes"].as_u64().unwrap(), used, "exactly what was told is freed");
    let packs = all_packs(&site.repository()).len();
    let dry = run(&site, &["repo", "prune", "--max-unused", "0", "--dry-run"]);
    assert!(dry["condemned_packs"].as_u64().unwrap() > 0, "{dry}");
    assert_eq!(all_packs(&site.repository()).len(), packs, "nothing is changed");
    let done = run(&site, &["repo", "prune", "--max-unused", "0"]);
    assert_eq!(done["removed_packs"], dry["condemned_packs"], "{done}");
    assert_eq!(run(&site, &["repo", "stats"])["unused_bytes"], 0);

    site.assert_sound_to_the_last_byte();
    site.start(Start::Plain);
    assert_restores(&mut site, &kept);
}

#[test]
fn an_interrupted_backup_keeps_what_it_stored_through_a_prune() {
    let mut site = Site::new();
    site.start(Start::HaltAt("protect.stored_saved"));
    let backup = site.protect();
    site.wait_until_halted();
    site.kill();
    succeed(&site, &["repo", "prune", "--all", "--max-unused", "0"]);
    site.start(Start::Plain);
    site.wait_until_available(&backup);
    assert_restores(&mut site, &backup);
    site.assert_sound();
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
        &["repo", "verify", "--all", "--budget", "10GB"],
        &["repo", "prune", "--all", "--max-unused", "101"],
        &["key", "rotate", "now"],
    ] {
        assert_eq!(fail(&site, words).0, Some(2), "{words:?}");
    }
}
