//! Makes the demo's system disk: a small real ext4 file system, and beside it the places
//! where the demo may change it without knowing ext4.
//!
//! Invariant: the same source gives the same bytes. Identifiers and times are fixed, files
//! go in one by one in a fixed order, and the features are named here rather than taken
//! from the machine's configuration.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::process::{output, program, run, tool};
use crate::{During, Failure, tree};

/// The compressed image, relative to the root of the repository.
pub(crate) const IMAGE: &str = "crates/kedge/assets/system-disk.ext4.zst";
/// What is where in it.
pub(crate) const DESCRIPTION: &str = "crates/kedge/assets/system-disk.json";

const IMAGE_BYTES: u64 = 64 << 20;
const BLOCK_BYTES: usize = 4096;
const DATA_FILE: &str = "/var/lib/demo/data.bin";
const DATA_BLOCKS: usize = 2048;
/// 2026-01-01 00:00:00 UTC, the time on every file.
const FIXED_TIME_SECS: &str = "1767225600";
const FILE_SYSTEM_ID: &str = "6b656467-6500-4000-8000-000000000001";
const HASH_SEED: &str = "6b656467-6500-4000-8000-000000000002";
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
    flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Stands in for the machine's `mke2fs.conf`; everything is asked for by option.
const SETTINGS: &str =
    "[fs_types]\n ext4 = {\n  blocksize = 4096\n }\n small = {\n  blocksize = 4096\n }\n";

/// Read by the demo: its changes go to `offsets`, which are the blocks of `file` in order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    pub(crate) image_bytes: u64,
    pub(crate) block_bytes: u64,
    pub(crate) file: String,
    pub(crate) offsets: Vec<u64>,
}

const FOLDERS: [&str; 12] = [
    "/boot",
    "/etc",
    "/etc/ssh",
    "/home",
    "/root",
    "/srv",
    "/srv/www",
    "/usr",
    "/var",
    "/var/lib",
    "/var/lib/demo",
    "/var/log",
];

struct StagedFile {
    path: &'static str,
    text: &'static str,
}

const FILES: [StagedFile; 8] = [
    StagedFile { path: "/etc/hostname", text: "web-1\n" },
    StagedFile {
        path: "/etc/hosts",
        text: "127.0.0.1 localhost\n127.0.1.1 web-1\n192.0.2.10 db-1\n",
    },
    StagedFile {
        path: "/etc/fstab",
        text: "UUID=6b656467-6500-4000-8000-000000000001 / ext4 defaults 0 1\n\
               /dev/vdb /srv/data xfs defaults,nofail 0 2\n",
    },
    StagedFile {
        path: "/etc/os-release",
        text: "NAME=\"Demo Linux\"\nID=demo\nVERSION_ID=\"1\"\nPRETTY_NAME=\"Demo Linux 1\"\n",
    },
    StagedFile { path: "/etc/motd", text: "This disk was made for the Kedge demo.\n" },
    StagedFile {
        path: "/etc/ssh/sshd_config",
        text: "PermitRootLogin no\nPasswordAuthentication no\nX11Forwarding no\n",
    },
    StagedFile {
        path: "/srv/www/index.html",
        text: "<!doctype html>\n<title>web-1</title>\n<p>It works, and it is backed up.</p>\n",
    },
    StagedFile {
        path: "/var/log/boot.log",
        text: "[    0.000000] Demo Linux 1\n[    0.412001] EXT4-fs (vda): mounted filesystem\n\
               [    1.830113] systemd[1]: Reached target multi-user.target\n",
    },
];

/// Writes both assets. Needs e2fsprogs and zstd; nothing else in the project does.
pub(crate) fn generate() -> Result<(), Failure> {
    let folder = tree::root().join("target/disk-image");
    if folder.exists() {
        fs::remove_dir_all(&folder).during(folder.display())?;
    }
    fs::create_dir_all(&folder).during(folder.display())?;
    let image = folder.join("system-disk.ext4");

    make_file_system(&image, &folder)?;
    fill(&image, &folder)?;
    run(program(tool("e2fsck")?, &["-fn"]).arg(&image))?;
    let description = describe(&image)?;

    let assets = tree::root().join(IMAGE);
    let assets = assets.parent().unwrap_or(&assets);
    fs::create_dir_all(assets).during(assets.display())?;
    compress(&image)?;
    let text = serde_json::to_string(&description).during(DESCRIPTION)?;
    fs::write(tree::root().join(DESCRIPTION), text + "\n").during(DESCRIPTION)?;
    fs::remove_dir_all(&folder).during(folder.display())
}

