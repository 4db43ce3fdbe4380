//! What the peers and ports of a policy's rules are in one snapshot.
//!
//! The same for every pod that the policy selects, but for the numbers of its own named ports; where a peer is the
//! pod's own node, the same for every pod of a node. Kept from one snapshot to the next. Knows nothing of profiles.

use crate::classes::{Classes, Home, Numbered};
use crate::index::{Index, PodEntry};
use crate::lower::{IsolationIr, PolicyIr, RuleIr, SideIr};
use crate::lowering::LoweredPolicy;
use crate::peers::{PeerItem, Peers, PortItem, Ports};
use crate::stats::Stats;
use sluice_crd::Entity;
use sluice_policy::{ClassSet, IsolatedPorts, PortRange, PortSet, Protocol, Scope};
use std::collections::HashMap;
use std::sync::Arc;

/// What a policy's rules resolve to.
#[derive(Debug)]
pub(crate) struct Found {
    /// Two with one serial are the very same.
    pub(crate) serial: u64,
    /// The peers of each ingress rule, allows first.
    pub(crate) ingress: Vec<ClassSet>,
    /// The scopes of each egress rule, allows first.
    pub(crate) egress: Vec<Vec<Scope>>,
    /// What is isolated on egress.
    pub(crate) isolated: Option<IsolatedPorts>,
}

impl Found {
    fn says_the_same(&self, other: &Self) -> bool {
        (&self.ingress, &self.egress, &self.isolated) == (&other.ingress, &other.egress, &other.isolated)
    }
}

/// By policy, and by node where that counts.
pub(crate) type Kept = HashMap<(u64, Option<Arc<str>>), Arc<Found>>;

/// A cluster, and how its classes are numbered.
#[derive(Clone, Copy)]
pub(crate) struct Ground<'a> {
    pub(crate) index: &'a Index,
    pub(crate) classes: &'a Classes,
    pub(crate) numbered: &'a Numbered,
    pub(crate) policies: &'a [LoweredPolicy],
    /// By policy: whether its peers depend on the node of the pod that it selects.
    pub(crate) local: &'a [bool],
}

/// The classes of peers: by place, sorted, or `None` for every one; and as a set of numbers.
type Classed = (Option<Arc<[usize]>>, ClassSet);

/// Finds them.
pub(crate) struct Finder<'a, 'c> {
    ground: Ground<'a>,
    /// What was found for the last snapshot.
    before: Kept,
    /// Nothing that peers are resolved by has changed since.
    unchanged: bool,
    now: Kept,
    /// The last serial given.
    serial: &'c mut u64,
    /// By the namespace and the node that the peers depend on.
    memo: HashMap<(&'a str, &'a str, &'a Peers), Classed>,
}

impl<'a, 'c> Finder<'a, 'c> {
    pub(crate) fn new(ground: Ground<'a>, before: Kept, unchanged: bool, serial: &'c mut u64) -> Self {
        Self { ground, before, unchanged, now: Kept::new(), serial, memo: HashMap::new() }
    }

    /// What to find the same by the next time.
    pub(crate) fn finish(self) -> Kept {
        self.now
    }

    /// What a policy resolves to, for pods of this node.
    pub(crate) fn found(&mut self, number: usize, node: &'a Arc<str>, stats: &mut Stats) -> Arc<Found> {
        let key = (self.ground.policies[number].id, self.ground.local[number].then(|| node.clone()));
        if let Some(known) = self.now.get(&key) {
            return known.clone();
        }
        let before = self.before.remove(&key);
        let found = match before {
            Some(known) if self.unchanged => known,
            before => {
                stats.resolved += 1;
                let found = self.find(number, node);
                let same = before.filter(|known| known.says_the_same(&found));
                same.unwrap_or_else(|| {
                    *self.serial += 1;
                    Arc::new(Found { serial: *self.serial, ..found })
                })
            }
        };
        self.now.insert(key, found.clone());
        found
    }

    fn find(&mut self, number: usize, node: &'a str) -> Found {
        let ir: &'a PolicyIr = &self.ground.policies[number].ir;
        let namespace = &*ir.origin.namespace;
        let ingress = ir.ingress.allow.iter().chain(&ir.ingress.deny);
        let ingress = ingress.map(|rule| self.resolve(namespace, node, &rule.peers).1).collect();
        let mut egress: Vec<Vec<Scope>> =
            ir.egress.allow.iter().map(|rule| self.egress(namespace, node, rule)).collect();
        for rule in &ir.egress.deny {
            let mut deny = self.egress(namespace, node, rule);
            deny.extend(unknown_ports(&rule.ports));
            egress.push(deny);
        }
        let isolated = self.isolated(namespace, node, &ir.egress.isolation);
        Found { serial: 0, ingress, egress, isolated }
    }

