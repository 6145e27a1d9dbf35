//! `kedge serve`: starting, stopping, being alone.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::kedge::{Installation, kedge, not_private, run, stderr};

/// A running service and its log.
struct Service {
    child: Child,
    log: BufReader<ChildStderr>,
    address: SocketAddr,
}

impl Service {
    fn start(installation: &Installation) -> Self {
        let mut command = kedge();
        command.arg("serve").arg("--config").arg(installation.config());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut service = Self { child, log, address };
        let line = service.wait_for("serving on http://");
        service.address = line["listen"].as_str().unwrap().parse().unwrap();
        service
    }

    /// Reads the log, which is JSON line by line, up to an event.
    fn wait_for(&mut self, message: &str) -> Value {
        let mut line = String::new();
        let mut seen = String::new();
        loop {
            line.clear();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "no {message:?} in {seen}");
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["message"].as_str().unwrap().starts_with(message) {
                return event;
            }
            seen += &line;
        }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Ended already, unless a test failed.
        let _ = self.child.kill();
    }
}

fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_service_answers_and_what_it_made_is_its_owners_alone() {
    let installation = Installation::new();
    let mut service = Service::start(&installation);
    for path in ["/healthz", "/readyz"] {
        let mut stream = service.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        assert!(answer(stream).starts_with("HTTP/1.1 200"), "{path}");
    }
    assert_eq!(not_private(&installation.path("state")), Vec::<String>::new());
    service.signal(Signal::INT);
    assert!(service.child.wait().unwrap().success());
}

#[test]
fn told_to_stop_a_service_finishes_running_calls_and_ends_well() {
    let installation = Installation::new();
    let mut service = Service::start(&installation);
    let body = r#"{"auth":"#;
    let mut stream = service.connect();
    write!(
        stream,
        "POST /v3/auth/tokens HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    )
    .unwrap();
    // The service asks for the body, so the call is running.
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");

    service.signal(Signal::TERM);
    service.wait_for("told to stop");
    stream.write_all(body.as_bytes()).unwrap();
    assert!(answer(stream).starts_with("HTTP/1.1 400"));
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_a_service_at_once() {
    let installation = Installation::new();
    let mut service = Service::start(&installation);
    let mut stream = service.connect();
    // A call that never ends would be waited for.
    write!(
        stream,
        "POST /v3/auth/tokens HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\
         Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    )
    .unwrap();
    stream.read_exact(&mut [0; 25]).unwrap();
    service.signal(Signal::TERM);
    service.wait_for("told to stop");
    service.signal(Signal::TERM);
    assert_eq!(service.child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_state_directory_serves_one_process() {
    let installation = Installation::new();
    let mut service = Service::start(&installation);
    let config = installation.config();
    let second = run(["serve", "--config", config.to_str().unwrap()]);
    assert!(!second.status.success());
    assert!(stderr(&second).contains("catalogue"), "{}", stderr(&second));
    service.signal(Signal::TERM);
    assert!(service.child.wait().unwrap().success());
}
