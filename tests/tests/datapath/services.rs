//! Services: what a pod sends to an address that the node translates is judged by who stands behind it, with the rules
//! that kube-proxy writes.

use crate::forge;
use crate::peers::{
    Connection, Proxy, SILENCE, SOON, Server, UdpServer, datagram, eventually, is_refused, reaches,
};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{self, Line, closed, egress, ingress, tcp, udp};
use crate::translation::{Mode, translate};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Backend, Direction, Facts, Protocol, Service, ServicePort};
use sluice_redirect::Counter;
use sluice_tests::NodeSpec;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) fn tests() -> Vec<Trial> {
    let bridge = std::path::PathBuf::from("/proc/sys/net/bridge");
    let both = |name: &str, test: fn(Mode) -> Result<()>| {
        let trial =
            |mode| harness::test(format!("services: {name}, {mode:?}"), [Need::Bpf], move || test(mode));
        Mode::ALL.map(trial)
    };
    let mut tests = vec![
        harness::test("services: bridge ports, br_netfilter on", [Need::Bpf, Need::Path(bridge)], || {
            by_backend(NodeSpec::bridged("n1").br_netfilter(true), Mode::Iptables)
        }),
        harness::test("services: the pod's own address is one", [Need::Bpf], own_address),
        harness::test("services: more than fit", [Need::Bpf], too_many),
    ];
    tests.extend(both("judged by who stands behind", |mode| by_backend(NodeSpec::routed("n1"), mode)));
    tests.extend(both("backends come and go", changes));
    tests.extend(both("dns", dns));
    tests.extend(both("l7 at either end", l7));
    tests.extend(both("a pod behind its own service", hairpin));
    tests
}

/// A made-up cluster address.
fn vip(number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, number).into(),
        Family::V6 => format!("fd00:96::{number:x}").parse().expect("an address"),
    }
}

fn at(number: u8, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(vip(number, family), port)
}

/// A Service of one port, with these pods behind it.
fn service(rig: &Rig, number: u8, (protocol, port): (Protocol, u16), pods: &[(&str, u16)]) -> Service {
    let of = |&(pod, port): &(&str, u16)| {
        Family::BOTH.map(|family| Backend { address: rig.pod(pod).ip(family), port })
    };
    let mut backends: Vec<Backend> = pods.iter().flat_map(of).collect();
    backends.sort();
    Service {
        namespace: "a".into(),
        name: format!("s{number}").into(),
        addresses: Family::BOTH.map(|family| vip(number, family)).to_vec(),
        ports: vec![ServicePort { protocol, port, backends: backends.into() }],
        affinity: None,
    }
}

/// Both the node's translation and the rows.
fn put(rig: &mut Rig, mode: Mode, lines: &[Line], services: &[Service]) -> Result<()> {
    translate(&rig.world, "n1", mode, services)?;
    rig.apply_with("n1", lines, services.to_vec()).map(drop)
}

/// A proxy that chooses as the real one must: whom the client's rules allow, one after the other.
fn choosing(rig: &Rig, lines: &[Line], services: &[Service]) -> Result<Proxy> {
    let mut snapshot = rules::snapshot(&rig.world, "n1", 1, lines);
    snapshot.services = services.to_vec().into();
    let turn = AtomicUsize::new(0);
    Proxy::choosing(rig.node("n1"), move |client, target| {
        let Some(endpoint) = snapshot.endpoint_at(client.ip()) else { return Some(target) };
        let asked = (target.ip(), Protocol::Tcp, target.port());
        let Some(choice) = snapshot.choose(endpoint, asked, Facts::Connection) else { return Some(target) };
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        let chosen = choice.allowed.get(turn % choice.allowed.len().max(1))?;
        Some(SocketAddr::new(chosen.address, chosen.port))
    })
}

fn had(server: &Server) -> usize {
    server.connections.load(Ordering::SeqCst)
}

const WEB: (Protocol, u16) = (Protocol::Tcp, 80);

