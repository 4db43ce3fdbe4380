//! Nothing is left when all is taken away: the node's whole state before anything of ours was there, and after.
//!
//! What somebody else has made on the devices meanwhile stays as it is.

use crate::crash;
use crate::peers::{Connection, Proxy, Server, eventually, reaches};
use crate::rig::{LISTEN, OUTSIDE, Rig};
use crate::rules::{self, Line, closed, egress, ingress, tcp, udp};
use crate::v3::V3;
use crate::whole::{Objects, Whole};
use anyhow::{Context, Result, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::{ABI_VERSION, Hooks, Node, NodeConfig, SetupError};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Family, Netns};
use sluice_tests::{NodeSpec, PodSpec, World};
use std::path::PathBuf;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, need: Need, run: fn() -> Result<()>| {
        harness::test(format!("uninstall: {name}"), [need], run)
    };
    vec![
        test("nothing is left, routed veths", Need::Tcx, || nothing(Hooks::Tcx, NodeSpec::routed("n1"))),
        test("nothing is left, bridge ports", Need::Tcx, || {
            nothing(Hooks::Tcx, NodeSpec::bridged("n1").br_netfilter(true))
        }),
        test("nothing is left, routed veths, by filters", Need::Bpf, || {
            nothing(Hooks::Clsact, NodeSpec::routed("n1"))
        }),
        test("nothing is left, bridge ports, by filters", Need::Bpf, || {
            nothing(Hooks::Clsact, NodeSpec::bridged("n1"))
        }),
        test("qdiscs and filters of others stay", Need::Bpf, others),
        test("a pod that leaves the dataplane takes its qdisc along", Need::Bpf, let_go),
        test("nothing is left of an older version", Need::Tcx, older),
        test("nothing is left of a loader that died at any step", Need::Tcx, || died(Hooks::Tcx)),
        test("nothing is left of one that died at any step, by filters", Need::Bpf, || died(Hooks::Clsact)),
        test("it dies itself at any step, and is done again", Need::Bpf, died_itself),
        test("not while an agent runs", Need::Bpf, in_use),
    ]
}

fn governed() -> Vec<Line> {
    vec![
        egress("a/client", OUTSIDE, tcp(80, 80)).l7(),
        egress("a/client", "a/server", udp(53)),
        closed("a/client", Direction::Ingress),
        ingress("a/server", "b/remote", tcp(80, 80)).l7(),
        ingress("a/server", "a/other", tcp(81, 81)),
        closed("a/server", Direction::Egress),
    ]
}

/// A node that nothing of ours has been on yet, and what its loader is to be opened with.
struct Clean {
    rig: Rig,
    netns: Netns,
    config: NodeConfig,
    before: Whole,
}

impl Clean {
    fn new(hooks: Hooks, node: NodeSpec, prepare: impl FnOnce(&World) -> Result<()>) -> Result<Self> {
        // With a reverse-path filter the helper has an address too.
        let node = node.sysctl("net.ipv4.conf.all.rp_filter", "1");
        let rig = Rig::bare(World::builder().node(node).node(NodeSpec::routed("n2")))?;
        prepare(&rig.world)?;
        let netns = rig.world.node("n1").netns.clone();
        // A directory that is not there yet, and no bpffs either.
        let bpffs = rig.world.dir().join("pins");
        let config = NodeConfig { hooks, bpffs, ..rig.config("n1") };
        let before = Whole::of(&netns, std::slice::from_ref(&config.bpffs), rig.world.prefix())?;
        Ok(Self { rig, netns, config, before })
    }

    fn uninstall(&self) -> Result<()> {
        Ok(self.netns.inside(|| Node::uninstall(&self.config))??)
    }

    /// That everything is as it was: soon, because the kernel takes namespaces down when it comes to it.
    fn is_clean(&self) -> Result<()> {
        let mut changes = Vec::new();
        let look = eventually("everything is as it was", || {
            let directories = std::slice::from_ref(&self.config.bpffs);
            changes = Whole::of(&self.netns, directories, self.rig.world.prefix())?.since(&self.before);
            Ok(changes.is_empty())
        });
        look.with_context(|| format!("{changes:#?}"))
    }

    fn maps(&self) -> PathBuf {
        self.config.bpffs.join(format!("v{ABI_VERSION}/maps"))
    }
}

