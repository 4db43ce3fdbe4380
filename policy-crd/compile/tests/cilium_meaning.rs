//! What `CiliumNetworkPolicy` means, as far as it is lowered: selection, isolation, endpoints, CIDRs, ports, denies; and that
//! everything else closes and is told.

#![allow(clippy::needless_pass_by_value, reason = "test helpers take what json! makes")]

mod common;

use common::Ask;
use common::cilium::{ALLOW, DENY, ask, errors, policy, world};
use serde_json::{Value, json};
use sluice_crd::Severity;
use sluice_policy::{Decision, Protocol};

/// Decisions of the server's ingress: from its namespace, from another, from outside, on 8080 and on 9.
#[track_caller]
fn ingress(rules: Value, expected: [Decision; 4]) {
    let mut spec = json!({"endpointSelector": {"matchLabels": {"app": "server"}}});
    spec.as_object_mut().expect("object").extend(rules.as_object().expect("object").clone());
    let (cluster, problems) = world(&[policy(spec)]);
    assert!(errors(&problems).is_empty(), "{problems:#?}");
    let got = [
        ask(&cluster, "a/client", 8080),
        ask(&cluster, "b/client", 8080),
        ask(&cluster, "203.0.113.1", 8080),
        ask(&cluster, "a/client", 9),
    ];
    assert_eq!(got, expected, "{rules}");
}

#[test]
fn what_isolates_and_what_an_empty_list_means() {
    let open = [ALLOW; 4];
    let closed = [DENY; 4];
    ingress(json!({}), open);
    ingress(json!({"ingress": []}), open);
    ingress(json!({"egress": [{}]}), open);
    ingress(json!({"ingress": [{}]}), closed);
    ingress(json!({"ingress": [{"fromEndpoints": []}]}), closed);
    ingress(json!({"ingress": [{"fromEndpoints": [], "toPorts": [{"ports": [{"port": "8080"}]}]}]}), closed);
    ingress(json!({"ingress": [{"toPorts": []}]}), closed);
    ingress(json!({"ingressDeny": [{"fromEntities": ["none"]}]}), closed);
    ingress(
        json!({"ingressDeny": [{"fromEntities": ["none"]}], "enableDefaultDeny": {"ingress": false}}),
        open,
    );
    ingress(json!({"ingress": [{}], "enableDefaultDeny": {"ingress": false}}), open);
    ingress(json!({"ingress": [{}], "enableDefaultDeny": {"egress": false}}), closed);
    ingress(json!({"enableDefaultDeny": {"ingress": true}}), closed);
}

#[test]
fn endpoints_are_of_the_own_namespace_unless_another_is_named() {
    let from = |selector: Value| json!({"ingress": [{"fromEndpoints": [selector]}]});
    let own = [ALLOW, DENY, DENY, ALLOW];
    let other = [DENY, ALLOW, DENY, DENY];
    let both = [ALLOW, ALLOW, DENY, ALLOW];
    ingress(from(json!({})), own);
    ingress(from(json!({"matchLabels": {"app": "client"}})), own);
    ingress(from(json!({"matchLabels": {"k8s:app": "client"}})), own);
    ingress(from(json!({"matchLabels": {"any:app": "client"}})), own);
    ingress(from(json!({"matchLabels": {"k8s:io.kubernetes.pod.namespace": "b"}})), other);
    ingress(from(json!({"matchLabels": {"io.kubernetes.pod.namespace": "b", "app": "client"}})), other);
    ingress(from(json!({"matchLabels": {"io.kubernetes.pod.namespace": "b", "app": "server"}})), [DENY; 4]);
    let any = json!({"matchExpressions": [{"key": "k8s:io.kubernetes.pod.namespace", "operator": "Exists"}]});
    ingress(from(any), both);
    ingress(from(json!({"matchLabels": {"io.cilium.k8s.namespace.labels.team": "blue"}})), other);
    let not = json!({"matchExpressions": [
        {"key": "io.cilium.k8s.namespace.labels.team", "operator": "NotIn", "values": ["red"]}]});
    ingress(from(not), other);
    ingress(
        from(json!({"matchExpressions": [
        {"key": "io.cilium.k8s.policy.cluster", "operator": "Exists"}]})),
        own,
    );
}

