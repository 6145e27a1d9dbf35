//! Which licences and which crates may be in the tree.
//!
//! Kedge is Apache-2.0 and is shipped as one statically linked binary, so nothing in it
//! may carry a licence that reaches over to our source: no MPL, GPL, LGPL or AGPL unless
//! the author leaves us another choice.

use serde::Deserialize;

use crate::process::{output, program};
use crate::{During, Failure};

const ALLOWED: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// A crate that must not come in, and why.
struct Ban {
    name: &'static str,
    reason: &'static str,
}

const BANS: [Ban; 6] = [
    Ban { name: "aws-lc-rs", reason: "TLS uses ring; one crypto library is enough" },
    Ban { name: "aws-lc-sys", reason: "TLS uses ring; this one wants cmake" },
    Ban { name: "bindgen", reason: "wants libclang; the build needs Rust and gcc only" },
    Ban { name: "cmake", reason: "the build needs Rust and gcc only" },
    Ban { name: "openssl", reason: "the binary runs where nothing else is installed" },
    Ban { name: "openssl-sys", reason: "the binary runs where nothing else is installed" },
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

/// Reads the whole resolved tree and complains about all offenders at once.
pub(crate) fn check() -> Result<(), Failure> {
    let arguments = ["metadata", "--locked", "--format-version", "1"];
    let text = output(&mut program("cargo", &arguments))?;
    let metadata: Metadata = serde_json::from_str(&text).during("cargo metadata")?;
    let complaints: Vec<String> = metadata.packages.iter().filter_map(complaint).collect();
    if !complaints.is_empty() {
        return Err(Failure(complaints.join("\n")));
    }
    println!("{} packages, all of them under allowed licences", metadata.packages.len());
    Ok(())
}

fn complaint(package: &Package) -> Option<String> {
    let Package { name, version, license } = package;
    if let Some(ban) = BANS.iter().find(|ban| ban.name == name) {
        return Some(format!("{name} {version} is banned: {}", ban.reason));
    }
    match license {
        None => Some(format!("{name} {version} names no licence")),
        Some(expression) if !is_allowed(expression) => {
            Some(format!("{name} {version} has licence {expression:?}, which is not allowed"))
        }
        Some(_) => None,
    }
}

/// Whether an SPDX expression leaves us a choice made of allowed licences only. What does
/// not parse is not allowed.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words: Words = spaced.split_whitespace().peekable();
    any_of(&mut words) == Some(true) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// `a OR b`; binds weaker than `AND`. `None` is a syntax error.
fn any_of(words: &mut Words<'_>) -> Option<bool> {
    let mut allowed = all_of(words)?;
    while words.next_if_eq(&"OR").is_some() {
        allowed |= all_of(words)?;
    }
    Some(allowed)
}

fn all_of(words: &mut Words<'_>) -> Option<bool> {
    let mut allowed = one(words)?;
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words)?;
    }
    Some(allowed)
}

/// A licence or a group. `WITH` only ever adds permissions, so the licence decides.
fn one(words: &mut Words<'_>) -> Option<bool> {
    let allowed = match words.next()? {
        "(" => {
            let inner = any_of(words)?;
            words.next_if_eq(&")")?;
            inner
        }
        ")" | "OR" | "AND" | "WITH" => return None,
        licence => ALLOWED.contains(&licence),
    };
    if words.next_if_eq(&"WITH").is_some() {
        words.next()?;
    }
    Some(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_allowed_when_one_of_its_choices_is() {
        let rows = [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("MPL-2.0 OR MIT", true),
            ("MPL-2.0", false),
            ("MIT AND MPL-2.0", false),
            ("Apache-2.0 AND ISC", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND LGPL-2.1-or-later", false),
            ("MIT OR Apache-2.0 AND LGPL-2.1-or-later", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-2.0-only WITH Classpath-exception-2.0", false),
            ("", false),
            ("MIT OR", false),
            ("(MIT", false),
            ("MIT MIT", false),
        ];
        for (expression, expected) in rows {
            assert_eq!(is_allowed(expression), expected, "{expression:?}");
        }
    }

    #[test]
    fn a_banned_crate_is_named_with_the_reason_even_under_an_allowed_licence() {
        let package = |name: &str, license: Option<&str>| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
        };
        let banned = complaint(&package("cmake", Some("MIT"))).unwrap();
        assert_eq!(banned, "cmake 1.0.0 is banned: the build needs Rust and gcc only");
        assert_eq!(complaint(&package("cc", Some("MIT"))), None);
        assert!(complaint(&package("nobody", None)).unwrap().contains("no licence"));
    }
}
