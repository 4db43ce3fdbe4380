//! What the control plane says back: the status of our kinds, and Events about every policy, through a real API server.

use crate::NEEDS;
use crate::node::{Does, FakeNode};
use crate::plane::{DEADLINE, Plane, l7, pod};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sluice_tests::apiserver::{ApiServer, CONTROL_ACCOUNT, NAMESPACE};
use sluice_tests::harness::test;
use sluice_tests::world::eventually;
use std::time::{Duration, Instant};

/// A status that would be written again and again is, many times, within this: the look of every few seconds as well.
const QUIET: Duration = Duration::from_secs(12);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("status::what_is_in_force_is_said_and_said_once", NEEDS, said_once),
        test("status::what_is_not_in_force_is_told_with_its_reason", NEEDS, told),
        test("status::who_is_silent_is_not_known_about", NEEDS, silent),
        test("status::one_of_two_writes_and_the_other_when_it_is_gone", NEEDS, leader),
        test("status::a_new_control_takes_nothing_back_and_makes_nothing_up", NEEDS, successor),
    ]
}

struct Scene {
    server: ApiServer,
    plane: Plane,
    namespace: String,
}

/// A namespace in the dataplane with one pod, on `node-a`, and a policy for it.
fn scene() -> Result<Scene> {
    let server = ApiServer::start()?;
    server.install()?;
    let namespace = server.namespace(&json!({"sluice.dev/dataplane": "enabled"}))?;
    pod(&server, &namespace, "cart-0", "cart", "10.9.4.2")?;
    server.apply(&l7(&namespace, "cart", "cart").to_string())?;
    let mut plane = Plane::over(&server, &server.account(NAMESPACE, CONTROL_ACCOUNT)?)?;
    plane.ready()?;
    Ok(Scene { server, plane, namespace })
}

impl Scene {
    fn get(&self, what: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.server.kubectl(&[
            "get",
            what,
            "-n",
            &self.namespace,
            "-o",
            "json",
        ])?)?)
    }

    /// The status of a policy once its condition says so, in the form `status/reason`.
    fn until(&self, policy: &str, condition: &str, says: &str) -> Result<Value> {
        let mut last = Value::Null;
        let said = eventually(&format!("{policy}: {condition} is {says}"), DEADLINE, || {
            last = self.get(policy)?["status"].take();
            Ok(self::condition(&last, condition).is_some_and(|found| {
                let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
                says == format!("{}/{}", text("status"), text("reason"))
            }))
        });
        said.with_context(|| format!("{last:#}\n{}", self.plane.process.tail(30)))?;
        Ok(last)
    }

    /// The note of an Event about an object.
    fn event(&self, kind: &str, name: &str, reason: &str) -> Result<String> {
        let mut found = String::new();
        let all = &["get", "events.v1.events.k8s.io", "-A", "-o", "json"];
        let told = eventually(&format!("{reason} of {kind} {name}"), DEADLINE, || {
            let events: Value = serde_json::from_str(&self.server.kubectl(all)?)?;
            let is = |event: &&Value| {
                event["regarding"]["kind"] == kind
                    && event["regarding"]["name"] == name
                    && event["reason"] == reason
            };
            let note = events["items"].as_array().into_iter().flatten().find(is).map(|event| &event["note"]);
            found = note.and_then(Value::as_str).unwrap_or_default().to_owned();
            Ok(note.is_some())
        });
        told.with_context(|| self.plane.process.tail(30))?;
        Ok(found)
    }

    fn writes(&self) -> Value {
        self.plane.status()["source"]["writes"].clone()
    }
}

fn condition<'s>(status: &'s Value, name: &str) -> Option<&'s Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == name)
}

