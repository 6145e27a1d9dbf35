//! Stock restic is the judge of what we write, and we read what it writes.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc};

use kedge_engine::{Backend, ChunkSize, ExtentKind, LocalBackend, NoProgress};

use crate::support::{
    Disk, KIB, MIB, Repo, assert_clean, assert_restores, at_secs, back_up, begin, create, cut_into,
    noise, open, restic, store_options, try_restic, volume,
};

struct Place {
    dir: tempfile::TempDir,
    repo: Repo,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend = Arc::new(LocalBackend::new(dir.path().join("repo")));
        let repo = create(backend).unwrap();
        Self { dir, repo }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    fn reopened(&self) -> Repo {
        open(Arc::new(LocalBackend::new(self.path())) as Arc<dyn Backend>).unwrap()
    }

    fn check(&self) {
        let path = self.path();
        restic(&path, &["check", "--read-data"]);
        assert_clean(&self.reopened());
    }

    fn assert_dumps(&self, snapshot: impl ToString, bytes: &[u8]) {
        let dumped = restic(&self.path(), &["dump", &snapshot.to_string(), "/vol/disk.raw"]);
        assert!(dumped == bytes, "restic dumps other bytes");
    }
}

/// Zeroes at the start, text, noise, a hole, and an end that fills no chunk.
fn mixed_disk() -> Vec<u8> {
    let mut bytes = vec![0; 9 * MIB + 100 * KIB + 17];
    bytes[2 * MIB..3 * MIB].copy_from_slice(&b"compressible text ".repeat(MIB / 16)[..MIB]);
    bytes[3 * MIB..6 * MIB].copy_from_slice(&noise(1, 3 * MIB));
    bytes[9 * MIB..].fill(b'e');
    bytes
}

#[test]
fn restic_accepts_full_and_incremental_backups_and_what_is_left_after_a_deletion() {
    for chunk_size in [ChunkSize::Kib512, ChunkSize::Mib4] {
        let place = Place::new();
        let first_bytes = mixed_disk();
        let disk = Disk::new(first_bytes.clone());
        let (first, _) = back_up(&place.repo, &disk, None, &cut_into(chunk_size), "one").unwrap();
        place.check();
        place.assert_dumps(first, &first_bytes);

        let mut second_bytes = first_bytes.clone();
        second_bytes[4 * MIB + 5..4 * MIB + 25].fill(7);
        let extents = [
            (4 * MIB, ExtentKind::Unchanged),
            (4 * MIB + 64 * KIB, ExtentKind::Data),
            (second_bytes.len(), ExtentKind::Unchanged),
        ];
        let disk = Disk::with_extents(second_bytes.clone(), &extents);
        let parent = volume(&place.repo, first).unwrap();
        assert_eq!(parent.chunk_size(), Some(chunk_size));
        let (second, stored) =
            back_up(&place.repo, &disk, Some(&parent), &store_options(), "two").unwrap();
        assert_eq!((stored.changed_chunks, stored.new_chunks), (1, 1));
        place.check();
        place.assert_dumps(first, &first_bytes);
        place.assert_dumps(second, &second_bytes);

        place.repo.delete_snapshot(first).unwrap();
        place.check();
        place.assert_dumps(second, &second_bytes);
    }
}

#[test]
fn a_repository_without_snapshots_is_clean() {
    Place::new().check();
}

#[test]
fn restic_restores_everything_below_its_target_and_reads_the_file_beside() {
    let place = Place::new();
    let bytes = mixed_disk();
    let disk = Disk::new(bytes.clone());
    let (id, _) = back_up(&place.repo, &disk, None, &store_options(), "one").unwrap();
    let target = place.dir.path().join("restored");
    let target_text = target.to_str().unwrap();
    restic(&place.path(), &["restore", &id.to_string(), "--target", target_text]);
    assert!(fs::read(target.join("vol/disk.raw")).unwrap() == bytes);
    assert_eq!(fs::read(target.join("server.json")).unwrap(), b"one");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 2);
    let listed = restic(&place.path(), &["ls", "-l", &id.to_string()]);
    let listed = String::from_utf8(listed).unwrap();
    assert!(listed.contains("/vol/disk.raw"), "{listed}");
}

/// `restore --sparse` came with restic 0.15; before, the option is unknown and the
/// fact cannot be asked for. Then at least the list must hold restic's zero blob,
/// which is what makes later versions write holes.
#[test]
fn restic_restores_zeroes_as_holes() {
    for chunk_size in ChunkSize::ALL {
        let place = Place::new();
        let mut bytes = vec![0; 64 * MIB];
        bytes[40 * MIB..41 * MIB].copy_from_slice(&noise(2, MIB));
        let disk = Disk::new(bytes.clone());
        let (id, _) = back_up(&place.repo, &disk, None, &cut_into(chunk_size), "one").unwrap();
        let zero_blob = "07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541";
        let blobs = volume(&place.repo, id).unwrap();
        let zero_blobs = blobs.blobs().iter().filter(|blob| blob.to_string() == zero_blob);
        let data_bytes = chunk_size.bytes().max(1 << 20) as usize;
        assert_eq!(zero_blobs.count(), (64 * MIB - data_bytes) / (512 * KIB));

        let target = place.dir.path().join("sparse");
        let arguments = ["restore", &id.to_string(), "--sparse", "--target"];
        let output =
            try_restic(&place.path(), &[&arguments[..], &[target.to_str().unwrap()]].concat());
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        if complaint.contains("unknown flag: --sparse") {
            continue;
        }
        assert!(output.status.success(), "{complaint}");
        let file = target.join("vol/disk.raw");
        assert!(fs::read(&file).unwrap() == bytes);
        assert!(fs::metadata(&file).unwrap().blocks() * 512 < 8 * MIB as u64);
    }
}

