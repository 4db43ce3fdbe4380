//! `from` and `to` of a rule into values that can be resolved against a cluster.
//!
//! Knows nothing of pods or addresses. `None` means that something in it is in doubt; the problem is reported.

use crate::report::Report;
use crate::selector::Selector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sluice_crd::limits::{MAX_LABEL, MAX_OBJECT_NAME};
use sluice_crd::{Entity, IpBlock, Part, Peer, RuleObject, ServiceAccountRef};
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

/// Whose rules are lowered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whose<'a> {
    /// The policy's namespace; `None` for one of no namespace.
    pub(crate) namespace: Option<&'a Arc<str>>,
    /// Of our kinds: `ipBlock` may stand beside selectors, which `NetworkPolicy` forbids.
    pub(crate) ours: bool,
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
pub(crate) fn peers(rule: &RuleObject, whose: Whose<'_>, report: &mut Report<'_>) -> Option<Peers> {
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
            Part::Whole(peer) => peer_item(peer, whose, &path, report),
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

/// Lowers one item: its parts are `ANDed`.
fn peer_item(peer: &Peer, whose: Whose<'_>, path: &str, report: &mut Report<'_>) -> Option<PeerItem> {
    let block = peer.ip_block.as_ref().map(|block| ip_block(block, &format!("{path}.ipBlock"), report));
    let pods = pods(peer, path, report);
    let accounts = peer
        .service_accounts
        .as_deref()
        .map(|given| accounts(given, whose, &format!("{path}.serviceAccounts"), report));
    let entities = peer.entities.as_deref().map(|given| entities(given, &format!("{path}.entities"), report));
    if !whose.ours && block.is_some() && pods.is_some() {
        let reason = "ipBlock stands alone: an address has no labels";
        report.error(&format!("{path}.ipBlock"), reason, "make it an item of its own");
        return None;
    }
    // One doubtful part makes the item doubtful.
    let given: Vec<Option<PeerItem>> = [pods, accounts, block, entities].into_iter().flatten().collect();
    let mut parts: Vec<PeerItem> = given.into_iter().collect::<Option<_>>()?;
    if parts.len() > 1 {
        if let Some(reason) = nobody(&parts, whose) {
            report.warn(path, format!("the item names nobody: {reason}"), "make it several items");
        }
        return Some(PeerItem::Both(parts));
    }
    let one = parts.pop();
    if one.is_none() {
        let others = if whose.ours { "ipBlock, serviceAccounts or entities" } else { "or ipBlock" };
        let remedy = format!(
            "write podSelector, namespaceSelector, {others}; {{}} inside one of the selectors selects all"
        );
        report.error(path, "an empty peer names nobody", remedy);
    }
    one
}

/// Lowers the selectors of an item; outer `None` where it has none.
#[allow(clippy::option_option, reason = "no selector is not a selector in doubt")]
fn pods(peer: &Peer, path: &str, report: &mut Report<'_>) -> Option<Option<PeerItem>> {
    let mut selector = |given: &LabelSelector, field: &str| match Selector::new(given) {
        Ok(selector) => Some(selector),
        Err(bad) => {
            report.error(&format!("{path}.{field}.{}", bad.path), bad.reason, bad.remedy);
            None
        }
    };
    let pods = peer.pod_selector.as_ref().map(|given| selector(given, "podSelector"));
    let namespaces = peer.namespace_selector.as_ref().map(|given| selector(given, "namespaceSelector"));
    match (pods, namespaces) {
        (None, None) => None,
        (Some(pods), None) => Some(pods.map(PeerItem::Own)),
        (pods, Some(namespaces)) => {
            let pods = pods.unwrap_or_else(|| Some(Selector::default()));
            Some(namespaces.zip(pods).map(|(namespaces, pods)| PeerItem::Elsewhere { namespaces, pods }))
        }
    }
}

fn accounts(
    given: &[ServiceAccountRef],
    whose: Whose<'_>,
    path: &str,
    report: &mut Report<'_>,
) -> Option<PeerItem> {
    if given.is_empty() {
        report.error(path, "an empty list names nobody", "write at least one, or remove it");
        return None;
    }
    let mut out = Some(Vec::with_capacity(given.len()));
    for (index, ServiceAccountRef { namespace, name }) in given.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let namespace: Option<Arc<str>> = match namespace {
            Some(namespace) if is_dns(namespace, false) => Some(namespace.as_str().into()),
            Some(namespace) => {
                let reason = format!("\"{}\" is no name of a namespace", namespace.escape_debug());
                report.error(&format!("{path}.namespace"), reason, "correct it");
                None
            }
            None => {
                if whose.namespace.is_none() {
                    let reason = "the policy is of no namespace whose service account this could be";
                    report.error(&path, reason, "write its namespace");
                }
                whose.namespace.cloned()
            }
        };
        if !is_dns(name, true) {
            let reason = format!("\"{}\" is no name of a service account", name.escape_debug());
            report.error(&format!("{path}.name"), reason, "write its metadata.name");
            out = None;
        }
        match (namespace, &mut out) {
            (Some(namespace), Some(out)) => out.push((namespace, name.as_str().into())),
            _ => out = None,
        }
    }
    out.map(PeerItem::ServiceAccounts)
}

fn entities(given: &[Entity], path: &str, report: &mut Report<'_>) -> Option<PeerItem> {
    if given.is_empty() {
        report.error(path, "an empty list names nobody", "write at least one, or remove it");
        return None;
    }
    Some(PeerItem::Entities(given.iter().copied().collect()))
}

/// Why nobody can be all of these, if nobody can.
fn nobody(parts: &[PeerItem], whose: Whose<'_>) -> Option<&'static str> {
    let own = parts.iter().any(|part| matches!(part, PeerItem::Own(_)));
    let pods = own
        || parts.iter().any(|part| matches!(part, PeerItem::Elsewhere { .. } | PeerItem::ServiceAccounts(_)));
    parts.iter().find_map(|part| match part {
        PeerItem::Entities(entities) => {
            let of_pods = [Entity::Cluster, Entity::KubeApiserver];
            (pods && !of_pods.iter().any(|entity| entities.contains(entity)))
                .then_some("no pod is Host, RemoteNode or World")
        }
        PeerItem::ServiceAccounts(accounts) => {
            let elsewhere = |(namespace, _): &(Arc<str>, Arc<str>)| {
                whose.namespace.is_some_and(|own| own != namespace)
            };
            (own && accounts.iter().all(elsewhere)).then_some(
                "podSelector alone means this namespace, and the service accounts are of others: add namespaceSelector",
            )
        }
        _ => None,
    })
}

/// Whether it is a label by RFC 1123, or labels with dots between them.
fn is_dns(text: &str, dots: bool) -> bool {
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    match dots {
        true => text.len() <= MAX_OBJECT_NAME && text.split('.').all(label),
        false => text.len() <= MAX_LABEL && label(text),
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
