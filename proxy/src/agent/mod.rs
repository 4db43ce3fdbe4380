//! The agent: privileged, and deaf to strangers.
//!
//! Owns the loader, the listeners, the feed and the telemetry's sockets; everything that reads what pods send is its
//! [`child`]. Stays in the node's network namespace. Knows nothing of HTTP.

pub mod child;
mod engine;
mod feed;
mod findings;
mod flows;
mod handover;
mod links;
mod records;
mod store;

use crate::confine::User;
use crate::limits::{DRAIN_TIMEOUT, HANDED_OVER_TIMEOUT};
use crate::telemetry::settings::Settings;
use anyhow::Context as _;
use bytes::Bytes;
use child::Launch;
use engine::Engine;
use feed::Feed;
use handover::{Door, Goods, Line, Taken};
use records::Records;
use sluice_policy::Snapshot;
use sluice_redirect::{Node, NodeConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What `sluice-proxy run` was told.
#[derive(Debug)]
pub struct Options {
    /// For the loader.
    pub node: NodeConfig,
    /// How many threads of the worker serve.
    pub threads: u8,
    /// Whom the worker runs as.
    pub user: User,
    /// The node's name.
    pub name: String,
    /// `unix:/path`.
    pub control: String,
    /// Where the last snapshot is kept.
    pub state: Option<PathBuf>,
    /// Where records go.
    pub records: Option<PathBuf>,
    /// Where another agent asks this one to hand the node over.
    pub handover: Option<PathBuf>,
}

/// Takes everything of ours off the node: what the loader holds in the kernel, and the files of `run`.
///
/// # Errors
/// If an agent runs, or with what stays.
pub fn uninstall(node: &NodeConfig, state: Option<&Path>, handover: Option<&Path>) -> anyhow::Result<()> {
    Node::uninstall(node)?;
    if let Some(path) = handover {
        handover::remove(path).with_context(|| format!("remove {}", path.display()))?;
    }
    if let Some(path) = state {
        store::remove(path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// Snapshots that wait to be applied; control sends the newest, and the next one only after it.
const SNAPSHOTS: usize = 2;

/// What waits to be said to control.
const OUTGOING: usize = 16;

/// What waits of the worker's words.
const EVENTS: usize = 16;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be set up, and what to do about it.
pub fn run(options: Options) -> anyhow::Result<()> {
    let settings = Settings::from_env().map_err(anyhow::Error::msg)?;
    // One thread does everything but what blocks. Also the worker's parent: it must live as long as the agent.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(serve(options, &settings));
    runtime.shutdown_background();
    result
}

async fn serve(options: Options, settings: &Settings) -> anyhow::Result<()> {
    // Before the node is touched: whatever comes from here on, what we hold is put down in order.
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let store =
        options.state.as_deref().map(Store::open).transpose().context("open the --state directory")?;
    let records = Records::open(options.records.as_deref(), settings).context("open --records")?;
    let generation = Arc::default();
    let feed = Feed { control: options.control, node: options.name, generation: Arc::clone(&generation) };
    feed.check()?;

    let taken = match &options.handover {
        Some(path) => handover::take(path).await.context("take the node over")?,
        None => None,
    };
    let (node, goods, handed, line) = set_up(options.node, taken)?;
    let own = goods.duplicate().context("keep the listeners for the next agent")?;
    let launch = Launch {
        binary: "/proc/self/exe".into(),
        netns: goods.netns,
        listeners: goods.listeners,
        threads: options.threads,
        user: options.user,
        patient: line.is_some(),
    };
    let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
    let (events, from_worker) = mpsc::channel(EVENTS);
    let (snapshots, from_feed) = mpsc::channel(SNAPSHOTS);
    let (outgoing, to_control) = mpsc::channel(OUTGOING);
    let supervisor = tokio::spawn(child::supervise(launch, events, drain.clone(), stop.clone()));
    let mut engine =
        Engine::new(node, store, records, outgoing, generation).context("watch the node's devices")?;
    engine.start(handed).await;
    tokio::spawn(feed.follow(snapshots, to_control));
    let mut agent =
        Agent { engine, from_worker, from_feed, own: Some(own), ours: line.is_none(), door: None };
    tracing::info!("running");
    let ended = tokio::select! {
        ended = agent.run(line, options.handover.as_deref()) => ended,
        _ = terminate.recv() => Ok(Ended::Stopped),
        _ = interrupt.recv() => Ok(Ended::Stopped),
    };
    tracing::info!("draining");
    // Whoever knocks from here on is told to come again, or is the first.
    if let Some(door) = agent.door.take().filter(|_| !matches!(ended, Ok(Ended::HandedOver))) {
        door.close();
    }
    agent.own = None;
    if !agent.ours {
        agent.engine.retire().await;
    }
    drain.cancel();
    match &ended {
        Ok(Ended::HandedOver) => {
            let told_to_end = async {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                tokio::time::sleep(DRAIN_TIMEOUT).await;
            };
            tokio::select! {
                () = agent.drain(HANDED_OVER_TIMEOUT) => {}
                () = told_to_end => {}
            }
        }
        _ => agent.drain(DRAIN_TIMEOUT).await,
    }
    stop.cancel();
    // Nobody reads its events any more: it must not wait for that.
    drop(agent.from_worker);
    let _ = supervisor.await;
    agent.engine.release().await?;
    ended.map(drop)
}

/// How an agent's time ends.
enum Ended {
    /// It was told to.
    Stopped,
    /// Another has the node.
    HandedOver,
}

type SetUp = (Node, Goods, Option<Bytes>, Option<Line>);

/// The node, its proxy's namespace and its listeners: made, or taken from the agent that runs.
fn set_up(config: NodeConfig, taken: Option<Taken>) -> anyhow::Result<SetUp> {
    let Some(mut taken) = taken else {
        let node = Node::open(config)?;
        let listeners = node.listeners()?;
        let netns = node.proxy_netns().try_clone_to_owned().context("keep the proxy's network namespace")?;
        return Ok((node, Goods { netns, listeners }, None, None));
    };
    let netns = taken.goods.netns.try_clone().context("keep the proxy's network namespace")?;
    let node = Node::adopt(config, netns, &taken.goods.listeners)
        .context("take the node over; the agent that runs goes on")?;
    let handed = taken.snapshot.take();
    let (mut goods, line) = taken.split();
    goods.listeners = node.listeners_beside(goods.listeners)?;
    Ok((node, goods, handed, Some(line)))
}

/// What an agent has while it runs.
struct Agent {
    engine: Engine,
    from_worker: mpsc::Receiver<child::Event>,
    from_feed: mpsc::Receiver<Snapshot>,
    /// For the next agent.
    own: Option<Goods>,
    /// Whether the node is ours: not yet, or not any more, while another agent has it.
    ours: bool,
    door: Option<Door>,
}

impl Agent {
    /// Runs, and once it serves lets another agent take its place.
    async fn run(&mut self, line: Option<Line>, door: Option<&Path>) -> anyhow::Result<Ended> {
        if let Some(line) = line {
            self.begin(line).await?;
        }
        let Some(path) = door else {
            self.engine.run(&mut self.from_worker, &mut self.from_feed).await?;
            return Ok(Ended::Stopped);
        };
        let door =
            Door::open(path).with_context(|| format!("open the hand-over socket {}", path.display()))?;
        let door = self.door.insert(door);
        loop {
            let next = tokio::select! {
                ended = self.engine.run(&mut self.from_worker, &mut self.from_feed) => {
                    return ended.map(|()| Ended::Stopped);
                }
                next = door.knock() => next,
            };
            tracing::info!("another agent takes the node over");
            let Some(own) = &self.own else { continue };
            self.engine.freeze().await;
            let snapshot = self.engine.snapshot();
            tokio::select! {
                ended = self.engine.run(&mut self.from_worker, &mut self.from_feed) => {
                    return ended.map(|()| Ended::Stopped);
                }
                given = handover::give(next, own, snapshot) => match given {
                    Ok(()) => {
                        self.ours = false;
                        return Ok(Ended::HandedOver);
                    }
                    Err(error) => tracing::error!(%error, "it did not: this one goes on"),
                },
            }
            self.engine.thaw();
        }
    }

    /// Until the first snapshot is in force the agent before goes on accepting; then it is told.
    async fn begin(&mut self, mut line: Line) -> anyhow::Result<()> {
        let serving = self.engine.serving();
        tokio::select! {
            ended = self.engine.run(&mut self.from_worker, &mut self.from_feed) => ended?,
            _ = serving => {}
            () = line.lost() => anyhow::bail!("the agent that runs has taken the node back: it goes on"),
        }
        line.ready().await.context("the agent that runs has taken the node back: it goes on")?;
        self.ours = true;
        tracing::info!("took the node over");
        Ok(())
    }

    async fn drain(&mut self, limit: Duration) {
        self.engine.drain(&mut self.from_worker, &mut self.from_feed, limit).await;
    }
}
