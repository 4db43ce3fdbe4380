//! Floods of connections to a port that L7 rules govern: forged ones cost neither the pod its clients nor the pod beside
//! it anything, and what is not remembered of a connection is the proxy's all the same.
//!
//! Whoever floods is a host outside, and wears a new address for each packet.

use crate::forge::{SECRET, Sniffer};
use crate::frames::{self, packet, tcp as segment, udp as datagram_of};
use crate::peers::{
    Connection, Proxy, SILENCE, SOON, Server, UdpServer, datagram, eventually, is_refused, reaches,
};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{Line, closed, ingress, tcp, udp};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::{Counter, EndpointLimits, NodeConfig};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Family, Netns};
use sluice_tests::{NodeSpec, Pod};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What an endpoint may have in one direction, and the room of the table.
const MOST: u32 = 1_024;
const ROOM: u32 = 16_384;
/// Packets of a flood: more than the table has room for.
const FLOOD: u32 = 20_000;
/// Bytes of a transfer beside it.
const SOME: usize = 2 * 1024 * 1024;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = SYN | ACK;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("quotas: through the proxy, forged connections close no port, routed veths", || {
            forged(NodeSpec::routed("n1"))
        }),
        test("quotas: through the proxy, forged connections close no port, bridge ports", || {
            forged(NodeSpec::bridged("n1"))
        }),
        test("quotas: through the proxy, beyond them a connection is whole, routed veths", || {
            beyond(NodeSpec::routed("n1"))
        }),
        test("quotas: through the proxy, beyond them a connection is whole, bridge ports", || {
            beyond(NodeSpec::bridged("n1"))
        }),
        test("quotas: through the proxy, what is forged is not remembered", unremembered),
        test("quotas: through the proxy, nobody takes its place", in_its_place),
        test("quotas: through the proxy, what is only audited passes", audited),
    ]
}

/// A node with small limits, which sends what is for the flood's addresses nowhere.
fn rig(node: NodeSpec, lines: &[Line]) -> Result<Rig> {
    let limits = EndpointLimits {
        ingress_flows: MOST,
        egress_flows: MOST,
        ingress_opens: 0,
        egress_opens: 0,
        answers: 1_000,
        refusal_events: 100,
        flow_events: 100,
    };
    let mut rig = Rig::with(node)?;
    let before = rig.config("n1");
    drop(rig.take("n1"));
    let n1 = rig.world.node("n1").netns.clone();
    n1.inside(|| sluice_redirect::Node::uninstall(&before))??;
    rig.open_with("n1", NodeConfig { limits, flows: ROOM, ..before })?;
    n1.ip_batch(&[
        "route add blackhole 198.18.0.0/15".to_owned(),
        "route add blackhole 2001:db8:f100::/40".to_owned(),
    ])?;
    rig.apply(lines)?;
    // The number of flows counts once somebody has counted them.
    rig.node_mut("n1").sweep()?;
    Ok(rig)
}

/// Whose SYNs the rules let come to the proxy: everybody.
fn governed(pod: &str) -> Vec<Line> {
    ["world", OUTSIDE, "b/remote", "a/client"].map(|peer| ingress(pod, peer, tcp(80, 80)).l7()).to_vec()
}

/// The flood's address and port of this number.
fn source(number: u32, family: Family) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    let address = match family {
        Family::V4 => IpAddr::from(Ipv4Addr::new(198, 18 | (a & 1), b, c)),
        Family::V6 => {
            IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0xf100, 0, 0, 0, u16::from(a), number as u16))
        }
    };
    SocketAddr::new(address, 1024 + (number % 60_000) as u16)
}

/// Sends what `of` makes of each number, until told to stop.
struct Flood<'a> {
    by: &'a Netns,
    stop: &'a AtomicBool,
    sent: &'a AtomicU32,
}

impl Flood<'_> {
    fn run(&self, count: u32, of: impl Fn(u32) -> Vec<(SocketAddr, Vec<u8>)> + Sync) -> Result<()> {
        self.by.inside(|| -> Result<()> {
            let raw = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(255)));
            let (v4, v6) = (raw(Domain::IPV4)?, raw(Domain::IPV6)?);
            v4.set_header_included_v4(true)?;
            v6.set_header_included_v6(true)?;
            for number in 0..count {
                if self.stop.load(Ordering::SeqCst) {
                    break;
                }
                for (to, bytes) in of(number) {
                    let socket = if to.is_ipv4() { &v4 } else { &v6 };
                    let target = SockAddr::from(SocketAddr::new(to.ip(), 0));
                    // A queue that is full is waited for: the kernel says so.
                    while let Err(error) = socket.send_to(&bytes, &target) {
                        ensure!(error.raw_os_error() == Some(105), "send: {error}");
                    }
                }
                self.sent.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        })?
    }
}

