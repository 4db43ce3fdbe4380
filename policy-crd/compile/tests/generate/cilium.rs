//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`, of fields that are supported.

use super::{Made, list, manifest, namespace, object, one_of, some_of, sometimes, word};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A policy of this name, of either kind.
pub(crate) fn policy(name: String) -> Made {
    let namespace = prop_oneof![3 => namespace(), 1 => Just(Value::Null)];
    let spec = || spec().boxed();
    let one = (namespace.clone(), spec()).prop_map(|(namespace, spec)| (namespace, spec, Value::Null));
    let many = (namespace, list(spec(), 1..3)).prop_map(|(namespace, specs)| (namespace, Value::Null, specs));
    prop_oneof![4 => one, 1 => many]
        .prop_map(move |(namespace, spec, specs)| {
            let kind =
                if namespace.is_null() { "CiliumClusterwideNetworkPolicy" } else { "CiliumNetworkPolicy" };
            let mut policy = manifest("cilium.io/v2", kind, &namespace, &name, spec);
            if !specs.is_null() {
                policy["specs"] = specs;
            }
            policy
        })
        .boxed()
}

fn spec() -> impl Strategy<Value = Value> {
    let default_deny = sometimes(
        4,
        one_of(&[
            json!({"ingress": false}),
            json!({"egress": false}),
            json!({"ingress": true, "egress": false}),
        ]),
    );
    let allows = (rules(INGRESS, true), rules(EGRESS, true));
    let denies = (rules(INGRESS, false), rules(EGRESS, false));
    (endpoints(), default_deny, allows, denies).prop_map(|(selector, default_deny, allows, denies)| {
        // A rule without any section is refused by Cilium.
        let nothing = [&allows.0, &allows.1, &denies.0, &denies.1].iter().all(|section| section.is_null());
        object([
            ("endpointSelector", selector),
            ("enableDefaultDeny", default_deny),
            ("ingress", if nothing { json!([{}]) } else { allows.0 }),
            ("egress", allows.1),
            ("ingressDeny", denies.0),
            ("egressDeny", denies.1),
        ])
    })
}

/// The fields of a direction: endpoints, entities, CIDRs, CIDRs with exceptions.
type Fields = [&'static str; 4];
const INGRESS: Fields = ["fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet"];
const EGRESS: Fields = ["toEndpoints", "toEntities", "toCIDR", "toCIDRSet"];

fn rules(fields: Fields, allow: bool) -> Made {
    let rule = (peers(fields), sometimes(2, list(ports(allow), 1..3))).prop_map(
        |(mut rule, ports): (Value, Value)| {
            if !ports.is_null() {
                rule["toPorts"] = ports;
            }
            rule
        },
    );
    sometimes(if allow { 2 } else { 4 }, list(rule, 1..3))
}

fn peers([endpoint, entity, cidr, set]: Fields) -> Made {
    let entities = some_of(&["all", "world", "cluster", "host", "remote-node", "kube-apiserver"]);
    prop_oneof![
        1 => Just(json!({})),
        4 => list(endpoints(), 0..3).prop_map(move |items| json!({endpoint: items})),
        3 => entities.prop_map(move |items| json!({entity: items})),
        2 => some_of(&["203.0.113.0/24", "10.0.0.0/8", "0.0.0.0/0"]).prop_map(move |items| json!({cidr: items})),
        1 => Just(json!({set: [{"cidr": "0.0.0.0/0", "except": ["203.0.113.128/25", "192.0.2.0/24"]}]})),
    ]
    .boxed()
}

fn endpoints() -> Made {
    one_of(&[
        json!({}),
        json!({"matchLabels": {"app": "x"}}),
        json!({"matchLabels": {"k8s:app": "y"}}),
        json!({"matchLabels": {"any:tier": "db"}}),
        json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}),
        json!({"matchExpressions": [{"key": "k8s:tier", "operator": "Exists"}]}),
        json!({"matchLabels": {"k8s:io.kubernetes.pod.namespace": "b"}}),
        json!({"matchLabels": {"k8s:io.cilium.k8s.namespace.labels.team": "blue"}}),
        json!({"matchLabels": {"io.cilium.k8s.policy.serviceaccount": "one"}}),
    ])
}

fn ports(allow: bool) -> Made {
    let any = prop_oneof![
        5 => (word(&["80", "81", "8080", "web", "db"]), sometimes(2, word(&["TCP", "UDP", "SCTP", "ANY"])))
            .prop_map(|(port, protocol)| object([("port", port), ("protocol", protocol)])),
        1 => Just(json!({"port": "80", "endPort": 81, "protocol": "TCP"})),
        1 => Just(json!({"port": "0", "protocol": "TCP"})),
    ];
    let plain = list(any, 1..3).prop_map(|ports| json!({"ports": ports}));
    if !allow {
        return plain.boxed();
    }
    let tcp = word(&["80", "81", "web"]).prop_map(|port| json!({"port": port, "protocol": "TCP"}));
    let http = (list(tcp, 1..3), list(http(), 1..3))
        .prop_map(|(ports, http)| json!({"ports": ports, "rules": {"http": http}}));
    prop_oneof![plain, http].boxed()
}

fn http() -> Made {
    let parts = (
        sometimes(2, word(&["GET", "GET|HEAD", "POST"])),
        sometimes(2, word(&["/a", "/a.*", "/admin", "/.*v=1", "/[a-c]*"])),
        sometimes(4, word(&["cart", "[a-z]+\\.example"])),
        sometimes(4, one_of(&[json!(["X-A: 1"]), json!(["X-A"])])),
        sometimes(4, one_of(&[json!([{"name": "x-a", "value": "2"}]), json!([{"name": "x-a"}])])),
    );
    parts
        .prop_map(|(method, path, host, headers, matches)| {
            object([
                ("method", method),
                ("path", path),
                ("host", host),
                ("headers", headers),
                ("headerMatches", matches),
            ])
        })
        .boxed()
}
