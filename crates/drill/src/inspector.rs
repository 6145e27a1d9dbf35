//! Has a disk inspected by a child that can do nothing else.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use kedge_core::drill::{DiskReport, StageError};
use kedge_core::ports::{CloudErrorKind, DiskReader};

use crate::Options;
use crate::process::{Cancelled, NOBODY, POLL, Process};
use crate::protocol::{Ended, answer};
use crate::stopwatch::Stopwatch;
use crate::watched::Watched;

/// Inspects a disk; returns no later than the child's time is over.
pub(crate) fn inspect(
    options: &Options,
    disk: Arc<dyn DiskReader>,
    cancelled: &Cancelled,
) -> Result<DiskReport, StageError> {
    let mut command = Command::new(&options.inspector.program);
    command.args(&options.inspector.arguments).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let (process, pipes) = Process::start(&mut command, NOBODY)?;
    let (Some(stdin), Some(stdout)) = (pipes.stdin, pipes.stdout) else {
        return Err(StageError::new("the inspector has no pipes"));
    };
    let disk = Watched::new(disk);
    let is_expired = AtomicBool::new(false);
    let ended = thread::scope(|scope| {
        let (done, is_done) = channel();
        let (process, is_expired) = (&process, &is_expired);
        scope.spawn(move || watch(process, &is_done, options.inspect_time, cancelled, is_expired));
        let ended = answer(stdout, stdin, &disk);
        drop(done);
        ended
    });
    if is_expired.load(Ordering::Relaxed) {
        let secs = options.inspect_time.as_secs();
        return Err(StageError::new(format!("inspecting was not done within {secs} s")));
    }
    // What a later try may read, says nothing of the backup.
    match disk.failure() {
        Some(failure) if failure.kind == CloudErrorKind::Retryable => {
            Err(StageError::new(format!("the disk could not be read: {failure}")))
        }
        _ => report(ended, &process),
    }
}

/// Kills the child when its time is over or nobody waits for it.
fn watch(
    process: &Process,
    is_done: &Receiver<()>,
    limit: Duration,
    cancelled: &Cancelled,
    is_expired: &AtomicBool,
) {
    let stopwatch = Stopwatch::start();
    while is_done.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
        if stopwatch.elapsed() > limit || cancelled.is_said() {
            is_expired.store(true, Ordering::Relaxed);
            process.kill();
            return;
        }
    }
}

/// A child that did not come back was undone by the disk, or by a limit of ours: that says
/// nothing of the backup.
fn report(ended: Ended, process: &Process) -> Result<DiskReport, StageError> {
    match ended {
        Ended::Reported(report) => Ok(report),
        Ended::Refused(why) => Err(StageError::new(format!("the inspector refused: {why}"))),
        Ended::Violated(what) => Err(StageError::new(format!("the inspector misbehaved: {what}"))),
        Ended::Closed { requests } => {
            let how = match process.end() {
                Some(status) => status.to_string(),
                None => "it closed its pipes".to_owned(),
            };
            if requests == 0 {
                return Err(StageError::new(format!("the inspector did not begin: {how}")));
            }
            Err(StageError::new(format!("the inspector died at work: {how}")))
        }
    }
}
