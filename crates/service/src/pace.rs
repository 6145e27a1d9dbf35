//! About how long a restore takes: as long as those before it did.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kedge_core::ids::ProjectId;

/// So many restores of a project back go the estimates.
const REMEMBERED: usize = 16;
/// What is assumed before any restore ran, and said to be.
const ASSUMED_BYTES_PER_SEC: u64 = 100 << 20;

/// How quick this process's restores were, of each project for itself: nobody learns from
/// an estimate what others do.
#[derive(Debug, Default)]
pub(crate) struct RestorePace(Mutex<HashMap<ProjectId, VecDeque<(u64, Duration)>>>);

/// About how long a restore takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Writing and reading back.
    pub seconds: u64,
    /// What that rests on.
    pub basis: Basis,
}

/// What an estimate rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// So many restores that ran lately.
    Measured(usize),
    /// None ran since the service started: a rate, in bytes of data per second.
    Assumed(u64),
}

impl RestorePace {
    /// A restore of so many bytes of data, read back, took so long.
    pub(crate) fn note(&self, project: &ProjectId, data_bytes: u64, took: Duration) {
        if data_bytes == 0 || took.is_zero() {
            return;
        }
        let mut projects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = projects.entry(project.clone()).or_default();
        seen.push_back((data_bytes, took));
        if seen.len() > REMEMBERED {
            seen.pop_front();
        }
    }

    pub(crate) fn estimate(&self, project: &ProjectId, data_bytes: u64) -> Estimate {
        let projects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen: Vec<_> = projects.get(project).into_iter().flatten().collect();
        let bytes: u64 = seen.iter().map(|(bytes, _)| bytes).sum();
        let millis: u128 = seen.iter().map(|(_, took)| took.as_millis()).sum();
        let (millis, bytes, basis) = if bytes == 0 || millis == 0 {
            (1000, ASSUMED_BYTES_PER_SEC, Basis::Assumed(ASSUMED_BYTES_PER_SEC))
        } else {
            (millis, bytes, Basis::Measured(seen.len()))
        };
        let millis = u128::from(data_bytes) * millis / u128::from(bytes);
        let seconds = u64::try_from(millis.div_ceil(1000)).unwrap_or(u64::MAX);
        Estimate { seconds, basis }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_rest_on_the_last_restores_and_say_so() {
        let pace = RestorePace::default();
        let ours = ProjectId::new("ours");
        let assumed = Basis::Assumed(ASSUMED_BYTES_PER_SEC);
        assert_eq!(pace.estimate(&ours, 250 << 20), Estimate { seconds: 3, basis: assumed });
        pace.note(&ours, 0, Duration::from_secs(9));
        pace.note(&ours, 5, Duration::ZERO);
        assert_eq!(pace.estimate(&ours, 0), Estimate { seconds: 0, basis: assumed });
        pace.note(&ours, 1000, Duration::from_secs(10));
        pace.note(&ours, 3000, Duration::from_secs(10));
        let measured = Basis::Measured(2);
        assert_eq!(pace.estimate(&ours, 400), Estimate { seconds: 2, basis: measured });
        assert_eq!(pace.estimate(&ours, 401), Estimate { seconds: 3, basis: measured });
        for _ in 0..REMEMBERED {
            pace.note(&ours, 1, Duration::from_secs(1));
        }
        assert_eq!(pace.estimate(&ours, 7).seconds, 7);
        // Another project's are its own.
        assert_eq!(pace.estimate(&ProjectId::new("theirs"), 250 << 20).basis, assumed);
    }
}
