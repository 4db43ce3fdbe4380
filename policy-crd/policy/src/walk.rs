//! The one walk over a side's rules: for the kernel's rows, for a connection, for a request and for `explain`.
//!
//! The Admin tier, then denies, then every allow layer that isolates must agree; the Baseline tier speaks where
//! layer K is silent. Knows nothing of who asks.

use crate::asked::{Asked, Effect, Taking};
use crate::class::ClassId;
use crate::decider::{self, Decider};
use crate::index::{Probe, SideIndex, audited};
use crate::indexed::IndexedSide;
use crate::miss::Miss;
use crate::observe::{Nobody, Observe, StageKind, Step};
use crate::origin::{Policy, RuleName};
use crate::port::Protocol;
use crate::profile::{Direction, LayerKind, Rule, Side, TierAction};
use crate::snapshot::{Snapshot, Source};
use crate::stages::Rules;
use crate::verdict::{
    Audit, AuditFinding, Connection, Decision, Facts, NearestMiss, Reason, SideVerdict, Verdict,
};
use std::net::IpAddr;
use std::sync::Arc;

/// What one walk over one set of policies came to.
pub(crate) struct Walked<'a> {
    pub(crate) decision: Decision,
    reason: Reason,
    policy: Option<&'a Arc<Policy>>,
    rule: Option<&'a RuleName>,
    /// Which of the side's rules or isolations that was.
    pub(crate) by: Option<Decider>,
    nearest_miss: Option<NearestMiss>,
}

impl<'a> Walked<'a> {
    fn by_rule(decision: Decision, reason: Reason, rule: &'a Rule, by: Decider) -> Self {
        let (policy, name) = (Some(&rule.policy), Some(&rule.name));
        Self { decision, reason, policy, rule: name, by: Some(by), nearest_miss: None }
    }

    fn not_isolated() -> Self {
        Self {
            decision: Decision::Allow,
            reason: Reason::NotIsolated,
            policy: None,
            rule: None,
            by: None,
            nearest_miss: None,
        }
    }

