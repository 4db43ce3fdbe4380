//! The loader's life: proxy and loader come and go, rows change under open connections, everything can be
//! removed.

use crate::peers::{Connection, Proxy, SOON, Server, eventually, is_refused, reaches};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{self, closed, egress, ingress, tcp};
use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Direction, PortSet};
use sluice_redirect::{ABI_VERSION, ApplyError, Counter, Hooks, MAX_CLASSES, Node, NodeConfig};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use sluice_tests::{NodeSpec, PodSpec};
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("life: without the proxy l7 flows are refused, l4 goes on", [Need::Bpf], proxy_down),
        harness::test("life: what is only audited passes without the proxy", [Need::Bpf], audited),
        harness::test("life: a changed row cuts an open flow", [Need::Bpf], changed_row),
        harness::test("life: a proxied flow stays proxied", [Need::Bpf], stays_proxied),
        harness::test("life: generations swap whole", [Need::Bpf], swaps_whole),
        harness::test("life: a snapshot that does not fit changes nothing", [Need::Bpf], too_large),
        harness::test("life: a new loader takes over", [Need::Tcx], take_over),
        harness::test("life: endpoints come and go", [Need::Bpf], endpoints),
        harness::test("life: nothing is left", [Need::Bpf], uninstall),
        harness::test("life: by filters, where there are no tcx links", [Need::Tcx], clsact),
    ]
}

fn governed() -> Vec<rules::Line> {
    vec![
        egress("a/client", "b/remote", tcp(80, 80)).l7(),
        egress("a/client", "b/remote", tcp(81, 81)),
        egress("a/client", "a/server", tcp(80, 81)),
        ingress("a/server", "a/client", tcp(80, 80)).l7(),
        ingress("a/server", "a/client", tcp(81, 81)),
    ]
}

fn servers(rig: &Rig) -> Result<Vec<Server>> {
    let mut all = Vec::new();
    for pod in ["a/server", "b/remote", OUTSIDE] {
        for port in [80, 81] {
            all.push(Server::start(&rig.pod(pod).netns, port)?);
        }
    }
    Ok(all)
}

/// What must hold with the proxy there, and without.
fn check_governed(rig: &Rig, proxy: bool) -> Result<()> {
    for family in Family::BOTH {
        for server in ["b/remote", "a/server"] {
            let (l7, l4) = (rig.at(server, family, 80), rig.at(server, family, 81));
            rig.explain(reaches(rig.pod("a/client"), l4))?;
            if proxy {
                rig.explain(reaches(rig.pod("a/client"), l7))?;
            } else {
                rig.explain(is_refused(rig.pod("a/client"), l7))?;
            }
        }
        // Still denied, and a pod that no rule isolates still free.
        rig.explain(is_refused(rig.pod("b/remote"), rig.at("a/server", family, 81)))?;
        rig.explain(reaches(rig.pod("a/other"), rig.at("b/remote", family, 80)))?;
    }
    Ok(())
}

fn proxy_down() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&governed())?;
    let _servers = servers(&rig)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    check_governed(&rig, true)?;
    let mut direct = Connection::open(&rig.pod("a/client").netns, rig.at("b/remote", Family::V4, 81))?;
    // Its listeners close; its namespace stays.
    proxy.stop()?;
    check_governed(&rig, false)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    check_governed(&rig, true)?;
    let mut held = Connection::open(&rig.pod("a/client").netns, rig.at("b/remote", Family::V4, 80))?;
    held.echo("through the proxy", SOON)?;
    // The whole process goes, in order and without a word.
    for orderly in [true, false] {
        let node = rig.take("n1");
        if orderly {
            node.release()?;
        } else {
            drop(node);
        }
        check_governed(&rig, false)?;
        direct.echo("still here", SOON)?;
        rig.open("n1")?;
    }
    drop(proxy);
    let _proxy = Proxy::start(rig.node("n1"))?;
    check_governed(&rig, true)?;
    // What the proxy of before held is reset, so that no client waits for nothing.
    rig.explain(held.is_reset())?;
    direct.echo("still here", SOON)
}

