//! How a caller steers long work: cancel it, withdraw its right to write, watch it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::error::EngineError;

/// Says that a piece of work is to end soon. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// A flag that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the work at its next chunk. It stays raised.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether someone raised the flag.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        if self.is_cancelled() { Err(EngineError::Cancelled) } else { Ok(()) }
    }
}

/// The right to write is gone; the text says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped: {why}")]
pub struct Stopped {
    /// Why the work must not go on.
    pub why: String,
}

/// Asked before every write outside the process: an object put into the store, bytes
/// written to a sink. A refusal ends the work at once and nothing more is written.
pub trait Gate: Send + Sync {
    /// Whether the work still has the right to write.
    fn may_write(&self) -> Result<(), Stopped>;
}

/// A gate that never closes, for tools and tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenGate;

impl Gate for OpenGate {
    fn may_write(&self) -> Result<(), Stopped> {
        Ok(())
    }
}

/// Hears how far the work has come. Called from several threads.
pub trait Progress: Send + Sync {
    /// `bytes` more bytes of the volume are dealt with, whether read, skipped or kept.
    fn advance(&self, bytes: u64);
}

/// Progress nobody looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn advance(&self, _bytes: u64) {}
}
