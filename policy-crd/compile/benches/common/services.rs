//! The other shape of a large cluster: few namespaces, in each of which every service has its own label and its own
//! policy, with peers looked for in every namespace.
//!
//! What walks all pods, or all classes, for each policy shows here. Knows nothing of the compiler.

use super::{namespace_manifest, network, node, pod};
use serde_json::{Value, json};

/// Namespaces.
const NAMESPACES: usize = 10;
/// Nodes.
const NODES: usize = 200;
/// Pods of each service.
const REPLICAS: usize = 2;

/// A cluster of so many services, each with a policy.
#[must_use]
pub(crate) fn manifests(services: usize) -> Vec<Value> {
    let mut out: Vec<Value> = (0..NODES).map(node).chain((0..NAMESPACES).map(namespace_manifest)).collect();
    for service in 0..services {
        let namespace = service % NAMESPACES;
        let app = format!("svc-{service}");
        for replica in 0..REPLICAS {
            let pods = service * REPLICAS + replica;
            out.push(pod(namespace, &app, replica, pods % NODES, pods / NODES));
        }
        let callers: Vec<Value> = (1..4)
            .map(|step| {
                let caller = format!("svc-{}", (service * 7 + step * 131) % services);
                json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": caller}}})
            })
            .collect();
        let spec = json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": callers, "ports": [{"port": "http"}]}],
            "egress": [{"to": callers, "ports": [{"port": "metrics"}]}]});
        out.push(network(namespace, &app, spec));
    }
    out
}
