//! What the tiers mean: order, Accept, Deny and Pass, what is conditional and what cannot be known, and who may not
//! override whom.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]
#![allow(clippy::needless_pass_by_value, reason = "JSON literals are handed over")]

mod common;

use common::{Ask, load, load_with};
use serde_json::{Value, json};
use sluice_compile::query::Cluster;
use sluice_compile::{Enforcement, Rollout};
use sluice_policy::{ClassId, Connection, Decision, Direction, Facts, Outcome, Protocol, Reason, RowAction};

fn world() -> Vec<Value> {
    let pod = |namespace: &str, name: &str, ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"podIP": ip},
        })
    };
    let namespace = |name: &str, enforcement: &str| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {
            "team": name, "sluice.dev/dataplane": "enabled", "sluice.dev/enforcement": enforcement}}})
    };
    let node = |name: &str, os: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/os": os}},
            "spec": {"podCIDR": "10.0.0.0/16"}, "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
    };
    vec![
        namespace("shop", "enforce"),
        namespace("web", "audit"),
        namespace("bad", "off"),
        node("n", "linux", "172.18.0.2"),
        node("w", "windows", "172.18.0.3"),
        pod("shop", "cart", "10.0.0.1"),
        pod("shop", "stock", "10.0.0.2"),
        pod("web", "front", "10.0.0.3"),
        pod("bad", "mallory", "10.0.0.4"),
    ]
}

/// A `ClusterNetworkPolicy` for every pod.
fn upstream(name: &str, tier: &str, priority: i32, ingress: Value, egress: Value) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": tier, "priority": priority, "subject": {"namespaces": {}}, "ingress": ingress, "egress": egress}})
}

/// A `ClusterL7NetworkPolicy` for every pod.
fn ours(name: &str, tier: &str, priority: i32, ingress: Value) -> Value {
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "ClusterL7NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": tier, "priority": priority, "subject": {"namespaces": {}}, "ingress": ingress}})
}

fn from(action: &str, namespace: &str) -> Value {
    json!({"action": action, "from": [{"namespaces": {"matchLabels": {"team": namespace}}}]})
}

fn all(action: &str) -> Value {
    json!([{"action": action, "from": [{"namespaces": {}}]}])
}

/// A `NetworkPolicy` of shop that lets these namespaces in.
fn namespaced(teams: &[&str]) -> Value {
    let peer = |team: &&str| json!({"namespaceSelector": {"matchLabels": {"team": team}}});
    let peers: Vec<Value> = teams.iter().map(peer).collect();
    let rules = if peers.is_empty() { json!([]) } else { json!([{"from": peers}]) };
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "np"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules}})
}

fn cluster(policies: &[Value]) -> Cluster {
    let (cluster, problems) = load(&[&world()[..], policies].concat());
    assert!(problems.iter().all(|problem| problem.severity != sluice_crd::Severity::Error), "{problems:?}");
    cluster
}

const FRONT: &str = "web/front";
const MALLORY: &str = "bad/mallory";
const CART: &str = "shop/cart";

fn allowed(cluster: &Cluster, from: &str, request: &str) -> bool {
    Ask::new(from, CART, 8080, request).decide(cluster) == Decision::Allow
}

#[test]
fn the_first_rule_of_the_lowest_priority_decides_whatever_its_kind() {
    let deny = |priority| upstream("deny", "Admin", priority, json!([from("Deny", "bad")]), json!([]));
    let accept = |priority| ours("accept", "Admin", priority, json!([{"action": "Accept"}]));
    assert!(!allowed(&cluster(&[deny(5), accept(6)]), MALLORY, ""));
    assert!(allowed(&cluster(&[deny(6), accept(5)]), MALLORY, ""));
    assert!(allowed(&cluster(&[deny(5), accept(6)]), FRONT, ""));
    let both = upstream("one", "Admin", 0, json!([from("Accept", "bad"), from("Deny", "bad")]), json!([]));
    assert!(allowed(&cluster(&[both]), MALLORY, ""));
    // One priority: the name decides, whatever order they came in.
    let (a, b) = (deny(5), accept(5));
    assert!(
        allowed(&cluster(&[a.clone(), b.clone()]), MALLORY, "") && allowed(&cluster(&[b, a]), MALLORY, "")
    );
}

