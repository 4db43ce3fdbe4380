//! A cluster of any size, made up: what the compiler's benchmarks and its test of incremental compiling share.
//!
//! Pure: the same size gives the same objects. The mix is that of a large shared cluster: every namespace closes
//! itself and opens what it needs by label, some peers are other teams' namespaces, some are CIDRs, some ports have
//! names, half of the policies speak HTTP. Knows nothing of the compiler.

#![allow(dead_code, reason = "every binary uses its part")]

pub(crate) mod policies;
pub(crate) mod services;

use policies::network;
use serde_json::{Value, json};
use sluice_crd::Objects;

/// The apps of a namespace.
pub(crate) const APPS: [&str; 5] = ["api", "web", "worker", "cache", "db"];

/// Namespaces of one team.
const TEAM: usize = 10;

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Namespaces, each with [`APPS`].
    pub(crate) namespaces: usize,
    /// Nodes; pods are spread over them in turn.
    pub(crate) nodes: usize,
    /// Pods of each app.
    pub(crate) replicas: usize,
    /// Policies of each namespace.
    pub(crate) policies: usize,
    /// Policies of a tier, and cluster-wide ones.
    pub(crate) wide: usize,
}

impl Size {
    /// The one of the project's goal: 10,000 policies, 20,000 pods on 200 nodes.
    pub(crate) const LARGE: Self = Self { namespaces: 499, nodes: 200, replicas: 8, policies: 20, wide: 20 };

    /// A tenth of it.
    pub(crate) const SMALL: Self = Self { namespaces: 50, nodes: 20, replicas: 8, policies: 20, wide: 5 };

    /// How many policies that makes.
    #[must_use]
    pub(crate) const fn all_policies(&self) -> usize {
        self.namespaces * self.policies + self.wide
    }
}

/// The name of a namespace.
#[must_use]
pub(crate) fn namespace(number: usize) -> String {
    format!("ns-{number:03}")
}

/// The team that a namespace belongs to.
#[must_use]
pub(crate) fn team(namespace: usize) -> String {
    format!("team-{}", namespace / TEAM)
}

/// Every object of a cluster, as manifests.
#[must_use]
pub(crate) fn manifests(size: &Size) -> Vec<Value> {
    let mut out: Vec<Value> = (0..size.nodes).map(node).collect();
    let mut pods = 0;
    for number in 0..size.namespaces {
        out.push(namespace_manifest(number));
        for app in APPS {
            for replica in 0..size.replicas {
                out.push(pod(number, app, replica, pods % size.nodes, pods / size.nodes));
                pods += 1;
            }
        }
        out.extend((0..size.policies).map(|policy| policies::of_namespace(size, number, policy)));
    }
    out.extend((0..size.wide).map(|number| policies::wide(size, number)));
    out
}

/// The same, read.
///
/// # Panics
/// If a manifest made here is not as its kind asks: nobody would know what is measured.
#[must_use]
pub(crate) fn objects(manifests: &[Value]) -> Objects {
    let loaded = sluice_crd::load_value(manifests);
    assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
    loaded.objects
}

fn node(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("node-{number}"), "labels": {"kubernetes.io/os": "linux", "zone": format!("z{}", number % 3)}},
        "spec": {"podCIDR": format!("10.{}.{}.0/24", 64 + number / 256, number % 256)},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.18.{}.{}", number / 250, 1 + number % 250)}]},
    })
}

fn namespace_manifest(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": namespace(number), "labels": {
            "team": team(number),
            "env": (["prod", "staging", "dev"][number % 3]),
            "sluice.dev/dataplane": "enabled",
        }},
    })
}

/// A pod with the labels that a Deployment and a Helm chart give it.
#[must_use]
pub(crate) fn pod(namespace_number: usize, app: &str, replica: usize, node: usize, on_node: usize) -> Value {
    let hash = namespace_number * 31 + app.len();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace(namespace_number),
            "name": format!("{app}-{hash:x}-{replica}"),
            "uid": format!("{namespace_number}-{app}-{replica}"),
            "labels": {
                "app": app,
                "app.kubernetes.io/name": app,
                "app.kubernetes.io/managed-by": "Helm",
                "tier": if matches!(app, "api" | "web") { "front" } else { "back" },
                "pod-template-hash": format!("{hash:x}"),
            },
        },
        "spec": {
            "nodeName": format!("node-{node}"),
            "serviceAccountName": app,
            "containers": [{"name": app, "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "metrics", "containerPort": 9090 + replica % 2},
            ]}],
        },
        "status": {"phase": "Running", "podIP": format!("10.{}.{}.{}", 64 + node / 256, node % 256, 2 + on_node)},
    })
}
