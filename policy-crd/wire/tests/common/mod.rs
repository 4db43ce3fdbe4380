//! Random valid snapshots, for the tests of this crate. Called by them alone.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use sluice_policy::{
    Backend, Class, ClassId, ClassSet, Conditions, DenyAction, DenyDetail, Endpoint, GrpcMatch, GrpcProtocol,
    HeaderMatch, HeaderTest, HostMatch, HttpMatch, Identity, IsolatedPorts, Isolation, Kind, Layer,
    MethodMatch, Mode, NameMatch, OnDeny, Origin, PathMatch, Policy, PolicyId, PortRange, PortSet, Prefix,
    PrefixTable, Profile, ProfileId, Protocol, QueryMatch, Regex, Rule, Scope, Service, ServicePort, Side,
    Snapshot, TierAction, TierRule, Workload,
};
use std::net::IpAddr;
use std::sync::Arc;

fn name() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9-]{0,8}".prop_map(Arc::from)
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn workload() -> impl Strategy<Value = Arc<Workload>> {
    (name(), name(), "[0-9a-f]{0,8}", name(), name()).prop_map(
        |(namespace, pod, uid, service_account, node)| {
            Arc::new(Workload { namespace, pod, uid: uid.into(), service_account, node })
        },
    )
}

fn policies() -> impl Strategy<Value = Vec<Arc<Policy>>> {
    let origin = (0..Kind::ALL.len(), name(), name()).prop_map(|(kind, namespace, name)| Origin {
        kind: Kind::ALL[kind],
        namespace,
        name,
    });
    let mode = prop_oneof![Just(Mode::Audit), Just(Mode::Enforce)];
    let action = prop_oneof![Just(DenyAction::Drop), Just(DenyAction::Reject)];
    let detail = prop_oneof![Just(DenyDetail::None), Just(DenyDetail::Rule), Just(DenyDetail::NearestMiss)];
    let on_deny = (action, detail).prop_map(|(action, detail)| OnDeny { action, detail });
    vec((origin, mode, on_deny), 1..4).prop_map(|policies| {
        let numbered = (0..).zip(policies);
        let policy =
            |(id, (origin, mode, on_deny))| Arc::new(Policy { id: PolicyId(id), origin, mode, on_deny });
        numbered.map(policy).collect()
    })
}

fn class() -> impl Strategy<Value = Class> {
    let identity = prop_oneof![
        name().prop_map(Identity::Workload),
        name().prop_map(Identity::Node),
        Just(Identity::Node("".into())),
        Just(Identity::World)
    ];
    (identity, vec(Just(Arc::from("10.0.0.0/8")), 0..2))
        .prop_map(|(identity, cidrs)| Class { identity, cidrs })
}

fn regex() -> impl Strategy<Value = Regex> {
    "[a-z]{1,4}[+*?]?(\\|[a-z]{1,3})?".prop_map(|source| Regex::new(&source).expect("a valid pattern"))
}

fn conditions() -> impl Strategy<Value = Arc<Conditions>> {
    let path = prop_oneof![
        "/[a-z/]{0,6}".prop_map(|p| PathMatch::Exact(p.into())),
        "/[a-z/]{0,6}".prop_map(|p| PathMatch::prefix(&p)),
        regex().prop_map(PathMatch::Regex),
        regex().prop_map(PathMatch::Target)
    ];
    let test = prop_oneof![
        "[ -~]{0,6}".prop_map(|v| HeaderTest::Exact(v.into())),
        regex().prop_map(HeaderTest::Regex),
        Just(HeaderTest::Present),
        Just(HeaderTest::Absent)
    ];
    let header = (name(), test.clone()).prop_map(|(name, test)| HeaderMatch { name, test });
    let query = (name(), test).prop_map(|(name, test)| QueryMatch { name, test });
    let method = prop_oneof![
        "[A-Z]{1,6}".prop_map(|method| MethodMatch::Exact(method.into())),
        regex().prop_map(MethodMatch::Regex)
    ];
    let hosts = prop_oneof![
        server_name().prop_map(HostMatch::Name),
        regex().prop_map(HostMatch::Regex),
        regex().prop_map(HostMatch::Authority)
    ];
    let said = (vec(method, 0..3), proptest::option::of(path), vec(header, 0..3));
    let http = (said, vec(hosts, 0..3), vec(query, 0..3), vec("[a-z]{1,6}".prop_map(Arc::from), 0..2))
        .prop_map(|((methods, path, headers), hosts, query, upgrades)| HttpMatch {
            methods,
            path,
            hosts,
            headers,
            query,
            upgrades,
        });
    let protocol =
        prop_oneof![Just(GrpcProtocol::Grpc), Just(GrpcProtocol::GrpcWeb), Just(GrpcProtocol::Connect)];
    let grpc = (name(), vec(name(), 0..3), vec(protocol, 1..4))
        .prop_map(|(service, methods, protocols)| GrpcMatch { service, methods, protocols });
    (vec(http, 0..3), vec(grpc, 0..2), vec(server_name(), 0..2))
        .prop_map(|(http, grpc, tls)| Arc::new(Conditions { http, grpc, tls }))
}

fn server_name() -> impl Strategy<Value = NameMatch> {
    let name = || "[a-z]{1,5}(\\.[a-z]{1,3})?".prop_map(Arc::<str>::from);
    prop_oneof![
        name().prop_map(NameMatch::Exact),
        name().prop_map(NameMatch::Under),
        name().prop_map(NameMatch::Label)
    ]
}

