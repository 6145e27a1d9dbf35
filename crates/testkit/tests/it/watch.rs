//! Watching over what is stored: what goes missing or bad turns verdicts by itself.

use std::sync::Arc;
use std::time::Duration;

use kedge_core::code::Code;
use kedge_core::evidence::{Grade, Watch};
use kedge_core::ids::ProjectId;
use kedge_core::ports::Clock as _;
use kedge_core::status::ItemStatus;
use kedge_core::tag::Tag;
use kedge_core::time::Timestamp;
use kedge_engine::layer::{Operation, Rates};
use kedge_engine::{Backend as _, CancelFlag, ObjectKind, ObjectName};
use kedge_service::protect::ProtectRequest;
use kedge_service::settings::{Settings, Verify};
use kedge_service::watch::Watched;
use kedge_testkit::{Harness, PROJECT};

use crate::support::*;

const MIB: usize = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

async fn verdict(
    harness: &Harness,
    item: &kedge_core::checkpoint::Item,
    target: &kedge_core::resource::Server,
) -> (Result<(), Code>, Grade) {
    let context = harness.context().await;
    let questions = vec![straight(item, target)];
    let asked = harness.app.check_restorable(&context, questions.clone()).await.unwrap();
    let explained = harness.app.explain_restorable(&context, questions).await.unwrap();
    let verdict = asked[0].clone().map_err(|no| no.code());
    let same = explained[0].explanation.verdict.as_ref().map(|_| ()).map_err(|no| no.code());
    assert_eq!(same, verdict);
    (verdict, explained[0].evidence.unwrap().grade)
}

async fn watch(harness: &Harness) -> Watched {
    harness.clock.advance(HOUR);
    harness.app.watch(&CancelFlag::new()).await
}

fn objects(harness: &Harness, kind: ObjectKind) -> Vec<ObjectName> {
    let store = harness.places.store_of(&ProjectId::new(PROJECT));
    store.inner().list(kind).unwrap().into_iter().map(|listed| listed.name).collect()
}

#[tokio::test]
async fn what_is_new_is_read_back_once_and_all_of_it_again_in_rounds() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, 3 * MIB)]);
    let saved = back_up(&harness, &server).await;
    assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Recorded));
    let first = watch(&harness).await;
    assert!(first.damaged.is_empty() && first.lost_indexes == 0, "{first:?}");
    assert!(first.read_bytes > 0);
    assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Read));
    let known = harness.store.find_watch(&server.project_id).await.unwrap();
    assert!(known.round_began_at.is_some(), "so little is read in one go: {known:?}");
    // Nothing new, and the next round is not due; then it is.
    assert_eq!(watch(&harness).await.read_bytes, 0);
    harness.clock.advance(30 * 24 * HOUR);
    let again = watch(&harness).await;
    assert_eq!(again.read_bytes * 2, first.read_bytes, "not as new a second time");
    // A later backup is nothing but recorded until it was seen.
    harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(2, MIB));
    let later = back_up(&harness, &server).await;
    assert_eq!(verdict(&harness, &later, &server).await, (Ok(()), Grade::Recorded));
    watch(&harness).await;
    assert_eq!(verdict(&harness, &later, &server).await, (Ok(()), Grade::Read));
}

#[tokio::test]
async fn a_pack_that_vanished_turns_the_verdict_and_nothing_else() {
    let harness = Harness::new().await;
    let other = harness.add_server(&[&disk(3, MIB)]);
    let other_item = back_up(&harness, &other).await;
    let before = objects(&harness, ObjectKind::Pack);
    let server = harness.add_server(&[&disk(4, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    watch(&harness).await;
    let store = harness.places.store_of(&server.project_id);
    let mut packs = store.inner().list(ObjectKind::Pack).unwrap();
    packs.retain(|pack| !before.contains(&pack.name));
    let largest = packs.iter().max_by_key(|pack| pack.size_bytes).unwrap().name;
    store.inner().delete(&largest).unwrap();
    let found = watch(&harness).await;
    assert_eq!(found.damaged.len(), 1, "{found:?}");
    assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::DataDamaged));
    assert_eq!(verdict(&harness, &other_item, &other).await.0, Ok(()));
    // It is stored anew by the next backup.
    let healing = back_up(&harness, &server).await;
    for item in [&saved, &healing] {
        assert_eq!(verdict(&harness, item, &server).await.0, Ok(()));
    }
}

#[tokio::test]
async fn a_flipped_bit_is_found_by_the_round() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(5, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    watch(&harness).await;
    let store = harness.places.store_of(&server.project_id);
    let packs = store.inner().list(ObjectKind::Pack).unwrap();
    let largest = packs.iter().max_by_key(|pack| pack.size_bytes).unwrap().name;
    damage(&harness, &server.project_id, &largest);
    harness.clock.advance(30 * 24 * HOUR);
    assert_eq!(watch(&harness).await.damaged.len(), 1);
    assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::DataDamaged));
}

