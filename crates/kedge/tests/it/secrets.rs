//! Secrets stay where they belong: the real program, made to log whatever it can, is led
//! through a backup with a power cut in it, a restore and a deletion, and then its log and
//! everything it keeps are searched.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::site::{Disks, Log, LogFormat, PASSWORD, Site, Start};

/// Lies on both disks of the server.
const MARKER: &str = "canary 4f1d7c02 of the first disk block";
/// Somebody mistypes a password.
const WRONG_PASSWORD: &str = "correct horse battery stapel";

#[test]
fn the_real_program_leaves_no_secret_in_log_or_files() {
    let mut site = Site::with_log(Log { format: LogFormat::Json, filter: "trace" });
    let mut disks = Disks::of(1);
    for disk in &mut disks.0 {
        disk[(2 << 20)..][..MARKER.len()].copy_from_slice(MARKER.as_bytes());
    }
    site.put_disks(&disks);
    site.start(Start::HaltAt("protect.volume_stored#2"));
    site.fail_to_login(WRONG_PASSWORD);
    let backup = site.protect();
    site.wait_until_halted();
    site.kill();
    let secrets = Secrets::of(&site);
    assert_eq!(secrets.found_in(&site), [""; 0], "after the power cut");

    site.start(Start::Plain);
    site.wait_until_available(&backup);
    site.put_disks(&Disks::of_noise(2));
    let restore = site.restore(&backup);
    site.wait_until_restored(&backup, &restore);
    let secrets = Secrets::of(&site);
    assert_eq!(secrets.found_in(&site), [""; 0], "while the program runs");
    site.delete(&backup);
    site.wait_until_deleted(&backup);
    site.stop();
    assert_eq!(secrets.found_in(&site), [""; 0], "in the end");

    assert!(site.has_logged("\"level\":\"TRACE\""), "everything was logged");
    assert_eq!(site.tokens().len(), 2, "one login before the power cut and one after it");
    assert_that_the_search_finds(&secrets, &site);
}

/// Every secret in every form, wherever it lies among other bytes; and those places where
/// a secret has to be.
fn assert_that_the_search_finds(secrets: &Secrets, site: &Site) {
    let leak = site.path("state/leak");
    for (name, needle) in &secrets.needles {
        let mut text = vec![b'x'; 5000];
        text.splice(4095..4095, needle.iter().copied());
        fs::write(&leak, text).unwrap();
        assert!(secrets.names_in(&leak).contains(&name.as_str()), "{name}");
    }
    let found = secrets.found_in(site);
    assert!(found.iter().all(|found| found.ends_with("state/leak")) && !found.is_empty());
    fs::remove_file(leak).unwrap();
    assert!(secrets.names_in(&key_file(site)).contains(&"service key, text"));
    for disk in [site.system_disk(), site.data_disk()] {
        assert!(secrets.names_in(&disk).contains(&"marker, text"));
    }
}

fn key_file(site: &Site) -> PathBuf {
    site.path("state/service.key")
}

/// What must not be found, by name, in the forms in which it would leak.
struct Secrets {
    needles: Vec<(String, Vec<u8>)>,
    /// Whether a needle begins with these two bytes.
    starts: Vec<bool>,
}

impl Secrets {
    fn of(site: &Site) -> Self {
        let key = fs::read_to_string(key_file(site)).unwrap();
        let key_bytes = from_hex(key.trim());
        let kit = site.recovery_kit();
        let mut secrets = Self { needles: Vec::new(), starts: vec![false; 1 << 16] };
        secrets.add("service key", key.trim().as_bytes());
        secrets.add("bytes of the service key", &key_bytes);
        secrets.add("repository password", kit["RESTIC_PASSWORD"].as_bytes());
        secrets.add("password", PASSWORD.as_bytes());
        secrets.add("wrong password", WRONG_PASSWORD.as_bytes());
        secrets.add("marker", MARKER.as_bytes());
        for token in site.tokens() {
            secrets.add("token", token.as_bytes());
        }
        secrets
    }

    fn add(&mut self, name: &str, secret: &[u8]) {
        assert!(secret.len() >= 16, "{name} would be found by chance");
        let hex = secret.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        self.push(format!("{name}, text"), secret.to_vec());
        self.push(format!("{name}, capital hex"), hex.to_uppercase().into_bytes());
        self.push(format!("{name}, hex"), hex.into_bytes());
        let list = format!("{secret:?}");
        let list = list.trim_matches(['[', ']']);
        self.push(format!("{name}, as numbers"), list.as_bytes().to_vec());
        self.push(format!("{name}, as JSON numbers"), list.replace(' ', "").into_bytes());
        for before in 0..3 {
            let standard = base64_amidst(secret, before);
            let for_urls = standard.replace('+', "-").replace('/', "_");
            if for_urls != standard {
                self.push(format!("{name}, base64 for URLs after {before}"), for_urls.into_bytes());
            }
            self.push(format!("{name}, base64 after {before}"), standard.into_bytes());
        }
    }

    fn push(&mut self, name: String, needle: Vec<u8>) {
        self.starts[usize::from(u16::from_be_bytes([needle[0], needle[1]]))] = true;
        self.needles.push((name, needle));
    }

    /// Searches the log and everything else on a machine but its disks and the service key.
    fn found_in(&self, site: &Site) -> Vec<String> {
        let mut found = Vec::new();
        for file in files_below(&site.path("")) {
            let is_disk = file.starts_with(site.path("servers"))
                && !["server.toml", "kedge-state.json"].iter().any(|name| file.ends_with(name));
            if is_disk || file == key_file(site) {
                continue;
            }
            let names = self.names_in(&file);
            found.extend(names.iter().map(|name| format!("{name} in {}", file.display())));
        }
        found
    }

    /// The names of what is found in a file or its path.
    fn names_in(&self, file: &Path) -> Vec<&str> {
        let mut bytes = fs::read(file).unwrap();
        bytes.extend_from_slice(file.as_os_str().as_encoded_bytes());
        let mut names = Vec::new();
        let mut start = 0;
        for (at, byte) in bytes.iter().enumerate() {
            start = start << 8 & 0xff00 | usize::from(*byte);
            if !self.starts[start] || at == 0 {
                continue;
            }
            let here = |needle: &[u8]| bytes[at - 1..].starts_with(needle);
            let found = self.needles.iter().filter(|(_, needle)| here(needle));
            names.extend(found.map(|(name, _)| name.as_str()));
        }
        names
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// The characters that depend on the secret alone when it is encoded with so many bytes
/// before it and any after it.
fn base64_amidst(secret: &[u8], before: usize) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let first_bit = (before * 8).next_multiple_of(6);
    let bit = |at: usize| usize::from(secret[at / 8 - before] >> (7 - at % 8) & 1);
    let digit = |at: usize| (at..at + 6).fold(0, |value, at| value << 1 | bit(at));
    let end = (before + secret.len()) * 8;
    let whole = (first_bit..=end - 6).step_by(6);
    whole.map(|at| char::from(DIGITS[digit(at)])).collect()
}

#[test]
fn base64_is_recognised_wherever_it_begins() {
    assert_eq!(base64_amidst(b"Man", 0), "TWFu");
    // As in eE1hbnk= and eHlNYW4=, which are "xMany" and "xyMan".
    assert_eq!(base64_amidst(b"Man", 1), "1hb");
    assert_eq!(base64_amidst(b"Man", 2), "NYW");
}
