//! Everything that one node needs, immutable, with a generation number.
//!
//! The compiler builds it, the wire carries it, the loader turns it into rows and the proxy judges by it.

use crate::class::ClassId;
use crate::indexed::{IndexedProfile, Profiles};
use crate::origin::Policy;
use crate::port::Protocol;
use crate::prefix::PrefixTable;
use crate::profile::{Direction, ProfileId};
use crate::service::Services;
use crate::verdict::Connection;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The state of one node.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with every publication of one control plane.
    pub generation: u64,
    /// The policies that some rule here came from, by [`PolicyId`](crate::PolicyId). One that is gone may stand here
    /// until another takes its number.
    pub policies: Vec<Arc<Policy>>,
    /// What each class stands for, by [`ClassId`]. Entry 0 is [`ClassId::MISSING`].
    pub classes: Vec<Class>,
    /// Address → class. [`Prefix::EVERYTHING`](crate::Prefix::EVERYTHING) is always in it once compiled.
    pub addresses: PrefixTable<ClassId>,
    /// The endpoints of this node that are in the dataplane.
    pub endpoints: Endpoints,
    /// The distinct profiles, by [`ProfileId`].
    pub profiles: Profiles,
    /// Who has which address: for names in telemetry, and to know when it is another's. No verdict reads it.
    pub workloads: HashMap<IpAddr, Arc<Workload>>,
    /// The Services whose addresses this node translates.
    pub services: Services,
}

impl Snapshot {
    /// The class of an address. Unknown where nothing says otherwise.
    #[must_use]
    pub fn class_of(&self, address: IpAddr) -> ClassId {
        self.addresses.lookup(address).copied().unwrap_or(ClassId::MISSING)
    }

    /// How an endpoint meets a peer. Whoever wears the address of the endpoint's own node without being that node
    /// came through it (a `NodePort`, a masquerade), and who it was nobody knows. A process of the node is the node,
    /// whichever of its addresses it sends from.
    #[must_use]
    pub fn connection(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        peer: Source,
        protocol: Protocol,
        port: u16,
    ) -> Connection {
        let class = self.class_of(peer.address());
        let ingress = direction == Direction::Ingress;
        let from_host = ingress && matches!(peer, Source::Host(_));
        let worn = ingress && !from_host && self.is_node(class, &endpoint.workload.node);
        let peer = match from_host {
            true if self.is_node(class, &endpoint.workload.node) => class,
            true => self.host_class(|node| *node == *endpoint.workload.node),
            false if worn => ClassId::MISSING,
            false => class,
        };
        Connection { peer, protocol, port, from_host }
    }

    /// Whether a class is the node of this name.
    #[must_use]
    pub fn is_node(&self, ClassId(id): ClassId, name: &str) -> bool {
        let class = self.classes.get(id as usize);
        !name.is_empty()
            && class.is_some_and(|class| matches!(&class.identity, Identity::Node(node) if **node == *name))
    }

    /// The class of a node's processes that send from an address that no object names, as that of a bridge: of the
    /// node and in no CIDR. Where nothing is known of the node, that of nobody, which every deny matches.
    pub(crate) fn host_class(&self, is_it: impl Fn(&str) -> bool) -> ClassId {
        let own = self.classes.iter().zip(0..).filter(|(class, _)| match &class.identity {
            Identity::Node(name) => !name.is_empty() && is_it(name),
            _ => false,
        });
        own.min_by_key(|(class, _)| class.cidrs.len()).map_or(ClassId::MISSING, |(_, id)| ClassId(id))
    }

    /// Whether a number stands for no class.
    pub(crate) fn is_vacant(&self, ClassId(id): ClassId) -> bool {
        self.classes.get(id as usize).is_none_or(|class| class.identity == Identity::Vacant)
    }

    /// Whether a class is a node that an endpoint of this snapshot runs on.
    pub(crate) fn is_own_node(&self, ClassId(id): ClassId) -> bool {
        let class = self.classes.get(id as usize);
        class.is_some_and(|class| matches!(&class.identity, Identity::Node(node) if !node.is_empty()))
    }

    /// The local endpoint with this address.
    #[must_use]
    pub fn endpoint_at(&self, address: IpAddr) -> Option<&Arc<Endpoint>> {
        self.endpoints.at(address)
    }

    /// Who has which address, as far as anybody knows. Of an endpoint's own address its own word counts.
    #[must_use]
    pub fn owners(&self) -> HashMap<IpAddr, Arc<Workload>> {
        let mut owners = self.workloads.clone();
        for endpoint in self.endpoints.iter() {
            owners.extend(endpoint.addresses.iter().map(|address| (*address, endpoint.workload.clone())));
        }
        owners
    }

    /// Who has this address.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.endpoint_at(address).map(|endpoint| &endpoint.workload).or_else(|| self.workloads.get(&address))
    }

    /// The addresses whose owner of before has gone from them: what is open with one of those is not with whoever has
    /// it now, if anybody. One that nobody was known to have is not among them: it had not been told yet.
    #[must_use]
    pub fn left<'a>(
        &self,
        before: impl IntoIterator<Item = (&'a IpAddr, &'a Arc<Workload>)>,
    ) -> HashSet<IpAddr> {
        let gone = before.into_iter().filter(|(address, was)| !self.has(**address, was));
        gone.map(|(address, _)| *address).collect()
    }

    /// Whether this address is one of those.
    #[must_use]
    pub fn has_left(&self, address: IpAddr, before: &Self) -> bool {
        before.owner(address).is_some_and(|was| !self.has(address, was))
    }

    fn has(&self, address: IpAddr, pod: &Workload) -> bool {
        self.owner(address).is_some_and(|is| is.is_pod(pod))
    }

    /// A profile by its id.
    #[must_use]
    pub fn profile(&self, ProfileId(id): ProfileId) -> Option<&IndexedProfile> {
        self.profiles.get(id as usize).map(Arc::as_ref)
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Over the network, from this address.
    Address(IpAddr),
    /// From a process on the node of its destination, which has this address. Only whoever has seen the sending
    /// socket can say so.
    Host(IpAddr),
}

