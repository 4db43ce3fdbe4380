//! From `kubectl apply` to a verdict on another node: a real API server, control under the role that we ship, real
//! nodes, real packets.

use crate::NEEDS;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;
use sluice_tests::apiserver::{ApiServer, CONTROL_ACCOUNT, NAMESPACE};
use sluice_tests::cluster::{Cluster, IN_FORCE};
use sluice_tests::harness::{Need, test};
use sluice_tests::manifests;
use sluice_tests::peer::Ask;
use sluice_tests::scene::{CART, PODS, Scene};
use sluice_tests::world::{Family, Process, eventually};
use std::time::Duration;

/// What is not answered by then is dropped.
const DROPPED: Duration = Duration::from_millis(700);
/// What is answered is answered far sooner.
const ANSWERED: Duration = Duration::from_secs(5);

/// The database is the billing service's alone, for layer K.
const DATABASE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: database, namespace: shop }
spec:
  podSelector: { matchLabels: { app: cart } }
  ingress:
  - from: [ { podSelector: { matchLabels: { app: billing } } } ]
    ports: [ { port: 5432 } ]
";

pub(crate) fn tests() -> Vec<Trial> {
    let needs = [&NEEDS[..], &[Need::ApiServer]].concat();
    vec![
        test("apiserver: kubectl apply is a verdict on another node", needs.clone(), applied),
        test("apiserver: what is programmed is a verdict at once", needs, programmed),
    ]
}

/// The shop's nodes and pods, as kubelets would tell an API server of them.
fn populate(server: &ApiServer, scene: &Scene) -> Result<()> {
    for node in &scene.world().nodes {
        server.apply_with_status(&manifests::node(node))?;
    }
    for object in scene.objects() {
        server.apply_with_status(&object)?;
    }
    Ok(())
}

/// The shop over an API server, with the policy of its cart.
fn shop() -> Result<(ApiServer, Scene)> {
    let server = ApiServer::start()?;
    server.install()?;
    let world = Scene::build()?;
    let serve = |(_, pod): &(_, &str)| world.serve(pod, &["--http", "[::]:8080", "--tcp", "[::]:5432"]);
    let servers = PODS.iter().map(serve).collect::<Result<Vec<Process>>>()?;
    let kubeconfig = server.account(NAMESPACE, CONTROL_ACCOUNT)?;
    let scene = Scene { servers, cluster: Cluster::over(world, &[], &kubeconfig)? };
    populate(&server, &scene)?;
    server.apply(CART)?;
    Ok((server, scene))
}

fn applied() -> Result<()> {
    let (server, mut scene) = shop()?;
    scene.cluster.wait_in_force("L7NetworkPolicy/shop/cart")?;

    let cart = scene.address("shop/cart", Family::V4, 8080);
    let asks =
        |from: &str, method: &str, path: &str| scene.status(from, cart, Ask::new(method, path), ANSWERED);
    ensure!(asks("shop/frontend", "GET", "/items/1")? == Some(200), "what the policy allows");
    ensure!(asks("shop/frontend", "GET", "/admin")? == Some(403), "what it does not");
    let dropped = scene.status("shop/intruder", cart, Ask::new("GET", "/items/1"), DROPPED)?;
    ensure!(dropped.is_none(), "whom it does not: {dropped:?}");

    // In the kernel of the other node: no request is read for it.
    let database = scene.address("shop/cart", Family::V4, 5432);
    ensure!(scene.tcp("shop/frontend", database, ANSWERED)?, "the frontend reaches the database");
    server.apply(DATABASE)?;
    eventually("the kernel refuses the frontend", IN_FORCE, || {
        Ok(!scene.tcp("shop/frontend", database, DROPPED)?)
    })?;
    server.kubectl(&["delete", "networkpolicy", "database", "-n", "shop"])?;
    eventually("and no longer", IN_FORCE, || scene.tcp("shop/frontend", database, DROPPED))?;

    // A change of one field, of a label, and of the namespace.
    let patch =
        r#"[{"op": "replace", "path": "/spec/ingress/0/rules/http/0/path/value", "value": "/admin"}]"#;
    server.kubectl(&["patch", "l7np", "cart", "-n", "shop", "--type=json", "-p", patch])?;
    eventually("the new path is the one that is allowed", IN_FORCE, || {
        Ok(asks("shop/frontend", "GET", "/admin")? == Some(200)
            && asks("shop/frontend", "GET", "/items/1")? == Some(403))
    })?;
    server.kubectl(&["label", "pod", "intruder", "-n", "shop", "app=frontend", "--overwrite"])?;
    eventually("a pod is who its labels say", IN_FORCE, || {
        Ok(scene.status("shop/intruder", cart, Ask::new("GET", "/admin"), DROPPED)? == Some(200))
    })?;
    server.kubectl(&["label", "namespace", "shop", "sluice.dev/enforcement=audit"])?;
    eventually("nothing is refused in a namespace that is audited", IN_FORCE, || {
        Ok(asks("shop/frontend", "DELETE", "/items/1")? == Some(200))
    })?;
    Ok(())
}

