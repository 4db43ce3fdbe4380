//! Services and `EndpointSlices` into what a node translates: addresses, ports, and who stands behind each.
//!
//! Which endpoints count is what kube-proxy does: KEP-1672 for conditions, KEP-2086 for `internalTrafficPolicy`. What
//! a pod sends to an external address is subject to neither traffic policy: kube-proxy treats it as if it had gone to
//! the load balancer and come back. Topology hints are left out: they choose among these, so that what holds for all
//! of them holds for the chosen. Knows nothing of rules, and never says who a backend is.

use crate::NodeScope;
use crate::index::canonical;
use crate::slices;
use k8s_openapi::api::core::v1::{Service as Object, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use sluice_crd::{Category, Objects, Problem, Severity, Source, Sourced};
use sluice_policy::{Backend, Protocol, Service, ServicePort, Services};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Backends of one port of a Service: 100 slices of their largest size, and what a message to a node may have. A port
/// with more has none, so that nothing is allowed by those that would not fit.
const MAX_BACKENDS: usize = 1 << 17;
/// Addresses, and ports, of one entry of the list, as a message to a node has them. What is more goes on in the next.
const CHUNKS: (usize, usize) = (64, 1 << 10);
/// `sessionAffinityConfig.clientIP.timeoutSeconds`, where it is not written: three hours.
const AFFINITY_SECONDS: u32 = 10_800;
const LOCAL: &str = "Local";

/// The Services of a cluster.
#[derive(Default)]
pub(crate) struct Table {
    /// In the order in which nodes have them.
    entries: Vec<Entry>,
    /// For every node alike, if none differs.
    shared: Option<Services>,
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

/// A Service's addresses of one kind.
#[derive(PartialEq)]
struct Entry {
    /// From outside the cluster: asked after every Service's own, so that nobody takes another's by `externalIPs`.
    external: bool,
    /// Only who is on the node that asks may be chosen.
    local: bool,
    /// The Service, with everybody's backends.
    service: Service,
    /// By port: who stands there, and where. Empty unless `local`.
    members: Vec<Vec<Member>>,
}

/// An endpoint at a port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    backend: Backend,
    /// It takes traffic only where nobody is ready: it still serves while it ends.
    ending: bool,
    node: Option<Arc<str>>,
}

impl Table {
    pub(crate) fn new(objects: &Objects, problems: &mut Vec<Problem>) -> Self {
        let before = problems.len();
        let mut slices: HashMap<(&str, &str), Vec<&Sourced<EndpointSlice>>> = HashMap::new();
        for slice in &objects.endpoint_slices {
            if let Some(key) = slices::service_of(&slice.object) {
                slices.entry(key).or_default().push(slice);
            }
        }
        let mut entries = Vec::new();
        for Sourced { object, source } in &objects.services {
            let meta = &object.metadata;
            let namespace = meta.namespace.as_deref().unwrap_or("default");
            let (Some(name), Some(spec)) = (meta.name.as_deref(), translated(object)) else { continue };
            let own = slices.get(&(namespace, name)).map_or(&[][..], |slices| &slices[..]);
            let read = Read { spec, source, slices: own };
            read.entries(object, (namespace, name), &mut entries, problems);
        }
        entries.sort_by(|a, b| a.key().cmp(&b.key()));
        find_claimed_twice(&entries, objects, problems);
        for problem in &mut problems[before..] {
            problem.category = Category::Cluster;
        }
        let everywhere = !entries.iter().any(|entry| entry.local);
        let shared =
            everywhere.then(|| entries.iter().map(|entry| entry.service.clone()).collect::<Vec<_>>().into());
        Self { entries, shared }
    }

    /// The Services as the endpoints of a node see them. Those of all nodes together see everybody's backends.
    pub(crate) fn seen_from(&self, node: &NodeScope) -> Services {
        if let Some(shared) = &self.shared {
            return shared.clone();
        }
        let seen = |entry: &Entry| match node {
            NodeScope::Named(node) if entry.local => entry.on(node),
            NodeScope::Named(_) | NodeScope::All => entry.service.clone(),
        };
        self.entries.iter().map(seen).collect::<Vec<_>>().into()
    }
}

impl Entry {
    fn key(&self) -> (bool, &str, &str) {
        (self.external, &self.service.namespace, &self.service.name)
    }

    /// The Service with the backends of this node alone.
    fn on(&self, node: &str) -> Service {
        let mut service = self.service.clone();
        for (port, members) in service.ports.iter_mut().zip(&self.members) {
            port.backends = usable(members, |member| member.node.as_deref() == Some(node));
        }
        service
    }
}

/// Who may be chosen: the ready ones, or, where there is none, those that still serve while they end.
fn usable(members: &[Member], here: impl Fn(&Member) -> bool) -> Arc<[Backend]> {
    let some = |ending: bool| {
        let chosen = members.iter().filter(|member| member.ending == ending && here(member));
        let mut backends: Vec<Backend> = chosen.map(|member| member.backend).collect();
        backends.sort_unstable();
        backends.dedup();
        backends
    };
    let ready = some(false);
    if ready.is_empty() { some(true).into() } else { ready.into() }
}

/// The specification of a Service that kube-proxy translates: not of a headless one, nor of an `ExternalName`.
fn translated(service: &Object) -> Option<&ServiceSpec> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))?;
    let first = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).find(|text| !text.is_empty())?;
    (first != "None").then_some(spec)
}