#[test]
fn namespaces_cannot_override_admin_and_pass_leaves_it_to_them() {
    let admin = |action| upstream("a", "Admin", 1, json!([from(action, "bad")]), json!([]));
    let accepts = |policies: &[Value]| allowed(&cluster(policies), MALLORY, "");
    assert!(accepts(&[admin("Accept"), namespaced(&[])]) && !accepts(&[admin("Deny"), namespaced(&["bad"])]));
    assert!(accepts(&[admin("Pass"), namespaced(&["bad"])]) && !accepts(&[admin("Pass"), namespaced(&[])]));
    // A Pass skips the rest of its tier, and no other.
    let later = upstream("b", "Admin", 2, all("Deny"), json!([]));
    assert!(accepts(&[admin("Pass"), later.clone()]) && !accepts(&[later]));
    let baseline = upstream("b", "Baseline", 0, all("Deny"), json!([]));
    assert!(!accepts(&[admin("Pass"), baseline]));
    let verdict = Ask::new(MALLORY, CART, 8080, "").verdict(&cluster(&[admin("Deny")]));
    assert_eq!(verdict.ingress.reason, Reason::DenyRule);
    assert_eq!(verdict.ingress.origin().unwrap().to_string(), "ClusterNetworkPolicy/a");
    assert_eq!(verdict.ingress.rule.as_deref(), Some("ingress[0]"));
}

#[test]
fn baseline_is_silent_where_layer_k_speaks_and_in_that_direction_alone() {
    let to = json!([{"action": "Deny", "to": [{"namespaces": {"matchLabels": {"team": "web"}}}]}]);
    let baseline = upstream("default", "Baseline", 0, all("Deny"), to);
    let only = cluster(std::slice::from_ref(&baseline));
    assert!(!allowed(&only, FRONT, ""));
    let beside = cluster(&[baseline.clone(), namespaced(&["web"])]);
    // To cart K speaks; from cart it does not.
    let back = Ask::new(CART, "web/front", 8080, "").verdict(&beside);
    assert!(allowed(&beside, FRONT, "") && back.egress.decision == Decision::Deny);
    // Layer L is no layer K, and is asked beside it.
    let l = |from: Value| {
        json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "l"}, "spec": {"podSelector": {}, "ingress": [{"name": "x", "from": [from]}]}})
    };
    let front = json!({"namespaceSelector": {"matchLabels": {"team": "web"}}});
    let nobody = json!({"podSelector": {"matchLabels": {"app": "nobody"}}});
    let open = upstream("default", "Baseline", 0, all("Accept"), json!([]));
    assert!(
        !allowed(&cluster(&[baseline, l(front.clone())]), FRONT, ""),
        "L opens nothing that Baseline closed"
    );
    assert!(allowed(&cluster(&[open.clone(), l(front)]), FRONT, ""));
    assert!(!allowed(&cluster(&[open, l(nobody)]), FRONT, ""), "Baseline opens nothing that L closed");
}

#[test]
fn an_unknown_peer_is_accepted_and_passed_by_nothing_and_denied_by_everything() {
    let unknown = "10.0.9.9";
    let rules = |first: &str| json!([{"action": first}, {"action": "Deny", "from": [{"namespaceSelector": {"matchLabels": {"team": "bad"}}}]}]);
    for (first, other) in [("Accept", true), ("Pass", true), ("Deny", false)] {
        let cluster = cluster(&[ours("a", "Admin", 1, rules(first))]);
        assert!(!allowed(&cluster, unknown, ""), "{first}: the later deny takes it");
        assert_eq!(allowed(&cluster, MALLORY, ""), other, "{first}");
    }
}

