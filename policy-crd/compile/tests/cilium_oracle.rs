//! A second opinion on Cilium's policies: a slow interpreter that reads the manifests, against the compiled engine.
//!
//! Written from Cilium's documentation alone: nothing of the compiler is asked but the verdict. Random policies of
//! both kinds with their overlaps; every pair of a small world, on several protocols and with several requests; and the kernel's rows beside.

#![allow(clippy::needless_pass_by_value, reason = "test helpers take what json! makes")]

mod common;

use common::cilium::{errors, policy, world};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_policy::port::icmp_port;
use sluice_policy::{Decision, Direction, Protocol, RowAction};
use std::net::IpAddr;

/// Who there is: the name in a query, the namespace and the label of a pod, whether it is a node that no pod runs on;
/// the rest is outside.
struct Peer {
    name: &'static str,
    pod: Option<(&'static str, &'static str)>,
    node: bool,
}

impl Peer {
    fn is_outside(&self) -> bool {
        self.pod.is_none() && !self.node
    }
}

const WORLD: [Peer; 6] = [
    Peer { name: "a/server", pod: Some(("a", "server")), node: false },
    Peer { name: "a/client", pod: Some(("a", "client")), node: false },
    Peer { name: "b/client", pod: Some(("b", "client")), node: false },
    Peer { name: "203.0.113.1", pod: None, node: false },
    Peer { name: "198.51.100.1", pod: None, node: false },
    Peer { name: "192.0.2.8", pod: None, node: true },
];

/// What is said: nothing yet, or a request by its method and target.
type Spoken = Option<(&'static str, &'static str)>;

/// What is asked of each pair.
const FLOWS: [(Protocol, u16, Spoken); 10] = [
    (Protocol::Tcp, 80, None),
    (Protocol::Tcp, 80, Some(("GET", "/a"))),
    (Protocol::Tcp, 80, Some(("PUT", "/a?x"))),
    (Protocol::Tcp, 8080, None),
    (Protocol::Tcp, 8080, Some(("GET", "/b"))),
    (Protocol::Tcp, 8080, Some(("PUT", "/a"))),
    (Protocol::Udp, 80, None),
    (Protocol::Sctp, 9000, None),
    (Protocol::Icmp, icmp_port(false, 8), None),
    (Protocol::Icmp, icmp_port(true, 128), None),
];

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether labels select a pod for a policy of this namespace, or of none.
fn selects(selector: &Value, home: Option<&str>, pod: (&str, &str)) -> bool {
    let labels = selector["matchLabels"].as_object();
    let named = labels.and_then(|labels| labels.get("io.kubernetes.pod.namespace")?.as_str()).or(home);
    let app = labels.and_then(|labels| labels.get("app")?.as_str());
    named.is_none_or(|namespace| namespace == pod.0) && app.is_none_or(|app| app == pod.1)
}

/// Whether a list of one of the peer fields names this peer.
fn names(field: &str, given: &Value, home: Option<&str>, peer: &Peer) -> bool {
    let within = |cidr: &str| match cidr {
        "0.0.0.0/0" => true,
        other => peer.name.split('.').take(3).eq(other.split('.').take(3)),
    };
    let cidr = |item: &Value| {
        let except = list(&item["except"]).iter().filter_map(Value::as_str).any(within);
        peer.is_outside() && within(item["cidr"].as_str().or(item.as_str()).unwrap_or_default()) && !except
    };
    list(given).iter().any(|item| match field {
        "Endpoints" => peer.pod.is_some_and(|pod| selects(item, home, pod)),
        "CIDR" | "CIDRSet" => cidr(item),
        _ => match item.as_str().unwrap_or_default() {
            "all" => true,
            "world" | "world-ipv4" => peer.is_outside(),
            "cluster" => !peer.is_outside(),
            "remote-node" => peer.node,
            _ => false,
        },
    })
}

