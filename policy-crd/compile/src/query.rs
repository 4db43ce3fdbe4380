//! One question to a whole cluster: may this one say that to that one?
//!
//! Runs the engine that the proxy runs, over a snapshot of every node. Knows nothing of command lines or JSON;
//! the CLI and the corpora ask here.

mod behind;

pub use behind::{Behind, Judged};

use crate::index::canonical;
use crate::services::Table;
use crate::{Compiled, NodeScope, Options, PolicyState, Rollout, compile};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use sluice_crd::{Objects, Problem};
use sluice_policy::path::Path;
use sluice_policy::{
    Direction, Endpoint, Facts, HttpVersion, Origin, Protocol, Request, RowAction, SideVerdict, Snapshot,
    Source, Traced, Verdict, Workload,
};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// A cluster that can be asked.
pub struct Cluster {
    snapshot: Snapshot,
    pods: HashMap<(String, String), PodFacts>,
    /// Addresses that several running pods claim.
    shared: HashSet<IpAddr>,
    /// The Services, as each node sees them.
    services: Table,
    /// What was wrong with the objects' meaning.
    pub problems: Vec<Problem>,
    /// Every policy and what it has come to.
    pub policies: Vec<PolicyState>,
}

struct PodFacts {
    addresses: Vec<IpAddr>,
    ports: Vec<(String, Protocol, u16)>,
    terminated: bool,
    host_network: bool,
}

/// The question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// `namespace/pod` or an address.
    pub from: String,
    /// `namespace/pod` or an address; the address of a Service stands for its backends.
    pub to: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: Port,
    /// What is said.
    pub said: Said,
}

/// A destination port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// By number.
    Number(u16),
    /// By the name of a port of the destination pod.
    Named(String),
}

/// What is said over the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing yet: L3/L4 alone.
    Nothing,
    /// An HTTP request.
    Http {
        /// The method.
        method: String,
        /// Path and query.
        target: String,
        /// `Host` or `:authority`.
        host: Option<String>,
        /// Header fields.
        headers: Vec<(String, String)>,
    },
    /// A TLS connection; what is said inside is not known.
    Tls {
        /// The server name that the client asks for; `None` where there is none, or only an encrypted one.
        server_name: Option<String>,
    },
    /// A gRPC call.
    Grpc {
        /// The service, with its package.
        service: String,
        /// The method.
        method: String,
        /// Metadata.
        headers: Vec<(String, String)>,
    },
}

impl Said {
    /// Asks with the facts that it makes.
    fn ask<T>(&self, judge: impl FnOnce(Facts<'_>) -> T) -> T {
        match self {
            Self::Nothing => judge(Facts::Connection),
            Self::Tls { server_name } => {
                // As the data plane reads it (RFC 6066 §3): names have no case, and no trailing dot.
                let name = server_name.as_ref().map(|name| name.to_ascii_lowercase());
                judge(Facts::Tls(name.as_ref().map(|name| name.strip_suffix('.').unwrap_or(name))))
            }
            Self::Http { method, target, host, headers } => {
                let (path, query) = target
                    .split_once('?')
                    .map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
                let headers = lower_case(headers);
                let headers = borrowed(&headers);
                let upgrade = upgrade(&headers);
                let request = Request {
                    version: HttpVersion::Http1,
                    method,
                    path: Path::new(path),
                    query,
                    host: host.as_deref(),
                    upgrade: upgrade.as_deref(),
                    headers: &headers,
                };
                judge(Facts::Request(&request))
            }
            Self::Grpc { service, method, headers } => {
                let path = format!("/{service}/{method}");
                let mut headers = lower_case(headers);
                headers.insert(0, ("content-type".to_owned(), "application/grpc".to_owned()));
                let headers = borrowed(&headers);
                let request = Request {
                    version: HttpVersion::Http2,
                    method: "POST",
                    path: Path::new(&path),
                    query: None,
                    host: None,
                    upgrade: None,
                    headers: &headers,
                };
                judge(Facts::Request(&request))
            }
        }
    }
}

/// A question with its names resolved.
#[derive(Clone, Copy)]
struct Put {
    source: Source,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
}

/// What must be known of a policy that selects a pod, beside its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note<'c> {
    /// The policy.
    pub origin: &'c Origin,
    /// What of it.
    pub standing: Standing,
}