/// A Service that is read, with its slices.
struct Read<'a> {
    spec: &'a ServiceSpec,
    source: &'a Source,
    slices: &'a [&'a Sourced<EndpointSlice>],
}

impl Read<'_> {
    fn entries(
        &self,
        object: &Object,
        (namespace, name): (&str, &str),
        out: &mut Vec<Entry>,
        problems: &mut Vec<Problem>,
    ) {
        let (own, external) = self.addresses(object, problems);
        let mut members = self.members(problems);
        let mut ports = Vec::new();
        for (protocol, port, name) in self.ports(problems) {
            let mut members = members.remove(&(name, protocol)).unwrap_or_default();
            members.sort_unstable();
            if members.len() > MAX_BACKENDS {
                let reason = format!(
                    "more than {MAX_BACKENDS} endpoints at the port {port}: nobody may be reached there"
                );
                problems.push(self.source.problem(Severity::Error, "", reason, "write several Services"));
                members.clear();
            }
            ports.push((ServicePort { protocol, port, backends: usable(&members, |_| true) }, members));
        }
        let by_node = self.spec.internal_traffic_policy.as_deref() == Some(LOCAL);
        let affinity = self.affinity();
        for (addresses, external, local) in [(own, false, by_node), (external, true, false)] {
            for (addresses, ports) in chunks(&addresses, &ports) {
                let service = Service {
                    namespace: namespace.into(),
                    name: name.into(),
                    addresses: addresses.to_vec(),
                    ports: ports.iter().map(|(port, _)| port.clone()).collect(),
                    affinity,
                };
                let members = ports.iter().filter(|_| local).map(|(_, members)| members.clone()).collect();
                out.push(Entry { external, local, service, members });
            }
        }
    }

    /// Those of the cluster, and those from outside that are translated on every node.
    fn addresses(&self, object: &Object, problems: &mut Vec<Problem>) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let mut read = |texts: &mut dyn Iterator<Item = &String>, path: &str| {
            let mut out: Vec<IpAddr> = Vec::new();
            for text in texts.filter(|text| !text.is_empty()) {
                match text.parse::<IpAddr>().map(canonical) {
                    Ok(address) if out.contains(&address) => {}
                    Ok(address) => out.push(address),
                    Err(_) => {
                        let reason = format!("\"{text}\" is no IP address; the Service does without it");
                        problems.push(self.source.problem(Severity::Error, path, reason, "correct it"));
                    }
                }
            }
            out
        };
        let spec = self.spec;
        let own = read(&mut spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip), "spec.clusterIPs");
        let mut external = read(&mut spec.external_ips.iter().flatten(), "spec.externalIPs");
        let balancer = object.status.iter().filter_map(|status| status.load_balancer.as_ref());
        let ingress = balancer.flat_map(|balancer| balancer.ingress.iter().flatten());
        // `Proxy` (KEP-1860): the balancer sees all traffic, and the node translates none.
        let seen = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
        let path = "status.loadBalancer.ingress";
        external.extend(read(&mut seen.filter_map(|ingress| ingress.ip.as_ref()), path));
        let mut fresh = Vec::new();
        for address in external {
            if !own.contains(&address) && !fresh.contains(&address) {
                fresh.push(address);
            }
        }
        (own, fresh)
    }

    /// Protocol, number and name of each port.
    fn ports(&self, problems: &mut Vec<Problem>) -> Vec<(Protocol, u16, &str)> {
        let mut out = Vec::new();
        for (index, port) in self.spec.ports.iter().flatten().enumerate() {
            match (protocol(port.protocol.as_deref()), u16::try_from(port.port)) {
                (Some(protocol), Ok(number)) if number > 0 => {
                    out.push((protocol, number, port.name.as_deref().unwrap_or_default()));
                }
                _ => {
                    let reason = "no protocol with ports, or no port number; traffic to it is judged as to any address";
                    let path = format!("spec.ports[{index}]");
                    problems.push(self.source.problem(Severity::Error, &path, reason, "correct it"));
                }
            }
        }
        out
    }

    fn affinity(&self) -> Option<u32> {
        let asked = self.spec.session_affinity.as_deref() == Some("ClientIP");
        let config = self.spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| config.timeout_seconds).and_then(|s| u32::try_from(s).ok());
        asked.then(|| seconds.filter(|seconds| *seconds > 0).unwrap_or(AFFINITY_SECONDS))
    }

    /// Who stands behind each port, by the port's name and protocol: that is how slices say which port is meant.
    fn members(&self, problems: &mut Vec<Problem>) -> BTreeMap<(&str, Protocol), Vec<Member>> {
        let mut out: BTreeMap<(&str, Protocol), Vec<Member>> = BTreeMap::new();
        for Sourced { object: slice, source } in self.slices {
            let ports = slice_ports(slice, source, problems);
            for (index, endpoint) in slice.endpoints.iter().enumerate() {
                let addresses = endpoint_addresses(slice, source, (index, endpoint), problems);
                let Some(ending) = is_ending(endpoint) else { continue };
                let node: Option<Arc<str>> = endpoint.node_name.as_deref().map(Into::into);
                for &(name, protocol, port) in &ports {
                    let member = |address: &IpAddr| {
                        let backend = Backend { address: *address, port };
                        Member { backend, ending, node: node.clone() }
                    };
                    out.entry((name, protocol)).or_default().extend(addresses.iter().map(member));
                }
            }
        }
        out
    }
}