/// What a lost index object listed is recorded nowhere; the lists of backups tell whom it
/// harms, and go on telling after a restart.
#[tokio::test]
async fn an_index_object_that_vanished_harms_whom_it_harms() {
    let harness = Harness::new().await;
    let other = harness.add_server(&[&disk(6, MIB)]);
    let other_item = back_up(&harness, &other).await;
    let before = objects(&harness, ObjectKind::Index);
    let server = harness.add_server(&[&disk(7, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    watch(&harness).await;
    let store = harness.places.store_of(&server.project_id);
    for index in objects(&harness, ObjectKind::Index) {
        if !before.contains(&index) {
            store.inner().delete(&index).unwrap();
        }
    }
    let harness = harness.restarted().await;
    assert_eq!(watch(&harness).await.lost_indexes, 1);
    assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::DataDamaged));
    assert_eq!(verdict(&harness, &other_item, &other).await.0, Ok(()));
    let harness = harness.restarted().await;
    assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::DataDamaged));
    // Its lists were in what was lost as well; a new backup has its own.
    let healing = back_up(&harness, &server).await;
    assert_eq!(watch(&harness).await.lost_indexes, 1);
    assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::DataDamaged));
    assert_eq!(verdict(&harness, &healing, &server).await.0, Ok(()));
    let context = harness.context().await;
    harness.app.delete(&context, &saved.checkpoint_id, None).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert_eq!(watch(&harness).await.lost_indexes, 0);
    assert_eq!(verdict(&harness, &healing, &server).await.0, Ok(()));
}

/// It may list what a backup needs: of such a backup nothing is known, and never yes.
#[tokio::test]
async fn an_index_object_that_cannot_be_read_is_as_good_as_lost() {
    let harness = Harness::new().await;
    let other = harness.add_server(&[&disk(10, MIB)]);
    let other_item = back_up(&harness, &other).await;
    let before = objects(&harness, ObjectKind::Index);
    let server = harness.add_server(&[&disk(11, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    for index in objects(&harness, ObjectKind::Index) {
        if !before.contains(&index) {
            damage(&harness, &server.project_id, &index);
        }
    }
    // Nobody had read the packs before: they must not pass for read either.
    let harness = harness.restarted().await;
    assert_eq!(watch(&harness).await.lost_indexes, 1);
    let (answer, _) = verdict(&harness, &saved, &server).await;
    assert_eq!(answer, Err(Code::DamageNotLocated));
    assert_eq!(verdict(&harness, &other_item, &other).await.0, Ok(()));
    let known = harness.store.find_watch(&server.project_id).await.unwrap();
    assert_eq!(known.read_index.len(), before.len(), "{known:?}");
}

/// Nothing is known of what is stored while reading goes on.
#[tokio::test]
async fn what_is_known_begins_before_packs_were_listed() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(9, MIB)]);
    back_up(&harness, &server).await;
    let began = harness.clock.now().plus(HOUR);
    // Every list of the store takes a minute.
    let clock = harness.clock.clone();
    let store = harness.places.store_of(&server.project_id);
    store.before_each_call(move || clock.advance(Duration::from_secs(60)));
    watch(&harness).await;
    let known = harness.store.find_watch(&server.project_id).await.unwrap();
    for moment in [known.seen.present_at, known.seen.read_since, known.round_began_at] {
        assert_eq!(moment, Some(began), "{known:?}");
    }
}

#[tokio::test]
async fn a_watch_that_is_cancelled_or_meets_a_silent_store_says_nothing() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(8, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let cancel = CancelFlag::new();
    cancel.cancel();
    harness.app.watch(&cancel).await;
    assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Recorded));
    let store = harness.places.store_of(&server.project_id);
    store.break_down();
    assert_eq!(watch(&harness).await, Watched::default());
    store.repair();
    assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Recorded));
    watch(&harness).await;
    assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Read));
}