fn nothing(hooks: Hooks, node: NodeSpec) -> Result<()> {
    let mut clean = Clean::new(hooks, node, |_| Ok(()))?;
    clean.is_clean().context("a node that nobody touches changes by itself")?;
    // In order, and without a word.
    for orderly in [true, false] {
        clean.rig.open_with("n1", clean.config.clone())?;
        clean.rig.apply(&governed())?;
        let objects = {
            let rig = &mut clean.rig;
            let _proxy = Proxy::start(rig.node("n1"))?;
            let _servers = [
                Server::start(&rig.pod(OUTSIDE).netns, 80)?,
                Server::start(&rig.pod("a/server").netns, 80)?,
                Server::start(&rig.pod("a/server").netns, 81)?,
            ];
            let mut open = Vec::new();
            for family in Family::BOTH {
                reaches(rig.pod("a/other"), rig.at("a/server", family, 81))?;
                let bank = rig.at(OUTSIDE, family, 80);
                open.push(Connection::open(&rig.pod("a/client").netns, bank)?);
                reaches(rig.pod("b/remote"), rig.at("a/server", family, 80))?;
            }
            rig.node_mut("n1").sweep()?;
            rig.apply(&[closed("a/other", Direction::Egress)])?;
            Objects::of(&clean.netns, &clean.maps())?
        };
        let enough = objects.maps.len() > 10 && objects.programs.len() > 2;
        ensure!(enough && (hooks == Hooks::Clsact || objects.links.len() > 6), "{objects:?}");
        let directories = std::slice::from_ref(&clean.config.bpffs);
        let during = Whole::of(&clean.netns, directories, clean.rig.world.prefix())?.since(&clean.before);
        ensure!(during.len() > 10, "hardly anything is to be taken away: {during:?}");
        let node = clean.rig.take("n1");
        if orderly {
            node.release()?;
        } else {
            drop(node);
        }
        clean.uninstall()?;
        clean.is_clean()?;
        eventually("the programs, maps and links are gone", || Ok(objects.alive() == Objects::default()))
            .with_context(|| format!("{:?}", objects.alive()))?;
        // Twice is no error.
        clean.uninstall()?;
        clean.is_clean()?;
    }
    Ok(())
}

/// A filter of somebody else's.
fn add_filter(netns: &Netns, device: &str) -> Result<()> {
    let filter = ["ingress", "protocol", "all", "prio", "5", "bpf", "bytecode", "1,6 0 0 4294967295,"];
    netns.run(&[&["tc", "filter", "add", "dev", device], &filter[..]].concat()).map(drop)
}

fn others() -> Result<()> {
    let veths = |world: &World| ["a/client", "a/server", "a/other"].map(|pod| world.pod(pod).veth.clone());
    for hooks in [Hooks::Clsact, Hooks::Tcx] {
        let mut clean = Clean::new(hooks, NodeSpec::routed("n1"), |world| {
            let netns = &world.node("n1").netns;
            let [client, server, _] = veths(world);
            // One with a filter, and one that is only there.
            for device in [&client, &server] {
                netns.run(&["tc", "qdisc", "add", "dev", device, "clsact"])?;
            }
            add_filter(netns, &client)
        })?;
        // One that we make, and that somebody else has a filter in by then.
        let [.., other] = veths(&clean.rig.world);
        clean.rig.open_with("n1", clean.config.clone())?;
        clean.rig.apply(&governed())?;
        let filtered = hooks == Hooks::Clsact;
        if filtered {
            add_filter(&clean.netns, &other)?;
        }
        drop(clean.rig.take("n1"));
        clean.uninstall()?;
        if filtered {
            let qdiscs = clean.netns.run(&["tc", "qdisc", "show", "dev", &other])?;
            let filters = clean.netns.run(&["tc", "filter", "show", "dev", &other, "ingress"])?;
            ensure!(qdiscs.contains("clsact"), "our qdisc went, with somebody's filter in it: {qdiscs}");
            ensure!(filters.contains("bytecode") && !filters.contains("sluice"), "{filters}");
            clean.netns.run(&["tc", "qdisc", "del", "dev", &other, "clsact"])?;
        }
        clean.is_clean()?;
    }
    Ok(())
}

fn let_go() -> Result<()> {
    let mut clean = Clean::new(Hooks::Clsact, NodeSpec::routed("n1"), |_| Ok(()))?;
    clean.rig.open_with("n1", clean.config.clone())?;
    clean.rig.apply(&[])?;
    let qdiscs = |clean: &Clean| -> Result<usize> {
        Ok(clean.netns.run(&["tc", "qdisc", "show"])?.matches("clsact").count())
    };
    let all = qdiscs(&clean)?;
    let mut without = rules::snapshot(&clean.rig.world, "n1", 50, &[]);
    without.endpoints = without.endpoints.iter().filter(|e| &*e.workload.pod != "other").cloned().collect();
    clean.rig.put("n1", &without)?;
    ensure!(qdiscs(&clean)? == all - 1, "{} of {all} qdiscs", qdiscs(&clean)?);
    // What was noted of a device that is gone is forgotten: its number may be another's one day.
    let notes = clean.config.bpffs.join("qdiscs");
    let noted = || -> Result<usize> { Ok(std::fs::read_dir(&notes)?.count()) };
    ensure!(noted()? == 2, "{} notes", noted()?);
    clean.rig.world.delete_pod("a/server")?;
    let without = rules::snapshot(&clean.rig.world, "n1", 51, &[]);
    clean.rig.put("n1", &without)?;
    ensure!(noted()? == 2, "{} notes: the client's and the other's", noted()?);
    drop(clean.rig.take("n1"));
    clean.uninstall()?;
    clean.rig.world.add_pod(&PodSpec::new("n1", "a/server"))?;
    ensure!(qdiscs(&clean)? == 0, "a qdisc is left");
    Ok(())
}

