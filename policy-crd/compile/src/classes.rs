//! Peer classes: identity × policy CIDRs × named-port numbers, and the prefixes that lead to them.
//!
//! Only what some policy reads makes a difference, so the number of classes follows the policies and not the
//! pods. Knows nothing of rules; the resolver asks it which classes a peer means.

use crate::NodeScope;
use crate::index::{Index, NamedPort, PodEntry};
use crate::lower::{IsolationIr, PolicyIr};
use crate::peers::{PeerItem, Peers, PortItem, Ports, contains};
use crate::selector::Labels;
use sluice_crd::Entity;
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
    /// Whether it matters which addresses are the API server's.
    api_server: bool,
}

impl Read {
    fn new(index: &Index, policies: &[PolicyIr]) -> Self {
        let mut read = Self::default();
        for policy in policies {
            for direction in Direction::ALL {
                let side = policy.side(direction);
                for rule in side.allow.iter().chain(&side.deny) {
                    read.peers(index, &rule.peers);
                    if direction == Direction::Egress {
                        read.ports(&rule.ports);
                    }
                }
                if let (Direction::Egress, IsolationIr::Listed(listed)) = (direction, &side.isolation) {
                    listed.iter().for_each(|(_, ports)| read.ports(ports));
                }
            }
        }
        read
    }

    fn ports(&mut self, ports: &Ports) {
        let Ports::Some(items) = ports else { return };
        self.ports.extend(items.iter().filter_map(|item| match item {
            PortItem::Named { name, protocol } => Some((name.clone(), *protocol)),
            PortItem::Range(_) => None,
        }));
    }

    fn peers(&mut self, index: &Index, peers: &Peers) {
        let Peers::Any(items) = peers else { return };
        for item in items.iter().flat_map(PeerItem::parts) {
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
                PeerItem::Entities(entities) => {
                    let told = [Entity::KubeApiserver, Entity::Cluster];
                    self.api_server |= told.iter().any(|entity| entities.contains(entity));
                }
                // Always part of a pod's class; the parts of an item stand for it.
                PeerItem::ServiceAccounts(_) | PeerItem::Both(_) => {}
            }
        }
    }
}

/// Who a class stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Who {
    Missing,
    Workload {
        namespace: Arc<str>,
        service_account: Arc<str>,
        labels: Labels,
    },
    /// By name; empty where none of the endpoints compiled run on it.
    Node(Arc<str>),
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
    /// The API server answers there; false where no policy asks.
    api_server: bool,
}

impl Key {
    fn new(who: Who, cidrs: Vec<Prefix>) -> Self {
        Self { who, cidrs, ports: Vec::new(), api_server: false }
    }

    fn missing() -> Self {
        Self::new(Who::Missing, Vec::new())
    }

    /// Whether it is one of these entities, for an endpoint of this node.
    fn is_any(&self, entities: &BTreeSet<Entity>, home: Home<'_>) -> bool {
        entities.iter().any(|entity| match (entity, &self.who) {
            (_, Who::Missing) => false,
            (Entity::Host, Who::Node(name)) => home.is_node(name),
            (Entity::RemoteNode, Who::Node(name)) => !home.is_node(name),
            (Entity::World, Who::World) => true,
            (Entity::Cluster, Who::Workload { .. } | Who::Node(_)) => true,
            (Entity::Cluster | Entity::KubeApiserver, _) => self.api_server,
            (Entity::Host | Entity::RemoteNode | Entity::World, _) => false,
        })
    }
}

/// Whose rules are resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Home<'a> {
    /// The policy's namespace.
    pub(crate) namespace: &'a str,
    /// The node of the pod that is selected; empty where no peer depends on it.
    pub(crate) node: &'a str,
}

impl Home<'_> {
    fn is_node(self, name: &str) -> bool {
        !name.is_empty() && *name == *self.node
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
    /// The classes that these policies tell apart, for the endpoints of these nodes.
    pub(crate) fn new(index: &Index, policies: &[PolicyIr], nodes: &NodeScope) -> Self {
        let read = Read::new(index, policies);
        let cidrs = Cidrs::new(&read.cidrs);
        let mut table: BTreeMap<Prefix, Key> = BTreeMap::new();
        // Regions of the world: the longest of these prefixes says which CIDRs contain an address.
        let regions = read.cidrs.iter().chain(&index.pod_ranges).copied();
        for region in regions.chain([everything_v4(), Prefix::EVERYTHING]) {
            let of_pods = index.pod_ranges.iter().any(|range| contains(*range, region));
            let key = if of_pods { Key::missing() } else { Key::new(Who::World, cidrs.containing(region)) };
            table.insert(region, key);
        }
        let api_server = || index.api_server.iter().filter(|_| read.api_server).map(|one| Prefix::host(*one));
        for host in api_server() {
            let of_pods = index.pod_ranges.iter().any(|range| contains(*range, host));
            table.entry(host).or_insert_with(|| match of_pods {
                true => Key::missing(),
                false => Key::new(Who::World, cidrs.containing(host)),
            });
        }
        for (address, name) in &index.node_addresses {
            let host = Prefix::host(*address);
            let here = match nodes {
                NodeScope::All => true,
                NodeScope::Named(node) => node == name,
            };
            let name = if here { name.clone() } else { "".into() };
            table.insert(host, Key::new(Who::Node(name), cidrs.containing(host)));
        }
        for pod in index.pods.iter().filter(|pod| pod.has_identity()) {
            let base = workload_key(pod, &read);
            for address in &pod.addresses {
                let host = Prefix::host(*address);
                table.insert(host, Key { cidrs: cidrs.containing(host), ..base.clone() });
            }
        }
        for host in api_server() {
            if let Some(key) = table.get_mut(&host).filter(|key| key.who != Who::Missing) {
                key.api_server = true;
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
                Who::Node(name) => Identity::Node(name.clone()),
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
    pub(crate) fn resolve(&self, peers: &Peers, home: Home<'_>, index: &Index) -> Option<Vec<ClassId>> {
        let Peers::Any(items) = peers else { return None };
        let mut out = BTreeSet::new();
        for item in items {
            out.extend(self.item(item, home, index));
        }
        Some(out.into_iter().collect())
    }

    /// The classes that one item of a rule's peers means.
    fn item(&self, item: &PeerItem, home: Home<'_>, index: &Index) -> BTreeSet<ClassId> {
        let mut out = BTreeSet::new();
        match item {
            PeerItem::Own(pods) => out.extend(self.pods(home.namespace, pods)),
            PeerItem::ServiceAccounts(accounts) => out.extend(self.matching(|key| {
                let Who::Workload { namespace, service_account, .. } = &key.who else { return false };
                accounts.iter().any(|(ns, name)| ns == namespace && name == service_account)
            })),
            PeerItem::Entities(entities) => {
                out.extend(self.matching(|key| key.is_any(entities, home)));
            }
            PeerItem::Both(parts) => {
                let sets = parts.iter().map(|part| self.item(part, home, index));
                out = sets.reduce(|all, next| &all & &next).unwrap_or_default();
            }
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
        out
    }

    /// The classes whose keys say so.
    fn matching(&self, test: impl Fn(&Key) -> bool) -> impl Iterator<Item = ClassId> {
        let ids = (0..).map(ClassId);
        self.keys.iter().zip(ids).filter(move |(key, _)| test(key)).map(|(_, id)| id)
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
        api_server: false,
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
