//! `from`, `to` and `ports` of a rule into values that can be resolved against a cluster.
//!
//! Knows nothing of pods or addresses. `None` means that something in it is in doubt; the problem is reported.

use crate::report::Report;
use crate::selector::Selector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_crd::{Entity, IpBlock, Part, Peer, Port, RuleObject};
use sluice_policy::{PortRange, Prefix, Protocol};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Who a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Peers {
    /// Everybody.
    All,
    /// Any of these.
    Any(Vec<PeerItem>),
}

/// One item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(dead_code, reason = "the kinds that say all of it are lowered next")]
pub(crate) enum PeerItem {
    /// Pods of the policy's own namespace.
    Own(Selector),
    /// Pods of namespaces with these labels.
    Elsewhere { namespaces: Selector, pods: Selector },
    /// The addresses of nodes with these labels.
    Nodes(Selector),
    /// Addresses.
    Block { cidr: Prefix, except: Vec<Prefix> },
    /// Addresses outside the cluster: of no pod and no node.
    Outside { cidr: Prefix, except: Vec<Prefix> },
    /// Pods that run as any of these, by namespace and name.
    ServiceAccounts(Vec<(Arc<str>, Arc<str>)>),
    /// Any of these entities.
    Entities(BTreeSet<Entity>),
    /// Whoever all of these name.
    Both(Vec<PeerItem>),
}

impl PeerItem {
    /// The item, or those that it is made of.
    pub(crate) fn parts(&self) -> Vec<&Self> {
        match self {
            Self::Both(parts) => parts.iter().flat_map(Self::parts).collect(),
            one => vec![one],
        }
    }
}

/// The ports a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ports {
    /// Every port of every protocol.
    All,
    /// Any of these.
    Some(Vec<PortItem>),
}

/// One item of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PortItem {
    /// By number.
    Range(PortRange),
    /// By the name of a container port.
    Named { name: Arc<str>, protocol: Protocol },
}

/// Lowers `from` or `to`. Absent or empty means everybody, as in `NetworkPolicy`.
pub(crate) fn peers(rule: &RuleObject, report: &mut Report<'_>) -> Option<Peers> {
    let field = if rule.path.starts_with("spec.ingress") { "from" } else { "to" };
    let items = match &rule.peers {
        Part::Absent => return Some(Peers::All),
        Part::Bad | Part::Flawed(_) => return None,
        Part::Whole(items) if items.is_empty() => return Some(Peers::All),
        Part::Whole(items) => items,
    };
    let mut out = Some(Vec::with_capacity(items.len()));
    for (index, item) in items.iter().enumerate() {
        let path = format!("{}.{field}[{index}]", rule.path);
        let lowered = match item {
            Part::Whole(peer) => peer_item(peer, &path, report),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        };
        match (lowered, &mut out) {
            (Some(item), Some(out)) => out.push(item),
            // One doubtful item makes the rule doubtful; the others are still looked through for problems.
            _ => out = None,
        }
    }
    out.map(Peers::Any)
}

fn peer_item(peer: &Peer, path: &str, report: &mut Report<'_>) -> Option<PeerItem> {
    if peer.service_accounts.is_some() {
        report.not_built(&format!("{path}.serviceAccounts"));
        return None;
    }
    if peer.entities.is_some() {
        report.not_built(&format!("{path}.entities"));
        return None;
    }
    let mut selector = |given: &LabelSelector, field: &str| match Selector::new(given) {
        Ok(selector) => Some(selector),
        Err(bad) => {
            report.error(&format!("{path}.{field}.{}", bad.path), bad.reason, bad.remedy);
            None
        }
    };
    let pods = peer.pod_selector.as_ref().map(|given| selector(given, "podSelector"));
    let namespaces = peer.namespace_selector.as_ref().map(|given| selector(given, "namespaceSelector"));
    match (&peer.ip_block, pods, namespaces) {
        (None, None, None) => {
            let remedy = "write podSelector, namespaceSelector or ipBlock; {} inside one of them selects all";
            report.error(path, "an empty peer names nobody", remedy);
            None
        }
        (None, Some(pods), None) => Some(PeerItem::Own(pods?)),
        (None, pods, Some(namespaces)) => {
            let pods = pods.unwrap_or_else(|| Some(Selector::default()));
            Some(PeerItem::Elsewhere { namespaces: namespaces?, pods: pods? })
        }
        (Some(block), None, None) => ip_block(block, &format!("{path}.ipBlock"), report),
        (Some(_), _, _) => {
            let reason = "ipBlock stands alone: an address has no labels";
            report.error(&format!("{path}.ipBlock"), reason, "make it an item of its own");
            None
        }
    }
}