/// What names everything else is as easily damaged as the rest, and no index lists it.
#[tokio::test]
async fn a_snapshot_object_that_changed_is_no_snapshot_from_that_moment() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(13, MIB)]);
    let saved = back_up(&harness, &server).await;
    assert_eq!(verdict(&harness, &saved, &server).await.0, Ok(()));
    let store = harness.places.store_of(&server.project_id);
    let [snapshot] = objects(&harness, ObjectKind::Snapshot).try_into().unwrap();
    let whole = store.inner().get(&snapshot, 1 << 20).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for changed in [flipped, whole[..whole.len() - 1].to_vec()] {
        put_back(&harness, &server.project_id, &snapshot, &changed);
        assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::SnapshotMissing));
    }
}

/// An index object that vanished before anybody had looked: nothing tells of it but the lists
/// of the backup that needs it.
#[tokio::test]
async fn an_index_object_that_nobody_ever_saw_is_missed_all_the_same() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(10, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    for index in objects(&harness, ObjectKind::Index) {
        store.inner().delete(&index).unwrap();
    }
    assert_eq!(watch(&harness).await.lost_indexes, 1);
    assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::DataDamaged));
}

/// A process that has read an index object knows more than the store tells by now: that is
/// no evidence, for the next process does not.
#[tokio::test]
async fn what_a_process_remembers_of_a_damaged_index_object_counts_for_nothing() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(11, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    watch(&harness).await;
    let store = harness.places.store_of(&server.project_id);
    let index = objects(&harness, ObjectKind::Index)[0];
    let whole = store.inner().get(&index, u64::MAX).unwrap();
    let put = |bytes: &[u8]| {
        put_back(&harness, &server.project_id, &index, bytes);
    };
    put(&whole[..whole.len() / 2]);
    assert_eq!(watch(&harness).await.lost_indexes, 1);
    assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::DamageNotLocated));
    put(&whole);
    assert_eq!(watch(&harness).await.lost_indexes, 0);
    assert_eq!(verdict(&harness, &saved, &server).await.0, Ok(()));
}

/// Which blobs a pack still holds that was cut short is told at once.
#[tokio::test]
async fn a_pack_that_lost_no_blob_harms_nobody() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(12, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    let packs = store.inner().list(ObjectKind::Pack).unwrap();
    let largest = packs.iter().max_by_key(|pack| pack.size_bytes).unwrap().name;
    let whole = store.inner().get(&largest, u64::MAX).unwrap();
    for (kept, expected) in [
        // Its header is at the end.
        (whole.len() - 1, Ok(())),
        (whole.len() / 2, Err(Code::DataDamaged)),
    ] {
        put_back(&harness, &server.project_id, &largest, &whole[..kept]);
        assert_eq!(watch(&harness).await.damaged.len(), 1);
        assert_eq!(verdict(&harness, &saved, &server).await.0, expected, "{kept} bytes left");
    }
}

/// The order in which a store was asked for packs.
fn packs_read(harness: &Harness, since: usize) -> Vec<ObjectName> {
    let store = harness.places.store_of(&ProjectId::new(PROJECT));
    let mut packs = Vec::new();
    for (operation, name) in store.recorded().split_off(since) {
        let Some(name) = name.filter(|name| name.kind() == ObjectKind::Pack) else { continue };
        let is_read = matches!(operation, Operation::Get | Operation::ReadAt);
        if is_read && !packs.contains(&name) {
            packs.push(name);
        }
    }
    packs
}

