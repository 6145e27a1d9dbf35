//! Slows down guessing. Failures are counted per user as named, for a minute from the
//! first; guessing one password from many names is slowed by the cap on hashes instead.
//!
//! Whoever fails on purpose under another's name keeps them out for that minute. That is
//! the price: the alternative is to let guesses through.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::Error;

const WINDOW: Duration = Duration::from_secs(60);

/// Names remembered at once: more than a few cores can compute failed hashes for in a
/// minute, so nobody is forgotten early by naming many.
const NAMES_MAX: usize = 20_000;

/// A user as named, cut to a fixed size: names are the caller's text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ThrottleKey([u8; 32]);

impl ThrottleKey {
    pub(super) fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            // The length keeps neighbouring parts apart.
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

#[derive(Debug)]
struct Window {
    began_at: Duration,
    failures: u32,
}

impl Window {
    fn is_over(&self, now: Duration) -> bool {
        now.saturating_sub(self.began_at) >= WINDOW
    }
}

#[derive(Debug)]
pub(super) struct Throttle {
    failures_max: u32,
    windows: Mutex<HashMap<ThrottleKey, Window>>,
}

impl Throttle {
    pub(super) fn new(failures_max: u32) -> Self {
        Self { failures_max, windows: Mutex::default() }
    }

    /// Refuses a name that has failed too often within the minute.
    pub(super) fn admit(&self, key: &ThrottleKey, now: Duration) -> Result<(), Error> {
        match self.windows().get(key) {
            Some(window) if !window.is_over(now) && window.failures >= self.failures_max => {
                Err(Error::Busy)
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn count_failure(&self, key: ThrottleKey, now: Duration) {
        let mut windows = self.windows();
        make_room(&mut windows, &key, now);
        let window = windows.entry(key).or_insert(Window { began_at: now, failures: 0 });
        if window.is_over(now) {
            *window = Window { began_at: now, failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
    }

    pub(super) fn forget(&self, key: &ThrottleKey) {
        self.windows().remove(key);
    }

    /// No change leaves the map half made, so a panic elsewhere spoils nothing.
    fn windows(&self) -> MutexGuard<'_, HashMap<ThrottleKey, Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_room(windows: &mut HashMap<ThrottleKey, Window>, key: &ThrottleKey, now: Duration) {
    if windows.len() < NAMES_MAX || windows.contains_key(key) {
        return;
    }
    windows.retain(|_, window| !window.is_over(now));
    if windows.len() < NAMES_MAX {
        return;
    }
    let oldest = windows.iter().min_by_key(|(_, window)| window.began_at);
    if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
        windows.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_name_that_failed_too_often_waits_out_the_minute_from_its_first_failure() {
        let throttle = Throttle::new(2);
        let key = ThrottleKey::of(&["name", "default", "ann"]);
        throttle.count_failure(key.clone(), secs(100));
        assert!(throttle.admit(&key, secs(101)).is_ok());
        throttle.count_failure(key.clone(), secs(130));
        assert!(matches!(throttle.admit(&key, secs(159)), Err(Error::Busy)));
        assert!(throttle.admit(&ThrottleKey::of(&["name", "default", "bob"]), secs(159)).is_ok());
        assert!(throttle.admit(&key, secs(160)).is_ok());
        throttle.count_failure(key.clone(), secs(160));
        assert!(throttle.admit(&key, secs(160)).is_ok());
    }

    #[test]
    fn a_success_wipes_the_slate() {
        let throttle = Throttle::new(1);
        let key = ThrottleKey::of(&["id", "ann"]);
        throttle.count_failure(key.clone(), secs(1));
        throttle.forget(&key);
        assert!(throttle.admit(&key, secs(1)).is_ok());
    }

    #[test]
    fn ever_new_names_take_bounded_memory_and_push_out_the_oldest() {
        let throttle = Throttle::new(1);
        let name = |n: usize| ThrottleKey::of(&["name", &n.to_string()]);
        throttle.count_failure(name(0), secs(0));
        for n in 1..=NAMES_MAX {
            throttle.count_failure(name(n), secs(1));
        }
        assert_eq!(throttle.windows().len(), NAMES_MAX);
        assert!(throttle.admit(&name(0), secs(1)).is_ok());
        assert!(throttle.admit(&name(NAMES_MAX), secs(1)).is_err());
        throttle.count_failure(name(NAMES_MAX + 1), secs(61));
        assert_eq!(throttle.windows().len(), 1);
    }

    #[test]
    fn parts_of_a_name_are_kept_apart() {
        assert_ne!(ThrottleKey::of(&["name", "ab", "c"]), ThrottleKey::of(&["name", "a", "bc"]));
    }
}
