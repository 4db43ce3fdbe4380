//! Migrating sets of policies: random ones, in random clusters, give the verdicts that they gave but where the losses
//! say otherwise; and what policies of one pod mean together.
//!
//! `PROPTEST_CASES` raises the number of cases.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;
mod generate;
mod migrated;
mod reference;

use generate::{cilium, l7, network, requests, tiers, world};
use migrated::{Pair, is_ciliums};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use reference::verdict::{Asked, Said as Spoken};
use serde_json::{Value, json};
use sluice_compile::migrate::LossKind::{self, Dropped, Frozen, Narrowed, Widened};
use sluice_compile::migrate::{Outcome, migrate};
use sluice_compile::query::{Port, Query, Said};
use sluice_crd::load_value;
use sluice_policy::{Decision, Protocol};

/// Questions asked of one pair of clusters.
const QUESTIONS: usize = 40;
/// Cases where `PROPTEST_CASES` says nothing: some seconds.
const CASES: u32 = 200;
/// Where the cases come from when nobody asks for more.
const SEED: u64 = 1;

fn config() -> ProptestConfig {
    let said = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let rng_seed = if said.is_some() { RngSeed::Random } else { RngSeed::Fixed(SEED) };
    ProptestConfig {
        cases: said.unwrap_or(CASES),
        failure_persistence: None,
        rng_seed,
        ..ProptestConfig::default()
    }
}

fn query(asked: &Asked) -> Query {
    let said = match &asked.said {
        Spoken::Http(request) => Said::Http {
            method: request.method.clone(),
            target: request.target.clone(),
            host: request.host.clone(),
            headers: request.headers.clone(),
        },
        _ => Said::Nothing,
    };
    let (from, to) = (asked.from.to_string(), asked.to.to_string());
    let protocol = Protocol::parse(asked.protocol).unwrap();
    Query { from, to, protocol, port: Port::Number(asked.port), said }
}

/// A world, policies of Cilium, and now and then a `NetworkPolicy` beside them.
fn scene() -> impl Strategy<Value = Vec<Value>> {
    let policies = (
        cilium::policy("one".into()),
        cilium::policy("two".into()),
        cilium::policy("three".into()),
        (network::policy("np".into()), l7::policy("l7".into()), tiers::policy("tier".into(), 5)),
    );
    (world::world(), policies, 1..64_u32).prop_map(|(mut objects, policies, mask)| {
        let (network, l7, tier) = policies.3;
        let all = [policies.0, policies.1, policies.2, network, l7, tier];
        let chosen = all.into_iter().enumerate().filter(|(at, _)| mask & (1 << at) != 0);
        objects.extend(chosen.map(|(_, policy)| policy));
        objects
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn verdicts_stay_but_where_a_loss_says_otherwise(objects in scene(), asked in prop::collection::vec(requests::asked(), QUESTIONS)) {
        let pair = Pair::new(&objects);
        prop_assert!(pair.errors.is_empty(), "{:#?}\n{:#?}\n{objects:#?}", pair.errors, pair.result);
        if pair.migrated.originals.iter().any(|original| original.outcome == Outcome::Refused) {
            return Ok(());
        }
        for asked in &asked {
            if let Err(reason) = pair.ask(&query(asked)) {
                let policies: Vec<&Value> = objects.iter().filter(|object| !object["spec"]["podCIDRs"].is_array() && !object["status"].is_object()).collect();
                prop_assert!(false, "{reason}\n{policies:#?}");
            }
        }
    }

    #[test]
    fn the_order_of_objects_changes_nothing_and_the_result_is_final(objects in scene()) {
        let reversed: Vec<Value> = objects.iter().rev().cloned().collect();
        let pair = Pair::new(&objects);
        let other = migrate(&load_value(&reversed).objects);
        prop_assert_eq!(&pair.migrated.manifests, &other.manifests);
        let stays = objects.iter().filter(|object| !is_ciliums(object));
        let again = migrate(&load_value(&stays.chain(&pair.result).cloned().collect::<Vec<_>>()).objects);
        prop_assert!(again.manifests.is_empty() && again.losses.is_empty() && again.originals.is_empty());
    }
}

/// A `CiliumNetworkPolicy` of the namespace `a`.
fn policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": "a", "name": name}, "spec": spec})
}

fn pair(policies: &[Value]) -> Pair {
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}});
    let pod = |namespace: &str, name: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": name, "tier": "x"}},
            "spec": {"nodeName": "n", "serviceAccountName": name, "containers": [{"name": "c"}]},
            "status": {"podIP": ip}})
    };
    let mut objects = vec![
        namespace("a"),
        namespace("b"),
        pod("a", "server", "10.0.0.1"),
        pod("a", "client", "10.0.0.2"),
        pod("b", "client", "10.0.0.3"),
    ];
    objects.extend_from_slice(policies);
    let pair = Pair::new(&objects);
    assert!(pair.errors.is_empty(), "{:#?}\n{:#?}", pair.errors, pair.result);
    pair
}

