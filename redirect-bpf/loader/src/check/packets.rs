//! Real packets through the four hooks: from one pod of a world of the check's own to another, past the proxy's place
//! and through it, by IPv4 and by IPv6.
//!
//! Everything is what a node is run with, the loader and the programs, but the pods and who sits in the proxy's place:
//! a few lines that carry bytes. Called by `check`.

use super::Finding;
use super::scratch::{self, Pod, World};
use crate::counters::Counters;
use crate::netns;
use crate::node::{Node, NodeConfig};
use sluice_bpf_abi::Counter;
use sluice_policy::http::HttpMatch;
use sluice_policy::{
    Class, ClassId, ClassSet, Conditions, DenyAction, Endpoint, Identity, IsolatedPorts, Isolation, Kind,
    Mode, OnDeny, Origin, Policy, PolicyId, PortRange, PortSet, Prefix, Profile, ProfileId, Protocol, Rule,
    Scope, Side, Snapshot, Workload,
};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Allowed at both ends.
const DIRECT: u16 = 80;
/// To the proxy at the client's end (hook A).
const PROXIED_OUT: u16 = 81;
/// Refused at the client's end, in silence.
const DENIED: u16 = 82;
/// Refused at the server's end, with a reset.
const REJECTED: u16 = 83;
/// To the proxy at the server's end (hook B).
const PROXIED_IN: u16 = 84;
const SERVED: [u16; 5] = [DIRECT, PROXIED_OUT, DENIED, REJECTED, PROXIED_IN];
/// What passes takes no longer, on a busy node either.
const SOON: Duration = Duration::from_secs(5);
/// How long what is refused in silence is waited for.
const SILENCE: Duration = Duration::from_millis(500);
/// Between two looks whether somebody has come.
const LOOK: Duration = Duration::from_millis(5);
const CLIENT: ClassId = ClassId(1);
const SERVER: ClassId = ClassId(2);
const REPORT: &str = "the programs load and do not do what they must on this kernel: report it with this output and the \
    kernel's release; meanwhile `--clsact`, or another kernel";

/// Every finding.
pub(super) fn look(config: &NodeConfig) -> Vec<Finding> {
    let config = config.clone();
    scratch::on_its_own(move |directory| Ok(try_out(&config, directory))).unwrap_or_else(|error| {
        // The agent needs neither where a bpffs is mounted for it.
        let remedy = "run it on the node itself as root, or allow unshare(2) and mount(2) in seccomp and the LSM \
                      (AppArmor, SELinux) for as long as it looks";
        vec![Finding::unknown("packets.setup", format!("no namespaces to try it out in: {error}"), remedy)]
    })
}

fn try_out(config: &NodeConfig, directory: &Path) -> Vec<Finding> {
    let setup = |found: String, remedy: &str| vec![Finding::fail("packets.setup", found, remedy)];
    let world = match World::make() {
        Ok(world) => world,
        Err(error) => {
            let remedy =
                "the kernel needs veth (modprobe veth), network namespaces and a writable /proc/sys/net";
            return setup(format!("no node and pods to try it out with: {error}"), remedy);
        }
    };
    let config = NodeConfig { bpffs: directory.join("bpffs"), ..config.clone() };
    let opened =
        netns::within(world.node.as_fd(), || Ok(Node::open(config).map_err(|error| error.to_string())));
    let mut node = match opened {
        Ok(Ok(node)) => node,
        Ok(Err(error)) => return setup(error, "the error says what is needed"),
        Err(error) => return setup(error.to_string(), "allow setns(2) in seccomp and the LSM"),
    };
    let stage = node.apply(&snapshot(&world)).map_err(|error| error.to_string()).and_then(|applied| {
        if let Some(missing) = applied.missing.first() {
            return Err(format!("{}: {}", missing.endpoint, missing.why));
        }
        Stage::set(&world, &node).map_err(|error| error.to_string())
    });
    let stage = match stage {
        Ok(stage) => stage,
        Err(error) => return setup(error, REPORT),
    };
    let mut findings =
        vec![Finding::ok("packets.setup", "a node, two pods and a proxy in namespaces of their own")];
    for address in &world.pods[1].addresses {
        findings.extend(family(&world, &node, *address));
    }
    drop(stage);
    findings
}