fn said_once() -> Result<()> {
    let scene = scene()?;
    let Scene { server, namespace, .. } = &scene;
    scene.until("l7np/cart", "Accepted", "True/Accepted")?;
    scene.until("l7np/cart", "Programmed", "Unknown/NotHeardOf")?;
    let reads = scene.plane.status()["reads"].clone();
    let node = FakeNode::join(server, &scene.plane, "node-a", 0);
    server.kubectl(&["wait", "--for=condition=Programmed", "l7np/cart", "-n", namespace, "--timeout=60s"])?;
    let status = scene.until("l7np/cart", "Programmed", "True/Programmed")?;
    ensure!(status["nodes"] == json!({"desired": 1, "programmed": 1}), "{status:#}");
    ensure!(status["effectiveMode"] == "Enforce" && status["selectedPods"] == 1, "{status:#}");
    let since = condition(&status, "Programmed").context("Programmed")?["lastTransitionTime"].clone();
    let table = server.kubectl(&["get", "l7np", "-n", namespace])?;
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    ensure!(
        lines.next() == Some(vec!["NAME", "MODE", "PODS", "ACCEPTED", "PROGRAMMED", "AGE"]),
        "the columns: {table}"
    );
    let line = lines.next().context("a line")?;
    ensure!(line[..5] == ["cart", "Enforce", "1", "True", "True"], "{table}");

    // Our own writing comes back by the watch, and is no change.
    let counts = || (scene.writes()["statuses"].clone(), scene.plane.status()["reads"].clone());
    let mut after = counts();
    eventually("nothing new is said, and nothing is compiled", DEADLINE, || {
        let before = std::mem::replace(&mut after, counts());
        std::thread::sleep(QUIET);
        after = counts();
        Ok(before == after)
    })?;
    ensure!(after.0.as_u64().is_some_and(|written| (1..10).contains(&written)), "few are enough: {after:?}");

    ensure!(after.1 == reads, "what was written is no change of the object: {after:?}, {reads} reads before");

    // A pod elsewhere makes a new generation, and is no news for this policy.
    pod(server, namespace, "other-0", "other", "10.9.4.3")?;
    eventually("the pod is compiled", DEADLINE, || {
        Ok(scene.plane.status()["reads"].as_u64() > after.1.as_u64())
    })?;
    // A change of it is observed, and nothing before.
    let order = json!([{"op": "add", "path": "/spec/policyTypes", "value": ["Ingress"]}]).to_string();
    server.kubectl(&["patch", "l7np", "cart", "-n", namespace, "--type=json", "-p", &order])?;
    server.kubectl(&["wait", "--for=condition=Programmed", "l7np/cart", "-n", namespace, "--timeout=60s"])?;
    let status = scene.until("l7np/cart", "Programmed", "True/Programmed")?;
    ensure!(status["observedGeneration"] == 2, "{status:#}");
    ensure!(scene.get("l7np/cart")?["metadata"]["generation"] == 2, "the test changes something");

    // What somebody writes over it is put right.
    let lie = json!({"status": {"selectedPods": 99}}).to_string();
    let patch =
        ["patch", "l7np", "cart", "-n", namespace, "--subresource=status", "--type=merge", "-p", &lie];
    server.kubectl(&patch)?;
    eventually("it is put right", DEADLINE, || Ok(scene.get("l7np/cart")?["status"]["selectedPods"] == 1))?;
    let status = scene.until("l7np/cart", "Programmed", "True/Programmed")?;
    drop(node);
    ensure!(
        condition(&status, "Programmed")
            .is_some_and(|said| said["lastTransitionTime"].as_str() >= since.as_str()),
        "{status:#}"
    );
    Ok(())
}