#[test]
fn restic_sees_the_lock_of_a_session_and_no_lock_afterwards() {
    let place = Place::new();
    let locks = || {
        let listed = String::from_utf8(restic(&place.path(), &["list", "locks", "--no-lock"]));
        listed.unwrap().lines().count()
    };
    let session = begin(&place.repo).unwrap();
    assert_eq!(locks(), 1);
    let pruned = try_restic(&place.path(), &["prune"]);
    let complaint = String::from_utf8_lossy(&pruned.stderr).into_owned();
    assert!(!pruned.status.success() && complaint.contains("session-1"), "{complaint}");
    session.refresh_lock(at_secs(300)).unwrap();
    assert_eq!(locks(), 1);
    session.close().unwrap();
    assert_eq!(locks(), 0);
    restic(&place.path(), &["prune"]);
}

#[test]
fn what_restic_writes_into_the_repository_and_prunes_away_leaves_ours_restorable() {
    let place = Place::new();
    let bytes = mixed_disk();
    let mut other = bytes.clone();
    other[3 * MIB..5 * MIB].copy_from_slice(&noise(5, 2 * MIB));
    let (doomed, _) =
        back_up(&place.repo, &Disk::new(other), None, &store_options(), "doomed").unwrap();
    let disk = Disk::new(bytes.clone());
    let (kept, _) = back_up(&place.repo, &disk, None, &store_options(), "kept").unwrap();

    // restic backs up a volume laid out like ours, which our reader then restores.
    let foreign_bytes = noise(3, 5 * MIB);
    let foreign = place.dir.path().join("foreign");
    fs::create_dir_all(foreign.join("vol")).unwrap();
    fs::write(foreign.join("vol/disk.raw"), &foreign_bytes).unwrap();
    let output = std::process::Command::new("restic")
        .args(["--no-cache", "backup", "vol"])
        .current_dir(&foreign)
        .env("RESTIC_REPOSITORY", place.path())
        .env("RESTIC_PASSWORD", crate::support::PASSWORD)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    restic(&place.path(), &["forget", &doomed.to_string()]);
    restic(&place.path(), &["prune", "--max-unused", "0"]);
    place.check();

    // The handle opened before finds out about all of it.
    for repo in [place.reopened(), Arc::clone(&place.repo)] {
        assert_restores(&repo, kept, &bytes);
        let snapshots = repo.list_snapshots().unwrap();
        assert_eq!(snapshots.len(), 2);
        let foreign = snapshots.iter().find(|snapshot| snapshot.id != kept).unwrap();
        assert_restores(&repo, foreign.id, &foreign_bytes);
        let view = volume(&repo, foreign.id).unwrap();
        assert_eq!(view.chunk_size(), None);
    }

    // Blobs that were pruned are stored anew, and a foreign list is no parent to skip by.
    let foreign = place.repo.list_snapshots().unwrap();
    let foreign = foreign.iter().find(|snapshot| snapshot.id != kept).unwrap();
    let view = volume(&place.repo, foreign.id).unwrap();
    let disk = Disk::unchanged(foreign_bytes.clone());
    let (next, stored) =
        back_up(&place.repo, &disk, Some(&view), &store_options(), "next").unwrap();
    assert_eq!(stored.read_bytes, 5 * MIB as u64);
    place.check();
    place.assert_dumps(next, &foreign_bytes);
}

#[test]
fn two_sessions_at_once_leave_a_repository_restic_accepts() {
    let place = Place::new();
    let shared = noise(6, 2 * MIB);
    let disk = |seed| Disk::new([shared.clone(), noise(seed, MIB), vec![0; MIB]].concat());
    let (left, right) = (disk(7), disk(8));
    let sessions = [begin(&place.repo).unwrap(), begin(&place.reopened()).unwrap()];
    let stored: Vec<_> = sessions
        .iter()
        .zip([&left, &right])
        .map(|(session, disk)| {
            session.store_volume(disk, None, &store_options(), &NoProgress).unwrap()
        })
        .collect();
    let mut snapshots = Vec::new();
    for ((session, stored), tag) in sessions.iter().zip(stored).zip(["left", "right"]) {
        let tree =
            session.finish_tree(&[("vol", stored.subtree)], &[], crate::support::now()).unwrap();
        snapshots.push(session.write_snapshot(&crate::support::meta(tree, tag)).unwrap());
    }
    drop(sessions);
    place.check();
    place.assert_dumps(snapshots[0], &left.bytes);
    place.assert_dumps(snapshots[1], &right.bytes);
}
