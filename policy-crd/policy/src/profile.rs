//! Profiles: the compiled rules that a set of endpoints shares.
//!
//! Data alone. [`verdict`](crate::verdict) walks it for a request, [`fold`](crate::fold) for the kernel.

use crate::class::{ClassId, ClassSet};
use crate::http::Conditions;
use crate::origin::{Policy, RuleName};
use crate::port::{PortRange, PortSet, Protocol};
use std::sync::Arc;

/// A profile's place in [`Snapshot::profiles`](crate::Snapshot::profiles).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProfileId(pub u32);

impl ProfileId {
    /// No profile: of an endpoint whose address somebody else claims too. Nobody knows whose rules to judge by, so
    /// everything is refused, in the kernel (no row has it) as in the walk.
    pub const REFUSED: Self = Self(u32::MAX);
}

/// Seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

impl Direction {
    /// Both directions.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// `ingress` or `egress`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Everything that is judged for an endpoint of this profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Connections to the endpoint.
    pub ingress: Side,
    /// Connections from the endpoint.
    pub egress: Side,
}

impl Profile {
    /// One direction of it.
    #[must_use]
    pub const fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// One direction of a profile, in the order in which it is asked: the Admin tier, the denies, then the allow layers,
/// each of which must agree; the Baseline tier in place of a silent layer K.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Side {
    /// The Admin tier, in order: the first rule that matches decides.
    pub admin: Vec<TierRule>,
    /// Deny rules. Any that matches decides.
    pub deny: Vec<Rule>,
    /// The allow layers, in the order of [`LayerKind::ALL`].
    pub layers: [Layer; 2],
    /// The Baseline tier, in order.
    pub baseline: Vec<TierRule>,
}

impl Side {
    /// Every rule, stage by stage.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        let admin = self.admin.iter().map(|tiered| &tiered.rule);
        admin
            .chain(&self.deny)
            .chain(self.layers.iter().flat_map(|layer| &layer.allow))
            .chain(self.baseline.iter().map(|tiered| &tiered.rule))
    }
}

/// A rule of a tier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TierRule {
    /// What it does with what it matches.
    pub action: TierAction,
    /// What it matches: a Deny as a deny, Accept and Pass as an allow.
    pub rule: Rule,
}

/// What a rule of a tier does; the words are `ClusterNetworkPolicy`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TierAction {
    /// It passes, and nothing after the tier is asked.
    Accept,
    /// It is refused.
    Deny,
    /// The rest of the tier is left out, what comes after it is asked.
    Pass,
}

impl TierAction {
    /// As the API writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        }
    }
}

/// Which allow layer. They are `ANDed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerKind {
    /// K: who may connect (`NetworkPolicy`, `CiliumNetworkPolicy`).
    K,
    /// L: what they may say (`L7NetworkPolicy`).
    L,
}

impl LayerKind {
    /// Both, in the order of [`Side::layers`].
    pub const ALL: [Self; 2] = [Self::K, Self::L];
}

/// One allow layer: silent where nothing isolates, else one of its rules must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Layer {
    /// What isolates the endpoint in this layer, by policy.
    pub isolation: Vec<Isolation>,
    /// The allow rules; their union is allowed.
    pub allow: Vec<Rule>,
}

/// That a policy isolates the endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Isolation {
    /// The policy that isolates.
    pub policy: Arc<Policy>,
    /// On which ports.
    pub ports: IsolatedPorts,
}

/// The ports that become default-deny.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IsolatedPorts {
    /// Every port and protocol.
    All,
    /// These port numbers, on every protocol that has ports.
    Listed(Vec<(u16, u16)>),
}

impl IsolatedPorts {
    /// Whether this port is isolated.
    #[must_use]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Listed(ranges) => {
                protocol.has_ports() && ranges.iter().any(|&(first, last)| first <= port && port <= last)
            }
        }
    }
}

/// One allow or deny.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The policy it came from.
    pub policy: Arc<Policy>,
    /// Its name in that policy.
    pub name: RuleName,
    /// Who and which ports; one scope is enough. A named port has one scope per number it resolves to.
    pub scopes: Vec<Scope>,
    /// What must be said. `None`: L3/L4 alone.
    pub conditions: Option<Arc<Conditions>>,
}

/// Peers and ports that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The peers.
    pub peers: ClassSet,
    /// The ports.
    pub ports: PortSet,
}

impl Rule {
    /// Whether this allow reaches the peer and the port. Nothing allows an unknown peer, and a rule with
    /// conditions on a request allows nothing but TCP, which alone can carry the request.
    #[must_use]
    pub fn allows_reach(&self, peer: ClassId, protocol: Protocol, port: u16) -> bool {
        peer != ClassId::MISSING
            && (self.conditions.is_none() || protocol == Protocol::Tcp)
            && self.scopes.iter().any(|s| s.peers.contains(peer) && s.ports.contains(protocol, port))
    }

    /// Whether this deny reaches the peer and the port. Every deny reaches an unknown peer.
    #[must_use]
    pub fn denies_reach(&self, peer: ClassId, protocol: Protocol, port: u16) -> bool {
        self.scopes
            .iter()
            .any(|s| (peer == ClassId::MISSING || s.peers.contains(peer)) && s.ports.contains(protocol, port))
    }

    /// Every port range that the rule names.
    pub fn ranges(&self) -> impl Iterator<Item = &PortRange> {
        self.scopes.iter().flat_map(|scope| scope.ports.ranges())
    }
}
