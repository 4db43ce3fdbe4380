//! What must stay true whatever the policies are: an `L7NetworkPolicy` opens nothing that another layer closed, an
//! audited policy changes no verdict, and the order of objects changes nothing. Random objects, no second opinion.
//!
//! `PROPTEST_CASES` raises the number of cases.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;
mod generate;
mod reference;

use common::load;
use generate::{cilium, l7, network, requests, tiers, world};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use reference::verdict::{Asked, Said as Spoken};
use serde_json::Value;
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_policy::{Decision, Protocol, SideVerdict, Verdict};

/// Questions asked of one pair of clusters.
const QUESTIONS: usize = 30;
/// Cases of one property where `PROPTEST_CASES` says nothing: some seconds for each.
const CASES: u32 = 100;

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

fn ask(cluster: &Cluster, asked: &Asked) -> Verdict {
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
    cluster.ask(&Query { from, to, protocol, port: Port::Number(asked.port), said }).unwrap()
}

fn decisions(verdict: &Verdict) -> [Decision; 2] {
    [verdict.egress.decision, verdict.ingress.decision]
}

fn would_deny(side: &SideVerdict, name: &str) -> bool {
    side.audit
        .would_deny
        .iter()
        .any(|finding| finding.policy.as_ref().is_some_and(|p| &*p.origin.name == name))
}

/// A scene: world and policies of every kind.
fn scene() -> impl Strategy<Value = Vec<Value>> {
    let policies = (
        network::policy("np".into()),
        l7::policy("l7".into()),
        cilium::policy("cilium".into()),
        tiers::policy("tier".into(), 5),
    );
    (world::world(), policies, 1..16_u32).prop_map(|(mut objects, policies, mask)| {
        let all = [policies.0, policies.1, policies.2, policies.3];
        objects.extend(
            all.into_iter().enumerate().filter(|(at, _)| mask & (1 << at) != 0).map(|(_, policy)| policy),
        );
        objects
    })
}

fn with(objects: &[Value], policy: &Value) -> Cluster {
    let objects: Vec<Value> = objects.iter().chain([policy]).cloned().collect();
    load(&objects).0
}

fn in_mode(policy: &Value, mode: &str) -> Value {
    let mut policy = policy.clone();
    policy["spec"]["mode"] = mode.into();
    policy
}

fn questions() -> impl Strategy<Value = Vec<Asked>> {
    prop::collection::vec(requests::asked(), QUESTIONS)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_first_l7_policy_never_allows_more(objects in scene(), added in l7::policy("added".into()), asked in questions()) {
        let others: Vec<Value> = objects.into_iter().filter(|object| object["kind"] != "L7NetworkPolicy").collect();
        let (before, after) = (load(&others).0, with(&others, &in_mode(&added, "Enforce")));
        for asked in &asked {
            let (was, is) = (decisions(&ask(&before, asked)), decisions(&ask(&after, asked)));
            for (was, is) in was.into_iter().zip(is) {
                prop_assert!(!(was == Decision::Deny && is == Decision::Allow), "{asked:?}\n{added}\n{others:#?}");
            }
        }
    }

    #[test]
    fn an_audited_policy_changes_no_verdict_and_says_what_it_would(
        objects in scene(), added in l7::policy("added".into()), asked in questions(),
    ) {
        let before = load(&objects).0;
        let audited = with(&objects, &in_mode(&added, "Audit"));
        let enforced = with(&objects, &in_mode(&added, "Enforce"));
        for asked in &asked {
            let (was, is, promoted) = (ask(&before, asked), ask(&audited, asked), ask(&enforced, asked));
            prop_assert_eq!(decisions(&was), decisions(&is), "{:?}\n{}\n{:#?}", asked, added, objects);
            let sides = [(&is.egress, &promoted.egress), (&is.ingress, &promoted.ingress)];
            for (side, promoted) in sides.into_iter().filter(|(side, _)| side.decision == Decision::Allow) {
                let denies = promoted.decision == Decision::Deny;
                prop_assert_eq!(would_deny(side, "added"), denies, "{:?}\n{}\n{:#?}", asked, added, objects);
            }
        }
    }

    #[test]
    fn the_order_of_objects_changes_nothing(objects in scene(), asked in questions()) {
        let reversed: Vec<Value> = objects.iter().rev().cloned().collect();
        let (one, other) = (load(&objects).0, load(&reversed).0);
        for asked in &asked {
            prop_assert_eq!(ask(&one, asked), ask(&other, asked));
        }
    }
}
