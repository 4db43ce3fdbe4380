//! What objects mean: peers, addresses, ports, rollout and audit, through compiler and engine.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::too_many_lines,
    reason = "test helpers take what json! makes, and fail loudly"
)]

mod common;

use common::{Ask, load, load_with};
use proptest::prelude::*;
use serde_json::{Value, json};
use sluice_compile::{Compiled, Enforcement, NodeScope, Options, Rollout, compile};
use sluice_crd::Severity;
use sluice_policy::{
    ClassId, Decision, Direction, Facts, Identity, Mode, Outcome, ProfileId, Protocol, Reason, RowAction,
    Source,
};
use std::net::IpAddr;

fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn pod(name: &str, node: &str, ips: &[&str], ports: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}]},
        "status": {"podIPs": ips},
    })
}

fn network_policy(name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn l7_policy(name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn compiled(objects: &[Value], node: &str, rollout: Rollout) -> Compiled {
    let loaded = sluice_crd::load_value(objects);
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let node = if node.is_empty() { NodeScope::All } else { NodeScope::Named(node.into()) };
    compile(&loaded.objects, &Options { node, rollout, generation: 7 })
}

#[test]
fn ip_blocks_hold_pods_and_the_world_of_their_own_family() {
    let objects = [
        namespace("a", json!({})),
        pod("a/server", "n", &["10.0.0.1", "fd00::1"], json!([])),
        pod("a/inside", "n", &["10.0.1.1", "fd00::2"], json!([])),
        pod("a/excepted", "n", &["10.0.2.1", "fd00::3"], json!([])),
        network_policy(
            "a/server",
            json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": [
                {"ipBlock": {"cidr": "::/0", "except": ["fd00::3/128"]}},
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.2.0/24"]}},
                {"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.128/25"]}},
            ]}]}),
        ),
    ];
    let (cluster, problems) = load(&objects);
    assert!(problems.is_empty(), "{problems:?}");
    for (from, to, expected) in [
        ("10.0.1.1", "10.0.0.1", Decision::Allow),
        ("10.0.2.1", "10.0.0.1", Decision::Deny),
        ("fd00::2", "fd00::1", Decision::Allow),
        ("fd00::3", "fd00::1", Decision::Deny),
        ("2001:db8::1", "fd00::1", Decision::Allow),
        ("203.0.113.1", "10.0.0.1", Decision::Allow),
        ("203.0.113.129", "10.0.0.1", Decision::Deny),
        // ::/0 is all of IPv6 and nothing of IPv4.
        ("198.51.100.1", "10.0.0.1", Decision::Deny),
    ] {
        assert_eq!(Ask::new(from, to, 80, "").decide(&cluster), expected, "{from} -> {to}");
    }
}

#[test]
fn a_pod_address_without_a_pod_is_nobody() {
    let objects = [
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
            "spec": {"podCIDRs": ["10.0.0.0/16"]},
            "status": {"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.7"}]}}),
        namespace("a", json!({})),
        pod("a/server", "n", &["10.0.0.1"], json!([])),
        pod("a/twin-1", "n", &["10.0.0.9"], json!([])),
        pod("a/twin-2", "n", &["10.0.0.9"], json!([])),
        network_policy(
            "a/server",
            json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": [
                // More specific than the pods' range, and still no way in.
                {"ipBlock": {"cidr": "10.0.0.0/24"}}, {"ipBlock": {"cidr": "0.0.0.0/0"}}, {"podSelector": {}},
            ]}]}),
        ),
    ];
    let (cluster, problems) = load(&objects);
    let told: Vec<String> = problems.iter().map(|problem| problem.reason.clone()).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("10.0.0.9 is nobody's: a/twin-1 claims it too"), "{told:?}");
    for (from, expected) in [("10.0.0.77", Reason::IdentityMissing), ("10.0.0.9", Reason::IdentityMissing)] {
        let verdict = Ask::new(from, "a/server", 80, "").verdict(&cluster);
        assert_eq!((verdict.ingress.decision, verdict.ingress.reason), (Decision::Deny, expected), "{from}");
    }
    assert_eq!(Ask::new("192.0.2.7", "a/server", 80, "").decide(&cluster), Decision::Allow);
    let snapshot = cluster.snapshot();
    let class = snapshot.class_of("192.0.2.7".parse().unwrap());
    assert_eq!(snapshot.classes[class.0 as usize].identity, Identity::Node("n".into()));
    assert_eq!(snapshot.class_of("10.0.0.77".parse().unwrap()), ClassId::MISSING);
    // Whose rules would hold? Nobody's: everything is refused there, and to both.
    let at = |address: &str| snapshot.endpoint_at(address.parse().unwrap()).unwrap().profile;
    assert_eq!(at("10.0.0.9"), ProfileId::REFUSED);
    let refused = snapshot.endpoints.iter().filter(|endpoint| endpoint.profile == ProfileId::REFUSED);
    assert_eq!(refused.count(), 2);
    for (from, to) in [("a/server", "10.0.0.9"), ("10.0.0.9", "a/server"), ("10.0.0.9", "192.0.2.1")] {
        let verdict = Ask::new(from, to, 80, "").verdict(&cluster);
        assert_eq!(verdict.deciding().reason, Reason::IdentityMissing, "{from} {to}");
    }
}

