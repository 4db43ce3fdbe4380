//! What the worker's confinement refuses, and what it kills for: each call by a process of its own, which is this test
//! run again. Needs root.

use rustix::fs::Uid;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketType, ipproto, socket};
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets};
use sluice_proxy::confine::{User, confine};
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};

/// Says to the process that is started what to do.
const CALL: &str = "SLUICE_TEST_CALL";
/// It was refused, and lives.
const REFUSED: i32 = 40;
/// It was not.
const DONE: i32 = 41;

fn told<T>(result: &Result<T, Errno>) -> i32 {
    match result {
        Ok(_) => DONE,
        Err(Errno::PERM) => REFUSED,
        Err(_) => 1,
    }
}

fn opened(family: AddressFamily, kind: SocketType, protocol: Option<Protocol>) -> i32 {
    told(&socket(family, kind, protocol))
}

/// What a confined process does, having made sure that it is one.
fn call(name: &str) -> i32 {
    let own = std::fs::File::open("/proc/self/ns/net").expect("mounted");
    confine(User::default()).expect("root may");
    let file = |path: &str| match std::fs::File::open(path) {
        Ok(_) => DONE,
        Err(error) => told::<()>(&Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
    };
    match name {
        "execve" => drop(Command::new("/bin/true").exec()),
        "setns" => drop(rustix::thread::move_into_link_name_space(own.as_fd(), None)),
        "mount" => drop(rustix::mount::mount_bind("/proc", "/tmp")),
        "memfd_create" => drop(rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::empty())),
        "capset" => {
            let empty = CapabilitySet::empty();
            let sets = CapabilitySets { effective: empty, permitted: empty, inheritable: empty };
            let _ = rustix::thread::set_capabilities(None, sets);
        }
        "a process" => {
            return match Command::new("/bin/true").status() {
                Ok(_) => DONE,
                Err(_) => REFUSED,
            };
        }
        "open" => return file("/etc/passwd"),
        "own memory" => return file("/proc/self/mem"),
        "kill" => return told(&rustix::process::test_kill_process(rustix::process::Pid::INIT)),
        "raw socket" => return opened(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)),
        "datagrams" => return opened(AddressFamily::INET6, SocketType::DGRAM, None),
        "netlink" => return opened(AddressFamily::NETLINK, SocketType::RAW, None),
        "packets" => return opened(AddressFamily::PACKET, SocketType::RAW, None),
        "unix" => return opened(AddressFamily::UNIX, SocketType::STREAM, None),
        "root again" => return told(&rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)),
        "a transparent stream" => {
            for (domain, address) in [(Domain::IPV4, "203.0.113.7:0"), (Domain::IPV6, "[2001:db8::7]:0")] {
                let socket = Socket::new(domain, Type::STREAM, None).expect("allowed");
                match domain {
                    Domain::IPV4 => socket.set_ip_transparent_v4(true),
                    _ => socket.set_ip_transparent_v6(true),
                }
                .expect("what the capability is kept for");
                let address: SocketAddr = address.parse().expect("an address");
                socket.bind(&address.into()).expect("somebody else's address");
            }
            std::thread::spawn(|| ()).join().expect("threads may be started");
            return DONE;
        }
        _ => {}
    }
    // What should have killed has not.
    0
}

/// How a process ends that does this.
fn end_of(name: &str) -> ExitStatus {
    let own = std::env::current_exe().expect("a test");
    let mut child = Command::new(own);
    child.args(["--exact", "the_process_that_calls", "--nocapture"]).env(CALL, name);
    child.stdout(Stdio::null()).status().expect("started")
}

#[test]
fn the_process_that_calls() {
    // In the ordinary run there is nothing to do.
    let Some(name) = std::env::var_os(CALL) else { return };
    std::process::exit(call(&name.to_string_lossy()));
}

#[test]
fn what_only_an_intruder_asks_the_kernel_for_kills_the_worker() {
    for name in ["execve", "setns", "mount", "memfd_create", "capset"] {
        let end = end_of(name);
        assert_eq!(end.signal(), Some(Signal::SYS.as_raw()), "{name}: {end}");
    }
}

#[test]
fn what_the_worker_never_needs_is_refused() {
    for name in [
        "a process",
        "open",
        "own memory",
        "kill",
        "raw socket",
        "datagrams",
        "netlink",
        "packets",
        "unix",
        "root again",
    ] {
        assert_eq!(end_of(name).code(), Some(REFUSED), "{name}");
    }
    assert_eq!(end_of("a transparent stream").code(), Some(DONE));
}
