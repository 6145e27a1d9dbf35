//! The main job, from login to deletion.

use http::StatusCode;
use kedge_testkit::{MEMBER, PASSWORD, PROJECT};
use serde_json::{Value, json};

use crate::server::{PROVIDER, Server, at, provider};

#[tokio::test]
async fn a_server_is_backed_up_checked_restored_and_its_backup_deleted() {
    let server = Server::new().await;
    let resource = server.harness.add_server(&[&[7; 4096], &[9; 8192]]);
    let question =
        json!([{"resource_id": resource.id.as_str(), "resource_type": "OS::Nova::Server"}]);

    let check = json!({ "check_protectable": question });
    let reply = server.post(&provider("resources/action"), &check).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(
        reply.body,
        json!({"protectable": [{
            "resource_id": resource.id.as_str(), "resource_type": "OS::Nova::Server",
            "result": true, "error_msg": "", "error_code": ""}]})
    );

    let path = provider(&format!("resources/{}/action", resource.id));
    let protect =
        json!({"protect": {"backup_name": "before", "tags": [{"key": "a", "value": ""}]}});
    let reply = server.post(&path, &protect).await;
    assert_eq!(reply.status, StatusCode::OK);
    let checkpoint = &reply.body["checkpoint"];
    assert_eq!(checkpoint["status"], "protecting");
    let record = checkpoint["id"].as_str().unwrap().to_owned();

    // Listed in the same second: Terraform gives up otherwise.
    let listed = server.get(&at(&format!("checkpoint_items?checkpoint_id={record}"))).await;
    let id = listed.body["checkpoint_items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed.body["checkpoint_items"][0]["status"], "protecting");
    assert_eq!(listed.body.as_object().unwrap().len(), 1);

    server.harness.run_jobs_to_their_end().await;
    let shown = server.get(&at(&format!("checkpoint_items/{id}"))).await;
    let item = &shown.body["checkpoint_item"];
    assert_eq!((&item["status"], &item["name"]), (&"available".into(), &"before".into()));
    let backups = item["extend_info"]["volume_backups"].as_array().unwrap();
    let volumes: Vec<Value> = backups
        .iter()
        .map(|backup| json!({"backup_id": backup["id"], "volume_id": backup["source_volume_id"]}))
        .collect();

    let check = |volumes: &[Value]| {
        json!({"check_restorable": [{
            "checkpoint_item_id": id,
            "target": {
                "resource_id": resource.id.as_str(), "resource_type": "OS::Nova::Server",
                "volumes": volumes}}]})
    };
    let yes = server.post(&provider("resources/action"), &check(&volumes)).await;
    assert_eq!(
        yes.body,
        json!({"restorable": [{
            "resource_id": resource.id.as_str(), "resource_type": "OS::Nova::Server",
            "result": true, "error_msg": "", "error_code": ""}]})
    );
    let no = server.post(&provider("resources/action"), &check(&[])).await;
    assert_eq!(no.status, StatusCode::OK);
    assert_eq!(no.body["restorable"][0]["result"], false);
    assert_eq!(no.body["restorable"][0]["error_code"], "CSBS.6018");

    let restore = json!({"restore": {
        "provider_id": PROVIDER, "checkpoint_id": record, "restore_target": null,
        "parameters": {
            "checkpoint_item_id": id, "power_on": true,
            "targets": {"server_id": resource.id.as_str(), "volumes": volumes}}}});
    let reply = server.post(&at("restores"), &restore).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.body["restore"]["status"], "in_progress");
    server.harness.run_jobs_to_their_end().await;
    let restore_id = reply.body["restore"]["id"].as_str().unwrap();
    let reply = server.get(&at(&format!("restores/{restore_id}"))).await;
    assert_eq!(reply.body["restore"]["status"], "success");
    let reply = server.get(&at("restores")).await;
    assert_eq!(reply.body["restores"].as_array().unwrap().len(), 1);

    let reply = server.get(&at("checkpoint_items/count?status=available&name=EFOR")).await;
    assert_eq!(reply.body, json!({"count": 1}));
    let reply =
        server.delete(&provider(&format!("checkpoints/{record}?checkpoint_items={id}"))).await;
    assert_eq!((reply.status, reply.body), (StatusCode::OK, json!({})));
    let shown = server.get(&at(&format!("checkpoint_items/{id}"))).await;
    assert_eq!(shown.body["checkpoint_item"]["status"], "deleting");
    server.harness.run_jobs_to_their_end().await;
    let reply = server.get(&at(&format!("checkpoint_items/{id}"))).await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    assert_eq!(reply.body["error_code"], "CSBS.3001");
}

