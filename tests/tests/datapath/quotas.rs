//! Floods: what one endpoint takes of the flow table costs no other one's replies, and is given back.
//!
//! The table is made small, so that a flood of some ten thousand tuples would fill it.

use crate::forge;
use crate::peers::{Connection, SILENCE, SOON, Server, eventually, is_refused, reaches};
use crate::pinned;
use crate::rig::Rig;
use crate::rules::{closed, egress, tcp, udp};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::{Counter, Counters, EndpointLimits, MAX_ENDPOINTS, NodeConfig};
use sluice_tests::Pod;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

/// The room of the flow table here.
const ROOM: u32 = 16_384;
/// What an endpoint may have of it in one direction.
const MOST: u32 = 2_048;
/// Tuples of a flood: more than twice as many as there is room for.
const FLOOD: u32 = 40_000;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("quotas: a flood from a pod takes no other pod's replies", from_a_pod),
        test("quotas: a flood to a pod takes no other pod's replies", to_a_pod),
        test("quotas: without them it would", without),
        test("quotas: where nobody counts only the rate is held", nobody_counts),
        test("quotas: an endpoint that there is no room to count for is not without limits", no_room),
        test("quotas: a closed connection takes no room, and a pod that is gone none", given_back),
    ]
}

const LIMITS: EndpointLimits = EndpointLimits {
    ingress_flows: MOST,
    egress_flows: MOST,
    ingress_opens: 0,
    egress_opens: 0,
    answers: 1_000,
    refusal_events: 100,
    flow_events: 100,
};
const UNLIMITED: EndpointLimits = EndpointLimits { ingress_flows: 0, egress_flows: 0, ..LIMITS };

/// A node whose client is closed but for what it opens to the remote pod.
fn rig(limits: EndpointLimits) -> Result<Rig> {
    let mut rig = Rig::routed()?;
    let before = rig.config("n1");
    drop(rig.take("n1"));
    rig.world.node("n1").netns.inside(|| sluice_redirect::Node::uninstall(&before))??;
    rig.open_with("n1", NodeConfig { limits, flows: ROOM, ..before })?;
    rig.apply(&[
        closed("a/client", Direction::Ingress),
        egress("a/client", "b/remote", tcp(80, 80)),
        egress("a/client", "b/remote", udp(53)),
    ])?;
    Ok(rig)
}

/// One packet of a flood: its protocol, and which of the tuples.
fn packet(protocol: u8, from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let mut body = ports;
    match protocol {
        17 => body.extend([0, 8, 0, 0]),
        _ => body.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]),
    }
    let length = u8::try_from(body.len()).expect("short");
    let pseudo = [&from.ip().octets()[..], &to.ip().octets(), &[0, protocol, 0, length], &body].concat();
    let at = if protocol == 17 { 6 } else { 16 };
    let sum = forge::checksum(&pseudo).to_be_bytes();
    body[at..at + 2].copy_from_slice(&sum);
    forge::ipv4(*from.ip(), *to.ip(), protocol, 64, &body)
}

/// An address of the outside that nobody has: what is sent there, or answered to it, is lost.
const NOBODY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);

/// Sends so many first datagrams of different flows.
fn flood(from: &Pod, to: &Pod, count: u32) -> Result<()> {
    packets(from, 17, (from.v4, to.v4), count)
}

/// The same of any protocol and with any addresses. TCP is sent to one port.
fn packets(by: &Pod, protocol: u8, (from, to): (Ipv4Addr, Ipv4Addr), count: u32) -> Result<()> {
    const PORTS: u32 = 60_000;
    by.netns.inside(|| -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        socket.set_header_included_v4(true)?;
        let target = SockAddr::from(SocketAddr::new(to.into(), 0));
        for tuple in 0..count {
            let port = |number: u32| u16::try_from(1024 + number % PORTS).expect("a port");
            let source = SocketAddrV4::new(from, port(tuple));
            let destination = SocketAddrV4::new(to, if protocol == 6 { 80 } else { port(tuple % 251) });
            // A queue that is full is waited for: the kernel says so.
            let bytes = packet(protocol, source, destination);
            while let Err(error) = socket.send_to(&bytes, &target) {
                ensure!(error.raw_os_error() == Some(105), "send: {error}");
            }
        }
        Ok(())
    })?
}

/// A question of the client's whose answer is still due, and an idle connection.
struct Waiting {
    asker: UdpSocket,
    answerer: UdpSocket,
    from: SocketAddr,
    connection: Connection,
    _server: Server,
}

