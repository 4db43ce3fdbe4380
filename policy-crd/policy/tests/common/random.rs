//! Random sides, connections and requests out of a small vocabulary, so that rules often match and often nearly do.
//!
//! Shared by this crate's own tests and by those beside it: `super::api` is the crate, as either sees it.
#![allow(dead_code, reason = "each user has its own part")]
#![allow(unreachable_pub, reason = "shared by test binaries")]

use super::api::path::Path;
use super::api::{
    ClassId, ClassSet, Conditions, Connection, Facts, GrpcMatch, GrpcProtocol, HeaderMatch, HeaderTest,
    HostMatch, HttpMatch, HttpVersion, IsolatedPorts, Isolation, Kind, Layer, MethodMatch, Mode, NameMatch,
    Origin, PathMatch, Policy, PolicyId, PortRange, PortSet, Protocol, QueryMatch, Regex, Request, Rule,
    Scope, Side, TierAction, TierRule,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Class numbers of connections are below this.
pub const CLASSES: u32 = 70;

const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/c",
    "/b",
    "/ab",
    "/a%2fb",
    "/a%20b",
    "/items/7",
    "/items/x7",
    "/svc.A/Get",
    "/svc.A/Put",
    "/svc.B/Get",
    "//a",
    "/a/../b",
    "/a;x=1/b",
    "/%61",
    "/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r",
    "*",
    "",
    "/A/b/",
    "/ITEMS/x7/",
    "/items./7",
    "/a/%c0%af",
    "/%u002fa",
    "http://h/a",
    "/svc.a/get",
    "a/b",
    "/A",
    "/a/.",
    "/x/%252e%252e/a",
    "/%2525252561",
    "/a%00b",
    "/\\a",
    "/a?b",
    "/%zz",
];
const PATTERNS: &[&str] = &[
    "/a",
    "/a/.*",
    "/items/[0-9]+",
    "/items/(x|y)?[0-9]",
    ".*",
    ".*/b",
    "/(a|b)",
    "/[^/]+/b",
    "(?i)/a",
    "/a\\?q=.*",
    "/a/b\\?.*",
    "",
    "/a$",
    "^/b",
    "/svc\\.A/.*",
    "/.\\b.*",
    "a/b",
    "/items/x7",
    "[a&&b]",
];
const HOSTS: &[&str] =
    &["a.example.com", "example.com", "b.a.example.com", "c", "A.Example.com:80", "x/y", "d.c."];
const NAMES: &[&str] = &["a.example.com", "example.com", "com", "c", "b.a.example.com"];
const QUERIES: &[&str] = &["q=1", "q=2&v=1", "v=%31", "", "v=1;q=1", "V=1"];

fn pick(from: &'static [&'static str]) -> impl Strategy<Value = &'static str> + Clone {
    select(from.to_vec())
}

fn regex(from: &'static [&'static str]) -> impl Strategy<Value = Regex> + Clone {
    static COMPILED: Mutex<BTreeMap<&str, Regex>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock().expect("nothing panics in here");
    let new = |source| Regex::new(source).expect("a valid pattern");
    select(
        from.iter()
            .map(|source| compiled.entry(source).or_insert_with(|| new(source)).clone())
            .collect::<Vec<_>>(),
    )
}

pub fn port() -> impl Strategy<Value = u16> + Clone {
    select(vec![0_u16, 1, 80, 81, 443, 8080, 65535])
}

pub fn protocol() -> impl Strategy<Value = Protocol> + Clone {
    prop_oneof![6 => Just(Protocol::Tcp), 1 => select(Protocol::ALL.to_vec())]
}

fn peers() -> impl Strategy<Value = ClassSet> + Clone {
    prop_oneof![
        2 => Just(ClassSet::All),
        4 => vec(1..CLASSES, 0..4).prop_map(|ids| ClassSet::of(ids.into_iter().map(ClassId))),
        1 => vec(1..CLASSES, 30..70).prop_map(|ids| ClassSet::of(ids.into_iter().map(ClassId))),
    ]
}

fn ports() -> impl Strategy<Value = PortSet> + Clone {
    let range = (protocol(), port(), port(), any::<bool>()).prop_map(|(protocol, a, b, one)| {
        let (first, last) = if one { (a, a) } else { (a.min(b), a.max(b)) };
        PortRange { protocol, first, last }
    });
    prop_oneof![1 => Just(PortSet::All), 3 => vec(range, 0..3).prop_map(PortSet::Ranges)]
}

fn scopes() -> impl Strategy<Value = Vec<Scope>> + Clone {
    let scope = (peers(), ports()).prop_map(|(peers, ports)| Scope { peers, ports });
    let wide = Just(vec![Scope { peers: ClassSet::All, ports: PortSet::All }]);
    prop_oneof![3 => vec(scope, 0..3), 2 => wide]
}

