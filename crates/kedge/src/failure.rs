//! What went wrong, as one line for the person who typed the command.

use std::fmt;

/// Ends the program with a message.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what was being done when something failed.
pub(crate) trait OrFail<T> {
    fn or_fail(self, doing: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> OrFail<T> for Result<T, E> {
    fn or_fail(self, doing: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("{doing}: {error}")))
    }
}

impl<T> OrFail<T> for Option<T> {
    fn or_fail(self, doing: impl fmt::Display) -> Result<T, Failure> {
        self.ok_or_else(|| Failure(doing.to_string()))
    }
}
