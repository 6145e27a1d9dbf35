//! What a person sees of the demo.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kedge_core::ports::Clock as _;

use crate::failure::Failure;
use crate::operator::say;
use crate::outside::SystemClock;

/// Width of the first column.
const STEP_CHARS: usize = 34;

/// A step that has begun.
#[derive(Debug)]
pub(crate) struct Step {
    name: String,
    began: Duration,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Begins a step.
    pub(crate) fn begin(name: impl Into<String>) -> Self {
        Self { name: name.into(), began: SystemClock.monotonic(), bar: None }
    }

    /// Begins a step whose progress is known.
    pub(crate) fn begin_measured(name: impl Into<String>) -> Self {
        let step = Self::begin(name);
        let bar = std::io::stderr().is_terminal().then(|| progress_bar(&step.name));
        Self { bar, ..step }
    }

    /// Shows how far it is, where there is a terminal to draw on.
    pub(crate) fn progress(&self, percent: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(percent);
        }
    }

    /// Ends a step: a line of what came of it.
    pub(crate) fn end(self, outcome: &str) -> Result<(), Failure> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let took = SystemClock.monotonic().saturating_sub(self.began);
        row(&self.name, &time(took), outcome)
    }
}

/// The head of the table of steps.
pub(crate) fn head() -> Result<(), Failure> {
    row("step", "time", "outcome")
}

fn row(step: &str, took: &str, outcome: &str) -> Result<(), Failure> {
    say(&format!("  {step:<STEP_CHARS$} {took:>8}  {outcome}"))
}

fn progress_bar(name: &str) -> ProgressBar {
    let template = "  {prefix:<34} {elapsed:>8}  [{bar:30}] {pos:>3} %";
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(100).with_style(style.progress_chars("=> ")).with_prefix(name.to_owned())
}

/// A size as people read it.
pub(crate) fn size(bytes: u64) -> String {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let tenths = |unit: u64| {
        let tenths = bytes.saturating_mul(10) / unit;
        format!("{}.{}", tenths / 10, tenths % 10)
    };
    match bytes {
        0..KIB => format!("{bytes} B"),
        KIB..MIB => format!("{} KiB", tenths(KIB)),
        MIB.. => format!("{} MiB", tenths(MIB)),
    }
}

fn time(took: Duration) -> String {
    let hundredths = took.as_millis() / 10;
    format!("{}.{:02} s", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(64 << 20), "64.0 MiB");
        assert_eq!(time(Duration::from_millis(1239)), "1.23 s");
    }
}
