//! What may be said, sentence by sentence of the design (5.6 to 5.12), through manifest, compiler and engine.
//!
//! Each test is named for its sentence. Where another test holds one already, it is named here instead:
//!
//! - 5.6 "a port that also carries TLS says so": `said.rs`, `http_and_tls_of_one_rule_are_alternatives`
//! - 5.7 "per request, on keep-alive connections too": `proxy/tests/http1.rs`,
//!   `each_request_of_a_connection_is_judged_and_a_denied_one_reaches_nobody`; over HTTP/2 `proxy/tests/http2.rs`,
//!   `each_stream_is_judged_and_a_denied_one_reaches_nobody`
//! - 5.7 "a stream that loses its permission is closed": `proxy/tests/http2.rs`, `a_swap_closes_the_streams_that_it_denies`
//! - 5.7 "identity is resolved per request", "a flow whose row goes away is cut": `proxy/tests/http1.rs`,
//!   `a_swap_cuts_what_it_denies_and_leaves_the_rest`, `after_a_swap_nothing_passes_by_the_snapshot_before`
//! - 5.8 "what was judged is what is forwarded": `proxy/tests/http1.rs`, `the_path_that_was_judged_goes_on`, and
//!   `proxy/tests/attacks.rs`, `an_http2_path_goes_on_as_it_was_judged`
//! - 5.8 "deny rules match if any reading matches", 5.9 in full against what attackers send: `bypass.rs`
//! - 5.8 "`analyze` says so" (of HEAD), 5.12 "`analyze` warns": `analyze_pages.rs`
//! - 5.11 "an unrequested 101 is a 502 and a close": `proxy/tests/http1.rs`, `upgrades_and_tunnels_are_refused`

#![allow(clippy::needless_pass_by_value, reason = "test helpers take what json! makes")]

mod common;

use common::load;
use serde_json::{Value, json};
use sluice_compile::query::Cluster;
use sluice_policy::path::Path;
use sluice_policy::{Decision, Facts, HttpVersion, Protocol, Reason, Request, RowAction, SideVerdict};

const ALLOW: Decision = Decision::Allow;
const DENY: Decision = Decision::Deny;
const CLIENT: &str = "10.0.0.2";
const SERVER: &str = "10.0.0.1";
const PORT: u16 = 8080;

fn cluster(policies: &[Value]) -> Cluster {
    let pod = |name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "n", "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "node", "containers": [{"name": "c"}]}, "status": {"podIP": address}})
    };
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}),
        pod("server", SERVER),
        pod("client", CLIENT),
    ];
    objects.extend_from_slice(policies);
    let (cluster, problems) = load(&objects);
    let errors: Vec<_> = common::cilium::errors(&problems);
    assert!(errors.is_empty(), "{errors:#?}");
    cluster
}

fn l7(ingress: Value, deny: Value) -> Value {
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy", "metadata": {"namespace": "n", "name": "l7"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": ingress, "ingressDeny": deny}})
}

fn tier(tier: &str, action: &str, rules: Value) -> Value {
    json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "ClusterL7NetworkPolicy", "metadata": {"name": "tier"},
        "spec": {"tier": tier, "priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"name": "one", "action": action, "rules": rules}]}})
}

/// A server that these alternatives of `http` alone are open to.
fn opened(http: Value) -> Cluster {
    cluster(&[l7(json!([{"rules": {"http": http}}]), json!([]))])
}

/// A server that is open but for these alternatives of `http`.
fn guarded(http: Value) -> Cluster {
    cluster(&[l7(json!([{}]), json!([{"rules": {"http": http}}]))])
}

fn judge(cluster: &Cluster, protocol: Protocol, facts: Facts<'_>) -> SideVerdict {
    let address = |text: &str| -> std::net::IpAddr { text.parse().expect("an address") };
    cluster.snapshot().judge(address(CLIENT), address(SERVER), protocol, PORT, facts).ingress
}

/// A request that is like any.
fn get(path: &str) -> Request<'_> {
    let (version, method, path) = (HttpVersion::Http1, "GET", Path::new(path));
    Request { version, method, path, query: None, host: Some("server.example"), upgrade: None, headers: &[] }
}