fn port_matches(port: &Value, flow: (Protocol, u16), on: &Peer) -> bool {
    let protocol = match port["protocol"].as_str().unwrap_or("ANY") {
        "ANY" => flow.0.has_ports(),
        other => other == flow.0.as_str(),
    };
    let number = match port["port"].as_str().unwrap_or_default() {
        "0" => true,
        // The name stands for TCP 8080 on every pod, and for nothing outside.
        "web" => flow == (Protocol::Tcp, 8080) && on.pod.is_some(),
        other => {
            let first: u16 = other.parse().expect("a number");
            let last = port["endPort"].as_u64().map_or(first, |end| u16::try_from(end).expect("a port"));
            (first..=last).contains(&flow.1)
        }
    };
    protocol && number
}

fn said_matches(rules: &[Value], flow: (Protocol, u16), spoken: Spoken) -> bool {
    if rules.is_empty() {
        return true;
    }
    let Some((method, target)) = spoken else { return flow.0 == Protocol::Tcp };
    rules.iter().any(|rule| {
        let path = match rule["path"].as_str().unwrap_or_default() {
            "" => true,
            "/a.*" => target.starts_with("/a"),
            other => target == other,
        };
        path && rule["method"].as_str().is_none_or(|named| named.split('|').any(|named| named == method))
    })
}

/// Whether a rule names the peer and takes what is sent. `deny`: whatever is said.
fn matches(
    rule: &Value,
    home: Option<&str>,
    peer: &Peer,
    flow: (Protocol, u16, Spoken),
    on: &Peer,
    deny: bool,
) -> bool {
    let fields = rule.as_object().expect("a rule");
    let peers = fields.iter().find_map(|(key, given)| {
        let field =
            key.strip_prefix("from").or_else(|| key.strip_prefix("to")).filter(|field| *field != "Ports")?;
        Some(names(field, given, home, peer))
    });
    let (ports, icmps) = (list(&rule["toPorts"]), list(&rule["icmps"]));
    let (flow, spoken) = ((flow.0, flow.1), flow.2);
    let icmp = |field: &Value| {
        let kind = u8::try_from(field["type"].as_u64().expect("a type")).expect("a type");
        flow == (Protocol::Icmp, icmp_port(field["family"] == "IPv6", kind))
    };
    let sent = ports.iter().any(|item| {
        list(&item["ports"]).iter().any(|port| {
            // Every port of every protocol: of a deny that takes those without ports, too.
            let all = deny && port["port"] == "0" && port["protocol"].is_null();
            all || port_matches(port, flow, on)
        }) && (deny || said_matches(list(&item["rules"]["http"]), flow, spoken))
    }) || icmps.iter().any(|item| list(&item["fields"]).iter().any(icmp));
    let unlimited = ports.is_empty() && icmps.is_empty();
    match peers {
        None => !unlimited && sent,
        Some(named) => named && (unlimited || sent),
    }
}

/// Whether the policies let the flow pass at one end.
fn passes(
    policies: &[Value],
    end: &Peer,
    peer: &Peer,
    direction: &str,
    flow: (Protocol, u16, Spoken),
) -> bool {
    let Some(pod) = end.pod else { return true };
    let on = if direction == "ingress" { end } else { peer };
    let (mut isolated, mut denied, mut allowed) = (false, false, false);
    for policy in policies {
        let home = policy["metadata"]["namespace"].as_str();
        let spec = &policy["spec"];
        if home.is_some_and(|home| home != pod.0) || !selects(&spec["endpointSelector"], home, pod) {
            continue;
        }
        let rules = |field: &str| list(&spec[field]);
        let denies = format!("{direction}Deny");
        let has = !rules(direction).is_empty() || !rules(&denies).is_empty();
        isolated |= spec["enableDefaultDeny"][direction].as_bool().unwrap_or(has);
        denied |= rules(&denies).iter().any(|rule| matches(rule, home, peer, flow, on, true));
        allowed |= rules(direction).iter().any(|rule| matches(rule, home, peer, flow, on, false));
    }
    !denied && (!isolated || allowed)
}

