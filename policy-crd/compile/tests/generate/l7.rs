//! `L7NetworkPolicy`, and what must be said.

use super::{
    Made, block, list, manifest, namespace, namespaces, object, one_of, pods, port, some_of, sometimes, word,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// An `L7NetworkPolicy` of this name.
pub(crate) fn policy(name: String) -> Made {
    let types = one_of(&[Value::Null, json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
    let mode = one_of(&[Value::Null, Value::Null, "Enforce".into(), "Audit".into()]);
    let isolation =
        one_of(&[Value::Null, Value::Null, "Direction".into(), "ListedPorts".into(), "None".into()]);
    let allows = (rules("from", 2), rules("to", 2));
    let denies = (rules("from", 4), rules("to", 4));
    (namespace(), pods(), types, (mode, isolation), allows, denies)
        .prop_map(move |(namespace, selector, types, (mode, isolation), allows, denies)| {
            let spec = object([
                ("podSelector", selector),
                ("policyTypes", types),
                ("mode", mode),
                ("isolation", isolation),
                ("ingress", allows.0),
                ("egress", allows.1),
                ("ingressDeny", denies.0),
                ("egressDeny", denies.1),
            ]);
            manifest("policy.sluice.dev/v1alpha1", "L7NetworkPolicy", &namespace, &name, spec)
        })
        .boxed()
}

fn rules(peers: &'static str, of: u32) -> Made {
    sometimes(of, list(rule(peers, peer()), 0..3))
}

/// One rule of either of our kinds.
pub(crate) fn rule(peers: &'static str, peer: Made) -> Made {
    (sometimes(2, list(peer, 1..3)), sometimes(2, list(port(), 1..3)), sometimes(2, said()))
        .prop_map(move |(given, ports, rules)| object([(peers, given), ("ports", ports), ("rules", rules)]))
        .boxed()
}

fn peer() -> Made {
    // "`serviceAccounts`": the policy's namespace where none is written.
    let own = list(word(&["one", "two", "default"]).prop_map(|name| json!({"name": name})), 1..3);
    prop_oneof![
        2 => pods().prop_map(|pods| json!({"podSelector": pods})),
        1 => (own, pods()).prop_map(|(own, pods)| json!({"serviceAccounts": own, "podSelector": pods})),
        6 => any_peer(sometimes(2, namespace())),
    ]
    .boxed()
}

/// A peer that needs no namespace of its own.
pub(crate) fn cluster_peer() -> Made {
    any_peer(namespace())
}

/// `of` is the namespace of a service account.
fn any_peer(of: Made) -> Made {
    let account = (of, word(&["one", "two", "default"]))
        .prop_map(|(namespace, name)| object([("namespace", namespace), ("name", name)]));
    let accounts = list(account, 1..3);
    let entities = some_of(&["Host", "RemoteNode", "World", "Cluster", "KubeApiserver"]);
    let one = prop_oneof![
        3 => namespaces().prop_map(|all| json!({"namespaceSelector": all})),
        2 => (namespaces(), pods()).prop_map(|(all, pods)| json!({"namespaceSelector": all, "podSelector": pods})),
        2 => block().prop_map(|block| json!({"ipBlock": block})),
        2 => accounts.clone().prop_map(|accounts| json!({"serviceAccounts": accounts})),
        3 => entities.clone().prop_map(|entities| json!({"entities": entities})),
    ];
    // "AND inside an item."
    let several = (
        sometimes(2, namespaces()),
        sometimes(3, pods()),
        sometimes(2, block()),
        sometimes(3, accounts),
        sometimes(2, entities),
        namespaces(),
    )
        .prop_map(|(all, pods, block, accounts, entities, other)| {
            // Pods of which namespace: a policy of none cannot leave it out. An item needs some part.
            let parts = [&all, &block, &accounts, &entities].iter().any(|part| !part.is_null());
            let all = if parts && pods.is_null() || !all.is_null() { all } else { other };
            object([
                ("namespaceSelector", all),
                ("podSelector", pods),
                ("ipBlock", block),
                ("serviceAccounts", accounts),
                ("entities", entities),
            ])
        });
    prop_oneof![5 => one, 2 => several].boxed()
}

/// `rules`: one kind, or several.
pub(crate) fn said() -> Made {
    let (http, grpc, tls) = (list(http(), 1..3), list(grpc(), 1..3), tls());
    prop_oneof![
        6 => http.clone().prop_map(|http| json!({"http": http})),
        2 => grpc.clone().prop_map(|grpc| json!({"grpc": grpc})),
        4 => tls.clone().prop_map(|tls| json!({"tls": tls})),
        1 => (http, tls).prop_map(|(http, tls)| json!({"http": http, "tls": tls})),
        1 => grpc.prop_map(|grpc| json!({"grpc": grpc, "http": [{"path": {"type": "Exact", "value": "/a"}}]})),
    ]
    .boxed()
}

fn http() -> Made {
    let methods = some_of(&["GET", "HEAD", "POST"]);
    let parts = (
        sometimes(2, methods),
        sometimes(2, path()),
        sometimes(4, list(host(), 1..3)),
        sometimes(4, list(header(), 1..3)),
        sometimes(4, list(query(), 1..2)),
        sometimes(6, Just(json!(["websocket"]))),
    );
    let item = parts.prop_map(|(methods, path, hosts, headers, query, upgrades)| {
        object([
            ("methods", methods),
            ("path", path),
            ("hosts", hosts),
            ("headers", headers),
            ("queryParams", query),
            ("upgrades", upgrades),
        ])
    });
    // "A CONNECT rule is `methods: [CONNECT]` with `hosts`, without `path`."
    let connect = list(host(), 1..3).prop_map(|hosts| json!({"methods": ["CONNECT"], "hosts": hosts}));
    prop_oneof![12 => item, 1 => connect].boxed()
}

fn path() -> Made {
    one_of(&[
        json!({"type": "Exact", "value": "/"}),
        json!({"type": "Exact", "value": "/a"}),
        json!({"type": "Exact", "value": "/admin"}),
        json!({"type": "PathPrefix", "value": "/"}),
        json!({"type": "PathPrefix", "value": "/a"}),
        json!({"type": "PathPrefix", "value": "/a/b"}),
        json!({"type": "PathPrefix", "value": "/admin"}),
        json!({"type": "RegularExpression", "value": "/a/.*"}),
        json!({"type": "RegularExpression", "value": "/[a-c]+"}),
    ])
}

fn host() -> Made {
    one_of(&[
        json!({"type": "Exact", "value": "cart"}),
        json!({"type": "Exact", "value": "shop.example"}),
        json!({"type": "RegularExpression", "value": "[a-z]+\\.example"}),
    ])
}

fn header() -> Made {
    one_of(&[
        json!({"name": "x-a", "type": "Exact", "value": "1"}),
        json!({"name": "X-A", "type": "Exact", "value": "2"}),
        json!({"name": "x-a", "type": "RegularExpression", "value": "[0-9]"}),
        json!({"name": "x-a", "type": "Present"}),
        json!({"name": "x-a", "type": "Absent"}),
        json!({"name": "x-b", "type": "Absent"}),
    ])
}

fn query() -> Made {
    one_of(&[
        json!({"name": "v", "type": "Exact", "value": "1"}),
        json!({"name": "v", "type": "RegularExpression", "value": "[0-9]"}),
        json!({"name": "v", "type": "Present"}),
        json!({"name": "v", "type": "Absent"}),
        json!({"name": "w-x", "type": "Exact", "value": "1"}),
    ])
}

fn grpc() -> Made {
    let methods = sometimes(2, some_of(&["Get", "Watch"]));
    let protocols = sometimes(3, some_of(&["GRPC", "GRPCWeb", "Connect"]));
    (word(&["shop.Cart", "a"]), methods, protocols)
        .prop_map(|(service, methods, protocols)| {
            object([("service", service), ("methods", methods), ("protocols", protocols)])
        })
        .boxed()
}

fn tls() -> Made {
    some_of(&["shop.example", "*.example", "*.shop.example", "cart"])
        .prop_map(|names| json!({"serverNames": names}))
        .boxed()
}

/// A rule with its action, for a tier.
pub(crate) fn tiered_rule(peers: &'static str) -> Made {
    (word(&["Accept", "Deny", "Pass"]), rule(peers, cluster_peer()))
        .prop_map(|(action, mut rule): (Value, Value)| {
            rule["action"] = action;
            rule
        })
        .boxed()
}
