//! `toServices`: a Service with a selector is its pods, one without its addresses outside the cluster.

#![allow(clippy::needless_pass_by_value, reason = "test helpers take what json! makes")]

mod common;

use common::Ask;
use common::cilium::{ALLOW, DENY, errors, policy, world};
use serde_json::{Value, json};
use sluice_crd::{Problem, Severity};
use sluice_policy::Decision;

fn service(namespace: &str, name: &str, labels: Value, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "labels": labels}, "spec": spec})
}

fn slice(namespace: &str, service: &str, endpoints: Value) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": namespace, "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints})
}

/// Two Services of pods, and one of addresses outside that claims a pod's and a node's as well.
fn objects() -> Vec<Value> {
    vec![
        service("a", "clients", json!({"tier": "web"}), json!({"selector": {"app": "client"}})),
        service("b", "clients", json!({"tier": "web"}), json!({"selector": {"app": "client"}})),
        service("a", "outside", json!({"external": "yes"}), json!({})),
        slice(
            "a",
            "outside",
            json!([{"addresses": ["203.0.113.1", "10.0.0.3", "192.0.2.7"]},
                {"addresses": ["203.0.113.2"], "conditions": {"ready": false}},
                {"addresses": ["203.0.113.3"], "conditions": {"ready": false, "serving": true, "terminating": true}}]),
        ),
        // Another namespace's slice of the same name says nothing of this Service.
        slice("b", "outside", json!([{"addresses": ["203.0.113.9"]}])),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]}}),
    ]
}

const TO: [&str; 7] =
    ["a/client", "b/client", "203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.9", "192.0.2.7"];

/// From the server to everybody, on one port.
fn egress(rules: Value, more: &[Value]) -> ([Decision; 7], Vec<Problem>) {
    let mut spec = json!({"endpointSelector": {"matchLabels": {"app": "server"}}});
    spec.as_object_mut().expect("object").extend(rules.as_object().expect("object").clone());
    let mut all = objects();
    all.push(policy(spec));
    all.extend_from_slice(more);
    let (cluster, problems) = world(&all);
    (TO.map(|to| Ask::new("a/server", to, 80, "").decide(&cluster)), problems)
}

fn named(names: &[&str]) -> [Decision; 7] {
    TO.map(|to| if names.contains(&to) { ALLOW } else { DENY })
}

#[test]
fn services_are_pods_or_addresses_outside() {
    let by_name =
        |name: &str, namespace: Value| json!({"k8sService": {"serviceName": name, "namespace": namespace}});
    let by_labels = |labels: Value, namespace: Value| json!({"k8sServiceSelector": {"selector": {"matchLabels": labels}, "namespace": namespace}});
    let outside = ["203.0.113.1", "203.0.113.3"];
    let pods = ["a/client", "b/client"];
    for (item, expected) in [
        (by_name("clients", json!("a")), &pods[..1]),
        (by_name("clients", json!("b")), &pods[1..]),
        (by_name("clients", Value::Null), &pods),
        (by_name("outside", json!("a")), &outside),
        (by_name("outside", json!("b")), &[]),
        (by_labels(json!({"tier": "web"}), Value::Null), &pods),
        (by_labels(json!({"tier": "web"}), json!("b")), &pods[1..]),
        (by_labels(json!({"k8s:external": "yes"}), Value::Null), &outside),
        (by_labels(json!({"external": "no"}), Value::Null), &[]),
    ] {
        let (got, problems) = egress(json!({"egress": [{"toServices": [item.clone()]}]}), &[]);
        assert!(errors(&problems).is_empty(), "{problems:#?}");
        assert_eq!(got, named(expected), "{item}");
        let ported =
            json!({"egress": [{"toServices": [item.clone()], "toPorts": [{"ports": [{"port": "80"}]}]}]});
        assert_eq!(egress(ported, &[]).0, named(expected), "{item}");
        let other =
            json!({"egress": [{"toServices": [item.clone()], "toPorts": [{"ports": [{"port": "81"}]}]}]});
        assert_eq!(egress(other, &[]).0, [DENY; 7], "{item}");
    }
    assert_eq!(egress(json!({"egress": [{"toServices": []}]}), &[]).0, [DENY; 7]);
    let everything = json!({"k8sServiceSelector": {"selector": {}}});
    let (got, _) = egress(json!({"egress": [{"toServices": [everything]}]}), &[]);
    assert_eq!(got, named(&["a/client", "b/client", "203.0.113.1", "203.0.113.3"]));
}

