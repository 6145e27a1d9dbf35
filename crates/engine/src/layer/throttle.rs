//! Keeps work below a rate of bytes and operations.
//!
//! A [`Bucket`] may be shared: everything that takes from one bucket stays below its
//! rates together. Whoever takes more than is left goes into debt and waits until it is
//! paid, so one large object costs its whole time, and the order of callers is kept fair
//! by the debt of those before.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::Pace;
use crate::{
    backend::{Backend, BackendError, Listed, ObjectKind, ObjectName},
    source::{Extent, Sink, SinkError, Source, SourceError},
};

/// What may be spent per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes; `None` is no limit. 0 counts as 1.
    pub bytes_per_sec: Option<u64>,
    /// Operations; `None` is no limit. 0 counts as 1.
    pub operations_per_sec: Option<u64>,
}

/// Savings never exceed what a tenth of a second earns: a long rest is not made up for by
/// a long burst.
const BURST: Duration = Duration::from_millis(100);

/// A wait is cut into naps of this length, so that new rates are felt soon.
const NAP: Duration = Duration::from_secs(1);

/// Earns at its rates and is spent from.
#[derive(Debug)]
pub struct Bucket {
    rates: Rates,
    pace: Arc<dyn Pace>,
    paid_until: Mutex<PaidUntil>,
}

/// The moments up to which everything spent is paid for.
#[derive(Debug, Default)]
struct PaidUntil {
    bytes: Duration,
    operations: Duration,
}

impl Bucket {
    /// A bucket that earns at `rates`.
    pub fn new(rates: Rates, pace: Arc<dyn Pace>) -> Self {
        Self { rates, pace, paid_until: Mutex::default() }
    }

    /// Spends one operation of so many bytes, and waits until both are paid for.
    pub fn take(&self, bytes: u64) {
        let until = {
            let mut paid = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let earned_from = self.pace.now().saturating_sub(BURST);
            paid.bytes = paid.bytes.max(earned_from) + cost(bytes, self.rates.bytes_per_sec);
            paid.operations =
                paid.operations.max(earned_from) + cost(1, self.rates.operations_per_sec);
            paid.bytes.max(paid.operations)
        };
        loop {
            let left = until.saturating_sub(self.pace.now());
            if left.is_zero() {
                return;
            }
            self.pace.sleep(left.min(NAP));
        }
    }
}

/// The time in which `amount` is earned.
fn cost(amount: u64, per_sec: Option<u64>) -> Duration {
    let Some(per_sec) = per_sec else { return Duration::ZERO };
    let nanos = u128::from(amount) * 1_000_000_000 / u128::from(per_sec.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Bytes of a buffer as a number of 64 bits.
fn len_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// A backend whose calls are paid for from a bucket: writes before they are made, reads
/// after it is known how much came.
#[derive(Debug)]
pub struct Throttle<B> {
    inner: B,
    bucket: Arc<Bucket>,
}

impl<B: Backend> Throttle<B> {
    /// A backend that spends from `bucket`.
    pub fn new(inner: B, bucket: Arc<Bucket>) -> Self {
        Self { inner, bucket }
    }
}

impl<B: Backend> Backend for Throttle<B> {
    fn prepare(&self) -> Result<(), BackendError> {
        self.bucket.take(0);
        self.inner.prepare()
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        self.bucket.take(len_of(bytes));
        self.inner.put(name, bytes)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        let bytes = self.inner.get(name, bytes_max);
        self.bucket.take(bytes.as_ref().map_or(0, |bytes| len_of(bytes)));
        bytes
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        self.bucket.take(len_of(buf));
        self.inner.read_at(name, offset, buf)
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        self.bucket.take(0);
        self.inner.find_size(name)
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        self.bucket.take(0);
        self.inner.list(kind)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        self.bucket.take(0);
        self.inner.delete(name)
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        self.bucket.take(0);
        self.inner.remove_leftovers()
    }
}

/// A source whose reads are paid for from a bucket.
#[derive(Debug)]
pub struct ThrottledSource<S> {
    inner: S,
    bucket: Arc<Bucket>,
}

impl<S: Source> ThrottledSource<S> {
    /// A source that spends from `bucket`.
    pub fn new(inner: S, bucket: Arc<Bucket>) -> Self {
        Self { inner, bucket }
    }
}

impl<S: Source> Source for ThrottledSource<S> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
        self.inner.next_extent(offset)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        self.bucket.take(len_of(buf));
        self.inner.read_at(offset, buf)
    }
}

/// A sink whose writes are paid for from a bucket. Holes cost an operation but no bytes.
#[derive(Debug)]
pub struct ThrottledSink<S> {
    inner: S,
    bucket: Arc<Bucket>,
}

