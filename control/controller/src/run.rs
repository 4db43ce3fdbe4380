//! The controller's loop: one owner of all state between the objects, the compiler and the nodes.
//!
//! Straight through: a change is read, compiled for every node and offered; acks come back. Compiling runs on the
//! blocking pool. Called by `main`.

use crate::acks;
use crate::cluster::{Client, Shared, watch as watches};
use crate::feed::{Event, FeedService};
use crate::follow::{Timing, follow};
use crate::nodes::{Node, Nodes};
use crate::plan::{Objects, Plan, Settings, Source};
use crate::socket::Socket;
use crate::status::{StatusFile, status};
use crate::write::{Lead, Reporter, Writer, lease};
use anyhow::Context as _;
use k8s_openapi::jiff::Timestamp;
use sluice_compile::{Compiler, NodeScope, Rollout};
use sluice_crd::{Problem, Severity};
use sluice_wire::pb;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

/// Events of all nodes that wait for the loop; a node beyond it waits with its next message.
const EVENTS: usize = 1024;

/// Reports come many a second, and the status is large: what they count is written this often.
const COUNTS: Duration = Duration::from_secs(1);

/// How often it is looked whether a node has fallen silent, and the status is written anew for the ages in it.
const AGES: Duration = sluice_wire::REPORT_PERIOD;

/// Much happens at once, and what is said of it is about all of it: it is looked at this often, if anything happened.
const LOOK: Duration = Duration::from_millis(200);

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is compiled, and how.
    pub settings: Settings,
    /// The socket.
    pub listen: PathBuf,
    /// The status file.
    pub status_file: Option<PathBuf>,
    /// The first generation: greater than any that an earlier control gave.
    pub generation: u64,
    /// How changes are followed.
    pub timing: Timing,
}

/// Runs until shutdown.
///
/// # Errors
/// The directory is not there, the API server's credentials cannot be read, the socket is another's, or the server
/// broke.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let follower = Follower::new(&config.settings.source).await?;
    let (socket, listener) = Socket::bind(&config.listen).await?;
    let (events, incoming) = mpsc::channel(EVENTS);
    let (writer, lease) = follower.writer(&config.settings.namespace, &shutdown);
    let (objects, changes) = follower.start(config.timing, &shutdown);
    let service = sluice_wire::feed_server(FeedService::new(events, shutdown.clone()));
    let server = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.clone().cancelled_owned());
    tracing::info!("nodes subscribe at {}", config.listen.display());
    let mut server = tokio::spawn(server);
    let controller = Controller::new(config, objects, writer).run(changes, incoming, &shutdown);
    // Either half without the other would look alive and do nothing: the first to end ends both.
    let (ended, served) = tokio::select! {
        ended = controller => {
            shutdown.cancel();
            (ended, server.await)
        }
        served = &mut server => (by_itself(&shutdown), served),
    };
    drop(socket);
    if let Some(lease) = lease {
        // It gives back what it holds; both waits are its own.
        let _ = lease.await;
    }
    served.context("the feed's server panicked")?.context("the feed's server broke")?;
    ended
}

/// The server ended before the controller did: by shutdown, or by a fault.
fn by_itself(shutdown: &CancellationToken) -> anyhow::Result<()> {
    anyhow::ensure!(shutdown.is_cancelled(), "the feed's server ended by itself: start control again");
    Ok(())
}

/// What will be followed, once everything else is ready.
enum Follower {
    Directory(PathBuf),
    Cluster(Client),
}

impl Follower {
    async fn new(source: &Source) -> anyhow::Result<Self> {
        Ok(match source {
            Source::Directory(dir) => {
                std::fs::read_dir(dir).with_context(|| {
                    format!("{}: cannot be read: --dir is a directory of manifests", dir.display())
                })?;
                Self::Directory(dir.clone())
            }
            Source::Cluster(access) => Self::Cluster(access.client().await?),
        })
    }

    /// Who writes back; to a directory nobody does.
    fn writer(
        &self,
        namespace: &str,
        shutdown: &CancellationToken,
    ) -> (Option<Leading>, Option<JoinHandle<()>>) {
        match self {
            Self::Directory(_) => (None, None),
            Self::Cluster(client) => {
                let (lead, task) = lease::run(client, namespace, shutdown);
                (Some((Writer::new(client), lead)), Some(task))
            }
        }
    }

