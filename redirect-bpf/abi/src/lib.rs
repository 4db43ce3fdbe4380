//! The contract between the eBPF programs and the loader: map names, keys, values, limits.
//!
//! `no_std`, `repr(C)`, padding spelt out and sizes asserted, because both sides read the same bytes. Knows
//! nothing of aya: the programs and the loader bring their own map types. Read by `sluice-bpf` and
//! `sluice-redirect`. Change anything here and [`ABI_VERSION`] goes up: the pin directory carries it, so
//! that a new loader never takes over maps that mean something else.

#![no_std]

mod counter;
mod event;
mod flow;
mod fragment;
mod limits;
mod row;
mod service;

pub use counter::{COUNTERS, Counter};
pub use event::{EVENT_BYTES, EVENT_BYTES_PASSED, Event, EventVerdict};
pub use flow::{FlowEntry, FlowKey, FlowKind, FlowState, flow_flag, idle, life};
pub use fragment::{FRAGMENT_SLOTS, FragmentEntry, FragmentKey, MAX_FRAGMENTS};
pub use limits::{Bucket, Limits, Quota};
pub use row::{Action, HOST_CLASS, ICMP_NONE, RowKey, RowValue, icmp_number, row_flag};
pub use service::{MAX_SERVICES, SERVICE_CLASS, ServiceKey};

/// The version of everything in this crate.
pub const ABI_VERSION: u32 = 4;

/// The names of the programs in the object.
pub mod program {
    /// Hook A: tcx ingress of a pod's veth, node side.
    pub const FROM_POD: &str = "from_pod";
    /// Hook B: tcx egress of a pod's veth, node side.
    pub const TO_POD: &str = "to_pod";
    /// Hook C: tcx ingress of the helper's inner end, in the proxy's namespace.
    pub const TO_PROXY: &str = "to_proxy";
    /// Hook D: tcx ingress of the helper's outer end, in the node's namespace.
    pub const FROM_PROXY: &str = "from_proxy";
    /// All of them.
    pub const ALL: [&str; 4] = [FROM_POD, TO_POD, TO_PROXY, FROM_PROXY];
}

/// The names of the maps in the object.
pub mod map {
    /// Array of one [`Config`](crate::Config).
    pub const CONFIG: &str = "CONFIG";
    /// Array of one `u64`, the epoch. Its lowest bit is the slot in force.
    pub const EPOCH: &str = "EPOCH";
    /// Array of [`SLOTS`](crate::SLOTS) maps: address prefix → class.
    pub const CLASSES: &str = "CLASSES";
    /// Array of [`SLOTS`](crate::SLOTS) maps: [`RowKey`](crate::RowKey) prefix →
    /// [`RowValue`](crate::RowValue).
    pub const ROWS: &str = "ROWS";
    /// Array of [`SLOTS`](crate::SLOTS) maps: ifindex → [`EndpointValue`](crate::EndpointValue).
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Array of [`SLOTS`](crate::SLOTS) maps: address → ifindex of the local endpoint that owns it,
    /// [`LOCAL_NODE`](crate::LOCAL_NODE) or [`REMOTE_NODE`](crate::REMOTE_NODE).
    pub const LOCALS: &str = "LOCALS";
    /// [`FlowKey`](crate::FlowKey) → [`FlowEntry`](crate::FlowEntry).
    pub const FLOWS: &str = "FLOWS";
    /// Per-CPU array of `u64` by [`Counter`](crate::Counter).
    pub const COUNTERS: &str = "COUNTERS";
    /// Array of [`SLOTS`](crate::SLOTS) maps: [`ServiceKey`](crate::ServiceKey) → class, with
    /// [`SERVICE_CLASS`](crate::SERVICE_CLASS) set.
    pub const SERVICES: &str = "SERVICES";
    /// [`FragmentKey`](crate::FragmentKey) → [`FragmentEntry`](crate::FragmentEntry).
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Array of one [`Limits`](crate::Limits).
    pub const LIMITS: &str = "LIMITS";
    /// Device → [`Quota`](crate::Quota): what an endpoint has used of its limits.
    pub const QUOTAS: &str = "QUOTAS";
    /// Ring buffer of [`Event`](crate::Event).
    pub const EVENTS: &str = "EVENTS";
    /// The maps that are pinned by name and outlive the loader.
    pub const PINNED: [&str; 13] = [
        CONFIG, EPOCH, CLASSES, ROWS, ENDPOINTS, LOCALS, FLOWS, COUNTERS, SERVICES, FRAGMENTS, LIMITS,
        QUOTAS, EVENTS,
    ];
}

