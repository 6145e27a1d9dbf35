//! What `local` knows of changes, and when it must not claim to know.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kedge_cloud::local::{FileCalls, LocalCloud};
use kedge_core::checkpoint::ChangeToken;
use kedge_core::ports::{Cloud, DiskReader, ExtentKind, OpenSnapshot};

use crate::files::{
    Site, done, extents, guest_write, judge, make_qcow2, make_raw, patch, range_of, read_all,
    server_ref, settled, volume_id,
};

const RAW: &str = "file = \"disk\"\nformat = \"raw\"\nrole = \"data\"";
const QCOW2: &str = "file = \"disk\"\nformat = \"qcow2\"\nrole = \"data\"";
const SIZE: usize = 4 << 20;

/// Frozen in place, so that what happens to the files is all there is to see.
fn open(site: &Site) -> LocalCloud {
    open_with(site, settled())
}

fn open_with(site: &Site, calls: FileCalls) -> LocalCloud {
    let calls = FileCalls { clone: |_, _| Err(rustix::io::Errno::OPNOTSUPP), ..calls };
    LocalCloud::open_with(site.root.path().to_owned(), calls).unwrap()
}

async fn snapshot(cloud: &LocalCloud, since: Option<&ChangeToken>) -> OpenSnapshot {
    let of = server_ref();
    cloud.delete_snapshots(&of, "s").await.unwrap();
    cloud.create_snapshots(&of, &[volume_id(0)], "s").await.unwrap();
    cloud.open_snapshot(&of, "s", &volume_id(0), since).await.unwrap()
}

async fn token(site: &Site) -> ChangeToken {
    snapshot(&open(site), None).await.token.unwrap()
}

/// The disk as it is now, looked at since a token.
async fn since(site: &Site, token: &ChangeToken) -> Arc<dyn DiskReader> {
    snapshot(&open(site), Some(token)).await.reader
}

fn unchanged_bytes(reader: &Arc<dyn DiskReader>) -> u64 {
    let unchanged = extents(reader).into_iter().filter(|e| e.kind == ExtentKind::Unchanged);
    unchanged.map(|extent| extent.length_bytes).sum()
}