/// One family's packets.
fn family(world: &World, node: &Node, server: IpAddr) -> Vec<Finding> {
    let [client, _] = &world.pods;
    let own = client.addresses.iter().copied().find(|own| own.is_ipv4() == server.is_ipv4());
    let at = |port| SocketAddr::new(server, port);
    let (from, own) = (client.netns.as_fd(), own.unwrap_or(server));
    let tries: [(&str, &str, io::Result<()>); 5] = [
        ("direct", "an allowed connection passes in the kernel", passes(node, from, own, at(DIRECT), None)),
        ("deny", "a refused one is dropped", denied(node, from, at(DENIED))),
        ("reject", "a rejected one is answered with a reset", rejected(node, from, at(REJECTED))),
        (
            "proxy-egress",
            "one for the proxy gets there at its client's hook, and on",
            passes(node, from, own, at(PROXIED_OUT), Some(Counter::AssignedNew)),
        ),
        (
            "proxy-ingress",
            "one for the proxy gets there at its server's hook, and on",
            passes(node, from, own, at(PROXIED_IN), Some(Counter::AssignedNew)),
        ),
    ];
    let label = if server.is_ipv4() { "ipv4" } else { "ipv6" };
    let finding = |(name, what, done): (&str, &str, io::Result<()>)| {
        let check = format!("packets.{name}-{label}");
        match done {
            Ok(()) => Finding::ok(check, what),
            Err(error) => Finding::fail(check, format!("not so that {what}: {error}"), REPORT),
        }
    };
    tries.into_iter().map(finding).collect()
}

/// Runs, and says what the kernel counted if it fails.
fn counted(node: &Node, work: impl FnOnce(&Counters) -> io::Result<()>) -> io::Result<()> {
    let read = || node.counters().map_err(io::Error::other);
    let before = read()?;
    work(&before).or_else(|error| {
        let grown: Vec<_> =
            read()?.since(&before).iter().map(|(why, count)| format!("{} {count}", why.as_str())).collect();
        Err(io::Error::other(format!("{error} (the kernel counted: {})", grown.join(", "))))
    })
}

fn grew(node: &Node, before: &Counters, any: &[Counter]) -> io::Result<()> {
    let now = node.counters().map_err(io::Error::other)?;
    if any.iter().any(|counter| now.get(*counter) > before.get(*counter)) {
        return Ok(());
    }
    Err(io::Error::other(format!("{} was not counted", any[0].as_str())))
}

/// Connects, and is told its own address by the server.
fn passes(
    node: &Node,
    from: BorrowedFd<'_>,
    own: IpAddr,
    target: SocketAddr,
    how: Option<Counter>,
) -> io::Result<()> {
    counted(node, |before| {
        let seen = netns::within(from, || {
            let mut stream = TcpStream::connect_timeout(&target, SOON)?;
            stream.set_read_timeout(Some(SOON))?;
            let mut seen = String::new();
            stream.read_to_string(&mut seen).map(|_| seen)
        })?;
        if seen != own.to_string() {
            return Err(io::Error::other(format!("the server saw {seen:?} and not {own}")));
        }
        how.map_or(Ok(()), |how| grew(node, before, &[how]))
    })
}

/// Silence, and it was us: the server is there.
fn denied(node: &Node, from: BorrowedFd<'_>, target: SocketAddr) -> io::Result<()> {
    counted(node, |before| {
        match netns::within(from, || TcpStream::connect_timeout(&target, SILENCE)) {
            Ok(_) => return Err(io::Error::other("it was let through")),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) => return Err(error),
        }
        grew(node, before, &[Counter::NoRow, Counter::Denied])
    })
}