impl<S: Sink> ThrottledSink<S> {
    /// A sink that spends from `bucket`.
    pub fn new(inner: S, bucket: Arc<Bucket>) -> Self {
        Self { inner, bucket }
    }
}

impl<S: Sink> Sink for ThrottledSink<S> {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.bucket.take(len_of(bytes));
        self.inner.write_at(offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), SinkError> {
        self.bucket.take(0);
        self.inner.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<(), SinkError> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryBackend, id::PackId, layer::pace::tests::StillPace};

    const PACK: ObjectName = ObjectName::Pack(PackId([7; 32]));

    fn bucket(bytes: Option<u64>, operations: Option<u64>) -> (Arc<StillPace>, Arc<Bucket>) {
        let pace = Arc::new(StillPace::default());
        pace.sleep(Duration::from_secs(100));
        let rates = Rates { bytes_per_sec: bytes, operations_per_sec: operations };
        let bucket = Bucket::new(rates, Arc::clone(&pace) as Arc<dyn Pace>);
        (pace, Arc::new(bucket))
    }

    #[test]
    fn bytes_take_their_time_and_a_rest_saves_a_tenth_of_a_second_at_most() {
        let (pace, bucket) = bucket(Some(1000), None);
        let backend = Throttle::new(MemoryBackend::new(), bucket);
        backend.put(&PACK, &[0; 1000]).unwrap();
        assert_eq!(pace.now(), Duration::from_millis(100_900));
        backend.read_at(&PACK, 0, &mut [0; 500]).unwrap();
        assert_eq!(pace.now(), Duration::from_millis(101_400));
        backend.get(&PACK, 5000).unwrap();
        assert_eq!(pace.now(), Duration::from_millis(102_400));
        backend.delete(&PACK).unwrap();
        assert_eq!(pace.now(), Duration::from_millis(102_400));
    }

    #[test]
    fn operations_take_their_time_whatever_their_size() {
        let (pace, bucket) = bucket(Some(1_000_000_000), Some(10));
        let backend = Throttle::new(MemoryBackend::new(), bucket);
        for _ in 0..11 {
            backend.find_size(&PACK).unwrap();
        }
        assert_eq!(pace.now(), Duration::from_secs(101));
    }

    #[test]
    fn everything_that_shares_a_bucket_shares_its_rate() {
        #[derive(Debug)]
        struct Zeroes;
        impl Source for Zeroes {
            fn size_bytes(&self) -> u64 {
                1 << 20
            }
            fn next_extent(&self, _offset: u64) -> Result<Extent, SourceError> {
                Err(SourceError { retryable: false, text: "not asked".to_owned() })
            }
            fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
                buf.fill(0);
                Ok(())
            }
        }
        impl Sink for Zeroes {
            fn write_at(&self, _offset: u64, _bytes: &[u8]) -> Result<(), SinkError> {
                Ok(())
            }
            fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), SinkError> {
                Ok(())
            }
        }
        let (pace, bucket) = bucket(Some(1000), None);
        let source = ThrottledSource::new(Zeroes, Arc::clone(&bucket));
        let sink = ThrottledSink::new(Zeroes, bucket);
        for _ in 0..5 {
            source.read_at(0, &mut [0; 1000]).unwrap();
            sink.write_at(0, &[0; 1000]).unwrap();
            sink.write_zeroes(0, 1 << 40).unwrap();
        }
        assert_eq!(pace.now(), Duration::from_millis(109_900));
    }

    #[test]
    fn a_throttled_sink_still_makes_its_bytes_durable() {
        struct Unflushable;
        impl Sink for Unflushable {
            fn write_at(&self, _offset: u64, _bytes: &[u8]) -> Result<(), SinkError> {
                Ok(())
            }
            fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), SinkError> {
                Ok(())
            }
            fn flush(&self) -> Result<(), SinkError> {
                Err(SinkError { retryable: false, text: "the disk is gone".to_owned() })
            }
        }
        let (_, bucket) = bucket(None, None);
        assert!(ThrottledSink::new(Unflushable, bucket).flush().is_err());
    }

    #[test]
    fn no_limit_is_no_wait_and_a_limit_of_zero_still_moves() {
        let (pace, unlimited) = bucket(None, None);
        unlimited.take(u64::MAX);
        assert_eq!(pace.now(), Duration::from_secs(100));
        let (pace, slowest) = bucket(Some(0), None);
        slowest.take(2);
        assert_eq!(pace.now(), Duration::from_millis(101_900));
    }
}