/// What becomes of a request of `a/client` to `a/server`, before and after.
fn ask(pair: &Pair, port: u16, request: &str) -> [Decision; 2] {
    asks(pair, "a/client", port, request)
}

fn asks(pair: &Pair, from: &str, port: u16, request: &str) -> [Decision; 2] {
    let said = request.split_once(' ').map_or(Said::Nothing, |(method, target)| Said::Http {
        method: method.into(),
        target: target.into(),
        host: None,
        headers: Vec::new(),
    });
    let query = Query {
        from: from.into(),
        to: "a/server".into(),
        protocol: Protocol::Tcp,
        port: Port::Number(port),
        said,
    };
    pair.ask(&query).unwrap()
}

fn kinds(pair: &Pair) -> Vec<&str> {
    pair.result.iter().map(|object| object["kind"].as_str().unwrap()).collect()
}

fn losses(pair: &Pair) -> Vec<(LossKind, &str)> {
    pair.migrated.losses.iter().map(|loss| (loss.kind, loss.problem.path.as_str())).collect()
}

const ALLOWED: [Decision; 2] = [Decision::Allow; 2];
const DENIED: [Decision; 2] = [Decision::Deny; 2];

fn server() -> Value {
    json!({"matchLabels": {"app": "server"}})
}

fn http(port: &str, rule: &Value) -> Value {
    json!({"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": port, "protocol": "TCP"}], "rules": {"http": [rule]}}]})
}

fn plain(port: &str) -> Value {
    json!({"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": port, "protocol": "TCP"}]}]})
}

#[test]
fn who_may_connect_is_a_networkpolicy() {
    let pair = pair(&[policy("p", &json!({"endpointSelector": server(), "ingress": [plain("80")]}))]);
    assert_eq!((kinds(&pair), losses(&pair)), (vec!["NetworkPolicy"], vec![]));
    assert_eq!(
        pair.result[0]["spec"],
        json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80, "protocol": "TCP"}]}]})
    );
    assert_eq!(
        (ask(&pair, 80, ""), ask(&pair, 81, ""), asks(&pair, "b/client", 80, "")),
        (ALLOWED, DENIED, DENIED)
    );
}

#[test]
fn what_they_may_say_is_an_l7networkpolicy_beside_it() {
    let rule = http("80", &json!({"method": "GET|HEAD", "path": "/v1/.*"}));
    let pair = pair(&[policy("p", &json!({"endpointSelector": server(), "ingress": [rule]}))]);
    assert_eq!((kinds(&pair), losses(&pair)), (vec!["NetworkPolicy", "L7NetworkPolicy"], vec![]));
    for (request, expected) in
        [("GET /v1/a?x=1", ALLOWED), ("HEAD /v1/", ALLOWED), ("PUT /v1/a", DENIED), ("GET /v2", DENIED)]
    {
        assert_eq!(ask(&pair, 80, request), expected, "{request}");
    }
}

#[test]
fn an_allow_of_one_policy_still_cancels_the_rules_of_another() {
    let strict = policy(
        "strict",
        &json!({"endpointSelector": server(), "ingress": [http("80", &json!({"path": "/v1/.*"}))]}),
    );
    let older = policy(
        "older",
        &json!({"endpointSelector": {"matchLabels": {"tier": "x"}}, "ingress": [plain("80")]}),
    );
    let alone = pair(std::slice::from_ref(&strict));
    assert_eq!(ask(&alone, 80, "GET /other"), DENIED);
    // As in Cilium, where the older policy lets everything through.
    let both = pair(&[strict.clone(), older]);
    assert_eq!(ask(&both, 80, "GET /other"), ALLOWED);
    assert_eq!(
        kinds(&both).iter().filter(|kind| **kind == "L7NetworkPolicy").count(),
        2,
        "{:#?}",
        both.result
    );
    // A NetworkPolicy does as much, stays what it is, and is repeated.
    let network = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "a", "name": "old"}, "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}});
    let beside = pair(&[strict, network]);
    assert_eq!(ask(&beside, 80, "GET /other"), ALLOWED);
    assert_eq!(losses(&beside), [(Frozen, "spec.ingress")]);
}

