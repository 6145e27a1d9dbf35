//! Development tasks, called as `cargo xtask TASK`.
//!
//! Invariant: continuous integration runs `cargo xtask ci` and nothing besides, so what
//! passes here passes there. The crate depends on little, because everybody waits for it
//! to build before the first check starts.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool for a terminal")]

use std::process::ExitCode;

mod ci;
mod disk_image;
mod figures;
mod lab;
mod licences;
mod longest;
mod needs;
mod oracle;
mod process;
mod tree;

#[cfg(test)]
mod repository;

const USAGE: &str = "\
usage: cargo xtask TASK

  ci          everything continuous integration runs, cheapest first
  needs       installs what the tests need, the first step of ci
  nightly     ci, then the tests in their long form and the demo
  oracle      verdicts of random cases against the table: [--cases N] [--seed S]
  gen         rewrites docs/error-codes.md and docs/openapi.json from the code
  disk-image  rewrites the demo's system disk (needs e2fsprogs and zstd)
";

/// Why a task stopped, as one line for the person at the terminal.
#[derive(Debug)]
struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what was being done when the outside said no.
trait During<T> {
    fn during(self, what: impl std::fmt::Display) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl std::fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("{what}: {error}")))
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((task, options)) = arguments.split_first() else { return usage() };
    if task != "oracle" && !options.is_empty() {
        return usage();
    }
    let result = match task.as_str() {
        "ci" => ci::ci(),
        "needs" => needs::check(),
        "nightly" => ci::nightly(),
        "gen" => ci::generate(),
        "oracle" => oracle::run_cases(options),
        "disk-image" => disk_image::generate(),
        _ => return usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask {task}: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprint!("{USAGE}");
    ExitCode::from(2)
}
