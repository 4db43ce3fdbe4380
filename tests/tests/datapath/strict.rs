//! Every leg under a conntrack that drops what it calls invalid, with services translated beside it: what kube-proxy
//! and firewalls have on a node. A leg that conntrack knows half of would end there, some of them only in bulk.

use crate::peers::{Connection, Proxy, SOON, Server};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{Line, closed, egress, ingress, tcp};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_tests::NodeSpec;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::net::{IpAddr, SocketAddr};

/// Enough for windows to open and segments to be many.
const SOME: usize = 2 * 1024 * 1024;

pub(crate) fn tests() -> Vec<Trial> {
    let bridge = std::path::PathBuf::from("/proc/sys/net/bridge");
    vec![
        harness::test("strict: routed veths", [Need::Bpf], || every_leg(NodeSpec::routed("n1"), true)),
        harness::test("strict: bridge ports, br_netfilter off", [Need::Bpf], || {
            every_leg(NodeSpec::bridged("n1"), false)
        }),
        harness::test("strict: bridge ports, br_netfilter on", [Need::Bpf, Need::Path(bridge)], || {
            every_leg(NodeSpec::bridged("n1").br_netfilter(true), true)
        }),
    ]
}

/// Where a client may be told to go.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// The pod's own address.
    Pod(&'static str),
    /// A service's address, which the node translates to the pod's.
    Service(&'static str),
    /// A port of the node, which it translates to the pod's.
    NodePort(&'static str),
}

impl Target {
    fn pod(self) -> &'static str {
        match self {
            Self::Pod(pod) | Self::Service(pod) | Self::NodePort(pod) => pod,
        }
    }

    fn address(self, rig: &Rig, family: Family) -> SocketAddr {
        let n1 = rig.world.node("n1");
        match self {
            Self::Pod(pod) => rig.at(pod, family, 80),
            Self::Service(pod) => SocketAddr::new(service(family, pod), 80),
            Self::NodePort(pod) => SocketAddr::new(family.pick(n1.v4, n1.v6), node_port(pod)),
        }
    }
}

fn number(pod: &str) -> u16 {
    if pod == "a/server" { 0x10 } else { 0x11 }
}

fn service(family: Family, pod: &str) -> IpAddr {
    let last = number(pod);
    match family {
        Family::V4 => IpAddr::from([10, 96, 0, last.to_be_bytes()[1]]),
        Family::V6 => IpAddr::from([0xfd96, 0, 0, 0, 0, 0, 0, last]),
    }
}

fn node_port(pod: &str) -> u16 {
    30_000 + number(pod)
}

/// As kube-proxy's nftables mode writes it, in its order: what is invalid is dropped, before and after translation.
fn rules(rig: &Rig) -> String {
    let mut services = String::new();
    for family in Family::BOTH {
        let n1 = rig.world.node("n1");
        let (ip, at) = (if family == Family::V4 { "ip" } else { "ip6" }, family.pick(n1.v4, n1.v6));
        for pod in ["a/server", "b/remote"] {
            let (to, vip, port) = (rig.at(pod, family, 80), service(family, pod), node_port(pod));
            services += &format!("{ip} daddr {vip} tcp dport 80 dnat {ip} to {to}\n");
            services += &format!("{ip} daddr {at} tcp dport {port} dnat {ip} to {to}\n");
        }
    }
    format!(
        "table inet strict {{
            chain pre {{ type filter hook prerouting priority -150; ct state invalid drop; }}
            chain forward {{ type filter hook forward priority 0; ct state invalid drop; }}
            chain input {{ type filter hook input priority 0; ct state invalid drop; }}
            chain out {{ type filter hook postrouting priority 50; ct state invalid drop; }}
        }}
        table inet services {{ chain pre {{ type nat hook prerouting priority -100;
{services} }}
 }}"
    )
}