/// Why a policy that selects a pod does not do all that it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Something in it is wrong: that is judged fail closed, the rest as written.
    NotAccepted,
    /// The pod is outside the dataplane, or on the host's network.
    NotEnforced,
    /// The rollout has switched it off.
    Off,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryError(String);

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for QueryError {}

/// A made-up address for a pod that has none yet: of the reserved range, which only 0.0.0.0/0 contains.
const MADE_UP: u32 = u32::from_be_bytes([240, 0, 0, 1]);

impl Cluster {
    /// Compiles every node's endpoints.
    #[must_use]
    pub fn new(objects: &Objects, rollout: Rollout) -> Self {
        let mut objects = objects.clone();
        make_up_addresses(&mut objects);
        let options = Options { node: NodeScope::All, rollout, generation: 1 };
        let Compiled { snapshot, problems, policies } = compile(&objects, &options);
        let pods: HashMap<(String, String), PodFacts> =
            objects.pods.iter().filter_map(|pod| facts(&pod.object)).collect();
        let mut seen = HashSet::new();
        let claimed = pods.values().filter(|pod| !pod.terminated && !pod.host_network);
        let shared = claimed.flat_map(|pod| &pod.addresses).copied().filter(|ip| !seen.insert(*ip)).collect();
        // What was wrong with them is among the problems already.
        let services = Table::new(&objects, &mut Vec::new());
        Self { snapshot, pods, shared, services, problems, policies }
    }

