//! Repositories in a bucket, on the real program, with moto as the store.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::kedge::{Installation, stderr, stdout};
use crate::site::{Disks, Site, Start};

/// Serves until its input ends, which it does when this process does, however that ends.
const SCRIPT: &str = "\
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
";

/// A stand-in for S3 with an empty bucket `backups`.
struct Moto {
    endpoint: String,
    input: Option<ChildStdin>,
    child: Child,
}

impl Moto {
    fn start() -> Self {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/moto/bin/python");
        assert!(python.exists(), "`cargo xtask needs` installs moto");
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = format!("127.0.0.1:{}", line.trim());
        let mut stream = TcpStream::connect(&address).unwrap();
        let request = format!(
            "PUT /backups HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
        let input = child.stdin.take();
        Self { endpoint: format!("http://{address}"), input, child }
    }

    /// The table of the configuration that names the bucket.
    fn table(&self, credentials: &Path) -> String {
        format!(
            "\n[repositories]\nkind = \"s3\"\nendpoint = \"{}\"\nbucket = \"backups\"\n\
             prefix = \"sites/one\"\ncredentials_file = \"{}\"\n",
            self.endpoint,
            credentials.display()
        )
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

fn write_credentials(path: &Path) {
    let text = "aws_access_key_id = AKID\naws_secret_access_key = hush-hush\n";
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_server_is_backed_up_into_a_bucket_and_restored_and_restic_finds_nothing_wrong() {
    let moto = Moto::start();
    let mut site = Site::new();
    let credentials = site.path("s3.credentials");
    write_credentials(&credentials);
    let mut config = OpenOptions::new().append(true).open(site.path("kedge.toml")).unwrap();
    config.write_all(moto.table(&credentials).as_bytes()).unwrap();

    site.start(Start::Plain);
    let backup = site.protect();
    site.wait_until_available(&backup);
    site.stop();
    let noise = Disks::of_noise(3);
    site.put_disks(&noise);
    site.start(Start::Plain);
    let restore = site.restore(&backup);
    site.wait_until_restored(&backup, &restore);
    site.stop();
    assert!(site.disks() == backup.holds, "other bytes");
    assert!(!site.path("state/repositories").exists());
    let log = site.log_bytes();
    assert!(!String::from_utf8_lossy(&log).contains("hush-hush"));

    let kit = site.recovery_kit();
    let place = &kit["RESTIC_REPOSITORY"];
    let expected = format!("s3:{}/backups/sites/one/", moto.endpoint);
    assert!(place.starts_with(&expected), "{place}");
    let output = Command::new("restic")
        .args(["--no-cache", "check", "--read-data"])
        .envs(&kit)
        .env("AWS_ACCESS_KEY_ID", "AKID")
        .env("AWS_SECRET_ACCESS_KEY", "hush-hush")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));

    // With its state lost, the service still knows that the key belongs to something.
    fs::remove_dir_all(site.path("state")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kedge"))
        .args(["serve", "--config"])
        .arg(site.path("kedge.toml"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(stderr(&output).contains("put it back"), "{}", stderr(&output));
}

#[test]
fn what_is_wrong_with_a_bucket_is_told_with_its_field_before_anything_is_sent() {
    let table = |more: &str| {
        format!(
            "repositories.kind = \"s3\"\nrepositories.endpoint = \"https://s3.invalid\"\n\
             repositories.bucket = \"backups\"\n{more}\n"
        )
    };
    let installation = Installation::new();
    let file = installation.path("s3.credentials");
    let with_file = |more: &str| {
        table(&format!("repositories.credentials_file = \"{}\"\n{more}", file.display()))
    };
    let told = |text: String| {
        installation.configure(&text);
        let output = installation.check();
        stdout(&output) + &stderr(&output)
    };
    let missing = told(with_file(""));
    assert!(missing.contains("repositories.credentials_file"), "{missing}");
    write_credentials(&file);
    assert_eq!(told(with_file("")), "configuration is good\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let open = told(with_file(""));
    assert!(open.contains("0600") && !open.contains("hush-hush"), "{open}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let ca = installation.path("ca.pem");
    let no_ca = told(with_file(&format!("repositories.ca_file = \"{}\"", ca.display())));
    assert!(no_ca.contains("repositories.ca_file"), "{no_ca}");
    let no_bucket = told("repositories.kind = \"s3\"".to_owned());
    assert!(no_bucket.contains("repositories.endpoint"), "{no_bucket}");
    assert!(no_bucket.contains("repositories.bucket"), "{no_bucket}");
}