fn audited() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        egress("a/client", "b/remote", tcp(80, 80)).l7().audited(),
        ingress("a/server", "a/other", tcp(1, 1)).audited(),
    ])?;
    let _servers = servers(&rig)?;
    for family in Family::BOTH {
        let before = rig.counters()?;
        rig.explain(reaches(rig.pod("a/client"), rig.at("b/remote", family, 80)))?;
        rig.grew(&before, Counter::FailOpen)?;
        let proxy = Proxy::start(rig.node("n1"))?;
        rig.explain(reaches(rig.pod("a/client"), rig.at("b/remote", family, 80)))?;
        ensure!(proxy.count() == 1, "an audited flow did not pass the proxy that is there");
        // What audited rules would refuse at L4 passes and is counted.
        let before = rig.counters()?;
        rig.explain(reaches(rig.pod("a/client"), rig.at("a/server", family, 80)))?;
        rig.grew(&before, Counter::Audited)?;
        proxy.stop()?;
    }
    Ok(())
}

fn changed_row() -> Result<()> {
    let mut rig = Rig::routed()?;
    let open = [egress("a/client", "b/remote", tcp(80, 80)), ingress("a/server", "b/remote", tcp(80, 80))];
    rig.apply(&open)?;
    let _servers = servers(&rig)?;
    let mut flows = Vec::new();
    for family in Family::BOTH {
        flows.push(Connection::open(&rig.pod("a/client").netns, rig.at("b/remote", family, 80))?);
        flows.push(Connection::open(&rig.pod("b/remote").netns, rig.at("a/server", family, 80))?);
    }
    // A generation that says the same of them leaves them alone.
    rig.apply(&[&open[..], &[closed("a/other", Direction::Ingress)]].concat())?;
    for flow in &mut flows {
        rig.explain(flow.echo("still allowed", SOON))?;
    }
    let before = rig.counters()?;
    rig.apply(&[closed("a/client", Direction::Egress), closed("a/server", Direction::Ingress)])?;
    for flow in &mut flows {
        rig.explain(flow.is_dead())?;
    }
    rig.grew(&before, Counter::Cut)?;
    // From allow to the proxy: the open flow cannot be judged any more, new ones can.
    rig.apply(&open)?;
    let mut flow = Connection::open(&rig.pod("a/client").netns, rig.at("b/remote", Family::V4, 80))?;
    rig.apply(&[egress("a/client", "b/remote", tcp(80, 80)).l7()])?;
    let _proxy = Proxy::start(rig.node("n1"))?;
    rig.explain(flow.is_dead())?;
    rig.explain(reaches(rig.pod("a/client"), rig.at("b/remote", Family::V4, 80)))
}

fn stays_proxied() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[egress("a/client", "b/remote", tcp(80, 80)).l7()])?;
    let _servers = servers(&rig)?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let mut flow = Connection::open(&rig.pod("a/client").netns, rig.at("b/remote", Family::V4, 80))?;
    flow.echo("through the proxy", SOON)?;
    // The proxy is who judges it from now on, whatever the rows say.
    for lines in [vec![], vec![closed("a/client", Direction::Egress)]] {
        rig.apply(&lines)?;
        rig.explain(flow.echo("still through the proxy", SOON))?;
    }
    ensure!(proxy.count() == 1, "{} connections passed the proxy", proxy.count());
    Ok(())
}

/// While generations swap, what all of them allow is never refused, and what all of them deny never passes.
fn swaps_whole() -> Result<()> {
    const SWAPS: usize = 40;
    let mut rig = Rig::routed()?;
    // The same verdicts from different numbers: classes and profiles move, as a change of pods moves them.
    let base = [ingress("a/server", "a/client", tcp(80, 80)), closed("a/other", Direction::Egress)];
    rig.apply(&base)?;
    let _servers = servers(&rig)?;
    let (stop, failures) = (AtomicBool::new(false), std::sync::Mutex::new(Vec::new()));
    let (client, other) = (rig.pod("a/client").clone(), rig.pod("a/other").clone());
    let (target, far) = (rig.at("a/server", Family::V4, 80), rig.at("b/remote", Family::V4, 80));
    std::thread::scope(|scope| {
        let probe = |work: &(dyn Fn() -> Result<()> + Sync)| {
            while !stop.load(Ordering::SeqCst) {
                if let Err(error) = work() {
                    failures.lock().expect("not poisoned").push(format!("{error:#}"));
                }
            }
        };
        let (client, other) = (&client, &other);
        scope.spawn(move || probe(&|| reaches(client, target)));
        scope.spawn(move || probe(&|| is_refused(other, far)));
        let mut swap = || -> Result<()> {
            for round in 0..SWAPS {
                let mut snapshot = rules::snapshot(&rig.world, "n1", 100 + round as u64, &base);
                rules::renumber(&mut snapshot, round as u32);
                rig.put("n1", &snapshot)?;
            }
            Ok(())
        };
        let result = swap();
        stop.store(true, Ordering::SeqCst);
        result
    })?;
    let failures = failures.into_inner()?;
    rig.explain(if failures.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("{failures:?}")) })
}

