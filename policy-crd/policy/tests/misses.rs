//! A miss is told exactly where nothing matches, for allows and for denies, and names a part that is really missed.

use proptest::prelude::*;
use sluice_policy::path::Path;
use sluice_policy::{
    Conditions, GrpcMatch, GrpcProtocol, HeaderMatch, HeaderTest, HostMatch, HttpMatch, HttpVersion, Miss,
    NameMatch, PathMatch, QueryMatch, Regex, Request,
};

fn few<T: Clone + std::fmt::Debug + 'static>(all: Vec<T>) -> impl Strategy<Value = Vec<T>> {
    let most = all.len().min(2);
    prop_oneof![2 => Just(Vec::new()), 3 => prop::sample::subsequence(all, 0..=most)]
}

fn regex(source: &str) -> Regex {
    Regex::new(source).expect("a pattern of this test")
}

fn tests() -> Vec<HeaderTest> {
    vec![
        HeaderTest::Exact("a".into()),
        HeaderTest::Regex(regex("[ab]+")),
        HeaderTest::Present,
        HeaderTest::Absent,
    ]
}

fn http() -> impl Strategy<Value = HttpMatch> {
    let path = prop::sample::select(vec![
        None,
        Some(PathMatch::exact("/a")),
        Some(PathMatch::prefix("/a")),
        Some(PathMatch::Regex(regex("/a/[0-9]+"))),
        Some(PathMatch::Target(regex("/a\\?x=.*"))),
    ]);
    let name = |name: &str| HostMatch::Name(NameMatch::Exact(name.into()));
    let hosts = few(vec![name("cart"), name("shop"), HostMatch::Authority(regex("cart:80"))]);
    let headers = few(tests()
        .into_iter()
        .map(|test| HeaderMatch { name: "x-tenant".into(), test })
        .collect::<Vec<_>>());
    let query =
        few(tests().into_iter().map(|test| QueryMatch { name: "x".into(), test }).collect::<Vec<_>>());
    let methods = few(vec!["GET".into(), "POST".into(), "CONNECT".into()]);
    let upgrades = few(vec!["websocket".into(), "h2c".into()]);
    (methods, path, hosts, headers, query, upgrades).prop_map(
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

fn grpc() -> impl Strategy<Value = GrpcMatch> {
    let protocols = prop::sample::subsequence(
        vec![GrpcProtocol::Grpc, GrpcProtocol::GrpcWeb, GrpcProtocol::Connect],
        1..=2,
    );
    (prop::sample::select(vec!["s.A", "s.B"]), few(vec!["Get".into(), "Put".into()]), protocols)
        .prop_map(|(service, methods, protocols)| GrpcMatch { service: service.into(), methods, protocols })
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let tls = few(vec![NameMatch::Exact("a.example".into()), NameMatch::Under("example".into())]);
    (prop::collection::vec(http(), 0..3), prop::collection::vec(grpc(), 0..2), tls)
        .prop_map(|(http, grpc, tls)| Conditions { http, grpc, tls })
}

type Header = (&'static str, &'static [u8]);

#[derive(Clone, Debug)]
struct Sent {
    version: HttpVersion,
    method: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    host: Option<&'static str>,
    upgrade: Option<&'static str>,
    headers: Vec<Header>,
}

impl Sent {
    fn request(&self) -> Request<'_> {
        let Self { version, method, path, query, host, upgrade, ref headers } = *self;
        Request { version, method, path: Path::new(path), query, host, upgrade, headers }
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let select = prop::sample::select::<Option<&'static str>>;
    let version = prop::sample::select(vec![HttpVersion::Http1, HttpVersion::Http2]);
    let method = prop::sample::select(vec!["GET", "POST", "post", "HEAD", "CONNECT"]);
    let path = prop::sample::select(vec![
        "/a",
        "/a/1",
        "/b",
        "/a%2f1",
        "//a",
        "/x/../a",
        "/s.A/Get",
        "/s.A/Del",
        "/s.B/Get",
        "/s.A/%47et",
        "*",
    ]);
    const HEADERS: &[Header] = &[
        ("x-tenant", b"a"),
        ("x-tenant", b"c"),
        ("x_tenant", b"a"),
        ("content-type", b"application/grpc"),
        ("content-type", b"application/grpc-web"),
    ];
    let headers = prop::sample::subsequence(HEADERS, 0..=3);
    let query = select(vec![None, Some("x=a"), Some("x=c"), Some("x=a&x=c"), Some("y=1"), Some("x=%61;")]);
    let host = select(vec![None, Some("cart"), Some("cart:80"), Some("other"), Some("a b")]);
    let upgrade = select(vec![None, None, Some("websocket"), Some("other")]);
    (version, method, path, query, host, upgrade, headers).prop_map(
        |(version, method, path, query, host, upgrade, headers)| Sent {
            version,
            method,
            path,
            query,
            host,
            upgrade,
            headers,
        },
    )
}

/// The item without the part that the miss names.
fn relaxed(item: &HttpMatch, miss: &Miss) -> HttpMatch {
    let mut item = item.clone();
    match miss {
        Miss::Method { .. } => {
            item.methods = vec!["CONNECT".into(), "GET".into(), "POST".into(), "post".into(), "HEAD".into()];
        }
        Miss::Path { .. } | Miss::AmbiguousPath { .. } => item.path = None,
        Miss::Host { .. } => item.hosts.clear(),
        Miss::Header { .. } => item.headers.clear(),
        Miss::Query { .. } => item.query.clear(),
        Miss::Upgrade { .. } => item.upgrades = vec!["websocket".into(), "other".into()],
        _ => {}
    }
    item
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_miss_is_told_exactly_where_nothing_matches(conditions in conditions(), sent in sent()) {
        let request = sent.request();
        prop_assert_eq!(conditions.nearest_miss(&request).is_none(), conditions.allows(&request));
        prop_assert_eq!(conditions.deny_miss(&request).is_none(), conditions.denies(&request));
        for name in [None, Some("a.example"), Some("b.example"), Some("b.test")] {
            prop_assert_eq!(conditions.nearest_miss_tls(name).is_none(), conditions.allows_tls(name));
            prop_assert_eq!(conditions.deny_miss_tls(name).is_none(), conditions.denies_tls(name));
        }
    }

    #[test]
    fn what_is_named_is_what_was_missed(item in http(), sent in sent()) {
        // Without the part that is named there is another miss, or none: each names one part, and a deeper one each time.
        let request = sent.request();
        let only = |item: &HttpMatch| Conditions { http: vec![item.clone()], ..Conditions::default() };
        for deny in [false, true] {
            let miss = |item: &HttpMatch| {
                if deny { only(item).deny_miss(&request) } else { only(item).nearest_miss(&request) }
            };
            let (mut item, mut depth) = (item.clone(), None);
            while let Some(found) = miss(&item) {
                prop_assert!(depth < Some(found.depth()), "{found} after depth {depth:?}");
                depth = Some(found.depth());
                item = relaxed(&item, &found);
                if deny && matches!(found, Miss::Upgrade { .. }) {
                    item.upgrades.clear();
                }
            }
        }
    }
}

#[test]
fn a_deny_says_what_it_was_spared_by() {
    let item = HttpMatch {
        methods: vec!["DELETE".into()],
        path: Some(PathMatch::prefix("/admin")),
        headers: vec![HeaderMatch { name: "x-role".into(), test: HeaderTest::Exact("root".into()) }],
        ..HttpMatch::default()
    };
    let conditions = Conditions { http: vec![item], ..Conditions::default() };
    let sent = |method, path, headers: &[Header]| {
        let headers = headers.to_vec();
        Sent { version: HttpVersion::Http1, method, path, query: None, host: None, upgrade: None, headers }
    };
    for (sent, miss) in [
        (sent("DELETE", "/items", &[]), Some("path /items does not match PathPrefix /admin")),
        (sent("GET", "/x/..%2fadmin", &[]), Some("method GET not in [DELETE]")),
        (sent("DELETE", "/admin", &[]), Some("header x-role is absent, expected Exact root")),
        (
            sent("DELETE", "/admin", &[("x-role", b"user")]),
            Some("header x-role is different, expected Exact root"),
        ),
        (sent("DELETE", "/admin", &[("x_role", b"root")]), None),
    ] {
        let told = conditions.deny_miss(&sent.request()).map(|miss| miss.to_string());
        assert_eq!(told.as_deref(), miss, "{sent:?}");
    }
}
