//! Names that people gave, made harmless: what becomes a folder, a host name or a tag in a
//! repository holds no path, no control character, no surprise for a shell or terminal.

const CHARS_MAX: usize = 48;

/// The name's letters, digits, `.`, `_` and `-`; everything else becomes `_`. Never empty,
/// never begins with a dot or a hyphen.
pub(crate) fn plain_name(name: &str, otherwise: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }
    };
    let plain: String = name.chars().take(CHARS_MAX).map(plain).collect();
    let plain = plain.trim_start_matches(['.', '-']);
    if plain.is_empty() { otherwise.to_owned() } else { plain.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_becomes_a_path_or_an_escape() {
        for (name, expected) in [
            ("web-1", "web-1"),
            ("..", "disk"),
            ("", "disk"),
            ("../../etc/passwd", "_.._etc_passwd"),
            ("a/b\0c\nd", "a_b_c_d"),
            ("\x1b[31mred", "_[31mred".replace('[', "_").as_str()),
            ("-rf", "rf"),
            ("Größe", "Gr__e"),
        ] {
            assert_eq!(plain_name(name, "disk"), expected, "{name:?}");
        }
        assert_eq!(plain_name(&"x".repeat(500), "disk").len(), CHARS_MAX);
    }
}