/// A flood from the host outside, all of it.
fn flood(rig: &Rig, count: u32, of: impl Fn(u32) -> Vec<(SocketAddr, Vec<u8>)> + Sync) -> Result<()> {
    let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    Flood { by: &rig.pod(OUTSIDE).netns, stop: &stop, sent: &sent }.run(count, of)
}

fn tcp_packet(from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> (SocketAddr, Vec<u8>) {
    (to, packet(from.ip(), to.ip(), frames::TCP, &segment(from, to, flags, payload)))
}

/// Takes all that the pod's ingress may have, with datagrams of ever new sources.
fn fill(rig: &mut Rig, pod: &str) -> Result<()> {
    let to = rig.at(pod, Family::V4, 53);
    flood(rig, MOST + MOST / 2, |number| {
        let from = source(number, Family::V4);
        vec![(to, packet(from.ip(), to.ip(), frames::UDP, &datagram_of(from, to, b"?")))]
    })?;
    let before = rig.counters()?;
    flood(rig, 50, |number| {
        let from = source(number + 500_000, Family::V4);
        vec![(to, packet(from.ip(), to.ip(), frames::UDP, &datagram_of(from, to, b"?")))]
    })?;
    eventually("the pod has all that it may", || {
        Ok(rig.counters()?.get(Counter::FlowQuota) >= before.get(Counter::FlowQuota) + 50)
    })
}

fn in_proxy(rig: &Rig, argv: &[&str]) -> Result<()> {
    let netns = format!("--net=/proc/{}/fd/{}", std::process::id(), rig.node("n1").proxy_netns().as_raw_fd());
    let output = Command::new("nsenter").args([&netns, "--"]).args(argv).output().context("nsenter")?;
    ensure!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// While a flood goes on: a pod that opens a connection, and uses it.
fn served(rig: &Rig, proxy: &Proxy, from: &str, target: SocketAddr) -> Result<()> {
    let before = proxy.count();
    reaches(rig.pod(from), target)?;
    let mut connection = Connection::open(&rig.pod(from).netns, target)?;
    connection.bulk(SOME)?;
    connection.echo("still here", SOON)?;
    ensure!(proxy.count() == before + 2, "{} of 2 passed the proxy", proxy.count() - before);
    Ok(())
}

/// One outsider sends SYNs from ever new addresses to a pod's port.
fn forged(node: NodeSpec) -> Result<()> {
    let lines = [
        governed("a/server"),
        governed("a/other"),
        vec![ingress("a/server", "b/remote", udp(53)), closed("a/server", Direction::Egress)],
    ]
    .concat();
    let mut rig = rig(node, &lines)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let servers = ["a/server", "a/other"].map(|pod| Server::start(&rig.pod(pod).netns, 80));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let before = rig.counters()?;
    let targets = Family::BOTH.map(|family| (family, rig.at("a/server", family, 80)));
    let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let outside = rig.pod(OUTSIDE).netns.clone();
        let (stop, sent) = (&stop, &sent);
        let flooding = scope.spawn(move || {
            Flood { by: &outside, stop, sent }.run(u32::MAX, |number| {
                let syn = |(family, to)| tcp_packet(source(number, family), to, SYN, &[]);
                targets.map(syn).to_vec()
            })
        });
        let done = (|| {
            while sent.load(Ordering::SeqCst) < FLOOD && !flooding.is_finished() {
                std::thread::sleep(SILENCE / 100);
            }
            for family in Family::BOTH {
                for pod in ["a/server", "a/other"] {
                    let target = rig.at(pod, family, 80);
                    for from in ["b/remote", "a/client"] {
                        let result = served(&rig, &proxy, from, target);
                        rig.explain(result).with_context(|| format!("{from} to {pod}, {family:?}"))?;
                    }
                }
                // What passes directly is answered: SYNs to the proxy do not take all that the pod may have.
                let at = rig.at("a/server", family, 53);
                let _dns = UdpServer::start(&rig.pod("a/server").netns, at)?;
                let local = rig.at("b/remote", family, 0);
                let answered = datagram(&rig.pod("b/remote").netns, local, at, SOON)?;
                rig.explain(if answered { Ok(()) } else { Err(anyhow::anyhow!("no answer to a datagram")) })?;
            }
            Ok(())
        })();
        stop.store(true, Ordering::SeqCst);
        flooding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done
    })?;
    let beyond = rig.counters()?.get(Counter::FlowQuota) - before.get(Counter::FlowQuota);
    ensure!(beyond > u64::from(FLOOD), "only {beyond} were beyond the quota");
    let swept = rig.node_mut("n1").sweep()?;
    ensure!(swept.flows < (MOST / 2 + MOST / 4) as usize, "the flood has left {swept:?}");
    drop(servers);
    Ok(())
}