impl Waiting {
    fn start(rig: &Rig) -> Result<Self> {
        let server = Server::start(&rig.pod("b/remote").netns, 80)?;
        let dns = rig.at("b/remote", Family::V4, 53);
        let answerer = rig.pod("b/remote").netns.inside(|| UdpSocket::bind(dns))??;
        let asker =
            rig.pod("a/client").netns.inside(|| UdpSocket::bind(rig.at("a/client", Family::V4, 0)))??;
        let connection = Connection::open(&rig.pod("a/client").netns, rig.at("b/remote", Family::V4, 80))?;
        asker.send_to(b"who?", dns)?;
        answerer.set_read_timeout(Some(SOON))?;
        let (_, from) = answerer.recv_from(&mut [0; 16])?;
        Ok(Self { asker, answerer, from, connection, _server: server })
    }

    /// Whether the answer comes.
    fn is_answered(&self) -> Result<bool> {
        self.answerer.send_to(b"me", self.from)?;
        self.asker.set_read_timeout(Some(SILENCE))?;
        Ok(self.asker.recv_from(&mut [0; 16]).is_ok())
    }

    /// That it does, that the connection goes on, and that new flows begin.
    fn goes_on(mut self, rig: &Rig) -> Result<()> {
        ensure!(self.is_answered()?, "the flood took the answer away");
        self.connection.echo("still here", SOON)?;
        reaches(rig.pod("a/client"), rig.at("b/remote", Family::V4, 80)).context("a new connection")?;
        let again = self.asker.send_to(b"who?", rig.at("b/remote", Family::V4, 53))?;
        ensure!(again == 4 && self.answerer.recv_from(&mut [0; 16]).is_ok(), "a new question");
        Ok(())
    }
}

fn grown(rig: &Rig, since: &Counters, counter: Counter) -> Result<u64> {
    Ok(rig.counters()?.get(counter) - since.get(counter))
}

fn from_a_pod() -> Result<()> {
    for protocol in [17, 6] {
        let mut rig = rig(LIMITS)?;
        let waiting = Waiting::start(&rig)?;
        rig.node_mut("n1").sweep()?;
        let before = rig.counters()?;
        let other = rig.pod("a/other");
        let target = if protocol == 6 { NOBODY } else { rig.pod("b/remote").v4 };
        packets(other, protocol, (other.v4, target), FLOOD)?;
        // Two CPUs may count one flow each at once.
        let refused = grown(&rig, &before, Counter::FlowQuota)?;
        ensure!(refused > u64::from(FLOOD - MOST - MOST / 4), "only {refused} were refused");
        rig.explain(waiting.goes_on(&rig))?;
        let swept = rig.node_mut("n1").sweep()?;
        ensure!(swept.flows < (MOST + MOST / 4) as usize, "{swept:?}");
    }
    Ok(())
}

fn to_a_pod() -> Result<()> {
    for protocol in [17, 6] {
        let mut rig = rig(LIMITS)?;
        // Its own answers are the flood of nobody's egress here.
        rig.apply(&[
            closed("a/client", Direction::Ingress),
            egress("a/client", "b/remote", tcp(80, 80)),
            egress("a/client", "b/remote", udp(53)),
            closed("a/other", Direction::Egress),
        ])?;
        let waiting = Waiting::start(&rig)?;
        let served = Server::start(&rig.pod("a/other").netns, 80)?;
        rig.node_mut("n1").sweep()?;
        let before = rig.counters()?;
        let (remote, other) = (rig.pod("b/remote"), rig.pod("a/other"));
        packets(remote, protocol, (if protocol == 6 { NOBODY } else { remote.v4 }, other.v4), FLOOD)?;
        let beyond = grown(&rig, &before, Counter::Unremembered)?;
        ensure!(beyond > u64::from(FLOOD / 2), "only {beyond} were not remembered");
        rig.explain(waiting.goes_on(&rig))?;
        // And who is flooded can still be reached, though it may open nothing itself.
        rig.explain(reaches(rig.pod("b/remote"), rig.at("a/other", Family::V4, 80)))?;
        drop(served);
    }
    Ok(())
}

/// What the two above are good for.
fn without() -> Result<()> {
    let mut rig = rig(UNLIMITED)?;
    let waiting = Waiting::start(&rig)?;
    rig.node_mut("n1").sweep()?;
    let before = rig.counters()?;
    flood(rig.pod("a/other"), rig.pod("b/remote"), FLOOD)?;
    ensure!(grown(&rig, &before, Counter::FlowQuota)? == 0, "there is no quota");
    ensure!(!waiting.is_answered()?, "the flood does not fill the table: the tests beside show nothing");
    Ok(())
}

