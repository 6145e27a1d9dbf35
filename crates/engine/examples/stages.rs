//! What each stage of a backup costs on this machine at the least: how many bytes it must
//! handle and how fast a core handles them while the others are as busy.
//!
//! `stages DISK [CHANGED]` takes the chunks of DISK that are not all zero, and those of
//! CHANGED that differ from DISK. Each stage runs over all of them on as many threads as
//! there are processors; seconds are the sum over the threads. Disks should lie in the page
//! cache.
#![expect(clippy::disallowed_methods, reason = "a program of its own, with clock and arguments")]
#![expect(clippy::print_stdout, reason = "it speaks to a terminal")]

use std::{
    env,
    error::Error,
    fs::File,
    hint::black_box,
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

use aes::{
    Aes256,
    cipher::{KeyIvInit, StreamCipher},
};
use poly1305::{
    Block, Poly1305,
    universal_hash::{KeyInit, UniversalHash},
};
use sha2::{Digest, Sha256};
use zstd::bulk::{Compressor, Decompressor};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CHUNK_BYTES: usize = 512 << 10;
/// As the engine seals: cipher and tag take turns on pieces that fit the nearest cache.
const PIECE_BYTES: usize = 16 << 10;
const LEVELS: [i32; 3] = [1, 2, 3];

fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let disk = File::open(arguments.first().ok_or("stages DISK [CHANGED]")?)?;
    let chunks = chunks_where(&disk, |chunk, _| Ok(chunk.iter().any(|byte| *byte != 0)))?;
    report("chunks of the disk that are not all zero", &disk, &chunks)?;
    if let Some(path) = arguments.get(1) {
        let changed = File::open(path)?;
        let mut before = vec![0; CHUNK_BYTES];
        let chunks = chunks_where(&changed, |chunk, offset| {
            disk.read_exact_at(&mut before[..chunk.len()], offset)?;
            Ok(before[..chunk.len()] != *chunk)
        })?;
        report("chunks that changed", &changed, &chunks)?;
    }
    Ok(())
}

/// Offsets of the whole chunks for which `is_wanted` says so.
fn chunks_where(
    disk: &File,
    mut is_wanted: impl FnMut(&[u8], u64) -> Outcome<bool>,
) -> Outcome<Vec<u64>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut wanted = Vec::new();
    for offset in (0..disk.metadata()?.len() / CHUNK_BYTES as u64).map(|n| n * CHUNK_BYTES as u64) {
        disk.read_exact_at(&mut chunk, offset)?;
        if is_wanted(&chunk, offset)? {
            wanted.push(offset);
        }
    }
    Ok(wanted)
}

/// Seconds and bytes by stage.
#[derive(Default)]
struct Costs(Vec<(String, Duration, usize)>);

impl Costs {
    fn time<T>(&mut self, stage: &str, bytes: usize, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = black_box(work());
        self.add(stage, started.elapsed(), bytes);
        done
    }

    fn add(&mut self, stage: &str, duration: Duration, bytes: usize) {
        match self.0.iter_mut().find(|(other, ..)| other == stage) {
            Some((_, sum, total)) => (*sum, *total) = (*sum + duration, *total + bytes),
            None => self.0.push((stage.to_owned(), duration, bytes)),
        }
    }
}

fn report(what: &str, disk: &File, chunks: &[u64]) -> Outcome<()> {
    let threads = thread::available_parallelism()?.get();
    println!("\n{what}: {} of {CHUNK_BYTES} bytes, {threads} threads\n", chunks.len());
    println!("| stage | MB | CPU s | GB/s per core |\n|---|---|---|---|");
    let mut sum = Costs::default();
    thread::scope(|scope| {
        let part = |number: usize| chunks.iter().copied().skip(number).step_by(threads);
        let spawn = |number| scope.spawn(move || measure(disk, part(number)));
        let all: Vec<_> = (0..threads).map(spawn).collect();
        for costs in all {
            for (stage, duration, bytes) in costs.join().map_err(|_| "a thread panicked")??.0 {
                sum.add(&stage, duration, bytes);
            }
        }
        Outcome::Ok(())
    })?;
    for (stage, duration, bytes) in &sum.0 {
        let (mb, seconds) = (megabytes(*bytes), duration.as_secs_f64());
        println!("| {stage} | {mb:.0} | {seconds:.2} | {:.2} |", mb / 1000.0 / seconds);
    }
    println!();
    for level in LEVELS {
        let of_level = format!(", level {level}");
        let seconds = |with_opening: bool| -> f64 {
            let counts = |stage: &str| {
                let is_of_level = stage.ends_with(&of_level) || !stage.contains(", level ");
                is_of_level && (with_opening || !stage.starts_with("open"))
            };
            let counted = sum.0.iter().filter(|(stage, ..)| counts(stage));
            counted.map(|(_, duration, _)| duration.as_secs_f64()).sum()
        };
        let (all, trusting) = (seconds(true), seconds(false));
        println!("level {level}: {all:.2} CPU s, {trusting:.2} without opening again");
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for a person")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

fn measure(disk: &File, offsets: impl Iterator<Item = u64>) -> Outcome<Costs> {
    let mut costs = Costs::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut plain = Vec::with_capacity(CHUNK_BYTES);
    let mut coders = Vec::new();
    for level in LEVELS {
        coders.push((level, Compressor::new(level)?));
    }
    let mut decompressor = Decompressor::new()?;
    for offset in offsets {
        costs.time("read", CHUNK_BYTES, || disk.read_exact_at(&mut chunk, offset))?;
        costs.time("SHA-256 of chunks", CHUNK_BYTES, || Sha256::digest(&chunk));
        for (level, compressor) in &mut coders {
            let stage = |name: &str| format!("{name}, level {level}");
            let compressed =
                costs.time(&stage("zstd"), CHUNK_BYTES, || compressor.compress(&chunk))?;
            let mut stored =
                if compressed.len() < chunk.len() { compressed } else { chunk.clone() };
            let bytes = stored.len();
            costs.time(&stage("seal"), bytes, || crypt(&mut stored, Order::CipherFirst));
            costs.time(&stage("SHA-256 of packs"), bytes, || Sha256::digest(&stored));
            costs.time(&stage("open: decrypt"), bytes, || crypt(&mut stored, Order::TagFirst));
            if bytes < chunk.len() {
                plain.clear();
                costs.time(&stage("open: decompress"), CHUNK_BYTES, || {
                    decompressor.decompress_to_buffer(&stored, &mut plain)
                })?;
                if plain != chunk {
                    return Err("a chunk does not come back".into());
                }
            }
        }
    }
    Ok(costs)
}

#[derive(Clone, Copy)]
enum Order {
    CipherFirst,
    TagFirst,
}

/// AES-256-CTR and Poly1305 under fixed keys.
fn crypt(bytes: &mut [u8], order: Order) -> [u8; 16] {
    let mut cipher = ctr::Ctr128BE::<Aes256>::new(&[1; 32].into(), &[2; 16].into());
    let mut tag = Poly1305::new(&[3; 32].into());
    for piece in bytes.chunks_mut(PIECE_BYTES) {
        if matches!(order, Order::CipherFirst) {
            cipher.apply_keystream(piece);
        }
        let (blocks, _) = Block::slice_as_chunks(piece);
        tag.update(blocks);
        if matches!(order, Order::TagFirst) {
            cipher.apply_keystream(piece);
        }
    }
    tag.finalize().into()
}
