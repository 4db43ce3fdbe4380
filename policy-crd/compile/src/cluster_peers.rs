//! Peers and protocols of an upstream `ClusterNetworkPolicy` into values that can be resolved against a cluster.
//!
//! Knows nothing of pods, addresses or actions. `None` means that something in it is in doubt; the problem is
//! reported.

use crate::peers::{PeerItem, Peers, PortItem, Ports, parse_cidr};
use crate::report::Report;
use crate::selector::Selector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sluice_crd::{ClusterPeer, ClusterProtocol, ClusterRuleObject, DestinationPort, Part, TransportMatch};
use sluice_policy::{PortRange, Protocol};

/// The protocols whose ports have names.
const NAMED: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Lowers `from` or `to`, which upstream requires.
pub(crate) fn peers(rule: &ClusterRuleObject, report: &mut Report<'_>) -> Option<Peers> {
    let ingress = rule.path.starts_with("spec.ingress");
    let field = if ingress { "from" } else { "to" };
    let path = format!("{}.{field}", rule.path);
    let items = match &rule.peers {
        Part::Bad | Part::Flawed(_) => return None,
        Part::Whole(items) if !items.is_empty() => items,
        Part::Absent | Part::Whole(_) => {
            report.error(&path, "the rule names no peer", "write at least one; namespaces: {} is every pod");
            return None;
        }
    };
    let mut out = Vec::with_capacity(items.len());
    let mut clear = true;
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        clear &= match item {
            Part::Whole(given) => peer(given, ingress, &path, &mut out, report).is_some(),
            Part::Absent | Part::Bad | Part::Flawed(_) => false,
        };
    }
    // One doubtful item makes the rule doubtful; the others were still looked through for problems.
    clear.then_some(Peers::Any(out))
}

fn peer(
    given: &ClusterPeer,
    ingress: bool,
    path: &str,
    out: &mut Vec<PeerItem>,
    report: &mut Report<'_>,
) -> Option<()> {
    let ClusterPeer { namespaces, pods, nodes, networks, domain_names } = given;
    let set = [
        ("namespaces", namespaces.is_some()),
        ("pods", pods.is_some()),
        ("nodes", nodes.is_some()),
        ("networks", networks.is_some()),
        ("domainNames", domain_names.is_some()),
    ];
    let set: Vec<&str> = set.into_iter().filter(|(_, set)| *set).map(|(field, _)| field).collect();
    let [field] = set[..] else {
        let reason = match set.is_empty() {
            // So upstream reads a field that an older schema has cut away.
            true => "the peer names nobody".to_owned(),
            false => format!("a peer is exactly one of {}", set.join(", ")),
        };
        report.error(path, reason, "write one field, and an item for each of several");
        return None;
    };
    if ingress && !matches!(field, "namespaces" | "pods") {
        let remedy = "write namespaces or pods; L7NetworkPolicy and ClusterL7NetworkPolicy have ipBlock";
        report.error(&format!("{path}.{field}"), "this is no peer of an ingress rule", remedy);
        return None;
    }
    if let Some(given) = namespaces {
        let namespaces = selector(given, &format!("{path}.namespaces"), report)?;
        out.push(PeerItem::Elsewhere { namespaces, pods: Selector::default() });
    }
    if let Some(given) = pods {
        let namespaces = match &given.namespace_selector {
            None => Some(Selector::default()),
            Some(given) => selector(given, &format!("{path}.pods.namespaceSelector"), report),
        };
        let pods = selector(&given.pod_selector, &format!("{path}.pods.podSelector"), report);
        out.push(PeerItem::Elsewhere { namespaces: namespaces?, pods: pods? });
    }
    if let Some(given) = nodes {
        out.push(PeerItem::Nodes(selector(given, &format!("{path}.nodes"), report)?));
    }
    if let Some(given) = networks {
        return self::networks(given, &format!("{path}.networks"), out, report);
    }
    if domain_names.is_some() {
        let remedy = "write networks, or rules.tls.serverNames of a ClusterL7NetworkPolicy beside them";
        report.error(&format!("{path}.domainNames"), "names are not resolved here", remedy);
        return None;
    }
    Some(())
}

fn selector(given: &LabelSelector, path: &str, report: &mut Report<'_>) -> Option<Selector> {
    match Selector::new(given) {
        Ok(selector) => Some(selector),
        Err(bad) => {
            report.error(&format!("{path}.{}", bad.path), bad.reason, bad.remedy);
            None
        }
    }
}

