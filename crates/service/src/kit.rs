//! The recovery kit: what stock restic needs, as two shell lines in a file.
//!
//! What is written is read back as it was, whatever it holds. What was not written here is
//! not guessed at: a shell could do anything with it.

use std::fmt::Write as _;

use kedge_engine::Password;
use zeroize::Zeroizing;

const REPOSITORY: &str = "RESTIC_REPOSITORY";
const PASSWORD: &str = "RESTIC_PASSWORD";

/// Where a repository lies and what opens it. A secret; its place is a file only its owner
/// can read.
#[derive(Debug)]
pub struct RecoveryKit {
    /// What `RESTIC_REPOSITORY` says.
    pub location: String,
    /// What `RESTIC_PASSWORD` says.
    pub password: Password,
}

/// Why a text is no recovery kit. Tells nothing of what the text holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KitError {
    /// A line is neither a comment nor one of the two.
    #[error("line {0}: expected RESTIC_REPOSITORY='…' or RESTIC_PASSWORD='…'")]
    Line(usize),
    /// One of the two stands there twice.
    #[error("line {0}: given before")]
    Twice(usize),
    /// One of the two is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
}

impl RecoveryKit {
    /// The kit as a shell and [`RecoveryKit::parse`] read it.
    pub fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(1024));
        text.push_str(
            "# What stock restic needs to read this project's backups. Keep it secret.\n",
        );
        // Writing to a string does not fail.
        let _ = writeln!(text, "{REPOSITORY}={}", shell_quoted(&self.location));
        let password = Zeroizing::new(shell_quoted(self.password.expose()));
        let _ = writeln!(text, "{PASSWORD}={}", *password);
        text
    }

    /// Reads the two lines. Empty lines and comments may stand between them.
    pub fn parse(text: &str) -> Result<Self, KitError> {
        let (mut location, mut password) = (None, None);
        for (number, line) in (1..).zip(text.lines()) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, word) = line.split_once('=').ok_or(KitError::Line(number))?;
            let place = match name {
                REPOSITORY => &mut location,
                PASSWORD => &mut password,
                _ => return Err(KitError::Line(number)),
            };
            let word = Zeroizing::new(unquoted(word).ok_or(KitError::Line(number))?);
            if place.replace(word).is_some() {
                return Err(KitError::Twice(number));
            }
        }
        let location = location.ok_or(KitError::Missing(REPOSITORY))?;
        let password = password.ok_or(KitError::Missing(PASSWORD))?;
        Ok(Self { location: location.to_string(), password: Password::new(password.as_str()) })
    }
}

/// A word as a POSIX shell reads it back, whatever it holds.
fn shell_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What [`shell_quoted`] quoted; `None` for anything else.
fn unquoted(text: &str) -> Option<String> {
    let inner = text.strip_prefix('\'')?.strip_suffix('\'')?;
    let parts: Vec<&str> = inner.split(r"'\''").collect();
    let is_plain = parts.iter().all(|part| !part.contains('\''));
    is_plain.then(|| parts.join("'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit(location: &str, password: &str) -> RecoveryKit {
        RecoveryKit { location: location.to_owned(), password: Password::new(password) }
    }

    #[test]
    fn what_is_written_is_read_back_whatever_it_holds() {
        for word in ["/srv/it's here", "", "'", "''", r"'\''", "$(reboot) `x` \"y\" \\", "ä #"] {
            let read = RecoveryKit::parse(&kit(word, word).text()).unwrap();
            assert_eq!((read.location.as_str(), read.password.expose()), (word, word));
        }
    }

    #[test]
    fn a_quoted_word_survives_the_shell() {
        assert_eq!(shell_quoted("/srv/it's here"), r"'/srv/it'\''s here'");
    }

    #[test]
    fn what_is_no_kit_is_refused_by_its_line() {
        let good = "RESTIC_REPOSITORY='r'\nRESTIC_PASSWORD='p'\n";
        assert!(RecoveryKit::parse(good).is_ok());
        for (text, expected) in [
            ("", KitError::Missing("RESTIC_REPOSITORY")),
            ("RESTIC_REPOSITORY='r'\n", KitError::Missing("RESTIC_PASSWORD")),
            ("\nexport RESTIC_REPOSITORY='r'\n", KitError::Line(2)),
            ("RESTIC_REPOSITORY=r\n", KitError::Line(1)),
            ("RESTIC_REPOSITORY='r\n", KitError::Line(1)),
            ("RESTIC_REPOSITORY='\n", KitError::Line(1)),
            ("RESTIC_REPOSITORY='r';reboot\n", KitError::Line(1)),
            ("RESTIC_REPOSITORY='r'reboot'x'\n", KitError::Line(1)),
            ("RESTIC_PASSWORD='p'\nRESTIC_PASSWORD='q'\n", KitError::Twice(2)),
            ("PATH='/tmp'\n", KitError::Line(1)),
            ("reboot\n", KitError::Line(1)),
        ] {
            assert_eq!(RecoveryKit::parse(text).unwrap_err(), expected, "{text:?}");
        }
    }
}
