//! Somebody changes what a node needs, one thing after the other: one look notices and puts it right.

use crate::peers::{Proxy, Server, is_refused, reaches};
use crate::rig::Rig;
use crate::rules::{self, egress, tcp};
use crate::v3;
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_links};
use libtest_mimic::Trial;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice_redirect::{ABI_VERSION, Drift, Hooks, Node, NodeConfig};
use sluice_tests::NodeSpec;
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
        harness::test("drift: who gave the node away looks on", [Need::Tcx], || given(Hooks::Tcx)),
        harness::test("drift: the same by filters, who gave the node away", [Need::Bpf], || {
            given(Hooks::Clsact)
        }),
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

/// Something on a thread in the proxy's namespace.
fn enter<T: Send>(rig: &Rig, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let netns = rig.node("n1").proxy_netns().try_clone_to_owned()?;
    std::thread::scope(|scope| {
        let work = || -> Result<T> {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A command in the proxy's namespace.
fn inside(rig: &Rig, argv: &[&str]) -> Result<()> {
    let output = enter(rig, || Ok(Command::new(argv[0]).args(&argv[1..]).output()?))?;
    ensure!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn drift(hooks: Hooks) -> Result<()> {
    // With a reverse-path filter the helper has an address too.
    let mut rig = Rig::with(NodeSpec::routed("n1").sysctl("net.ipv4.conf.all.rp_filter", "1"))?;
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
    outside(&mut rig)?;
    within(&mut rig)?;
    narrowed(&mut rig)?;
    noticed(&mut rig, "the helper", "sl-n1o was gone", run(&["ip", "link", "del", "sl-n1o"]))?;
    helper_hooks(&mut rig, hooks)?;
    in_the_kernel(&mut rig, hooks)
}

/// The hooks at both ends of the helper are taken off, each in turn.
fn helper_hooks(rig: &mut Rig, hooks: Hooks) -> Result<()> {
    let ends = [("to_proxy of sl-n1i", "sl-n1i", true), ("from_proxy of sl-n1o", "sl-n1o", false)];
    for (expect, device, proxy) in ends {
        noticed(rig, expect, expect, |rig| {
            if hooks == Hooks::Clsact {
                let argv = ["tc", "qdisc", "del", "dev", device, "clsact"];
                return if proxy {
                    inside(rig, &argv)
                } else {
                    rig.world.node("n1").netns.run(&argv).map(drop)
                };
            }
            let at = || Ok(SchedClassifier::query_tcx(device, TcAttachType::Ingress)?.1);
            let programs: Vec<ProgramInfo> =
                if proxy { enter(rig, at)? } else { rig.world.node("n1").netns.inside(at)?? };
            let program = programs.first().context("no hook is there")?.id();
            // One of them may be of a device that is gone.
            let links = loaded_links().filter_map(Result::ok).filter(|link| link.program_id() == program);
            let off = links.filter(|link| sluice_redirect::absent::link(link.id()).is_ok()).count();
            ensure!(off > 0, "it has no link");
            Ok(())
        })?;
    }
    Ok(())
}

/// Each thing of the helper's outer end.
fn outside(rig: &mut Rig) -> Result<()> {
    let node = rig.world.node("n1").netns.clone();
    let sysctls = [
        ("ipv4", "rp_filter", "1"),
        ("ipv4", "forwarding", "0"),
        ("ipv4", "accept_local", "0"),
        ("ipv4", "send_redirects", "1"),
        ("ipv6", "forwarding", "0"),
        ("ipv6", "accept_ra", "1"),
        ("ipv6", "addr_gen_mode", "0"),
    ];
    for (family, name, value) in sysctls {
        let key = format!("net.{family}.conf.sl-n1o.{name}");
        noticed(rig, &key, name, |_| node.sysctl(&[(key.as_str(), value)]))?;
    }
    let changes = [
        ("link set sl-n1o down", "sl-n1o was down"),
        ("link set sl-n1o mtu 1500", "sl-n1o had another MTU"),
        ("link set sl-n1o address 02:00:00:00:00:01", "sl-n1o had another MTU, hardware address"),
        ("link set sl-n1o alias nothing", "sl-n1o had another MTU, hardware address or alias"),
        ("addr del 169.254.83.77/32 dev sl-n1o", "address of sl-n1o was gone"),
    ];
    for (change, expect) in changes {
        let words: Vec<&str> = std::iter::once("ip").chain(change.split(' ')).collect();
        noticed(rig, change, expect, |_| node.run(&words).map(drop))?;
    }
    Ok(())
}

/// Each thing of the proxy's namespace.
fn within(rig: &mut Rig) -> Result<()> {
    let sysctls = [
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/sl-n1i/rp_filter", "1"),
        ("ipv4/conf/all/forwarding", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/sl-n1i/accept_ra", "1"),
        ("ipv4/tcp_max_tw_buckets", "1000"),
        ("ipv4/tcp_syncookies", "0"),
        ("ipv4/tcp_fin_timeout", "60"),
    ];
    for (name, value) in sysctls {
        let write = format!("echo {value} > /proc/sys/net/{name}");
        noticed(rig, name, name, |rig| inside(rig, &["sh", "-c", &write]))?;
    }
    let changes = [
        ("link set sl-n1i down", "sl-n1i was down"),
        ("link set lo down", "lo was down"),
        ("link set sl-n1i mtu 1400", "sl-n1i had another MTU"),
        ("link set sl-n1i address 02:00:00:00:00:02", "sl-n1i had another MTU, hardware address"),
        ("rule del priority 100", "IPv4 rule"),
        ("-6 rule del priority 100", "IPv6 rule"),
        ("route flush table main", "IPv4 default route"),
        ("-6 route del default", "IPv6 default route"),
        (
            "route replace default via 169.254.83.76 dev sl-n1i onlink mtu 1500",
            "advmss 0, and must have mtu 1500",
        ),
        (
            "-6 route change default via fe80::534c:55 dev sl-n1i onlink mtu 1400 advmss 1440",
            "IPv6 default route",
        ),
        ("route flush table 100", "IPv4 local route"),
        ("-6 route flush table 100", "IPv6 local route"),
        ("neigh del 169.254.83.76 dev sl-n1i", "IPv4 next hop"),
        ("-6 neigh del fe80::534c:55 dev sl-n1i", "IPv6 next hop"),
    ];
    for (change, expect) in changes {
        let words: Vec<&str> = std::iter::once("ip").chain(change.split(' ')).collect();
        noticed(rig, change, expect, |rig| inside(rig, &words))?;
    }
    Ok(())
}

/// A pod's device gets another MTU: what the proxy says that it takes follows.
fn narrowed(rig: &mut Rig) -> Result<()> {
    let (node, veth) = (rig.world.node("n1").netns.clone(), rig.pod("a/other").veth.clone());
    for (mtu, expect) in [(1_300, "advmss 1260"), (1_000, "advmss 1240"), (9_000, "advmss 1460")] {
        let expect = format!("must have mtu 1500 {expect}");
        noticed(rig, &expect, &expect, |_| node.ip_batch(&[format!("link set {veth} mtu {mtu}")]))?;
    }
    Ok(())
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
    noticed(rig, "the limits", "LIMITS", |_| {
        let mut limits: Array<_, [u8; 28]> =
            Map::from_map_data(MapData::from_pin(map("LIMITS"))?)?.try_into()?;
        Ok(limits.set(0, [0; 28], 0)?)
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

/// While another loader has the node, the one before puts nothing "right": what the other wrote, or set otherwise, is
/// no drift.
fn given(hooks: Hooks) -> Result<()> {
    let mut rig = Rig::routed()?;
    drop(rig.take("n1"));
    let config = NodeConfig { hooks, ..rig.config("n1") };
    rig.open_with("n1", config.clone())?;
    rig.apply(&[egress("a/client", "b/remote", tcp(80, 80)).l7()])?;
    let _servers = [80, 81].map(|port| Server::start(&rig.pod("b/remote").netns, port));
    let listeners = rig.node("n1").listeners()?;
    let _proxy = Proxy::on(rig.node("n1"), &listeners)?;
    let inside = rig.node("n1").proxy_netns().try_clone_to_owned()?;
    let mut old = rig.take("n1");
    ensure!(old.verify().is_empty(), "a node that nobody touched has drifted");
    // Another mark and other limits, so that what the one writes the other would take for somebody's.
    let mut other = NodeConfig { mark: 0x4022, ..config };
    other.limits.answers += 1;
    let netns = rig.world.node("n1").netns.clone();
    let new = netns.inside(|| Node::adopt(other, inside, &listeners))??;
    rig.put_node("n1", new);
    let lines =
        [egress("a/client", "b/remote", tcp(80, 80)).l7(), egress("a/other", "b/remote", tcp(80, 80))];
    rig.apply(&lines)?;
    rig.apply(&lines)?;
    for round in 0..LOOKS {
        let found = old.verify();
        ensure!(found.is_empty(), "round {round}: it fights the one that took over: {found:?}");
        let found = rig.node_mut("n1").verify();
        ensure!(found.is_empty(), "round {round}: the one before changed something: {found:?}");
        works(&rig)?;
        is_refused(rig.pod("a/other"), rig.at("b/remote", Family::V4, 81))?;
    }
    // The one before goes, and the other looks after the node alone.
    drop(old);
    ensure!(rig.node_mut("n1").verify().is_empty(), "the end of the one before took something along");
    works(&rig)
}
