//! What must stay true whatever the policies are: an `L7NetworkPolicy` opens nothing that another layer closed, audit
//! changes no verdict and is as good as its word, and the order of objects changes nothing. Random objects of every
//! kind, no second opinion.
//!
//! `PROPTEST_CASES` raises the number of cases.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;
mod generate;
#[path = "common/judge.rs"]
mod judge;
mod reference;

use common::{load, load_with};
use generate::{cilium, l7, network, requests, tiers, world};
use judge::judge;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use reference::verdict::Asked;
use serde_json::{Value, json};
use sluice_compile::query::Cluster;
use sluice_compile::{Enforcement, Rollout};
use sluice_policy::{Decision, Direction, Kind, LayerKind, Mode, Protocol, SideVerdict, Verdict};
use std::net::IpAddr;

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
    judge(cluster.snapshot(), asked)
}

fn sides(verdict: &Verdict) -> [&SideVerdict; 2] {
    [&verdict.egress, &verdict.ingress]
}

fn decisions(verdict: &Verdict) -> [Decision; 2] {
    sides(verdict).map(|side| side.decision)
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

fn with(objects: &[Value], policies: &[Value]) -> Cluster {
    let objects: Vec<Value> = objects.iter().chain(policies).cloned().collect();
    load(&objects).0
}

fn in_mode(policy: &Value, mode: &str) -> Value {
    let mut policy = policy.clone();
    policy["spec"]["mode"] = mode.into();
    policy
}

/// A policy that can be audited by its own word: of either of our kinds.
fn auditable(name: &'static str, priority: usize) -> impl Strategy<Value = Value> {
    let tier = tiers::policy(name.into(), priority);
    let ours = tier.prop_filter("of our kind", |policy| policy["kind"] == "ClusterL7NetworkPolicy");
    prop_oneof![2 => l7::policy(name.into()), 1 => ours]
}

fn is_l7(object: &Value) -> bool {
    object["kind"] == "L7NetworkPolicy"
}

/// An `L7NetworkPolicy` that allows everything and denies what it did.
fn denies_alone(policy: &Value) -> Value {
    let mut policy = policy.clone();
    policy["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
    policy["spec"]["ingress"] = json!([{}]);
    policy["spec"]["egress"] = json!([{}]);
    policy
}

/// Whether an `L7NetworkPolicy` is why a side is closed, by no rule of its own: it allows nobody whom nobody knows.
fn is_for_want_of_an_l7_allow(side: &SideVerdict) -> bool {
    side.rule.is_none() && side.origin().is_some_and(|origin| origin.kind == Kind::L7NetworkPolicy)
}

/// Whether an `L7NetworkPolicy` in force isolates this end of the connection.
fn isolated_by_l7(cluster: &Cluster, asked: &Asked, direction: Direction) -> bool {
    let end: IpAddr = if direction == Direction::Ingress { asked.to } else { asked.from };
    let snapshot = cluster.snapshot();
    let profile = snapshot.endpoint_at(end).and_then(|endpoint| snapshot.profile(endpoint.profile));
    let layer = LayerKind::ALL.iter().position(|kind| *kind == LayerKind::L).unwrap();
    profile.is_some_and(|profile| {
        profile.side(direction).layers[layer].isolation.iter().any(|isolation| {
            isolation.policy.mode == Mode::Enforce
                && isolation.ports.contains(Protocol::parse(asked.protocol).unwrap(), asked.port)
        })
    })
}

fn questions() -> impl Strategy<Value = Vec<Asked>> {
    prop::collection::vec(requests::asked(), QUESTIONS)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_first_l7_policy_never_allows_more(objects in scene(), added in l7::policy("added".into()), asked in questions()) {
        let others: Vec<Value> = objects.into_iter().filter(|object| !is_l7(object)).collect();
        let (before, after) = (load(&others).0, with(&others, &[in_mode(&added, "Enforce")]));
        for asked in &asked {
            let (was, is) = (decisions(&ask(&before, asked)), decisions(&ask(&after, asked)));
            for (was, is) in was.into_iter().zip(is) {
                prop_assert!(!(was == Decision::Deny && is == Decision::Allow), "{asked:?}\n{added}\n{others:#?}");
            }
        }
    }

    /// Nor does a second one where the first does not isolate.
    #[test]
    fn an_l7_policy_never_allows_more_where_no_other_isolates(
        objects in scene(), other in l7::policy("other".into()), added in l7::policy("added".into()), asked in questions(),
    ) {
        let objects: Vec<Value> = objects.into_iter().chain([in_mode(&other, "Enforce")]).collect();
        let (before, after) = (load(&objects).0, with(&objects, &[in_mode(&added, "Enforce")]));
        for asked in &asked {
            let (was, is) = (decisions(&ask(&before, asked)), decisions(&ask(&after, asked)));
            for (at, direction) in [Direction::Egress, Direction::Ingress].into_iter().enumerate() {
                let opened = was[at] == Decision::Deny && is[at] == Decision::Allow;
                prop_assert!(
                    !opened || isolated_by_l7(&before, asked, direction),
                    "{direction:?} {asked:?}\n{added}\n{objects:#?}"
                );
            }
        }
    }

    /// However many there are: what is closed without a single allow of theirs stays closed.
    #[test]
    fn no_l7_policy_opens_what_another_layer_a_deny_or_a_tier_closed(
        objects in scene(), other in l7::policy("other".into()), added in l7::policy("added".into()), asked in questions(),
    ) {
        let objects: Vec<Value> = objects.into_iter().chain([in_mode(&other, "Enforce")]).collect();
        let added = in_mode(&added, "Enforce");
        let strip = |object: &Value| if is_l7(object) { denies_alone(object) } else { object.clone() };
        let closed: Vec<Value> = objects.iter().chain([&added]).map(strip).collect();
        let (closed, after) = (load(&closed).0, with(&objects, std::slice::from_ref(&added)));
        for asked in &asked {
            let (was, is) = (ask(&closed, asked), ask(&after, asked));
            for (was, is) in sides(&was).into_iter().zip(sides(&is)) {
                let shut = was.decision == Decision::Deny && !is_for_want_of_an_l7_allow(was);
                prop_assert!(!shut || is.decision == Decision::Deny, "{asked:?}\n{added}\n{objects:#?}");
            }
        }
    }

    #[test]
    fn an_audited_policy_changes_no_verdict_and_says_what_it_would(
        objects in scene(), added in auditable("added", 3), asked in questions(),
    ) {
        let before = load(&objects).0;
        let audited = with(&objects, &[in_mode(&added, "Audit")]);
        let enforced = with(&objects, &[in_mode(&added, "Enforce")]);
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

    /// Each alone, and all together, do what was said of them.
    #[test]
    fn promoting_audited_policies_does_what_was_said(
        objects in scene(),
        audited in (auditable("one", 2), auditable("two", 4), auditable("three", 6)),
        asked in questions(),
    ) {
        let objects: Vec<Value> = objects
            .iter()
            .map(|object| if object["spec"]["mode"] == "Audit" { in_mode(object, "Enforce") } else { object.clone() })
            .collect();
        let audited = [audited.0, audited.1, audited.2];
        let names = ["one", "two", "three"];
        let modes = |enforced: &dyn Fn(usize) -> bool| {
            let policies: Vec<Value> = (0..audited.len())
                .map(|at| in_mode(&audited[at], if enforced(at) { "Enforce" } else { "Audit" }))
                .collect();
            with(&objects, &policies)
        };
        let said = modes(&|_| false);
        let alone = [modes(&|at| at == 0), modes(&|at| at == 1), modes(&|at| at == 2)];
        let together = modes(&|_| true);
        for asked in &asked {
            let verdict = ask(&said, asked);
            for (at, side) in sides(&verdict).into_iter().enumerate() {
                let all_deny = decisions(&ask(&together, asked))[at] == Decision::Deny;
                let allowed = side.decision == Decision::Allow;
                prop_assert_eq!(side.audit.together_deny.is_some(), allowed && all_deny, "{:?} {:?}", asked, side);
                prop_assert_eq!(side.audit.would_allow, !allowed && !all_deny, "{:?} {:?}", asked, side);
                for (name, promoted) in names.iter().zip(&alone) {
                    let denies = decisions(&ask(promoted, asked))[at] == Decision::Deny;
                    prop_assert_eq!(would_deny(side, name), allowed && denies, "{} {:?} {:?}", name, asked, side);
                }
            }
        }
    }

    /// A namespace in audit is judged as if its policies were not there, whatever their kind.
    #[test]
    fn a_namespace_in_audit_is_judged_without_its_policies(objects in scene(), asked in questions()) {
        let labelled: Vec<Value> = objects
            .iter()
            .map(|object| {
                let mut object = object.clone();
                if object["kind"] == "Namespace" && object["metadata"]["name"] == "a" {
                    object["metadata"]["labels"]["sluice.dev/enforcement"] = "audit".into();
                }
                object
            })
            .collect();
        let its_own = |object: &Value| object["metadata"]["namespace"] == "a" && object["kind"] != "Pod";
        let without: Vec<Value> = labelled.iter().filter(|object| !its_own(object)).cloned().collect();
        // A cluster-scoped policy of layer K is capped by the namespace of each pod: it is not this property's.
        prop_assume!(!objects.iter().any(|object| object["kind"] == "CiliumClusterwideNetworkPolicy"));
        let rollout = Rollout::AsLabelled { default_dataplane: true, max_enforcement: Enforcement::Enforce };
        let (audited, without) = (load_with(&labelled, rollout).0, load_with(&without, rollout).0);
        for asked in &asked {
            let (is, was) = (ask(&audited, asked), ask(&without, asked));
            prop_assert_eq!(decisions(&is), decisions(&was), "{:?}\n{:#?}", asked, json!(labelled));
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
