//! File systems as e2fsprogs makes them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use kedge_core::drill::{Depth, DiskReport, PartitionReport, TableKind};
use kedge_drill::{Bytes, inspect};
use tempfile::TempDir;

const OFFSET: usize = 1 << 20;
/// The root, `lost+found`, `sub` and two files in them.
const FILES: u64 = 5;

fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    // e2fsprogs lies there, and not everybody looks there.
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A directory with `image` in it, a file system of this kind with some files.
fn make(kind: &str, options: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    fs::create_dir_all(files.join("sub")).unwrap();
    fs::write(files.join("hello.txt"), "hello").unwrap();
    fs::write(files.join("sub/inner.txt"), "inner").unwrap();
    let image = image(&dir);
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let files = files.into_os_string().into_string().unwrap();
    let fixed = ["-q", "-F", "-b", "4096", "-t", kind, "-d", files.as_str()];
    run("mke2fs", &[&fixed[..], options, &[image.as_str()]].concat());
    dir
}

fn image(dir: &TempDir) -> String {
    dir.path().join("image").into_os_string().into_string().unwrap()
}

/// The file system in the only partition of a disk.
fn disk(file_system: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; OFFSET];
    let sectors = |bytes: usize| u32::try_from(bytes / 512).unwrap().to_le_bytes();
    disk[446 + 4] = 0x83;
    disk[446 + 8..446 + 12].copy_from_slice(&sectors(OFFSET));
    disk[446 + 12..446 + 16].copy_from_slice(&sectors(file_system.len()));
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk.extend(file_system);
    disk
}

fn inspect_disk(file_system: &[u8]) -> DiskReport {
    let disk: Rc<dyn Bytes> = Rc::new(disk(file_system));
    inspect(&disk)
}

fn inspect_image(path: impl AsRef<Path>) -> PartitionReport {
    let report = inspect_disk(&fs::read(path).unwrap());
    assert_eq!((report.table, report.partitions.len()), (TableKind::Mbr, 1));
    assert_eq!(report.problems, [""; 0]);
    report.partitions[0].clone()
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).unwrap()
}

#[test]
fn a_sound_file_system_is_walked() {
    for kind in ["ext2", "ext3", "ext4"] {
        let found = inspect_image(image(&make(kind, &[])));
        assert_eq!(found.problems, [""; 0], "{kind}");
        assert_eq!((found.content.as_str(), found.depth), (kind, Depth::Walked));
        assert_eq!((found.number, found.files), (1, FILES), "{kind}");
    }
}

#[test]
fn a_damaged_directory_is_a_problem() {
    let dir = make("ext4", &["-O", "metadata_csum"]);
    let mut bytes = fs::read(image(&dir)).unwrap();
    let at = find(&bytes, b"inner.txt");
    bytes[at] ^= 1;
    let report = inspect_disk(&bytes);
    let problems: Vec<String> = report.problems().collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("partition 1: /sub: "), "{problems:?}");
}

#[test]
fn a_damaged_superblock_is_a_problem() {
    let dir = make("ext4", &["-O", "metadata_csum"]);
    let mut bytes = fs::read(image(&dir)).unwrap();
    bytes[1024 + 0x80] ^= 1;
    let report = inspect_disk(&bytes);
    assert!(report.partitions[0].problems[0].contains("checksum"), "{report:?}");
}

#[test]
fn a_file_system_cut_short_is_a_problem() {
    let bytes = fs::read(image(&make("ext4", &[]))).unwrap();
    let report = inspect_disk(&bytes[..8 << 20]);
    assert_eq!(report.partitions[0].problems.len(), 1, "{report:?}");
}

#[test]
fn a_feature_that_is_not_understood_is_no_problem() {
    let found = inspect_image(image(&make("ext4", &["-O", "inline_data"])));
    assert_eq!((found.depth, found.problems.len()), (Depth::Described, 0), "{found:?}");
}

#[test]
fn what_only_the_journal_has_is_seen() {
    for checksums in ["", " -c"] {
        let dir = make("ext4", &["-O", "metadata_csum"]);
        let path = image(&dir);
        let block = run("debugfs", &["-R", "blocks /sub", &path]).trim().to_owned();
        let at = block.parse::<usize>().unwrap() * 4096;
        let mut bytes = fs::read(&path).unwrap();
        let copy = dir.path().join("copy");
        fs::write(&copy, &bytes[at..at + 4096]).unwrap();
        let commands = dir.path().join("commands");
        let copy = copy.display();
        fs::write(&commands, format!("jo{checksums}\njw -b {block} {copy}\njc\n")).unwrap();
        let commands = commands.into_os_string().into_string().unwrap();
        run("debugfs", &["-w", "-f", &commands, &path]);

        bytes.clone_from(&fs::read(&path).unwrap());
        bytes[at..at + 4096].fill(0xff);
        let report = inspect_disk(&bytes);
        let found = &report.partitions[0];
        assert_eq!(found.problems, [""; 0], "journal{checksums}");
        assert_eq!((found.depth, found.files), (Depth::Walked, FILES), "journal{checksums}");
    }
}
