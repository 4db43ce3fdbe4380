//! Peers and ports of a lowered rule, as our kinds write them.
//!
//! Knows nothing of what is said over a connection. Of a deny the superset is written where a peer cannot be said
//! exactly, of an allow nothing.

use super::labels::{Chosen, fits, written};
use super::loss::LossKind::{Dropped, Frozen, Narrowed};
use super::loss::Told;
use crate::index::{NAME_LABEL, NamespaceEntry};
use crate::peers::{PeerItem, Peers, PortItem, Ports};
use crate::selector::Selector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_crd::limits::{MAX_EXCEPT, MAX_PORT_NAME, MAX_SERVICE_ACCOUNTS};
use sluice_crd::{Entity, IpBlock, Peer, Port, ServiceAccountRef};
use sluice_policy::{PortRange, Prefix};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The namespaces of the cluster, by name.
pub(super) type Namespaces = BTreeMap<Arc<str>, NamespaceEntry>;

/// A rule's place: where it stands, whose it is, and what it does.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    /// Its path in the original.
    pub(super) path: &'a str,
    /// The namespace of the result.
    pub(super) namespace: &'a str,
    pub(super) namespaces: &'a Namespaces,
    pub(super) deny: bool,
}

/// Who a rule names.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Whom {
    Everybody,
    /// Any of these; nobody, where there are none.
    Any(Vec<Peer>),
}

impl Whom {
    /// Whether `NetworkPolicy` can say it, with the same meaning.
    pub(super) fn is_plain(&self) -> bool {
        match self {
            Self::Everybody => true,
            Self::Any(peers) => peers.iter().all(|peer| {
                let labels = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
                peer.entities.is_none()
                    && peer.service_accounts.is_none()
                    && !(labels && peer.ip_block.is_some())
            }),
        }
    }
}

/// The peers of a rule.
pub(super) fn whom(peers: &Peers, at: At<'_>, told: &mut Told<'_>) -> Whom {
    let Peers::Any(items) = peers else { return Whom::Everybody };
    let mut out: Vec<Peer> = Vec::new();
    let mut entities: Vec<Entity> = Vec::new();
    let families = items.iter().filter(|item| is_family(item)).count();
    for item in items {
        match item {
            PeerItem::Entities(some) => entities.extend(some),
            // Both families are the world.
            item if families > 1 && is_family(item) => entities.push(Entity::World),
            item => {
                for peer in peer(item, at, told) {
                    if !out.contains(&peer) {
                        out.push(peer);
                    }
                }
            }
        }
    }
    let mut seen = BTreeSet::new();
    entities.retain(|entity| seen.insert(*entity));
    if !entities.is_empty() {
        out.push(Peer { entities: Some(entities), ..Peer::default() });
    }
    Whom::Any(out)
}

/// Whether it is everything of one family that is outside the cluster.
fn is_family(item: &PeerItem) -> bool {
    matches!(item, PeerItem::Outside { cidr, except } if cidr.mapped_len() == all_of(*cidr) && except.is_empty())
}

/// The length, in IPv6's 128 bits, of a prefix that holds all of its family.
fn all_of(cidr: Prefix) -> u8 {
    if crate::peers::is_v4(cidr) { 96 } else { 0 }
}

fn peer(item: &PeerItem, at: At<'_>, told: &mut Told<'_>) -> Vec<Peer> {
    match item {
        PeerItem::Own(pods) => {
            vec![Peer { pod_selector: Some(written(pods.requirements())), ..Peer::default() }]
        }
        PeerItem::Elsewhere { namespaces, pods } => selected(namespaces, pods, at, told),
        PeerItem::Block { cidr, except } => {
            let block = |ip_block| Peer { ip_block: Some(ip_block), ..Peer::default() };
            block_of(*cidr, except, at, told).map(block).into_iter().collect()
        }
        PeerItem::Outside { cidr, except } => {
            let entities = Some(vec![Entity::World]);
            let block = |ip_block| Peer { ip_block: Some(ip_block), entities, ..Peer::default() };
            block_of(*cidr, except, at, told).map(block).into_iter().collect()
        }
        PeerItem::Entities(entities) => {
            vec![Peer { entities: Some(entities.iter().copied().collect()), ..Peer::default() }]
        }
        PeerItem::ServiceAccounts(accounts) => {
            let one = |(namespace, name): &(Arc<str>, Arc<str>)| ServiceAccountRef {
                namespace: Some(namespace.to_string()),
                name: name.to_string(),
            };
            let all: Vec<ServiceAccountRef> = accounts.iter().map(one).collect();
            let some = |some: &[_]| Peer { service_accounts: Some(some.to_vec()), ..Peer::default() };
            all.chunks(MAX_SERVICE_ACCOUNTS).map(some).collect()
        }
        PeerItem::Both(parts) => both(parts, at, told),
        PeerItem::Nodes(_) => {
            told.tell(Dropped, at.path, "nodes by their labels are no peer here", "name their addresses");
            Vec::new()
        }
    }
}

