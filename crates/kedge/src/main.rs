//! The program `kedge`: reads configuration, wires the parts, passes signals on. What it
//! does is done in the other crates.
//!
//! Invariant: this crate alone reads the clock, makes random ids and touches the process
//! (its umask, its signals, its exit code).

mod arguments;
mod config;
mod demo;
mod failure;
mod halt;
mod node;
mod operator;
mod outside;
mod places;
mod private;
mod signals;
mod telemetry;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::{Arguments, Command, ConfigVerb, UserVerb};
use crate::failure::{Failure, OrFail as _};
use crate::operator::Found;

/// What is allocated on one thread is often freed on another; the C library's own gives such
/// memory back late or never (ADR 9).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    private::make_everything_private();
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(Found::Good) => ExitCode::SUCCESS,
        Ok(Found::Problems) => ExitCode::FAILURE,
        Err(failure) => {
            // Without anyone to tell, the exit code still tells it.
            let _ = writeln!(std::io::stderr(), "kedge: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Usage errors end in `Arguments::parse`, with exit code 2.
fn run(command: Command) -> Result<Found, Failure> {
    if matches!(command, Command::InspectDisk) {
        // Before there are threads: the sandbox lets none be made.
        kedge_drill::inspect_stdio().map_err(Failure::new)?;
        return Ok(Found::Good);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .or_fail("starting the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Serve(of) => node::serve(&of.config).await?,
            Command::Demo(options) => demo::run(options).await?,
            Command::InspectDisk => {}
            Command::Evidence { verb } => return operator::evidence::run(verb).await,
            Command::Config { verb: ConfigVerb::Check(of) } => operator::check(&of.config).await?,
            Command::User { verb: UserVerb::Hash } => operator::hash_password()?,
            Command::Repo { verb } => return operator::repo::run(verb).await,
            Command::Key { verb } => return operator::key::run(verb).await,
        }
        Ok(Found::Good)
    })
}
