//! The keys and values of the ABI as aya wants them: plain old data.

use aya::Pod;
use sluice_bpf_abi::{
    Config, EndpointValue, Event, FlowEntry, FlowKey, FragmentEntry, FragmentKey, Limits, Quota, RowKey,
    RowValue, ServiceKey,
};

/// A key or value of a map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plain<T>(pub(crate) T);

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
    ServiceKey
);
