//! Who is who: pods, nodes, namespaces and policies as manifests give them, and whose an address is.
//!
//! Source: DESIGN §5.14 (hosts and addresses) and the API reference of Pod, Node and Namespace.

use super::selectors::{Labels, contains, items, labels_of, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Everything that is judged by and about.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Labels by name.
    pub(crate) namespaces: BTreeMap<String, Labels>,
    /// Every pod, whatever its phase.
    pub(crate) pods: Vec<Pod>,
    /// Every node.
    pub(crate) nodes: Vec<Node>,
    /// Where the API server answers.
    pub(crate) api_server: Vec<IpAddr>,
    /// Every policy of every kind, as it was given.
    pub(crate) policies: Vec<Value>,
}

/// A pod.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) service_account: String,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// Name, protocol, number.
    pub(crate) ports: Vec<(String, String, u16)>,
    /// It has ended.
    pub(crate) terminated: bool,
    /// It has the node's addresses.
    pub(crate) host_network: bool,
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) addresses: Vec<IpAddr>,
    /// What its pods' addresses are of.
    pub(crate) pod_ranges: Vec<String>,
}

/// Who an address is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who<'a> {
    Pod(&'a Pod),
    Node(&'a Node),
    /// Outside the cluster.
    World,
    /// "An address of the cluster's pod ranges without a binding is `identity_missing`."
    Missing,
}

impl Cluster {
    /// Reads manifests.
    pub(crate) fn read(objects: &[Value]) -> Self {
        let of = |kind: &str| -> Vec<&Value> { objects.iter().filter(|o| o["kind"] == kind).collect() };
        let mut namespaces: BTreeMap<String, Labels> = BTreeMap::new();
        for namespace in of("Namespace") {
            namespaces.insert(text(&namespace["metadata"]["name"]).to_owned(), labels_of(namespace));
        }
        let pods: Vec<Pod> = of("Pod").into_iter().map(pod).collect();
        for pod in &pods {
            namespaces.entry(pod.namespace.clone()).or_default();
        }
        // "The Kubernetes control plane sets an immutable label kubernetes.io/metadata.name on all namespaces."
        for (name, labels) in &mut namespaces {
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
        }
        Self {
            namespaces,
            pods,
            nodes: of("Node").into_iter().map(node).collect(),
            api_server: of("EndpointSlice")
                .into_iter()
                .filter(|slice| is_api_server(slice))
                .flat_map(endpoints)
                .collect(),
            policies: objects.iter().filter(|o| text(&o["kind"]).ends_with("Policy")).cloned().collect(),
        }
    }

    /// Whose this address is.
    pub(crate) fn who(&self, address: IpAddr) -> Who<'_> {
        // "hostNetwork and terminated pods never enter address → identity."
        let bound = |pod: &&Pod| !pod.terminated && !pod.host_network && pod.addresses.contains(&address);
        if let Some(pod) = self.pods.iter().find(bound) {
            return Who::Pod(pod);
        }
        if let Some(node) = self.nodes.iter().find(|node| node.addresses.contains(&address)) {
            return Who::Node(node);
        }
        let of_pods = |node: &Node| node.pod_ranges.iter().any(|range| contains(range, address));
        if self.nodes.iter().any(of_pods) { Who::Missing } else { Who::World }
    }

    /// The labels of a pod's namespace.
    pub(crate) fn namespace_labels(&self, pod: &Pod) -> &Labels {
        &self.namespaces[&pod.namespace]
    }
}

/// "The kubernetes Service in the default namespace": its slices carry its name as a label
/// (`kubernetes.io/service-name`), and the API server writes its own addresses into them.
fn is_api_server(slice: &Value) -> bool {
    let meta = &slice["metadata"];
    meta["namespace"] == "default" && meta["labels"]["kubernetes.io/service-name"] == "kubernetes"
}

fn endpoints(slice: &Value) -> Vec<IpAddr> {
    addresses(items(&slice["endpoints"]).flat_map(|endpoint| items(&endpoint["addresses"])))
}

fn addresses<'a>(texts: impl Iterator<Item = &'a Value>) -> Vec<IpAddr> {
    texts.filter_map(|address| text(address).parse().ok()).collect()
}

fn pod(object: &Value) -> Pod {
    let (spec, status) = (&object["spec"], &object["status"]);
    let or = |value: &Value, default: &str| value.as_str().unwrap_or(default).to_owned();
    let port = |port: &Value| {
        let number = port["containerPort"].as_u64().and_then(|number| u16::try_from(number).ok());
        // "`protocol` … Defaults to TCP."
        Some((port["name"].as_str()?.to_owned(), or(&port["protocol"], "TCP"), number?))
    };
    let containers = items(&spec["containers"]);
    Pod {
        namespace: or(&object["metadata"]["namespace"], ""),
        name: or(&object["metadata"]["name"], ""),
        labels: labels_of(object),
        // The admission controller writes `default` where nothing is given.
        service_account: or(&spec["serviceAccountName"], "default"),
        node: or(&spec["nodeName"], ""),
        addresses: addresses(
            std::iter::once(&status["podIP"]).chain(items(&status["podIPs"]).map(|ip| &ip["ip"])),
        ),
        ports: containers.flat_map(|container| items(&container["ports"])).filter_map(port).collect(),
        terminated: matches!(text(&status["phase"]), "Succeeded" | "Failed"),
        host_network: spec["hostNetwork"] == true,
    }
}

fn node(object: &Value) -> Node {
    Node {
        name: text(&object["metadata"]["name"]).to_owned(),
        labels: labels_of(object),
        addresses: addresses(items(&object["status"]["addresses"]).map(|address| &address["address"])),
        pod_ranges: items(&object["spec"]["podCIDRs"]).map(|range| text(range).to_owned()).collect(),
    }
}
