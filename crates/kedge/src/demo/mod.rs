//! The main job on two made-up servers with real disks: back up, change, back up again,
//! destroy, ask, restore, compare every byte.
//!
//! The demo starts the service as `kedge serve` would and then speaks to it over HTTP
//! only. What a disk held at the last backup it keeps in copies of its own, so it is not
//! the service that says whether the restore was right.

mod account;
mod by_hand;
mod caller;
mod disk;
mod noise;
mod place;
mod servers;
mod show;
mod story;

use std::net::{Ipv4Addr, SocketAddr};

use kedge_core::ids::ProjectId;

use self::account::Account;
use self::by_hand::ByHand;
use self::place::Place;
use self::servers::Servers;
use self::show::size;
use self::story::Story;
use crate::arguments::DemoOptions;
use crate::config::{Checked, LogFormat};
use crate::failure::{Failure, OrFail as _};
use crate::node::Node;
use crate::operator::say;
use crate::{signals, telemetry};

/// Runs the demo. Its disk work is done on the main thread, where nobody else waits.
pub(crate) async fn run(options: DemoOptions) -> Result<(), Failure> {
    // Without the demo's own many questions.
    let filter = if options.verbose { "info,kedge_api::edge=warn" } else { "error" };
    telemetry::start(LogFormat::Text, filter)?;
    let place = Place::claim(&options)?;
    let account = Account::random()?;
    let servers = Servers::make(&place, &account.project)?;
    let config_path = account.write_files(&place)?;
    let config = Checked::read(&config_path)?;
    let mut node = Node::open(&config).await?;
    node.start_workers();
    let api = node.start_api(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    let url = format!("http://{}", api.address);
    introduce(&place, &servers, &account, &url)?;

    let mut story = Story::begin(&mut node, &config, &servers);
    let told = match story.tell(&url, &account).await {
        Ok(kept) => {
            write_recovery_kit(&node, &account, &place).await?;
            let by_hand = ByHand { place: &place, account: &account, config: &config_path };
            if options.exit {
                by_hand.after_exit(&config, &servers, &kept)
            } else {
                let told_to_stop = signals::until_told_to_stop()?;
                by_hand.while_serving(&url, &servers, &kept)?;
                told_to_stop.cancelled().await;
                Ok(())
            }
        }
        Err(failure) => Err(failure),
    };
    api.stop().await;
    node.close().await;
    told
}

fn introduce(
    place: &Place,
    servers: &Servers,
    account: &Account,
    url: &str,
) -> Result<(), Failure> {
    say(&format!("kedge demo in {}", place.root().display()))?;
    for server in servers.all() {
        let disks: Vec<_> = server
            .disks
            .iter()
            .map(|disk| format!("{} {}", disk.name, size(disk.size_bytes)))
            .collect();
        say(&format!("  server {:<4} {}  {}", server.name, server.id, disks.join(", ")))?;
    }
    say(&format!("  API    {url}"))?;
    say(&format!("  login  {}\n", account.introduction()))
}

async fn write_recovery_kit(node: &Node, account: &Account, place: &Place) -> Result<(), Failure> {
    let repositories = node.app().repositories();
    let project = ProjectId::new(&account.project);
    let kit = repositories.recovery_kit(&project).await.or_fail("recovery kit")?;
    let path = place.write("recovery-kit.env", &kit)?;
    say(&format!("\nrecovery kit: {}", path.display()))
}
