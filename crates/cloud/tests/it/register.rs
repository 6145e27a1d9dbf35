//! Declarations are not read again while they look the same, and what looks otherwise is.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kedge_cloud::local::{FileCalls, LocalCloud};
use kedge_core::ids::{ProjectId, ServerId};
use kedge_core::ports::{Cloud as _, ServerRef};

use crate::files::{PROJECT, Site, declaration, make_raw, server_ref};

const DISK: &str = "file = \"data.img\"\nformat = \"raw\"\nrole = \"data\"";
const OTHER: &str = "5f0c2a1e-0000-4000-8000-000000000002";

/// A clock by which everything has looked the same for long whenever it is asked.
fn hours_pass() -> Duration {
    static HOURS: AtomicU64 = AtomicU64::new(0);
    Duration::from_secs(3600 * HOURS.fetch_add(1, Ordering::SeqCst))
}

async fn zone(cloud: &LocalCloud, of: &ServerRef) -> Option<String> {
    cloud.find_server(of).await.unwrap().map(|server| server.zone)
}

/// Asks until what was read counts.
async fn settled_site() -> (Site, LocalCloud) {
    let site = Site::with_disk(DISK);
    make_raw(&site.path("data.img"), 4096);
    let calls = FileCalls { elapsed: hours_pass, ..FileCalls::default() };
    let cloud = LocalCloud::open_with(site.root.path().to_owned(), calls).unwrap();
    for _ in 0..3 {
        assert!(zone(&cloud, &server_ref()).await.is_some());
    }
    (site, cloud)
}

#[tokio::test]
async fn what_looks_the_same_is_not_read_again_and_what_was_edited_is() {
    let (site, cloud) = settled_site().await;
    let path = site.path("server.toml");
    let text = fs::read_to_string(&path).unwrap();
    let before = zone(&cloud, &server_ref()).await.unwrap();
    fs::write(&path, text.replace(&format!("\"{before}\""), "\"elsewhere\"")).unwrap();
    assert_eq!(zone(&cloud, &server_ref()).await.as_deref(), Some("elsewhere"));
    fs::write(&path, text.replace(PROJECT, "another")).unwrap();
    assert_eq!(zone(&cloud, &server_ref()).await, None, "it is another project's now");
    fs::write(&path, "nonsense").unwrap();
    assert_eq!(zone(&cloud, &server_ref()).await, None);
}

#[tokio::test]
async fn servers_that_come_go_and_are_renamed_are_seen_at_once() {
    let (site, cloud) = settled_site().await;
    let other = ServerRef { project: ProjectId::new(PROJECT), server: ServerId::asked(OTHER) };
    assert_eq!(zone(&cloud, &other).await, None);
    let folder = site.root.path().join("db");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("server.toml"), declaration(OTHER, "")).unwrap();
    assert!(zone(&cloud, &other).await.is_some());
    fs::rename(&folder, site.root.path().join("sql")).unwrap();
    assert!(zone(&cloud, &other).await.is_some(), "folders' names mean nothing");
    assert!(zone(&cloud, &server_ref()).await.is_some());
    fs::remove_dir_all(site.root.path().join("sql")).unwrap();
    assert_eq!(zone(&cloud, &other).await, None);
}

/// Another project's server takes the same way as one that nobody has.
#[tokio::test]
async fn a_foreign_server_is_absent_however_well_it_is_known() {
    let (_site, cloud) = settled_site().await;
    let foreign = ServerRef { project: ProjectId::new("another"), ..server_ref() };
    assert_eq!(zone(&cloud, &foreign).await, None);
}

#[tokio::test]
async fn a_server_that_two_folders_declare_is_not_touched() {
    let (site, cloud) = settled_site().await;
    let folder = site.root.path().join("copy");
    fs::create_dir(&folder).unwrap();
    fs::copy(site.path("server.toml"), folder.join("server.toml")).unwrap();
    assert!(cloud.find_server(&server_ref()).await.is_err());
    assert!(cloud.stop_server(&server_ref()).await.is_err());
}
