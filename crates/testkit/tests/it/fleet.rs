//! Questions about all servers of a project: each is asked about once, the answers are
//! those of the check, and what is supposed to be lost makes the answers that its loss makes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kedge_core::code::Code;
use kedge_core::fleet::{Losses, Places};
use kedge_core::ids::ServerId;
use kedge_core::ports::CloudError;
use kedge_core::resource::Server;
use kedge_core::tag::Tag;
use kedge_service::context::{Context, Right};
use kedge_service::error::Error;
use kedge_service::fleet::{Fleet, FleetQuestion, Gap, Group, Prospect, Summary};
use kedge_service::keys::ServiceKey;
use kedge_service::settings::Settings;
use kedge_store::Outage;
use kedge_testkit::{Harness, OTHER_PROJECT, STRANGER};

use crate::support::*;

const MIB: usize = 1 << 20;

fn everything() -> FleetQuestion {
    FleetQuestion { time: Duration::from_secs(60), ..FleetQuestion::default() }
}

fn after(losses: Losses) -> FleetQuestion {
    FleetQuestion { losses, ..everything() }
}

fn zones(names: &[&str]) -> Losses {
    Losses { zones: names.iter().map(|name| (*name).to_owned()).collect(), ..Losses::default() }
}

async fn begin(harness: &Harness, question: FleetQuestion) -> Fleet {
    harness.app.ask_fleet(harness.context().await, question).await.unwrap()
}

async fn to_its_end(mut fleet: Fleet) -> (Vec<Prospect>, Summary) {
    let mut all = Vec::new();
    while let Some(page) = fleet.next_page().await.unwrap() {
        all.extend(page);
    }
    (all, fleet.summary().clone())
}

async fn ask(harness: &Harness, question: FleetQuestion) -> (Vec<Prospect>, Summary) {
    to_its_end(begin(harness, question).await).await
}

type Answer = Result<(), Vec<(Code, bool)>>;

fn answers(prospects: &[Prospect]) -> HashMap<ServerId, Answer> {
    let answer = |one: &Prospect| {
        let verdict = one.verdict.as_ref().map(|_| ());
        verdict.map_err(|causes| causes.iter().map(|c| (c.refusal.code(), c.is_supposed)).collect())
    };
    prospects.iter().map(|one| (one.server.clone(), answer(one))).collect()
}

fn now(codes: &[Code]) -> Answer {
    Err(codes.iter().map(|code| (*code, false)).collect())
}

/// A site with one server of every kind, in this order: fine, never backed up, gone, latest
/// backup damaged, busy.
async fn varied() -> (Harness, [Server; 5]) {
    let harness = Harness::new().await;
    let servers = [1, 2, 3, 4, 5].map(|seed| harness.add_server(&[&disk(seed, MIB)]));
    harness.add_server_of(OTHER_PROJECT, &[&disk(9, 4096)]);
    for number in [0, 2, 3, 4] {
        back_up(&harness, &servers[number]).await;
    }
    harness.cloud.remove_server(&servers[2].id);
    harness.clock.advance(Duration::from_secs(60));
    harness.cloud.overwrite(&servers[3].volumes[0].id, 0, &disk(44, MIB));
    back_up_and_damage(&harness, &servers[3]).await;
    begin_backup(&harness, &servers[4]).await;
    (harness, servers)
}

