//! The directory of servers when things go wrong around it: processes that die or hold on,
//! disks that change, shrink or vanish.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kedge_cloud::local::{CloneFile, FileCalls, LocalCloud};
use kedge_core::ports::{Cloud, CloudError, CloudErrorKind};
use kedge_core::resource::{Content, ServerStatus, VolumeStatus};

use crate::files::{
    PROJECT, SERVER, Site, check, declaration, done, judge, make_qcow2, make_raw, noise, patch,
    read_all, server_ref, volume_id,
};

const RAW: &str = "file = \"data.img\"\nformat = \"raw\"\nrole = \"data\"";
const QCOW2: &str = "file = \"root.qcow2\"\nformat = \"qcow2\"\nrole = \"system\"";
const SIZE: usize = 1 << 20;

fn kind<T: std::fmt::Debug>(result: Result<T, CloudError>) -> CloudErrorKind {
    result.unwrap_err().kind
}

/// Two disks, frozen by locks.
fn site() -> Site {
    let mut site = Site::with_disk(QCOW2);
    site.add_disk(RAW);
    make_qcow2(&site.path("root.qcow2"), SIZE, &[]);
    make_raw(&site.path("data.img"), SIZE);
    site
}

async fn freeze(cloud: &LocalCloud) -> Result<(), CloudError> {
    cloud.create_snapshots(&server_ref(), &[volume_id(0), volume_id(1)], "s").await
}

/// QEMU with an image open for writing, as a running guest has it.
struct Qemu {
    process: Child,
}

impl Qemu {
    fn open(image: &Path, format: &str) -> Self {
        let mut process = Command::new("qemu-io")
            .args(["-f", format])
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        process.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut answer = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut answer).unwrap();
        assert!(answer.contains("MiB"), "{answer}");
        Self { process }
    }

    fn close(mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_qemu_writes_is_left_alone() {
    for (image, format) in [("root.qcow2", "qcow2"), ("data.img", "raw")] {
        let site = site();
        let cloud = site.open();
        cloud.stop_server(&server_ref()).await.unwrap();
        let qemu = Qemu::open(&site.path(image), format);
        let error = freeze(&cloud).await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Retryable);
        assert!(error.text.contains("in use by another process"), "{error}");
        let volume = if format == "raw" { volume_id(1) } else { volume_id(0) };
        let refused = cloud.open_for_writing(&server_ref(), &volume, "m").await;
        assert_eq!(kind(refused), CloudErrorKind::Retryable);
        assert_eq!(cloud.list_marks(&server_ref()).await.unwrap(), []);
        qemu.close();
        freeze(&cloud).await.unwrap();
    }
}

#[tokio::test]
async fn qemu_leaves_a_disk_alone_that_we_read_or_write() {
    let site = site();
    let cloud = site.open();
    let write = || {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw", "-c", "write 0 512"]).arg(site.path("data.img"));
        command.output().unwrap().status.success()
    };
    freeze(&cloud).await.unwrap();
    assert!(!write(), "written while frozen");
    cloud.confirm_snapshots(&server_ref(), "s").await.unwrap();
    let open = cloud.open_snapshot(&server_ref(), "s", &volume_id(1), None).await.unwrap();
    cloud.delete_snapshots(&server_ref(), "s").await.unwrap();
    assert!(write(), "still locked though released, by the open {:?}", open.reader);
    cloud.stop_server(&server_ref()).await.unwrap();
    let writer = cloud.open_for_writing(&server_ref(), &volume_id(1), "m").await.unwrap();
    assert!(!write(), "written beside our writer");
    writer.finish().unwrap();
    assert!(write(), "still locked though finished");
}

#[tokio::test]
async fn one_disk_in_use_leaves_no_disk_locked() {
    let site = site();
    let qemu = Qemu::open(&site.path("data.img"), "raw");
    freeze(&site.open()).await.unwrap_err();
    Qemu::open(&site.path("root.qcow2"), "qcow2").close();
    qemu.close();
}

