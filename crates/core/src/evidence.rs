//! What is known of the bytes that backups consist of, and since when.
//!
//! Reading back goes through a whole repository, pack by pack, so what is known is known of
//! all backups that were complete before a moment; none needs a record of its own. Which were
//! is told by the order in which the catalogue saw them finished: a clock that was wrong
//! and was set back would call read what nobody has read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::proof::{DrillOutcome, Drilled, Proven};
use crate::time::Timestamp;

/// What watching over a repository has seen of the backups in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// When every pack was last looked for in the store. Those that were missing, or had
    /// not their size, are recorded as damaged.
    pub present_at: Option<Timestamp>,
    /// The last backup that was finished before that.
    pub present_upto: u64,
    /// Everything there is was read back after this moment.
    pub read_since: Option<Timestamp>,
    /// The last backup that this is said of.
    pub read_upto: u64,
    /// Backups of which something is listed nowhere or a list cannot be read; and those of
    /// which that was so and not everything was looked for and read since.
    pub doubted: BTreeSet<u64>,
}

/// How far watching over a repository has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// What follows for its backups. Kept apart: verdicts ask for it, and the rest grows with
    /// the repository.
    #[serde(skip)]
    pub seen: Seen,
    /// Index objects, by their ids, of which every pack was read back, and after which moment.
    pub read_index: BTreeMap<String, Timestamp>,
    /// Those that were seen beside, and of which that is still to be done.
    pub unread_index: BTreeSet<String>,
    /// Marks, by their ids, that told of readings and are still there. What they tell is not
    /// taken for news again: it may have been of another time.
    pub heard: BTreeSet<String>,
    /// When the last round began that came to its end.
    pub round_began_at: Option<Timestamp>,
    /// The round through everything that is under way.
    pub round: Option<Round>,
    /// When the round last went on.
    pub went_on_at: Option<Timestamp>,
    /// The last backup up to which every list was walked: all that it names was listed by
    /// index objects that were seen, unless it is doubted.
    pub walked_upto: u64,
    /// The doubted backup whose list was walked again last.
    pub doubted_after: u64,
    /// Something is lost that no record of damage names: an index object, whatever it listed,
    /// or a list. Until it is known whom that harms, every verdict walks.
    pub is_in_doubt: bool,
}

/// A round through every pack of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// When it began.
    pub began_at: Timestamp,
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

impl Seen {
    /// What is known of a backup with this place in the order of its project's, and of which
    /// proofs say this.
    pub fn evidence(&self, sequence: Option<u64>, proven: &Proven) -> Evidence {
        let is_among = |upto: u64| {
            sequence.is_some_and(|sequence| sequence <= upto && !self.doubted.contains(&sequence))
        };
        // What a backup shares with older ones was read when those were.
        let read_since = self.read_since.filter(|_| is_among(self.read_upto)).max(proven.read_at);
        let present_at = self.present_at.filter(|_| is_among(self.present_upto));
        let drilled = proven.drilled;
        let evidence = Evidence { grade: Grade::Recorded, read_since, present_at, drilled };
        let is_of = |grade: &Grade| evidence.seen_at(*grade).is_some();
        let grades = [Grade::Drilled, Grade::Read, Grade::Present];
        let grade = grades.into_iter().find(is_of).unwrap_or(Grade::Recorded);
        Evidence { grade, ..evidence }
    }
}

impl Watch {
    /// Takes note of the index objects there are. Whether one is gone that was seen before:
    /// pruned or lost, which only lists tell, so that all are to be walked again.
    pub fn note_index(&mut self, index: &BTreeSet<String>) -> bool {
        let is_read_there = self.read_index.keys().all(|read| index.contains(read));
        let is_gone = !is_read_there || !self.unread_index.is_subset(index);
        if is_gone {
            self.walked_upto = 0;
            self.is_in_doubt = true;
        }
        self.read_index.retain(|read, _| index.contains(read));
        let is_unread = |object: &&String| !self.read_index.contains_key(*object);
        self.unread_index = index.iter().filter(is_unread).cloned().collect();
        is_gone
    }

