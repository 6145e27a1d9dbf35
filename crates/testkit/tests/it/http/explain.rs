//! `?explain=true`: why an answer is what it is, and what would mend it, over the wire.

use kedge_core::ports::CloudError;

use super::*;
use crate::support::back_up_and_damage;

impl Caller {
    async fn explain(&self, body: &Value) -> Value {
        let path = self.provider("/resources/action?explain=true");
        only_entry(&self.post_to(&path, body).await.ok()).clone()
    }
}

#[tokio::test]
async fn reasons_come_only_when_they_are_asked_for() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let question = saved.question(&server);
    let usual = only_entry(&caller.check(&question).await.ok()).clone();
    assert_eq!(usual.as_object().unwrap().len(), 5);
    let path = caller.provider("/resources/action?explain=false");
    assert_eq!(*only_entry(&caller.post_to(&path, &question).await.ok()), usual);
    let mut explained = caller.explain(&question).await;
    explained.as_object_mut().unwrap().remove("explanation").unwrap();
    assert_eq!(explained, usual);
    let path = caller.provider("/resources/action?explain=perhaps");
    let refused = caller.post_to(&path, &question).await;
    refused.assert_refused(400, "CSBS.9001", "explain: expected true or false");
}

#[tokio::test]
async fn a_yes_comes_with_its_plan_and_the_estimate_says_what_it_rests_on() {
    let site = Site::new().await;
    let caller = site.member().await;
    let mut disk = vec![0; 3 << 20];
    disk[..1 << 20].copy_from_slice(&crate::support::disk(7, 1 << 20));
    let server = site.harness.add_server(&[&disk]);
    let saved = site.back_up(&caller, &server).await;
    let larger = site.harness.add_server(&[&vec![1; 4 << 20]]);
    let yes = caller.explain(&saved.question(&larger)).await;
    assert_eq!(yes["result"], true);
    assert_eq!(yes["explanation"]["violations"], json!([]));
    let plan = &yes["explanation"]["plan"];
    assert_eq!(
        plan["volumes"],
        json!([{
            "volume_id": larger.volumes[0].id.as_str(), "backup_id": saved.volumes[0],
            "size_bytes": 3 << 20, "data_bytes": 1 << 20, "zero_bytes": 2 << 20,
            "untouched_bytes": 1 << 20}])
    );
    assert_eq!(plan["estimate"]["seconds"], 1);
    assert!(text(&plan["estimate"]["basis"]).starts_with("assumed: 100 MiB"), "{plan}");

    let protectable = caller.explain(&protectable(server.id.as_str())).await;
    let volume = server.volumes[0].id.as_str();
    assert_eq!(
        protectable["explanation"],
        json!({"violations": [], "plan": {"volumes": [{"volume_id": volume, "size_bytes": 3 << 20}]}})
    );
}

#[tokio::test]
async fn a_no_names_every_rule_with_what_it_saw_and_what_would_mend_it() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.harness.add_server(&[&disk(1, 3 << 20)]);
    let saved = site.back_up(&caller, &server).await;
    let small = site.harness.add_server(&[&[1; 4096]]);
    site.harness.clock.advance(std::time::Duration::from_secs(5));
    let mut question = saved.question(&small);
    question["check_restorable"][0]["target"]["resource_type"] = json!("a\u{1b}type");
    let no = caller.explain(&question).await;
    assert_eq!((&no["result"], &no["error_code"]), (&json!(false), &json!("CSBS.6013")));
    let violations = no["explanation"]["violations"].as_array().unwrap();
    assert_eq!(no["explanation"].get("plan"), None);
    assert_eq!(violations.len(), 2, "{no}");
    assert_eq!(violations[0]["rule"], "type_is_server");
    assert_eq!(violations[0]["facts"][0]["value"], "a\\u{1b}type");
    assert_eq!(violations[0]["repairs"][0]["resource_type"], SERVER_TYPE);
    let volume = small.volumes[0].id.as_str();
    assert_eq!(
        violations[1],
        json!({
            "rule": "destinations_are_large_enough", "error_code": "CSBS.6024",
            "error_msg": violations[1]["error_msg"],
            "facts": [
                {"of": "volume_backup", "id": saved.volumes[0], "name": "source_size_bytes",
                 "value": "3145728", "age_ms": 0},
                {"of": "volume", "id": volume, "name": "size_bytes", "value": "4096", "age_ms": 0}],
            "repairs": [{
                "action": "extend_volumes", "text": "Extend these disks by so many GB.",
                "extend": [{"volume_id": volume, "by_gb": 1}]}]})
    );
}

