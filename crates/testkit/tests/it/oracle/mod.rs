//! Verdicts judged by something other than the planner.
//!
//! `scenario` deals worlds and questions, `model` answers them straight from the published
//! table. `facts` turns a world into what the planner is given; `stage` puts it on the
//! simulated cloud, where a yes is acted on and bytes are compared, and a no must be the
//! restore's no as well, with nothing written.

mod explain;
mod facts;
mod life;
mod lives;
mod matrix;
mod model;
mod scenario;
mod stage;

use kedge_core::code::Code;
use kedge_core::fact::{Fact, Unknown};
use kedge_core::resource::Content;
use kedge_core::{protect, restore};

/// Yes, or the code of the no.
type Answer = Result<(), &'static str>;

/// Cases for the planner alone: it costs nothing to ask many.
const PURE_CASES: u64 = 20_000;

#[test]
fn the_planner_answers_every_restore_as_the_table_does() {
    for seed in 0..PURE_CASES {
        let (world, ask) = scenario::random(seed);
        let expected = model::restorable(&world, &ask);
        assert_eq!(
            planned(restore::RULES, &world, &ask),
            expected,
            "seed {seed}: {world:#?} {ask:#?}"
        );
    }
}

#[test]
fn the_planner_answers_every_backup_as_the_table_does() {
    for seed in 0..PURE_CASES {
        let (world, ask) = scenario::random_protect(seed);
        let expected = model::protectable(&world, &ask);
        assert_eq!(planned_protect(protect::RULES, &world, &ask), expected, "seed {seed}");
    }
}

/// The oracle has teeth: a planner that lacks any one rule is caught.
#[test]
fn a_planner_without_any_one_restore_rule_is_caught() {
    for index in 0..restore::RULES.len() {
        let mut rules = restore::RULES.to_vec();
        let removed = rules.remove(index);
        let caught = (0..2_000)
            .map(scenario::random)
            .any(|(world, ask)| planned(&rules, &world, &ask) != model::restorable(&world, &ask));
        assert!(caught, "nobody misses {}", removed.name);
    }
}

#[test]
fn a_planner_without_any_one_backup_rule_is_caught() {
    for index in 0..protect::RULES.len() {
        let mut rules = protect::RULES.to_vec();
        let removed = rules.remove(index);
        let caught = (0..2_000).map(scenario::random_protect).any(|(world, ask)| {
            planned_protect(&rules, &world, &ask) != model::protectable(&world, &ask)
        });
        assert!(caught, "nobody misses {}", removed.name);
    }
}

/// Only what is read must be whole.
#[test]
fn half_written_disks_may_be_left_out_of_a_backup() {
    for seed in 0..200 {
        let (world, ask) = scenario::broken_protect(seed, &[scenario::ProtectBreak::HalfWritten]);
        let (mut question, facts, settings) = facts::protect(&world, &ask);
        let volumes = &facts.server.seen().unwrap().volumes;
        let half_written = volumes.iter().filter(|v| v.content == Content::HalfWritten);
        question.excluded = half_written.map(|volume| volume.id.clone()).collect();
        let planned = protect::plan(&question, &facts, &settings).map(|_| ());
        let rest = volumes.len() - question.excluded.len();
        let expected = if rest > 0 { None } else { Some(Code::NoVolumeToProtect) };
        assert_eq!(planned.err().map(|no| no.code()), expected, "seed {seed}");
    }
}

/// What is unknown is never a yes, whatever the rules let through.
#[test]
fn without_any_rule_nothing_unseen_becomes_a_plan() {
    for seed in 0..2_000 {
        let (world, ask) = scenario::random(seed);
        let (question, facts) = facts::restore(&world, &ask);
        let all_seen = facts.item.seen().is_some()
            && facts.target.seen().is_some()
            && facts.snapshot.seen().is_some()
            && facts.data.seen() == Some(&restore::Data::Whole);
        assert_eq!(restore::plan_by(&[], &question, &facts).is_ok(), all_seen, "seed {seed}");
    }
}

/// While it is being found out whom damage harms, nobody hears yes.
#[test]
fn damage_not_located_yet_is_unknown_with_a_code_of_its_own() {
    let world = |seed| scenario::broken(seed, &[]);
    for (world, ask) in (0..200).map(world) {
        let (question, mut facts) = facts::restore(&world, &ask);
        assert!(restore::plan(&question, &facts).is_ok());
        facts.data = Fact::Unknown { why: Unknown::DamageNotLocated };
        let refused = restore::plan(&question, &facts).map(drop).map_err(|no| no.code());
        assert_eq!(refused, Err(Code::DamageNotLocated));
    }
}

/// A plan writes no byte outside its mapping, and none beyond the disk that was backed up.
#[test]
fn a_plan_writes_what_was_mapped_and_nothing_else() {
    for seed in 0..2_000 {
        let (world, ask) = scenario::random(seed);
        let (question, facts) = facts::restore(&world, &ask);
        let Ok(plan) = restore::plan(&question, &facts) else { continue };
        assert_eq!(plan.writes.len(), question.mapping.pairs().len());
        for write in &plan.writes {
            let mapped = |pair: &restore::Pair| {
                (&pair.backup, &pair.volume) == (&write.backup, &write.volume)
            };
            assert!(question.mapping.pairs().iter().any(mapped), "seed {seed}");
            assert!(write.size_bytes <= write.target_size_bytes, "seed {seed}");
        }
    }
}

fn planned(rules: &[restore::Rule], world: &scenario::World, ask: &scenario::Ask) -> Answer {
    let (question, facts) = facts::restore(world, ask);
    restore::plan_by(rules, &question, &facts).map(drop).map_err(|no| no.code().as_str())
}

fn planned_protect(
    rules: &[protect::Rule],
    world: &scenario::ProtectWorld,
    ask: &scenario::ProtectAsk,
) -> Answer {
    let (question, facts, settings) = facts::protect(world, ask);
    let plan = protect::plan_by(rules, &question, &facts, &settings);
    plan.map(drop).map_err(|no| no.code().as_str())
}