/// Where a pod has all that it may, nothing is remembered of a SYN. What comes after is whole: who speaks first, with
/// and without cookies, and what hooks and the table say of it.
fn beyond(node: NodeSpec) -> Result<()> {
    let lines = [
        governed("a/server"),
        vec![ingress("a/server", "world", udp(53)), closed("a/server", Direction::Egress)],
    ]
    .concat();
    let mut rig = rig(node, &lines)?;
    rig.nft("n1", crate::l7::DROP_INVALID)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let server = Server::start(&rig.pod("a/server").netns, 80)?;
    fill(&mut rig, "a/server")?;
    for cookies in ["0", "1", "2"] {
        in_proxy(&rig, &["sh", "-c", &format!("echo {cookies} > /proc/sys/net/ipv4/tcp_syncookies")])?;
        for family in Family::BOTH {
            let target = rig.at("a/server", family, 80);
            for from in ["b/remote", "a/client", OUTSIDE] {
                let what = || format!("{from}, {family:?}, cookies {cookies}");
                let before = rig.counters()?;
                rig.explain(served(&rig, &proxy, from, target)).with_context(what)?;
                rig.grew(&before, Counter::FlowQuota)?;
                // Once its client is known to be there, it is a flow as any: its packets are known by look-up.
                let packets =
                    rig.counters()?.get(Counter::ProxiedPacket) - before.get(Counter::ProxiedPacket);
                ensure!(packets > 4, "{}: {packets} packets of a known flow", what());
                rig.same(&before, Counter::NotFromProxy).with_context(what)?;
            }
            // From the same port again, at once.
            let local = rig.at("b/remote", family, 40_000);
            for _ in 0..3 {
                let mut connection = Connection::open_from(&rig.pod("b/remote").netns, local, target)?;
                rig.explain(connection.echo("hello", SOON))?;
                connection.reset()?;
            }
        }
    }
    // The proxy is all that the server hears of.
    let had = server.connections.load(Ordering::SeqCst);
    ensure!(had == proxy.count(), "{had} connections came, {} through the proxy", proxy.count());
    // It is not there: nobody reaches the pod.
    proxy.stop()?;
    let had = server.connections.load(Ordering::SeqCst);
    for family in Family::BOTH {
        rig.explain(is_refused(rig.pod("b/remote"), rig.at("a/server", family, 80)))?;
    }
    ensure!(server.connections.load(Ordering::SeqCst) == had, "past the proxy");
    Ok(())
}

/// SYNs, acknowledgements of what nobody said, data and resets: no forged packet beyond the quota costs an entry, neither
/// by itself nor by what the proxy answers.
fn unremembered() -> Result<()> {
    let lines = [governed("a/server"), vec![ingress("a/server", "world", udp(53))]].concat();
    let mut rig = rig(NodeSpec::routed("n1"), &lines)?;
    let _proxy = Proxy::start(rig.node("n1"))?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    fill(&mut rig, "a/server")?;
    for cookies in ["1", "2"] {
        in_proxy(&rig, &["sh", "-c", &format!("echo {cookies} > /proc/sys/net/ipv4/tcp_syncookies")])?;
        let (empty, before) = (rig.node("n1").flows(), rig.counters()?);
        let targets = Family::BOTH.map(|family| (family, rig.at("a/server", family, 80)));
        flood(&rig, 3_000, |number| {
            let each = |(family, to)| {
                let from = source(number + 1_000_000, family);
                let packets =
                    [(SYN, &[][..]), (ACK, &[]), (ACK, b"GET / HTTP/1.1"), (ACK | 1, &[]), (RST, &[])];
                // No reset for half of them, so that what the listener keeps stays.
                let last = if number % 2 == 0 { 4 } else { 5 };
                packets[..last]
                    .iter()
                    .map(|(flags, bytes)| tcp_packet(from, to, *flags, bytes))
                    .collect::<Vec<_>>()
            };
            targets.map(each).concat()
        })?;
        eventually("it has all come", || {
            Ok(rig.counters()?.get(Counter::FlowQuota) >= before.get(Counter::FlowQuota) + 6_000)
        })?;
        let now = rig.node("n1").flows();
        let more = now.saturating_sub(empty);
        rig.explain(if more < 16 {
            Ok(())
        } else {
            Err(anyhow::anyhow!("cookies {cookies}: {more} entries"))
        })?;
    }
    Ok(())
}