    /// Where objects are read, and what says that they may have changed.
    fn start(self, timing: Timing, shutdown: &CancellationToken) -> (Objects, mpsc::Receiver<()>) {
        match self {
            Self::Directory(dir) => {
                tracing::info!("following {}", dir.display());
                let changes = follow(&dir, timing, shutdown.clone());
                (Objects::Directory(dir), changes)
            }
            Self::Cluster(client) => {
                tracing::info!("following the API server");
                let shared = Shared::default();
                let changes = shared.changes(timing, shutdown.clone());
                watches::run(&client, &shared, shutdown);
                (Objects::Cluster(shared), changes)
            }
        }
    }
}

/// Who writes, and whether it may.
type Leading = (Writer, watch::Receiver<Lead>);

struct Controller {
    rollout: Rollout,
    objects: Objects,
    nodes: Nodes,
    plan: Plan,
    /// What the plan was compiled to, and what compiling the next one can take over.
    compiler: Arc<Mutex<Compiler>>,
    /// The objects could not be read the last time: what is in force is older.
    unreadable: Option<Problem>,
    /// Problems that were printed and still stand.
    said: BTreeSet<Problem>,
    status: StatusFile,
    reporter: Reporter,
    writer: Option<Leading>,
    /// Something happened since it was looked at what is to be said.
    news: bool,
    reads: u64,
}

impl Controller {
    fn new(config: Config, objects: Objects, writer: Option<Leading>) -> Self {
        Self {
            rollout: config.settings.rollout,
            objects,
            nodes: Nodes::new(config.generation),
            plan: Plan::default(),
            compiler: Arc::default(),
            unreadable: None,
            said: BTreeSet::new(),
            status: StatusFile::new(config.status_file),
            reporter: Reporter::new(Instant::now()),
            writer,
            news: false,
            reads: 0,
        }
    }

