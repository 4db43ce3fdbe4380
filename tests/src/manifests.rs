//! Kubernetes objects as an API server would show them, for a directory that is the cluster.
//!
//! Knows nothing of worlds or of policies. Called by fixtures, the cluster and the demo.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// A namespace, in or out of the dataplane.
#[must_use]
pub fn namespace(name: &str, dataplane: &str, labels: &BTreeMap<String, String>) -> Value {
    let mut all = labels.clone();
    // The API server sets this one on every namespace.
    all.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    all.insert("sluice.dev/dataplane".to_owned(), dataplane.to_owned());
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": all}})
}

/// What a pod's manifest says.
#[derive(Clone, Copy, Debug)]
pub struct PodManifest<'a> {
    /// `namespace/name`.
    pub name: &'a str,
    /// `spec.nodeName`.
    pub node: &'a str,
    /// `metadata.uid` ends with it.
    pub serial: u64,
    /// `status.podIP`.
    pub v4: Ipv4Addr,
    /// The second of `status.podIPs`.
    pub v6: Ipv6Addr,
    /// `metadata.labels`.
    pub labels: &'a BTreeMap<String, String>,
    /// The container's ports.
    pub ports: &'a [Value],
    /// `spec.serviceAccountName`.
    pub service_account: Option<&'a str>,
}

/// A pod that runs.
#[must_use]
pub fn pod(pod: &PodManifest<'_>) -> Value {
    let (namespace, name) = pod.name.split_once('/').unwrap_or(("default", pod.name));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": format!("uid-{namespace}-{name}-{}", pod.serial),
            "labels": pod.labels,
        },
        "spec": {
            "nodeName": pod.node,
            "serviceAccountName": pod.service_account.unwrap_or("default"),
            "containers": [{"name": "main", "image": "example.com/main:1", "ports": pod.ports}],
        },
        "status": status(pod.v4, pod.v6),
    })
}

/// The status of a pod that has these addresses.
#[must_use]
pub fn status(v4: Ipv4Addr, v6: Ipv6Addr) -> Value {
    json!({"phase": "Running", "podIP": v4.to_string(), "podIPs": [{"ip": v4.to_string()}, {"ip": v6.to_string()}]})
}

/// A node with its addresses and its pods' ranges.
#[must_use]
pub fn node(node: &crate::world::Node) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name},
        "spec": {"podCIDR": node.pods_v4, "podCIDRs": [node.pods_v4, node.pods_v6]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": node.v4.to_string()},
            {"type": "InternalIP", "address": node.v6.to_string()},
        ]},
    })
}

/// Writes objects into one file, which appears whole or not at all. JSON is YAML.
///
/// # Errors
/// When the directory cannot be written.
pub fn write(path: &Path, objects: &[Value]) -> Result<()> {
    let mut text = String::new();
    for object in objects {
        writeln!(text, "---\n{object:#}")?;
    }
    replace(path, &text)
}

/// Writes a file, which appears whole or not at all.
///
/// # Errors
/// When the directory cannot be written.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let draft = path.with_file_name(format!(".{}", name.to_string_lossy()));
    std::fs::write(&draft, text).with_context(|| draft.display().to_string())?;
    std::fs::rename(&draft, path).with_context(|| path.display().to_string())
}
