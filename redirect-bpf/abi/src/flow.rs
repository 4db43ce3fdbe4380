//! Flows: what the kernel remembers of a connection once it is judged.

use crate::Address;

/// Which table of an endpoint a flow is in.
///
/// One 5-tuple passes hooks A and B of two endpoints of one node, and a client's connection and the proxy's
/// upstream for it may wear the same 5-tuple; so both the endpoint and this are part of the key.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowKind {
    /// Somebody opened it to the endpoint.
    Ingress = 0,
    /// The endpoint opened it.
    Egress = 1,
    /// The proxy opened it, in the endpoint's name or to the endpoint.
    Upstream = 2,
}

/// The key of a flow, in its originator's orientation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The node's end of the endpoint's veth.
    pub ifindex: u32,
    /// A [`FlowKind`].
    pub kind: u8,
    /// The IP protocol.
    pub protocol: u8,
    /// What the rows of ICMP key on instead of a port: the number of the flow's opening packet, as
    /// [`icmp_number`](crate::icmp_number) gives it. 0 of any other protocol.
    pub icmp: [u8; 2],
    /// Who opened it.
    pub src: Address,
    /// To whom.
    pub dst: Address,
    /// The opener's port, network order; the identifier of an ICMP request.
    pub sport: [u8; 2],
    /// The other port, network order.
    pub dport: [u8; 2],
}

/// What was decided for a flow. Fixed for its life: only a new SYN begins another.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// Passes in the kernel.
    Direct = 1,
    /// The client's side of what the proxy holds.
    Proxied = 2,
    /// The proxy's own connection.
    Upstream = 3,
    /// Was direct, is no longer allowed. Kept, so that the other side's next packet does not pass for the
    /// first of a new flow.
    Cut = 4,
}

/// Bits of [`FlowEntry::flags`].
pub mod flow_flag {
    /// A socket of the node itself opened it; no row speaks of it.
    pub const HOST: u8 = 1;
    /// A pod talking to itself; never judged.
    pub const SELF: u8 = 2;
    /// Of a proxied flow: only crossed a bridge, so that the node's conntrack knows nothing of it.
    pub const UNSEEN: u8 = 4;
}

/// A flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    /// The epoch it was last judged under.
    pub epoch: u64,
    /// When a packet was last seen: nanoseconds of the kernel's monotonic clock.
    pub seen: u64,
    /// A [`FlowState`].
    pub state: u8,
    /// [`flow_flag`].
    pub flags: u8,
    /// How far it has come: bits of [`life`].
    pub life: u8,
    /// Explicit padding.
    pub pad: u8,
    /// [`RowValue::rule`](crate::RowValue::rule) of the row that decided.
    pub rule: u32,
}

/// How far a flow has come: what its packets have said. It decides how long it may be silent.
pub mod life {
    /// The other side has answered.
    pub const ANSWERED: u8 = 1;
    /// Its opener has closed its direction (TCP FIN, SCTP SHUTDOWN).
    pub const CLOSED_OUT: u8 = 2;
    /// The other side has closed its direction.
    pub const CLOSED_IN: u8 = 4;
    /// It was broken off (TCP RST, SCTP ABORT).
    pub const RESET: u8 = 8;
    /// It was found in the middle: nobody saw it open.
    pub const MIDSTREAM: u8 = 16;
}

const _: () = assert!(size_of::<FlowKey>() == 44 && align_of::<FlowKey>() == 4);
const _: () = assert!(size_of::<FlowEntry>() == 24);
