//! Tags of backups.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tag {
    /// 1 to 36 letters, digits, `-` or `_`.
    #[schema(min_length = 1)]
    pub key: String,
    /// 0 to 43 of the same characters.
    pub value: String,
}
