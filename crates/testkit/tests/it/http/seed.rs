//! The call that the product was asked for, "Querying Restoration Capabilities of
//! Resources": its own request, and everything that can be wrong with it.

use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{Method, StatusCode};
use kedge_core::ids::{ServerId, VolumeId};

use super::*;
use crate::support::scramble;

/// As published, blanks included.
const REQUEST: &str = r#"{
      "check_restorable" : [ {
        "checkpoint_item_id" : "8986ce68-3da7-4d29-9cc2-1921e9504975",
        "target" : {
          "resource_type" : "OS::Nova::Server",
          "resource_id" : "5aa119a8-d25b-45a7-8d1b-88e127885635",
          "volumes" : [ {
            "backup_id" : "7ea119a8-d25b-43a7-8d1b-88e12788513a",
            "volume_id" : "45baf976-c20a-4894-a7c3-c94b7376bf55"
          } ]
        }
      } ]
    }"#;

const ITEM: &str = "8986ce68-3da7-4d29-9cc2-1921e9504975";
const SERVER: &str = "5aa119a8-d25b-45a7-8d1b-88e127885635";
const BACKUP: &str = "7ea119a8-d25b-43a7-8d1b-88e12788513a";
const VOLUME: &str = "45baf976-c20a-4894-a7c3-c94b7376bf55";

/// Everything below the verb.
const FIELDS: [Place; 7] = [
    required("/check_restorable/0/checkpoint_item_id", Kind::Word),
    required("/check_restorable/0/target", Kind::Object),
    required("/check_restorable/0/target/resource_id", Kind::Word),
    required("/check_restorable/0/target/resource_type", Kind::Word),
    required("/check_restorable/0/target/volumes", Kind::List),
    required("/check_restorable/0/target/volumes/0/backup_id", Kind::Word),
    required("/check_restorable/0/target/volumes/0/volume_id", Kind::Word),
];

/// A cloud and a catalogue that hold what the seed's request names, made by a backup.
async fn stage() -> (Site, Caller, Saved, Server) {
    let site = Site::new().await;
    let caller = site.member().await;
    let mut server = site.harness.add_server(&[&[]]);
    site.harness.cloud.remove_server(&server.id);
    server.id = ServerId::asked(SERVER);
    server.volumes[0].id = VolumeId::asked(VOLUME);
    server.volumes[0].size_bytes = 1 << 20;
    let content = HashMap::from([(VolumeId::asked(VOLUME), disk(1, 1 << 20))]);
    site.harness.cloud.add_server(server.clone(), content);
    // What a backup draws: ids of the record, the item, the job and a name, then one for
    // each disk.
    let ids = [
        "d0a119a8-0000-4000-8000-000000000001",
        ITEM,
        "d0a119a8-0000-4000-8000-000000000002",
        "d0a119a8-0000-4000-8000-000000000003",
        BACKUP,
    ];
    site.harness.ids.choose(ids.map(|id| id.parse().unwrap()));
    let saved = site.back_up(&caller, &server).await;
    assert_eq!((saved.item.as_str(), saved.volumes[0].as_str()), (ITEM, BACKUP));
    (site, caller, saved, server)
}

fn request() -> Value {
    serde_json::from_str(REQUEST).unwrap()
}

async fn ask(caller: &Caller, body: impl Into<Body>) -> Answer {
    caller.post_text(&caller.provider("/resources/action"), body).await
}

#[tokio::test]
async fn the_seeds_request_is_answered_yes_in_the_published_form() {
    let (_site, caller, ..) = stage().await;
    let answer = ask(&caller, REQUEST).await;
    assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
    let body = answer.ok();

    let members: Vec<_> = body.as_object().unwrap().keys().collect();
    assert_eq!(members, ["restorable"]);
    let entry = only_entry(&body);
    let mut fields: Vec<_> = entry.as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(fields, ["error_code", "error_msg", "resource_id", "resource_type", "result"]);
    assert_eq!(entry["result"], true);
    assert_eq!((&entry["error_code"], &entry["error_msg"]), (&json!(""), &json!("")));
    assert_eq!(entry["resource_id"], SERVER);
    assert_eq!(entry["resource_type"], "OS::Nova::Server");
}

#[tokio::test]
async fn the_restore_that_the_seeds_request_asks_about_then_succeeds() {
    let (site, caller, saved, server) = stage().await;
    let before = bytes_of(&site.harness, &server);
    scramble(&site.harness, &server);
    assert_ne!(bytes_of(&site.harness, &server), before);
    caller.restore(&saved.restore_to(&server)).await.ok();
    site.harness.run_jobs_to_their_end().await;
    assert_eq!(bytes_of(&site.harness, &server), before);
}