fn by_backend(node: NodeSpec, mode: Mode) -> Result<()> {
    let mut rig = Rig::with(node)?;
    rig.open("n2")?;
    let lines = [
        egress("a/client", "a/server", tcp(8080, 8080)),
        egress("a/client", "b/remote", tcp(8080, 8080)),
        closed("a/client", Direction::Ingress),
        ingress("a/server", "a/client", tcp(8080, 8080)),
        closed("a/server", Direction::Egress),
    ];
    let (open, shut, mixed, none, mapped) = (1, 2, 3, 4, 5);
    let services = [
        service(&rig, open, WEB, &[("a/server", 8080), ("b/remote", 8080)]),
        service(&rig, shut, WEB, &[("a/other", 8080)]),
        service(&rig, mixed, WEB, &[("a/server", 8080), ("a/other", 8080)]),
        service(&rig, none, WEB, &[]),
        // The port of the backend counts: the Service's own is one that the rules name.
        service(&rig, mapped, (Protocol::Tcp, 8080), &[("a/server", 9090)]),
    ];
    put(&mut rig, mode, &lines, &services)?;
    // What the server's own node says comes after it.
    rig.apply_on("n2", &[ingress("b/remote", "a/client", tcp(8080, 8080))])?;
    let start = |pod: &str| Server::start(&rig.pod(pod).netns, 8080);
    let (server, remote, other) = (start("a/server")?, start("b/remote")?, start("a/other")?);
    let _mapped = Server::start(&rig.pod("a/server").netns, 9090)?;
    let client = rig.pod("a/client").clone();
    let steps = |family: Family| -> Result<()> {
        let before = (had(&server), had(&remote));
        for _ in 0..12 {
            reaches(&client, at(open, family, 80))?;
        }
        ensure!(had(&server) > before.0 && had(&remote) > before.1, "one of the backends was never chosen");
        let counted = rig.counters()?;
        is_refused(&client, at(shut, family, 80))?;
        is_refused(&client, at(mapped, family, 8080))?;
        rig.grew(&counted, Counter::Denied)?;
        is_refused(&client, at(none, family, 80))?;
        // No Service has this port: an address as any.
        is_refused(&client, at(open, family, 81))?;
        // There is no proxy to choose.
        is_refused(&client, at(mixed, family, 80))?;
        // Whom no rule concerns reaches whatever the node knows of, and the node refuses what nobody serves.
        let target = at(none, family, 80);
        let refused = rig.pod("a/other").netns.inside(|| TcpStream::connect_timeout(&target, SOON))?;
        let refused = refused.err().map(|error| error.kind());
        ensure!(refused == Some(ErrorKind::ConnectionRefused), "without endpoints: {refused:?}");
        Ok(())
    };
    rig.explain(Family::BOTH.into_iter().try_for_each(steps))?;
    ensure!(had(&other) == 0, "a backend that no rule allows was reached");
    let proxy = choosing(&rig, &lines, &services)?;
    let before = had(&server);
    for family in Family::BOTH {
        for _ in 0..6 {
            rig.explain(reaches(&client, at(mixed, family, 80)))?;
        }
    }
    ensure!(proxy.count() == 12 && had(&server) == before + 12, "{} went through the proxy", proxy.count());
    ensure!(had(&other) == 0, "a backend that no rule allows was reached");
    // The backend's own rules are asked after the translation, on its own node.
    rig.apply_on("n2", &[closed("b/remote", Direction::Ingress)])?;
    let services = [service(&rig, open, WEB, &[("b/remote", 8080)])];
    put(&mut rig, mode, &lines, &services)?;
    Family::BOTH.into_iter().try_for_each(|family| is_refused(&client, at(open, family, 80)))
}

/// New backends that are allowed change nothing; one that is not makes the kernel leave the choice to the proxy; none
/// that is allowed ends what stood.
fn changes(mode: Mode) -> Result<()> {
    let mut rig = Rig::routed()?;
    let lines =
        [egress("a/client", "a/server", tcp(8080, 8080)), egress("a/client", "b/remote", tcp(8080, 8080))];
    let one = [("a/server", 8080)];
    let two = [("a/server", 8080), ("b/remote", 8080)];
    let three = [("a/server", 8080), ("b/remote", 8080), ("a/other", 8080)];
    let set = |rig: &mut Rig, pods: &[(&str, u16)]| {
        let services = [service(rig, 1, WEB, pods)];
        put(rig, mode, &lines, &services)
    };
    let start = |rig: &Rig, pod: &str| Server::start(&rig.pod(pod).netns, 8080);
    let (_server, _remote, other) =
        (start(&rig, "a/server")?, start(&rig, "b/remote")?, start(&rig, "a/other")?);
    set(&mut rig, &one)?;
    let client = rig.pod("a/client").clone();
    for family in Family::BOTH {
        let target = at(1, family, 80);
        set(&mut rig, &one)?;
        let mut stays = Connection::open(&client.netns, target)?;
        set(&mut rig, &two)?;
        rig.explain(stays.echo("another is allowed too", SOON))?;
        set(&mut rig, &one)?;
        rig.explain(stays.echo("and it is gone", SOON))?;
        // Which backend it is at, the kernel does not know: see docs/services.md.
        set(&mut rig, &three)?;
        rig.explain(stays.is_dead())?;
        is_refused(&client, target)?;
        let services = [service(&rig, 1, WEB, &three)];
        let proxy = choosing(&rig, &lines, &services)?;
        for _ in 0..4 {
            rig.explain(reaches(&client, target))?;
        }
        ensure!(proxy.count() == 4, "{} went through the proxy", proxy.count());
        // What the proxy holds stays with it; what comes after needs it no more.
        let mut held = Connection::open(&client.netns, target)?;
        set(&mut rig, &two)?;
        rig.explain(held.echo("still there", SOON))?;
        rig.explain(reaches(&client, target))?;
        ensure!(proxy.count() == 5, "it went through the proxy without need");
        let mut ends = Connection::open(&client.netns, target)?;
        set(&mut rig, &[("a/other", 8080)])?;
        rig.explain(ends.is_dead())?;
    }
    ensure!(had(&other) == 0, "a backend that no rule allows was reached");
    Ok(())
}

