//! Proofs: a backup is read back, inspected and booted, and what came of it counts.

use std::time::Duration;

use kedge_core::checkpoint::Item;
use kedge_core::code::Code;
use kedge_core::drill::{Boot, DiskReport, StageError};
use kedge_core::evidence::Grade;
use kedge_core::explain::{Repair, Until};
use kedge_core::ids::ProjectId;
use kedge_core::ports::Clock as _;
use kedge_core::proof::{DrillOutcome, Proof, ProofKind, ProofStatus, ProofVerdict};
use kedge_core::resource::Server;
use kedge_engine::{Backend as _, CancelFlag, ObjectKind};
use kedge_service::settings::{Drill, Settings};
use kedge_testkit::{Harness, OTHER_PROJECT, PROJECT, Stage};

use crate::support::*;

const MIB: usize = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);

fn booting() -> Settings {
    Settings { drill: Drill { boots: true, ..Drill::default() }, ..Settings::default() }
}

async fn ask(harness: &Harness, item: &Item, kind: ProofKind) -> Proof {
    let context = harness.context().await;
    harness.app.create_proof(&context, &item.id, kind).await.unwrap()
}

async fn prove(harness: &Harness) -> Proof {
    harness.app.prove_next(&CancelFlag::new()).await.unwrap().unwrap()
}

async fn grade(harness: &Harness, item: &Item, server: &Server) -> (Grade, Option<DrillOutcome>) {
    let context = harness.context().await;
    let questions = vec![straight(item, server)];
    let explained = harness.app.explain_restorable(&context, questions).await.unwrap();
    let evidence = explained[0].evidence.unwrap();
    (evidence.grade, evidence.drilled.map(|drill| drill.outcome))
}

#[tokio::test]
async fn a_drill_reads_everything_and_boots_what_was_backed_up() {
    let harness = Harness::with(booting()).await;
    let (system, data) = (disk(1, 3 * MIB), disk(2, 2 * MIB - 512));
    let server = harness.add_server(&[&system, &data]);
    let saved = back_up(&harness, &server).await;
    // What the server's disks are now does not matter.
    harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(3, MIB));
    assert_eq!(grade(&harness, &saved, &server).await, (Grade::Recorded, None));
    let asked = ask(&harness, &saved, ProofKind::Drill).await;
    assert_eq!((asked.status, &asked.outcome), (ProofStatus::Queued, &None));
    assert_eq!(ask(&harness, &saved, ProofKind::Read).await.id, asked.id, "it does that too");
    let proof = prove(&harness).await;
    let outcome = proof.outcome.clone().unwrap();
    assert_eq!((outcome.verdict, outcome.reason.as_str()), (ProofVerdict::Passed, ""));
    assert_eq!(outcome.disks.len(), 2);
    assert!(matches!(outcome.boot, Some(Boot::Booted { .. })), "{outcome:?}");
    assert_eq!(harness.stage.take_booted(), [[system, data]]);
    let best = (Grade::Drilled, Some(DrillOutcome::Booted));
    assert_eq!(grade(&harness, &saved, &server).await, best);
    let context = harness.context().await;
    assert_eq!(harness.app.list_proofs(&context, &saved.id).await.unwrap(), [proof]);
    assert!(harness.app.prove_next(&CancelFlag::new()).await.unwrap().is_none());
    let harness = harness.restarted().await;
    assert_eq!(grade(&harness, &saved, &server).await, best, "it is kept");
}

#[tokio::test]
async fn what_does_not_boot_is_told_and_was_read_all_the_same() {
    let harness = Harness::with(booting()).await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    ask(&harness, &saved, ProofKind::Drill).await;
    prove(&harness).await;
    assert_eq!(grade(&harness, &saved, &server).await.0, Grade::Drilled);
    let (why, console) = ("No bootable device".to_owned(), vec!["SeaBIOS".to_owned()]);
    harness.stage.will_boot(Ok(Boot::Failed { why, after_ms: 3, console }));
    ask(&harness, &saved, ProofKind::Drill).await;
    let outcome = prove(&harness).await.outcome.unwrap();
    assert_eq!(outcome.verdict, ProofVerdict::Failed);
    assert!(outcome.reason.contains("No bootable device"), "{}", outcome.reason);
    // The later drill counts; its bytes are as good as they were.
    let read = (Grade::Read, Some(DrillOutcome::Failed));
    assert_eq!(grade(&harness, &saved, &server).await, read);
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
}

