//! Services: the addresses that stand for others, and who stands behind each port of them.
//!
//! A value that the compiler fills and the wire carries. It says who may be chosen, never who is: choosing is the
//! proxy's, and judging is the walk's, of the backend. Knows nothing of `EndpointSlice`s.

use crate::port::Protocol;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A Service as one node sees it.
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

/// Who stands behind a port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Its address. Who it is, the snapshot's classes say.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// The Services of a snapshot, with an index by address and port. Reads like a slice; made from a `Vec`.
#[derive(Clone, Debug, Default)]
pub struct Services {
    list: Vec<Service>,
    by_port: HashMap<(IpAddr, Protocol, u16), (usize, usize)>,
}

impl Services {
    /// The Service, and the port of it, that an address stands for. Of two that claim the same, the first.
    #[must_use]
    pub fn at(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<(&Service, &ServicePort)> {
        let (service, place) = *self.by_port.get(&(address, protocol, port))?;
        let service = self.list.get(service)?;
        Some((service, service.ports.get(place)?))
    }
}

impl From<Vec<Service>> for Services {
    fn from(list: Vec<Service>) -> Self {
        let mut by_port = HashMap::new();
        for (place, service) in list.iter().enumerate() {
            for (at, port) in service.ports.iter().enumerate() {
                for address in &service.addresses {
                    by_port.entry((*address, port.protocol, port.port)).or_insert((place, at));
                }
            }
        }
        Self { list, by_port }
    }
}

impl std::ops::Deref for Services {
    type Target = [Service];

    fn deref(&self) -> &Self::Target {
        &self.list
    }
}
