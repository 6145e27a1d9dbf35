//! The clock and the ids of the real world.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kedge_core::ports::{Clock, IdSource};
use kedge_core::time::Timestamp;
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
