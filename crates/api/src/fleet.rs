//! Answers about many servers as they go over the wire: a line each, as they come.

use std::convert::Infallible;

use futures::Stream;
use futures::stream;
use kedge_core::fleet::Cause;
use kedge_service::error::Error;
use kedge_service::fleet::{Fleet, Gap, Group, Prospect, Summary};
use kedge_wire::fleet as wire;

use crate::error::clean;
use crate::requests::Show;

/// The lines of an answer, some at a time, as whoever reads takes them.
pub(crate) fn lines(
    fleet: Fleet,
    show: Show,
) -> impl Stream<Item = Result<String, Infallible>> + Send {
    stream::unfold(Some(fleet), move |fleet| async move {
        let mut fleet = fleet?;
        loop {
            match fleet.next_page().await {
                Ok(Some(page)) => {
                    let shown = page.iter().filter(|one| show == Show::All || one.verdict.is_err());
                    let lines: String = shown.map(|one| line(&server(one))).collect();
                    // Nothing at all would be the end of the body to some.
                    if !lines.is_empty() {
                        return Some((Ok(lines), Some(fleet)));
                    }
                }
                Ok(None) => return Some((Ok(line(&summary(fleet.summary()))), None)),
                Err(error) => {
                    tracing::error!("a question about a fleet ends: {error}");
                    return Some((Ok(line(&trouble(&error))), None));
                }
            }
        }
    })
}

fn line(line: &wire::FleetLine) -> String {
    // Texts and numbers always are JSON.
    serde_json::to_string(line).map(|text| text + "\n").unwrap_or_default()
}

fn server(prospect: &Prospect) -> wire::FleetLine {
    let causes = prospect.verdict.as_ref().err().into_iter().flatten();
    wire::FleetLine::Server(wire::FleetServer {
        resource_id: clean(prospect.server.as_str()),
        resource_name: clean(&prospect.name),
        resource_az: clean(&prospect.zone),
        result: prospect.verdict.is_ok(),
        checkpoint_item_id: prospect.item.as_ref().map(ToString::to_string).unwrap_or_default(),
        protected_at: prospect.protected_at.map(|at| at.to_string()).unwrap_or_default(),
        passed_over: prospect.passed_over as u64,
        causes: causes.map(cause).collect(),
    })
}

fn cause(cause: &Cause) -> wire::FleetCause {
    wire::FleetCause {
        error_code: cause.refusal.code().as_str().to_owned(),
        error_msg: clean(&cause.refusal.to_string()),
        supposed: cause.is_supposed,
    }
}

fn summary(summary: &Summary) -> wire::FleetLine {
    wire::FleetLine::Summary(wire::FleetSummary {
        servers: summary.servers,
        restorable: summary.restorable,
        refused: summary.servers.saturating_sub(summary.restorable),
        lost: summary.lost,
        complete: summary.gaps.is_empty(),
        gaps: summary.gaps.iter().map(|gap| gap_word(*gap).to_owned()).collect(),
        causes: summary.groups.iter().map(group).collect(),
    })
}

fn gap_word(gap: Gap) -> &'static str {
    match gap {
        Gap::NotListed => "cloud_silent",
        Gap::TimeOver => "time_over",
    }
}

fn group(group: &Group) -> wire::FleetGroup {
    wire::FleetGroup {
        error_code: group.code.as_str().to_owned(),
        meaning: group.code.meaning().to_owned(),
        supposed: group.is_supposed,
        servers: group.servers,
    }
}

fn trouble(error: &Error) -> wire::FleetLine {
    wire::FleetLine::Error(wire::FleetError {
        error_code: error.code().as_str().to_owned(),
        error_msg: error.public_text(),
    })
}
