//! What several tests need: disks, requests, and waiting for ends.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kedge_core::checkpoint::{Item, Method};
use kedge_core::code::Code;
use kedge_core::ids::{CheckpointId, ItemId, PlanId, ProjectId, RestoreId};
use kedge_core::resource::{SERVER_TYPE, Server};
use kedge_core::restore::{Mapping, Pair, Question};
use kedge_engine::layer::Fault;
use kedge_engine::{
    Backend as _, BackendError, CancelFlag, ForeignLocks, NoProgress, ObjectKind, ObjectName,
    PruneReport, VerifyOptions, VerifyOutcome,
};
use kedge_service::care::{Prune, Run};
use kedge_service::error::Error;
use kedge_service::identity::UsersSource;
use kedge_service::protect::ProtectRequest;
use kedge_service::repositories::RepositoryError;
use kedge_service::restore::RestoreRequest;
use kedge_store::{PowerOn, Restore};
use kedge_testkit::{Harness, PASSWORD, PROJECT, users_text};

/// Bytes that differ from place to place and compress a little.
pub(crate) fn disk(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
        bytes.extend_from_slice(b"the same words everywhere");
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn protect_request(server: &Server, method: Option<Method>) -> ProtectRequest {
    ProtectRequest {
        server: server.id.clone(),
        resource_type: SERVER_TYPE.to_owned(),
        name: None,
        description: String::new(),
        method,
        tags: Vec::new(),
        excluded: Vec::new(),
    }
}

/// The harness's users, whose project demands evidence.
pub(crate) fn demanding_users(grade: &str, days: Option<u32>) -> UsersSource {
    let head = format!("name = \"demo\"\nevidence_grade = \"{grade}\"\n");
    let days = days.map(|days| format!("evidence_days = {days}\n")).unwrap_or_default();
    let users = users_text(PASSWORD).replacen("name = \"demo\"\n", &(head + &days), 1);
    UsersSource::Text(users)
}

/// Removes from the repository whatever no backup needs. The service is to be restarted.
pub(crate) async fn prune(harness: &Harness, project: &ProjectId) {
    try_prune(harness, project).await.unwrap();
}

pub(crate) async fn try_prune(
    harness: &Harness,
    project: &ProjectId,
) -> Result<PruneReport, RepositoryError> {
    let how = Prune {
        unused_percent_max: 0,
        repack_bytes_max: u64::MAX,
        foreign_locks: ForeignLocks::Honour,
        run: Run::Really,
    };
    let (cancel, progress) = (CancelFlag::new(), Arc::new(NoProgress));
    harness.app.repositories().prune(project, how, cancel, progress).await
}

/// How a watch ends before its time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interruption {
    Outage,
    /// One call fails, and the next is answered.
    Hiccup,
    Shutdown,
}

/// Watches, interrupted at the store's call after so many; whether it came to that.
pub(crate) async fn watch_interrupted(harness: &Harness, calls: usize, how: Interruption) -> bool {
    let store = harness.places.store_of(&ProjectId::new(PROJECT));
    let (cancel, left) = (CancelFlag::new(), AtomicUsize::new(calls + 1));
    let (flag, same) = (cancel.clone(), Arc::downgrade(&store));
    store.before_each_call(move || {
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        match (before, how, same.upgrade()) {
            (Ok(1), Interruption::Shutdown, _) => flag.cancel(),
            (Ok(1), Interruption::Outage, Some(store)) => store.break_down(),
            (Ok(1), Interruption::Hiccup, Some(store)) => {
                let error = BackendError::Unreachable { text: "hiccup".into() };
                store.fail_after(0, Fault::Before(error));
            }
            _ => {}
        }
    });
    let since = store.recorded().len();
    harness.app.watch(&cancel).await;
    store.before_each_call(|| {});
    store.repair();
    store.recorded().len() - since > calls
}

/// Admits a backup and returns its ids.
pub(crate) async fn begin_backup(harness: &Harness, server: &Server) -> (CheckpointId, ItemId) {
    let context = harness.context().await;
    let checkpoint = harness.app.protect(&context, protect_request(server, None)).await.unwrap();
    (checkpoint.id.clone(), checkpoint.items[0].id.clone())
}

/// Backs a server up and returns the item as it ended.
pub(crate) async fn back_up(harness: &Harness, server: &Server) -> Item {
    let (_, id) = begin_backup(harness, server).await;
    harness.run_jobs_to_their_end().await;
    item(harness, &id).await
}

/// The packs that a backup stored: those of data are larger than those of lists.
pub(crate) struct NewPacks {
    pub(crate) largest: ObjectName,
    pub(crate) smallest: ObjectName,
}

