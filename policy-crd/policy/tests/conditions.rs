//! HTTP and gRPC conditions by example, for allows and for denies.

use sluice_policy::path::Path;
use sluice_policy::{
    Conditions, GrpcMatch, HeaderMatch, HeaderTest, HttpMatch, HttpVersion, Miss, PathMatch, Regex, Request,
};

type Headers<'a> = &'a [(&'a str, &'a [u8])];

fn request<'a>(method: &'a str, path: &'a str, headers: Headers<'a>) -> Request<'a> {
    Request {
        version: HttpVersion::Http2,
        method,
        path: Path::new(path),
        query: None,
        host: None,
        upgrade: None,
        headers,
    }
}

fn http(methods: &[&str], path: Option<PathMatch>, headers: Vec<HeaderMatch>) -> Conditions {
    let methods = methods.iter().map(|method| (*method).into()).collect();
    let item = HttpMatch { methods, path, headers, ..HttpMatch::default() };
    Conditions { http: vec![item], ..Conditions::default() }
}

fn header(name: &str, test: HeaderTest) -> HeaderMatch {
    HeaderMatch { name: name.into(), test }
}

#[test]
fn prefixes_match_by_segment() {
    for (prefix, path, allowed) in [
        ("/api", "/api", true),
        ("/api", "/api/", true),
        ("/api", "/api/v1", true),
        ("/api", "/apis", false),
        ("/api/", "/api", true),
        ("/", "/anything", true),
        ("/", "/", true),
        ("/api", "/API", false),
        ("/api", "/x/../api/y", true),
        ("/api", "/api%2fv1", false),
        ("/api", "//api", false),
    ] {
        let conditions = http(&[], Some(PathMatch::prefix(prefix)), vec![]);
        assert_eq!(conditions.allows(&request("GET", path, &[])), allowed, "{prefix} {path}");
    }
}

#[test]
fn a_policy_path_is_spelt_as_the_strict_reading() {
    let conditions = http(&[], Some(PathMatch::exact("/%7Euser/caf\u{e9}")), vec![]);
    assert!(conditions.allows(&request("GET", "/~user/caf%c3%a9", &[])));
}

#[test]
fn regular_expressions_match_the_whole_path() {
    let conditions = http(&[], Some(PathMatch::Regex(Regex::new("/items/[0-9]+").unwrap())), vec![]);
    assert!(conditions.allows(&request("GET", "/items/42", &[])));
    for path in ["/items/", "/items/42/x", "/v1/items/42"] {
        assert!(!conditions.allows(&request("GET", path, &[])), "{path}");
    }
}

#[test]
fn methods_are_case_sensitive_and_head_is_not_get() {
    let conditions = http(&["GET"], None, vec![]);
    for method in ["HEAD", "get", "GETS"] {
        assert!(!conditions.allows(&request(method, "/", &[])), "{method}");
    }
    assert!(
        http(&["DELETE"], None, vec![]).denies(&request("delete", "/", &[])),
        "a deny is not spelt round"
    );
}

#[test]
fn connect_must_be_named() {
    assert!(!http(&[], None, vec![]).allows(&request("CONNECT", "/", &[])));
    assert!(http(&["CONNECT"], None, vec![]).allows(&request("CONNECT", "/", &[])));
    assert!(http(&[], None, vec![]).denies(&request("CONNECT", "/", &[])));
}

