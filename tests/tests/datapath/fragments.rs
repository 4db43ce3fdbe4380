//! Fragments: large datagrams pass where small ones do, and nowhere else; and nothing is carried in by a fragment that
//! no judged one goes before.

use crate::frames::{self, GATEWAY, Place, TCP, Tap, UDP, Wire, contains, frame, kind, octets};
use crate::peers::{Proxy, SOON, UdpServer, eventually};
use crate::rig::Rig;
use crate::rules::{Line, closed, egress, icmp, ingress, tcp, udp};
use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::{Counter, MAX_FRAGMENTS};
use sluice_tests::NodeSpec;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Family, Netns};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Three fragments at an MTU of 1500.
const LARGE: usize = 4_000;
/// How long what must not arrive is waited for, once what must has.
const LATE: Duration = Duration::from_millis(200);

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("fragments: large datagrams, routed veths", || large(NodeSpec::routed("n1"), false)),
        test("fragments: large datagrams, put together and cut again", || {
            large(NodeSpec::routed("n1"), true)
        }),
        test("fragments: large datagrams, bridge ports", || large(NodeSpec::bridged("n1"), false)),
        test("fragments: large datagrams, bridge ports, br_netfilter on", || {
            large(NodeSpec::bridged("n1").br_netfilter(true), true)
        }),
        test("fragments: forged ones follow no judged one", forged),
        test("fragments: one pod's flood takes no other pod's", flood),
        test("fragments: none goes to the proxy", to_proxy),
    ]
}

/// Closed but for these ways: what comes back, comes back as an answer.
fn lines() -> Vec<Line> {
    vec![
        egress("a/client", "a/server", udp(53)),
        egress("a/client", "a/server", icmp()),
        egress("a/client", "b/remote", udp(53)),
        closed("a/client", Direction::Ingress),
        ingress("a/server", "a/client", udp(53)),
        ingress("a/server", "a/client", icmp()),
        ingress("a/server", "b/remote", udp(53)),
        egress("a/client", "b/remote", tcp(80, 80)),
        ingress("a/server", "b/remote", tcp(80, 80)),
        closed("a/server", Direction::Egress),
    ]
}

/// A datagram of this many bytes there and back, whole.
fn exchange(
    netns: &Netns,
    local: SocketAddr,
    target: SocketAddr,
    bytes: usize,
    within: Duration,
) -> Result<bool> {
    netns.inside(|| -> Result<bool> {
        let socket = UdpSocket::bind(local)?;
        socket.set_read_timeout(Some(within))?;
        let payload: Vec<u8> = (0..=250).cycle().take(bytes).collect();
        socket.send_to(&payload, target)?;
        let mut buffer = vec![0; bytes + 1];
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if from == target && buffer[..length] == payload => Ok(true),
            Ok((length, from)) => bail!("{length} other bytes from {from}"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error.into()),
        }
    })?
}

/// Conntrack puts fragments together where it is in use, and the node cuts them again.
fn track(rig: &Rig) -> Result<()> {
    let rules = "table inet tracked {\n  chain forward {\n    type filter hook forward priority 0; policy accept;\n    ct state invalid drop\n  }\n}\n";
    let file = rig.world.dir().join("tracked.nft");
    std::fs::write(&file, rules)?;
    rig.world.node("n1").netns.run(&["nft", "-f", &file.display().to_string()])?;
    Ok(())
}

fn large(node: NodeSpec, tracked: bool) -> Result<()> {
    let mut rig = Rig::with(node)?;
    if tracked {
        track(&rig)?;
    }
    rig.apply(&lines())?;
    let ways = [("a/client", "a/server"), ("a/client", "b/remote"), ("b/remote", "a/server")];
    let steps = |family: Family, (from, to): (&str, &str)| -> Result<()> {
        let netns = &rig.pod(from).netns;
        let local = rig.at(from, family, 4000);
        let (open, shut) = (rig.at(to, family, 53), rig.at(to, family, 54));
        let _open = UdpServer::start(&rig.pod(to).netns, open)?;
        let silent = UdpServer::start(&rig.pod(to).netns, shut)?;
        let before = rig.counters()?;
        for _ in 0..3 {
            ensure!(
                exchange(netns, local, open, LARGE, SOON)?,
                "{from} to {open}: no answer to a large datagram"
            );
        }
        rig.grew(&before, Counter::FragmentPassed)?;
        rig.same(&before, Counter::Fragment)?;
        let (before, tap) = (rig.counters()?, Tap::start(&rig.pod(to).netns)?);
        ensure!(!exchange(netns, local, shut, LARGE, LATE)?, "{from} to {shut}: an answer against the rules");
        ensure!(silent.datagrams.load(Ordering::SeqCst) == 0, "a datagram against the rules");
        // Where the node cuts it again, it stops at the first part that is refused.
        if !(tracked && from == "b/remote") {
            rig.grew(&before, Counter::Fragment)?;
        }
        rig.same(&before, Counter::FragmentPassed)?;
        while let Some(frame) = tap.next()? {
            let ours = contains(&frame[12..14], &kind(open.ip()).to_be_bytes())
                && contains(&frame, &octets(rig.pod(from).ip(family)))
                && frame.len() > 500;
            ensure!(!ours, "{from} to {shut}: a part of what was refused came");
        }
        Ok(())
    };
    rig.explain((|| {
        for family in Family::BOTH {
            for way in ways {
                steps(family, way)?;
            }
            ensure!(pings(&rig, "a/client", "a/server", family)?, "no answer to a large echo request");
            let before = rig.counters()?;
            ensure!(!pings(&rig, "a/server", "a/client", family)?, "a large ping against the rules");
            rig.grew(&before, Counter::Fragment)?;
            // From a socket of the node itself, and back to it.
            let (node, target) = (rig.world.node("n1"), rig.at("a/server", family, 55));
            let _server = UdpServer::start(&rig.pod("a/server").netns, target)?;
            let local = SocketAddr::new(family.pick(node.v4, node.v6), 0);
            ensure!(exchange(&node.netns, local, target, LARGE, SOON)?, "the node gets no large answer");
        }
        Ok(())
    })())
}