#[test]
fn pods_on_the_host_network_and_ended_pods_have_no_identity() {
    let mut host = pod("a/host", "n", &["192.0.2.7"], json!([]));
    host["spec"]["hostNetwork"] = true.into();
    let mut ended = pod("a/ended", "n", &["10.0.0.2"], json!([]));
    ended["status"]["phase"] = "Succeeded".into();
    let objects = [
        namespace("a", json!({})),
        pod("a/server", "n", &["10.0.0.1"], json!([])),
        pod("a/heir", "n", &["10.0.0.2"], json!([])),
        host,
        ended,
        network_policy(
            "a/server",
            json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchExpressions": [
            {"key": "app", "operator": "In", "values": ["host", "ended"]}]}}]}]}),
        ),
    ];
    let compiled = compiled(&objects, "", Rollout::AsIfEnforced);
    assert!(compiled.problems.is_empty(), "an ended pod's address is free again: {:?}", compiled.problems);
    let names: Vec<&str> = compiled.snapshot.endpoints.iter().map(|e| &*e.workload.pod).collect();
    assert_eq!(names, ["heir", "server"]);
    let state = &compiled.policies[0];
    assert_eq!(state.not_enforced.iter().map(|w| &*w.pod).collect::<Vec<_>>(), ["host"]);
    let (cluster, _) = load(&objects);
    // The address of the ended pod is the heir's now, and the node's is no pod's.
    assert_eq!(Ask::new("10.0.0.2", "a/server", 80, "").decide(&cluster), Decision::Deny);
    assert_eq!(Ask::new("192.0.2.7", "a/server", 80, "").decide(&cluster), Decision::Deny);
}

#[test]
fn named_ports_follow_the_pod_that_is_reached() {
    let ports =
        |number: u16, protocol: &str| json!([{"name": "db", "containerPort": number, "protocol": protocol}]);
    let objects = [
        namespace("a", json!({})),
        pod("a/client", "n", &["10.0.0.1"], json!([])),
        pod("a/one", "n", &["10.0.0.2"], ports(5432, "TCP")),
        pod("a/two", "n", &["10.0.0.3"], ports(6432, "TCP")),
        pod("a/udp", "n", &["10.0.0.4"], ports(5432, "UDP")),
        network_policy(
            "a/out",
            json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
            "egress": [{"ports": [{"port": "db"}, {"port": 443}]}]}),
        ),
        network_policy("a/in", json!({"podSelector": {}, "ingress": [{"ports": [{"port": "db"}]}]})),
    ];
    let (cluster, _) = load(&objects);
    for (to, port, egress, ingress) in [
        ("a/one", 5432, Decision::Allow, Decision::Allow),
        ("a/one", 6432, Decision::Deny, Decision::Deny),
        ("a/two", 6432, Decision::Allow, Decision::Allow),
        ("a/two", 5432, Decision::Deny, Decision::Deny),
        ("a/udp", 5432, Decision::Deny, Decision::Deny),
        ("a/one", 443, Decision::Allow, Decision::Deny),
    ] {
        let verdict = Ask::new("a/client", to, port, "").verdict(&cluster);
        assert_eq!((verdict.egress.decision, verdict.ingress.decision), (egress, ingress), "{to}:{port}");
    }
    let udp = Ask::new("a/client", "a/udp", 5432, "").over(Protocol::Udp).verdict(&cluster);
    assert_eq!(udp.egress.decision, Decision::Deny, "the port is named for TCP");
    // Nobody outside has named ports.
    assert_eq!(Ask::new("a/client", "192.0.2.1", 5432, "").decide(&cluster), Decision::Deny);
    assert_eq!(Ask::new("a/client", "192.0.2.1", 443, "").decide(&cluster), Decision::Allow);
}

