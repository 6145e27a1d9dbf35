//! Documents that promise something about the code, compared with the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::tree;

/// More than that nobody reads before changing something.
const ARCHITECTURE_LINES_MAX: usize = 250;

/// Every test in a folder or file of one of these names defends against somebody.
const GUARDED: [&str; 3] = ["hostile", "secrets", "security"];

#[test]
fn the_architecture_can_be_read_in_one_go() {
    let lines = tree::read(Path::new("ARCHITECTURE.md")).unwrap().lines().count();
    assert!(lines <= ARCHITECTURE_LINES_MAX, "ARCHITECTURE.md has {lines} lines");
}

#[test]
fn every_defence_in_the_security_table_is_a_test_that_exists() {
    let table = tree::read(Path::new("SECURITY.md")).unwrap();
    let sources: Vec<String> =
        tree::rust_files().unwrap().iter().map(|path| tree::read(path).unwrap()).collect();
    let named = tests_named_by(&table);
    assert!(!named.is_empty(), "the table of SECURITY.md names no test");
    for name in named {
        let head = format!("fn {name}(");
        let exists = sources.iter().any(|source| source.contains(&head));
        assert!(exists, "SECURITY.md names the test {name}, which does not exist");
    }
}

#[test]
fn every_security_test_stands_in_the_security_table() {
    let named = tests_named_by(&tree::read(Path::new("SECURITY.md")).unwrap());
    for path in tree::rust_files().unwrap().into_iter().filter(|path| is_guarded(path)) {
        for test in tests_in(&tree::read(&path).unwrap()) {
            let place = path.display();
            assert!(named.contains(&test), "SECURITY.md does not name {test} of {place}");
        }
    }
}

#[test]
fn the_security_table_is_read_by_its_last_column() {
    let text = "\
Prose with a | and a `name`.

| attacker | asset | defence | test |
|---|---|---|---|
| a guest | the host | `fixed` formats | `kedge-cloud::local::a_fifo_is_refused` |
| a user | tokens | hashes | `one`, `two` |

| other | table |
|---|---|
| x | `y` |
";
    let expected = ["a_fifo_is_refused", "one", "two"].map(str::to_owned);
    assert_eq!(tests_named_by(text), BTreeSet::from(expected));
}

#[test]
fn tests_are_found_by_their_attribute() {
    let mark = concat!("#[", "test]");
    let text = format!(
        "{mark}\nfn a() {{}}\n\n#[tokio::test(flavor = \"x\")]\n/// Why.\nasync fn b() {{}}\nfn c() {{}}\n"
    );
    assert_eq!(tests_in(&text), ["a", "b"]);
    assert!(is_guarded(&PathBuf::from("crates/kedge/tests/it/hostile/names.rs")));
    assert!(is_guarded(&PathBuf::from("crates/kedge/tests/it/secrets.rs")));
    assert!(!is_guarded(&PathBuf::from("crates/kedge/tests/it/restic.rs")));
}

/// The names in backticks in the last column of the table whose last heading is `test`,
/// without the path before them.
fn tests_named_by(text: &str) -> BTreeSet<String> {
    let is_head = |line: &&str| cells(line).last().is_some_and(|cell| *cell == "test");
    let Some(head) = text.lines().position(|line| is_head(&line)) else { return BTreeSet::new() };
    text.lines()
        .skip(head + 1)
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| cells(line).last().copied())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(|path| path.rsplit("::").next().unwrap_or(path).to_owned())
        .collect()
}

fn cells(line: &str) -> Vec<&str> {
    let Some(row) = line.trim().strip_prefix('|') else { return Vec::new() };
    row.trim_end_matches('|').split('|').map(str::trim).collect()
}

/// The names of the functions that follow a test attribute.
fn tests_in(source: &str) -> Vec<String> {
    let mut tests = Vec::new();
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(name) = function_name(line).filter(|_| marked) {
            tests.push(name.to_owned());
            marked = false;
        }
    }
    tests
}

fn function_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
    rest.split(['(', '<']).next()
}

fn is_guarded(path: &Path) -> bool {
    let path = path.with_extension("");
    path.iter().any(|part| GUARDED.iter().any(|guarded| part == *guarded))
}