fn too_large() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&governed())?;
    let _servers = servers(&rig)?;
    let prefixes = rules::oversized(&rig.world, "n1", 7, MAX_CLASSES, false);
    let nodes = rules::oversized(&rig.world, "n1", 8, 40_000, true);
    for (oversized, full) in [(prefixes, "CLASSES"), (nodes, "LOCALS")] {
        match rig.node_mut("n1").apply(&oversized) {
            Err(error @ ApplyError::Full { map, count, max, .. }) => {
                let said = error.to_string();
                let words = [map, &count.to_string(), &max.to_string(), "stay in force"];
                ensure!(map == full && words.iter().all(|word| said.contains(word)), "{said}");
            }
            other => bail!("a snapshot that does not fit gave {other:?}"),
        }
        check_governed(&rig, false)?;
    }
    Ok(())
}

fn take_over() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&governed())?;
    let _servers = servers(&rig)?;
    let mut flow = Connection::open(&rig.pod("a/client").netns, rig.at("b/remote", Family::V4, 81))?;
    rig.world.add_pod(&PodSpec::new("n1", "a/late"))?;
    rig.apply(&governed())?;
    let links = rig.config("n1").bpffs.join(format!("v{ABI_VERSION}/links"));
    let pinned = || -> Result<usize> { Ok(std::fs::read_dir(&links)?.count()) };
    ensure!(pinned()? == 8, "two hooks on each of four pods: {}", pinned()?);
    let counted = rig.counters()?;
    drop(rig.take("n1"));
    rig.world.delete_pod("a/late")?;
    rig.open("n1")?;
    ensure!(pinned()? == 6, "the hooks of a pod that went meanwhile are left: {}", pinned()?);
    ensure!(
        rig.counters()?.get(Counter::Allowed) >= counted.get(Counter::Allowed),
        "the counters began anew"
    );
    // Before any snapshot: the rows, the flows and the hooks are those of before, the proxy is new.
    let _proxy = Proxy::start(rig.node("n1"))?;
    check_governed(&rig, true)?;
    rig.explain(flow.echo("still here", SOON))?;
    // A loader of another version leaves its pins in a place of their own; they go once ours are in force.
    let bpffs = rig.config("n1").bpffs;
    for kind in ["links", "maps"] {
        std::fs::create_dir_all(bpffs.join("v0").join(kind))?;
    }
    // And the programs are ours: a generation of the new loader is what they judge by.
    rig.apply(&[closed("a/client", Direction::Egress)])?;
    rig.explain(flow.is_dead())?;
    let ours = bpffs.join(format!("v{ABI_VERSION}")).exists();
    ensure!(!bpffs.join("v0").exists() && ours, "the other version's pins are left");
    rig.explain(is_refused(rig.pod("a/client"), rig.at("b/remote", Family::V4, 81)))
}

fn endpoints() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[])?;
    let _servers = servers(&rig)?;
    rig.world.add_pod(&PodSpec::new("n1", "a/late"))?;
    let applied = rig.apply(&[egress("a/late", "b/remote", tcp(80, 80))])?;
    ensure!(applied.attached.iter().any(|a| a.endpoint == "a/late"), "attached: {applied:?}");
    rig.explain(reaches(rig.pod("a/late"), rig.at("b/remote", Family::V4, 80)))?;
    rig.explain(is_refused(rig.pod("a/late"), rig.at("b/remote", Family::V4, 81)))?;
    // Out of the dataplane: nothing of ours is on it.
    let mut without = rules::snapshot(&rig.world, "n1", 50, &[]);
    without.endpoints = without.endpoints.iter().filter(|e| &*e.workload.pod != "late").cloned().collect();
    rig.put("n1", &without)?;
    rig.explain(reaches(rig.pod("a/late"), rig.at("b/remote", Family::V4, 81)))?;
    // A pod that is gone is missing, by name and with the reason; the others stay.
    let gone = rules::snapshot(&rig.world, "n1", 51, &[]);
    rig.world.delete_pod("a/late")?;
    let applied = rig.put("n1", &gone)?;
    ensure!(applied.attached.len() == 3, "attached: {applied:?}");
    ensure!(applied.missing.len() == 1 && applied.missing[0].endpoint == "a/late", "missing: {applied:?}");
    ensure!(applied.missing[0].why.contains("/run/netns"), "no reason: {applied:?}");
    Ok(())
}

