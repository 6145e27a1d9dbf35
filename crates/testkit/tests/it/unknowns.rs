//! What is unknown is never yes. Each source of facts (catalogue, cloud, repository, key)
//! goes silent before, or vanishes at every point in the middle of, a question whose answer
//! is no for a reason that this source alone knows; and each tells things older than they
//! look. Whoever asks in whatever way never gets a yes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kedge_cloud::sim::SimOp;
use kedge_core::checkpoint::Item;
use kedge_core::code::Code;
use kedge_core::evidence::Grade;
use kedge_core::ports::{Clock as _, CloudError};
use kedge_core::proof::ProofKind;
use kedge_core::resource::Server;
use kedge_core::restore::Question;
use kedge_engine::{Backend as _, CancelFlag, ObjectKind};
use kedge_service::error::Error;
use kedge_service::fleet::FleetQuestion;
use kedge_service::keys::ServiceKey;
use kedge_service::settings::{Limits, Settings};
use kedge_store::Outage;
use kedge_testkit::{Harness, Stage};

use crate::support::*;

const MIB: usize = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);

/// The ways to ask whether a backup can be restored.
#[derive(Clone, Copy, Debug)]
enum Way {
    Check,
    Explain,
    Receipt,
    Fleet,
    Restore,
}

const WAYS: [Way; 5] = [Way::Check, Way::Explain, Way::Receipt, Way::Fleet, Way::Restore];

/// What came of asking: yes, a reason why not, or no answer at all.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No(Code),
    Failed(Code),
}

impl Answer {
    fn of(answer: Result<Result<(), Code>, Error>) -> Self {
        match answer {
            Ok(Ok(())) => Self::Yes,
            Ok(Err(code)) => Self::No(code),
            Err(Error::Refused(refusal)) => Self::No(refusal.code()),
            Err(error) => Self::Failed(error.code()),
        }
    }
}

/// A backup, a target, and a service that has read nothing yet.
struct World {
    harness: Harness,
    item: Item,
    question: Question,
    context: kedge_service::context::Context,
}

impl World {
    async fn of(harness: &Harness, item: &Item, target: &Server) -> Self {
        let fresh = harness.restarted_with_key(harness.key.clone()).await;
        let (item, question) = (item.clone(), straight(item, target));
        Self { context: fresh.context().await, harness: fresh, item, question }
    }

    async fn ask(&self, way: Way) -> Answer {
        let (app, context) = (&self.harness.app, &self.context);
        let questions = vec![self.question.clone()];
        Answer::of(match way {
            Way::Check => app
                .check_restorable(context, questions)
                .await
                .map(|answers| answers[0].clone().map_err(|no| no.code())),
            Way::Explain => app.explain_restorable(context, questions).await.map(|answers| {
                let verdict = answers[0].explanation.verdict.as_ref();
                verdict.map(drop).map_err(kedge_core::refusal::Refusal::code)
            }),
            Way::Receipt => app.receipt_restorable(context, questions).await.map(|(answers, _)| {
                let verdict = answers[0].explanation.verdict.as_ref();
                verdict.map(drop).map_err(kedge_core::refusal::Refusal::code)
            }),
            Way::Fleet => self.ask_fleet().await,
            Way::Restore => {
                let (item, question) = (&self.item, self.question.clone());
                let request = kedge_service::restore::RestoreRequest {
                    checkpoint: item.checkpoint_id.clone(),
                    question,
                    power_on: kedge_store::PowerOn::Yes,
                    plan: None,
                };
                app.restore(context, request).await.map(|_| Ok(()))
            }
        })
    }

    async fn ask_fleet(&self) -> Result<Result<(), Code>, Error> {
        let time = Duration::from_secs(60);
        let question = FleetQuestion { time, ..FleetQuestion::default() };
        let mut fleet = self.harness.app.ask_fleet(self.context.clone(), question).await?;
        while let Some(page) = fleet.next_page().await? {
            let ours = page.into_iter().find(|one| one.server == self.question.server);
            if let Some(one) = ours {
                return Ok(one.verdict.map(drop).map_err(|causes| causes[0].refusal.code()));
            }
        }
        Ok(Err(Code::CloudSilent))
    }
}

