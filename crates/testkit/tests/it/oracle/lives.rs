//! Lives by the dozen: the same ones at every change and some that nobody has lived before.
//! One that goes wrong is lived again with fewer steps, until each that is left is needed.

use super::life::{self, Step, Tally};
use crate::support::report_figure;

/// Lives that are the same at every change.
const FIXED: u64 = 24;
/// Lives that are not; the long form lives fifty times as many.
const FRESH: u64 = 16;

async fn live_all(seeds: impl Iterator<Item = u64>) -> Tally {
    let mut all = Tally::default();
    for seed in seeds {
        let steps = life::steps(seed);
        match lived(seed, steps.clone()).await {
            Ok(tally) => all.add(tally),
            Err(text) => {
                let (steps, text) = shrunk(seed, steps, text).await;
                let steps: Vec<_> = steps.iter().map(|step| format!("{step:?}")).collect();
                panic!("seed {seed}: {text}\nwith these steps alone:\n{}", steps.join("\n"));
            }
        }
    }
    all
}

/// A life in a task of its own, so that its end is not ours.
async fn lived(seed: u64, steps: Vec<Step>) -> Result<Tally, String> {
    let task = tokio::spawn(async move { life::live(seed, &steps).await });
    task.await.map_err(|error| {
        let panic = error.into_panic();
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "it ended without a word".to_owned())
    })
}

async fn shrunk(seed: u64, mut steps: Vec<Step>, mut text: String) -> (Vec<Step>, String) {
    let mut at = 0;
    while at < steps.len() {
        let mut fewer = steps.clone();
        fewer.remove(at);
        match lived(seed, fewer.clone()).await {
            Err(why) => (steps, text) = (fewer, why),
            Ok(_) => at += 1,
        }
    }
    (steps, text)
}

#[tokio::test]
async fn verdicts_hold_through_lives() {
    let tally = live_all(0..FIXED).await;
    assert!(tally.restored * 5 >= tally.questions, "{tally:?}: too few are carried out");
    assert!(tally.honestly_unknown * 10 <= tally.questions, "{tally:?}: too often unknown");
    assert!(tally.refused * 5 >= tally.questions, "{tally:?}: too few are refused");
    assert!(tally.graded * 10 >= tally.questions, "{tally:?}: too little is graded");
    assert!(tally.found_out > 0 && tally.ventured > 2 * tally.found_out, "{tally:?}");
}

#[tokio::test]
async fn fresh_verdicts_hold_through_lives() {
    let seeds = super::matrix::lives(FRESH);
    let count = seeds.end - seeds.start;
    let first = seeds.start;
    let all = live_all(seeds).await;
    let Tally { questions, restored, refused, honestly_unknown, graded, ventured, found_out } = all;
    let line = format!(
        "oracle, lives: {count} from seed {first} on, {questions} questions, {restored} restored and \
         compared byte for byte, {refused} refused with nothing written, {honestly_unknown} honestly \
         unknown; {ventured} restored without a look before, of which {found_out} met damage and turned \
         the verdict; {graded} times evidence no better than what was done; nothing lost"
    );
    report_figure("oracle-4-lives", &line);
}