fn nobody_counts() -> Result<()> {
    const RATE: u32 = 500;
    let mut rig = rig(LIMITS)?;
    let before = rig.counters()?;
    flood(rig.pod("a/other"), rig.pod("b/remote"), 2 * MOST)?;
    ensure!(grown(&rig, &before, Counter::FlowQuota)? == 0, "refused by a number that nobody looks after");
    rig.node_mut("n1").sweep()?;
    flood(rig.pod("a/other"), rig.pod("a/server"), 100)?;
    ensure!(grown(&rig, &before, Counter::FlowQuota)? >= 100, "counted, and not held");
    let rated = self::rig(EndpointLimits { egress_opens: RATE, ..UNLIMITED })?;
    let (before, start) = (rated.counters()?, std::time::Instant::now());
    flood(rated.pod("a/other"), rated.pod("b/remote"), FLOOD)?;
    let seconds = start.elapsed().as_secs() + 2;
    let passed = u64::from(FLOOD) - grown(&rated, &before, Counter::OpenRate)?;
    ensure!(passed <= seconds * u64::from(RATE) + 64, "{passed} began in {seconds} s");
    ensure!(passed >= u64::from(RATE), "only {passed} began");
    Ok(())
}

fn given_back() -> Result<()> {
    let mut rig = rig(LIMITS)?;
    let server = Server::start(&rig.pod("b/remote").netns, 80)?;
    let target = rig.at("b/remote", Family::V4, 80);
    let empty = rig.node_mut("n1").sweep()?.flows;
    for reset in [false, true] {
        let connection = Connection::open(&rig.pod("a/client").netns, target)?;
        ensure!(rig.node("n1").flows() == empty + 1, "{} flows", rig.node("n1").flows());
        if reset {
            connection.reset()?;
        } else {
            drop(connection);
        }
        eventually("the closed connection is forgotten", || Ok(rig.node("n1").flows() == empty))?;
    }
    // More of them one after the other than there may be at once.
    rig.node_mut("n1").sweep()?;
    let before = rig.counters()?;
    for _ in 0..MOST + 64 {
        Connection::open(&rig.pod("a/client").netns, target)?.reset()?;
    }
    ensure!(grown(&rig, &before, Counter::FlowQuota)? == 0, "closed connections are held against the pod");
    drop(server);
    flood(rig.pod("a/other"), rig.pod("b/remote"), 500)?;
    ensure!(rig.node_mut("n1").sweep()?.flows >= 500, "the flood's flows are remembered");
    rig.world.delete_pod("a/other")?;
    rig.apply(&[])?;
    let swept = rig.node_mut("n1").sweep()?;
    ensure!(swept.removed >= 500 && swept.flows < 100, "the flows of a pod that is gone: {swept:?}");
    Ok(())
}

/// Where the map that counts is full, an endpoint that is not in it is not without limits for that: it opens nothing,
/// and what others open to it is judged packet by packet.
fn no_room() -> Result<()> {
    const NOBODY: u32 = 1_000_000;
    let mut rig = rig(LIMITS)?;
    let served = Server::start(&rig.pod("a/other").netns, 80)?;
    let remote = Server::start(&rig.pod("b/remote").netns, 80)?;
    let mut quotas: pinned::Quotas = pinned::hash(&rig, "n1", "QUOTAS")?;
    for device in quotas.keys().collect::<Result<Vec<u32>, _>>()? {
        quotas.remove(&device)?;
    }
    let mut held = 0;
    // As after a storm of pods that came and went: devices that are gone.
    while quotas.insert(NOBODY + held, [0; 104], 0).is_ok() {
        held += 1;
        ensure!(held <= 2 * MAX_ENDPOINTS, "the map has no end");
    }
    ensure!(held >= MAX_ENDPOINTS, "full with {held}");
    let before = rig.counters()?;
    is_refused(rig.pod("a/other"), rig.at("b/remote", Family::V4, 80))?;
    flood(rig.pod("a/other"), rig.pod("b/remote"), 100)?;
    ensure!(grown(&rig, &before, Counter::FlowQuota)? >= 100, "flows without a limit");
    rig.same(&before, Counter::Allowed)?;
    // What is refused is told of by nobody: it could not be bounded.
    rig.grew(&before, Counter::EventLimit)?;
    rig.explain(reaches(rig.pod("b/remote"), rig.at("a/other", Family::V4, 80)))?;
    rig.grew(&before, Counter::Unremembered)?;
    // The walk over the table makes room again.
    rig.node_mut("n1").sweep()?;
    rig.explain(reaches(rig.pod("a/other"), rig.at("b/remote", Family::V4, 80)))?;
    drop((served, remote));
    Ok(())
}
