//! Fresh cases by the thousand, counted by what was said and what is right.
//!
//! `cargo xtask oracle --cases N --seed S` runs as many as one likes, from any seed on. A
//! seed that is not given is drawn, and printed: every failure comes back with its seed.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

use kedge_core::{protect, restore};

use super::{model, planned, planned_protect, scenario};
use crate::support::report_figure;

/// At every change; the long form runs fifty times as many.
const CASES: u64 = 20_000;
/// Of so many cases one is carried out on the simulated cloud as well; a number that has
/// nothing in common with the turns in which rules are dealt.
const STAGED_ONE_IN: usize = 101;
/// Seeds are drawn below this.
const SEED_MAX: u64 = 1 << 40;

/// Answers by what is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Matrix {
    true_yes: u64,
    true_no: u64,
    false_yes: u64,
    false_no: u64,
    /// No, and rightly so, for a reason that is not the first in the table.
    wrong_reason: u64,
}

impl Matrix {
    fn note(&mut self, said: &super::Answer, right: &super::Answer) -> bool {
        let counted = match (said, right) {
            (Ok(()), Ok(())) => &mut self.true_yes,
            (Ok(()), Err(_)) => &mut self.false_yes,
            (Err(_), Ok(())) => &mut self.false_no,
            (Err(said), Err(right)) if said == right => &mut self.true_no,
            (Err(_), Err(_)) => &mut self.wrong_reason,
        };
        *counted += 1;
        said == right
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rightly yes, {} rightly no, {} wrongly yes, {} wrongly no, {} for a wrong reason",
            self.true_yes, self.true_no, self.false_yes, self.false_no, self.wrong_reason
        )
    }
}

/// The seeds to run.
#[expect(clippy::disallowed_methods, reason = "how long a test may take is the caller's choice")]
pub(super) fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let is_long = std::env::var("KEDGE_TEST_LONG").is_ok();
    let cases = number("KEDGE_ORACLE_CASES").unwrap_or(if is_long { 50 * CASES } else { CASES });
    static DRAWN: OnceLock<u64> = OnceLock::new();
    let draw = || RandomState::new().build_hasher().finish() % SEED_MAX;
    let first = number("KEDGE_ORACLE_SEED").unwrap_or_else(|| *DRAWN.get_or_init(draw));
    assert!((1..=SEED_MAX).contains(&cases) && first <= SEED_MAX, "{cases} cases from {first} on");
    first..first + cases
}

/// The seeds of lives to live: so many at every change, in proportion where one chose how
/// many cases to run.
pub(super) fn lives(usual: u64) -> std::ops::Range<u64> {
    let cases = seeds();
    let count = (usual * (cases.end - cases.start) / CASES).max(1);
    cases.start..cases.start + count
}

/// Those of them that are carried out as well.
pub(super) fn staged(seeds: &std::ops::Range<u64>) -> Vec<u64> {
    seeds.clone().step_by(STAGED_ONE_IN).collect()
}

#[test]
fn no_fresh_case_is_answered_otherwise_than_by_the_table() {
    let seeds = seeds();
    let (mut restores, mut backups) = (Matrix::default(), Matrix::default());
    let mut wrong = Vec::new();
    for seed in seeds.clone() {
        let (world, ask) = scenario::random(seed);
        let said = planned(restore::RULES, &world, &ask);
        if !restores.note(&said, &model::restorable(&world, &ask)) {
            wrong.push(shrunk(restore::RULES, seed));
        }
        let (world, ask) = scenario::random_protect(seed);
        let said = planned_protect(protect::RULES, &world, &ask);
        if !backups.note(&said, &model::protectable(&world, &ask)) {
            wrong.push(format!("seed {seed}: {said:?} of {world:#?} {ask:#?}"));
        }
    }
    let line = |what, matrix: Matrix| {
        let (first, cases) = (seeds.start, seeds.end - seeds.start);
        format!("oracle, {what}: {cases} cases from seed {first} on, {matrix}")
    };
    report_figure("oracle-1-restores", &line("restores", restores));
    report_figure("oracle-2-backups", &line("backups", backups));
    assert!(wrong.is_empty(), "{} wrong, the first: {}", wrong.len(), wrong[0]);
}

/// The smallest set of broken rules that the planner still gets wrong, in words.
fn shrunk(rules: &[restore::Rule], seed: u64) -> String {
    let breaks = scenario::breaks_of(seed);
    let subsets = (0..1_usize << breaks.len()).map(|set| {
        let is_in = |at: &usize| set >> at & 1 == 1;
        (0..breaks.len()).filter(is_in).map(|at| breaks[at]).collect::<Vec<_>>()
    });
    let mut subsets: Vec<_> = subsets.collect();
    subsets.sort_by_key(Vec::len);
    for subset in subsets {
        let (world, ask) = scenario::broken(seed, &subset);
        let said = planned(rules, &world, &ask);
        let right = model::restorable(&world, &ask);
        if said != right {
            return format!(
                "seed {seed} with {subset:?} broken: {said:?} said, {right:?} is right, of \
                 {world:#?} {ask:#?}"
            );
        }
    }
    format!("seed {seed}: not found again")
}

#[test]
fn answers_are_counted_by_what_is_right() {
    let mut matrix = Matrix::default();
    assert!(matrix.note(&Ok(()), &Ok(())));
    assert!(matrix.note(&Err("CSBS.6024"), &Err("CSBS.6024")));
    assert!(!matrix.note(&Err("CSBS.6024"), &Err("CSBS.6023")));
    assert!(!matrix.note(&Ok(()), &Err("CSBS.6023")));
    assert!(!matrix.note(&Err("CSBS.6024"), &Ok(())));
    let counted = Matrix { true_yes: 1, true_no: 1, false_yes: 1, false_no: 1, wrong_reason: 1 };
    assert_eq!(matrix, counted);
}

/// A planner that has lost a rule fails on worlds with several broken; what is shown is the
/// one that it takes.
#[test]
fn a_failure_shrinks_to_what_it_takes() {
    let mut rules = restore::RULES.to_vec();
    rules.retain(|rule| rule.name != "zones_agree");
    let is_wrong = |seed: &u64| {
        let (world, ask) = scenario::random(*seed);
        let said = planned(&rules, &world, &ask);
        scenario::breaks_of(*seed).len() == 3 && said != model::restorable(&world, &ask)
    };
    let seed = (0..).find(is_wrong).unwrap();
    let shown = shrunk(&rules, seed);
    assert!(shown.starts_with(&format!("seed {seed} with [OtherZone] broken")), "{shown}");
    assert!(shrunk(restore::RULES, seed).ends_with("not found again"));
}
