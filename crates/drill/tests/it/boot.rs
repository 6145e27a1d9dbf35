//! Machines that come up, and machines that do not.

use std::env::temp_dir;
use std::sync::Arc;
use std::time::Duration;

use kedge_core::drill::{Boot, Stage};
use kedge_core::ports::{CloudError, DiskReader, Extent};
use kedge_drill::{Accelerator, Inspector, LocalStage, Options};

use crate::VecDisk;

/// Loaded at 0x7c00. Prints to the first serial port, then rests.
const BOOT_SECTOR: &[u8] = &[
    0xfc, //             cld
    0x31, 0xc0, //       xor ax, ax
    0x8e, 0xd8, //       mov ds, ax
    0xbe, 0x22, 0x7c, // mov si, text
    0xac, //       next: lodsb
    0x84, 0xc0, //       test al, al
    0x74, 0x12, //       jz rest
    0x88, 0xc4, //       mov ah, al
    0xba, 0xfd, 0x03, // mov dx, 0x3fd     the line's status
    0xec, //       wait: in al, dx
    0xa8, 0x20, //       test al, 0x20     has it taken the last byte?
    0x74, 0xfb, //       jz wait
    0x88, 0xe0, //       mov al, ah
    0xba, 0xf8, 0x03, // mov dx, 0x3f8     the line
    0xee, //             out dx, al
    0xeb, 0xe9, //       jmp next
    0xf4, //       rest: hlt
    0xeb, 0xfd, //       jmp rest
    b'K', b'E', b'D', b'G', b'E', b'-', b'R', b'E', b'A', b'D', b'Y', b'\r', b'\n', 0,
];

fn stage(boot_secs: u64) -> LocalStage {
    LocalStage::new(options(boot_secs))
}

fn options(boot_secs: u64) -> Options {
    Options {
        inspector: Inspector { program: "/nonexistent".into(), arguments: Vec::new() },
        qemu: Some("qemu-system-x86_64".into()),
        accelerator: Accelerator::Tcg,
        memory_mib: 64,
        boot_time: Duration::from_secs(boot_secs),
        markers: vec!["KEDGE-READY".to_owned()],
        inspect_time: Duration::from_secs(60),
        // Root's own temporary directories are closed to the user that QEMU runs as.
        work_dir: temp_dir(),
    }
}

fn bootable() -> VecDisk {
    let mut bytes = vec![0; 1 << 20];
    bytes[..BOOT_SECTOR.len()].copy_from_slice(BOOT_SECTOR);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    VecDisk(bytes)
}

#[tokio::test]
async fn a_machine_that_says_so_has_booted() {
    let second = Arc::new(VecDisk(vec![0; 1 << 20]));
    let boot = stage(120).boot(vec![Arc::new(bootable()), second]).await.unwrap();
    assert!(matches!(&boot, Boot::Booted { line, .. } if line.contains("KEDGE-READY")), "{boot:?}");
}

#[tokio::test]
async fn an_empty_disk_does_not_boot() {
    let boot = stage(120).boot(vec![Arc::new(VecDisk(vec![0; 1 << 20]))]).await.unwrap();
    let Boot::Failed { why, console, .. } = boot else { panic!("{boot:?}") };
    assert!(!why.starts_with("no marker"), "{why}: {console:?}");
}

#[tokio::test]
async fn a_machine_that_says_nothing_fails_when_its_time_is_over() {
    let mut silent = bootable();
    silent.0[0] = 0xf4;
    silent.0[1..3].copy_from_slice(&[0xeb, 0xfd]);
    let boot = stage(5).boot(vec![Arc::new(silent)]).await.unwrap();
    assert!(matches!(&boot, Boot::Failed { why, .. } if why.starts_with("no marker")), "{boot:?}");
}

#[derive(Debug)]
struct Unreadable;

impl DiskReader for Unreadable {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn next_extent(&self, _: u64) -> Result<Extent, CloudError> {
        Err(CloudError::retryable("the repository is gone"))
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), CloudError> {
        Err(CloudError::retryable("the repository is gone"))
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_read_is_not_the_backups_fault() {
    let error = stage(120).boot(vec![Arc::new(Unreadable)]).await.unwrap_err();
    assert!(error.text.contains("the repository is gone"), "{error}");
}

#[tokio::test]
async fn a_qemu_that_cannot_be_had_is_not_the_backups_fault() {
    let mut options = Options { qemu: None, ..options(120) };
    assert!(LocalStage::new(options.clone()).boot(vec![]).await.is_err());
    options.qemu = Some("/nonexistent".into());
    let disks: Vec<Arc<dyn DiskReader>> = vec![Arc::new(bootable())];
    let error = LocalStage::new(options).boot(disks).await.unwrap_err();
    assert!(error.text.contains("/nonexistent"), "{error}");
}
