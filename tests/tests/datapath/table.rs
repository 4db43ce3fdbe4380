//! A table of forged frames: each sent by a pod, and at a pod by a port of its bridge that no endpoint has. What is
//! refused is counted for its reason and does not arrive; what is allowed arrives as it was sent.
//!
//! The frames are in `cases.rs`.

use crate::cases::{self, Case, Ends, Want};
use crate::frames::{Tap, Wire};
use crate::peers::{SOON, eventually};
use crate::rig::Rig;
use crate::rules::{self, Line, closed, ingress};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Class, ClassId, Direction, Identity, PortRange, PortSet, Prefix, Protocol, Snapshot};
use sluice_redirect::Counters;
use sluice_tests::NodeSpec;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Instant;

/// The port of the node's VXLAN device: Flannel's.
const TUNNEL: u16 = 8_472;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("table: forged frames, each counted for its reason", [Need::Bpf], forged),
        harness::test("table: a pod that changes its hardware address", [Need::Bpf], changed_mac),
        harness::test("table: over a routed veth no hardware address is held to", [Need::Bpf], routed_mac),
    ]
}

/// What the server accepts.
fn accepted() -> PortSet {
    let port = |protocol, port| PortRange { protocol, first: port, last: port };
    PortSet::Ranges(vec![
        port(Protocol::Udp, 53),
        port(Protocol::Tcp, 80),
        PortRange::all(Protocol::Icmp),
        PortRange::all(Protocol::Other),
    ])
}

fn lines() -> Vec<Line> {
    vec![
        ingress("a/server", "a/client", accepted()),
        ingress("a/server", "b/remote", accepted()),
        closed("a/other", Direction::Ingress),
    ]
}

/// The rules, with the other node known as one.
fn snapshot(rig: &Rig, generation: u64) -> Snapshot {
    let mut snapshot = rules::snapshot(&rig.world, "n1", generation, &lines());
    let class = ClassId(u32::try_from(snapshot.classes.len()).expect("few"));
    snapshot.classes.push(Class { identity: Identity::Node("n2".into()), cidrs: Vec::new() });
    for address in [rig.world.node("n2").v4.into(), rig.world.node("n2").v6.into()] {
        snapshot.addresses.insert(Prefix::host(address), class);
    }
    snapshot
}

/// A bridge with a port more than it has pods, and a tunnel.
fn stage() -> Result<Rig> {
    let mut rig = Rig::with(NodeSpec::bridged("n1"))?;
    rig.world.node("n1").netns.ip_batch(&[
        "link add rogue0 type veth peer name rogue1".to_owned(),
        "link set rogue1 addrgenmode none up".to_owned(),
        "link set rogue0 addrgenmode none master cni0 up".to_owned(),
        format!("link add vx0 type vxlan id 7 dstport {TUNNEL} dev eth0"),
    ])?;
    let applied = rig.put("n1", &snapshot(&rig, 1))?;
    ensure!(applied.missing.is_empty(), "missing: {:?}", applied.missing);
    Ok(rig)
}

/// One way in: the wire, and what the frames on it say.
struct Way {
    name: &'static str,
    wire: Wire,
    ends: Ends,
}

fn ways(rig: &Rig, family: Family) -> Result<[Way; 2]> {
    let (n1, server) = (rig.world.node("n1"), rig.pod("a/server"));
    let to = Wire::open(&server.netns, "eth0")?.mac;
    let bridge = Wire::open(&n1.netns, "cni0")?.mac;
    let n2 = rig.world.node("n2");
    let way = |name, wire: Wire, src| {
        let ends = Ends {
            from: wire.mac,
            to,
            src: SocketAddr::new(src, 4000),
            dst: rig.at("a/server", family, 53),
            other: rig.pod("a/other").ip(family),
            remote: rig.pod("b/remote").ip(family),
            node: family.pick(n1.v4, n1.v6),
            far: family.pick(n2.v4, n2.v6),
            tunnel: TUNNEL,
            bridge,
        };
        Way { name, wire, ends }
    };
    let pod = Wire::open(&rig.pod("a/client").netns, "eth0")?;
    Ok([
        way(cases::FROM_POD, pod, rig.pod("a/client").ip(family)),
        way(cases::TO_POD, Wire::open(&n1.netns, "rogue1")?, rig.pod("b/remote").ip(family)),
    ])
}

