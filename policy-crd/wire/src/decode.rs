//! Message → snapshot: valid types, or refused whole with the name of the field.
//!
//! After it every index is in range, every expression compiles within its bounds, every prefix is canonical and
//! every list is within [`limits`]. Trusts nothing that it reads. Called by the agent, for the feed and the disk.

use crate::{WIRE_VERSION, limits, pb, services};
use sluice_policy as core;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    field: String,
    reason: String,
}

impl DecodeError {
    pub(crate) fn new(field: &str, reason: impl Into<String>) -> Self {
        Self { field: field.to_owned(), reason: reason.into() }
    }

    /// The field, as `profiles[3].ingress.deny[0].conditions`.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }

    fn within(mut self, outer: &str) -> Self {
        let dot = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        self.field = format!("{outer}{dot}{}", self.field);
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot refused: {}: {}", self.field, self.reason)
    }
}

impl std::error::Error for DecodeError {}

pub(crate) type Decoded<T> = Result<T, DecodeError>;

/// The snapshot of a message.
///
/// # Errors
/// The first field that breaks a rule. Nothing of the message is used then.
pub fn decode(message: pb::Snapshot) -> Decoded<core::Snapshot> {
    if message.wire_version != WIRE_VERSION {
        let reason = format!(
            "version {} is not {WIRE_VERSION}, which this build reads: run control and proxy of one release",
            message.wire_version
        );
        return Err(DecodeError::new("wire_version", reason));
    }
    let mut regexes = Regexes::default();
    let policies = each("policies", message.policies, limits::POLICIES, |place, p| policy(place, &p))?;
    let classes = classes(message.classes)?;
    let conditions = each("conditions", message.conditions, limits::CONDITIONS, |_, c| {
        conditions(c, &mut regexes).map(Arc::new)
    })?;
    let tables = Tables { policies, classes: classes.len(), conditions };
    let profiles = each("profiles", message.profiles, limits::ENDPOINTS, |_, p| tables.profile(p))?;
    let (workloads, named) = workloads(message.workloads)?;
    let mut taken = HashMap::new();
    let endpoints = each("endpoints", message.endpoints, limits::ENDPOINTS, |place, e| {
        let endpoint = endpoint(e, &workloads, profiles.len())?;
        // Two endpoints with one address would be judged by either's rules.
        for address in &endpoint.addresses {
            if *taken.entry(*address).or_insert(place) != place {
                let reason = format!("{address} is another endpoint's already");
                return Err(DecodeError::new("addresses", reason));
            }
        }
        Ok(Arc::new(endpoint))
    })?;
    let profiles: core::Profiles = profiles.into();
    // The first request after the swap is not the one that waits for it.
    profiles.prepare();
    Ok(core::Snapshot {
        generation: message.generation,
        addresses: addresses(message.addresses, &classes)?,
        policies: tables.policies,
        classes,
        endpoints: endpoints.into(),
        profiles,
        workloads: named,
        services: services::services(message.services)?.into(),
    })
}

/// Maps a bounded list; errors carry the place.
pub(crate) fn each<M, T>(
    field: &str,
    list: Vec<M>,
    limit: usize,
    mut one: impl FnMut(u32, M) -> Decoded<T>,
) -> Decoded<Vec<T>> {
    if list.len() > limit {
        return Err(DecodeError::new(field, format!("{} entries, at most {limit} are taken", list.len())));
    }
    (0..)
        .zip(list)
        .map(|(place, item)| one(place, item).map_err(|error| error.within(&format!("{field}[{place}]"))))
        .collect()
}

/// A bounded text.
pub(crate) fn text(field: &str, value: &str, limit: usize) -> Decoded<Arc<str>> {
    if value.len() > limit {
        return Err(DecodeError::new(field, format!("{} bytes, at most {limit} are taken", value.len())));
    }
    Ok(value.into())
}

/// A bounded text that says something.
pub(crate) fn filled(field: &str, value: &str, limit: usize) -> Decoded<Arc<str>> {
    if value.is_empty() {
        return Err(DecodeError::new(field, "is empty"));
    }
    text(field, value, limit)
}

/// A message that must be there.
fn required<T>(field: &str, value: Option<T>) -> Decoded<T> {
    value.ok_or_else(|| DecodeError::new(field, "is missing"))
}

