//! The worker as a process of its own, in a network namespace of its own: confined, told, dying with its agent.
//! Needs root.

mod common;

use bytes::Bytes;
use common::{CART, CLIENT, DEADLINE, INTRUDER, Rules, shop, snapshot, soon};
use rustix::process::Signal;
use sluice_proxy::agent::child::{Event, Launch, start, supervise};
use sluice_proxy::channel::{FromWorker, Receiver, Swapped, ToWorker};
use sluice_proxy::confine::{User, WORKER_ID};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use tokio_util::sync::CancellationToken;

/// A network namespace; gone with the process that holds it.
struct Netns {
    holder: Child,
    fd: OwnedFd,
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Netns {
    fn new() -> Self {
        // `cat` ends when the test does, even if it is killed.
        let mut holder = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "ip link set lo up && echo up && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there");
        let mut said = [0; 3];
        holder.stdout.as_mut().expect("piped").read_exact(&mut said).expect("root may make namespaces");
        let fd = fs::File::open(format!("/proc/{}/ns/net", holder.id())).expect("it lives").into();
        Self { holder, fd }
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(self.fd.as_fd(), None).expect("root may enter");
                work()
            });
            inside.join().expect("no panic")
        })
    }

    /// A connection that is reset at once may show it here already.
    fn connect(&self, from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
        self.within(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(from, 0).into())?;
            socket.connect_timeout(&to.into(), DEADLINE)?;
            socket.set_read_timeout(Some(DEADLINE))?;
            Ok(socket.into())
        })
    }
}

/// Everything to the end.
fn ask(stream: io::Result<TcpStream>, request: &str) -> io::Result<String> {
    let mut stream = stream?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map(|_| answer)
}

fn order(sequence: u64, bytes: Vec<u8>) -> ToWorker {
    ToWorker { sequence, snapshot: Some(Bytes::from(bytes)), ..ToWorker::default() }
}

async fn swapped(receiver: &mut Receiver) -> Swapped {
    soon("the swap", async {
        loop {
            let message: FromWorker = receiver.receive().await.expect("the worker speaks").expect("it lives");
            if let Some(swapped) = message.swapped {
                return swapped;
            }
        }
    })
    .await
}

fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field of status");
    line.trim_start_matches(':').trim().to_owned()
}

#[tokio::test]
async fn it_is_confined_judges_by_what_it_was_told_and_dies_with_its_agent() {
    let netns = Netns::new();
    // Bound to no address of its own, so that a connection to CART is not taken for a loop.
    let any = netns.within(|| TcpListener::bind("0.0.0.0:0")).expect("a free port");
    let own = netns.within(|| TcpListener::bind(SocketAddr::new(CART, 0))).expect("a free port");
    let to = SocketAddr::new(CART, any.local_addr().expect("bound").port());
    let to_itself = own.local_addr().expect("bound");
    let launch = Launch {
        binary: env!("CARGO_BIN_EXE_sluice-proxy").into(),
        netns: netns.fd.try_clone().expect("a copy"),
        listeners: vec![any, own],
        threads: 1,
        user: User::default(),
        patient: false,
    };
    let (mut child, mut sender, mut receiver) = start(&launch).expect("started");
    let pid = child.id().expect("it lives");

    let denied = "DELETE /api HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n";
    // Comes before the first snapshot, and waits for it.
    let early = netns.connect(CLIENT, to);
    sender.send(&order(1, sluice_wire::to_bytes(&snapshot(1, &shop())))).await.expect("sent");
    assert_eq!(swapped(&mut receiver).await, Swapped { sequence: 1, ..Swapped::default() });
    for stream in [early, netns.connect(CLIENT, to)] {
        let answer = ask(stream, denied).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
    for (who, stream) in
        [("an intruder", netns.connect(INTRUDER, to)), ("a loop", netns.connect(CLIENT, to_itself))]
    {
        let error = ask(stream, denied).expect_err(who);
        let reset = matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        assert!(reset, "{who}: {error}");
    }

    // Only CAP_NET_RAW, and no way to more.
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(u64::from_str_radix(&status(pid, set), 16), Ok(1 << 13), "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status(pid, set), 16), Ok(0), "{set}");
    }
    // Another user, of one group; under a filter of system calls.
    for id in ["Uid", "Gid"] {
        let all: Vec<u32> =
            status(pid, id).split_whitespace().map(|id| id.parse().expect("a number")).collect();
        assert_eq!(all, [WORKER_ID; 4], "{id}");
    }
    assert_eq!(status(pid, "Groups"), "");
    assert_eq!((status(pid, "NoNewPrivs"), status(pid, "Seccomp")), ("1".to_owned(), "2".to_owned()));
    // Not dumpable: what is in /proc of it is root's.
    let owner =
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/fd")).expect("it lives"));
    assert_eq!(owner, 0);
    let kinds = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it lives")
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let kinds: Vec<_> = kinds.map(|kind| kind.to_string_lossy().into_owned()).collect();
    assert!(!kinds.iter().any(|kind| kind.contains("bpf") || kind.starts_with("net:")), "{kinds:?}");
    let inside = fs::read_link(format!("/proc/{pid}/ns/net")).expect("it lives");
    let holder = fs::read_link(format!("/proc/{}/ns/net", netns.holder.id())).expect("it lives");
    assert_eq!(inside, holder);

    // Signals are the agent's to answer: the whole group gets them.
    let process = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        rustix::process::kill_process(process, signal).expect("it lives");
    }
    sender.send(&order(2, b"not a snapshot".to_vec())).await.expect("sent");
    let refused = swapped(&mut receiver).await;
    assert!(refused.sequence == 2 && !refused.refused.is_empty(), "{refused:?}");
    let answer = ask(netns.connect(CLIENT, to), denied).expect("the snapshot before stays");
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");

    drop((sender, receiver));
    let ended = soon("its end", child.wait()).await.expect("it ends");
    assert!(ended.success(), "{ended}");
}

