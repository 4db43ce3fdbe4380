//! Somebody changes what a node needs, one thing after the other: one look notices and puts it right.

use crate::peers::{Proxy, Server, is_refused, reaches};
use crate::rig::Rig;
use crate::rules::{self, egress, tcp};
use crate::v3;
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{SchedClassifier, TcAttachType};
use libtest_mimic::Trial;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice_redirect::{ABI_VERSION, Drift, Hooks, NodeConfig};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::os::fd::AsFd;
use std::process::Command;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("drift: what is changed behind our back is put right", [Need::Tcx], || {
            drift(Hooks::Tcx)
        }),
        harness::test("drift: the same by filters", [Need::Bpf], || drift(Hooks::Clsact)),
        harness::test("drift: a program that lets everything pass comes first", [Need::Tcx], displaced),
    ]
}

/// `r0 = 0; exit` in a section `classifier`, as `pass`: `TC_ACT_OK`, which ends the chain.
static PASS: &[u8] = aya::include_bytes_aligned!("pass.bpf.o");
/// Looks at one thing only when a look has nothing to tell any more.
const LOOKS: usize = 2;

/// One change, noticed in one look, and nothing to tell in the next.
fn noticed(rig: &mut Rig, what: &str, expect: &str, change: impl FnOnce(&Rig) -> Result<()>) -> Result<()> {
    change(rig).with_context(|| what.to_owned())?;
    let found = rig.node_mut("n1").verify();
    ensure!(found.iter().any(|drift| drift.what.contains(expect)), "{what}: not noticed: {found:?}");
    ensure!(found.iter().all(|drift: &Drift| drift.stays.is_none()), "{what}: not put right: {found:?}");
    for _ in 1..LOOKS {
        let again = rig.node_mut("n1").verify();
        ensure!(again.is_empty(), "{what}: told again: {again:?}");
    }
    works(rig).with_context(|| what.to_owned())
}

fn works(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        reaches(rig.pod("a/client"), rig.at("b/remote", family, 80))?;
    }
    is_refused(rig.pod("a/client"), rig.at("b/remote", Family::V4, 81))
}