#[tokio::test]
async fn every_server_is_asked_about_once_and_answered_as_the_check_answers() {
    let (harness, servers) = varied().await;
    let (all, summary) = ask(&harness, everything()).await;
    assert_eq!(all.len(), 5);
    assert!(all.is_sorted_by(|a, b| a.server < b.server));
    let expected = [
        Ok(()),
        now(&[Code::NoAvailableBackup]),
        now(&[Code::ServerNotFound]),
        Ok(()),
        now(&[Code::TargetBusy]),
    ];
    let found = answers(&all);
    for (server, expected) in servers.iter().zip(expected) {
        assert_eq!(found[&server.id], expected, "{server:?}");
    }
    let of = |number: usize| all.iter().find(|one| one.server == servers[number].id).unwrap();
    assert_eq!(of(3).passed_over, 1, "the damaged one");
    assert_eq!((of(2).name.as_str(), of(2).zone.as_str()), ("db-1", "az-01"), "as it was");
    let group = |code| Group { code, is_supposed: false, servers: 1 };
    let mut groups = summary.groups.clone();
    groups.sort_by_key(|group| group.code.as_str());
    assert_eq!(
        groups,
        [Code::ServerNotFound, Code::TargetBusy, Code::NoAvailableBackup].map(group)
    );
    assert_eq!((summary.servers, summary.restorable, summary.gaps), (5, 2, vec![]));

    let context = harness.context().await;
    for one in all.iter().filter(|one| one.item.is_some()) {
        let saved = item(&harness, one.item.as_ref().unwrap()).await;
        let server = servers.iter().find(|server| server.id == one.server).unwrap();
        let checked =
            harness.app.check_restorable(&context, vec![straight(&saved, server)]).await.unwrap();
        let first = one.verdict.as_ref().map(|_| ()).map_err(|causes| causes[0].refusal.clone());
        assert_eq!(checked[0], first);
    }
    let token = harness.token(STRANGER, OTHER_PROJECT).await;
    let theirs = harness.app.authorise(Some(&token), OTHER_PROJECT, Right::Read).await.unwrap();
    let (all, _) = to_its_end(harness.app.ask_fleet(theirs, everything()).await.unwrap()).await;
    assert_eq!(all.len(), 1, "the other project's alone");
}

/// Where it is not the planner that is asked but the world that is changed.
#[tokio::test]
async fn a_supposed_loss_makes_the_answers_that_the_loss_makes() {
    let places = Places { store: vec!["vault".to_owned()], key: vec!["safe".to_owned()] };
    let harness = Harness::with(Settings { places, ..Settings::default() }).await;
    let servers = [1, 2].map(|seed| harness.add_server(&[&disk(seed, MIB)]));
    harness.cloud.edit_server(&servers[1].id, |server| server.zone = "az-02".to_owned());
    for server in &servers {
        back_up(&harness, server).await;
    }
    let supposed = |codes: HashMap<ServerId, Answer>| -> HashMap<ServerId, Result<(), Vec<Code>>> {
        let codes_of = |answer: Answer| {
            answer.map_err(|causes| {
                assert!(causes.iter().all(|(_, is_supposed)| *is_supposed));
                causes.into_iter().map(|(code, _)| code).collect()
            })
        };
        codes.into_iter().map(|(server, answer)| (server, codes_of(answer))).collect()
    };
    let happened = |codes: HashMap<ServerId, Answer>| -> HashMap<ServerId, Result<(), Vec<Code>>> {
        let codes_of =
            |answer: Answer| answer.map_err(|causes| causes.into_iter().map(|c| c.0).collect());
        codes.into_iter().map(|(server, answer)| (server, codes_of(answer))).collect()
    };
    let suppose = async |losses: Losses| supposed(answers(&ask(&harness, after(losses)).await.0));
    let store_lost = suppose(Losses { is_store_lost: true, ..Losses::default() }).await;
    assert_eq!(suppose(zones(&["vault"])).await, store_lost);
    let key_lost = suppose(Losses { is_key_lost: true, ..Losses::default() }).await;
    assert_eq!(suppose(zones(&["safe"])).await, key_lost);
    let zone_lost = suppose(zones(&["az-02"])).await;
    assert_eq!(zone_lost[&servers[0].id], Ok(()));
    assert_eq!(zone_lost[&servers[1].id], Err(vec![Code::ServerNotFound]));

    let store = harness.places.store_of(&servers[0].project_id);
    store.break_down();
    assert_eq!(happened(answers(&ask(&harness, everything()).await.0)), store_lost);
    store.repair();
    let other = Arc::new(ServiceKey::random().unwrap());
    let keyless = harness.restarted_with_key(other).await;
    assert_eq!(happened(answers(&ask(&keyless, everything()).await.0)), key_lost);
    harness.cloud.remove_server(&servers[1].id);
    assert_eq!(happened(answers(&ask(&harness, everything()).await.0)), zone_lost);
}

