//! An API server that goes away: what is in force stays, and what has changed meanwhile is known when it is back.

use crate::NEEDS;
use crate::plane::{DEADLINE, Plane, l7, pod, policy};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sluice_tests::apiserver::{ApiServer, CONTROL_ACCOUNT, Link, NAMESPACE};
use sluice_tests::harness::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("away::events_that_were_missed_are_made_up_for", NEEDS, missed),
        test("away::versions_that_the_server_has_forgotten_are_listed_anew", NEEDS, forgotten),
        test("away::a_server_that_is_away_at_the_start_is_waited_for", NEEDS, away_at_start),
    ]
}

struct Scene {
    server: ApiServer,
    plane: Plane,
    link: Link,
    namespace: String,
}

/// A control plane over a way that can be cut, with a policy in force for one pod.
fn scene() -> Result<Scene> {
    let server = ApiServer::start()?;
    server.install()?;
    let namespace = server.namespace(&json!({"sluice.dev/dataplane": "enabled"}))?;
    pod(&server, &namespace, "cart-0", "cart", "10.9.3.2")?;
    server.apply(&l7(&namespace, "cart", "cart").to_string())?;
    let (kubeconfig, link) = server.account_over_a_link(NAMESPACE, CONTROL_ACCOUNT)?;
    let mut plane = Plane::over(&server, &kubeconfig)?;
    plane.ready()?;
    Ok(Scene { server, plane, link, namespace })
}

fn in_trouble(status: &Value) -> bool {
    let kinds = status["source"]["kinds"].as_object();
    kinds.is_some_and(|kinds| kinds.values().all(|kind| kind["trouble"].is_string()))
}

fn selects(namespace: &str, name: &str, count: usize) -> impl Fn(&Value) -> bool {
    let name = format!("L7NetworkPolicy/{namespace}/{name}");
    move |status| {
        let pods = policy(status, &name).and_then(|policy| policy["selectedPods"].as_array());
        pods.is_some_and(|pods| pods.len() == count)
    }
}

/// What changes while nobody hears of it: one pod goes, another comes, one policy goes, another comes.
fn change(scene: &Scene) -> Result<()> {
    let Scene { server, namespace, .. } = scene;
    pod(server, namespace, "cart-1", "cart", "10.9.3.3")?;
    pod(server, namespace, "cart-2", "cart", "10.9.3.4")?;
    server.kubectl(&["delete", "pod", "cart-0", "-n", namespace, "--grace-period=0", "--force"])?;
    server.kubectl(&["delete", "l7np", "cart", "-n", namespace])?;
    server.apply(&l7(namespace, "cart-again", "cart").to_string())
}

fn cut(scene: &mut Scene) -> Result<()> {
    scene.link.cut();
    let status = scene.plane.until("every watch says so", DEADLINE, in_trouble)?;
    ensure!(selects(&scene.namespace, "cart", 1)(&status), "what is in force stays: {status:#}");
    Ok(())
}

fn mend(scene: &mut Scene) -> Result<()> {
    scene.link.mend();
    let again = selects(&scene.namespace, "cart-again", 2);
    let gone = format!("L7NetworkPolicy/{}/cart", scene.namespace);
    scene.plane.until("what has changed is known", DEADLINE, |status| {
        again(status) && policy(status, &gone).is_none()
    })?;
    scene.plane.until("no watch is in trouble", DEADLINE, |status| {
        let kinds = status["source"]["kinds"].as_object();
        kinds.is_some_and(|kinds| kinds.values().all(|kind| kind["trouble"].is_null()))
    })?;
    Ok(())
}

fn missed() -> Result<()> {
    let mut scene = scene()?;
    cut(&mut scene)?;
    change(&scene)?;
    let status = scene.plane.status();
    ensure!(selects(&scene.namespace, "cart", 1)(&status), "nobody has told it: {status:#}");
    mend(&mut scene)?;
    ensure!(scene.plane.lists("Pod") == 1, "events that the server still has need no list");
    Ok(())
}

/// An hour later the server has nothing of what has happened: neither its own memory nor etcd's.
fn forgotten() -> Result<()> {
    let mut scene = scene()?;
    cut(&mut scene)?;
    change(&scene)?;
    scene.server.compact()?;
    scene.server.stop_server()?;
    scene.server.start_server()?;
    mend(&mut scene)?;
    ensure!(scene.plane.lists("Pod") == 2, "410 Gone, and a list: {}", scene.plane.lists("Pod"));
    Ok(())
}

fn away_at_start() -> Result<()> {
    let server = ApiServer::start()?;
    server.install()?;
    let (kubeconfig, link) = server.account_over_a_link(NAMESPACE, CONTROL_ACCOUNT)?;
    link.cut();
    let mut plane = Plane::over(&server, &kubeconfig)?;
    let status = plane.until("it says so", DEADLINE, |status| !status["source"].is_null())?;
    ensure!(status["reads"] == 0 && status["source"]["complete"] == false, "{status:#}");
    link.mend();
    plane.ready()?;
    Ok(())
}