/// CIDRs: whatever has such an address, a pod and a node as well.
fn networks(given: &[String], path: &str, out: &mut Vec<PeerItem>, report: &mut Report<'_>) -> Option<()> {
    if given.is_empty() {
        report.error(path, "an empty list names nobody", "write at least one CIDR, as 0.0.0.0/0");
        return None;
    }
    let mut clear = true;
    for (index, text) in given.iter().enumerate() {
        match parse_cidr(text) {
            Ok(cidr) => out.push(PeerItem::Block { cidr, except: Vec::new() }),
            Err(reason) => {
                report.error(&format!("{path}[{index}]"), reason, "correct it");
                clear = false;
            }
        }
    }
    clear.then_some(())
}

/// Lowers `protocols`. Absent means every protocol.
pub(crate) fn protocols(rule: &ClusterRuleObject, report: &mut Report<'_>) -> Option<Ports> {
    let path = format!("{}.protocols", rule.path);
    let items = match &rule.protocols {
        Part::Absent => return Some(Ports::All),
        Part::Bad | Part::Flawed(_) => return None,
        Part::Whole(items) if items.is_empty() => {
            report.error(&path, "an empty list names no protocol", "remove it to mean every protocol");
            return None;
        }
        Part::Whole(items) => items,
    };
    let mut out = Some(Vec::with_capacity(items.len()));
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let lowered = match item {
            Part::Whole(given) => protocol(given, rule, &path, report),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        };
        match (lowered, &mut out) {
            (Some(items), Some(out)) => out.extend(items),
            _ => out = None,
        }
    }
    out.map(Ports::Some)
}

fn protocol(
    given: &ClusterProtocol,
    rule: &ClusterRuleObject,
    path: &str,
    report: &mut Report<'_>,
) -> Option<Vec<PortItem>> {
    let ClusterProtocol { tcp, udp, sctp, destination_named_port } = given;
    match (tcp, udp, sctp, destination_named_port) {
        (Some(tcp), None, None, None) => transport(tcp, Protocol::Tcp, &format!("{path}.tcp"), report),
        (None, Some(udp), None, None) => transport(udp, Protocol::Udp, &format!("{path}.udp"), report),
        (None, None, Some(sctp), None) => transport(sctp, Protocol::Sctp, &format!("{path}.sctp"), report),
        (None, None, None, Some(name)) => {
            let path = format!("{path}.destinationNamedPort");
            if !name.chars().any(|c| c.is_ascii_alphabetic()) {
                let reason = format!("\"{}\" is no port name", name.escape_debug());
                report.error(&path, reason, "write the name of a container port");
                return None;
            }
            let nameless = |peer: &Part<ClusterPeer>| {
                peer.value()
                    .is_some_and(|p| p.nodes.is_some() || p.networks.is_some() || p.domain_names.is_some())
            };
            if rule.peers.value().is_some_and(|peers| peers.iter().any(nameless)) {
                let reason = "networks, nodes and domainNames have no named ports";
                report.error(&path, reason, "write a number, or a rule for pods and namespaces alone");
                return None;
            }
            let named = |protocol| PortItem::Named { name: name.as_str().into(), protocol };
            Some(NAMED.map(named).into())
        }
        _ => {
            let reason = "exactly one of tcp, udp, sctp and destinationNamedPort is expected here";
            report.error(path, reason, "write one, and an item for each of several");
            None
        }
    }
}

fn transport(
    given: &TransportMatch,
    protocol: Protocol,
    path: &str,
    report: &mut Report<'_>,
) -> Option<Vec<PortItem>> {
    let Some(given) = &given.destination_port else {
        // As with peers: an older schema may have cut away what was asked.
        let remedy = "write destinationPort; its range 1 to 65535 is every port";
        report.error(path, "nothing is asked of the protocol", remedy);
        return None;
    };
    let path = format!("{path}.destinationPort");
    let (first, last) = match given {
        DestinationPort { number: Some(number), range: None } => (*number, *number),
        DestinationPort { number: None, range: Some(range) } => (range.start, range.end),
        _ => {
            report.error(&path, "a port is either a number or a range", "write one of them");
            return None;
        }
    };
    let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
    let (Some(first), Some(last)) = (number(first), number(last)) else {
        report.error(&path, "no port number", "write a number from 1 to 65535");
        return None;
    };
    if given.range.is_some() && last <= first {
        let reason = format!("{last} is not greater than {first}");
        report.error(&format!("{path}.range"), reason, "write the greater number as end, or `number`");
        return None;
    }
    Some(vec![PortItem::Range(PortRange { protocol, first, last })])
}