/// A world in which the answer is no, for a reason that only one source knows.
async fn refused(harness: &Harness, code: Code) -> (Item, Server) {
    let seed = code.as_str().bytes().map(u64::from).sum();
    let server = harness.add_server(&[&disk(seed, MIB), &disk(seed + 1, 4096)]);
    let item = match code {
        Code::DataDamaged => back_up_and_damage(harness, &server).await,
        _ => back_up(harness, &server).await,
    };
    match code {
        Code::TargetBusy => drop(begin_backup(harness, &server).await),
        Code::SnapshotMissing => {
            let store = harness.places.store_of(&server.project_id);
            let named = &item.snapshot.as_ref().unwrap().snapshot;
            let listed = store.inner().list(ObjectKind::Snapshot).unwrap();
            let is_ours =
                |name: &kedge_engine::ObjectName| format!("{name:?}").contains(&named[..16]);
            let ours = listed.iter().find(|listed| is_ours(&listed.name)).unwrap();
            store.inner().delete(&ours.name).unwrap();
        }
        Code::ZoneMismatch => {
            harness.cloud.edit_server(&server.id, |server| server.zone = "az-09".to_owned());
        }
        Code::DataDamaged | Code::EvidenceTooWeak | Code::KeyUnavailable => {}
        other => panic!("no world for {other}"),
    }
    (item, server)
}

/// A source that answers so many calls more and then none.
fn vanish(harness: &Harness, source: &str, calls: usize) {
    match source {
        "catalogue" => harness.store.set_outage(Outage::After(calls as u64)),
        "cloud" => {
            let silent = || CloudError::retryable("no answer");
            for op in [SimOp::FindServer, SimOp::ListServers] {
                harness.cloud.pass_next(op, calls);
                harness.cloud.fail_always(op, silent());
            }
        }
        "repository" => {
            let store =
                harness.places.store_of(&kedge_core::ids::ProjectId::new(kedge_testkit::PROJECT));
            let (left, broken) = (AtomicUsize::new(calls), store.clone());
            store.before_each_call(move || {
                let left = left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if left.is_err() {
                    broken.break_down();
                }
            });
        }
        other => panic!("no source {other}"),
    }
}

fn come_back(harness: &Harness) {
    harness.store.set_outage(Outage::None);
    harness.cloud.clear_faults();
    let project = kedge_core::ids::ProjectId::new(kedge_testkit::PROJECT);
    let store = harness.places.store_of(&project);
    store.before_each_call(|| ());
    store.repair();
}

/// Asks with the source vanishing after no call, one call, and so on, until it is silent no
/// more before the answer is there.
async fn ask_while_it_vanishes(harness: &Harness, item: &Item, target: &Server, source: &str) {
    for way in WAYS {
        let truth = World::of(harness, item, target).await.ask(way).await;
        assert!(matches!(truth, Answer::No(_)), "{source} {way:?}: {truth:?}");
        let mut calls = 0;
        loop {
            let world = World::of(harness, item, target).await;
            vanish(harness, source, calls);
            let answer = world.ask(way).await;
            come_back(harness);
            assert_ne!(answer, Answer::Yes, "{source} gone after {calls} calls, {way:?}");
            if answer == truth && calls > 0 {
                break;
            }
            calls += 1;
            assert!(calls < 60, "{source} {way:?}: {answer:?} is not {truth:?}");
        }
        // Back again, it tells what it told before.
        assert_eq!(World::of(harness, item, target).await.ask(way).await, truth);
    }
}