#[test]
fn a_pod_cannot_give_itself_what_cilium_derives() {
    let from = |labels: Value| json!({"ingress": [{"fromEndpoints": [{"matchLabels": labels}]}]});
    ingress(from(json!({"io.kubernetes.pod.namespace": "a"})), [ALLOW, DENY, DENY, ALLOW]);
    let everywhere = json!({"io.cilium.k8s.policy.serviceaccount": "sa-client",
        "io.cilium.k8s.namespace.labels.team": "blue"});
    ingress(from(everywhere), [DENY, ALLOW, DENY, DENY]);
    let spoofed = json!({"io.cilium.k8s.policy.serviceaccount": "sa-server",
        "io.cilium.k8s.namespace.labels.team": "blue"});
    ingress(from(spoofed), [DENY; 4]);
    ingress(from(json!({"app": "server", "io.kubernetes.pod.namespace": "b"})), [DENY; 4]);
}

#[test]
fn ports_peers_and_their_union() {
    let anyone = [ALLOW, ALLOW, ALLOW, DENY];
    let ports = |ports: Value| json!({"ingress": [{"toPorts": [{"ports": ports}]}]});
    ingress(ports(json!([{"port": "8080", "protocol": "TCP"}])), anyone);
    ingress(ports(json!([{"port": "8080"}])), anyone);
    ingress(ports(json!([{"port": "web"}])), anyone);
    ingress(ports(json!([{"port": "WEB", "protocol": "ANY"}])), anyone);
    ingress(ports(json!([{"port": "80", "endPort": 9000, "protocol": "TCP"}])), anyone);
    ingress(ports(json!([{"port": "0", "protocol": "TCP"}])), [ALLOW; 4]);
    ingress(ports(json!([{"port": "8080", "protocol": "UDP"}])), [DENY; 4]);
    ingress(json!({"ingress": [{"fromEntities": ["all"]}]}), [ALLOW; 4]);
    ingress(
        json!({"ingress": [
            {"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": "1"}]}, {"ports": [{"port": "9"}]}]},
            {"fromEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "b"}}]},
        ]}),
        [DENY, ALLOW, DENY, ALLOW],
    );
    ingress(json!({"ingress": [{"toPorts": [{"ports": [{"port": "8080"}], "rules": {}}]}]}), anyone);
}

#[test]
fn cidrs_hold_what_is_outside_and_never_pods_or_nodes() {
    let outside = [DENY, DENY, ALLOW, DENY];
    ingress(json!({"ingress": [{"fromCIDR": ["0.0.0.0/0", "::/0"]}]}), outside);
    ingress(json!({"ingress": [{"fromCIDR": ["203.0.113.1"]}]}), outside);
    ingress(json!({"ingress": [{"fromCIDR": ["10.0.0.0/8"]}]}), [DENY; 4]);
    ingress(
        json!({"ingress": [{"fromCIDRSet": [{"cidr": "203.0.113.0/24", "except": ["203.0.113.2/32"]}]}]}),
        outside,
    );
    ingress(
        json!({"ingress": [{"fromCIDRSet": [{"cidr": "203.0.113.0/24", "except": ["203.0.113.0/31"]}]}]}),
        [DENY; 4],
    );
    ingress(json!({"ingress": [{"fromEntities": ["world"]}]}), outside);
    ingress(json!({"ingress": [{"fromEntities": ["world-ipv4"]}]}), outside);
    ingress(json!({"ingress": [{"fromEntities": ["world-ipv6"]}]}), [DENY; 4]);
    ingress(json!({"ingress": [{"fromCIDR": []}]}), [DENY; 4]);
    let but_world =
        json!({"ingress": [{"fromEntities": ["all"]}], "ingressDeny": [{"fromEntities": ["world"]}]});
    ingress(but_world, [ALLOW, ALLOW, DENY, ALLOW]);
    let but_pods =
        json!({"ingress": [{"fromEntities": ["all"]}], "ingressDeny": [{"fromCIDR": ["10.0.0.0/8"]}]});
    ingress(but_pods, [ALLOW; 4]);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "another"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]}});
    let allow = policy(json!({"endpointSelector": {}, "ingress": [{"fromCIDR": ["0.0.0.0/0"]}]}));
    let (cluster, _) = world(&[allow, node]);
    assert_eq!((ask(&cluster, "192.0.2.7", 1), ask(&cluster, "192.0.2.8", 1)), (DENY, ALLOW));
}

