//! A node changes hands while requests are under way: none fails, long streams live on in the agent before, and that
//! one follows every change until they end.

use crate::NEEDS;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;
use sluice_tests::cluster::DRAINED;
use sluice_tests::harness;
use sluice_tests::peer::http_client::{self, Connection};
use sluice_tests::peer::{Ask, Version, grpc_client};
use sluice_tests::proto::shop::WatchCartRequest;
use sluice_tests::scene::{CART, Scene};
use sluice_tests::world::{Family, Netns, eventually};
use sluice_tests::{Process, World};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);
/// How long a new agent may take: it loads, starts a worker and writes rows on a machine that is busy.
const TAKEN: Duration = Duration::from_secs(30);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("a node changes hands under load", NEEDS, under_load),
        harness::test("a node that cannot be taken over stays where it is", NEEDS, taken_back),
    ]
}

/// What clients do all the while, and what went wrong.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answers: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn until_stopped(&self, what: &str, mut one: impl FnMut() -> Result<()>) {
        while !self.stop.load(Ordering::SeqCst) {
            match one() {
                Ok(()) => drop(self.answers.fetch_add(1, Ordering::SeqCst)),
                Err(error) => self.failures.lock().expect("not poisoned").push(format!("{what}: {error:#}")),
            }
        }
    }

    /// Requests over connections that are kept as long as the other end keeps them.
    fn keep_alive(&self, netns: &Netns, target: SocketAddr) -> Result<()> {
        netns.block_on(|| async {
            let mut kept: Option<Connection> = None;
            while !self.stop.load(Ordering::SeqCst) {
                let one = async {
                    let mut connection = match kept.take() {
                        Some(kept) => kept,
                        None => Connection::open(target).await.context("connect")?,
                    };
                    let answer = connection.send(&Ask::new("GET", "/items")).await?;
                    ensure!(answer.status == 200, "{answer:?}");
                    anyhow::Ok(connection.is_open().await.then_some(connection))
                };
                match one.await {
                    Ok(connection) => {
                        kept = connection;
                        self.answers.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(error) => {
                        self.failures.lock().expect("not poisoned").push(format!("keep-alive: {error:#}"));
                    }
                }
            }
        })
    }

    /// Several requests at once over a connection each time.
    fn multiplexed(&self, netns: &Netns, target: SocketAddr) {
        let asks: Vec<Ask> = (0..4).map(|number| Ask::new("GET", &format!("/items/{number}"))).collect();
        self.until_stopped("HTTP/2", || {
            let answers = netns.block_on(|| http_client::ask(target, Version::Http2, &asks))??;
            ensure!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
            Ok(())
        });
    }
}

/// A stream that counts what comes, until it ends.
fn watch(netns: &Netns, target: SocketAddr, came: &AtomicU64) -> Result<Option<tonic::Status>> {
    netns.block_on(|| async move {
        let mut client = grpc_client::connect(target).await?;
        let ask = WatchCartRequest { cart: "blue".to_owned(), count: u32::MAX, interval_ms: 20 };
        let mut stream = client.watch_cart(ask).await?.into_inner();
        loop {
            match stream.message().await {
                Ok(Some(_)) => drop(came.fetch_add(1, Ordering::SeqCst)),
                Ok(None) => return anyhow::Ok(None),
                Err(status) => return Ok(Some(status)),
            }
        }
    })?
}

/// A new agent in the place of a node's, which goes on. It serves by so many threads, and the one before by others.
fn change_hands(scene: &mut Scene, node: &str, threads: u8) -> Result<Process> {
    let mut old = scene.cluster.take_proxy(node)?;
    let mark = old.mark();
    scene.cluster.start_proxy_with(node, &["--threads", &threads.to_string()])?;
    scene
        .cluster
        .proxy(node)?
        .wait_line(0, TAKEN, "that it has the node", |line| line.contains("took the node over"))?;
    old.wait_line(mark, TAKEN, "that it drains", |line| line.contains("draining"))?;
    Ok(old)
}

