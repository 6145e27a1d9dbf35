//! The one place where a code meets HTTP.

#![deny(clippy::wildcard_enum_match_arm)]

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use kedge_core::code::Code;
use kedge_core::refusal::Refusal;
use kedge_service::error::Error;
use kedge_wire::error::{ErrorBody, KeystoneError};

/// Longest text of an error, in characters: room for the published text that names every
/// disk of the largest mapping.
const TEXT_CHARS_MAX: usize = 4096;

/// An answer that is no success. As a response it is a status and itself as an extension;
/// the edge writes the body, which has the request's id in it.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    code: Code,
    status: StatusCode,
    text: String,
    /// What operators read in the log.
    detail: Option<String>,
}

impl ApiError {
    pub(crate) fn new(code: Code, text: impl AsRef<str>) -> Self {
        Self { code, status: status_of(code), text: clean(text.as_ref()), detail: None }
    }

    pub(crate) fn bad(field: &str, expected: &str) -> Self {
        Error::bad(field, expected).into()
    }

    /// A bug of ours that a panic revealed.
    pub(crate) fn panicked(message: &str) -> Self {
        let detail = Some(format!("a handler panicked: {message}"));
        Self { detail, ..Self::new(Code::Internal, "request failed") }
    }

    /// The same for an answer that something other than our handlers made.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        let (code, text) = match status {
            StatusCode::NOT_FOUND => (Code::NoSuchApi, "The API does not exist."),
            StatusCode::METHOD_NOT_ALLOWED => {
                (Code::MethodNotAllowed, "The path does not take this method; see Allow.")
            }
            StatusCode::PAYLOAD_TOO_LARGE => (Code::TooLarge, "The request is too large."),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                (Code::MediaType, "The body must be application/json.")
            }
            StatusCode::UNAUTHORIZED => (Code::Unauthenticated, "authentication failed"),
            StatusCode::FORBIDDEN => (Code::Forbidden, "no permission for this operation"),
            StatusCode::TOO_MANY_REQUESTS => (Code::TooManyRequests, "too many requests"),
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => {
                (Code::Timeout, "the request took too long")
            }
            StatusCode::SERVICE_UNAVAILABLE => (Code::Unavailable, "System not support"),
            other if other.is_client_error() => (Code::BadParameter, "malformed request"),
            _ => (Code::Internal, "request failed"),
        };
        Self { status, ..Self::new(code, text) }
    }

    pub(crate) fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }

    pub(crate) fn body(&self, request_id: Option<String>, form: Form) -> ErrorBody {
        let error = match form {
            Form::Flat => None,
            Form::Keystone => Some(KeystoneError {
                code: self.status.as_u16(),
                message: self.text.clone(),
                title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            }),
        };
        ErrorBody {
            error_code: self.code.as_str().to_owned(),
            error_msg: self.text.clone(),
            request_id,
            error,
        }
    }
}

