//! A compiler that remembers: after a change it lowers the objects that changed and builds the profiles that they
//! touch, and takes over everything else as it was.
//!
//! Nothing that it remembers decides anything: what it gives is what compiling from nothing would give, but for the
//! numbers of classes, policies and profiles, which stay what they were where they can. Control has one; [`compile`]
//! is one that is used once.
//!
//! [`compile`]: crate::compile

use crate::classes::{Classes, Key, Numbered};
use crate::found::{self, Finder, Ground};
use crate::index::{Index, PodEntry};
use crate::lowering::{LoweredPolicy, Lowering};
use crate::numbers::{Renewed, Sparse};
use crate::profiles::{Builder, Handle, Profiles};
use crate::rollout::{self, Rollout};
use crate::services::Table;
use crate::stats::Stats;
use crate::subjects::Subjects;
use crate::{Compiled, NodeScope, Options, PolicyState, cilium, tiers};
use sluice_crd::{Objects, Problem};
use sluice_policy::{Endpoint, Mode, Origin, Policy, PolicyId, ProfileId, Services, Snapshot, Workload};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Compiles again and again, and each time what has changed.
#[derive(Default)]
pub struct Compiler {
    lowering: Lowering,
    /// The cluster as it is.
    cluster: Option<Cluster>,
    /// By whose endpoints: what the last snapshot of them was made of.
    remembered: HashMap<NodeScope, Remembered>,
    /// Counts changes of the cluster.
    round: u64,
    /// The last number given to something that is known again by it.
    serial: u64,
    stats: Stats,
}

/// What the objects of a cluster have come to, for every node.
#[derive(Clone, Debug)]
pub struct Update {
    /// What was wrong with the objects' meaning; what was wrong with their form is told by the loader.
    pub problems: Vec<Problem>,
    /// Every policy and what it has come to, in the whole cluster.
    pub policies: Vec<PolicyState>,
}

/// A cluster, lowered.
struct Cluster {
    index: Index,
    /// Every policy in the order in which they are asked, and its effective mode.
    policies: Vec<LoweredPolicy>,
    modes: Vec<Option<Mode>>,
    /// By policy: whether its peers depend on the node of the pod that it selects.
    local: Vec<bool>,
    /// By pod: the policies that select it, in order.
    selecting: Vec<Vec<usize>>,
    /// The namespaces in the dataplane.
    enabled: HashSet<Arc<str>>,
    classes: Classes,
    /// The round in which anything last changed that peers are resolved by.
    resolved_by: u64,
    services: Table,
    /// The round in which they last changed.
    services_since: u64,
}

/// What a snapshot was made of.
#[derive(Default)]
struct Remembered {
    /// The round that it was made in.
    round: u64,
    classes: Sparse<Arc<Key>>,
    policies: Sparse<PolicyKey>,
    handles: HashMap<PolicyKey, Handle>,
    /// By number. Where a policy is gone and no other has its number yet, it is still the one that is gone: no rule
    /// is of it.
    numbered: Vec<Arc<Policy>>,
    found: found::Kept,
    profiles: Profiles,
    services: Services,
}

/// How a policy in force is known again: an object may be several, of the same name and mode.
type PolicyKey = (Origin, Mode, usize);

impl Compiler {
    /// A compiler that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One that is used once, and keeps nothing for a second time.
    pub(crate) fn once() -> Self {
        Self { lowering: Lowering::once(), ..Self::default() }
    }

    /// Takes these objects in place of those before, and compiles one snapshot.
    pub fn compile(&mut self, objects: &Objects, options: &Options) -> Compiled {
        let (cluster, Update { problems, policies }) = self.take(objects, options.rollout);
        let snapshot = self.make(&cluster, &options.node, options.generation);
        self.cluster = Some(cluster);
        Compiled { snapshot, problems, policies }
    }

    /// Takes these objects in place of those before.
    pub fn update(&mut self, objects: &Objects, rollout: Rollout) -> Update {
        let (cluster, update) = self.take(objects, rollout);
        self.cluster = Some(cluster);
        update
    }

    /// The snapshot of these endpoints. `None`: no objects were taken yet, so that nothing can be said of any.
    pub fn snapshot(&mut self, node: &NodeScope, generation: u64) -> Option<Snapshot> {
        let cluster = self.cluster.take()?;
        let snapshot = self.make(&cluster, node, generation);
        self.cluster = Some(cluster);
        Some(snapshot)
    }

