//! Request by request: keep-alive, streams, nothing of a denied one at the server, and what never enters the
//! proxy.

use crate::NEEDS;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;
use sluice_tests::cluster::is_of_the_kernel;
use sluice_tests::harness;
use sluice_tests::peer::http_client::Connection;
use sluice_tests::peer::{Ask, Version, grpc_client, raw_client};
use sluice_tests::scene::{CART, Scene};
use sluice_tests::world::{Family, eventually};
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("the server sees the client's address", NEEDS, server_sees_client),
        harness::test("keep-alive is judged by request", NEEDS, keep_alive),
        harness::test("streams are judged one by one", NEEDS, streams),
        harness::test("not one byte of a denied request", NEEDS, not_one_byte),
        harness::test("grpc is refused in its own words", NEEDS, grpc),
        harness::test("what no L7 rule governs never enters the proxy", NEEDS, past_the_proxy),
        harness::test("a policy changes under an open connection", NEEDS, live_change),
        harness::test("audit lets pass and says what it would deny", NEEDS, audit),
        harness::test("bad manifests leave the rest in force", NEEDS, bad_manifests),
    ]
}

/// How long a client waits for its next request.
const IDLE: Duration = Duration::from_secs(20);
/// Long enough for anything that must come.
const SOON: Duration = Duration::from_secs(5);
/// Long enough for what must not come: a second SYN goes out after a second.
const NEVER: Duration = Duration::from_millis(1300);

fn server_sees_client() -> Result<()> {
    let scene = Scene::start(&[], CART)?;
    for (family, version) in Family::BOTH.into_iter().flat_map(|f| [(f, Version::Http1), (f, Version::Http2)])
    {
        let target = scene.address("shop/cart", family, 8080);
        let answers = scene.http("shop/frontend", target, version, &[Ask::new("GET", "/items")])?;
        let client = scene.world().pod("shop/frontend").ip(family).to_string();
        let answer = answers.first().context("no answer")?;
        ensure!(answer.status == 200 && answer.json()["peer"] == client.as_str(), "{client}: {answer:?}");
        let headers = answer.json()["headers"].clone();
        let invented = headers.as_object().into_iter().flatten().filter(|(name, _)| *name != "host");
        ensure!(invented.count() == 0, "header fields that nobody sent: {headers}");
    }
    Ok(())
}

fn keep_alive() -> Result<()> {
    let scene = Scene::start(&[], CART)?;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let asks: Vec<Ask> = (0..30)
        .map(|number| match number % 3 {
            0 => Ask::new("GET", &format!("/items/{number}")),
            1 => Ask::new("POST", &format!("/items/{number}")),
            _ => Ask::new("GET", &format!("/admin/{number}")),
        })
        .collect();
    let answers = scene.http("shop/frontend", target, Version::Http1, &asks)?;
    for answer in &answers {
        let want = if answer.index.is_multiple_of(3) { 200 } else { 403 };
        ensure!(answer.status == want, "request {} of one connection: {answer:?}", answer.index);
    }
    let first = answers[0].json()["connection"].clone();
    let same = answers.iter().filter(|answer| answer.status == 200).all(|a| a.json()["connection"] == first);
    ensure!(same, "the server's side was opened more than once: {answers:?}");
    ensure!(scene.reached("shop/cart", 8080)?.1 == 10, "{:?}", scene.reached("shop/cart", 8080)?);
    Ok(())
}

fn streams() -> Result<()> {
    const STREAMS: usize = 120;
    let scene = Scene::start(&[], CART)?;
    let target = scene.address("shop/cart", Family::V6, 8080);
    let ask = |number: usize| {
        let method = if number.is_multiple_of(2) { "GET" } else { "DELETE" };
        Ask::new(method, &format!("/items/{number}"))
    };
    let asks: Vec<Ask> = (0..STREAMS).map(ask).collect();
    let answers = scene.http("shop/frontend", target, Version::Http2, &asks)?;
    for answer in &answers {
        let want = if answer.index.is_multiple_of(2) { 200 } else { 403 };
        ensure!(answer.status == want, "stream {}: {answer:?}", answer.index);
        let path = format!("/items/{}", answer.index);
        ensure!(want == 403 || answer.json()["path"] == path.as_str(), "streams are mixed up: {answer:?}");
    }
    ensure!(
        scene.reached("shop/cart", 8080)?.1 == STREAMS as u64 / 2,
        "{:?}",
        scene.reached("shop/cart", 8080)?
    );
    Ok(())
}

