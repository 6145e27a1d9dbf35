//! Identifiers as newtypes, so that no id is ever passed where another kind belongs.
//!
//! An id that came from a caller may be any text: one that is no UUID simply matches
//! nothing, because everything we store and every cloud object we accept carries a
//! canonical UUID. Nothing builds a path or a query from an id's text.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest id text a caller may send, in characters; more is a malformed request.
pub const ID_CHARS_MAX: usize = 255;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// An id as a caller wrote it. A UUID takes its canonical form; any other
            /// text is kept and matches no object.
            pub fn asked(text: &str) -> Self {
                match Uuid::try_parse(text) {
                    Ok(uuid) => uuid.into(),
                    Err(_) => Self(text.to_owned()),
                }
            }

            /// The id's text: lower case, with hyphens, if it is a UUID.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid.hyphenated().to_string())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        // `Debug` is what logs use: it escapes control characters of hostile text.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

id!(
    /// One run of a protect request: the published `checkpoint`.
    CheckpointId
);
id!(
    /// The backup of one server inside a checkpoint: the published `checkpoint_item`.
    ItemId
);
id!(
    /// The backup of one volume inside an item: the wire's `backup_id`.
    VolumeBackupId
);
id!(
    /// A server of the cloud.
    ServerId
);
id!(
    /// A volume of the cloud.
    VolumeId
);
id!(
    /// One restore: the published `restore`.
    RestoreId
);
id!(
    /// A unit of background work.
    JobId
);
id!(
    /// A plan of a restore that an explained answer named.
    PlanId
);
id!(
    /// One reading back or trying out of a backup.
    ProofId
);

/// A project, the owner of everything. Its text is the identity service's own: 32
/// hexadecimal digits in OpenStack, never interpreted here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProjectId(String);

impl ProjectId {
    /// A project id with the given text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_in_capitals_names_the_same_object() {
        let lower = ItemId::asked("2a7c4e91-b5d6-4f38-8c0a-d7e93f1b6054");
        assert_eq!(ItemId::asked("2A7C4E91-B5D6-4F38-8C0A-D7E93F1B6054"), lower);
    }

    #[test]
    fn text_that_is_no_uuid_is_kept_and_logged_escaped() {
        let odd = ServerId::asked("../etc\n");
        assert_eq!(odd.as_str(), "../etc\n");
        assert_eq!(format!("{odd:?}"), r#""../etc\n""#);
    }
}
