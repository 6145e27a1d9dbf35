//! Text to search in. Users and clouds name things as they like; what they wrote is kept
//! in JSON, and these copies of it are what queries compare.

/// Longest needle a `LIKE` is asked for: SQLite refuses patterns of 50,000 bytes, and
/// nothing we store has names of a tenth of that.
const NEEDLE_BYTES_MAX: usize = 4096;

/// The text without NUL, which PostgreSQL cannot store and at which SQLite's functions
/// stop.
pub(crate) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The text such that two texts differing only in case are equal, in every script: the
/// databases' own `lower()` differ, and SQLite's knows ASCII only.
pub(crate) fn folded(text: &str) -> String {
    without_nul(text).chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// A `LIKE` pattern with `ESCAPE '!'` that finds `needle` anywhere in [`folded`] text.
/// `None` when the needle is longer than anything stored.
pub(crate) fn contains_pattern(needle: &str) -> Option<String> {
    let needle = folded(needle);
    if needle.len() > NEEDLE_BYTES_MAX {
        return None;
    }
    let mut pattern = String::from("%");
    for c in needle.chars() {
        if matches!(c, '!' | '%' | '_') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern.push('%');
    Some(pattern)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that [`hex`] wrote. `None` for anything else.
pub(crate) fn unhex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_is_folded_in_every_script() {
        assert_eq!(folded("GRÖSSE"), folded("größe"));
        assert_eq!(folded("ΟΔΟΣ"), folded("οδος"));
        assert_eq!(folded("СЕРВЕР"), folded("сервер"));
        assert_ne!(folded("a"), folded("b"));
    }

    #[test]
    fn a_pattern_holds_no_wildcard_of_the_caller() {
        assert_eq!(contains_pattern("a%_!\\").as_deref(), Some("%a!%!_!!\\%"));
        assert_eq!(contains_pattern(&"x".repeat(NEEDLE_BYTES_MAX + 1)), None);
    }

    #[test]
    fn hexadecimal_digits_read_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("zz"), None);
        assert_eq!(unhex("é0"), None);
    }
}
