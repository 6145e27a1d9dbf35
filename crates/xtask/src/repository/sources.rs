//! What must not stand in any file.

use std::path::Path;

use crate::tree;

/// A skipped test looks like a passed one.
#[test]
fn no_test_is_skipped() {
    let mark = concat!("#[", "ignore");
    for path in tree::rust_files().unwrap() {
        let text = tree::read(&path).unwrap();
        assert!(!text.contains(mark), "{} skips a test", path.display());
    }
}

/// A path of somebody's own machine means nothing to anybody else.
#[test]
fn no_file_names_a_folder_of_one_machine() {
    for path in tree::files().unwrap() {
        for (index, line) in text_of(&path).lines().enumerate() {
            let place = format!("{}:{}", path.display(), index + 1);
            assert!(!names_machine_folder(line), "{place} names a folder of one machine: {line}");
        }
    }
}

#[test]
fn a_folder_of_one_machine_is_told_from_a_part_of_a_path() {
    let rows = [
        (concat!("see /", "work/notes.md"), true),
        (concat!("/", "home/somebody/kedge"), true),
        (concat!("path = \"/", "home/somebody\""), true),
        (concat!("file:///", "home/somebody"), true),
        (concat!("https://example.org/", "work/notes.md"), false),
        (concat!("crates/", "work/src"), false),
        ("at work/home time", false),
    ];
    for (line, expected) in rows {
        assert_eq!(names_machine_folder(line), expected, "{line}");
    }
}

/// Whether an absolute path in the line leads to somebody's own folder.
fn names_machine_folder(line: &str) -> bool {
    [concat!("/", "work/"), concat!("/", "home/")].iter().any(|folder| {
        line.match_indices(folder).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            before.is_none_or(|before| !(before.is_alphanumeric() || ".-_~$}>".contains(before)))
        })
    })
}

/// The file's text; files that are none have nothing to say.
fn text_of(path: &Path) -> String {
    let bytes = std::fs::read(tree::root().join(path)).unwrap();
    String::from_utf8(bytes).unwrap_or_default()
}
