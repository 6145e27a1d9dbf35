//! What is known of the bytes that backups consist of, and since when.
//!
//! Reading back goes through a whole repository, pack by pack, so what is known is known of
//! all backups that were complete before a moment; none needs a record of its own. Which were
//! is told by the order in which the catalogue saw them finished: a clock that was wrong
//! and was set back would call read what nobody has read.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::proof::{DrillOutcome, Drilled, Proven};
use crate::time::Timestamp;

/// How far watching over a repository has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// When every pack was last looked for in the store. Those that were missing, or had
    /// not their size, are recorded as damaged.
    pub present_at: Option<Timestamp>,
    /// The last backup that was finished before that.
    pub present_upto: u64,
    /// When reading began of what is new and not all read yet.
    pub reading_since: Option<Timestamp>,
    /// Everything there is that was ever read back was read after this moment.
    pub watched_since: Option<Timestamp>,
    /// The last backup up to which everything was read back once at least.
    pub new_read_upto: u64,
    /// Everything there was at this moment was read back after it.
    pub all_read_at: Option<Timestamp>,
    /// The last backup that was finished before that.
    pub all_read_upto: u64,
    /// The round through everything that is under way.
    pub round: Option<Round>,
    /// When the round last went on.
    pub went_on_at: Option<Timestamp>,
    /// Index objects, by their ids, of which every pack was read back.
    pub read_index: BTreeSet<String>,
    /// Those that were seen beside, and of which that is still to be done.
    pub unread_index: BTreeSet<String>,
    /// The last backup up to which every list was walked: all that it names was listed by
    /// index objects that were seen, unless it is doubted.
    pub walked_upto: u64,
    /// Backups of which something is listed nowhere or a list cannot be read; and those of
    /// which that was so and not everything was looked for and read since.
    pub doubted: BTreeSet<u64>,
    /// The doubted backup whose list was walked again last.
    pub doubted_after: u64,
    /// Something is lost that no record of damage names: an index object, whatever it listed,
    /// or a list. Until it is known whom that harms, every verdict walks.
    #[serde(alias = "lost_index")]
    pub is_in_doubt: bool,
}

/// A round through every pack of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// When it began.
    pub began_at: Timestamp,
    /// The last backup that was finished before that.
    #[serde(default)]
    pub upto: u64,
    /// The pack after which it goes on.
    pub after: Option<String>,
}

/// How good what is known of a backup is, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Every byte was read back, every disk inspected, and the server booted.
    Drilled,
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
    /// The latest drill.
    pub drilled: Option<Drilled>,
}

/// What a project asks of its backups before it relies on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The least grade.
    pub grade: Grade,
    /// The greatest age of what the grade rests on; none where any will do.
    pub age_max: Option<Duration>,
}

impl Evidence {
    /// When that was seen which entitles to a grade, or to a better one; `None` where it
    /// never was.
    pub fn seen_at(&self, grade: Grade) -> Option<Timestamp> {
        let drilled = self.drilled.filter(|drill| drill.outcome == DrillOutcome::Booted);
        let drilled = drilled.map(|drill| drill.at);
        match grade {
            Grade::Drilled => drilled,
            Grade::Read => self.read_since.max(drilled),
            Grade::Present | Grade::Recorded => self.present_at.max(self.read_since).max(drilled),
        }
    }

    /// Whether it is as good and as fresh as demanded.
    pub fn meets(&self, demand: &Demand, now: Timestamp) -> bool {
        if demand.grade == Grade::Recorded && demand.age_max.is_none() {
            return true;
        }
        // What was seen later than now was seen by a clock that was wrong: how old it is
        // nobody knows.
        let is_fresh = |at| demand.age_max.is_none_or(|max| at <= now && now.since(at) <= max);
        self.seen_at(demand.grade).is_some_and(is_fresh)
    }
}