/// Its own SYN from a port of ours, from a host whose connection is half open.
fn forged_by(pod: &Pod, from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Result<()> {
    let (_, bytes) = tcp_packet(from, to, flags, payload);
    pod.netns.inside(|| crate::forge::raw(to.ip(), &bytes))?
}

/// The pod itself answers, opens, or speaks on the ports of a connection that the proxy stands for, and nothing is
/// remembered of it. None of it comes out, and none of what the client says comes to the pod.
fn in_its_place() -> Result<()> {
    let lines = [governed("a/server"), vec![ingress("a/server", "world", udp(53))]].concat();
    for cookies in ["1", "2"] {
        let mut rig = rig(NodeSpec::routed("n1"), &lines)?;
        let _proxy = Proxy::start(rig.node("n1"))?;
        in_proxy(&rig, &["sh", "-c", &format!("echo {cookies} > /proc/sys/net/ipv4/tcp_syncookies")])?;
        fill(&mut rig, "a/server")?;
        let (server, bank) = (rig.pod("a/server").clone(), rig.pod(OUTSIDE).clone());
        // Nobody there answers by itself.
        for pod in [&server, &bank] {
            pod.netns.run(&[
                "nft",
                "table inet mute { chain out { type filter hook output priority 0; \
                tcp flags rst drop; }; }",
            ])?;
        }
        let (client, at) = (SocketAddr::new(bank.v4.into(), 4_000), rig.at("a/server", Family::V4, 80));
        let heard = Sniffer::start(&bank.netns, Domain::IPV4, 6)?;
        let came = Sniffer::start(&server.netns, Domain::IPV4, 6)?;
        forged_by(&bank, client, at, SYN, &[])?;
        eventually("the proxy has answered", || {
            Ok(heard.wait(SOON, |packet| packet[33] == SYN_ACK).is_some())
        })?;
        for (flags, payload) in [(SYN_ACK, &[][..]), (ACK, SECRET), (ACK, &[])] {
            let before = rig.counters()?;
            forged_by(&server, at, client, flags, payload)?;
            eventually("it is refused", || {
                Ok(rig.counters()?.get(Counter::NotFromProxy) > before.get(Counter::NotFromProxy))
            })
            .with_context(|| format!("flags {flags:x}, cookies {cookies}"))?;
        }
        if cookies == "1" {
            // With a cookie alone nobody knows of a connection.
            let before = rig.counters()?;
            forged_by(&server, at, client, SYN, &[])?;
            eventually("its own SYN is refused", || {
                Ok(rig.counters()?.get(Counter::NotFromProxy) > before.get(Counter::NotFromProxy))
            })?;
        }
        ensure!(!heard.saw_secret(), "the pod has answered in the proxy's place");
        forged_by(&bank, client, at, ACK, SECRET)?;
        ensure!(!came.saw_secret(), "what the client says to the proxy comes to the pod");
        // What the pod has open from that port itself is not the proxy's; then a client is not let in there.
        let other = SocketAddr::new(bank.v4.into(), 4_001);
        forged_by(&server, at, other, SYN, &[])?;
        ensure!(heard.wait(SOON, |packet| packet[33] == SYN).is_some(), "the pod opens nothing");
        let before = rig.counters()?;
        forged_by(&bank, other, at, SYN, &[])?;
        eventually("counted", || {
            Ok(rig.counters()?.get(Counter::FlowQuota) > before.get(Counter::FlowQuota))
        })?;
        rig.same(&before, Counter::ToProxy)?;
        rig.same(&before, Counter::AssignedNew)?;
    }
    Ok(())
}

/// Where only audited policies want the proxy, a flow that is not remembered passes: it would be broken off else.
fn audited() -> Result<()> {
    let lines = [
        ingress("a/server", "b/remote", tcp(80, 80)).l7().audited(),
        ingress("a/server", "world", udp(53)).audited(),
    ];
    let mut rig = rig(NodeSpec::routed("n1"), &lines)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    rig.explain(reaches(rig.pod("b/remote"), rig.at("a/server", Family::V4, 80)))?;
    ensure!(proxy.count() == 1, "the proxy watches");
    fill(&mut rig, "a/server")?;
    in_proxy(&rig, &["sh", "-c", "echo 2 > /proc/sys/net/ipv4/tcp_syncookies"])?;
    for family in Family::BOTH {
        let mut connection = Connection::open(&rig.pod("b/remote").netns, rig.at("a/server", family, 80))?;
        rig.explain(connection.bulk(SOME))?;
    }
    ensure!(proxy.count() == 1, "it was not remembered, and went to the proxy");
    Ok(())
}
