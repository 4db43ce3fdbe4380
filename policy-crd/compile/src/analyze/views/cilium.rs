//! Cilium's policies in the checks' form.
//!
//! Selectors are lowered as the compiler lowers them; what it says of them is told already. Knows nothing of pods,
//! and nothing of what is wrong.

use super::{
    Effect, HttpView, Namespaces, PeerView, Pods, PolicyView, PortNumber, PortView, RegexOf, RegexView,
    RuleView,
};
use crate::cilium::selector;
use crate::report::Report;
use crate::selector::Selector;
use sluice_crd::{
    CiliumHttpRule, CiliumKind, CiliumPolicyObject, CiliumPort, CiliumPortRule, CiliumRule, CiliumSpec, Mode,
    Part,
};
use sluice_policy::{Direction, Kind, Origin, Prefix, Protocol};

pub(super) fn policy(object: &CiliumPolicyObject) -> Vec<PolicyView<'_>> {
    object.specs.iter().map(|spec| one(object, spec)).collect()
}

/// The namespace that the policy's selectors mean where they name none.
fn home(object: &CiliumPolicyObject) -> Option<&str> {
    (object.kind == CiliumKind::Namespaced).then_some(&*object.namespace)
}

/// The namespaces are asked for by the selector of pods, which reads derived labels.
fn everywhere() -> Namespaces {
    Namespaces::Matching(String::new(), Selector::default())
}

fn one<'o>(object: &'o CiliumPolicyObject, spec: &'o CiliumSpec) -> PolicyView<'o> {
    let path = format!("{}.endpointSelector", spec.path);
    let subject = match &spec.endpoint_selector {
        Part::Whole(given) if spec.node_selector.is_absent() => {
            let mut report = Report::new(&object.source, "");
            selector::subject(given, home(object), &path, &mut report).map(|pods| Pods {
                path,
                namespaces: match object.kind {
                    CiliumKind::Namespaced => Namespaces::Named(object.namespace.clone()),
                    CiliumKind::Clusterwide => everywhere(),
                },
                pods,
                service_account: None,
            })
        }
        _ => None,
    };
    let sections = [
        (&spec.ingress, Direction::Ingress, Effect::Allow),
        (&spec.egress, Direction::Egress, Effect::Allow),
        (&spec.ingress_deny, Direction::Ingress, Effect::Deny),
        (&spec.egress_deny, Direction::Egress, Effect::Deny),
    ];
    let rules = sections.into_iter().flat_map(|(section, direction, effect)| {
        section.value().into_iter().flatten().map(move |given| rule(object, given, direction, effect))
    });
    let kind = match object.kind {
        CiliumKind::Namespaced => Kind::CiliumNetworkPolicy,
        CiliumKind::Clusterwide => Kind::CiliumClusterwideNetworkPolicy,
    };
    PolicyView {
        source: &object.source,
        origin: Origin { kind, namespace: object.namespace.clone(), name: object.name.clone() },
        mode: Mode::Enforce,
        tier: None,
        subject,
        rules: rules.collect(),
    }
}

fn rule<'o>(
    object: &'o CiliumPolicyObject,
    given: &'o CiliumRule,
    direction: Direction,
    effect: Effect,
) -> RuleView<'o> {
    let items = given.to_ports.value().into_iter().flatten();
    let mut ports = Vec::new();
    let mut http = Vec::new();
    let (mut conditional, mut server_names) = (false, None);
    for item in items {
        ports.extend(ports_of(item));
        conditional |= !item.rules.is_absent() || !item.server_names.is_absent();
        if !item.server_names.is_absent() {
            server_names = Some(format!("{}.serverNames", item.path));
        }
        let alternatives = item.rules.value().and_then(|rules| rules.http.value()).into_iter().flatten();
        http.extend(alternatives.enumerate().filter_map(|(index, item_http)| {
            Some(http_item(item_http.value()?, &format!("{}.rules.http[{index}]", item.path)))
        }));
    }
    let peers = &given.peers;
    let limits = [
        peers.endpoints.is_absent(),
        peers.cidr.is_absent(),
        peers.cidr_set.is_absent(),
        peers.entities.is_absent(),
        peers.services.is_absent(),
        peers.fqdns.is_absent(),
        peers.nodes.is_absent(),
        peers.groups.is_absent(),
    ];
    RuleView {
        path: given.path.clone(),
        name: None,
        direction,
        effect,
        everybody: limits.iter().all(|absent| *absent),
        peers: peers_of(object, given, direction),
        ports,
        conditional,
        http,
        grpc: Vec::new(),
        server_names,
    }
}

