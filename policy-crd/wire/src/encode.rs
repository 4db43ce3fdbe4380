//! Snapshot → message. Same snapshot, same bytes: tables are sorted, equal conditions and workloads travel once.
//!
//! Knows no limits: what is too large is for [`decode`](crate::decode()) to refuse. Called by control and by the
//! writer of a node's last snapshot.

use crate::{WIRE_VERSION, pb, services};
use sluice_policy as core;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// The message of a snapshot.
#[must_use]
pub fn encode(snapshot: &core::Snapshot) -> pb::Snapshot {
    let mut conditions = Table::default();
    let profiles = snapshot
        .profiles
        .iter()
        .map(|p| pb::Profile {
            ingress: Some(side(&p.ingress, &mut conditions)),
            egress: Some(side(&p.egress, &mut conditions)),
        })
        .collect();
    let (workloads, endpoints) = pods(snapshot);
    pb::Snapshot {
        wire_version: WIRE_VERSION,
        generation: snapshot.generation,
        policies: snapshot.policies.iter().map(|p| policy(p)).collect(),
        classes: snapshot.classes.iter().map(class).collect(),
        addresses: addresses(&snapshot.addresses),
        workloads,
        endpoints,
        profiles,
        conditions: conditions.items.iter().map(|c| conditions_message(c)).collect(),
        services: snapshot.services.iter().map(services::service).collect(),
    }
}

/// Distinct values in the order of their first use.
struct Table<T> {
    items: Vec<Arc<T>>,
    places: HashMap<Arc<T>, u32>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { items: Vec::new(), places: HashMap::new() }
    }
}

impl<T: Eq + std::hash::Hash> Table<T> {
    fn place(&mut self, item: &Arc<T>) -> u32 {
        if let Some(place) = self.places.get(item) {
            return *place;
        }
        // More than 2^32 entries cannot be in memory; saturating, the decoder would refuse the index.
        let place = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        self.items.push(Arc::clone(item));
        self.places.insert(Arc::clone(item), place);
        place
    }
}

fn pods(snapshot: &core::Snapshot) -> (Vec<pb::Workload>, Vec<pb::Endpoint>) {
    let mut table = Table::default();
    let endpoints = snapshot
        .endpoints
        .iter()
        .map(|e| pb::Endpoint {
            workload: table.place(&e.workload),
            addresses: e.addresses.iter().copied().map(address_bytes).collect(),
            profile: e.profile.0,
        })
        .collect();
    let by_address: BTreeMap<&IpAddr, &Arc<core::Workload>> = snapshot.workloads.iter().collect();
    let mut named: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
    for (address, workload) in by_address {
        named.entry(table.place(workload)).or_default().push(address_bytes(*address));
    }
    let workloads = (0..).zip(&table.items).map(|(place, w)| pb::Workload {
        namespace: w.namespace.to_string(),
        pod: w.pod.to_string(),
        uid: w.uid.to_string(),
        service_account: w.service_account.to_string(),
        node: w.node.to_string(),
        addresses: named.remove(&place).unwrap_or_default(),
    });
    (workloads.collect(), endpoints)
}

pub(crate) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn policy(policy: &core::Policy) -> pb::Policy {
    let kind = match policy.origin.kind {
        core::Kind::L7NetworkPolicy => pb::Kind::L7NetworkPolicy,
        core::Kind::ClusterL7NetworkPolicy => pb::Kind::ClusterL7NetworkPolicy,
        core::Kind::NetworkPolicy => pb::Kind::NetworkPolicy,
        core::Kind::CiliumNetworkPolicy => pb::Kind::CiliumNetworkPolicy,
        core::Kind::CiliumClusterwideNetworkPolicy => pb::Kind::CiliumClusterwideNetworkPolicy,
        core::Kind::ClusterNetworkPolicy => pb::Kind::ClusterNetworkPolicy,
    };
    let mode = match policy.mode {
        core::Mode::Enforce => pb::Mode::Enforce,
        core::Mode::Audit => pb::Mode::Audit,
    };
    pb::Policy {
        kind: kind.into(),
        namespace: policy.origin.namespace.to_string(),
        name: policy.origin.name.to_string(),
        mode: mode.into(),
        deny_action: match policy.on_deny.action {
            core::DenyAction::Drop => pb::DenyAction::Drop,
            core::DenyAction::Reject => pb::DenyAction::Reject,
        }
        .into(),
        deny_detail: match policy.on_deny.detail {
            core::DenyDetail::None => pb::DenyDetail::None,
            core::DenyDetail::Rule => pb::DenyDetail::Rule,
            core::DenyDetail::NearestMiss => pb::DenyDetail::NearestMiss,
        }
        .into(),
    }
}

