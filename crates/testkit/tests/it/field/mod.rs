//! Failures that others met in the field, each replayed here, with the verdict that is
//! right. A test is named after what happened; the link is the public report.
//!
//! Reports are of other products: what they tell is what can happen to a backup, and the
//! test says what Kedge answers when it does.

mod changes;
mod stored;
mod targets;
mod turmoil;

use kedge_core::checkpoint::Item;
use kedge_core::code::Code;
use kedge_core::ids::ProjectId;
use kedge_core::resource::Server;
use kedge_core::restore::Question;
use kedge_engine::{Backend as _, ObjectKind, ObjectName};
use kedge_store::RestoreStatus;
use kedge_testkit::{Harness, PROJECT};

use crate::support::*;

const MIB: usize = 1 << 20;

async fn verdict(harness: &Harness, question: &Question) -> Result<(), Code> {
    let context = harness.context().await;
    let asked = harness.app.check_restorable(&context, vec![question.clone()]).await;
    asked.unwrap().remove(0).map_err(|no| no.code())
}

/// Yes, and the restore keeps it: these bytes are on the target afterwards.
async fn assert_yes(harness: &Harness, item: &Item, target: &Server, expected: &[Vec<u8>]) {
    let question = straight(item, target);
    assert_eq!(verdict(harness, &question).await, Ok(()));
    scramble(harness, target);
    let restore = begin_restore(harness, item, question).await.unwrap();
    harness.run_jobs_to_their_end().await;
    let ended = find_restore(harness, &restore).await;
    assert_eq!(ended.status, RestoreStatus::Success, "{}", ended.reason);
    assert!(contents(harness, target) == expected, "other bytes than were backed up");
}

/// No with this code, from the check and from the restore, which writes nothing.
async fn assert_no(harness: &Harness, item: &Item, question: Question, code: Code) {
    assert_eq!(verdict(harness, &question).await, Err(code));
    let before = harness.cloud.write_log().len();
    let refused = begin_restore(harness, item, question).await;
    assert_eq!(refused.unwrap_err().code(), code);
    assert_eq!(harness.cloud.write_log().len(), before);
}

/// Packs of the harness's project that hold data: the large ones.
fn packs(harness: &Harness) -> Vec<ObjectName> {
    let store = harness.places.store_of(&ProjectId::new(PROJECT));
    let mut packs = store.inner().list(ObjectKind::Pack).unwrap();
    packs.sort_by_key(|pack| std::cmp::Reverse(pack.size_bytes));
    packs.into_iter().map(|pack| pack.name).collect()
}

fn cut_in_half(harness: &Harness, name: &ObjectName) {
    let store = harness.places.store_of(&ProjectId::new(PROJECT));
    let bytes = store.inner().get(name, u64::MAX).unwrap();
    store.inner().delete(name).unwrap();
    store.inner().put(name, &bytes[..bytes.len() / 2]).unwrap();
}

fn lose(harness: &Harness, name: &ObjectName) {
    harness.places.store_of(&ProjectId::new(PROJECT)).inner().delete(name).unwrap();
}

async fn find_damage(harness: &Harness) {
    assert!(!verify(harness, &ProjectId::new(PROJECT)).await.damaged.is_empty());
}
