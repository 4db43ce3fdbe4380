//! The product's own processes in a world: one `sluice-control` over a directory, or over an API server, and one
//! `sluice-proxy` per node.
//!
//! Knows the command lines and the status file, and nothing of what is inside. Called by the end-to-end tests
//! and the demo.

use crate::manifests;
use crate::world::{Node, Process, World, binary};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a change may take to be in force on every node: far beyond what it takes, on a machine that has too much to
/// do as well.
pub const IN_FORCE: Duration = Duration::from_secs(60);
/// How long a flow record may take from the end of its request.
pub const RECORDED: Duration = Duration::from_secs(5);
/// How long a proxy may drain after SIGTERM before the test says that it hangs.
pub const DRAINED: Duration = Duration::from_secs(30);
/// The namespace of the policies that mark a writing.
const MARKER_NAMESPACE: &str = "sluice-marker";
/// How often the status file is read.
const POLL: Duration = Duration::from_millis(5);

/// A world with control and proxies in it.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: the processes end before their world goes.
    proxies: BTreeMap<String, Process>,
    control: Option<Process>,
    environment: Vec<(String, String)>,
    markers: u64,
    /// Whether the proxies write flow records.
    records: bool,
    /// The cluster that control is over, in the directory's place.
    kubeconfig: Option<PathBuf>,
    /// The world.
    pub world: World,
}

impl Cluster {
    /// Starts control over an empty directory, and a proxy on every node. `environment` is the proxies'.
    ///
    /// # Errors
    /// When a binary is missing or does not come up.
    pub fn start(world: World, environment: &[(&str, &str)]) -> Result<Self> {
        Self::start_from(world, environment, None, true)
    }

    /// The same without flow records: for more requests than anybody would read of.
    ///
    /// # Errors
    /// When a binary is missing or does not come up.
    pub fn start_unrecorded(world: World) -> Result<Self> {
        Self::start_from(world, &[], None, false)
    }

    /// The same over an API server, by a kubeconfig: what is applied there is the cluster.
    ///
    /// # Errors
    /// When a binary is missing or does not come up.
    pub fn over(world: World, environment: &[(&str, &str)], kubeconfig: &Path) -> Result<Self> {
        Self::start_from(world, environment, Some(kubeconfig.to_owned()), true)
    }

