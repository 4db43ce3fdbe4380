//! Events: what the kernel tells of a flow's first packet, and of what it refuses.

use crate::FlowKey;

/// What happened. The reason is told apart from it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventVerdict {
    /// A new flow passes.
    Allow = 1,
    /// A packet or a new flow is refused.
    Deny = 2,
    /// A new flow goes to the proxy, which tells the rest.
    ToProxy = 3,
    /// A new flow passes that audited policies would refuse.
    Audit = 4,
    /// A flow that stood is no longer allowed.
    Cut = 5,
}

/// One event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// When: nanoseconds of the kernel's monotonic clock.
    pub time: u64,
    /// The epoch it was judged under: which list of rules [`Event::rule`] is a place of.
    pub epoch: u64,
    /// The flow, in its originator's orientation. Of what could not be read only the device.
    pub key: FlowKey,
    /// [`RowValue::rule`](crate::RowValue::rule).
    pub rule: u32,
    /// A [`Counter`](crate::Counter).
    pub reason: u32,
    /// The packet's bytes.
    pub length: u32,
    /// An [`EventVerdict`].
    pub verdict: u8,
    /// 1: it was answered.
    pub answered: u8,
    /// Explicit padding.
    pub pad: [u8; 6],
}

/// The ring's size. An event with its header takes 96 bytes, so some 10,000 wait at most.
pub const EVENT_BYTES: u32 = 1 << 20;

const _: () = assert!(size_of::<Event>() == 80);