fn told() -> Result<()> {
    let scene = scene()?;
    let Scene { server, namespace, .. } = &scene;
    let node = FakeNode::join(server, &scene.plane, "node-a", 0);
    scene.until("l7np/cart", "Programmed", "True/Programmed")?;

    // A policy that the schema takes and the compiler does not.
    let mut bad = l7(namespace, "bad", "cart");
    bad["spec"]["ingress"][0]["rules"]["http"][0]["path"] =
        json!({"type": "RegularExpression", "value": "("});
    server.apply(&bad.to_string())?;
    let status = scene.until("l7np/bad", "Accepted", "False/Invalid")?;
    let message = condition(&status, "Accepted").context("Accepted")?["message"].as_str().unwrap_or_default();
    ensure!(message.contains("spec.ingress[0].rules.http[0].path.value"), "it names the field: {message}");
    scene.until("l7np/bad", "Programmed", "True/Programmed")?;
    let note = scene.event("L7NetworkPolicy", "bad", "Invalid")?;
    ensure!(note.contains("spec.ingress[0].rules.http[0].path.value"), "{note}");

    // The same truth about a kind whose status is not ours.
    let network = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": namespace, "name": "np"},
        "spec": {"podSelector": {"matchLabels": {"app": "cart"}}, "ingress": [{}]},
    });
    server.apply(&network.to_string())?;
    let note = scene.event("NetworkPolicy", "np", "Programmed")?;
    ensure!(note.contains("generation 1, Enforce"), "{note}");

    // A node that cannot: what it had stays in force, and what is new is not.
    node.does(Does::Refuses("the rows do not fit: 70000 of 65536".to_owned()));
    server.apply(&l7(namespace, "late", "cart").to_string())?;
    let status = scene.until("l7np/late", "Programmed", "False/NotProgrammed")?;
    let message = condition(&status, "Programmed").context("Programmed")?["message"].clone();
    ensure!(message == "0/1 nodes; node-a: the rows do not fit: 70000 of 65536", "{message}");
    let note = scene.event("L7NetworkPolicy", "late", "NotProgrammed")?;
    ensure!(note.contains("do not fit"), "{note}");
    let note = scene.event("Node", "node-a", "SluiceSnapshotRefused")?;
    ensure!(note.contains("do not fit"), "{note}");
    scene.until("l7np/cart", "Programmed", "True/Programmed")?;

    node.does(Does::Lacks("no interface has the address".to_owned()));
    let status = scene.until("l7np/cart", "Programmed", "False/NotProgrammed")?;
    let message =
        condition(&status, "Programmed").context("Programmed")?["message"].as_str().unwrap_or_default();
    ensure!(message.contains("cart-0 is not enforced: no interface has the address"), "{message}");
    node.does(Does::Applies);
    scene.until("l7np/late", "Programmed", "True/Programmed")?;
    scene.until("l7np/cart", "Programmed", "True/Programmed")?;

    // Rollout: what is off, and what is not in the dataplane, is not in force.
    server.kubectl(&["label", "namespace", namespace, "sluice.dev/enforcement=off"])?;
    let status = scene.until("l7np/cart", "Programmed", "False/Off")?;
    ensure!(status["effectiveMode"] == "Off", "{status:#}");
    server.kubectl(&["label", "namespace", namespace, "sluice.dev/enforcement=audit", "--overwrite"])?;
    let status = scene.until("l7np/cart", "Programmed", "True/Programmed")?;
    ensure!(status["effectiveMode"] == "Audit", "{status:#}");
    server.kubectl(&["label", "namespace", namespace, "sluice.dev/dataplane=disabled", "--overwrite"])?;
    scene.until("l7np/cart", "Programmed", "False/NotEnforced")?;
    let note = scene.event("NetworkPolicy", "np", "NotEnforced")?;
    ensure!(note.contains("sluice.dev/dataplane=enabled"), "{note}");
    let repeated = scene.writes();
    ensure!(repeated["trouble"].is_null(), "{repeated:#}");
    Ok(())
}

fn silent() -> Result<()> {
    let scene = scene()?;
    let Scene { server, .. } = &scene;
    let node = FakeNode::join(server, &scene.plane, "node-a", 0);
    scene.until("l7np/cart", "Programmed", "True/Programmed")?;
    node.lives(false);
    let begin = Instant::now();
    let status = scene.until("l7np/cart", "Programmed", "Unknown/NotHeardOf")?;
    ensure!(begin.elapsed() > Duration::from_secs(10), "it has its time: {:?}", begin.elapsed());
    ensure!(status["nodes"] == json!({"desired": 1, "programmed": 0}), "{status:#}");
    let note = scene.event("Node", "node-a", "SluiceStale")?;
    ensure!(note.contains("is not known"), "{note}");
    node.lives(true);
    scene.until("l7np/cart", "Programmed", "True/Programmed")?;
    Ok(())
}