#[tokio::test]
async fn another_process_does_not_write_beside_a_writer() {
    let site = site();
    let (mine, other) = (site.open(), site.open());
    mine.stop_server(&server_ref()).await.unwrap();
    let writer = mine.open_for_writing(&server_ref(), &volume_id(0), "a").await.unwrap();
    let refused = other.open_for_writing(&server_ref(), &volume_id(0), "b").await;
    assert_eq!(kind(refused), CloudErrorKind::Retryable);
    assert_eq!(kind(freeze(&other).await), CloudErrorKind::Retryable);
    writer.finish().unwrap();
    other.open_for_writing(&server_ref(), &volume_id(0), "b").await.unwrap();
}

#[tokio::test]
async fn a_moment_kept_by_locks_dies_with_its_process_and_is_taken_anew() {
    let site = site();
    let dead = site.open();
    freeze(&dead).await.unwrap();
    drop(dead);
    let cloud = site.open();
    assert_eq!(cloud.list_snapshots().await.unwrap(), [(server_ref(), "s".to_owned())]);
    let lost = CloudErrorKind::MomentLost;
    assert_eq!(kind(cloud.confirm_snapshots(&server_ref(), "s").await), lost);
    let open = cloud.open_snapshot(&server_ref(), "s", &volume_id(0), None).await;
    assert_eq!(kind(open), lost);
    freeze(&cloud).await.unwrap();
    cloud.open_snapshot(&server_ref(), "s", &volume_id(0), None).await.unwrap();
    cloud.confirm_snapshots(&server_ref(), "s").await.unwrap();
    cloud.delete_snapshots(&server_ref(), "s").await.unwrap();
    assert_eq!(site.open().list_snapshots().await.unwrap(), []);
}

#[tokio::test]
async fn clones_outlive_their_process() {
    let site = site();
    let open = || site.open_with_clone(COPY);
    let before = fs::read(site.path("data.img")).unwrap();
    freeze(&open()).await.unwrap();
    patch(&site.path("data.img"), 0, &[7; 100]);
    let cloud = open();
    freeze(&cloud).await.unwrap();
    let snapshot = cloud.open_snapshot(&server_ref(), "s", &volume_id(1), None).await.unwrap();
    assert!(read_all(&snapshot.reader) == before);
    cloud.confirm_snapshots(&server_ref(), "s").await.unwrap();
    fs::remove_file(site.path(".kedge/1/data.img")).unwrap();
    let lost = CloudErrorKind::MomentLost;
    assert_eq!(kind(cloud.confirm_snapshots(&server_ref(), "s").await), lost);
    cloud.delete_snapshots(&server_ref(), "s").await.unwrap();
    assert_eq!(fs::read_dir(site.path(".kedge")).unwrap().count(), 0);
}

/// A plain copy, for file systems that share no blocks.
const COPY: CloneFile = |mut from, mut to| {
    std::io::copy(&mut from, &mut to).map(|_| ()).map_err(|_| rustix::io::Errno::IO)
};

/// Two raw disks of one size, the first `a.img`, the second `b.img`, frozen by clones.
async fn two_alike() -> (Site, LocalCloud, [Vec<u8>; 2]) {
    let mut site = Site::new();
    let contents = ["a.img", "b.img"].map(|file| {
        site.add_disk(&RAW.replace("data.img", file));
        let bytes = noise(u64::from(file.as_bytes()[0]), SIZE);
        fs::write(site.path(file), &bytes).unwrap();
        bytes
    });
    let cloud = site.open_with_clone(COPY);
    freeze(&cloud).await.unwrap();
    (site, cloud, contents)
}

#[tokio::test]
async fn a_declaration_that_changes_after_a_freeze_changes_no_clone() {
    let (site, cloud, contents) = two_alike().await;
    let text = fs::read_to_string(site.path("server.toml")).unwrap();
    let swapped = text.replace("a.img", "x").replace("b.img", "a.img").replace('x', "b.img");
    let other_format = text.replace("\"raw\"", "\"qcow2\"");
    let backed = text.replace("\"raw\"", "\"qcow2\"\nbacking = \"base\"");
    let gone = declaration(SERVER, "");
    for changed in [swapped, other_format, backed, gone] {
        assert_ne!(changed, text);
        fs::write(site.path("server.toml"), changed).unwrap();
        for (index, content) in contents.iter().enumerate() {
            let open = cloud.open_snapshot(&server_ref(), "s", &volume_id(index), None).await;
            assert!(read_all(&open.unwrap().reader) == *content, "disk {index}");
        }
        cloud.confirm_snapshots(&server_ref(), "s").await.unwrap();
    }
}

