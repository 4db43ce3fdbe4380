//! Whether two snapshots are the same but for the numbers of classes, policies and profiles.
//!
//! Each number of one must stand for one number of the other, everywhere. Knows nothing of why they differ.

use sluice_policy::{
    Class, ClassId, ClassSet, Identity, Policy, PolicyId, Profile, ProfileId, Rule, Side, Snapshot,
};
use std::collections::HashMap;
use std::sync::Arc;

/// Which number of one snapshot is which of the other: one to one.
#[derive(Default)]
struct Pairs {
    there: HashMap<u32, u32>,
    back: HashMap<u32, u32>,
}

impl Pairs {
    fn pair(&mut self, what: &str, a: u32, b: u32) -> Result<(), String> {
        let (there, back) = (*self.there.entry(a).or_insert(b), *self.back.entry(b).or_insert(a));
        if (there, back) == (b, a) { Ok(()) } else { Err(format!("{what} {a} is {b}, and was {there}")) }
    }
}

/// Compares them, and says where they differ.
pub(crate) fn same(got: &Snapshot, expected: &Snapshot) -> Result<(), String> {
    let classes = classes(got, expected)?;
    numbered(&got.policies)?;
    numbered(&expected.policies)?;
    let in_force = |policy: &Arc<Policy>| (policy.origin.to_string(), policy.mode, policy.on_deny);
    for policy in &expected.policies {
        let found = got.policies.iter().any(|own| in_force(own) == in_force(policy));
        equal(&policy.origin.to_string(), &found, &true)?;
    }
    equal("number of profiles", &got.profiles.len(), &expected.profiles.len())?;
    equal("number of endpoints", &got.endpoints.len(), &expected.endpoints.len())?;
    equal("workloads", &got.workloads, &expected.workloads)?;
    let mut policies = Pairs::default();
    for (a, b) in got.endpoints.iter().zip(&expected.endpoints[..]) {
        equal("endpoint", &(&a.workload, &a.addresses), &(&b.workload, &b.addresses))?;
        let name = format!("{}/{}", a.workload.namespace, a.workload.pod);
        match (got.profile(a.profile), expected.profile(b.profile)) {
            (Some(a), Some(b)) => {
                profiles(a, b, &classes, &mut policies).map_err(|why| format!("{name}: {why}"))?;
            }
            _ => equal(&name, &(a.profile, b.profile), &(ProfileId::REFUSED, ProfileId::REFUSED))?,
        }
    }
    Ok(())
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: &T, expected: &T) -> Result<(), String> {
    if got == expected { Ok(()) } else { Err(format!("{what}: {got:#?}\nexpected: {expected:#?}")) }
}

fn numbered(policies: &[Arc<Policy>]) -> Result<(), String> {
    let ids = policies.iter().map(|policy| policy.id.0);
    if ids.eq(0..policies.len() as u32) { Ok(()) } else { Err("a policy is not at its number".to_owned()) }
}

/// Classes are paired by the addresses that have them.
fn classes(got: &Snapshot, expected: &Snapshot) -> Result<Pairs, String> {
    let mut pairs = Pairs::default();
    pairs.pair("class", 0, 0)?;
    let known: HashMap<_, u32> = got.addresses.iter().map(|(prefix, class)| (prefix, class.0)).collect();
    equal("number of prefixes", &known.len(), &expected.addresses.len())?;
    for (prefix, ClassId(class)) in expected.addresses.iter() {
        let Some(own) = known.get(&prefix) else { return Err(format!("{prefix} has no class")) };
        pairs.pair("class", *own, *class)?;
        let (a, b) = (&got.classes[*own as usize], &expected.classes[*class as usize]);
        equal("class", a, b)?;
    }
    // A node is one at addresses that nobody names, too.
    let homes = |snapshot: &Snapshot, paired: &HashMap<u32, u32>| -> Vec<(Class, u32)> {
        let all = snapshot.classes.iter().cloned().zip(0..);
        all.filter(|(class, id)| matches!(class.identity, Identity::Node(_)) && !paired.contains_key(id))
            .collect()
    };
    let there = homes(expected, &pairs.back);
    for (class, id) in homes(got, &pairs.there) {
        let other = there.iter().find(|(other, _)| *other == class);
        let (_, other) = other.ok_or_else(|| format!("nobody is {class:?}"))?;
        pairs.pair("class", id, *other)?;
    }
    Ok(pairs)
}

fn profiles(got: &Profile, expected: &Profile, classes: &Pairs, policies: &mut Pairs) -> Result<(), String> {
    for (a, b) in [(&got.ingress, &expected.ingress), (&got.egress, &expected.egress)] {
        let (mut a, mut b) = (a.clone(), b.clone());
        for rule in rules(&mut a) {
            for scope in &mut rule.scopes {
                scope.peers = renumber(&scope.peers, classes)?;
            }
        }
        let (of_a, of_b) = (without_numbers(&mut a), without_numbers(&mut b));
        equal("side", &a, &b)?;
        for (a, b) in of_a.into_iter().zip(of_b) {
            policies.pair("policy", a, b)?;
        }
    }
    Ok(())
}

fn rules(side: &mut Side) -> impl Iterator<Item = &mut Rule> {
    let tiers = side.admin.iter_mut().chain(&mut side.baseline).map(|tiered| &mut tiered.rule);
    tiers.chain(&mut side.deny).chain(side.layers.iter_mut().flat_map(|layer| &mut layer.allow))
}

fn renumber(set: &ClassSet, classes: &Pairs) -> Result<ClassSet, String> {
    let ClassSet::Bits(bits) = set else { return Ok(ClassSet::All) };
    let members = (0..bits.len() as u32 * 64).filter(|id| set.contains(ClassId(*id)));
    let renumbered = members.map(|id| classes.there.get(&id).copied().map(ClassId).ok_or(id));
    let renumbered: Result<Vec<ClassId>, u32> = renumbered.collect();
    renumbered.map(ClassSet::of).map_err(|id| format!("a rule names the class {id}, which no address has"))
}

/// Takes the numbers of the policies away, and returns them in order.
fn without_numbers(side: &mut Side) -> Vec<u32> {
    let mut out = Vec::new();
    let mut take = |policy: &mut Arc<Policy>| {
        out.push(policy.id.0);
        *policy = Arc::new(Policy { id: PolicyId(0), ..(**policy).clone() });
    };
    rules(side).for_each(|rule| take(&mut rule.policy));
    let layers = side.layers.iter_mut().flat_map(|layer| &mut layer.isolation);
    layers.for_each(|isolation| take(&mut isolation.policy));
    out
}
