//! What belongs to another project looks exactly like what does not exist: the same
//! status, the same body, the same SQL, as many cloud calls.

use axum::http::Method;

use super::*;

const ABSENT: &str = "ffffffff-ffff-4fff-8fff-ffffffffffff";

/// What can be told of an answer from outside, and what it cost.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    body: String,
    statements: Vec<String>,
    cloud_calls: u64,
}

impl Seen {
    /// Sends the request; the id it names and its own id stand for whatever they are.
    async fn of(site: &Site, caller: &Caller, request: Request<Body>, named: &str) -> Self {
        let before = site.harness.cloud.total_calls();
        site.harness.store.record_statements();
        let answer = caller.send(request).await;
        let request_id = answer.headers["x-request-id"].to_str().unwrap();
        // Only errors hold it; elsewhere the same digits are another's id.
        let text = match answer.body.get("request_id") {
            Some(_) => answer.text.replace(request_id, "REQUEST"),
            None => answer.text.clone(),
        };
        Self {
            status: answer.status.as_u16(),
            body: text.replace(named, "NAMED"),
            statements: site.harness.store.take_statements(),
            cloud_calls: site.harness.cloud.total_calls() - before,
        }
    }
}

/// Two projects with a server and a backup each; the foreign project also has a server
/// being backed up, and a restore that holds its target.
struct Stage {
    site: Site,
    caller: Caller,
    server: Server,
    saved: Saved,
    foreign: Foreign,
}

struct Foreign {
    server: Server,
    busy_server: Server,
    restored_server: Server,
    saved: Saved,
    running: Saved,
    restore: String,
}

async fn stage() -> Stage {
    let site = Site::new().await;
    let (caller, stranger) = (site.member().await, site.stranger().await);
    let server = site.add_server();
    let saved = site.back_up(&caller, &server).await;
    let add = || site.harness.add_server_of(OTHER_PROJECT, &[&disk(3, 4096), &disk(4, 4096)]);
    let (theirs, busy_server, restored_server) = (add(), add(), add());
    let theirs_saved = site.back_up(&stranger, &theirs).await;
    let restored_saved = site.back_up(&stranger, &restored_server).await;
    let running = Saved::begin(&stranger, &busy_server).await;
    let restore = stranger.restore(&restored_saved.restore_to(&restored_server)).await.ok();
    let foreign = Foreign {
        server: theirs,
        busy_server,
        restored_server,
        saved: theirs_saved,
        running,
        restore: text(&restore["restore"]["id"]),
    };
    Stage { site, caller, server, saved, foreign }
}

impl Stage {
    fn post(&self, path: &str, body: &Value) -> Request<Body> {
        self.caller.request(Method::POST, path, body.to_string().into())
    }

    fn get(&self, below: &str) -> Request<Body> {
        self.caller.request(Method::GET, &self.caller.path(below), Body::empty())
    }

    fn delete(&self, named: &str) -> Request<Body> {
        let path = self.caller.provider(&format!("/checkpoints/{named}"));
        self.caller.request(Method::DELETE, &path, Body::empty())
    }

    /// A check about the caller's own backup, but for one id.
    fn check(&self, pointer: &str, id: &str) -> Request<Body> {
        let body = spoil(&self.saved.question(&self.server), pointer, &Spoilt::Holding(json!(id)));
        self.post(&self.caller.provider("/resources/action"), &body)
    }

    /// The same with reasons.
    fn explained_check(&self, pointer: &str, id: &str) -> Request<Body> {
        let body = spoil(&self.saved.question(&self.server), pointer, &Spoilt::Holding(json!(id)));
        self.post(&self.caller.provider("/resources/action?explain=true"), &body)
    }

    /// A restore of the caller's own backup, but for one id.
    fn restore(&self, pointer: &str, id: &str) -> Request<Body> {
        let body =
            spoil(&self.saved.restore_to(&self.server), pointer, &Spoilt::Holding(json!(id)));
        self.post(&self.caller.path("/restores"), &body)
    }

    fn protect(&self, server: &str, protect: &Value) -> Request<Body> {
        let path = self.caller.provider(&format!("/resources/{server}/action"));
        self.post(&path, &json!({ "protect": protect }))
    }

    /// Compares each foreign id with one that nothing has.
    async fn assert_alike(
        &self,
        what: &str,
        status: u16,
        foreign: &[&str],
        request: impl Fn(&str) -> Request<Body>,
    ) {
        let absent = Seen::of(&self.site, &self.caller, request(ABSENT), ABSENT).await;
        assert_eq!(absent.status, status, "{what}: {absent:?}");
        assert!(!absent.statements.is_empty(), "{what}");
        for id in foreign {
            let seen = Seen::of(&self.site, &self.caller, request(id), id).await;
            assert_eq!(seen, absent, "{what}: {id}");
        }
    }
}