#[test]
fn conditions_in_a_tier_are_judged_by_request_and_doubt_takes_the_closed_side() {
    let get = json!({"http": [{"methods": ["GET"]}]});
    let cart = |cluster: &Cluster, facts: Facts<'_>| {
        let snapshot = cluster.snapshot();
        let profile =
            snapshot.profile(snapshot.endpoint_at("10.0.0.1".parse().unwrap()).unwrap().profile).unwrap();
        let peer: ClassId = snapshot.class_of("10.0.0.3".parse().unwrap());
        let connection = Connection::new(peer, Protocol::Tcp, 8080);
        let side = profile.side(Direction::Ingress);
        (side.row(&connection).action, side.judge(&connection, facts).decision == Decision::Allow)
    };
    // (action, then what follows the tier's rule), and: GET, POST, bytes that nobody can read.
    for (action, rest, expected) in [
        ("Accept", "Deny", [true, false, false]),
        ("Accept", "Accept", [true, true, true]),
        ("Deny", "Accept", [false, true, false]),
        ("Pass", "Deny", [true, false, false]),
        ("Pass", "Accept", [true, true, true]),
    ] {
        let cluster =
            cluster(&[ours("a", "Admin", 1, json!([{"action": action, "rules": get}, {"action": rest}]))]);
        let (row, unknown) = cart(&cluster, Facts::Unknown);
        assert_eq!(row, RowAction::ToProxy, "{action} {rest}");
        let got = [allowed(&cluster, FRONT, "GET /"), allowed(&cluster, FRONT, "POST /"), unknown];
        assert_eq!(got, expected, "{action}, then {rest}");
        let udp = Ask::new(FRONT, CART, 8080, "").over(Protocol::Udp).decide(&cluster);
        let open = rest == "Accept" && action != "Deny";
        assert_eq!(udp == Decision::Allow, open, "UDP carries no request: {action}, then {rest}");
    }
    // A conditional Pass before an Accept, over a namespaced deny: only what it passes is refused.
    let pass = ours("a", "Admin", 1, json!([{"action": "Pass", "rules": get}, {"action": "Accept"}]));
    let cluster = cluster(&[pass, namespaced(&[])]);
    assert_eq!(cart(&cluster, Facts::Connection), (RowAction::ToProxy, true));
    assert!(!allowed(&cluster, FRONT, "GET /") && allowed(&cluster, FRONT, "POST /"));
    // Baseline: the same, in the place of layer K.
    let rules = json!([{"action": "Accept", "rules": get}, {"action": "Deny"}]);
    let baseline = self::cluster(&[ours("b", "Baseline", 1, rules)]);
    assert_eq!(cart(&baseline, Facts::Unknown), (RowAction::ToProxy, false));
    assert!(allowed(&baseline, FRONT, "GET /") && !allowed(&baseline, FRONT, "POST /"));
}

#[test]
fn networks_nodes_and_named_ports_reach_whom_upstream_says() {
    let egress = |to: Value, protocols: Value| {
        let mut rule = json!({"action": "Deny", "to": [to]});
        if !protocols.is_null() {
            rule["protocols"] = protocols;
        }
        cluster(&[upstream("e", "Admin", 1, json!([]), json!([rule]))])
    };
    let reaches =
        |cluster: &Cluster, to: &str, port| Ask::new(CART, to, port, "").decide(cluster) == Decision::Allow;
    let networks = egress(json!({"networks": ["0.0.0.0/0"]}), Value::Null);
    assert!(
        !["web/front", "172.18.0.2", "8.8.8.8"].iter().any(|to| reaches(&networks, to, 80)),
        "pods and nodes too"
    );
    assert!(reaches(&networks, "2001:db8::1", 80), "and no IPv6");
    let nodes = egress(json!({"nodes": {"matchLabels": {"kubernetes.io/os": "linux"}}}), Value::Null);
    assert!(
        !reaches(&nodes, "172.18.0.2", 80)
            && reaches(&nodes, "172.18.0.3", 80)
            && reaches(&nodes, "8.8.8.8", 80)
    );
    let named = egress(json!({"namespaces": {}}), json!([{"destinationNamedPort": "http"}]));
    assert!(!reaches(&named, "web/front", 8080) && reaches(&named, "web/front", 80));
    let range = json!([{"tcp": {"destinationPort": {"range": {"start": 80, "end": 90}}}}]);
    let range = egress(json!({"pods": {"podSelector": {"matchLabels": {"app": "front"}}}}), range);
    assert!(
        !reaches(&range, "web/front", 85) && reaches(&range, "web/front", 91) && reaches(&range, MALLORY, 85)
    );
}

