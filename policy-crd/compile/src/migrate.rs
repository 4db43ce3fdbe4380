//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy` into `NetworkPolicy` and `L7NetworkPolicy`, with every
//! loss told.
//!
//! What is migrated is what was lowered, so that the result means what the engine takes the original to mean. Pure:
//! knows nothing of files or terminals. The CLI calls it.

mod groups;
mod labels;
mod language;
mod loss;
mod names;
mod peers;
mod said;
mod units;
mod write;

pub use loss::{Loss, LossKind};

use crate::cilium;
use crate::index::Index;
use crate::lower::{self, PolicyIr};
use crate::tiers;
use groups::{Loose, Place};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use loss::Told;
use names::Names;
use sluice_crd::{
    CiliumPolicyObject, L7NetworkPolicySpec, Objects, PolicyKind, PolicyObject, Problem, Severity, Source,
    Tier,
};
use sluice_policy::Direction;
use std::sync::Arc;
use units::Unit;

/// What migrating came to.
#[derive(Clone, Debug, Default)]
pub struct Migrated {
    /// The results, in the order of what they come from.
    pub manifests: Vec<Manifest>,
    /// The losses, in the order of the input.
    pub losses: Vec<Loss>,
    /// What else is worth knowing of the originals, that changes no verdict.
    pub warnings: Vec<Problem>,
    /// What became of each policy of Cilium, by kind, namespace and name.
    pub originals: Vec<Original>,
}

/// What became of one policy.
#[derive(Clone, Debug)]
pub struct Original {
    /// `Kind/namespace/name`.
    pub name: Arc<str>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The result gives the verdicts that it gave.
    Whole,
    /// The result differs as the losses say.
    WithLoss,
    /// It cannot be read, or nobody knows whom it selects: nothing is written for it.
    Refused,
}

/// One result.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// What to say above it: whence, and why so.
    pub notes: Vec<String>,
    /// The object.
    pub object: Written,
}

/// The object of a result.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// `networking.k8s.io/v1`.
    NetworkPolicy(Box<NetworkPolicy>),
    /// `policy.sluice.dev/v1alpha1`.
    L7NetworkPolicy {
        /// `metadata.namespace`.
        namespace: String,
        /// `metadata.name`.
        name: String,
        /// `spec`.
        spec: Box<L7NetworkPolicySpec>,
    },
}

/// Migrates every policy of Cilium among the objects. The others stay as they are, and are taken into account.
#[must_use]
pub fn migrate(objects: &Objects) -> Migrated {
    let index = Index::new(objects, &mut Vec::new());
    let named = cilium::Named::new(objects, &mut Vec::new());
    let mut given: Vec<&CiliumPolicyObject> = objects.cilium.iter().collect();
    given.sort_by_key(|object| (object.kind, object.namespace.clone(), object.name.clone()));
    let mut told: Vec<Told<'_>> = given.iter().map(|object| Told::new(&object.source)).collect();
    let mut refused = vec![false; given.len()];
    let mut units: Vec<Unit> = Vec::new();
    let mut warnings = Vec::new();
    for (number, object) in given.iter().enumerate() {
        let mut problems = Vec::new();
        let lowered = cilium::policy(object, &named, &mut problems);
        if !object.clean || problems.iter().any(|problem| is_of_subject(object, problem)) {
            refused[number] = true;
        }
        lowering_losses(&problems, &mut told[number]);
        warnings.extend(problems.into_iter().filter(|problem| problem.severity == Severity::Warning));
        if !refused[number] {
            for (spec, ir) in object.specs.iter().zip(&lowered) {
                units.extend(units::of_spec(object, number, spec, ir, &index.namespaces, &mut told[number]));
            }
        }
    }
    let stay = objects.policies.iter().filter(|policy| policy.kind == PolicyKind::NetworkPolicy);
    units.extend(stay.map(|policy| staying(policy, &index)));
    groups::bind(&mut units, |unit, direction, loose| tell_of_loose(unit, direction, loose, &mut told));
    let baseline = has_baseline(objects);
    let places = groups::places(&units, baseline);
    let others = others(objects, &index);
    for (number, place) in places.iter().enumerate() {
        tell_of_company(&units, number, place, &places, &mut told);
        tell_of_others(&units[number], place, &others, &mut told);
    }
    let mut names = Names::default();
    for policy in &objects.policies {
        names.take(policy.kind.as_str(), &policy.namespace, &policy.name);
    }
    let written = units.iter().zip(&places);
    let manifests = written.flat_map(|(unit, places)| write::unit(unit, *places, &mut names)).collect();
    let mut losses = Vec::new();
    let mut originals = Vec::with_capacity(given.len());
    for ((object, told), refused) in given.iter().zip(told).zip(refused) {
        let outcome = match (refused, told.losses.is_empty()) {
            (true, _) => Outcome::Refused,
            (false, true) => Outcome::Whole,
            (false, false) => Outcome::WithLoss,
        };
        let name = object.source.object().cloned().unwrap_or_else(|| object.name.clone());
        originals.push(Original { name, outcome });
        losses.extend(told.losses);
    }
    losses.sort();
    losses.dedup();
    warnings.sort();
    warnings.dedup();
    Migrated { manifests, losses, warnings, originals }
}

