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
mod hosts;
mod index;
mod lower;
mod methods;
pub mod migrate;
mod peers;
mod ports;
mod profiles;
pub mod query;
mod report;
mod rollout;
mod selector;
mod tiers;
mod values;

pub use rollout::{Enforcement, Rollout};

use crate::classes::Classes;
use crate::index::{Index, PodEntry};
use crate::lower::PolicyIr;
use crate::profiles::Builder;
use sluice_crd::{Objects, Problem};
use sluice_policy::{Endpoint, Mode, Origin, Policy, PolicyId, ProfileId, Snapshot, Workload};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Whose endpoints a snapshot has.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug)]
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
    let mut problems = Vec::new();
    let mut index = Index::new(objects, &mut problems);
    rollout::check(&index, &mut problems);
    let mut policies: Vec<PolicyIr> =
        objects.policies.iter().map(|policy| lower::policy(policy, &mut problems)).collect();
    let named = cilium::Named::new(objects, &mut problems);
    policies.extend(objects.cilium.iter().flat_map(|policy| cilium::policy(policy, &named, &mut problems)));
    cilium::derive_labels(&mut index, &policies);
    policies.extend(tiers::lower(objects, &mut problems));
    // Stable: of two with one name the first stays the first.
    policies.sort_by(tiers::order);
    let (policies, modes): (Vec<PolicyIr>, Vec<Option<Mode>>) =
        tiers::by_mode(policies, &index, options.rollout).into_iter().unzip();
    let classes = Classes::new(&index, &policies, &options.node);
    let selecting = selections(&index, &policies);
    let enabled = rollout::enabled(&index, options.rollout);
    let states = states(&index, &policies, &selecting, &modes, &enabled);
    let local: Vec<usize> =
        (0..index.pods.len()).filter(|pod| is_endpoint(&index.pods[*pod], options, &enabled)).collect();
    let handles = handles(&policies, &modes, local.iter().flat_map(|pod| &selecting[*pod]));
    let shared = shared_addresses(&index, &local);
    // Which of them has a shared address nobody knows; the first is refused there for both.
    let mut taken = HashSet::new();
    let mut builder = Builder::new(&index, &classes, &policies, &handles);
    let endpoints: Vec<Arc<Endpoint>> = local
        .iter()
        .map(|&number| {
            let pod = &index.pods[number];
            let in_force =
                selecting[number].iter().copied().filter(|policy| handles[*policy].is_some()).collect();
            let profile = match pod.addresses.iter().any(|address| shared.contains(address)) {
                true => ProfileId::REFUSED,
                false => builder.profile(pod, in_force),
            };
            let addresses = pod.addresses.iter().copied().filter(|address| taken.insert(*address)).collect();
            Arc::new(Endpoint { workload: pod.workload.clone(), addresses, profile })
        })
        .collect();
    let snapshot = Snapshot {
        generation: options.generation,
        profiles: builder.finish().into(),
        policies: handles.iter().flatten().cloned().collect(),
        classes: classes.described(),
        addresses: classes.addresses,
        endpoints: endpoints.into(),
        workloads: workloads(&index),
    };
    problems.sort();
    problems.dedup();
    Compiled { snapshot, problems, policies: states }
}

/// For every pod, the policies that select it, in order.
fn selections(index: &Index, policies: &[PolicyIr]) -> Vec<Vec<usize>> {
    let mut out = vec![Vec::new(); index.pods.len()];
    for (number, policy) in policies.iter().enumerate() {
        let own = || index.pods_of(&policy.origin.namespace).collect();
        let pods: Vec<usize> = policy.members().map_or_else(own, |members| {
            members.iter().flat_map(|namespace| index.pods_of(namespace)).collect()
        });
        for pod in pods {
            if policy.selector.matches(&index.pods[pod].labels) {
                out[pod].push(number);
            }
        }
    }
    out
}

fn states(
    index: &Index,
    policies: &[PolicyIr],
    selecting: &[Vec<usize>],
    modes: &[Option<Mode>],
    enabled: &HashSet<Arc<str>>,
) -> Vec<PolicyState> {
    let state = |(policy, mode): (&PolicyIr, &Option<Mode>)| PolicyState {
        origin: policy.origin.clone(),
        mode: *mode,
        accepted: policy.accepted,
        selected: Vec::new(),
        not_enforced: Vec::new(),
    };
    let mut states: Vec<PolicyState> = policies.iter().zip(modes).map(state).collect();
    for (pod, numbers) in index.pods.iter().zip(selecting).filter(|(pod, _)| !pod.terminated) {
        for &number in numbers {
            if pod.host_network || !enabled.contains(&pod.workload.namespace) {
                states[number].not_enforced.push(pod.workload.clone());
            }
            if !pod.host_network {
                states[number].selected.push(pod.workload.clone());
            }
        }
    }
    states
}

fn is_endpoint(pod: &PodEntry, options: &Options, enabled: &HashSet<Arc<str>>) -> bool {
    let here = match &options.node {
        NodeScope::All => true,
        NodeScope::Named(node) => pod.workload.node == *node,
    };
    here && pod.has_identity() && !pod.addresses.is_empty() && enabled.contains(&pod.workload.namespace)
}

/// The addresses that several endpoints of this snapshot claim.
fn shared_addresses(index: &Index, local: &[usize]) -> HashSet<IpAddr> {
    let mut seen = HashSet::new();
    let addresses = local.iter().flat_map(|pod| &index.pods[*pod].addresses);
    addresses.copied().filter(|address| !seen.insert(*address)).collect()
}

/// Numbers the policies that are in force for some pod here.
fn handles<'a>(
    policies: &[PolicyIr],
    modes: &[Option<Mode>],
    used: impl Iterator<Item = &'a usize>,
) -> Vec<Option<Arc<Policy>>> {
    let used: HashSet<usize> = used.copied().collect();
    let mut next = 0;
    let handle = |(number, (policy, mode)): (usize, (&PolicyIr, &Option<Mode>))| {
        let mode = mode.filter(|_| used.contains(&number))?;
        let id = PolicyId(next);
        next += 1;
        Some(Arc::new(Policy { id, origin: policy.origin.clone(), mode, on_deny: policy.on_deny }))
    };
    policies.iter().zip(modes).enumerate().map(handle).collect()
}

fn workloads(index: &Index) -> HashMap<IpAddr, Arc<Workload>> {
    let pods = index.pods.iter().filter(|pod| pod.has_identity());
    let entries = pods.flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.workload.clone())));
    entries.filter(|(address, _)| !index.contested.contains(address)).collect()
}
