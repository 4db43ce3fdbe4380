//! Many connections, and policies that change all the while: no verdict is wrong after its generation was
//! acknowledged, nothing is left behind in the kernel or in the loader, and no transfer comes to a halt.
//!
//! Short by default; with `SLUICE_LONG=1` (`cargo xtask test datapath --long`) 10,000 connections and 500 transfers.

use crate::l7::DROP_INVALID;
use crate::peers::{Connection, Proxy, SOON, Server};
use crate::rig::Rig;
use crate::rules::{Line, closed, egress, ingress, tcp, udp};
use anyhow::{Context, Result, anyhow, bail, ensure};
use libtest_mimic::Trial;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use sluice_policy::{Direction, PortSet};
use sluice_redirect::{EndpointLimits, MAX_FLOWS, NodeConfig};
use sluice_tests::harness::{self, Need, long};
use sluice_tests::world::{Family, Netns};
use sluice_tests::{NodeSpec, Process};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// In the environment of the process that serves.
pub(crate) const SERVER: &str = "SLUICE_STRESS_SERVER";
/// Passes in every generation.
const STANDING: u16 = 80;
/// Passes in every generation, UDP: its answer says that what was sent before it has arrived or never will.
const MARKER: u16 = 9;
/// Pass in some generations: the n-th in those whose bit n is set.
const CHANGING: [u16; 4] = [8_001, 8_002, 8_003, 8_004];
/// The probes' own ports; those beyond are for the connections that stay.
const FIRST_PORT: u16 = 1_024;
const PORTS: u16 = 19_000;
/// How long the server keeps a connection that nobody may hear of again: less than it takes to use all those ports.
const FORGOTTEN: Duration = Duration::from_secs(2);
/// Between two changes.
const PERIOD: Duration = Duration::from_millis(20);
/// How many connections change hands between two looks at one that stays.
const CHURN: usize = 4;
/// Between two rounds of a pool that is full: the policies shall change as well.
const PACE: Duration = Duration::from_millis(2);
/// A leak is one of something for every generation; what else this process or the machine makes meanwhile is less.
const NOT_A_LEAK: u64 = 2;
/// Connections that wait for their server, more than there are ports: where it has no time for them it refuses none,
/// which would look like a verdict.
const BACKLOG: u32 = 65_535;
/// What a transfer carries, each way.
const BULK: usize = 2 << 20;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("stress: connections come and go while policies change", [Need::Bpf], churn),
        harness::test("stress: no transfer comes to a halt", [Need::Bpf], transfers),
    ]
}

/// What the threads of a run tell each other.
#[derive(Default)]
struct Shared {
    /// The last generation that was acknowledged.
    acknowledged: AtomicU64,
    /// The last one that may be in force.
    begun: AtomicU64,
    over: AtomicBool,
    /// Verdicts that were tried.
    tried: AtomicUsize,
    /// Connections that were opened.
    opened: AtomicUsize,
    /// Of those that stay, how often one was asked.
    asked: AtomicUsize,
}

/// Whether a port passes in a generation.
const fn passes(generation: u64, place: usize) -> bool {
    generation >> place & 1 == 1
}

fn lines(generation: u64) -> Vec<Line> {
    let mut lines = vec![
        ingress("a/server", "a/client", tcp(STANDING, STANDING)),
        ingress("a/server", "a/client", udp(MARKER)),
        egress("a/client", "a/server", PortSet::All),
        closed("a/server", Direction::Egress),
    ];
    for (place, port) in CHANGING.into_iter().enumerate().filter(|(place, _)| passes(generation, *place)) {
        lines.push(ingress("a/server", "a/client", tcp(port, port)));
        // Datagrams to the same port: a flow that lives on from generation to generation.
        lines.push(ingress("a/server", "a/client", udp(CHANGING[place])));
    }
    lines
}

