//! What `analyze` says of rules against rules is asked of the engine: a rule of which it says that it never decides
//! can be removed, and no verdict changes, in random clusters with policies of every kind.
//!
//! `PROPTEST_CASES` raises the number of cases.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod generate;
mod reference;

use generate::{cilium, l7, network, requests, tiers, world};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseError, TestRunner};
use reference::verdict::{Asked, Said as Spoken};
use serde_json::Value;
use sluice_compile::Rollout;
use sluice_compile::analyze::{Finding, analyze};
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_policy::{ClassId, Decision, Protocol};
use std::cell::Cell;

/// Questions asked of one cluster.
const QUESTIONS: usize = 60;
/// Cases where `PROPTEST_CASES` says nothing.
const CASES: u32 = 400;
/// Rules that never decide by what these say.
const NEVER: [&str; 6] = ["SLU0401", "SLU0402", "SLU0403", "SLU0404", "SLU0405", "SLU0406"];

fn query(asked: &Asked) -> Option<Query> {
    let said = match &asked.said {
        Spoken::Nothing => Said::Nothing,
        Spoken::Http(request) if request.version != 2 => Said::Http {
            method: request.method.clone(),
            target: request.target.clone(),
            host: request.host.clone(),
            headers: request.headers.clone(),
        },
        Spoken::Http(request) => {
            let (service, method) = request.path().strip_prefix('/')?.split_once('/')?;
            let headers = request.headers.iter().skip(1).cloned().collect();
            Said::Grpc { service: service.into(), method: method.into(), headers }
        }
        Spoken::Tls(_) | Spoken::Bytes => return None,
    };
    let protocol = Protocol::parse(asked.protocol)?;
    let (from, to) = (asked.from.to_string(), asked.to.to_string());
    Some(Query { from, to, protocol, port: Port::Number(asked.port), said })
}

/// The verdicts of both sides on every question about somebody who is known: of nobody every deny holds, that one too
/// which takes no class.
fn verdicts(objects: &[Value], questions: &[Query]) -> Vec<Option<(Decision, Decision)>> {
    let loaded = sluice_crd::load_value(objects);
    let cluster = Cluster::new(&loaded.objects, Rollout::AsIfEnforced);
    let known = |name: &str| {
        name.parse().is_ok_and(|address| cluster.snapshot().class_of(address) != ClassId::MISSING)
    };
    let ask = |query: &Query| {
        let verdict = cluster.ask(query).ok().filter(|_| known(&query.from) && known(&query.to))?;
        Some((verdict.egress.decision, verdict.ingress.decision))
    };
    questions.iter().map(ask).collect()
}

/// Says what the policy isolates, so that it does not hang on the rules it has.
fn explicit(mut policy: Value) -> Value {
    let of_types = ["NetworkPolicy", "L7NetworkPolicy"].contains(&policy["kind"].as_str().unwrap());
    let Some(spec) = policy["spec"].as_object_mut().filter(|_| of_types) else { return policy };
    if !spec.contains_key("policyTypes") {
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        let types: &[&str] = if egress { &["Ingress", "Egress"] } else { &["Ingress"] };
        spec.insert("policyTypes".into(), types.into());
    }
    policy
}

/// The policy without what stands at a path, where that is an item of a list; `None`: it would say something else.
fn without(policy: &Value, path: &str) -> Option<Value> {
    if policy["kind"].as_str()?.starts_with("Cilium") || policy["spec"].get("isolation").is_some() {
        return None;
    }
    let (list, index) = path.strip_suffix(']')?.rsplit_once('[')?;
    let index: usize = index.parse().ok()?;
    let pointer = format!("/{}", list.replace(['.', '['], "/").replace(']', ""));
    let mut policy = policy.clone();
    let items = policy.pointer_mut(&pointer)?.as_array_mut()?;
    // An empty list of alternatives is an error.
    if pointer.contains("/rules/") && items.len() < 2 {
        return None;
    }
    items.remove(index);
    Some(policy)
}

fn named(object: &Value) -> String {
    let meta = &object["metadata"];
    let parts = [&object["kind"], &meta["namespace"], &meta["name"]];
    parts.iter().filter_map(|part| part.as_str()).collect::<Vec<_>>().join("/")
}

fn shown(objects: &[Value], finding: &Finding) -> String {
    let objects: String = objects.iter().map(|object| format!("{object}\n")).collect();
    format!("{} {}\n{objects}", finding.code.id, finding.problem)
}

/// Removes what is said to be idle, one by one; says how many were.
fn check(objects: &[Value], questions: &[Query]) -> Result<usize, TestCaseError> {
    let before = verdicts(objects, questions);
    let analysis = analyze(&sluice_crd::load_value(objects), Rollout::AsIfEnforced);
    prop_assert!(analysis.unchecked.is_empty());
    let mut removed = 0;
    for finding in analysis.findings.iter().filter(|finding| NEVER.contains(&finding.code.id)) {
        let object = finding.problem.object.as_deref().unwrap();
        let place = objects.iter().position(|given| named(given) == object).unwrap();
        let Some(policy) = without(&objects[place], &finding.problem.path) else { continue };
        let mut objects = objects.to_vec();
        objects[place] = policy;
        let after = verdicts(&objects, questions);
        for ((query, before), after) in questions.iter().zip(&before).zip(&after) {
            prop_assert_eq!(before, after, "{:?}\n{}", query, shown(&objects, finding));
        }
        removed += 1;
    }
    Ok(removed)
}

fn policies() -> impl Strategy<Value = Vec<Value>> {
    (1..5_usize).prop_flat_map(|many| {
        let policy = |at: usize| {
            let name = || format!("p{at}");
            prop_oneof![
                2 => network::policy(name()),
                4 => l7::policy(name()),
                2 => tiers::policy(name(), at * 10),
                1 => cilium::policy(name()),
            ]
        };
        (0..many).map(policy).collect::<Vec<_>>()
    })
}

#[test]
fn a_rule_that_never_decides_can_be_removed() {
    let said = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = ProptestConfig {
        cases: said.unwrap_or(CASES),
        failure_persistence: None,
        rng_seed: if said.is_some() { RngSeed::Random } else { RngSeed::Fixed(1) },
        ..ProptestConfig::default()
    };
    let questions = prop::collection::vec(requests::asked(), QUESTIONS);
    let removed = Cell::new(0);
    TestRunner::new(config)
        .run(&(world::world(), policies(), questions), |(world, policies, questions)| {
            let objects: Vec<Value> = world.into_iter().chain(policies.into_iter().map(explicit)).collect();
            let questions: Vec<Query> = questions.iter().filter_map(query).collect();
            removed.set(removed.get() + check(&objects, &questions)?);
            Ok(())
        })
        .unwrap_or_else(|error| match error {
            proptest::test_runner::TestError::Fail(reason, _) => panic!("{reason}"),
            other => panic!("{other}"),
        });
    println!("{} rules and alternatives removed", removed.get());
    assert!(removed.get() > 50 || said.is_some(), "too few findings to say anything: {}", removed.get());
}