fn span() -> impl Strategy<Value = (u16, u16)> {
    (any::<u16>(), any::<u16>()).prop_map(|(a, b)| (a.min(b), a.max(b)))
}

fn scope(classes: u32) -> impl Strategy<Value = Scope> {
    // Class 0 is in no set.
    let peers = prop_oneof![
        Just(ClassSet::All),
        vec(1..classes.max(2), 0..4)
            .prop_map(move |ids| { ClassSet::of(ids.into_iter().filter(|id| *id < classes).map(ClassId)) })
    ];
    let range = (0..Protocol::ALL.len(), span()).prop_map(|(protocol, (first, last))| PortRange {
        protocol: Protocol::ALL[protocol],
        first,
        last,
    });
    let ports = prop_oneof![Just(PortSet::All), vec(range, 0..3).prop_map(PortSet::Ranges)];
    (peers, ports).prop_map(|(peers, ports)| Scope { peers, ports })
}

fn rules(policies: Vec<Arc<Policy>>, classes: u32) -> impl Strategy<Value = Vec<Rule>> {
    let rule = (
        proptest::sample::select(policies),
        name(),
        vec(scope(classes), 0..3),
        proptest::option::of(conditions()),
    );
    vec(rule.prop_map(|(policy, name, scopes, conditions)| Rule { policy, name, scopes, conditions }), 0..3)
}

fn layer(policies: Vec<Arc<Policy>>, classes: u32) -> impl Strategy<Value = Layer> {
    let ports = prop_oneof![Just(IsolatedPorts::All), vec(span(), 0..3).prop_map(IsolatedPorts::Listed)];
    let isolation = (proptest::sample::select(policies.clone()), ports)
        .prop_map(|(policy, ports)| Isolation { policy, ports });
    (vec(isolation, 0..2), rules(policies, classes)).prop_map(|(isolation, allow)| Layer { isolation, allow })
}

fn side(policies: &[Arc<Policy>], classes: u32) -> impl Strategy<Value = Side> + use<> {
    let own = policies.to_vec();
    let tier = |own: Vec<Arc<Policy>>| {
        let actions = [TierAction::Accept, TierAction::Deny, TierAction::Pass];
        (rules(own, classes), vec(proptest::sample::select(actions.to_vec()), 3)).prop_map(
            |(rules, actions)| {
                rules
                    .into_iter()
                    .zip(actions)
                    .map(|(rule, action)| TierRule { action, rule })
                    .collect::<Vec<_>>()
            },
        )
    };
    let layers = (layer(own.clone(), classes), layer(own.clone(), classes));
    (tier(own.clone()), rules(own.clone(), classes), layers, tier(own))
        .prop_map(|(admin, deny, (k, l), baseline)| Side { admin, deny, layers: [k, l], baseline })
}

fn parts(policies: Vec<Arc<Policy>>, mut classes: Vec<Class>) -> impl Strategy<Value = Snapshot> {
    classes.insert(0, Class { identity: Identity::Missing, cidrs: Vec::new() });
    let count = u32::try_from(classes.len()).expect("few classes");
    let profile = (side(&policies, count), side(&policies, count))
        .prop_map(|(ingress, egress)| Profile { ingress, egress });
    let prefixes = btree_map((address(), 0_u8..=128), 0..count, 0..8);
    let pods =
        (vec((workload(), vec(address(), 0..3), any::<u32>()), 0..4), btree_map(address(), workload(), 0..5));
    (any::<u64>(), vec(profile, 1..3), prefixes, pods, vec(service(), 0..3)).prop_map(
        move |(generation, profiles, prefixes, (endpoints, workloads), services)| {
            let mut addresses = PrefixTable::new();
            addresses.insert(Prefix::EVERYTHING, ClassId(0));
            for ((address, len), class) in prefixes {
                addresses
                    .insert(Prefix::from_mapped(sluice_policy::prefix::bits(address), len), ClassId(class));
            }
            let count = u32::try_from(profiles.len()).expect("few profiles");
            let endpoint = |(workload, addresses, profile): (Arc<Workload>, Vec<IpAddr>, u32)| {
                Arc::new(Endpoint { workload, addresses, profile: ProfileId(profile % count) })
            };
            Snapshot {
                generation,
                policies: policies.clone(),
                classes: classes.clone(),
                addresses,
                endpoints: endpoints.into_iter().map(endpoint).collect(),
                profiles: profiles.into(),
                workloads: workloads.into_iter().collect(),
                services: services.into(),
            }
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let backend = (address(), 1_u16..).prop_map(|(address, port)| Backend { address, port });
    let protocol = proptest::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let port = (protocol, 1_u16.., vec(backend, 0..3)).prop_map(|(protocol, port, backends)| ServicePort {
        protocol,
        port,
        backends: backends.into(),
    });
    (name(), vec(address(), 0..3), vec(port, 0..3), any::<Option<u32>>()).prop_map(
        |(name, addresses, ports, affinity)| Service {
            namespace: "shop".into(),
            name: format!("a{name}").into(),
            addresses,
            ports,
            affinity,
        },
    )
}

/// Snapshots as the compiler could make them.
pub(crate) fn snapshot() -> impl Strategy<Value = Snapshot> {
    // Up to 130 classes, so that class sets take one, two and three words.
    (policies(), vec(class(), 0..130)).prop_flat_map(|(policies, classes)| parts(policies, classes))
}
