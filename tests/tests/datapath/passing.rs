//! Who passes a node on the way, and the nodes' own processes: clients of node ports and host ports that wear a node's
//! address or keep their own, hostNetwork peers of the other node, what leaves the cluster behind a masquerade.
//!
//! The rules of the nodes are those that kube-proxy and the portmap plugin write.

use crate::l7::DROP_INVALID;
use crate::peers::{Connection, Proxy, SOON, Server, is_refused, reaches};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{self, FAR_NODE, Line, NODE, closed, egress, ingress, tcp};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::{ClassId, Direction, Protocol};
use sluice_redirect::Counter;
use sluice_tests::NodeSpec;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Family, Netns};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// A port of the nodes that leads to `a/server`'s port 80.
const NODE_PORT: u16 = 30_080;
/// Bytes there and back again.
const SOME: usize = 2 * 1024 * 1024;

pub(crate) fn tests() -> Vec<Trial> {
    let bridge = PathBuf::from("/proc/sys/net/bridge");
    let each = |name: &str, run: fn(NodeSpec) -> Result<()>| {
        [
            harness::test(format!("{name}, routed veths"), [Need::Bpf], move || run(NodeSpec::routed("n1"))),
            harness::test(
                format!("{name}, bridge ports"),
                [Need::Bpf, Need::Path(bridge.clone())],
                move || run(NodeSpec::bridged("n1").br_netfilter(true)),
            ),
        ]
    };
    let mut tests = Vec::new();
    tests.extend(each("host: who wears a node's address is not the node, under l7 rules", worn));
    tests.extend(each("host: processes of the other node", far_processes));
    tests.extend(each("host: host ports", host_ports));
    tests.extend(each("host: out of the cluster behind a masquerade", masqueraded));
    tests
}

fn at(rig: &Rig, node: &str, family: Family, port: u16) -> SocketAddr {
    let node = rig.world.node(node);
    SocketAddr::new(family.pick(node.v4, node.v6), port)
}

fn had(server: &Server) -> usize {
    server.connections.load(Ordering::SeqCst)
}

/// A Service of type `NodePort` with `externalTrafficPolicy: Cluster`: each node translates it and wears itself.
fn node_ports(rig: &Rig) -> Result<()> {
    for node in ["n1", "n2"] {
        let mut translated = String::new();
        for (family, ip) in Family::BOTH.into_iter().zip(["ip", "ip6"]) {
            let (own, to) = (at(rig, node, family, 0).ip(), rig.at("a/server", family, 80));
            translated += &format!(
                "{ip} daddr {own} tcp dport {NODE_PORT} meta mark set meta mark or 0x4000 dnat {ip} to {to}\n"
            );
        }
        rig.nft(
            node,
            &format!(
                "{DROP_INVALID}
                table inet services {{
                    chain pre {{ type nat hook prerouting priority -100; {translated} }}
                    chain out {{ type nat hook output priority -100; {translated} }}
                    chain post {{ type nat hook postrouting priority 100;
                        meta mark & 0x4000 == 0 return
                        meta mark set meta mark xor 0x4000
                        masquerade fully-random
                    }}
                }}"
            ),
        )?;
    }
    Ok(())
}

/// That a host outside gets nowhere by a node's port.
fn closed_to(rig: &Rig, server: &Server, target: SocketAddr) -> Result<()> {
    let before = had(server);
    is_refused(rig.pod(OUTSIDE), target)?;
    ensure!(had(server) == before, "the server had a connection");
    Ok(())
}

/// As whom the proxy has to judge whoever it accepted: never as the node's own process.
fn judged(rig: &Rig, lines: &[Line], proxy: &Proxy) -> Result<Vec<(ClassId, SocketAddr)>> {
    let snapshot = rules::snapshot(&rig.world, "n1", 1, lines);
    let accepted = proxy.accepted.lock().expect("not poisoned").clone();
    let each = |(client, target): (SocketAddr, SocketAddr)| {
        let endpoint = snapshot.endpoint_at(target.ip()).context("an endpoint")?;
        let peer = client.ip().into();
        let connection =
            snapshot.connection(endpoint, Direction::Ingress, peer, Protocol::Tcp, target.port());
        ensure!(!connection.from_host, "{client} is taken for the node");
        Ok((connection.peer, client))
    };
    accepted.into_iter().map(each).collect()
}

