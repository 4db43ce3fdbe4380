//! Many at once and much at once: nothing hangs, nothing is mixed up, nothing is cut short.
//!
//! No rates are asserted: only that everything comes out right before a deadline.

use crate::NEEDS;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sluice_tests::harness;
use sluice_tests::peer::http_client::Connection;
use sluice_tests::peer::{Ask, Version};
use sluice_tests::scene::{CART, Scene};
use sluice_tests::world::Family;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("long bodies arrive whole", NEEDS, long_bodies),
        harness::test("many connections at once", NEEDS, many_connections),
        harness::test("a relabelled pod loses its way in an open connection", NEEDS, relabelled),
    ]
}

/// How long a client waits for its next request.
const IDLE: Duration = Duration::from_secs(20);
/// A body that is larger than every buffer on its way.
const LONG: usize = 8 * 1024 * 1024;
/// Connections at once.
const CONNECTIONS: usize = 200;
/// Requests on each.
const REQUESTS: usize = 6;

fn long_bodies() -> Result<()> {
    let scene = Scene::start(&[], &CART.replace("methods: [GET]", "methods: [GET, PUT]"))?;
    for (family, version) in Family::BOTH.into_iter().flat_map(|f| [(f, Version::Http1), (f, Version::Http2)])
    {
        let target = scene.address("shop/cart", family, 8080);
        let mut upload = Ask::new("PUT", "/items/upload");
        upload.body = "u".repeat(LONG);
        let asks =
            [Ask::new("GET", &format!("/items?bytes={LONG}")), upload, Ask::new("GET", "/items/after")];
        let answers = scene.http("shop/frontend", target, version, &asks)?;
        let got = answers[0].body.len();
        ensure!(
            answers[0].status == 200 && got == LONG,
            "{version:?}: {got} of {LONG} bytes: {:?}",
            answers[0].error
        );
        ensure!(answers[1].json()["bodyBytes"] == LONG, "{version:?}: {:?}", answers[1]);
        ensure!(answers[2].status == 200, "{version:?}: {:?}", answers[2]);
    }
    Ok(())
}

fn many_connections() -> Result<()> {
    let scene = Scene::start(&[], CART)?;
    let netns = &scene.world().pod("shop/frontend").netns;
    for family in Family::BOTH {
        let target = scene.address("shop/cart", family, 8080);
        let all = netns.block_on(|| async move {
            let mut tasks = tokio::task::JoinSet::new();
            for number in 0..CONNECTIONS {
                tasks.spawn(async move {
                    let mut connection = Connection::open(target).await?;
                    let mut statuses = Vec::new();
                    for request in 0..REQUESTS {
                        let method = if (number + request) % 2 == 0 { "GET" } else { "DELETE" };
                        let path = format!("/items/{number}/{request}");
                        let answer = connection.send(&Ask::new(method, &path)).await?;
                        let mixed_up = answer.status == 200 && answer.json()["path"] != path.as_str();
                        ensure!(!mixed_up, "{path} got another's answer: {answer:?}");
                        statuses.push(answer.status);
                    }
                    let want = |request: usize| if (number + request).is_multiple_of(2) { 200 } else { 403 };
                    let right = statuses.iter().enumerate().all(|(request, status)| *status == want(request));
                    ensure!(right, "connection {number}: {statuses:?}");
                    Ok(())
                });
            }
            let mut failed = Vec::new();
            while let Some(ended) = tasks.join_next().await {
                failed.extend(ended.context("a client panicked").flatten().err());
            }
            failed
        });
        let failed = all.map(|failed| failed.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>())?;
        ensure!(failed.is_empty(), "{} of {CONNECTIONS} failed: {:?}", failed.len(), failed.first());
    }
    let requests = scene.reached("shop/cart", 8080)?.1;
    ensure!(requests == (CONNECTIONS * REQUESTS) as u64, "{requests} requests reached the server");
    Ok(())
}

/// Who the client is, is asked for each request anew.
fn relabelled() -> Result<()> {
    let mut scene = Scene::start(&[], CART)?;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let netns = scene.world().pod("shop/frontend").netns.clone();
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
        let ask_once = || -> Result<Result<u16>> {
            ask.blocking_send(Ask::new("GET", "/items"))?;
            answered.recv_timeout(Duration::from_secs(10)).context("no answer")
        };
        ensure!(ask_once()?? == 200, "it does not begin well");
        let mut objects = scene.objects();
        let frontend = objects.iter_mut().find(|object| object["metadata"]["name"] == "frontend");
        frontend.context("no frontend")?["metadata"]["labels"]["app"] = Value::from("somebody-else");
        let policies: Vec<Value> = serde_saphyr::from_multiple(CART)?;
        objects.extend(policies);
        scene.cluster.apply(&objects)?;
        // Refused, or cut: never answered by the server.
        let after = ask_once()?;
        ensure!(
            !after.as_ref().is_ok_and(|status| *status == 200),
            "it lives on in the open connection: {after:?}"
        );
        ensure!(
            scene.reached("shop/cart", 8080)?.1 == 1,
            "a request of the former frontend reached the server"
        );
        drop(ask);
        Ok(())
    })
}
