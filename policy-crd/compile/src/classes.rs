//! Peer classes: identity × policy CIDRs × named-port numbers, and the prefixes that lead to them.
//!
//! Only what some policy reads makes a difference, so the number of classes follows the policies and not the
//! pods. Knows nothing of rules; the resolver asks it which classes a peer means.

use crate::index::{Index, NamedPort, PodEntry};
use crate::lower::PolicyIr;
use crate::peers::{PeerItem, Peers, PortItem, Ports, contains};
use crate::selector::Labels;
use sluice_policy::{Class, ClassId, ClassSet, Direction, Identity, Prefix, PrefixTable, Protocol};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// What the policies read of peers.
#[derive(Default)]
struct Read {
    /// Label keys of pods.
    keys: BTreeSet<Arc<str>>,
    /// Prefixes of `cidr` and `except`.
    cidrs: BTreeSet<Prefix>,
    /// Port names of egress rules.
    ports: HashSet<(Arc<str>, Protocol)>,
}

impl Read {
    fn new(index: &Index, policies: &[PolicyIr]) -> Self {
        let mut read = Self::default();
        for policy in policies {
            for direction in Direction::ALL {
                let side = policy.side(direction);
                for rule in side.allow.iter().chain(&side.deny) {
                    read.peers(index, &rule.peers);
                    if let (Direction::Egress, Ports::Some(items)) = (direction, &rule.ports) {
                        read.ports.extend(items.iter().filter_map(|item| match item {
                            PortItem::Named { name, protocol } => Some((name.clone(), *protocol)),
                            PortItem::Range(_) => None,
                        }));
                    }
                }
            }
        }
        read
    }

    fn peers(&mut self, index: &Index, peers: &Peers) {
        let Peers::Any(items) = peers else { return };
        for item in items {
            match item {
                PeerItem::Own(pods) | PeerItem::Elsewhere { pods, .. } => {
                    self.keys.extend(pods.keys().cloned());
                }
                // A node is its addresses, told apart as CIDRs are.
                PeerItem::Nodes(nodes) => self.cidrs.extend(index.hosts(nodes)),
                PeerItem::Block { cidr, except } | PeerItem::Outside { cidr, except } => {
                    self.cidrs.insert(*cidr);
                    self.cidrs.extend(except);
                }
            }
        }
    }
}

/// Who a class stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Who {
    Missing,
    Workload { namespace: Arc<str>, service_account: Arc<str>, labels: Labels },
    Node,
    World,
}

/// A class, before it has a number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    who: Who,
    /// The policy CIDRs that contain the address, sorted.
    cidrs: Vec<Prefix>,
    /// The named ports that egress rules read, sorted.
    ports: Vec<NamedPort>,
}

impl Key {
    fn missing() -> Self {
        Self { who: Who::Missing, cidrs: Vec::new(), ports: Vec::new() }
    }
}

/// Every class of a cluster.
pub(crate) struct Classes {
    keys: Vec<Key>,
    /// Address → class.
    pub(crate) addresses: PrefixTable<ClassId>,
    by_namespace: BTreeMap<Arc<str>, Vec<ClassId>>,
    by_cidr: HashMap<Prefix, Vec<ClassId>>,
}

/// All of IPv4.
fn everything_v4() -> Prefix {
    // A length of 0 always fits.
    Prefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).unwrap_or(Prefix::EVERYTHING)
}

impl Classes {
    pub(crate) fn new(index: &Index, policies: &[PolicyIr]) -> Self {
        let read = Read::new(index, policies);
        let cidrs = Cidrs::new(&read.cidrs);
        let mut table: BTreeMap<Prefix, Key> = BTreeMap::new();
        // Regions of the world: the longest of these prefixes says which CIDRs contain an address.
        let regions = read.cidrs.iter().chain(&index.pod_ranges).copied();
        for region in regions.chain([everything_v4(), Prefix::EVERYTHING]) {
            let of_pods = index.pod_ranges.iter().any(|range| contains(*range, region));
            let key = if of_pods {
                Key::missing()
            } else {
                Key { who: Who::World, cidrs: cidrs.containing(region), ports: Vec::new() }
            };
            table.insert(region, key);
        }
        for address in &index.node_addresses {
            let host = Prefix::host(*address);
            table.insert(host, Key { who: Who::Node, cidrs: cidrs.containing(host), ports: Vec::new() });
        }
        for pod in index.pods.iter().filter(|pod| pod.has_identity()) {
            let base = workload_key(pod, &read);
            for address in &pod.addresses {
                let host = Prefix::host(*address);
                table.insert(host, Key { cidrs: cidrs.containing(host), ..base.clone() });
            }
        }
        for address in &index.contested {
            table.insert(Prefix::host(*address), Key::missing());
        }
        Self::number(&table)
    }

    fn number(table: &BTreeMap<Prefix, Key>) -> Self {
        let distinct: BTreeSet<&Key> = table.values().collect();
        let missing = Key::missing();
        // MISSING sorts first and is always there: its number is 0.
        let keys: Vec<Key> = std::iter::once(&missing)
            .chain(distinct.into_iter().filter(|key| **key != missing))
            .cloned()
            .collect();
        let id = |index: usize| ClassId(u32::try_from(index).unwrap_or(u32::MAX));
        let numbers: HashMap<&Key, ClassId> =
            keys.iter().enumerate().map(|(index, key)| (key, id(index))).collect();
        let mut addresses = PrefixTable::new();
        for (prefix, key) in table {
            addresses.insert(*prefix, numbers.get(key).copied().unwrap_or(ClassId::MISSING));
        }
        let mut by_namespace: BTreeMap<Arc<str>, Vec<ClassId>> = BTreeMap::new();
        let mut by_cidr: HashMap<Prefix, Vec<ClassId>> = HashMap::new();
        for (index, key) in keys.iter().enumerate() {
            if let Who::Workload { namespace, .. } = &key.who {
                by_namespace.entry(namespace.clone()).or_default().push(id(index));
            }
            for cidr in &key.cidrs {
                by_cidr.entry(*cidr).or_default().push(id(index));
            }
        }
        drop(numbers);
        Self { keys, addresses, by_namespace, by_cidr }
    }

