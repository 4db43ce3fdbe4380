//! What a node knows of its kernel reaches control's status: what was dropped, what somebody changed, what is full, and
//! that it says nothing any more.

use crate::NEEDS;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sluice_redirect::{Node, NodeConfig};
use sluice_tests::harness;
use sluice_tests::manifests;
use sluice_tests::scene::{BYTES, CART, Scene};
use sluice_tests::world::{Family, binary, eventually};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("kernel: what it drops is in the status", NEEDS, dropped),
        harness::test("kernel: what somebody changed on a node is in the status", NEEDS, changed),
        harness::test("kernel: a map that is nearly full is in the status", NEEDS, nearly_full),
        harness::test("kernel: a generation that does not fit is in the status", NEEDS, full),
        harness::test("kernel: a node that says nothing any more is stale", NEEDS, silent),
        harness::test("kernel: the counters are read on the node itself", NEEDS, on_the_node),
    ]
}

/// Reports come every 5 s, the status follows within a second; the rest is for a busy machine.
const REPORTED: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_millis(400);

/// Waits until a node's line in the status says so.
fn until(
    scene: &Scene,
    node: &str,
    what: &str,
    within: Duration,
    is: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let mut line = Value::Null;
    eventually(what, within, || {
        line = scene.cluster.status()?["nodes"][node].clone();
        Ok(is(&line))
    })
    .with_context(|| format!("{line:#}\n{}", scene.cluster.tails()))?;
    Ok(line)
}

/// The second node's line, once it has reported under what is in force.
fn reported(scene: &Scene) -> Result<Value> {
    until(scene, "n2", "the node reports", REPORTED, |line| line["kernel"]["generation"] == line["acked"])
}

/// Packets that the policy refused.
fn refused(line: &Value) -> u64 {
    let packets = &line["kernel"]["packets"];
    ["denied", "no_row"].iter().filter_map(|reason| packets[reason].as_u64()).sum()
}

fn has_warning(line: &Value, text: &str) -> bool {
    let warnings = line["warnings"].as_array().into_iter().flatten();
    warnings.filter_map(Value::as_str).any(|warning| warning.contains(text))
}

fn dropped() -> Result<()> {
    const DATAGRAMS: u64 = 7;
    let scene = Scene::start(&[], CART)?;
    let before = reported(&scene)?;
    ensure!(before["kernel"]["maps"]["ROWS"]["max"] == sluice_redirect::MAX_ROWS, "{before:#}");
    ensure!(before["stale"] == false && before["warnings"] == json!([]), "{before:#}");
    let target = scene.address("shop/cart", Family::V4, 5353);
    scene.world().pod("shop/intruder").netns.inside(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        (0..DATAGRAMS).try_for_each(|_| socket.send_to(BYTES, target).map(drop).map_err(Into::into))
    })??;
    let after = until(&scene, "n2", "each refused datagram is counted", REPORTED, |line| {
        refused(line) >= refused(&before) + DATAGRAMS
    })?;
    ensure!(after["inForce"] == true && after["kernel"]["ageSeconds"].as_u64() < Some(20), "{after:#}");
    let generation = scene.cluster.status()?["nodes"]["n2"]["acked"].clone();
    ensure!(after["kernel"]["generation"] == generation, "{after:#}");
    ensure!(!scene.udp("shop/intruder", target, NEVER)?, "it is counted and passes");
    Ok(())
}

fn changed() -> Result<()> {
    const SYSCTL: &str = "net.ipv4.conf.sluiceo.accept_local";
    let scene = Scene::start(&[], CART)?;
    let node = scene.world().node("n2").clone();
    let drift = |line: &Value, text: &str| {
        let all = line["kernel"]["drift"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|drift| drift["what"].as_str().is_some_and(|what| what.contains(text)))
    };
    let was = node.netns.run(&["sysctl", "-n", SYSCTL])?;
    ensure!(was.trim() == "1", "{SYSCTL} is {was}");
    node.netns.sysctl(&[(SYSCTL, "0")])?;
    let line =
        until(&scene, "n2", "a sysctl is told", REPORTED, |line| drift(line, "accept_local").is_some())?;
    let told = drift(&line, "accept_local").context("told")?;
    ensure!(told["repaired"] == true && told["stays"].is_null() && told["times"] == 1, "{told:#}");
    ensure!(line["inForce"] == true && line["kernel"]["repaired"].as_u64() >= Some(1), "{line:#}");
    ensure!(node.netns.run(&["sysctl", "-n", SYSCTL])? == was, "it was told and not put right");

    let version = format!("v{}", sluice_redirect::ABI_VERSION);
    let pin = node.bpffs.join(version).join("maps/EPOCH");
    std::fs::remove_file(&pin)?;
    until(&scene, "n2", "a pin is told", REPORTED, |line| {
        drift(line, "EPOCH was gone").is_some_and(|drift| drift["repaired"] == true)
    })?;
    ensure!(pin.exists(), "it was told and not put right");

    // What a newer version has pinned is not ours to take away.
    let newer = node.bpffs.join("v999");
    std::fs::create_dir(&newer)?;
    let line =
        until(&scene, "n2", "a newer version is told", REPORTED, |line| has_warning(line, "another's"))?;
    ensure!(line["inForce"] == false, "the node is not as it must be, and is said to be in force: {line:#}");
    ensure!(has_warning(&line, "v999"), "{line:#}");
    let told = |line: &Value| drift(line, "another's").is_some_and(|drift| drift["repaired"] == false);
    until(&scene, "n2", "the report says so as well", REPORTED, told)?;
    std::fs::remove_dir(&newer)?;
    until(&scene, "n2", "it is in force again", REPORTED, |line| line["inForce"] == true)?;
    Ok(())
}