    fn egress(&mut self, namespace: &'a str, node: &'a str, rule: &'a RuleIr) -> Vec<Scope> {
        let (peers, set) = self.resolve(namespace, node, &rule.peers);
        let Ports::Some(items) = &rule.ports else {
            return vec![Scope { peers: set, ports: PortSet::All }];
        };
        let mut ranges = Vec::new();
        let mut scopes = Vec::new();
        for item in items {
            match item {
                PortItem::Range(range) => ranges.push(*range),
                PortItem::Named { name, protocol } => {
                    let numbers = self.ground.classes.by_port_number(peers.as_deref(), name, *protocol);
                    scopes.extend(numbers.into_iter().map(|(number, places)| Scope {
                        peers: self.ground.numbered.set(Some(&places)),
                        ports: PortSet::Ranges(vec![single(*protocol, number)]),
                    }));
                }
            }
        }
        if !ranges.is_empty() {
            scopes.insert(0, Scope { peers: set, ports: PortSet::Ranges(ranges) });
        }
        scopes
    }

    /// The ports of peers that a policy isolates.
    fn isolated(
        &mut self,
        namespace: &'a str,
        node: &'a str,
        isolation: &'a IsolationIr,
    ) -> Option<IsolatedPorts> {
        let listed = match isolation {
            IsolationIr::Nothing => return None,
            IsolationIr::Everything => return Some(IsolatedPorts::All),
            IsolationIr::Listed(listed) => listed,
        };
        let mut out = Vec::new();
        for (peers, ports) in listed {
            let Ports::Some(items) = ports else { return Some(IsolatedPorts::All) };
            for item in items {
                match item {
                    PortItem::Range(range) => out.push((range.first, range.last)),
                    PortItem::Named { name, protocol } => {
                        let (peers, _) = self.resolve(namespace, node, peers);
                        let numbers = self.ground.classes.by_port_number(peers.as_deref(), name, *protocol);
                        out.extend(numbers.into_keys().map(|number| (number, number)));
                    }
                }
            }
        }
        listed_ports(out)
    }

    fn resolve(&mut self, namespace: &'a str, node: &'a str, peers: &'a Peers) -> Classed {
        let node = if reads_node(peers) { node } else { "" };
        let key = (if reads_namespace(peers) { namespace } else { "" }, node, peers);
        if let Some(known) = self.memo.get(&key) {
            return known.clone();
        }
        let Ground { index, classes, numbered, .. } = self.ground;
        let places = classes.resolve(peers, Home { namespace, node }, index);
        let set = numbered.set(places.as_deref());
        let classed: Classed = (places.map(Into::into), set);
        self.memo.insert(key, classed.clone());
        classed
    }
}

/// As a profile has them. Where no port is left nothing is isolated.
pub(crate) fn listed_ports(mut ports: Vec<(u16, u16)>) -> Option<IsolatedPorts> {
    ports.sort_unstable();
    ports.dedup();
    (!ports.is_empty()).then_some(IsolatedPorts::Listed(ports))
}

/// Whether the peers of a policy's rules depend on the node of the pod that it selects.
pub(crate) fn is_local(policy: &PolicyIr) -> bool {
    let side = |side: &SideIr| {
        let listed = match &side.isolation {
            IsolationIr::Listed(listed) => listed.iter().any(|(peers, _)| reads_node(peers)),
            IsolationIr::Nothing | IsolationIr::Everything => false,
        };
        listed || side.allow.iter().chain(&side.deny).any(|rule| reads_node(&rule.peers))
    };
    side(&policy.ingress) || side(&policy.egress)
}

fn reads_node(peers: &Peers) -> bool {
    let Peers::Any(items) = peers else { return false };
    items.iter().flat_map(PeerItem::parts).any(|item| match item {
        PeerItem::Entities(entities) => {
            entities.contains(&Entity::Host) || entities.contains(&Entity::RemoteNode)
        }
        _ => false,
    })
}

fn reads_namespace(peers: &Peers) -> bool {
    let Peers::Any(items) = peers else { return false };
    items.iter().flat_map(PeerItem::parts).any(|item| matches!(item, PeerItem::Own(_)))
}

/// The ports that a deny has at a peer nobody knows: what its named ports are there cannot be known, so they are any
/// of their protocol. No class is in the scope; the unknown peer is in every deny.
fn unknown_ports(ports: &Ports) -> Option<Scope> {
    let Ports::Some(items) = ports else { return None };
    let named = items.iter().filter_map(|item| match item {
        PortItem::Named { protocol, .. } => Some(PortRange::all(*protocol)),
        PortItem::Range(_) => None,
    });
    let mut ranges: Vec<PortRange> = named.collect();
    ranges.sort_unstable();
    ranges.dedup();
    (!ranges.is_empty()).then(|| Scope { peers: ClassSet::of([]), ports: PortSet::Ranges(ranges) })
}

const fn single(protocol: Protocol, number: u16) -> PortRange {
    PortRange { protocol, first: number, last: number }
}

/// The ranges of a port item on the pod that is reached.
pub(crate) fn on_pod(item: &PortItem, pod: &PodEntry) -> Vec<PortRange> {
    match item {
        PortItem::Range(range) => vec![*range],
        PortItem::Named { name, protocol } => {
            pod.resolve(name, *protocol).map(|number| single(*protocol, number)).collect()
        }
    }
}