#[tokio::test]
async fn where_nobody_told_what_lies_in_a_zone_the_answer_is_unknown() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, 4096)]);
    back_up(&harness, &server).await;
    let (all, summary) = ask(&harness, after(zones(&["az-09"]))).await;
    assert_eq!(answers(&all)[&server.id], Err(vec![(Code::PlaceNotTold, true)]));
    assert_eq!((summary.servers, summary.restorable), (1, 0));
}

#[tokio::test]
async fn pages_follow_each_other_whoever_knows_the_servers() {
    let harness = Harness::new().await;
    let mut ids: Vec<ServerId> = Vec::new();
    for number in 0..120 {
        let server = harness.add_server(&[&disk(1, 4096)]);
        // A third has a backup, a third of these is gone from the cloud.
        if number % 3 == 0 {
            begin_backup(&harness, &server).await;
        }
        if number % 9 == 0 {
            harness.run_jobs_to_their_end().await;
            harness.cloud.remove_server(&server.id);
        }
        ids.push(server.id);
    }
    ids.sort();
    let (all, summary) = ask(&harness, everything()).await;
    assert_eq!(all.iter().map(|one| one.server.clone()).collect::<Vec<_>>(), ids);
    assert_eq!((summary.servers, summary.gaps), (120, vec![]));
}

#[tokio::test]
async fn zones_and_tags_choose_servers() {
    let harness = Harness::new().await;
    let servers = [1, 2, 3].map(|seed| harness.add_server(&[&disk(seed, 4096)]));
    let context = harness.context().await;
    let prod = Tag::new("env", "prod").unwrap();
    for server in &servers[..2] {
        let request = kedge_service::protect::ProtectRequest {
            tags: vec![prod.clone()],
            ..protect_request(server, None)
        };
        harness.app.protect(&context, request).await.unwrap();
        harness.run_jobs_to_their_end().await;
    }
    // A later backup without the tag hides nothing.
    back_up(&harness, &servers[0]).await;
    harness.cloud.edit_server(&servers[0].id, |server| server.zone = "az-02".to_owned());
    harness.cloud.remove_server(&servers[1].id);
    let chosen = async |question: FleetQuestion| -> Vec<usize> {
        let (all, _) = ask(&harness, question).await;
        let number = |one: &Prospect| servers.iter().position(|s| s.id == one.server).unwrap();
        let mut numbers: Vec<_> = all.iter().map(number).collect();
        numbers.sort_unstable();
        numbers
    };
    let zone = |name: &str| FleetQuestion { zone: Some(name.to_owned()), ..everything() };
    let tagged = FleetQuestion { tag: Some(prod), ..everything() };
    assert_eq!(chosen(everything()).await, [0, 1, 2]);
    assert_eq!(chosen(tagged.clone()).await, [0, 1]);
    assert_eq!(chosen(zone("az-02")).await, [0], "where it is now");
    assert_eq!(chosen(zone("az-01")).await, [1, 2], "where it was, of one that is gone");
    let both = FleetQuestion { tag: tagged.tag, ..zone("az-02") };
    assert_eq!(chosen(both).await, [0]);
}

#[tokio::test]
async fn what_was_not_asked_is_told_as_not_asked() {
    let harness = Harness::new().await;
    let servers = [1, 2].map(|seed| harness.add_server(&[&disk(seed, 4096)]));
    back_up(&harness, &servers[0]).await;

    let question = FleetQuestion { time: Duration::ZERO, ..everything() };
    let (all, summary) = ask(&harness, question).await;
    assert_eq!((all.len(), summary.gaps), (0, vec![Gap::TimeOver]));

    let silent = CloudError::retryable("no answer");
    harness.cloud.fail_next(kedge_cloud::sim::SimOp::ListServers, 1, silent.clone());
    let (all, summary) = ask(&harness, everything()).await;
    assert_eq!((all.len(), summary.gaps), (1, vec![Gap::NotListed]));
    assert!(all[0].verdict.is_ok());

    harness.cloud.fail_always(kedge_cloud::sim::SimOp::FindServer, silent);
    let (all, summary) = ask(&harness, everything()).await;
    assert_eq!((summary.servers, summary.restorable), (2, 0));
    let causes = |number: usize| answers(&all)[&servers[number].id].clone();
    assert_eq!(causes(0), now(&[Code::CloudSilent]));
    assert_eq!(causes(1), now(&[Code::NoAvailableBackup]));
    harness.cloud.clear_faults();

    let mut fleet = begin(&harness, everything()).await;
    harness.store.set_outage(Outage::Total);
    assert!(matches!(fleet.next_page().await, Err(Error::Unavailable(_))));
    harness.store.set_outage(Outage::None);
    assert!(fleet.next_page().await.unwrap().is_none(), "it has ended");
}

