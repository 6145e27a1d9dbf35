//! What the engine reads volumes from and restores them to.

/// What is known about a byte range before reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Must be read.
    Data,
    /// Reads as zeroes; never read.
    Zero,
    /// Has not changed since the parent; taken from it without reading, save for a sample.
    Unchanged,
}

/// A byte range of a volume of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length, never 0.
    pub len: u64,
    /// What is known about it.
    pub kind: ExtentKind,
}

/// Why a source could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reading the volume failed: {text}")]
pub struct SourceError {
    /// Whether reading again may succeed.
    pub retryable: bool,
    /// What happened, without secrets.
    pub text: String,
}

/// A volume at one moment: its bytes do not change while the engine reads them.
///
/// - Called from several threads at once.
/// - An error fails the backup; it never becomes a hole.
pub trait Source: Send + Sync {
    /// The volume's size; constant.
    fn size_bytes(&self) -> u64;

    /// The extent that holds `offset` (`offset < size_bytes()`). It begins at or before
    /// `offset` and ends after it; it may end beyond the volume's end.
    fn next_extent(&self, offset: u64) -> Result<Extent, SourceError>;

    /// Fills `buf` with the bytes from `offset` on.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError>;
}

/// Why a sink could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("writing the target failed: {text}")]
pub struct SinkError {
    /// Whether writing again may succeed.
    pub retryable: bool,
    /// What happened, without secrets.
    pub text: String,
}

/// The target of a restore. Writes come in no particular order, never overlap, cover
/// the whole volume, and come from several threads at once.
pub trait Sink: Send + Sync {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError>;

    /// Makes `len` bytes at `offset` read as zeroes, as holes where the target can.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), SinkError>;

    /// Makes durable what was written so far. Asked only for restores that can be
    /// resumed; a target that cannot promise it must not be resumed.
    fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }
}
