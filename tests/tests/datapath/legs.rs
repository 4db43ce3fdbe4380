//! The proxy's two legs as the kernel carries them: ICMP errors about them reach their sockets, and nobody else's
//! do; paths with a smaller MTU, VXLAN among them, are no black hole.

use crate::forge;
use crate::peers::{Connection, Proxy, SOON, Server, eventually, reaches};
use crate::pinned;
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{Line, closed, egress, ingress, tcp};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::{Counter, Counters};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use sluice_tests::{NodeSpec, Overlay, Pod, World};
use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

/// Less than any link here has.
const SMALL: u32 = 1_300;
/// A client's port, used again and again.
const PORT: u16 = 40_000;
/// Enough that a sender must use whole segments for a while.
const SOME: usize = 4 * 1024 * 1024;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("legs: a router's smaller mtu reaches the proxy", narrow_router),
        test("legs: a router's smaller mtu reaches the proxy through a masquerade", narrow_behind_nat),
        test("legs: a tunnel's smaller mtu reaches the proxies, routed veths", || {
            narrow_tunnel(NodeSpec::routed)
        }),
        test("legs: a tunnel's smaller mtu reaches the proxies, bridge ports", || {
            narrow_tunnel(NodeSpec::bridged)
        }),
        test("legs: a forged error reaches no socket that its sender is no end of", forged_error),
        test("legs: marks of others on the proxy's packets", other_marks),
        test("legs: the port of a connection that the proxy closed first", closed_first),
        test("legs: the port of a connection that its client forgot", forgotten),
        test("legs: connections that the flow table has forgotten", evicted),
        test("legs: the proxy's listener answers with SYN cookies", cookies),
    ]
}

/// The way from `n1` to the host outside leads through a router whose link there is narrow.
fn narrow(rig: &Rig) -> Result<()> {
    let (n1, bank) = (rig.world.node("n1").clone(), rig.pod(OUTSIDE).clone());
    let router = &rig.world.underlay;
    router.sysctl(&[
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.conf.all.send_redirects", "0"),
        ("net.ipv4.conf.br0.send_redirects", "0"),
    ])?;
    router.ip_batch(&[
        format!("route add {}/32 dev br0 mtu lock {SMALL}", bank.v4),
        format!("route add {}/128 dev br0 mtu lock {SMALL}", bank.v6),
        format!("route add {} via {}", n1.pods_v4, n1.v4),
        format!("route add {} via {}", n1.pods_v6, n1.v6),
    ])?;
    n1.netns.ip_batch(&[
        format!("route replace {}/32 via 172.31.77.1", bank.v4),
        format!("route replace {}/128 via fd77:ffff::1", bank.v6),
    ])
}

/// Runs a command in the proxy's namespace.
pub(crate) fn in_proxy(rig: &Rig, node: &str, argv: &[&str]) -> Result<String> {
    let netns = format!("--net=/proc/{}/fd/{}", std::process::id(), rig.node(node).proxy_netns().as_raw_fd());
    let output = Command::new("nsenter").args([&netns, "--"]).args(argv).output().context("nsenter")?;
    ensure!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A bulk transfer through the proxies, each of which has to learn the way's MTU for it.
fn learns(rig: &Rig, from: &str, to: &str, family: Family, nodes: &[&str]) -> Result<()> {
    let mut before = Vec::new();
    for node in nodes {
        // What an earlier transfer taught them is no help.
        in_proxy(rig, node, &["ip", "route", "flush", "cache"])?;
        in_proxy(rig, node, &["ip", "-6", "route", "flush", "cache"])?;
        before.push(rig.node(node).counters()?);
    }
    let mut connection = Connection::open(&rig.pod(from).netns, rig.at(to, family, 80))?;
    connection.bulk(SOME)?;
    for (node, before) in nodes.iter().zip(before) {
        let sockets = in_proxy(rig, node, &["ss", "-tinH"])?;
        let known = sockets.split_whitespace().any(|word| word == format!("pmtu:{SMALL}"));
        ensure!(known, "{node}'s proxy has no socket with a path mtu of {SMALL}: {sockets}");
        let grown = rig.node(node).counters()?.since(&before);
        let steered = grown.iter().any(|(counter, _)| *counter == Counter::ErrorToProxy);
        ensure!(steered, "no error was steered to {node}'s proxy: {grown:?}");
    }
    Ok(())
}

/// What both ends say under default deny.
fn governed() -> Vec<Line> {
    vec![
        egress("a/client", OUTSIDE, tcp(80, 80)).l7(),
        closed("a/client", Direction::Ingress),
        ingress("a/server", OUTSIDE, tcp(80, 80)).l7(),
        closed("a/server", Direction::Egress),
    ]
}

fn narrow_router() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        rig.apply(&governed())?;
        narrow(&rig)?;
        let _proxy = Proxy::start(rig.node("n1"))?;
        let _bank = Server::start(&rig.pod(OUTSIDE).netns, 80)?;
        let _server = Server::start(&rig.pod("a/server").netns, 80)?;
        for family in Family::BOTH {
            // The proxy's own connection, and its answers in the server's name.
            for (from, to) in [("a/client", OUTSIDE), (OUTSIDE, "a/server")] {
                let result = learns(&rig, from, to, family, &["n1"]);
                rig.explain(result).with_context(|| format!("{from} to {to}, {family:?}"))?;
            }
        }
    }
    Ok(())
}

