//! The walls of the house. A new edge between crates is a decision: a line here and an ADR.

use std::collections::BTreeSet;
use std::path::PathBuf;

use toml::{Table, Value};

use crate::tree;

/// What one crate may use: of ours exactly what is named, of others' what `outsiders` says.
struct Walls {
    name: &'static str,
    ours: &'static [&'static str],
    outsiders: Outsiders,
}

enum Outsiders {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

use Outsiders::{AllBut, Only};

const HOUSE: [Walls; 12] = [
    Walls {
        name: "core",
        ours: &[],
        outsiders: Only(&["async-trait", "jiff", "serde", "thiserror", "uuid"]),
    },
    Walls {
        name: "engine",
        ours: &[],
        // What it needs of HTTP and tokio stays in one folder; see the test below.
        outsiders: AllBut(&["axum", "hyper", "reqwest", "sqlx", "tower"]),
    },
    Walls { name: "wire", ours: &[], outsiders: Only(&["serde", "serde_json", "utoipa"]) },
    Walls {
        name: "store",
        ours: &["core"],
        outsiders: AllBut(&["axum", "http", "hyper", "reqwest", "tower", "utoipa"]),
    },
    Walls { name: "cloud", ours: &["core"], outsiders: AllBut(&["axum", "sqlx", "utoipa"]) },
    Walls { name: "drill", ours: &["core"], outsiders: AllBut(&["axum", "sqlx", "utoipa"]) },
    Walls {
        name: "service",
        ours: &["core", "engine", "store"],
        outsiders: AllBut(&["axum", "http", "hyper", "reqwest", "sqlx", "tower", "utoipa"]),
    },
    Walls {
        name: "api",
        ours: &["core", "service", "wire"],
        outsiders: AllBut(&["imago", "reqwest", "sqlx"]),
    },
    Walls { name: "cli", ours: &["wire"], outsiders: AllBut(&["axum", "sqlx"]) },
    Walls {
        name: "kedge",
        ours: &["api", "cli", "cloud", "core", "drill", "engine", "service", "store", "wire"],
        outsiders: AllBut(&["sqlx"]),
    },
    Walls {
        name: "testkit",
        ours: &["api", "cli", "cloud", "core", "drill", "engine", "service", "store", "wire"],
        outsiders: AllBut(&[]),
    },
    Walls { name: "xtask", ours: &[], outsiders: Only(&["serde", "serde_json"]) },
];

#[test]
fn every_crate_has_its_walls() {
    let built: BTreeSet<String> = folders("crates").into_iter().collect();
    let known: BTreeSet<String> = HOUSE.iter().map(|walls| walls.name.to_owned()).collect();
    assert_eq!(built, known, "folders under crates/ against the table of walls");
}

#[test]
fn crates_use_only_the_neighbours_of_the_design() {
    for walls in &HOUSE {
        let allowed: BTreeSet<String> = walls.ours.iter().copied().map(package_of).collect();
        for name in dependencies(walls.name, "dependencies").into_iter().filter(is_ours) {
            assert!(allowed.contains(&name), "{} must not depend on {name}", walls.name);
        }
    }
}

#[test]
fn tests_reach_beyond_the_walls_only_through_the_testkit() {
    for walls in &HOUSE {
        let mut allowed: BTreeSet<String> = walls.ours.iter().copied().map(package_of).collect();
        allowed.insert("kedge-testkit".to_owned());
        for name in dependencies(walls.name, "dev-dependencies").into_iter().filter(is_ours) {
            assert!(allowed.contains(&name), "{}'s tests must not use {name}", walls.name);
        }
    }
}

#[test]
fn crates_stay_away_from_what_their_walls_keep_out() {
    for walls in &HOUSE {
        for name in dependencies(walls.name, "dependencies").into_iter().filter(|n| !is_ours(n)) {
            let allowed = match walls.outsiders {
                Only(names) => names.contains(&name.as_str()),
                AllBut(names) => !names.contains(&name.as_str()),
            };
            assert!(allowed, "{} must not depend on {name}", walls.name);
        }
    }
}

/// The engine is synchronous; only its object store knows of HTTP and a runtime.
#[test]
fn the_engine_speaks_http_in_one_folder_alone() {
    let words = ["tokio", "http::", "hyper_", "object_store", "rustls", "async fn", ".await"];
    let mut speaking = 0;
    for file in tree::files().unwrap() {
        if !file.starts_with("crates/engine/src") {
            continue;
        }
        let text = std::fs::read_to_string(tree::root().join(&file)).unwrap();
        if file.starts_with("crates/engine/src/backend/s3") {
            speaking += usize::from(text.contains("tokio"));
            continue;
        }
        for word in words {
            assert!(!text.contains(word), "{}: {word}", file.display());
        }
    }
    assert!(speaking > 0, "the folder has another name");
}

#[test]
fn the_build_by_default_makes_one_binary_and_leaves_out_xtask() {
    let root = table("Cargo.toml");
    let members = root["workspace"]["default-members"].as_array().unwrap();
    let members: BTreeSet<String> =
        members.iter().map(|member| member.as_str().unwrap().to_owned()).collect();
    let mut expected: BTreeSet<String> =
        HOUSE.iter().map(|walls| format!("crates/{}", walls.name)).collect();
    expected.remove("crates/xtask");
    assert_eq!(members, expected);

    let with_binary: Vec<&String> = members.iter().filter(|path| has_binary(path)).collect();
    assert_eq!(with_binary, ["crates/kedge"]);
}

#[test]
fn every_crate_takes_its_lints_and_its_licence_from_the_workspace() {
    for walls in &HOUSE {
        let manifest = table(&format!("crates/{}/Cargo.toml", walls.name));
        let inherits = |section: &Value| section.get("workspace") == Some(&Value::Boolean(true));
        assert!(manifest.get("lints").is_some_and(inherits), "lints of {}", walls.name);
        assert!(inherits(&manifest["package"]["license"]), "licence of {}", walls.name);
        assert_eq!(
            manifest["package"]["name"].as_str().unwrap(),
            if walls.name == "kedge" || walls.name == "xtask" {
                walls.name.to_owned()
            } else {
                package_of(walls.name)
            }
        );
    }
}

fn package_of(folder: &str) -> String {
    format!("kedge-{folder}")
}

fn is_ours(name: &String) -> bool {
    name == "kedge" || name == "xtask" || name.starts_with("kedge-")
}

/// The packages a crate's manifest names in one kind of section, on every platform; what a
/// build script uses counts as used by the crate.
fn dependencies(folder: &str, kind: &str) -> BTreeSet<String> {
    let manifest = table(&format!("crates/{folder}/Cargo.toml"));
    let platforms = manifest.get("target").and_then(Value::as_table);
    let platforms = platforms.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    let kinds: &[&str] =
        if kind == "dependencies" { &["dependencies", "build-dependencies"] } else { &[kind] };
    std::iter::once(&manifest)
        .chain(platforms)
        .flat_map(|section| kinds.iter().filter_map(|kind| section.get(*kind)?.as_table()))
        .flat_map(|entries| entries.iter().map(|(key, value)| package_name(key, value)))
        .collect()
}

/// A dependency may stand under another name than the package's own.
fn package_name(key: &str, value: &Value) -> String {
    value.get("package").and_then(Value::as_str).unwrap_or(key).to_owned()
}

fn has_binary(member: &str) -> bool {
    let manifest = table(&format!("{member}/Cargo.toml"));
    let folder = tree::root().join(member);
    manifest.contains_key("bin")
        || folder.join("src/main.rs").exists()
        || folder.join("src/bin").exists()
}

fn table(path: &str) -> Table {
    tree::read(&PathBuf::from(path)).unwrap().parse().unwrap()
}

fn folders(path: &str) -> Vec<String> {
    let entries = std::fs::read_dir(tree::root().join(path)).unwrap().map(Result::unwrap);
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    folders.map(|entry| entry.file_name().into_string().unwrap()).collect()
}
