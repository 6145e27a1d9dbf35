//! What is known of the bytes that backups consist of, and since when.
//!
//! Reading back goes through a whole repository, pack by pack, so what is known is known of
//! all backups that were complete before a moment; none needs a record of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// How far watching over a repository has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// When every pack was last looked for in the store. Those that were missing, or had
    /// not their size, are recorded as damaged.
    pub present_at: Option<Timestamp>,
    /// Everything stored before this moment was read back after it, once at least.
    pub watched_since: Option<Timestamp>,
    /// Everything stored before this moment was read back once at least.
    pub new_read_at: Option<Timestamp>,
    /// Everything stored before this moment was read back after it.
    pub all_read_at: Option<Timestamp>,
    /// The round through everything that is under way.
    pub round: Option<Round>,
    /// When the round last went on.
    pub went_on_at: Option<Timestamp>,
    /// Index objects, by their ids, of which every pack was read back.
    pub read_index: BTreeSet<String>,
    /// An index object is gone, or cannot be read, and nobody knows what it listed.
    pub lost_index: bool,
}

/// A round through every pack of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// When it began.
    pub began_at: Timestamp,
    /// The pack after which it goes on.
    pub after: Option<String>,
}

/// How good what is known of a backup's bytes is. A backup that was drilled, grade A, is
/// not told of yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// Every byte was read back and hashed since it was stored.
    Read,
    /// Every pack was in the store since, as large as it must be.
    Present,
    /// Only the catalogue speaks of it.
    Recorded,
}

/// What is known of a backup's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// How good it is.
    pub grade: Grade,
    /// Every byte was read back after this moment.
    pub read_since: Option<Timestamp>,
    /// Every pack was there at this moment.
    pub present_at: Option<Timestamp>,
}

/// The least that a round reads when it goes on.
const GO_ON_BYTES_MIN: u64 = 64 << 20;
/// However long nobody was there to read: what was missed is not made up for at once.
const GAP_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Watch {
    /// What is known of a backup that was complete at this moment.
    pub fn evidence(&self, finished_at: Option<Timestamp>) -> Evidence {
        let after = |seen: Option<Timestamp>| {
            seen.zip(finished_at).filter(|(seen, finished)| finished < seen).map(|(seen, _)| seen)
        };
        // What a backup shares with older ones was read when those were; all of it after
        // the last round began, or the first.
        let is_read = after(self.new_read_at.max(self.all_read_at)).is_some();
        let read_since = self.all_read_at.max(self.watched_since).filter(|_| is_read);
        let present_at = after(self.present_at);
        let grade = match (read_since, present_at) {
            (Some(_), _) => Grade::Read,
            (None, Some(_)) => Grade::Present,
            (None, None) => Grade::Recorded,
        };
        Evidence { grade, read_since, present_at }
    }

    /// Whether there is nothing to read now: a round ended, and the next is not due.
    pub fn rests(&self, now: Timestamp, period: Duration) -> bool {
        let is_fresh = |at: Timestamp| now.since(at) < period;
        self.round.is_none() && self.all_read_at.is_some_and(is_fresh)
    }

    /// How much a round is to read now, so that it takes `period` to read everything.
    pub fn share_bytes(&self, now: Timestamp, all_bytes: u64, period: Duration) -> u64 {
        let gap = self.went_on_at.map_or(Duration::ZERO, |at| now.since(at)).min(GAP_MAX);
        let share = u128::from(all_bytes) * gap.as_millis() / period.as_millis().max(1);
        u64::try_from(share).unwrap_or(u64::MAX).max(GO_ON_BYTES_MIN)
    }
}

impl Grade {
    /// The letter in explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "B",
            Self::Present => "C",
            Self::Recorded => "D",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_backup_is_known_by_what_was_seen_after_it_was_complete() {
        let watch = Watch {
            present_at: Some(at(50)),
            watched_since: Some(at(5)),
            new_read_at: Some(at(40)),
            all_read_at: Some(at(20)),
            ..Watch::default()
        };
        for (finished, grade, read_since, present_at) in [
            (None, Grade::Recorded, None, None),
            (Some(10), Grade::Read, Some(20), Some(50)),
            (Some(20), Grade::Read, Some(20), Some(50)),
            (Some(30), Grade::Read, Some(20), Some(50)),
            (Some(40), Grade::Present, None, Some(50)),
            (Some(50), Grade::Recorded, None, None),
        ] {
            let (read_since, present_at) = (read_since.map(at), present_at.map(at));
            let expected = Evidence { grade, read_since, present_at };
            assert_eq!(watch.evidence(finished.map(at)), expected, "{finished:?}");
        }
        assert_eq!(Watch::default().evidence(Some(at(1))).grade, Grade::Recorded);
        let first = Watch { all_read_at: None, ..watch };
        assert_eq!(first.evidence(Some(at(30))).read_since, Some(at(5)));
    }

    #[test]
    fn a_round_that_ended_early_is_followed_by_the_next_in_time() {
        let month = Duration::from_secs(30 * 86_400);
        let ended = Watch { all_read_at: Some(at(0)), ..Watch::default() };
        assert!(ended.rests(at(30 * 86_400 - 1), month));
        assert!(!ended.rests(at(30 * 86_400), month));
        let round = Some(Round { began_at: at(0), after: None });
        assert!(!Watch { round, ..ended }.rests(at(1), month));
        assert!(!Watch::default().rests(at(0), month));
    }

    #[test]
    fn a_round_reads_its_share_and_makes_up_for_a_day_at_most() {
        let (month, tib) = (Duration::from_secs(30 * 86_400), 1 << 40);
        let watch = Watch { went_on_at: Some(at(0)), ..Watch::default() };
        assert_eq!(watch.share_bytes(at(86_400), tib, month), tib / 30);
        assert_eq!(watch.share_bytes(at(86_400 * 900), tib, month), tib / 30);
        assert_eq!(watch.share_bytes(at(1), tib, month), GO_ON_BYTES_MIN);
        assert_eq!(watch.share_bytes(at(-5), tib, month), GO_ON_BYTES_MIN);
        assert_eq!(Watch::default().share_bytes(at(86_400), tib, month), GO_ON_BYTES_MIN);
    }
}
