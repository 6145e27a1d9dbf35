//! The other calls' fields and parameters: what is wrong is refused by its name.

use axum::http::Method;

use super::*;

/// A member, a server, and a complete backup of it.
async fn stage() -> (Site, Caller, Saved, Server) {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    (site, caller, saved, server)
}

#[tokio::test]
async fn check_protectable_names_each_wrong_field() {
    let (_site, caller, _, server) = stage().await;
    let body = protectable(server.id.as_str());
    let path = caller.provider("/resources/action");
    let places = [
        required("/check_protectable/0/resource_id", Kind::Word),
        required("/check_protectable/0/resource_type", Kind::Word),
    ];
    assert_each_spoilt_place_is_named(&caller, &path, &body, &places).await;
    for wrong in Kind::NonEmptyList.wrong() {
        let body = spoil(&body, "/check_protectable", &Spoilt::Holding(wrong));
        caller.check(&body).await.assert_refused(400, "CSBS.9001", "check_protectable");
    }
    let long = spoil(&body, places[0].pointer, &Spoilt::Holding(json!("x".repeat(256))));
    caller.check(&long).await.assert_refused(400, "CSBS.9001", "check_protectable[0].resource_id");
    for (pointer, code) in [(places[0].pointer, "CSBS.6000"), (places[1].pointer, "CSBS.6003")] {
        let odd = spoil(&body, pointer, &Spoilt::Holding(json!("../odd")));
        let answer = caller.check(&odd).await.ok();
        let entry = only_entry(&answer);
        assert_eq!((&entry["result"], &entry["error_code"]), (&json!(false), &json!(code)));
    }
    assert_eq!(only_entry(&caller.check(&body).await.ok())["result"], true);
}

fn a_backup(server: &Server) -> Value {
    json!({"protect": {
        "backup_name": "before-upgrade", "description": "kept",
        "resource_type": SERVER_TYPE, "incremental": true,
        "tags": [{"key": "env", "value": "prod"}],
        "extra_info": {"exclude_volumes": [server.volumes[1].id.as_str()]}}})
}

#[tokio::test]
async fn protect_names_each_wrong_field() {
    let (_site, caller, _, server) = stage().await;
    let path = caller.provider(&format!("/resources/{}/action", server.id));
    let places = [
        required("/protect", Kind::Object),
        optional("/protect/backup_name", Kind::Text),
        optional("/protect/description", Kind::Text),
        optional("/protect/resource_type", Kind::Word),
        optional("/protect/incremental", Kind::Flag),
        optional("/protect/tags", Kind::NonEmptyList),
        required("/protect/tags/0/key", Kind::Word),
        optional("/protect/tags/0/value", Kind::Text),
        optional("/protect/extra_info", Kind::Object),
        optional("/protect/extra_info/exclude_volumes", Kind::List),
    ];
    assert_each_spoilt_place_is_named(&caller, &path, &a_backup(&server), &places).await;
    let rows = [
        ("/protect/backup_name", json!("")),
        ("/protect/backup_name", json!("a b")),
        ("/protect/backup_name", json!("ü")),
        ("/protect/backup_name", json!("x".repeat(256))),
        ("/protect/description", json!("<b>")),
        ("/protect/description", json!("x".repeat(256))),
        ("/protect/tags/0/key", json!("x".repeat(37))),
        ("/protect/tags/0/value", json!("x".repeat(44))),
        ("/protect/extra_info/exclude_volumes", json!(["not-attached"])),
    ];
    for (pointer, wrong) in rows {
        let body = spoil(&a_backup(&server), pointer, &Spoilt::Holding(wrong));
        caller.post_to(&path, &body).await.assert_refused(400, "CSBS.9001", &dotted(pointer));
    }
    let tags: Vec<_> = (0..11).map(|n| json!({"key": format!("k{n}"), "value": ""})).collect();
    let many = spoil(&a_backup(&server), "/protect/tags", &Spoilt::Holding(json!(tags)));
    caller.post_to(&path, &many).await.assert_refused(400, "CSBS.7000", "request tags exceed");
    let twice =
        a_backup(&server).to_string().replacen("\"protect\":", "\"protect\":{},\"protect\":", 1);
    caller.post_text(&path, twice).await.assert_refused(400, "CSBS.9001", "protect: ");

    let unknown = caller.provider(&format!("/resources/{}/action", "x".repeat(256)));
    let answer = caller.post_to(&unknown, &a_backup(&server)).await;
    answer.assert_refused(400, "CSBS.9001", "resource_id: ");
    let path_of_another = caller.path(&format!("/providers/x/resources/{}/action", server.id));
    let answer = caller.post_to(&path_of_another, &a_backup(&server)).await;
    answer.assert_refused(400, "CSBS.9001", "provider invalid");
    let list = caller.get("/checkpoint_items/count").await.ok();
    assert_eq!(list, json!({"count": 1}), "nothing that was refused left a record");
}