/// An echo request of [`LARGE`] bytes there and back.
fn pings(rig: &Rig, from: &str, to: &str, family: Family) -> Result<bool> {
    let (size, target) = (LARGE.to_string(), rig.pod(to).ip(family).to_string());
    let output = rig.pod(from).netns.output(&["ping", "-c", "1", "-W", "1", "-s", &size, &target])?;
    Ok(output.status.success())
}

/// A way for fragments: the wire they are sent on, and where they must come out.
struct Way {
    wire: Wire,
    tap: Tap,
    src: IpAddr,
    dst: IpAddr,
}

impl Way {
    fn new(rig: &Rig, from: &str, to: &str, family: Family) -> Result<Self> {
        let (from, to) = (rig.pod(from), rig.pod(to));
        let wire = Wire::open(&from.netns, "eth0")?;
        Ok(Self { wire, tap: Tap::start(&to.netns)?, src: from.ip(family), dst: to.ip(family) })
    }

    fn send(&self, place: Place, protocol: u8, body: &[u8]) -> Result<()> {
        let packet = frames::part(self.src, self.dst, protocol, place, body);
        self.wire.send(&frame(GATEWAY, self.wire.mac, kind(self.src), &packet))
    }

    /// The beginning of a datagram to a port: 64 bytes, and no other like it.
    fn datagram(&self, port: u16, id: u16) -> Vec<u8> {
        let payload = format!("{id:>8}, the first of {:>38}", self.src.to_string());
        frames::udp(
            SocketAddr::new(self.src, 4000),
            SocketAddr::new(self.dst, port),
            &payload.as_bytes()[..56],
        )
    }

    /// The beginning of a segment: 24 bytes.
    fn segment(&self, flags: u8, id: u16) -> Vec<u8> {
        let [high, low] = id.to_be_bytes();
        let (src, dst) = (SocketAddr::new(self.src, 4000), SocketAddr::new(self.dst, 80));
        frames::tcp(src, dst, flags, &[high, low, 0x5a, 0xa5])
    }

    /// Sends a fragment, which must come out, or be dropped for a reason.
    fn step(
        &self,
        rig: &Rig,
        protocol: u8,
        place: Place,
        body: &[u8],
        dropped: Option<Counter>,
    ) -> Result<()> {
        let before = rig.counters()?;
        self.send(place, protocol, body)?;
        let what = format!("{place:?} of protocol {protocol}, {} to {}: {dropped:?}", self.src, self.dst);
        if let Some(reason) = dropped {
            eventually(&what, || Ok(rig.counters()?.get(reason) > before.get(reason)))?;
        }
        let came = self.tap.sees(body, if dropped.is_some() { LATE } else { SOON })?;
        ensure!(came == dropped.is_none(), "{what}: came: {came}");
        Ok(())
    }
}

const fn first(id: u16) -> Place {
    Place { id, offset: 0, more: true }
}

const fn later(id: u16, offset: usize) -> Place {
    Place { id, offset, more: false }
}

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

fn forged() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&lines())?;
    let ways = [("a/client", "b/remote"), ("b/remote", "a/server")];
    rig.explain((|| {
        for family in Family::BOTH {
            for (from, to) in ways {
                let way = Way::new(&rig, from, to, family)?;
                datagrams(&rig, &way)?;
                segments(&rig, &way)?;
            }
        }
        Ok(())
    })())?;
    // What was judged under another generation covers nothing.
    for (family, (from, to)) in Family::BOTH.into_iter().flat_map(|family| ways.map(|way| (family, way))) {
        let way = Way::new(&rig, from, to, family)?;
        way.step(&rig, UDP, first(900), &way.datagram(53, 900), None)?;
        rig.apply(&lines())?;
        let old = way.step(&rig, UDP, later(900, 64), b"of an old generation", Some(Counter::Fragment));
        rig.explain(old)?;
    }
    Ok(())
}