/// From whom, to what, under which rules, and how often the connection passes the proxy.
type Case = (&'static str, Target, Vec<Line>, usize);

fn cases() -> Vec<Case> {
    const LOCAL: &str = "a/server";
    const FAR: &str = "b/remote";
    let out = |peer| vec![egress("a/client", peer, tcp(80, 80)).l7(), closed("a/client", Direction::Ingress)];
    let into = |peer| vec![ingress(LOCAL, peer, tcp(80, 80)).l7(), closed(LOCAL, Direction::Egress)];
    let both = [out(LOCAL), into("a/client")].concat();
    let vip = out("world");
    vec![
        ("a/client", Target::Pod(LOCAL), out(LOCAL), 1),
        ("a/client", Target::Pod(LOCAL), into("a/client"), 1),
        ("a/client", Target::Pod(LOCAL), both, 1),
        ("a/client", Target::Pod(FAR), out(FAR), 1),
        (FAR, Target::Pod(LOCAL), into(FAR), 1),
        (OUTSIDE, Target::Pod(LOCAL), into(OUTSIDE), 1),
        // The proxy is asked for the service, and asks for it in turn.
        ("a/client", Target::Service(LOCAL), vip.clone(), 1),
        ("a/client", Target::Service(FAR), vip.clone(), 1),
        ("a/client", Target::Service(LOCAL), [vip.clone(), into("a/client")].concat(), 2),
        // Only the server's side is judged, behind the translation.
        ("a/client", Target::Service(LOCAL), into("a/client"), 1),
        (FAR, Target::NodePort(LOCAL), into(FAR), 1),
        (OUTSIDE, Target::NodePort(LOCAL), into(OUTSIDE), 1),
        ("a/client", Target::NodePort(LOCAL), into("a/client"), 1),
    ]
}

fn every_leg(node: NodeSpec, hairpin: bool) -> Result<()> {
    let mut rig = Rig::with(node)?;
    rig.apply(&[])?;
    rig.nft("n1", &rules(&rig))?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let pods = ["a/server", "b/remote", OUTSIDE];
    let _servers =
        pods.map(|pod| Server::start(&rig.pod(pod).netns, 80)).into_iter().collect::<Result<Vec<_>>>()?;
    // A bridge that asks no netfilter brings a server's answer straight to its client, untranslated: Kubernetes asks
    // for br_netfilter for that reason. What does not work without us need not with us.
    let plain =
        Connection::open(&rig.pod("a/client").netns, Target::Service("a/server").address(&rig, Family::V4));
    ensure!(plain.is_ok() == hairpin, "a service of the same node, without rules: {:?}", plain.err());
    let mut wrong = Vec::new();
    for (from, target, lines, times) in cases() {
        rig.apply(&lines)?;
        for family in Family::BOTH {
            if !hairpin && times == 1 && untranslated(from, target, &lines) {
                continue;
            }
            let before = proxy.count();
            let what = format!("{from} to {target:?}, {family:?}, {times} through the proxy: {lines:?}");
            let result = rig.explain(carries(&rig, from, target, family)).and_then(|()| {
                let had = proxy.count() - before;
                ensure!(had == times, "it passed the proxy {had} times");
                Ok(())
            });
            wrong.extend(result.context(what).err().map(|error| format!("{error:#}")));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Whether what the server answers crosses the bridge, past the translation: nobody takes it to the proxy, which the
/// node would hear through its own stack.
fn untranslated(from: &str, target: Target, lines: &[Line]) -> bool {
    let service = matches!(target, Target::Service("a/server"));
    service && from == "a/client" && lines.iter().all(|line| line.is_of(from))
}

/// A connection there, in bulk, and still after a while.
fn carries(rig: &Rig, from: &str, target: Target, family: Family) -> Result<()> {
    let mut connection = Connection::open(&rig.pod(from).netns, target.address(rig, family))?;
    let own = rig.pod(from).ip(family);
    ensure!(connection.seen == own, "{} saw {} and not {own}", target.pod(), connection.seen);
    connection.echo("hello", SOON)?;
    connection.bulk(SOME)?;
    connection.echo("goodbye", SOON)
}
