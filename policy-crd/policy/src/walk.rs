//! The one walk over a side's rules: for the kernel's rows, for a connection, for a request and for `explain`.
//!
//! The Admin tier, then denies, then every allow layer that isolates must agree; the Baseline tier speaks where
//! layer K is silent. Knows nothing of who asks.

use crate::asked::{Asked, Effect, Taking};
use crate::class::ClassId;
use crate::fold::{Row, RowAction};
use crate::miss::Miss;
use crate::observe::{Nobody, Observe, StageKind, Step, Visit};
use crate::origin::{Mode, Policy, RuleName};
use crate::port::Protocol;
use crate::profile::{Direction, Layer, LayerKind, Rule, Side, TierAction, TierRule};
use crate::snapshot::{Snapshot, Source};
use crate::verdict::{
    Audit, AuditFinding, Connection, Decision, Facts, NearestMiss, Reason, SideVerdict, Verdict,
};
use std::net::IpAddr;
use std::sync::Arc;

/// What one walk over one set of policies came to.
struct Walked<'a> {
    decision: Decision,
    reason: Reason,
    policy: Option<&'a Arc<Policy>>,
    rule: Option<&'a RuleName>,
    nearest_miss: Option<NearestMiss>,
}

impl<'a> Walked<'a> {
    fn by_rule(decision: Decision, reason: Reason, rule: &'a Rule) -> Self {
        Self { decision, reason, policy: Some(&rule.policy), rule: Some(&rule.name), nearest_miss: None }
    }

    fn not_isolated() -> Self {
        Self {
            decision: Decision::Allow,
            reason: Reason::NotIsolated,
            policy: None,
            rule: None,
            nearest_miss: None,
        }
    }

    /// A layer isolates, and nothing in it grants.
    fn refused(
        isolating: &'a Arc<Policy>,
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

/// The first rule that matches, with its place. The one loop over rules of every stage.
fn first<'a, O: Observe>(
    rules: impl Iterator<Item = (&'a Rule, Effect)>,
    asked: Asked<'_>,
    observer: &mut O,
) -> Option<(usize, &'a Rule)> {
    let mut found = None;
    for (place, (rule, effect)) in rules.enumerate() {
        let taken = asked.taking.takes(&rule.policy);
        let matched = (taken || O::EVERY_RULE) && rule.matches(effect, asked);
        observer.rule(&Visit { rule, effect, taken, matched, asked });
        if taken && matched && found.is_none() {
            found = Some((place, rule));
            if !O::EVERY_RULE {
                break;
            }
        }
    }
    found
}

/// The first rule of a tier that matches, from a place on.
fn first_in_tier<'a, O: Observe>(
    tier: &'a [TierRule],
    from: usize,
    asked: Asked<'_>,
    observer: &mut O,
) -> Option<(usize, &'a TierRule)> {
    let rules = tier.iter().skip(from).map(|tiered| (&tiered.rule, Effect::Tier(tiered.action)));
    let (place, _) = first(rules, asked, observer)?;
    Some((from + place, tier.get(from + place)?))
}

impl Layer {
    /// The policy that isolates this port in this layer, if any does.
    fn isolated_by(&self, connection: &Connection, taking: Taking<'_>) -> Option<&Arc<Policy>> {
        self.isolation
            .iter()
            .find(|i| taking.takes(&i.policy) && i.ports.contains(connection.protocol, connection.port))
            .map(|isolation| &isolation.policy)
    }

    /// The first allow that grants.
    fn first_allow<O: Observe>(&self, asked: Asked<'_>, observer: &mut O) -> Option<&Rule> {
        let rules = self.allow.iter().map(|rule| (rule, Effect::Allow));
        first(rules, asked, observer).map(|(_, rule)| rule)
    }

    /// The allow that came nearest, and what it failed on. Only a refusal pays for its explanation.
    fn nearest(&self, asked: Asked<'_>) -> Option<(&Rule, Miss)> {
        let allows = self.allow.iter().filter(|rule| asked.taking.takes(&rule.policy));
        allows
            .filter_map(|rule| Some((rule, rule.miss(Effect::Allow, asked)?)))
            .reduce(|best, next| if next.1.depth() > best.1.depth() { next } else { best })
    }

