//! `NetworkPolicy` against a second reading of its documentation: random policies over a small world, judged by
//! compiler and engine and by a few plain loops over the same policies. They must agree on every pair.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::load;
use proptest::prelude::*;
use serde_json::{Value, json};
use sluice_compile::query::{Port, Query, Said};
use sluice_policy::{Decision, Protocol};
use std::net::IpAddr;

#[derive(Clone, Debug)]
enum Selector {
    Everything,
    Label(&'static str, &'static str),
    Expression(&'static str, &'static str, Vec<&'static str>),
}

#[derive(Clone, Debug)]
enum Peer {
    Pods(Selector),
    Namespaces(Selector),
    Both(Selector, Selector),
    Block(&'static str, Vec<&'static str>),
}

#[derive(Clone, Debug)]
enum PortGiven {
    All(Protocol),
    Number(Protocol, u16),
    Range(Protocol, u16, u16),
    Named(Protocol, &'static str),
}

#[derive(Clone, Debug)]
struct Rule {
    peers: Vec<Peer>,
    ports: Vec<PortGiven>,
}

#[derive(Clone, Debug)]
struct Policy {
    namespace: &'static str,
    selector: Selector,
    types: Vec<&'static str>,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Pod {
    namespace: &'static str,
    name: &'static str,
    labels: Vec<(&'static str, &'static str)>,
    ip: &'static str,
    ports: Vec<(&'static str, Protocol, u16)>,
}

const NAMESPACES: [(&str, &[(&str, &str)]); 3] =
    [("a", &[("team", "red")]), ("b", &[("team", "blue"), ("env", "prod")]), ("c", &[])];

fn pods() -> Vec<Pod> {
    let pod = |namespace, name, labels: &[(&'static str, &'static str)], ip, ports: &[_]| Pod {
        namespace,
        name,
        labels: labels.to_vec(),
        ip,
        ports: ports.to_vec(),
    };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    vec![
        pod("a", "x", &[("app", "x")], "10.0.0.1", &[("web", tcp, 80)]),
        pod("a", "y", &[("app", "y"), ("tier", "db")], "10.0.0.2", &[("web", tcp, 81)]),
        pod("b", "x", &[("app", "x")], "10.0.1.1", &[("web", udp, 80)]),
        pod("b", "y", &[("app", "y")], "10.0.1.2", &[]),
        pod("c", "x", &[("app", "x"), ("tier", "db")], "10.1.0.1", &[("web", tcp, 80), ("web", udp, 81)]),
        pod("c", "z", &[], "10.1.0.2", &[]),
    ]
}

const STRANGERS: [&str; 4] = ["10.0.0.77", "192.0.2.1", "192.0.2.200", "8.8.8.8"];

impl Selector {
    fn matches(&self, labels: &[(&str, &str)]) -> bool {
        let value = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        match self {
            Self::Everything => true,
            Self::Label(key, wanted) => value(key) == Some(wanted),
            Self::Expression(key, "In", values) => value(key).is_some_and(|v| values.contains(&v)),
            Self::Expression(key, "NotIn", values) => !value(key).is_some_and(|v| values.contains(&v)),
            Self::Expression(key, "Exists", _) => value(key).is_some(),
            Self::Expression(key, ..) => value(key).is_none(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Everything => json!({}),
            Self::Label(key, value) => json!({"matchLabels": {*key: value}}),
            Self::Expression(key, operator, values) => {
                json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
            }
        }
    }
}

fn in_block(ip: &str, cidr: &str) -> bool {
    let (network, len) = cidr.split_once('/').unwrap();
    let bits = |text: &str| match text.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(_) => panic!("IPv4 alone here"),
    };
    let len: u32 = len.parse().unwrap();
    len == 0 || bits(ip) >> (32 - len) == bits(network) >> (32 - len)
}

fn namespace_labels(name: &'static str) -> Vec<(&'static str, &'static str)> {
    let own = NAMESPACES.iter().find(|(n, _)| *n == name).unwrap().1;
    own.iter().copied().chain([("kubernetes.io/metadata.name", name)]).collect()
}

impl Peer {
    fn matches(&self, own: &str, ip: &str, pod: Option<&Pod>) -> bool {
        match (self, pod) {
            (Self::Block(cidr, except), _) => in_block(ip, cidr) && !except.iter().any(|e| in_block(ip, e)),
            (_, None) => false,
            (Self::Pods(pods), Some(pod)) => pod.namespace == own && pods.matches(&pod.labels),
            (Self::Namespaces(all), Some(pod)) => all.matches(&namespace_labels(pod.namespace)),
            (Self::Both(all, pods), Some(pod)) => {
                all.matches(&namespace_labels(pod.namespace)) && pods.matches(&pod.labels)
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Pods(pods) => json!({"podSelector": pods.json()}),
            Self::Namespaces(all) => json!({"namespaceSelector": all.json()}),
            Self::Both(all, pods) => json!({"namespaceSelector": all.json(), "podSelector": pods.json()}),
            Self::Block(cidr, except) => json!({"ipBlock": {"cidr": cidr, "except": except}}),
        }
    }
}

impl PortGiven {
    /// `reached` is the pod whose port it is: the destination in either direction.
    fn matches(&self, protocol: Protocol, port: u16, reached: Option<&Pod>) -> bool {
        match self {
            Self::All(p) => *p == protocol,
            Self::Number(p, number) => *p == protocol && *number == port,
            Self::Range(p, first, last) => *p == protocol && (*first..=*last).contains(&port),
            Self::Named(p, name) => {
                *p == protocol && reached.is_some_and(|pod| pod.ports.contains(&(*name, protocol, port)))
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::All(p) => json!({"protocol": p.as_str()}),
            Self::Number(p, number) => json!({"protocol": p.as_str(), "port": number}),
            Self::Range(p, first, last) => json!({"protocol": p.as_str(), "port": first, "endPort": last}),
            Self::Named(p, name) => json!({"protocol": p.as_str(), "port": name}),
        }
    }
}

impl Policy {
    fn json(&self, name: usize) -> Value {
        let rules = |rules: &[Rule], peers: &str| -> Vec<Value> {
            let rule = |rule: &Rule| {
                let given: Vec<Value> = rule.peers.iter().map(Peer::json).collect();
                json!({peers: given, "ports": rule.ports.iter().map(PortGiven::json).collect::<Vec<_>>()})
            };
            rules.iter().map(rule).collect()
        };
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": self.namespace, "name": format!("p{name}")},
            "spec": {"podSelector": self.selector.json(), "policyTypes": self.types,
                "ingress": rules(&self.ingress, "from"), "egress": rules(&self.egress, "to")},
        })
    }