/// An index into a table of this length.
fn index(field: &str, value: u32, len: usize) -> Decoded<usize> {
    usize::try_from(value).ok().filter(|at| *at < len).ok_or_else(|| {
        DecodeError::new(field, format!("index {value} is beyond the {len} entries of its table"))
    })
}

pub(crate) fn port(field: &str, value: u32) -> Decoded<u16> {
    u16::try_from(value).map_err(|_| DecodeError::new(field, format!("{value} is no port")))
}

fn ports(first: u32, last: u32) -> Decoded<(u16, u16)> {
    let (first, last) = (port("first", first)?, port("last", last)?);
    if first > last {
        return Err(DecodeError::new("last", format!("{last} is before the first port, {first}")));
    }
    Ok((first, last))
}

/// `all` beside a list: one of both says something.
fn either(field: &str, all: bool, listed: usize) -> Decoded<()> {
    if all && listed > 0 {
        return Err(DecodeError::new(field, format!("says all, and lists {listed} beside it")));
    }
    Ok(())
}

fn policy(place: u32, message: &pb::Policy) -> Decoded<Arc<core::Policy>> {
    let kind = match message.kind() {
        pb::Kind::Unspecified => {
            return Err(DecodeError::new("kind", format!("{} is no kind known here", message.kind)));
        }
        pb::Kind::L7NetworkPolicy => core::Kind::L7NetworkPolicy,
        pb::Kind::ClusterL7NetworkPolicy => core::Kind::ClusterL7NetworkPolicy,
        pb::Kind::NetworkPolicy => core::Kind::NetworkPolicy,
        pb::Kind::CiliumNetworkPolicy => core::Kind::CiliumNetworkPolicy,
        pb::Kind::CiliumClusterwideNetworkPolicy => core::Kind::CiliumClusterwideNetworkPolicy,
        pb::Kind::ClusterNetworkPolicy => core::Kind::ClusterNetworkPolicy,
    };
    let mode = match message.mode() {
        pb::Mode::Unspecified => {
            return Err(DecodeError::new("mode", format!("{} is no mode known here", message.mode)));
        }
        pb::Mode::Enforce => core::Mode::Enforce,
        pb::Mode::Audit => core::Mode::Audit,
    };
    let namespace = text("namespace", &message.namespace, limits::NAME_BYTES)?;
    let name = filled("name", &message.name, limits::NAME_BYTES)?;
    let origin = core::Origin { kind, namespace, name };
    Ok(Arc::new(core::Policy { id: core::PolicyId(place), origin, mode, on_deny: on_deny(message)? }))
}

fn on_deny(message: &pb::Policy) -> Decoded<core::OnDeny> {
    let action = match message.deny_action() {
        pb::DenyAction::Unspecified => {
            let reason = format!("{} is no answer known here", message.deny_action);
            return Err(DecodeError::new("deny_action", reason));
        }
        pb::DenyAction::Drop => core::DenyAction::Drop,
        pb::DenyAction::Reject => core::DenyAction::Reject,
    };
    let detail = match message.deny_detail() {
        pb::DenyDetail::Unspecified => {
            let reason = format!("{} is no answer known here", message.deny_detail);
            return Err(DecodeError::new("deny_detail", reason));
        }
        pb::DenyDetail::None => core::DenyDetail::None,
        pb::DenyDetail::Rule => core::DenyDetail::Rule,
        pb::DenyDetail::NearestMiss => core::DenyDetail::NearestMiss,
    };
    Ok(core::OnDeny { action, detail })
}

fn classes(messages: Vec<pb::Class>) -> Decoded<Vec<core::Class>> {
    use pb::class::Identity;
    if messages.is_empty() {
        return Err(DecodeError::new("classes", "entry 0, the missing identity, is missing"));
    }
    each("classes", messages, limits::CLASSES, |place, message| {
        let identity = match required("identity", message.identity)? {
            Identity::Missing(_) => core::Identity::Missing,
            Identity::Workload(name) => {
                core::Identity::Workload(filled("identity", &name, limits::IDENTITY_BYTES)?)
            }
            Identity::Node(name) => core::Identity::Node(text("identity", &name, limits::NAME_BYTES)?),
            Identity::World(_) => core::Identity::World,
            Identity::Vacant(_) => core::Identity::Vacant,
        };
        // A second missing class would be a peer like any other to the verdict: allows could name it.
        if (place == core::ClassId::MISSING.0) != (identity == core::Identity::Missing) {
            return Err(DecodeError::new("identity", "the missing identity is entry 0, and only entry 0"));
        }
        let cidrs =
            each("cidrs", message.cidrs, limits::CLASS_CIDRS, |_, c| text("", &c, limits::NAME_BYTES))?;
        Ok(core::Class { identity, cidrs })
    })
}