/// The flow table of a node, made small before its proxy starts, which takes it as it is.
fn nearly_full() -> Result<()> {
    const ROOM: u32 = 8_192;
    const FLOWS: usize = 7_700;
    let world = Scene::build()?;
    let node = world.node("n2").clone();
    let small = NodeConfig { flows: ROOM, ..NodeConfig::new("sluice", &node.bpffs, 15_001) };
    node.netns.inside(|| Node::open(small)?.release())??;
    let scene = Scene::start_in(world, &[], CART)?;
    let mark = scene.cluster.mark();
    let target = scene.address("shop/cart", Family::V4, 5353);
    scene.world().pod("shop/frontend").netns.inside(|| open_flows(target, FLOWS))??;
    let line = until(&scene, "n2", "it is told", REPORTED, |line| has_warning(line, "map FLOWS is 9"))?;
    let used = line["kernel"]["maps"]["FLOWS"]["used"].as_u64().context("a number")?;
    ensure!(line["kernel"]["maps"]["FLOWS"]["max"] == ROOM && used > 7_300, "{line:#}");
    for text in [" flows of at most 8192", "forgotten", "flow_quota"] {
        ensure!(has_warning(&line, text), "{text}: {line:#}");
    }
    ensure!(line["inForce"] == true, "nothing is less enforced: {line:#}");
    let said = scene.cluster.proxy_log("n2", &mark);
    let times = said.iter().filter(|line| line.contains("map FLOWS is")).count();
    ensure!(times == 1, "the log says it {times} times:\n{}", said.join("\n"));
    Ok(())
}

/// Datagrams from so many ports: as many flows.
fn open_flows(target: SocketAddr, count: usize) -> Result<()> {
    const FIRST: u16 = 20_000;
    for port in (FIRST..).take(count) {
        UdpSocket::bind(("0.0.0.0", port))?.send_to(BYTES, target)?;
    }
    Ok(())
}

/// More addresses of nodes than there is room for: refused whole, loudly, and what was in force stays.
fn full() -> Result<()> {
    const ADDRESSES: u32 = 32_768;
    let mut scene = Scene::start(&[], CART)?;
    let before = reported(&scene)?;
    let address =
        |at| json!({"type": "InternalIP", "address": Ipv4Addr::from_bits(0x0b00_0000 + at).to_string()});
    let many = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "many"},
        "status": {"addresses": (0..ADDRESSES).map(address).collect::<Vec<Value>>()},
    });
    let mut objects: Vec<Value> = scene.world().nodes.iter().map(manifests::node).collect();
    objects.extend(scene.objects());
    objects.extend(serde_saphyr::from_multiple::<Value>(CART)?);
    objects.push(many);
    manifests::write(&scene.cluster.manifests().join("cluster.yaml"), &objects)?;
    let slow = Duration::from_secs(120);
    let line = until(&scene, "n2", "it is refused", slow, |line| line["rejected"].is_string())?;
    let rejected = line["rejected"].as_str().unwrap_or_default();
    let parts = ["devices do not fit into map LOCALS", "at most 32768", "have fewer nodes"];
    for part in parts {
        ensure!(rejected.contains(part), "{part}: {rejected}");
    }
    ensure!(line["inForce"] == false && line["acked"].is_null(), "{line:#}");
    ensure!(scene.cluster.status()?["inForce"] == false, "one node refuses and all is said to be well");
    let still = until(&scene, "n2", "it goes on reporting", REPORTED, |line| line["stale"] == false)?;
    ensure!(still["kernel"]["generation"] == before["acked"], "what was in force does not stay: {still:#}");
    scene.apply(CART).context("what fits again")?;
    Ok(())
}

