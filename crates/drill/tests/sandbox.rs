//! Inspecting in a child, with this very program as the child. Without the usual harness,
//! which has threads and prints before it could be asked to inspect.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env::{args, current_exe, temp_dir};
use std::fs::File;
use std::net::TcpListener;
use std::process::{Command, exit};
use std::sync::Arc;
use std::time::Duration;

use kedge_core::drill::{DiskReport, Stage, StageError};
use kedge_core::ports::{CloudError, DiskReader, Extent, ExtentKind};
use kedge_drill::{Accelerator, Inspector, LocalStage, Options, inspect_stdio, sandbox};

fn main() {
    match args().nth(1).as_deref() {
        Some("inspect") => exit(i32::from(inspect_stdio().is_err())),
        Some("probe") => exit(i32::from(!is_shut_in())),
        Some("crash") => exit(crash()),
        // What asks for a list of tests gets none.
        Some("--list") => {}
        _ => all(),
    }
}

fn all() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        a_disk_is_inspected().await;
        what_cannot_be_read_is_told_apart().await;
        a_child_that_is_none_is_the_stages_fault().await;
        a_child_that_dies_at_work_says_nothing_of_the_disk().await;
        a_child_that_hangs_is_killed().await;
    });
    the_sandbox_is_shut();
}

/// Whether the sandbox keeps what it promises, seen from within.
fn is_shut_in() -> bool {
    let before = File::open("/proc/self/status").is_ok();
    let held = File::open("/dev/null").unwrap();
    sandbox::enter().unwrap();
    // Nor in place of a file that is closed.
    drop(held);
    let file = File::open("/proc/self/status").is_ok();
    let network = TcpListener::bind("127.0.0.1:0").is_ok();
    let memory = Vec::<u8>::new().try_reserve_exact(2 << 30).is_ok();
    before && !file && !network && !memory
}

/// Asks for one sector as an inspector would, then dies.
fn crash() -> i32 {
    use std::io::{Read, Write, stdin, stdout};
    stdin().read_exact(&mut [0; 8]).unwrap();
    stdout().write_all(&[b'R', 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).unwrap();
    stdout().flush().unwrap();
    stdin().read_exact(&mut [0; 2]).unwrap();
    3
}

#[derive(Debug)]
struct Disk(Result<Vec<u8>, CloudError>);

impl DiskReader for Disk {
    fn size_bytes(&self) -> u64 {
        2 << 20
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, CloudError> {
        Ok(Extent { offset, length_bytes: self.size_bytes() - offset, kind: ExtentKind::Data })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError> {
        let bytes = self.0.as_ref().map_err(Clone::clone)?;
        let at = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&bytes[at..at + buf.len()]);
        Ok(())
    }
}

async fn inspect_by(
    program: &str,
    arguments: &[&str],
    disk: Disk,
) -> Result<DiskReport, StageError> {
    let arguments = arguments.iter().map(Into::into).collect();
    let stage = LocalStage::new(Options {
        inspector: Inspector { program: program.into(), arguments },
        qemu: None,
        accelerator: Accelerator::Tcg,
        memory_mib: 64,
        boot_time: Duration::from_secs(60),
        markers: Vec::new(),
        inspect_time: Duration::from_secs(if program.ends_with("sleep") { 1 } else { 60 }),
        work_dir: temp_dir(),
    });
    stage.inspect(Arc::new(disk)).await
}

async fn inspect(disk: Disk) -> Result<DiskReport, StageError> {
    inspect_by(current_exe().unwrap().to_str().unwrap(), &["inspect"], disk).await
}

fn zeroes() -> Disk {
    Disk(Ok(vec![0; 2 << 20]))
}

async fn a_disk_is_inspected() {
    let report = inspect(zeroes()).await.unwrap();
    assert_eq!(report.partitions.len(), 1);
    assert_eq!(report.partitions[0].content, "empty");
    assert_eq!(report.problems().count(), 0);
}

async fn what_cannot_be_read_is_told_apart() {
    let report = inspect(Disk(Err(CloudError::permanent("a chunk is gone")))).await.unwrap();
    assert!(report.problems[0].contains("a chunk is gone"), "{report:?}");
    let error = inspect(Disk(Err(CloudError::retryable("no answer")))).await.unwrap_err();
    assert!(error.text.contains("no answer"), "{error}");
}

async fn a_child_that_is_none_is_the_stages_fault() {
    let error = inspect_by("/nonexistent", &[], zeroes()).await.unwrap_err();
    assert!(error.text.contains("/nonexistent"), "{error}");
    let error = inspect_by("/bin/true", &[], zeroes()).await.unwrap_err();
    assert!(error.text.contains("did not begin"), "{error}");
}

async fn a_child_that_dies_at_work_says_nothing_of_the_disk() {
    let program = current_exe().unwrap();
    let error = inspect_by(program.to_str().unwrap(), &["crash"], zeroes()).await.unwrap_err();
    assert!(error.text.starts_with("the inspector died at work: "), "{error}");
}

async fn a_child_that_hangs_is_killed() {
    let error = inspect_by("/bin/sleep", &["1000"], zeroes()).await.unwrap_err();
    assert!(error.text.contains("not done within"), "{error}");
}

fn the_sandbox_is_shut() {
    let status = Command::new(current_exe().unwrap()).arg("probe").status().unwrap();
    assert!(status.success());
}
