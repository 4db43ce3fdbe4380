//! Processes come and go: what stays in force, what is refused, and what comes back without anybody's help.

use crate::NEEDS;
use crate::requests::check_l4;
use crate::whole::{Objects, Whole};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sluice_tests::PodSpec;
use sluice_tests::cluster::DRAINED;
use sluice_tests::harness;
use sluice_tests::peer::{Ask, Version, grpc_client, http_client, raw_client};
use sluice_tests::proto::shop::WatchCartRequest;
use sluice_tests::scene::{CART, Scene};
use sluice_tests::world::{Family, binary, eventually};
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("proxy stopped: L3/L4 goes on, L7 is refused", NEEDS, || proxy_stopped(false)),
        harness::test("proxy killed: L3/L4 goes on, L7 is refused", NEEDS, || proxy_stopped(true)),
        harness::test("SIGTERM drains a request in flight", NEEDS, drains),
        harness::test("control stopped: what is in force stays", NEEDS, control_stopped),
        harness::test("an address that changes hands", NEEDS, address_changes_hands),
        harness::test("a worker that was made to ask for too much", NEEDS, worker_apart),
        harness::test("a stream ends with its permission", NEEDS, stream_is_revoked),
        harness::test("uninstall: nothing is left of a proxy that was killed", NEEDS, uninstalled),
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

/// The worker of a real agent holds nothing of the kernel's, and is started again when it is killed for asking.
fn worker_apart() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let get = || Ask::new("GET", "/items");
    ensure!(scene.status("shop/frontend", target, get(), SOON)? == Some(200), "it does not begin well");
    let worker = |scene: &mut Scene| -> Result<i32> {
        let family = scene.cluster.proxy("n2")?.family();
        family.get(1).copied().context("no worker runs")
    };
    let kinds = |pid: i32| -> Result<Vec<String>> {
        let links = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
        let read = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
        Ok(read.map(|kind| kind.to_string_lossy().into_owned()).collect())
    };
    let (first, agent) = (worker(&mut scene)?, i32::try_from(scene.cluster.proxy("n2")?.id())?);
    let bpf = |kinds: &[String]| kinds.iter().filter(|kind| kind.contains("bpf")).count();
    ensure!(bpf(&kinds(agent)?) > 10, "the agent holds its maps: {:?}", kinds(agent)?);
    ensure!(bpf(&kinds(first)?) == 0, "the worker holds some as well: {:?}", kinds(first)?);
    // No way to the node, but by what it was given: sockets, and what waits for them.
    let strange: Vec<String> = kinds(first)?
        .into_iter()
        .filter(|kind| {
            !["socket:", "anon_inode:[event", "pipe:", "/dev/null"]
                .iter()
                .any(|known| kind.starts_with(known))
                && !kind.contains("proxy-n2")
        })
        .collect();
    ensure!(strange.is_empty(), "{strange:?}");
    let status = std::fs::read_to_string(format!("/proc/{first}/status"))?;
    for line in
        ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000002000", "Uid:\t65525\t65525\t65525\t65525"]
    {
        ensure!(status.lines().any(|here| here == line), "no {line:?} in\n{status}");
    }
    // As the kernel ends it for such a call.
    let pid = rustix::process::Pid::from_raw(first).context("a process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::SYS)?;
    scene.cluster.proxy("n2")?.wait_line(0, SOON, "why it is gone", |line| line.contains("(seccomp)"))?;
    eventually("another one serves", Duration::from_secs(15), || {
        Ok(scene.status("shop/frontend", target, get(), Duration::from_millis(500))? == Some(200))
    })?;
    ensure!(worker(&mut scene)? != first, "it is the same");
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

/// A pod goes and another gets its address: nothing of the first one's permissions stays.
fn address_changes_hands() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let policies: Vec<Value> = serde_saphyr::from_multiple(CART)?;
    let before = scene.world().pod("shop/frontend").clone();
    let target = scene.address("shop/cart", Family::V4, 8080);
    let get = || Ask::new("GET", "/items");
    ensure!(scene.status("shop/frontend", target, get(), SOON)? == Some(200), "it does not begin well");

    scene.servers.remove(0).kill()?;
    scene.cluster.world.delete_pod("shop/frontend")?;
    let mut objects = scene.objects();
    objects.extend(policies.iter().cloned());
    scene.cluster.apply(&objects).context("without the frontend")?;

    scene.cluster.world.add_pod(&PodSpec::new("n1", "shop/stranger"))?;
    ensure!(scene.world().pod("shop/stranger").v4 == before.v4, "the address was not given again");
    // Not known to anybody yet: an address of the pods' ranges without a pod.
    let unknown = scene.status("shop/stranger", target, get(), NEVER)?;
    ensure!(unknown != Some(200), "a pod that nobody knows is taken for its predecessor");
    let mut objects = scene.objects();
    objects.extend(policies.iter().cloned());
    scene.cluster.apply(&objects).context("with the stranger")?;
    let stranger = scene.status("shop/stranger", target, get(), NEVER)?;
    ensure!(stranger != Some(200), "the stranger has its predecessor's permissions");
    ensure!(scene.reached("shop/cart", 8080)?.1 == 1, "a request of the stranger reached the server");

    scene.cluster.world.delete_pod("shop/stranger")?;
    scene.cluster.world.add_pod(&PodSpec::new("n1", "shop/frontend"))?;
    let mut objects = scene.objects();
    objects.extend(policies);
    scene.cluster.apply(&objects).context("with a new frontend")?;
    ensure!(
        scene.status("shop/frontend", target, get(), SOON)? == Some(200),
        "the new frontend is not let in"
    );
    Ok(())
}