fn make_file_system(image: &Path, folder: &Path) -> Result<(), Failure> {
    let settings = folder.join("mke2fs.conf");
    fs::write(&settings, SETTINGS).during(settings.display())?;
    let file = fs::File::create(image).during(image.display())?;
    file.set_len(IMAGE_BYTES).during(image.display())?;
    let extended = format!(
        "hash_seed={HASH_SEED},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    );
    let arguments = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-I",
        "256",
        "-N",
        "1024",
        "-m",
        "0",
        "-L",
        "demo-system",
        "-U",
        FILE_SYSTEM_ID,
        "-O",
        FEATURES,
        "-E",
        &extended,
    ];
    let mut mke2fs = program(tool("mke2fs")?, &arguments);
    run(at_fixed_time(mke2fs.arg(image)).env("MKE2FS_CONFIG", settings))
}

/// The machine's clock must not show in the image.
fn at_fixed_time(command: &mut std::process::Command) -> &mut std::process::Command {
    command
        .env("E2FSPROGS_FAKE_TIME", FIXED_TIME_SECS)
        .env("SOURCE_DATE_EPOCH", FIXED_TIME_SECS)
        .env("TZ", "UTC")
}

/// Puts folders and files in with one `debugfs` script. Copying a staged tree with
/// `mke2fs -d` would carry over its change times and its owner.
fn fill(image: &Path, folder: &Path) -> Result<(), Failure> {
    let mut script = String::new();
    for path in FOLDERS {
        add_line(&mut script, format_args!("mkdir {path}"));
        settle_inode(&mut script, path, "040755");
    }
    for (index, StagedFile { path, text }) in FILES.iter().enumerate() {
        add_file(&mut script, folder, &format!("file-{index}"), path, text.as_bytes())?;
    }
    add_file(&mut script, folder, "data", DATA_FILE, &data())?;

    let commands = folder.join("commands");
    fs::write(&commands, script).during(commands.display())?;
    let mut debugfs = program(tool("debugfs")?, &["-w", "-f"]);
    // debugfs tells its complaints apart by text only; what counts is checked afterwards.
    output(at_fixed_time(debugfs.arg(&commands).arg(image)).current_dir(folder))?;
    Ok(())
}

/// `debugfs` splits at spaces, so the source is a bare name in its working folder.
fn add_file(
    script: &mut String,
    folder: &Path,
    source: &str,
    path: &str,
    content: &[u8],
) -> Result<(), Failure> {
    let staged = folder.join(source);
    fs::write(&staged, content).during(staged.display())?;
    add_line(script, format_args!("write {source} {path}"));
    settle_inode(script, path, "0100644");
    Ok(())
}

/// Owner, mode and times that do not depend on who generates, when and under what umask.
fn settle_inode(script: &mut String, path: &str, mode: &str) {
    let times = ["atime", "ctime", "mtime", "crtime"].map(|field| (field, FIXED_TIME_SECS));
    let fields = [("mode", mode), ("uid", "0"), ("gid", "0"), ("generation", "0")];
    for (field, value) in fields.into_iter().chain(times) {
        let at = if field.ends_with("time") { "@" } else { "" };
        add_line(script, format_args!("set_inode_field {path} {field} {at}{value}"));
    }
}

fn add_line(script: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(script, "{line}");
}

/// Blocks that all differ, so that none hides behind another, and that compress well.
fn data() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15;
    let mut data = Vec::with_capacity(DATA_BLOCKS * BLOCK_BYTES);
    for index in 0..DATA_BLOCKS {
        let line =
            format!("record {index:08} {:016x} {:016x} pad\n", next(&mut state), next(&mut state));
        data.extend(line.bytes().cycle().take(BLOCK_BYTES));
    }
    data
}

/// The next number of a xorshift generator.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Asks `debugfs` for the data file's blocks and believes it only when they hold the data.
fn describe(image: &Path) -> Result<Description, Failure> {
    let request = format!("blocks {DATA_FILE}");
    let listed = output(program(tool("debugfs")?, &["-R", &request]).arg(image))?;
    let blocks = listed
        .split_whitespace()
        .map(|block| block.parse::<usize>().during(format_args!("block {block:?}")))
        .collect::<Result<Vec<_>, _>>()?;

    let bytes = fs::read(image).during(image.display())?;
    let held: Vec<u8> = blocks
        .iter()
        .filter_map(|block| bytes.get(block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES))
        .flatten()
        .copied()
        .collect();
    if held != data() {
        return Err(Failure(format!("the blocks listed for {DATA_FILE} do not hold its data")));
    }
    Ok(Description {
        image_bytes: IMAGE_BYTES,
        block_bytes: BLOCK_BYTES as u64,
        file: DATA_FILE.to_owned(),
        offsets: blocks.iter().map(|block| (block * BLOCK_BYTES) as u64).collect(),
    })
}

fn compress(image: &Path) -> Result<(), Failure> {
    let arguments = ["-q", "-f", "-19", "--check", "-o", IMAGE];
    run(program(tool("zstd")?, &arguments).arg(image))
}
