//! The world of Cilium's connectivity tests: two clients, two echo servers, what is outside, and their manifests.
//!
//! The labels are those of the corpus's own description; addresses and names of what is outside are ours, for its
//! manifests leave them open. Knows nothing of verdicts.

use serde_json::{Value, json};
use std::path::Path;

/// The namespace of the tests.
pub(crate) const NAMESPACE: &str = "cilium-test";

/// Name, node, address and labels of a pod, whose service account has its name.
type PodGiven = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const PODS: [PodGiven; 4] = [
    ("client", "one", "10.244.1.1", &[("kind", "client"), ("name", "client")]),
    ("client2", "one", "10.244.1.2", &[("kind", "client"), ("name", "client2"), ("other", "client")]),
    (
        "echo-same-node",
        "one",
        "10.244.1.3",
        &[("kind", "echo"), ("name", "echo-same-node"), ("other", "echo")],
    ),
    (
        "echo-other-node",
        "two",
        "10.244.2.1",
        &[("kind", "echo"), ("name", "echo-other-node"), ("first", "echo")],
    ),
];

/// Whom the expectations name beside pods, their addresses, and the names that clients ask for.
const OUTSIDE: [(&str, &str, &str); 4] = [
    ("external-ip", "203.0.113.1", "one.example"),
    ("other-external-ip", "203.0.113.2", "two.example"),
    ("external-fqdn", "203.0.113.1", "one.example"),
    ("other-external-fqdn", "203.0.113.2", "two.example"),
];

/// What the fields of the templates stand for.
const FIELDS: [(&str, &str); 12] = [
    ("TestNamespace", NAMESPACE),
    ("ClusterNameLocal", "default"),
    ("ExternalTarget", "one.example."),
    ("ExternalOtherTarget", "two.example."),
    ("ExternalCIDRv4", "203.0.113.0/24"),
    ("ExternalIPv4", "203.0.113.1"),
    ("ExternalOtherIPv4", "203.0.113.2"),
    ("ExternalCIDRv6", "2001:db8::/64"),
    ("ExternalIPv6", "2001:db8::1"),
    ("ExternalOtherIPv6", "2001:db8::2"),
    ("K8sCIDR", "192.0.2.1/32"),
    ("ExternalDeploymentPort", "8080"),
];

/// Namespaces, nodes and pods.
pub(crate) fn world() -> Vec<Value> {
    let namespace = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name,
            "labels": {"kubernetes.io/metadata.name": name}}})
    };
    let node = |name: &str, address: &str, cidr: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": cidr},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
    };
    let mut out = vec![
        namespace(NAMESPACE),
        namespace("kube-system"),
        node("one", "192.0.2.1", "10.244.1.0/24"),
        node("two", "192.0.2.2", "10.244.2.0/24"),
    ];
    for (name, node, address, labels) in PODS {
        let mut labels: serde_json::Map<String, Value> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
        labels.insert("io.cilium.k8s.policy.cluster".into(), "default".into());
        out.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": NAMESPACE, "name": name, "labels": labels},
            "spec": {"nodeName": node, "serviceAccountName": name,
                "containers": [{"name": "c", "ports": [{"name": "http-8080", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": address},
        }));
    }
    out
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// As a query names it.
    pub(crate) name: String,
    /// Its address.
    pub(crate) address: &'static str,
    /// The name that clients know it by.
    pub(crate) host: String,
}

/// Whom a word of the expectations means: a pod, what is outside, or with `*` or a common beginning several pods.
pub(crate) fn ends(word: &str) -> Vec<End> {
    let pod = |(name, _, address, _): &PodGiven| End {
        name: format!("{NAMESPACE}/{name}"),
        address,
        host: (*name).to_owned(),
    };
    let outside = OUTSIDE.iter().filter(|(name, ..)| *name == word).map(|(_, address, host)| End {
        name: (*address).to_owned(),
        address,
        host: (*host).to_owned(),
    });
    let found: Vec<End> = PODS.iter().filter(|(name, ..)| *name == word).map(pod).chain(outside).collect();
    if !found.is_empty() {
        return found;
    }
    let start = word.trim_end_matches('*');
    PODS.iter().filter(|(name, ..)| name.starts_with(start) && !start.is_empty()).map(pod).collect()
}

/// The name that a client asks for by TLS: `external`, and then of what is outside.
pub(crate) fn server_name(word: &str) -> Option<&'static str> {
    OUTSIDE.iter().find(|(name, ..)| name.strip_suffix("-fqdn") == Some(word)).map(|(.., host)| *host)
}

/// The objects of a manifest, its templates filled and in the namespace of the tests.
pub(crate) fn read(path: &Path) -> Result<Vec<Value>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&filled(&text)?)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    objects.retain(|object| !object.is_null());
    for object in &mut objects {
        let kind = object["kind"].as_str().unwrap_or_default();
        let clusterwide = kind.starts_with("CiliumClusterwide") || kind.starts_with("ClusterNetwork");
        if !clusterwide && kind != "CiliumCIDRGroup" && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = NAMESPACE.into();
        }
    }
    Ok(objects)
}

/// A template with its fields filled; an error names what nobody knows here.
fn filled(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (field, after) = after.split_once("}}").ok_or("a template field does not end")?;
        out.push_str(before);
        out.push_str(&value(field).ok_or_else(|| format!("template field {{{{{field}}}}}"))?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn value(field: &str) -> Option<String> {
    let known = |name: &str| FIELDS.iter().find(|(field, _)| *field == name).map(|(_, value)| *value);
    let words: Vec<&str> = field.split_whitespace().collect();
    match words[..] {
        [name] => known(name.strip_prefix('.')?).map(str::to_owned),
        [name, "|", "ipToCIDR"] => {
            let address = known(name.strip_prefix('.')?)?;
            Some(format!("{address}/{}", if address.contains(':') { 128 } else { 32 }))
        }
        ["trimSuffix", name, "\".\""] => {
            known(name.strip_prefix('.')?).map(|value| value.trim_end_matches('.').to_owned())
        }
        _ => None,
    }
}
