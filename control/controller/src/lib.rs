//! The control plane, standalone: a directory of manifests is the cluster, nodes subscribe to their snapshots.
//!
//! Follows the directory, compiles per node, publishes what changed, and says what became of it. Its only server is
//! the tonic feed. It never sees the proxy's code, eBPF or a pod's socket; no verdict is made here.

pub mod config;
pub mod feed;
pub mod follow;
pub mod nodes;
pub mod plan;
pub mod run;
pub mod socket;
pub mod status;