#[tokio::test]
async fn a_project_asks_one_such_question_at_a_time() {
    let harness = Harness::new().await;
    harness.add_server(&[&disk(1, 4096)]);
    let context: Context = harness.context().await;
    let first = begin(&harness, everything()).await;
    let second = harness.app.ask_fleet(context.clone(), everything()).await;
    assert!(matches!(second, Err(Error::Busy)), "{second:?}");
    let token = harness.token(STRANGER, OTHER_PROJECT).await;
    let theirs = harness.app.authorise(Some(&token), OTHER_PROJECT, Right::Read).await.unwrap();
    harness.app.ask_fleet(theirs, everything()).await.unwrap();
    drop(first);
    harness.app.ask_fleet(context, everything()).await.unwrap();
}

#[tokio::test]
async fn a_fleet_question_starts_nothing_and_changes_nothing() {
    let (harness, _) = varied().await;
    harness.cloud.clear_write_log();
    let jobs = harness.store.job_counts().await.unwrap();
    let context = harness.context().await;
    harness.store.record_statements();
    to_its_end(harness.app.ask_fleet(context, everything()).await.unwrap()).await;
    let texts = harness.store.take_statements();
    let writes = ["INSERT", "UPDATE", "DELETE", "REPLACE"];
    let is_read = |text: &String| {
        (text.starts_with("SELECT") || text.starts_with("WITH RECURSIVE"))
            && !writes.iter().any(|word| text.contains(word))
    };
    assert!(!texts.is_empty() && texts.iter().all(is_read), "{texts:?}");
    assert_eq!(harness.store.job_counts().await.unwrap(), jobs);
    assert_eq!(harness.cloud.write_log(), []);
}

/// Disk by disk what the check says of the same question: no other disk stands in, and a
/// disk that is there is not called left out.
#[tokio::test]
async fn a_server_whose_disks_changed_is_answered_as_the_check_answers() {
    use kedge_core::resource::{Encryption, Sharing, VolumeRole, VolumeStatus};
    type Edit = fn(&mut Server, kedge_core::resource::Volume);
    let edits: [(Edit, Code); 5] = [
        (|server, other| server.volumes[1] = other, Code::VolumeNotAttached),
        (|server, _| server.volumes[1].size_bytes = 1024, Code::TargetTooSmall),
        (|server, _| server.volumes[1].status = VolumeStatus::Busy, Code::VolumeNotWritable),
        (|server, _| server.volumes[1].sharing = Sharing::Shared, Code::SharedVolumeRestore),
        (|server, _| server.volumes[1].encryption = Encryption::Plain, Code::EncryptionMismatch),
    ];
    for (edit, code) in edits {
        let harness = Harness::new().await;
        let server = harness.add_server(&[&disk(1, MIB), &disk(2, 8192)]);
        harness.cloud.edit_server(&server.id, |server| {
            server.volumes[1].encryption = Encryption::Encrypted;
        });
        let saved = back_up(&harness, &server).await;
        let other = harness.volume(16384, VolumeRole::Data);
        harness.cloud.edit_server(&server.id, |server| edit(server, other));
        let context = harness.context().await;
        let checked =
            harness.app.check_restorable(&context, vec![straight(&saved, &server)]).await.unwrap();
        assert_eq!(checked[0].as_ref().unwrap_err().code(), code);
        let (all, _) = ask(&harness, everything()).await;
        assert_eq!(answers(&all)[&server.id], now(&[code]));
    }
}