fn class(class: &core::Class) -> pb::Class {
    use pb::class::Identity;
    let identity = match &class.identity {
        core::Identity::Missing => Identity::Missing(true),
        core::Identity::Workload(name) => Identity::Workload(name.to_string()),
        core::Identity::Node(name) => Identity::Node(name.to_string()),
        core::Identity::World => Identity::World(true),
        core::Identity::Vacant => Identity::Vacant(true),
    };
    pb::Class { identity: Some(identity), cidrs: class.cidrs.iter().map(ToString::to_string).collect() }
}

fn addresses(table: &core::PrefixTable<core::ClassId>) -> Vec<pb::Address> {
    let sorted: BTreeMap<core::Prefix, core::ClassId> = table.iter().map(|(p, c)| (p, *c)).collect();
    let message = |(prefix, class): (core::Prefix, core::ClassId)| pb::Address {
        prefix: prefix.mapped_bits().to_be_bytes().to_vec(),
        length: u32::from(prefix.mapped_len()),
        class: class.0,
    };
    sorted.into_iter().map(message).collect()
}

fn side(side: &core::Side, conditions: &mut Table<core::Conditions>) -> pb::Side {
    let [k, l] = &side.layers;
    pb::Side {
        deny: side.deny.iter().map(|r| rule(r, conditions)).collect(),
        layer_k: Some(layer(k, conditions)),
        layer_l: Some(layer(l, conditions)),
        admin: side.admin.iter().map(|r| tier_rule(r, conditions)).collect(),
        baseline: side.baseline.iter().map(|r| tier_rule(r, conditions)).collect(),
    }
}

fn tier_rule(tiered: &core::TierRule, conditions: &mut Table<core::Conditions>) -> pb::TierRule {
    let action = match tiered.action {
        core::TierAction::Accept => pb::TierAction::Accept,
        core::TierAction::Deny => pb::TierAction::Deny,
        core::TierAction::Pass => pb::TierAction::Pass,
    };
    pb::TierRule { action: action.into(), rule: Some(rule(&tiered.rule, conditions)) }
}

fn layer(layer: &core::Layer, conditions: &mut Table<core::Conditions>) -> pb::Layer {
    pb::Layer {
        isolation: layer.isolation.iter().map(isolation).collect(),
        allow: layer.allow.iter().map(|r| rule(r, conditions)).collect(),
    }
}

fn isolation(isolation: &core::Isolation) -> pb::Isolation {
    let listed = match &isolation.ports {
        core::IsolatedPorts::All => Vec::new(),
        core::IsolatedPorts::Listed(spans) => spans
            .iter()
            .map(|&(first, last)| pb::PortSpan { first: u32::from(first), last: u32::from(last) })
            .collect(),
    };
    pb::Isolation {
        policy: isolation.policy.id.0,
        all: matches!(isolation.ports, core::IsolatedPorts::All),
        listed,
    }
}

fn rule(rule: &core::Rule, conditions: &mut Table<core::Conditions>) -> pb::Rule {
    pb::Rule {
        policy: rule.policy.id.0,
        name: rule.name.to_string(),
        scopes: rule.scopes.iter().map(scope).collect(),
        conditions: rule.conditions.as_ref().map(|c| conditions.place(c)),
    }
}

fn scope(scope: &core::Scope) -> pb::Scope {
    let (all_classes, classes) = match &scope.peers {
        core::ClassSet::All => (true, Vec::new()),
        core::ClassSet::Bits(bits) => (false, bits.to_vec()),
    };
    let range = |range: &core::PortRange| pb::PortRange {
        protocol: protocol(range.protocol).into(),
        first: u32::from(range.first),
        last: u32::from(range.last),
    };
    pb::Scope {
        all_classes,
        classes,
        all_ports: scope.ports == core::PortSet::All,
        ports: scope.ports.ranges().iter().map(range).collect(),
    }
}

pub(crate) fn protocol(protocol: core::Protocol) -> pb::Protocol {
    match protocol {
        core::Protocol::Tcp => pb::Protocol::Tcp,
        core::Protocol::Udp => pb::Protocol::Udp,
        core::Protocol::Sctp => pb::Protocol::Sctp,
        core::Protocol::Icmp => pb::Protocol::Icmp,
        core::Protocol::Other => pb::Protocol::Other,
    }
}

