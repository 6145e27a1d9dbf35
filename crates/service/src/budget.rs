//! What reading back in the background may take: bytes a second, all of it together, and of
//! the time a share, each reader for itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kedge_engine::layer::{Bucket, Pace, Rates};
use kedge_engine::{CancelFlag, Progress};

/// Rests are cut into naps, so that a reader that is to end is heard.
const NAP: Duration = Duration::from_millis(100);

/// What all readers share.
#[derive(Debug)]
pub(crate) struct Budget {
    bucket: Bucket,
    time_percent: u8,
    pace: Arc<dyn Pace>,
}

/// One reader, at work since it was made or last rested.
#[derive(Debug)]
pub(crate) struct Spender {
    budget: Arc<Budget>,
    cancel: CancelFlag,
    resumed_at: Mutex<Duration>,
}

impl Budget {
    /// A budget of so much a second, and of the time in percent.
    pub(crate) fn new(rates: Rates, time_percent: u8, pace: Arc<dyn Pace>) -> Self {
        let time_percent = time_percent.clamp(1, 100);
        Self { bucket: Bucket::new(rates, Arc::clone(&pace)), time_percent, pace }
    }

    /// A reader that begins now.
    pub(crate) fn begin(self: &Arc<Self>, cancel: &CancelFlag) -> Spender {
        let resumed_at = Mutex::new(self.pace.now());
        Spender { budget: Arc::clone(self), cancel: cancel.clone(), resumed_at }
    }
}

impl Spender {
    /// Pays for what was just read, and rests for the time that took. Waiting for bytes to be
    /// earned is rest, too.
    pub(crate) fn take(&self, bytes: u64) {
        let Budget { bucket, time_percent, pace } = &*self.budget;
        let mut resumed_at = self.resumed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let stopped_at = pace.now();
        let worked = stopped_at.saturating_sub(*resumed_at);
        let share = u32::from(*time_percent);
        let until = stopped_at.saturating_add(worked.saturating_mul(100 - share) / share);
        bucket.take(bytes);
        while !self.cancel.is_cancelled() {
            let left = until.saturating_sub(pace.now());
            if left.is_zero() {
                break;
            }
            pace.sleep(left.min(NAP));
        }
        *resumed_at = pace.now();
    }
}

impl Progress for Spender {
    fn advance(&self, bytes: u64) {
        self.take(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time that passes by sleeping and working alone.
    #[derive(Debug, Default)]
    struct Still(Mutex<Duration>);

    impl Pace for Still {
        fn now(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn sleep(&self, time: Duration) {
            *self.0.lock().unwrap() += time;
        }

        fn jitter(&self) -> f64 {
            0.0
        }
    }

    fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ends_at(percent: u8, bytes_per_sec: Option<u64>) -> Duration {
        let pace = Arc::new(Still::default());
        let rates = Rates { bytes_per_sec, operations_per_sec: None };
        let same: Arc<dyn Pace> = pace.clone();
        let budget = Arc::new(Budget::new(rates, percent, same));
        // Time before it began is not worked.
        pace.sleep(second(1000));
        let reader = budget.begin(&CancelFlag::new());
        for _ in 0..10 {
            pace.sleep(second(1));
            reader.take(100);
        }
        pace.now().saturating_sub(second(1000))
    }

    #[test]
    fn a_reader_rests_until_it_has_worked_its_share() {
        assert_eq!(ends_at(100, None), second(10));
        assert_eq!(ends_at(50, None), second(20));
        assert_eq!(ends_at(20, None), second(50));
        assert_eq!(ends_at(1, None), second(1000));
        assert_eq!(ends_at(0, None), second(1000), "never nothing at all");
    }

    #[test]
    fn what_waits_for_bytes_rests_meanwhile() {
        // For every second of work 100 bytes are waited for, almost 5 s.
        let waited = ends_at(100, Some(20));
        assert!(waited > second(55), "{waited:?}");
        assert_eq!(ends_at(20, Some(20)), waited);
        assert!(ends_at(10, Some(20)) >= second(99));
    }

    #[test]
    fn a_reader_that_is_to_end_does_not_rest() {
        let pace = Arc::new(Still::default());
        let same: Arc<dyn Pace> = pace.clone();
        let budget = Arc::new(Budget::new(Rates::default(), 1, same));
        let cancel = CancelFlag::new();
        let reader = budget.begin(&cancel);
        pace.sleep(second(1));
        cancel.cancel();
        reader.take(1);
        assert_eq!(pace.now(), second(1));
    }
}