/// Whoever all of the parts name, where one item can say it.
fn both(parts: &[PeerItem], at: At<'_>, told: &mut Told<'_>) -> Vec<Peer> {
    let said: Vec<Vec<Peer>> = parts.iter().map(|part| peer(part, at, told)).collect();
    let merged = said.iter().try_fold(Peer::default(), |all, part| match &part[..] {
        [one] => merge(all, one),
        _ => None,
    });
    match (merged, at.deny) {
        (Some(merged), _) => vec![merged],
        (None, true) => {
            let reason =
                "what all of several parts name cannot be said: the rule denies as if one of them were all";
            told.tell(Narrowed, at.path, reason, "write the peers one by one");
            said.into_iter().next().unwrap_or_default()
        }
        (None, false) => {
            let reason = "what all of several parts name cannot be said: the peer is left out";
            told.tell(Dropped, at.path, reason, "write the peers one by one");
            Vec::new()
        }
    }
}

/// One item of both. `None`: they say the same field, or speak of labels, which one selector alone can.
fn merge(all: Peer, one: &Peer) -> Option<Peer> {
    fn either<T: Clone>(a: Option<T>, b: Option<&T>) -> Option<Option<T>> {
        if a.is_some() && b.is_some() { None } else { Some(a.or_else(|| b.cloned())) }
    }
    let labels = |peer: &Peer| peer.pod_selector.is_some() || peer.namespace_selector.is_some();
    if labels(&all) && labels(one) {
        return None;
    }
    Some(Peer {
        pod_selector: either(all.pod_selector, one.pod_selector.as_ref())?,
        namespace_selector: either(all.namespace_selector, one.namespace_selector.as_ref())?,
        ip_block: either(all.ip_block, one.ip_block.as_ref())?,
        service_accounts: either(all.service_accounts, one.service_accounts.as_ref())?,
        entities: either(all.entities, one.entities.as_ref())?,
    })
}

/// `ipBlock`. `None`: it has more exceptions than one can have, and an allow may not lose them.
fn block_of(cidr: Prefix, except: &[Prefix], at: At<'_>, told: &mut Told<'_>) -> Option<IpBlock> {
    let mut given: Vec<String> = except.iter().map(ToString::to_string).collect();
    if given.len() > MAX_EXCEPT {
        let reason = format!("{} exceptions, an ipBlock takes {MAX_EXCEPT}", given.len());
        if !at.deny {
            told.tell(
                Dropped,
                at.path,
                format!("{reason}: the peer is left out"),
                "write the CIDRs that remain",
            );
            return None;
        }
        told.tell(
            Narrowed,
            at.path,
            format!("{reason}: the rule denies them, too"),
            "write the CIDRs that remain",
        );
        given.clear();
    }
    Some(IpBlock { cidr: cidr.to_string(), except: (!given.is_empty()).then_some(given) })
}

