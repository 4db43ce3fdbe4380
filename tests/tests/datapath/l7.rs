//! What L7 rules govern goes through the proxy, with the client's own address, wherever the two ends are;
//! nothing else does; and nobody gets at a socket that is not theirs.

use crate::forge::{self, Segment};
use crate::peers::{
    Connection, Proxy, SILENCE, SOON, Server, UdpServer, datagram, eventually, is_refused, ping, reaches,
};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{Line, closed, egress, ingress, tcp};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Direction, PortSet};
use sluice_redirect::Counter;
use sluice_tests::NodeSpec;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

pub(crate) fn tests() -> Vec<Trial> {
    let bridge = std::path::PathBuf::from("/proc/sys/net/bridge");
    vec![
        harness::test("l7: routed veths", [Need::Bpf], || everywhere(NodeSpec::routed("n1"))),
        harness::test("l7: bridge ports, br_netfilter off", [Need::Bpf], || {
            everywhere(NodeSpec::bridged("n1"))
        }),
        harness::test("l7: bridge ports, br_netfilter on", [Need::Bpf, Need::Path(bridge)], || {
            everywhere(NodeSpec::bridged("n1").br_netfilter(true))
        }),
        harness::test("l7: routed veths, conntrack drops invalid", [Need::Bpf], || {
            drop_invalid(NodeSpec::routed("n1"))
        }),
        harness::test("l7: bridge ports, conntrack drops invalid", [Need::Bpf], || {
            drop_invalid(NodeSpec::bridged("n1"))
        }),
        harness::test(
            "l7: bridge ports, br_netfilter on, conntrack drops invalid",
            [Need::Bpf, Need::Path("/proc/sys/net/bridge".into())],
            || drop_invalid(NodeSpec::bridged("n1").br_netfilter(true)),
        ),
        harness::test("l7: what no l7 rule governs never enters the proxy", [Need::Bpf], not_governed),
        harness::test("l7: from a pod to its own node", [Need::Bpf], to_the_node),
        harness::test("l7: a proxy at both ends", [Need::Bpf], both_nodes),
        harness::test("l7: a local address from elsewhere is forged", [Need::Bpf], from_elsewhere),
        harness::test("l7: through translated addresses", [Need::Bpf], translated),
        harness::test("l7: a strict rp_filter on the node", [Need::Bpf], strict_rp_filter),
        harness::test("l7: many connections and bulk", [Need::Bpf], many),
        harness::test("l7: ports used again at once", [Need::Bpf], ports_again),
        harness::test("l7: a forged segment reaches nobody's socket", [Need::Bpf], forged),
    ]
}

/// As kube-proxy has it: what conntrack does not understand is dropped.
pub(crate) const DROP_INVALID: &str = "table inet strict {
    chain forward { type filter hook forward priority 0; ct state invalid drop; }
    chain input { type filter hook input priority 0; ct state invalid drop; }
}";

/// From each side and to each side, judged at A, at B and at both.
fn everywhere(node: NodeSpec) -> Result<()> {
    carried(Rig::with(node)?)
}

fn drop_invalid(node: NodeSpec) -> Result<()> {
    let rig = Rig::with(node)?;
    let file = rig.world.dir().join("strict.nft");
    std::fs::write(&file, DROP_INVALID)?;
    rig.world.node("n1").netns.run(&["nft", "-f", &file.display().to_string()])?;
    carried(rig)
}

fn carried(mut rig: Rig) -> Result<()> {
    rig.apply(&[])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let _remote = Server::start(&rig.pod("b/remote").netns, 80)?;
    let _bank = Server::start(&rig.pod(OUTSIDE).netns, 80)?;
    let at_a = |peer| vec![egress("a/client", peer, tcp(80, 80)).l7()];
    let at_b = |peer| vec![ingress("a/server", peer, tcp(80, 80)).l7()];
    let both = [at_a("a/server"), at_b("a/client")].concat();
    // The replies of what the proxy opens pass under default deny too.
    let with = |mut lines: Vec<Line>| {
        lines.extend([closed("a/client", Direction::Ingress), closed("a/server", Direction::Egress)]);
        lines
    };
    let cases = [
        ("a/client", "b/remote", with(at_a("b/remote"))),
        ("a/client", OUTSIDE, with(at_a(OUTSIDE))),
        ("a/client", "a/server", with(at_a("a/server"))),
        ("b/remote", "a/server", with(at_b("b/remote"))),
        (OUTSIDE, "a/server", with(at_b(OUTSIDE))),
        ("a/client", "a/server", at_b("a/client")),
        ("a/client", "a/server", both),
    ];
    for (number, (from, to, lines)) in cases.iter().enumerate() {
        rig.apply(lines)?;
        for family in Family::BOTH {
            let target = rig.at(to, family, 80);
            let before = proxy.count();
            let result = reaches(rig.pod(from), target);
            rig.explain(result).with_context(|| format!("case {number}: {from} to {to}, {family:?}"))?;
            let accepted = proxy.accepted.lock().expect("not poisoned").clone();
            ensure!(
                accepted.len() == before + 1,
                "case {number}: {from} to {to} did not pass the proxy once"
            );
            let (client, original) = accepted[before];
            ensure!(client.ip() == rig.pod(from).ip(family), "the proxy saw {client}");
            ensure!(original == target, "the original destination {target} came out as {original}");
        }
    }
    Ok(())
}

