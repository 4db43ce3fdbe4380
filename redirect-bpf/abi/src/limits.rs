//! Limits per endpoint, and what it has used of them.

/// What each endpoint may take. 0 is no limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Flows that the endpoint may have at once, by direction: ingress, egress.
    pub flows: [u32; 2],
    /// Flows that may begin in a second, by direction; a burst is one second's worth.
    pub opens: [u32; 2],
    /// Resets and ICMP errors that may be built for its packets in a second.
    pub answers: u32,
    /// Events that it may cause in a second: of what is refused, and of flows that pass. Apart, so that nobody hides
    /// the one behind the other.
    pub events: [u32; 2],
}

/// A bucket of tokens: filled as time goes, up to one second's worth.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When it was filled last: nanoseconds of the kernel's monotonic clock.
    pub filled: u64,
    /// What is in it.
    pub tokens: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// What an endpoint has used. Several CPUs write it without a lock: a limit is held to within their number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// When user space last counted its flows: nanoseconds of the kernel's monotonic clock. Where nobody counts any
    /// more, the number only grows, and is not held against the endpoint.
    pub counted: u64,
    /// Its flows, by direction: what was counted, and what has begun and been forgotten since. Signed, because
    /// what several CPUs do at once may be lost.
    pub flows: [i64; 2],
    /// Of [`Limits::opens`].
    pub opens: [Bucket; 2],
    /// Of [`Limits::answers`].
    pub answers: Bucket,
    /// Of [`Limits::events`].
    pub events: [Bucket; 2],
}

const _: () = assert!(size_of::<Limits>() == 28);
const _: () = assert!(size_of::<Bucket>() == 16 && size_of::<Quota>() == 104);
