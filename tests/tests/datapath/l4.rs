//! L3 and L4: rows, replies, ranges, ICMP, spoofing.

use crate::forge;
use crate::peers::{SILENCE, SOON, Server, UdpServer, datagram, eventually, is_refused, ping, reaches};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{addresses, closed, egress, icmp, ingress, tcp, udp};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Direction, PortSet};
use sluice_redirect::Counter;
use sluice_tests::NodeSpec;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("l4: without rules everything passes", [Need::Bpf], open_node),
        harness::test("l4: tcp allow, deny and port ranges", [Need::Bpf], tcp_rows),
        harness::test("l4: replies pass under default deny", [Need::Bpf], replies),
        harness::test("l4: udp and icmp", [Need::Bpf], datagrams),
        harness::test("l4: a spoofed source is dropped", [Need::Bpf], spoofed),
        harness::test("l4: what cannot be judged is dropped", [Need::Bpf], unjudged),
        harness::test("l4: the node reaches its pods", [Need::Bpf], host),
    ]
}

fn open_node() -> Result<()> {
    let mut rig = Rig::routed()?;
    let applied = rig.apply(&[])?;
    ensure!(applied.attached.len() == 3, "attached: {applied:?}");
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let _remote = Server::start(&rig.pod("b/remote").netns, 80)?;
    rig.explain((|| {
        for family in Family::BOTH {
            reaches(rig.pod("a/client"), rig.at("a/server", family, 80))?;
            reaches(rig.pod("a/client"), rig.at("b/remote", family, 80))?;
            reaches(rig.pod("b/remote"), rig.at("a/server", family, 80))?;
            reaches(rig.pod(OUTSIDE), rig.at("a/server", family, 80))?;
            ensure!(ping(rig.pod("a/client"), rig.pod("a/server").ip(family))?, "no ping");
        }
        Ok(())
    })())
}

fn tcp_rows() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        rig.apply(&[
            ingress("a/server", "a/client", tcp(8000, 8010)),
            ingress("a/server", "b/remote", tcp(8003, 8003)),
            egress("a/other", "a/server", tcp(8000, 8000)),
        ])?;
        let mut servers = Vec::new();
        for port in [7999, 8000, 8003, 8010, 8011] {
            servers.push(Server::start(&rig.pod("a/server").netns, port)?);
        }
        rig.explain((|| {
            for family in Family::BOTH {
                for port in [8000, 8003, 8010] {
                    reaches(rig.pod("a/client"), rig.at("a/server", family, port))?;
                }
                reaches(rig.pod("b/remote"), rig.at("a/server", family, 8003))?;
                let before = rig.counters()?;
                for port in [7999, 8011] {
                    is_refused(rig.pod("a/client"), rig.at("a/server", family, port))?;
                }
                is_refused(rig.pod("b/remote"), rig.at("a/server", family, 8000))?;
                is_refused(rig.pod(OUTSIDE), rig.at("a/server", family, 8003))?;
                // Its egress allows it, the server's ingress does not.
                is_refused(rig.pod("a/other"), rig.at("a/server", family, 8000))?;
                rig.grew(&before, Counter::Denied)?;
            }
            let forbidden =
                servers[0].connections.load(Ordering::SeqCst) + servers[4].connections.load(Ordering::SeqCst);
            ensure!(forbidden == 0, "a denied connection reached the server");
            Ok(())
        })())?;
    }
    Ok(())
}

fn replies() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        closed("a/client", Direction::Ingress),
        egress("a/client", "a/server", tcp(80, 80)),
        egress("a/client", "b/remote", udp(53)),
        egress("a/client", "a/server", icmp()),
        ingress("a/server", "a/client", tcp(80, 80)),
        ingress("a/server", "a/client", icmp()),
        closed("a/server", Direction::Egress),
    ])?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let _client = Server::start(&rig.pod("a/client").netns, 80)?;
    rig.explain((|| {
        for family in Family::BOTH {
            reaches(rig.pod("a/client"), rig.at("a/server", family, 80))?;
            is_refused(rig.pod("a/server"), rig.at("a/client", family, 80))?;
            is_refused(rig.pod("b/remote"), rig.at("a/client", family, 80))?;
            let dns = rig.at("b/remote", family, 53);
            let _dns = UdpServer::start(&rig.pod("b/remote").netns, dns)?;
            let local = rig.at("a/client", family, 0);
            ensure!(datagram(&rig.pod("a/client").netns, local, dns, SOON)?, "no answer to a datagram");
            ensure!(ping(rig.pod("a/client"), rig.pod("a/server").ip(family))?, "no ping");
            ensure!(!ping(rig.pod("a/server"), rig.pod("a/client").ip(family))?, "a ping against the rules");
        }
        Ok(())
    })())
}

fn datagrams() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[ingress("a/server", "a/client", udp(53)), ingress("a/server", "b/remote", icmp())])?;
    rig.explain((|| {
        for family in Family::BOTH {
            let (dns, other) = (rig.at("a/server", family, 53), rig.at("a/server", family, 54));
            let allowed = UdpServer::start(&rig.pod("a/server").netns, dns)?;
            let denied = UdpServer::start(&rig.pod("a/server").netns, other)?;
            let client = rig.pod("a/client");
            let local = rig.at("a/client", family, 0);
            ensure!(datagram(&client.netns, local, dns, SOON)?, "no answer on an allowed port");
            ensure!(!datagram(&client.netns, local, other, SILENCE)?, "an answer on a denied port");
            let remote = rig.at("b/remote", family, 0);
            ensure!(
                !datagram(&rig.pod("b/remote").netns, remote, dns, SILENCE)?,
                "an answer to a denied peer"
            );
            ensure!(ping(rig.pod("b/remote"), dns.ip())?, "no ping where ICMP is allowed");
            ensure!(!ping(client, dns.ip())?, "a ping where ICMP is not allowed");
            ensure!(allowed.datagrams.load(Ordering::SeqCst) == 1, "a denied datagram reached the server");
            ensure!(denied.datagrams.load(Ordering::SeqCst) == 0, "a denied datagram reached the server");
        }
        Ok(())
    })())
}