/// The usual policy names the pods that answer, and says nothing of the address that everybody asks.
fn dns(mode: Mode) -> Result<()> {
    let mut rig = Rig::routed()?;
    let lines = [
        egress("a/client", "a/server", udp(5353)),
        egress("a/client", "b/remote", udp(5353)),
        closed("a/client", Direction::Ingress),
    ];
    let port = (Protocol::Udp, 53);
    let services = [
        service(&rig, 1, port, &[("a/server", 5353), ("b/remote", 5353)]),
        service(&rig, 2, port, &[("a/server", 5353), ("a/other", 5353)]),
        service(&rig, 3, (Protocol::Tcp, 53), &[("a/server", 5353)]),
    ];
    put(&mut rig, mode, &lines, &services)?;
    let client = rig.pod("a/client").clone();
    for family in Family::BOTH {
        let start = |pod: &str| UdpServer::start(&rig.pod(pod).netns, rig.at(pod, family, 5353));
        let (server, remote, other) = (start("a/server")?, start("b/remote")?, start("a/other")?);
        let had = |server: &UdpServer| server.datagrams.load(Ordering::SeqCst);
        let local = rig.at("a/client", family, 0);
        for _ in 0..12 {
            let answered = datagram(&client.netns, local, at(1, family, 53), SOON)?;
            rig.explain(if answered { Ok(()) } else { Err(anyhow::anyhow!("no answer")) })?;
        }
        ensure!(had(&server) > 0 && had(&remote) > 0, "one of the backends was never chosen");
        let before = had(&server);
        for number in [2, 3] {
            let answered = datagram(&client.netns, local, at(number, family, 53), SILENCE)?;
            ensure!(!answered, "an answer of a Service that is not allowed");
        }
        ensure!(had(&server) == before && had(&other) == 0, "a denied datagram reached a server");
    }
    Ok(())
}

/// The destination's rules hold behind the translation, and the client's before it.
fn l7(mode: Mode) -> Result<()> {
    let mut rig = Rig::routed()?;
    let services =
        [service(&rig, 1, WEB, &[("a/server", 8080)]), service(&rig, 2, WEB, &[("b/remote", 8080)])];
    let _servers =
        ["a/server", "b/remote"].map(|pod| Server::start(&rig.pod(pod).netns, 8080).expect("a server"));
    let client = rig.pod("a/client").clone();
    let into = [ingress("a/server", "a/client", tcp(8080, 8080)).l7(), closed("a/server", Direction::Egress)];
    let out = [egress("a/client", "b/remote", tcp(8080, 8080)).l7(), closed("a/client", Direction::Ingress)];
    for (lines, number) in [(&into, 1), (&out, 2)] {
        put(&mut rig, mode, lines, &services)?;
        let proxy = choosing(&rig, lines, &services)?;
        for family in Family::BOTH {
            let target = at(number, family, 80);
            let before = proxy.count();
            rig.explain(reaches(&client, target)).with_context(|| format!("{lines:?}"))?;
            let accepted = proxy.accepted.lock().expect("not poisoned").clone();
            ensure!(accepted.len() == before + 1, "{} times through the proxy", accepted.len() - before);
            // Whoever redirected the client's side sees what the client asked for; the server's side, itself.
            let expected = if number == 1 { rig.at("a/server", family, 8080) } else { target };
            ensure!(
                accepted[before].1 == expected,
                "the original destination came out as {}",
                accepted[before].1
            );
        }
        proxy.stop()?;
        for family in Family::BOTH {
            // A process that another test is just starting may hold a copy of a listener for a moment.
            eventually("without a proxy it is refused", || {
                Ok(is_refused(&client, at(number, family, 80)).is_ok())
            })?;
        }
    }
    Ok(())
}