fn worn(node: NodeSpec) -> Result<()> {
    let mut rig = Rig::with(node)?;
    rig.apply(&[])?;
    node_ports(&rig)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let server = Server::start(&rig.pod("a/server").netns, 80)?;
    let n1 = rig.world.node("n1").netns.clone();
    let ways =
        |rig: &Rig| Family::BOTH.map(|family| ["n1", "n2"].map(|node| at(rig, node, family, NODE_PORT)));
    for target in ways(&rig).concat() {
        // Without rules it works, and the server sees a node.
        let open = Connection::open(&rig.pod(OUTSIDE).netns, target);
        let open = rig.explain(open).with_context(|| format!("{target}, without rules"))?;
        ensure!(![rig.pod(OUTSIDE).v4.into(), rig.pod(OUTSIDE).v6.into()].contains(&open.seen), "not worn");
    }
    let allows = |peers: &[&str], l7: bool| -> Vec<Line> {
        let line = |peer: &&str| ingress("a/server", peer, tcp(80, 80));
        peers.iter().map(|peer| if l7 { line(peer).l7() } else { line(peer) }).collect()
    };
    // Whoever it was, the node itself, the other node's processes, everybody: none of them is whoever wears this node.
    for l7 in [false, true] {
        for peers in [&[NODE][..], &[NODE, FAR_NODE, OUTSIDE, "world"]] {
            let lines = allows(peers, l7);
            rig.apply(&lines)?;
            let passed = proxy.count();
            for family in Family::BOTH {
                let before = rig.counters()?;
                let worn = closed_to(&rig, &server, at(&rig, "n1", family, NODE_PORT));
                rig.explain(worn).with_context(|| format!("{family:?}, own node's, {lines:?}"))?;
                rig.grew(&before, Counter::Denied)?;
                // The node's own process takes the same way, and is the node: past the proxy.
                let own = Connection::open(&n1, at(&rig, "n1", family, NODE_PORT));
                rig.explain(own.and_then(|mut own| own.echo("hello", SOON)))
                    .with_context(|| format!("{family:?}, the node's own, {lines:?}"))?;
            }
            ensure!(proxy.count() == passed, "the proxy had a connection that wears its own node");
        }
    }
    // Who wears the other node is the other node, and not this one: a rule for that lets it in, another does not.
    for family in Family::BOTH {
        let target = at(&rig, "n2", family, NODE_PORT);
        for l7 in [false, true] {
            let known = vec![egress("a/other", FAR_NODE, tcp(1, 1))];
            rig.apply(&[allows(&[NODE, OUTSIDE, "world"], l7), known].concat())?;
            let refused = closed_to(&rig, &server, target);
            rig.explain(refused).with_context(|| format!("{family:?}, no rule for it, l7: {l7}"))?;
            let lines = allows(&[FAR_NODE], l7);
            rig.apply(&lines)?;
            let before = proxy.count();
            let open = Connection::open(&rig.pod(OUTSIDE).netns, target)
                .and_then(|mut open| open.bulk(SOME).map(|()| open.seen));
            let seen = rig.explain(open).with_context(|| format!("{family:?}, a rule for it, l7: {l7}"))?;
            ensure!(seen == at(&rig, "n2", family, 0).ip(), "the server saw {seen}");
            ensure!(proxy.count() == before + usize::from(l7), "the proxy: {}", proxy.count() - before);
            judged(&rig, &lines, &proxy)?;
        }
    }
    // A deny that reads requests isolates nobody, and has the proxy read those of whom nobody knows as well.
    let lines =
        [ingress("a/server", "world", tcp(80, 80)).l7().denied(), egress("a/client", NODE, tcp(1, 1))];
    rig.apply(&lines)?;
    for target in ways(&rig).concat() {
        let _ = Connection::open(&rig.pod(OUTSIDE).netns, target);
    }
    let own = Family::BOTH.map(|family| at(&rig, "n1", family, 0).ip());
    for (class, client) in judged(&rig, &lines, &proxy)? {
        ensure!(!own.contains(&client.ip()) || class == ClassId::MISSING, "{client} is of class {class:?}");
    }
    Ok(())
}

/// A process of a node, in the place of a pod.
fn process_reaches(netns: &Netns, target: SocketAddr) -> Result<Connection> {
    let mut connection = Connection::open(netns, target)?;
    connection.echo("hello", SOON)?;
    connection.bulk(SOME)?;
    Ok(connection)
}

