//! The oracle with as many cases as one likes, from any seed on.

use crate::process::{program, run};
use crate::{Failure, figures};

/// `--cases N --seed S`, either left out.
pub(crate) fn run_cases(options: &[String]) -> Result<(), Failure> {
    let mut cases: Option<u64> = None;
    let mut seed: Option<u64> = None;
    for option in options.chunks(2) {
        let (place, value) = match option {
            [name, value] if name == "--cases" => (&mut cases, value),
            [name, value] if name == "--seed" => (&mut seed, value),
            _ => return Err(Failure("expected --cases N and --seed S".into())),
        };
        let number = value.parse().map_err(|_| Failure(format!("{value}: expected a number")))?;
        *place = Some(number);
    }
    figures::clear()?;
    let arguments = [
        "test",
        "--locked",
        "--release",
        "--package",
        "kedge-testkit",
        "--test",
        "it",
        "--",
        "fresh",
    ];
    let mut command = program("cargo", &arguments);
    if let Some(cases) = cases {
        command.env("KEDGE_ORACLE_CASES", cases.to_string());
    }
    if let Some(seed) = seed {
        command.env("KEDGE_ORACLE_SEED", seed.to_string());
    }
    run(&mut command)?;
    figures::print()
}
