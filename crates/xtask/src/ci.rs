//! The one command that runs everything CI runs.
//!
//! Steps stand in order of cost, so that the cheapest complaint comes first; the first
//! failure ends the run. Dependencies come from the committed lock file only.

use std::fs;
use std::time::Instant;

use crate::process::{program, run};
use crate::{During, Failure, figures, lab, licences, longest, needs, tree};

struct Step {
    name: &'static str,
    run: fn() -> Result<(), Failure>,
}

const CI: [Step; 8] = [
    Step { name: "what the tests need", run: needs::check },
    Step { name: "format", run: format },
    Step { name: "licences", run: licences::check },
    Step { name: "clippy", run: clippy },
    Step { name: "tests", run: test },
    Step { name: "documentation", run: documentation },
    Step { name: "longest files (for information)", run: longest::print },
    Step { name: "reliability figures", run: figures::print },
];

const LONG: [Step; 3] = [
    Step { name: "tests, long form", run: test_long },
    Step { name: "demo", run: demo },
    Step { name: "reliability figures, long form", run: figures::print },
];

/// Everything a change must pass.
pub(crate) fn ci() -> Result<(), Failure> {
    run_steps(&CI)
}

/// All of [`ci`], then what takes too long to run on every change.
pub(crate) fn nightly() -> Result<(), Failure> {
    run_steps(&CI)?;
    run_steps(&LONG)
}

/// Rewrites the generated documents. The tests that compare them know how: they are named
/// `docs_…` and write instead of comparing when `KEDGE_BLESS` is set.
pub(crate) fn generate() -> Result<(), Failure> {
    let arguments =
        ["test", "--locked", "--package", "kedge-core", "--package", "kedge-api", "docs_"];
    run(program("cargo", &arguments).env("KEDGE_BLESS", "1"))
}

#[expect(clippy::disallowed_methods, reason = "durations for a person, not for a decision")]
fn run_steps(steps: &[Step]) -> Result<(), Failure> {
    for (index, step) in steps.iter().enumerate() {
        println!("\n== {}/{}: {}", index + 1, steps.len(), step.name);
        let started_at = Instant::now();
        (step.run)().map_err(|failure| Failure(format!("step \"{}\": {failure}", step.name)))?;
        println!("== {}: passed in {} s", step.name, started_at.elapsed().as_secs());
    }
    Ok(())
}

fn format() -> Result<(), Failure> {
    run(&mut program("cargo", &["fmt", "--all", "--check"]))
}

fn clippy() -> Result<(), Failure> {
    let arguments = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run(&mut program("cargo", &arguments))
}

fn test() -> Result<(), Failure> {
    figures::clear()?;
    run(&mut program("cargo", &["test", "--locked", "--workspace"]))
}

fn documentation() -> Result<(), Failure> {
    let arguments = ["doc", "--locked", "--workspace", "--no-deps"];
    run(program("cargo", &arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

/// More random cases, more kills, larger disks, a real object store: tests read
/// `KEDGE_TEST_LONG`.
fn test_long() -> Result<(), Failure> {
    figures::clear()?;
    needs::check_lab()?;
    let _lab = lab::Lab::start()?;
    let arguments = ["test", "--locked", "--workspace", "--release"];
    run(program("cargo", &arguments).env("KEDGE_TEST_LONG", "1"))
}

/// The README's first command, in a folder of its own.
fn demo() -> Result<(), Failure> {
    let folder = tree::root().join("target/nightly-demo");
    if folder.exists() {
        fs::remove_dir_all(&folder).during(folder.display())?;
    }
    let arguments = ["run", "--locked", "--release", "--", "demo", "--exit", "--state-dir"];
    run(program("cargo", &arguments).arg(folder))
}
