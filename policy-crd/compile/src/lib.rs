//! Objects into the snapshot of one node: index, lower, roll out, resolve.
//!
//! Pure: the same objects and options give the same snapshot, whatever order they came in. Knows nothing of
//! files, clocks, sockets or the API server. Control compiles with it for every node, the CLI and the tests for
//! all nodes at once.

pub mod analyze;
mod cilium;
mod classes;
mod cluster_peers;
mod conditions;
mod found;
mod hosts;
mod incremental;
mod index;
mod labelled;
mod lower;
mod lowering;
mod methods;
pub mod migrate;
mod numbers;
mod peers;
mod ports;
mod profiles;
pub mod query;
mod report;
mod resolve;
mod rollout;
mod selector;
mod services;
mod slices;
mod stats;
mod subjects;
mod tiers;
mod values;

pub use incremental::{Compiler, Update};
pub use rollout::{Enforcement, Rollout};
pub use stats::Stats;

use sluice_crd::{Objects, Problem};
use sluice_policy::{Mode, Origin, Snapshot, Workload};
use std::sync::Arc;

/// Whose endpoints a snapshot has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NodeScope {
    /// Every node's: for questions about the whole cluster.
    All,
    /// This node's.
    Named(Arc<str>),
}

/// How to compile.
#[derive(Clone, Debug)]
pub struct Options {
    /// For which node.
    pub node: NodeScope,
    /// How the namespaces' labels count.
    pub rollout: Rollout,
    /// The snapshot's generation.
    pub generation: u64,
}

/// What compiling gave.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The node's state.
    pub snapshot: Snapshot,
    /// What was wrong with the objects' meaning; what was wrong with their form is told by the loader.
    pub problems: Vec<Problem>,
    /// Every policy and what it has come to, in the whole cluster.
    pub policies: Vec<PolicyState>,
}

/// What one policy has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyState {
    /// The policy.
    pub origin: Origin,
    /// Its effective mode; `None`: off by rollout, its rules are left out.
    pub mode: Option<Mode>,
    /// Nothing in it was wrong. Otherwise it is judged as written, fail closed.
    pub accepted: bool,
    /// The pods it selects that can be endpoints.
    pub selected: Vec<Arc<Workload>>,
    /// The pods it selects for which it is not in force: outside the dataplane, or on the host's network.
    pub not_enforced: Vec<Arc<Workload>>,
}

/// Compiles the snapshot of one node.
#[must_use]
pub fn compile(objects: &Objects, options: &Options) -> Compiled {
    Compiler::once().compile(objects, options)
}
