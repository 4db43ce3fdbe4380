//! Fail closed, by exhaustion: every field of a policy misspelt, given twice or given a wrong type. Whatever was
//! denied stays denied, and the mistake is told.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::{Ask, load};
use serde_json::{Map, Value, json};
use sluice_compile::Rollout;
use sluice_compile::query::Cluster;
use sluice_crd::{Problem, Severity};
use sluice_policy::Decision;

/// The world: pods of two namespaces.
fn world() -> Vec<Value> {
    let pod = |namespace: &str, name: &str, ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": 8080}, {"name": "grpc", "containerPort": 9090},
            ]}]},
            "status": {"podIP": ip},
        })
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other", "labels": {"team": "b"}}}),
        pod("shop", "cart", "10.0.0.1"),
        pod("shop", "frontend", "10.0.0.2"),
        pod("shop", "intruder", "10.0.0.3"),
        pod("other", "frontend", "10.0.0.4"),
    ]
}

/// Allows everything, so that a deny rule is all that stands in the way.
fn open_door() -> Value {
    json!({
        "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "open-door"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"name": "all", "ports": [{"port": 9090}]}], "egress": [{"name": "out"}]},
    })
}

fn l7_policy() -> Value {
    json!({
        "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "cart"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "cart"}, "matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]},
            "policyTypes": ["Ingress", "Egress"],
            "mode": "Enforce",
            "ingress": [{
                "name": "frontend",
                "from": [
                    {"podSelector": {"matchLabels": {"app": "frontend"}}, "namespaceSelector": {"matchLabels": {"team": "a"}}},
                    {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}},
                ],
                "ports": [{"port": "http", "protocol": "TCP"}, {"port": 8000, "endPort": 8010}],
                "rules": {
                    "http": [{"methods": ["GET"], "path": {"type": "PathPrefix", "value": "/items"},
                        "headers": [{"name": "x-a", "type": "Exact", "value": "1"}]}],
                    "grpc": [{"service": "shop.v1.Cart", "methods": ["GetCart"]}],
                },
            }],
            "egress": [{"name": "out", "to": [{"podSelector": {"matchLabels": {"app": "frontend"}}}], "ports": [{"port": 8080}]}],
            "ingressDeny": [{
                "name": "no-delete",
                "from": [{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]}}],
                "ports": [{"port": 9090, "protocol": "TCP"}],
                "rules": {"http": [{"methods": ["DELETE"], "path": {"type": "Exact", "value": "/items"}}]},
            }],
            "egressDeny": [{"name": "no-intruder", "to": [{"podSelector": {"matchLabels": {"app": "intruder"}}}]}],
        },
    })
}

fn network_policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "cart"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "cart"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [
                    {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["frontend"]}]}},
                    {"ipBlock": {"cidr": "10.0.0.4/32", "except": ["10.0.0.4/32"]}},
                ],
                "ports": [{"port": "http", "protocol": "TCP"}, {"port": 8000, "endPort": 8010}],
            }],
            "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 8080}]}],
        },
    })
}

/// An Accept, a Pass and denies of the Admin tier, each of which a mistake in another could lay open.
fn cluster_network_policy() -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "zones"},
        "spec": {
            "tier": "Admin", "priority": 10,
            "subject": {"pods": {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {"matchLabels": {"app": "cart"}}}},
            "ingress": [
                {"name": "pass", "action": "Pass", "from": [{"namespaces": {"matchLabels": {"team": "b"}}}],
                    "protocols": [{"tcp": {"destinationPort": {"number": 9090}}}]},
                {"name": "accept", "action": "Accept",
                    "from": [{"pods": {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {"matchLabels": {"app": "frontend"}}}}],
                    "protocols": [{"destinationNamedPort": "http"}, {"tcp": {"destinationPort": {"range": {"start": 8000, "end": 8010}}}}]},
                {"name": "rest", "action": "Deny", "from": [{"namespaces": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}}]},
            ],
            "egress": [
                {"name": "deny", "action": "Deny", "to": [{"networks": ["192.0.2.128/25"]}]},
                {"name": "accept", "action": "Accept", "to": [{"networks": ["192.0.2.0/24"]}]},
                {"name": "rest", "action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]},
            ],
        },
    })
}

