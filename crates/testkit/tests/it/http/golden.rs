//! Every call's answer as it was agreed on, whole: `golden/*.json`. `KEDGE_BLESS=1`
//! rewrites them; what changed is then for the reviewer to see.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use axum::http::Method;
use kedge_cloud::sim::SimOp;
use kedge_core::ports::CloudError;
use kedge_store::Outage;
use kedge_testkit::ADMIN;

use super::*;

/// The recorded answers, and which of them were compared.
struct Goldens {
    bless: bool,
    compared: BTreeSet<String>,
}

impl Goldens {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "how a person asks for rewritten files")]
        let bless = std::env::var("KEDGE_BLESS").is_ok_and(|value| value == "1");
        Self { bless, compared: BTreeSet::new() }
    }

    fn folder() -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "tests", "it", "http", "golden"].iter().collect()
    }

    #[track_caller]
    fn compare(&mut self, name: &str, answer: &Answer) {
        let given = json!({"status": answer.status.as_u16(), "body": answer.body});
        let given = serde_json::to_string_pretty(&given).unwrap() + "\n";
        let path = Self::folder().join(format!("{name}.json"));
        assert!(self.compared.insert(format!("{name}.json")), "{name} is compared twice");
        if self.bless {
            fs::write(path, given).unwrap();
            return;
        }
        let recorded = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(given, recorded, "{name}: if the change is meant, run with KEDGE_BLESS=1");
    }

    /// No recorded answer is one that nothing gives any more.
    fn finish(self) {
        let files = fs::read_dir(Self::folder()).unwrap();
        let names: BTreeSet<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(names, self.compared);
    }
}

#[tokio::test]
async fn every_call_answers_as_recorded() {
    let mut goldens = Goldens::new();
    let site = Site::new().await;
    identity(&mut goldens, &site).await;
    let caller = site.member().await;
    let (server, saved) = backups(&mut goldens, &site, &caller).await;
    checks(&mut goldens, &site, &caller, &server, &saved).await;
    restores(&mut goldens, &site, &caller, &server, &saved).await;
    deletion(&mut goldens, &site, &caller, &saved).await;
    errors(&mut goldens, &site, &caller).await;
    panic(&mut goldens).await;
    goldens.finish();
}

async fn identity(goldens: &mut Goldens, site: &Site) {
    let nobody = site.nobody();
    goldens.compare("versions", &nobody.get_from("/").await);
    goldens.compare("versions-v1", &nobody.get_from("/v1").await);
    goldens.compare("identity-version", &nobody.get_from("/v3").await);
    goldens.compare("healthz", &nobody.get_from("/healthz").await);
    goldens.compare("readyz", &nobody.get_from("/readyz").await);
    let body = login(MEMBER, PASSWORD, PROJECT);
    goldens.compare("token", &nobody.post_to("/v3/auth/tokens", &body).await);
    let mut unscoped = body.clone();
    unscoped["auth"].as_object_mut().unwrap().remove("scope");
    let answer = nobody.post_to("/v3/auth/tokens?nocatalog", &unscoped).await;
    goldens.compare("token-unscoped", &answer);
    let wrong = nobody.post_to("/v3/auth/tokens", &login(MEMBER, "guess", PROJECT)).await;
    goldens.compare("token-wrong-password", &wrong);
    let caller = site.member().await;
    goldens.compare("catalog", &caller.get_from("/v3/auth/catalog").await);
    goldens.compare("projects", &caller.get_from("/v3/projects?name=demo").await);
    let mut show = caller.request(Method::GET, "/v3/auth/tokens", Body::empty());
    let subject = caller.token.as_ref().unwrap().parse().unwrap();
    show.headers_mut().insert("x-subject-token", subject);
    goldens.compare("token-shown", &caller.send(show).await);
}

/// A backup that fails, then one that works; the latter's server and itself.
async fn backups(goldens: &mut Goldens, site: &Site, caller: &Caller) -> (Server, Saved) {
    let server = site.add_server();
    let failing = Saved::begin(caller, &server).await;
    site.harness.cloud.fail_always(SimOp::CreateSnapshots, CloudError::permanent("no room"));
    site.harness.run_jobs().await;
    site.harness.cloud.clear_faults();
    let shown = caller.get(&format!("/checkpoint_items/{}", failing.item)).await;
    goldens.compare("item-error", &shown);

    let asked = json!({
        "backup_name": "before-upgrade", "description": "kept", "incremental": true,
        "tags": [{"key": "env", "value": "prod"}]});
    let answer = caller.protect(server.id.as_str(), asked).await;
    goldens.compare("protect", &answer);
    let record = text(&answer.body["checkpoint"]["id"]);
    let list = caller.get(&format!("/checkpoint_items?checkpoint_id={record}")).await.ok();
    let item = text(&list["checkpoint_items"][0]["id"]);
    let below = format!("/checkpoint_items/{item}");
    goldens.compare("item-protecting", &caller.get(&below).await);
    site.harness.run_jobs().await;
    let shown = caller.get(&below).await;
    goldens.compare("item-available", &shown);
    goldens.compare("list-next", &caller.get("/checkpoint_items?limit=1&sort=id:asc").await);
    goldens.compare("list", &caller.get("/checkpoint_items").await);
    goldens.compare("list-empty", &caller.get("/checkpoint_items?name=none").await);
    goldens.compare("count", &caller.get("/checkpoint_items/count").await);
    let volumes =
        shown.body["checkpoint_item"]["extend_info"]["volume_backups"].as_array().unwrap();
    let volumes = volumes.iter().map(|volume| text(&volume["id"])).collect();
    (server, Saved { record, item, volumes })
}

