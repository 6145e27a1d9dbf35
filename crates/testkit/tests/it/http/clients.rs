//! What real clients demand beyond the published reference: each was seen to break one.

use axum::http::Method;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use kedge_cloud::sim::SimOp;
use kedge_core::ids::ProjectId;
use kedge_core::ports::CloudError;

use super::*;

#[tokio::test]
async fn a_backup_can_be_listed_when_the_answer_to_its_request_arrives() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let answer = caller.protect(server.id.as_str(), json!({})).await.ok();
    let record = text(&answer["checkpoint"]["id"]);
    assert_eq!(answer["checkpoint"]["status"], "protecting");
    let list = caller.get(&format!("/checkpoint_items?checkpoint_id={record}")).await.ok();
    let items = list["checkpoint_items"].as_array().unwrap();
    assert_eq!(items.len(), 1);
    assert_eq!(
        (&items[0]["status"], &items[0]["checkpoint_id"]),
        (&json!("protecting"), &json!(record))
    );
    let item = text(&items[0]["id"]);
    let shown = caller.get(&format!("/checkpoint_items/{item}")).await.ok();
    assert_eq!(shown["checkpoint_item"], items[0]);
}

/// Terraform takes every other word for an error.
#[tokio::test]
async fn a_backup_is_protecting_until_it_is_available_and_deleting_until_it_is_gone() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = Saved::begin(&caller, &server).await;
    let steps =
        [SimOp::FindServer, SimOp::CreateSnapshots, SimOp::OpenSnapshot, SimOp::ConfirmSnapshots];
    for step in steps {
        site.harness.cloud.hang(step);
    }
    let app = site.harness.app.clone();
    let jobs = tokio::spawn(async move { app.run_due_jobs("test").await.unwrap() });
    for step in steps {
        let asked = if step == SimOp::FindServer { 2 } else { 1 };
        site.harness.cloud.wait_for_calls(step, asked).await;
        assert_eq!(saved.status(&caller).await, "protecting", "{step:?}");
        site.harness.cloud.release(step);
    }
    jobs.await.unwrap();
    assert_eq!(saved.status(&caller).await, "available");

    let repository = site.harness.places.store_of(&ProjectId::new(PROJECT));
    repository.break_down();
    assert_eq!(caller.delete(&saved.record).await.ok(), json!({}));
    assert_eq!(saved.status(&caller).await, "deleting");
    site.harness.run_jobs().await;
    assert_eq!(saved.status(&caller).await, "deleting", "it is tried again");
    repository.repair();
    site.harness.run_jobs_to_their_end().await;
    let gone = caller.get(&format!("/checkpoint_items/{}", saved.item)).await;
    gone.assert_refused(404, "CSBS.3001", "Checkpoint_item (");
}

#[tokio::test]
async fn a_restore_shows_as_the_backups_status() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let restore = caller.restore(&saved.restore_to(&server)).await.ok();
    let below = format!("/restores/{}", text(&restore["restore"]["id"]));
    assert_eq!(saved.status(&caller).await, "restoring");
    site.harness.run_jobs_to_their_end().await;
    assert_eq!(saved.status(&caller).await, "available");
    assert_eq!(caller.get(&below).await.ok()["restore"]["status"], "success");

    site.harness.cloud.fail_always(SimOp::OpenForWriting, CloudError::permanent("no"));
    let restore = caller.restore(&saved.restore_to(&server)).await.ok();
    let below = format!("/restores/{}", text(&restore["restore"]["id"]));
    site.harness.run_jobs_to_their_end().await;
    assert_eq!(saved.status(&caller).await, "available", "a failed restore does not harm it");
    assert_eq!(caller.get(&below).await.ok()["restore"]["status"], "fail");
}