#[test]
fn pods_with_the_same_rules_share_a_profile() {
    let port = |number: u16| json!([{"name": "http", "containerPort": number}]);
    let objects = [
        namespace("a", json!({})),
        pod("a/one", "n", &["10.0.0.1"], port(80)),
        pod("a/two", "n", &["10.0.0.2"], port(80)),
        pod("a/three", "n", &["10.0.0.3"], port(81)),
        pod("a/far", "m", &["10.0.0.4"], port(80)),
        network_policy("a/in", json!({"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]})),
        network_policy("a/nobody", json!({"podSelector": {"matchLabels": {"app": "none"}}})),
    ];
    let compiled = compiled(&objects, "n", Rollout::AsIfEnforced);
    let profile =
        |name: &str| compiled.snapshot.endpoints.iter().find(|e| &*e.workload.pod == name).unwrap().profile;
    assert_eq!(profile("one"), profile("two"));
    assert_ne!(profile("one"), profile("three"));
    assert_eq!(compiled.snapshot.profiles.len(), 2);
    assert_eq!(compiled.snapshot.endpoints.len(), 3, "only this node's");
    assert_eq!(compiled.snapshot.policies.len(), 1, "only those in force here");
    assert_eq!(compiled.snapshot.generation, 7);
    let ids: Vec<u32> = compiled.snapshot.policies.iter().map(|policy| policy.id.0).collect();
    assert_eq!(ids, [0]);
    // Every pod of the cluster is a peer.
    assert_eq!(compiled.snapshot.workloads.len(), 4);
    let states: Vec<(&str, usize)> =
        compiled.policies.iter().map(|state| (&*state.origin.name, state.selected.len())).collect();
    assert_eq!(states, [("in", 4), ("nobody", 0)]);
}

#[test]
fn rollout_takes_the_weakest() {
    let rule = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    let mut audited = rule.clone();
    audited["mode"] = "Audit".into();
    for (labels, spec, max, default_dataplane, expected) in [
        (
            json!({"sluice.dev/dataplane": "enabled"}),
            &rule,
            Enforcement::Enforce,
            false,
            Some(Some(Mode::Enforce)),
        ),
        (
            json!({"sluice.dev/dataplane": "enabled", "sluice.dev/enforcement": "audit"}),
            &rule,
            Enforcement::Enforce,
            false,
            Some(Some(Mode::Audit)),
        ),
        (
            json!({"sluice.dev/dataplane": "enabled", "sluice.dev/enforcement": "off"}),
            &rule,
            Enforcement::Enforce,
            false,
            Some(None),
        ),
        (
            json!({"sluice.dev/dataplane": "enabled"}),
            &audited,
            Enforcement::Enforce,
            false,
            Some(Some(Mode::Audit)),
        ),
        (
            json!({"sluice.dev/dataplane": "enabled"}),
            &rule,
            Enforcement::Audit,
            false,
            Some(Some(Mode::Audit)),
        ),
        (
            json!({"sluice.dev/dataplane": "enabled", "sluice.dev/enforcement": "audit"}),
            &rule,
            Enforcement::Off,
            false,
            Some(None),
        ),
        (json!({"sluice.dev/dataplane": "disabled"}), &rule, Enforcement::Enforce, true, None),
        (json!({}), &rule, Enforcement::Enforce, true, Some(Some(Mode::Enforce))),
        (json!({}), &rule, Enforcement::Enforce, false, None),
    ] {
        let objects = [
            namespace("a", labels.clone()),
            pod("a/p", "n", &["10.0.0.1"], json!([])),
            l7_policy("a/policy", spec.clone()),
        ];
        let rollout = Rollout::AsLabelled { default_dataplane, max_enforcement: max };
        let compiled = compiled(&objects, "n", rollout);
        let state = &compiled.policies[0];
        match expected {
            Some(mode) => {
                assert_eq!(state.mode, mode, "{labels}");
                assert_eq!(compiled.snapshot.endpoints.len(), 1, "{labels}");
                assert!(state.not_enforced.is_empty(), "{labels}");
                assert_eq!(compiled.snapshot.policies.first().map(|policy| policy.mode), mode, "{labels}");
            }
            None => {
                assert!(compiled.snapshot.endpoints.is_empty(), "{labels}");
                assert_eq!(state.not_enforced.len(), 1, "{labels}");
            }
        }
    }
}

#[test]
fn a_rollout_label_that_nobody_knows_is_the_strictest() {
    let objects = [
        namespace("a", json!({"sluice.dev/dataplane": "yes", "sluice.dev/enforcement": "Audit"})),
        pod("a/p", "n", &["10.0.0.1"], json!([])),
        l7_policy("a/policy", json!({"podSelector": {}})),
    ];
    let rollout = Rollout::AsLabelled { default_dataplane: false, max_enforcement: Enforcement::Enforce };
    let (cluster, problems) = load_with(&objects, rollout);
    assert_eq!(
        problems.iter().filter(|problem| problem.severity == Severity::Error).count(),
        2,
        "{problems:?}"
    );
    assert_eq!(Ask::new("192.0.2.1", "a/p", 80, "").decide(&cluster), Decision::Deny);
}

#[test]
fn an_audited_policy_passes_and_tells() {
    let objects = [
        namespace("a", json!({})),
        pod("a/server", "n", &["10.0.0.1"], json!([])),
        pod("a/client", "n", &["10.0.0.2"], json!([])),
        l7_policy(
            "a/reads",
            json!({"podSelector": {"matchLabels": {"app": "server"}}, "mode": "Audit",
            "ingress": [{"name": "get", "rules": {"http": [{"methods": ["GET"]}]}}]}),
        ),
    ];
    let (cluster, _) = load(&objects);
    assert_eq!(Ask::new("a/client", "a/server", 80, "GET /").verdict(&cluster).outcome(), Outcome::Allow);
    let verdict = Ask::new("a/client", "a/server", 80, "POST /").verdict(&cluster);
    assert_eq!(verdict.outcome(), Outcome::Audit);
    assert_eq!(
        verdict.ingress.audit.would_deny[0].policy.as_ref().unwrap().origin.to_string(),
        "L7NetworkPolicy/a/reads"
    );
}

#[test]
fn http_and_grpc_in_one_rule_are_a_union() {
    let objects = [
        namespace("a", json!({})),
        pod("a/server", "n", &["10.0.0.1"], json!([])),
        l7_policy(
            "a/both",
            json!({"podSelector": {}, "ingress": [{"rules": {
                "http": [{"methods": ["GET"], "path": {"type": "RegularExpression", "value": "/v[0-9]+/x"}}],
                "grpc": [{"service": "s.S"}],
            }}]}),
        ),
    ];
    let (cluster, problems) = load(&objects);
    assert!(problems.is_empty(), "{problems:?}");
    for (request, expected) in
        [("GET /v12/x", Decision::Allow), ("GET /v12/xy", Decision::Deny), ("POST /v12/x", Decision::Deny)]
    {
        assert_eq!(Ask::new("192.0.2.1", "a/server", 80, request).decide(&cluster), expected, "{request}");
    }
    let verdict = Ask::new("192.0.2.1", "a/server", 80, "GET /v1/x").verdict(&cluster);
    assert_eq!(verdict.ingress.rule.as_deref(), Some("ingress[0]"));
}

#[test]
fn surprises_are_warned_of() {
    let warnings = |spec: Value| {
        let (_, problems) = load(&[namespace("a", json!({})), l7_policy("a/p", spec)]);
        let warned = problems.iter().filter(|problem| problem.severity == Severity::Warning);
        warned.map(|problem| problem.path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        warnings(json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}]})),
        ["spec.egress"]
    );
    assert_eq!(warnings(json!({"podSelector": {}, "ingressDeny": [{}]})), ["spec.ingressDeny"]);
    assert!(
        warnings(json!({"podSelector": {}, "ingress": [{}], "ingressDeny": [{}], "egressDeny": [{}]}))
            .is_empty()
    );
    assert_eq!(
        warnings(json!({"podSelector": {}, "ingress": [{"rules": {"http": [{"methods": ["get"]}]}}]})),
        ["spec.ingress[0].rules.http[0].methods[0]"]
    );
    assert_eq!(
        warnings(
            json!({"podSelector": {}, "ingress": [{"ports": [{"port": 53, "protocol": "UDP"}], "rules": {"http": [{}]}}]})
        ),
        ["spec.ingress[0].ports[0].protocol"]
    );
}

