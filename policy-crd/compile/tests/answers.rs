//! `denyDetail` and `denyAction` come with the verdict of whoever refused, of each kind that has them.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::{Ask, load};
use serde_json::{Value, json};
use sluice_crd::{Problem, Severity};
use sluice_policy::{DenyAction, DenyDetail, OnDeny, Reason};

fn world(policies: &[Value]) -> Vec<Value> {
    let pod = |name: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "a", "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}]}, "status": {"podIP": ip}})
    };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
    [vec![namespace, pod("client", "10.0.0.1"), pod("server", "10.0.0.2")], policies.to_vec()].concat()
}

fn l7(spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["podSelector"] = json!({"matchLabels": {"app": "server"}});
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "a", "name": "p"}, "spec": spec})
}

fn refused(policies: &[Value], request: &str) -> (Reason, Option<OnDeny>, Vec<Problem>) {
    let (cluster, problems) = load(&world(policies));
    let verdict = Ask::new("a/client", "a/server", 80, request).verdict(&cluster);
    let side = verdict.deciding();
    (side.reason, side.policy.as_ref().map(|policy| policy.on_deny), problems)
}

#[test]
fn who_refuses_says_what_is_told() {
    let http = json!([{"name": "read", "rules": {"http": [{"methods": ["GET"]}]}}]);
    for (word, detail) in
        [("None", DenyDetail::None), ("Rule", DenyDetail::Rule), ("NearestMiss", DenyDetail::NearestMiss)]
    {
        let told = OnDeny { detail, ..OnDeny::default() };
        for (spec, reason) in [
            (json!({"denyDetail": word, "ingress": http}), Reason::NoRuleMatched),
            // Nothing of its own refuses: the policy that isolates.
            (json!({"denyDetail": word, "policyTypes": ["Ingress"]}), Reason::DefaultDeny),
            (json!({"denyDetail": word, "ingressDeny": http}), Reason::DenyRule),
        ] {
            let request = if reason == Reason::NoRuleMatched { "POST /" } else { "GET /" };
            let (got, on_deny, problems) = refused(&[l7(&spec)], request);
            assert_eq!((got, on_deny), (reason, Some(told)), "{spec}");
            assert!(problems.iter().all(|p| p.severity != Severity::Error), "{problems:?}");
        }
        let tier = json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "ClusterL7NetworkPolicy",
            "metadata": {"name": "t"}, "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
                "denyDetail": word, "ingress": [{"name": "no", "action": "Deny"}]}});
        assert_eq!(refused(&[tier], "GET /").1, Some(told), "{word}");
    }
}

#[test]
fn other_kinds_tell_nothing_and_neither_does_what_cannot_be_read() {
    let network = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "a", "name": "n"}, "spec": {"podSelector": {}}});
    assert_eq!(refused(&[network], "GET /").1, Some(OnDeny::default()));
    let (_, on_deny, problems) =
        refused(&[l7(&json!({"denyDetail": "All", "denyAction": "reject"}))], "GET /");
    assert_eq!(on_deny, Some(OnDeny::default()));
    for path in ["spec.denyDetail", "spec.denyAction"] {
        assert!(problems.iter().any(|p| p.path == path && p.severity == Severity::Error), "{problems:?}");
    }
}

#[test]
fn a_reset_is_carried_and_nothing_is_wrong_with_it() {
    let (_, on_deny, problems) = refused(&[l7(&json!({"denyAction": "Reject"}))], "");
    assert_eq!(on_deny.unwrap().action, DenyAction::Reject);
    assert!(problems.iter().all(|problem| problem.path != "spec.denyAction"), "{problems:?}");
}
