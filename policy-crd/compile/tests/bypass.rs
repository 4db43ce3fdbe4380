//! Published ways round a policy: none gets past a deny or into an allow, and docs/bypasses.md says why.
//!
//! The document is what this test renders from what the engine answers; `SLUICE_RENDER=1` writes it anew.

mod common;
#[path = "common/tricks.rs"]
mod tricks;

use common::load;
use serde_json::{Value, json};
use sluice_compile::query::Cluster;
use sluice_policy::path::Path;
use sluice_policy::{
    ClassId, ClassSet, Conditions, Connection, Decision, Direction, Facts, HttpMatch, HttpVersion,
    IndexedProfile, Kind, Mode, OnDeny, Origin, PathMatch, Policy, PolicyId, PortSet, Profile, Protocol,
    Reason, Regex, Request, Rule, Scope, Side, SideVerdict,
};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use tricks::{GROUPS, LIMITS, Limit, Opening, Sent, Trick};

/// Where everything comes from.
const CLIENT: &str = "192.0.2.1";
/// The pod with the deny beside an allow of everything.
const GUARDED: &str = "10.0.0.1";
/// The pod with the allow alone.
const OPENED: &str = "10.0.0.2";

fn pod(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "n", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": "node", "containers": [{"name": "c"}]},
        "status": {"podIP": address},
    })
}

fn policy(name: &str, allow: &Value, deny: &Value) -> Value {
    json!({
        "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "n", "name": name},
        "spec": {"podSelector": {"matchLabels": {"app": name}}, "policyTypes": ["Ingress"],
            "ingress": [{"name": "open", "rules": allow}], "ingressDeny": deny},
    })
}

fn world(deny: fn() -> Value, allow: fn() -> Value) -> Cluster {
    let deny = json!([{"name": "no", "rules": deny()}]);
    let mut open = policy("guarded", &Value::Null, &deny);
    open["spec"]["ingress"] = json!([{"name": "all"}]);
    let (cluster, problems) = load(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}),
        pod("guarded", GUARDED),
        pod("opened", OPENED),
        open,
        policy("opened", &allow(), &json!([])),
    ]);
    assert!(problems.is_empty(), "{problems:?}");
    cluster
}

/// The request, as whoever reads it hands it in.
fn with_request<T>(sent: &Sent, then: impl FnOnce(&Request<'_>) -> T) -> T {
    let (path, query) = sent.target.split_once('?').map_or((sent.target, None), |(p, q)| (p, Some(q)));
    let headers: Vec<(&str, &[u8])> =
        sent.headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    let request = Request {
        version: if sent.http2 { HttpVersion::Http2 } else { HttpVersion::Http1 },
        method: sent.method,
        path: Path::new(path),
        query,
        host: sent.host,
        upgrade: None,
        headers: &headers,
    };
    then(&request)
}

fn ask(cluster: &Cluster, pod: &str, sent: &Sent) -> (SideVerdict, String) {
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    with_request(sent, |request| {
        let facts = Facts::Request(request);
        let verdict = cluster.snapshot().judge(address(CLIENT), address(pod), Protocol::Tcp, 8080, facts);
        (verdict.ingress, request.path.rewritten().unwrap_or(request.path.raw()).to_owned())
    })
}

/// What becomes of a trick at the pod with the allow.
fn into(cluster: &Cluster, trick: &Trick) -> Result<String, String> {
    let (verdict, goes_on) = ask(cluster, OPENED, &trick.sent);
    match (verdict.decision, trick.into) {
        (Decision::Deny, Opening::Shut) => Ok("no".to_owned()),
        (Decision::Allow, Opening::As(path)) if path == goes_on => Ok(format!("goes on as `{path}`")),
        (Decision::Allow, _) => Err(format!("{}: let in as {goes_on:?}", trick.name)),
        (Decision::Deny, Opening::As(path)) => Err(format!("{}: not let in as {path}", trick.name)),
    }
}

#[test]
fn nothing_published_gets_past_a_deny() {
    let mut wrong = Vec::new();
    for group in GROUPS {
        let cluster = world(group.deny, group.allow);
        let honest = ask(&cluster, GUARDED, &group.honest).0;
        assert_eq!(honest.decision, Decision::Allow, "{}: {:?}", group.title, group.honest);
        for trick in group.tricks.iter().filter(|trick| !trick.why.is_empty()) {
            let verdict = ask(&cluster, GUARDED, &trick.sent).0;
            if (verdict.decision, verdict.reason) != (Decision::Deny, Reason::DenyRule) {
                wrong.push(format!("{}: {}: {:?}", group.title, trick.name, trick.sent));
            }
        }
    }
    assert!(wrong.is_empty(), "{} get past:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn nothing_published_gets_into_an_allow() {
    let mut wrong = Vec::new();
    for group in GROUPS {
        let cluster = world(group.deny, group.allow);
        let honest = ask(&cluster, OPENED, &group.honest).0;
        assert_eq!(honest.decision, Decision::Allow, "{}: {:?}", group.title, group.honest);
        wrong.extend(group.tricks.iter().filter_map(|trick| into(&cluster, trick).err()));
    }
    assert!(wrong.is_empty(), "{} get in:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_is_not_seen_through_is_told() {
    for Limit { deny, allow, trick, .. } in LIMITS {
        let cluster = world(*deny, *allow);
        let verdict = ask(&cluster, GUARDED, &trick.sent).0;
        assert_eq!(verdict.decision, Decision::Allow, "no limit any more: {}", trick.name);
        assert_eq!(into(&cluster, trick).as_deref(), Ok("no"), "{}", trick.name);
    }
}

/// Ways to write a deny of `/admin` and of what is near it.
fn spelt() -> Vec<Conditions> {
    let regex = |source: &str| PathMatch::Regex(Regex::new(source).expect("a pattern"));
    let paths = [
        PathMatch::exact("/admin"),
        PathMatch::exact("/admin/"),
        PathMatch::exact("/ADMIN"),
        PathMatch::prefix("/Admin"),
        PathMatch::prefix("/admin/x"),
        PathMatch::exact("/adm%69n"),
        PathMatch::exact("/%C0%AE%C0%AE/admin"),
        PathMatch::exact("/"),
        regex("/admin(/.*)?"),
        regex("(?i)/ADMIN"),
    ];
    let of = |path: PathMatch| {
        let item = HttpMatch { path: Some(path), ..HttpMatch::default() };
        Conditions { http: vec![item], ..Conditions::default() }
    };
    paths.into_iter().map(of).collect()
}

/// Rules are found by an index; one that is found too few is a way round it.
#[test]
fn the_index_finds_what_asking_every_rule_finds() {
    let origin = Origin { kind: Kind::L7NetworkPolicy, namespace: "n".into(), name: "p".into() };
    let policy =
        Arc::new(Policy { id: PolicyId(0), origin, mode: Mode::Enforce, on_deny: OnDeny::default() });
    for conditions in spelt() {
        let rule = Rule {
            policy: policy.clone(),
            name: "no".into(),
            scopes: vec![Scope { peers: ClassSet::All, ports: PortSet::All }],
            conditions: Some(Arc::new(conditions.clone())),
        };
        let side = Side { deny: vec![rule], ..Side::default() };
        let indexed: IndexedProfile = Profile { ingress: side, egress: Side::default() }.into();
        let connection = Connection::new(ClassId(1), Protocol::Tcp, 8080);
        for trick in GROUPS.iter().flat_map(|group| group.tricks) {
            with_request(&trick.sent, |request| {
                let found = indexed.side(Direction::Ingress).judge(&connection, Facts::Request(request));
                let denied = found.decision == Decision::Deny;
                assert_eq!(denied, conditions.denies(request), "{}: {conditions:?}", trick.name);
            });
        }
    }
}

/// As it is sent, readable in a table.
fn shown(sent: &Sent) -> String {
    let plain = |text: &str| {
        let escaped: String = text
            .chars()
            .flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] })
            .collect();
        escaped.replace('|', "\\|")
    };
    let mut out = format!("`{} {}`", sent.method, plain(sent.target));
    if sent.host != Some("shop.example") {
        let host = sent.host.map_or_else(|| "no Host".to_owned(), |host| format!("`Host: {}`", plain(host)));
        let _ = write!(out, " {host}");
    }
    for (name, value) in sent.headers {
        let _ = write!(out, " `{name}: {}`", plain(value));
    }
    out
}

