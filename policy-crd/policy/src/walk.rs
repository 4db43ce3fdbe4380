//! The one walk over a side's rules: for the kernel's rows, for a connection, for a request and for `explain`.
//!
//! The Admin tier, then denies, then every allow layer that isolates must agree; the Baseline tier speaks where
//! layer K is silent. Knows nothing of who asks.

use crate::class::ClassId;
use crate::fold::{Row, RowAction};
use crate::miss::Miss;
use crate::origin::{Mode, Policy, RuleName};
use crate::port::Protocol;
use crate::profile::{Direction, Layer, Rule, Side, TierAction, TierRule};
use crate::snapshot::Snapshot;
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

    fn finding(self) -> AuditFinding {
        AuditFinding {
            policy: self.policy.cloned(),
            rule: self.rule.cloned(),
            reason: self.reason,
            nearest_miss: self.nearest_miss,
        }
    }
}

/// Which policies take part in a walk.
#[derive(Clone, Copy)]
enum Taking<'p> {
    Enforcing,
    EnforcingAnd(&'p Policy),
    All,
}

impl Taking<'_> {
    fn takes(self, policy: &Policy) -> bool {
        policy.mode == Mode::Enforce
            || match self {
                Self::Enforcing => false,
                Self::EnforcingAnd(audited) => audited.id == policy.id,
                Self::All => true,
            }
    }
}

impl Rule {
    /// Whether this deny takes the facts. A condition can only be met by a request, so a connection passes it.
    fn denies(&self, connection: &Connection, facts: Facts<'_>) -> bool {
        self.denies_reach(connection.peer, connection.protocol, connection.port)
            && match (&self.conditions, facts) {
                (None, _) | (Some(_), Facts::Unknown) => true,
                // Only TCP can be read at all: elsewhere a condition cannot be known, and a deny takes it.
                (Some(_), Facts::Connection) => connection.protocol != Protocol::Tcp,
                (Some(conditions), Facts::Request(request)) => conditions.denies(request),
                (Some(conditions), Facts::Tls(name)) => conditions.denies_tls(name),
            }
    }

    /// Whether this allow grants the facts.
    fn allows(&self, connection: &Connection, facts: Facts<'_>) -> bool {
        self.allows_reach(connection.peer, connection.protocol, connection.port)
            && match (&self.conditions, facts) {
                (None, _) | (Some(_), Facts::Connection) => true,
                (Some(_), Facts::Unknown) => false,
                (Some(conditions), Facts::Request(request)) => conditions.allows(request),
                (Some(conditions), Facts::Tls(name)) => conditions.allows_tls(name),
            }
    }

    /// What an allow that does not grant failed on.
    fn miss(&self, connection: &Connection, facts: Facts<'_>) -> Option<Miss> {
        let Connection { peer, protocol, port } = *connection;
        if !self.allows_reach(peer, protocol, port) {
            let other_port = peer != ClassId::MISSING && self.scopes.iter().any(|s| s.peers.contains(peer));
            return Some(if other_port { Miss::Port { protocol, port } } else { Miss::Peer });
        }
        match (&self.conditions, facts) {
            (None, _) | (Some(_), Facts::Connection) => None,
            (Some(_), Facts::Unknown) => Some(Miss::Unreadable),
            (Some(conditions), Facts::Request(request)) => conditions.nearest_miss(request),
            (Some(conditions), Facts::Tls(name)) => conditions.nearest_miss_tls(name),
        }
    }
}

impl Layer {
    /// The policy that isolates this port in this layer, if any does.
    fn isolated_by(&self, connection: &Connection, taking: Taking<'_>) -> Option<&Arc<Policy>> {
        self.isolation
            .iter()
            .find(|i| taking.takes(&i.policy) && i.ports.contains(connection.protocol, connection.port))
            .map(|isolation| &isolation.policy)
    }

    /// Asks the layer's allows. `Err` when it isolates and none of them grants.
    fn walk(&self, connection: &Connection, facts: Facts<'_>, taking: Taking<'_>) -> Option<Walked<'_>> {
        let isolating = self.isolated_by(connection, taking)?;
        let mut allows = self.allow.iter().filter(|rule| taking.takes(&rule.policy));
        if let Some(rule) = allows.find(|rule| rule.allows(connection, facts)) {
            return Some(Walked::by_rule(Decision::Allow, Reason::RuleMatched, rule));
        }
        // Only a refusal pays for its explanation.
        let allows = self.allow.iter().filter(|rule| taking.takes(&rule.policy));
        let nearest = allows
            .filter_map(|rule| Some((rule, rule.miss(connection, facts)?)))
            .reduce(|best, next| if next.1.depth() > best.1.depth() { next } else { best });
        let reason = match &nearest {
            _ if connection.peer == ClassId::MISSING => Reason::IdentityMissing,
            Some((_, Miss::Unreadable)) => Reason::ParseError,
            Some((_, miss)) if miss.depth() > (Miss::Port { protocol: Protocol::Tcp, port: 0 }).depth() => {
                Reason::NoRuleMatched
            }
            _ => Reason::DefaultDeny,
        };
        Some(Walked {
            decision: Decision::Deny,
            reason,
            policy: Some(match &nearest {
                Some((rule, _)) if matches!(reason, Reason::NoRuleMatched | Reason::ParseError) => {
                    &rule.policy
                }
                _ => isolating,
            }),
            rule: None,
            nearest_miss: nearest.map(|(rule, miss)| NearestMiss {
                policy: rule.policy.clone(),
                rule: rule.name.clone(),
                miss,
            }),
        })
    }
}

