//! The object store of the nightly run: a one-node Ceph with its S3 gateway.
//!
//! Invariant: it serves only while it is being held; it ends with the run, however the run
//! ends, because its input does.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use crate::process::program;
use crate::{During, Failure};

/// The running store.
#[derive(Debug)]
pub(crate) struct Lab(Child);

impl Lab {
    /// Starts it and waits until it serves. Where it is stands in `target/lab/s3`.
    pub(crate) fn start() -> Result<Self, Failure> {
        let mut command = program("lab/ceph/start.sh", &[]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut lab = Self(child.during("lab/ceph/start.sh")?);
        let mut line = String::new();
        if let Some(output) = lab.0.stdout.take() {
            BufReader::new(output).read_line(&mut line).during("lab/ceph/start.sh")?;
        }
        match line.trim() {
            "ready" => Ok(lab),
            _ => Err(Failure("Ceph did not start; target/lab/log says why".to_owned())),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Whether it ended well changes nothing any more.
        let _ = self.0.wait();
    }
}
