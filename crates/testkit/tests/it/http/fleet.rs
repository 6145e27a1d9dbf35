//! `POST /fleet`: a line for each server, and at last what came of all.

use kedge_testkit::READER;

use super::*;

impl Caller {
    async fn ask_fleet(&self, fleet: Value) -> Answer {
        self.post_to(&self.path("/fleet"), &json!({ "fleet": fleet })).await
    }
}

fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.headers[CONTENT_TYPE], "application/x-ndjson");
    assert!(answer.text.ends_with('\n'), "{:?}", answer.text);
    answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn those_that_could_not_be_restored_are_told_and_then_all_are_counted() {
    let site = Site::new().await;
    let caller = site.member().await;
    let (good, bare) = (site.add_server(), site.add_server());
    let saved = site.back_up(&caller, &good).await;
    let reader = site.log_in(READER, PROJECT).await;

    let told = lines(&reader.ask_fleet(json!({})).await);
    let refused = json!({
        "error_code": "KEDGE.0017", "supposed": false,
        "error_msg": format!("There is no available backup of server ({}).", bare.id)});
    let summary = json!({"summary": {
        "servers": 2, "restorable": 1, "refused": 1, "lost": 0, "complete": true, "gaps": [],
        "causes": [{
            "error_code": "KEDGE.0017", "meaning": "the server has no available backup",
            "supposed": false, "servers": 1}]}});
    assert_eq!(
        told,
        [
            json!({"server": {
                "resource_id": bare.id.as_str(), "resource_name": "db-1",
                "resource_az": "az-01", "result": false, "checkpoint_item_id": "",
                "protected_at": "", "passed_over": 0, "causes": [refused]}}),
            summary.clone(),
        ]
    );

    let told = lines(&reader.ask_fleet(json!({"show": "all", "seconds": 600})).await);
    assert_eq!((told.len(), &told[2]), (3, &summary));
    let yes = told.iter().find(|line| line["server"]["result"] == true).unwrap();
    assert_eq!(yes["server"]["resource_id"], good.id.as_str());
    assert_eq!(yes["server"]["checkpoint_item_id"], saved.item);
    assert_eq!(yes["server"]["causes"], json!([]));
    assert!(!text(&yes["server"]["protected_at"]).is_empty());

    let scope = json!({"zone": "az-09", "tag": {"key": "env", "value": "x"}});
    let told = lines(&reader.ask_fleet(json!({"scope": scope})).await);
    assert_eq!((told.len(), &told[0]["summary"]["servers"]), (1, &json!(0)));
}

#[tokio::test]
async fn what_is_lost_is_told_apart_from_what_is_so_anyway() {
    let site = Site::new().await;
    let caller = site.member().await;
    let server = site.add_server();
    site.back_up(&caller, &server).await;
    let told = lines(&caller.ask_fleet(json!({"lost": {"store": true, "key": true}})).await);
    let causes = told[0]["server"]["causes"].as_array().unwrap();
    assert!(causes.iter().all(|cause| cause["supposed"] == true), "{causes:?}");
    assert_eq!(causes[0]["error_code"], "KEDGE.0008");
    let told = lines(&caller.ask_fleet(json!({"lost": {"zones": ["az-01"]}})).await);
    let codes: Vec<_> = told[1]["summary"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| text(&cause["error_code"]))
        .collect();
    assert_eq!(codes, ["CSBS.6000", "KEDGE.0018"], "{told:?}");
}

#[tokio::test]
async fn an_outage_in_the_middle_is_the_last_line() {
    let site = Site::new().await;
    let caller = site.member().await;
    site.add_server();
    let store = site.harness.store.clone();
    // The catalogue answers to the token and is gone afterwards.
    site.harness.cloud.before(kedge_cloud::sim::SimOp::ListServers, move || {
        store.set_outage(kedge_store::Outage::Total);
    });
    let told = lines(&caller.ask_fleet(json!({})).await);
    assert_eq!(
        told,
        [json!({"error": {"error_code": "CSBS.9998", "error_msg": "System not support"}})]
    );
    site.harness.store.set_outage(kedge_store::Outage::None);
}

#[tokio::test]
async fn a_wrong_field_is_named_and_nothing_is_asked() {
    let site = Site::new().await;
    let caller = site.member().await;
    let whole = json!({"fleet": {
        "scope": {"zone": "z", "tag": {"key": "k", "value": "v"}},
        "lost": {"zones": ["a"], "store": false, "key": false},
        "show": "all", "seconds": 5}});
    lines(&caller.post_to(&caller.path("/fleet"), &whole).await);
    let places = [
        required("/fleet", Kind::Object),
        optional("/fleet/scope", Kind::Object),
        optional("/fleet/scope/zone", Kind::Word),
        optional("/fleet/scope/tag", Kind::Object),
        required("/fleet/scope/tag/key", Kind::Word),
        optional("/fleet/lost", Kind::Object),
        optional("/fleet/lost/zones", Kind::NonEmptyList),
        optional("/fleet/lost/store", Kind::Flag),
        optional("/fleet/lost/key", Kind::Flag),
        optional("/fleet/show", Kind::Word),
    ];
    assert_each_spoilt_place_is_named(&caller, &caller.path("/fleet"), &whole, &places).await;
    for (field, wrong, text) in [
        ("show", json!("some"), "fleet.show: expected refused or all"),
        ("seconds", json!(0), "fleet.seconds: expected 1 to 600"),
        ("seconds", json!(601), "fleet.seconds: expected 1 to 600"),
        ("seconds", json!("5"), "fleet.seconds: expected"),
        ("lost", json!({"zones": vec!["z"; 65]}), "fleet.lost.zones: expected at most 64"),
    ] {
        let answer = caller.ask_fleet(json!({ field: wrong })).await;
        answer.assert_refused(400, "CSBS.9001", text);
    }
}

#[tokio::test]
async fn a_stranger_learns_nothing() {
    let site = Site::new().await;
    site.add_server();
    let told = lines(&site.stranger().await.ask_fleet(json!({"show": "all"})).await);
    assert_eq!((told.len(), &told[0]["summary"]["servers"]), (1, &json!(0)));
    let refused = site.stranger().await.naming(PROJECT).ask_fleet(json!({})).await;
    refused.assert_refused(403, "KEDGE.4030", "");
}
