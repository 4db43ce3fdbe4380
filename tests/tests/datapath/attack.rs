//! Attacks with real packets: what a pod may make the kernel believe, and what nobody may take from the proxy.
//!
//! Each passed against an earlier version of the programs.

use crate::forge::{self, ICMP, ICMPV6, SECRET, Sniffer, icmp4, icmp6, ipv4};
use crate::peers::{Connection, Proxy, SILENCE, SOON, UdpServer, datagram, ping};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{closed, egress, tcp, udp};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Family, Netns};
use socket2::Domain;
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("attack: neighbours' packets carry nothing away", [Need::Bpf], neighbours),
        harness::test(
            "attack: an ICMP error goes to the flow's other end alone",
            [Need::Bpf],
            misdirected_error,
        ),
        harness::test("attack: the node's ICMP errors open nothing to it", [Need::Bpf], node_error),
        harness::test("attack: a forged SYN takes nothing from the proxy", [Need::Bpf], forged_open),
        harness::test("flows: ports that the proxy used are free again", [Need::Bpf], used_ports),
        harness::test("flows: what was cut and may pass again passes", [Need::Bpf], cut_and_back),
    ]
}

fn syn(src: SocketAddrV4, dst: SocketAddrV4) -> Vec<u8> {
    let mut tcp = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&src.ip().octets()[..], &dst.ip().octets(), &[0, 6, 0, 20], &tcp].concat();
    tcp[16..18].copy_from_slice(&forge::checksum(&pseudo).to_be_bytes());
    ipv4(*src.ip(), *dst.ip(), 6, 64, &tcp)
}

/// Neighbour discovery and listener reports meet no rule, so they must reach nobody beyond the link.
fn neighbours() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[closed("a/client", Direction::Egress), closed("a/server", Direction::Ingress)])?;
    let (client, server) = (rig.pod("a/client").clone(), rig.pod("a/server").clone());
    for to in [OUTSIDE, "a/server"] {
        let target = rig.pod(to).clone();
        let sniffer = Sniffer::start(&target.netns, Domain::IPV6, ICMPV6)?;
        for (kind, hop_limit) in [(143, 1), (143, 64), (132, 64), (130, 64)] {
            let body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], SECRET].concat();
            let packet = icmp6(client.v6, target.v6, hop_limit, body);
            client.netns.inside(|| forge::raw(target.v6.into(), &packet))??;
            ensure!(!sniffer.saw_secret(), "ICMPv6 type {kind} reached {to}");
        }
    }
    let bank = rig.pod(OUTSIDE).clone();
    let sniffer = Sniffer::start(&bank.netns, Domain::IPV6, ICMPV6)?;
    for (kind, source) in [(135, client.v6), (136, client.v6), (136, server.v6)] {
        let subject = if kind == 135 { bank.v6 } else { client.v6 };
        let body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &subject.octets(), SECRET].concat();
        let packet = icmp6(source, bank.v6, 255, body);
        client.netns.inside(|| forge::raw(bank.v6.into(), &packet))??;
        ensure!(!sniffer.saw_secret(), "ICMPv6 type {kind} from {source} reached the outside");
    }
    Ok(())
}

/// An error about one flow is no letter to anybody else.
fn misdirected_error() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[egress("a/client", "b/remote", udp(53))])?;
    let (client, remote, bank) =
        (rig.pod("a/client").clone(), rig.pod("b/remote").clone(), rig.pod(OUTSIDE).clone());
    let dns = rig.at("b/remote", Family::V4, 53);
    let _server = UdpServer::start(&remote.netns, dns)?;
    ensure!(datagram(&client.netns, SocketAddr::new(client.v4.into(), 4000), dns, SOON)?, "the flow exists");
    let inner = ipv4(remote.v4, client.v4, 17, 60, &[0, 53, 0x0f, 0xa0, 0, 8, 0, 0]);
    let error = icmp4([&[3, 3, 0, 0, 0, 0, 0, 0][..], &inner, SECRET].concat());
    for (target, arrives) in [(&bank, false), (&remote, true)] {
        let sniffer = Sniffer::start(&target.netns, Domain::IPV4, ICMP)?;
        let packet = ipv4(client.v4, target.v4, 1, 64, &error);
        client.netns.inside(|| forge::raw(target.v4.into(), &packet))??;
        ensure!(sniffer.saw_secret() == arrives, "to {}: expected {arrives}", target.v4);
    }
    Ok(())
}

