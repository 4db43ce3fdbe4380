//! Changes under traffic: policies flip and proxies die while clients go on. At no instant may anything pass that
//! no policy allowed.

use crate::NEEDS;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use sluice_tests::cluster::DRAINED;
use sluice_tests::harness;
use sluice_tests::peer::http_client::Connection;
use sluice_tests::peer::{Ask, raw_client};
use sluice_tests::scene::{CART, Scene};
use sluice_tests::world::{Family, eventually};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("policies flip under traffic", NEEDS, policies_flip),
        harness::test("proxies die under traffic", NEEDS, proxies_die),
        harness::test("a pod that is made again is enforced", NEEDS, made_again),
        harness::test("an interface that is replaced unsaid is enforced", NEEDS, replaced_unsaid),
    ]
}

/// Connections that go on all the time.
const CLIENTS: usize = 8;
/// Changes of policy.
const FLIPS: usize = 12;
/// Restarts.
const RESTARTS: usize = 4;
/// The pause between two requests of a client.
const PACE: Duration = Duration::from_millis(2);
const SOON: Duration = Duration::from_secs(15);

/// What came, by method and status; 0 is no answer.
type Tally = Mutex<BTreeMap<(&'static str, u16), usize>>;

fn count(tally: &Tally, is: impl Fn(&'static str, u16) -> bool) -> usize {
    let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.iter().filter(|((method, status), _)| is(method, *status)).map(|(_, count)| count).sum()
}

/// A client that asks in turn, and opens a new connection where it lost the old one.
async fn client(target: SocketAddr, tally: &Tally, stop: &AtomicBool) {
    let mut connection = None;
    for method in ["GET", "DELETE", "PUT"].into_iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if connection.is_none() {
            let open = tokio::time::timeout(Duration::from_millis(300), Connection::open(target));
            connection = open.await.ok().and_then(Result::ok);
        }
        let status = match &mut connection {
            Some(open) => open.send(&Ask::new(method, "/items")).await.map_or(0, |answer| answer.status),
            None => 0,
        };
        if status == 0 {
            connection = None;
        }
        *tally.lock().unwrap_or_else(PoisonError::into_inner).entry((method, status)).or_default() += 1;
        tokio::time::sleep(PACE).await;
    }
}

/// Runs the clients around some work.
fn under_traffic(scene: &mut Scene, work: impl FnOnce(&mut Scene, &Tally) -> Result<()>) -> Result<Tally> {
    let target = scene.address("shop/cart", Family::V4, 8080);
    let netns = scene.world().pod("shop/frontend").netns.clone();
    let (tally, stop) = (Tally::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            netns.block_on(|| async {
                futures_util::future::join_all((0..CLIENTS).map(|_| client(target, &tally, &stop))).await;
            })
        });
        let done = work(scene, &tally);
        stop.store(true, Ordering::Relaxed);
        traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done
    })?;
    Ok(tally)
}

fn nothing_deleted(scene: &Scene, tally: &Tally) -> Result<()> {
    ensure!(
        count(tally, |method, status| method == "DELETE" && status == 200) == 0,
        "a DELETE passed: {tally:?}"
    );
    let deleted = scene.servers[1].lines_since(0).into_iter().find(|line| line.contains("\"DELETE\""));
    ensure!(deleted.is_none(), "a DELETE reached the server: {deleted:?}");
    let tried = count(tally, |method, _| method == "DELETE");
    ensure!(tried > 0, "nothing was tried: {tally:?}");
    Ok(())
}

fn policies_flip() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let other = CART.replace("methods: [GET]", "methods: [PUT]");
    let tally = under_traffic(&mut scene, |scene, tally| {
        for flip in 0..FLIPS {
            let (policies, allowed) = if flip % 2 == 0 { (&*other, "PUT") } else { (CART, "GET") };
            scene.apply(policies)?;
            let passed = || count(tally, |method, status| method == allowed && status == 200);
            let before = passed();
            eventually("the other method passes", SOON, || Ok(passed() > before))?;
        }
        Ok(())
    })?;
    nothing_deleted(&scene, &tally)?;
    let lost = count(&tally, |_, status| ![200, 403].contains(&status));
    ensure!(lost == 0, "a change of policy cost {lost} requests: {tally:?}");
    Ok(())
}