fn forged() -> Result<()> {
    let rig = stage()?;
    let tap = Tap::start(&rig.pod("a/server").netns)?;
    let (mut refused, mut arrived, mut count) = (HashSet::new(), Vec::new(), 0);
    for family in Family::BOTH {
        for way in ways(&rig, family)? {
            for case in
                cases::all(family).into_iter().filter(|case| case.hook.is_none_or(|hook| hook == way.name))
            {
                let frame = (case.frame)(&way.ends);
                let outcome = play(&rig, &tap, &way, &case, &frame, &mut arrived);
                rig.explain(outcome.with_context(|| format!("{}, {family:?}, {}", case.name, way.name)))?;
                if matches!(case.want, Want::Dropped(_)) {
                    refused.insert(frame);
                }
                count += 1;
            }
        }
    }
    while let Some(frame) = tap.next()? {
        arrived.push(frame);
    }
    let wrong: Vec<_> = arrived.iter().filter(|frame| refused.contains(*frame)).collect();
    ensure!(wrong.is_empty(), "refused, and arrived: {wrong:02x?}");
    ensure!(count >= 40, "only {count} cases");
    Ok(())
}

/// Sends a frame and waits until what must come of it has.
fn play(
    rig: &Rig,
    tap: &Tap,
    way: &Way,
    case: &Case,
    frame: &[u8],
    arrived: &mut Vec<Vec<u8>>,
) -> Result<()> {
    let before = rig.counters()?;
    way.wire.send(frame)?;
    match case.want {
        Want::Dropped(reason) | Want::Counted(reason) => {
            eventually(&format!("counted as {reason:?}"), || {
                Ok(rig.counters()?.get(reason) > before.get(reason))
            })
            .with_context(|| since(rig, &before))
        }
        Want::Arrives => {
            let end = Instant::now() + SOON;
            loop {
                ensure!(Instant::now() < end, "does not arrive; {}", since(rig, &before));
                let Some(next) = tap.next()? else { continue };
                let ours = next == frame;
                arrived.push(next);
                if ours {
                    return Ok(());
                }
            }
        }
    }
}

fn since(rig: &Rig, before: &Counters) -> String {
    let grown = rig.counters().map(|now| now.since(before));
    format!("since: {grown:?}")
}

/// The pod may change its address itself, to another's too: it is held to the first that was seen.
fn changed_mac() -> Result<()> {
    let mut rig = stage()?;
    let client = rig.pod("a/client").clone();
    let to_server = |rig: &Rig| -> Result<bool> {
        client.netns.ip_batch(&["neigh flush all".to_owned()])?;
        crate::peers::ping(&client, rig.pod("a/server").v4.into())
    };
    let first = Wire::open(&client.netns, "eth0")?.mac;
    ensure!(to_server(&rig)?, "before");
    set_mac(&rig, "a/client", Wire::open(&rig.pod("a/other").netns, "eth0")?.mac)?;
    for generation in [2, 3] {
        let before = rig.counters()?;
        ensure!(!to_server(&rig)?, "with another's hardware address, generation {generation}");
        rig.grew(&before, sluice_redirect::Counter::SpoofedMac)?;
        // What is applied next does not believe it either; nor does a loader that comes anew.
        if generation == 3 {
            drop(rig.take("n1"));
            rig.open("n1")?;
        }
        let snapshot = snapshot(&rig, generation);
        rig.put("n1", &snapshot)?;
    }
    ensure!(!to_server(&rig)?, "with another's hardware address, a new loader");
    set_mac(&rig, "a/client", first)?;
    ensure!(to_server(&rig)?, "with its own again");
    Ok(())
}

fn set_mac(rig: &Rig, pod: &str, mac: crate::frames::Mac) -> Result<()> {
    let text = mac.map(|byte| format!("{byte:02x}")).join(":");
    rig.pod(pod).netns.ip_batch(&[format!("link set eth0 address {text}")])
}

fn routed_mac() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&lines())?;
    set_mac(&rig, "a/client", [2, 0, 0, 0, 0, 7])?;
    for family in Family::BOTH {
        let client = rig.pod("a/client");
        ensure!(crate::peers::ping(client, rig.pod("a/server").ip(family))?, "{family:?}");
    }
    Ok(())
}
