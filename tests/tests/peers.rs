//! The peers themselves, without any policy: what they report must be true before it can prove anything.
//!
//! Knows nothing of the product.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;
use sluice_tests::harness::{self, Need};
use sluice_tests::peer::{Ask, Version, grpc_client, http_client, raw_client};
use sluice_tests::world::{Family, NETNS_DIR, STATE_DIR, eventually, sweep};
use sluice_tests::{NodeSpec, PodSpec, Process, World};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

fn main() -> ExitCode {
    let peer = [Need::World, Need::Binary("sluice-peer")];
    let tests: Vec<Trial> = vec![
        harness::test("http keeps its connection", peer.clone(), http_keeps_its_connection),
        harness::test("paths go out as given", peer.clone(), paths_go_out_as_given),
        harness::test("grpc calls", peer.clone(), grpc_calls),
        harness::test("the ledger counts bytes", peer.clone(), ledger_counts_bytes),
        harness::test("echo speaks first, and pings", peer.clone(), echo_speaks_first),
        harness::test("a killed world is swept", peer.clone(), killed_world_is_swept),
        harness::test("a signal takes the world down", peer, signal_takes_the_world_down),
    ];
    harness::main(2, tests)
}

const WAIT: Duration = Duration::from_secs(2);

fn pair() -> Result<(World, Process)> {
    let world = World::builder()
        .node(NodeSpec::routed("n1"))
        .node(NodeSpec::routed("n2"))
        .pod(PodSpec::new("n1", "shop/client"))
        .pod(PodSpec::new("n2", "shop/server"))
        .build()?;
    let arguments = ["--http", "[::]:8080", "--greet", "[::]:7000", "--udp", "[::]:7001"];
    let server = world.serve("shop/server", &arguments)?;
    Ok((world, server))
}

fn target(world: &World, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(world.pod("shop/server").ip(family), port)
}

fn http_keeps_its_connection() -> Result<()> {
    let (world, _server) = pair()?;
    let client = world.pod("shop/client");
    let asks: Vec<Ask> = (0..20).map(|number| Ask::new("GET", &format!("/{number}"))).collect();
    for (family, version) in Family::BOTH.into_iter().flat_map(|f| [(f, Version::Http1), (f, Version::Http2)])
    {
        let target = target(&world, family, 8080);
        let answers = client.netns.block_on(|| http_client::ask(target, version, &asks))??;
        let first = answers[0].json()["connection"].clone();
        for (answer, ask) in answers.iter().zip(&asks) {
            let json = answer.json();
            ensure!(answer.status == 200 && json["path"] == ask.path.as_str(), "{answer:?}");
            ensure!(json["connection"] == first, "another connection was used: {json}");
            ensure!(json["peer"] == client.ip(family).to_string().as_str(), "the wrong peer: {json}");
        }
    }
    Ok(())
}

fn paths_go_out_as_given() -> Result<()> {
    let (world, _server) = pair()?;
    let target = target(&world, Family::V4, 8080);
    let paths = ["/a/../b", "//a//b", "/a%2Fb", "/a/%2e%2e/b", "/a;x=1/b?y=..", "/a/./b"];
    let asks: Vec<Ask> = paths.iter().map(|path| Ask::new("GET", path).header("X-A", "1")).collect();
    for version in [Version::Http1, Version::Http2] {
        let answers =
            world.pod("shop/client").netns.block_on(|| http_client::ask(target, version, &asks))??;
        for (answer, path) in answers.iter().zip(paths) {
            ensure!(answer.json()["path"] == path, "{path} arrived otherwise: {answer:?}");
            ensure!(answer.json()["headers"]["x-a"] == "1", "a header is lost: {answer:?}");
        }
    }
    Ok(())
}

fn grpc_calls() -> Result<()> {
    let (world, mut server) = pair()?;
    let target = target(&world, Family::V6, 8080);
    let outcomes = world.pod("shop/client").netns.block_on(|| async {
        let mut client = grpc_client::connect(target).await?;
        let mut outcomes = Vec::new();
        for method in ["GetCart", "WatchCart", "DeleteItem"] {
            outcomes.push(grpc_client::call(&mut client, method, "blue", 3).await?);
        }
        anyhow::Ok(outcomes)
    })??;
    let replies: Vec<usize> = outcomes.iter().map(|outcome| outcome.replies.len()).collect();
    ensure!(replies == [1, 3, 1] && outcomes.iter().all(|outcome| outcome.code == 0), "{outcomes:?}");
    let peer = world.pod("shop/client").v6.to_string();
    ensure!(outcomes[0].replies[0].peer == peer, "{outcomes:?}");
    server.wait_line(0, WAIT, "the deletion", |line| line.contains("/shop.v1.Cart/DeleteItem"))?;
    Ok(())
}