#[tokio::test]
async fn what_is_most_at_risk_is_read_back_first() {
    let tag = Tag::new("tier", "gold").unwrap();
    let verify = Verify { first: Some(tag.clone()), ..Verify::default() };
    let harness = Harness::with(Settings { verify, ..Settings::default() }).await;
    let project = ProjectId::new(PROJECT);
    let store = harness.places.store_of(&project);
    let data_of = |before: &[ObjectName]| {
        let mut new = store.inner().list(ObjectKind::Pack).unwrap();
        new.retain(|listed| !before.contains(&listed.name));
        new.into_iter().max_by_key(|listed| listed.size_bytes).unwrap().name
    };
    // A chain whose beginnings were read long ago, one server as any, and one with the tag.
    let chained = harness.add_server(&[&disk(1, MIB)]);
    for turn in 0..7 {
        harness.cloud.overwrite(&chained.volumes[0].id, turn, b"increment");
        back_up(&harness, &chained).await;
    }
    watch(&harness).await;
    let mut data = Vec::new();
    for seed in [2, 3] {
        let server = harness.add_server(&[&disk(seed, 2 * MIB)]);
        let before = objects(&harness, ObjectKind::Pack);
        let tags = if seed == 3 { vec![tag.clone()] } else { Vec::new() };
        let request = ProtectRequest { tags, ..protect_request(&server, None) };
        harness.app.protect(&harness.context().await, request).await.unwrap();
        harness.run_jobs_to_their_end().await;
        data.push(data_of(&before));
    }
    let before = objects(&harness, ObjectKind::Pack);
    harness.cloud.overwrite(&chained.volumes[0].id, 0, &disk(4, MIB / 2));
    back_up(&harness, &chained).await;
    data.push(data_of(&before));

    let since = store.recorded().len();
    assert!(watch(&harness).await.read_bytes > 0);
    let read = packs_read(&harness, since);
    let place = |pack: &ObjectName| read.iter().position(|read| read == pack).unwrap();
    let [usual, tagged, long] = [place(&data[0]), place(&data[1]), place(&data[2])];
    assert!(tagged < long && long < usual, "{tagged} {long} {usual}");
}

/// A notice of a loss that turned out to be a prune says nothing about the next one.
#[tokio::test]
async fn what_was_walked_after_one_loss_is_walked_again_after_the_next() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(13, 2 * MIB)]);
    back_up(&harness, &server).await;
    harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(14, MIB));
    let kept = back_up(&harness, &server).await;
    watch(&harness).await;
    let store = harness.places.store_of(&server.project_id);
    // What a prune does: the same in another object.
    let before = objects(&harness, ObjectKind::Index);
    let first = harness.store.all_items(&server.project_id).await.unwrap().remove(0);
    let context = harness.context().await;
    harness.app.delete(&context, &first.checkpoint_id, None).await.unwrap();
    harness.run_jobs_to_their_end().await;
    prune(&harness, &server.project_id).await;
    let after = objects(&harness, ObjectKind::Index);
    assert!(before.iter().any(|index| !after.contains(index)), "nothing was replaced");
    assert_eq!(watch(&harness).await.lost_indexes, 0);
    assert_eq!(verdict(&harness, &kept, &server).await.0, Ok(()));
    for index in after {
        store.inner().delete(&index).unwrap();
    }
    assert_eq!(watch(&harness).await.lost_indexes, 1);
    assert_eq!(verdict(&harness, &kept, &server).await.0, Err(Code::DataDamaged));
}

/// Damage of another kind is not called a lost index object.
#[tokio::test]
async fn nothing_is_known_of_what_a_lost_index_object_told_of() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(15, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    let index = objects(&harness, ObjectKind::Index)[0];
    let whole = store.inner().get(&index, u64::MAX).unwrap();
    store.inner().delete(&index).unwrap();
    assert_eq!(watch(&harness).await.lost_indexes, 1);
    assert_eq!(verdict(&harness, &saved, &server).await, (Err(Code::DataDamaged), Grade::Recorded));
    store.inner().put(&index, &whole).unwrap();
    let back = watch(&harness).await;
    assert!(back.lost_indexes == 0 && back.read_bytes > 0, "{back:?}");
    assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Read));

    let other = harness.add_server(&[&disk(16, 2 * MIB)]);
    back_up_and_damage(&harness, &other).await;
    assert_eq!(watch(&harness).await.lost_indexes, 0, "a damaged pack is listed");
}

/// Whatever a watch has written down when it ends, the next one rests on no more than that.
#[tokio::test]
async fn an_index_object_that_vanishes_after_an_interrupted_watch_is_missed() {
    for how in [Interruption::Outage, Interruption::Shutdown] {
        for calls in 0.. {
            let harness = Harness::new().await;
            let server = harness.add_server(&[&disk(15, 2 * MIB)]);
            let saved = back_up(&harness, &server).await;
            let is_interrupted = watch_interrupted(&harness, calls, how).await;
            let store = harness.places.store_of(&server.project_id);
            for index in objects(&harness, ObjectKind::Index) {
                store.inner().delete(&index).unwrap();
            }
            assert_eq!(watch(&harness).await.lost_indexes, 1, "{how:?} after {calls}");
            let known = verdict(&harness, &saved, &server).await;
            let expected = (Err(Code::DataDamaged), Grade::Recorded);
            assert_eq!(known, expected, "{how:?} after {calls}");
            if !is_interrupted {
                assert!(calls > 10, "there is little to interrupt: {calls}");
                break;
            }
        }
    }
}