fn rejected(node: &Node, from: BorrowedFd<'_>, target: SocketAddr) -> io::Result<()> {
    counted(node, |before| {
        match netns::within(from, || TcpStream::connect_timeout(&target, SOON)) {
            Ok(_) => return Err(io::Error::other("it was let through")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
        grew(node, before, &[Counter::ResetSent])
    })
}

/// The servers and who sits in the proxy's place, until dropped.
struct Stage {
    over: Arc<AtomicBool>,
}

impl Stage {
    fn set(world: &World, node: &Node) -> io::Result<Self> {
        let stage = Self { over: Arc::default() };
        let [_, Pod { netns, addresses }] = &world.pods;
        for (address, port) in addresses.iter().flat_map(|address| SERVED.map(|port| (*address, port))) {
            let listener = netns::within(netns.as_fd(), || TcpListener::bind((address, port)))?;
            stage.attend(listener, netns.as_fd(), |mut stream, client| {
                stream.write_all(client.ip().to_string().as_bytes())
            })?;
        }
        for listener in node.listeners().map_err(io::Error::other)? {
            stage.attend(listener, node.proxy_netns(), carry)?;
        }
        Ok(stage)
    }

    /// Serves one connection after the other on a thread inside a namespace.
    fn attend(
        &self,
        listener: TcpListener,
        netns: BorrowedFd<'_>,
        serve: impl Fn(TcpStream, SocketAddr) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (over, netns) = (Arc::clone(&self.over), netns.try_clone_to_owned()?);
        listener.set_nonblocking(true)?;
        let work = move || {
            let inside = netns::enter(netns.as_fd());
            while inside.is_ok() && !over.load(Ordering::SeqCst) {
                match listener.accept() {
                    // A connection that fails is the client's to tell.
                    Ok((stream, client)) => {
                        drop(stream.set_nonblocking(false).and_then(|()| serve(stream, client)));
                    }
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        };
        std::thread::Builder::new().name("check".to_owned()).spawn(work).map(drop)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// As the proxy does: on to the original destination, in the client's name.
fn carry(mut client: TcpStream, from: SocketAddr) -> io::Result<()> {
    let target = client.local_addr()?;
    let upstream = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    if target.is_ipv6() {
        upstream.set_ip_transparent_v6(true)?;
    } else {
        upstream.set_ip_transparent_v4(true)?;
    }
    upstream.bind(&SockAddr::from(SocketAddr::new(from.ip(), 0)))?;
    upstream.connect_timeout(&SockAddr::from(target), SOON)?;
    let mut upstream = TcpStream::from(upstream);
    upstream.set_read_timeout(Some(SOON))?;
    io::copy(&mut upstream, &mut client).map(drop)
}

/// Two pods, of which the first may reach the second on some ports.
fn snapshot(world: &World) -> Snapshot {
    let mut snapshot = Snapshot { generation: 1, ..Snapshot::default() };
    let identity = |name: &str| Identity::Workload(format!("check/{name}").into());
    snapshot.classes.push(Class { identity: Identity::Missing, cidrs: Vec::new() });
    let (mut endpoints, mut profiles) = (Vec::new(), Vec::new());
    for ((pod, name), id) in world.pods.iter().zip(["client", "server"]).zip(0..) {
        snapshot.classes.push(Class { identity: identity(name), cidrs: Vec::new() });
        for address in &pod.addresses {
            snapshot.addresses.insert(Prefix::host(*address), ClassId(id + 1));
        }
        let workload = Workload {
            namespace: "check".into(),
            pod: name.into(),
            uid: "".into(),
            service_account: "default".into(),
            node: "check".into(),
        };
        endpoints.push(Arc::new(Endpoint {
            workload: Arc::new(workload),
            addresses: pod.addresses.clone(),
            profile: ProfileId(id),
        }));
        let action = if id == 0 { DenyAction::Drop } else { DenyAction::Reject };
        let policy = Arc::new(Policy {
            id: PolicyId(id),
            origin: Origin { kind: Kind::L7NetworkPolicy, namespace: "check".into(), name: name.into() },
            mode: Mode::Enforce,
            on_deny: OnDeny { action, ..OnDeny::default() },
        });
        snapshot.policies.push(Arc::clone(&policy));
        let mut profile = Profile::default();
        match id {
            0 => profile.egress = side(&policy, SERVER, &[DIRECT, REJECTED, PROXIED_IN], PROXIED_OUT),
            _ => profile.ingress = side(&policy, CLIENT, &[DIRECT, PROXIED_OUT, DENIED], PROXIED_IN),
        }
        profiles.push(profile);
    }
    snapshot.profiles = profiles.into();
    snapshot.endpoints = endpoints.into();
    snapshot
}

/// Isolated but for these ports of a peer, of which the proxy must read the last.
fn side(policy: &Arc<Policy>, peer: ClassId, direct: &[u16], proxied: u16) -> Side {
    let mut side = Side::default();
    let layer = &mut side.layers[1];
    layer.isolation.push(Isolation { policy: Arc::clone(policy), ports: IsolatedPorts::All });
    let http = Arc::new(Conditions { http: vec![HttpMatch::default()], ..Conditions::default() });
    let ports = direct.iter().map(|port| (*port, None)).chain([(proxied, Some(http))]);
    for (port, conditions) in ports {
        let ports = PortSet::Ranges(vec![PortRange { protocol: Protocol::Tcp, first: port, last: port }]);
        layer.allow.push(Rule {
            policy: Arc::clone(policy),
            name: format!("port-{port}").into(),
            scopes: vec![Scope { peers: ClassSet::of([peer]), ports }],
            conditions,
        });
    }
    side
}
