//! Images made to harm: whatever a disk file says or is, it opens nothing else, takes no
//! unbounded time or memory, and is never read as zeroes it does not hold.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kedge_core::ports::{Cloud, CloudErrorKind};
use kedge_core::resource::VolumeStatus;

use crate::files::{
    Site, done, guest_write, judge, make_qcow2, make_raw, patch, read_all, server_ref, volume_id,
};

const RAW: &str = "file = \"disk\"\nformat = \"raw\"\nrole = \"data\"";
const QCOW2: &str = "file = \"disk\"\nformat = \"qcow2\"\nrole = \"data\"";
const SIZE: usize = 1 << 20;
/// Where `qemu-img convert` puts the tables of a small image with 64 KiB clusters.
const L1_OFFSET: u64 = 0x30000;

/// Everything the disk reads as, or that it was refused for good.
async fn read_disk(site: &Site) -> Option<Vec<u8>> {
    let cloud = site.open();
    let of = server_ref();
    let open = match cloud.create_snapshots(&of, &[volume_id(0)], "s").await {
        Ok(()) => cloud.open_snapshot(&of, "s", &volume_id(0), None).await,
        Err(error) => Err(error),
    };
    match open {
        Ok(open) => Some(read_all(&open.reader)),
        Err(error) => {
            assert_eq!(error.kind, CloudErrorKind::Permanent, "{error}");
            None
        }
    }
}