async fn checks(
    goldens: &mut Goldens,
    site: &Site,
    caller: &Caller,
    server: &Server,
    saved: &Saved,
) {
    let id = server.id.as_str();
    goldens.compare("check-protectable", &caller.check(&protectable(id)).await);
    goldens.compare("check-protectable-no", &caller.check(&protectable("unknown")).await);
    goldens.compare("check-restorable", &caller.check(&saved.question(server)).await);
    let small = site.harness.add_server(&[&disk(1, 512), &disk(2, 512)]);
    goldens.compare("check-restorable-no", &caller.check(&saved.question(&small)).await);
}

async fn restores(
    goldens: &mut Goldens,
    site: &Site,
    caller: &Caller,
    server: &Server,
    saved: &Saved,
) {
    let answer = caller.restore(&saved.restore_to(server)).await;
    goldens.compare("restore", &answer);
    let below = format!("/checkpoint_items/{}", saved.item);
    goldens.compare("item-restoring", &caller.get(&below).await);
    let again = caller.restore(&saved.restore_to(server)).await;
    goldens.compare("error-400-refused", &again);
    site.harness.run_jobs().await;
    let done = format!("/restores/{}", text(&answer.body["restore"]["id"]));
    goldens.compare("restore-success", &caller.get(&done).await);
    site.harness.cloud.fail_always(SimOp::OpenForWriting, CloudError::permanent("no"));
    caller.restore(&saved.restore_to(server)).await.ok();
    site.harness.run_jobs().await;
    site.harness.cloud.clear_faults();
    goldens.compare("restores", &caller.get("/restores").await);
    goldens.compare("restores-next", &caller.get("/restores?limit=1").await);
}

async fn deletion(goldens: &mut Goldens, site: &Site, caller: &Caller, saved: &Saved) {
    goldens.compare("delete", &caller.delete(&saved.record).await);
    let below = format!("/checkpoint_items/{}", saved.item);
    goldens.compare("item-deleting", &caller.get(&below).await);
    goldens.compare("error-400-executing", &caller.delete(&saved.record).await);
    site.harness.run_jobs().await;
    goldens.compare("error-404-item", &caller.get(&below).await);
}

async fn errors(goldens: &mut Goldens, site: &Site, caller: &Caller) {
    let nobody = site.nobody();
    goldens.compare("error-400-field", &caller.check(&json!({"check_restorable": [{}]})).await);
    goldens.compare("error-401", &nobody.get("/checkpoint_items").await);
    goldens.compare("error-403", &caller.naming("another").get("/checkpoint_items").await);
    let admin = site.log_in(ADMIN, PROJECT).await;
    goldens.compare("error-404-project", &admin.naming("another").get("/restores").await);
    goldens.compare("error-404-restore", &caller.get("/restores/another").await);
    goldens.compare("error-404-route", &caller.get_from("/v2/none").await);
    let path = caller.path("/restores");
    let put = caller.request(Method::PUT, &path, Body::empty());
    goldens.compare("error-405", &caller.send(put).await);
    goldens.compare("error-413", &caller.post_text(&path, " ".repeat((1 << 20) + 1)).await);
    let mut other = caller.request(Method::POST, &path, Body::empty());
    other.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    goldens.compare("error-415", &caller.send(other).await);
    site.harness.store.set_outage(Outage::Total);
    goldens.compare("error-503", &caller.get("/checkpoint_items").await);
    goldens.compare("readyz-no", &nobody.get_from("/readyz").await);
}

async fn panic(goldens: &mut Goldens) {
    let armed = Arc::new(AtomicBool::new(true));
    let site = Site::around(Harness::new().await, |config| {
        config.before_call = Some(panicking_once(&armed));
    });
    goldens.compare("error-500", &site.nobody().get("/checkpoint_items").await);
}
