//! Fragments: only the first of a packet has ports, and the others pass as it did.

use crate::Address;

/// What the fragments of one packet have in common, at one hook (RFC 791, section 3.2; RFC 8200, section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// The node's end of the endpoint's veth.
    pub ifindex: u32,
    /// The identification; of IPv4 in the first two bytes.
    pub id: [u8; 4],
    /// A [`FlowKind`](crate::FlowKind): which hook.
    pub kind: u8,
    /// The IP protocol.
    pub protocol: u8,
    /// Explicit padding.
    pub pad: [u8; 2],
    /// From.
    pub src: Address,
    /// To.
    pub dst: Address,
}

/// What is remembered of a first fragment that passed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentEntry {
    /// When it was seen: nanoseconds of the kernel's monotonic clock.
    pub seen: u64,
    /// The epoch under which it was judged: a later one judges anew.
    pub epoch: u64,
    /// The first byte of payload behind the judged header: no later fragment may begin before it.
    pub header: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// Fragmented packets whose rest may be on its way.
pub const MAX_FRAGMENTS: u32 = 8_192;

const _: () = assert!(size_of::<FragmentKey>() == 44 && size_of::<FragmentEntry>() == 24);
