//! Large segments where a link on the way takes less than the pods': what the kernel has joined (GSO, GRO) stays joined,
//! nothing is sent in fragments, and no transfer stalls; between pods, and with the nodes' own processes at either end.

use crate::peers::{Connection, Proxy, Server};
use crate::rig::Rig;
use crate::rules::{FAR_NODE, Line, closed, egress, ingress, tcp};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Family, Netns};
use sluice_tests::{NodeSpec, Overlay, World};
use std::net::SocketAddr;

/// Less than any pod's interface has.
const NARROW: u32 = 1_300;
/// More than the proxy's own packets.
const JUMBO: u32 = 9_000;
/// There and back again.
const BULK: usize = 16 * 1024 * 1024;
/// A port of the nodes' own processes.
const OWN: u16 = 9_000;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("host: large segments over a narrow tunnel, routed veths", || narrow_tunnel(NodeSpec::routed)),
        test("host: large segments over a narrow tunnel, bridge ports", || narrow_tunnel(NodeSpec::bridged)),
        test("host: large segments to and from a pod with a narrow link, routed veths", || {
            narrow_pod(NodeSpec::routed("n1"))
        }),
        test("host: large segments to and from a pod with a narrow link, bridge ports", || {
            narrow_pod(NodeSpec::bridged("n1"))
        }),
    ]
}

/// Packets that a host has cut into fragments, or put together.
fn fragments(netns: &Netns) -> Result<u64> {
    let text = netns.run(&["cat", "/proc/net/snmp"])?;
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let wanted = ["FragCreates", "ReasmReqds"];
    let v4 = names.split(' ').zip(values.split(' ')).filter(|(name, _)| wanted.contains(name));
    let v4: u64 = v4.filter_map(|(_, value)| value.parse::<u64>().ok()).sum();
    let text = netns.run(&["cat", "/proc/net/snmp6"])?;
    let v6 = text.lines().filter(|line| wanted.iter().any(|name| line.starts_with(&format!("Ip6{name}"))));
    let v6: u64 = v6.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
    Ok(v4 + v6)
}

/// Bytes and packets that came in by a host's device.
fn received(netns: &Netns, device: &str) -> Result<(u64, u64)> {
    let text = netns.run(&["ip", "-s", "-j", "link", "show", device])?;
    let link: serde_json::Value = serde_json::from_str(&text)?;
    let count = |what: &str| link[0]["stats64"]["rx"][what].as_u64().context("a counter");
    Ok((count("bytes")?, count("packets")?))
}

/// A large transfer, there and back, that cuts nothing into fragments; where the far end is a pod, its packets are joined.
fn carries(rig: &Rig, from: &Netns, target: SocketAddr, to: Option<&Netns>) -> Result<()> {
    let hosts: Vec<&Netns> = rig
        .world
        .nodes
        .iter()
        .map(|node| &node.netns)
        .chain(rig.world.pods.iter().map(|pod| &pod.netns))
        .collect();
    let cut = |hosts: &[&Netns]| -> Result<u64> { hosts.iter().map(|netns| fragments(netns)).sum() };
    let before = (cut(&hosts)?, to.map(|netns| received(netns, "eth0")).transpose()?);
    let mut connection = Connection::open(from, target)?;
    connection.bulk(BULK)?;
    ensure!(cut(&hosts)? == before.0, "something went in fragments");
    if let (Some(netns), Some(was)) = (to, before.1) {
        let now = received(netns, "eth0")?;
        let average = (now.0 - was.0) / (now.1 - was.1).max(1);
        ensure!(average > 2 * u64::from(NARROW), "packets of {average} bytes arrive on average");
    }
    Ok(())
}

