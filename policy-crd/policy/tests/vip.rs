//! Traffic to a Service: what the kernel's row says, what the proxy may choose, and that they agree.

mod common;

use common::shares::{CLASSES, share};
use common::{allow, conditions, get, isolate, policy};
use proptest::collection::vec;
use proptest::prelude::*;
use sluice_policy::{
    Backend, Class, ClassId, Connection, Decision, Direction, Endpoint, Facts, Identity, Kind, Mode,
    PathMatch, Prefix, PrefixTable, Profile, ProfileId, Protocol, Row, RowAction, Service, ServicePort, Side,
    Snapshot, Workload,
};
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

const VIP: &str = "10.96.0.10";
const PORT: u16 = 80;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The one address of a class.
fn of_class(ClassId(class): ClassId) -> IpAddr {
    ip(&format!("10.0.0.{class}"))
}

fn backend((class, port): (u32, u16)) -> Backend {
    Backend { address: of_class(ClassId(class)), port }
}

fn service(
    name: &str,
    address: &str,
    protocol: Protocol,
    backends: impl IntoIterator<Item = Backend>,
) -> Service {
    let backends: Arc<[Backend]> = backends.into_iter().collect();
    Service {
        namespace: "shop".into(),
        name: name.into(),
        addresses: vec![ip(address)],
        ports: vec![ServicePort { protocol, port: PORT, backends }],
        affinity: None,
    }
}

fn snapshot(sides: Vec<Side>, services: Vec<Service>) -> Snapshot {
    let class = |_| Class { identity: Identity::World, cidrs: vec![] };
    let mut addresses = PrefixTable::new();
    // Class 0 has none: its address is unknown.
    for class in (1..CLASSES).map(ClassId) {
        addresses.insert(Prefix::host(of_class(class)), class);
    }
    let profile = |side| Profile { egress: side, ingress: Side::default() };
    Snapshot {
        classes: (0..CLASSES).map(class).collect(),
        addresses,
        profiles: sides.into_iter().map(profile).collect(),
        services: services.into(),
        ..Snapshot::default()
    }
}

fn endpoint(profile: u32, address: &str) -> Endpoint {
    let text = || Arc::<str>::from("");
    let workload =
        Workload { namespace: text(), pod: text(), uid: text(), service_account: text(), node: text() };
    Endpoint { workload: workload.into(), addresses: vec![ip(address)], profile: ProfileId(profile) }
}

/// The row of the port, as a class's rows have it.
fn kernel(snapshot: &Snapshot, profile: u32, address: &str, protocol: Protocol) -> Option<Row> {
    let rows = snapshot.service_rows();
    let asked = (ip(address), protocol, PORT);
    let class = rows.ports.iter().find(|port| (port.address, port.protocol, port.port) == asked)?.class;
    let is = |row: &&sluice_policy::ServiceRow| {
        (row.profile, row.class, row.protocol) == (ProfileId(profile), class, protocol)
    };
    let row = rows.rows.iter().find(is)?.row;
    assert_eq!(snapshot.service_row(ProfileId(profile), asked), Some(row));
    Some(row)
}

/// K lets peers of class 1 be reached on 8080, and of class 2 with GET alone.
fn side(mode: Mode) -> Side {
    let (k, l) = (policy(0, Kind::NetworkPolicy, Mode::Enforce), policy(1, Kind::L7NetworkPolicy, mode));
    let mut side = Side::default();
    side.layers[0].isolation.push(isolate(&k));
    side.layers[0].allow.push(allow(&k, [ClassId(1), ClassId(2)], &[8080], None));
    side.layers[1].isolation.push(isolate(&l));
    side.layers[1].allow.push(allow(&l, [ClassId(1)], &[8080], None));
    let get = conditions("GET", PathMatch::Prefix("/".into()));
    side.layers[1].allow.push(allow(&l, [ClassId(2)], &[8080], Some(get)));
    side
}

const OPEN: (u32, u16) = (1, 8080);
const READ: (u32, u16) = (2, 8080);
const CLOSED: (u32, u16) = (3, 8080);

fn verdict(mode: Mode, backends: &[(u32, u16)]) -> (RowAction, bool, bool) {
    let backends = backends.iter().copied().map(backend);
    let snapshot = snapshot(vec![side(mode)], vec![service("web", VIP, Protocol::Tcp, backends)]);
    let row = kernel(&snapshot, 0, VIP, Protocol::Tcp).expect("the Service has a row");
    (row.action, row.fail_open, row.audit)
}

#[test]
fn a_verdict_holds_for_whoever_may_be_chosen() {
    use RowAction::{Allow, Deny, ToProxy};
    let enforced = |backends: &[(u32, u16)]| verdict(Mode::Enforce, backends).0;
    assert_eq!(enforced(&[OPEN]), Allow);
    assert_eq!(enforced(&[CLOSED]), Deny);
    // The port that counts is the backend's.
    assert_eq!(enforced(&[(1, PORT)]), Deny);
    assert_eq!(enforced(&[OPEN, CLOSED]), ToProxy);
    assert_eq!(enforced(&[READ]), ToProxy);
    assert_eq!(enforced(&[OPEN, READ]), ToProxy);
    assert_eq!(enforced(&[CLOSED, READ]), ToProxy);
    // Nobody there, or nobody knows who.
    assert_eq!(enforced(&[]), Deny);
    assert_eq!(enforced(&[(0, 8080)]), Deny);
}