    async fn run(
        mut self,
        mut changes: mpsc::Receiver<()>,
        mut events: mpsc::Receiver<Event>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        // First of all, so that nobody takes an earlier control's file for this one's.
        self.write_status();
        let mut counts = tokio::time::interval(COUNTS);
        counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut counted = false;
        let mut ages = tokio::time::interval(AGES);
        ages.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = turn(self.writer.as_mut(), &mut self.reporter) => {
                    (self.news, counted) = (true, true);
                    continue;
                }
                _ = looks.tick(), if self.news => {
                    self.look();
                    continue;
                }
                changed = changes.recv() => match changed {
                    Some(()) => self.reload().await,
                    // Its task ends with shutdown alone, or by a fault of ours.
                    None if shutdown.is_cancelled() => return Ok(()),
                    None => anyhow::bail!("nobody follows the objects any more: start control again"),
                },
                event = events.recv() => match event {
                    Some(event @ Event::Reported { .. }) => {
                        self.take(event).await;
                        counted = true;
                        continue;
                    }
                    Some(event) => self.take(event).await,
                    None => return by_itself(shutdown),
                },
                _ = counts.tick(), if counted => {
                    counted = false;
                    self.write_status();
                    continue;
                }
                _ = ages.tick() => self.say_stale(),
            }
            self.news = true;
            if let Some(text) = self.nodes.announcement(Instant::now()) {
                tracing::info!("{text}");
            }
            self.write_status();
        }
    }

    /// What is to be said to the API server now.
    fn look(&mut self) {
        self.news = false;
        if self.writer.is_none() || self.reads == 0 {
            return;
        }
        let there = self.objects.policies();
        self.reporter.look(&self.plan.facts, &self.nodes, there, Instant::now(), Timestamp::now());
    }

    fn write_status(&mut self) {
        let problems: Vec<Problem> = self.unreadable.iter().chain(&self.plan.problems).cloned().collect();
        let mut source = self.objects.status();
        if self.writer.is_some() {
            source["writes"] = self.reporter.status(Instant::now());
        }
        let now = Instant::now();
        self.status.write(status(&self.nodes, now, self.reads, &source, &problems, &self.plan.policies));
    }

    async fn reload(&mut self) {
        let (objects, rollout) = (self.objects.clone(), self.rollout);
        let (compiler, marks) = (Arc::clone(&self.compiler), self.reporter.marks().clone());
        match blocking(move || Plan::read(&objects, rollout, &mut locked(&compiler), &marks)).await {
            Some(Ok(plan)) => {
                self.plan = plan;
                self.unreadable = None;
                self.reads += 1;
                self.nodes.expect(self.reads);
                self.reporter.read(&self.plan.facts, self.reads, self.nodes.generation());
                self.say_problems();
                let names = self.nodes.iter().map(|(name, _)| name.to_owned()).collect();
                let changed = self.publish(names).await;
                let (generation, objects) = (self.nodes.generation(), self.plan.summary());
                tracing::info!("read {objects}: generation {generation}, new for {changed} nodes");
            }
            Some(Err(problem)) => {
                self.unreadable = Some(*problem);
                self.say_problems();
            }
            None => {}
        }
    }

    /// Compiles for these nodes and offers each what is new for it. Returns how many have something new.
    async fn publish(&mut self, names: Vec<String>) -> usize {
        let compiler = Arc::clone(&self.compiler);
        let compile = move || {
            let mut compiler = locked(&compiler);
            let one = |name: String| {
                // The generation is given on publication, if there is anything new. Without a plan there is nothing
                // to say, and the node keeps what it has.
                let snapshot = compiler.snapshot(&NodeScope::Named(name.as_str().into()), 0)?;
                Some((name, sluice_wire::encode(&snapshot)))
            };
            names.into_iter().filter_map(one).collect::<Vec<(String, pb::Snapshot)>>()
        };
        let Some(snapshots) = blocking(compile).await else { return 0 };
        let changed = self.nodes.publish(snapshots, self.reads, Instant::now());
        for (name, node) in self.nodes.iter() {
            if let Some(reason) = node.withheld() {
                tracing::error!("node {name} is not sent its new state and keeps what it has: {reason}");
            }
        }
        changed
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Joined { node, stream, last_generation, reply } => {
                let now = Instant::now();
                let joined = self.nodes.join(&node, stream, last_generation, now);
                if joined.is_ok() {
                    tracing::info!("node {node} subscribed, with generation {last_generation} in force");
                    // Before the first reading there is nothing to compile; the node waits for it.
                    if self.reads > 0 {
                        self.nodes.renew(&node, last_generation, now);
                        self.publish(vec![node]).await;
                    }
                }
                // A stream that is gone already says so by Left.
                let _ = reply.send(joined);
            }
            Event::Left { node, stream } => {
                tracing::info!("node {node} left");
                self.nodes.leave(&node, stream);
            }
            Event::Acked { node, stream, ack, turn: _ } => {
                let before = self.nodes.get(&node).and_then(Node::ack);
                acks::say(&node, before, &ack);
                self.nodes.acked(&node, stream, ack, Instant::now());
            }
            Event::Reported { node, stream, records, dropped, kernel, turn: _ } => {
                if let Some(kernel) = kernel {
                    self.nodes.reported(&node, stream, kernel, Instant::now());
                }
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.records = node.records.saturating_add(records);
                    node.dropped = node.dropped.saturating_add(dropped);
                }
            }
        }
    }

    fn say_stale(&mut self) {
        for (node, stale) in self.nodes.turned_stale(Instant::now()) {
            if stale {
                tracing::warn!(
                    "node {node} is connected and has said nothing of its kernel for {} s: what is in \
                    force there is not known",
                    sluice_wire::STALE_AFTER.as_secs()
                );
            } else {
                tracing::info!("node {node} is not stale any more");
            }
        }
    }

    /// Prints what was not printed yet, and that what was is gone.
    fn say_problems(&mut self) {
        let now: BTreeSet<Problem> = self.unreadable.iter().chain(&self.plan.problems).cloned().collect();
        for problem in now.difference(&self.said) {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
                Severity::Info => tracing::info!("{problem}"),
            }
        }
        let solved = self.said.difference(&now).count();
        if solved > 0 {
            tracing::info!("{solved} problems are solved, {} are left", now.len());
        }
        self.said = now;
    }
}

/// The writer's turn, or whether there is one is another; without a writer, nothing.
async fn turn(writer: Option<&mut Leading>, reporter: &mut Reporter) {
    let Some((writer, lead)) = writer else { return std::future::pending().await };
    let changed = tokio::select! {
        () = writer.turn(reporter) => return,
        changed = lead.changed() => changed,
    };
    let Lead { until, trouble } = lead.borrow_and_update().clone();
    reporter.lead(until, Instant::now());
    if trouble.is_some() {
        reporter.say(trouble);
    }
    if changed.is_err() {
        // Its task ends with shutdown alone, or by a fault of ours: nobody writes then.
        reporter.lead(None, Instant::now());
        std::future::pending::<()>().await;
    }
}

/// The compiler. One that panicked while it compiled is thrown away: what it remembered may be half of something, and
/// nothing is made of it before the directory was read again.
fn locked(compiler: &Mutex<Compiler>) -> MutexGuard<'_, Compiler> {
    compiler.lock().unwrap_or_else(|poisoned| {
        let mut compiler_again = poisoned.into_inner();
        *compiler_again = Compiler::new();
        compiler.clear_poison();
        compiler_again
    })
}

/// Runs on the blocking pool. `None` if it panicked, which costs this round and is printed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) => {
            tracing::error!("reading or compiling failed and what was in force stays: {error}");
            None
        }
    }
}