#[tokio::test]
async fn clones_of_which_nobody_knows_the_disks_are_lost_and_made_anew() {
    let (site, cloud, contents) = two_alike().await;
    let state = fs::read_to_string(site.path("kedge-state.json")).unwrap();
    let mut old: serde_json::Value = serde_json::from_str(&state).unwrap();
    old["snapshots"]["s"].as_object_mut().unwrap().remove("images").unwrap();
    fs::write(site.path("kedge-state.json"), old.to_string()).unwrap();
    let lost = CloudErrorKind::MomentLost;
    let open = cloud.open_snapshot(&server_ref(), "s", &volume_id(0), None).await;
    assert_eq!(kind(open), lost);
    assert_eq!(kind(cloud.confirm_snapshots(&server_ref(), "s").await), lost);
    cloud.delete_snapshots(&server_ref(), "s").await.unwrap();
    freeze(&cloud).await.unwrap();
    let open = cloud.open_snapshot(&server_ref(), "s", &volume_id(0), None).await.unwrap();
    assert!(read_all(&open.reader) == contents[0]);
}

#[tokio::test]
async fn clones_with_a_write_between_them_are_no_moment() {
    let copy_and_write: CloneFile = |from, to| {
        COPY(from, to)?;
        patch(Path::new(&format!("/proc/self/fd/{}", from.as_raw_fd())), 70_000, &[1]);
        Ok(())
    };
    let site = site();
    let cloud = site.open_with_clone(copy_and_write);
    for _ in 0..2 {
        assert_eq!(kind(freeze(&cloud).await), CloudErrorKind::MomentLost);
        let open = cloud.open_snapshot(&server_ref(), "s", &volume_id(0), None).await;
        assert_eq!(kind(open), CloudErrorKind::MomentLost);
    }
    let calm = site.open_with_clone(COPY);
    freeze(&calm).await.unwrap();
    calm.confirm_snapshots(&server_ref(), "s").await.unwrap();
    assert_eq!(fs::read_dir(site.path(".kedge")).unwrap().count(), 1);
}

#[tokio::test]
async fn clones_that_failed_half_way_are_made_anew() {
    let site = site();
    let fails: CloneFile = |_, _| Err(rustix::io::Errno::NOSPC);
    let cloud = site.open_with_clone(fails);
    let error = freeze(&cloud).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Retryable);
    assert!(error.text.contains("disk is full"), "{error}");
    let cloud = site.open();
    assert_eq!(cloud.list_snapshots().await.unwrap(), [(server_ref(), "s".to_owned())]);
    assert_eq!(kind(cloud.confirm_snapshots(&server_ref(), "s").await), CloudErrorKind::MomentLost);
    freeze(&cloud).await.unwrap();
    cloud.confirm_snapshots(&server_ref(), "s").await.unwrap();
    assert_eq!(fs::read_dir(site.path(".kedge")).unwrap().count(), 0);
}

/// Something that happens to an image file in the middle of a backup.
type Mishap = fn(&Path);

#[tokio::test]
async fn a_disk_that_changes_during_a_backup_never_passes() {
    let rows: [(&str, Mishap); 6] = [
        ("one byte written", |path| patch(path, 70_000, &[1])),
        ("cut", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap()),
        ("grown", |path| {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().size() + 65_536).unwrap();
        }),
        ("deleted", |path| fs::remove_file(path).unwrap()),
        ("replaced by a copy", |path| {
            fs::copy(path, path.with_extension("new")).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }),
        ("replaced by a link to itself", |path| {
            fs::rename(path, path.with_extension("old")).unwrap();
            std::os::unix::fs::symlink(path.with_extension("old"), path).unwrap();
        }),
    ];
    for image in ["root.qcow2", "data.img"] {
        for (what, mishap) in &rows {
            let site = site();
            let cloud = site.open();
            freeze(&cloud).await.unwrap();
            mishap(&site.path(image));
            let error = cloud.confirm_snapshots(&server_ref(), "s").await.unwrap_err();
            assert_ne!(error.kind, CloudErrorKind::Retryable, "{image} {what}: {error}");
        }
    }
}