fn cluster_l7_policy() -> Value {
    json!({
        "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "ClusterL7NetworkPolicy",
        "metadata": {"name": "requests"},
        "spec": {
            "tier": "Baseline", "priority": 0, "mode": "Enforce",
            "subject": {"namespaces": {"matchLabels": {"team": "a"}}},
            "ingress": [
                {"name": "read", "action": "Accept",
                    "from": [{"podSelector": {"matchLabels": {"app": "frontend"}}, "namespaceSelector": {"matchLabels": {"team": "a"}}}],
                    "ports": [{"port": "http", "protocol": "TCP"}, {"port": 8000, "endPort": 8010}],
                    "rules": {"http": [{"methods": ["GET"], "path": {"type": "PathPrefix", "value": "/items"}}]}},
                {"name": "no-delete", "action": "Deny", "rules": {"http": [{"methods": ["DELETE"]}]}},
                {"name": "pass", "action": "Pass", "from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}}]},
                {"name": "rest", "action": "Deny"},
            ],
        },
    })
}

fn questions() -> Vec<Ask> {
    let pods = ["shop/cart", "shop/frontend", "shop/intruder", "other/frontend", "192.0.2.1", "192.0.2.200"];
    let mut out = Vec::new();
    for from in pods {
        for to in pods.into_iter().filter(|to| *to != from) {
            for port in [8080, 9090, 8005] {
                for request in ["", "GET /items", "GET /x", "DELETE /items", "POST /items"] {
                    out.push(Ask::new(from, to, port, request));
                }
            }
        }
    }
    out
}

/// Where nobody can tell what an object is or where it belongs, nobody can judge it: an error says so.
fn is_identity(path: &[String]) -> bool {
    matches!(path[0].as_str(), "apiVersion" | "kind" | "metadata")
        && path.last().is_none_or(|last| last != "name")
}

/// Labels are named freely: another name is another policy, not a mistake.
fn is_free(path: &[String]) -> bool {
    path.iter().rev().nth(1).is_some_and(|parent| parent == "matchLabels")
}

/// Every place in a value.
fn places(value: &Value, path: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
    let mut visit = |key: String, inner: &Value| {
        path.push(key);
        out.push(path.clone());
        places(inner, path, out);
        path.pop();
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, inner)| visit(key.clone(), inner)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, inner)| visit(index.to_string(), inner));
        }
        _ => {}
    }
}

fn at<'v>(value: &'v mut Value, path: &[String]) -> &'v mut Value {
    path.iter().fold(value, |value, step| match value {
        Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
        other => &mut other[step.as_str()],
    })
}

/// The policy with the field misspelt, if it has a name that can be.
fn misspelt(policy: &Value, path: &[String]) -> Option<Value> {
    let (last, parent) = path.split_last()?;
    let mut policy = policy.clone();
    let fields = at(&mut policy, parent).as_object_mut()?;
    let value = fields.remove(last)?;
    fields.insert(format!("{last}x"), value);
    Some(policy)
}

/// The policy with values of other types in the place.
fn mistyped(policy: &Value, path: &[String]) -> Vec<Value> {
    let mut original = policy.clone();
    let wrong = match at(&mut original, path) {
        Value::Object(_) => vec![json!("x"), json!(["x"]), json!(7)],
        Value::Array(_) => vec![json!("x"), json!({"x": 1}), json!(7)],
        _ => vec![json!(["x"]), json!({"x": 1}), json!(true)],
    };
    let put = |wrong: Value| {
        let mut policy = policy.clone();
        *at(&mut policy, path) = wrong;
        policy
    };
    wrong.into_iter().map(put).collect()
}

/// The policy as text, with one field given twice.
fn twice(value: &Value, path: &[String]) -> String {
    let children: Vec<String> = match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, inner)| {
                let here = path.first() == Some(key);
                let rest = if here { &path[1..] } else { &[] };
                let field = format!("{key:?}: {}", twice(inner, rest));
                std::iter::repeat_n(field, if here && path.len() == 1 { 2 } else { 1 })
            })
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, inner)| {
                let here = path.first().is_some_and(|step| *step == index.to_string());
                twice(inner, if here { &path[1..] } else { &[] })
            })
            .collect(),
        other => return other.to_string(),
    };
    let inner = children.join(", ");
    if value.is_object() { format!("{{{inner}}}") } else { format!("[{inner}]") }
}

/// The verdicts with the policy given as text, and what was wrong with the text.
fn judge_text(text: &str) -> (Vec<Decision>, Vec<Problem>) {
    let mut loaded = sluice_crd::load_str("policy.json", text);
    let mut objects = world();
    objects.push(open_door());
    let rest = sluice_crd::load_value(&objects).objects;
    loaded.objects.pods = rest.pods;
    loaded.objects.namespaces = rest.namespaces;
    loaded.objects.policies.extend(rest.policies);
    let cluster = Cluster::new(&loaded.objects, Rollout::AsIfEnforced);
    (questions().iter().map(|ask| ask.decide(&cluster)).collect(), loaded.problems)
}