#[tokio::test]
async fn it_sends_its_records_before_it_says_that_it_has_drained() {
    let netns = Netns::new();
    let any = netns.within(|| TcpListener::bind("0.0.0.0:0")).expect("a free port");
    let to = SocketAddr::new(CART, any.local_addr().expect("bound").port());
    let launch = Launch {
        binary: env!("CARGO_BIN_EXE_sluice-proxy").into(),
        netns: netns.fd.try_clone().expect("a copy"),
        listeners: vec![any],
        threads: 1,
        user: User::default(),
        patient: false,
    };
    let (mut child, mut sender, mut receiver) = start(&launch).expect("started");
    sender.send(&order(1, sluice_wire::to_bytes(&snapshot(1, &shop())))).await.expect("sent");
    swapped(&mut receiver).await;
    let mut idle = netns.connect(CLIENT, to).expect("the worker listens");
    let denied = "DELETE /api HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n";
    ask(netns.connect(CLIENT, to), denied).expect("an answer");
    sender.send(&ToWorker { drain: true, patience: 20_000, ..ToWorker::default() }).await.expect("sent");
    let mut records = Vec::new();
    soon("draining", async {
        loop {
            let message: FromWorker = receiver.receive().await.expect("the worker speaks").expect("it lives");
            records.extend(message.records);
            if message.drained {
                return;
            }
        }
    })
    .await;
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!((records[0].status, records[0].method.as_str()), (403, "DELETE"));
    assert_eq!(idle.read(&mut [0]).expect("closed in order"), 0);
    child.kill().await.expect("killed");
}

/// Names of a process's threads.
fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let mut names: Vec<_> = names.map(|name| name.trim().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn each_thread_has_queues_of_its_own_and_all_judge_alike() {
    let netns = Netns::new();
    let queues: Vec<TcpListener> =
        (0..5).map(|_| netns.within(|| TcpListener::bind("0.0.0.0:0")).expect("a free port")).collect();
    let ports: Vec<u16> = queues.iter().map(|one| one.local_addr().expect("bound").port()).collect();
    let launch = Launch {
        binary: env!("CARGO_BIN_EXE_sluice-proxy").into(),
        netns: netns.fd.try_clone().expect("a copy"),
        listeners: queues,
        threads: 3,
        user: User::default(),
        patient: false,
    };
    let (child, mut sender, mut receiver) = start(&launch).expect("started");
    let allowed = "GET /api/items HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n";
    // What is in force is so on every thread once it is said to be: allowed, and nobody is there; then refused.
    for (sequence, rules, status) in [(1, shop(), "503"), (2, Rules { http: Vec::new(), ..shop() }, "403")] {
        sender
            .send(&order(sequence, sluice_wire::to_bytes(&snapshot(sequence, &rules))))
            .await
            .expect("sent");
        assert_eq!(swapped(&mut receiver).await, Swapped { sequence, ..Swapped::default() });
        for port in &ports {
            let answer =
                ask(netns.connect(CLIENT, SocketAddr::new(CART, *port)), allowed).expect("an answer");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "queue {port}: {answer}");
        }
    }
    let names = threads(child.id().expect("it lives"));
    for index in 0..3 {
        assert!(names.contains(&format!("serve-{index}")), "{names:?}");
    }
    assert!(!names.contains(&"serve-3".to_owned()), "{names:?}");
    // Records of all come, and then one word that all have drained.
    sender.send(&ToWorker { drain: true, patience: 20_000, ..ToWorker::default() }).await.expect("sent");
    let mut records = Vec::new();
    soon("draining", async {
        loop {
            let message: FromWorker = receiver.receive().await.expect("the worker speaks").expect("it lives");
            records.extend(message.records);
            if message.drained {
                return;
            }
        }
    })
    .await;
    // Those of the first snapshot came before, some of them with the word of the second.
    let last: Vec<_> = records.iter().filter(|record| record.generation == 2).collect();
    assert_eq!((last.len(), last.iter().all(|record| record.status == 403)), (ports.len(), true), "{last:?}");
    drop((sender, receiver, child));
}