fn not_one_byte() -> Result<()> {
    let scene = Scene::start(&[], CART)?;
    let mut body = Ask::new("POST", "/items").header("content-type", "text/plain");
    body.body = "x".repeat(100_000);
    let denied = [
        Ask::new("GET", "/admin"),
        Ask::new("DELETE", "/items"),
        Ask::new("GET", "/items%2f..%2fadmin"),
        body,
    ];
    for (family, version) in Family::BOTH.into_iter().flat_map(|f| [(f, Version::Http1), (f, Version::Http2)])
    {
        let target = scene.address("shop/cart", family, 8080);
        for ask in &denied {
            let answers = scene.http("shop/frontend", target, version, std::slice::from_ref(ask))?;
            ensure!(answers.first().is_some_and(|answer| answer.status == 403), "{ask:?}: {answers:?}");
        }
    }
    // Bytes that are no HTTP, or not yet a whole request, on a port that L7 rules govern.
    let target = scene.address("shop/cart", Family::V4, 8080);
    let client = &scene.world().pod("shop/frontend").netns;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"\x00\xff\x00\xff",
        b"GET /items HTTP/1.1\r\nHost: x\r\nContent-Le",
    ] {
        let answer =
            client.inside(|| raw_client::tcp(target, bytes, usize::MAX, Duration::from_millis(700)))?;
        ensure!(answer.connected, "the connection is taken, to be judged: {answer:?}");
    }
    let reached = scene.reached("shop/cart", 8080)?;
    ensure!(reached == (0, 0), "denied requests reached the server: {reached:?}");
    let answers = scene.http("shop/frontend", target, Version::Http1, &[Ask::new("GET", "/items")])?;
    ensure!(answers[0].status == 200 && scene.reached("shop/cart", 8080)?.1 == 1, "{answers:?}");
    Ok(())
}

fn grpc() -> Result<()> {
    let scene = Scene::start(&[], CART)?;
    for family in Family::BOTH {
        let target = scene.address("shop/cart", family, 9090);
        let outcomes = scene.world().pod("shop/billing").netns.block_on(|| async {
            let mut client = grpc_client::connect(target).await?;
            let mut outcomes = Vec::new();
            for method in ["GetCart", "DeleteItem", "WatchCart", "DeleteItem", "GetCart"] {
                outcomes.push(grpc_client::call(&mut client, method, "blue", 5).await?);
            }
            anyhow::Ok(outcomes)
        })??;
        let codes: Vec<i32> = outcomes.iter().map(|outcome| outcome.code).collect();
        ensure!(codes == [0, 7, 0, 7, 0], "{outcomes:?}");
        ensure!(outcomes[2].replies.len() == 5, "the stream was cut: {outcomes:?}");
        let client = scene.world().pod("shop/billing").ip(family).to_string();
        ensure!(outcomes[0].replies[0].peer == client, "{outcomes:?}");
    }
    let denied = scene.servers[1].lines_since(0).iter().any(|line| line.contains("DeleteItem"));
    ensure!(!denied, "a denied call reached the server");
    Ok(())
}

fn past_the_proxy() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let mark = scene.cluster.mark();
    let target = scene.address("shop/cart", Family::V4, 8080);
    // Frozen proxies, workers and all, take nothing: what goes through them stalls.
    for node in ["n1", "n2"] {
        let proxy = scene.cluster.proxy(node)?;
        ensure!(proxy.family().len() > 1, "the proxy has no worker to be frozen");
        proxy.signal_all(Signal::STOP)?;
    }
    let frozen = check_l4(&scene);
    let stalled = scene.http("shop/frontend", target, Version::Http1, &[Ask::new("GET", "/items")]);
    for node in ["n1", "n2"] {
        scene.cluster.proxy(node)?.signal_all(Signal::CONT)?;
    }
    frozen?;
    let stalled = stalled.is_err() || stalled.is_ok_and(|answers| answers[0].status == 0);
    ensure!(stalled, "a request was answered while the proxies were frozen");
    // A record of a request that does go through them shows that records come.
    let answers = scene.http("shop/frontend", target, Version::Http1, &[Ask::new("GET", "/items")])?;
    ensure!(answers[0].status == 200, "{answers:?}");
    scene.cluster.wait_record(&mark, "GET /items", |record| record["path"] == "/items")?;
    let mut records = scene.cluster.records_since(&mark);
    records.retain(|record| !is_of_the_kernel(record));
    let ports: Vec<&Value> = records.iter().map(|record| &record["destination"]["port"]).collect();
    ensure!(ports.iter().all(|port| **port == 8080), "other flows entered the proxy: {records:#?}");
    Ok(())
}

