//! Upgrades from the ABI version before and back, under traffic: no packet passes that neither version lets pass, and
//! what is open goes on.

use crate::peers::{Connection, SOON, Server, UdpServer, eventually, is_refused, reaches};
use crate::rig::Rig;
use crate::rules::{self, Line, closed, egress, ingress, tcp, udp};
use crate::v3::{self, V3};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::{ABI_VERSION, Node, NodeConfig, SetupError};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("upgrade: from ABI 3, under traffic", [Need::Tcx], upgrade),
        harness::test("upgrade: and back to ABI 3", [Need::Tcx], back),
        harness::test("upgrade: a pod that only the version before finds", [Need::Tcx], unfound),
        harness::test("upgrade: a newer version is left alone", [Need::Tcx], newer),
    ]
}

/// A node as version 3 leaves it.
fn rig() -> Result<(Rig, PathBuf)> {
    let mut rig = Rig::routed()?;
    drop(rig.take("n1"));
    let config = rig.config("n1");
    rig.world.node("n1").netns.inside(|| Node::uninstall(&config))??;
    Ok((rig, config.bpffs))
}

fn rules() -> Vec<Line> {
    vec![
        egress("a/client", "b/remote", udp(1001)),
        egress("a/client", "b/remote", tcp(80, 80)),
        closed("a/client", Direction::Ingress),
        ingress("a/server", "a/client", tcp(80, 80)),
        closed("a/server", Direction::Egress),
    ]
}

/// What is open on a node, and must go on.
struct Open {
    client: UdpSocket,
    server: UdpSocket,
    stream: Connection,
}

impl Open {
    fn new(rig: &Rig) -> Result<Self> {
        let (client, remote) = (rig.pod("a/client"), rig.pod("b/remote"));
        let at = rig.at("b/remote", Family::V4, 1001);
        let server = remote.netns.inside(|| UdpSocket::bind(at))??;
        let socket = client.netns.inside(|| UdpSocket::bind((client.v4, 0)))??;
        for socket in [&socket, &server] {
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        }
        socket.send_to(b"open", at)?;
        let (_, from) = server.recv_from(&mut [0; 16]).context("the datagram that opens the flow")?;
        server.connect(from)?;
        let stream = Connection::open(&client.netns, rig.at("b/remote", Family::V4, 80))?;
        Ok(Self { client: socket, server, stream })
    }

    /// The server speaks first: only who remembers the flow lets it in.
    fn goes_on(&mut self) -> Result<()> {
        self.server.send(b"news")?;
        self.client.recv_from(&mut [0; 16]).context("a datagram of a flow that is open")?;
        self.stream.echo("still here", SOON).context("a connection that is open")
    }
}

/// Sends what nobody allows for as long as `work` takes.
fn beside(rig: &mut Rig, work: impl FnOnce(&mut Rig) -> Result<()>) -> Result<()> {
    let (from, to) = (rig.pod("a/client").clone(), rig.at("b/remote", Family::V4, 1002));
    let denied = UdpServer::start(&rig.pod("b/remote").netns, to)?;
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let flood = scope.spawn(|| -> Result<()> {
            let socket = from.netns.inside(|| UdpSocket::bind((from.v4, 0)))??;
            while !stop.load(Ordering::SeqCst) {
                socket.send_to(b"no", to)?;
                sent.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(200));
            }
            Ok(())
        });
        let result = work(rig);
        stop.store(true, Ordering::SeqCst);
        flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        result
    })?;
    ensure!(sent.load(Ordering::SeqCst) > 0, "nothing was tried");
    ensure!(denied.datagrams.load(Ordering::SeqCst) == 0, "a packet passed that no version allows");
    Ok(())
}

fn upgrade() -> Result<()> {
    let (mut rig, bpffs) = rig()?;
    let mut old = V3::open(bpffs.join("v3"))?;
    let _servers =
        [Server::start(&rig.pod("b/remote").netns, 80)?, Server::start(&rig.pod("a/server").netns, 80)?];
    let wide = [&rules()[..], &[egress("a/client", "a/server", tcp(80, 80))]].concat();
    old.put(&rig.world, "n1", &rules::snapshot(&rig.world, "n1", 1, &wide))?;
    let mut cut = Connection::open(&rig.pod("a/client").netns, rig.at("a/server", Family::V4, 80))?;
    old.put(&rig.world, "n1", &rules::snapshot(&rig.world, "n1", 2, &rules()))?;
    cut.is_dead().context("what version 3 cut")?;
    let mut open = Open::new(&rig)?;
    open.goes_on()?;
    // The process goes, what it pinned stays.
    drop(old);
    open.goes_on()?;
    beside(&mut rig, |rig| {
        rig.open("n1")?;
        open.goes_on().context("version 3 still judges")?;
        // What was cut stays cut, even where a new one may be opened: its other end might be anybody by now.
        let applied = rig.apply(&wide)?;
        ensure!(applied.problems.is_empty(), "{applied:?}");
        open.goes_on().context("version 4 judges")
    })?;
    ensure!(!bpffs.join("v3").exists(), "the pins of version 3 are left");
    cut.is_dead().context("what version 3 cut")?;
    reaches(rig.pod("a/client"), rig.at("a/server", Family::V4, 80))?;
    // A newer version that comes beside us is not fought.
    let next = bpffs.join(format!("v{}", ABI_VERSION + 1));
    std::fs::create_dir_all(next.join("links"))?;
    let snapshot = rules::snapshot(&rig.world, "n1", 5, &wide);
    ensure!(rig.put("n1", &snapshot).is_err(), "rows were changed beside a newer version");
    ensure!(rig.node_mut("n1").verify().len() == 1, "a newer version is drift");
    ensure!(next.join("links").exists(), "the newer version's pins were touched");
    std::fs::remove_dir(next.join("links"))?;
    std::fs::remove_dir(next)?;
    // A connection that the new rules do not allow is judged by them.
    rig.apply(&[closed("a/client", Direction::Egress)])?;
    open.stream.is_dead()
}