impl TierRule {
    /// Whether the rule matches: a Deny as a deny, Accept and Pass as an allow.
    fn matches(&self, connection: &Connection, facts: Facts<'_>) -> bool {
        match self.action {
            TierAction::Deny => self.rule.denies(connection, facts),
            TierAction::Accept | TierAction::Pass => self.rule.allows(connection, facts),
        }
    }

    /// Whether only a request can say if the rule matches.
    fn awaits_request(&self, facts: Facts<'_>) -> bool {
        self.rule.conditions.is_some() && matches!(facts, Facts::Connection)
    }

    /// Whether the rule reaches the peer and the port, whatever is said.
    fn reaches(&self, connection: &Connection) -> bool {
        let Connection { peer, protocol, port } = *connection;
        match self.action {
            TierAction::Deny => self.rule.denies_reach(peer, protocol, port),
            TierAction::Accept | TierAction::Pass => self.rule.allows_reach(peer, protocol, port),
        }
    }
}

/// The rules of a tier that match, in order.
fn matching<'a>(
    tier: &'a [TierRule],
    connection: &Connection,
    facts: Facts<'_>,
    taking: Taking<'_>,
) -> impl Iterator<Item = &'a TierRule> {
    tier.iter().filter(move |tiered| taking.takes(&tiered.rule.policy) && tiered.matches(connection, facts))
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
        let walked = self.walk(connection, facts, Taking::Enforcing);
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

    fn walk(&self, connection: &Connection, facts: Facts<'_>, taking: Taking<'_>) -> Walked<'_> {
        for tiered in matching(&self.admin, connection, facts, taking) {
            match tiered.action {
                TierAction::Deny => return Walked::by_rule(Decision::Deny, Reason::DenyRule, &tiered.rule),
                TierAction::Accept => {
                    return Walked::by_rule(Decision::Allow, Reason::RuleMatched, &tiered.rule);
                }
                TierAction::Pass => {
                    let passed = self.walk_namespaced(connection, facts, taking);
                    // Before a request is known a conditional Pass may or may not hold; a connection is let
                    // through where either way could let a request through.
                    if !tiered.awaits_request(facts) || passed.decision == Decision::Allow {
                        return passed;
                    }
                }
            }
        }
        self.walk_namespaced(connection, facts, taking)
    }

    /// Everything after the Admin tier.
    fn walk_namespaced(&self, connection: &Connection, facts: Facts<'_>, taking: Taking<'_>) -> Walked<'_> {
        let mut denies = self.deny.iter().filter(|rule| taking.takes(&rule.policy));
        if let Some(rule) = denies.find(|rule| rule.denies(connection, facts)) {
            return Walked::by_rule(Decision::Deny, Reason::DenyRule, rule);
        }
        let [k, l] = &self.layers;
        // The Baseline tier speaks in the place of a silent layer K.
        let connected = k.walk(connection, facts, taking).or_else(|| {
            let decided = matching(&self.baseline, connection, facts, taking).next()?;
            match decided.action {
                TierAction::Deny => Some(Walked::by_rule(Decision::Deny, Reason::DenyRule, &decided.rule)),
                TierAction::Accept => {
                    Some(Walked::by_rule(Decision::Allow, Reason::RuleMatched, &decided.rule))
                }
                TierAction::Pass => None,
            }
        });
        let allowed = match connected {
            Some(walked) if walked.decision == Decision::Deny => return walked,
            other => other,
        };
        match l.walk(connection, facts, taking) {
            // The later layer says more: what was said ranks above who connected.
            Some(walked) => walked,
            None => allowed.unwrap_or_else(Walked::not_isolated),
        }
    }

    /// What audited policies would have done, each promoted alone and all together.
    fn audit(&self, connection: &Connection, facts: Facts<'_>, enforced: Decision) -> Audit {
        let audited = self.audited();
        let mut audit = Audit::default();
        if audited.is_empty() {
            return audit;
        }
        let together = self.walk(connection, facts, Taking::All);
        match (enforced, together.decision) {
            (Decision::Deny, Decision::Allow) => audit.would_allow = true,
            (Decision::Allow, Decision::Deny) => audit.together_deny = Some(together.finding()),
            _ => {}
        }
        if enforced == Decision::Allow {
            audit.would_deny = audited
                .into_iter()
                .map(|policy| self.walk(connection, facts, Taking::EnforcingAnd(policy)))
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
        let passes = |taking| self.walk(connection, Facts::Connection, taking).decision == Decision::Allow;
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
        let Connection { peer, protocol, port } = *connection;
        if protocol != Protocol::Tcp {
            return false;
        }
        match reached(&self.admin, connection, taking) {
            Reached::Conditional => return true,
            Reached::By(TierAction::Accept | TierAction::Deny) => return false,
            Reached::By(TierAction::Pass) | Reached::Nothing => {}
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
        source: IpAddr,
        destination: IpAddr,
        protocol: Protocol,
        port: u16,
        facts: Facts<'_>,
    ) -> Verdict {
        let side = |endpoint: IpAddr, peer: IpAddr, direction: Direction| {
            let Some(endpoint) = self.endpoint_at(endpoint) else {
                return SideVerdict::unjudged();
            };
            // A pod reaching itself is never judged.
            if endpoint.addresses.contains(&peer) {
                return SideVerdict::unjudged();
            }
            let Some(profile) = self.profile(endpoint.profile) else {
                return SideVerdict::plain(Decision::Deny, Reason::IdentityMissing);
            };
            let connection = Connection { peer: self.class_of(peer), protocol, port };
            profile.side(direction).judge(&connection, facts)
        };
        Verdict {
            egress: side(source, destination, Direction::Egress),
            ingress: side(destination, source, Direction::Ingress),
        }
    }
}