    /// A layer isolates, and nothing in it grants.
    fn refused(
        (by, isolating): (Decider, &'a Arc<Policy>),
        nearest: Option<(&'a Rule, Miss)>,
        connection: &Connection,
    ) -> Self {
        let reason = match &nearest {
            _ if connection.peer == ClassId::MISSING => Reason::IdentityMissing,
            Some((_, Miss::Unreadable)) => Reason::ParseError,
            Some((_, miss)) if miss.depth() > (Miss::Port { protocol: Protocol::Tcp, port: 0 }).depth() => {
                Reason::NoRuleMatched
            }
            _ => Reason::DefaultDeny,
        };
        let policy = match &nearest {
            Some((rule, _)) if matches!(reason, Reason::NoRuleMatched | Reason::ParseError) => &rule.policy,
            _ => isolating,
        };
        let named = |(rule, miss): (&Rule, Miss)| NearestMiss {
            policy: rule.policy.clone(),
            rule: rule.name.clone(),
            miss,
        };
        Self {
            decision: Decision::Deny,
            reason,
            policy: Some(policy),
            rule: None,
            by: Some(by),
            nearest_miss: nearest.map(named),
        }
    }

    fn finding(self) -> AuditFinding {
        AuditFinding {
            policy: self.policy.cloned(),
            rule: self.rule.cloned(),
            reason: self.reason,
            nearest_miss: self.nearest_miss,
        }
    }
}

impl Side {
    /// Judges one direction: the Admin tier, then denies, then every allow layer that isolates must agree, the
    /// Baseline tier in place of a silent layer K.
    #[must_use]
    pub fn judge(&self, connection: &Connection, facts: Facts<'_>) -> SideVerdict {
        self.judge_watched(None, connection, facts, &mut Nobody)
    }

    /// The same, through the side's index if it has one, and watched. Of the audited policies only their findings
    /// are told.
    pub(crate) fn judge_watched<O: Observe>(
        &self,
        index: Option<&SideIndex>,
        connection: &Connection,
        facts: Facts<'_>,
        observer: &mut O,
    ) -> SideVerdict {
        let probe = index.map(|index| Probe::new(index, connection, facts));
        let asked = Asked { connection, facts, taking: Taking::Enforcing, probe: probe.as_ref() };
        let walked = self.walk(asked, observer);
        let audit = match index {
            Some(index) => self.audit(&index.audited, asked, walked.decision),
            None => self.audit(&audited(self), asked, walked.decision),
        };
        SideVerdict {
            decision: walked.decision,
            reason: walked.reason,
            policy: walked.policy.cloned(),
            rule: walked.rule.cloned(),
            nearest_miss: walked.nearest_miss,
            audit,
        }
    }

    /// The walk.
    pub(crate) fn walk<O: Observe>(&self, asked: Asked<'_>, observer: &mut O) -> Walked<'_> {
        if self.admin.is_empty() {
            return self.walk_namespaced(asked, observer);
        }
        observer.stage(StageKind::Admin);
        let mut from = 0;
        while let Some((place, rule, effect)) = Rules::Admin(self).first(from, asked, observer) {
            let by = |decision, reason| {
                Walked::by_rule(decision, reason, rule, Decider::Admin(decider::place(place)))
            };
            // Before a request is known a conditional Pass may or may not hold; a connection is let through where
            // either way could let a request through.
            let awaits_request = rule.conditions.is_some() && matches!(asked.facts, Facts::Connection);
            let supposed = awaits_request && effect == Effect::Tier(TierAction::Pass);
            observer.step(if supposed { Step::Supposing(rule) } else { Step::By(rule) });
            match effect {
                Effect::Deny | Effect::Tier(TierAction::Deny) => return by(Decision::Deny, Reason::DenyRule),
                Effect::Allow | Effect::Tier(TierAction::Accept) => {
                    return by(Decision::Allow, Reason::RuleMatched);
                }
                Effect::Tier(TierAction::Pass) => {}
            }
            let passed = self.walk_namespaced(asked, observer);
            if !supposed || passed.decision == Decision::Allow {
                return passed;
            }
            from = place + 1;
            observer.stage(StageKind::Admin);
        }
        observer.step(Step::Next);
        self.walk_namespaced(asked, observer)
    }

    /// Everything after the Admin tier.
    fn walk_namespaced<O: Observe>(&self, asked: Asked<'_>, observer: &mut O) -> Walked<'_> {
        if asked.connection.from_host {
            // The node reaches the pods that run on it, whatever isolates them.
            observer.stage(StageKind::Host);
            return Walked::not_isolated();
        }
        if let Some((place, rule)) = self.first_deny(asked, observer) {
            let by = Decider::Deny(decider::place(place));
            return Walked::by_rule(Decision::Deny, Reason::DenyRule, rule, by);
        }
        // The Baseline tier speaks in the place of a silent layer K.
        let connected =
            self.walk_layer(LayerKind::K, asked, observer).or_else(|| self.walk_baseline(asked, observer));
        let allowed = match connected {
            Some(walked) if walked.decision == Decision::Deny => return walked,
            other => other,
        };
        match self.walk_layer(LayerKind::L, asked, observer) {
            // The later layer says more: what was said ranks above who connected.
            Some(walked) => walked,
            None => allowed.unwrap_or_else(Walked::not_isolated),
        }
    }

    /// The first deny that takes the facts.
    fn first_deny<O: Observe>(&self, asked: Asked<'_>, observer: &mut O) -> Option<(usize, &Rule)> {
        if self.deny.is_empty() {
            return None;
        }
        observer.stage(StageKind::Deny);
        let found = Rules::Deny(self).first(0, asked, observer).map(|(place, rule, _)| (place, rule));
        observer.step(found.map_or(Step::Next, |(_, rule)| Step::By(rule)));
        found
    }

    /// Asks a layer's allows; `None` where nothing isolates.
    fn walk_layer<O: Observe>(
        &self,
        kind: LayerKind,
        asked: Asked<'_>,
        observer: &mut O,
    ) -> Option<Walked<'_>> {
        observer.stage(StageKind::Layer(kind));
        let isolating = self.isolated_by(kind, asked);
        let Some((isolation, isolating)) = isolating else {
            // Whoever explains wants to see what would have a say, were the layer not silent.
            if O::EVERY_RULE {
                let audited = self.isolated_by(kind, Asked { taking: Taking::All, ..asked });
                observer.isolation(None, audited.map(|(_, policy)| policy));
                Rules::Layer(self, kind).first(0, asked, observer);
            }
            observer.step(Step::Next);
            return None;
        };
        observer.isolation(Some(isolating), None);
        if let Some((place, rule, _)) = Rules::Layer(self, kind).first(0, asked, observer) {
            observer.step(Step::By(rule));
            let by = Decider::Allow(kind, decider::place(place));
            return Some(Walked::by_rule(Decision::Allow, Reason::RuleMatched, rule, by));
        }
        let nearest = self.nearest(kind, asked);
        observer.step(Step::Refused(nearest.as_ref().map(|(rule, _)| *rule)));
        let by = Decider::Isolation(kind, decider::place(isolation));
        Some(Walked::refused((by, isolating), nearest, asked.connection))
    }

    /// What the Baseline tier says, if one of its rules matches and does not pass.
    fn walk_baseline<O: Observe>(&self, asked: Asked<'_>, observer: &mut O) -> Option<Walked<'_>> {
        if self.baseline.is_empty() {
            return None;
        }
        observer.stage(StageKind::Baseline);
        let found = Rules::Baseline(self).first(0, asked, observer);
        observer.step(found.map_or(Step::Next, |(_, rule, _)| Step::By(rule)));
        let (place, rule, effect) = found?;
        let by = Decider::Baseline(decider::place(place));
        match effect {
            Effect::Deny | Effect::Tier(TierAction::Deny) => {
                Some(Walked::by_rule(Decision::Deny, Reason::DenyRule, rule, by))
            }
            Effect::Allow | Effect::Tier(TierAction::Accept) => {
                Some(Walked::by_rule(Decision::Allow, Reason::RuleMatched, rule, by))
            }
            Effect::Tier(TierAction::Pass) => None,
        }
    }

    /// The stages that have any rule, in order.
    pub(crate) fn stages_with_rules(&self) -> Vec<StageKind> {
        let [k, l] = &self.layers;
        [
            (StageKind::Admin, !self.admin.is_empty()),
            (StageKind::Deny, !self.deny.is_empty()),
            (StageKind::Layer(LayerKind::K), !k.allow.is_empty() || !k.isolation.is_empty()),
            (StageKind::Baseline, !self.baseline.is_empty()),
            (StageKind::Layer(LayerKind::L), !l.allow.is_empty() || !l.isolation.is_empty()),
        ]
        .into_iter()
        .filter_map(|(kind, any)| any.then_some(kind))
        .collect()
    }

    /// What audited policies would have done, each promoted alone and all together.
    fn audit(&self, audited: &[Arc<Policy>], asked: Asked<'_>, enforced: Decision) -> Audit {
        let mut audit = Audit::default();
        if audited.is_empty() {
            return audit;
        }
        let walk = |taking| self.walk(Asked { taking, ..asked }, &mut Nobody);
        let together = walk(Taking::All);
        match (enforced, together.decision) {
            (Decision::Deny, Decision::Allow) => audit.would_allow = true,
            (Decision::Allow, Decision::Deny) => audit.together_deny = Some(together.finding()),
            _ => {}
        }
        if enforced == Decision::Allow {
            audit.would_deny = audited
                .iter()
                .map(|policy| walk(Taking::EnforcingAnd(policy)))
                .filter(|walked| walked.decision == Decision::Deny)
                .map(Walked::finding)
                .collect();
        }
        audit
    }
}

impl Snapshot {
    /// Judges both ends of a connection, as far as they are endpoints of this node. `source` must be an address
    /// that the datapath has verified.
    #[must_use]
    pub fn judge(
        &self,
        source: impl Into<Source>,
        destination: IpAddr,
        protocol: Protocol,
        port: u16,
        facts: Facts<'_>,
    ) -> Verdict {
        let asked = (protocol, port);
        self.both(source.into(), destination, asked, |_, side, connection| side.judge(connection, facts))
    }

    /// Asks both ends, where there is anything to be asked.
    pub(crate) fn both(
        &self,
        source: Source,
        destination: IpAddr,
        (protocol, port): (Protocol, u16),
        mut judge: impl FnMut(Direction, IndexedSide<'_>, &Connection) -> SideVerdict,
    ) -> Verdict {
        let mut side = |endpoint: IpAddr, peer: Source, direction: Direction| {
            let Some(endpoint) = self.endpoint_at(endpoint) else {
                return SideVerdict::unjudged();
            };
            // A pod reaching itself is never judged.
            if endpoint.addresses.contains(&peer.address()) {
                return SideVerdict::unjudged();
            }
            let Some(profile) = self.profile(endpoint.profile) else {
                return SideVerdict::plain(Decision::Deny, Reason::IdentityMissing);
            };
            let connection = self.connection(endpoint, direction, peer, protocol, port);
            judge(direction, profile.side(direction), &connection)
        };
        Verdict {
            egress: side(source.address(), Source::Address(destination), Direction::Egress),
            ingress: side(destination, source, Direction::Ingress),
        }
    }
}
