//! `kedge repo verify`: reads back what is stored, in slices, and notes after each how far
//! it came.

use std::num::NonZeroUsize;
use std::sync::Arc;

use kedge_core::ids::ProjectId;
use kedge_engine::{CancelFlag, ObjectName, PackId, VerifyOutcome};
use kedge_service::repositories::{Repositories, RepositoryError};
use serde_json::json;

use super::cursor::{Cursor, Kind};
use super::pacing::Paced;
use super::repo::{cancel_when_told, chosen};
use super::report::{Form, Outcome, Progress, Report};
use super::{Found, require_owner, without_catalogue, without_key};
use crate::arguments::VerifyOptions;
use crate::config::Checked;
use crate::failure::Failure;

/// How much is verified between two notes: index and snapshots are read anew each time, and
/// of a kill it costs no more than this.
const SLICE_BYTES: u64 = 16 << 30;

/// Reads back what is stored.
pub(super) async fn verify(options: &VerifyOptions) -> Result<Found, Failure> {
    let config = Checked::read(&options.of.config)?;
    // The cursor, and marks of damage in the repository.
    require_owner(&config.state_dir)?;
    let repositories = match options.keyless {
        true => without_key(&config).await?,
        false => without_catalogue(&config).await?,
    };
    let cancel = cancel_when_told()?;
    let mut report = Report::new("repo verify", Form::json_if(options.of.json));
    for project in chosen(&options.of, &repositories).await? {
        let walk = Walk { config: &config, repositories: &repositories, options, cancel: &cancel };
        let verified = walk.run(&project, report.form()).await;
        report.add(&project, verified)?;
    }
    report.end(json!({ "keyless": options.keyless }))
}

/// One repository being verified.
struct Walk<'a> {
    config: &'a Checked,
    repositories: &'a Repositories,
    options: &'a VerifyOptions,
    cancel: &'a CancelFlag,
}

impl Walk<'_> {
    async fn run(&self, project: &ProjectId, form: Form) -> Result<Outcome, String> {
        let text = |error: RepositoryError| error.to_string();
        let all_bytes = self.repositories.packs_bytes(project).await.map_err(text)?;
        let kind = if self.options.keyless { Kind::Keyless } else { Kind::Keyed };
        let cursor = Cursor::of(&self.config.state_dir, project, kind);
        let begun_after = if self.options.from_start { None } else { cursor.read() };
        let budget = self.options.budget.unwrap_or(u64::MAX);
        let shown = Progress::begin_bytes(form, "verifying", project, all_bytes.min(budget));
        let paced = Paced::new(shown.clone(), self.options.limit_rate, self.cancel.clone());
        let progress = Arc::new(paced);
        let (mut after, mut total) = (begun_after, VerifyOutcome::default());
        let walked = loop {
            let options = kedge_engine::VerifyOptions {
                threads: self.threads(),
                cancel: self.cancel.clone(),
                after,
                bytes_max: budget.saturating_sub(total.read_bytes).min(SLICE_BYTES),
            };
            let slice = match self.options.keyless {
                true => self.repositories.verify_keyless(project, options, progress.clone()).await,
                false => self.repositories.verify(project, options, progress.clone()).await,
            };
            let slice = match slice {
                Ok(slice) => slice,
                Err(error) => break Err(error.to_string()),
            };
            after = slice.next;
            if let Err(error) = cursor.write(after) {
                break Err(format!("noting how far it came: {error}"));
            }
            add_up(&mut total, slice);
            let is_over = after.is_none() || total.read_bytes >= budget;
            if is_over || self.cancel.is_cancelled() {
                break Ok(());
            }
        };
        shown.end();
        walked.map(|()| self.told(total, begun_after))
    }

    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.config.settings.mover_threads).unwrap_or(NonZeroUsize::MIN)
    }

    fn told(&self, total: VerifyOutcome, begun_after: Option<PackId>) -> Outcome {
        let is_complete = total.next.is_none() && !self.cancel.is_cancelled();
        let extent = match (is_complete, begun_after) {
            (true, None) => "all of it",
            (true, Some(_)) => "the rest of it",
            (false, _) => "a part of it",
        };
        let (damaged, problems) = (total.damaged.len(), total.problems.len());
        let summary = format!(
            "verified {extent}: {} packs, {} blobs, {} bytes; {damaged} packs damaged, \
             {problems} other problems",
            total.packs, total.blobs, total.read_bytes
        );
        let mut wrong: Vec<_> =
            total.problems.into_iter().map(|problem| (problem.object, problem.what)).collect();
        for damage in &total.damaged {
            let object = ObjectName::Pack(damage.pack).to_string();
            let what = match (damage.whole, &damage.blobs) {
                (true, _) | (false, None) => damage.what.clone(),
                (false, Some(blobs)) => format!("{} ({} blobs)", damage.what, blobs.len()),
            };
            wrong.push((object, what));
        }
        let fields = json!({
            "packs": total.packs,
            "blobs": total.blobs,
            "read_bytes": total.read_bytes,
            "complete": is_complete,
            "begun_after": begun_after.map(|pack| pack.to_string()),
            "next_after": total.next.map(|pack| pack.to_string()),
            "damaged": total.damaged,
            "recorded": !self.options.keyless,
        });
        Outcome::new(summary, fields).with_problems(wrong)
    }
}

/// What every slice reads anew is told once.
fn add_up(total: &mut VerifyOutcome, slice: VerifyOutcome) {
    total.packs += slice.packs;
    total.blobs += slice.blobs;
    total.read_bytes += slice.read_bytes;
    total.damaged.extend(slice.damaged);
    total.refuted.extend(slice.refuted);
    for problem in slice.problems {
        if !total.problems.contains(&problem) {
            total.problems.push(problem);
        }
    }
    total.next = slice.next;
}