#[tokio::test]
async fn raw_bytes_that_imitate_qcow2_stay_raw_bytes() {
    let site = Site::with_disk(RAW);
    fs::write(site.path("secret"), "the host's secret").unwrap();
    done(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "secret"])
            .arg(site.path("disk"))
            .arg("1M"),
    );
    let bytes = fs::read(site.path("disk")).unwrap();
    assert_eq!(site.volume(0).await.size_bytes, bytes.len() as u64);
    assert!(read_disk(&site).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_header_that_lies_is_refused() {
    let huge = (1_u64 << 63).to_be_bytes();
    let rows: [(&str, u64, &[u8]); 23] = [
        ("no magic", 0, b"QFI\0"),
        ("unknown version", 4, &9_u32.to_be_bytes()),
        ("backing name far away", 8, &(1_u64 << 62).to_be_bytes()),
        ("cluster of 2^0 bytes", 20, &0_u32.to_be_bytes()),
        ("cluster of 2^8 bytes", 20, &8_u32.to_be_bytes()),
        ("cluster of 2^22 bytes", 20, &22_u32.to_be_bytes()),
        ("cluster of 2^63 bytes", 20, &63_u32.to_be_bytes()),
        ("cluster of 2^(2^32-1) bytes", 20, &u32::MAX.to_be_bytes()),
        ("2^63 bytes", 24, &huge),
        ("all bytes there are", 24, &u64::MAX.to_be_bytes()),
        ("no bytes", 24, &0_u64.to_be_bytes()),
        ("more than its table maps", 24, &(1_u64 << 40).to_be_bytes()),
        ("encrypted", 32, &2_u32.to_be_bytes()),
        ("no table", 36, &0_u32.to_be_bytes()),
        ("a table of 32 GiB", 36, &u32::MAX.to_be_bytes()),
        ("a table longer than its disk needs", 36, &8193_u32.to_be_bytes()),
        ("a table past the end", 36, &(1_u32 << 22).to_be_bytes()),
        ("a table nowhere", 40, &0_u64.to_be_bytes()),
        ("a table between clusters", 40, &(L1_OFFSET + 512).to_be_bytes()),
        ("a table at 2^63", 40, &huge),
        ("a data file", 72, &4_u64.to_be_bytes()),
        ("damage", 72, &2_u64.to_be_bytes()),
        ("unknown features", 72, &huge),
    ];
    for (what, offset, bytes) in rows {
        let site = Site::with_disk(QCOW2);
        make_qcow2(&site.path("disk"), SIZE, &[]);
        assert_eq!(site.volume(0).await.status, VolumeStatus::Healthy);
        patch(&site.path("disk"), offset, bytes);
        let volume = site.volume(0).await;
        assert_eq!((volume.status, volume.size_bytes), (VolumeStatus::Error, 0), "{what}");
        assert!(read_disk(&site).await.is_none(), "{what}");
    }
}

#[tokio::test]
async fn a_table_that_fills_its_cluster_is_read() {
    let site = Site::with_disk(QCOW2);
    let wanted = make_qcow2(&site.path("disk"), SIZE, &[]);
    patch(&site.path("disk"), 36, &8192_u32.to_be_bytes());
    assert!(read_disk(&site).await.unwrap() == wanted);
}

#[tokio::test]
async fn a_table_that_lies_is_refused() {
    let l2_offset = {
        let site = Site::with_disk(QCOW2);
        make_qcow2(&site.path("disk"), SIZE, &[]);
        let bytes = fs::read(site.path("disk")).unwrap();
        let entry = usize::try_from(L1_OFFSET).unwrap();
        u64::from_be_bytes(bytes[entry..entry + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00
    };
    assert!(l2_offset > 0 && l2_offset.is_multiple_of(65_536));
    let copied = 1_u64 << 63;
    let rows: [(&str, u64, u64); 9] = [
        ("a second-level table past the end", L1_OFFSET, copied | 0x7fff_0000),
        ("one at the end of all files", L1_OFFSET, copied | 0x00ff_ffff_ffff_0000),
        ("one between clusters", L1_OFFSET, copied | (l2_offset + 512)),
        ("the first-level table as its own second level", L1_OFFSET, copied | L1_OFFSET),
        ("data past the end", l2_offset, copied | 0x7fff_0000),
        ("data at the end of all files", l2_offset, copied | 0x00ff_ffff_ffff_0000),
        ("data between clusters", l2_offset, copied | 0x200),
        ("compressed data past the end", l2_offset, (1 << 62) | 0x7fff_0000),
        ("compressed data with all bits set", l2_offset, u64::MAX),
    ];
    for (what, offset, entry) in rows {
        let site = Site::with_disk(QCOW2);
        make_qcow2(&site.path("disk"), SIZE, &[]);
        patch(&site.path("disk"), offset, &entry.to_be_bytes());
        assert!(read_disk(&site).await.is_none(), "{what}");
    }
}

#[tokio::test]
async fn one_table_used_twice_is_refused() {
    let site = Site::with_disk(QCOW2);
    // With clusters of 512 bytes one second-level table maps 32 KiB.
    make_qcow2(&site.path("disk"), SIZE, &["-o", "cluster_size=512"]);
    let bytes = fs::read(site.path("disk")).unwrap();
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().unwrap());
    let entry = &bytes[usize::try_from(l1).unwrap()..][..8];
    patch(&site.path("disk"), l1 + 8, entry);
    assert!(read_disk(&site).await.is_none());
}

#[tokio::test]
async fn a_qcow2_cut_short_is_refused_and_never_read_as_zeroes() {
    let whole = Site::with_disk(QCOW2);
    make_qcow2(&whole.path("disk"), SIZE, &[]);
    let bytes = fs::read(whole.path("disk")).unwrap();
    // Whole clusters: what is missing of the last one cannot be told from never written.
    for clusters in 0..bytes.len() / 65_536 {
        let site = Site::with_disk(QCOW2);
        fs::write(site.path("disk"), &bytes[..clusters * 65_536]).unwrap();
        assert!(read_disk(&site).await.is_none(), "cut to {clusters} clusters");
    }
}

/// Sets each byte of the header and the tables to a few values: whatever then opens can be
/// read to its end, and nothing panics or takes long.
#[tokio::test]
async fn no_single_wrong_byte_harms() {
    let site = Site::with_disk(QCOW2);
    let image = site.path("disk");
    make_qcow2(&image, SIZE, &["-c"]);
    let bytes = fs::read(&image).unwrap();
    let header = 0..112_u64;
    let tables = [L1_OFFSET, 0x40000].into_iter().flat_map(|table| table..table + 24);
    for at in header.chain(tables) {
        let old = bytes[usize::try_from(at).unwrap()];
        for new in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            patch(&image, at, &[new]);
            let volume = site.volume(0).await;
            assert!(volume.size_bytes <= 1 << 46);
            let open = site.open().open_for_read_back(&server_ref(), &volume_id(0)).await;
            if let Ok(reader) = open {
                let end = reader.size_bytes();
                let mut buf = vec![0; 4096];
                for offset in [0, 65_536, end / 2, end.saturating_sub(4096)] {
                    let _ = reader.next_extent(offset);
                    let _ = reader.read_at(offset, &mut buf);
                }
            }
        }
        patch(&image, at, &[old]);
    }
    assert!(read_disk(&site).await.is_some());
}

#[tokio::test]
async fn a_backing_file_comes_in_only_as_declared() {
    let secret = "the host's secret".repeat(4000);
    let make = |site: &Site, backing: &Path, format: &str| {
        done(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
                .arg(backing)
                .arg(site.path("disk"))
                .arg("1M"),
        );
    };
    let with_backing = format!("{QCOW2}\nbacking = \"base\"\nbacking_format = \"raw\"");

    for lines in [QCOW2, &with_backing] {
        let site = Site::with_disk(lines);
        fs::write(site.path("secret"), &secret).unwrap();
        make_raw(&site.path("base"), SIZE);
        for named in [site.path("secret"), "secret".into(), site.path("base"), "./base".into()] {
            make(&site, &named, "raw");
            assert_eq!(site.volume(0).await.status, VolumeStatus::Error, "{named:?}");
            assert!(read_disk(&site).await.is_none(), "{named:?}");
            fs::remove_file(site.path("disk")).unwrap();
        }
    }

    let site = Site::with_disk(&with_backing);
    let base = make_raw(&site.path("base"), SIZE);
    make(&site, Path::new("base"), "raw");
    assert!(read_disk(&site).await.unwrap() == base);

    // Declared raw, so a header in it is bytes; whatever the image itself says of it.
    let imitation = Site::with_disk(&with_backing);
    make_qcow2(&imitation.path("base"), SIZE, &[]);
    make(&imitation, Path::new("base"), "qcow2");
    let raw = fs::read(imitation.path("base")).unwrap();
    assert!(read_disk(&imitation).await.unwrap()[..65_536] == raw[..65_536]);

    // A chain would go on with a name nobody declared.
    let chain = Site::with_disk(
        &with_backing
            .replace("\"raw\"\nrole", "\"qcow2\"\nrole")
            .replace("backing_format = \"raw\"", "backing_format = \"qcow2\""),
    );
    fs::write(chain.path("secret"), &secret).unwrap();
    make(&chain, Path::new("secret"), "raw");
    fs::rename(chain.path("disk"), chain.path("base")).unwrap();
    make(&chain, Path::new("base"), "qcow2");
    assert!(read_disk(&chain).await.is_none());

    // A link in place of the declared file leads nowhere.
    let linked = Site::with_disk(&with_backing);
    fs::write(linked.path("secret"), &secret).unwrap();
    fs::write(linked.path("base"), &secret).unwrap();
    make(&linked, Path::new("base"), "raw");
    fs::remove_file(linked.path("base")).unwrap();
    symlink("secret", linked.path("base")).unwrap();
    assert!(read_disk(&linked).await.is_none());
}

#[tokio::test]
async fn a_data_file_is_never_opened() {
    let site = Site::with_disk(QCOW2);
    done(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", "data_file=data"])
            .arg("disk")
            .arg("1M")
            .current_dir(site.path("")),
    );
    assert_eq!(site.volume(0).await.status, VolumeStatus::Error);
    assert!(read_disk(&site).await.is_none());
}

#[tokio::test]
async fn formats_the_reader_does_not_know_are_refused() {
    for options in [["-o", "extended_l2=on"], ["-o", "compression_type=zstd"]] {
        let site = Site::with_disk(QCOW2);
        make_qcow2(&site.path("disk"), SIZE, &options);
        assert_eq!(site.volume(0).await.status, VolumeStatus::Error, "{options:?}");
        assert!(read_disk(&site).await.is_none(), "{options:?}");
    }
}

#[tokio::test]
async fn every_usual_kind_of_qcow2_reads_as_qemu_reads_it() {
    let rows: [&[&str]; 7] = [
        &[],
        &["-c"],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-o", "preallocation=metadata"],
        &["-o", "lazy_refcounts=on"],
    ];
    for options in rows {
        let site = Site::with_disk(QCOW2);
        make_qcow2(&site.path("disk"), 5 * SIZE + 512, options);
        guest_write(&site.path("disk"), 3_000_000, 100_000, 0x5a);
        let wanted = judge(&site.path("disk"), "qcow2");
        assert!(read_disk(&site).await.unwrap() == wanted, "{options:?}");
    }
}

#[tokio::test]
async fn what_is_no_regular_file_is_no_disk() {
    type Make = fn(&Path);
    let rows: [(&str, Make); 6] = [
        ("nothing", |_| {}),
        ("a folder", |path| fs::create_dir(path).unwrap()),
        ("a FIFO", |path| {
            let folder = File::open(path.parent().unwrap()).unwrap();
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(folder, "disk", rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }),
        ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
        ("a link to a device", |path| symlink("/dev/zero", path).unwrap()),
        ("a link to a file beside it", |path| {
            fs::write(path.with_extension("other"), [1; 4096]).unwrap();
            symlink("disk.other", path).unwrap();
        }),
    ];
    for lines in [RAW, QCOW2] {
        for (what, make) in rows {
            let site = Site::with_disk(lines);
            make(&site.path("disk"));
            assert_eq!(site.volume(0).await.status, VolumeStatus::Error, "{what}");
            assert!(read_disk(&site).await.is_none(), "{what}");
            let cloud = site.open();
            cloud.stop_server(&server_ref()).await.unwrap();
            let writer = cloud.open_for_writing(&server_ref(), &volume_id(0), "m").await;
            assert_eq!(writer.unwrap_err().kind, CloudErrorKind::Permanent, "{what}");
            assert_eq!(cloud.list_marks(&server_ref()).await.unwrap(), [], "{what}");
        }
    }
}

#[tokio::test]
async fn an_empty_or_endless_file_is_a_broken_disk() {
    let site = Site::with_disk(RAW);
    let file = File::create(site.path("disk")).unwrap();
    assert_eq!(site.volume(0).await.status, VolumeStatus::Error);
    // As large as this file system lets a file be, in holes; more than it is an error anyway.
    let largest = (36..63).rev().map(|bits| 1_u64 << bits).find(|size| file.set_len(*size).is_ok());
    let size = largest.unwrap();
    let volume = site.volume(0).await;
    let fits = size <= 1 << 46;
    assert_eq!(volume.status == VolumeStatus::Healthy, fits);
    assert_eq!(volume.size_bytes, if fits { size } else { 0 });
}

/// A disk's name is swapped between its file and a link out of the folder as fast as it
/// goes: what is read is the disk or an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_file_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, vec![0x5e; SIZE]).unwrap();
    let site = Site::with_disk(RAW);
    fs::write(site.path("disk"), vec![0x01; SIZE]).unwrap();
    fs::write(site.path("own"), vec![0x01; SIZE]).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = std::thread::spawn({
        let (disk, own, aside) = (site.path("disk"), site.path("own"), site.path("aside"));
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                symlink(&secret, &aside).unwrap();
                fs::rename(&aside, &disk).unwrap();
                fs::hard_link(&own, &aside).unwrap();
                fs::rename(&aside, &disk).unwrap();
            }
        }
    });
    let cloud = site.open();
    let mut reads = 0;
    for _ in 0..300 {
        if let Ok(back) = cloud.open_for_read_back(&server_ref(), &volume_id(0)).await {
            let mut bytes = [0; 512];
            back.read_at(0, &mut bytes).unwrap();
            assert_eq!(bytes, [0x01; 512], "something else than the disk was read");
            reads += 1;
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    assert!(reads > 0, "no read came through");
}