fn ledger_counts_bytes() -> Result<()> {
    let (world, _server) = pair()?;
    ensure!(world.stats("shop/server", 8080)?.is_empty(), "the ledger does not begin empty");
    let target = target(&world, Family::V4, 8080);
    let answer = world
        .pod("shop/client")
        .netns
        .inside(|| raw_client::tcp(target, b"GET / HT", usize::MAX, WAIT / 4))?;
    ensure!(answer.connected && answer.received.is_empty(), "half a request was answered: {answer:?}");
    let stats = world.stats("shop/server", 8080)?;
    let port = stats.get(&8080).cloned().unwrap_or_default();
    ensure!((port.connections, port.bytes, port.requests) == (1, 8, 0), "{stats:?}");
    Ok(())
}

fn echo_speaks_first() -> Result<()> {
    let (world, _server) = pair()?;
    let client = &world.pod("shop/client").netns;
    for family in Family::BOTH {
        let tcp = target(&world, family, 7000);
        let answer = client.inside(|| raw_client::tcp(tcp, b"\x00\xffping", 17, WAIT))?;
        ensure!(answer.received == b"220 hello\r\n\x00\xffping", "{answer:?}");
        let udp = target(&world, family, 7001);
        let answer = client.inside(|| raw_client::udp(udp, b"\x00pong", WAIT))??;
        ensure!(answer.received == b"\x00pong", "{answer:?}");
        let answer = client.inside(|| raw_client::icmp(udp.ip(), WAIT))??;
        ensure!(answer.error.is_none() && !answer.received.is_empty(), "{answer:?}");
        let nobody = match family {
            Family::V4 => "10.77.2.99".parse()?,
            Family::V6 => "fd77:0:0:2::99".parse()?,
        };
        let answer = client.inside(|| raw_client::icmp(nobody, WAIT / 8))??;
        ensure!(answer.received.is_empty(), "nobody answered: {answer:?}");
    }
    Ok(())
}

/// The environment variable that turns this binary into one that builds a world and is killed.
const VICTIM: &str = "SLUICE_TEST_VICTIM";

/// This binary again, as one that builds a world and waits for its end; with the prefix of that world. As the
/// victim itself it never returns.
fn victim(test: &str) -> Result<(Process, String, tempfile::TempDir)> {
    if std::env::var_os(VICTIM).is_some() {
        let (world, _server) = pair()?;
        println!("victim {}", world.prefix());
        loop {
            std::thread::park();
        }
    }
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.env(VICTIM, "1").args(["--exact", test, "--nocapture"]);
    let mut victim = Process::start("victim", dir.path(), &mut command)?;
    let line =
        victim.wait_line(0, Duration::from_secs(20), "its world", |line| line.contains("victim sl-"))?;
    let prefix = line.split("victim ").nth(1).unwrap_or_default().to_owned();
    ensure!(left(&prefix)? > 0, "the victim left nothing to take down: {line}");
    Ok((victim, prefix, dir))
}

/// How many namespaces there are with the prefix.
fn left(prefix: &str) -> Result<usize> {
    let names = std::fs::read_dir(NETNS_DIR)?.flatten();
    Ok(names.filter(|name| name.file_name().to_string_lossy().starts_with(&format!("{prefix}-"))).count())
}

fn killed_world_is_swept() -> Result<()> {
    let (mut victim, prefix, _dir) = victim("a killed world is swept")?;
    victim.kill()?;
    eventually("the world of a killed process is swept", Duration::from_secs(10), || {
        sweep();
        Ok(left(&prefix)? == 0)
    })
}

fn signal_takes_the_world_down() -> Result<()> {
    let (mut victim, prefix, _dir) = victim("a signal takes the world down")?;
    victim.signal(Signal::INT)?;
    let status = victim.wait(Duration::from_secs(20))?;
    ensure!(status.code() == Some(130), "it ended with {status}");
    ensure!(
        left(&prefix)? == 0 && !Path::new(STATE_DIR).join(&prefix).exists(),
        "something is left of {prefix}"
    );
    Ok(())
}
