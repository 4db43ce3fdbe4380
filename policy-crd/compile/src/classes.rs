//! Peer classes: identity × policy CIDRs × named-port numbers, and the prefixes that lead to them.
//!
//! Only what some policy reads makes a difference, so the number of classes follows the policies and not the
//! pods. A class has a place here, and a number in the snapshot of a node. Knows nothing of rules; `resolve` finds
//! the classes that a peer means.

use crate::NodeScope;
use crate::index::{Index, NamedPort, PodEntry};
use crate::labelled::Labelled;
use crate::lower::IsolationIr;
use crate::lowering::LoweredPolicy;
use crate::numbers::{Renewed, Sparse};
use crate::peers::{PeerItem, Peers, PortItem, Ports, contains};
use crate::selector::Labels;
use sluice_crd::Entity;
use sluice_policy::{Class, ClassId, ClassSet, Direction, Identity, Prefix, PrefixTable, Protocol};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;

/// What the policies read of peers.
#[derive(Default)]
struct Read {
    /// Label keys of pods.
    keys: BTreeSet<Arc<str>>,
    /// Label keys of their namespaces.
    namespace_keys: BTreeSet<Arc<str>>,
    /// Prefixes of `cidr` and `except`.
    cidrs: BTreeSet<Prefix>,
    /// Port names of egress rules.
    ports: HashSet<(Arc<str>, Protocol)>,
    /// Whether it matters which addresses are the API server's.
    api_server: bool,
}

