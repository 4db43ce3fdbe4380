//! Whatever a manifest says, a node takes the snapshot: what is too much costs its own rule and is told.

mod common;

use common::WORLD;
use serde_json::{Value, json};
use sluice_compile::{Compiler, Enforcement, NodeScope, Rollout};
use sluice_control::plan::{Objects, Plan};
use std::fs;

/// Reads the world with one more policy, and gives its snapshot to a node's decoder. Returns the problems' fields.
fn taken(spec: &Value, labels: &Value) -> Vec<String> {
    taken_of("policy.sluice.dev/v1alpha1", "L7NetworkPolicy", spec, labels)
}

fn taken_of(api: &str, kind: &str, spec: &Value, labels: &Value) -> Vec<String> {
    let home = tempfile::tempdir().expect("a directory");
    let policy = json!({
        "apiVersion": api, "kind": kind, "metadata": {"namespace": "shop", "name": "much"}, "spec": spec,
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "labelled", "labels": labels},
        "spec": {"nodeName": "node-a", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": "10.0.1.9"},
    });
    fs::write(home.path().join("world.yaml"), WORLD).expect("written");
    fs::write(home.path().join("policy.json"), policy.to_string()).expect("written");
    fs::write(home.path().join("pod.json"), pod.to_string()).expect("written");
    let rollout = Rollout::AsLabelled { default_dataplane: false, max_enforcement: Enforcement::Enforce };
    let objects = Objects::Directory(home.path().to_owned());
    let mut compiler = Compiler::new();
    let plan = Plan::read(&objects, rollout, &mut compiler, &std::hash::RandomState::new())
        .expect("a readable directory");
    let snapshot = compiler.snapshot(&NodeScope::Named("node-a".into()), 0).expect("something was read");
    let message = sluice_wire::encode(&snapshot);
    sluice_wire::fits(&message).expect("a size that a node takes");
    let snapshot = sluice_wire::decode(message).expect("a snapshot that a node takes");
    assert_eq!(snapshot.endpoints.len(), 2);
    plan.problems.iter().map(|problem| problem.path.clone()).collect()
}

fn rules(rules: &Value) -> Value {
    let rule = json!({"name": "much", "ports": [{"port": 8080}], "rules": rules});
    json!({"podSelector": {}, "ingress": [rule.clone()], "ingressDeny": [rule]})
}

fn many(count: usize, item: impl Fn(usize) -> Value) -> Value {
    (0..count).map(item).collect()
}

#[test]
fn too_much_in_a_rule_is_a_problem_and_no_snapshot_that_nodes_refuse() {
    let header = |at: usize| json!({"name": format!("x-{at}"), "type": "Present"});
    let pattern = |at: usize| {
        json!({
            "path": {"type": "RegularExpression", "value": format!("/a{at}")},
            "headers": [{"name": "x-a", "type": "RegularExpression", "value": format!("a{at}")}],
        })
    };
    let long = "x".repeat(100_000);
    let cases = [
        (
            "http",
            json!({"http": many(20_000, |at| json!({"path": {"type": "Exact", "value": format!("/{at}")}}))}),
        ),
        ("grpc", json!({"grpc": many(20_000, |at| json!({"service": format!("s{at}")}))})),
        ("http[0].methods", json!({"http": [{"methods": many(5_000, |at| json!(format!("M{at}")))}]})),
        (
            "grpc[0].methods",
            json!({"grpc": [{"service": "s", "methods": many(5_000, |at| json!(format!("M{at}")))}]}),
        ),
        ("http[0].headers", json!({"http": [{"headers": many(5_000, header)}]})),
        ("http[0].methods[0]", json!({"http": [{"methods": [long]}]})),
        ("http[0].path.value", json!({"http": [{"path": {"type": "Exact", "value": format!("/{long}")}}]})),
        ("http[0].path.value", json!({"http": [{"path": {"type": "RegularExpression", "value": long}}]})),
        ("http[0].headers[0].name", json!({"http": [{"headers": [{"name": long, "type": "Present"}]}]})),
        (
            "http[0].headers[0].value",
            json!({"http": [{"headers": [{"name": "x", "type": "Exact", "value": long}]}]}),
        ),
        ("grpc[0].service", json!({"grpc": [{"service": long}]})),
        ("grpc[0].methods[0]", json!({"grpc": [{"service": "s", "methods": [long]}]})),
        ("http[64].path.value", json!({"http": many(100, pattern)})),
    ];
    for (field, given) in cases {
        let problems = taken(&rules(&given), &json!({}));
        let expected = format!("spec.ingress[0].rules.{field}");
        assert!(problems.contains(&expected), "{expected} is not among {problems:?}");
    }
}

#[test]
fn what_is_wide_and_not_wrong_is_taken() {
    let ports = many(3_000, |at| json!({"port": 1 + at * 2, "protocol": "TCP"}));
    let blocks =
        many(3_000, |at| json!({"ipBlock": {"cidr": format!("192.{}.{}.0/24", at / 256, at % 256)}}));
    // Kubernetes gives the lists of a NetworkPolicy no bound.
    let spec = json!({"podSelector": {}, "ingress": [{"from": blocks, "ports": ports}]});
    let problems = taken_of("networking.k8s.io/v1", "NetworkPolicy", &spec, &json!({}));
    assert_eq!(problems, Vec::<String>::new());
}

#[test]
fn labels_that_no_api_server_would_take_do_not_stop_a_node() {
    let value = "v".repeat(200_000);
    let spec =
        json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"big": value}}}]}]});
    taken(&spec, &json!({"big": value, "app": "labelled"}));
}
