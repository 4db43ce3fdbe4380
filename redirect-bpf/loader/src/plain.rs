//! The keys and values of the ABI as aya wants them: plain old data.

use aya::Pod;
use sluice_bpf_abi::{
    Address, Config, EndpointValue, Event, FlowEntry, FlowKey, FragmentEntry, FragmentKey, Limits, Quota,
    RowKey, RowValue, ServiceKey,
};

/// A key or value of a map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plain<T>(pub(crate) T);

/// The key of a flow in ABI version 2.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct V2FlowKey {
    pub(crate) ifindex: u32,
    pub(crate) kind: u8,
    pub(crate) protocol: u8,
    pub(crate) icmp: [u8; 2],
    pub(crate) src: Address,
    pub(crate) dst: Address,
    pub(crate) sport: [u8; 2],
    pub(crate) dport: [u8; 2],
}

/// A flow in ABI version 2.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct V2FlowEntry {
    pub(crate) epoch: u64,
    pub(crate) seen: u64,
    pub(crate) state: u8,
    pub(crate) flags: u8,
    pub(crate) pad: [u8; 6],
}

const _: () = assert!(size_of::<V2FlowKey>() == 44 && size_of::<V2FlowEntry>() == 24);

macro_rules! plain {
    ($($name:ty),+) => {$(
        // SAFETY: repr(C) of integers and arrays of them, padding spelt out, sizes asserted in the ABI.
        unsafe impl Pod for Plain<$name> {}
    )+};
}

plain!(
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
    V2FlowEntry,
    V2FlowKey
);
