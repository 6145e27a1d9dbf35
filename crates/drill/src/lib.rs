//! Tries out backups: looks at what a disk holds, and boots machines of them.
//!
//! Nothing is mounted and no disk is copied. File systems are read by memory-safe code in a
//! child that can do nothing but read the disk and report; machines run in a QEMU without
//! rights, network or a way to write to the disks.
//!
//! A disk is an adversary here: its bytes come from a server that may belong to anybody.

#![warn(missing_docs)]

mod boot;
mod bytes;
mod console;
mod content;
mod crc;
mod ext;
mod inspect;
mod inspector;
mod journal;
pub mod nbd;
mod problems;
mod process;
mod protocol;
pub mod sandbox;
mod stopwatch;
mod table;
mod watched;

use std::ffi::OsString;
use std::io::{stdin, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kedge_core::drill::{Boot, DiskReport, Stage, StageError};
use kedge_core::ports::DiskReader;
use tokio::task::spawn_blocking;

pub use crate::bytes::Bytes;
pub use crate::inspect::inspect;
use crate::process::Cancelled;

/// How drills are made.
#[derive(Clone, Debug)]
pub struct Options {
    /// How an inspecting child is started.
    pub inspector: Inspector,
    /// The QEMU that boots machines, if any does.
    pub qemu: Option<PathBuf>,
    /// What runs the machine's instructions.
    pub accelerator: Accelerator,
    /// The machine's memory.
    pub memory_mib: u32,
    /// How long a machine has to come up.
    pub boot_time: Duration,
    /// Texts on the console any of which means that it is up.
    pub markers: Vec<String>,
    /// How long inspecting a disk may take.
    pub inspect_time: Duration,
    /// Where sockets and overlays lie while a machine runs. If we are root, user 65534 has
    /// to be able to pass through it.
    pub work_dir: PathBuf,
}

/// A program that calls [`inspect_stdio`]. If we are root, user 65534 has to be able to
/// execute it.
#[derive(Clone, Debug)]
pub struct Inspector {
    /// The program.
    pub program: PathBuf,
    /// What makes it call.
    pub arguments: Vec<OsString>,
}

/// What runs a machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU itself; works everywhere, slowly.
    Tcg,
    /// The processor.
    Kvm,
}

/// A stage on this machine.
#[derive(Clone, Debug)]
pub struct LocalStage {
    options: Arc<Options>,
}

impl LocalStage {
    /// A stage with these options. Nothing is started yet.
    pub fn new(options: Options) -> Self {
        Self { options: Arc::new(options) }
    }
}

#[async_trait]
impl Stage for LocalStage {
    async fn inspect(&self, disk: Arc<dyn DiskReader>) -> Result<DiskReport, StageError> {
        let options = Arc::clone(&self.options);
        blocking(move |cancelled| inspector::inspect(&options, disk, cancelled)).await
    }

    async fn boot(&self, disks: Vec<Arc<dyn DiskReader>>) -> Result<Boot, StageError> {
        let options = Arc::clone(&self.options);
        let Some(qemu) = options.qemu.clone() else {
            return Err(StageError::new("booting is not configured"));
        };
        blocking(move |cancelled| boot::boot(&options, &qemu, disks, cancelled)).await
    }
}

/// Says that nobody waits any more when it is dropped.
#[derive(Debug)]
struct Patience(Cancelled);

impl Drop for Patience {
    fn drop(&mut self) {
        self.0.say();
    }
}

/// Runs blocking work that learns when its caller has gone.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Cancelled) -> Result<T, StageError> + Send + 'static,
) -> Result<T, StageError> {
    let cancelled = Cancelled::default();
    let _patience = Patience(cancelled.clone());
    match spawn_blocking(move || work(&cancelled)).await {
        Ok(result) => result,
        Err(error) => Err(StageError::new(format!("a drill broke off: {error}"))),
    }
}

/// The whole of an inspecting child: enters the sandbox for good, then inspects the disk
/// that is served on standard input and output. To be called before there is a second
/// thread.
pub fn inspect_stdio() -> Result<(), String> {
    if let Err(why) = sandbox::enter() {
        protocol::refuse(stdout().lock(), &why).map_err(|error| error.to_string())?;
        return Err(why);
    }
    protocol::ask(stdin().lock(), stdout().lock())
}
