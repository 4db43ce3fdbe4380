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
use std::collections::HashMap;
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
    /// Who has which address, for names in telemetry. No verdict reads it.
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