/// A command in the proxy's namespace.
fn inside(rig: &Rig, argv: &[&str]) -> Result<()> {
    let netns = rig.node("n1").proxy_netns().try_clone_to_owned()?;
    let output = std::thread::scope(|scope| {
        let work = || -> Result<std::process::Output> {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(Command::new(argv[0]).args(&argv[1..]).output()?)
        };
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    ensure!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn drift(hooks: Hooks) -> Result<()> {
    let mut rig = Rig::routed()?;
    drop(rig.take("n1"));
    rig.open_with("n1", NodeConfig { hooks, ..rig.config("n1") })?;
    rig.apply(&[egress("a/client", "b/remote", tcp(80, 80)).l7()])?;
    let _servers = [80, 81].map(|port| Server::start(&rig.pod("b/remote").netns, port));
    let _proxy = Proxy::start(rig.node("n1"))?;
    works(&rig)?;
    ensure!(rig.node_mut("n1").verify().is_empty(), "a node that nobody touched has drifted");
    let node = rig.world.node("n1").netns.clone();
    let run = |argv: &'static [&'static str]| {
        let node = node.clone();
        move |_: &Rig| node.run(argv).map(|_| ())
    };
    noticed(&mut rig, "rp_filter", "rp_filter", run(&["sysctl", "-qw", "net.ipv4.conf.sl-n1o.rp_filter=1"]))?;
    noticed(
        &mut rig,
        "forwarding",
        "forwarding",
        run(&["sysctl", "-qw", "net.ipv4.conf.sl-n1o.forwarding=0"]),
    )?;
    noticed(
        &mut rig,
        "accept_local",
        "accept_local",
        run(&["sysctl", "-qw", "net.ipv4.conf.sl-n1o.accept_local=0"]),
    )?;
    noticed(&mut rig, "the helper down", "sl-n1o was down", run(&["ip", "link", "set", "sl-n1o", "down"]))?;
    noticed(&mut rig, "the inner end down", "sl-n1i was down", |rig| {
        inside(rig, &["ip", "link", "set", "sl-n1i", "down"])
    })?;
    noticed(&mut rig, "the rule", "IPv4 rule", |rig| inside(rig, &["ip", "rule", "del", "priority", "100"]))?;
    noticed(&mut rig, "the IPv6 rule", "IPv6 rule", |rig| {
        inside(rig, &["ip", "-6", "rule", "del", "priority", "100"])
    })?;
    noticed(&mut rig, "a route", "default route", |rig| {
        inside(rig, &["ip", "route", "flush", "table", "main"])
    })?;
    noticed(&mut rig, "the local route", "local route", |rig| {
        inside(rig, &["ip", "-6", "route", "flush", "table", "100"])
    })?;
    noticed(&mut rig, "the helper", "sl-n1o was gone", run(&["ip", "link", "del", "sl-n1o"]))?;
    in_the_kernel(&mut rig, hooks)
}

/// What was written, pinned and attached.
fn in_the_kernel(rig: &mut Rig, hooks: Hooks) -> Result<()> {
    let node = rig.world.node("n1").netns.clone();
    let pins = rig.config("n1").bpffs.join(format!("v{ABI_VERSION}"));
    let bridge = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if std::path::Path::new(bridge).exists() {
        noticed(rig, "bridge-nf", "bridge-nf-call", |_| {
            node.run(&["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"]).map(|_| ())
        })?;
    }
    let map = |name: &'static str| pins.join("maps").join(name);
    noticed(rig, "a map's pin", "pin of map FLOWS", |_| Ok(std::fs::remove_file(map("FLOWS"))?))?;
    noticed(rig, "the epoch", "EPOCH", |_| {
        let mut epoch: Array<_, u64> = Map::from_map_data(MapData::from_pin(map("EPOCH"))?)?.try_into()?;
        Ok(epoch.set(0, 17, 0)?)
    })?;
    noticed(rig, "the configuration", "configuration", |_| {
        let mut config: Array<_, [u8; 24]> =
            Map::from_map_data(MapData::from_pin(map("CONFIG"))?)?.try_into()?;
        Ok(config.set(0, [0; 24], 0)?)
    })?;
    let veth = rig.pod("a/client").veth.clone();
    noticed(rig, "a hook", &veth, |rig| {
        if hooks == Hooks::Clsact {
            node.run(&["tc", "qdisc", "del", "dev", &veth, "clsact"])?;
        } else {
            let index = v3::index(&rig.world, "n1", &veth)?;
            std::fs::remove_file(pins.join("links").join(format!("{index}-from_pod")))?;
            // The kernel lets go of it when it comes to it.
            let there = || -> Result<usize> {
                Ok(node.inside(|| SchedClassifier::query_tcx(&veth, TcAttachType::Ingress))??.1.len())
            };
            crate::peers::eventually("the hook is off", || Ok(there()? == 0))?;
        }
        Ok(())
    })
}

/// Somebody's own program before ours redirects, or lets pass: it is put behind ours.
fn displaced() -> Result<()> {
    let mut rig = Rig::routed()?;
    let _server = Server::start(&rig.pod("b/remote").netns, 81)?;
    rig.apply(&[egress("a/client", "b/remote", tcp(80, 80))])?;
    let (veth, target) = (rig.pod("a/client").veth.clone(), rig.at("b/remote", Family::V4, 81));
    let mut ebpf = aya::EbpfLoader::new().load(PASS)?;
    let program: &mut SchedClassifier = ebpf.program_mut("pass").context("pass")?.try_into()?;
    program.load()?;
    let node = rig.world.node("n1").netns.clone();
    let mut links = Vec::new();
    for side in [TcAttachType::Ingress, TcAttachType::Egress] {
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = node.inside(|| program.attach_with_options(&veth, side, options))??;
        links.push(FdLink::try_from(program.take_link(id)?)?);
    }
    reaches(rig.pod("a/client"), target).context("the program before ours lets everything pass")?;
    let found = rig.node_mut("n1").verify();
    ensure!(found.iter().any(|drift| drift.what.contains(&veth) && drift.stays.is_none()), "{found:?}");
    is_refused(rig.pod("a/client"), target)?;
    ensure!(rig.node_mut("n1").verify().is_empty(), "told again");
    let snapshot = rules::snapshot(&rig.world, "n1", 9, &[egress("a/client", "b/remote", tcp(81, 81))]);
    rig.put("n1", &snapshot)?;
    reaches(rig.pod("a/client"), target)
}