fn peers(side: &'static str) -> impl Strategy<Value = Option<(String, Value)>> {
    let labels = |app: &str| json!({"matchLabels": {"app": app}});
    let elsewhere = json!({"matchLabels": {"io.kubernetes.pod.namespace": "b"}});
    select(vec![
        None,
        Some(("Endpoints", json!([{}]))),
        Some(("Endpoints", json!([]))),
        Some(("Endpoints", json!([labels("client")]))),
        Some(("Endpoints", json!([labels("server"), elsewhere]))),
        Some(("CIDR", json!(["0.0.0.0/0"]))),
        Some(("CIDR", json!(["203.0.113.0/24"]))),
        Some(("CIDRSet", json!([{"cidr": "0.0.0.0/0", "except": ["203.0.113.0/24"]}]))),
        Some(("CIDRSet", json!([]))),
        Some(("Entities", json!(["all"]))),
        Some(("Entities", json!(["world"]))),
        Some(("Entities", json!(["none", "health"]))),
        Some(("Entities", json!(["cluster"]))),
        Some(("Entities", json!(["host", "remote-node"]))),
    ])
    .prop_map(move |given| given.map(|(field, value)| (format!("{side}{field}"), value)))
}

/// Ports, and for an allow what may be said there.
fn items(deny: bool) -> impl Strategy<Value = Value> {
    let ports = select(vec![
        json!([{"port": "80", "protocol": "TCP"}]),
        json!([{"port": "8080", "protocol": "TCP"}, {"port": "80", "protocol": "TCP"}]),
        json!([{"port": "web", "protocol": "TCP"}]),
        json!([{"port": "80"}]),
        json!([{"port": "79", "endPort": 9000, "protocol": "ANY"}]),
        json!([{"port": "0", "protocol": "UDP"}]),
        json!([{"port": "0"}]),
    ]);
    let http = select(vec![
        json!([]),
        json!([{}]),
        json!([{"method": "GET"}]),
        json!([{"path": "/a"}]),
        json!([{"path": "/a.*", "method": "GET|PUT"}, {"method": "GET", "path": "/b"}]),
    ]);
    (ports, http).prop_map(move |(ports, http)| {
        let tcp = list(&ports).iter().all(|port| port["protocol"] == "TCP");
        if deny || !tcp { json!({"ports": ports}) } else { json!({"ports": ports, "rules": {"http": http}}) }
    })
}

fn rule(side: &'static str, deny: bool) -> impl Strategy<Value = Value> {
    let icmps = select(vec![
        json!([{"fields": [{"type": 8}]}]),
        json!([{"fields": [{"type": 128, "family": "IPv6"}, {"type": 3}]}]),
    ]);
    let sent = prop_oneof![
        1 => Just(None),
        3 => prop::collection::vec(items(deny), 0..3).prop_map(|items| Some(("toPorts", Value::from(items)))),
        1 => icmps.prop_map(|icmps| Some(("icmps", icmps))),
    ];
    (peers(side), sent).prop_map(|(peers, sent)| {
        let mut rule = json!({});
        if let Some((field, value)) = peers {
            rule[field] = value;
        }
        if let Some((field, value)) = sent {
            rule[field] = value;
        }
        rule
    })
}