fn strings(strings: &[Arc<str>]) -> Vec<String> {
    strings.iter().map(ToString::to_string).collect()
}

fn conditions_message(conditions: &core::Conditions) -> pb::Conditions {
    let grpc = |m: &core::GrpcMatch| pb::GrpcMatch {
        service: m.service.to_string(),
        methods: strings(&m.methods),
        protocols: m.protocols.iter().map(|protocol| grpc_protocol(*protocol).into()).collect(),
    };
    pb::Conditions {
        http: conditions.http.iter().map(http_match).collect(),
        grpc: conditions.grpc.iter().map(grpc).collect(),
        tls: conditions.tls.iter().map(name_match).collect(),
    }
}

fn http_match(http: &core::HttpMatch) -> pb::HttpMatch {
    use pb::path_match::Test;
    let path = http.path.as_ref().map(|path| match path {
        core::PathMatch::Exact(value) => Test::Exact(value.to_string()),
        core::PathMatch::Prefix(value) => Test::Prefix(value.to_string()),
        core::PathMatch::Regex(regex) => Test::Regex(regex.source().to_owned()),
        core::PathMatch::Target(regex) => Test::Target(regex.source().to_owned()),
    });
    pb::HttpMatch {
        methods: http.methods.iter().map(method_match).collect(),
        path: path.map(|test| pb::PathMatch { test: Some(test) }),
        hosts: http.hosts.iter().map(host_match).collect(),
        headers: http.headers.iter().map(header_match).collect(),
        query: http.query.iter().map(query_match).collect(),
        upgrades: strings(&http.upgrades),
    }
}

fn grpc_protocol(protocol: core::GrpcProtocol) -> pb::GrpcProtocol {
    match protocol {
        core::GrpcProtocol::Grpc => pb::GrpcProtocol::Grpc,
        core::GrpcProtocol::GrpcWeb => pb::GrpcProtocol::GrpcWeb,
        core::GrpcProtocol::Connect => pb::GrpcProtocol::Connect,
    }
}

fn method_match(method: &core::MethodMatch) -> pb::MethodMatch {
    use pb::method_match::Test;
    let test = match method {
        core::MethodMatch::Exact(method) => Test::Exact(method.to_string()),
        core::MethodMatch::Regex(regex) => Test::Regex(regex.source().to_owned()),
    };
    pb::MethodMatch { test: Some(test) }
}

fn name_match(name: &core::NameMatch) -> pb::NameMatch {
    use pb::name_match::Test;
    let test = match name {
        core::NameMatch::Exact(name) => Test::Exact(name.to_string()),
        core::NameMatch::Under(suffix) => Test::Under(suffix.to_string()),
        core::NameMatch::Label(suffix) => Test::Label(suffix.to_string()),
    };
    pb::NameMatch { test: Some(test) }
}

fn host_match(host: &core::HostMatch) -> pb::HostMatch {
    use pb::host_match::Test;
    let test = match host {
        core::HostMatch::Name(name) => Test::Name(name_match(name)),
        core::HostMatch::Regex(regex) => Test::Regex(regex.source().to_owned()),
        core::HostMatch::Authority(regex) => Test::Authority(regex.source().to_owned()),
    };
    pb::HostMatch { test: Some(test) }
}

fn query_match(query: &core::QueryMatch) -> pb::QueryMatch {
    use pb::query_match::Test;
    let test = match &query.test {
        core::HeaderTest::Exact(value) => Test::Exact(value.to_string()),
        core::HeaderTest::Regex(regex) => Test::Regex(regex.source().to_owned()),
        core::HeaderTest::Present => Test::Present(true),
        core::HeaderTest::Absent => Test::Absent(true),
    };
    pb::QueryMatch { name: query.name.to_string(), test: Some(test) }
}

fn header_match(header: &core::HeaderMatch) -> pb::HeaderMatch {
    use pb::header_match::Test;
    let test = match &header.test {
        core::HeaderTest::Exact(value) => Test::Exact(value.to_string()),
        core::HeaderTest::Regex(regex) => Test::Regex(regex.source().to_owned()),
        core::HeaderTest::Present => Test::Present(true),
        core::HeaderTest::Absent => Test::Absent(true),
    };
    pb::HeaderMatch { name: header.name.to_string(), test: Some(test) }
}