fn spoofed() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        let lines = [ingress("a/server", "a/client", PortSet::All)];
        rig.apply(&lines)?;
        // Another pod takes the client's addresses.
        let other = rig.pod("a/other").netns.clone();
        for (address, bits) in addresses(rig.pod("a/client")).into_iter().zip([32, 128]) {
            other.ip_batch(&[format!("addr add {address}/{bits} dev eth0")])?;
        }
        rig.explain((|| {
            for family in Family::BOTH {
                let target = rig.at("a/server", family, 53);
                let server = UdpServer::start(&rig.pod("a/server").netns, target)?;
                let before = rig.counters()?;
                let forged = SocketAddr::new(rig.pod("a/client").ip(family), 4000);
                ensure!(!datagram(&other, forged, target, SILENCE)?, "an answer to a forged datagram");
                ensure!(server.datagrams.load(Ordering::SeqCst) == 0, "a forged datagram reached the server");
                rig.grew(&before, Counter::Spoofed)?;
            }
            Ok(())
        })())?;
        // And the next snapshot does not take the forger for the client.
        let applied = rig.apply(&lines)?;
        ensure!(applied.attached.len() == 3, "attached: {applied:?}");
        let target = rig.at("a/server", Family::V4, 53);
        let _server = UdpServer::start(&rig.pod("a/server").netns, target)?;
        let client = rig.at("a/client", Family::V4, 0);
        let forged = datagram(&other, client, target, SILENCE)?;
        rig.explain(if forged { Err(anyhow::anyhow!("the forger got the client's rules")) } else { Ok(()) })?;
    }
    Ok(())
}

/// Packets that carry no port, or hide it, or wear the other family's address: each dropped for its reason.
fn unjudged() -> Result<()> {
    const UDP: [u8; 8] = [0x0f, 0xa0, 0, 53, 0, 8, 0, 0];
    let mut rig = Rig::routed()?;
    rig.apply(&[ingress("a/server", "a/client", PortSet::All)])?;
    let (client, server) = (rig.pod("a/client").clone(), rig.pod("a/server").clone());
    let _four = UdpServer::start(&server.netns, rig.at("a/server", Family::V4, 53))?;
    let mapped = client.v4.to_ipv6_mapped();
    let packets = [
        // A later fragment, which has no ports; what goes before it never came.
        (server.v4.into(), forge::fragment(client.v4, server.v4, 0x0010), Counter::Fragment),
        (
            server.v6.into(),
            forge::headers(client.v6, server.v6, 44, &[[17, 0, 0, 9, 0, 0, 0, 1], UDP].concat()),
            Counter::Fragment,
        ),
        (
            server.v6.into(),
            forge::headers(client.v6, server.v6, 43, &[[17, 0, 4, 0, 0, 0, 0, 0], UDP].concat()),
            Counter::SourceRoute,
        ),
        (
            server.v6.into(),
            forge::headers(client.v6, server.v6, 51, &[[17, 0, 0, 0, 0, 0, 0, 0], UDP].concat()),
            Counter::Extension,
        ),
        // Else it would have the rules of the IPv4 address.
        (server.v6.into(), forge::headers(mapped, server.v6, 17, &UDP), Counter::BadAddress),
        (server.v6.into(), forge::headers(Ipv6Addr::LOCALHOST, server.v6, 17, &UDP), Counter::BadAddress),
        (server.v4.into(), forge::fragment(Ipv4Addr::LOCALHOST, server.v4, 0), Counter::BadAddress),
        (server.v6.into(), forge::headers(client.v6, server.v6, 6, &[0; 4]), Counter::Malformed),
        (
            server.v6.into(),
            forge::headers(client.v6, server.v6, 1, &[8, 0, 0, 0, 0, 0, 0, 0]),
            Counter::Malformed,
        ),
    ];
    for (target, bytes, reason) in packets {
        let before = rig.counters()?.get(reason);
        client.netns.inside(|| forge::raw(target, &bytes))??;
        let dropped = eventually(&format!("{bytes:x?} is dropped as {reason:?}"), || {
            Ok(rig.counters()?.get(reason) > before)
        });
        rig.explain(dropped)?;
    }
    Ok(())
}

fn host() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[closed("a/server", Direction::Ingress), closed("a/server", Direction::Egress)])?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let _probe = Server::start(&rig.world.node("n1").netns, 9000)?;
    rig.explain((|| {
        for family in Family::BOTH {
            let target = rig.at("a/server", family, 80);
            let node = &rig.world.node("n1").netns;
            let mut probe = crate::peers::Connection::open(node, target)?;
            probe.echo("are you well?", SOON)?;
            // The other way round the rules speak.
            let n1 = rig.world.node("n1");
            let address = SocketAddr::new(family.pick(n1.v4, n1.v6), 9000);
            is_refused(rig.pod("a/server"), address)?;
            // Another node is not the node.
            let other = rig.world.node("n2").netns.clone();
            let refused = other.inside(|| std::net::TcpStream::connect_timeout(&target, SILENCE))?;
            ensure!(refused.is_err(), "another node is taken for this one");
        }
        Ok(())
    })())
}