fn not_governed() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        ingress("a/server", "a/client", tcp(80, 80)).l7(),
        ingress("a/server", "a/client", tcp(81, 65_535)),
        ingress("a/server", "a/client", crate::rules::udp(80)),
        ingress("a/server", "a/client", crate::rules::icmp()),
    ])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let _server = Server::start(&rig.pod("a/server").netns, 81)?;
    let before = rig.counters()?;
    rig.explain((|| {
        for family in Family::BOTH {
            reaches(rig.pod("a/client"), rig.at("a/server", family, 81))?;
            let target = rig.at("a/server", family, 80);
            let _udp = UdpServer::start(&rig.pod("a/server").netns, target)?;
            let local = rig.at("a/client", family, 0);
            ensure!(datagram(&rig.pod("a/client").netns, local, target, SOON)?, "no answer to a datagram");
            ensure!(ping(rig.pod("a/client"), target.ip())?, "no ping");
        }
        Ok(())
    })())?;
    rig.same(&before, Counter::ToProxy)?;
    rig.same(&before, Counter::AssignedNew)?;
    ensure!(proxy.count() == 0, "the proxy had a connection");
    Ok(())
}

fn to_the_node() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        rig.apply(&[egress("a/client", "world", tcp(9000, 9000)).l7()])?;
        let proxy = Proxy::start(rig.node("n1"))?;
        let n1 = rig.world.node("n1").clone();
        let _server = Server::start(&n1.netns, 9000)?;
        for family in Family::BOTH {
            let target = SocketAddr::new(family.pick(n1.v4, n1.v6), 9000);
            rig.explain(reaches(rig.pod("a/client"), target))?;
        }
        ensure!(proxy.count() == 2, "{} connections passed the proxy", proxy.count());
    }
    Ok(())
}

/// What a service's address is translated to is judged as what it is, and both ends still talk.
fn translated() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[])?;
    let (server, remote, bank) = (rig.pod("a/server").v4, rig.pod("b/remote").v4, rig.pod(OUTSIDE).v4);
    let n1 = rig.world.node("n1").clone();
    let rules = format!(
        "{DROP_INVALID}
        table ip services {{
            chain pre {{ type nat hook prerouting priority -100;
                ip daddr 10.96.0.10 tcp dport 80 dnat to {server}
                ip daddr 10.96.0.11 tcp dport 80 dnat to {remote}
                ip daddr {node} tcp dport 30080 dnat to {server}:80
            }}
            chain post {{ type nat hook postrouting priority 100; ip daddr {bank} masquerade; }}
        }}",
        node = n1.v4
    );
    let file = rig.world.dir().join("services.nft");
    std::fs::write(&file, rules)?;
    n1.netns.run(&["nft", "-f", &file.display().to_string()])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let servers = ["a/server", "b/remote", OUTSIDE].map(|pod| Server::start(&rig.pod(pod).netns, 80));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let (local, far) = (SocketAddr::from(([10, 96, 0, 10], 80)), SocketAddr::from(([10, 96, 0, 11], 80)));
    let through = |rig: &mut Rig, lines: &[Line], target, times| -> Result<()> {
        rig.apply(lines)?;
        let before = proxy.count();
        let result = reaches(rig.pod("a/client"), target).with_context(|| format!("{lines:?}"));
        rig.explain(result)?;
        ensure!(
            proxy.count() == before + times,
            "{} times through the proxy: {lines:?}",
            proxy.count() - before
        );
        Ok(())
    };
    let service = egress("a/client", "world", tcp(80, 80)).l7();
    let closed_server = closed("a/server", Direction::Egress);
    through(&mut rig, std::slice::from_ref(&service), far, 1)?;
    through(&mut rig, &[service.clone(), closed("a/client", Direction::Ingress)], local, 1)?;
    // The server's own rules hold, whatever name it was asked by.
    let allow = ingress("a/server", "a/client", tcp(80, 80));
    through(&mut rig, &[service.clone(), allow.clone(), closed_server.clone()], local, 1)?;
    through(&mut rig, &[service.clone(), allow.l7(), closed_server.clone()], local, 2)?;
    let had = servers[0].connections.load(Ordering::SeqCst);
    rig.apply(&[service, ingress("a/server", "b/remote", tcp(80, 80))])?;
    let refused = Connection::open(&rig.pod("a/client").netns, local);
    rig.explain(if refused.is_err() {
        Ok(())
    } else {
        Err(anyhow::anyhow!("the server's rules were walked round"))
    })?;
    ensure!(
        servers[0].connections.load(Ordering::SeqCst) == had,
        "the refused connection reached the server"
    );
    // Out through a masquerade, and in through a node's port.
    rig.apply(&[
        egress("a/client", OUTSIDE, tcp(80, 80)).l7(),
        ingress("a/server", OUTSIDE, tcp(80, 80)).l7(),
    ])?;
    let before = proxy.count();
    let out = Connection::open(&rig.pod("a/client").netns, SocketAddr::new(bank.into(), 80))
        .and_then(|mut connection| connection.echo("hello", SOON).map(|()| connection));
    ensure!(rig.explain(out)?.seen == IpAddr::V4(n1.v4), "not masqueraded");
    rig.explain(reaches(rig.pod(OUTSIDE), SocketAddr::new(n1.v4.into(), 30_080)))?;
    ensure!(proxy.count() == before + 2, "not both passed the proxy");
    Ok(())
}