#[tokio::test]
async fn restore_names_each_wrong_field_and_writes_nothing() {
    let (site, caller, saved, server) = stage().await;
    site.harness.cloud.clear_write_log();
    let places = [
        required("/restore", Kind::Object),
        required("/restore/provider_id", Kind::Word),
        required("/restore/checkpoint_id", Kind::Word),
        required("/restore/parameters", Kind::Object),
        required("/restore/parameters/checkpoint_item_id", Kind::Word),
        required("/restore/parameters/power_on", Kind::Flag),
        required("/restore/parameters/targets", Kind::Object),
        required("/restore/parameters/targets/server_id", Kind::Word),
        required("/restore/parameters/targets/volumes", Kind::List),
        required("/restore/parameters/targets/volumes/0/backup_id", Kind::Word),
        required("/restore/parameters/targets/volumes/0/volume_id", Kind::Word),
    ];
    let (path, body) = (caller.path("/restores"), saved.restore_to(&server));
    assert_each_spoilt_place_is_named(&caller, &path, &body, &places).await;
    for place in places.iter().filter(|place| matches!(place.kind, Kind::Word)) {
        let long = spoil(&body, place.pointer, &Spoilt::Holding(json!("x".repeat(256))));
        caller.restore(&long).await.assert_refused(400, "CSBS.9001", &dotted(place.pointer));
    }
    let rows = [
        ("/restore/provider_id", json!("x"), 400, "CSBS.9001"),
        ("/restore/checkpoint_id", json!("x"), 404, "CSBS.3001"),
        ("/restore/parameters/checkpoint_item_id", json!("x"), 404, "CSBS.3001"),
        ("/restore/parameters/targets/server_id", json!("x"), 400, "CSBS.6000"),
        ("/restore/parameters/targets/resource_type", json!("x"), 400, "CSBS.6013"),
        ("/restore/parameters/targets/volumes", json!([]), 400, "CSBS.6018"),
        ("/restore/parameters/targets/volumes/0/backup_id", json!("x"), 400, "CSBS.6017"),
        ("/restore/parameters/targets/volumes/0/volume_id", json!("x"), 400, "CSBS.6014"),
    ];
    for (pointer, value, status, code) in rows {
        let odd = spoil(&body, pointer, &Spoilt::Holding(value));
        caller.restore(&odd).await.assert_refused(status, code, "");
    }
    site.harness.run_jobs_to_their_end().await;
    assert!(site.harness.cloud.write_log().is_empty());
    assert_eq!(caller.get("/restores").await.ok(), json!({"restores": []}));
}

#[tokio::test]
async fn delete_names_each_wrong_parameter_and_deletes_nothing_then() {
    let (_site, caller, saved, _) = stage().await;
    let (record, item) = (&saved.record, &saved.item);
    let rows = [
        ("x".repeat(256), 400, "CSBS.9001", "checkpoint_id: "),
        ("%ff".to_owned(), 400, "CSBS.9001", "checkpoint_id: "),
        ("no-such-record".to_owned(), 404, "CSBS.3001", ""),
        (format!("{record}?checkpoint_items="), 400, "CSBS.9001", "checkpoint_items: "),
        (format!("{record}?checkpoint_items"), 400, "CSBS.9001", "checkpoint_items: "),
        (format!("{record}?checkpoint_items={item},"), 400, "CSBS.9001", "checkpoint_items: "),
        (format!("{record}?checkpoint_items={item},,{item}"), 400, "CSBS.9001", "checkpoint_items"),
        (format!("{record}?checkpoint_items=%zz"), 400, "CSBS.9001", "checkpoint_items: "),
        (format!("{record}?checkpoint_items={}", "x".repeat(256)), 400, "CSBS.9001", "checkpoint_"),
        (format!("{record}?checkpoint_items=x"), 404, "CSBS.3001", ""),
        (format!("{record}?checkpoint_items={item},x"), 404, "CSBS.3001", ""),
        (format!("{record}?checkpoint_items={item}&checkpoint_items=x"), 404, "CSBS.3001", ""),
    ];
    for (named, status, code, text) in rows {
        caller.delete(&named).await.assert_refused(status, code, text);
    }
    let path = caller.path(&format!("/providers/x/checkpoints/{record}"));
    let answer = caller.send(caller.request(Method::DELETE, &path, Body::empty())).await;
    answer.assert_refused(400, "CSBS.9001", "provider invalid");
    assert_eq!(saved.status(&caller).await, "available");
    let answer = caller.delete(&format!("{record}?checkpoint_items={item},{item}")).await;
    assert_eq!(answer.ok(), json!({}));
    assert_eq!(saved.status(&caller).await, "deleting");
}

