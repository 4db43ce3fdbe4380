//! Pods that may change their own addresses (`CAP_NET_ADMIN`) take each other's: nobody gains another's rights by it,
//! nobody is taken off the network, and no device is left without hooks.

use crate::peers::{Connection, SILENCE, SOON, Server, is_refused, reaches};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{self, Line, ingress, tcp};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_redirect::Counter;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Attach, Family};
use sluice_tests::{NodeSpec, Pod, PodSpec};
use std::net::{SocketAddr, TcpStream};

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("claims: who takes an attached pod's address gains nothing, and takes nothing away", taken),
        test("claims: two that swap, and three in a ring, stay who they are", swapped),
        test("claims: who claims what before the first generation, routed veths", || {
            unknown(NodeSpec::routed("n1"), true)
        }),
        test("claims: who claims what before the first generation, bridge ports", || {
            unknown(NodeSpec::bridged("n1"), false)
        }),
    ]
}

/// The client may reach the server, and nobody else.
fn lines() -> Vec<Line> {
    vec![ingress("a/server", "a/client", tcp(80, 80))]
}

/// What a pod with `CAP_NET_ADMIN` does to its own interface.
fn ip(pod: &Pod, action: &str, of: &Pod) -> Result<()> {
    let lengths = match pod.attach {
        Attach::Routed => [32, 128],
        Attach::Bridge => [24, 64],
    };
    // The second address of a network goes with the first, unless told otherwise.
    pod.netns.sysctl(&[("net.ipv4.conf.eth0.promote_secondaries", "1")])?;
    let nodad = if action == "add" { " nodad" } else { "" };
    for words in [
        format!("ip addr {action} {}/{} dev eth0", of.v4, lengths[0]),
        format!("ip addr {action} {}/{} dev eth0{nodad}", of.v6, lengths[1]),
    ] {
        pod.netns.run(&words.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Whether a pod gets through to the server with an address that it wears.
fn gets_through(rig: &Rig, pod: &Pod, wearing: &Pod) -> bool {
    Family::BOTH.into_iter().any(|family| {
        let local = SocketAddr::new(wearing.ip(family), 0);
        Connection::open_from(&pod.netns, local, rig.at("a/server", family, 80)).is_ok()
    })
}

/// Whoever may reach the server does, with its own address.
fn goes_on(rig: &Rig) -> Result<()> {
    let client = rig.pod("a/client");
    Family::BOTH.into_iter().try_for_each(|family| {
        let local = SocketAddr::new(client.ip(family), 0);
        let open = Connection::open_from(&client.netns, local, rig.at("a/server", family, 80));
        rig.explain(open.and_then(|mut open| open.echo("hello", SOON)))
    })
}

fn taken() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        let (client, other) = (rig.pod("a/client").clone(), rig.pod("a/other").clone());
        let _server = Server::start(&rig.pod("a/server").netns, 80)?;
        rig.apply(&lines())?;
        goes_on(&rig).context("before")?;
        ip(&other, "add", &client)?;
        // Without and with another look at who is where, and another loader.
        let before = rig.counters()?;
        ensure!(!gets_through(&rig, &other, &client), "it has the other's rights");
        rig.grew(&before, Counter::Spoofed)?;
        rig.apply(&lines())?;
        ensure!(!gets_through(&rig, &other, &client), "it has the other's rights, once seen");
        goes_on(&rig).context("while another claims its address")?;
        drop(rig.take("n1"));
        rig.open("n1")?;
        rig.apply(&lines())?;
        ensure!(!gets_through(&rig, &other, &client), "it has the other's rights under another loader");
        goes_on(&rig).context("under another loader")?;
    }
    Ok(())
}

fn swapped() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        rig.world.add_pod(&PodSpec::new("n1", "a/third"))?;
        let _server = Server::start(&rig.pod("a/server").netns, 80)?;
        rig.apply(&lines())?;
        goes_on(&rig).context("before")?;
        let rings: [&[&str]; 2] = [&["a/client", "a/other"], &["a/client", "a/other", "a/third"]];
        for ring in rings {
            let pods: Vec<Pod> = ring.iter().map(|name| rig.pod(name).clone()).collect();
            let next = |at: usize| &pods[(at + 1) % pods.len()];
            for (at, pod) in pods.iter().enumerate() {
                ip(pod, "add", next(at))?;
            }
            let (first, last) = (&pods[0], &pods[pods.len() - 1]);
            // Each has both.
            rig.apply(&lines())?;
            goes_on(&rig).with_context(|| format!("{ring:?} claim"))?;
            ensure!(!gets_through(&rig, last, first), "{ring:?}: it has the other's rights");
            // Each has the other's alone.
            for pod in &pods {
                ip(pod, "del", pod)?;
            }
            let before = rig.counters()?;
            rig.apply(&lines())?;
            ensure!(!gets_through(&rig, last, first), "{ring:?}: the swap has brought it the other's rights");
            rig.grew(&before, Counter::Spoofed)?;
            // And back.
            for (at, pod) in pods.iter().enumerate() {
                ip(pod, "add", pod)?;
                ip(pod, "del", next(at))?;
            }
            rig.apply(&lines())?;
            goes_on(&rig).with_context(|| format!("{ring:?}, and back"))?;
        }
    }
    Ok(())
}

/// `known`: the node's routes say who is where.
fn unknown(node: NodeSpec, known: bool) -> Result<()> {
    let mut rig = Rig::with(node)?;
    let (client, other) = (rig.pod("a/client").clone(), rig.pod("a/other").clone());
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let _outside = Server::start(&rig.pod(OUTSIDE).netns, 80)?;
    ip(&client, "add", &other)?;
    ip(&other, "add", &client)?;
    if known {
        rig.apply(&lines())?;
        ensure!(!gets_through(&rig, &other, &client), "it has the other's rights");
        return goes_on(&rig);
    }
    let snapshot = rules::snapshot(&rig.world, "n1", 1, &lines());
    let applied = rig.put("n1", &snapshot)?;
    let missing: Vec<&str> = applied.missing.iter().map(|missing| &*missing.endpoint).collect();
    ensure!(missing == ["a/client", "a/other"], "{applied:?}");
    ensure!(applied.missing.iter().all(|missing| missing.why.contains("claim")), "{applied:?}");
    // Both have hooks, and nothing passes them: not to where everybody may go, and not to them.
    let n1 = rig.world.node("n1").netns.clone();
    for pod in [&client, &other] {
        let _own = Server::start(&pod.netns, 81)?;
        for family in Family::BOTH {
            is_refused(pod, rig.at(OUTSIDE, family, 80))?;
            let to = SocketAddr::new(pod.ip(family), 81);
            let probe = n1.inside(|| TcpStream::connect_timeout(&to, SILENCE))?;
            ensure!(probe.is_err(), "{} is reached", pod.name);
        }
    }
    // The others go on.
    for family in Family::BOTH {
        rig.explain(reaches(rig.pod("a/server"), rig.at(OUTSIDE, family, 80)))?;
    }
    // One lets go, and everybody is who it is.
    ip(&client, "del", &other)?;
    rig.apply(&lines())?;
    ensure!(!gets_through(&rig, &other, &client), "it has the other's rights, once it is known");
    goes_on(&rig)
}
