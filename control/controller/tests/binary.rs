//! The binary itself: its socket, its signals, its exit codes.

mod common;

use common::{DEADLINE, WORLD, policy};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn home() -> TempDir {
    let home = tempfile::tempdir().expect("a directory");
    fs::create_dir(home.path().join("objects")).expect("a directory");
    fs::write(home.path().join("objects/world.yaml"), WORLD).expect("written");
    home
}

fn control(home: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-control"));
    command.arg("--dir").arg(home.path().join("objects")).env("RUST_LOG", "info").stdin(Stdio::null());
    command
}

fn listening(home: &TempDir) -> Command {
    let mut command = control(home);
    command.arg("--listen").arg(format!("unix:{}", home.path().join("control.sock").display()));
    command
}

/// Ends the child with the test, whatever becomes of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stderr(Stdio::null()).spawn().expect("starts"))
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).expect("sent");
    }

    fn ended(&mut self) -> Option<i32> {
        let mut code = None;
        until("the process ends", || {
            code = self.0.try_wait().expect("known");
            code.is_some()
        });
        code.expect("ended").code()
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

fn text(output: &Output) -> (Option<i32>, String) {
    let both = [output.stdout.clone(), output.stderr.clone()].concat();
    (output.status.code(), String::from_utf8_lossy(&both).into_owned())
}

#[test]
fn sigterm_ends_it_cleanly_and_its_socket_goes_with_it() {
    let home = home();
    let socket = home.path().join("control.sock");
    let status = home.path().join("status.json");
    let mut running = Running::start(listening(&home).arg("--status-file").arg(&status));
    until("it listens", || answers(&socket));
    until("it writes its status", || status.exists());
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(&status), 0o600);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.ended(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_dead_controls_socket_is_replaced_and_a_living_ones_is_not() {
    let home = home();
    let socket = home.path().join("control.sock");
    drop(UnixListener::bind(&socket).expect("bound"));
    // A child that another test starts at this moment holds the listener until its exec.
    until("nobody listens", || !answers(&socket));
    assert!(socket.exists(), "a stale file");
    let _running = Running::start(&mut listening(&home));
    until("it listens", || answers(&socket));
    let (code, said) = text(&listening(&home).output().expect("starts"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another control is listening"), "{said}");
    assert!(answers(&socket), "the first one still answers");
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let home = home();
    let socket = home.path().join("control.sock");
    fs::write(&socket, "precious").expect("written");
    let (code, said) = text(&listening(&home).output().expect("starts"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no socket"), "{said}");
    assert_eq!(fs::read_to_string(&socket).expect("there"), "precious");
}

#[test]
fn a_check_says_what_is_wrong_and_fails_only_then() {
    let home = home();
    let check = || text(&control(&home).args(["--once", "--check"]).output().expect("starts"));
    fs::write(home.path().join("objects/policy.yaml"), policy("/api")).expect("written");
    let (code, said) = check();
    assert_eq!(code, Some(0), "{said}");
    fs::write(home.path().join("objects/policy.yaml"), policy("/api").replace("ports:", "prots:"))
        .expect("written");
    let (code, said) = check();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("policy.yaml:") && said.contains("prots"), "{said}");
    fs::remove_dir_all(home.path().join("objects")).expect("removed");
    let (code, said) = check();
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = text(&listening(&home).output().expect("starts"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--dir is a directory of manifests"), "{said}");
}