fn one() -> impl Strategy<Value = Value> {
    let section = |side, deny| prop_oneof![2 => Just(None), 3 => prop::collection::vec(rule(side, deny), 0..3).prop_map(Some)];
    let selector = select(vec![
        json!({}),
        json!({"matchLabels": {"app": "server"}}),
        json!({"matchLabels": {"app": "client"}}),
    ]);
    let default = select(vec![None, None, Some(false), Some(true)]);
    let sections = (section("from", false), section("from", true), section("to", false), section("to", true));
    (selector, default.clone(), default, sections, any::<bool>()).prop_map(
        |(selector, ingress, egress, (allow_in, deny_in, allow_out, deny_out), wide)| {
            let mut spec = json!({"endpointSelector": selector});
            let given = [
                ("ingress", allow_in),
                ("ingressDeny", deny_in),
                ("egress", allow_out),
                ("egressDeny", deny_out),
            ];
            for (field, rules) in given {
                if let Some(rules) = rules {
                    spec[field] = rules.into();
                }
            }
            for (direction, default) in [("ingress", ingress), ("egress", egress)] {
                if let Some(default) = default {
                    spec["enableDefaultDeny"][direction] = default.into();
                }
            }
            let mut object = policy(spec);
            if wide {
                object["kind"] = "CiliumClusterwideNetworkPolicy".into();
                object["metadata"].as_object_mut().expect("metadata").remove("namespace");
            }
            object
        },
    )
}

/// Both sides of one flow, by the engine, the interpreter and the kernel's rows.
fn compare(cluster: &Cluster, policies: &[Value], from: &Peer, to: &Peer, flow: (Protocol, u16, Spoken)) {
    let said = flow.2.map_or(Said::Nothing, |(method, target)| Said::Http {
        method: method.into(),
        target: target.into(),
        host: Some("a".into()),
        headers: Vec::new(),
    });
    let (protocol, port) = (flow.0, Port::Number(flow.1));
    let query = Query { from: from.name.into(), to: to.name.into(), protocol, port, said };
    let verdict = cluster.ask(&query).expect("an answer");
    for (direction, end, peer, side) in
        [(Direction::Egress, from, to, &verdict.egress), (Direction::Ingress, to, from, &verdict.ingress)]
    {
        let told = || format!("{direction:?} {} -> {} {flow:?}: {side:?}\n{policies:#?}", from.name, to.name);
        let passed = side.decision == Decision::Allow;
        assert_eq!(passed, passes(policies, end, peer, direction.as_str(), flow), "{}", told());
        match (row(cluster, end, peer, direction, flow), flow.2) {
            (Some(row), None) => assert_eq!(row != RowAction::Deny, passed, "{row:?} {}", told()),
            // What the kernel decides alone is right whatever is said.
            (Some(RowAction::Deny), Some(_)) => assert!(!passed, "{}", told()),
            (Some(RowAction::Allow), Some(_)) => assert!(passed, "{}", told()),
            (Some(RowAction::ToProxy) | None, _) => {}
        }
    }
}

/// What the kernel does at an end that is a pod.
fn row(
    cluster: &Cluster,
    end: &Peer,
    peer: &Peer,
    direction: Direction,
    flow: (Protocol, u16, Spoken),
) -> Option<RowAction> {
    let snapshot = cluster.snapshot();
    let address = |peer: &Peer| -> IpAddr {
        let known = [("a/server", "10.0.0.1"), ("a/client", "10.0.0.2"), ("b/client", "10.0.0.3")];
        let found = known.iter().find(|(name, _)| *name == peer.name);
        found.map_or(peer.name, |(_, address)| address).parse().expect("an address")
    };
    let endpoint = snapshot.endpoint_at(address(end))?;
    let connection = snapshot.connection(endpoint, direction, address(peer).into(), flow.0, flow.1);
    Some(snapshot.profile(endpoint.profile)?.side(direction).row(&connection).action)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_engine_says_what_the_documentation_says(mut policies in prop::collection::vec(one(), 1..5)) {
        for (number, policy) in policies.iter_mut().enumerate() {
            policy["metadata"]["name"] = format!("p{number}").into();
        }
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.8"}]}});
        let objects: Vec<Value> = policies.iter().cloned().chain([node]).collect();
        let (cluster, problems) = world(&objects);
        prop_assert!(errors(&problems).is_empty(), "{problems:#?}");
        for from in &WORLD {
            for to in WORLD.iter().filter(|to| to.name != from.name) {
                FLOWS.into_iter().for_each(|flow| compare(&cluster, &policies, from, to, flow));
            }
        }
    }
}
