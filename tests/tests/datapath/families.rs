//! Nodes and pods that have one family of addresses only: what they have works, and of what they have not nothing
//! passes that a rule governs.

use crate::peers::{Proxy, Server, is_refused, reaches};
use crate::rig::Rig;
use crate::rules::{self, closed, egress, ingress, tcp};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Direction, Endpoint, Snapshot};
use sluice_redirect::{Counter, Node, absent};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Family, Netns};
use std::net::IpAddr;
use std::sync::Arc;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("families: a kernel without IPv6", [Need::Bpf], no_such_family),
        harness::test("families: a node that has IPv6 switched off", [Need::Bpf], switched_off),
        harness::test("families: a node without an IPv6 address", [Need::Bpf], no_address),
        harness::test("families: pods of one family", [Need::Bpf], pods_of_one),
    ]
}

fn lines() -> Vec<rules::Line> {
    vec![
        egress("a/client", "b/remote", tcp(80, 80)).l7(),
        egress("a/client", "b/remote", tcp(81, 81)),
        egress("a/client", "a/server", tcp(80, 81)),
        ingress("a/server", "a/client", tcp(80, 80)).l7(),
        ingress("a/server", "a/client", tcp(81, 81)),
        closed("a/other", Direction::Egress),
    ]
}

fn servers(rig: &Rig) -> Result<Vec<Server>> {
    let ports = ["a/server", "b/remote"].into_iter().flat_map(|pod| [(pod, 80), (pod, 81), (pod, 82)]);
    ports.map(|(pod, port)| Server::start(&rig.pod(pod).netns, port)).collect()
}

/// Everything of IPv4, through the proxy and past it.
fn v4_works(rig: &Rig) -> Result<()> {
    for server in ["b/remote", "a/server"] {
        for port in [80, 81] {
            rig.explain(reaches(rig.pod("a/client"), rig.at(server, Family::V4, port)))?;
        }
        rig.explain(is_refused(rig.pod("a/client"), rig.at(server, Family::V4, 82)))?;
    }
    rig.explain(is_refused(rig.pod("a/other"), rig.at("b/remote", Family::V4, 80)))
}

/// Runs on a thread that has no socket of IPv6.
fn without_v6<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| absent::ipv6().map(|()| work()));
        Ok(work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    })
}

fn no_such_family() -> Result<()> {
    let mut rig = Rig::routed()?;
    drop(rig.take("n1"));
    let (n1, config) = (rig.world.node("n1").netns.clone(), rig.config("n1"));
    let mut node = without_v6(|| n1.inside(|| Node::open(config)))???;
    let snapshot = rules::snapshot(&rig.world, "n1", 1, &lines());
    let applied = without_v6(|| node.apply(&snapshot))??;
    ensure!(applied.missing.is_empty(), "{applied:?}");
    let listeners = without_v6(|| node.listeners())??;
    ensure!(listeners.len() == 1 && listeners[0].local_addr()?.is_ipv4(), "{listeners:?}");
    rig.put_node("n1", node);
    let _servers = servers(&rig)?;
    let proxy = Proxy::on(rig.node("n1"), &listeners)?;
    v4_works(&rig)?;
    ensure!(proxy.count() > 0, "nothing passed the proxy");
    // What is for the proxy by IPv6 comes to it, and there is nobody.
    for (server, before) in [("b/remote", rig.counters()?), ("a/server", rig.counters()?)] {
        rig.explain(is_refused(rig.pod("a/client"), rig.at(server, Family::V6, 80)))?;
        rig.grew(&before, Counter::NoSocket)?;
    }
    let drift = without_v6(|| rig.node_mut("n1").verify())?;
    ensure!(drift.is_empty(), "a node without IPv6 is told of as drift: {drift:?}");
    // The next one, which is handed the one listener.
    let (netns, config) = (rig.node("n1").proxy_netns().try_clone_to_owned()?, rig.config("n1"));
    drop(rig.take("n1"));
    let adopted = without_v6(|| n1.inside(|| Node::adopt(config, netns, &listeners)))???;
    rig.put_node("n1", adopted);
    v4_works(&rig)
}

/// Takes addresses of a device away.
fn flush(netns: &Netns, arguments: &[&str]) -> Result<()> {
    let [family, rest @ ..] = arguments else { bail!("no family") };
    netns.run(&[&["ip", family, "address", "flush", "dev"], rest].concat()).map(drop)
}