fn older() -> Result<()> {
    let clean = Clean::new(Hooks::Tcx, NodeSpec::routed("n1"), |_| Ok(()))?;
    // Version 3 mounts no bpffs itself: the next loader did, and died.
    let mut victim = crash::Victim::new(&clean.rig, &clean.config, &governed())?;
    victim.die(2).context("the loader that mounts the bpffs")?;
    let mut old = V3::open(clean.config.bpffs.join("v3"))?;
    old.put(&clean.rig.world, "n1", &rules::snapshot(&clean.rig.world, "n1", 1, &governed()))?;
    drop(old);
    std::fs::create_dir_all(clean.config.bpffs.join("v1/links"))?;
    let veth = &clean.rig.pod("a/client").veth;
    let programs = || -> Result<usize> {
        Ok(clean.netns.inside(|| SchedClassifier::query_tcx(veth, TcAttachType::Ingress))??.1.len())
    };
    ensure!(programs()? == 1, "version 3 is not there");
    clean.uninstall()?;
    ensure!(programs()? == 0, "version 3 judges still");
    clean.is_clean()
}

/// More steps than any way through has.
const MAX_STEPS: usize = 100;
/// Fewer are too few to have named them all.
const MIN_STEPS: usize = 15;

fn died(hooks: Hooks) -> Result<()> {
    let clean = Clean::new(hooks, NodeSpec::routed("n1"), |_| Ok(()))?;
    let mut victim = crash::Victim::new(&clean.rig, &clean.config, &governed())?;
    for step in 1..=MAX_STEPS {
        let died = victim.die(step)?;
        clean.uninstall().with_context(|| format!("step {step}: {died:?}"))?;
        clean.is_clean().with_context(|| format!("step {step}: {died:?}"))?;
        if died.is_none() {
            ensure!(step > MIN_STEPS, "only {step} steps");
            return Ok(());
        }
    }
    bail!("more than {MAX_STEPS} steps")
}

fn died_itself() -> Result<()> {
    let mut clean = Clean::new(Hooks::Clsact, NodeSpec::routed("n1"), |_| Ok(()))?;
    let mut victim = crash::Victim::new(&clean.rig, &clean.config, &[])?;
    for step in 1..=MAX_STEPS {
        clean.rig.open_with("n1", clean.config.clone())?;
        clean.rig.apply(&governed())?;
        drop(clean.rig.take("n1"));
        let died = victim.uninstall(step)?;
        clean.uninstall().with_context(|| format!("step {step}: {died:?}"))?;
        clean.is_clean().with_context(|| format!("step {step}: {died:?}"))?;
        if died.is_none() {
            ensure!(step > 3, "only {step} steps");
            return Ok(());
        }
    }
    bail!("more than {MAX_STEPS} steps")
}

fn in_use() -> Result<()> {
    let mut clean = Clean::new(Hooks::Auto, NodeSpec::routed("n1"), |_| Ok(()))?;
    clean.rig.open_with("n1", clean.config.clone())?;
    clean.rig.apply(&governed())?;
    let _server = Server::start(&clean.rig.pod("a/server").netns, 81)?;
    match clean.netns.inside(|| Node::uninstall(&clean.config))? {
        Err(error @ SetupError::Config { .. }) => {
            ensure!(error.to_string().contains("stop it first"), "no remedy: {error}");
        }
        Err(error) => bail!("refused for another reason: {error}"),
        Ok(()) => bail!("everything was taken away from under an agent, which puts it back"),
    }
    ensure!(clean.rig.node_mut("n1").verify().is_empty(), "something was taken away");
    // Another helper's name and port are no way round it: the pins are the same.
    let other = NodeConfig { listen_port: LISTEN + 1, name: "sl-other".to_owned(), ..clean.config.clone() };
    ensure!(clean.netns.inside(|| Node::uninstall(&other))?.is_err(), "taken away by another name");
    reaches(clean.rig.pod("a/other"), clean.rig.at("a/server", Family::V4, 81))?;
    drop(clean.rig.take("n1"));
    clean.uninstall()?;
    clean.is_clean()
}