/// Terraform deletes again at every poll; a 409 would stop it.
#[tokio::test]
async fn a_repeated_delete_is_400_while_it_runs_and_404_when_it_is_done() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    assert_eq!(caller.delete(&saved.record).await.ok(), json!({}));
    for named in [saved.record.clone(), format!("{}?checkpoint_items={}", saved.record, saved.item)]
    {
        caller.delete(&named).await.assert_refused(400, "CSBS.2003", "item in executing");
    }
    site.harness.run_jobs_to_their_end().await;
    for _ in 0..2 {
        caller.delete(&saved.record).await.assert_refused(404, "CSBS.3001", "");
    }

    let running = Saved::begin(&caller, &server).await;
    caller.delete(&running.record).await.assert_refused(400, "CSBS.2003", "item in executing");
    site.harness.run_jobs_to_their_end().await;
    caller.restore(&running.restore_to(&server)).await.ok();
    caller.delete(&running.record).await.assert_refused(400, "CSBS.2003", "item in executing");
}

/// The Java SDK unwraps by root name; a Go SDK appends every top-level list.
#[tokio::test]
async fn each_answer_has_one_member_at_its_top_and_lists_only_their_links_beside() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let answer = caller.protect(server.id.as_str(), json!({})).await.ok();
    assert_members(&answer, &["checkpoint"]);
    site.harness.run_jobs_to_their_end().await;
    let saved = site.back_up(&caller, &server).await;
    let restore = caller.restore(&saved.restore_to(&server)).await.ok();
    assert_members(&restore, &["restore"]);
    let id = text(&restore["restore"]["id"]);
    let item = format!("/checkpoint_items/{}", saved.item);
    let rows: [(&str, &[&str]); 8] = [
        ("/checkpoint_items", &["checkpoint_items"]),
        ("/checkpoint_items?limit=1", &["checkpoint_items", "checkpoint_items_links"]),
        ("/checkpoint_items?limit=2", &["checkpoint_items"]),
        ("/checkpoint_items?status=error", &["checkpoint_items"]),
        ("/checkpoint_items/count", &["count"]),
        (&item, &["checkpoint_item"]),
        ("/restores", &["restores"]),
        (&format!("/restores/{id}"), &["restore"]),
    ];
    for (below, members) in rows {
        assert_members(&caller.get(below).await.ok(), members);
    }
}

#[track_caller]
fn assert_members(answer: &Value, expected: &[&str]) {
    let mut members: Vec<_> = answer.as_object().unwrap().keys().collect();
    members.sort();
    assert_eq!(members, expected, "{answer}");
}

#[tokio::test]
async fn numbers_are_integers_flags_are_booleans_and_times_have_no_zone() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let item = caller.get(&format!("/checkpoint_items/{}", saved.item)).await.ok();
    let item = &item["checkpoint_item"];
    let info = &item["extend_info"];
    let volumes = info["volume_backups"].as_array().unwrap();
    assert_eq!(volumes.len(), 2);
    for field in ["progress", "size", "average_speed", "space_saving_ratio"] {
        assert!(info[field].is_u64(), "{field}: {}", info[field]);
    }
    for field in ["ram", "vcpus", "disk"] {
        assert!(item["backup_data"][field].is_u64(), "{field}");
    }
    for volume in volumes {
        for field in ["size", "source_volume_size", "average_speed", "space_saving_ratio"] {
            assert!(volume[field].is_u64(), "{field}: {}", volume[field]);
        }
        for field in ["id", "source_volume_id", "snapshot_id", "source_volume_name"] {
            assert!(volume[field].is_string(), "{field}");
        }
        for field in ["bootable", "incremental"] {
            assert!(volume[field].is_boolean(), "{field}");
        }
    }
    for field in ["auto_trigger", "incremental", "support_lld"] {
        assert!(info[field].is_boolean(), "{field}");
    }
    for at in
        [&item["created_at"], &item["updated_at"], &item["protected_at"], &info["finished_at"]]
    {
        assert_is_time(&text(at));
    }
    assert!(info["taskid"].is_string());
    assert!(info["os_images_data"].is_array());
    assert_eq!(info["fail_code"], json!({}));
    assert_eq!(item["tags"], json!([]));
    assert!(item.get("replication_records").is_none(), "no form suits all clients");
}

/// `YYYY-MM-DDTHH:MM:SS.ffffff`.
fn assert_is_time(text: &str) {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000", "{text}");
}

