//! Spans: each request through the proxy gives one, under the caller's trace.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_tests::harness::{self, Need};
use sluice_tests::otlp::{Received, Receiver};
use sluice_tests::peer::{Ask, Version, grpc_client};
use sluice_tests::scene::{CART, Scene};
use sluice_tests::world::Family;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let needs = [
        Need::Bpf,
        Need::Binary("sluice-peer"),
        Need::Binary("sluice-control"),
        Need::Binary("sluice-proxy"),
    ];
    let tests: Vec<Trial> = vec![harness::test("spans tell names, attributes and parents", needs, spans)];
    harness::main(1, tests)
}

const SOON: Duration = Duration::from_secs(15);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn spans() -> Result<()> {
    let world = Scene::build()?;
    // The cart's node judges its ingress: its proxy is the one that reports.
    let receiver = Receiver::start(&world.node("n2").netns)?;
    let endpoint = receiver.endpoint().to_owned();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_on"),
    ];
    let scene = Scene::start_in(world, &environment, CART)?;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let traced = |method: &str, path: &str| {
        Ask::new(method, path).header("traceparent", &format!("00-{TRACE}-{PARENT}-01"))
    };
    let asks =
        [traced("GET", "/items/1?secret=1"), traced("DELETE", "/items/2"), Ask::new("GET", "/items/3")];
    let answers = scene.http("shop/frontend", target, Version::Http1, &asks)?;
    let codes: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    ensure!(codes == [200, 403, 200], "{answers:?}");

    let by_path = |path: &'static str| {
        move |received: &Received| received.attribute("url.path").as_deref() == Some(path)
    };
    let allowed = receiver.wait("GET /items/1", SOON, by_path("/items/1"))?;
    check_common(&allowed, "GET", "200")?;
    ensure!(allowed.attribute("sluice.verdict").as_deref() == Some("allow"), "{allowed:#?}");
    ensure!(hex(&allowed.span.trace_id) == TRACE, "another trace: {allowed:#?}");
    ensure!(hex(&allowed.span.parent_span_id) == PARENT, "another parent: {allowed:#?}");

    let denied = receiver.wait("DELETE /items/2", SOON, by_path("/items/2"))?;
    check_common(&denied, "DELETE", "403")?;
    ensure!(denied.attribute("sluice.verdict").as_deref() == Some("deny"), "{denied:#?}");
    let reason = denied.attribute("sluice.verdict.reason");
    ensure!(reason.as_deref() == Some("no_rule_matched"), "{denied:#?}");
    ensure!(hex(&denied.span.parent_span_id) == PARENT, "another parent: {denied:#?}");

    let root = receiver.wait("GET /items/3", SOON, by_path("/items/3"))?;
    ensure!(root.span.parent_span_id.is_empty(), "a parent that nobody sent: {root:#?}");
    ensure!(root.span.trace_id.len() == 16 && hex(&root.span.trace_id) != TRACE, "{root:#?}");

    // What the server was told names the span that was reported, in the caller's trace.
    let told = answers[0].json()["headers"]["traceparent"].as_str().unwrap_or_default().to_owned();
    let span = hex(&allowed.span.span_id);
    ensure!(told == format!("00-{TRACE}-{span}-01"), "the server was told {told}, the span is {span}");
    let count = receiver.all().iter().filter(|r| hex(&r.span.trace_id) == TRACE).count();
    ensure!(count == 2, "{count} spans for two requests of the trace: {:#?}", receiver.all());
    grpc_span(&scene, &receiver)
}

fn check_common(received: &Received, method: &str, status: &str) -> Result<()> {
    let span = &received.span;
    ensure!(span.name == method || span.name.starts_with(&format!("{method} ")), "span {}", span.name);
    for (key, want) in [("http.request.method", method), ("http.response.status_code", status)] {
        ensure!(received.attribute(key).as_deref() == Some(want), "{key}: {received:#?}");
    }
    ensure!(
        span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0,
        "{span:#?}"
    );
    ensure!(received.attribute("url.query").is_none(), "the query is nobody's business: {received:#?}");
    for key in ["service.name", "k8s.namespace.name", "k8s.pod.name"] {
        let value = received.resource_attribute(key);
        let observed = value.as_deref().is_some_and(|value| ["cart", "shop"].contains(&value));
        ensure!(observed, "{key} is not the observed workload's: {value:?} in {received:#?}");
    }
    Ok(())
}

fn grpc_span(scene: &Scene, receiver: &Receiver) -> Result<()> {
    let target = scene.address("shop/cart", Family::V4, 9090);
    let outcome = scene.world().pod("shop/billing").netns.block_on(|| async {
        let mut client = grpc_client::connect(target).await?;
        grpc_client::call(&mut client, "DeleteItem", "blue", 0).await
    })??;
    ensure!(outcome.code == 7, "{outcome:?}");
    let span = receiver
        .wait("DeleteItem", SOON, |received| {
            received.attribute("rpc.method").is_some_and(|method| method.ends_with("DeleteItem"))
        })
        .context("the denied gRPC call")?;
    ensure!(span.attribute("rpc.system.name").as_deref() == Some("grpc"), "{span:#?}");
    let status = span.attribute("rpc.status_code").or_else(|| span.attribute("rpc.response.status_code"));
    ensure!(matches!(status.as_deref(), Some("7" | "PERMISSION_DENIED")), "{status:?} in {span:#?}");
    Ok(())
}
