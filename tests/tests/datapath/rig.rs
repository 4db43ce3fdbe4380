//! A world with our loader on its nodes.

use crate::rules::{self, Line};
use anyhow::{Context, Result, ensure};
use sluice_policy::{Service, Snapshot};
use sluice_redirect::{Applied, Counter, Counters, Node, NodeConfig};
use sluice_tests::world::Family;
use sluice_tests::{NodeSpec, Pod, PodSpec, World, WorldBuilder};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port of the listeners.
pub(crate) const LISTEN: u16 = 15_001;
/// A host outside the cluster.
pub(crate) const OUTSIDE: &str = "bank";
const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x5c, 0, 0, 0, 0, 10);

/// Two nodes: `n1` with `a/client`, `a/server` and `a/other`, `n2` with `b/remote`, and a host outside.
pub(crate) struct Rig {
    // Before the world: what is attached goes before what it is attached to.
    nodes: BTreeMap<String, Node>,
    pub(crate) world: World,
    generation: u64,
}

impl Rig {
    /// `n1` with routed veths, our loader on it.
    pub(crate) fn routed() -> Result<Self> {
        Self::with(NodeSpec::routed("n1"))
    }

    /// `n1` as told, our loader on it.
    pub(crate) fn with(n1: NodeSpec) -> Result<Self> {
        Self::among(World::builder().node(n1).node(NodeSpec::routed("n2")))
    }

    /// Two nodes as told, our loader on `n1`.
    pub(crate) fn among(nodes: WorldBuilder) -> Result<Self> {
        let mut rig = Self::bare(nodes)?;
        rig.open("n1")?;
        Ok(rig)
    }

    /// Two nodes as told, nothing of ours on them.
    pub(crate) fn bare(nodes: WorldBuilder) -> Result<Self> {
        let world = nodes
            .pod(PodSpec::new("n1", "a/client"))
            .pod(PodSpec::new("n1", "a/server"))
            .pod(PodSpec::new("n1", "a/other"))
            .pod(PodSpec::new("n2", "b/remote"))
            .outside(OUTSIDE, OUTSIDE_V4, OUTSIDE_V6)
            .build()?;
        Ok(Self { nodes: BTreeMap::new(), world, generation: 0 })
    }

    /// What a node is opened with.
    pub(crate) fn config(&self, node: &str) -> NodeConfig {
        let bpffs = self.world.node(node).bpffs.clone();
        NodeConfig::new(format!("sl-{node}"), bpffs, LISTEN)
    }

    /// Starts the loader of a node.
    pub(crate) fn open(&mut self, node: &str) -> Result<()> {
        let config = self.config(node);
        self.open_with(node, config)
    }

    /// Starts the loader of a node, as told.
    pub(crate) fn open_with(&mut self, node: &str, config: NodeConfig) -> Result<()> {
        let opened = self.world.node(node).netns.inside(|| Node::open(config))?;
        self.nodes.insert(node.to_owned(), opened?);
        Ok(())
    }

    /// The loader of a node.
    pub(crate) fn node(&self, node: &str) -> &Node {
        &self.nodes[node]
    }

    /// The loader of a node, to be told things.
    pub(crate) fn node_mut(&mut self, node: &str) -> &mut Node {
        self.nodes.get_mut(node).expect("the node is open")
    }

    /// Takes the loader of a node away, without a word to it.
    pub(crate) fn take(&mut self, node: &str) -> Node {
        self.nodes.remove(node).expect("the node is open")
    }

    /// Another loader of a node, in the place of one that was taken away.
    pub(crate) fn put_node(&mut self, name: &str, node: Node) {
        self.nodes.insert(name.to_owned(), node);
    }

    /// Puts these rules in force on `n1`; every endpoint must be found.
    pub(crate) fn apply(&mut self, lines: &[Line]) -> Result<Applied> {
        self.apply_on("n1", lines)
    }

    /// The same on another node.
    pub(crate) fn apply_on(&mut self, node: &str, lines: &[Line]) -> Result<Applied> {
        self.apply_with(node, lines, Vec::new())
    }

    /// The same, with these Services.
    pub(crate) fn apply_with(
        &mut self,
        node: &str,
        lines: &[Line],
        services: Vec<Service>,
    ) -> Result<Applied> {
        self.generation += 1;
        let mut snapshot = rules::snapshot(&self.world, node, self.generation, lines);
        snapshot.services = services.into();
        let applied = self.put(node, &snapshot)?;
        ensure!(applied.missing.is_empty(), "missing: {:?}", applied.missing);
        ensure!(applied.generation == self.generation, "applied {applied:?}");
        Ok(applied)
    }

    /// Puts a snapshot in force.
    pub(crate) fn put(&mut self, node: &str, snapshot: &Snapshot) -> Result<Applied> {
        Ok(self.nodes.get_mut(node).context("the node is open")?.apply(snapshot)?)
    }

    /// Loads nftables rules on a node.
    pub(crate) fn nft(&self, node: &str, rules: &str) -> Result<()> {
        let file = self.world.dir().join(format!("{node}.nft"));
        std::fs::write(&file, rules)?;
        self.world.node(node).netns.run(&["nft", "-f", &file.display().to_string()]).map(drop)
    }

    /// A pod.
    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.world.pod(name)
    }

    /// An address of a pod with a port.
    pub(crate) fn at(&self, pod: &str, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.pod(pod).ip(family), port)
    }

    /// The counters of `n1`.
    pub(crate) fn counters(&self) -> Result<Counters> {
        Ok(self.node("n1").counters()?)
    }

    /// That a counter of `n1` grew since a reading.
    pub(crate) fn grew(&self, since: &Counters, counter: Counter) -> Result<()> {
        let now = self.counters()?;
        let grown = now.since(since);
        ensure!(grown.iter().any(|(name, _)| *name == counter), "{counter:?} did not grow: {grown:?}");
        Ok(())
    }

    /// That a counter of `n1` did not.
    pub(crate) fn same(&self, since: &Counters, counter: Counter) -> Result<()> {
        let now = self.counters()?;
        let grown = now.since(since);
        ensure!(grown.iter().all(|(name, _)| *name != counter), "{counter:?} grew: {grown:?}");
        Ok(())
    }

    /// Runs a test's steps; what the kernel counted is part of a failure.
    pub(crate) fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| match self.nodes.get("n1").map(Node::counters) {
            Some(Ok(counters)) => {
                let all: Vec<_> = counters.iter().filter(|(_, count)| *count > 0).collect();
                format!("counters of n1: {all:?}")
            }
            _ => "n1 is not open".to_owned(),
        })
    }
}