fn say(cluster: &Cluster, request: &Request<'_>) -> Decision {
    judge(cluster, Protocol::Tcp, Facts::Request(request)).decision
}

/// What the kernel does with a connection to the server.
fn row(cluster: &Cluster) -> RowAction {
    let snapshot = cluster.snapshot();
    let address = |text: &str| -> std::net::IpAddr { text.parse().expect("an address") };
    let server = snapshot.endpoint_at(address(SERVER)).expect("an endpoint");
    let class = snapshot.class_of(address(CLIENT));
    let matches = |port: u16, len: u8| len == 0 || (PORT ^ port) >> (16 - u16::from(len)) == 0;
    let rows = snapshot.rows().filter(|entry| {
        entry.profile == server.profile
            && entry.direction == sluice_policy::Direction::Ingress
            && entry.class == class
            && entry.protocol == Protocol::Tcp
            && matches(entry.ports.port, entry.ports.len)
    });
    rows.max_by_key(|entry| entry.ports.len).map_or(RowAction::Deny, |entry| entry.row.action)
}

const GET_ALONE: fn() -> Value = || json!({"http": [{"methods": ["GET"]}]});

/// 5.6, first sentence.
#[test]
fn a_row_goes_to_the_proxy_as_soon_as_a_reachable_rule_of_any_tier_or_layer_has_an_l7_condition() {
    let cilium = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"namespace": "n", "name": "c"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"toPorts": [{"ports": [{"port": "8080", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}]}]}});
    for (what, policies) in [
        ("Admin Accept", vec![tier("Admin", "Accept", GET_ALONE())]),
        ("Admin Deny", vec![tier("Admin", "Deny", GET_ALONE())]),
        ("Admin Pass", vec![tier("Admin", "Pass", GET_ALONE()), l7(json!([]), json!([]))]),
        ("a deny", vec![l7(json!([{}]), json!([{"rules": GET_ALONE()}]))]),
        ("layer K", vec![cilium]),
        ("layer L", vec![l7(json!([{"rules": GET_ALONE()}]), json!([]))]),
        ("Baseline", vec![tier("Baseline", "Deny", GET_ALONE())]),
        ("tls", vec![l7(json!([{"rules": {"tls": {"serverNames": ["a.example"]}}}]), json!([]))]),
    ] {
        // A Pass that leads to nothing open can open nothing.
        let expected = if what == "Admin Pass" { RowAction::Deny } else { RowAction::ToProxy };
        assert_eq!(row(&cluster(&policies)), expected, "{what}");
    }
    // What nobody reaches decides nothing.
    let elsewhere = json!([{"from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "rules": GET_ALONE()}, {"ports": [{"port": 8080}]}]);
    assert_eq!(row(&cluster(&[l7(elsewhere, json!([]))])), RowAction::Allow);
}

/// 5.6: TLS, unknown bytes, an ambiguous header.
#[test]
fn what_cannot_be_known_matches_every_deny_and_no_allow_accept_or_pass() {
    let header = json!({"http": [{"headers": [{"name": "x-a", "type": "Exact", "value": "1"}]}]});
    let twice: &[(&str, &[u8])] = &[("x-a", b"1"), ("x-a", b"2")];
    let ambiguous = Request { headers: twice, ..get("/") };
    let unknown =
        [Facts::Unknown, Facts::Tls(Some("a.example")), Facts::Tls(None), Facts::Request(&ambiguous)];
    for facts in unknown {
        for (what, policies, expected) in [
            ("allow", vec![l7(json!([{"rules": header}]), json!([]))], DENY),
            ("deny", vec![l7(json!([{}]), json!([{"rules": header}]))], DENY),
            ("Admin Deny", vec![tier("Admin", "Deny", header.clone())], DENY),
            ("Admin Accept", vec![tier("Admin", "Accept", header.clone()), l7(json!([]), json!([]))], DENY),
            // Past the Pass an Admin Deny stands, which a Pass that holds would leave out.
            ("Admin Pass", vec![passing(&header)], DENY),
            ("Baseline Accept", vec![baseline(&header)], DENY),
        ] {
            let verdict = judge(&cluster(&policies), Protocol::Tcp, facts);
            assert_eq!(verdict.decision, expected, "{what} {facts:?}: {verdict:?}");
        }
    }
}

/// A Pass for what has these conditions, then a Deny of all.
fn passing(rules: &Value) -> Value {
    let mut policy = tier("Admin", "Pass", rules.clone());
    policy["spec"]["ingress"].as_array_mut().expect("a list").push(json!({"name": "rest", "action": "Deny"}));
    policy
}

fn baseline(rules: &Value) -> Value {
    let mut policy = passing(rules);
    policy["spec"]["tier"] = "Baseline".into();
    policy["spec"]["ingress"][0]["action"] = "Accept".into();
    policy
}

/// 5.6, last sentence: HTTP/3 walks round nothing.
#[test]
fn udp_on_a_port_with_l7_rules_needs_a_rule_that_names_it() {
    let said = json!({"ports": [{"port": 8080}, {"port": 8080, "protocol": "UDP"}], "rules": GET_ALONE()});
    let udp =
        |rules: Value| judge(&cluster(&[l7(rules, json!([]))]), Protocol::Udp, Facts::Connection).decision;
    assert_eq!(udp(json!([{"rules": GET_ALONE()}])), DENY, "a rule for every port");
    assert_eq!(udp(json!([said])), DENY, "a rule that names UDP and asks for requests");
    assert_eq!(
        udp(json!([said, {"ports": [{"port": 8080, "protocol": "UDP"}]}])),
        ALLOW,
        "a rule that names it"
    );
    // A deny of requests denies what cannot carry them.
    let guarded = cluster(&[l7(json!([{}]), json!([{"rules": GET_ALONE()}]))]);
    assert_eq!(judge(&guarded, Protocol::Udp, Facts::Connection).decision, DENY);
}

/// 5.8, first sentence, each of its spellings.
#[test]
fn an_allow_matches_the_strict_reading_alone() {
    let open = opened(json!([{"path": {"type": "PathPrefix", "value": "/a"}}]));
    let everything = opened(json!([{"path": {"type": "PathPrefix", "value": "/"}}]));
    for (path, allowed) in [
        ("/a/b", true),
        ("/a/./b", true),
        ("/b/../a", true),
        ("/%61/b", true),
        ("/a/b%2fc", false),
        ("/a/b%5cc", false),
        ("/a/b\\c", false),
        ("/a/b%00", false),
        ("/a//b", false),
        ("/a/..;/b", false),
        ("/a/b;c=d", false),
        ("/a/%252e%252e/b", false),
        ("/a/../../a", false),
        ("/a/%c0%ae%c0%ae/b", false),
    ] {
        let expected = if allowed { ALLOW } else { DENY };
        assert_eq!(say(&open, &get(path)), expected, "{path}");
        assert_eq!(say(&everything, &get(path)), expected, "{path} under /");
    }
}

/// 5.8: the bytes sent go on where the strict reading is the same, and the normalised path where it differs.
#[test]
fn the_normalised_path_goes_on_where_it_differs() {
    for (sent, goes_on) in
        [("/a/b", None), ("/a/%7e", Some("/a/~")), ("/a/../b", Some("/b")), ("/caf%C3%A9", None)]
    {
        assert_eq!(Path::new(sent).rewritten(), goes_on, "{sent}");
    }
}

/// 5.8.
#[test]
fn the_query_is_no_part_of_the_path() {
    let open = opened(json!([{"path": {"type": "Exact", "value": "/a"}}]));
    let closed = guarded(json!([{"path": {"type": "Exact", "value": "/a"}}]));
    for query in [None, Some(""), Some("b=/c"), Some("/../x")] {
        assert_eq!(say(&open, &Request { query, ..get("/a") }), ALLOW, "{query:?}");
        assert_eq!(say(&closed, &Request { query, ..get("/a") }), DENY, "{query:?}");
        assert_eq!(say(&open, &Request { query, ..get("/b") }), DENY, "{query:?}");
    }
}

/// 5.8.
#[test]
fn a_host_is_compared_in_lower_case_without_port_and_trailing_dot() {
    let hosts = json!([{"hosts": [{"type": "Exact", "value": "a.example"}]}]);
    let (open, closed) = (opened(hosts.clone()), guarded(hosts));
    for host in ["a.example", "A.Example", "a.example.", "a.example:80", "A.EXAMPLE.:8080"] {
        let request = Request { host: Some(host), ..get("/") };
        assert_eq!((say(&open, &request), say(&closed, &request)), (ALLOW, DENY), "{host}");
    }
    for host in ["b.example", "xa.example", "a.example.x", "example"] {
        let request = Request { host: Some(host), ..get("/") };
        assert_eq!((say(&open, &request), say(&closed, &request)), (DENY, ALLOW), "{host}");
    }
}

/// 5.8.
#[test]
fn methods_are_case_sensitive_and_get_is_not_head() {
    let open = opened(json!([{"methods": ["GET"]}]));
    for (method, expected) in [("GET", ALLOW), ("get", DENY), ("HEAD", DENY), ("GETX", DENY), ("", DENY)] {
        assert_eq!(say(&open, &Request { method, ..get("/") }), expected, "{method}");
    }
}

type Fields = &'static [(&'static str, &'static [u8])];

/// 5.9, headers: allow, deny and `Absent`.
#[test]
fn an_allow_needs_one_occurrence_of_a_header_and_a_deny_any() {
    let condition = |kind: &str| json!([{"headers": [{"name": "X-A", "type": kind}]}]);
    let exact = json!([{"headers": [{"name": "X-A", "type": "Exact", "value": "1"}]}]);
    let (open, closed) = (opened(exact.clone()), guarded(exact));
    let (absent, none) = (opened(condition("Absent")), guarded(condition("Absent")));
    let present = opened(condition("Present"));
    let rows: [(Fields, [Decision; 5]); 8] = [
        // allow 1, deny 1, allow Absent, deny Absent, allow Present
        (&[], [DENY, ALLOW, ALLOW, DENY, DENY]),
        (&[("x-a", b"1")], [ALLOW, DENY, DENY, ALLOW, ALLOW]),
        (&[("x-a", b"2")], [DENY, ALLOW, DENY, ALLOW, ALLOW]),
        (&[("x-a", b"1"), ("x-a", b"1")], [DENY, DENY, DENY, ALLOW, DENY]),
        (&[("x-a", b"2"), ("x-a", b"1")], [DENY, DENY, DENY, ALLOW, DENY]),
        (&[("x_a", b"1")], [DENY, DENY, DENY, DENY, DENY]),
        (&[("x-a", b"1"), ("x_a", b"2")], [DENY, DENY, DENY, ALLOW, DENY]),
        (&[("x-a", b"%31")], [DENY, DENY, DENY, ALLOW, ALLOW]),
    ];
    for (headers, expected) in rows {
        let request = Request { headers, ..get("/") };
        let got = [&open, &closed, &absent, &none, &present].map(|cluster| say(cluster, &request));
        assert_eq!(got, expected, "{headers:?}");
    }
}

/// 5.9, query parameters: the same.
#[test]
fn an_allow_needs_one_occurrence_of_a_parameter_and_a_deny_any() {
    let condition = |kind: &str| json!([{"queryParams": [{"name": "v", "type": kind}]}]);
    let exact = json!([{"queryParams": [{"name": "v", "type": "Exact", "value": "1"}]}]);
    let (open, closed) = (opened(exact.clone()), guarded(exact));
    let (absent, none) = (opened(condition("Absent")), guarded(condition("Absent")));
    for (query, expected) in [
        // allow 1, deny 1, allow Absent, deny Absent
        ("", [DENY, ALLOW, ALLOW, DENY]),
        ("v=1", [ALLOW, DENY, DENY, ALLOW]),
        ("a=b&v=1", [ALLOW, DENY, DENY, ALLOW]),
        ("v=2", [DENY, ALLOW, DENY, ALLOW]),
        ("v=%31", [ALLOW, DENY, DENY, ALLOW]),
        ("%76=1", [DENY, DENY, DENY, DENY]),
        ("V=1", [DENY, DENY, DENY, DENY]),
        ("v=1&v=1", [DENY, DENY, DENY, ALLOW]),
        ("v=2&v=1", [DENY, DENY, DENY, ALLOW]),
        ("v=2;v=1", [DENY, DENY, DENY, ALLOW]),
        ("v[]=1", [DENY, DENY, DENY, DENY]),
    ] {
        let request = Request { query: Some(query), ..get("/") };
        let got = [&open, &closed, &absent, &none].map(|cluster| say(cluster, &request));
        assert_eq!(got, expected, "{query}");
    }
}

const GRPC: Fields = &[("content-type", b"application/grpc")];
const PROTO: Fields = &[("content-type", b"application/grpc+proto")];
const WEB: Fields = &[("content-type", b"application/grpc-web+proto")];
const CONNECT: Fields = &[("content-type", b"application/proto"), ("connect-protocol-version", b"1")];
const JSON: Fields = &[("content-type", b"application/json")];

fn call(headers: Fields) -> Request<'static> {
    Request { version: HttpVersion::Http2, method: "POST", headers, ..get("/shop.v1.Cart/Get") }
}

/// 5.10, first sentence.
#[test]
fn a_grpc_allow_matches_calls_alone_and_protocols_open_the_others() {
    let opened = |protocols: Value| {
        let mut item = json!({"service": "shop.v1.Cart", "methods": ["Get"]});
        if !protocols.is_null() {
            item["protocols"] = protocols;
        }
        cluster(&[l7(json!([{"rules": {"grpc": [item]}}]), json!([]))])
    };
    let kinds = [GRPC, PROTO, WEB, CONNECT, JSON];
    for (protocols, expected) in [
        (Value::Null, [ALLOW, ALLOW, DENY, DENY, DENY]),
        (json!(["GRPC"]), [ALLOW, ALLOW, DENY, DENY, DENY]),
        (json!(["GRPCWeb"]), [DENY, DENY, ALLOW, DENY, DENY]),
        (json!(["Connect"]), [DENY, DENY, DENY, ALLOW, DENY]),
        (json!(["GRPC", "GRPCWeb", "Connect"]), [ALLOW, ALLOW, ALLOW, ALLOW, DENY]),
    ] {
        let cluster = opened(protocols.clone());
        assert_eq!(kinds.map(|headers| say(&cluster, &call(headers))), expected, "{protocols}");
    }
    let open = opened(Value::Null);
    assert_eq!(say(&open, &Request { method: "GET", ..call(GRPC) }), DENY);
    assert_eq!(say(&open, &Request { version: HttpVersion::Http1, ..call(GRPC) }), DENY);
    assert_eq!(say(&open, &Request { path: Path::new("/shop.v1.Cart/Set"), ..call(GRPC) }), DENY);
}

/// 5.10, the rest.
#[test]
fn a_grpc_deny_matches_the_path_however_it_is_carried_and_an_http_rule_a_grpc_path() {
    let closed = cluster(&[l7(
        json!([{}]),
        json!([{"rules": {"grpc": [{"service": "shop.v1.Cart", "methods": ["Get"]}]}}]),
    )]);
    for request in [
        call(GRPC),
        call(WEB),
        call(JSON),
        call(&[]),
        Request { method: "GET", ..call(&[]) },
        Request { version: HttpVersion::Http1, ..call(GRPC) },
    ] {
        assert_eq!(say(&closed, &request), DENY, "{request:?}");
    }
    assert_eq!(say(&closed, &Request { path: Path::new("/shop.v1.Cart/Set"), ..call(GRPC) }), ALLOW);
    let open =
        opened(json!([{"methods": ["POST"], "path": {"type": "PathPrefix", "value": "/shop.v1.Cart"}}]));
    assert_eq!(say(&open, &call(GRPC)), ALLOW);
}

/// 5.11: upgrades.
#[test]
fn an_upgrade_passes_under_a_rule_that_names_it_alone() {
    let (plain, named) =
        (opened(json!([{}])), opened(json!([{"methods": ["GET"], "upgrades": ["websocket"]}])));
    let asks = |upgrade| Request { upgrade, ..get("/") };
    for (upgrade, unnamed, under_its_name) in [
        (None, ALLOW, ALLOW),
        (Some("websocket"), DENY, ALLOW),
        (Some("WebSocket"), DENY, ALLOW),
        (Some("h2c"), DENY, DENY),
        (Some("websocket, h2c"), DENY, DENY),
        (Some(""), DENY, DENY),
    ] {
        assert_eq!(
            (say(&plain, &asks(upgrade)), say(&named, &asks(upgrade))),
            (unnamed, under_its_name),
            "{upgrade:?}"
        );
    }
    // Over HTTP/2 it is a CONNECT with `:protocol` (RFC 8441).
    let extended =
        Request { version: HttpVersion::Http2, method: "CONNECT", upgrade: Some("websocket"), ..get("/") };
    assert_eq!((say(&plain, &extended), say(&named, &extended)), (DENY, ALLOW));
}

/// 5.11: CONNECT.
#[test]
fn connect_matches_only_where_it_is_named() {
    let connect = Request { method: "CONNECT", host: Some("db.example:5432"), ..get("") };
    let hosts = json!([{"type": "Exact", "value": "db.example"}]);
    assert_eq!(say(&opened(json!([{}])), &connect), DENY);
    assert_eq!(say(&opened(json!([{"hosts": hosts}])), &connect), DENY);
    assert_eq!(say(&opened(json!([{"methods": ["CONNECT"], "hosts": hosts}])), &connect), ALLOW);
    let other = Request { host: Some("other.example:5432"), ..connect.clone() };
    assert_eq!(say(&opened(json!([{"methods": ["CONNECT"], "hosts": hosts}])), &other), DENY);
    // A deny without methods takes it as well.
    assert_eq!(say(&guarded(json!([{}])), &connect), DENY);
}

/// 5.12: no server name, or an encrypted one, is no match of an allow, and any to a deny.
#[test]
fn without_a_readable_server_name_no_allow_matches_and_every_deny_does() {
    let tls = json!({"tls": {"serverNames": ["a.example", "*.b.example"]}});
    let open = cluster(&[l7(json!([{"rules": tls}]), json!([]))]);
    let closed = cluster(&[l7(json!([{}]), json!([{"rules": tls}]))]);
    for (name, allowed, denied) in [
        (Some("a.example"), ALLOW, DENY),
        (Some("x.b.example"), ALLOW, DENY),
        (Some("b.example"), DENY, ALLOW),
        (Some("c.example"), DENY, ALLOW),
        (None, DENY, DENY),
    ] {
        let (open, closed) =
            [&open, &closed].map(|cluster| judge(cluster, Protocol::Tcp, Facts::Tls(name))).into();
        assert_eq!((open.decision, closed.decision), (allowed, denied), "{name:?}");
    }
}

/// 5.13, the reasons that the engine tells apart.
#[test]
fn reasons_are_kept_apart() {
    let open = opened(json!([{"methods": ["GET"]}]));
    let post = Request { method: "POST", ..get("/") };
    let reason = |cluster: &Cluster, facts: Facts<'_>| judge(cluster, Protocol::Tcp, facts).reason;
    assert_eq!(reason(&open, Facts::Request(&post)), Reason::NoRuleMatched);
    assert_eq!(reason(&open, Facts::Unknown), Reason::ParseError);
    assert_eq!(reason(&guarded(json!([{"methods": ["POST"]}])), Facts::Request(&post)), Reason::DenyRule);
    let other_port = cluster(&[l7(json!([{"ports": [{"port": 9090}]}]), json!([]))]);
    assert_eq!(reason(&other_port, Facts::Request(&post)), Reason::DefaultDeny);
}
