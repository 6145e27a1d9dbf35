//! `kedge user hash`, and what is refused on the command line.

use crate::kedge::{run, run_with_stdin, stderr, stdout};

#[test]
fn a_password_is_hashed_from_standard_input_and_never_shown() {
    let output = run_with_stdin(&["user", "hash"], "correct horse\n");
    assert!(output.status.success());
    let hash = stdout(&output);
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    assert!(!(hash + &stderr(&output)).contains("horse"));
}

#[test]
fn the_same_password_never_hashes_alike_twice() {
    let hash = || stdout(&run_with_stdin(&["user", "hash"], "correct horse"));
    assert_ne!(hash(), hash());
}

#[test]
fn what_is_no_password_is_refused() {
    for text in ["", "\n", "two\nlines\n", &"x".repeat(2000)] {
        let output = run_with_stdin(&["user", "hash"], text);
        assert!(!output.status.success(), "{text:?}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn no_verb_takes_a_secret_as_an_argument() {
    assert!(!run(["user", "hash", "secret"]).status.success());
    let kit = ["repo", "recovery-kit", "--config", "c", "--project", "p"];
    let output = run(kit);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("--out"), "printing needs --stdout: {}", stderr(&output));
}