#[tokio::test]
async fn without_a_snapshot_everything_is_refused() {
    let netns = Netns::new();
    let any = netns.within(|| TcpListener::bind("0.0.0.0:0")).expect("a free port");
    let to = SocketAddr::new(CART, any.local_addr().expect("bound").port());
    let launch = Launch {
        binary: env!("CARGO_BIN_EXE_sluice-proxy").into(),
        netns: netns.fd.try_clone().expect("a copy"),
        listeners: vec![any],
        threads: 1,
        user: User::default(),
        patient: false,
    };
    let (mut child, _sender, _receiver) = start(&launch).expect("started");
    let early = netns.connect(CLIENT, to);
    assert!(ask(early, "GET /api HTTP/1.1\r\nHost: c\r\n\r\n").is_err(), "reset");
    child.kill().await.expect("killed");
}

/// The workers that live in this namespace.
fn workers(netns: &Netns) -> Vec<i32> {
    let here = fs::read_link(format!("/proc/{}/ns/net", netns.holder.id())).expect("it lives");
    let processes = fs::read_dir("/proc").expect("mounted").filter_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse::<i32>().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let inside = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
        (inside == here && line.windows(8).any(|word| word == b"\0worker\0")).then_some(pid)
    });
    processes.collect()
}

#[tokio::test]
async fn a_worker_that_dies_is_replaced_and_its_listeners_wait() {
    let netns = Netns::new();
    let any = netns.within(|| TcpListener::bind("0.0.0.0:0")).expect("a free port");
    let to = SocketAddr::new(CART, any.local_addr().expect("bound").port());
    let launch = Launch {
        binary: env!("CARGO_BIN_EXE_sluice-proxy").into(),
        netns: netns.fd.try_clone().expect("a copy"),
        listeners: vec![any],
        threads: 1,
        user: User::default(),
        patient: false,
    };
    let (events, mut heard) = tokio::sync::mpsc::channel(16);
    let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
    let supervisor = tokio::spawn(supervise(launch, events, drain.clone(), stop.clone()));
    let bytes = Bytes::from(sluice_wire::to_bytes(&snapshot(1, &shop())));
    let mut lives = 0;
    let mut kept = Vec::new();
    soon("three lives", async {
        while let Some(event) = heard.recv().await {
            match event {
                Event::Up(inbox) => {
                    lives += 1;
                    inbox.send_modify(|order| order.snapshot = Some(bytes.clone()));
                    kept.push(inbox);
                }
                Event::Says(message) if message.swapped.is_some() => {
                    let pids = workers(&netns);
                    assert_eq!(pids.len(), 1, "one at a time");
                    if lives == 3 {
                        return;
                    }
                    let pid = rustix::process::Pid::from_raw(pids[0]).expect("a process");
                    // The second time as the kernel does it for a system call that is not its own.
                    let signal = [Signal::KILL, Signal::SYS][lives - 1];
                    rustix::process::kill_process(pid, signal).expect("killed");
                }
                Event::Says(_) | Event::Down => {}
            }
        }
    })
    .await;
    let answer =
        ask(netns.connect(CLIENT, to), "DELETE /api HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n");
    assert!(answer.expect("an answer").starts_with("HTTP/1.1 403 "));
    drain.cancel();
    stop.cancel();
    drop(heard);
    soon("the supervisor", supervisor).await.expect("no panic");
    assert!(workers(&netns).is_empty(), "none outlives its supervisor");
}