    /// The snapshot of all nodes.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Answers a question.
    ///
    /// # Errors
    /// Says which part of the question names nothing, and what to write instead.
    pub fn ask(&self, query: &Query) -> Result<Verdict, QueryError> {
        if let Some(behind) = self.behind(query)? {
            return Ok(behind.verdict());
        }
        let judge = |Put { source, to, protocol, port }: Put, facts: Facts<'_>| {
            self.snapshot.judge(source, to, protocol, port, facts)
        };
        let unjudged = || Verdict { egress: SideVerdict::unjudged(), ingress: SideVerdict::unjudged() };
        Ok(self.put(query, judge)?.unwrap_or_else(unjudged))
    }

    /// Answers a question, and tells how the answer came about. The verdict is that of [`ask`](Self::ask).
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn trace(&self, query: &Query) -> Result<Traced, QueryError> {
        if let Some(behind) = self.behind(query)? {
            return match behind.deciding() {
                Some(judged) => self.trace_one(&judged.query(query)),
                None => Ok(Traced { verdict: behind.verdict(), egress: None, ingress: None }),
            };
        }
        self.trace_one(query)
    }

    /// The same of the very address.
    fn trace_one(&self, query: &Query) -> Result<Traced, QueryError> {
        let trace = |Put { source, to, protocol, port }: Put, facts: Facts<'_>| {
            self.snapshot.trace(source, to, protocol, port, facts)
        };
        let unjudged = || Traced {
            verdict: Verdict { egress: SideVerdict::unjudged(), ingress: SideVerdict::unjudged() },
            egress: None,
            ingress: None,
        };
        Ok(self.put(query, trace)?.unwrap_or_else(unjudged))
    }

    /// What must be known of the policies that select a pod, given as in a question; of an address the pod's that has
    /// it.
    #[must_use]
    pub fn notes(&self, peer: &str) -> Vec<Note<'_>> {
        let by_address = || {
            let address = canonical(peer.parse::<IpAddr>().ok()?);
            let workload = self.snapshot.workloads.get(&address)?;
            Some((&*workload.namespace, &*workload.pod))
        };
        let Some((namespace, pod)) = peer.split_once('/').or_else(by_address) else { return Vec::new() };
        let has = |pods: &[Arc<Workload>]| pods.iter().any(|w| &*w.namespace == namespace && &*w.pod == pod);
        let note = |state: &'_ PolicyState| match state {
            PolicyState { mode: None, selected, .. } if has(selected) => Some(Standing::Off),
            PolicyState { not_enforced, .. } if has(not_enforced) => Some(Standing::NotEnforced),
            PolicyState { accepted: false, selected, .. } if has(selected) => Some(Standing::NotAccepted),
            _ => None,
        };
        let states = self.policies.iter();
        states.filter_map(|state| Some(Note { origin: &state.origin, standing: note(state)? })).collect()
    }

    /// Puts a question to whoever judges. `None`: a pod reaching itself is never judged.
    fn put<T>(
        &self,
        query: &Query,
        judge: impl FnOnce(Put, Facts<'_>) -> T,
    ) -> Result<Option<T>, QueryError> {
        let from = self.resolve(&query.from)?;
        let to = self.resolve(&query.to)?;
        let (from, to) = same_family(&from, &to);
        let port = self.port(query)?;
        if from == to {
            return Ok(None);
        }
        let put = Put { source: self.source(from, to), to, protocol: query.protocol, port };
        Ok(Some(query.said.ask(|facts| judge(put, facts))))
    }

    /// A node asks for itself: what comes through it has an address of its own.
    fn source(&self, from: IpAddr, to: IpAddr) -> Source {
        let own = |endpoint: &Arc<Endpoint>| {
            self.snapshot.is_node(self.snapshot.class_of(from), &endpoint.workload.node)
        };
        if self.snapshot.endpoint_at(to).is_some_and(own) { Source::Host(from) } else { from.into() }
    }

    /// Whether the connection is let through to be judged by request.
    #[must_use]
    pub fn judged_by_request(&self, query: &Query) -> bool {
        if let Ok(Some(behind)) = self.behind(query) {
            return behind.deciding().is_some_and(|judged| self.is_judged_by_request(&judged.query(query)));
        }
        self.is_judged_by_request(query)
    }

    fn is_judged_by_request(&self, query: &Query) -> bool {
        let (Ok(from), Ok(to), Ok(port)) =
            (self.resolve(&query.from), self.resolve(&query.to), self.port(query))
        else {
            return false;
        };
        let (from, to) = same_family(&from, &to);
        let row = |endpoint: IpAddr, peer: IpAddr, direction: Direction| {
            let endpoint = self.snapshot.endpoint_at(endpoint)?;
            let profile = self.snapshot.profile(endpoint.profile)?;
            let connection =
                self.snapshot.connection(endpoint, direction, self.source(peer, to), query.protocol, port);
            Some(profile.side(direction).row(&connection).action)
        };
        let rows = [row(from, to, Direction::Egress), row(to, from, Direction::Ingress)];
        from != to
            && query.said == Said::Nothing
            && rows.contains(&Some(RowAction::ToProxy))
            && !rows.contains(&Some(RowAction::Deny))
    }

    fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, QueryError> {
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(vec![canonical(address)]);
        }
        let (namespace, pod) = name.split_once('/').ok_or_else(|| {
            QueryError(format!("\"{name}\" is neither namespace/pod nor an IP address: write one of them"))
        })?;
        let facts = self.pods.get(&(namespace.to_owned(), pod.to_owned())).ok_or_else(|| {
            let mut near: Vec<String> = self
                .pods
                .keys()
                .filter(|(ns, other)| ns == namespace || other == pod)
                .map(|(ns, other)| format!("{ns}/{other}"))
                .collect();
            near.sort();
            near.truncate(8);
            let known = if near.is_empty() { "none is near".to_owned() } else { near.join(", ") };
            QueryError(format!("there is no pod {name} in these manifests: known there: {known}"))
        })?;
        if facts.terminated {
            return Err(QueryError(format!(
                "the pod {name} has ended and talks to nobody: ask about a running one"
            )));
        }
        if facts.addresses.is_empty() {
            let remedy = "add status.podIP to its manifest, or ask by its node's address";
            return Err(QueryError(format!(
                "the pod {name} is on the host's network and has no address: {remedy}"
            )));
        }
        let shared = |address: &&IpAddr| self.shared.contains(*address);
        if let Some(address) = facts.addresses.iter().find(shared) {
            let remedy = "remove the pod that is gone";
            return Err(QueryError(format!(
                "{address} of {name} is another pod's too, so nobody is known by it: {remedy}"
            )));
        }
        Ok(facts.addresses.clone())
    }

    fn port(&self, query: &Query) -> Result<u16, QueryError> {
        let name = match &query.port {
            Port::Number(number) => return Ok(*number),
            Port::Named(name) => name,
        };
        let Some((namespace, pod)) = query.to.split_once('/') else {
            return Err(QueryError(format!("the port \"{name}\" needs a pod to have it: write a number")));
        };
        let ports = self.pods.get(&(namespace.to_owned(), pod.to_owned())).map(|facts| &facts.ports);
        let of_pod = || ports.into_iter().flatten();
        of_pod()
            .find(|(given, protocol, _)| given == name && *protocol == query.protocol)
            .map(|(_, _, number)| *number)
            .ok_or_else(|| {
                let known: Vec<&str> = of_pod().map(|(given, _, _)| given.as_str()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                QueryError(format!(
                    "{} has no {} port \"{name}\": named there: {known}",
                    query.to, query.protocol
                ))
            })
    }
}