fn narrow_behind_nat() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&governed())?;
    narrow(&rig)?;
    rig.nft(
        "n1",
        "table inet out {
            chain post { type nat hook postrouting priority 100; oifname eth0 meta l4proto tcp masquerade; }
            chain forward { type filter hook forward priority 0; ct state invalid drop; }
        }",
    )?;
    let _proxy = Proxy::start(rig.node("n1"))?;
    let _bank = Server::start(&rig.pod(OUTSIDE).netns, 80)?;
    for family in Family::BOTH {
        let result = learns(&rig, "a/client", OUTSIDE, family, &["n1"]);
        rig.explain(result).with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

/// The node itself has something to say then, to its own pod's address.
fn narrow_tunnel(node: fn(&'static str) -> NodeSpec) -> Result<()> {
    let nodes = World::builder().node(node("n1")).node(node("n2")).overlay(Overlay::Vxlan { mtu: SMALL });
    let mut rig = Rig::among(nodes)?;
    rig.open("n2")?;
    rig.apply_on(
        "n1",
        &[egress("a/client", "b/remote", tcp(80, 80)).l7(), closed("a/client", Direction::Ingress)],
    )?;
    rig.apply_on(
        "n2",
        &[ingress("b/remote", "a/client", tcp(80, 80)).l7(), closed("b/remote", Direction::Egress)],
    )?;
    let _proxies = [Proxy::start(rig.node("n1"))?, Proxy::start(rig.node("n2"))?];
    let _remote = Server::start(&rig.pod("b/remote").netns, 80)?;
    for family in Family::BOTH {
        // Each for the leg that it sends through the tunnel.
        let result = learns(&rig, "a/client", "b/remote", family, &["n1", "n2"]);
        rig.explain(result).with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

/// What the proxy's own connection for a client looks like from outside: its port.
fn upstream_port(rig: &Rig, client: IpAddr) -> Result<u16> {
    let sockets = in_proxy(rig, "n1", &["ss", "-tnH", "state", "established"])?;
    let local = sockets.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<SocketAddr>().ok());
    let port = local.filter(|local| local.ip() == client).map(|local| local.port()).next_back();
    port.with_context(|| format!("the proxy has no connection of {client}: {sockets}"))
}

/// "Too big, send 1280 at most", said of a TCP packet from `about.0` to `about.1`.
fn too_big(from: &Pod, about: (SocketAddr, SocketAddr)) -> Vec<u8> {
    let ports = [about.0.port().to_be_bytes(), about.1.port().to_be_bytes()].concat();
    let tcp = [&ports[..], &[0; 16]].concat();
    match (about.0.ip(), about.1.ip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let inner = forge::ipv4(source, target, 6, 64, &tcp);
            let body = [&[3, 4, 0, 0, 0, 0, 5, 0][..], &inner].concat();
            forge::ipv4(from.v4, source, 1, 64, &forge::icmp4(body))
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let inner = forge::headers(source, target, 6, &tcp);
            let body = [&[2, 0, 0, 0, 0, 0, 5, 0][..], &inner].concat();
            forge::icmp6(from.v6, source, 64, body)
        }
        _ => unreachable!("one family"),
    }
}

/// A pod of this node that is neither end of a connection says nothing about it to the proxy. Whoever is elsewhere
/// may be a router; what it says is checked by TCP against what is on its way.
fn forged_error() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[egress("a/client", OUTSIDE, tcp(80, 80)).l7()])?;
    let _proxy = Proxy::start(rig.node("n1"))?;
    let _bank = Server::start(&rig.pod(OUTSIDE).netns, 80)?;
    for family in Family::BOTH {
        let (client, target) = (rig.pod("a/client").ip(family), rig.at(OUTSIDE, family, 80));
        let mut connection = Connection::open(&rig.pod("a/client").netns, target)?;
        let own = SocketAddr::new(client, upstream_port(&rig, client)?);
        let forge = |from: &str, about| -> Result<Counters> {
            let (before, pod) = (rig.counters()?, rig.pod(from));
            pod.netns.inside(|| forge::raw(client, &too_big(pod, about)))??;
            Ok(before)
        };
        // Of its own node, about another's connection: as any ICMP packet, for the pod whose address it is.
        let before = forge("a/other", (own, target))?;
        eventually("it is judged by rows", || {
            Ok(rig.counters()?.get(Counter::Allowed) > before.get(Counter::Allowed))
        })?;
        rig.same(&before, Counter::ErrorToProxy)?;
        // About a connection that is none.
        let before = forge("b/remote", (SocketAddr::new(client, 9), target))?;
        eventually("it is judged by rows", || {
            Ok(rig.counters()?.get(Counter::Allowed) > before.get(Counter::Allowed))
        })?;
        rig.same(&before, Counter::ErrorToProxy)?;
        // By what may be a router, with a sequence number that is not on its way.
        let before = forge("b/remote", (own, target))?;
        eventually("it is steered", || {
            Ok(rig.counters()?.get(Counter::Related) > before.get(Counter::Related))
        })?;
        rig.grew(&before, Counter::ErrorToProxy)?;
        let sockets = in_proxy(&rig, "n1", &["ss", "-tinH"])?;
        ensure!(!sockets.contains("pmtu:1280"), "the forged error was believed: {sockets}");
        rig.explain(connection.echo("still here", SOON))?;
    }
    Ok(())
}

