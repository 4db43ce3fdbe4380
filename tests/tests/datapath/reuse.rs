//! A pod goes, and another comes with its address: what the first had open through the proxy, in either direction, is
//! not the second's, nor are the rules and the flows that it was judged by.
//!
//! The proxy's own connections end with the verdict that they had (its own tests); here somebody ends them in its place.

use crate::forge::{self, SECRET, Sniffer};
use crate::frames::{self, packet, tcp as segment};
use crate::peers::{Connection, Proxy, SOON, Server, eventually, is_refused};
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
use std::net::SocketAddr;
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

/// What the proxy does with what it has of a pod that is gone.
fn end_connections(rig: &Rig) -> Result<()> {
    let netns = format!("--net=/proc/{}/fd/{}", std::process::id(), rig.node("n1").proxy_netns().as_raw_fd());
    let ended =
        Command::new("nsenter").args([&netns, "--", "ss", "-K", "-t", "state", "connected"]).output()?;
    ensure!(ended.status.success(), "ss -K: {}", String::from_utf8_lossy(&ended.stderr));
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
        drop((out, served));
        rig.world.delete_pod(&gone)?;
        rig.world.add_pod(&PodSpec::new("n1", name.as_str()))?;
        let second = rig.pod(&name).clone();
        ensure!(second.ip(family) == first.ip(family), "it has another address");
        end_connections(&rig)?;
        // Nobody may speak with the second.
        rig.apply(&shut(&name))?;
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
        drop(into);
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
