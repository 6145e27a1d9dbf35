//! `kedge config check`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::kedge::{Installation, run, stderr, stdout};

#[test]
fn a_good_configuration_is_called_good_and_nothing_is_made() {
    let installation = Installation::new();
    let output = installation.check();
    assert_eq!(stdout(&output), "configuration is good\n", "{}", stderr(&output));
    assert!(output.status.success());
    assert!(!installation.path("state").exists());
}

/// Each row breaks one thing and says what must be told of it.
#[test]
fn whatever_is_wrong_is_told_with_its_field() {
    type Break = fn(&Installation);
    let open = |path: std::path::PathBuf, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let rows: [(&str, Break); 8] = [
        ("colour", |i| i.configure("colour = \"red\"")),
        ("workers", |i| i.configure("workers = 0")),
        ("listen", |i| i.configure("listen = \"0.0.0.0:80\"")),
        ("cloud.servers_dir", |i| fs::remove_dir(i.path("servers")).unwrap()),
        ("users", |i| fs::remove_file(i.path("users.toml")).unwrap()),
        ("users", |i| fs::write(i.path("users.toml"), "[[user]]\nname = 1\n").unwrap()),
        ("service_key", |i| {
            i.configure(&format!("service_key = \"{}\"", i.path("key").display()));
            fs::write(i.path("key"), "no key").unwrap();
            fs::set_permissions(i.path("key"), fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("state_dir", |i| {
            fs::create_dir(i.path("state")).unwrap();
            fs::set_permissions(i.path("state"), fs::Permissions::from_mode(0o755)).unwrap();
        }),
    ];
    for (field, break_it) in rows {
        let installation = Installation::new();
        break_it(&installation);
        let output = installation.check();
        let told = stdout(&output) + &stderr(&output);
        assert!(!output.status.success(), "{field}: {told}");
        assert!(told.contains(field), "{field}: {told}");
        assert!(!told.contains("is good"), "{field}: {told}");
    }
    let installation = Installation::new();
    open(installation.path("users.toml"), 0o644);
    assert!(stdout(&installation.check()).contains("0644"));
}

#[test]
fn plain_http_beyond_loopback_is_refused_by_the_service_itself() {
    let installation = Installation::new();
    installation.configure("listen = \"0.0.0.0:0\"");
    let config = installation.config();
    let output = run(["serve", "--config", config.to_str().unwrap()]);
    assert!(!output.status.success());
    let told = stderr(&output);
    assert!(told.contains("allow_plain_http_beyond_loopback"), "{told}");
    assert!(!installation.path("state").exists());
}
