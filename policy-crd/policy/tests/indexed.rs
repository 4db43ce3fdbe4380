//! That a side says the same with its index as without it: verdicts with their rule, reason, nearest miss and audit
//! findings, rows, and traces.

mod common;
mod api {
    pub(super) use sluice_policy::*;
}
#[path = "common/random.rs"]
mod random;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use sluice_policy::{ClassId, Connection, Direction, Facts, IndexedProfile, Profile, Protocol, Side};

fn indexed(side: &Side) -> IndexedProfile {
    Profile { ingress: side.clone(), egress: Side::default() }.into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_verdict_is_the_same_with_an_index(
        side in prop_oneof![2 => random::side(), 1 => random::allows()],
        questions in prop::collection::vec((random::connection(), random::said()), 20),
    ) {
        let profile = indexed(&side);
        let index = profile.side(Direction::Ingress);
        for (connection, said) in questions {
            said.tell(|facts| {
                let expected = side.judge(&connection, facts);
                prop_assert_eq!(index.judge(&connection, facts), expected.clone(), "{:?} {:?}", connection, said);
                prop_assert_eq!(index.trace(&connection, facts), side.trace(&connection, facts));
                Ok(())
            })?;
            prop_assert_eq!(index.row(&connection), side.row(&connection), "{:?}", connection);
        }
    }
}

/// What the random questions must have asked, or the property above says little.
#[test]
fn the_random_questions_meet_every_outcome() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..1500 {
        let side = prop_oneof![2 => random::side(), 1 => random::allows()];
        let ask = (side, random::connection(), random::said());
        let (side, connection, said) = ask.new_tree(&mut runner).expect("a value").current();
        let verdict = said.tell(|facts| side.judge(&connection, facts));
        *seen.entry(verdict.reason.as_str()).or_insert(0) += 1;
        for (what, is) in [
            ("audited deny", !verdict.audit.would_deny.is_empty()),
            ("audited allow", verdict.audit.would_allow),
            ("near: path", miss(&verdict) == Some(6)),
            ("near: method", miss(&verdict) == Some(7)),
        ] {
            *seen.entry(what).or_insert(0) += usize::from(is);
        }
    }
    println!("{seen:?}");
    for reason in
        ["not_isolated", "rule_matched", "default_deny", "deny_rule", "no_rule_matched", "identity_missing"]
    {
        assert!(seen.get(reason).is_some_and(|count| *count >= 5), "{reason}: {seen:?}");
    }
    assert!(seen.values().all(|count| *count > 0), "{seen:?}");
}

fn miss(verdict: &sluice_policy::SideVerdict) -> Option<u8> {
    verdict.nearest_miss.as_ref().map(|near| near.miss.depth())
}

#[test]
fn two_profiles_that_say_the_same_are_equal_built_or_not() {
    let side = common::side();
    let (a, b) = (indexed(&side), indexed(&side));
    let connection = Connection::new(ClassId(1), Protocol::Tcp, 80);
    let _ = a.side(Direction::Ingress).judge(&connection, Facts::Connection);
    assert_eq!(a, b);
}
