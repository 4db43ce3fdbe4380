//! One rule and one question: whether the rule matches, and if not, what it failed on.
//!
//! Knows nothing of the order in which rules are asked; the walk does.

use crate::class::ClassId;
use crate::index::Probe;
use crate::miss::{Miss, depth};
use crate::origin::{Mode, Policy};
use crate::port::Protocol;
use crate::profile::{Rule, Scope, TierAction};
use crate::verdict::{Connection, Facts};

/// Which policies take part in a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Taking<'p> {
    /// Those that enforce.
    Enforcing,
    /// Those, and this audited one.
    EnforcingAnd(&'p Policy),
    /// All.
    All,
}

impl Taking<'_> {
    pub(crate) fn takes(self, policy: &Policy) -> bool {
        policy.mode == Mode::Enforce
            || match self {
                Self::Enforcing => false,
                Self::EnforcingAnd(audited) => audited.id == policy.id,
                Self::All => true,
            }
    }
}

/// What one walk is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'q> {
    /// The connection.
    pub(crate) connection: &'q Connection,
    /// What is known of it.
    pub(crate) facts: Facts<'q>,
    /// Who takes part.
    pub(crate) taking: Taking<'q>,
    /// What the side's index is asked, where it has one. Without it every rule is asked.
    pub(crate) probe: Option<&'q Probe<'q>>,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// A layer's allow.
    Allow,
    /// A deny of a namespaced policy.
    Deny,
    /// A tier's rule.
    Tier(TierAction),
}

impl Effect {
    /// Whether the rule refuses: then what cannot be known matches it.
    #[must_use]
    pub const fn refuses(self) -> bool {
        matches!(self, Self::Deny | Self::Tier(TierAction::Deny))
    }
}

impl Rule {
    /// Whether the rule matches: as a deny if it refuses, else as an allow.
    pub(crate) fn matches(&self, effect: Effect, asked: Asked<'_>) -> bool {
        if effect.refuses() {
            self.denies(asked.connection, asked.facts)
        } else {
            self.allows(asked.connection, asked.facts)
        }
    }

    /// Whether the rule reaches the connection, whatever is said.
    pub(crate) fn reaches(&self, effect: Effect, connection: &Connection) -> bool {
        let Connection { peer, protocol, port, .. } = *connection;
        if effect.refuses() {
            self.denies_reach(peer, protocol, port)
        } else {
            self.allows_reach(peer, protocol, port)
        }
    }

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

    /// What a rule that does not match failed on; `None` if it matches.
    pub(crate) fn miss(&self, effect: Effect, asked: Asked<'_>) -> Option<Miss> {
        if effect.refuses() {
            self.deny_miss(asked.connection, asked.facts)
        } else {
            self.allow_miss(asked.connection, asked.facts)
        }
    }

    fn deny_miss(&self, connection: &Connection, facts: Facts<'_>) -> Option<Miss> {
        let Connection { peer, protocol, port, .. } = *connection;
        if !self.denies_reach(peer, protocol, port) {
            return Some(self.reach_miss(peer, protocol, port));
        }
        match (&self.conditions, facts) {
            (None, _) | (Some(_), Facts::Unknown) => None,
            (Some(_), Facts::Connection) => (protocol == Protocol::Tcp).then_some(Miss::NoRequest),
            (Some(conditions), Facts::Request(request)) => conditions.deny_miss(request),
            (Some(conditions), Facts::Tls(name)) => conditions.deny_miss_tls(name),
        }
    }

    fn allow_miss(&self, connection: &Connection, facts: Facts<'_>) -> Option<Miss> {
        let Connection { peer, protocol, port, .. } = *connection;
        if !self.allows_reach(peer, protocol, port) {
            return Some(match peer {
                ClassId::MISSING => Miss::UnknownPeer,
                _ => self.reach_miss(peer, protocol, port),
            });
        }
        match (&self.conditions, facts) {
            (None, _) | (Some(_), Facts::Connection) => None,
            (Some(_), Facts::Unknown) => Some(Miss::Unreadable),
            (Some(conditions), Facts::Request(request)) => conditions.nearest_miss(request),
            (Some(conditions), Facts::Tls(name)) => conditions.nearest_miss_tls(name),
        }
    }

    /// The depth of what an allow failed on, which makes no texts; `None` if it grants.
    pub(crate) fn miss_depth(&self, asked: Asked<'_>) -> Option<u8> {
        let Connection { peer, protocol, port, .. } = *asked.connection;
        if !self.allows_reach(peer, protocol, port) {
            let named =
                peer != ClassId::MISSING && self.scopes.iter().any(|scope| scope.peers.contains(peer));
            return Some(if named { depth::PORT } else { depth::PEER });
        }
        match (&self.conditions, asked.facts) {
            (None, _) | (Some(_), Facts::Connection) => None,
            (Some(_), Facts::Unknown) => Some(depth::UNREADABLE),
            (Some(conditions), Facts::Request(request)) => conditions.miss_depth(request),
            (Some(conditions), Facts::Tls(name)) => (!conditions.allows_tls(name)).then_some(depth::HOST),
        }
    }

    /// Why a rule does not reach this peer and port. Asked of an allow only with a known peer.
    fn reach_miss(&self, peer: ClassId, protocol: Protocol, port: u16) -> Miss {
        let selects = |scope: &&Scope| peer == ClassId::MISSING || scope.peers.contains(peer);
        let mut selecting = self.scopes.iter().filter(selects).peekable();
        if selecting.peek().is_none() {
            Miss::Peer
        } else if selecting.any(|scope| scope.ports.contains(protocol, port)) {
            // It names the port, so that what it says cannot be carried.
            Miss::Protocol { protocol }
        } else {
            Miss::Port { protocol, port }
        }
    }
}
