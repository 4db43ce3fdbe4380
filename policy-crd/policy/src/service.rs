//! Services: the addresses that stand for others, and who stands behind each port of them.
//!
//! A value that the compiler fills and the wire carries. It says who may be chosen, never who is: choosing is the
//! proxy's, and judging is the walk's, of the backend. Knows nothing of `EndpointSlice`s.

use crate::port::Protocol;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

/// A Service as one node sees it. One whose traffic from inside and from outside goes to different backends stands in
/// the list twice, with the addresses of each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.clusterIPs`, `spec.externalIPs` and the load balancer's addresses: what is translated on this node.
    pub addresses: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP`, with its timeout in seconds.
    pub affinity: Option<u32>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The protocol.
    pub protocol: Protocol,
    /// The port of the Service.
    pub port: u16,
    /// Who may be chosen on this node: ready, or, where none is, serving while they terminate; only local ones under
    /// `internalTrafficPolicy: Local`. Sorted. Of a family only the backends of that family are meant.
    pub backends: Arc<[Backend]>,
}

impl ServicePort {
    /// Who may be chosen for a connection to this address: a translation does not change the family.
    pub fn of_family(&self, address: IpAddr) -> impl Iterator<Item = Backend> + '_ {
        self.backends.iter().copied().filter(move |backend| backend.address.is_ipv4() == address.is_ipv4())
    }
}

/// Who stands behind a port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Its address. Who it is, the snapshot's classes say.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// A port of an address.
type Key = (IpAddr, Protocol, u16);
/// The place of a Service, and of a port of it.
type Place = (usize, usize);

/// The Services of a snapshot, with an index by address and port. Reads like a slice; made from a `Vec`. Cheap to
/// clone: nodes for which the Services are the same have the same.
#[derive(Clone, Debug, Default)]
pub struct Services(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    list: Vec<Service>,
    by_port: HashMap<Key, Place>,
    /// The other ones, of ports that several claim.
    contested: HashMap<Key, Vec<Place>>,
}

impl Services {
    /// The Service, and the port of it, that an address stands for. Of two that claim the same, the first.
    #[must_use]
    pub fn at(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<(&Service, &ServicePort)> {
        self.place(*self.0.by_port.get(&(address, protocol, port))?)
    }

    /// Every Service, with the port of it, that claims an address and port: one, but for a mistake or an attack.
    pub fn claims(
        &self,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> impl Iterator<Item = (&Service, &ServicePort)> {
        let key = (address, protocol, port);
        let others = self.0.contested.get(&key).into_iter().flatten();
        self.0.by_port.get(&key).into_iter().chain(others).filter_map(|place| self.place(*place))
    }

    /// Every port of every address, in the order of the list; what several claim as often.
    pub fn keys(&self) -> impl Iterator<Item = (IpAddr, Protocol, u16)> + '_ {
        self.0.list.iter().flat_map(keys).map(|(key, _)| key)
    }

    fn place(&self, (service, place): Place) -> Option<(&Service, &ServicePort)> {
        let service = self.0.list.get(service)?;
        Some((service, service.ports.get(place)?))
    }
}

/// What a Service claims, with the place of the port.
fn keys(service: &Service) -> impl Iterator<Item = (Key, usize)> + '_ {
    service.ports.iter().enumerate().flat_map(|(at, port)| {
        service.addresses.iter().map(move |address| ((*address, port.protocol, port.port), at))
    })
}

impl From<Vec<Service>> for Services {
    fn from(list: Vec<Service>) -> Self {
        let mut by_port = HashMap::new();
        let mut contested: HashMap<Key, Vec<Place>> = HashMap::new();
        for (place, service) in list.iter().enumerate() {
            for (key, at) in keys(service) {
                match by_port.entry(key) {
                    Entry::Vacant(free) => _ = free.insert((place, at)),
                    Entry::Occupied(_) => contested.entry(key).or_default().push((place, at)),
                }
            }
        }
        Self(Arc::new(Inner { list, by_port, contested }))
    }
}

impl std::ops::Deref for Services {
    type Target = [Service];

    fn deref(&self) -> &Self::Target {
        &self.0.list
    }
}
