//! A node with one endpoint and thousands of rules on it, and requests of it, for what is counted and timed.
//!
//! Shared by the allocation test and the benchmarks.
#![allow(dead_code, reason = "each user has its own part")]
#![allow(unreachable_pub, reason = "shared by test binaries")]

use sluice_policy::path::Path;
use sluice_policy::{
    Class, ClassId, ClassSet, Conditions, Endpoint, GrpcMatch, HttpMatch, HttpVersion, Identity,
    IsolatedPorts, Isolation, Kind, Layer, Mode, Origin, PathMatch, Policy, PolicyId, PortRange, PortSet,
    Prefix, Profile, ProfileId, Protocol, Regex, Request, Rule, Scope, Side, Snapshot, Workload,
};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// The endpoint that all rules are about.
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// Whom they let in.
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
/// The port that they are about.
pub const PORT: u16 = 8080;
/// Rules of one policy.
const RULES_OF_POLICY: usize = 10;

fn policies(count: usize) -> Vec<Arc<Policy>> {
    let policy = |id: usize| {
        let kind = if id == 0 { Kind::NetworkPolicy } else { Kind::L7NetworkPolicy };
        let origin = Origin { kind, namespace: "shop".into(), name: format!("policy-{id}").into() };
        let id = PolicyId(u32::try_from(id).expect("few policies"));
        Arc::new(Policy { id, origin, mode: Mode::Enforce, on_deny: Default::default() })
    };
    (0..=count).map(policy).collect()
}

fn scope(classes: ClassSet) -> Vec<Scope> {
    let port = PortRange { protocol: Protocol::Tcp, first: PORT, last: PORT };
    vec![Scope { peers: classes, ports: PortSet::Ranges(vec![port]) }]
}

fn http(path: PathMatch) -> Conditions {
    let methods = vec!["GET".into(), "HEAD".into()];
    let item = HttpMatch { methods, path: Some(path), ..HttpMatch::default() };
    Conditions { http: vec![item], ..Conditions::default() }
}

/// What the allow of this number says: a fourth each by path, by prefix, by regular expression and by gRPC method.
fn said(number: usize) -> Conditions {
    let group = number / 4;
    match number % 4 {
        0 => http(PathMatch::exact(&format!("/api/v1/exact/{group}"))),
        1 => http(PathMatch::prefix(&format!("/api/v1/below/{group}"))),
        2 => http(PathMatch::Regex(
            Regex::new(&format!("/api/v1/items/[0-9]+/parts-{group}")).expect("a valid pattern"),
        )),
        _ => {
            let grpc =
                GrpcMatch::grpc(&format!("shop.v1.Service{}", group / 8), [format!("Call{group}").into()]);
            Conditions { grpc: vec![grpc], ..Conditions::default() }
        }
    }
}

/// The rules of the endpoint's ingress: one in ten denies, all for the same peer and port.
pub fn side(rules: usize) -> Side {
    let policies = policies(rules / RULES_OF_POLICY + 1);
    let rule = |number: usize, conditions: Conditions| Rule {
        policy: policies[1 + number / RULES_OF_POLICY].clone(),
        name: format!("rule-{number}").into(),
        scopes: scope(ClassSet::of([ClassId(1)])),
        conditions: Some(Arc::new(conditions)),
    };
    let denies = rules / 10;
    let deny = |number: usize| rule(number, http(PathMatch::prefix(&format!("/api/v1/closed/{number}"))));
    let isolation = |policy: &Arc<Policy>| Isolation { policy: policy.clone(), ports: IsolatedPorts::All };
    let connect = Rule {
        policy: policies[0].clone(),
        name: "ingress[0]".into(),
        scopes: scope(ClassSet::of([ClassId(1)])),
        conditions: None,
    };
    let k = Layer { isolation: vec![isolation(&policies[0])], allow: vec![connect] };
    let l = Layer {
        isolation: policies[1..].iter().map(isolation).collect(),
        allow: (0..rules - denies).map(|number| rule(number, said(number))).collect(),
    };
    Side { deny: (0..denies).map(deny).collect(), layers: [k, l], ..Side::default() }
}

/// The node.
pub fn snapshot(rules: usize) -> Snapshot {
    let mut snapshot = Snapshot { generation: 1, ..Snapshot::default() };
    for identity in [Identity::Missing, Identity::Workload("shop/client".into()), Identity::World] {
        snapshot.classes.push(Class { identity, cidrs: vec![] });
    }
    snapshot.addresses.insert(Prefix::EVERYTHING, ClassId(2));
    snapshot.addresses.insert(Prefix::host(CLIENT), ClassId(1));
    let name = |name: &str| Arc::<str>::from(name);
    let workload = Workload {
        namespace: name("shop"),
        pod: name("server"),
        uid: name("1"),
        service_account: name("default"),
        node: name("node"),
    };
    let endpoint = Endpoint { workload: Arc::new(workload), addresses: vec![SERVER], profile: ProfileId(0) };
    snapshot.endpoints = vec![Arc::new(endpoint)].into();
    snapshot.profiles = vec![Profile { ingress: side(rules), egress: Side::default() }].into();
    snapshot.profiles.prepare();
    snapshot
}

/// One question and what it is for.
#[derive(Clone, Debug)]
pub struct Question {
    pub name: &'static str,
    pub method: &'static str,
    pub path: String,
    pub allowed: bool,
}

/// One question for each way in which a rule is found, and for none; each of a rule in the middle.
pub fn questions(rules: usize) -> Vec<Question> {
    let middle = (rules - rules / 10) / 8;
    let question = |name, method, path: String, allowed| Question { name, method, path, allowed };
    vec![
        question("exact", "GET", format!("/api/v1/exact/{middle}"), true),
        question("prefix", "GET", format!("/api/v1/below/{middle}/and/more"), true),
        question("regular expression", "GET", format!("/api/v1/items/4711/parts-{middle}"), true),
        question("gRPC", "POST", format!("/shop.v1.Service{}/Call{middle}", middle / 8), true),
        question("default deny", "GET", "/api/v1/nobody/knows".into(), false),
        question("deny rule", "GET", format!("/api/v1/closed/{}/x", rules / 20), false),
    ]
}

const HEADERS: &[(&str, &[u8])] = &[
    ("user-agent", b"client/1.0"),
    ("accept", b"*/*"),
    ("content-type", b"application/grpc"),
    ("te", b"trailers"),
    ("x-request-id", b"4bf92f3577b34da6a3ce929d0e0e4736"),
];

impl Question {
    /// As a reader of bytes hands it in.
    pub fn request(&self) -> Request<'_> {
        Request {
            version: HttpVersion::Http2,
            method: self.method,
            path: Path::new(&self.path),
            query: None,
            host: Some("server.shop.svc"),
            upgrade: None,
            headers: HEADERS,
        }
    }
}