fn ip_block(block: &IpBlock, path: &str, report: &mut Report<'_>) -> Option<PeerItem> {
    let cidr = match parse_cidr(&block.cidr) {
        Ok(cidr) => Some(cidr),
        Err(reason) => {
            report.error(&format!("{path}.cidr"), reason, "correct it");
            None
        }
    };
    let mut except = Vec::new();
    let mut sound = true;
    for (index, text) in block.except.iter().flatten().enumerate() {
        let path = format!("{path}.except[{index}]");
        match parse_cidr(text) {
            Err(reason) => {
                report.error(&path, reason, "correct it");
                sound = false;
            }
            Ok(inner) if cidr.is_some_and(|cidr| !contains(cidr, inner)) => {
                let reason = format!("{text} is not in {}", block.cidr);
                report.error(&path, reason, "an exception lies within its cidr");
                sound = false;
            }
            Ok(inner) => except.push(inner),
        }
    }
    except.sort_unstable();
    except.dedup();
    Some(PeerItem::Block { cidr: cidr.filter(|_| sound)?, except })
}

/// A CIDR of one family: IPv4 in IPv6's clothes would stand for both.
pub(crate) fn parse_cidr(text: &str) -> Result<Prefix, String> {
    let prefix = Prefix::parse(text)?;
    if text.contains(':') && is_v4(prefix) {
        return Err(format!("\"{text}\" is IPv4 written as IPv6: write it as IPv4"));
    }
    Ok(prefix)
}

/// Whether the prefix is one of IPv4.
pub(crate) fn is_v4(prefix: Prefix) -> bool {
    prefix.mapped_len() >= 96 && prefix.mapped_bits() >> 32 == 0xffff
}

/// Whether a CIDR contains a whole region: `::/0` holds no IPv4 address.
pub(crate) fn contains(cidr: Prefix, region: Prefix) -> bool {
    cidr.covers(region) && is_v4(cidr) == is_v4(region)
}

/// Lowers `ports`. Absent or empty means every port of every protocol, as in `NetworkPolicy`.
pub(crate) fn ports(rule: &RuleObject, report: &mut Report<'_>) -> Option<Ports> {
    let items = match &rule.ports {
        Part::Absent => return Some(Ports::All),
        Part::Bad | Part::Flawed(_) => return None,
        Part::Whole(items) if items.is_empty() => return Some(Ports::All),
        Part::Whole(items) => items,
    };
    let mut out = Some(Vec::with_capacity(items.len()));
    for (index, item) in items.iter().enumerate() {
        let path = format!("{}.ports[{index}]", rule.path);
        let lowered = match item {
            Part::Whole(port) => port_item(port, &path, report),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        };
        match (lowered, &mut out) {
            (Some(item), Some(out)) => out.push(item),
            _ => out = None,
        }
    }
    out.map(Ports::Some)
}

fn port_item(port: &Port, path: &str, report: &mut Report<'_>) -> Option<PortItem> {
    let word = port.protocol.as_deref().unwrap_or("TCP");
    let Some(protocol) = Protocol::parse(word).filter(|protocol| protocol.has_ports()) else {
        let reason = format!("\"{word}\" is no protocol with ports");
        report.error(&format!("{path}.protocol"), reason, "write TCP, UDP or SCTP");
        return None;
    };
    let end = port.end_port;
    match &port.port {
        None if end.is_some() => {
            report.error(&format!("{path}.endPort"), "a range without its first port", "write `port`");
            None
        }
        None => Some(PortItem::Range(PortRange::all(protocol))),
        Some(IntOrString::Int(first)) => {
            let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
            let (Some(first), Some(last)) = (number(*first), number(end.unwrap_or(*first))) else {
                report.error(&format!("{path}.port"), "no port number", "write a number from 1 to 65535");
                return None;
            };
            if last < first {
                let reason = format!("{last} is before {first}");
                report.error(&format!("{path}.endPort"), reason, "write the greater number as endPort");
                return None;
            }
            Some(PortItem::Range(PortRange { protocol, first, last }))
        }
        Some(IntOrString::String(_)) if end.is_some() => {
            report.error(&format!("{path}.endPort"), "a range from a named port", "write numbers");
            None
        }
        Some(IntOrString::String(name)) => {
            if !name.chars().any(|c| c.is_ascii_alphabetic()) {
                let reason = format!("\"{}\" is no port name", name.escape_debug());
                report.error(&format!("{path}.port"), reason, "write a number without quotes, or a name");
                return None;
            }
            Some(PortItem::Named { name: name.as_str().into(), protocol })
        }
    }
}
