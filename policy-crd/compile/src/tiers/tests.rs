//! What a doubt costs in a tier: no Accept, a Deny at least as wide, and never a Pass.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use super::*;
use serde_json::{Value, json};
use sluice_crd::Severity;

fn upstream(rule: &Value) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "a"},
        "spec": {"tier": "Baseline", "priority": 5, "subject": {"namespaces": {"matchLabels": {"a": "b"}}}, "egress": [rule]},
    })
}

fn ours(rule: &Value) -> Value {
    let mut policy = upstream(rule);
    policy["apiVersion"] = "policy.sluice.dev/v1alpha1".into();
    policy["kind"] = "ClusterL7NetworkPolicy".into();
    policy
}

/// The policies in order, and their errors.
fn lowered(policies: &[Value]) -> (Vec<PolicyIr>, Vec<Problem>) {
    let loaded = sluice_crd::load_value(policies);
    let mut problems = loaded.problems;
    let tiered = lower(&loaded.objects, &mut problems);
    let mut tiered = tiered;
    tiered.sort_by(order);
    problems.retain(|problem| problem.severity == Severity::Error);
    (tiered, problems)
}

/// What a policy's egress is in one line: each rule's action, with `*` for everybody and for every port.
fn shape(policy: &PolicyIr) -> String {
    let rule = |(action, rule): (&Action, &RuleIr)| {
        let all = |all| if all { "*" } else { "" };
        let conditions = if rule.conditions.is_some() { "?" } else { "" };
        format!("{action:?}{}{}{conditions}", all(rule.peers == Peers::All), all(rule.ports == Ports::All))
    };
    policy.tiered.as_ref().unwrap().actions[1]
        .iter()
        .zip(&policy.egress.deny)
        .map(rule)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn a_doubtful_part_of_a_rule_costs_the_closed_side() {
    let sound =
        json!({"to": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]});
    let port = |port: Value| json!({"to": [{"namespaces": {}}], "protocols": [port]});
    let to = |to: Value| json!({"to": to, "protocols": [{"udp": {"destinationPort": {"number": 53}}}]});
    for (rule, deny) in [
        (sound.clone(), "Deny"),
        (
            to(
                json!([{"pods": {"podSelector": {}}}, {"networks": ["10.0.0.0/8", "fd00::/8"]}, {"nodes": {}}]),
            ),
            "Deny",
        ),
        (to(json!([])), "Deny*"),
        (to(json!([{}])), "Deny*"),
        (to(json!([{"namespaces": {}, "nodes": {}}])), "Deny*"),
        (to(json!([{"namespaces": {}}, {"domainNames": ["example.com"]}])), "Deny*"),
        (to(json!([{"networks": ["10.0.0.0/33"]}])), "Deny*"),
        (to(json!([{"networks": ["::ffff:10.0.0.0/104"]}])), "Deny*"),
        (to(json!([{"networks": []}])), "Deny*"),
        (
            to(
                json!([{"namespaces": {"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}}]),
            ),
            "Deny*",
        ),
        (to(json!([{"pods": {"podSelector": {}, "more": 1}}])), "Deny*"),
        (to(json!([{"newPeer": {}}])), "Deny*"),
        (port(json!({"tcp": {}})), "Deny*"),
        (port(json!({"tcp": {"destinationPort": {}}})), "Deny*"),
        (port(json!({"tcp": {"destinationPort": {"number": 0}}})), "Deny*"),
        (port(json!({"tcp": {"destinationPort": {"number": 80, "range": {"start": 1, "end": 2}}}})), "Deny*"),
        (port(json!({"tcp": {"destinationPort": {"range": {"start": 2, "end": 2}}}})), "Deny*"),
        (port(json!({"icmp": {}})), "Deny*"),
        (port(json!({"destinationNamedPort": "80"})), "Deny*"),
        (
            json!({"to": [{"networks": ["10.0.0.0/8"]}], "protocols": [{"destinationNamedPort": "web"}]}),
            "Deny*",
        ),
    ] {
        let act = |action: &str| {
            let mut rule = rule.clone();
            rule["action"] = action.into();
            let (tiered, problems) = lowered(&[upstream(&rule)]);
            let accepted = tiered[0].accepted;
            assert!(accepted || !problems.is_empty(), "{rule}");
            (shape(&tiered[0]), accepted)
        };
        let clear = deny == "Deny";
        assert_eq!(act("Deny"), (deny.to_owned(), clear), "{rule}");
        assert_eq!(act("Accept"), (if clear { "Accept" } else { "" }.to_owned(), clear), "{rule}");
        assert_eq!(act("Pass"), (if clear { "Pass" } else { deny }.to_owned(), clear), "{rule}");
        assert_eq!(act("Allow"), (deny.to_owned(), false), "{rule}");
    }
}

#[test]
fn a_doubtful_object_accepts_and_passes_nothing() {
    let rules = json!([
        {"action": "Accept", "to": [{"namespaces": {}}]},
        {"action": "Pass", "to": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]},
        {"action": "Deny", "to": [{"namespaces": {}}]},
    ]);
    let sound = "Accept* Pass Deny*";
    let closed = "Deny Deny*";
    for (path, value, shaped) in [
        ("/spec/priority", json!(1000), sound),
        ("/spec/priority", json!(1001), closed),
        ("/spec/priority", json!(-1), closed),
        ("/spec/priority", json!("5"), closed),
        ("/spec/tier", json!("admin"), closed),
        ("/spec/subject", json!({}), closed),
        ("/spec/subject", json!({"namespaces": {}, "pods": {"podSelector": {}}}), closed),
        ("/spec/subject", json!({"pods": {"namespaceSelector": {}}}), closed),
        ("/spec/subject", json!({"namespaces": {"matchLabels": {"a": 1}}}), closed),
        ("/metadata/name", json!(""), closed),
        ("/metadata", json!({"name": "a", "namespace": "b"}), closed),
    ] {
        let mut policy = upstream(&json!({}));
        policy["spec"]["egress"] = rules.clone();
        *policy.pointer_mut(path).unwrap() = value.clone();
        let (tiered, _) = lowered(&[policy]);
        let policy = &tiered[0];
        let place = policy.tiered.as_ref().unwrap();
        assert_eq!((shape(policy).as_str(), policy.accepted), (shaped, shaped == sound), "{path} {value}");
        assert_eq!(place.tier == Tier::Admin, path == "/spec/tier", "a tier that cannot be read is Admin");
        assert_eq!(place.priority.is_none(), path == "/spec/priority" && shaped == closed, "{value}");
        assert_eq!(place.namespaces == Selector::default(), path == "/spec/subject", "every pod");
    }
}

#[test]
fn what_must_be_said_may_be_lost_by_a_deny_alone() {
    for (rules, deny) in [
        (json!({"http": [{"methods": ["GET"]}]}), "Deny**?"),
        (json!({"http": [{"methods": ["GET"], "headers": [{"name": "a b", "type": "Present"}]}]}), "Deny**?"),
        (json!({"http": [{"methods": "GET"}]}), "Deny**"),
        (json!({"htttp": []}), "Deny**"),
        (json!({}), "Deny**"),
    ] {
        let act = |action: &str| shape(&lowered(&[ours(&json!({"action": action, "rules": rules}))]).0[0]);
        let clear = rules["http"][0] == json!({"methods": ["GET"]});
        assert_eq!(act("Deny"), deny, "{rules}");
        assert_eq!(act("Accept"), if clear { "Accept**?" } else { "" }, "{rules}");
        assert_eq!(act("Pass"), if clear { "Pass**?" } else { deny }, "{rules}");
    }
}

#[test]
fn tiers_priorities_and_names_order_the_policies_of_both_kinds() {
    let policy = |ours_too: bool, name: &str, tier: &str, priority: i64| {
        let mut policy = if ours_too { ours(&json!({})) } else { upstream(&json!({})) };
        policy["metadata"]["name"] = name.into();
        policy["spec"]["tier"] = tier.into();
        policy["spec"]["priority"] = priority.into();
        policy
    };
    let mut policies = vec![
        policy(true, "z", "Admin", 10),
        policy(false, "b", "Admin", 30),
        policy(true, "a", "Admin", 30),
        policy(true, "b", "Admin", 30),
        policy(false, "x", "Admin", 5000),
        policy(false, "default", "Baseline", 0),
    ];
    let expected = [
        "ClusterNetworkPolicy/x",
        "ClusterL7NetworkPolicy/z",
        "ClusterL7NetworkPolicy/a",
        "ClusterL7NetworkPolicy/b",
        "ClusterNetworkPolicy/b",
        "ClusterNetworkPolicy/default",
    ];
    for _ in 0..policies.len() {
        policies.rotate_left(1);
        let order: Vec<String> =
            lowered(&policies).0.iter().map(|policy| policy.origin.to_string()).collect();
        assert_eq!(order, expected, "whatever order they came in");
    }
}

#[test]
fn a_pod_selector_alone_is_every_namespace_and_warned_of_where_it_grants() {
    let policy =
        |action: &str| ours(&json!({"action": action, "to": [{"podSelector": {"matchLabels": {"a": "b"}}}]}));
    for (action, warned) in [("Accept", true), ("Pass", true), ("Deny", false)] {
        let mut problems = Vec::new();
        let tiered = lower(&sluice_crd::load_value(&[policy(action)]).objects, &mut problems);
        let Peers::Any(items) = &tiered[0].egress.deny[0].peers else { panic!("everybody") };
        assert!(
            matches!(&items[..], [PeerItem::Elsewhere { namespaces, .. }] if *namespaces == Selector::default())
        );
        let warning = problems.iter().find(|problem| problem.path == "spec.egress[0].to[0].podSelector");
        assert_eq!(
            warning.is_some_and(|problem| problem.severity == Severity::Warning),
            warned,
            "{problems:?}"
        );
    }
}

#[test]
fn a_name_that_cannot_stand_in_a_verdict_changes_nothing_else() {
    let rule = json!({"action": "Accept", "name": "from the\nmoon", "to": [{"namespaces": {}}]});
    let (tiered, problems) = lowered(&[upstream(&rule)]);
    assert_eq!((&*tiered[0].egress.deny[0].name, problems.len(), tiered[0].accepted), ("egress[0]", 0, true));
    let rule = json!({"action": "Accept", "name": "from the\nmoon"});
    let (tiered, problems) = lowered(&[ours(&rule)]);
    assert_eq!((shape(&tiered[0]).as_str(), problems.len(), tiered[0].accepted), ("Accept**", 1, false));
}
