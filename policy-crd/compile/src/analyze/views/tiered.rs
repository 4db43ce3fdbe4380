//! The two tiered kinds in the checks' form.
//!
//! Knows nothing of pods, and nothing of what is wrong.

use super::{Effect, Namespaces, PeerView, Pods, PolicyView, PortNumber, PortView, RuleView, is_empty, pods};
use crate::selector::Selector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sluice_crd::{
    Action, ClusterL7Object, ClusterNetworkObject, ClusterPeer, ClusterProtocol, ClusterRuleObject,
    NamespacedPods, Part, Subject, TieredObject, TieredRule, TransportMatch,
};
use sluice_policy::{Direction, Kind, Origin, Prefix, Protocol};

pub(super) fn cluster_network(object: &ClusterNetworkObject) -> PolicyView<'_> {
    policy(object, Kind::ClusterNetworkPolicy, rule)
}

pub(super) fn cluster_l7(object: &ClusterL7Object) -> PolicyView<'_> {
    // A peer without a namespace is of every namespace here.
    let everywhere = Namespaces::Matching(String::new(), Selector::default());
    policy(object, Kind::ClusterL7NetworkPolicy, |given, direction, effect| {
        super::rule(given, direction, effect, &everywhere)
    })
}

fn policy<'o, R>(
    object: &'o TieredObject<R>,
    kind: Kind,
    rule: impl Fn(&'o R, Direction, Effect) -> RuleView<'o>,
) -> PolicyView<'o> {
    let sections = [(&object.ingress, Direction::Ingress), (&object.egress, Direction::Egress)];
    let mut rules = Vec::new();
    for (section, direction) in sections {
        for TieredRule { action, rule: given } in section.value().into_iter().flatten() {
            let effect = match action {
                Part::Whole(Action::Accept) => Effect::Allow,
                Part::Whole(Action::Pass) => Effect::Pass,
                _ => Effect::Deny,
            };
            rules.push(rule(given, direction, effect));
        }
    }
    let tier = match (&object.tier, &object.priority) {
        (Part::Whole(tier), Part::Whole(priority)) => Some((*tier, *priority)),
        _ => None,
    };
    PolicyView {
        source: &object.source,
        origin: Origin { kind, namespace: "".into(), name: object.name.clone() },
        mode: object.mode,
        tier,
        subject: match &object.subject {
            Part::Whole(given) => subject(given),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        },
        rules,
    }
}

fn subject(given: &Subject) -> Option<Pods> {
    match (&given.namespaces, &given.pods) {
        (Some(namespaces), None) => of_namespaces(namespaces, "spec.subject.namespaces"),
        (None, Some(given)) => namespaced(given, "spec.subject.pods"),
        _ => None,
    }
}

/// Every pod of these namespaces.
fn of_namespaces(given: &LabelSelector, path: &str) -> Option<Pods> {
    Some(Pods {
        path: path.to_owned(),
        namespaces: Namespaces::Matching(path.to_owned(), Selector::new(given).ok()?),
        pods: Selector::default(),
        service_account: None,
    })
}

fn namespaced(given: &NamespacedPods, path: &str) -> Option<Pods> {
    let at = format!("{path}.namespaceSelector");
    let namespaces = match &given.namespace_selector {
        Some(selector) => Selector::new(selector).ok()?,
        None => Selector::default(),
    };
    pods(&given.pod_selector, &format!("{path}.podSelector"), Namespaces::Matching(at, namespaces))
}

fn rule(given: &ClusterRuleObject, direction: Direction, effect: Effect) -> RuleView<'_> {
    let field = if direction == Direction::Ingress { "from" } else { "to" };
    let path = &given.path;
    let peers = given.peers.value().into_iter().flatten().enumerate();
    let ports = given.protocols.value().into_iter().flatten().enumerate();
    RuleView {
        path: path.clone(),
        name: given.name.clone(),
        direction,
        effect,
        everybody: is_empty(&given.peers),
        peers: peers
            .filter_map(|(index, item)| Some(peer(item.value()?, &format!("{path}.{field}[{index}]"))))
            .flatten()
            .collect(),
        ports: ports
            .filter_map(|(index, item)| Some(protocol(item.value()?, &format!("{path}.protocols[{index}]"))))
            .flatten()
            .collect(),
        conditional: false,
        http: Vec::new(),
        grpc: Vec::new(),
        server_names: None,
    }
}

fn peer(given: &ClusterPeer, path: &str) -> Vec<PeerView> {
    let mut out = Vec::new();
    let mut of_pods = |pods: Option<Pods>| {
        out.push(PeerView { pods, cidr: None, world: false });
    };
    if let Some(selector) = &given.namespaces {
        of_pods(of_namespaces(selector, &format!("{path}.namespaces")));
    }
    if let Some(given) = &given.pods {
        of_pods(namespaced(given, &format!("{path}.pods")));
    }
    for (index, text) in given.networks.iter().flatten().enumerate() {
        let cidr = Prefix::parse(text).ok().map(|cidr| (format!("{path}.networks[{index}]"), cidr));
        out.push(PeerView { pods: None, cidr, world: false });
    }
    out
}

fn protocol(given: &ClusterProtocol, path: &str) -> Vec<PortView> {
    let mut out = Vec::new();
    let transports = [
        ("tcp", Protocol::Tcp, &given.tcp),
        ("udp", Protocol::Udp, &given.udp),
        ("sctp", Protocol::Sctp, &given.sctp),
    ];
    for (field, protocol, transport) in transports {
        if let Some(transport) = transport {
            let path = format!("{path}.{field}.destinationPort");
            out.extend(number(transport).map(|number| PortView { path, number, protocol }));
        }
    }
    if let Some(name) = &given.destination_named_port {
        // Of whatever protocol: one that has it is enough.
        let path = format!("{path}.destinationNamedPort");
        let number = PortNumber::Named(name.as_str().into());
        out.push(PortView { path, number, protocol: Protocol::Other });
    }
    out
}

fn number(given: &TransportMatch) -> Option<PortNumber> {
    let Some(port) = &given.destination_port else { return Some(PortNumber::Any) };
    let (first, last) = match (&port.number, &port.range) {
        (Some(number), None) => (*number, *number),
        (None, Some(range)) => (range.start, range.end),
        _ => return None,
    };
    Some(PortNumber::Range(u16::try_from(first).ok()?, u16::try_from(last).ok()?))
}