#[tokio::test]
async fn a_stage_that_fails_says_nothing_of_the_backup() {
    let harness = Harness::with(booting()).await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    harness.stage.will_report(Err(StageError::new("out of memory")));
    ask(&harness, &saved, ProofKind::Drill).await;
    let outcome = prove(&harness).await.outcome.unwrap();
    assert_eq!(
        (outcome.verdict, outcome.reason.as_str()),
        (ProofVerdict::Undecided, "what backups are tried out with does not work")
    );
    assert_eq!(grade(&harness, &saved, &server).await, (Grade::Recorded, None));
    // The inspection finds something: that is the backup's own.
    let problems = vec!["the partition table is damaged".to_owned()];
    harness.stage.will_report(Ok(DiskReport { problems, ..DiskReport::default() }));
    ask(&harness, &saved, ProofKind::Drill).await;
    let outcome = prove(&harness).await.outcome.unwrap();
    assert_eq!(outcome.verdict, ProofVerdict::Failed);
    assert!(harness.stage.take_booted().is_empty(), "what is known to be broken is not booted");
}

#[tokio::test]
async fn damage_that_a_proof_meets_turns_the_verdict_at_once() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, 2 * MIB)]);
    let (saved, packs) = back_up_alone(&harness, &server).await;
    damage(&harness, &server.project_id, &packs.largest);
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()), "nobody knows yet");
    ask(&harness, &saved, ProofKind::Read).await;
    let outcome = prove(&harness).await.outcome.unwrap();
    assert_eq!(outcome.verdict, ProofVerdict::Failed, "{outcome:?}");
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
}

#[tokio::test]
async fn a_proof_that_was_interrupted_is_begun_again() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    let asked = ask(&harness, &saved, ProofKind::Read).await;
    let cancelled = CancelFlag::new();
    cancelled.cancel();
    assert!(harness.app.prove_next(&cancelled).await.unwrap().is_none());
    let harness = harness.restarted().await;
    let proof = prove(&harness).await;
    assert_eq!((proof.id, proof.status), (asked.id, ProofStatus::Done));
}

#[tokio::test]
async fn what_was_deleted_is_not_proved_and_strangers_learn_nothing() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    ask(&harness, &saved, ProofKind::Read).await;
    let token = harness.token(kedge_testkit::STRANGER, OTHER_PROJECT).await;
    let right = kedge_service::context::Right::Write;
    let other = OTHER_PROJECT;
    let stranger = harness.app.authorise(Some(&token), other, right).await.unwrap();
    let foreign = harness.app.create_proof(&stranger, &saved.id, ProofKind::Read).await;
    assert_eq!(foreign.unwrap_err().code(), Code::ItemNotFound);
    let foreign = harness.app.list_proofs(&stranger, &saved.id).await;
    assert_eq!(foreign.unwrap_err().code(), Code::ItemNotFound);
    let context = harness.context().await;
    harness.app.delete(&context, &saved.checkpoint_id, None).await.unwrap();
    harness.run_jobs_to_their_end().await;
    let outcome = prove(&harness).await.outcome.unwrap();
    assert_eq!(outcome.verdict, ProofVerdict::Undecided);
}