#[test]
fn a_service_that_is_not_there_is_told_and_names_nobody() {
    let nobody = json!({"k8sService": {"serviceName": "none", "namespace": "a"}});
    let (got, problems) = egress(json!({"egress": [{"toServices": [nobody]}]}), &[]);
    assert_eq!(got, [DENY; 7]);
    let told = problems.iter().find(|problem| problem.path == "spec.egress[0].toServices[0].k8sService");
    assert_eq!(told.map(|problem| problem.severity), Some(Severity::Warning), "{problems:#?}");
    let wide = json!({"k8sService": {"serviceName": "clients"}});
    let (_, problems) = egress(json!({"egress": [{"toServices": [wide]}]}), &[]);
    assert!(
        problems.iter().any(|p| p.severity == Severity::Warning && p.reason.contains("every one, here of b"))
    );
}

#[test]
fn a_deny_takes_whoever_has_the_address() {
    let deny =
        |item: Value| json!({"egress": [{"toEntities": ["all"]}], "egressDeny": [{"toServices": [item]}]});
    let open = |denied: &[&str]| TO.map(|to| if denied.contains(&to) { DENY } else { ALLOW });
    let (got, _) = egress(deny(json!({"k8sService": {"serviceName": "clients", "namespace": "a"}})), &[]);
    assert_eq!(got, open(&["a/client"]));
    let (got, _) = egress(deny(json!({"k8sService": {"serviceName": "outside", "namespace": "a"}})), &[]);
    assert_eq!(got, open(&["b/client", "203.0.113.1", "203.0.113.2", "203.0.113.3", "192.0.2.7"]));
    let (got, problems) = egress(deny(json!({"k8sService": {"serviceName": "none"}})), &[]);
    assert_eq!(got, [DENY; 7], "{problems:#?}");
}

#[test]
fn what_is_in_doubt_grants_nothing() {
    let mut fqdn = slice("a", "outside", json!([{"addresses": ["host.example"]}]));
    fqdn["addressType"] = json!("FQDN");
    fqdn["metadata"]["name"] = json!("outside-2");
    let special = |address: &str| {
        let mut slice = slice("a", "outside", json!([{"addresses": [address]}]));
        slice["metadata"]["name"] = json!("outside-3");
        slice
    };
    let by_name = json!({"k8sService": {"serviceName": "outside", "namespace": "a"}});
    for (path, item, more) in [
        ("", json!({}), vec![]),
        ("", json!({"k8sService": {"serviceName": "a"}, "k8sServiceSelector": {"selector": {}}}), vec![]),
        (".k8sService", json!({"k8sService": {"namespace": "a"}}), vec![]),
        (".k8sService", by_name.clone(), vec![fqdn]),
        (".k8sService", by_name.clone(), vec![special("169.254.169.254")]),
        (".k8sService", by_name.clone(), vec![special("127.0.0.1")]),
        (".k8sService", by_name, vec![special("::ffff:0.0.0.0")]),
        (
            ".k8sServiceSelector.selector",
            json!({"k8sServiceSelector": {"selector": {"matchLabels": {"reserved:host": ""}}}}),
            vec![],
        ),
        (
            ".k8sServiceSelector.selector",
            json!({"k8sServiceSelector": {"selector": {"matchLabels": {"a": "{{.A}}"}}}}),
            vec![],
        ),
        (
            ".k8sServiceSelector.selector.matchExpressions[0].operator",
            json!({"k8sServiceSelector": {"selector": {"matchExpressions": [{"key": "a", "operator": "in"}]}}}),
            vec![],
        ),
    ] {
        let (got, problems) = egress(json!({"egress": [{"toServices": [item.clone()]}]}), &more);
        let path = format!("spec.egress[0].toServices[0]{path}");
        assert!(errors(&problems).iter().any(|problem| problem.path == path), "{path}\n{problems:#?}");
        assert_eq!(got, [DENY; 7], "{item}");
        let deny =
            json!({"egress": [{"toEntities": ["all"]}], "egressDeny": [{"toServices": [item.clone()]}]});
        assert_eq!(egress(deny, &more).0, [DENY; 7], "{item}");
    }
}

#[test]
fn items_are_bounded() {
    let item = json!({"k8sService": {"serviceName": "clients", "namespace": "a"}});
    let rules = |number: usize| json!({"egress": [{"toServices": vec![item.clone(); number]}]});
    assert_eq!(egress(rules(256), &[]).0, named(&["a/client"]));
    let (got, problems) = egress(rules(257), &[]);
    assert_eq!((got, errors(&problems).len()), ([DENY; 7], 1), "{problems:#?}");
}