#[tokio::test]
async fn what_failed_is_told_by_a_code_of_digits() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = Saved::begin(&caller, &server).await;
    site.harness.cloud.fail_always(SimOp::CreateSnapshots, CloudError::permanent("broken"));
    site.harness.run_jobs_to_their_end().await;
    let item = caller.get(&format!("/checkpoint_items/{}", saved.item)).await.ok();
    let info = &item["checkpoint_item"]["extend_info"];
    assert_eq!(item["checkpoint_item"]["status"], "error");
    assert_eq!(info["fail_op"], "backup");
    let code = text(&info["fail_code"]["Code"]);
    assert!(!code.is_empty() && code.bytes().all(|digit| digit.is_ascii_digit()), "{code}");
    assert!(!text(&info["fail_reason"]).is_empty());
}

#[tokio::test]
async fn a_plans_extra_info_is_an_object_and_its_graph_null() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let answer = caller.protect(server.id.as_str(), json!({})).await.ok();
    let checkpoint = &answer["checkpoint"];
    assert_eq!(checkpoint["resource_graph"], Value::Null);
    let resource = &checkpoint["protection_plan"]["resources"][0];
    assert_eq!(resource["extra_info"], json!({}));
    assert_eq!(resource["id"], server.id.as_str());
    assert_is_time(&text(&checkpoint["created_at"]));
}

/// GET and DELETE with the header of a body they do not have, flags as words, nulls.
#[tokio::test]
async fn odd_but_harmless_requests_are_taken() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let odd = json!({
        "backup_name": null, "description": "", "incremental": "False", "tags": null,
        "resource_type": null, "extra_info": {}, "unknown": [1]});
    let answer = caller.protect(server.id.as_str(), odd).await.ok();
    let record = text(&answer["checkpoint"]["id"]);
    site.harness.run_jobs_to_their_end().await;

    let path = caller.path(&format!("/checkpoint_items?checkpoint_id={record}&dec=&ip=&x=y"));
    let mut request = caller.request(Method::GET, &path, Body::empty());
    request.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    let list = caller.send(request).await.ok();
    let item = &list["checkpoint_items"][0];
    assert_eq!(item["extend_info"]["incremental"], false);
    let saved = Saved {
        record: record.clone(),
        item: text(&item["id"]),
        volumes: item["extend_info"]["volume_backups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|volume| text(&volume["id"]))
            .collect(),
    };

    // karborclient adds the nulls, the Java SDK the type.
    let mut restore = saved.restore_to(&server);
    restore["restore"]["restore_target"] = Value::Null;
    restore["restore"]["restore_auth"] = Value::Null;
    restore["restore"]["parameters"]["power_on"] = json!("true");
    restore["restore"]["parameters"]["targets"]["resource_type"] = json!(SERVER_TYPE);
    caller.restore(&restore).await.ok();
    site.harness.run_jobs_to_their_end().await;

    let path = caller.provider(&format!("/checkpoints/{record}"));
    let mut request = caller.request(Method::DELETE, &path, Body::empty());
    request.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    request.headers_mut().insert(ACCEPT, "".parse().unwrap());
    assert_eq!(caller.send(request).await.ok(), json!({}));
}

fn ids_of(page: &Value, collection: &str) -> Vec<String> {
    page[collection].as_array().unwrap().iter().map(|entry| text(&entry["id"])).collect()
}

/// As the Go SDKs do it.
async fn by_links(caller: &Caller, first: &str, collection: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let mut next = Some(caller.path(first));
    while let Some(path) = next {
        let page = caller.get_from(&path).await.ok();
        ids.extend(ids_of(&page, collection));
        let links = &page[format!("{collection}_links")];
        next = links.as_array().map(|links| {
            assert_eq!(links.len(), 1);
            assert_eq!(links[0]["rel"], "next");
            let href = text(&links[0]["href"]);
            href.strip_prefix(&format!("http://{HOST_NAME}")).unwrap().to_owned()
        });
    }
    ids
}