fn under_load() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let netns = |world: &World, pod: &str| world.pod(pod).netns.clone();
    let (frontend, billing) = (netns(scene.world(), "shop/frontend"), netns(scene.world(), "shop/billing"));
    let targets = Family::BOTH.map(|family| scene.address("shop/cart", family, 8080));
    let grpc = scene.address("shop/cart", Family::V4, 9090);
    let (load, came) = (Load::default(), AtomicU64::new(0));
    let flows = |what: &str| {
        let before = came.load(Ordering::SeqCst);
        eventually(what, SOON, || Ok(came.load(Ordering::SeqCst) > before + 3))
    };
    std::thread::scope(|scope| {
        let (load, came) = (&load, &came);
        let (frontend, billing) = (&frontend, &billing);
        let stream = scope.spawn(move || watch(billing, grpc, came));
        let clients: Vec<_> =
            targets.iter().map(|target| scope.spawn(move || load.keep_alive(frontend, *target))).collect();
        scope.spawn(move || load.multiplexed(frontend, targets[0]));
        let mut story = || -> Result<()> {
            flows("the stream begins")?;
            // Both ends' nodes; the one with the stream twice.
            change_hands(&mut scene, "n1", 3)?.wait(DRAINED)?;
            let mut first = change_hands(&mut scene, "n2", 5)?;
            flows("the stream lives on in the agent before")?;
            let mut second = change_hands(&mut scene, "n2", 1)?;
            flows("and on")?;
            // The second one had no long stream: what it had ends by itself, and so does it.
            ensure!(second.wait(DRAINED)?.success(), "it did not end well:\n{}", second.tail(20));
            ensure!(first.running()?, "the agent with the stream ended:\n{}", first.tail(20));
            flows("with the others gone")?;
            // It hears of what changes, and judges by it.
            scene.apply(&CART.replace("[GetCart, WatchCart]", "[GetCart]"))?;
            eventually("the stream is closed", SOON, || Ok(stream.is_finished()))?;
            ensure!(first.wait(DRAINED)?.success(), "it did not end well:\n{}", first.tail(20));
            Ok(())
        };
        let result = story();
        load.stop.store(true, Ordering::SeqCst);
        result.inspect_err(|_| eprintln!("{}", scene.cluster.tails()))?;
        for client in clients {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        let ended = stream.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let status = ended.context("the stream ended as if all were well")?;
        ensure!(status.code() == tonic::Code::PermissionDenied, "{status:?}");
        let failures = load.failures.lock().expect("not poisoned");
        ensure!(failures.is_empty(), "{} failed: {failures:#?}", failures.len());
        ensure!(load.answers.load(Ordering::SeqCst) > 100, "hardly any load");
        Ok(())
    })
}

/// One that dies while it takes over leaves everything as it was.
fn taken_back() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let allowed = |scene: &Scene| -> Result<()> {
        let status = scene.status("shop/frontend", target, Ask::new("GET", "/items"), SOON)?;
        ensure!(status == Some(200), "{status:?}");
        Ok(())
    };
    allowed(&scene)?;
    let mut old = scene.cluster.take_proxy("n2")?;
    let mark = old.mark();
    scene.cluster.start_proxy("n2")?;
    // As soon as the old one gives, wherever the new one is by then.
    old.wait_line(mark, TAKEN, "that it gives", |line| line.contains("another agent takes the node over"))?;
    let mut new = scene.cluster.take_proxy("n2")?;
    let family = new.family();
    new.kill()?;
    for process in family {
        // Its worker goes with it; if it has not yet been started, there is none.
        let _ = rustix::process::Pid::from_raw(process)
            .map(|pid| rustix::process::kill_process(pid, Signal::KILL));
    }
    old.wait_line(mark, TAKEN, "that it goes on", |line| line.contains("this one goes on"))?;
    for _ in 0..5 {
        allowed(&scene)?;
    }
    scene.cluster.put_proxy("n2", old);
    scene.apply(&CART.replace("methods: [GET]", "methods: [PUT]"))?;
    let status = scene.status("shop/frontend", target, Ask::new("GET", "/items"), SOON)?;
    ensure!(status == Some(403), "the agent that went on does not follow changes: {status:?}");
    // And another one may come.
    let mut old = change_hands(&mut scene, "n2", 4)?;
    ensure!(old.wait(DRAINED)?.success(), "it did not end well:\n{}", old.tail(20));
    let status = scene.status("shop/frontend", target, Ask::new("PUT", "/items"), SOON)?;
    ensure!(status == Some(200), "{status:?}");
    Ok(())
}