/// Who will read an error's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// CSBS's two fields.
    Flat,
    /// These, and Keystone's object beside them.
    Keystone,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let detail = match &error {
            Error::Unavailable(_) | Error::Internal(_) => Some(error.to_string()),
            Error::Refused(_)
            | Error::BadParameter { .. }
            | Error::Unauthenticated
            | Error::Forbidden
            | Error::ProjectNotFound
            | Error::RestoreNotFound
            | Error::PlanNotFound
            | Error::TokenNotFound
            | Error::Busy
            | Error::Timeout => None,
        };
        Self { detail, ..Self::new(error.code(), error.public_text()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The text of a refusal as callers get it.
pub(crate) fn refusal_text(refusal: &Refusal) -> String {
    clean(&refusal.to_string())
}

/// Text that may hold a caller's own words, made safe for terminals and bounded.
pub(crate) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for (index, c) in text.chars().enumerate() {
        if index == TEXT_CHARS_MAX {
            cleaned.push('…');
            break;
        }
        if is_unprintable(c) {
            cleaned.extend(c.escape_unicode());
        } else {
            cleaned.push(c);
        }
    }
    cleaned
}

/// Control characters, and those that reorder or hide what stands beside them.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// No `_` arm: a new code without a status does not compile. Published codes have their
/// published status (docs/csbs-v1.md); on `POST /restores` our own say whether asking again
/// can help (503) or not (400; a 409 stops clients).
pub(crate) fn status_of(code: Code) -> StatusCode {
    match code {
        Code::ItemExecuting
        | Code::ItemNotAvailable
        | Code::ServerNotFound
        | Code::ServerTerminated
        | Code::TypeNotProtectable
        | Code::ServerBusy
        | Code::KindNotProtectable
        | Code::NoVolumeToProtect
        | Code::SharedVolumeProtect
        | Code::TypeNotRestorable
        | Code::VolumeNotAttached
        | Code::TargetBusy
        | Code::KindNotRestorable
        | Code::NotOfThisItem
        | Code::PartialRestore
        | Code::NoVolumeToRestore
        | Code::SharedVolumeRestore
        | Code::TargetTooSmall
        | Code::ZoneMismatch
        | Code::ZoneWithoutBackup
        | Code::DedicatedStorage
        | Code::StorageUnsupported
        | Code::TooManyTags
        | Code::BadParameter
        | Code::VolumeNotWritable
        | Code::EncryptionMismatch
        | Code::SnapshotMissing
        | Code::VolumeHeld
        | Code::HalfWritten
        | Code::DataDamaged
        | Code::EvidenceTooWeak
        | Code::ItemLeased
        | Code::PlanMoved
        | Code::NoAvailableBackup
        | Code::TooManyLeases => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Forbidden => StatusCode::FORBIDDEN,
        Code::ItemNotFound
        | Code::NoSuchApi
        | Code::ProjectNotFound
        | Code::RestoreNotFound
        | Code::PlanNotFound
        | Code::TokenNotFound => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        Code::PolicyRunning
        | Code::AutoBackupRunning
        | Code::KindMismatch
        | Code::DataOntoSystem
        | Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Code::Unavailable
        | Code::CloudSilent
        | Code::RepositoryUnreachable
        | Code::KeyUnavailable
        | Code::PlaceNotTold
        | Code::DamageNotLocated => StatusCode::SERVICE_UNAVAILABLE,
        Code::Timeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the published table (docs/csbs-v1.md) says where it is not 400.
    #[test]
    fn published_codes_have_their_published_status() {
        let published = [
            ("CSBS.1001", 500),
            ("CSBS.2003", 400),
            ("CSBS.3001", 404),
            ("CSBS.6019", 500),
            ("CSBS.6023", 500),
            ("CSBS.6030", 500),
            ("CSBS.9001", 400),
            ("CSBS.9998", 503),
            ("CSBS.9999", 500),
        ];
        for (text, status) in published {
            let code = Code::ALL.iter().find(|code| code.as_str() == text).unwrap();
            assert_eq!(status_of(*code).as_u16(), status, "{text}");
        }
        let others = Code::ALL.iter().filter(|code| {
            let text = code.as_str();
            text.starts_with("CSBS.") && published.iter().all(|(known, _)| *known != text)
        });
        for code in others {
            assert_eq!(status_of(*code).as_u16(), 400, "{code}");
        }
    }

    #[test]
    fn no_code_of_ours_has_the_status_that_stops_clients() {
        for code in Code::ALL {
            assert_ne!(status_of(*code), StatusCode::CONFLICT, "{code}");
        }
    }

    #[test]
    fn hostile_text_is_escaped_and_cut() {
        assert_eq!(clean("a\u{1b}[2J\nb\u{202e}c"), "a\\u{1b}[2J\\u{a}b\\u{202e}c");
        let cut = clean(&"x".repeat(TEXT_CHARS_MAX + 1));
        assert_eq!(cut.chars().count(), TEXT_CHARS_MAX + 1);
        assert!(cut.ends_with("x…"));
    }

    #[test]
    fn what_went_wrong_inside_is_for_the_log_only() {
        let error = ApiError::from(Error::Internal("row 17 of table secrets".to_owned()));
        let body = error.body(Some("r-1".to_owned()), Form::Flat);
        assert_eq!(
            serde_json::to_value(&body).unwrap(),
            serde_json::json!({
                "error_code": "CSBS.9999", "error_msg": "request failed", "request_id": "r-1"})
        );
        assert_eq!(error.detail(), Some("row 17 of table secrets"));
    }

    #[test]
    fn keystones_clients_get_their_own_form_beside_the_flat_one() {
        let body = ApiError::from(Error::Unauthenticated).body(None, Form::Keystone);
        assert_eq!(
            serde_json::to_value(&body).unwrap(),
            serde_json::json!({
                "error_code": "KEDGE.4010",
                "error_msg": "authentication failed",
                "error": {
                    "code": 401, "message": "authentication failed", "title": "Unauthorized"}})
        );
    }

    #[test]
    fn an_answer_nobody_of_ours_made_keeps_its_status() {
        for status in [404, 405, 413, 415, 400, 431, 504, 503, 500, 502] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = ApiError::of_status(status);
            assert_eq!(error.into_response().status(), status);
        }
    }
}