/// The turn of each server comes once in a while; one that never was drilled comes first.
#[tokio::test]
async fn servers_are_drilled_in_turn_and_the_latest_backup_stands_for_its_server() {
    let harness = Harness::new().await;
    let (a, b) = (harness.add_server(&[&disk(1, MIB)]), harness.add_server(&[&disk(2, MIB)]));
    back_up(&harness, &a).await;
    harness.clock.advance(DAY);
    let of_b = back_up(&harness, &b).await;
    harness.clock.advance(DAY);
    let of_a = back_up(&harness, &a).await;
    let due = |ago: u32| {
        let at = harness.clock.now().as_micros() - i64::from(ago) * 86_400_000_000;
        kedge_core::time::Timestamp::from_micros(at)
    };
    let project = ProjectId::new(PROJECT);
    for expected in [Some(&of_b), Some(&of_a), None] {
        let found = harness.store.find_undrilled(due(7), due(1), due(0)).await.unwrap();
        assert_eq!(found, expected.map(|item| (project.clone(), item.id.clone())));
        if let Some(item) = expected {
            ask(&harness, item, ProofKind::Drill).await;
            prove(&harness).await;
            harness.clock.advance(Duration::from_secs(1));
        }
    }
    harness.clock.advance(7 * DAY);
    let found = harness.store.find_undrilled(due(7), due(1), due(0)).await.unwrap();
    assert_eq!(found, Some((project.clone(), of_b.id.clone())), "its drill is the oldest");
    // One that came to no end counts for a day.
    harness.stage.will_report(Err(StageError::new("no memory")));
    ask(&harness, &of_b, ProofKind::Drill).await;
    prove(&harness).await;
    let found = harness.store.find_undrilled(due(7), due(1), due(0)).await.unwrap();
    assert_eq!(found, Some((project.clone(), of_a.id)));
    let found = harness.store.find_undrilled(due(7), due(0), due(0)).await.unwrap();
    assert_eq!(found, Some((project, of_b.id)));
}

/// A later reading counts, whichever way it went; and what is damaged is recorded wherever
/// it was met.
#[tokio::test]
async fn a_reading_that_failed_ends_what_an_earlier_one_showed() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    ask(&harness, &saved, ProofKind::Read).await;
    prove(&harness).await;
    assert_eq!(grade(&harness, &saved, &server).await.0, Grade::Read);
    // Every pack, those with the lists included.
    let store = harness.places.store_of(&ProjectId::new(PROJECT));
    for pack in store.inner().list(ObjectKind::Pack).unwrap() {
        store.inner().delete(&pack.name).unwrap();
    }
    let harness = harness.restarted().await;
    harness.clock.advance(DAY);
    ask(&harness, &saved, ProofKind::Read).await;
    let outcome = prove(&harness).await.outcome.unwrap();
    assert_eq!(outcome.verdict, ProofVerdict::Failed, "{outcome:?}");
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::DataDamaged));
    assert_eq!(grade(&harness, &saved, &server).await.0, Grade::Recorded);
}

/// It was asked for before the reading began, and says less.
#[tokio::test]
async fn a_restore_that_took_long_takes_nothing_from_a_later_reading() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    let context = harness.context().await;
    let read_since = async || {
        let questions = vec![straight(&saved, &server)];
        let explained = harness.app.explain_restorable(&context, questions).await.unwrap();
        explained[0].evidence.unwrap().read_since
    };
    begin_restore(&harness, &saved, straight(&saved, &server)).await.unwrap();
    harness.clock.advance(2 * DAY);
    let later = harness.clock.now();
    ask(&harness, &saved, ProofKind::Read).await;
    prove(&harness).await;
    assert_eq!(read_since().await, Some(later));
    harness.run_jobs_to_their_end().await;
    assert_eq!(harness.app.list_proofs(&context, &saved.id).await.unwrap().len(), 2);
    assert_eq!(read_since().await, Some(later));
    // The next reading speaks of now.
    harness.clock.advance(DAY);
    ask(&harness, &saved, ProofKind::Read).await;
    prove(&harness).await;
    assert_eq!(read_since().await, Some(harness.clock.now()));
}

