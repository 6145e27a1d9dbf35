//! Children that have no more rights than they need and never outlive their owner.

use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use kedge_core::drill::StageError;
use rustix::process::geteuid;

/// Nobody: owns no file, and no process that a child could reach.
pub(crate) const NOBODY: u32 = 65534;
/// How often limits of time and the caller's patience are looked at.
pub(crate) const POLL: Duration = Duration::from_millis(100);
/// A child whose pipes are closed is all but gone; one that stays is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Whether children are run as somebody else.
pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// Said by a caller that does not wait any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    pub(crate) fn say(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_said(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A running child. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub(crate) struct Process(Mutex<Child>);

/// A child's piped ends, of which there are as many as its command asked for.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
}

impl Process {
    /// Starts the command, as nobody and in this group if we are root.
    pub(crate) fn start(command: &mut Command, group: u32) -> Result<(Self, Pipes), StageError> {
        if is_root() {
            command.uid(NOBODY).gid(group);
        }
        let program = command.get_program().to_owned();
        let mut child = command.spawn().map_err(|error| {
            StageError::new(format!("could not start {}: {error}", program.display()))
        })?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        Ok((Self(Mutex::new(child)), Pipes { stdin, stdout, stderr }))
    }

    pub(crate) fn kill(&self) {
        // Fails only for a child that has been waited for.
        let _ = self.with(Child::kill);
    }

    /// The status of a child that is about to end. One that does not is killed.
    pub(crate) fn end(&self) -> Option<ExitStatus> {
        let rounds = ENDS_WITHIN.as_millis() / POLL.as_millis();
        for _ in 0..rounds {
            if let Ok(Some(status)) = self.with(Child::try_wait) {
                return Some(status);
            }
            thread::sleep(POLL);
        }
        self.kill();
        None
    }

    fn with<T>(&self, act: impl FnOnce(&mut Child) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.with(Child::wait);
    }
}
