//! What may be said under Cilium's policies: `rules.http`, its headers, and `serverNames`.

#![allow(clippy::needless_pass_by_value, reason = "test helpers take what json! makes")]

mod common;

use common::cilium::{ALLOW, DENY, ask, errors, policy, world};
use serde_json::{Value, json};
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_crd::{Problem, Severity};
use sluice_policy::{Decision, Facts, Protocol, Reason};

/// A policy for the server, with these rules on its port.
fn with(item: Value) -> (Cluster, Vec<Problem>) {
    let mut given = json!({"ports": [{"port": "8080", "protocol": "TCP"}]});
    given.as_object_mut().expect("object").extend(item.as_object().expect("object").clone());
    world(&[policy(json!({"endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"fromEndpoints": [{}], "toPorts": [given]}]}))])
}

fn http(rules: Value) -> (Cluster, Vec<Problem>) {
    with(json!({"rules": {"http": rules}}))
}

/// `GET /path`, with a host and headers as `name: value`.
fn say(cluster: &Cluster, request: &str, host: &str, headers: &[&str]) -> (Decision, Reason) {
    let (method, target) = request.split_once(' ').expect("a method and a path");
    let header = |text: &&str| {
        let (name, value) = text.split_once(": ").expect("a name and a value");
        (name.to_owned(), value.to_owned())
    };
    let headers = headers.iter().map(header).collect();
    let said = Said::Http { method: method.into(), target: target.into(), host: Some(host.into()), headers };
    let (from, to) = ("a/client".to_owned(), "a/server".to_owned());
    let query = Query { from, to, protocol: Protocol::Tcp, port: Port::Number(8080), said };
    let verdict = cluster.ask(&query).expect("an answer");
    (verdict.decision(), verdict.ingress.reason)
}

#[track_caller]
fn allows(cluster: &Cluster, allowed: &[&str], refused: &[&str]) {
    for request in allowed {
        assert_eq!(say(cluster, request, "a", &[]), (ALLOW, Reason::RuleMatched), "{request}");
    }
    for request in refused {
        assert_eq!(say(cluster, request, "a", &[]), (DENY, Reason::NoRuleMatched), "{request}");
    }
}

#[test]
fn a_path_is_matched_whole_and_with_its_query() {
    let (cluster, problems) =
        http(json!([{"path": "/public"}, {"path": "/v[12]/.*"}, {"path": "/q\\?a=[0-9]+"}]));
    assert!(problems.is_empty(), "{problems:#?}");
    allows(
        &cluster,
        &["GET /public", "POST /public", "GET /v1/", "GET /v2/a?b=c", "GET /q?a=12", "GET /x/../public"],
        &[
            "GET /public/",
            "GET /publicly",
            "GET /a/public",
            "GET /public?a=1",
            "GET /v3/a",
            "GET /q",
            "GET /q?a=b",
        ],
    );
    // The strict reading: nothing that servers read in several ways is allowed.
    allows(
        &cluster,
        &[],
        &["GET //public", "GET /v1/..;/x", "GET /v1/%2e%2e%2fsecret", "GET /v1/a%2fb", "GET /v1/../v3"],
    );
    // What an anchor at one end says is said of both already.
    let (cluster, _) = http(json!([{"path": "/public$"}, {"path": "^/a"}, {"path": "b|/c"}]));
    allows(
        &cluster,
        &["GET /public", "GET /a", "GET /c"],
        &["GET /x/public", "GET /ab", "GET /cb", "GET /public?$"],
    );
}

#[test]
fn a_method_is_a_regular_expression() {
    for (given, allowed, refused) in [
        ("GET", &["GET /"][..], &["HEAD /", "get /", "GETS /"][..]),
        ("GET|HEAD", &["GET /", "HEAD /"], &["POST /", "G /"]),
        ("^(PUT|POST)$", &["PUT /", "POST /"], &["PUTPOST /", "GET /"]),
        ("P.*", &["PUT /", "PATCH /"], &["GET /"]),
        ("(?i)get", &["GET /", "get /"], &["HEAD /"]),
        ("[A-Z]+", &["GET /"], &["CONNECT /", "get /"]),
        (".*", &["GET /"], &["CONNECT /"]),
        ("", &["GET /", "get /"], &["CONNECT /"]),
    ] {
        let (cluster, problems) = http(json!([{"method": given}]));
        assert!(errors(&problems).is_empty(), "{problems:#?}");
        allows(&cluster, allowed, refused);
    }
    // Lists need no regular expression: a policy may have more of them than it may have expressions.
    let many: Vec<Value> = (0..120).map(|n| json!({"method": "GET|PUT", "path": format!("/{n}")})).collect();
    let (cluster, problems) = http(json!(many));
    assert!(problems.is_empty(), "{problems:#?}");
    allows(&cluster, &["PUT /119"], &["POST /119"]);
    let (_, problems) = http(json!([{"method": "get"}]));
    assert_eq!(problems[0].severity, Severity::Warning);
}

#[test]
fn a_host_is_matched_as_it_was_sent() {
    let (cluster, problems) = http(json!([{"host": "cart\\.example(:80)?"}, {"host": ".*REGEX.*"}]));
    assert!(problems.is_empty(), "{problems:#?}");
    for (host, decision) in [
        ("cart.example", ALLOW),
        ("cart.example:80", ALLOW),
        ("cart.example:81", DENY),
        ("CART.example", DENY),
        ("cart.example.", DENY),
        ("cartXexample", DENY),
        ("evil/cart.example", DENY),
        ("hostREGEXname", ALLOW),
    ] {
        assert_eq!(say(&cluster, "GET /", host, &[]).0, decision, "{host}");
    }
}

#[test]
fn headers_are_there_or_have_a_value() {
    let (cluster, problems) =
        http(json!([{"headers": ["X-Token: a b", "X-There"]}, {"headers": ["x-other two"]},
        {"headerMatches": [{"name": "X-M", "value": "1"}, {"name": "X-N"}]}]));
    assert!(problems.is_empty(), "{problems:#?}");
    for (headers, decision) in [
        (&["x-token: a b", "x-there: 1"][..], ALLOW),
        (&["X-Token: a b", "X-There: "], ALLOW),
        (&["x-token: a b"], DENY),
        (&["x-token: A b", "x-there: 1"], DENY),
        (&["x-token: a b", "x-token: a b", "x-there: 1"], DENY),
        (&["x-other: two"], ALLOW),
        (&["x-m: 1", "x-n: any"], ALLOW),
        (&["x-m: 2", "x-n: any"], DENY),
        (&["x-m: 1"], DENY),
        (&[], DENY),
    ] {
        assert_eq!(say(&cluster, "GET /", "a", headers).0, decision, "{headers:?}");
    }
    let (cluster, problems) =
        http(json!([{"headerMatches": [{"name": "X-M", "value": "1", "mismatch": "LOG"}]}]));
    assert_eq!(problems.iter().map(|problem| problem.severity).collect::<Vec<_>>(), [Severity::Warning]);
    assert_eq!(say(&cluster, "GET /", "a", &["x-m: 2"]).0, ALLOW);
}

#[test]
fn every_part_of_an_alternative_must_hold() {
    let (cluster, _) = http(json!([{"method": "PUT", "path": "/a", "host": "h", "headers": ["X-A: 1"]}]));
    assert_eq!(say(&cluster, "PUT /a", "h", &["x-a: 1"]).0, ALLOW);
    for (request, host, header) in [
        ("GET /a", "h", "x-a: 1"),
        ("PUT /b", "h", "x-a: 1"),
        ("PUT /a", "i", "x-a: 1"),
        ("PUT /a", "h", "x-a: 2"),
    ] {
        assert_eq!(say(&cluster, request, host, &[header]).0, DENY, "{request} {host} {header}");
    }
}

#[test]
fn what_is_upgraded_by_ciliums_proxy_is_upgraded_here() {
    let (cluster, _) = http(json!([{"path": "/ws"}]));
    let upgrade = |token: &str| say(&cluster, "GET /ws", "a", &[&format!("upgrade: {token}")]).0;
    assert_eq!((upgrade("websocket"), upgrade("h2c"), upgrade("x")), (ALLOW, DENY, DENY));
}

#[test]
fn an_empty_list_or_rule_limits_little_or_nothing() {
    for (item, warned) in [
        (json!({"rules": {}}), false),
        (json!({"rules": {"http": []}}), true),
        (json!({"rules": {"dns": []}}), false),
    ] {
        let (cluster, problems) = with(item.clone());
        assert!(errors(&problems).is_empty(), "{problems:#?}");
        assert_eq!(
            problems.iter().any(|problem| problem.path.ends_with("rules.http")),
            warned,
            "{problems:#?}"
        );
        assert_eq!(tls(&cluster, None), ALLOW, "{item}");
        assert_eq!(say(&cluster, "CONNECT /", "a", &[]).0, ALLOW, "{item}");
    }
    let (cluster, problems) = http(json!([{}]));
    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!((say(&cluster, "PUT /x", "a", &[]).0, tls(&cluster, Some("a"))), (ALLOW, DENY));
    assert_eq!((ask(&cluster, "a/client", 8080), ask(&cluster, "a/client", 9)), (ALLOW, DENY));
}

#[test]
fn a_rule_without_conditions_covers_one_with_them() {
    let item = |rules: Value| json!({"ports": [{"port": "8080", "protocol": "TCP"}], "rules": rules});
    let get = json!({"http": [{"method": "GET"}]});
    for rules in [
        json!([{"toPorts": [item(get.clone())]}, {"fromEndpoints": [{}]}]),
        json!([{"toPorts": [item(get.clone()), item(json!({}))]}]),
    ] {
        let (cluster, _) = world(&[policy(json!({"endpointSelector": {}, "ingress": rules}))]);
        assert_eq!(say(&cluster, "PUT /", "a", &[]).0, ALLOW, "{rules}");
    }
    let open = json!({"endpointSelector": {}, "enableDefaultDeny": {"ingress": false},
        "ingress": [{"toPorts": [item(get)]}]});
    let (cluster, problems) = world(&[policy(open)]);
    assert_eq!(problems[0].path, "spec.enableDefaultDeny.ingress");
    assert_eq!(say(&cluster, "PUT /", "a", &[]).0, ALLOW);
}

#[test]
fn what_cannot_be_said_grants_nothing() {
    let many = |of: Value, n: usize| Value::from(vec![of; n]);
    for (path, rules) in [
        ("http[0].path", json!({"http": [{"path": "("}]})),
        ("http[0].path", json!({"http": [{"path": "(?:a{1000}){1000}"}]})),
        ("http[0].path", json!({"http": [{"path": "a(?=b)"}]})),
        ("http[1].method", json!({"http": [{}, {"method": "["}]})),
        ("http[0].method", json!({"http": [{"method": "GET|CONNECT"}]})),
        ("http[0].host", json!({"http": [{"host": "*.example"}]})),
        ("http[0].headers[0]", json!({"http": [{"headers": ["X-A:1"]}]})),
        ("http[0].headers[0]", json!({"http": [{"headers": ["X-A:"]}]})),
        ("http[0].headers[0]", json!({"http": [{"headers": ["X-A: "]}]})),
        ("http[0].headers[0]", json!({"http": [{"headers": ["X-A:  1"]}]})),
        ("http[0].headers[0]", json!({"http": [{"headers": [""]}]})),
        ("http[0].headers[0]", json!({"http": [{"headers": [":path /a"]}]})),
        ("http[0].headers[0]", json!({"http": [{"headers": ["Host: a"]}]})),
        ("http[0].headers", json!({"http": [{"headers": many(json!("x-a"), 33)}]})),
        ("http[0].headerMatches[0].name", json!({"http": [{"headerMatches": [{"name": ""}]}]})),
        (
            "http[0].headerMatches[0].mismatch",
            json!({"http": [{"headerMatches": [{"name": "a", "mismatch": "ADD"}]}]}),
        ),
        (
            "http[0].headerMatches[0].mismatch",
            json!({"http": [{"headerMatches": [{"name": "a", "mismatch": "REPLACE"}]}]}),
        ),
        (
            "http[0].headerMatches[0].mismatch",
            json!({"http": [{"headerMatches": [{"name": "a", "mismatch": "DELETE"}]}]}),
        ),
        (
            "http[0].headerMatches[0].mismatch",
            json!({"http": [{"headerMatches": [{"name": "a", "mismatch": "log"}]}]}),
        ),
        (
            "http[0].headerMatches[0].secret",
            json!({"http": [{"headerMatches": [{"name": "a", "value": "b", "secret": {"name": "s"}}]}]}),
        ),
        ("http[0].metod", json!({"http": [{"metod": "GET"}]})),
        ("http", json!({"http": many(json!({}), 129)})),
        ("http", json!({"http": 7})),
        ("dns", json!({"http": [{}], "dns": [{"matchPattern": "*"}]})),
        ("l7proto", json!({"http": [{}], "l7proto": "r2d2"})),
    ] {
        let (cluster, problems) = with(json!({"rules": rules}));
        let path = format!("spec.ingress[0].toPorts[0].rules.{path}");
        assert!(errors(&problems).iter().any(|problem| problem.path == path), "{path}\n{problems:#?}");
        assert_eq!(say(&cluster, "GET /a", "a", &["x-a: 1"]).0, DENY, "{rules}");
        assert_eq!(ask(&cluster, "a/client", 8080), DENY, "{rules}");
    }
    let many: Vec<Value> = (0..129).map(|n| json!({"path": format!("/{n}")})).collect();
    let rules =
        |some: &[Value]| json!({"ports": [{"port": "8080", "protocol": "TCP"}], "rules": {"http": some}});
    let (_, problems) = world(&[policy(json!({"endpointSelector": {},
        "ingress": [{"toPorts": [rules(&many[..64]), rules(&many[64..])]}]}))]);
    assert!(errors(&problems)[0].reason.contains("regular expressions"), "{problems:#?}");
    for ports in [
        json!([{"port": "8080"}]),
        json!([{"port": "0", "protocol": "TCP"}]),
        json!([{"port": "53", "protocol": "UDP"}]),
    ] {
        let (cluster, problems) = with(json!({"ports": ports, "rules": {"http": [{}]}}));
        assert_eq!(errors(&problems).len(), 1, "{problems:#?}");
        assert_eq!(ask(&cluster, "a/client", 8080), DENY);
    }
}

/// What becomes of a TLS connection to this name.
fn tls(cluster: &Cluster, name: Option<&str>) -> Decision {
    let at = |address: &str| -> std::net::IpAddr { address.parse().expect("an address") };
    let (client, server) = (at("10.0.0.2"), at("10.0.0.1"));
    cluster.snapshot().judge(client, server, Protocol::Tcp, 8080, Facts::Tls(name)).decision()
}

#[test]
fn server_names_are_whole_or_have_labels_before_them() {
    for (given, allowed, refused) in [
        ("one.example", &["one.example"][..], &["a.one.example", "xone.example", "example"][..]),
        ("One.Example.", &["one.example"], &["two.example"]),
        ("*.example", &["a.example"], &["example", "a.b.example", "xexample"]),
        ("**.example", &["a.example", "a.b.example"], &["example", "xexample"]),
        ("_dmarc.a-b.example", &["_dmarc.a-b.example"], &["a-b.example"]),
    ] {
        let (cluster, problems) = with(json!({"serverNames": [given]}));
        assert!(problems.is_empty(), "{problems:#?}");
        for name in allowed {
            assert_eq!(tls(&cluster, Some(name)), ALLOW, "{given} {name}");
        }
        for name in refused {
            assert_eq!(tls(&cluster, Some(name)), DENY, "{given} {name}");
        }
        assert_eq!((tls(&cluster, None), say(&cluster, "GET /", "one.example", &[]).0), (DENY, DENY));
        assert_eq!(ask(&cluster, "a/client", 8080), ALLOW, "let through to be judged by its name");
    }
    let (cluster, problems) = with(json!({"serverNames": ["a", "b"], "ports": [{"port": "8080"}]}));
    assert_eq!(problems.iter().map(|problem| problem.severity).collect::<Vec<_>>(), [Severity::Warning]);
    assert_eq!((tls(&cluster, Some("b")), tls(&cluster, Some("c"))), (ALLOW, DENY));
}

#[test]
fn what_is_no_server_name_grants_nothing() {
    for (path, item) in [
        ("serverNames[0]", json!({"serverNames": ["sub*.example"]})),
        ("serverNames[0]", json!({"serverNames": ["*"]})),
        ("serverNames[0]", json!({"serverNames": ["***.example"]})),
        ("serverNames[0]", json!({"serverNames": ["*.*.example"]})),
        ("serverNames[1]", json!({"serverNames": ["a", ""]})),
        ("serverNames[0]", json!({"serverNames": ["a..b"]})),
        ("serverNames[0]", json!({"serverNames": ["{{.Target}}"]})),
        ("serverNames", json!({"serverNames": []})),
        ("serverNames", json!({"serverNames": ["a"], "rules": {"http": [{}]}})),
        ("terminatingTLS", json!({"serverNames": ["a"], "terminatingTLS": {"secret": {"name": "a"}}})),
        ("originatingTLS", json!({"originatingTLS": {"secret": {"name": "a"}}})),
    ] {
        let (cluster, problems) = with(item.clone());
        let path = format!("spec.ingress[0].toPorts[0].{path}");
        assert!(errors(&problems).iter().any(|problem| problem.path == path), "{path}\n{problems:#?}");
        assert_eq!((tls(&cluster, Some("a")), tls(&cluster, Some("sub1.example"))), (DENY, DENY), "{item}");
    }
}