#[test]
fn without_a_proxy_only_what_enforcing_allows_of_every_backend_passes() {
    use RowAction::ToProxy;
    assert_eq!(verdict(Mode::Audit, &[READ]), (ToProxy, true, false));
    assert_eq!(verdict(Mode::Audit, &[OPEN, READ]), (ToProxy, true, false));
    assert_eq!(verdict(Mode::Audit, &[CLOSED, READ]), (ToProxy, false, false));
    assert_eq!(verdict(Mode::Enforce, &[OPEN, READ]), (ToProxy, false, false));
}

#[test]
fn what_is_no_tcp_passes_only_where_every_backend_is_allowed() {
    let k = policy(0, Kind::NetworkPolicy, Mode::Enforce);
    let mut side = Side::default();
    side.layers[0].isolation.push(isolate(&k));
    let mut rule = allow(&k, [ClassId(1)], &[], None);
    rule.scopes[0].ports = sluice_policy::PortSet::All;
    side.layers[0].allow.push(rule);
    for (backends, action) in [(vec![OPEN], RowAction::Allow), (vec![OPEN, CLOSED], RowAction::Deny)] {
        let backends: Vec<Backend> = backends.into_iter().map(backend).collect();
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            let services = vec![service("dns", VIP, protocol, backends.clone())];
            let snapshot = snapshot(vec![side.clone()], services);
            assert_eq!(kernel(&snapshot, 0, VIP, protocol).map(|row| row.action), Some(action), "{protocol}");
            // It is another port than TCP's.
            assert_eq!(snapshot.service_row(ProfileId(0), (ip(VIP), Protocol::Tcp, PORT)), None);
        }
    }
}

#[test]
fn where_nothing_is_judged_a_service_without_backends_is_the_nodes_to_refuse() {
    let services = vec![service("web", VIP, Protocol::Tcp, [])];
    let mut audited = Side::default();
    audited.layers[0].isolation.push(isolate(&policy(0, Kind::NetworkPolicy, Mode::Audit)));
    let snapshot = snapshot(vec![Side::default(), audited, side(Mode::Enforce)], services);
    let row = |profile| kernel(&snapshot, profile, VIP, Protocol::Tcp).expect("a row");
    assert_eq!((row(0).action, row(0).audit), (RowAction::Allow, false));
    assert_eq!((row(1).action, row(1).audit), (RowAction::Allow, true));
    assert_eq!(row(2).action, RowAction::Deny);
}

/// `externalIPs` may be anything, another Service's address too, and nobody knows whose rule the node follows.
#[test]
fn a_port_that_two_services_claim_is_judged_by_the_backends_of_both() {
    let services = vec![
        service("web", VIP, Protocol::Tcp, [backend(OPEN)]),
        service("trap", VIP, Protocol::Tcp, [backend(CLOSED)]),
    ];
    let snapshot = snapshot(vec![side(Mode::Enforce)], services);
    assert_eq!(kernel(&snapshot, 0, VIP, Protocol::Tcp).map(|row| row.action), Some(RowAction::ToProxy));
    let choice = snapshot.choose(&endpoint(0, "10.9.9.9"), (ip(VIP), Protocol::Tcp, PORT), Facts::Connection);
    let choice = choice.expect("a Service");
    assert_eq!((&*choice.service.name, choice.allowed), ("web", vec![backend(OPEN)]));
}

#[test]
fn a_request_chooses_among_those_it_may_go_to() {
    let own = endpoint(0, "10.0.0.5");
    let backends = [OPEN, READ, CLOSED, (5, 8080)].map(backend);
    let services = vec![service("web", VIP, Protocol::Tcp, backends)];
    let mut governed = side(Mode::Enforce);
    // It may reach itself, and is not chosen all the same.
    governed.layers.iter_mut().for_each(|layer| {
        let (policy, port) = (layer.isolation[0].policy.clone(), [8080]);
        layer.allow.push(allow(&policy, [ClassId(5)], &port, None));
    });
    let snapshot = snapshot(vec![governed], services);
    let choose = |facts: Facts<'_>| {
        let choice = snapshot.choose(&own, (ip(VIP), Protocol::Tcp, PORT), facts).expect("a Service");
        let refused = choice.refused.map(|(backend, verdict)| (backend, verdict.decision));
        (choice.allowed, refused)
    };
    let [open, read, closed, _] = backends;
    assert_eq!(choose(Facts::Connection), (vec![open, read], Some((closed, Decision::Deny))));
    assert_eq!(choose(Facts::Request(&get("/"))).0, vec![open, read]);
    let post = sluice_policy::Request { method: "POST", ..get("/") };
    assert_eq!(choose(Facts::Request(&post)), (vec![open], Some((read, Decision::Deny))));
    assert_eq!(choose(Facts::Unknown).0, vec![open]);
}