    fn take(&mut self, objects: &Objects, rollout: Rollout) -> (Cluster, Update) {
        self.stats = Stats::default();
        let mut problems = Vec::new();
        let mut index = Index::new(objects, &mut problems);
        rollout::check(&index, &mut problems);
        let mut lowered = self.lowering.renew(objects, &mut problems, &mut self.stats);
        cilium::derive_labels(&mut index, lowered.iter().map(|policy| &*policy.ir));
        // Stable: of two with one name the first stays the first.
        lowered.sort_by(|a, b| tiers::order(&a.ir, &b.ir));
        let subjects = Subjects::new(&index, &lowered);
        let (policies, modes): (Vec<LoweredPolicy>, Vec<Option<Mode>>) =
            tiers::by_mode(lowered, &subjects, rollout).into_iter().unzip();
        let selecting = subjects.selections(&policies);
        let classes = Classes::new(&index, &policies);
        let services = Table::new(objects, &mut problems);
        self.round += 1;
        let mut before = self.cluster.take();
        let (services, services_since) = match &mut before {
            Some(before) if before.services == services => {
                (std::mem::take(&mut before.services), before.services_since)
            }
            _ => (services, self.round),
        };
        let resolved_by = match before.filter(|before| before.resolves_as(&index, &classes)) {
            Some(before) => before.resolved_by,
            None => self.round,
        };
        // Whoever was not asked about since the last change is gone.
        self.remembered.retain(|_, remembered| remembered.round + 1 >= self.round);
        let local = policies.iter().map(|policy| found::is_local(&policy.ir)).collect();
        let enabled = rollout::enabled(&index, rollout);
        let cluster = Cluster {
            index,
            policies,
            modes,
            local,
            selecting,
            enabled,
            classes,
            resolved_by,
            services,
            services_since,
        };
        problems.sort();
        problems.dedup();
        let policies = cluster.states();
        (cluster, Update { problems, policies })
    }

    fn make(&mut self, cluster: &Cluster, node: &NodeScope, generation: u64) -> Snapshot {
        let mut remembered = self.remembered.remove(node).unwrap_or_default();
        let (numbered, renewed) = Numbered::new(&cluster.classes, node, &mut remembered.classes);
        let Renewed { added, removed, kept } = renewed;
        self.stats.classes_added += added;
        self.stats.classes_removed += removed;
        self.stats.classes_kept += kept;
        let local = cluster.local_pods(node);
        let selecting = local.iter().flat_map(|pod| &cluster.selecting[*pod]);
        let handles = handles(cluster, selecting, &mut remembered, &mut self.serial);
        let Cluster { index, classes, policies, .. } = cluster;
        let ground = Ground { index, classes, numbered: &numbered, policies, local: &cluster.local };
        let unchanged = remembered.round >= cluster.resolved_by;
        let finder = Finder::new(ground, std::mem::take(&mut remembered.found), unchanged, &mut self.serial);
        let before = std::mem::take(&mut remembered.profiles);
        let mut builder = Builder::new(policies, &handles, finder, before, &mut self.stats);
        let endpoints = endpoints(cluster, &local, &mut builder);
        let (profiles, made, found) = builder.finish();
        if remembered.round < cluster.services_since {
            remembered.services = cluster.services.seen_from(node);
        }
        (remembered.profiles, remembered.found, remembered.round) = (made, found, self.round);
        let services = remembered.services.clone();
        let in_force = remembered.numbered.clone();
        let workloads = workloads(index);
        self.remembered.insert(node.clone(), remembered);
        Snapshot {
            generation,
            profiles: profiles.into_iter().collect(),
            policies: in_force,
            classes: numbered.described,
            addresses: numbered.addresses,
            endpoints: endpoints.into(),
            workloads,
            services,
        }
    }

    /// What the last update, and the snapshots made since, have cost.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        self.stats
    }
}

impl Cluster {
    /// Whether peers resolve to the same classes, at the same places, as in another cluster.
    fn resolves_as(&self, index: &Index, classes: &Classes) -> bool {
        self.classes.keys == classes.keys
            && self.index.nodes == index.nodes
            && self.index.namespaces.len() == index.namespaces.len()
            && self
                .index
                .namespaces
                .iter()
                .zip(&index.namespaces)
                .all(|((name, entry), (other, another))| name == other && entry.labels == another.labels)
    }

    /// The pods that are endpoints there, by number.
    fn local_pods(&self, node: &NodeScope) -> Vec<usize> {
        let is_endpoint = |pod: &PodEntry| {
            let here = match node {
                NodeScope::All => true,
                NodeScope::Named(node) => pod.workload.node == *node,
            };
            here && pod.has_identity()
                && !pod.addresses.is_empty()
                && self.enabled.contains(&pod.workload.namespace)
        };
        let pods = self.index.pods.iter().enumerate();
        pods.filter(|(_, pod)| is_endpoint(pod)).map(|(number, _)| number).collect()
    }