#[tokio::test]
async fn a_disk_cut_during_a_backup_gives_an_error_not_zeroes() {
    let site = site();
    let cloud = site.open();
    freeze(&cloud).await.unwrap();
    for (index, image) in [(0, "root.qcow2"), (1, "data.img")] {
        let open = cloud.open_snapshot(&server_ref(), "s", &volume_id(index), None).await.unwrap();
        let file = OpenOptions::new().write(true).open(site.path(image)).unwrap();
        file.set_len(300_000).unwrap();
        let at_the_end = (SIZE - 4096) as u64;
        let lost = CloudErrorKind::MomentLost;
        assert_eq!(kind(open.reader.read_at(at_the_end, &mut [0; 4096])), lost, "{image}");
        assert_eq!(kind(open.reader.next_extent(at_the_end)), lost, "{image}");
        assert_eq!(kind(open.reader.next_extent(SIZE as u64 / 2)), lost, "{image}");
    }
}

#[tokio::test]
async fn a_qcow2_write_that_dies_leaves_the_old_disk_whole() {
    let site = site();
    let before = judge(&site.path("root.qcow2"), "qcow2");
    let cloud = site.open();
    cloud.stop_server(&server_ref()).await.unwrap();
    let writer = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
    writer.write_at(0, &noise(5, 500_000)).unwrap();
    drop(writer);
    assert!(judge(&site.path("root.qcow2"), "qcow2") == before);
    check(&site.path("root.qcow2"));
    fs::write(site.path("root.qcow2.kedge-partial"), "torn").unwrap();
    let writer = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
    writer.write_at(0, &noise(6, 500_000)).unwrap();
    writer.finish().unwrap();
    check(&site.path("root.qcow2"));
    assert!(judge(&site.path("root.qcow2"), "qcow2")[..500_000] == noise(6, 500_000));
    assert!(!site.path("root.qcow2.kedge-partial").exists());
}

#[tokio::test]
async fn an_unfinished_qcow2_leaves_nothing_behind() {
    let give_nothing_whole: kedge_cloud::local::GiveFile = |file, _, _| {
        if file.metadata()?.len() == 0 { Ok(()) } else { Err(ErrorKind::Other.into()) }
    };
    let site = site();
    let partial = site.path("root.qcow2.kedge-partial");
    let calls = FileCalls { give: give_nothing_whole, ..FileCalls::default() };
    let cloud = LocalCloud::open_with(site.root.path().to_owned(), calls).unwrap();
    cloud.stop_server(&server_ref()).await.unwrap();
    for finishes in [false, true] {
        let writer = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
        writer.write_at(0, &noise(5, 500_000)).unwrap();
        if finishes {
            writer.finish().unwrap_err();
        }
        assert!(partial.exists());
        drop(writer);
        assert!(!partial.exists(), "finishes: {finishes}");
    }
    // A writer that has finished takes nothing from the next one.
    let cloud = site.open();
    let first = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
    first.finish().unwrap();
    let second = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
    drop(first);
    assert!(partial.exists());
    second.finish().unwrap();
    check(&site.path("root.qcow2"));
}

#[tokio::test]
async fn a_written_qcow2_keeps_its_mode_and_is_sparse_and_clean() {
    let site = Site::with_disk(QCOW2);
    let image = site.path("root.qcow2");
    make_qcow2(&image, 64 << 20, &[]);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o640)).unwrap();
    let cloud = site.open();
    cloud.stop_server(&server_ref()).await.unwrap();
    let writer = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
    let partial = fs::metadata(site.path("root.qcow2.kedge-partial")).unwrap();
    assert_eq!(partial.mode() & 0o777, 0o600);
    writer.write_zeroes(0, 64 << 20).unwrap();
    writer.write_at(1 << 20, &[9; 1 << 20]).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let writer = &writer;
            scope.spawn(move || {
                for step in 0..8 {
                    let offset = (8 << 20) + (step * 4 + thread) * 100_000;
                    writer.write_at(offset, &vec![8; 100_000]).unwrap();
                }
            });
        }
    });
    writer.finish().unwrap();
    check(&image);
    let mut wanted = vec![0; 64 << 20];
    wanted[1 << 20..2 << 20].fill(9);
    wanted[8 << 20..(8 << 20) + 3_200_000].fill(8);
    assert!(judge(&image, "qcow2") == wanted);
    let metadata = fs::metadata(&image).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o640);
    assert!(metadata.blocks() * 512 < 8 << 20, "{} blocks", metadata.blocks());
}