#[tokio::test]
async fn readings_come_before_drills_and_no_project_has_two_turns_while_others_wait() {
    let harness = Harness::new().await;
    let mine = harness.add_server(&[&disk(1, MIB)]);
    let mut items = Vec::new();
    for _ in 0..3 {
        items.push(back_up(&harness, &mine).await);
    }
    ask(&harness, &items[0], ProofKind::Drill).await;
    ask(&harness, &items[1], ProofKind::Drill).await;
    harness.clock.advance(DAY);
    ask(&harness, &items[2], ProofKind::Read).await;
    assert_eq!(prove(&harness).await.item_id, items[2].id);
    let begin = async |last: &ProjectId| {
        let begun = harness.store.begin_proof(Some(last), harness.clock.now()).await;
        begun.unwrap().unwrap().item_id
    };
    assert_eq!(begin(&ProjectId::new(PROJECT)).await, items[0].id, "nobody else waits");
    let theirs = harness.add_server_of(OTHER_PROJECT, &[&disk(2, MIB)]);
    let token = harness.token(kedge_testkit::STRANGER, OTHER_PROJECT).await;
    let right = kedge_service::context::Right::Write;
    let stranger = harness.app.authorise(Some(&token), OTHER_PROJECT, right).await.unwrap();
    harness.app.protect(&stranger, protect_request(&theirs, None)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    let other = ProjectId::new(OTHER_PROJECT);
    let theirs = harness.store.all_items(&other).await.unwrap().pop().unwrap();
    harness.app.create_proof(&stranger, &theirs.id, ProofKind::Drill).await.unwrap();
    assert_eq!(begin(&ProjectId::new(PROJECT)).await, theirs.id);
    assert_eq!(begin(&other).await, items[0].id);
}

async fn demanding(grade: &str, days: Option<u32>) -> Harness {
    let users = demanding_users(grade, days);
    Harness::on(Stage { users, settings: booting(), ..Stage::new().await })
}

#[tokio::test]
async fn a_project_that_demands_evidence_gets_a_no_until_it_is_there() {
    let harness = demanding("B", Some(30)).await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    let context = harness.context().await;
    let questions = vec![straight(&saved, &server)];
    let explained = harness.app.explain_restorable(&context, questions).await.unwrap();
    let [violation] = &explained[0].explanation.violations[..] else { panic!("{explained:?}") };
    assert_eq!(violation.refusal.code(), Code::EvidenceTooWeak);
    assert_eq!(violation.saw[0].value, "D");
    let Repair::Wait(wait) = &violation.repairs[0] else { panic!("{violation:?}") };
    assert_eq!(wait.until, Until::EvidenceIsFound(saved.id.clone()));
    assert!(wait.seconds.is_some());
    // Being asked, it is read back; asked again, only once.
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::EvidenceTooWeak));
    let question = straight(&saved, &server);
    let refused = begin_restore(&harness, &saved, question.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::EvidenceTooWeak);
    assert_eq!(prove(&harness).await.kind, ProofKind::Read);
    assert!(harness.app.prove_next(&CancelFlag::new()).await.unwrap().is_none());
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
    harness.clock.advance(31 * DAY);
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::EvidenceTooWeak), "too old");
    prove(&harness).await;
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
    // What was admitted goes on, however long it takes.
    begin_restore(&harness, &saved, question).await.unwrap();
    harness.clock.advance(31 * DAY);
    harness.run_jobs_to_their_end().await;
    let restored = harness.app.get_item(&harness.context().await, &saved.id).await.unwrap();
    assert_eq!(restored.fault, None);
}

/// What was tried is not tried again at once, however often somebody asks.
#[tokio::test]
async fn a_proof_that_changed_nothing_is_not_repeated_within_the_hour() {
    let harness = demanding("A", None).await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    let (why, console) = ("(initramfs)".to_owned(), Vec::new());
    harness.stage.will_boot(Ok(Boot::Failed { why, after_ms: 3, console }));
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::EvidenceTooWeak));
    assert_eq!(prove(&harness).await.outcome.unwrap().verdict, ProofVerdict::Failed);
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::EvidenceTooWeak));
    assert!(harness.app.prove_next(&CancelFlag::new()).await.unwrap().is_none());
    harness.clock.advance(Duration::from_secs(3601));
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::EvidenceTooWeak));
    prove(&harness).await;
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
}

#[tokio::test]
async fn a_demand_for_the_best_grade_is_met_by_a_drill() {
    let harness = demanding("A", None).await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    assert_eq!(verdict(&harness, &saved, &server).await, Err(Code::EvidenceTooWeak));
    assert_eq!(prove(&harness).await.kind, ProofKind::Drill);
    assert_eq!(verdict(&harness, &saved, &server).await, Ok(()));
}