#[tokio::test]
async fn an_older_backup_that_only_the_loss_stands_against_is_told_so() {
    let (harness, servers) = varied().await;
    let key_lost = after(Losses { is_key_lost: true, ..Losses::default() });
    let (all, _) = ask(&harness, key_lost).await;
    let one = all.iter().find(|one| one.server == servers[3].id).unwrap();
    assert_eq!(one.passed_over, 1, "the damaged one");
    assert_eq!(answers(&all)[&one.server], Err(vec![(Code::KeyUnavailable, true)]));
}

#[tokio::test]
async fn a_server_whose_zone_cannot_be_seen_is_in_every_zone() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, 4096)]);
    back_up(&harness, &server).await;
    harness.cloud.edit_server(&server.id, |server| server.zone = "az-02".to_owned());
    let zone = |name: &str| FleetQuestion { zone: Some(name.to_owned()), ..everything() };
    assert_eq!(ask(&harness, zone("az-01")).await.1.servers, 0);
    let silent = CloudError::retryable("no answer");
    harness.cloud.fail_always(kedge_cloud::sim::SimOp::FindServer, silent);
    for name in ["az-01", "az-02"] {
        assert_eq!(answers(&ask(&harness, zone(name)).await.0).len(), 1, "{name}");
    }
}

#[tokio::test]
async fn what_nobody_lists_and_nobody_saved_is_no_server() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, 4096)]);
    let failing = CloudError::permanent("no snapshots here");
    harness.cloud.fail_always(kedge_cloud::sim::SimOp::CreateSnapshots, failing);
    let (_, failed) = begin_backup(&harness, &server).await;
    harness.run_jobs_to_their_end().await;
    assert_eq!(item(&harness, &failed).await.status, kedge_core::status::ItemStatus::Error);
    let (all, _) = ask(&harness, everything()).await;
    assert_eq!(answers(&all)[&server.id], now(&[Code::NoAvailableBackup]));
    harness.cloud.remove_server(&server.id);
    assert_eq!(ask(&harness, everything()).await.0, []);
}

#[tokio::test]
async fn lost_servers_are_counted_so_that_a_misspelt_zone_shows() {
    let places = Places { store: vec!["vault".to_owned()], key: vec!["vault".to_owned()] };
    let harness = Harness::with(Settings { places, ..Settings::default() }).await;
    let server = harness.add_server(&[&disk(1, 4096)]);
    back_up(&harness, &server).await;
    for (zone, lost, restorable) in [("az-01", 1, 0), ("az-1", 0, 1)] {
        let (_, summary) = ask(&harness, after(zones(&[zone]))).await;
        assert_eq!((summary.lost, summary.restorable), (lost, restorable), "{zone}");
    }
}

/// However long somebody takes to read the answer.
#[tokio::test]
async fn a_place_is_free_when_the_time_is_over() {
    let harness = Harness::new().await;
    harness.add_server(&[&disk(1, 4096)]);
    let idle = begin(&harness, everything()).await;
    harness.clock.advance(Duration::from_secs(61));
    let second = begin(&harness, everything()).await;
    let (all, summary) = to_its_end(idle).await;
    assert_eq!((all.len(), summary.gaps), (0, vec![Gap::TimeOver]));
    let third = harness.app.ask_fleet(harness.context().await, everything()).await;
    assert!(matches!(third, Err(Error::Busy)), "the first's end frees its own place alone");
    assert_eq!(to_its_end(second).await.0.len(), 1);
}

#[tokio::test]
async fn an_end_frees_the_place() {
    let harness = Harness::new().await;
    harness.add_server(&[&disk(1, 4096)]);
    ask(&harness, everything()).await;
    let mut failed = begin(&harness, everything()).await;
    harness.store.set_outage(Outage::Total);
    failed.next_page().await.unwrap_err();
    drop(failed);
    harness.store.set_outage(Outage::None);
    ask(&harness, everything()).await;
}
