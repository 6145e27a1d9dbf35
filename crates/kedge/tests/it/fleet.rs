//! A question about all servers, streamed by a real service over a real socket.

use std::fs;

use kedge_wire::fleet::{FleetLine, FleetLosses, FleetParam, FleetSummary};

use crate::site::{Disks, SERVER, Site, Start};

fn ask(site: &mut Site, lost: FleetLosses) -> (usize, FleetSummary) {
    let mut lines = site.ask_fleet(&FleetParam { lost: Some(lost), ..FleetParam::default() });
    let Some(FleetLine::Summary(summary)) = lines.pop() else { panic!("no summary: {lines:?}") };
    let is_of_a_server =
        |line: &FleetLine| matches!(line, FleetLine::Server(one) if one.resource_id == SERVER);
    assert!(lines.iter().all(is_of_a_server), "{lines:?}");
    (lines.len(), summary)
}

fn zone(name: &str) -> FleetLosses {
    FleetLosses { zones: Some(vec![name.to_owned()]), ..FleetLosses::default() }
}

#[test]
fn what_a_lost_zone_takes_is_what_the_operator_told() {
    let mut site = Site::new();
    site.put_disks(&Disks::of(1));
    site.start(Start::Plain);
    let (refused, summary) = ask(&mut site, FleetLosses::default());
    assert_eq!((refused, summary.causes[0].error_code.as_str()), (1, "KEDGE.0017"));
    let backup = site.protect();
    site.wait_until_available(&backup);
    let (refused, summary) = ask(&mut site, FleetLosses::default());
    assert_eq!((refused, summary.servers, summary.restorable), (0, 1, 1));
    let (refused, summary) = ask(&mut site, zone("vault"));
    assert_eq!((refused, summary.causes[0].error_code.as_str()), (1, "KEDGE.0018"));

    site.kill();
    let file = site.path("kedge.toml");
    let config = fs::read_to_string(&file).unwrap();
    let told = "store_zones = [\"vault\"]\nkey_zones = [\"vault\", \"safe\"]\n";
    fs::write(&file, format!("{told}{config}")).unwrap();
    site.start(Start::Plain);
    let (refused, summary) = ask(&mut site, zone("vault"));
    assert_eq!((refused, summary.causes[0].error_code.as_str()), (1, "KEDGE.0005"));
    assert!(summary.causes[0].supposed && summary.complete);
    assert_eq!(ask(&mut site, zone("safe")).1.restorable, 1);
}