#[test]
fn any_is_every_protocol_with_ports() {
    let (cluster, _) = world(&[policy(json!({"endpointSelector": {},
        "ingress": [{"toPorts": [{"ports": [{"port": "53", "protocol": "ANY"}]}]}]}))]);
    for (protocol, expected) in
        [(Protocol::Tcp, ALLOW), (Protocol::Udp, ALLOW), (Protocol::Sctp, ALLOW), (Protocol::Icmp, DENY)]
    {
        let asked = Ask::new("a/client", "a/server", 53, "").over(protocol);
        assert_eq!(asked.decide(&cluster), expected, "{protocol}");
    }
}

#[test]
fn a_deny_beats_every_allow_and_isolates() {
    let deny = json!({"ingress": [{"fromEntities": ["all"]}],
        "ingressDeny": [{"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": "8080"}]}]}]});
    ingress(deny, [DENY, ALLOW, ALLOW, ALLOW]);
    ingress(json!({"ingressDeny": [{"toPorts": [{"ports": [{"port": "8080"}]}]}]}), [DENY; 4]);
    ingress(
        json!({"ingress": [{"fromEntities": ["all"]}], "ingressDeny": [{"toPorts": [{"ports": [{"port": "0"}]}]}]}),
        [DENY; 4],
    );
    // To Cilium an empty rule names nobody.
    ingress(json!({"ingress": [{"fromEntities": ["all"]}], "ingressDeny": [{}]}), [ALLOW; 4]);
}