    fn isolates(&self, direction: &str) -> bool {
        if self.types.is_empty() {
            return direction == "Ingress" || !self.egress.is_empty();
        }
        self.types.contains(&direction)
    }
}

/// One side, by plain loops.
fn side(
    policies: &[Policy],
    direction: &str,
    pod: &Pod,
    (peer_ip, peer): (&str, Option<&Pod>),
    (protocol, port): (Protocol, u16),
) -> Decision {
    let mut isolated = false;
    for policy in policies {
        let selects = policy.namespace == pod.namespace && policy.selector.matches(&pod.labels);
        if !selects || !policy.isolates(direction) {
            continue;
        }
        isolated = true;
        let (rules, reached) =
            if direction == "Ingress" { (&policy.ingress, Some(pod)) } else { (&policy.egress, peer) };
        for rule in rules {
            let peers = rule.peers.is_empty()
                || rule.peers.iter().any(|given| given.matches(policy.namespace, peer_ip, peer));
            let ports = rule.ports.is_empty()
                || rule.ports.iter().any(|given| given.matches(protocol, port, reached));
            if peers && ports {
                return Decision::Allow;
            }
        }
    }
    if isolated { Decision::Deny } else { Decision::Allow }
}

fn selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        Just(Selector::Everything),
        prop::sample::select(vec![("app", "x"), ("app", "y"), ("tier", "db"), ("none", "such")])
            .prop_map(|(key, value)| Selector::Label(key, value)),
        (
            prop::sample::select(vec!["app", "tier"]),
            prop::sample::select(vec!["In", "NotIn"]),
            prop::sample::subsequence(vec!["x", "y", "db"], 1..3),
        )
            .prop_map(|(key, operator, values)| Selector::Expression(key, operator, values)),
        (prop::sample::select(vec!["app", "tier"]), prop::sample::select(vec!["Exists", "DoesNotExist"]))
            .prop_map(|(key, operator)| Selector::Expression(key, operator, Vec::new())),
    ]
}

fn namespaces() -> impl Strategy<Value = Selector> {
    prop_oneof![
        Just(Selector::Everything),
        prop::sample::select(vec![("team", "red"), ("env", "prod"), ("kubernetes.io/metadata.name", "c")])
            .prop_map(|(key, value)| Selector::Label(key, value)),
        Just(Selector::Expression("team", "NotIn", vec!["red"])),
        Just(Selector::Expression("env", "DoesNotExist", Vec::new())),
    ]
}

fn peer() -> impl Strategy<Value = Peer> {
    let blocks: Vec<(&str, Vec<&str>)> = vec![
        ("0.0.0.0/0", vec!["10.0.0.0/8"]),
        ("0.0.0.0/0", vec![]),
        ("10.0.0.0/8", vec!["10.0.0.0/24", "10.1.0.1/32"]),
        ("10.0.0.0/16", vec!["10.0.1.0/24"]),
        ("10.0.0.1/32", vec![]),
        ("192.0.2.0/24", vec!["192.0.2.128/25"]),
        ("192.0.2.128/25", vec![]),
    ];
    prop_oneof![
        selector().prop_map(Peer::Pods),
        namespaces().prop_map(Peer::Namespaces),
        (namespaces(), selector()).prop_map(|(all, pods)| Peer::Both(all, pods)),
        prop::sample::select(blocks).prop_map(|(cidr, except)| Peer::Block(cidr, except)),
    ]
}

fn port() -> impl Strategy<Value = PortGiven> {
    let protocol = || prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    prop_oneof![
        protocol().prop_map(PortGiven::All),
        (protocol(), prop::sample::select(vec![80, 81])).prop_map(|(p, n)| PortGiven::Number(p, n)),
        (protocol(), prop::sample::select(vec![(79, 80), (81, 90), (1, 65535)]))
            .prop_map(|(p, (first, last))| PortGiven::Range(p, first, last)),
        (protocol(), prop::sample::select(vec!["web", "none"]))
            .prop_map(|(p, name)| PortGiven::Named(p, name)),
    ]
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3))
        .prop_map(|(peers, ports)| Rule { peers, ports });
    prop::collection::vec(rule, 0..3)
}

