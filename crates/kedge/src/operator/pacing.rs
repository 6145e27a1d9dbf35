//! Reading no faster than asked, so that whoever else needs the disk gets it.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use kedge_core::ports::Clock as _;
use kedge_engine::{CancelFlag, Progress};

use super::report;
use crate::outside::SystemClock;

/// How soon a reader that waits notices that it is to end.
const NAP: Duration = Duration::from_millis(100);

/// Progress that holds up who reports it until the bytes are due.
#[derive(Debug)]
pub(super) struct Paced {
    shown: report::Progress,
    bytes_per_sec: Option<u64>,
    cancel: CancelFlag,
    /// When the next byte is due.
    due_at: Mutex<Duration>,
}

impl Paced {
    pub(super) fn new(
        shown: report::Progress,
        bytes_per_sec: Option<u64>,
        cancel: CancelFlag,
    ) -> Self {
        Self { shown, bytes_per_sec, cancel, due_at: Mutex::new(SystemClock.monotonic()) }
    }

    /// Until when who read these bytes at `now` waits: what was not read before is not
    /// made up for.
    fn book(&self, bytes: u64, bytes_per_sec: u64, now: Duration) -> Duration {
        let micros = u128::from(bytes) * 1_000_000 / u128::from(bytes_per_sec.max(1));
        let takes = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let mut due_at = self.due_at.lock().unwrap_or_else(PoisonError::into_inner);
        *due_at = (*due_at).max(now).saturating_add(takes);
        *due_at
    }
}

impl Progress for Paced {
    fn advance(&self, bytes: u64) {
        self.shown.advance(bytes);
        let Some(rate) = self.bytes_per_sec else { return };
        let until = self.book(bytes, rate, SystemClock.monotonic());
        while !self.cancel.is_cancelled() {
            let left = until.saturating_sub(SystemClock.monotonic());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_due_one_after_the_other_at_the_rate() {
        let paced = Paced::new(report::Progress::none(), Some(1000), CancelFlag::new());
        let start = SystemClock.monotonic() + Duration::from_secs(10);
        let secs = |secs| start + Duration::from_secs(secs);
        assert_eq!(paced.book(2000, 1000, start), secs(2));
        assert_eq!(paced.book(1000, 1000, start), secs(3), "after the first");
        assert_eq!(paced.book(1000, 1000, secs(60)), secs(61), "a pause is not made up for");
    }
}