#[tokio::test]
async fn a_written_qcow2_keeps_its_owner_and_stays_ours_until_it_is_whole() {
    let site = site();
    let image = site.path("root.qcow2");
    fs::set_permissions(&image, fs::Permissions::from_mode(0o660)).unwrap();
    // Only root may give a file away; for anyone else it is our own that is kept.
    match std::os::unix::fs::chown(&image, Some(12345), Some(12346)) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        other => other.unwrap(),
    }
    let of = |path: &Path| {
        let data = fs::metadata(path).unwrap();
        (data.uid(), data.gid(), data.mode() & 0o777)
    };
    let before = of(&image);
    let ours = of(&site.path("server.toml"));
    let cloud = site.open();
    cloud.stop_server(&server_ref()).await.unwrap();
    let writer = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
    assert_eq!(of(&site.path("root.qcow2.kedge-partial")), (ours.0, ours.1, 0o600));
    writer.write_at(0, &noise(1, SIZE)).unwrap();
    writer.finish().unwrap();
    assert_eq!(of(&image), before);
    assert!(judge(&image, "qcow2") == noise(1, SIZE));
}

#[tokio::test]
async fn a_qcow2_whose_owner_cannot_be_kept_is_refused_before_it_is_marked() {
    let site = site();
    let image = site.path("root.qcow2");
    let before = fs::read(&image).unwrap();
    let give: kedge_cloud::local::GiveFile = |_, _, _| Err(rustix::io::Errno::PERM.into());
    let calls = FileCalls { give, ..FileCalls::default() };
    let cloud = LocalCloud::open_with(site.root.path().to_owned(), calls).unwrap();
    cloud.stop_server(&server_ref()).await.unwrap();
    let opened = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await;
    let error = opened.map(drop).unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Permanent);
    assert!(error.text.contains("nothing was written"), "{error}");
    assert_eq!(cloud.list_marks(&server_ref()).await.unwrap(), []);
    assert_eq!(site.volume(0).await.content, Content::Whole);
    assert!(fs::read(&image).unwrap() == before);
    assert!(!site.path("root.qcow2.kedge-partial").exists());
    // A raw image is written in place and belongs to whom it belonged.
    cloud.open_for_writing(&server_ref(), &volume_id(1), "m").await.unwrap();
}

/// `RestrictSUIDSGID` forbids `openat2`, and without it no image is opened at all.
#[test]
fn the_service_unit_forbids_nothing_that_images_need() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/kedge.service");
    let unit = fs::read_to_string(unit).unwrap();
    let lines: Vec<_> = unit.lines().filter(|line| line.starts_with("SystemCall")).collect();
    let wanted = [
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged @resources",
        // What is started for a drill begins by limiting itself.
        "SystemCallFilter=setrlimit prlimit64",
        "SystemCallFilter=@chown",
        "SystemCallErrorNumber=EPERM",
    ];
    assert_eq!(lines, wanted);
    for setting in ["RestrictSUIDSGID=", "DynamicUser="] {
        assert!(!unit.lines().any(|line| line.starts_with(setting)), "{setting}");
    }
}

#[tokio::test]
async fn zeroes_written_to_a_raw_disk_become_holes() {
    let site = Site::with_disk(RAW);
    fs::write(site.path("data.img"), noise(1, 8 << 20)).unwrap();
    let cloud = site.open();
    cloud.stop_server(&server_ref()).await.unwrap();
    let writer = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
    writer.write_zeroes(0, 8 << 20).unwrap();
    writer.finish().unwrap();
    let metadata = fs::metadata(site.path("data.img")).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (8 << 20, 0));
}

#[tokio::test]
async fn a_damaged_disk_can_be_overwritten_whole() {
    let site = Site::with_disk(QCOW2);
    let image = site.path("root.qcow2");
    make_qcow2(&image, SIZE, &[]);
    // The first-level table now points far past the end.
    patch(&image, 0x30000, &0x8000_0000_7fff_0000_u64.to_be_bytes());
    let cloud = site.open();
    cloud.stop_server(&server_ref()).await.unwrap();
    let part = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
    assert_eq!(kind(part.write_at(1, &[1])), CloudErrorKind::Permanent);
    drop(part);
    let writer = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
    writer.write_at(0, &noise(1, SIZE)).unwrap();
    writer.finish().unwrap();
    check(&image);
    assert!(judge(&image, "qcow2") == noise(1, SIZE));
}