/// One address of each, of one family if they have one in common.
fn same_family(from: &[IpAddr], to: &[IpAddr]) -> (IpAddr, IpAddr) {
    let pair =
        from.iter().flat_map(|f| to.iter().map(move |t| (*f, *t))).find(|(f, t)| f.is_ipv4() == t.is_ipv4());
    pair.unwrap_or_else(|| (from[0], to[0]))
}

fn lower_case(headers: &[(String, String)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect()
}

fn borrowed(headers: &[(String, String)]) -> Vec<(&str, &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

/// What an HTTP/1.1 request asks to be upgraded to (RFC 9110 §7.8). Several fields are one list (§5.3).
fn upgrade(headers: &[(&str, &[u8])]) -> Option<String> {
    let values = headers.iter().filter(|(name, _)| *name == "upgrade");
    let values: Vec<_> = values.map(|(_, value)| String::from_utf8_lossy(value)).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// Pods of manifests without status get addresses, so that they can be told apart.
fn make_up_addresses(objects: &mut Objects) {
    let taken: HashSet<String> = objects
        .pods
        .iter()
        .filter_map(|pod| pod.object.status.as_ref())
        .flat_map(|status| status.pod_ip.iter().chain(status.pod_ips.iter().flatten().map(|ip| &ip.ip)))
        .cloned()
        .collect();
    let mut free =
        (MADE_UP..u32::MAX).map(|bits| Ipv4Addr::from(bits).to_string()).filter(|ip| !taken.contains(ip));
    for pod in &mut objects.pods {
        let host_network = pod.object.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        let status = Arc::make_mut(&mut pod.object).status.get_or_insert_with(PodStatus::default);
        let without = status.pod_ip.as_deref().is_none_or(str::is_empty)
            && status.pod_ips.as_ref().is_none_or(Vec::is_empty);
        if without && !host_network {
            status.pod_ip = free.next();
        }
    }
}

fn facts(pod: &Pod) -> Option<((String, String), PodFacts)> {
    let name = (pod.metadata.namespace.clone()?, pod.metadata.name.clone()?);
    let status = pod.status.as_ref();
    let ips =
        status.into_iter().flat_map(|s| s.pod_ip.iter().chain(s.pod_ips.iter().flatten().map(|ip| &ip.ip)));
    let mut addresses = Vec::new();
    for address in ips.filter_map(|ip| ip.parse().ok()).map(canonical) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
        let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?;
        Some((port.name.clone()?, protocol, u16::try_from(port.container_port).ok()?))
    });
    let phase = status.and_then(|status| status.phase.as_deref());
    let terminated = matches!(phase, Some("Succeeded" | "Failed"));
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    Some((name, PodFacts { addresses, ports: ports.collect(), terminated, host_network }))
}
