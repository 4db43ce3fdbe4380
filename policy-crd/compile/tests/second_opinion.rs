//! The engine against a second opinion: random clusters, policies of every kind and requests, judged by compiler and
//! engine and by the interpreter in `reference/`, which was written from the specifications alone. They must agree on
//! what happens on each side, why, and on what audited policies would do.
//!
//! `PROPTEST_CASES` raises the number of cases.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;
mod generate;
mod reference;

use common::load;
use generate::{cilium, l7, network, requests, tiers, world};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseError};
use reference::cluster::Cluster as Reference;
use reference::verdict::{Asked, Said as Spoken, Side, judge};
use serde_json::Value;
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_policy::{Decision, Protocol, SideVerdict};

/// Questions asked of one cluster: making it costs more than asking.
const QUESTIONS: usize = 40;
/// Cases of one property where `PROPTEST_CASES` says nothing: with all of them the tests take some tens of seconds.
const CASES: u32 = 250;

/// Where the cases come from when nobody asks for more.
const SEED: u64 = 1;

fn config() -> ProptestConfig {
    let said = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    // The same cases every time, so that a change is judged by what it changes; a longer search draws anew.
    let rng_seed = if said.is_some() { RngSeed::Random } else { RngSeed::Fixed(SEED) };
    ProptestConfig {
        cases: said.unwrap_or(CASES),
        failure_persistence: None,
        rng_seed,
        ..ProptestConfig::default()
    }
}

/// The question as the engine takes it. `None`: it cannot be asked this way.
fn query(asked: &Asked) -> Option<Query> {
    let said = match &asked.said {
        Spoken::Nothing => Said::Nothing,
        Spoken::Http(request) if request.version == 2 => {
            let (service, method) = request.path().strip_prefix('/')?.split_once('/')?;
            let headers = request.headers.iter().skip(1).cloned().collect();
            Said::Grpc { service: service.into(), method: method.into(), headers }
        }
        Spoken::Http(request) => Said::Http {
            method: request.method.clone(),
            target: request.target.clone(),
            host: request.host.clone(),
            headers: request.headers.clone(),
        },
        Spoken::Tls(name) => Said::Tls { server_name: name.clone() },
        Spoken::Bytes => return None,
    };
    let protocol = Protocol::parse(asked.protocol)?;
    let (from, to) = (asked.from.to_string(), asked.to.to_string());
    Some(Query { from, to, protocol, port: Port::Number(asked.port), said })
}

fn names(verdict: &SideVerdict) -> Vec<String> {
    let named = |finding: &sluice_policy::AuditFinding| finding.policy.as_ref().map(|p| p.origin.to_string());
    let mut names: Vec<String> = verdict.audit.would_deny.iter().filter_map(named).collect();
    names.sort();
    names
}

/// One side as the engine has it, in the words of the reference. Reasons of allows are left out: which of several
/// allows is named is nobody's specification.
fn told(verdict: &SideVerdict) -> Side {
    Side {
        allowed: verdict.decision == Decision::Allow,
        reason: if verdict.decision == Decision::Allow { "" } else { verdict.reason.as_str() },
        would_deny: names(verdict),
        together_deny: verdict.audit.together_deny.is_some(),
        would_allow: verdict.audit.would_allow,
    }
}

fn expected(side: Side) -> Side {
    if side.allowed { Side { reason: "", ..side } } else { side }
}

/// The policies without those that the compiler says it cannot take yet. What it cannot take it must say; that such a
/// policy is judged closed is for other tests.
fn taken(world: &[Value], policies: &[Value]) -> Vec<Value> {
    let takes = |policy: &&Value| {
        let objects: Vec<Value> = world.iter().chain([*policy]).cloned().collect();
        !load(&objects).1.iter().any(|problem| {
            ["not built yet", "not judged by yet"].iter().any(|words| problem.reason.contains(words))
        })
    };
    world.iter().chain(policies.iter().filter(takes)).cloned().collect()
}