fn rendered() -> String {
    let mut out = INTRODUCTION.to_owned();
    for group in GROUPS {
        let cluster = world(group.deny, group.allow);
        let _ = write!(out, "\n## {}\n{}.\n\n", group.title, capital(group.policies));
        out.push_str("| trick | sent | past the deny | into the allow | why |\n|---|---|---|---|---|\n");
        for trick in group.tricks {
            let past = match ask(&cluster, GUARDED, &trick.sent).0.decision {
                Decision::Deny => "no",
                Decision::Allow => "nothing to deny",
            };
            let into = into(&cluster, trick).unwrap_or_else(|wrong| wrong);
            let why = if trick.why.is_empty() { "what is judged is what goes on" } else { trick.why };
            let _ = writeln!(out, "| {} | {} | {past} | {into} | {why} |", trick.name, shown(&trick.sent));
        }
    }
    out.push_str(LIMITS_INTRODUCTION);
    for Limit { title, trick, .. } in LIMITS {
        let _ = writeln!(out, "| {title}: {} | {} | {} |", trick.name, shown(&trick.sent), trick.why);
    }
    out
}

fn capital(text: &str) -> String {
    text[..1].to_uppercase() + &text[1..]
}

#[test]
fn the_document_says_what_the_engine_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/bypasses.md");
    let expected = rendered();
    if std::env::var_os("SLUICE_RENDER").is_some_and(|value| value == "1") {
        std::fs::write(path, &expected).expect("the document can be written");
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == expected, "docs/bypasses.md is not what the engine says: run this with SLUICE_RENDER=1");
}

const INTRODUCTION: &str = "\
# Ways round a policy

Published tricks and what becomes of each: `policy-crd/compile/tests/bypass.rs` asks the engine and renders these
tables, so that they are what it does. Each is tried on two pods. One denies something and opens everything else: the
trick must not get *past the deny*. One opens something alone: the trick must not get *into the allow*, or goes on to
the server as what was judged.

The rule behind all of them: an allow needs one reading that every server shares, a deny takes any reading that some
server has.

What never becomes a request is refused by the proxy before a policy is asked, with 400 and a close: framing that two
servers read differently, a bare line feed, folded lines, NUL and CR in a field, several `Host`, an absolute-form target
or an `:authority` that is not the `Host`, userinfo in either, a target that is neither a path nor `*`
(`proxy/src/http1/head_tests.rs`, `proxy/tests/attacks.rs`, `proxy/tests/http2.rs`). The tables have those too that
touch a path or a host, since a policy must hold without that help.
";

const LIMITS_INTRODUCTION: &str = "
## What is not seen through
A deny lets these pass, since no server makes of them what it names, or only a server's own code does. None gets into
an allow.

| trick | sent | why, and what to do |
|---|---|---|
";
