//! The world builder itself: its links carry packets in both families and it leaves nothing behind.
//!
//! Knows nothing of the product.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Family, NETNS_DIR, STATE_DIR};
use sluice_tests::{NodeSpec, Overlay, PodSpec, World};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let tests: Vec<Trial> = vec![
        harness::test("pods reach pods", [Need::World], pods_reach_pods),
        harness::test("pods reach pods over VXLAN", [Need::World], pods_over_vxlan),
        harness::test("a host outside is reached", [Need::World], outside_is_reached),
        harness::test("nothing is left behind", [Need::World], nothing_is_left),
        harness::test("sysctls stay inside", [Need::World], sysctls_stay_inside),
    ];
    harness::main(2, tests)
}

const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x5c, 0, 0, 0, 0, 10);

fn world() -> Result<World> {
    World::builder()
        .node(NodeSpec::routed("n1"))
        .node(NodeSpec::bridged("n2").br_netfilter(true))
        .pod(PodSpec::new("n1", "shop/a"))
        .pod(PodSpec::new("n1", "shop/b"))
        .pod(PodSpec::new("n2", "shop/c"))
        .pod(PodSpec::new("n2", "shop/d"))
        .outside("bank", Ipv4Addr::new(203, 0, 113, 10), OUTSIDE_V6)
        .build()
}

/// A connection between two pods, with the client's own address at the server.
fn connect(world: &World, from: &str, to: &str, family: Family) -> Result<()> {
    let (client, server) = (world.pod(from), world.pod(to));
    let address = server.ip(family);
    let listener = server.netns.inside(|| TcpListener::bind((address, 0)))??;
    let target = listener.local_addr()?;
    client.netns.inside(|| std::net::TcpStream::connect(target))??;
    let seen = listener.accept()?.1.ip();
    ensure!(seen == client.ip(family), "{to} saw {seen} and not {from}");
    Ok(())
}

fn pods_reach_pods() -> Result<()> {
    let world = world()?;
    for family in Family::BOTH {
        for (from, to) in
            [("shop/a", "shop/b"), ("shop/a", "shop/c"), ("shop/c", "shop/d"), ("shop/d", "shop/b")]
        {
            connect(&world, from, to, family)?;
        }
    }
    Ok(())
}

fn pods_over_vxlan() -> Result<()> {
    let world = World::builder()
        .node(NodeSpec::routed("n1"))
        .node(NodeSpec::bridged("n2"))
        .pod(PodSpec::new("n1", "shop/a"))
        .pod(PodSpec::new("n2", "shop/c"))
        .overlay(Overlay::Vxlan { mtu: 1450 })
        .pod_mtu(1450)
        .build()?;
    for family in Family::BOTH {
        connect(&world, "shop/a", "shop/c", family)?;
        connect(&world, "shop/c", "shop/a", family)?;
    }
    // Nothing went past the tunnel: the other node's pods are not known to the link between the nodes. Each node has sent
    // two SYNs, two of their answers and two acknowledgements by now; how much of the closing, is a race.
    for node in &world.nodes {
        let devices = node.netns.run(&["ip", "-s", "-j", "link", "show", "vxlan.1"])?;
        let devices: serde_json::Value = serde_json::from_str(&devices)?;
        let packets = devices[0]["stats64"]["tx"]["packets"].as_u64();
        ensure!(packets.is_some_and(|packets| packets >= 6), "{}: only {packets:?} packets", node.name);
    }
    Ok(())
}

fn outside_is_reached() -> Result<()> {
    let world = world()?;
    for family in Family::BOTH {
        connect(&world, "shop/a", "bank", family)?;
        connect(&world, "bank", "shop/d", family)?;
    }
    Ok(())
}

fn nothing_is_left() -> Result<()> {
    let world = world()?;
    let prefix = world.prefix().to_owned();
    let mut sleeper = world.start("sleeper", &world.pod("shop/a").netns, Path::new("sleep"), &["1000"])?;
    ensure!(sleeper.running()?, "sleep does not run");
    drop(world);
    ensure!(!sleeper.running()?, "a process outlived its world");
    let left: Vec<_> = std::fs::read_dir(NETNS_DIR)?.flatten().map(|entry| entry.file_name()).collect();
    let mine = left.iter().filter(|name| name.to_string_lossy().starts_with(&format!("{prefix}-")));
    ensure!(mine.count() == 0, "namespaces are left: {left:?}");
    ensure!(!Path::new(STATE_DIR).join(&prefix).exists(), "files are left");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&format!("{prefix}/")), "mounts are left");
    Ok(())
}

fn sysctls_stay_inside() -> Result<()> {
    let read = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    let before = read()?;
    let world = world()?;
    ensure!(world.node("n1").netns.inside(read)??.trim() == "1", "the node does not forward");
    ensure!(read()? == before, "the machine's own sysctl changed");
    let refused = world.node("n1").netns.sysctl(&[("kernel.panic", "1")]);
    ensure!(refused.is_err(), "a sysctl of the machine was not refused");
    Ok(())
}