fn churn() -> Result<()> {
    let (connections, generations) = if long() { (10_000, 3_000) } else { (500, 150) };
    many_files(connections)?;
    let mut rig = unlimited()?;
    rig.apply(&lines(1))?;
    let shared = Arc::new(Shared::default());
    shared.acknowledged.store(1, Ordering::SeqCst);
    shared.begun.store(1, Ordering::SeqCst);
    let client = rig.pod("a/client").netns.clone();
    // A process of its own: both ends of 10,000 connections are more files than one may have in many places.
    let mut command = rig.pod("a/server").netns.command(std::env::current_exe()?);
    let targets = Family::BOTH.map(|family| rig.at("a/server", family, 0));
    // Of a SYN whose answer was cut its server remembers the tuple for as long as it repeats that answer.
    let backlog = BACKLOG.to_string();
    let sysctls = [("net.ipv4.tcp_synack_retries", "0"), ("net.core.somaxconn", &backlog)];
    rig.pod("a/server").netns.sysctl(&sysctls)?;
    let _server = Process::start("stress-server", rig.world.dir(), command.env(SERVER, "1"))?;
    client.sysctl(&[("net.ipv4.ip_local_port_range", "20100 65535")])?;
    let before = Held::now(&rig)?;
    let result = std::thread::scope(|scope| {
        wait_for_server(&client, targets[0])?;
        let pools = targets.map(|target| {
            let (client, shared) = (client.clone(), Arc::clone(&shared));
            scope.spawn(move || client.block_on(|| pool(target, connections / 2, &shared))?)
        });
        let probes = targets.map(|target| {
            let (client, shared) = (client.clone(), Arc::clone(&shared));
            scope.spawn(move || client.inside(|| probe(target, &shared))?)
        });
        let changed = change(&mut rig, generations, &shared);
        shared.over.store(true, Ordering::SeqCst);
        let joined = probes.into_iter().chain(pools);
        let joined: Vec<Result<()>> = joined
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
            .collect();
        joined.into_iter().chain([changed]).collect::<Result<()>>()
    });
    let (tried, opened, asked) = (&shared.tried, &shared.opened, &shared.asked);
    let counts = [tried, opened, asked].map(|count| count.load(Ordering::SeqCst));
    rig.explain(result.with_context(|| {
        format!(
            "after {counts:?} verdicts, connections and questions, with {} flows; of the server's TCP: {}",
            rig.node("n1").flows(),
            tcp_trouble(&rig)
        )
    }))?;
    let flows = rig.node_mut("n1").sweep()?.flows;
    println!(
        "stress: {generations} generations, {} verdicts, {} connections, {} questions, {flows} flows at the end",
        counts[0], counts[1], counts[2]
    );
    // Where it fills, what is evicted is judged anew, and a verdict says less.
    ensure!(flows < MAX_FLOWS as usize / 2, "{flows} flows are remembered");
    ensure!(counts.iter().all(|count| *count > 0), "something was never tried: {counts:?}");
    before.still(&rig, generations)
}

/// On a fast machine one client opens more than an endpoint may; what that is answered with is `quotas.rs`'s to know.
fn unlimited() -> Result<Rig> {
    let mut rig = Rig::routed()?;
    let before = rig.config("n1");
    drop(rig.take("n1"));
    let limits = EndpointLimits { ingress_opens: 0, egress_opens: 0, ..before.limits };
    rig.open_with("n1", NodeConfig { limits, ..before })?;
    Ok(rig)
}

/// What the server's kernel refused or doubted, none of which is a verdict of ours.
fn tcp_trouble(rig: &Rig) -> String {
    let counters = rig.pod("a/server").netns.run(&["nstat", "-as"]).unwrap_or_default();
    let words = ["Drop", "Overflow", "Challenge", "Skipped", "ReqQ"];
    let told = counters.lines().filter(|line| words.iter().any(|word| line.contains(word)));
    told.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join(", ")
}

/// As many as there are connections, and some.
fn many_files(connections: usize) -> Result<()> {
    let wanted = u64::try_from(connections)? + 1_000;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
        .with_context(|| format!("{wanted} open files are needed: raise the hard limit (ulimit -Hn)"))
}