    /// Takes note that every pack of these index objects was read after a moment. Those that
    /// were not seen are passed over: nobody knows whether they are still what they were. So are
    /// those that a round under way may have missed, and of which that would not tell.
    pub fn note_read<'a>(&mut self, objects: impl IntoIterator<Item = &'a String>, at: Timestamp) {
        let is_of_round = self.round.as_ref().is_none_or(|round| round.began_at <= at);
        for object in objects {
            if let Some(known) = self.read_index.get_mut(object) {
                *known = at.max(*known);
            } else if is_of_round && self.unread_index.remove(object) {
                self.read_index.insert(object.clone(), at);
            }
        }
    }

    /// Takes note that a round has come to its end: what was read before it began was read
    /// again.
    pub fn end_round(&mut self, began_at: Timestamp) {
        self.read_index.values_mut().for_each(|at| *at = began_at.max(*at));
        self.round_began_at = Some(began_at);
    }

    /// Takes note, where nothing is unread, since when everything is read, and that this holds
    /// of backups up to this one. Where fewer were walked than that was said of, what they rest
    /// on may be what is gone, and nothing new is said.
    pub fn note_all_read(&mut self, upto: u64) {
        if self.unread_index.is_empty() && upto >= self.seen.read_upto {
            self.seen.read_since = self.read_index.values().min().copied();
            self.seen.read_upto = upto;
        }
    }

    /// Forgets what was seen later than now, by a clock that was wrong: it is to be seen again.
    pub fn forget_after(&mut self, now: Timestamp) {
        let is_later = |at: Option<Timestamp>| at.is_some_and(|at| at > now);
        if is_later(self.seen.present_at) {
            (self.seen.present_at, self.seen.present_upto) = (None, 0);
        }
        if is_later(self.seen.read_since) {
            (self.seen.read_since, self.seen.read_upto) = (None, 0);
        }
        // They were seen all the same.
        let later = self.read_index.extract_if(.., |_, at| *at > now);
        self.unread_index.extend(later.map(|(object, _)| object));
        self.round_began_at.take_if(|at| *at > now);
        self.round.take_if(|round| round.began_at > now);
        self.went_on_at.take_if(|at| *at > now);
    }

    /// Whether there is nothing to read now: a round ended, and the next is not due.
    pub fn rests(&self, now: Timestamp, period: Duration) -> bool {
        let is_fresh = |at: Timestamp| at <= now && now.since(at) < period;
        self.round.is_none() && self.round_began_at.is_some_and(is_fresh)
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

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn read(objects: &[(&str, i64)]) -> BTreeMap<String, Timestamp> {
        objects.iter().map(|(name, seconds)| ((*name).to_owned(), at(*seconds))).collect()
    }

    #[test]
    fn a_backup_is_known_by_what_was_seen_after_it_was_complete() {
        let seen = Seen {
            present_at: Some(at(50)),
            present_upto: 50,
            read_since: Some(at(20)),
            read_upto: 40,
            doubted: [7].into(),
        };
        for (sequence, grade, read_since, present_at) in [
            (None, Grade::Recorded, None, None),
            (Some(10), Grade::Read, Some(20), Some(50)),
            (Some(40), Grade::Read, Some(20), Some(50)),
            (Some(41), Grade::Present, None, Some(50)),
            (Some(51), Grade::Recorded, None, None),
            (Some(7), Grade::Recorded, None, None),
        ] {
            let (read_since, present_at) = (read_since.map(at), present_at.map(at));
            let expected = Evidence { grade, read_since, present_at, drilled: None };
            let known = seen.evidence(sequence, &Proven::default());
            assert_eq!(known, expected, "{sequence:?}");
        }
        let nothing = Proven::default();
        assert_eq!(Seen::default().evidence(Some(1), &nothing).grade, Grade::Recorded);
    }

    #[test]
    fn an_index_object_that_is_gone_has_every_list_walked_again() {
        let watch = |read_index: &[&str], unread: &[&str]| Watch {
            walked_upto: 4,
            read_index: read_index.iter().map(|name| ((*name).to_owned(), at(1))).collect(),
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
    fn everything_is_read_since_the_oldest_of_its_readings() {
        let seen = |read_since, read_upto| Seen { read_since, read_upto, ..Seen::default() };
        let mut watch = Watch { unread_index: names(&["a", "b"]), ..Watch::default() };
        watch.note_read(&names(&["a", "x"]), at(10));
        watch.note_all_read(3);
        assert_eq!(watch.seen, seen(None, 0), "b is unread");
        assert_eq!(watch.read_index, read(&[("a", 10)]), "nobody has seen x");
        watch.note_read(&names(&["b"]), at(20));
        watch.note_all_read(3);
        assert_eq!(watch.seen, seen(Some(at(10)), 3));
        // Somebody else read both, and said so late.
        watch.note_read(&names(&["a", "b"]), at(15));
        watch.note_all_read(2);
        assert_eq!(watch.seen, seen(Some(at(10)), 3), "not all lists were walked");
        watch.note_all_read(3);
        assert_eq!(watch.seen, seen(Some(at(15)), 3));
        assert_eq!(watch.read_index, read(&[("a", 15), ("b", 20)]));
        // A round says nothing less of what was read since it began.
        watch.end_round(at(18));
        watch.note_all_read(4);
        assert_eq!(watch.read_index, read(&[("a", 18), ("b", 20)]));
        assert_eq!((watch.seen, watch.round_began_at), (seen(Some(at(18)), 4), Some(at(18))));
    }

    /// The round would say of it that it was read since it began.
    #[test]
    fn what_a_round_may_have_missed_is_read_again() {
        let round = |began| Some(Round { began_at: at(began), after: None });
        for (began, still_unread) in [(None, &[][..]), (Some(10), &[]), (Some(11), &["b"])] {
            let mut watch = Watch {
                round: began.and_then(round),
                read_index: read(&[("a", 5)]),
                unread_index: names(&["b"]),
                ..Watch::default()
            };
            watch.note_read(&names(&["a", "b"]), at(10));
            assert_eq!(watch.unread_index, names(still_unread), "{began:?}");
            assert_eq!(watch.read_index.get("a"), Some(&at(10)));
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
        let watch = Watch { round_began_at: Some(at(101)), ..Watch::default() };
        assert!(!watch.rests(at(100), Duration::from_secs(1000)));
    }

    #[test]
    fn what_was_seen_later_than_now_is_seen_again() {
        let watch = |seconds| Watch {
            seen: Seen {
                present_at: Some(at(seconds)),
                present_upto: 4,
                read_since: Some(at(seconds)),
                read_upto: 4,
                doubted: [3].into(),
            },
            read_index: read(&[("new", seconds), ("old", 50)]),
            unread_index: BTreeSet::new(),
            heard: names(&["mark"]),
            round_began_at: Some(at(seconds)),
            round: Some(Round { began_at: at(seconds), after: None }),
            went_on_at: Some(at(seconds)),
            walked_upto: 4,
            doubted_after: 3,
            is_in_doubt: true,
        };
        let mut known = watch(100);
        known.forget_after(at(100));
        assert_eq!(known, watch(100));
        known.forget_after(at(99));
        let kept = Watch {
            read_index: read(&[("old", 50)]),
            unread_index: names(&["new"]),
            heard: names(&["mark"]),
            walked_upto: 4,
            doubted_after: 3,
            is_in_doubt: true,
            ..Watch::default()
        };
        assert_eq!(known, Watch { seen: Seen { doubted: [3].into(), ..Seen::default() }, ..kept });
    }

    #[test]
    fn a_proof_counts_beside_what_watching_saw_and_only_a_boot_makes_the_best_grade() {
        let seen = Seen { present_at: Some(at(50)), present_upto: 10, ..Seen::default() };
        let drill = |outcome| Some(Drilled { at: at(60), outcome });
        for (read_at, drilled, grade) in [
            (None, None, Grade::Present),
            (Some(60), None, Grade::Read),
            (Some(60), drill(DrillOutcome::Inspected), Grade::Read),
            (Some(60), drill(DrillOutcome::Failed), Grade::Read),
            (Some(60), drill(DrillOutcome::Booted), Grade::Drilled),
        ] {
            let proven = Proven { read_at: read_at.map(at), drilled };
            let evidence = seen.evidence(Some(10), &proven);
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
        let ended = Watch { round_began_at: Some(at(0)), ..Watch::default() };
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