#[test]
fn what_a_rule_cannot_mean_is_an_error_with_its_path() {
    for (rule, path) in [
        (json!({"from": [{}]}), "from[0]"),
        (json!({"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}), "from[0].ipBlock.cidr"),
        (json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}), "from[0].ipBlock.cidr"),
        (json!({"from": [{"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}}]}), "from[0].ipBlock.cidr"),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}]}),
            "from[0].ipBlock.except[0]",
        ),
        (json!({"from": [{"serviceAccounts": []}]}), "from[0].serviceAccounts"),
        (json!({"from": [{"serviceAccounts": [{"name": "A"}]}]}), "from[0].serviceAccounts[0].name"),
        (
            json!({"from": [{"serviceAccounts": [{"namespace": "a.b", "name": "c"}]}]}),
            "from[0].serviceAccounts[0].namespace",
        ),
        (json!({"from": [{"entities": []}]}), "from[0].entities"),
        (
            json!({"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}]}),
            "from[0].podSelector.matchExpressions[0].operator",
        ),
        (json!({"ports": [{"port": 0}]}), "ports[0].port"),
        (json!({"ports": [{"port": 70000}]}), "ports[0].port"),
        (json!({"ports": [{"port": "80"}]}), "ports[0].port"),
        (json!({"ports": [{"port": 80, "endPort": 79}]}), "ports[0].endPort"),
        (json!({"ports": [{"port": "http", "endPort": 90}]}), "ports[0].endPort"),
        (json!({"ports": [{"endPort": 90}]}), "ports[0].endPort"),
        (json!({"ports": [{"port": 80, "protocol": "ICMP"}]}), "ports[0].protocol"),
        (json!({"rules": {"http": [{"methods": []}]}}), "rules.http[0].methods"),
        (json!({"rules": {"http": [{"methods": ["G T"]}]}}), "rules.http[0].methods[0]"),
        (json!({"rules": {"http": [{"path": {"type": "Exact", "value": "x"}}]}}), "rules.http[0].path.value"),
        (
            json!({"rules": {"http": [{"path": {"type": "PathPrefix", "value": "/a?b"}}]}}),
            "rules.http[0].path.value",
        ),
        (
            json!({"rules": {"http": [{"path": {"type": "PathPrefix", "value": "/a//b"}}]}}),
            "rules.http[0].path.value",
        ),
        (
            json!({"rules": {"http": [{"path": {"type": "RegularExpression", "value": "("}}]}}),
            "rules.http[0].path.value",
        ),
        (
            json!({"rules": {"http": [{"headers": [{"name": "a b", "type": "Present"}]}]}}),
            "rules.http[0].headers[0].name",
        ),
        (
            json!({"rules": {"http": [{"headers": [{"name": "HOST", "type": "Present"}]}]}}),
            "rules.http[0].headers[0].name",
        ),
        (
            json!({"rules": {"http": [{"headers": [{"name": ":method", "type": "Present"}]}]}}),
            "rules.http[0].headers[0].name",
        ),
        (
            json!({"rules": {"http": [{"headers": [{"name": "a", "type": "Exact"}]}]}}),
            "rules.http[0].headers[0].value",
        ),
        (
            json!({"rules": {"http": [{"headers": [{"name": "a", "type": "Absent", "value": "x"}]}]}}),
            "rules.http[0].headers[0].value",
        ),
        (json!({"rules": {"grpc": [{"service": "a/b"}]}}), "rules.grpc[0].service"),
        (json!({"rules": {"grpc": [{"service": "a", "methods": []}]}}), "rules.grpc[0].methods"),
        (json!({"name": "a b"}), "name"),
    ] {
        let objects = [
            namespace("a", json!({})),
            pod("a/p", "n", &["10.0.0.1"], json!([])),
            l7_policy(
                "a/bad",
                json!({"podSelector": {}, "ingress": [rule, {"name": "good", "from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]}),
            ),
        ];
        let (cluster, problems) = load(&objects);
        let errors: Vec<&str> =
            problems.iter().filter(|p| p.severity == Severity::Error).map(|p| p.path.as_str()).collect();
        assert_eq!(errors, [format!("spec.ingress[0].{path}")], "{rule}");
        assert!(problems.iter().all(|problem| !problem.remedy.is_empty()), "{rule}");
        assert!(!cluster.policies[0].accepted);
        assert_eq!(Ask::new("198.51.100.1", "a/p", 80, "GET /").decide(&cluster), Decision::Deny, "{rule}");
        assert_eq!(Ask::new("192.0.2.1", "a/p", 80, "GET /").decide(&cluster), Decision::Allow, "{rule}");
    }
}

#[test]
fn a_pod_reaching_itself_is_not_judged() {
    let objects = [
        namespace("a", json!({})),
        pod("a/p", "n", &["10.0.0.1"], json!([])),
        network_policy("a/deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
    ];
    let (cluster, _) = load(&objects);
    assert_eq!(Ask::new("a/p", "10.0.0.1", 80, "").decide(&cluster), Decision::Allow);
}

fn many_objects() -> Vec<Value> {
    let mut objects = vec![namespace("a", json!({"t": "1"})), namespace("b", json!({"t": "2"}))];
    for (index, namespace) in ["a", "b"].into_iter().enumerate() {
        for name in ["x", "y", "z"] {
            let ip = format!("10.0.{index}.{}", name.as_bytes()[0]);
            objects.push(pod(
                &format!("{namespace}/{name}"),
                "n",
                &[&ip],
                json!([{"name": "http", "containerPort": 80}]),
            ));
        }
        for name in ["p", "q"] {
            objects.push(network_policy(&format!("{namespace}/{name}"), json!({"podSelector": {"matchLabels": {"app": "x"}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": "http"}]}],
                "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"t": "1"}}}], "ports": [{"port": "http"}]}]})));
            objects.push(l7_policy(
                &format!("{namespace}/{name}"),
                json!({"podSelector": {},
                "ingress": [{"name": name, "rules": {"http": [{"methods": ["GET"]}]}}]}),
            ));
        }
    }
    objects
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The same objects give the same snapshot, whatever order they come in.
    #[test]
    fn order_does_not_matter(objects in Just(many_objects()).prop_shuffle()) {
        let expected = compiled(&many_objects(), "n", Rollout::AsIfEnforced);
        let got = compiled(&objects, "n", Rollout::AsIfEnforced);
        prop_assert_eq!(&got.snapshot.policies, &expected.snapshot.policies);
        prop_assert_eq!(&got.snapshot.classes, &expected.snapshot.classes);
        prop_assert_eq!(&got.snapshot.addresses, &expected.snapshot.addresses);
        prop_assert_eq!(&got.snapshot.profiles, &expected.snapshot.profiles);
        prop_assert_eq!(&got.snapshot.workloads, &expected.snapshot.workloads);
        prop_assert_eq!(&got.snapshot.endpoints[..], &expected.snapshot.endpoints[..]);
        prop_assert_eq!(&got.problems, &expected.problems);
    }
}

/// The node of a pod reaches it whatever isolates it, unless the Admin tier says otherwise; whoever only wears that
/// node's address is nobody, and another node is a peer like any other.
#[test]
fn a_pod_is_reached_by_its_own_node_and_not_by_whoever_wears_its_address() {
    let node = |name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
    };
    let from = |cidr: &str| json!([{"from": [{"ipBlock": {"cidr": cidr}}], "ports": [{"port": 80}]}]);
    let admin = |action: &str| {
        json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "ClusterL7NetworkPolicy",
            "metadata": {"name": "probes"}, "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"action": action, "from": [{"ipBlock": {"cidr": "192.0.2.1/32"}}]}]}})
    };
    let objects = [
        node("own", "192.0.2.1"),
        node("another", "192.0.2.2"),
        namespace("a", json!({})),
        pod("a/server", "own", &["10.0.0.1"], json!([])),
        network_policy("a/k", json!({"podSelector": {}, "ingress": from("203.0.113.0/24")})),
        l7_policy("a/l", json!({"ingress": from("0.0.0.0/0")})),
    ];
    let decide = |more: &[Value], from: Source| {
        let (cluster, _) = load(&[&objects, more].concat());
        let to = "10.0.0.1".parse().unwrap();
        let side = cluster.snapshot().judge(from, to, Protocol::Tcp, 80, Facts::Connection).ingress;
        (side.decision, side.reason)
    };
    let own: IpAddr = "192.0.2.1".parse().unwrap();
    let another: IpAddr = "192.0.2.2".parse().unwrap();
    assert_eq!(decide(&[], Source::Host(own)), (Decision::Allow, Reason::NotIsolated));
    assert_eq!(decide(&[], own.into()), (Decision::Deny, Reason::IdentityMissing));
    assert_eq!(decide(&[], another.into()), (Decision::Deny, Reason::DefaultDeny));
    assert_eq!(decide(&[admin("Deny")], Source::Host(own)), (Decision::Deny, Reason::DenyRule));
    assert_eq!(decide(&[admin("Pass")], Source::Host(own)), (Decision::Allow, Reason::NotIsolated));
    // From its bridge, whose address nobody names, or that of another pod's range: the node, in no block.
    let bridge: IpAddr = "10.0.0.254".parse().unwrap();
    let said = |from: Value| {
        let mut policy = admin("Deny");
        policy["spec"]["ingress"][0]["from"] = from;
        policy
    };
    let host = json!([{"entities": ["Host"]}]);
    for (from, host_is) in [
        (host.clone(), Decision::Deny),
        (json!([{"entities": ["Cluster"]}]), Decision::Deny),
        (json!([{"entities": ["RemoteNode", "World"]}]), Decision::Allow),
        (json!([{"podSelector": {}, "namespaceSelector": {}}]), Decision::Allow),
        (json!([{"ipBlock": {"cidr": "192.0.2.1/32"}}]), Decision::Allow),
    ] {
        let (decision, _) = decide(&[said(from.clone())], Source::Host(bridge));
        assert_eq!(decision, host_is, "{from}");
    }
    assert_eq!(decide(&[said(host.clone())], Source::Host(own)), (Decision::Deny, Reason::DenyRule));
    // Nor need anybody name the node for that.
    let (nameless, _) = load(&[&objects[2..], &[said(host)]].concat());
    let to = "10.0.0.1".parse().unwrap();
    let side = nameless.snapshot().judge(Source::Host(own), to, Protocol::Tcp, 80, Facts::Connection).ingress;
    assert_eq!((side.decision, side.reason), (Decision::Deny, Reason::DenyRule));
    // An Accept names the node, and nobody knows that this is the node.
    assert_eq!(decide(&[admin("Accept")], own.into()), (Decision::Deny, Reason::IdentityMissing));
    let (cluster, _) = load(&objects);
    let class = cluster.snapshot().class_of(own);
    let rows =
        cluster.snapshot().rows().filter(|row| row.class == class && row.direction == Direction::Ingress);
    assert!(rows.map(|row| row.row.action).all(|action| action == RowAction::Deny));
    // The command line asks for the node itself.
    assert_eq!(Ask::new("192.0.2.1", "a/server", 80, "").decide(&cluster), Decision::Allow);
    assert_eq!(Ask::new("192.0.2.2", "a/server", 80, "").decide(&cluster), Decision::Deny);
}