/// What a CNI or kube-proxy writes into the mark on the way is no reason to take the proxy's packets for forged ones:
/// its answers in the name of one pod come to the other through the stack.
fn other_marks() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        rig.nft(
            "n1",
            "table inet marks {
                chain pre { type filter hook prerouting priority -150; meta mark set meta mark or 0xc0000; }
                chain forward { type filter hook forward priority 0; meta mark set meta mark and 0xfffffffe; }
            }",
        )?;
        rig.apply(&[
            ingress("a/server", "a/client", tcp(80, 80)).l7(),
            closed("a/client", Direction::Ingress),
        ])?;
        let proxy = Proxy::start(rig.node("n1"))?;
        let _server = Server::start(&rig.pod("a/server").netns, 80)?;
        for family in Family::BOTH {
            rig.explain(reaches(rig.pod("a/client"), rig.at("a/server", family, 80)))?;
        }
        ensure!(proxy.count() == 2, "{} connections passed the proxy", proxy.count());
    }
    Ok(())
}

/// A server that closes first leaves the proxy to close the client's leg first. A client that comes again from the same
/// port is a new one all the same.
fn closed_first() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[egress("a/client", OUTSIDE, tcp(80, 80)).l7()])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let bank = rig.pod(OUTSIDE).netns.clone();
    let listener = bank.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)))??;
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = writeln!(stream, "{}", peer.ip().to_canonical());
        }
    });
    for family in Family::BOTH {
        let (local, target) = (rig.at("a/client", family, PORT), rig.at(OUTSIDE, family, 80));
        for round in 0..4 {
            let connection = Connection::open_from(&rig.pod("a/client").netns, local, target);
            let mut connection = rig.explain(connection).with_context(|| format!("{family:?}, {round}"))?;
            connection.is_closed()?;
        }
    }
    ensure!(proxy.count() == 8, "{} connections passed the proxy", proxy.count());
    Ok(())
}

