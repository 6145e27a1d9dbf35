//! The clock and the ids of the real world.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kedge_core::ports::{Clock, IdSource};
use kedge_core::time::Timestamp;
use kedge_engine::layer::Pace;
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock port of the real world")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// Runs on while the machine sleeps: a lease that ran out meanwhile has run out.
    fn monotonic(&self) -> Duration {
        let at = clock_gettime(ClockId::Boottime);
        let secs = u64::try_from(at.tv_sec).unwrap_or(0);
        Duration::new(secs, u32::try_from(at.tv_nsec).unwrap_or(0))
    }
}

/// How waiting for a store is paced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemPace;

impl Pace for SystemPace {
    fn now(&self) -> Duration {
        SystemClock.monotonic()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Without randomness everybody comes back in step, which is no reason to fail.
    fn jitter(&self) -> f64 {
        let random = getrandom::u32().unwrap_or(u32::MAX / 2);
        f64::from(random) / f64::from(u32::MAX)
    }
}

/// Random UUIDs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RandomIds;

impl IdSource for RandomIds {
    fn next_uuid(&self) -> Uuid {
        Uuid::new_v4()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_never_goes_back() {
        let mut last = SystemClock.monotonic();
        for _ in 0..1000 {
            let now = SystemClock.monotonic();
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn no_id_comes_twice() {
        assert_ne!(RandomIds.next_uuid(), RandomIds.next_uuid());
    }
}
