//! Upstream's conformance world as objects, and what its tests do to them between their probes.
//!
//! Knows nothing of verdicts.

use serde_json::{Value, json};
use std::path::Path;

/// The ports of the pods on the host's network: upstream's suite is given them, and any will do.
const HOST_NETWORK_PORTS: [u16; 8] = [34_345, 34_346, 34_347, 34_348, 34_349, 34_350, 34_351, 34_352];
/// The node of every pod.
const NODE_ADDRESS: &str = "172.18.0.2";

/// The objects of a file, its template fields filled.
pub(crate) fn read(path: &Path) -> Vec<Value> {
    let mut text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for (index, port) in HOST_NETWORK_PORTS.iter().enumerate() {
        text = text.replace(&format!("{{{{ index .HostNetworkPorts {index} }}}}"), &port.to_string());
    }
    assert!(!text.contains("{{"), "{}: a template field that nobody knows", path.display());
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The base resources: namespaces as they are, and the pods of the stateful sets.
pub(crate) fn world(corpus: &Path) -> Vec<Value> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "worker", "labels": {"kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": "10.244.0.0/16"},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}]},
    });
    let mut out = vec![node];
    let mut address = 10;
    for object in read(&corpus.join("manifests.yaml")) {
        if object["kind"] != "StatefulSet" {
            out.push(object);
            continue;
        }
        for replica in 0..object["spec"]["replicas"].as_u64().unwrap_or(1) {
            address += 1;
            out.push(pod(&object, replica, address));
        }
    }
    out
}

/// One pod of a stateful set, as its controller would make it and its node would run it.
fn pod(set: &Value, replica: u64, address: u8) -> Value {
    let template = &set["spec"]["template"];
    let mut spec = template["spec"].clone();
    spec["nodeName"] = "worker".into();
    let host = spec["hostNetwork"] == true;
    let ip = if host { NODE_ADDRESS.to_owned() } else { format!("10.244.0.{address}") };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": set["metadata"]["namespace"],
            "name": format!("{}-{replica}", set["metadata"]["name"].as_str().unwrap_or_default()),
            "labels": template["metadata"]["labels"],
        },
        "spec": spec,
        "status": {"phase": "Running", "podIP": ip},
    })
}

/// What an upstream test does to the objects between two probes. `ingress` and `egress` name the rules.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// Swaps two rules.
    Swap(&'static str, usize, usize),
    /// Has a rule name a port by name instead.
    NamedPort(&'static str, usize, &'static str),
    /// Puts an Accept of two pods' addresses before the rules.
    AcceptAddresses,
    /// Makes the first rule of the Admin policy a Pass.
    Pass(&'static str),
    /// Deletes the `NetworkPolicy`.
    DeleteNetworkPolicy,
    /// Gives a namespace another house.
    House(&'static str),
}

/// What a subtest does, and before which of its probes. As upstream's Go source has it.
pub(crate) fn script(test: &str, subtest: &str) -> Vec<(usize, Change)> {
    let direction = if test.contains("Ingress") { "ingress" } else { "egress" };
    let ordered = subtest.contains("rule ordering is respected");
    let at_port = subtest.contains("at the specified port");
    let says = |word: &str| subtest.contains(word);
    match test {
        "CNPAdminTierIngressNamedPort" => vec![(0, Change::NamedPort("ingress", 5, "dns"))],
        "CNPAdminTierEgressNamedPort" => vec![(0, Change::NamedPort("egress", 5, "web"))],
        "CNPBaselineTierIngressNamedPort" => vec![(0, Change::NamedPort("ingress", 3, "web"))],
        "CNPBaselineTierEgressNamedPort" => vec![(0, Change::NamedPort("egress", 3, "dns"))],
        // After three pods were probed on three ports the third one's namespace changes, and changes back.
        _ if says("'deny-egress' rule policy for egress-cidr-peer") => {
            vec![(9, Change::House("denied-namespace-label")), (12, Change::House("slytherin"))]
        }
        _ if says("'allow-egress' rule policy for egress-cidr-peer") => vec![(0, Change::AcceptAddresses)],
        "CNPAdminTierIntegration" if says("respect the match for network policy") => {
            vec![(0, Change::Pass(if says("pass-ingress") { "ingress" } else { "egress" }))]
        }
        "CNPAdminTierIntegration" if says("'pass-ingress'") => vec![(0, Change::DeleteNetworkPolicy)],
        _ if ordered && says("'deny-") => vec![(0, Change::Swap(direction, 0, 1))],
        _ if ordered && says("'pass-") => vec![(0, Change::Swap(direction, 0, 2))],
        _ if at_port && says("'pass-") => vec![(0, Change::Swap(direction, 3, 4))],
        _ => Vec::new(),
    }
}

impl Change {
    /// Changes the objects.
    pub(crate) fn apply(self, objects: &mut Vec<Value>) {
        let addresses = || {
            let of = |name: &str| {
                let pod = objects.iter().find(|object| object["metadata"]["name"] == name).expect("the pod");
                format!("{}/32", pod["status"]["podIP"].as_str().expect("its address"))
            };
            [of("luna-lovegood-0"), of("cedric-diggory-0")]
        };
        match self {
            Self::Swap(direction, a, b) => rules(objects, direction).swap(a, b),
            Self::NamedPort(direction, index, name) => {
                rules(objects, direction)[index]["protocols"] = json!([{"destinationNamedPort": name}]);
            }
            Self::AcceptAddresses => {
                let networks = addresses();
                let rule = json!({
                    "name": "allow-egress-to-specific-podIPs", "action": "Accept", "to": [{"networks": networks}],
                });
                rules(objects, "egress").insert(0, rule);
            }
            Self::Pass(direction) => rules(objects, direction)[0]["action"] = "Pass".into(),
            Self::DeleteNetworkPolicy => objects.retain(|object| object["kind"] != "NetworkPolicy"),
            Self::House(house) => {
                let namespace = objects.iter_mut().find(|object| {
                    object["kind"] == "Namespace"
                        && object["metadata"]["name"] == "network-policy-conformance-slytherin"
                });
                namespace.expect("the namespace")["metadata"]["labels"]["conformance-house"] = house.into();
            }
        }
    }
}

/// The rules of the first `ClusterNetworkPolicy`, which is the one that upstream changes.
fn rules<'a>(objects: &'a mut [Value], direction: &str) -> &'a mut Vec<Value> {
    let policy = objects.iter_mut().find(|object| object["kind"] == "ClusterNetworkPolicy");
    policy.expect("a policy")["spec"][direction].as_array_mut().expect("its rules")
}