/// hostNetwork pods of the other node, as clients and as servers.
fn far_processes(node: NodeSpec) -> Result<()> {
    let mut rig = Rig::with(node)?;
    rig.apply(&[])?;
    rig.nft("n1", DROP_INVALID)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let server = Server::start(&rig.pod("a/server").netns, 80)?;
    let n2 = rig.world.node("n2").netns.clone();
    let far = Server::start(&n2, 9_000)?;
    let client = rig.pod("a/client").clone();
    let shut = [closed("a/server", Direction::Egress), closed("a/client", Direction::Ingress)];
    let into = |peer| ingress("a/server", peer, tcp(80, 80));
    let out = |peer| egress("a/client", peer, tcp(9_000, 9_000));
    for family in Family::BOTH {
        let (to_pod, to_node) = (rig.at("a/server", family, 80), at(&rig, "n2", family, 9_000));
        for l7 in [false, true] {
            let when = |line: Line| if l7 { line.l7() } else { line };
            let what = |what: &str| format!("{what}, {family:?}, l7: {l7}");
            let lines = [vec![when(into(FAR_NODE)), when(out(FAR_NODE))], shut.to_vec()].concat();
            rig.apply(&lines)?;
            let before = proxy.count();
            let inwards = rig.explain(process_reaches(&n2, to_pod)).with_context(|| what("into a pod"))?;
            ensure!(inwards.seen == at(&rig, "n2", family, 0).ip(), "the pod saw {}", inwards.seen);
            rig.explain(reaches(&client, to_node)).with_context(|| what("out of a pod"))?;
            let passed = proxy.count() - before;
            ensure!(passed == if l7 { 2 } else { 0 }, "{passed} passed the proxy, l7: {l7}");
            // Rules for this node, for its pods and for everybody else say nothing of it.
            let lines = [NODE, "world", "b/remote"].map(|peer| [when(into(peer)), when(out(peer))]).concat();
            rig.apply(&[lines, shut.to_vec(), vec![egress("a/other", FAR_NODE, tcp(1, 1))]].concat())?;
            let (before, had_far) = (had(&server), had(&far));
            ensure!(Connection::open(&n2, to_pod).is_err(), "{}", what("into a pod, without a rule"));
            is_refused(&client, to_node).with_context(|| what("out of a pod, without a rule"))?;
            ensure!((had(&server), had(&far)) == (before, had_far), "{}", what("a server was reached"));
        }
    }
    judged(&rig, &[into(FAR_NODE), egress("a/client", NODE, tcp(1, 1))], &into_pods(&rig, proxy)).map(drop)
}

/// The proxy without what it accepted for elsewhere.
fn into_pods(rig: &Rig, proxy: Proxy) -> Proxy {
    let pods = [rig.pod("a/server").v4.into(), rig.pod("a/server").v6.into()];
    proxy.accepted.lock().expect("not poisoned").retain(|(_, target)| pods.contains(&target.ip()));
    proxy
}

/// A host port as the portmap plugin of the CNI writes it: who comes from elsewhere keeps its address, and the pods of
/// the node wear the node's, so that the answer finds the way back.
fn host_port(rig: &Rig) -> Result<()> {
    let mut translated = String::new();
    let mut hairpin = String::new();
    let n1 = rig.world.node("n1");
    for (family, ip) in Family::BOTH.into_iter().zip(["ip", "ip6"]) {
        let pods = if family == Family::V4 { &n1.pods_v4 } else { &n1.pods_v6 };
        let (own, to) = (at(rig, "n1", family, 0).ip(), rig.at("a/server", family, 80));
        hairpin +=
            &format!("{ip} daddr {own} {ip} saddr {pods} tcp dport 8080 meta mark set meta mark or 0x2000\n");
        translated += &format!("{ip} daddr {own} tcp dport 8080 dnat {ip} to {to}\n");
    }
    rig.nft(
        "n1",
        &format!(
            "{DROP_INVALID}
            table inet hostport {{
                chain pre {{ type nat hook prerouting priority -100; {hairpin} {translated} }}
                chain out {{ type nat hook output priority -100; {translated} }}
                chain post {{ type nat hook postrouting priority 100; meta mark & 0x2000 == 0x2000 masquerade; }}
            }}"
        ),
    )
}

