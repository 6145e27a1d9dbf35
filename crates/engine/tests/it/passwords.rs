//! Changing the password of a repository: at every moment what is noted opens it.

use std::{path::Path, sync::Arc};

use kedge_engine::{
    Backend, EngineError, KdfCost, LocalBackend, MemoryBackend, ObjectKind, ObjectName, Password,
    Repository,
};

use crate::support::{
    Disk, PASSWORD, assert_restores, at_secs, back_up, create, distinct_chunks, now, store_options,
    try_restic,
};

fn opens(backend: &Arc<dyn Backend>, password: &str) -> bool {
    match Repository::open(Arc::clone(backend), &Password::new(password)) {
        Ok(_) => true,
        Err(EngineError::WrongPassword) => false,
        Err(error) => panic!("{error}"),
    }
}

fn keys(backend: &dyn Backend) -> usize {
    backend.list(ObjectKind::Key).unwrap().len()
}

#[test]
fn a_new_password_opens_beside_the_old_one_until_that_is_removed() {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    let repo = create(Arc::clone(&backend)).unwrap();
    let disk = Disk::new(distinct_chunks(1, 2));
    let (snapshot, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();

    let orphan = repo.add_password(&Password::new("orphan"), KdfCost::CHEAP, now()).unwrap();
    let kept = repo.add_password(&Password::new("new"), KdfCost::CHEAP, at_secs(1)).unwrap();
    assert_ne!(orphan, kept);
    assert!(["new", "orphan", PASSWORD].iter().all(|password| opens(&backend, password)));

    assert_eq!(repo.remove_passwords_but(kept).unwrap(), 2);
    assert_eq!(repo.remove_passwords_but(kept).unwrap(), 0, "a second time");
    assert!(opens(&backend, "new"));
    assert!(!opens(&backend, "orphan") && !opens(&backend, PASSWORD));
    let reopened = Repository::open(backend, &Password::new("new")).unwrap();
    let reopened = Arc::new(reopened.load_index().unwrap());
    assert_restores(&reopened, snapshot, &disk.bytes);
}

/// Only the first few key objects are tried, by restic too.
#[test]
fn a_password_that_no_reader_would_find_is_not_added() {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    let repo = create(Arc::clone(&backend)).unwrap();
    for number in 0..20 {
        let name = ObjectName::parse(ObjectKind::Key, &format!("{number:064}")).unwrap();
        backend.put(&name, b"{}").unwrap();
    }
    let before = keys(&*backend);
    assert!(repo.add_password(&Password::new("new"), KdfCost::CHEAP, now()).is_err());
    assert_eq!(keys(&*backend), before);
}

#[test]
fn stock_restic_opens_with_the_new_password_and_what_it_added_itself_stays() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    let backend: Arc<dyn Backend> = Arc::new(LocalBackend::new(&root));
    let repo = create(Arc::clone(&backend)).unwrap();
    let theirs = dir.path().join("theirs");
    std::fs::write(&theirs, "of an auditor").unwrap();
    let added = ["key", "add", "--new-password-file", theirs.to_str().unwrap()];
    assert!(try_restic(&root, &added).status.success());

    let kept = repo.add_password(&Password::new("new"), KdfCost::CHEAP, now()).unwrap();
    assert_eq!(repo.remove_passwords_but(kept).unwrap(), 1);
    assert!(!try_restic(&root, &["snapshots"]).status.success(), "the old password");
    let ours = dir.path().join("ours");
    std::fs::write(&ours, "new").unwrap();
    assert!(restic_opens(&root, &ours) && restic_opens(&root, &theirs));
}

fn restic_opens(root: &Path, password: &Path) -> bool {
    let password = password.to_str().unwrap();
    try_restic(root, &["snapshots", "--password-file", password]).status.success()
}