fn both_nodes() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.open("n2")?;
    rig.apply_on("n1", &[egress("a/client", "b/remote", tcp(80, 80)).l7()])?;
    rig.apply_on("n2", &[ingress("b/remote", "a/client", tcp(80, 80)).l7()])?;
    let proxies = [Proxy::start(rig.node("n1"))?, Proxy::start(rig.node("n2"))?];
    let _remote = Server::start(&rig.pod("b/remote").netns, 80)?;
    for family in Family::BOTH {
        rig.explain(reaches(rig.pod("a/client"), rig.at("b/remote", family, 80)))?;
        is_refused(rig.pod("a/server"), rig.at("b/remote", family, 80))?;
    }
    ensure!(proxies.iter().all(|proxy| proxy.count() == 2), "not both proxies had both connections");
    Ok(())
}

/// A host elsewhere that wears a local pod's address is not that pod, whatever routes the node has.
fn from_elsewhere() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[ingress("a/server", "a/client", PortSet::All)])?;
    let bank = rig.pod(OUTSIDE).netns.clone();
    let client = rig.pod("a/client").clone();
    bank.ip_batch(&[
        format!("addr add {}/32 dev eth0", client.v4),
        format!("addr add {}/128 dev eth0", client.v6),
    ])?;
    for family in Family::BOTH {
        let target = rig.at("a/server", family, 53);
        let server = UdpServer::start(&rig.pod("a/server").netns, target)?;
        let before = rig.counters()?;
        let forged = rig.at("a/client", family, 4000);
        ensure!(!datagram(&bank, forged, target, SILENCE)?, "an answer to a forged datagram");
        ensure!(server.datagrams.load(Ordering::SeqCst) == 0, "a forged datagram reached the server");
        rig.grew(&before, Counter::Spoofed)?;
        let own = rig.at("a/client", family, 4001);
        ensure!(datagram(&client.netns, own, target, SOON)?, "the pod's own datagram did not pass");
    }
    Ok(())
}

fn strict_rp_filter() -> Result<()> {
    let strict = NodeSpec::routed("n1").sysctl("net.ipv4.conf.all.rp_filter", "1");
    let mut rig = Rig::with(strict)?;
    rig.apply(&[
        egress("a/client", OUTSIDE, tcp(80, 80)).l7(),
        ingress("a/server", "b/remote", tcp(80, 80)).l7(),
    ])?;
    let _proxy = Proxy::start(rig.node("n1"))?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let _bank = Server::start(&rig.pod(OUTSIDE).netns, 80)?;
    rig.explain(reaches(rig.pod("a/client"), rig.at(OUTSIDE, Family::V4, 80)))?;
    rig.explain(reaches(rig.pod("b/remote"), rig.at("a/server", Family::V4, 80)))
}

