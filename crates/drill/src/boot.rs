//! Boots a machine in QEMU from disks that are read where they are.
//!
//! Every disk is served read-only over a socket in a directory of its own. QEMU writes to
//! an overlay that has no name and ends with it. The machine has no network, QEMU has no
//! rights, and neither outlives the call.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use kedge_core::drill::{Boot, StageError};
use kedge_core::ports::DiskReader;
use tempfile::TempDir;

use crate::console::{Judge, Verdict};
use crate::nbd;
use crate::problems::plain;
use crate::process::{Cancelled, NOBODY, POLL, Process, is_root};
use crate::stopwatch::Stopwatch;
use crate::watched::Watched;
use crate::{Accelerator, Options};

/// Becomes what it is told to, which then is killed when the thread ends that started it.
const ENDS_WITH_US: &str = "setpriv";
/// Limits what it becomes: even root may not do so to a child of another user everywhere.
const LIMITS: &str = "prlimit";
/// More than a machine writes that comes up; less than fills a disk of ours. All of its
/// disks share it.
const OVERLAY_BYTES_MAX: u64 = 8 << 30;
/// Chunks of the console that wait to be judged.
const CHUNKS_MAX: usize = 16;
/// What is kept of QEMU's complaints.
const STDERR_BYTES_MAX: u64 = 4096;
/// Everything that QEMU has no need of, it may not do.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Boots a machine; returns no later than its time is over.
pub(crate) fn boot(
    options: &Options,
    qemu: &Path,
    disks: Vec<Arc<dyn DiskReader>>,
    cancelled: &Cancelled,
) -> Result<Boot, StageError> {
    let judge = Judge::new(&options.markers);
    if disks.is_empty() || !judge.has_markers() {
        return Err(StageError::new("booting needs a disk, and a text that means success"));
    }
    // Dropped in reverse order: the machine first, so that its servers see it go.
    let room = room(&options.work_dir).map_err(|error| failed("make a directory", &error))?;
    let servers = disks
        .into_iter()
        .enumerate()
        .map(|(number, disk)| Server::start(room.path().join(format!("{number}.sock")), disk))
        .collect::<io::Result<Vec<Server>>>()
        .map_err(|error| failed("serve a disk", &error))?;
    let sockets: Vec<&Path> = servers.iter().map(|server| server.socket.as_path()).collect();
    let machine = Machine::start(options, qemu, room.path(), &sockets)?;
    let boot = machine.watch(options, judge, cancelled)?;
    if let Boot::Failed { why, .. } = &boot
        && let Some(failure) = servers.iter().find_map(|server| server.disk.failure())
    {
        let text = format!("a disk could not be read while booting: {failure} ({why})");
        return Err(StageError::new(text));
    }
    Ok(boot)
}

fn failed(what: &str, error: &io::Error) -> StageError {
    StageError::new(format!("could not {what}: {error}"))
}

/// A directory for sockets and the overlay, which nobody but us and QEMU can enter.
fn room(work_dir: &Path) -> io::Result<TempDir> {
    let room = tempfile::Builder::new().prefix("drill-").tempdir_in(work_dir)?;
    give_away(room.path())?;
    Ok(room)
}

fn give_away(path: &Path) -> io::Result<()> {
    if is_root() { chown(path, Some(NOBODY), Some(NOBODY)) } else { Ok(()) }
}

/// A disk that is served to the first who asks.
#[derive(Debug)]
struct Server {
    socket: PathBuf,
    disk: Arc<Watched>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(socket: PathBuf, disk: Arc<dyn DiskReader>) -> io::Result<Self> {
        let listener = UnixListener::bind(&socket)?;
        give_away(&socket)?;
        let disk = Arc::new(Watched::new(disk));
        let served = Arc::clone(&disk);
        let thread = thread::Builder::new()
            .name("drill-nbd".to_owned())
            .spawn(move || serve_one(listener, &served))?;
        Ok(Self { socket, disk, thread: Some(thread) })
    }
}