fn addresses(
    messages: Vec<pb::Address>,
    classes: &[core::Class],
) -> Decoded<core::PrefixTable<core::ClassId>> {
    let mut table = core::PrefixTable::new();
    each("addresses", messages, limits::ADDRESSES, |_, message| {
        let bytes: [u8; 16] = message
            .prefix
            .try_into()
            .map_err(|b: Vec<u8>| DecodeError::new("prefix", format!("{} bytes, 16 are needed", b.len())))?;
        let len = u8::try_from(message.length).ok().filter(|len| *len <= 128).ok_or_else(|| {
            DecodeError::new("length", format!("{} is no prefix length: at most 128", message.length))
        })?;
        let prefix = core::Prefix::from_mapped(u128::from_be_bytes(bytes), len);
        if prefix.mapped_bits().to_be_bytes() != bytes {
            return Err(DecodeError::new("prefix", format!("has host bits beyond /{len}")));
        }
        let place = index("class", message.class, classes.len())?;
        // It would be a peer that no set knows, and that a rule for everybody takes.
        if classes.get(place).is_some_and(|class| class.identity == core::Identity::Vacant) {
            return Err(DecodeError::new("class", "an address leads to a class that is vacant"));
        }
        match table.insert(prefix, core::ClassId(message.class)) {
            None => Ok(()),
            Some(_) => Err(DecodeError::new("prefix", format!("{prefix} is given twice"))),
        }
    })?;
    Ok(table)
}

type Named = HashMap<IpAddr, Arc<core::Workload>>;

fn workloads(messages: Vec<pb::Workload>) -> Decoded<(Vec<Arc<core::Workload>>, Named)> {
    let mut named = Named::new();
    let workloads = each("workloads", messages, limits::WORKLOADS, |_, message| {
        let name = |field, value: &str| text(field, value, limits::NAME_BYTES);
        let workload = Arc::new(core::Workload {
            namespace: name("namespace", &message.namespace)?,
            pod: filled("pod", &message.pod, limits::NAME_BYTES)?,
            uid: name("uid", &message.uid)?,
            service_account: name("service_account", &message.service_account)?,
            node: name("node", &message.node)?,
        });
        for address in pod_addresses(message.addresses)? {
            match named.entry(address) {
                Entry::Vacant(place) => place.insert(Arc::clone(&workload)),
                Entry::Occupied(_) => {
                    return Err(DecodeError::new("addresses", format!("{address} is another pod's already")));
                }
            };
        }
        Ok(workload)
    })?;
    Ok((workloads, named))
}

pub(crate) fn pod_addresses(messages: Vec<Vec<u8>>) -> Decoded<Vec<IpAddr>> {
    each("addresses", messages, limits::POD_ADDRESSES, |_, bytes| {
        if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
            return Ok(IpAddr::from(v4));
        }
        <[u8; 16]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .map_err(|_| DecodeError::new("", format!("{} bytes, an address has 4 or 16", bytes.len())))
    })
}

fn endpoint(
    message: pb::Endpoint,
    workloads: &[Arc<core::Workload>],
    profiles: usize,
) -> Decoded<core::Endpoint> {
    let workload = Arc::clone(&workloads[index("workload", message.workload, workloads.len())?]);
    if core::ProfileId(message.profile) != core::ProfileId::REFUSED {
        index("profile", message.profile, profiles)?;
    }
    let addresses = pod_addresses(message.addresses)?;
    Ok(core::Endpoint { workload, addresses, profile: core::ProfileId(message.profile) })
}

/// What rules point into.
struct Tables {
    policies: Vec<Arc<core::Policy>>,
    classes: usize,
    conditions: Vec<Arc<core::Conditions>>,
}

