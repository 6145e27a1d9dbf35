//! A stand-in for S3: moto, started by the tests themselves, once per process.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kedge_engine::{
    Addressing, S3Backend, S3Bucket, S3Credential, S3Credentials, S3Options, S3Timeouts,
};
use tokio::runtime::Runtime;

pub(crate) const BUCKET: &str = "backups";
pub(crate) const ACCESS_KEY: &str = "kedge-test-key";
pub(crate) const SECRET_KEY: &str = "kedge-test-secret";

const SCRIPT: &str = include_str!("moto.py");

/// The running server.
#[derive(Debug)]
pub(crate) struct Moto {
    port: u16,
    tls_port: u16,
    /// The certificate of the port with TLS, signed by itself.
    pub(crate) certificate_pem: Vec<u8>,
    _child: Child,
    _input: ChildStdin,
}

impl Moto {
    /// The one of this process.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Moto> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let python = workspace().join("target/moto/bin/python");
        assert!(
            python.exists(),
            "these tests need moto at {}: `cargo xtask needs` installs it",
            python.display()
        );
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Vec<_> = line.split_whitespace().collect();
        let [port, tls_port, pem] = told[..] else { panic!("moto tells its ports: {line:?}") };
        let moto = Self {
            port: port.parse().unwrap(),
            tls_port: tls_port.parse().unwrap(),
            certificate_pem: bytes_of(pem),
            _input: child.stdin.take().unwrap(),
            _child: child,
        };
        moto.create_bucket();
        moto
    }

    /// moto asks nobody who they are.
    fn create_bucket(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let host = format!("127.0.0.1:{}", self.port);
        let request = format!(
            "PUT /{BUCKET} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn tls_endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.tls_port)
    }
}

fn bytes_of(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Where the needs of the tests are installed.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What requests run on.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap())
}

/// A prefix nothing was ever stored under.
pub(crate) fn fresh_prefix() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let process = std::process::id();
    format!("tests/{process}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn credential() -> S3Credential {
    S3Credential {
        access_key_id: ACCESS_KEY.to_owned(),
        secret_access_key: SECRET_KEY.to_owned().into(),
        session_token: None,
    }
}

pub(crate) fn options(endpoint: String) -> S3Options {
    S3Options {
        endpoint,
        bucket: BUCKET.to_owned(),
        region: "us-east-1".to_owned(),
        addressing: Addressing::Path,
        ca_pem: None,
        timeouts: S3Timeouts::default(),
    }
}

/// For those who ask again: a slow machine makes trouble that passes out of it.
pub(crate) fn impatient() -> S3Timeouts {
    let second = Duration::from_secs(1);
    S3Timeouts { connect: 5 * second, idle: second / 2, request: second }
}

pub(crate) fn bucket(options: &S3Options, credentials: Arc<dyn S3Credentials>) -> S3Bucket {
    S3Bucket::new(options, credentials, runtime().handle().clone()).unwrap()
}

/// A fresh place in moto.
pub(crate) fn in_moto() -> S3Backend {
    let options = options(Moto::shared().endpoint());
    bucket(&options, Arc::new(credential())).repository(&fresh_prefix())
}
