//! How far verifying a repository has come: the last pack that was read, in a file of the
//! state directory, so that the next call goes on after it.
//!
//! Invariant: a cursor that cannot be read means to begin at the start, never to skip.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use kedge_core::ids::ProjectId;
use kedge_core::time::Timestamp;
use kedge_engine::{IndexId, PackId};
use serde::{Deserialize, Serialize};

use crate::private;

/// A verification that went from the start to here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The last pack read; none before the first.
    pub(super) after: Option<PackId>,
    /// When it began.
    pub(super) began_at: Timestamp,
    /// Index objects that were there all the time; none before the first pack.
    pub(super) index: Option<BTreeSet<IndexId>>,
}

/// With and without keys, packs are read for different reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Keyed,
    Keyless,
}

/// The cursor of one repository.
#[derive(Debug)]
pub(super) struct Cursor(PathBuf);

impl Cursor {
    /// The project's id was found fit to name a directory by whoever opened its repository.
    pub(super) fn of(state_dir: &Path, project: &ProjectId, kind: Kind) -> Self {
        let kind = match kind {
            Kind::Keyed => "keyed",
            Kind::Keyless => "keyless",
        };
        Self(state_dir.join("verify").join(format!("{project}.{kind}")))
    }

    pub(super) fn read(&self) -> Option<Place> {
        serde_json::from_str(&std::fs::read_to_string(&self.0).ok()?).ok()
    }

    /// Notes how far it came; none when the end was reached.
    pub(super) fn write(&self, place: Option<&Place>) -> io::Result<()> {
        if let Some(dir) = self.0.parent() {
            private::create_dir(dir)?;
        }
        match place {
            Some(place) => private::replace_file(&self.0, &serde_json::to_string(place)?),
            None => match std::fs::remove_file(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_what_is_none_begins_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let project = ProjectId::new("p");
        let cursor = Cursor::of(dir.path(), &project, Kind::Keyed);
        assert_eq!(cursor.read(), None);
        let id = "5".repeat(64);
        let place = Place {
            after: Some(id.parse().unwrap()),
            began_at: Timestamp::from_micros(7),
            index: Some([id.parse().unwrap()].into()),
        };
        for _ in 0..2 {
            cursor.write(Some(&place)).unwrap();
            assert_eq!(cursor.read().as_ref(), Some(&place));
        }
        assert_eq!(Cursor::of(dir.path(), &project, Kind::Keyless).read(), None);
        for nonsense in ["nonsense", &id] {
            std::fs::write(&cursor.0, nonsense).unwrap();
            assert_eq!(cursor.read(), None);
        }
        for _ in 0..2 {
            cursor.write(None).unwrap();
            assert_eq!(cursor.read(), None);
        }
    }
}