/// What was read before an index object was lost says nothing of when it is back.
#[tokio::test]
async fn what_comes_back_counts_as_read_when_it_was_read_since() {
    for how in [Interruption::Outage, Interruption::Shutdown] {
        for calls in 0.. {
            let harness = Harness::new().await;
            let server = harness.add_server(&[&disk(15, 2 * MIB)]);
            let saved = back_up(&harness, &server).await;
            watch(&harness).await;
            let packs = objects(&harness, ObjectKind::Pack);
            let store = harness.places.store_of(&server.project_id);
            let index = objects(&harness, ObjectKind::Index)[0];
            let whole = store.inner().get(&index, u64::MAX).unwrap();
            store.inner().delete(&index).unwrap();
            // The round that is due now reads nothing of it.
            harness.clock.advance(30 * 24 * HOUR);
            watch(&harness).await;
            let lost = verdict(&harness, &saved, &server).await;
            assert_eq!(lost, (Err(Code::DataDamaged), Grade::Recorded));

            store.inner().put(&index, &whole).unwrap();
            let since = store.recorded().len();
            let is_interrupted = watch_interrupted(&harness, calls, how).await;
            let read = packs_read(&harness, since);
            let known = verdict(&harness, &saved, &server).await;
            assert_eq!(known.0, Ok(()), "{how:?} after {calls}");
            let is_read = packs.iter().all(|pack| read.contains(pack));
            assert!(is_read || known.1 == Grade::Recorded, "{how:?} after {calls}: {known:?}");
            if !is_interrupted {
                assert_eq!(known.1, Grade::Read);
                break;
            }
        }
    }
}

/// What was whole between two looks is no answer after the second.
#[tokio::test]
async fn an_index_object_that_comes_and_goes_is_missed_each_time() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(16, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    watch(&harness).await;
    let store = harness.places.store_of(&server.project_id);
    let index = objects(&harness, ObjectKind::Index)[0];
    let whole = store.inner().get(&index, u64::MAX).unwrap();
    for _ in 0..3 {
        store.inner().delete(&index).unwrap();
        assert_eq!(watch(&harness).await.lost_indexes, 1);
        assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::DataDamaged));
        store.inner().put(&index, &whole).unwrap();
        assert_eq!(verdict(&harness, &saved, &server).await.0, Ok(()));
    }
}

/// A restore is under way while everybody else's lists are walked.
#[tokio::test]
async fn a_backup_that_is_being_restored_is_doubted_like_any_other() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(17, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    watch(&harness).await;
    begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    let store = harness.places.store_of(&server.project_id);
    for index in objects(&harness, ObjectKind::Index) {
        store.inner().delete(&index).unwrap();
    }
    assert_eq!(watch(&harness).await.lost_indexes, 1);
    harness.run_jobs_to_their_end().await;
    let row = harness.store.find_item(&server.project_id, &saved.id).await.unwrap().unwrap();
    assert_eq!(row.status, ItemStatus::Available);
    assert_eq!(verdict(&harness, &row, &server).await.0, Err(Code::DataDamaged));
}

/// Nobody could walk the list while the snapshot object was away.
#[tokio::test]
async fn a_snapshot_object_that_comes_back_alone_makes_no_backup_whole() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(18, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    let [snapshot] = objects(&harness, ObjectKind::Snapshot).try_into().unwrap();
    let whole = store.inner().get(&snapshot, u64::MAX).unwrap();
    let index = objects(&harness, ObjectKind::Index);
    for lost in index.iter().chain([&snapshot]) {
        store.inner().delete(lost).unwrap();
    }
    watch(&harness).await;
    assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::SnapshotMissing));
    store.inner().put(&snapshot, &whole).unwrap();
    for _ in 0..2 {
        assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::DataDamaged));
        watch(&harness).await;
    }
}