fn name() -> impl Strategy<Value = NameMatch> + Clone {
    (pick(NAMES), 0..3).prop_map(|(name, kind)| match kind {
        0 => NameMatch::Exact(name.into()),
        1 => NameMatch::Under(name.into()),
        _ => NameMatch::Label(name.into()),
    })
}

fn path() -> impl Strategy<Value = PathMatch> + Clone {
    prop_oneof![
        pick(PATHS).prop_map(PathMatch::exact),
        pick(PATHS).prop_map(PathMatch::prefix),
        regex(PATTERNS).prop_map(PathMatch::Regex),
        regex(PATTERNS).prop_map(PathMatch::Target),
    ]
}

fn http() -> impl Strategy<Value = HttpMatch> + Clone {
    let method = prop_oneof![
        3 => select(vec!["GET", "POST", "CONNECT"]).prop_map(MethodMatch::from),
        1 => regex(&["G.*", ".*"]).prop_map(MethodMatch::Regex),
    ];
    let host = prop_oneof![
        3 => name().prop_map(HostMatch::Name),
        1 => regex(&[".*example.*", "c"]).prop_map(HostMatch::Regex),
        1 => regex(&["c(:80)?"]).prop_map(HostMatch::Authority),
    ];
    let test = prop_oneof![
        select(vec!["1", "2"]).prop_map(|value| HeaderTest::Exact(value.into())),
        Just(HeaderTest::Present),
        Just(HeaderTest::Absent),
    ];
    let header = test.clone().prop_map(|test| HeaderMatch { name: "x-v".into(), test });
    let query = test.prop_map(|test| QueryMatch { name: "v".into(), test });
    let upgrades = prop_oneof![4 => Just(vec![]), 1 => Just(vec![Arc::from("websocket")])];
    let few = |strategy: proptest::strategy::BoxedStrategy<HostMatch>| prop_oneof![2 => Just(vec![]), 1 => vec(strategy, 1..3)];
    let methods = prop_oneof![1 => Just(vec![]), 1 => vec(method, 1..3)];
    let headers = prop_oneof![4 => Just(vec![]), 1 => vec(header, 1..2)];
    let queries = prop_oneof![4 => Just(vec![]), 1 => vec(query, 1..2)];
    (methods, of(path()), few(host.boxed()), headers, queries, upgrades).prop_map(
        |(methods, path, hosts, headers, query, upgrades)| HttpMatch {
            methods,
            path,
            hosts,
            headers,
            query,
            upgrades,
        },
    )
}

fn conditions() -> impl Strategy<Value = Arc<Conditions>> + Clone {
    let grpc = (select(vec!["svc.A", "svc.B"]), vec(select(vec!["Get", "Put"]), 0..3)).prop_map(
        |(service, methods)| {
            let protocols = vec![GrpcProtocol::Grpc, GrpcProtocol::Connect];
            GrpcMatch { protocols, ..GrpcMatch::grpc(service, methods.into_iter().map(Arc::from)) }
        },
    );
    let some = prop_oneof![
        6 => (vec(http(), 1..3), Just(vec![]), Just(vec![])),
        2 => (Just(vec![]), vec(grpc, 1..3), Just(vec![])),
        2 => (Just(vec![]), Just(vec![]), vec(name(), 1..3)),
        1 => (vec(http(), 0..2), Just(vec![]), vec(name(), 0..2)),
    ];
    some.prop_map(|(http, grpc, tls)| Arc::new(Conditions { http, grpc, tls }))
}

/// Four policies; which of them are audited is drawn.
pub fn policies() -> impl Strategy<Value = Vec<Arc<Policy>>> {
    vec(prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::Audit)], 4).prop_map(|modes| {
        let policy = |(id, mode): (u32, Mode)| {
            let origin = Origin { kind: Kind::L7NetworkPolicy, namespace: "shop".into(), name: "p".into() };
            Arc::new(Policy { id: PolicyId(id), origin, mode, on_deny: Default::default() })
        };
        (0..).zip(modes).map(policy).collect()
    })
}

/// Rules, each with a name of its own.
pub fn rules(policies: Vec<Arc<Policy>>, most: usize) -> impl Strategy<Value = Vec<Rule>> {
    let parts = (select(policies), scopes(), of(conditions()));
    vec(parts, 0..most).prop_map(|rules| {
        let rule = |(at, (policy, scopes, conditions)): (usize, (Arc<Policy>, Vec<Scope>, _))| Rule {
            policy,
            name: format!("r{at}").into(),
            scopes,
            conditions,
        };
        rules.into_iter().enumerate().map(rule).collect()
    })
}

fn layer(policies: Vec<Arc<Policy>>, most: usize) -> impl Strategy<Value = Layer> {
    let listed = vec((port(), port()), 0..2)
        .prop_map(|all| IsolatedPorts::Listed(all.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect()));
    let ports = prop_oneof![1 => Just(IsolatedPorts::All), 2 => listed];
    let isolation = (select(policies.clone()), ports).prop_map(|(policy, ports)| Isolation { policy, ports });
    let isolations = prop_oneof![3 => vec(isolation.clone(), 0..3), 1 => vec(isolation, 9..14)];
    (isolations, rules(policies, most)).prop_map(|(isolation, allow)| Layer { isolation, allow })
}