fn narrow_tunnel(node: fn(&'static str) -> NodeSpec) -> Result<()> {
    let nodes = World::builder().node(node("n1")).node(node("n2")).overlay(Overlay::Vxlan { mtu: NARROW });
    let mut rig = Rig::among(nodes)?;
    rig.open("n2")?;
    let proxies = [Proxy::start(rig.node("n1"))?, Proxy::start(rig.node("n2"))?];
    let _servers = ["a/server", "b/remote"].map(|pod| Server::start(&rig.pod(pod).netns, 80));
    let (n1, n2) = (rig.world.node("n1").clone(), rig.world.node("n2").clone());
    let _own = Server::start(&n2.netns, OWN)?;
    let (client, server, remote) =
        (rig.pod("a/client").clone(), rig.pod("a/server").clone(), rig.pod("b/remote").clone());
    for l7 in [false, true] {
        let when = |line: Line| if l7 { line.l7() } else { line };
        // A node speaks through the tunnel by the tunnel's own address, which is nobody's: part of the world.
        let here = [
            when(egress("a/client", "b/remote", tcp(80, 80))),
            when(egress("a/client", FAR_NODE, tcp(OWN, OWN))),
            closed("a/client", Direction::Ingress),
            when(ingress("a/server", "b/remote", tcp(80, 80))),
            when(ingress("a/server", "world", tcp(80, 80))),
            closed("a/server", Direction::Egress),
        ];
        let there = [
            when(ingress("b/remote", "a/client", tcp(80, 80))),
            when(ingress("b/remote", "world", tcp(80, 80))),
            when(egress("b/remote", "a/server", tcp(80, 80))),
        ];
        rig.apply_on("n1", &here)?;
        rig.apply_on("n2", &there)?;
        let passed: usize = proxies.iter().map(Proxy::count).sum();
        for family in Family::BOTH {
            let own = SocketAddr::new(family.pick(n2.v4, n2.v6), OWN);
            let ways = [
                ("pod to pod", &client.netns, rig.at("b/remote", family, 80), Some(&remote.netns)),
                (
                    "pod to pod, the other way",
                    &remote.netns,
                    rig.at("a/server", family, 80),
                    Some(&server.netns),
                ),
                (
                    "the other node's process to a pod",
                    &n2.netns,
                    rig.at("a/server", family, 80),
                    Some(&server.netns),
                ),
                (
                    "the node's process to the other's pod",
                    &n1.netns,
                    rig.at("b/remote", family, 80),
                    Some(&remote.netns),
                ),
                ("pod to the other node's process", &client.netns, own, None),
            ];
            for (what, from, target, to) in ways {
                let result = carries(&rig, from, target, to);
                rig.explain(result).with_context(|| format!("{what}, {family:?}, l7: {l7}"))?;
            }
        }
        let passed = proxies.iter().map(Proxy::count).sum::<usize>() - passed;
        // Two of them at both ends.
        ensure!(passed == if l7 { 14 } else { 0 }, "{passed} passed the proxies");
    }
    Ok(())
}

/// The narrow link is the pod's own, and its peers' are not: one has what is usual, one more. Directly its MSS says so, and
/// through the proxy the proxy's, which speaks in its name. On a bridge nothing else does: there is no router between.
fn narrow_pod(node: NodeSpec) -> Result<()> {
    const PEERS: [&str; 3] = ["a/client", "a/other", "b/remote"];
    let mut rig = Rig::with(node)?;
    let (n1, server) = (rig.world.node("n1").clone(), rig.pod("a/server").clone());
    for (pod, mtu) in [("a/server", NARROW), ("a/other", JUMBO)] {
        n1.netns.ip_batch(&[format!("link set {} mtu {mtu}", rig.pod(pod).veth)])?;
        rig.pod(pod).netns.ip_batch(&[format!("link set eth0 mtu {mtu}")])?;
    }
    let proxy = Proxy::start(rig.node("n1"))?;
    let pods = PEERS.into_iter().chain(["a/server"]);
    let _servers: Vec<Server> =
        pods.map(|pod| Server::start(&rig.pod(pod).netns, 80)).collect::<Result<_>>()?;
    for l7 in [false, true] {
        let lines = PEERS.into_iter().flat_map(|peer| {
            let lines = [ingress("a/server", peer, tcp(80, 80)), egress("a/server", peer, tcp(80, 80))];
            lines.map(|line| if l7 { line.l7() } else { line })
        });
        rig.apply(&lines.collect::<Vec<_>>())?;
        let before = proxy.count();
        for family in Family::BOTH {
            let to_server = rig.at("a/server", family, 80);
            let mut ways = vec![("the node".to_owned(), &n1.netns, to_server, &server.netns)];
            for peer in PEERS {
                let pod = &rig.pod(peer).netns;
                ways.push((format!("from {peer}"), pod, to_server, &server.netns));
                ways.push((format!("to {peer}"), &server.netns, rig.at(peer, family, 80), pod));
            }
            for (what, from, target, to) in ways {
                let result = carries(&rig, from, target, Some(to));
                rig.explain(result).with_context(|| format!("{what}, {family:?}, l7: {l7}"))?;
            }
        }
        let passed = proxy.count() - before;
        ensure!(passed == if l7 { 12 } else { 0 }, "{passed} passed the proxy");
    }
    Ok(())
}