fn back() -> Result<()> {
    let (mut rig, bpffs) = rig()?;
    let _server = Server::start(&rig.pod("b/remote").netns, 80)?;
    rig.open("n1")?;
    rig.apply(&rules())?;
    let mut stream = Connection::open(&rig.pod("a/client").netns, rig.at("b/remote", Family::V4, 80))?;
    drop(rig.take("n1"));
    beside(&mut rig, |rig| {
        let mut old = V3::open(bpffs.join("v3"))?;
        old.put(&rig.world, "n1", &rules::snapshot(&rig.world, "n1", 2, &rules()))?;
        v3::retire_others(&bpffs)?;
        drop(old);
        stream.echo("still here", SOON)?;
        is_refused(rig.pod("a/client"), rig.at("b/remote", Family::V4, 81))
    })?;
    ensure!(!bpffs.join(format!("v{ABI_VERSION}")).exists(), "our pins are left");
    Ok(())
}

/// A pod whose address is not on its interface any more is still behind the device that version 3 knew. Where not even
/// that is known, its hooks stay.
fn unfound() -> Result<()> {
    for known in [true, false] {
        let (mut rig, bpffs) = rig()?;
        let _server = Server::start(&rig.pod("b/remote").netns, 80)?;
        let rules = [egress("a/other", "b/remote", tcp(80, 80)), ingress("a/other", "b/remote", tcp(80, 80))];
        let mut old = V3::open(bpffs.join("v3"))?;
        old.put(&rig.world, "n1", &rules::snapshot(&rig.world, "n1", 1, &rules))?;
        drop(old);
        if !known {
            std::fs::remove_file(bpffs.join("v3/maps/LOCALS"))?;
        }
        let other = rig.pod("a/other").clone();
        let (v4, v6) = (format!("{}/32", other.v4), format!("{}/128", other.v6));
        let address = |verb: &str| -> Result<()> {
            for address in [&v4, &v6] {
                other.netns.run(&["ip", "addr", verb, address, "dev", "lo"])?;
                let back = if verb == "add" { "del" } else { "add" };
                other.netns.run(&["ip", "addr", back, address, "dev", "eth0"])?;
            }
            other.netns.run(&["ip", "route", "replace", "169.254.1.1", "dev", "eth0", "scope", "link"])?;
            other.netns.run(&["ip", "route", "replace", "default", "via", "169.254.1.1", "dev", "eth0"])?;
            Ok(())
        };
        address("add")?;
        rig.open("n1")?;
        let snapshot = rules::snapshot(&rig.world, "n1", 2, &rules);
        let applied = rig.put("n1", &snapshot)?;
        ensure!(applied.missing.is_empty() == known, "{applied:?}");
        ensure!(applied.problems.is_empty() == known, "{applied:?}");
        ensure!(bpffs.join("v3").exists() != known, "the pins of version 3");
        reaches(&other, rig.at("b/remote", Family::V4, 80))?;
        is_refused(&other, rig.at("b/remote", Family::V4, 81))?;
        // It is found again: nothing of version 3 is left.
        address("del")?;
        let applied = rig.put("n1", &snapshot)?;
        ensure!(applied.missing.is_empty() && applied.problems.is_empty(), "{applied:?}");
        ensure!(!bpffs.join("v3").exists(), "the pins of version 3 are left");
        is_refused(&other, rig.at("b/remote", Family::V4, 81))?;
    }
    Ok(())
}

fn newer() -> Result<()> {
    let (mut rig, bpffs) = rig()?;
    let _server = Server::start(&rig.pod("b/remote").netns, 80)?;
    let number = ABI_VERSION + 1;
    let directory = bpffs.join(format!("v{number}"));
    let mut newer = V3::open(directory.clone())?;
    newer.put(&rig.world, "n1", &rules::snapshot(&rig.world, "n1", 1, &rules()))?;
    drop(newer);
    let config = rig.config("n1");
    let netns = rig.world.node("n1").netns.clone();
    let state = || -> Result<(String, usize)> {
        let pins = std::fs::read_dir(&bpffs)?.count();
        Ok((netns.run(&["ip", "-o", "link"])?, pins))
    };
    let before = state()?;
    match netns.inside(|| Node::open(config.clone()))? {
        Err(error @ SetupError::Newer { .. }) => {
            ensure!(error.to_string().contains("--roll-back"), "no remedy: {error}");
        }
        Err(other) => bail!("refused for another reason: {other}"),
        Ok(_) => bail!("a newer version's node was taken"),
    }
    eventually("nothing was touched", || Ok(state()? == before))?;
    let far: SocketAddr = rig.at("b/remote", Family::V4, 80);
    reaches(rig.pod("a/client"), far)?;
    is_refused(rig.pod("a/client"), rig.at("b/remote", Family::V4, 81))?;
    beside(&mut rig, |rig| {
        rig.open_with("n1", NodeConfig { roll_back: true, ..config })?;
        let applied = rig.apply(&rules())?;
        ensure!(applied.problems.is_empty(), "{applied:?}");
        reaches(rig.pod("a/client"), far)
    })?;
    ensure!(!directory.exists(), "the newer version's pins are left");
    Ok(())
}
