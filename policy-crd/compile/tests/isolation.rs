//! `isolation`: which ports become default-deny, with allows, denies, names of ports, audit and doubt.

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
use sluice_policy::{Decision, Outcome, Protocol, Reason};

fn pod(name: &str, ip: &str, port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "a", "name": name, "labels": {"app": name, "kind": "server"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"podIP": ip}})
}

fn l7(name: &str, isolation: Value, lists: Value) -> Value {
    let mut spec = lists;
    spec["isolation"] = isolation;
    spec["podSelector"] = json!({"matchLabels": {"kind": "server"}});
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "a", "name": name}, "spec": spec})
}

fn cluster(policies: &[Value]) -> (Cluster, Vec<Problem>) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
    let pods = vec![
        namespace,
        pod("one", "10.0.0.1", 8080),
        pod("two", "10.0.0.2", 9090),
        pod("other", "10.0.0.3", 7070),
    ];
    load(&[pods, policies.to_vec()].concat())
}

/// Allows `one` on these ports.
fn allow(ports: Value) -> Value {
    json!([{"name": "r", "from": [{"podSelector": {"matchLabels": {"app": "one"}}}], "ports": ports}])
}

fn decide(cluster: &Cluster, from: &str, to: &str, port: u16) -> Decision {
    Ask::new(from, to, port, "").decide(cluster)
}

#[test]
fn listed_ports_alone_are_default_deny_on_every_protocol() {
    let ports = json!([{"port": 80}, {"port": 8000, "endPort": 8010, "protocol": "UDP"}]);
    let (cluster, problems) = cluster(&[l7("p", json!("ListedPorts"), json!({"ingress": allow(ports)}))]);
    assert!(problems.is_empty(), "{problems:?}");
    for (from, protocol, port, expected) in [
        ("a/one", Protocol::Tcp, 80, Decision::Allow),
        ("a/other", Protocol::Tcp, 80, Decision::Deny),
        // The port is isolated, and its rule is about TCP.
        ("a/one", Protocol::Udp, 80, Decision::Deny),
        ("a/other", Protocol::Sctp, 80, Decision::Deny),
        ("a/other", Protocol::Tcp, 8005, Decision::Deny),
        ("a/one", Protocol::Udp, 8010, Decision::Allow),
        ("a/other", Protocol::Tcp, 81, Decision::Allow),
        ("a/other", Protocol::Udp, 8011, Decision::Allow),
    ] {
        let got = Ask::new(from, "a/two", port, "").over(protocol).decide(&cluster);
        assert_eq!(got, expected, "{from} {protocol} {port}");
    }
}

#[test]
fn a_rule_without_ports_names_every_port() {
    let rules = json!([{"name": "r", "from": [{"podSelector": {"matchLabels": {"app": "one"}}}]}]);
    let (cluster, _) = cluster(&[l7("p", json!("ListedPorts"), json!({"ingress": rules}))]);
    assert_eq!(decide(&cluster, "a/one", "a/two", 80), Decision::Allow);
    assert_eq!(decide(&cluster, "a/other", "a/two", 80), Decision::Deny);
    assert_eq!(Ask::new("a/other", "a/two", 5, "").over(Protocol::Icmp).decide(&cluster), Decision::Deny);
}

#[test]
fn a_port_name_is_the_pods_own_on_ingress_and_the_peers_on_egress() {
    let by_name = json!([{"port": "http"}]);
    let (ingress, _) = cluster(&[l7("p", json!("ListedPorts"), json!({"ingress": allow(by_name.clone())}))]);
    for (to, port, expected) in
        [("a/two", 9090, Decision::Deny), ("a/two", 8080, Decision::Allow), ("a/one", 8080, Decision::Deny)]
    {
        assert_eq!(decide(&ingress, "a/other", to, port), expected, "{to} {port}");
    }
    let egress =
        json!([{"name": "r", "to": [{"podSelector": {"matchLabels": {"app": "one"}}}], "ports": by_name}]);
    let lists = json!({"policyTypes": ["Egress"], "egress": egress});
    let (egress, _) = cluster(&[l7("p", json!("ListedPorts"), lists)]);
    for (to, port, expected) in [
        ("a/one", 8080, Decision::Allow),
        // The number that the name has on the peers of the rule is isolated towards everybody.
        ("a/two", 8080, Decision::Deny),
        ("a/two", 9090, Decision::Allow),
        ("a/one", 9090, Decision::Allow),
    ] {
        assert_eq!(decide(&egress, "a/other", to, port), expected, "{to} {port}");
    }
}

#[test]
fn the_ports_of_denies_are_not_isolated_and_denies_deny() {
    let deny = json!([{"name": "no", "from": [{"podSelector": {"matchLabels": {"app": "one"}}}], "ports": [{"port": 80}]}]);
    for isolation in ["ListedPorts", "None"] {
        let (cluster, problems) = cluster(&[l7("p", json!(isolation), json!({"ingressDeny": deny}))]);
        assert!(problems.is_empty(), "{problems:?}");
        for (from, port, expected) in
            [("a/one", 80, Decision::Deny), ("a/other", 80, Decision::Allow), ("a/one", 81, Decision::Allow)]
        {
            assert_eq!(decide(&cluster, from, "a/two", port), expected, "{isolation} {from} {port}");
        }
    }
}