impl Read {
    fn new(index: &Index, policies: &[LoweredPolicy]) -> Self {
        let mut read = Self::default();
        for policy in policies {
            for direction in Direction::ALL {
                let side = policy.ir.side(direction);
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
                PeerItem::Own(pods) => self.keys.extend(pods.keys().cloned()),
                PeerItem::Elsewhere { namespaces, pods } => {
                    self.keys.extend(pods.keys().cloned());
                    self.namespace_keys.extend(namespaces.keys().cloned());
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
pub(crate) enum Who {
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
pub(crate) struct Key {
    pub(crate) who: Who,
    /// The policy CIDRs that contain the address, sorted.
    pub(crate) cidrs: Vec<Prefix>,
    /// The named ports that egress rules read, sorted.
    pub(crate) ports: Vec<NamedPort>,
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
    pub(crate) fn is_any(&self, entities: &BTreeSet<Entity>, home: Home<'_>) -> bool {
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

/// Every class that the policies of a cluster can tell apart.
pub(crate) struct Classes {
    /// By place; sorted: who nobody knows, then pods by namespace and service account, nodes and the world.
    pub(crate) keys: Vec<Arc<Key>>,
    /// The place of the class of a prefix's addresses.
    table: Vec<(Prefix, usize)>,
    /// Namespaces in order, with the places of their pods.
    pub(crate) namespaces: Vec<(Arc<str>, Range<usize>)>,
    /// Of these namespaces, by their number: what selectors read of their labels.
    pub(crate) namespace_labels: Labelled,
    /// Of pods, by their place.
    pub(crate) pod_labels: Labelled,
    pub(crate) by_cidr: HashMap<Prefix, Vec<usize>>,
}

/// All of IPv4.
fn everything_v4() -> Prefix {
    // A length of 0 always fits.
    Prefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).unwrap_or(Prefix::EVERYTHING)
}

impl Classes {
    /// The classes that these policies tell apart.
    pub(crate) fn new(index: &Index, policies: &[LoweredPolicy]) -> Self {
        let read = Read::new(index, policies);
        let table = table(index, &read);
        let distinct = table.values();
        // A node sends from addresses that no object names, too: its bridge's. It is the node all the same, in no CIDR.
        let homes: BTreeSet<&Arc<str>> =
            index.pods.iter().filter(|pod| pod.has_identity()).map(|pod| &pod.workload.node).collect();
        let named = homes.into_iter().filter(|name| !name.is_empty());
        let homes: Vec<Key> = named.map(|name| Key::new(Who::Node(name.clone()), Vec::new())).collect();
        let distinct: BTreeSet<&Key> = distinct.chain(&homes).collect();
        let missing = Key::missing();
        // It sorts first and is always there: its number is 0.
        let known = distinct.into_iter().filter(|key| **key != missing);
        let keys: Vec<Arc<Key>> = std::iter::once(&missing).chain(known).cloned().map(Arc::new).collect();
        let places: HashMap<&Key, usize> = keys.iter().zip(0..).map(|(key, place)| (&**key, place)).collect();
        let place = |key: &Key| places.get(key).copied().unwrap_or_default();
        let table = table.iter().map(|(prefix, key)| (*prefix, place(key))).collect();
        let namespaces = namespaces(&keys);
        let mut by_cidr: HashMap<Prefix, Vec<usize>> = HashMap::new();
        for (place, key) in keys.iter().enumerate() {
            for cidr in &key.cidrs {
                by_cidr.entry(*cidr).or_default().push(place);
            }
        }
        let pods = keys.iter().enumerate().filter_map(|(place, key)| match &key.who {
            Who::Workload { labels, .. } => Some((place, labels)),
            Who::Missing | Who::Node(_) | Who::World => None,
        });
        let described = namespaces.iter().enumerate();
        let described =
            described.filter_map(|(number, (name, _))| Some((number, &index.namespaces.get(name)?.labels)));
        Self {
            pod_labels: Labelled::new(pods, |_| true),
            namespace_labels: Labelled::new(described, |key| read.namespace_keys.contains(key)),
            table,
            namespaces,
            by_cidr,
            keys,
        }
    }

    /// The places of pods.
    pub(crate) fn pods(&self) -> Range<usize> {
        let start = self.namespaces.first().map_or(0, |(_, range)| range.start);
        start..self.namespaces.last().map_or(start, |(_, range)| range.end)
    }

    /// The places of a namespace's pods.
    pub(crate) fn of_namespace(&self, name: &str) -> Range<usize> {
        let found = self.namespaces.binary_search_by(|(known, _)| (**known).cmp(name));
        found.map_or(0..0, |number| self.namespaces[number].1.clone())
    }
}

/// The pods of each namespace: a range of places, for they are sorted.
fn namespaces(keys: &[Arc<Key>]) -> Vec<(Arc<str>, Range<usize>)> {
    let mut out: Vec<(Arc<str>, Range<usize>)> = Vec::new();
    for (place, key) in keys.iter().enumerate() {
        let Who::Workload { namespace, .. } = &key.who else { continue };
        match out.last_mut().filter(|(last, _)| last == namespace) {
            Some((_, range)) => range.end = place + 1,
            None => out.push((namespace.clone(), place..place + 1)),
        }
    }
    out
}

/// The class of every prefix that has one of its own.
fn table(index: &Index, read: &Read) -> BTreeMap<Prefix, Key> {
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
        table.insert(host, Key::new(Who::Node(name.clone()), cidrs.containing(host)));
    }
    for pod in index.pods.iter().filter(|pod| pod.has_identity()) {
        let base = workload_key(pod, read);
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
    table
}

/// The classes of a snapshot.
pub(crate) struct Numbered {
    /// By place.
    ids: Vec<ClassId>,
    /// What each stands for, by number.
    pub(crate) described: Vec<Class>,
    /// Address → class.
    pub(crate) addresses: PrefixTable<ClassId>,
}

impl Numbered {
    /// Numbers the classes that the endpoints of these nodes meet: nodes on which none of them run are one.
    pub(crate) fn new(
        classes: &Classes,
        nodes: &NodeScope,
        numbers: &mut Sparse<Arc<Key>>,
    ) -> (Self, Renewed) {
        let seen: Vec<Arc<Key>> = classes.keys.iter().map(|key| seen_from(key, nodes)).collect();
        let mut distinct = seen.clone();
        distinct.sort();
        distinct.dedup();
        let renewed = numbers.renew(&distinct);
        let id = |key: &Arc<Key>| {
            let number = numbers.number(key).and_then(|number| u32::try_from(number).ok());
            number.map_or(ClassId::MISSING, ClassId)
        };
        let ids: Vec<ClassId> = seen.iter().map(id).collect();
        let mut addresses = PrefixTable::new();
        for (prefix, place) in &classes.table {
            addresses.insert(*prefix, ids[*place]);
        }
        let described = numbers.slots().iter().map(|key| describe(key.as_deref())).collect();
        (Self { ids, described, addresses }, renewed)
    }

    /// The set of the classes at these places; every class for `None`.
    pub(crate) fn set(&self, places: Option<&[usize]>) -> ClassSet {
        places.map_or(ClassSet::All, |places| ClassSet::of(places.iter().map(|place| self.ids[*place])))
    }
}

/// A class as the endpoints of these nodes see it.
fn seen_from(key: &Arc<Key>, nodes: &NodeScope) -> Arc<Key> {
    match (&key.who, nodes) {
        (Who::Node(name), NodeScope::Named(node)) if node != name => {
            Arc::new(Key { who: Who::Node("".into()), ..(**key).clone() })
        }
        _ => key.clone(),
    }
}

/// For people to read. A number that stands for nothing is vacant.
fn describe(key: Option<&Key>) -> Class {
    let Some(key) = key else { return Class { identity: Identity::Vacant, cidrs: Vec::new() } };
    Class {
        identity: match &key.who {
            Who::Missing => Identity::Missing,
            Who::Node(name) => Identity::Node(name.clone()),
            Who::World => Identity::World,
            Who::Workload { namespace, service_account, labels } => {
                let labels: Vec<String> =
                    labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                Identity::Workload(format!("{namespace}/{service_account}{{{}}}", labels.join(",")).into())
            }
        },
        cidrs: key.cidrs.iter().map(|cidr| cidr.to_string().into()).collect(),
    }
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
