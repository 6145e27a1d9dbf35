//! `kedge repo verify`: reads back what is stored, in slices, and notes after each how far
//! it came.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use kedge_core::ids::ProjectId;
use kedge_core::ports::Clock as _;
use kedge_core::time::Timestamp;
use kedge_engine::{CancelFlag, IndexId, ObjectName, PackId, VerifyOutcome};
use kedge_service::repositories::{Repositories, RepositoryError};
use serde_json::json;

use super::cursor::{Cursor, Kind, Place};
use super::pacing::Paced;
use super::repo::{cancel_when_told, chosen};
use super::report::{Form, Outcome, Progress, Report};
use super::{Found, note, require_owner, without_catalogue, without_key};
use crate::arguments::VerifyOptions;
use crate::config::Checked;
use crate::failure::Failure;
use crate::outside::SystemClock;

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
        let began_at = SystemClock.now();
        // What began later than now began by a clock that was wrong.
        let is_usable = |place: &Place| !self.options.from_start && place.began_at <= began_at;
        let begun = cursor.read().filter(is_usable);
        let begun_after = begun.as_ref().and_then(|place| place.after);
        let mut place = begun.unwrap_or(Place { after: None, began_at, index: None });
        let budget = self.options.budget.unwrap_or(u64::MAX);
        let shown = Progress::begin_bytes(form, "verifying", project, all_bytes.min(budget));
        let paced = Paced::new(shown.clone(), self.options.limit_rate, self.cancel.clone());
        let progress = Arc::new(paced);
        let (mut total, mut evidence_since) = (VerifyOutcome::default(), None);
        let walked = loop {
            let options = kedge_engine::VerifyOptions {
                threads: self.threads(),
                cancel: self.cancel.clone(),
                after: place.after,
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
            place.go_on(&slice);
            add_up(&mut total, slice);
            if place.after.is_none() {
                // Before the cursor goes: a crash in between has it told again.
                evidence_since = self.tell_evidence(project, &place).await;
            }
            let noted = cursor.write(place.after.is_some().then_some(&place));
            if let Err(error) = noted {
                break Err(format!("noting how far it came: {error}"));
            }
            let is_over = place.after.is_none() || total.read_bytes >= budget;
            if is_over || self.cancel.is_cancelled() {
                break Ok(());
            }
        };
        shown.end();
        walked.map(|()| self.told(total, begun_after, evidence_since))
    }

    /// What was verified from the start to the end, in however many calls, counts as evidence;
    /// since when.
    async fn tell_evidence(&self, project: &ProjectId, place: &Place) -> Option<Timestamp> {
        let is_evidence = !self.options.keyless && place.began_at <= SystemClock.now();
        let index = place.index.clone().filter(|index| is_evidence && !index.is_empty())?;
        let told = self.repositories.record_reading(project, place.began_at, index).await;
        told.inspect_err(|error| note(&format!("this will not count as evidence: {error}")))
            .ok()?;
        Some(place.began_at)
    }

    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.config.settings.mover_threads).unwrap_or(NonZeroUsize::MIN)
    }

    fn told(
        &self,
        total: VerifyOutcome,
        begun_after: Option<PackId>,
        evidence_since: Option<Timestamp>,
    ) -> Outcome {
        let is_complete = total.next.is_none();
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
            "evidence_since": evidence_since.map(|since| since.to_string()),
        });
        Outcome::new(summary, fields).with_problems(wrong)
    }
}

impl Place {
    /// Of what was there at the start that stays which was there all the time.
    fn go_on(&mut self, slice: &VerifyOutcome) {
        self.after = slice.next;
        let still =
            |before: BTreeSet<IndexId>| before.intersection(&slice.index).copied().collect();
        self.index = Some(self.index.take().map_or_else(|| slice.index.clone(), still));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs that an index object lists which came later may lie before where the walk was.
    #[test]
    fn of_a_verification_in_slices_counts_what_was_there_in_all_of_them() {
        let id = |digit: &str| digit.repeat(64);
        let index = |digits: &[&str]| digits.iter().map(|one| id(one).parse().unwrap()).collect();
        let mut place = Place { after: None, began_at: Timestamp::from_micros(1), index: None };
        for (there, next, counts) in [
            (&["1", "2"][..], Some("a"), &["1", "2"][..]),
            (&["2", "3"], Some("b"), &["2"]),
            (&["1", "2", "3"], None, &["2"]),
        ] {
            let next = next.map(|digit| id(digit).parse().unwrap());
            place.go_on(&VerifyOutcome { index: index(there), next, ..VerifyOutcome::default() });
            assert_eq!(place.after, next);
            assert_eq!(place.index, Some(index(counts)));
        }
    }
}