    fn key(&self, ClassId(id): ClassId) -> Option<&Key> {
        self.keys.get(id as usize)
    }

    /// The classes for people to read, by number.
    pub(crate) fn described(&self) -> Vec<Class> {
        let describe = |key: &Key| Class {
            identity: match &key.who {
                Who::Missing => Identity::Missing,
                Who::Node => Identity::Node,
                Who::World => Identity::World,
                Who::Workload { namespace, service_account, labels } => {
                    let labels: Vec<String> =
                        labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    Identity::Workload(
                        format!("{namespace}/{service_account}{{{}}}", labels.join(",")).into(),
                    )
                }
            },
            cidrs: key.cidrs.iter().map(|cidr| cidr.to_string().into()).collect(),
        };
        self.keys.iter().map(describe).collect()
    }

    /// The classes that a rule's peers mean, sorted; `None` for every class.
    pub(crate) fn resolve(&self, peers: &Peers, own: &str, index: &Index) -> Option<Vec<ClassId>> {
        let Peers::Any(items) = peers else { return None };
        let mut out = BTreeSet::new();
        for item in items {
            match item {
                PeerItem::Own(pods) => out.extend(self.pods(own, pods)),
                PeerItem::Elsewhere { namespaces, pods } => {
                    let selected = self.by_namespace.keys().filter(|name| {
                        index.namespaces.get(*name).is_some_and(|entry| namespaces.matches(&entry.labels))
                    });
                    for namespace in selected {
                        out.extend(self.pods(namespace, pods));
                    }
                }
                PeerItem::Nodes(nodes) => {
                    let hosts = index.hosts(nodes).filter_map(|host| self.by_cidr.get(&host));
                    out.extend(hosts.flatten().copied());
                }
                PeerItem::Block { cidr, except } | PeerItem::Outside { cidr, except } => {
                    let outside = matches!(item, PeerItem::Outside { .. });
                    let classes = self.by_cidr.get(cidr).into_iter().flatten().copied();
                    out.extend(classes.filter(|class| {
                        self.key(*class)
                            .filter(|key| !outside || key.who == Who::World)
                            .is_some_and(|key| !except.iter().any(|e| key.cidrs.binary_search(e).is_ok()))
                    }));
                }
            }
        }
        Some(out.into_iter().collect())
    }

    fn pods<'a>(
        &'a self,
        namespace: &str,
        pods: &'a crate::selector::Selector,
    ) -> impl Iterator<Item = ClassId> + 'a {
        let classes = self.by_namespace.get(namespace).into_iter().flatten().copied();
        classes.filter(|class| match self.key(*class).map(|key| &key.who) {
            Some(Who::Workload { labels, .. }) => pods.matches(labels),
            _ => false,
        })
    }

    /// For a named port on egress: each number that one of these peers has it on, with those peers.
    pub(crate) fn by_port_number(
        &self,
        peers: Option<&[ClassId]>,
        name: &str,
        protocol: Protocol,
    ) -> BTreeMap<u16, Vec<ClassId>> {
        let mut out: BTreeMap<u16, Vec<ClassId>> = BTreeMap::new();
        let mut add = |class: ClassId| {
            for port in self.key(class).into_iter().flat_map(|key| &key.ports) {
                if &*port.name == name && port.protocol == protocol {
                    out.entry(port.number).or_default().push(class);
                }
            }
        };
        match peers {
            Some(classes) => classes.iter().copied().for_each(&mut add),
            None => self.by_namespace.values().flatten().copied().for_each(&mut add),
        }
        out
    }
}

/// A set of classes for a rule's scope.
pub(crate) fn set(classes: Option<&[ClassId]>) -> ClassSet {
    classes.map_or(ClassSet::All, |classes| ClassSet::of(classes.iter().copied()))
}

fn workload_key(pod: &PodEntry, read: &Read) -> Key {
    let labels = pod.labels.iter().filter(|(key, _)| read.keys.contains(key.as_str()));
    let ports = pod.ports.iter().filter(|port| read.ports.contains(&(port.name.clone(), port.protocol)));
    Key {
        who: Who::Workload {
            namespace: pod.workload.namespace.clone(),
            service_account: pod.workload.service_account.clone(),
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
        },
        cidrs: Vec::new(),
        ports: ports.cloned().collect(),
    }
}

/// The policies' CIDRs by length: one look-up per length says which contain an address.
struct Cidrs<'a> {
    all: &'a BTreeSet<Prefix>,
    lengths: BTreeSet<u8>,
}

impl<'a> Cidrs<'a> {
    fn new(all: &'a BTreeSet<Prefix>) -> Self {
        Self { all, lengths: all.iter().map(|cidr| cidr.mapped_len()).collect() }
    }

    fn containing(&self, region: Prefix) -> Vec<Prefix> {
        let lengths = self.lengths.iter().take_while(|len| **len <= region.mapped_len());
        let mut out: Vec<Prefix> = lengths
            .map(|len| Prefix::from_mapped(region.mapped_bits(), *len))
            .filter(|cidr| self.all.contains(cidr) && contains(*cidr, region))
            .collect();
        out.sort_unstable();
        out
    }
}
