//! What is known of the world when a verdict is made.
//!
//! A fact was seen, is known to be absent, or could not be learned. The third is not the
//! second: *unknown is never yes*, and it is never "not found" either.

use crate::time::Timestamp;

/// One thing a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<T> {
    /// The thing was there.
    Seen {
        /// What was seen.
        value: T,
        /// When.
        at: Timestamp,
    },
    /// Whoever would know answered that there is no such thing, or that it belongs to
    /// somebody else; the two are the same to a caller.
    Absent,
    /// Whoever would know did not answer.
    Unknown {
        /// Who failed to answer, and how.
        why: Unknown,
    },
}

impl<T> Fact<T> {
    /// The value, if it was seen.
    pub fn seen(&self) -> Option<&T> {
        match self {
            Self::Seen { value, .. } => Some(value),
            Self::Absent | Self::Unknown { .. } => None,
        }
    }
}

/// Why a fact could not be learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The cloud failed or did not answer in time.
    CloudSilent,
    /// The backup repository failed or did not answer in time.
    RepositoryUnreachable,
    /// The key that opens the repository cannot be had.
    KeyUnavailable,
    /// Something in the repository is damaged, and whether the backup needs it is still
    /// being found out.
    DamageNotLocated,
    /// Zones are supposed to be lost, and nobody told where the repository or its key lies.
    PlaceNotTold,
}

impl Unknown {
    /// The word in explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CloudSilent => "the cloud does not answer",
            Self::RepositoryUnreachable => "the repository does not answer",
            Self::KeyUnavailable => "the repository's key cannot be had",
            Self::DamageNotLocated => "it is being found out whom damage in the repository harms",
            Self::PlaceNotTold => "where the repository or its key lies is not told",
        }
    }
}