/// A client whose reset was lost opens again from the port of a connection that the proxy still has.
fn forgotten() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[egress("a/client", OUTSIDE, tcp(80, 80)).l7()])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let _bank = Server::start(&rig.pod(OUTSIDE).netns, 80)?;
    let client = rig.pod("a/client").netns.clone();
    for family in Family::BOTH {
        let (local, target) = (rig.at("a/client", family, PORT), rig.at(OUTSIDE, family, 80));
        let mut connection = Connection::open_from(&client, local, target)?;
        connection.echo("hello", SOON)?;
        // A late acknowledgement would tell the client, and its answer to that the proxy.
        std::thread::sleep(Duration::from_millis(300));
        client.run(&[
            "nft",
            "table inet lost { chain out { type filter hook output priority 0;
            tcp flags rst drop; }; }",
        ])?;
        connection.reset()?;
        client.run(&["nft", "delete table inet lost"])?;
        let sockets = in_proxy(&rig, "n1", &["ss", "-tnH", "state", "established"])?;
        ensure!(sockets.contains(&format!("{local}")), "the proxy has heard of the reset: {sockets}");
        let again = Connection::open_from(&client, local, target);
        let again = rig.explain(again).with_context(|| format!("{family:?}"))?;
        let sockets = in_proxy(&rig, "n1", &["ss", "-tnH", "state", "established"])?;
        let held = sockets.lines().filter(|line| line.contains(&local.to_string())).count();
        ensure!(held == 1, "the proxy has {held} connections of one port: {sockets}");
        again.reset()?;
    }
    ensure!(proxy.count() == 4, "{} connections passed the proxy", proxy.count());
    Ok(())
}

/// With its queue full the listener keeps nothing of a SYN: the ACK that brings the cookie back is of no connection.
fn cookies() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        egress("a/client", OUTSIDE, tcp(80, 80)).l7(),
        ingress("a/server", "b/remote", tcp(80, 80)).l7(),
    ])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    // Always, and not only when the queue is full.
    in_proxy(&rig, "n1", &["sh", "-c", "echo 2 > /proc/sys/net/ipv4/tcp_syncookies"])?;
    let _bank = Server::start(&rig.pod(OUTSIDE).netns, 80)?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    for family in Family::BOTH {
        for (from, to) in [("a/client", OUTSIDE), ("b/remote", "a/server")] {
            let before = rig.counters()?;
            let mut connection = Connection::open(&rig.pod(from).netns, rig.at(to, family, 80))?;
            rig.explain(connection.bulk(SOME))?;
            // Such an ACK was there.
            rig.grew(&before, Counter::NoSocket)?;
        }
    }
    ensure!(proxy.count() == 4, "{} connections passed the proxy", proxy.count());
    Ok(())
}

/// What the flow table has forgotten is the proxy's all the same: packets in the middle of its connections go to it
/// from both ends, and none of them is judged as if it were direct, or refused because no row speaks of it any more.
fn evicted() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        egress("a/client", OUTSIDE, tcp(80, 80)).l7(),
        closed("a/client", Direction::Ingress),
        ingress("a/server", "b/remote", tcp(80, 80)).l7(),
        closed("a/server", Direction::Egress),
    ])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let servers =
        [Server::start(&rig.pod(OUTSIDE).netns, 80)?, Server::start(&rig.pod("a/server").netns, 80)?];
    let mut held = Vec::new();
    for family in Family::BOTH {
        for (from, to) in [("a/client", OUTSIDE), ("b/remote", "a/server")] {
            held.push(Connection::open(&rig.pod(from).netns, rig.at(to, family, 80))?);
        }
    }
    for round in 0..2 {
        if round == 1 {
            // What the proxy holds it holds to its end; now no row says any more that it goes there.
            let sides = [Direction::Ingress, Direction::Egress];
            rig.apply(&["a/client", "a/server"].map(|pod| sides.map(|side| closed(pod, side))).concat())?;
        }
        let before = rig.counters()?;
        for connection in &mut held {
            ensure!(pinned::forget_flows(&rig)? > 0, "round {round}: the table knew nothing before");
            let said = connection.echo(&format!("round {round}"), SOON);
            rig.explain(said).with_context(|| format!("round {round}, the client speaks first"))?;
            rig.explain(connection.bulk(64 * 1024))?;
        }
        ensure!(pinned::forget_flows(&rig)? > 0, "round {round}: nothing was remembered again");
        let news = format!("news of round {round}");
        servers.iter().try_for_each(|server| server.say(&news))?;
        for connection in &mut held {
            let heard = connection.hear(&news, SOON);
            rig.explain(heard).with_context(|| format!("round {round}, the server speaks first"))?;
            rig.explain(connection.bulk(64 * 1024))?;
        }
        for refused in [Counter::NotFromProxy, Counter::NoSocket] {
            rig.same(&before, refused)?;
        }
    }
    ensure!(proxy.count() == held.len(), "{} connections passed the proxy", proxy.count());
    Ok(())
}