/// Below Linux 6.6: the same by filters of clsact qdiscs, and from the one to the other without a gap.
fn clsact() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&governed())?;
    let _servers = servers(&rig)?;
    let netns = rig.world.node("n1").netns.clone();
    let veth = rig.pod("a/client").veth.clone();
    let filters = || -> Result<String> {
        let sides =
            ["ingress", "egress"].map(|side| netns.run(&["tc", "filter", "show", "dev", &veth, side]));
        Ok(sides.into_iter().collect::<Result<Vec<_>>>()?.concat())
    };
    let links = rig.config("n1").bpffs.join(format!("v{ABI_VERSION}/links"));
    let pinned = || -> Result<usize> { Ok(std::fs::read_dir(&links)?.count()) };
    ensure!(filters()?.is_empty() && pinned()? == 6, "tcx links: {} and {}", filters()?, pinned()?);
    let mut flow = Connection::open(&rig.pod("a/client").netns, rig.at("b/remote", Family::V4, 81))?;
    for hooks in [Hooks::Clsact, Hooks::Tcx, Hooks::Clsact] {
        // A flow that is open goes on.
        drop(rig.take("n1"));
        rig.open_with("n1", NodeConfig { hooks, ..rig.config("n1") })?;
        rig.apply(&governed())?;
        let by_filter = hooks == Hooks::Clsact;
        let ours = filters()?.matches("sluice/").count();
        ensure!(ours == if by_filter { 2 } else { 0 }, "{hooks:?}: {}", filters()?);
        ensure!(pinned()? == if by_filter { 0 } else { 6 }, "{hooks:?}: {} links", pinned()?);
        let proxy = Proxy::start(rig.node("n1"))?;
        check_governed(&rig, true)?;
        proxy.stop()?;
        rig.explain(flow.echo("still here", SOON))?;
    }
    // The next loader takes the filters over before any snapshot, and puts nothing beside them.
    drop(rig.take("n1"));
    check_governed(&rig, false)?;
    rig.open_with("n1", NodeConfig { hooks: Hooks::Clsact, ..rig.config("n1") })?;
    check_governed(&rig, false)?;
    ensure!(filters()?.matches("sluice/").count() == 2, "{}", filters()?);
    rig.apply(&[closed("a/client", Direction::Egress)])?;
    rig.explain(flow.is_dead())?;
    let config = rig.config("n1");
    drop(rig.take("n1"));
    netns.inside(|| Node::uninstall(&config))??;
    let qdiscs = netns.run(&["tc", "qdisc", "show"])?;
    ensure!(filters()?.is_empty() && !qdiscs.contains("clsact"), "left: {} {qdiscs}", filters()?);
    reaches(rig.pod("a/client"), rig.at("b/remote", Family::V4, 80))
}

fn uninstall() -> Result<()> {
    let mut rig = Rig::with(NodeSpec::routed("n1"))?;
    let netns = rig.world.node("n1").netns.clone();
    let devices = || -> Result<Vec<String>> {
        let text = netns.run(&["ip", "-o", "link"])?;
        Ok(text.lines().filter_map(|line| line.split(": ").nth(1).map(str::to_owned)).collect())
    };
    drop(rig.take("n1"));
    let before = rig.config("n1");
    netns.inside(|| Node::uninstall(&before))??;
    let clean = devices()?;
    // Where no bpffs is, the loader mounts one, and takes it away.
    let config = NodeConfig { bpffs: rig.world.dir().join("pins"), ..before };
    rig.open_with("n1", config.clone())?;
    let mounted = || -> Result<bool> {
        let path = config.bpffs.display().to_string();
        Ok(std::fs::read_to_string("/proc/self/mounts")?.contains(&format!(" {path} bpf ")))
    };
    ensure!(mounted()?, "no bpffs was mounted");
    rig.apply(&[closed("a/client", Direction::Egress), ingress("a/server", "a/client", PortSet::All)])?;
    ensure!(devices()?.len() == clean.len() + 1, "the helper is one device: {:?}", devices()?);
    let _servers = servers(&rig)?;
    rig.explain(is_refused(rig.pod("a/client"), rig.at("b/remote", Family::V4, 80)))?;
    drop(rig.take("n1"));
    netns.inside(|| Node::uninstall(&config))??;
    eventually("the helper is gone", || Ok(devices()? == clean))?;
    ensure!(!mounted()?, "a bpffs is left at {}", config.bpffs.display());
    ensure!(!config.bpffs.exists(), "pins are left in {}", config.bpffs.display());
    reaches(rig.pod("a/client"), rig.at("b/remote", Family::V4, 80))?;
    // Twice is no error.
    netns.inside(|| Node::uninstall(&config))??;
    Ok(())
}
