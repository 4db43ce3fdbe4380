//! One loader takes over from another that runs: what goes through the proxy goes on, and no connection is refused.

use crate::peers::{Connection, Proxy, SOON, Server, is_refused, reaches};
use crate::rig::{LISTEN, OUTSIDE, Rig};
use crate::rules::{closed, egress, ingress, tcp};
use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::{Counter, Node, NodeConfig, SetupError};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("handover: a new loader takes the proxy's namespace from one that runs", taken),
        test("handover: what is not the node's is refused, and nothing changes", refused),
    ]
}

/// Opens connections in a loop until told to stop; what failed.
fn load(rig: &Rig, targets: &[(&str, SocketAddr)], work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let (stop, failures, done) = (AtomicBool::new(false), Mutex::new(Vec::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for (from, target) in targets {
            let pod = rig.pod(from).clone();
            let (stop, failures, done) = (&stop, &failures, &done);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    match reaches(&pod, *target) {
                        Ok(()) => drop(done.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => failures.lock().expect("not poisoned").push(format!("{error:#}")),
                    }
                }
            });
        }
        let result = work();
        stop.store(true, Ordering::SeqCst);
        result
    })?;
    let failures = failures.into_inner()?;
    ensure!(failures.is_empty(), "{} failed: {failures:?}", failures.len());
    Ok(done.into_inner())
}

fn taken() -> Result<()> {
    let mut rig = Rig::routed()?;
    let lines = [
        egress("a/client", OUTSIDE, tcp(80, 80)).l7(),
        closed("a/client", Direction::Ingress),
        ingress("a/server", "b/remote", tcp(80, 80)).l7(),
        closed("a/server", Direction::Egress),
    ];
    rig.apply(&lines)?;
    let _servers = [OUTSIDE, "a/server"].map(|pod| Server::start(&rig.pod(pod).netns, 80));
    let listeners = rig.node("n1").listeners()?;
    let proxy = Proxy::on(rig.node("n1"), &listeners)?;
    let ways = |rig: &Rig| {
        Family::BOTH.map(|family| {
            [("a/client", rig.at(OUTSIDE, family, 80)), ("b/remote", rig.at("a/server", family, 80))]
        })
    };
    let ways: Vec<_> = ways(&rig).into_iter().flatten().collect();
    let mut held = Vec::new();
    for (from, target) in &ways {
        held.push(Connection::open(&rig.pod(from).netns, *target)?);
    }
    // More than once: what took over is taken over in turn.
    for round in 0..3 {
        let config = rig.config("n1");
        let netns = rig.node("n1").proxy_netns().try_clone_to_owned()?;
        let old = rig.take("n1");
        let mut new = None;
        let passed = load(&rig, &ways, || {
            let adopted = rig.world.node("n1").netns.inside(|| Node::adopt(config, netns, &listeners))??;
            // Both are there for a while, and then the old one is not.
            std::thread::sleep(std::time::Duration::from_millis(200));
            drop(old);
            std::thread::sleep(std::time::Duration::from_millis(200));
            new = Some(adopted);
            Ok(())
        })?;
        ensure!(passed > 4, "round {round}: only {passed} connections");
        rig.put_node("n1", new.expect("adopted"));
        for connection in &mut held {
            rig.explain(connection.echo(&format!("still here in round {round}"), SOON))?;
        }
        // It is the new one that speaks.
        rig.apply(&lines)?;
        rig.explain(is_refused(rig.pod(OUTSIDE), rig.at("a/client", Family::V4, 80)))?;
    }
    for connection in &mut held {
        rig.explain(connection.bulk(1024 * 1024))?;
    }
    ensure!(rig.counters()?.get(Counter::NoSocket) == 0, "a packet found no socket");
    ensure!(proxy.count() > held.len(), "{} connections passed the proxy", proxy.count());
    // An end in order takes the helper with it, whoever made it.
    rig.take("n1").release()?;
    rig.explain(is_refused(rig.pod("a/client"), rig.at(OUTSIDE, Family::V4, 80)))
}

fn refused() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[egress("a/client", OUTSIDE, tcp(80, 80)).l7()])?;
    let _bank = Server::start(&rig.pod(OUTSIDE).netns, 80)?;
    let listeners = rig.node("n1").listeners()?;
    let _proxy = Proxy::on(rig.node("n1"), &listeners)?;
    let n1 = rig.world.node("n1").netns.clone();
    let adopt = |config: NodeConfig, netns: std::os::fd::OwnedFd, listeners: &[TcpListener]| -> Result<()> {
        match n1.inside(|| Node::adopt(config, netns, listeners))? {
            Err(SetupError::Config { .. }) => {}
            Err(error) => bail!("another reason: {error}"),
            Ok(_) => bail!("it was taken"),
        }
        reaches(rig.pod("a/client"), rig.at(OUTSIDE, Family::V4, 80))
    };
    let netns = || rig.node("n1").proxy_netns().try_clone_to_owned();
    // Another namespace than the one behind the helper.
    let other = n1.inside(|| std::fs::File::open("/proc/thread-self/ns/net"))??;
    adopt(rig.config("n1"), other.into(), &listeners)?;
    // Listeners that no packet would be given to, or one too few.
    adopt(NodeConfig { listen_port: LISTEN + 1, ..rig.config("n1") }, netns()?, &listeners)?;
    adopt(rig.config("n1"), netns()?, &listeners[..1])?;
    // Another helper's name.
    adopt(NodeConfig { name: "sl-other".to_owned(), ..rig.config("n1") }, netns()?, &listeners)
}
