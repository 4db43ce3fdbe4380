//! Rows: what the kernel does with a new flow of an endpoint.

/// The key of a row, in the order a longest-prefix match wants it: the port's leading bits come last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RowKey {
    /// Whose rules.
    pub profile: u32,
    /// The other end's class.
    pub class: u32,
    /// 0 ingress, 1 egress, as [`FlowKind`](crate::FlowKind) numbers them.
    pub direction: u8,
    /// What [`RowKey::protocol_of`] says.
    pub protocol: u8,
    /// The destination port of the connection, network order. Of ICMP what [`icmp_number`] says of the packet that
    /// opened the flow; 0 of every other protocol.
    pub port: [u8; 2],
}

impl RowKey {
    /// The bits before the port.
    pub const FIXED_BITS: u32 = 80;
    /// All bits.
    pub const BITS: u32 = 96;
    /// The number of TCP.
    pub const TCP: u8 = 6;
    /// The number of UDP.
    pub const UDP: u8 = 17;
    /// The number of SCTP.
    pub const SCTP: u8 = 132;
    /// The number of ICMP, which stands for `ICMPv6` as well.
    pub const ICMP: u8 = 1;
    /// Stands for every other protocol (255 is reserved by IANA).
    pub const OTHER: u8 = 255;

    /// The protocol that a row has for this IP protocol.
    #[must_use]
    pub const fn protocol_of(ip_protocol: u8) -> u8 {
        match ip_protocol {
            Self::TCP | Self::UDP | Self::SCTP | Self::ICMP => ip_protocol,
            58 => Self::ICMP,
            _ => Self::OTHER,
        }
    }

    /// Whether this protocol, as a row has it, has ports.
    #[must_use]
    pub const fn has_ports(protocol: u8) -> bool {
        matches!(protocol, Self::TCP | Self::UDP | Self::SCTP)
    }
}

/// What stands for an ICMP type where other protocols have a port, network order like those. Types of the two
/// families mean different things (8 and 128 are echo requests), so the high byte says which family's it is.
#[must_use]
pub const fn icmp_number(v6: bool, kind: u8) -> [u8; 2] {
    [v6 as u8, kind]
}

/// The [`icmp_number`] of no packet: what a packet that answers none is the answer to. No flow has it.
pub const ICMP_NONE: [u8; 2] = [0xff; 2];

/// Set in the classes of what a process of the node sends: the Admin tier has rows for it, and nobody else. By the class
/// of its address, and with no class (0) for every address of the node that no object names; where there is no row it
/// passes.
pub const HOST_CLASS: u32 = 1 << 30;

/// What happens.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Drop. Zero, so that what nobody wrote denies.
    Deny = 0,
    /// Pass.
    Allow = 1,
    /// To the proxy.
    ToProxy = 2,
}

/// Bits of [`RowValue::flags`].
pub mod row_flag {
    /// To the proxy only because of audited policies: without a listener the flow passes.
    pub const FAIL_OPEN: u8 = 1;
    /// Audited policies would refuse the flow: it passes and is counted.
    pub const AUDIT: u8 = 2;
    /// A denial is answered: a reset of TCP, of others that they are administratively prohibited.
    pub const REJECT: u8 = 4;
}

/// A row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RowValue {
    /// An [`Action`]. Any other number denies.
    pub action: u8,
    /// [`row_flag`].
    pub flags: u8,
    /// Explicit padding.
    pub pad: u16,
    /// Which rule decided: its place in the list of the generation, which the loader keeps, counted from 1. 0: none.
    pub rule: u32,
}

const _: () = assert!(size_of::<RowKey>() == 12 && align_of::<RowKey>() == 4);
const _: () = assert!(size_of::<RowValue>() == 8);