/// Backs a server up whose data nobody else has.
pub(crate) async fn back_up_alone(harness: &Harness, server: &Server) -> (Item, NewPacks) {
    let store = harness.places.store_of(&server.project_id);
    let packs = || -> BTreeMap<ObjectName, u64> {
        let listed = store.inner().list(ObjectKind::Pack).unwrap();
        listed.into_iter().map(|listed| (listed.name, listed.size_bytes)).collect()
    };
    let before = packs();
    let item = back_up(harness, server).await;
    let new = packs().into_iter().filter(|(name, _)| !before.contains_key(name));
    let mut new: Vec<_> = new.map(|(name, size_bytes)| (size_bytes, name)).collect();
    new.sort_unstable();
    let (smallest, largest) = (new.first().unwrap().1, new.last().unwrap().1);
    (item, NewPacks { largest, smallest })
}

/// The same; damages it in the store, and has a verification find that out.
pub(crate) async fn back_up_and_damage(harness: &Harness, server: &Server) -> Item {
    let (item, packs) = back_up_alone(harness, server).await;
    damage(harness, &server.project_id, &packs.largest);
    let found = verify(harness, &server.project_id).await;
    assert_eq!(found.damaged.len(), 1, "{found:?}");
    item
}

/// Flips a bit of the first blob of a pack.
pub(crate) fn damage(harness: &Harness, project: &ProjectId, pack: &ObjectName) {
    let store = harness.places.store_of(project);
    let mut bytes = store.inner().get(pack, u64::MAX).unwrap();
    bytes[20] ^= 1;
    put_back(harness, project, pack, &bytes);
}

/// Puts an object of the store in place of what is there under its name.
pub(crate) fn put_back(harness: &Harness, project: &ProjectId, name: &ObjectName, bytes: &[u8]) {
    let store = harness.places.store_of(project);
    store.inner().delete(name).unwrap();
    store.inner().put(name, bytes).unwrap();
}

/// What a check says of a backup, its disks in order, and a server.
pub(crate) async fn verdict(harness: &Harness, item: &Item, target: &Server) -> Result<(), Code> {
    let context = harness.context().await;
    let asked = harness.app.check_restorable(&context, vec![straight(item, target)]).await;
    asked.unwrap().remove(0).map(drop).map_err(|no| no.code())
}

/// Reads the project's repository back and notes what is damaged.
pub(crate) async fn verify(harness: &Harness, project: &ProjectId) -> VerifyOutcome {
    let options = VerifyOptions {
        threads: NonZeroUsize::MIN,
        cancel: CancelFlag::new(),
        after: None,
        bytes_max: u64::MAX,
    };
    let repositories = harness.app.repositories();
    repositories.verify(project, options, Arc::new(NoProgress)).await.unwrap()
}

pub(crate) async fn item(harness: &Harness, id: &ItemId) -> Item {
    let context = harness.context().await;
    harness.app.get_item(&context, id).await.unwrap()
}

/// The mapping of each disk backup to the target's disk with the same index.
pub(crate) fn straight(item: &Item, target: &Server) -> Question {
    let pairs = item
        .volumes
        .iter()
        .zip(&target.volumes)
        .map(|(backup, volume)| Pair { backup: backup.id.clone(), volume: volume.id.clone() })
        .collect();
    Question {
        item: item.id.clone(),
        server: target.id.clone(),
        resource_type: SERVER_TYPE.to_owned(),
        mapping: Mapping::new(pairs).unwrap(),
    }
}

/// Admits a restore.
pub(crate) async fn begin_restore(
    harness: &Harness,
    item: &Item,
    question: Question,
) -> Result<RestoreId, Error> {
    begin_planned(harness, item, question, None).await
}

/// The same, naming a plan.
pub(crate) async fn begin_planned(
    harness: &Harness,
    item: &Item,
    question: Question,
    plan: Option<PlanId>,
) -> Result<RestoreId, Error> {
    let context = harness.context().await;
    let checkpoint = item.checkpoint_id.clone();
    let request = RestoreRequest { checkpoint, question, power_on: PowerOn::Yes, plan };
    Ok(harness.app.restore(&context, request).await?.id)
}

pub(crate) async fn find_restore(harness: &Harness, id: &RestoreId) -> Restore {
    let context = harness.context().await;
    harness.app.get_restore(&context, id).await.unwrap()
}

/// What the target's disks hold.
pub(crate) fn contents(harness: &Harness, server: &Server) -> Vec<Vec<u8>> {
    server.volumes.iter().map(|volume| harness.cloud.volume_bytes(&volume.id)).collect()
}

/// Overwrites every disk with something else.
pub(crate) fn scramble(harness: &Harness, server: &Server) {
    for (index, volume) in server.volumes.iter().enumerate() {
        let noise = disk(0xbad + index as u64, usize::try_from(volume.size_bytes).unwrap());
        harness.cloud.overwrite(&volume.id, 0, &noise);
    }
}

/// Hands a line to `cargo xtask ci`, which prints all of them at its end.
pub(crate) fn report_figure(name: &str, line: &str) {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("figures");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(name), format!("{line}\n")).unwrap();
}
