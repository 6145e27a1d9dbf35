//! How far verifying a repository has come: the last pack that was read, in a file of the
//! state directory, so that the next call goes on after it.
//!
//! Invariant: a cursor that cannot be read means to begin at the start, never to skip.

use std::io;
use std::path::{Path, PathBuf};

use kedge_core::ids::ProjectId;
use kedge_engine::PackId;

use crate::private;

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

    pub(super) fn read(&self) -> Option<PackId> {
        std::fs::read_to_string(&self.0).ok()?.trim().parse().ok()
    }

    /// Notes the last pack read; none when the end was reached.
    pub(super) fn write(&self, after: Option<PackId>) -> io::Result<()> {
        if let Some(dir) = self.0.parent() {
            private::create_dir(dir)?;
        }
        match after {
            Some(pack) => private::replace_file(&self.0, &format!("{pack}\n")),
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
        let pack: PackId = "5".repeat(64).parse().unwrap();
        for _ in 0..2 {
            cursor.write(Some(pack)).unwrap();
            assert_eq!(cursor.read(), Some(pack));
        }
        assert_eq!(Cursor::of(dir.path(), &project, Kind::Keyless).read(), None);
        std::fs::write(&cursor.0, "nonsense").unwrap();
        assert_eq!(cursor.read(), None);
        for _ in 0..2 {
            cursor.write(None).unwrap();
            assert_eq!(cursor.read(), None);
        }
    }
}
