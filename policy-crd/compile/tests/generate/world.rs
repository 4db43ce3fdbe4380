//! Namespaces, nodes and pods.

use super::{Made, NAMESPACES, manifest, object, one_of, some_of, sometimes, word};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Most pods of a world.
pub(crate) const MOST_PODS: usize = 8;

/// The objects of a cluster without its policies.
pub(crate) fn world() -> impl Strategy<Value = Vec<Value>> {
    let namespaces = prop::collection::vec(namespace_labels(), 2..=NAMESPACES.len());
    let pods = prop::collection::vec(pod(), 3..=MOST_PODS);
    (namespaces, prop::collection::vec(any::<bool>(), 2), pods, api_server()).prop_map(|(namespaces, ranges, pods, api_server)| {
        let many = namespaces.len();
        let mut objects: Vec<Value> = namespaces
            .into_iter()
            .zip(NAMESPACES)
            .map(|(labels, name)| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))
            .collect();
        objects.extend(ranges.into_iter().enumerate().map(|(at, range)| node(at + 1, range)));
        objects.extend(pods.into_iter().enumerate().map(|(at, pod)| pod.manifest(at + 1, many)));
        objects.extend((!api_server.is_null()).then_some(api_server));
        objects
    })
}

fn namespace_labels() -> Made {
    one_of(&[
        json!({}),
        json!({"team": "red"}),
        json!({"team": "blue"}),
        json!({"team": "blue", "env": "prod"}),
    ])
}

/// Where the API server answers, if that is known: on a node, outside, at a pod's address, at an address of nobody.
fn api_server() -> Made {
    let addresses = some_of(&["192.0.2.1", "203.0.113.5", "198.51.100.7", "10.0.1.1", "10.0.1.200"]);
    let service = word(&["kubernetes", "kubernetes", "kubernetes", "other"]);
    let slice = (addresses, service).prop_map(|(addresses, service)| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": addresses}],
            "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
        })
    });
    sometimes(2, slice)
}

/// A node, with or without a range of addresses for its pods.
fn node(number: usize, range: bool) -> Value {
    let ranges = if range { json!([format!("10.0.{number}.0/24")]) } else { Value::Null };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("n{number}"), "labels": {"zone": number.to_string()}},
        "spec": object([("podCIDRs", ranges)]),
        "status": {"addresses": [
            {"type": "Hostname", "address": format!("n{number}")},
            {"type": "InternalIP", "address": format!("192.0.2.{number}")},
        ]},
    })
}

#[derive(Clone, Debug)]
struct Pod {
    namespace: usize,
    labels: Value,
    account: Value,
    node: usize,
    kind: Kind,
    ports: Value,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    OneAddress,
    TwoFamilies,
    TwoOfOneFamily,
    HostNetwork,
    Ended,
}

fn pod() -> impl Strategy<Value = Pod> {
    let labels = one_of(&[
        json!({"app": "x"}),
        json!({"app": "y"}),
        json!({"app": "x", "tier": "db"}),
        json!({"app": "y", "unread": "1"}),
        json!({}),
    ]);
    let account = sometimes(2, word(&["one", "two"]));
    let kind = prop_oneof![
        6 => Just(Kind::OneAddress),
        2 => Just(Kind::TwoFamilies),
        1 => Just(Kind::TwoOfOneFamily),
        1 => Just(Kind::HostNetwork),
        1 => Just(Kind::Ended),
    ];
    let ports = one_of(&[
        json!([]),
        json!([{"name": "web", "containerPort": 80}]),
        json!([{"name": "web", "containerPort": 81, "protocol": "TCP"}]),
        json!([{"name": "web", "containerPort": 80, "protocol": "UDP"}]),
        json!([{"name": "web", "containerPort": 8080}, {"name": "db", "containerPort": 81}]),
        json!([{"name": "db", "containerPort": 80}, {"containerPort": 81}]),
        json!([{"name": "web", "containerPort": 80, "protocol": "SCTP"}, {"name": "db", "containerPort": 80}]),
    ]);
    (0..NAMESPACES.len(), labels, account, 1..=2_usize, kind, ports).prop_map(
        |(namespace, labels, account, node, kind, ports)| Pod {
            namespace,
            labels,
            account,
            node,
            kind,
            ports,
        },
    )
}

impl Pod {
    fn manifest(self, number: usize, namespaces: usize) -> Value {
        let Self { labels, account, node, kind, ports, .. } = self;
        let addresses = match kind {
            Kind::OneAddress | Kind::Ended => vec![first_address(node, number)],
            Kind::TwoFamilies => vec![first_address(node, number), format!("fd00::{number}")],
            Kind::TwoOfOneFamily => vec![first_address(node, number), format!("10.0.9.{number}")],
            Kind::HostNetwork => vec![format!("192.0.2.{node}")],
        };
        let spec = object([
            ("nodeName", format!("n{node}").into()),
            ("serviceAccountName", account),
            ("hostNetwork", if matches!(kind, Kind::HostNetwork) { true.into() } else { Value::Null }),
            ("containers", json!([{"name": "c", "ports": ports}])),
        ]);
        let namespace = NAMESPACES[self.namespace % namespaces].into();
        let mut pod = manifest("v1", "Pod", &namespace, &format!("p{number}"), spec);
        pod["metadata"]["labels"] = labels;
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let phase = if matches!(kind, Kind::Ended) { "Succeeded" } else { "Running" };
        pod["status"] = json!({"phase": phase, "podIP": addresses[0], "podIPs": ips});
        pod
    }
}

fn first_address(node: usize, number: usize) -> String {
    format!("10.0.{node}.{number}")
}

/// An address to ask about: of a pod that is or may be there, of a node, of nobody, of the world.
pub(crate) fn address() -> impl Strategy<Value = String> {
    let pod = (1..=2_usize, 1..=MOST_PODS).prop_map(|(node, number)| first_address(node, number));
    prop_oneof![
        16 => pod,
        2 => (1..=MOST_PODS).prop_map(|number| format!("fd00::{number}")),
        1 => (1..=MOST_PODS).prop_map(|number| format!("10.0.9.{number}")),
        3 => prop::sample::select(vec!["192.0.2.1", "192.0.2.2"]).prop_map(String::from),
        1 => prop::sample::select(vec!["10.0.1.200", "10.0.2.200"]).prop_map(String::from),
        3 => prop::sample::select(vec!["203.0.113.5", "203.0.113.200", "198.51.100.7", "2001:db8::5"]).prop_map(String::from),
    ]
}
