//! Where tests of crashes stop the program: at a named point of a job, for as long as a
//! file is there. The test then knows where the job is, and kills the process, pauses it
//! or changes the world before it lets it go on.
//!
//! `KEDGE_TEST_HALT_AT` names the point (`restore.marked`: whenever a job comes by;
//! `restore.marked#2`: only the second time), `KEDGE_TEST_HALT_FILE` the file: halting
//! writes the point's name into it, removing it lets the job go on.
//!
//! Invariant: without both variables nothing ever halts.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kedge_service::Points;

const AT: &str = "KEDGE_TEST_HALT_AT";
const FILE: &str = "KEDGE_TEST_HALT_FILE";

/// How often the file is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Points that halt as the environment says.
pub(crate) fn points() -> Points {
    let (Some(at), Some(file)) = (std::env::var_os(AT), std::env::var_os(FILE)) else {
        return Points::default();
    };
    let halt = Halt::new(&at.to_string_lossy(), file.into());
    tracing::warn!("{AT} is set: jobs halt at {}", halt.point);
    Points::heard_by(move |point| halt.pass(point))
}

#[derive(Debug)]
struct Halt {
    point: String,
    /// Which of the passings halts; every one when absent.
    passing: Option<u64>,
    file: PathBuf,
    passed: AtomicU64,
}

impl Halt {
    fn new(at: &str, file: PathBuf) -> Self {
        let (point, passing) = match at.split_once('#') {
            Some((point, number)) => (point, number.parse().ok()),
            None => (at, None),
        };
        Self { point: point.to_owned(), passing, file, passed: AtomicU64::new(0) }
    }

    fn pass(&self, point: &str) {
        if !self.halts(point) {
            return;
        }
        match self.announce() {
            // Heartbeats and requests go on meanwhile.
            Ok(()) => tokio::task::block_in_place(|| {
                while self.file.exists() {
                    std::thread::sleep(LOOK_EVERY);
                }
            }),
            Err(error) => tracing::error!("cannot halt at {point}: {error}"),
        }
    }

    fn halts(&self, point: &str) -> bool {
        if point != self.point {
            return false;
        }
        let passing = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
        self.passing.is_none_or(|wanted| wanted == passing)
    }

    fn announce(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.file)?;
        writeln!(file, "{}", self.point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_point_halts_and_a_number_names_one_passing() {
        let every = Halt::new("a.b", PathBuf::new());
        assert_eq!(["a.b", "a.c", "a.b"].map(|point| every.halts(point)), [true, false, true]);
        let second = Halt::new("a.b#2", PathBuf::new());
        assert_eq!(["a.b", "a.b", "a.b"].map(|point| second.halts(point)), [false, true, false]);
    }
}
