//! What `rules` asks for beyond plain requests: server names, upgrades and CONNECT, as allow and as deny.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "test helpers take what json! makes, and fail loudly"
)]

mod common;

use common::load;
use serde_json::{Value, json};
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_crd::{Problem, Severity};
use sluice_policy::{Decision, Facts, Outcome, Protocol, Reason, RowAction, Verdict};

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "a", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": "n", "containers": [{"name": "c"}]},
        "status": {"podIP": ip},
    })
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "a", "name": name}, "spec": spec})
}

/// A policy of the server with one rule in one list.
fn one(name: &str, list: &str, mode: &str, rules: Value) -> Value {
    let rule = json!({"name": "r", "ports": [{"port": 443}], "rules": rules});
    let mut spec = json!({"podSelector": {"matchLabels": {"app": "server"}}, "mode": mode, list: [rule]});
    if list == "ingressDeny" {
        spec["ingress"] = json!([{"name": "rest"}]);
    }
    policy(name, spec)
}

fn cluster(policies: &[Value]) -> (Cluster, Vec<Problem>) {
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}),
        pod("client", "10.0.0.1"),
        pod("server", "10.0.0.2"),
    ];
    objects.extend_from_slice(policies);
    load(&objects)
}

fn sound(policies: &[Value]) -> Cluster {
    let (cluster, problems) = cluster(policies);
    let errors: Vec<&Problem> = problems.iter().filter(|p| p.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
    cluster
}

fn judge(cluster: &Cluster, facts: Facts<'_>) -> Verdict {
    let address = |text: &str| -> std::net::IpAddr { text.parse().unwrap() };
    cluster.snapshot().judge(address("10.0.0.1"), address("10.0.0.2"), Protocol::Tcp, 443, facts)
}

fn say(cluster: &Cluster, method: &str, target: &str, host: &str, headers: &[(&str, &str)]) -> Decision {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let said = Said::Http { method: method.into(), target: target.into(), host: Some(host.into()), headers };
    let query = Query {
        from: "a/client".into(),
        to: "a/server".into(),
        protocol: Protocol::Tcp,
        port: Port::Number(443),
        said,
    };
    cluster.ask(&query).unwrap().decision()
}

#[test]
fn an_allow_of_server_names_grants_these_and_nothing_that_is_not_tls() {
    let cluster = sound(&[one(
        "p",
        "ingress",
        "Enforce",
        json!({"tls": {"serverNames": ["api.example", "*.internal.example"]}}),
    )]);
    for (name, expected) in [
        (Some("api.example"), Decision::Allow),
        (Some("x.internal.example"), Decision::Allow),
        (Some("x.y.internal.example"), Decision::Allow),
        (Some("internal.example"), Decision::Deny),
        (Some("xapi.example"), Decision::Deny),
        (Some("api.example.evil"), Decision::Deny),
        // No name, or an encrypted one, is no match.
        (None, Decision::Deny),
    ] {
        assert_eq!(judge(&cluster, Facts::Tls(name)).decision(), expected, "{name:?}");
    }
    assert_eq!(judge(&cluster, Facts::Unknown).decision(), Decision::Deny);
    assert_eq!(say(&cluster, "GET", "/", "api.example", &[]), Decision::Deny);
    let verdict = judge(&cluster, Facts::Tls(Some("www.example")));
    assert_eq!(verdict.ingress.reason, Reason::NoRuleMatched);
    let miss = verdict.ingress.nearest_miss.unwrap().to_string();
    assert!(miss.contains("www.example") && miss.contains("*.internal.example"), "{miss}");
}

#[test]
fn a_deny_of_server_names_takes_these_and_what_names_none() {
    let cluster =
        sound(&[one("p", "ingressDeny", "Enforce", json!({"tls": {"serverNames": ["*.evil.example"]}}))]);
    for (name, expected) in [
        (Some("x.evil.example"), Decision::Deny),
        (Some("evil.example"), Decision::Allow),
        (Some("api.example"), Decision::Allow),
        (None, Decision::Deny),
    ] {
        assert_eq!(judge(&cluster, Facts::Tls(name)).decision(), expected, "{name:?}");
    }
    // Bytes that nobody can read may be anything; a request that can be read is no TLS.
    assert_eq!(judge(&cluster, Facts::Unknown).decision(), Decision::Deny);
    assert_eq!(say(&cluster, "GET", "/", "x.evil.example", &[]), Decision::Allow);
}

#[test]
fn http_and_tls_of_one_rule_are_alternatives() {
    let rules = json!({"http": [{"methods": ["GET"]}], "tls": {"serverNames": ["api.example"]}});
    let allow = sound(&[one("p", "ingress", "Enforce", rules.clone())]);
    assert_eq!(say(&allow, "GET", "/", "x", &[]), Decision::Allow);
    assert_eq!(say(&allow, "POST", "/", "x", &[]), Decision::Deny);
    assert_eq!(judge(&allow, Facts::Tls(Some("api.example"))).decision(), Decision::Allow);
    assert_eq!(judge(&allow, Facts::Tls(Some("x"))).decision(), Decision::Deny);
    // Inside TLS the denied request could be said: the deny takes all of it.
    let deny = sound(&[one("p", "ingressDeny", "Enforce", rules)]);
    assert_eq!(say(&deny, "POST", "/", "x", &[]), Decision::Allow);
    assert_eq!(judge(&deny, Facts::Tls(Some("x"))).decision(), Decision::Deny);
}

#[test]
fn what_asks_for_a_server_name_is_read_by_the_proxy() {
    for list in ["ingress", "ingressDeny"] {
        let cluster = sound(&[one("p", list, "Enforce", json!({"tls": {"serverNames": ["api.example"]}}))]);
        assert_eq!(judge(&cluster, Facts::Connection).decision(), Decision::Allow, "{list}");
        let snapshot = cluster.snapshot();
        let server = snapshot.endpoint_at("10.0.0.2".parse().unwrap()).unwrap().profile;
        let client = snapshot.class_of("10.0.0.1".parse().unwrap());
        let rows = snapshot.rows().filter(|entry| {
            entry.profile == server
                && entry.class == client
                && entry.protocol == Protocol::Tcp
                && (entry.ports.len, entry.ports.port) == (16, 443)
        });
        let actions: Vec<RowAction> = rows.map(|entry| entry.row.action).collect();
        assert_eq!(actions, [RowAction::ToProxy], "{list}");
    }
}

#[test]
fn an_audited_rule_of_server_names_refuses_nothing() {
    let open =
        policy("open", json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"name": "all"}]}));
    let audited = one("p", "ingressDeny", "Audit", json!({"tls": {"serverNames": ["api.example"]}}));
    let cluster = sound(&[open, audited]);
    assert_eq!(judge(&cluster, Facts::Tls(Some("api.example"))).outcome(), Outcome::Audit);
    assert_eq!(judge(&cluster, Facts::Tls(Some("www.example"))).outcome(), Outcome::Allow);
    assert_eq!(judge(&cluster, Facts::Tls(None)).outcome(), Outcome::Audit);
}