/// Generations held at once: the one in force and the one being written.
pub const SLOTS: u32 = 2;
/// Flows remembered per node. An entry takes about 160 bytes of kernel memory with its place in the table, so this is
/// some 42 MB.
pub const MAX_FLOWS: u32 = 262_144;
/// Rows of one generation: about 100 bytes each in a trie, so at most some 25 MB.
pub const MAX_ROWS: u32 = 262_144;
/// Address prefixes of one generation.
pub const MAX_CLASSES: u32 = 262_144;
/// Endpoints of one node, and other ports of its bridges: far more than kubelets are run with.
pub const MAX_ENDPOINTS: u32 = 4_096;
/// Addresses of endpoints and of the node itself on one node, hardware addresses of its devices, addresses of the
/// other nodes: two of each of 5,000 nodes, which is what Kubernetes is built for, beside those of the endpoints.
pub const MAX_LOCALS: u32 = 32_768;
/// What [`map::LOCALS`] says of an address of the node itself.
pub const LOCAL_NODE: u32 = u32::MAX;
/// What [`map::LOCALS`] says of an address of another node. All above it is no endpoint's device.
pub const REMOTE_NODE: u32 = u32::MAX - 1;
/// The UDP ports of tunnels that a node may have: one of each kind, for two networks.
pub const MAX_TUNNELS: usize = 4;

/// Listeners that the proxy may have on each address. Those of both addresses, and a namespace, go from one process to the
/// next in one message, which takes 253 descriptors (`SCM_MAX_FD`). Far more threads than one node's proxy keeps busy.
pub const MAX_QUEUES: u8 = 64;

/// An address as every map has it: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`.
pub type Address = [u8; 16];

/// A hardware address as [`map::LOCALS`] has it: in the block that is for nobody (RFC 6666), so that it is no host's.
#[must_use]
pub const fn hardware(mac: [u8; 6]) -> Address {
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]]
}

/// What the programs must know of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The helper's outer end. 0: there is none, and what should go to the proxy is dropped.
    pub helper_ifindex: u32,
    /// The mark that hook D sets, for rules of others. Nothing of ours reads it.
    pub mark: u32,
    /// The proxy's namespace as the node's knows it, for the look-up whether anybody listens.
    pub proxy_nsid: u32,
    /// The first of the proxy's listeners, on `127.0.0.1` and `::1` in its namespace. Host byte order.
    pub listen_port: u16,
    /// [`config_flag`].
    pub flags: u8,
    /// How many listeners it has on each address, on this port and those that follow: each is the accept queue of one of
    /// its threads. 0 is 1.
    pub queues: u8,
    /// UDP ports of the node's own tunnels, host byte order: no pod speaks to them at a node. 0 is none.
    pub tunnels: [u16; MAX_TUNNELS],
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// Bridged IPv4 frames go through the node's netfilter.
    pub const BRIDGE_NF_V4: u8 = 1;
    /// Bridged IPv6 frames go through the node's netfilter.
    pub const BRIDGE_NF_V6: u8 = 2;
}

/// The profile of a bridge's port that is no endpoint. No row has it, so that nothing passes a hook there.
pub const NO_PROFILE: u32 = u32::MAX;

/// An endpoint, found by the node's end of its veth; or another port of a bridge.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointValue {
    /// Its rules.
    pub profile: u32,
    /// The device by which the node reaches its addresses: the veth, or the bridge that the veth is a port of.
    pub way: u32,
    /// The address of the pod's own interface, where [`endpoint_flag::MAC`] says that it must send from it.
    pub mac: [u8; 6],
    /// [`endpoint_flag`].
    pub flags: u8,
    /// Explicit padding.
    pub pad: u8,
}

/// Bits of [`EndpointValue::flags`].
pub mod endpoint_flag {
    /// Its frames come from [`EndpointValue::mac`](crate::EndpointValue::mac) or not at all.
    pub const MAC: u8 = 1;
}

const _: () = assert!(MAX_CLASSES < HOST_CLASS && HOST_CLASS & SERVICE_CLASS == 0);
const _: () = assert!(size_of::<Config>() == 24);
const _: () = assert!(size_of::<EndpointValue>() == 16);
