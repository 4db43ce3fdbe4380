//! Protocols and port ranges, resolved to numbers.
//!
//! Knows nothing of port names: the compiler resolves them per peer class or per pod.

use std::fmt;

/// What a row keys on as protocol. ICMP is ICMPv4 and ICMPv6 alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP (IP protocol 6).
    Tcp,
    /// UDP (IP protocol 17).
    Udp,
    /// SCTP (IP protocol 132).
    Sctp,
    /// `ICMP` (IP protocol 1) and `ICMPv6` (58).
    Icmp,
    /// Every other IP protocol.
    Other,
}

impl Protocol {
    /// Every protocol a row can have.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp, Self::Other];

    /// The protocol as Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
            Self::Other => "other",
        }
    }

    /// The protocol with this name (`TCP`, `UDP`, `SCTP`, `ICMP`).
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp].into_iter().find(|p| p.as_str() == name)
    }

    /// Whether the protocol has ports.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }

    /// Whether a row tells its packets apart, by port or by ICMP type.
    #[must_use]
    pub const fn is_keyed(self) -> bool {
        self.has_ports() || matches!(self, Self::Icmp)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The first [`PortRange`] number of `ICMPv6` types; those of ICMP begin at 0.
const ICMPV6_TYPES: u16 = 256;

/// The number that stands for an ICMP type where others have a port: rows, ranges and connections key on it. Types
/// of the two families mean different things (8 and 128 are echo requests), so that they have different numbers.
#[must_use]
pub const fn icmp_port(v6: bool, kind: u8) -> u16 {
    if v6 { ICMPV6_TYPES + kind as u16 } else { kind as u16 }
}

/// Ports `first..=last` of one protocol; ICMP types by [`icmp_port`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// The protocol.
    pub protocol: Protocol,
    /// The first port.
    pub first: u16,
    /// The last port, included.
    pub last: u16,
}

impl PortRange {
    /// Every port of a protocol.
    #[must_use]
    pub const fn all(protocol: Protocol) -> Self {
        Self { protocol, first: 0, last: u16::MAX }
    }

    /// Whether this port of this protocol is in the range.
    #[must_use]
    pub const fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol as u8 == protocol as u8 && self.first <= port && port <= self.last
    }
}

/// The ports that a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortSet {
    /// Every port of every protocol (a rule without `ports`).
    All,
    /// These ranges; none at all where a named port resolved to nothing.
    Ranges(Vec<PortRange>),
}

impl PortSet {
    /// Whether this port of this protocol is in the set.
    #[must_use]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Ranges(ranges) => ranges.iter().any(|range| range.contains(protocol, port)),
        }
    }

    /// The ranges named, none for [`PortSet::All`].
    #[must_use]
    pub fn ranges(&self) -> &[PortRange] {
        match self {
            Self::All => &[],
            Self::Ranges(ranges) => ranges,
        }
    }
}