impl Tables {
    fn profile(&self, message: pb::Profile) -> Decoded<core::Profile> {
        let side = |field, side| self.side(required(field, side)?).map_err(|error| error.within(field));
        Ok(core::Profile {
            ingress: side("ingress", message.ingress)?,
            egress: side("egress", message.egress)?,
        })
    }

    fn side(&self, message: pb::Side) -> Decoded<core::Side> {
        let layer = |field, layer| self.layer(required(field, layer)?).map_err(|error| error.within(field));
        Ok(core::Side {
            deny: each("deny", message.deny, limits::RULES, |_, rule| self.rule(rule))?,
            layers: [layer("layer_k", message.layer_k)?, layer("layer_l", message.layer_l)?],
            admin: each("admin", message.admin, limits::RULES, |_, rule| self.tier_rule(rule))?,
            baseline: each("baseline", message.baseline, limits::RULES, |_, rule| self.tier_rule(rule))?,
        })
    }

    fn tier_rule(&self, message: pb::TierRule) -> Decoded<core::TierRule> {
        let action = match message.action() {
            pb::TierAction::Unspecified => {
                return Err(DecodeError::new(
                    "action",
                    format!("{} is no action known here", message.action),
                ));
            }
            pb::TierAction::Accept => core::TierAction::Accept,
            pb::TierAction::Deny => core::TierAction::Deny,
            pb::TierAction::Pass => core::TierAction::Pass,
        };
        let rule = self.rule(required("rule", message.rule)?).map_err(|error| error.within("rule"))?;
        Ok(core::TierRule { action, rule })
    }

    fn layer(&self, message: pb::Layer) -> Decoded<core::Layer> {
        Ok(core::Layer {
            isolation: each("isolation", message.isolation, limits::ISOLATIONS, |_, i| self.isolation(i))?,
            allow: each("allow", message.allow, limits::RULES, |_, rule| self.rule(rule))?,
        })
    }

    fn policy(&self, place: u32) -> Decoded<Arc<core::Policy>> {
        Ok(Arc::clone(&self.policies[index("policy", place, self.policies.len())?]))
    }

    fn isolation(&self, message: pb::Isolation) -> Decoded<core::Isolation> {
        either("listed", message.all, message.listed.len())?;
        let listed = each("listed", message.listed, limits::RANGES, |_, span| ports(span.first, span.last))?;
        let ports = if message.all { core::IsolatedPorts::All } else { core::IsolatedPorts::Listed(listed) };
        Ok(core::Isolation { policy: self.policy(message.policy)?, ports })
    }

    fn rule(&self, message: pb::Rule) -> Decoded<core::Rule> {
        let conditions = match message.conditions {
            None => None,
            Some(at) => Some(Arc::clone(&self.conditions[index("conditions", at, self.conditions.len())?])),
        };
        Ok(core::Rule {
            policy: self.policy(message.policy)?,
            name: text("name", &message.name, limits::NAME_BYTES)?,
            scopes: each("scopes", message.scopes, limits::SCOPES, |_, scope| self.scope(scope))?,
            conditions,
        })
    }

    fn scope(&self, message: pb::Scope) -> Decoded<core::Scope> {
        either("classes", message.all_classes, message.classes.len())?;
        either("ports", message.all_ports, message.ports.len())?;
        let peers = if message.all_classes {
            core::ClassSet::All
        } else {
            self.class_bits(&message.classes)?;
            core::ClassSet::Bits(message.classes.into())
        };
        let ranges = each("ports", message.ports, limits::RANGES, |_, range| port_range(range))?;
        let ports = if message.all_ports { core::PortSet::All } else { core::PortSet::Ranges(ranges) };
        Ok(core::Scope { peers, ports })
    }

    /// Every bit names a class of this snapshot, and none the missing one, which is in no set.
    fn class_bits(&self, bits: &[u64]) -> Decoded<()> {
        let words = self.classes.div_ceil(64);
        if bits.len() > words {
            let reason = format!("{} words, {words} hold the {} classes", bits.len(), self.classes);
            return Err(DecodeError::new("classes", reason));
        }
        let tail = self.classes % 64;
        let beyond = tail != 0 && bits.len() == words && bits[words - 1] >> tail != 0;
        if beyond {
            return Err(DecodeError::new("classes", format!("names a class beyond the {}", self.classes)));
        }
        if bits.first().is_some_and(|word| word & 1 == 1) {
            return Err(DecodeError::new("classes", "names class 0, the missing identity"));
        }
        Ok(())
    }
}