#[test]
fn policies_of_other_pods_keep_to_themselves() {
    let strict = policy(
        "strict",
        &json!({"endpointSelector": server(), "ingress": [http("80", &json!({"path": "/v1/.*"}))]}),
    );
    let other = policy(
        "other",
        &json!({"endpointSelector": {"matchLabels": {"app": "client"}}, "ingress": [plain("80")]}),
    );
    let pair = pair(&[strict, other]);
    assert_eq!(kinds(&pair), ["NetworkPolicy", "NetworkPolicy", "L7NetworkPolicy"]);
}

#[test]
fn a_deny_beats_every_allow_and_isolates_only_where_it_did() {
    let deny = json!({"fromEndpoints": [{"matchLabels": {"app": "client"}}], "toPorts": [{"ports": [{"port": "81"}]}]});
    let closing = policy(
        "p",
        &json!({"endpointSelector": server(), "ingress": [{"fromEntities": ["all"]}], "ingressDeny": [deny]}),
    );
    let closed = pair(&[closing]);
    assert_eq!((ask(&closed, 80, ""), ask(&closed, 81, "")), (ALLOWED, DENIED));
    let only = policy(
        "p",
        &json!({"endpointSelector": server(), "enableDefaultDeny": {"ingress": false}, "ingressDeny": [deny]}),
    );
    let only = pair(&[only]);
    assert_eq!((kinds(&only), losses(&only)), (vec!["L7NetworkPolicy"], vec![]));
    assert_eq!(only.result[0]["spec"]["isolation"], "None");
    assert_eq!((ask(&only, 80, ""), ask(&only, 81, "")), (ALLOWED, DENIED));
}

#[test]
fn an_allow_that_closes_nothing_is_for_the_pods_that_others_close() {
    let open = json!({"ingress": false});
    let allow = |labels: Value| {
        policy(
            "open",
            &json!({"endpointSelector": {"matchLabels": labels}, "enableDefaultDeny": open, "ingress": [plain("80")]}),
        )
    };
    let alone = pair(&[allow(json!({"tier": "x"}))]);
    assert_eq!((kinds(&alone), losses(&alone)), (vec![], vec![(Frozen, "spec.ingress")]));
    let closed = policy("closed", &json!({"endpointSelector": server(), "ingress": [plain("81")]}));
    let both = pair(&[allow(json!({"tier": "x"})), closed.clone()]);
    assert_eq!((kinds(&both), losses(&both)), (vec!["NetworkPolicy"; 2], vec![]));
    assert_eq!((ask(&both, 80, ""), ask(&both, 81, ""), ask(&both, 82, "")), (ALLOWED, ALLOWED, DENIED));
    let selectors: Vec<&Value> =
        both.result.iter().map(|object| &object["spec"]["podSelector"]["matchLabels"]).collect();
    assert_eq!(selectors, [&json!({"app": "server"}), &json!({"app": "server", "tier": "x"})]);
    // All of its pods are closed: it is as if it closed them.
    let within = pair(&[allow(json!({"app": "server", "tier": "x"})), closed]);
    assert_eq!((kinds(&within), losses(&within)), (vec!["NetworkPolicy"; 2], vec![]));
    assert_eq!((ask(&within, 80, ""), ask(&within, 82, "")), (ALLOWED, DENIED));
}

#[test]
fn an_empty_rule_closes() {
    let pair = pair(&[policy("p", &json!({"endpointSelector": server(), "ingress": [{}]}))]);
    assert_eq!(
        pair.result[0]["spec"],
        json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]})
    );
    assert_eq!(ask(&pair, 80, ""), DENIED);
}

