//! The body of every answer that is no success.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A code for programs and a text for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The code.
    pub error_code: String,
    /// The text.
    pub error_msg: String,
    /// The request's id in the logs; also the header `X-Request-Id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub request_id: Option<String>,
    /// The same once more as Keystone's clients read it; below `/v3` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error: Option<KeystoneError>,
}

/// Keystone's form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeystoneError {
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub code: u16,
    /// The text.
    pub message: String,
    /// The status in words.
    pub title: String,
}