    /// Asks the layer's allows; `None` where nothing isolates.
    fn walk<O: Observe>(&self, kind: LayerKind, asked: Asked<'_>, observer: &mut O) -> Option<Walked<'_>> {
        observer.stage(StageKind::Layer(kind));
        let isolating = self.isolated_by(asked.connection, asked.taking);
        let Some(isolating) = isolating else {
            // Whoever explains wants to see what would have a say, were the layer not silent.
            if O::EVERY_RULE {
                observer.isolation(None, self.isolated_by(asked.connection, Taking::All));
                self.first_allow(asked, observer);
            }
            observer.step(Step::Next);
            return None;
        };
        observer.isolation(Some(isolating), None);
        if let Some(rule) = self.first_allow(asked, observer) {
            observer.step(Step::By(rule));
            return Some(Walked::by_rule(Decision::Allow, Reason::RuleMatched, rule));
        }
        let nearest = self.nearest(asked);
        observer.step(Step::Refused(nearest.as_ref().map(|(rule, _)| *rule)));
        Some(Walked::refused(isolating, nearest, asked.connection))
    }
}

impl TierRule {
    /// Whether only a request can say if the rule matches.
    fn awaits_request(&self, facts: Facts<'_>) -> bool {
        self.rule.conditions.is_some() && matches!(facts, Facts::Connection)
    }

    /// Whether the rule reaches the peer and the port, whatever is said.
    fn reaches(&self, connection: &Connection) -> bool {
        let Connection { peer, protocol, port, .. } = *connection;
        match self.action {
            TierAction::Deny => self.rule.denies_reach(peer, protocol, port),
            TierAction::Accept | TierAction::Pass => self.rule.allows_reach(peer, protocol, port),
        }
    }
}

/// What a tier comes to before a request is known.
enum Reached {
    /// A rule with a condition may decide.
    Conditional,
    /// A rule without one does.
    By(TierAction),
    /// No rule matches.
    Nothing,
}

/// The first rule of a tier that reaches the connection.
fn reached(tier: &[TierRule], connection: &Connection, taking: Taking<'_>) -> Reached {
    let mut rules = tier.iter().filter(|tiered| taking.takes(&tiered.rule.policy));
    match rules.find(|tiered| tiered.reaches(connection)) {
        None => Reached::Nothing,
        Some(tiered) if tiered.rule.conditions.is_some() => Reached::Conditional,
        Some(tiered) => Reached::By(tiered.action),
    }
}

impl Side {
    /// Judges one direction: the Admin tier, then denies, then every allow layer that isolates must agree, the
    /// Baseline tier in place of a silent layer K.
    #[must_use]
    pub fn judge(&self, connection: &Connection, facts: Facts<'_>) -> SideVerdict {
        self.judge_watched(connection, facts, &mut Nobody)
    }