#[tokio::test]
async fn each_wrong_query_parameter_of_a_list_is_refused_by_its_name() {
    let (_site, caller, _, _) = stage().await;
    let long = "x".repeat(256);
    let long_id = format!("marker={long}");
    let long_name = format!("name={long}");
    let items = [
        ("limit=0", "limit: "),
        ("limit=-1", "limit: "),
        ("limit=x", "limit: "),
        ("limit=1.0", "limit: "),
        ("limit=1&limit=2", "limit: "),
        ("offset=-1", "offset: "),
        ("offset=x", "offset: "),
        ("marker=no-such-backup", "marker: "),
        (&long_id, "marker: "),
        ("sort=size", "sort: "),
        ("sort=name:up", "sort: "),
    ];
    let filters = [
        ("status=gone", "status: "),
        ("status=Available", "status: "),
        ("start_time=soon", "start_time: "),
        ("end_time=2026-13-01T00:00:00", "end_time: "),
        ("all_tenants=2", "all_tenants: "),
        ("dec=maybe", "dec: "),
        (&long_name, "name: "),
        ("name=%ff", "name: "),
        ("name=a%00", "name: "),
        ("ip=1&ip=2", "ip: "),
        ("unknown=%zz", "unknown: "),
    ];
    for (query, named) in items.iter().chain(&filters) {
        let answer = caller.get(&format!("/checkpoint_items?{query}")).await;
        answer.assert_refused(400, "CSBS.9001", named);
    }
    for (query, named) in &filters {
        let answer = caller.get(&format!("/checkpoint_items/count?{query}")).await;
        answer.assert_refused(400, "CSBS.9001", named);
    }
    let restores = [
        ("limit=0", "limit: "),
        ("marker=no-such-restore", "marker: "),
        ("marker=a&marker=b", "marker: "),
        (long_id.as_str(), "marker: "),
    ];
    for (query, named) in restores {
        caller.get(&format!("/restores?{query}")).await.assert_refused(400, "CSBS.9001", named);
    }
    for below in ["/checkpoint_items/%ff", &format!("/checkpoint_items/{long}")] {
        caller.get(below).await.assert_refused(400, "CSBS.9001", "checkpoint_item_id: ");
    }
    for below in ["/restores/%ff", &format!("/restores/{long}")] {
        caller.get(below).await.assert_refused(400, "CSBS.9001", "restore_id: ");
    }
}

#[tokio::test]
async fn a_login_names_each_wrong_field() {
    let site = Site::new().await;
    let nobody = site.nobody();
    let places = [
        required("/auth", Kind::Object),
        required("/auth/identity", Kind::Object),
        required("/auth/identity/methods", Kind::NonEmptyList),
        required("/auth/identity/password", Kind::Object),
        required("/auth/identity/password/user", Kind::Object),
        required("/auth/identity/password/user/name", Kind::Word),
        required("/auth/identity/password/user/domain", Kind::Object),
        required("/auth/identity/password/user/domain/id", Kind::Word),
        required("/auth/identity/password/user/password", Kind::Text),
        required("/auth/scope/project", Kind::Object),
        required("/auth/scope/project/id", Kind::Word),
    ];
    let body = login(MEMBER, PASSWORD, PROJECT);
    for place in &places {
        let mut ways: Vec<_> = place.kind.wrong().into_iter().map(Spoilt::Holding).collect();
        ways.push(Spoilt::Absent);
        for how in ways {
            let answer =
                nobody.post_to("/v3/auth/tokens", &spoil(&body, place.pointer, &how)).await;
            assert_eq!(answer.status.as_u16(), 400, "{} {how:?}", place.pointer);
            assert_eq!(answer.body["error_code"], "CSBS.9001");
            assert_eq!(answer.body["error"]["code"], 400, "Keystone's clients read this");
            // Without an id the name is what is missing.
            let named = dotted(place.pointer.strip_suffix("/id").unwrap_or(place.pointer));
            assert!(text(&answer.body["error_msg"]).starts_with(&named), "{how:?} {}", answer.text);
            assert!(!answer.text.contains(PASSWORD));
        }
    }
}
