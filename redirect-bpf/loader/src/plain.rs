//! The keys and values of the ABI as aya wants them: plain old data.

use aya::Pod;
use sluice_bpf_abi::{
    Address, Config, EndpointValue, Event, FlowEntry, FlowKey, FragmentEntry, FragmentKey, Limits, Quota,
    RowKey, RowValue, ServiceKey,
};

/// A key or value of a map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Plain<T>(pub(crate) T);

/// A key of a trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Leading<T> {
    /// How many of its bits count.
    pub(crate) bits: u32,
    /// The key.
    pub(crate) key: T,
}

const _: () = assert!(size_of::<Leading<RowKey>>() == 16 && size_of::<Leading<Address>>() == 20);

/// A flow in ABI version 3. Its key is the same as ours.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct V3FlowEntry {
    pub(crate) epoch: u64,
    pub(crate) seen: u64,
    pub(crate) state: u8,
    pub(crate) flags: u8,
    pub(crate) life: u8,
    pub(crate) pad: u8,
    pub(crate) rule: u32,
}

const _: () = assert!(size_of::<V3FlowEntry>() == 24);

macro_rules! plain {
    ($($name:ty),+) => {$(
        // SAFETY: repr(C) of integers and arrays of them, padding spelt out, sizes asserted in the ABI.
        unsafe impl Pod for Plain<$name> {}
    )+};
}

plain!(
    Leading<Address>,
    Leading<RowKey>,
    Config,
    EndpointValue,
    Event,
    FlowEntry,
    FlowKey,
    FragmentEntry,
    FragmentKey,
    Limits,
    Quota,
    RowKey,
    RowValue,
    ServiceKey,
    V3FlowEntry
);