fn many() -> Result<()> {
    const CONNECTIONS: usize = 60;
    const BULK: usize = 16 * 1024 * 1024;
    let mut rig = Rig::routed()?;
    rig.apply(&[
        egress("a/client", "b/remote", tcp(80, 80)).l7(),
        ingress("a/server", "b/remote", tcp(80, 80)).l7(),
    ])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let _remote = Server::start(&rig.pod("b/remote").netns, 80)?;
    let run = |from: &str, to: &str, family| -> Result<()> {
        let (netns, target) = (rig.pod(from).netns.clone(), rig.at(to, family, 80));
        let mut open =
            (0..CONNECTIONS).map(|_| Connection::open(&netns, target)).collect::<Result<Vec<_>>>()?;
        for (number, connection) in open.iter_mut().enumerate() {
            connection.echo(&format!("line {number}"), SOON)?;
        }
        open[0].bulk(BULK)
    };
    rig.explain((|| {
        for family in Family::BOTH {
            run("a/client", "b/remote", family)?;
            run("b/remote", "a/server", family)?;
        }
        Ok(())
    })())?;
    ensure!(proxy.count() == 4 * CONNECTIONS, "{} connections passed the proxy", proxy.count());
    Ok(())
}

/// A client that closes and takes the same port at once meets the proxy's socket in TIME_WAIT or a flow that
/// is remembered; neither may keep it out.
fn ports_again() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[egress("a/client", "b/remote", tcp(80, 80)).l7()])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let _remote = Server::start(&rig.pod("b/remote").netns, 80)?;
    for family in Family::BOTH {
        let (local, target) = (rig.at("a/client", family, 40_000), rig.at("b/remote", family, 80));
        for _ in 0..5 {
            // Reset, so that the client's own port is free at once.
            let mut connection = Connection::open_from(&rig.pod("a/client").netns, local, target)?;
            connection.echo("hello", SOON)?;
            connection.reset()?;
        }
    }
    ensure!(proxy.count() == 10, "{} connections passed the proxy", proxy.count());
    Ok(())
}

/// A segment with another's address, the right ports and the right numbers is taken for the other's. It gets
/// through where none of our hooks is; where they are it gets nowhere, and the proxy does not carry it either.
fn forged() -> Result<()> {
    let mut rig = Rig::routed()?;
    let everything = [
        egress("a/client", "world", PortSet::All).l7(),
        egress("a/client", OUTSIDE, PortSet::All).l7(),
        egress("a/client", "b/remote", PortSet::All).l7(),
    ];
    rig.apply(&everything)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let node = rig.world.node("n1").clone();
    // The victim is a process of the node, which talks to a host outside.
    let victim = Server::start(&node.netns, 5000)?;
    let bank = rig.pod(OUTSIDE).clone();
    let mut talk = Connection::open(&bank.netns, SocketAddr::new(IpAddr::V4(node.v4), 5000))?;
    let SocketAddr::V4(local) = talk.local()? else { unreachable!("an IPv4 connection") };
    let sniffer = forge::sniffer(&bank.netns)?;
    let forge = |rig: &Rig, pod: &str, payload: &'static [u8], talk: &mut Connection| -> Result<()> {
        talk.echo("tick", SOON)?;
        let numbers = forge::last_acknowledgement(&sniffer, node.v4, 5000, local.port())?;
        let segment = Segment {
            source: local,
            target: std::net::SocketAddrV4::new(node.v4, 5000),
            sequence: numbers.acknowledged,
            acknowledgement: numbers.sequence,
            payload,
        };
        rig.pod(pod).netns.inside(|| segment.send())?
    };
    let received = |text: &str| {
        let all = victim.received.lock().expect("not poisoned");
        String::from_utf8_lossy(&all).contains(text)
    };
    let before = rig.counters()?;
    forge(&rig, "a/client", b"forged-on-n1", &mut talk)?;
    eventually("the forged segment is counted", || {
        Ok(rig.counters()?.get(Counter::Spoofed) > before.get(Counter::Spoofed))
    })?;
    talk.echo("still here", SOON)?;
    ensure!(!received("forged-on-n1"), "the forged segment reached a process of the node");
    ensure!(proxy.count() == 0, "the forged segment reached the proxy");
    // The same attack from a pod that no hook watches works: the test would notice.
    forge(&rig, "b/remote", b"forged-on-n2", &mut talk)?;
    eventually("the forged segment arrives where nothing stops it", || Ok(received("forged-on-n2")))?;
    // With its own address the client's segment goes to the proxy, and no socket there takes it.
    let before = rig.counters()?;
    let own = Segment {
        source: std::net::SocketAddrV4::new(rig.pod("a/client").v4, local.port()),
        target: std::net::SocketAddrV4::new(bank.v4, 5000),
        sequence: 1,
        acknowledgement: 1,
        payload: b"unasked",
    };
    rig.pod("a/client").netns.inside(|| own.send())??;
    eventually("it ends for want of a socket", || {
        Ok(rig.counters()?.get(Counter::NoSocket) > before.get(Counter::NoSocket))
    })?;
    // And the listener's own address is no way to it.
    let listener = SocketAddr::from(([127, 0, 0, 1], crate::rig::LISTEN));
    is_refused(rig.pod("a/client"), listener)
}
