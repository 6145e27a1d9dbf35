//! Numbered pieces of work on several threads: reads run ahead, processors are shared.
//!
//! Waiting for a store and working on what it gave are different limits. So there are
//! more threads than processors to use, each reads for itself, and what costs processor
//! time is done under one of a few permits.

use std::{
    num::NonZeroUsize,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use crate::{control::CancelFlag, error::EngineError};

/// Numbers handed out to threads, until one of them fails or the caller cancels.
pub(crate) struct Work<'a> {
    next: AtomicUsize,
    end: usize,
    is_over: AtomicBool,
    cancel: &'a CancelFlag,
    permits: Mutex<usize>,
    returned: Condvar,
}

/// The right to use a processor, given back when dropped.
pub(crate) struct Permit<'w>(&'w Work<'w>);

impl Work<'_> {
    /// The next number; `None` when there is nothing left to do.
    pub(crate) fn next(&self) -> Result<Option<usize>, EngineError> {
        self.cancel.check()?;
        if self.is_over.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok((number < self.end).then_some(number))
    }

    /// Waits for a processor. Whoever holds one waits for no other thread.
    pub(crate) fn permit(&self) -> Permit<'_> {
        let mut permits = self.permits();
        while *permits == 0 {
            permits = self.returned.wait(permits).unwrap_or_else(PoisonError::into_inner);
        }
        *permits -= 1;
        Permit(self)
    }

    fn permits(&self) -> MutexGuard<'_, usize> {
        self.permits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.permits() += 1;
        self.0.returned.notify_one();
    }
}

/// Runs `work` on `processors` and `ahead` more threads, which share the numbers of
/// `numbers`. The first error ends all; what every thread returned comes back.
pub(crate) fn run<T: Send>(
    numbers: std::ops::Range<usize>,
    processors: NonZeroUsize,
    ahead: usize,
    cancel: &CancelFlag,
    work: impl Fn(&Work<'_>) -> Result<T, EngineError> + Sync,
) -> Result<Vec<T>, EngineError> {
    let threads = processors.get().saturating_add(ahead).min(numbers.len()).max(1);
    let shared = Work {
        next: AtomicUsize::new(numbers.start),
        end: numbers.end,
        is_over: AtomicBool::new(false),
        cancel,
        permits: Mutex::new(processors.get()),
        returned: Condvar::new(),
    };
    let one = || work(&shared).inspect_err(|_| shared.is_over.store(true, Ordering::Relaxed));
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let bug = |_| EngineError::bug("a reader panicked");
    outcomes.into_iter().map(|outcome| outcome.map_err(bug)?).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_handed_out_once_and_permits_bound_the_work() {
        let two = NonZeroUsize::new(2).unwrap();
        let (working, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let seen = run(3..500, two, 4, &CancelFlag::new(), |work| {
            let mut seen = Vec::new();
            while let Some(number) = work.next()? {
                let _permit = work.permit();
                most.fetch_max(working.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::yield_now();
                working.fetch_sub(1, Ordering::SeqCst);
                seen.push(number);
            }
            Ok(seen)
        });
        let mut seen = seen.unwrap().concat();
        seen.sort_unstable();
        assert_eq!(seen, (3..500).collect::<Vec<_>>());
        assert!(most.into_inner() <= 2);
    }

    #[test]
    fn the_first_error_ends_the_work_and_a_cancelled_one_does_not_begin() {
        let one = NonZeroUsize::MIN;
        let failed = run(0..1_000_000, one, 3, &CancelFlag::new(), |work| match work.next()? {
            Some(_) => Err::<(), _>(EngineError::bug("x")),
            None => Ok(()),
        });
        assert!(matches!(failed, Err(EngineError::Bug(_))));
        let cancel = CancelFlag::new();
        cancel.cancel();
        let cancelled = run(0..10, one, 3, &cancel, |work| work.next().map(drop));
        assert!(matches!(cancelled, Err(EngineError::Cancelled)));
    }
}
