//! Namespaces, pods and nodes by name and address: what selectors and addresses are resolved against.
//!
//! Knows nothing of policies. Sorted by name, so that the same objects give the same numbers whatever order they
//! came in.

use crate::selector::{Labels, Selector};
use crate::slices;
use k8s_openapi::api::core::v1::{Container, Pod};
use sluice_crd::{Category, Objects, Problem, Severity, Source, Sourced};
use sluice_policy::{Prefix, Protocol, Workload};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// The label that the API server puts on every namespace.
pub(crate) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A cluster, indexed.
pub(crate) struct Index {
    /// By name.
    pub(crate) namespaces: BTreeMap<Arc<str>, NamespaceEntry>,
    /// Sorted by namespace and name.
    pub(crate) pods: Vec<PodEntry>,
    /// Nodes, by their labels and addresses.
    pub(crate) nodes: Vec<(Labels, Vec<IpAddr>)>,
    /// The addresses of nodes, with the node's name.
    pub(crate) node_addresses: BTreeMap<IpAddr, Arc<str>>,
    /// The addresses of the API server.
    pub(crate) api_server: BTreeSet<IpAddr>,
    /// The ranges that pods get their addresses from.
    pub(crate) pod_ranges: BTreeSet<Prefix>,
    /// Addresses that nobody can be held to: claimed by several pods, or by a pod and a node.
    pub(crate) contested: BTreeSet<IpAddr>,
}

/// A namespace.
pub(crate) struct NamespaceEntry {
    pub(crate) labels: Labels,
    pub(crate) source: Option<Source>,
}

/// A pod.
pub(crate) struct PodEntry {
    pub(crate) workload: Arc<Workload>,
    pub(crate) labels: Labels,
    /// All its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its named ports, sorted.
    pub(crate) ports: Vec<NamedPort>,
    pub(crate) host_network: bool,
    pub(crate) terminated: bool,
    pub(crate) source: Source,
}

/// A named container port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NamedPort {
    pub(crate) name: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
}

impl PodEntry {
    /// Whether its addresses are its own: a pod on the host's network has the node's, a terminated one none.
    pub(crate) fn has_identity(&self) -> bool {
        !self.host_network && !self.terminated
    }

    /// The numbers that a port name stands for on this pod.
    pub(crate) fn resolve<'a>(&'a self, name: &'a str, protocol: Protocol) -> impl Iterator<Item = u16> + 'a {
        self.ports
            .iter()
            .filter(move |port| &*port.name == name && port.protocol == protocol)
            .map(|p| p.number)
    }
}

impl Index {
    pub(crate) fn new(objects: &Objects, problems: &mut Vec<Problem>) -> Self {
        let before = problems.len();
        let mut index = Self {
            namespaces: namespaces(objects),
            pods: objects.pods.iter().map(|pod| pod_entry(pod, problems)).collect(),
            nodes: Vec::new(),
            node_addresses: BTreeMap::new(),
            api_server: api_server(objects),
            pod_ranges: BTreeSet::new(),
            contested: BTreeSet::new(),
        };
        index.pods.sort_by(|a, b| {
            (&a.workload.namespace, &a.workload.pod).cmp(&(&b.workload.namespace, &b.workload.pod))
        });
        index.add_missing_namespaces(objects, problems);
        index.add_nodes(objects, problems);
        index.find_contested(problems);
        for problem in problems[before..].iter_mut().filter(|problem| problem.severity != Severity::Info) {
            problem.category = Category::Cluster;
        }
        index
    }

    /// Pods and policies of namespaces that nobody described still have a namespace with its implied label.
    fn add_missing_namespaces(&mut self, objects: &Objects, problems: &mut Vec<Problem>) {
        let pods = self.pods.iter().map(|pod| (pod.workload.namespace.clone(), pod.source.clone()));
        let policies =
            objects.policies.iter().map(|policy| (policy.namespace.clone(), policy.source.clone()));
        let cilium = objects.cilium.iter().filter(|policy| !policy.namespace.is_empty());
        let cilium = cilium.map(|policy| (policy.namespace.clone(), policy.source.clone()));
        let known = &self.namespaces;
        let mut missing: BTreeMap<Arc<str>, Problem> = BTreeMap::new();
        for (name, source) in pods.chain(policies).chain(cilium).filter(|(name, _)| !known.contains_key(name))
        {
            let reason = format!("no Namespace {name} is given; it is taken to have no labels of its own");
            let problem = source.problem(Severity::Info, "metadata.namespace", reason, "add its manifest");
            // It is told once, of the same object whatever order they come in.
            let told = missing.entry(name).or_insert_with(|| problem.clone());
            if problem < *told {
                *told = problem;
            }
        }
        for (name, problem) in missing {
            problems.push(problem);
            let labels = Labels::from([(NAME_LABEL.to_owned(), name.to_string())]);
            self.namespaces.insert(name, NamespaceEntry { labels, source: None });
        }
    }

    /// The addresses of the nodes that a selector selects, as prefixes of one address each.
    pub(crate) fn hosts<'a>(&'a self, nodes: &'a Selector) -> impl Iterator<Item = Prefix> + 'a {
        let selected = self.nodes.iter().filter(|(labels, _)| nodes.matches(labels));
        selected.flat_map(|(_, addresses)| addresses.iter().copied().map(Prefix::host))
    }

