//! What the domain promises to readers outside the code.

use std::path::Path;

use kedge_core::code::Code;

const HEAD: &str = "\
# Error codes

Generated from `crates/core/src/code.rs` by `cargo xtask gen`; do not edit.

Codes that start with `CSBS` or `APIGW` are those of the published API. Conditions it has no code
for start with `KEDGE`.

| code | meaning |
|---|---|
";

#[test]
#[expect(clippy::disallowed_methods, reason = "the person who runs the test decides to rewrite")]
fn docs_error_codes_are_in_step() {
    let rows = Code::ALL.iter().map(|code| format!("| `{code}` | {} |\n", code.meaning()));
    let generated: String = std::iter::once(HEAD.to_owned()).chain(rows).collect();

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/error-codes.md");
    if std::env::var("KEDGE_BLESS").is_ok() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(committed, generated, "out of step; `cargo xtask gen` writes it anew");
}
