//! Profiles: the rules of every policy that selects a pod, resolved to classes and numbers.
//!
//! Pods that the same policies select, and whose named ports have the same numbers, share one. What the last snapshot
//! of the same endpoints was made of is taken over where it still says the same. Knows nothing of addresses.

use crate::found::{Finder, Found, Kept, listed_ports, on_pod};
use crate::index::PodEntry;
use crate::lower::{IsolationIr, PolicyIr, RuleIr};
use crate::lowering::LoweredPolicy;
use crate::peers::{PortItem, Ports};
use crate::stats::Stats;
use sluice_crd::{Action, Tier};
use sluice_policy::{
    Direction, IndexedProfile, IsolatedPorts, Isolation, LayerKind, Policy, PortSet, Profile, ProfileId,
    Protocol, Rule, Scope, Side, TierAction, TierRule,
};
use std::collections::HashMap;
use std::sync::Arc;

/// A named port and the numbers it stands for on one pod.
type Resolved = Vec<(Arc<str>, Protocol, Vec<u16>)>;

/// A policy as the rules of a snapshot carry it. Two with one serial are the very same.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) serial: u64,
    pub(crate) policy: Arc<Policy>,
}

/// What makes a profile: of each policy the serials of what its rules resolve to and of its handle, and the ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Parts {
    policies: Vec<(u64, u64)>,
    ports: Resolved,
}

/// The profiles of a snapshot by what they are made of, with their numbers in it.
#[derive(Default)]
pub(crate) struct Profiles(HashMap<Parts, (Arc<IndexedProfile>, ProfileId)>);

/// What profiles are built from.
pub(crate) struct Builder<'a, 'c> {
    policies: &'a [LoweredPolicy],
    /// By policy: what its rules carry. `None`: no pod here is selected, or it is off.
    handles: &'a [Option<Handle>],
    finder: Finder<'a, 'c>,
    stats: &'c mut Stats,
    before: Profiles,
    now: Profiles,
    /// By the policies that a profile has something of.
    distinct: HashMap<Vec<u32>, Vec<ProfileId>>,
    profiles: Vec<Arc<IndexedProfile>>,
}

impl<'a, 'c> Builder<'a, 'c> {
    pub(crate) fn new(
        policies: &'a [LoweredPolicy],
        handles: &'a [Option<Handle>],
        finder: Finder<'a, 'c>,
        before: Profiles,
        stats: &'c mut Stats,
    ) -> Self {
        let (now, distinct, profiles) = (Profiles::default(), HashMap::new(), Vec::new());
        Self { policies, handles, finder, stats, before, now, distinct, profiles }
    }

    /// The profile of a pod that these policies select, in the order of their numbers.
    pub(crate) fn profile(&mut self, pod: &'a PodEntry, selecting: &[usize]) -> ProfileId {
        let mut made: Vec<(&'a PolicyIr, &'a Handle, Arc<Found>)> = Vec::with_capacity(selecting.len());
        for &number in selecting {
            if let Some(handle) = &self.handles[number] {
                let found = self.finder.found(number, &pod.workload.node, self.stats);
                made.push((&self.policies[number].ir, handle, found));
            }
        }
        let parts = Parts {
            policies: made.iter().map(|(_, handle, found)| (found.serial, handle.serial)).collect(),
            ports: named_ports(pod, made.iter().map(|(ir, _, _)| *ir)),
        };
        if let Some((_, id)) = self.now.0.get(&parts) {
            return *id;
        }
        let profile = match self.before.0.remove(&parts) {
            Some((known, _)) => {
                self.stats.profiles_reused += 1;
                known
            }
            None => {
                self.stats.profiles_built += 1;
                Arc::new(build(pod, &made).into())
            }
        };
        let id = self.number(&profile);
        self.now.0.insert(parts, (profile, id));
        id
    }

    /// The number of a profile: that of an equal one if there is one. Equal ones have something of the same policies.
    fn number(&mut self, profile: &Arc<IndexedProfile>) -> ProfileId {
        let alike = self.distinct.entry(policies_of(profile)).or_default();
        let equal = alike.iter().find(|ProfileId(id)| self.profiles[*id as usize] == *profile);
        if let Some(id) = equal {
            return *id;
        }
        let id = ProfileId(u32::try_from(self.profiles.len()).unwrap_or(u32::MAX));
        alike.push(id);
        self.profiles.push(profile.clone());
        id
    }

    /// The distinct profiles, by number, and what to take them from the next time.
    pub(crate) fn finish(self) -> (Vec<Arc<IndexedProfile>>, Profiles, Kept) {
        (self.profiles, self.now, self.finder.finish())
    }
}