#[test]
fn an_allow_needs_exactly_one_header() {
    let conditions = http(&[], None, vec![header("x-tenant", HeaderTest::Exact("a".into()))]);
    let cases: [(Headers<'_>, bool); 5] = [
        (&[("x-tenant", b"a")], true),
        (&[("x-tenant", b"b")], false),
        (&[], false),
        (&[("x-tenant", b"a"), ("x-tenant", b"a")], false),
        (&[("x-tenant", b"a"), ("x_tenant", b"b")], false),
    ];
    for (headers, allowed) in cases {
        assert_eq!(conditions.allows(&request("GET", "/", headers)), allowed, "{headers:?}");
    }
}

#[test]
fn absent_considers_every_spelling() {
    let conditions = http(&[], None, vec![header("x-debug", HeaderTest::Absent)]);
    assert!(conditions.allows(&request("GET", "/", &[])));
    assert!(!conditions.allows(&request("GET", "/", &[("x-debug", b"")])));
    assert!(!conditions.allows(&request("GET", "/", &[("x_debug", b"1")])));
}

#[test]
fn a_deny_considers_every_occurrence_and_decoded_forms() {
    let conditions = http(&[], None, vec![header("x-role", HeaderTest::Exact("admin".into()))]);
    let cases: [(Headers<'_>, bool); 9] = [
        (&[("x-role", b"admin")], true),
        (&[("x-role", b"user"), ("x-role", b"admin")], true),
        (&[("x_role", b"admin")], true),
        (&[("x-role", b"user, admin")], true),
        (&[("x-role", b"%61dmin")], true),
        (&[("x-role", b"user, %61dmin")], true),
        (&[("x-role", b"%61dmin%20")], true),
        (&[("x-role", b"\"admin\"")], true),
        (&[("x-role", b"user")], false),
    ];
    for (headers, denied) in cases {
        assert_eq!(conditions.denies(&request("GET", "/", headers)), denied, "{headers:?}");
    }
}

fn grpc(methods: &[&str]) -> Conditions {
    let methods: Vec<std::sync::Arc<str>> = methods.iter().map(|method| (*method).into()).collect();
    Conditions { grpc: vec![GrpcMatch::grpc("shop.v1.Cart", methods)], ..Conditions::default() }
}

const GRPC: Headers<'static> = &[("content-type", b"application/grpc+proto")];

#[test]
fn a_grpc_allow_needs_every_mark_of_grpc() {
    let allows = |request: &Request<'_>| grpc(&["GetCart"]).allows(request);
    assert!(allows(&request("POST", "/shop.v1.Cart/GetCart", GRPC)));
    assert!(!allows(&request("GET", "/shop.v1.Cart/GetCart", GRPC)));
    assert!(!allows(&request("POST", "/shop.v1.Cart/GetCart", &[])));
    assert!(!allows(&request("POST", "/shop.v1.Cart/GetCart", &[("content-type", b"application/grpc-web")])));
    assert!(!allows(&Request {
        version: HttpVersion::Http1,
        ..request("POST", "/shop.v1.Cart/GetCart", GRPC)
    }));
    for path in [
        "/shop.v1.Cart/DeleteItem",
        "/shop.v1.Carts/GetCart",
        "/shop.v1.Cart/GetCart/",
        "/shop.v1.Cart/%47etCart",
        "/shop.v1.Cart/..%2fadmin",
    ] {
        assert!(!allows(&request("POST", path, GRPC)), "{path}");
    }
}

#[test]
fn a_grpc_deny_holds_under_any_marks() {
    let denies = |request: &Request<'_>| grpc(&["GetCart"]).denies(request);
    assert!(denies(&request("GET", "/shop.v1.Cart/GetCart", &[])));
    assert!(denies(&request("POST", "/shop.v1.Cart/%47etCart", GRPC)));
    assert!(!denies(&request("POST", "/shop.v1.Cart/WatchCart", GRPC)));
    assert!(grpc(&[]).denies(&request("POST", "/shop.v1.Cart/Anything", GRPC)));
}

#[test]
fn a_grpc_allow_for_a_whole_service_opens_no_other_path() {
    for path in [
        "/shop.v1.Cart/..%2fadmin",
        "/shop.v1.Cart/..",
        "/shop.v1.Cart/%2e%2e",
        "/shop.v1.Cart/..;x",
        "/shop.v1.Cart/..%5cadmin",
    ] {
        assert!(!grpc(&[]).allows(&request("POST", path, GRPC)), "{path}");
    }
    assert!(grpc(&[]).allows(&request("POST", "/shop.v1.Cart/GetCart", GRPC)));
}

#[test]
fn a_regular_expression_in_a_deny_reads_bytes_that_are_no_utf8() {
    let regex = HeaderTest::Regex(Regex::new(".*admin.*").unwrap());
    let conditions = http(&[], None, vec![header("x-role", regex)]);
    for value in [&b"\xffadmin"[..], b"admin\xe9", b"%ff%61dmin", b"%0aadmin"] {
        assert!(conditions.denies(&request("GET", "/", &[("x-role", value)])), "{value:?}");
    }
}

#[test]
fn a_deny_written_with_escapes_is_not_walked_round() {
    for (deny, paths) in [
        (
            PathMatch::prefix("/my%20admin"),
            &["/my%20admin", "//%6dy%20admin", "/x/..;/%6dy%20admin", "/%6dy%20admin;x=y"][..],
        ),
        (PathMatch::prefix("/s%C3%A9cret"), &["/s%c3%a9cret", "//s%c3%a9cret", "/s%c3%a9cret;x"]),
        (PathMatch::exact("/a%40b"), &["/a%40b", "/a@b", "//a@b"]),
        (PathMatch::exact("/a@b"), &["/a%40b", "/a@b"]),
        (
            PathMatch::Regex(Regex::new("/admin/.*").unwrap()),
            &["/%61dmin/x%0a", "/%61dmin/%0ax", "/%61dmin/%ff"],
        ),
    ] {
        let conditions = http(&[], Some(deny.clone()), vec![]);
        for path in paths {
            assert!(conditions.denies(&request("GET", path, &[])), "{deny} {path}");
        }
    }
}

#[test]
fn an_http_rule_matches_a_grpc_path() {
    let conditions = http(&["POST"], Some(PathMatch::prefix("/shop.v1.Cart")), vec![]);
    assert!(conditions.allows(&request("POST", "/shop.v1.Cart/GetCart", GRPC)));
}

#[test]
fn the_nearest_miss_is_the_deepest() {
    let mut conditions = http(&["GET"], Some(PathMatch::prefix("/items")), vec![]);
    conditions.http.push(HttpMatch {
        methods: vec!["POST".into()],
        path: Some(PathMatch::exact("/checkout")),
        headers: vec![header("x-tenant", HeaderTest::Present)],
        ..HttpMatch::default()
    });
    let miss =
        |method, path| conditions.nearest_miss(&request(method, path, &[])).expect("denied").to_string();
    assert_eq!(miss("POST", "/checkout"), "header x-tenant is absent, expected Present");
    assert_eq!(miss("HEAD", "/items"), "method HEAD not in [GET]");
    assert_eq!(miss("GET", "/other"), "path /other does not match PathPrefix /items");
    assert!(matches!(
        conditions.nearest_miss(&request("GET", "/items/%2e%2e%2fx", &[])),
        Some(Miss::AmbiguousPath { .. })
    ));
}

#[test]
fn a_deny_of_a_parameter_sees_through_fragments_and_nul() {
    let query = sluice_policy::QueryMatch { name: "raw".into(), test: HeaderTest::Exact("on".into()) };
    let item = HttpMatch { query: vec![query], ..HttpMatch::default() };
    let conditions = Conditions { http: vec![item], ..Conditions::default() };
    for (query, allowed, denied) in [
        ("raw=on", true, true),
        ("raw=on#x", false, true),
        ("raw=on%00", false, true),
        ("raw=on%2500", false, true),
        ("raw=off#raw=on", false, false),
        ("raw=off", false, false),
    ] {
        let request = sluice_policy::Request { query: Some(query), ..request("GET", "/", &[]) };
        assert_eq!(conditions.allows(&request), allowed, "{query}");
        assert_eq!(conditions.denies(&request), denied, "{query}");
    }
}