#[tokio::test]
async fn checks_cannot_tell_foreign_from_absent() {
    let stage = stage().await;
    let foreign = &stage.foreign;
    let servers = foreign.servers();
    let backups = foreign.volume_backups();
    let volumes = foreign.volumes();
    let path = stage.caller.provider("/resources/action");
    let question = "/check_restorable/0";
    stage
        .assert_alike("server to back up", 200, &servers, |id| stage.post(&path, &protectable(id)))
        .await;
    stage
        .assert_alike("backup", 200, &foreign.items(), |id| {
            stage.check(&format!("{question}/checkpoint_item_id"), id)
        })
        .await;
    stage
        .assert_alike("target", 200, &servers, |id| {
            stage.check(&format!("{question}/target/resource_id"), id)
        })
        .await;
    stage
        .assert_alike("disk backup", 200, &backups, |id| {
            stage.check(&format!("{question}/target/volumes/0/backup_id"), id)
        })
        .await;
    stage
        .assert_alike("disk", 200, &volumes, |id| {
            stage.check(&format!("{question}/target/volumes/0/volume_id"), id)
        })
        .await;
    let items = foreign.items();
    let explained: [(&str, &str, &[&str]); 4] = [
        ("explained backup", "checkpoint_item_id", &items),
        ("explained target", "target/resource_id", &servers),
        ("explained disk backup", "target/volumes/0/backup_id", &backups),
        ("explained disk", "target/volumes/0/volume_id", &volumes),
    ];
    for (what, place, foreign) in explained {
        stage
            .assert_alike(what, 200, foreign, |id| {
                stage.explained_check(&format!("{question}/{place}"), id)
            })
            .await;
    }
    stage
        .assert_alike("explained server", 200, &servers, |id| {
            stage.post(&stage.caller.provider("/resources/action?explain=true"), &protectable(id))
        })
        .await;
}

#[tokio::test]
async fn actions_cannot_tell_foreign_from_absent_and_change_nothing() {
    let stage = stage().await;
    let foreign = &stage.foreign;
    let servers = foreign.servers();
    let backups = foreign.volume_backups();
    let volumes = foreign.volumes();
    let parameters = "/restore/parameters";
    stage.site.harness.cloud.clear_write_log();
    stage
        .assert_alike("server to back up", 400, &servers, |id| stage.protect(id, &json!({})))
        .await;
    stage
        .assert_alike("disk to leave out", 400, &volumes, |id| {
            let protect = json!({"extra_info": {"exclude_volumes": [id]}});
            stage.protect(stage.server.id.as_str(), &protect)
        })
        .await;
    stage
        .assert_alike("record to restore", 404, &foreign.records(), |id| {
            stage.restore("/restore/checkpoint_id", id)
        })
        .await;
    stage
        .assert_alike("backup to restore", 404, &foreign.items(), |id| {
            stage.restore(&format!("{parameters}/checkpoint_item_id"), id)
        })
        .await;
    stage
        .assert_alike("target", 400, &servers, |id| {
            stage.restore(&format!("{parameters}/targets/server_id"), id)
        })
        .await;
    stage
        .assert_alike("disk backup", 400, &backups, |id| {
            stage.restore(&format!("{parameters}/targets/volumes/0/backup_id"), id)
        })
        .await;
    stage
        .assert_alike("disk", 400, &volumes, |id| {
            stage.restore(&format!("{parameters}/targets/volumes/0/volume_id"), id)
        })
        .await;
    stage.assert_alike("record to delete", 404, &foreign.records(), |id| stage.delete(id)).await;
    stage
        .assert_alike("backup to delete", 404, &foreign.items(), |id| {
            stage.delete(&format!("{}?checkpoint_items={id}", stage.saved.record))
        })
        .await;
    assert!(stage.site.harness.cloud.write_log().is_empty());
    let stranger = stage.site.stranger().await;
    assert_eq!(foreign.saved.status(&stranger).await, "available");
    assert_eq!(foreign.running.status(&stranger).await, "protecting");
    assert_eq!(stage.saved.status(&stage.caller).await, "available");
}

