//! A flow's life: the same ports again at once, connections that are older than the hooks, associations of SCTP.

use crate::forge::{self, SECRET, Sniffer};
use crate::peers::{Connection, Proxy, SOON, Server};
use crate::rig::Rig;
use crate::rules::{closed, egress, tcp};
use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Direction, PortRange, PortSet, Protocol};
use sluice_redirect::Counter;
use sluice_tests::Pod;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use socket2::{Domain, Socket, Type};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};

/// Connections from one port, one after the other.
const AGAIN: usize = 200;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("flows: one port is used again and again at once", same_port),
        test("flows: what is older than the hooks goes on as the rows say", older),
        test("flows: an association of SCTP opens, answers and begins anew", association),
    ]
}

/// Connects from this very port, and reads until the other side has closed.
fn ask(from: &Pod, local: SocketAddr, target: SocketAddr) -> Result<()> {
    let stream = from.netns.inside(|| -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
        socket.connect_timeout(&target.into(), SOON)?;
        Ok(socket.into())
    })?;
    let mut stream = stream.context("connect")?;
    stream.set_read_timeout(Some(SOON))?;
    let mut said = String::new();
    stream.read_to_string(&mut said).context("read")?;
    ensure!(said == "hello", "{said:?}");
    Ok(())
}

/// The server closes first, so that what is left of each connection, at it or at the proxy, waits for its end while the
/// next one comes with the same addresses and ports.
fn same_port() -> Result<()> {
    let mut rig = Rig::routed()?;
    let target = rig.at("b/remote", Family::V4, 80);
    let listener = rig.pod("b/remote").netns.inside(|| TcpListener::bind(target))??;
    // It ends with the test binary: nothing wakes an `accept`.
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"hello");
        }
    });
    let mut proxies = Vec::new();
    for proxied in [false, true] {
        let line = egress("a/client", "b/remote", tcp(80, 80));
        let line = if proxied { line.l7() } else { line };
        rig.apply(&[line, closed("a/client", Direction::Ingress)])?;
        if proxied {
            proxies.push(Proxy::start(rig.node("n1"))?);
        }
        let local = rig.at("a/client", Family::V4, if proxied { 4001 } else { 4000 });
        for round in 0..AGAIN {
            let asked = ask(rig.pod("a/client"), local, target);
            rig.explain(asked.with_context(|| format!("round {round}, proxied: {proxied}")))?;
        }
        ensure!(proxies.iter().all(|proxy| proxy.count() >= AGAIN), "past the proxy");
    }
    // Each direct one is forgotten once it is closed.
    let left = rig.node_mut("n1").sweep()?.flows;
    ensure!(left < AGAIN + AGAIN / 2, "{left} flows are left");
    Ok(())
}

fn older() -> Result<()> {
    let mut rig = Rig::routed()?;
    let mut servers = Vec::new();
    for (pod, port) in [("b/remote", 80), ("b/remote", 81), ("a/other", 80)] {
        servers.push(Server::start(&rig.pod(pod).netns, port)?);
    }
    // No generation is in force, and no hook attached.
    let client = rig.pod("a/client").netns.clone();
    let mut allowed = Connection::open(&client, rig.at("b/remote", Family::V4, 80))?;
    let mut denied = Connection::open(&client, rig.at("b/remote", Family::V4, 81))?;
    let mut asked = Connection::open(&rig.pod("b/remote").netns, rig.at("a/other", Family::V4, 80))?;
    rig.apply(&[
        egress("a/client", "b/remote", tcp(80, 80)),
        closed("a/client", Direction::Ingress),
        // Its answers go where it may open nothing.
        closed("a/other", Direction::Egress),
    ])?;
    rig.explain((|| {
        for _ in 0..3 {
            allowed.echo("still here", SOON)?;
            asked.echo("still here", SOON)?;
        }
        denied.is_dead()
    })())?;
    // And is cut as any other.
    rig.apply(&[closed("a/client", Direction::Egress), closed("a/client", Direction::Ingress)])?;
    rig.explain(allowed.is_reset())
}

/// A packet of SCTP with one chunk. Nobody here looks at its checksum.
fn chunk(from: SocketAddrV4, to: SocketAddrV4, kind: u8) -> Vec<u8> {
    let mut body = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    body.extend([0, 0, 0, 1, 0, 0, 0, 0, kind, 0, 0, 16, 0, 0]);
    body.extend(SECRET);
    forge::ipv4(*from.ip(), *to.ip(), RAW_SCTP, 64, &body)
}

const RAW_SCTP: u8 = 132;
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;

fn association() -> Result<()> {
    let mut rig = Rig::routed()?;
    let allowed = PortSet::Ranges(vec![PortRange { protocol: Protocol::Sctp, first: 5000, last: 5000 }]);
    let lines = [egress("a/client", "b/remote", allowed), closed("a/client", Direction::Ingress)];
    rig.apply(&lines)?;
    let (client, remote) = (rig.pod("a/client").clone(), rig.pod("b/remote").clone());
    let arrives = |from: (&Pod, u16), to: (&Pod, u16), kind: u8, wanted: bool| -> Result<()> {
        let sniffer = Sniffer::start(&to.0.netns, Domain::IPV4, i32::from(RAW_SCTP))?;
        let packet = chunk(SocketAddrV4::new(from.0.v4, from.1), SocketAddrV4::new(to.0.v4, to.1), kind);
        from.0.netns.inside(|| forge::raw(to.0.v4.into(), &packet))??;
        if sniffer.saw_secret() == wanted {
            return Ok(());
        }
        bail!("a chunk {kind} from {} {} to {} {}: expected {wanted}", from.0.name, from.1, to.0.name, to.1)
    };
    let (there, back) = (((&client, 4000), (&remote, 5000)), ((&remote, 5000), (&client, 4000)));
    rig.explain((|| {
        arrives(there.0, there.1, INIT, true)?;
        for kind in [INIT_ACK, DATA] {
            arrives(back.0, back.1, kind, true)?;
        }
        // Nobody was asked on that port, nor may be; and an INIT asks for itself.
        arrives((&remote, 5001), (&client, 4000), DATA, false)?;
        arrives(back.0, back.1, INIT, false)
    })())?;
    rig.apply(&[closed("a/client", Direction::Egress), closed("a/client", Direction::Ingress)])?;
    let before = rig.counters()?;
    rig.explain((|| {
        arrives(there.0, there.1, DATA, false)?;
        arrives(back.0, back.1, DATA, false)
    })())?;
    rig.grew(&before, Counter::Cut)?;
    // What was cut stays so, until it is opened again.
    rig.apply(&lines)?;
    rig.explain((|| {
        arrives(back.0, back.1, DATA, false)?;
        arrives(there.0, there.1, INIT, true)?;
        arrives(back.0, back.1, DATA, true)
    })())?;
    let flows = rig.node("n1").flows();
    arrives(there.0, there.1, ABORT, true)?;
    ensure!(rig.node("n1").flows() < flows, "an association that was broken off takes room");
    Ok(())
}
