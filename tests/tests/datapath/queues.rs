//! The proxy's accept queues: which connection is whose, and that none is lost when their number changes.

use crate::legs::in_proxy;
use crate::peers::{Connection, Proxy, Server};
use crate::rig::{OUTSIDE, Rig};

use crate::rules::{closed, egress, ingress, tcp};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::{Node, NodeConfig};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
/// Connections that are made in each round. That one of four queues gets none of so many is less likely than 1e-9.
const MANY: usize = 80;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("queues: each has its part of the connections", [Need::Bpf], shared_out),
        harness::test("queues: what a cookie stands for finds the one that sent it", [Need::Bpf], cookies),
        harness::test("queues: a listener that is not there is no loss", [Need::Bpf], fallback),
        harness::test("queues: a node changes hands, and their number changes", [Need::Bpf], handed_over),
    ]
}

fn begun(queues: u8) -> Result<(Rig, Vec<Server>)> {
    let mut rig = Rig::routed()?;
    drop(rig.take("n1"));
    let config = NodeConfig { queues, ..rig.config("n1") };
    rig.open_with("n1", config)?;
    rig.apply(&[
        egress("a/client", OUTSIDE, tcp(80, 80)).l7(),
        closed("a/client", Direction::Ingress),
        ingress("a/server", "b/remote", tcp(80, 80)).l7(),
        closed("a/server", Direction::Egress),
    ])?;
    let servers = [OUTSIDE, "a/server"].map(|pod| Server::start(&rig.pod(pod).netns, 80));
    Ok((rig, servers.into_iter().collect::<Result<_>>()?))
}

/// A proxy for each queue.
fn apart(rig: &Rig, listeners: &[TcpListener]) -> Result<Vec<Proxy>> {
    let port = |listener: &TcpListener| listener.local_addr().map(|at| at.port());
    ensure!(listeners.chunks(2).all(|pair| port(&pair[0]).ok() == port(&pair[1]).ok()), "{listeners:?}");
    listeners.chunks(2).map(|pair| Proxy::on(rig.node("n1"), pair)).collect()
}

fn ways(rig: &Rig) -> Vec<(&'static str, SocketAddr)> {
    let of =
        |family| [("a/client", rig.at(OUTSIDE, family, 80)), ("b/remote", rig.at("a/server", family, 80))];
    Family::BOTH.into_iter().flat_map(of).collect()
}

/// Connections that all carry bytes.
fn many(rig: &Rig, count: usize) -> Result<Vec<Connection>> {
    let ways = ways(rig);
    let mut held = Vec::with_capacity(count);
    for index in 0..count {
        let (from, target) = ways[index % ways.len()];
        let mut connection = rig.explain(Connection::open(&rig.pod(from).netns, target))?;
        rig.explain(connection.echo("hello", SOON))?;
        held.push(connection);
    }
    Ok(held)
}

fn shared_out() -> Result<()> {
    let (rig, _servers) = begun(4)?;
    let listeners = rig.node("n1").listeners()?;
    ensure!(listeners.len() == 8, "{listeners:?}");
    let proxies = apart(&rig, &listeners)?;
    let mut held = many(&rig, MANY)?;
    let counts: Vec<usize> = proxies.iter().map(Proxy::count).collect();
    ensure!(counts.iter().sum::<usize>() == MANY && !counts.contains(&0), "{counts:?}");
    for connection in &mut held {
        rig.explain(connection.bulk(64 * 1024))?;
    }
    Ok(())
}

fn cookies() -> Result<()> {
    let (rig, _servers) = begun(4)?;
    let listeners = rig.node("n1").listeners()?;
    let proxies = apart(&rig, &listeners)?;
    in_proxy(&rig, "n1", &["sh", "-c", "echo 2 > /proc/sys/net/ipv4/tcp_syncookies"])?;
    let _held = many(&rig, MANY)?;
    let counts: Vec<usize> = proxies.iter().map(Proxy::count).collect();
    ensure!(counts.iter().sum::<usize>() == MANY && !counts.contains(&0), "{counts:?}");
    Ok(())
}

/// Another version has fewer listeners than this one's programs are told of.
fn fallback() -> Result<()> {
    let (rig, _servers) = begun(4)?;
    let mut listeners = rig.node("n1").listeners()?;
    listeners.truncate(2);
    let proxies = apart(&rig, &listeners)?;
    let _held = many(&rig, MANY / 4)?;
    ensure!(proxies[0].count() == MANY / 4, "{}", proxies[0].count());
    Ok(())
}

fn handed_over() -> Result<()> {
    let (mut rig, _servers) = begun(2)?;
    let mut listeners = rig.node("n1").listeners()?;
    let mut held = Vec::new();
    let mut proxy = Proxy::on(rig.node("n1"), &listeners)?;
    for (round, queues) in [5, 1, 3].into_iter().enumerate() {
        held.extend(many(&rig, MANY / 4)?);
        // Nobody accepts for a while: what comes now waits in queues that change hands.
        proxy.stop()?;
        let waiting: Vec<(&str, TcpStream)> = ways(&rig)
            .into_iter()
            .cycle()
            .take(MANY / 4)
            .map(|(from, target)| {
                let stream = rig.pod(from).netns.inside(|| TcpStream::connect_timeout(&target, SOON))??;
                anyhow::Ok((from, stream))
            })
            .collect::<Result<_>>()?;
        let config = NodeConfig { queues, ..rig.config("n1") };
        let netns = rig.node("n1").proxy_netns().try_clone_to_owned()?;
        let old = rig.take("n1");
        let new = rig.world.node("n1").netns.inside(|| Node::adopt(config, netns, &listeners))??;
        rig.put_node("n1", new);
        let before = listeners.len();
        listeners = rig.node("n1").listeners_beside(listeners)?;
        ensure!(listeners.len() == before.max(usize::from(queues) * 2), "round {round}: {listeners:?}");
        proxy = Proxy::on(rig.node("n1"), &listeners)?;
        drop(old);
        for (from, stream) in waiting {
            let what = format!("round {round}, {from} at {:?}", stream.peer_addr());
            held.push(rig.explain(Connection::greet(stream).map_err(|error| error.context(what)))?);
        }
        for connection in &mut held {
            rig.explain(connection.echo(&format!("still here in round {round}"), SOON))?;
        }
        ensure!(proxy.count() >= MANY / 4, "round {round}: {}", proxy.count());
    }
    Ok(())
}
