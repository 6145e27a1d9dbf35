//! Drills by the real program: its own sandbox, a real QEMU, disks that nobody copied.

use std::fs;
use std::os::unix::fs::FileExt as _;

use crate::site::{Disks, Site, Start};

/// Prints a line on the serial console, and rests.
const BOOT_SECTOR: &[u8] = &[
    0xfc, 0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x22, 0x7c, 0xac, 0x84, 0xc0, 0x74, 0x12, 0x88, 0xc4, 0xba,
    0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, 0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xe9, 0xf4,
    0xeb, 0xfd, b'K', b'E', b'D', b'G', b'E', b'-', b'R', b'E', b'A', b'D', b'Y', b'\r', b'\n', 0,
];

fn site() -> Site {
    let mut site = Site::new();
    site.put_disks(&Disks::of(1));
    site.configure("[drill]\nboot = true\nmarkers = [\"KEDGE-READY\"]\nboot_secs = 120\n");
    site.start(Start::Plain);
    site
}

#[test]
fn a_backup_that_boots_is_of_the_best_grade_and_one_that_does_not_is_told() {
    let mut site = site();
    let broken = site.protect();
    site.wait_until_available(&broken);
    let proof = site.drill(&broken);
    assert_eq!(proof.verdict.as_deref(), Some("failed"), "{proof:?}");
    assert!(!proof.boot.as_ref().unwrap().booted, "{proof:?}");
    assert_eq!(site.grade(&broken), "B", "every byte was read");

    let mut disks = site.disks();
    disks.0[0][..BOOT_SECTOR.len()].copy_from_slice(BOOT_SECTOR);
    disks.0[0][510..512].copy_from_slice(&[0x55, 0xaa]);
    site.put_disks(&disks);
    let sound = site.protect();
    site.wait_until_available(&sound);
    // What lies on the server's disks now is not what boots.
    site.put_disks(&Disks::of_noise(2));
    let proof = site.drill(&sound);
    assert_eq!(proof.verdict.as_deref(), Some("passed"), "{proof:?}");
    assert!(proof.boot.unwrap().said.contains("KEDGE-READY"));
    assert_eq!(proof.disks.len(), 2);
    assert_eq!(site.grade(&sound), "A");
    assert!(site.disks() == Disks::of_noise(2), "a drill writes to no disk");
    site.assert_sound();
}

/// A program that inspects disks tells what it saw, and a disk that is hostile costs no more
/// than its own verdict.
#[test]
fn a_damaged_partition_table_is_told_and_not_booted() {
    let mut site = site();
    // The mark of a GUID partition table, and nothing that belongs to it.
    let disk = fs::File::options().write(true).open(site.data_disk()).unwrap();
    disk.write_all_at(&[0x55, 0xaa], 510).unwrap();
    disk.write_all_at(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0x2f, 0, 0], 446)
        .unwrap();
    disk.write_all_at(b"EFI PART", 512).unwrap();
    drop(disk);
    let backup = site.protect();
    site.wait_until_available(&backup);
    let proof = site.drill(&backup);
    assert_eq!(proof.verdict.as_deref(), Some("failed"), "{proof:?}");
    assert!(proof.boot.is_none(), "{proof:?}");
    assert!(!proof.disks[1].problems.is_empty(), "{proof:?}");
}
