//! A world: nodes, pods and hosts outside, each a network namespace, joined by real links.
//!
//! Knows nothing of policies or of the product. Every namespace is its own, named by this process's number;
//! nothing of the machine's own network is touched, and all of it goes away with the value, on a panic and on
//! a signal. Called by the end-to-end tests, the datapath's tests and the demo.

pub(crate) mod cleanup;
mod netns;
mod plumbing;
mod process;
mod spec;
mod state;

pub use cleanup::{STATE_DIR, install_signal_handler, sweep, take_down_all, yield_to_signal};
pub use netns::{NETNS_DIR, Netns};
pub use process::{Process, binary, eventually};
pub use spec::{Attach, Family, MAX_NODES, MAX_PODS, NodeSpec, OutsideSpec, Overlay, PodSpec};

use crate::peer::{Ask, Stats, Version, http_client};
use anyhow::{Context, Result, ensure};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// With this in the environment, a test that failed shows the state that its world was in at the end.
pub const DESCRIBE: &str = "SLUICE_DESCRIBE";

thread_local! {
    /// The state of the world that this thread dropped last.
    static LAST: Cell<String> = const { Cell::new(String::new()) };
}

/// The state of the world that this thread dropped last, if [`DESCRIBE`] asks for it.
#[must_use]
pub fn last_state() -> String {
    LAST.take()
}

/// How long a peer may take to listen.
const SERVE_DEADLINE: Duration = Duration::from_secs(10);

/// Numbers the worlds of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// What a world shall consist of.
#[derive(Clone, Debug, Default)]
pub struct WorldBuilder {
    nodes: Vec<NodeSpec>,
    pods: Vec<PodSpec>,
    outside: Vec<OutsideSpec>,
    overlay: Overlay,
    pod_mtu: Option<u32>,
}

impl WorldBuilder {
    /// How the nodes reach each other's pods, unless by plain routes.
    #[must_use]
    pub fn overlay(mut self, overlay: Overlay) -> Self {
        self.overlay = overlay;
        self
    }

    /// The MTU of the pods' interfaces, unless it is 1500.
    #[must_use]
    pub fn pod_mtu(mut self, mtu: u32) -> Self {
        self.pod_mtu = Some(mtu);
        self
    }

    /// Adds a node.
    #[must_use]
    pub fn node(mut self, node: NodeSpec) -> Self {
        self.nodes.push(node);
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Adds a host outside the cluster with these addresses, on the link between the nodes.
    #[must_use]
    pub fn outside(mut self, name: impl Into<String>, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        self.outside.push(OutsideSpec { name: name.into(), v4, v6 });
        self
    }

    /// Builds it. Root is needed.
    ///
    /// # Errors
    /// With the command that failed; what was built by then is taken down again.
    pub fn build(self) -> Result<World> {
        ensure!(self.nodes.len() <= MAX_NODES, "at most {MAX_NODES} nodes");
        install_signal_handler();
        static SWEPT: std::sync::Once = std::sync::Once::new();
        SWEPT.call_once(sweep);
        let prefix = format!("sl-{:x}-{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = cleanup::begin(&prefix)?;
        let underlay = Netns::create(format!("{prefix}-underlay"));
        // From here on the value's destructor takes down whatever there is.
        let mut world = World {
            underlay: underlay.inspect_err(|_| cleanup::end(&prefix))?,
            prefix,
            dir,
            nodes: Vec::new(),
            pods: Vec::new(),
            outside: Vec::new(),
            overlay: self.overlay,
            pod_mtu: self.pod_mtu,
            made: 0,
        };
        plumbing::build(&mut world, &self)?;
        Ok(world)
    }
}

/// A node of a world.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name, as in `spec.nodeName`.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its address on the underlay.
    pub v4: Ipv4Addr,
    /// Its address on the underlay.
    pub v6: Ipv6Addr,
    /// The range its pods' addresses are of.
    pub pods_v4: String,
    /// The range its pods' addresses are of.
    pub pods_v6: String,
    /// How its pods are attached unless they say otherwise.
    pub attach: Attach,
    /// A bpffs mounted for this node alone.
    pub bpffs: PathBuf,
}

/// A pod of a world, or a host outside.
#[derive(Clone, Debug)]
pub struct Pod {
    /// `namespace/name`; a host outside has a bare name.
    pub name: String,
    /// The node it is on; empty for a host outside.
    pub node: String,
    /// Its namespace, with `eth0` in it.
    pub netns: Netns,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its address.
    pub v6: Ipv6Addr,
    /// The name of the node's end of its veth.
    pub veth: String,
    /// How it is attached.
    pub attach: Attach,
    /// Which of this world's pods it is, by the order they were made: a pod that is made again is another one.
    pub serial: u64,
}

impl Pod {
    /// Its address of one family.
    #[must_use]
    pub const fn ip(&self, family: Family) -> IpAddr {
        family.pick(self.v4, self.v6)
    }

