//! Asks again what may succeed the next time.
//!
//! Every call of a [`Backend`] can be repeated without harm: objects are named by their
//! content, `config` and `access.json` are replaced whole, and deleting what is gone
//! succeeds. So whatever [`BackendError::is_retryable`] says may pass is tried again, with
//! waits that grow and are spread by chance, within bounds on tries and time.

use std::{sync::Arc, time::Duration};

use super::Pace;
use crate::{
    CancelFlag,
    backend::{Backend, BackendError, Listed, ObjectKind, ObjectName},
};

/// How stubborn a [`Retry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryLimits {
    /// Calls in all, the first one counted.
    pub tries_max: u32,
    /// No further try begins when so much time has passed since the first one began.
    pub time_max: Duration,
    /// The longest first wait; each further one may be twice as long.
    pub first_wait: Duration,
    /// No wait is longer.
    pub wait_max: Duration,
}

impl Default for RetryLimits {
    /// Rides out a restart of the store or a minute of congestion. What takes longer is
    /// for the job, which sleeps without holding a worker.
    fn default() -> Self {
        Self {
            tries_max: 8,
            time_max: Duration::from_secs(120),
            first_wait: Duration::from_millis(200),
            wait_max: Duration::from_secs(15),
        }
    }
}

/// A wait is cut into naps, so that a cancelled caller is not kept.
const NAP: Duration = Duration::from_millis(100);

/// Passes calls on, again and again where that may help.
#[derive(Debug)]
pub struct Retry<B> {
    inner: B,
    limits: RetryLimits,
    pace: Arc<dyn Pace>,
    cancel: Option<CancelFlag>,
}

impl<B: Backend> Retry<B> {
    /// A backend that asks `inner` again within `limits`.
    pub fn new(inner: B, limits: RetryLimits, pace: Arc<dyn Pace>) -> Self {
        Self { inner, limits, pace, cancel: None }
    }

    /// Gives up waiting when the flag is raised.
    #[must_use]
    pub fn cancelled_by(self, cancel: CancelFlag) -> Self {
        Self { cancel: Some(cancel), ..self }
    }

    fn run<T>(&self, call: impl Fn() -> Result<T, BackendError>) -> Result<T, BackendError> {
        let started_at = self.pace.now();
        let mut tries = 0;
        loop {
            let error = match call() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            tries += 1;
            let wait = self.wait_after(tries);
            let passed = self.pace.now().saturating_sub(started_at);
            let is_over = tries >= self.limits.tries_max || passed + wait > self.limits.time_max;
            if !error.is_retryable() || is_over || self.sleep(wait).is_cancelled() {
                return Err(error);
            }
        }
    }

    /// Half of the wait is certain and half is chance: nobody comes back at once, and not
    /// everybody at the same moment.
    fn wait_after(&self, tries: u32) -> Duration {
        let doubled = 1_u32.checked_shl(tries - 1).unwrap_or(u32::MAX);
        let longest = self.limits.first_wait.saturating_mul(doubled).min(self.limits.wait_max);
        longest.mul_f64(0.5 + 0.5 * self.pace.jitter().clamp(0.0, 1.0))
    }

