//! The verdict: one walk for the kernel's rows, for a connection, for a request and for `explain`.
//!
//! A verdict is a value with its reason and the rule that decided; nothing here acts on it. Knows nothing of
//! time, of sockets or of who will carry it out.

use crate::class::ClassId;
use crate::fold::{Row, RowAction};
use crate::http::{Miss, Request};
use crate::origin::{Mode, Origin, Policy, RuleName};
use crate::port::Protocol;
use crate::profile::{Direction, Layer, Rule, Side};
use crate::snapshot::Snapshot;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The connection that is judged, seen from one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The other end.
    pub peer: ClassId,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

/// What is known of what is said over the connection.
#[derive(Clone, Copy, Debug)]
pub enum Facts<'a> {
    /// L3/L4 alone: is the connection let through, if only to be judged by request?
    Connection,
    /// One request.
    Request(&'a Request<'a>),
    /// Bytes that nobody here can read: TLS, an unknown protocol. Matches every deny condition and no allow's.
    Unknown,
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It passes.
    Allow,
    /// It is refused.
    Deny,
}

/// The decision as it is reported: audit is an allow that audited policies would deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It passes.
    Allow,
    /// It is refused.
    Deny,
    /// It passes, and would not if the audited policies were enforced.
    Audit,
}

impl Outcome {
    /// `allow`, `deny` or `audit`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No policy isolates the endpoint here.
    NotIsolated,
    /// An allow rule matched.
    RuleMatched,
    /// The endpoint is isolated and no rule names this peer and port.
    DefaultDeny,
    /// A deny rule matched.
    DenyRule,
    /// Rules name this peer and port; none allows this request.
    NoRuleMatched,
    /// The bytes could not be read as HTTP.
    ParseError,
    /// Nobody knows who the peer is.
    IdentityMissing,
    /// A named limit was reached.
    Limit,
}

impl Reason {
    /// Every reason, in the order of its wire number.
    pub const ALL: [Self; 8] = [
        Self::NotIsolated,
        Self::RuleMatched,
        Self::DefaultDeny,
        Self::DenyRule,
        Self::NoRuleMatched,
        Self::ParseError,
        Self::IdentityMissing,
        Self::Limit,
    ];

    /// The reason as telemetry and answers spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotIsolated => "not_isolated",
            Self::RuleMatched => "rule_matched",
            Self::DefaultDeny => "default_deny",
            Self::DenyRule => "deny_rule",
            Self::NoRuleMatched => "no_rule_matched",
            Self::ParseError => "parse_error",
            Self::IdentityMissing => "identity_missing",
            Self::Limit => "limit",
        }
    }
}

/// The rule that came nearest to allowing, and what it failed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearestMiss {
    /// Its policy.
    pub policy: Arc<Policy>,
    /// Its name.
    pub rule: RuleName,
    /// What it failed on.
    pub miss: Miss,
}

impl fmt::Display for NearestMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.miss.fmt(f)
    }
}

/// What audited policies would have done. All empty where no audited policy governs the side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// The audited policies that, each promoted alone, would turn the allow into a deny.
    pub would_deny: Vec<AuditFinding>,
    /// All of them promoted together would deny.
    pub together_deny: Option<AuditFinding>,
    /// Enforcing denies, and all audited policies promoted together would allow. Noted, never acted on.
    pub would_allow: bool,
}

/// One would-be denial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFinding {
    /// The policy that would decide.
    pub policy: Option<Arc<Policy>>,
    /// Its rule, if a rule would.
    pub rule: Option<RuleName>,
    /// Why.
    pub reason: Reason,
    /// The nearest miss it would report.
    pub nearest_miss: Option<NearestMiss>,
}

/// The verdict of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideVerdict {
    /// What happens: the verdict of the enforcing policies alone.
    pub decision: Decision,
    /// Why.
    pub reason: Reason,
    /// The policy that decided: of the rule, or the one that isolates where nothing allowed.
    pub policy: Option<Arc<Policy>>,
    /// The rule that decided, if one did.
    pub rule: Option<RuleName>,
    /// On a deny for want of an allow: what came nearest.
    pub nearest_miss: Option<NearestMiss>,
    /// What audited policies would have done.
    pub audit: Audit,
}

impl SideVerdict {
    /// A side where nothing is judged: no endpoint of ours.
    #[must_use]
    pub fn unjudged() -> Self {
        Self::plain(Decision::Allow, Reason::NotIsolated)
    }