    /// The part of the name before the slash; empty for a host outside.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.name.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name without the namespace.
    #[must_use]
    pub fn short_name(&self) -> &str {
        self.name.split_once('/').map_or(self.name.as_str(), |(_, name)| name)
    }
}

/// A world that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct World {
    prefix: String,
    dir: PathBuf,
    /// The link between the nodes: a bridge in a namespace of its own.
    pub underlay: Netns,
    /// The nodes, in the order they were added.
    pub nodes: Vec<Node>,
    /// The pods, in the order they were added.
    pub pods: Vec<Pod>,
    /// The hosts outside, in the order they were added.
    pub outside: Vec<Pod>,
    overlay: Overlay,
    pod_mtu: Option<u32>,
    made: u64,
}

impl World {
    /// Begins a world.
    #[must_use]
    pub fn builder() -> WorldBuilder {
        WorldBuilder::default()
    }

    /// What every name of this world begins with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A directory for the world's files; it goes away with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A node by name.
    ///
    /// # Panics
    /// When there is none: the test is wrong.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// A pod by `namespace/name`, or a host outside by its name.
    ///
    /// # Panics
    /// When there is none: the test is wrong.
    #[must_use]
    pub fn pod(&self, name: &str) -> &Pod {
        let mut all = self.pods.iter().chain(&self.outside);
        all.find(|pod| pod.name == name).unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// Adds a pod to a world that is up.
    ///
    /// # Errors
    /// With the command that failed.
    pub fn add_pod(&mut self, spec: &PodSpec) -> Result<&Pod> {
        plumbing::add_pod(self, spec)?;
        self.pods.last().context("no pod was added")
    }

    /// Deletes a pod's namespace, and its veth with it.
    ///
    /// # Errors
    /// With the command that failed.
    pub fn delete_pod(&mut self, name: &str) -> Result<()> {
        let at =
            self.pods.iter().position(|pod| pod.name == name).with_context(|| format!("no pod {name}"))?;
        let pod = self.pods.remove(at);
        let node = self.node(&pod.node).netns.clone();
        node.run(&["ip", "link", "del", &pod.veth])?;
        netns::run(Command::new("ip").args(["netns", "del", pod.netns.name()]))?;
        Ok(())
    }

    /// Starts a program in a namespace of this world.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, netns: &Netns, program: &Path, arguments: &[&str]) -> Result<Process> {
        Process::start(name, &self.dir, netns.command(program).args(arguments))
    }

    /// Starts `sluice-peer serve` in a pod and waits until it listens.
    ///
    /// # Errors
    /// When it does not come up; with what it wrote.
    pub fn serve(&self, pod: &str, arguments: &[&str]) -> Result<Process> {
        let pod = self.pod(pod);
        let name = format!("peer-{}", pod.name.replace('/', "-"));
        let all: Vec<&str> = ["serve", "--name", pod.short_name()].iter().chain(arguments).copied().collect();
        let mut process = self.start(&name, &pod.netns, &binary("sluice-peer")?, &all)?;
        process.wait_line(0, SERVE_DEADLINE, "that it listens", |line| line.contains("\"ready\""))?;
        Ok(process)
    }

    /// What reached the `sluice-peer serve` of a pod, asked from within the pod.
    ///
    /// # Errors
    /// When it does not answer on that port.
    pub fn stats(&self, pod: &str, http_port: u16) -> Result<Stats> {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, http_port));
        let asks = [Ask::new("GET", "/__stats")];
        let answers = self.pod(pod).netns.block_on(|| http_client::ask(target, Version::Http1, &asks))??;
        let answer = answers.first().context("no answer")?;
        serde_json::from_str(&answer.body).with_context(|| format!("the ledger of {pod}: {answer:?}"))
    }

    /// The state of every namespace, to be printed when a test failed.
    #[must_use]
    pub fn describe(&self) -> String {
        state::describe(self)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.describe());
        } else if std::env::var_os(DESCRIBE).is_some() {
            LAST.set(self.describe());
        }
        cleanup::end(&self.prefix);
    }
}