#[test]
fn spec_and_specs_hold_each_for_its_own_pods() {
    let mut object = policy(json!({"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [{}]}));
    object["specs"] = json!([
        {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"fromEndpoints": [{}]}]},
        {"endpointSelector": {"matchLabels": {"app": "client"}}, "egress": [{}]},
    ]);
    let (cluster, problems) = world(&[object]);
    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!(ask(&cluster, "a/client", 1), DENY, "its egress");
    assert_eq!(ask(&cluster, "b/client", 1), DENY);
    let to_client = |from: &str| Ask::new(from, "a/client", 1, "").decide(&cluster);
    assert_eq!((to_client("a/server"), to_client("b/client")), (ALLOW, ALLOW));
    let verdict = Ask::new("203.0.113.1", "a/server", 1, "").verdict(&cluster);
    assert_eq!(
        verdict.ingress.policy.map(|p| p.origin.to_string()).as_deref(),
        Some("CiliumNetworkPolicy/a/p")
    );
}

/// A rule that is not honoured is told where it stands and grants nothing, and a good rule beside it stays.
#[track_caller]
fn grants_nothing(path: &str, rule: Value) {
    let (cluster, problems) = world(&[policy(
        json!({"endpointSelector": {}, "ingress": [rule.clone(), {"fromEndpoints": [{}], "toPorts":
            [{"ports": [{"port": "7"}]}]}]}),
    )]);
    let path = format!("spec.ingress[0].{path}");
    assert!(errors(&problems).iter().any(|problem| problem.path == path), "{path}\n{problems:#?}");
    for (from, port) in [("a/client", 8080), ("b/client", 53), ("203.0.113.1", 9)] {
        assert_eq!(ask(&cluster, from, port), DENY, "{rule}");
    }
    assert_eq!(ask(&cluster, "a/client", 7), ALLOW, "the good rule stays: {rule}");
    assert!(cluster.policies.iter().all(|policy| !policy.accepted), "{rule}");
}

#[test]
fn peers_that_are_not_honoured_grant_nothing() {
    for (path, rule) in [
        ("fromCIDR[1]", json!({"fromCIDR": ["0.0.0.0/0", "::ffff:10.0.0.0/104"]})),
        ("fromCIDRSet[0].cidr", json!({"fromCIDRSet": [{"cidr": "203.0.113.1"}]})),
        (
            "fromCIDRSet[0].except[0]",
            json!({"fromCIDRSet": [{"cidr": "203.0.113.0/24", "except": ["10.0.0.0/8"]}]}),
        ),
        ("fromCIDRSet[0].cidrGroupRef", json!({"fromCIDRSet": [{"cidrGroupRef": "g"}]})),
        ("fromCIDRSet[0]", json!({"fromCIDRSet": [{"except": ["10.0.0.0/8"]}]})),
        ("fromNodes", json!({"fromNodes": [{}]})),
        ("fromGroups", json!({"fromGroups": [{"aws": {}}]})),
        ("fromEntities[0]", json!({"fromEntities": ["Cluster"]})),
        ("fromEntities[1]", json!({"fromEntities": ["all", "moon"]})),
        ("fromEndpoints[0]", json!({"fromEndpoints": [{"matchLabels": {"app": "{{.App}}"}}]})),
        (
            "fromEndpoints[0]",
            json!({"fromEndpoints": [{"matchExpressions": [
            {"key": "app", "operator": "NotIn", "values": ["{{.App}}"]}]}]}),
        ),
        ("authentication", json!({"fromEndpoints": [{}], "authentication": {"mode": "required"}})),
        (
            "fromEndpoints[0]",
            json!({"fromEndpoints": [{"matchLabels": {"reserved:host": "", "app": "client"}}]}),
        ),
        ("fromEndpoints[0]", json!({"fromEndpoints": [{"matchLabels": {"reserved:cluster": ""}}]})),
        ("fromEndpoints[0]", json!({"fromEndpoints": [{"matchLabels": {"reserved:world": "x"}}]})),
        (
            "fromEndpoints[0]",
            json!({"fromEndpoints": [{"matchExpressions": [{"key": "reserved:host", "operator": "DoesNotExist"}]}]}),
        ),
        ("fromEndpoints[0]", json!({"fromEndpoints": [{"matchLabels": {"cidr:10.0.0.0/8": ""}}]})),
    ] {
        grants_nothing(path, rule);
    }
}

#[test]
fn ports_that_are_not_honoured_grant_nothing() {
    for (path, rule) in [
        ("icmps", json!({"icmps": [{"fields": [{"type": 8}]}], "toPorts": [{"ports": [{"port": "9"}]}]})),
        ("icmps[0].fields", json!({"icmps": [{}]})),
        ("icmps[0].fields[0].type", json!({"icmps": [{"fields": [{"type": 256}]}]})),
        ("icmps[0].fields[0].type", json!({"icmps": [{"fields": [{"type": "PacketTooBig"}]}]})),
        ("icmps[0].fields[0].family", json!({"icmps": [{"fields": [{"type": 8, "family": "ipv4"}]}]})),
        ("toPorts[0].rules.dns", json!({"toPorts": [{"ports": [{"port": "53"}], "rules": {"dns": [{}]}}]})),
        (
            "toPorts[0].rules.kafka",
            json!({"toPorts": [{"ports": [{"port": "1"}], "rules": {"kafka": [{}]}}]}),
        ),
        (
            "toPorts[0].rules.l7proto",
            json!({"toPorts": [{"ports": [{"port": "1"}], "rules": {"l7proto": "x"}}]}),
        ),
        ("toPorts[0].terminatingTLS", json!({"toPorts": [{"ports": [{"port": "1"}], "terminatingTLS": {}}]})),
        ("toPorts[0].listener", json!({"toPorts": [{"ports": [{"port": "1"}], "listener": {"name": "a"}}]})),
        ("toPorts[0].ports", json!({"toPorts": [{}]})),
        ("toPorts[0].ports[0].port", json!({"toPorts": [{"ports": [{"port": "0080"}]}]})),
        ("toPorts[0].ports[0].port", json!({"toPorts": [{"ports": [{"port": "65536"}]}]})),
        ("toPorts[0].ports[0].endPort", json!({"toPorts": [{"ports": [{"port": "9", "endPort": 8}]}]})),
        ("toPorts[0].ports[0].endPort", json!({"toPorts": [{"ports": [{"port": "web", "endPort": 8}]}]})),
        (
            "toPorts[0].ports[0].protocol",
            json!({"toPorts": [{"ports": [{"port": "9", "protocol": "ICMP"}]}]}),
        ),
        (
            "fromEndpoints[0].matchExpressions[0].operator",
            json!({"fromEndpoints": [
            {"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}]}),
        ),
    ] {
        grants_nothing(path, rule);
    }
}

#[test]
fn a_requirement_voids_every_allow_of_its_direction() {
    let [open, port] =
        [json!({"fromEntities": ["all"]}), json!({"toPorts": [{"ports": [{"port": "8080"}]}]})];
    let requires = json!({"fromRequires": [{"matchLabels": {"app": "client"}}]});
    for rules in [json!([requires, open]), json!([open, requires]), json!([port, requires])] {
        let mut object =
            policy(json!({"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": rules}));
        let (cluster, problems) = world(&[object.clone()]);
        let told = errors(&problems);
        assert!(told.iter().all(|problem| problem.path.ends_with("fromRequires")), "{told:#?}");
        assert!(told[0].reason.contains("no rule of this direction grants"), "{told:#?}");
        assert_eq!(ask(&cluster, "a/client", 8080), DENY, "{rules}");
        // Of another spec, too: it may select the same pods.
        object["specs"] = json!([{"endpointSelector": {}, "ingress": [{"fromEntities": ["all"]}], "egress": [open_egress()]}]);
        let (cluster, _) = world(&[object]);
        assert_eq!(ask(&cluster, "a/client", 8080), DENY, "{rules}");
        assert_eq!(Ask::new("a/server", "203.0.113.1", 1, "").decide(&cluster), ALLOW, "the other direction");
    }
    ingress(json!({"ingress": [{"fromRequires": [], "fromEndpoints": [{}]}]}), [ALLOW, DENY, DENY, ALLOW]);
    ingress(json!({"ingress": [{"fromRequires": []}]}), [DENY; 4]);
    let deny = json!({"endpointSelector": {}, "ingress": [open], "ingressDeny": [
        {"fromEndpoints": [{"matchLabels": {"app": "client"}}], "fromRequires": [{"matchLabels": {"app": "x"}}]}]});
    let (cluster, _) = world(&[policy(deny)]);
    assert_eq!((ask(&cluster, "a/client", 1), ask(&cluster, "203.0.113.1", 1)), (DENY, DENY));
}

fn open_egress() -> Value {
    json!({"toEntities": ["all"]})
}

#[test]
fn a_deny_that_is_not_understood_denies_more() {
    for rule in [
        json!({"fromCIDR": ["203.0.113.0/33"]}),
        json!({"fromCIDRSet": [{"cidr": "198.51.100.0/24", "cidrGroupRef": "g"}]}),
        json!({"fromCIDRSet": [{"cidr": "198.51.100.0/24"}], "fromEndpoints": [{}]}),
        json!({"fromEntities": ["moon"]}),
        json!({"fromEndpoints": [{"matchLabels": {"reserved:moon": ""}}]}),
        json!({"fromRequires": [{}]}),
        json!({"fromEndpoints": [{"matchLabels": {"app": "client"}}], "fromEndpoint": [{}]}),
        json!({"fromEndpoints": [{"matchLabels": {"app": ["client"]}}]}),
        json!({"toPorts": [{"ports": [{"port": "0080"}]}]}),
        json!({"toPorts": [{"ports": [{"port": 8080}]}]}),
        json!({"toPorts": [{}]}),
        json!({"icmps": [{"fields": [{"type": "Ping"}]}]}),
        json!({"icmps": [{}]}),
        json!({"icmps": [{"fields": [{"type": 8}]}], "toPorts": [{"ports": [{"port": "9"}]}]}),
        json!({"fromFQDNs": []}),
        json!(7),
    ] {
        let (cluster, problems) = world(&[policy(json!({"endpointSelector": {},
            "ingress": [{"fromEntities": ["all"]}], "ingressDeny": [rule.clone()]}))]);
        assert!(!errors(&problems).is_empty(), "{rule}");
        assert_eq!(ask(&cluster, "203.0.113.1", 8080), DENY, "{rule}\n{problems:#?}");
        assert_eq!(ask(&cluster, "a/client", 8080), DENY, "{rule}\n{problems:#?}");
    }
}

#[test]
fn a_policy_in_doubt_closes_what_it_could_select() {
    for spec in [
        json!({"endpointSelector": {"matchLabels": {"app": 1}}, "ingress": [{"fromEntities": ["all"]}]}),
        json!({"ingress": [{"fromEntities": ["all"]}]}),
        json!({"endpointSelector": {}, "nodeSelector": {}, "ingress": [{"fromEntities": ["all"]}]}),
        json!({"endpointSelector": {}, "ingres": [{"fromEntities": ["all"]}]}),
        json!({"endpointSelector": {"matchLabels": {"container:x": "1"}}, "ingress": [{"fromEntities": ["all"]}]}),
        json!(1),
    ] {
        let (cluster, problems) = world(&[policy(spec.clone())]);
        assert!(!errors(&problems).is_empty(), "{spec}");
        assert_eq!(ask(&cluster, "a/client", 1), DENY, "{spec}");
        let elsewhere = Ask::new("203.0.113.1", "b/client", 1, "").decide(&cluster);
        assert_eq!(elsewhere, ALLOW, "another namespace: {spec}");
    }
}

#[test]
fn a_policy_about_nodes_or_reserved_labels_is_about_no_pod() {
    let spec = json!({"nodeSelector": {}, "ingress": [{}], "ingressDeny": [{"fromEntities": ["all"]}]});
    let (cluster, problems) = world(&[policy(spec)]);
    assert_eq!(errors(&problems)[0].path, "spec.nodeSelector");
    assert_eq!(ask(&cluster, "a/client", 1), ALLOW);
    let spec = json!({"endpointSelector": {"matchLabels": {"reserved:health": ""}}, "ingress": [{}]});
    let (cluster, problems) = world(&[policy(spec)]);
    assert_eq!(problems[0].severity, Severity::Warning);
    assert_eq!(ask(&cluster, "a/client", 1), ALLOW);
}

#[test]
fn the_subject_is_always_of_the_own_namespace() {
    let spec = json!({"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "b"}}, "ingress": [{}]});
    let (cluster, problems) = world(&[policy(spec)]);
    assert!(problems.iter().any(|problem| problem.severity == Severity::Warning), "{problems:#?}");
    assert_eq!(ask(&cluster, "b/client", 1), DENY);
    assert_eq!(
        Ask::new("a/client", "b/client", 1, "").decide(&cluster),
        ALLOW,
        "egress of a is not isolated"
    );
}
