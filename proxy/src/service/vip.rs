//! One port of a Service as this proxy sees it: its backends, in groups that no rule can tell apart.
//!
//! Whatever the verdict engine reads of a backend is its class, its port and, where it is an endpoint of this node,
//! its profile. So one walk answers for a whole group, and a thousand backends of one Deployment cost one or two. Pure:
//! knows nothing of load, of time or of what was said. Built by [`View`](crate::state::View), once for each snapshot
//! and address that is asked for.

use crate::limits::BACKEND_GROUPS;
use crate::state::View;
use sluice_policy::{ClassId, ProfileId, Protocol, Service, ServicePort};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// What rules can read of a backend: its class, its port, and the profile and node of a local endpoint.
type Key = (ClassId, u16, Option<(ProfileId, Arc<str>)>);

/// A port of a Service at one of its addresses.
#[derive(Debug)]
pub struct Vip {
    /// The Service's namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The address and port that stand for the backends.
    pub address: SocketAddr,
    /// `sessionAffinity: ClientIP`, and how long a client that is silent is remembered.
    pub affinity: Option<Duration>,
    /// One address for all of the Service's, so that a client keeps its backend at each of them.
    pub affinity_of: SocketAddr,
    /// In order of the lowest address of each; each sorted.
    groups: Vec<Vec<SocketAddr>>,
    group_of: HashMap<SocketAddr, usize>,
    /// The backends' ports: of a named port each pod may have another number.
    ports: BTreeSet<u16>,
}

impl Vip {
    /// The backends of this port that have the address's family. One that is a Service's address itself is none: it
    /// would be translated once more, to somebody whom nobody has judged (kube-proxy does not follow them either).
    #[must_use]
    pub(crate) fn new(view: &View, address: SocketAddr, service: &Service, port: &ServicePort) -> Self {
        let services = &view.snapshot.services;
        let mut backends: Vec<SocketAddr> = port
            .backends
            .iter()
            .filter(|backend| services.at(backend.address, Protocol::Tcp, backend.port).is_none())
            .map(|backend| SocketAddr::new(backend.address.to_canonical(), backend.port))
            .filter(|backend| backend.is_ipv4() == address.is_ipv4())
            .collect();
        backends.sort_unstable();
        backends.dedup();
        let groups = bounded(grouped(view, &backends));
        let group_of = groups
            .iter()
            .enumerate()
            .flat_map(|(place, group)| group.iter().map(move |backend| (*backend, place)))
            .collect();
        let same_family = service.addresses.iter().find(|other| other.is_ipv4() == address.is_ipv4());
        Self {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            address,
            affinity: service.affinity.map(|seconds| Duration::from_secs(seconds.into())),
            ports: groups.iter().flatten().map(SocketAddr::port).collect(),
            affinity_of: SocketAddr::new(same_family.copied().unwrap_or(address.ip()), address.port()),
            groups,
            group_of,
        }
    }

    /// The groups, each with at least one backend.
    #[must_use]
    pub fn groups(&self) -> &[Vec<SocketAddr>] {
        &self.groups
    }

    /// The backends that have this address: one, or one for each port where the slices name several.
    pub fn backends_at(&self, address: IpAddr) -> impl Iterator<Item = SocketAddr> + '_ {
        let at = self.ports.iter().map(move |port| SocketAddr::new(address, *port));
        at.filter(|backend| self.group_of.contains_key(backend))
    }

    /// The group of a backend; `None` for whoever is none.
    #[must_use]
    pub fn group_of(&self, backend: SocketAddr) -> Option<usize> {
        self.group_of.get(&backend).copied()
    }
}

fn grouped(view: &View, backends: &[SocketAddr]) -> Vec<Vec<SocketAddr>> {
    let snapshot = &view.snapshot;
    let mut groups: Vec<Vec<SocketAddr>> = Vec::new();
    let mut places: HashMap<Key, usize> = HashMap::new();
    for backend in backends {
        let local = snapshot.endpoint_at(backend.ip());
        let local = local.map(|endpoint| (endpoint.profile, endpoint.workload.node.clone()));
        let key = (snapshot.class_of(backend.ip()), backend.port(), local);
        let place = *places.entry(key).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(*backend),
            None => groups.push(vec![*backend]),
        }
    }
    groups
}

/// The largest groups, as many as may be asked for one request, in the order they came.
fn bounded(mut groups: Vec<Vec<SocketAddr>>) -> Vec<Vec<SocketAddr>> {
    if groups.len() > BACKEND_GROUPS {
        groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
        groups.truncate(BACKEND_GROUPS);
        groups.sort();
    }
    groups
}