    /// A verdict that no rule of a policy stands behind.
    #[must_use]
    pub fn plain(decision: Decision, reason: Reason) -> Self {
        Self { decision, reason, policy: None, rule: None, nearest_miss: None, audit: Audit::default() }
    }

    /// As it is reported.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.decision {
            Decision::Deny => Outcome::Deny,
            Decision::Allow if self.audit.would_deny.is_empty() && self.audit.together_deny.is_none() => {
                Outcome::Allow
            }
            Decision::Allow => Outcome::Audit,
        }
    }

    /// The object that decided.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.policy.as_deref().map(|policy| &policy.origin)
    }
}

/// Both sides. Both must allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The source's egress side.
    pub egress: SideVerdict,
    /// The destination's ingress side.
    pub ingress: SideVerdict,
}

impl Verdict {
    /// The whole decision.
    #[must_use]
    pub fn decision(&self) -> Decision {
        self.deciding().decision
    }

    /// As it is reported.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.deciding().outcome()
    }

    /// The side that decided: the one that denies, egress first; else the one that audits; else the one where a
    /// rule stands behind the allow, ingress first.
    #[must_use]
    pub fn deciding(&self) -> &SideVerdict {
        let sides = [&self.egress, &self.ingress];
        let by_outcome = |outcome| sides.into_iter().find(move |side| side.outcome() == outcome);
        by_outcome(Outcome::Deny).or_else(|| by_outcome(Outcome::Audit)).unwrap_or_else(|| {
            if self.ingress.rule.is_some() || self.egress.rule.is_none() {
                &self.ingress
            } else {
                &self.egress
            }
        })
    }
}

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
            }
    }

    /// Whether this allow grants the facts; else what it failed on.
    fn allows(&self, connection: &Connection, facts: Facts<'_>) -> Result<(), Miss> {
        let Connection { peer, protocol, port } = *connection;
        if !self.allows_reach(peer, protocol, port) {
            let other_port = peer != ClassId::MISSING && self.scopes.iter().any(|s| s.peers.contains(peer));
            return Err(if other_port { Miss::Port { protocol, port } } else { Miss::Peer });
        }
        match (&self.conditions, facts) {
            (None, _) | (Some(_), Facts::Connection) => Ok(()),
            (Some(_), Facts::Unknown) => Err(Miss::Unreadable),
            (Some(conditions), Facts::Request(request)) => conditions.allows(request),
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
        let mut nearest: Option<(&Rule, Miss)> = None;
        for rule in self.allow.iter().filter(|rule| taking.takes(&rule.policy)) {
            match rule.allows(connection, facts) {
                Ok(()) => return Some(Walked::by_rule(Decision::Allow, Reason::RuleMatched, rule)),
                Err(miss) if nearest.as_ref().is_none_or(|(_, best)| miss.depth() > best.depth()) => {
                    nearest = Some((rule, miss));
                }
                Err(_) => {}
            }
        }
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

impl Side {
    /// Judges one direction: denies first, then every allow layer that isolates must agree.
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
        let mut denies = self.deny.iter().filter(|rule| taking.takes(&rule.policy));
        if let Some(rule) = denies.find(|rule| rule.denies(connection, facts)) {
            return Walked::by_rule(Decision::Deny, Reason::DenyRule, rule);
        }
        let mut allowed = None;
        for layer in &self.layers {
            match layer.walk(connection, facts, taking) {
                Some(walked) if walked.decision == Decision::Deny => return walked,
                // The later layer says more: what was said ranks above who connected.
                Some(walked) => allowed = Some(walked),
                None => {}
            }
        }
        allowed.unwrap_or(Walked {
            decision: Decision::Allow,
            reason: Reason::NotIsolated,
            policy: None,
            rule: None,
            nearest_miss: None,
        })
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
        let allowing = self.layers.iter().flat_map(|layer| layer.allow.iter().map(|rule| &rule.policy));
        let denying = self.deny.iter().map(|rule| &rule.policy);
        let mut audited: Vec<&Policy> = isolating
            .chain(allowing)
            .chain(denying)
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
        let conditional = |rule: &&Rule| taking.takes(&rule.policy) && rule.conditions.is_some();
        self.deny.iter().filter(conditional).any(|rule| rule.denies_reach(peer, protocol, port))
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
