//! Verdicts: values with their reason and the rule that decided.
//!
//! Nothing here acts on one. Knows nothing of time, of sockets or of who will carry it out.

use crate::class::ClassId;
use crate::miss::Miss;
use crate::origin::{Origin, Policy, RuleName};
use crate::port::Protocol;
use crate::request::Request;
use std::fmt;
use std::sync::Arc;

/// The connection that is judged, seen from one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The other end.
    pub peer: ClassId,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port; of ICMP its type, see [`icmp_port`](crate::port::icmp_port).
    pub port: u16,
    /// A process of the endpoint's own node opened it (a kubelet's probe): the Admin tier alone has a say. See
    /// [`Source::Host`](crate::Source::Host).
    pub from_host: bool,
}

impl Connection {
    /// A connection that came over the network.
    #[must_use]
    pub const fn new(peer: ClassId, protocol: Protocol, port: u16) -> Self {
        Self { peer, protocol, port, from_host: false }
    }
}

/// What is known of what is said over the connection.
#[derive(Clone, Copy, Debug)]
pub enum Facts<'a> {
    /// L3/L4 alone: is the connection let through, if only to be judged by request?
    Connection,
    /// One request.
    Request(&'a Request<'a>),
    /// A TLS connection, by the server name that its client asks for (RFC 6066 §3), in lower case and without a
    /// trailing dot; `None` where there is none, or only an encrypted one. What is said inside is not known.
    Tls(Option<&'a str>),
    /// Bytes that nobody here can read. Matches every deny condition and no allow's.
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
