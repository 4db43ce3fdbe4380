//! The node's own traffic to its pods under the Admin tier, which alone may refuse it: what it denies is denied, on the
//! ports that it says, also to connections that are open; everything else goes on.

use crate::peers::{Connection, Proxy, SILENCE, SOON, Server, UdpServer, datagram, reaches};
use crate::rig::Rig;
use crate::rules::{Line, NODE, closed, ingress, tcp, udp};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Direction, PortSet, TierAction};
use sluice_redirect::Counter;
use sluice_tests::NodeSpec;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Instant;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("node: an Admin deny refuses the node's own traffic, on its ports", denied),
        test("node: an Admin deny cuts what the node has open, and only that", cut),
        test("node: an audited Admin deny refuses the node nothing", audited),
        test("node: an Admin rule that reads requests closes, and passes where it is audited", requests),
    ]
}

/// What the Admin tier says of the node's traffic to the server.
fn said(action: TierAction, ports: PortSet) -> Line {
    ingress("a/server", NODE, ports).admin(action)
}

/// Whether the node itself opens a connection to a pod.
fn opens(rig: &Rig, target: SocketAddr) -> Result<bool> {
    let n1 = &rig.world.node("n1").netns;
    Ok(n1.inside(|| TcpStream::connect_timeout(&target, SILENCE))?.is_ok())
}

fn denied() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        let n1 = rig.world.node("n1").netns.clone();
        let server = rig.pod("a/server").clone();
        let _servers = [80, 81].map(|port| Server::start(&server.netns, port));
        let _udp = UdpServer::start(&server.netns, SocketAddr::new(server.v4.into(), 53))?;
        let _other = Server::start(&rig.pod("a/other").netns, 80);
        let asks = |rig: &Rig| {
            let at = SocketAddr::new(server.v4.into(), 53);
            rig.explain(datagram(&n1, (Ipv4Addr::UNSPECIFIED, 0).into(), at, SILENCE))
        };
        let isolated = closed("a/server", Direction::Ingress);
        // Whatever isolates the pod; and a deny of nobody in particular, or of other pods, is not about the node.
        let clients = ingress("a/server", "a/other", PortSet::All).admin(TierAction::Deny);
        let known = said(TierAction::Accept, tcp(82, 82));
        rig.apply(&[isolated.clone(), clients.clone(), known.clone()])?;
        for family in Family::BOTH {
            ensure!(opens(&rig, rig.at("a/server", family, 80))?, "{family:?}: a probe was refused");
        }
        ensure!(asks(&rig)?, "a datagram of the node was refused");
        let before = rig.counters()?;
        rig.apply(&[known.clone(), said(TierAction::Deny, tcp(80, 80)), said(TierAction::Deny, udp(53))])?;
        for family in Family::BOTH {
            ensure!(!opens(&rig, rig.at("a/server", family, 80))?, "{family:?}: the deny is not enforced");
            ensure!(opens(&rig, rig.at("a/server", family, 81))?, "{family:?}: another port was refused");
            ensure!(opens(&rig, rig.at("a/other", family, 80))?, "{family:?}: another pod was refused");
            rig.explain(reaches(rig.pod("a/client"), rig.at("a/server", family, 80)))?;
        }
        ensure!(!asks(&rig)?, "the deny is not enforced on datagrams");
        rig.grew(&before, Counter::Denied)?;
        // With an answer where the policy gives one.
        rig.apply(&[said(TierAction::Deny, PortSet::All).rejecting()])?;
        for family in Family::BOTH {
            let (target, start) = (rig.at("a/server", family, 80), Instant::now());
            let kind = n1.inside(|| TcpStream::connect_timeout(&target, SOON))?.err().map(|e| e.kind());
            ensure!(kind == Some(ErrorKind::ConnectionRefused), "{family:?}: {kind:?}");
            ensure!(start.elapsed() < SOON, "{family:?}: no answer");
        }
        // And back.
        rig.apply(&[isolated, clients, known])?;
        for family in Family::BOTH {
            ensure!(opens(&rig, rig.at("a/server", family, 80))?, "{family:?}: still refused");
        }
    }
    Ok(())
}

fn cut() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        rig.apply(&[])?;
        let n1 = rig.world.node("n1").clone();
        let server = rig.pod("a/server").netns.clone();
        let (revoked, kept) = (Server::start(&server, 80)?, Server::start(&server, 81)?);
        let _node_server = Server::start(&n1.netns, 90)?;
        for family in Family::BOTH {
            let open = |port| Connection::open(&n1.netns, rig.at("a/server", family, port));
            let (mut first, mut second, mut third) = (open(80)?, open(80)?, open(81)?);
            // What the pod has opened to the node is not what the node has opened to the pod.
            let to_node = SocketAddr::new(family.pick(n1.v4, n1.v6), 90);
            let mut own = Connection::open(&server, to_node).context("the pod's own")?;
            // A policy about others, and the node's connections stay.
            rig.apply(&[closed("a/server", Direction::Ingress)])?;
            for connection in [&mut first, &mut second, &mut third, &mut own] {
                rig.explain(connection.echo("still", SOON))?;
            }
            let before = rig.counters()?;
            rig.apply(&[said(TierAction::Deny, tcp(80, 80))])?;
            rig.explain(first.is_reset()).with_context(|| format!("{family:?}, by the node's word"))?;
            // The other one by the pod's.
            revoked.say("news")?;
            rig.explain(second.is_reset()).with_context(|| format!("{family:?}, by the pod's word"))?;
            rig.explain(third.echo("here", SOON)).with_context(|| format!("{family:?}, another port"))?;
            kept.say("news")?;
            third.hear("news", SOON)?;
            rig.explain(own.echo("here", SOON)).with_context(|| format!("{family:?}, the pod's own"))?;
            rig.grew(&before, Counter::Cut)?;
            rig.apply(&[])?;
            ensure!(opens(&rig, rig.at("a/server", family, 80))?, "{family:?}: still refused");
        }
    }
    Ok(())
}

fn audited() -> Result<()> {
    let mut rig = Rig::routed()?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let n1 = rig.world.node("n1").netns.clone();
    rig.apply(&[])?;
    for family in Family::BOTH {
        let mut open = Connection::open(&n1, rig.at("a/server", family, 80))?;
        let before = rig.counters()?;
        rig.apply(&[said(TierAction::Deny, PortSet::All).audited()])?;
        ensure!(opens(&rig, rig.at("a/server", family, 80))?, "{family:?}: audit refused");
        rig.explain(open.echo("still", SOON))?;
        rig.grew(&before, Counter::Audited)?;
        rig.apply(&[])?;
    }
    Ok(())
}

fn requests() -> Result<()> {
    let mut rig = Rig::routed()?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    rig.apply(&[])?;
    let proxy = Proxy::start(rig.node("n1"))?;
    let reading = said(TierAction::Deny, tcp(80, 80)).l7();
    for family in Family::BOTH {
        let target = rig.at("a/server", family, 80);
        let before = rig.counters()?;
        rig.apply(std::slice::from_ref(&reading))?;
        ensure!(!opens(&rig, target)?, "{family:?}: what the node says was not read");
        rig.grew(&before, Counter::NoProxy)?;
        rig.apply(&[reading.clone().audited()])?;
        ensure!(opens(&rig, target)?, "{family:?}: audit refused");
    }
    ensure!(proxy.count() == 0, "the node's own traffic passed the proxy");
    Ok(())
}
