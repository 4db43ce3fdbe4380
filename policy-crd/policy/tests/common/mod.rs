//! Builders for sides and requests, for the tests of this crate.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(unreachable_pub, reason = "shared by test binaries")]

pub mod shares;

use sluice_policy::{
    ClassId, ClassSet, Conditions, Connection, HttpMatch, HttpVersion, IsolatedPorts, Isolation, Kind, Mode,
    OnDeny, Origin, PathMatch, Policy, PolicyId, PortRange, PortSet, Protocol, Request, Rule, Scope, Side,
};
use std::sync::Arc;

pub fn side() -> Side {
    Side::default()
}

pub fn policy(id: u32, kind: Kind, mode: Mode) -> Arc<Policy> {
    let origin = Origin { kind, namespace: "shop".into(), name: format!("p{id}").into() };
    Arc::new(Policy { id: PolicyId(id), origin, mode, on_deny: OnDeny::default() })
}

pub fn isolate(policy: &Arc<Policy>) -> Isolation {
    Isolation { policy: policy.clone(), ports: IsolatedPorts::All }
}

pub fn allow(
    policy: &Arc<Policy>,
    peers: impl IntoIterator<Item = ClassId>,
    ports: &[u16],
    conditions: Option<Conditions>,
) -> Rule {
    let ranges = ports.iter().map(|&port| PortRange { protocol: Protocol::Tcp, first: port, last: port });
    Rule {
        policy: policy.clone(),
        name: "rule".into(),
        scopes: vec![Scope { peers: ClassSet::of(peers), ports: PortSet::Ranges(ranges.collect()) }],
        conditions: conditions.map(Arc::new),
    }
}

pub fn deny(
    policy: &Arc<Policy>,
    peers: impl IntoIterator<Item = ClassId>,
    ports: &[u16],
    conditions: Option<Conditions>,
) -> Rule {
    allow(policy, peers, ports, conditions)
}

pub fn conditions(method: &str, path: PathMatch) -> Conditions {
    let http = vec![HttpMatch { methods: vec![method.into()], path: Some(path), ..HttpMatch::default() }];
    Conditions { http, ..Conditions::default() }
}

pub fn get(path: &str) -> Request<'_> {
    Request {
        version: HttpVersion::Http1,
        method: "GET",
        path: sluice_policy::path::Path::new(path),
        query: None,
        host: None,
        upgrade: None,
        headers: &[],
    }
}

pub fn connection(peer: ClassId, port: u16) -> Connection {
    Connection::new(peer, Protocol::Tcp, port)
}
