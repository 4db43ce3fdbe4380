//! Which units select the same pods, and in which layer they therefore have to speak.
//!
//! In Cilium all allows of a pod are one union. Here layer K (`NetworkPolicy`) and layer L (`L7NetworkPolicy`) must
//! both agree, so that of units that may meet on a pod all stand in the same layers. Knows nothing of rules.

use super::labels::{may_meet, within};
use super::units::Unit;
use sluice_policy::Direction;
use std::collections::BTreeMap;

/// Where one direction of one unit speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// As a `NetworkPolicy`.
    pub(super) k: bool,
    /// As an `L7NetworkPolicy`.
    pub(super) l: bool,
    /// Whether it makes its pods default-deny.
    pub(super) isolates: bool,
    /// `NetworkPolicy` is needed beside and cannot say that this unit isolates nothing.
    pub(super) torn: bool,
    /// It allows, isolates nothing, and meets nobody who does: it has no effect.
    pub(super) idle: bool,
}

/// The places of every direction of every unit.
pub(super) fn places(units: &[Unit], baseline: bool) -> Vec<[Place; 2]> {
    let mut out = vec![[Place::default(); 2]; units.len()];
    for direction in Direction::ALL {
        let mut by_namespace: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (number, unit) in units.iter().enumerate().filter(|(_, unit)| unit.side(direction).speaks()) {
            by_namespace.entry(&unit.namespace).or_default().push(number);
        }
        for members in by_namespace.values() {
            for group in groups(units, members) {
                place(units, &group, direction, baseline, &mut out);
            }
        }
    }
    out
}

/// Units that meet, with those that meet these, and so on.
fn groups(units: &[Unit], members: &[usize]) -> Vec<Vec<usize>> {
    let mut left: Vec<usize> = members.to_vec();
    let mut out = Vec::new();
    while let Some(first) = left.first().copied() {
        let mut group = vec![first];
        left.remove(0);
        let mut at = 0;
        while at < group.len() {
            let here = &units[group[at]].pods;
            let (near, far) = left.into_iter().partition(|other| may_meet(here, &units[*other].pods));
            left = far;
            group.extend::<Vec<usize>>(near);
            at += 1;
        }
        group.sort_unstable();
        out.push(group);
    }
    out
}

fn place(units: &[Unit], group: &[usize], direction: Direction, baseline: bool, out: &mut [[Place; 2]]) {
    let side = |number: usize| units[number].side(direction);
    let isolating: Vec<usize> = group.iter().copied().filter(|number| side(*number).isolates).collect();
    // Where every pod is isolated anyway, it changes nothing that this one isolates them too.
    let isolates = |number: usize| {
        side(number).isolates
            || isolating.iter().any(|other| within(&units[number].pods, &units[*other].pods))
    };
    let loose: Vec<usize> = group.iter().copied().filter(|number| !isolates(*number)).collect();
    if isolating.is_empty() {
        for number in loose {
            out[number][direction as usize].idle = true;
        }
        return;
    }
    let plain = group.iter().all(|number| side(*number).is_plain());
    let conditions = group.iter().any(|number| side(*number).has_conditions());
    let l = !plain || conditions || !loose.is_empty();
    let stays = group.iter().any(|number| units[*number].policy.is_none());
    let k = stays || baseline || (plain && loose.is_empty());
    for number in group {
        let isolates = isolates(*number);
        out[*number][direction as usize] =
            Place { k: k && isolates, l, isolates, torn: k && !isolates, idle: false };
    }
}