#[tokio::test]
async fn a_source_that_vanishes_in_the_middle_never_makes_a_yes() {
    let users = demanding_users("B", None);
    let strict = Harness::on(Stage { users, ..Stage::new().await });
    let (item, server) = refused(&strict, Code::EvidenceTooWeak).await;
    for source in ["catalogue", "repository", "cloud"] {
        ask_while_it_vanishes(&strict, &item, &server, source).await;
    }
    for code in [Code::TargetBusy, Code::SnapshotMissing, Code::DataDamaged, Code::ZoneMismatch] {
        let harness = Harness::new().await;
        let (item, server) = refused(&harness, code).await;
        let told = World::of(&harness, &item, &server).await.ask(Way::Check).await;
        assert_eq!(told, Answer::No(code));
        harness.cloud.clear_write_log();
        for source in ["catalogue", "repository", "cloud"] {
            ask_while_it_vanishes(&harness, &item, &server, source).await;
        }
        assert_eq!(harness.cloud.write_log(), []);
    }
}

/// Where everything is well, a source that is gone from the start is told by its own code.
#[tokio::test]
async fn a_source_that_does_not_answer_is_told_by_name() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let item = back_up(&harness, &server).await;
    let world = World::of(&harness, &item, &server).await;
    for (source, expected) in [
        ("catalogue", Answer::Failed(Code::Unavailable)),
        ("repository", Answer::No(Code::RepositoryUnreachable)),
        ("cloud", Answer::No(Code::CloudSilent)),
    ] {
        for way in WAYS {
            vanish(&harness, source, 0);
            let answer = world.ask(way).await;
            come_back(&harness);
            assert_eq!(answer, expected, "{source} {way:?}");
        }
    }
    let other = Arc::new(ServiceKey::random().unwrap());
    let keyless = harness.restarted_with_key(other).await;
    let context = keyless.context().await;
    let world = World { harness: keyless, context, ..world };
    for way in WAYS {
        assert_eq!(world.ask(way).await, Answer::No(Code::KeyUnavailable), "{way:?}");
    }
    assert_eq!(world.harness.store.job_counts().await.unwrap().queued, 0, "nothing was admitted");
}