    fn start_from(
        world: World,
        environment: &[(&str, &str)],
        kubeconfig: Option<PathBuf>,
        records: bool,
    ) -> Result<Self> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut cluster = Self {
            proxies: BTreeMap::new(),
            control: None,
            environment: environment.iter().map(own).collect(),
            markers: 0,
            records,
            kubeconfig,
            world,
        };
        std::fs::create_dir_all(cluster.manifests())?;
        cluster.start_control()?;
        for node in cluster.world.nodes.clone() {
            cluster.spawn_proxy(&node, &[])?;
        }
        Ok(cluster)
    }

    /// The directory that is the cluster.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.world.dir().join("manifests")
    }

    /// Control's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.world.dir().join("control.sock")
    }

    /// Where control writes what is in force.
    #[must_use]
    pub fn status_file(&self) -> PathBuf {
        self.world.dir().join("status.json")
    }

    /// Starts control.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn start_control(&mut self) -> Result<()> {
        let mut command = Command::new(binary("sluice-control")?);
        match &self.kubeconfig {
            Some(kubeconfig) => command.arg("--kubeconfig").arg(kubeconfig),
            None => command.arg("--dir").arg(self.manifests()),
        };
        command.arg("--listen").arg(format!("unix:{}", self.socket().display()));
        command.arg("--status-file").arg(self.status_file());
        let mut control = Process::start("control", self.world.dir(), &mut command)?;
        let socket = self.socket();
        crate::world::eventually("control listens", IN_FORCE, || {
            ensure!(control.running()?, "sluice-control ended:\n{}", control.tail(20));
            Ok(socket.exists())
        })?;
        self.control = Some(control);
        Ok(())
    }

    /// Stops control.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop_control(&mut self) -> Result<()> {
        if let Some(mut control) = self.control.take() {
            control.terminate(DRAINED)?;
        }
        Ok(())
    }

    fn spawn_proxy(&mut self, node: &Node, more: &[&str]) -> Result<()> {
        let mut command = node.netns.command(binary("sluice-proxy")?);
        command.args(["run", "--node", &node.name, "--control"]);
        command.arg(format!("unix:{}", self.socket().display()));
        command.arg("--bpffs").arg(&node.bpffs);
        command.arg("--state").arg(self.world.dir().join(format!("state-{}", node.name)));
        if self.records {
            command.args(["--records", "-"]);
        }
        command.args(more);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let process = Process::start(format!("proxy-{}", node.name), self.world.dir(), &mut command)?;
        self.proxies.insert(node.name.clone(), process);
        Ok(())
    }

    /// Starts a node's proxy, or another one beside none.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_proxy(&mut self, node: &str) -> Result<()> {
        self.start_proxy_with(node, &[])
    }

    /// The same, with more options.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_proxy_with(&mut self, node: &str, more: &[&str]) -> Result<()> {
        let node = self.world.node(node).clone();
        self.spawn_proxy(&node, more)
    }

    /// Takes a node's proxy out of the cluster's hands.
    ///
    /// # Errors
    /// When there is none.
    pub fn take_proxy(&mut self, node: &str) -> Result<Process> {
        self.proxies.remove(node).with_context(|| format!("no proxy runs on {node}"))
    }

    /// Gives back a node's proxy that was taken.
    pub fn put_proxy(&mut self, node: &str, proxy: Process) {
        self.proxies.insert(node.to_owned(), proxy);
    }

    /// A node's proxy.
    ///
    /// # Errors
    /// When there is none.
    pub fn proxy(&mut self, node: &str) -> Result<&mut Process> {
        self.proxies.get_mut(node).with_context(|| format!("no proxy runs on {node}"))
    }

    /// Replaces the whole cluster by these objects and waits until they are in force on every node. Returns how
    /// long that took.
    ///
    /// # Errors
    /// When it is not in force in time, or when control finds an error in the objects.
    pub fn apply(&mut self, objects: &[Value]) -> Result<Duration> {
        self.markers += 1;
        let marker = format!("writing-{}", self.markers);
        let mut all: Vec<Value> = self.world.nodes.iter().map(manifests::node).collect();
        all.extend(objects.iter().cloned());
        all.extend(marker_objects(&marker));
        let begin = Instant::now();
        manifests::write(&self.manifests().join("cluster.yaml"), &all)?;
        self.wait_in_force(&marker)?;
        Ok(begin.elapsed())
    }

    /// Waits until the policies with this name among them are in force on every node that has a proxy.
    ///
    /// # Errors
    /// After the deadline, with the status and what the processes wrote.
    pub fn wait_in_force(&mut self, policy: &str) -> Result<()> {
        let end = Instant::now() + IN_FORCE;
        loop {
            let status = self.status().unwrap_or_default();
            if self.is_in_force(&status, policy) {
                return Ok(());
            }
            self.check_processes()?;
            if Instant::now() > end {
                bail!("not in force within {IN_FORCE:?}: {policy}\n{status:#}\n{}", self.tails());
            }
            std::thread::sleep(POLL);
        }
    }

    fn is_in_force(&self, status: &Value, policy: &str) -> bool {
        let nodes = self.proxies.keys().all(|node| status["nodes"][node]["inForce"] == true);
        nodes && status["policies"].to_string().contains(policy)
    }

    fn check_processes(&mut self) -> Result<()> {
        for process in self.proxies.values_mut().chain(&mut self.control) {
            let running = process.running()?;
            ensure!(running, "{} ended:\n{}", process.name(), process.tail(30));
        }
        Ok(())
    }

    /// What control says is in force.
    ///
    /// # Errors
    /// When there is no status yet.
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&std::fs::read_to_string(self.status_file())?)?)
    }

    /// The last lines of every process.
    #[must_use]
    pub fn tails(&self) -> String {
        let all = self.proxies.values().chain(&self.control);
        all.map(|process| format!("--- {}\n{}", process.name(), process.tail(20))).collect()
    }

    /// How many lines each proxy has written so far.
    #[must_use]
    pub fn mark(&self) -> BTreeMap<String, usize> {
        self.proxies.iter().map(|(node, process)| (node.clone(), process.mark())).collect()
    }

    /// What a node's proxy wrote since the mark, records and all.
    #[must_use]
    pub fn proxy_log(&self, node: &str, mark: &BTreeMap<String, usize>) -> Vec<String> {
        let mark = mark.get(node).copied().unwrap_or(0);
        self.proxies.get(node).map(|process| process.lines_since(mark)).unwrap_or_default()
    }

    /// The flow records that the proxies wrote since the mark.
    #[must_use]
    pub fn records_since(&self, mark: &BTreeMap<String, usize>) -> Vec<Value> {
        let lines = self
            .proxies
            .iter()
            .flat_map(|(node, process)| process.lines_since(mark.get(node).copied().unwrap_or(0)));
        lines.filter_map(|line| record(&line)).collect()
    }

    /// Waits for a flow record that satisfies the condition, written since the mark.
    ///
    /// # Errors
    /// After the deadline, with the records there were.
    pub fn wait_record(
        &self,
        mark: &BTreeMap<String, usize>,
        what: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.wait_record_until(mark, Instant::now() + RECORDED, what, is)
    }

    /// The same, for many records with one deadline.
    ///
    /// # Errors
    /// After the deadline, with the records there were.
    pub fn wait_record_until(
        &self,
        mark: &BTreeMap<String, usize>,
        end: Instant,
        what: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        loop {
            let records = self.records_since(mark);
            if let Some(record) = records.iter().find(|record| is(record)) {
                return Ok(record.clone());
            }
            if Instant::now() > end {
                bail!("no flow record of {what}; there were {}: {records:#?}", records.len());
            }
            std::thread::sleep(POLL);
        }
    }
}

/// The flow record in a line of a proxy's log.
#[must_use]
pub fn record(line: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line.get(line.find('{')?..)?).ok()?;
    (value["verdict"].is_string() && value["source"].is_object()).then_some(value)
}

/// Whether a flow record is of a flow that the kernel decided: it names the end.
#[must_use]
pub fn is_of_the_kernel(record: &Value) -> bool {
    record["direction"].as_str().is_some_and(|direction| !direction.is_empty())
}

/// A policy that selects nothing, by whose name a writing of the directory is known again.
fn marker_objects(name: &str) -> [Value; 2] {
    let labels = BTreeMap::new();
    [
        manifests::namespace(MARKER_NAMESPACE, "disabled", &labels),
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": MARKER_NAMESPACE, "name": name},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        }),
    ]
}

/// The directory of the repository.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