#[tokio::test]
async fn a_damaged_backup_is_answered_with_the_one_that_can_be_restored_now() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let sound = site.back_up(&caller, &server).await;
    let volume = &server.volumes[0];
    site.harness.cloud.overwrite(&volume.id, 0, &disk(99, 1 << 20));
    let damaged = back_up_and_damage(&site.harness, &server).await;
    let saved = Saved {
        record: damaged.checkpoint_id.to_string(),
        item: damaged.id.to_string(),
        volumes: damaged.volumes.iter().map(|volume| volume.id.to_string()).collect(),
    };
    let no = caller.explain(&saved.question(&server)).await;
    assert_eq!(no["error_code"], "KEDGE.0013");
    let repairs = &no["explanation"]["violations"][0]["repairs"];
    assert_eq!(repairs[0]["action"], "choose_item", "{no}");
    assert_eq!(repairs[0]["checkpoint_item_id"], sound.item);
    // What it says works.
    let mut question = sound.question(&server);
    question["check_restorable"][0]["target"]["volumes"] = repairs[0]["volumes"].clone();
    assert_eq!(only_entry(&caller.check(&question).await.ok())["result"], true);
    assert_eq!(repairs[1]["action"], "back_up");
    assert_eq!(repairs[1]["resource_id"], server.id.as_str());
}

#[tokio::test]
async fn a_target_that_will_not_do_is_answered_with_the_server_that_was_backed_up() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let mut nowhere = server.clone();
    nowhere.id = kedge_core::ids::ServerId::asked("0e0e0e0e-0000-4000-8000-000000000000");
    let no = caller.explain(&saved.question(&nowhere)).await;
    assert_eq!(no["error_code"], "CSBS.6000");
    let violations = no["explanation"]["violations"].as_array().unwrap();
    assert_eq!(violations.len(), 1, "{no}");
    let repairs = &violations[0]["repairs"];
    assert_eq!(repairs[0]["action"], "choose_server", "{no}");
    assert_eq!(repairs[0]["resource_id"], server.id.as_str());
    assert_eq!(repairs[0]["volumes"], saved.onto(&server));
}

#[tokio::test]
async fn what_is_under_way_is_named_with_its_job() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let running = Saved::begin(&caller, &server).await;
    let no = caller.explain(&saved.question(&server)).await;
    assert_eq!(no["error_code"], "CSBS.6015");
    let shown = caller.get(&format!("/checkpoint_items/{}", running.item)).await.ok();
    let job = &shown["checkpoint_item"]["extend_info"]["taskid"];
    let repair = &no["explanation"]["violations"][0]["repairs"][0];
    assert_eq!((&repair["action"], &repair["job_id"]), (&json!("wait"), job), "{no}");
    let no = caller.explain(&protectable(server.id.as_str())).await;
    let repair = &no["explanation"]["violations"][0]["repairs"][0];
    assert_eq!((&repair["action"], &repair["job_id"]), (&json!("wait"), job), "{no}");
    let no = caller.explain(&running.question(&server)).await;
    assert_eq!(no["error_code"], "CSBS.4000");
    let repair = &no["explanation"]["violations"][0]["repairs"][0];
    assert_eq!(repair["checkpoint_item_id"], running.item);
    assert_eq!(&repair["job_id"], job);
}

#[tokio::test]
async fn a_backup_that_is_being_restored_elsewhere_names_that_job_and_how_long() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let other = site.add_server();
    caller.restore(&saved.restore_to(&server)).await.ok();
    let job = site.harness.store.list_live_jobs().await.unwrap().remove(0).id;
    let no = caller.explain(&saved.question(&other)).await;
    assert_eq!(no["error_code"], "CSBS.4000");
    let repair = &no["explanation"]["violations"][0]["repairs"][0];
    assert_eq!(repair["job_id"], job.as_str(), "{no}");
    assert_eq!(repair.get("seconds"), None, "nothing is done yet");
}

/// What others restore, and how quickly, is nobody else's business.
#[tokio::test]
async fn estimates_rest_on_the_projects_own_restores() {
    let site = Site::new().await;
    let (caller, stranger) = (site.member().await, site.stranger().await);
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let estimate = async || {
        let answer = caller.explain(&saved.question(&server)).await;
        answer["explanation"]["plan"]["estimate"].clone()
    };
    let before = estimate().await;
    let theirs = site.harness.add_server_of(OTHER_PROJECT, &[&disk(3, 1 << 20)]);
    let their_backup = site.back_up(&stranger, &theirs).await;
    let clock = site.harness.clock.clone();
    site.harness.cloud.before(kedge_cloud::sim::SimOp::WriteAt, move || {
        clock.advance(std::time::Duration::from_secs(1));
    });
    stranger.restore(&their_backup.restore_to(&theirs)).await.ok();
    site.harness.run_jobs_to_their_end().await;
    assert_eq!(estimate().await, before);
    let own = stranger.explain(&their_backup.question(&theirs)).await;
    assert_eq!(own["explanation"]["plan"]["estimate"]["basis"], "the restore before", "{own}");
}

/// Look-ups beyond the question's own do not cost the answer its time.
#[tokio::test]
async fn servers_that_do_not_answer_cost_no_verdict() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    site.harness
        .cloud
        .fail_always(kedge_cloud::sim::SimOp::FindServer, CloudError::retryable("silent"));
    let no = caller.explain(&saved.question(&server)).await;
    assert_eq!(no["error_code"], "KEDGE.0001");
    assert_eq!(no["explanation"]["violations"][0]["repairs"][0]["action"], "wait", "{no}");
}