    fn states(&self) -> Vec<PolicyState> {
        let state = |(policy, mode): (&LoweredPolicy, &Option<Mode>)| PolicyState {
            origin: policy.ir.origin.clone(),
            mode: *mode,
            accepted: policy.ir.accepted,
            selected: Vec::new(),
            not_enforced: Vec::new(),
        };
        let mut states: Vec<PolicyState> = self.policies.iter().zip(&self.modes).map(state).collect();
        let pods = self.index.pods.iter().zip(&self.selecting);
        for (pod, numbers) in pods.filter(|(pod, _)| !pod.terminated) {
            for &number in numbers {
                if pod.host_network || !self.enabled.contains(&pod.workload.namespace) {
                    states[number].not_enforced.push(pod.workload.clone());
                }
                if !pod.host_network {
                    states[number].selected.push(pod.workload.clone());
                }
            }
        }
        states
    }
}

fn endpoints<'a>(cluster: &'a Cluster, local: &[usize], builder: &mut Builder<'a, '_>) -> Vec<Arc<Endpoint>> {
    let shared = shared_addresses(&cluster.index, local);
    // Which of them has a shared address nobody knows; the first is refused there for both.
    let mut taken = HashSet::new();
    let endpoint = |&number: &usize| {
        let pod = &cluster.index.pods[number];
        let profile = match pod.addresses.iter().any(|address| shared.contains(address)) {
            true => ProfileId::REFUSED,
            false => builder.profile(pod, &cluster.selecting[number]),
        };
        let addresses = pod.addresses.iter().copied().filter(|address| taken.insert(*address)).collect();
        Arc::new(Endpoint { workload: pod.workload.clone(), addresses, profile })
    };
    local.iter().map(endpoint).collect()
}

/// The addresses that several endpoints of this snapshot claim.
fn shared_addresses(index: &Index, local: &[usize]) -> HashSet<IpAddr> {
    let mut seen = HashSet::new();
    let addresses = local.iter().flat_map(|pod| &index.pods[*pod].addresses);
    addresses.copied().filter(|address| !seen.insert(*address)).collect()
}

/// Numbers the policies that are in force for some pod here.
fn handles<'a>(
    cluster: &Cluster,
    used: impl Iterator<Item = &'a usize>,
    remembered: &mut Remembered,
    serial: &mut u64,
) -> Vec<Option<Handle>> {
    let used: HashSet<usize> = used.copied().collect();
    let mut again: HashMap<(Origin, Mode), usize> = HashMap::new();
    let mut keys: Vec<PolicyKey> = Vec::new();
    let mut places: Vec<usize> = Vec::new();
    for (place, (policy, mode)) in cluster.policies.iter().zip(&cluster.modes).enumerate() {
        let Some(mode) = mode.filter(|_| used.contains(&place)) else { continue };
        let origin = policy.ir.origin.clone();
        let nth = again.entry((origin.clone(), mode)).or_default();
        keys.push((origin, mode, *nth));
        places.push(place);
        *nth += 1;
    }
    remembered.policies.renew(&keys);
    let mut before = std::mem::take(&mut remembered.handles);
    let mut out = vec![None; cluster.policies.len()];
    let count = remembered.policies.slots().len();
    let mut numbered: Vec<Option<Arc<Policy>>> =
        remembered.numbered.drain(..).take(count).map(Some).collect();
    numbered.resize(count, None);
    for (key, place) in keys.into_iter().zip(places) {
        // Each was given a number just now.
        let Some(number) = remembered.policies.number(&key) else { continue };
        let id = PolicyId(u32::try_from(number).unwrap_or(u32::MAX));
        let on_deny = cluster.policies[place].ir.on_deny;
        let policy = Policy { id, origin: key.0.clone(), mode: key.1, on_deny };
        let handle = before.remove(&key).filter(|handle| *handle.policy == policy).unwrap_or_else(|| {
            *serial += 1;
            Handle { serial: *serial, policy: Arc::new(policy) }
        });
        out[place] = Some(handle.clone());
        numbered[number] = Some(handle.policy.clone());
        remembered.handles.insert(key, handle);
    }
    // A number that is new has a policy, and so has one that was there before.
    remembered.numbered = numbered.into_iter().flatten().collect();
    out
}

fn workloads(index: &Index) -> HashMap<IpAddr, Arc<Workload>> {
    let pods = index.pods.iter().filter(|pod| pod.has_identity());
    let entries = pods.flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.workload.clone())));
    entries.filter(|(address, _)| !index.contested.contains(address)).collect()
}