/// One damaged backup stays as it is until somebody deletes it: the others are nothing to it.
#[tokio::test]
async fn damage_that_stays_keeps_no_other_backup_from_being_known() {
    let harness = Harness::new().await;
    let harmed = harness.add_server(&[&disk(19, 2 * MIB)]);
    let damaged = back_up_and_damage(&harness, &harmed).await;
    // Its tree is gone with the index object, and with nothing else.
    let before = objects(&harness, ObjectKind::Index);
    let unlisted_server = harness.add_server(&[&disk(20, 2 * MIB)]);
    let unlisted = back_up(&harness, &unlisted_server).await;
    let store = harness.places.store_of(&harmed.project_id);
    for index in objects(&harness, ObjectKind::Index) {
        if !before.contains(&index) {
            store.inner().delete(&index).unwrap();
        }
    }
    assert_eq!(watch(&harness).await.lost_indexes, 1);
    let server = harness.add_server(&[&disk(21, 2 * MIB)]);
    let sound = back_up(&harness, &server).await;
    assert_eq!(watch(&harness).await.lost_indexes, 1, "it is still lost");
    assert_eq!(verdict(&harness, &sound, &server).await, (Ok(()), Grade::Read));
    for (item, server) in [(&damaged, &harmed), (&unlisted, &unlisted_server)] {
        assert_eq!(verdict(&harness, item, server).await.0, Err(Code::DataDamaged));
    }
    assert_eq!(verdict(&harness, &unlisted, &unlisted_server).await.1, Grade::Recorded);
    // And the round goes on.
    harness.clock.advance(30 * 24 * HOUR);
    let again = watch(&harness).await;
    assert!(again.read_bytes > 0, "{again:?}");
    let known = harness.store.find_watch(&server.project_id).await.unwrap();
    assert_eq!(known.round_began_at, known.seen.present_at, "{known:?}");
    // A prune replaces index objects and loses none.
    let context = harness.context().await;
    harness.app.delete(&context, &unlisted.checkpoint_id, None).await.unwrap();
    harness.run_jobs_to_their_end().await;
    prune(&harness, &server.project_id).await;
    assert_eq!(watch(&harness).await.lost_indexes, 0);
    let known = harness.store.find_watch(&server.project_id).await.unwrap();
    assert!(!known.is_in_doubt && known.seen.doubted.is_empty(), "{known:?}");
}

/// More than one turn allows is read in several.
#[tokio::test]
async fn what_a_turn_leaves_unread_is_read_in_the_next() {
    let tag = Tag::new("tier", "gold").unwrap();
    let rates = Rates { bytes_per_sec: Some(1), operations_per_sec: None };
    let verify = Verify { first: Some(tag.clone()), rates, ..Verify::default() };
    let harness = Harness::with(Settings { verify, ..Settings::default() }).await;
    let mut saved = Vec::new();
    for seed in [22, 23] {
        let server = harness.add_server(&[&disk(seed, 2 * MIB)]);
        let request = ProtectRequest { tags: vec![tag.clone()], ..protect_request(&server, None) };
        harness.app.protect(&harness.context().await, request).await.unwrap();
        harness.run_jobs_to_their_end().await;
        let items = harness.store.all_items(&server.project_id).await.unwrap();
        saved.push((items.into_iter().find(|item| item.source.id == server.id).unwrap(), server));
    }
    // Only what is new is read: no round is due.
    let project = ProjectId::new(PROJECT);
    let now = harness.clock.now();
    let watched = Watch { round_began_at: Some(now), ..Watch::default() };
    harness.store.save_watch(&project, &watched, now).await.unwrap();
    let first = watch(&harness).await;
    assert!(first.behind.len() == 1 && first.read_bytes > 0, "{first:?}");
    for (item, server) in &saved {
        assert_eq!(verdict(&harness, item, server).await, (Ok(()), Grade::Present));
    }
    let began = harness.store.find_seen(&project).await.unwrap().present_at;
    let harness = harness.restarted().await;
    let second = watch(&harness).await;
    let known = harness.store.find_seen(&project).await.unwrap();
    assert_eq!(known.read_since, began, "not when it ended");
    assert!(second.behind.is_empty() && second.read_bytes > 0, "{second:?}");
    for (item, server) in &saved {
        assert_eq!(verdict(&harness, item, server).await, (Ok(()), Grade::Read));
    }
    assert_eq!(watch(&harness).await.read_bytes, 0);
}

