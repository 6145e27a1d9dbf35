//! Receipts taken out beside a running service, and checked with nothing but the file.

use std::fs;

use crate::kedge::run;
use crate::site::{Disks, PROJECT, Site, Start};

#[test]
fn a_chain_is_exported_beside_the_service_and_checked_without_it() {
    let mut site = Site::new();
    site.put_disks(&Disks::of(1));
    site.start(Start::Plain);
    let backup = site.protect();
    site.wait_until_available(&backup);
    let bodies: Vec<_> = (0..3).map(|_| site.receipt_restorable(&backup)).collect();
    let out = site.path("receipts.jsonl");
    let (config, file) = (site.path("kedge.toml"), out.to_str().unwrap().to_owned());
    let export = ["evidence", "export", "--config", config.to_str().unwrap()];
    let export: Vec<&str> =
        export.into_iter().chain(["--project", PROJECT, "--out", &file]).collect();
    let exported = run(export.clone());
    assert!(exported.status.success(), "{exported:?}");
    assert!(!run(export).status.success(), "what is there is not overwritten");
    site.kill();
    let text = fs::read_to_string(&out).unwrap();
    assert_eq!(text.lines().count(), 3);
    let checked = run(["evidence", "verify", &file]);
    assert!(checked.status.success(), "{checked:?}");
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.starts_with(&format!("3 records of project {PROJECT} hold")), "{said}");
    let of_another = run(["evidence", "verify", &file, "--key", &"0".repeat(64)]);
    assert_eq!(of_another.status.code(), Some(1));
    assert!(bodies[0].contains("\"result\":true"), "{}", bodies[0]);
    fs::write(&out, text.replace("\\\"result\\\":true", "\\\"result\\\":false")).unwrap();
    let changed = run(["evidence", "verify", &file]);
    assert_eq!(changed.status.code(), Some(1), "{changed:?}");
    let said = String::from_utf8(changed.stdout).unwrap();
    assert!(said.contains("record 1: its signature"), "{said}");
}