#[test]
fn an_endpoint_that_nobody_knows_chooses_nobody() {
    let snapshot = snapshot(vec![Side::default()], vec![service("web", VIP, Protocol::Tcp, [backend(OPEN)])]);
    let nobody = Endpoint { profile: ProfileId::REFUSED, ..endpoint(0, "10.9.9.9") };
    let choice =
        snapshot.choose(&nobody, (ip(VIP), Protocol::Tcp, PORT), Facts::Connection).expect("a Service");
    assert!(choice.allowed.is_empty() && choice.refused.is_some());
}

#[test]
fn a_translation_keeps_the_family() {
    let v6 = Backend { address: ip("fd00::1"), port: 8080 };
    let backends: Arc<[Backend]> = [backend(OPEN), v6].into();
    let mut dual = service("web", VIP, Protocol::Tcp, []);
    dual.addresses.push(ip("fd00:96::a"));
    dual.ports[0].backends = backends;
    let snapshot = snapshot(vec![side(Mode::Enforce)], vec![dual]);
    assert_eq!(kernel(&snapshot, 0, VIP, Protocol::Tcp).map(|row| row.action), Some(RowAction::Allow));
    assert_eq!(
        kernel(&snapshot, 0, "fd00:96::a", Protocol::Tcp).map(|row| row.action),
        Some(RowAction::Deny)
    );
}

#[test]
fn ports_that_no_profile_tells_apart_have_one_class() {
    let address = |n: u32| format!("10.96.{}.{}", n / 200, n % 200 + 1);
    let one = |n: u32| {
        let to = if n.is_multiple_of(2) { OPEN } else { CLOSED };
        service(&format!("s{n}"), &address(n), Protocol::Tcp, [backend(to)])
    };
    let rows =
        snapshot(vec![side(Mode::Enforce), Side::default()], (0..1_000).map(one).collect()).service_rows();
    let classes: HashSet<u32> = rows.ports.iter().map(|port| port.class).collect();
    assert_eq!((rows.ports.len(), classes.len(), rows.rows.len()), (1_000, 2, 4));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// What the kernel does is what the rows of the backends say, and the proxy has somebody to choose exactly where
    /// the kernel sends it something to choose for.
    #[test]
    fn the_row_of_a_service_and_the_choice_agree(
        a in share(0), b in share(1), c in share(2),
        audited in any::<[bool; 3]>(),
        backends in vec((0..CLASSES, prop_oneof![Just(80_u16), Just(443), Just(8080), any::<u16>()]), 0..4),
        protocol in prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)],
    ) {
        let mut side = Side::default();
        for (share, audited) in [&a, &b, &c].into_iter().zip(audited) {
            share.add(&mut side, if audited { Mode::Audit } else { Mode::Enforce });
        }
        let mut edges: Vec<u16> = side.rules().flat_map(|r| r.ranges().map(|r| r.first)).collect();
        edges.truncate(2);
        let edges = edges.into_iter().flat_map(|port| [(1, port), (2, port)]);
        let mut backends: Vec<Backend> = backends.into_iter().chain(edges).map(backend).collect();
        backends.sort();
        backends.dedup();
        let snapshot = snapshot(vec![side.clone()], vec![service("web", VIP, protocol, backends.clone())]);
        let row = kernel(&snapshot, 0, VIP, protocol).expect("a row");
        let asked = (ip(VIP), protocol, PORT);
        let choice = snapshot.choose(&endpoint(0, "10.9.9.9"), asked, Facts::Connection).expect("a Service");

        let connection = |b: &Backend| Connection::new(snapshot.class_of(b.address), protocol, b.port);
        let rows: Vec<Row> = backends.iter().map(|b| side.row(&connection(b))).collect();
        let count = |action| rows.iter().filter(|row| row.action == action).count();
        let (allowed, denied) = (count(RowAction::Allow), count(RowAction::Deny));
        if rows.is_empty() {
            prop_assert!(choice.allowed.is_empty());
            prop_assert_ne!(row.action, RowAction::ToProxy);
            return Ok(());
        }
        let expected = match () {
            () if allowed == rows.len() => RowAction::Allow,
            () if denied == rows.len() => RowAction::Deny,
            () if protocol == Protocol::Tcp => RowAction::ToProxy,
            () => RowAction::Deny,
        };
        prop_assert_eq!(row.action, expected);
        prop_assert_eq!(choice.allowed.is_empty(), denied == rows.len());
        prop_assert_eq!(choice.refused.is_none(), denied == 0);
        let may: Vec<Backend> = backends.iter().zip(&rows)
            .filter(|(_, row)| row.action != RowAction::Deny).map(|(b, _)| *b).collect();
        prop_assert_eq!(&choice.allowed, &may);
        for backend in &may {
            let side = snapshot.profiles[0].side(Direction::Egress);
            prop_assert_eq!(side.judge(&connection(backend), Facts::Connection).decision, Decision::Allow);
        }
        if row.fail_open {
            prop_assert!(rows.iter().all(|row| row.action == RowAction::Allow || row.fail_open));
        }
        prop_assert_eq!(row.audit, row.action == RowAction::Allow && rows.iter().any(|row| row.audit));
    }
}
