//! Entities, and the labels of the identities that Cilium reserves for them.

#![allow(clippy::needless_pass_by_value, reason = "test helpers take what json! makes")]

mod common;

use common::Ask;
use common::cilium::{ALLOW, DENY, errors, policy, world};
use serde_json::{Value, json};
use sluice_crd::{Problem, Severity};
use sluice_policy::Decision;

/// Two nodes, the first of them the pods', and an API server on the second and outside.
fn objects() -> Vec<Value> {
    let node = |name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
    };
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": "kubernetes",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": [{"addresses": ["192.0.2.8", "203.0.113.50"]}]});
    vec![node("n", "192.0.2.7"), node("m", "192.0.2.8"), slice]
}

const TO: [&str; 6] = ["a/client", "b/client", "192.0.2.7", "192.0.2.8", "203.0.113.1", "203.0.113.50"];

/// From the server to everybody.
fn egress(rules: Value) -> ([Decision; 6], Vec<Problem>) {
    let mut spec = json!({"endpointSelector": {"matchLabels": {"app": "server"}}});
    spec.as_object_mut().expect("object").extend(rules.as_object().expect("object").clone());
    let mut all = objects();
    all.push(policy(spec));
    let (cluster, problems) = world(&all);
    (TO.map(|to| Ask::new("a/server", to, 80, "").decide(&cluster)), problems)
}

#[test]
fn entities_are_whom_they_name_and_nobody_else() {
    let pods = ["a/client", "b/client"];
    let cluster = [&pods[..], &["192.0.2.7", "192.0.2.8", "203.0.113.50"]].concat();
    let world = ["203.0.113.1", "203.0.113.50"];
    let cases: [(&[&str], Vec<&str>, usize); 14] = [
        (&["all"], TO.to_vec(), 0),
        (&["none"], vec![], 0),
        (&["cluster"], cluster, 0),
        (&["host"], vec!["192.0.2.7"], 0),
        (&["remote-node"], vec!["192.0.2.8"], 0),
        (&["kube-apiserver"], vec!["192.0.2.8", "203.0.113.50"], 0),
        (&["world"], world.to_vec(), 0),
        (&["world-ipv4"], world.to_vec(), 0),
        (&["world-ipv6"], vec![], 0),
        (&["host", "world"], [&world[..], &["192.0.2.7"]].concat(), 0),
        (&["health"], vec![], 1),
        (&["ingress", "init"], vec![], 2),
        (&["unmanaged", "host"], vec!["192.0.2.7"], 1),
        (&[], vec![], 0),
    ];
    for (entities, named, warnings) in cases {
        let said = |yes: Decision, no: Decision| TO.map(|to| if named.contains(&to) { yes } else { no });
        let (got, problems) = egress(json!({"egress": [{"toEntities": entities}]}));
        assert_eq!(got, said(ALLOW, DENY), "{entities:?}");
        assert!(errors(&problems).is_empty(), "{problems:#?}");
        let told = problems.iter().filter(|problem| problem.severity == Severity::Warning).count();
        assert_eq!(told, warnings, "{problems:#?}");
        let deny = json!({"egress": [{"toEntities": ["all"]}], "egressDeny": [{"toEntities": entities}]});
        assert_eq!(egress(deny).0, said(DENY, ALLOW), "{entities:?}");
    }
}

#[test]
fn a_reserved_label_is_its_entity() {
    for entity in ["host", "remote-node", "kube-apiserver", "world", "world-ipv4", "health", "init"] {
        let (expected, _) = egress(json!({"egress": [{"toEntities": [entity]}]}));
        let key = format!("reserved:{entity}");
        for selector in [
            json!({"matchLabels": {key.clone(): ""}}),
            json!({"matchExpressions": [{"key": key, "operator": "Exists"}]}),
        ] {
            let (got, problems) = egress(json!({"egress": [{"toEndpoints": [selector.clone()]}]}));
            assert_eq!(got, expected, "{selector}");
            assert!(errors(&problems).is_empty(), "{problems:#?}");
        }
    }
}

#[test]
fn another_node_comes_in_as_one() {
    for (entities, decision) in [
        (json!(["remote-node"]), ALLOW),
        (json!(["cluster"]), ALLOW),
        (json!(["host"]), DENY),
        (json!(["world"]), DENY),
    ] {
        let spec = json!({"endpointSelector": {}, "ingress": [{"fromEntities": entities}]});
        let mut all = objects();
        all.push(policy(spec));
        let (cluster, _) = world(&all);
        assert_eq!(Ask::new("192.0.2.8", "a/server", 80, "").decide(&cluster), decision, "{entities}");
    }
}
