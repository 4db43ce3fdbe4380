//! `NetworkPolicy`.

use super::{Made, block, list, manifest, namespace, namespaces, object, one_of, pods, port, sometimes};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A `NetworkPolicy` of this name.
pub(crate) fn policy(name: String) -> Made {
    let types = one_of(&[
        Value::Null,
        json!([]),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    (namespace(), pods(), types, rules("from"), rules("to"))
        .prop_map(move |(namespace, selector, types, ingress, egress)| {
            let spec = object([
                ("podSelector", selector),
                ("policyTypes", types),
                ("ingress", ingress),
                ("egress", egress),
            ]);
            manifest("networking.k8s.io/v1", "NetworkPolicy", &namespace, &name, spec)
        })
        .boxed()
}

fn rules(peers: &'static str) -> Made {
    let rule = (sometimes(2, list(peer(), 0..3)), sometimes(2, list(port(), 0..3)))
        .prop_map(move |(given, ports)| object([(peers, given), ("ports", ports)]));
    sometimes(2, list(rule, 0..3))
}

fn peer() -> Made {
    prop_oneof![
        3 => pods().prop_map(|pods| json!({"podSelector": pods})),
        2 => namespaces().prop_map(|all| json!({"namespaceSelector": all})),
        2 => (namespaces(), pods()).prop_map(|(all, pods)| json!({"namespaceSelector": all, "podSelector": pods})),
        3 => block().prop_map(|block| json!({"ipBlock": block})),
    ]
    .boxed()
}
