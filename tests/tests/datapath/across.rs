//! Two nodes, each with its own loader and proxy: over plain routes and over VXLAN, policy at both ends, and packets
//! as large as the ways allow.

use crate::peers::{Connection, Proxy, Server, is_refused, reaches};
use crate::rig::Rig;
use crate::rules::{closed, egress, ingress, tcp};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use sluice_tests::{NodeSpec, Overlay, Pod, World, WorldBuilder};

/// There and back again.
const BULK: usize = 64 * 1024 * 1024;
/// What VXLAN over IPv4 leaves of 1500.
const TUNNEL_MTU: u32 = 1_450;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("across: plain routes", || both_ends(nodes(), 1_500)),
        test("across: VXLAN", || {
            both_ends(nodes().overlay(Overlay::Vxlan { mtu: TUNNEL_MTU }).pod_mtu(TUNNEL_MTU), TUNNEL_MTU)
        }),
    ]
}

/// One of each kind.
fn nodes() -> WorldBuilder {
    World::builder().node(NodeSpec::routed("n1")).node(NodeSpec::bridged("n2"))
}

/// Bytes and packets that a pod has received.
fn received(pod: &Pod) -> Result<(u64, u64)> {
    let text = pod.netns.run(&["ip", "-s", "-j", "link", "show", "eth0"])?;
    let link: serde_json::Value = serde_json::from_str(&text)?;
    let count = |what: &str| link[0]["stats64"]["rx"][what].as_u64().context("a counter");
    Ok((count("bytes")?, count("packets")?))
}

fn both_ends(nodes: WorldBuilder, mtu: u32) -> Result<()> {
    let mut rig = Rig::among(nodes)?;
    rig.open("n2")?;
    // Each pod is client and server of the other.
    let here = [
        egress("a/client", "b/remote", tcp(80, 80)).l7(),
        ingress("a/client", "b/remote", tcp(80, 80)).l7(),
        closed("a/other", Direction::Egress),
    ];
    let there =
        [egress("b/remote", "a/client", tcp(80, 80)).l7(), ingress("b/remote", "a/client", tcp(80, 80)).l7()];
    rig.apply_on("n1", &here)?;
    rig.apply_on("n2", &there)?;
    let proxies = [Proxy::start(rig.node("n1"))?, Proxy::start(rig.node("n2"))?];
    let _client = Server::start(&rig.pod("a/client").netns, 80)?;
    let _remote = Server::start(&rig.pod("b/remote").netns, 80)?;
    for family in Family::BOTH {
        for (from, to) in [("a/client", "b/remote"), ("b/remote", "a/client")] {
            let what = format!("{from} to {to}, {family:?}");
            let (target, before) = (rig.at(to, family, 80), received(rig.pod(to))?);
            rig.explain(reaches(rig.pod(from), target)).with_context(|| what.clone())?;
            let mut connection = Connection::open(&rig.pod(from).netns, target)?;
            rig.explain(connection.bulk(BULK)).with_context(|| what.clone())?;
            let after = received(rig.pod(to))?;
            // What was joined stays joined on its way through both proxies, and was not cut at a hook.
            let average = (after.0 - before.0) / (after.1 - before.1);
            ensure!(average > 2 * u64::from(mtu), "{what}: packets of {average} bytes arrive on average");
        }
        // Who is refused at one end is refused, and who is refused at the other is too.
        is_refused(rig.pod("a/other"), rig.at("b/remote", family, 80))?;
        is_refused(rig.pod("a/server"), rig.at("b/remote", family, 80))?;
    }
    for proxy in &proxies {
        ensure!(proxy.count() == 8, "a proxy had {} connections", proxy.count());
    }
    Ok(())
}
