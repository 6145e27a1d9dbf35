//! Why a call did not do what was asked, told apart for callers and operators.

use kedge_core::code::Code;
use kedge_core::refusal::Refusal;
use kedge_store::StoreError;

/// The three kinds of trouble, and trouble with the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The answer is no.
    #[error("{0}")]
    Refused(Refusal),
    /// A parameter is malformed.
    #[error("{field}: expected {expected}")]
    BadParameter {
        /// Which, as a path into the request: `restore.parameters.power_on`.
        field: String,
        /// What would have been right.
        expected: String,
    },
    /// No token, or not a valid one; or a wrong user or password.
    #[error("authentication failed")]
    Unauthenticated,
    /// Valid, but not entitled.
    #[error("no permission for this operation")]
    Forbidden,
    /// An administrator named a project that does not exist.
    #[error("project is not found")]
    ProjectNotFound,
    /// No such restore in the project.
    #[error("restore is not found")]
    RestoreNotFound,
    /// No such plan in the project.
    #[error("plan is not found")]
    PlanNotFound,
    /// The token asked about is no valid token.
    #[error("token is not found")]
    TokenNotFound,
    /// Too much at once; try again later.
    #[error("too many requests, try again later")]
    Busy,
    /// The request's time is over.
    #[error("the request took too long")]
    Timeout,
    /// The catalogue or the identity service does not answer; the text is for operators.
    #[error("{0}")]
    Unavailable(String),
    /// A failure or bug of ours; the text is for operators.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// A malformed parameter.
    pub fn bad(field: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::BadParameter { field: field.into(), expected: expected.into() }
    }

    /// The code a caller's program reads.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::BadParameter { .. } => Code::BadParameter,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::Forbidden => Code::Forbidden,
            Self::ProjectNotFound => Code::ProjectNotFound,
            Self::RestoreNotFound => Code::RestoreNotFound,
            Self::PlanNotFound => Code::PlanNotFound,
            Self::TokenNotFound => Code::TokenNotFound,
            Self::Busy => Code::TooManyRequests,
            Self::Timeout => Code::Timeout,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Internal(_) => Code::Internal,
        }
    }

    /// The text a caller reads. What went wrong inside us is not theirs to see.
    pub fn public_text(&self) -> String {
        match self {
            Self::Refused(_)
            | Self::BadParameter { .. }
            | Self::Unauthenticated
            | Self::Forbidden
            | Self::ProjectNotFound
            | Self::RestoreNotFound
            | Self::PlanNotFound
            | Self::TokenNotFound
            | Self::Busy
            | Self::Timeout => self.to_string(),
            Self::Unavailable(_) => "System not support".to_owned(),
            Self::Internal(_) => "request failed".to_owned(),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for Error {
    /// What the catalogue says to a call that did not expect it. Calls that do, such as one
    /// that lost a race for a claim, look at the error first.
    fn from(error: StoreError) -> Self {
        if error.is_retryable() {
            Self::Unavailable(error.to_string())
        } else {
            Self::Internal(error.to_string())
        }
    }
}