/// The policy in YAML's block style, as people write it.
fn block_style(value: &Value, indent: usize, out: &mut String) {
    let margin = "  ".repeat(indent);
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                out.push_str(&format!("\n{margin}{key}:"));
                block_style(inner, indent + 1, out);
            }
        }
        Value::Array(items) => {
            for inner in items {
                out.push_str(&format!("\n{margin}-"));
                block_style(inner, indent + 1, out);
            }
        }
        other => out.push_str(&format!(" {other}")),
    }
}

#[test]
fn no_policy_that_breaks_off_opens_anything() {
    for policy in [l7_policy(), network_policy(), cluster_network_policy(), cluster_l7_policy()] {
        let mut text = String::new();
        block_style(&policy, 0, &mut text);
        let lines: Vec<&str> = text.lines().collect();
        // Before that nobody knows where it belongs: a parser reads one word ahead.
        let known = lines.iter().position(|line| line.starts_with("spec:")).unwrap() + 1;
        let (expected, problems) = judge_text(&text);
        assert!(problems.is_empty(), "{problems:?}");
        for end in known..lines.len() {
            let cut = format!("{}\n  }}", lines[..end].join("\n"));
            let (got, problems) = judge_text(&cut);
            assert!(problems.iter().any(|problem| problem.severity == Severity::Error), "{cut}");
            for ((ask, expected), got) in questions().iter().zip(&expected).zip(&got) {
                let opened = *expected == Decision::Deny && *got == Decision::Allow;
                assert!(!opened, "{ask:?} was denied, and is allowed by {cut}");
            }
        }
    }
}

#[test]
fn no_field_given_twice_opens_anything() {
    let policy = l7_policy();
    let (expected, problems) = judge_text(&policy.to_string());
    assert!(problems.is_empty(), "{problems:?}");
    let mut all = Vec::new();
    places(&policy, &mut Vec::new(), &mut all);
    let named = |path: &&Vec<String>| path.last().is_some_and(|last| last.parse::<usize>().is_err());
    for path in all.iter().filter(named).filter(|path| !is_identity(path)) {
        let (got, problems) = judge_text(&twice(&policy, path));
        assert_eq!(problems.len(), 1, "{path:?}: {problems:?}");
        assert!(problems[0].reason.contains("given twice"));
        for ((ask, expected), got) in questions().iter().zip(&expected).zip(&got) {
            let opened = *expected == Decision::Deny && *got == Decision::Allow;
            assert!(!opened, "{path:?}: {ask:?} was denied, and is allowed");
        }
    }
}

fn never_opens(policy: &Value) {
    let judge = |policy: &Value| {
        let mut objects = world();
        objects.push(open_door());
        objects.push(policy.clone());
        let (cluster, problems) = load(&objects);
        let verdicts: Vec<Decision> = questions().iter().map(|ask| ask.decide(&cluster)).collect();
        (verdicts, problems)
    };
    let (expected, problems) = judge(policy);
    assert!(problems.iter().all(|problem| problem.severity != Severity::Error), "{problems:?}");
    assert!(expected.contains(&Decision::Allow) && expected.contains(&Decision::Deny));
    let mut all = Vec::new();
    places(policy, &mut Vec::new(), &mut all);
    assert!(all.len() > 30, "{}", all.len());
    for path in all.iter().filter(|path| !is_identity(path) && !is_free(path)) {
        let variants = misspelt(policy, path).into_iter().chain(mistyped(policy, path));
        for mutated in variants {
            let (got, problems) = judge(&mutated);
            let shown = path.join(".");
            assert!(
                problems.iter().any(|problem| problem.severity == Severity::Error),
                "{shown}: nothing is told of {mutated:#}"
            );
            for ((ask, expected), got) in questions().iter().zip(&expected).zip(&got) {
                assert!(
                    *expected == Decision::Allow || *got == Decision::Deny,
                    "{shown}: {ask:?} was denied, and is allowed by {mutated:#}\n{problems:#?}"
                );
            }
        }
    }
}

#[test]
fn no_mistake_in_an_l7_policy_opens_anything() {
    never_opens(&l7_policy());
}

#[test]
fn no_mistake_in_a_network_policy_opens_anything() {
    never_opens(&network_policy());
}