/// The node's error to a pod is not a flow that the pod may answer.
fn node_error() -> Result<()> {
    const TIME_EXCEEDED: u8 = 11;
    let mut rig = Rig::routed()?;
    rig.apply(&[egress("a/client", OUTSIDE, udp(53))])?;
    let (client, bank) = (rig.pod("a/client").clone(), rig.pod(OUTSIDE).clone());
    let sniffer = Sniffer::start(&client.netns, Domain::IPV4, ICMP)?;
    let dying = ipv4(client.v4, bank.v4, 17, 1, &[0x0f, 0xa0, 0, 53, 0, 8, 0, 0]);
    client.netns.inside(|| forge::raw(bank.v4.into(), &dying))??;
    let error = sniffer.wait(SOON, |packet| packet.get(20) == Some(&TIME_EXCEEDED));
    let error = error.context("the node says that the packet's time is over")?;
    let node = Ipv4Addr::new(error[12], error[13], error[14], error[15]);
    for identifier in [0, 7] {
        let echo = icmp4([&[8, 0, 0, 0, 0, identifier, 0, 1][..], SECRET].concat());
        let packet = ipv4(client.v4, node, 1, 64, &echo);
        client.netns.inside(|| forge::raw(node.into(), &packet))??;
        ensure!(!sniffer.saw_secret(), "the node answered an echo with identifier {identifier}");
    }
    Ok(())
}

/// A server that tells from where it was called, and sends back what it gets.
fn server(netns: &Netns, port: u16) -> Result<Receiver<SocketAddr>> {
    let listener = netns.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??;
    let (told, callers) = channel();
    // It ends with the test binary: nothing wakes an `accept`.
    std::thread::spawn(move || {
        while let Ok((stream, peer)) = listener.accept() {
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            std::thread::spawn(move || serve(stream, peer));
            if told.send(peer).is_err() {
                return;
            }
        }
    });
    Ok(callers)
}

/// Says whom it sees, then sends back what it gets.
fn serve(mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    writeln!(stream, "{}", peer.ip())?;
    let mut back = stream.try_clone()?;
    std::io::copy(&mut stream, &mut back).map(drop)
}

/// Somebody who wears the server's address cannot take over the proxy's connection to it.
fn forged_open() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[egress("a/client", "b/remote", tcp(80, 80)).l7()])?;
    let callers = server(&rig.pod("b/remote").netns, 80)?;
    let _proxy = Proxy::start(rig.node("n1"))?;
    let client = rig.pod("a/client").clone();
    let remote = SocketAddrV4::new(rig.pod("b/remote").v4, 80);
    let mut connection = Connection::open(&client.netns, remote.into())?;
    connection.echo("before", SOON)?;
    let SocketAddr::V4(upstream) = callers.recv_timeout(SOON)? else { anyhow::bail!("not IPv4") };
    let packet = syn(remote, upstream);
    rig.pod(OUTSIDE).netns.inside(|| forge::raw(client.v4.into(), &packet))??;
    connection.echo("after", SOON).context("after a forged SYN")
}

/// The proxy dials from ports that the client may use itself later.
fn used_ports() -> Result<()> {
    let mut rig = Rig::routed()?;
    for to in ["b/remote", "a/server"] {
        let callers = server(&rig.pod(to).netns, 80)?;
        for audited in [false, true] {
            let rule = egress("a/client", to, tcp(80, 80)).l7();
            rig.apply(&[if audited { rule.audited() } else { rule }])?;
            let proxy = Proxy::start(rig.node("n1"))?;
            let client = rig.pod("a/client").clone();
            let target = rig.at(to, Family::V4, 80);
            Connection::open(&client.netns, target)?.echo("through the proxy", SOON)?;
            let from = callers.recv_timeout(SOON)?;
            proxy.stop()?;
            if !audited {
                rig.apply(&[])?;
            }
            Connection::open_from(&client.netns, from, target)
                .with_context(|| format!("to {to} from {from}, audited: {audited}"))?;
            callers.recv_timeout(SOON)?;
        }
    }
    Ok(())
}

/// A flow without connections has no new life to begin: it lives by the rows.
fn cut_and_back() -> Result<()> {
    let mut rig = Rig::routed()?;
    let client = rig.pod("a/client").clone();
    let dns = rig.at("b/remote", Family::V4, 53);
    let _server = UdpServer::start(&rig.pod("b/remote").netns, dns)?;
    let from = SocketAddr::new(client.v4.into(), 4000);
    for _ in 0..2 {
        rig.apply(&[])?;
        ensure!(datagram(&client.netns, from, dns, SOON)?, "passes");
        rig.apply(&[closed("a/client", Direction::Egress)])?;
        ensure!(!datagram(&client.netns, from, dns, SILENCE)?, "is cut");
    }
    rig.apply(&[])?;
    ensure!(ping(&client, rig.pod("b/remote").v4.into())?, "ICMP too");
    Ok(())
}