#[tokio::test]
async fn a_list_goes_on_where_its_next_link_points() {
    let server = Server::new().await;
    for _ in 0..3 {
        let resource = server.harness.add_server(&[&[7; 512]]);
        let path = provider(&format!("resources/{}/action", resource.id));
        assert_eq!(server.post(&path, &json!({"protect": {}})).await.status, StatusCode::OK);
    }
    let mut next = Some(at("checkpoint_items?limit=2&sort=id:asc&offset=0"));
    let mut ids = Vec::new();
    while let Some(path) = next {
        let page = server.get(&path).await.body;
        let items = page["checkpoint_items"].as_array().unwrap();
        ids.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        next = page["checkpoint_items_links"][0]["href"]
            .as_str()
            .map(|href| href.strip_prefix("http://kedge.test").unwrap().to_owned());
    }
    assert_eq!(ids.len(), 3);
    assert!(ids.is_sorted());
}

#[tokio::test]
async fn a_login_gives_a_token_that_can_be_shown_and_ended() {
    let server = Server::new().await;
    let login = json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {
            "name": MEMBER, "domain": {"name": "Default"}, "password": PASSWORD}}},
        "scope": {"project": {"name": "demo", "domain": {"id": "default"}}}}});
    let reply = server.send("POST", "/v3/auth/tokens", &[], &login.to_string()).await;
    assert_eq!(reply.status, StatusCode::CREATED);
    let token = reply.headers["x-subject-token"].to_str().unwrap().to_owned();
    assert_eq!(reply.body["token"]["project"]["id"], PROJECT);
    let endpoint = &reply.body["token"]["catalog"][0]["endpoints"][0];
    assert_eq!(endpoint["url"], format!("http://kedge.test/v1/{PROJECT}"));

    let both = [("x-auth-token", token.as_str()), ("x-subject-token", token.as_str())];
    let shown = server.send("GET", "/v3/auth/tokens", &both, "").await;
    assert_eq!(shown.body["token"]["user"]["name"], MEMBER);
    let own = [("x-auth-token", token.as_str())];
    let catalog = server.send("GET", "/v3/auth/catalog", &own, "").await;
    assert_eq!(catalog.body["catalog"], reply.body["token"]["catalog"]);
    let projects = server.send("GET", "/v3/projects?name=demo", &own, "").await;
    assert_eq!(projects.body["projects"][0]["id"], PROJECT);
    let projects = server.send("GET", "/v3/auth/projects?name=nope", &own, "").await;
    assert_eq!(projects.body["projects"], json!([]));

    let ended = server.send("DELETE", "/v3/auth/tokens", &both, "").await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    let reply = server.send("GET", &at("restores"), &own, "").await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn versions_health_and_the_document_need_no_token() {
    let server = Server::new().await;
    for path in ["/", "/v1", "/v1/"] {
        let reply = server.send("GET", path, &[], "").await;
        assert_eq!(reply.status, StatusCode::MULTIPLE_CHOICES);
        assert_eq!(
            reply.body,
            json!({"versions": [{
                "id": "v1.0", "status": "CURRENT",
                "links": [{"rel": "self", "href": "http://kedge.test/v1/"}]}]})
        );
    }
    for path in ["/healthz", "/readyz", "/openapi.json", "/v3", "/v3/"] {
        assert_eq!(server.send("GET", path, &[], "").await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn metrics_name_routes_and_no_project() {
    let server = Server::new().await;
    server.get(&at("checkpoint_items")).await;
    let text = server.metrics().await;
    assert!(text.contains("kedge_jobs_queued 0"), "{text}");
    assert!(text.contains(r#"route="/v1/{project_id}/checkpoint_items""#), "{text}");
    assert!(!text.contains(PROJECT), "{text}");
}
