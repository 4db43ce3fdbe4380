//! The compiled form of one side: which of thousands of rules a connection or a request can concern at all.
//!
//! An index answers with too many rules and never with too few; the rules' own tests decide. So no verdict can differ
//! from a walk over all rules unless a rule is left out, which `tests` tries hard to bring about. Knows nothing of the
//! order of stages; the [walk](crate::walk) asks.

mod filing;
mod groups;
mod keys;
mod near;
mod patterns;
mod probe;
mod stage;
#[cfg(test)]
mod tests;
mod ways;

pub(crate) use groups::Groups;
pub(crate) use probe::Probe;
pub(crate) use stage::Stage;

use crate::origin::{DenyAction, Mode, Policy};
use crate::profile::{IsolatedPorts, Isolation, Layer, Rule, Side, TierAction, TierRule};
use crate::verdict::Connection;
use filing::{Entry, Filing, Search};
use keys::Seed;
use near::Near;
use std::sync::Arc;
use ways::{Meaning, Ways};

/// The index of one side. It is of one side's rules as they were when it was made.
#[derive(Debug)]
pub(crate) struct SideIndex {
    seed: Seed,
    /// The classes that no rule tells apart.
    pub(crate) groups: Groups,
    /// The Admin tier.
    pub(crate) admin: Tier,
    /// The denies.
    pub(crate) deny: Stage,
    /// The allow layers.
    pub(crate) layers: [LayerIndex; 2],
    /// The Baseline tier.
    pub(crate) baseline: Tier,
    /// The audited policies, each once, by number.
    pub(crate) audited: Box<[Arc<Policy>]>,
    /// Whether any policy that isolates answers what it refuses.
    pub(crate) rejects: bool,
}

/// A tier's rules by their meaning; positions are those of the tier.
#[derive(Debug)]
pub(crate) struct Tier {
    deny: Stage,
    allow: Stage,
}

/// An allow layer.
#[derive(Debug)]
pub(crate) struct LayerIndex {
    /// Its rules.
    pub(crate) allow: Stage,
    near: Near,
    isolation: Filing,
}

impl SideIndex {
    pub(crate) fn new(side: &Side) -> Self {
        let seed = Seed::default();
        let groups = Groups::new(side.rules().flat_map(|rule| &rule.scopes).map(|scope| &scope.peers));
        let mut ways = Ways::new(&seed, &groups);
        let admin = Tier::new(&side.admin, &mut ways);
        let deny = Stage::new(Meaning::Deny, side.deny.iter().enumerate(), &mut ways);
        let layers = side.layers.each_ref().map(|layer| LayerIndex::new(layer, &mut ways));
        let baseline = Tier::new(&side.baseline, &mut ways);
        let isolations = side.layers.iter().flat_map(|layer| &layer.isolation);
        let rejects =
            isolations.into_iter().any(|isolation| isolation.policy.on_deny.action == DenyAction::Reject);
        Self { admin, deny, layers, baseline, audited: audited(side).into(), rejects, seed, groups }
    }
}

impl Tier {
    fn new<'a>(tier: &'a [TierRule], ways: &mut Ways<'a>) -> Self {
        let mut meaning = |meaning, denies| {
            let rules =
                tier.iter().enumerate().filter(|(_, tiered)| (tiered.action == TierAction::Deny) == denies);
            let rules = rules.map(|(position, tiered)| (position, &tiered.rule));
            Stage::new(meaning, rules, ways)
        };
        Self { deny: meaning(Meaning::Deny, true), allow: meaning(Meaning::Allow, false) }
    }

    /// The first rule, from this position on, that meets the test; every rule that matches is tested until then.
    pub(crate) fn first(
        &self,
        probe: &Probe<'_>,
        from: usize,
        mut test: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        earlier(self.deny.first(probe, from, &mut test), self.allow.first(probe, from, &mut test))
    }

    /// The same, for the rules that reach the connection, whatever is said.
    pub(crate) fn first_reaching(
        &self,
        probe: &Probe<'_>,
        mut test: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let deny = self.deny.first_reaching(probe, 0, &mut test);
        earlier(deny, self.allow.first_reaching(probe, 0, &mut test))
    }
}

fn earlier(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    a.into_iter().chain(b).min()
}

impl LayerIndex {
    fn new<'a>(layer: &'a Layer, ways: &mut Ways<'a>) -> Self {
        let isolations = layer.isolation.iter().zip(0..);
        let entry = |(isolation, position): (&'a Isolation, u32)| Entry {
            position,
            ways: match &isolation.ports {
                IsolatedPorts::All => Vec::new(),
                IsolatedPorts::Listed(listed) => ways.listed(listed).into_iter().collect(),
            },
        };
        let isolation = Filing::new(isolations.map(entry).collect());
        let near = Near::new(&layer.allow, ways);
        Self { allow: Stage::new(Meaning::Allow, layer.allow.iter().enumerate(), ways), near, isolation }
    }

    /// The rule that came furthest, the first of equals, where none grants. `depth` is how far one came; `None` if it
    /// takes no part.
    pub(crate) fn nearest(&self, probe: &Probe<'_>, depth: impl Fn(usize) -> Option<u8>) -> Option<usize> {
        self.near.nearest(&self.allow, probe, depth)
    }

    /// The first isolation that meets the test; every one that isolates the port is tested until then.
    pub(crate) fn first_isolation(
        &self,
        probe: &Probe<'_>,
        test: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let Connection { port, .. } = probe.connection;
        let mut search = Search::new(0, test);
        self.isolation.by(&[probe.side.seed.any_port(port)], &mut search);
        search.found()
    }
}

/// The audited policies of a side, each once.
pub(crate) fn audited(side: &Side) -> Vec<Arc<Policy>> {
    let isolating = side.layers.iter().flat_map(|layer| layer.isolation.iter().map(|i| &i.policy));
    let audited = isolating.chain(side.rules().map(|rule: &Rule| &rule.policy));
    let mut audited: Vec<Arc<Policy>> =
        audited.filter(|policy| policy.mode == Mode::Audit).map(Arc::clone).collect();
    audited.sort_unstable_by_key(|policy| policy.id);
    audited.dedup_by_key(|policy| policy.id);
    audited
}