fn host_ports(node: NodeSpec) -> Result<()> {
    let mut rig = Rig::with(node)?;
    rig.apply(&[])?;
    host_port(&rig)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let server = Server::start(&rig.pod("a/server").netns, 80)?;
    let n1 = rig.world.node("n1").netns.clone();
    let into = |peer| ingress("a/server", peer, tcp(80, 80));
    for family in Family::BOTH {
        let target = at(&rig, "n1", family, 8_080);
        let peers = ["b/remote", OUTSIDE];
        for l7 in [false, true] {
            let when = |line: Line| if l7 { line.l7() } else { line };
            for allowed in 0..peers.len() {
                let lines = [
                    when(into(peers[allowed])),
                    when(into("a/client")),
                    closed("a/server", Direction::Egress),
                ];
                rig.apply(&lines)?;
                let before = proxy.count();
                let what = |who: &str| format!("{who}, {family:?}, l7: {l7}");
                rig.explain(reaches(rig.pod(peers[allowed]), target))
                    .with_context(|| what(peers[allowed]))?;
                ensure!(
                    proxy.count() == before + usize::from(l7),
                    "{} passed the proxy",
                    proxy.count() - before
                );
                let before = had(&server);
                is_refused(rig.pod(peers[1 - allowed]), target).with_context(|| what(peers[1 - allowed]))?;
                // It wears the node's address, and so it is nobody: a rule for itself is no help, nor one for the node.
                is_refused(rig.pod("a/client"), target).with_context(|| what("a pod of the node"))?;
                ensure!(had(&server) == before, "{}", what("the server had a connection"));
                // The node's own process is the node.
                let own = Connection::open(&n1, target).and_then(|mut own| own.echo("hello", SOON));
                rig.explain(own).with_context(|| what("the node itself"))?;
            }
            rig.apply(&[when(into(NODE))])?;
            is_refused(rig.pod("a/client"), target).context("a rule for the node")?;
        }
        judged(&rig, &[into(NODE)], &proxy)?;
    }
    Ok(())
}

/// As an ip-masq-agent or a CNI writes it: what leaves the cluster wears the node.
fn masqueraded(node: NodeSpec) -> Result<()> {
    let mut rig = Rig::with(node)?;
    rig.apply(&[])?;
    rig.nft(
        "n1",
        &format!(
            "{DROP_INVALID}
            table inet outwards {{ chain post {{ type nat hook postrouting priority 100;
                ip saddr 10.77.0.0/16 ip daddr != 10.77.0.0/16 masquerade fully-random
                ip6 saddr fd77::/48 ip6 daddr != fd77::/48 masquerade fully-random
            }}
            }}"
        ),
    )?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let bank = Server::start(&rig.pod(OUTSIDE).netns, 80)?;
    let _remote = Server::start(&rig.pod("b/remote").netns, 80)?;
    let client = rig.pod("a/client").clone();
    let shut = closed("a/client", Direction::Ingress);
    for family in Family::BOTH {
        let (outside, inside) = (rig.at(OUTSIDE, family, 80), rig.at("b/remote", family, 80));
        for l7 in [false, true] {
            let when = |line: Line| if l7 { line.l7() } else { line };
            let what = || format!("{family:?}, l7: {l7}");
            let lines =
                [OUTSIDE, "b/remote"].map(|peer| when(egress("a/client", peer, tcp(80, 80)))).to_vec();
            rig.apply(&[lines, vec![shut.clone()]].concat())?;
            let before = proxy.count();
            let open = rig.explain(process_reaches(&client.netns, outside)).with_context(what)?;
            ensure!(open.seen == at(&rig, "n1", family, 0).ip(), "{}: it saw {}", what(), open.seen);
            // Inside of the cluster it keeps its address.
            rig.explain(reaches(&client, inside)).with_context(what)?;
            let passed = proxy.count() - before;
            ensure!(passed == if l7 { 2 } else { 0 }, "{}: {passed} passed the proxy", what());
            // And the rules are about whom it asks, whoever it wears.
            rig.apply(&[when(egress("a/client", "b/remote", tcp(80, 80))), shut.clone()])?;
            let before = had(&bank);
            is_refused(&client, outside).with_context(what)?;
            ensure!(had(&bank) == before, "{}: it came out", what());
        }
    }
    Ok(())
}
