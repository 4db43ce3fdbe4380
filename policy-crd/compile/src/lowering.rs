//! Every policy lowered, and what was lowered before taken over where its object says the same.
//!
//! An object is known again by what it says, all of it, and never by a version that it claims to have. Its place
//! counts only where a problem names it. Knows nothing of pods and addresses, nor of what a policy means.

use crate::cilium::{self, Named, Seen};
use crate::lower::{self, PolicyIr};
use crate::stats::Stats;
use crate::tiers;
use sluice_crd::{
    CiliumPolicyObject, ClusterL7Object, ClusterNetworkObject, Objects, Placed, PolicyObject, Problem,
};
use std::collections::HashMap;
use std::sync::Arc;

/// A policy, lowered.
#[derive(Clone, Debug)]
pub(crate) struct LoweredPolicy {
    /// The same number means the same rules. Of one object that is several policies each has its own; of one policy
    /// that has several copies each has the same.
    pub(crate) id: u64,
    pub(crate) ir: Arc<PolicyIr>,
}

/// Everything that was lowered the last time.
#[derive(Default)]
pub(crate) struct Lowering {
    policies: Memo<PolicyObject>,
    cilium: Memo<CiliumPolicyObject>,
    networks: Memo<ClusterNetworkObject>,
    l7: Memo<ClusterL7Object>,
    /// What policies of Cilium may name.
    seen: Option<Seen>,
    next: u64,
    /// Nothing is kept: there will be no next time.
    once: bool,
}

impl Lowering {
    /// One that is used once.
    pub(crate) fn once() -> Self {
        Self { once: true, ..Self::default() }
    }

    /// Lowers every policy, in no particular order.
    pub(crate) fn renew(
        &mut self,
        objects: &Objects,
        problems: &mut Vec<Problem>,
        stats: &mut Stats,
    ) -> Vec<LoweredPolicy> {
        let Self { policies, cilium, networks, l7, seen, next, once } = self;
        let mut round = Round { next, once: *once, problems, stats, out: Vec::new() };
        let named = Named::new(objects, round.problems);
        // A policy is lowered with what it names.
        if seen.as_ref().is_some_and(|before| named.has_changed(before)) {
            cilium.forget(cilium::names_others);
        }
        round.all(policies, &objects.policies, |object, problems| vec![lower::policy(object, problems)]);
        round.all(cilium, &objects.cilium, |object, problems| cilium::policy(object, &named, problems));
        let tiered = (&objects.cluster_network_policies, &objects.cluster_l7_policies);
        round.all(networks, tiered.0, |object, problems| vec![tiers::cluster_network(object, problems)]);
        round.all(l7, tiered.1, |object, problems| vec![tiers::cluster_l7(object, problems)]);
        let out = round.out;
        *seen = Some(named.seen());
        out
    }
}

/// What was lowered of one kind of objects, by namespace and name.
struct Memo<T>(HashMap<Name, Vec<Entry<T>>>);

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Memo<T> {
    /// Forgets the objects that are so.
    fn forget(&mut self, is_so: impl Fn(&T) -> bool) {
        self.0.values_mut().for_each(|entries| entries.retain(|entry| !is_so(&entry.object)));
    }
}

/// An object and what came of it.
struct Entry<T> {
    object: T,
    lowered: Vec<LoweredPolicy>,
    problems: Vec<Problem>,
}

impl<T: Placed> Entry<T> {
    fn is_of(&self, object: &T) -> bool {
        self.object.says_the_same(object)
            && (self.problems.is_empty() || self.object.source().is_at_the_same_place(object.source()))
    }
}

/// One lowering of everything.
struct Round<'a> {
    next: &'a mut u64,
    once: bool,
    problems: &'a mut Vec<Problem>,
    stats: &'a mut Stats,
    out: Vec<LoweredPolicy>,
}

impl Round<'_> {
    /// Lowers these objects; of those before, the ones that are not among them are forgotten.
    fn all<T: Placed + Clone>(
        &mut self,
        memo: &mut Memo<T>,
        objects: &[T],
        lower: impl Fn(&T, &mut Vec<Problem>) -> Vec<PolicyIr>,
    ) {
        let mut before = std::mem::take(memo);
        for object in objects {
            let key = object.key();
            let known = before.0.get_mut(&key).and_then(|entries| {
                let place = entries.iter().position(|entry| entry.is_of(object))?;
                Some(entries.swap_remove(place))
            });
            let Some(entry) = known else {
                self.stats.lowered += 1;
                let (lowered, problems) = self.one(object, &lower);
                self.take(&lowered, &problems);
                if !self.once {
                    memo.0.entry(key).or_default().push(Entry { object: object.clone(), lowered, problems });
                }
                continue;
            };
            self.stats.reused += 1;
            self.take(&entry.lowered, &entry.problems);
            memo.0.entry(key).or_default().push(entry);
        }
    }

    fn take(&mut self, lowered: &[LoweredPolicy], problems: &[Problem]) {
        self.out.extend_from_slice(lowered);
        self.problems.extend_from_slice(problems);
    }

    fn one<T>(
        &mut self,
        object: &T,
        lower: impl Fn(&T, &mut Vec<Problem>) -> Vec<PolicyIr>,
    ) -> (Vec<LoweredPolicy>, Vec<Problem>) {
        let mut problems = Vec::new();
        let lowered = lower(object, &mut problems).into_iter().map(|ir| {
            *self.next += 1;
            LoweredPolicy { id: *self.next, ir: Arc::new(ir) }
        });
        (lowered.collect(), problems)
    }
}
