//! Stock restic judges what our prune leaves, and prunes after it.

use std::{path::Path, sync::Arc};

use kedge_engine::{Backend, LocalBackend, SnapshotId};

use crate::{
    prune::prune,
    support::{
        Disk, KIB, Repo, assert_clean, assert_restores, back_up, create, noise, open, restic,
        store_options, try_restic,
    },
};

fn reopened(path: &Path) -> Repo {
    open(Arc::new(LocalBackend::new(path)) as Arc<dyn Backend>).unwrap()
}

fn chunks(seeds: &[u64]) -> Vec<u8> {
    seeds.iter().flat_map(|seed| noise(*seed, 512 * KIB)).collect()
}

fn back_up_as(repo: &Repo, seeds: &[u64], tag: &str) -> (SnapshotId, Vec<u8>) {
    let disk = Disk::new(chunks(seeds));
    let (id, _) = back_up(repo, &disk, None, &store_options(), tag).unwrap();
    (id, disk.bytes)
}

#[test]
fn restic_accepts_what_our_prune_leaves_and_prunes_and_backs_up_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repo");
    let repo = create(Arc::new(LocalBackend::new(&path))).unwrap();
    let (one, _) = back_up_as(&repo, &[1, 2, 3, 4], "one");
    let (two, bytes) = back_up_as(&repo, &[3, 5], "two");
    let (three, _) = back_up_as(&repo, &[5, 6, 7], "three");
    repo.delete_snapshot(one).unwrap();
    let report = prune(&repo);
    assert!(report.removed_packs > 0 && report.copied_blobs > 0, "{report:?}");
    assert!(path.join("kedge/marks").read_dir().unwrap().next().is_some());
    restic(&path, &["check", "--read-data"]);
    let dumped = restic(&path, &["dump", &two.to_string(), "/vol/disk.raw"]);
    assert!(dumped == bytes);

    // restic forgets and prunes; a handle of ours that was open meanwhile finds its way.
    restic(&path, &["forget", &three.to_string()]);
    restic(&path, &["prune", "--max-unused", "0"]);
    restic(&path, &["check", "--read-data"]);
    for repo in [&repo, &reopened(&path)] {
        assert_restores(repo, two, &bytes);
        assert_clean(repo);
        assert_eq!(prune(repo).condemned_packs, 0);
    }
    let (four, more) = back_up_as(&repo, &[6, 7, 8], "four");
    restic(&path, &["check", "--read-data"]);
    assert_restores(&reopened(&path), four, &more);
    assert!(restic(&path, &["dump", &four.to_string(), "/vol/disk.raw"]) == more);
}

/// So to honour locks whatever their age is what restic does as well. The one made here
/// has the time of these tests, days or years away from the machine's.
#[test]
fn restic_too_honours_a_lock_of_any_age() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("repo");
    let repo = create(Arc::new(LocalBackend::new(&path))).unwrap();
    back_up_as(&repo, &[1], "one");
    let session = crate::support::begin(&repo).unwrap();
    let pruned = try_restic(&path, &["prune"]);
    let complaint = String::from_utf8_lossy(&pruned.stderr).into_owned();
    assert!(!pruned.status.success() && complaint.contains("session-1"), "{complaint}");
    drop(session);
    restic(&path, &["prune"]);
}