#[tokio::test]
async fn a_check_starts_nothing_and_changes_nothing() {
    let (site, caller, ..) = stage().await;
    site.harness.cloud.clear_write_log();
    let item = caller.get(&format!("/checkpoint_items/{ITEM}")).await.text;
    site.harness.store.record_statements();
    ask(&caller, REQUEST).await.ok();
    let statements = site.harness.store.take_statements();
    assert!(!statements.is_empty());
    assert!(statements.iter().all(|sql| sql.starts_with("SELECT")), "{statements:?}");
    assert!(site.harness.cloud.write_log().is_empty());
    assert_eq!(caller.get(&format!("/checkpoint_items/{ITEM}")).await.text, item);
}

#[tokio::test]
async fn answers_come_one_per_question_in_the_order_asked_and_200_even_when_all_say_no() {
    let (_site, caller, ..) = stage().await;
    let mut body = request();
    let good = body["check_restorable"][0].clone();
    let mut bad = good.clone();
    bad["target"]["resource_id"] = json!("no-such-server");
    body["check_restorable"] = json!([bad, good, bad]);
    let answer = caller.check(&body).await.ok();
    let entries = answer["restorable"].as_array().unwrap();
    let results: Vec<_> = entries.iter().map(|entry| entry["result"].as_bool()).collect();
    assert_eq!(results, [Some(false), Some(true), Some(false)]);
    assert_eq!(entries[0]["resource_id"], "no-such-server");

    body["check_restorable"] = json!([bad, bad]);
    let answer = caller.check(&body).await.ok();
    assert!(answer["restorable"].as_array().unwrap().iter().all(|e| e["result"] == false));
}

#[tokio::test]
async fn each_field_absent_null_of_a_wrong_type_or_empty_is_a_400_that_names_it() {
    let (_site, caller, ..) = stage().await;
    let path = caller.provider("/resources/action");
    assert_each_spoilt_place_is_named(&caller, &path, &request(), &FIELDS).await;
    let mut verbs: Vec<_> = Kind::NonEmptyList.wrong();
    verbs.push(Value::Null);
    for wrong in verbs {
        let body = json!({ "check_restorable": wrong });
        caller.check(&body).await.assert_refused(400, "CSBS.9001", "check_restorable");
    }
    let target = "/check_restorable/0/target";
    let rows = [
        (json!({"check_restorable": [{}]}), "check_restorable[0].checkpoint_item_id: "),
        (json!({"check_restorable": [null]}), "check_restorable[0]: "),
        (json!({"check_restorable": [[]]}), "check_restorable[0]: "),
        (
            spoil(&request(), target, &Spoilt::Holding(json!({}))),
            "check_restorable[0].target.resource_id: ",
        ),
        (
            spoil(&request(), &format!("{target}/volumes"), &Spoilt::Holding(json!([{}]))),
            "check_restorable[0].target.volumes[0].backup_id: ",
        ),
    ];
    for (body, named) in rows {
        caller.check(&body).await.assert_refused(400, "CSBS.9001", named);
    }
}