#[test]
fn a_policy_that_isolates_nothing_limits_nothing_and_grants_nothing() {
    let none = l7("p", json!("None"), json!({"ingress": allow(json!([{"port": 80}]))}));
    let (alone, problems) = cluster(std::slice::from_ref(&none));
    assert_eq!(decide(&alone, "a/other", "a/two", 80), Decision::Allow);
    let told = problems.iter().any(|p| p.severity == Severity::Warning && p.path == "spec.ingress");
    assert!(told, "{problems:?}");
    // Beside one that isolates, its allows let nobody in.
    let closed = l7("q", json!("Direction"), json!({"policyTypes": ["Ingress"]}));
    let (beside, _) = cluster(&[none, closed]);
    assert_eq!(decide(&beside, "a/one", "a/two", 80), Decision::Deny);
}

#[test]
fn what_one_policy_isolates_another_does_not_open() {
    let listed = l7("p", json!("ListedPorts"), json!({"ingress": allow(json!([{"port": 80}]))}));
    let wide = l7("q", json!("ListedPorts"), json!({"ingress": [{"name": "w", "ports": [{"port": 90}]}]}));
    let (cluster, _) = cluster(&[listed, wide]);
    for (from, port, expected) in [
        ("a/other", 80, Decision::Deny),
        ("a/other", 90, Decision::Allow),
        ("a/one", 80, Decision::Allow),
        ("a/other", 100, Decision::Allow),
    ] {
        assert_eq!(decide(&cluster, from, "a/two", port), expected, "{from} {port}");
    }
}

#[test]
fn an_audited_list_refuses_nothing_and_says_what_it_would() {
    let mut policy = l7("p", json!("ListedPorts"), json!({"ingress": allow(json!([{"port": 80}]))}));
    policy["spec"]["mode"] = "Audit".into();
    let (cluster, _) = cluster(&[policy]);
    for (from, port, expected) in
        [("a/other", 80, Outcome::Audit), ("a/one", 80, Outcome::Allow), ("a/other", 81, Outcome::Allow)]
    {
        assert_eq!(Ask::new(from, "a/two", port, "").verdict(&cluster).outcome(), expected, "{from} {port}");
    }
}

#[test]
fn what_is_in_doubt_isolates_as_strictly_as_can_be() {
    let rule = json!({"name": "r", "ports": [{"port": 80}]});
    let with = |field: &str, value: Value| {
        let mut rule = rule.clone();
        rule[field] = value;
        json!([rule])
    };
    let listed = json!("ListedPorts");
    for (policy, port_80, port_81) in [
        // The word is none: every port.
        (l7("p", json!("listedports"), json!({"ingress": []})), Decision::Deny, Decision::Deny),
        (l7("p", json!(["None"]), json!({"ingress": []})), Decision::Deny, Decision::Deny),
        // Nobody knows the ports.
        (
            l7("p", listed.clone(), json!({"ingress": with("ports", json!([{"port": 0}]))})),
            Decision::Deny,
            Decision::Deny,
        ),
        (
            l7("p", listed.clone(), json!({"ingress": with("port", json!(80))})),
            Decision::Deny,
            Decision::Deny,
        ),
        (l7("p", listed.clone(), json!({"ingress": [rule, null]})), Decision::Allow, Decision::Deny),
        (l7("p", listed.clone(), json!({"ingress": rule})), Decision::Deny, Decision::Deny),
        (l7("p", listed.clone(), json!({"ingres": [rule]})), Decision::Deny, Decision::Deny),
        (l7("p", json!("None"), json!({"ingressDeni": [rule]})), Decision::Deny, Decision::Deny),
        // The ports are known, and who may say what on them is not: they alone are closed.
        (
            l7("p", listed.clone(), json!({"ingress": with("from", json!([{}]))})),
            Decision::Deny,
            Decision::Allow,
        ),
        (
            l7("p", listed, json!({"ingress": with("rules", json!({"http": []}))})),
            Decision::Deny,
            Decision::Allow,
        ),
    ] {
        let (cluster, problems) = cluster(std::slice::from_ref(&policy));
        assert!(problems.iter().any(|p| p.severity == Severity::Error), "{policy}");
        assert_eq!(decide(&cluster, "a/one", "a/two", 80), port_80, "{policy}");
        assert_eq!(decide(&cluster, "a/one", "a/two", 81), port_81, "{policy}");
    }
}

#[test]
fn a_refusal_on_a_listed_port_names_the_policy_that_lists_it() {
    let rules = json!([{"name": "r", "ports": [{"port": 80}], "rules": {"http": [{"methods": ["GET"]}]}}]);
    let (cluster, _) = cluster(&[l7("p", json!("ListedPorts"), json!({"ingress": rules}))]);
    let verdict = Ask::new("a/one", "a/two", 80, "POST /").verdict(&cluster);
    assert_eq!(verdict.ingress.reason, Reason::NoRuleMatched);
    assert_eq!(verdict.ingress.origin().unwrap().to_string(), "L7NetworkPolicy/a/p");
    assert_eq!(
        Ask::new("a/one", "a/two", 81, "POST /").verdict(&cluster).ingress.reason,
        Reason::NotIsolated
    );
}
