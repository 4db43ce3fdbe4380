//! `ClusterNetworkPolicy` and `ClusterL7NetworkPolicy`.

use super::{Made, l7, list, manifest, namespaces, object, one_of, pods, sometimes, word};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A policy of a tier, of either kind, of this name and priority: of equal priorities nobody knows the order.
pub(crate) fn policy(name: String, priority: usize) -> Made {
    let other = name.clone();
    let upstream =
        (word(&["Admin", "Baseline"]), subject(), rules(upstream_rule("from")), rules(upstream_rule("to")))
            .prop_map(move |(tier, subject, ingress, egress)| {
                let spec = object([
                    ("tier", tier),
                    ("priority", priority.into()),
                    ("subject", subject),
                    ("ingress", ingress),
                    ("egress", egress),
                ]);
                let api = "policy.networking.k8s.io/v1alpha2";
                manifest(api, "ClusterNetworkPolicy", &Value::Null, &name, spec)
            });
    let mode = one_of(&[Value::Null, Value::Null, "Enforce".into(), "Audit".into()]);
    let rules_of = |peers| rules(l7::tiered_rule(peers));
    let ours = (word(&["Admin", "Baseline"]), subject(), mode, rules_of("from"), rules_of("to")).prop_map(
        move |(tier, subject, mode, ingress, egress)| {
            let spec = object([
                ("tier", tier),
                ("priority", priority.into()),
                ("subject", subject),
                ("mode", mode),
                ("ingress", ingress),
                ("egress", egress),
            ]);
            manifest("policy.sluice.dev/v1alpha1", "ClusterL7NetworkPolicy", &Value::Null, &other, spec)
        },
    );
    prop_oneof![upstream, ours].boxed()
}

fn rules(rule: Made) -> Made {
    sometimes(2, list(rule, 1..4))
}

/// Namespaces, or pods of namespaces.
fn subject() -> Made {
    prop_oneof![
        namespaces().prop_map(|all| json!({"namespaces": all})),
        (namespaces(), pods())
            .prop_map(|(all, pods)| json!({"pods": {"namespaceSelector": all, "podSelector": pods}})),
    ]
    .boxed()
}

fn upstream_rule(peers: &'static str) -> Made {
    let protocols = sometimes(2, list(protocol(true), 1..3));
    let of_pods = (word(&["Accept", "Deny", "Pass"]), list(pod_peer(), 1..3), protocols).prop_map(
        move |(action, given, protocols)| {
            object([("action", action), (peers, given), ("protocols", protocols)])
        },
    );
    if peers == "from" {
        return of_pods.boxed();
    }
    // "There are no namedPorts for networks/nodes/domainNames."
    let protocols = sometimes(2, list(protocol(false), 1..3));
    let of_addresses = (word(&["Accept", "Deny", "Pass"]), list(address_peer(), 1..3), protocols).prop_map(
        move |(action, given, protocols)| {
            object([("action", action), (peers, given), ("protocols", protocols)])
        },
    );
    prop_oneof![of_pods, of_addresses].boxed()
}

fn pod_peer() -> Made {
    prop_oneof![
        namespaces().prop_map(|all| json!({"namespaces": all})),
        (namespaces(), pods())
            .prop_map(|(all, pods)| json!({"pods": {"namespaceSelector": all, "podSelector": pods}})),
    ]
    .boxed()
}

fn address_peer() -> Made {
    one_of(&[
        json!({"networks": ["10.0.1.0/24", "203.0.113.0/24"]}),
        json!({"networks": ["0.0.0.0/0"]}),
        json!({"networks": ["fd00::/16", "192.0.2.1/32"]}),
        json!({"nodes": {}}),
        json!({"nodes": {"matchLabels": {"zone": "1"}}}),
    ])
}

fn protocol(names: bool) -> Made {
    let name = if names { 2 } else { 0 };
    let port = one_of(&[
        json!({"destinationPort": {"number": 80}}),
        json!({"destinationPort": {"number": 81}}),
        json!({"destinationPort": {"range": {"start": 79, "end": 90}}}),
    ]);
    prop_oneof![
        6 => (word(&["tcp", "tcp", "udp", "sctp"]), port).prop_map(|(protocol, port)| json!({protocol.as_str().unwrap_or_default(): port})),
        name => word(&["web", "db"]).prop_map(|name| json!({"destinationNamedPort": name})),
    ]
    .boxed()
}