fn policy() -> impl Strategy<Value = Policy> {
    let types = prop::sample::subsequence(vec!["Ingress", "Egress"], 0..=2);
    (prop::sample::select(vec!["a", "b", "c"]), selector(), types, rules(), rules()).prop_map(
        |(namespace, selector, types, ingress, egress)| Policy {
            namespace,
            selector,
            types,
            ingress,
            egress,
        },
    )
}

fn objects(policies: &[Policy]) -> Vec<Value> {
    let mut out: Vec<Value> = policies.iter().enumerate().map(|(name, policy)| policy.json(name)).collect();
    for (name, labels) in NAMESPACES {
        let labels: std::collections::BTreeMap<_, _> = labels.iter().copied().collect();
        out.push(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        );
    }
    for pod in pods() {
        let labels: std::collections::BTreeMap<_, _> = pod.labels.iter().copied().collect();
        let ports: Vec<Value> = pod
            .ports
            .iter()
            .map(|(name, protocol, number)| json!({"name": name, "protocol": protocol.as_str(), "containerPort": number}))
            .collect();
        out.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": pod.namespace, "name": pod.name, "labels": labels},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": ports}]},
            "status": {"podIP": pod.ip},
        }));
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn two_readings_agree(policies in prop::collection::vec(policy(), 1..5)) {
        let (cluster, problems) = load(&objects(&policies));
        let errors = problems.iter().filter(|problem| problem.severity == sluice_crd::Severity::Error).count();
        prop_assert_eq!(errors, 0, "{:?}", problems);
        let pods = pods();
        let ends: Vec<(&str, Option<&Pod>)> =
            pods.iter().map(|pod| (pod.ip, Some(pod))).chain(STRANGERS.map(|ip| (ip, None))).collect();
        for from in &ends {
            for to in ends.iter().filter(|to| to.0 != from.0) {
                for asked in [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|p| [(p, 80), (p, 81), (p, 90)]) {
                    let query = Query {
                        from: from.0.into(), to: to.0.into(), protocol: asked.0, port: Port::Number(asked.1), said: Said::Nothing,
                    };
                    let got = cluster.ask(&query).unwrap();
                    let egress = from.1.map_or(Decision::Allow, |pod| side(&policies, "Egress", pod, *to, asked));
                    let ingress = to.1.map_or(Decision::Allow, |pod| side(&policies, "Ingress", pod, *from, asked));
                    prop_assert_eq!((got.egress.decision, got.ingress.decision), (egress, ingress), "{:?}", query);
                }
            }
        }
    }
}