    fn add_nodes(&mut self, objects: &Objects, problems: &mut Vec<Problem>) {
        for Sourced { object: node, source } in &objects.nodes {
            let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
            // Hostname and InternalDNS entries are no addresses; that they do not parse is no problem.
            let addresses: Vec<IpAddr> =
                addresses.filter_map(|a| a.address.parse::<IpAddr>().ok()).map(canonical).collect();
            let name: Arc<str> = node.metadata.name.as_deref().unwrap_or_default().into();
            self.node_addresses.extend(addresses.iter().map(|address| (*address, name.clone())));
            self.nodes.push((node.metadata.labels.clone().unwrap_or_default(), addresses));
            let spec = node.spec.as_ref();
            let one = spec.and_then(|spec| spec.pod_cidr.as_ref());
            let many = spec.into_iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
            for cidr in many.chain(one) {
                match Prefix::parse(cidr) {
                    Ok(range) => {
                        self.pod_ranges.insert(range);
                    }
                    Err(reason) => {
                        problems.push(source.problem(Severity::Error, "spec.podCIDRs", reason, "correct it"));
                    }
                }
            }
        }
    }

    fn find_contested(&mut self, problems: &mut Vec<Problem>) {
        let mut owners: HashMap<IpAddr, &Arc<Workload>> = HashMap::new();
        for pod in self.pods.iter().filter(|pod| pod.has_identity()) {
            for address in &pod.addresses {
                let first = owners.insert(*address, &pod.workload);
                let other = match first {
                    Some(first) => format!("{}/{} claims it too", first.namespace, first.pod),
                    None if self.node_addresses.contains_key(address) => "it is a node's address".to_owned(),
                    None => continue,
                };
                self.contested.insert(*address);
                let reason = format!("{address} is nobody's: {other}; no allow matches it, every deny does");
                let remedy = "remove the pod that is gone";
                problems.push(pod.source.problem(Severity::Error, "status.podIP", reason, remedy));
            }
        }
    }
}

fn namespaces(objects: &Objects) -> BTreeMap<Arc<str>, NamespaceEntry> {
    let entry = |namespace: &Sourced<k8s_openapi::api::core::v1::Namespace>| {
        let meta = &namespace.object.metadata;
        let name: Arc<str> = meta.name.as_deref()?.into();
        let mut labels: Labels = meta.labels.clone().unwrap_or_default();
        labels.insert(NAME_LABEL.to_owned(), name.to_string());
        Some((name, NamespaceEntry { labels, source: Some(namespace.source.clone()) }))
    };
    objects.namespaces.iter().filter_map(entry).collect()
}

/// Where the API server answers: the endpoints of the Service `kubernetes` in `default`, which it keeps itself.
fn api_server(objects: &Objects) -> BTreeSet<IpAddr> {
    let slices = objects.endpoint_slices.iter().map(|slice| &slice.object);
    let own = slices.filter(|slice| slices::service_of(slice) == Some(("default", "kubernetes")));
    let addresses = own.flat_map(|slice| slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses));
    addresses.filter_map(|address| address.parse().ok()).map(canonical).collect()
}

/// IPv4 in IPv6's clothes is IPv4.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn pod_entry(pod: &Sourced<Pod>, problems: &mut Vec<Problem>) -> PodEntry {
    let Sourced { object, source } = pod;
    let text = |value: Option<&String>| -> Arc<str> { value.map(String::as_str).unwrap_or_default().into() };
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let service_account =
        spec.and_then(|spec| spec.service_account_name.as_ref()).filter(|name| !name.is_empty());
    let workload = Workload {
        namespace: text(object.metadata.namespace.as_ref()),
        pod: text(object.metadata.name.as_ref()),
        uid: text(object.metadata.uid.as_ref()),
        service_account: service_account.map_or("default", String::as_str).into(),
        node: text(spec.and_then(|spec| spec.node_name.as_ref())),
    };
    let one = status.and_then(|status| status.pod_ip.as_ref());
    let many = status.into_iter().flat_map(|status| status.pod_ips.iter().flatten().map(|ip| &ip.ip));
    let mut addresses = Vec::new();
    for text in one.into_iter().chain(many).filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(address) if addresses.contains(&canonical(address)) => {}
            Ok(address) => addresses.push(canonical(address)),
            Err(_) => {
                let reason = format!("\"{text}\" is no IP address; the pod does without it");
                problems.push(source.problem(Severity::Error, "status.podIP", reason, "correct it"));
            }
        }
    }
    let phase = status.and_then(|status| status.phase.as_deref());
    PodEntry {
        workload: Arc::new(workload),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        addresses,
        ports: named_ports(object, source, problems),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        terminated: matches!(phase, Some("Succeeded" | "Failed")),
        source: source.clone(),
    }
}

fn named_ports(pod: &Pod, source: &Source, problems: &mut Vec<Problem>) -> Vec<NamedPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    // A sidecar is an init container that keeps running; other init containers serve nothing.
    let runs = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(runs);
    let mut ports = Vec::new();
    for port in spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten())
    {
        let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) else { continue };
        let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"));
        match (protocol.filter(|p| p.has_ports()), u16::try_from(port.container_port)) {
            (Some(protocol), Ok(number)) if number > 0 => {
                ports.push(NamedPort { name: name.into(), protocol, number });
            }
            _ => {
                let reason =
                    format!("the port \"{name}\" has no valid number or protocol; nobody resolves it");
                problems.push(source.problem(Severity::Error, "spec.containers", reason, "correct it"));
            }
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}