/// What an earlier control said stands while nodes may still come; what nobody confirms by then does not.
fn successor() -> Result<()> {
    let Scene { server, mut plane, namespace } = scene()?;
    let node = FakeNode::join(&server, &plane, "node-a", 0);
    let scene = Scene { plane, server, namespace };
    let said = scene.until("l7np/cart", "Programmed", "True/Programmed")?;
    drop(node);
    let Scene { server, namespace, plane: old } = scene;
    drop(old);

    // Nobody looks: one policy is changed, the other is as it was.
    server.apply(&l7(&namespace, "new", "cart").to_string())?;
    plane = Plane::over(&server, &server.account(NAMESPACE, CONTROL_ACCOUNT)?)?;
    let begin = Instant::now();
    plane.ready()?;
    let scene = Scene { server, plane, namespace };
    scene.until("l7np/new", "Programmed", "Unknown/NotHeardOf")?;
    let status = scene.get("l7np/cart")?["status"].take();
    ensure!(
        begin.elapsed() > Duration::from_secs(15) || status == said,
        "it is not taken back at once: {status:#}"
    );
    scene.until("l7np/cart", "Programmed", "Unknown/NotHeardOf")?;
    let _node = FakeNode::join(&scene.server, &scene.plane, "node-a", 0);
    scene.until("l7np/cart", "Programmed", "True/Programmed")?;
    scene.until("l7np/new", "Programmed", "True/Programmed")?;
    Ok(())
}

/// Two control planes that both have the node: one writes, whatever happens, and the other once it is killed.
fn leader() -> Result<()> {
    let Scene { server, plane: first, namespace } = scene()?;
    let kubeconfig = server.account(NAMESPACE, CONTROL_ACCOUNT)?;
    let leads = |plane: &Plane| plane.status()["source"]["writes"]["leads"] == true;
    eventually("the first one leads", DEADLINE, || Ok(leads(&first)))?;
    let mut second = Plane::over(&server, &kubeconfig)?;
    second.ready()?;
    let nodes = [&first, &second].map(|plane| FakeNode::join(&server, plane, "node-a", 0));
    let scene = Scene { plane: first, server, namespace };
    scene.until("l7np/cart", "Programmed", "True/Programmed")?;
    for round in 0..6 {
        scene.server.apply(&l7(&scene.namespace, &format!("round-{round}"), "cart").to_string())?;
        scene.until(&format!("l7np/round-{round}"), "Programmed", "True/Programmed")?;
    }
    ensure!(leads(&scene.plane) && !leads(&second), "one of them");
    let silent = second.status()["source"]["writes"]["statuses"].clone();
    ensure!(silent == 0, "the other one has written {silent} statuses");

    let Scene { server, plane: first, namespace } = scene;
    drop(first);
    let begin = Instant::now();
    let scene = Scene { plane: second, server, namespace };
    scene.server.apply(&l7(&scene.namespace, "after", "cart").to_string())?;
    scene.until("l7np/after", "Programmed", "True/Programmed")?;
    eprintln!("status resumed {:?} after the leader was killed", begin.elapsed());
    eventually("the other one leads", DEADLINE, || Ok(leads(&scene.plane)))?;
    let lease =
        ["get", "lease", "sluice-control", "-n", NAMESPACE, "-o", "jsonpath={.spec.leaseTransitions}"];
    ensure!(scene.server.kubectl(&lease)? == "1", "it changed hands once");

    // One that stops gives it back: the next one need not wait.
    let Scene { server, mut plane, namespace } = scene;
    plane.process.terminate(DEADLINE)?;
    let holder = ["get", "lease", "sluice-control", "-n", NAMESPACE, "-o", "jsonpath={.spec.holderIdentity}"];
    ensure!(server.kubectl(&holder)?.is_empty(), "it is given back");
    drop((nodes, namespace));
    Ok(())
}