fn change(rig: &mut Rig, generations: u64, shared: &Shared) -> Result<()> {
    for generation in 2..=generations {
        let start = Instant::now();
        shared.begun.store(generation, Ordering::SeqCst);
        rig.apply(&lines(generation))?;
        shared.acknowledged.store(generation, Ordering::SeqCst);
        std::thread::sleep(PERIOD.saturating_sub(start.elapsed()));
        ensure!(!shared.over.load(Ordering::SeqCst), "a thread gave up");
    }
    Ok(())
}

/// The process that answers on every port, TCP and UDP. It ends with its world.
pub(crate) fn server() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(serve())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<()> {
    stay_on_this_cpu()?;
    let sockets: Vec<UdpSocket> = CHANGING
        .iter()
        .map(|port| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, *port)))
        .collect::<Result<_, _>>()?;
    sockets.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
    let markers = tokio::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, MARKER)).await?;
    tokio::spawn(async move { datagrams(&sockets, &markers).await });
    // The one that the clients wait for comes last.
    for port in CHANGING.into_iter().chain([STANDING]) {
        let socket = TcpSocket::new_v6()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
        let listener = socket.listen(BACKLOG)?;
        // Of a connection that was cut nobody may ever hear again.
        let patience = if port == STANDING { Duration::MAX } else { FORGOTTEN };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(tokio::time::timeout(patience, echo(stream)));
            }
        });
    }
    std::future::pending().await
}

/// Answers a marker when everything that came before it is answered, and both on one CPU, so that the answers stay in
/// order as well: one that came after the marker's would be judged by a generation that nobody thinks of any more. On
/// the thread that accepts connections, so that who waits for a marker opens no more than it can take.
async fn datagrams(sockets: &[UdpSocket], markers: &tokio::net::UdpSocket) -> Result<()> {
    let mut buffer = [0; 64];
    loop {
        let (length, from) = markers.recv_from(&mut buffer).await?;
        let marker = buffer[..length].to_vec();
        for socket in sockets {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..length], from)?;
            }
        }
        markers.send_to(&marker, from).await?;
    }
}

fn stay_on_this_cpu() -> Result<()> {
    let mut one = CpuSet::new();
    one.set(rustix::thread::sched_getcpu());
    Ok(sched_setaffinity(None, &one)?)
}

async fn echo(mut stream: TcpStream) {
    // It ends with a reset: nothing of it waits for the tuple's next connection.
    let _ = stream.set_zero_linger();
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

fn wait_for_server(client: &Netns, target: SocketAddr) -> Result<()> {
    let target = SocketAddr::new(target.ip(), STANDING);
    let end = Instant::now() + SOON;
    while client.inside(|| std::net::TcpStream::connect_timeout(&target, SOON))?.is_err() {
        ensure!(Instant::now() < end, "the server does not come up");
        std::thread::sleep(PERIOD);
    }
    Ok(())
}

/// Holds so many connections on the port that always passes; the oldest go, new ones come, and every one that is there
/// must answer whenever it is asked, whatever generation has come since.
async fn pool(target: SocketAddr, size: usize, shared: &Shared) -> Result<()> {
    let target = SocketAddr::new(target.ip(), STANDING);
    let mut held: VecDeque<TcpStream> = VecDeque::new();
    let mut number = 0_usize;
    while !shared.over.load(Ordering::SeqCst) {
        for _ in 0..CHURN {
            let connect = tokio::time::timeout(SOON, open(target)).await;
            held.push_back(connect.context("no connection on a port that always passes")??);
            shared.opened.fetch_add(1, Ordering::Relaxed);
        }
        while held.len() > size {
            if let Some(oldest) = held.pop_front() {
                oldest.set_zero_linger()?;
            }
        }
        number = number.wrapping_add(7);
        let place = number % held.len();
        let age = held.len() - place;
        let ask = tokio::time::timeout(SOON, ask(&mut held[place])).await;
        ask.map_err(anyhow::Error::from).flatten().with_context(|| {
            format!(
                "a connection that always passes fell silent, with {age} opened since, at {:?}",
                shared.begun
            )
        })?;
        shared.asked.fetch_add(1, Ordering::Relaxed);
        if held.len() >= size {
            tokio::time::sleep(PACE).await;
        }
    }
    held.iter().try_for_each(|stream| Ok(stream.set_zero_linger()?))
}

async fn open(target: SocketAddr) -> Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    Ok(socket.connect(target).await?)
}

