//! A pod goes, and another comes with its address: what the first had open through the proxy, in either direction, is
//! reset to whom it spoke with, and is not the second's, nor are the rules and the flows that it was judged by.

use crate::forge::{self, SECRET, Sniffer};
use crate::frames::{self, packet, tcp as segment};
use crate::peers::{Connection, Proxy, SILENCE, SOON, Server, eventually, is_refused, reaches};
use crate::pinned;
use crate::rig::Rig;
use crate::rules::{Line, closed, egress, ingress, tcp};
use crate::v3;
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::Counter;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use sluice_tests::{NodeSpec, Pod, PodSpec};
use socket2::Domain;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::Command;

/// The port that each side opens from.
const PORT: u16 = 40_000;
const ACK_PUSH: u8 = 0x18;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test(
            "host: an address that goes to another pod, through the proxy, routed veths",
            [Need::Bpf],
            || goes_on(NodeSpec::routed("n1")),
        ),
        harness::test(
            "host: an address that goes to another pod, through the proxy, bridge ports",
            [Need::Bpf],
            || goes_on(NodeSpec::bridged("n1")),
        ),
        harness::test("host: a pod that is made again, through the proxy", [Need::Bpf], made_again),
    ]
}

/// Whom a pod may speak with, in both directions.
fn both(pod: &str, l7: bool) -> Vec<Line> {
    let lines = [egress(pod, "b/remote", tcp(80, 80)), ingress(pod, "b/remote", tcp(80, 80))];
    lines.map(|line| if l7 { line.l7() } else { line }).to_vec()
}

fn shut(pod: &str) -> Vec<Line> {
    vec![closed(pod, Direction::Ingress), closed(pod, Direction::Egress)]
}

/// The flows that are remembered of a device.
fn flows_of(rig: &Rig, device: u32) -> Result<usize> {
    let flows: aya::maps::HashMap<_, [u8; 44], [u8; 48]> = pinned::hash(rig, "n1", "FLOWS")?;
    let keys = flows.keys().filter_map(Result::ok);
    Ok(keys.filter(|key| key[..4] == device.to_ne_bytes()).count())
}

fn say(by: &Pod, from: SocketAddr, to: SocketAddr) -> Result<()> {
    let bytes = packet(from.ip(), to.ip(), frames::TCP, &segment(from, to, ACK_PUSH, SECRET));
    by.netns.inside(|| forge::raw(to.ip(), &bytes))?
}

/// That no socket of the proxy's has an end at this address.
fn has_none(rig: &Rig, address: IpAddr) -> Result<()> {
    let netns = format!("--net=/proc/{}/fd/{}", std::process::id(), rig.node("n1").proxy_netns().as_raw_fd());
    let sockets = Command::new("nsenter").args([&netns, "--", "ss", "-Htna"]).output()?;
    let sockets = String::from_utf8(sockets.stdout)?;
    let address = if address.is_ipv6() { format!("[{address}]:") } else { format!("{address}:") };
    let found: Vec<_> =
        sockets.lines().filter(|line| line.split_whitespace().any(|end| end.starts_with(&address))).collect();
    ensure!(sockets.lines().count() > 0, "nothing is told of any socket");
    ensure!(found.is_empty(), "the proxy still has {found:#?}");
    Ok(())
}