/// Packs that are gone together with the index object that lists them pass for pruned: nobody
/// has read them.
#[tokio::test]
async fn what_vanishes_while_it_is_read_back_does_not_count_as_read() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(24, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    let packs = store.inner().list(ObjectKind::Pack).unwrap();
    let data = packs.iter().max_by_key(|pack| pack.size_bytes).unwrap().name;
    let index = objects(&harness, ObjectKind::Index);
    let lost: Vec<_> = [vec![data], index].concat();
    let kept: Vec<_> = lost.iter().map(|name| store.inner().get(name, u64::MAX).unwrap()).collect();
    // No list names data but by reading it.
    let (same, names) = (Arc::downgrade(&store), lost.clone());
    store.before_each_call(move || {
        let Some(store) = same.upgrade() else { return };
        let is_data = |(operation, name): &(Operation, Option<ObjectName>)| {
            matches!(operation, Operation::Get | Operation::ReadAt) && *name == Some(data)
        };
        if store.recorded().last().is_some_and(is_data) {
            names.iter().for_each(|name| drop(store.inner().delete(name)));
        }
    });
    let seen = watch(&harness).await;
    assert!(seen.damaged.is_empty() && seen.behind.contains(&server.project_id), "{seen:?}");
    store.before_each_call(|| {});
    for (name, bytes) in lost.iter().zip(kept) {
        store.inner().put(name, &bytes).unwrap();
    }
    assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Present));
    watch(&harness).await;
    assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Read));
}

/// A walk that found no snapshot says nothing of when there is one again.
#[tokio::test]
async fn a_snapshot_object_that_comes_back_is_judged_anew() {
    let harness = Harness::new().await;
    let harmed = harness.add_server(&[&disk(25, 2 * MIB)]);
    let damaged = back_up_and_damage(&harness, &harmed).await;
    let before = objects(&harness, ObjectKind::Snapshot);
    let server = harness.add_server(&[&disk(26, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let mut snapshots = objects(&harness, ObjectKind::Snapshot);
    snapshots.retain(|snapshot| !before.contains(snapshot));
    let store = harness.places.store_of(&server.project_id);
    let whole = store.inner().get(&snapshots[0], u64::MAX).unwrap();
    store.inner().delete(&snapshots[0]).unwrap();
    assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::SnapshotMissing));
    store.inner().put(&snapshots[0], &whole).unwrap();
    assert_eq!(verdict(&harness, &saved, &server).await.0, Ok(()));
    assert_eq!(verdict(&harness, &damaged, &harmed).await.0, Err(Code::DataDamaged));
}

/// What `kedge repo verify` does.
async fn verify_all(harness: &Harness) -> Timestamp {
    let (project, began_at) = (ProjectId::new(PROJECT), harness.clock.now());
    let outcome = verify(harness, &project).await;
    let repositories = harness.app.repositories();
    repositories.record_reading(&project, began_at, outcome.index).await.unwrap();
    began_at
}

#[tokio::test]
async fn a_verification_counts_and_its_work_is_not_done_again() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(30, 3 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let since = async || harness.store.find_seen(&server.project_id).await.unwrap().read_since;
    let verified_at = verify_all(&harness).await;
    // Nothing of a later backup was there yet.
    let newer = harness.add_server(&[&disk(31, MIB)]);
    let later = back_up(&harness, &newer).await;
    let no_round = Watch { round_began_at: Some(verified_at), ..Watch::default() };
    harness.store.save_watch(&server.project_id, &no_round, verified_at).await.unwrap();
    let first = watch(&harness).await;
    assert!(first.read_bytes > 0 && first.read_bytes < MIB as u64 / 2, "{first:?}");
    for (item, server) in [(&saved, &server), (&later, &newer)] {
        assert_eq!(verdict(&harness, item, server).await, (Ok(()), Grade::Read));
    }
    assert_eq!(since().await, Some(verified_at));
    assert_eq!(objects(&harness, ObjectKind::Mark), [], "it was heard");
    // What was read long ago is as good as new when it is verified.
    harness.clock.advance(20 * 24 * HOUR);
    let again = verify_all(&harness).await;
    assert_eq!(since().await, Some(verified_at));
    assert_eq!(watch(&harness).await.read_bytes, 0);
    assert_eq!(since().await, Some(again));
}

/// A clock that was wrong, an object that came back: nothing counts that is not sure.
#[tokio::test]
async fn a_verification_of_what_is_not_there_any_more_or_later_than_now_counts_for_nothing() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(32, 2 * MIB)]);
    let saved = back_up(&harness, &server).await;
    let project = &server.project_id;
    let repositories = harness.app.repositories();
    let index = verify(&harness, project).await.index;
    let tomorrow = harness.clock.now().plus(24 * HOUR);
    repositories.record_reading(project, tomorrow, index).await.unwrap();
    let read = watch(&harness).await.read_bytes;
    assert!(read > 0, "as new, and in a round");
    let known = harness.store.find_watch(project).await.unwrap();
    assert!(known.seen.read_since < Some(tomorrow), "{known:?}");
    // The index object is gone when the watch hears of it, and comes back after.
    let store = harness.places.store_of(project);
    verify_all(&harness).await;
    let [lost] = objects(&harness, ObjectKind::Index).try_into().unwrap();
    let bytes = store.inner().get(&lost, u64::MAX).unwrap();
    store.inner().delete(&lost).unwrap();
    let harness = harness.restarted().await;
    watch(&harness).await;
    assert_eq!(verdict(&harness, &saved, &server).await.0, Err(Code::DataDamaged));
    store.inner().put(&lost, &bytes).unwrap();
    assert_eq!(watch(&harness).await.read_bytes * 2, read, "nobody has read it since");
    assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Read));
}