/// Both opinions on every question.
fn compare(objects: &[Value], questions: &[Asked]) -> Result<(), TestCaseError> {
    let (cluster, problems) = load(objects);
    let errors = problems.iter().filter(|problem| problem.severity == sluice_crd::Severity::Error);
    let errors: Vec<String> = errors.map(ToString::to_string).collect();
    prop_assert!(
        errors.is_empty(),
        "what the generators make is well-formed: {errors:#?}\n{}",
        shown(objects)
    );
    let reference = Reference::read(objects);
    for asked in questions {
        agree(&cluster, &reference, asked, objects)?;
    }
    Ok(())
}

/// The objects, one a line.
fn shown(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("{object}\n")).collect()
}

fn agree(
    cluster: &Cluster,
    reference: &Reference,
    asked: &Asked,
    objects: &[Value],
) -> Result<(), TestCaseError> {
    let Some(query) = query(asked) else { return Ok(()) };
    let got = cluster.ask(&query).unwrap();
    let Some((egress, ingress)) = judge(reference, asked) else {
        prop_assert_eq!(
            got.decision(),
            Decision::Allow,
            "a pod reaching itself is never judged: {:?}",
            asked
        );
        return Ok(());
    };
    // A deny may consider more readings of a path than it must; all of them take long to find.
    let far = |ingress: bool| {
        let mut far = asked.clone();
        if let Spoken::Http(request) = &mut far.said {
            request.far = true;
        }
        judge(reference, &far).map(|sides| expected(if ingress { sides.1 } else { sides.0 }))
    };
    let sides = [("egress", &got.egress, egress, false), ("ingress", &got.ingress, ingress, true)];
    for (name, engine, reference, is_ingress) in sides {
        let (engine, reference) = (told(engine), expected(reference));
        prop_assert!(
            engine == reference || Some(&engine) == far(is_ingress).as_ref(),
            "{name} of {asked:?}\nengine:    {engine:?}\nreference: {reference:?}\n{}",
            shown(objects)
        );
    }
    Ok(())
}

/// Policies of these kinds, each with its name.
fn policies(kinds: &'static [fn(String) -> generate::Made]) -> impl Strategy<Value = Vec<Value>> {
    (1..5_usize).prop_flat_map(move |many| {
        let policy = |at: usize| {
            let of_kind = kinds.iter().map(move |kind| kind(format!("p{at}")));
            proptest::strategy::Union::new(of_kind)
        };
        (0..many).map(policy).collect::<Vec<_>>()
    })
}

/// Policies of tiers, of priorities that differ.
fn tiered() -> impl Strategy<Value = Vec<Value>> {
    (1..4_usize).prop_flat_map(|many| {
        (0..many).map(|at| tiers::policy(format!("t{at}"), at * 10)).collect::<Vec<_>>()
    })
}

fn questions() -> impl Strategy<Value = Vec<Asked>> {
    prop::collection::vec(requests::asked(), QUESTIONS)
}

fn check(world: &[Value], policies: &[Value], questions: &[Asked]) -> Result<(), TestCaseError> {
    compare(&taken(world, policies), questions)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn network_policies(world in world::world(), policies in policies(&[network::policy]), asked in questions()) {
        check(&world, &policies, &asked)?;
    }

    #[test]
    fn l7_network_policies(world in world::world(), policies in policies(&[l7::policy]), asked in questions()) {
        check(&world, &policies, &asked)?;
    }

    #[test]
    fn cilium_network_policies(world in world::world(), policies in policies(&[cilium::policy]), asked in questions()) {
        check(&world, &policies, &asked)?;
    }

    #[test]
    fn kinds_together(
        world in world::world(),
        policies in policies(&[network::policy, l7::policy, l7::policy, cilium::policy]),
        asked in questions(),
    ) {
        check(&world, &policies, &asked)?;
    }

    #[test]
    fn tiers(
        world in world::world(),
        policies in policies(&[network::policy, l7::policy]),
        tiered in tiered(),
        asked in questions(),
    ) {
        let policies: Vec<Value> = policies.into_iter().chain(tiered).collect();
        check(&world, &policies, &asked)?;
    }
}