#[tokio::test]
async fn looking_cannot_tell_foreign_from_absent() {
    let stage = stage().await;
    let foreign = &stage.foreign;
    let (items, records, servers) = (foreign.items(), foreign.records(), foreign.servers());
    let items_of = |filter: &str| format!("/checkpoint_items?{filter}");
    stage
        .assert_alike("backup", 404, &items, |id| stage.get(&format!("/checkpoint_items/{id}")))
        .await;
    stage
        .assert_alike("restore", 404, &[&foreign.restore], |id| {
            stage.get(&format!("/restores/{id}"))
        })
        .await;
    stage
        .assert_alike("marker", 400, &items, |id| stage.get(&items_of(&format!("marker={id}"))))
        .await;
    stage
        .assert_alike("marker of restores", 400, &[&foreign.restore], |id| {
            stage.get(&format!("/restores?marker={id}"))
        })
        .await;
    stage
        .assert_alike("server of a list", 200, &servers, |id| {
            stage.get(&items_of(&format!("resource_id={id}")))
        })
        .await;
    stage
        .assert_alike("server of a count", 200, &servers, |id| {
            stage.get(&format!("/checkpoint_items/count?resource_id={id}"))
        })
        .await;
    stage
        .assert_alike("record of a list", 200, &records, |id| {
            stage.get(&items_of(&format!("checkpoint_id={id}&all_tenants=true")))
        })
        .await;
}

#[tokio::test]
async fn a_foreign_project_looks_like_one_that_does_not_exist() {
    let stage = stage().await;
    let paths = [
        format!("/providers/{PROVIDER_ID}/checkpoints/x"),
        "/checkpoint_items".to_owned(),
        "/checkpoint_items/count".to_owned(),
        format!("/checkpoint_items/{}", stage.foreign.saved.item),
        "/restores".to_owned(),
    ];
    for below in &paths {
        stage
            .assert_alike(below, 403, &[OTHER_PROJECT], |project| {
                let caller = stage.caller.naming(project);
                let method =
                    if below.contains("checkpoints/") { Method::DELETE } else { Method::GET };
                caller.request(method, &caller.path(below), Body::empty())
            })
            .await;
    }
}

#[tokio::test]
async fn a_strangers_token_looks_like_none() {
    let stage = stage().await;
    let stranger = stage.site.stranger().await.token.unwrap();
    // As long as a token is: anything else is none without asking.
    let absent = "x".repeat(stranger.len());
    for method in [Method::GET, Method::DELETE] {
        let request = |token: &str| {
            let mut request =
                stage.caller.request(method.clone(), "/v3/auth/tokens", Body::empty());
            request.headers_mut().insert("x-subject-token", token.parse().unwrap());
            request
        };
        let absent = Seen::of(&stage.site, &stage.caller, request(&absent), &absent).await;
        let seen = Seen::of(&stage.site, &stage.caller, request(&stranger), &stranger).await;
        assert_eq!(seen.status, 403);
        assert_eq!(seen, absent);
    }
    let stranger = stage.caller.bearing(Some(&stranger)).naming(OTHER_PROJECT);
    stranger.get("/checkpoint_items").await.ok();
}

#[tokio::test]
async fn lists_and_counts_hold_the_callers_own_even_when_asked_for_all() {
    let stage = stage().await;
    for query in ["", "?all_tenants=true"] {
        let list = stage.caller.get(&format!("/checkpoint_items{query}")).await.ok();
        let items = list["checkpoint_items"].as_array().unwrap();
        let ids: Vec<_> = items.iter().map(|item| text(&item["id"])).collect();
        assert_eq!(ids, std::slice::from_ref(&stage.saved.item));
        let count = stage.caller.get(&format!("/checkpoint_items/count{query}")).await.ok();
        assert_eq!(count, json!({"count": 1}));
    }
    assert_eq!(stage.caller.get("/restores").await.ok(), json!({"restores": []}));
    let admin = stage.site.log_in(kedge_testkit::ADMIN, PROJECT).await;
    let count = admin.get("/checkpoint_items/count?all_tenants=true").await.ok();
    assert_eq!(count, json!({"count": 4}));
}

impl Foreign {
    fn servers(&self) -> [&str; 3] {
        [&self.server, &self.busy_server, &self.restored_server].map(|server| server.id.as_str())
    }

    fn volumes(&self) -> [&str; 3] {
        [&self.server, &self.busy_server, &self.restored_server]
            .map(|server| server.volumes[0].id.as_str())
    }

    fn items(&self) -> [&str; 2] {
        [&self.saved, &self.running].map(|saved| saved.item.as_str())
    }

    fn records(&self) -> [&str; 2] {
        [&self.saved, &self.running].map(|saved| saved.record.as_str())
    }

    fn volume_backups(&self) -> [&str; 2] {
        [&self.saved, &self.running].map(|saved| saved.volumes[0].as_str())
    }
}
