//! Names that users give to servers and disks, chosen to hurt whoever reads them.

use std::fs;

use crate::site::{Disks, Log, LogFormat, Site, Start, message};

/// A path upwards, an absolute one, a forged log line, a terminal code, a tag separator.
const NAME: &str =
    "../../../../tmp/kedge-was-here\n{\"message\":\"forged\"}\u{1b}]0;owned\u{7}\u{1b}[31m,/etc\r";

/// How the second line of the name would begin.
const FORGED: &[u8] = b"{\"message\":\"forged\"}";

#[test]
fn names_of_servers_and_disks_become_neither_paths_nor_escapes() {
    judge_names(LogFormat::Json);
}

#[test]
fn names_of_servers_and_disks_become_neither_paths_nor_escapes_with_a_log_of_text() {
    judge_names(LogFormat::Text);
}

fn judge_names(format: LogFormat) {
    let mut site = Site::with_log(Log { format, filter: "debug" });
    site.name_everything(NAME);
    site.start(Start::Plain);
    let backup = site.protect();
    site.wait_until_available(&backup);
    let item = site.item(&backup);
    assert_eq!(item.extend_info.resource_name, NAME, "users see what they wrote");

    // What an administrator's restic shows and writes.
    let shown = [&["snapshots"][..], &["ls", "latest"], &["snapshots", "--json"]];
    for arguments in shown {
        let printed = site.restic(arguments);
        assert!(!printed.iter().any(|byte| *byte < b' ' && *byte != b'\n'), "{arguments:?}");
    }
    let target = tempfile::tempdir().unwrap();
    let below = target.path().join("below");
    site.restic(&["restore", "latest", "--target", below.to_str().unwrap()]);
    let written: Vec<_> = fs::read_dir(target.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(written, std::slice::from_ref(&below));
    assert!(!fs::exists("/tmp/kedge-was-here").unwrap());
    let folders: Vec<_> = fs::read_dir(&below)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(folders.len(), 3, "two disks and server.json: {folders:?}");
    for folder in folders {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        assert!(folder.chars().all(plain) && !folder.starts_with('.'), "{folder:?}");
    }

    // Failures are told with what they were about.
    site.put_disks(&Disks::of_noise(2));
    site.restart(Start::HaltAt("restore.locked"));
    let restore = site.restore(&backup);
    site.wait_until_halted();
    fs::remove_file(site.system_disk()).unwrap();
    site.release();
    site.log_line("failed");
    site.wait_until_available(&backup);
    assert_eq!(site.restore_status(&restore), "fail");

    site.stop();
    let log = site.log_bytes();
    assert!(!log.iter().any(|byte| *byte < b' ' && *byte != b'\n'), "the log holds raw codes");
    assert!(!log.contains(&0x7f));
    assert!(!log.split(|byte| *byte == b'\n').any(|line| line.starts_with(FORGED)));
    assert!(!site.log().iter().any(|event| message(event) == "forged"));
}
