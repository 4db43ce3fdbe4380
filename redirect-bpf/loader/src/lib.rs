//! Loads, attaches and pins the eBPF programs, and keeps the kernel's rows in step with the snapshot.
//!
//! The only user-space crate with aya, with netlink and with `unsafe`. Knows nothing of HTTP, of Kubernetes
//! or of the control plane: a [`Snapshot`](sluice_policy::Snapshot) comes in, [`Applied`] goes out. Called
//! by the agent in `sluice-proxy` and by the datapath tests.
//!
//! A [`Node`] speaks for the network namespace of the thread that opened it. What it pins outlives it: the
//! verdicts of L3 and L4 go on while nobody is there. The proxy's network namespace and the helper veth live
//! as long as the `Node` and the sockets inside; without them, flows that L7 rules govern are refused.

#[cfg(feature = "crash-points")]
pub mod absent;
mod attach;
mod bpffs;
mod census;
pub mod check;
mod claims;
mod clsact;
mod counters;
#[cfg(not(feature = "crash-points"))]
mod crash;
#[cfg(feature = "crash-points")]
pub mod crash;
mod discover;
mod drift;
mod elements;
mod error;
mod events;
mod families;
mod fill;
mod flows;
mod generation;
mod handed;
mod helper;
mod limits;
mod maps;
mod netlink;
mod netns;
mod node;
mod origins;
mod placing;
mod plain;
mod reading;
mod slots;
mod sockets;
mod sys;
mod tc;
mod upgrade;

pub use attach::Hooks;
pub use census::{Census, census};
pub use counters::Counters;
pub use drift::Drift;
pub use error::{ApplyError, SetupError};
pub use events::{Events, FlowEvent, Peer};
pub use fill::{EASED, Fill, NEARLY_FULL};
pub use flows::Swept;
pub use limits::EndpointLimits;
pub use node::{Applied, Attached, DEFAULT_MARK, Missing, Node, NodeConfig};
pub use origins::Origin;
pub use reading::Reading;
pub use sluice_bpf_abi::{
    ABI_VERSION, Counter, EventVerdict, MAX_CLASSES, MAX_ENDPOINTS, MAX_FLOWS, MAX_FRAGMENTS, MAX_QUEUES,
    MAX_ROWS,
};