#[tokio::test]
async fn exactly_one_verb_is_asked() {
    let (_site, caller, ..) = stage().await;
    let both = json!({
        "check_restorable": request()["check_restorable"],
        "check_protectable": protectable(SERVER)["check_protectable"]});
    let bodies = [
        json!({}),
        both,
        json!({"check_restorable": null}),
        json!({"check_restorable": null, "check_protectable": null}),
        json!({"protect": {}}),
    ];
    for body in bodies {
        let answer = caller.check(&body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(answer.error().0, "CSBS.9001");
        assert!(answer.error().1.contains("check_restorable"), "{}", answer.text);
    }
    for root in ["[]", "null", "7", "\"check_restorable\"", "true"] {
        ask(&caller, root).await.assert_refused(400, "CSBS.9001", "body: expected an object");
    }
}

#[tokio::test]
async fn an_empty_mapping_is_well_formed_and_leaves_every_disk_out() {
    let (_site, caller, ..) = stage().await;
    let mut body = request();
    body["check_restorable"][0]["target"]["volumes"] = json!([]);
    let answer = caller.check(&body).await.ok();
    let entry = only_entry(&answer);
    assert_eq!((&entry["result"], &entry["error_code"]), (&json!(false), &json!("CSBS.6018")));
    assert!(text(&entry["error_msg"]).contains(BACKUP), "{entry}");
}

/// An id is any text of 1 to 255 characters: one that is no UUID names nothing.
#[tokio::test]
async fn an_id_that_is_no_uuid_counts_as_unknown_and_one_over_255_characters_is_refused() {
    let (_site, caller, ..) = stage().await;
    let rows = [
        ("/check_restorable/0/checkpoint_item_id", "CSBS.3001"),
        ("/check_restorable/0/target/resource_id", "CSBS.6000"),
        ("/check_restorable/0/target/resource_type", "CSBS.6013"),
        ("/check_restorable/0/target/volumes/0/backup_id", "CSBS.6017"),
        ("/check_restorable/0/target/volumes/0/volume_id", "CSBS.6014"),
    ];
    let longest = "é".repeat(255);
    for (pointer, code) in rows {
        let hostile = ["x", "../../etc/passwd", "' OR 1=1 --", "\u{1b}[2J\n", "💾", &longest];
        for id in hostile {
            let body = spoil(&request(), pointer, &Spoilt::Holding(json!(id)));
            let answer = caller.check(&body).await.ok();
            let entry = only_entry(&answer);
            assert_eq!(entry["result"], false, "{pointer} {id:?}");
            assert_eq!(entry["error_code"], code, "{pointer} {id:?}");
            let told = text(&entry["error_msg"]);
            assert!(!told.is_empty() && !told.contains(char::is_control), "{told:?}");
        }
        for id in ["x".repeat(256), "a\0b".to_owned()] {
            let body = spoil(&request(), pointer, &Spoilt::Holding(json!(id)));
            caller.check(&body).await.assert_refused(400, "CSBS.9001", &dotted(pointer));
        }
    }
}

#[tokio::test]
async fn ids_in_capitals_name_the_same_objects_and_come_back_as_they_were_sent() {
    let (_site, caller, ..) = stage().await;
    let mut body = REQUEST.to_owned();
    for id in [ITEM, SERVER, BACKUP, VOLUME] {
        body = body.replace(id, &id.to_uppercase());
    }
    let answer = ask(&caller, body).await.ok();
    let entry = only_entry(&answer);
    assert_eq!(entry["result"], true);
    assert_eq!(entry["resource_id"], SERVER.to_uppercase());
}

#[tokio::test]
async fn a_key_there_twice_is_refused_at_every_level() {
    let (_site, caller, ..) = stage().await;
    let once = request().to_string();
    let rows = [
        ("\"check_restorable\":", "check_restorable"),
        ("\"checkpoint_item_id\":", "check_restorable[0].checkpoint_item_id"),
        ("\"target\":", "check_restorable[0].target"),
        ("\"resource_id\":", "check_restorable[0].target.resource_id"),
        ("\"resource_type\":", "check_restorable[0].target.resource_type"),
        ("\"volumes\":", "check_restorable[0].target.volumes"),
        ("\"backup_id\":", "check_restorable[0].target.volumes[0].backup_id"),
        ("\"volume_id\":", "check_restorable[0].target.volumes[0].volume_id"),
    ];
    for (key, path) in rows {
        let twice = once.replacen(key, &format!("{key}null,{key}"), 1);
        let answer = ask(&caller, twice).await;
        answer.assert_refused(400, "CSBS.9001", &format!("{path}: expected one value"));
    }
    let ignored = once.replacen('{', r#"{"x":{"y":[{"z":1,"z":1}]},"#, 1);
    ask(&caller, ignored).await.assert_refused(400, "CSBS.9001", "x.y[0].z: expected one value");
}

#[tokio::test]
async fn fields_nobody_knows_are_ignored() {
    let (_site, caller, ..) = stage().await;
    let mut body = request();
    body["x"] = json!({"deep": [1, {"y": null}]});
    body["check_restorable"][0]["x"] = json!(1e300);
    body["check_restorable"][0]["target"]["x"] = json!("");
    body["check_restorable"][0]["target"]["volumes"][0]["x"] = json!(false);
    assert_eq!(only_entry(&caller.check(&body).await.ok())["result"], true);
}

#[tokio::test]
async fn each_wrong_path_parameter_is_refused_by_its_name() {
    let (_site, caller, ..) = stage().await;
    let long = "x".repeat(256);
    for wrong in ["", &long, "a%0Ab", "%ff", "%zz", "%00"] {
        let path = format!("/v1/{wrong}/providers/{PROVIDER_ID}/resources/action");
        caller.post_text(&path, REQUEST).await.assert_refused(400, "CSBS.9001", "project_id: ");
        let path = caller.path(&format!("/providers/{wrong}/resources/action"));
        caller.post_text(&path, REQUEST).await.assert_refused(400, "CSBS.9001", "provider_id: ");
    }
    // The id that Huawei's samples carry by mistake, and the right one in capitals.
    for wrong in ["c714180d-ea34-4b13-9a5e-577c7c416eec", &PROVIDER_ID.to_uppercase(), "x"] {
        let path = caller.path(&format!("/providers/{wrong}/resources/action"));
        let answer = caller.post_text(&path, REQUEST).await;
        answer.assert_refused(400, "CSBS.9001", "provider invalid: provider_id");
    }
    for unknown in [OTHER_PROJECT, "x"] {
        let path = format!("/v1/{unknown}/providers/{PROVIDER_ID}/resources/action");
        caller.post_text(&path, REQUEST).await.assert_refused(403, "KEDGE.4030", "no permission");
    }
}

#[tokio::test]
async fn what_is_no_json_too_deep_too_large_or_of_another_type_is_refused() {
    let (_site, caller, ..) = stage().await;
    let path = caller.provider("/resources/action");
    for broken in ["", "{", "{]", "{\"check_restorable\": }", "{} {}", "{'a': 1}", "\"\\ud800\""] {
        ask(&caller, broken).await.assert_refused(400, "CSBS.9001", "body: expected valid JSON");
    }
    let latin = b"{\"check_restorable\": \"\xff\"}".to_vec();
    ask(&caller, latin).await.assert_refused(400, "CSBS.9001", "body: expected valid JSON");

    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let answer = ask(&caller, deep).await;
    answer.assert_refused(400, "CSBS.9001", "body[0]");
    assert!(answer.error().1.contains("levels of nesting"), "{}", answer.text);
    let ignored =
        REQUEST.replacen('{', &format!("{{\"x\":{}{},", "[".repeat(40), "]".repeat(40)), 1);
    ask(&caller, ignored).await.assert_refused(400, "CSBS.9001", "x[0]");

    let filled = |bytes: usize| REQUEST.to_owned() + &" ".repeat(bytes - REQUEST.len());
    ask(&caller, filled(1 << 20)).await.ok();
    let answer = ask(&caller, filled((1 << 20) + 1)).await;
    answer.assert_refused(413, "KEDGE.4130", "body: expected at most 1048576 bytes");

    for kind in ["text/plain", "application/xml", "application/x-www-form-urlencoded"] {
        let mut request = caller.request(Method::POST, &path, REQUEST.into());
        request.headers_mut().insert(CONTENT_TYPE, kind.parse().unwrap());
        caller.send(request).await.assert_refused(415, "KEDGE.4150", "Content-Type: ");
    }
    // None at all is taken for JSON: some clients send none.
    caller.send(caller.request(Method::POST, &path, REQUEST.into())).await.ok();
}

#[tokio::test]
async fn another_route_is_404_and_another_method_405_that_says_which_it_allows() {
    let (_site, caller, ..) = stage().await;
    for path in ["/v2", "/v1/x/y", "/metrics", "/v1/%00", "//v1"] {
        caller.get_from(path).await.assert_refused(404, "APIGW.0101", "The API does not exist.");
    }
    let answer = caller.post_text(&caller.provider("/resources"), REQUEST).await;
    answer.assert_refused(404, "APIGW.0101", "");
    let path = caller.provider("/resources/action");
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH] {
        let answer = caller.send(caller.request(method, &path, REQUEST.into())).await;
        answer.assert_refused(405, "KEDGE.4050", "");
        assert_eq!(answer.headers[ALLOW], "POST");
    }
}

#[tokio::test]
async fn a_disk_named_twice_is_refused_by_its_place() {
    let (_site, caller, ..) = stage().await;
    for key in ["backup_id", "volume_id"] {
        let mut body = request();
        let mut second = json!({"backup_id": "another", "volume_id": "another"});
        second[key] = body["check_restorable"][0]["target"]["volumes"][0][key].clone();
        body["check_restorable"][0]["target"]["volumes"].as_array_mut().unwrap().push(second);
        let named = format!("check_restorable[0].target.volumes[1].{key}: ");
        caller.check(&body).await.assert_refused(400, "CSBS.9001", &named);
    }
}
