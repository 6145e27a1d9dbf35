//! What the tests need besides Rust: programs that judge what Kedge wrote.

use std::path::Path;

use crate::Failure;
use crate::process::{find_tool, output, program, run};

/// A program and the Debian package that brings it.
struct Need {
    program: &'static str,
    package: &'static str,
}

const NEEDS: [Need; 4] = [
    // C sources of SQLite, zstd and ring are compiled in.
    Need { program: "gcc", package: "gcc" },
    // Judges repositories.
    Need { program: "restic", package: "restic" },
    // Makes and compares qcow2 images.
    Need { program: "qemu-img", package: "qemu-utils" },
    // Judges the demo's file system.
    Need { program: "e2fsck", package: "e2fsprogs" },
];

/// Installs what is missing when that is possible, else names it.
pub(crate) fn check() -> Result<(), Failure> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    if !may_install()? {
        let names = missing.join(" ");
        return Err(Failure(format!("the tests need these Debian packages: {names}")));
    }
    install(&missing)
}

fn missing_packages() -> Vec<&'static str> {
    let missing = |need: &&Need| find_tool(need.program).is_none();
    NEEDS.iter().filter(missing).map(|need| need.package).collect()
}

/// Only root on Debian: nobody else's machine is changed.
fn may_install() -> Result<bool, Failure> {
    let is_debian = Path::new("/etc/debian_version").exists();
    Ok(is_debian && output(&mut program("id", &["-u"]))?.trim() == "0")
}

fn install(packages: &[&str]) -> Result<(), Failure> {
    println!("installing {}", packages.join(" "));
    run(&mut program("apt-get", &["update"]))?;
    let arguments = ["install", "--yes", "--no-install-recommends"];
    run(program("apt-get", &arguments).args(packages).env("DEBIAN_FRONTEND", "noninteractive"))?;
    match missing_packages().as_slice() {
        [] => Ok(()),
        still => Err(Failure(format!("still missing after installing: {}", still.join(" ")))),
    }
}
