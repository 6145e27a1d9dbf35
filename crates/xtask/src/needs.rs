//! What the tests need besides Rust: programs that judge what Kedge wrote.

use std::fs;
use std::path::Path;

use crate::process::{find_tool, output, program, run};
use crate::{During, Failure, tree};

/// A program and the Debian package that brings it.
struct Need {
    program: &'static str,
    package: &'static str,
}

const NEEDS: [Need; 7] = [
    // C sources of SQLite, zstd and ring are compiled in.
    Need { program: "gcc", package: "gcc" },
    // Judges repositories.
    Need { program: "restic", package: "restic" },
    // Makes and compares qcow2 images.
    Need { program: "qemu-img", package: "qemu-utils" },
    // Boots what is restored.
    Need { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    // Judges the demo's file system, and makes some.
    Need { program: "e2fsck", package: "e2fsprogs" },
    Need { program: "mke2fs", package: "e2fsprogs" },
    // Runs moto.
    Need { program: "python3", package: "python3-venv" },
];

/// A stand-in for S3, and where the tests find it: a virtual environment of Python, so
/// that nothing of the machine's changes.
const MOTO: &str = "moto[s3,server]==5.2.*";
const MOTO_DIR: &str = "target/moto";

/// Installs what is missing when that is possible, else names it.
pub(crate) fn check() -> Result<(), Failure> {
    // Of one source's versions a package may push out another's of its family, which then
    // is missing.
    for _ in 0..2 {
        let missing = missing_packages();
        if !missing.is_empty() {
            require(&missing)?;
        }
    }
    match missing_packages().as_slice() {
        [] => install_moto(),
        still => Err(Failure(format!("still missing after installing: {}", still.join(" ")))),
    }
}

/// What the nightly run needs besides: a real object store.
pub(crate) fn check_lab() -> Result<(), Failure> {
    let tools = ["ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "radosgw", "curl"];
    if tools.iter().all(|tool| find_tool(tool).is_some()) {
        return Ok(());
    }
    require(&["ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common", "radosgw", "curl"])
}

fn require(missing: &[&str]) -> Result<(), Failure> {
    if !may_install()? {
        let names = missing.join(" ");
        return Err(Failure(format!("the tests need these Debian packages: {names}")));
    }
    install(missing)
}

fn missing_packages() -> Vec<&'static str> {
    let missing = |need: &&Need| find_tool(need.program).is_none();
    let mut packages: Vec<_> = NEEDS.iter().filter(missing).map(|need| need.package).collect();
    packages.dedup();
    packages
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
    run(program("apt-get", &arguments).args(packages).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// A folder without the mark at the end was left by an installation that did not finish.
fn install_moto() -> Result<(), Failure> {
    let folder = tree::root().join(MOTO_DIR);
    let mark = folder.join("installed");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == MOTO) {
        return Ok(());
    }
    println!("installing {MOTO} into {MOTO_DIR}");
    if folder.exists() {
        fs::remove_dir_all(&folder).during(folder.display())?;
    }
    let made = run(&mut program("python3", &["-m", "venv", MOTO_DIR]));
    made.map_err(|Failure(text)| Failure(format!("{text}: is python3-venv installed?")))?;
    let python = folder.join("bin/python");
    run(&mut program(python, &["-m", "pip", "install", "--quiet", MOTO]))?;
    fs::write(&mark, MOTO).during(mark.display())
}