impl Source {
    /// The address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        match self {
            Self::Address(address) | Self::Host(address) => address,
        }
    }
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

/// What a peer class stands for, for people to read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    /// Who.
    pub identity: Identity,
    /// The policy CIDRs that contain it, as written.
    pub cidrs: Vec<Arc<str>>,
}

/// Who a peer is for policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// Nobody knows.
    Missing,
    /// Pods with the same namespace, service account and policy-relevant labels; the canonical form.
    Workload(Arc<str>),
    /// A node of the cluster, by its name; empty where none of the snapshot's endpoints run on it.
    Node(Arc<str>),
    /// Everything outside the cluster.
    World,
    /// Nobody at all: a number that is free since the class that had it has gone. No address leads to it.
    Vacant,
}

/// One pod's network interface on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Its addresses, all of them: it may send from no other.
    pub addresses: Vec<IpAddr>,
    /// Its rules.
    pub profile: ProfileId,
}

/// The names of a pod, for telemetry and for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub pod: Arc<str>,
    /// `metadata.uid`; empty where the manifest has none.
    pub uid: Arc<str>,
    /// `spec.serviceAccountName`, `default` where the pod names none.
    pub service_account: Arc<str>,
    /// `spec.nodeName`.
    pub node: Arc<str>,
}

impl Workload {
    /// Whether it is the same pod, not one that was made in its place. Without UIDs the names must do.
    #[must_use]
    pub fn is_pod(&self, other: &Self) -> bool {
        (&self.uid, &self.namespace, &self.pod) == (&other.uid, &other.namespace, &other.pod)
    }
}

/// The endpoints of a node, with an index by address. Reads like a slice; made from a `Vec`.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    list: Vec<Arc<Endpoint>>,
    by_address: HashMap<IpAddr, Arc<Endpoint>>,
}

impl Endpoints {
    /// The endpoint with this address.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Option<&Arc<Endpoint>> {
        self.by_address.get(&address)
    }
}

impl From<Vec<Arc<Endpoint>>> for Endpoints {
    fn from(list: Vec<Arc<Endpoint>>) -> Self {
        let entries = |endpoint: &Arc<Endpoint>| {
            endpoint.addresses.iter().map(|address| (*address, endpoint.clone())).collect::<Vec<_>>()
        };
        let by_address = list.iter().flat_map(entries).collect();
        Self { list, by_address }
    }
}

impl FromIterator<Arc<Endpoint>> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Arc<Endpoint>>>(endpoints: I) -> Self {
        endpoints.into_iter().collect::<Vec<_>>().into()
    }
}

impl std::ops::Deref for Endpoints {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &Self::Target {
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str) -> Arc<Workload> {
        Arc::new(Workload {
            namespace: "shop".into(),
            pod: name.into(),
            uid: uid.into(),
            service_account: "default".into(),
            node: "n1".into(),
        })
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// The first is an endpoint with both its addresses, the others are elsewhere.
    fn snapshot(own: &Arc<Workload>, addresses: &[u8], others: &[(u8, Arc<Workload>)]) -> Snapshot {
        let addresses = addresses.iter().map(|last| address(*last)).collect();
        let endpoint = Endpoint { workload: own.clone(), addresses, profile: ProfileId(0) };
        let workloads = others.iter().map(|(last, pod)| (address(*last), pod.clone())).collect();
        Snapshot { endpoints: vec![Arc::new(endpoint)].into(), workloads, ..Snapshot::default() }
    }

    #[test]
    fn an_address_is_left_when_its_pod_is_not_there_any_more() {
        let (a, b) = (pod("a", "1"), pod("b", "2"));
        let before = snapshot(&a, &[1, 2], &[(3, b.clone()), (4, pod("c", "3"))]);
        let left = |now: &Snapshot| {
            let mut left: Vec<IpAddr> = now.left(&before.owners()).into_iter().collect();
            left.sort_unstable();
            // Asked of one address, the answer is the same.
            let asked: Vec<IpAddr> = (0..10).map(address).filter(|at| now.has_left(*at, &before)).collect();
            assert_eq!(left, asked);
            left
        };
        assert!(left(&before.clone()).is_empty());
        // Made again with the same names and addresses.
        let again = snapshot(&pod("a", "9"), &[1, 2], &[(3, b.clone()), (4, pod("c", "8"))]);
        assert_eq!(left(&again), [address(1), address(2), address(4)]);
        // One address moves within the snapshot, and a pod that goes has its own taken.
        let moved = snapshot(&a, &[1, 4], &[(2, b.clone()), (3, b.clone())]);
        assert_eq!(left(&moved), [address(2), address(4)]);
        // It was not told whose the address is, and then it is: nobody has left it.
        let told = snapshot(&a, &[1, 2], &[(3, b), (4, pod("c", "3")), (5, pod("d", "4"))]);
        assert!(left(&told).is_empty());
        assert_eq!(left(&Snapshot::default()).len(), 4);
        // An endpoint that is one no more, and still the same pod.
        let elsewhere = snapshot(&pod("z", "7"), &[9], &[(1, a.clone()), (2, a), (3, pod("b", "2"))]);
        assert_eq!(left(&elsewhere), [address(4)]);
    }
}