fn writable(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

fn times_of(path: &Path) -> FileTimes {
    let now = fs::metadata(path).unwrap();
    FileTimes::new().set_modified(now.modified().unwrap()).set_accessed(now.accessed().unwrap())
}

/// Something that happens to an image file between two backups.
type Mishap = fn(&Path);

#[tokio::test]
async fn a_file_that_anything_happened_to_is_read_whole() {
    let rows: [(&str, Mishap); 10] = [
        ("one byte written", |path| patch(path, 300_000, &[1])),
        ("the same byte written", |path| {
            let mut byte = [0];
            File::open(path).unwrap().read_exact_at(&mut byte, 70_000).unwrap();
            patch(path, 70_000, &byte);
        }),
        ("written, and its time of change set back", |path| {
            let before = times_of(path);
            patch(path, 300_000, &[1]);
            writable(path).set_times(before).unwrap();
        }),
        ("touched with its own times", |path| {
            writable(path).set_times(times_of(path)).unwrap();
        }),
        ("written under another name", |path| {
            fs::hard_link(path, path.with_extension("other")).unwrap();
            patch(&path.with_extension("other"), 300_000, &[1]);
        }),
        ("grown", |path| {
            let length = fs::metadata(path).unwrap().len();
            writable(path).set_len(length + 65_536).unwrap();
        }),
        ("cut and grown again", |path| {
            let length = fs::metadata(path).unwrap().len();
            writable(path).set_len(length - 512).unwrap();
            writable(path).set_len(length).unwrap();
        }),
        ("given a hole", |path| {
            let hole = rustix::fs::FallocateFlags::PUNCH_HOLE;
            let flags = hole | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(writable(path), flags, 900_000, 100).unwrap();
        }),
        ("replaced by a copy with its times", |path| {
            fs::copy(path, path.with_extension("new")).unwrap();
            writable(&path.with_extension("new")).set_times(times_of(path)).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }),
        ("taken away and brought back", |path| {
            let aside = tempfile::tempdir_in(path.parent().unwrap()).unwrap();
            fs::rename(path, aside.path().join("disk")).unwrap();
            fs::rename(aside.path().join("disk"), path).unwrap();
        }),
    ];
    for lines in [RAW, QCOW2] {
        for (what, mishap) in &rows {
            let site = Site::with_disk(lines);
            if lines == RAW {
                make_raw(&site.path("disk"), SIZE);
            } else {
                make_qcow2(&site.path("disk"), SIZE, &["-o", "preallocation=full"]);
            }
            let token = token(&site).await;
            assert_eq!(unchanged_bytes(&since(&site, &token).await), SIZE as u64, "{what}");
            mishap(&site.path("disk"));
            assert_eq!(unchanged_bytes(&since(&site, &token).await), 0, "{what}");
        }
    }
}

#[tokio::test]
async fn reading_locking_and_backing_up_change_nothing() {
    let site = Site::with_disk(QCOW2);
    make_qcow2(&site.path("disk"), SIZE, &[]);
    let token = token(&site).await;
    let cloud = open(&site);
    judge(&site.path("disk"), "qcow2");
    cloud.lock_server(&server_ref(), "h").await.unwrap();
    cloud.stop_server(&server_ref()).await.unwrap();
    for _ in 0..2 {
        let again = snapshot(&cloud, Some(&token)).await;
        read_all(&again.reader);
        cloud.confirm_snapshots(&server_ref(), "s").await.unwrap();
        assert_eq!(unchanged_bytes(&again.reader), SIZE as u64);
    }
}

#[tokio::test]
async fn another_declaration_of_the_same_file_is_another_disk() {
    let site = Site::with_disk(QCOW2);
    make_qcow2(&site.path("disk"), SIZE, &[]);
    let token = token(&site).await;
    let declaration = fs::read_to_string(site.path("server.toml")).unwrap();
    let as_raw = declaration.replace("\"qcow2\"", "\"raw\"");
    let with_backing = declaration.replace("\"qcow2\"", "\"qcow2\"\nbacking = \"base\"");
    make_qcow2(&site.path("base"), SIZE, &[]);
    for changed in [as_raw, with_backing] {
        assert_ne!(changed, declaration);
        fs::write(site.path("server.toml"), changed).unwrap();
        assert_eq!(unchanged_bytes(&since(&site, &token).await), 0);
    }
    fs::write(site.path("server.toml"), declaration).unwrap();
    assert_eq!(unchanged_bytes(&since(&site, &token).await), SIZE as u64);
}

#[tokio::test]
async fn young_times_give_no_token_and_still_take_one() {
    let site = Site::with_disk(RAW);
    make_raw(&site.path("disk"), SIZE);
    let token = token(&site).await;
    let young = open_with(&site, FileCalls { time: |_| Ok(0), ..settled() });
    let again = snapshot(&young, Some(&token)).await;
    assert_eq!(unchanged_bytes(&again.reader), SIZE as u64);
    assert_eq!(again.token, None);
}

#[tokio::test]
async fn a_file_system_that_may_miss_a_write_gives_no_token() {
    let rows: [kedge_cloud::local::NotesWrites; 2] =
        [|_| Ok(false), |_| Err(std::io::ErrorKind::Other.into())];
    for notes_writes in rows {
        let site = Site::with_disk(RAW);
        make_raw(&site.path("disk"), SIZE);
        let cloud = open_with(&site, FileCalls { notes_writes, ..settled() });
        assert_eq!(snapshot(&cloud, None).await.token, None);
    }
    let process = File::open("/proc/self/stat").unwrap();
    assert!(!(FileCalls::default().notes_writes)(&process).unwrap());
}

#[tokio::test]
async fn a_token_ends_with_the_running_of_the_machine() {
    let site = Site::with_disk(RAW);
    make_raw(&site.path("disk"), SIZE);
    let token = token(&site).await;
    let rows: [kedge_cloud::local::AskBoot; 2] =
        [|| Ok(uuid::Uuid::from_u128(7)), || Err(std::io::ErrorKind::Other.into())];
    for (boot, gives) in rows.into_iter().zip([true, false]) {
        let cloud = open_with(&site, FileCalls { boot, ..settled() });
        let open = snapshot(&cloud, Some(&token)).await;
        assert_eq!((unchanged_bytes(&open.reader), open.token.is_some()), (0, gives));
    }
    assert_eq!(unchanged_bytes(&since(&site, &token).await), SIZE as u64);
}

#[tokio::test]
async fn clones_are_compared_by_the_files_they_were_made_of() {
    let site = Site::with_disk(RAW);
    make_raw(&site.path("disk"), SIZE);
    let token = token(&site).await;
    let calls = FileCalls {
        clone: |mut from, mut to| {
            std::io::copy(&mut from, &mut to).map(|_| ()).map_err(|_| rustix::io::Errno::IO)
        },
        ..settled()
    };
    let cloud = LocalCloud::open_with(site.root.path().to_owned(), calls).unwrap();
    let cloned = snapshot(&cloud, Some(&token)).await;
    assert_eq!(unchanged_bytes(&cloned.reader), SIZE as u64);
    assert_eq!(cloned.token.as_ref(), Some(&token));
    // The moment of the clones stays what it was.
    patch(&site.path("disk"), 0, &[0xab; 4]);
    let of = server_ref();
    let still = cloud.open_snapshot(&of, "s", &volume_id(0), Some(&token)).await.unwrap();
    assert_eq!(unchanged_bytes(&still.reader), SIZE as u64);
    let state = fs::read_to_string(site.path("kedge-state.json")).unwrap();
    let mut old: serde_json::Value = serde_json::from_str(&state).unwrap();
    old["snapshots"]["s"].as_object_mut().unwrap().remove("witnesses").unwrap();
    fs::write(site.path("kedge-state.json"), old.to_string()).unwrap();
    let unknown = cloud.open_snapshot(&of, "s", &volume_id(0), Some(&token)).await.unwrap();
    assert_eq!((unchanged_bytes(&unknown.reader), unknown.token), (0, None));
}

/// A disk in one file, then in an overlay on it; returns the token of before and its bytes.
async fn overlaid(format: &str, options: &[&str]) -> (Site, ChangeToken, Vec<u8>) {
    let site = Site::with_disk(&format!("file = \"base\"\nformat = \"{format}\"\nrole = \"data\""));
    let then = match format {
        "raw" => make_raw(&site.path("base"), SIZE),
        _ => make_qcow2(&site.path("base"), SIZE, &[]),
    };
    let token = token(&site).await;
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-b", "base", "-F", format]).args(options);
    done(create.arg("disk").current_dir(site.path("")));
    let overlay = format!(
        "file = \"disk\"\nformat = \"qcow2\"\nbacking = \"base\"\nbacking_format = \"{format}\""
    );
    let text = fs::read_to_string(site.path("server.toml")).unwrap();
    let declared = format!("file = \"base\"\nformat = \"{format}\"");
    assert!(text.contains(&declared));
    fs::write(site.path("server.toml"), text.replace(&declared, &overlay)).unwrap();
    (site, token, then)
}

#[tokio::test]
async fn an_overlay_changes_its_own_clusters_and_no_more() {
    for format in ["raw", "qcow2"] {
        for options in [&[][..], &["-o", "compat=0.10"], &["-o", "cluster_size=4k"]] {
            let (site, token, then) = overlaid(format, options).await;
            let reader = since(&site, &token).await;
            assert_eq!(unchanged_bytes(&reader), SIZE as u64, "{format} {options:?}");
            drop(reader);
            let disk = site.path("disk");
            guest_write(&disk, 70_000, 1000, 0x5a);
            guest_write(&disk, 1 << 20, 200_000, 0);
            guest_write(&disk, 3 << 20, 65_536, 0xa5);
            let image = format!("driver=qcow2,file.driver=file,file.filename={}", disk.display());
            done(Command::new("qemu-io").args(["--image-opts", &image, "-c", "write -z 2M 128k"]));
            let now = judge(&disk, "qcow2");
            let reader = since(&site, &token).await;
            assert!(read_all(&reader) == now, "{format} {options:?}");
            let mut unchanged = 0;
            for extent in extents(&reader) {
                if extent.kind == ExtentKind::Unchanged {
                    let range = range_of(extent);
                    assert!(then[range.clone()] == now[range], "{format} {options:?} {extent:?}");
                    unchanged += extent.length_bytes;
                }
            }
            // What was written, in whole clusters of 64 KiB at most.
            let written = (1 + 4 + 1 + 2) * 65_536;
            assert!(unchanged >= SIZE as u64 - written, "{format} {options:?}: {unchanged}");
            assert!(unchanged <= SIZE as u64 - 1000 - 200_000 - 65_536, "{format} {options:?}");
        }
    }
}

#[tokio::test]
async fn an_overlay_whose_base_is_not_the_image_of_before_is_read_whole() {
    type Change = fn(&Site);
    let rows: [(&str, Change); 5] = [
        ("base written", |site| patch(&site.path("base"), 300_000, &[1])),
        ("base given another mode", |site| {
            let mode = fs::Permissions::from_mode(0o400);
            fs::set_permissions(site.path("base"), mode).unwrap();
        }),
        ("base replaced by a copy", |site| {
            fs::copy(site.path("base"), site.path("new")).unwrap();
            fs::rename(site.path("new"), site.path("base")).unwrap();
        }),
        ("an overlay that names no base", |site| {
            done(
                Command::new("qemu-img")
                    .args(["rebase", "-q", "-u", "-b", "", "-f", "qcow2", "disk"])
                    .current_dir(site.path("")),
            );
        }),
        ("a larger overlay", |site| {
            let larger = (SIZE + 65_536).to_string();
            done(
                Command::new("qemu-img")
                    .args(["resize", "-q", "-f", "qcow2", "disk", &larger])
                    .current_dir(site.path("")),
            );
        }),
    ];
    for (what, mishap) in rows {
        let (site, token, _) = overlaid("raw", &[]).await;
        mishap(&site);
        assert_eq!(unchanged_bytes(&since(&site, &token).await), 0, "{what}");
    }
}

#[tokio::test]
async fn a_chain_is_unchanged_only_as_a_whole() {
    for (written, unchanged) in [(None, SIZE as u64), (Some("disk"), 0), (Some("base"), 0)] {
        let (site, _, _) = overlaid("raw", &[]).await;
        guest_write(&site.path("disk"), 70_000, 1000, 0x5a);
        let token = token(&site).await;
        match written {
            None => {}
            Some("disk") => guest_write(&site.path("disk"), 70_000, 1000, 0x5b),
            Some(file) => patch(&site.path(file), 300_000, &[1]),
        }
        assert_eq!(unchanged_bytes(&since(&site, &token).await), unchanged, "{written:?}");
    }
}