impl Drop for Server {
    /// The caller has ended the machine, so that a connection it had is closed.
    fn drop(&mut self) {
        // Wakes a thread that still waits for a machine that never came.
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve_one(listener: UnixListener, disk: &Watched) {
    let accepted = listener.accept();
    drop(listener);
    match accepted.and_then(|(stream, _)| nbd::serve(stream, disk)) {
        Ok(()) => {}
        // A machine that is killed may be in the middle of a sentence.
        Err(error) => tracing::debug!(%error, "a disk on trial was let go"),
    }
}

/// A running QEMU.
#[derive(Debug)]
struct Machine {
    process: Process,
    console: Receiver<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
    stopwatch: Stopwatch,
}

/// How a machine's time came to an end.
#[derive(Debug)]
enum End {
    Verdict(Verdict),
    Expired,
    Exited,
}

impl Machine {
    fn start(
        options: &Options,
        qemu: &Path,
        room: &Path,
        sockets: &[&Path],
    ) -> Result<Self, StageError> {
        let mut command = Command::new(ENDS_WITH_US);
        let each = OVERLAY_BYTES_MAX / u64::try_from(sockets.len().max(1)).unwrap_or(u64::MAX);
        command.args(["--pdeathsig", "KILL", "--", LIMITS, "--core=0"]);
        command.arg(format!("--fsize={each}")).arg("--").arg(qemu);
        command.args(arguments(options, sockets)).env_clear().env("TMPDIR", room);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let stopwatch = Stopwatch::start();
        let (process, pipes) = Process::start(&mut command, group(options.accelerator))?;
        let (Some(stdout), Some(stderr)) = (pipes.stdout, pipes.stderr) else {
            return Err(StageError::new("QEMU has no pipes"));
        };
        let (sender, console) = sync_channel(CHUNKS_MAX);
        thread::spawn(move || pump(stdout, &sender));
        let stderr = thread::spawn(move || begin_of(stderr));
        Ok(Self { process, console, stderr, stopwatch })
    }

    fn watch(
        self,
        options: &Options,
        mut judge: Judge,
        cancelled: &Cancelled,
    ) -> Result<Boot, StageError> {
        let end = self.wait(options, &mut judge, cancelled)?;
        let after_ms = self.stopwatch.elapsed_ms();
        let why = match end {
            End::Verdict(Verdict::Booted(line)) => return Ok(Boot::Booted { line, after_ms }),
            End::Verdict(Verdict::Failed(line)) => line,
            End::Expired => format!("no marker within {} s", options.boot_time.as_secs()),
            End::Exited => self.why_it_exited(&judge)?,
        };
        Ok(Boot::Failed { why, after_ms, console: judge.console() })
    }

    fn wait(
        &self,
        options: &Options,
        judge: &mut Judge,
        cancelled: &Cancelled,
    ) -> Result<End, StageError> {
        loop {
            let left = options.boot_time.saturating_sub(self.stopwatch.elapsed());
            if left.is_zero() {
                return Ok(End::Expired);
            }
            if cancelled.is_said() {
                return Err(StageError::new("nobody waits for the machine any more"));
            }
            match self.console.recv_timeout(left.min(POLL)) {
                Ok(chunk) => {
                    if let Some(verdict) = judge.feed(&chunk) {
                        return Ok(End::Verdict(verdict));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(End::Exited),
            }
        }
    }

    /// A QEMU that never got as far as the firmware's first words did not start.
    fn why_it_exited(self, judge: &Judge) -> Result<String, StageError> {
        let status = self.process.end();
        if status.is_some_and(|status| status.success()) {
            return Ok("the machine powered off or reset".to_owned());
        }
        let said = self.stderr.join().unwrap_or_default();
        let said = plain(String::from_utf8_lossy(&said).trim(), 500);
        let status = status.as_ref().map_or_else(String::new, ExitStatus::to_string);
        let text = format!("QEMU ended: {status}: {said}");
        if judge.has_printed() { Ok(text) } else { Err(StageError::new(text)) }
    }
}

/// Hands on what is printed until nobody listens.
fn pump(mut stdout: ChildStdout, sender: &SyncSender<Vec<u8>>) {
    let mut buf = [0; 4096];
    while let Ok(length @ 1..) = stdout.read(&mut buf) {
        if sender.send(buf[..length].to_vec()).is_err() {
            return;
        }
    }
}

/// How something begins. The rest is read too, so that whoever says it can go on.
fn begin_of(mut stderr: impl Read) -> Vec<u8> {
    let mut begin = Vec::new();
    let read = stderr.by_ref().take(STDERR_BYTES_MAX).read_to_end(&mut begin);
    if read.is_ok() {
        let _ = io::copy(&mut stderr, &mut io::sink());
    }
    begin
}

/// The group that may use the accelerator.
fn group(accelerator: Accelerator) -> u32 {
    match accelerator {
        Accelerator::Tcg => NOBODY,
        Accelerator::Kvm => fs::metadata("/dev/kvm").map_or(NOBODY, |device| device.gid()),
    }
}

fn arguments(options: &Options, sockets: &[&Path]) -> Vec<OsString> {
    let memory = options.memory_mib.to_string();
    let accelerator: &[&str] = match options.accelerator {
        // Writes and runs code in two mappings: services may not have one for both.
        Accelerator::Tcg => &["-accel", "tcg,split-wx=on"],
        Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host"],
    };
    let fixed: [&[&str]; 4] = [
        &["-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot"],
        // Without graphics, the firmware speaks on the serial console too.
        &["-machine", "pc,graphics=off", "-smp", "1", "-m", memory.as_str()],
        &["-serial", "stdio", "-monitor", "none", "-sandbox", SANDBOX],
        accelerator,
    ];
    let mut arguments: Vec<OsString> = fixed.concat().into_iter().map(OsString::from).collect();
    for (number, socket) in sockets.iter().enumerate() {
        let boots = if number == 0 { ",bootindex=0" } else { "" };
        let device = format!("virtio-blk-pci,drive=d{number}{boots}");
        arguments.extend([OsString::from("-drive"), drive(number, socket)]);
        arguments.extend([OsString::from("-device"), OsString::from(device)]);
    }
    arguments
}

/// QEMU ends a value at a comma, unless there are two.
fn drive(number: usize, socket: &Path) -> OsString {
    let mut drive = format!(
        "if=none,id=d{number},format=raw,snapshot=on,cache=unsafe,\
         file.driver=nbd,file.server.type=unix,file.server.path="
    )
    .into_bytes();
    for byte in socket.as_os_str().as_bytes() {
        drive.push(*byte);
        if *byte == b',' {
            drive.push(b',');
        }
    }
    OsString::from_vec(drive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_is_doubled() {
        let drive = drive(1, Path::new("/a,b/0.sock")).into_string().unwrap();
        assert!(drive.starts_with("if=none,id=d1,format=raw,snapshot=on"));
        assert!(drive.ends_with("file.server.path=/a,,b/0.sock"));
    }

    #[test]
    fn complaints_are_cut_and_read_to_their_end() {
        let said = vec![b'x'; 100_000];
        let mut rest = &said[..];
        assert_eq!(begin_of(&mut rest).len(), 4096);
        assert!(rest.is_empty());
    }
}
