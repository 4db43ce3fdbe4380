//! Equal objects in any order give byte-equal snapshots, and what a node decodes judges as what was encoded.
//!
//! Stands here since the compiler may not know the wire. Random clusters with policies of every kind, from the
//! compiler's own generators, compiled for a node and for all. `PROPTEST_CASES` raises the number of cases.

#[path = "../../policy-crd/compile/tests/generate/mod.rs"]
mod generate;
#[path = "../../policy-crd/compile/tests/common/judge.rs"]
mod judge;
#[path = "../../policy-crd/compile/tests/reference/mod.rs"]
mod reference;

use generate::{cilium, l7, network, requests, tiers, world};
use judge::judge;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::Value;
use sluice_compile::{Compiled, Compiler, NodeScope, Options, Rollout, compile};
use sluice_policy::{SideVerdict, Verdict};

/// Cases where `PROPTEST_CASES` says nothing: some seconds.
const CASES: u32 = 60;
/// Where the cases come from when nobody asks for more.
const SEED: u64 = 1;
/// Questions asked of what was decoded.
const QUESTIONS: usize = 10;

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

/// World and policies of every kind, and the same in another order.
fn shuffled() -> impl Strategy<Value = (Vec<Value>, Vec<Value>)> {
    let policies = (
        (network::policy("np-1".into()), network::policy("np-2".into())),
        (l7::policy("l7-1".into()), l7::policy("l7-2".into()), l7::policy("l7-3".into())),
        (cilium::policy("cilium-1".into()), cilium::policy("cilium-2".into())),
        // Two of one priority: whose name comes first.
        (tiers::policy("tier-1".into(), 5), tiers::policy("tier-2".into(), 5)),
    );
    let scene = (world::world(), policies).prop_map(|(mut objects, (np, l7, cilium, tiers))| {
        objects.extend([np.0, np.1, l7.0, l7.1, l7.2, cilium.0, cilium.1, tiers.0, tiers.1]);
        objects
    });
    scene.prop_flat_map(|objects| (Just(objects.clone()), Just(objects).prop_shuffle()))
}

fn compiled(objects: &[Value], node: &NodeScope) -> Compiled {
    let options = Options { node: node.clone(), rollout: Rollout::AsIfEnforced, generation: 7 };
    compile(&sluice_crd::load_value(objects).objects, &options)
}

/// A verdict without the numbers that policies happen to have.
fn said(verdict: &Verdict) -> Vec<String> {
    let side = |side: &SideVerdict| {
        let audit: Vec<_> = side.audit.would_deny.iter().chain(&side.audit.together_deny).collect();
        let audit: Vec<_> = audit
            .iter()
            .map(|found| (found.reason, found.policy.as_ref().map(|p| &p.origin), &found.rule))
            .collect();
        let miss = side.nearest_miss.as_ref().map(ToString::to_string);
        format!(
            "{:?} {:?} {:?} {:?} {miss:?} {audit:?} {}",
            side.decision,
            side.reason,
            side.origin(),
            side.rule,
            side.audit.would_allow
        )
    };
    vec![side(&verdict.egress), side(&verdict.ingress)]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn equal_objects_in_any_order_give_the_same_bytes((objects, other) in shuffled()) {
        for node in [NodeScope::All, NodeScope::Named("n1".into()), NodeScope::Named("n2".into())] {
            let (one, other) = (compiled(&objects, &node), compiled(&other, &node));
            prop_assert_eq!(&one.problems, &other.problems);
            prop_assert!(
                sluice_wire::to_bytes(&one.snapshot) == sluice_wire::to_bytes(&other.snapshot),
                "{node:?}\n{:#?}\n{:#?}", one.snapshot, other.snapshot
            );
        }
    }

    /// A compiler that remembers keeps the numbers of what stays, so that some become free.
    #[test]
    fn a_node_takes_every_snapshot_of_a_compiler_that_remembers(
        scenes in prop::collection::vec(shuffled(), 2..4),
        asked in prop::collection::vec(requests::asked(), QUESTIONS),
    ) {
        let mut compiler = Compiler::new();
        for (objects, _) in &scenes {
            let options = Options { node: NodeScope::Named("n1".into()), rollout: Rollout::AsIfEnforced, generation: 7 };
            let sent = compiler.compile(&sluice_crd::load_value(objects).objects, &options).snapshot;
            let received = sluice_wire::from_bytes(&sluice_wire::to_bytes(&sent));
            prop_assert!(received.is_ok(), "{:?}", received.err().map(|error| error.to_string()));
            let (received, anew) = (received.unwrap_or_default(), compiled(objects, &options.node).snapshot);
            for asked in &asked {
                prop_assert_eq!(said(&judge(&anew, asked)), said(&judge(&received, asked)), "{:?}", asked);
            }
        }
    }

    #[test]
    fn what_a_node_decodes_judges_as_what_was_encoded(
        (objects, _) in shuffled(), asked in prop::collection::vec(requests::asked(), QUESTIONS),
    ) {
        let sent = compiled(&objects, &NodeScope::All).snapshot;
        let bytes = sluice_wire::to_bytes(&sent);
        let received = sluice_wire::from_bytes(&bytes);
        prop_assert!(received.is_ok(), "{:?}", received.err().map(|error| error.to_string()));
        let received = received.unwrap_or_default();
        prop_assert!(sluice_wire::to_bytes(&received) == bytes, "the same once more");
        prop_assert!(sent.rows().eq(received.rows()), "the kernel's rows are the same");
        for asked in &asked {
            prop_assert_eq!(judge(&sent, asked), judge(&received, asked), "{:?}", asked);
        }
    }
}