pub(crate) fn protocol(message: i32) -> Decoded<core::Protocol> {
    match pb::Protocol::try_from(message) {
        Ok(pb::Protocol::Tcp) => Ok(core::Protocol::Tcp),
        Ok(pb::Protocol::Udp) => Ok(core::Protocol::Udp),
        Ok(pb::Protocol::Sctp) => Ok(core::Protocol::Sctp),
        Ok(pb::Protocol::Icmp) => Ok(core::Protocol::Icmp),
        Ok(pb::Protocol::Other) => Ok(core::Protocol::Other),
        Ok(pb::Protocol::Unspecified) | Err(_) => {
            Err(DecodeError::new("protocol", format!("{message} is no protocol known here")))
        }
    }
}

fn port_range(message: pb::PortRange) -> Decoded<core::PortRange> {
    let protocol = protocol(message.protocol)?;
    let (first, last) = ports(message.first, message.last)?;
    Ok(core::PortRange { protocol, first, last })
}

/// Compiled expressions by source: the same one in many rules is compiled once.
#[derive(Default)]
struct Regexes(HashMap<String, core::Regex>);

impl Regexes {
    fn get(&mut self, field: &str, source: String) -> Decoded<core::Regex> {
        if let Some(regex) = self.0.get(&source) {
            return Ok(regex.clone());
        }
        if self.0.len() >= limits::REGEXES {
            let reason = format!("more than {} distinct regular expressions", limits::REGEXES);
            return Err(DecodeError::new(field, reason));
        }
        let regex = core::Regex::new(&source).map_err(|reason| DecodeError::new(field, reason))?;
        self.0.insert(source, regex.clone());
        Ok(regex)
    }
}

fn conditions(message: pb::Conditions, regexes: &mut Regexes) -> Decoded<core::Conditions> {
    Ok(core::Conditions {
        http: each("http", message.http, limits::MATCHES, |_, http| http_match(http, regexes))?,
        grpc: each("grpc", message.grpc, limits::MATCHES, |_, grpc| {
            Ok(core::GrpcMatch {
                service: filled("service", &grpc.service, limits::TEXT_BYTES)?,
                methods: methods(grpc.methods)?,
                protocols: grpc_protocols(&grpc.protocols)?,
            })
        })?,
        tls: each("tls", message.tls, limits::MATCHES, |_, name| name_match(name))?,
    })
}

fn grpc_protocols(messages: &[i32]) -> Decoded<Vec<core::GrpcProtocol>> {
    let known = |message: &i32| match pb::GrpcProtocol::try_from(*message) {
        Ok(pb::GrpcProtocol::Grpc) => Ok(core::GrpcProtocol::Grpc),
        Ok(pb::GrpcProtocol::GrpcWeb) => Ok(core::GrpcProtocol::GrpcWeb),
        Ok(pb::GrpcProtocol::Connect) => Ok(core::GrpcProtocol::Connect),
        Ok(pb::GrpcProtocol::Unspecified) | Err(_) => {
            Err(DecodeError::new("protocols", format!("{message} is no gRPC protocol known here")))
        }
    };
    if messages.is_empty() || messages.len() > limits::GRPC_PROTOCOLS {
        let reason = format!("{} protocols, from 1 to {} are taken", messages.len(), limits::GRPC_PROTOCOLS);
        return Err(DecodeError::new("protocols", reason));
    }
    messages.iter().map(known).collect()
}

/// In lower case, which names are compared in: another one would never be met by a deny.
fn lower(field: &str, value: &str) -> Decoded<Arc<str>> {
    let name = filled(field, value, limits::NAME_BYTES)?;
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(DecodeError::new(field, format!("\"{name}\" is not in lower case")));
    }
    Ok(name)
}

fn name_match(message: pb::NameMatch) -> Decoded<core::NameMatch> {
    use pb::name_match::Test;
    Ok(match required("test", message.test)? {
        Test::Exact(name) => core::NameMatch::Exact(lower("exact", &name)?),
        Test::Under(suffix) => core::NameMatch::Under(lower("under", &suffix)?),
        Test::Label(suffix) => core::NameMatch::Label(lower("label", &suffix)?),
    })
}