fn datagrams(rig: &Rig, way: &Way) -> Result<()> {
    let marked = |mark: &str| format!("{mark}, {} to {}", way.src, way.dst).into_bytes();
    let none = Some(Counter::Fragment);
    way.step(rig, UDP, later(1, 64), &marked("before its first"), none)?;
    way.step(rig, UDP, first(1), &way.datagram(53, 1), None)?;
    way.step(rig, UDP, later(1, 64), &marked("after it"), None)?;
    way.step(rig, UDP, later(1, 8), &marked("right behind the header"), None)?;
    way.step(rig, UDP, later(2, 64), &marked("another packet's"), none)?;
    way.step(rig, UDP, first(3), &way.datagram(54, 3), Some(Counter::Denied))?;
    way.step(rig, UDP, later(3, 64), &marked("of a refused one"), none)?;
    // What is refused does not take an allowed one's place, nor an allowed one's rest along.
    way.step(rig, UDP, first(1), &way.datagram(54, 1), Some(Counter::Denied))?;
    let cut = Place { id: 1, offset: 64, more: true };
    way.step(rig, UDP, cut, &marked("not of eight bytes, ")[..21], Some(Counter::Malformed))?;
    way.step(rig, UDP, later(1, 65_528), &marked("beyond the largest packet"), Some(Counter::Malformed))?;
    way.step(rig, UDP, later(1, 64), b"", Some(Counter::Malformed)).or_else(|error| {
        // An empty one cannot be told from others where it arrives; its counter can.
        if error.to_string().contains("came: true") { Ok(()) } else { Err(error) }
    })
}

/// The header of TCP is longer than the smallest fragment.
fn segments(rig: &Rig, way: &Way) -> Result<()> {
    let over = Some(Counter::FragmentOverlap);
    way.step(rig, TCP, first(10), &way.segment(ACK, 10), None)?;
    for offset in [8, 16] {
        let body = format!("over the header, {} to {}", way.src, way.dst).into_bytes();
        way.step(rig, TCP, later(10, offset), &body, over)?;
    }
    let body = format!("behind the header, {} to {}", way.src, way.dst).into_bytes();
    way.step(rig, TCP, later(10, 24), &body, None)?;
    // Too short: the flags, or options, would come in the next one.
    way.step(rig, TCP, first(11), &way.segment(SYN, 11)[..16], over)?;
    let mut options = way.segment(SYN, 12);
    options[12] = 0x80;
    way.step(rig, TCP, first(12), &options, over)
}

/// More first fragments than there are places on the node, of another pod.
fn flood() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[closed("a/client", Direction::Ingress)])?;
    rig.explain((|| {
        for family in Family::BOTH {
            let mut client = Way::new(&rig, "a/client", "b/remote", family)?;
            let other = Wire::open(&rig.pod("a/other").netns, "eth0")?;
            let src = rig.pod("a/other").ip(family);
            client.step(&rig, UDP, first(20), &client.datagram(53, 20), None)?;
            let before = rig.counters()?;
            for id in 0..MAX_FRAGMENTS + 8_192 {
                let to = SocketAddr::new(client.dst, 53);
                let body = frames::udp(SocketAddr::new(src, 4000), to, &[0; 16]);
                let place = first(u16::try_from(id % 65_536)?);
                let packet = frames::part(src, client.dst, UDP, place, &body);
                other.send(&frame(GATEWAY, other.mac, kind(src), &packet))?;
            }
            let passed =
                |now: &sluice_redirect::Counters| now.get(Counter::Known) - before.get(Counter::Known);
            let all = u64::from(MAX_FRAGMENTS);
            eventually("the flood is through", || Ok(passed(&rig.counters()?) > all))?;
            client.tap = Tap::start(&rig.pod("b/remote").netns)?;
            client.step(&rig, UDP, later(20, 64), b"after the flood", None)?;
        }
        Ok(())
    })())
}

fn to_proxy() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        egress("a/client", "b/remote", tcp(80, 80)).l7(),
        ingress("a/server", "b/remote", tcp(80, 80)).l7(),
    ])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    rig.explain((|| {
        for family in Family::BOTH {
            for (from, to) in [("a/client", "b/remote"), ("b/remote", "a/server")] {
                let way = Way::new(&rig, from, to, family)?;
                way.step(&rig, TCP, first(30), &way.segment(SYN, 30), Some(Counter::Fragment))?;
                way.step(&rig, TCP, later(30, 24), b"the rest of it", Some(Counter::Fragment))?;
                if family == Family::V6 {
                    let only = Place { id: 31, offset: 0, more: false };
                    way.step(&rig, TCP, only, &way.segment(SYN, 31), Some(Counter::Fragment))?;
                }
            }
        }
        ensure!(proxy.count() == 0, "the proxy accepted a part of a connection");
        Ok(())
    })())
}
