//! The status of an item, and the only place that knows which moves exist.

use std::fmt;
use std::str::FromStr;

/// The published words (docs/csbs-v1.md). The three `Waiting…` words exist for filters of
/// clients that know them; we never enter them, because Terraform takes `waiting_protect`
/// and `waiting_delete` for errors: only the job behind an item is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ItemStatus {
    /// Queued for backup.
    WaitingProtect,
    /// Being backed up.
    Protecting,
    /// Complete: restore and delete are allowed.
    Available,
    /// Queued for restore.
    WaitingRestore,
    /// Being restored from.
    Restoring,
    /// Something failed for good; can only be deleted.
    Error,
    /// Queued for deletion.
    WaitingDelete,
    /// Being deleted.
    Deleting,
    /// Gone; kept as a tombstone, hidden from callers.
    Deleted,
}

impl ItemStatus {
    /// Every status, in the published order.
    pub const ALL: [Self; 9] = [
        Self::WaitingProtect,
        Self::Protecting,
        Self::Available,
        Self::WaitingRestore,
        Self::Restoring,
        Self::Error,
        Self::WaitingDelete,
        Self::Deleting,
        Self::Deleted,
    ];

    /// The word on the wire and in the catalogue.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WaitingProtect => "waiting_protect",
            Self::Protecting => "protecting",
            Self::Available => "available",
            Self::WaitingRestore => "waiting_restore",
            Self::Restoring => "restoring",
            Self::Error => "error",
            Self::WaitingDelete => "waiting_delete",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
        }
    }

    /// The move that `event` makes from here. The store calls it before every status
    /// write, so a row never holds a status reached another way.
    ///
    /// ```text
    /// (created) -> protecting -> available <-> restoring
    ///                  |             |
    ///                  v             v
    ///                error  ---> deleting -> deleted
    ///                  ^             |
    ///                  +-------------+
    /// ```
    ///
    /// # Errors
    /// The move is not in the table.
    pub fn next(self, event: ItemEvent) -> Result<Self, IllegalMove> {
        use ItemEvent as E;
        use ItemStatus as S;
        match (self, event) {
            (S::Protecting, E::ProtectFinished) => Ok(S::Available),
            (S::Protecting, E::ProtectFailed) => Ok(S::Error),
            (S::Available, E::RestoreAccepted) => Ok(S::Restoring),
            // A failed restore does not harm the backup.
            (S::Restoring, E::RestoreFinished | E::RestoreFailed) => Ok(S::Available),
            (S::Available | S::Error, E::DeleteAccepted) => Ok(S::Deleting),
            (S::Deleting, E::DeleteFinished) => Ok(S::Deleted),
            (S::Deleting, E::DeleteFailed) => Ok(S::Error),
            (from, event) => Err(IllegalMove { from, event }),
        }
    }
}

impl fmt::Display for ItemStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is none of the published words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a status of a backup")]
pub struct UnknownStatus;

impl FromStr for ItemStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownStatus)
    }
}

/// What may happen to an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemEvent {
    /// The backup is complete and readable by stock restic.
    ProtectFinished,
    /// The backup failed for good or was cancelled.
    ProtectFailed,
    /// A restore was admitted.
    RestoreAccepted,
    /// A restore wrote and read back every byte.
    RestoreFinished,
    /// A restore failed.
    RestoreFailed,
    /// A deletion was admitted.
    DeleteAccepted,
    /// The repository snapshot is gone.
    DeleteFinished,
    /// The deletion failed for good.
    DeleteFailed,
}

/// A bug in the caller: the table has no such move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an item that is {from} cannot take {event:?}")]
pub struct IllegalMove {
    /// Where the item stands.
    pub from: ItemStatus,
    /// What was to happen to it.
    pub event: ItemEvent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_exactly_the_published_moves() {
        use ItemEvent as E;
        use ItemStatus as S;
        let events = [
            E::ProtectFinished,
            E::ProtectFailed,
            E::RestoreAccepted,
            E::RestoreFinished,
            E::RestoreFailed,
            E::DeleteAccepted,
            E::DeleteFinished,
            E::DeleteFailed,
        ];
        let legal = [
            (S::Protecting, E::ProtectFinished, S::Available),
            (S::Protecting, E::ProtectFailed, S::Error),
            (S::Available, E::RestoreAccepted, S::Restoring),
            (S::Restoring, E::RestoreFinished, S::Available),
            (S::Restoring, E::RestoreFailed, S::Available),
            (S::Available, E::DeleteAccepted, S::Deleting),
            (S::Error, E::DeleteAccepted, S::Deleting),
            (S::Deleting, E::DeleteFinished, S::Deleted),
            (S::Deleting, E::DeleteFailed, S::Error),
        ];
        for from in S::ALL {
            for event in events {
                let expected = legal.iter().find(|m| (m.0, m.1) == (from, event)).map(|m| m.2);
                assert_eq!(from.next(event).ok(), expected, "{from} {event:?}");
            }
        }
    }

    #[test]
    fn every_word_reads_back() {
        for status in ItemStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert_eq!("Available".parse::<ItemStatus>(), Err(UnknownStatus));
    }
}