/// kube-proxy masquerades what comes back to its sender, so that who it was nobody can say.
fn hairpin(mode: Mode) -> Result<()> {
    let mut rig = Rig::routed()?;
    let services = [service(&rig, 1, WEB, &[("a/server", 8080)])];
    let _server = Server::start(&rig.pod("a/server").netns, 8080)?;
    let server = rig.pod("a/server").clone();
    let own = egress("a/server", "a/server", tcp(8080, 8080));
    for family in Family::BOTH {
        let target = at(1, family, 80);
        put(&mut rig, mode, std::slice::from_ref(&own), &services)?;
        rig.explain(Connection::open(&server.netns, target).map(drop))
            .context("where its ingress is open")?;
        put(&mut rig, mode, &[closed("a/server", Direction::Egress)], &services)?;
        is_refused(&server, target)?;
        put(&mut rig, mode, &[own.clone(), ingress("a/server", "a/server", tcp(8080, 8080))], &services)?;
        is_refused(&server, target)?;
    }
    Ok(())
}

/// A tenant's Service may have any `externalIPs`, and a pod may send to its own address by its interface: what it says
/// to itself is never judged, and this would lead anywhere.
fn own_address() -> Result<()> {
    let mut rig = Rig::routed()?;
    let (client, server) = (rig.pod("a/client").clone(), rig.pod("a/server").v4);
    let bank = UdpServer::start(&rig.pod(OUTSIDE).netns, rig.at(OUTSIDE, Family::V4, 53))?;
    let mut trap = service(&rig, 1, (Protocol::Udp, 53), &[(OUTSIDE, 53)]);
    trap.addresses = vec![client.v4.into()];
    let lines = [closed("a/client", Direction::Egress)];
    // As before, with an entry of what it said to itself while there was no Service.
    rig.apply(&lines)?;
    let packet = forge::fragment(client.v4, client.v4, 0);
    let before = rig.counters()?;
    client.netns.inside(|| forge::raw(server.into(), &packet))??;
    eventually("it reaches its node", || {
        Ok(rig.counters()?.get(Counter::Itself) > before.get(Counter::Itself))
    })?;
    put(&mut rig, Mode::Nftables, &lines, std::slice::from_ref(&trap))?;
    // The node remembers that it translated nothing; that is forgotten in half a minute.
    rig.world.node("n1").netns.run(&["conntrack", "-F"])?;
    let before = rig.counters()?;
    client.netns.inside(|| forge::raw(server.into(), &packet))??;
    eventually("it is refused", || Ok(rig.counters()?.get(Counter::Denied) > before.get(Counter::Denied)))?;
    ensure!(bank.datagrams.load(Ordering::SeqCst) == 0, "the way round every rule is open");
    // With rules that allow it, it goes there: the test would notice.
    let lines = [egress("a/client", OUTSIDE, udp(53))];
    put(&mut rig, Mode::Nftables, &lines, std::slice::from_ref(&trap))?;
    client.netns.inside(|| forge::raw(server.into(), &packet))??;
    rig.explain(eventually("it arrives where it may", || Ok(bank.datagrams.load(Ordering::SeqCst) == 1)))
}

fn too_many() -> Result<()> {
    let mut rig = Rig::routed()?;
    let lines = [egress("a/client", "a/server", tcp(8080, 8080))];
    let services = [service(&rig, 1, WEB, &[("a/server", 8080)])];
    let _server = Server::start(&rig.pod("a/server").netns, 8080)?;
    put(&mut rig, Mode::Nftables, &lines, &services)?;
    let mut wide = services[0].clone();
    let port = |port| ServicePort { port, ..services[0].ports[0].clone() };
    wide.ports = (1..=40_000).map(port).collect();
    let refused = rig.apply_with("n1", &lines, vec![wide]).err().context("it does not fit")?;
    ensure!(format!("{refused:#}").contains("ports of Services"), "{refused:#}");
    rig.explain(reaches(rig.pod("a/client"), at(1, Family::V4, 80)))
}