/// Whether an error leaves open whom the policy is about.
fn is_of_subject(object: &CiliumPolicyObject, problem: &Problem) -> bool {
    let selector = |path: &str| problem.path.starts_with(&format!("{path}.endpointSelector"));
    problem.severity == Severity::Error && object.specs.iter().any(|spec| selector(&spec.path))
}

/// What lowering could not honour is not in the result either.
fn lowering_losses(problems: &[Problem], told: &mut Told<'_>) {
    for problem in problems.iter().filter(|problem| problem.severity == Severity::Error) {
        let deny = problem.path.contains("Deny");
        let kind = if deny { LossKind::Narrowed } else { LossKind::Dropped };
        told.losses.push(Loss { problem: problem.clone(), kind });
    }
}

/// A policy of the input as a unit that stays where it is.
fn staying(policy: &PolicyObject, index: &Index) -> Unit {
    let ir = lower::policy(policy, &mut Vec::new());
    let mut unheard = Told::new(&policy.source);
    let side =
        |direction| units::side(ir.side(direction), &policy.namespace, &index.namespaces, &mut unheard);
    Unit {
        policy: None,
        from: name_of(&policy.source, &policy.name),
        path: "spec".into(),
        namespace: policy.namespace.clone(),
        name: policy.name.to_string(),
        pods: ir.selector.requirements().to_vec(),
        sides: Direction::ALL.map(side),
        beside: None,
    }
}

/// The `L7NetworkPolicy` objects of the input.
fn others(objects: &Objects, index: &Index) -> Vec<Unit> {
    let of_layer = objects.policies.iter().filter(|policy| policy.kind == PolicyKind::L7NetworkPolicy);
    of_layer.map(|policy| staying(policy, index)).collect()
}

fn name_of(source: &Source, name: &Arc<str>) -> Arc<str> {
    source.object().cloned().unwrap_or_else(|| name.clone())
}

fn has_baseline(objects: &Objects) -> bool {
    let of_tier = |ir: &PolicyIr| ir.tiered.as_ref().is_some_and(|tiered| tiered.tier == Tier::Baseline);
    tiers::lower(objects, &mut Vec::new()).iter().any(of_tier)
}

/// What becomes of an allow that closes nothing.
fn tell_of_loose(unit: &Unit, direction: Direction, loose: Loose, told: &mut [Told<'_>]) {
    let Some(policy) = unit.policy else { return };
    let path = format!("{}.{}", unit.path, direction.as_str());
    let (kind, reason, remedy) = match loose {
        Loose::Idle => (
            LossKind::Frozen,
            "without default deny it allows only what another policy closes, and none of the input does: it is left out",
            "migrate it with the policies that close these pods",
        ),
        Loose::TooLong => (
            LossKind::Dropped,
            "without default deny it is for the pods that others close, and its selector with theirs is longer than our kinds take",
            "select by fewer labels",
        ),
    };
    told[policy].tell(kind, &path, reason, remedy);
}

/// What the layers cost a policy that shares its pods with others.
fn tell_of_company(
    units: &[Unit],
    number: usize,
    places: &[Place; 2],
    all: &[[Place; 2]],
    told: &mut [Told<'_>],
) {
    let unit = &units[number];
    let Some(policy) = unit.policy else { return };
    for direction in Direction::ALL {
        let place = places[direction as usize];
        let path = format!("{}.{}", unit.path, direction.as_str());
        if !place.l {
            continue;
        }
        let beside = units.iter().zip(all).filter(|(other, there)| {
            other.policy.is_none()
                && there[direction as usize].l
                && other.namespace == unit.namespace
                && labels::may_meet(&unit.pods, &other.pods)
        });
        for (other, _) in beside {
            let reason = format!(
                "{} is about the same pods: in Cilium its allows and these are one union, so that an L7NetworkPolicy repeats it here",
                other.from
            );
            told[policy].tell(LossKind::Frozen, &path, reason, "change both when you change it");
        }
    }
}

/// An `L7NetworkPolicy` that was there before restricts these pods, and results in its layer would open it.
fn tell_of_others(unit: &Unit, places: &[Place; 2], others: &[Unit], told: &mut [Told<'_>]) {
    let Some(policy) = unit.policy else { return };
    let beside = others.iter().filter(|other| other.namespace == unit.namespace);
    for other in beside.filter(|other| labels::may_meet(&other.pods, &unit.pods)) {
        for direction in Direction::ALL {
            if places[direction as usize].l && other.side(direction).isolates {
                let reason = format!(
                    "{} is about the same pods: beside the result, which is of its kind, either of them is enough",
                    other.from
                );
                let path = format!("{}.{}", unit.path, direction.as_str());
                let remedy = "write what both shall say into one L7NetworkPolicy";
                told[policy].tell(LossKind::Widened, &path, reason, remedy);
            }
        }
    }
}