fn switched_off() -> Result<()> {
    let mut rig = Rig::routed()?;
    drop(rig.take("n1"));
    rig.world
        .node("n1")
        .netns
        .sysctl(&[("net.ipv6.conf.all.disable_ipv6", "1"), ("net.ipv6.conf.default.disable_ipv6", "1")])?;
    rig.open("n1")?;
    ensure!(rig.node_mut("n1").verify().is_empty(), "told of as drift");
    rig.apply(&lines())?;
    let _servers = servers(&rig)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    v4_works(&rig)?;
    ensure!(proxy.count() > 0, "nothing passed the proxy");
    let remote = rig.at("b/remote", Family::V6, 80);
    rig.explain(is_refused(rig.pod("a/client"), remote))?;
    ensure!(rig.node_mut("n1").verify().is_empty(), "told of as drift");
    // The proxy's own namespace has it in any case: nothing there is the node's. It may have begun without.
    let netns = || rig.node("n1").proxy_netns().try_clone_to_owned();
    let off = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
    let read = || Ok(std::fs::read_to_string(off)?);
    ensure!(crate::peers::within(netns()?, read)?.trim() == "0", "IPv6 is off in the proxy's namespace");
    crate::peers::within(netns()?, || Ok(std::fs::write(off, "1")?))?;
    let found = rig.node_mut("n1").verify();
    ensure!(found.iter().any(|drift| drift.what.contains("disable_ipv6")), "not noticed: {found:?}");
    ensure!(found.iter().all(|drift| drift.stays.is_none()), "not put right: {found:?}");
    let again = rig.node_mut("n1").verify();
    ensure!(again.is_empty(), "told again: {again:?}");
    Ok(())
}

fn no_address() -> Result<()> {
    let mut rig = Rig::routed()?;
    drop(rig.take("n1"));
    let n1 = &rig.world.node("n1").netns;
    flush(n1, &["-6", "eth0"])?;
    flush(n1, &["-6", "lo"])?;
    n1.sysctl(&[("net.ipv6.conf.all.forwarding", "0")])?;
    rig.open("n1")?;
    rig.apply(&lines())?;
    let _servers = servers(&rig)?;
    let _proxy = Proxy::start(rig.node("n1"))?;
    v4_works(&rig)?;
    ensure!(rig.node_mut("n1").verify().is_empty(), "told of as drift");
    Ok(())
}

/// The endpoint has the addresses of these families alone.
fn only(snapshot: &mut Snapshot, pod: &str, keep: impl Fn(&IpAddr) -> bool) {
    let endpoints = snapshot.endpoints.iter().map(|endpoint| {
        let mut endpoint = Endpoint::clone(endpoint);
        if *endpoint.workload.pod == *pod {
            endpoint.addresses.retain(&keep);
        }
        Arc::new(endpoint)
    });
    snapshot.endpoints = endpoints.collect::<Vec<_>>().into();
}

fn pods_of_one() -> Result<()> {
    let mut rig = Rig::routed()?;
    let _servers = servers(&rig)?;
    flush(&rig.pod("a/client").netns, &["-6", "eth0", "scope", "global"])?;
    flush(&rig.pod("a/other").netns, &["-4", "eth0"])?;
    let mut lines = lines();
    lines.extend([
        egress("a/other", "b/remote", tcp(80, 80)).l7(),
        egress("a/other", "b/remote", tcp(81, 81)),
    ]);
    let mut snapshot = rules::snapshot(&rig.world, "n1", 7, &lines);
    only(&mut snapshot, "client", IpAddr::is_ipv4);
    only(&mut snapshot, "other", IpAddr::is_ipv6);
    let applied = rig.put("n1", &snapshot)?;
    ensure!(applied.missing.is_empty(), "{applied:?}");
    let proxy = Proxy::start(rig.node("n1"))?;
    for port in [80, 81] {
        rig.explain(reaches(rig.pod("a/client"), rig.at("b/remote", Family::V4, port)))?;
        rig.explain(reaches(rig.pod("a/other"), rig.at("b/remote", Family::V6, port)))?;
    }
    ensure!(proxy.count() == 2, "{} connections passed the proxy", proxy.count());
    // An address of the other family that it takes by itself is not its own.
    let client = rig.pod("a/client");
    client.netns.ip_batch(&[format!("address add {}/128 dev eth0 nodad", client.v6)])?;
    let before = rig.counters()?;
    rig.explain(is_refused(client, rig.at("b/remote", Family::V6, 81))).context("with an address it took")?;
    rig.grew(&before, Counter::Spoofed)
}