fn method_match(message: pb::MethodMatch, regexes: &mut Regexes) -> Decoded<core::MethodMatch> {
    use pb::method_match::Test;
    Ok(match required("test", message.test)? {
        Test::Exact(method) => core::MethodMatch::Exact(filled("exact", &method, limits::TEXT_BYTES)?),
        Test::Regex(source) => core::MethodMatch::Regex(regexes.get("regex", source)?),
    })
}

fn host_match(message: pb::HostMatch, regexes: &mut Regexes) -> Decoded<core::HostMatch> {
    use pb::host_match::Test;
    Ok(match required("test", message.test)? {
        Test::Name(name) => core::HostMatch::Name(name_match(name)?),
        Test::Regex(source) => core::HostMatch::Regex(regexes.get("regex", source)?),
        Test::Authority(source) => core::HostMatch::Authority(regexes.get("authority", source)?),
    })
}

fn query_match(message: pb::QueryMatch, regexes: &mut Regexes) -> Decoded<core::QueryMatch> {
    use pb::query_match::Test;
    let name = filled("name", &message.name, limits::TEXT_BYTES)?;
    let test = match required("test", message.test)? {
        Test::Exact(value) => core::HeaderTest::Exact(text("exact", &value, limits::TEXT_BYTES)?),
        Test::Regex(source) => core::HeaderTest::Regex(regexes.get("regex", source)?),
        Test::Present(_) => core::HeaderTest::Present,
        Test::Absent(_) => core::HeaderTest::Absent,
    };
    Ok(core::QueryMatch { name, test })
}

fn methods(messages: Vec<String>) -> Decoded<Vec<Arc<str>>> {
    each("methods", messages, limits::METHODS, |_, method| filled("", &method, limits::TEXT_BYTES))
}

fn http_match(message: pb::HttpMatch, regexes: &mut Regexes) -> Decoded<core::HttpMatch> {
    let path = match message.path {
        None => None,
        Some(path) => Some(path_match(path, regexes).map_err(|error| error.within("path"))?),
    };
    Ok(core::HttpMatch {
        methods: each("methods", message.methods, limits::METHODS, |_, m| method_match(m, regexes))?,
        path,
        hosts: each("hosts", message.hosts, limits::MATCHES, |_, h| host_match(h, regexes))?,
        headers: each("headers", message.headers, limits::HEADERS, |_, h| header_match(h, regexes))?,
        query: each("query", message.query, limits::HEADERS, |_, q| query_match(q, regexes))?,
        upgrades: each("upgrades", message.upgrades, limits::METHODS, |_, token| lower("", &token))?,
    })
}

fn path_match(message: pb::PathMatch, regexes: &mut Regexes) -> Decoded<core::PathMatch> {
    use pb::path_match::Test;
    Ok(match required("test", message.test)? {
        Test::Exact(value) => core::PathMatch::Exact(filled("exact", &value, limits::TEXT_BYTES)?),
        // A prefix without its first slash matches nothing: a deny of it would deny nothing.
        Test::Prefix(value) if !value.is_empty() && !value.starts_with('/') => {
            return Err(DecodeError::new("prefix", format!("\"{value}\" does not begin with /")));
        }
        Test::Prefix(value) => core::PathMatch::Prefix(text("prefix", &value, limits::TEXT_BYTES)?),
        Test::Regex(source) => core::PathMatch::Regex(regexes.get("regex", source)?),
        Test::Target(source) => core::PathMatch::Target(regexes.get("target", source)?),
    })
}

fn header_match(message: pb::HeaderMatch, regexes: &mut Regexes) -> Decoded<core::HeaderMatch> {
    use pb::header_match::Test;
    let name = filled("name", &message.name, limits::NAME_BYTES)?;
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(DecodeError::new(
            "name",
            format!("\"{name}\" is not in lower case, which requests are read in"),
        ));
    }
    let test = match required("test", message.test)? {
        Test::Exact(value) => core::HeaderTest::Exact(text("exact", &value, limits::TEXT_BYTES)?),
        Test::Regex(source) => core::HeaderTest::Regex(regexes.get("regex", source)?),
        Test::Present(_) => core::HeaderTest::Present,
        Test::Absent(_) => core::HeaderTest::Absent,
    };
    Ok(core::HeaderMatch { name, test })
}
