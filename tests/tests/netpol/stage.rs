//! Two nodes with our loader on them, and the pods of the case that is played.
//!
//! Built once; a step that has other pods than the one before deletes and makes the difference. Called by the tests.

use crate::case::{CasePod, Step};
use crate::round::{self, Probe};
use crate::sockets::Sockets;
use anyhow::{Context, Result, anyhow, bail, ensure};
use sluice_compile::{NodeScope, Options, Rollout, compile};
use sluice_crd::{Objects, Severity};
use sluice_policy::{Direction, Side, Snapshot};
use sluice_redirect::{Counter, Node, NodeConfig};
use sluice_tests::world::Family;
use sluice_tests::{NodeSpec, PodSpec, World};
use std::collections::BTreeMap;

const NODES: [&str; 2] = ["n1", "n2"];
/// Nobody listens there: no case has an L7 rule.
const LISTEN: u16 = 15_001;
/// Wrong probes of one round that are shown.
const SHOWN: usize = 10;

/// Which of the two sides of a connection has its rules; the other lets everything pass.
const SIDES: [(&str, &[Direction]); 3] = [
    ("ingress alone", &[Direction::Ingress]),
    ("egress alone", &[Direction::Egress]),
    ("both sides", &[Direction::Ingress, Direction::Egress]),
];

/// What was played.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Played {
    /// Cells of the verdict tables, in each family.
    pub(crate) cells: usize,
    /// Packets that did otherwise, and at most all cells.
    pub(crate) failed: usize,
    /// Opening packets that were sent.
    pub(crate) probes: usize,
}

/// See the file's own words.
pub(crate) struct Stage {
    // Before the world: what is attached goes before what it is attached to.
    nodes: BTreeMap<&'static str, Node>,
    sockets: BTreeMap<String, Sockets>,
    pods: Vec<CasePod>,
    world: World,
    generation: u64,
    rounds: usize,
}

impl Stage {
    /// Two nodes without pods.
    pub(crate) fn build() -> Result<Self> {
        let world =
            NODES.into_iter().map(NodeSpec::routed).fold(World::builder(), |world, node| world.node(node));
        let world = world.build()?;
        let mut nodes = BTreeMap::new();
        for name in NODES {
            let bpffs = world.node(name).bpffs.clone();
            let config = NodeConfig::new(format!("np-{name}"), bpffs, LISTEN);
            nodes.insert(name, world.node(name).netns.inside(|| Node::open(config))??);
        }
        Ok(Self { nodes, sockets: BTreeMap::new(), pods: Vec::new(), world, generation: 0, rounds: 0 })
    }

    /// Plays a step: with the rules of each side alone, and of both. What packets did otherwise is told beside.
    pub(crate) fn play(&mut self, step: &Step) -> Result<(Played, Result<()>)> {
        self.populate(&step.pods)?;
        let loaded = sluice_crd::load_value(&step.objects);
        if let Some(problem) = loaded.problems.iter().find(|problem| problem.severity == Severity::Error) {
            bail!("{problem}");
        }
        let mut played = Played { cells: step.cells.len() * Family::BOTH.len(), ..Played::default() };
        let mut wrong = Vec::new();
        for (name, sides) in SIDES {
            self.put(&loaded.objects, sides)?;
            let judged = |cell: &crate::case::Cell| {
                (cell.ingress || !sides.contains(&Direction::Ingress))
                    && (cell.egress || !sides.contains(&Direction::Egress))
            };
            let probes: Vec<Probe> = Family::BOTH
                .into_iter()
                .flat_map(|family| step.cells.iter().map(move |cell| (family, cell)))
                .map(|(family, cell)| {
                    Probe::new((cell.from, cell.to), family, (cell.protocol, cell.port), judged(cell))
                })
                .collect();
            played.probes += probes.len();
            self.rounds += 1;
            let sockets = step.pods.iter().map(|pod| &self.sockets[&pod.key]).collect();
            let found = round::run(&step.pods, sockets, probes, self.rounds);
            let found = found.with_context(|| format!("{name}: {}", self.counted()))?;
            wrong.extend(found.into_iter().map(|line| format!("{name}: {line}")));
        }
        played.failed = wrong.len().min(played.cells);
        let told = match wrong.len() {
            0 => Ok(()),
            many => {
                let shown = wrong[..many.min(SHOWN)].join("\n");
                Err(anyhow!(
                    "{many} of {} probes came out otherwise:\n{shown}\n{}",
                    played.probes,
                    self.counted()
                ))
            }
        };
        Ok((played, told))
    }

    /// Makes the pods of a step, and takes away those that are not its.
    fn populate(&mut self, pods: &[CasePod]) -> Result<()> {
        for pod in self.pods.clone() {
            if !pods.contains(&pod) {
                self.sockets.remove(&pod.key);
                self.world.delete_pod(&pod.key)?;
                self.pods.retain(|there| *there != pod);
            }
        }
        for pod in pods {
            if !self.pods.contains(pod) {
                let spec = PodSpec::new(pod.node(), pod.key.as_str()).addresses(pod.v4, pod.v6());
                let netns = self.world.add_pod(&spec)?.netns.clone();
                self.sockets.insert(pod.key.clone(), Sockets::open(&netns)?);
                self.pods.push(pod.clone());
            }
        }
        Ok(())
    }

    /// Puts the rules of these sides in force on both nodes.
    fn put(&mut self, objects: &Objects, sides: &[Direction]) -> Result<()> {
        self.generation += 1;
        for (name, node) in &mut self.nodes {
            let scope = NodeScope::Named((*name).into());
            let options =
                Options { node: scope, rollout: Rollout::AsIfEnforced, generation: self.generation };
            let compiled = compile(objects, &options);
            if let Some(problem) =
                compiled.problems.iter().find(|problem| problem.severity == Severity::Error)
            {
                bail!("{problem}");
            }
            let mut snapshot = compiled.snapshot;
            keep(&mut snapshot, sides);
            let applied = node.apply(&snapshot)?;
            ensure!(applied.missing.is_empty(), "missing on {name}: {:?}", applied.missing);
            ensure!(applied.generation == self.generation, "applied {applied:?}");
        }
        Ok(())
    }

    /// What the kernel counted, for a failure.
    fn counted(&self) -> String {
        let counted = |(name, node): (&&str, &Node)| {
            let counters = node.counters().ok()?;
            let all: Vec<(Counter, u64)> = counters.iter().filter(|(_, count)| *count > 0).collect();
            Some(format!("counters of {name}: {all:?}"))
        };
        self.nodes.iter().filter_map(counted).collect::<Vec<_>>().join("\n")
    }
}

/// Takes the rules of the other sides out.
fn keep(snapshot: &mut Snapshot, sides: &[Direction]) {
    let mut all = snapshot.profiles.to_vec();
    for profile in &mut all {
        if !sides.contains(&Direction::Ingress) {
            profile.ingress = Side::default();
        }
        if !sides.contains(&Direction::Egress) {
            profile.egress = Side::default();
        }
    }
    snapshot.profiles = all.into();
}