    /// The same, watched. Of the audited policies only their findings are told.
    pub(crate) fn judge_watched<O: Observe>(
        &self,
        connection: &Connection,
        facts: Facts<'_>,
        observer: &mut O,
    ) -> SideVerdict {
        let walked = self.walk(Asked { connection, facts, taking: Taking::Enforcing }, observer);
        let audit = self.audit(connection, facts, walked.decision);
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
    fn walk<O: Observe>(&self, asked: Asked<'_>, observer: &mut O) -> Walked<'_> {
        if self.admin.is_empty() {
            return self.walk_namespaced(asked, observer);
        }
        observer.stage(StageKind::Admin);
        let mut from = 0;
        while let Some((place, tiered)) = first_in_tier(&self.admin, from, asked, observer) {
            let by = |decision, reason| Walked::by_rule(decision, reason, &tiered.rule);
            // Before a request is known a conditional Pass may or may not hold; a connection is let through where
            // either way could let a request through.
            let supposed = tiered.action == TierAction::Pass && tiered.awaits_request(asked.facts);
            observer.step(if supposed { Step::Supposing(&tiered.rule) } else { Step::By(&tiered.rule) });
            match tiered.action {
                TierAction::Deny => return by(Decision::Deny, Reason::DenyRule),
                TierAction::Accept => return by(Decision::Allow, Reason::RuleMatched),
                TierAction::Pass => {}
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
        if let Some(rule) = self.first_deny(asked, observer) {
            return Walked::by_rule(Decision::Deny, Reason::DenyRule, rule);
        }
        let [k, l] = &self.layers;
        // The Baseline tier speaks in the place of a silent layer K.
        let connected = k.walk(LayerKind::K, asked, observer).or_else(|| self.walk_baseline(asked, observer));
        let allowed = match connected {
            Some(walked) if walked.decision == Decision::Deny => return walked,
            other => other,
        };
        match l.walk(LayerKind::L, asked, observer) {
            // The later layer says more: what was said ranks above who connected.
            Some(walked) => walked,
            None => allowed.unwrap_or_else(Walked::not_isolated),
        }
    }

    /// The first deny that takes the facts.
    fn first_deny<O: Observe>(&self, asked: Asked<'_>, observer: &mut O) -> Option<&Rule> {
        if self.deny.is_empty() {
            return None;
        }
        observer.stage(StageKind::Deny);
        let rules = self.deny.iter().map(|rule| (rule, Effect::Deny));
        let found = first(rules, asked, observer).map(|(_, rule)| rule);
        observer.step(found.map_or(Step::Next, Step::By));
        found
    }

    /// What the Baseline tier says, if one of its rules matches and does not pass.
    fn walk_baseline<O: Observe>(&self, asked: Asked<'_>, observer: &mut O) -> Option<Walked<'_>> {
        if self.baseline.is_empty() {
            return None;
        }
        observer.stage(StageKind::Baseline);
        let found = first_in_tier(&self.baseline, 0, asked, observer);
        observer.step(found.map_or(Step::Next, |(_, tiered)| Step::By(&tiered.rule)));
        let (_, TierRule { action, rule }) = found?;
        match action {
            TierAction::Deny => Some(Walked::by_rule(Decision::Deny, Reason::DenyRule, rule)),
            TierAction::Accept => Some(Walked::by_rule(Decision::Allow, Reason::RuleMatched, rule)),
            TierAction::Pass => None,
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
    fn audit(&self, connection: &Connection, facts: Facts<'_>, enforced: Decision) -> Audit {
        let audited = self.audited();
        let mut audit = Audit::default();
        if audited.is_empty() {
            return audit;
        }
        let walk = |taking| self.walk(Asked { connection, facts, taking }, &mut Nobody);
        let together = walk(Taking::All);
        match (enforced, together.decision) {
            (Decision::Deny, Decision::Allow) => audit.would_allow = true,
            (Decision::Allow, Decision::Deny) => audit.together_deny = Some(together.finding()),
            _ => {}
        }
        if enforced == Decision::Allow {
            audit.would_deny = audited
                .into_iter()
                .map(|policy| walk(Taking::EnforcingAnd(policy)))
                .filter(|walked| walked.decision == Decision::Deny)
                .map(Walked::finding)
                .collect();
        }
        audit
    }

    /// The audited policies of this side, each once.
    fn audited(&self) -> Vec<&Policy> {
        let isolating = self.layers.iter().flat_map(|layer| layer.isolation.iter().map(|i| &i.policy));
        let mut audited: Vec<&Policy> = isolating
            .chain(self.rules().map(|rule| &rule.policy))
            .map(Arc::as_ref)
            .filter(|policy| policy.mode == Mode::Audit)
            .collect();
        audited.sort_unstable_by_key(|policy| policy.id);
        audited.dedup_by_key(|policy| policy.id);
        audited
    }

    /// What the kernel does with this connection: the same walk, with the request not yet known.
    #[must_use]
    pub fn row(&self, connection: &Connection) -> Row {
        let passes = |taking| {
            let asked = Asked { connection, facts: Facts::Connection, taking };
            self.walk(asked, &mut Nobody).decision == Decision::Allow
        };
        let row = |action| Row { action, fail_open: false, audit: false };
        if !passes(Taking::Enforcing) {
            return row(RowAction::Deny);
        }
        if self.governed_by_request(connection, Taking::Enforcing) {
            return row(RowAction::ToProxy);
        }
        let audited = self.audited();
        let alone = audited.iter().map(|policy| Taking::EnforcingAnd(policy));
        let ways: Vec<Taking<'_>> = alone.chain((!audited.is_empty()).then_some(Taking::All)).collect();
        if ways.iter().any(|way| passes(*way) && self.governed_by_request(connection, *way)) {
            return Row { fail_open: true, ..row(RowAction::ToProxy) };
        }
        Row { audit: ways.iter().any(|way| !passes(*way)), ..row(RowAction::Allow) }
    }

    /// Whether any rule that can still decide this connection has a condition on the request.
    fn governed_by_request(&self, connection: &Connection, taking: Taking<'_>) -> bool {
        let Connection { peer, protocol, port, .. } = *connection;
        if protocol != Protocol::Tcp {
            return false;
        }
        match reached(&self.admin, connection, taking) {
            Reached::Conditional => return true,
            Reached::By(TierAction::Accept | TierAction::Deny) => return false,
            Reached::By(TierAction::Pass) | Reached::Nothing => {}
        }
        if connection.from_host {
            return false;
        }
        let conditional = |rule: &&Rule| taking.takes(&rule.policy) && rule.conditions.is_some();
        if self.deny.iter().filter(conditional).any(|rule| rule.denies_reach(peer, protocol, port)) {
            return true;
        }
        let [k, _] = &self.layers;
        let baseline = k.isolated_by(connection, taking).is_none()
            && matches!(reached(&self.baseline, connection, taking), Reached::Conditional);
        baseline
            || self.layers.iter().any(|layer| {
                layer.isolated_by(connection, taking).is_some()
                    && layer.allow.iter().filter(conditional).any(|r| r.allows_reach(peer, protocol, port))
            })
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
        mut judge: impl FnMut(Direction, &Side, &Connection) -> SideVerdict,
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
