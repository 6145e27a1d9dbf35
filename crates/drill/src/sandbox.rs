//! What the inspecting child gives up before it sees the first byte of a disk.
//!
//! It keeps its standard input and output. A disk that takes it over can compute, for a
//! while, and lie about itself.

use std::fs;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::set_no_new_privs;

/// Far more than the caches and the tables of a healthy disk of any size need, beside what the
/// process has mapped when it begins: an allocator reserves addresses for later, and some for
/// itself that it cannot take from these.
const MEMORY_BYTES_MAX: u64 = 1 << 30;
/// Millions of files are walked in less.
const CPU_SECS_MAX: u64 = 120;
/// Files that are open stay so; none can be opened, not even in place of one that is closed.
const FILES_MAX: u64 = 0;

/// Enters the sandbox for good. To be called while there is one thread only.
pub fn enter() -> Result<(), String> {
    set_no_new_privs(true).map_err(|error| refused("new privileges", error))?;
    limit("memory", Resource::As, mapped_bytes()?.saturating_add(MEMORY_BYTES_MAX))?;
    limit("processor time", Resource::Cpu, CPU_SECS_MAX)?;
    limit("files", Resource::Nofile, FILES_MAX)?;
    limit("file size", Resource::Fsize, 0)?;
    limit("core files", Resource::Core, 0)?;
    limit("processes", Resource::Nproc, 0)
}

/// The size of the process in addresses.
fn mapped_bytes() -> Result<u64, String> {
    let unknown = |why: String| format!("could not find out how much memory is mapped: {why}");
    let status =
        fs::read_to_string("/proc/self/status").map_err(|error| unknown(error.to_string()))?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kibibytes = size.and_then(|size| size.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.map(|size| size << 10).ok_or_else(|| unknown("no size is told".to_owned()))
}

fn limit(what: &str, resource: Resource, most: u64) -> Result<(), String> {
    let both = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(resource, both).map_err(|error| refused(what, error))
}

fn refused(what: &str, error: Errno) -> String {
    format!("could not limit {what}: {error}")
}