fn goes_on(node: NodeSpec) -> Result<()> {
    let mut rig = Rig::with(node)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let remote = rig.pod("b/remote").clone();
    let _remote = Server::start(&remote.netns, 80)?;
    for (round, family) in Family::BOTH.into_iter().enumerate() {
        let (gone, name) = (format!("a/first{round}"), format!("a/second{round}"));
        rig.world.add_pod(&PodSpec::new("n1", gone.as_str()))?;
        let first = rig.pod(&gone).clone();
        rig.apply(&both(&gone, true))?;
        let device = v3::index(&rig.world, "n1", &first.veth)?;
        let served = Server::start(&first.netns, 80)?;
        let ends = |pod: &Pod, at: u16| SocketAddr::new(pod.ip(family), at);
        let mut out = Connection::open_from(&first.netns, ends(&first, PORT), ends(&remote, 80))?;
        let mut into = Connection::open_from(&remote.netns, ends(&remote, PORT), ends(&first, 80))?;
        rig.explain(out.echo("hello", SOON).and_then(|()| into.echo("hello", SOON)))?;
        ensure!(proxy.count() == 2 + round * 4, "{} connections through the proxy", proxy.count());
        ensure!(flows_of(&rig, device)? > 0, "nothing is remembered of the first");
        // Without a word, and with something on its way to it.
        rig.world.delete_pod(&gone)?;
        let _ = into.echo("nobody hears this", SILENCE);
        rig.world.add_pod(&PodSpec::new("n1", name.as_str()))?;
        let second = rig.pod(&name).clone();
        ensure!(second.ip(family) == first.ip(family), "it has another address");
        // Nobody may speak with the second.
        rig.apply(&shut(&name))?;
        into.was_reset().with_context(|| format!("{family:?}: from whom the first spoke with"))?;
        has_none(&rig, first.ip(family))?;
        drop((out, served));
        rig.node_mut("n1").sweep()?;
        ensure!(flows_of(&rig, device)? == 0, "the first's flows are still there");
        let served = Server::start(&second.netns, 80)?;
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        let (here, there) =
            (Sniffer::start(&second.netns, domain, 6)?, Sniffer::start(&remote.netns, domain, 6)?);
        let before = rig.counters()?;
        // On the first's connections, by whoever has its address now and by whom it spoke with.
        for (from, to) in [((&second, PORT), (&remote, 80)), ((&second, 80), (&remote, PORT))] {
            say(from.0, ends(from.0, from.1), ends(to.0, to.1))?;
            say(to.0, ends(to.0, to.1), ends(from.0, from.1))?;
        }
        eventually("all four are refused", || {
            Ok(rig.counters()?.get(Counter::Denied) >= before.get(Counter::Denied) + 4)
        })
        .with_context(|| format!("{family:?}: {:?}", rig.counters().map(|now| now.since(&before))))?;
        ensure!(!here.saw_secret(), "{family:?}: what was for the first came to the second");
        ensure!(!there.saw_secret(), "{family:?}: the second spoke on the first's connection");
        let refused =
            is_refused(&remote, ends(&second, 80)).and_then(|()| is_refused(&second, ends(&remote, 80)));
        rig.explain(refused).with_context(|| format!("{family:?}: under the second's rules"))?;
        // With rules of its own it is judged by them: on the very ports of the first's connections.
        for l7 in [false, true] {
            rig.apply(&both(&name, l7))?;
            let before = proxy.count();
            let out = Connection::open_from(&second.netns, ends(&second, PORT), ends(&remote, 80));
            let into = Connection::open_from(&remote.netns, ends(&remote, PORT), ends(&second, 80));
            for connection in [out, into] {
                let mut open = rig.explain(connection).with_context(|| format!("{family:?}, l7: {l7}"))?;
                rig.explain(open.echo("hello", SOON))?;
                open.reset()?;
            }
            let passed = proxy.count() - before;
            ensure!(passed == if l7 { 2 } else { 0 }, "{family:?}, l7: {l7}: {passed} passed the proxy");
        }
        drop(served);
        rig.world.delete_pod(&name)?;
        rig.apply(&[])?;
    }
    Ok(())
}

/// With its name, its address and its rules; on this node, then on the other. Nobody judges its connections otherwise,
/// and nothing is said on them.
fn made_again() -> Result<()> {
    const AGAIN: [(&str, &str); 2] = [("n1", "a/again"), ("n2", "b/again")];
    let mut rig = Rig::routed()?;
    let proxy = Proxy::start(rig.node("n1"))?;
    for (node, name) in AGAIN {
        rig.world.add_pod(&PodSpec::new(node, name))?;
    }
    let lines: Vec<Line> = ["a/again", "b/again", "b/remote"]
        .into_iter()
        .flat_map(|peer| [egress("a/client", peer, tcp(80, 80)), ingress("a/client", peer, tcp(80, 80))])
        .map(Line::l7)
        .collect();
    rig.apply(&lines)?;
    let client = rig.pod("a/client").clone();
    let _servers = ["a/client", "b/remote"].map(|pod| Server::start(&rig.pod(pod).netns, 80));
    for family in Family::BOTH {
        let mut other = Connection::open(&client.netns, rig.at("b/remote", family, 80))?;
        for (node, name) in AGAIN {
            let what = || format!("{name}, {family:?}");
            let pod = rig.pod(name).clone();
            let served = Server::start(&pod.netns, 80)?;
            let mut into = Connection::open(&client.netns, SocketAddr::new(pod.ip(family), 80))?;
            let mut out = Connection::open(&pod.netns, rig.at("a/client", family, 80))?;
            into.echo("hello", SOON).and_then(|()| out.echo("hello", SOON)).with_context(what)?;
            let before = proxy.count();
            rig.apply(&lines)?;
            into.echo("hello", SOON).context("a snapshot in which nobody has left cuts nothing")?;
            rig.world.delete_pod(name)?;
            rig.world.add_pod(&PodSpec::new(node, name))?;
            let again = rig.pod(name).clone();
            ensure!(again.ip(family) == pod.ip(family), "{name} has another address");
            rig.apply(&lines)?;
            into.was_reset().with_context(what)?;
            has_none(&rig, pod.ip(family)).with_context(what)?;
            other.echo("hello", SOON).context("what others have open goes on")?;
            drop((served, out));
            let _served = Server::start(&again.netns, 80)?;
            reaches(&client, SocketAddr::new(again.ip(family), 80)).with_context(what)?;
            reaches(&again, rig.at("a/client", family, 80)).with_context(what)?;
            ensure!(proxy.count() == before + 2, "they went past the proxy");
        }
    }
    Ok(())
}
