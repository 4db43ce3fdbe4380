//! A small world for the tests of Cilium's policies. Called by them alone.

#![allow(clippy::needless_pass_by_value, reason = "test helpers take what json! makes")]

use super::{Ask, load};
use serde_json::{Value, json};
use sluice_compile::query::Cluster;
use sluice_crd::{Problem, Severity};
use sluice_policy::Decision;

pub(crate) const ALLOW: Decision = Decision::Allow;
pub(crate) const DENY: Decision = Decision::Deny;

/// A pod with a port of the name `web`.
pub(crate) fn pod(namespace: &str, name: &str, ip: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"nodeName": "n", "serviceAccountName": format!("sa-{name}"),
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"podIP": ip},
    })
}

/// `a/server`, `a/client`, `b/client` and what is outside.
pub(crate) fn world(policies: &[Value]) -> (Cluster, Vec<Problem>) {
    let namespace = |name: &str, team: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}});
    let mut objects = vec![
        namespace("a", "red"),
        namespace("b", "blue"),
        pod("a", "server", "10.0.0.1", json!({"app": "server"})),
        pod("a", "client", "10.0.0.2", json!({"app": "client"})),
        // Its labels say what only the cluster may say.
        pod(
            "b",
            "client",
            "10.0.0.3",
            json!({"app": "client", "io.kubernetes.pod.namespace": "a",
            "io.cilium.k8s.policy.serviceaccount": "sa-server", "k8s:app": "server"}),
        ),
    ];
    objects.extend_from_slice(policies);
    load(&objects)
}

/// A policy of the namespace `a`.
pub(crate) fn policy(spec: Value) -> Value {
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": "a", "name": "p"}, "spec": spec})
}

/// The errors among the problems.
pub(crate) fn errors(problems: &[Problem]) -> Vec<&Problem> {
    problems.iter().filter(|problem| problem.severity == Severity::Error).collect()
}

/// What becomes of a connection to the server.
pub(crate) fn ask(cluster: &Cluster, from: &str, port: u16) -> Decision {
    Ask::new(from, "a/server", port, "").decide(cluster)
}