#[test]
fn a_path_that_refuses_a_query_is_widened_and_a_query_that_must_be_is_dropped() {
    let exact = http("80", &json!({"path": "/public$"}));
    let query = http("80", &json!({"path": "/public\\?v=1"}));
    let widened = pair(&[policy("p", &json!({"endpointSelector": server(), "ingress": [exact]}))]);
    assert_eq!(losses(&widened), [(Widened, "spec.ingress[0].toPorts[0].rules.http[0].path")]);
    let rules = &widened.result[1]["spec"]["ingress"][0]["rules"]["http"][0];
    assert_eq!(rules["path"], json!({"type": "Exact", "value": "/public"}));
    assert_eq!(ask(&widened, 80, "GET /public?x=1"), [Decision::Deny, Decision::Allow]);
    let dropped = pair(&[policy("p", &json!({"endpointSelector": server(), "ingress": [query]}))]);
    assert_eq!(losses(&dropped), [(Dropped, "spec.ingress[0].toPorts[0].rules.http[0].path")]);
    assert_eq!(ask(&dropped, 80, "GET /public?v=1"), [Decision::Allow, Decision::Deny]);
    let both = http("80", &json!({"path": "/a.*b"}));
    let both = pair(&[policy("p", &json!({"endpointSelector": server(), "ingress": [both]}))]);
    assert_eq!(losses(&both).iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [Narrowed, Widened]);
}

#[test]
fn a_clusterwide_policy_is_one_for_each_namespace() {
    let clusterwide = |selector: Value| {
        json!({"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "wide"},
            "spec": {"endpointSelector": selector, "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}]}})
    };
    let wide = pair(&[clusterwide(json!({}))]);
    let homes = |pair: &Pair| {
        pair.result.iter().map(|object| object["metadata"]["namespace"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (homes(&wide), losses(&wide)),
        (vec![json!("a"), json!("b")], vec![(Frozen, "spec.endpointSelector")])
    );
    assert_eq!(asks(&wide, "b/client", 80, ""), ALLOWED);
    // Where the namespace is named, nothing is frozen.
    let named = pair(&[clusterwide(json!({"matchLabels": {"k8s:io.kubernetes.pod.namespace": "a"}}))]);
    assert_eq!((homes(&named), losses(&named)), (vec![json!("a")], vec![]));
    let labelled =
        pair(&[clusterwide(json!({"matchLabels": {"k8s:io.cilium.k8s.namespace.labels.team": "b"}}))]);
    assert_eq!(homes(&labelled), [json!("b")]);
}

#[test]
fn what_selects_by_account_is_left_out_and_told() {
    let subject = json!({"matchLabels": {"io.cilium.k8s.policy.serviceaccount": "server"}});
    let gone = pair(&[policy("p", &json!({"endpointSelector": subject, "ingress": [{}]}))]);
    assert_eq!((kinds(&gone), losses(&gone)), (vec![], vec![(Dropped, "spec.endpointSelector")]));
    let peers =
        json!([{"fromEndpoints": [{"matchLabels": {"io.cilium.k8s.policy.serviceaccount": "client"}}]}]);
    let named = pair(&[policy("p", &json!({"endpointSelector": server(), "ingress": peers}))]);
    assert_eq!(losses(&named), []);
    assert_eq!((ask(&named, 80, ""), asks(&named, "b/client", 80, "")), (ALLOWED, DENIED));
}

#[test]
fn what_nobody_can_read_is_refused() {
    let refused = pair(&[
        policy("typo", &json!({"endpointSelector": server(), "ingres": [{}]})),
        policy(
            "template",
            &json!({"endpointSelector": {"matchLabels": {"app": "{{ .App }}"}}, "ingress": [{}]}),
        ),
    ]);
    assert!(refused.migrated.originals.iter().all(|original| original.outcome == Outcome::Refused));
    assert!(refused.result.is_empty());
    // One rule that is not honoured costs itself.
    let fqdn = json!({"toFQDNs": [{"matchName": "example.com"}]});
    let rules = json!([fqdn, {"toEndpoints": [{}]}]);
    let lossy = pair(&[policy("p", &json!({"endpointSelector": server(), "egress": rules}))]);
    assert_eq!(losses(&lossy), [(Dropped, "spec.egress[0].toFQDNs")]);
    assert_eq!(lossy.result[0]["spec"]["egress"], json!([{"to": [{"podSelector": {}}]}]));
}

#[test]
fn an_l7networkpolicy_that_was_there_is_warned_of() {
    let strict = policy(
        "strict",
        &json!({"endpointSelector": server(), "ingress": [http("80", &json!({"path": "/v1/.*"}))]}),
    );
    let there = json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": "a", "name": "strict"}, "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}});
    let pair = pair(&[strict, there]);
    assert_eq!(losses(&pair), [(Widened, "spec.ingress")]);
    assert_eq!(pair.result[1]["metadata"]["name"], "strict-2", "the name is taken");
}
