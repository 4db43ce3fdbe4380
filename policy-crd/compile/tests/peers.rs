//! Who `from` and `to` of our kinds name: service accounts, entities, and items of several parts, which are ANDed.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "test helpers take what json! makes, and fail loudly"
)]

mod common;

use common::{Ask, load};
use serde_json::{Value, json};
use sluice_compile::query::Cluster;
use sluice_crd::{Problem, Severity};
use sluice_policy::Decision;

/// `namespace/name`, its address, its service account (`default` if empty) and its node.
const PODS: &[(&str, &str, &str, &str)] = &[
    ("shop/cart", "10.0.0.1", "", "one"),
    ("shop/frontend", "10.0.0.2", "frontend", "one"),
    ("shop/job", "10.0.1.3", "frontend", "two"),
    ("web/frontend", "10.0.1.4", "frontend", "two"),
    ("web/other", "10.0.0.5", "other", "one"),
];
/// The nodes' own addresses; the API server answers on the second.
const NODES: &[(&str, &str)] = &[("one", "192.0.2.1"), ("two", "192.0.2.2")];
const WORLD: &str = "203.0.113.9";

fn world() -> Vec<Value> {
    let mut out: Vec<Value> = ["shop", "web"]
        .map(|name| {
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}})
        })
        .into();
    out.extend(NODES.iter().map(|(name, ip)| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
    }));
    out.extend(PODS.iter().map(|(pod, ip, account, node)| {
        let (namespace, name) = pod.split_once('/').unwrap();
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "c"}]},
            "status": {"podIP": ip}})
    }));
    out.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": [{"addresses": ["192.0.2.2"]}, {"addresses": ["198.51.100.7"]}], "ports": [{"port": 6443}]}));
    out
}

fn with(policy: Value) -> (Cluster, Vec<Problem>) {
    load(&[world(), vec![policy]].concat())
}

/// A policy of the cart; `list` is one of its four.
fn of_cart(list: &str, peer: Value) -> Value {
    let side = if list.starts_with("ingress") { "from" } else { "to" };
    let mut spec = json!({"podSelector": {"matchLabels": {"app": "cart"}},
        "policyTypes": [if side == "from" { "Ingress" } else { "Egress" }], list: [{"name": "r", side: [peer]}]});
    if let Some(allow) = list.strip_suffix("Deny") {
        spec[allow] = json!([{"name": "rest"}]);
    }
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"}, "spec": spec})
}

/// The others by short names: pods, nodes, the API server outside, and the world.
fn others() -> Vec<(&'static str, &'static str)> {
    let pods = PODS.iter().skip(1).map(|(name, _, _, _)| (*name, *name));
    let nodes = [("node two", "192.0.2.2"), ("api", "198.51.100.7"), ("world", WORLD)];
    pods.chain(nodes).collect()
}

/// Whom the list names: of a deny those that are refused, of an allow those that are let through.
fn named(list: &str, peer: Value) -> (Vec<&'static str>, Vec<Problem>) {
    let (cluster, problems) = with(of_cart(list, peer));
    let meant = if list.ends_with("Deny") { Decision::Deny } else { Decision::Allow };
    let is_named = |(_, other): &(&str, &'static str)| {
        let (from, to) =
            if list.starts_with("ingress") { (*other, "shop/cart") } else { ("shop/cart", *other) };
        Ask::new(from, to, 80, "").decide(&cluster) == meant
    };
    (others().into_iter().filter(is_named).map(|(name, _)| name).collect(), problems)
}

#[track_caller]
fn names(peer: Value, expected: &[&str]) {
    for list in ["ingress", "ingressDeny", "egress", "egressDeny"] {
        let (found, problems) = named(list, peer.clone());
        assert_eq!(found, expected, "{list}: {peer}\n{problems:#?}");
        let errors: Vec<&Problem> = problems.iter().filter(|p| p.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

#[test]
fn service_accounts_are_of_their_namespace_and_of_the_policys_by_default() {
    names(json!({"serviceAccounts": [{"name": "frontend"}]}), &["shop/frontend", "shop/job"]);
    names(json!({"serviceAccounts": [{"namespace": "web", "name": "frontend"}]}), &["web/frontend"]);
    names(
        json!({"serviceAccounts": [{"namespace": "web", "name": "other"}, {"name": "frontend"}]}),
        &["shop/frontend", "shop/job", "web/other"],
    );
    names(json!({"serviceAccounts": [{"namespace": "web", "name": "default"}]}), &[]);
}

#[test]
fn entities_are_who_they_say() {
    names(json!({"entities": ["World"]}), &["api", "world"]);
    names(json!({"entities": ["RemoteNode"]}), &["node two"]);
    names(json!({"entities": ["KubeApiserver"]}), &["node two", "api"]);
    // The API server is part of the cluster, wherever it answers.
    names(
        json!({"entities": ["Cluster"]}),
        &["shop/frontend", "shop/job", "web/frontend", "web/other", "node two", "api"],
    );
    names(json!({"entities": ["RemoteNode", "World"]}), &["node two", "api", "world"]);
}

#[test]
fn the_parts_of_an_item_are_anded() {
    names(
        json!({"podSelector": {"matchLabels": {"app": "job"}}, "serviceAccounts": [{"name": "frontend"}]}),
        &["shop/job"],
    );
    names(
        json!({"namespaceSelector": {"matchLabels": {"team": "web"}},
            "serviceAccounts": [{"name": "frontend"}, {"namespace": "web", "name": "frontend"}]}),
        &["web/frontend"],
    );
    names(json!({"ipBlock": {"cidr": "0.0.0.0/0"}, "entities": ["World"]}), &["api", "world"]);
    names(
        json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["198.51.100.0/24"]}, "entities": ["World"]}),
        &["world"],
    );
    names(json!({"ipBlock": {"cidr": "10.0.1.0/24"}, "podSelector": {}}), &["shop/job"]);
    names(
        json!({"ipBlock": {"cidr": "10.0.1.0/24"}, "namespaceSelector": {}, "entities": ["Cluster"],
            "serviceAccounts": [{"namespace": "web", "name": "frontend"}]}),
        &["web/frontend"],
    );
}

