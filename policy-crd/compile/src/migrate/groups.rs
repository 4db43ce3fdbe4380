//! Which units select the same pods, and in which layer they therefore have to speak.
//!
//! In Cilium all allows of a pod are one union. Here layer K (`NetworkPolicy`) and layer L (`L7NetworkPolicy`) must
//! both agree, so that of units that may meet on a pod all stand in the same layers. Knows nothing of rules.

use super::labels::{fits, may_meet, within};
use super::units::{Side, Unit};
use crate::selector::Requirement;
use sluice_policy::Direction;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where one direction of one unit speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// As a `NetworkPolicy`.
    pub(super) k: bool,
    /// As an `L7NetworkPolicy`.
    pub(super) l: bool,
}

/// What became of allows that make nothing default-deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loose {
    /// No policy closes these pods: they allow nothing that is not allowed anyway.
    Idle,
    /// The selectors of both policies together are longer than our kinds take.
    TooLong,
}

/// Gives allows that close nothing themselves to the pods that another policy closes, where alone they count. Our kinds
/// have no allow that does not isolate; on pods that are isolated anyway one that does is the same.
pub(super) fn bind(units: &mut Vec<Unit>, mut tell: impl FnMut(&Unit, Direction, Loose)) {
    let mut bound = Vec::new();
    for direction in Direction::ALL {
        let closing: Vec<(Arc<str>, Vec<Requirement>, Arc<str>)> = units
            .iter()
            .filter(|unit| unit.side(direction).isolates)
            .map(|unit| (unit.namespace.clone(), unit.pods.clone(), unit.from.clone()))
            .collect();
        let loose =
            |unit: &&mut Unit| !unit.side(direction).isolates && !unit.side(direction).allow.is_empty();
        for unit in units.iter_mut().filter(loose) {
            let near = closing
                .iter()
                .filter(|(namespace, pods, _)| *namespace == unit.namespace && may_meet(pods, &unit.pods));
            let near: Vec<_> = near.collect();
            if near.iter().any(|(_, pods, _)| within(&unit.pods, pods)) {
                unit.sides[direction as usize].isolates = true;
                continue;
            }
            if near.is_empty() {
                tell(unit, direction, Loose::Idle);
            }
            let allow = std::mem::take(&mut unit.sides[direction as usize].allow);
            for (_, pods, from) in near {
                let mut both: Vec<Requirement> = unit.pods.iter().chain(pods).cloned().collect();
                both.sort_unstable();
                both.dedup();
                if !fits(&both) {
                    tell(unit, direction, Loose::TooLong);
                    continue;
                }
                let mut sides = [Side::default(), Side::default()];
                sides[direction as usize] = Side { isolates: true, allow: allow.clone(), deny: Vec::new() };
                bound.push(Unit { pods: both, sides, beside: Some(from.clone()), ..unit.clone() });
            }
        }
    }
    units.append(&mut bound);
}

/// The places of every direction of every unit.
pub(super) fn places(units: &[Unit], baseline: bool) -> Vec<[Place; 2]> {
    let mut out = vec![[Place::default(); 2]; units.len()];
    for direction in Direction::ALL {
        let mut by_namespace: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (number, unit) in units.iter().enumerate().filter(|(_, unit)| unit.side(direction).isolates) {
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
    let all = |is: fn(&Side) -> bool| group.iter().all(|number| is(units[*number].side(direction)));
    let plain = all(Side::is_plain);
    let l = !plain || !all(|side| !side.has_conditions());
    let stays = group.iter().any(|number| units[*number].policy.is_none());
    for number in group {
        out[*number][direction as usize] = Place { k: plain || stays || baseline, l };
    }
}