async fn ask(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [7];
    stream.write_all(&byte).await?;
    stream.read_exact(&mut byte).await?;
    Ok(())
}

/// Tries the ports that change, without rest. What the kernel says must be right by one of the generations that may
/// have been in force meanwhile.
fn probe(target: SocketAddr, shared: &Shared) -> Result<()> {
    // One CPU's packets stay in order: the marker is the last.
    stay_on_this_cpu()?;
    let markers = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    markers.set_read_timeout(Some(SOON))?;
    let datagrams = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    datagrams.set_nonblocking(true)?;
    let mut number = 0_u64;
    while !shared.over.load(Ordering::SeqCst) {
        for (place, port) in CHANGING.into_iter().enumerate() {
            number += 1;
            let first = shared.acknowledged.load(Ordering::SeqCst);
            let tcp = connects(SocketAddr::new(target.ip(), port), &markers, target, number)?;
            send(SocketAddr::new(target.ip(), port), &datagrams, &markers, target, number)?;
            let udp = answered(&datagrams, number)?;
            let last = shared.begun.load(Ordering::SeqCst);
            let mut possible = (first..=last).map(|generation| passes(generation, place));
            let (some, all) = (possible.clone().any(|passes| passes), possible.all(|passes| passes));
            for (what, got) in [("TCP", tcp), ("UDP", udp)] {
                ensure!(
                    if got { some } else { !all },
                    "{what} port {port} of {target} came out {got} in the generations {first} to {last}"
                );
            }
            shared.tried.fetch_add(2, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Whether a connection is there by the time that a marker sent after it has been answered.
fn connects(at: SocketAddr, markers: &UdpSocket, target: SocketAddr, number: u64) -> Result<bool> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    // Ports in turn: where an earlier connection was cut, its server has not heard of its end, and would answer a SYN
    // on the same ports as one of that connection.
    socket.set_reuse_address(true)?;
    let any =
        if at.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let port = FIRST_PORT + u16::try_from(number % u64::from(PORTS))?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    match socket.connect(&at.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            return Err(error).with_context(|| format!("connect to {at}"));
        }
        _ => {}
    }
    mark(markers, target, number)?;
    Ok(socket.peer_addr().is_ok())
}

/// Sends a datagram and waits until it has arrived or never will. Its ports are always the same: it is a flow that is
/// cut and let pass again.
fn send(
    at: SocketAddr,
    datagrams: &UdpSocket,
    markers: &UdpSocket,
    target: SocketAddr,
    number: u64,
) -> Result<()> {
    datagrams.send_to(&number.to_be_bytes(), mapped(at))?;
    mark(markers, target, number)
}

/// Whether the answer to a datagram has come.
fn answered(datagrams: &UdpSocket, number: u64) -> Result<bool> {
    let mut buffer = [0; 64];
    loop {
        match datagrams.recv_from(&mut buffer) {
            Ok((8, _)) if buffer[..8] == number.to_be_bytes() => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

fn mark(markers: &UdpSocket, target: SocketAddr, number: u64) -> Result<()> {
    markers.send_to(&number.to_be_bytes(), mapped(SocketAddr::new(target.ip(), MARKER)))?;
    let mut buffer = [0; 64];
    let (length, _) =
        markers.recv_from(&mut buffer).context("the marker, which always passes, had no answer")?;
    ensure!(buffer[..length] == number.to_be_bytes(), "another marker's answer");
    Ok(())
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// What is held in the kernel and here.
#[derive(Debug)]
struct Held {
    kernel: sluice_redirect::Census,
    files: u64,
    pins: Vec<std::path::PathBuf>,
    kilobytes: u64,
}

impl Held {
    fn now(rig: &Rig) -> Result<Self> {
        let files = std::fs::read_dir("/proc/self/fd")?.count() as u64;
        let status = std::fs::read_to_string("/proc/self/status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kilobytes = resident.split_whitespace().next().context("a number")?.parse()?;
        let mut pins = Vec::new();
        let mut open = vec![rig.world.node("n1").bpffs.clone()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    open.push(entry.path());
                }
                pins.push(entry.path());
            }
        }
        pins.sort();
        Ok(Self { kernel: sluice_redirect::census()?, files, pins, kilobytes })
    }

    /// That it is no more than before, so many generations later. The kernel frees what nobody holds in its own time,
    /// and other tests hold things as well: what leaks with every generation shows all the same.
    fn still(&self, rig: &Rig, generations: u64) -> Result<()> {
        let few = generations / NOT_A_LEAK;
        let end = Instant::now() + SOON * 2;
        loop {
            let now = Self::now(rig)?;
            let grown = [
                ("maps", now.kernel.maps, self.kernel.maps),
                ("programs", now.kernel.programs, self.kernel.programs),
                ("open files", now.files, self.files),
            ];
            let leaks = grown.into_iter().find(|(_, now, before)| *now > before + few);
            if leaks.is_none() {
                ensure!(now.pins == self.pins, "pins: {:?} before, {:?} after", self.pins, now.pins);
                // A generation's own tables in user space are a few kilobytes here.
                let more = now.kilobytes.saturating_sub(self.kilobytes);
                ensure!(more < 65_536 + generations, "{more} KiB more after {generations} generations");
                return Ok(());
            }
            ensure!(Instant::now() < end, "leaks after {generations} generations: {leaks:?}");
            std::thread::sleep(PERIOD);
        }
    }
}

/// The hang that was seen once: bytes both ways through the proxy, where conntrack drops what it calls invalid and
/// where it does not, over a routed veth and over a bridge, while policies change.
fn transfers() -> Result<()> {
    let many = if long() { 125 } else { 5 };
    for (number, node) in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")].into_iter().enumerate() {
        for strict in [false, true] {
            let mut rig = Rig::with(node.clone())?;
            if strict {
                rig.nft("n1", DROP_INVALID)?;
            }
            let rules = ["a/server", "b/remote"].map(|peer| egress("a/client", peer, tcp(80, 80)).l7());
            rig.apply(&rules)?;
            let proxy = Proxy::start(rig.node("n1"))?;
            let _servers = [
                Server::start(&rig.pod("a/server").netns, 80)?,
                Server::start(&rig.pod("b/remote").netns, 80)?,
            ];
            let carried = carry(&mut rig, &rules, many);
            rig.explain(carried.with_context(|| format!("node {number}, strict {strict}")))?;
            ensure!(proxy.count() == many, "{} of {many} connections passed the proxy", proxy.count());
        }
    }
    Ok(())
}

fn carry(rig: &mut Rig, rules: &[Line], many: usize) -> Result<()> {
    let client = rig.pod("a/client").netns.clone();
    let targets: Vec<SocketAddr> = Family::BOTH
        .into_iter()
        .flat_map(|family| [rig.at("a/server", family, 80), rig.at("b/remote", family, 80)])
        .collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let transfers = scope.spawn(|| {
            let run = || -> Result<()> {
                for (number, target) in targets.iter().cycle().take(many).enumerate() {
                    let what = || format!("transfer {number} to {target}");
                    let mut connection = Connection::open(&client, *target).with_context(what)?;
                    // Each read has a bound: a transfer that moves nothing meanwhile has come to a halt.
                    connection.bulk(BULK).with_context(what)?;
                }
                Ok(())
            };
            let result = run();
            over.store(true, Ordering::SeqCst);
            result
        });
        while !over.load(Ordering::SeqCst) {
            rig.apply(rules)?;
            std::thread::sleep(PERIOD);
        }
        transfers.join().unwrap_or_else(|_| bail!("the transfers panicked"))
    })
}