/// What nobody can take as written: a field of a rule and its value.
fn unsayable() -> Vec<(&'static str, Value)> {
    vec![
        ("from", json!([{"serviceAccounts": []}])),
        ("from", json!([{"serviceAccounts": [{"name": ""}]}])),
        ("from", json!([{"serviceAccounts": [{"name": "cart"}, {"namespace": "Shop", "name": "cart"}]}])),
        (
            "from",
            json!([{"serviceAccounts": [{"name": "cart"}], "podSelector": {"matchLabels": {"app": "x"}, "match": {}}}]),
        ),
        ("from", json!([{"entities": []}])),
        ("from", json!([{"entities": ["Everybody"]}])),
        ("from", json!([{"entities": ["World"], "ipBlock": {"cidr": "10.0.0.0/33"}}])),
        ("rules", json!({"tls": {}})),
        ("rules", json!({"tls": {"serverNames": []}})),
        ("rules", json!({"tls": {"serverNames": ["*"]}})),
        ("rules", json!({"tls": {"serverNames": ["a.example", "*.*.example"]}})),
        ("rules", json!({"tls": {"serverNames": ["API.example"]}})),
        ("rules", json!({"tls": {"serverNames": ["api.example."]}})),
        ("rules", json!({"tls": {"serverNames": ["a..example"]}})),
        ("rules", json!({"tls": {"serverNames": ["api.example:443"]}})),
        ("rules", json!({"tls": {"serverNames": ["a".repeat(64)]}})),
        ("rules", json!({"tls": {"serverNames": ["a"], "names": []}})),
        ("rules", json!({"http": [{"hosts": []}]})),
        ("rules", json!({"http": [{"hosts": [{"type": "Exact", "value": "A:80"}]}]})),
        ("rules", json!({"http": [{"hosts": [{"type": "RegularExpression", "value": "("}]}]})),
        ("rules", json!({"http": [{"headers": [{"name": "Host", "type": "Exact", "value": "a"}]}]})),
        ("rules", json!({"http": [{"headers": [{"name": "host", "type": "Absent"}]}]})),
        ("rules", json!({"http": [{"headers": [{"name": ":authority", "type": "Exact", "value": "a"}]}]})),
        ("rules", json!({"http": [{"headers": [{"name": ":path", "type": "Present"}]}]})),
        ("rules", json!({"http": [{"queryParams": [{"name": "", "type": "Present"}]}]})),
        ("rules", json!({"http": [{"queryParams": [{"name": "a", "type": "Exact"}]}]})),
        ("rules", json!({"http": [{"queryParams": [{"name": "a", "type": "Absent", "value": "1"}]}]})),
        ("rules", json!({"http": [{"upgrades": []}]})),
        ("rules", json!({"http": [{"upgrades": ["h2c"]}]})),
        ("rules", json!({"http": [{"upgrades": ["WebSocket"]}]})),
        ("rules", json!({"http": [{"upgrades": ["websocket", "websocket"]}]})),
        (
            "rules",
            json!({"http": [{"methods": ["CONNECT", "GET"], "hosts": [{"type": "Exact", "value": "a"}]}]}),
        ),
        (
            "rules",
            json!({"http": [{"methods": ["CONNECT"], "path": {"type": "PathPrefix", "value": "/"}, "hosts": [{"type": "Exact", "value": "a"}]}]}),
        ),
        (
            "rules",
            json!({"http": [{"methods": ["CONNECT"], "queryParams": [{"name": "a", "type": "Present"}], "hosts": [{"type": "Exact", "value": "a"}]}]}),
        ),
        (
            "rules",
            json!({"http": [{"methods": ["CONNECT"], "upgrades": ["websocket"], "hosts": [{"type": "Exact", "value": "a"}]}]}),
        ),
        ("rules", json!({"grpc": [{"service": "a", "protocols": []}]})),
        ("rules", json!({})),
        ("rules", json!({"http": []})),
        ("rules", json!({"http": [{"path": {"type": "RegularExpression", "value": "(?=x)"}}]})),
    ]
}

#[test]
fn what_cannot_be_said_grants_nothing_and_denies_more() {
    for (path, value) in unsayable() {
        let mut rule: Map<String, Value> = Map::new();
        rule.insert("name".into(), "r".into());
        rule.insert(path.into(), value.clone());
        for section in ["ingress", "ingressDeny"] {
            let mut policy = open_door();
            policy["metadata"]["name"] = "p".into();
            policy["spec"] = json!({"podSelector": {}, "policyTypes": ["Ingress"], section: [rule]});
            let mut objects = world();
            objects.push(policy);
            if section == "ingressDeny" {
                objects.push(open_door());
            }
            let (cluster, problems) = load(&objects);
            let told = problems.iter().filter(|problem| problem.severity == Severity::Error);
            assert!(
                told.clone().any(|p| p.path.starts_with(&format!("spec.{section}[0].{path}"))),
                "{value}: {problems:?}"
            );
            // An unknown limit of a deny: what it could have meant is denied. gRPC by any carrier is.
            if section == "ingress"
                || !value.to_string().contains("grpc") && !value.to_string().contains("CONNECT")
            {
                let ask = Ask::new("shop/frontend", "shop/cart", 9090, "GET /x");
                assert_eq!(ask.decide(&cluster), Decision::Deny, "{section} {value}");
            }
        }
    }
}

#[test]
fn no_mistake_in_a_policy_of_a_tier_opens_anything() {
    never_opens(&cluster_network_policy());
    never_opens(&cluster_l7_policy());
}