#[test]
fn an_address_is_no_server_name() {
    let (_, problems) =
        cluster(&[one("p", "ingress", "Enforce", json!({"tls": {"serverNames": ["192.0.2.1"]}}))]);
    assert!(
        problems
            .iter()
            .any(|p| p.severity == Severity::Warning && p.path == "spec.ingress[0].rules.tls.serverNames[0]"),
        "{problems:?}"
    );
}

#[test]
fn an_upgrade_passes_where_it_is_named() {
    let websocket: &[(&str, &str)] = &[("connection", "upgrade"), ("upgrade", "websocket")];
    let h2c: &[(&str, &str)] = &[("connection", "upgrade"), ("upgrade", "h2c")];
    let both: &[(&str, &str)] = &[("connection", "upgrade"), ("upgrade", "h2c, WebSocket/13")];
    // Several fields are one list (RFC 9110 §5.3), whichever stands first.
    let first: &[(&str, &str)] = &[("upgrade", "websocket"), ("upgrade", "h2c")];
    let last: &[(&str, &str)] = &[("upgrade", "h2c"), ("upgrade", "websocket")];
    let chat = json!({"http": [{"path": {"type": "Exact", "value": "/chat"}, "upgrades": ["websocket"]}]});
    let allow = sound(&[one("p", "ingress", "Enforce", chat.clone())]);
    let plain = sound(&[one("p", "ingress", "Enforce", json!({"http": [{}]}))]);
    for (headers, named, unnamed) in [
        (&[][..], Decision::Allow, Decision::Allow),
        (websocket, Decision::Allow, Decision::Deny),
        (h2c, Decision::Deny, Decision::Deny),
        (both, Decision::Deny, Decision::Deny),
        (first, Decision::Deny, Decision::Deny),
        (last, Decision::Deny, Decision::Deny),
    ] {
        assert_eq!(say(&allow, "GET", "/chat", "a", headers), named, "{headers:?}");
        assert_eq!(say(&plain, "GET", "/chat", "a", headers), unnamed, "{headers:?}");
    }
    assert_eq!(say(&allow, "GET", "/", "a", websocket), Decision::Deny);
    // A deny that names it takes whoever asks for it, beside what else.
    let deny = sound(&[policy(
        "p",
        json!({
            "podSelector": {"matchLabels": {"app": "server"}}, "isolation": "Direction",
            "ingress": [{"name": "rest"}],
            "ingressDeny": [{"name": "r", "ports": [{"port": 443}], "rules": chat}],
        }),
    )]);
    for (path, headers, expected) in [
        ("/chat", &[][..], Decision::Allow),
        ("/chat", websocket, Decision::Deny),
        ("/chat", both, Decision::Deny),
        ("/chat", first, Decision::Deny),
        ("/chat", last, Decision::Deny),
        ("/chat", h2c, Decision::Allow),
        ("/", websocket, Decision::Allow),
    ] {
        assert_eq!(say(&deny, "GET", path, "a", headers), expected, "{path} {headers:?}");
    }
}