fn peers_of(object: &CiliumPolicyObject, given: &CiliumRule, direction: Direction) -> Vec<PeerView> {
    let side = if direction == Direction::Ingress { "from" } else { "to" };
    let at = |field: &str, index: usize| format!("{}.{side}{field}[{index}]", given.path);
    let mut out = Vec::new();
    for (index, item) in given.peers.endpoints.value().into_iter().flatten().enumerate() {
        let Part::Whole(labels) = item else { continue };
        let path = at("Endpoints", index);
        let mut report = Report::new(&object.source, "");
        let pods = selector::peer(labels, home(object), &path, &mut report);
        let pods = pods.map(|pods| Pods {
            path: path.clone(),
            namespaces: everywhere(),
            pods,
            service_account: None,
        });
        out.push(PeerView { pods, cidr: None, world: false });
    }
    let mut cidr = |path: String, text: Option<&str>| {
        let cidr =
            text.and_then(|text| Prefix::parse(text).ok().or_else(|| text.parse().ok().map(Prefix::host)));
        out.push(PeerView { pods: None, cidr: cidr.map(|cidr| (path, cidr)), world: false });
    };
    for (index, item) in given.peers.cidr.value().into_iter().flatten().enumerate() {
        cidr(at("CIDR", index), item.value().map(String::as_str));
    }
    for (index, item) in given.peers.cidr_set.value().into_iter().flatten().enumerate() {
        let path = format!("{}.cidr", at("CIDRSet", index));
        cidr(path, item.value().and_then(|set| set.cidr.as_deref()));
    }
    for item in given.peers.entities.value().into_iter().flatten() {
        let wide = ["all", "world", "world-ipv4", "world-ipv6"];
        let world = item.value().is_some_and(|entity| wide.contains(&entity.as_str()));
        out.push(PeerView { pods: None, cidr: None, world });
    }
    out
}

fn ports_of(item: &CiliumPortRule) -> Vec<PortView> {
    let given = item.ports.value().into_iter().flatten().enumerate();
    given
        .filter_map(|(index, port)| port_of(port.value()?, format!("{}.ports[{index}]", item.path)))
        .collect()
}

fn port_of(given: &CiliumPort, path: String) -> Option<PortView> {
    let word = given.protocol.as_deref().unwrap_or("ANY").to_ascii_uppercase();
    let text = given.port.as_deref()?;
    let protocol = match (Protocol::parse(&word), word.as_str()) {
        (Some(protocol), _) => protocol,
        // A name is of whatever protocol, a number of all of them.
        (None, "ANY") => Protocol::Other,
        (None, _) => return None,
    };
    let number = match text.parse::<u16>() {
        Ok(0) => PortNumber::Any,
        Ok(first) => {
            let end = given.end_port.filter(|end| *end != 0).map(u16::try_from);
            PortNumber::Range(first, end.transpose().ok()?.unwrap_or(first))
        }
        Err(_) => PortNumber::Named(text.to_ascii_lowercase().into()),
    };
    Some(PortView { path, number, protocol })
}

fn http_item<'o>(given: &'o CiliumHttpRule, path: &str) -> HttpView<'o> {
    let at = |field: &str| format!("{path}.{field}");
    let mut regexes = Vec::new();
    let fields = [(RegexOf::Path, "path", &given.path), (RegexOf::Host, "host", &given.host)];
    for (of, field, text) in fields {
        if let Some(text) = text {
            regexes.push(RegexView { path: at(field), of, text });
        }
    }
    // A method that is no more than letters names one; anything else is a pattern.
    let plain = given.method.as_deref().filter(|text| text.bytes().all(|b| b.is_ascii_alphabetic()));
    HttpView {
        methods: plain.map(|text| (at("method"), text)).into_iter().collect(),
        methods_path: at("method"),
        exact_path: None,
        regexes,
        hosts: given.host.as_ref().map(|_| at("host")),
    }
}