    fn sleep(&self, wait: Duration) -> Wake {
        let until = self.pace.now() + wait;
        loop {
            if self.cancel.as_ref().is_some_and(CancelFlag::is_cancelled) {
                return Wake::Cancelled;
            }
            let left = until.saturating_sub(self.pace.now());
            if left.is_zero() {
                return Wake::Rested;
            }
            self.pace.sleep(left.min(NAP));
        }
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wake {
    Rested,
    Cancelled,
}

impl Wake {
    fn is_cancelled(self) -> bool {
        self == Self::Cancelled
    }
}

impl<B: Backend> Backend for Retry<B> {
    fn prepare(&self) -> Result<(), BackendError> {
        self.run(|| self.inner.prepare())
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        self.run(|| self.inner.put(name, bytes))
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        self.run(|| self.inner.get(name, bytes_max))
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        // A closure that can be called again cannot lend the buffer out; a cell can.
        let buf = std::cell::RefCell::new(buf);
        self.run(|| self.inner.read_at(name, offset, &mut buf.borrow_mut()))
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        self.run(|| self.inner.find_size(name))
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        self.run(|| self.inner.list(kind))
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        self.run(|| self.inner.delete(name))
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        self.run(|| self.inner.remove_leftovers())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MemoryBackend,
        id::PackId,
        layer::{Fault, FaultBackend, pace::tests::StillPace},
    };

    const PACK: ObjectName = ObjectName::Pack(PackId([7; 32]));

    fn passing() -> BackendError {
        BackendError::Io { retryable: true, text: "busy".to_owned() }
    }

    fn broken(error: BackendError) -> FaultBackend<MemoryBackend> {
        let backend = FaultBackend::new(MemoryBackend::new());
        backend.break_with(error);
        backend
    }

    fn retry(
        inner: FaultBackend<MemoryBackend>,
        pace: &Arc<StillPace>,
    ) -> Retry<FaultBackend<MemoryBackend>> {
        Retry::new(inner, RetryLimits::default(), Arc::clone(pace) as Arc<dyn Pace>)
    }

    #[test]
    fn a_call_that_fails_once_succeeds() {
        for fault in [Fault::Before(passing()), Fault::After(passing())] {
            let inner = FaultBackend::new(MemoryBackend::new());
            inner.fail_after(0, fault);
            let retry = retry(inner, &Arc::default());
            retry.put(&PACK, b"pack").unwrap();
            assert_eq!(retry.get(&PACK, 10).unwrap(), b"pack");
            assert_eq!(retry.inner.recorded().len(), 3);
        }
    }

    #[test]
    fn tries_and_time_are_bounded_and_the_waits_double() {
        let pace = Arc::new(StillPace::with_jitter(1.0));
        let retry = retry(broken(passing()), &pace);
        assert_eq!(retry.get(&PACK, 1), Err(passing()));
        assert_eq!(retry.inner.recorded().len(), 8);
        // 0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 6.4 + 12.8
        assert_eq!(pace.now(), Duration::from_millis(25_400));

        let pace = Arc::new(StillPace::with_jitter(0.0));
        let limits = RetryLimits {
            tries_max: u32::MAX,
            time_max: Duration::from_secs(60),
            ..RetryLimits::default()
        };
        let retry = Retry::new(broken(passing()), limits, Arc::clone(&pace) as Arc<dyn Pace>);
        assert_eq!(retry.find_size(&PACK), Err(passing()));
        assert!(pace.now() <= Duration::from_secs(60), "{:?}", pace.now());
        assert!(pace.now() > Duration::from_secs(45), "{:?}", pace.now());
    }

    #[test]
    fn what_will_not_pass_is_asked_once() {
        for error in [
            BackendError::NotFound,
            BackendError::Truncated,
            BackendError::TooLarge,
            BackendError::Full,
            BackendError::Retained,
            BackendError::Gone { text: "no config".to_owned() },
            BackendError::Io { retryable: false, text: "refused".to_owned() },
        ] {
            let pace = Arc::default();
            let retry = retry(broken(error.clone()), &pace);
            assert_eq!(retry.delete(&PACK), Err(error));
            assert_eq!(retry.inner.recorded().len(), 1);
            assert_eq!(pace.now(), Duration::ZERO);
        }
    }

    #[test]
    fn a_raised_flag_ends_the_waiting() {
        let (pace, cancel) = (Arc::default(), CancelFlag::new());
        cancel.cancel();
        let retry = retry(broken(passing()), &pace).cancelled_by(cancel);
        assert_eq!(retry.list(ObjectKind::Pack), Err(passing()));
        assert_eq!(retry.inner.recorded().len(), 1);
        assert_eq!(pace.now(), Duration::ZERO);
    }
}
