//! The policies of the made-up cluster: what each of twenty kinds of need looks like, in turn.
//!
//! Knows nothing of pods but their labels.

#![allow(clippy::needless_pass_by_value, reason = "JSON literals are handed over")]

use super::{APPS, Size, namespace, team};
use serde_json::{Value, json};

/// A policy of a namespace. The first two close it and open DNS, the others open one thing each.
#[must_use]
pub(crate) fn of_namespace(size: &Size, number: usize, policy: usize) -> Value {
    let app = APPS[policy % APPS.len()];
    let peer = APPS[(policy / APPS.len() + policy + 1) % APPS.len()];
    let name = format!("{policy:02}-{app}-from-{peer}");
    // Namespaces of other teams, a different one for every policy.
    let other = (number * 7 + policy * 13 + 1) % size.namespaces;
    match policy % 20 {
        0 => network(
            number,
            "00-default-deny",
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        ),
        1 => network(
            number,
            "01-dns",
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{
            "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace(0)}}, "podSelector": {"matchLabels": {"app": "cache"}}}],
            "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]}]}),
        ),
        2..=5 => network(
            number,
            &name,
            json!({"podSelector": app_is(app), "ingress": [{
            "from": [{"podSelector": app_is(peer)}, {"podSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["front"]}]}}],
            "ports": [{"port": "http"}]}]}),
        ),
        6 | 7 => network(
            number,
            &name,
            json!({"podSelector": app_is(app), "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": team(other)}}, "podSelector": app_is(peer)}], "ports": [{"port": 8080}]}],
            "egress": [{"to": [{"podSelector": app_is(peer)}], "ports": [{"port": "metrics"}]}]}),
        ),
        8 => network(
            number,
            &name,
            json!({"podSelector": app_is(app), "policyTypes": ["Egress"], "egress": [{
            "to": [{"ipBlock": {"cidr": format!("203.0.{}.0/24", number % 256), "except": [format!("203.0.{}.128/25", number % 256)]}}],
            "ports": [{"port": 443}]}]}),
        ),
        9 => network(
            number,
            &name,
            json!({"podSelector": {}, "ingress": [{
            "from": [{"namespaceSelector": {"matchLabels": {"env": "prod"}}, "podSelector": app_is("worker")}], "ports": [{"port": "metrics"}]}]}),
        ),
        10 | 11 => cilium(number, &name, app, peer, other),
        policy => l7(number, &name, app, &l7_from(policy, peer, other), policy),
    }
}

fn app_is(app: &str) -> Value {
    json!({"matchLabels": {"app": app}})
}

fn l7_from(policy: usize, peer: &str, other: usize) -> Value {
    match policy % 4 {
        0 => {
            json!([{"podSelector": app_is(peer), "namespaceSelector": {"matchLabels": {"team": team(other)}}}])
        }
        1 => json!([{"podSelector": {}}]),
        _ => json!([{"podSelector": app_is(peer)}]),
    }
}

/// A `NetworkPolicy`.
#[must_use]
pub(crate) fn network(number: usize, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace(number), "name": name}, "spec": spec})
}

/// An `L7NetworkPolicy`: a few resources of an API, as somebody would write them down.
fn l7(number: usize, name: &str, app: &str, from: &Value, policy: usize) -> Value {
    let resources = ["items", "orders", "carts", "users"];
    let http: Vec<Value> = resources
        .iter()
        .enumerate()
        .map(|(at, resource)| match (at + policy) % 4 {
            0 => json!({"methods": ["GET", "HEAD"], "path": {"type": "PathPrefix", "value": format!("/api/v1/{app}/{resource}")}}),
            1 => json!({"methods": ["POST"], "path": {"type": "Exact", "value": format!("/api/v1/{app}/{resource}/{policy}")}}),
            2 => json!({"methods": ["GET"], "path": {"type": "RegularExpression", "value": format!("/api/v[0-9]+/{resource}/[a-z0-9-]{{1,32}}")}}),
            _ => json!({"methods": ["PUT"], "path": {"type": "Exact", "value": format!("/api/v1/{resource}")},
                "headers": [{"name": "x-tenant", "type": "Exact", "value": namespace(number)}]}),
        })
        .collect();
    let mut rule = json!({"name": "calls", "from": from, "ports": [{"port": 8080}], "rules": {"http": http}});
    if policy % 20 == 19 {
        rule = json!({"name": "calls", "from": from, "ports": [{"port": "http"}],
            "rules": {"grpc": [{"service": format!("{app}.v1.Items"), "methods": ["Get", "List"]}, {"service": "grpc.health.v1.Health"}]}});
    }
    let mut spec = json!({"podSelector": app_is(app), "ingress": [rule]});
    if policy % 20 == 18 {
        spec["ingressDeny"] = json!([{"name": "admin", "ports": [{"port": 8080}],
            "rules": {"http": [{"path": {"type": "PathPrefix", "value": "/admin"}}]}}]);
    }
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": namespace(number), "name": name}, "spec": spec})
}

fn cilium(number: usize, name: &str, app: &str, peer: &str, other: usize) -> Value {
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": namespace(number), "name": name},
        "spec": {"endpointSelector": app_is(app), "ingress": [{
            "fromEndpoints": [{"matchLabels": {"app": peer, "k8s:io.kubernetes.pod.namespace": namespace(other)}}],
            "toPorts": [{"ports": [{"port": "8080", "protocol": "TCP"}],
                "rules": {"http": [{"method": "GET", "path": "/public/.*"}, {"method": "POST", "path": format!("/hooks/{app}")}]}}]}]}})
}

/// A policy of no namespace: of the Admin tier, of the Baseline tier, or Cilium's.
#[must_use]
pub(crate) fn wide(size: &Size, number: usize) -> Value {
    let name = format!("wide-{number:02}");
    match number % 4 {
        0 => {
            json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
            "spec": {"tier": "Admin", "priority": number, "subject": {"namespaces": {"matchLabels": {"env": "dev"}}},
                "ingress": [{"action": "Deny", "from": [{"namespaces": {"matchLabels": {"team": team(number % size.namespaces)}}}]}]}})
        }
        1 => {
            json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "ClusterL7NetworkPolicy", "metadata": {"name": name},
            "spec": {"tier": "Admin", "priority": 100 + number, "subject": {"pods": {"namespaceSelector": {}, "podSelector": app_is(APPS[number % APPS.len()])}},
                "ingress": [{"action": "Deny", "name": "internal", "ports": [{"port": 8080}], "rules": {"http": [{"path": {"type": "PathPrefix", "value": "/internal"}}]}}]}})
        }
        2 => {
            json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
            "spec": {"tier": "Baseline", "priority": number, "subject": {"namespaces": {}},
                "egress": [{"action": "Accept", "to": [{"networks": ["198.51.100.0/24"]}], "protocols": [{"tcp": {"destinationPort": {"number": 443}}}]}]}})
        }
        _ => {
            json!({"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": name},
            "spec": {"endpointSelector": app_is("db"), "ingressDeny": [{"fromCIDR": [format!("192.0.2.{number}/32")]}]}})
        }
    }
}
