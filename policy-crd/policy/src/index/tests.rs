//! That no rule is left out: whatever matches is tested, on random rules and random questions.

mod api {
    pub(super) use crate::*;
}
#[path = "../../tests/common/random.rs"]
mod random;

use super::stage::Stage;
use super::{Meaning, Probe, SideIndex, Ways};
use crate::asked::{Asked, Effect, Taking};
use crate::verdict::{Connection, Facts};
use crate::{Layer, Rule, Side};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What a search goes by.
type Find<'a> = &'a mut dyn FnMut(usize) -> bool;

/// That a search tests all that match, and finds the first of them from each of some places on.
fn finds_all(
    rules: &[Rule],
    matches: impl Fn(&Rule) -> bool,
    search: impl Fn(usize, Find<'_>) -> Option<usize>,
) -> Result<usize, TestCaseError> {
    let expected: BTreeSet<usize> = (0..rules.len()).filter(|at| matches(&rules[*at])).collect();
    let mut tested = BTreeSet::new();
    let found = search(0, &mut |at| {
        tested.insert(at);
        false
    });
    prop_assert_eq!(found, None);
    let missing: Vec<&usize> = expected.difference(&tested).collect();
    prop_assert!(missing.is_empty(), "left out: {:?}", missing.first().map(|at| &rules[**at]));
    for from in [0, 1, rules.len() / 2] {
        let first = search(from, &mut |at| matches(&rules[at]));
        prop_assert_eq!(first, expected.range(from..).next().copied());
    }
    Ok(expected.len())
}

fn one_stage(
    meaning: Meaning,
    side: &Side,
    connection: &Connection,
    facts: Facts<'_>,
) -> Result<usize, TestCaseError> {
    let rules = &side.layers[0].allow;
    let index = SideIndex::new(side);
    let stage = Stage::new(meaning, rules.iter().enumerate(), &mut Ways::new(&index.seed, &index.groups));
    let probe = Probe::new(&index, connection, facts);
    let effect = if meaning == Meaning::Deny { Effect::Deny } else { Effect::Allow };
    let asked = Asked { connection, facts, taking: Taking::All, probe: None };
    finds_all(
        rules,
        |rule| rule.reaches(effect, connection),
        |from, test| stage.first_reaching(&probe, from, test),
    )?;
    finds_all(rules, |rule| rule.matches(effect, asked), |from, test| stage.first(&probe, from, test))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_rule_that_matches_is_left_out(
        rules in random::policies().prop_flat_map(|policies| random::rules(policies, 60)),
        questions in prop::collection::vec((random::connection(), random::said()), 10),
    ) {
        let layer = Layer { allow: rules, ..Layer::default() };
        let side = Side { layers: [layer, Layer::default()], ..Side::default() };
        for (connection, said) in questions {
            for meaning in [Meaning::Allow, Meaning::Deny] {
                said.tell(|facts| one_stage(meaning, &side, &connection, facts))?;
            }
        }
    }

    #[test]
    fn an_isolation_is_found(side in random::side(), connection in random::connection()) {
        let index = SideIndex::new(&side);
        let probe = Probe::new(&index, &connection, Facts::Connection);
        for (layer, index) in side.layers.iter().zip(&index.layers) {
            let isolates = |at: usize| layer.isolation[at].ports.contains(connection.protocol, connection.port);
            let expected = (0..layer.isolation.len()).find(|at| isolates(*at));
            prop_assert_eq!(index.first_isolation(&probe, isolates), expected);
        }
    }
}