/// The policies that a profile has something of, by number.
fn policies_of(profile: &Profile) -> Vec<u32> {
    let sides = [&profile.ingress, &profile.egress];
    let isolating = sides.iter().flat_map(|side| side.layers.iter().flat_map(|layer| &layer.isolation));
    let rules = sides.iter().flat_map(|side| side.rules()).map(|rule| rule.policy.id.0);
    let mut out: Vec<u32> = isolating.map(|isolation| isolation.policy.id.0).chain(rules).collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// What the named ports of these policies' ingress rules are on this pod.
fn named_ports<'a>(pod: &PodEntry, policies: impl Iterator<Item = &'a PolicyIr>) -> Resolved {
    let ports = policies.flat_map(|policy| {
        let side = &policy.ingress;
        let listed = match &side.isolation {
            IsolationIr::Listed(listed) => &listed[..],
            IsolationIr::Nothing | IsolationIr::Everything => &[],
        };
        let rules = side.allow.iter().chain(&side.deny).map(|rule| &rule.ports);
        rules.chain(listed.iter().map(|(_, ports)| ports))
    });
    let mut out: Resolved = Vec::new();
    for ports in ports {
        let Ports::Some(items) = ports else { continue };
        for item in items {
            if let PortItem::Named { name, protocol } = item {
                out.push((name.clone(), *protocol, pod.resolve(name, *protocol).collect()));
            }
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

fn build(pod: &PodEntry, made: &[(&PolicyIr, &Handle, Arc<Found>)]) -> Profile {
    let mut profile = Profile::default();
    for (ir, handle, found) in made {
        let layer = LayerKind::ALL.iter().position(|kind| *kind == ir.layer).unwrap_or_default();
        for direction in Direction::ALL {
            let side_ir = ir.side(direction);
            let scopes = match direction {
                Direction::Ingress => ingress_scopes(ir, found, pod),
                Direction::Egress => found.egress.clone(),
            };
            let rule = |(rule, scopes): (&RuleIr, Vec<Scope>)| Rule {
                policy: handle.policy.clone(),
                name: rule.name.clone(),
                scopes,
                conditions: rule.conditions.clone(),
            };
            let mut rules = side_ir.allow.iter().chain(&side_ir.deny).zip(scopes).map(rule);
            let side: &mut Side = match direction {
                Direction::Ingress => &mut profile.ingress,
                Direction::Egress => &mut profile.egress,
            };
            if let Some(tiered) = &ir.tiered {
                let tier = match tiered.tier {
                    Tier::Admin => &mut side.admin,
                    Tier::Baseline => &mut side.baseline,
                };
                let actions = tiered.actions[direction as usize].iter().map(|action| match action {
                    Action::Accept => TierAction::Accept,
                    Action::Deny => TierAction::Deny,
                    Action::Pass => TierAction::Pass,
                });
                tier.extend(actions.zip(rules).map(|(action, rule)| TierRule { action, rule }));
                continue;
            }
            side.layers[layer].allow.extend(rules.by_ref().take(side_ir.allow.len()));
            side.deny.extend(rules);
            let ports = match direction {
                Direction::Ingress => isolated(&side_ir.isolation, pod),
                Direction::Egress => found.isolated.clone(),
            };
            if let Some(ports) = ports {
                side.layers[layer].isolation.push(Isolation { policy: handle.policy.clone(), ports });
            }
        }
    }
    profile
}

fn ingress_scopes(ir: &PolicyIr, found: &Found, pod: &PodEntry) -> Vec<Vec<Scope>> {
    let rules = ir.ingress.allow.iter().chain(&ir.ingress.deny).zip(&found.ingress);
    rules
        .map(|(rule, peers)| {
            let ports = match &rule.ports {
                Ports::All => PortSet::All,
                Ports::Some(items) => {
                    PortSet::Ranges(items.iter().flat_map(|item| on_pod(item, pod)).collect())
                }
            };
            vec![Scope { peers: peers.clone(), ports }]
        })
        .collect()
}

/// The ports of a pod that a policy isolates.
fn isolated(isolation: &IsolationIr, pod: &PodEntry) -> Option<IsolatedPorts> {
    let listed = match isolation {
        IsolationIr::Nothing => return None,
        IsolationIr::Everything => return Some(IsolatedPorts::All),
        IsolationIr::Listed(listed) => listed,
    };
    let mut out = Vec::new();
    for (_, ports) in listed {
        let Ports::Some(items) = ports else { return Some(IsolatedPorts::All) };
        let ranges = items.iter().flat_map(|item| on_pod(item, pod));
        out.extend(ranges.map(|range| (range.first, range.last)));
    }
    listed_ports(out)
}