/// `kubectl wait`, as people wait.
fn wait(server: &ApiServer, policy: &str) -> Result<()> {
    let wait = ["wait", "--for=condition=Programmed", policy, "-n", "shop", "--timeout=90s"];
    server.kubectl(&wait).map(|_| ())
}

/// Status and reason of the condition of the policy of every pod, if it was said of the policy as it is now.
fn said(server: &ApiServer) -> Result<Option<String>> {
    let policy = server.kubectl(&["get", "l7np/everyone", "-n", "shop", "-o", "json"])?;
    let policy: Value = serde_json::from_str(&policy)?;
    let conditions = policy["status"]["conditions"].as_array();
    let is = |condition: &&Value| {
        condition["type"] == "Programmed"
            && condition["observedGeneration"] == policy["metadata"]["generation"]
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = conditions.into_iter().flatten().find(is);
    Ok(found.map(|condition| format!("{}/{}", text(&condition["status"]), text(&condition["reason"]))))
}

/// A policy of every pod of the shop, so that both nodes are concerned.
fn everyone(path: &str) -> String {
    format!(
        "
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: {{ name: everyone, namespace: shop }}
spec:
  podSelector: {{}}
  ingress:
  - name: read
    ports: [ {{ port: 8080 }} ]
    rules: {{ http: [ {{ methods: [GET], path: {{ type: PathPrefix, value: {path} }} }} ] }}
"
    )
}

/// `Programmed` means that every node judges by it, now.
fn programmed() -> Result<()> {
    let (server, mut scene) = shop()?;
    server.kubectl(&["delete", "l7np", "cart", "-n", "shop"])?;
    server.apply(&everyone("/none"))?;
    wait(&server, "l7np/everyone")?;
    let cart = scene.address("shop/cart", Family::V4, 8080);
    let asks =
        |scene: &Scene, path: &str| scene.status("shop/frontend", cart, Ask::new("GET", path), ANSWERED);
    // No patience, no second try: what was waited for holds at once, many times.
    for round in 0..8 {
        let path = format!("/round-{round}");
        ensure!(asks(&scene, &path)? == Some(403), "round {round}: not yet allowed");
        server.apply(&everyone(&path))?;
        wait(&server, "l7np/everyone")?;
        ensure!(asks(&scene, &path)? == Some(200), "round {round}: programmed, and the new path is refused");
        let old = asks(&scene, "/none")?;
        ensure!(old == Some(403), "round {round}: {old:?}");
    }
    say(&server, &["get", "l7np,cl7np", "-A"])?;
    say(&server, &["get", "l7np", "everyone", "-n", "shop", "-o", "jsonpath-as-json={.status}"])?;

    // An agent that stands still has not said it: nobody says it for that agent, however long it takes.
    let slow = scene.world().nodes[0].name.clone();
    scene.cluster.proxy(&slow)?.signal(Signal::STOP)?;
    server.apply(&everyone("/late"))?;
    eventually("the change is observed, and not in force", IN_FORCE, || {
        let said = said(&server)?;
        ensure!(said.as_deref() != Some("True/Programmed"), "nobody has said that it is in force on {slow}");
        Ok(said.is_some())
    })?;
    scene.cluster.proxy(&slow)?.signal(Signal::CONT)?;
    wait(&server, "l7np/everyone")?;
    ensure!(asks(&scene, "/late")? == Some(200), "programmed, and refused");

    // A new control says nothing of what it does not know, and nothing else.
    scene.cluster.stop_control()?;
    server.apply(&everyone("/while-nobody-looks"))?;
    scene.cluster.start_control()?;
    wait(&server, "l7np/everyone")?;
    ensure!(asks(&scene, "/while-nobody-looks")? == Some(200), "programmed by a new control");

    // A node that dies is not known about, within the bound of its heartbeat; its policies are, on its return.
    let dead = scene.world().nodes[1].name.clone();
    scene.cluster.proxy(&dead)?.kill()?;
    eventually("the dead node is not known about", IN_FORCE, || {
        Ok(said(&server)?.as_deref() == Some("Unknown/NotHeardOf"))
    })?;
    say(&server, &["get", "l7np,cl7np", "-A"])?;
    let message = r#"jsonpath={.status.conditions[?(@.type=="Programmed")].message}"#;
    let said = server.kubectl(&["get", "l7np/everyone", "-n", "shop", "-o", message])?;
    ensure!(said.contains(&dead), "it is named: {said}");
    eventually("that is told of the node", IN_FORCE, || {
        let events = server.kubectl(&["get", "events.v1.events.k8s.io", "-A"])?;
        Ok(events.contains("SluiceNotConnected") && events.contains(&dead))
    })?;
    say(&server, &["get", "events", "-A"])?;
    scene.cluster.start_proxy(&dead)?;
    wait(&server, "l7np/everyone")?;
    Ok(())
}

/// What a person would see, if asked for.
fn say(server: &ApiServer, arguments: &[&str]) -> Result<()> {
    let said = server.kubectl(arguments)?;
    if std::env::var_os("SLUICE_DESCRIBE").is_some() {
        eprintln!("$ kubectl {}\n{said}", arguments.join(" "));
    }
    Ok(())
}