fn proxies_die() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let tally = under_traffic(&mut scene, |scene, tally| {
        for restart in 0..RESTARTS {
            let mut proxy = scene.cluster.take_proxy("n2")?;
            if restart % 2 == 0 {
                proxy.kill()?;
            } else {
                ensure!(proxy.terminate(DRAINED)?.success(), "it does not end well:\n{}", proxy.tail(20));
            }
            // Some requests must meet the gap, else nothing is shown.
            let failed = || count(tally, |_, status| status == 0);
            let before = failed();
            eventually("requests fail while there is no proxy", SOON, || Ok(failed() > before + CLIENTS))?;
            scene.cluster.start_proxy("n2")?;
            let passed = || count(tally, |method, status| method == "GET" && status == 200);
            let before = passed();
            eventually("requests pass again", SOON, || Ok(passed() > before + CLIENTS))?;
        }
        Ok(())
    })?;
    nothing_deleted(&scene, &tally)?;
    let put = count(&tally, |method, status| method == "PUT" && status == 200);
    ensure!(put == 0, "{put} requests passed that no policy allows: {tally:?}");
    Ok(())
}

/// A pod goes and comes back with the same name and address: once control says that it is in force, it is so on
/// the new interface, and not only on the one that is gone.
fn made_again() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    for round in 0..3 {
        scene.servers.remove(1).kill()?;
        scene.cluster.world.delete_pod("shop/cart")?;
        scene.cluster.world.add_pod(&sluice_tests::PodSpec::new("n2", "shop/cart"))?;
        let peer = scene.cluster.world.serve("shop/cart", &["--http", "[::]:8080", "--tcp", "[::]:5432"])?;
        scene.servers.insert(1, peer);
        // Nothing but its UID is another.
        scene.apply(CART)?;
        for port in [8080, 5432] {
            let target = scene.address("shop/cart", Family::V4, port);
            let intruder = &scene.world().pod("shop/intruder").netns;
            let answer =
                intruder.inside(|| raw_client::tcp(target, b"GET / HTTP/1.1\r\n\r\n", 1, PACE * 300))?;
            ensure!(!answer.connected, "round {round}: the intruder connects to {port}: {answer:?}");
        }
        let target = scene.address("shop/cart", Family::V4, 8080);
        let status = scene.status("shop/frontend", target, Ask::new("GET", "/items"), SOON)?;
        ensure!(status == Some(200), "round {round}: the frontend is not let in: {status:?}");
        let denied = scene.status("shop/frontend", target, Ask::new("DELETE", "/items"), SOON)?;
        ensure!(denied == Some(403), "round {round}: {denied:?}");
    }
    Ok(())
}

/// The same, but nobody says so: the manifests stay as they are, as when a runtime makes a sandbox again.
fn replaced_unsaid() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    scene.servers.remove(1).kill()?;
    scene.cluster.world.delete_pod("shop/cart")?;
    scene.cluster.world.add_pod(&sluice_tests::PodSpec::new("n2", "shop/cart"))?;
    scene
        .servers
        .push(scene.cluster.world.serve("shop/cart", &["--http", "[::]:8080", "--tcp", "[::]:5432"])?);
    let target = scene.address("shop/cart", Family::V4, 8080);
    let intruder = scene.world().pod("shop/intruder").netns.clone();
    eventually("the intruder is kept out of the new interface", SOON, || {
        let answer = intruder.inside(|| raw_client::tcp(target, b"GET / HTTP/1.1\r\n\r\n", 1, PACE * 200))?;
        Ok(!answer.connected)
    })?;
    let status = scene.status("shop/frontend", target, Ask::new("GET", "/items"), SOON)?;
    ensure!(status == Some(200), "the frontend is not let in: {status:?}");
    let denied = scene.status("shop/frontend", target, Ask::new("DELETE", "/items"), SOON)?;
    ensure!(denied == Some(403), "{denied:?}");
    Ok(())
}
