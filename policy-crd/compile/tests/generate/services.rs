//! Services with their slices: anybody behind them, in any state.

use super::world::address;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

/// The cluster address of the Service of this number.
pub(crate) fn vip(number: usize) -> String {
    format!("10.96.0.{}", number + 1)
}

/// How many Services there are at most.
pub(crate) const SERVICES: usize = 3;

fn endpoint() -> impl Strategy<Value = Value> {
    let condition = || of(any::<bool>());
    let node = of(select(vec!["n1", "n2"]));
    (address(), condition(), condition(), condition(), node).prop_map(
        |(address, ready, serving, terminating, node)| {
            let mut endpoint = json!({"addresses": [address], "conditions": {}});
            for (name, value) in [("ready", ready), ("serving", serving), ("terminating", terminating)] {
                if let Some(value) = value {
                    endpoint["conditions"][name] = json!(value);
                }
            }
            if let Some(node) = node {
                endpoint["nodeName"] = json!(node);
            }
            endpoint
        },
    )
}

fn service(number: usize) -> impl Strategy<Value = Vec<Value>> {
    let port = || select(vec![80, 443, 8080, 9090]);
    let slice = (vec(endpoint(), 0..4), port(), port());
    (vec(slice, 0..3), any::<bool>()).prop_map(move |(slices, local)| {
        let name = format!("s{number}");
        let policy = if local { "Local" } else { "Cluster" };
        let mut objects = vec![json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIP": vip(number), "internalTrafficPolicy": policy,
                "ports": [{"name": "t", "port": 80}, {"name": "u", "port": 80, "protocol": "UDP"}]}})];
        for (at, (endpoints, tcp, udp)) in slices.into_iter().enumerate() {
            // A slice has addresses of one family.
            let endpoints: Vec<Value> = endpoints
                .into_iter()
                .filter(|endpoint| !endpoint["addresses"][0].as_str().is_some_and(|text| text.contains(':')))
                .collect();
            objects.push(
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"namespace": "default", "name": format!("{name}-{at}"),
                    "labels": {"kubernetes.io/service-name": name}},
                "ports": [{"name": "t", "port": tcp}, {"name": "u", "port": udp, "protocol": "UDP"}],
                "endpoints": endpoints}),
            );
        }
        objects
    })
}

pub(crate) fn services() -> impl Strategy<Value = Vec<Value>> {
    (0..SERVICES).map(service).collect::<Vec<_>>().prop_map(|all| all.concat())
}
