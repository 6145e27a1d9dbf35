//! Measures the index at sizes from 10^5 to 10^7 blobs. Each measurement has a process of
//! its own, so that the peak of resident memory is that of one thing.
//!
//! `cargo run --release -p kedge-engine --example index_scale -- DIRECTORY [BLOBS…]`
//!
//! DIRECTORY takes some 60 bytes per blob for the repository and 100 for the cache.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::{
    env,
    error::Error,
    fs,
    io::{Write, stdout},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Instant,
};

use kedge_engine::{
    Backend, Closed, CreateOptions, Indexed, KdfCost, LocalBackend, Open, Password, Repository,
    Timestamp,
    layer::{look_up_made_up, store_made_up_index},
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const SIZES: [u64; 3] = [100_000, 1_000_000, 10_000_000];
const LOOK_UPS: u64 = 200_000;

fn main() -> Outcome {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--make", dir, blobs] => make(Path::new(dir), blobs.parse()?),
        ["--load", dir, blobs, title] => load(Path::new(dir), blobs.parse()?, title),
        [dir] => measure(Path::new(dir), &SIZES),
        [dir, ..] => {
            let sizes = arguments[1..].iter().map(|size| size.parse());
            measure(Path::new(dir), &sizes.collect::<Result<Vec<_>, _>>()?)
        }
        [] => Err("say in which directory there is room".into()),
    }
}

fn measure(dir: &Path, sizes: &[u64]) -> Outcome {
    fs::create_dir_all(dir)?;
    say(&format!(
        "{:>10} {:>14} {:>8} {:>9} {:>10} {:>9} {:>8} {:>10} {:>10}",
        "blobs",
        "how",
        "ready s",
        "peak MiB",
        "index MiB",
        "files MiB",
        "segments",
        "hits/s",
        "misses/s"
    ))?;
    for blobs in sizes {
        let (dir, blobs) = (dir.join(blobs.to_string()), blobs.to_string());
        let text = dir.to_str().ok_or("the directory's name is no text")?;
        run(&["--make", text, &blobs])?;
        run(&["--load", text, &blobs, "memory"])?;
        run(&["--load", text, &blobs, "no cache yet"])?;
        run(&["--load", text, &blobs, "with cache"])?;
        fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

fn run(arguments: &[&str]) -> Outcome {
    let status = Command::new(env::current_exe()?).args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(format!("{arguments:?}: {status}").into()) }
}

fn backend(dir: &Path) -> Arc<dyn Backend> {
    Arc::new(LocalBackend::new(dir.join("repository")))
}

fn make(dir: &Path, blobs: u64) -> Outcome {
    fs::create_dir(dir)?;
    let options = CreateOptions {
        password: &Password::new("measured"),
        kdf: KdfCost::CHEAP,
        created_at: Timestamp::from_micros(0),
        access: None,
    };
    let repository: Repository<Open> = Repository::<Closed>::create(backend(dir), &options)?;
    Ok(store_made_up_index(&repository, blobs)?)
}

fn load(dir: &Path, blobs: u64, title: &str) -> Outcome {
    let open = Repository::<Closed>::open(backend(dir), &Password::new("measured"))?;
    let started_at = Instant::now();
    let repository: Repository<Indexed> = match title {
        "memory" => open.load_index()?,
        _ => open.load_index_cached(&dir.join("cache"))?,
    };
    let ready = started_at.elapsed().as_secs_f64();
    let report = repository.index_report();
    if report.blobs != blobs {
        return Err(format!("{} blobs instead of {blobs}", report.blobs).into());
    }
    // A prime far from powers of two visits numbers in no order.
    let scattered = |from: u64| (0..LOOK_UPS).map(move |n| from + n * 7_368_787 % blobs);
    let hits = time_look_ups(&repository, scattered(0), LOOK_UPS)?;
    let misses = time_look_ups(&repository, scattered(blobs), 0)?;
    let mib = |bytes: u64| bytes >> 20;
    say(&format!(
        "{blobs:>10} {title:>14} {ready:>8.2} {:>9} {:>10.1} {:>9} {:>8} {hits:>10.0} {misses:>10.0}",
        peak_kib()? >> 10,
        f64::from(u32::try_from(report.memory_bytes >> 10)?) / 1024.0,
        mib(report.file_bytes),
        report.segments,
    ))
}

/// Look-ups per second.
fn time_look_ups(
    repository: &Repository<Indexed>,
    numbers: impl Iterator<Item = u64>,
    expected: u64,
) -> Outcome<f64> {
    let started_at = Instant::now();
    let found = look_up_made_up(repository, numbers)?;
    if found != expected {
        return Err(format!("{found} blobs found instead of {expected}").into());
    }
    Ok(f64::from(u32::try_from(LOOK_UPS)?) / started_at.elapsed().as_secs_f64())
}

/// The most memory this process ever had resident.
fn peak_kib() -> Outcome<u64> {
    let status = fs::read_to_string(PathBuf::from("/proc/self/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let field = line.and_then(|line| line.split_whitespace().next());
    Ok(field.ok_or("no VmHWM in /proc/self/status")?.parse()?)
}

fn say(line: &str) -> Outcome {
    Ok(writeln!(stdout(), "{line}")?)
}
