//! Processes come and go: what stays in force, what is refused, and what comes back without anybody's help.

use crate::NEEDS;
use crate::requests::check_l4;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_tests::cluster::DRAINED;
use sluice_tests::harness;
use sluice_tests::peer::{Ask, Version, http_client, raw_client};
use sluice_tests::scene::{CART, Scene};
use sluice_tests::world::{Family, eventually};
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("proxy stopped: L3/L4 goes on, L7 is refused", NEEDS, || proxy_stopped(false)),
        harness::test("proxy killed: L3/L4 goes on, L7 is refused", NEEDS, || proxy_stopped(true)),
        harness::test("SIGTERM drains a request in flight", NEEDS, drains),
        harness::test("control stopped: what is in force stays", NEEDS, control_stopped),
    ]
}

const SOON: Duration = Duration::from_secs(5);
const NEVER: Duration = Duration::from_millis(1300);

fn proxy_stopped(killed: bool) -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let get = || Ask::new("GET", "/items");
    let target = scene.address("shop/cart", Family::V4, 8080);
    ensure!(scene.status("shop/frontend", target, get(), SOON)? == Some(200), "it does not begin well");
    let peers: Vec<u32> = scene.servers.iter().map(sluice_tests::Process::id).collect();
    let other = scene.cluster.proxy("n1")?.id();

    let mut proxy = scene.cluster.take_proxy("n2")?;
    let family = proxy.family();
    if killed {
        proxy.kill()?;
    } else {
        ensure!(proxy.terminate(DRAINED)?.success(), "the proxy did not end well:\n{}", proxy.tail(20));
    }
    eventually("nothing is left of the proxy", SOON, || {
        let alive = |pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
        };
        Ok(!family.iter().any(alive))
    })?;
    check_l4(&scene).context("with the proxy gone")?;
    for family in Family::BOTH {
        let target = scene.address("shop/cart", family, 8080);
        let status = scene.status("shop/frontend", target, get(), NEVER)?;
        ensure!(status != Some(200), "a flow that L7 rules govern passes unjudged");
    }
    let reached = scene.reached("shop/cart", 8080)?;
    ensure!(reached.1 == 1, "requests reached the server unjudged: {reached:?}");
    let billing = scene.address("shop/billing", Family::V4, 8080);
    ensure!(scene.status("shop/frontend", billing, get(), SOON)? == Some(200), "what is free is cut");

    scene.cluster.start_proxy("n2")?;
    eventually("traffic flows again, with nothing else restarted", Duration::from_secs(15), || {
        Ok(scene.status("shop/frontend", target, get(), Duration::from_millis(500))? == Some(200))
    })?;
    ensure!(
        scene.status("shop/frontend", target, Ask::new("DELETE", "/items"), SOON)? == Some(403),
        "unjudged"
    );
    check_l4(&scene).context("with the proxy back")?;
    let same = scene.servers.iter().map(sluice_tests::Process::id).collect::<Vec<u32>>() == peers;
    ensure!(same && scene.cluster.proxy("n1")?.id() == other, "something else was restarted");
    Ok(())
}

fn drains() -> Result<()> {
    const DELAY_MS: u64 = 1500;
    let mut scene = Scene::start(&[], CART)?;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let netns = scene.world().pod("shop/frontend").netns.clone();
    let mut proxy = scene.cluster.take_proxy("n2")?;
    std::thread::scope(|scope| {
        let in_flight = scope.spawn(move || {
            let asks = [Ask::new("GET", &format!("/items?delay_ms={DELAY_MS}"))];
            netns.block_on(|| http_client::ask(target, Version::Http1, &asks))?
        });
        eventually("the request is at the server", SOON, || Ok(scene.reached("shop/cart", 8080)?.1 == 1))?;
        let ended = proxy.terminate(DRAINED)?;
        ensure!(ended.success(), "the proxy did not end well: {ended}\n{}", proxy.tail(20));
        let answers = in_flight.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        ensure!(answers[0].status == 200, "the request in flight was cut: {answers:?}\n{}", proxy.tail(20));
        Ok(())
    })
}

fn control_stopped() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let target = scene.address("shop/cart", Family::V6, 8080);
    scene.cluster.stop_control()?;
    let check = |scene: &Scene| -> Result<()> {
        let allowed = scene.status("shop/frontend", target, Ask::new("GET", "/items"), SOON)?;
        let denied = scene.status("shop/frontend", target, Ask::new("PUT", "/items"), SOON)?;
        ensure!((allowed, denied) == (Some(200), Some(403)), "allowed {allowed:?}, denied {denied:?}");
        Ok(())
    };
    check(&scene).context("with control gone")?;
    check_l4(&scene).context("with control gone")?;
    // A proxy that starts meanwhile has the last snapshot on its disk.
    let mut proxy = scene.cluster.take_proxy("n2")?;
    proxy.terminate(DRAINED)?;
    scene.cluster.start_proxy("n2")?;
    eventually("the last snapshot is in force", Duration::from_secs(15), || {
        let quick = Duration::from_millis(500);
        Ok(scene.status("shop/frontend", target, Ask::new("GET", "/items"), quick)? == Some(200))
    })?;
    check(&scene).context("with a new proxy and no control")?;
    scene.cluster.start_control()?;
    let closed = CART.replace("methods: [GET]", "methods: [PUT]");
    scene.apply(&closed).context("with control back")?;
    let status = scene.status("shop/frontend", target, Ask::new("GET", "/items"), SOON)?;
    ensure!(status == Some(403), "a change after control came back is not in force: {status:?}");
    let client = &scene.world().pod("shop/intruder").netns;
    let intruder = client.inside(|| raw_client::tcp(target, b"GET /items HTTP/1.1\r\n\r\n", 1, NEVER))?;
    ensure!(!intruder.connected, "the intruder connects: {intruder:?}");
    Ok(())
}
