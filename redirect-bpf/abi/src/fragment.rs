//! Fragments: only the first of a packet has ports, and the others pass as it did.

use crate::Address;

/// Where the first fragment of a packet is remembered.
///
/// Each endpoint has [`FRAGMENT_SLOTS`] of them at each hook, and no more: who sends fragments without end takes the
/// places of its own packets, and of nobody else's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// The node's end of the endpoint's veth.
    pub ifindex: u32,
    /// A [`FlowKind`](crate::FlowKind): which hook.
    pub kind: u8,
    /// Derived from what the fragments have in common.
    pub slot: u8,
    /// Explicit padding.
    pub pad: [u8; 2],
}

/// What is remembered of a first fragment that passed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentEntry {
    /// When it was seen: nanoseconds of the kernel's monotonic clock.
    pub seen: u64,
    /// The epoch under which it was judged: what comes in a later one is not covered by it.
    pub epoch: u64,
    /// From.
    pub src: Address,
    /// To.
    pub dst: Address,
    /// The identification; of IPv4 in the first two bytes.
    pub id: [u8; 4],
    /// The first byte of payload behind the judged header: no later fragment may begin before it.
    pub header: u32,
    /// The IPv4 protocol (RFC 791, section 3.2); 0 of IPv6, where it is not part of what a packet is put together by
    /// (RFC 8200, section 4.5).
    pub protocol: u8,
    /// Explicit padding.
    pub pad: [u8; 7],
}

/// Fragmented packets of one endpoint at one hook whose rest may be on its way. The fragments of a packet follow each
/// other within microseconds, and Linux numbers the packets of a flow one by one, so that each has its own place.
pub const FRAGMENT_SLOTS: u8 = 64;
/// All places of 256 endpoints, twice what a kubelet runs by default: some 5 MB of kernel memory. On a node with more
/// of them, all of which fragment, those idle the longest are forgotten first.
pub const MAX_FRAGMENTS: u32 = 2 * 256 * FRAGMENT_SLOTS as u32;

const _: () = assert!(FRAGMENT_SLOTS.is_power_of_two());
const _: () = assert!(size_of::<FragmentKey>() == 8 && size_of::<FragmentEntry>() == 64);