/// As openstacksdk and the Huawei Python SDK do it: until a page is empty.
async fn by_marker(caller: &Caller, first: &str, collection: &str) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    loop {
        let marker = ids.last().map(|last| format!("&marker={last}")).unwrap_or_default();
        let page = caller.get(&format!("{first}{marker}")).await.ok();
        let found = ids_of(&page, collection);
        if found.is_empty() {
            return ids;
        }
        ids.extend(found);
    }
}

#[tokio::test]
async fn paging_by_links_and_by_marker_both_see_everything_once() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.harness.add_server(&[&disk(1, 4096)]);
    let mut saved = Vec::new();
    for _ in 0..5 {
        // Under a clock that stands still several have the same time.
        saved.push(Saved::begin(&caller, &server).await);
        site.harness.run_jobs().await;
    }
    for _ in 0..3 {
        caller.restore(&saved[0].restore_to(&server)).await.ok();
        site.harness.run_jobs().await;
    }
    let everything = ids_of(&caller.get("/checkpoint_items").await.ok(), "checkpoint_items");
    let mut expected: Vec<_> = saved.iter().map(|saved| saved.item.clone()).collect();
    let mut found = everything.clone();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let sorts = ["", "&sort=name:asc", "&sort=created_at%3Aasc,id:desc", "&status=available"];
    for sort in sorts {
        let whole = format!("/checkpoint_items?limit=1000{sort}");
        let whole = ids_of(&caller.get(&whole).await.ok(), "checkpoint_items");
        assert_eq!(whole.len(), 5, "{sort}");
        for limit in 1..=6 {
            let first = format!("/checkpoint_items?limit={limit}{sort}");
            assert_eq!(by_links(&caller, &first, "checkpoint_items").await, whole, "{first}");
            assert_eq!(by_marker(&caller, &first, "checkpoint_items").await, whole, "{first}");
        }
    }
    let skipping =
        by_links(&caller, "/checkpoint_items?limit=2&offset=1", "checkpoint_items").await;
    assert_eq!(skipping, everything[1..]);
    let restores = ids_of(&caller.get("/restores").await.ok(), "restores");
    assert_eq!(restores.len(), 3);
    for limit in 1..=4 {
        let first = format!("/restores?limit={limit}");
        assert_eq!(by_links(&caller, &first, "restores").await, restores, "{first}");
        assert_eq!(by_marker(&caller, &first, "restores").await, restores, "{first}");
    }
}

#[tokio::test]
async fn filters_find_what_they_name_and_the_count_agrees() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let tagged = json!({"backup_name": "Before-Upgrade"});
    caller.protect(server.id.as_str(), tagged).await.ok();
    site.harness.run_jobs_to_their_end().await;
    let id = &server.id;
    let rows = [
        ("status=available".to_owned(), 1),
        ("status=error".to_owned(), 0),
        ("name=Upgrade".to_owned(), 1),
        ("name=%25".to_owned(), 0),
        ("az=az-01".to_owned(), 1),
        ("az=az-0".to_owned(), 0),
        (format!("resource_id={id}"), 1),
        ("resource_id=x".to_owned(), 0),
        ("resource_name=db".to_owned(), 1),
        (format!("resource_type=x&resource_type={SERVER_TYPE}"), 1),
        ("resource_type=x".to_owned(), 0),
        ("image_type=backup".to_owned(), 1),
        ("ip=192.168.0.20".to_owned(), 1),
        ("ip=192.168.0.2".to_owned(), 0),
        ("policy_id=x".to_owned(), 0),
        ("start_time=2026-03-07T09:27:40".to_owned(), 1),
        ("start_time=2030-01-01T00:00:00Z".to_owned(), 0),
        ("end_time=2030-01-01T00:00:00.5".to_owned(), 1),
        ("dec=true".to_owned(), 0),
        ("offset=1".to_owned(), 0),
    ];
    for (query, expected) in rows {
        let list = caller.get(&format!("/checkpoint_items?{query}")).await.ok();
        assert_eq!(ids_of(&list, "checkpoint_items").len(), expected, "{query}");
        if !query.starts_with("offset") {
            let count = caller.get(&format!("/checkpoint_items/count?{query}")).await.ok();
            assert_eq!(count, json!({ "count": expected }), "{query}");
        }
    }
}