#[test]
fn a_subject_is_namespaces_or_pods_in_them() {
    let mut policy = upstream("s", "Admin", 1, all("Deny"), json!([]));
    policy["spec"]["subject"] = json!({"pods": {
        "namespaceSelector": {"matchLabels": {"team": "shop"}}, "podSelector": {"matchLabels": {"app": "cart"}}}});
    let (cluster, _) = load(&[&world()[..], &[policy]].concat());
    assert!(!allowed(&cluster, FRONT, ""));
    assert_eq!(Ask::new(FRONT, "shop/stock", 8080, "").decide(&cluster), Decision::Allow);
}

#[test]
fn an_audited_policy_of_a_tier_decides_nothing_and_says_what_it_would() {
    let mut policy = ours("a", "Admin", 1, json!([{"name": "none", "action": "Deny"}]));
    policy["spec"]["mode"] = "Audit".into();
    let verdict = Ask::new(FRONT, CART, 8080, "").verdict(&cluster(&[policy]));
    assert_eq!(verdict.ingress.outcome(), Outcome::Audit);
    assert_eq!(verdict.ingress.audit.would_deny[0].rule.as_deref(), Some("none"));
    let mut policy = ours("a", "Admin", 1, json!([{"action": "Accept"}]));
    policy["spec"]["mode"] = "Audit".into();
    let verdict = Ask::new(FRONT, CART, 8080, "").verdict(&cluster(&[policy, namespaced(&[])]));
    assert!(verdict.ingress.outcome() == Outcome::Deny && verdict.ingress.audit.would_allow);
}

#[test]
fn the_namespace_label_rolls_out_baseline_and_has_no_say_over_admin() {
    let outcomes = |tier, max_enforcement| {
        let rollout = Rollout::AsLabelled { default_dataplane: true, max_enforcement };
        let (cluster, _) =
            load_with(&[&world()[..], &[upstream("a", tier, 1, all("Deny"), json!([]))]].concat(), rollout);
        // Enforce, audit and off, by the labels.
        [(FRONT, CART), (CART, FRONT), (CART, MALLORY)]
            .map(|(from, to)| Ask::new(from, to, 8080, "").verdict(&cluster).ingress.outcome())
    };
    use Outcome::{Allow, Audit, Deny};
    assert_eq!(outcomes("Admin", Enforcement::Enforce), [Deny; 3]);
    assert_eq!(outcomes("Baseline", Enforcement::Enforce), [Deny, Audit, Allow]);
    assert_eq!(outcomes("Admin", Enforcement::Audit), [Audit; 3]);
    assert_eq!(outcomes("Admin", Enforcement::Off), [Allow; 3]);
}

#[test]
fn an_admin_deny_takes_the_nodes_own_traffic_too() {
    let cluster = cluster(&[ours(
        "a",
        "Admin",
        1,
        json!([{"action": "Deny", "from": [{"ipBlock": {"cidr": "172.18.0.2/32"}}]}]),
    )]);
    assert!(
        !allowed(&cluster, "172.18.0.2", "")
            && allowed(&cluster, "172.18.0.3", "")
            && allowed(&cluster, FRONT, "")
    );
}