#[test]
fn a_websocket_that_cannot_begin_is_told() {
    let (_, problems) = cluster(&[one(
        "p",
        "ingress",
        "Enforce",
        json!({"http": [{"methods": ["POST"], "upgrades": ["websocket"]}]}),
    )]);
    let told =
        problems.iter().any(|p| p.severity == Severity::Warning && p.reason.contains("begins with GET"));
    assert!(told, "{problems:?}");
}

#[test]
fn connect_passes_to_the_hosts_named() {
    let proxy = json!({"http": [
        {"methods": ["CONNECT"], "hosts": [{"type": "Exact", "value": "db.example"}]},
        {"methods": ["GET"]},
    ]});
    let allow = sound(&[one("p", "ingress", "Enforce", proxy)]);
    assert_eq!(say(&allow, "CONNECT", "db.example:443", "db.example:443", &[]), Decision::Allow);
    assert_eq!(say(&allow, "CONNECT", "x.example:443", "x.example:443", &[]), Decision::Deny);
    assert_eq!(say(&allow, "GET", "/", "x.example", &[]), Decision::Allow);
    assert_eq!(say(&allow, "POST", "/", "db.example", &[]), Decision::Deny);
    // Without methods, every method but CONNECT.
    let plain = sound(&[one("p", "ingress", "Enforce", json!({"http": [{}]}))]);
    assert_eq!(say(&plain, "CONNECT", "db.example:443", "db.example:443", &[]), Decision::Deny);
    let deny = sound(&[
        one("p", "ingressDeny", "Enforce", json!({"http": [{"methods": ["CONNECT"]}]})),
        policy("open", json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"name": "all"}]})),
    ]);
    assert_eq!(say(&deny, "CONNECT", "db.example:443", "db.example:443", &[]), Decision::Deny);
    assert_eq!(say(&deny, "connect", "db.example:443", "db.example:443", &[]), Decision::Deny);
    assert_eq!(say(&deny, "GET", "/", "db.example", &[]), Decision::Allow);
}

#[test]
fn an_allow_of_connect_names_its_hosts() {
    let any = json!({"http": [{"methods": ["CONNECT"]}]});
    let (cluster, problems) = cluster(&[one("p", "ingress", "Enforce", any)]);
    assert!(problems.iter().any(|p| p.severity == Severity::Error), "{problems:?}");
    assert_eq!(say(&cluster, "CONNECT", "db.example:443", "db.example:443", &[]), Decision::Deny);
}

#[test]
fn a_deny_of_connect_loses_the_path_that_it_cannot_have() {
    let odd = json!({"http": [{"methods": ["CONNECT", "GET"], "path": {"type": "Exact", "value": "/x"}}]});
    let (cluster, problems) = cluster(&[one("p", "ingressDeny", "Enforce", odd)]);
    assert!(problems.iter().any(|p| p.severity == Severity::Error), "{problems:?}");
    for (method, target) in [("CONNECT", "db.example:443"), ("GET", "/x"), ("GET", "/y")] {
        assert_eq!(say(&cluster, method, target, "db.example", &[]), Decision::Deny, "{method} {target}");
    }
    assert_eq!(say(&cluster, "POST", "/x", "db.example", &[]), Decision::Allow);
}