/// Replies of a stream that nobody closes: it ends by itself long after the test has failed.
const ENOUGH: u32 = 1000;

/// A gRPC stream that its policy no longer allows is closed, though no request comes that could be judged.
fn stream_is_revoked() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let target = scene.address("shop/cart", Family::V4, 9090);
    let netns = scene.world().pod("shop/billing").netns.clone();
    let (replied, replies) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let stream = scope.spawn(move || {
            netns.block_on(|| async move {
                let mut client = grpc_client::connect(target).await?;
                let ask = WatchCartRequest { cart: "blue".to_owned(), count: ENOUGH, interval_ms: 20 };
                let mut stream = client.watch_cart(ask).await?.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(_)) => drop(replied.send(())),
                        Ok(None) => return anyhow::Ok(None),
                        Err(status) => return Ok(Some(status)),
                    }
                }
            })?
        });
        for _ in 0..5 {
            replies.recv_timeout(SOON).context("the stream does not flow")?;
        }
        scene.apply(&CART.replace("[GetCart, WatchCart]", "[GetCart]"))?;
        eventually("the stream is closed", SOON, || Ok(stream.is_finished()))?;
        let ended = stream.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let status = ended.context("the stream ended as if all were well")?;
        ensure!(status.code() == tonic::Code::PermissionDenied, "{status:?}");
        Ok(())
    })
}

/// The command that an operator has. What was there before any of it is what is there after.
fn uninstalled() -> Result<()> {
    let world = Scene::build()?;
    let (node, prefix) = (world.node("n2").clone(), world.prefix().to_owned());
    let state = world.dir().join("state-n2");
    let places = [node.bpffs.clone(), state.clone()];
    let before = Whole::of(&node.netns, &places, &prefix)?;
    let mut scene = Scene::start_in(world, &[], CART)?;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let status =
        |scene: &Scene, method: &str| scene.status("shop/frontend", target, Ask::new(method, "/items"), SOON);
    ensure!(status(&scene, "GET")? == Some(200) && status(&scene, "DELETE")? == Some(403), "not in force");
    check_l4(&scene)?;
    let uninstall = || -> Result<std::process::Output> {
        let mut command = node.netns.command(binary("sluice-proxy")?);
        command.args(["uninstall", "--node", "n2", "--bpffs"]).arg(&node.bpffs).arg("--state").arg(&state);
        Ok(command.output()?)
    };
    // Not from under an agent that runs, which would put it back.
    let refused = uninstall()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("stop it first"), "{refused:?}");
    ensure!(status(&scene, "GET")? == Some(200) && status(&scene, "DELETE")? == Some(403), "it was harmed");
    let version = std::fs::read_dir(&node.bpffs)?.flatten().map(|entry| entry.path().join("maps"));
    let maps = version.filter(|maps| maps.exists()).last().context("nothing is pinned")?;
    let objects = Objects::of(&node.netns, &maps)?;
    scene.cluster.take_proxy("n2")?.kill()?;
    let done = uninstall()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut changes = Vec::new();
    eventually("everything is as it was", SOON, || {
        changes = Whole::of(&node.netns, &places, &prefix)?.since(&before);
        Ok(changes.is_empty() && objects.alive() == Objects::default())
    })
    .with_context(|| format!("{changes:#?} {:?}", objects.alive()))?;
    ensure!(status(&scene, "DELETE")? == Some(200), "something is still enforced");
    Ok(())
}
