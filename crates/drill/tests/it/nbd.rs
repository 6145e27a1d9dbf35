//! The NBD server, judged by QEMU's client.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;

use kedge_drill::nbd::serve;

use crate::VecDisk;

#[test]
fn qemu_reads_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut bytes: Vec<u8> =
        (0..3_u32 << 20).map(|at| at.to_be_bytes()[(at % 4) as usize]).collect();
    bytes[1 << 20..2 << 20].fill(0);
    let disk = VecDisk(bytes.clone());
    let server = thread::spawn(move || serve(listener.accept().unwrap().0, &disk));

    let copy = dir.path().join("copy");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "raw"]);
    command.arg(format!("nbd+unix:///?socket={}", socket.display())).arg(&copy);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read(copy).unwrap() == bytes);
    server.join().unwrap().unwrap();
}