#[tokio::test]
async fn everything_made_is_ours_alone() {
    let site = site();
    let cloud = site.open_with_clone(|_, _| Ok(()));
    cloud.lock_server(&server_ref(), "h").await.unwrap();
    cloud.stop_server(&server_ref()).await.unwrap();
    freeze(&cloud).await.unwrap();
    let _writer = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await.unwrap();
    let mode = |name: &str| fs::metadata(site.path(name)).unwrap().mode() & 0o7777;
    for folder in [".kedge", ".kedge/1"] {
        assert_eq!(mode(folder), 0o700, "{folder}");
    }
    for file in ["kedge-state.json", "root.qcow2.kedge-partial", ".kedge/1/data.img"] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_damaged_state_is_an_error_and_no_mark_is_forgotten() {
    let mut site = site();
    let cloud = site.open();
    cloud.stop_server(&server_ref()).await.unwrap();
    cloud.open_for_writing(&server_ref(), &volume_id(1), "m").await.unwrap();
    let text = fs::read_to_string(site.path("kedge-state.json")).unwrap();
    for broken in ["", "{}", &text[..text.len() / 2], &text.replace("shutoff", "odd")] {
        fs::write(site.path("kedge-state.json"), broken).unwrap();
        assert_eq!(kind(cloud.find_server(&server_ref()).await), CloudErrorKind::Permanent);
        assert_eq!(kind(cloud.start_server(&server_ref()).await), CloudErrorKind::Permanent);
        assert_eq!(cloud.list_locks().await.unwrap(), []);
    }
    fs::write(site.path("kedge-state.json"), text).unwrap();
    site.add_disk("file = \"late.img\"\nformat = \"raw\"\nrole = \"data\"");
    assert_eq!(cloud.list_marks(&server_ref()).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_on_one_server_at_the_same_time_all_succeed() {
    let site = site();
    let cloud = site.open();
    let calls = (0..32).map(|number| {
        let cloud = cloud.clone();
        tokio::spawn(async move {
            let name = format!("s{number}");
            cloud.create_snapshots(&server_ref(), &[volume_id(1)], &name).await?;
            cloud.lock_server(&server_ref(), "h").await?;
            cloud.confirm_snapshots(&server_ref(), &name).await?;
            cloud.delete_snapshots(&server_ref(), &name).await
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert_eq!(cloud.list_snapshots().await.unwrap(), []);
}

#[tokio::test]
async fn one_broken_server_hides_no_other() {
    let site = site();
    let root = site.root.path();
    let other = |folder: &str, text: &str| {
        fs::create_dir(root.join(folder)).unwrap();
        fs::write(root.join(folder).join("server.toml"), text).unwrap();
    };
    other("a", "this is no declaration");
    other("b", &declaration("no-uuid", ""));
    other("c\n\u{1b}[31m", "\u{1b}]0;x\u{7}");
    other("d", &"#".repeat(2 << 20));
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("file"), "").unwrap();
    std::os::unix::fs::symlink("/nowhere", root.join("link")).unwrap();
    fs::create_dir(root.join("f")).unwrap();
    rustix::fs::mknodat(
        File::open(root.join("f")).unwrap(),
        "server.toml",
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let cloud = site.open();
    assert!(cloud.find_server(&server_ref()).await.unwrap().is_some());
    cloud.lock_server(&server_ref(), "h").await.unwrap();
    assert_eq!(cloud.list_locks().await.unwrap().len(), 1);
    other("twin", &declaration(SERVER, ""));
    assert_eq!(kind(cloud.find_server(&server_ref()).await), CloudErrorKind::Permanent);
}

#[tokio::test]
async fn a_lost_disk_is_reported_broken_and_hides_no_other() {
    let site = site();
    fs::remove_file(site.path("root.qcow2")).unwrap();
    let server = site.open().find_server(&server_ref()).await.unwrap().unwrap();
    assert_eq!(server.status, ServerStatus::Active);
    assert_eq!(server.volumes[0].status, VolumeStatus::Error);
    assert_eq!(server.volumes[0].size_bytes, 0);
    assert_eq!(server.volumes[1].status, VolumeStatus::Healthy);
    assert_eq!(server.volumes[1].size_bytes, SIZE as u64);
    assert_eq!(kind(freeze(&site.open()).await), CloudErrorKind::Permanent);
}

#[tokio::test]
async fn a_lost_directory_is_an_error_and_no_absent_server() {
    let site = site();
    let cloud = site.open();
    fs::rename(site.root.path().join("web"), site.root.path().join("moved")).unwrap();
    assert!(cloud.find_server(&server_ref()).await.unwrap().is_some());
    let root = site.root.path().to_owned();
    drop(site);
    cloud.find_server(&server_ref()).await.unwrap_err();
    cloud.list_locks().await.unwrap_err();
    LocalCloud::open(root).unwrap_err();
}

#[tokio::test]
async fn hostile_names_stay_names() {
    let site = Site::new();
    let name = "../../etc\\n\\u001b[31m/\\u0000";
    let text = declaration(SERVER, "").replace("\"web\"", &format!("\"{name}\""));
    let disk = format!("[[disk]]\nid = \"{}\"\nname = \"{name}\"\n{RAW}\n", volume_id(0));
    fs::write(site.path("server.toml"), text + &disk).unwrap();
    make_raw(&site.path("data.img"), SIZE);
    let cloud = site.open();
    let server = cloud.find_server(&server_ref()).await.unwrap().unwrap();
    assert_eq!(server.name, "../../etc\n\u{1b}[31m/\0");
    assert_eq!(server.project_id.as_str(), PROJECT);
    cloud.create_snapshots(&server_ref(), &[volume_id(0)], &server.name).await.unwrap();
    cloud.lock_server(&server_ref(), &server.name).await.unwrap();
    let error = cloud.lock_server(&server_ref(), "x").await.unwrap_err();
    assert!(!error.text.contains(['\n', '\u{1b}']), "{:?}", error.text);
    let mut names: Vec<_> = fs::read_dir(site.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [".kedge", "data.img", "kedge-state.json", "server.toml"]);
}

#[tokio::test]
async fn the_backing_file_of_a_disk_is_frozen_with_it() {
    let site =
        Site::with_disk(&format!("{QCOW2}\nbacking = \"base.img\"\nbacking_format = \"raw\""));
    let base = make_raw(&site.path("base.img"), SIZE);
    done(
        Command::new("qemu-img")
            .args(["create", "-f", "qcow2", "-F", "raw", "-b", "base.img"])
            .arg(site.path("root.qcow2")),
    );
    crate::files::guest_write(&site.path("root.qcow2"), 8192, 4096, 0x11);
    let mut wanted = base;
    wanted[8192..8192 + 4096].fill(0x11);
    let cloud = site.open();
    let volumes = [volume_id(0)];
    cloud.create_snapshots(&server_ref(), &volumes, "s").await.unwrap();
    let open = cloud.open_snapshot(&server_ref(), "s", &volumes[0], None).await.unwrap();
    assert!(read_all(&open.reader) == wanted);
    cloud.confirm_snapshots(&server_ref(), "s").await.unwrap();
    patch(&site.path("base.img"), 0, &[1]);
    let lost = kind(cloud.confirm_snapshots(&server_ref(), "s").await);
    assert_eq!(lost, CloudErrorKind::MomentLost);
    cloud.delete_snapshots(&server_ref(), "s").await.unwrap();

    cloud.stop_server(&server_ref()).await.unwrap();
    let base = fs::read(site.path("base.img")).unwrap();
    let writer = cloud.open_for_writing(&server_ref(), &volumes[0], "m").await.unwrap();
    writer.write_at(0, &[0x22; 100_000]).unwrap();
    writer.finish().unwrap();
    wanted[..100_000].fill(0x22);
    assert!(judge(&site.path("root.qcow2"), "qcow2") == wanted);
    let back = cloud.open_for_read_back(&server_ref(), &volumes[0]).await.unwrap();
    assert!(read_all(&back) == wanted);
    assert!(fs::read(site.path("base.img")).unwrap() == base, "the backing file was written");
}