/// The least that a round reads when it goes on.
const GO_ON_BYTES_MIN: u64 = 64 << 20;
/// However long nobody was there to read: what was missed is not made up for at once.
const GAP_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Watch {
    /// What is known of a backup with this place in the order of its project's, and of which
    /// proofs say this.
    pub fn evidence(&self, sequence: Option<u64>, proven: &Proven) -> Evidence {
        let is_among = |upto: u64| {
            sequence.is_some_and(|sequence| sequence <= upto && !self.doubted.contains(&sequence))
        };
        // What a backup shares with older ones was read when those were; all of it after
        // the last round began, or the first.
        let is_read = is_among(self.new_read_upto.max(self.all_read_upto));
        let read_since = self.all_read_at.max(self.watched_since).filter(|_| is_read);
        let read_since = read_since.max(proven.read_at);
        let present_at = self.present_at.filter(|_| is_among(self.present_upto));
        let drilled = proven.drilled;
        let evidence = Evidence { grade: Grade::Recorded, read_since, present_at, drilled };
        let is_of = |grade: &Grade| evidence.seen_at(*grade).is_some();
        let grades = [Grade::Drilled, Grade::Read, Grade::Present];
        let grade = grades.into_iter().find(is_of).unwrap_or(Grade::Recorded);
        Evidence { grade, ..evidence }
    }

    /// Takes note of the index objects there are. Whether one is gone that was seen before:
    /// pruned or lost, which only lists tell, so that all are to be walked again.
    pub fn note_index(&mut self, index: &BTreeSet<String>) -> bool {
        let is_gone = !self.read_index.is_subset(index) || !self.unread_index.is_subset(index);
        if is_gone {
            self.walked_upto = 0;
            self.is_in_doubt = true;
        }
        self.read_index.retain(|read| index.contains(read));
        self.unread_index = index.difference(&self.read_index).cloned().collect();
        is_gone
    }

    /// Forgets what was seen later than now, by a clock that was wrong: it is to be seen again.
    pub fn forget_after(&mut self, now: Timestamp) {
        let is_later = |at: Option<Timestamp>| at.is_some_and(|at| at > now);
        if is_later(self.present_at) {
            (self.present_at, self.present_upto) = (None, 0);
        }
        if is_later(self.watched_since) {
            (self.watched_since, self.new_read_upto) = (None, 0);
            // It was seen all the same.
            self.unread_index.append(&mut self.read_index);
        }
        if is_later(self.all_read_at) {
            (self.all_read_at, self.all_read_upto) = (None, 0);
        }
        if is_later(self.reading_since) {
            self.reading_since = None;
            self.unread_index.append(&mut self.read_index);
        }
        self.round.take_if(|round| round.began_at > now);
        self.went_on_at.take_if(|at| *at > now);
    }

    /// Whether there is nothing to read now: a round ended, and the next is not due.
    pub fn rests(&self, now: Timestamp, period: Duration) -> bool {
        let is_fresh = |at: Timestamp| at <= now && now.since(at) < period;
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
            Self::Drilled => "A",
            Self::Read => "B",
            Self::Present => "C",
            Self::Recorded => "D",
        }
    }

    /// The grade with this letter.
    pub fn from_letter(letter: &str) -> Option<Self> {
        let grades = [Self::Drilled, Self::Read, Self::Present, Self::Recorded];
        grades.into_iter().find(|grade| grade.as_str() == letter)
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
            present_upto: 50,
            watched_since: Some(at(5)),
            new_read_upto: 40,
            all_read_at: Some(at(20)),
            all_read_upto: 20,
            doubted: [7].into(),
            ..Watch::default()
        };
        for (sequence, grade, read_since, present_at) in [
            (None, Grade::Recorded, None, None),
            (Some(10), Grade::Read, Some(20), Some(50)),
            (Some(20), Grade::Read, Some(20), Some(50)),
            (Some(30), Grade::Read, Some(20), Some(50)),
            (Some(41), Grade::Present, None, Some(50)),
            (Some(51), Grade::Recorded, None, None),
            (Some(7), Grade::Recorded, None, None),
        ] {
            let (read_since, present_at) = (read_since.map(at), present_at.map(at));
            let expected = Evidence { grade, read_since, present_at, drilled: None };
            let known = watch.evidence(sequence, &Proven::default());
            assert_eq!(known, expected, "{sequence:?}");
        }
        let nothing = Proven::default();
        assert_eq!(Watch::default().evidence(Some(1), &nothing).grade, Grade::Recorded);
        let first = Watch { all_read_at: None, all_read_upto: 0, ..watch };
        assert_eq!(first.evidence(Some(30), &nothing).read_since, Some(at(5)));
    }

    #[test]
    fn an_index_object_that_is_gone_has_every_list_walked_again() {
        let names = |names: &[&str]| -> BTreeSet<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let watch = |read, unread| Watch {
            walked_upto: 4,
            read_index: names(read),
            unread_index: names(unread),
            ..Watch::default()
        };
        for (read, unread, is_gone, still_read, still_unread) in [
            (&["a", "b"][..], &[][..], false, &["a", "b"][..], &["c"][..]),
            (&["a"], &["b"], false, &["a"], &["b", "c"]),
            (&["a", "x"], &[], true, &["a"], &["b", "c"]),
            (&["a"], &["b", "x"], true, &["a"], &["b", "c"]),
        ] {
            let mut known = watch(read, unread);
            assert_eq!(known.note_index(&names(&["a", "b", "c"])), is_gone, "{read:?} {unread:?}");
            let walked_upto = if is_gone { 0 } else { 4 };
            let expected = watch(still_read, still_unread);
            assert_eq!(known, Watch { walked_upto, is_in_doubt: is_gone, ..expected });
        }
    }

    #[test]
    fn what_was_seen_later_than_now_has_no_age() {
        let seen = |seconds| Evidence {
            grade: Grade::Read,
            read_since: Some(at(seconds)),
            present_at: None,
            drilled: None,
        };
        let demand =
            |age: Option<u64>| Demand { grade: Grade::Read, age_max: age.map(Duration::from_secs) };
        assert!(seen(100).meets(&demand(Some(10)), at(100)));
        assert!(!seen(101).meets(&demand(Some(10)), at(100)));
        assert!(seen(101).meets(&demand(None), at(100)), "that it was read is no matter of age");
        let watch = Watch { all_read_at: Some(at(101)), ..Watch::default() };
        assert!(!watch.rests(at(100), Duration::from_secs(1000)));
    }

    #[test]
    fn what_was_seen_later_than_now_is_seen_again() {
        let round = |began| Some(Round { began_at: at(began), upto: 4, after: None });
        let read_index: BTreeSet<String> = ["index".to_owned()].into();
        let watch = |seconds| Watch {
            present_at: Some(at(seconds)),
            present_upto: 4,
            reading_since: Some(at(seconds)),
            watched_since: Some(at(seconds)),
            new_read_upto: 4,
            all_read_at: Some(at(seconds)),
            all_read_upto: 4,
            round: round(seconds),
            went_on_at: Some(at(seconds)),
            read_index: read_index.clone(),
            unread_index: BTreeSet::new(),
            walked_upto: 4,
            doubted: [3].into(),
            doubted_after: 3,
            is_in_doubt: true,
        };
        let mut known = watch(100);
        known.forget_after(at(100));
        assert_eq!(known, watch(100));
        known.forget_after(at(99));
        let kept =
            Watch { is_in_doubt: true, doubted_after: 3, walked_upto: 4, ..Watch::default() };
        assert_eq!(known, Watch { doubted: [3].into(), unread_index: read_index, ..kept });
    }

    #[test]
    fn a_proof_counts_beside_what_watching_saw_and_only_a_boot_makes_the_best_grade() {
        let watch = Watch { present_at: Some(at(50)), present_upto: 10, ..Watch::default() };
        let drill = |outcome| Some(Drilled { at: at(60), outcome });
        for (read_at, drilled, grade) in [
            (None, None, Grade::Present),
            (Some(60), None, Grade::Read),
            (Some(60), drill(DrillOutcome::Inspected), Grade::Read),
            (Some(60), drill(DrillOutcome::Failed), Grade::Read),
            (Some(60), drill(DrillOutcome::Booted), Grade::Drilled),
        ] {
            let proven = Proven { read_at: read_at.map(at), drilled };
            let evidence = watch.evidence(Some(10), &proven);
            assert_eq!(evidence.grade, grade, "{proven:?}");
        }
    }

    #[test]
    fn a_demand_is_met_by_what_is_as_good_and_fresh() {
        let booted = Some(Drilled { at: at(100), outcome: DrillOutcome::Booted });
        let read = Evidence {
            grade: Grade::Read,
            read_since: Some(at(40)),
            present_at: Some(at(90)),
            drilled: None,
        };
        let drilled = Evidence { drilled: booted, ..read };
        let bare = Evidence { read_since: None, present_at: None, ..read };
        for (evidence, grade, age, met) in [
            (read, Grade::Drilled, None, false),
            (read, Grade::Read, None, true),
            (read, Grade::Read, Some(80), true),
            (read, Grade::Read, Some(79), false),
            (read, Grade::Present, Some(30), true),
            (read, Grade::Present, Some(29), false),
            (drilled, Grade::Drilled, Some(20), true),
            (drilled, Grade::Drilled, Some(19), false),
            (drilled, Grade::Read, Some(20), true),
            (bare, Grade::Recorded, None, true),
            (bare, Grade::Recorded, Some(1000), false),
            (bare, Grade::Present, None, false),
        ] {
            let demand = Demand { grade, age_max: age.map(Duration::from_secs) };
            assert_eq!(evidence.meets(&demand, at(120)), met, "{demand:?}");
        }
    }

    #[test]
    fn a_round_that_ended_early_is_followed_by_the_next_in_time() {
        let month = Duration::from_secs(30 * 86_400);
        let ended = Watch { all_read_at: Some(at(0)), ..Watch::default() };
        assert!(ended.rests(at(30 * 86_400 - 1), month));
        assert!(!ended.rests(at(30 * 86_400), month));
        let round = Some(Round { began_at: at(0), upto: 0, after: None });
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