/// A process that is stopped until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(id: u32) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(id)?).context("a process")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn silent() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let agent = scene.cluster.proxy("n2")?.id();
    reported(&scene)?;
    let stopped = Stopped::new(agent)?;
    let within = sluice_wire::STALE_AFTER + REPORTED;
    let line = until(&scene, "n2", "it is stale", within, |line| line["stale"] == true)?;
    ensure!(line["connected"] == true && line["inForce"] == false, "{line:#}");
    ensure!(has_warning(&line, "stale: connected, and silent about its kernel for "), "{line:#}");
    ensure!(line["kernel"]["ageSeconds"].as_u64() >= Some(20), "{line:#}");
    let status = scene.cluster.status()?;
    ensure!(status["inForce"] == false && status["nodes"]["n1"]["stale"] == false, "{status:#}");
    drop(stopped);
    let line = until(&scene, "n2", "it is not any more", REPORTED, |line| line["stale"] == false)?;
    ensure!(line["inForce"] == true && line["warnings"] == json!([]), "{line:#}");
    Ok(())
}

/// `sluice-proxy counters` in a node's network namespace.
fn counters(scene: &Scene, bpffs: &Path, more: &[&str]) -> Result<Output> {
    let node = scene.world().node("n2");
    let mut command = node.netns.command(binary("sluice-proxy")?);
    command.arg("counters").arg("--bpffs").arg(bpffs).args(more);
    Ok(command.output()?)
}

fn on_the_node() -> Result<()> {
    const DATAGRAMS: u64 = 5;
    let mut scene = Scene::start(&[], CART)?;
    let bpffs = scene.world().node("n2").bpffs.clone();
    let read = |scene: &Scene| -> Result<Value> {
        let output = counters(scene, &bpffs, &["-o", "json"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let denied = |read: &Value| refused(&json!({"kernel": {"packets": read["packets"]}}));
    let before = read(&scene)?;
    let target = scene.address("shop/cart", Family::V4, 5353);
    scene.world().pod("shop/intruder").netns.inside(|| open_flows(target, DATAGRAMS as usize))??;
    let mut after = Value::Null;
    eventually("they are counted", REPORTED, || {
        after = read(&scene)?;
        Ok(denied(&after) >= denied(&before) + DATAGRAMS)
    })?;
    let line = reported(&scene)?;
    for map in ["ROWS", "CLASSES", "SERVICES", "ENDPOINTS", "LOCALS"] {
        ensure!(
            after["maps"][map]["used"] == line["kernel"]["maps"][map]["used"],
            "{map}: {after:#}\n{line:#}"
        );
        ensure!(
            after["maps"][map]["max"] == line["kernel"]["maps"][map]["max"],
            "{map}: {after:#}\n{line:#}"
        );
    }
    let text = String::from_utf8(counters(&scene, &bpffs, &[])?.stdout)?;
    let first = format!("BPF ABI {} at {}, swap ", sluice_redirect::ABI_VERSION, bpffs.display());
    ensure!(text.starts_with(&first) && text.contains("\nROWS ") && !text.contains("vlan"), "{text}");
    let all = String::from_utf8(counters(&scene, &bpffs, &["--all"])?.stdout)?;
    ensure!(all.contains("\nvlan "), "{all}");

    // Nobody was disturbed, and nobody is needed.
    let node = until(&scene, "n2", "it is in force", REPORTED, |line| line["inForce"] == true)?;
    ensure!(node["kernel"]["drift"] == json!([]), "{node:#}");
    scene.cluster.take_proxy("n2")?.kill()?;
    ensure!(denied(&read(&scene)?) >= denied(&after), "without an agent");

    let told = |path: &Path| -> Result<String> {
        let output = counters(&scene, path, &[])?;
        ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    let nothing = told(&bpffs.join("none"))?;
    ensure!(nothing.contains("nothing is pinned at") && nothing.contains("sluice-proxy run"), "{nothing}");
    ensure!(told(scene.world().dir())?.contains("it is on no bpffs"), "a directory of files");
    let version = |version: u32| bpffs.join(format!("v{version}"));
    std::fs::rename(version(sluice_redirect::ABI_VERSION), version(999))?;
    let other = told(&bpffs)?;
    ensure!(other.contains("is of BPF ABI [999], and this build reads "), "{other}");
    ensure!(other.contains("/proc/PID/exe counters"), "{other}");
    std::fs::rename(version(999), version(sluice_redirect::ABI_VERSION))?;
    Ok(())
}