/// Pods by their labels, their namespace's and their service account.
fn selected(namespaces: &Selector, pods: &Selector, at: At<'_>, told: &mut Told<'_>) -> Vec<Peer> {
    let Some(mut chosen) = Chosen::new(pods) else { return Vec::new() };
    chosen.namespaces.extend(namespaces.requirements().iter().cloned());
    if !fits(&chosen.pods) || !fits(&chosen.namespaces) {
        return unsaid(&Chosen::default(), "the selector is longer than our kinds take", at, told);
    }
    if chosen.accounts.is_empty() {
        return vec![by_labels(&chosen, at)];
    }
    let accounts = chosen.account_names();
    let Some(names) = accounts else {
        return unsaid(&chosen, "service accounts can be named, not ruled out", at, told);
    };
    let homes: Vec<Arc<str>> = if let (true, Some(named)) = (chosen.asks_names_alone(), chosen.named()) {
        let named = named.iter().filter(|name| chosen.takes_namespace(&name_label(name)));
        named.cloned().collect()
    } else {
        let reason = "service accounts go with the name of their namespace: the namespaces there are today are written out";
        told.tell(Frozen, at.path, reason, "add the namespaces that are made later");
        let taken = at.namespaces.iter().filter(|(_, entry)| chosen.takes_namespace(&entry.labels));
        taken.map(|(name, _)| name.clone()).collect()
    };
    let all: Vec<ServiceAccountRef> = homes
        .iter()
        .flat_map(|home| {
            let namespace = (**home != *at.namespace).then(|| home.to_string());
            names
                .iter()
                .map(move |name| ServiceAccountRef { namespace: namespace.clone(), name: name.to_string() })
        })
        .collect();
    let with_labels = |accounts: &[ServiceAccountRef]| {
        // Accounts alone say it all, unless labels are asked for beside them.
        let base = if chosen.pods.is_empty() { Peer::default() } else { by_labels(&chosen, at) };
        Peer { service_accounts: Some(accounts.to_vec()), ..base }
    };
    all.chunks(MAX_SERVICE_ACCOUNTS).map(with_labels).collect()
}

/// What cannot be said: of an allow nothing is granted, of a deny the limit is lost.
fn unsaid(chosen: &Chosen, reason: &str, at: At<'_>, told: &mut Told<'_>) -> Vec<Peer> {
    if at.deny {
        let reason = format!("{reason}: the rule denies as if this did not limit it");
        told.tell(Narrowed, at.path, reason, "label the pods, and select by the label");
        return vec![by_labels(chosen, at)];
    }
    let reason = format!("{reason}: the peer is left out");
    told.tell(Dropped, at.path, reason, "label the pods, and select by the label");
    Vec::new()
}

fn name_label(name: &str) -> crate::selector::Labels {
    [(NAME_LABEL.to_owned(), name.to_owned())].into()
}

fn by_labels(chosen: &Chosen, at: At<'_>) -> Peer {
    if chosen.is_of(at.namespace) {
        return Peer { pod_selector: Some(written(&chosen.pods)), ..Peer::default() };
    }
    Peer {
        pod_selector: (!chosen.pods.is_empty()).then(|| written(&chosen.pods)),
        namespace_selector: Some(written(&chosen.namespaces)),
        ..Peer::default()
    }
}

/// The ports of a rule; `None`: every one of every protocol.
pub(super) fn ports(ports: &Ports, at: At<'_>, told: &mut Told<'_>) -> Option<Vec<Port>> {
    let Ports::Some(items) = ports else { return None };
    let mut out: Vec<Port> = Vec::new();
    for item in items {
        let port = match item {
            PortItem::Range(range) if range.protocol.has_ports() => numbered(*range),
            PortItem::Range(range) => {
                let reason = format!("our kinds do not name {}", range.protocol);
                if at.deny {
                    let reason = format!("{reason}: the rule denies as if this did not limit it");
                    told.tell(Narrowed, at.path, reason, "remove the rule from the result, if ICMP may pass");
                    return None;
                }
                let reason = format!("{reason}: it is not allowed by the result");
                told.tell(Dropped, at.path, reason, "allow every protocol from these peers, if that may be");
                continue;
            }
            PortItem::Named { name, protocol } if name.len() <= MAX_PORT_NAME => Port {
                port: Some(IntOrString::String(name.to_string())),
                protocol: Some(protocol.to_string()),
                end_port: None,
            },
            PortItem::Named { name, .. } => {
                let reason = format!("no port can have the name \"{}\": it is left out", name.escape_debug());
                told.tell(Dropped, at.path, reason, "write a name of up to 15 letters");
                continue;
            }
        };
        if !out.contains(&port) {
            out.push(port);
        }
    }
    Some(out)
}

fn numbered(range: PortRange) -> Port {
    let PortRange { protocol, first, last } = range;
    let every = range == PortRange::all(protocol);
    Port {
        port: (!every).then(|| IntOrString::Int(first.into())),
        protocol: Some(protocol.to_string()),
        end_port: (!every && last > first).then(|| last.into()),
    }
}
