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
    /// A flow that stood is no longer allowed. Told once.
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
    pub pad: [u8; 2],
    /// The class that the peer was looked up as, [`SERVICE_CLASS`](crate::SERVICE_CLASS) included; 0 where no row was
    /// asked, and of nobody.
    pub class: u32,
}

/// The ring's size. An event with its header takes 88 bytes, so some 12,000 wait at most.
pub const EVENT_BYTES: u32 = 1 << 20;
/// How full the ring may be for the event of a flow that passes: the rest is kept for what is refused.
pub const EVENT_BYTES_PASSED: u32 = EVENT_BYTES / 2;

const _: () = assert!(size_of::<Event>() == 80);