/// Opened at the end of a test, whatever became of it.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn wait(&self) {
        let open = self.0.lock().unwrap();
        drop(self.1.wait_while(open, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_hangs_is_unreachable_when_the_time_is_over() {
    let limits = Limits { request_time: Duration::from_millis(200), ..Limits::default() };
    let harness = Harness::with(Settings { limits, ..Settings::default() }).await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let item = back_up(&harness, &server).await;
    let store = harness.places.store_of(&server.project_id);
    let gate = Arc::new(Gate::default());
    let closed = gate.clone();
    store.before_each_call(move || closed.wait());
    let questions = vec![straight(&item, &server)];
    let context = harness.context().await;
    let answers = harness.app.check_restorable(&context, questions).await;
    gate.open();
    let code = answers.unwrap()[0].as_ref().unwrap_err().code();
    assert_eq!(code, Code::RepositoryUnreachable);
}

/// What a slow source told may be as old as the question was.
#[tokio::test]
async fn a_fact_is_as_old_as_the_question_for_it() {
    let harness = Harness::new().await;
    let (item, server) = refused(&harness, Code::ZoneMismatch).await;
    let clock = harness.clock.clone();
    harness.cloud.before(SimOp::FindServer, move || clock.advance(Duration::from_secs(20)));
    let asked_at = harness.clock.now();
    let context = harness.context().await;
    let questions = vec![straight(&item, &server)];
    let explained = harness.app.explain_restorable(&context, questions).await.unwrap();
    let saw = explained[0].explanation.violations.iter().flat_map(|violation| &violation.saw);
    let ages: Vec<_> = saw.filter_map(|saw| saw.at).collect();
    assert!(!ages.is_empty() && ages.iter().all(|at| *at <= asked_at), "{ages:?}");
    assert!(explained[0].at >= asked_at.plus(Duration::from_secs(20)));
}

async fn grade(harness: &Harness, item: &Item, server: &Server) -> (Answer, Grade) {
    let context = harness.context().await;
    let questions = vec![straight(item, server)];
    let explained = harness.app.explain_restorable(&context, questions).await.unwrap();
    let verdict = explained[0].explanation.verdict.as_ref().map(drop).map_err(|no| no.code());
    (Answer::of(Ok(verdict)), explained[0].evidence.unwrap().grade)
}

/// A clock that was wrong for a while must not call read what nobody has read, be it then or
/// when its false times have come.
#[tokio::test]
async fn what_a_wrong_clock_saw_is_no_evidence_of_later_backups() {
    let users = demanding_users("B", None);
    let harness = Harness::on(Stage { users, ..Stage::new().await });
    let server = harness.add_server(&[&disk(1, MIB)]);
    let before = back_up(&harness, &server).await;
    harness.clock.set_wrong_by(7200);
    harness.app.watch(&CancelFlag::new()).await;
    harness.clock.set_wrong_by(0);
    assert_eq!(grade(&harness, &before, &server).await, (Answer::Yes, Grade::Read));

    harness.clock.advance(Duration::from_secs(60));
    harness.cloud.overwrite(&server.volumes[0].id, 0, &disk(2, MIB));
    let after = back_up(&harness, &server).await;
    let unread = (Answer::No(Code::EvidenceTooWeak), Grade::Recorded);
    assert_eq!(grade(&harness, &after, &server).await, unread);
    harness.clock.advance(Duration::from_secs(3 * 3600));
    assert_eq!(grade(&harness, &after, &server).await, unread, "the false time has come");
    harness.app.watch(&CancelFlag::new()).await;
    assert_eq!(grade(&harness, &after, &server).await, (Answer::Yes, Grade::Read));
}

#[tokio::test]
async fn what_was_seen_by_a_clock_ahead_has_no_age_and_is_seen_again() {
    let users = demanding_users("B", Some(1));
    let harness = Harness::on(Stage { users, ..Stage::new().await });
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    harness.clock.set_wrong_by(400 * 86_400);
    harness.app.watch(&CancelFlag::new()).await;
    assert_eq!(grade(&harness, &saved, &server).await.0, Answer::Yes);
    harness.clock.set_wrong_by(0);
    let (answer, _) = grade(&harness, &saved, &server).await;
    assert_eq!(answer, Answer::No(Code::EvidenceTooWeak));
    // Neither watching nor proving waits for a year: both were asked for just now.
    let read = harness.app.watch(&CancelFlag::new()).await.read_bytes;
    assert!(read > 0, "a round that ended in the future is over");
    assert_eq!(grade(&harness, &saved, &server).await.0, Answer::Yes);
    harness.clock.advance(2 * DAY);
    assert_eq!(grade(&harness, &saved, &server).await.0, Answer::No(Code::EvidenceTooWeak));
}

#[tokio::test]
async fn what_was_tried_or_put_off_by_a_clock_ahead_is_done_now() {
    let users = demanding_users("B", None);
    let harness = Harness::on(Stage { users, ..Stage::new().await });
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    harness.clock.set_wrong_by(400 * 86_400);
    // A proof that told nothing, and a job that waits.
    let context = harness.context().await;
    harness.app.create_proof(&context, &saved.id, ProofKind::Drill).await.unwrap();
    let failed = kedge_core::drill::StageError::new("no memory");
    harness.stage.will_report(Err(failed));
    harness.app.prove_next(&CancelFlag::new()).await.unwrap();
    let (_, waiting) = begin_backup(&harness, &server).await;
    harness.clock.set_wrong_by(0);

    let now = harness.clock.now();
    let ids = std::slice::from_ref(&saved.id);
    let lately = now.minus(DAY);
    let tried = harness.store.proved_since(ids, ProofKind::Read, lately, now).await.unwrap();
    assert!(tried.is_empty(), "nothing was tried tomorrow");
    harness.run_jobs().await;
    let made = item(&harness, &waiting).await;
    assert_eq!(made.status, kedge_core::status::ItemStatus::Available);
}