#[test]
fn what_nobody_can_be_names_nobody_and_is_told() {
    for peer in [
        json!({"podSelector": {}, "entities": ["World"]}),
        json!({"serviceAccounts": [{"name": "frontend"}], "entities": ["Host", "RemoteNode"]}),
        json!({"podSelector": {}, "serviceAccounts": [{"namespace": "web", "name": "frontend"}]}),
    ] {
        for list in ["ingress", "ingressDeny", "egress", "egressDeny"] {
            let (found, problems) = named(list, peer.clone());
            assert_eq!(found, [""; 0], "{list}: {peer}");
            let told =
                problems.iter().any(|p| p.severity == Severity::Warning && p.reason.contains("names nobody"));
            assert!(told, "{list}: {peer}: {problems:?}");
        }
    }
}

#[test]
fn the_node_of_a_pod_is_its_host_and_reaches_it_anyway() {
    // "The node itself reaches pods of its own node unless an Admin policy denies it."
    let (cluster, _) = with(of_cart("ingress", json!({"entities": ["World"]})));
    assert_eq!(Ask::new("192.0.2.1", "shop/cart", 80, "").decide(&cluster), Decision::Allow);
    assert_eq!(Ask::new("192.0.2.2", "shop/cart", 80, "").decide(&cluster), Decision::Deny);
    let (cluster, problems) = with(of_cart("ingressDeny", json!({"entities": ["Host"]})));
    assert_eq!(Ask::new("192.0.2.1", "shop/cart", 80, "").decide(&cluster), Decision::Allow);
    assert!(
        problems.iter().any(|p| p.severity == Severity::Warning && p.remedy.contains("Admin")),
        "{problems:?}"
    );
    for (list, entity, own, other) in [
        ("egress", "Host", Decision::Allow, Decision::Deny),
        ("egressDeny", "Host", Decision::Deny, Decision::Allow),
        ("egress", "RemoteNode", Decision::Deny, Decision::Allow),
        ("egressDeny", "RemoteNode", Decision::Allow, Decision::Deny),
    ] {
        let (cluster, _) = with(of_cart(list, json!({"entities": [entity]})));
        assert_eq!(Ask::new("shop/cart", "192.0.2.1", 80, "").decide(&cluster), own, "{list} {entity}");
        assert_eq!(Ask::new("shop/cart", "192.0.2.2", 80, "").decide(&cluster), other, "{list} {entity}");
    }
}

/// A rule of the Admin tier for everybody's ingress.
fn admin(action: &str, peer: Value) -> Value {
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "ClusterL7NetworkPolicy", "metadata": {"name": "p"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"name": "r", "action": action, "from": [peer]}]}})
}

#[test]
fn a_policy_of_no_namespace_names_every_account_with_its_own() {
    for action in ["Accept", "Pass", "Deny"] {
        let (cluster, problems) = with(admin(action, json!({"serviceAccounts": [{"name": "frontend"}]})));
        let told = |p: &&Problem| p.severity == Severity::Error;
        let told: Vec<&str> = problems.iter().filter(told).map(|p| p.path.as_str()).collect();
        assert_eq!(told, ["spec.ingress[0].from[0].serviceAccounts[0]"], "{action}");
        let closed = Ask::new("web/other", "shop/cart", 80, "").decide(&cluster);
        assert_eq!(closed == Decision::Deny, action != "Accept", "{action}");
    }
    // A selector alone is of every namespace, as upstream's, beside an account too.
    let peer = json!({"podSelector": {"matchLabels": {"app": "frontend"}},
        "serviceAccounts": [{"namespace": "web", "name": "frontend"}]});
    let (cluster, problems) = with(admin("Deny", peer));
    assert!(problems.is_empty(), "{problems:?}");
    for (from, expected) in [("web/frontend", Decision::Deny), ("shop/frontend", Decision::Allow)] {
        assert_eq!(Ask::new(from, "shop/cart", 80, "").decide(&cluster), expected, "{from}");
    }
    let (cluster, _) = with(admin("Deny", json!({"entities": ["Host"]})));
    assert_eq!(Ask::new("192.0.2.1", "shop/cart", 80, "").decide(&cluster), Decision::Deny);
    assert_eq!(Ask::new("192.0.2.2", "shop/cart", 80, "").decide(&cluster), Decision::Allow);
}

#[test]
fn an_ip_block_of_a_network_policy_stands_alone() {
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"}, "spec": {"podSelector": {}, "ingress": [
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]}});
    let (cluster, problems) = with(policy);
    assert!(problems.iter().any(|p| p.path == "spec.ingress[0].from[0].ipBlock"), "{problems:?}");
    assert_eq!(Ask::new("shop/frontend", "shop/cart", 80, "").decide(&cluster), Decision::Deny);
}
