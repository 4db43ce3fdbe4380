//! What a row of the kernel names and whether its refusal is answered, for each kind of refusal.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::load;
use serde_json::{Value, json};
use sluice_policy::{Direction, Protocol, Row, RowAction};
use std::net::IpAddr;

const CLIENT: &str = "10.0.0.1";
const SERVER: &str = "10.0.0.2";

fn world(policies: &[Value]) -> Vec<Value> {
    let pod = |name: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "a", "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}]}, "status": {"podIP": ip}})
    };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
    [vec![namespace, pod("client", CLIENT), pod("server", SERVER)], policies.to_vec()].concat()
}

fn policy(name: &str, fields: &Value) -> Value {
    let mut spec = json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "a", "name": name}, "spec": spec})
}

fn network(name: &str, fields: &Value) -> Value {
    let mut object = policy(name, fields);
    object["apiVersion"] = "networking.k8s.io/v1".into();
    object["kind"] = "NetworkPolicy".into();
    object
}

/// The row of what the client opens to this port of the server; the policy and rule that it names.
fn row(policies: &[Value], port: u16) -> (Row, Option<(String, Option<String>)>) {
    let (cluster, problems) = load(&world(policies));
    let errors = problems.iter().filter(|problem| problem.severity == sluice_crd::Severity::Error);
    assert_eq!(errors.count(), 0, "{problems:?}");
    let snapshot = cluster.snapshot();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let profile = snapshot.endpoint_at(address(SERVER)).unwrap().profile;
    let class = snapshot.class_of(address(CLIENT));
    let matches = |at: u16, len: u8| len == 0 || (port ^ at) >> (16 - u16::from(len)) == 0;
    let rows = snapshot.rows().filter(|entry| {
        (entry.profile, entry.direction, entry.class, entry.protocol)
            == (profile, Direction::Ingress, class, Protocol::Tcp)
            && matches(entry.ports.port, entry.ports.len)
    });
    let row = rows.max_by_key(|entry| entry.ports.len).unwrap().row;
    let side = &snapshot.profile(profile).unwrap().ingress;
    let named = row.by.map(|by| side.decided(by).unwrap());
    (row, named.map(|(policy, rule)| (policy.origin.name.to_string(), rule.map(ToString::to_string))))
}

fn rule(policy: &str, rule: &str) -> Option<(String, Option<String>)> {
    Some((policy.to_owned(), Some(rule.to_owned())))
}

fn alone(policy: &str) -> Option<(String, Option<String>)> {
    Some((policy.to_owned(), None))
}

#[test]
fn a_row_names_the_rule_that_decides_it() {
    let ports = |list: &[u16]| -> Value { list.iter().map(|port| json!({"port": port})).collect() };
    let open = json!({"ingress": [
        {"name": "low", "ports": ports(&[80, 81])}, {"name": "high", "ports": ports(&[82])},
    ]});
    let p = policy("p", &open);
    for (port, by) in
        [(80, rule("p", "low")), (81, rule("p", "low")), (82, rule("p", "high")), (83, alone("p"))]
    {
        let (row, named) = row(std::slice::from_ref(&p), port);
        assert_eq!((row.action == RowAction::Allow, named), (port < 83, by), "{port}");
    }
    // Both layers allow: what the verdict names is the later one's.
    let all = network("n", &json!({"ingress": [{}]}));
    assert_eq!(row(&[all.clone(), p], 80).1, rule("p", "low"));
    assert_eq!(row(&[all], 80).1, rule("n", "ingress[0]"));
    // The proxy says itself what decides, and where nothing isolates nobody does.
    let l7 = json!({"ingress": [{"name": "get", "rules": {"http": [{"methods": ["GET"]}]}}]});
    let (to_proxy, named) = row(&[policy("p", &l7)], 80);
    assert_eq!((to_proxy.action, named), (RowAction::ToProxy, None));
    assert_eq!(row(&[], 80).1, None);
}

#[test]
fn a_rule_is_refused_as_its_policy_says() {
    for (action, reject) in [("Drop", false), ("Reject", true)] {
        // The policy that isolates says the other thing, and is not asked.
        let other = if reject { "Drop" } else { "Reject" };
        let deny = policy(
            "deny",
            &json!({"denyAction": action, "isolation": "None", "ingressDeny": [{"name": "no", "ports": [{"port": 80}]}]}),
        );
        let isolate = policy("isolate", &json!({"denyAction": other}));
        let (found, by) = row(&[deny, isolate], 80);
        assert_eq!((found.action, found.reject, by), (RowAction::Deny, reject, rule("deny", "no")));
        let tier = |tier: &str| {
            json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "ClusterL7NetworkPolicy",
                "metadata": {"name": "t"}, "spec": {"tier": tier, "priority": 1, "subject": {"namespaces": {}},
                    "denyAction": action, "ingress": [{"name": "no", "action": "Deny"}]}})
        };
        for name in ["Admin", "Baseline"] {
            let (found, by) = row(&[tier(name)], 80);
            assert_eq!((found.reject, by), (reject, rule("t", "no")), "{name}");
        }
    }
}

#[test]
fn what_nothing_grants_is_answered_if_one_that_isolates_says_so() {
    let drop = policy("a-drop", &json!({}));
    let reject = policy("b-reject", &json!({"denyAction": "Reject"}));
    let only = |name: &str, port: u16| {
        policy(
            name,
            &json!({"denyAction": "Reject", "isolation": "ListedPorts",
                "ingress": [{"name": "r", "ports": [{"port": port}], "from": [{"podSelector": {"matchLabels": {"app": "x"}}}]}]}),
        )
    };
    let audited = policy("c-audited", &json!({"denyAction": "Reject", "mode": "Audit"}));
    let cases = [
        (vec![drop.clone()], false),
        (vec![reject.clone()], true),
        // Whoever comes first.
        (vec![drop.clone(), reject.clone()], true),
        // In another layer than the one that refuses.
        (vec![network("n", &json!({})), reject], true),
        (vec![network("n", &json!({}))], false),
        // Of the ports that it isolates alone.
        (vec![drop.clone(), only("listed", 80)], true),
        (vec![drop.clone(), only("listed", 81)], false),
        // One that is audited answers nothing.
        (vec![drop, audited], false),
    ];
    for (policies, reject) in cases {
        let (found, _) = row(&policies, 80);
        assert_eq!((found.action, found.reject), (RowAction::Deny, reject), "{policies:?}");
    }
}
