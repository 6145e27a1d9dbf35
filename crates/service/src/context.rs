//! Who asks, for which project, and what they may do.

use std::time::Duration;

use kedge_core::evidence::Demand;
use kedge_core::ids::ProjectId;

/// A caller whose token was validated and whose right to the project was checked.
/// Only [`crate::App::authorise`] makes one.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) project: ProjectId,
    pub(crate) rights: Vec<Right>,
    /// What the project demands to be known of backups before they are relied on.
    pub(crate) demand: Option<Demand>,
    /// On the monotonic clock: when the request's time is over.
    pub(crate) deadline: Duration,
}

impl Context {
    /// The project of the request's path.
    pub fn project(&self) -> &ProjectId {
        &self.project
    }

    /// Whether the caller has this right.
    pub fn may(&self, right: Right) -> bool {
        self.rights.contains(&right)
    }
}

/// What a role entitles to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// List, show, count, check.
    Read,
    /// Back up, restore, delete.
    Write,
    /// Cross projects.
    Admin,
}
