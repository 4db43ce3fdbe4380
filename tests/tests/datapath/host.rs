//! The node itself, and who only looks like it: probes pass whatever the rules say, what is forwarded with a node's
//! address is nobody, and a pod's address that goes to another takes nothing along.

use crate::forge::Segment;
use crate::peers::{Connection, Proxy, SOON, Server, eventually, is_refused, reaches};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{closed, egress, ingress, tcp};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Direction, PortSet};
use sluice_redirect::Counter;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use sluice_tests::{NodeSpec, PodSpec};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("host: a probe passes under default deny, past the proxy", probes),
        test("host: node ports and masqueraded clients are nobody", worn_addresses),
        test("host: an address that goes to another pod, routed veths", || {
            address_goes_on(NodeSpec::routed("n1"))
        }),
        test("host: an address that goes to another pod, bridge ports", || {
            address_goes_on(NodeSpec::bridged("n1"))
        }),
    ]
}

/// As kubelet does it: from a socket of the node, to a port that L7 rules govern for everybody else.
fn probes() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        rig.apply(&[
            ingress("a/server", "a/client", tcp(80, 80)).l7(),
            closed("a/server", Direction::Egress),
            closed("a/other", Direction::Ingress),
            closed("a/other", Direction::Egress),
        ])?;
        let _servers = ["a/server", "a/other"].map(|pod| Server::start(&rig.pod(pod).netns, 80));
        let n1 = rig.world.node("n1").netns.clone();
        let check = |rig: &Rig| -> Result<()> {
            for family in Family::BOTH {
                for pod in ["a/server", "a/other"] {
                    let probe =
                        Connection::open(&n1, rig.at(pod, family, 80)).and_then(|mut c| c.bulk(64 * 1024));
                    rig.explain(probe).with_context(|| format!("{pod}, {family:?}"))?;
                }
                // Another node's socket is a peer like any other.
                is_refused(rig.pod("b/remote"), rig.at("a/other", family, 80))?;
                let n2 = &rig.world.node("n2").netns;
                ensure!(Connection::open(n2, rig.at("a/other", family, 80)).is_err(), "another node's probe");
            }
            Ok(())
        };
        // A probe needs no proxy, and none needs to hear of it.
        check(&rig).context("without the proxy")?;
        let proxy = Proxy::start(rig.node("n1"))?;
        check(&rig).context("with the proxy")?;
        ensure!(proxy.count() == 0, "a probe passed the proxy");
    }
    Ok(())
}

/// What the node forwards with its own address: a client of a node port that kube-proxy masquerades.
fn worn_addresses() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        rig.apply(&[])?;
        let n1 = rig.world.node("n1").clone();
        let mut translated = String::new();
        for (family, ip) in Family::BOTH.into_iter().zip(["ip", "ip6"]) {
            let (at, to) = (family.pick(n1.v4, n1.v6), rig.at("a/server", family, 80));
            translated += &format!("{ip} daddr {at} tcp dport 30080 dnat {ip} to {to}\n");
        }
        rig.nft(
            "n1",
            &format!(
                "table inet services {{
                    chain pre {{ type nat hook prerouting priority -100; {translated} }}
                    chain out {{ type nat hook output priority -100; {translated} }}
                    chain post {{ type nat hook postrouting priority 100;
                        ct status dnat masquerade
                    }}
                }}"
            ),
        )?;
        let _server = Server::start(&rig.pod("a/server").netns, 80)?;
        let at = |family: Family| SocketAddr::new(family.pick(n1.v4, n1.v6), 30_080);
        for family in Family::BOTH {
            // Without rules it works, and the server sees the node.
            let open = Connection::open(&rig.pod(OUTSIDE).netns, at(family)).context("without rules")?;
            ensure!(open.seen != rig.pod(OUTSIDE).ip(family), "not masqueraded: {}", open.seen);
        }
        for lines in [
            vec![closed("a/server", Direction::Ingress)],
            // Nobody is allowed, not even by a rule for everybody outside, or for whom it was before.
            vec![ingress("a/server", "world", PortSet::All), ingress("a/server", OUTSIDE, PortSet::All)],
        ] {
            rig.apply(&lines)?;
            for family in Family::BOTH {
                let before = rig.counters()?;
                rig.explain(is_refused(rig.pod(OUTSIDE), at(family)))
                    .with_context(|| format!("{family:?}, {lines:?}"))?;
                rig.grew(&before, Counter::Denied)?;
                // The node's own sockets go the same way, and are the node.
                let own = Connection::open(&n1.netns, at(family)).and_then(|mut own| own.echo("hello", SOON));
                rig.explain(own).with_context(|| format!("{family:?}, the node's own"))?;
            }
        }
    }
    Ok(())
}

/// One pod goes, another gets its address. Neither rules nor flows of the first are the second's.
fn address_goes_on(node: NodeSpec) -> Result<()> {
    const PORT: u16 = 40_000;
    let mut rig = Rig::with(node)?;
    rig.world.add_pod(&PodSpec::new("n1", "a/first"))?;
    let first = rig.pod("a/first").clone();
    rig.apply(&[ingress("a/server", "a/first", tcp(80, 80)), closed("a/server", Direction::Egress)])?;
    let server = Server::start(&rig.pod("a/server").netns, 80)?;
    let targets = Family::BOTH.map(|family| rig.at("a/server", family, 80));
    for family in Family::BOTH {
        rig.explain(reaches(&first, rig.at("a/server", family, 80)))?;
    }
    let open = Connection::open_from(&first.netns, SocketAddr::new(first.v4.into(), PORT), targets[0])?;
    let had = server.connections.load(std::sync::atomic::Ordering::SeqCst);
    rig.world.delete_pod("a/first")?;
    rig.world.add_pod(&PodSpec::new("n1", "a/second"))?;
    let second = rig.pod("a/second").clone();
    ensure!((second.v4, second.v6) == (first.v4, first.v6), "it has another address");
    drop(open);
    // Before anybody has told us: the address is still the other's, and this is not the other's device.
    let before = rig.counters()?;
    for target in targets {
        rig.explain(is_refused(&second, target)).context("before the snapshot")?;
    }
    rig.grew(&before, Counter::Spoofed)?;
    // And after: it has no rule of its own.
    rig.apply(&[ingress("a/server", "a/client", tcp(80, 80)), closed("a/server", Direction::Egress)])?;
    for target in targets {
        rig.explain(is_refused(&second, target)).context("after the snapshot")?;
    }
    // Not even with a packet of the connection that the first one left open.
    let IpAddr::V4(to) = targets[0].ip() else { unreachable!("an IPv4 address") };
    let before = rig.counters()?;
    let segment = Segment {
        source: SocketAddrV4::new(second.v4, PORT),
        target: SocketAddrV4::new(to, 80),
        sequence: 1,
        acknowledgement: 1,
        payload: b"left over",
    };
    second.netns.inside(|| segment.send())??;
    eventually("it is cut", || Ok(rig.counters()?.get(Counter::Cut) > before.get(Counter::Cut)))?;
    let has = server.connections.load(std::sync::atomic::Ordering::SeqCst);
    ensure!(has == had, "the second pod reached the server");
    // With a rule of its own it is a pod like any other.
    rig.apply(&[ingress("a/server", "a/second", tcp(80, 80)), egress("a/second", "a/server", tcp(80, 80))])?;
    for family in Family::BOTH {
        rig.explain(reaches(&second, rig.at("a/server", family, 80)))?;
    }
    Ok(())
}
