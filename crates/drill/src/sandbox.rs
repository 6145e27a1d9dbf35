//! What the inspecting child gives up before it sees the first byte of a disk.
//!
//! It keeps its standard input and output. A disk that takes it over can compute, for a
//! while, and lie about itself.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::set_no_new_privs;

/// Far more than the caches and the tables of a healthy disk of any size need.
const MEMORY_BYTES_MAX: u64 = 1 << 30;
/// Millions of files are walked in less.
const CPU_SECS_MAX: u64 = 120;
/// Files that are open stay so; none can be opened, not even in place of one that is closed.
const FILES_MAX: u64 = 0;

/// Enters the sandbox for good. To be called while there is one thread only.
pub fn enter() -> Result<(), String> {
    set_no_new_privs(true).map_err(|error| refused("new privileges", error))?;
    limit("memory", Resource::As, MEMORY_BYTES_MAX)?;
    limit("processor time", Resource::Cpu, CPU_SECS_MAX)?;
    limit("files", Resource::Nofile, FILES_MAX)?;
    limit("file size", Resource::Fsize, 0)?;
    limit("core files", Resource::Core, 0)?;
    limit("processes", Resource::Nproc, 0)
}

fn limit(what: &str, resource: Resource, most: u64) -> Result<(), String> {
    let both = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(resource, both).map_err(|error| refused(what, error))
}

fn refused(what: &str, error: Errno) -> String {
    format!("could not limit {what}: {error}")
}