/// Whether an endpoint is ready (`false`), or serves while it ends (`true`); `None`: it takes no traffic.
/// A condition that is not written holds, but for terminating.
fn is_ending(endpoint: &Endpoint) -> Option<bool> {
    let Some(conditions) = &endpoint.conditions else { return Some(false) };
    let holds = |condition: Option<bool>| condition.unwrap_or(true);
    match (holds(conditions.ready), holds(conditions.serving) && conditions.terminating == Some(true)) {
        (true, _) => Some(false),
        (false, true) => Some(true),
        (false, false) => None,
    }
}

/// An endpoint's addresses. Those that are none cannot be chosen, and are told.
fn endpoint_addresses(
    slice: &EndpointSlice,
    source: &Source,
    (index, endpoint): (usize, &Endpoint),
    problems: &mut Vec<Problem>,
) -> Vec<IpAddr> {
    let of_family = |address: &IpAddr| match &*slice.address_type {
        "IPv4" => address.is_ipv4(),
        "IPv6" => address.is_ipv6(),
        _ => false,
    };
    let mut out = Vec::new();
    for text in &endpoint.addresses {
        match slices::address(slice, text).filter(of_family) {
            Some(address) => out.push(address),
            None => {
                let reason = format!(
                    "\"{text}\" is no {} address of a host; nobody is sent there",
                    slice.address_type
                );
                let path = format!("endpoints[{index}].addresses");
                problems.push(source.problem(Severity::Error, &path, reason, "correct it"));
            }
        }
    }
    out
}

/// Name, protocol and number of a slice's ports.
fn slice_ports<'a>(
    slice: &'a EndpointSlice,
    source: &Source,
    problems: &mut Vec<Problem>,
) -> Vec<(&'a str, Protocol, u16)> {
    let mut out = Vec::new();
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        let EndpointPort { name, protocol: given, port: number, .. } = port;
        match (protocol(given.as_deref()), number.map(u16::try_from)) {
            (Some(protocol), Some(Ok(number))) if number > 0 => {
                out.push((name.as_deref().unwrap_or_default(), protocol, number));
            }
            _ => {
                let reason = "no protocol with ports, or no port number; nobody is sent there";
                let path = format!("ports[{index}]");
                problems.push(source.problem(Severity::Error, &path, reason, "correct it"));
            }
        }
    }
    out
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    Protocol::parse(name.unwrap_or("TCP")).filter(|protocol| protocol.has_ports())
}

/// Every port of every address that two Services claim.
fn find_claimed_twice(entries: &[Entry], objects: &Objects, problems: &mut Vec<Problem>) {
    let mut owners: HashMap<(IpAddr, Protocol, u16), &Entry> = HashMap::new();
    let mut told: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for entry in entries {
        for port in &entry.service.ports {
            for address in &entry.service.addresses {
                let Some(first) = owners.insert((*address, port.protocol, port.port), entry) else {
                    continue;
                };
                let (_, namespace, name) = first.key();
                owners.insert((*address, port.protocol, port.port), first);
                let reason = format!(
                    "{address} port {} {} is the Service {namespace}/{name}'s too, and nobody knows which of them the \
                     node follows: what is sent there must be allowed for the backends of both",
                    port.port, port.protocol
                );
                told.entry((&entry.service.namespace, &entry.service.name)).or_insert(reason);
            }
        }
    }
    if told.is_empty() {
        return;
    }
    for Sourced { object, source } in &objects.services {
        let meta = &object.metadata;
        let key = (meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or_default());
        if let Some(reason) = told.get(&key) {
            let remedy = "take the address or the port from one of them";
            problems.push(source.problem(Severity::Error, "spec", reason.clone(), remedy));
        }
    }
}

/// Addresses and ports in pieces that fit.
fn chunks<'a, P>(addresses: &'a [IpAddr], ports: &'a [P]) -> impl Iterator<Item = (&'a [IpAddr], &'a [P])> {
    addresses
        .chunks(CHUNKS.0)
        .flat_map(move |addresses| ports.chunks(CHUNKS.1).map(move |ports| (addresses, ports)))
}
