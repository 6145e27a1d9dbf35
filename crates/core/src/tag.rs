//! Tags: a key and a value that users put on backups (docs/csbs-v1.md).

use std::fmt;

/// Most tags one object may carry (docs/csbs-v1.md).
pub const TAGS_MAX: usize = 10;
const KEY_CHARS_MAX: usize = 36;
const VALUE_CHARS_MAX: usize = 43;

/// One tag, blanks around key and value stripped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    key: String,
    value: String,
}

/// What is wrong with a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadTag {
    /// The key is empty, too long or holds a character that is not allowed.
    Key,
    /// The value is too long or holds a character that is not allowed.
    Value,
}

impl fmt::Display for BadTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key => write!(f, "1 to {KEY_CHARS_MAX} letters, digits, '-' or '_'"),
            Self::Value => write!(f, "0 to {VALUE_CHARS_MAX} letters, digits, '-' or '_'"),
        }
    }
}

impl Tag {
    /// A tag within the published limits.
    ///
    /// # Errors
    /// Says which half is out of bounds.
    pub fn new(key: &str, value: &str) -> Result<Self, BadTag> {
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || !is_tag_text(key, KEY_CHARS_MAX) {
            return Err(BadTag::Key);
        }
        if !is_tag_text(value, VALUE_CHARS_MAX) {
            return Err(BadTag::Value);
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }

    /// The key, never empty.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The value, possibly empty.
    pub fn value(&self) -> &str {
        &self.value
    }
}

/// The manual speaks of Unicode characters, so letters of every script count.
fn is_tag_text(text: &str, chars_max: usize) -> bool {
    text.chars().count() <= chars_max
        && text.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_stripped_and_bounded() {
        let tag = Tag::new(" env ", " prod ").unwrap();
        assert_eq!((tag.key(), tag.value()), ("env", "prod"));
        assert!(Tag::new("Größe", "").is_ok());
        assert_eq!(Tag::new(" ", "x"), Err(BadTag::Key));
        assert_eq!(Tag::new(&"k".repeat(37), "x"), Err(BadTag::Key));
        assert_eq!(Tag::new("k", &"v".repeat(44)), Err(BadTag::Value));
        assert_eq!(Tag::new("k", "a/b"), Err(BadTag::Value));
    }
}