/// A store that deletes nothing, or a process that dies in between, has it heard twice.
#[tokio::test]
async fn a_verification_that_is_heard_again_says_the_same() {
    for calls in 0.. {
        let harness = Harness::new().await;
        let server = harness.add_server(&[&disk(33, MIB)]);
        let saved = back_up(&harness, &server).await;
        let verified_at = verify_all(&harness).await;
        let is_cut = watch_interrupted(&harness, calls, Interruption::Outage).await;
        let (answer, grade) = verdict(&harness, &saved, &server).await;
        assert!(answer.is_ok());
        let harness = harness.restarted().await;
        watch(&harness).await;
        assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Read));
        let seen = harness.store.find_seen(&server.project_id).await.unwrap();
        assert!(seen.read_since >= Some(verified_at), "{grade:?} after {calls}: {seen:?}");
        if !is_cut {
            assert!(calls > 10, "it went through the watch");
            break;
        }
    }
}

/// What it tells of later is another matter: it may have been away meanwhile, or the moment
/// that it names may have come.
#[tokio::test]
async fn a_verification_is_heard_once_also_where_the_store_keeps_its_mark() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(36, 2 * MIB)]);
    back_up(&harness, &server).await;
    let (project, store) = (&server.project_id, harness.places.store_of(&ProjectId::new(PROJECT)));
    let seen = async || harness.store.find_seen(project).await.unwrap();
    let tomorrow = harness.clock.now().plus(24 * HOUR);
    let index = verify(&harness, project).await.index;
    let repositories = harness.app.repositories();
    repositories.record_reading(project, tomorrow, index).await.unwrap();
    let verified_at = verify_all(&harness).await;
    let kept: Vec<_> = objects(&harness, ObjectKind::Mark)
        .into_iter()
        .map(|mark| (mark, store.inner().get(&mark, u64::MAX).unwrap()))
        .collect();
    assert_eq!(kept.len(), 2);
    let put_back = || kept.iter().for_each(|(mark, bytes)| drop(store.inner().put(mark, bytes)));
    watch(&harness).await;
    put_back();
    assert!(
        seen().await.read_since < Some(tomorrow) && seen().await.read_since >= Some(verified_at)
    );
    harness.clock.advance(25 * HOUR);
    watch(&harness).await;
    put_back();
    assert!(seen().await.read_since < Some(tomorrow), "{:?}", seen().await);
    // An index object comes and goes; the old mark does not vouch for it.
    let [lost] = objects(&harness, ObjectKind::Index).try_into().unwrap();
    let bytes = store.inner().get(&lost, u64::MAX).unwrap();
    store.inner().delete(&lost).unwrap();
    watch(&harness).await;
    put_back();
    store.inner().put(&lost, &bytes).unwrap();
    assert!(watch(&harness).await.read_bytes > 0, "it is read again");
}

/// Every backup is read back within a day, and by the next look where there is time for it.
#[tokio::test]
async fn a_day_of_backups_is_read_back_hour_by_hour() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(34, MIB)]);
    for hour in 0..24 {
        harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(35 + hour, MIB / 4));
        let saved = back_up(&harness, &server).await;
        let seen = watch(&harness).await;
        assert!(seen.behind.is_empty() && seen.damaged.is_empty(), "{seen:?}");
        assert_eq!(verdict(&harness, &saved, &server).await, (Ok(()), Grade::Read));
    }
}
