//! The control plane: a cluster, or a directory of manifests that stands for one, and nodes that subscribe to their
//! snapshots.
//!
//! Follows the objects, compiles per node, publishes what changed, and says what became of it. Its only server is the
//! tonic feed. It never sees the proxy's code, eBPF or a pod's socket; no verdict is made here.

mod acks;
pub mod cluster;
pub mod config;
pub mod feed;
pub mod follow;
pub mod heard;
pub mod nodes;
pub mod plan;
pub mod run;
pub mod socket;
pub mod standing;
pub mod status;
pub mod write;