/// What L3/L4 rules allow flows, and what they deny does not.
pub(crate) fn check_l4(scene: &Scene) -> Result<()> {
    for family in Family::BOTH {
        let cart = |port| scene.address("shop/cart", family, port);
        ensure!(scene.tcp("shop/frontend", cart(5432), SOON)?, "TCP 5432 does not pass");
        ensure!(scene.udp("shop/frontend", cart(5353), SOON)?, "UDP 5353 does not pass");
        let client = &scene.world().pod("shop/frontend").netns;
        let greeted = client.inside(|| raw_client::tcp(cart(3306), b"", 11, SOON))?;
        ensure!(greeted.received == b"220 hello\r\n", "a server that speaks first is not heard: {greeted:?}");
        let billing = scene.address("shop/billing", family, 8080);
        ensure!(scene.ping("shop/frontend", billing, SOON)?, "ping does not pass");
        ensure!(!scene.udp("shop/intruder", cart(5353), NEVER / 3)?, "the intruder's datagram passes");
        ensure!(!scene.tcp("shop/intruder", cart(5432), NEVER)?, "the intruder's connection passes");
        ensure!(!scene.ping("shop/frontend", cart(0), NEVER / 3)?, "a ping that no rule names passes");
    }
    Ok(())
}

fn live_change() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let netns = scene.world().pod("shop/frontend").netns.clone();
    let closed = CART.replace("methods: [GET]", "methods: [PUT]");
    // The client's runtime stays for the whole test, so that the connection does.
    let (ask, mut asked) = tokio::sync::mpsc::channel::<Ask>(1);
    let (answer, answered) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            netns.block_on(|| async move {
                let mut connection = Connection::open(target).await?;
                // A test that failed sends nothing more: then this ends too.
                while let Ok(Some(ask)) = tokio::time::timeout(IDLE, asked.recv()).await {
                    let got = connection.send(&ask).await.map(|answer| answer.status);
                    answer.send(got).context("the test is over")?;
                }
                anyhow::Ok(())
            })
        });
        let status = |method: &str| -> Result<u16> {
            ask.blocking_send(Ask::new(method, "/items"))?;
            answered.recv_timeout(SOON).context("no answer")?
        };
        ensure!(status("GET")? == 200 && status("PUT")? == 403, "the first policy is not in force");
        scene.apply(&closed)?;
        ensure!(
            status("GET")? == 403 && status("PUT")? == 200,
            "the change does not reach the open connection"
        );
        scene.apply(CART)?;
        ensure!(status("GET")? == 200 && status("PUT")? == 403, "the change back does not");
        drop(ask);
        Ok(())
    })
}

fn audit() -> Result<()> {
    let scene = Scene::start(
        &[],
        &CART.replace(
            "spec:\n  podSelector: { matchLabels: { app: cart } }",
            "spec:\n  mode: Audit\n  podSelector: { matchLabels: { app: cart } }",
        ),
    )?;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let mark = scene.cluster.mark();
    let asks = [Ask::new("GET", "/items"), Ask::new("DELETE", "/items")];
    let answers = scene.http("shop/frontend", target, Version::Http1, &asks)?;
    ensure!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    let allowed = scene.cluster.wait_record(&mark, "GET", |record| record["method"] == "GET")?;
    ensure!(allowed["verdict"] == "allow", "{allowed:#}");
    let audited = scene.cluster.wait_record(&mark, "DELETE", |record| record["method"] == "DELETE")?;
    ensure!(audited["verdict"] == "audit", "{audited:#}");
    let finding = &audited["wouldDeny"][0];
    ensure!(finding["policy"] == "L7NetworkPolicy/shop/cart", "{audited:#}");
    let miss = finding["nearestMiss"].as_str().unwrap_or_default();
    ensure!(miss.contains("DELETE"), "the nearest miss does not say why: {audited:#}");
    // Bytes that cannot be read fail open where only audit governs.
    ensure!(scene.tcp("shop/frontend", scene.address("shop/cart", Family::V4, 5432), SOON)?, "raw bytes");
    Ok(())
}

fn bad_manifests() -> Result<()> {
    let scene = Scene::start(&[], CART)?;
    let bad = scene.cluster.manifests().join("bad.yaml");
    let text = "apiVersion: policy.sluice.dev/v1alpha1\nkind: L7NetworkPolicy\nmetadata: { name: bad, namespace: shop }\nspec:\n  podSelector: { matchLabels: { app: billing } }\n  ingress:\n  - name: broken\n    ports: [ { port: 8080 } ]\n    rules: { http: [ { path: { type: RegularExpression, value: \"(\" } } ] }\n";
    sluice_tests::manifests::replace(&bad, text)?;
    eventually("the problem is told with its file and line", SOON, || {
        let problems = scene.cluster.status()?["problems"].clone();
        let told = problems.as_array().into_iter().flatten().any(|problem| {
            let file = problem["file"].as_str().is_some_and(|file| file.ends_with("bad.yaml"));
            file && problem["line"] == 9 && !problem["remedy"].as_str().unwrap_or_default().is_empty()
        });
        Ok(told)
    })?;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let asks = [Ask::new("GET", "/items"), Ask::new("DELETE", "/items")];
    let answers = scene.http("shop/frontend", target, Version::Http1, &asks)?;
    let codes: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    ensure!(codes == [200, 403], "what was good is not in force any more: {answers:?}");
    Ok(())
}
