//! Time and chance, as the layers that wait need them. Both are given, so that tests
//! stand still and the engine never asks the machine.

use std::{fmt, time::Duration};

/// The clock, the bed and the die of a layer.
pub trait Pace: Send + Sync + fmt::Debug {
    /// Time on a clock that never goes back, since any fixed moment.
    fn now(&self) -> Duration;

    /// Waits. May return early, never much late.
    fn sleep(&self, time: Duration);

    /// A random number from 0 to 1, so that many clients do not come back at once.
    fn jitter(&self) -> f64;
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// Time that passes by sleeping alone.
    #[derive(Debug, Default)]
    pub(crate) struct StillPace {
        now: Mutex<Duration>,
        pub(crate) jitter: f64,
    }

    impl StillPace {
        pub(crate) fn with_jitter(jitter: f64) -> Self {
            Self { jitter, ..Self::default() }
        }
    }

    impl Pace for StillPace {
        fn now(&self) -> Duration {
            *self.now.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn sleep(&self, time: Duration) {
            *self.now.lock().unwrap_or_else(PoisonError::into_inner) += time;
        }

        fn jitter(&self) -> f64 {
            self.jitter
        }
    }
}