fn tier(policies: Vec<Arc<Policy>>, most: usize) -> impl Strategy<Value = Vec<TierRule>> {
    let action = select(vec![TierAction::Accept, TierAction::Deny, TierAction::Pass]);
    (rules(policies, most), vec(action, most)).prop_map(|(rules, actions)| {
        rules.into_iter().zip(actions).map(|(rule, action)| TierRule { action, rule }).collect()
    })
}

/// Sides of which each stage may be empty, short or longer than what is searched without an index.
pub fn side() -> impl Strategy<Value = Side> {
    let most = || select(vec![1_usize, 1, 4, 24]);
    (policies(), [most(), most(), most(), most(), most()]).prop_flat_map(|(policies, most)| {
        let own = || policies.clone();
        let layers = (layer(own(), most[0]), layer(own(), most[1]));
        (tier(own(), most[2]), rules(own(), most[3]), layers, tier(own(), most[4]))
            .prop_map(|(admin, deny, (k, l), baseline)| Side { admin, deny, layers: [k, l], baseline })
    })
}

/// Sides that are isolated and have nothing but allows, most of them with conditions: where refusals look for what
/// came nearest.
pub fn allows() -> impl Strategy<Value = Side> {
    policies().prop_flat_map(|policies| {
        let policy = policies[0].clone();
        (rules(policies.clone(), 40), rules(policies, 6), any::<bool>(), conditions()).prop_map(
            move |(mut allow, other, wide, own)| {
                for rule in allow.iter_mut().filter(|_| wide) {
                    rule.scopes = vec![Scope { peers: ClassSet::All, ports: PortSet::All }];
                    rule.conditions.get_or_insert_with(|| own.clone());
                }
                let isolation = vec![Isolation { policy: policy.clone(), ports: IsolatedPorts::All }];
                let layers = [Layer { isolation: vec![], allow: other }, Layer { isolation, allow }];
                Side { layers, ..Side::default() }
            },
        )
    })
}

/// Connections of anybody, also of nobody known.
pub fn connection() -> impl Strategy<Value = Connection> {
    let peer = prop_oneof![1 => Just(0), 8 => 1..CLASSES + 20];
    let from_host = prop_oneof![9 => Just(false), 1 => Just(true)];
    (peer, protocol(), port(), from_host).prop_map(|(peer, protocol, port, from_host)| Connection {
        peer: ClassId(peer),
        protocol,
        port,
        from_host,
    })
}

/// What is known of a connection, with its own texts.
#[derive(Clone, Debug)]
pub enum Said {
    Connection,
    Request(Box<SaidRequest>),
    Tls(Option<&'static str>),
    Unknown,
}

/// A request with its own texts.
#[derive(Clone, Debug)]
pub struct SaidRequest {
    version: HttpVersion,
    method: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    host: Option<&'static str>,
    upgrade: Option<&'static str>,
    headers: Vec<(&'static str, &'static [u8])>,
}

pub fn said() -> impl Strategy<Value = Said> {
    let headers: Vec<(&'static str, &'static [u8])> = vec![
        ("content-type", b"application/grpc"),
        ("x-v", b"1"),
        ("x_v", b"2"),
        ("x-v", b"3"),
        ("x-original-url", b"/a/b?q"),
        ("x-rewrite-url", b"/%61"),
        ("x-http-method-override", b"post"),
    ];
    let request = (
        select(vec![HttpVersion::Http1, HttpVersion::Http2]),
        select(vec!["GET", "POST", "get", "CONNECT"]),
        pick(PATHS),
        of(pick(QUERIES)),
        of(pick(HOSTS)),
        prop_oneof![5 => Just(None), 1 => Just(Some("websocket"))],
        proptest::sample::subsequence(headers, 0..=3),
    );
    let request = request.prop_map(|(version, method, path, query, host, upgrade, headers)| {
        Said::Request(Box::new(SaidRequest { version, method, path, query, host, upgrade, headers }))
    });
    prop_oneof![
        1 => Just(Said::Connection),
        6 => request,
        1 => of(pick(NAMES)).prop_map(Said::Tls),
        1 => Just(Said::Unknown),
    ]
}

impl Said {
    /// Hands the facts to whoever asks.
    pub fn tell<T>(&self, ask: impl FnOnce(Facts<'_>) -> T) -> T {
        match self {
            Self::Connection => ask(Facts::Connection),
            Self::Tls(name) => ask(Facts::Tls(*name)),
            Self::Unknown => ask(Facts::Unknown),
            Self::Request(said) => ask(Facts::Request(&Request {
                version: said.version,
                method: said.method,
                path: Path::new(said.path),
                query: said.query,
                host: said.host,
                upgrade: said.upgrade,
                headers: &said.headers,
            })),
        }
    }
}
